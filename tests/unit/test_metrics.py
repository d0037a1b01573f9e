"""Metrics: the figures of all processes in one text that Prometheus can read."""

from __future__ import annotations

from decimal import Decimal

from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from backend import metrics


def values(text: str, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    return {
        tuple(sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_figures_of_workers_are_told_apart_and_gauges_stand_beside_them() -> None:
    metrics.call_settled(
        "pm",
        "m",
        outcome="done",
        input_tokens=7,
        output_tokens=3,
        cached_tokens=0,
        cost_usd=Decimal("0.5"),
        seconds=1.0,
    )
    metrics.gate_decided("review", "approve")
    one = metrics.snapshot()
    merged = metrics.merge({"w1": one, "w2": one}, [GaugeMetricFamily("company_queue_runs", "Queue", value=4)])
    tokens = values(merged, "company_model_tokens_total")
    place = (("direction", "input"), ("model", "m"), ("role", "pm"))
    assert tokens[(*place, ("worker", "w1"))] == tokens[(*place, ("worker", "w2"))] == tokens[place] >= 7
    assert values(merged, "company_queue_runs") == {(): 4}
    assert values(merged, "company_review_rounds_total")[(("worker", "w1"),)] >= 1
    assert merged.count("# TYPE company_model_tokens_total counter") == 1


def test_no_figure_is_told_under_a_name_it_does_not_keep() -> None:
    metrics.node_finished("g", "n", 0.2)
    families = [family.name for family in text_string_to_metric_families(metrics.merge({}))]
    assert len(families) == len(set(families))
    assert all(name.startswith("company_") and not name.endswith("_created") for name in families)
