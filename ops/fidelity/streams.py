"""What holds for every stream of every dialect: the order of events, and that cuts do not matter."""

from collections.abc import Callable, Iterator
from typing import Final, Protocol

import msgspec
from ops.fidelity.finding import Findings, wrong

from breakwater_gateway.worker.wire import neutral as n


class Decoder(Protocol):
    def feed(self, data: bytes) -> list[n.StreamEvent]: ...

    def end(self) -> list[n.StreamEvent]: ...


Make = Callable[[], Decoder]

EVERY_CUT_BELOW: Final = 1500
"""Bytes of a stream up to which it is cut in two at every place."""
CUTS: Final = 12
"""Cuts of a longer one, besides those at places where decoders err."""
BYTEWISE_BELOW: Final = 20_000
"""Bytes of a stream up to which it also arrives byte by byte."""

_encode: Final = msgspec.json.Encoder().encode


def decoded(make: Make, *pieces: bytes) -> list[n.StreamEvent]:
    decoder = make()
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return events + decoder.end()


def cuts(body: bytes) -> Iterator[int]:
    """Where to cut a body in two: everywhere, or at a sample that is the same every time."""
    size = len(body)
    if size <= EVERY_CUT_BELOW:
        yield from range(1, size)
        return
    yield from range(1, size, size // CUTS)
    # Within a line's end, between events, within a character, within the end itself.
    for mark in (b"\r", b"\n", b"\xe2", b"\xf0", b"\\"):
        at = body.find(mark, size // 3)
        if 0 <= at < size - 1:
            yield at + 1
    yield from (size - 2, size - 1)


def pieces(body: bytes, size: int) -> list[bytes]:
    return [body[at : at + size] for at in range(0, len(body), size)]


def cut_anywhere(make: Make, body: bytes, whole: list[n.StreamEvent]) -> Findings:
    """The same events, however the body arrives."""
    told = _encode(whole)
    for at in cuts(body):
        if _encode(decoded(make, body[:at], body[at:])) != told:
            yield wrong("stream: cut in two, it gives other events", f"at byte {at}")
            return
    for size in (1, 7, 1021) if len(body) < BYTEWISE_BELOW else (61, 1021):
        if _encode(decoded(make, *pieces(body, size))) != told:
            yield wrong("stream: cut in pieces, it gives other events", f"of {size} bytes")
            return


def cut_short(make: Make, body: bytes) -> Findings:
    """Half a stream is never whole; one whose finish was told may be, where hosts end with that."""
    for at in (len(body) // 4, len(body) // 2):
        kinds = {type(event) for event in decoded(make, body[:at])}
        if n.Done in kinds and n.Finished not in kinds:
            yield wrong("stream: cut short, it is told as whole", f"at byte {at}")
            return


def contract(events: list[n.StreamEvent]) -> Findings:
    """The order that `neutral` promises: one start, parts counted and closed, one finish each, one end."""
    if not events:
        yield wrong("stream: no events")
        return
    if not isinstance(events[0], n.Began):
        yield wrong("stream: does not start with Began", type(events[0]).__name__)
    counts: dict[int, int] = {}
    still_open: set[tuple[int, int]] = set()
    finished: set[int] = set()
    for at, event in enumerate(events):
        match event:
            case n.Began() if at:
                yield wrong("stream: begins twice")
            case n.PartBegan(index=index, candidate=of):
                if index != counts.get(of, 0):
                    yield wrong("stream: parts are not counted one by one")
                if of in finished:
                    yield wrong("stream: a part begins after the finish")
                counts[of] = index + 1
                still_open.add((of, index))
            case n.Grew(index=index, candidate=of):
                if (of, index) not in still_open:
                    yield wrong("stream: a part grows that is not open")
            case n.PartEnded(index=index, candidate=of):
                if (of, index) not in still_open:
                    yield wrong("stream: a part ends that is not open")
                still_open.discard((of, index))
            case n.Finished(candidate=of):
                if of in finished:
                    yield wrong("stream: a candidate finishes twice")
                if any(candidate == of for candidate, _ in still_open):
                    yield wrong("stream: a candidate finishes with an open part")
                finished.add(of)
            case n.Done() | n.Broke() if at != len(events) - 1:
                yield wrong("stream: goes on after its end")
            case _:
                pass
    if still_open:
        yield wrong("stream: a part never ends")


def ends(events: list[n.StreamEvent], *, done: bool, failed: bool) -> Findings:
    """How a stream ends. `done`: as its API promises; `failed`: it holds an error."""
    last = events[-1] if events else None
    if failed:
        if not isinstance(last, n.Broke):
            yield wrong("stream: an error in it is not told", type(last).__name__)
        return
    if isinstance(last, n.Broke):
        yield wrong("stream: broken off without need", last.failure)
        return
    if done != isinstance(last, n.Done):
        yield wrong("stream: a proper end is not told" if done else "stream: a cut is not told")
    if done and not any(isinstance(event, n.Finished) for event in events):
        yield wrong("stream: no candidate finishes")


def texts(events: list[n.StreamEvent], kind: type[n.Part], candidate: int = 0) -> list[str]:
    """The text of each part of one kind, of one candidate."""
    found: dict[int, str] = {}
    for event in events:
        match event:
            case n.PartBegan(index=index, part=part, candidate=of) if of == candidate:
                if isinstance(part, kind):
                    found[index] = ""
            case n.Grew(index=index, text=text, candidate=of) if of == candidate:
                if index in found:
                    found[index] += text
            case _:
                pass
    return list(found.values())


def last_usage(events: list[n.StreamEvent]) -> n.UsageKnown | None:
    known = [event for event in events if isinstance(event, n.UsageKnown)]
    return known[-1] if known else None
