"""The framing of streams: whatever is interleaved, lost or repeated, an answer is never spliced."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_protocol import MalformedReply, StreamGap
from breakwater_protocol.answers import StreamFrames

messages = st.builds(
    lambda attempt, seq, end: (
        {"breakwater-seq": str(seq)}
        | ({"breakwater-attempt": str(attempt)} if attempt > 1 else {})
        | ({"breakwater-end": "ok"} if end else {})
    ),
    st.integers(1, 3),
    st.integers(0, 6),
    st.booleans(),
)


@given(st.lists(messages, max_size=40))
def test_what_is_taken_is_a_beginning_of_one_attempt_without_gap_or_repeat(
    heard: list[dict[str, str]],
) -> None:
    frames = StreamFrames()
    taken: list[tuple[str, int]] = []
    broken: StreamGap | None = None
    try:
        for headers in heard:
            verdict = frames.take(headers)
            if verdict == "ignore":
                continue
            taken.append((headers.get("breakwater-attempt", "1"), int(headers["breakwater-seq"])))
            if verdict == "end":
                break
    except StreamGap as gap:
        broken = gap
    assert broken is None or broken.got != broken.expected == len(taken)
    assert [seq for _, seq in taken] == list(range(len(taken)))
    assert len({attempt for attempt, _ in taken}) <= 1


@given(st.data())
def test_a_whole_attempt_is_taken_whole_among_any_stragglers(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 8))
    frames = StreamFrames()
    got = 0
    for seq in range(length):
        if seq:
            for straggler in data.draw(st.lists(st.integers(0, 9), max_size=3)):
                said = {"breakwater-seq": str(straggler), "breakwater-attempt": "1"}
                assert frames.take(said) == "ignore"
        said = {"breakwater-seq": str(seq), "breakwater-attempt": "2"}
        assert frames.take(said) == "chunk"
        got += 1
    assert got == length
    assert frames.take({"breakwater-end": "partial"}) == "end"


@given(st.data())
def test_a_later_attempt_goes_on_only_where_it_says_so_and_only_at_the_number_that_is_due(
    data: st.DataObject,
) -> None:
    length = data.draw(st.integers(1, 5))
    frames = StreamFrames()
    for seq in range(length):
        assert frames.take({"breakwater-seq": str(seq)}) == "chunk"
    later = {"breakwater-seq": str(length), "breakwater-attempt": "2"}
    assert frames.take(later) == "ignore"
    seam = {
        **later,
        "breakwater-seam": "another",
        "breakwater-seq": str(data.draw(st.integers(0, 9))),
    }
    if seam["breakwater-seq"] != str(length):
        with pytest.raises(StreamGap):
            frames.take(seam)
        return
    assert frames.take(seam) == "chunk"
    # The one that was given up has lost its say, its end and a seam of its own included.
    stragglers: list[dict[str, str]] = [{}, {"breakwater-end": "partial"}, {"breakwater-seam": "a"}]
    for straggler in stragglers:
        assert frames.take({"breakwater-seq": str(length), **straggler}) == "ignore"
    last = {**later, "breakwater-seq": str(length + 1), "breakwater-end": "ok"}
    assert frames.take(last) == "end"


@given(st.dictionaries(st.sampled_from(["seq", "attempt", "end"]), st.text(max_size=30)))
def test_any_header_text_gives_a_verdict_or_one_of_two_errors(said: dict[str, str]) -> None:
    try:
        verdict = StreamFrames().take({f"breakwater-{name}": text for name, text in said.items()})
    except (StreamGap, MalformedReply):
        return
    assert verdict in {"chunk", "end", "ignore"}
