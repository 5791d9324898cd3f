"""Figures as values: percentiles, rows, and the table made of them. Nothing here measures."""

import math
from collections.abc import Iterable, Sequence
from statistics import median

from msgspec import Struct


class Summary(Struct, frozen=True):
    """A sample of times, in the unit it was given in."""

    n: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    max: float = 0.0


def percentile(ordered: Sequence[float], q: float) -> float:
    """The smallest value that at least the share `q` of an ascending sample does not exceed (nearest rank).

    Raises `ValueError` on an empty sample or a share outside 0…1.
    """
    if not ordered or not 0 <= q <= 1:
        raise ValueError(f"no percentile {q} of {len(ordered)} values")
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def summarise(values: Iterable[float]) -> Summary:
    ordered = sorted(values)
    if not ordered:
        return Summary()
    return Summary(
        n=len(ordered),
        mean=sum(ordered) / len(ordered),
        p50=percentile(ordered, 0.5),
        p90=percentile(ordered, 0.9),
        p99=percentile(ordered, 0.99),
        max=ordered[-1],
    )


class Row(Struct, frozen=True, omit_defaults=True):
    """One figure of one scenario: the middle of its interleaved rounds."""

    scenario: str
    what: str
    unit: str
    value: float
    direct: float | None = None
    """The same figure when the same load calls the same provider directly."""
    nginx: float | None = None
    """… and through a plain nginx proxy, where one is installed."""
    first: float | None = None
    """The target to reach first, …"""
    then: float | None = None
    """… and the one after."""
    more_is_better: bool = False
    rounds: list[float] = []
    """Each round's figure, to show how far apart they were."""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times the direct figure: None without one to compare with."""
        return self.value / self.direct if self.direct else None

    def reached(self) -> str:
        """`then`, `first`, `missed`, or nothing when the figure has no target."""
        for name, target in (("then", self.then), ("first", self.first)):
            if target is not None and (
                self.value >= target if self.more_is_better else self.value <= target
            ):
                return name
        return "missed" if self.first is not None or self.then is not None else ""


class Machine(Struct, frozen=True):
    cpu: str
    cores: int
    kernel: str
    python: str
    pinned: bool
    """The gateway had core 0 for itself, provider and load shared core 1."""


class Result(Struct, frozen=True, omit_defaults=True):
    """One run of the bench, as it is kept in `results/`."""

    date: str
    """UTC, ISO 8601."""
    commit: str
    dirty: bool
    machine: Machine
    versions: dict[str, str]
    rows: list[Row]
    problems: list[str] = []
    """What makes a figure suspect: failed requests, a harness that was the bottleneck."""
    raw: dict[str, list[dict[str, object]]] = {}
    """Every load report, by scenario, in the order of the runs."""


def row(
    scenario: str,
    what: str,
    unit: str,
    rounds: Sequence[float],
    *,
    direct: Sequence[float] = (),
    nginx: Sequence[float] = (),
    first: float | None = None,
    then: float | None = None,
    more_is_better: bool = False,
    note: str = "",
) -> Row:
    """The row of a figure measured in several rounds: its median beside the medians of its peers."""
    return Row(
        scenario=scenario,
        what=what,
        unit=unit,
        value=median(rounds),
        direct=median(direct) if direct else None,
        nginx=median(nginx) if nginx else None,
        first=first,
        then=then,
        more_is_better=more_is_better,
        rounds=list(rounds),
        note=note,
    )


def number(value: float | None) -> str:
    """Three significant digits, thousands grouped; `-` for nothing."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 4)}f}"


_MARK = {"then": "✓✓", "first": "✓", "missed": "✗", "": ""}


def _cells(entry: Row) -> tuple[str, ...]:
    sign = "≥" if entry.more_is_better else "≤"
    targets = " · ".join(
        f"{sign} {number(target)}" for target in (entry.first, entry.then) if target is not None
    )
    ratio = "-" if entry.ratio is None else f"{number(entry.ratio)}x"
    return (
        entry.scenario,
        f"{entry.what} ({entry.unit})" if entry.unit else entry.what,
        number(entry.value),
        number(entry.direct),
        ratio,
        number(entry.nginx),
        f"{targets} {_MARK[entry.reached()]}".strip() or "-",
    )


HEAD = ("scenario", "figure", "Breakwater", "direct", "ratio", "nginx", "targets: first · then")


def table(rows: Sequence[Row]) -> str:
    """A Markdown table, padded so that it also reads well in a terminal."""
    cells = [HEAD, *(_cells(entry) for entry in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(HEAD))]

    def line(parts: Sequence[str]) -> str:
        padded = (part.ljust(width) for part, width in zip(parts, widths, strict=True))
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(cells[0]), rule, *(line(parts) for parts in cells[1:])])


BEGIN = "<!-- bench:begin -->"
END = "<!-- bench:end -->"


def splice(document: str, generated: str) -> str:
    """`document` with everything between the two marks replaced. Raises `ValueError` without them."""
    head, begin, rest = document.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document lacks the marks {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{generated.strip()}\n{END}{tail}"


def newest(results: Iterable[Result]) -> list[tuple[Row, Result]]:
    """Of each scenario the rows of the newest run that measured it, in the order first seen."""
    kept: dict[str, list[tuple[Row, Result]]] = {}
    for result in sorted(results, key=lambda one: one.date):
        for scenario in dict.fromkeys(entry.scenario for entry in result.rows):
            kept[scenario] = [
                (entry, result) for entry in result.rows if entry.scenario == scenario
            ]
    return [pair for pairs in kept.values() for pair in pairs]
