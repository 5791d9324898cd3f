"""What a caller asks for in headers, read once and bounded.

A header that is a promise is honoured or refused, never ignored: an unknown `breakwater-` header, or one
this version does not serve, is an invalid request that says so.
"""

import re
from collections.abc import Mapping
from typing import Final, Literal, cast, get_args

from msgspec import Struct

from breakwater_gateway.config.budgets import usd_text
from breakwater_gateway.config.model import RetryPolicy
from breakwater_gateway.router.ladder import read_ladder
from breakwater_gateway.router.money import Money
from breakwater_gateway.runtime.telemetry import clean_tracestate
from breakwater_protocol import failures as f
from breakwater_protocol import headers as h
from breakwater_protocol.cache import Verdict, place_of
from breakwater_protocol.commands import Priority

VALUE_MAX: Final = 512
PROPERTIES_MAX: Final = 32
TIMEOUT_MAX_S: Final = 3600.0

_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_PROPERTY: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h|d)?")
_UNIT_S: Final = {"ms": 0.001, "s": 1.0, None: 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_PREFIX: Final = "breakwater-"


CacheMode = Literal["on", "off", "refresh", "only"]
"""`refresh`: ask, and keep the new answer; `only`: a kept answer or none."""
_MODES: Final = frozenset(get_args(CacheMode))
CACHE_TTL_MAX_S: Final = 8_760 * 3_600.0
_USD: Final = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,9}))?")
_DECIMAL: Final = re.compile(r"[0-9](?:\.[0-9]{1,9})?")


class Options(Struct, frozen=True):
    request_id: str = ""
    once: bool = False
    """The id is the caller's own: the same one twice runs once."""
    user: str = ""
    org: str = ""
    feature: str = ""
    key: str = ""
    """The id of the virtual key that was shown, never the key."""
    team: str = ""
    """Only ever of a key."""
    properties: dict[str, str] = {}
    total_s: float | None = None
    first_token_s: float | None = None
    ladder: frozenset[str] | None = None
    """The kinds of rungs that may answer; None: all that the model declares."""
    priority: Priority = "interactive"
    cache: CacheMode = "on"
    cache_ttl_s: float | None = None
    cache_namespace: str = ""
    judged: tuple[str, Verdict] | None = None
    """An earlier answer's `breakwater-cache-id`, and what it was."""
    cache_threshold: float | None = None
    """Stricter than the model's; it may only be raised."""
    max_cost_nano_usd: int | None = None
    """For all calls of the request together; less than the model's own bound, if it has one."""
    traceparent: str = ""
    tracestate: str = ""
    """Of whoever sent the `traceparent`; empty without one."""


VERDICTS: Final[dict[str, Verdict]] = {v: v for v in get_args(Verdict)}
PRIORITIES: Final[dict[str, Priority]] = {p: p for p in get_args(Priority)}

_NONE: Final = Options()


def read_options(headers: Mapping[str, str]) -> Options | f.InvalidRequest:
    """`headers` in their fixed lower-case spelling; anything not ours is left alone."""
    if not headers:
        return _NONE
    found: dict[str, str] = {}
    properties: dict[str, str] = {}
    traceparent = tracestate = ""
    for name, value in headers.items():
        if name.startswith(_PREFIX) or name[: len(_PREFIX)].lower() == _PREFIX:
            if name != name.lower():
                # NATS compares the letters of a name exactly, HTTP does not: one spelling, or none.
                return _refuse(name[:80], f"must be written {name[:80].lower()}")
            if len(value) > VALUE_MAX:
                return _refuse(name, f"may have {VALUE_MAX} characters at most")
            if name.startswith(h.PROPERTY_PREFIX):
                key = name[len(h.PROPERTY_PREFIX) :]
                if not _PROPERTY.fullmatch(key):
                    return _refuse(
                        name[:80], "needs a property name of a-z, 0-9, '.', '_' and '-', 64 at most"
                    )
                properties[key] = value
            elif name in h.REQUEST_HEADERS:
                found[name] = value
            else:
                return _refuse(name[:80], "is not a header that a request can carry")
        elif name == h.TRACEPARENT and _TRACEPARENT.fullmatch(value):
            traceparent = value
        elif name == h.TRACESTATE:
            tracestate = clean_tracestate(value)
    if not found and not properties and not traceparent:
        return _NONE
    if len(properties) > PROPERTIES_MAX:
        return _refuse(h.PROPERTY_PREFIX + "*", f"may be given {PROPERTIES_MAX} times at most")
    return _check(found, properties, traceparent, tracestate if traceparent else "")


def _check(
    found: dict[str, str], properties: dict[str, str], traceparent: str, tracestate: str
) -> Options | f.InvalidRequest:
    once = h.REQUEST_ID in found
    request_id = found.get(h.REQUEST_ID) or found.get(h.ASSIGNED_ID, "")
    if (once or request_id) and not _ID.fullmatch(request_id):
        return _refuse(h.REQUEST_ID, "must have 1 to 128 characters of A-Z a-z 0-9 . _ : / + = @ -")
    times: dict[str, float] = {}
    for name in (h.TIMEOUT, h.TTFT_TIMEOUT):
        if name in found:
            seconds = read_duration(found[name])
            if seconds is None or not 0 < seconds <= TIMEOUT_MAX_S:
                return _refuse(
                    name, "must be a duration such as 250ms, 10s or 2m, one hour at most"
                )
            times[name] = seconds
    priority = PRIORITIES.get(found.get(h.PRIORITY, "interactive"))
    if priority is None:
        return _refuse(h.PRIORITY, "must be critical, interactive or batch")
    rungs = read_ladder(found[h.LADDER]) if h.LADDER in found else None
    if h.LADDER in found and rungs is None:
        return _refuse(
            h.LADDER,
            "must be off, or rungs of the model's ladder such as cache,static (also stale, simple_model"
            " and error)",
        )
    mode = found.get(h.CACHE, "on")
    if mode not in _MODES:
        return _refuse(h.CACHE, "must be on, off, refresh or only")
    namespace = found.get(h.CACHE_NAMESPACE, "")
    if h.CACHE_NAMESPACE in found and not _ID.fullmatch(namespace):
        return _refuse(
            h.CACHE_NAMESPACE, "must have 1 to 128 characters of A-Z a-z 0-9 . _ : / + = @ -"
        )
    ttl_s = read_duration(found[h.CACHE_TTL]) if h.CACHE_TTL in found else None
    if h.CACHE_TTL in found and (ttl_s is None or not 0 < ttl_s <= CACHE_TTL_MAX_S):
        return _refuse(h.CACHE_TTL, "must be a duration such as 30s, 10m or 7d, 365d at most")
    judged = read_verdict(found[h.CACHE_FEEDBACK]) if h.CACHE_FEEDBACK in found else None
    if h.CACHE_FEEDBACK in found and judged is None:
        return _refuse(
            h.CACHE_FEEDBACK,
            "must be the breakwater-cache-id of an earlier answer and =wrong, =stale or =good",
        )
    if judged is not None and judged[1] != "good":
        if mode == "only":
            return _refuse(h.CACHE_FEEDBACK, f"asks for a new answer, and {h.CACHE}: only for none")
        mode = "refresh" if mode == "on" else mode
    threshold = found.get(h.CACHE_THRESHOLD, "")
    if h.CACHE_THRESHOLD in found and not (
        _DECIMAL.fullmatch(threshold) and 0 <= float(threshold) <= 1
    ):
        return _refuse(h.CACHE_THRESHOLD, "must be a number from 0 to 1 such as 0.97")
    max_cost = read_usd(found[h.MAX_COST]) if h.MAX_COST in found else None
    if h.MAX_COST in found and max_cost is None:
        return _refuse(
            h.MAX_COST, "must be an amount of USD such as 0.05, in digits, to the nano-USD at most"
        )
    return Options(
        request_id=request_id,
        once=once,
        user=found.get(h.USER, ""),
        org=found.get(h.ORG, ""),
        feature=found.get(h.FEATURE, ""),
        properties=properties,
        total_s=times.get(h.TIMEOUT),
        first_token_s=times.get(h.TTFT_TIMEOUT),
        ladder=rungs,
        priority=priority,
        cache=cast("CacheMode", mode),
        cache_ttl_s=ttl_s,
        cache_namespace=namespace,
        judged=judged,
        cache_threshold=float(threshold) if threshold else None,
        max_cost_nano_usd=max_cost,
        traceparent=traceparent,
        tracestate=tracestate,
    )


def read_verdict(text: str) -> tuple[str, Verdict] | None:
    """`<id>=<verdict>`: of which answer that was given again, and what it was."""
    id_, _, word = text.partition("=")
    verdict = VERDICTS.get(word.strip())
    return None if verdict is None or place_of(id_.strip()) is None else (id_.strip(), verdict)


def read_duration(text: str) -> float | None:
    """Seconds of `250ms`, `10s`, `1.5m`, `1h`, or a bare number of seconds; None for anything else."""
    match = _DURATION.fullmatch(text)
    return None if match is None else float(match[1]) * _UNIT_S[match[2]]


def read_usd(text: str) -> int | None:
    """Whole nano-USD of `0.05`; None for anything but digits and a point, or finer amounts."""
    match = _USD.fullmatch(text)
    return None if match is None else int(match[1]) * 10**9 + int((match[2] or "").ljust(9, "0"))


def money_of(policy: RetryPolicy, options: Options) -> Money | f.InvalidRequest | None:
    """What the request may cost in all: as the model says, or less if the caller wants less; None: no bound."""
    asked, configured = options.max_cost_nano_usd, policy.max_cost_nano_usd
    if asked is None:
        return None if configured is None else Money(configured)
    if configured is not None and asked > configured:
        return _refuse(
            h.MAX_COST,
            f"may only lower this model's bound of {usd_text(configured)} USD, not raise it",
        )
    return Money(asked)


def _refuse(name: str, why: str) -> f.InvalidRequest:
    return f.InvalidRequest(f"the header {name} {why}", param=name)
