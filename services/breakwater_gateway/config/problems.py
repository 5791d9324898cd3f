"""Mistakes in a configuration: where, what was expected, the nearest valid name, and never a secret."""

import difflib
import json
import re
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

PROBLEMS_MAX: Final = 500
"""Kept of one file; the rest is counted, so a hostile file cannot make an endless report."""

_COMPARISONS_MAX: Final = 50_000
"""Of names, for one file's suggestions: some 10 microseconds each."""

_SHOWN_MAX: Final = 60
_NEAREST_MAX: Final = 100
"""Longest name that is compared with the valid ones: nobody mistypes more."""

_PLAIN_STEP: Final = re.compile(r"[A-Za-z0-9_./:*@+-]{1,80}")

# Prefixes that issuers put before keys so that scanners find them, and long unbroken strings of
# letters and digits. Model names have hyphens, dots or slashes well before 32 characters.
_SECRET: Final = re.compile(
    r"(?:^|[^A-Za-z0-9])(?:sk|pk|rk|gsk|csk|tgp|fw|hf|r8|xai|pplx|nvapi|ghp|gho|glpat|xox[a-z])[-_][A-Za-z0-9]"
    r"|github_pat_|AIza|ya29\.|AKIA[A-Z0-9]|eyJ[A-Za-z0-9]|(?i:\b(?:bearer|basic)\s+\S)"
    r"|(?=[A-Za-z0-9+/=_]*[0-9])(?=[A-Za-z0-9+/=_]*[A-Za-z])[A-Za-z0-9+/=_]{32}"
)

Step = str | int
Path = tuple[Step, ...]


class Problem(Struct, frozen=True):
    """One mistake. `line` and `column` count from 1; `path` is like `models.a.deployments[1].weight`."""

    path: str
    line: int
    column: int
    message: str


class ConfigError(Exception):
    """A configuration with mistakes: all that were found, in the order of the file."""

    def __init__(self, source: str, problems: Iterable[Problem], omitted: int = 0) -> None:
        self.source = source
        self.problems: tuple[Problem, ...] = tuple(
            sorted(problems, key=lambda p: (p.line, p.column))
        )
        self.omitted = omitted
        """Mistakes found beyond `PROBLEMS_MAX`."""
        super().__init__(source)

    def __str__(self) -> str:
        lines = [
            f"{self.source}:{p.line}: {p.path}: {p.message}"
            if p.path
            else f"{self.source}:{p.line}: {p.message}"
            for p in self.problems
        ]
        if self.omitted:
            lines.append(f"{self.source}: and {self.omitted} more mistakes")
        return "\n".join(lines)


class Report:
    """Collects the problems of one file."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self.omitted = 0
        self._comparisons = _COMPARISONS_MAX

    @property
    def full(self) -> bool:
        return len(self.problems) >= PROBLEMS_MAX

    def add(self, path: Path, line: int, column: int, message: str) -> None:
        if self.full:
            self.omitted += 1
        else:
            self.problems.append(Problem(render(path), line, column, message))

    def error(self) -> ConfigError:
        return ConfigError(self.source, self.problems, self.omitted)

    def raise_any(self) -> None:
        if self.problems:
            raise self.error()

    def nearest(self, word: str, names: Iterable[str]) -> str:
        """The closest of `names`; nothing when none is close or this file has had its comparisons."""
        candidates = list(names)
        self._comparisons -= len(candidates)
        return nearest(word, candidates) if self._comparisons > 0 else ""


def render(path: Path) -> str:
    """`("models", "a", "deployments", 1)` -> `models.a.deployments[1]`; odd names are quoted."""
    parts: list[str] = []
    for step in path:
        if isinstance(step, int):
            parts.append(f"[{step}]")
        elif _PLAIN_STEP.fullmatch(step) and not looks_secret(step):
            parts.append(f".{step}" if parts else step)
        else:
            parts.append(f"[{shown(step)}]")
    return "".join(parts)


def looks_secret(text: str) -> bool:
    """Whether a value written where none belongs may be a key: then no message repeats it."""
    return _SECRET.search(text[:4096]) is not None


def shown(text: str) -> str:
    """A value as a message may repeat it: quoted, on one line, short, and no secret."""
    if looks_secret(text):
        return f"(a value of {len(text)} characters, not repeated here)"
    return json.dumps(text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "…")


def nearest(word: str, names: Iterable[str]) -> str:
    if len(word) > _NEAREST_MAX:
        return ""
    by_folded = {name.casefold(): name for name in names}
    found = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[found[0]] if found else ""
