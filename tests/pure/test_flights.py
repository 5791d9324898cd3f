"""Calls that more than one request waits for: what is said, who follows, who leads next."""

import pytest

from breakwater_gateway.router.flights import LEADERS_MAX, Flight, Flights, Form
from breakwater_gateway.router.home import ALIVE_S, Home
from breakwater_protocol import failures as f

STREAM = Form(stream=True, usage=False)
WHOLE = Form(stream=False, usage=False)


def flight(form: Form = STREAM, bytes_max: int = 10_000) -> Flight[str]:
    return Flight("d", form, "leader", bytes_max=bytes_max)


def chunk(number: int, **more: str) -> dict[str, str]:
    return {"breakwater-seq": str(number), **{f"breakwater-{k}": v for k, v in more.items()}}


def test_what_was_said_is_kept_for_latecomers_until_its_end() -> None:
    one = flight()
    assert not one.began
    for number, data in enumerate((b"a", b"b")):
        assert one.hear(data, chunk(number)) is not None
    assert [said.data for said in one.said] == [b"a", b"b"]
    assert one.began
    assert one.joinable
    end = one.hear(b"", chunk(2, end="ok"))
    assert end is one.end
    assert not one.joinable
    assert one.hear(b"more", chunk(3)) is None


def test_beyond_its_bound_nobody_can_join_and_who_follows_goes_on() -> None:
    one = flight(bytes_max=1_000)
    assert one.hear(b"x" * 2_000, chunk(0)) is not None
    assert not one.joinable
    assert one.said == []
    assert one.hear(b"y", chunk(1)) is not None


def test_an_attempt_that_was_given_up_is_not_heard() -> None:
    one = flight()
    one.hear(b"a", chunk(0, attempt="2"))
    assert one.hear(b"b", chunk(1)) is None
    assert one.hear(b"b", chunk(1, attempt="2")) is not None
    assert one.hear(b"c", chunk(2, attempt="3", seam="other")) is not None
    assert one.seam


def test_an_answer_without_its_beginning_is_none() -> None:
    one = flight()
    assert one.hear(b"a", chunk(1)) is None
    assert one.broken


@pytest.mark.parametrize(
    ("failure", "succeeds"),
    [
        (f.Cancelled(), True),
        (f.TotalTimeout(), True),
        (f.BudgetExhausted(), True),
        (f.TooDear(), True),
        (f.WorkerLost(), True),
        (f.ServerError(), True),
        (f.NoDeployment(), True),
        (f.InvalidRequest(), False),
        (f.ContextLength(), False),
        (f.ContentFiltered(), False),
    ],
)
def test_another_leads_unless_the_request_itself_is_refused(
    failure: f.Failure, succeeds: bool
) -> None:
    one = flight()
    one.followers = ["next", "last"]
    assert one.succeed(failure) == ("next" if succeeds else None)
    assert one.followers == (["last"] if succeeds else ["next", "last"])


def test_what_keeps_failing_at_providers_is_told_to_all() -> None:
    one = flight()
    one.followers = [str(n) for n in range(10)]
    for _ in range(LEADERS_MAX - 1):
        assert one.succeed(f.ServerError()) is not None
    assert one.succeed(f.ServerError()) is None
    assert one.succeed(f.Cancelled()) is not None


def test_nobody_leads_anew_once_something_was_said() -> None:
    one = flight()
    one.followers = ["next"]
    one.hear(b"a", chunk(0))
    assert one.succeed(f.StreamCut()) is None


def test_a_whole_answer_may_come_from_a_stream_and_never_the_other_way_round() -> None:
    flights: Flights[str] = Flights()
    streaming = flight()
    flights.add(streaming)
    assert flights.to_join("d", STREAM) is streaming
    assert flights.to_join("d", WHOLE) is streaming
    assert flights.to_join("other", STREAM) is None
    flights.remove(streaming)
    whole = flight(WHOLE)
    flights.add(whole)
    assert flights.to_join("d", STREAM) is None
    assert flights.to_join("d", WHOLE) is whole
    assert flights.led(whole.key) is whole
    whole.follow("elsewhere")
    assert whole.followers == ["leader"]
    assert flights.led(whole.key) is None


def test_all_routers_find_the_same_home_and_keys_spread_over_them() -> None:
    homes = {}
    for own in ("a", "b", "c"):
        home = homes[own] = Home(own)
        for router in ("a", "b", "c"):
            home.heard(router, now=10.0)
    keys = [str(n) for n in range(300)]
    found = {key: {home.of(key, 10.5) for home in homes.values()} for key in keys}
    assert all(len(each) == 1 for each in found.values())
    counts = [sum(each == {router} for each in found.values()) for router in "abc"]
    assert min(counts) > 60


def test_the_first_who_claims_leads_until_it_lands_or_dies() -> None:
    home = Home("a")
    home.heard("b", now=0.0)
    home.heard("c", now=0.0)
    assert home.claim("k", "b", 60, now=0.0) == "b"
    assert home.claim("k", "c", 60, now=1.0) == "b"
    home.landed("k", "c")
    assert home.claim("k", "c", 60, now=1.0) == "b"
    home.landed("k", "b")
    assert home.claim("k", "c", 60, now=1.0) == "c"
    home.heard("b", now=5.0)
    assert home.claim("k", "b", 60, now=ALIVE_S + 0.1) == "b", "c is silent"
    assert home.claim("k", "a", 1, now=100.0) == "a", "and so is b"


def test_a_router_without_others_is_home_to_all() -> None:
    home = Home("a")
    assert home.alone(0.0)
    home.heard("a", 0.0)
    home.heard("b", 0.0)
    assert not home.alone(1.0)
    assert home.alone(ALIVE_S + 0.1)
    home.heard("b", 5.0)
    home.heard("b", 5.0, draining=True)
    assert home.alone(5.0)
    assert home.of("k", 5.0) == "a"
