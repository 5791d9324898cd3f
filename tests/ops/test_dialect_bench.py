"""The bench of dialects measures what it says: its inputs are understood by what decodes them."""

import pytest
from ops.bench import dialects as bench

from breakwater_gateway.config.model import Wire
from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.dialects import caller_dialect, provider_dialect

WIRES: tuple[Wire, ...] = (*bench.APIS, *bench.SIMULATED)


def said(events: list[n.StreamEvent]) -> tuple[str, list[str]]:
    """The text, and the arguments of each tool call."""
    text = ""
    calls: dict[int, str] = {}
    for event in events:
        match event:
            case n.PartBegan(index=index, part=n.ToolCall(arguments=arguments)):
                calls[index] = arguments
            case n.Grew(index=index, text=more) if index in calls:
                calls[index] += more
            case n.Grew(text=more):
                text += more
            case n.Broke(failure=failure):
                pytest.fail(str(failure))
            case _:
                pass
    assert isinstance(events[-1], n.Done)
    return text, list(calls.values())


@pytest.mark.parametrize("wire", WIRES)
def test_a_text_stream_of_the_bench_is_decoded_to_its_words(wire: Wire) -> None:
    pieces = bench.spoken(wire).text
    text, calls = said(bench.heard(provider_dialect(wire, wire).stream_decoder(), pieces))
    assert (text, calls) == ("".join(bench.WORDS), [])
    assert 0 <= len(pieces) - bench.EVENTS < 10


@pytest.mark.parametrize("wire", WIRES)
def test_a_tool_stream_of_the_bench_is_decoded_to_its_calls(wire: Wire) -> None:
    pieces = bench.spoken(wire).tool
    _, calls = said(bench.heard(provider_dialect(wire, wire).stream_decoder(), pieces))
    one = ["".join(bench.FRAGMENTS)]
    assert calls in (one, [bench.ARGUMENTS] * bench.CALLS)
    assert len(pieces) >= (bench.EVENTS if calls == one else bench.CALLS)


@pytest.mark.parametrize("wire", WIRES)
def test_a_whole_answer_of_the_bench_is_decoded_to_a_text_and_a_call(wire: Wire) -> None:
    answer = provider_dialect(wire, wire).decode_answer(bench.spoken(wire).answer)
    assert isinstance(answer, n.Answer)
    kinds = {type(part) for part in answer.candidates[0].parts}
    assert kinds >= {n.Text, n.ToolCall}


@pytest.mark.parametrize("wire", bench.APIS)
def test_a_callers_body_of_the_bench_holds_the_whole_request(wire: Wire) -> None:
    request = caller_dialect(bench.APIS[wire]).decode_request(bench.caller_body(wire))
    assert len(request.tools) == 1
    assert sum(len(turn.parts) for turn in request.turns) >= 8


@pytest.mark.parametrize(("api", "wire"), bench.PAIRS)
def test_an_exchange_of_the_bench_passes_on_every_word_and_ends_whole(api: str, wire: Wire) -> None:
    exchange = bench.opened(api, wire)
    reads = bench.exchanged(exchange, bench.spoken(wire).text)
    assert [read.failure for read in reads if read.failure is not None] == []
    assert exchange.whole
    lines = b"".join(line for read in reads for line in read.lines)
    assert lines.count(b'" torque"') == bench.WORDS.count(" torque")


def test_the_table_has_a_dash_where_a_dialect_has_no_such_step() -> None:
    found = bench.Costs(None, 1.0, 2.0, 3.0, 4.0, None)
    text = bench.rendered(bench.Table({"ollama": found}, {"chat → openai": 5.0}))
    assert text.splitlines()[1].split() == ["ollama", "-", "1.00", "2.00", "3.00", "4.00", "-"]
    assert text.splitlines()[-1].split() == ["chat", "→", "openai", "5.00"]
