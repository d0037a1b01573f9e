"""The graph has the nodes of the contract, and its state merges the same way in any order."""

import subprocess
import sys
from typing import Any

import pytest

from backend.domain.role import Role
from graphs.software_company import GRAPH
from graphs.software_company.graph import after_decision, after_plan, after_qa, after_security
from graphs.software_company.state import merge, merge_cards
from graphs.software_company.trail import STAGES, first_line

NODES = {*STAGES, "dispatch", "dev_work", "lead_review"}


def test_the_graph_has_the_nodes_of_the_contract() -> None:
    graph = GRAPH.build()
    assert set(graph.nodes) == NODES
    assert set(GRAPH.roles) == set(Role)
    graph.compile()


def test_looking_at_the_plug_in_does_not_import_langgraph() -> None:
    code = "import sys, graphs.software_company; print(any(name.startswith('langgraph') for name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_dicts_merge_by_key_and_none_takes_a_key_out() -> None:
    assert merge({"a": 1, "b": 2}, {"b": None, "c": 3}) == {"a": 1, "c": 3}
    assert merge(None, None) == {}


def test_parallel_nodes_write_only_their_own_cards() -> None:
    board: Any = {
        "a": {"status": "IN_PROGRESS", "stage": "working"},
        "b": {"status": "IN_PROGRESS", "stage": "working"},
    }
    one: Any = {"a": {"stage": "approved"}}
    other: Any = {"b": {"stage": "sent_back", "rounds": 1}}
    assert merge_cards(merge_cards(board, one), other) == merge_cards(merge_cards(board, other), one)
    assert merge_cards(board, one)["b"] == board["b"]
    assert board["a"]["stage"] == "working"


@pytest.mark.parametrize(
    ("decision", "plan", "qa", "security"),
    [
        ("pass", "dispatch", "security_scan", "docs_finalize"),
        ("off", "dispatch", "security_scan", "docs_finalize"),
        ("accept", "dispatch", "security_scan", "docs_finalize"),
        ("fix", "pm_create_tasks", "dispatch", "dispatch"),
        ("fail", "final_decision", "final_decision", "final_decision"),
        ("stop", "final_decision", "final_decision", "final_decision"),
    ],
)
def test_every_route_follows_its_gate(decision: str, plan: str, qa: str, security: str) -> None:
    gates = {gate: {"decision": decision, "reason": ""} for gate in ("plan", "qa", "security")}
    assert (after_plan({"gates": gates}), after_qa({"gates": gates}), after_security({"gates": gates})) == (
        plan,
        qa,
        security,
    )


@pytest.mark.parametrize(
    ("ending", "to"),
    [({}, "dispatch"), ({"retry_at": None}, "__end__"), ({"retry_at": "security_scan"}, "security_scan")],
)
def test_the_last_node_ends_or_says_where_a_retry_goes_on(ending: dict[str, Any], to: str) -> None:
    assert after_decision({"ending": ending}) == to


@pytest.mark.parametrize(
    ("text", "line"), [("", ""), ("\n\n  One \nTwo", "One"), ("x" * 100, "x" * 69 + "…"), ("\u2028", "")]
)
def test_the_subject_of_a_commit_is_one_short_line(text: str, line: str) -> None:
    assert first_line(text) == line
