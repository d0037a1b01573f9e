"""Runs per second from submitting to done, 200 at once through the API, and the latency of one: engines side by side.

Seven nodes without work of their own, 20 kB of state at the end. Each engine is started anew in each round, over the
same Postgres and broker, warmed by as many runs, measured and stopped, in turns. Peers are installed from locks into
environments of their own (`requirements/peers`); one that cannot run here is listed with the reason.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.peers.contender import Company, Contender
from benchmarks.peers.environments import Missing
from benchmarks.peers.others import Aegra, BareCeleryChain, CeleryChain, Dbos, LangGraphDev, Prefect
from benchmarks.rig import place, told
from benchmarks.rig.place import Servers
from benchmarks.rig.work import load, processor_seconds

MAKERS: dict[str, Callable[[], Any]] = {
    "company": Company,
    "company-2": lambda: Company(2),
    "dbos": lambda: Dbos("started by the request"),
    "dbos-queue": lambda: Dbos("queue"),
    "celery": CeleryChain,
    "celery-bare": BareCeleryChain,
    "aegra": Aegra,
    "langgraph-dev": LangGraphDev,
    "prefect": Prefect,
}
PROMISED = {"dbos": ">= 3", "dbos-queue": ">= 3", "celery": ">= 2", "celery-bare": ">= 2", "aegra": ">= 6"}
ROUND_SECONDS = 300.0
LOOK_SECONDS = 0.002


@dataclass
class Found:
    """What was measured of one contender."""

    rates: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    """Milliseconds of processor time a run: its processes, the database's and the broker's."""


async def until(contender: Contender, wanted: int, pause: float) -> None:
    while await contender.ended() < wanted:
        await asyncio.sleep(pause)


async def measure(contender: Contender, servers: Servers, found: Found, many: int, single: int) -> None:
    await contender.open()
    try:
        roots = [*contender.pids(), *servers.pids]
        done, rate, cost = await contender.ended(), 0.0, 0.0
        for count in (many, many):
            identities = await contender.prepare(count)
            done = await contender.ended()
            began, used = time.perf_counter(), processor_seconds(roots)
            await asyncio.gather(*(contender.submit(identity, n) for n, identity in enumerate(identities)))
            await until(contender, done + count, 0.02)
            rate = count / (time.perf_counter() - began)
            cost = (processor_seconds(roots) - used) * 1000 / count
        found.rates.append(rate)
        found.processor.append(cost)
        for number in range(single):
            (identity,) = await contender.prepare(1)
            done = await contender.ended()
            began = time.perf_counter()
            await contender.submit(identity, number)
            # Looked for at any moment: else a run that ends just before a look would seem two milliseconds faster.
            await asyncio.sleep(random.uniform(0, LOOK_SECONDS))
            await until(contender, done + 1, LOOK_SECONDS)
            found.latencies.append((time.perf_counter() - began) * 1000)
    finally:
        await contender.close()


def main() -> None:
    options = place.parser(__doc__, rounds=3)
    options.add_argument("--many", type=int, default=200, help="runs at once")
    options.add_argument("--single", type=int, default=15, help="runs one at a time, each round")
    options.add_argument("--only", nargs="*", choices=MAKERS, default=list(MAKERS))
    asked = options.parse_args()
    contenders: dict[str, Any] = {}
    absent: dict[str, str] = {}
    for name in asked.only:
        try:
            contenders[name] = MAKERS[name]()
        except Missing as why:
            absent[name] = f"cannot run here: {why}"
    found = {name: Found() for name in contenders}
    began = load()
    with place.servers() as servers:
        for number in range(asked.rounds):
            for name in [*contenders][number % len(contenders) :] + [*contenders][: number % len(contenders)]:
                one = contenders[name]
                many = max(10, int(asked.many * getattr(one, "share", 1.0)))
                try:
                    with one.running(servers):
                        work = measure(one, servers, found[name], many, asked.single)
                        asyncio.run(asyncio.wait_for(work, ROUND_SECONDS))
                except (RuntimeError, TimeoutError, OSError) as failed:
                    absent[name] = f"failed: {' '.join(str(failed).split())[:300] or 'not done in time'}"
    _tell(contenders, found, absent, f"Load at the beginning: {began}; at the end: {load()}.")


def _tell(contenders: dict[str, Any], found: dict[str, Found], absent: dict[str, str], under: str) -> None:
    middle = statistics.median
    rows = [
        (one.name, middle(found[name].rates), middle(found[name].processor), middle(found[name].latencies or [0.0]))
        for name, one in contenders.items()
        if found[name].rates
    ]
    ratios = []
    ours = found.get("company") or Found()
    for name, one in contenders.items():
        if name.startswith("company") or not found[name].rates or not ours.rates:
            continue
        theirs = found[name]
        ratios += [
            told.Ratio(f"runs/s / {one.name}", middle(ours.rates) / middle(theirs.rates), PROMISED.get(name)),
            told.Ratio(f"latency / {one.name}", middle(ours.latencies) / middle(theirs.latencies), "<= 1"),
            told.Ratio(f"processor time / {one.name}", middle(ours.processor) / middle(theirs.processor)),
        ]
        if name.startswith("celery") and (two := found.get("company-2")) and two.rates:
            ratios.append(told.Ratio(f"runs/s, 2 workers / {one.name}", middle(two.rates) / middle(theirs.rates)))
    keeps = [f"{one.name}: {one.keeps}." for one in contenders.values()]
    told.tell(
        "Runs through the API, submit to done",
        told.table(("", "runs/s at once", "processor ms a run", "ms one alone"), rows, first=48),
        ratios,
        "What each keeps when a process dies:\n" + "\n".join(keeps),
        *(f"{contenders[name].name if name in contenders else name}: {why}" for name, why in absent.items()),
        under,
    )


if __name__ == "__main__":
    main()
