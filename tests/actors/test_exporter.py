"""Traces at work: real actors, a stream of their events, and a collector that decodes what it is sent."""

import asyncio
import gzip
import io
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.actors.stage import ANSWER, SUBJECTS, Gateway, config, delta, stage
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.config import codec
from breakwater_gateway.config.model import CachePolicy, Config, KeyRef, Rung, Telemetry
from breakwater_gateway.exporter.cursor import BUCKET, KEY, Cursor
from breakwater_gateway.runtime.bus import Stored
from breakwater_gateway.runtime.logs import configure_logging
from breakwater_gateway.runtime.memory_bus import KeptLog
from breakwater_gateway.runtime.metrics import render
from breakwater_gateway.runtime.service import publish_config

pytestmark = pytest.mark.anyio

ENDPOINT = KeyRef("env", "OTEL_EXPORTER_OTLP_ENDPOINT")
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What is logged."""
    stream = io.StringIO()
    configure_logging(stream=stream)
    yield stream
    configure_logging()


def traced(*ids: str, share: float = 1.0, otlp: str | KeyRef = ENDPOINT, **model: object) -> Config:
    settings = config(*ids)
    changed = msgspec.structs.replace(settings.models["m"], **model)
    telemetry = Telemetry(otlp=otlp, trace_sample=share)
    return msgspec.structs.replace(settings, models={"m": changed}, telemetry=telemetry)


class Collector(httpx.AsyncBaseTransport):
    """Takes spans, or answers as it is told to, once for each time."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.spans: list[Span] = []
        self.answers: list[httpx.Response | Exception] = []
        self.broken: httpx.Response | Exception | None = None
        self._some = asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        body = await request.aread()
        self._some.set()
        said = self.answers.pop(0) if self.answers else self.broken
        if isinstance(said, Exception):
            raise said
        if said is not None and said.status_code != 200:
            return httpx.Response(
                said.status_code, headers=said.headers, stream=httpx.ByteStream(b"no")
            )
        sent = ExportTraceServiceRequest.FromString(gzip.decompress(body))
        self.spans += [
            span for of in sent.resource_spans for scope in of.scope_spans for span in scope.spans
        ]
        self._some.set()
        content = said.content if said is not None else b""
        return httpx.Response(200, stream=httpx.ByteStream(content))

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(600):
            while not true():
                self._some.clear()
                await self._some.wait()

    async def spans_of(self, count: int) -> list[Span]:
        await self.until(lambda: len(self.spans) >= count)
        return self.spans


def facts(span: Span) -> dict[str, Any]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value") or "")
        for each in span.attributes
    }


@asynccontextmanager
async def exporting(
    settings: Config, *, actors: tuple[str, ...] = ("exporter",), **environment: str
) -> AsyncIterator[tuple[Gateway, Collector, KeptLog]]:
    async with stage(settings) as gateway:
        collector = gateway.collector = Collector()
        gateway.environment = {ENDPOINT.name: "http://collector:4318", **environment}
        log = await gateway.keep_events()
        for actor in actors:
            await gateway.add(actor)
        if actors and settings.telemetry.otlp:
            await begun(gateway)
        yield gateway, collector, log


async def begun(gateway: Gateway) -> None:
    """What happens from now on is exported."""
    while await cursor(gateway) is None:  # noqa: ASYNC110 - the bucket says so to nobody
        await asyncio.sleep(0.01)


async def ask(gateway: Gateway, status: int = 200, **more: Any) -> None:  # noqa: ANN401
    caller = gateway.ask(**more)
    (await gateway.provider.next_call()).reply(status, ANSWER)
    await caller.reply()


def counted(gateway: Gateway, series: str) -> float:
    text = render([gateway.metrics.snapshot()]).decode()
    return next(
        float(v) for k, v in (line.rsplit(" ", 1) for line in text.splitlines()) if k == series
    )


async def cursor(gateway: Gateway) -> Cursor | None:
    entry = await (await gateway.bus.store(BUCKET)).get(KEY)
    if entry is None or entry.value is None:
        return None
    return msgspec.json.decode(entry.value, type=Cursor)


async def test_a_request_becomes_a_span_with_a_child_for_its_call(
    written: io.StringIO,
) -> None:
    headers = "authorization=Bearer%20s3cret"
    async with exporting(traced("a"), OTEL_EXPORTER_OTLP_HEADERS=headers) as (
        gateway,
        collector,
        _,
    ):
        await ask(
            gateway,
            headers={"traceparent": PARENT, "tracestate": "v=1", "breakwater-user": "ann"},
        )
        root, call = await collector.spans_of(2)
        assert root.trace_id.hex() == call.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
        assert (root.parent_span_id.hex(), root.trace_state) == ("b7ad6b7169203331", "v=1")
        assert call.parent_span_id == root.span_id
        assert (root.name, root.kind) == ("chat m", Span.SPAN_KIND_SERVER)
        assert (call.name, call.kind) == ("chat a-model", Span.SPAN_KIND_CLIENT)
        said = facts(call)
        assert said["gen_ai.request.model"] == "a-model"
        assert said["gen_ai.usage.input_tokens"] == 3
        assert said["gen_ai.usage.output_tokens"] == 1
        assert said["breakwater.user"] == facts(root)["breakwater.user"] == "ann"
        assert "gen_ai.usage.input_tokens" not in facts(root)
        (request,) = collector.requests
        assert str(request.url) == "http://collector:4318/v1/traces"
        assert request.headers["authorization"] == "Bearer s3cret"
        assert request.headers["content-type"] == "application/x-protobuf"
        assert counted(gateway, 'breakwater_spans_total{result="sent"}') == 2
    assert "traces_on" in written.getvalue()
    assert "s3cret" not in written.getvalue()


async def test_a_retried_request_is_kept_with_the_call_that_failed() -> None:
    async with exporting(traced("a", "b", share=0.0)) as (gateway, collector, _):
        await ask(gateway)
        caller = gateway.ask()
        (await gateway.provider.next_call()).reply(503)
        (await gateway.provider.next_call()).reply(200, ANSWER)
        await caller.reply()
        root, first, second = await collector.spans_of(3)
        assert facts(root)["breakwater.kept"] == "retried"
        assert (first.status.code, facts(first)["http.response.status_code"]) == (2, 503)
        assert facts(first)["error.type"] == "overloaded"
        assert (second.status.code, facts(second)["breakwater.deployment"]) == (0, "b")
        assert {first.parent_span_id, second.parent_span_id} == {root.span_id}
        assert counted(gateway, 'breakwater_traces_total{decision="left_out"}') == 1
        assert counted(gateway, 'breakwater_traces_total{decision="exported"}') == 1


async def test_errors_degraded_and_partial_answers_are_kept_and_marked() -> None:
    settings = traced("a", share=0.0, ladder=(Rung("static"), Rung("error")))
    async with exporting(settings) as (gateway, collector, _):
        caller = gateway.ask(stream=True)
        call = await gateway.provider.next_call()
        call.start(200, content_type="text/event-stream")
        call.send(delta("hel"))
        await caller.reply()
        call.cut()
        while caller.all[-1].headers.get("breakwater-end") is None:
            await caller.reply()
        root, child = await collector.spans_of(2)
        assert (root.status.code, facts(root)["error.type"]) == (2, "partial")
        assert facts(root)["breakwater.kept"] == facts(root)["breakwater.outcome"] == "partial"
        assert child.status.code == 2
        assert facts(child)["gen_ai.request.stream"] is True
        assert facts(child)["gen_ai.response.time_to_first_chunk"] >= 0

        await ask(gateway, status=400)
        *_, root, child = await collector.spans_of(4)
        assert (root.status.code, facts(root)["error.type"]) == (2, "invalid_request")
        assert facts(child)["http.response.status_code"] == 400


async def test_a_cached_answer_is_a_span_without_a_call() -> None:
    async with exporting(traced("a", cache=CachePolicy())) as (gateway, collector, _):
        await ask(gateway, temperature=0)
        await gateway.ask(temperature=0).reply()
        *_, hit = await collector.spans_of(3)
        said = facts(hit)
        assert (said["breakwater.cache"], said["breakwater.rung"]) == ("hit", "primary")
        assert said["breakwater.attempts"] == 0
        assert said["breakwater.cost_usd"] == 0


async def test_a_collector_that_is_down_disturbs_no_request_and_gets_everything_later() -> None:
    async with exporting(traced("a")) as (gateway, collector, _):
        collector.broken = httpx.ConnectError("refused")
        await ask(gateway)
        await collector.until(lambda: len(collector.requests) >= 3)
        for _ in range(20):
            await ask(gateway)
        assert collector.spans == []
        assert counted(gateway, "breakwater_export_lag_seconds") > 0
        collector.broken = None
        spans = await collector.spans_of(42)
        assert len({span.span_id for span in spans}) == len(spans) == 42
        assert counted(gateway, "breakwater_export_failures_total") >= 3


async def test_retry_after_is_waited_for() -> None:
    async with exporting(traced("a")) as (gateway, collector, _):
        collector.answers = [
            httpx.Response(429, headers={"retry-after": "20"}),
            httpx.Response(503),
        ]
        await ask(gateway)
        await collector.until(lambda: len(collector.requests) == 1)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await collector.until(lambda: len(collector.requests) == 2)
        assert loop.time() - began == pytest.approx(20, abs=0.1)
        await collector.spans_of(2)
        assert loop.time() - began < 23


async def test_what_the_collector_refuses_is_counted_and_left() -> None:
    async with exporting(traced("a")) as (gateway, collector, _):
        collector.answers = [httpx.Response(401)]
        await ask(gateway)
        await collector.until(lambda: len(collector.requests) == 1)
        await ask(gateway)
        assert len(await collector.spans_of(2)) == 2
        assert counted(gateway, 'breakwater_spans_total{result="refused"}') == 2
        assert counted(gateway, 'breakwater_spans_total{result="sent"}') == 2


async def test_a_partial_success_is_counted() -> None:
    said = ExportTraceServiceResponse()
    said.partial_success.rejected_spans = 1
    async with exporting(traced("a")) as (gateway, collector, _):
        collector.answers = [httpx.Response(200, content=said.SerializeToString())]
        await ask(gateway)
        await collector.spans_of(2)
        await ask(gateway)
        await collector.spans_of(4)
        assert counted(gateway, 'breakwater_spans_total{result="rejected"}') == 1
        assert counted(gateway, 'breakwater_spans_total{result="sent"}') == 3


async def test_draining_sends_what_there_is() -> None:
    async with exporting(traced("a")) as (gateway, collector, log):
        await ask(gateway)
        await ask(gateway)
        gateway.supervisors["exporter"].drain()
        assert len(await collector.spans_of(4)) == 4
        async with asyncio.timeout(30):
            while gateway.supervisors["exporter"].actors:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        found = await cursor(gateway)
        assert found is not None
        assert found.after == found.done == log.messages[-1].seq


async def test_draining_does_not_wait_for_a_collector_that_is_down() -> None:
    async with exporting(traced("a")) as (gateway, collector, _):
        collector.broken = httpx.Response(503)
        await ask(gateway)
        loop = asyncio.get_running_loop()
        await collector.until(lambda: len(collector.requests) >= 1)
        began = loop.time()
        gateway.supervisors["exporter"].drain()
        async with asyncio.timeout(30):
            while gateway.supervisors["exporter"].actors:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert loop.time() - began < 6
        collector.broken = None
        await gateway.add("exporter-2")
        assert len(await collector.spans_of(2)) == 2


class Hanging(httpx.AsyncBaseTransport):
    """Takes a request, and answers for ever or not at all."""

    def __init__(self, *, speaks: bool) -> None:
        self.speaks = speaks
        self.asked = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.asked += 1
        if not self.speaks:
            await asyncio.Event().wait()

        async def endless() -> AsyncIterator[bytes]:
            while True:
                await asyncio.sleep(0.001)
                yield bytes(4_096)

        return httpx.Response(503, content=endless())


@pytest.mark.parametrize("speaks", [False, True])
async def test_a_collector_that_hangs_or_never_ends_is_left(speaks: bool) -> None:
    async with exporting(traced("a")) as (gateway, collector, _):
        hanging = gateway.collector = Hanging(speaks=speaks)
        await _replace(gateway, "exporter", "exporter-2")
        await ask(gateway)
        while hanging.asked < 3:
            await ask(gateway)
            await asyncio.sleep(1)
        loop = asyncio.get_running_loop()
        began = loop.time()
        gateway.collector = collector
        await _replace(gateway, "exporter-2", "exporter-3")
        assert loop.time() - began < 30
        count = 2 * len(gateway.requests)
        spans = await collector.spans_of(count)
        assert len({span.span_id for span in spans}) == count


async def _replace(gateway: Gateway, old: str, new: str) -> None:
    gateway.supervisors[old].drain()
    while gateway.supervisors[old].actors:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await gateway.add(new)


async def test_of_two_exporters_one_sends_and_the_other_takes_over() -> None:
    async with exporting(traced("a"), actors=("exporter", "exporter-2")) as (gateway, collector, _):
        for _ in range(5):
            await ask(gateway)
        await collector.spans_of(10)
        gateway.buses["exporter"].cut_off()
        for _ in range(5):
            await ask(gateway)
        spans = await collector.spans_of(20)
        assert len({span.span_id for span in spans}) == len(spans) == 20


async def test_calls_that_wait_for_their_request_are_not_forgotten_by_the_next_exporter() -> None:
    async with exporting(traced("a", "b")) as (gateway, collector, _):
        await ask(gateway)
        await collector.spans_of(2)
        caller = gateway.ask()
        (await gateway.provider.next_call()).reply(503)
        second = await gateway.provider.next_call()
        await asyncio.sleep(3)
        found = await cursor(gateway)
        assert found is not None
        assert found.after < found.done
        gateway.buses["exporter"].cut_off()
        await gateway.add("exporter-2")
        second.reply(200, ANSWER)
        await caller.reply()
        spans = await collector.spans_of(5)
        assert len({span.span_id for span in spans}) == len(spans) == 5
        _, _, root, first, last = spans
        assert {first.parent_span_id, last.parent_span_id} == {root.span_id}


async def test_the_first_exporter_begins_with_what_happens_from_now_on() -> None:
    async with exporting(traced("a"), actors=()) as (gateway, collector, _):
        await ask(gateway, headers={"breakwater-assigned-id": "before"})
        await gateway.add("exporter")
        await begun(gateway)
        await ask(gateway, headers={"breakwater-assigned-id": "after"})
        spans = await collector.spans_of(2)
        assert {facts(span)["breakwater.request_id"] for span in spans} == {"after"}


async def test_a_stream_that_began_anew_is_read_from_its_beginning() -> None:
    async with exporting(traced("a")) as (gateway, collector, log):
        for _ in range(5):
            await ask(gateway)
        await collector.spans_of(10)
        log.messages.clear()
        await ask(gateway)
        spans = await collector.spans_of(12)
        assert len({span.span_id for span in spans}) == 12


async def test_events_that_the_stream_forgot_are_counted() -> None:
    async with exporting(traced("a")) as (gateway, collector, log):
        await ask(gateway)
        await collector.spans_of(2)
        collector.broken = httpx.Response(503)
        await ask(gateway)
        await collector.until(lambda: len(collector.requests) >= 3)
        for _ in range(10):
            await ask(gateway)
        await asyncio.sleep(1)
        # Two are in its hands.
        sent = await cursor(gateway)
        assert sent is not None
        log.messages[:] = [each for each in log.messages if each.seq > sent.done + 2 + 4]
        collector.broken = None
        await collector.spans_of(20)
        assert counted(gateway, "breakwater_export_events_lost_total") == 4


async def test_events_that_cannot_be_read_are_passed_over() -> None:
    async with exporting(traced("a")) as (gateway, collector, log):
        for subject in ("evt.request.t.ok", "evt.attempt.a.ok"):
            for body in (b"", b"[]", b'{"request": 1}', b"\xff"):
                seq = log.messages[-1].seq + 1 if log.messages else 1
                log.messages.append(Stored(f"bw.v1.{subject}", seq, body, gateway.wall()))
        await ask(gateway)
        assert len(await collector.spans_of(2)) == 2


@pytest.mark.parametrize("otlp", ["", ENDPOINT, KeyRef("file", "/nowhere/at-all")])
async def test_without_an_endpoint_nothing_is_done(otlp: str | KeyRef) -> None:
    async with stage(traced("a", otlp=otlp)) as gateway:
        collector = gateway.collector = Collector()
        await gateway.keep_events()
        await gateway.add("exporter")
        await ask(gateway)
        await asyncio.sleep(60)
        assert collector.requests == []
        assert await (await gateway.bus.store("bw_lease")).get("exporter") is None
        assert await cursor(gateway) is None


@pytest.mark.parametrize("bad", ["collector:4318", "http://h/?key=s3cret", "grpc://h"])
async def test_a_bad_endpoint_is_told_without_being_repeated(
    bad: str, written: io.StringIO
) -> None:
    async with stage(traced("a")) as gateway:
        collector = gateway.collector = Collector()
        gateway.environment = {ENDPOINT.name: bad}
        await gateway.keep_events()
        await gateway.add("exporter")
        await ask(gateway)
        await asyncio.sleep(10)
        assert collector.requests == []
    said = written.getvalue()
    assert "traces_off" in said
    assert "s3cret" not in said


async def test_an_endpoint_may_be_configured_and_taken_away_while_it_runs() -> None:
    async with exporting(traced("a", otlp="")) as (gateway, collector, _):
        await ask(gateway)
        await asyncio.sleep(5)
        await publish_config(
            gateway.bus, SUBJECTS, codec.encode(traced("a", otlp="https://otlp.example.com/x"))
        )
        await begun(gateway)
        await ask(gateway)
        assert len(await collector.spans_of(2)) == 2
        assert str(collector.requests[0].url) == "https://otlp.example.com/x/v1/traces"
        revision = await publish_config(gateway.bus, SUBJECTS, codec.encode(traced("a", otlp="")))
        while gateway.actor("exporter").config_revision != revision:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await ask(gateway)
        await asyncio.sleep(10)
        assert len(collector.requests) == 1
