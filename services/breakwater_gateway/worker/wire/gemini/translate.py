"""The neutral request as a generateContent body: of our own callers without loss, of other dialects as near as it goes.

What this API wants of a conversation and others do not: system prompts stand apart, all results of one
turn's calls come together and carry the function's name, and newer models want the signature of each call.
Source: Gemini API reference, "Generating content"; documentation, "Function calling", "Thinking", "OpenAI
compatibility".

Quirks of a target: `vertex` (bool: Vertex's paths and `:predict` embeddings), `openapi_schema` (bool: the
host knows `parameters` and `responseSchema` only), `call_ids` (False: the host refuses ids on calls),
`thinking` (`level`, `budget` or `none`, where the model's name does not tell).
"""

import re
from typing import Final
from urllib.parse import quote

import msgspec
from msgspec import Raw

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.gemini import parts as p
from breakwater_gateway.worker.wire.gemini.fields import Body, Dropped, encode
from breakwater_gateway.worker.wire.gemini.schema import openapi

STOP_MAX: Final = 5
"""Most `stopSequences`."""

BUDGETS: Final = {
    "minimal": 1024,
    "low": 1024,
    "medium": 8192,
    "high": 24_576,
    "xhigh": 24_576,
    "max": 24_576,
}
"""Thinking tokens that stand for an effort. Source: Gemini API documentation, "OpenAI compatibility"."""

PRO_BUDGET_MIN: Final = 128
"""The least that 2.5 Pro, which cannot stop thinking, takes."""


def encode_request(request: n.Request, target: n.Target, *, now: float = 0) -> n.Call:  # noqa: ARG001 - all dialects take `now`
    """The call to make. Streams are asked for as server-sent events."""
    dropped = Dropped()
    body = chat_body(request, target, dropped)
    verb = "streamGenerateContent?alt=sse" if request.stream else "generateContent"
    return n.Call(path=model_path(target, verb), body=encode(body), dropped=tuple(dropped.names))


def model_path(target: n.Target, verb: str) -> str:
    model = target.model
    if not model.startswith(("models/", "tunedModels/", "publishers/", "projects/", "endpoints/")):
        model = ("publishers/google/models/" if target.quirks.get("vertex") else "models/") + model
    return f"/{quote(model, safe='/@:-._')}:{verb}"


def chat_body(request: n.Request, target: n.Target, dropped: Dropped) -> Body:
    if request.dialect == "gemini":
        return _native(request, dropped)
    return _Foreign(request, target, dropped).body()


# ---------------------------------------------------------------- our own callers


def _native(request: n.Request, dropped: Dropped) -> Body:
    """The caller's own body again."""
    body: Body = {}
    contents: list[Body] = []
    for turn in request.turns:
        written: Body = {"parts": _native_parts(turn, dropped)}
        if turn.role == "system" and "systemInstruction" not in body and not contents:
            body["systemInstruction"] = written | turn.extra | turn.layout
            continue
        written["role"] = _NATIVE_ROLES[turn.role]
        contents.append(written | turn.extra)
    body["contents"] = contents
    functions = [_native_tool(tool) for tool in request.tools if isinstance(tool, n.Tool)]
    _put_tools(body, functions, request.tools, dropped)
    config = _sampling(request)
    form = request.format
    if form is not None:
        config |= _native_format(form)
    if request.reasoning is not None:
        config["thinkingConfig"] = _native_thinking(request.reasoning)
    tool_config: Body = {}
    if request.tool_choice is not None:
        tool_config["functionCallingConfig"] = _choice(request.tool_choice) | (
            request.tool_choice.extra
        )
    if request.service_tier:
        body["serviceTier"] = request.service_tier
    for name, raw in (request.extra | request.layout).items():
        head, dot, field = name.partition(".")
        if dot and head == "generationConfig":
            config[field] = raw
        elif dot and head == "toolConfig":
            tool_config[field] = raw
        else:
            body[name] = raw
    if config:
        body["generationConfig"] = config
    if tool_config:
        body["toolConfig"] = tool_config
    return body


_NATIVE_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "model",
    "tool": "user",
}


def _native_parts(turn: n.Turn, dropped: Dropped) -> list[object]:
    found = (p.encode_part(part, dropped, native=True) for part in turn.parts)
    return [written for written in found if written is not None]


def _native_tool(tool: n.Tool) -> Body:
    written: Body = {"name": tool.name}
    if tool.description is not None:
        written["description"] = tool.description
    if tool.source_schema is not None:
        written["parameters"] = tool.source_schema
    elif tool.schema is not None:
        written["parametersJsonSchema"] = tool.schema
    return written | tool.extra


def _native_format(form: n.OutputFormat) -> Body:
    if form.kind == "text":
        return {"responseMimeType": "text/plain"}
    written: Body = {"responseMimeType": "application/json"}
    if form.source_schema is not None:
        written["responseSchema"] = form.source_schema
    elif form.schema is not None:
        written["responseJsonSchema"] = form.schema
    written |= form.extra
    if form.extra and bytes(form.extra.get("responseMimeType", b"")) == b"null":
        del written["responseMimeType"]
    return written


def _native_thinking(reasoning: n.Reasoning) -> Body:
    written: Body = {}
    if reasoning.effort:
        written["thinkingLevel"] = reasoning.effort.upper()
    if reasoning.budget is not None:
        written["thinkingBudget"] = reasoning.budget
    if reasoning.show:
        written["includeThoughts"] = True
    return written | reasoning.extra


# ---------------------------------------------------------------- what both share


def _sampling(request: n.Request) -> Body:
    given: list[tuple[str, object]] = [
        ("maxOutputTokens", request.max_output),
        ("temperature", request.temperature),
        ("topP", request.top_p),
        ("topK", request.top_k),
        ("stopSequences", request.stop or None),
        ("seed", request.seed),
        ("candidateCount", request.n),
        ("frequencyPenalty", request.frequency_penalty),
        ("presencePenalty", request.presence_penalty),
        ("responseLogprobs", request.logprobs),
        ("logprobs", request.top_logprobs),
    ]
    return {name: value for name, value in given if value is not None}


def _put_tools(
    body: Body, functions: list[Body], tools: list[n.Tool | n.NativeTool], dropped: Dropped
) -> None:
    """All functions in one entry: some hosts refuse more entries unless all are hosted searches."""
    written: list[object] = []
    if functions:
        written.append({"functionDeclarations": functions})
    for tool in tools:
        if isinstance(tool, n.NativeTool):
            if tool.dialect == "gemini":
                written.append(tool.raw)
            else:
                dropped.add("tools")
    if written:
        body["tools"] = written


_MODES: Final = {"auto": "AUTO", "none": "NONE", "required": "ANY", "named": "ANY"}


def _choice(choice: n.ToolChoice) -> Body:
    written: Body = {"mode": _MODES[choice.mode]}
    if choice.names:
        written["allowedFunctionNames"] = choice.names
    return written


# ---------------------------------------------------------------- callers of other dialects

_GENERATION: Final = re.compile(r"gemini-(?P<major>[0-9]{1,3})(?:[.-]|$)")
_TIERS: Final = {
    "default": "standard",
    "standard": "standard",
    "flex": "flex",
    "priority": "priority",
}


class _Foreign:
    """The wishes of a caller of another dialect in this API's words."""

    def __init__(self, request: n.Request, target: n.Target, dropped: Dropped) -> None:
        self._request = request
        self._target = target
        self._dropped = dropped
        found = _GENERATION.search(target.model)
        self._old = found is not None and int(found["major"]) < 3
        self._openapi = bool(target.quirks.get("openapi_schema"))
        self._ids = target.quirks.get("call_ids") is not False
        self._names: dict[str, str] = {}

    def body(self) -> Body:
        request = self._request
        body: Body = {}
        self._turns(body)
        functions = [self._tool(tool) for tool in request.tools if isinstance(tool, n.Tool)]
        _put_tools(body, functions, request.tools, self._dropped)
        config = self._config(has_functions=bool(functions))
        if config:
            body["generationConfig"] = config
        if request.tool_choice is not None and functions:
            body["toolConfig"] = {"functionCallingConfig": self._tool_choice(request.tool_choice)}
        tier = _TIERS.get(request.service_tier)
        if tier is not None and request.service_tier not in {"default", "standard"}:
            body["serviceTier"] = tier
        self._report(tier)
        return body

    def _report(self, tier: str | None) -> None:
        request, dropped = self._request, self._dropped
        bias = request.logit_bias
        for name, asked in (
            ("parallel_tool_calls", request.parallel_tools is False and bool(request.tools)),
            ("logit_bias", bias is not None and bytes(bias) not in {b"{}", b"null"}),
            ("user", bool(request.user)),
            ("service_tier", tier is None and request.service_tier not in {"", "auto"}),
        ):
            if asked:
                dropped.add(name)
        dropped.native(request.extra)

    # ---- turns

    def _turns(self, body: Body) -> None:
        system: list[object] = []
        contents: list[tuple[str, list[object]]] = []
        before: n.Role | None = None
        for turn in self._request.turns:
            self._dropped.native(turn.extra, "messages.")
            if turn.name:
                self._dropped.add("messages.name")
            written = self._parts(turn)
            if turn.role in {"system", "developer"}:
                system.extend(written)
                continue
            role = "model" if turn.role == "assistant" else "user"
            # All results of one turn's calls are wanted in one content; so are two turns of one speaker.
            if contents and contents[-1][0] == role and before == turn.role:
                contents[-1][1].extend(written)
            elif written:
                contents.append((role, written))
            before = turn.role
        if not contents and system:
            # Nobody but the system speaks, and `contents` must not be empty.
            contents.append(("user", system))
            system = []
        if system:
            body["systemInstruction"] = {"parts": system}
        body["contents"] = [{"role": role, "parts": found} for role, found in contents]

    def _parts(self, turn: n.Turn) -> list[object]:
        found: list[object] = []
        signed = False
        for part in turn.parts:
            match part:
                case n.Text(text="") | n.Refusal(text=""):
                    # An empty text is refused.
                    continue
                case n.Thinking():
                    # Another provider's thoughts are none of this model's, and it reads none back.
                    self._dropped.add("messages.content.thinking")
                case n.ToolCall():
                    found.append(self._call(part, first=not signed))
                    signed = True
                case n.ToolResult():
                    found.extend(self._result(part))
                case _:
                    written = p.encode_part(part, self._dropped, native=False)
                    if written is not None:
                        found.append(written)
        return found

    def _call(self, call: n.ToolCall, *, first: bool) -> Body:
        self._names[call.id] = call.name
        self._dropped.native(call.extra, "messages.tool_calls.")
        if not call.signature and first and not self._old:
            # Calls that another model made, or whose signature the caller did not keep.
            call = msgspec.structs.replace(call, signature=p.SKIP_SIGNATURE)
        if not self._ids:
            call = msgspec.structs.replace(call, id="")
        return p.encode_call(call)

    def _result(self, result: n.ToolResult) -> list[object]:
        """Media stand in the response where the model reads them there, else beside it."""
        name = result.name or self._names.get(result.call_id) or "tool"
        self._dropped.native(result.extra, "messages.content.")
        beside: list[object] = []
        if self._old:
            texts = [part for part in result.content if isinstance(part, n.Text | n.Refusal)]
            for part in result.content:
                if not isinstance(part, n.Text | n.Refusal):
                    written = p.encode_part(part, self._dropped, native=False)
                    if written is not None:
                        beside.append(written)
            result = msgspec.structs.replace(result, content=texts)
        if not self._ids:
            result = msgspec.structs.replace(result, call_id="")
        return [p.encode_result(result, self._dropped, name=name, native=False), *beside]

    # ---- tools

    def _tool(self, tool: n.Tool) -> Body:
        self._dropped.native(tool.extra, "tools.")
        if tool.strict:
            self._dropped.add("tools.strict")
        written: Body = {"name": tool.name}
        if tool.description:
            written["description"] = tool.description
        if tool.schema is None:
            return written
        if not self._openapi:
            written["parametersJsonSchema"] = tool.schema
            return written
        schema = self._subset(tool.schema, "tools.parameters.")
        if "properties" in p.keys(schema):
            # An object without properties is refused: such a function takes no parameters.
            written["parameters"] = schema
        return written

    def _subset(self, schema: Raw, where: str) -> Raw:
        written, lost = openapi(schema)
        for name in lost:
            self._dropped.add(where + name)
        return written

    def _tool_choice(self, choice: n.ToolChoice) -> Body:
        self._dropped.native(choice.extra, "tool_choice.")
        written = _choice(choice)
        if choice.mode == "auto" and choice.names:
            # Names are taken with ANY and VALIDATED only; the latter leaves the model its choice.
            written["mode"] = "VALIDATED"
        elif choice.mode == "none":
            written.pop("allowedFunctionNames", None)
        return written

    # ---- generationConfig

    def _config(self, *, has_functions: bool) -> Body:
        request, dropped = self._request, self._dropped
        config = _sampling(request)
        if request.n == 1:
            del config["candidateCount"]
        if not request.logprobs:
            config.pop("responseLogprobs", None)
            config.pop("logprobs", None)
        if len(request.stop) > STOP_MAX:
            dropped.add("stop")
            config["stopSequences"] = request.stop[:STOP_MAX]
        if request.seed is not None and not -(2**31) <= request.seed < 2**31:
            # 32 bits here; the caller wants the same answer for the same seed, which the low bits give.
            config["seed"] = request.seed & 0x7FFFFFFF
        for penalty in ("frequencyPenalty", "presencePenalty"):
            if not config.get(penalty):
                config.pop(penalty, None)
        form = request.format
        if form is not None and form.kind != "text":
            if has_functions and self._old:
                # "Function calling with a response mime type: 'application/json' is unsupported".
                dropped.add("response_format")
            else:
                config |= self._format(form)
        if request.reasoning is not None:
            thinking = self._thinking(request.reasoning)
            if thinking:
                config["thinkingConfig"] = thinking
        return config

    def _format(self, form: n.OutputFormat) -> Body:
        self._dropped.native(form.extra, "response_format.")
        written: Body = {"responseMimeType": "application/json"}
        if form.schema is None:
            return written
        if self._openapi:
            written["responseSchema"] = self._subset(form.schema, "response_format.schema.")
        else:
            written["responseJsonSchema"] = form.schema
        return written

    def _thinking(self, reasoning: n.Reasoning) -> Body:
        self._dropped.native(reasoning.extra, "reasoning.")
        model = self._target.model
        way = self._target.quirks.get("thinking")
        if way not in {"level", "budget", "none"}:
            way = "budget" if self._old else "none" if "gemma" in model else "level"
        if way == "none" or (way == "budget" and model.startswith(("gemini-1", "gemini-2.0"))):
            if reasoning.effort or reasoning.budget:
                self._dropped.add("reasoning")
            return {}
        off = reasoning.off or reasoning.effort == "none" or reasoning.budget == 0
        written: Body = {}
        if way == "budget":
            pro = "-pro" in model
            if off:
                written["thinkingBudget"] = PRO_BUDGET_MIN if pro else 0
            elif reasoning.budget is not None:
                written["thinkingBudget"] = reasoning.budget
            elif reasoning.effort in BUDGETS:
                written["thinkingBudget"] = BUDGETS[reasoning.effort]
        elif off:
            written["thinkingLevel"] = _least(model)
        elif reasoning.effort in BUDGETS:
            level = "high" if reasoning.effort in {"xhigh", "max"} else reasoning.effort
            written["thinkingLevel"] = _least(model) if level == "minimal" else level.upper()
        elif reasoning.budget is not None:
            # Taken by newer models too, never beside a level.
            written["thinkingBudget"] = reasoning.budget
        if off and written != {"thinkingBudget": 0}:
            self._dropped.add("reasoning.off")
        if not off and reasoning.show not in {"", "none", "omitted"}:
            written["includeThoughts"] = True
        return written


def _least(model: str) -> str:
    """The least thinking of a model that takes levels: only the lighter ones know `minimal`."""
    return "LOW" if "-pro" in model else "MINIMAL"
