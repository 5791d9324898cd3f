"""Routing: which logical model answers a request, and which of its deployments can.

The model's routes come first, then what the request needs. What comes out is a model again, with fewer
deployments, kept for the next request like it: strategies and breakers need not know why. A model without
routes, limits and capabilities, with a strategy that looks at no request, costs one look-up.

Needs that are estimates or can be left out never fail a request: when no deployment fits, those are kept
that come nearest. What a deployment is declared not to do is refused before it is sent.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from msgspec import Struct, structs

from breakwater_gateway.config.model import (
    Capability,
    Condition,
    Config,
    Deployment,
    Model,
    Route,
)
from breakwater_gateway.router.needs import capabilities, input_tokens, output_tokens
from breakwater_gateway.router.options import Options
from breakwater_gateway.router.strategies import Ask, Dropped, Reason
from breakwater_protocol import failures as f
from breakwater_protocol import headers as h
from breakwater_protocol.chat import Asked
from breakwater_protocol.measures import UsageBoard

KEPT_MAX: Final = 4_096
"""Narrowed models; by route, region, needs and sizes there are rarely more than a few."""
EXPECTED_OUTPUT: Final = 256
"""Tokens of an answer whose like has not been seen."""
_WEIGHED: Final = frozenset({"latency", "cost"})
"""Strategies that look at the request."""
_LACKS: Final[Mapping[Capability, Reason]] = {
    "vision": Reason.no_vision,
    "audio": Reason.no_audio,
    "tools": Reason.no_tools,
    "json": Reason.no_json,
}
_WORDS: Final[Mapping[Capability, str]] = {
    "vision": "pictures",
    "audio": "sound",
    "tools": "tools",
    "json": "structured output",
}
_PARAMETERS: Final[Mapping[Capability, str]] = {"tools": "tools", "json": "response_format"}
"""Whoever drops the parameter does not do it."""


class Routed(Struct, frozen=True):
    model: Model
    """The one that answers, with the deployments that can."""
    ask: Ask
    way: tuple[str, ...] = ()
    """The routes that were taken: `main.routes[0] -> cheap`."""
    dropped: tuple[Dropped, ...] = ()
    """Deployments of the model that answers which were left out."""


class _Known(Struct, frozen=True):
    """What a model asks to be looked at."""

    model: Model
    plain: bool
    windows: tuple[int, ...]
    """Distinct context windows, ascending."""
    outputs: tuple[int, ...]
    capable: bool
    sized: bool
    """Input has to be estimated."""


class _Narrowed(NamedTuple):
    model: Model
    dropped: tuple[Dropped, ...]


class Routing:
    """Of one configuration; `usage` says how long answers usually are."""

    def __init__(self, config: Config, usage: UsageBoard) -> None:
        self._config = config
        self._usage = usage
        self._known: dict[str, _Known] = {}
        self._narrowed: dict[tuple[object, ...], _Narrowed | f.InvalidRequest] = {}

    def route(
        self, model: Model, *, options: Options, stream: bool, asked: Asked, body: bytes
    ) -> Routed | f.InvalidRequest | None:
        """Where the request goes; None: to `model` as it is."""
        known = self._of(model)
        if known.plain:
            return None
        tokens = -1
        way: list[str] = []
        place: tuple[object, ...] = ()
        taken: Route | None = None
        while known.model.routes:
            taken = None
            for index, each in enumerate(known.model.routes):
                if tokens < 0 and _is_sized(each.when):
                    tokens = input_tokens(body)
                if _holds(each, options, stream=stream, tokens=tokens):
                    taken = each
                    way.append(f"{known.model.name}.routes[{index}]")
                    break
            if taken is None or not taken.to:
                break
            way[-1] += f" -> {taken.to}"
            known = self._of(self._config.models[taken.to])
        model = known.model
        if taken is not None and not taken.to:
            region = taken.region
            if taken.region_property:
                region = options.properties.get(taken.region_property, "")
            place = (way[-1], region)
        if known.sized and tokens < 0:
            tokens = input_tokens(body)
        limit = output_tokens(asked, body) if known.sized else None
        ask = Ask(asked.model, model.name, stream, max(tokens, 0), self._output(asked, limit))
        need = _Need(
            place=place,
            route=taken,
            capabilities=capabilities(body) if known.capable else frozenset(),
            input_tokens=ask.input_tokens,
            output_tokens=limit or 0,
        )
        found = self._narrow(known, need)
        if isinstance(found, f.InvalidRequest):
            return found
        return Routed(found.model, ask, tuple(way), found.dropped)

    def fit(self, model: Model, *, asked: Asked, body: bytes) -> Model:
        """A model that a request came to on another way than by its routes: the deployments that can answer.

        All of them where none can: whoever sent it here has nothing better.
        """
        known = self._of(model)
        if not (known.capable or known.sized):
            return model
        need = _Need(
            place=(),
            route=None,
            capabilities=capabilities(body) if known.capable else frozenset(),
            input_tokens=input_tokens(body) if known.sized else 0,
            output_tokens=(output_tokens(asked, body) or 0) if known.sized else 0,
        )
        found = self._narrow(known, need)
        return model if isinstance(found, f.InvalidRequest) else found.model

    def _of(self, model: Model) -> _Known:
        known = self._known.get(model.name)
        if known is None or known.model is not model:
            known = self._known[model.name] = _known(model)
        return known

    def _output(self, asked: Asked, limit: int | None) -> int:
        if limit == 0:
            return 0
        mean = self._usage.mean_output(asked.model)
        expected = EXPECTED_OUTPUT if mean is None else round(mean)
        return expected if limit is None else min(expected, limit)

    def _narrow(self, known: _Known, need: "_Need") -> _Narrowed | f.InvalidRequest:
        # All sizes between two limits have the same answer.
        total = need.input_tokens + need.output_tokens
        key = (
            known.model.name,
            need.place,
            need.capabilities,
            bisect_left(known.windows, total),
            bisect_left(known.outputs, need.output_tokens),
        )
        found = self._narrowed.get(key)
        if found is None:
            found = narrow(known.model, need)
            if not isinstance(found, f.InvalidRequest) or need.route is None:
                if len(self._narrowed) >= KEPT_MAX:
                    self._narrowed.clear()
                self._narrowed[key] = found
        return found


class _Need(NamedTuple):
    place: tuple[object, ...]
    """Where the route stands, and the region that it comes to."""
    route: Route | None
    capabilities: frozenset[Capability]
    input_tokens: int
    output_tokens: int

    @property
    def region(self) -> str:
        return str(self.place[1]) if self.place else ""


def _known(model: Model) -> _Known:
    deployments = model.deployments
    windows = sorted({d.context_window for d in deployments if d.context_window is not None})
    outputs = sorted({d.max_output for d in deployments if d.max_output is not None})
    capable = any(d.capabilities is not None or _implied(d) for d in deployments)
    sized = bool(windows or outputs) or model.strategy == "cost"
    return _Known(
        model=model,
        plain=not (model.routes or sized or capable or model.strategy in _WEIGHED),
        windows=tuple(windows),
        outputs=tuple(outputs),
        capable=capable,
        sized=sized,
    )


def _is_sized(when: Condition) -> bool:
    return when.tokens_above is not None or when.tokens_below is not None


def _holds(route: Route, options: Options, *, stream: bool, tokens: int) -> bool:
    when = route.when
    if route.region_property and not options.properties.get(route.region_property):
        return False
    return (
        (not when.users or options.user in when.users)
        and (not when.orgs or options.org in when.orgs)
        and (not when.features or options.feature in when.features)
        and (not when.priorities or options.priority in when.priorities)
        and (when.stream is None or when.stream == stream)
        and (when.tokens_above is None or tokens > when.tokens_above)
        and (when.tokens_below is None or tokens < when.tokens_below)
        and all(options.properties.get(name) in values for name, values in when.properties)
    )


def narrow(model: Model, need: _Need) -> _Narrowed | f.InvalidRequest:
    """The model with the deployments that can answer, and why each other one cannot."""
    left = list(model.deployments)
    dropped: list[Dropped] = []
    route = need.route

    def without(lacking: Sequence[tuple[Deployment, Reason]]) -> None:
        gone = {d.id for d, _ in lacking}
        left[:] = [d for d in left if d.id not in gone]
        dropped.extend(Dropped(d, reason) for d, reason in lacking)

    if route is not None and not route.to:
        if route.deployments:
            without([(d, Reason.route) for d in left if d.id not in route.deployments])
        if need.region:
            without([(d, Reason.region) for d in left if d.region != need.region])
        if not left:
            return f.InvalidRequest(
                f"no deployment of {model.name} that this request may use is in the region"
                f" {need.region[:80]!r}",
                param=h.PROPERTY_PREFIX + route.region_property if route.region_property else None,
            )
    for capability in sorted(need.capabilities):
        lacking = [
            (d, _LACKS[capability])
            for d in left
            if d.capabilities is not None and capability not in d.capabilities
        ]
        if len(lacking) == len(left):
            return f.InvalidRequest(
                f"no deployment of {model.name} that this request may use takes"
                f" {_WORDS[capability]}: leave them out, or ask another model"
            )
        without(lacking)
        lacking = [
            (d, _LACKS[capability])
            for d in left
            if d.capabilities is None and capability in _implied(d)
        ]
        if len(lacking) < len(left):
            without(lacking)
    total = need.input_tokens + need.output_tokens
    without(_short([(d, d.max_output) for d in left], need.output_tokens, Reason.max_output))
    without(_short([(d, d.context_window) for d in left], total, Reason.context_window))
    if not dropped:
        return _Narrowed(model, ())
    return _Narrowed(structs.replace(model, deployments=tuple(left), routes=()), tuple(dropped))


def _short(
    limits: Sequence[tuple[Deployment, int | None]], need: int, reason: Reason
) -> list[tuple[Deployment, Reason]]:
    """Those whose limit is too small; where all are, those with less than the largest limit."""
    short = [(d, limit) for d, limit in limits if limit is not None and limit < need]
    if len(short) == len(limits):
        most = max((limit for _, limit in short), default=0)
        short = [(d, limit) for d, limit in short if limit < most]
    return [(d, reason) for d, _ in short]


def _implied(deployment: Deployment) -> set[Capability]:
    """What the facts of its host say that it does not take."""
    quirks = dict(deployment.quirks)
    drop, only = quirks.get("drop"), quirks.get("only")
    found: set[Capability] = set()
    for capability, parameter in _PARAMETERS.items():
        if isinstance(drop, tuple) and parameter in drop:
            found.add(capability)
        if isinstance(only, tuple) and parameter not in only:
            found.add(capability)
    return found
