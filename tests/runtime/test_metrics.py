import re
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from breakwater_gateway.runtime.metrics import (
    LABEL_MAX,
    METRICS,
    OVERHEAD,
    Family,
    HistogramValue,
    Registry,
    Snapshot,
    merge,
    render,
)
from breakwater_gateway.runtime.telemetry import Metrics

SERVICES = Path(__file__).resolve().parents[2] / "services"


def samples(*registries: Registry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    page = render([registry.snapshot() for registry in registries]).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_a_registry_is_what_actors_call_metrics() -> None:
    registry = Registry()
    metrics: Metrics = registry
    metrics.counter("breakwater_attempts_total", deployment="a", error="").add()
    metrics.gauge("breakwater_inflight", actor="router").set(3)
    metrics.histogram("breakwater_ttft_seconds", model="m", deployment="a").observe(0.2)
    found = samples(registry)
    assert found["breakwater_attempts_total", (("deployment", "a"), ("error", ""))] == 1
    assert found["breakwater_inflight", (("actor", "router"),)] == 3
    assert found["breakwater_ttft_seconds_count", (("deployment", "a"), ("model", "m"))] == 1


def test_whole_numbers_are_counted_exactly_beyond_what_a_float_holds() -> None:
    registry = Registry()
    tokens = registry.counter("breakwater_tokens_total", type="input")
    tokens.add(2**53)
    tokens.add(1)
    assert tokens.value == 2**53 + 1
    assert (
        f'breakwater_tokens_total{{type="input"}} {2**53 + 1}\n'
        in render([registry.snapshot()]).decode()
    )


def test_the_same_labels_in_any_order_are_the_same_series() -> None:
    registry = Registry()
    registry.counter("breakwater_attempts_total", deployment="a", error="timeout").add(2)
    registry.counter("breakwater_attempts_total", error="timeout", deployment="a").add(3)
    found = samples(registry)
    assert found["breakwater_attempts_total", (("deployment", "a"), ("error", "timeout"))] == 5


@pytest.mark.parametrize("amount", [0, -5, float("nan"), float("-inf")])
def test_a_counter_never_falls(amount: float) -> None:
    counter = Registry().counter("breakwater_tokens_total", type="output")
    counter.add(7)
    counter.add(amount)
    assert counter.value == 7


def test_a_value_equal_to_a_bound_is_within_it() -> None:
    registry = Registry()
    overhead = registry.histogram("breakwater_overhead_seconds", model="m")
    for value in (0.0, OVERHEAD[0], OVERHEAD[0] * 1.01, OVERHEAD[-1], OVERHEAD[-1] + 1, -1.0):
        overhead.observe(value)
    found = samples(registry)

    def below(bound: str) -> float:
        return found["breakwater_overhead_seconds_bucket", (("le", bound), ("model", "m"))]

    assert below("0.0005") == 3
    assert below("0.001") == 4
    assert below("1.0") == 5
    assert below("+Inf") == 6
    assert found["breakwater_overhead_seconds_count", (("model", "m"),)] == 6


def test_not_a_number_leaves_a_histogram_readable() -> None:
    registry = Registry()
    registry.histogram("breakwater_overhead_seconds", model="m").observe(float("nan"))
    assert samples(registry)["breakwater_overhead_seconds_sum", (("model", "m"),)] == 0


def test_too_many_series_land_on_one_that_says_so() -> None:
    registry = Registry(series_max=3)
    for number in range(10):
        registry.counter("breakwater_requests_total", model=f"m{number}").add()
    found = samples(registry)
    assert found["breakwater_requests_total", (("overflow", "true"),)] == 7
    assert (
        found["breakwater_metrics_overflow_total", (("metric", "breakwater_requests_total"),)] == 7
    )
    assert (
        sum(value for (name, _), value in found.items() if name == "breakwater_requests_total")
        == 10
    )


def test_the_overflow_counter_itself_cannot_overflow_for_ever() -> None:
    registry = Registry(series_max=1)
    for metric in ("breakwater_requests_total", "breakwater_attempts_total"):
        for number in range(3):
            registry.counter(metric, model=f"m{number}").add()
    assert samples(registry)["breakwater_metrics_overflow_total", (("overflow", "true"),)] == 2


def test_hostile_label_values_stay_one_line_of_the_page() -> None:
    registry = Registry()
    nasty = 'a"b\\c\nd}e 5\ud800'
    registry.counter("breakwater_requests_total", model=nasty).add()
    registry.counter("breakwater_requests_total", model="x" * 10_000).add()
    values = {labels[0][1] for (name, labels) in samples(registry) if labels}
    assert values == {'a"b\\c\nd}e 5?', "x" * LABEL_MAX}


@pytest.mark.parametrize("label", ["le", "__name__", "a-b", "1a"])
def test_a_label_that_prometheus_keeps_for_itself_is_refused(label: str) -> None:
    with pytest.raises(ValueError, match="cannot have a label"):
        Registry().histogram("breakwater_ttft_seconds", **{label: "x"})


def test_a_name_is_of_one_kind() -> None:
    registry = Registry()
    registry.counter("breakwater_requests_total").add()
    with pytest.raises(TypeError, match="is a counter, not a gauge"):
        registry.gauge("breakwater_requests_total")
    with pytest.raises(TypeError, match="is a gauge, not a histogram"):
        registry.histogram("breakwater_inflight")
    with pytest.raises(ValueError, match="not a name"):
        registry.counter("no spaces")


def test_counters_and_histograms_of_several_processes_add() -> None:
    one, two = Registry("p0"), Registry("p1")
    for registry, amount in ((one, 2), (two, 40)):
        registry.counter("breakwater_attempts_total", deployment="a", error="").add(amount)
        ttft = registry.histogram("breakwater_ttft_seconds", model="m", deployment="a")
        for _ in range(amount):
            ttft.observe(0.5)
    found = samples(one, two)
    labels = (("deployment", "a"), ("model", "m"))
    assert found["breakwater_attempts_total", (("deployment", "a"), ("error", ""))] == 42
    assert found["breakwater_ttft_seconds_count", labels] == 42
    assert found["breakwater_ttft_seconds_sum", labels] == 21
    assert found["breakwater_ttft_seconds_bucket", (*labels[:1], ("le", "0.5"), labels[1])] == 42
    assert found["breakwater_ttft_seconds_bucket", (*labels[:1], ("le", "0.35"), labels[1])] == 0


def test_a_gauge_adds_or_takes_the_greatest_or_names_its_process() -> None:
    registries = [Registry("p0"), Registry("p1")]
    for number, registry in enumerate(registries, start=1):
        registry.gauge("breakwater_inflight", actor="router").set(number)
        registry.gauge("breakwater_loop_lag_seconds").set(number)
        registry.gauge("breakwater_config_revision").set(number)
    found = samples(*registries)
    assert found["breakwater_inflight", (("actor", "router"),)] == 3
    assert found["breakwater_loop_lag_seconds", ()] == 2
    assert found["breakwater_config_revision", (("process", "p0"),)] == 1
    assert found["breakwater_config_revision", (("process", "p1"),)] == 2


def test_a_gauge_that_is_set_to_a_truth_value_spoils_nothing() -> None:
    registry = Registry("p0")
    registry.gauge("breakwater_bus_connected").set(True)
    assert samples(registry) == {("breakwater_bus_connected", (("process", "p0"),)): 1.0}


def test_a_snapshot_that_cannot_be_read_is_left_out_and_counted() -> None:
    registry = Registry()
    registry.counter("breakwater_unpriced_total", model="m").add()
    page = render([b"\xff\xff", registry.snapshot(), b""]).decode()
    assert 'breakwater_unpriced_total{model="m"} 1\n' in page
    assert "breakwater_metrics_bad_snapshots 2\n" in page


def test_histograms_of_two_versions_never_look_faster_than_they_were() -> None:
    registry = Registry()
    name = "breakwater_overhead_seconds"
    registry.histogram(name).observe(0.0015)
    other = Family(
        name, "histogram", [0.0012, 0.5, 9.0], histograms=[((), HistogramValue([1, 2, 4, 8], 99.5))]
    )
    page = msgspec.msgpack.encode(Snapshot("p1", [other]))
    (family,) = merge([registry.snapshot(), page]).families
    ((_, value),) = family.histograms
    assert dict(zip([*OVERHEAD, float("inf")], value.counts, strict=True)) == {
        **dict.fromkeys(OVERHEAD, 0),
        0.0015: 1 + 1,
        0.5: 2,
        float("inf"): 4 + 8,
    }
    assert value.total == 0.0015 + 99.5


@pytest.mark.parametrize(
    "family",
    [
        Family("no spaces", "counter", []),
        Family("x", "histogram", [1.0], histograms=[((), HistogramValue([1], 1))]),
        Family("x", "histogram", [2.0, 1.0]),
        Family("x", "counter", [], values=[((("a b", "c"),), 1)]),
    ],
)
def test_a_family_that_contradicts_itself_is_left_out(family: Family) -> None:
    page = msgspec.msgpack.encode(Snapshot("p1", [family]))
    names = {family.name for family in merge([page]).families}
    assert names == {"breakwater_metrics_bad_snapshots"}


def test_help_and_type_come_once_before_the_samples_of_a_family() -> None:
    registry = Registry()
    registry.gauge("breakwater_inflight", actor="b").set(1)
    registry.gauge("breakwater_inflight", actor="a").set(2.5)
    assert render([registry.snapshot()]).decode() == (
        "# HELP breakwater_inflight Requests or attempts in hand.\n"
        "# TYPE breakwater_inflight gauge\n"
        'breakwater_inflight{actor="a"} 2.5\n'
        'breakwater_inflight{actor="b"} 1.0\n'
    )


def test_every_metric_that_the_code_names_is_in_the_table() -> None:
    used = {
        (name, kind)
        for path in SERVICES.rglob("*.py")
        for kind, name in re.findall(
            r"\.(counter|gauge|histogram)\(\s*\"([a-z_:]+)\"", path.read_text("utf-8")
        )
    }
    assert used
    assert {
        (name, kind) for name, kind in used if name not in METRICS or METRICS[name].kind != kind
    } == set()


def test_names_in_the_table_follow_prometheus_conventions() -> None:
    for name, metric in METRICS.items():
        assert name.startswith("breakwater_")
        assert metric.help.endswith(".")
        assert name.endswith("_total") == (metric.kind == "counter")
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert list(metric.buckets) == sorted(set(metric.buckets))
        if metric.kind == "histogram":
            assert name.endswith(f"_{metric.unit}")
