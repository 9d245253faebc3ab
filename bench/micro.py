"""Time scheduling alone: ``python bench/micro.py``. Each sample is a fresh process, interleaved."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
import time
from typing import TYPE_CHECKING

import harness
import servers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LOOPS = "tloop,uvloop,asyncio"
BASELINE = "uvloop"
BATCH = 1000  # callbacks or timers alive at once in the bulk rows


def nothing() -> None:
    pass


async def sleep_zero(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def switch_1(count: int) -> None:
    await sleep_zero(count)


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


async def call_later_cancel(count: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(count // BATCH):
        timers = [loop.call_later(60, nothing) for _ in range(BATCH)]
        for timer in timers:
            timer.cancel()
        await asyncio.sleep(0)


async def call_soon_threadsafe(count: int) -> None:
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def post() -> None:
        for _ in range(count):
            loop.call_soon_threadsafe(nothing)
        loop.call_soon_threadsafe(done.set)

    thread = threading.Thread(target=post)
    thread.start()
    await done.wait()
    thread.join()


ROWS: dict[str, tuple[Callable[[int], Awaitable[None]], int]] = {
    "sleep(0), 1 task": (switch_1, 400_000),
    "sleep(0), 100 tasks": (switch_100, 400_000),
    "call_soon chain": (call_soon_chain, 400_000),
    "call_soon bulk": (call_soon_bulk, 600_000),
    "call_later + cancel": (call_later_cancel, 200_000),
    "call_soon_threadsafe": (call_soon_threadsafe, 200_000),
}


async def timed(row: str) -> dict[str, float]:
    """Run one row once for warmth and once for the clock; give nanoseconds per operation."""
    body, count = ROWS[row]
    await body(count // 10)
    wall, cpu = time.perf_counter_ns(), time.process_time_ns()
    await body(count)
    cpu, wall = time.process_time_ns() - cpu, time.perf_counter_ns() - wall
    return {"cpu_ns": cpu / count, "wall_ns": wall / count}


def child(row: str, loop: str) -> None:
    factory = servers.loop_module(loop).new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        print(json.dumps(runner.run(timed(row))))


def sample(python: str, row: str, loop: str) -> dict[str, float]:
    argv = [python, __file__, "--child", row, "--loops", loop]
    return harness.report_of(argv, harness.SERVER_CORE, f"{row}, {loop}", timeout=120)


def printable(results: dict[str, dict[str, list[dict[str, float]]]], loops: list[str]) -> str:
    """One line per row: CPU nanoseconds per operation, and ratios with their spread."""
    ratios = [name for name in loops if name != BASELINE] if BASELINE in loops else []
    lines = [["CPU ns/operation", *loops, *(f"{name} x {BASELINE}" for name in ratios)]]
    for row, by_loop in results.items():
        costs = {name: [s["cpu_ns"] for s in runs] for name, runs in by_loop.items()}
        lines.append([row, *(f"{harness.spread(costs[name])['median']:.0f}" for name in loops)])
        for name in ratios:
            ratio = harness.paired_ratio(costs[name], costs[BASELINE])
            lines[-1].append("{median:.2f} ({min:.2f}-{max:.2f})".format(**ratio))
    return harness.table(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loops", default=LOOPS, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", help="only rows whose name contains this")
    parser.add_argument("--python", default=sys.executable, help="interpreter to measure on")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.loops)
        return
    contenders, versions = harness.available(args.loops.split(","), args.python)
    loops = list(contenders)
    rows = [row for row in ROWS if (args.rows or "") in row]
    results: dict[str, dict[str, list[dict[str, float]]]] = {
        row: {name: [] for name in loops} for row in rows
    }
    for number in range(args.rounds):
        for row in rows:
            for name in loops[number % len(loops) :] + loops[: number % len(loops)]:
                harness.progress(f"round {number + 1}: {row}, {name}")
                results[row][name].append(sample(args.python, row, name))
    harness.progress("")
    print(printable(results, loops))
    harness.print_absent(versions)
    harness.save("micro", {"versions": versions, "rows": results})


if __name__ == "__main__":
    try:
        main()
    except harness.BenchError as error:
        sys.exit(f"micro: {error}")
