"""What a request is charged to and how much of it at most: between its life and the holder's leases."""

from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

from breakwater_gateway.config.budgets import usd_text
from breakwater_gateway.config.model import Budget, Config, Deployment, RateLimit
from breakwater_gateway.ledger.limits import Limits, accounts_of, paths_of
from breakwater_gateway.pricing.cost import ModelPrice
from breakwater_gateway.pricing.estimate import Ask, Bound, bound_of, cost_of, prices_of
from breakwater_gateway.pricing.prices import shipped
from breakwater_gateway.router.leases import UNITS, Need, Path, Refusal, Reservation, Ticket
from breakwater_gateway.router.money import Money
from breakwater_gateway.router.operator_limits import OperatorLimits
from breakwater_protocol import failures as f
from breakwater_protocol.commands import Finished
from breakwater_protocol.ledger import Account, Limit, Line, Scope, Unit, account_named, partition

RATE_S: Final = 60
"""Rates are counted in windows of a minute."""
PATHS_KEPT: Final = 50_000

Who = tuple[str, str, str, str, str, str, str]
"""Key, user, team, feature, organisation, provider, model."""


class Rule(Struct, frozen=True):
    """A budget or a rate limit, as the books know rules."""

    scope: Scope
    id: str
    unit: Unit
    hard: int
    per: str
    rolling_s: int = 0
    timezone: str = "UTC"
    soft: tuple[int, ...] = ()
    action: str = "ladder"
    is_rate: bool = False


def rules_of(config: Config) -> list[Rule]:
    """Rate limits a minute are budgets of a rolling minute: the same leases keep both."""
    rules = [_rule(budget) for budget in config.budgets]
    for limit in config.rate_limits:
        if limit.requests is not None:
            rules.append(_rate(limit, "requests", limit.requests))
        if limit.tokens is not None:
            rules.append(_rate(limit, "tokens", limit.tokens))
    return rules


def _rate(limit: RateLimit, unit: Unit, hard: int) -> Rule:
    return Rule(limit.scope, limit.id, unit, hard, "rolling", RATE_S, action="refuse", is_rate=True)


def _rule(budget: Budget) -> Rule:
    return Rule(
        budget.scope,
        budget.id,
        budget.unit,
        budget.hard,
        budget.per,
        budget.rolling_s,
        budget.timezone,
        budget.soft,
        budget.action,
    )


class Tariff(Struct, frozen=True):
    """The paths of one caller at one provider, and what happens at their limits."""

    paths: tuple[Path, ...]
    units: frozenset[int]
    clamps: frozenset[tuple[str, str]]
    """Account and unit whose limit lowers max tokens before it refuses."""
    refuses: frozenset[tuple[str, str]]
    """Account and unit whose limit is answered at once, without the ladder."""


_FREE: Final = Tariff((), frozenset(), frozenset(), frozenset())


class Tariffs:
    """Finds the tariff of a caller, remembered: equal paths are one path, with one set of leases.

    Rates have paths of their own: their leases end with each step of their window, many times a minute.
    Over a rule's limit an operator's is the ledger's to keep; where no rule is, it makes a line of its own.
    """

    def __init__(
        self, rules: Sequence[Rule], revision: int, operators: OperatorLimits | None = None
    ) -> None:
        self._operators = OperatorLimits() if operators is None else operators
        self._limits = [
            Limits([rule for rule in rules if rule.is_rate is rate]) for rate in (False, True)
        ]
        self._revision = revision
        self._known: dict[Who, Tariff] = {}
        self._paths: dict[tuple[Line, ...], Path] = {}

    def __bool__(self) -> bool:
        return any(self._limits) or bool(self._operators)

    def renew(self, account: str) -> None:
        """An operator changed its limits: what was lent before is not spent any more, but goes back."""
        self._known.clear()
        for lines in [
            each for each in self._paths if any(line.account == account for line in each)
        ]:
            del self._paths[lines]

    def of(self, who: Who) -> Tariff:
        tariff = self._known.get(who)
        if tariff is None:
            if len(self._known) >= PATHS_KEPT:
                self._known.clear()
                self._paths.clear()
            tariff = self._known[who] = self._make(who)
        return tariff

    def _make(self, who: Who) -> Tariff:
        key, user, team, feature, org, provider, model = who
        accounts = (
            *accounts_of(
                key=key, user=user, team=team, feature=feature, org=org, provider=provider
            ),
            Account("model", model),
        )
        paths = []
        actions = []
        groups = [paths_of(accounts, limits, self._revision) for limits in self._limits]
        if self._operators:
            self._add_operators(accounts, groups)
        for limits, found in zip(self._limits, groups, strict=True):
            for number, lines in sorted(found.items()):
                path = self._paths.get(lines)
                if path is None:
                    path = self._paths[lines] = Path(number, lines)
                paths.append(path)
            actions += [
                (account.name, rule.unit, rule.action)
                for account in accounts
                for rule in limits.of(account)
            ]
        if not paths:
            return _FREE
        return Tariff(
            tuple(paths),
            frozenset(unit for path in paths for unit in path.units),
            frozenset((name, unit) for name, unit, action in actions if action == "clamp"),
            frozenset((name, unit) for name, unit, action in actions if action == "refuse"),
        )

    def _add_operators(
        self, accounts: Iterable[Account], groups: list[dict[int, tuple[Line, ...]]]
    ) -> None:
        """Lines for operators' limits that no rule has a line for."""
        ruled = {
            (line.account, line.unit, line.period)
            for found in groups
            for lines in found.values()
            for line in lines
        }
        for account in accounts:
            name = account.name
            for (unit, period), hard in self._operators.of(name).items():
                if (name, unit, period) not in ruled:
                    # Revision 0: a rule that the configuration gets later is right, once this is taken back.
                    line = Line(name, unit, period, Limit(hard, (), 0))
                    number = partition(account)
                    groups[0][number] = (*groups[0].get(number, ()), line)


class Hold:
    """One granted attempt: what was reserved for it, until it is settled."""

    __slots__ = ("body", "bound", "clamped", "drawn", "money", "prices", "reservation")

    def __init__(self, bound: Bound | None, prices: tuple[ModelPrice, ...]) -> None:
        self.bound = bound
        self.prices = prices
        self.reservation: Reservation | None = None
        self.money: Money | None = None
        """The request's own, of which `drawn` was; None: it has no bound, or this was settled."""
        self.drawn = 0
        self.body: bytes | None = None
        """What the provider is sent in place of the caller's: with a number of tokens in it."""
        self.clamped = 0
        """Output tokens that a budget lowered it to."""

    def draw(self, money: Money) -> bool:
        """From the request's own money. False: it does not fit, or nobody knows."""
        nano_usd = None if self.bound is None else self.bound.nano_usd
        if nano_usd is None or not money.draw(nano_usd):
            return False
        self.money, self.drawn = money, nano_usd
        return True

    def settle_money(self, actual: Need | None) -> None:
        """Once: a second time changes nothing. None: nobody knows what the call has cost."""
        money, self.money = self.money, None
        if money is not None:
            money.settle(self.drawn, None if actual is None else actual[0])


class Charge:
    """What is known of one request's cost, for all of its attempts."""

    __slots__ = ("ask", "bodies", "body", "tickets", "who")

    def __init__(self, who: Who, body: bytes, ask: Ask, tickets: dict[int, Ticket]) -> None:
        self.who = who
        """Its provider and model are each attempt's own."""
        self.body = body
        self.ask = ask
        self.bodies: dict[int, bytes] = {}
        """By the number of output tokens that is written into it."""
        self.tickets = tickets


def hold_for(ask: Ask, deployment: Deployment, model: str, *, at: float, said: int = 0) -> Hold:
    """What one attempt there may cost at most; nothing is reserved. `model`: the provider's name of it; `said`:
    bytes of an answer that it goes on with; `at`: Unix time, as prices have dates."""
    prices = prices_of(deployment, model, shipped(), at=at, service_tier=ask.service_tier)
    return Hold(bound_of(ask, deployment, prices, said=said), prices)


def need_for(bound: Bound | None, tariff: Tariff) -> Need | None:
    """What an attempt must reserve; None: it has no known price, and money is limited."""
    if bound is None:
        return (0, 0, 1)
    if bound.nano_usd is None:
        return None if 0 in tariff.units else (0, bound.tokens, 1)
    return (bound.nano_usd, bound.tokens, 1)


# --- what a call has cost -----------------------------------------------------------------------

_NOT_MADE: Final = (f.WorkerBusy, f.ConnectFailed, f.CallerForbidden, f.CallerUnauthenticated)
_REFUSED: Final = (
    *(f.RateLimited, f.QuotaExhausted, f.RequestOverLimit, f.ContextLength, f.InvalidRequest),
    *(f.PayloadTooLarge, f.KeyRejected, f.KeyForbidden, f.ModelNotFound, f.Overloaded),
)
_UNBILLED: Final = frozenset({500, 503, 529})
"""Of a provider that failed before it answered. A 502 or 504 comes from something in front of a model that
may have done its work."""


def actual_of(hold: Hold, reply: Finished | None, units: frozenset[int]) -> Need | None:
    """What the attempt has cost: the provider's usage, else the worker's own count; None when nobody knows."""
    if reply is None:
        return None
    usage, failure = reply.usage, reply.failure
    if usage is not None:
        nano = reply.cost_nano_usd
        if nano is None:
            nano = cost_of(usage, hold.prices)
        if nano is None and 0 in units:
            return None
        return (nano or 0, usage.input + usage.output, 1)
    if isinstance(failure, _NOT_MADE):
        return (0, 0, 0)
    if isinstance(failure, _REFUSED) or (
        isinstance(failure, f.ServerError) and failure.provider_status in _UNBILLED
    ):
        return (0, 0, 1)
    return None


# --- what is said of it -------------------------------------------------------------------------


def amount_text(unit: str, amount: int) -> str:
    """`1.25 usd`, `3000 tokens`: money to the nano-USD, without trailing zeros."""
    return f"{usd_text(amount)} usd" if unit == "nano_usd" else f"{amount} {unit}"


def remaining_text(paths: Iterable[Path]) -> str:
    """Of each unit the least that is left on any line, as far as is known here."""
    least: dict[str, int] = {}
    for path in paths:
        for line, (available, _) in zip(path.lines, path.remaining, strict=False):
            unit = UNITS.index(line.unit)
            here = available + sum(lease.room(unit) for lease in path.leases)
            least[line.unit] = min(here, least.get(line.unit, here))
    return ", ".join(amount_text(unit, max(0, amount)) for unit, amount in least.items())


def failure_of(refusal: Refusal) -> f.Failure:
    """As a caller is told."""
    match refusal.reason:
        case "exhausted":
            return _exhausted(refusal)
        case "contended":
            why = refusal.message or "the rest of a budget is held by calls in flight"
            return f.BudgetContended(f"{why}: try again shortly", retry_after_s=1.0)
        case "unreachable":
            return f.BudgetContended(
                "the budget ledger does not answer, and nothing is spent without it: try again"
                " shortly, and see that `breakwater run ledger` is running",
                retry_after_s=1.0,
            )
        case "refused":
            return f.BudgetContended(
                f"the budget ledger lends nothing: {refusal.message}", retry_after_s=5.0
            )


def _exhausted(refusal: Refusal) -> f.Failure:
    waits = refusal.resets_in_s >= 0
    retry_after_s = refusal.resets_in_s if waits else None
    limit = amount_text(refusal.unit, refusal.limit)
    whose = refusal.account if account_named(refusal.account).scope != "global" else "everybody"
    if refusal.period.startswith(f"w:{RATE_S}/"):
        return f.RateLimited(
            f"the rate limit of {whose}, {limit} a minute, is reached", retry_after_s=retry_after_s
        )
    left = amount_text(refusal.unit, refusal.remaining)
    if waits:
        said = (
            f"the budget of {whose} is used up: {left} of {limit} are left in period {refusal.period},"
            f" and this request may need more; it resets in {round(refusal.resets_in_s)} s"
        )
    else:
        said = (
            f"the budget of {whose} is too small for this request: it may need more than all of {limit}"
            f" in period {refusal.period} ({left} are left); ask for a shorter answer (max_tokens)"
        )
    return f.BudgetExhausted(
        said,
        retry_after_s=retry_after_s,
    )
