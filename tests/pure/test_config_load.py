"""`breakwater.yaml` is read whole: values, defaults, and every mistake with its line."""

import pytest

from breakwater_gateway.config.load import ConfigError, load_text
from breakwater_gateway.config.model import (
    BreakerPolicy,
    Config,
    Deployment,
    KeyRef,
    Limits,
    Model,
    Price,
    RetryPolicy,
    Telemetry,
    Timeouts,
)
from breakwater_gateway.config.problems import PROBLEMS_MAX
from breakwater_gateway.config.show import to_yaml
from breakwater_gateway.config.unresolved import missing_keys

GOOD = """\
models:
  main-model:
    strategy: least-busy
    unsupported_params: refuse
    deployments:
      - model: openai/gpt-4o
        api_key: [env:OPENAI_KEY_A, env:OPENAI_KEY_B]
        id: gpt-4o-us
        weight: 3
        order: 1
        region: no
        pool: "1:30"
        max_in_flight: 1_000
        rpm: 500
        tpm: 1_000_000
        context_window: 128_000
        max_output: 16384
        price: {input: 2.50, output: 10}
        http2: false
      - model: my-vllm/meta-llama/Llama-3.1-8B
      - {model: ollama/qwen3}
    timeouts: {ttft: 1500ms, total: 1m30s}
    retry: {attempts: 2, base: 0.5s, budget: 0.1}
    breaker: {failure_rate: 1, open: 10s}
  groq/*:
    deployments: [{model: groq/*}]
providers:
  my-vllm: {wire: openai, base_url: "http://gpu-1:8000/v1/", api_key: file:/run/secrets/vllm,
            headers: {X-Team: acme}}
auth: {mode: open}
telemetry: {log: console, level: debug}
limits: {connections: 10, in_flight: 5}
"""


def load(text: str | bytes, **environment: str) -> Config:
    return load_text(text, source="breakwater.yaml", environment=environment)


def mistakes(text: str | bytes) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text)
    return str(caught.value).splitlines()


def test_a_whole_file_becomes_values_with_defaults_filled_in() -> None:
    assert load(GOOD) == Config(
        models={
            "main-model": Model(
                "main-model",
                (
                    Deployment(
                        id="gpt-4o-us",
                        provider="openai",
                        model="gpt-4o",
                        wire="openai",
                        base_url="https://api.openai.com/v1",
                        api_keys=(KeyRef("env", "OPENAI_KEY_A"), KeyRef("env", "OPENAI_KEY_B")),
                        weight=3,
                        order=1,
                        region="no",
                        pool="1:30",
                        max_in_flight=1000,
                        rpm=500,
                        tpm=1_000_000,
                        context_window=128_000,
                        max_output=16_384,
                        price=Price(input=2_500, output=10_000),
                        http2=False,
                    ),
                    Deployment(
                        id="my-vllm/meta-llama/Llama-3.1-8B",
                        provider="my-vllm",
                        model="meta-llama/Llama-3.1-8B",
                        wire="openai",
                        base_url="http://gpu-1:8000/v1",
                        api_keys=(KeyRef("file", "/run/secrets/vllm"),),
                        headers=(("x-team", "acme"),),
                    ),
                    Deployment(
                        id="ollama/qwen3",
                        provider="ollama",
                        model="qwen3",
                        wire="openai",
                        base_url="http://127.0.0.1:11434/v1",
                    ),
                ),
                strategy="least-busy",
                unsupported_params="refuse",
                timeouts=Timeouts(first_token_s=1.5, total_s=90.0),
                retry=RetryPolicy(attempts=2, base_s=0.5, budget=0.1),
                breaker=BreakerPolicy(failure_rate=1.0, open_s=10.0),
            ),
            "groq/*": Model(
                "groq/*",
                (
                    Deployment(
                        id="groq/*",
                        provider="groq",
                        model="*",
                        wire="openai",
                        base_url="https://api.groq.com/openai/v1",
                        api_keys=(KeyRef("env", "GROQ_API_KEY"),),
                    ),
                ),
            ),
        },
        telemetry=Telemetry("console", "debug"),
        limits=Limits(connections=10, in_flight=5),
    )


def with_deployment(line: str) -> str:
    """A file whose line 5 is `line`, in the first deployment."""
    return f"models:\n  a:\n    deployments:\n      - model: openai/gpt-4o\n        {line}\n"


DEPLOYMENT_MISTAKES = [
    ("wieght: 3", "wieght", 'unknown key; did you mean "weight"?'),
    ("WEIGHT: 3", "WEIGHT", 'unknown key; did you mean "weight"?'),
    ("weight: -1", "weight", 'expected a whole number from 0 to 1_000_000, not "-1"'),
    ("weight: 010", "weight", 'expected a whole number from 0 to 1_000_000, not "010"'),
    ("weight: 0x10", "weight", 'expected a whole number from 0 to 1_000_000, not "0x10"'),
    ("weight: 1:30", "weight", 'expected a whole number from 0 to 1_000_000, not "1:30"'),
    ("weight: 1.5", "weight", 'expected a whole number from 0 to 1_000_000, not "1.5"'),
    ("weight: 1__0", "weight", 'expected a whole number from 0 to 1_000_000, not "1__0"'),
    ("weight:", "weight", "expected a whole number from 0 to 1_000_000, not nothing"),
    ("weight: [1]", "weight", "expected a whole number from 0 to 1_000_000, not a list"),
    ("weight: ٣", "weight", 'expected a whole number from 0 to 1_000_000, not "\\u0663"'),
    ("rpm: 0", "rpm", 'expected a whole number from 1 to 1_000_000_000, not "0"'),
    ("http2: yes", "http2", 'expected true or false, not "yes"'),
    ("http2: on", "http2", 'expected true or false, not "on"'),
    ("region: ~", "region", "expected a region, not nothing"),
    ("id: ''", "id", 'expected an id (printable ASCII), not ""'),
    ('id: "a\\nb"', "id", 'expected an id (printable ASCII), not "a\\nb"'),
    (
        f"id: {'a.' * 257}",
        "id",
        "expected an id (printable ASCII), at most 512 characters; this has 514",
    ),
    (
        f"id: {'.' * 500}",
        "id",
        "a name may have 1024 bytes once escaped, this one has 1500",
    ),
    (
        "price: {input: 1}",
        "price",
        '"output" is missing: USD per million tokens out.',
    ),
    (
        "price: {input: 0.0375, output: 1}",
        "price.input",
        'expected USD per million tokens, from 0 to 1_000_000, in whole thousandths, not "0.0375"',
    ),
    (
        "price: {input: -1, output: 1}",
        "price.input",
        'expected USD per million tokens, from 0 to 1_000_000, not "-1"',
    ),
    (
        "price: {input: .nan, output: 1}",
        "price.input",
        'expected USD per million tokens, from 0 to 1_000_000, not ".nan"',
    ),
    ("base_url: ftp://h/v1", "base_url", "it must start with http:// or https://"),
    ("base_url: http://u:p@h/v1", "base_url", "a user or password has no place in it; use api_key"),
    ("base_url: http://h/v1?k=v", "base_url", "a query or a fragment has no place in it"),
    ("base_url: http://:80/v1", "base_url", "its host or port is missing"),
    ("base_url: http://h:99999/v1", "base_url", "its host or port is malformed"),
    (
        "base_url: https://api.openai.com/v1/chat/completions",
        "base_url",
        "leave out /chat/completions, which is added",
    ),
    (
        "base_url: http://elsewhere/v1",
        "",
        (
            '"api_key" is missing: env:OPENAI_API_KEY is not sent to another host unasked;'
            " name a key, or write api_key: [] for none"
        ),
    ),
    ("api_key: 'env:'", "api_key", "expected the name of an environment variable after env:"),
    ("api_key: env:A-B", "api_key", "expected the name of an environment variable after env:"),
    ("api_key: 'file:'", "api_key", "expected the path of a file after file:"),
    ("api_key: [env:A, env:A]", "api_key[1]", "the same key twice in the pool"),
    ("api_key: {env: A}", "api_key", "expected env:NAME, file:PATH or a list of them"),
    ("headers: {Authorization: x}", "headers.Authorization", "a header that carries a secret"),
    ("headers: {X-Api-Key: x}", "headers.X-Api-Key", "a header that carries a secret"),
    ("headers: {Host: x}", "headers.Host", "this header is set for each call"),
    ("headers: {a b: x}", 'headers["a b"]', "not a header name"),
    ('headers: {a: "b\\r\\nc"}', "headers.a", "expected printable ASCII on one line"),
    ("headers: {a: b, A: c}", "headers.A", "the same header twice"),
]


@pytest.mark.parametrize(("line", "key", "message"), DEPLOYMENT_MISTAKES)
def test_a_mistake_in_a_deployment_names_its_path_and_line(
    line: str, key: str, message: str
) -> None:
    found = mistakes(with_deployment(line))
    assert len(found) == 1
    where, _, said = found[0].partition(": ")
    assert where == "breakwater.yaml:5"
    assert message in said
    if key:
        assert said.startswith(f"models.a.deployments[0].{key}: ")


D = "deployments: [{model: openai/gpt-4o}]"

FILE_MISTAKES = [
    ("", 'breakwater.yaml:1: the file is empty; expected at least "models"'),
    ("# only a comment\n", 'breakwater.yaml:1: the file is empty; expected at least "models"'),
    (
        "[]",
        ("breakwater.yaml:1: expected the keys of the configuration (models, providers,"),
    ),
    (
        "models: {}",
        "breakwater.yaml:1: models: expected models by name, 1 to 10_000 of them; these",
    ),
    ("\nauth: {mode: open}", 'breakwater.yaml:2: "models" is missing: The logical models'),
    (f"model:\n  a: {{{D}}}", 'breakwater.yaml:1: model: unknown key; did you mean "models"?'),
    (
        f"models:\n  a:\n    {D}\n    cache: {{exact: 1h, semantic: {{}}}}",
        "breakwater.yaml:4: models.a.cache.semantic: needs vectors: say embeddings: {local: minilm}",
    ),
    (
        f"models:\n  a:\n    {D}\nembeddings: {{model: b}}",
        'breakwater.yaml:4: embeddings.model: unknown model "b"; describe it under "models"',
    ),
    (
        f"models:\n  a:\n    {D}\nembeddings: {{model: opnai/e}}",
        'breakwater.yaml:4: embeddings.model: unknown provider "opnai"; did you mean "openai"?',
    ),
    (
        f"models:\n  a:\n    {D}\nembeddings: {{}}",
        "breakwater.yaml:4: embeddings: expected either model: <model> or local: minilm",
    ),
    (
        f"models:\n  a:\n    {D}\nembeddings: {{model: a, local: minilm}}",
        "breakwater.yaml:4: embeddings: expected either model: <model> or local: minilm",
    ),
    (
        f"models:\n  a:\n    {D}\n    cache: {{semantic: {{threshold: 1.1}}}}\nembeddings: {{local: minilm}}",
        "breakwater.yaml:4: models.a.cache.semantic.threshold: expected a number from 0 to 1, or certified",
    ),
    (
        f"models:\n  a:\n    strategy: costs\n    {D}",
        (
            "breakwater.yaml:3: models.a.strategy: expected one of simple-shuffle, least-busy,"
            ' latency, cost, usage, priority, not "costs"; did you mean "cost"?'
        ),
    ),
    (
        f"models:\n  a:\n    strategy: least-bussy\n    {D}",
        (
            "breakwater.yaml:3: models.a.strategy: expected one of simple-shuffle, least-busy,"
            ' latency, cost, usage, priority, not "least-bussy"; did you mean "least-busy"?'
        ),
    ),
    (
        f"models: {{a: {{{D}}}}}\nauth:\n  mode: key",
        'breakwater.yaml:3: auth.mode: expected one of open, keys, not "key"; did you mean "keys"?',
    ),
    (
        f"models: {{a: {{{D}}}}}\ntelemetry: {{record_content: true}}",
        (
            "breakwater.yaml:2: telemetry.record_content: recording of prompts and answers is not"
            " served by this version; expected false"
        ),
    ),
    (
        f"models: {{a: {{{D}}}}}\ntelemetry: {{record_content: maybe}}",
        'breakwater.yaml:2: telemetry.record_content: expected true or false, not "maybe"',
    ),
    (
        f"models: {{a: {{{D}}}}}\ntelemetry: {{otlp: grpc://h}}",
        "breakwater.yaml:2: telemetry.otlp: expected an address such as https://host/path, or",
    ),
    (
        f"models: {{a: {{{D}}}}}\ntelemetry: {{otlp: 'https://u:p@h/otlp'}}",
        "breakwater.yaml:2: telemetry.otlp: an address that holds a secret does not stand in",
    ),
    (
        f"models: {{a: {{{D}}}}}\ntelemetry: {{oltp: 'http://h:4318'}}",
        'breakwater.yaml:2: telemetry.oltp: unknown key; did you mean "otlp"?',
    ),
    (
        f"models: {{a: {{{D}}}}}\ntelemetry: {{traces: {{sample: 1.5}}}}",
        "breakwater.yaml:2: telemetry.traces.sample: expected a number from 0 to 1, not",
    ),
    (
        f"models: {{a: {{{D}}}}}\ntelemetry:\n",
        "breakwater.yaml:2: telemetry: expected the keys of telemetry (log, level, otlp,",
    ),
    (
        f"models: {{a: {{{D}}}}}\nproviders: {{x: {{wire: openai}}}}",
        'breakwater.yaml:2: providers.x: "base_url" is missing: the catalogue does not know',
    ),
    (
        f"models: {{a: {{{D}}}}}\nproviders: {{openai: {{base_url: 'http://h/v1'}}}}",
        'breakwater.yaml:2: providers.openai: "api_key" is missing: env:OPENAI_API_KEY is not sent',
    ),
    (
        "models:\n  a:\n    deployments:\n    - model: opnai/gpt-4o",
        (
            "breakwater.yaml:4: models.a.deployments[0].model: unknown provider"
            ' "opnai"; did you mean "openai"?'
        ),
    ),
    (
        "models:\n  a:\n    deployments:\n    - model: zzzzzzzz/gpt-4o",
        (
            "breakwater.yaml:4: models.a.deployments[0].model: unknown provider"
            ' "zzzzzzzz"; describe it under "providers"'
        ),
    ),
    (
        "models:\n  a:\n    deployments:\n    - model: gpt-4o",
        (
            "breakwater.yaml:4: models.a.deployments[0].model: expected provider/model,"
            ' such as "openai/gpt-4o", not "gpt-4o"'
        ),
    ),
    (
        "models:\n  a:\n    deployments:\n    - model: openai/*",
        'breakwater.yaml:4: models.a.deployments[0].model: "openai/*" passes on what the caller',
    ),
    (
        "models:\n  a*:\n    deployments:\n    - model: openai/g*-4",
        "breakwater.yaml:4: models.a*.deployments[0].model: * stands only at the end of a model",
    ),
    (
        f"models:\n  a*b: {{{D}}}",
        "breakwater.yaml:2: models.a*b: * stands only at the end of a name",
    ),
    (f"models:\n  '': {{{D}}}", 'breakwater.yaml:2: models[""]: expected a model\'s name'),
    (
        f"models:\n  modèle: {{{D}}}",
        'breakwater.yaml:2: models["mod\\u00e8le"]: expected a model\'s',
    ),
    ("models:\n  a: {}", 'breakwater.yaml:2: models.a: "deployments" is missing'),
    (
        "models:\n  a: {deployments: []}",
        "breakwater.yaml:2: models.a.deployments: expected a list of",
    ),
    (
        "models:\n  a:\n    deployments:\n    - id: x",
        'breakwater.yaml:4: models.a.deployments[0]: "model" is missing: Provider and',
    ),
    (
        "models:\n  a:\n    deployments: [{model: openai/a, weight: 0}, {model: openai/b, weight: 0}]",
        "breakwater.yaml:3: models.a.deployments: every deployment has weight 0",
    ),
    (
        (
            "models:\n  a: {deployments: [{model: openai/a, id: x}]}\n"
            "  b: {deployments: [{model: openai/a, id: x}]}"
        ),
        (
            'breakwater.yaml:3: models.b.deployments[0].id: the id "x" is taken by the deployment on'
            " line 2"
        ),
    ),
    (
        f"models:\n  a:\n    {D}\n    timeouts: {{ttft: 90s}}",
        "breakwater.yaml:4: models.a.timeouts.ttft: expected at most total (1m by default), not 90s",
    ),
    (
        f"models:\n  a:\n    {D}\n    timeouts: {{idle: 11s, total: 10s}}",
        "breakwater.yaml:4: models.a.timeouts.idle: expected at most total (10s), not 11s",
    ),
    (
        f"models:\n  a:\n    {D}\n    retry: {{base: 9s}}",
        "breakwater.yaml:4: models.a.retry.base: expected at most cap (8s by default), not 9s",
    ),
    (
        f"models:\n  a:\n    {D}\n    breaker: {{failure_rate: 0}}",
        "breakwater.yaml:4: models.a.breaker.failure_rate: expected a number above 0 and up to 1,",
    ),
    (
        f"models:\n  a:\n    {D}\n    timeouts: {{total: 60}}",
        (
            "breakwater.yaml:4: models.a.timeouts.total: expected a duration such as 250ms, 10s or"
            ' 1m30s, at most 1d, not "60" (a unit is missing: "60s"?)'
        ),
    ),
    (
        "models:\n  a: {deployments: [{model: openai/a, context_window: 10, max_output: 11}]}",
        "breakwater.yaml:2: models.a.deployments[0].max_output: expected at most context_window",
    ),
    ("models:\n\ta: 1", "breakwater.yaml:2: a tab may not indent; use spaces"),
    ("models: {a: 1\n", "breakwater.yaml:2: "),
    ("models: @a", "breakwater.yaml:1: a value may not start with '@'; put it in quotes"),
    ("models: a: b", 'breakwater.yaml:1: a ":" too many'),
    ('models: "a', "breakwater.yaml:1: a quote is not closed"),
    ("models: !!python/object:os.system {}", "breakwater.yaml:1: the tag "),
    ("--- {}\n--- {}", "breakwater.yaml:2: a second document"),
    ("a: *b", 'breakwater.yaml:1: no anchor "b" is complete before this alias'),
    ("a: &b [*b]", 'breakwater.yaml:1: no anchor "b" is complete before this alias'),
    (
        f"models:\n  a: {{{D}}}\n  a: {{{D}}}",
        "breakwater.yaml:3: models.a: the same key twice; the",
    ),
    ("? [a, b]\n: c", "breakwater.yaml:1: a key must be text, not a collection"),
    ("a: b\nc: \x01", "breakwater.yaml:2: a control character (U+0001); remove it"),
    (b"a: b\nc: \xff", "breakwater.yaml:2: not valid UTF-8; save the file as UTF-8"),
    ("a: b\nc: \udc80", "breakwater.yaml:2: not valid UTF-8"),
    (
        b"#" * (1024 * 1024 + 1),
        "breakwater.yaml:1: a configuration may have 1048576 bytes, this has",
    ),
    ("[" * 100_000, "breakwater.yaml:1: nested more than 32 deep"),
]


@pytest.mark.parametrize(("text", "first"), FILE_MISTAKES)
def test_a_mistake_in_the_file_names_its_path_and_line(text: str | bytes, first: str) -> None:
    assert any(line.startswith(first) for line in mistakes(text))


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_file() -> None:
    found = mistakes(
        "modles: 1\n"
        "models:\n"
        "  a:\n"
        "    deployments:\n"
        "      - {model: opnai/x, wieght: 3}\n"
        "      - {model: openai/x, api_key: hunter2}\n"
        "    timeouts: {totl: 1s}\n"
        "auth: {mode: closed}\n"
    )
    assert [line.split(": ")[:2] for line in found] == [
        ["breakwater.yaml:1", "modles"],
        ["breakwater.yaml:5", "models.a.deployments[0].model"],
        ["breakwater.yaml:5", "models.a.deployments[0].wieght"],
        ["breakwater.yaml:6", "models.a.deployments[1].api_key"],
        ["breakwater.yaml:7", "models.a.timeouts.totl"],
        ["breakwater.yaml:8", "auth.mode"],
    ]


def test_the_report_of_a_hostile_file_is_bounded() -> None:
    with pytest.raises(ConfigError) as caught:
        load("models: {}\n" + "".join(f"key{i}: 1\n" for i in range(5_000)))
    assert len(caught.value.problems) == PROBLEMS_MAX
    assert caught.value.omitted == 5_001 - PROBLEMS_MAX
    assert str(caught.value).endswith(f"and {5_001 - PROBLEMS_MAX} more mistakes")


def test_aliases_are_paid_for_before_they_expand() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20)
    )
    assert "aliases expand to more than" in mistakes(bomb)[0]


def test_anchors_and_merge_keys_mean_what_yaml_says() -> None:
    config = load(
        "models:\n"
        "  a:\n"
        "    timeouts: &slow {total: 2m, idle: 1m}\n"
        "    deployments: [&one {model: openai/x, weight: 2, rpm: 5}]\n"
        "  b:\n"
        "    timeouts: *slow\n"
        "    deployments: [{<<: *one, weight: 7}]\n"
    )
    assert config.models["b"].timeouts == Timeouts(idle_s=60.0, total_s=120.0)
    assert config.models["b"].deployments[0].weight == 7
    assert config.models["b"].deployments[0].rpm == 5


def test_ids_that_are_made_are_unique_and_leave_written_ones_alone() -> None:
    config = load(
        "models:\n"
        "  a: {deployments: [{model: openai/x}, {model: openai/x}, {model: openai/x}]}\n"
        "  b: {deployments: [{model: openai/y, id: openai/x-2}]}\n"
    )
    ids = [d.id for model in config.models.values() for d in model.deployments]
    assert ids == ["openai/x", "openai/x-3", "openai/x-4", "openai/x-2"]


def test_a_default_gives_way_to_a_shorter_written_bound() -> None:
    model = load(
        f"models: {{a: {{{D}, timeouts: {{total: 4s}}, breaker: {{open_cap: 2s}}}}}}"
    ).models["a"]
    assert model.timeouts == Timeouts(
        connect_s=4.0, first_token_s=4.0, idle_s=4.0, total_s=4.0, rate_window_s=4.0
    )
    assert model.breaker.open_s == 2.0


def test_how_a_target_comes_back_is_read() -> None:
    breaker = (
        load(f"models: {{a: {{{D}, breaker: {{ramp: 30s, probe: active}}}}}}").models["a"].breaker
    )
    assert (breaker.ramp_s, breaker.probe) == (30.0, "active")
    usual = load(f"models: {{a: {{{D}}}}}").models["a"].breaker
    assert (usual.ramp_s, usual.probe) == (15.0, "traffic")


@pytest.mark.parametrize("id_", ["@openai/eu", "a#key1", "a#key12"])
def test_an_id_that_would_read_as_a_region_or_a_key_is_refused(id_: str) -> None:
    with pytest.raises(ConfigError, match="names a provider's region"):
        load(f"models: {{a: {{deployments: [{{model: openai/x, id: '{id_}'}}]}}}}")


def test_the_usual_variable_that_is_set_here_is_the_default_key() -> None:
    text = "models: {a: {deployments: [{model: huggingface/x}]}}"
    assert load(text).models["a"].deployments[0].api_keys == (KeyRef("env", "HF_TOKEN"),)
    other = load(text, HUGGINGFACE_API_KEY="x")
    assert other.models["a"].deployments[0].api_keys == (KeyRef("env", "HUGGINGFACE_API_KEY"),)


@pytest.mark.parametrize(
    ("deployment", "keys"),
    [
        ("model: openai/x, base_url: 'https://eu.api.openai.com/v1'", ("env:OPENAI_API_KEY",)),
        ("model: openai/x, base_url: 'http://127.0.0.1:1/v1', api_key: []", ()),
        ("model: openai/x, base_url: 'http://127.0.0.1:1/v1', api_key: env:MINE", ("env:MINE",)),
        ("model: vllm/x, base_url: 'http://gpu-1:8000/v1'", ()),
    ],
)
def test_a_key_goes_to_another_host_only_when_it_is_named(
    deployment: str, keys: tuple[str, ...]
) -> None:
    found = load(f"models: {{a: {{deployments: [{{{deployment}}}]}}}}").models["a"].deployments[0]
    assert tuple(map(str, found.api_keys)) == keys


def test_keys_that_are_missing_here_are_reported_and_no_error() -> None:
    config = load(GOOD)
    missing = missing_keys(config, {"OPENAI_KEY_A": "x", "GROQ_API_KEY": ""})
    assert [str(each.ref) for each in missing] == ["env:OPENAI_KEY_B", "env:GROQ_API_KEY"]
    assert str(missing[0]) == "env:OPENAI_KEY_B is not set here; needed by gpt-4o-us"
    unreadable = missing_keys(config, {}, readable=lambda path: path != "/run/secrets/vllm")
    assert "file:/run/secrets/vllm cannot be read here" in str(unreadable[2])


SECRETS = [
    "sk-proj-abcdefghijklmnop",
    "hunter2",
    "AIzaSyA1b2C3d4",
    "Bearer abc",
    "env:sk-abcdef123",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("form", ["'{}'", "['{}']", "{{'{}': 1}}", "[['{}']]"])
def test_a_literal_secret_is_refused_and_never_repeated(secret: str, form: str) -> None:
    [line] = mistakes(with_deployment(f"api_key: {form.format(secret)}"))
    assert secret.removeprefix("env:") not in line
    assert "env:NAME" in line or "environment variable" in line


@pytest.mark.parametrize(
    "line",
    [
        "weight: {}",
        "{}: 1",
        "model: {}",
        "http2: {}",
        "base_url: https://user:{}@h/v1",
        "base_url: https://h/v1?key={}",
        "headers: {{x-team: {}}}",
        "price: {{input: {}, output: 1}}",
        "api_key: env:{}",
        "price: *{}",
        "price: !{} 1",
    ],
)
def test_a_key_in_the_wrong_place_is_not_repeated_either(line: str) -> None:
    pasted = "sk-proj-abcdefghijklmnop"
    assert pasted not in "\n".join(mistakes(with_deployment(line.format(pasted))))


def test_ten_thousand_models_load_and_one_more_is_refused() -> None:
    def file(count: int) -> str:
        return "models:\n" + "".join(f"  m{i}: {{{D}}}\n" for i in range(count))

    assert len(load(file(10_000)).models) == 10_000
    assert "1 to 10_000 of them; these are 10001" in mistakes(file(10_001))[0]


def test_a_byte_order_mark_is_no_mistake() -> None:
    assert list(load(b"\xef\xbb\xbfmodels: {a: {" + D.encode() + b"}}").models) == ["a"]


def test_a_pace_for_streams_is_an_option_of_a_model() -> None:
    model = load(f"models: {{a: {{{D}, timeouts: {{min_rate: 20, rate_window: 5s}}}}}}").models["a"]
    assert (model.timeouts.min_rate, model.timeouts.rate_window_s) == (20.0, 5.0)


def test_embeddings_may_name_a_provider_s_model_that_models_does_not_describe() -> None:
    text = f"models:\n  a:\n    {D}\nembeddings: {{model: openai/text-embedding-3-small}}\n"
    config = load_text(text, source="f", environment={"OPENAI_API_KEY": "k"})
    (deployment,) = config.models["openai/text-embedding-3-small"].deployments
    assert (deployment.provider, deployment.model) == ("openai", "text-embedding-3-small")
    assert deployment.api_keys == (KeyRef("env", "OPENAI_API_KEY"),)
    assert load_text(to_yaml(config), source="f", environment={}) == config


def test_embeddings_leave_a_model_that_is_described_as_it_is() -> None:
    text = (
        f"models:\n  a:\n    {D}\n  openai/*:\n    deployments: [{{model: openai/*, id: own, api_key: []}}]\n"
        "embeddings: {model: openai/e}\n"
    )
    config = load_text(text, source="f", environment={})
    assert list(config.models) == ["a", "openai/*"]


def test_what_a_request_may_cost_is_read_exactly_and_shown_again() -> None:
    config = load(f"models: {{a: {{{D}, retry: {{max_cost: 0.000000001}}}}, b: {{{D}}}}}")
    assert config.models["a"].retry.max_cost_nano_usd == 1
    assert config.models["b"].retry.max_cost_nano_usd is None
    assert load(to_yaml(config)) == config


@pytest.mark.parametrize("amount", ["0", "-1", ".inf", ".nan", "1e-10", "lots", "2000000000"])
def test_what_a_request_may_cost_is_an_amount_of_usd(amount: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(f"models: {{a: {{{D}, retry: {{max_cost: {amount}}}}}}}")
    assert "models.a.retry.max_cost: expected USD above 0" in str(caught.value)
