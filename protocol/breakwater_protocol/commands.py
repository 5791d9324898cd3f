"""Asks: what one actor wants another to do, and the replies.

All times that cross a process are what is left in seconds, never a clock reading.
"""

from typing import Final, Literal

from msgspec import Raw, Struct

from breakwater_protocol.chat import Usage
from breakwater_protocol.events import BreakerState
from breakwater_protocol.failures import Failure

Priority = Literal["critical", "interactive", "batch"]
"""Who waits and who is shed first: `batch` gives way before `interactive`, `critical` last."""


EARS_MAX: Final = 128
"""Callers whom one worker tells one answer, beside the one who asked it."""


class Ear(Struct, frozen=True, omit_defaults=True):
    """A caller who asked the same at the same router and hears the answer from its start."""

    to: str
    facts: dict[str, str] = {}
    """Header fields of its first and last message that are its own."""


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
    min_rate: float = 0.0
    """Characters a second that a stream must bring over each `rate_window_s`; 0: any pace will do."""
    rate_window_s: float = 10.0
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
    hurried: bool = False
    """`first_token_s` is the caller's own, and shorter than the model's or meant of an answer in one piece: it
    holds, and running out of it says nothing of the target."""
    full_time: bool = False
    """The attempt has all the time that the model gives: to say nothing in it is the target's failure."""
    refuse_filtered: bool = False
    """An answer that a safety system broke off is a failure, as long as nothing of it went to the caller."""
    key_epoch: int = 0
    """Of the key's breaker, as `epoch`; -1: the call does not speak for it."""
    region_epoch: int = 0
    """Of the provider-region's breaker."""
    traceparent: str = ""
    user: str = ""
    org: str = ""
    feature: str = ""
    properties: dict[str, str] = {}
    priority: Priority = "interactive"
    notes: dict[str, str] = {}
    """Header fields that the answer carries besides the worker's own: what was done to the request."""
    copy_to: str = ""
    """Whatever the worker says to `answer_to` it says here too, headers and all; empty: to nobody else."""
    shared: bool = False
    """Others may wait for this answer too: whether its caller's leaving ends the attempt is the router's to
    say, which then cancels it by its number."""
    cache: str = "bypass"
    """What the answer says of the cache."""
    continues: bytes = b""
    """What the caller has of a stream that was cut: its lines, in the caller's dialect, joined by line ends.
    This attempt goes on from there, on the same stream: nothing of the beginning is said again, and its
    first message carries `breakwater-seam`."""
    seq_from: int = 0
    """The number that the first message of this attempt's stream bears: how many went before."""
    ask_leave: bool = False
    """Two calls of this request may run at once: before its first byte goes to the caller the worker sends
    `Started` with a reply subject, and goes on only when it is answered with `Leave(granted=True)`."""
    ears: list[Ear] = []
    """Whom else the worker tells everything that it says to `answer_to`; it says so first, on `copy_to`."""
    ears_from: int = 0
    """Added to the number of the attempt, as they are told it: attempts of another call came before."""
    hand_back: bool = False
    """A stream that breaks off is not ended by the worker: the router lets another deployment go on, or ends it."""


class Tap(Struct, frozen=True, omit_defaults=True):
    """To the worker that makes a shared call: from its next message on, say everything to that inbox as well, and
    tell it so first (`flights.Tapped`). Ignored when the attempt is over.

    With `facts` it is a caller's, as an `Ear`: ignored once the answer has begun, else `copy_to` is told."""

    request: str
    attempt: int
    to: str
    facts: dict[str, str] = {}


class Leave(Struct, frozen=True):
    """The router's word on a `Started` that asked for leave: one call of the request answers, no other."""

    granted: bool


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
    metered: bool = False
    """`usage` is the worker's own count of a call that was cut: its provider never told."""
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
    """Who wants the probe; health reckons from the first of them when it is lost."""


class BreakerCommand(Struct, frozen=True, omit_defaults=True):
    """Of an operator: `list`, `trip` or `reset` (the subject says which). Health's leader answers."""

    target: str = ""
    """A deployment's id, `<deployment>#key<n>` or `@<provider>/<region>`; empty for `list`: all."""
    for_s: float | None = None
    """Of `trip`: how long it stays open; None: as long as its own next opening would last."""


class BreakerStatus(Struct, frozen=True, omit_defaults=True):
    target: str
    kind: str
    """`deployment`, `key` or `region`."""
    state: BreakerState
    epoch: int = 0
    cause: str = ""
    """Of the last change; empty where there was none."""
    until: float = 0.0
    """Unix time at which an open one is probed."""
    at: float = 0.0
    """Unix time of the last change."""
    share: float = 1.0
    """Of the calls that may go there."""
    window: int = 0
    failures: int = 0
    slow: int = 0


class BreakerReply(Struct, frozen=True, omit_defaults=True):
    """`error`: why nothing was done, else empty."""

    breakers: list[BreakerStatus] = []
    error: str = ""
    leader: str = ""
