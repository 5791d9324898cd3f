"""Calibration: which threshold labelled pairs support, and what each would have served.

Pure: pairs with their similarities in, a report out. A pair is a hit at a threshold when its score reaches
it, and with the veto when no slot keeps it apart besides; wrong, when its answers differ.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct

from breakwater_gateway.cache.slots import conflict
from breakwater_gateway.cache.threshold import (
    CONFIDENCE,
    GRID,
    Certificate,
    certify,
    upper_bound,
)
from breakwater_gateway.config.model import Veto

PAIRS_MAX: Final = 1_000_000
LINE_MAX: Final = 65_536
"""Bytes of a line."""
WORST_SHOWN: Final = 20


class BadPairs(ValueError):
    """One sentence that names the line."""


class Pair(Struct, frozen=True):
    a: str
    b: str
    same: bool


class Scored(Struct, frozen=True):
    """A pair as the cache would see it."""

    a: str
    b: str
    same: bool
    score: float
    veto: bool


class Rate(Struct, frozen=True):
    """What a threshold serves."""

    hits: int
    wrong: int
    precision: float | None
    """None without a hit."""
    recall: float | None
    """Of the pairs that have one answer; None when there are none."""
    wrong_bound: float | None
    """The share of wrong hits is at most that, with the confidence asked for."""


class Row(Struct, frozen=True):
    threshold: float
    plain: Rate
    with_veto: Rate


class Report(Struct, frozen=True):
    pairs: int
    same: int
    target: float
    confidence: float
    rows: list[Row]
    """From the loosest threshold to the strictest."""
    certificate: Certificate
    """With the veto, if `veto` is not off."""
    veto: Veto
    worst: list[Scored]
    """Pairs with different answers that come nearest to being served, veto included."""


def read_pairs(text: bytes) -> list[Pair]:
    """Lines of `{"a": …, "b": …, "same": …}`; other keys are ignored. Raises `BadPairs`."""
    decoder = msgspec.json.Decoder(Pair)
    pairs: list[Pair] = []
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line.strip():
            continue
        if len(line) > LINE_MAX:
            raise BadPairs(f"line {number} has {len(line)} bytes, {LINE_MAX} may be")
        if len(pairs) == PAIRS_MAX:
            raise BadPairs(f"line {number}: more than {PAIRS_MAX} pairs")
        try:
            pairs.append(decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadPairs(
                f'line {number}: expected {{"a": "…", "b": "…", "same": true or false}}: {error}'
            ) from None
    if not pairs:
        raise BadPairs("there are no pairs in it")
    return pairs


def scored(pair: Pair, similarity: float, veto: Veto) -> Scored:
    return Scored(pair.a, pair.b, pair.same, similarity, bool(conflict(pair.a, pair.b, veto)))


def report(
    pairs: Sequence[Scored], *, target: float, confidence: float = CONFIDENCE, veto: Veto = "strict"
) -> Report:
    same = sum(pair.same for pair in pairs)
    rows = [
        Row(
            threshold,
            _rate([p for p in pairs if p.score >= threshold], same, confidence),
            _rate([p for p in pairs if p.score >= threshold and not p.veto], same, confidence),
        )
        for threshold in GRID
    ]
    certificate = certify(
        [(row.threshold, row.with_veto.hits, row.with_veto.wrong) for row in reversed(rows)],
        target,
        confidence,
    )
    wrong = sorted(
        (p for p in pairs if not p.same and p.score >= GRID[0]), key=lambda p: (p.veto, -p.score)
    )
    return Report(
        pairs=len(pairs),
        same=same,
        target=target,
        confidence=confidence,
        rows=rows,
        certificate=certificate,
        veto=veto,
        worst=wrong[:WORST_SHOWN],
    )


def _rate(hits: Sequence[Scored], same: int, confidence: float) -> Rate:
    wrong = sum(not hit.same for hit in hits)
    right = len(hits) - wrong
    return Rate(
        hits=len(hits),
        wrong=wrong,
        precision=right / len(hits) if hits else None,
        recall=right / same if same else None,
        wrong_bound=upper_bound(wrong, len(hits), confidence) if hits else None,
    )


def verdict(found: Report) -> str:
    """The certificate in one sentence."""
    certificate = found.certificate
    share = f"{100 * found.target:g} % wrong hits at {100 * found.confidence:g} % confidence"
    if certificate.threshold is None:
        return (
            f"cannot certify {share}: {certificate.needed} more labelled hits needed"
            f" (now {certificate.wrong} wrong of {certificate.hits})"
        )
    return (
        f"certified for {share}: threshold {certificate.threshold:.2f}"
        f" ({certificate.wrong} wrong of {certificate.hits} hits)"
    )


def is_looser(threshold: float, found: Report) -> bool:
    """The threshold in force would serve more than is certified."""
    certified = found.certificate.threshold
    return certified is not None and threshold < certified


def cells(row: Row) -> tuple[str, ...]:
    """A line of the table."""
    found = [f"{row.threshold:.2f}"]
    for rate in (row.plain, row.with_veto):
        found += [
            str(rate.hits),
            _percent(rate.precision),
            _percent(rate.recall),
            f"{rate.wrong}/{rate.hits}",
            f"≤ {_percent(rate.wrong_bound)}" if rate.wrong_bound is not None else "-",
        ]
    return tuple(found)


COLUMNS: Final = (
    "threshold",
    *("hits", "precision", "recall", "wrong", "bound"),
    *("hits (veto)", "precision", "recall", "wrong", "bound"),
)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
