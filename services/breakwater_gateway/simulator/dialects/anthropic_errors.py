"""Anthropic's error objects, as its service words them.

Source: Anthropic API documentation, "Errors"; recorded bodies.
"""

from typing import Final

from breakwater_gateway.simulator.refusals import ApiError, Problem
from breakwater_gateway.simulator.turns import Json

_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}


class AnthropicError(ApiError):
    """`type` follows from the status, but inside a 200."""

    def __init__(self, status: int, message: str, *, type_: str = "") -> None:
        retriable = status in {408, 409, 429} or status >= 500
        should = (("x-should-retry", "true" if retriable else "false"),) if status != 200 else ()
        super().__init__(status, message, headers=should)
        self.type = type_ or _TYPES[status]

    def object(self) -> Json:
        return {
            "type": "error",
            "error": {"type": self.type, "message": self.message},
            "request_id": "req_simulator",
        }


def word(problem: Problem) -> AnthropicError:
    error = _word(problem)
    if problem.message is not None:
        error.message = problem.message
    return error


def _word(problem: Problem) -> AnthropicError:
    match problem.kind:
        case "rate_limited":
            unit = "requests" if problem.limit == "requests" else "input tokens"
            return AnthropicError(
                429,
                f"This request would exceed your organization's rate limit of {problem.bound} {unit} per"
                " minute. For details, refer to: https://docs.claude.com/en/api/rate-limits.",
            )
        case "quota_exhausted":
            return AnthropicError(
                400,
                "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing"
                " to upgrade or purchase credits.",
            )
        case "request_over_limit":
            return AnthropicError(413, "Request exceeds the maximum size")
        case "context_length":
            return AnthropicError(
                400, f"prompt is too long: {problem.requested} tokens > {problem.bound} maximum"
            )
        case "content_filter":
            return AnthropicError(400, "Output blocked by content filtering policy")
        case "invalid_request":
            return AnthropicError(400, "messages.0: Input does not match the expected shape.")
        case "authentication":
            return AnthropicError(401, "invalid x-api-key")
        case "no_key":
            return AnthropicError(401, "x-api-key header is required")
        case "permission":
            return AnthropicError(
                403, "Your API key does not have permission to use the specified resource."
            )
        case "model_not_found":
            return AnthropicError(404, f"model: {problem.model}")
        case "overloaded":
            return AnthropicError(529, "Overloaded")
        case "error_in_200":
            return AnthropicError(200, "Overloaded", type_="overloaded_error")
        case "server_error":
            return AnthropicError(500, "Internal server error")
        case "bad_json":
            return AnthropicError(400, "The request body is not valid JSON: expected value")
        case "unknown_url":
            return AnthropicError(404, "Not Found")
        case "wrong_method":
            return AnthropicError(405, "Method Not Allowed")
