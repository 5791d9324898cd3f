"""Do two questions differ in something that changes the answer, however near their vectors are?

Embeddings hardly see a digit, a "not" or a name. This looks at the words: numbers with their units, codes,
negations, opposites, members of closed classes, from-to turned round, names, and a word replaced in an
otherwise equal sentence. A conflict found wrongly costs a miss; one overlooked costs a wrong answer, so
doubt means conflict. Tables of English words are in `words.py`.
"""

import re
import unicodedata
from collections import Counter
from difflib import SequenceMatcher
from itertools import islice, pairwise
from typing import Final

from msgspec import Struct

from breakwater_gateway.cache import words as w
from breakwater_gateway.cache.recent import Recent
from breakwater_gateway.config.model import Veto

WORDS_MAX: Final = 400
"""Words of a question that are compared; embedders read fewer."""
REPLACED_MAX: Final = 3
"""Content words replaced on a side up to which two sentences count as one with a slot filled differently."""
PARALLEL: Final = 0.65
"""Share of words in the same order from which two sentences are built alike."""

_TOKEN: Final = re.compile(
    r"\d+(?:[.,:/]\d+)*|[^\W\d_]+(?:'[^\W\d_]+)?|[%£$€¥₹#]",
)
_CODE: Final = re.compile(r"(?<![\w-])(?=[\w-]*\d)(?=[\w-]*[^\W\d_])[\w-]*\w")
_PLAIN_QUANTITY: Final = re.compile(r"\d[\d.,:]*[a-z]{0,5}|\d+(?:-[^\W\d_]+)+")
_CONTRACTIONS: Final = {"won't": ("will", "not"), "can't": ("can", "not"), "cannot": ("can", "not")}
_MULTIPLES: Final = {"k": 1e3, "m": 1e6, "bn": 1e9}
"""Written right behind a number."""
_ORDINALS: Final = frozenset({"st", "nd", "rd", "th"})
_SYMBOLS: Final = "£$€¥₹%"
_NO_NUMBERS: Final = frozenset({"one", "half", "single", "double", "once"})
"""Number words that mostly mean something else: "that one", "half board", "a single room"."""


class Slots(Struct, frozen=True):
    """What a question fills its slots with; made once a text."""

    numbers: tuple[str, ...]
    """In their order, as canonical decimals; times as written."""
    units: frozenset[str]
    codes: frozenset[str]
    words: tuple[str, ...]
    """Lower case, contractions opened, near synonyms made one."""
    known: frozenset[str]
    """`words` and the spellings before they were made one."""
    negations: int
    names: frozenset[str]
    """Capitalised within a sentence, or all capitals; lower case."""
    content: tuple[str, ...]
    """Stems of `words` without stopwords and numbers."""


def conflict(a: str, b: str, veto: Veto = "strict") -> str:
    """Why `b` must not have `a`'s answer: the kind of slot that differs. Empty when nothing was found."""
    if veto == "off" or a == b:
        return ""
    left, right = read(a), read(b)
    if Counter(left.numbers) != Counter(right.numbers):
        return "number"
    if _exclusive(left.units, right.units):
        return "unit"
    if left.codes != right.codes:
        return "code"
    if veto == "numbers":
        return ""
    return _strict(left, right)


def _strict(left: Slots, right: Slots) -> str:
    if left.numbers != right.numbers and _ranged(left, right):
        return "swap"
    if (left.negations > 0) != (right.negations > 0):
        return "negation"
    if _opposed(left, right):
        return "antonym"
    if _differ_in_class(left, right):
        return "class"
    if _turned(left, right):
        return "swap"
    if _unmatched(left.names, right) or _unmatched(right.names, left):
        return "entity"
    if _replaced(left, right):
        return "substitution"
    return ""


def read(text: str) -> Slots:
    """The slots of a text; texts of a cache come again and again."""
    found = _READ.use(text)
    if found is None:
        found = _slots_of(text)
        _READ.put(text, found)
    return found


# What was found in a text takes about 24 bytes a character, and a thousand however short it is.
_READ: Final[Recent[str, "Slots"]] = Recent(
    16_384, 24 * 1024 * 1024, lambda text, _: 24 * len(text) + 1_024
)


def _slots_of(text: str) -> Slots:
    text = unicodedata.normalize("NFKC", text).replace("\u2019", "'")
    reading = _Reading(shouted=text.isupper())
    end = 0
    for found in list(islice(_TOKEN.finditer(text), WORDS_MAX)):
        gap = text[end : found.start()]
        reading.take(found.group(), gap)
        end = found.end()
    return reading.slots(_codes(text))


class _Reading:
    """One pass over the tokens of a text."""

    def __init__(self, *, shouted: bool) -> None:
        self._shouted = shouted
        self._numbers: list[str] = []
        self._units: set[str] = set()
        self._words: list[str] = []
        self._known: set[str] = set()
        self._names: set[str] = set()
        self._start = True
        self._after_number = False

    def take(self, token: str, gap: str) -> None:
        start = self._start or any(mark in gap for mark in ".?!:\n;")
        self._start = False
        lower = token.lower()
        if token[0].isdigit():
            self._numbers.append(_number(lower))
            self._after_number = True
            return
        if self._after_number and not gap and lower in _MULTIPLES:
            self._numbers[-1] = _times(self._numbers[-1], _MULTIPLES[lower])
            self._after_number = False
            return
        for word in _open(lower):
            plain = w.SAME.get(word, word)
            self._known.add(word)
            self._words.append(plain)
            if plain in w.UNITS and (self._after_number or word in _SYMBOLS):
                self._units.add(plain)
            if word in w.NUMBERS and word not in _NO_NUMBERS:
                self._numbers.append(_canonical(w.NUMBERS[word]))
        if not self._shouted and _is_name(token, start=start):
            self._names.add(lower.partition("'")[0])
        self._after_number = False

    def slots(self, codes: frozenset[str]) -> Slots:
        words = self._words
        return Slots(
            numbers=tuple(self._numbers),
            units=frozenset(self._units - _ORDINALS),
            codes=codes,
            words=tuple(words),
            known=frozenset(self._known.union(words)),
            negations=sum(word in w.NEGATIONS for word in words),
            names=frozenset(self._names),
            content=tuple(_stem(word) for word in words if _has_content(word)),
        )


def _codes(text: str) -> frozenset[str]:
    """Words with letters and digits, apart from numbers with their unit."""
    return frozenset(
        code.lower() for code in _CODE.findall(text) if not _PLAIN_QUANTITY.fullmatch(code.lower())
    )


def _has_content(word: str) -> bool:
    return (
        len(word) > 1
        and word not in w.STOPWORDS
        and word not in w.NUMBERS
        and word not in w.UNITS
        and word not in w.NEGATIONS
    )


def _open(word: str) -> tuple[str, ...]:
    """Contractions in two, possessives without their end."""
    found = _CONTRACTIONS.get(word)
    if found is not None:
        return found
    if word.endswith("n't"):
        return word[:-3], "not"
    stem, _, end = word.partition("'")
    return (stem,) if end in ("s", "", "re", "ve", "ll", "d", "m") else (stem, end)


def _number(text: str) -> str:
    if ":" in text or "/" in text:
        return text
    plain = text.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", text) else text
    return _canonical(float(plain)) if _is_number(plain) else text


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?", text) is not None and len(text) < 300


def _canonical(value: float) -> str:
    return f"{value:.12g}"


def _times(number: str, factor: float) -> str:
    return _canonical(float(number) * factor) if _is_number(number) else number


def _is_name(token: str, *, start: bool) -> bool:
    plain = token.lower().partition("'")[0]
    if len(plain) < 2 or plain in w.STOPWORDS:
        return False
    return token.isupper() or (token[0].isupper() and not start)


def _exclusive(left: frozenset[str], right: frozenset[str]) -> bool:
    return bool(left - right) and bool(right - left)


def _ranged(left: Slots, right: Slots) -> bool:
    return any(mark in side.words for side in (left, right) for mark in ("from", "between", "to"))


def _opposed(left: Slots, right: Slots) -> bool:
    a, b = left.known, right.known
    for one, other in w.OPPOSITES:
        if (one & a and not other & a and other & b and not one & b) or (
            other & a and not one & a and one & b and not other & b
        ):
            return True
    return any(_prefixed(word, b) for word in a - b) or any(_prefixed(word, a) for word in b - a)


def _prefixed(word: str, others: frozenset[str]) -> bool:
    return any(
        word.startswith(prefix) and len(word) - len(prefix) >= 3 and word[len(prefix) :] in others
        for prefix in w.PREFIXES
    )


def _differ_in_class(left: Slots, right: Slots) -> bool:
    a, b = left.known, right.known
    only_a, only_b = a - b, b - a
    for members in w.CLASSES:
        if members & only_a and members & only_b:
            return True
    return any(
        not (members & a and members & b) and not _misspelt(members, only_a, only_b)
        for members in w.SCOPES
        if members & only_a or members & only_b
    )


def _misspelt(members: frozenset[str], only_a: frozenset[str], only_b: frozenset[str]) -> bool:
    """The other side has the word too, with a slip in it."""
    here, there = (only_a, only_b) if members & only_a else (only_b, only_a)
    return any(_typo(word, other) for word in members & here for other in there)


def _turned(left: Slots, right: Slots) -> bool:
    """From one to the other, and the other way round."""
    ends_a, ends_b = _ends(left.words), _ends(right.words)
    if any(ends_a) and any(ends_b):
        (from_a, to_a), (from_b, to_b) = ends_a, ends_b
        if (from_a and from_a == to_b) or (to_a and to_a == from_b):
            return True
    return False


def _ends(words: tuple[str, ...]) -> tuple[str, str]:
    origin = target = ""
    for mark, word in pairwise(words):
        if word in w.STOPWORDS:
            continue
        if mark in w.FROM and not origin:
            origin = word
        elif mark in w.TO:
            target = word
    return origin, target


def _unmatched(names: frozenset[str], other: Slots) -> bool:
    return any(
        name not in other.known
        and w.SAME.get(name, name) not in other.known
        and not any(_typo(name, word) for word in other.known)
        for name in names
    )


def _replaced(left: Slots, right: Slots) -> bool:
    """One sentence with a slot filled differently: mostly the same words in the same order, and a content
    word on either side that is no misspelling of one on the other.

    Sentences that are built differently are left to their vectors, which are good at those.
    """
    a, b = Counter(left.content), Counter(right.content)
    only_a, only_b = list((a - b).elements()), list((b - a).elements())
    for word in tuple(only_a):
        match = next((other for other in only_b if _typo(word, other)), None)
        if match is not None:
            only_a.remove(word)
            only_b.remove(match)
    if not only_a or not only_b or max(len(only_a), len(only_b)) > REPLACED_MAX:
        return False
    return SequenceMatcher(None, left.words, right.words, autojunk=False).ratio() >= PARALLEL


def _stem(word: str) -> str:
    for end in ("ings", "ing", "ies", "ied", "es", "ed", "ly", "s", "e"):
        if word.endswith(end) and len(word) - len(end) >= 3:
            return word[: -len(end)] + ("y" if end in ("ies", "ied") else "")
    return word


def _typo(a: str, b: str) -> bool:
    """Near enough to be one word misspelt: one slip from four letters, two from eight."""
    if a == b:
        return True
    shorter = min(len(a), len(b))
    slips = 2 if shorter >= 8 else 1 if shorter >= 4 else 0
    return abs(len(a) - len(b)) <= slips and _within(a, b, slips)


def _within(a: str, b: str, slips: int) -> bool:
    """Whether `slips` insertions, deletions, replacements or swaps of neighbours make one of the other."""
    before: list[int] = []
    last = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (x != y))
            if before and i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        if min(row) > slips:
            return False
        before, last = last, row
    return last[-1] <= slips
