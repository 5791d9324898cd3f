"""The token codec: any text is one legal token, and back; nothing else decodes."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from breakwater_protocol.subjects import (
    TOKEN_MAX,
    BadToken,
    Subjects,
    decode_token,
    encode_token,
)

# Lone surrogates included: a JSON string may hold them.
anything = st.text(st.characters(codec=None, categories=None, exclude_categories=()), max_size=300)
LEGAL = re.compile(r"[A-Za-z0-9_=-]+")


@given(anything)
@example("")
@example("openai/gpt-4.1")
@example("*.>")
@example(" \t\r\n\x00")
@example("\ud800")
@example("=2F")
def test_any_text_is_one_legal_token_and_comes_back(text: str) -> None:
    try:
        token = encode_token(text)
    except BadToken:
        assert len(text.encode("utf-8", "surrogatepass")) * 3 > TOKEN_MAX
        return
    assert LEGAL.fullmatch(token)
    assert len(token) <= TOKEN_MAX
    assert decode_token(token) == text


@given(anything, anything)
def test_two_texts_never_share_a_token(one: str, other: str) -> None:
    try:
        tokens = encode_token(one), encode_token(other)
    except BadToken:
        return
    assert (tokens[0] == tokens[1]) == (one == other)


@given(st.text(st.sampled_from("aZ0_-=2Ff./\x00\u00e9"), max_size=12))
def test_what_decodes_is_what_the_codec_made(token: str) -> None:
    try:
        text = decode_token(token)
    except BadToken:
        return
    assert encode_token(text) == token


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("", "="),
        ("default", "default"),
        ("openai/gpt-4.1", "openai=2Fgpt-4=2E1"),
        ("a b", "a=20b"),
        ("*", "=2A"),
        (">", "=3E"),
        ("=", "=3D"),
        ("\u00e9", "=C3=A9"),
    ],
)
def test_the_codec_is_the_published_one(text: str, token: str) -> None:
    assert encode_token(text) == token
    assert decode_token(token) == text


@pytest.mark.parametrize(
    "token",
    [
        *("a.b", "*", ">", " ", "a\n", "=2", "=2f", "=GG", "=FF", "=41", "\u00e9", "=2Fa="),
        "a" * (TOKEN_MAX + 1),
    ],
)
def test_what_the_codec_cannot_have_made_is_refused(token: str) -> None:
    with pytest.raises(BadToken):
        decode_token(token)


def test_a_token_has_a_longest_length_plain_or_escaped() -> None:
    assert encode_token("a" * TOKEN_MAX) == "a" * TOKEN_MAX
    for text in ("a" * (TOKEN_MAX + 1), "." * (TOKEN_MAX // 3 + 1), "\u00e9" * 5000):
        with pytest.raises(BadToken):
            encode_token(text)


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_subject_gives_back_the_names_it_was_made_of(target: str, state: str) -> None:
    subject = Subjects().health
    concrete = subject.at(target, state)
    assert concrete.count(".") == subject.any().count(".")
    assert subject.names(concrete) == (target, state)


def test_a_subject_of_another_form_has_no_names() -> None:
    health = Subjects().health
    for other in ("bw.v1.evt.health.a", "bw.v1.evt.alert.a.b", "bw.v1.evt.health.a.b.c", ""):
        with pytest.raises(BadToken):
            health.names(other)
    with pytest.raises(TypeError):
        health.at("only-one")


@pytest.mark.parametrize("root", ["", ".", "a..b", "bw.*", "bw.>", "b w", ".bw", "bw."])
def test_a_root_is_plain_tokens(root: str) -> None:
    with pytest.raises(BadToken):
        Subjects(root)


def test_no_two_subjects_of_one_breakwater_can_be_confused() -> None:
    subjects = Subjects()
    patterns = [subject.any().split(".") for subject in subjects.every()]
    for index, one in enumerate(patterns):
        for other in patterns[index + 1 :]:
            overlap = len(one) == len(other) and all(
                a == b or "*" in (a, b) for a, b in zip(one, other, strict=True)
            )
            assert not overlap, (one, other)
