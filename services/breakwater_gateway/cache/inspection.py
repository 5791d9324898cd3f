"""What an owner says to an operator: which entries are near a question, and what the decision makes of them.

The decision itself is asked, not told again; nothing is counted, remembered or touched.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from breakwater_gateway.cache.decision import decide, stricter
from breakwater_gateway.cache.keeper import Keeper
from breakwater_gateway.cache.semantic import Entry, Found
from breakwater_gateway.cache.slots import conflict
from breakwater_protocol import inspection as i
from breakwater_protocol.cache import Lookup, MissReason, shard_of

_NEVER: float = 1.0
"""A draw that shadows nobody: whether a hit is asked anyway is chance, and told as a share."""


def of_lookup(
    keeper: Keeper,
    asked: Lookup,
    found: Found | MissReason,
    *,
    owner: str,
    now: float,
    texts: bool,
) -> i.Meaning:
    """`found`: the nearest entries, or why there is no vector to look with. `now`: Unix seconds."""
    policy = keeper.policy(asked.model)
    meaning = i.Meaning(
        owner=owner, shard=shard_of(asked.partition), embedder=keeper.embedder, reason="off"
    )
    if policy is None:
        return meaning
    threshold = stricter(keeper.threshold(asked.model, policy), asked.threshold)
    meaning = replace(
        meaning,
        margin=policy.margin,
        threshold=threshold,
        configured=policy.threshold,
        veto=policy.veto,
        shadow=policy.shadow,
    )
    if isinstance(found, str):
        return replace(meaning, reason=found)
    decision = decide(
        found.candidates,
        text=asked.text,
        tenant=asked.tenant,
        now=now,
        threshold=threshold,
        policy=policy,
        draw=_NEVER,
    )
    best = decision.best
    counting = [
        each for each in found.candidates if each.tenant == asked.tenant and each.expires_at > now
    ]
    other = next(
        (each.similarity for each in counting if best is not None and each.answer != best.answer),
        None,
    )
    return replace(
        meaning,
        reason=decision.reason or "",
        score=None if best is None else decision.score,
        nearest=None if best is None else best.similarity,
        other=other,
        candidates=[
            i.Candidate(
                question=question(keeper, entry, texts=texts and candidate.tenant == asked.tenant),
                similarity=candidate.similarity,
                same_answer=best is not None and candidate.answer == best.answer,
                slots=conflict(candidate.text, asked.text, policy.veto),
                out="tenant"
                if candidate.tenant != asked.tenant
                else "expired"
                if candidate.expires_at <= now
                else "",
            )
            for entry, candidate in zip(found.entries, found.candidates, strict=True)
        ][: i.CANDIDATES_MAX],
    )


def of_entry(
    keeper: Keeper, asked: i.Inspect, entries: Sequence[Entry], *, owner: str, shard: str
) -> i.Meaning:
    """The entry that a served id, or a key in a partition, names. `entries`: of that partition."""
    served = keeper.served.get(asked.id) if asked.id else None
    if served is not None and asked.tenant not in {"", served.tenant}:
        served = None
    entry = None if served is None else keeper.index.get(served.entry)
    if asked.digest:
        entry = next(
            (
                each
                for each in entries
                if each.digest == asked.digest and asked.tenant in {"", each.tenant}
            ),
            None,
        )
    texts = asked.texts and entry is not None and asked.tenant == entry.tenant
    return i.Meaning(
        owner=owner,
        shard=shard,
        embedder=keeper.embedder,
        question=None if entry is None else question(keeper, entry, texts=texts),
        served=None if served is None else served.similarity,
    )


def question(keeper: Keeper, entry: Entry, *, texts: bool) -> i.Question:
    index = keeper.index
    return i.Question(
        id=entry.id,
        tenant=entry.tenant,
        partition=entry.partition,
        model=entry.model,
        digest=entry.digest,
        stored_at=entry.at,
        expires_at=entry.expires_at,
        embedder=entry.embedder,
        dimensions=len(entry.vector) // 2,
        bytes=index.size_of(entry.id),
        hits=index.hits_of(entry.id),
        quarantined=entry.quarantined if entry.quarantined >= 0 else None,
        text=entry.text[: i.TEXT_SHOWN] if texts else "",
    )
