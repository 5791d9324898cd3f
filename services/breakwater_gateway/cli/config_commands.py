"""`breakwater config check | show | schema`: the configuration without starting anything.

Exit codes: 0 fine, 2 the question itself (no such file, no NATS), 3 a configuration with mistakes.
"""

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click

if TYPE_CHECKING:
    from breakwater_gateway.config.model import Config
    from breakwater_gateway.config.problems import ConfigError

EXIT_MISTAKES: Final = 3

FetchLive = Callable[[str], Awaitable[bytes]]
"""A NATS URL -> the bytes of the last revision in `bw_config` (`codec.encode_stored`). Raises `Unavailable`."""


class Unavailable(click.ClickException):
    """Something that was asked for is not there: one sentence that names it and the mend."""

    exit_code = 2


def read_config_file(path: str) -> bytes:
    """A configuration file's bytes, one more than the loader takes at most. Raises `Unavailable`."""
    from breakwater_gateway.config.yaml_tree import TEXT_MAX

    try:
        with Path(path).open("rb") as file:
            return file.read(TEXT_MAX + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise Unavailable(f"cannot read the configuration {path!r}: {reason}") from None


def readable(path: str) -> bool:
    """Whether a `file:` reference can be read here."""
    try:
        return Path(path).is_file() and os.access(path, os.R_OK)
    except (OSError, ValueError):
        return False


def config_commands(fetch_live: FetchLive) -> click.Group:
    """The group `config`. `fetch_live` is what talks to NATS, only called for `show --nats`."""

    @click.group(help="Check and show the configuration.")
    def config() -> None:
        """The group itself does nothing."""

    @config.command(help="Check FILE whole: every mistake with its line. Exit 3 if there is one.")
    @click.argument("file", type=click.Path())
    @click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")
    def check(file: str, as_json: bool) -> None:
        _check(file, as_json=as_json)

    @config.command(help="Show the effective configuration of FILE, or the live one of --nats.")
    @click.argument("file", type=click.Path(), required=False)
    @click.option("--nats", "nats_url", metavar="URL", help="The NATS whose configuration to show.")
    @click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")
    def show(file: str | None, nats_url: str | None, as_json: bool) -> None:
        if (file is None) == (nats_url is None):
            raise click.UsageError("name a file, or --nats URL for the live configuration")
        if nats_url is not None:
            _show_live(nats_url, fetch_live, as_json=as_json)
        elif file is not None:
            _show_file(file, as_json=as_json)

    @config.command(help="Print the JSON Schema of breakwater.yaml.")
    def schema() -> None:
        from breakwater_gateway.config.schema import json_schema

        click.echo(json.dumps(json_schema(), indent=2))

    return config


def _check(file: str, *, as_json: bool) -> None:
    from breakwater_gateway.cli.config_files import Beside
    from breakwater_gateway.config.load import ConfigError, load_text
    from breakwater_gateway.config.unresolved import missing_keys

    text = read_config_file(file)
    try:
        config = load_text(text, source=file, environment=os.environ, read_file=Beside(file))
    except ConfigError as error:
        if as_json:
            click.echo(json.dumps(_report(file, error=error)))
            raise SystemExit(EXIT_MISTAKES) from None
        _fail(error)
    warnings = [str(each) for each in missing_keys(config, os.environ, readable=readable)]
    warnings += [*_unpriced(config), *_in_vain(config)]
    if as_json:
        click.echo(json.dumps(_report(file, warnings=warnings)))
        return
    for warning in warnings:
        click.echo(f"{file}: warning: {warning}", err=True)
    models = len(config.models)
    deployments = sum(len(model.deployments) for model in config.models.values())
    click.echo(f"{file}: fine ({_count(models, 'model')}, {_count(deployments, 'deployment')})")


def _unpriced(config: "Config") -> list[str]:
    """Deployments without a known price where the price decides."""
    models = [
        model
        for model in config.models.values()
        if model.strategy == "cost" or model.retry.max_cost_nano_usd is not None
    ]
    if not models:
        return []
    from breakwater_gateway.pricing.prices import shipped

    now = time.time()
    found: list[str] = []
    for model in models:
        for each in model.deployments:
            if (
                each.price is not None
                or each.model.endswith("*")
                or shipped().price_of(each.provider, each.model, now) is not None
            ):
                continue
            unknown = f"no price is known for {each.provider}/{each.model}"
            if model.retry.max_cost_nano_usd is not None:
                bound = f"retry.max_cost of {model.name} keeps {each.id} out"
                found.append(f"{unknown}: {bound}; give it a price")
            else:
                cost = f"the strategy cost of {model.name} tries {each.id} last"
                found.append(f"{unknown}: {cost}; give it a price")
    return found


def _in_vain(config: "Config") -> list[str]:
    """Rungs of a ladder that will find nothing, and answers that are kept for no rung."""
    found: list[str] = []
    for name, model in config.models.items():
        rungs = {rung.kind for rung in model.ladder}
        keeps = model.cache.exact_s > 0 or model.cache.semantic is not None
        if not keeps and rungs & {"cache", "stale"}:
            found.append(f"{name}: cache.exact is off, so its rungs of kept answers find none")
        elif "stale" in rungs and not model.cache.stale_if_error_s:
            found.append(f"{name}: the rung stale finds nothing; give it cache.stale_if_error")
        if not keeps and model.cache.stale_if_error_s:
            found.append(f"{name}: cache.stale_if_error keeps nothing, since cache.exact is off")
    return found


def _show_file(file: str, *, as_json: bool) -> None:
    from breakwater_gateway.cli.config_files import Beside
    from breakwater_gateway.config.load import ConfigError, load_text

    text = read_config_file(file)
    try:
        config = load_text(text, source=file, environment=os.environ, read_file=Beside(file))
    except ConfigError as error:
        _fail(error)
    _print(config, f"from {json.dumps(file)}", as_json=as_json)


def _show_live(nats_url: str, fetch_live: FetchLive, *, as_json: bool) -> None:
    from breakwater_gateway.config.codec import BadStored, decode_stored, load_stored
    from breakwater_gateway.config.load import ConfigError

    async def fetch() -> bytes:
        return await fetch_live(nats_url)

    try:
        stored = decode_stored(asyncio.run(fetch()))
    except BadStored as error:
        raise Unavailable(
            f"the live configuration was written by something else ({error}); apply one anew"
        ) from None
    try:
        config = load_stored(stored, os.environ)
    except ConfigError as error:
        _fail(error)
    _print(config, f"live, from {json.dumps(stored.source)}", as_json=as_json)


def _print(config: "Config", origin: str, *, as_json: bool) -> None:
    from breakwater_gateway.config.show import effective, to_yaml

    if as_json:
        click.echo(json.dumps(effective(config), indent=2))
    else:
        click.echo(f"# {origin}, every default filled in\n{to_yaml(config)}", nl=False)


def _report(
    file: str, *, error: "ConfigError | None" = None, warnings: list[str] | None = None
) -> dict[str, object]:
    problems = error.problems if error else ()
    return {
        "source": file,
        "ok": error is None,
        "problems": [
            {"path": p.path, "line": p.line, "column": p.column, "message": p.message}
            for p in problems
        ],
        "omitted": error.omitted if error else 0,
        "warnings": warnings or [],
    }


def _fail(error: "ConfigError") -> NoReturn:
    click.echo(str(error), err=True)
    raise SystemExit(EXIT_MISTAKES)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
