"""One answer in two forms: whole, and as the lines of a stream. Both ways, in every caller's dialect.

Through the neutral vocabulary: the caller's dialect is read as a provider's would be, and written again.
"""

from typing import Final

import msgspec

from breakwater_gateway.config.model import Wire
from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import render
from breakwater_gateway.worker.wire.dialects import CALLERS, provider_dialect
from breakwater_protocol.chat import Usage

WIRES: Final[dict[str, Wire]] = {
    "chat": "openai",
    "messages": "anthropic",
    "responses": "responses",
    "generate": "gemini",
}

SAYING: Final = (n.Text, n.Thinking)
REFUSING: Final = n.Refusal


def answer_of(api: str, form: str, payload: bytes) -> n.Answer | None:
    """None for what cannot be read as an answer of that API."""
    provider = provider_dialect(WIRES[api], WIRES[api])
    if form == "body":
        answer = provider.decode_answer(payload)
        return answer if isinstance(answer, n.Answer) else None
    decoder = provider.stream_decoder()
    events: list[n.StreamEvent] = []
    for line in payload.split(b"\n"):
        events += decoder.feed(b"data: " + line + b"\n\n")
    events += decoder.end()
    if any(isinstance(event, n.Broke) for event in events):
        return None
    return collected(events, provider.name)


def body_of(answer: n.Answer, api: str, model: str) -> bytes:
    return render.whole(_plain(answer), api=api, model=model)


def lines_of(answer: n.Answer, api: str, model: str, *, usage: bool) -> list[bytes]:
    """`usage`: OpenAI's chat only says it on a stream when it is asked for."""
    return render.chunks(_plain(answer), api=api, model=model, usage_wanted=usage)


def _plain(answer: n.Answer) -> n.Answer:
    """Without what only stands in the form it was read from."""
    candidates = [msgspec.structs.replace(c, extra={}) for c in answer.candidates]
    return msgspec.structs.replace(answer, candidates=candidates, extra={})


def usage_line(api: str, usage: Usage, model: str) -> bytes:
    """The chunk with which OpenAI's chat tells the usage of a stream."""
    answer = n.Answer(dialect=CALLERS[api], usage=usage)
    return lines_of(answer, api, model, usage=True)[-1]


class _Candidate:
    def __init__(self) -> None:
        self.parts: dict[int, n.Part] = {}
        self.texts: dict[int, list[str]] = {}
        self.signatures: dict[int, list[str]] = {}
        self.end = n.Finished("")

    def candidate(self) -> n.Candidate:
        return n.Candidate(
            parts=[self._whole(index) for index in sorted(self.parts)],
            finish=self.end.finish,
            native=self.end.native,
            stop_sequence=self.end.stop_sequence,
        )

    def _whole(self, index: int) -> n.Part:
        part = self.parts[index]
        more = "".join(self.texts.get(index, ()))
        match part:
            case n.Text():
                return n.Text(part.text + more)
            case n.Thinking():
                signature = part.signature + "".join(self.signatures.get(index, ()))
                return n.Thinking(part.text + more, signature, part.redacted, part.id)
            case n.Refusal():
                return n.Refusal(part.text + more)
            case n.ToolCall():
                return n.ToolCall(part.id, part.name, part.arguments + more, part.signature)
            case _:
                return part


def collected(events: list[n.StreamEvent], dialect: n.DialectName) -> n.Answer:
    """What a stream said, as the whole answer."""
    began = n.Began()
    usage: Usage | None = None
    found: dict[int, _Candidate] = {}
    for event in events:
        match event:
            case n.Began():
                began = event
            case n.PartBegan(index=index, part=part, candidate=number):
                found.setdefault(number, _Candidate()).parts[index] = part
            case n.Grew(index=index, text=text, signature=signature, candidate=number):
                one = found.setdefault(number, _Candidate())
                one.texts.setdefault(index, []).append(text)
                one.signatures.setdefault(index, []).append(signature)
            case n.Finished(candidate=number):
                found.setdefault(number, _Candidate()).end = event
            case n.UsageKnown():
                usage = event.usage
            case _:
                continue
    return n.Answer(
        dialect=dialect,
        id=began.id,
        model=began.model,
        created=began.created,
        candidates=[found[number].candidate() for number in sorted(found)],
        usage=usage,
    )


def text(answer: n.Answer) -> str:
    """What the first candidate says in words."""
    if not answer.candidates:
        return ""
    return "".join(part.text for part in answer.candidates[0].parts if isinstance(part, n.Text))
