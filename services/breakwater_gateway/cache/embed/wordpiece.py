"""WordPiece as BERT's uncased models want it: text in, ids of the vocabulary out.

The rules are those of `BertNormalizer`, `BertPreTokenizer` and `WordPiece` of the tokenizers library
(0.23): clean, lower-case, strip accents, split at spaces and punctuation, then the longest piece first.
Written here so that an embedder needs no library besides the one that multiplies.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

WORD_MAX: Final = 100
"""Characters of a word; a longer one is unknown as a whole."""
WINDOW: Final = 256
"""Pieces that MiniLM was trained to read, `[CLS]` and `[SEP]` included. What is beyond is not seen at all:
two long texts that differ at their ends would have a cosine of 1."""

_ASCII_WORDS: Final = re.compile(r"[a-z0-9]+|[!-/:-@\[-`{-~]")


class WordPiece:
    def __init__(self, vocabulary: Iterable[str]) -> None:
        """`vocabulary`: pieces in the order of their ids. Raises `ValueError` without the special ones."""
        self._ids = {piece: index for index, piece in enumerate(vocabulary)}
        missing = [name for name in ("[UNK]", "[CLS]", "[SEP]") if name not in self._ids]
        if missing:
            raise ValueError(f"the vocabulary has no {missing[0]}: it is not one of BERT's")
        self._unknown = self._ids["[UNK]"]
        self._begin, self._end = self._ids["[CLS]"], self._ids["[SEP]"]
        self._word = lru_cache(maxsize=65_536)(self._split_word)

    def encode(self, text: str) -> list[int]:
        """Ids with the special ones around them, however many: who calls decides what is too long."""
        ids = [self._begin]
        for word in words(text):
            ids += self._word(word)
        ids.append(self._end)
        return ids

    def _split_word(self, word: str) -> tuple[int, ...]:
        if len(word) > WORD_MAX:
            return (self._unknown,)
        ids, found, start, end = self._ids, [], 0, len(word)
        while start < end:
            stop = end
            while stop > start:
                piece = word[start:stop] if start == 0 else f"##{word[start:stop]}"
                if (id_ := ids.get(piece)) is not None:
                    found.append(id_)
                    break
                stop -= 1
            else:
                return (self._unknown,)
            start = stop
        return tuple(found)


def words(text: str) -> list[str]:
    """Lower-cased words and punctuation marks, without accents."""
    if text.isascii():
        cleaned = text if text.isprintable() else _clean(text)
        return _ASCII_WORDS.findall(cleaned.lower())
    cleaned = _clean(text)
    plain = "".join(
        c for c in unicodedata.normalize("NFD", cleaned) if unicodedata.category(c) != "Mn"
    )
    found: list[str] = []
    start = None
    lowered = plain.lower()
    for index, c in enumerate(lowered):
        if c.isspace() or _is_punctuation(c):
            if start is not None:
                found.append(lowered[start:index])
                start = None
            if not c.isspace():
                found.append(c)
        elif start is None:
            start = index
    if start is not None:
        found.append(lowered[start:])
    return found


def _clean(text: str) -> str:
    out: list[str] = []
    for c in text:
        if c in "\t\n\r":
            out.append(" ")
        elif c in "\x00\ufffd" or unicodedata.category(c)[0] == "C":
            continue
        elif _is_chinese(ord(c)):
            out.append(f" {c} ")
        else:
            out.append(" " if c.isspace() else c)
    return "".join(out)


def _is_punctuation(c: str) -> bool:
    if c.isascii():
        return c.isprintable() and not c.isalnum() and c != " "
    return unicodedata.category(c)[0] == "P"


_CHINESE: Final = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F)),
    *((0x2B740, 0x2B81F), (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)


def _is_chinese(code: int) -> bool:
    return code >= 0x3400 and any(first <= code <= last for first, last in _CHINESE)
