"""The cache's reason codes in words, each with what mends it where something does."""

from typing import Final, NamedTuple


class Words(NamedTuple):
    means: str
    mend: str = ""


REASONS: Final[dict[str, Words]] = {
    # A request has no key.
    "off": Words(
        "the cache is off: by `breakwater-cache: off` for the request, or for its model",
        "leave the header out; give the model `cache: {exact: 1h}` or `cache: {semantic: {…}}`",
    ),
    "not_configured": Words("its model keeps nothing", "give the model `cache: {exact: 1h}`"),
    "sampled": Words(
        "its answers are meant to vary: no temperature, or one above 0 (above 0.3 with a semantic cache)",
        "ask with `temperature: 0`, or say `cache: {sampled: true}` for the model",
    ),
    "no_user": Words(
        "the model's cache has `scope: user`, and the request names none",
        "send `breakwater-user`, or bind the key to a user: `breakwater keys create --user`",
    ),
    "no_key": Words(
        "the model's cache has `scope: key`, and the request shows no virtual key",
        "send one: `breakwater keys create`",
    ),
    "unreadable": Words(
        "its body, or the stored value, cannot be read: no JSON object, or a number beyond a double",
        "send a JSON object; remove a stored value with `breakwater cache purge`",
    ),
    "repeated_keys": Words(
        "an object of its body names a member twice: one reader takes the first, another the last",
        "name it once",
    ),
    "stateful": Words(
        "its answer depends on what the body does not hold: a conversation, a container, a search",
        "send the turns themselves",
    ),
    "hosted_tools": Words("it uses tools that the provider runs: what they find is new each time"),
    # The semantic cache is not asked.
    "tools": Words("it may call tools: what is meant the same may need another call"),
    "temperature": Words(
        "its temperature is above 0.3: its answers are meant to vary", "ask with 0.3 or less"
    ),
    "no_text": Words("its last turn is not a user's plain text alone"),
    "too_long": Words("its last turn is longer than the embedder reads"),
    "volatile": Words("it names what changes with time or place: now, today, price, my order"),
    "personal": Words("it names an address, an account or another identifier of somebody"),
    # A lookup is a miss.
    "miss": Words("nothing is kept under its digest"),
    "past_its_time": Words(
        "what is kept is past its time: only the ladder's rung `stale` gives it",
        "raise `exact`, or the caller's `breakwater-cache-ttl`",
    ),
    "refresh": Words("`breakwater-cache: refresh` asks for a fresh answer, which is kept"),
    "empty": Words(
        "no question is kept in its partition: same prompt, parameters and earlier turns"
    ),
    "below": Words(
        "the score of the nearest question is below the threshold, or nothing is certified yet",
        "see with `breakwater cache calibrate` whether labels allow a lower threshold",
    ),
    "slots": Words(
        "the nearest question differs in a number, a name, a negation or the like",
        "if it is wrong to keep them apart: `veto: numbers`, judged by `breakwater cache calibrate`",
    ),
    "shadow": Words("a would-be hit that was asked anyway, to label the pair"),
    "quarantined": Words("a caller said at this similarity that the answer was wrong"),
    "tenant": Words("what is kept there bears another tenant's name, and is not served"),
    "expired": Words("the time of what is near is over"),
    "vector": Words("the embedder's vector is none: not finite, zero, or of another size"),
    "no_embedding": Words(
        "there is no embedding: the embedder is not configured, failed, or was late",
        "`breakwater doctor`; the log of the actor `cache` says why",
    ),
    "overloaded": Words("the owner has too much in hand", "run more of `breakwater run cache`"),
    "no_owner": Words(
        "no actor `cache` owns the partition's shard",
        "start one: `breakwater run cache`; it needs `embeddings` in the configuration",
    ),
    "late": Words("the owner did not answer in time"),
    "silent": Words("the owner did not answer the last lookups, and is asked once a second"),
    "too_dear": Words(
        "the embedding may cost more than the request has to spare", "raise `breakwater-max-cost`"
    ),
    "unpriced": Words(
        "what the embedding costs is not known, and the request has a bound",
        "give its deployment a `price`",
    ),
    "malformed": Words("the owner's answer could not be read", "run the same version everywhere"),
    "gone": Words("the near question's answer is not kept any more, or is not to be served"),
    "foreign": Words("the near question's key leads to an answer of another partition"),
    # A stored value is skipped.
    "size": Words("the stored value is larger than any answer that is kept"),
    "version": Words("the stored value is of another version"),
    "digest": Words("the stored value names another digest"),
    "api": Words("the stored value is of another API"),
    "model": Words("the stored value is of another model"),
    "partition": Words("the stored value is of another partition"),
    "times": Words("the stored value's times are no times"),
}


def means(reason: str) -> str:
    known = REASONS.get(reason)
    return reason if known is None else f"{reason}: {known.means}"


def mend(reason: str) -> str:
    known = REASONS.get(reason)
    return "" if known is None else known.mend
