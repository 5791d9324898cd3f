"""What a holder may say: bounds and forms, before the books are looked at."""

from typing import Final

from breakwater_gateway.ledger.book import BookLine, holder_of
from breakwater_gateway.ledger.period import BadPeriod, UnknownZone, parse_period
from breakwater_protocol.ledger import (
    AMOUNT_MAX,
    MILLION,
    PATH_MAX,
    SOFT_MAX,
    Amount,
    LeaseAsk,
    LeaseReport,
    Refused,
    account_named,
    partition,
)
from breakwater_protocol.subjects import encode_token

NAME_MAX: Final = 1_024
ID_MAX: Final = 256


def bad_ask(ask: LeaseAsk) -> Refused | None:
    try:
        _bounded_id(ask.lease)
    except ValueError as error:
        return Refused("malformed", str(error))
    if not 1 <= len(ask.path) <= PATH_MAX:
        return Refused("malformed", f"a lease has 1 to {PATH_MAX} lines, not {len(ask.path)}")
    if not (_bounded(ask.min) and _bounded(ask.want)):
        return Refused("malformed", f"amounts are 0 to {AMOUNT_MAX}")
    for line in ask.path:
        limit = line.limit
        if not 0 <= limit.hard <= AMOUNT_MAX or not 0 <= limit.revision <= AMOUNT_MAX:
            return Refused(
                "malformed", f"the limit of {line.account[:200]} is not 0 to {AMOUNT_MAX}"
            )
        soft = limit.soft
        if len(soft) > SOFT_MAX or any(
            not 0 < each <= MILLION or (place and each <= soft[place - 1])
            for place, each in enumerate(soft)
        ):
            return Refused("malformed", "soft thresholds ascend from 1 to a million, 16 at most")
    return None


def bad_line(account: str, period: str, number: int) -> Refused | None:
    """Of a line that the books do not have yet. `number` is the partition's."""
    if len(account) > NAME_MAX:
        return Refused("malformed", f"the name of an account has {NAME_MAX} characters at most")
    try:
        named = account_named(account)
        encode_token(account)  # its events have it in their subject
        parse_period(period)
    except UnknownZone as error:
        return Refused("unknown_zone", str(error))
    except (BadPeriod, ValueError) as error:
        return Refused("malformed", str(error))
    if named.name != account:
        return Refused("malformed", f"{account[:80]!r} is written {named.name[:80]!r}")
    if partition(named) != number:
        return Refused(
            "wrong_partition", f"{account[:200]} is in partition {partition(named)}, not {number}"
        )
    return None


def bad_report(report: LeaseReport) -> Refused | None:
    try:
        _bounded_id(report.lease)
    except ValueError as error:
        return Refused("malformed", str(error))
    if not (_bounded(report.cum_spent) and _bounded(report.in_flight_max)):
        return Refused("malformed", f"amounts are 0 to {AMOUNT_MAX}")
    if report.claim is not None and (
        len(report.claim.path) > PATH_MAX or not _bounded(report.claim.amount)
    ):
        return Refused("malformed", f"a claim has {PATH_MAX} lines and {AMOUNT_MAX} at most")
    return None


def _bounded_id(lease: str) -> None:
    if len(lease) > ID_MAX:
        raise ValueError(f"the id of a lease has {ID_MAX} characters at most")
    if max(holder_of(lease)[1:]) > AMOUNT_MAX:
        raise ValueError(f"not the id of a lease: {lease[:80]!r}")


def _bounded(amount: Amount) -> bool:
    return (
        0 <= amount.nano_usd <= AMOUNT_MAX
        and 0 <= amount.tokens <= AMOUNT_MAX
        and 0 <= amount.requests <= AMOUNT_MAX
    )


def is_key_of(line: BookLine, key: str) -> bool:
    if line.rolling:
        head, _, slot = key.rpartition(":")
        return head == line.span.key.rpartition(":")[0] and slot.isdecimal() and len(slot) < 20
    return len(key) < 128
