"""Bedrock's errors: a message in the body, the exception's name in a header or in a frame.

Source: Amazon Bedrock API reference, "Converse" and "ConverseStream" (Errors); recorded headers.
"""

from typing import Final

from breakwater_gateway.simulator.refusals import ApiError, Problem
from breakwater_gateway.simulator.turns import Json

_NAMESPACE: Final = "http://internal.amazon.com/coral/com.amazon.bedrock/"
_COMMON: Final = "http://internal.amazon.com/coral/com.amazon.coral.service/"


class BedrockError(ApiError):
    def __init__(self, status: int, name: str, message: str) -> None:
        namespace = _COMMON if status == 403 else _NAMESPACE
        super().__init__(status, message, headers=(("x-amzn-errortype", f"{name}:{namespace}"),))
        self.name = name

    def object(self) -> Json:
        return {"message": self.message}


def validation(message: str) -> BedrockError:
    return BedrockError(400, "ValidationException", message)


def word(problem: Problem) -> BedrockError:
    error = _word(problem)
    if problem.message is not None:
        error.message = problem.message
    return error


def _word(problem: Problem) -> BedrockError:
    match problem.kind:
        case "rate_limited":
            text = (
                "Too many requests, please wait before trying again."
                if problem.limit == "requests"
                else "Too many tokens, please wait before trying again."
            )
            return BedrockError(429, "ThrottlingException", text)
        case "quota_exhausted":
            return BedrockError(
                429,
                "ThrottlingException",
                "Too many tokens per day, please wait before trying again.",
            )
        case "request_over_limit":
            return BedrockError(
                413, "RequestEntityTooLargeException", "The request body is too large."
            )
        case "context_length":
            return validation(
                "The model returned the following errors: Input Tokens Exceeded: Number of input tokens"
                " exceeds maximum length. Please update the input to try again."
            )
        case "content_filter":
            return validation("Output blocked by content filtering policy")
        case "invalid_request":
            return validation(
                "The model returned the following errors: Malformed input request, please reformat your input"
                " and try again."
            )
        case "authentication":
            return BedrockError(
                403,
                "UnrecognizedClientException",
                "The security token included in the request is invalid.",
            )
        case "no_key":
            return BedrockError(
                403, "MissingAuthenticationTokenException", "Missing Authentication Token"
            )
        case "permission":
            return BedrockError(
                403,
                "AccessDeniedException",
                "You don't have access to the model with the specified model ID.",
            )
        case "model_not_found":
            return validation("The provided model identifier is invalid.")
        case "overloaded":
            return BedrockError(
                503,
                "ServiceUnavailableException",
                "The system is unable to process your request, please try again later.",
            )
        case "server_error" | "error_in_200":
            return BedrockError(
                500 if problem.kind == "server_error" else 200,
                "InternalServerException",
                "The system encountered an unexpected error during processing. Try your request again.",
            )
        case "bad_json":
            return BedrockError(
                400, "SerializationException", "Unexpected end of the request's JSON."
            )
        case "unknown_url" | "wrong_method":
            return BedrockError(404, "UnknownOperationException", "")
