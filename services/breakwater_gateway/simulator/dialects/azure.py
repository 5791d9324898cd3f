"""Azure OpenAI from the provider's side: deployments in the path, content filters in the answers.

Source: Azure OpenAI reference, "Chat completions", "Content filtering"; recorded answers and errors.
"""

from collections.abc import Iterator
from typing import ClassVar, Final

from breakwater_gateway.simulator.dialects import openai
from breakwater_gateway.simulator.dialects.dialect import (
    Door,
    Headers,
    Route,
    bearer,
    encode,
    sse,
)
from breakwater_gateway.simulator.dialects.openai_errors import OpenAIError
from breakwater_gateway.simulator.dialects.responses import Responses
from breakwater_gateway.simulator.refusals import Problem
from breakwater_gateway.simulator.script import Script
from breakwater_gateway.simulator.turns import HEX, Choice, Event, Json, Sampling, Turn, token

_SAFE: Final[dict[str, Json]] = {
    name: {"filtered": False, "severity": "safe"}
    for name in ("hate", "self_harm", "sexual", "violence")
}
_PROMPT: Final[list[Json]] = [
    {
        "prompt_index": 0,
        "content_filter_results": {**_SAFE, "jailbreak": {"detected": False, "filtered": False}},
    }
]
# In the words of the service's policy page: what a caller reads when a prompt is refused.
_FILTERED: Final = (
    "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."
    " Please modify your prompt and retry. To learn more about our content filtering policies please read"
    " our documentation: https://go.microsoft.com/fwlink/?linkid=2198766"
)


class AzureError(OpenAIError):
    """Without `param` and `type`, but with what the fault adds."""

    def __init__(
        self, status: int, message: str, *, code: str, extra: dict[str, Json] | None = None
    ) -> None:
        super().__init__(status, message, code=code)
        self.extra = extra or {}

    def object(self) -> Json:
        return {"error": {"code": self.code, "message": self.message, **self.extra}}


class Azure(openai.OpenAI):
    name: ClassVar[str] = "azure"

    def key(self, door: Door) -> str:
        return door.headers.get("api-key", "").strip() or bearer(door.headers)

    def inspect(self, door: Door) -> None:
        demand_version(door)

    def model(self, raw: dict[str, Json], route: Route) -> str:
        # The deployment counts, whatever the body names.
        return route.model or super().model(raw, route)

    def answer(
        self, turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
    ) -> bytes:
        answer = openai.completion(turn, choices, script, sampling)
        for choice in answer["choices"]:
            choice["content_filter_results"] = _results(choice["finish_reason"])
        answer["prompt_filter_results"] = _PROMPT
        return encode(answer)

    def events(
        self, turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
    ) -> Iterator[Event]:
        first = {
            "choices": [],
            "created": 0,
            "id": "",
            "model": "",
            "object": "",
            "prompt_filter_results": _PROMPT,
        }
        yield Event(sse(encode(first)), head=True)
        latency = b',"latency_checkpoint":{"engine_ttft_ms":36,"service_ttft_ms":664}'
        yield from openai.events(
            turn,
            choices,
            script,
            sampling,
            fields=b',"content_filter_results":{}',
            final=latency,
        )

    def error(self, problem: Problem) -> OpenAIError:
        return azure_error(problem) or super().error(problem)

    def headers(self, identity: int) -> Headers:
        return azure_headers(identity)


class AzureResponses(Responses):
    name: ClassVar[str] = "azure_responses"

    def key(self, door: Door) -> str:
        return door.headers.get("api-key", "").strip() or bearer(door.headers)

    def inspect(self, door: Door) -> None:
        demand_version(door)

    def error(self, problem: Problem) -> OpenAIError:
        return azure_error(problem) or super().error(problem)

    def headers(self, identity: int) -> Headers:
        return azure_headers(identity)


def azure_headers(identity: int) -> Headers:
    return (
        ("apim-request-id", token(identity, 32, HEX)),
        ("x-ms-region", "East US 2"),
        ("x-request-id", f"req_{identity:016x}"),
    )


def demand_version(door: Door) -> None:
    """`api-version` is part of every path but `openai/v1`."""
    if door.route.action == "versioned" and not door.query.get("api-version"):
        raise AzureError(404, "Resource not found", code="404")


def _results(finish: str) -> dict[str, Json]:
    if finish != "content_filter":
        return _SAFE
    return {**_SAFE, "violence": {"filtered": True, "severity": "medium"}}


def azure_error(problem: Problem) -> OpenAIError | None:
    """What Azure's own front end words; None where OpenAI's words pass through."""
    error = _azure_error(problem)
    if error is not None and problem.message is not None:
        error.message = problem.message
    return error


def _azure_error(problem: Problem) -> OpenAIError | None:
    match problem.kind:
        case "rate_limited":
            wait = problem.wait_s or 1
            text = (
                f"Your requests to {problem.model} for {problem.model} in East US 2 have exceeded rate"
                f" limit. Please retry after {wait:g} seconds."
            )
            return AzureError(429, text, code="RateLimitReached", extra={"details": text})
        case "authentication" | "no_key":
            return AzureError(
                401,
                "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide"
                " a valid key for an active subscription and use a correct regional API endpoint for your"
                " resource.",
                code="401",
            )
        case "permission":
            return AzureError(
                403,
                "Access denied due to Virtual Network/Firewall rules.",
                code="AccessDenied",
            )
        case "model_not_found":
            return AzureError(
                404,
                "The API deployment for this resource does not exist. If you created the deployment within"
                " the last 5 minutes, please wait a moment and try again.",
                code="DeploymentNotFound",
                extra={"type": "invalid_request_error"},
            )
        case "content_filter":
            filtered = {**_SAFE, "violence": {"filtered": True, "severity": "medium"}}
            inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": filtered}
            extra = {"param": "prompt", "type": None, "status": 400, "innererror": inner}
            return AzureError(400, _FILTERED, code="content_filter", extra=extra)
        case "unknown_url" | "wrong_method":
            return AzureError(404, "Resource not found", code="404")
        case _:
            return None
