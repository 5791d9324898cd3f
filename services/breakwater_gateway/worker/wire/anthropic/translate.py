"""The neutral request as a Messages body: of our own callers without loss, of other dialects as near as it goes.

What this API enforces on a conversation, and other dialects do not: system prompts stand apart, user and
assistant alternate, tool results lead the user's message that follows the call, no text is blank, and
`max_tokens` is required. Source: Anthropic API reference, "Create a Message".
"""

import base64
import re
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import quote

import msgspec
from msgspec import Raw

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.anthropic import blocks as b
from breakwater_gateway.worker.wire.anthropic import models
from breakwater_gateway.worker.wire.anthropic.request import SHOWN
from breakwater_gateway.worker.wire.anthropic.schema import closed

PATHS: Final = {"chat": "/messages", "count_tokens": "/messages/count_tokens"}

VERSION: Final = "2023-06-01"
"""The `anthropic-version` of our own requests; a native caller's own header goes before it."""

_HOST_VERSIONS: Final = {"vertex": "vertex-2023-10-16", "bedrock": "bedrock-2023-05-31"}

MAX_OUTPUT_DEFAULT: Final = 4096
"""`max_tokens` where the caller gave none."""

BUDGET_MIN: Final = 1024
"""Least `thinking.budget_tokens`."""

BUDGETS: Final = {
    "minimal": 1024,
    "low": 2048,
    "medium": 8192,
    "high": 16_384,
    "xhigh": 32_768,
    "max": 32_768,
}
"""Thinking tokens that stand for an effort, on models that take a budget only."""

STRICT_TOOLS_MAX: Final = 20
"""Strict tools of one request; Anthropic documentation, "Structured outputs"."""

_Body = dict[str, object]


def encode_request(request: n.Request, target: n.Target, *, now: float = 0) -> n.Call:  # noqa: ARG001 - all dialects take `now`
    """The call to make. Quirks of the target: see `models.model`."""
    dropped = _Dropped()
    native = request.dialect == "anthropic"
    body = _native(request) if native else _foreign(request, models.model(target), target, dropped)
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


class _Dropped:
    """Names of what was asked for and cannot be said, each once, in the order they were met."""

    __slots__ = ("names",)

    def __init__(self) -> None:
        self.names: dict[str, None] = {}

    def add(self, name: str) -> None:
        self.names[name] = None

    def fields(self, extra: n.Extra, where: str = "") -> None:
        for name, value in extra.items():
            if bytes(value) != b.NULL:
                self.names[f"{where}{name}"] = None


# ---------------------------------------------------------------- our own callers


def _native(request: n.Request) -> _Body:
    """The caller's own body again."""
    extra = dict(request.extra)
    body: _Body = {}
    turns = request.turns
    if turns and turns[0].role == "system":
        body["system"] = _native_content(turns[0])
        turns = turns[1:]
    body["messages"] = _native_messages(turns)
    _put(body, "max_tokens", request.max_output)
    if request.tools:
        body["tools"] = [_native_tool(tool) for tool in request.tools]
    choice = request.tool_choice
    if choice is not None:
        written = _choice(choice, request.parallel_tools)
        body["tool_choice"] = written | choice.extra
    _native_output(request, body, extra)
    if request.user or "metadata" in extra:
        metadata: _Body = {"user_id": request.user} if request.user else {}
        body["metadata"] = metadata | b.fields(extra.pop("metadata", Raw(b"{}")))
    if request.stop:
        body["stop_sequences"] = request.stop
    _put(body, "temperature", request.temperature)
    _put(body, "top_p", request.top_p)
    _put(body, "top_k", request.top_k)
    _put(body, "service_tier", request.service_tier or None)
    return body | extra


def _put(body: _Body, name: str, value: object) -> None:
    if value is not None:
        body[name] = value


def _native_messages(turns: Iterable[n.Turn]) -> list[_Body]:
    messages: list[_Body] = []
    results: list[object] | None = None
    """The open user's message that consists of tool results so far."""
    for turn in turns:
        if turn.role == "tool" and results is not None and not turn.extra:
            results.extend(_native_blocks(turn.parts))
            continue
        if turn.role == "user" and results is not None and not turn.plain and not turn.extra:
            results.extend(_native_blocks(turn.parts))
            results = None
            continue
        content = _native_content(turn)
        role = {"tool": "user", "developer": "system"}.get(turn.role, turn.role)
        message: _Body = {"role": role, "content": content}
        results = content if turn.role == "tool" and isinstance(content, list) else None
        messages.append(message | turn.extra)
    return messages


def _native_content(turn: n.Turn) -> str | list[object]:
    if turn.plain and len(turn.parts) == 1 and isinstance(turn.parts[0], n.Text):
        return turn.parts[0].text
    return _native_blocks(turn.parts)


def _native_blocks(parts: Iterable[n.Part]) -> list[object]:
    return [block for part in parts if (block := native_block(part)) is not None]


def native_block(part: n.Part) -> object:
    """The block that `part` was decoded from; None where it is none of this API's."""
    if isinstance(part, n.ToolResult):
        return _native_result(part)
    if isinstance(part, n.Thinking) and not (part.signature or part.redacted):
        # What another provider thought, shown to the caller and echoed: without a signature of its own
        # the API refuses it, and ignores thinking of earlier turns anyway.
        return None
    written = b.block(part)
    if isinstance(written, dict) and part.extra:
        written |= part.extra
    return written


def _native_result(part: n.ToolResult) -> _Body:
    written: _Body = {"type": "tool_result", "tool_use_id": part.call_id}
    if part.plain and len(part.content) == 1 and isinstance(part.content[0], n.Text):
        written["content"] = part.content[0].text
    elif part.content:
        written["content"] = _native_blocks(part.content)
    if part.is_error:
        written["is_error"] = True
    return written | part.extra


def _native_tool(tool: n.Tool | n.NativeTool) -> object:
    if isinstance(tool, n.NativeTool):
        return tool.raw
    written: _Body = {"name": tool.name}
    _put(written, "description", tool.description)
    written["input_schema"] = tool.schema or Raw(b'{"type":"object"}')
    _put(written, "strict", tool.strict)
    return written | tool.extra


_TYPES: Final = {"auto": "auto", "none": "none", "required": "any", "named": "tool"}


def _choice(choice: n.ToolChoice, parallel: bool | None) -> _Body:
    written: _Body = {"type": _TYPES[choice.mode]}
    if choice.mode == "named":
        written["name"] = choice.names[0] if choice.names else ""
    if parallel is not None and choice.mode != "none":
        written["disable_parallel_tool_use"] = not parallel
    return written


def _native_output(request: n.Request, body: _Body, extra: n.Extra) -> None:
    """`thinking`, `output_config` and the beta's `output_format`."""
    config: _Body = dict(b.fields(extra.pop("output_config", Raw(b"{}"))))
    reasoning = request.reasoning
    if reasoning is not None:
        _put(config, "effort", reasoning.effort or None)
        thinking: _Body = {}
        if reasoning.off:
            thinking["type"] = "disabled"
        elif reasoning.budget is not None:
            thinking |= {"type": "enabled", "budget_tokens": reasoning.budget}
        elif reasoning.show or reasoning.extra:
            thinking["type"] = "adaptive"
        if reasoning.show == SHOWN:
            thinking["display"] = SHOWN
        if thinking:
            body["thinking"] = thinking | reasoning.extra
    form = request.format
    if form is not None and form.kind == "schema":
        left = dict(form.extra)
        beta = left.pop("output_format", None) is not None
        written: _Body = {"type": "json_schema", "schema": form.schema or Raw(b"{}")}
        (body if beta else config)["output_format" if beta else "format"] = written | left
    if config:
        body["output_config"] = config


# ---------------------------------------------------------------- callers of other dialects


def _foreign(request: n.Request, model: models.Model, target: n.Target, dropped: _Dropped) -> _Body:
    """The same wishes in this API's words."""
    chat = _Conversation(model, dropped)
    for turn in request.turns:
        chat.add(turn)
    body = chat.body()
    _foreign_tools(request, model, body, dropped)
    _foreign_format(request.format, model, body, dropped)
    forced = isinstance(body.get("tool_choice"), dict) and _forces(request.tool_choice)
    thinks = _foreign_reasoning(
        request, model, body, dropped, forced=forced, echoes=chat.owes_thinking
    )
    if "max_tokens" not in body:
        given = target.quirks.get("max_output_default")
        default = given if isinstance(given, int) else MAX_OUTPUT_DEFAULT
        body["max_tokens"] = request.max_output or default
    _foreign_sampling(request, model, body, dropped, thinks=thinks)
    if request.stop:
        # Sequences of white space alone are refused.
        stop = [sequence for sequence in request.stop if sequence.strip()]
        if stop:
            body["stop_sequences"] = stop
        if len(stop) < len(request.stop):
            dropped.add("stop")
    if request.user:
        body["metadata"] = {"user_id": request.user}
    tier = {"auto": "auto", "default": "standard_only"}.get(request.service_tier)
    _put(body, "service_tier", tier)
    if request.service_tier and tier is None:
        dropped.add("service_tier")
    for name, asked in (
        ("seed", request.seed is not None),
        ("n", request.n is not None and request.n > 1),
        ("frequency_penalty", bool(request.frequency_penalty)),
        ("presence_penalty", bool(request.presence_penalty)),
        ("logit_bias", request.logit_bias is not None and bytes(request.logit_bias) != b"{}"),
        ("logprobs", bool(request.logprobs)),
        ("top_logprobs", bool(request.top_logprobs)),
    ):
        if asked:
            dropped.add(name)
    dropped.fields(request.extra)
    return body


def _forces(choice: n.ToolChoice | None) -> bool:
    return choice is not None and choice.mode in {"required", "named"}


# ---- the conversation


class _Conversation:
    """Turns of any order in; `system` and messages of alternating roles out."""

    def __init__(self, model: models.Model, dropped: _Dropped) -> None:
        self._model = model
        self._dropped = dropped
        self._system: list[_Body] = []
        self._messages: list[tuple[str, list[object]]] = []
        self._results = 0
        """Tool results that lead the last message."""
        self._waiting: list[_Body] = []
        """Text of system turns that may yet stand in their place: after the user, before the assistant."""
        self._ids: dict[str, str] = {}
        self._taken: set[str] = set()
        self.owes_thinking = False
        """The turn under way has called tools; with a budget the API wants its thinking before the calls."""

    def add(self, turn: n.Turn) -> None:
        dropped = self._dropped
        dropped.fields(turn.extra, "messages.")
        if turn.name:
            dropped.add("messages.name")
        if turn.role in {"system", "developer"}:
            self._add_system(turn)
            return
        blocks, results = self._blocks(turn)
        if turn.role == "assistant":
            if self._waiting and self._messages and self._messages[-1][0] == "user":
                self._messages.append(("system", list(self._waiting)))
                self._waiting.clear()
            self.owes_thinking = self.owes_thinking or any(
                isinstance(part, n.ToolCall) for part in turn.parts
            )
            self._say("assistant", blocks)
            return
        self._settle()
        if blocks:
            self.owes_thinking = False
        self._say("user", results, leading=True)
        self._say("user", blocks)

    def _add_system(self, turn: n.Turn) -> None:
        texts = [p for p in turn.parts if isinstance(p, n.Text | n.Refusal) and p.text.strip()]
        for part in turn.parts:
            self._dropped.fields(part.extra, "messages.")
            if not isinstance(part, n.Text | n.Refusal):
                self._dropped.add(f"messages.{_kind(part)}")
        written: list[_Body] = [{"type": "text", "text": part.text} for part in texts]
        if self._messages and self._model.system_turns:
            self._waiting.extend(written)
        else:
            self._system.extend(written)

    def _settle(self) -> None:
        """System text that has no place of its own within the conversation goes to the top."""
        self._system.extend(self._waiting)
        self._waiting.clear()

    def _say(self, role: str, blocks: list[object], *, leading: bool = False) -> None:
        if not blocks:
            return
        if not self._messages or self._messages[-1][0] != role:
            self._messages.append((role, []))
            self._results = 0
        content = self._messages[-1][1]
        if leading:
            content[self._results : self._results] = blocks
            self._results += len(blocks)
        else:
            content.extend(blocks)

    def _blocks(self, turn: n.Turn) -> tuple[list[object], list[object]]:
        """Blocks of what is said, and of tool results."""
        said: list[object] = []
        results: list[object] = []
        for part in turn.parts:
            if isinstance(part, n.ToolResult):
                results.append(self._result(part))
                continue
            written = self._block(part)
            if written is not None:
                said.append(written)
        return said, results

    def _result(self, part: n.ToolResult) -> _Body:
        self._dropped.fields(part.extra, "messages.")
        written: _Body = {"type": "tool_result", "tool_use_id": self._id(part.call_id)}
        blocks = [made for one in part.content if (made := self._block(one)) is not None]
        if len(blocks) == 1 and isinstance(part.content[0], n.Text):
            written["content"] = part.content[0].text
        elif blocks:
            written["content"] = blocks
        if part.is_error:
            written["is_error"] = True
        return written

    def _block(self, part: n.Part) -> object:
        dropped = self._dropped
        dropped.fields(part.extra, "messages.")
        match part:
            case n.Text(text=text) | n.Refusal(text=text):
                # Blank text is refused; it says nothing either.
                return b.block(part) if text.strip() else None
            case n.ToolCall():
                return {
                    "type": "tool_use",
                    "id": self._id(part.id),
                    "name": part.name,
                    "input": b.as_input(part.arguments),
                }
            case n.Image():
                written = _image(part)
                if part.detail not in {"", "auto"}:
                    dropped.add("messages.image.detail")
            case n.Document():
                written = _document(part)
            case _:
                # Thinking of another provider has no signature that Claude would accept.
                written = None
        if written is None:
            dropped.add(f"messages.{_kind(part)}")
        return written

    def _id(self, call_id: str) -> str:
        """The API's ids are of letters, digits, `_` and `-`; others are changed, the same one alike."""
        known = self._ids.get(call_id)
        if known is None:
            known = _NOT_IN_IDS.sub("_", call_id) or "call"
            if known in self._taken:
                known = f"{known}_{len(self._taken)}"
            self._ids[call_id] = known
            self._taken.add(known)
        return known

    def body(self) -> _Body:
        if self._waiting and self._messages and self._messages[-1][0] == "user":
            self._messages.append(("system", list(self._waiting)))
            self._waiting.clear()
        self._settle()
        if not self._messages and self._system:
            # OpenAI answers a system prompt alone; here somebody has to ask.
            self._messages.append(("user", [self._system.pop()]))
        if self._messages and self._messages[0][0] == "assistant":
            self._messages.insert(0, ("user", [{"type": "text", "text": OPENING}]))
        if self._messages and self._messages[-1][0] == "assistant":
            _trim(self._messages[-1][1])
        body: _Body = {}
        if self._system:
            body["system"] = self._system
        body["messages"] = [{"role": role, "content": blocks} for role, blocks in self._messages]
        return body


OPENING: Final = "."
"""What a user says where a conversation begins with the assistant: the API wants the user first."""

_NOT_IN_IDS: Final = re.compile(r"[^a-zA-Z0-9_-]")


def _kind(part: n.Part) -> str:
    return str(type(part).__struct_config__.tag)


def _trim(content: list[object]) -> None:
    """White space at the end of a text to be continued is refused."""
    last = content[-1]
    if isinstance(last, dict) and isinstance(text := last.get("text"), str):
        last["text"] = text.rstrip()


_DATA_URL: Final = re.compile(
    r"data:(?P<type>[^;,]{0,128})(?:;[^,]{0,256})?;base64,", re.IGNORECASE
)


def _from_data_url(url: str) -> tuple[str, str] | None:
    found = _DATA_URL.match(url)
    return (found["type"].lower(), url[found.end() :]) if found else None


def _image(part: n.Image) -> object:
    if part.url:
        inline = _from_data_url(part.url)
        if inline is not None:
            return b.block(n.Image(media_type=inline[0], data=inline[1]))
        return b.block(n.Image(url=part.url))
    # A file of another provider's store is out of reach.
    return b.block(n.Image(media_type=part.media_type, data=part.data)) if part.data else None


def _document(part: n.Document) -> object:
    media_type, data = part.media_type, part.data
    if part.url:
        inline = _from_data_url(part.url)
        if inline is None:
            return b.block(n.Document(url=part.url, name=part.name))
        media_type, data = inline
    if data and (inline := _from_data_url(data)) is not None:
        media_type, data = inline
    if data and media_type in {"", "application/pdf"}:
        return b.block(n.Document(media_type="application/pdf", data=data, name=part.name))
    text = part.text
    if data and media_type.startswith("text/"):
        text = _decoded(data) or ""
    if not text:
        return None
    return b.block(n.Document(media_type="text/plain", text=text, name=part.name))


def _decoded(data: str) -> str | None:
    try:
        return base64.b64decode(data, validate=True).decode()
    except ValueError:
        return None


# ---- tools


def _foreign_tools(request: n.Request, model: models.Model, body: _Body, dropped: _Dropped) -> None:
    choice = request.tool_choice
    # A choice among several is a choice among the tools that are offered at all.
    only = set(choice.names) if choice is not None and len(choice.names) > 1 else None
    strict_left = STRICT_TOOLS_MAX if model.structured else 0
    tools: list[_Body] = []
    for tool in request.tools:
        if isinstance(tool, n.NativeTool):
            dropped.add(f"tools.{_native_kind(tool)}")
            continue
        if only is not None and tool.name not in only:
            continue
        dropped.fields(tool.extra, "tools.")
        strict = bool(tool.strict) and strict_left > 0
        if tool.strict and not strict:
            dropped.add("tools.strict")
        strict_left -= strict
        tools.append(_foreign_tool(tool, strict=strict, dropped=dropped))
    if choice is not None:
        dropped.fields(choice.extra, "tool_choice.")
    if not tools:
        return
    body["tools"] = tools
    if choice is None:
        if request.parallel_tools is False:
            body["tool_choice"] = {"type": "auto", "disable_parallel_tool_use": True}
        return
    mode = "required" if choice.mode == "named" and len(choice.names) != 1 else choice.mode
    # True is the default.
    single = False if request.parallel_tools is False else None
    body["tool_choice"] = _choice(n.ToolChoice(mode=mode, names=choice.names), single)


def _native_kind(tool: n.NativeTool) -> str:
    try:
        return b.string(b.fields(tool.raw), "type", "native")
    except (*b.UNREADABLE, b.NotOfThisShape):
        return "native"


def _foreign_tool(tool: n.Tool, *, strict: bool, dropped: _Dropped) -> _Body:
    written: _Body = {"name": tool.name}
    _put(written, "description", tool.description)
    schema = _of_object(tool.schema)
    if strict:
        schema, loosened = closed(schema)
        for name in loosened:
            dropped.add(f"tools.parameters.{name}")
        written["strict"] = True
    written["input_schema"] = schema
    return written


_EMPTY_OBJECT: Final = Raw(b'{"type":"object","properties":{}}')


def _of_object(schema: Raw | None) -> Raw:
    """`input_schema` must say that it is an object; OpenAI's may leave it out."""
    if schema is None or bytes(schema) in {b.NULL, b"{}"}:
        return _EMPTY_OBJECT
    try:
        given = b.fields(schema)
    except b.UNREADABLE:
        return schema
    if "type" in given:
        return schema
    return Raw(b.encode({"type": Raw(b'"object"')} | given))


# ---- format, reasoning, sampling


def _foreign_format(
    form: n.OutputFormat | None, model: models.Model, body: _Body, dropped: _Dropped
) -> None:
    if form is None or form.kind == "text":
        return
    dropped.fields(form.extra, "response_format.")
    if form.kind == "json" or form.schema is None or not model.structured:
        dropped.add("response_format")
        return
    schema, loosened = closed(form.schema)
    for name in loosened:
        dropped.add(f"response_format.{name}")
    _config(body)["format"] = {"type": "json_schema", "schema": schema}


def _config(body: _Body) -> _Body:
    config = body.setdefault("output_config", {})
    assert isinstance(config, dict)  # noqa: S101 - only this function puts it there
    return config


def _foreign_reasoning(
    request: n.Request,
    model: models.Model,
    body: _Body,
    dropped: _Dropped,
    *,
    forced: bool,
    echoes: bool,
) -> bool:
    """Writes `thinking`, the effort, and the `max_tokens` that has room for them. True: the model thinks."""
    wanted = request.reasoning
    if wanted is None:
        return False
    dropped.fields(wanted.extra, "reasoning.")
    off = wanted.off or wanted.effort == "none" or wanted.budget == 0
    if off:
        if model.always_thinks:
            dropped.add("reasoning")
        elif model.thinking == "adaptive":
            body["thinking"] = {"type": "disabled"}
        return False
    if not wanted.effort and wanted.budget is None and not wanted.show:
        return False
    # A forced tool and thinking exclude each other, and the tool is what the caller builds on. With a
    # budget the calls of a turn under way need the thinking that led to them, which others do not echo.
    by_budget = model.thinking == "budget" or (
        model.thinking == "both" and wanted.budget is not None
    )
    if model.thinking == "none" or forced or (by_budget and echoes):
        dropped.add("reasoning")
        return False
    thinking = (
        _budgeted(wanted, request.max_output, body)
        if by_budget
        else _adaptive(wanted, request.max_output, model, body)
    )
    if thinking is None:
        dropped.add("reasoning")
        return False
    if wanted.show and model.thinking == "adaptive":
        # The others show it unasked.
        thinking["display"] = SHOWN
    body["thinking"] = thinking
    return True


def _budgeted(wanted: n.Reasoning, max_output: int | None, body: _Body) -> _Body | None:
    budget = wanted.budget if wanted.budget is not None and wanted.budget > 0 else None
    if budget is None:
        budget = BUDGETS.get(wanted.effort, BUDGETS["medium"])
    budget = max(BUDGET_MIN, budget)
    if max_output is None:
        body["max_tokens"] = MAX_OUTPUT_DEFAULT + budget
    elif max_output <= BUDGET_MIN:
        return None
    else:
        # The budget is a part of `max_tokens`; a quarter at least is left for the answer.
        budget = max(BUDGET_MIN, min(budget, max_output * 3 // 4))
    return {"type": "enabled", "budget_tokens": budget}


def _adaptive(
    wanted: n.Reasoning, max_output: int | None, model: models.Model, body: _Body
) -> _Body:
    effort = wanted.effort
    if not effort and wanted.budget is not None and wanted.budget > 0:
        # The least effort whose budget covers the one asked for.
        names = ("low", "medium", "high", "xhigh")
        effort = next((name for name in names if BUDGETS[name] >= wanted.budget), "max")
    effort = "low" if effort == "minimal" else effort
    if effort and model.efforts:
        _config(body)["effort"] = _nearest(effort, model.efforts)
    if max_output is None:
        body["max_tokens"] = MAX_OUTPUT_DEFAULT + BUDGETS.get(effort, BUDGETS["medium"])
    return {"type": "adaptive"}


def _nearest(effort: str, efforts: tuple[str, ...]) -> str:
    """The greatest effort that the model has and that is not above the one asked for."""
    if effort not in models.EFFORTS:
        return "medium"
    least = models.EFFORTS.index(effort)
    return next(name for name in reversed(models.EFFORTS[: least + 1]) if name in efforts)


def _foreign_sampling(
    request: n.Request, model: models.Model, body: _Body, dropped: _Dropped, *, thinks: bool
) -> None:
    given: list[tuple[str, float | None, Callable[[float], bool]]] = [
        ("temperature", request.temperature, lambda value: value == 1),
        ("top_p", request.top_p, lambda value: value >= 0.95),
        ("top_k", request.top_k, lambda _: False),
    ]
    for name, value, fits_thinking in given:
        if value is None:
            continue
        if name == "top_p" and value == 1 and model.sampling != "all":
            continue  # the default of other providers, and so no wish
        if name == "temperature" and value == 1 and model.sampling == "none":
            continue
        refused = (
            model.sampling == "none"
            or (thinks and not fits_thinking(value))
            or (name == "top_p" and model.sampling == "one" and "temperature" in body)
        )
        if refused:
            dropped.add(name)
            continue
        if name == "temperature" and value > 1:
            # Others go to 2.
            dropped.add(name)
            body[name] = 1.0
        else:
            body[name] = value
