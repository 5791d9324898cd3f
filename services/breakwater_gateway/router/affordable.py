"""Affordable: which targets' next call fits the money that a request has left, and what the others would take.

Asked each time the plan is about to decide, so that money which comes back, or a body that was shortened, opens
a target again.
"""

from collections.abc import Callable

from breakwater_gateway.router.money import TOO_DEAR, UNPRICED, Money
from breakwater_gateway.router.plan import Candidate, Skipped

Quote = Callable[[str], int | None]
"""By deployment: what one call there costs at most, in nano-USD; None: it has no known price."""


def affordable(
    money: Money, quote: Quote, candidates: tuple[Candidate, ...], skipped: tuple[Skipped, ...]
) -> tuple[tuple[Candidate, ...], tuple[Skipped, ...]]:
    """Those of the candidates that fit, and all that are passed over. What is throttled and would not fit is
    not waited for either."""
    kept: list[Candidate] = []
    passed: list[Skipped] = []
    for candidate in candidates:
        dear = _dear(money, quote, candidate.deployment)
        if dear is None:
            kept.append(candidate)
        else:
            passed.append(dear)
    for each in skipped:
        dear = _dear(money, quote, each.deployment) if each.reason == "throttled" else None
        passed.append(each if dear is None else dear)
    return tuple(kept), tuple(passed)


def _dear(money: Money, quote: Quote, deployment: str) -> Skipped | None:
    nano_usd = quote(deployment)
    if nano_usd is None:
        return Skipped(deployment, UNPRICED)
    return None if nano_usd <= money.left else Skipped(deployment, TOO_DEAR, needs=nano_usd)
