"""What commands print, and how they end.

Answers go to stdout: plain text, tables where a person looks, or with `--json` one object a line.
Errors go to stderr, with `--json` as one object too. Exit codes: 0 fine, 1 failed, 2 usage or cannot
start, 3 configuration, 4 unreachable, 5 denied or over budget.
"""

import asyncio
import re
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NoReturn

import click
import msgspec

if TYPE_CHECKING:
    from breakwater_protocol import BreakwaterError

FAILED: Final = 1
USAGE: Final = 2
CONFIG: Final = 3
UNREACHABLE: Final = 4
DENIED: Final = 5
INTERRUPTED: Final = 130

_NO_FACTS: Final[Mapping[str, object]] = {}
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Without control characters other than tab and newline: a model's text must not steer a terminal."""
    return _CONTROL.sub("", text)


def say(text: str, *, newline: bool = True) -> None:
    click.echo(printable(text), nl=newline)


def say_json(value: object) -> None:
    """One object on one line of stdout."""
    click.echo(msgspec.json.encode(value))


def note(text: str) -> None:
    """An aside on stderr."""
    click.echo(printable(text), err=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Drawn where a person looks; else a row a line, its cells separated by tabs."""
    if not sys.stdout.isatty():
        for row in rows:
            say("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(drawn)


def fail(
    message: str, *, code: int, as_json: bool, facts: Mapping[str, object] = _NO_FACTS
) -> NoReturn:
    """Ends the command with that exit code; `facts` go into the JSON."""
    if as_json:
        given = {name: value for name, value in facts.items() if value not in (None, "")}
        line = msgspec.json.encode({"error": {"message": message, **given, "exit_code": code}})
        click.echo(line, err=True)
    else:
        note(f"Error: {message}")
    raise SystemExit(code)


def exit_code(error: "BreakwaterError") -> int:
    from breakwater_protocol import (
        BudgetSpent,
        ConnectionLost,
        NoGateway,
        NotAuthenticated,
        NotPermitted,
        Unreachable,
    )

    if isinstance(error, Unreachable | ConnectionLost | NoGateway):
        return UNREACHABLE
    if isinstance(error, NotAuthenticated | NotPermitted | BudgetSpent):
        return DENIED
    return FAILED


def fail_with(error: "BreakwaterError", *, as_json: bool, mend: str = "") -> NoReturn:
    """As `fail`, with the facts that the gateway gave."""
    from breakwater_protocol import GatewayError

    facts: Mapping[str, object] = {"kind": type(error).__name__}
    if isinstance(error, GatewayError):
        facts = {
            **facts,
            "status": error.status,
            "code": error.code,
            "type": error.type,
            "param": error.param,
            "retry_after_s": error.retry_after_s,
            "request_id": error.info.request_id if error.info else None,
        }
    message = f"{error}; {mend}" if mend else str(error)
    fail(message, code=exit_code(error), as_json=as_json, facts=facts)


def run(
    work: Callable[[], Coroutine[None, None, int]], *, as_json: bool, interrupted: int = INTERRUPTED
) -> None:
    """Runs a command to its exit code; `interrupted` is what Ctrl-C means for it."""
    from breakwater_protocol import BreakwaterError, Unreachable

    try:
        code = asyncio.run(work())
    except Unreachable as error:
        fail_with(
            error, as_json=as_json, mend="start one with `breakwater up`, or name it: --nats URL"
        )
    except BreakwaterError as error:
        fail_with(error, as_json=as_json)
    except KeyboardInterrupt:
        code = interrupted
    if code:
        raise SystemExit(code)
