"""Routes and capabilities in the file: what they mean, and each contradiction refused with its reason."""

import pytest

from breakwater_gateway.config.load import ConfigError, load_text
from breakwater_gateway.config.model import Condition, Config, Route
from breakwater_gateway.config.show import to_yaml

MODELS = """
models:
  main:
    deployments:
      - {model: openai/gpt-4o, id: us, region: us, capabilities: [vision, tools, tools]}
      - {model: openai/gpt-4o, id: eu, region: eu, capabilities: []}
      - {model: openai/gpt-4o, id: any}
    routes: ROUTES
  cheap:
    deployments: [{model: openai/gpt-4o-mini}]
    routes: CHEAP
  openai/*:
    deployments: [{model: "openai/*"}]
"""


def load(routes: str, cheap: str = "[]") -> Config:
    text = MODELS.replace("ROUTES", routes).replace("CHEAP", cheap)
    return load_text(text, source="f", environment={})


def refused(routes: str, cheap: str = "[]") -> str:
    with pytest.raises(ConfigError) as caught:
        load(routes, cheap)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "route"),
    [
        (
            "{when: {property: {tier: free}}, to: cheap}",
            Route(when=Condition(properties=(("tier", ("free",)),)), to="cheap"),
        ),
        (
            "{when: {feature: [chat, search], stream: no_}, deployments: [us, us]}",
            None,
        ),
        (
            "{when: {feature: [chat, search], stream: false}, deployments: [us, us]}",
            Route(when=Condition(features=("chat", "search"), stream=False), deployments=("us",)),
        ),
        (
            "{when: {tokens_above: 0, tokens_below: 2, org: 1, user: no}, region: eu}",
            Route(
                when=Condition(tokens_above=0, tokens_below=2, orgs=("1",), users=("no",)),
                region="eu",
            ),
        ),
        ("{region: property.region}", Route(region_property="region")),
        (
            "{when: {priority: batch}, deployments: [eu, any], region: eu}",
            Route(when=Condition(priorities=("batch",)), deployments=("eu", "any"), region="eu"),
        ),
    ],
)
def test_a_route_means_what_it_says(text: str, route: Route | None) -> None:
    if route is None:
        assert "stream: expected true or false" in refused(f"[{text}]")
        return
    config = load(f"[{text}]")
    assert config.models["main"].routes == (route,)
    assert load_text(to_yaml(config), source="f", environment={}) == config


def test_capabilities_are_known_declared_none_or_not_said() -> None:
    found = {d.id: d.capabilities for d in load("[]").models["main"].deployments}
    assert found == {"us": ("vision", "tools"), "eu": (), "any": None}


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ("[{to: chepa}]", 'f:8: models.main.routes[0].to: there is no model "chepa"; did you'),
        ("[{to: openai/*}]", '"openai/*" is a prefix, not one model'),
        ("[{to: main}]", 'the routes lead in a circle: "main" -> "main"'),
        ("[{to: cheap, region: eu}]", "expected to, or deployments and region, and not both"),
        ("[{when: {stream: true}}]", '"to", "deployments" or "region" is missing'),
        ("[{deployments: [uss]}]", 'no deployment "uss"; did you mean "us"?'),
        ("[{deployments: [gpt-4o-mini]}]", 'no deployment "gpt-4o-mini"; it has any, eu, us'),
        ("[{region: asia}]", 'has the region "asia"; there are eu, us'),
        ("[{region: property.A}]", "expected property. and a name"),
        ("[{deployments: [us], region: eu}]", 'none of these deployments has the region "eu"'),
        (
            "[{when: {tokens_above: 5, tokens_below: 6}, region: eu}]",
            "no number is above 5 and below 6",
        ),
        (
            "[{region: eu}, {when: {stream: true}, to: cheap}]",
            "routes[1]: it is never reached: the route on line 8 takes every request",
        ),
        ("[{when: {property: {Tier: x}}, region: eu}]", "expected a property's name"),
        ("[{when: {priority: urgent}, region: eu}]", "expected critical, interactive or batch"),
        ("[{when: {user: []}, region: eu}]", "expected a list of texts, 1 to 64 of them"),
        ("[{when: {model: x}, region: eu}]", "unknown key; a condition has user"),
    ],
)
def test_what_contradicts_itself_is_refused_with_the_reason(routes: str, message: str) -> None:
    assert message in refused(routes)


def test_a_circle_over_several_models_is_shown_whole() -> None:
    error = refused("[{when: {user: a}, to: cheap}]", "[{when: {user: b}, to: main}]")
    assert error.count("circle") == 1
    assert (
        'models.main.routes[0].to: the routes lead in a circle: "main" -> "cheap" -> "main"'
        in error
    )


def test_a_long_chain_without_a_circle_is_fine_and_walked_without_recursion() -> None:
    count = 3_000
    models = "".join(
        f"  m{i}:\n    deployments: [{{model: openai/x}}]\n"
        + (f"    routes: [{{to: m{i + 1}}}, ]\n" if i + 1 < count else "")
        for i in range(count)
    )
    assert len(load_text(f"models:\n{models}", source="f", environment={}).models) == count


@pytest.mark.parametrize("word", ["smell", "Vision", "true"])
def test_an_unknown_capability_is_refused(word: str) -> None:
    text = f"models: {{a: {{deployments: [{{model: openai/x, capabilities: [{word}]}}]}}}}"
    with pytest.raises(ConfigError, match="expected one of vision, audio, tools, json"):
        load_text(text, source="f", environment={})
