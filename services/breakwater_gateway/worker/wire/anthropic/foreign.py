"""What callers of other dialects wish, in this API's words, as near as it goes.

Sources: Anthropic documentation, "Extended thinking", "Adaptive thinking", "Structured outputs".
"""

from collections.abc import Callable
from typing import Final

from msgspec import Raw

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.anthropic import blocks as b
from breakwater_gateway.worker.wire.anthropic import models
from breakwater_gateway.worker.wire.anthropic.conversation import Conversation, Dropped, cached
from breakwater_gateway.worker.wire.anthropic.native import Body, put, written_choice
from breakwater_gateway.worker.wire.anthropic.request import SHOWN
from breakwater_gateway.worker.wire.anthropic.schema import closed

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


def foreign_body(
    request: n.Request, model: models.Model, target: n.Target, dropped: Dropped
) -> Body:
    """The same wishes in this API's words."""
    chat = Conversation(model, dropped)
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
    put(body, "service_tier", tier)
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


# ---- tools


def _foreign_tools(request: n.Request, model: models.Model, body: Body, dropped: Dropped) -> None:
    choice = request.tool_choice
    # A choice among several is a choice among the tools that are offered at all.
    only = set(choice.names) if choice is not None and len(choice.names) > 1 else None
    strict_left = STRICT_TOOLS_MAX if model.structured else 0
    tools: list[Body] = []
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
    body["tool_choice"] = written_choice(n.ToolChoice(mode=mode, names=choice.names), single)


def _native_kind(tool: n.NativeTool) -> str:
    try:
        return b.string(b.fields(tool.raw), "type", "native")
    except (*b.UNREADABLE, b.NotOfThisShape):
        return "native"


def _foreign_tool(tool: n.Tool, *, strict: bool, dropped: Dropped) -> Body:
    written: Body = {"name": tool.name}
    put(written, "description", tool.description)
    schema = _of_object(tool.schema)
    if strict:
        schema, loosened = closed(schema)
        for name in loosened:
            dropped.add(f"tools.parameters.{name}")
        written["strict"] = True
    written["input_schema"] = schema
    cached(written, tool.extra)
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
    form: n.OutputFormat | None, model: models.Model, body: Body, dropped: Dropped
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


def _config(body: Body) -> Body:
    config = body.setdefault("output_config", {})
    assert isinstance(config, dict)  # noqa: S101 - only this function puts it there
    return config


def _foreign_reasoning(
    request: n.Request,
    model: models.Model,
    body: Body,
    dropped: Dropped,
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


def _budgeted(wanted: n.Reasoning, max_output: int | None, body: Body) -> Body | None:
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


def _adaptive(wanted: n.Reasoning, max_output: int | None, model: models.Model, body: Body) -> Body:
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
    request: n.Request, model: models.Model, body: Body, dropped: Dropped, *, thinks: bool
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
