"""Runs a soak: workers, windows, cancellations, measurements."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.loopkit import Loop, LoopFactory, live_handles
from tests.soak.accounting import (
    Census,
    Tracer,
    memory_complaints,
    nothing_said,
    resident,
    settle_memory,
)
from tests.soak.field import Field, Load, Round

PYPY = sys.implementation.name == "pypy"
WORKERS = 24
CANCELLED = 0.2  # of all rounds
LONGEST_LIFE = 0.03  # seconds after which a round is cancelled, at most
ROUND_LIMIT = 40.0  # seconds; longer than anything that a round waits for
INTERLUDE_EVERY = 5  # windows
ENOUGH_WINDOWS = 30
SETTLE_LIMIT = 10.0  # seconds after which what was closed must have gone
# Bytes per window. PyPy compiles and grows its heap for minutes.
RESIDENT_LIMIT = (512 if PYPY else 64) << 10
TRACED_LIMIT = 8 << 10


@dataclass
class Plan:
    """How long, in which windows. The first windows warm up; the last ones are traced. Memory is
    judged only if there are enough of them."""

    seconds: float = 300.0
    windows: int = 30

    @property
    def judges_memory(self) -> bool:
        return self.windows >= ENOUGH_WINDOWS

    @property
    def warm(self) -> int:
        return self.windows // 4

    @property
    def traced(self) -> int:
        """The window from which on tracemalloc runs; it slows the load, and takes memory."""
        return self.windows - self.windows // 3


@dataclass
class Measured:
    """Bytes at the end of each window."""

    resident: list[float] = dataclasses.field(default_factory=list)
    traced: list[float] = dataclasses.field(default_factory=list)


def soak(
    factory: LoopFactory,
    loads: Mapping[str, Load],
    seed: int,
    plan: Plan,
    interlude: Callable[[Field], Awaitable[None]] | None = None,
) -> tuple[Field, Measured]:
    """Run it; the field tells what was done and, if anything was wrong, the problems.

    interlude: what concerns the whole process; run now and then while no round is running.
    """
    before = Census.take()
    with tempfile.TemporaryDirectory(prefix="tloop-soak-") as folder:
        field = Field(factory, seed, Path(folder))
        run = _Run(field, loads, plan, interlude)
        with nothing_said(field):
            try:
                with asyncio.Runner(loop_factory=factory) as runner:
                    runner.get_loop().set_exception_handler(field.exception_handler)
                    runner.run(run.main())
            except Exception as exc:
                field.failure("the soak itself", exc)
        for complaint in _left_behind(before):
            field.problem(complaint)
    run.judge_memory()
    return field, run.measured


def _left_behind(before: Census) -> list[str]:
    """Of the whole soak. The kernel may list a thread for a moment after Python has joined it."""
    limit = time.monotonic() + SETTLE_LIMIT
    settle_memory()
    while (left := Census.take().complaints(before)) and time.monotonic() < limit:
        time.sleep(0.01)
    return left


class _Run:
    def __init__(
        self,
        field: Field,
        loads: Mapping[str, Load],
        plan: Plan,
        interlude: Callable[[Field], Awaitable[None]] | None,
    ) -> None:
        self._field, self._loads, self._plan, self._interlude = field, loads, plan, interlude
        rng = random.Random(field.seed)
        self._workers = [random.Random(rng.random()) for _ in range(WORKERS)]
        self._tracer = Tracer()
        self.measured = Measured()

    async def main(self) -> None:
        before = _State.take(asyncio.get_running_loop())
        async with AsyncExitStack() as stack:
            rounds = {
                name: await stack.enter_async_context(load(self._field))
                for name, load in self._loads.items()
            }
            for number in range(self._plan.windows):
                await self._window(number, rounds)
                if self._field.problems:
                    return
        await self._settle(before, "at the end")

    async def _window(self, number: int, rounds: Mapping[str, Round]) -> None:
        before = _State.take(asyncio.get_running_loop())
        end = time.monotonic() + self._plan.seconds / self._plan.windows
        await asyncio.gather(*(self._work(end, rng, rounds) for rng in self._workers))
        if self._interlude is not None and number % INTERLUDE_EVERY == 0:
            await self._interlude(self._field)
        if not self._field.problems:
            await self._settle(before, f"after window {number}")
            self._measure(number)

    # -- rounds ------------------------------------------------------------------------------------

    async def _work(self, end: float, rng: random.Random, rounds: Mapping[str, Round]) -> None:
        names = list(rounds)
        while time.monotonic() < end and not self._field.problems:
            name, seed = rng.choice(names), rng.getrandbits(32)
            life = rng.random() * LONGEST_LIFE if rng.random() < CANCELLED else None
            where = f"{name}, round {seed}, {'not ' if life is None else ''}cancelled"
            await self._one(name, where, rounds[name](random.Random(seed)), life)

    async def _one(self, name: str, where: str, work: Awaitable[int], life: float | None) -> None:
        task = asyncio.ensure_future(work)
        if life is not None:
            await asyncio.wait([task], timeout=life)
            task.cancel()
        done, _ = await asyncio.wait([task], timeout=ROUND_LIMIT)
        if not done:
            self._field.problem(f"{where}: hangs\n{_stack(task)}")
            task.cancel()
        elif task.cancelled():
            self._field.cancelled[name] += 1
            if life is None:
                self._field.problem(f"{where}: ended as cancelled")
        elif exc := task.exception():
            self._field.failure(where, exc)
        else:
            self._field.rounds[name] += 1
            self._field.verified[name] += task.result()

    # -- what is left ------------------------------------------------------------------------------

    async def _settle(self, before: _State, when: str) -> None:
        """Wait until what was closed is gone; what remains is a problem."""
        loop = asyncio.get_running_loop()
        limit = time.monotonic() + SETTLE_LIMIT
        while (left := _State.take(loop).complaints(before)) and time.monotonic() < limit:
            settle_memory()  # which frees what only garbage refers to
            await asyncio.sleep(0.01)
        for text in left:
            self._field.problem(f"{when}: {text}")

    def _measure(self, number: int) -> None:
        settle_memory()
        if number < self._plan.warm:
            return
        if not self._tracer.available or number < self._plan.traced:
            self.measured.resident.append(resident())
        elif number == self._plan.traced:
            self._tracer.start()
        else:
            self.measured.traced.append(self._tracer.take())

    def judge_memory(self) -> None:
        """Of a run without other problems: those end it early, and hold on to what they tell of."""
        if self._plan.judges_memory and not self._field.problems:
            resident, traced = self.measured.resident, self.measured.traced
            complaints = memory_complaints("resident memory", resident, RESIDENT_LIMIT)
            if self._tracer.available:
                where = self._tracer.differences()
                complaints += memory_complaints("traced memory", traced, TRACED_LIMIT, where)
            for text in complaints:
                self._field.problem(text)
        self._tracer.stop()


class _State(NamedTuple):
    """What a running loop and its process have."""

    tasks: frozenset[asyncio.Task[object]]
    handles: int
    census: Census

    @staticmethod
    def take(loop: Loop) -> _State:
        census = Census.take()
        executor = {thread for thread in census.threads if thread.name.startswith("asyncio_")}
        # The default executor's threads stay until it is shut down. So does one ring: the loop's
        # own, made for the first writes that leave together.
        rings = [fd for fd, target in census.fds.items() if "[io_uring]" in target]
        fds = {fd: target for fd, target in census.fds.items() if fd not in rings[:1]}
        census = census._replace(fds=fds, threads=census.threads - executor, kernel_threads=0)
        return _State(frozenset(asyncio.all_tasks()), live_handles(loop), census)

    def complaints(self, before: _State) -> list[str]:
        found = [f"task left: {task}" for task in self.tasks - before.tasks]
        if self.handles > before.handles:
            found.append(f"{self.handles - before.handles} handles of the C core left alive")
        return found + self.census.complaints(before.census)


def _stack(task: asyncio.Task[object]) -> str:
    """Where it waits, from the outermost coroutine to the innermost."""
    lines, waiting = [], task.get_coro()
    while frame := getattr(waiting, "cr_frame", None):
        lines.append(f"  {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}")
        waiting = waiting.cr_await  # type: ignore[union-attr]
    return "\n".join([*lines, f"  for {waiting!r}"])
