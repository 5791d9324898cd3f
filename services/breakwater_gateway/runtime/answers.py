"""Answers on the bus: the headers and bodies of the contract, made in one place.

Errors carry OpenAI's error object; amounts are printed from integers.
"""

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct

from breakwater_protocol import failures as f
from breakwater_protocol import headers as h

_encode = msgspec.json.encode

RETRY_AFTER_MAX_S: Final = 60
"""SDKs give up on longer waits, or sit through them; the message says the true time."""


def usd(nano: int | None) -> str:
    """Nano-USD as decimal dollars, exactly; `unknown` for a model without a price."""
    if nano is None:
        return "unknown"
    sign, nano = ("-", -nano) if nano < 0 else ("", nano)
    whole, rest = divmod(nano, 1_000_000_000)
    return f"{sign}{whole}.{rest:09d}"


class _ErrorObject(Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str


class _ErrorBody(Struct, frozen=True):
    error: _ErrorObject


def error_body(failure: f.Failure) -> bytes:
    """OpenAI's error object."""
    spec = f.spec(failure)
    param = failure.param if isinstance(failure, f.InvalidRequest) else None
    if isinstance(failure, f.UnknownModel):
        param = "model"
    message = failure.message or spec.code.replace("_", " ")
    return _encode(_ErrorBody(_ErrorObject(message, spec.type, param, spec.code)))


def error_headers(failure: f.Failure, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Of an error reply on NATS; HTTP uses all but the two service headers."""
    spec = f.spec(failure)
    line = (failure.message or spec.code).replace("\r", " ").replace("\n", " ")[:300]
    headers = {
        h.SERVICE_ERROR_CODE: str(spec.status),
        h.SERVICE_ERROR: line.encode("ascii", "replace").decode("ascii"),
        h.SHOULD_RETRY: "true" if spec.client_may_retry else "false",
    }
    wait = f.retry_after_s(failure)
    if wait is None and spec.client_may_retry and spec.status in {429, 503}:
        wait = 1.0
    if wait is not None:
        headers[h.RETRY_AFTER] = str(max(1, min(RETRY_AFTER_MAX_S, -int(-wait // 1))))
    if extra:
        headers.update(extra)
    return headers
