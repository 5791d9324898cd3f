"""`breakwater cache calibrate | stats | inspect | purge | warm`: the cache, judged, looked at and emptied."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from breakwater_gateway.cli import output, reach
from breakwater_gateway.cli.cache_asking import ask_owners, of_routers, of_shards, on_bus
from breakwater_gateway.cli.cache_calibrate import calibrate
from breakwater_gateway.cli.cache_inspect import ask_router, inspect
from breakwater_gateway.cli.talk import as_json_option

if TYPE_CHECKING:
    from breakwater_gateway.runtime.bus import Bus
    from breakwater_protocol.cache import Purge, ShardStats

PURGE_S: Final = 60.0
FILE_MAX: Final = 256 * 1024 * 1024


@click.group(help="The cache: calibrate its threshold, ask it why, see what it holds, empty it.")
def cache() -> None:
    """The group itself does nothing."""


cache.add_command(calibrate)
cache.add_command(inspect)


@cache.command(
    short_help="What routers and shards hold and did.",
    help="What each router's memory and each shard of the semantic cache hold and did.",
)
@click.option("--tenant", help="Only this tenant's.")
@as_json_option
@reach.nats
@reach.creds
def stats(tenant: str | None, as_json: bool, nats_url: str, creds: str | None) -> None:
    async def work(bus: "Bus") -> int:
        found = [*await of_routers(bus), *await of_shards(bus, tenant=tenant)]
        if as_json:
            for shard in found:
                output.say_json(shard)
        else:
            _show(found)
        return 0

    raise SystemExit(on_bus(work, nats_url, creds, as_json=as_json))


@cache.command(
    short_help="Forget answers, and the questions that lead to them.",
    help="Forget answers, exact and semantic: all, or those of a tenant, a model, one id.",
)
@click.option("--tenant")
@click.option("--model", help="As callers or the configuration name it.")
@click.option("--partition")
@click.option("--id", "id_", metavar="ID|DIGEST", help="A breakwater-cache-id, or a digest.")
@click.option("--labels", is_flag=True, help="Their labelled pairs too: what calibrates is lost.")
@click.option("--all", "everything", is_flag=True, help="Everything, of everybody.")
@as_json_option
@reach.nats
@reach.creds
def purge(
    tenant: str | None,
    model: str | None,
    partition: str | None,
    id_: str | None,
    labels: bool,
    everything: bool,
    as_json: bool,
    nats_url: str,
    creds: str | None,
) -> None:
    from breakwater_protocol import cache as c

    if everything == any((tenant, model, partition, id_)):
        message = "name what to forget: --tenant, --model, --partition or --id; or --all"
        output.fail(message, code=output.USAGE, as_json=as_json)
    if labels and (partition or id_):
        message = "labels are of a tenant and a model, of no partition and no id"
        output.fail(message, code=output.USAGE, as_json=as_json)

    async def work(bus: "Bus") -> int:
        which = c.Purge(tenant=tenant, model=model, partition=partition, labels=labels)
        if id_:
            which = await named(bus, id_, which, as_json=as_json)
        return await forget(bus, which, as_json=as_json)

    raise SystemExit(on_bus(work, nats_url, creds, as_json=as_json))


async def named(bus: "Bus", id_: str, which: "Purge", *, as_json: bool) -> "Purge":
    """The entry of that id, with its tenant and partition."""
    from breakwater_protocol.cache import Purge
    from breakwater_protocol.inspection import Inspect

    asked = Inspect(id=id_, tenant=which.tenant or "")
    found = await ask_router(bus, asked, as_json=as_json)
    entry = found.kept or (found.meaning and found.meaning.question)
    if found.error:
        output.fail(found.error, code=output.FAILED, as_json=as_json)
    if not entry:
        # A value that is none: no tenant and no partition are those of anything else.
        return Purge(tenant="", partition="", digest=id_.removeprefix("e"))
    if which.model not in {None, entry.model} or which.partition not in {None, entry.partition}:
        output.fail("the entry of that id is another's", code=output.FAILED, as_json=as_json)
    return Purge(tenant=entry.tenant, partition=entry.partition, digest=entry.digest)


async def forget(bus: "Bus", which: "Purge", *, as_json: bool) -> int:
    import msgspec

    from breakwater_gateway.runtime.bus import NoResponders
    from breakwater_protocol import cache as c
    from breakwater_protocol.subjects import Subjects

    subject = Subjects().cache_purge
    asked = subject.encode(which)
    # Questions first: none may lead to an answer that is gone already.
    owners = await ask_owners(bus, subject.at, asked, c.PurgeReply, timeout_s=PURGE_S)
    try:
        said = await bus.ask(subject.at(c.EXACT), asked, timeout_s=PURGE_S)
    except NoResponders:
        output.fail(
            "no router answers, so the answers are kept: start one with `breakwater run router`"
            " and purge again",
            code=output.UNREACHABLE,
            as_json=as_json,
        )
    answers = msgspec.json.decode(said.data, type=c.PurgeReply)
    questions = sum(reply.purged for reply in owners.values())
    labels = sum(reply.labels for reply in owners.values())
    missing = c.SHARDS - len(owners) if answers.semantic else 0
    if as_json:
        output.say_json(
            {
                "purged": answers.purged + questions,
                "answers": answers.purged,
                "questions": questions,
                "labels": labels,
                "shards": len(owners),
                "shards_without_owner": missing,
            }
        )
    else:
        told = [f"{answers.purged} answers", f"{questions} questions"]
        told += [f"{labels} labels"] if which.labels else []
        output.say(f"{', '.join(told[:-1])} and {told[-1]} are gone")
    if missing:
        output.note(
            f"{missing} of {c.SHARDS} shards have no owner: what bw_semantic keeps of their questions"
            " is still there; start `breakwater run cache` and purge again"
        )
        return output.FAILED
    return 0


@cache.command(
    short_help="Ask what a file lists, so that it is kept.",
    help="Ask what FILE lists, so that it is kept: lines of {request, api, namespace}.",
)
@click.argument("file", metavar="FILE.jsonl", type=click.Path())
@click.option("--tenant", default="default", show_default=True)
@click.option("--timeout", "timeout_s", default=60.0, show_default=True, metavar="SECONDS")
@as_json_option
@reach.nats
@reach.creds
def warm(
    file: str, tenant: str, timeout_s: float, as_json: bool, nats_url: str, creds: str | None
) -> None:
    from breakwater_gateway.cli.cache_warming import BadRows, read_rows
    from breakwater_gateway.cli.cache_warming import warm as ask_all

    try:
        with Path(file).open("rb") as opened:
            rows = read_rows(opened.read(FILE_MAX + 1))
    except OSError as error:
        output.fail(f"cannot read {file}: {error.strerror}", code=output.USAGE, as_json=as_json)
    except BadRows as error:
        output.fail(f"{file}: {error}", code=output.USAGE, as_json=as_json)

    async def work(bus: "Bus") -> int:
        counts = await ask_all(bus, rows, tenant=tenant, timeout_s=timeout_s)
        if as_json:
            output.say_json(counts)
        else:
            output.say(
                "{miss} asked and kept, {hit} kept already, {bypass} never kept, {failed} failed".format(
                    **counts
                )
            )
        return output.FAILED if counts["failed"] else 0

    raise SystemExit(on_bus(work, nats_url, creds, as_json=as_json))


def _show(found: "list[ShardStats]") -> None:
    if not found:
        output.say("nobody answered: no router runs, and no shard has an owner")
        return
    output.table(
        ("shard", "owner", "entries", "bytes", "lookups", "hits", "stores", "misses"),
        [
            (
                *(s.shard, s.owner, str(s.entries), str(s.bytes), str(s.lookups), str(s.hits)),
                *(str(s.stores), " ".join(f"{k}={v}" for k, v in sorted(s.misses.items()))),
            )
            for s in found
        ],
    )
