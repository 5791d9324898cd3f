"""`breakwater cache calibrate`: which threshold labelled pairs support, by the embedder that serves.

Ends with 1 when a configured threshold is looser than the certified one, or when the pairs were judged by
another embedder than the configuration's, so that nothing can be said of its thresholds.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from breakwater_gateway.cli import cache_vectors, output, reach
from breakwater_gateway.cli.cache_asking import of_shards, on_bus
from breakwater_gateway.cli.talk import as_json_option

if TYPE_CHECKING:
    from breakwater_gateway.cache.calibrate import Pair, Scored
    from breakwater_gateway.config.model import Config
    from breakwater_gateway.runtime.bus import Bus

FILE_MAX: Final = 256 * 1024 * 1024


@click.command(
    short_help="Which threshold labelled pairs support.",
    help="Which threshold labelled pairs support: PAIRS has lines of {a, b, same}.",
)
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
    "--embedder",
    metavar="minilm|FOLDER|model:NAME",
    help="Default: the configuration's, else minilm. model:NAME: one of the gateway's models.",
)
@click.option("--local", is_flag=True, help="As --embedder minilm, whatever is configured.")
@click.option("--tenant", default="default", show_default=True, help="Who asks a gateway's model.")
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
    local: bool,
    tenant: str,
    plot: str | None,
    as_json: bool,
    nats_url: str,
    creds: str | None,
) -> None:
    from breakwater_gateway.cache import calibrate as judge

    if live == (pairs is not None):
        output.fail("give either PAIRS.jsonl or --live", code=output.USAGE, as_json=as_json)
    if (local and embedder) or (live and (local or embedder)):
        output.fail(
            "give one of --local, --embedder and --live: each says by what is judged",
            code=output.USAGE,
            as_json=as_json,
        )
    config = _config(config_path, as_json=as_json)
    configured = "" if config is None or config.embeddings is None else config.embeddings.id
    thresholds, veto = _policies(config, model)
    if pairs is None:
        scored, used = _labels(nats_url, creds, model, as_json=as_json)
    else:
        used = _embedder("minilm" if local else embedder, configured)
        read = _pairs(pairs, as_json=as_json)
        texts = sorted({text for pair in read for text in (pair.a, pair.b)})
        if used.startswith("model:"):
            made = cache_vectors.gateway_vectors(
                texts,
                used.removeprefix("model:"),
                nats_url=nats_url,
                creds=creds,
                tenant=tenant,
                as_json=as_json,
            )
        else:
            made = cache_vectors.vectors_of(texts, used.removeprefix("local:"), as_json=as_json)
        scored = _measured(read, dict(zip(texts, made, strict=True)), veto)
    found = judge.report(scored, target=target, confidence=confidence, veto=veto)
    other = bool(configured) and configured != used
    loose = {
        name: at for name, at in thresholds.items() if not other and judge.is_looser(at, found)
    }
    if plot is not None:
        _draw(plot, found, as_json=as_json)
    if as_json:
        output.say_json(
            {
                "embedder": used,
                "configured_embedder": configured,
                "report": found,
                "verdict": judge.verdict(found),
                "too_loose": loose,
            }
        )
    else:
        output.table(judge.COLUMNS, [judge.cells(row) for row in found.rows])
        if found.worst:
            output.say("\nDifferent answers, nearest to being served:")
            for pair in found.worst:
                kept = "vetoed" if pair.veto else "SERVED"
                output.say(f"  {pair.score:.3f} {kept}  {pair.a!r} | {pair.b!r}")
        output.say(f"\n{judge.verdict(found)}, by the embedder {used}")
        for name, at in loose.items():
            output.say(f"{name}: its threshold {at:g} is looser than that")
    if other:
        output.note(
            f"the configuration embeds with {configured}: what is certified by {used} says nothing of"
            " its thresholds"
        )
    raise SystemExit(output.FAILED if loose or other else 0)


def _embedder(asked: str | None, configured: str) -> str:
    if not asked:
        return configured or "local:minilm"
    return asked if asked.startswith("model:") else f"local:{asked.removeprefix('local:')}"


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


def _pairs(path: str, *, as_json: bool) -> "list[Pair]":
    from breakwater_gateway.cache.calibrate import BadPairs, read_pairs

    try:
        with Path(path).open("rb") as file:
            text = file.read(FILE_MAX + 1)
    except OSError as error:
        output.fail(f"cannot read {path}: {error.strerror}", code=output.USAGE, as_json=as_json)
    if len(text) > FILE_MAX:
        output.fail(f"{path} has more than {FILE_MAX} bytes", code=output.USAGE, as_json=as_json)
    try:
        return read_pairs(text)
    except BadPairs as error:
        output.fail(f"{path}: {error}", code=output.USAGE, as_json=as_json)


def _measured(pairs: "list[Pair]", vectors: dict[str, Any], veto: Any) -> "list[Scored]":  # noqa: ANN401
    from breakwater_gateway.cache.calibrate import scored

    found = []
    for pair in pairs:
        a, b = vectors[pair.a], vectors[pair.b]
        # A text beyond the embedder's window is never looked up: such a pair is no hit anywhere.
        similarity = -1.0 if a is None or b is None else float(a @ b)
        found.append(scored(pair, similarity, veto))
    return found


def _labels(
    nats_url: str, creds: str | None, model: str, *, as_json: bool
) -> "tuple[list[Scored], str]":
    """Those of the embedder that serves now, and which one that is."""
    from breakwater_gateway.cache.calibrate import Scored

    found: list[Scored] = []
    embedders: set[str] = set()
    others: dict[str, int] = {}

    async def work(bus: "Bus") -> int:
        for shard in await of_shards(bus, labels=True):
            embedders.add(shard.embedder)
            for each in shard.labels:
                if model not in ("", each.model):
                    continue
                if each.embedder != shard.embedder:
                    others[each.embedder] = others.get(each.embedder, 0) + 1
                else:
                    found.append(Scored(each.a, each.b, each.same, each.score, each.veto))
        return 0

    on_bus(work, nats_url, creds, as_json=as_json)
    for name, count in sorted(others.items()):
        output.note(f"{count} labels by {name or 'an embedder not recorded'} are left out")
    if len(embedders) > 1:
        output.fail(
            f"the owners embed with {' and '.join(sorted(embedders))} at once: a change is under way,"
            " ask again in a moment",
            code=output.FAILED,
            as_json=as_json,
        )
    if not found:
        message = (
            "the running cache has no labels yet: they come from its misses and shadowed hits"
            if embedders
            else "no actor `cache` owns a shard here: `breakwater run cache` with a model that has"
            " a semantic cache, and `embeddings`"
        )
        output.fail(message, code=output.FAILED, as_json=as_json)
    return found, embedders.pop()


def _draw(path: str, found: Any, *, as_json: bool) -> None:  # noqa: ANN401
    from breakwater_gateway.cache.plot import png

    try:
        Path(path).write_bytes(png(found))
    except OSError as error:
        output.fail(f"cannot write {path}: {error.strerror}", code=output.USAGE, as_json=as_json)
