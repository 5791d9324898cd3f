"""Virtual keys end to end: made at the command line, shown by SDKs, revoked everywhere within a second."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import anthropic
import httpx
import openai
import pytest
from google import genai
from tests.e2e.processes import HELLO, Gateway, Simulator, config, environment, report, until

pytestmark = pytest.mark.nats


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, simulator: Simulator) -> Iterator[Gateway]:
    text = config(simulator, tail="auth: {mode: keys}\n")
    process = Gateway(Path(tmp_path_factory.mktemp("keys")), config=text)
    yield process
    process.end()


def keys(gateway: Gateway, *arguments: str, code: int = 0) -> list[dict[str, object]]:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "breakwater_gateway", "keys", *arguments),
            *("--json", "--nats", gateway.nats),
        ],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == code, done.stderr
    return [json.loads(line) for line in (done.stdout if code == 0 else done.stderr).splitlines()]


def create(gateway: Gateway, *arguments: str) -> tuple[str, str]:
    (made,) = keys(gateway, "create", *arguments)
    return str(made["id"]), str(made["key"])


def ask(gateway: Gateway, headers: dict[str, str], model: str = "main-model") -> httpx.Response:
    return httpx.post(
        gateway.base_url + "/chat/completions",
        json={"model": model, "messages": HELLO},
        headers=headers,
        trust_env=False,
        timeout=30,
    )


def known(gateway: Gateway, key: str) -> None:
    until(lambda: ask(gateway, {"x-api-key": key}).status_code == 200, "the key to be known")


def test_without_a_key_nobody_is_served(guarded: Gateway) -> None:
    refused = ask(guarded, {})
    assert refused.status_code == 401
    assert refused.json()["error"]["code"] == "authentication"
    assert "breakwater keys create" in refused.json()["error"]["message"]
    assert ask(guarded, {"authorization": "Bearer bw-" + "A" * 43}).status_code == 401
    models = httpx.get(guarded.base_url + "/models", trust_env=False)
    assert models.status_code == 401


def test_every_sdk_puts_the_key_where_it_puts_keys(guarded: Gateway) -> None:
    _, key = create(guarded, "--name", "sdk")
    known(guarded, key)
    with openai.OpenAI(base_url=guarded.base_url, api_key=key, max_retries=0) as client:
        assert client.chat.completions.create(model="main-model", messages=HELLO).choices
    root = guarded.base_url.removesuffix("/v1")
    with anthropic.Anthropic(base_url=root, api_key=key, max_retries=0) as client_of_anthropic:
        asked = client_of_anthropic.messages.create
        assert asked(model="main-model", max_tokens=9, messages=HELLO).content
    with genai.Client(api_key=key, http_options={"base_url": root}) as google:
        assert google.models.generate_content(model="main-model", contents="Hello").candidates


def test_a_key_asks_only_its_models_and_lists_only_those(guarded: Gateway) -> None:
    _, key = create(guarded, "--model", "main-model")
    known(guarded, key)
    headers = {"api-key": key}
    assert ask(guarded, headers, "nothing-of-hers").status_code == 403
    listed = httpx.get(guarded.base_url + "/models", headers=headers, trust_env=False).json()
    assert [entry["id"] for entry in listed["data"]] == ["main-model"]


def test_a_revoked_key_is_refused_within_a_second(guarded: Gateway) -> None:
    key_id, key = create(guarded)
    known(guarded, key)
    began = time.monotonic()
    (revoked,) = keys(guarded, "revoke", key_id)
    ended = time.monotonic()
    assert revoked["state"] == "revoked"
    until(lambda: ask(guarded, {"x-api-key": key}).status_code == 401, "the key to be refused")
    report(
        "revocation",
        f"command {ended - began:.2f} s, refused {time.monotonic() - ended:.3f} s after",
    )
    listed = {entry["id"]: entry["state"] for entry in keys(guarded, "list")}
    assert listed[key_id] == "revoked"
    keys(guarded, "rotate", key_id, code=2)
    keys(guarded, "revoke", "key_nobody", code=1)


def test_a_rotated_key_goes_on_for_its_grace(guarded: Gateway) -> None:
    key_id, old = create(guarded)
    known(guarded, old)
    (made,) = keys(guarded, "rotate", key_id, "--grace", "1h")
    known(guarded, str(made["key"]))
    assert ask(guarded, {"x-api-key": old}).status_code == 200
    (made,) = keys(guarded, "rotate", key_id)
    until(lambda: ask(guarded, {"x-api-key": old}).status_code == 401, "the old one to end")
