"""Entries: what is kept of an answer, and which answers may be kept.

An entry holds the answer as the caller got it, whole or as the lines of its stream, with what it cost. It
names its own key and tenant: whoever reads one back believes it only under that key and for that tenant, so
that a value put under another's name in the bucket is skipped, not served.
"""

from typing import Final, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from breakwater_gateway.cache import forms
from breakwater_protocol.cache import Purge
from breakwater_protocol.chat import Usage

VERSION: Final = 1

Form = Literal["body", "lines"]


class Entry(Struct, frozen=True, omit_defaults=True):
    tenant: str
    api: str
    model: str
    """As the caller named it."""
    digest: str
    partition: str
    form: Form
    payload: bytes
    """The body, or the stream's lines joined by line ends, usage of its own line left out."""
    stored_at: float
    """Unix time."""
    fresh_s: float
    kept_s: float
    """From `stored_at` too: after `fresh_s` it is served only when nothing else answers."""
    usage_line: bytes = b""
    """Of OpenAI's chat, where the caller asked for usage on its stream."""
    usage: Usage | None = None
    cost_nano_usd: int | None = None
    deployment: str = ""
    dropped: str = ""
    """`breakwater-dropped-params` of the answer."""
    version: int = VERSION
    home: str = ""
    """The name in the configuration that stood for `model`, where it is another (`gpt-*`)."""


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Entry).decode


def encode(entry: Entry) -> bytes:
    return _encode(entry)


Poison = Literal[
    "size", "unreadable", "version", "tenant", "digest", "api", "model", "partition", "times"
]
"""Why a stored value is skipped."""
BESIDES: Final = 64 * 1024
"""Bytes that a stored value may have besides the answer's own."""


def read(
    data: bytes,
    *,
    digest: str,
    tenant: str,
    api: str,
    model: str,
    partition: str = "",
    answer_max: int,
) -> Entry | Poison:
    """The entry under that key, if it is what it should be. `model`: as the caller names it; `partition`:
    where it must be of a certain one; `answer_max`: bytes of an answer that may be kept."""
    if len(data) > answer_max + BESIDES:
        return "size"
    try:
        entry = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "unreadable"
    if entry.version != VERSION:
        return "version"
    if entry.tenant != tenant:
        return "tenant"
    if entry.digest != digest:
        return "digest"
    if entry.api != api:
        return "api"
    if entry.model != model:
        return "model"
    if partition and entry.partition != partition:
        return "partition"
    # NaN compares false with everything, so the good case is what is asked for.
    if not (0 <= entry.fresh_s <= entry.kept_s < 1e10 and 0 <= entry.stored_at < 1e11):
        return "times"
    return entry


def peek(data: bytes) -> Entry | None:
    """What a stored value says that it is; not to be served on its word alone."""
    try:
        entry = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return entry if entry.version == VERSION else None


def belongs(entry: Entry, which: Purge) -> bool:
    """Whether the entry is among those. A model goes by the name that callers use and by that which the
    configuration has for it."""
    return (
        which.tenant in (None, entry.tenant)
        and which.model in (None, entry.model, entry.home or entry.model)
        and which.partition in (None, entry.partition)
        and which.digest in (None, entry.digest)
    )


# ---------------------------------------------------------------- which answers are kept


class _Message(Struct):
    tool_calls: Raw | UnsetType = UNSET
    function_call: Raw | UnsetType = UNSET
    refusal: Raw | UnsetType = UNSET


class _Choice(Struct):
    finish_reason: str | None = None
    message: _Message | UnsetType = UNSET
    delta: _Message | UnsetType = UNSET


class _Chat(Struct):
    choices: list[_Choice] = []
    usage: Raw | UnsetType = UNSET


_chat: Final = msgspec.json.Decoder(_Chat).decode
_EMPTY: Final = frozenset({b"null", b"[]", b'""', b"{}"})

Unfit = Literal["", "unreadable", "finish", "tool_call", "refused"]
"""Why an answer is not kept; empty: it may be."""


def unfit(api: str, form: Form, payload: bytes) -> Unfit:
    """Only an answer that its model finished by itself, in words, is worth giving again."""
    try:
        match api:
            case "embeddings":
                return ""
            case "chat":
                return _unfit_chat(payload.split(b"\n") if form == "lines" else [payload])
            case _:
                return _unfit_neutral(api, form, payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "unreadable"


def _unfit_chat(lines: list[bytes]) -> Unfit:
    finished = False
    for line in lines:
        for choice in _chat(line).choices:
            said = choice.delta if choice.message is UNSET else choice.message
            if said is not UNSET:
                if _says(said.tool_calls) or _says(said.function_call):
                    return "tool_call"
                if _says(said.refusal):
                    return "refused"
            if choice.finish_reason:
                if choice.finish_reason != "stop":
                    return "finish"
                finished = True
    return "" if finished else "finish"


def _says(raw: Raw | UnsetType) -> bool:
    return raw is not UNSET and bytes(raw) not in _EMPTY


def is_usage_line(line: bytes) -> bool:
    """OpenAI's last chunk of a stream whose caller asked for usage."""
    if b'"usage"' not in line:
        return False
    try:
        chunk = _chat(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return not chunk.choices and _says(chunk.usage)


def _unfit_neutral(api: str, form: Form, payload: bytes) -> Unfit:
    answer = forms.answer_of(api, form, payload)
    if answer is None or not answer.candidates:
        return "unreadable"
    for candidate in answer.candidates:
        for part in candidate.parts:
            if isinstance(part, forms.REFUSING):
                return "refused"
            if not isinstance(part, forms.SAYING):
                return "tool_call"
        if candidate.finish != "stop":
            return "finish"
    return ""


def text_of(api: str, form: Form, payload: bytes, limit: int) -> str:
    """What the answer says, cut at `limit` characters; empty where it cannot be read."""
    if api == "embeddings":
        return ""
    answer = forms.answer_of(api, form, payload)
    return "" if answer is None else forms.text(answer)[:limit]
