"""When two JSON values say the same, and the naive readers that the dialects' decoders are held against.

They read recordings, which are whole and well-formed, with other code than the gateway's.
"""

import base64
import json
import math
import struct
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

Json = Any
"""JSON of any shape: this is the wire."""

parse: Final = json.loads


class Difference(NamedTuple):
    where: str
    """The path, without numbers, and what is different: the same for rows that fail alike."""
    detail: str


def difference(ours: Json, theirs: Json, at: str = "") -> Difference | None:
    """The first place where two values differ; None when they say the same.

    The order of keys and the spelling of numbers do not count; 1 and true are not the same.
    """
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in sorted({*ours, *theirs}, key=str):
            here = f"{at}.{name}"
            if name not in ours:
                return Difference(f"{here} is lost", _short(theirs[name]))
            if name not in theirs:
                return Difference(f"{here} is added", _short(ours[name]))
            found = difference(ours[name], theirs[name], here)
            if found is not None:
                return found
        return None
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        if len(ours) != len(theirs):
            return Difference(f"{at}[] has another length", f"{len(ours)} is not {len(theirs)}")
        for one, other in zip(ours, theirs, strict=True):
            found = difference(one, other, f"{at}[]")
            if found is not None:
                return found
        return None
    if ours == theirs and isinstance(ours, bool) == isinstance(theirs, bool):
        return None
    return Difference(f"{at or 'all'} differs", f"{_short(ours)} is not {_short(theirs)}")


def _short(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}…{text[-18:]}"


def without_nulls(value: Json, *, but: frozenset[str] = frozenset()) -> Json:
    """For APIs that read a null as absent. `but` names fields whose values are not the API's own."""
    if isinstance(value, dict):
        return {
            k: v if k in but else without_nulls(v, but=but)
            for k, v in value.items()
            if v is not None
        }
    if isinstance(value, list):
        return [without_nulls(v, but=but) for v in value]
    return value


def near(one: Json, other: Json) -> bool:
    """Two log probabilities that are the same but for rounding."""
    numbers = (int, float)
    return (
        isinstance(one, numbers)
        and isinstance(other, numbers)
        and math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-5)
    )


TAGS: Final = frozenset({"role", "type"})
"""Fields whose values say of which kind an object is: the neutral kinds say it after decoding."""


def leaves(value: Json, found: Counter[str] | None = None) -> Counter[str]:
    """Scalars of a JSON value, but for tags and empty texts; JSON text, as of a tool's arguments, counts as what it says too."""
    found = Counter() if found is None else found
    if isinstance(value, dict):
        for name, one in value.items():
            if name not in TAGS:
                leaves(one, found)
    elif isinstance(value, list):
        for one in value:
            leaves(one, found)
    elif isinstance(value, str):
        if value:
            found[repr(value)] += 1
        if value[:1] in {"{", "["}:
            try:
                leaves(parse(value), found)
            except (ValueError, RecursionError):
                return found
    elif value is not None:
        number = float(value) if isinstance(value, int) and not isinstance(value, bool) else value
        found[repr(number)] += 1
    return found


def lost(given: Json, kept: Json) -> list[str]:
    """Scalars of a recorded body that are nowhere in what it was decoded to."""
    there = leaves(kept)
    return [leaf for leaf in leaves(given) if leaf not in there]


def sse(body: bytes) -> list[Json]:
    """The JSON of each event of a stream; `[DONE]` and comments aside. Data over several lines is joined."""
    text = body.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    found = []
    for block in text.split("\n\n"):
        data = [line[5:].removeprefix(" ") for line in block.split("\n") if line[:5] == "data:"]
        joined = "\n".join(data).strip()
        if joined and joined != "[DONE]":
            try:
                found.append(parse(joined))
            except ValueError:
                # Hosts that leave out the empty line between events.
                found += [parse(line) for line in data if line.strip() not in {"", "[DONE]"}]
    return found


def ndjson(body: bytes) -> list[Json]:
    return [parse(line) for line in body.splitlines() if line.strip()]


class Frame(NamedTuple):
    headers: dict[str, str]
    payload: bytes


def frames(body: bytes) -> Iterator[Frame]:
    """Frames of an Amazon event stream whose headers are strings; checksums are not checked.

    Source: "AWS event stream encoding", Amazon Transcribe developer guide.
    """
    while body:
        total, header_bytes = struct.unpack_from(">II", body)
        headers: dict[str, str] = {}
        at, end = 12, 12 + header_bytes
        while at < end:
            size = body[at]
            name = body[at + 1 : at + 1 + size].decode()
            at += 1 + size
            if body[at] != 7:
                raise ValueError("an event stream's header that is no string")
            (size,) = struct.unpack_from(">H", body, at + 1)
            headers[name] = body[at + 3 : at + 3 + size].decode()
            at += 3 + size
        yield Frame(headers, body[end : total - 4])
        body = body[total:]


def invoked(body: bytes) -> list[bytes]:
    """What the chunks of Bedrock's InvokeModelWithResponseStream hold."""
    found = []
    for frame in frames(body):
        chunk = parse(frame.payload)
        if "bytes" in chunk:
            found.append(base64.b64decode(chunk["bytes"]))
    return found
