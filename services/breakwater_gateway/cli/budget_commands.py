"""`breakwater budget show | set | release | correct | resume | history`: the ledger, for who operates it."""

import asyncio
import getpass
import re
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Final, NoReturn, cast

import click
import msgspec

from breakwater_gateway.cli import output, reach
from breakwater_gateway.cli.talk import as_json_option
from breakwater_protocol.ledger import (
    PARTITIONS,
    Books,
    BudgetLine,
    CommandReply,
    Correct,
    Done,
    NotLeader,
    Operate,
    Query,
    QueryReply,
    Refused,
    Release,
    Resume,
    SetLimit,
    Unit,
    account_named,
    partition,
    partition_token,
)

if TYPE_CHECKING:
    from breakwater_gateway.runtime.bus import Bus
    from breakwater_protocol.ledger import Account
    from breakwater_protocol.subjects import Subjects

ASK_S: Final = 2.0
PATIENCE_S: Final = 5.0
"""While a standby takes over nobody answers."""
_PERIODS: Final = ("hour", "day", "week", "month")

_why = click.option("--why", default="", metavar="TEXT", help="For the log.")
_usd = click.option("--usd", metavar="AMOUNT", help="Money, such as 12.50.")
_tokens = click.option("--tokens", type=int, help="Tokens.")
_requests = click.option("--requests", type=int, help="Requests.")
_per = click.option(
    "--per", default="day", show_default=True, metavar="PERIOD",
    help="hour, day, week, month, 'rolling DURATION' or ever.",
)  # fmt: skip
_zone = click.option("--timezone", default="UTC", show_default=True, help="Whose midnight counts.")

Work = Callable[["Bus", "Subjects"], Awaitable[int]]


@click.group(help="Budgets: what is spent, held and left; limits, leases and their history.")
def budget() -> None:
    """The group itself does nothing."""


@budget.command(
    help="Every budget in use: limit, committed, held, available. ACCOUNT: user:alice, org:*."
)
@click.argument("account", default="")
@click.option("--leases", is_flag=True, help="Also who holds what.")
@as_json_option
@reach.nats
@reach.creds
def show(account: str, leases: bool, as_json: bool, nats_url: str, creds: str | None) -> None:
    async def work(bus: "Bus", subjects: "Subjects") -> int:
        lines: list[BudgetLine] = []
        held: list[object] = []
        for number in _partitions_of(account):
            books = await _ask(
                bus, subjects.books.at(partition_token(number)),
                Query(account, leases), QueryReply, as_json=as_json,
            )  # fmt: skip
            if not isinstance(books, Books):
                _refused(books, as_json=as_json)
            lines += books.lines
            held += books.leases
            if books.safe:
                output.note(
                    f"Partition {number} lends nothing: its log was rolled back."
                    f" See `breakwater budget resume {number}`."
                )
            if books.more:
                output.note(f"Partition {number} has more than it can say; name an account.")
        if as_json:
            for each in (*lines, *held):
                output.say_json(each)
            return 0
        output.table(
            ("account", "period", "limit", "committed", "held", "available", "resets", ""),
            [_row(line) for line in sorted(lines, key=lambda line: line.account)],
        )
        if leases:
            for lease in held:
                output.say(msgspec.json.encode(lease).decode())
        return 0

    _run(work, nats_url, creds, as_json=as_json)


@budget.command("set", help="A limit that goes before the configuration's, until --clear.")
@click.argument("account")
@_usd
@_tokens
@_requests
@_per
@_zone
@click.option("--clear", type=click.Choice(["usd", "tokens", "requests"]), help="Take it back.")
@_why
@as_json_option
@reach.nats
@reach.creds
def set_(
    account: str,
    usd: str | None,
    tokens: int | None,
    requests: int | None,
    per: str,
    timezone: str,
    clear: str | None,
    why: str,
    as_json: bool,
    nats_url: str,
    creds: str | None,
) -> None:
    if clear is not None:
        unit: Unit = "nano_usd" if clear == "usd" else cast("Unit", clear)
        hard = None
    else:
        unit, hard = _amount(usd, tokens, requests, as_json=as_json)
    named = _account(account, as_json=as_json)
    change = SetLimit(named.name, unit, _period(per, timezone, as_json=as_json), hard, _me(), why)
    _operate(partition(named), change, nats_url, creds, as_json=as_json)


@budget.command(help="Add to (or, below zero, take from) what an account has spent.")
@click.argument("account")
@_usd
@_tokens
@_requests
@_per
@_zone
@_why
@as_json_option
@reach.nats
@reach.creds
def correct(
    account: str,
    usd: str | None,
    tokens: int | None,
    requests: int | None,
    per: str,
    timezone: str,
    why: str,
    as_json: bool,
    nats_url: str,
    creds: str | None,
) -> None:
    unit, delta = _amount(usd, tokens, requests, as_json=as_json)
    named = _account(account, as_json=as_json)
    change = Correct(named.name, unit, _period(per, timezone, as_json=as_json), delta, _me(), why)
    _operate(partition(named), change, nats_url, creds, as_json=as_json)


@budget.command(help="Close the lease of a router that is gone for good, at what it reported.")
@click.argument("lease")
@_why
@as_json_option
@reach.nats
@reach.creds
def release(lease: str, why: str, as_json: bool, nats_url: str, creds: str | None) -> None:
    async def work(bus: "Bus", subjects: "Subjects") -> int:
        for number in range(PARTITIONS):
            reply = await _change(
                bus, subjects, number, Release(lease, _me(), why), as_json=as_json
            )
            if isinstance(reply, Done):
                _done(reply, number, f"{lease} is released", as_json=as_json)
                return 0
            if reply.reason != "unknown":
                _refused(reply, as_json=as_json)
        missing = f"no lease {lease} is open or expired"
        output.fail(missing, code=output.FAILED, as_json=as_json)
        return output.FAILED

    _run(work, nats_url, creds, as_json=as_json)


@budget.command(help="Let a partition lend again whose log was rolled back.")
@click.argument("number", metavar="PARTITION", type=click.IntRange(0, PARTITIONS - 1))
@_why
@as_json_option
@reach.nats
@reach.creds
def resume(number: int, why: str, as_json: bool, nats_url: str, creds: str | None) -> None:
    _operate(number, Resume(_me(), why), nats_url, creds, as_json=as_json)


@budget.command(help="What happened to ACCOUNT, from the ledger's log; or its cost by a property.")
@click.argument("account", default="")
@click.option(
    "--by", metavar="PROPERTY",
    help="Costs of requests by property.NAME, user, org, feature, model, …, from the stream of events.",
)  # fmt: skip
@click.option("--since", metavar="DURATION", help="Such as 24h; default all that is kept.")
@as_json_option
@reach.nats
@reach.creds
def history(
    account: str,
    by: str | None,
    since: str | None,
    as_json: bool,
    nats_url: str,
    creds: str | None,
) -> None:
    since_s = time.time() - _seconds(since, as_json=as_json) if since else 0.0

    async def work(bus: "Bus", subjects: "Subjects") -> int:
        if by is not None:
            return await _costs(bus, subjects, account, by, since_s, as_json=as_json)
        if not account:
            output.fail("name an account, such as user:alice or user:*, or --by PROPERTY",
                        code=output.USAGE, as_json=as_json)  # fmt: skip
        return await _history(bus, subjects, account, since_s, as_json=as_json)

    _run(work, nats_url, creds, as_json=as_json)


async def _history(
    bus: "Bus", subjects: "Subjects", account: str, since_s: float, *, as_json: bool
) -> int:
    from breakwater_gateway.ledger.history import History
    from breakwater_protocol.ledger import Record

    log = await bus.event_log("LEDGER")
    decoder = msgspec.json.Decoder(Record)
    for number in _partitions_of(account):
        told = History(account)
        subject, after = subjects.ledger_log.at(partition_token(number)), 0
        while found := await log.read(subject, after=after):
            after = found[-1].seq
            for stored in found:
                for each in told.tell(decoder.decode(stored.data)):
                    if each.at < since_s:
                        continue
                    if as_json:
                        output.say_json(each)
                        continue
                    value = "" if each.value is None else amount_text(each.value, each.unit)
                    cells = (
                        *(_time(each.at), each.what, each.account, each.period, value),
                        *(each.lease, each.by, each.why),
                    )
                    output.say("\t".join(cells).rstrip())
    return 0


async def _costs(
    bus: "Bus", subjects: "Subjects", account: str, by: str, since_s: float, *, as_json: bool
) -> int:
    from breakwater_gateway.ledger.history import Costs

    try:
        costs = Costs(by, account_named(account) if account else None)
    except ValueError as error:
        output.fail(str(error), code=output.USAGE, as_json=as_json)
    log = await bus.event_log("EVT")
    after = 0
    while found := await log.read(subjects.request.any(), after=after):
        after = found[-1].seq
        for stored in found:
            if stored.at >= since_s:
                costs.tell(subjects.request.decode(stored.data))
    if as_json:
        for cost in costs.found():
            output.say_json(cost)
        return 0
    output.table(
        (by, "requests", "cost", "input tokens", "output tokens", "without a price"),
        [
            (
                *(cost.value or "-", str(cost.requests), amount_text(cost.nano_usd, "nano_usd")),
                *(str(cost.input_tokens), str(cost.output_tokens), str(cost.unpriced)),
            )
            for cost in costs.found()
        ],
    )
    return 0


# --- Asking the ledger --------------------------------------------------------------------------


def _operate(
    number: int,
    change: SetLimit | Correct | Resume,
    nats_url: str,
    creds: str | None,
    *,
    as_json: bool,
) -> None:
    async def work(bus: "Bus", subjects: "Subjects") -> int:
        reply = await _change(bus, subjects, number, change, as_json=as_json)
        if isinstance(reply, Refused):
            _refused(reply, as_json=as_json)
        _done(reply, number, "done, and in the log", as_json=as_json)
        return 0

    _run(work, nats_url, creds, as_json=as_json)


async def _change(
    bus: "Bus",
    subjects: "Subjects",
    number: int,
    change: SetLimit | Release | Correct | Resume,
    *,
    as_json: bool,
) -> Done | Refused:
    subject = subjects.operate.at(partition_token(number))
    reply = await _ask(bus, subject, Operate(change), CommandReply, as_json=as_json)
    return cast("Done | Refused", reply)


async def _ask(
    bus: "Bus", subject: str, message: object, reply: object, *, as_json: bool
) -> Books | Done | Refused:
    """Until somebody leads. Ends the command when nobody does."""
    from breakwater_gateway.runtime.bus import AskTimeout, NoResponders

    data = msgspec.json.encode(message)
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            answer = await bus.ask(subject, data, timeout_s=ASK_S)
            found = msgspec.json.decode(answer.data, type=reply)
            if not isinstance(found, NotLeader):
                return cast("Books | Done | Refused", found)
        except (AskTimeout, NoResponders):
            pass  # a standby takes over within two seconds
        if time.monotonic() > until:
            output.fail(
                "no ledger answers; `breakwater up` starts one, or `breakwater run ledger`",
                code=output.UNREACHABLE, as_json=as_json,
            )  # fmt: skip
        await asyncio.sleep(0.2)


def _refused(reply: Refused | Done, *, as_json: bool) -> NoReturn:
    reason, message = (reply.reason, reply.message) if isinstance(reply, Refused) else ("", "")
    code = output.FAILED if reason == "unknown" else output.USAGE
    output.fail(message, code=code, as_json=as_json, facts={"reason": reason})


def _done(reply: Done, number: int, text: str, *, as_json: bool) -> None:
    if as_json:
        output.say_json({"partition": number, "seq": reply.seq})
    else:
        output.say(text)


def _run(work: Work, nats_url: str, creds: str | None, *, as_json: bool) -> None:
    from breakwater_protocol.subjects import Subjects

    async def asked(bus: "Bus") -> int:
        with _failing(as_json=as_json):
            return await work(bus, Subjects())

    reach.run(
        asked, nats_url, creds, name="budget", without="nothing was kept yet", as_json=as_json
    )


@contextmanager
def _failing(*, as_json: bool) -> Iterator[None]:
    try:
        yield
    except msgspec.MsgspecError as error:
        output.fail(f"not an answer of a ledger: {error}", code=output.FAILED, as_json=as_json)


# --- What people write and read -----------------------------------------------------------------


def _partitions_of(account: str) -> list[int]:
    """Where a pattern's accounts may be. Raises nothing: a name that is none is in all of them."""
    if account and not account.endswith("*"):
        try:
            return [partition(account_named(account))]
        except ValueError:
            pass
    return list(range(PARTITIONS))


def _account(name: str, *, as_json: bool) -> "Account":
    try:
        return account_named(name)
    except ValueError as error:
        output.fail(str(error), code=output.USAGE, as_json=as_json)


def _amount(
    usd: str | None, tokens: int | None, requests: int | None, *, as_json: bool
) -> tuple[Unit, int]:
    if sum(each is not None for each in (usd, tokens, requests)) != 1:
        output.fail(
            "give one of --usd, --tokens and --requests", code=output.USAGE, as_json=as_json
        )
    if tokens is not None:
        return "tokens", tokens
    if requests is not None:
        return "requests", requests
    try:
        nano = Decimal(usd or "").scaleb(9)
        whole = int(nano)
    except (InvalidOperation, ValueError, OverflowError):
        nano, whole = Decimal(1), 0
    if nano != whole:
        output.fail(
            f"--usd is an amount in whole nano-USD, such as 12.50, not {usd!r}",
            code=output.USAGE, as_json=as_json,
        )  # fmt: skip
    return "nano_usd", whole


def _period(per: str, timezone: str, *, as_json: bool) -> str:
    from breakwater_gateway.ledger.period import ROLLING_SLOTS, BadPeriod, parse_period

    if per in _PERIODS:
        spec = f"{per}@{timezone}"
    elif per.startswith("rolling "):
        spec = f"rolling:{_seconds(per.removeprefix('rolling '), as_json=as_json)}/{ROLLING_SLOTS}"
    else:
        spec = per
    try:
        parse_period(spec)
    except BadPeriod as error:
        output.fail(str(error), code=output.USAGE, as_json=as_json)
    return spec


def _seconds(text: str, *, as_json: bool) -> int:
    found = re.fullmatch(r"([1-9][0-9]{0,8})(s|m|h|d)", text)
    if found is None:
        output.fail(f"not a duration: {text!r}; such as 90s, 10m, 24h, 7d", code=output.USAGE,
                    as_json=as_json)  # fmt: skip
    return int(found[1]) * {"s": 1, "m": 60, "h": 3_600, "d": 86_400}[found[2]]


def amount_text(amount: int, unit: Unit) -> str:
    if unit == "nano_usd":
        return f"${Decimal(amount).scaleb(-9).normalize():f}"
    return f"{amount} {unit}"


def _row(line: BudgetLine) -> tuple[str, ...]:
    values = (line.limit, line.committed, line.held, line.available)
    resets = "never" if line.resets_in_s < 0 else f"in {_left(line.resets_in_s)}"
    notes = ["override"] if line.override else []
    if line.available <= 0:
        notes.append("exhausted")
    elif line.crossed:
        notes.append(f"over {max(line.crossed) / 10_000:g} %")
    amounts = (amount_text(each, line.unit) for each in values)
    return (line.account, line.period, *amounts, resets, ", ".join(notes))


def _left(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _me() -> str:
    """For the log: who, and where from."""
    try:
        who = getpass.getuser()
    except (KeyError, OSError):
        who = "unknown"
    return f"{who}@{socket.gethostname()}"[:200]
