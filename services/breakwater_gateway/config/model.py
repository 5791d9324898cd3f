"""The configuration as values: frozen structs, decoded once, durations in seconds, money in nano-USD.

`load.py` makes them from YAML and reports every mistake with its path and line; nothing else parses.
"""

from typing import Literal

from msgspec import Struct

StrategyName = Literal["simple-shuffle", "least-busy", "latency", "cost", "usage", "priority"]
Capability = Literal["vision", "audio", "tools", "json"]
"""What a request may need of a deployment: pictures or sound as input, tools, structured output."""
Wire = Literal[
    "openai",
    "responses",
    "anthropic",
    "gemini",
    "vertex",
    "azure",
    "bedrock",
    "cohere",
    "ollama",
    "mistral",
]
"""The dialect of a host, and how its URLs are built: `vertex` is Gemini's and `azure` OpenAI's elsewhere."""

AuthScheme = Literal[
    "bearer",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "api-subscription-key",
    "query",
    "sigv4",
    "none",
]
"""Where a key goes: after `Bearer`, bare in the header of that name, or in the query as `key`. `sigv4` signs
with AWS credentials, and is `bearer` where a deployment has a key; `none` sends no key at all."""

ProbeBy = Literal["traffic", "active"]
"""Who probes a half-open target: a request of a caller's, or, where none comes, a one-token call of ours."""

QuirkValue = bool | int | str | tuple[str, ...]


class Price(Struct, frozen=True):
    """Nano-USD per token: 1 USD per million tokens is 1,000."""

    input: int
    output: int


class KeyRef(Struct, frozen=True):
    """Where a secret is: `env:NAME` or `file:PATH`. Resolved only in the actor that uses it."""

    source: Literal["env", "file"]
    name: str

    def __str__(self) -> str:
        return f"{self.source}:{self.name}"


class Deployment(Struct, frozen=True):
    """One provider's model behind a logical name."""

    id: str
    """Unique in the whole configuration; health subjects and headers use it."""
    provider: str
    model: str
    """The provider's own name for it. A `*` at its end stands for what the caller's name adds to the logical
    model's prefix: `claude-*` behind `claude-*`, `*` behind `openai/*`."""
    wire: Wire
    base_url: str
    """Without a trailing slash; paths such as `/chat/completions` are added. `{region}` and the like are
    filled from `params` where the call is made."""
    api_keys: tuple[KeyRef, ...] = ()
    """The pool; empty for hosts that want no key."""
    weight: int = 1
    order: int = 0
    region: str = ""
    pool: str = ""
    """Only workers that serve this pool take it; empty: any worker."""
    max_in_flight: int | None = None
    rpm: int | None = None
    tpm: int | None = None
    context_window: int | None = None
    max_output: int | None = None
    capabilities: tuple[Capability, ...] | None = None
    """None: not said, so nothing is held against it."""
    price: Price | None = None
    http2: bool = True
    """Offer HTTP/2 in TLS's ALPN; False keeps to HTTP/1.1."""
    headers: tuple[tuple[str, str], ...] = ()
    """Sent with every call to this host."""
    auth: AuthScheme = "bearer"
    params: tuple[tuple[str, str | KeyRef], ...] = ()
    """By name (`provider.PARAMS`): what the base URL and the scheme need besides the key, as text or as a
    reference; a reference to an optional one may lead nowhere."""
    quirks: tuple[tuple[str, QuirkValue], ...] = ()
    """What sets the host apart from its dialect: what the catalogue knows, and the file's own on top."""

    def provider_model(self, asked: str, *, name: str) -> str:
        """What the provider is asked for when a caller named `asked` and it matched the logical `name`."""
        if not self.model.endswith("*"):
            return self.model
        added = asked[len(name) - 1 :] if name.endswith("*") else asked
        return self.model[:-1] + added


class Timeouts(Struct, frozen=True):
    connect_s: float = 5.0
    first_token_s: float = 10.0
    idle_s: float = 30.0
    total_s: float = 60.0
    min_rate: float = 0.0
    """Characters a second that a stream must bring over each window; 0: any pace will do."""
    rate_window_s: float = 10.0


Jitter = Literal["full", "plus50"]
"""How a wait is spread: `full` anywhere from nothing to all of it; `plus50` all of it and up to half more."""


class RetryPolicy(Struct, frozen=True):
    attempts: int = 3
    """Calls in all, the first included."""
    base_s: float = 0.25
    cap_s: float = 8.0
    budget: float = 0.2
    """Retries allowed per request over 10 s, besides one a second."""
    jitter: Jitter = "full"
    max_cost_nano_usd: int | None = None
    """What all calls for one request may cost together; None: only budgets bound it."""


class BreakerPolicy(Struct, frozen=True):
    window_s: float = 30.0
    min_requests: int = 10
    failure_rate: float = 0.5
    consecutive: int = 5
    open_s: float = 5.0
    open_cap_s: float = 300.0
    ramp_s: float = 15.0
    """After an outage 10, 25, then 50 % of the calls come back over this long."""
    probe: ProbeBy = "traffic"


Veto = Literal["strict", "numbers", "off"]
"""Which differences between two questions keep one's answer from the other, however near they are."""


class Semantic(Struct, frozen=True):
    """When a question is given the answer of another one that means the same."""

    threshold: float | None = 0.95
    """Cosine, less what disagreeing neighbours take away. None: certified from labels; until enough of them
    are there, nothing is served."""
    target: float = 0.01
    """Of a certified threshold: the share of hits that may be wrong."""
    ttl_s: float = 3_600.0
    veto: Veto = "strict"
    margin: float = 0.15
    """How much nearer the best entry must be than the nearest one whose answer differs."""
    shadow: float = 0.05
    """Share of would-be hits that are asked anyway, to label them."""


class Embeddings(Struct, frozen=True):
    """What turns a text into a vector: a logical model of the gateway's own, or one in a process here."""

    model: str = ""
    local: str = ""
    """`minilm`, or a folder with `model.safetensors` and `tokenizer.json` of the same architecture."""

    @property
    def id(self) -> str:
        """What vectors, labels and certificates say that they are of."""
        return f"model:{self.model}" if self.model else f"local:{self.local}"


class OnContextLength(Struct, frozen=True):
    """What becomes of a prompt that does not fit: shortened, asked of a larger model, or refused."""

    do: Literal["truncate", "summarize", "model", "fail"] = "fail"
    model: str = ""
    """Of `summarize`: who writes the summary; of `model`: who is asked instead."""


class OnContentFilter(Struct, frozen=True):
    """What becomes of a request that a provider's safety system refused."""

    do: Literal["next", "model", "fail"] = "fail"
    model: str = ""


class Hedge(Struct, frozen=True):
    """A second call beside one that is slow to say its first token."""

    after_s: float | None = None
    """None: the 95th percentile of the target's first tokens, as learned."""
    max: int = 1


RungKind = Literal["cache", "stale", "simple_model", "static", "error"]


class Rung(Struct, frozen=True):
    """One step down from the model's own deployments."""

    kind: RungKind
    model: str = ""
    """Of `simple_model`."""


class StaticAnswer(Struct, frozen=True):
    """A written answer, and questions that it answers."""

    questions: tuple[str, ...]
    answer: str


class StaticAnswers(Struct, frozen=True):
    """What can be said without any provider."""

    entries: tuple[StaticAnswer, ...] = ()
    threshold: float = 0.6
    """The least score of words in common, in 0…1, at which a question counts as asked."""
    similarity: float = 0.85
    """The least score of meaning, in 0…1, where there are embeddings. The default served at most 2 % wrong
    answers among those it gave (`ops/bench/written.py`)."""
    default: str = ""
    """Said when no answer fits; empty: then there is none."""


CacheScope = Literal["tenant", "user", "key"]


class CachePolicy(Struct, frozen=True):
    """When an answer of this model may be given again."""

    exact_s: float = 3_600.0
    """How long the answer to the same request, to the byte, is fresh; 0: never kept."""
    semantic: Semantic | None = None
    stale_if_error_s: float = 0.0
    """How much longer it may be served when the model cannot be reached."""
    scope: CacheScope = "tenant"
    """Who shares answers: all of a tenant, one user, or the holders of one key."""
    sampled: bool = False
    """Also answers to requests that do not ask for `temperature: 0`: each call might have answered
    otherwise."""


class Condition(Struct, frozen=True):
    """When a route is taken: all of these hold; empty and None ask for nothing."""

    users: tuple[str, ...] = ()
    """Any of them; `orgs`, `features` and `priorities` alike."""
    orgs: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    priorities: tuple[str, ...] = ()
    properties: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """By name, any of the values."""
    stream: bool | None = None
    tokens_above: int | None = None
    """Of input, as estimated."""
    tokens_below: int | None = None


class Route(Struct, frozen=True):
    """Where requests go that meet the condition: to another logical model, or to some deployments only."""

    when: Condition = Condition()
    to: str = ""
    deployments: tuple[str, ...] = ()
    """Ids; empty: all."""
    region: str = ""
    region_property: str = ""
    """The property of the request that names the region; without it the route is not taken."""


class Model(Struct, frozen=True):
    """A logical model: all that an application ever sees. A name ending in `*` is a prefix match."""

    name: str
    deployments: tuple[Deployment, ...]
    strategy: StrategyName = "simple-shuffle"
    routes: tuple[Route, ...] = ()
    """The first that fits is taken; none fits: all deployments."""
    unsupported_params: Literal["report", "refuse"] = "report"
    """What a provider cannot express is left out and named on the answer, or refused."""
    timeouts: Timeouts = Timeouts()
    retry: RetryPolicy = RetryPolicy()
    breaker: BreakerPolicy = BreakerPolicy()
    on_context_length: OnContextLength = OnContextLength()
    on_content_filter: OnContentFilter = OnContentFilter()
    on_cut: Literal["partial", "continue"] = "partial"
    """A stream that broke off is ended as partial, or goes on from another deployment."""
    hedge: Hedge | None = None
    ladder: tuple[Rung, ...] = ()
    """The rungs as written, tried in order when nothing of the model's own answers; empty: the error alone."""
    cache: CachePolicy = CachePolicy()


class Auth(Struct, frozen=True):
    mode: Literal["open", "keys"] = "open"
    """`keys`: over HTTP nobody is served without a virtual key."""
    nats: Literal["trust", "key"] = "trust"
    """Of callers on NATS under `keys`: whom the server lets publish on a tenant's subject is the tenant, or
    they too must show a key."""


class Telemetry(Struct, frozen=True):
    log: Literal["json", "console"] = "json"
    level: Literal["debug", "info", "warning", "error"] = "info"
    otlp: str | KeyRef = ""
    """Where traces are sent: the base of an OTLP/HTTP endpoint, or where that stands; empty: nowhere."""
    trace_sample: float = 1.0
    """Share of the traces that is exported where nothing is remarkable; the remarkable ones always are."""
    trace_slow_s: float = 10.0
    """A request that took as long is remarkable."""


class Limits(Struct, frozen=True):
    """Bounds on what comes from outside."""

    body_bytes: int = 8 * 1024 * 1024 - 65536
    answer_bytes: int = 8 * 1024 * 1024 - 65536
    """Of a non-streamed provider answer, and of one streamed event."""
    connections: int = 10_000
    in_flight: int = 4_096
    """Requests a router, and attempts a worker, hold at once."""
    cache_bytes: int = 64 * 1024 * 1024
    """Answers that each router keeps in memory."""
    cache_store_bytes: int = 256 * 1024 * 1024
    """Answers that the cluster keeps for all routers, in the bucket `bw_cache`."""
    cache_index_bytes: int = 256 * 1024 * 1024
    """What each owner of the semantic cache keeps in memory."""
    cache_answer_bytes: int = 1024 * 1024
    """The largest answer that is kept."""


Scope = Literal["key", "user", "team", "feature", "org", "provider", "global"]
"""What an account of the books belongs to."""
Unit = Literal["nano_usd", "tokens"]
Per = Literal["hour", "day", "week", "month", "rolling"]


class Budget(Struct, frozen=True):
    """A hard limit of money or tokens for each period of an account."""

    scope: Scope
    id: str
    """`*`: each one of this scope that has no budget of its own of the same unit and period; empty: global."""
    unit: Unit
    hard: int
    """Nano-USD or tokens."""
    per: Per
    rolling_s: int = 0
    """Length of a rolling window in seconds; 0 for calendar periods."""
    timezone: str = "UTC"
    """Whose midnight begins a calendar period; an IANA name."""
    soft: tuple[int, ...] = (800_000,)
    """Ascending, in millionths of the limit: one event at each crossing."""
    action: Literal["refuse", "ladder", "clamp"] = "ladder"
    """At the limit: refuse at once, walk the model's ladder, or first lower max tokens to what is left."""
    webhook: str | KeyRef = ""
    """Told of each crossing; the address, or where it is."""


class RateLimit(Struct, frozen=True):
    """Bounds of the whole cluster on an account's rate; at least one of them is given."""

    scope: Literal["key", "user", "team", "feature", "org", "model", "global"]
    id: str
    requests: int | None = None
    """A minute."""
    tokens: int | None = None
    """A minute, in and out together."""
    concurrent: int | None = None
    """Requests in flight."""


class Config(Struct, frozen=True):
    models: dict[str, Model]
    """By logical name, in the file's order."""
    auth: Auth = Auth()
    telemetry: Telemetry = Telemetry()
    limits: Limits = Limits()
    embeddings: Embeddings | None = None
    budgets: tuple[Budget, ...] = ()
    rate_limits: tuple[RateLimit, ...] = ()
    static_answers: StaticAnswers = StaticAnswers()
    simulator: bool = False
    """True when the default configuration points at the built-in simulator."""

    def model(self, name: str) -> Model | None:
        """Exact name first, then the longest prefix pattern (`openai/*`)."""
        found = self.models.get(name)
        if found is not None and not found.name.endswith("*"):
            return found
        best: Model | None = None
        for pattern, model in self.models.items():
            if (
                pattern.endswith("*")
                and name.startswith(pattern[:-1])
                and len(name) >= len(pattern)
                and (best is None or len(pattern) > len(best.name))
            ):
                best = model
        return best

    def deployment(self, id_: str) -> Deployment | None:
        for model in self.models.values():
            for deployment in model.deployments:
                if deployment.id == id_:
                    return deployment
        return None
