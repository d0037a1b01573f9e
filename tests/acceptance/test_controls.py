"""A stop takes effect wherever the run is: a model call, a sandboxed test or git; by default settings."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from backend.operations import runs
from tests.acceptance.firm import Firm
from tests.openai_server import position_of
from tests.patience import PATIENCE
from tests.small_company import SmallCompany, Turn, _submit, _write

Hire = Callable[..., Firm]
DEFAULTS = {"COMPANY_ENGINE__LEASE_SECONDS": "15", "COMPANY_ENGINE__HEARTBEAT_SECONDS": "3"}
HANG_GUARD_SECONDS = 60
"""Half of what the model takes, a tenth of what the test takes: who waited for them would be later."""
_HELD = "SELECT reserved_tokens, reserved_usd, final_report FROM project_runs WHERE id = $1"


class Sleeper(SmallCompany):
    """A developer whose test sleeps for ten minutes."""

    def _develop(self, key: str) -> tuple[Turn, ...]:
        test = "import time\n\n\ndef test_it() -> None:\n    time.sleep(600)\n"
        return ((_write(f"tests/test_{key}.py", test),), (("run_tests", {}),), *_submit("Done."))


def _below(pid: int) -> dict[int, str]:
    """The processes below one, each with its command line."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            state, parent = stat.rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    found: dict[int, str] = {}
    layer = {pid}
    while layer := {child for child, parent in parents.items() if parent in layer}:
        found |= {child: _command(child) for child in layer}
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


async def _stops(firm: Firm, run_id: UUID, place: str, working: Callable[[], Awaitable[bool]]) -> None:
    worker = firm.workers[0].pid
    async with asyncio.timeout(PATIENCE):
        while not await working():
            await asyncio.sleep(0.05)
    busy = _below(worker)
    began = time.monotonic()
    async with firm.sessions.begin() as session:
        await runs.stop(session, run_id, by="ada")
    await asyncio.wait_for(firm.becomes(run_id, "STOPPED_USER"), HANG_GUARD_SECONDS)
    seconds = time.monotonic() - began
    left = {pid: said for pid, said in _below(worker).items() if busy.get(pid) == said}
    orphans = {pid: said for pid, said in busy.items() if said and _command(pid) == said}
    sys.stdout.write(f"stopped in {place}: {seconds:.2f} s, {len(busy)} processes before, {len(left)} after\n")
    assert (left, orphans) == ({}, {})
    held = await firm.query(
        "SELECT reserved_tokens, reserved_usd, final_report FROM project_runs WHERE id = $1", run_id
    )
    assert held[0][:2] == (0, 0)
    assert held[0][2] is not None, "it reports what is done so far"
    assert await firm.query("SELECT id FROM model_calls WHERE status = 'reserved'") == []
    assert await firm.query("SELECT * FROM v_ledger_check") == []


async def test_a_stop_cuts_a_model_call(hire: Hire) -> None:
    firm = hire(SmallCompany(delay=120))
    firm.start(**DEFAULTS)
    run_id = await firm.begin()

    async def working() -> bool:
        return bool(await firm.query("SELECT id FROM model_calls WHERE status = 'reserved'"))

    await _stops(firm, run_id, "a model call", working)


async def _pauses_at_once(firm: Firm, run_id: UUID, working: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await working():
            await asyncio.sleep(0.05)
    async with firm.sessions.begin() as session:
        await runs.pause(session, run_id, by="ada", at_once=True)
    await asyncio.wait_for(firm.becomes(run_id, "PAUSED"), HANG_GUARD_SECONDS)
    assert not await working(), "what can be done again is cut"
    assert await firm.query("SELECT id FROM model_calls WHERE status <> 'done'") == []
    async with firm.sessions.begin() as session:
        await runs.resume(session, run_id, by="ada")


async def test_a_pause_at_once_and_a_stop_kill_a_sandboxed_test_and_no_call_is_paid_twice(hire: Hire) -> None:
    firm = hire(Sleeper())
    worker = firm.start(**DEFAULTS)
    run_id = await firm.begin(roles={"developer": {"enabled": True}})

    async def working() -> bool:
        # Not "pytest": the directories of this test are called after it, and so git's command lines hold it.
        return any("gate_runner" in said for said in _below(worker.pid).values())

    await _pauses_at_once(firm, run_id, working)
    await _stops(firm, run_id, "a sandboxed test", working)
    # The other developer may have gone on to calls that were not made yet; what was paid for is not asked again.
    asked = [position_of(request.headers) for request in firm.server.requests]
    assert None not in asked
    assert len(asked) == len(set(asked)), "the nodes went on exactly there"


async def test_a_stop_kills_a_git_operation(hire: Hire) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        firm = hire()
        worker = firm.start(**DEFAULTS)
        remote = f"git://127.0.0.1:{silent.getsockname()[1]}/project.git"
        place: dict[str, Any] = {"source": "remote", "remote": remote}
        run_id = await firm.begin(workspace=place)

        async def working() -> bool:
            return any(" fetch " in said for said in _below(worker.pid).values())

        await _stops(firm, run_id, "a git operation", working)
