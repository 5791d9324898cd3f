"""Calibration: the table is counted right, a certificate is given or refused, and the plot is a PNG."""

import json
import random
import struct
import zlib

import pytest

from breakwater_gateway.cache.calibrate import (
    BadPairs,
    Scored,
    is_looser,
    read_pairs,
    report,
    verdict,
)
from breakwater_gateway.cache.plot import HEIGHT, WIDTH, png
from breakwater_gateway.cache.threshold import GRID, certify


def pairs(*rows: tuple[int, bool, float, bool]) -> list[Scored]:
    return [
        Scored("a", "b", same, score, veto) for many, same, score, veto in rows for _ in range(many)
    ]


def test_the_table_counts_hits_with_and_without_the_veto() -> None:
    found = report(
        pairs(
            (6, True, 0.95, False),
            (2, True, 0.75, False),
            (3, False, 0.96, True),
            (1, False, 0.9, False),
        ),
        target=0.01,
    )
    row = next(row for row in found.rows if row.threshold == 0.9)
    assert (row.plain.hits, row.plain.wrong, row.plain.precision) == (10, 4, 0.6)
    assert (row.with_veto.hits, row.with_veto.wrong) == (7, 1)
    assert row.with_veto.recall == 6 / 8
    assert row.with_veto.wrong_bound == pytest.approx(0.5207, abs=1e-4)
    strict = found.rows[-1].plain
    assert (strict.hits, strict.precision, strict.wrong_bound) == (0, None, None)
    assert [pair.veto for pair in found.worst] == [False, True, True, True]


def test_enough_right_hits_certify_and_a_looser_threshold_is_told() -> None:
    found = report(pairs((400, True, 0.93, False), (50, False, 0.85, False)), target=0.01)
    assert found.certificate.threshold == 0.86
    assert is_looser(0.85, found)
    assert not is_looser(0.86, found)
    assert "certified for 1 % wrong hits at 95 % confidence: threshold 0.86" in verdict(found)


def test_a_hundred_pairs_cannot_support_one_percent() -> None:
    found = report(pairs((100, True, 0.97, False)), target=0.01)
    assert verdict(found).startswith("cannot certify 1 % wrong hits at 95 % confidence: 199 more")
    assert not is_looser(0.5, found)


def test_certificates_break_their_promise_no_more_often_than_they_may() -> None:
    """200 draws from a world whose wrong share at each threshold is known exactly."""
    rng = random.Random(11)
    broken = given = 0
    for _ in range(200):
        # Wrong ever more often as the score falls: 0 at 1, 9 % at 0.7.
        scores = [rng.uniform(0.7, 1.0) for _ in range(1_500)]
        drawn = [(score, rng.random() < (1.0 - score) * 0.3) for score in scores]
        counts = [
            (at, sum(s >= at for s, _ in drawn), sum(s >= at and wrong for s, wrong in drawn))
            for at in reversed(GRID)
        ]
        certified = certify(counts, 0.02).threshold
        if certified is not None:
            given += 1
            broken += (1.0 - certified) * 0.3 / 2 > 0.02
    assert given > 80
    assert broken <= 0.05 * 200


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "no pairs"),
        (b'{"a": "x", "b": "y", "same": true}\n{"a": 1}', "line 2: expected"),
        (b'{"a": "x", "b": "y"}', "line 1: expected"),
        (b"\xff", "line 1: expected"),
        (b'{"a": "' + b"x" * 70_000 + b'"}', "line 1 has 70009 bytes"),
    ],
)
def test_a_file_of_pairs_with_a_mistake_is_refused_with_its_line(text: bytes, why: str) -> None:
    with pytest.raises(BadPairs, match=why):
        read_pairs(text)


def test_pairs_are_read_and_other_keys_ignored() -> None:
    line = json.dumps({"a": "x", "b": "y", "same": False, "kind": "negation"}).encode()
    assert read_pairs(line + b"\n\n" + line)[1].same is False


def test_the_plot_is_a_png_of_its_size() -> None:
    image = png(report(pairs((400, True, 0.93, False), (50, False, 0.85, True)), target=0.01))
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    at, kinds, body = 8, [], b""
    while at < len(image):
        (length,) = struct.unpack_from(">I", image, at)
        kind, data = image[at + 4 : at + 8], image[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", image, at + 8 + length)[0] == zlib.crc32(kind + data)
        kinds.append(kind)
        body += data if kind == b"IDAT" else b""
        at += 12 + length
    assert kinds == [b"IHDR", b"IDAT", b"IEND"]
    assert struct.unpack_from(">II", image, 16) == (WIDTH, HEIGHT)
    assert len(zlib.decompress(body)) == HEIGHT * (1 + 3 * WIDTH)
