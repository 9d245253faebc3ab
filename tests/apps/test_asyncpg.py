"""asyncpg against a real PostgreSQL: over TCP, over TLS (by start_tls) and over a Unix socket."""

from __future__ import annotations

import asyncio
import hashlib
import io
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from appkit import Certificates, blocks, digest_of
from servers import PostgresServer

if sys.implementation.name == "pypy":
    pytest.skip("asyncpg has no wheel for PyPy", allow_module_level=True)

import asyncpg  # type: ignore[import-untyped]

Options = dict[str, Any]
ENDLESS = "SELECT repeat('x', 1000), generate_series(1, 100000000)"


@pytest.fixture(params=["tcp", "tls", "unix"])
def options(
    request: pytest.FixtureRequest, postgres: PostgresServer, certificates: Certificates
) -> Options:
    """How to connect."""
    ways = {
        "tcp": {"host": postgres.host, "ssl": False},
        "tls": {"host": postgres.host, "ssl": certificates.client()},
        "unix": {"host": postgres.folder, "ssl": False},
    }
    return {"port": postgres.port, "user": "tester", "database": "postgres", **ways[request.param]}


@asynccontextmanager
async def connected(options: Options) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(**options)
    try:
        yield connection
    finally:
        await connection.close()


def pool_of(options: Options, size: int) -> AbstractAsyncContextManager[asyncpg.Pool]:
    pool: AbstractAsyncContextManager[asyncpg.Pool]
    pool = asyncpg.create_pool(**options, min_size=size, max_size=size)
    return pool


async def test_queries(options: Options) -> None:
    async with connected(options) as db:
        tls = await db.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        assert tls == bool(options["ssl"])
        assert await db.fetchval("SELECT $1::int + 1", 41) == 42
        row = await db.fetchrow("SELECT 'text' AS a, ARRAY[1, 2] AS b, NULL AS c")
        assert dict(row) == {"a": "text", "b": [1, 2], "c": None}
        statement = await db.prepare("SELECT n * $1 FROM generate_series(1, 100) AS n")
        assert [row[0] for row in await statement.fetch(3)] == [3 * n for n in range(1, 101)]


async def test_error_leaves_the_connection_usable(options: Options) -> None:
    async with connected(options) as db:
        with pytest.raises(asyncpg.DivisionByZeroError):
            await db.fetchval("SELECT 1 / 0")
        with pytest.raises(asyncpg.PostgresSyntaxError):
            await db.execute("SELEC 1")
        assert await db.fetchval("SELECT 1") == 1


async def test_transactions(options: Options) -> None:
    async with connected(options) as db:
        await db.execute("CREATE TEMP TABLE items (id int PRIMARY KEY)")
        with pytest.raises(asyncpg.UniqueViolationError):
            async with db.transaction():
                await db.executemany("INSERT INTO items VALUES ($1)", [(1,), (2,), (1,)])
        assert await db.fetchval("SELECT count(*) FROM items") == 0
        async with db.transaction():
            await db.executemany("INSERT INTO items VALUES ($1)", [(n,) for n in range(2000)])
            ids = [row[0] async for row in db.cursor("SELECT id FROM items ORDER BY 1")]
        assert ids == list(range(2000))


async def test_large_values(options: Options) -> None:
    sent = b"".join(blocks(30))
    async with connected(options) as db:
        received = await db.fetchval("SELECT $1::bytea", sent)
    assert hashlib.blake2b(received).hexdigest() == digest_of(30)


async def test_large_result(options: Options) -> None:
    """About 50 MB in 200,000 rows."""
    async with connected(options) as db:
        query = "SELECT n, repeat('x', 200) FROM generate_series(1, 200000) AS n"
        rows = await db.fetch(query)
    assert sum(row[0] for row in rows) == 200_000 * 200_001 // 2
    assert {len(row[1]) for row in rows} == {200}


async def test_copy(options: Options) -> None:
    records = [(number, f"name {number}") for number in range(50_000)]
    async with connected(options) as db:
        await db.execute("CREATE TEMP TABLE people (id int, name text)")
        assert await db.copy_records_to_table("people", records=records) == "COPY 50000"
        out = io.BytesIO()
        assert await db.copy_from_table("people", output=out, format="csv") == "COPY 50000"
        lines = out.getvalue()
        assert lines.splitlines() == [b"%d,name %d" % (n, n) for n in range(50_000)]
        await db.execute("TRUNCATE people")
        source = io.BytesIO(lines)
        assert await db.copy_to_table("people", source=source, format="csv") == "COPY 50000"
        assert await db.fetchval("SELECT sum(id) FROM people") == sum(range(50_000))


async def test_listen_and_notify(options: Options) -> None:
    notices: asyncio.Queue[str] = asyncio.Queue()

    def listener(db: object, pid: int, channel: str, payload: str) -> None:
        notices.put_nowait(payload)

    async with connected(options) as receiver, connected(options) as sender:
        await receiver.add_listener("news", listener)
        for number in range(200):
            await sender.execute("SELECT pg_notify('news', $1)", str(number))
        received = [await notices.get() for _ in range(200)]
        await receiver.remove_listener("news", listener)
    assert received == [str(number) for number in range(200)]


async def test_pool(options: Options) -> None:
    async with pool_of(options, 5) as pool:

        async def work(number: int) -> int:
            async with pool.acquire() as db, db.transaction():
                value: int = await db.fetchval("SELECT $1::int", number)
                return value

        results = await asyncio.gather(*(work(number) for number in range(300)))
        pids = {await pool.fetchval("SELECT pg_backend_pid()") for _ in range(10)}
    assert results == list(range(300))
    assert 1 <= len(pids) <= 5


@pytest.mark.parametrize(
    ("query", "wait_event"),
    [("SELECT pg_sleep(60)", "PgSleep"), (ENDLESS, "ClientWrite")],
    ids=["waiting", "receiving"],
)
async def test_cancellation(options: Options, query: str, wait_event: str) -> None:
    """asyncpg asks the server to cancel on a second connection, then this one works again."""
    async with connected(options) as db, connected(options) as watcher:
        fetching = asyncio.create_task(db.fetch(query))
        await until_server_waits(watcher, db.get_server_pid(), wait_event)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        assert await db.fetchval("SELECT 1") == 1


async def until_server_waits(watcher: asyncpg.Connection, pid: int, event: str) -> None:
    """A server that is not yet, or no more, at work on a query ignores a wish to cancel it."""
    query = "SELECT wait_event FROM pg_stat_activity WHERE pid = $1"
    while True:
        if await watcher.fetchval(query, pid) == event:
            return
        await asyncio.sleep(0.002)


async def test_time_limit_of_the_client(options: Options) -> None:
    async with connected(options) as db:
        with pytest.raises(TimeoutError):
            await db.execute("SELECT pg_sleep(10)", timeout=0.1)
        assert await db.fetchval("SELECT 1") == 1


async def test_terminate_in_the_middle_of_a_query(options: Options) -> None:
    db = await asyncpg.connect(**options)
    query = asyncio.create_task(db.fetch(ENDLESS))
    await asyncio.sleep(0.01)
    db.terminate()
    with pytest.raises((asyncpg.ConnectionDoesNotExistError, asyncpg.InterfaceError)):
        await query
    assert db.is_closed()


async def test_pool_is_terminated(options: Options) -> None:
    async with connected(options) as watcher:
        pool = await asyncpg.create_pool(**options, min_size=4, max_size=4)
        query = asyncio.create_task(pool.execute("SELECT pg_sleep(60)"))
        await asyncio.sleep(0.01)
        pool.terminate()
        with pytest.raises((asyncpg.ConnectionDoesNotExistError, asyncpg.InterfaceError)):
            await query
        assert await watcher.fetchval("SELECT 1") == 1


async def test_server_ends_the_connection(options: Options) -> None:
    lost = asyncio.Event()
    async with connected(options) as other:
        db = await asyncpg.connect(**options)
        db.add_termination_listener(lambda connection: lost.set())
        pid = await db.fetchval("SELECT pg_backend_pid()")
        assert await other.fetchval("SELECT pg_terminate_backend($1)", pid)
        await lost.wait()
        with pytest.raises(asyncpg.InterfaceError):
            await db.fetchval("SELECT 1")
        await db.close()


async def test_nobody_listens(options: Options, tmp_path_factory: pytest.TempPathFactory) -> None:
    unix = str(options["host"]).startswith("/")
    nowhere = {"host": str(tmp_path_factory.mktemp("none"))} if unix else {"port": 1}
    with pytest.raises((FileNotFoundError, ConnectionRefusedError)):
        await asyncpg.connect(**{**options, **nowhere})


async def test_wrong_certificate_is_refused(postgres: PostgresServer) -> None:
    address = {"host": postgres.host, "port": postgres.port}
    strangers = ssl.create_default_context()
    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncpg.connect(**address, user="tester", database="postgres", ssl=strangers)
