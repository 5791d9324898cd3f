"""The commands that talk to a gateway: real processes against a gateway driven by hand."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from tests.protocol.fake_gateway import PATIENCE_S, FakeGateway, NatsServer

from breakwater_gateway.cli import doctor, output
from breakwater_gateway.cli.talk import EventLines, subject_of
from breakwater_protocol import Client, Heard, NotPermitted, Subjects, Throttled, Unreachable
from breakwater_protocol.events import BreakerChanged, Evidence, Heartbeat

pytestmark = [pytest.mark.anyio, pytest.mark.nats]


class Ended(NamedTuple):
    code: int | None
    out: str
    err: str

    @property
    def error(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.err)["error"]
        return found


async def start(
    *words: str, url: str, environment: Mapping[str, str] = os.environ
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "breakwater_gateway", *words),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**environment, "NATS_URL": url},
    )


async def end(process: asyncio.subprocess.Process, given: str = "") -> Ended:
    async with asyncio.timeout(PATIENCE_S):
        out, err = await process.communicate(given.encode())
    return Ended(process.returncode, out.decode(), err.decode())


async def run(*words: str, url: str) -> Ended:
    return await end(await start(*words, url=url))


@pytest.fixture
def url(shared_server: NatsServer) -> str:
    return shared_server.url


async def test_chat_asks_the_first_model_and_prints_its_answer(
    url: str, gateway: FakeGateway
) -> None:
    process = await start("chat", "hello", url=url)
    await (await gateway.next_request()).send(b'{"data": [{"id": "a/*"}, {"id": "main"}]}')
    request = await gateway.next_request()
    assert request.body["model"] == "main"
    assert request.body["messages"] == [{"role": "user", "content": "hello"}]
    answer = {"choices": [{"message": {"content": "hi \x1b]0;owned\x07there"}}]}
    await request.send(json.dumps(answer).encode())
    # What could steer a terminal is left out.
    assert await end(process) == (0, "hi ]0;ownedthere\n", "")


async def test_chat_streams_what_it_is_told_on_stdin(url: str, gateway: FakeGateway) -> None:
    process = await start("chat", "-m", "m", "--stream", "--user", "u1", "-", url=url)
    ending = asyncio.create_task(end(process, "long question"))
    request = await gateway.next_request()
    assert request.body["messages"][0]["content"] == "long question"
    assert request.headers["breakwater-user"] == "u1"
    await request.chunk(0, "one ")
    await request.chunk(1, "two")
    await request.send(seq="2", end="ok")
    assert await ending == (0, "one two\n", "")


async def test_a_streamed_chat_as_json_is_an_object_a_line(url: str, gateway: FakeGateway) -> None:
    process = await start("chat", "-m", "m", "--stream", "--json", "hello", url=url)
    request = await gateway.next_request()
    await request.chunk(0, "one")
    await request.send(seq="1", end="partial", partial="idle_timeout")
    ended = await end(process)
    chunk, last = map(json.loads, ended.out.splitlines())
    assert chunk["choices"][0]["delta"]["content"] == "one"
    assert last["info"]["partial"] == "idle_timeout"
    assert ended.code == output.FAILED


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [(404, "model_not_found", 1), (403, "permission", 5), (429, "budget_exhausted", 5)],
)
async def test_an_error_of_the_gateway_is_an_object_on_stderr_and_an_exit_code(
    url: str, gateway: FakeGateway, status: int, code: str, exit_code: int
) -> None:
    process = await start("chat", "-m", "m", "--json", "hello", url=url)
    await (await gateway.next_request()).refuse(status, code, "no")
    ended = await end(process)
    assert (ended.code, ended.out) == (exit_code, "")
    assert (ended.error["status"], ended.error["code"]) == (status, code)


async def test_ctrl_c_in_a_chat_cancels_the_request(url: str, gateway: FakeGateway) -> None:
    process = await start("chat", "-m", "m", "hello", url=url)
    request = await gateway.next_request()
    process.send_signal(signal.SIGINT)
    assert await end(process) == (130, "", "")
    assert (await gateway.next_cancel()).request == request.headers["breakwater-assigned-id"]


async def test_what_cannot_be_reached_is_named_with_the_mend(
    url: str, own_server: NatsServer
) -> None:
    nobody = await run("models", "--json", url=url)
    assert nobody.code == output.UNREACHABLE
    assert "breakwater up" in str(nobody.error["message"])
    own_server.stop()
    gone = await run("chat", "-m", "m", "hello", url=own_server.url)
    assert (gone.code, gone.out) == (output.UNREACHABLE, "")
    assert own_server.url in gone.err
    assert "--nats URL" in gone.err
    assert len(gone.err.splitlines()) == 1


@pytest.mark.parametrize(
    "words", [("chat", " "), ("chat", "--root", "a b", "x"), ("events", "a b"), ("chat",)]
)
async def test_a_wrong_use_ends_with_code_2(url: str, words: tuple[str, ...]) -> None:
    ended = await run(*words, url=url)
    assert ended.code == output.USAGE
    assert "Traceback" not in ended.err


async def test_models_are_listed_a_line_each(url: str, gateway: FakeGateway) -> None:
    process = await start("models", url=url)
    await (await gateway.next_request()).send(b'{"data": [{"id": "main"}, {"id": "fast"}]}')
    assert (await end(process)).out == "main\tbreakwater\nfast\tbreakwater\n"


async def test_events_follows_until_ctrl_c_and_ends_well(url: str, gateway: FakeGateway) -> None:
    process = await start("events", "health", "--json", url=url)
    assert process.stdout is not None
    subject = Subjects().health.at("openai/gpt", "open")
    reading = asyncio.create_task(process.stdout.readline())
    async with asyncio.timeout(PATIENCE_S):
        while not reading.done():
            await gateway.connection.publish(subject, b'{"target": "openai/gpt"}')
            await gateway.connection.publish("bw.v1.evt.alert.auth", b"{}")
            await asyncio.wait([reading], timeout=0.02)
    line = json.loads(await reading)
    assert line == {"subject": subject, "data": {"target": "openai/gpt"}}
    process.send_signal(signal.SIGINT)
    ended = await end(process)
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.parametrize(
    ("short", "subject"),
    [
        ("", "bw.v1.evt.>"),
        ("health", "bw.v1.evt.health.>"),
        ("health.sim-a", "bw.v1.evt.health.sim-a.>"),
        ("health.*.open", "bw.v1.evt.health.*.open"),
        ("alert", "bw.v1.evt.alert.>"),
        ("hb", "bw.v1.hb.>"),
        ("heartbeat.router.*", "bw.v1.hb.router.*"),
        ("bw.v1.evt.>", "bw.v1.evt.>"),
        ("$JS.EVENT.>", "$JS.EVENT.>"),
    ],
)
def test_short_forms_of_subjects(short: str, subject: str) -> None:
    assert subject_of(short, "bw.v1") == subject


def test_an_event_is_one_line_whatever_it_holds() -> None:
    lines = EventLines(Subjects())
    changed = BreakerChanged(
        target="openai/gpt",
        state="open",
        cause="two\nlines",
        evidence=Evidence(window=5),
        until=2.5,
        epoch=3,
        previous="closed",
        at=1.25,
    )
    subject = Subjects().health.at("openai/gpt", "open")
    text = lines.text(Heard(subject, msgspec.json.encode(changed), {}), at=0.0)
    assert text[9:] == (
        r'250 health openai/gpt open  cause="two\nlines" evidence={"window":5} until=2.5'
        " epoch=3 previous=closed"
    )
    for data in (b"", b"\xff", b"[]"):
        assert "health" in lines.text(Heard(subject, data, {}), at=0.0)
    assert lines.fields(Heard("x.y", b"\xff", {"ce-id": "1"})) == {
        "subject": "x.y",
        "text": "\ufffd",
        "ce_id": "1",
    }


def beat(kind: str, **more: str | int | bool) -> Heartbeat:
    value = {"actor": kind, "id": kind, "version": "1", "at": 0.0, **more}
    return msgspec.convert(value, Heartbeat)


@pytest.mark.parametrize(
    ("beats", "statuses", "words"),
    [
        ([], ["broken"], "breakwater up"),
        ([beat(k) for k in ("router", "worker", "health", "edge")], ["ok"], "1 router"),
        ([beat(k) for k in ("router", "health", "edge")], ["ok", "broken"], "run worker"),
        ([beat(k) for k in ("router", "worker", "edge")], ["ok", "warning"], "run health"),
        (
            [beat("router", draining=True), *map(beat, ("worker", "health", "edge"))],
            ["ok", "broken"],
            "draining",
        ),
        (
            [beat("router", version="2"), *map(beat, ("worker", "health", "edge"))],
            ["ok", "warning"],
            "different versions",
        ),
    ],
)
def test_the_doctor_reads_heartbeats(
    beats: list[Heartbeat], statuses: list[str], words: str
) -> None:
    found = doctor.actors(beats, root="bw.v1")
    assert [finding.status for finding in found] == statuses
    assert words in " ".join(finding.message + finding.mend for finding in found)


def test_every_finding_that_is_not_fine_says_what_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOT_SET_HERE", raising=False)
    bad, keyless = tmp_path / "bad.yaml", tmp_path / "keyless.yaml"
    bad.write_text("modles: {}")
    keyless.write_text(
        "models: {m: {deployments: [{model: openai/gpt-4o, api_key: env:NOT_SET_HERE}]}}"
    )
    found = [
        doctor.python_version((3, 9)),
        *doctor.configuration(str(bad)),
        *doctor.configuration(str(tmp_path / "none.yaml")),
        *doctor.configuration(str(keyless)),
        *doctor.actors([], root="bw.v1"),
    ]
    assert [each.status for each in found] == [
        *("broken", "broken", "broken", "ok", "warning", "broken")
    ]
    assert all(each.mend for each in found if each.status != "ok")
    assert "NOT_SET_HERE" in found[4].mend


async def test_the_doctor_finds_what_is_missing_and_fails(url: str) -> None:
    ended = await run("doctor", "--json", "--http", "http://127.0.0.1:1", url=url)
    findings = [json.loads(line) for line in ended.out.splitlines()]
    found = {each["check"]: each for each in findings}
    assert ended.code == output.FAILED
    assert found["nats"]["status"] == "ok"
    assert found["max_payload"]["status"] == "warning"
    assert "nats-server -js" in found["jetstream"]["mend"]
    assert found["actors"]["status"] == "broken"
    assert found["http"]["status"] == "warning"
    assert all(each.get("mend") for each in findings if each["status"] != "ok")


async def test_the_doctor_works_where_nothing_else_does(own_server: NatsServer) -> None:
    own_server.stop()
    ended = await run("doctor", "--http", "http://127.0.0.1:1", url=own_server.url)
    assert ended.code == output.FAILED
    assert "BROKEN   nats: no NATS server" in ended.out
    assert "mend: breakwater up" in ended.out


async def test_heartbeats_are_counted_by_actor(url: str, gateway: FakeGateway) -> None:
    subject = Subjects().heartbeat
    async with Client(url) as client:
        listening = asyncio.create_task(doctor.heartbeats(client, 0.3))
        while not listening.done():
            for kind in ("router", "worker"):
                data = subject.encode(beat(kind))
                await gateway.connection.publish(subject.at(kind, kind), data)
            await gateway.connection.publish(subject.at("odd", "odd"), b"no beat")
            await asyncio.wait([listening], timeout=0.02)
        assert sorted(each.actor for each in await listening) == ["router", "worker"]


def test_exit_codes_tell_unreachable_from_denied_from_failed() -> None:
    denied = NotPermitted(status=403, code="permission", type="", message="")
    throttled = Throttled(status=429, code="rate_limited", type="", message="")
    assert output.exit_code(Unreachable()) == 4
    assert output.exit_code(denied) == 5
    assert output.exit_code(throttled) == 1
