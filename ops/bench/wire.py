"""What the bench's provider and its load generator agree on: bodies, stamps, models."""

import json
import re
from typing import Final

MODEL: Final = "fixed"
"""The logical model of the gateway, and the provider's own name for it."""

STAMP: Final = re.compile(rb"~S:(\d{20})~")
"""When a chunk was written, in nanoseconds of the machine's monotonic clock, fixed in width."""
STAMP_BYTES: Final = 24

COUNTER: Final = b"@" * 12
"""Replaced by a number in each request, so that no two are alike and no cache can answer; by the same one
each time where the cache is what is measured."""

_RULES = (
    "You are the assistant of a hardware shop. Answer in two sentences, name the shelf, and never "
    "promise a delivery date that the stock list does not hold. "
)
_QUESTION = (
    "I bought a torque wrench last spring and its ratchet slips under load; which spare part do I "
    "need, and may I bring it back opened? "
)


def stamp(now_ns: int) -> bytes:
    return b"~S:%020d~" % now_ns


def body(
    *, stream: bool = False, tokens: int = 64, model: str = MODEL, temperature: float = 0.2
) -> bytes:
    """A chat-completions request of about 2 KB that holds `COUNTER` once.

    `tokens` is both `max_tokens` and the number of chunks the bench's provider streams.
    """
    request: dict[str, object] = {
        "model": model,
        "messages": [
            {"role": "system", "content": _RULES * 6},
            {"role": "user", "content": f"Ticket {COUNTER.decode()}: {_QUESTION * 6}"},
        ],
        "temperature": temperature,
        "max_tokens": tokens,
    }
    if stream:
        request["stream"] = True
    return json.dumps(request, separators=(",", ":")).encode()
