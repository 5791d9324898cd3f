"""An answer that no provider just gave, in a caller's dialect: written answers, and answers kept in a cache.

`whole` is a body; `chunks` are the JSON objects of a stream, in order, without SSE framing (as a
`StreamEncoder` gives them).
"""

from breakwater_gateway.worker.wire import neutral
from breakwater_gateway.worker.wire.dialects import CALLERS, caller_dialect
from breakwater_protocol.chat import Usage


def of_text(text: str, *, id_: str, created: int, model: str) -> neutral.Answer:
    """A plain answer that cost no token. `created` is Unix seconds."""
    return neutral.Answer(
        dialect="openai",
        id=id_,
        model=model,
        created=created,
        candidates=[neutral.Candidate([neutral.Text(text=text)], finish="stop", native="stop")],
        usage=Usage(),
    )


def whole(answer: neutral.Answer, *, api: str, model: str) -> bytes:
    """`model` as the caller named it."""
    return caller_dialect(api).encode_answer(answer, model)


def chunks(
    answer: neutral.Answer, *, api: str, model: str, usage_wanted: bool = False
) -> list[bytes]:
    """`usage_wanted`: OpenAI's `stream_options.include_usage`; the other dialects always show usage."""
    request = neutral.Request(
        dialect=CALLERS[api], model=model, stream=True, usage_wanted=usage_wanted
    )
    encoder = caller_dialect(api).stream_encoder(request, answer.dialect, model)
    return encoder.feed(events_of(answer))


def events_of(answer: neutral.Answer) -> list[neutral.StreamEvent]:
    """The stream that the whole answer would have been."""
    events: list[neutral.StreamEvent] = [
        neutral.Began(answer.id, answer.model, answer.created, answer.extra)
    ]
    for number, candidate in enumerate(answer.candidates):
        for index, part in enumerate(candidate.parts):
            events += _part(part, index, number)
        events.append(
            neutral.Finished(
                candidate.finish or "stop",
                candidate.native,
                candidate.stop_sequence,
                number,
                candidate.extra,
            )
        )
    if answer.usage is not None:
        events.append(neutral.UsageKnown(answer.usage))
    events.append(neutral.Done())
    return events


def _part(part: neutral.Part, index: int, candidate: int) -> list[neutral.StreamEvent]:
    """A part opens as a decoder would open it, empty, and grows at once to what it is."""
    ended = neutral.PartEnded(index, candidate)
    match part:
        case neutral.Text(text=text):
            began: neutral.Part = neutral.Text(text="", extra=part.extra)
            grew = neutral.Grew(index, text, candidate=candidate)
        case neutral.Refusal(text=text):
            began = neutral.Refusal(text="", extra=part.extra)
            grew = neutral.Grew(index, text, candidate=candidate)
        case neutral.Thinking(text=text, signature=signature):
            began = neutral.Thinking(id=part.id, redacted=part.redacted, extra=part.extra)
            grew = neutral.Grew(index, text, signature, candidate=candidate)
        case neutral.ToolCall(arguments=arguments):
            began = neutral.ToolCall(
                id=part.id, name=part.name, arguments="", signature=part.signature, extra=part.extra
            )
            grew = neutral.Grew(index, arguments, candidate=candidate)
        case _:
            return [neutral.PartBegan(index, part, candidate), ended]
    return [neutral.PartBegan(index, began, candidate), grew, ended]
