"""Bedrock's errors: a body of only a message, and the exception's name in a header or in a frame.

Source: Amazon Bedrock API reference, "Converse" and "ConverseStream" (Errors), "Common errors"; user guide,
"Troubleshooting Amazon Bedrock API error codes"; recorded bodies.
"""

from typing import Final

from breakwater_gateway.simulator.refusals import ApiError, Problem
from breakwater_gateway.simulator.turns import Json

ERROR_TYPE: Final = "x-amzn-errortype"

_SERVICE: Final = "http://internal.amazon.com/coral/com.amazon.bedrock/"
_FRONT: Final = "http://internal.amazon.com/coral/com.amazon.coral.service/"

_STATUS: Final = {
    "ValidationException": 400,
    "SerializationException": 400,
    "AccessDeniedException": 403,
    "ExpiredTokenException": 403,
    "IncompleteSignatureException": 403,
    "InvalidSignatureException": 403,
    "MissingAuthenticationTokenException": 403,
    "UnrecognizedClientException": 403,
    "UnknownOperationException": 404,
    "RequestEntityTooLargeException": 413,
    "ThrottlingException": 429,
    "InternalServerException": 500,
    "ServiceUnavailableException": 503,
}
_OF_FRONT: Final = frozenset(
    {
        "SerializationException",
        "IncompleteSignatureException",
        "InvalidSignatureException",
        "MissingAuthenticationTokenException",
        "UnrecognizedClientException",
        "UnknownOperationException",
        "RequestEntityTooLargeException",
    }
)
"""Raised by the framework before the service itself is asked."""


class BedrockError(ApiError):
    """`name` is the exception's. The status follows from it, but inside a 200."""

    def __init__(self, name: str, message: str, *, status: int | None = None) -> None:
        namespace = _FRONT if name in _OF_FRONT else _SERVICE
        super().__init__(
            _STATUS[name] if status is None else status,
            message,
            headers=((ERROR_TYPE, f"{name}:{namespace}"),),
        )
        self.name = name

    def object(self) -> Json:
        if self.name == "UnknownOperationException":
            return {
                "Output": {"__type": "com.amazon.coral.service#UnknownOperationException"},
                "Version": "1.0",
            }
        return {"message": self.message}


def invalid(message: str) -> BedrockError:
    return BedrockError("ValidationException", message)


def of_model(message: str) -> BedrockError:
    """An error of the model behind the API, passed on."""
    return invalid(f"The model returned the following errors: {message}")


def constraint(where: str, rule: str) -> BedrockError:
    """What the framework says of a value outside its model's bounds."""
    return invalid(
        f"1 validation error detected: Value at '{where}' failed to satisfy constraint: Member must {rule}"
    )


def word(problem: Problem) -> BedrockError:
    error = _word(problem)
    if problem.message is not None:
        error.message = problem.message
    return error


def _word(problem: Problem) -> BedrockError:
    match problem.kind:
        case "rate_limited":
            unit = "requests" if problem.limit == "requests" else "tokens"
            return BedrockError(
                "ThrottlingException", f"Too many {unit}, please wait before trying again."
            )
        case "quota_exhausted":
            return BedrockError(
                "ThrottlingException", "Too many tokens per day, please wait before trying again."
            )
        case "request_over_limit":
            return BedrockError(
                "RequestEntityTooLargeException", "The request body is larger than is allowed."
            )
        case "context_length":
            return _too_long(problem)
        case "content_filter":
            # Prompts are refused in answers; this is how Claude refuses to go on.
            return of_model("Output blocked by content filtering policy")
        case "invalid_request":
            return of_model(
                "Malformed input request: #: required key [messages] not found, please reformat your"
                " input and try again."
            )
        case "authentication":
            return BedrockError(
                "UnrecognizedClientException",
                "The security token included in the request is invalid.",
            )
        case "no_key":
            return BedrockError(
                "MissingAuthenticationTokenException", "Missing Authentication Token"
            )
        case "permission":
            return BedrockError(
                "AccessDeniedException",
                "You don't have access to the model with the specified model ID.",
            )
        case "model_not_found":
            return invalid("The provided model identifier is invalid.")
        case "overloaded":
            return _unavailable()
        case "error_in_200":
            return _unavailable(status=200)
        case "server_error":
            return BedrockError(
                "InternalServerException",
                "The system encountered an unexpected error during processing. Try your request again.",
            )
        case "bad_json":
            return BedrockError(
                "SerializationException",
                "The request body is not the JSON object that is expected.",
            )
        case "unknown_url" | "wrong_method":
            return BedrockError("UnknownOperationException", "Unknown operation.")


def _unavailable(status: int | None = None) -> BedrockError:
    return BedrockError(
        "ServiceUnavailableException", "Bedrock is unable to process your request.", status=status
    )


def _too_long(problem: Problem) -> BedrockError:
    """Each family has a sentence of its own."""
    model = problem.model.lower()
    if "nova" in model:
        return of_model(
            "Input Tokens Exceeded: Number of input tokens exceeds maximum length. Please update the"
            " input to try again."
        )
    if "anthropic" in model:
        return of_model(f"prompt is too long: {problem.requested} tokens > {problem.bound} maximum")
    return invalid("Input is too long for requested model.")
