"""The cache never crosses what sets requests apart: the full count. `pytest -m drill -s -k isolation`."""

import random
import sys

import pytest
from tests.pure.cache_pairs import differing, request, respelled

from breakwater_gateway.cache.key import Key

pytestmark = pytest.mark.drill

PAIRS = 100_000


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def test_no_pair_of_a_hundred_thousand_that_differ_shares_an_answer() -> None:
    rng = random.Random(11)
    by: dict[str, int] = {}
    for _ in range(PAIRS):
        one, other, what = differing(rng)
        a, b = one.key(), other.key()
        assert isinstance(a, Key), (what, one.fields)
        assert isinstance(b, Key), (what, other.fields)
        assert a.digest != b.digest, (what, one.fields, other.fields)
        assert a.partition != b.partition, (what, one.fields, other.fields)
        by[what] = by.get(what, 0) + 1
    say(f"\n{PAIRS:,} pairs that differ in one thing, no hit across:")
    for what, count in sorted(by.items()):
        say(f"{count:8,}  {what}")


def test_every_respelled_request_of_a_hundred_thousand_is_the_same() -> None:
    rng = random.Random(12)
    for _ in range(PAIRS):
        asked = request(rng)
        again = respelled(asked, rng)
        one, other = asked.key(), asked.key(again)
        assert isinstance(one, Key)
        assert isinstance(other, Key)
        assert (one.digest, one.partition) == (other.digest, other.partition), again
    say(f"\n{PAIRS:,} requests spelled otherwise: every one hit")
