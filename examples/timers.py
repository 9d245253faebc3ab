"""Timers: a repeating one, one that fires once, and one that is cancelled in time."""

from __future__ import annotations

import asyncio

import tloop_py


async def tick(period: float, count: int) -> None:
    """Ticks that do not drift: each deadline is computed from the first, not from now."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    for number in range(1, count + 1):
        await asyncio.sleep(start + number * period - loop.time())
        print(f"tick {number}")


async def main() -> None:
    loop = asyncio.get_running_loop()
    loop.call_later(0.001, print, "once")
    loop.call_later(3600, print, "never printed").cancel()
    await tick(0.02, 3)
    print("done")


if __name__ == "__main__":
    tloop_py.run(main())
