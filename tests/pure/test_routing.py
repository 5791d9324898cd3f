"""Which model and which of its deployments a request goes to: routes, needs, and what never fails."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.config.load import load_text
from breakwater_gateway.config.model import Config
from breakwater_gateway.router.options import Options
from breakwater_gateway.router.requests import decode_request
from breakwater_gateway.router.routing import EXPECTED_OUTPUT, Routed, Routing
from breakwater_gateway.router.strategies import Ask
from breakwater_protocol import failures as f
from breakwater_protocol.chat import ChatRequest, Usage
from breakwater_protocol.events import AttemptFinished
from breakwater_protocol.measures import UsageBoard

TEXT = """
models:
  plain:
    deployments: [{model: openai/gpt-4o, id: p}]
  main:
    deployments:
      - {model: openai/gpt-4o, id: us, region: us}
      - {model: openai/gpt-4o, id: eu, region: eu}
      - {model: openai/gpt-4o, id: any}
    routes:
      - {when: {property: {tier: [free, trial]}}, to: cheap}
      - {when: {feature: search, stream: true}, deployments: [us, any]}
      - {when: {user: ada, org: acme, priority: critical}, deployments: [eu]}
      - {when: {tokens_above: 1000, tokens_below: 2000}, deployments: [any]}
      - {when: {property: {pick: both}}, deployments: [us, eu], region: eu}
      - {region: property.region}
  cheap:
    deployments: [{model: openai/gpt-4o-mini, id: mini}]
    routes:
      - {when: {priority: batch}, to: cheapest}
  cheapest:
    strategy: cost
    deployments: [{model: openai/gpt-4.1-nano, id: nano}]
  able:
    deployments:
      - {model: openai/a, id: eyes, capabilities: [vision]}
      - {model: openai/b, id: hands, capabilities: [tools, json]}
      - {model: openai/c, id: unsaid}
      - {model: told/d, id: dropping}
  declared:
    deployments:
      - {model: openai/a, id: eyes2, capabilities: [vision]}
      - {model: openai/b, id: hands2, capabilities: [tools]}
  sized:
    deployments:
      - {model: openai/a, id: small, context_window: 1000, max_output: 100}
      - {model: openai/b, id: large, context_window: 10000, max_output: 500}
  unsized:
    deployments:
      - {model: openai/a, id: small2, context_window: 1000}
      - {model: openai/b, id: open}
  quick:
    strategy: latency
    deployments: [{model: openai/a, id: q}]
providers:
  told: {wire: openai, base_url: "http://h/v1", api_key: [], quirks: {drop: [tools]}}
"""
CONFIG: Config = load_text(TEXT, source="f", environment={})
NOTHING = Options()
FREE = Options(properties={"tier": "free"})


def go(
    model: str, options: Options = NOTHING, routing: Routing | None = None, **fields: object
) -> Routed | f.InvalidRequest | None:
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "model": model, **fields})
    asked = decode_request(body.encode(), api="chat", limit=10**7)
    assert isinstance(asked, ChatRequest)
    return (routing or Routing(CONFIG, UsageBoard())).route(
        CONFIG.models[model],
        options=options,
        stream=bool(asked.stream),
        asked=asked,
        body=body.encode(),
    )


def ids(routed: Routed | f.InvalidRequest | None) -> str:
    assert isinstance(routed, Routed)
    return " ".join(d.id for d in routed.model.deployments)


def why(routed: Routed | f.InvalidRequest | None) -> str:
    assert isinstance(routed, Routed)
    return " ".join(f"{d.deployment.id}:{d.reason.value}" for d in routed.dropped)


def test_a_plain_model_is_left_as_it_is() -> None:
    assert go("plain", FREE, tools=[{"type": "function"}], max_tokens=10**6) is None


@pytest.mark.parametrize(
    ("options", "fields", "expected", "way"),
    [
        (Options(), {}, "us eu any", ()),
        (FREE, {}, "mini", ("main.routes[0] -> cheap",)),
        (
            Options(properties={"tier": "free"}, priority="batch"),
            {},
            "nano",
            ("main.routes[0] -> cheap", "cheap.routes[0] -> cheapest"),
        ),
        (Options(feature="search"), {"stream": True}, "us any", ("main.routes[1]",)),
        (Options(feature="search"), {}, "us eu any", ()),
        (Options(user="ada", org="acme", priority="critical"), {}, "eu", ("main.routes[2]",)),
        (Options(user="ada", org="acme"), {}, "us eu any", ()),
        (Options(), {"user": "x" * 6000}, "any", ("main.routes[3]",)),
        (Options(), {"user": "x" * 9000}, "us eu any", ()),
        (Options(properties={"pick": "both"}), {}, "eu", ("main.routes[4]",)),
        (Options(properties={"region": "us"}), {}, "us", ("main.routes[5]",)),
    ],
)
def test_the_first_route_that_fits_is_taken(
    options: Options, fields: dict[str, Any], expected: str, way: tuple[str, ...]
) -> None:
    routed = go("main", options, **fields)
    assert ids(routed) == expected
    assert isinstance(routed, Routed)
    assert routed.way == way


def test_a_region_that_no_deployment_has_is_the_caller_s_mistake() -> None:
    refused = go("main", Options(properties={"region": "mars"}))
    assert isinstance(refused, f.InvalidRequest)
    assert "in the region 'mars'" in refused.message
    assert refused.param == "breakwater-property-region"


def test_what_a_route_leaves_out_says_why() -> None:
    assert why(go("main", Options(feature="search"), stream=True)) == "eu:route"
    assert why(go("main", Options(properties={"pick": "both"}))) == "any:route us:region"


PICTURE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]
TOOLS = [{"type": "function"}]


@pytest.mark.parametrize(
    ("fields", "expected", "reasons"),
    [
        ({}, "eyes hands unsaid dropping", ""),
        ({"messages": PICTURE}, "eyes unsaid dropping", "hands:no_vision"),
        ({"tools": TOOLS}, "hands unsaid", "eyes:no_tools dropping:no_tools"),
        (
            {"tools": TOOLS, "messages": PICTURE},
            "unsaid",
            "eyes:no_tools dropping:no_tools hands:no_vision",
        ),
        ({"response_format": {"type": "json_object"}}, "hands unsaid dropping", "eyes:no_json"),
    ],
)
def test_deployments_without_what_the_request_needs_are_left_out(
    fields: dict[str, Any], expected: str, reasons: str
) -> None:
    routed = go("able", **fields)
    assert (ids(routed), why(routed)) == (expected, reasons)


def test_what_every_deployment_is_declared_not_to_do_is_refused_before_it_is_sent() -> None:
    refused = go("declared", messages=PICTURE, tools=TOOLS)
    assert isinstance(refused, f.InvalidRequest)
    assert "no deployment of declared that this request may use takes pictures" in refused.message


@pytest.mark.parametrize(
    ("model", "fields", "expected", "reasons"),
    [
        ("sized", {}, "small large", ""),
        ("sized", {"max_tokens": 100}, "small large", ""),
        ("sized", {"max_tokens": 101}, "large", "small:max_output"),
        ("sized", {"user": "x" * 5000}, "large", "small:context_window"),
        # What fits nowhere goes where it comes nearest: the estimate may be wrong.
        ("sized", {"user": "x" * 50_000}, "large", "small:context_window"),
        ("sized", {"max_tokens": 501}, "large", "small:max_output"),
        ("unsized", {"user": "x" * 5000}, "open", "small2:context_window"),
    ],
)
def test_sizes_leave_out_what_is_too_small(
    model: str, fields: dict[str, Any], expected: str, reasons: str
) -> None:
    routed = go(model, **fields)
    assert (ids(routed), why(routed)) == (expected, reasons)


@pytest.mark.parametrize(
    ("model", "fields", "expected"),
    [
        ("main", {"user": "x" * 6000}, "us eu any"),
        ("sized", {"max_tokens": 101}, "large"),
        ("able", {"messages": PICTURE}, "eyes unsaid dropping"),
        ("declared", {"messages": PICTURE, "tools": TOOLS}, "eyes2 hands2"),
    ],
)
def test_a_model_that_a_request_is_sent_on_to_is_asked_by_need_alone(
    model: str, fields: dict[str, Any], expected: str
) -> None:
    body = json.dumps({"messages": [{"role": "user"}], "model": model, **fields}).encode()
    asked = decode_request(body, api="chat", limit=10**7)
    assert isinstance(asked, ChatRequest)
    fit = Routing(CONFIG, UsageBoard()).fit(CONFIG.models[model], asked=asked, body=body)
    assert " ".join(d.id for d in fit.deployments) == expected


def test_requests_alike_get_the_same_model_so_that_what_is_prepared_of_it_holds() -> None:
    routing = Routing(CONFIG, UsageBoard())
    one, other = (go("sized", routing=routing, user="x" * n) for n in (5000, 5100))
    assert isinstance(one, Routed)
    assert isinstance(other, Routed)
    assert one.model is other.model


def test_strategies_are_told_of_the_request_what_they_look_at() -> None:
    usage = UsageBoard()
    routing = Routing(CONFIG, usage)
    quick = go("quick", routing=routing, stream=True)
    assert isinstance(quick, Routed)
    assert quick.ask == Ask("quick", "quick", stream=True, input_tokens=0, output_tokens=256)
    priced = go("cheapest", routing=routing)
    assert isinstance(priced, Routed)
    assert priced.ask.input_tokens > 10
    assert priced.ask.output_tokens == EXPECTED_OUTPUT
    limited = go("cheapest", routing=routing, max_tokens=20)
    assert isinstance(limited, Routed)
    assert limited.ask.output_tokens == 20
    usage.fold(
        AttemptFinished(
            *("r", 1, "t", "cheapest", "nano", "nano", "p", "w", "ok", 0.0), usage=Usage(output=70)
        ),
        0.0,
    )
    learned = go("cheapest", routing=routing)
    assert isinstance(learned, Routed)
    assert learned.ask.output_tokens == 70


@given(
    st.sampled_from(["main", "able", "sized", "unsized", "cheap"]),
    st.fixed_dictionaries(
        {},
        optional={
            "user": st.integers(0, 60_000).map(lambda n: "x" * n),
            "max_tokens": st.integers(1, 10_000),
            "tools": st.just(TOOLS),
            "messages": st.just(PICTURE),
            "stream": st.booleans(),
        },
    ),
    st.builds(
        Options,
        feature=st.sampled_from(["", "search"]),
        priority=st.sampled_from(["batch", "critical", "interactive"]),
        properties=st.dictionaries(
            st.sampled_from(["tier", "pick", "region"]),
            st.sampled_from(["free", "both", "eu", "us"]),
        ),
    ),
)
def test_nobody_is_lost_and_somebody_is_left(
    model: str, fields: dict[str, Any], options: Options
) -> None:
    routed = go(model, options, **fields)
    if isinstance(routed, f.InvalidRequest):
        assert options.properties["region"] in {"free", "both"}
        return
    if routed is None:
        return
    kept = [d.id for d in routed.model.deployments]
    dropped = [d.deployment.id for d in routed.dropped]
    assert kept
    whole = CONFIG.models[routed.model.name].deployments
    assert sorted(kept + dropped) == sorted(d.id for d in whole)
