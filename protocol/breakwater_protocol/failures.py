"""The failure taxonomy: a closed union, one tagged struct a kind.

A failure is classified once, where it was seen (a provider's wire file, a timer, the router), and is
a value from then on: nobody above reads status codes or message text again. `SPEC` says of each kind
how a caller sees it (the contract's error table) and whose fault it was.
"""

from typing import Final, Literal, NamedTuple

from msgspec import Struct

Code = Literal[
    "invalid_request",
    "context_length_exceeded",
    "content_filter",
    "authentication",
    "permission",
    "model_not_found",
    "payload_too_large",
    "rate_limited",
    "budget_contended",
    "budget_exhausted",
    "max_cost_exceeded",
    "malformed_tool_call",
    "bad_gateway",
    "overloaded",
    "no_deployment_available",
    "timeout",
    "not_cached",
]


class _Failure(Struct, frozen=True, omit_defaults=True, tag_field="kind"):
    """`message` is safe to show to a caller: it holds no secret and no prompt."""

    message: str = ""
    provider_status: int | None = None
    """HTTP status of the provider, when one answered."""
    provider_code: str = ""
    """The provider's own machine code, as it came."""


class _Wait(_Failure, frozen=True, omit_defaults=True):
    retry_after_s: float | None = None
    """Seconds the refusing side asked to wait; None when it did not say."""


class RateLimited(_Wait, frozen=True, omit_defaults=True, tag="rate_limited"):
    """The provider throttles this key or deployment for a while."""


class QuotaExhausted(_Wait, frozen=True, omit_defaults=True, tag="quota_exhausted"):
    """Credit or a long-period quota of this key is used up: waiting within a request is useless."""


class RequestOverLimit(_Failure, frozen=True, omit_defaults=True, tag="request_over_limit"):
    """The single request is larger than the whole rate limit: never succeeds as it is on this target."""


class ContextLength(_Failure, frozen=True, omit_defaults=True, tag="context_length"):
    """The prompt does not fit the model's context window; both figures in tokens, None when not told."""

    needed: int | None = None
    """What the request would have taken."""
    limit: int | None = None
    """What there is."""


class ContentFiltered(_Failure, frozen=True, omit_defaults=True, tag="content_filter"):
    """The provider's safety system refused the prompt or the answer."""


class InvalidRequest(_Failure, frozen=True, omit_defaults=True, tag="invalid_request"):
    """The request is wrong in itself; `param` names the field."""

    param: str | None = None


class PayloadTooLarge(_Failure, frozen=True, omit_defaults=True, tag="payload_too_large"):
    """The body exceeds a size limit."""


class CallerUnauthenticated(
    _Failure, frozen=True, omit_defaults=True, tag="caller_unauthenticated"
):
    """The caller's own gateway key is missing or wrong."""


class CallerForbidden(_Failure, frozen=True, omit_defaults=True, tag="caller_forbidden"):
    """The caller's key does not reach this."""


class KeyRejected(_Failure, frozen=True, omit_defaults=True, tag="key_rejected"):
    """A provider refused our key (401)."""


class KeyForbidden(_Failure, frozen=True, omit_defaults=True, tag="key_forbidden"):
    """A provider knows our key and forbids the call (403)."""


class UnknownModel(_Failure, frozen=True, omit_defaults=True, tag="unknown_model"):
    """The caller named a logical model that is not configured."""


class ModelNotFound(_Failure, frozen=True, omit_defaults=True, tag="model_not_found"):
    """The provider does not know the deployment's model."""


class Overloaded(_Wait, frozen=True, omit_defaults=True, tag="overloaded"):
    """The provider says that it is over capacity (503, 529)."""


class ServerError(_Wait, frozen=True, omit_defaults=True, tag="server_error"):
    """The provider failed (500, 502, 504 and the like)."""


class ConnectFailed(_Failure, frozen=True, omit_defaults=True, tag="connect_failed"):
    """No connection to the provider: DNS, TCP or TLS."""


class FirstTokenTimeout(_Failure, frozen=True, omit_defaults=True, tag="first_token_timeout"):
    """Nothing of the answer arrived in time."""


class IdleTimeout(_Failure, frozen=True, omit_defaults=True, tag="idle_timeout"):
    """The answer stopped arriving."""


class SlowStream(_Failure, frozen=True, omit_defaults=True, tag="slow_stream"):
    """The answer arrived more slowly than its model's configuration bears."""


class TotalTimeout(_Failure, frozen=True, omit_defaults=True, tag="total_timeout"):
    """The deadline of the whole request passed."""


class StreamCut(_Failure, frozen=True, omit_defaults=True, tag="stream_cut"):
    """The provider's answer ended before its finish."""


class MalformedAnswer(_Failure, frozen=True, omit_defaults=True, tag="malformed_answer"):
    """The provider's answer is not what its API promises: HTML, half JSON, no choices."""


class MalformedToolCall(_Failure, frozen=True, omit_defaults=True, tag="malformed_tool_call"):
    """The model wrote tool arguments that do not parse. What it wrote is content: it goes into no event."""

    tool: str = ""
    fault: str = ""
    """What the parser says."""
    written: str = ""
    """The arguments, bounded."""


class BudgetExhausted(_Wait, frozen=True, omit_defaults=True, tag="budget_exhausted"):
    """A hard limit is reached until the period resets."""


class BudgetContended(_Wait, frozen=True, omit_defaults=True, tag="budget_contended"):
    """The rest of a budget is held by calls in flight."""


class TooDear(_Failure, frozen=True, omit_defaults=True, tag="too_dear"):
    """Whatever could be called may cost more than this one request may."""


class WorkerBusy(_Wait, frozen=True, omit_defaults=True, tag="worker_busy"):
    """The chosen worker is at capacity."""

    full: bool = False
    """What waits there for a place is as much as can be served in time: asking again at once is useless."""
    crowded: bool = False
    """It has as much work as it takes; another worker may have room."""


class WorkerLost(_Failure, frozen=True, omit_defaults=True, tag="worker_lost"):
    """The worker died or went silent with the attempt in its hands."""


class NoDeployment(_Wait, frozen=True, omit_defaults=True, tag="no_deployment"):
    """Nothing is left to try: every deployment is open, throttled or without a worker."""


class Cancelled(_Failure, frozen=True, omit_defaults=True, tag="cancelled"):
    """The caller went away. Neither success nor failure of anybody."""


class NotCached(_Failure, frozen=True, omit_defaults=True, tag="not_cached"):
    """The caller wanted a kept answer or none, and there is none (HTTP's `only-if-cached`)."""


class Internal(_Failure, frozen=True, omit_defaults=True, tag="internal"):
    """A defect of ours."""


Failure = (
    RateLimited
    | QuotaExhausted
    | RequestOverLimit
    | ContextLength
    | ContentFiltered
    | InvalidRequest
    | PayloadTooLarge
    | CallerUnauthenticated
    | CallerForbidden
    | KeyRejected
    | KeyForbidden
    | UnknownModel
    | ModelNotFound
    | Overloaded
    | ServerError
    | ConnectFailed
    | FirstTokenTimeout
    | IdleTimeout
    | SlowStream
    | TotalTimeout
    | StreamCut
    | MalformedAnswer
    | MalformedToolCall
    | BudgetExhausted
    | BudgetContended
    | TooDear
    | WorkerBusy
    | WorkerLost
    | NoDeployment
    | Cancelled
    | NotCached
    | Internal
)


class Spec(NamedTuple):
    """How the caller sees a kind of failure, and what it says about the target that was called."""

    code: Code
    status: int
    type: str
    """OpenAI's coarse `error.type`."""
    client_may_retry: bool
    """The truth for `x-should-retry`: the same request later may do better."""
    against_target: bool
    """Counts as a failure of the target in its breaker."""


def _spec(
    code: Code, status: int, type_: str, *, retry: bool = False, against: bool = False
) -> Spec:
    return Spec(code, status, type_, retry, against)


SPEC: Final[dict[type[Failure], Spec]] = {
    RateLimited: _spec("rate_limited", 429, "rate_limit_error", retry=True),
    QuotaExhausted: _spec("rate_limited", 429, "insufficient_quota"),
    RequestOverLimit: _spec("rate_limited", 429, "rate_limit_error"),
    ContextLength: _spec("context_length_exceeded", 400, "invalid_request_error"),
    ContentFiltered: _spec("content_filter", 400, "invalid_request_error"),
    InvalidRequest: _spec("invalid_request", 400, "invalid_request_error"),
    PayloadTooLarge: _spec("payload_too_large", 413, "invalid_request_error"),
    CallerUnauthenticated: _spec("authentication", 401, "authentication_error"),
    CallerForbidden: _spec("permission", 403, "permission_error"),
    # A caller can do nothing about our provider keys, so it must not read 401 as its own.
    KeyRejected: _spec("bad_gateway", 502, "server_error"),
    KeyForbidden: _spec("bad_gateway", 502, "server_error"),
    UnknownModel: _spec("model_not_found", 404, "invalid_request_error"),
    ModelNotFound: _spec("model_not_found", 404, "invalid_request_error"),
    Overloaded: _spec("overloaded", 503, "server_error", retry=True, against=True),
    ServerError: _spec("bad_gateway", 502, "server_error", retry=True, against=True),
    ConnectFailed: _spec("bad_gateway", 502, "server_error", retry=True, against=True),
    FirstTokenTimeout: _spec("timeout", 504, "timeout_error", retry=True, against=True),
    IdleTimeout: _spec("timeout", 504, "timeout_error", retry=True, against=True),
    SlowStream: _spec("timeout", 504, "timeout_error", retry=True, against=True),
    TotalTimeout: _spec("timeout", 504, "timeout_error"),
    StreamCut: _spec("bad_gateway", 502, "server_error", retry=True, against=True),
    MalformedAnswer: _spec("bad_gateway", 502, "server_error", retry=True, against=True),
    MalformedToolCall: _spec("malformed_tool_call", 502, "server_error", retry=True),
    BudgetExhausted: _spec("budget_exhausted", 429, "insufficient_quota"),
    BudgetContended: _spec("budget_contended", 429, "rate_limit_error", retry=True),
    # As with a context window: smaller, or with a larger bound, the request may pass; waiting does not help.
    TooDear: _spec("max_cost_exceeded", 400, "invalid_request_error"),
    WorkerBusy: _spec("overloaded", 503, "server_error", retry=True),
    WorkerLost: _spec("bad_gateway", 502, "server_error", retry=True),
    NoDeployment: _spec("no_deployment_available", 503, "server_error", retry=True),
    Cancelled: _spec("timeout", 504, "timeout_error"),
    NotCached: _spec("not_cached", 504, "invalid_request_error"),
    Internal: _spec("bad_gateway", 502, "server_error"),
}


def spec(failure: Failure) -> Spec:
    return SPEC[type(failure)]


def kind(failure: Failure) -> str:
    """The tag on the wire, in events and in metrics: `rate_limited`, `first_token_timeout`, …"""
    tag = type(failure).__struct_config__.tag
    assert isinstance(tag, str)  # noqa: S101 - every member of the union is tagged above
    return tag


def retry_after_s(failure: Failure) -> float | None:
    """The wait that the failure asks for, or None."""
    return failure.retry_after_s if isinstance(failure, _Wait) else None
