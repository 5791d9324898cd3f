"""How each API's streams look over HTTP."""

import json

import pytest

from breakwater_gateway.edge import gemini_api
from breakwater_gateway.edge.framing import framing
from breakwater_protocol import failures as f

OK = {"breakwater-end": "ok", "breakwater-attempts": "1"}
CUT = {"breakwater-end": "partial", "breakwater-partial": "idle_timeout"}


@pytest.mark.parametrize("api", ["messages", "responses"])
def test_events_are_named_by_their_type(api: str) -> None:
    got = framing(api).events(b'{"type":"a.b","x":1}\n{"type":"ping"}')
    assert (
        got == b'event: a.b\ndata: {"type":"a.b","x":1}\n\nevent: ping\ndata: {"type":"ping"}\n\n'
    )


@pytest.mark.parametrize("api", ["messages", "responses"])
def test_their_whole_end_is_a_comment_and_their_broken_one_an_error_event(api: str) -> None:
    assert framing(api).end(OK) == b": breakwater-attempts=1\n\n"
    event = framing(api).end(CUT).split(b"\n\n")[1]
    assert event.startswith(b"event: error\ndata: ")
    assert json.loads(event.split(b"data: ")[1])["type"] == "error"


@pytest.mark.parametrize("api", ["chat", "messages", "responses"])
def test_a_seam_is_a_comment_that_names_who_goes_on(api: str) -> None:
    got = framing(api).events(b'{"n":1}', "other")
    assert got == b': breakwater-seam=other\n\ndata: {"n":1}\n\n'


SEAMS = [
    (b'{"a":1}', [{"breakwaterSeam": "other", "a": 1}]),
    (b'{"a":1}\n{"a":2}', [{"breakwaterSeam": "other", "a": 1}, {"a": 2}]),
    (b"{}", [{"breakwaterSeam": "other"}]),
    (b'{ "a":{} }', [{"breakwaterSeam": "other", "a": {}}]),
]


@pytest.mark.parametrize(("data", "objects"), SEAMS)
def test_googles_clients_read_every_line_so_their_seam_is_a_field_of_the_object_behind_it(
    data: bytes, objects: list[dict[str, object]]
) -> None:
    events = framing("generate").events(data, "other").decode().split("\n\n")
    assert [json.loads(event.removeprefix("data: ")) for event in events if event] == objects
    array = framing("generate", sse=False)
    assert json.loads(array.events(data, "other") + array.end(OK)) == objects


@pytest.mark.parametrize("name", ['a"b', "é", "a\nb"])
def test_a_seam_of_any_name_stays_one_json_object(name: str) -> None:
    event = framing("generate").events(b'{"a":1}', name)
    assert event.count(b"\n") == 2
    assert json.loads(event.removeprefix(b"data: "))["breakwaterSeam"] == name


@pytest.mark.parametrize("sse", [True, False])
def test_a_broken_gemini_stream_says_why_and_what_it_cost_in_its_error(sse: bool) -> None:
    stream = framing("generate", sse=sse)
    totals = {"breakwater-cost-usd": "0.01", "breakwater-seq": "7", "nats-status": "x"}
    text = stream.events(b'{"a":1}') + stream.end({**CUT, **totals})
    last = json.loads(text)[-1] if not sse else json.loads(text.split(b"data: ")[-1])
    assert last["error"]["status"] == "DEADLINE_EXCEEDED"
    assert last["error"]["details"] == [
        {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "IDLE_TIMEOUT",
            "domain": "breakwater",
            "metadata": {"breakwater-partial": "idle_timeout", "breakwater-cost-usd": "0.01"},
        }
    ]


def test_gemini_streams_as_events_or_as_one_array() -> None:
    assert framing("generate").events(b'{"a":1}') == b'data: {"a":1}\n\n'
    array = framing("generate", sse=False)
    text = array.events(b'{"a":1}\n{"a":2}') + array.events(b'{"a":3}') + array.end(OK)
    assert json.loads(text) == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert framing("generate", sse=False).end(OK) == b"[]"
    broken = framing("generate", sse=False)
    assert json.loads(broken.events(b'{"a":1}') + broken.end(CUT))[-1]["error"]["code"] == 504


def test_a_gemini_path_joins_its_body() -> None:
    got = gemini_api.read(
        "/v1beta/models/gemini-2.5-flash:streamGenerateContent", "alt=sse", b' {"contents": []} '
    )
    assert isinstance(got, gemini_api.Asked)
    assert json.loads(got.body) == {"model": "gemini-2.5-flash", "stream": True, "contents": []}
    assert got.sse
    empty = gemini_api.read("/v1/models/m:generateContent", "", b"{}")
    assert isinstance(empty, gemini_api.Asked)
    assert json.loads(empty.body) == {"model": "m", "stream": False}


@pytest.mark.parametrize("body", [b"", b"[]", b"nope"])
def test_a_gemini_body_that_is_no_object_is_refused(body: bytes) -> None:
    got = gemini_api.read("/v1/models/m:generateContent", "", body)
    assert isinstance(got, f.InvalidRequest)


def test_what_is_not_served_of_gemini_says_what_is() -> None:
    got = gemini_api.read("/v1/models/m:countTokens", "", b"{}")
    assert isinstance(got, f.InvalidRequest)
    assert "batchEmbedContents" in got.message


def test_gemini_embeddings_go_as_openais_and_come_back_as_geminis() -> None:
    body = b'{"requests":[{"model":"models/e","content":{"parts":[{"text":"a"}]}}]}'
    got = gemini_api.read("/v1beta/models/e:batchEmbedContents", "", body)
    assert isinstance(got, gemini_api.Asked)
    assert got.api == "embeddings"
    assert json.loads(got.body)["input"] == ["a"]
    assert got.back is not None
    answer = b'{"data":[{"index":0,"embedding":[0.5]}],"model":"e","usage":{"prompt_tokens":1}}'
    assert json.loads(got.back(answer))["embeddings"] == [{"values": [0.5]}]
