"""All recordings through the dialects, as `python -m ops.fidelity` replays them.

What is special to one dialect is in its own `test_<dialect>_recordings.py`.
"""

from collections import Counter
from pathlib import Path
from typing import Final

import pytest
from ops.fidelity import refusals
from ops.fidelity.replay import Outcome, classifier, replay
from ops.fidelity.rows import files, rows
from tests.wire.recordings import RECORDINGS, SHARED, needs_recordings

pytestmark = needs_recordings

REPLAYED_MIN: Final = {
    "chat": 1700,
    "responses": 780,
    "messages": 770,
    "generateContent": 660,
    "converse": 230,
    "embeddings": 130,
    "chat_v2": 70,
    "invoke": 60,
    "ollama_chat": 18,
    "count_tokens": 18,
    "predict": 13,
}
"""Rows of an API that were there and are replayed: a check that is never reached shows here."""
EXCUSED_MAX: Final = 20
"""Rows that pass by a rule's help; more would mean that a rule excuses what it should not."""


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return []


@pytest.mark.parametrize("path", files(RECORDINGS), ids=lambda path: path.name)
def test_every_recording_replays(path: Path, outcomes: list[Outcome]) -> None:
    found = [replay(row) for row in rows(path)]
    outcomes += found
    assert not [
        (outcome.id, [finding.reason for finding in outcome.findings])
        for outcome in found
        if outcome.verdict == "failed"
    ]


def test_each_api_is_replayed_and_few_rows_need_a_rule_s_help(outcomes: list[Outcome]) -> None:
    replayed = Counter(one.api for one in outcomes if one.verdict != "not replayed")
    if not outcomes:
        pytest.skip("runs after the replays of all files")
    assert {
        api: replayed[api] for api, least in REPLAYED_MIN.items() if replayed[api] < least
    } == {}
    assert sum(one.verdict == "passed" and bool(one.findings) for one in outcomes) <= EXCUSED_MAX


def test_every_labelled_error_is_classified_as_labelled() -> None:
    verdicts = refusals.judge(SHARED / "data" / "errors.jsonl", classifier)
    assert len(verdicts.all) >= 79
    assert [verdict for verdict in verdicts.all if not verdict.right] == []
