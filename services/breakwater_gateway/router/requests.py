"""Bodies of callers: decoded once, bounded, or refused with one sentence that names the mend."""

import re
from typing import Final

import msgspec

from breakwater_protocol import failures as f
from breakwater_protocol.chat import Asked, ChatRequest, EmbeddingsRequest, NativeRequest

STRUCTURE_MAX: Final = 200_000
"""Colons and commas a body may hold outside of what they mean: a bound on what decoding can cost."""
_LARGE: Final = 256 * 1024


_DECODERS: Final[dict[str, msgspec.json.Decoder[Asked]]] = {
    "chat": msgspec.json.Decoder(ChatRequest),
    "embeddings": msgspec.json.Decoder(EmbeddingsRequest),
    "messages": msgspec.json.Decoder(NativeRequest),
    "responses": msgspec.json.Decoder(NativeRequest),
    "generate": msgspec.json.Decoder(NativeRequest),
}
_PATH: Final = re.compile(r" - at `\$?\.?([^`]*)`$")


def decode_request(body: bytes, *, api: str, limit: int) -> Asked | f.Failure:
    if len(body) > limit:
        return f.PayloadTooLarge(
            f"the body has {len(body)} bytes and the limit is {limit}: send less, or raise limits.body_bytes"
        )
    if not body.strip():
        return f.InvalidRequest("the body is empty: send a JSON object with model and messages")
    # A key costs more to decode than a character: many of them in a large body are refused early.
    if len(body) > _LARGE and body.count(b'":') > STRUCTURE_MAX:
        return f.InvalidRequest(f"the body has more than {STRUCTURE_MAX} JSON keys")
    try:
        body.decode("utf-8")
        return _DECODERS[api].decode(body)
    except UnicodeDecodeError as error:
        return f.InvalidRequest(f"the body is not UTF-8: byte {error.start} is invalid")
    except RecursionError:
        return f.InvalidRequest("the body is nested too deeply")
    except msgspec.ValidationError as error:
        return _invalid(str(error))
    except msgspec.DecodeError as error:
        return f.InvalidRequest(f"the body is not valid JSON: {str(error)[:200]}")


def _invalid(text: str) -> f.InvalidRequest:
    match = _PATH.search(text)
    param = match[1] if match else None
    missing = re.search(r"missing required field `([^`]+)`", text)
    if missing:
        param = f"{param}.{missing[1]}" if param else missing[1]
    return f.InvalidRequest(
        f"the body is not what this API takes: {text[:300]}", param=param or None
    )
