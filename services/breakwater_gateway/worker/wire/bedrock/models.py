"""What Converse does not unify: how each family of models is asked to think, and for top-k.

Both go into `additionalModelRequestFields`, each model's own. Sources: Amazon Bedrock user guide, "Inference
request parameters and response fields" of each family; Amazon Nova user guide, "Using extended
thinking"; recorded traffic.
"""

import re
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import objects as o

BUDGET_MIN: Final = 1024
"""Least thinking budget of Claude."""

BUDGETS: Final = {
    "minimal": 1024,
    "low": 2048,
    "medium": 8192,
    "high": 16_384,
    "xhigh": 32_768,
    "max": 32_768,
}
"""Thinking tokens that stand for an effort, on models that take a budget only."""

_EFFORTS: Final = {
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}

# The first Claude that decides for itself how much to think is 4.6.
_ADAPTIVE: Final = re.compile(
    r"anthropic\.claude-(?:opus|sonnet|haiku|[a-z]+)-(?:4-(?:[6-9]|[1-9][0-9])(?![0-9])|(?:[5-9]|[1-9][0-9])(?![0-9]))"
)
_BUDGETED: Final = re.compile(
    r"anthropic\.claude-(?:3-7-|(?:opus|sonnet|haiku)-4(?:-[0-5])?(?![0-9]{1,3}(?:-|$)))"
)


class Family(Struct, frozen=True):
    """`thinks`: how thinking is asked for; empty where it cannot be. `top_k`: the field's path."""

    name: str = ""
    thinks: str = ""
    top_k: tuple[str, ...] = ()


FAMILIES: Final = ("anthropic", "nova", "openai", "qwen", "mistral", "cohere")


def family(target: n.Target) -> Family:
    """By the model's id. An application profile's ARN hides it: the quirks `family` (one of `FAMILIES`) and
    `thinks` (`adaptive`, `budget`, `nova`, `effort`, `config` or empty) say it then."""
    model = target.model.lower()
    named = str(target.quirks.get("family", "")) or _family(model)
    thinks = str(target.quirks.get("thinks", _thinks(named, model)))
    top_k = {
        "anthropic": ("top_k",),
        "nova": ("inferenceConfig", "topK"),
        "mistral": ("top_k",),
        "cohere": ("k",),
    }.get(named, ())
    return Family(named, thinks, top_k)


def _family(model: str) -> str:
    if "amazon.nova" in model:
        return "nova"
    return next((name for name in FAMILIES if f"{name}." in model), "")


def _thinks(named: str, model: str) -> str:
    if named == "anthropic":
        if _ADAPTIVE.search(model):
            return "adaptive"
        return "budget" if _BUDGETED.search(model) else ""
    if named == "nova":
        return "nova" if "nova-2" in model else ""
    if named == "openai":
        return "effort" if "gpt-oss" in model else ""
    return "config" if "qwen3" in model else ""


def thinking(wanted: n.Reasoning, of: Family, max_output: int | None, dropped: o.Dropped) -> o.Body:
    """The model's own fields for `wanted`; what it cannot do is named in `dropped`."""
    off = wanted.off or wanted.effort == "none"
    if off:
        if of.thinks in {"effort", "config"}:
            # These think whatever one says, least at the lowest effort.
            dropped.add("reasoning")
        return {}
    make = _THINKING.get(of.thinks)
    if make is None:
        dropped.add("reasoning")
        return {}
    return make(wanted, max_output, dropped)


def _adaptive(wanted: n.Reasoning, _: int | None, __: o.Dropped) -> o.Body:
    fields: o.Body = {"thinking": {"type": "adaptive"}}
    effort = _effort(wanted, default="")
    if effort:
        fields["output_config"] = {"effort": effort}
    return fields


def _budget(wanted: n.Reasoning, max_output: int | None, dropped: o.Dropped) -> o.Body:
    budget = wanted.budget
    if budget is None or budget < 0:
        budget = BUDGETS.get(wanted.effort or "medium", BUDGETS["medium"])
    if max_output is not None:
        # The budget is a part of the output, and must be less.
        budget = min(budget, max_output - 1)
        if budget < BUDGET_MIN:
            dropped.add("reasoning")
            return {}
    return {"thinking": {"type": "enabled", "budget_tokens": max(BUDGET_MIN, budget)}}


def _nova(wanted: n.Reasoning, _: int | None, __: o.Dropped) -> o.Body:
    effort = _effort(wanted, default="medium")
    return {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": effort}}


def _level(wanted: n.Reasoning, _: int | None, __: o.Dropped) -> o.Body:
    return {"reasoning_effort": _effort(wanted, default="medium")}


def _config(wanted: n.Reasoning, _: int | None, __: o.Dropped) -> o.Body:
    return {"reasoning_config": _effort(wanted, default="medium")}


_THINKING: Final[dict[str, Callable[[n.Reasoning, int | None, o.Dropped], o.Body]]] = {
    "adaptive": _adaptive,
    "budget": _budget,
    "nova": _nova,
    "effort": _level,
    "config": _config,
}


def _effort(wanted: n.Reasoning, *, default: str) -> str:
    """`low`, `medium` or `high`: the least whose budget covers the one asked for."""
    if wanted.effort:
        return _EFFORTS.get(wanted.effort, default or "medium")
    if wanted.budget is None or wanted.budget < 0:
        return default
    return next((name for name in ("low", "medium") if BUDGETS[name] >= wanted.budget), "high")
