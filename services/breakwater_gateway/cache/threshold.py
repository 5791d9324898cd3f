"""A threshold that is certified from labels: the loosest at which wrong hits are rare enough, provably.

Two bounds on the share of wrong hits. For a set of pairs that is looked at once: Clopper and Pearson's
exact one. For labels that keep coming and are looked at after each: a betting martingale against "the
share is above the target", which may be looked at as often as one likes (Ville's inequality; Waudby-Smith
and Ramdas, 2024). Thresholds are tried from the strictest that has enough hits to the loosest, and the
first that fails ends the search: a fixed sequence needs no correction for how many were tried (Bauer
1991; "fixed sequence testing" in Learn then Test, 2021).
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

GRID: Final = tuple(round(0.70 + 0.01 * step, 2) for step in range(30))
"""Thresholds that are considered, 0.70 to 0.99."""
CONFIDENCE: Final = 0.95
_BETS: Final = ((0.0, 0.5), (0.125, 0.15), (0.25, 0.15), (0.5, 0.2))
"""Shares of the target that the truth is bet to be, with the stake on each."""
NEEDED_MAX: Final = 10_000_000


def upper_bound(wrong: int, hits: int, confidence: float = CONFIDENCE) -> float:
    """Clopper-Pearson: with this confidence the true share of wrong hits is at most that."""
    if not 0 <= wrong <= hits:
        raise ValueError(f"{wrong} wrong of {hits}")
    if wrong == hits:
        return 1.0
    low, high = wrong / hits, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        # P(at most `wrong` of `hits`) falls as the share grows.
        if 1.0 - _beta_share(wrong + 1, hits - wrong, middle) > 1.0 - confidence:
            low = middle
        else:
            high = middle
    return high


def hits_needed(wrong: int, target: float, confidence: float = CONFIDENCE) -> int:
    """Fewest hits with which `wrong` of them leave the exact bound within `target`: 299 for 0 and 1 %."""
    low, high = wrong, wrong + 1
    while upper_bound(wrong, high, confidence) > target:
        low, high = high, 2 * high
        if high > NEEDED_MAX:
            return NEEDED_MAX
    while high - low > 1:
        middle = (low + high) // 2
        if upper_bound(wrong, middle, confidence) > target:
            low = middle
        else:
            high = middle
    return high


def log_evidence(wrong: int, hits: int, target: float) -> float:
    """Logarithm of what bets against "the share is `target` or more" have made of one; at any time."""
    terms = []
    for share, stake in _BETS:
        q = share * target
        if q == 0.0 and wrong:
            continue
        won = wrong * math.log(q / target) if wrong else 0.0
        terms.append(math.log(stake) + won + (hits - wrong) * math.log((1.0 - q) / (1.0 - target)))
    top = max(terms)
    return top + math.log(sum(math.exp(term - top) for term in terms))


def is_certain(wrong: int, hits: int, target: float, confidence: float = CONFIDENCE) -> bool:
    """Whether it may be said, now and at every look before and after, that wrong hits are below target."""
    return hits > 0 and log_evidence(wrong, hits, target) >= -math.log(1.0 - confidence)


def evidence_needed(wrong: int, target: float, confidence: float = CONFIDENCE) -> int:
    """Hits with which `wrong` of them are certain to be below target."""
    low, high = wrong, wrong + 1
    while not is_certain(wrong, high, target, confidence):
        low, high = high, 2 * high
        if high > NEEDED_MAX:
            return NEEDED_MAX
    while high - low > 1:
        middle = (low + high) // 2
        if is_certain(wrong, middle, target, confidence):
            high = middle
        else:
            low = middle
    return high


class Certificate(Struct, frozen=True):
    threshold: float | None
    """None: not certified."""
    hits: int
    """Labelled hits at the threshold, or at the one that came nearest to being certified."""
    wrong: int
    needed: int = 0
    """How many more hits would do if no more of them were wrong; 0 when certified."""


def certify(
    counts: Sequence[tuple[float, int, int]],
    target: float,
    confidence: float = CONFIDENCE,
    *,
    anytime: bool = False,
) -> Certificate:
    """The loosest certified of `counts`: threshold, hits, wrong, from strict to loose.

    `anytime`: the counts grow and are looked at again and again.
    """
    need = evidence_needed if anytime else hits_needed
    best: Certificate | None = None
    nearest: Certificate | None = None
    least = need(0, target, confidence)
    for threshold, hits, wrong in counts:
        if best is None and hits < least:
            # Too few to say anything: the search begins where there are enough, whatever their labels.
            nearest = Certificate(None, hits, wrong, need(wrong, target, confidence) - hits)
            continue
        missing = need(wrong, target, confidence) - hits
        if missing > 0:
            if best is None:
                nearest = Certificate(None, hits, wrong, missing)
            break
        best = Certificate(threshold, hits, wrong)
    if best is not None:
        return best
    return nearest or Certificate(None, 0, 0, least)


class Certifier:
    """Labels as they come, and the threshold that they certify; the same whatever their order."""

    def __init__(self) -> None:
        self._grid = np.array(GRID)
        self._hits: NDArray[np.int64] = np.zeros(len(GRID), np.int64)
        self._wrong: NDArray[np.int64] = np.zeros(len(GRID), np.int64)
        self.labels = 0

    def add(self, score: float, *, same: bool) -> None:
        """A label of a pair that no slot keeps apart."""
        self.labels += 1
        covered = self._grid <= score
        self._hits += covered
        if not same:
            self._wrong += covered

    def certificate(self, target: float, confidence: float = CONFIDENCE) -> Certificate:
        rows = zip(GRID, self._hits.tolist(), self._wrong.tolist(), strict=True)
        return certify(tuple(rows)[::-1], target, confidence, anytime=True)


def _beta_share(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function, by its continued fraction (Lentz)."""
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _fraction(a, b, x) / a
    return 1.0 - front * _fraction(b, a, 1.0 - x) / b


def _fraction(a: float, b: float, x: float) -> float:
    tiny = 1e-300
    c = 1.0
    d = 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > tiny else tiny)
    found = d
    for m in range(1, 400):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0)),
        ):
            d = 1.0 + step * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + step / c
            c = c if abs(c) > tiny else tiny
            found *= c * d
        if abs(c * d - 1.0) < 1e-14:
            break
    return found
