"""Which budgets hold for whom: from the configuration's rules to the lines of a lease's path."""

from collections.abc import Iterable, Sequence
from typing import Final, Generic, Protocol, TypeVar

from breakwater_gateway.ledger.period import ROLLING_SLOTS
from breakwater_protocol.ledger import Account, Limit, Line, Scope, Unit, partition

EVERYBODY: Final = "*"


class Rule(Protocol):
    """A budget of the configuration."""

    @property
    def scope(self) -> Scope: ...
    @property
    def id(self) -> str:
        """Of the account; `*` for each one; `ORG/ID` or `ORG/*` within one organisation."""
        ...

    @property
    def unit(self) -> Unit: ...
    @property
    def hard(self) -> int: ...
    @property
    def per(self) -> str:
        """`hour`, `day`, `week`, `month` or `rolling`."""
        ...

    @property
    def rolling_s(self) -> int: ...
    @property
    def timezone(self) -> str: ...
    @property
    def soft(self) -> tuple[int, ...]: ...


R = TypeVar("R", bound=Rule)


def period_of(rule: Rule) -> str:
    """The rule's period as a lease's path says it."""
    if rule.per == "rolling":
        return f"rolling:{rule.rolling_s}/{ROLLING_SLOTS}"
    return f"{rule.per}@{rule.timezone}"


def accounts_of(
    *,
    key: str = "",
    user: str = "",
    team: str = "",
    feature: str = "",
    org: str = "",
    provider: str = "",
) -> tuple[Account, ...]:
    """Every account that one call is charged to; what it does not name has none."""
    found = [
        Account("key", key, org),
        Account("user", user, org),
        Account("team", team, org),
        Account("feature", feature),
        Account("org", org),
        Account("provider", provider),
    ]
    return (*(account for account in found if account.id), Account("global"))


class Limits(Generic[R]):
    """The rules, so that those of an account are found at once.

    Of the rules of one scope, unit and period the most particular holds: the account in its organisation,
    the account's id anywhere, everybody in the organisation, everybody.
    """

    def __init__(self, rules: Sequence[R]) -> None:
        self._rules: dict[Scope, dict[tuple[Unit, str, int], dict[str, R]]] = {}
        for rule in rules:
            same = self._rules.setdefault(rule.scope, {})
            same.setdefault((rule.unit, rule.per, rule.rolling_s), {})[rule.id] = rule

    def __bool__(self) -> bool:
        return bool(self._rules)

    def of(self, account: Account) -> list[R]:
        """The rules that hold for it, one a unit and period."""
        found = []
        for by_id in self._rules.get(account.scope, {}).values():
            for id_ in _ids(account):
                rule = by_id.get(id_)
                if rule is not None:
                    found.append(rule)
                    break
        return found


def _ids(account: Account) -> tuple[str, ...]:
    own = account.name.partition(":")[2]
    return (own, account.id, f"{account.org}/{EVERYBODY}", EVERYBODY)


def line_of(account: Account, rule: Rule, revision: int) -> Line:
    return Line(
        account=account.name,
        unit=rule.unit,
        period=period_of(rule),
        limit=Limit(hard=rule.hard, soft=rule.soft, revision=revision),
    )


def paths_of(
    accounts: Iterable[Account], limits: Limits[R], revision: int
) -> dict[int, tuple[Line, ...]]:
    """By partition, the lines that one call debits. Empty: nothing limits it."""
    found: dict[int, tuple[Line, ...]] = {}
    for account in accounts:
        lines = tuple(line_of(account, rule, revision) for rule in limits.of(account))
        if lines:
            number = partition(account)
            found[number] = (*found.get(number, ()), *lines)
    return found
