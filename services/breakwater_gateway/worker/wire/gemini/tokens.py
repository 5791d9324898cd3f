"""Counting tokens: `:countTokens`, both ways.

Source: Gemini API reference, "Counting tokens"; Vertex AI reference, "CountTokens".
"""

from typing import Final

import msgspec
from msgspec import Struct

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.gemini import answer as a
from breakwater_gateway.worker.wire.gemini import fields as g
from breakwater_gateway.worker.wire.gemini.errors import classify
from breakwater_gateway.worker.wire.gemini.translate import chat_body, model_path
from breakwater_protocol import failures as f


def encode_count_tokens(request: n.Request, target: n.Target) -> n.Call:
    """The call that counts the tokens of `request`; `request.decode_request` reads the callers' own."""
    dropped = g.Dropped()
    body = chat_body(request, target, dropped)
    if not target.quirks.get("vertex"):
        model = model_path(target, "").strip("/:")
        body = {"generateContentRequest": {"model": model, **body}}
    return n.Call(
        path=model_path(target, "countTokens"),
        body=g.encode(body),
        dropped=tuple(dropped.names),
    )


class _Counted(Struct, rename="camel"):
    total_tokens: int | None = None
    error: object = None


_counted: Final = msgspec.json.Decoder(_Counted, strict=False).decode


def decode_count_tokens(body: bytes) -> int | f.Failure:
    """The count, or the failure that the answer is."""
    try:
        found = _counted(body)
    except g.UNREADABLE:
        return f.MalformedAnswer(a.not_json(body), provider_status=200)
    if found.error is not None:
        return classify(200, {}, body, now=0.0)
    if found.total_tokens is None or found.total_tokens < 0:
        return f.MalformedAnswer("the provider's answer has no count", provider_status=200)
    return found.total_tokens


def encode_count_tokens_answer(tokens: int) -> bytes:
    return g.encode({"totalTokens": tokens})
