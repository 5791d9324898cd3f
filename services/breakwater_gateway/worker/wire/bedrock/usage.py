"""Usage and stop reasons of Converse. Source: Amazon Bedrock API reference, "TokenUsage", "Converse"."""

from typing import Final

import msgspec
from msgspec import Raw, Struct

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import objects as o
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

FINISH: Final[dict[str, n.Finish]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
}


def finish_of(reason: str) -> n.Finish:
    """Reasons that are not known yet count as an ordinary stop; `native` keeps the word."""
    return FINISH.get(reason, "stop" if reason else "")


def broken(reason: str, status: int) -> f.Failure | None:
    """The failure that a stop reason reports."""
    if reason == "malformed_tool_use":
        return f.MalformedToolCall("the model wrote a malformed tool call", status, reason)
    if reason == "malformed_model_output":
        return f.MalformedAnswer("the model wrote malformed output", status, reason)
    return None


class WireUsage(Struct):
    inputTokens: int | None = None  # noqa: N815 - the API's spelling, here and below
    outputTokens: int | None = None  # noqa: N815
    totalTokens: int | None = None  # noqa: N815
    cacheReadInputTokens: int | None = None  # noqa: N815
    cacheWriteInputTokens: int | None = None  # noqa: N815

    def normal(self) -> Usage:
        """`inputTokens` holds neither what was read from the cache nor what was written to it.

        Models that counted them in would show it by the total, which is the sum of all.
        """
        given = max(0, self.inputTokens or 0)
        output = max(0, self.outputTokens or 0)
        read = max(0, self.cacheReadInputTokens or 0)
        wrote = max(0, self.cacheWriteInputTokens or 0)
        inclusive = self.totalTokens == given + output and given >= read + wrote
        return Usage(
            input=given if inclusive else given + read + wrote,
            output=output,
            cache_read=read,
            cache_write=wrote,
        )


_usage: Final = msgspec.json.Decoder(WireUsage).decode


def read_usage(raw: bytes | Raw | None) -> Usage | None:
    """None for what is no usage object."""
    if raw is None or bytes(raw) == o.NULL:
        return None
    try:
        return _usage(raw).normal()
    except o.UNREADABLE:
        return None


def usage(raw: bytes | Raw) -> Usage:
    """A `usage` object, normalised; zeros for what is not one."""
    return read_usage(raw) or Usage()
