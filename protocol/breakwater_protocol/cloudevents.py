"""CloudEvents headers of events, in binary mode: https://github.com/cloudevents/spec, version 1.0.2.

The event's JSON is the message's payload; these headers say what it is. `Nats-Msg-Id` equals `ce-id`,
so that a stream drops what is published twice.
"""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from msgspec import Struct

from breakwater_protocol import headers as h
from breakwater_protocol.events import (
    Alert,
    AttemptFinished,
    BreakerChanged,
    BudgetChanged,
    CacheChanged,
    ConfigChanged,
    RequestFinished,
)

SPECVERSION: Final = "1.0"

TYPES: Final[dict[type[Struct], str]] = {
    BreakerChanged: "breakwater.breaker.changed",
    AttemptFinished: "breakwater.attempt.finished",
    RequestFinished: "breakwater.request.finished",
    BudgetChanged: "breakwater.budget.changed",
    Alert: "breakwater.alert.raised",
    CacheChanged: "breakwater.cache.changed",
    ConfigChanged: "breakwater.config.changed",
}
"""`ce-type` of every event."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def headers_for(
    event_type: type[Struct], source: str, at: float, id_: str, *, traceparent: str = ""
) -> dict[str, str]:
    """Headers of one event; a new dict each time, since clients of NATS may change it.

    `source`: `<actor>/<id>`, a relative URI reference; `at`: Unix seconds; `id_`: unique per source. All of
    them plain ASCII without line breaks.
    """
    found = {
        h.CE_ID: id_,
        h.CE_SOURCE: source,
        h.CE_TYPE: TYPES[event_type],
        h.CE_TIME: rfc3339(at),
        h.CE_SPECVERSION: SPECVERSION,
        h.NATS_MSG_ID: id_,
    }
    if traceparent:
        found[h.TRACEPARENT] = traceparent
    return found


def rfc3339(at: float) -> str:
    """Unix seconds as RFC 3339 in UTC with milliseconds: `2026-01-31T09:30:00.250Z`."""
    second, milliseconds = divmod(round(at * 1000), 1000)
    return f"{_second(second)}.{milliseconds:03d}Z"


@lru_cache(maxsize=4)
def _second(at: int) -> str:
    # Events of one second share it: calendars cost more than the rest of the headers.
    return (_EPOCH + timedelta(seconds=at)).isoformat(timespec="seconds")[:-6]
