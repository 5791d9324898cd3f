"""Whether an answer may be given again for a question that means the same: one pure decision.

A wrong answer is worse than a miss, so whatever is in doubt is a miss, and every miss has a reason code.
"""

import re
from collections.abc import Sequence
from typing import Final, Literal

from msgspec import Struct

from breakwater_gateway.cache.slots import conflict
from breakwater_gateway.config.model import Semantic
from breakwater_protocol.cache import TEXT_MAX, MissReason

TOP: Final = 8
"""Nearest entries that are looked at: the best, and those that may disagree with it."""
LABEL_FLOOR: Final = 0.70
"""Pairs that are less alike are not worth a label: no threshold goes below."""
TEMPERATURE_MAX: Final = 0.3
"""Above, a caller wants answers that vary."""

Ineligible = Literal["tools", "temperature", "no_text", "too_long", "volatile", "personal"]
"""Why a request has no semantic cache: it may call tools; its answers are meant to vary; its last turn is not
plain text; it is longer than an embedder reads; its answer changes with time or place; it names somebody's
own things."""

_VOLATILE: Final = re.compile(
    r"\b(?:now|today'?s?|tonight|tomorrow'?s?|yesterday'?s?|current(?:ly)?|latest|recent(?:ly)?|newest|live"
    r"|price|prices|weather|forecast|temperature|news|headlines?|stock|stocks|score|scores|traffic"
    r"|exchange rate|what time is it|this (?:morning|afternoon|evening|week|month|year)"
    r"|(?:last|next) (?:week|month|year)|right away|nearby|near me|in stock|available"
    r"|my (?:orders?|parcels?|package|delivery|invoices?|balance|bill|account|subscription|ticket"
    r"|booking|reservation|flight|appointment|statement|payments?|refund|points|profile|password reset))\b",
    re.IGNORECASE,
)
_PERSONAL: Final = re.compile(
    r"[\w.+-]+@[\w-]+\.\w"  # an address
    r"|\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}"  # a UUID
    r"|\d{6,}"  # an account, an order, a phone number
    r"|\+?\d[\d ()/.-]{8,}\d"  # a number in groups
    r"|\b[A-Z]{2}\d{2}[ ]?[A-Z0-9]{4}\b"  # an IBAN
    r"|\b(?=[A-Z0-9-]*\d)(?=[A-Z0-9-]*[A-Z])[A-Z0-9]+-?[A-Z0-9-]{4,}\b"  # an identifier
    r"|#\d{3,}",
    re.IGNORECASE,
)


def ineligible(text: str | None, *, tools: bool, temperature: float | None) -> Ineligible | None:
    """None when the semantic cache may be asked. `text`: the last user turn, None if it is not plain text.

    Without a temperature a model samples at its provider's default, 1: such a request is eligible only
    because its operator turned the semantic cache on for the model; a caller's own high one is not.
    """
    if tools:
        return "tools"
    if temperature is not None and temperature > TEMPERATURE_MAX:
        return "temperature"
    if text is None or not text.strip():
        return "no_text"
    if len(text) > TEXT_MAX:
        return "too_long"
    if _VOLATILE.search(text):
        return "volatile"
    if _PERSONAL.search(text):
        return "personal"
    return None


class Candidate(Struct, frozen=True):
    """An entry near the question."""

    row: int
    """Whose entry, for who asked."""
    similarity: float
    """Cosine of the two questions."""
    answer: int
    """Entries with the same number say the same."""
    text: str
    tenant: str
    expires_at: float
    """Unix seconds."""
    quarantined: float = -1.0
    """The highest similarity at which a caller called it wrong."""


class Decision(Struct, frozen=True):
    best: Candidate | None
    score: float
    reason: MissReason | None
    """None: a hit."""
    slots: str = ""
    """The kind that differs."""


def decide(
    found: Sequence[Candidate],
    *,
    text: str,
    tenant: str,
    now: float,
    threshold: float | None,
    policy: Semantic,
    draw: float,
) -> Decision:
    """`found`: the nearest entries of the partition, nearest first. `threshold`: the one in force, None when
    nothing is certified. `now`: Unix seconds. `draw`: uniform in [0, 1), decides who is shadowed.
    """
    if not found:
        return Decision(None, 0.0, "empty")
    own = [each for each in found if each.tenant == tenant]
    if not own:
        return Decision(None, 0.0, "tenant")
    alive = [each for each in own if each.expires_at > now]
    if not alive:
        return Decision(None, 0.0, "expired")
    best = alive[0]
    score = score_of(alive, policy.margin)
    slots = conflict(best.text, text, policy.veto)
    if slots:
        return Decision(best, score, "slots", slots)
    if threshold is None or score < threshold:
        return Decision(best, score, "below")
    if best.similarity <= best.quarantined:
        return Decision(best, score, "quarantined")
    if draw < policy.shadow:
        return Decision(best, score, "shadow")
    return Decision(best, score, None)


def score_of(found: Sequence[Candidate], margin: float) -> float:
    """The best's similarity, less what the nearest entry with another answer lacks of being `margin` away."""
    best = found[0]
    other = next((each.similarity for each in found if each.answer != best.answer), None)
    if other is None:
        return best.similarity
    return best.similarity - max(0.0, margin - (best.similarity - other))


def stricter(configured: float | None, asked: float | None) -> float | None:
    """A caller may only raise what is in force."""
    if configured is None or asked is None:
        return configured
    return max(configured, asked)
