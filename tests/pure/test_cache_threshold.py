"""The certified threshold: bounds that are exact, and a search that keeps its promise."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.cache.threshold import (
    GRID,
    Certifier,
    certify,
    evidence_needed,
    hits_needed,
    is_certain,
    upper_bound,
)


@pytest.mark.parametrize(("target", "hits"), [(0.01, 299), (0.02, 149), (0.05, 59)])
def test_hits_without_an_error_that_support_a_target(target: float, hits: int) -> None:
    assert hits_needed(0, target) == hits


@pytest.mark.parametrize(
    ("wrong", "hits", "bound"),
    # R: binom.test(k, n, alternative = "less")$conf.int[2]
    [(0, 100, 0.029513), (1, 100, 0.046560), (5, 100, 0.102253), (3, 500, 0.015434), (9, 9, 1.0)],
)
def test_the_exact_bound_is_clopper_and_pearson_s(wrong: int, hits: int, bound: float) -> None:
    assert upper_bound(wrong, hits) == pytest.approx(bound, abs=2e-6)


@given(st.integers(0, 40), st.integers(1, 3_000))
def test_the_bound_lies_above_the_share_and_shrinks_with_hits(wrong: int, more: int) -> None:
    hits = wrong + more
    bound = upper_bound(wrong, hits)
    assert wrong / hits < bound <= 1.0
    assert upper_bound(wrong, 2 * hits) < bound
    assert upper_bound(wrong + 1, hits + 1) > bound


@given(st.integers(0, 20), st.sampled_from([0.005, 0.01, 0.05]))
def test_needed_hits_are_the_fewest_that_do(wrong: int, target: float) -> None:
    needed = hits_needed(wrong, target)
    assert upper_bound(wrong, needed) <= target < upper_bound(wrong, needed - 1)
    certain = evidence_needed(wrong, target)
    assert is_certain(wrong, certain, target)
    assert not is_certain(wrong, certain - 1, target)
    assert certain >= needed, "looking at every label costs some hits"


def test_the_loosest_threshold_within_the_target_is_certified() -> None:
    certificate = certify([(0.99, 5, 1), (0.95, 400, 0), (0.9, 700, 1), (0.85, 900, 30)], 0.01)
    assert (certificate.threshold, certificate.hits, certificate.wrong) == (0.9, 700, 1)


def test_a_threshold_behind_one_that_failed_is_not_tried() -> None:
    assert certify([(0.95, 400, 5), (0.9, 9_000, 5)], 0.01).threshold is None


def test_without_enough_hits_it_says_how_many_are_missing() -> None:
    certificate = certify([(0.95, 50, 0), (0.9, 100, 0)], 0.01)
    assert certificate.threshold is None
    assert certificate.needed == 199
    assert certify([], 0.01).needed == 299


def test_labels_as_they_come_certify_and_errors_take_it_back() -> None:
    certifier = Certifier()
    for _ in range(evidence_needed(0, 0.02)):
        assert certifier.certificate(0.02).threshold is None
        certifier.add(0.93, same=True)
    assert certifier.certificate(0.02).threshold == GRID[0]
    for _ in range(evidence_needed(0, 0.02)):
        certifier.add(0.97, same=True)
    for _ in range(6):
        certifier.add(0.91, same=False)
    certificate = certifier.certificate(0.02)
    assert certificate.threshold == 0.92, "tighter by itself"


def test_looking_after_every_label_rarely_certifies_what_is_worse_than_the_target() -> None:
    """Ville: at most 5 % of runs ever cross, however often one looks. The truth is a little worse than the target."""
    rng = random.Random(7)
    crossed = 0
    for _ in range(400):
        wrong = 0
        for hits in range(1, 1_201):
            wrong += rng.random() < 0.055
            if is_certain(wrong, hits, 0.05):
                crossed += 1
                break
    assert crossed <= 0.05 * 400
