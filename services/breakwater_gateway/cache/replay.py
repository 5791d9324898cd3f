"""Replay: an entry as the answer of another request, with an id and a time of its own.

In the form it was kept in, bytes are given again as they came: only the id and the time are other. In the
other form it is written once from what it says, and then kept so. A template is the answer cut where the id
and the time stand, so that giving it again is one join.

The Responses API keeps the id: it names what the provider has stored, and may be asked about.
"""

import re
from typing import Final

import msgspec
from msgspec import Struct

from breakwater_gateway.cache import forms
from breakwater_gateway.cache.entry import Entry, Form
from breakwater_protocol.chat import Usage

_ID: Final = {"chat": b"id", "messages": b"id", "generate": b"responseId"}
_PREFIX: Final = {"chat": "chatcmpl-", "messages": "msg_", "generate": ""}


class Template(Struct, frozen=True):
    """`pieces` alternate: bytes as they are, then what is filled in (`i` or `c`)."""

    pieces: tuple[bytes, ...]
    prefix: str = ""

    def filled(self, unique: str, created: int) -> bytes:
        pieces = self.pieces
        if len(pieces) == 1:
            return pieces[0]
        out = list(pieces)
        own = b'"' + (self.prefix + unique).encode() + b'"'
        at = str(created).encode()
        for place in range(1, len(out), 2):
            out[place] = own if out[place] == b"i" else at
        return b"".join(out)


class CannotReplay(ValueError):
    """The entry has no such form."""


def template(entry: Entry, *, stream: bool, usage: bool) -> Template:
    """Raises `CannotReplay`."""
    form: Form = "lines" if stream else "body"
    if entry.form == form:
        payload = entry.payload
        if stream and usage and entry.api == "chat":
            payload = b"\n".join(filter(None, (payload, _usage_line(entry))))
        return _cut(payload, entry.api)
    if entry.api == "embeddings":
        raise CannotReplay("embeddings are not streamed")
    try:
        answer = forms.answer_of(entry.api, entry.form, entry.payload)
        if answer is None:
            raise CannotReplay("the stored answer cannot be read")
        if entry.usage is not None:
            answer = msgspec.structs.replace(answer, usage=entry.usage)
        if stream:
            lines = forms.lines_of(answer, entry.api, entry.model, usage=usage)
            return _cut(b"\n".join(lines), entry.api)
        return _cut(forms.body_of(answer, entry.api, entry.model), entry.api)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CannotReplay(str(error)[:200]) from error


def _usage_line(entry: Entry) -> bytes:
    if entry.usage_line:
        return entry.usage_line
    if entry.usage is None:
        return b""
    return usage_line(entry.payload, entry.usage, entry.model)


def usage_line(payload: bytes, usage: Usage, model: str) -> bytes:
    """The chunk of OpenAI's chat with which the stream that begins with `payload` tells its usage."""
    line = forms.usage_line("chat", usage, model)
    first = _id_in(payload, _ID["chat"])
    # The chunk tells the id of its stream.
    return line if first is None else _id_of(b"id").sub(lambda _: b'"id":' + first, line, count=1)


_CREATED: Final = re.compile(rb'("created":\s*)\d{1,12}(?=[,}\s])')


def _id_of(name: bytes) -> re.Pattern[bytes]:
    # Quotes within strings are escaped, so a member's name in quotes is never text.
    return re.compile(rb'"%b":\s*("(?:[^"\\]|\\.)*")' % name)


def _id_in(payload: bytes, name: bytes) -> bytes | None:
    """The first member of that name: the answer's own, which no other member shares."""
    first = _id_of(name).search(payload)
    return None if first is None else first[1]


def _cut(payload: bytes, api: str) -> Template:
    name = _ID.get(api)
    if name is None:
        return Template((payload,))
    first = _id_in(payload, name)
    marks: list[tuple[int, int, bytes]] = []
    if first is not None:
        own = re.compile(rb'"%b":\s*(%b)' % (name, re.escape(first)))
        marks += [(m.start(1), m.end(1), b"i") for m in own.finditer(payload)]
    if api == "chat":
        marks += [(m.end(1), m.end(), b"c") for m in _CREATED.finditer(payload)]
    pieces: list[bytes] = []
    done = 0
    for start, end, what in sorted(marks):
        pieces += [payload[done:start], what]
        done = end
    return Template((*pieces, payload[done:]), _PREFIX[api])
