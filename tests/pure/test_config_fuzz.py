"""Whatever the text, the loader answers a configuration or a `ConfigError`, and repeats no secret."""

import string

import yaml
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from breakwater_gateway.config.amounts import format_duration, parse_duration_ms
from breakwater_gateway.config.codec import (
    BadStored,
    Stored,
    decode,
    decode_stored,
    encode,
    encode_stored,
)
from breakwater_gateway.config.load import ConfigError, load_text
from breakwater_gateway.config.model import Config
from breakwater_gateway.config.show import to_yaml
from breakwater_gateway.config.table import ROOT
from breakwater_gateway.config.unresolved import missing_keys

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def read(text: str | bytes) -> Config | ConfigError:
    try:
        return load_text(text, source="f", environment={})
    except ConfigError as error:
        return error


def refused(text: str | bytes) -> ConfigError:
    answer = read(text)
    assert isinstance(answer, ConfigError), "this should have been refused"
    return answer


def check(text: str | bytes) -> None:
    """A configuration, or a report that is complete and printable."""
    answer = read(text)
    if isinstance(answer, ConfigError):
        assert answer.problems
        assert all(p.line >= 1 and p.column >= 1 and p.message for p in answer.problems)
        assert len(str(answer).splitlines()) == len(answer.problems) + bool(answer.omitted)
        str(answer).encode()


def words(kind: object) -> set[str]:
    """Every key of the table."""
    keys = getattr(kind, "keys", ())
    inner = [key.kind for key in keys] + [getattr(kind, "item", None)]
    return {key.name for key in keys} | {
        word for each in inner if each is not None for word in words(each)
    }


KEYS = sorted(words(ROOT))
SCALARS = st.one_of(
    st.sampled_from(
        ["openai/gpt-4o", "openai/*", "my/x", "10s", "1m30s", "least-busy", "open", "env:A", "yes"]
    ),
    st.sampled_from(
        ["http://h/v1", "true", "1_000", "0.5", "-1", "1e3", ".inf", "~", "1:30", "<<"]
    ),
    st.integers(-5, 10**12),
    st.floats(allow_nan=True),
    st.booleans(),
    st.none(),
    st.text(max_size=12),
)
NAMES = st.one_of(st.sampled_from([*KEYS, "main-model", "openai/*", "my"]), st.text(max_size=6))
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=20,
)
SYNTAX = st.lists(
    st.sampled_from(
        [
            *KEYS,
            ": ",
            "\n",
            "  ",
            "- ",
            "{",
            "}",
            "[",
            "]",
            ",",
            "&a ",
            "*a",
            "!t ",
            "? ",
            "<<",
            "|\n",
            ">\n",
            "'",
            '"',
            "\\",
            "#",
            "---\n",
            "...\n",
            "%YAML 1.2\n",
            "\t",
            "\r",
            "\ufeff",
            "\u2028",
            "\x85",
            "é",
            "openai/x",
            "10s",
        ]
    ),
    max_size=40,
).map("".join)


@unhurried
@given(st.binary(max_size=200))
def test_any_bytes_are_a_configuration_or_a_config_error(data: bytes) -> None:
    check(data)


@unhurried
@given(st.text(st.characters(), max_size=100))
def test_any_text_is_a_configuration_or_a_config_error(text: str) -> None:
    check(text)


@unhurried
@given(SYNTAX)
def test_any_run_of_yaml_tokens_is_a_configuration_or_a_config_error(text: str) -> None:
    check(text)


@unhurried
@given(st.dictionaries(st.sampled_from([key.name for key in ROOT.keys]), TREES, max_size=4))
def test_any_tree_of_known_keys_is_a_configuration_or_a_config_error(tree: object) -> None:
    check(yaml.safe_dump(tree, allow_unicode=True))


MODEL_NAMES = st.text(
    string.ascii_letters + string.digits + "/.:-_ '\"#", min_size=1, max_size=12
).map(lambda name: name.strip() or "x")
DURATIONS = st.integers(1, 86_400_000).map(lambda ms: f"{ms}ms")
DEPLOYMENTS = st.fixed_dictionaries(
    {"model": MODEL_NAMES.map(lambda name: f"openai/{name}")},
    optional={
        "weight": st.integers(1, 1_000_000),
        "order": st.integers(0, 1_000),
        "region": MODEL_NAMES,
        "pool": st.sampled_from(["yes", "null", "1:30", "010", "~", "=", "<<", "1.5"]),
        "rpm": st.integers(1, 10**9),
        "max_in_flight": st.integers(1, 10**6),
        "price": st.fixed_dictionaries(
            {
                "input": st.integers(0, 10**9).map(lambda nano: nano / 1000),
                "output": st.integers(0, 10**9).map(
                    lambda nano: f"{nano // 1000}.{nano % 1000:03}"
                ),
            }
        ),
        "api_key": st.lists(st.sampled_from(["env:A", "env:B_2", "file:/k k"]), unique=True),
        "headers": st.dictionaries(st.sampled_from(["x-a", "X-B"]), MODEL_NAMES, max_size=2),
        "http2": st.booleans(),
    },
)
PROSE = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=20
).filter(str.strip)
_FEW = st.lists(MODEL_NAMES, min_size=1, max_size=2)
ROUTES = st.fixed_dictionaries(
    {
        "when": st.fixed_dictionaries(
            {},
            optional={
                "user": _FEW,
                "priority": st.sampled_from(["batch", "critical"]),
                "property": st.dictionaries(st.just("a.b"), _FEW, min_size=1),
                "stream": st.booleans(),
                "tokens_above": st.integers(0, 100),
                "tokens_below": st.integers(102, 10**9),
            },
        ),
        "region": st.sampled_from(["eu", "property.region"]),
    }
)
FILES = st.fixed_dictionaries(
    {
        "models": st.dictionaries(
            MODEL_NAMES,
            st.fixed_dictionaries(
                {"deployments": st.lists(DEPLOYMENTS, min_size=1, max_size=3)},
                optional={
                    "strategy": st.sampled_from(["simple-shuffle", "cost", "usage"]),
                    "routes": st.lists(ROUTES, max_size=1),
                    "timeouts": st.fixed_dictionaries({}, optional={"total": DURATIONS}),
                    "retry": st.fixed_dictionaries(
                        {}, optional={"budget": st.floats(0, 1), "attempts": st.integers(1, 100)}
                    ),
                    "on_context_length": st.sampled_from(["truncate", "fail"]),
                    "on_content_filter": st.just("next"),
                    "hedge": st.fixed_dictionaries({}, optional={"after": DURATIONS}),
                    "ladder": st.sampled_from([["cache", "static"], ["stale", "error"]]),
                    "breaker": st.fixed_dictionaries(
                        {},
                        optional={
                            "window": DURATIONS,
                            "open_cap": DURATIONS,
                            "probe": st.sampled_from(["traffic", "active"]),
                        },
                    ),
                },
            ),
            min_size=1,
            max_size=4,
        )
    },
    optional={
        "static_answers": st.lists(
            st.fixed_dictionaries(
                {
                    "questions": st.lists(PROSE, min_size=1, max_size=3),
                    "answer": PROSE,
                }
            ),
            min_size=1,
            max_size=3,
        ),
        "static_default": PROSE,
        "limits": st.fixed_dictionaries({"connections": st.integers(1, 1_000_000)}),
        "providers": st.fixed_dictionaries(
            {},
            optional={
                "openai": st.fixed_dictionaries(
                    {},
                    optional={
                        "auth": st.sampled_from(["bearer", "api-key", "query", "sigv4", "none"]),
                        "base_url": st.just("https://{account}.api.openai.com/{host}/v1"),
                        "quirks": st.fixed_dictionaries(
                            {},
                            optional={
                                "provider": st.sampled_from(["groq", "no", "1.5"]),
                                "drop": st.lists(st.sampled_from(["n", "seed"]), max_size=2),
                                "top_k": st.booleans(),
                                "max_output_default": st.integers(1, 10**9),
                            },
                        ),
                    },
                ).map(lambda block: {**block, "params": {"account": "1e3", "host": "env:H"}})
            },
        ),
    },
)


@unhurried
@given(FILES)
def test_a_configuration_shown_as_yaml_loads_as_itself(tree: object) -> None:
    text = yaml.dump(tree, Dumper=_NoAliases, default_style='"')
    try:
        config = load_text(text, source="f", environment={})
    except ConfigError:
        reject()  # each key is fine by itself, but not beside another (a label where a region is due)
    assert load_text(to_yaml(config), source="f", environment={}) == config
    assert decode(encode(config)) == config
    missing_keys(config, {})


class _NoAliases(yaml.SafeDumper):
    """PyYAML writes an anchor for an object met twice and a tag for a quoted number; this does not."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def process_tag(self) -> None:
        """No tags."""


@unhurried
@given(st.integers(1, 10**9 - 1))
def test_a_duration_shown_is_read_back(ms: int) -> None:
    assert parse_duration_ms(format_duration(ms / 1000)) == ms


@unhurried
@given(st.text("0123456789.mshd", max_size=20))
def test_a_duration_is_whole_milliseconds_or_refused(text: str) -> None:
    ms = parse_duration_ms(text)
    assert ms is None or ms >= 0


@unhurried
@given(st.text(max_size=50), st.text(max_size=50), st.booleans())
def test_what_is_stored_is_read_back(source: str, text: str, simulator: bool) -> None:
    stored = Stored(source, text, simulator)
    assert decode_stored(encode_stored(stored)) == stored


@unhurried
@given(st.binary(max_size=100))
def test_bytes_that_are_no_revision_are_refused_as_such(data: bytes) -> None:
    try:
        decode_stored(data)
        decode(data)
    except BadStored:
        return


SECRET_TEXT = st.text(string.ascii_letters + string.digits, min_size=12, max_size=40)


@unhurried
@given(SECRET_TEXT, st.sampled_from(["api_key", "headers"]), st.booleans())
def test_what_stands_where_a_secret_may_stand_is_never_repeated(
    secret: str, key: str, as_list: bool
) -> None:
    value: object = {"Authorization": secret, "x-y": [secret]} if key == "headers" else secret
    tree = {
        "models": {
            "a": {"deployments": [{"model": "openai/x", key: [value] if as_list else value}]}
        }
    }
    assert secret not in str(refused(yaml.safe_dump(tree)))


@unhurried
@given(SECRET_TEXT, st.lists(st.sampled_from(KEYS), min_size=1, max_size=5))
def test_a_key_with_an_issuers_prefix_is_never_repeated_anywhere(
    body: str, path: list[str]
) -> None:
    secret = f"sk-{body}"
    tree: object = {secret: secret, "x": [secret]}
    for step in reversed(path):
        tree = [{step: tree}] if step == "deployments" else {step: tree, secret: secret}
    error = refused(yaml.safe_dump(tree))
    assert body not in str(error)
    assert all(body not in p.path for p in error.problems)
