"""A conversation that does not fit, made shorter: the oldest turns are dropped, or replaced by a summary of them.

Works on the caller's own bytes, in its dialect, and never makes an invalid conversation: system turns stay, so
does everything from the user's last turn on but for older rounds of tools, a tool's result never stays without
its call, and what is left begins with a turn of the user's.
"""

from collections.abc import Callable, Sequence
from typing import Final, Literal

import msgspec
from msgspec import Raw, Struct

MARGIN: Final = 0.9
"""Of the room there is, that is aimed at: bytes only stand for tokens."""
HALF: Final = 0.5
"""What is kept where nobody said how much there is room for."""
TRANSCRIPT_MAX: Final = 200_000
"""Characters of dropped turns that a summary is made of; of more, the middle is left out."""
SUMMARY_TOKENS: Final = 1_024
SUMMARY_MAX: Final = 16_384
"""Characters of a summary that are taken."""

_ASK: Final = (
    "Summarize the conversation below for someone who has to continue it: facts, names, numbers, decisions,"
    " open questions and what was asked for. Do not answer it. Be brief."
)
_SUMMARY: Final = "Summary of the earlier conversation, which was too long to keep:\n"

Kind = Literal["system", "user", "model", "result"]

_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_items = msgspec.json.Decoder(list[Raw]).decode
_text = msgspec.json.Decoder(str).decode
_encode = msgspec.json.encode
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeError, RecursionError)


class Shortened(Struct, frozen=True):
    body: bytes
    removed: tuple[Raw, ...]
    """The entries that are gone, in the caller's dialect."""
    at: int
    """Where among the entries the first of them stood."""


class _Turn(Struct, frozen=True):
    raw: Raw
    kind: Kind
    calls: frozenset[str] = frozenset()
    """Ids of the tool calls in it."""
    results: frozenset[str] = frozenset()
    """Ids of the calls whose results are in it."""


def shorten(
    body: bytes, api: str, *, needed: int | None = None, limit: int | None = None
) -> Shortened | None:
    """`body` with as few of its oldest turns dropped as make it fit, or all that may be; None: none may.

    `needed` and `limit` in tokens, as the provider told them.
    """
    if api not in _READ:
        return None
    key, read = _READ[api]
    try:
        fields = _fields(body)
        turns = [read(raw) for raw in _items(fields[key])]
    except (*_UNREADABLE, KeyError):
        return None
    size = len(body)
    room = size * (limit / needed * MARGIN if needed and limit and needed > limit else HALF)
    gone: set[int] = set()
    fit: set[int] = set()
    for unit in _units(turns):
        gone |= set(unit)
        size -= sum(len(bytes(turns[place].raw)) for place in unit)
        if _holds(turns, gone):
            fit = set(gone)
            if size <= room:
                break
    if not fit:
        return None
    fields[key] = Raw(_encode([turn.raw for i, turn in enumerate(turns) if i not in fit]))
    removed = tuple(turns[place].raw for place in sorted(fit))
    return Shortened(_encode(fields), removed, min(fit))


def _units(turns: Sequence[_Turn]) -> list[list[int]]:
    """What may be dropped, oldest first, each as a whole: an exchange from one user's turn to before the next,
    and then, of the last exchange, each round of calls and their results but the last."""
    last = max((i for i, turn in enumerate(turns) if turn.kind == "user"), default=None)
    if last is None:
        return []
    units: list[list[int]] = []
    for place in range(last):
        if turns[place].kind == "system":
            continue
        if not units or turns[place].kind == "user":
            units.append([])
        units[-1].append(place)
    rounds: list[list[int]] = []
    after_result = True
    for place in range(last + 1, len(turns)):
        kind = turns[place].kind
        if kind == "system":
            continue
        if kind == "model" and after_result:
            rounds.append([])
        if not rounds:
            rounds.append([])
        rounds[-1].append(place)
        after_result = kind == "result"
    return units + rounds[:-1]


def _holds(turns: Sequence[_Turn], gone: set[int]) -> bool:
    """No result without its call, and no call without the result that it had."""
    calls: set[str] = set()
    results: set[str] = set()
    calls_gone: set[str] = set()
    results_gone: set[str] = set()
    for place, turn in enumerate(turns):
        if place in gone:
            calls_gone |= turn.calls
            results_gone |= turn.results
        else:
            calls |= turn.calls
            results |= turn.results
    return not results & (calls_gone - calls) and not calls & (results_gone - results)


# --- reading one turn, dialect by dialect -------------------------------------------------------


def _chat(raw: Raw) -> _Turn:
    fields = _fields(raw)
    role = _string(fields, "role")
    if role in {"system", "developer"}:
        return _Turn(raw, "system")
    if role in {"tool", "function"}:
        return _Turn(raw, "result", results=_ids(fields, "tool_call_id"))
    calls = frozenset[str]()
    for call in _list(fields, "tool_calls"):
        calls |= _ids(_object(call), "id")
    return _Turn(raw, "user" if role == "user" else "model", calls)


def _message(raw: Raw) -> _Turn:
    fields = _fields(raw)
    role = _string(fields, "role")
    if role == "system":
        return _Turn(raw, "system")
    calls, results = frozenset[str](), frozenset[str]()
    for part in _list(fields, "content"):
        block = _object(part)
        type_ = _string(block, "type")
        if type_ == "tool_use":
            calls |= _ids(block, "id")
        elif type_ == "tool_result":
            results |= _ids(block, "tool_use_id")
    if role == "user":
        return _Turn(raw, "result" if results else "user", results=results)
    return _Turn(raw, "model", calls)


def _item(raw: Raw) -> _Turn:
    fields = _fields(raw)
    type_ = _string(fields, "type") or "message"
    if type_ == "message":
        role = _string(fields, "role")
        if role in {"system", "developer"}:
            return _Turn(raw, "system")
        return _Turn(raw, "user" if role == "user" else "model")
    if type_.endswith("_output"):
        return _Turn(raw, "result", results=_ids(fields, "call_id"))
    return _Turn(raw, "model", _ids(fields, "call_id"))


def _content(raw: Raw) -> _Turn:
    fields = _fields(raw)
    role = _string(fields, "role")
    calls, results = frozenset[str](), frozenset[str]()
    answers = False
    for part in _list(fields, "parts"):
        block = _object(part)
        for name in ("functionCall", "function_call"):
            if name in block:
                calls |= _ids(_object(block[name]), "id")
        for name in ("functionResponse", "function_response"):
            if name in block:
                answers = True
                results |= _ids(_object(block[name]), "id")
    if role == "model":
        return _Turn(raw, "model", calls)
    return _Turn(raw, "result" if answers or role == "function" else "user", results=results)


_READ: Final[dict[str, tuple[str, Callable[[Raw], _Turn]]]] = {
    "chat": ("messages", _chat),
    "messages": ("messages", _message),
    "responses": ("input", _item),
    "generate": ("contents", _content),
}
"""By the caller's API: where the turns stand in its body, and what one of them is."""


def _string(fields: dict[str, Raw], name: str) -> str:
    raw = fields.get(name)
    return _text(raw) if raw is not None and bytes(raw)[:1] == b'"' else ""


def _ids(fields: dict[str, Raw], name: str) -> frozenset[str]:
    id_ = _string(fields, name)
    return frozenset((id_,)) if id_ else frozenset()


def _list(fields: dict[str, Raw], name: str) -> list[Raw]:
    raw = fields.get(name)
    return _items(raw) if raw is not None and bytes(raw)[:1] == b"[" else []


def _object(raw: Raw) -> dict[str, Raw]:
    return _fields(raw) if bytes(raw)[:1] == b"{" else {}


# --- a summary in their place -------------------------------------------------------------------


def summary_request(removed: Sequence[Raw], *, model: str) -> bytes:
    """A chat body that asks `model` to sum up what was dropped, whatever dialect it was in."""
    text = "\n".join(filter(None, (_said(raw) for raw in removed)))
    if len(text) > TRANSCRIPT_MAX:
        half = TRANSCRIPT_MAX // 2
        text = f"{text[:half]}\n[...]\n{text[-half:]}"
    return _encode(
        {
            "model": model,
            "messages": [
                {"role": "system", "content": _ASK},
                {"role": "user", "content": text or "(nothing that can be read)"},
            ],
            "max_tokens": SUMMARY_TOKENS,
        }
    )


def with_summary(shortened: Shortened, api: str, summary: str) -> bytes:
    """The shortened body with the summary where the dialect has what is said to a model beforehand."""
    text = _SUMMARY + summary[:SUMMARY_MAX]
    fields = _fields(shortened.body)
    match api:
        case "messages":
            fields["system"] = _added(fields.get("system"), text, {"type": "text", "text": text})
        case "generate":
            name = "system_instruction" if "system_instruction" in fields else "systemInstruction"
            given = _object(fields.get(name) or Raw(b"{}"))
            given["parts"] = Raw(_encode([*_list(given, "parts"), {"text": text}]))
            fields[name] = Raw(_encode(given))
        case _:
            key = _READ[api][0]
            turns: list[object] = list(_items(fields[key]))
            turn = {"role": "system", "content": text}
            turns.insert(shortened.at, {"type": "message", **turn} if api == "responses" else turn)
            fields[key] = Raw(_encode(turns))
    return _encode(fields)


def _added(given: Raw | None, text: str, block: dict[str, str]) -> Raw:
    """A prompt that is a string or a list of blocks, with one more at its end."""
    start = b"" if given is None else bytes(given)[:1]
    if start == b"[" and given is not None:
        return Raw(_encode([*_items(given), block]))
    if start == b'"' and given is not None:
        return Raw(_encode(f"{_text(given)}\n\n{text}"))
    return Raw(_encode(text))


def _said(raw: Raw) -> str:
    """One dropped turn as a line of a transcript: who, and the texts in it."""
    try:
        turn = msgspec.json.decode(raw)
    except _UNREADABLE:
        return ""
    if not isinstance(turn, dict):
        return ""
    texts: list[str] = []
    _gather(turn, texts, depth=0)
    who = turn.get("role") or turn.get("type") or "user"
    return f"{who}: {' '.join(texts)}" if texts else ""


_GATHER_DEPTH_MAX: Final = 12


def _gather(value: object, texts: list[str], *, depth: int) -> None:
    """Texts of a turn, not its ids, types or media."""
    if depth > _GATHER_DEPTH_MAX:
        return
    if isinstance(value, dict):
        for key, child in value.items():
            if isinstance(child, str):
                if key not in _NOT_TEXT:
                    texts.append(child)
            else:
                _gather(child, texts, depth=depth + 1)
    elif isinstance(value, list):
        for child in value:
            if isinstance(child, str):
                texts.append(child)
            else:
                _gather(child, texts, depth=depth + 1)


_NOT_TEXT: Final = frozenset(
    {
        *("id", "type", "role", "data", "url", "file_id", "media_type", "mimeType", "mime_type"),
        *("signature", "thoughtSignature", "encrypted_content", "call_id", "tool_call_id"),
        *("tool_use_id", "file_data", "image_url", "format", "detail", "status", "fileUri"),
    }
)
