"""Converse requests: recorded bodies to the neutral request, and the neutral request to a call.

What this API enforces on a conversation and other dialects do not: system prompts stand apart, user and
assistant alternate and the user begins, tool results are the user's, no text is blank, a document comes
with a text, and tools that a conversation mentions are declared. Source: Amazon Bedrock API reference,
"Converse" and "ConverseStream"; user guide, "Carry out a conversation with the Converse API operations".
"""

import re
from typing import Final, Literal
from urllib.parse import quote, unquote

import msgspec
from msgspec import Raw

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import objects as o
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.bedrock import blocks as b
from breakwater_gateway.worker.wire.bedrock import models

PATHS: Final = {"chat": "/model/{model}/converse", "stream": "/model/{model}/converse-stream"}
"""`{model}`: the id or the ARN, escaped."""

STREAM_TYPE: Final = "application/vnd.amazon.eventstream"

_PATH: Final = re.compile(r"/model/(?P<model>[^/?]{1,4096})/converse(?P<stream>-stream)?(?:$|\?)")


def decode_request(body: bytes, *, path: str = "") -> n.Request:
    """A body of `POST /model/{id}/converse` or `…/converse-stream`; `path` tells the model. Raises BadRequest."""
    given = o.Fields(body)
    found = _PATH.search(path)
    turns = _system(given)
    messages = given.items("messages") or []
    if len(messages) > o.MESSAGES_MAX:
        raise BadRequest(f"'messages' may have {o.MESSAGES_MAX} items.", "messages")
    turns += [_turn(raw, f"messages[{at}]") for at, raw in enumerate(messages)]
    sampling = given.child("inferenceConfig")
    limits = sampling or o.Fields(b"{}")
    tools, choice = _tools(given)
    tier = _service_tier(given)
    form = _format(given)
    request = n.Request(
        dialect="bedrock",
        model=unquote(found["model"]) if found else "",
        turns=turns,
        tools=tools,
        tool_choice=choice,
        max_output=limits.whole("maxTokens"),
        temperature=limits.number("temperature"),
        top_p=limits.number("topP"),
        stop=(limits.texts("stopSequences") or []) if _is_filled(limits, "stopSequences") else [],
        format=form,
        service_tier=tier,
        stream=bool(found and found["stream"]),
        usage_wanted=True,
        extra={},
    )
    if sampling is not None:
        given.left["inferenceConfig"] = Raw(o.encode(sampling.left))
    return msgspec.structs.replace(request, extra=given.left)


def _is_filled(given: o.Fields, name: str) -> bool:
    """An empty list stays where it is: it must be sent again."""
    return name in given.left and bytes(given.left[name]) != b"[]"


def _system(given: o.Fields) -> list[n.Turn]:
    if not _is_filled(given, "system"):
        return []
    blocks = given.items("system") or []
    return [
        n.Turn(role="system", parts=[b.part(raw, f"system[{at}]") for at, raw in enumerate(blocks)])
    ]


def _turn(raw: Raw, at: str) -> n.Turn:
    given = o.Fields(raw, at)
    role = given.need("role", given.text("role"))
    blocks = given.need("content", given.items("content"))
    path = given.path("content")
    parts = [b.part(block, f"{path}[{index}]") for index, block in enumerate(blocks)]
    as_read: Literal["user", "assistant", "tool"]
    if role == "assistant":
        as_read = "assistant"
    elif role == "user":
        results = bool(parts) and all(isinstance(part, n.ToolResult) for part in parts)
        as_read = "tool" if results else "user"
    else:
        raise BadRequest(f"'{given.path('role')}' is neither 'user' nor 'assistant'.", at)
    return n.Turn(role=as_read, parts=parts, extra=given.left)


def _tools(given: o.Fields) -> tuple[list[n.Tool | n.NativeTool], n.ToolChoice | None]:
    config = given.child("toolConfig")
    if config is None:
        return [], None
    tools: list[n.Tool | n.NativeTool] = []
    if _is_filled(config, "tools"):
        path = config.path("tools")
        tools = [_tool(raw, f"{path}[{at}]") for at, raw in enumerate(config.items("tools") or ())]
    choice = _choice(config)
    given.left["toolConfig"] = Raw(o.encode(config.left))
    return tools, choice


def _tool(raw: Raw, at: str) -> n.Tool | n.NativeTool:
    outer = o.Fields(raw, at)
    if set(outer.left) != {"toolSpec"}:
        return n.NativeTool(dialect="bedrock", raw=raw)
    spec = outer.need("toolSpec", outer.child("toolSpec"))
    name = spec.need("name", spec.text("name"))
    shape = spec.child("inputSchema")
    schema = shape.raw("json") if shape is not None else None
    spec.keep(shape, "inputSchema")
    return n.Tool(
        name=name,
        description=spec.text("description"),
        schema=schema,
        strict=spec.flag("strict"),
        extra=spec.left,
    )


def _choice(config: o.Fields) -> n.ToolChoice | None:
    choice = config.child("toolChoice")
    if choice is None:
        return None
    if set(choice.left) == {"tool"}:
        named = choice.need("tool", choice.child("tool"))
        return n.ToolChoice(mode="named", names=[named.need("name", named.text("name"))])
    modes: dict[str, Literal["auto", "required"]] = {"auto": "auto", "any": "required"}
    (kind, value) = next(iter(choice.left.items()), ("", Raw(b"")))
    if kind in modes and len(choice.left) == 1 and bytes(value) == b"{}":
        return n.ToolChoice(mode=modes[kind])
    config.left["toolChoice"] = Raw(o.encode(choice.left))
    return None


def _service_tier(given: o.Fields) -> str:
    tier = given.child("serviceTier")
    name = tier.text("type") if tier is not None else None
    if tier is not None and (tier.left or not name):
        given.left["serviceTier"] = Raw(o.encode(tier.left | ({"type": name} if name else {})))
        return ""
    return name or ""


def _format(given: o.Fields) -> n.OutputFormat | None:
    """`outputConfig`, where it says no more than a JSON schema; its `schema` is a string of JSON."""
    whole = given.left.get("outputConfig")
    output = given.child("outputConfig")
    wanted = output.child("textFormat") if output is not None else None
    structure = wanted.child("structure") if wanted is not None else None
    shape = structure.child("jsonSchema") if structure is not None else None
    if output is None or wanted is None or structure is None or shape is None:
        if whole is not None:
            given.left["outputConfig"] = whole
        return None
    text = shape.text("schema")
    known = (wanted.text("type") or "") == "json_schema" and text is not None and _is_object(text)
    name, description = shape.text("name"), shape.text("description")
    if not known or output.left or wanted.left or structure.left or whole is None:
        if whole is not None:
            given.left["outputConfig"] = whole
        return None
    return n.OutputFormat(
        kind="schema",
        schema=Raw((text or "").encode()),
        name=name or "",
        description=description,
        extra=shape.left,
    )


def _is_object(text: str) -> bool:
    try:
        o.fields_of(text.encode())
    except o.UNREADABLE:
        return False
    return True


# ---------------------------------------------------------------- to a call


def encode_request(request: n.Request, target: n.Target, *, now: float = 0) -> n.Call:  # noqa: ARG001 - all dialects take `now`
    """The call to make, not yet signed (see `sigv4`). Quirks of the target: see `models.family`."""
    dropped = o.Dropped()
    if request.dialect == "bedrock":
        body = _native(request)
    else:
        body = _Foreign(request, models.family(target), dropped).body()
    path = PATHS["stream" if request.stream else "chat"]
    return n.Call(
        path=path.format(model=quote(target.model, safe="")),
        body=o.encode(body),
        headers=(("accept", STREAM_TYPE),) if request.stream else (),
        dropped=dropped.names,
    )


def _native(request: n.Request) -> o.Body:
    """The body that was decoded, again."""
    left = dict(request.extra)
    body: o.Body = {}
    system = [turn for turn in request.turns if turn.role in {"system", "developer"}]
    if system:
        body["system"] = [made for turn in system for made in _blocks(turn.parts)]
    body["messages"] = [
        {
            "role": "assistant" if turn.role == "assistant" else "user",
            "content": _blocks(turn.parts),
        }
        | turn.extra
        for turn in request.turns
        if turn.role not in {"system", "developer"}
    ]
    o.merged(body, "inferenceConfig", _sampling(request), left)
    config: o.Body = {}
    if request.tools:
        config["tools"] = [_native_tool(tool) for tool in request.tools]
    if request.tool_choice is not None:
        config["toolChoice"] = _written_choice(request.tool_choice)
    o.merged(body, "toolConfig", config, left)
    if request.format is not None:
        body["outputConfig"] = _written_format(request.format)
    if request.service_tier:
        body["serviceTier"] = {"type": request.service_tier}
    return body | left


def _blocks(parts: list[n.Part]) -> list[object]:
    return [made for part in parts if (made := b.block(part)) is not None]


def _sampling(request: n.Request) -> o.Body:
    written: o.Body = {}
    o.put(written, "maxTokens", request.max_output)
    o.put(written, "temperature", request.temperature)
    o.put(written, "topP", request.top_p)
    if request.stop:
        written["stopSequences"] = request.stop
    return written


def _native_tool(tool: n.Tool | n.NativeTool) -> object:
    if isinstance(tool, n.NativeTool):
        return tool.raw
    spec: o.Body = {"name": tool.name}
    if tool.description is not None:
        spec["description"] = tool.description
    if tool.schema is not None:
        spec["inputSchema"] = {"json": tool.schema}
    o.put(spec, "strict", tool.strict)
    return {"toolSpec": spec | tool.extra}


def _written_choice(choice: n.ToolChoice) -> o.Body:
    if choice.mode == "named" and len(choice.names) == 1:
        return {"tool": {"name": choice.names[0]}}
    return {"auto": {}} if choice.mode == "auto" else {"any": {}}


def _written_format(form: n.OutputFormat) -> o.Body:
    shape: o.Body = {"schema": bytes(form.schema or b"{}").decode("utf-8", "replace")}
    o.put(shape, "name", form.name)
    if form.description is not None:
        shape["description"] = form.description
    return {"textFormat": {"type": "json_schema", "structure": {"jsonSchema": shape | form.extra}}}


_TIERS: Final = frozenset({"default", "priority", "flex", "reserved"})

_EMPTY_SCHEMA: Final = Raw(b'{"type":"object","properties":{}}')

_TEXT_FOR_DOCUMENTS: Final = "."
"""The text that a message with a document must have, where the caller sent none."""


class _Foreign:
    """Another dialect's request as a Converse body."""

    def __init__(self, request: n.Request, family: models.Family, dropped: o.Dropped) -> None:
        self._request = request
        self._family = family
        self._dropped = dropped
        self._system: list[object] = []
        self._messages: list[tuple[str, list[object]]] = []
        self._documents: set[str] = set()
        self._called: dict[str, None] = {}

    def body(self) -> o.Body:
        request, dropped = self._request, self._dropped
        for turn in request.turns:
            self._add(turn)
        body: o.Body = {"messages": self._written()}
        if self._system:
            body["system"] = self._system
        native: o.Body = {}
        thinks = False
        if request.reasoning is not None:
            native = models.thinking(request.reasoning, self._family, request.max_output, dropped)
            thinks = "thinking" in native
            dropped.fields(request.reasoning.extra, "reasoning.")
        self._sample(body, native, thinks=thinks)
        if native:
            body["additionalModelRequestFields"] = native
        self._declare_tools(body, thinks=thinks)
        self._shape(body)
        if request.service_tier in _TIERS:
            body["serviceTier"] = {"type": request.service_tier}
        elif request.service_tier != "auto":
            dropped.given(service_tier=request.service_tier)
        dropped.given(
            seed=request.seed,
            n=request.n if request.n != 1 else None,
            frequency_penalty=request.frequency_penalty or None,
            presence_penalty=request.presence_penalty or None,
            logit_bias=request.logit_bias,
            logprobs=request.logprobs,
            top_logprobs=request.top_logprobs,
            user=request.user,
            parallel_tool_calls=request.parallel_tools is False,
        )
        dropped.fields(request.extra)
        return body

    def _sample(self, body: o.Body, native: o.Body, *, thinks: bool) -> None:
        request, dropped = self._request, self._dropped
        written = _sampling(request)
        stop = [text for text in request.stop if text.strip()]
        if len(stop) < len(request.stop):
            dropped.add("stop")
        if stop:
            written["stopSequences"] = stop
        else:
            written.pop("stopSequences", None)
        if request.temperature is not None and request.temperature > 1:
            # Others go to 2.
            dropped.add("temperature")
            written["temperature"] = 1.0
        if thinks:
            # Claude refuses these while it thinks.
            if written.get("temperature", 1) != 1:
                dropped.add("temperature")
                del written["temperature"]
            if request.top_p is not None and request.top_p < 0.95:
                dropped.add("top_p")
                del written["topP"]
        if written:
            body["inferenceConfig"] = written
        if request.top_k is None:
            return
        if not self._family.top_k or thinks:
            dropped.add("top_k")
        elif len(self._family.top_k) == 1:
            native[self._family.top_k[0]] = request.top_k
        else:
            native[self._family.top_k[0]] = {self._family.top_k[1]: request.top_k}

    def _shape(self, body: o.Body) -> None:
        form = self._request.format
        if form is None or form.kind == "text":
            return
        self._dropped.fields(form.extra, "response_format.")
        if form.schema is None:
            self._dropped.add("response_format")
            return
        body["outputConfig"] = _written_format(msgspec.structs.replace(form, extra={}))

    # -- tools

    def _declare_tools(self, body: o.Body, *, thinks: bool) -> None:
        dropped = self._dropped
        choice = self._request.tool_choice
        tools: list[object] = []
        declared: set[str] = set()
        unwanted = choice is not None and choice.mode == "none"
        for tool in self._request.tools:
            if isinstance(tool, n.NativeTool):
                if tool.dialect == "bedrock":
                    tools.append(tool.raw)
                else:
                    dropped.add(f"tools.{o.native_kind(tool.raw)}")
                continue
            dropped.fields(tool.extra, "tools.")
            if unwanted and tool.name not in self._called:
                continue
            declared.add(tool.name)
            tools.append(_foreign_tool(tool))
        # A conversation that has called tools is refused without their declarations.
        tools += [_foreign_tool(n.Tool(name=name)) for name in self._called if name not in declared]
        if not tools:
            return
        config: o.Body = {"tools": tools}
        if unwanted:
            if self._called:
                dropped.add("tool_choice")
        elif choice is not None:
            dropped.fields(choice.extra, "tool_choice.")
            if choice.mode == "named" and len(choice.names) > 1:
                dropped.add("tool_choice")
            if thinks and choice.mode != "auto":
                # Claude cannot be made to call a tool while it thinks.
                dropped.add("tool_choice")
            else:
                config["toolChoice"] = _written_choice(choice)
        body["toolConfig"] = config

    # -- turns

    def _add(self, turn: n.Turn) -> None:
        self._dropped.fields(turn.extra, "messages.")
        if turn.name:
            self._dropped.add("messages.name")
        if turn.role in {"system", "developer"}:
            for part in turn.parts:
                self._dropped.fields(part.extra, "messages.")
                if not isinstance(part, n.Text | n.Refusal):
                    self._dropped.add(f"messages.{o.kind(part)}")
                elif part.text.strip():
                    self._system.append({"text": part.text})
            return
        role = "assistant" if turn.role == "assistant" else "user"
        blocks = [made for part in turn.parts if (made := self._block(part)) is not None]
        if not blocks:
            return
        if not self._messages or self._messages[-1][0] != role:
            self._messages.append((role, []))
        content = self._messages[-1][1]
        if turn.role == "tool":
            # Claude wants results first; they may follow a word of the user in other dialects.
            at = sum(1 for one in content if isinstance(one, dict) and "toolResult" in one)
            content[at:at] = blocks
        else:
            content.extend(blocks)

    def _written(self) -> list[o.Body]:
        for role, content in self._messages:
            kinds = {next(iter(one)) for one in content if isinstance(one, dict)}
            if role == "user" and "document" in kinds and "text" not in kinds:
                content.append({"text": _TEXT_FOR_DOCUMENTS})
        return [{"role": role, "content": content} for role, content in self._messages]

    def _block(self, part: n.Part) -> o.Body | Raw | None:
        self._dropped.fields(part.extra, "messages.")
        bare: n.Part = msgspec.structs.replace(part, extra={}) if part.extra else part
        match bare:
            case n.Text(text=text) | n.Refusal(text=text):
                return {"text": text} if text.strip() else None
            case n.ToolCall():
                self._called[bare.name] = None
                bare = msgspec.structs.replace(bare, id=b.tool_use_id(bare.id))
                if bare.signature:
                    self._dropped.add("messages.tool_call.signature")
            case n.ToolResult():
                return self._result(bare)
            case n.Thinking():
                # Only Claude has proofs that it accepts again; other models want no thinking back.
                if self._family.name != "anthropic" or not (bare.signature or bare.redacted):
                    self._dropped.add("messages.thinking")
                    return None
            case n.Image() if bare.detail not in {"", "auto"}:
                self._dropped.add("messages.image.detail")
            case n.Document():
                named = b.document_name(bare.name or "document", self._documents)
                bare = msgspec.structs.replace(bare, name=named)
            case _:
                pass
        written = b.block(bare)
        if written is None:
            self._dropped.add(f"messages.{o.kind(part)}")
        return written

    def _result(self, part: n.ToolResult) -> o.Body:
        content: list[object] = []
        for one in part.content:
            made = None if isinstance(one, n.ToolResult | n.ToolCall) else self._block(one)
            if made is not None:
                content.append(made)
            elif isinstance(one, n.ToolResult | n.ToolCall):
                self._dropped.add(f"messages.{o.kind(one)}")
        written: o.Body = {
            "toolUseId": b.tool_use_id(part.call_id),
            # A result of nothing is a result too, and blank text is refused.
            "content": content or [{"text": "(empty)"}],
        }
        if part.is_error:
            written["status"] = "error"
        return {"toolResult": written}


def _foreign_tool(tool: n.Tool) -> object:
    return _native_tool(
        msgspec.structs.replace(
            tool,
            description=tool.description or None,
            schema=tool.schema or _EMPTY_SCHEMA,
            strict=tool.strict or None,
            extra={},
        )
    )
