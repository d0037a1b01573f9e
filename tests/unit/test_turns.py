"""Turns: one at a time at a thing, a few at once in all, first come first served, and patient while others get on."""

from __future__ import annotations

import asyncio

import pytest

from backend.api.turns import Turns
from backend.errors import Conflict, Unavailable


class Desk:
    """People who take turns, and the order in which they got one."""

    def __init__(self, **limits: float) -> None:
        self.turns = Turns(**limits)  # type: ignore[arg-type]  # as many at once, and a patience
        self.served: list[str] = []
        self.most = 0
        self._now: list[str | None] = []

    def come(self, name: str, thing: str | None, until: asyncio.Event) -> asyncio.Task[None]:
        return asyncio.create_task(self._come(name, thing, until))

    async def _come(self, name: str, thing: str | None, until: asyncio.Event) -> None:
        async with self.turns.turn(thing):
            assert thing is None or thing not in self._now
            self._now.append(thing)
            self.most = max(self.most, len(self._now))
            self.served.append(name)
            try:
                await until.wait()
            finally:
                self._now.remove(thing)


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_who_wants_the_same_thing_waits_in_the_order_of_coming_and_holds_up_nobody_else() -> None:
    desk, done = Desk(at_once=3), asyncio.Event()
    waiting = [desk.come(name, name[0], done) for name in ("a1", "a2", "a3", "b1")]
    await _settle()
    assert desk.served == ["a1", "b1"]
    done.set()
    await asyncio.gather(*waiting)
    assert desk.served == ["a1", "b1", "a2", "a3"]


async def test_only_so_many_are_served_at_once() -> None:
    desk, done = Desk(at_once=3), asyncio.Event()
    waiting = [desk.come(str(place), None, done) for place in range(10)]
    await _settle()
    assert len(desk.served) == 3
    done.set()
    await asyncio.gather(*waiting)
    assert desk.most == 3


@pytest.mark.parametrize("served", [False, True])
async def test_who_goes_away_leaves_the_place_to_the_next(served: bool) -> None:
    desk, done, never = Desk(at_once=1), asyncio.Event(), asyncio.Event()
    first, gone, last = desk.come("first", "a", never), desk.come("gone", "a", never), desk.come("last", "a", done)
    await _settle()
    for leaving in (first, gone) if served else (gone, first):
        leaving.cancel()
    done.set()
    await last
    assert desk.served == ["first", "last"]


async def test_a_turn_that_fails_is_given_back() -> None:
    turns = Turns(at_once=1)
    for error in (Conflict("It has ended."), OSError("It is away.")):
        with pytest.raises(type(error)):
            async with turns.turn("a"):
                raise error
    async with turns.turn("a"):
        pass


async def test_where_nobody_gets_an_answer_those_who_wait_are_told() -> None:
    desk, never = Desk(at_once=1, patience=0.05), asyncio.Event()
    first = desk.come("first", "a", never)
    await _settle()
    with pytest.raises(Unavailable, match="answers nobody"):
        async with desk.turns.turn("b"):
            pass
    first.cancel()
    async with desk.turns.turn("b"):
        pass


async def test_as_long_as_others_are_answered_one_waits_beyond_the_patience_for_silence() -> None:
    now, held = [0.0], asyncio.Event()
    turns = Turns(at_once=2, patience=0.01, clock=lambda: now[0])

    async def hold(until: asyncio.Event) -> None:
        async with turns.turn("a"):
            await until.wait()

    holding = asyncio.create_task(hold(asyncio.Event()))
    await _settle()
    waiting = asyncio.create_task(hold(held))
    for _ in range(10):
        now[0] += 0.008
        async with turns.turn("b"):
            await asyncio.sleep(0.02)
    assert not waiting.done()
    now[0] += 0.02
    with pytest.raises(Unavailable):
        await waiting
    holding.cancel()
