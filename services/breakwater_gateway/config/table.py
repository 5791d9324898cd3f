"""Every key of `breakwater.yaml`, once. The loader, the JSON Schema and its tests are made from here."""

from typing import Final

from breakwater_gateway.config import not_served
from breakwater_gateway.config.kinds import (
    Block,
    Choice,
    Duration,
    Headers,
    Key,
    KeyRefs,
    ListOf,
    MapOf,
    Number,
    Section,
    Switch,
    Text,
    Url,
    UsdPerMillion,
    Whole,
)
from breakwater_gateway.config.model import Limits

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
    "base_url", Url(), "Where the provider's API is; default: its public address."
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
REGION: Final = Key("region", Text("a region", max_length=128), "A label for the region.")
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
        CONTEXT_WINDOW,
        MAX_OUTPUT,
        PRICE,
        HEADERS,
        HTTP2,
    ),
)

# --- models.* -----------------------------------------------------------------------------------

STRATEGY: Final = Key(
    "strategy",
    Choice(("simple-shuffle", "least-busy"), not_served.VALUES.get("models.*.strategy", {})),
    "How the next deployment is chosen; default simple-shuffle.",
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
TIMEOUTS: Final = Key(
    "timeouts", Section("timeouts", (CONNECT, TTFT, IDLE, TOTAL)), "How long to wait."
)

ATTEMPTS: Final = Key("attempts", Whole(1, 100), "Calls in all, the first included; default 3.")
BASE: Final = Key("base", Duration(3_600), "First wait, before jitter; default 250ms.")
CAP: Final = Key("cap", Duration(3_600), "Longest wait; default 8s.")
BUDGET: Final = Key("budget", Number(0, 1), "Retries per request over 10 s; default 0.2.")
RETRY: Final = Key("retry", Section("retry", (ATTEMPTS, BASE, CAP, BUDGET)), "When to try again.")

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
BREAKER: Final = Key(
    "breaker",
    Section("a breaker", (WINDOW, MIN_REQUESTS, FAILURE_RATE, CONSECUTIVE, OPEN, OPEN_CAP)),
    "When a deployment is left alone.",
)

LOGICAL_MODEL: Final = Section(
    "a model",
    (STRATEGY, DEPLOYMENTS, TIMEOUTS, RETRY, BREAKER),
    not_served.KEYS.get("models.*", {}),
)

# --- providers.* --------------------------------------------------------------------------------

WIRE: Final = Key(
    "wire",
    Choice(("openai",), not_served.VALUES.get("providers.*.wire", {})),
    "The dialect it speaks; default openai.",
)
PROVIDER: Final = Section("a provider", (WIRE, BASE_URL, API_KEY, HEADERS, HTTP2))

# --- the rest -----------------------------------------------------------------------------------

AUTH_MODE: Final = Key(
    "mode",
    Choice(("open",), not_served.VALUES.get("auth.mode", {})),
    "Who may ask; open: everyone who reaches the edge.",
)
LOG: Final = Key("log", Choice(("json", "console")), "The form of the log; default json.")
LEVEL: Final = Key(
    "level",
    Choice(("debug", "info", "warning", "error")),
    "The least that is logged; default info.",
)
BODY_BYTES: Final = Key("body_bytes", Whole(1_024, _BODY_MAX), "Largest request body.")
ANSWER_BYTES: Final = Key(
    "answer_bytes", Whole(1_024, _BODY_MAX), "Largest answer, and largest event of a stream."
)
CONNECTIONS: Final = Key("connections", Whole(1, 1_000_000), "HTTP connections of an edge.")
IN_FLIGHT: Final = Key(
    "in_flight", Whole(1, 1_000_000), "Requests a router, and attempts a worker, hold at once."
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
AUTH: Final = Key("auth", Section("auth", (AUTH_MODE,)), "Who may ask.")
TELEMETRY: Final = Key(
    "telemetry",
    Section("telemetry", (LOG, LEVEL), not_served.KEYS.get("telemetry", {})),
    "What is logged.",
)
LIMITS: Final = Key(
    "limits",
    Section("limits", (BODY_BYTES, ANSWER_BYTES, CONNECTIONS, IN_FLIGHT)),
    "Bounds on what comes from outside.",
)

ROOT: Final = Section(
    "the configuration", (MODELS, PROVIDERS, AUTH, TELEMETRY, LIMITS), not_served.KEYS.get("", {})
)
