"""Other threads that call the loop, and the executor."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.soak.field import Field, Round, bounded


async def _double(value: int) -> int:
    await asyncio.sleep(0)
    return 2 * value


@asynccontextmanager
async def threads(field: Field) -> AsyncIterator[Round]:
    """Callbacks of each thread arrive all and in order, coroutines answer."""
    loop = asyncio.get_running_loop()

    async def one_round(rng: random.Random) -> int:
        count = rng.randrange(1, 100)
        got: list[list[int]] = [[] for _ in range(rng.randrange(1, 4))]
        answers: list[int] = []
        done = asyncio.Event()

        def work(mine: list[int]) -> None:
            for number in range(count):
                loop.call_soon_threadsafe(mine.append, number)
            future = asyncio.run_coroutine_threadsafe(_double(count), loop)
            answers.append(future.result(10))
            loop.call_soon_threadsafe(done.set)

        workers = [threading.Thread(target=work, args=(mine,)) for mine in got]
        for worker in workers:
            worker.start()
        try:
            while len(answers) < len(workers):
                await bounded(done.wait(), "an answer to a thread")
                done.clear()
        finally:
            while any(worker.is_alive() for worker in workers):  # noqa: ASYNC110 -- no event
                await asyncio.sleep(0.001)
            for worker in workers:
                worker.join()
        assert got == [list(range(count))] * len(workers), "callbacks missing or out of order"
        assert answers == [2 * count] * len(workers)
        return 0

    yield one_round


@asynccontextmanager
async def executor(field: Field) -> AsyncIterator[Round]:
    loop = asyncio.get_running_loop()

    async def one_round(rng: random.Random) -> int:
        data = field.patterns(rng)[0].take(rng.randrange(1 << 18))
        digest = await loop.run_in_executor(None, hashlib.sha256, data)
        assert digest.digest() == hashlib.sha256(data).digest()
        infos = await loop.getaddrinfo("localhost", 80)
        assert infos
        return len(data)

    yield one_round
