"""`breakwater budget` against a ledger that runs as a process of its own."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.actors.ledger_stage import books, lease, report
from tests.conftest import NatsProcess

from breakwater_gateway.cli.main import cli
from breakwater_gateway.runtime.bus import Bus
from breakwater_gateway.runtime.nats_bus import connect_nats
from breakwater_protocol.ledger import Granted, LeaseReply

pytestmark = pytest.mark.nats

CONFIG = "models: {m: {deployments: [{model: openai/gpt-4o, api_key: []}]}}\n"


@pytest.fixture
def url(nats_server: Callable[..., NatsProcess], tmp_path: Path) -> Iterator[str]:
    server = nats_server(max_file_store="4GB")
    config = tmp_path / "breakwater.yaml"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "breakwater_gateway", "run", "ledger"]
    with (tmp_path / "ledger.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--nats", server.url, "--config", str(config)], stdout=log, stderr=log
        )
    on(server.url, books)
    yield server.url
    process.terminate()
    assert process.wait(20) == 0


def on(url: str, work: Callable[[Bus], Awaitable[Any]]) -> Any:  # noqa: ANN401 - whatever it is
    async def connected() -> Any:  # noqa: ANN401
        bus = await connect_nats(url, name="holder", role="holder")
        try:
            return await work(bus)
        finally:
            await bus.close()

    return asyncio.run(connected())


def budget(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["budget", *arguments, "--nats", url], catch_exceptions=False)


def lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_an_operator_sees_and_changes_the_books(url: str) -> None:
    async def lend(bus: Bus) -> LeaseReply:
        await lease(bus, "r/1/1", want=20)
        await lease(bus, "r/1/2", want=20)
        await report(bus, "r/1/1", 7, final=True)
        return await lease(bus, "r/1/3", least=5)

    assert isinstance(on(url, lend), Granted)
    (shown,) = lines(budget(url, "show", "--json"))
    assert (shown["account"], shown["limit"], shown["committed"]) == ("user:acme/alice", 1000, 7)
    assert shown["available"] == 1000 - 7 - shown["held"]
    assert "user:acme/alice\tday@UTC\t1000 tokens\t7 tokens" in budget(url, "show").stdout
    held = lines(budget(url, "show", "user:*", "--leases", "--json"))[1:]
    assert {each["lease"] for each in held} == {"r/1/2", "r/1/3"}

    released = budget(url, "release", "r/1/2", "--why", "the machine is gone")
    assert (released.exit_code, released.stdout) == (0, "r/1/2 is released\n")
    assert budget(url, "release", "r/1/2").exit_code == 1

    set_ = budget(url, "set", "user:acme/alice", "--tokens", "10", "--why", "abuse")
    assert set_.exit_code == 0
    (shown,) = lines(budget(url, "show", "user:acme/alice", "--json"))
    assert (shown["limit"], shown["override"]) == (10, True)
    assert budget(url, "set", "user:acme/alice", "--clear", "tokens").exit_code == 0
    assert (
        budget(url, "correct", "user:acme/alice", "--tokens", "-3", "--why", "refund").exit_code
        == 0
    )
    (shown,) = lines(budget(url, "show", "user:acme/alice", "--json"))
    assert (shown["limit"], shown["committed"]) == (1000, 4)

    told = lines(budget(url, "history", "user:acme/alice", "--json"))
    assert [each["what"] for each in told] == [
        *("limit", "grant", "grant", "close", "grant"),
        *("release", "override", "override", "adjust"),
    ]
    assert told[5]["why"] == "the machine is gone"
    assert all(told[n]["by"] for n in (5, 6, 7, 8))
    assert "abuse" in budget(url, "history", "user:*").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("set", "alice", "--tokens", "5"), 2, "not an account"),
        (("set", "user:a"), 2, "give one of"),
        (("set", "user:a", "--usd", "0.0000000001"), 2, "nano-USD"),
        (("set", "user:a", "--usd", "much"), 2, "nano-USD"),
        (("set", "user:a", "--tokens", "5", "--per", "year"), 2, "not a period"),
        (("set", "user:a", "--tokens", "5", "--timezone", "Mars/Olympus"), 2, "Mars/Olympus"),
        (("history",), 2, "name an account"),
        (("history", "--by", "color"), 2, "property.NAME"),
        (("history", "user:a", "--since", "soon"), 2, "not a duration"),
    ],
)
def test_mistakes_are_refused_with_a_reason(
    nats_url: str, arguments: tuple[str, ...], code: int, said: str
) -> None:
    result = budget(nats_url, *arguments)
    assert result.exit_code == code
    assert said in result.stderr


def test_what_the_ledger_refuses_is_said(url: str) -> None:
    for arguments, code, said in (
        (("set", "user:a", "--tokens", "-5"), 2, "a limit is 0 to"),
        (("set", "user:a", "--clear", "tokens"), 1, "no such line"),
        (("correct", "user:a", "--tokens", "5"), 1, "no such line"),
        (("resume", "3"), 1, "not in safe mode"),
    ):
        result = budget(url, *arguments)
        assert (result.exit_code, said in result.stderr) == (code, True), result.stderr


def test_without_a_ledger_it_says_how_to_start_one(nats_url: str) -> None:
    result = budget(nats_url, "show", "user:a")
    assert result.exit_code == 4
    assert "run ledger" in result.stderr
