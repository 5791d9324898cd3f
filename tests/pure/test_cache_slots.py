"""The slot veto: what two questions must agree on, however near their vectors are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.cache.slots import conflict

CONFLICTS = [
    ("What is 15% of 200?", "What is 50% of 200?", "number"),
    ("Give me two rooms", "Give me three rooms", "number"),
    ("How do I pay £40,000?", "How do I pay £400,000?", "number"),
    ("A loan of 40k over ten years", "A loan of 50k over ten years", "number"),
    ("The 9:15 train", "The 9:45 train", "number"),
    ("Wake me at 7am", "Wake me at 7pm", "unit"),
    ("Send 100 USD", "Send 100 EUR", "unit"),
    ("What does error E404 mean?", "What does error E500 mean?", "number"),
    ("Is the A380X here?", "Is the A380Y here?", "code"),
    ("Cancel it", "Don't cancel it", "negation"),
    ("Plans with roaming", "Plans without roaming", "negation"),
    ("Do I pay as a member?", "Do I pay as a non-member?", "negation"),
    ("How do I enable dark mode?", "How do I disable dark mode?", "antonym"),
    ("How do I lock the card?", "How do I unlock the card?", "antonym"),
    ("Turn the light on", "Turn the light off", "antonym"),
    ("Is the drug suitable?", "Is the drug unsuitable?", "antonym"),
    ("Are you open on Monday?", "Are you open on Friday?", "class"),
    ("Paint it red", "Paint it blue", "class"),
    ("Does it cover me?", "Does it cover my child?", "class"),
    ("Trains from Leeds to York", "Trains from York to Leeds", "swap"),
    ("Book the room from the 3rd to the 5th", "Book the room from the 5th to the 3rd", "swap"),
    ("Does the Dyson fit?", "Does the Bosch fit?", "entity"),
    ("How do I ask Zendesk?", "how do i ask freshdesk?", "entity"),
    ("What does the gym cost?", "What does the pool cost?", "substitution"),
]
AGREE = [
    ("How do I reset my password?", "how do I  reset my password"),
    ("How do I reset my password?", "HOW DO I RESET MY PASSWORD?"),
    ("How much is a boiler service?", "What's the price of a boiler service?"),
    ("What's 15% of 200?", "Calculate fifteen percent of 200"),
    ("Are you open on Mondays?", "Are you open Monday?"),
    ("How do I read my electricity meter?", "How do I read my electricty meter?"),
    ("It's 5 km away", "It is 5 kilometres away"),
    ("Can't I pay by card?", "Cannot I pay by card?"),
    ("Pay £5", "Pay 5 pounds"),
    ("At the hotel, is there a safe?", "Is there a safe at the hotel?"),
]


@pytest.mark.parametrize(("a", "b", "kind"), CONFLICTS)
def test_a_difference_that_changes_the_answer_is_a_conflict(a: str, b: str, kind: str) -> None:
    assert conflict(a, b) == kind
    assert conflict(b, a), "and the other way round"


@pytest.mark.parametrize(("a", "b"), AGREE)
def test_another_way_to_say_the_same_is_none(a: str, b: str) -> None:
    assert conflict(a, b) == conflict(b, a) == ""


@pytest.mark.parametrize(("a", "b", "kind"), CONFLICTS)
def test_the_veto_has_degrees(a: str, b: str, kind: str) -> None:
    assert conflict(a, b, "off") == ""
    assert conflict(a, b, "numbers") == (kind if kind in {"number", "unit", "code"} else "")


@given(st.text(max_size=200))
def test_a_text_never_conflicts_with_itself_or_its_spacing(text: str) -> None:
    assert conflict(text, text) == ""
    assert conflict(text, f"  {text} ") == ""


@given(st.text(max_size=80), st.text(max_size=80))
def test_whatever_the_texts_are_it_answers_and_order_does_not_matter(a: str, b: str) -> None:
    assert bool(conflict(a, b)) == bool(conflict(b, a))
