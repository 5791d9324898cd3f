"""What a caller may say of a request: parameters of the body, and options that travel as headers."""

import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Final, Literal, TypedDict

from breakwater_protocol import headers as h

if TYPE_CHECKING:
    pass


_USD: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")
_PROPERTY: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,128}")


class CallOptions(TypedDict, total=False):
    """What every call may say to the gateway; it travels as headers, never in the body."""

    user: str
    """Whose budget: the header. OpenAI's body field of that name goes through `extra_body`."""
    org: str
    feature: str
    properties: Mapping[str, str]
    timeout_s: float
    """The gateway's deadline for the whole request."""
    ttft_timeout_s: float
    stall_timeout_s: float
    """This client's own: how long it waits for the next message."""
    priority: Literal["critical", "interactive", "batch"]
    request_id: str
    """The same id twice runs once; made at random when absent."""
    cache: Literal["on", "off", "refresh", "only"]
    cache_ttl_s: float
    cache_namespace: str
    cache_threshold: float
    cache_feedback: str
    """`<cache id>=wrong`, `=stale` or `=good`, of an earlier answer: the first two have this one asked anew."""
    ladder: str
    max_cost: Decimal | str
    """USD that all calls for this request may cost together; a `Decimal` or its text: floats are not exact."""
    traceparent: str
    tracestate: str


class ChatOptions(CallOptions, total=False):
    """The parameters of OpenAI's chat completions; what is not listed goes through `extra_body`."""

    temperature: float
    top_p: float
    max_tokens: int
    max_completion_tokens: int
    n: int
    stop: str | Sequence[str]
    seed: int
    tools: Sequence[Mapping[str, object]]
    tool_choice: str | Mapping[str, object]
    parallel_tool_calls: bool
    response_format: Mapping[str, object]
    reasoning_effort: str
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[str, float]
    logprobs: bool
    top_logprobs: int
    stream_options: Mapping[str, object]
    metadata: Mapping[str, str]
    extra_body: Mapping[str, object]


class EmbedOptions(CallOptions, total=False):
    """The parameters of OpenAI's embeddings; what is not listed goes through `extra_body`."""

    dimensions: int
    encoding_format: Literal["float", "base64"]
    extra_body: Mapping[str, object]


OPTION_NAMES: Final = frozenset(CallOptions.__annotations__) | {"extra_body"}

_TEXT_HEADERS: Final[Mapping[str, str]] = {
    "user": h.USER,
    "org": h.ORG,
    "feature": h.FEATURE,
    "priority": h.PRIORITY,
    "request_id": h.REQUEST_ID,
    "cache": h.CACHE,
    "cache_namespace": h.CACHE_NAMESPACE,
    "cache_feedback": h.CACHE_FEEDBACK,
    "ladder": h.LADDER,
    "traceparent": h.TRACEPARENT,
    "tracestate": h.TRACESTATE,
}
_DURATION_HEADERS: Final[Mapping[str, str]] = {
    "timeout_s": h.TIMEOUT,
    "ttft_timeout_s": h.TTFT_TIMEOUT,
    "cache_ttl_s": h.CACHE_TTL,
}


def headers_of(options: Mapping[str, object]) -> dict[str, str]:
    found: dict[str, str] = {}
    for option, header in _TEXT_HEADERS.items():
        if option in options:
            found[header] = header_value(options[option], option)
    for option, header in _DURATION_HEADERS.items():
        if option in options:
            found[header] = f"{max(1, round(positive(options[option], option) * 1000))}ms"
    if "cache_threshold" in options:
        found[h.CACHE_THRESHOLD] = repr(positive(options["cache_threshold"], "cache_threshold"))
    if "max_cost" in options:
        found[h.MAX_COST] = _usd(options["max_cost"])
    properties = options.get("properties", {})
    if not isinstance(properties, Mapping):
        raise TypeError("properties must be a mapping of names to texts")
    for name, value in properties.items():
        key = str(name).lower()
        if not _PROPERTY.fullmatch(key):
            raise ValueError(f"{str(name)[:80]!r} cannot be the name of a property")
        found[h.PROPERTY_PREFIX + key] = header_value(value, f"property {key}")
    return found


def header_value(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text, not {type(value).__name__}")
    if not value or not value.isprintable() or value != value.strip():
        raise ValueError(f"{name} must be printable, not empty, without spaces around it")
    return value


def _usd(value: object) -> str:
    if not isinstance(value, Decimal | str):
        raise TypeError(f"max_cost must be a Decimal or a text, not {type(value).__name__}")
    text = f"{value:f}" if isinstance(value, Decimal) else value
    if not _USD.fullmatch(text):
        raise ValueError(f"max_cost must be USD such as 0.05, to the nano-USD, not {text[:80]!r}")
    return text


def positive(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be greater than 0, not {value}")
    return float(value)
