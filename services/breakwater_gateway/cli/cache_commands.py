"""`breakwater cache calibrate | stats | purge | warm`: the semantic cache, judged, looked at and emptied.

`calibrate` ends with 1 when the configured threshold is looser than the one its pairs certify.
"""

import hashlib
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from breakwater_gateway.cli import output, reach
from breakwater_gateway.cli.talk import as_json_option

if TYPE_CHECKING:
    from breakwater_gateway.cache.calibrate import Scored
    from breakwater_gateway.config.model import Config
    from breakwater_gateway.runtime.bus import Bus
    from breakwater_protocol.cache import ShardStats

ASK_S: Final = 2.0
PURGE_S: Final = 60.0
GATHER_S: Final = 0.3
"""For routers to say what they hold."""
FILE_MAX: Final = 256 * 1024 * 1024


@click.group(help="The semantic cache: calibrate its threshold, see what it holds, empty it.")
def cache() -> None:
    """The group itself does nothing."""


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
        found = [*await _routers(bus), *await _shards(bus, tenant=tenant)]
        if as_json:
            for shard in found:
                output.say_json(shard)
        else:
            _show(found)
        return 0

    _run(work, nats_url, creds, as_json=as_json)


@cache.command(help="Forget answers, exact and semantic: all, or those of a tenant or model.")
@click.option("--tenant")
@click.option("--model")
@click.option("--partition")
@click.option("--all", "everything", is_flag=True, help="Everything, of everybody.")
@as_json_option
@reach.nats
@reach.creds
def purge(
    tenant: str | None,
    model: str | None,
    partition: str | None,
    everything: bool,
    as_json: bool,
    nats_url: str,
    creds: str | None,
) -> None:
    import msgspec

    from breakwater_protocol import cache as c
    from breakwater_protocol.subjects import Subjects

    if everything == any((tenant, model, partition)):
        message = "name what to forget: --tenant, --model or --partition; or --all"
        output.fail(message, code=output.USAGE, as_json=as_json)
    which = c.Purge(tenant=tenant, model=model, partition=partition)

    async def work(bus: "Bus") -> int:
        subjects = Subjects()
        replies = await _ask_all(
            bus,
            subjects.cache_purge.at,
            subjects.cache_purge.encode(which),
            c.PurgeReply,
        )
        routers = await bus.ask(
            subjects.cache_purge.at(c.EXACT), subjects.cache_purge.encode(which), timeout_s=PURGE_S
        )
        replies.append(msgspec.json.decode(routers.data, type=c.PurgeReply))
        purged = sum(reply.purged for reply in replies)
        if as_json:
            output.say_json({"purged": purged, "shards": len(replies)})
        else:
            output.say(f"{purged} entries are gone")
        return 0

    _run(work, nats_url, creds, as_json=as_json)


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

    _run(work, nats_url, creds, as_json=as_json)


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
        for shard in await _shards(bus, labels=True):
            found.extend(
                Scored(each.a, each.b, each.same, each.score, each.veto)
                for each in shard.labels
                if model in ("", each.model)
            )
        return 0

    _run(work, nats_url, creds, as_json=as_json, ends=False)
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


async def _routers(bus: "Bus") -> "list[ShardStats]":
    """The exact cache of every router that says so in time."""
    import asyncio

    import msgspec

    from breakwater_gateway.runtime.bus import Message
    from breakwater_protocol import cache as c
    from breakwater_protocol.subjects import Subjects

    subjects = Subjects()
    found: list[ShardStats] = []

    def hear(message: Message) -> None:
        if message.data:
            found.append(msgspec.json.decode(message.data, type=c.ShardStats))

    inbox = bus.open_inbox(hear)
    asked = subjects.cache_stats.encode(c.StatsRequest())
    bus.publish(subjects.cache_stats.at(c.EXACT), asked, reply=inbox.subject)
    await asyncio.sleep(GATHER_S)
    inbox.close()
    return found


async def _shards(
    bus: "Bus", *, tenant: str | None = None, labels: bool = False
) -> "list[ShardStats]":
    from breakwater_protocol import cache as c
    from breakwater_protocol.subjects import Subjects

    subjects = Subjects()
    asked = subjects.cache_stats.encode(c.StatsRequest(labels=labels, tenant=tenant))
    return await _ask_all(bus, subjects.cache_stats.at, asked, c.ShardStats)


async def _ask_all(
    bus: "Bus", at: Callable[[str], str], asked: bytes, kind: type[Any]
) -> list[Any]:
    """The owners' replies; a shard without one has nothing to say."""
    import msgspec

    from breakwater_gateway.runtime.bus import NoResponders
    from breakwater_protocol.cache import SHARDS

    found = []
    for number in range(SHARDS):
        try:
            reply = await bus.ask(at(str(number)), asked, timeout_s=ASK_S)
        except NoResponders:
            continue
        found.append(msgspec.json.decode(reply.data, type=kind))
    return found


def _run(
    work: "Callable[[Bus], Awaitable[int]]",
    nats_url: str,
    creds: str | None,
    *,
    as_json: bool,
    ends: bool = True,
) -> None:
    import asyncio

    from breakwater_gateway.runtime.bus import BusError
    from breakwater_gateway.runtime.nats_bus import connect_nats

    async def go() -> int:
        bus = await connect_nats(
            nats_url,
            name=f"cli/{os.getpid()}",
            role="cli",
            creds=Path(creds) if creds else None,
        )
        try:
            return await work(bus)
        finally:
            await bus.close()

    try:
        code = asyncio.run(go())
    except BusError as error:
        output.fail(str(error), code=output.UNREACHABLE, as_json=as_json)
    if ends:
        raise SystemExit(code)
