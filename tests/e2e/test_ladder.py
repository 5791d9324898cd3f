"""A model whose provider is down, in real processes: the ladder over HTTP, and written answers that change."""

from collections.abc import Iterator
from pathlib import Path

import anthropic
import httpx
import openai
import pytest
from tests.e2e.processes import PATIENCE_S, Gateway, once, until

from breakwater_gateway.cache.embed.minilm import is_available

pytestmark = pytest.mark.nats

# Port 9 is discard: nobody listens there.
CONFIG = """\
providers:
  dead: {base_url: "http://127.0.0.1:9/v1", api_key: []}
models:
  main:
    deployments: [{model: dead/x}]
    ladder: [cache, simple_model:fast, static, error]
  fast: {deployments: [{model: dead/y}]}
static_answers: faq.yaml
"""
FAQ = "- {questions: [When are you open?], answer: 9 to 17}\n"
ASKED = [{"role": "user", "content": "when are you open"}]


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "faq.yaml").write_text(FAQ)
    process = Gateway(folder, config=CONFIG)
    yield process
    process.end()


def said(gateway: Gateway) -> str:
    answer = httpx.post(
        gateway.base_url + "/chat/completions",
        json={"model": "main", "messages": ASKED},
        trust_env=False,
        timeout=PATIENCE_S,
    )
    assert answer.headers["breakwater-rung"] == "static"
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def test_written_answers_reach_every_sdk_and_change_with_their_file(gateway: Gateway) -> None:
    with openai.OpenAI(api_key="any", base_url=gateway.base_url, max_retries=0) as client:
        stream = client.chat.completions.create(
            model="main",
            messages=[{"role": "user", "content": "when are you open"}],
            stream=True,
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == "9 to 17"
    with (
        anthropic.Anthropic(api_key="any", base_url=gateway.root_url, max_retries=0) as other,
        other.messages.stream(model="main", messages=ASKED, max_tokens=9) as events,  # type: ignore[arg-type]
    ):
        assert events.get_final_text() == "9 to 17"

    # Only the file of the answers changes; processes that never saw it hear of it on the bus.
    faq = gateway.config_path.parent / "faq.yaml"
    faq.write_text(FAQ.replace("9 to 17", "Always"))
    until(lambda: said(gateway) == "Always", "the new answer is given")
    faq.write_text("- {questions: []}\n")
    until(lambda: "config_file_refused" in gateway.stderr, "it was refused")
    assert said(gateway) == "Always"
    shown = once(gateway.config_path.parent, "config", "show", "--nats", gateway.nats)
    assert "answer: Always" in shown.stdout


@pytest.mark.skipif(bool(is_available()), reason=is_available() or "installed")
def test_a_written_answer_is_found_by_what_is_meant(tmp_path: Path) -> None:
    (tmp_path / "faq.yaml").write_text(
        FAQ + "- {questions: [What does shipping cost?], answer: Five dollars}\n"
    )
    gateway = Gateway(tmp_path, config=CONFIG + "embeddings: {local: minilm}\n")

    def answer(question: str) -> httpx.Response:
        return httpx.post(
            gateway.base_url + "/chat/completions",
            json={"model": "main", "messages": [{"role": "user", "content": question}]},
            trust_env=False,
            timeout=PATIENCE_S,
        )

    try:
        until(lambda: "written_questions_known" in gateway.stderr, "their vectors are made")
        found = answer("How expensive is shipping?")
        assert found.json()["choices"][0]["message"]["content"] == "Five dollars"
        assert found.headers["breakwater-rung"] == "static"
        assert found.headers["breakwater-match"] == "meaning"
        assert 0.85 <= float(found.headers["breakwater-match-score"]) <= 1
        assert answer("How expensive is shipping to 3 friends?").status_code == 503
    finally:
        gateway.end()
