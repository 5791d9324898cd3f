"""`breakwater cache calibrate | stats | purge | warm`: the semantic cache, judged, looked at and emptied.

`calibrate` ends with 1 when the configured threshold is looser than the one its pairs certify.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from breakwater_gateway.cli import output, reach
from breakwater_gateway.cli.cache_asking import ask_owners, of_routers, of_shards, on_bus
from breakwater_gateway.cli.cache_inspect import inspect
from breakwater_gateway.cli.talk import as_json_option

if TYPE_CHECKING:
    from breakwater_gateway.cache.calibrate import Scored
    from breakwater_gateway.config.model import Config
    from breakwater_gateway.runtime.bus import Bus
    from breakwater_protocol.cache import Purge, ShardStats

PURGE_S: Final = 60.0
FILE_MAX: Final = 256 * 1024 * 1024


@click.group(help="The semantic cache: calibrate its threshold, see what it holds, empty it.")
def cache() -> None:
    """The group itself does nothing."""


cache.add_command(inspect)


@cache.command(help="Which threshold labelled pairs support: PAIRS has lines of {a, b, same}.")
@click.argument("pairs", metavar="PAIRS.jsonl", type=click.Path(), required=False)
@click.option("--live", is_flag=True, help="Judge the running cache by its own labels instead.")
@click.option(
    "--target",
    default=0.01,
    show_default=True,
    type=click.FloatRange(0, 0.5, min_open=True),
    help="Share of hits that may be wrong.",
)
@click.option(
    "--confidence",
    default=0.95,
    show_default=True,
    type=click.FloatRange(0.5, 0.999999),
)
@click.option("--config", "config_path", metavar="FILE", help="Whose thresholds are judged.")
@click.option("--model", default="", help="Only this model of the configuration, or of the labels.")
@click.option(
    "--embedder", metavar="minilm|FOLDER", help="Default: the configuration's, else minilm."
)
@click.option("--plot", metavar="FILE.png", help="Draw the table.")
@as_json_option
@reach.nats
@reach.creds
def calibrate(
    pairs: str | None,
    live: bool,
    target: float,
    confidence: float,
    config_path: str | None,
    model: str,
    embedder: str | None,
    plot: str | None,
    as_json: bool,
    nats_url: str,
    creds: str | None,
) -> None:
    from breakwater_gateway.cache import calibrate as judge

    if live == (pairs is not None):
        output.fail("give either PAIRS.jsonl or --live", code=output.USAGE, as_json=as_json)
    config = _config(config_path, as_json=as_json)
    thresholds, veto = _policies(config, model)
    if pairs is None:
        scored = _labels(nats_url, creds, model, as_json=as_json)
    else:
        local = embedder or (config.embeddings.local if config and config.embeddings else "")
        scored = _measured(pairs, local or "minilm", veto, as_json=as_json)
    found = judge.report(scored, target=target, confidence=confidence, veto=veto)
    loose = {name: at for name, at in thresholds.items() if judge.is_looser(at, found)}
    if plot is not None:
        _draw(plot, found, as_json=as_json)
    if as_json:
        output.say_json({"report": found, "verdict": judge.verdict(found), "too_loose": loose})
    else:
        output.table(judge.COLUMNS, [judge.cells(row) for row in found.rows])
        if found.worst:
            output.say("\nDifferent answers, nearest to being served:")
            for pair in found.worst:
                kept = "vetoed" if pair.veto else "SERVED"
                output.say(f"  {pair.score:.3f} {kept}  {pair.a!r} | {pair.b!r}")
        output.say("\n" + judge.verdict(found))
        for name, at in loose.items():
            output.say(f"{name}: its threshold {at:g} is looser than that")
    raise SystemExit(output.FAILED if loose else 0)


@cache.command(help="What each router's memory and each shard of the semantic cache hold and did.")
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
    help="Forget answers, exact and semantic: all, or those of a tenant, a model, one id."
)
@click.option("--tenant")
@click.option("--model", help="As callers or the configuration name it.")
@click.option("--partition")
@click.option("--id", "id_", metavar="ID|DIGEST", help="A breakwater-cache-id, or a digest.")
@click.option("--all", "everything", is_flag=True, help="Everything, of everybody.")
@as_json_option
@reach.nats
@reach.creds
def purge(
    tenant: str | None,
    model: str | None,
    partition: str | None,
    id_: str | None,
    everything: bool,
    as_json: bool,
    nats_url: str,
    creds: str | None,
) -> None:
    from breakwater_protocol import cache as c

    if everything == any((tenant, model, partition, id_)):
        message = "name what to forget: --tenant, --model, --partition or --id; or --all"
        output.fail(message, code=output.USAGE, as_json=as_json)

    async def work(bus: "Bus") -> int:
        which = c.Purge(tenant=tenant, model=model, partition=partition)
        if id_:
            which = await named(bus, id_, which, as_json=as_json)
        return await forget(bus, which, as_json=as_json)

    raise SystemExit(on_bus(work, nats_url, creds, as_json=as_json))


async def named(bus: "Bus", id_: str, which: "Purge", *, as_json: bool) -> "Purge":
    """The entry of that id, with its tenant and partition."""
    from breakwater_gateway.cli.cache_inspect import ask_router
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
    missing = c.SHARDS - len(owners) if answers.semantic else 0
    if as_json:
        output.say_json(
            {
                "purged": answers.purged + questions,
                "answers": answers.purged,
                "questions": questions,
                "shards": len(owners),
                "shards_without_owner": missing,
            }
        )
    else:
        output.say(f"{answers.purged} answers and {questions} questions are gone")
    if missing:
        output.note(
            f"{missing} of {c.SHARDS} shards have no owner: what bw_semantic keeps of their questions"
            " is still there; start `breakwater run cache` and purge again"
        )
        return output.FAILED
    return 0


@cache.command(help="Ask what FILE lists, so that it is kept: lines of {request, api, namespace}.")
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


def _config(path: str | None, *, as_json: bool) -> "Config | None":
    from breakwater_gateway.cli.process import CannotStart, read_config
    from breakwater_gateway.config.problems import ConfigError

    if path is None:
        return None
    try:
        return read_config(path)[1]
    except CannotStart as error:
        output.fail(str(error), code=output.USAGE, as_json=as_json)
    except ConfigError as error:
        output.fail(str(error), code=output.CONFIG, as_json=as_json)


def _policies(config: "Config | None", model: str) -> tuple[dict[str, float], Any]:
    """The thresholds to judge, by model, and the veto of the first of them."""
    from breakwater_gateway.config.model import Semantic

    if config is None:
        return {"the default": Semantic().threshold or 1.0}, "strict"
    policies = {
        name: each.cache.semantic
        for name, each in config.models.items()
        if each.cache.semantic is not None and model in ("", name)
    }
    vetoes = [policy.veto for policy in policies.values()]
    return (
        {name: p.threshold for name, p in policies.items() if p.threshold is not None},
        vetoes[0] if vetoes else "strict",
    )


def _measured(path: str, local: str, veto: Any, *, as_json: bool) -> "list[Scored]":  # noqa: ANN401
    from breakwater_gateway.cache.calibrate import BadPairs, read_pairs, scored

    try:
        with Path(path).open("rb") as file:
            text = file.read(FILE_MAX + 1)
    except OSError as error:
        output.fail(f"cannot read {path}: {error.strerror}", code=output.USAGE, as_json=as_json)
    if len(text) > FILE_MAX:
        output.fail(f"{path} has more than {FILE_MAX} bytes", code=output.USAGE, as_json=as_json)
    try:
        pairs = read_pairs(text)
    except BadPairs as error:
        output.fail(f"{path}: {error}", code=output.USAGE, as_json=as_json)
    texts = sorted({text for pair in pairs for text in (pair.a, pair.b)})
    vectors = dict(zip(texts, vectors_of(texts, local, as_json=as_json), strict=True))
    found = []
    for pair in pairs:
        a, b = vectors[pair.a], vectors[pair.b]
        # A text beyond the embedder's window is never looked up: such a pair is no hit anywhere.
        similarity = -1.0 if a is None or b is None else float(a @ b)
        found.append(scored(pair, similarity, veto))
    return found


def vectors_of(texts: Sequence[str], local: str, *, as_json: bool = False) -> list[Any]:
    """Unit vectors of a local MiniLM, None for texts beyond its window; kept in a file for the next time."""
    import numpy as np

    from breakwater_gateway.cache.embed.minilm import MiniLM
    from breakwater_gateway.cache.embed.weights import NoWeights

    name = hashlib.blake2b(local.encode(), digest_size=6).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "breakwater"
    file = folder / f"vectors-{name}.npz"
    known: dict[bytes, Any] = {}
    if file.is_file():
        with np.load(file) as kept:
            known = dict(zip(map(bytes, kept["keys"]), kept["vectors"], strict=True))
    keys = [
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        for text in texts
    ]
    missing = [(key, text) for key, text in zip(keys, texts, strict=True) if key not in known]
    if missing:
        try:
            model = MiniLM(local)
        except NoWeights as error:
            output.fail(str(error), code=output.USAGE, as_json=as_json)
        for key, text in missing:
            vector = model.embed(text)
            known[key] = np.zeros(model.dimensions, np.float32) if vector is None else vector
        folder.mkdir(parents=True, exist_ok=True)
        table = np.array([np.frombuffer(key, np.uint8) for key in known])
        partial = file.with_name(f"{file.stem}-{os.getpid()}.npz")
        np.savez(partial, keys=table, vectors=np.array(list(known.values()), np.float32))
        partial.replace(file)
    return [known[key] if known[key].any() else None for key in keys]


def _labels(nats_url: str, creds: str | None, model: str, *, as_json: bool) -> "list[Scored]":
    from breakwater_gateway.cache.calibrate import Scored

    found: list[Scored] = []

    async def work(bus: "Bus") -> int:
        for shard in await of_shards(bus, labels=True):
            found.extend(
                Scored(each.a, each.b, each.same, each.score, each.veto)
                for each in shard.labels
                if model in ("", each.model)
            )
        return 0

    on_bus(work, nats_url, creds, as_json=as_json)
    if not found:
        message = "the running cache has no labels yet: they come from its misses and shadowed hits"
        output.fail(message, code=output.FAILED, as_json=as_json)
    return found


def _draw(path: str, found: Any, *, as_json: bool) -> None:  # noqa: ANN401
    from breakwater_gateway.cache.plot import png

    try:
        Path(path).write_bytes(png(found))
    except OSError as error:
        output.fail(f"cannot write {path}: {error.strerror}", code=output.USAGE, as_json=as_json)
