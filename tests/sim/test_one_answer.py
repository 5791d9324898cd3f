"""The whole plan of a request in virtual time: whatever the provider does, one answer, in time, within the envelope
of calls, time and money."""

import asyncio
import json

import anyio
import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.actors.stage import ANSWER, Call, Caller, Gateway, config, delta, stage
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.config.model import (
    Config,
    Hedge,
    KeyRef,
    OnContentFilter,
    Price,
    RetryPolicy,
    Timeouts,
)

TOTAL_S = 12.0
GRACE_S = 1.0
OUTPUT = 1_000
PRICE = Price(0, 1_000)
CALL = OUTPUT * PRICE.output
"""What a call may cost at most, in nano-USD."""

WHOLE = {
    "ok": (200, ANSWER, {}),
    "server_error": (500, b'{"error":{"message":"boom"}}', {}),
    "overloaded": (503, b"{}", {"retry_after": "1"}),
    "rate_limited": (429, b'{"error":{"message":"slow down"}}', {"retry_after": "2"}),
    "unknown_wait": (429, b"{}", {}),
    "no_quota": (429, b'{"error":{"code":"insufficient_quota","message":"x"}}', {}),
    "bad_key": (401, b'{"error":{"message":"no"}}', {}),
    "not_found": (404, b'{"error":{"message":"no such model"}}', {}),
    "bad_request": (400, b'{"error":{"message":"bad","type":"invalid_request_error"}}', {}),
    "too_long": (400, b'{"error":{"code":"context_length_exceeded","message":"x"}}', {}),
    "filtered": (400, b'{"error":{"code":"content_filter","message":"x"}}', {}),
    "nonsense": (200, b"<html>", {}),
}
OTHER = ["refused", "silent", "late", "cut", "half", "stalled", "error_in_stream", "killed"]
BEHAVIOUR = st.tuples(st.sampled_from([*WHOLE, *OTHER]), st.floats(0.0, 3.0))


class Provider:
    """Does to each call what the example says, in order; whatever comes after that is answered."""

    def __init__(self, gateway: Gateway, behaviours: list[tuple[str, float]]) -> None:
        self._gateway = gateway
        self._behaviours = list(behaviours)
        self.calls: dict[str, int] = {}
        self.most: dict[str, int] = {}
        """By request: calls at once that may cost their maximum, under way or over without a word."""
        self._open: dict[str, list[Call]] = {}

    async def serve(self) -> None:
        while True:
            call = await self._gateway.provider.calls.get()
            asked = call.body["messages"]
            said = next(m["content"] for m in asked if str(m["content"]).startswith("question"))
            self.calls[said] = self.calls.get(said, 0) + 1
            open_ = self._open.setdefault(said, [])
            open_.append(call)
            self.most[said] = max(self.most.get(said, 0), len(open_))
            what, wait_s = self._behaviours.pop(0) if self._behaviours else ("ok", 0.1)
            self._gateway.tasks.start_soon(self._do, said, call, what, wait_s)

    async def _do(self, said: str, call: Call, what: str, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        if what == "killed" and "worker" in self._gateway.buses:
            self._gateway.kill("worker")
        elif what != "silent" and not call.head.done():
            await self._answer(call, what)
            self._open[said].remove(call)

    async def _answer(self, call: Call, what: str) -> None:
        if what == "refused":
            call.refuse()
        elif what in WHOLE and (what != "ok" or not call.body.get("stream")):
            status, body, headers = WHOLE[what]
            call.reply(status, body, **headers)
        else:
            await self._stream(call, what)

    async def _stream(self, call: Call, what: str) -> None:
        call.start()
        if what == "error_in_stream":
            call.send(b'data: {"error":{"message":"busy","type":"overloaded_error"}}\n\n')
            return
        if what == "late":
            await asyncio.sleep(4.0)
        call.send(delta("one "))
        await asyncio.sleep(0.5)
        if what == "stalled":
            return
        call.send(delta("two "))
        if what == "cut":
            call.cut()
        elif what == "half":
            call.end()
        else:
            call.send(delta("three", "stop"), b"data: [DONE]\n\n")
            call.end()


def settings_of(
    names: str,
    attempts: int,
    money: int | None,
    *,
    keys: int,
    hedged: bool,
    on_cut: str,
    mended: bool,
) -> Config:
    plain = config(
        *names,
        timeouts=Timeouts(first_token_s=2.0, idle_s=2.0, total_s=TOTAL_S),
        retry=RetryPolicy(
            attempts=attempts, max_cost_nano_usd=None if money is None else money * CALL
        ),
        price=PRICE,
        api_keys=(KeyRef("env", "KEY_A"), KeyRef("env", "KEY_B"))[:keys],
    )
    model = msgspec.structs.replace(
        plain.models["m"],
        hedge=Hedge(0.7) if hedged else None,
        on_cut=on_cut,
        on_content_filter=OnContentFilter("next" if mended else "fail"),
    )
    return msgspec.structs.replace(plain, models={"m": model})


def is_terminal(caller: Caller, at: int) -> bool:
    headers = caller.all[at].headers
    return "breakwater-end" in headers or "breakwater-seq" not in headers


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=False
)
@given(
    names=st.sampled_from(["a", "ab", "abc"]),
    attempts=st.integers(1, 4),
    money=st.sampled_from([None, 0, 1, 1, 2, 3]),
    keys=st.integers(0, 2),
    hedged=st.booleans(),
    on_cut=st.sampled_from(["partial", "continue"]),
    mended=st.booleans(),
    streams=st.lists(st.booleans(), min_size=1, max_size=4),
    behaviours=st.lists(BEHAVIOUR, max_size=12),
)
def test_every_request_has_one_answer_in_time(
    names: str,
    attempts: int,
    money: int | None,
    keys: int,
    hedged: bool,
    on_cut: str,
    mended: bool,
    streams: list[bool],
    behaviours: list[tuple[str, float]],
) -> None:
    plan = settings_of(
        names, attempts, money, keys=keys, hedged=hedged, on_cut=on_cut, mended=mended
    )

    async def run() -> None:
        async with stage(plan, workers=2) as gateway:
            provider = Provider(gateway, behaviours)
            gateway.tasks.start_soon(provider.serve)
            loop = asyncio.get_running_loop()
            began = loop.time()
            ended: dict[int, float] = {}
            callers: list[Caller] = []
            for number, stream in enumerate(streams):
                question = [{"role": "user", "content": f"question {number}"}]
                callers.append(gateway.ask(stream=stream, messages=question, max_tokens=OUTPUT))

            async def follow(number: int, caller: Caller) -> None:
                while True:
                    await caller.reply()
                    if is_terminal(caller, len(caller.all) - 1):
                        ended[number] = loop.time()
                        return

            async with anyio.create_task_group() as tasks:
                for number, caller in enumerate(callers):
                    tasks.start_soon(follow, number, caller)
            await asyncio.sleep(TOTAL_S)
            for number, caller in enumerate(callers):
                assert ended[number] <= began + TOTAL_S + GRACE_S
                terminal = [at for at in range(len(caller.all)) if is_terminal(caller, at)]
                assert terminal == [len(caller.all) - 1], [m.headers for m in caller.all]
                assert provider.calls.get(f"question {number}", 0) <= attempts
                if money is not None and not streams[number]:  # a stream that ends early is metered
                    assert provider.most.get(f"question {number}", 0) <= money
                _whole_or_numbered(caller)
            assert len(gateway.requests) == len(streams)
            assert sorted(e.request for e in gateway.requests) == sorted(
                {e.request for e in gateway.requests}
            )

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(run())


def _whole_or_numbered(caller: Caller) -> None:
    """A stream's messages bear every number once, and an answer in one piece is JSON."""
    numbers = [
        int(m.headers["breakwater-seq"]) for m in caller.all if "breakwater-seq" in m.headers
    ]
    assert numbers == list(range(len(numbers)))
    for message in caller.all:
        for line in message.data.split(b"\n"):
            if line:
                json.loads(line)
