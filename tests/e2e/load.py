"""Callers that ask without pause while something breaks, and what became of each request."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Literal

import httpx
from msgspec import Struct
from tests.e2e.processes import HELLO

from breakwater_protocol import BreakwaterError, Client, GatewayError

Kind = Literal["ok", "partial", "error", "dropped"]
"""`dropped`: the connection ended, or nothing came, without a word of what happened."""

DEADLINE_S = 8.0
"""That callers give the gateway; a message that a dying bus took with it is a clear error by then."""
ANSWER_S = 20.0
REFUSED_PAUSE_S = 0.02


class Outcome(Struct, frozen=True):
    kind: Kind
    began: float
    took_s: float
    detail: str = ""


class Outcomes:
    def __init__(self) -> None:
        self.all: list[Outcome] = []
        self._changed = asyncio.Event()
        self.refused = 0
        """Connections refused, and tried again: not requests."""

    def note(self, kind: Kind, began: float, detail: str = "") -> None:
        self.all.append(Outcome(kind, began, time.monotonic() - began, detail))
        self._changed.set()

    async def good(self, number: int) -> None:
        """Until so many more requests have ended well."""
        wanted = self.count("ok") + number
        async with asyncio.timeout(60):
            while self.count("ok") < wanted:
                self._changed.clear()
                await self._changed.wait()

    def count(self, kind: Kind) -> int:
        return sum(outcome.kind == kind for outcome in self.all)

    def bad(self) -> Counter[str]:
        return Counter(f"{o.kind}: {o.detail}" for o in self.all if o.kind != "ok")

    def slowest_s(self) -> float:
        return max((outcome.took_s for outcome in self.all), default=0.0)

    def longest_gap_s(self) -> float:
        """Between two good answers, over all callers together."""
        ends = sorted(o.began + o.took_s for o in self.all if o.kind == "ok")
        return max((b - a for a, b in pairwise(ends)), default=0.0)

    def __str__(self) -> str:
        return (
            f"{len(self.all)} requests, {self.count('ok')} good, {self.count('partial')} partial, "
            f"{self.count('error')} errors, {self.count('dropped')} dropped, "
            f"{self.refused} connections refused, slowest {self.slowest_s():.2f} s, "
            f"longest gap between good answers {self.longest_gap_s():.2f} s"
            + (f"; {dict(self.bad())}" if self.bad() else "")
        )


async def over_http(
    urls: Sequence[str], model: str, found: Outcomes, stop: asyncio.Event, *, stream: bool
) -> None:
    """One caller with one connection; a refused one is tried again, at the next of `urls`."""
    body = {"model": model, "messages": HELLO, "stream": stream}
    deadline = {"breakwater-timeout": f"{DEADLINE_S}s"}
    turn = 0
    async with httpx.AsyncClient(trust_env=False, timeout=ANSWER_S) as client:
        while not stop.is_set():
            url = urls[turn % len(urls)] + "/v1/chat/completions"
            began = time.monotonic()
            try:
                answer = await client.post(url, json=body, headers=deadline)
            except httpx.ConnectError:
                found.refused += 1
                turn += 1
                await asyncio.sleep(REFUSED_PAUSE_S)
                continue
            except httpx.HTTPError as error:
                found.note("dropped", began, f"{type(error).__name__} {error}")
                turn += 1
                continue
            if answer.status_code != 200:
                code = answer.json()["error"]["code"]
                found.note("error", began, f"{code} {answer.json()['error']['message'][:80]}")
            elif stream and not answer.text.endswith("data: [DONE]\n\n"):
                said = answer.text.rstrip("\n").rpartition("\n\n")[2]
                clear = said.startswith("data: ") and "error" in json.loads(said[6:])
                found.note("partial" if clear else "dropped", began, said[:160])
            else:
                found.note("ok", began)


async def over_nats(
    client: Client, model: str, found: Outcomes, stop: asyncio.Event, *, stream: bool
) -> None:
    while not stop.is_set():
        began = time.monotonic()
        try:
            if stream:
                asked = client.chat(model=model, messages=HELLO, timeout_s=DEADLINE_S)
                async for _ in asked:
                    pass
                partial = asked.info.partial
            else:
                await client.complete(model=model, messages=HELLO, timeout_s=DEADLINE_S)
                partial = ""
            found.note("partial" if partial else "ok", began, partial)
        except GatewayError as error:
            found.note("error", began, f"{error.code} {error.message[:80]}")
        except BreakwaterError as error:
            found.note("dropped", began, f"{type(error).__name__} {error}"[:100])
            await asyncio.sleep(REFUSED_PAUSE_S)


@asynccontextmanager
async def load(
    model: str,
    *,
    http: Sequence[str] = (),
    nats: str = "",
    callers: int = 4,
    stall_s: float = ANSWER_S,
) -> AsyncIterator[Outcomes]:
    """`callers` of each kind ask until the block ends; what they have begun by then is awaited."""
    found = Outcomes()
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        client = Client(nats, stall_timeout_s=stall_s, answer_timeout_s=stall_s) if nats else None
        try:
            if client is not None:
                await client.connect()
            work = []
            for number in range(callers):
                stream = bool(number % 2)
                if http:
                    work.append(
                        tasks.create_task(over_http(http, model, found, stop, stream=stream))
                    )
                if client is not None:
                    work.append(
                        tasks.create_task(over_nats(client, model, found, stop, stream=stream))
                    )
            try:
                yield found
            finally:
                stop.set()
                await asyncio.wait(work, timeout=2 * ANSWER_S)
        finally:
            if client is not None:
                await client.aclose()
