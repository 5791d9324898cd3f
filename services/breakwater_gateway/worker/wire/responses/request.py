"""Requests of the Responses API, from callers and to providers.

Source: OpenAI API reference, "Create a model response".
"""

from collections.abc import Iterable
from typing import Final

from msgspec import Raw

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.openai_chat.fields import (
    FLAG,
    ITEMS,
    NUMBER,
    OBJECT,
    TEXT,
    WHOLE,
    Taken,
    encode,
    is_null,
    is_text,
    text_or,
)
from breakwater_gateway.worker.wire.responses.items import (
    FIELDS_MAX,
    TRUE,
    Dropped,
    Writer,
    alone,
    contents,
    item_rest,
    list_of,
    object_of,
    parts_of_item,
    result,
)

PATHS: Final = {"responses": "/responses", "compact": "/responses/compact"}

ITEMS_MAX: Final = 100_000
TOOLS_MAX: Final = 10_000

OUTPUT_MIN: Final = 16
"""Least `max_output_tokens` at OpenAI."""

_LOGPROBS: Final = "message.output_text.logprobs"
_PROOFS: Final = "reasoning.encrypted_content"

_NOT_ELSEWHERE: Final = {
    "previous_response_id": "the conversation it continues is kept by the provider that answered it",
    "conversation": "the conversation is kept by the provider that it was created at",
    "prompt": "the prompt template is kept by the provider that it was created at",
    "background": "an answer cannot be fetched later from a provider without this API",
}
"""Fields whose loss would change what is asked, and why no other dialect can have them."""


def refusal(request: n.Request) -> BadRequest | None:
    """Why a request of this dialect must not go to a provider of another; None when it may.

    These are not left to `Call.dropped`: without the history that a provider keeps, the answer would be
    one to another question.
    """
    if request.dialect != "responses":
        return None
    for name, why in _NOT_ELSEWHERE.items():
        if name in request.extra:
            return BadRequest(
                f"'{name}' needs a provider of the Responses API: {why}. Send the whole conversation in"
                " 'input', or choose such a model.",
                name,
            )
    if "endpoint" in request.layout:
        return BadRequest("Only providers of the Responses API can compact a conversation.")
    for turn in request.turns:
        for part in turn.parts:
            if isinstance(part, n.Native) and _kind(part.raw) in {"item_reference", "compaction"}:
                return BadRequest(
                    f"An item of type '{_kind(part.raw)}' means something only to the provider that made it.",
                    "input",
                )
    return None


def _kind(raw: Raw) -> str:
    return text_or(object_of(raw).get("type"), "native")


# ---------------------------------------------------------------- decode


def decode_request(body: bytes, *, path: str = "") -> n.Request:
    """Raises BadRequest. `path` tells `/responses/compact` from `/responses`."""
    try:
        if not body.isascii():
            body.decode()
    except UnicodeDecodeError:
        raise BadRequest("The body is not valid UTF-8.") from None
    taken = Taken(body)
    if len(taken.fields) > FIELDS_MAX:
        raise BadRequest(f"A body may have {FIELDS_MAX} fields, this one has {len(taken.fields)}.")
    layout: n.Layout = {}
    if path.split("?", 1)[0].rstrip("/").endswith(PATHS["compact"]):
        layout["endpoint"] = Raw(b'"compact"')
    model = taken.need("model", TEXT)
    if not model:
        raise BadRequest("'model' is empty.", "model")
    turns = _turns(taken)
    form, reasoning = _format(taken), _reasoning(taken)
    logprobs = _include(taken, layout)
    stream = taken.take("stream", FLAG) or False
    for name, default in (("store", b"false"), ("background", b"false")):
        _default(taken, name, default, layout)
    _default(taken, "truncation", b'"disabled"', layout)
    return n.Request(
        dialect="responses",
        model=model,
        turns=turns,
        tools=_tools(taken),
        tool_choice=_choice(taken),
        parallel_tools=taken.take("parallel_tool_calls", FLAG),
        max_output=taken.take("max_output_tokens", WHOLE),
        temperature=taken.take("temperature", NUMBER),
        top_p=taken.take("top_p", NUMBER),
        logprobs=True if logprobs else None,
        top_logprobs=taken.take("top_logprobs", WHOLE),
        format=form,
        reasoning=reasoning,
        user=taken.take("user", TEXT) or "",
        service_tier=taken.take("service_tier", TEXT) or "",
        stream=stream,
        usage_wanted=stream,
        extra=taken.rest(),
        layout=layout,
    )


def _default(taken: Taken, name: str, default: bytes, layout: n.Layout) -> None:
    """A default spelled out asks for nothing."""
    if bytes(taken.fields.get(name, b"")) == default:
        layout[name] = taken.fields.pop(name)


def _include(taken: Taken, layout: n.Layout) -> bool:
    """True where log probabilities are asked for. Proofs of reasoning are always in an answer of ours."""
    raw = taken.fields.get("include")
    if is_null(raw):
        return False
    given = [text_or(one) for one in taken.need("include", ITEMS)]
    assert raw is not None  # noqa: S101 - not null, seen above
    kept = {_LOGPROBS, _PROOFS}
    (layout if kept.issuperset(given) else taken.fields)["include"] = raw
    return _LOGPROBS in given


def _turns(taken: Taken) -> list[n.Turn]:
    turns: list[n.Turn] = []
    instructions = taken.take("instructions", TEXT)
    if instructions is not None:
        turns.append(_plain("system", instructions, {"instructions": TRUE}))
    given = taken.raw("input")
    if given is None:
        if not any(taken.raw_is_set(name) for name in ("previous_response_id", "conversation", "prompt")):
            raise BadRequest("Missing required parameter: 'input'.", "input")
        return turns
    taken.fields["input"] = given
    if is_text(given):
        turns.append(_plain("user", taken.need("input", TEXT), {"input": TRUE}))
        return turns
    items = taken.need("input", ITEMS)
    if len(items) > ITEMS_MAX:
        raise BadRequest(f"'input' has {len(items)} items; {ITEMS_MAX} are possible.", "input")
    _items(items, turns)
    return turns


def _plain(role: n.Role, text: str, layout: n.Layout) -> n.Turn:
    return n.Turn(role=role, parts=[n.Text(text=text)], plain=True, layout=layout)


_ROLES: Final[dict[str, n.Role]] = {
    "user": "user",
    "system": "system",
    "developer": "developer",
    "assistant": "assistant",
}

_FROM_OUTSIDE: Final = frozenset(
    {"item_reference", "mcp_approval_response", "additional_tools", "tool_search_output"}
)


def _items(items: list[Raw], turns: list[n.Turn]) -> None:
    """What the assistant made in a row is one turn."""
    ours: list[n.Part] = []
    for index, raw in enumerate(items):
        at = f"input[{index}]"
        taken = Taken(raw, at)
        kind = taken.take("type", TEXT) or ""
        role = text_or(taken.fields.get("role"))
        if kind == "message" or (not kind and role):
            if role == "assistant":
                ours.extend(parts_of_item(raw, at, answer=False))
                continue
            turn = _message(taken, kind)
        elif kind == "function_call_output":
            turn = n.Turn(role="tool", parts=[result(taken)])
        elif not kind:
            raise BadRequest(f"Missing required parameter: '{at}.type'.", f"{at}.type")
        elif kind.endswith("_output") or kind in _FROM_OUTSIDE:
            turn = n.Turn(role=_ROLES.get(role, "user"), parts=[alone(raw)])
        else:
            ours.extend(parts_of_item(raw, at, answer=False))
            continue
        if ours:
            turns.append(_assistant(ours))
            ours = []
        turns.append(turn)
    if ours:
        turns.append(_assistant(ours))


def _assistant(parts: list[n.Part]) -> n.Turn:
    texts = [part for part in parts if isinstance(part, n.Text | n.Refusal)]
    plain = len(texts) == 1 and "plain" in texts[0].layout
    return n.Turn(role="assistant", parts=parts, plain=plain)


def _message(taken: Taken, kind: str) -> n.Turn:
    given = taken.need("role", TEXT)
    role = _ROLES.get(given)
    if role is None:
        at = taken.path("role")
        raise BadRequest(
            f"Invalid value: '{given[:64]}'. Supported values are: 'assistant', 'system', 'developer',"
            " and 'user'.",
            at,
        )
    parts, plain = contents(taken, "content", role, answer=False)
    if kind:
        taken.fields["type"] = Raw(b'"message"')
    layout = {"item": item_rest(taken.fields)} if taken.fields else {}
    return n.Turn(role=role, parts=parts, plain=plain, layout=layout)


# ---- tools


def _tools(taken: Taken) -> list[n.Tool | n.NativeTool]:
    given = taken.take("tools", ITEMS)
    if given is None:
        return []
    if len(given) > TOOLS_MAX:
        raise BadRequest(f"'tools' has {len(given)} entries; {TOOLS_MAX} are possible.", "tools")
    return [_tool(raw, f"tools[{index}]") for index, raw in enumerate(given)]


def _tool(raw: Raw, at: str) -> n.Tool | n.NativeTool:
    taken = Taken(raw, at)
    if taken.need("type", TEXT) != "function":
        return n.NativeTool(dialect="responses", raw=raw)
    return n.Tool(
        name=taken.need("name", TEXT),
        description=taken.take("description", TEXT),
        schema=taken.raw("parameters"),
        strict=taken.take("strict", FLAG),
        extra=taken.rest(),
    )


def _choice(taken: Taken) -> n.ToolChoice | None:
    raw = taken.raw("tool_choice")
    if raw is None:
        return None
    if is_text(raw):
        match text_or(raw):
            case "auto" | "none" | "required" as mode:
                return n.ToolChoice(mode=mode)
            case given:
                raise BadRequest(
                    f"Invalid value: '{given[:64]}'. Supported values are: 'none', 'auto', and 'required'.",
                    "tool_choice",
                )
    given_choice = Taken(raw, "tool_choice")
    kind = given_choice.need("type", TEXT)
    if kind == "function":
        name = given_choice.need("name", TEXT)
        return n.ToolChoice(mode="named", names=[name], extra=given_choice.rest())
    if kind == "allowed_tools":
        names = [_function_name(one) for one in given_choice.need("tools", ITEMS)]
        required = given_choice.need("mode", TEXT) == "required"
        if all(names) and names:
            return n.ToolChoice(mode="named" if required and len(names) > 1 else "auto" if not required else "required", names=names)
    # A choice of a hosted tool.
    return n.ToolChoice(mode="required", extra={"native": raw})


def _function_name(raw: Raw) -> str:
    given = object_of(raw)
    return text_or(given.get("name")) if given.keys() == {"type", "name"} else ""
