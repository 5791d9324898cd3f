"""A saved file is live on every actor within a second; a bad one changes nothing."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import nats
import pytest
from tests.e2e.processes import HELLO, PATIENCE_S, Gateway, Simulator, config, once, report, until

from breakwater_protocol.events import Heartbeat
from breakwater_protocol.subjects import Subjects

pytestmark = [pytest.mark.anyio, pytest.mark.nats]

SUBJECTS = Subjects()
ADDED = "  added: {deployments: [{model: main-a/main-model, id: added}]}\n"


@pytest.fixture
def own(tmp_path: Path, simulator: Simulator) -> Iterator[Gateway]:
    process = Gateway(tmp_path / "own", config=config(simulator))
    yield process
    process.end()


def asked(gateway: Gateway, model: str) -> int:
    return httpx.post(
        gateway.base_url + "/chat/completions",
        json={"model": model, "messages": HELLO},
        trust_env=False,
        timeout=PATIENCE_S,
    ).status_code


async def revisions(gateway: Gateway, wanted: int) -> dict[str, int]:
    """Of each actor's last heartbeat, once all have `wanted`."""
    client = await nats.connect(gateway.nats)
    try:
        heard = await client.subscribe(SUBJECTS.heartbeat.any())
        found: dict[str, int] = {}
        while len(found) < 7 or set(found.values()) != {wanted}:
            beat: Heartbeat = SUBJECTS.heartbeat.decode((await heard.next_msg(PATIENCE_S)).data)
            found[beat.actor] = beat.config_revision
    finally:
        await client.close()
    return found


async def test_a_saved_change_is_live_everywhere_and_a_bad_one_keeps_the_last(
    own: Gateway, tmp_path: Path
) -> None:
    text = own.config_path.read_text()
    assert set(await revisions(own, 1)) == {
        *("edge", "router", "worker", "health", "ledger", "cache", "exporter")
    }
    assert asked(own, "added") == 404

    # As editors do: a new file takes the old one's place.
    fresh = tmp_path / "new.yaml"
    fresh.write_text(text + ADDED)
    fresh.replace(own.config_path)
    saved = time.monotonic()
    until(lambda: asked(own, "added") == 200, "the new model is served")
    report(f"live after {time.monotonic() - saved:.2f} s")
    await revisions(own, 2)

    # A bad change says why, and changes nothing.
    own.config_path.write_text(text + ADDED.replace("deployments", "deploymints"))
    until(lambda: "config_file_refused" in own.stderr, "it was refused")
    (said,) = [line for line in own.log() if line["event"] == "config_file_refused"]
    assert "breakwater.yaml:" in said["problems"]
    assert "deployments" in said["problems"]
    assert asked(own, "added") == 200

    # The way back is a change as any other.
    own.config_path.write_text(text)
    until(lambda: asked(own, "added") == 404, "the model is gone")
    await revisions(own, 3)
    live = once(tmp_path, "config", "show", "--nats", own.nats, "--json")
    assert "added" not in json.loads(live.stdout)["models"]


async def test_a_stream_under_way_outlives_the_removal_of_its_model(
    own: Gateway, simulator: Simulator
) -> None:
    simulator.script(lane="main-a", model="leaving", tokens=40, tokens_per_s=40)
    text = own.config_path.read_text()
    leaving = "  leaving: {deployments: [{model: main-a/leaving, id: leaving}]}\n"
    own.config_path.write_text(text + leaving)
    until(lambda: asked(own, "leaving") == 200, "the model is served")
    body = {"model": "leaving", "messages": HELLO, "stream": True}
    with httpx.stream(
        "POST", own.base_url + "/chat/completions", json=body, trust_env=False, timeout=PATIENCE_S
    ) as answer:
        lines = answer.iter_lines()
        next(lines)
        own.config_path.write_text(text)
        until(lambda: asked(own, "leaving") == 404, "the model is gone")
        assert [line for line in lines if line][-1] == "data: [DONE]"
