"""The command `breakwater`. Subcommands are imported when they are called, so that help is quick."""

import importlib
from typing import Final

import click

from breakwater_gateway import __version__

# name -> (module, attribute, one line of help)
_COMMANDS: Final = {
    "up": ("serve_commands", "up", "Start everything on this machine."),
    "run": ("serve_commands", "run", "Run just these actors against a NATS server."),
    "chat": ("talk", "chat", "Ask a model over NATS."),
    "models": ("talk", "models", "List the models that can be asked."),
    "events": ("talk", "events", "Follow what happens on the bus."),
    "demo": ("demo.command", "demo", "A tour on the simulator that checks itself."),
    "doctor": ("doctor", "doctor", "Check this set-up, and say how to mend it."),
    "providers": ("providers", "providers", "List the providers that the catalogue knows."),
    "keys": ("keys", "keys", "Make, list, revoke and rotate virtual keys."),
    "budget": ("budget_commands", "budget", "Show and change budgets and their leases."),
    "breaker": ("breaker_commands", "breaker", "List, trip and reset breakers."),
    "route": ("live_route", "route", "Say where a request would go, and why."),
    "ladder": ("ladder_commands", "ladder", "Try what a model does when it cannot answer."),
    "cache": ("cache_commands", "cache", "Calibrate the cache, ask it why, see it, empty it."),
    "traces": ("trace_commands", "traces", "See how far traces are exported; export them again."),
    "config": ("live_config", "config", "Check and show the configuration."),
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"breakwater_gateway.cli.{module}"), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.{attribute} is no command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in _COMMANDS.items()])


@click.command(
    cls=_Lazy, name="breakwater", context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="breakwater")
def cli() -> None:
    """Breakwater: an LLM gateway of actors on a NATS bus."""


def main() -> None:
    cli()
