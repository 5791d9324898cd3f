"""Conversations that do not fit, made shorter without becoming invalid, in every caller's dialect."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.router.shorten import (
    TRANSCRIPT_MAX,
    Shortened,
    shorten,
    summary_request,
    with_summary,
)

LONG = "x" * 1000
KEYS = {"chat": "messages", "messages": "messages", "responses": "input", "generate": "contents"}


def turn(api: str, word: str) -> list[dict[str, Any]]:
    """`s` system, `u` user, `a` assistant, `c1` a call, `r1` its result."""
    kind, id_ = word[0], word[1:]
    match api, kind:
        case "chat", "c":
            call = {"id": id_, "type": "function", "function": {"name": "f", "arguments": "{}"}}
            return [{"role": "assistant", "content": None, "tool_calls": [call]}]
        case "chat", "r":
            return [{"role": "tool", "tool_call_id": id_, "content": LONG}]
        case "messages", "c":
            block = {"type": "tool_use", "id": id_, "name": "f", "input": {}}
            return [{"role": "assistant", "content": [block]}]
        case "messages", "r":
            result = {"type": "tool_result", "tool_use_id": id_, "content": LONG}
            return [{"role": "user", "content": [result]}]
        case "responses", "c":
            call = {"type": "function_call", "call_id": id_, "name": "f", "arguments": "{}"}
            return [{"type": "reasoning", "id": f"rs{id_}", "summary": []}, call]
        case "responses", "r":
            return [{"type": "function_call_output", "call_id": id_, "output": LONG}]
        case "generate", "c":
            return [{"role": "model", "parts": [{"functionCall": {"name": f"f{id_}", "args": {}}}]}]
        case "generate", "r":
            response = {"name": f"f{id_}", "response": {"r": LONG}}
            return [{"role": "user", "parts": [{"functionResponse": response}]}]
        case "generate", _:
            role = "user" if kind == "u" else "model"
            return [{"role": role, "parts": [{"text": word + LONG}]}]
        case _:
            role = {"s": "system", "u": "user", "a": "assistant"}[kind]
            return [{"role": role, "content": word + LONG}]


def body(api: str, words: str) -> bytes:
    turns = [each for word in words.split() for each in turn(api, word)]
    return json.dumps({"model": "m", KEYS[api]: turns, "odd": 1e2}).encode()


def kept(api: str, words: str, found: Shortened | None) -> str:
    """The words that are left, all those of a dropped entry gone."""
    if found is None:
        return "nothing"
    left = [json.dumps(each) for each in json.loads(found.body)[KEYS[api]]]
    out = []
    for word in words.split():
        parts = [json.dumps(each) for each in turn(api, word)]
        if left[: len(parts)] == parts:
            left = left[len(parts) :]
            out.append(word)
    assert not left
    return " ".join(out)


@pytest.mark.parametrize("api", KEYS)
@pytest.mark.parametrize(
    ("words", "share", "left"),
    [
        # The oldest exchange goes first, as many as it takes.
        ("u1 a1 u2 a2 u3", 0.9, "u2 a2 u3"),
        ("u1 a1 u2 a2 u3", 0.5, "u3"),
        # System prompts stay wherever they stand.
        ("s u1 a1 u2", 0.9, "s u2"),
        # A call and its result go together.
        ("u1 c1 r1 a1 u2", 0.9, "u2"),
        # Of the last exchange only older rounds of tools go, and never the last one.
        ("u1 c1 r1 c2 r2 c3 r3", 0.9, "u1 c2 r2 c3 r3"),
        ("u1 c1 r1 c2 r2 c3 r3", 0.1, "u1 c3 r3"),
        # What began in the middle begins with the user again.
        ("a0 u1 a1 u2", 0.9, "u1 a1 u2"),
        # Nothing but the last turn: nothing may go.
        ("u1", 0.1, "nothing"),
        ("s u1 a1", 0.1, "nothing"),
        ("s", 0.1, "nothing"),
    ],
)
def test_what_goes_and_what_stays(api: str, words: str, share: float, left: str) -> None:
    if api == "generate" and "s" in words:
        words, left = words.replace("s ", "").replace("s", "a1"), left.replace("s ", "")
    found = shorten(body(api, words), api, needed=1000, limit=int(1000 * share))
    assert kept(api, words, found) == left


def test_without_figures_half_is_kept() -> None:
    found = shorten(body("chat", "u1 a1 u2 a2 u3 a3 u4"), "chat")
    assert kept("chat", "u1 a1 u2 a2 u3 a3 u4", found) == "u3 a3 u4"


def test_everything_else_of_the_body_stays_as_it_came() -> None:
    found = shorten(body("chat", "u1 a1 u2"), "chat")
    assert found is not None
    assert found.body.startswith(b'{"model":"m","messages":[{"role": "user", "content": "u2x')
    assert found.body.endswith(b'"odd":100.0}')
    assert len(found.removed) == 2


@pytest.mark.parametrize(
    "given",
    [b"", b"[]", b"{}", b'{"messages":1}', b'{"messages":[1]}', b'{"messages":["a"]}', b"\xff"],
)
@pytest.mark.parametrize("api", [*KEYS, "embeddings"])
def test_what_is_no_conversation_is_left_alone(given: bytes, api: str) -> None:
    assert shorten(given, api) is None


def test_a_text_for_input_has_no_turns() -> None:
    assert shorten(b'{"model":"m","input":"hello"}', "responses") is None


WORDS = st.lists(st.sampled_from("usaacr"), min_size=1, max_size=30)


@given(st.sampled_from(sorted(KEYS)), WORDS, st.integers(1, 200))
def test_a_shortened_conversation_is_valid_if_the_long_one_was(
    api: str, kinds: list[str], limit: int
) -> None:
    """Every call is answered at once or by a later result; results name a call before them."""
    words, open_calls, count = [], [], 0
    for kind in kinds:
        if kind == "c":
            count += 1
            open_calls.append(f"{count}")
            words.append(f"c{count}")
        elif kind == "r":
            if open_calls:
                words.append(f"r{open_calls.pop(0)}")
        elif not open_calls and not (kind == "s" and api == "generate"):
            count += 1
            words.append(f"{kind}{count}")
    text = " ".join(words)
    found = shorten(body(api, text), api, needed=200, limit=limit)
    if found is None:
        return
    before, after = json.loads(body(api, text))[KEYS[api]], json.loads(found.body)[KEYS[api]]
    assert 0 < len(before) - len(after) == len(found.removed)
    rest = iter(before)
    assert all(each in rest for each in after)  # in order, nothing made up
    users = [w for w in words if w[0] == "u"]
    left = kept(api, text, found).split()
    assert users[-1] in left
    assert [w for w in words if w[0] == "s"] == [w for w in left if w[0] == "s"]
    assert next(w for w in left if w[0] != "s")[0] == "u"
    if api != "generate":  # whose calls have no ids to tell them apart
        calls, results = ({w[1:] for w in left if w[0] == k} for k in "cr")
        answered = {w[1:] for w in words if w[0] == "r"}
        assert results == calls & answered


@pytest.mark.parametrize("api", KEYS)
def test_a_summary_stands_where_the_dialect_says_things_beforehand(api: str) -> None:
    found = shorten(body(api, "u1 c1 r1 a1 u2"), api)
    assert found is not None
    asked = json.loads(summary_request(found.removed, model="fast"))
    assert asked["model"] == "fast"
    assert "u1xxx" in asked["messages"][1]["content"]
    tree = json.loads(with_summary(found, api, "They met."))
    turns = tree[KEYS[api]]
    match api:
        case "messages":
            assert tree["system"].endswith("They met.")
            assert len(turns) == 1
        case "generate":
            assert tree["systemInstruction"]["parts"][0]["text"].endswith("They met.")
            assert len(turns) == 1
        case _:
            assert turns[0]["role"] == "system"
            assert turns[0]["content"].endswith("They met.")
            assert len(turns) == 2


def test_a_summary_joins_a_system_prompt_that_is_there() -> None:
    for system, expected in (
        ("Be kind.", "Be kind.\n\nSummary"),
        ([{"type": "text", "text": "Be kind."}], None),
    ):
        tree = {**json.loads(body("messages", "u1 a1 u2")), "system": system}
        found = shorten(json.dumps(tree).encode(), "messages")
        assert found is not None
        got = json.loads(with_summary(found, "messages", "They met."))["system"]
        if expected:
            assert got.startswith(expected)
        else:
            assert got[0] == system[0]
            assert got[1]["text"].endswith("They met.")


def test_a_summary_comes_after_the_system_prompt_of_a_chat() -> None:
    found = shorten(body("chat", "s1 u1 a1 u2"), "chat")
    assert found is not None
    turns = json.loads(with_summary(found, "chat", "They met."))["messages"]
    assert [t["role"] for t in turns] == ["system", "system", "user"]
    assert "They met." in turns[1]["content"]


def test_what_is_summed_up_is_bounded_and_holds_no_media() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    text = {"type": "text", "text": "y" * (2 * TRANSCRIPT_MAX)}
    tree = json.loads(body("chat", "u1 a1 u2"))
    tree["messages"][0]["content"] = [image, text]
    found = shorten(json.dumps(tree).encode(), "chat")
    assert found is not None
    said = json.loads(summary_request(found.removed, model="fast"))["messages"][1]["content"]
    assert len(said) < TRANSCRIPT_MAX + 100
    assert "AAAA" not in said
