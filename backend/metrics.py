"""What a worker counts about its own work, for Prometheus; what the database knows is asked of the database instead.

Every process counts in its own registry. A worker publishes its figures through the broker every few seconds
(`adapters/vitals.py`) and the api's `/metrics` shows them all, with the label `worker`, so that one address tells of
the whole company wherever its workers are. Queue age, budget burn and counts by status are read from Postgres when they
are asked for (`operations/system.py`), so they are true with no worker alive.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

REGISTRY = CollectorRegistry()
"""The figures of this process."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_NODE_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)
_CALL_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)

_tokens = Counter("company_model_tokens_total", "Billed tokens", ("role", "model", "direction"), registry=REGISTRY)
_cost = Counter("company_model_cost_usd_total", "Billed money in USD", ("role", "model"), registry=REGISTRY)
_calls = Counter(
    "company_model_calls_total",
    "Attempts at model calls by how they ended",
    ("role", "model", "outcome"),
    registry=REGISTRY,
)
_latency = Histogram(
    "company_model_call_seconds",
    "From sending a model call to its whole answer",
    ("model",),
    buckets=_CALL_SECONDS,
    registry=REGISTRY,
)
_nodes = Histogram(
    "company_node_seconds",
    "From the start of a node visit to its commit",
    ("graph", "node"),
    buckets=_NODE_SECONDS,
    registry=REGISTRY,
)
_gates = Counter("company_gate_verdicts_total", "Verdicts of gates", ("gate", "decision"), registry=REGISTRY)
_rounds = Counter("company_review_rounds_total", "Changes that the lead has read and judged", registry=REGISTRY)
_leases = Counter("company_lease_losses_total", "Runs that this worker lost to another", registry=REGISTRY)
_claims = Counter("company_run_claims_total", "Runs that this worker took up", registry=REGISTRY)
_ends = Counter("company_run_ends_total", "Runs that ended here, by status", ("status",), registry=REGISTRY)
_circuits = Gauge(
    "company_provider_circuit_open",
    "Whether a provider is left alone since it did not answer: 0 closed, 1 open or probed",
    ("provider",),
    registry=REGISTRY,
)
_requests = Histogram(
    "company_http_request_seconds",
    "Answers of the API",
    ("method", "route", "status"),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=REGISTRY,
)


def call_settled(
    role: str,
    model: str,
    *,
    outcome: str,
    input_tokens: int,
    output_tokens: int,
    cached_tokens: int,
    cost_usd: Decimal,
    seconds: float | None = None,
) -> None:
    """Count a settled attempt; `outcome` is `done`, `failed` or `released`."""
    for direction, count in (("input", input_tokens), ("output", output_tokens), ("cached", cached_tokens)):
        _tokens.labels(role, model, direction).inc(count)
    _cost.labels(role, model).inc(float(cost_usd))
    _calls.labels(role, model, outcome).inc()
    if seconds is not None:
        _latency.labels(model).observe(seconds)


def call_replayed(role: str, model: str) -> None:
    """Count a call that the journal answered for nothing."""
    _calls.labels(role, model, "replayed").inc()


def node_finished(graph: str, node: str, seconds: float) -> None:
    """Count a committed node visit."""
    _nodes.labels(graph, node).observe(seconds)


def gate_decided(gate: str, decision: str) -> None:
    """Count a verdict; every verdict of the review gate is a round of review."""
    _gates.labels(gate, decision).inc()
    if gate == "review":
        _rounds.inc()


def run_claimed() -> None:
    """Count a claim of this worker."""
    _claims.inc()


def run_ended(status: str) -> None:
    """Count an end."""
    _ends.labels(status).inc()


def lease_lost() -> None:
    """Count a run that another worker took from this one."""
    _leases.inc()


def circuit_changed(provider: str, state: str) -> None:
    """Note where a provider's circuit stands; `provider` is its address."""
    _circuits.labels(provider).set(0 if state == "closed" else 1)


def request_answered(method: str, route: str, status: int, seconds: float) -> None:
    """Count an answer of the API; `route` is the path's template, never the path."""
    _requests.labels(method, route, str(status)).observe(seconds)


def snapshot() -> str:
    """The figures of this process, in Prometheus' text form."""
    return generate_latest(REGISTRY).decode()


class _Given(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self.families


def merge(snapshots: Mapping[str, str], gauges: Iterable[Metric] = ()) -> str:
    """This process' figures, those of the workers (by name, shown as the label `worker`) and gauges, as one text."""
    families: dict[str, Metric] = {}
    for worker, text in {"": snapshot(), **snapshots}.items():
        for family in text_string_to_metric_families(text):
            if family.name.endswith("_created"):
                continue
            target = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                labels = {**sample.labels, "worker": worker} if worker else sample.labels
                target.samples.append(sample._replace(labels=labels))
    registry = CollectorRegistry()
    registry.register(_Given([*families.values(), *gauges]))
    return generate_latest(registry).decode()
