"""What the tests of `bedrock`, `cohere` and `ollama` share: comparing JSON, cutting streams, hostile JSON."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
from hypothesis import strategies as st

from breakwater_gateway.worker.wire import neutral as n

Json = Any
"""What `json.loads` gives, and what an exchange is written down as in a test."""

TAGS: Final = frozenset({"role", "type"})
"""Fields whose values say of which kind an object is: the neutral kinds say it after decoding."""


def same_json(one: bytes, other: bytes, *, but: tuple[str, ...] = ()) -> bool:
    """Equal but for the order of keys and the spelling of numbers, and for the top-level fields `but`."""
    left, right = json.loads(one), json.loads(other)
    for name in but:
        left.pop(name, None)
        right.pop(name, None)
    return bool(left == right)


def leaves(value: Json, found: Counter[str] | None = None) -> Counter[str]:
    """Scalars of a JSON value, but for tags; a tool's arguments count as what their text says."""
    found = Counter() if found is None else found
    if isinstance(value, dict):
        for name, one in value.items():
            if name == "arguments" and isinstance(one, str):
                found[repr(one)] += 1
                leaves(json.loads(one), found)
            elif name not in TAGS:
                leaves(one, found)
    elif isinstance(value, list):
        for one in value:
            leaves(one, found)
    elif value is not None:
        found[repr(value)] += 1
    return found


def lost(body: bytes, answer: n.Answer) -> list[str]:
    """Scalars of a recorded answer that are nowhere in what it was decoded to."""
    kept = leaves(json.loads(msgspec.json.encode(answer)))
    return [leaf for leaf in leaves(json.loads(body)) if leaf not in kept]


Decoder = Callable[[], n.StreamDecoder]

ALL_CUTS_BELOW: Final = 2000
"""Bytes of a stream up to which it is cut in two at every place."""


def events(make: Decoder, *pieces: bytes) -> list[n.StreamEvent]:
    decoder = make()
    return [event for piece in pieces for event in decoder.feed(piece)] + decoder.end()


def cuts(body: bytes) -> Iterator[tuple[bytes, ...]]:
    """Ways in which a body may arrive: byte by byte, and in two pieces."""
    yield tuple(body[at : at + 1] for at in range(len(body)))
    step = 1 if len(body) <= ALL_CUTS_BELOW else len(body) // 12
    for at in range(1, len(body), step):
        yield body[:at], body[at:]


def text_of(found: list[n.StreamEvent], kind: type[n.Part]) -> str:
    """All that grew in parts of one kind."""
    kinds = {event.index: event.part for event in found if isinstance(event, n.PartBegan)}
    return "".join(
        event.text
        for event in found
        if isinstance(event, n.Grew) and isinstance(kinds[event.index], kind)
    )


def keeps_the_contract(found: list[n.StreamEvent]) -> bool:
    """Began first, parts counted and closed before the finish, one finish, nothing after the end."""
    opened: set[int] = set()
    count, finished, over = 0, False, False
    for at, event in enumerate(found):
        if over or (at == 0) != isinstance(event, n.Began):
            return False
        match event:
            case n.PartBegan(index=index):
                if index != count or finished:
                    return False
                count += 1
                opened.add(index)
            case n.Grew(index=index):
                if index not in opened:
                    return False
            case n.PartEnded(index=index):
                if index not in opened:
                    return False
                opened.discard(index)
            case n.Finished():
                if finished or opened:
                    return False
                finished = True
            case n.Done() | n.Broke():
                over = True
            case _:
                pass
    return not opened


def hostile(*names: str) -> st.SearchStrategy[bytes]:
    """JSON built of an API's own field names, with values of any type in any place."""
    scalars = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.sampled_from(
            ["", "text", "tool", "user", "assistant", "enabled", "{", "data:a/b;base64,x"]
        ),
        st.sampled_from(names),
    )
    values = st.recursive(
        scalars,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.sampled_from(names), inner, max_size=4),
        ),
        max_leaves=12,
    )
    return st.dictionaries(st.sampled_from(names), values, max_size=6).map(
        lambda value: json.dumps(value).encode()
    )
