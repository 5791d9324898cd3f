"""Static answers: which of the written answers fits a question, by its words.

The score of a question against a written one is in 0…1: the share of words that they have in common, each word
weighed by how rare it is among the written questions (inverse document frequency, Spärck Jones 1972), as the
harmonic mean of both directions (Dice), so that neither a long question that happens to hold a short one nor
the reverse counts as the same. Words that only hold a sentence together weigh little. Different numbers, or a
negation on one side alone, are a different question.
"""

import math
import re
import unicodedata
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from breakwater_gateway.config.model import StaticAnswers

TEXT_MAX: Final = 2_000
"""Characters of a question that are looked at: what is longer is no question of a list."""
WORDS_MAX: Final = 200
_GLUE: Final = 0.15
"""Weight of a function word, as a share of what its rarity would give it."""
_NEGATED: Final = 0.5

Similarity = Callable[[str, str], float]
"""How near two texts are in meaning, 0…1: embeddings, where there are any."""

_WORD: Final = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)?")
# Written without spaces between words: taken in pairs of characters.
_UNSPACED: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+"
)
_GLUE_WORDS: Final = (
    "a an and any are as at be been but by can could did do does for from get had has have how i if in is it its"
    " me my of on or our please should so some tell that the their them there they this to us was we were what"
    " when where which who why will with would you your hi hello know want need about"
    " der die das ein eine ist sind und wie was wo wann ich sie wir le la les un une est et que qui comment je"
    " vous el los las es y como donde cuando yo"
)
_NEGATING_WORDS: Final = (
    "not no never without cannot can't don't doesn't isn't won't nicht kein keine nie ohne pas jamais sans sin"
    " nunca"
)
_FUNCTION_WORDS: Final = frozenset(_GLUE_WORDS.split())
_NEGATIONS: Final = frozenset(_NEGATING_WORDS.split())


class Match(Struct, frozen=True):
    answer: str
    score: float
    question: str
    """As it was written; empty for the default sentence."""


class _Question(Struct, frozen=True):
    text: str
    entry: int
    words: frozenset[str]
    weight: float


class Index:
    """The written questions, prepared once a configuration."""

    def __init__(self, answers: StaticAnswers) -> None:
        self._answers = answers
        prepared = [
            (text, number, words_of(text))
            for number, entry in enumerate(answers.entries)
            for text in entry.questions
        ]
        self._count = len(prepared)
        seen: dict[str, int] = {}
        for _, _, words in prepared:
            for word in words:
                seen[word] = seen.get(word, 0) + 1
        self._seen = seen
        self._questions = [
            _Question(text, number, words, self._sum(words)) for text, number, words in prepared
        ]
        self._by_word: dict[str, list[int]] = {}
        for place, question in enumerate(self._questions):
            for word in question.words:
                self._by_word.setdefault(word, []).append(place)

    def answer(self, text: str, similarity: Similarity | None = None) -> Match | None:
        """The best written answer at or above the threshold, else the default sentence, if there is one.

        Of equal scores the first written wins.
        """
        best = self.best(text, similarity)
        if best is not None and best.score >= self._answers.threshold:
            return best
        default = self._answers.default
        return Match(default, 0.0 if best is None else best.score, "") if default else None

    def best(self, text: str, similarity: Similarity | None = None) -> Match | None:
        """The nearest written question, however far it is; None when no word is shared."""
        text = text[:TEXT_MAX]
        words = words_of(text)
        if similarity is None:
            places = sorted({place for word in words for place in self._by_word.get(word, ())})
        else:
            places = list(range(len(self._questions)))
        weight = self._sum(words)
        found: Match | None = None
        for place in places:
            question = self._questions[place]
            score = self._score(words, weight, question)
            if similarity is not None and _numbers(words) == _numbers(question.words):
                score = max(score, min(1.0, similarity(text, question.text)))
            if found is None or score > found.score:
                answer = self._answers.entries[question.entry].answer
                found = Match(answer, score, question.text)
        return found

    def _score(self, words: frozenset[str], weight: float, question: _Question) -> float:
        if _numbers(words) != _numbers(question.words):
            return 0.0
        total = weight + question.weight
        if total <= 0:
            return 0.0
        score = 2 * self._sum(words & question.words) / total
        if bool(words & _NEGATIONS) != bool(question.words & _NEGATIONS):
            score *= _NEGATED
        return min(1.0, score)

    def _sum(self, words: frozenset[str]) -> float:
        # In a fixed order: the sum of floats depends on it, and a score must not change from run to run.
        return math.fsum(self._weight(word) for word in words)

    def _weight(self, word: str) -> float:
        weight = math.log(1 + (self._count + 1) / (1 + self._seen.get(word, 0)))
        return weight * _GLUE if word in _FUNCTION_WORDS else weight


def words_of(text: str) -> frozenset[str]:
    """The words of a text in the form in which they are compared: folded, without the commonest endings."""
    folded = unicodedata.normalize("NFKC", text[:TEXT_MAX]).casefold().replace("\u2019", "'")
    found: list[str] = []
    for match in _WORD.finditer(folded):
        word = match[0]
        if _UNSPACED.search(word):
            found += _pairs(word)
        else:
            found.append(_stem(word))
        if len(found) >= WORDS_MAX:
            break
    return frozenset(found[:WORDS_MAX])


def _pairs(word: str) -> list[str]:
    return [word[i : i + 2] for i in range(len(word) - 1)] or [word]


def _stem(word: str) -> str:
    if word in _NEGATIONS or word in _FUNCTION_WORDS:
        return word
    word = word.removesuffix("'s")
    for ending, least in (("ing", 6), ("ies", 5), ("es", 5), ("ed", 5), ("s", 4)):
        if len(word) >= least and word.endswith(ending) and not word.endswith("ss"):
            return word[: -len(ending)] + ("y" if ending == "ies" else "")
    return word


def _numbers(words: frozenset[str]) -> frozenset[str]:
    return frozenset(word for word in words if word[0].isdigit())
