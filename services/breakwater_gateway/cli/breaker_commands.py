"""`breakwater breaker list | trip | reset`: what health's leader knows of targets, and an operator's word."""

import time
from typing import TYPE_CHECKING, Final

import click
import msgspec

from breakwater_gateway.cli import output, reach
from breakwater_gateway.cli.talk import as_json_option

if TYPE_CHECKING:
    from breakwater_protocol.commands import BreakerReply, BreakerStatus

PATIENCE_S: Final = 5.0
"""A dead leader is replaced within three seconds."""
TRY_S: Final = 1.0


@click.group(help="Breakers: list them, trip one, reset one.")
def breaker() -> None:
    """The group itself does nothing."""


@breaker.command(
    "list", help="Every target's breaker, or that of TARGET alone: deployments, keys, regions."
)
@click.argument("target", required=False, default="")
@click.option("--all", "everything", is_flag=True, help="Those that never failed too.")
@as_json_option
@reach.nats
@reach.root
@reach.creds
def list_(
    target: str, everything: bool, as_json: bool, nats_url: str, root: str, creds: str | None
) -> None:
    found = _told("list", target, None, nats_url, root, creds, as_json=as_json).breakers
    if not (target or everything):
        found = [b for b in found if b.kind == "deployment" or b.epoch or b.window]
    _show(found, as_json=as_json)


@breaker.command(help="Send nothing to TARGET for a while; then it is probed like any other.")
@click.argument("target")
@click.option("--for", "for_", metavar="DURATION", help="Such as 5m; default its next open time.")
@as_json_option
@reach.nats
@reach.root
@reach.creds
def trip(
    target: str, for_: str | None, as_json: bool, nats_url: str, root: str, creds: str | None
) -> None:
    for_s = None if for_ is None else _seconds(for_, as_json=as_json)
    _show(
        _told("trip", target, for_s, nats_url, root, creds, as_json=as_json).breakers,
        as_json=as_json,
    )


@breaker.command(help="Close TARGET's breaker at once and forgive its past.")
@click.argument("target")
@as_json_option
@reach.nats
@reach.root
@reach.creds
def reset(target: str, as_json: bool, nats_url: str, root: str, creds: str | None) -> None:
    _show(
        _told("reset", target, None, nats_url, root, creds, as_json=as_json).breakers,
        as_json=as_json,
    )


def _seconds(text: str, *, as_json: bool) -> float:
    from breakwater_gateway.config.amounts import parse_duration_ms

    ms = parse_duration_ms(text)
    if not ms:
        output.fail(
            f"--for takes a duration such as 90s, 5m or 1h, not {text[:40]!r}",
            code=output.USAGE,
            as_json=as_json,
        )
    return ms / 1000


def _told(
    action: str,
    target: str,
    for_s: float | None,
    nats_url: str,
    root: str,
    creds: str | None,
    *,
    as_json: bool,
) -> "BreakerReply":
    """What the leader answered. Nobody there, or an unknown target, ends the command."""
    import asyncio

    from breakwater_gateway.runtime.bus import BusError
    from breakwater_protocol.subjects import BadToken

    try:
        reply = asyncio.run(_ask(action, target, for_s, nats_url, root, creds))
    except BadToken as error:
        output.fail(str(error), code=output.USAGE, as_json=as_json)
    except BusError as error:
        output.fail(str(error), code=output.UNREACHABLE, as_json=as_json)
    if reply is None:
        output.fail(
            "no health actor leads here, so nobody owns the breakers: start one with"
            " `breakwater run health`",
            code=output.UNREACHABLE,
            as_json=as_json,
        )
    if reply.error:
        output.fail(reply.error, code=output.FAILED, as_json=as_json)
    return reply


async def _ask(
    action: str, target: str, for_s: float | None, nats_url: str, root: str, creds: str | None
) -> "BreakerReply | None":
    """None: no health actor answered. Between two leaders nobody does for a moment, so it is asked again."""
    from breakwater_gateway.runtime.bus import AskTimeout, NoResponders
    from breakwater_protocol.commands import BreakerCommand, BreakerReply
    from breakwater_protocol.subjects import Subjects

    subject = Subjects(root).breaker
    async with reach.bus(nats_url, creds, name="cli/breaker") as bus:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            try:
                answer = await bus.ask(
                    subject.at(action),
                    subject.encode(BreakerCommand(target, for_s)),
                    timeout_s=TRY_S,
                )
            except NoResponders:
                return None
            except AskTimeout:
                continue
            return msgspec.json.decode(answer.data, type=BreakerReply)
        return None


def _show(found: "list[BreakerStatus]", *, as_json: bool) -> None:
    if as_json:
        for each in found:
            output.say_json(each)
        return
    now = time.time()
    output.table(
        ("target", "kind", "state", "since", "cause", "probed in", "share", "window"),
        [
            (
                each.target,
                each.kind,
                each.state,
                _ago(now - each.at) if each.at else "",
                each.cause,
                _ago(max(0.0, each.until - now)) if each.state == "open" else "",
                f"{each.share:.0%}",
                f"{each.failures} of {each.window} failed" if each.window else "",
            )
            for each in found
        ],
    )


def _ago(seconds: float) -> str:
    return f"{seconds:.0f}s" if seconds < 120 else f"{seconds / 60:.0f}m"
