"""Feedback on a cached answer: what is taken, and what is refused with the mend."""

import pytest

from breakwater_gateway.edge.feedback import read
from breakwater_protocol import failures as f
from breakwater_protocol.cache import Feedback


def test_a_verdict_goes_to_the_shard_that_its_id_names_under_the_caller_s_own_tenant() -> None:
    body = b'{"id": "s3-0a1b", "verdict": "wrong", "tenant": "another"}'
    assert read(body, "t") == ("3", Feedback("s3-0a1b", "t", "wrong"))


def test_a_verdict_on_an_exact_answer_goes_to_the_routers() -> None:
    id_ = "e" + "a1" * 32
    body = b'{"id": "%b", "verdict": "stale"}' % id_.encode()
    assert read(body, "t") == ("exact", Feedback(id_, "t", "stale"))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "expected"),
        (b"[]", "expected"),
        (b'{"id": "s3-0a1b"}', "expected"),
        (b'{"id": "s3-0a1b", "verdict": "bad"}', "expected"),
        (b'{"id": "e0a1b", "verdict": "wrong"}', "refresh"),
        (b'{"id": "s3.>-a", "verdict": "wrong"}', "refresh"),
        (b'{"id": "s33333-a", "verdict": "wrong"}', "refresh"),
        (b"\xff", "expected"),
    ],
)
def test_anything_else_is_refused_with_the_mend(body: bytes, said: str) -> None:
    found = read(body, "t")
    assert isinstance(found, f.InvalidRequest)
    assert said in found.message
