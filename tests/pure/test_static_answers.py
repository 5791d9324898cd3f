"""Which written answer fits a question, and which questions have none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.config.model import StaticAnswer, StaticAnswers
from breakwater_gateway.router.static_answers import TEXT_MAX, Index, words_of

FAQ = StaticAnswers(
    (
        StaticAnswer(("When are you open?", "What are your opening hours?"), "9 to 17"),
        StaticAnswer(("How do I reset my password?", "I forgot my password"), "Use the link"),
        StaticAnswer(("Where is my order?", "Track my delivery"), "See the tracker"),
        StaticAnswer(("Do you ship to Canada?",), "Yes, to Canada"),
        StaticAnswer(("Can I return an item within 30 days?",), "Yes, for 30 days"),
        StaticAnswer(("営業時間は何時ですか",), "9時から17時"),
        StaticAnswer(("Wie kann ich mein Passwort ändern?",), "Über den Link"),
    )
)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("When are you open?", "9 to 17"),
        ("what are the OPENING HOURS", "9 to 17"),
        ("Hi, could you please tell me your opening hours?", "9 to 17"),
        ("how can I reset the password", "Use the link"),
        ("I've forgotten... I forgot my password!", "Use the link"),
        ("track deliveries", "See the tracker"),
        ("Where is my order", "See the tracker"),
        ("Do you ship to Canada?", "Yes, to Canada"),
        ("Do you ship to Norway?", None),
        ("Can I return an item within 30 days?", "Yes, for 30 days"),
        ("Can I return an item within 60 days?", None),
        ("Can't I return an item within 30 days?", None),
        ("営業時間は何時ですか\uff1f", "9時から17時"),
        ("wie kann ich mein passwort \u00c4NDERN", "Über den Link"),
        ("Write a poem about the sea", None),
        (
            "Explain how a password hash is reset by an attacker and what order of growth it has",
            None,
        ),
        ("", None),
        ("???", None),
    ],
)
def test_a_question_finds_its_answer_or_none(question: str, answer: str | None) -> None:
    found = Index(FAQ).answer(question)
    assert (found and found.answer) == answer


def test_below_the_threshold_the_configured_sentence_is_said() -> None:
    index = Index(StaticAnswers(FAQ.entries, default="Please try again later."))
    found = index.answer("Write a poem about the sea")
    assert found is not None
    assert (found.answer, found.question) == ("Please try again later.", "")
    assert found.score < FAQ.threshold


def test_the_threshold_is_the_configuration_s() -> None:
    question = "Do you ship to Norway?"
    best = Index(FAQ).best(question)
    assert best is not None
    assert Index(StaticAnswers(FAQ.entries, best.score)).answer(question) is not None
    assert Index(StaticAnswers(FAQ.entries, best.score + 0.001)).answer(question) is None


def test_a_similarity_of_meanings_counts_where_words_do_not() -> None:
    def similarity(question: str, written: str) -> float:
        return 0.9 if written == "Track my delivery" else 0.1

    found = Index(FAQ).answer("Has the parcel left yet?", similarity)
    assert found is not None
    assert (found.answer, found.score) == ("See the tracker", 0.9)


def test_of_equal_scores_the_first_written_wins() -> None:
    same = StaticAnswers((StaticAnswer(("a b",), "1"), StaticAnswer(("b a",), "2")))
    found = Index(same).answer("b a")
    assert found is not None
    assert (found.answer, found.score) == ("1", 1.0)


def test_without_any_answer_there_is_none() -> None:
    assert Index(StaticAnswers()).answer("anything") is None


TEXTS = st.text(max_size=80)


@given(st.lists(TEXTS, min_size=1, max_size=8), TEXTS)
def test_a_score_is_a_share_and_the_same_every_time(questions: list[str], asked: str) -> None:
    answers = StaticAnswers(tuple(StaticAnswer((q,), str(i)) for i, q in enumerate(questions)))
    first, second = Index(answers).best(asked), Index(answers).best(asked)
    assert first == second
    assert first is None or 0 <= first.score <= 1


@given(st.lists(TEXTS, min_size=1, max_size=8))
def test_a_written_question_is_found_by_itself(questions: list[str]) -> None:
    answers = StaticAnswers(tuple(StaticAnswer((q,), q) for q in questions))
    for question in questions:
        if words_of(question):
            found = Index(answers).best(question)
            assert found is not None
            assert found.score > 0.999
            assert words_of(found.answer) == words_of(question)


@given(st.text(min_size=TEXT_MAX, max_size=TEXT_MAX + 50))
def test_however_long_the_question_only_its_beginning_is_looked_at(text: str) -> None:
    assert words_of(text) == words_of(text[:TEXT_MAX])
