"""Keys: which requests are the same question, to the byte.

`digest = blake2b-256(head | canonical(body))`. The head names the version of this rule, tenant, scope, API,
namespace, the logical model and what it points to; the canonical body is everything in the request that can
change the answer. The `partition` is the same without the text of the last user turn: whoever matches by
meaning compares within one partition only.

Two bodies are one question whatever the order of their keys, the spelling of their numbers, defaults spelled
out or left out, and whether a stream is asked for. Text counts as it is, in Unicode's NFC: it is never
lower-cased or trimmed. A field that this file has never heard of counts too.
"""

import hashlib
import json
import math
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from breakwater_protocol.cache import TEXT_MAX

VERSION: Final = "bw1"
MEMO_MAX: Final = 8_192
MEMO_CHARS: Final = 2 * 1024 * 1024
"""Of the texts in them."""
"""Bodies whose key is remembered, by their hash."""

_CHAT_OUTSIDE: Final = (
    *("stream", "stream_options", "user", "metadata", "model"),
    *("safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
)
_OUTSIDE: Final[Mapping[str, tuple[str, ...]]] = {
    "chat": _CHAT_OUTSIDE,
    "embeddings": ("user", "model"),
    "messages": ("stream", "metadata", "model"),
    "responses": _CHAT_OUTSIDE,
    "generate": ("stream", "model", "labels"),
}
"""By API: fields that do not change the answer, or that the head names."""

_DEFAULTS: Final[Mapping[str, Mapping[str, tuple[object, ...]]]] = {
    "chat": {
        "n": (1,),
        "temperature": (1,),
        "top_p": (1,),
        "frequency_penalty": (0,),
        "presence_penalty": (0,),
        "logprobs": (False,),
        "logit_bias": ({},),
        "parallel_tool_calls": (True,),
        "tool_choice": ("auto",),
        "tools": ([],),
        "functions": ([],),
        "stop": ([],),
        "modalities": (["text"],),
        "response_format": ({"type": "text"},),
        "service_tier": ("auto",),
        "store": (False,),
    },
    "embeddings": {"encoding_format": ("float",)},
    "messages": {
        "temperature": (1,),
        "stop_sequences": ([],),
        "tools": ([],),
        "tool_choice": ({"type": "auto"},),
        "thinking": ({"type": "disabled"},),
        "service_tier": ("auto",),
    },
    "responses": {
        "temperature": (1,),
        "top_p": (1,),
        "tools": ([],),
        "tool_choice": ("auto",),
        "parallel_tool_calls": (True,),
        "truncation": ("disabled",),
        "text": ({"format": {"type": "text"}}, {}),
        "background": (False,),
        "store": (True,),
        "include": ([],),
        "service_tier": ("auto",),
    },
    "generate": {"tools": ([],), "safetySettings": ([],), "generationConfig": ({},)},
}
"""By API: what a field left out stands for."""

_STATEFUL: Final[Mapping[str, tuple[str, ...]]] = {
    "chat": ("web_search_options",),
    "embeddings": (),
    "messages": ("container", "mcp_servers"),
    "responses": ("conversation", "previous_response_id", "background", "prompt"),
    "generate": ("cachedContent", "cached_content"),
}
"""By API: fields whose answer depends on what the body does not hold."""

_HIDDEN: Final = (rb"\u0022", rb"\u003a", rb"\u003A")
"""Spellings of a quote and a colon that a count of both does not see."""
_FUNCTIONS: Final = frozenset({None, "function", "custom"})
_DECLARATIONS: Final = frozenset({"functionDeclarations", "function_declarations"})


class Key(Struct, frozen=True):
    digest: str
    """64 hexadecimal digits."""
    partition: str
    temperature: float | None
    """As asked; None: the provider's default, which is 1 everywhere."""
    tools: bool
    text: str
    """The last user turn, where it is text alone; else empty. Cut where it is longer than any that is looked
    up by its meaning."""
    once: bool = False
    """Of a caller's request id, not of its question: only for that request sent again."""

    @property
    def sampled(self) -> bool:
        """The same question may be answered differently each time."""
        return self.temperature is None or self.temperature > 0


NoKey = Literal[
    "off",
    "not_configured",
    "sampled",
    "no_user",
    "no_key",
    "unreadable",
    "repeated_keys",
    "stateful",
    "hosted_tools",
]
"""Why a request has no key: its caller wants none; its model keeps nothing; its answers are meant to vary; it
does not say whose it is where that counts; its body is no JSON object, or names a member twice; its answer
depends on what the body does not hold; it uses tools that the provider runs."""


class NotCached(Struct, frozen=True):
    """No key: `reason` is a word for metrics and events."""

    reason: NoKey


class BadNumber(ValueError):
    """Beyond what a double holds."""


class _Repeated(Exception):
    pass


def _float(text: str) -> int | float:
    """`1.0`, `1e0` and `1` are one number; so are `0.0` and `-0.0`."""
    value = float(text)
    if not math.isfinite(value):
        raise BadNumber(text[:40])
    whole = int(value)
    return whole if whole == value else value


_decode: Final = msgspec.json.Decoder(float_hook=_float).decode
_encode: Final = msgspec.json.Encoder(order="sorted").encode


def head_of(
    *,
    tenant: str,
    scope: str,
    api: str,
    model: str,
    points_to: str,
    namespace: str = "",
    native: Mapping[str, str] = {},
) -> bytes:
    """What sets questions apart before their bodies do.

    `scope`: `tenant`, `user:NAME` or `key:ID`; `points_to`: what the logical model stands for now, so
    that an alias moved to another model does not answer for the old one; `native`: header fields of the
    caller's dialect that travel to the provider.
    """
    return _encode([VERSION, tenant, scope, api, model, points_to, namespace, native])


class Keys:
    """Makes keys, and remembers those of the bodies it saw last."""

    __slots__ = ("_chars", "_memo")

    def __init__(self) -> None:
        self._memo: dict[bytes, Key | NotCached] = {}
        self._chars = 0

    def __len__(self) -> int:
        return len(self._memo)

    def of(self, head: bytes, body: bytes, *, api: str) -> Key | NotCached:
        hashed = hashlib.blake2b(head, digest_size=16)
        hashed.update(body)
        name = hashed.digest()
        found = self._memo.get(name)
        if found is None:
            if len(self._memo) >= MEMO_MAX or self._chars > MEMO_CHARS:
                self._forget_half()
            found = self._memo[name] = key_of(head, body, api=api)
            self._chars += _chars(found)
        return found

    def _forget_half(self) -> None:
        """The older one: no bookkeeping while requests repeat."""
        for old in list(self._memo)[: (len(self._memo) + 1) // 2]:
            self._chars -= _chars(self._memo.pop(old))


def _chars(key: Key | NotCached) -> int:
    return len(key.text) if isinstance(key, Key) else 0


def key_of(head: bytes, body: bytes, *, api: str) -> Key | NotCached:
    try:
        fields = _decode(body)
        if not isinstance(fields, dict):
            return NotCached("unreadable")
        # A key that stands twice in an object: one reader takes the first, another the last.
        if _has_repeated(body, _encode(fields)):
            return NotCached("repeated_keys")
    except (BadNumber, msgspec.MsgspecError, RecursionError, OverflowError, UnicodeError):
        return NotCached("unreadable")
    fields = {name: value for name, value in fields.items() if value is not None}
    for name in _STATEFUL[api]:
        if fields.get(name, False) is not False:
            return NotCached("stateful")
    if _hosted(fields.get("tools"), api):
        return NotCached("hosted_tools")
    temperature = _temperature(fields, api)
    for name in _OUTSIDE[api]:
        fields.pop(name, None)
    _spell(fields, api)
    for name, defaults in _DEFAULTS[api].items():
        if name in fields and _is_one_of(fields[name], defaults):
            del fields[name]
    digest = _hash(head, fields)
    text, take_out = _last_turn(fields, api)
    partition = digest
    if take_out is not None:
        take_out()
        partition = _hash(b"partition" + head, fields)
    tools = bool(fields.get("tools") or fields.get("functions"))
    return Key(digest, partition, temperature, tools, text[: TEXT_MAX + 1])


def _has_repeated(body: bytes, again: bytes) -> bool:
    """An object of the body names a member twice. `again`: what decoding kept of it."""
    if body.count(b'":') == again.count(b'":') and not any(e in body for e in _HIDDEN):
        return False
    try:
        json.loads(body, object_pairs_hook=_once)
    except _Repeated:
        return True
    return False


def _once(pairs: list[tuple[str, object]]) -> None:
    if len({name for name, _ in pairs}) != len(pairs):
        raise _Repeated


def _is_one_of(value: object, defaults: tuple[object, ...]) -> bool:
    # True == 1: a boolean must not pass for a number.
    return any(type(value) is type(default) and value == default for default in defaults)


def _hash(head: bytes, fields: dict[str, Any]) -> str:
    canonical: bytes = _encode(fields)
    if not canonical.isascii():
        canonical = unicodedata.normalize("NFC", canonical.decode()).encode()
    hashed = hashlib.blake2b(head, digest_size=32)
    hashed.update(canonical)
    return hashed.hexdigest()


def _spell(fields: dict[str, Any], api: str) -> None:
    """One of two ways to say the same."""
    match api:
        case "chat":
            if isinstance(stop := fields.get("stop"), str):
                fields["stop"] = [stop]
        case "embeddings":
            if isinstance(given := fields.get("input"), str):
                fields["input"] = [given]
        case _:
            pass


def _temperature(fields: dict[str, Any], api: str) -> float | None:
    if api == "embeddings":
        return 0.0  # nothing is drawn
    if api == "generate":
        config = fields.get("generationConfig") or fields.get("generation_config")
        value = config.get("temperature") if isinstance(config, dict) else None
    else:
        value = fields.get("temperature")
    return float(value) if isinstance(value, int | float) else None


def _hosted(tools: object, api: str) -> bool:
    """Tools that the provider runs: what they find is new each time."""
    if not isinstance(tools, list):
        return False
    if api == "generate":
        return any(not isinstance(tool, dict) or set(tool) - _DECLARATIONS for tool in tools)
    return any(not isinstance(tool, dict) or tool.get("type") not in _FUNCTIONS for tool in tools)


_TURNS: Final = {
    "chat": "messages",
    "messages": "messages",
    "responses": "input",
    "generate": "contents",
}
_TEXT_PARTS: Final = frozenset({"text", "input_text"})


def _last_turn(fields: dict[str, Any], api: str) -> tuple[str, Callable[[], object] | None]:
    """The last user turn's text, and what takes it out of the fields; empty and None if it is not text alone."""
    place = _TURNS.get(api, "")
    turns = fields.get(place)
    if isinstance(turns, str) and api == "responses":
        return turns, lambda: fields.update({place: None})
    if not isinstance(turns, list) or not turns or not isinstance(turns[-1], dict):
        return "", None
    last: dict[str, Any] = turns[-1]
    if last.get("role", "user") != "user":
        return "", None
    inside = "parts" if api == "generate" else "content"
    text = _text(last.get(inside), api)
    if not text:
        return "", None
    # In another object: the body's own is not ours to change twice.
    return text, lambda: fields.update({place: [*turns[:-1], {**last, inside: None}]})


def _text(content: object, api: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts: list[str] = []
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            return ""
        plain = set(part) == {"text"} if api == "generate" else set(part) == {"type", "text"}
        if not plain or (api != "generate" and part["type"] not in _TEXT_PARTS):
            return ""
        texts.append(part["text"])
    return "\n".join(texts)
