"""Calls that more than one request waits for: what is said, who follows, who leads next."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.router.flights import LEADERS_MAX, Flight, Flights, Form
from breakwater_gateway.router.home import ALIVE_S, Home
from breakwater_protocol import failures as f
from breakwater_protocol.flights import Tapped

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


def test_one_in_the_same_form_is_joined_before_any_other() -> None:
    flights: Flights[str] = Flights()
    whole, streaming, told = flight(WHOLE), flight(), flight(Form(stream=True, usage=True))
    flights.add(whole)
    assert flights.to_join("d", STREAM) is whole
    assert flights.to_join("d", STREAM, alike=True) is None
    assert flights.to_join("other", STREAM) is None
    flights.add(told)
    assert flights.to_join("d", STREAM) is told, "it streams too"
    flights.add(streaming)
    assert flights.to_join("d", STREAM) is streaming
    assert flights.to_join("d", WHOLE) is whole
    assert flights.led("d") == [whole, told, streaming]
    whole.follow("elsewhere")
    assert whole.followers == ["leader"]
    assert flights.led("d") == [told, streaming]


MESSAGES = [(bytes([65 + n]), chunk(n)) for n in range(6)] + [(b"", chunk(6, end="ok"))]


@given(data=st.data(), since=st.integers(0, 6))
def test_an_answer_that_comes_in_two_ways_is_heard_once_and_in_order(
    data: st.DataObject, since: int
) -> None:
    """The router that leads says the first ones, up to where it hears that the worker says the rest."""
    until = data.draw(st.integers(since, 7))
    ways = [MESSAGES[:until], MESSAGES[since:]]
    one = flight()
    found: list[bytes] = []
    while any(ways):
        way = data.draw(st.sampled_from([way for way in ways if way]))
        found += [said.data for said in one.arrive(*way.pop(0))]
    assert found == [data for data, _ in MESSAGES]
    assert one.end is not None


def test_another_attempt_that_goes_on_is_taken_where_the_first_one_stopped() -> None:
    one = flight()
    one.arrive(b"a", chunk(0))
    assert one.arrive(b"d", chunk(2, attempt="2")) == []
    assert one.arrive(b"x", chunk(3)) == [], "of the first attempt, which was cut"
    found = one.arrive(b"c", chunk(1, attempt="2", seam="other"))
    assert [said.data for said in found] == [b"c", b"d"]
    assert one.attempt == 2
    assert one.seam


def test_who_heard_more_of_the_attempt_that_was_cut_than_its_leader_has_no_whole_answer() -> None:
    one = flight()
    one.arrive(b"a", chunk(0))
    one.arrive(b"b", chunk(1))
    assert one.arrive(b"x", chunk(1, attempt="2", seam="other")) == []
    assert one.broken, "what goes on would follow other words than it goes on with"


def test_a_seam_that_comes_in_two_ways_is_one() -> None:
    one = flight()
    one.arrive(b"a", chunk(0))
    one.arrive(b"b", chunk(1, attempt="10", seam="other"))
    assert one.arrive(b"b", chunk(1, attempt="10", seam="other")) == []
    assert one.arrive(b"x", chunk(1, attempt="9", seam="before")) == []
    assert not one.broken
    assert len(one.arrive(b"", chunk(2, attempt="10", end="ok"))) == 1


def test_a_flight_stands_alone_once_all_that_is_to_come_comes_from_the_worker() -> None:
    one = flight()
    one.arrive(b"a", chunk(0))
    one.tap = Tapped("w", attempt=1, seq=2)
    assert not one.stands_alone, "the second message is under way"
    one.arrive(b"b", chunk(1))
    assert one.stands_alone
    one.arrive(b"c", chunk(2, attempt="2", seam="other"))
    assert not one.stands_alone, "another worker is at it"


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


def test_who_was_lost_leads_no_longer_even_if_it_seems_to_be_alive() -> None:
    home = Home("a")
    for router in ("b", "c", "d"):
        home.heard(router, now=0.0)
    assert home.claim("k", "b", 60, now=0.0) == "b"
    assert home.claim("k", "c", 60, now=0.5, lost="b") == "c"
    assert home.claim("k", "d", 60, now=0.5, lost="b") == "c"


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
    assert home.is_alive("b", 5.0 + ALIVE_S), "it finishes what it leads"
    assert not home.is_alive("b", 5.1 + ALIVE_S)
