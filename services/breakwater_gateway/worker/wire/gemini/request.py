"""What callers ask: a generateContent body, of the Gemini API or of Vertex, to the neutral request.

Both spellings of every field are taken. Fields of `generationConfig` and `toolConfig` that have no neutral
word go to `Request.extra` under their dotted path (`generationConfig.speechConfig`).
Source: Gemini API reference, "Generating content"; Vertex AI reference, "GenerateContent".
"""

from collections import deque
from typing import Final, Literal
from urllib.parse import unquote

from msgspec import Raw, Struct

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.gemini import fields as g
from breakwater_gateway.worker.wire.gemini import parts as p
from breakwater_gateway.worker.wire.gemini.schema import json_schema

CONTENTS_MAX: Final = 100_000

Verb = Literal[
    "generateContent",
    "streamGenerateContent",
    "countTokens",
    "embedContent",
    "batchEmbedContents",
    "predict",
]

_VERBS: Final[dict[str, Verb]] = {
    "generateContent": "generateContent",
    "streamGenerateContent": "streamGenerateContent",
    "countTokens": "countTokens",
    "embedContent": "embedContent",
    "batchEmbedContents": "batchEmbedContents",
    "predict": "predict",
}


class Method(Struct, frozen=True):
    """What a URL asks for. `sse`: of a stream, server-sent events; else one JSON array."""

    model: str
    verb: Verb
    sse: bool = False


def method(path: str) -> Method | None:
    """The method of a path such as `/v1beta/models/M:generateContent?alt=sse`; None where it names none.

    Vertex's longer paths are understood too. A model's name may hold slashes and colons of its own.
    """
    path, _, query = path.partition("?")
    name, colon, verb_name = path.rpartition(":")
    verb = _VERBS.get(verb_name)
    if not colon or verb is None:
        return None
    for collection in ("/models/", "/endpoints/", "/tunedModels/"):
        _, found, model = name.partition(collection)
        if found:
            break
    else:
        return None
    sse = verb == "streamGenerateContent" and "alt=sse" in query.split("&")
    model = unquote(model)
    return Method(model=model, verb=verb, sse=sse) if model else None


def decode_request(body: bytes, *, path: str = "") -> n.Request:
    """A body of `:generateContent` or `:streamGenerateContent`; of `:countTokens` its chat part.

    Model and method come from `path`; without one from the fields `model` and `stream` of the body, which
    the API does not read. Raises BadRequest.
    """
    try:
        if not body.isascii():
            body.decode()
    except UnicodeDecodeError:
        raise BadRequest("Invalid JSON payload received: not valid UTF-8.") from None
    given = g.Taken(body)
    asked = method(path)
    model, streamed = _named(given)
    nested = given.sub("generateContentRequest")
    if nested is not None:
        given = nested
        model = model or _named(given)[0]
    if asked is not None:
        model, streamed = asked.model, asked.verb == "streamGenerateContent"
    if not model:
        raise BadRequest("The model is missing: it is named in the URL.", "model")
    turns = _turns(given)
    config = given.sub("generationConfig") or g.Taken(b"{}", "generationConfig")
    tool_config = given.sub("toolConfig") or g.Taken(b"{}", "toolConfig")
    layout: n.Layout = {}
    if bytes(config.given.get("responseModalities", Raw(b""))) in _TEXT_ONLY:
        # The default, which many clients spell out.
        layout["generationConfig.responseModalities"] = config.given.pop("responseModalities")
    return n.Request(
        dialect="gemini",
        model=model,
        turns=turns,
        tools=_tools(given),
        tool_choice=_tool_choice(tool_config),
        max_output=config.take("maxOutputTokens", g.WHOLE),
        temperature=config.take("temperature", g.NUMBER),
        top_p=config.take("topP", g.NUMBER),
        top_k=_whole(config, "topK"),
        stop=config.take("stopSequences", g.TEXTS) or [],
        seed=_whole(config, "seed"),
        n=config.take("candidateCount", g.WHOLE),
        frequency_penalty=config.take("frequencyPenalty", g.NUMBER),
        presence_penalty=config.take("presencePenalty", g.NUMBER),
        logprobs=config.take("responseLogprobs", g.FLAG),
        top_logprobs=config.take("logprobs", g.WHOLE),
        format=_format(config),
        reasoning=_reasoning(config.sub("thinkingConfig")),
        service_tier=given.take("serviceTier", g.TEXT) or "",
        stream=streamed,
        usage_wanted=streamed,
        extra=_rest(given, config, tool_config),
        layout=layout,
    )


_TEXT_ONLY: Final = (b'["TEXT"]', b'["text"]')


def _named(given: g.Taken) -> tuple[str, bool]:
    model = (given.take("model", g.TEXT) or "").removeprefix("models/")
    return model, given.take("stream", g.FLAG) or False


def _whole(given: g.Taken, name: str) -> int | None:
    """Whole, though typed as a float: `topK` is `40.0` in many clients."""
    number = given.take(name, g.NUMBER)
    if number is None:
        return None
    try:
        whole = int(number)
    except (ValueError, OverflowError):
        whole = None
    if whole is None or whole != number:
        g.refuse(given.path(name), "an integer")
    return whole


def _rest(given: g.Taken, *nested: g.Taken) -> n.Extra:
    extra = given.given
    for sub in nested:
        for name, raw in sub.given.items():
            extra[f"{sub.at}.{name}"] = raw
    return extra


# ---------------------------------------------------------------- turns


def _turns(given: g.Taken) -> list[n.Turn]:
    turns: list[n.Turn] = []
    calls = _Calls()
    system = given.sub("systemInstruction")
    if system is not None:
        found = _parts(system, calls, 0)
        # Its role means nothing: the field says what it is.
        role = system.given.pop("role", None)
        turns.append(
            n.Turn(
                role="system",
                parts=found,
                plain=_is_plain(found),
                extra=system.given,
                layout={} if role is None else {"role": role},
            )
        )
    contents = given.items("contents")
    if len(contents) > CONTENTS_MAX:
        raise BadRequest(f"contents: at most {CONTENTS_MAX} turns.", "contents")
    turns.extend(_turn(raw, at, calls) for at, raw in enumerate(contents))
    return turns


_ROLES: Final[dict[str, n.Role]] = {
    "": "user",
    "user": "user",
    "model": "assistant",
    "function": "tool",
}


def _turn(raw: Raw, at: int, calls: "_Calls") -> n.Turn:
    content = g.Taken(raw, f"contents[{at}]")
    told = content.take("role", g.TEXT) or ""
    role = _ROLES.get(told)
    if role is None:
        raise BadRequest("Please use a valid role: user, model.", content.path("role"))
    found = _parts(content, calls, at)
    if role == "user" and found and all(isinstance(item, n.ToolResult) for item in found):
        role = "tool"
    elif told == "function":
        content.given["role"] = Raw(b'"function"')
    return n.Turn(role=role, parts=found, plain=_is_plain(found), extra=content.given)


def _is_plain(found: list[n.Part]) -> bool:
    return len(found) == 1 and isinstance(found[0], n.Text) and not found[0].extra


def _parts(content: g.Taken, calls: "_Calls", turn: int) -> list[n.Part]:
    found: list[n.Part] = []
    for at, raw in enumerate(content.items("parts")):
        where = f"{content.path('parts')}[{at}]"
        given = g.Taken(raw, where).given
        try:
            if "functionResponse" in given:
                result, named = p.tool_result(given)
                found.append(calls.answered(result, named=named, turn=turn, at=at))
                continue
            item = p.part(given, p.mint("", turn, at, "call"))
        except p.NotAPart as wrong:
            g.refuse(f"{where}.{wrong.where}", wrong.expected)
        if isinstance(item, n.ToolCall):
            calls.made(item)
        found.append(item)
    return found


class _Calls:
    """Matches responses with calls: by id, else the oldest open call of the same name."""

    __slots__ = ("_open", "_waiting")

    def __init__(self) -> None:
        self._open: set[str] = set()
        self._waiting: dict[str, deque[str]] = {}

    def made(self, call: n.ToolCall) -> None:
        self._open.add(call.id)
        self._waiting.setdefault(call.name, deque()).append(call.id)

    def answered(self, result: n.ToolResult, *, named: bool, turn: int, at: int) -> n.ToolResult:
        if named and result.call_id in self._open:
            self._open.discard(result.call_id)
            return result
        waiting = self._waiting.get(result.name)
        while waiting and waiting[0] not in self._open:
            waiting.popleft()
        extra = result.extra
        if not waiting or (named and not p.minted(waiting[0])):
            # Answers no call that we know of: it keeps its own id.
            call_id = result.call_id or p.mint("", turn, at, "result")
        else:
            call_id = waiting.popleft()
            self._open.discard(call_id)
            if named:
                own = g.encode({"id": result.call_id})
                held = {**g.fields(extra.get("functionResponse", Raw(b"{}"))), **g.fields(own)}
                extra = {**extra, "functionResponse": Raw(g.encode(held))}
        return n.ToolResult(
            call_id=call_id,
            name=result.name,
            content=result.content,
            is_error=result.is_error,
            plain=result.plain,
            extra=extra,
        )


# ---------------------------------------------------------------- tools


def _tools(given: g.Taken) -> list[n.Tool | n.NativeTool]:
    tools: list[n.Tool | n.NativeTool] = []
    for at, raw in enumerate(given.items("tools")):
        entry = g.Taken(raw, f"tools[{at}]")
        for index, function in enumerate(entry.items("functionDeclarations")):
            where = f"{entry.path('functionDeclarations')}[{index}]"
            tools.append(_tool(g.Taken(function, where)))
        tools.extend(
            n.NativeTool(dialect="gemini", raw=Raw(g.encode({name: hosted})))
            for name, hosted in entry.given.items()
        )
    return tools


def _tool(given: g.Taken) -> n.Tool:
    name = given.take("name", g.TEXT)
    if not name:
        g.refuse(given.path("name"), "a function's name")
    source = given.given.pop("parameters", None)
    schema = given.given.pop("parametersJsonSchema", None)
    if schema is None and source is not None:
        schema = json_schema(source)
    return n.Tool(
        name=name,
        description=given.take("description", g.TEXT),
        schema=schema,
        source_schema=source,
        extra=given.given,
    )


_MODES: Final[dict[str, Literal["auto", "none", "required", "named"]]] = {
    "AUTO": "auto",
    "NONE": "none",
    "ANY": "required",
    "1": "auto",
    "2": "required",
    "3": "none",
}


def _tool_choice(given: g.Taken) -> n.ToolChoice | None:
    config = given.sub("functionCallingConfig")
    if config is None:
        return None
    raw = config.given.pop("mode", None)
    told = "" if raw is None else bytes(raw).decode("utf-8", "replace").strip('"').upper()
    mode = _MODES.get(told)
    if mode is None and raw is not None:
        # VALIDATED, and modes that are not known yet: nearest to letting the model choose.
        config.given["mode"] = raw
    names = config.take("allowedFunctionNames", g.TEXTS) or []
    if mode == "required" and names:
        mode = "named"
    if mode is None and raw is None and not names and not config.given:
        return None
    return n.ToolChoice(mode=mode or "auto", names=names, extra=config.given)


# ---------------------------------------------------------------- format and thinking

_JSON: Final = "application/json"


def _format(config: g.Taken) -> n.OutputFormat | None:
    kind = config.take("responseMimeType", g.TEXT)
    source = config.given.pop("responseSchema", None)
    schema = config.given.pop("responseJsonSchema", None)
    extra: n.Extra = {}
    if schema is None and source is not None:
        schema = json_schema(source)
    if schema is not None:
        if kind != _JSON:
            extra["responseMimeType"] = Raw(g.encode(kind))
        return n.OutputFormat(kind="schema", schema=schema, source_schema=source, extra=extra)
    if kind == _JSON:
        return n.OutputFormat(kind="json")
    if kind == "text/plain":
        return n.OutputFormat(kind="text")
    if kind:
        config.given["responseMimeType"] = Raw(g.encode(kind))
    return None


_LEVELS: Final = frozenset({"minimal", "low", "medium", "high", "xhigh"})


def _reasoning(given: g.Taken | None) -> n.Reasoning | None:
    """A budget of 0 switches thinking off; -1 leaves it to the model, which is to say nothing."""
    if given is None:
        return None
    budget = _whole(given, "thinkingBudget")
    extra = given.given
    if budget is not None and budget < 0:
        extra["thinkingBudget"] = Raw(g.encode(budget))
        budget = None
    level = extra.get("thinkingLevel")
    effort = g.text_or(level).lower()
    if effort in _LEVELS:
        del extra["thinkingLevel"]
    else:
        effort = ""
    shown = given.take("includeThoughts", g.FLAG)
    if budget is None and not effort and not shown and not extra:
        return None
    return n.Reasoning(
        effort=effort,
        budget=budget,
        off=budget == 0,
        show="auto" if shown else "",
        extra=extra,
    )
