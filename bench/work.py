"""What a loop does without a load generator: ``work.py ROW LOOP [FOLDER OF A SERVICE]``.

Prints nanoseconds per operation, of this process's CPU and of the clock on the wall, and the CPU
time of each repetition in seconds, as pyperf has it.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import statistics
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import serve

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH = 1000  # callbacks or timers alive at once in the bulk rows
PATIENCE = 12  # seconds in which an interpreter that compiles while it runs has to be warm
CLIENTS = 10  # connections of a database client
PIPELINE = 50  # commands of one Redis round trip

# Not in here, where most of what a loop imports is there already.
IMPORT = """
import importlib, json, sys, time
wall, cpu = time.perf_counter_ns(), time.process_time_ns()
importlib.import_module(sys.argv[1])
cpu, wall = time.process_time_ns() - cpu, time.perf_counter_ns() - wall
print(json.dumps({"cpu_ns": cpu, "wall_ns": wall, "loops": 1, "values": [cpu / 1e9]}))
"""


def nothing() -> None:
    pass


async def no_coroutine_is_shorter() -> None:
    pass


async def sleep_zero(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def switch_100(count: int) -> None:
    await asyncio.gather(*(sleep_zero(count // 100) for _ in range(100)))


async def call_soon_chain(count: int) -> None:
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def link(left: int) -> None:
        if left:
            loop.call_soon(link, left - 1)
        else:
            done.set_result(None)

    loop.call_soon(link, count)
    await done


async def call_soon_bulk(count: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(count // BATCH):
        for _ in range(BATCH):
            loop.call_soon(nothing)
        await asyncio.sleep(0)


async def create_and_gather(count: int) -> None:
    for _ in range(count // 100):
        await asyncio.gather(*(no_coroutine_is_shorter() for _ in range(100)))


async def call_later_cancel(count: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(count // BATCH):
        timers = [loop.call_later(60, nothing) for _ in range(BATCH)]
        for timer in timers:
            timer.cancel()
        await asyncio.sleep(0)


async def timers_cancelled(count: int) -> None:
    """All are alive at once, in no order."""
    loop = asyncio.get_running_loop()
    delay = random.Random(1).random
    timers = [loop.call_later(60 + delay(), nothing) for _ in range(count)]
    for timer in timers:
        timer.cancel()
    await asyncio.sleep(0)


async def timers_fired(count: int) -> None:
    """All are alive at once, in no order; none is due before the last has been made."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    delay, left = random.Random(1).random, count
    soonest = loop.time() + count * 3e-6

    def fire() -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set_result(None)

    for _ in range(count):
        loop.call_at(soonest + delay() / 10, fire)
    await done


async def timer_lateness(count: int) -> dict[str, float]:
    """One timer at a time on a loop that has nothing else to do."""
    loop = asyncio.get_running_loop()
    delay, late = random.Random(1).uniform, []
    for _ in range(count):
        done = loop.create_future()
        due = loop.time() + delay(0.0005, 0.0025)
        loop.call_at(due, lambda done=done: done.set_result(loop.time()))  # type: ignore[misc]
        late.append(1e6 * (await done - due))
    cuts = statistics.quantiles(late, n=100)
    return {"p50_us": cuts[49], "p99_us": cuts[98], "earliest_us": min(late)}


async def threadsafe_bulk(count: int) -> None:
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def post() -> None:
        for _ in range(count):
            loop.call_soon_threadsafe(nothing)
        loop.call_soon_threadsafe(done.set)

    await with_thread(post, done)


async def threadsafe_ping_pong(count: int) -> None:
    loop = asyncio.get_running_loop()
    done, turn = asyncio.Event(), threading.Semaphore(0)

    def post() -> None:
        for _ in range(count):
            loop.call_soon_threadsafe(turn.release)
            turn.acquire()
        loop.call_soon_threadsafe(done.set)

    await with_thread(post, done)


async def with_thread(body: Callable[[], None], done: asyncio.Event) -> None:
    thread = threading.Thread(target=body)
    thread.start()
    await done.wait()
    thread.join()


async def reader_ping_pong(count: int) -> None:
    """One byte goes to and fro between two sockets that the loop watches."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    left = count

    def bounce(sock: socket.socket) -> None:
        nonlocal left
        sock.send(sock.recv(1))
        left -= 1
        if not left:
            done.set_result(None)

    pair = socket.socketpair()
    for sock in pair:
        sock.setblocking(False)
        loop.add_reader(sock, bounce, sock)
    pair[0].send(b".")
    await done
    for sock in pair:
        loop.remove_reader(sock)
        sock.close()


async def run_in_executor(count: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(count):
        await loop.run_in_executor(None, nothing)


async def spawn_and_wait(count: int) -> None:
    for _ in range(count):
        process = await asyncio.create_subprocess_exec("/bin/true")
        await process.wait()


async def redis_pipeline(count: int, folder: str) -> None:
    from redis.asyncio import Redis

    async with Redis(unix_socket_path=f"{folder}/socket") as client:
        for _ in range(count // PIPELINE):
            async with client.pipeline(transaction=False) as pipeline:
                for _ in range(PIPELINE // 2):
                    pipeline.set("key", "value").get("key")
                replies = await pipeline.execute()
            assert replies == [True, b"value"] * (PIPELINE // 2)


async def postgres_queries(count: int, folder: str) -> None:
    import asyncpg

    async def ask(pool: Any) -> None:
        async with pool.acquire() as connection:
            for number in range(count // CLIENTS):
                assert await connection.fetchval("select $1::int + 1", number) == number + 1

    options = {"host": folder, "user": "bench", "database": "postgres"}
    async with asyncpg.create_pool(min_size=CLIENTS, max_size=CLIENTS, **options) as pool:
        await asyncio.gather(*(ask(pool) for _ in range(CLIENTS)))


@dataclass(frozen=True)
class Work:
    """A coroutine function of a number of operations; what it returns are further figures."""

    body: Callable[..., Any]
    count: int
    figures: tuple[str, ...] = ()
    service: str | None = None
    repeat: int = 3
    full: bool = False  # too long for a short run
    primed: bool = False  # much is allocated, so that priming might tell
    floor: bool = False  # is there a least in Python?

    def takes(self, loop: str) -> bool:
        return self.floor if loop == serve.FLOOR else self.primed or "+" not in loop


ROWS = {
    "sleep(0), 1 task": Work(sleep_zero, 100_000, floor=True),
    "sleep(0), 100 tasks": Work(switch_100, 100_000, floor=True),
    "call_soon chain": Work(call_soon_chain, 100_000, floor=True),
    "call_soon bulk": Work(call_soon_bulk, 200_000, floor=True),
    "create_task + gather": Work(create_and_gather, 30_000, floor=True),
    "call_later + cancel": Work(call_later_cancel, 60_000, floor=True),
    "call_later + cancel, 10^5 alive": Work(
        timers_cancelled, 100_000, repeat=2, primed=True, floor=True
    ),
    "call_later + cancel, 10^6 alive": Work(
        timers_cancelled, 1_000_000, repeat=1, full=True, floor=True
    ),
    "call_later + fire, 10^5 alive": Work(timers_fired, 100_000, repeat=1, primed=True, floor=True),
    "call_later + fire, 10^6 alive": Work(timers_fired, 1_000_000, repeat=1, full=True, floor=True),
    "timer lateness": Work(timer_lateness, 400, ("p50_us", "p99_us", "earliest_us"), repeat=1),
    "call_soon_threadsafe bulk": Work(threadsafe_bulk, 60_000, floor=True),
    "call_soon_threadsafe ping-pong": Work(threadsafe_ping_pong, 5_000, ("wall_ns",), floor=True),
    "add_reader ping-pong": Work(reader_ping_pong, 30_000, floor=True),
    "run_in_executor": Work(run_in_executor, 4_000, ("wall_ns",), floor=True),
    "subprocess spawn + wait": Work(spawn_and_wait, 100, ("wall_ns",), repeat=2),
    "redis pipeline": Work(redis_pipeline, 10_000, service="redis", floor=True),
    "postgres query": Work(postgres_queries, 5_000, service="postgres", floor=True),
    "import": Work(nothing, 1, ("wall_ns",)),
}


async def timed(work: Work, *where: str) -> dict[str, Any]:
    """Warm up, then repeat; the figures are means, and further ones of the last repetition."""
    await warm_up(work, *where)
    values, further = [], None
    wall = time.perf_counter_ns()
    for _ in range(work.repeat):
        cpu = time.process_time_ns()
        further = await work.body(work.count, *where)
        values.append((time.process_time_ns() - cpu) / work.count)
    wall = time.perf_counter_ns() - wall
    return {
        "cpu_ns": statistics.mean(values),
        "wall_ns": wall / work.count / work.repeat,
        "loops": work.count,
        "values": [value / 1e9 for value in values],
        **(further or {}),
    }


async def warm_up(work: Work, *where: str) -> None:
    """A little; where the interpreter compiles, until nothing has become faster for a while."""
    await work.body(max(work.count // 10, 1), *where)
    end, least, steady = time.monotonic() + PATIENCE, float("inf"), 0
    while sys.implementation.name == "pypy" and steady < 3 and time.monotonic() < end:
        cpu = time.process_time_ns()
        await work.body(work.count, *where)
        cpu = time.process_time_ns() - cpu
        steady = 0 if cpu < 0.97 * least else steady + 1
        least = min(least, cpu)


def main() -> None:
    row, name, *where = sys.argv[1:]
    loop, _, primed = name.partition("+")
    if primed:
        serve.prime_allocator()
    with asyncio.Runner(loop_factory=serve.loop_module(loop).new_event_loop) as runner:
        print(json.dumps(runner.run(timed(ROWS[row], *where))))


if __name__ == "__main__":
    main()
