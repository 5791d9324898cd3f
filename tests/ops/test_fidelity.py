"""`ops.fidelity` on hand-made recordings: what it counts, what it finds, and how it exits."""

import json
import lzma
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ops.fidelity import __main__ as command
from ops.fidelity import equivalence as e
from ops.fidelity import refusals, report, streams
from ops.fidelity.finding import excused, wrong
from ops.fidelity.replay import Outcome, classifier, replay
from ops.fidelity.rows import Row, Unreadable, files, read, rows

from breakwater_gateway.worker.wire import neutral as n
from breakwater_protocol import failures as f

Json = dict[str, Any]

ASKED: Final[Json] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
USAGE: Final[Json] = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
TOLD: Final[Json] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello"},
            "finish_reason": "stop",
        }
    ],
    "usage": USAGE,
}


def chunk(delta: Json, finish: str | None = None, **more: object) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    body = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return "data: " + json.dumps(body | {"choices": [choice]} | more) + "\n\n"


STREAM: Final = (
    chunk({"role": "assistant", "content": ""})
    + chunk({"content": "Héllo ☂"})
    + chunk({}, "stop", usage=USAGE)
    + "data: [DONE]\n\n"
)


def recording(
    answer: Json | str | None,
    *,
    asked: Json | None = ASKED,
    api: str = "chat",
    status: int = 200,
    ident: str = "row-1",
) -> Json:
    streams = isinstance(answer, str)
    return {
        "id": ident,
        "provider": "openai",
        "api": api,
        "stream": streams,
        "request": {
            "method": "POST",
            "url": "https://api.openai.com/v1/chat/completions",
            "headers": {"Authorization": "Bearer secret-key-of-ours"},
            "body_kind": "json" if asked else "none",
            "body": asked,
        },
        "response": {
            "status": status,
            "headers": {"Content-Type": "application/json"},
            "body_kind": "text" if streams else "json" if answer else "none",
            "body": answer,
        },
    }


def row(*args: Any, provider: str = "openai", **more: Any) -> Row:  # noqa: ANN401 - of `recording`
    return read(json.dumps(recording(*args, **more)).encode(), provider)


def reasons(outcome: Outcome) -> list[str]:
    return [finding.reason for finding in outcome.findings]


def folder(where: Path, *given: Json) -> Path:
    recordings = where / "recordings"
    recordings.mkdir()
    with lzma.open(recordings / "openai.jsonl.xz", "wt") as out:
        out.writelines(json.dumps(one) + "\n" for one in given)
    return recordings


# ---- rows


def test_recordings_are_read_packed_or_plain(tmp_path: Path) -> None:
    recordings = folder(tmp_path, recording(TOLD), recording(STREAM))
    (recordings / "xai.jsonl").write_text(json.dumps(recording(TOLD)) + "\n\n")
    (recordings / "README.md").write_text("no recording")
    found = [(one.provider, one.stream) for path in files(recordings) for one in rows(path)]
    assert sorted(found) == [("openai", False), ("openai", True), ("xai", False)]


def test_bodies_are_the_bytes_that_were_on_the_wire() -> None:
    assert row(STREAM).body == STREAM.encode()
    assert row(TOLD).headers == {"content-type": "application/json"}
    assert row(None, asked=None).request_body == b""


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"id": 1}', b"\xff", b'"' * 3])
def test_a_line_that_is_no_recording_is_unreadable(line: bytes) -> None:
    with pytest.raises(Unreadable):
        read(line, "openai")


# ---- replays


@pytest.mark.parametrize("answer", [TOLD, STREAM])
def test_a_good_exchange_passes(answer: Json | str) -> None:
    assert replay(row(answer)).findings == ()


def test_an_api_that_no_dialect_speaks_is_not_replayed_and_never_passes() -> None:
    outcome = replay(row({"results": []}, api="moderations"))
    assert outcome.verdict == "not replayed"
    assert reasons(outcome) == ["moderations"]


def test_a_request_that_the_provider_refused_may_be_refused() -> None:
    error = {"error": {"message": "no messages", "type": "invalid_request_error"}}
    outcome = replay(row(error, asked={"model": "m"}, status=400))
    assert outcome.verdict == "passed"
    assert outcome.findings[0].kind == "excused"


def test_a_request_that_the_provider_took_may_not_be_refused() -> None:
    assert reasons(replay(row(TOLD, asked={"model": "m"}))) == [
        "request: refused, but the provider took it"
    ]


def test_a_stream_that_tells_an_error_must_break() -> None:
    error = 'data: {"error": {"message": "overloaded", "code": 503}}\n\n'
    assert replay(row(chunk({"content": "He"}) + error)).verdict == "passed"


def test_an_answer_that_is_none_fails_with_what_it_was_taken_for() -> None:
    assert reasons(replay(row({"id": "x", "choices": []}))) == ["answer: taken for MalformedAnswer"]


def test_a_check_that_raises_is_a_finding_and_the_rest_goes_on() -> None:
    asked = ASKED | {"messages": [{"role": "user", "content": "Hi", "name": None}]}
    assert replay(row("data: {half\n\n", asked=asked)).verdict == "failed"


# ---- refusals


def test_a_refusal_agrees_with_its_status_and_keeps_the_key_to_itself() -> None:
    def classify(status: int, _headers: object, _body: bytes, *, now: float) -> f.Failure:
        return f.RateLimited("with secret-key-of-ours", status, retry_after_s=now * float("inf"))

    found = [one.reason for one in refusals.refused(row({}, status=401), classify)]
    assert found == [
        "error: 401 is RateLimited",
        "error: the retry hint is not finite",
        "error: the message holds the key",
    ]


def test_labelled_errors_are_judged(tmp_path: Path) -> None:
    path = tmp_path / "errors.jsonl"
    labelled = {"provider": "openai", "headers": {}, "body": {"error": {"message": "m"}}}
    lines = [
        labelled | {"status": 401, "label": "auth"},
        labelled | {"status": 429, "label": "overloaded", "ref": "r"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    verdicts = refusals.judge(path, classifier)
    assert verdicts.table() == {"auth": {"KeyRejected": 1}, "overloaded": {"RateLimited": 1}}
    assert [one.ref for one in verdicts.all if not one.right] == ["r"]


# ---- streams


class Says:
    """A decoder that gives events at its end, or others when what it was fed came in pieces."""

    def __init__(self, whole: list[n.StreamEvent], cut: list[n.StreamEvent]) -> None:
        self._events = (whole, cut)
        self._fed = 0

    def feed(self, data: bytes) -> list[n.StreamEvent]:
        self._fed += bool(data)
        return []

    def end(self) -> list[n.StreamEvent]:
        return self._events[self._fed > 1]


GOOD: Final[list[n.StreamEvent]] = [
    n.Began(),
    n.PartBegan(0, n.Text(text="")),
    n.Grew(0, text="a"),
    n.PartEnded(0),
    n.Finished("stop"),
    n.Done(),
]


def test_a_decoder_that_minds_cuts_is_found() -> None:
    found = [*streams.cut_anywhere(lambda: Says(GOOD, GOOD[:-1]), b"abc", GOOD)]
    assert [one.reason for one in found] == ["stream: cut in two, it gives other events"]
    assert not [*streams.cut_anywhere(lambda: Says(GOOD, GOOD), b"abc", GOOD)]


@pytest.mark.parametrize(
    ("events", "broken"),
    [
        (GOOD, set[str]()),
        ([], {"no events"}),
        (GOOD[1:], {"does not start with Began"}),
        (GOOD[:1] + GOOD, {"begins twice"}),
        (
            [GOOD[0], n.PartBegan(1, n.Text(text="")), n.PartEnded(1)],
            {"parts are not counted one by one"},
        ),
        ([GOOD[0], n.Grew(0)], {"a part grows that is not open"}),
        ([GOOD[0], n.PartEnded(0)], {"a part ends that is not open"}),
        (GOOD[:2], {"a part never ends"}),
        ([*GOOD[:-1], *GOOD[-2:]], {"a candidate finishes twice"}),
        ([*GOOD, n.Done()], {"goes on after its end"}),
    ],
)
def test_streams_out_of_order_are_found(events: list[n.StreamEvent], broken: set[str]) -> None:
    assert {one.reason.removeprefix("stream: ") for one in streams.contract(events)} == broken


def test_long_streams_are_cut_at_the_same_places_every_time() -> None:
    body = ("data: é☂\r\n\r\n" * 900).encode()
    assert [*streams.cuts(body)] == [*streams.cuts(body)]
    assert all(0 < at < len(body) for at in streams.cuts(body))
    assert [*streams.cuts(b"abc")] == [1, 2]


# ---- equivalence

JSON: Final = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(JSON, JSON)
def test_values_differ_exactly_where_their_json_does(one: object, other: object) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (e.difference(one, other) is None) == same
    assert e.difference(one, one) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "where"),
    [
        ({"a": [{"b": 1}]}, {"a": [{"b": 2}]}, ".a[].b differs"),
        ({}, {"a": 1}, ".a is lost"),
        ({"a": 1}, {}, ".a is added"),
        ([1], [1, 2], "[] has another length"),
        (1, True, "all differs"),
        ({"a": 1.0}, {"a": 1}, None),
    ],
)
def test_a_difference_says_where(ours: object, theirs: object, where: str | None) -> None:
    found = e.difference(ours, theirs)
    assert (found and found.where) == where


def test_what_is_lost_is_found_in_json_within_text_too() -> None:
    kept = {"arguments": '{"city": "Rome", "days": 2}', "type": "x"}
    assert e.lost({"input": {"city": "Rome", "days": 2.0}, "type": "y", "none": ""}, kept) == []
    assert e.lost({"input": {"city": "Oslo"}}, kept) == ["'Oslo'"]


# ---- the report and the command


def test_the_table_counts_and_names_rows() -> None:
    outcomes = [
        Outcome("p", "chat", "1"),
        Outcome("p", "chat", "2", (wrong("request: .a is lost"), excused("a rule"))),
        Outcome("p", "chat", "3", (wrong("request: .a is lost"),)),
    ]
    found = report.Report(report.count(outcomes))
    assert (found.replayed, found.passed, round(found.percent)) == (3, 1, 33)
    text = "\n".join(report.table(found, rows=1))
    assert "2 failed: request: .a is lost\n         2 and 1 more" in text
    assert "1 a rule" in text


@pytest.mark.parametrize(("least", "code"), [("0", 0), ("50", 0), ("99", 1)])
def test_the_command_exits_by_its_threshold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], least: str, code: int
) -> None:
    bad = recording({"id": "x", "choices": []}, ident="row-2")
    recordings = folder(tmp_path, recording(TOLD), bad, recording({}, api="models"))
    assert command.main([str(recordings), "--min", least, "--jobs", "1"]) == code
    shown = capsys.readouterr()
    assert "50.00 % of what was replayed passed" in shown.out
    assert "row-2" in shown.out
    assert "1 of 1 files" in shown.err


def test_the_command_writes_lines_for_machines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recordings = folder(tmp_path, recording(TOLD))
    (recordings / "openai.jsonl").write_text("{\n")
    assert command.main([str(recordings), "--json", "--jobs", "1"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["kind"] for line in lines] == ["tally", "tally", "row", "total"]
    assert lines[-1]["percent"] == 50


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    assert command.main([str(tmp_path)]) == 2
