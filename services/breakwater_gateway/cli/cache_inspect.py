"""`breakwater cache inspect`: what is kept under an id, or why a request is a hit or a miss.

A router answers; nothing is called, counted or kept. Texts are shown only with `--text` and the tenant named.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

import click

from breakwater_gateway.cli import output, reach
from breakwater_gateway.cli.cache_asking import on_bus
from breakwater_gateway.cli.cache_reasons import means, mend
from breakwater_gateway.cli.talk import as_json_option
from breakwater_protocol.inspection import InspectApi

if TYPE_CHECKING:
    from breakwater_gateway.runtime.bus import Bus
    from breakwater_protocol.inspection import (
        AsIf,
        Candidate,
        Inspect,
        Inspected,
        KeptAnswer,
        Meaning,
    )

ASK_S: Final = 10.0
BODY_MAX: Final = 32 * 1024 * 1024
_CODES: Final = {
    "authentication": output.DENIED,
    "permission": output.DENIED,
    "bad_id": output.USAGE,
    "bucket": output.UNREACHABLE,
}


@click.command(
    short_help="What is kept under an id; why a request is a hit or a miss.",
    help="What is kept under ID (a breakwater-cache-id or a digest), or why --request is a hit or a miss.",
)
@click.argument("id_", metavar="[ID|DIGEST]", required=False)
@click.option(
    "--request", "file", metavar="FILE", help="A request's body, as JSON (- for stdin): not made."
)
@click.option("--api", type=click.Choice(get_args(InspectApi)), default="chat", show_default=True)
@click.option("--tenant", help="Whose. Default: of a request `default`, of an entry anybody's.")
@click.option("--user", help="The request's breakwater-user.")
@click.option(
    "--key",
    metavar="KEY_ID|KEY|env:NAME",
    help="The virtual key that the request shows: its id, itself, or where it is.",
)
@click.option("-H", "--header", "headers", metavar="NAME=VALUE", multiple=True)
@click.option(
    "--text", "texts", is_flag=True, help="With texts, of the tenant that --tenant names."
)
@as_json_option
@reach.nats
@reach.creds
def inspect(
    id_: str | None,
    file: str | None,
    api: InspectApi,
    tenant: str | None,
    user: str | None,
    key: str | None,
    headers: tuple[str, ...],
    texts: bool,
    as_json: bool,
    nats_url: str,
    creds: str | None,
) -> None:
    from breakwater_protocol.inspection import Inspect

    if (id_ is None) == (file is None):
        output.fail("give either an ID or --request FILE", code=output.USAGE, as_json=as_json)
    if texts and tenant is None:
        output.fail(
            "--text shows the texts of one tenant: name it with --tenant",
            code=output.USAGE,
            as_json=as_json,
        )
    if file is None:
        if user or key or headers:
            output.fail(
                "--user, --key and --header belong to --request",
                code=output.USAGE,
                as_json=as_json,
            )
        asked = Inspect(id=id_ or "", tenant=tenant or "", texts=texts)
    else:
        request = _as_if(file, api, user, key, headers, as_json=as_json)
        asked = Inspect(tenant=tenant or "default", request=request, texts=texts)

    async def work(bus: "Bus") -> int:
        found = await ask_router(bus, asked, as_json=as_json)
        if found.error:
            code = _CODES.get(found.code, output.FAILED)
            output.fail(found.error, code=code, as_json=as_json, facts={"code": found.code})
        if as_json:
            output.say_json(_told(found))
        else:
            _show(found)
        return 0

    raise SystemExit(on_bus(work, nats_url, creds, as_json=as_json))


async def ask_router(bus: "Bus", asked: "Inspect", *, as_json: bool) -> "Inspected":
    import msgspec

    from breakwater_gateway.runtime.bus import MessageTooLarge, NoResponders
    from breakwater_protocol.cache import EXACT
    from breakwater_protocol.inspection import Inspected
    from breakwater_protocol.subjects import Subjects

    subject = Subjects().cache_inspect
    try:
        reply = await bus.ask(subject.at(EXACT), subject.encode(asked), timeout_s=ASK_S)
    except NoResponders:
        output.fail(
            "no router answers here: start one with `breakwater run router`, or everything with"
            " `breakwater up`",
            code=output.UNREACHABLE,
            as_json=as_json,
        )
    except MessageTooLarge as error:
        output.fail(str(error), code=output.USAGE, as_json=as_json)
    return msgspec.json.decode(reply.data, type=Inspected)


def _as_if(
    file: str,
    api: InspectApi,
    user: str | None,
    key: str | None,
    headers: tuple[str, ...],
    *,
    as_json: bool,
) -> "AsIf":
    import msgspec

    from breakwater_protocol import headers as h
    from breakwater_protocol.inspection import AsIf

    try:
        if file == "-":
            body = sys.stdin.buffer.read(BODY_MAX + 1)
        else:
            with Path(file).open("rb") as opened:
                body = opened.read(BODY_MAX + 1)
    except OSError as error:
        output.fail(f"cannot read {file}: {error.strerror}", code=output.USAGE, as_json=as_json)
    if len(body) > BODY_MAX:
        output.fail(f"{file} has more than {BODY_MAX} bytes", code=output.USAGE, as_json=as_json)
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        output.fail(f"{file} is not JSON: {error}", code=output.USAGE, as_json=as_json)
    given = _headers(headers, as_json=as_json)
    if user:
        given[h.USER] = user
    named = key or ""
    if named.startswith("env:"):
        named = os.environ.get(named[4:], "")
        if not named:
            output.fail(f"{key} is not set", code=output.USAGE, as_json=as_json)
    if named.startswith("bw-"):
        given[h.KEY], named = named, ""
    return AsIf(body=msgspec.Raw(body), api=api, headers=given, key=named)


def _headers(given: tuple[str, ...], *, as_json: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in given:
        # As `route explain` takes them, or as curl does.
        mark = "=" if "=" in each.partition(":")[0] or ":" not in each else ":"
        name, found_mark, value = each.partition(mark)
        if not found_mark or not name.strip():
            output.fail(
                f"expected --header NAME=VALUE, not {each[:80]!r}",
                code=output.USAGE,
                as_json=as_json,
            )
        found[name.strip().lower()] = value.strip()
    return found


# ---------------------------------------------------------------- what is shown


def _told(found: "Inspected") -> dict[str, object]:
    """As it came, with the reasons in words."""
    import msgspec

    told: dict[str, object] = msgspec.to_builtins(found)
    if found.reason:
        told |= {"means": means(found.reason), "mend": mend(found.reason)}
    return told


def _show(found: "Inspected") -> None:
    keyed = found.keyed
    if keyed is not None:
        name = (
            keyed.model
            if keyed.model == keyed.configured
            else f"{keyed.model} -> {keyed.configured}"
        )
        _line(
            "request",
            f"{keyed.api} of tenant {keyed.tenant}, model {name}, scope {keyed.scope or '-'}",
        )
        reason = f", {means(found.reason)}" if found.reason else ""
        _line("verdict", f"{found.verdict}{reason}")
        if mend(found.reason):
            _line("mend", mend(found.reason))
        if keyed.digest:
            _line("digest", keyed.digest)
            _line("partition", keyed.partition)
        if keyed.no_meaning:
            _line("meaning", f"not asked, {means(keyed.no_meaning)}")
    if found.skipped:
        _line("skipped", means(found.skipped))
    if found.kept is not None:
        _kept(found.kept, at=found.at, router=found.router, keyed=keyed is not None)
    if found.meaning is not None:
        _meaning(found.meaning, at=found.at)


def _kept(kept: "KeptAnswer", *, at: float, router: str, keyed: bool) -> None:
    if not keyed:
        _line("answer", f"{kept.api} of tenant {kept.tenant}, model {kept.model}")
        _line("digest", kept.digest)
        _line("partition", kept.partition)
    places = [
        *([f"memory of {router}, {kept.hits} hits there"] if kept.in_memory else []),
        *(["bw_cache"] if kept.in_bucket else []),
    ]
    _line("kept", f"{kept.bytes} bytes as {kept.form}, in {' and '.join(places)}")
    _line("stored", f"{_ago(at - kept.stored_at)} ago")
    _line("fresh", _left(kept.fresh_until - at))
    _line("until", f"{_left(kept.kept_until - at)}, past its time for the rung `stale` alone")
    cost = "unknown" if kept.cost_nano_usd is None else f"{kept.cost_nano_usd / 1e9:.9f} USD"
    tokens = (
        ""
        if kept.input_tokens is None
        else f", {kept.input_tokens} tokens in, {kept.output_tokens} out"
    )
    _line("cost", f"{cost}{tokens}, by {kept.deployment or '-'}")
    if kept.dropped:
        _line("dropped", kept.dropped)
    if kept.text:
        _line("text", kept.text)


def _meaning(meaning: "Meaning", *, at: float) -> None:
    _line("owner", f"{meaning.owner}, shard {meaning.shard}, embedder {meaning.embedder or 'none'}")
    question = meaning.question
    if question is not None:
        wrong = "" if question.quarantined is None else f", wrong at {question.quarantined:.4f}"
        _line(
            "question",
            f"{question.id}, vector of {question.dimensions}, {question.hits} hits{wrong},"
            f" {_left(question.expires_at - at)}",
        )
        if question.text:
            _line("asked", question.text)
    elif meaning.veto == "" and not meaning.candidates:
        _line("question", "none: no vector is kept for it")
    if meaning.served is not None:
        _line("served", f"at similarity {meaning.served:.4f}")
    if meaning.score is not None and meaning.nearest is not None:
        other = "" if meaning.other is None else f", another answer at {meaning.other:.4f}"
        margin = "" if meaning.margin is None else f", margin {meaning.margin:g}"
        _line("score", f"{meaning.score:.4f}: nearest {meaning.nearest:.4f}{other}{margin}")
    if meaning.veto:
        kind = "certified" if meaning.configured is None else f"configured {meaning.configured:g}"
        force = "none in force" if meaning.threshold is None else f"{meaning.threshold:g}"
        _line(
            "threshold", f"{force} ({kind}), veto {meaning.veto}, shadow {meaning.shadow or 0:.0%}"
        )
    for each in meaning.candidates:
        _candidate(each, at=at)


def _candidate(each: "Candidate", *, at: float) -> None:
    question = each.question
    told = [
        f"{each.similarity:.4f}, {'the same' if each.same_answer else 'another'} answer",
        *([f"kept apart by {each.slots}"] if each.slots else []),
        *([f"does not count: {each.out}"] if each.out else []),
        *([] if question.quarantined is None else [f"wrong at {question.quarantined:.4f}"]),
        f"{_ago(at - question.stored_at)} old",
        f"{question.hits} hits",
        question.digest,
    ]
    _line("near", ", ".join(told))
    if question.text:
        _line("", question.text)


def _line(name: str, value: str) -> None:
    output.say(f"{name:<10}{value}")


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{max(0.0, seconds):.0f}s"
    return f"{seconds / 60:.0f}m" if seconds < 7_200 else f"{seconds / 3600:.1f}h"


def _left(seconds: float) -> str:
    return f"for {_ago(seconds)} more" if seconds > 0 else f"ended {_ago(-seconds)} ago"
