"""Google's error objects (`google.rpc.Status` as JSON), as the Gemini API and Vertex word them.

Source: Google Cloud API design guide, "Errors"; Gemini API documentation, "Troubleshooting" and "Rate
limits"; recorded bodies.
"""

from typing import Final

from breakwater_gateway.simulator.refusals import WAIT_S, ApiError, Problem
from breakwater_gateway.simulator.turns import Json

_RPC: Final = "type.googleapis.com/google.rpc."
_CODES: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}


class GoogleError(ApiError):
    """`code` inside a 200 is the one that the object itself names."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        details: tuple[dict[str, Json], ...] = (),
        code: int | None = None,
    ) -> None:
        super().__init__(status, message)
        self.code = status if code is None else code
        self.details = details

    def object(self) -> Json:
        error: dict[str, Json] = {
            "code": self.code,
            "message": self.message,
            "status": _CODES[self.code],
        }
        if self.details:
            error["details"] = self.details
        return {"error": error}


def bad_field(message: str, field: str) -> GoogleError:
    violation = {"field": field, "description": message}
    detail = {"@type": _RPC + "BadRequest", "fieldViolations": [violation]}
    return GoogleError(400, message, details=(detail,))


def word(problem: Problem, *, version: str, vertex: bool) -> GoogleError:
    error = _of_vertex(problem) if vertex else None
    error = error or _word(problem, version)
    if problem.message is not None:
        error.message = problem.message
    return error


def _of_vertex(problem: Problem) -> GoogleError | None:
    """Where Vertex differs: OAuth instead of keys, publisher models."""
    match problem.kind:
        case "authentication" | "no_key":
            return GoogleError(
                401,
                "Request had invalid authentication credentials. Expected OAuth 2 access token, login"
                " cookie or other valid authentication credential.",
                details=(_info("ACCESS_TOKEN_TYPE_UNSUPPORTED"),),
            )
        case "model_not_found":
            return GoogleError(
                404,
                "Publisher Model `projects/simulator/locations/global/publishers/google/models/"
                f"{problem.model}` not found.",
            )
        case "rate_limited":
            return GoogleError(
                429,
                "Resource exhausted. Please try again later. Please refer to"
                " https://cloud.google.com/vertex-ai/generative-ai/docs/error-code-429 for more details.",
                details=_retry(problem) if problem.wait_s is not None else (),
            )
        case _:
            return None


def _word(problem: Problem, version: str) -> GoogleError:
    match problem.kind:
        case "rate_limited":
            return _exhausted("GenerateRequestsPerMinutePerProjectPerModel", problem)
        case "quota_exhausted":
            return _exhausted("GenerateRequestsPerDayPerProjectPerModel-FreeTier", problem)
        case "request_over_limit":
            return _exhausted("GenerateContentInputTokensPerModelPerMinute", problem)
        case "context_length":
            return GoogleError(
                400,
                f"The input token count ({problem.requested}) exceeds the maximum number of tokens allowed"
                f" ({problem.bound}).",
            )
        case "content_filter":
            return GoogleError(400, "The prompt was blocked.")
        case "invalid_request":
            return GoogleError(400, "Request contains an invalid argument.")
        case "authentication":
            detail = _info("API_KEY_INVALID")
            message = "API key not valid. Please pass a valid API key."
            return GoogleError(400, message, details=(detail,))
        case "no_key":
            return GoogleError(
                403,
                "Method doesn't allow unregistered callers (callers without established identity). Please"
                " use API Key or other form of API consumer identity to call this API.",
            )
        case "permission":
            return GoogleError(403, "The caller does not have permission")
        case "model_not_found":
            return GoogleError(
                404,
                f"models/{problem.model} is not found for API version {version}, or is not supported for"
                " generateContent. Call ModelService.ListModels to see the list of available models and"
                " their supported methods.",
            )
        case "overloaded":
            return GoogleError(503, "The model is overloaded. Please try again later.")
        case "error_in_200":
            return GoogleError(200, "The model is overloaded. Please try again later.", code=503)
        case "server_error":
            return GoogleError(
                500,
                "An internal error has occurred. Please retry or report in"
                " https://developers.generativeai.google/guide/troubleshooting",
            )
        case "bad_json":
            return GoogleError(400, "Invalid JSON payload received. Unexpected end of string.")
        case "unknown_url" | "wrong_method":
            return GoogleError(404, "Requested entity was not found.")


def _info(reason: str) -> dict[str, Json]:
    return {
        "@type": _RPC + "ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": {"service": "generativelanguage.googleapis.com"},
    }


def _exhausted(quota: str, problem: Problem) -> GoogleError:
    """No header tells the wait: `RetryInfo` does."""
    metric = "generativelanguage.googleapis.com/generate_content_requests"
    violation = {
        "quotaMetric": metric,
        "quotaId": quota,
        "quotaDimensions": {"location": "global", "model": problem.model},
        "quotaValue": str(max(problem.bound, 1)),
    }
    return GoogleError(
        429,
        "You exceeded your current quota, please check your plan and billing details. For more"
        " information on this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits.",
        details=(
            {"@type": _RPC + "QuotaFailure", "violations": [violation]},
            {
                "@type": _RPC + "Help",
                "links": [{"description": "Learn more about Gemini API quotas"}],
            },
            *_retry(problem),
        ),
    )


def _retry(problem: Problem) -> tuple[dict[str, Json], ...]:
    wait_s = WAIT_S if problem.wait_s is None else problem.wait_s
    shown = f"{wait_s:.3f}".rstrip("0").rstrip(".")
    return ({"@type": _RPC + "RetryInfo", "retryDelay": f"{shown}s"},)
