"""Routes of logical models: what of them only makes sense together, and how they are shown.

A route names other models and deployments, so it is checked against them: what is not there is refused with
the nearest name, and a way of `to` that leads back to where it began with the whole way.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from breakwater_gateway.config import table as keys
from breakwater_gateway.config.kinds import Named
from breakwater_gateway.config.model import Condition, Deployment, Model, Route
from breakwater_gateway.config.problems import Path, Report, shown
from breakwater_gateway.config.sections import Block, Key

_PROPERTY: Final = re.compile(r"property\.(.*)")
_EMPTY: Final = Block({}, {}, 1, 1)


def read_routes(
    block: Block, path: Path, deployments: Sequence[Deployment], report: Report
) -> tuple[Route, ...]:
    """The routes of one model's block. Whether `to` leads anywhere is `check_loops`'s to say."""
    found: list[Route] = []
    everything: int | None = None
    blocks: tuple[Block | None, ...] = block.get(keys.ROUTES) or ()
    for index, each in enumerate(blocks):
        if each is None:
            continue
        here = (*path, index)
        if everything is not None:
            message = f"it is never reached: the route on line {everything} takes every request"
            report.add(here, *each.mark(), message)
        found.append(_route(each, here, deployments, report))
        if found[-1].when == Condition() and not found[-1].region_property:
            everything = everything or each.line
    return tuple(found)


def _route(block: Block, path: Path, deployments: Sequence[Deployment], report: Report) -> Route:
    to, region = block.get(keys.TO) or "", block.get(keys.ONLY_REGION) or ""
    narrows = block.has(keys.ONLY) or block.has(keys.ONLY_REGION)
    if block.has(keys.TO) == narrows:
        message = (
            "expected to, or deployments and region, and not both: what to leave out is said where"
            " the route leads"
            if narrows
            else '"to", "deployments" or "region" is missing'
        )
        report.add(path, *block.mark(), message)
    named = _PROPERTY.fullmatch(region)
    if named and not re.fullmatch(keys.PROPERTY_NAME, named[1]):
        message = f"expected property. and a name of a-z, 0-9 and . _ -, not {shown(region)}"
        report.add((*path, "region"), *block.mark(keys.ONLY_REGION), message)
    only = tuple(dict.fromkeys(id_ for id_ in block.get(keys.ONLY) or () if id_ is not None))
    route = Route(
        when=_condition(block.get(keys.WHEN) or _EMPTY, (*path, "when"), report),
        to=to,
        deployments=only,
        region="" if named else region,
        region_property=named[1] if named else "",
    )
    _check_narrowing(route, block, path, deployments, report)
    return route


def _condition(block: Block, path: Path, report: Report) -> Condition:
    above, below = block.get(keys.TOKENS_ABOVE), block.get(keys.TOKENS_BELOW)
    if above is not None and below is not None and below <= above + 1:
        message = f"no number is above {above} and below {below}"
        report.add((*path, "tokens_below"), *block.mark(keys.TOKENS_BELOW), message)
    properties = block.get(keys.WHEN_PROPERTY) or {}
    return Condition(
        users=block.get(keys.WHEN_USER) or (),
        orgs=block.get(keys.WHEN_ORG) or (),
        features=block.get(keys.WHEN_FEATURE) or (),
        priorities=block.get(keys.WHEN_PRIORITY) or (),
        properties=tuple((name, named.value) for name, named in properties.items()),
        stream=block.get(keys.WHEN_STREAM),
        tokens_above=above,
        tokens_below=below,
    )


def _check_narrowing(
    route: Route, block: Block, path: Path, deployments: Sequence[Deployment], report: Report
) -> None:
    ids = {d.id for d in deployments}
    unknown = [id_ for id_ in route.deployments if id_ not in ids]
    for id_ in unknown:
        close = report.nearest(id_, ids)
        mend = f'; did you mean "{close}"?' if close else f"; it has {_some(ids)}"
        message = f"this model has no deployment {shown(id_)}{mend}"
        report.add((*path, "deployments"), *block.mark(keys.ONLY), message)
    regions = {d.region for d in deployments if d.region}
    if (route.region and route.region not in regions) or (route.region_property and not regions):
        asked = f" {shown(route.region)}" if route.region else ""
        message = f"no deployment of this model has the region{asked}; there are {_some(regions)}"
        report.add((*path, "region"), *block.mark(keys.ONLY_REGION), message)
    elif (
        route.region
        and route.deployments
        and not unknown
        and not any(d.region == route.region for d in deployments if d.id in route.deployments)
    ):
        message = f"none of these deployments has the region {shown(route.region)}"
        report.add((*path, "region"), *block.mark(keys.ONLY_REGION), message)


def check_loops(
    models: Mapping[str, Model], entries: Mapping[str, Named[Block]], report: Report
) -> None:
    """Every `to` names a model of the file, and no way of them leads back to where it has been."""
    done: set[str] = set()
    for name, model in models.items():
        for index, route in enumerate(model.routes):
            if route.to and (route.to not in models or route.to.endswith("*")):
                _refuse_to(name, index, route.to, models, entries, report)
    for name in models:
        way = _loop(name, models, done)
        if way:
            index = next(i for i, r in enumerate(models[way[0]].routes) if r.to == way[1])
            message = f"the routes lead in a circle: {' -> '.join(map(shown, way))}"
            path, at = _place(way[0], index, entries, keys.TO)
            report.add(path, *at, message)


def _loop(start: str, models: Mapping[str, Model], done: set[str]) -> list[str]:
    """The first circle that is met from `start`, its first name again at its end; empty: there is none.

    What was walked stays in `done`. A stack of iterators, since ways may be as long as there are models.
    """
    if start in done:
        return []
    done.add(start)
    way, waiting = [start], [_next(start, models)]
    on_way = {start}
    while waiting:
        if not waiting[-1]:
            waiting.pop()
            on_way.discard(way.pop())
            continue
        name = waiting[-1].pop(0)
        if name in on_way:
            return [*way[way.index(name) :], name]
        if name not in done:
            done.add(name)
            on_way.add(name)
            way.append(name)
            waiting.append(_next(name, models))
    return []


def _next(name: str, models: Mapping[str, Model]) -> list[str]:
    return [route.to for route in models[name].routes if route.to in models]


def _refuse_to(
    name: str,
    index: int,
    to: str,
    models: Mapping[str, Model],
    entries: Mapping[str, Named[Block]],
    report: Report,
) -> None:
    path, at = _place(name, index, entries, keys.TO)
    whole = [each for each in models if not each.endswith("*")]
    close = report.nearest(to, whole)
    mend = f'; did you mean "{close}"?' if close else ""
    what = "a prefix, not one model" if to in models else f"no model {shown(to)}"
    report.add(
        path, *at, f"there is {what}{mend}" if to not in models else f"{shown(to)} is {what}"
    )


def _place(
    name: str, index: int, entries: Mapping[str, Named[Block]], key: Key[str]
) -> tuple[Path, tuple[int, int]]:
    """Where the model's route of that index, of those that could be read, stands in the file."""
    blocks = entries[name].value.get(keys.ROUTES) or ()
    readable = [(i, block) for i, block in enumerate(blocks) if block is not None]
    at, block = readable[index]
    return ("models", name, "routes", at, key.name), block.mark(key)


def _some(names: set[str]) -> str:
    ordered = sorted(names)
    return (", ".join(ordered[:5]) or "none") + (" and more" if len(ordered) > 5 else "")


def plain_route(route: Route) -> dict[str, object]:
    """As the file says it."""
    when = route.when
    conditions: dict[str, object] = {
        "user": list(when.users),
        "org": list(when.orgs),
        "feature": list(when.features),
        "property": {name: list(values) for name, values in when.properties},
        "priority": list(when.priorities),
        "stream": when.stream,
        "tokens_above": when.tokens_above,
        "tokens_below": when.tokens_below,
    }
    region = f"property.{route.region_property}" if route.region_property else route.region
    said: dict[str, object] = {
        "when": {k: v for k, v in conditions.items() if v not in (None, [], {})},
        "to": route.to,
        "deployments": list(route.deployments),
        "region": region,
    }
    return {name: value for name, value in said.items() if value}
