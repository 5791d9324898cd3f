"""Header names: one fixed spelling, the same on HTTP and on NATS.

NATS header keys are case-sensitive, so every name is lower case and lives here and nowhere else.
"""

from typing import Final

# What a caller may ask for.
USER: Final = "breakwater-user"
ORG: Final = "breakwater-org"
FEATURE: Final = "breakwater-feature"
PROPERTY_PREFIX: Final = "breakwater-property-"
CACHE: Final = "breakwater-cache"
CACHE_TTL: Final = "breakwater-cache-ttl"
CACHE_NAMESPACE: Final = "breakwater-cache-namespace"
CACHE_THRESHOLD: Final = "breakwater-cache-threshold"
CACHE_FEEDBACK: Final = "breakwater-cache-feedback"
"""On the request that asks again: `<breakwater-cache-id>=wrong`, `=stale` or `=good`."""
TIMEOUT: Final = "breakwater-timeout"
TTFT_TIMEOUT: Final = "breakwater-ttft-timeout"
PRIORITY: Final = "breakwater-priority"
LADDER: Final = "breakwater-ladder"
MAX_COST: Final = "breakwater-max-cost"
"""USD, decimal: what the request may cost in all."""
REQUEST_ID: Final = "breakwater-request-id"
"""A caller's own id: the same id twice runs once."""
ASSIGNED_ID: Final = "breakwater-assigned-id"
"""An id that an edge or a client library made up, so that it can be cancelled; it is never repeated."""
KEY: Final = "breakwater-key"
"""The virtual key of a caller on NATS; over HTTP any header that SDKs send a key in."""

# What every answer says. `breakwater-cache` is both: asked as a mode, answered as a verdict.
MODEL: Final = "breakwater-model"
DEPLOYMENT: Final = "breakwater-deployment"
RUNG: Final = "breakwater-rung"
RUNG_REASON: Final = "breakwater-rung-reason"
MATCH: Final = "breakwater-match"
MATCH_SCORE: Final = "breakwater-match-score"
TRUNCATED: Final = "breakwater-truncated"
REPAIRED: Final = "breakwater-repaired"
SIMILARITY: Final = "breakwater-similarity"
CACHE_ID: Final = "breakwater-cache-id"
CACHE_AGE: Final = "breakwater-cache-age"
ATTEMPTS: Final = "breakwater-attempts"
COST_USD: Final = "breakwater-cost-usd"
OVERHEAD_MS: Final = "breakwater-overhead-ms"
BUDGET_REMAINING: Final = "breakwater-budget-remaining"
CLAMPED: Final = "breakwater-clamped"
PARTIAL: Final = "breakwater-partial"
DROPPED_PARAMS: Final = "breakwater-dropped-params"

# Framing of streams on NATS.
SEQ: Final = "breakwater-seq"
END: Final = "breakwater-end"
# Which attempt a chunk belongs to; absent means the first. A reader locks on the attempt whose
# chunk 0 it saw, so that a worker given up for lost cannot splice itself into the next answer.
ATTEMPT: Final = "breakwater-attempt"
# On the first message with which another deployment goes on where a cut stream stopped: that deployment.
# A reader locked on an earlier attempt takes this one from here, if the number is the one it expects.
SEAM: Final = "breakwater-seam"

USAGE: Final = "breakwater-usage"
"""JSON, on the copy of a shared call's last message that routers get; no caller sees it."""

# Of NATS micro services.
SERVICE_ERROR: Final = "Nats-Service-Error"
SERVICE_ERROR_CODE: Final = "Nats-Service-Error-Code"
NATS_STATUS: Final = "Status"
NATS_MSG_ID: Final = "Nats-Msg-Id"

# Of HTTP.
RETRY_AFTER: Final = "retry-after"
SHOULD_RETRY: Final = "x-should-retry"

# W3C trace context, and CloudEvents in binary mode on events.
TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
CE_ID: Final = "ce-id"
CE_SOURCE: Final = "ce-source"
CE_TYPE: Final = "ce-type"
CE_TIME: Final = "ce-time"
CE_SPECVERSION: Final = "ce-specversion"

NATIVE: Final = ("anthropic-version", "anthropic-beta")
"""Of a caller's own dialect: they travel with the request to a provider of the same one, untouched."""

REQUEST_HEADERS: Final = frozenset(
    {
        USER,
        ORG,
        FEATURE,
        CACHE,
        CACHE_TTL,
        CACHE_NAMESPACE,
        CACHE_THRESHOLD,
        CACHE_FEEDBACK,
        TIMEOUT,
        TTFT_TIMEOUT,
        PRIORITY,
        LADDER,
        MAX_COST,
        REQUEST_ID,
        ASSIGNED_ID,
        KEY,
    }
)
"""Every `breakwater-` header a request may carry, besides `breakwater-property-<name>`."""
