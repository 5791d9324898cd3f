"""Which written answer fits a question, and which questions have none."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from breakwater_gateway.cache.slots import conflict
from breakwater_gateway.config.model import StaticAnswer, StaticAnswers
from breakwater_gateway.router.static_answers import TEXT_MAX, Index, words_of
from breakwater_protocol.cache import Near

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


SHOP = StaticAnswers(
    (
        StaticAnswer(("Cancel my order", "I want to cancel an order"), "cancel"),
        StaticAnswer(("Keep my order as it is",), "keep"),
        StaticAnswer(("Track my delivery",), "track"),
        StaticAnswer(("Send me 2 samples",), "two"),
        StaticAnswer(("Where is the office in London?",), "london"),
    )
)


def near(*pairs: tuple[str, float]) -> list[Near]:
    return [Near(question, cosine) for question, cosine in pairs]


CANCEL, TRACK = "I want to cancel an order", "Track my delivery"

MEANT = [
    # What words cannot find, meaning does, from the threshold on.
    ("Has the parcel left yet?", near((TRACK, 0.85), (CANCEL, 0.6)), ("track", "meaning", 0.85)),
    ("Has the parcel left yet?", near((TRACK, 0.84), (CANCEL, 0.5)), None),
    # Two answers that are both near: neither is sure, by as much as the other is nearer than the margin.
    ("Where is the parcel?", near((TRACK, 0.95), (CANCEL, 0.75)), ("track", "meaning", 0.90)),
    ("Where is the parcel?", near((TRACK, 0.95), (CANCEL, 0.84)), None),
    # Two questions of one answer are no rivals.
    (
        "Please call the purchase off",
        near((CANCEL, 0.9), ("Cancel my order", 0.89)),
        ("cancel", "meaning", 0.9),
    ),
    # Words that say the same answer count for it, words that say another do not count at all.
    ("track delivery", near((TRACK, 0.72), (CANCEL, 0.4)), ("track", "meaning", 0.87)),
    ("track delivery", near((TRACK, 0.69), (CANCEL, 0.4)), None),
    ("track delivery", near((CANCEL, 0.72), (TRACK, 0.4)), None),
    # The very words of a written question need nobody's consent.
    ("track my delivery!", near((TRACK, 0.5), (CANCEL, 0.4)), ("track", "words", 1.0)),
    # What the answer hangs on must not differ, however near it is.
    ("I don't want to cancel an order", near((CANCEL, 0.97), (TRACK, 0.3)), None),
    ("Send me 3 samples", near(("Send me 2 samples", 0.97), (TRACK, 0.3)), None),
    ("Where is the office in Paris?", near(("Where is the office in London?", 0.96)), None),
    # What differs there is still near: the next one is not sure beside it.
    (
        "I don't want to cancel an order",
        near((CANCEL, 0.97), ("Keep my order as it is", 0.86)),
        None,
    ),
    # Nobody could tell, or told of another configuration: words alone.
    ("track delivery", [], ("track", "words", 0.975)),
    ("track delivery", near(("no such question", 0.99)), ("track", "words", 0.975)),
    ("track delivery", near((TRACK, math.nan)), ("track", "words", 0.975)),
    ("Has the parcel left yet?", [], None),
]


@pytest.mark.parametrize(("question", "told", "expected"), MEANT)
def test_meaning_finds_what_words_do_not_and_has_the_last_word(
    question: str, told: list[Near], expected: tuple[str, str, float] | None
) -> None:
    found = Index(SHOP).answer(question, told)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert (found.answer, found.by) == expected[:2]
        assert found.score == pytest.approx(expected[2], abs=0.001)


def test_the_threshold_of_meaning_is_the_configuration_s() -> None:
    told = near((TRACK, 0.7), (CANCEL, 0.2))
    strict = Index(replace(SHOP, similarity=0.71)).answer("Has the parcel left yet?", told)
    loose = Index(replace(SHOP, similarity=0.69)).answer("Has the parcel left yet?", told)
    assert strict is None
    assert loose is not None


@pytest.mark.parametrize("threshold", [0.1, 0.4, 0.6])
@pytest.mark.parametrize(
    "question",
    ["Don't cancel my order", "I never wanted to cancel an order", "Send me 3 samples"],
)
def test_however_low_the_threshold_words_do_not_answer_the_opposite(
    question: str, threshold: float
) -> None:
    found = Index(replace(SHOP, threshold=threshold)).answer(question)
    assert found is None or found.answer not in {"cancel", "two"}


@given(
    st.text(max_size=60),
    st.lists(
        st.builds(
            Near,
            st.sampled_from([q for entry in SHOP.entries for q in entry.questions] + ["other"]),
            st.floats(),
        ),
        max_size=50,
    ),
)
def test_whatever_is_told_a_match_is_at_or_above_the_threshold_of_its_way(
    text: str, told: list[Near]
) -> None:
    found = Index(SHOP).answer(text, told)
    if found is not None:
        assert found.score <= 1
        assert found.score >= (SHOP.similarity if found.by == "meaning" else SHOP.threshold)
        assert not conflict(found.question, text) or found.by == "words"


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
