"""Chat requests in both directions. Source: OpenAI API reference, "Create chat completion"."""

import re
from typing import Final
from urllib.parse import unquote

import msgspec
from msgspec import Raw

from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.neutral import (
    Call,
    DialectName,
    Extra,
    NativeTool,
    OutputFormat,
    Reasoning,
    Request,
    Target,
    Tool,
    ToolChoice,
)
from breakwater_gateway.worker.wire.openai_chat import quirks as q
from breakwater_gateway.worker.wire.openai_chat.fields import (
    FLAG,
    ITEMS,
    NUMBER,
    OBJECT,
    TEXT,
    UNREADABLE,
    WHOLE,
    Taken,
    decode_fields,
    encode,
    is_null,
    is_text,
    is_utf8,
    without_nulls,
)
from breakwater_gateway.worker.wire.openai_chat.messages import RAW, Json, Writer, read_turn

FIELDS_MAX: Final = 256
"""Top-level fields of a body; OpenAI's own API has some forty."""

OWN: Final[frozenset[DialectName]] = frozenset({"openai", "mistral"})
"""Dialects whose extras are this family's."""

_DEPLOYMENT: Final = re.compile(r"/openai/deployments/([^/?]{1,512})/")
_TEXTS: Final = msgspec.json.Decoder(list[str])
_TIERS: Final = frozenset({"auto", "default", "flex", "priority", "scale"})

# ---------------------------------------------------------------- reading


def decode_request(body: bytes, *, path: str = "") -> Request:
    """A caller's body. Azure names the model in `path`. Raises BadRequest."""
    if not is_utf8(body):
        raise BadRequest("The body is not UTF-8.")
    taken = Taken(body)
    if len(taken.fields) > FIELDS_MAX:
        raise BadRequest(
            f"A body may have {FIELDS_MAX} top-level fields, this one has {len(taken.fields)}."
        )
    model = taken.take("model", TEXT) or ""
    if not model:
        named = _DEPLOYMENT.search(path)
        if not named:
            raise BadRequest("Missing required parameter: 'model'.", "model")
        model = unquote(named[1])
    messages = taken.need("messages", ITEMS)
    if not messages:
        raise BadRequest("Invalid 'messages': empty array.", "messages")
    turns = [read_turn(raw, f"messages[{number}]") for number, raw in enumerate(messages)]
    tools: list[Raw] | None = taken.take("tools", ITEMS)
    reasoning = _read_reasoning(taken)
    options = taken.take("stream_options", OBJECT) or {}
    usage_wanted = bytes(options.pop("include_usage", b"")) == b"true"
    format_ = _read_format(taken)
    extra: Extra = {}
    if options := without_nulls(options):
        extra["stream_options"] = Raw(encode(options))
    seed = taken.take("seed", WHOLE)
    named_seed = taken.take("random_seed", WHOLE)
    request = Request(
        dialect="openai",
        model=model,
        turns=turns,
        tools=[_read_tool(raw, f"tools[{number}]") for number, raw in enumerate(tools or ())],
        tool_choice=_read_choice(taken),
        parallel_tools=taken.take("parallel_tool_calls", FLAG),
        max_output=_read_limit(taken),
        temperature=taken.take("temperature", NUMBER),
        top_p=taken.take("top_p", NUMBER),
        top_k=taken.take("top_k", WHOLE),
        stop=_read_stop(taken),
        seed=named_seed if seed is None else seed,
        n=taken.take("n", WHOLE),
        frequency_penalty=taken.take("frequency_penalty", NUMBER),
        presence_penalty=taken.take("presence_penalty", NUMBER),
        logit_bias=taken.raw("logit_bias"),
        logprobs=taken.take("logprobs", FLAG),
        top_logprobs=taken.take("top_logprobs", WHOLE),
        format=format_,
        reasoning=reasoning,
        user=taken.take("user", TEXT) or "",
        service_tier=taken.take("service_tier", TEXT) or "",
        stream=taken.take("stream", FLAG) or False,
        usage_wanted=usage_wanted,
        extra=extra,
    )
    extra.update(taken.rest())
    return request


def _read_limit(taken: Taken) -> int | None:
    old = taken.take("max_tokens", WHOLE)
    new = taken.take("max_completion_tokens", WHOLE)
    if old is not None and new is not None and old != new:
        raise BadRequest(
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
            "max_tokens",
        )
    return old if new is None else new


def _read_stop(taken: Taken) -> list[str]:
    raw = taken.raw("stop")
    if raw is None:
        return []
    try:
        return [TEXT.decode(raw)] if is_text(raw) else _TEXTS.decode(raw)
    except UNREADABLE:
        raise BadRequest(
            "Invalid type for 'stop': expected a string or an array of strings.", "stop"
        ) from None


def _read_tool(raw: Raw, at: str) -> Tool | NativeTool:
    taken = Taken(raw, at)
    kind = taken.take("type", TEXT) or "function"
    if kind != "function" or "function" not in taken.fields:
        return NativeTool(dialect="openai", raw=raw)
    function = Taken(taken.need("function", RAW), taken.path("function"))
    tool = Tool(
        name=function.need("name", TEXT),
        description=function.take("description", TEXT),
        schema=function.raw("parameters"),
        strict=function.take("strict", FLAG),
        extra=taken.rest(),
    )
    rest = function.rest()
    if rest:
        tool.extra["function"] = Raw(encode(rest))
    return tool


def _read_choice(taken: Taken) -> ToolChoice | None:
    raw = taken.raw("tool_choice")
    if raw is None:
        return None
    at = "tool_choice"
    if is_text(raw):
        word = TEXT.decode(raw)
        if word in {"required", "any"}:
            return ToolChoice("required")
        if word == "auto":
            return ToolChoice("auto")
        if word == "none":
            return ToolChoice("none")
        raise BadRequest(f"Invalid value for '{at}': {word[:40]!r}.", at)
    choice = Taken(raw, at)
    kind = choice.take("type", TEXT) or "function"
    if kind == "function" and "function" in choice.fields:
        function = Taken(choice.need("function", RAW), "tool_choice.function")
        return ToolChoice("named", [function.need("name", TEXT)])
    if kind == "allowed_tools" and "allowed_tools" in choice.fields:
        allowed = Taken(choice.need("allowed_tools", RAW), "tool_choice.allowed_tools")
        names: list[str] = []
        for item in allowed.need("tools", ITEMS):
            tool = Taken(item, "tool_choice.allowed_tools.tools")
            if "function" not in tool.fields:
                return ToolChoice("auto", extra={at: raw})
            names.append(Taken(tool.need("function", RAW)).need("name", TEXT))
        mode = allowed.take("mode", TEXT)
        return ToolChoice("required" if mode == "required" else "auto", names)
    # A custom tool, or a hosted one: only this dialect can name it.
    return ToolChoice("auto", extra={at: raw})


def _read_format(taken: Taken) -> OutputFormat | None:
    raw = taken.fields.get("response_format")
    if raw is None or is_null(raw):
        return None
    format_ = Taken(raw, "response_format")
    kind = format_.take("type", TEXT)
    if kind == "text":
        found = OutputFormat("text", extra=format_.rest())
    elif kind == "json_object":
        found = OutputFormat("json", extra=format_.rest())
    elif kind == "json_schema":
        inner = Taken(format_.need("json_schema", RAW), "response_format.json_schema")
        found = OutputFormat(
            "schema",
            schema=inner.raw("schema"),
            name=inner.take("name", TEXT) or "",
            description=inner.take("description", TEXT),
            strict=inner.take("strict", FLAG),
            extra=format_.rest(),
        )
        rest = inner.rest()
        if rest:
            found.extra["json_schema"] = Raw(encode(rest))
    else:
        # A grammar or the like: it stays among the request's extras.
        return None
    del taken.fields["response_format"]
    return found


def _read_reasoning(taken: Taken) -> Reasoning | None:
    """`reasoning_effort`, OpenRouter's `reasoning` object, or `thinking` as Z.ai and DeepSeek have it."""
    effort = taken.take("reasoning_effort", TEXT) or ""
    given = taken.take("reasoning", OBJECT)
    thinking = taken.take("thinking", OBJECT)
    if not effort and given is None and thinking is None:
        return None
    budget: int | None = None
    off = effort == "none"
    show = ""
    extra: Extra = {}
    if given is not None:
        inner = Taken(encode(given), "reasoning")
        enabled = inner.take("enabled", FLAG)
        effort = effort or inner.take("effort", TEXT) or ""
        budget = inner.take("max_tokens", WHOLE)
        show = inner.take("summary", TEXT) or ""
        off = effort == "none" or enabled is False
        said = effort or budget is not None or show or inner.rest()
        if enabled is not None and said:
            inner.fields["enabled"] = given["enabled"]
        if rest := inner.rest():
            extra["reasoning"] = Raw(encode(rest))
    if thinking is not None:
        inner = Taken(encode(thinking), "thinking")
        kind = inner.take("type", TEXT)
        off = off or kind == "disabled"
        tokens = inner.take("budget_tokens", WHOLE)
        budget = tokens if budget is None else budget
        rest = inner.rest()
        if rest or effort or kind not in {"enabled", "disabled"}:
            if kind is not None:
                rest["type"] = thinking["type"]
            extra["thinking"] = Raw(encode(rest))
    return Reasoning(effort=effort, budget=budget, off=off, show=show, extra=extra)


# ---------------------------------------------------------------- writing


def encode_request(request: Request, target: Target, *, now: float = 0) -> Call:
    """The call that asks a host of this family. Facts of the host: see `quirks.of`."""
    del now  # nothing of a chat request depends on the time
    quirks = q.of(target)
    native = request.dialect in OWN
    writer = Writer(quirks, native=native)
    out = _Body(quirks, writer)
    if quirks.azure_path != "deployments":
        out.fields["model"] = target.model
    out.fields["messages"] = writer.turns(request.turns)
    _tools(request, out)
    out.put(quirks.max_tokens_field, request.max_output, known_as="max_tokens")
    out.put("temperature", request.temperature)
    out.put("top_p", request.top_p)
    if request.top_k is not None and not native and not quirks.top_k:
        writer.drop("top_k")
    else:
        out.put("top_k", request.top_k)
    out.put("stop", request.stop or None)
    out.put("seed", request.seed)
    out.put("n", request.n)
    out.put("frequency_penalty", request.frequency_penalty)
    out.put("presence_penalty", request.presence_penalty)
    out.put("logit_bias", request.logit_bias)
    out.put("logprobs", request.logprobs)
    out.put("top_logprobs", request.top_logprobs)
    out.put("response_format", _format(request.format, quirks, writer))
    if request.reasoning is not None:
        _reasoning(request.reasoning, out)
    out.put("user", request.user or None)
    if request.service_tier:
        if native or request.service_tier in _TIERS:
            out.put("service_tier", request.service_tier)
        else:
            writer.drop("service_tier")
    if request.stream:
        out.fields["stream"] = True
        if quirks.stream_options:
            # The gateway always wants to know; who did not ask is not shown it.
            out.fields["stream_options"] = {"include_usage": True}
    _extras(request.extra, out)
    return Call(path=_path(quirks, target), body=encode(out.fields), dropped=writer.dropped)


def _tools(request: Request, out: "_Body") -> None:
    writer, quirks = out.writer, out.quirks
    tools = [item for tool in request.tools if (item := _tool(tool, writer)) is not None]
    out.put("tools", tools or None)
    if tools or (writer.native and not request.tools):
        out.put("tool_choice", _choice(request.tool_choice, quirks, writer))
        out.put("parallel_tool_calls", request.parallel_tools)
    elif request.tool_choice is not None and request.tool_choice.mode in {"required", "named"}:
        # The host refuses a choice among no tools.
        writer.drop("tool_choice")


def _extras(extra: Extra, out: "_Body") -> None:
    for name, raw in extra.items():
        mine = out.fields.get(name)
        if not out.writer.native:
            out.writer.drop(name)
        elif name == "stream_options":
            if isinstance(mine, dict):
                mine.update(decode_fields(raw))
            else:
                out.writer.drop(name)
        elif mine is None:
            out.put(name, raw)


class _Body:
    """Top-level parameters on their way out: renamed, or dropped, as the host has it."""

    __slots__ = ("fields", "quirks", "writer")

    def __init__(self, quirks: q.Quirks, writer: Writer) -> None:
        self.fields: Json = {}
        self.quirks = quirks
        self.writer = writer

    def put(self, name: str, value: object, *, known_as: str = "") -> None:
        if value is None:
            return
        sent = self.quirks.rename.get(name, name)
        if name in self.quirks.drop or (self.quirks.only and sent not in self.quirks.only):
            self.writer.drop(known_as or name)
        else:
            self.fields[sent] = value


def _path(quirks: q.Quirks, target: Target) -> str:
    path = "/chat/completions"
    if quirks.azure_path == "deployments":
        path = f"/openai/deployments/{q.quoted(target.model)}{path}"
    if quirks.api_version:
        path = f"{path}?api-version={q.quoted(quirks.api_version)}"
    return path


def _tool(tool: Tool | NativeTool, writer: Writer) -> object | None:
    if isinstance(tool, NativeTool):
        if tool.dialect in OWN:
            return tool.raw
        writer.drop(f"tools.{tool.dialect}")
        return None
    function: Json = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.schema is not None:
        function["parameters"] = tool.schema
    if tool.strict is not None:
        function["strict"] = tool.strict
    out: Json = {"type": "function", "function": function}
    writer.extras(out, tool.extra, "tools")
    return out


def _choice(choice: ToolChoice | None, quirks: q.Quirks, writer: Writer) -> object | None:
    if choice is None:
        return None
    if choice.extra:
        if writer.native and "tool_choice" in choice.extra:
            return choice.extra["tool_choice"]
        for name in choice.extra:
            writer.drop(f"tool_choice.{name}")
    required = quirks.tool_choice_required
    if choice.mode == "named" and len(choice.names) == 1:
        return {"type": "function", "function": {"name": choice.names[0]}}
    mode = "required" if choice.mode == "named" else choice.mode
    if choice.names and mode != "none":
        if quirks.allowed_tools:
            tools = [{"type": "function", "function": {"name": name}} for name in choice.names]
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}
        writer.drop("tool_choice.names")
    return required if mode == "required" else mode


def _format(format_: OutputFormat | None, quirks: q.Quirks, writer: Writer) -> object | None:
    if format_ is None:
        return None
    out: Json
    if format_.kind == "text":
        out = {"type": "text"}
    elif format_.kind == "json" or (format_.schema is None and not writer.native):
        out = {"type": "json_object"}
    elif not quirks.json_schema:
        writer.drop("response_format.json_schema")
        return {"type": "json_object"}
    else:
        inner: Json = {}
        if format_.name or not writer.native:
            inner["name"] = format_.name or "response"
        if format_.description is not None:
            inner["description"] = format_.description
        if format_.schema is not None:
            inner["schema"] = format_.schema
        if format_.strict is not None:
            inner["strict"] = format_.strict
        out = {"type": "json_schema", "json_schema": inner}
    writer.extras(out, format_.extra, "response_format")
    return out


def _reasoning(asked: Reasoning, out: _Body) -> None:
    style, writer = out.quirks.reasoning, out.writer
    extra = dict(asked.extra) if writer.native else {}
    if not writer.native:
        for name in asked.extra:
            writer.drop(f"reasoning.{name}")
    if style == "none":
        writer.drop("reasoning")
        return
    thinking = extra.pop("thinking", None)
    if style == "object" or (style == "effort" and "reasoning" in extra):
        inner: Json = {}
        if asked.effort:
            inner["effort"] = asked.effort
        if asked.budget is not None:
            inner["max_tokens"] = asked.budget
        if asked.off and not asked.effort:
            inner["enabled"] = False
        if asked.show:
            inner["summary"] = asked.show
        if "reasoning" in extra:
            inner.update(decode_fields(extra.pop("reasoning")))
        out.put("reasoning", inner or {"enabled": True})
        if thinking is not None:
            out.put("thinking", thinking)
        return
    if "reasoning" in extra:
        writer.drop("reasoning.extra")
    if asked.show:
        writer.drop("reasoning.summary")
    if style == "thinking":
        _thinking_switch(asked, out, thinking)
        return
    if thinking is not None:
        out.put("thinking", thinking)
    effort = asked.effort or ("none" if asked.off else "")
    if asked.budget is not None:
        writer.drop("reasoning.budget")
        effort = effort or _effort(asked.budget)
    elif not effort and thinking is None:
        writer.drop("reasoning.enabled")
    out.put("reasoning_effort", effort or None)


def _thinking_switch(asked: Reasoning, out: _Body, thinking: Raw | None) -> None:
    """`thinking: {type: enabled | disabled}`, and an effort beside it."""
    if asked.effort and not (asked.off and not out.writer.native):
        out.put("reasoning_effort", asked.effort)
    if thinking is not None:
        out.put("thinking", thinking)
    elif asked.off:
        if not asked.effort or not out.writer.native:
            out.put("thinking", {"type": "disabled"})
    elif not asked.effort:
        switch: Json = {"type": "enabled"}
        if asked.budget is not None:
            switch["budget_tokens"] = asked.budget
        out.put("thinking", switch)
    elif asked.budget is not None:
        out.writer.drop("reasoning.budget")


def _effort(budget: int) -> str:
    """The nearest word for a number of tokens: a thought of a page, of several, or more."""
    if budget <= 1024:
        return "low"
    return "medium" if budget <= 8192 else "high"
