"""An embedding provider that sends what is no vector of the index: a miss with a reason, never a hit, never an error."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count

import httpx
import pytest
from tests.e2e.processes import PATIENCE_S, Gateway

pytestmark = pytest.mark.nats

GOOD = [0.6, 0.8, 0.0, 0.0]
REASONS: dict[str, tuple[str, str]] = {
    "too few": (json.dumps(GOOD[:3]), "vector"),
    "too many": (json.dumps(GOOD * 2), "vector"),
    "none": ("[]", "vector"),
    "nothing but zeros": ("[0, 0, 0, 0]", "vector"),
    "beyond float32": ("[1e300, 0, 0, 0]", "vector"),
    "beyond float64": ("[1e999, 0, 0, 0]", "no_embedding"),
    "not a number": ("[NaN, 0, 0, 0]", "no_embedding"),
    "null": ("[null, 0, 0, 0]", "no_embedding"),
    "words": ('["a", "b"]', "no_embedding"),
    "no list": ("7", "no_embedding"),
    "three hundred kilobytes": ("[" + "0.1234567," * 32_768 + "1]", "no_embedding"),
    "ten megabytes": ("[" + "0.1234567," * 1_048_576 + "1]", "no_embedding"),
}
TRIES = 30
"""An embedding has 30 ms: on a busy machine one may be late, which is a miss too."""


class Provider(BaseHTTPRequestHandler):
    embedding = json.dumps(GOOD)
    """What it sends for any text."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if self.path.endswith("/embeddings"):
            text = (
                '{"object":"list","model":"e","data":[{"object":"embedding","index":0,"embedding":'
                f'{type(self).embedding}}}],"usage":{{"prompt_tokens":1,"total_tokens":1}}}}'
            )
        else:
            message = {"role": "assistant", "content": "It is deep."}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            text = json.dumps({"id": "c", "choices": [choice], "usage": usage})
        body = text.encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Provider) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        breaker = "breaker: {consecutive: 100000, min_requests: 100000}"
        made = Gateway(
            tmp_path_factory.mktemp("embeddings"),
            config=(
                f'providers: {{hand: {{wire: openai, base_url: "{url}"}}}}\n'
                "models:\n"
                "  m:\n"
                "    deployments: [{model: hand/m, id: hand}]\n"
                "    cache: {exact: 1h, semantic: {threshold: 0.9, ttl: 1h, shadow: 0, veto: off}}\n"
                f"    {breaker}\n"
                f"  embedder: {{deployments: [{{model: hand/e, id: vectors}}], {breaker}}}\n"
                "embeddings: {model: embedder}\n"
            ),
        )
        yield made
        made.end()
        server.shutdown()


@pytest.fixture
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.root_url, trust_env=False, timeout=PATIENCE_S) as client:
        yield client


_numbers = count()


def ask(http: httpx.Client) -> str:
    """Something new; what the answer says of the cache."""
    word = "".join(chr(97 + int(digit)) for digit in str(next(_numbers)))
    messages = [{"role": "user", "content": f"How deep is the harbour of {word}?"}]
    body = {"model": "m", "messages": messages, "temperature": 0}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text[:1000]
    return answer.headers["breakwater-cache"]


def counted(http: httpx.Client, reason: str) -> float:
    name = f'breakwater_cache_lookups_total{{kind="semantic",result="{reason}"}}'
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def until_hit(http: httpx.Client) -> None:
    Provider.embedding = json.dumps(GOOD)
    assert "semantic" in (ask(http) for _ in range(TRIES)), "every question has the same vector"


@pytest.mark.parametrize("name", REASONS)
def test_what_is_no_vector_is_a_miss_with_a_reason(
    http: httpx.Client, gateway: Gateway, name: str
) -> None:
    until_hit(http)
    Provider.embedding, reason = REASONS[name]
    before = counted(http, reason)
    for _ in range(TRIES):
        assert ask(http) == "miss"
        if counted(http, reason) > before:
            break
    assert counted(http, reason) > before
    until_hit(http)
    assert "Warning" not in gateway.stderr
