"""A program may replace the loop's clock, as test clocks do: timers follow it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from conftest import AsyncioLog
from loopkit import Loop, LoopFactory, turns


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def on_the_object(factory: LoopFactory, clock: Clock) -> Loop:
    loop = factory()
    loop.time = clock  # type: ignore[method-assign]
    return loop


def in_a_subclass(factory: LoopFactory, clock: Clock) -> Loop:
    kind = factory()
    kind.close()

    class Clocked(type(kind)):  # type: ignore[misc]
        def time(self) -> float:
            return clock()

    return Clocked()  # type: ignore[no-any-return]


@pytest.fixture(params=[on_the_object, in_a_subclass])
def loop(request: pytest.FixtureRequest, loop_factory: LoopFactory, clock: Clock) -> Iterator[Loop]:
    loop = request.param(loop_factory, clock)
    yield loop
    loop.close()


def ticks(loop: Loop, count: int = 3) -> None:
    for _ in range(count):
        loop.stop()
        loop.run_forever()


def test_timers_wait_for_the_clock_however_much_time_passes(loop: Loop, clock: Clock) -> None:
    order: list[str] = []
    timer = loop.call_later(0.001, order.append, "fired")
    assert timer.when() == 1000.001
    time.sleep(0.003)
    ticks(loop)
    assert order == []
    clock.advance(0.001)
    ticks(loop, 1)
    assert order == ["fired"]


def test_a_leap_fires_all_that_is_due_in_order(loop: Loop, clock: Clock) -> None:
    order: list[float] = []
    for delay in (3600, 60, 86400, 0, 7200, 1e6):
        loop.call_later(delay, order.append, delay)
    clock.advance(86400)
    ticks(loop, 1)
    assert order == [0, 60, 3600, 7200, 86400]


def test_a_callback_may_move_the_clock(loop: Loop, clock: Clock) -> None:
    order: list[str] = []
    loop.call_later(50, order.append, "later")
    loop.call_later(50, loop.stop)
    loop.call_soon(clock.advance, 50)
    loop.run_forever()
    assert order == ["later"]


def test_sleeps_and_timeouts_follow_the_clock(loop: Loop, clock: Clock) -> None:
    async def main() -> list[str]:
        order: list[str] = []

        async def nap() -> None:
            await asyncio.sleep(30)
            order.append("slept")

        async def give_up() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(20):
                    await loop.create_future()
            order.append("timed out")

        tasks = [loop.create_task(nap()), loop.create_task(give_up())]
        for _ in range(4):
            await turns(5)
            clock.advance(10)
        await asyncio.gather(*tasks)
        return order

    assert loop.run_until_complete(main()) == ["timed out", "slept"]


def test_a_clock_that_goes_back_delays_timers(loop: Loop, clock: Clock) -> None:
    order: list[str] = []
    loop.call_later(10, order.append, "fired")
    clock.advance(-10)
    clock.advance(15)
    ticks(loop)
    assert order == []
    clock.advance(5)
    ticks(loop, 1)
    assert order == ["fired"]


@pytest.mark.loops("tloop")  # asyncio never ends before 3.15
@pytest.mark.parametrize("now", [0.0, -1e9, 1e9, 1e17, 1e300])
def test_a_clock_may_show_any_number(loop: Loop, clock: Clock, now: float) -> None:
    """Adding the clock's resolution to a large one does not change it."""
    clock.now = now
    loop.call_later(0, loop.stop)
    loop.run_forever()


def test_the_clock_measures_slow_callbacks(
    loop: Loop, clock: Clock, asyncio_log: AsyncioLog
) -> None:
    loop.set_debug(True)
    loop.call_soon(clock.advance, 5)
    ticks(loop, 1)
    assert any("took 5.000 seconds" in text for text in asyncio_log.in_debug_mode)


def test_the_real_clock_can_be_put_back(
    loop_factory: LoopFactory, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = loop_factory()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "time", clock)
        assert loop.time() == 1000
    assert abs(loop.time() - time.monotonic()) < 1
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    loop.close()


def test_call_at_means_the_time_of_the_clock(loop: Loop, clock: Clock) -> None:
    order: list[str] = []
    loop.call_at(1005, order.append, "later")
    loop.call_at(1000, order.append, "now")
    loop.call_at(5, order.append, "long ago")
    ticks(loop, 1)
    assert order == ["long ago", "now"]
    clock.now = 1005
    ticks(loop, 1)
    assert order == ["long ago", "now", "later"]
