"""The simulator's book: which script counts, what it refuses, when faults happen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.simulator.dialects.dialect import go_duration
from breakwater_gateway.simulator.script import (
    Book,
    Bucket,
    Call,
    Fault,
    FaultClass,
    Rate,
    Script,
    TooManyScripts,
)


def call(
    chance: int = 1, *, lane: str = "a", model: str = "m", key: str = "k", tokens: int = 10
) -> Call:
    return Call(lane, model, key, tokens, tokens, chance)


def faults(
    book: Book, count: int, *, now: float = 0.0, same: bool = False
) -> list[FaultClass | None]:
    found = []
    for i in range(count):
        fault = book.admit(call(0 if same else i), now=now).fault
        found.append(fault.kind if fault is not None else None)
    return found


def test_the_most_specific_script_counts() -> None:
    book = Book()
    selectors = [
        ("", "", ""),
        ("a", "", ""),
        ("", "m", ""),
        ("a", "m", ""),
        ("", "", "k"),
        ("a", "", "k"),
        ("", "m", "k"),
        ("a", "m", "k"),
    ]
    for i, (lane, model, key) in enumerate(selectors):
        book.put([Script(lane=lane, model=model, key=key, tokens=i)], now=0)
        assert book.find("a", "m", "k").tokens == i
    assert book.find("b", "x", "y").tokens == 0


def test_a_name_says_how_a_model_behaves_until_a_script_does() -> None:
    book = Book()
    assert book.find("", "sim-slow", "k").first_token_ms == 3000
    assert book.find("", "anything", "k") == Script()
    book.put([Script(model="sim-slow")], now=0)
    assert book.find("", "sim-slow", "k").first_token_ms == 0


def test_a_fault_happens_so_many_times_and_no_more() -> None:
    book = Book()
    book.put([Script(faults=(Fault("overloaded", times=2), Fault("server_error", times=1)))], now=0)
    assert faults(book, 5) == ["overloaded", "overloaded", "server_error", None, None]


def test_a_fault_keeps_to_its_window() -> None:
    book = Book()
    book.put([Script(faults=(Fault("hang", from_s=10, until_s=20),))], now=100)
    for now, expected in ((109, None), (110, "hang"), (119.9, "hang"), (120, None)):
        assert faults(book, 1, now=now) == [expected]


def test_a_fault_of_some_probability_happens_about_as_often_and_the_same_again() -> None:
    runs = []
    for _ in range(2):
        book = Book(seed=7)
        book.put([Script(faults=(Fault("cut", probability=0.3),))], now=0)
        runs.append(faults(book, 1000) + faults(book, 1000, same=True))
    assert runs[0] == runs[1]
    for part in (runs[0][:1000], runs[0][1000:]):
        assert 230 < part.count("cut") < 370
    other = Book(seed=8)
    other.put([Script(faults=(Fault("cut", probability=0.3),))], now=0)
    assert faults(other, 1000) != runs[0][:1000]


def test_two_faults_of_half_probability_are_independent() -> None:
    book = Book()
    half = (Fault("cut", probability=0.5), Fault("hang", probability=0.5))
    book.put([Script(faults=half)], now=0)
    found = faults(book, 2000)
    assert 400 < found.count("hang") < 600


def test_requests_beyond_the_rate_wait_for_the_bucket() -> None:
    book = Book()
    book.put([Script(rpm=2)], now=0)
    first = book.admit(call(), now=0)
    assert first.rates == (Rate("requests", limit=2, remaining=1, reset_s=30.0),)
    book.admit(call(), now=0)
    refused = book.admit(call(), now=0).exceeded
    assert refused is not None
    assert (refused.limit, refused.bound, refused.used, refused.wait_s) == ("requests", 2, 2, 30)
    assert book.admit(call(key="other"), now=0).exceeded is None
    assert book.admit(call(), now=29).exceeded is not None
    assert book.admit(call(), now=31).exceeded is None


def test_a_refused_call_takes_nothing_from_the_buckets() -> None:
    book = Book()
    book.put([Script(rpm=100, tpm=100)], now=0)
    assert book.admit(call(tokens=90), now=0).exceeded is None
    refused = book.admit(call(tokens=20), now=0)
    assert refused.exceeded is not None
    assert refused.exceeded.limit == "tokens"
    assert [rate.remaining for rate in refused.rates] == [99, 10]
    assert book.admit(call(tokens=10), now=0).exceeded is None


def test_a_request_larger_than_the_limit_is_told_so() -> None:
    book = Book()
    book.put([Script(tpm=100, context_tokens=500)], now=0)
    for tokens, limit in ((101, "request"), (501, "context")):
        refused = book.admit(call(tokens=tokens), now=0).exceeded
        assert refused is not None
        assert refused.limit == limit


def test_capacity_counts_calls_in_flight_through_a_change_of_script() -> None:
    book = Book()
    book.put([Script(capacity=2)], now=0)
    one, two = book.begun("a", "m", "k"), book.begun("a", "m", "k")
    book.put([Script(capacity=2, tokens=5)], now=0)
    refused = book.admit(call(), now=0).exceeded
    assert refused is not None
    assert refused.limit == "capacity"
    book.ended(one)
    assert book.admit(call(), now=0).exceeded is None
    book.ended(two)
    book.ended(two)


def test_the_book_is_bounded() -> None:
    book = Book()
    book.put([Script(lane=str(i)) for i in range(book.scripts_max)], now=0)
    with pytest.raises(TooManyScripts):
        book.put([Script(lane="more")], now=0)
    book.put([Script(lane="1", tokens=3)], now=0)
    assert len(book.scripts()) == book.scripts_max


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 50)), max_size=50))
def test_a_bucket_gives_no_more_than_its_rate(takes: list[tuple[float, int]]) -> None:
    bucket = Bucket(60, 60.0, 0.0)
    now = 0.0
    given_out = 0
    for pause, amount in takes:
        now += pause
        bucket.refill(now)
        if bucket.wait_s(amount) == 0:
            bucket.level -= amount
            given_out += amount
        assert 0 <= bucket.level <= 60
        assert given_out <= 60 + now * 1.000001


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.006, "6ms"),
        (1, "1s"),
        (1.5, "1.5s"),
        (62, "1m2s"),
        (60, "1m0s"),
        (3600, "60m0s"),
    ],
)
def test_durations_are_written_as_go_does(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text
