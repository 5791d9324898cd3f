"""Words: sentences of lorem ipsum from a seed, and texts as token-sized pieces."""

import re
from functools import lru_cache
from random import Random
from typing import Final

WORDS: Final = [
    "lorem",
    "ipsum",
    "dolor",
    "sit",
    "amet",
    "consectetur",
    "adipiscing",
    "elit",
    "sed",
    "do",
    "eiusmod",
    "tempor",
    "incididunt",
    "ut",
    "labore",
    "et",
    "dolore",
    "magna",
    "aliqua",
    "enim",
    "ad",
    "minim",
    "veniam",
    "quis",
    "nostrud",
    "exercitation",
    "ullamco",
    "laboris",
    "nisi",
    "aliquip",
    "ex",
    "ea",
    "commodo",
    "consequat",
    "duis",
    "aute",
    "irure",
    "in",
    "reprehenderit",
    "voluptate",
    "velit",
    "esse",
    "cillum",
    "fugiat",
    "nulla",
    "pariatur",
    "excepteur",
    "sint",
    "occaecat",
    "cupidatat",
    "non",
    "proident",
    "sunt",
    "culpa",
    "qui",
    "officia",
    "deserunt",
    "mollit",
    "anim",
    "id",
    "est",
    "laborum",
]
_CORPUS_TOKENS: Final = 4096


@lru_cache(maxsize=16)
def _corpus(seed: int) -> tuple[str, ...]:
    """Sentences of lorem ipsum, a word with its space and punctuation a token; twice, to slice anywhere."""
    random = Random(seed)  # noqa: S311 - text, not secrets
    pieces: list[str] = []
    while len(pieces) < _CORPUS_TOKENS:
        words = random.choices(WORDS, k=random.randint(5, 14))
        words[0] = words[0].title()
        words[-1] += "."
        pieces += [f" {word}" for word in words]
    return tuple(pieces[:_CORPUS_TOKENS]) * 2


def lorem(tokens: int, *, chance: int, seed: int) -> tuple[str, ...]:
    corpus = _corpus(seed)
    at = chance % _CORPUS_TOKENS
    pieces = corpus[at : at + min(tokens, _CORPUS_TOKENS)]
    while len(pieces) < tokens:
        pieces += corpus[: min(tokens - len(pieces), _CORPUS_TOKENS)]
    return (pieces[0][1:], *pieces[1:]) if pieces else ()


def split_tokens(text: str) -> tuple[str, ...]:
    """Words with the space before them: joined, they are the text."""
    return tuple(re.findall(r"\s*\S{1,16}|\s+$", text))
