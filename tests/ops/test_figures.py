"""The pure parts of the bench: percentiles, rows, tables, and that results are never overwritten."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ops.bench import results
from ops.bench.figures import (
    BEGIN,
    END,
    HEAD,
    Machine,
    Result,
    Row,
    newest,
    number,
    percentile,
    row,
    splice,
    summarise,
    table,
)
from ops.bench.stand import configuration
from ops.bench.upstream import ANSWER
from ops.bench.wire import COUNTER, STAMP, STAMP_BYTES, body, stamp

from breakwater_gateway.config.load import load_text

MACHINE = Machine(cpu="a core", cores=2, kernel="Linux 6", python="3.11.7", pinned=True)


def a_result(date: str, *rows: Row) -> Result:
    return Result(
        date=date, commit="abc", dirty=False, machine=MACHINE, versions={}, rows=list(rows)
    )


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, 1), (0.1, 1), (0.5, 5), (0.9, 9), (0.91, 10), (0.99, 10), (1.0, 10)],
)
def test_a_percentile_is_the_nearest_rank(share: float, expected: int) -> None:
    assert percentile(range(1, 11), share) == expected


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=200),
    st.floats(0, 1, exclude_min=True),
)
def test_a_percentile_is_a_value_that_its_share_does_not_exceed(
    values: list[float], share: float
) -> None:
    ordered = sorted(values)
    found = percentile(ordered, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) * (1 - 1e-12)


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 1.1), ([1.0], -0.1)])
def test_there_is_no_percentile_of_nothing_or_beyond_the_whole(
    values: list[float], share: float
) -> None:
    with pytest.raises(ValueError, match="no percentile"):
        percentile(values, share)


def test_an_empty_sample_sums_up_to_zeros() -> None:
    assert summarise([]).n == 0


def test_a_row_is_the_median_of_its_rounds_and_keeps_them() -> None:
    made = row("s", "w", "ms", [3.0, 1.0, 2.0], direct=[1.0, 0.5, 0.1])
    assert (made.value, made.direct, made.ratio) == (2.0, 0.5, 4.0)
    assert made.rounds == [3.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("value", "more_is_better", "expected"),
    [
        (0.10, False, "then"),
        (0.15, False, "then"),
        (0.20, False, "first"),
        (0.40, False, "missed"),
        (0.40, True, "first"),
        (0.10, True, "missed"),
    ],
)
def test_a_figure_says_which_target_it_reached(
    value: float, more_is_better: bool, expected: str
) -> None:
    first, then = (0.35, 0.5) if more_is_better else (0.35, 0.15)
    made = Row("s", "w", "ms", value, first=first, then=then, more_is_better=more_is_better)
    assert made.reached() == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "-"),
        (0.0, "0"),
        (0.01234, "0.0123"),
        (1.2345, "1.23"),
        (12.345, "12.3"),
        (12345.6, "12,346"),
        (-0.5, "-0.500"),
    ],
)
def test_numbers_have_three_digits(value: float | None, expected: str) -> None:
    assert number(value) == expected


def test_a_table_is_markdown_with_a_line_for_each_row() -> None:
    text = table([Row("one", "CPU", "ms", 0.2, direct=0.1, first=0.35, then=0.15)])
    head, rule, line = text.splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == list(HEAD)
    assert set(rule) == {"|", "-"}
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "one",
        "CPU (ms)",
        "0.200",
        "0.100",
        "2.00x",
        "-",
        "≤ 0.350 · ≤ 0.150 ✓",
    ]
    assert len({len(each) for each in (head, rule, line)}) == 1


def test_a_table_is_spliced_between_the_marks_again_and_again() -> None:
    document = f"before\n{BEGIN}\n{END}\nafter\n"
    once = splice(document, "| a |")
    assert once == f"before\n{BEGIN}\n| a |\n{END}\nafter\n"
    assert splice(once, "| a |") == once


@pytest.mark.parametrize("document", ["", BEGIN, f"{END} {BEGIN}"])
def test_a_document_without_marks_is_refused(document: str) -> None:
    with pytest.raises(ValueError, match="lacks the marks"):
        splice(document, "x")


def test_of_each_scenario_the_newest_run_counts() -> None:
    old = a_result("2026-01-01T00:00:00Z", Row("a", "x", "", 1.0), Row("b", "x", "", 1.0))
    new = a_result("2026-02-01T00:00:00Z", Row("a", "x", "", 2.0), Row("a", "y", "", 3.0))
    assert [(entry.scenario, entry.value) for entry, _ in newest([new, old])] == [
        ("a", 2.0),
        ("a", 3.0),
        ("b", 1.0),
    ]


def test_a_saved_result_is_never_written_over(tmp_path: Path) -> None:
    first, second = a_result("2026-01-01T00:00:00Z"), a_result("2026-01-01T09:00:00Z")
    paths = [results.save(first, tmp_path), results.save(second, tmp_path)]
    assert [path.name for path in paths] == ["2026-01-01-abc.json", "2026-01-01-abc-2.json"]
    assert sorted(one.date for one in results.load(tmp_path)) == [first.date, second.date]


def test_the_readme_says_where_and_when_figures_were_measured(tmp_path: Path) -> None:
    when = datetime(2026, 1, 2, tzinfo=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    results.save(a_result(when, Row("a", "CPU", "ms", 0.1)), tmp_path / "results")
    readme = tmp_path / "README.md"
    readme.write_text(f"# x\n{BEGIN}\nold\n{END}\n")
    results.write_readme(readme, tmp_path / "results")
    text = readme.read_text()
    assert "Measured 2026-01-02, abc, a core, 2 cores, Python 3.11.7" in text
    assert "old" not in text


def test_a_readme_without_results_is_left_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}{END}")
    with pytest.raises(ValueError, match="no results"):
        results.write_readme(readme, tmp_path)


def test_every_saved_result_of_the_repository_can_be_read() -> None:
    results.load()


def test_a_stamp_is_found_again_and_always_as_long() -> None:
    assert len(stamp(0)) == len(stamp(10**19)) == STAMP_BYTES
    found = STAMP.search(b"x" + stamp(1234567890) + b"y")
    assert found is not None
    assert int(found.group(1)) == 1234567890


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_of_the_bench_is_about_2_kb_and_counts_itself_once(stream: bool) -> None:
    made = body(stream=stream)
    assert 1500 < len(made) < 2500
    assert made.count(COUNTER) == 1


def test_the_providers_answer_is_about_1_kb() -> None:
    assert 900 < len(ANSWER) < 1200


def test_the_benchs_configuration_is_one_the_gateway_takes() -> None:
    config = load_text(configuration(9101, models=3, targets=2), source="bench", environment={})
    assert list(config.models) == ["fixed", "model-1", "model-2"]
    assert [each.id for each in config.models["fixed"].deployments] == ["fixed-0", "fixed-1"]
