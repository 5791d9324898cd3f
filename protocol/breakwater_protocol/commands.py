"""Asks: what one actor wants another to do, and the replies.

All times that cross a process are what is left in seconds, never a clock reading.
"""

from msgspec import Raw, Struct

from breakwater_protocol.chat import Usage
from breakwater_protocol.failures import Failure


class Work(Struct, frozen=True, omit_defaults=True):
    """One attempt at one deployment. The answer goes straight to `answer_to`; how it ended, to the reply subject."""

    request: str
    attempt: int
    """1 for the first call of this request."""
    tenant: str
    api: str
    """`chat` or `embeddings`: whose body this is and in which shape the caller wants its answer."""
    model: str
    """The logical model."""
    provider_model: str
    """What the deployment's provider calls it."""
    deployment: str
    target: str
    """Whose breaker this call speaks for."""
    answer_to: str
    body: Raw
    """The caller's body, as it came."""
    stream: bool = False
    include_usage: bool = False
    """The caller asked for usage on its stream; the gateway always does."""
    connect_s: float = 5.0
    first_token_s: float = 10.0
    idle_s: float = 30.0
    total_s: float = 60.0
    key: int = 0
    """Index into the deployment's pool of keys."""
    epoch: int = 0
    """The breaker's epoch when the permit was taken."""
    rung: str = "primary"
    spent_ms: float = 0.0
    """Time of this request before this attempt, of which …"""
    provider_ms: float = 0.0
    """… so much was waiting for providers and backoff, not overhead of ours."""
    native_headers: dict[str, str] = {}
    """Of the caller's own dialect (`anthropic-version`, …), for a provider of the same one."""
    refuse_dropped: bool = False
    """Refuse what the provider cannot express instead of naming it in `breakwater-dropped-params`."""
    traceparent: str = ""
    user: str = ""
    org: str = ""
    feature: str = ""
    properties: dict[str, str] = {}


class Started(Struct, frozen=True, omit_defaults=True, tag="started", tag_field="reply"):
    """Sent before the first byte goes to the caller: from here on nobody else may answer."""

    request: str
    attempt: int
    worker: str


class Finished(Struct, frozen=True, omit_defaults=True, tag="finished", tag_field="reply"):
    """The attempt is over. `answered`: the caller has its terminal answer and the router must not send one."""

    request: str
    attempt: int
    worker: str
    answered: bool
    failure: Failure | None = None
    usage: Usage | None = None
    cost_nano_usd: int | None = None
    """None: the model has no known price."""
    first_token_ms: float | None = None
    duration_ms: float = 0.0
    provider_ms: float = 0.0
    """Spent waiting for the provider, up to the first token on streams."""
    partial: str = ""
    """Why the answer is partial, when it is."""


WorkReply = Started | Finished


class Cancel(Struct, frozen=True, omit_defaults=True):
    request: str
    reason: str = "caller_gone"
    attempt: int = 0
    """Only this attempt; 0 is the whole request."""


class ProbeClaim(Struct, frozen=True):
    router: str
