"""`breakwater ladder test MODEL`: which rung answers under which outage, without any provider."""

import os
from typing import TYPE_CHECKING

import click

from breakwater_gateway.cli import output

if TYPE_CHECKING:
    from breakwater_gateway.cli.ladder_trial import InHand
    from breakwater_gateway.config.model import Config


@click.group(help="Try what a model does when it cannot answer.")
def ladder() -> None:
    """The group itself does nothing."""


@ladder.command(
    name="test",
    help="Walk the ladder of MODEL under scripted outages, in process: no provider is called. Exit 1 if a"
    " rung that should answer does not.",
)
@click.argument("model")
@click.option("--config", "path", metavar="FILE", help="The breakwater.yaml with the model.")
@click.option(
    "--question", help="What is asked; default: the first of the static answers' questions."
)
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON, an outage a line.")
def test(model: str, path: str | None, question: str | None, as_json: bool) -> None:
    from breakwater_gateway.cli.ladder_trial import walk

    config = _config(path)
    found = config.model(model)
    if found is None:
        names = ", ".join(list(config.models)[:10])
        output.fail(
            f"there is no model {model!r} here: configured are {names}",
            code=output.USAGE,
            as_json=as_json,
        )
    if question is None:
        entries = config.static_answers.entries
        question = entries[0].questions[0] if entries else "Hello"
    rows = walk(config, found, question, _embedder(config))
    if as_json:
        for row in rows:
            output.say_json(row)
    else:
        output.table(
            (
                *("outage", "answered by", "expected", "because of"),
                *("status", "calls", "after", "match", ""),
            ),
            [
                (
                    " and ".join(
                        [
                            row.outage,
                            *(f"{name} down" for name in row.also_down),
                            *(["an old answer kept"] if row.kept else []),
                        ]
                    ),
                    row.rung,
                    row.expected,
                    row.reason or "-",
                    str(row.status),
                    str(row.attempts),
                    f"{row.after_s:g}s",
                    f"{row.match} {row.match_score:.2f}" if row.match_score is not None else "-",
                    "ok" if row.ok else "WRONG",
                )
                for row in rows
            ],
        )
    if not all(row.ok for row in rows):
        raise SystemExit(output.FAILED)


def _embedder(config: "Config") -> "InHand | None":
    """The local one that is configured. What is not tried here is said."""
    embeddings = config.embeddings
    if embeddings is None:
        return None
    from breakwater_gateway.cache.written import wanted

    if not wanted(config):
        return None
    if embeddings.model:
        output.note(
            "written answers are matched by words alone here: no model is called for vectors"
        )
        return None
    from breakwater_gateway.cache.embed.minilm import MiniLM, is_available
    from breakwater_gateway.cli.ladder_trial import InHand

    why = is_available(embeddings.local)
    if why:
        output.note(f"written answers are matched by words alone: {why}")
        return None
    return InHand(f"local:{embeddings.local}", MiniLM(embeddings.local))


def _config(path: str | None) -> "Config":
    from breakwater_gateway.cli.config_commands import read_config_file
    from breakwater_gateway.cli.config_files import Beside
    from breakwater_gateway.config.defaults import default_config
    from breakwater_gateway.config.load import ConfigError, load_text

    if path is None:
        return default_config(os.environ, simulator_url="http://127.0.0.1")
    try:
        return load_text(
            read_config_file(path), source=path, environment=os.environ, read_file=Beside(path)
        )
    except ConfigError as error:
        output.note(str(error))
        raise SystemExit(output.CONFIG) from None
