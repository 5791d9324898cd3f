"""Error answers: what a status leaves open, and the labelled errors.

Statuses mean several things at several hosts, so each has the kinds of failure that it may be; where it is
one kind, the dialect must say that one.
"""

from collections import Counter
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Raw, Struct
from ops.fidelity.finding import Findings, wrong
from ops.fidelity.rows import Row

from breakwater_protocol import failures as f

NOW: Final = 1_741_300_000.0
"""Unix seconds at which errors are classified: hints that are dates are relative to it."""

Classify = Callable[..., f.Failure]

_REFUSED: Final = (
    *(f.InvalidRequest, f.ContextLength, f.ContentFiltered, f.ModelNotFound, f.PayloadTooLarge),
    *(f.KeyRejected, f.KeyForbidden, f.QuotaExhausted, f.MalformedToolCall, f.RequestOverLimit),
)
MAY_BE: Final[dict[int, tuple[type[f.Failure], ...]]] = {
    400: _REFUSED,
    401: (f.KeyRejected,),
    402: (f.QuotaExhausted,),
    403: (f.KeyForbidden, f.KeyRejected, f.ContentFiltered, f.QuotaExhausted, f.ModelNotFound),
    404: (f.ModelNotFound, f.InvalidRequest),
    405: (f.InvalidRequest,),
    413: (f.PayloadTooLarge, f.RequestOverLimit, f.ContextLength),
    422: _REFUSED,
    424: (*_REFUSED, f.ServerError, f.Overloaded),
    429: (f.RateLimited, f.QuotaExhausted, f.RequestOverLimit, f.Overloaded),
    503: (f.Overloaded, f.ServerError, f.ModelNotFound),
    529: (f.Overloaded,),
}
_CLIENT: Final = (*_REFUSED, f.RateLimited, f.Overloaded, f.ServerError)
_SERVER: Final = (f.ServerError, f.Overloaded, f.MalformedToolCall, f.InvalidRequest)


def refused(row: Row, classify: Classify) -> Findings:
    """An error answer is a typed failure that agrees with its status, with a finite hint and no key in it."""
    failure = classify(row.status, row.headers, row.body, now=NOW)
    expected = MAY_BE.get(row.status, _CLIENT if row.status < 500 else _SERVER)
    if not isinstance(failure, expected):
        yield wrong(f"error: {row.status} is {type(failure).__name__}", failure)
    yield from well_formed(failure, row.status)
    for name in ("authorization", "x-api-key", "api-key", "x-goog-api-key"):
        key = row.request_headers.get(name, "").removeprefix("Bearer ")
        if len(key) > 8 and key in failure.message:
            yield wrong("error: the message holds the key")


def well_formed(failure: f.Failure, status: int) -> Findings:
    wait = f.retry_after_s(failure)
    if wait is not None and not (isfinite(wait) and wait >= 0):
        yield wrong("error: the retry hint is not finite", wait)
    if failure.provider_status != status:
        yield wrong("error: the provider's status is lost", failure.provider_status)


# ---- labelled errors

LABELS: Final[dict[str, type[f.Failure]]] = {
    "auth": f.KeyRejected,
    "content_filter": f.ContentFiltered,
    "context_length": f.ContextLength,
    "invalid_request": f.InvalidRequest,
    "malformed_tool_call": f.MalformedToolCall,
    "model_not_found": f.ModelNotFound,
    "overloaded": f.Overloaded,
    "permission": f.KeyForbidden,
    "quota_exhausted": f.QuotaExhausted,
    "quota_window_long": f.QuotaExhausted,
    "rate_limit": f.RateLimited,
    "request_too_large_for_limit": f.RequestOverLimit,
    "server_error": f.ServerError,
}


class Labelled(Struct, frozen=True):
    """`{provider, status, label, headers, body}`; a body that is text is what was on the wire."""

    provider: str
    status: int
    label: str
    headers: dict[str, str] = {}
    body: Raw = Raw(b"null")
    ref: str = ""

    @property
    def wire(self) -> bytes:
        body = bytes(self.body)
        if body[:1] == b'"':
            return msgspec.json.decode(body, type=str).encode()
        return b"" if body == b"null" else body


class Verdict(Struct, frozen=True):
    label: str
    provider: str
    got: str
    right: bool
    ref: str


class Verdicts(Struct):
    all: list[Verdict]

    @property
    def right(self) -> int:
        return sum(verdict.right for verdict in self.all)

    def table(self) -> dict[str, Counter[str]]:
        """Label -> what it was classified as, and how often."""
        table: dict[str, Counter[str]] = {}
        for verdict in self.all:
            table.setdefault(verdict.label, Counter())[verdict.got] += 1
        return dict(sorted(table.items()))


_labelled: Final = msgspec.json.Decoder(Labelled).decode


def judge(path: Path, classify_of: Callable[[str], Classify]) -> Verdicts:
    """Every labelled error against the dialect of its provider. Raises `msgspec.MsgspecError`."""
    lines = path.read_bytes().splitlines()
    return Verdicts([_judged(_labelled(line), classify_of) for line in lines if line.strip()])


def _judged(item: Labelled, classify_of: Callable[[str], Classify]) -> Verdict:
    headers = {name.lower(): value for name, value in item.headers.items()}
    failure = classify_of(item.provider)(item.status, headers, item.wire, now=NOW)
    wanted = LABELS.get(item.label)
    return Verdict(
        label=item.label,
        provider=item.provider,
        got=type(failure).__name__,
        right=type(failure) is wanted and not [*well_formed(failure, item.status)],
        ref=item.ref,
    )
