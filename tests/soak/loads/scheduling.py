"""Timers, tasks and signals."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.soak.field import Field, Round, bounded

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
RESOLUTION = time.get_clock_info("monotonic").resolution


def _maybe_cancel(handle: asyncio.TimerHandle, rng: random.Random) -> bool:
    if rng.random() < 0.5:
        handle.cancel()
    return handle.cancelled()


@asynccontextmanager
async def timers(field: Field) -> AsyncIterator[Round]:
    """Those that are not cancelled fire once, by deadline, never early."""
    loop = asyncio.get_running_loop()

    async def one_round(rng: random.Random) -> int:
        fired: list[tuple[float, float]] = []
        begin = loop.time()
        handles = []
        for _ in range(rng.randrange(1, 200)):
            when = begin + rng.randrange(-5, 50) / 1000
            handles.append(loop.call_at(when, lambda w=when: fired.append((w, loop.time()))))
        deadlines = sorted(handle.when() for handle in handles if not _maybe_cancel(handle, rng))
        try:
            await asyncio.sleep(0.06)
        finally:
            for handle in handles:
                handle.cancel()
        assert [when for when, _ in fired] == deadlines, "timers missing, twice or out of order"
        assert all(now >= when - RESOLUTION for when, now in fired), "a timer fired early"
        return 0

    yield one_round


@asynccontextmanager
async def signals(field: Field) -> AsyncIterator[Round]:
    """Each signal that is sent is seen; those of one number may be seen together."""
    loop = asyncio.get_running_loop()
    seen = {number: asyncio.Event() for number in SIGNALS}
    for number, event in seen.items():
        loop.add_signal_handler(number, event.set)

    async def one_round(rng: random.Random) -> int:
        for _ in range(20):
            number = rng.choice(SIGNALS)
            seen[number].clear()
            os.kill(os.getpid(), number)
            await bounded(seen[number].wait(), f"signal {number}")
        return 0

    try:
        yield one_round
    finally:
        for number in SIGNALS:
            assert loop.remove_signal_handler(number)
