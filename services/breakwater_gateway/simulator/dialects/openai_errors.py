"""OpenAI's error objects, as its service words them."""

from breakwater_gateway.simulator.dialects.dialect import go_duration
from breakwater_gateway.simulator.refusals import WAIT_S, ApiError, Problem
from breakwater_gateway.simulator.turns import Json

_RESOURCE: str = "https://platform.openai.com/account/"


class OpenAIError(ApiError):
    def __init__(
        self,
        status: int,
        message: str,
        *,
        type_: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(status, message, headers=headers)
        self.type = type_
        self.param = param
        self.code = code

    def object(self) -> Json:
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


def word(problem: Problem) -> OpenAIError:
    """How the service words a problem."""
    error = _word(problem)
    if problem.message is not None:
        error.message = problem.message
    return error


def _word(problem: Problem) -> OpenAIError:
    model = problem.model
    match problem.kind:
        case "rate_limited":
            return _rate_limited(problem)
        case "quota_exhausted":
            return OpenAIError(
                429,
                "You exceeded your current quota, please check your plan and billing details. For more"
                " information on this error, read the docs:"
                " https://platform.openai.com/docs/guides/error-codes/api-errors.",
                type_="insufficient_quota",
                code="insufficient_quota",
            )
        case "request_over_limit":
            return OpenAIError(
                429,
                f"Request too large for {model} in organization org-simulator on tokens per min (TPM):"
                f" Limit {problem.bound}, Requested {problem.requested}. The input or output tokens must"
                f" be reduced in order to run successfully. Visit {_RESOURCE}rate-limits to learn more.",
                type_="tokens",
                code="rate_limit_exceeded",
            )
        case "context_length":
            return OpenAIError(
                400,
                f"This model's maximum context length is {problem.bound} tokens. However, your messages"
                f" resulted in {problem.requested} tokens. Please reduce the length of the messages.",
                param="messages",
                code="context_length_exceeded",
            )
        case "content_filter":
            return OpenAIError(
                400,
                "Your request was rejected as a result of our safety system. Your prompt may contain"
                " text that is not allowed by our safety system.",
                code="content_policy_violation",
            )
        case "invalid_request":
            return OpenAIError(
                400,
                "Invalid value: 'simulated'. The simulator was told to refuse this request.",
                param="messages",
                code="invalid_value",
            )
        case "authentication":
            return wrong_key(problem.key)
        case "no_key":
            return OpenAIError(
                401,
                "You didn't provide an API key. You need to provide your API key in an Authorization"
                " header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY). You can obtain an API"
                f" key from {_RESOURCE}api-keys.",
            )
        case "permission":
            return OpenAIError(
                403,
                f"Project `proj_simulator` does not have access to model `{model}`",
                code="model_not_found",
            )
        case "model_not_found":
            return OpenAIError(
                404,
                f"The model `{model}` does not exist or you do not have access to it.",
                code="model_not_found",
            )
        case "overloaded":
            return OpenAIError(
                503,
                "The engine is currently overloaded, please try again later",
                type_="server_error",
                code="engine_overloaded",
            )
        case "server_error" | "error_in_200":
            return OpenAIError(
                200 if problem.kind == "error_in_200" else 500,
                "The server had an error while processing your request. Sorry about that!",
                type_="server_error",
            )
        case "bad_json":
            return OpenAIError(
                400,
                "We could not parse the JSON body of your request. (HINT: This likely means you aren't"
                " using your HTTP library correctly. The OpenAI API expects a JSON payload, but what was"
                " sent was not valid JSON. If you have trouble figuring out how to fix this, please"
                " contact us through our help center at help.openai.com.)",
            )
        case "unknown_url":
            return OpenAIError(404, f"Invalid URL ({problem.method} {problem.path})")
        case "wrong_method":
            return OpenAIError(
                405,
                f"Not allowed to {problem.method} on {problem.path}. (HINT: Perhaps you meant to use a"
                " different HTTP method?)",
                code="method_not_supported",
            )


def wrong_key(key: str) -> OpenAIError:
    return OpenAIError(
        401,
        f"Incorrect API key provided: {hidden(key)}. You can find your API key at {_RESOURCE}api-keys.",
        code="invalid_api_key",
    )


def hidden(key: str) -> str:
    """A key as services quote it."""
    return f"{key[:8]}{'*' * 8}{key[-4:]}" if len(key) > 16 else "*" * len(key)


def _rate_limited(problem: Problem) -> OpenAIError:
    unit = "RPM" if problem.limit == "requests" else "TPM"
    wait_s = WAIT_S if problem.wait_s is None else problem.wait_s
    return OpenAIError(
        429,
        f"Rate limit reached for {problem.model} in organization org-simulator on {problem.limit} per"
        f" min ({unit}): Limit {problem.bound}, Used {problem.used}, Requested {problem.requested}."
        f" Please try again in {go_duration(wait_s)}. Visit {_RESOURCE}rate-limits to learn more.",
        type_=problem.limit,
        code="rate_limit_exceeded",
    )
