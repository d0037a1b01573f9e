"""Nodes, edges and routes of the company; every route names the gate that decides it."""

from __future__ import annotations

from typing import Any

from langgraph.graph import END, START, StateGraph

from backend.domain.gates import Decision, Gate
from backend.domain.ports import RunContext
from graphs.software_company import dispatch as board
from graphs.software_company.delivery import devops_prepare, docs_finalize
from graphs.software_company.development import dev_work, lead_review
from graphs.software_company.ending import final_decision
from graphs.software_company.planning import bootstrap_repo, pm_analyze_requirements, pm_create_tasks
from graphs.software_company.quality import qa_test
from graphs.software_company.safety import security_scan
from graphs.software_company.state import CompanyState

RETRIES = ("pm_create_tasks", "dispatch", "security_scan", "devops_prepare", "final_decision")
"""Where a retry of an ended run may go on."""


def build() -> StateGraph[Any, Any, Any, Any]:
    """Build the graph; compiling it is the driver's."""
    graph: StateGraph[Any, Any, Any, Any] = StateGraph(CompanyState, context_schema=RunContext)
    for node in (pm_analyze_requirements, pm_create_tasks, bootstrap_repo, lead_review, qa_test, security_scan):
        graph.add_node(node.__name__, node)
    for node in (docs_finalize, devops_prepare, final_decision):
        graph.add_node(node.__name__, node)
    graph.add_node("dispatch", board.dispatch, destinations=board.TO)
    graph.add_node("dev_work", dev_work, destinations=("lead_review",))
    graph.add_edge(START, "pm_analyze_requirements")
    graph.add_edge("pm_analyze_requirements", "pm_create_tasks")
    graph.add_edge("pm_create_tasks", "bootstrap_repo")
    graph.add_conditional_edges("bootstrap_repo", after_plan, ["pm_create_tasks", "dispatch", "final_decision"])
    graph.add_edge("lead_review", "dispatch")
    graph.add_conditional_edges("qa_test", after_qa, ["dispatch", "security_scan", "final_decision"])
    graph.add_conditional_edges("security_scan", after_security, ["dispatch", "docs_finalize", "final_decision"])
    graph.add_edge("docs_finalize", "devops_prepare")
    graph.add_edge("devops_prepare", "final_decision")
    graph.add_conditional_edges("final_decision", after_decision, [*RETRIES, END])
    return graph


def after_plan(state: CompanyState) -> str:
    """Approved: to work; changed: plan again; rejected: the end."""
    return _by(state, Gate.PLAN, fix="pm_create_tasks", on="dispatch")


def after_qa(state: CompanyState) -> str:
    """Green, switched off or accepted: to the scan; bugs: back to work; exhausted: the end."""
    return _by(state, Gate.QA, fix="dispatch", on="security_scan")


def after_security(state: CompanyState) -> str:
    """Nothing blocks: to the documents; fix tasks: back to work; exhausted: the end."""
    return _by(state, Gate.SECURITY, fix="dispatch", on="docs_finalize")


def after_decision(state: CompanyState) -> str:
    """Well ended: the end; a change was asked for: back to work; else where a retry goes on."""
    ending = state.get("ending")
    if not ending:
        return "dispatch"
    return ending["retry_at"] or END


def _by(state: CompanyState, gate: Gate, *, fix: str, on: str) -> str:
    decision = state["gates"][gate]["decision"]
    if decision == Decision.FIX:
        return fix
    return "final_decision" if decision in (Decision.FAIL, Decision.STOP) else on
