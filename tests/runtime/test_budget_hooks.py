"""Webhooks of budgets against a real HTTP server."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.http.wire import KeptLog

from breakwater_gateway.config.model import Budget, KeyRef
from breakwater_gateway.ledger import hooks
from breakwater_gateway.ledger.hooks import Hooks, rule_of
from breakwater_gateway.ledger.limits import Limits
from breakwater_gateway.runtime.tasks import TaskSet
from breakwater_gateway.runtime.telemetry import Log, get_log
from breakwater_protocol.events import BudgetChanged

pytestmark = pytest.mark.anyio

EVENT = BudgetChanged(
    kind="soft",
    account="user:acme/alice",
    unit="tokens",
    period="d:2026-11-18@UTC",
    limit=10,
    committed=9,
    held=0,
    generation=1,
    at=1.0,
    threshold=800_000,
)


def budget(**more: object) -> Budget:
    plain: dict[str, object] = {
        "scope": "user", "id": "*", "unit": "tokens", "hard": 10, "per": "day",
        "webhook": KeyRef("env", "HOOK"),
    }  # fmt: skip
    return Budget(**{**plain, **more})  # type: ignore[arg-type]


@asynccontextmanager
async def receiver(*statuses: int) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Answers each call with the next status, and the last one for ever."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            heard.append(await reader.readexactly(length))
            status = statuses[min(len(heard), len(statuses)) - 1]
            writer.write(
                b"HTTP/1.1 %d X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status
            )
            await writer.drain()
            break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/hook?token=secret", heard


async def tell(
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    event: BudgetChanged = EVENT,
    log: Log | None = None,
) -> None:
    monkeypatch.setattr(hooks, "TRIES_S", (0.0, 0.0, 0.0))
    log = log or get_log()
    tasks = TaskSet(log)
    told = Hooks({"HOOK": address}, log=log, tasks=tasks)
    told.configure([budget()])
    told.crossed(event)
    await tasks.join()
    await told.close()


async def test_a_crossing_is_posted_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiver(204) as (address, heard):
        await tell(address, monkeypatch)
    assert [json.loads(body)["account"] for body in heard] == ["user:acme/alice"]


@pytest.mark.parametrize(
    ("statuses", "calls"), [((500, 503, 200), 3), ((500,), 3), ((404,), 1), ((429, 200), 2)]
)
async def test_only_what_may_help_is_tried_again(
    statuses: tuple[int, ...], calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiver(*statuses) as (address, heard):
        await tell(address, monkeypatch)
    assert len(heard) == calls


@pytest.mark.parametrize("address", ["", "http://127.0.0.1:1/", "not an address", "ftp://x/"])
async def test_an_address_that_leads_nowhere_hurts_nobody(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = KeptLog()
    await tell(address, monkeypatch, log=log)
    said = ["webhook_retried"] * 3 + ["webhook_failed"] if address else ["webhook_unknown"]
    assert log.events == said


@pytest.mark.parametrize(
    ("rule", "fits"),
    [
        ({}, True),
        ({"unit": "nano_usd"}, False),
        ({"per": "month"}, False),
        ({"per": "rolling", "rolling_s": 60}, False),
        ({"id": "bob"}, False),
        ({"id": "acme/alice"}, True),
    ],
)
def test_the_budget_that_crossed_is_found(rule: dict[str, object], fits: bool) -> None:
    assert (rule_of(EVENT, Limits([budget(**rule)])) is not None) == fits
