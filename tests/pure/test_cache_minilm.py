"""The real MiniLM, where it is installed, and what one rule serves of the adversarial pairs."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from breakwater_gateway.cache.embed.minilm import MiniLM, is_available
from breakwater_gateway.cache.slots import conflict

WHY = is_available()
PAIRS = Path(os.environ.get("BREAKWATER_SHARED", "")) / "data" / "pairs" / "adversarial.jsonl"

pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY or "installed")


@pytest.fixture(scope="module")
def model() -> MiniLM:
    return MiniLM()


def cosine(model: MiniLM, a: str, b: str) -> float:
    first, second = model.embed(a), model.embed(b)
    assert first is not None
    assert second is not None
    return float(first @ second)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    # Of the same weights in 32 bits.
    [
        ("How do I reset my password?", "I forgot my password, what do I do?", 0.8526),
        ("How do I reset my password?", "Do you deliver on weekends?", -0.1131),
    ],
)
def test_eight_bits_a_channel_keep_the_cosines(
    model: MiniLM, a: str, b: str, expected: float
) -> None:
    assert cosine(model, a, b) == pytest.approx(expected, abs=0.02)


def test_a_text_beyond_the_window_has_no_vector(model: MiniLM) -> None:
    assert model.embed("word " * 254) is not None
    assert model.embed("word " * 255) is None


@pytest.mark.skipif(not PAIRS.is_file(), reason="the pairs are not here: set BREAKWATER_SHARED")
def test_adversarial_pairs_are_told_apart(model: MiniLM) -> None:
    pairs = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    served = np.array(
        [
            cosine(model, pair["a"], pair["b"]) >= 0.85 and not conflict(pair["a"], pair["b"])
            for pair in pairs
        ]
    )
    same = np.array([pair["same"] for pair in pairs])
    assert served[same].mean() >= 0.45
    assert served[~same].mean() <= 0.015
