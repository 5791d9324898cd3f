"""Outcomes counted by provider and API, as a table for people and as lines for machines."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

import msgspec
from msgspec import Struct
from ops.fidelity.refusals import Verdicts
from ops.fidelity.replay import Outcome


class Tally(Struct):
    """Of one provider and API. Reasons are with the ids of their rows."""

    provider: str
    api: str
    total: int = 0
    passed: int = 0
    not_replayed: int = 0
    reasons: dict[str, list[str]] = msgspec.field(default_factory=dict)
    excused: dict[str, list[str]] = msgspec.field(default_factory=dict)
    skipped: dict[str, list[str]] = msgspec.field(default_factory=dict)

    @property
    def failed(self) -> int:
        return self.total - self.passed - self.not_replayed

    def add(self, outcome: Outcome) -> None:
        self.total += 1
        self.passed += outcome.verdict == "passed"
        self.not_replayed += outcome.verdict == "not replayed"
        lists = {"wrong": self.reasons, "excused": self.excused, "skipped": self.skipped}
        for finding in outcome.findings:
            ids = lists[finding.kind].setdefault(finding.reason, [])
            if outcome.id not in ids[-1:]:
                ids.append(outcome.id)


class Report(Struct):
    tallies: list[Tally]
    errors: Verdicts | None = None

    @property
    def replayed(self) -> int:
        return sum(tally.total - tally.not_replayed for tally in self.tallies)

    @property
    def passed(self) -> int:
        return sum(tally.passed for tally in self.tallies)

    @property
    def percent(self) -> float:
        """Of what was replayed, and of the labelled errors; 100 of nothing is 0."""
        judged = len(self.errors.all) if self.errors else 0
        right = self.errors.right if self.errors else 0
        total = self.replayed + judged
        return 100 * (self.passed + right) / total if total else 0.0


def count(outcomes: Iterable[Outcome]) -> list[Tally]:
    tallies: dict[tuple[str, str], Tally] = {}
    for outcome in outcomes:
        key = (outcome.provider, outcome.api)
        tallies.setdefault(key, Tally(*key)).add(outcome)
    return [tallies[key] for key in sorted(tallies)]


def table(report: Report, *, rows: int) -> Iterator[str]:
    """Lines for people: the table, each reason with the ids of its first `rows` rows, the rest counted."""
    yield f"{'provider':<22}{'api':<18}{'total':>7}{'passed':>8}{'failed':>8}{'not replayed':>14}"
    for tally in report.tallies:
        yield (
            f"{tally.provider:<22}{tally.api:<18}{tally.total:>7}{tally.passed:>8}"
            f"{tally.failed:>8}{tally.not_replayed:>14}"
        )
        for reason, ids in _by_size(tally.reasons):
            yield f"    {len(ids):>4} failed: {reason}"
            yield f"         {_first(ids, rows)}"
    total = sum(tally.total for tally in report.tallies)
    failed = report.replayed - report.passed
    yield (f"{'all':<40}{total:>7}{report.passed:>8}{failed:>8}{total - report.replayed:>14}")
    for title, field in (("not replayed", "skipped"), ("passed by a rule", "excused")):
        together = _together(report.tallies, field)
        if together:
            yield ""
            yield f"{title}:"
            for reason, ids in _by_size(together):
                yield f"    {len(ids):>4} {reason}"
                if title == "passed by a rule":
                    yield f"         {_first(ids, rows)}"
    if report.errors is not None:
        yield ""
        yield from _labels(report.errors, rows)
    yield ""
    yield f"{report.percent:.2f} % of what was replayed passed"


def _together(tallies: list[Tally], field: str) -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for tally in tallies:
        reasons: dict[str, list[str]] = getattr(tally, field)
        for reason, ids in reasons.items():
            found[reason] += ids
    return found


def _by_size(reasons: dict[str, list[str]]) -> list[tuple[str, list[str]]]:
    return sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0]))


def _first(ids: list[str], rows: int) -> str:
    more = f" and {len(ids) - rows} more" if len(ids) > rows else ""
    return " ".join(ids[:rows]) + more


def _labels(errors: Verdicts, rows: int) -> Iterator[str]:
    yield f"labelled errors: {errors.right} of {len(errors.all)} right"
    for label, classes in errors.table().items():
        said = ", ".join(f"{name} {number}" for name, number in classes.most_common())
        yield f"    {label:<30}{said}"
    missed = [verdict for verdict in errors.all if not verdict.right]
    for verdict in missed[:rows]:
        yield f"    wrong: {verdict.provider} {verdict.label} as {verdict.got} {verdict.ref}"


def lines(report: Report, outcomes: Iterable[Outcome]) -> Iterator[str]:
    """For machines, one object a line: each tally, each row that has findings, each label, the total."""
    for tally in report.tallies:
        yield _line(
            "tally",
            provider=tally.provider,
            api=tally.api,
            total=tally.total,
            passed=tally.passed,
            failed=tally.failed,
            not_replayed=tally.not_replayed,
        )
    for outcome in outcomes:
        if outcome.findings:
            yield _line(
                "row",
                provider=outcome.provider,
                api=outcome.api,
                id=outcome.id,
                verdict=outcome.verdict,
                findings=outcome.findings,
            )
    for verdict in report.errors.all if report.errors else ():
        yield _line("label", **msgspec.structs.asdict(verdict))
    yield _line(
        "total",
        replayed=report.replayed,
        passed=report.passed,
        labelled=len(report.errors.all) if report.errors else 0,
        labelled_right=report.errors.right if report.errors else 0,
        percent=round(report.percent, 3),
    )


def _line(kind: str, **fields: object) -> str:
    return msgspec.json.encode({"kind": kind, **fields}).decode()
