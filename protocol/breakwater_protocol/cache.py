"""What routers and the owners of the semantic cache say to each other.

The index is cut into `SHARDS` shards by partition, and each shard has one owner, which alone hears
`cache.<shard>.*`. A partition is the hash of everything in a request but its last user turn, so an
answer found in it was given to the same tenant, system prompt, parameters and earlier turns. Answers
themselves are not here: a hit names the key under which the bucket `bw_cache` keeps one.
"""

import hashlib
import re
from typing import Final, Literal

from msgspec import Struct

SHARDS: Final = 8
"""Fixed for a cluster: routers and owners must agree on whose a partition is."""

EXACT: Final = "exact"
"""In the place of a shard: the answers to requests that are the same to the byte, which routers look after."""

TEXT_MAX: Final = 4_096
"""Characters of a text that is looked up or stored; far above what an embedder reads."""
ANSWER_MAX: Final = 4_096
"""Characters of an answer that travel with `Store`, to tell answers apart."""

Verdict = Literal["wrong", "stale", "good"]

MissReason = Literal[
    "empty",
    "below",
    "slots",
    "shadow",
    "quarantined",
    "tenant",
    "expired",
    "off",
    "vector",
    "too_long",
    "no_embedding",
    "overloaded",
    "no_owner",
    "late",
    "silent",
    "malformed",
]
"""Why a lookup is a miss:

`empty`: nothing in the partition; `below`: nothing near enough; `slots`: near, but a number, a negation, a
name or the like differs; `shadow`: near enough, and chosen to be asked anyway, so that the threshold stays
honest; `quarantined`: a caller said that it was wrong; `tenant`: an entry under another tenant's name;
`expired`: the entry's time is over; `off`: the model has no semantic cache; `vector`: not a vector of this
index; `too_long`: beyond what the embedder reads; `no_embedding`: the embedder failed or was late;
`overloaded`: too much in hand. The router's own: `no_owner`: nobody has the shard; `late`: no reply in
time; `silent`: the last ones were late, and it was not asked; `malformed`: a reply that is none.
"""


def shard_of(partition: str) -> str:
    """The shard's name in subjects: a decimal number below `SHARDS`."""
    digest = hashlib.blake2b(partition.encode(), digest_size=4).digest()
    return str(int.from_bytes(digest, "big") % SHARDS)


_EXACT_ID: Final = re.compile(r"e[0-9a-f]{64}")
_SEMANTIC_ID: Final = re.compile(r"s(\d{1,4})-[0-9A-Za-z]{1,64}")


def place_of(id_: str) -> str | None:
    """Who hears of the answer that had this `breakwater-cache-id`: a shard's name or `EXACT`; None: it is none."""
    found = _SEMANTIC_ID.fullmatch(id_)
    if found is not None:
        return found[1]
    return EXACT if _EXACT_ID.fullmatch(id_) else None


class Lookup(Struct, frozen=True, omit_defaults=True):
    """Is there an answer to a question that means the same?"""

    request: str
    tenant: str
    partition: str
    model: str
    """The logical model, whose configuration decides about threshold, veto and margin."""
    text: str
    """The last user turn."""
    digest: str = ""
    """The request's own exact key, named in the event when a hit turns out to be wrong."""
    threshold: float | None = None
    """The caller's; it counts only where it is stricter than the configured one."""
    vector: bytes | None = None
    """The text's embedding where the sender has it: float32, little-endian."""
    max_cost_nano_usd: int | None = None
    """What embedding the text may cost; None: no bound but the budgets."""


class Hit(Struct, frozen=True, omit_defaults=True, tag="hit", tag_field="reply"):
    cache_id: str
    """Of this serving of the entry: `breakwater-cache-id`, and what `Feedback` names."""
    digest: str
    """Key of the answer in the bucket `bw_cache`."""
    similarity: float
    """Cosine between the two questions."""
    score: float
    """Similarity less what neighbours with another answer take away; what the threshold is held against."""
    threshold: float
    age_s: float
    cost_nano_usd: int | None = None
    """What the stored answer cost, and this hit saves."""


class Miss(Struct, frozen=True, omit_defaults=True, tag="miss", tag_field="reply"):
    reason: MissReason
    similarity: float | None = None
    """Of the nearest entry, where one was looked at."""
    label: str = ""
    """To be repeated in `Store`: the fresh answer then says whether the nearest entry's would have done."""


LookupReply = Hit | Miss


class LookWritten(Struct, frozen=True, omit_defaults=True):
    """Which questions that an operator wrote an answer to are near to this one? Any `cache` that has their
    vectors answers; without embeddings nobody hears it."""

    request: str
    tenant: str
    text: str
    """The last user turn."""
    may_call: bool = False
    """The request can afford a call of a model that makes embeddings, where those are not local."""
    max_cost_nano_usd: int | None = None
    """What that call may cost at most; None: only budgets bound it."""


class Near(Struct, frozen=True):
    question: str
    """As it is written in `static_answers`."""
    similarity: float
    """Cosine of the two."""


class NearWritten(Struct, frozen=True, omit_defaults=True):
    found: tuple[Near, ...] = ()
    """The nearest first. Where they all have one answer, the nearest with another one follows."""
    called: bool = False
    """A model was called for the text's vector."""
    reason: MissReason | None = None
    """Why nothing was found: `too_long`, `no_embedding`, `vector` or `overloaded`. The router's own: `no_owner`,
    `late`, `silent`, `malformed`."""


class Store(Struct, frozen=True, omit_defaults=True):
    """A complete answer that may be given again. Sent without a reply subject: nobody waits for it."""

    request: str
    tenant: str
    partition: str
    model: str
    text: str
    digest: str
    """Key under which `bw_cache` has the answer."""
    answer: str
    """Its text, cut at `ANSWER_MAX` characters: two answers that say the same belong together."""
    answer_bytes: int
    """What it takes in `bw_cache`."""
    cost_nano_usd: int | None = None
    ttl_s: float | None = None
    """Of the request or the model; None: the owner's configuration of the model."""
    vector: bytes | None = None
    """The text's embedding: float32, little-endian."""
    label: str = ""
    """From the `Miss` before."""
    max_cost_nano_usd: int | None = None
    """What embedding each of its texts may cost, as in `Lookup`."""
    asked: str = ""
    """The model's name as the caller gave it, where `model` is another (`gpt-*`)."""


class Feedback(Struct, frozen=True, omit_defaults=True):
    """What a caller thought of a cached answer. Counts only for ids that were served to this tenant."""

    id: str
    tenant: str
    verdict: Verdict


class FeedbackReply(Struct, frozen=True, omit_defaults=True):
    taken: bool
    reason: str = ""
    """When it was not: `unknown_id`."""


class StatsRequest(Struct, frozen=True, omit_defaults=True):
    labels: bool = False
    """With the pairs that were labelled, for `breakwater cache calibrate --live`."""
    tenant: str | None = None
    """Only of this tenant."""


class PartitionStats(Struct, frozen=True, omit_defaults=True):
    partition: str
    tenant: str
    model: str
    entries: int
    bytes: int
    threshold: float | None
    """The one in force; None: nothing can be served, because nothing is certified."""
    certified: bool = False


class Label(Struct, frozen=True, omit_defaults=True):
    """Two questions, and whether one answer did for both."""

    a: str
    b: str
    same: bool
    similarity: float
    score: float
    at: float
    source: Literal["shadow", "near", "feedback"]
    """`shadow`: a would-be hit that was asked anyway; `near`: a miss; `feedback`: a caller's verdict."""
    model: str
    tenant: str = ""
    veto: bool = False
    """The slots differ."""
    embedder: str = ""
    """Whose similarities these are: they say nothing of another's. Empty: not recorded."""


class ShardStats(Struct, frozen=True, omit_defaults=True):
    shard: str
    owner: str
    entries: int
    bytes: int
    bytes_max: int
    lookups: int
    hits: int
    misses: dict[str, int]
    """By reason."""
    stores: int
    evicted: int
    quarantined: int
    refused: dict[str, int] = {}
    """What was not stored or not loaded, by reason."""
    partitions: list[PartitionStats] = []
    """The largest ones."""
    labels: list[Label] = []
    embedder: str = ""
    """Of the owner: `local:minilm`, `model:<name>`."""


class Purge(Struct, frozen=True, omit_defaults=True):
    """Forget: everything, or what is all of this: of a tenant, a model, a partition, under a key.

    Whoever names a digest names its tenant and partition too: a peer that does not know the field yet must
    not take the request for one that forgets everything.
    """

    tenant: str | None = None
    model: str | None = None
    """By the name that callers use, or that of the configuration."""
    partition: str | None = None
    digest: str | None = None
    labels: bool = False
    """Labelled pairs of it too, where they are of a tenant, a model or all: what they taught is lost."""

    @property
    def everything(self) -> bool:
        return (self.tenant, self.model, self.partition, self.digest) == (None,) * 4


class PurgeReply(Struct, frozen=True, omit_defaults=True):
    purged: int
    """Entries that are gone: of a shard questions, of the routers answers."""
    semantic: bool = False
    """Of routers: a model has a semantic cache, so that shards without an owner may keep questions."""
    labels: int = 0
    """Labels that are gone."""
