"""What each dialect costs: `uv run python -m ops.bench.dialects [--json]`, µs of CPU by step and dialect.

The smallest of several batches is printed: noise of a shared machine only ever adds. A streamed event's cost
is that of a whole stream, opening and end included, by its number of events, each fed as one piece.

Inputs: the request below, encoded by each dialect; answers and streams of the dialects that callers speak
too are written by the gateway's own encoders, those of Bedrock, Cohere and Ollama by the simulator.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import cycle, islice
from typing import Final

import click
import msgspec
from msgspec import Raw, Struct
from ops.bench.parts import cost_us

from breakwater_gateway.config.model import Wire
from breakwater_gateway.simulator.dialects.bedrock import Bedrock
from breakwater_gateway.simulator.dialects.cohere import Cohere
from breakwater_gateway.simulator.dialects.dialect import Dialect, sse
from breakwater_gateway.simulator.dialects.ollama import Ollama
from breakwater_gateway.simulator.script import Script
from breakwater_gateway.simulator.turns import Choice, Sampling, ToolUse
from breakwater_gateway.simulator.turns import Turn as Asking
from breakwater_gateway.worker.exchange import (
    Asked,
    Exchange,
    NativeChat,
    Read,
    Translated,
    open_exchange,
)
from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import openai
from breakwater_gateway.worker.wire.dialects import (
    CallerDialect,
    caller_dialect,
    provider_dialect,
)
from breakwater_protocol.chat import Usage

EVENTS: Final = 256
"""Text events, or fragments of one tool call, of one stream."""
CALLS: Final = 16
"""Tool calls of a stream where the dialect has each call whole, in one event."""

MODEL: Final = "main-model"
USAGE: Final = Usage(input=400, output=EVENTS, cache_read=64)
WORDS: Final = tuple(
    islice(
        cycle((" the", " torque", " wrench", " on", " shelf", " twelve", " takes", " part")), EVENTS
    )
)
FRAGMENTS: Final = ('{"query":"', *WORDS[:-2], '"}')
ARGUMENTS: Final = '{"query":"ratchet head of a torque wrench","shelf":12,"opened":true}'

SCHEMA: Final = Raw(
    b'{"type":"object","properties":{"query":{"type":"string","description":"What to look for"},'
    b'"shelf":{"type":"integer"},"opened":{"type":"boolean"}},"required":["query"]}'
)
_QUESTION: Final = (
    "I bought a torque wrench last spring and its ratchet slips under load; which spare part do I need, "
    "and may I bring it back opened?"
)


def _said(role: n.Role, text: str) -> n.Turn:
    return n.Turn(role, [n.Text(text=text)], plain=True)


REQUEST: Final = n.Request(
    dialect="openai",
    model=MODEL,
    turns=[
        _said(
            "system", "You are the assistant of a hardware shop. Answer briefly, name the shelf."
        ),
        _said("user", _QUESTION),
        n.Turn("assistant", [n.ToolCall(id="call_1", name="find_part", arguments=ARGUMENTS)]),
        n.Turn(
            "tool",
            [
                n.ToolResult(
                    call_id="call_1",
                    name="find_part",
                    content=[n.Text(text='{"part":"R-12","stock":3}')],
                    plain=True,
                )
            ],
        ),
        _said("assistant", "You need part R-12, on shelf twelve. Opened goods may come back."),
        _said("user", _QUESTION),
        _said("assistant", "Within thirty days, with the receipt."),
        _said("user", "And if I have lost the receipt?"),
    ],
    tools=[n.Tool(name="find_part", description="Look in the stock list", schema=SCHEMA)],
    tool_choice=n.ToolChoice("auto"),
    max_output=1024,
    temperature=0.25,
    stream=True,
    usage_wanted=True,
)
"""Eight turns, one tool, called once."""


class Spoken(Struct, frozen=True):
    """What a provider sends. A stream is its events, one a piece."""

    answer: bytes
    text: list[bytes]
    tool: list[bytes]


class Costs(Struct, frozen=True):
    """µs of one dialect; None where it has no such step."""

    decode_request: float | None
    encode_request: float
    decode_answer: float
    decode_text_event: float
    decode_tool_event: float
    encode_event: float | None


class Table(Struct, frozen=True):
    dialects: dict[str, Costs]
    exchanges: dict[str, float]
    """µs by streamed event, of an exchange from its opening to its end."""


APIS: Final[Mapping[Wire, str]] = {
    "openai": "chat",
    "responses": "responses",
    "anthropic": "messages",
    "gemini": "generate",
}
"""The API by which a caller speaks the dialect of a provider."""
SIMULATED: Final[Mapping[Wire, Callable[[], Dialect]]] = {
    "bedrock": Bedrock,
    "cohere": Cohere,
    "ollama": Ollama,
}
FOREIGN: Final[n.DialectName] = "bedrock"
"""Where encoded answers are said to come from: no caller's own, so that each encoder words all itself."""
_WHOLE_CALLS: Final = frozenset({"gemini", "ollama"})
PAIRS: Final[tuple[tuple[str, Wire], ...]] = (
    ("chat", "openai"),
    ("messages", "openai"),
    ("chat", "anthropic"),
    ("chat", "gemini"),
)


# ---- inputs


def text_events() -> list[n.StreamEvent]:
    """A neutral stream that says `WORDS`."""
    grown = [n.Grew(0, text=word) for word in WORDS]
    return [*_opening(), n.PartBegan(0, n.Text(text="")), *grown, n.PartEnded(0), *_ending("stop")]


def tool_events(calls: list[tuple[str, ...]]) -> list[n.StreamEvent]:
    """A neutral stream of tool calls, each given as the fragments of its arguments."""
    out = _opening()
    for i, fragments in enumerate(calls):
        call = n.ToolCall(id=f"call_{i}", name="find_part", arguments="")
        out.append(n.PartBegan(i, call))
        out += [n.Grew(i, text=fragment) for fragment in fragments]
        out.append(n.PartEnded(i))
    return out + _ending("tool_calls")


def _opening() -> list[n.StreamEvent]:
    return [n.Began(id="answer-1", model="provider-model", created=1_760_000_000)]


def _ending(finish: n.Finish) -> list[n.StreamEvent]:
    return [n.Finished(finish), n.UsageKnown(USAGE), n.Done()]


def spoken(wire: Wire) -> Spoken:
    """What a provider of this dialect sends."""
    calls: list[tuple[str, ...]] = [(ARGUMENTS,)] * CALLS if wire in _WHOLE_CALLS else [FRAGMENTS]
    simulated = SIMULATED.get(wire)
    return _written(wire, calls) if simulated is None else _simulated(simulated(), calls)


def _written(wire: Wire, calls: list[tuple[str, ...]]) -> Spoken:
    caller = caller_dialect(APIS[wire])
    answer = n.Answer(
        dialect=FOREIGN,
        id="answer-1",
        model="provider-model",
        created=1_760_000_000,
        candidates=[
            n.Candidate(
                parts=[
                    n.Text(text="".join(WORDS)),
                    n.ToolCall(id="call_1", name="find_part", arguments=ARGUMENTS),
                ],
                finish="tool_calls",
            )
        ],
        usage=USAGE,
    )
    return Spoken(
        caller.encode_answer(answer, "provider-model"),
        list(_framed(caller, text_events())),
        list(_framed(caller, tool_events(calls))),
    )


def _framed(caller: CallerDialect, events: list[n.StreamEvent]) -> Iterator[bytes]:
    """The events of a stream as its own provider frames them."""
    encoder = caller.stream_encoder(REQUEST, FOREIGN, "provider-model")
    named = caller.name in {"anthropic", "responses"}
    for event in events:
        for line in encoder.feed([event]):
            yield sse(line, msgspec.json.decode(line)["type"] if named else "")
    if caller.name == "openai":
        yield sse(b"[DONE]")


def _simulated(dialect: Dialect, calls: list[tuple[str, ...]]) -> Spoken:
    asking = Asking(
        model="provider-model",
        stream=True,
        include_usage=True,
        choices=1,
        tokens_max=None,
        stop=(),
        prompt_tokens=USAGE.input,
        last_text=_QUESTION,
        tools=(),
        forced=False,
        answered=False,
        schema=None,
    )
    script, sampling = Script(), Sampling(chance=0x5EED, created=1_760_000_000)
    called = tuple(ToolUse("find_part", fragments, chance=i) for i, fragments in enumerate(calls))
    one = (ToolUse("find_part", (ARGUMENTS,), chance=1),)

    def stream(choice: Choice) -> list[bytes]:
        return [event.data for event in dialect.events(asking, [choice], script, sampling)]

    return Spoken(
        dialect.answer(asking, [Choice(WORDS, "tool_calls", one)], script, sampling),
        stream(Choice(WORDS, "stop")),
        stream(Choice((), "tool_calls", called)),
    )


@cache
def caller_body(wire: Wire) -> bytes:
    """`REQUEST` as a caller of this dialect writes it."""
    body = provider_dialect(wire, wire).encode_request(REQUEST, n.Target(MODEL)).body
    if wire == "openai":
        # Under its old name OpenAI's reasoning models refuse it, and the exchange rewrites the body.
        body = body.replace(b'"max_tokens"', b'"max_completion_tokens"')
    if wire == "gemini":
        # The edge adds to the body what this API has in its URL.
        body = b'{"model":"%b","stream":true,%b' % (MODEL.encode(), body[1:])
    return body


def opened(api: str, wire: Wire) -> Exchange:
    """An exchange of `REQUEST`. Raises TypeError if it was refused, or took the wrong path."""
    own = next(spoken_by for spoken_by, by in APIS.items() if by == api)
    exchange = open_exchange(
        Asked(
            api=api,
            stream=True,
            usage_wanted=True,
            body=Raw(caller_body(own)),
            model=MODEL,
            wire=wire,
            provider=wire,
            provider_model="provider-model",
            quirks={},
            limit=n.EVENT_BYTES_MAX,
        )
    )
    if not isinstance(exchange, NativeChat if own == wire else Translated):
        raise TypeError(f"{api} to {wire} is not what was to be measured: {exchange!r}")
    return exchange


# ---- steps


def heard(decoder: n.StreamDecoder, pieces: list[bytes]) -> list[n.StreamEvent]:
    """A whole stream decoded, piece by piece."""
    events: list[n.StreamEvent] = []
    for piece in pieces:
        events += decoder.feed(piece)
    return events + decoder.end()


def written(encoder: n.StreamEncoder, events: list[n.StreamEvent]) -> int:
    """The lines of a whole stream encoded, event by event."""
    return sum(len(encoder.feed([event])) for event in events)


def exchanged(exchange: Exchange, pieces: list[bytes]) -> list[Read]:
    """All that a stream comes to, until its end."""
    reads = [exchange.feed(piece) for piece in pieces]
    reads.append(exchange.end())
    return reads


def native_costs() -> Costs:
    """OpenAI's chat to a host that speaks it: bytes pass, and only the worker's own fields are read."""
    given, body = spoken("openai"), caller_body("openai")
    raw = Raw(body)
    call = n.Call(openai.PATHS["chat"], body)

    def passed() -> NativeChat:
        return NativeChat(call, usage_wanted=True, limit=n.EVENT_BYTES_MAX)

    whole = passed()
    return Costs(
        decode_request=None,
        encode_request=cost_us(
            lambda: openai.encode_request(raw, model="provider-model", api="chat", stream=True)
        ),
        decode_answer=cost_us(lambda: whole.answer(given.answer)),
        decode_text_event=cost_us(lambda: exchanged(passed(), given.text)) / len(given.text),
        decode_tool_event=cost_us(lambda: exchanged(passed(), given.tool)) / len(given.tool),
        encode_event=None,
    )


def costs(wire: Wire) -> Costs:
    """Through the neutral vocabulary."""
    provider, given = provider_dialect(wire, wire), spoken(wire)
    target, new = n.Target("provider-model"), provider.stream_decoder
    decode_request = encode_event = None
    if wire in APIS:
        caller, body, events = caller_dialect(APIS[wire]), caller_body(wire), text_events()

        def encoded() -> int:
            return written(caller.stream_encoder(REQUEST, FOREIGN, MODEL), events)

        decode_request = cost_us(lambda: caller.decode_request(body))
        encode_event = cost_us(encoded) / len(events)
    return Costs(
        decode_request=decode_request,
        encode_request=cost_us(lambda: provider.encode_request(REQUEST, target)),
        decode_answer=cost_us(lambda: provider.decode_answer(given.answer)),
        decode_text_event=cost_us(lambda: heard(new(), given.text)) / len(given.text),
        decode_tool_event=cost_us(lambda: heard(new(), given.tool)) / len(given.tool),
        encode_event=encode_event,
    )


def exchange_cost(api: str, wire: Wire) -> float:
    pieces = spoken(wire).text
    return cost_us(lambda: exchanged(opened(api, wire), pieces)) / len(pieces)


def measured() -> Table:
    found = {"openai native": native_costs()}
    for wire in (*APIS, *SIMULATED):
        found["openai_chat" if wire == "openai" else wire] = costs(wire)
    return Table(found, {f"{api} → {wire}": exchange_cost(api, wire) for api, wire in PAIRS})


# ---- the table

_COLUMNS: Final = {
    "decode_request": "request in",
    "encode_request": "request out",
    "decode_answer": "answer in",
    "decode_text_event": "text event in",
    "decode_tool_event": "tool event in",
    "encode_event": "event out",
}


def rendered(table: Table) -> str:
    """For eyes: µs in two decimals, a dash where a dialect has no such step."""
    lines = [f"{'µs of CPU':<22}" + "".join(f"{head:>15}" for head in _COLUMNS.values())]
    for name, found in table.dialects.items():
        cells: list[float | None] = [getattr(found, field) for field in _COLUMNS]
        shown = ("-" if cell is None else f"{cell:.2f}" for cell in cells)
        lines.append(f"{name:<22}" + "".join(f"{cell:>15}" for cell in shown))
    lines += ["", "a whole exchange, by streamed event"]
    lines += [f"{name:<22}{cost:>15.2f}" for name, cost in table.exchanges.items()]
    return "\n".join(lines)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def main(*, as_json: bool) -> None:
    """What each dialect costs, in µs of CPU."""
    table = measured()
    click.echo(msgspec.json.encode(table).decode() if as_json else rendered(table))


if __name__ == "__main__":
    main()
