"""The semantic cache's decision: every way to a miss, and the one to a hit."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.cache.decision import (
    Candidate,
    decide,
    ineligible,
    score_of,
    stricter,
)
from breakwater_gateway.config.model import Semantic

TEXT = "How do I reset my router?"


def near(similarity: float, answer: int = 1, **more: Any) -> Candidate:  # noqa: ANN401
    facts = {"row": 0, "text": TEXT, "tenant": "t", "expires_at": 100.0, **more}
    return Candidate(similarity=similarity, answer=answer, **facts)


def reason(
    *found: Candidate,
    text: str = TEXT,
    threshold: float | None = 0.9,
    draw: float = 0.5,
    policy: Semantic | None = None,
) -> str | None:
    return decide(
        found,
        text=text,
        tenant="t",
        now=50.0,
        threshold=threshold,
        policy=policy or Semantic(),
        draw=draw,
    ).reason


DECISIONS = [
    ((), {}, "empty"),
    ((near(0.95),), {}, None),
    ((near(0.90),), {}, None),
    ((near(0.89),), {}, "below"),
    ((near(0.99),), {"threshold": None}, "below"),
    # A neighbour that disagrees takes what it lacks of the margin.
    ((near(0.95), near(0.79, 2)), {}, None),
    ((near(0.95), near(0.90, 2)), {}, "below"),
    ((near(0.95), near(0.94), near(0.90, 2)), {}, "below"),
    ((near(0.95), near(0.94), near(0.93)), {}, None),
    ((near(0.95), near(0.90, 2)), {"policy": Semantic(margin=0.0)}, None),
    ((near(0.99),), {"text": "How do I reset my 2 routers?"}, "slots"),
    (
        (near(0.99),),
        {"text": "How do I reset my 2 routers?", "policy": Semantic(veto="off")},
        None,
    ),
    ((near(0.99, tenant="u"),), {}, "tenant"),
    ((near(0.99, tenant="u"), near(0.95)), {}, None),
    ((near(0.99, expires_at=50.0),), {}, "expired"),
    ((near(0.99, expires_at=50.0), near(0.95)), {}, None),
    ((near(0.95, quarantined=0.95),), {}, "quarantined"),
    ((near(0.96, quarantined=0.95),), {}, None),
    ((near(0.95),), {"draw": 0.04}, "shadow"),
    ((near(0.95),), {"draw": 0.0, "policy": Semantic(shadow=0.0)}, None),
]


@pytest.mark.parametrize(("found", "given_", "expected"), DECISIONS)
def test_decisions(
    found: tuple[Candidate, ...], given_: dict[str, Any], expected: str | None
) -> None:
    assert reason(*found, **given_) == expected


@given(
    st.lists(
        st.builds(
            near,
            st.floats(-1, 1),
            st.integers(1, 3),
            tenant=st.sampled_from("tu"),
            expires_at=st.sampled_from([10.0, 90.0]),
            quarantined=st.sampled_from([-1.0, 0.95, 1.0]),
        ),
        max_size=8,
    ),
    st.floats(0, 1),
    st.floats(0, 1, exclude_max=True),
)
def test_a_hit_is_the_tenant_s_own_alive_and_near_enough(
    found: list[Candidate], threshold: float, draw: float
) -> None:
    found.sort(key=lambda each: -each.similarity)
    policy = Semantic()
    decision = decide(
        found, text=TEXT, tenant="t", now=50.0, threshold=threshold, policy=policy, draw=draw
    )
    if decision.reason is None:
        best = decision.best
        assert best is not None
        assert best.tenant == "t"
        assert best.expires_at > 50.0
        assert best.similarity > best.quarantined
        assert best.similarity >= decision.score >= threshold
        assert draw >= policy.shadow


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_disagreeing_neighbour_only_takes_away(best: float, other: float, margin: float) -> None:
    best, other = max(best, other), min(best, other)
    score = score_of([near(best), near(other, 2)], margin)
    assert score <= best
    if best - other >= margin:
        assert math.isclose(score, best)


@pytest.mark.parametrize(
    ("configured", "asked", "in_force"),
    [(0.9, None, 0.9), (0.9, 0.95, 0.95), (0.9, 0.5, 0.9), (None, 0.5, None), (None, None, None)],
)
def test_a_caller_may_only_raise_the_threshold(
    configured: float | None, asked: float | None, in_force: float | None
) -> None:
    assert stricter(configured, asked) == in_force


@pytest.mark.parametrize(
    ("text", "more", "why"),
    [
        ("How do I reset my password?", {}, None),
        ("How do I reset my password?", {"temperature": 0.3}, None),
        ("How do I reset my password?", {"temperature": 0.31}, "temperature"),
        ("How do I reset my password?", {"tools": True}, "tools"),
        (None, {}, "no_text"),
        ("  ", {}, "no_text"),
        ("a" * 4_097, {}, "too_long"),
        ("What's the weather like?", {}, "volatile"),
        ("Who is the chancellor now?", {}, "volatile"),
        ("Where is my order?", {}, "volatile"),
        ("How much is the price?", {}, "volatile"),
        ("Why was jane@example.com billed?", {}, "personal"),
        ("What is 4929123456781234?", {}, "personal"),
        ("Call +44 20 7946 0958 for me", {}, "personal"),
        ("Explain ticket #4711", {}, "personal"),
        ("What about INV-2024-001?", {}, "personal"),
        ("Explain 123e4567-e89b-12d3-a456-426614174000", {}, "personal"),
        ("Which knowledge do I need?", {}, None),
    ],
)
def test_which_requests_have_no_semantic_cache(
    text: str | None, more: dict[str, Any], why: str | None
) -> None:
    assert ineligible(text, **{"tools": False, "temperature": None, **more}) == why
