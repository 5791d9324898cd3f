"""A stream that was cut, gone on with by another deployment: the question with what was said so far, and the
answer's events joined to those that the caller has.

Only text can be gone on with: half a tool call or half a thought means nothing to another model. The caller's
stream encoder is first shown what the caller has, and what it writes of that is thrown away; what it writes
from then on is the rest of the same stream, in any dialect.
"""

from typing import Final

import msgspec

from breakwater_gateway.worker.wire import neutral

_CONTINUE: Final = (
    "Your answer above was cut off. Go on with it exactly where it stopped: begin with the very next "
    "characters, repeat nothing, and say nothing about the interruption."
)


class SoFar(msgspec.Struct, frozen=True):
    """What the caller has of the answer."""

    events: list[neutral.StreamEvent]
    text: str
    open: int | None
    """The index of the text that was being written."""
    parts: int
    """How many indices were used."""


def so_far(lines: bytes, decoder: neutral.StreamDecoder) -> SoFar | None:
    """None: it cannot be gone on with. `lines`: of the caller's dialect, which `decoder` reads."""
    events: list[neutral.StreamEvent] = []
    for line in lines.split(b"\n"):
        if line:
            events += decoder.feed(b"data: " + line + b"\n\n")
    text, open_, parts = "", None, 0
    for event in events:
        match event:
            case neutral.PartBegan(index=index, part=neutral.Text(text=began), candidate=0):
                text, open_, parts = text + began, index, max(parts, index + 1)
            case neutral.Grew(index=index, text=grown, candidate=0) if index == open_:
                text += grown
            case neutral.PartEnded(index=index) if index == open_:
                open_ = None
            case neutral.Began() | neutral.UsageKnown() | neutral.PartEnded():
                pass
            case neutral.PartBegan(index=index, part=neutral.Thinking(), candidate=0):
                parts = max(parts, index + 1)
            case neutral.Grew(candidate=0):
                pass
            case _:
                # A call, a second candidate, a finish: nothing that a text goes on from.
                return None
    return SoFar(events, text, open_, parts) if text else None


def asked_again(request: neutral.Request, said: SoFar) -> neutral.Request:
    """The caller's question, its answer so far, and the wish that it goes on."""
    turns = [
        *request.turns,
        neutral.Turn("assistant", [neutral.Text(text=said.text)], plain=True),
        neutral.Turn("user", [neutral.Text(text=_CONTINUE)], plain=True),
    ]
    return msgspec.structs.replace(request, turns=turns)


class Joint:
    """Renumbers the events of the second answer so that they follow those of the first."""

    def __init__(self, said: SoFar) -> None:
        self._open = said.open
        self._offset = said.parts
        self._index: dict[int, int | None] = {}
        """Of the second answer -> of the whole; None: left out."""

    def onward(self, events: list[neutral.StreamEvent]) -> list[neutral.StreamEvent]:
        found: list[neutral.StreamEvent] = []
        for event in events:
            match event:
                case neutral.Began():
                    pass
                case neutral.PartBegan():
                    found += self._began(event)
                case neutral.Grew(index=index):
                    at = self._index.get(index)
                    if at is not None:
                        found.append(msgspec.structs.replace(event, index=at))
                case neutral.PartEnded(index=index):
                    at = self._index.get(index)
                    if at is not None:
                        self._open = None if at == self._open else self._open
                        found.append(msgspec.structs.replace(event, index=at))
                case _:
                    found.append(event)
        return found

    def _began(self, event: neutral.PartBegan) -> list[neutral.StreamEvent]:
        part = event.part
        if isinstance(part, neutral.Thinking):
            # The caller is in the middle of the answer: what the second model thought first is not of it.
            self._index[event.index] = None
            return []
        if isinstance(part, neutral.Text) and self._open is not None:
            self._index[event.index] = self._open
            return [neutral.Grew(self._open, part.text)] if part.text else []
        at = self._index[event.index] = self._offset + event.index
        began = msgspec.structs.replace(event, index=at)
        if self._open is None:
            return [began]
        ended, self._open = neutral.PartEnded(self._open), None
        return [ended, began]
