"""Affordable: which targets' next call fits the money that a request has left, and what the others would take.

Asked each time the plan is about to decide, so that money which comes back, or a body that was shortened, opens
a target again.
"""

from collections.abc import Callable

import msgspec

from breakwater_gateway.config.model import Config
from breakwater_gateway.pricing.estimate import read_ask
from breakwater_gateway.router.charges import hold_for
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


def embedding_bound(config: Config, text: str, *, at: float) -> int | None:
    """What it may cost at most to embed a text for the semantic cache, on whichever deployment: the bound that
    such a request is given. 0 where no provider is asked; None: nobody knows. `at`: Unix time."""
    name = "" if config.embeddings is None else config.embeddings.model
    model = config.model(name) if name else None
    if model is None:
        return 0
    ask = read_ask("embeddings", msgspec.json.encode({"model": name, "input": text}))
    bounds = [
        hold_for(ask, each, each.provider_model(name, name=model.name), at=at).bound
        for each in model.deployments
    ]
    known = [each.nano_usd for each in bounds if each is not None and each.nano_usd is not None]
    if not known:
        return None
    own = model.retry.max_cost_nano_usd
    return max(known) if own is None else min(max(known), own)
