"""The neutral request as a Messages body: of our own callers without loss, of other dialects as near as it goes.

What this API enforces on a conversation, and other dialects do not: system prompts stand apart, user and
assistant alternate, tool results lead the user's message that follows the call, no text is blank, and
`max_tokens` is required. Source: Anthropic API reference, "Create a Message".
"""

from typing import Final
from urllib.parse import quote

import msgspec
from msgspec import Raw

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.anthropic import blocks as b
from breakwater_gateway.worker.wire.anthropic import models
from breakwater_gateway.worker.wire.anthropic.conversation import Dropped
from breakwater_gateway.worker.wire.anthropic.foreign import foreign_body
from breakwater_gateway.worker.wire.anthropic.native import native_body

PATHS: Final = {"chat": "/messages", "count_tokens": "/messages/count_tokens"}

VERSION: Final = "2023-06-01"
"""The `anthropic-version` of our own requests; a native caller's own header goes before it."""

_HOST_VERSIONS: Final = {"vertex": "vertex-2023-10-16", "bedrock": "bedrock-2023-05-31"}


def encode_request(request: n.Request, target: n.Target, *, now: float = 0) -> n.Call:  # noqa: ARG001 - all dialects take `now`
    """The call to make. Quirks of the target: see `models.model`."""
    dropped = Dropped()
    native = request.dialect == "anthropic"
    body = (
        native_body(request)
        if native
        else foreign_body(request, models.model(target), target, dropped)
    )
    host = str(target.quirks.get("host", ""))
    if host in _HOST_VERSIONS:
        version = target.quirks.get("anthropic_version", _HOST_VERSIONS[host])
        body.setdefault("anthropic_version", version)
    else:
        # A body that came in a host's form.
        body.pop("anthropic_version", None)
        body["model"] = target.model
    if request.stream and host != "bedrock":
        body["stream"] = True
    return n.Call(
        path=_path(host, target.model, stream=request.stream),
        body=b.encode(body),
        headers=() if host in _HOST_VERSIONS else (("anthropic-version", VERSION),),
        dropped=tuple(dropped.names),
    )


_NOT_COUNTED: Final = (
    *("max_tokens", "stream", "stop_sequences", "temperature", "top_p", "top_k"),
    *("metadata", "service_tier", "container"),
)


def encode_count_tokens(request: n.Request, target: n.Target) -> n.Call:
    """The call that counts the tokens of `request`; of its fields those that take part in the count."""
    call = encode_request(msgspec.structs.replace(request, stream=False), target)
    body = b.fields(call.body)
    for name in _NOT_COUNTED:
        body.pop(name, None)
    host = str(target.quirks.get("host", ""))
    path = PATHS["count_tokens"]
    if host == "vertex":
        body["model"] = Raw(b.encode(target.model))
        path = "/publishers/anthropic/models/count-tokens:rawPredict"
    return n.Call(path=path, body=b.encode(body), headers=call.headers, dropped=call.dropped)


def _path(host: str, model: str, *, stream: bool) -> str:
    if host == "vertex":
        method = "streamRawPredict" if stream else "rawPredict"
        return f"/publishers/anthropic/models/{quote(model, safe='@-._')}:{method}"
    if host == "bedrock":
        method = "invoke-with-response-stream" if stream else "invoke"
        return f"/model/{quote(model, safe='')}/{method}"
    return PATHS["chat"]
