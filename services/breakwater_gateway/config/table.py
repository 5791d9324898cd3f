"""Every key of `breakwater.yaml`, once. The loader, the JSON Schema and its tests are made from here."""

from typing import Any, Final, get_args

from breakwater_gateway.config import not_served
from breakwater_gateway.config.addresses import Headers, Hook, KeyRefs, Setting, Url
from breakwater_gateway.config.amounts import (
    DURATION_PATTERN,
    Duration,
    DurationOrOff,
    Number,
    NumberOr,
    Share,
    Usd,
    UsdPerMillion,
    Whole,
)
from breakwater_gateway.config.kinds import (
    Choice,
    FileName,
    InFile,
    ListOf,
    MapOf,
    OneOrMore,
    Prose,
    StaysOff,
    Switch,
    Text,
)
from breakwater_gateway.config.model import (
    AuthScheme,
    Capability,
    KeyRef,
    Limits,
    QuirkValue,
    StrategyName,
    Veto,
)
from breakwater_gateway.config.provider import PARAMS
from breakwater_gateway.config.sections import Block, Key, Section

MODELS_MAX: Final = 10_000
DEPLOYMENTS_MAX: Final = 100
PROVIDERS_MAX: Final = 1_000
NAME_MAX: Final = 512

_DAY_S: Final = 86_400
_TOKENS_MAX: Final = 1_000_000_000
_BODY_MAX: Final = Limits().body_bytes

# --- models.*.deployments[] ---------------------------------------------------------------------

MODEL: Final = Key(
    "model",
    Text("provider/model, such as openai/gpt-4o", max_length=NAME_MAX),
    "Provider and the provider's own name of the model, as in openai/gpt-4o; under a name that ends"
    " in *, openai/* passes on what the caller named.",
    required=True,
)
API_KEY: Final = Key(
    "api_key",
    KeyRefs(),
    "Where the key is, env:NAME or file:PATH, or a list of them as a pool; [] for none."
    " Default: the provider's usual variable.",
)
BASE_URL: Final = Key(
    "base_url",
    Url(),
    "Where the provider's API is, settings of params in braces; default: its public address.",
)
HEADERS: Final = Key("headers", Headers(), "Header fields sent with every call; no secrets.")
HTTP2: Final = Key("http2", Switch(), "Offer HTTP/2 in TLS; default true.")
ID: Final = Key(
    "id",
    Text("an id (printable ASCII)", max_length=NAME_MAX),
    "Unique in the whole configuration; health subjects and headers use it."
    " Default: provider/model, with -2, -3 where that repeats.",
)
WEIGHT: Final = Key("weight", Whole(0, 1_000_000), "Share of requests; default 1, 0 for none.")
ORDER: Final = Key("order", Whole(0, 1_000), "Lower is tried first; default 0.")
REGION: Final = Key(
    "region",
    Text("a region", max_length=128),
    "A label for the region; of a cloud whose URLs name one, that region.",
)
POOL: Final = Key(
    "pool", Text("a pool of workers", max_length=128), "Only workers that serve this pool take it."
)
MAX_IN_FLIGHT: Final = Key(
    "max_in_flight", Whole(1, 1_000_000), "Calls at once; default: no limit."
)
RPM: Final = Key("rpm", Whole(1, 1_000_000_000), "The provider's limit of requests a minute.")
TPM: Final = Key("tpm", Whole(1, 1_000_000_000_000), "The provider's limit of tokens a minute.")
CONTEXT_WINDOW: Final = Key("context_window", Whole(1, _TOKENS_MAX), "Tokens in and out together.")
MAX_OUTPUT: Final = Key("max_output", Whole(1, _TOKENS_MAX), "Tokens out at most.")
CAPABILITIES: Final = Key(
    "capabilities",
    ListOf[str](Choice(get_args(Capability)), "a list of capabilities", 0, 4),
    "What requests may need of it: vision, audio, tools, json. Not said: everything is tried.",
)

SETTINGS: Final[tuple[Key[str | KeyRef], ...]] = tuple(
    Key(name, Setting(param), f"{param.expected[0].upper()}{param.expected[1:]}.")
    for name, param in PARAMS.items()
)
SETTINGS_OF: Final = Key(
    "params",
    Section("params", SETTINGS),
    "What the provider's URL and way of signing need besides the key: text, env:NAME or file:PATH."
    " Default: the variables that its own tools read.",
)

PRICE_INPUT: Final = Key("input", UsdPerMillion(), "USD per million tokens in.", required=True)
PRICE_OUTPUT: Final = Key("output", UsdPerMillion(), "USD per million tokens out.", required=True)
PRICE: Final = Key(
    "price", Section("a price", (PRICE_INPUT, PRICE_OUTPUT)), "USD per million tokens."
)

DEPLOYMENT: Final = Section(
    "a deployment",
    (
        MODEL,
        API_KEY,
        ID,
        WEIGHT,
        ORDER,
        REGION,
        POOL,
        MAX_IN_FLIGHT,
        RPM,
        TPM,
        BASE_URL,
        SETTINGS_OF,
        CONTEXT_WINDOW,
        MAX_OUTPUT,
        CAPABILITIES,
        PRICE,
        HEADERS,
        HTTP2,
    ),
)

# --- models.* -----------------------------------------------------------------------------------

STRATEGY: Final = Key(
    "strategy",
    Choice(get_args(StrategyName)),
    "How the next deployment is chosen: by weight (simple-shuffle, the default), load (least-busy),"
    " latency, cost of the request, usage of rpm and tpm, or priority (order, then weight).",
)
UNSUPPORTED: Final = Key(
    "unsupported_params",
    Choice(("report", "refuse"), {}),
    "What a provider cannot express: left out and named in a header, or refused; default report.",
)
DEPLOYMENTS: Final = Key(
    "deployments",
    ListOf[Block](DEPLOYMENT, "a list of deployments", 1, DEPLOYMENTS_MAX),
    "The list of provider models behind this name.",
    required=True,
)

CONNECT: Final = Key("connect", Duration(_DAY_S), "Until the connection stands; default 5s.")
TTFT: Final = Key("ttft", Duration(_DAY_S), "Until the first token; default 10s.")
IDLE: Final = Key("idle", Duration(_DAY_S), "Between two tokens; default 30s.")
TOTAL: Final = Key("total", Duration(_DAY_S), "For the whole request; default 1m.")
MIN_RATE: Final = Key(
    "min_rate",
    Number(0, 1_000_000),
    "Characters a second that a stream must bring; slower ones are cut. Default 0: any pace will do.",
)
RATE_WINDOW: Final = Key(
    "rate_window", Duration(_DAY_S), "Over how long min_rate is taken; default 10s."
)
TIMEOUTS: Final = Key(
    "timeouts",
    Section("timeouts", (CONNECT, TTFT, IDLE, TOTAL, MIN_RATE, RATE_WINDOW)),
    "How long to wait.",
)

ATTEMPTS: Final = Key("attempts", Whole(1, 100), "Calls in all, the first included; default 3.")
BASE: Final = Key("base", Duration(3_600), "First wait, before jitter; default 250ms.")
CAP: Final = Key("cap", Duration(3_600), "Longest wait; default 8s.")
BUDGET: Final = Key("budget", Number(0, 1), "Retries per request over 10 s; default 0.2.")
JITTER: Final = Key(
    "jitter",
    Choice(("full", "plus50")),
    "Of a wait w: anywhere from 0 to w, or, plus50, from w to 1.5 w; default full.",
)
MAX_COST: Final = Key(
    "max_cost",
    Usd(),
    "USD that all calls for one request may cost together, each drawn at the most that it may cost;"
    " callers may lower it by header. Default: no bound but the budgets.",
)
RETRY: Final = Key(
    "retry",
    Section("retry", (ATTEMPTS, BASE, CAP, BUDGET, JITTER, MAX_COST)),
    "When to try again, and what a request may use in all.",
)

WINDOW: Final = Key("window", Duration(_DAY_S), "What failures are counted over; default 30s.")
MIN_REQUESTS: Final = Key(
    "min_requests", Whole(1, 1_000_000), "Fewer in the window decide nothing; default 10."
)
FAILURE_RATE: Final = Key(
    "failure_rate", Number(0, 1, above=True), "Share of failures that opens it; default 0.5."
)
CONSECUTIVE: Final = Key(
    "consecutive", Whole(1, 1_000_000), "Failures in a row that open it; default 5."
)
OPEN: Final = Key("open", Duration(_DAY_S), "First time it stays open; default 5s.")
OPEN_CAP: Final = Key("open_cap", Duration(_DAY_S), "Longest time it stays open; default 5m.")
RAMP: Final = Key(
    "ramp",
    Duration(3_600),
    "After an outage calls come back over this long, 10, 25, 50, then 100 %; default 15s.",
)
PROBE: Final = Key(
    "probe",
    Choice(("traffic", "active")),
    "How a half-open target is probed: by callers' requests, or, active, where none comes for two"
    " seconds, by a one-token call, which costs; default traffic.",
)
BREAKER: Final = Key(
    "breaker",
    Section(
        "a breaker",
        (WINDOW, MIN_REQUESTS, FAILURE_RATE, CONSECUTIVE, OPEN, OPEN_CAP, RAMP, PROBE),
    ),
    "When a deployment is left alone.",
)

_NAME: Final = r"[!-~](?:[ -~]*[!-~])?"
ON_CONTEXT_LENGTH: Final = Key(
    "on_context_length",
    Text(
        "truncate, summarize, summarize:<model>, model:<model> or fail",
        rf"(?:truncate|summarize(?::{_NAME})?|model:{_NAME}|fail)",
        NAME_MAX,
        worded=True,
        words=("truncate", "summarize", "model", "fail"),
    ),
    "A prompt that does not fit: drop the oldest turns, have a model sum them up, ask a larger model,"
    " or fail; summarize alone takes the ladder's simple model. Default fail.",
)
ON_CONTENT_FILTER: Final = Key(
    "on_content_filter",
    Text(
        "next, model:<model> or fail",
        rf"(?:next|model:{_NAME}|fail)",
        NAME_MAX,
        worded=True,
        words=("next", "model", "fail"),
    ),
    "What a provider's safety system refused: ask the next deployment, another model, or fail;"
    " default fail.",
)
ON_CUT: Final = Key(
    "on_cut",
    Choice(("partial", "continue")),
    "A stream that breaks off: ended as partial, or continued by another deployment; default partial.",
)
HEDGE_AFTER: Final = Key(
    "after",
    Text("p95 or a duration such as 2s", rf"(?:p95|{DURATION_PATTERN})", 40, worded=True),
    "When a second call is made beside one that has said nothing yet; p95 as learned. Default p95.",
)
HEDGE_MAX: Final = Key("max", Whole(1, 1), "Second calls at most; default 1.")
HEDGE: Final = Key(
    "hedge", Section("hedge", (HEDGE_AFTER, HEDGE_MAX)), "Second calls; default none."
)
LADDER: Final = Key(
    "ladder",
    ListOf[str](
        Text(
            "a rung: primary, cache, stale, simple_model:<model>, static or error",
            rf"(?:primary|cache|stale|simple_model:{_NAME}|static|error)",
            NAME_MAX,
            worded=True,
            words=("primary", "cache", "stale", "simple_model", "static", "error"),
        ),
        "a list of rungs",
        1,
        16,
    ),
    "What answers when the model's own deployments cannot, in order; default the error alone.",
)

_YEAR_S: Final = 365 * _DAY_S
EXACT: Final = Key(
    "exact",
    DurationOrOff(_YEAR_S),
    "How long an answer is given again to the same request; default 1h, off for never.",
)
STALE: Final = Key(
    "stale_if_error",
    DurationOrOff(_YEAR_S),
    "How much longer it may be given when nothing else answers; default off.",
)
SCOPE: Final = Key(
    "scope",
    Choice(("tenant", "user", "key")),
    "Who shares answers: a tenant, one user, the holders of one key; default tenant.",
)
SAMPLED: Final = Key(
    "sampled",
    Switch(),
    "Also requests that do not ask for temperature 0; default false.",
)
THRESHOLD: Final = Key(
    "threshold",
    NumberOr(0, 1, "certified"),
    "How alike two questions must be, as a cosine, or certified from labels; default 0.95.",
)
TARGET: Final = Key(
    "target",
    Number(0, 0.5, above=True),
    "Of a certified threshold: the share of hits that may be wrong; default 0.01.",
)
SEMANTIC_TTL: Final = Key(
    "ttl", Duration(_YEAR_S), "How long an answer is given to like questions; default 1h."
)
VETO: Final = Key(
    "veto",
    Choice(get_args(Veto)),
    "Differences that forbid a hit, however alike the questions are: names, negations, opposites and"
    " numbers; numbers alone; none. Default strict.",
)
MARGIN: Final = Key(
    "margin",
    Number(0, 1),
    "How much nearer the best entry must be than one with another answer; default 0.15.",
)
SHADOW: Final = Key(
    "shadow", Number(0, 1), "Share of would-be hits that are asked anyway, as labels; default 0.05."
)
SEMANTIC: Final = Key(
    "semantic",
    Section("a semantic cache", (THRESHOLD, TARGET, SEMANTIC_TTL, VETO, MARGIN, SHADOW)),
    "Answers for questions that mean the same; needs embeddings. Default none.",
)
CACHE: Final = Key(
    "cache",
    Section(
        "a cache",
        (EXACT, SEMANTIC, STALE, SCOPE, SAMPLED),
    ),
    "When an answer may be given again.",
)

# --- models.*.routes[] --------------------------------------------------------------------------

_ASKED: Final = OneOrMore(Text("a text (printable ASCII)", max_length=512), "texts", 64)
PROPERTY_NAME: Final = r"[a-z0-9][a-z0-9._-]{0,63}"
WHEN_USER: Final = Key("user", _ASKED, "Of these users.")
WHEN_ORG: Final = Key("org", _ASKED, "Of these organisations.")
WHEN_FEATURE: Final = Key("feature", _ASKED, "Of these features.")
WHEN_PRIORITY: Final = Key(
    "priority",
    OneOrMore(
        Text("critical, interactive or batch", "critical|interactive|batch", 16, worded=True),
        "priorities",
        3,
    ),
    "Of these priorities.",
)
WHEN_PROPERTY: Final = Key(
    "property",
    MapOf[tuple[str, ...]](
        _ASKED,
        "properties by name",
        Text("a property's name of a-z, 0-9 and . _ -", PROPERTY_NAME, 64),
        1,
        16,
    ),
    "With breakwater-property-NAME of one of these values.",
)
WHEN_STREAM: Final = Key("stream", Switch(), "Streamed, or not.")
TOKENS_ABOVE: Final = Key(
    "tokens_above", Whole(0, _TOKENS_MAX), "With more input tokens, as estimated."
)
TOKENS_BELOW: Final = Key(
    "tokens_below", Whole(1, _TOKENS_MAX), "With fewer input tokens, as estimated."
)
WHEN: Final = Key(
    "when",
    Section(
        "a condition",
        (
            WHEN_USER,
            WHEN_ORG,
            WHEN_FEATURE,
            WHEN_PROPERTY,
            WHEN_PRIORITY,
            WHEN_STREAM,
            TOKENS_ABOVE,
            TOKENS_BELOW,
        ),
    ),
    "All of it must hold; left out, the route takes every request.",
)
TO: Final = Key("to", Text("a logical model", max_length=NAME_MAX), "Another logical model.")
ONLY: Final = Key(
    "deployments",
    ListOf[str](
        Text("an id (printable ASCII)", max_length=NAME_MAX), "a list of ids", 1, DEPLOYMENTS_MAX
    ),
    "Only these of the model's own deployments, by id.",
)
ONLY_REGION: Final = Key(
    "region",
    Text("a region", max_length=128),
    "Only deployments of this region; property.NAME: of the region that the request's property names.",
)
ROUTE: Final = Section("a route", (WHEN, TO, ONLY, ONLY_REGION))
ROUTES: Final = Key(
    "routes",
    ListOf[Block](ROUTE, "a list of routes", 0, 100),
    "By properties of the request to another model or to some deployments; the first that fits.",
)

LOGICAL_MODEL: Final = Section(
    "a model",
    (
        *(STRATEGY, ROUTES, UNSUPPORTED, DEPLOYMENTS, TIMEOUTS, RETRY, BREAKER),
        *(ON_CONTEXT_LENGTH, ON_CONTENT_FILTER, ON_CUT, HEDGE, LADDER, CACHE),
    ),
    not_served.KEYS.get("models.*", {}),
)

# --- providers.* --------------------------------------------------------------------------------

WIRE: Final = Key(
    "wire",
    Choice(not_served.SERVED_WIRES, not_served.VALUES.get("providers.*.wire", {})),
    "The dialect it speaks; default: the catalogue's, else openai.",
)
AUTH_SCHEME: Final = Key(
    "auth",
    Choice(get_args(AuthScheme)),
    "Where the key goes: after Bearer, in a header of that name, in the query as key; sigv4 signs with"
    " the AWS credentials of params. Default: what the dialect's hosts take.",
)


def _flag(name: str, text: str) -> Key[bool]:
    return Key(name, Switch(), text)


def _word(name: str, text: str) -> Key[str]:
    return Key(name, Text("a name", r"[A-Za-z0-9][A-Za-z0-9._-]*", 64), text)


def _one_of(name: str, values: tuple[str, ...], text: str) -> Key[str]:
    return Key(name, Choice(values), text)


_PARAMETERS: Final = ListOf[str](
    Text("a parameter's name", r"[A-Za-z_][A-Za-z0-9_.]*", 64), "a list of parameters", 0, 64
)

QUIRK_KEYS: Final[tuple[Key[Any], ...]] = (
    _word("provider", "A provider of the catalogue whose facts apply; default: this one."),
    # Of hosts that speak OpenAI's dialect.
    _one_of("max_tokens_field", ("max_tokens", "max_completion_tokens"), "How it names the limit."),
    _flag("developer_role", "It knows developer messages."),
    _one_of("reasoning", ("effort", "object", "thinking", "none"), "How reasoning is asked for."),
    _one_of(
        "reasoning_field",
        ("reasoning_content", "reasoning", "parts", "details"),
        "Where earlier reasoning goes back in.",
    ),
    _flag("thoughts_beside", "It counts reasoning tokens beside the completion's."),
    Key("drop", _PARAMETERS, "Parameters that it refuses: taken out and reported."),
    Key("only", _PARAMETERS, "The only parameters that it takes."),
    _flag("top_k", "It takes top_k."),
    _flag("stream_options", "It takes stream_options."),
    _word("tool_choice_required", "How it spells tool_choice required."),
    _flag("allowed_tools", "It takes a tool_choice of allowed_tools."),
    _flag("json_schema", "It takes a response_format of json_schema."),
    _one_of(
        "document_url",
        ("document_url", "file_url", "file_data"),
        "How it takes a URL of a document.",
    ),
    _flag("video_url", "It takes videos by URL."),
    _flag("tool_images", "Images may stand in tool results."),
    _flag("text_lists", "Text may come as a list of parts."),
    _flag("short_ids", "Its tool call ids are nine letters or digits."),
    _flag("signatures", "Its tool calls carry thought signatures."),
    _flag("thinking_blocks", "Its messages carry thinking_blocks."),
    # Of hosts that speak Anthropic's dialect.
    _one_of("host", ("vertex", "bedrock"), "Whose paths and versions its Anthropic API has."),
    _word("anthropic_version", "The version of the body, on hosts that want one there."),
    _one_of("thinking", ("none", "budget", "both", "adaptive", "level"), "How its models think."),
    _one_of("sampling", ("all", "one", "none"), "Which of temperature and top_p it takes."),
    _flag("structured", "It takes schemas for its output."),
    _flag("system_turns", "It takes system messages within the conversation."),
    Key("max_output_default", Whole(1, _TOKENS_MAX), "max_tokens where the caller gave none."),
    # Of hosts that speak Gemini's dialect.
    _flag("vertex", "It has Vertex AI's paths."),
    _flag("openapi_schema", "It knows parameters and responseSchema only."),
    _flag("call_ids", "Calls of functions may have ids."),
)
QUIRKS: Final = Key(
    "quirks", Section("quirks", QUIRK_KEYS), "What sets the host apart from its dialect."
)
PROVIDER: Final = Section(
    "a provider",
    (WIRE, BASE_URL, API_KEY, AUTH_SCHEME, SETTINGS_OF, QUIRKS, HEADERS, HTTP2),
)


def settings_of(block: Block) -> dict[str, str | KeyRef]:
    """What the `params` of a block say."""
    section = block.get(SETTINGS_OF)
    if section is None:
        return {}
    values = {key.name: section.get(key) for key in SETTINGS}
    return {name: value for name, value in values.items() if value is not None}


def quirks_of(block: Block) -> dict[str, QuirkValue]:
    """What a block of quirks says."""
    found: dict[str, QuirkValue] = {}
    for key in QUIRK_KEYS:
        value = block.get(key)
        if isinstance(value, tuple):
            found[key.name] = tuple(each for each in value if isinstance(each, str))
        elif value is not None:
            found[key.name] = value
    return found


# --- budgets[] and rate_limits[] ----------------------------------------------------------------

_ACCOUNT: Final = r"(?:global|(?:%s):[!-~](?:[ -~]*[!-~])?)"
ACCOUNT: Final = Key(
    "account",
    Text(
        "an account such as user:*, org:acme or global",
        _ACCOUNT % "key|user|team|feature|org|provider",
        256,
        worded=True,
    ),
    "Whose budget: key, user, team, feature, org or provider with an id, or * for each of them; or"
    " global.",
    required=True,
)
USD: Final = Key("usd", Usd(), "The hard limit in USD.")
TOKENS: Final = Key("tokens", Whole(1, 10**15), "The hard limit in tokens, in and out together.")
PER: Final = Key(
    "per",
    Text(
        "hour, day, week, month, or a window such as rolling 24h",
        rf"(?:hour|day|week|month|rolling (?!0){DURATION_PATTERN})",
        80,
        worded=True,
    ),
    "The period: a calendar's hour, day, week or month, or a window such as rolling 24h.",
    required=True,
)
TIMEZONE: Final = Key(
    "timezone",
    Text("a time zone such as Europe/Berlin", r"[A-Z][A-Za-z0-9_+/-]*", 64, worded=True),
    "Whose midnight begins a period; default UTC.",
)
SOFT: Final = Key(
    "soft",
    ListOf[int](Share(), "a list of shares", 0, 16),
    "Shares of the limit at which an event is published; default [0.8].",
)
ACTION: Final = Key(
    "action",
    Choice(("refuse", "ladder", "clamp")),
    "At the limit: refuse, walk the ladder, or first lower max tokens to what is left; default ladder.",
)
WEBHOOK: Final = Key[str | KeyRef](
    "webhook", Hook(), "Called at each crossing; an address, env:NAME or file:PATH."
)
BUDGET_OF_ACCOUNT: Final = Section(
    "a budget", (ACCOUNT, USD, TOKENS, PER, TIMEZONE, SOFT, ACTION, WEBHOOK)
)

RATED: Final = Key(
    "account",
    Text(
        "an account such as key:*, model:main or global",
        _ACCOUNT % "key|user|team|feature|org|model",
        NAME_MAX,
        worded=True,
    ),
    "Whose rate: key, user, team, feature, org or model with an id, or * for each of them; or global.",
    required=True,
)
REQUESTS: Final = Key("requests", Whole(1, 1_000_000_000), "Requests a minute.")
RATE_TOKENS: Final = Key("tokens", Whole(1, 10**12), "Tokens a minute, in and out together.")
CONCURRENT: Final = Key("concurrent", Whole(1, 1_000_000), "Requests in flight at once.")
RATE_LIMIT: Final = Section("a rate limit", (RATED, REQUESTS, RATE_TOKENS, CONCURRENT))

# --- the rest -----------------------------------------------------------------------------------

AUTH_MODE: Final = Key(
    "mode",
    Choice(("open", "keys")),
    "Who may ask; open: everyone who reaches the edge (loopback only, unless --allow-open); keys:"
    " whoever shows a virtual key (`breakwater keys create`). Default open.",
)
AUTH_NATS: Final = Key(
    "nats",
    Choice(("trust", "key")),
    "Callers on NATS under `mode: keys`; trust: whom the server's permissions let publish on a"
    " tenant's subject is that tenant; key: they show a key too. Default trust.",
)
LOG: Final = Key("log", Choice(("json", "console")), "The form of the log; default json.")
LEVEL: Final = Key(
    "level",
    Choice(("debug", "info", "warning", "error")),
    "The least that is logged; default info.",
)
OTLP: Final = Key[str | KeyRef](
    "otlp",
    Hook(),
    "Where traces go: the base of an OTLP/HTTP endpoint, env:NAME or file:PATH of one; /v1/traces is"
    " added. Nothing is exported while the variable is not set. Default: nowhere.",
)
RECORD_CONTENT: Final = Key(
    "record_content",
    StaysOff(not_served.VALUES["telemetry.record_content"]),
    "Prompts and answers are never recorded: false.",
)
TRACE_SAMPLE: Final = Key(
    "sample",
    Number(0, 1),
    "Share of the traces that is exported besides errors, degraded and slow ones; default 1.",
)
TRACE_SLOW: Final = Key(
    "slow", Duration(_DAY_S), "A request that took as long is always exported; default 10s."
)
TRACES: Final = Key(
    "traces",
    Section("traces", (TRACE_SAMPLE, TRACE_SLOW)),
    "Which traces are exported over OTLP.",
)
BODY_BYTES: Final = Key("body_bytes", Whole(1_024, _BODY_MAX), "Largest request body.")
ANSWER_BYTES: Final = Key(
    "answer_bytes", Whole(1_024, _BODY_MAX), "Largest answer, and largest event of a stream."
)
CONNECTIONS: Final = Key("connections", Whole(1, 1_000_000), "HTTP connections of an edge.")
IN_FLIGHT: Final = Key(
    "in_flight", Whole(1, 1_000_000), "Requests a router, and attempts a worker, hold at once."
)
CACHE_BYTES: Final = Key(
    "cache_bytes",
    Whole(1_048_576, 1_099_511_627_776),
    "Answers each router keeps in memory; default 64 MiB.",
)
CACHE_STORE_BYTES: Final = Key(
    "cache_store_bytes",
    Whole(1_048_576, 1_099_511_627_776),
    "Answers the cluster keeps for all routers; default 256 MiB.",
)
CACHE_INDEX_BYTES: Final = Key(
    "cache_index_bytes",
    Whole(1_048_576, 1_099_511_627_776),
    "What each owner of the semantic cache keeps in memory; default 256 MiB.",
)
CACHE_ANSWER_BYTES: Final = Key(
    "cache_answer_bytes", Whole(1_024, _BODY_MAX), "The largest answer that is kept; default 1 MiB."
)

MODELS: Final = Key(
    "models",
    MapOf[Block](
        LOGICAL_MODEL,
        "models by name",
        Text("a model's name (printable ASCII; * only at the end)", max_length=NAME_MAX),
        1,
        MODELS_MAX,
    ),
    "The logical models: all that an application ever sees. A name ending in * is a prefix.",
    required=True,
)
PROVIDERS: Final = Key(
    "providers",
    MapOf[Block](
        PROVIDER,
        "providers by name",
        Text("a provider's name (letters, digits and . _ -)", r"[A-Za-z0-9][A-Za-z0-9._-]*", 64),
        0,
        PROVIDERS_MAX,
    ),
    "Hosts of your own, or settings for one of the catalogue.",
)
AUTH: Final = Key("auth", Section("auth", (AUTH_MODE, AUTH_NATS)), "Who may ask.")
TELEMETRY: Final = Key(
    "telemetry",
    Section(
        "telemetry",
        (LOG, LEVEL, OTLP, TRACES, RECORD_CONTENT),
        not_served.KEYS.get("telemetry", {}),
    ),
    "What is logged, and where traces go.",
)
LIMITS: Final = Key(
    "limits",
    Section(
        "limits",
        (
            BODY_BYTES,
            ANSWER_BYTES,
            CONNECTIONS,
            IN_FLIGHT,
            CACHE_BYTES,
            CACHE_STORE_BYTES,
            CACHE_INDEX_BYTES,
            CACHE_ANSWER_BYTES,
        ),
    ),
    "Bounds on what comes from outside.",
)

EMBEDDINGS_MODEL: Final = Key(
    "model",
    Text("a model that makes embeddings", max_length=NAME_MAX),
    "A model of this configuration, or provider/model; asked like any caller would.",
)
EMBEDDINGS_LOCAL: Final = Key(
    "local",
    Text("minilm or a folder", max_length=4_096),
    "minilm, or a folder with a MiniLM's files: in a process of the cache's own.",
)
EMBEDDINGS: Final = Key(
    "embeddings",
    Section("embeddings", (EMBEDDINGS_MODEL, EMBEDDINGS_LOCAL)),
    "What turns questions into vectors, for semantic caches and static answers.",
)
BUDGETS: Final = Key(
    "budgets",
    ListOf[Block](BUDGET_OF_ACCOUNT, "a list of budgets", 0, 10_000),
    "Hard limits of money or tokens, never exceeded.",
)
RATE_LIMITS: Final = Key(
    "rate_limits",
    ListOf[Block](RATE_LIMIT, "a list of rate limits", 0, 10_000),
    "Requests and tokens a minute, and requests at once.",
)

# --- static answers -----------------------------------------------------------------------------

ANSWERS_MAX: Final = 2_000
QUESTION: Final = Prose("a question", 1_000)
QUESTIONS: Final = Key(
    "questions",
    ListOf[str](QUESTION, "a list of questions", 1, 50),
    "Ways to ask for it.",
    required=True,
)
ANSWER: Final = Key("answer", Prose("an answer", 16_384), "What is answered.", required=True)
ANSWERS: Final = ListOf[Block](
    Section("a static answer", (QUESTIONS, ANSWER)),
    "a list of questions and answers",
    1,
    ANSWERS_MAX,
)
STATIC_ANSWERS: Final = Key[tuple[Block | None, ...] | FileName](
    "static_answers",
    InFile(ANSWERS, "a YAML file of questions and answers"),
    "Answers of the rung static: a list of {questions, answer}, or the file that holds it.",
)
STATIC_THRESHOLD: Final = Key(
    "static_threshold",
    Number(0, 1, above=True),
    "The least score of words in common, 0 to 1, at which a question counts as asked; default 0.6.",
)
STATIC_SIMILARITY: Final = Key(
    "static_similarity",
    Number(0, 1, above=True),
    "The same for meaning, where there are embeddings; default 0.85, measured with minilm.",
)
STATIC_DEFAULT: Final = Key(
    "static_default",
    Prose("a sentence", 16_384),
    "What the rung static says when no answer fits; default: then the rung is left out.",
)

ROOT: Final = Section(
    "the configuration",
    (
        *(MODELS, PROVIDERS, BUDGETS, RATE_LIMITS, AUTH, TELEMETRY, LIMITS),
        *(EMBEDDINGS, STATIC_ANSWERS, STATIC_THRESHOLD, STATIC_SIMILARITY, STATIC_DEFAULT),
    ),
    not_served.KEYS.get("", {}),
)
