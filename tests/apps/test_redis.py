"""redis-py's asyncio client against a real Redis, over TCP and over a Unix socket."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from appkit import blocks, digest_of
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from servers import RedisServer

Connected = Callable[[], AbstractAsyncContextManager[Any]]  # redis-py's types mix both kinds


@pytest.fixture(params=["tcp", "unix"])
def connected(request: pytest.FixtureRequest, redis: RedisServer) -> Connected:
    """Opens a client to an empty database."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Any]:
        if request.param == "tcp":
            client = Redis(host=redis.host, port=redis.port)
        else:
            client = Redis(unix_socket_path=redis.path)
        async with client:
            await client.flushall()
            yield client

    return opened


async def test_values(connected: Connected) -> None:
    async with connected() as db:
        assert await db.set("name", "value")
        assert await db.get("name") == b"value"
        assert await db.get("nothing") is None
        assert [await db.incr("counter") for _ in range(300)] == list(range(1, 301))
        with pytest.raises(ResponseError):
            await db.incr("name")


async def test_large_value(connected: Connected) -> None:
    async with connected() as db:
        await db.set("large", b"".join(blocks(10)))
        value = await db.get("large")
    assert hashlib.blake2b(value).hexdigest() == digest_of(10)


async def test_pipeline(connected: Connected) -> None:
    async with connected() as db:
        async with db.pipeline(transaction=False) as pipe:
            for number in range(5000):
                pipe.set(f"key:{number}", number)
                pipe.get(f"key:{number}")
            results = await pipe.execute()
        async with db.pipeline(transaction=True) as pipe:
            results += await pipe.incr("counter").incr("counter").execute()
    assert results[1:10_000:2] == [str(number).encode() for number in range(5000)]
    assert results[-2:] == [1, 2]


async def test_many_tasks_share_a_pool(redis: RedisServer) -> None:
    pool = BlockingConnectionPool(host=redis.host, port=redis.port, max_connections=8)
    client: Any = Redis.from_pool(pool)
    async with client as db:
        await db.flushall()
        await asyncio.gather(*(db.incrby("total", number) for number in range(500)))
        assert int(await db.get("total")) == sum(range(500))


async def test_publish_and_subscribe(connected: Connected) -> None:
    async with connected() as db, db.pubsub() as subscriber:
        await subscriber.subscribe("news")
        await subscriber.psubscribe("wea*")
        assert [await kind_of_next(subscriber) for _ in range(2)] == ["subscribe", "psubscribe"]
        for number in range(300):
            await db.publish("news", number)
        await db.publish("weather", "rain")
        received = [(await message(subscriber))["data"] for _ in range(301)]
    assert received == [*(str(number).encode() for number in range(300)), b"rain"]


async def kind_of_next(subscriber: PubSub) -> str:
    kind: str = (await message(subscriber))["type"]
    return kind


async def message(subscriber: PubSub) -> dict[str, Any]:
    found: dict[str, Any] | None = None
    while found is None:
        found = await subscriber.get_message(timeout=None)
    return found


async def test_blocking_pop(connected: Connected) -> None:
    async with connected() as db:
        pop = asyncio.create_task(db.blpop(["queue"], timeout=0))
        await until_blocked(db)
        await db.rpush("queue", "job")
        assert list(await pop) == [b"queue", b"job"]


async def test_blocking_pop_is_cancelled(connected: Connected) -> None:
    """The connection of the cancelled command is closed, so the next job is not lost in it."""
    async with connected() as db:
        for _ in range(5):
            pop = asyncio.create_task(db.blpop(["queue"], timeout=0))
            await until_blocked(db)
            pop.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pop
            await until_blocked(db, 0)
        await db.rpush("queue", "job")
        assert list(await db.blpop(["queue"], timeout=0)) == [b"queue", b"job"]


async def until_blocked(db: Any, count: int = 1) -> None:
    """Wait until so many clients wait in a blocking command."""
    while True:
        if (await db.info("clients"))["blocked_clients"] == count:
            return
        await asyncio.sleep(0.002)


async def test_server_closes_the_connection(connected: Connected) -> None:
    async with connected() as db, db.pubsub() as subscriber, connected() as other:
        await subscriber.subscribe("news")
        assert await kind_of_next(subscriber) == "subscribe"
        await other.client_kill_filter(_type="pubsub")
        with pytest.raises(RedisConnectionError):
            await subscriber.connection.read_response()
        assert await db.ping()


async def test_blocking_pop_that_takes_too_long(connected: Connected) -> None:
    async with connected() as db:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await db.blpop(["nothing"], timeout=0)
        assert await db.ping()


async def test_nobody_listens() -> None:
    db: Any = Redis(host="127.0.0.1", port=1, retry=Retry(NoBackoff(), 0))
    async with db:
        with pytest.raises(RedisConnectionError):
            await db.ping()
