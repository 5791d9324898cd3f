"""What a provider refuses, before anyone has worded it, and the exception that carries the wording."""

from typing import Literal

import msgspec
from msgspec import Struct

from breakwater_gateway.simulator.script import Exceeded, Fault, FaultClass
from breakwater_gateway.simulator.turns import Json

ErrorClass = Literal[
    "rate_limited",
    "quota_exhausted",
    "request_over_limit",
    "context_length",
    "content_filter",
    "invalid_request",
    "authentication",
    "permission",
    "model_not_found",
    "overloaded",
    "server_error",
    "error_in_200",
]
"""The faults that are an error object of the provider's."""

Kind = Literal[ErrorClass, "no_key", "bad_json", "unknown_url", "wrong_method"]

ERRORS: dict[FaultClass, ErrorClass] = {
    "rate_limited": "rate_limited",
    "quota_exhausted": "quota_exhausted",
    "request_over_limit": "request_over_limit",
    "context_length": "context_length",
    "content_filter": "content_filter",
    "invalid_request": "invalid_request",
    "authentication": "authentication",
    "permission": "permission",
    "model_not_found": "model_not_found",
    "overloaded": "overloaded",
    "server_error": "server_error",
    "error_in_200": "error_in_200",
}

WAIT_S = 20.0
"""What a rate limit tells to wait when the script does not say."""


class Problem(Struct, frozen=True):
    """Why a request is refused, and what of it the wording may name."""

    kind: Kind
    model: str = ""
    key: str = ""
    method: str = ""
    path: str = ""
    limit: Literal["requests", "tokens"] = "requests"
    bound: int = 0
    used: int = 0
    requested: int = 0
    wait_s: float | None = None
    message: str | None = None
    """In place of the provider's words."""


class ApiError(Exception):
    """An error as a provider words it; each dialect has its own kind, with its own body."""

    def __init__(
        self, status: int, message: str, *, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers

    def object(self) -> Json:
        """The body as a JSON value."""
        raise NotImplementedError

    def body(self) -> bytes:
        return msgspec.json.encode(self.object())


def of_fault(fault: Fault, *, model: str, key: str) -> Problem | None:
    """The problem that a fault is; None for those that are no error object."""
    kind = ERRORS.get(fault.kind)
    if kind is None:
        return None
    bounds = {
        "rate_limited": (3, 3, 1),
        "request_over_limit": (30_000, 0, 31_538),
        # The context window that OpenAI's small models had for long.
        "context_length": (128_000, 0, 130_000),
    }
    bound, used, requested = bounds.get(kind, (0, 0, 0))
    return Problem(
        kind,
        model=model,
        key=key,
        bound=bound,
        used=used,
        requested=requested,
        wait_s=fault.retry_after_s,
        message=fault.message,
    )


def of_limit(exceeded: Exceeded, model: str) -> Problem:
    """The problem that exceeding a script's own limit is."""
    kinds: dict[str, Kind] = {
        "context": "context_length",
        "capacity": "overloaded",
        "request": "request_over_limit",
    }
    return Problem(
        kinds.get(exceeded.limit, "rate_limited"),
        model=model,
        limit="tokens" if exceeded.limit == "tokens" else "requests",
        bound=exceeded.bound,
        used=exceeded.used,
        requested=exceeded.requested,
        wait_s=exceeded.wait_s or None,
    )
