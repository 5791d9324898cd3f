"""Static answers: which of the written answers fits a question, by its words and, where there are embeddings,
by its meaning.

*Words.* The score of a question against a written one is in 0…1: the share of words that they have in common, each word
weighed by how rare it is among the written questions (inverse document frequency, Spärck Jones 1972), as the
harmonic mean of both directions (Dice), so that neither a long question that happens to hold a short one nor
the reverse counts as the same. Words that only hold a sentence together weigh little. Different numbers, or a
negation on one side alone, are a different question.

*Meaning.* The score is the cosine of the two questions, less what the nearest question with another answer lacks
of being `MARGIN` away: of two answers that are both near, neither is sure. Where the words say the same answer
too, `AGREED` is added, and where there is a word on meaning, words alone are not enough: with banking77's
questions every sixth answer by words alone was wrong, of those that meaning confirmed one in fifty.

Whatever found it, a written question that differs in what the answer hangs on (a number, a "not", an opposite)
does not answer.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Final, Literal

from msgspec import Struct

from breakwater_gateway.cache.slots import conflict
from breakwater_gateway.config.model import StaticAnswers
from breakwater_protocol.cache import Near

TEXT_MAX: Final = 2_000
"""Characters of a question that are looked at: what is longer is no question of a list."""
WORDS_MAX: Final = 200
_GLUE: Final = 0.15
"""Weight of a function word, as a share of what its rarity would give it."""
_NEGATED: Final = 0.5
MARGIN: Final = 0.25
"""How far another answer must be, as a difference of cosines. Wider than a cache's, whose neighbours are
questions that were asked: here each is the only one of its kind."""
AGREED: Final = 0.15
"""What words in common add to the score of meaning. This and `MARGIN` were chosen by `ops/bench/written.py`."""
NEAR_MAX: Final = 32
"""Near questions that are looked at."""
_ALIKE: Final = 0.999
"""Of words: all that matter are the same."""
_DIFFERENT: Final = frozenset({"number", "unit", "code", "negation", "antonym", "swap"})
"""Slots that part questions whose words are the same otherwise. The rest of what slots tell needs two
sentences that are alike; to have words in common is less than that."""

By = Literal["words", "meaning", "default"]

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
    by: By = "words"


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
        self._entries: dict[str, int] = {}
        """By question: which entry it is written in first."""
        for text, number, _ in prepared:
            self._entries.setdefault(text, number)
        self._by_word: dict[str, list[int]] = {}
        for place, question in enumerate(self._questions):
            for word in question.words:
                self._by_word.setdefault(word, []).append(place)

    def answer(self, text: str, near: Sequence[Near] | None = None) -> Match | None:
        """The answer that fits best, if it fits well enough; else the default sentence, if there is one.

        `near`: the written questions that mean the nearest; None where nobody could tell.
        """
        worded = self._by_words(text)
        known = self._known(near or ())
        found = self._by_meaning(text, known, worded) if known else worded
        if found is not None:
            return found
        default = self._answers.default
        if not default:
            return None
        best = self.best(text)
        return Match(default, 0.0 if best is None else best.score, "", "default")

    def best(self, text: str) -> Match | None:
        """The nearest written question by its words, however far it is; None when no word is shared. Of equal
        scores the first written wins."""
        ranked = self._ranked(text)
        return self._match(*ranked[0]) if ranked else None

    def _by_words(self, text: str) -> Match | None:
        for score, question in self._ranked(text):
            if score < self._answers.threshold:
                break
            if conflict(question.text, text[:TEXT_MAX]) not in _DIFFERENT:
                return self._match(score, question)
        return None

    def _by_meaning(
        self, text: str, known: list[tuple[Near, int]], worded: Match | None
    ) -> Match | None:
        """`known`: with the entry of each, the nearest first."""
        for near, entry in known:
            if conflict(near.question, text[:TEXT_MAX]):
                continue
            other = next((each.similarity for each, whose in known if whose != entry), None)
            score = near.similarity
            if other is not None:
                score -= max(0.0, MARGIN - (near.similarity - other))
            answer = self._answers.entries[entry].answer
            if worded is not None and worded.answer == answer:
                score += AGREED
            if score >= self._answers.similarity:
                return Match(answer, min(1.0, score), near.question, "meaning")
            break
        return worded if worded is not None and worded.score >= _ALIKE else None

    def _known(self, near: Sequence[Near]) -> list[tuple[Near, int]]:
        """Those that are written here too: who told us may have another configuration."""
        found = [
            (each, self._entries[each.question])
            for each in near[:NEAR_MAX]
            if each.question in self._entries and math.isfinite(each.similarity)
        ]
        return sorted(found, key=lambda pair: -pair[0].similarity)

    def _ranked(self, text: str) -> list[tuple[float, _Question]]:
        """All questions that share a word, the best first."""
        words = words_of(text[:TEXT_MAX])
        weight = self._sum(words)
        places = sorted({place for word in words for place in self._by_word.get(word, ())})
        scored = [
            (self._score(words, weight, each), each)
            for each in map(self._questions.__getitem__, places)
        ]
        return sorted(scored, key=lambda pair: -pair[0])

    def _match(self, score: float, question: _Question) -> Match:
        return Match(self._answers.entries[question.entry].answer, score, question.text)

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
