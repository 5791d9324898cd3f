"""`actor.py` and `runtime/` do the talking; every other file is arithmetic on values.

The rules are read off the sources, not by importing them.
"""

import ast
import os
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
PROTOCOL: Final = "protocol/breakwater_protocol"
GATEWAY: Final = "services/breakwater_gateway"

IMPURE: Final = frozenset(
    {
        *("anyio", "asyncio", "trio", "uvloop", "nats", "httpx", "h2", "socket", "ssl", "select"),
        *("selectors", "signal", "subprocess", "threading", "multiprocessing", "concurrent"),
        *("time", "random", "secrets"),
    }
)
"""What a pure machine never needs: tasks, sockets, processes, a clock, chance."""

MAY_TALK: Final = {
    "*/actor.py": "an actor's shell",
    "*/__main__.py": "a process's entry",
    f"{PROTOCOL}/client.py": "the client's shell; what it decides on is in answers.py",
    f"{PROTOCOL}/connection.py": "the client's connection to NATS",
    f"{PROTOCOL}/inboxes.py": "where the client waits for what it hears",
    f"{GATEWAY}/router/desks/*": "the router's shells: each deals with one other party",
    f"{GATEWAY}/runtime/*": "the seams themselves: bus, clock, supervisor, HTTP server, logs",
    f"{GATEWAY}/ledger/writer.py": "a partition's queue and appends, the actor's by the dozen",
    f"{GATEWAY}/ledger/hooks.py": "calls the webhooks of budgets",
    f"{GATEWAY}/cli/*": "commands talk to people and to servers",
    f"{GATEWAY}/cache/unkept.py": "writes to the bucket, behind the actor",
    f"{GATEWAY}/cache/shards.py": "claims shards and reads them, for the actor",
    f"{GATEWAY}/cache/embed/local.py": "the embedder's own process",
    f"{GATEWAY}/worker/run.py": "an attempt in hand has a task and a timer",
    f"{GATEWAY}/worker/desks/*": "the worker's shells: each deals with one other party",
    f"{GATEWAY}/worker/http/*": "the HTTP client's transports",
    f"{GATEWAY}/simulator/server.py": "the provider's side of HTTP",
    f"{GATEWAY}/simulator/words.py": "a seeded random.Random: the same seed, the same answer",
}
"""Path pattern -> why it may import what is in `IMPURE`."""

MAY_IMPORT_NATS: Final = (
    f"{PROTOCOL}/connection.py",
    f"{GATEWAY}/runtime/nats_connection.py",
    f"{GATEWAY}/runtime/nats/*",
)

SOURCES: Final = tuple(
    path.relative_to(ROOT).as_posix()
    for package in (PROTOCOL, GATEWAY)
    for path in sorted((ROOT / package).rglob("*.py"))
)


@cache
def imports(source: str) -> frozenset[str]:
    """Every module named by an import, wherever in the file it stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / source).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}:{node.lineno}: say the whole name"
            found.add(node.module or "")
    return frozenset(found)


def packages(source: str) -> set[str]:
    return {module.partition(".")[0] for module in imports(source)}


def matches(source: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(source, pattern) for pattern in patterns)


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 30


@pytest.mark.parametrize("source", [s for s in SOURCES if s.startswith(PROTOCOL)])
def test_the_protocol_imports_nothing_of_the_services(source: str) -> None:
    allowed = {"breakwater_protocol", "msgspec", *STANDARD}
    if source == f"{PROTOCOL}/connection.py":
        allowed.add("nats")
    if source == f"{PROTOCOL}/asyncapi.py":
        allowed.add("yaml")
    assert packages(source) <= allowed


@pytest.mark.parametrize("source", SOURCES)
def test_only_shells_talk(source: str) -> None:
    if not matches(source, tuple(MAY_TALK)):
        assert not packages(source) & IMPURE


@pytest.mark.parametrize("source", SOURCES)
def test_only_the_bus_and_the_client_know_nats(source: str) -> None:
    if not matches(source, MAY_IMPORT_NATS):
        assert "nats" not in packages(source)


@pytest.mark.parametrize("pattern", MAY_TALK)
def test_every_exception_is_needed(pattern: str) -> None:
    assert any(fnmatch(source, pattern) and packages(source) & IMPURE for source in SOURCES)


@pytest.mark.parametrize("source", [s for s in SOURCES if not fnmatch(s, "*/actor.py")])
def test_no_machine_reaches_into_another_actor_s_shell(source: str) -> None:
    if matches(source, (f"{GATEWAY}/cli/*", "*/__main__.py")):
        return  # they start actors
    assert not {module for module in imports(source) if module.endswith(".actor")} - {
        "breakwater_gateway.runtime.actor"
    }


STANDARD: Final = frozenset(
    {
        *("argparse", "ast", "asyncio", "base64", "binascii", "collections", "datetime"),
        *("decimal", "functools", "hashlib", "hmac"),
        *("inspect", "logging", "math", "pathlib", "re", "secrets", "struct", "sys", "textwrap"),
        *("types", "typing", "urllib"),
    }
)
"""What the protocol uses of the standard library."""

# Written in pieces, so that this file does not name them either.
MACHINE_PATHS: Final = ("wo" + "rk", "ro" + "ot")
REGISTRIES: Final = (
    *("py" + "pi.org", "python" + "hosted.org", "npm" + "js.org", "npm" + "js.com"),
    *("crates" + ".io", "proxy.golang" + ".org"),
)
FORBIDDEN: Final = re.compile(
    # A path that begins here, not the middle of a longer one or of a JSON pointer.
    rf"(?<![\w.#~$}}/-])/(?:{'|'.join(MACHINE_PATHS)})/|{'|'.join(map(re.escape, REGISTRIES))}"
)
NOT_OURS: Final = {
    *(".git", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"),
    *("__pycache__", "node_modules", "dist", "build", "breakwater-data", "uv.lock"),
}
"""What .gitignore keeps out."""


def own_files() -> Iterator[Path]:
    for folder, folders, files in os.walk(ROOT):
        folders[:] = sorted(set(folders) - NOT_OURS)
        yield from (Path(folder, name) for name in sorted(files) if name not in NOT_OURS)


def test_nothing_names_a_machine_s_paths_or_a_package_registry() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in own_files()
        for number, line in enumerate(
            path.read_text(encoding="utf-8", errors="replace").splitlines(), 1
        )
        if FORBIDDEN.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (f"cd /{MACHINE_PATHS[0]}/main", True),
        (f'"/{MACHINE_PATHS[1]}/.cache"', True),
        (f"https://{REGISTRIES[0]}/simple", True),
        (f"#/channels/{MACHINE_PATHS[0]}/messages", False),
        (f"./{MACHINE_PATHS[0]}/messages", False),
    ],
)
def test_the_search_for_names_finds_what_it_should(line: str, named: bool) -> None:
    assert bool(FORBIDDEN.search(line)) == named
