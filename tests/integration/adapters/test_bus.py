"""Words over Redis: who listens hears them, who is slow misses some, and nobody waits for anybody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from backend.adapters.bus import CHANNEL, Followers, Waker
from backend.settings import Settings
from backend.worker.bell import EXECUTE, QUEUE, CeleryBell
from backend.worker.broker import make_app
from backend.worker.loop import LoopThread
from tests.patience import PATIENCE


@pytest.fixture
async def waker(redis_url: str) -> AsyncIterator[Waker]:
    made = Waker(redis_url)
    yield made
    await made.close()


@pytest.fixture
async def followers(redis_url: str) -> AsyncIterator[Followers]:
    made = Followers(redis_url)
    yield made
    await made.close()


async def _heard(waker: Waker, run_id: UUID) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await waker.say(run_id, b"first"):
            await asyncio.sleep(0.01)


async def test_words_are_heard_by_all_who_follow_the_run_and_by_nobody_else(waker: Waker, followers: Followers) -> None:
    run_id, other = uuid4(), uuid4()
    assert await waker.say(run_id, b"nobody hears this") is False
    async with aclosing(followers.words(run_id)) as one, aclosing(followers.words(run_id)) as two:  # type: ignore[type-var] # they are generators
        both = [asyncio.ensure_future(anext(one)), asyncio.ensure_future(anext(two))]
        await asyncio.sleep(0)
        await _heard(waker, run_id)
        assert await asyncio.gather(*both) == [b"first", b"first"]
        assert await waker.say(other, b"another run") is False
        assert await waker.say(run_id, b"second") is True
        assert [await anext(one), await anext(two)] == [b"second", b"second"]
    async with asyncio.timeout(PATIENCE):
        while await waker.say(run_id, b"nobody hears this"):
            await asyncio.sleep(0.01)


async def test_who_is_slow_misses_words_and_holds_nobody_up(waker: Waker, followers: Followers) -> None:
    run_id = uuid4()
    async with aclosing(followers.words(run_id)) as slow, aclosing(followers.words(run_id)) as quick:  # type: ignore[type-var] # they are generators
        both = [asyncio.ensure_future(anext(slow)), asyncio.ensure_future(anext(quick))]
        await asyncio.sleep(0)
        await _heard(waker, run_id)
        await asyncio.gather(*both)
        for number in range(300):
            await waker.say(run_id, b"%d" % number)
            assert await anext(quick) == b"%d" % number
        assert [await anext(slow) for _ in range(200)] == [b"%d" % number for number in range(200)]


async def test_words_are_lost_quietly_while_redis_is_away() -> None:
    away = Waker("redis://127.0.0.1:1/0")
    assert await away.say(uuid4(), b"word") is False
    await away.close()


async def test_followers_of_many_runs_are_woken_by_few_messages_and_none_is_forgotten_at_the_end(
    redis_url: str,
) -> None:
    runs, woken = [uuid4() for _ in range(50)], set()
    waker = Waker(redis_url)
    sent: list[int] = []
    send = waker._line.send_packed_command

    async def counted(*args: Any, **options: Any) -> Any:
        sent.append(1)
        await send(*args, **options)

    waker._line.send_packed_command = counted
    heard = Redis.from_url(redis_url)
    async with heard.pubsub() as channel:
        await channel.subscribe(CHANNEL)
        await anext(channel.listen())
        for run_id in runs:
            waker.wake(run_id)
        await waker.close()
        async for message in channel.listen():
            woken.add(UUID(message["data"].decode()))
            if woken >= set(runs):
                break
    await heard.aclose()
    assert 1 <= len(sent) < len(runs) / 5


async def test_what_is_told_after_the_connection_was_cut_arrives(redis_url: str) -> None:
    queue, waker, redis = f"cut:{uuid4()}", Waker(redis_url), Redis.from_url(redis_url)
    waker.push(queue, "before")
    assert await redis.brpop([queue], timeout=int(PATIENCE)) == (queue.encode(), b"before")
    assert waker._telling is not None
    await waker._telling
    assert await redis.client_kill_filter(_id=str(await _id_of(waker))) == 1
    waker.push(queue, "after")
    await waker.close()
    assert await redis.brpop([queue], timeout=int(PATIENCE)) == (queue.encode(), b"after")
    await redis.aclose()


async def test_a_message_that_is_refused_takes_none_of_the_others_along(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    queue, odd, waker, redis = f"well:{uuid4()}", f"odd:{uuid4()}", Waker(redis_url), Redis.from_url(redis_url)
    await redis.set(odd, "no list")
    for place in (queue, odd, queue):
        waker.push(place, f"{place}: a message")
    waker.push(queue, "the last")
    await waker.close()
    assert await redis.lrange(queue, 0, -1) == [b"the last", f"{queue}: a message".encode()]
    assert "WRONGTYPE" in caplog.text
    await redis.delete(queue, odd)
    await redis.aclose()


async def test_wake_ups_are_heard_while_anybody_follows_and_no_longer(
    redis_url: str, waker: Waker, followers: Followers
) -> None:
    redis, run_id = Redis.from_url(redis_url), uuid4()
    followers._poll = 60.0
    before = await _hearing(redis)
    for _ in range(2):
        async with aclosing(followers.subscribe(run_id)) as follower, aclosing(followers.subscribe(None)) as other:  # type: ignore[type-var] # they are generators
            # The first look comes when the process hears, whatever was told before.
            both = [asyncio.ensure_future(anext(one)) for one in (follower, other)]
            await asyncio.wait_for(asyncio.gather(*both), PATIENCE)
            assert await _hearing(redis) == before + 1
            waker.wake(run_id)
            await asyncio.wait_for(asyncio.gather(anext(follower), anext(other)), PATIENCE)
            await other.aclose()
            assert await _hearing(redis) == before + 1
        async with asyncio.timeout(PATIENCE):
            while await _hearing(redis) != before:
                await asyncio.sleep(0.01)
    await redis.aclose()


async def _hearing(redis: Any) -> int:
    """How many connections hear wake-ups."""
    ((_, count),) = await redis.pubsub_numsub(CHANNEL)
    return int(count)


async def _id_of(waker: Waker) -> int:
    """The number under which Redis knows the line."""
    await waker._line.send_packed_command(waker._line.pack_commands([("CLIENT", "ID")]))
    found: int = await waker._line.read_response()
    return found


async def test_a_doorbell_is_what_celery_would_have_sent_and_many_go_together(
    redis_url: str, settings: Settings
) -> None:
    runs = [uuid4() for _ in range(50)]
    bell = CeleryBell(Waker(redis_url))
    app = make_app(settings, LoopThread(settings, bell, Waker(redis_url)))
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue(QUEUE)
        queue.clear()
        for run_id in runs:
            bell.ring(run_id)
        await bell.close()
        app.send_task(EXECUTE, args=["theirs"], queue=QUEUE, ignore_result=True)
        taken = [queue.get(timeout=PATIENCE) for _ in range(len(runs) + 1)]
        for message in taken:
            message.ack()
        theirs = taken.pop()
        assert [message.payload[0] for message in taken] == [[str(run_id)] for run_id in runs]
        assert {len({message.delivery_tag for message in taken}), len({m.headers["id"] for m in taken})} == {len(runs)}
        for message in taken:
            assert (message.content_type, message.headers["task"]) == (theirs.content_type, theirs.headers["task"])
            assert message.payload[1:] == theirs.payload[1:]
            assert message.headers.keys() <= theirs.headers.keys()
            assert message.delivery_info == theirs.delivery_info
    app.close()
