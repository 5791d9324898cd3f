"""The official `google-genai` client against this dialect's answers, where it is installed."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from breakwater_gateway.edge.framing import framing
from breakwater_gateway.worker.wire import gemini
from breakwater_gateway.worker.wire import neutral as n
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

pytestmark = pytest.mark.filterwarnings("ignore")

Client = Any
"""Of an optional dependency."""

USED = Usage(input=20, output=9, cache_read=4, reasoning=3)
CALL = n.ToolCall(id="call_1", name="weather", arguments='{"city": "Oslo"}', signature="c2ln")
PARTS: list[n.Part] = [
    n.Thinking(text="Let me see.", signature="c2lnbmVk"),
    n.Text(text="It is ", extra={"annotations": Raw(b"[]")}),
    CALL,
]
EVENTS: list[n.StreamEvent] = [
    n.Began(id="chatcmpl-1", model="other", created=1, extra={"object": Raw(b'"chunk"')}),
    n.PartBegan(0, n.Thinking()),
    n.Grew(0, "Let me "),
    n.Grew(0, "see."),
    n.PartEnded(0),
    n.PartBegan(1, n.Text(text="")),
    n.Grew(1, "It is "),
    n.Grew(1, "15 °C."),
    n.PartEnded(1),
    n.PartBegan(2, n.ToolCall(id="call_1", name="weather", arguments="")),
    n.Grew(2, '{"city":'),
    n.Grew(2, '"Oslo"}'),
    n.PartEnded(2),
    n.Finished("tool_calls", "tool_use"),
    n.UsageKnown(USED),
    n.Done(),
]


class Gateway(HTTPServer):
    """Answers each method by hand, and keeps what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[n.Request] = []
        self.embedded: list[n.Embeddings] = []
        self.broken = False
        self.cut: dict[str, str] = {}
        """How the stream's end is told on the bus; it is gone on with before that, and framed as the edge does."""


class Handler(BaseHTTPRequestHandler):
    server: Gateway

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Quiet."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        method = gemini.method(self.path)
        assert method is not None
        if method.verb == "batchEmbedContents":
            wanted = gemini.decode_embeddings_request(body, path=self.path)
            self.server.embedded.append(wanted)
            answer = n.EmbeddingsAnswer(model="m", vectors=[[0.5, 1.0]], usage=Usage(input=3))
            self._reply(gemini.encode_embeddings_answer(answer, model="m", path=self.path))
            return
        request = gemini.decode_request(body, path=self.path)
        self.server.asked.append(request)
        if method.verb == "countTokens":
            self._reply(gemini.encode_count_tokens_answer(7))
        elif request.model == "missing":
            self._reply(gemini.encode_error(f.UnknownModel("no such model")), 404)
        elif method.verb == "generateContent":
            answered = n.Answer(
                dialect="openai",
                id="chatcmpl-1",
                model="other",
                candidates=[n.Candidate(parts=PARTS, finish="tool_calls", native="tool_calls")],
                usage=USED,
            )
            self._reply(gemini.encode_answer(answered, model="logical"))
        else:
            events = list(EVENTS)
            if self.server.broken:
                events = [*EVENTS[:7], n.Broke(f.Overloaded("try later", retry_after_s=2.0))]
            encoder = gemini.StreamEncoder(model="logical")
            chunks = [chunk for event in events for chunk in encoder.feed([event])]
            assert method.sse
            framed = b"".join(b"data: " + chunk + b"\r\n\r\n" for chunk in chunks)
            if self.server.cut:
                frames = framing("generate")
                framed = frames.events(chunks[0])
                framed += b"".join(frames.events(chunk, "other") for chunk in chunks[1:-1])
                framed += frames.end(self.server.cut)
            self._reply(framed, kind="text/event-stream")

    def _reply(self, body: bytes, status: int = 200, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    server = Gateway()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(gateway: Gateway) -> Client:
    genai = pytest.importorskip("google.genai", reason="google-genai is not installed")
    url = f"http://127.0.0.1:{gateway.server_port}"
    return genai.Client(api_key="gw-key", http_options={"base_url": url})


def test_the_client_reads_a_whole_answer_of_another_provider(
    client: Client, gateway: Gateway
) -> None:
    answer = client.models.generate_content(
        model="team/fast:v1",
        contents="What is the weather?",
        config={
            "system_instruction": "Be brief.",
            "temperature": 0.5,
            "max_output_tokens": 50,
            "tools": [
                {
                    "function_declarations": [
                        {
                            "name": "weather",
                            "parameters": {
                                "type": "OBJECT",
                                "properties": {"city": {"type": "STRING"}},
                            },
                        }
                    ]
                }
            ],
        },
    )
    asked = gateway.asked[0]
    assert (asked.model, asked.max_output, asked.temperature) == ("team/fast:v1", 50, 0.5)
    assert [turn.role for turn in asked.turns] == ["system", "user"]
    tool = asked.tools[0]
    assert isinstance(tool, n.Tool)
    assert tool.schema is not None
    assert msgspec.json.decode(tool.schema)["properties"] == {"city": {"type": "string"}}
    part = answer.candidates[0].content.parts
    assert (part[0].text, part[0].thought, part[0].thought_signature) == (
        "Let me see.",
        True,
        b"signed",
    )
    assert part[1].text == "It is "
    assert answer.function_calls[0].args == {"city": "Oslo"}
    assert (answer.function_calls[0].id, part[2].thought_signature) == ("call_1", b"sig")
    assert answer.candidates[0].finish_reason.name == "STOP"
    used = answer.usage_metadata
    assert (used.prompt_token_count, used.candidates_token_count) == (20, 6)
    assert (used.thoughts_token_count, used.total_token_count) == (3, 29)
    assert used.cached_content_token_count == 4
    assert (answer.model_version, answer.response_id) == ("logical", "chatcmpl-1")


def test_the_client_reads_a_stream_of_another_provider(client: Client, gateway: Gateway) -> None:
    chunks = list(client.models.generate_content_stream(model="fast", contents="Weather?"))
    parts = [part for chunk in chunks for part in chunk.candidates[0].content.parts]
    assert "".join(part.text for part in parts if part.text and not part.thought) == "It is 15 °C."
    assert "".join(part.text for part in parts if part.thought) == "Let me see."
    calls = [part.function_call for part in parts if part.function_call]
    assert [(call.id, call.name, call.args) for call in calls] == [
        ("call_1", "weather", {"city": "Oslo"})
    ]
    assert chunks[-1].candidates[0].finish_reason.name == "STOP"
    assert chunks[-1].usage_metadata.total_token_count == 29
    assert gateway.asked[0].stream


def test_the_client_raises_for_a_stream_that_breaks(client: Client, gateway: Gateway) -> None:
    errors = pytest.importorskip("google.genai.errors")
    gateway.broken = True
    chunks = client.models.generate_content_stream(model="fast", contents="Weather?")
    assert next(chunks)
    with pytest.raises(errors.ServerError) as raised:
        list(chunks)
    assert (raised.value.code, raised.value.status) == (503, "UNAVAILABLE")


def test_the_client_reads_over_a_seam_and_hears_why_a_stream_is_partial(
    client: Client, gateway: Gateway
) -> None:
    errors = pytest.importorskip("google.genai.errors")
    gateway.cut = {"breakwater-end": "partial", "breakwater-partial": "idle_timeout"}
    chunks = client.models.generate_content_stream(model="fast", contents="Weather?")
    heard: list[Any] = []
    with pytest.raises(errors.ServerError) as raised:
        heard.extend(chunks)
    parts = [part for chunk in heard for part in chunk.candidates[0].content.parts]
    assert "".join(part.text for part in parts if part.text and not part.thought) == "It is 15 °C."
    (info,) = raised.value.details["error"]["details"]
    assert info["metadata"] == {"breakwater-partial": "idle_timeout"}


def test_the_client_raises_the_error_it_is_told(client: Client) -> None:
    errors = pytest.importorskip("google.genai.errors")
    with pytest.raises(errors.ClientError) as raised:
        client.models.generate_content(model="missing", contents="Hi")
    told = (raised.value.code, raised.value.status, raised.value.message)
    assert told == (404, "NOT_FOUND", "no such model")


def test_a_conversation_with_tools_comes_back_as_the_client_echoes_it(
    client: Client, gateway: Gateway
) -> None:
    types = pytest.importorskip("google.genai.types")
    first = client.models.generate_content(model="fast", contents="Weather?")
    result = types.Part.from_function_response(name="weather", response={"output": "15 °C"})
    client.models.generate_content(
        model="fast",
        contents=[
            types.Content(role="user", parts=[types.Part(text="Weather?")]),
            first.candidates[0].content,
            types.Content(role="user", parts=[result]),
        ],
    )
    turns = gateway.asked[1].turns
    assert [turn.role for turn in turns] == ["user", "assistant", "tool"]
    assert turns[1].parts[0] == PARTS[0]
    assert turns[1].parts[2] == CALL
    answered = turns[2].parts[0]
    assert isinstance(answered, n.ToolResult)
    assert (answered.call_id, answered.name) == ("call_1", "weather")


def test_the_client_asks_for_structured_output(client: Client, gateway: Gateway) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    for name in ("response_json_schema", "response_schema"):
        client.models.generate_content(
            model="fast",
            contents="Hi",
            config={"response_mime_type": "application/json", name: schema},
        )
    for asked in gateway.asked:
        assert asked.format is not None
        assert asked.format.schema is not None
        assert msgspec.json.decode(asked.format.schema)["properties"] == schema["properties"]


def test_the_client_embeds_and_counts(client: Client, gateway: Gateway) -> None:
    answer = client.models.embed_content(
        model="embed", contents="Hi", config={"output_dimensionality": 2}
    )
    assert answer.embeddings[0].values == [0.5, 1.0]
    assert (gateway.embedded[0].inputs, gateway.embedded[0].dimensions) == (["Hi"], 2)
    assert client.models.count_tokens(model="fast", contents="Hi").total_tokens == 7
