"""Budgets and rate limits: what of them only makes sense together, and how they are shown.

Amounts are whole nano-USD or tokens from the first reading on.
"""

from decimal import Decimal
from functools import cache
from typing import Final, cast
from zoneinfo import ZoneInfo, available_timezones

from breakwater_gateway.config import table as keys
from breakwater_gateway.config.amounts import format_duration, parse_duration_ms
from breakwater_gateway.config.model import Budget, Per, RateLimit
from breakwater_gateway.config.problems import Path, Report, shown
from breakwater_gateway.config.sections import Block

ROLLING_MIN_S: Final = 60
ROLLING_MAX_S: Final = 366 * 86_400

Blocks = tuple[Block | None, ...]


def read_budgets(blocks: Blocks | None, report: Report) -> tuple[Budget, ...]:
    found: list[Budget] = []
    lines: dict[tuple[str, ...], int] = {}
    for index, block in enumerate(blocks or ()):
        account = None if block is None else block.get(keys.ACCOUNT)
        if block is None or account is None:
            continue
        budget = _budget(block, account, ("budgets", index), report)
        if budget is None:
            continue
        place = (budget.scope, budget.id, budget.unit, budget.per, str(budget.rolling_s))
        line, column = block.mark(keys.ACCOUNT)
        if place in lines:
            what = "money" if budget.unit == "nano_usd" else "tokens"
            message = (
                f"the budget of {shown(account)} on line {lines[place]} limits {what} of the same"
                " period; keep one of them"
            )
            report.add(("budgets", index, "account"), line, column, message)
        lines.setdefault(place, line)
        found.append(budget)
    return tuple(found)


def _budget(block: Block, account: str, path: Path, report: Report) -> Budget | None:
    usd, tokens, per = block.get(keys.USD), block.get(keys.TOKENS), block.get(keys.PER)
    limits = block.has(keys.USD) + block.has(keys.TOKENS)
    if limits != 1:
        message = "expected usd or tokens, and not both: write one budget for each"
        report.add(path, *block.mark(), message if limits else '"usd" or "tokens" is missing')
    timezone = block.get(keys.TIMEZONE)
    if timezone is not None and not _is_zone(timezone):
        close = report.nearest(timezone, _zones())
        mend = f'; did you mean "{close}"?' if close else ""
        message = f"expected a time zone such as Europe/Berlin, not {shown(timezone)}{mend}"
        report.add((*path, "timezone"), *block.mark(keys.TIMEZONE), message)
    if per is None or limits != 1:
        return None
    rolling_s = 0
    if per.startswith("rolling "):
        rolling_s = _rolling(per, (*path, "per"), block.mark(keys.PER), report)
        if timezone is not None:
            message = "a rolling window begins at no midnight; leave timezone out"
            report.add((*path, "timezone"), *block.mark(keys.TIMEZONE), message)
        if not rolling_s:
            return None
    # What could not be read limits nothing of either kind: it is no second budget of another one.
    if (usd, tokens) == (None, None):
        return None
    soft = block.get(keys.SOFT)
    scope, id_ = split_account(account)
    return Budget(
        scope=scope,  # type: ignore[arg-type]  # the pattern of the key allows no other
        id=id_,
        unit="tokens" if usd is None else "nano_usd",
        hard=(tokens or 0) if usd is None else usd,
        per="rolling" if rolling_s else cast("Per", per.partition(" ")[0]),
        rolling_s=rolling_s,
        timezone=timezone or "UTC",
        soft=(800_000,)
        if soft is None
        else tuple(sorted({each for each in soft if each is not None})),
        action=block.get(keys.ACTION) or "ladder",  # type: ignore[arg-type]
        webhook=block.get(keys.WEBHOOK) or "",
    )


def _rolling(per: str, path: Path, at: tuple[int, int], report: Report) -> int:
    ms = parse_duration_ms(per.partition(" ")[2]) or 0
    seconds, rest = divmod(ms, 1000)
    if rest or not ROLLING_MIN_S <= seconds <= ROLLING_MAX_S:
        least, most = format_duration(ROLLING_MIN_S), format_duration(ROLLING_MAX_S)
        message = f"expected a window of {least} to {most} in whole seconds, not {shown(per)}"
        report.add(path, *at, message)
        return 0
    return seconds


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


def _is_zone(name: str) -> bool:
    """Known, and loadable here: `available_timezones` names what is there, not what is whole."""
    if name not in _zones():
        return False
    ZoneInfo(name)
    return True


def split_account(account: str) -> tuple[str, str]:
    """`user:alice` -> (`user`, `alice`); `global` has no id."""
    scope, _, id_ = account.partition(":")
    return scope, id_


def read_rate_limits(blocks: Blocks | None, report: Report) -> tuple[RateLimit, ...]:
    found: list[RateLimit] = []
    lines: dict[str, int] = {}
    for index, block in enumerate(blocks or ()):
        account = None if block is None else block.get(keys.RATED)
        if block is None or account is None:
            continue
        path: Path = ("rate_limits", index)
        if not any(block.has(k) for k in (keys.REQUESTS, keys.RATE_TOKENS, keys.CONCURRENT)):
            message = '"requests", "tokens" or "concurrent" is missing: it limits nothing'
            report.add(path, *block.mark(), message)
        line, column = block.mark(keys.RATED)
        if account in lines:
            message = f"{shown(account)} has rate limits on line {lines[account]}; put them there"
            report.add((*path, "account"), line, column, message)
        lines.setdefault(account, line)
        scope, id_ = split_account(account)
        found.append(
            RateLimit(
                scope=scope,  # type: ignore[arg-type]  # the pattern of the key allows no other
                id=id_,
                requests=block.get(keys.REQUESTS),
                tokens=block.get(keys.RATE_TOKENS),
                concurrent=block.get(keys.CONCURRENT),
            )
        )
    return tuple(found)


# --- shown --------------------------------------------------------------------------------------


def plain_budget(budget: Budget) -> dict[str, object]:
    """As the file says it."""
    plain: dict[str, object] = {"account": _account(budget.scope, budget.id)}
    if budget.unit == "tokens":
        plain["tokens"] = budget.hard
    else:
        plain["usd"] = usd_text(budget.hard)
    if budget.rolling_s:
        plain["per"] = f"rolling {format_duration(budget.rolling_s)}"
    else:
        plain["per"] = budget.per
        plain["timezone"] = budget.timezone
    plain["soft"] = [each / 1_000_000 for each in budget.soft]
    plain["action"] = budget.action
    if budget.webhook:
        plain["webhook"] = str(budget.webhook)
    return plain


def plain_rate_limit(limit: RateLimit) -> dict[str, object]:
    plain: dict[str, object] = {"account": _account(limit.scope, limit.id)}
    for name in ("requests", "tokens", "concurrent"):
        value = getattr(limit, name)
        if value is not None:
            plain[name] = value
    return plain


def _account(scope: str, id_: str) -> str:
    return f"{scope}:{id_}" if id_ else scope


def usd_text(nano: int) -> str:
    """Exact: a float has fewer digits than a large amount of nano-USD."""
    return format(Decimal(nano).scaleb(-9).normalize(), "f")
