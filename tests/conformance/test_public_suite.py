"""The public conformance suite of LangGraph's savers, every capability."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import Capability

from backend.adapters.db.checkpointer import RunSaver


async def test_the_saver_passes_every_capability_of_the_public_suite(pool: Any) -> None:
    @checkpointer_test(name="RunSaver")
    async def saver() -> AsyncIterator[RunSaver]:
        yield RunSaver(pool)

    report = await validate(saver)
    failures = [failure for result in report.results.values() for failure in result.failures or ()]
    assert failures == []
    assert {name for name, result in report.results.items() if result.passed} == {one.value for one in Capability}
