"""`breakwater providers [NAME]`: what the catalogue knows, and which keys are here. Shows no key."""

import os
from typing import TYPE_CHECKING, NoReturn

import click

from breakwater_gateway.cli import output

if TYPE_CHECKING:
    from breakwater_gateway.config.provider import Provider


@click.command(help="List the providers of the catalogue, or show one. Exit 1 if there is no such.")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON, a provider a line.")
def providers(name: str | None, as_json: bool) -> None:
    from breakwater_gateway.config.catalogue import CATALOGUE, find

    if name is None:
        _list(list(CATALOGUE.values()), as_json=as_json)
        return
    provider = find(name)
    if provider is None:
        _unknown(name, as_json=as_json)
    if as_json:
        output.say_json({**_facts(provider), "sample": sample(provider)})
    else:
        _show(provider)


def sample(provider: "Provider") -> str:
    """A model of a configuration file that is served by the provider, as YAML that loads."""
    from breakwater_gateway.config.provider import PARAMS

    model = _MODELS.get(provider.id, "MODEL")
    lines = [
        "models:",
        "  my-model:",
        "    deployments:",
        f"      - model: {provider.id}/{model}",
    ]
    if provider.key_variables:
        lines.append(f"        api_key: env:{provider.key_variables[0]}")
    shown = [
        f"{setting}: {value}"
        for setting, value in provider.params({}, keyed=True)
        if not PARAMS[setting].optional
    ]
    if shown:
        lines.append(f"        params: {{{', '.join(shown)}}}")
    return "\n".join(lines)


_MODELS = {
    "anthropic": "claude-sonnet-4-5",
    "azure": "NAME-OF-YOUR-DEPLOYMENT",
    "bedrock": "eu.anthropic.claude-sonnet-4-5-20250929-v1:0",
    "gemini": "gemini-2.5-flash",
    "groq": "llama-3.3-70b-versatile",
    "openai": "gpt-4o",
    "vertex": "gemini-2.5-flash",
}


def _list(all_: "list[Provider]", *, as_json: bool) -> None:
    if as_json:
        for provider in all_:
            output.say_json(_facts(provider))
        return
    rows = [
        (p.id, p.wire, p.key_variables[0] if p.key_variables else "-", _here(p) or "-")
        for p in all_
    ]
    output.table(("PROVIDER", "WIRE", "KEY", "HERE"), rows)


def _show(provider: "Provider") -> None:
    served = "yes" if _served(provider) else "not by this version"
    rows = {
        "id": provider.id,
        "name": provider.name,
        "aliases": ", ".join(provider.aliases),
        "wire": provider.wire,
        "served": served,
        "base_url": provider.base_url,
        "auth": provider.auth,
        **{
            label: ", ".join(map(_with_presence, variables))
            for label, variables in _variables(provider).items()
        },
        "quirks": ", ".join(f"{name}: {value}" for name, value in provider.quirks),
    }
    width = max(map(len, rows)) + 2
    for label, text in rows.items():
        if text:
            output.say(f"{label:<{width}}{text}")
    output.say("\n" + sample(provider))


def _facts(provider: "Provider") -> dict[str, object]:
    return {
        "id": provider.id,
        "name": provider.name,
        "aliases": list(provider.aliases),
        "wire": provider.wire,
        "served": _served(provider),
        "base_url": provider.base_url,
        "auth": provider.auth,
        "key_variables": list(provider.key_variables),
        "key_here": _here(provider),
        "params": {
            label: variables for label, variables in _variables(provider).items() if label != "key"
        },
        "quirks": dict(provider.quirks),
    }


def _served(provider: "Provider") -> bool:
    from breakwater_gateway.config import not_served

    return provider.wire in not_served.SERVED_WIRES


def _variables(provider: "Provider") -> dict[str, list[str]]:
    """Of the environment: by what they hold."""
    from breakwater_gateway.config.provider import PARAMS, needs

    found = {"key": list(provider.key_variables)} if provider.key_variables else {}
    own = dict(provider.variables)
    for setting in needs(provider.base_url, provider.wire, provider.auth, keyed=False):
        found[setting] = list(own.get(setting, PARAMS[setting].variables))
    return found


def _here(provider: "Provider") -> str | None:
    """The variable that holds a key here."""
    return next((name for name in provider.key_variables if os.environ.get(name)), None)


def _with_presence(variable: str) -> str:
    return f"{variable} (set)" if os.environ.get(variable) else variable


def _unknown(name: str, *, as_json: bool) -> NoReturn:
    from breakwater_gateway.config.catalogue import CATALOGUE, SPELLINGS
    from breakwater_gateway.config.problems import nearest, shown

    close = nearest(name, [*CATALOGUE, *SPELLINGS])
    mend = f'did you mean "{close}"?' if close else "`breakwater providers` lists them"
    output.fail(
        f"the catalogue knows no provider {shown(name)}; {mend}",
        code=output.FAILED,
        as_json=as_json,
        facts={"nearest": close},
    )
