"""Which period an instant belongs to: hours, days, weeks and months of a time zone, and rolling windows.

A period begins at the first instant at which the zone's own clock says so, and ends where the next one
begins: never early, and never open again, on nights when clocks are put back over midnight too. Instants
are Unix milliseconds, and all arithmetic is in whole numbers.
"""

import re
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Final, Literal, NamedTuple
from zoneinfo import ZoneInfo

from msgspec import Struct

HOUR_MS: Final = 3_600_000
ROLLING_SLOTS: Final = 96
"""A rolling window moves in steps of a 96th of its length."""
ROLLING_MAX_S: Final = 366 * 86_400
T_MAX_MS: Final = 253_000_000_000_000
"""In the year 9987; what comes later is no time of ours."""

Kind = Literal["hour", "day", "week", "month", "rolling", "ever"]

_CALENDAR: Final = re.compile(r"(hour|day|week|month)@([A-Za-z0-9_+/-]{1,64})")
_ROLLING: Final = re.compile(r"rolling:([1-9][0-9]{0,8})/([1-9][0-9]{0,3})")
_KINDS: Final[dict[str, Kind]] = {"hour": "hour", "day": "day", "week": "week", "month": "month"}


class BadPeriod(ValueError):
    """Not a period: the message says what one looks like."""


class UnknownZone(BadPeriod):
    """No such time zone here."""


class Span(NamedTuple):
    """One period: its key, and from when until when it lasts."""

    key: str
    starts_ms: int
    ends_ms: int | None
    """The first instant of the next one; None: never."""
    slot: int = 0
    """Of a rolling window: the number of this step."""


class Period(Struct, frozen=True):
    """A rule that cuts time into spans."""

    spec: str
    kind: Kind
    zone: str = "UTC"
    seconds: int = 0
    slots: int = 0

    def span(self, t_ms: int) -> Span:
        """The one span that `t_ms` is in."""
        if self.kind == "rolling":
            length_ms = self.seconds * 1000
            slot = t_ms * self.slots // length_ms
            return Span(
                self.key_of(slot),
                _ceiling(slot * length_ms, self.slots),
                _ceiling((slot + 1) * length_ms, self.slots),
                slot,
            )
        if self.kind == "ever":
            return Span("ever", 0, None)
        if self.kind == "hour":
            return _hour(self.zone, t_ms)
        return _days(self.kind, self.zone, t_ms)

    def key_of(self, slot: int) -> str:
        """The key of a rolling window's step."""
        return f"w:{self.seconds}/{self.slots}:{slot}"

    def leaves_ms(self, slot: int) -> int:
        """When a step of a rolling window no longer counts.

        A step counts from its beginning until one whole window after its end: so whatever was spent in it
        counts for at least a window's length.
        """
        return _ceiling((slot + self.slots + 1) * self.seconds * 1000, self.slots)


@lru_cache(maxsize=1024)
def parse_period(spec: str) -> Period:
    """The period of that text, as in `protocol.ledger.Line`. Raises `BadPeriod` or `UnknownZone`."""
    if spec == "ever":
        return Period(spec, "ever")
    found = _CALENDAR.fullmatch(spec)
    if found is not None:
        _zone(found[2])
        return Period(spec, _KINDS[found[1]], found[2])
    found = _ROLLING.fullmatch(spec)
    if found is not None and int(found[1]) <= ROLLING_MAX_S:
        return Period(spec, "rolling", seconds=int(found[1]), slots=int(found[2]))
    raise BadPeriod(
        f"not a period: {spec[:80]!r}; periods are hour@ZONE, day@ZONE, week@ZONE, month@ZONE,"
        " rolling:SECONDS/SLOTS and ever"
    )


@lru_cache(maxsize=1024)
def _zone(name: str) -> ZoneInfo:
    # Names come from outside: ZoneInfo refuses absolute paths and `..` itself, with ValueError.
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise UnknownZone(
            f"no time zone is called {name!r}; names are like Europe/Berlin"
        ) from None


def _days(kind: Kind, zone: str, t_ms: int) -> Span:
    day = _local(zone, t_ms).date()
    # Where a clock was put back over midnight, the new day has begun although the clock denies it.
    while _begins_ms(zone, day + timedelta(days=1)) <= t_ms:
        day += timedelta(days=1)
    if kind == "day":
        first, following = day, day + timedelta(days=1)
        key = f"d:{first.isoformat()}@{zone}"
    elif kind == "week":
        first = day - timedelta(days=day.weekday())
        following = first + timedelta(days=7)
        year, week, _ = first.isocalendar()
        key = f"i:{year:04d}-W{week:02d}@{zone}"
    else:
        first = day.replace(day=1)
        following = (first + timedelta(days=32)).replace(day=1)
        key = f"m:{first.year:04d}-{first.month:02d}@{zone}"
    return Span(key, _begins_ms(zone, first), _begins_ms(zone, following))


@lru_cache(maxsize=4096)
def _begins_ms(zone: str, day: date) -> int:
    """The first instant at which the zone's clock shows this day or a later one."""
    midnight_s = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
    offsets_s = {_offset_s(zone, midnight_s + hours * 3600) for hours in (-30, -15, 0, 15, 30)}
    found = [
        midnight_s - offset_s
        for offset_s in offsets_s
        if _offset_s(zone, midnight_s - offset_s) == offset_s
    ]
    if found:
        return min(found) * 1000
    # The clock jumps over this midnight: the jump is where the day begins.
    before_s, after_s = midnight_s - max(offsets_s) - 1, midnight_s - min(offsets_s)
    while after_s - before_s > 1:
        middle_s = (before_s + after_s) // 2
        if _local(zone, middle_s * 1000).date() >= day:
            after_s = middle_s
        else:
            before_s = middle_s
    return after_s * 1000


def _hour(zone: str, t_ms: int) -> Span:
    offset_s = _offset_s(zone, t_ms // 1000)
    starts_ms = (t_ms + offset_s * 1000) // HOUR_MS * HOUR_MS - offset_s * 1000
    ends_ms = starts_ms + HOUR_MS
    # An hour in which the clock is changed is two: each keeps to its own offset.
    if _offset_s(zone, starts_ms // 1000) != offset_s:
        starts_ms = _change_s(zone, starts_ms // 1000, t_ms // 1000) * 1000
    if _offset_s(zone, ends_ms // 1000 - 1) != offset_s:
        ends_ms = _change_s(zone, t_ms // 1000, ends_ms // 1000 - 1) * 1000
    local = _local(zone, t_ms)
    return Span(f"h:{local:%Y-%m-%dT%H%z}@{zone}", starts_ms, ends_ms)


def _change_s(zone: str, before_s: int, after_s: int) -> int:
    """The first second with the offset of `after_s`; there is one change between the two."""
    offset_s = _offset_s(zone, after_s)
    while after_s - before_s > 1:
        middle_s = (before_s + after_s) // 2
        if _offset_s(zone, middle_s) == offset_s:
            after_s = middle_s
        else:
            before_s = middle_s
    return after_s


def _local(zone: str, t_ms: int) -> datetime:
    return datetime.fromtimestamp(t_ms // 1000, _zone(zone))


def _offset_s(zone: str, t_s: int) -> int:
    offset = datetime.fromtimestamp(t_s, _zone(zone)).utcoffset()
    return 0 if offset is None else offset.days * 86_400 + offset.seconds


def _ceiling(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)
