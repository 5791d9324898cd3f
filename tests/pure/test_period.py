"""Periods: calendar ones on every kind of night, rolling windows, and what is refused."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.ledger.period import BadPeriod, Span, UnknownZone, parse_period

ZONES = (
    *("UTC", "Europe/Berlin", "America/New_York", "America/Havana", "America/Sao_Paulo"),
    *("America/St_Johns", "Australia/Lord_Howe", "Asia/Kathmandu", "Asia/Beirut"),
    *("Pacific/Apia", "Africa/Casablanca", "Pacific/Chatham", "Pacific/Kiritimati"),
)


def ms(text: str) -> int:
    """Unix milliseconds of an ISO time, UTC unless it says otherwise."""
    found = datetime.fromisoformat(text)
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)


def span(spec: str, at: str) -> Span:
    return parse_period(spec).span(ms(at))


@pytest.mark.parametrize(
    ("spec", "at", "key", "starts", "ends"),
    [
        ("day@UTC", "2026-11-23T00:00", "d:2026-11-23@UTC", "2026-11-23", "2026-11-24"),
        ("day@UTC", "2026-11-23T23:59:59.999", "d:2026-11-23@UTC", "2026-11-23", "2026-11-24"),
        (
            *("day@Europe/Berlin", "2026-11-23T22:59:59.999", "d:2026-11-23@Europe/Berlin"),
            *("2026-11-22T23:00", "2026-11-23T23:00"),
        ),
        # 23 and 25 hours long.
        (
            *("day@Europe/Berlin", "2026-03-29T12:00", "d:2026-03-29@Europe/Berlin"),
            *("2026-03-28T23:00", "2026-03-29T22:00"),
        ),
        (
            *("day@Europe/Berlin", "2026-10-25T12:00", "d:2026-10-25@Europe/Berlin"),
            *("2026-10-24T22:00", "2026-10-25T23:00"),
        ),
        # No midnight: the clock jumps from 00:00 to 01:00.
        (
            *("day@America/Sao_Paulo", "2018-11-04T03:00", "d:2018-11-04@America/Sao_Paulo"),
            *("2018-11-04T03:00", "2018-11-05T02:00"),
        ),
        # Two midnights: at 01:00 the clock goes back to 00:00. The first one counts.
        (
            *("day@America/Havana", "2026-11-01T05:30", "d:2026-11-01@America/Havana"),
            *("2026-11-01T04:00", "2026-11-02T05:00"),
        ),
        # One minute after midnight the clock went back to yesterday: the new day stays.
        (
            *("day@America/St_Johns", "2008-11-02T02:45", "d:2008-11-02@America/St_Johns"),
            *("2008-11-02T02:30", "2008-11-03T03:30"),
        ),
        # A day that never was.
        (
            *("day@Pacific/Apia", "2011-12-30T10:00", "d:2011-12-31@Pacific/Apia"),
            *("2011-12-30T10:00", "2011-12-31T10:00"),
        ),
        ("week@UTC", "2026-11-22T23:00", "i:2026-W47@UTC", "2026-11-16", "2026-11-23"),
        ("week@UTC", "2027-01-01T00:00", "i:2026-W53@UTC", "2026-12-28", "2027-01-04"),
        ("month@UTC", "2026-12-31T23:59", "m:2026-12@UTC", "2026-12-01", "2027-01-01"),
        (
            *("month@Europe/Berlin", "2026-03-31T22:00", "m:2026-04@Europe/Berlin"),
            *("2026-03-31T22:00", "2026-04-30T22:00"),
        ),
        (
            *("hour@Asia/Kathmandu", "2026-05-01T00:20", "h:2026-05-01T06+0545@Asia/Kathmandu"),
            *("2026-05-01T00:15", "2026-05-01T01:15"),
        ),
        # The hour that comes twice is two hours.
        (
            *("hour@Europe/Berlin", "2026-10-25T00:30", "h:2026-10-25T02+0200@Europe/Berlin"),
            *("2026-10-25T00:00", "2026-10-25T01:00"),
        ),
        (
            *("hour@Europe/Berlin", "2026-10-25T01:30", "h:2026-10-25T02+0100@Europe/Berlin"),
            *("2026-10-25T01:00", "2026-10-25T02:00"),
        ),
        # Half an hour back, within the hour.
        (
            "hour@Australia/Lord_Howe",
            "2026-04-04T15:10",
            "h:2026-04-05T01+1030@Australia/Lord_Howe",
            *("2026-04-04T15:00", "2026-04-04T15:30"),
        ),
    ],
)
def test_an_instant_has_one_span(spec: str, at: str, key: str, starts: str, ends: str) -> None:
    found = span(spec, at)
    assert (found.key, found.starts_ms, found.ends_ms) == (key, ms(starts), ms(ends))


def test_ever_has_no_end() -> None:
    assert span("ever", "2026-11-23") == Span("ever", 0, None)


def test_a_rolling_window_moves_by_its_slots() -> None:
    day = parse_period("rolling:86400/96")
    first = day.span(ms("2026-11-23T00:00"))
    assert (first.ends_ms or 0) - first.starts_ms == 900_000
    assert first.key == f"w:86400/96:{first.slot}"
    assert day.span((first.ends_ms or 0) - 1) == first
    assert day.span(first.ends_ms or 0).slot == first.slot + 1


def test_a_slot_counts_for_a_whole_window_after_its_end() -> None:
    period = parse_period("rolling:3600/96")
    found = period.span(ms("2026-11-23T10:00:01"))
    assert found.ends_ms is not None
    assert period.leaves_ms(found.slot) == found.ends_ms + 3_600_000


SPECS = [f"{kind}@{zone}" for kind in ("hour", "day", "week", "month") for zone in ZONES]


@given(
    spec=st.sampled_from([*SPECS, "rolling:60/96", "rolling:86400/96", "rolling:7/3"]),
    t=st.integers(ms("1995-01-01"), ms("2060-01-01")),
)
def test_spans_follow_one_another_without_gap_or_overlap(spec: str, t: int) -> None:
    period = parse_period(spec)
    found = period.span(t)
    assert found.ends_ms is not None
    assert found.starts_ms <= t < found.ends_ms
    assert period.span(found.starts_ms) == found
    assert period.span(found.ends_ms - 1) == found
    following, before = period.span(found.ends_ms), period.span(found.starts_ms - 1)
    assert following.starts_ms == found.ends_ms
    assert before.ends_ms == found.starts_ms
    assert len({before.key, found.key, following.key}) == 3


@given(
    zone=st.sampled_from(ZONES), t=st.integers(ms("1995-01-01") // 1000, ms("2060-01-01") // 1000)
)
def test_a_day_never_begins_before_the_zone_s_clock_says_so(zone: str, t: int) -> None:
    found = parse_period(f"day@{zone}").span(t * 1000)
    day = found.key[2:12]
    starts_s = found.starts_ms // 1000

    def shown(at: int) -> str:
        return datetime.fromtimestamp(at, ZoneInfo(zone)).date().isoformat()

    assert shown(starts_s) == day
    assert shown(starts_s - 1) < day
    assert shown(t) <= day


def test_the_nights_of_a_century_in_berlin_have_23_24_or_25_hours() -> None:
    period = parse_period("day@Europe/Berlin")
    hours = []
    day = datetime(2000, 1, 1, 12, tzinfo=UTC)
    while day.year < 2030:
        found = period.span(int(day.timestamp() * 1000))
        hours.append(((found.ends_ms or 0) - found.starts_ms) // 3_600_000)
        day += timedelta(days=1)
    assert {hours.count(23), hours.count(25)} == {30}
    assert set(hours) == {23, 24, 25}


@pytest.mark.parametrize(
    "spec",
    [
        *("", "day", "day@", "year@UTC", "rolling:0/96", "rolling:60", "rolling:60/0"),
        *("rolling:99999999/96", "day@UTC ", "day@../../etc/passwd", "DAY@UTC", "ever@UTC"),
    ],
)
def test_what_is_no_period_is_refused(spec: str) -> None:
    with pytest.raises(BadPeriod, match="period"):
        parse_period(spec)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "Europe/Berlinn", "/etc/passwd", "Europe"])
def test_an_unknown_zone_is_refused_by_name(zone: str) -> None:
    with pytest.raises(UnknownZone, match=zone):
        parse_period(f"day@{zone}")
