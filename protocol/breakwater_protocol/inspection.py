"""What an operator asks of the cache, and hears: one entry, or what would become of a request, and why.

Routers answer on `cache.exact.inspect`, owners of shards for them on `cache.<shard>.inspect`. Asking changes
nothing, counts as no lookup and is worth no entry's staying. Texts of callers are in no reply unless `texts`
asks for them, and then only of the tenant that is named.
"""

from typing import Literal

from msgspec import Raw, Struct

from breakwater_protocol.cache import Lookup

TEXT_SHOWN: int = 1_000
"""Characters of a text that are shown."""
CANDIDATES_MAX: int = 8

InspectApi = Literal["chat", "messages", "responses", "embeddings", "generate"]


class AsIf(Struct, frozen=True, omit_defaults=True):
    """A request that is not made."""

    body: Raw
    api: InspectApi = "chat"
    headers: dict[str, str] = {}
    """As the caller would send them, lower case; a key that they show is held against them as ever."""
    key: str = ""
    """Id of the virtual key that would be shown, for who does not have the key itself."""


class Inspect(Struct, frozen=True, omit_defaults=True):
    """An entry, by `id` or `digest`; or a request. Of an owner: an entry, or a lookup that is not made."""

    id: str = ""
    """A `breakwater-cache-id`."""
    digest: str = ""
    tenant: str = ""
    """Whose; empty for an entry: anybody's, without texts."""
    request: AsIf | None = None
    partition: str = ""
    """Of an owner: where `digest` is."""
    lookup: Lookup | None = None
    """Of an owner: as it would come from a router."""
    texts: bool = False


class KeptAnswer(Struct, frozen=True, omit_defaults=True):
    """An answer in `bw_cache`, or in the memory of the router that says so. Times are Unix seconds."""

    digest: str
    tenant: str
    model: str
    """As the caller named it."""
    api: str
    partition: str
    form: str
    """`body`: a whole answer; `lines`: the chunks of a stream. Either serves both."""
    bytes: int
    stored_at: float
    fresh_until: float
    kept_until: float
    """After `fresh_until` only for the ladder's rung `stale`."""
    cost_nano_usd: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    deployment: str = ""
    dropped: str = ""
    in_memory: bool = False
    in_bucket: bool = False
    hits: int | None = None
    """Since it came into that router's memory; None: it is not there."""
    text: str = ""


class Question(Struct, frozen=True, omit_defaults=True):
    """A row of the semantic index: a question, with the key of its answer."""

    id: str
    tenant: str
    partition: str
    model: str
    digest: str
    stored_at: float
    expires_at: float
    embedder: str
    dimensions: int
    bytes: int
    hits: int
    """Since its owner has it."""
    quarantined: float | None = None
    """The highest similarity at which a caller called it wrong."""
    text: str = ""


class Candidate(Struct, frozen=True, omit_defaults=True):
    """An entry near the question, as the decision sees it."""

    question: Question
    similarity: float
    same_answer: bool
    """As the nearest one that counts."""
    slots: str = ""
    """The kind of word or number that keeps the two apart."""
    out: str = ""
    """Why it does not count at all: `tenant`, `expired`."""


class Meaning(Struct, frozen=True, omit_defaults=True):
    """What an owner says of a lookup that is not made, or of an entry."""

    owner: str
    shard: str
    embedder: str = ""
    reason: str = ""
    """Of the miss; empty: a hit, or an entry was asked for."""
    score: float | None = None
    """The similarity of the nearest, less what the nearest entry with another answer takes away."""
    nearest: float | None = None
    other: float | None = None
    """Similarity of the nearest entry with another answer."""
    margin: float | None = None
    threshold: float | None = None
    """In force for this request; None: nothing is certified yet."""
    configured: float | None = None
    """None: `certified`."""
    veto: str = ""
    shadow: float | None = None
    """Share of would-be hits that are asked anyway: this one may be."""
    candidates: list[Candidate] = []
    question: Question | None = None
    """The entry that was asked for."""
    served: float | None = None
    """Similarity at which that id was served."""


class Keyed(Struct, frozen=True, omit_defaults=True):
    """Whether a request has a key in the cache."""

    tenant: str
    model: str
    configured: str
    """The name in the configuration that stands for it."""
    api: str
    scope: str = ""
    reason: str = ""
    """Why it has none; empty: it has."""
    digest: str = ""
    partition: str = ""
    no_meaning: str = ""
    """Why the semantic cache is not asked; empty: it is."""


class Inspected(Struct, frozen=True, omit_defaults=True):
    """A router's answer."""

    router: str
    at: float
    verdict: str = ""
    """What the request would hear now: `hit`, `semantic`, `miss` or `bypass`."""
    reason: str = ""
    """Of a miss or a bypass."""
    keyed: Keyed | None = None
    kept: KeptAnswer | None = None
    skipped: str = ""
    """What is wrong with the value under the digest, which is not served."""
    meaning: Meaning | None = None
    error: str = ""
    """One sentence: why there is no answer."""
    code: str = ""
    """Of the error."""
