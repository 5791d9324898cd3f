"""The last step of every dialect's `classify`: from the kind of failure to the failure itself.

One place for one rule: what a provider says of our key is never passed on, since it may quote the key.
"""

from breakwater_gateway.worker.wire.context_length import figures
from breakwater_protocol import failures as f


def failure_of(
    kind: type[f.Failure],
    message: str,
    status: int,
    code: str,
    *,
    wait: float | None = None,
    param: str | None = None,
) -> f.Failure:
    """`message` and `code` are bounded by the caller. `wait` in seconds and `param` are for the kinds that
    have them, and ignored for the others."""
    if kind is f.KeyRejected:
        return f.KeyRejected("the provider refused the gateway's key", status, code)
    if kind is f.KeyForbidden:
        return f.KeyForbidden("the provider forbids this call to the gateway's key", status, code)
    if kind is f.InvalidRequest:
        return f.InvalidRequest(message, status, code, param)
    if kind is f.RateLimited:
        return f.RateLimited(message, status, code, wait)
    if kind is f.QuotaExhausted:
        return f.QuotaExhausted(message, status, code, wait)
    if kind is f.Overloaded:
        return f.Overloaded(message, status, code, wait)
    if kind is f.ServerError:
        return f.ServerError(message, status, code, wait)
    if kind is f.ContextLength:
        needed, limit = figures(message)
        return f.ContextLength(message, status, code, needed, limit)
    return kind(message, status, code)
