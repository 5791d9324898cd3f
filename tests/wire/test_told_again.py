"""A kept answer told again in the other form: whole from a stream, streamed from a whole one."""

import json

import pytest

from breakwater_gateway.cache import forms
from breakwater_gateway.cache.entry import Entry
from breakwater_gateway.cache.replay import template
from breakwater_gateway.worker.wire import neutral as n
from breakwater_protocol.chat import Usage

USAGE = Usage(input=7, output=3)
ANSWER = n.Answer(
    dialect="openai",
    id="x",
    created=1,
    candidates=[n.Candidate([n.Text("hello")], "stop")],
    usage=USAGE,
)


def kept(api: str, form: str) -> Entry:
    payload = (
        forms.body_of(ANSWER, api, "m")
        if form == "body"
        else b"\n".join(forms.lines_of(ANSWER, api, "m", usage=False))
    )
    return Entry(
        *("t", api, "m", "d", "p"),
        "body" if form == "body" else "lines",
        payload,
        stored_at=0.0,
        fresh_s=1.0,
        kept_s=1.0,
        usage=USAGE,
    )


@pytest.mark.parametrize("api", ["chat", "messages", "responses", "generate"])
def test_a_whole_answer_has_the_same_fields_whether_it_was_kept_whole_or_as_a_stream(
    api: str,
) -> None:
    from_body, from_lines = (
        json.loads(template(kept(api, form), stream=False, usage=False).filled("i", 1))
        for form in ("body", "lines")
    )
    assert set(from_lines) == set(from_body)
    name = "usageMetadata" if api == "generate" else "usage"
    assert from_lines[name] == from_body[name]
