"""Facts: what happened, in the past tense, published once by whoever owns the state.

Events carry CloudEvents headers in binary mode; no prompt, answer or secret is in any of them.
`at` is Unix time in seconds. Fields are only ever added, with defaults.
"""

from typing import Literal

from msgspec import Struct

from breakwater_protocol.chat import Usage

BreakerState = Literal["closed", "open", "half_open"]
BudgetKind = Literal["grant", "soft", "hard", "settled", "breach", "reset"]


class Evidence(Struct, frozen=True, omit_defaults=True):
    """What a breaker decided on: calls, failures and slow calls in its window, failures in a row."""

    window: int = 0
    failures: int = 0
    slow: int = 0
    consecutive: int = 0


class BreakerChanged(Struct, frozen=True):
    target: str
    """A deployment's id; `<deployment>#key2` is the second key of its pool; `@<provider>/<region>` the provider in
    that region, for all deployments that are called there."""
    state: BreakerState
    cause: str
    """`failure_rate`, `consecutive`, `slow_rate`, `ramp_failed`, `probe_failed`, `probe_succeeded`, `open_elapsed`,
    `probe_expired`, `resumed` (the leader met a later epoch than its own), `operator`; of a provider-region also
    `several_deployments`, of a key `key_refused` and `quota_exhausted`."""
    evidence: Evidence
    until: float
    """When an open target may be probed; 0 when closed."""
    epoch: int
    """Grows with every change; results of calls permitted under another epoch are ignored."""
    previous: BreakerState
    at: float
    ramp_until: float = 0.0
    """Closed after an outage: until then a share of the calls only (`views.share`); 0: all of them."""


class RateLimits(Struct, frozen=True, omit_defaults=True):
    """What a provider said of its limits with an answer; None: not said. Resets are seconds from then on."""

    requests: int | None = None
    """The whole limit of a window."""
    requests_left: int | None = None
    requests_reset_s: float | None = None
    tokens: int | None = None
    tokens_left: int | None = None
    tokens_reset_s: float | None = None


class AttemptFinished(Struct, frozen=True, omit_defaults=True):
    """One provider call. `outcome` in the subject: `ok`, `partial`, `cancelled`, or the failure's kind."""

    request: str
    attempt: int
    tenant: str
    model: str
    deployment: str
    target: str
    provider: str
    worker: str
    outcome: str
    at: float
    epoch: int = 0
    failure: str = ""
    """The failure's kind; on a partial answer why it broke off."""
    against_target: bool = False
    """The breaker counts it as a failure."""
    status: int | None = None
    retry_after_s: float | None = None
    first_token_ms: float | None = None
    duration_ms: float = 0.0
    usage: Usage | None = None
    metered: bool = False
    """`usage` is the worker's own count of a call that was cut: its provider never told."""
    cost_nano_usd: int | None = None
    api: str = "chat"
    stream: bool = False
    rung: str = "primary"
    user: str = ""
    org: str = ""
    feature: str = ""
    properties: dict[str, str] = {}
    message: str = ""
    in_stall: bool = False
    """Timed out while the worker's own event loop was stalled: says nothing about the target."""
    limits: RateLimits | None = None
    """Where a strategy wants to know them."""
    key: int = 0
    """Which key of the deployment's pool it used, from 0."""
    region: str = ""
    key_epoch: int = 0
    """As `epoch`, of the key's breaker; -1 where the call may not speak for it."""
    region_epoch: int = 0
    """Of the provider-region's."""
    provider_model: str = ""
    """What the provider calls the model."""
    traceparent: str = ""
    """The caller's."""


class Decision(Struct, frozen=True, omit_defaults=True):
    """One step of a request's plan, as the router took it."""

    step: str
    """`route` (taken), `consider` (chosen among), `skip` (no choice, and why), `dispatch`, `wait`, `answer`,
    `rung` (of the ladder), `match` (of a written answer: `reason` is how it was found)."""
    at_ms: float
    """Since the request arrived."""
    deployment: str = ""
    worker: str = ""
    reason: str = ""
    epoch: int = 0
    wait_ms: float = 0.0
    score: float | None = None
    """The strategy's, smaller is better: calls in flight by size, ms, nano-USD, or the part of a rate used. Of
    a `match`: 0 to 1, larger is better."""


class RequestFinished(Struct, frozen=True, omit_defaults=True):
    """One caller's request. `outcome` in the subject: `ok`, `partial`, `cancelled`, or the error's code."""

    request: str
    tenant: str
    api: str
    model: str
    outcome: str
    at: float
    router: str
    deployment: str = ""
    rung: str = "primary"
    rung_reason: str = ""
    """The kind of the failure for which the request left its own deployments."""
    cache: str = "bypass"
    attempts: int = 0
    stream: bool = False
    duration_ms: float = 0.0
    overhead_ms: float = 0.0
    first_token_ms: float | None = None
    usage: Usage | None = None
    cost_nano_usd: int | None = None
    user: str = ""
    org: str = ""
    feature: str = ""
    properties: dict[str, str] = {}
    decisions: list[Decision] = []
    cost_saved_nano_usd: int | None = None
    """What the answer had cost whoever was given it first; None: it was not given again, or nobody knows."""
    config_revision: int = 0
    traceparent: str = ""
    """The caller's; `tracestate` too."""
    tracestate: str = ""


class Alert(Struct, frozen=True, omit_defaults=True):
    """`kind` in the subject: `auth` (a provider key is refused), `quota` (it has none left), `unpriced`, `stale_view`
    (no health is heard of), `config`, `soft_limit` and `estimator_breach` (of a budget), `ledger_rollback`,
    `ledger_broken` and `ledger_clock` (an operator has to look), `audit` (the books disagree), …"""

    kind: str
    message: str
    at: float
    source: str = ""
    target: str = ""
    model: str = ""


class CacheChanged(Struct, frozen=True, omit_defaults=True):
    """Something in the cache that everybody has to know. `verdict` in the subject:

    `false_hit`: a caller said that a hit was wrong; `stale`: that it was out of date; `good`: that it was
    right; `purged`: entries are gone; `label`: a fresh answer showed whether a would-be hit was right;
    `threshold`: another threshold is in force. Whoever keeps answers forgets those that `digest` and
    `query` name when the verdict is `false_hit`, `stale` or `purged`.
    """

    verdict: str
    at: float
    source: str
    tenant: str = ""
    model: str = ""
    partition: str = ""
    id: str = ""
    """Of the hit, as in `breakwater-cache-id`."""
    digest: str = ""
    """Key of the answer."""
    query: str = ""
    """Key of the request that was answered with it."""
    similarity: float | None = None
    score: float | None = None
    """Of a label: the similarity less what disagreeing neighbours take away."""
    threshold: float | None = None
    same: bool | None = None
    """Of a label: the answers agree."""
    embedder: str = ""
    """Of a label: whose similarity it is; thresholds of one embedder say nothing of another's."""


class BudgetChanged(Struct, frozen=True, omit_defaults=True):
    """A line of the budget books. `kind` in the subject: `grant`, `settled` (both at most once a second and
    account), `soft` and `hard` (once for each threshold, or refusal, of a period and generation),
    `breach` (a call cost more than was reserved for it), `reset` (a new period began)."""

    kind: BudgetKind
    account: str
    unit: Literal["nano_usd", "tokens", "requests"]
    period: str
    """The period's key: `d:2026-11-23@Europe/Berlin`."""
    limit: int
    committed: int
    held: int
    generation: int
    at: float
    threshold: int = 0
    """Of a soft crossing: millionths of the limit."""
    lease: str = ""
    """Of a breach."""


class ConfigChanged(Struct, frozen=True):
    """`revision` is that of the KV bucket `bw_config`; the text is read from there."""

    revision: int
    digest: str
    at: float


class TargetLoad(Struct, frozen=True, omit_defaults=True):
    in_flight: int = 0
    limit: int = 0
    """Calls that the worker now lets this target have at a time; 0: it has found no reason to hold back."""
    queued: int = 0
    """Calls that wait for a place under the limit."""


class Heartbeat(Struct, frozen=True, omit_defaults=True):
    """Twice a second from every actor."""

    actor: str
    id: str
    version: str
    at: float
    uptime_s: float = 0.0
    capacity: int = 0
    in_flight: int = 0
    draining: bool = False
    pools: list[str] = []
    targets: dict[str, TargetLoad] = {}
    config_revision: int = 0
    view_hash: str = ""
    """Of the breaker board: two actors that show different hashes for long have lost an event."""
    loop_lag_ms: float = 0.0
