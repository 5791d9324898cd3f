"""The vectors of written questions: which are near, and when nothing can be told yet."""

import numpy as np
import pytest

from breakwater_gateway.cache.written import BATCH, QUESTIONS_MAX, Written, wanted
from breakwater_gateway.config.model import (
    Config,
    Embeddings,
    Model,
    Rung,
    StaticAnswer,
    StaticAnswers,
)

LOCAL = Embeddings(local="minilm")


def config(
    *entries: tuple[str, ...], embeddings: Embeddings | None = LOCAL, rung: str = "static"
) -> Config:
    ladder = (Rung("static"),) if rung == "static" else (Rung("cache"),)
    answers = tuple(StaticAnswer(questions, str(n)) for n, questions in enumerate(entries))
    return Config(
        {"m": Model("m", (), ladder=ladder)},
        embeddings=embeddings,
        static_answers=StaticAnswers(answers),
    )


def at(degrees: float) -> np.ndarray:
    return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], np.float32)


def test_nothing_is_wanted_without_embeddings_answers_or_a_rung_that_gives_them() -> None:
    assert wanted(config(("a",)))
    assert not wanted(config(("a",), embeddings=None))
    assert not wanted(config())
    assert not wanted(config(("a",), rung="cache"))
    assert Written(config(("a",), rung="cache")).missing() == []
    assert not Written(config(("a",), rung="cache")).complete


def test_the_nearest_come_first_and_of_equals_the_first_written() -> None:
    written = Written(config(("a", "b"), ("c",), ("d",)))
    assert written.missing() == ["a", "b", "c", "d"]
    written.learn([at(80), at(10), at(10), at(200)])
    assert written.complete
    found = written.near(at(0))
    assert [near.question for near in found] == ["b", "c", "a", "d"]
    assert found[0].similarity == pytest.approx(np.cos(np.radians(10)), abs=1e-6)


def test_a_rival_beyond_the_nearest_is_told_too() -> None:
    written = Written(config(tuple(f"a{n}" for n in range(20)), ("far",), ("farther",)))
    written.learn([at(n) for n in range(20)] + [at(90), at(120)])
    assert [near.question for near in written.near(at(0))] == [f"a{n}" for n in range(8)] + ["far"]


def test_without_a_rival_there_is_none_to_tell() -> None:
    written = Written(config(("a", "b")))
    written.learn([at(0), at(1)])
    assert [near.question for near in written.near(at(0))] == ["a", "b"]


def test_it_can_tell_once_each_question_was_tried_and_one_has_a_vector() -> None:
    questions = tuple(str(n) for n in range(BATCH + 1))
    written = Written(config(questions))
    assert written.near(at(0)) == ()
    written.learn([None] * len(written.missing()))
    assert written.missing() == [str(BATCH)]
    assert not written.complete
    written.learn([at(0)])
    assert written.complete
    assert written.near(at(0))[0].question == str(BATCH)


@pytest.mark.parametrize("bad", [np.zeros(2), np.array([np.nan, 1.0]), np.ones(3)])
def test_what_is_no_vector_is_near_to_nothing(bad: np.ndarray) -> None:
    written = Written(config(("a",), ("b",)))
    written.learn([at(0), bad.astype(np.float32)])
    assert written.complete
    assert [near.similarity for near in written.near(at(0))] == [pytest.approx(1.0), 0.0]


def test_a_question_written_twice_is_the_first_answer_s() -> None:
    written = Written(config(("a", "b"), ("a", "c")))
    assert written.missing() == ["a", "b", "c"]


def test_no_more_questions_than_the_bound_are_embedded() -> None:
    entries = [tuple(f"{n}.{m}" for m in range(50)) for n in range(QUESTIONS_MAX // 50 + 1)]
    assert len(Written(config(*entries))) == QUESTIONS_MAX
