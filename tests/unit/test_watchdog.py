"""The watchdog of a worker bites when the event loop stands still, and only then."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from backend.worker.watchdog import Watchdog
from tests.patience import PATIENCE


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join()
    made.close()


def test_a_loop_that_stands_still_is_bitten(loop: asyncio.AbstractEventLoop) -> None:
    bitten, go_on = threading.Event(), threading.Event()
    watching = Watchdog(loop, every=0.01, rounds=10, bite=bitten.set)
    loop.call_soon_threadsafe(go_on.wait)
    watching.start()
    assert bitten.wait(PATIENCE)
    go_on.set()
    watching.stop()


def test_a_loop_that_is_slow_again_and_again_is_not_bitten(loop: asyncio.AbstractEventLoop) -> None:
    bitten = threading.Event()
    watching = Watchdog(loop, every=0.01, rounds=100, bite=bitten.set)
    watching.start()
    for _ in range(6):
        answered = threading.Event()
        loop.call_soon_threadsafe(time.sleep, 0.3)
        loop.call_soon_threadsafe(answered.set)
        assert answered.wait(PATIENCE)
        time.sleep(0.03)
    watching.stop()
    assert not bitten.is_set()


def test_a_loop_that_is_closed_is_watched_no_more() -> None:
    loop, bitten = asyncio.new_event_loop(), threading.Event()
    loop.close()
    watching = Watchdog(loop, every=0.01, rounds=1, bite=bitten.set)
    watching.start()
    watching.stop()
    assert not bitten.is_set()
