"""Alert rules: every metric and label they use exists, every mend is in the runbook."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from breakwater_gateway.runtime.metrics import METRICS
from breakwater_protocol.failures import SPEC, kind

ROOT = Path(__file__).resolve().parents[2]
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "ops" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
USED = re.compile(r"\b(breakwater_[a-z_]+)(?:\{([^}]*)\})?")
NAMES = [rule["alert"] for rule in RULES]


def anchors() -> set[str]:
    headings = re.findall(r"^## (.+)$", (ROOT / "ops" / "runbook.md").read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_a_rule_uses_only_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    used = USED.findall(rule["expr"])
    assert used
    names: set[str] = set()
    for name, matchers in used:
        metric = METRICS[name.removesuffix("_bucket")]
        assert name.endswith("_bucket") == (metric.kind == "histogram")
        names |= {*metric.labels, "le"}
        assert set(re.findall(r"(\w+)=~?\"", matchers)) <= set(metric.labels)
    for grouped in re.findall(r"by \(([^)]*)\)", rule["expr"]):
        assert {label.strip() for label in grouped.split(",")} <= names
    kept = {
        label.strip()
        for part in re.findall(r"by \(([^)]*)\)", rule["expr"])
        for label in part.split(",")
    }
    for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
        assert label in kept or "by (" not in rule["expr"]


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_a_rule_says_how_bad_it_is_and_where_its_mend_is(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"page", "ticket"}
    page, _, anchor = rule["annotations"]["mend"].partition("#")
    assert page == "ops/runbook.md"
    assert anchor in anchors()


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_outcomes_and_errors_in_a_rule_are_ones_that_happen(rule: dict[str, Any]) -> None:
    outcomes = {spec.code for spec in SPEC.values()} | {"ok", "partial", "cancelled"}
    for value in re.findall(r'outcome=~?"([^"]*)"', rule["expr"]):
        assert set(value.split("|")) <= outcomes
    errors = {kind(failure()) for failure in SPEC}
    for value in re.findall(r'error=~?"([^"]*)"', rule["expr"]):
        assert set(value.split("|")) <= errors


def test_no_two_rules_share_a_name() -> None:
    assert len(set(NAMES)) == len(NAMES)
