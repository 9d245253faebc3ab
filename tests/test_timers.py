"""call_later and call_at: order, deadlines, cancelling, memory."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import socket
import time
import weakref
from typing import Any

import pytest
from loopkit import Loop, collect, turns

RESOLUTION = time.get_clock_info("monotonic").resolution


def run_for(loop: Loop, seconds: float) -> None:
    loop.call_later(seconds, loop.stop)
    loop.run_forever()


@pytest.mark.real
def test_time_is_the_monotonic_clock(loop: Loop) -> None:
    before = time.monotonic()
    now = loop.time()
    assert before <= now <= time.monotonic()


def test_timers_run_by_deadline_not_by_start(loop: Loop) -> None:
    order: list[int] = []
    for number in (5, 1, 4, 2, 3):
        loop.call_later(number / 1000, order.append, number)
    run_for(loop, 0.008)
    assert order == [1, 2, 3, 4, 5]


def test_timers_within_a_millisecond_run_by_deadline(loop: Loop) -> None:
    order: list[int] = []
    start = loop.time()
    for number in (5, 1, 9, 2, 7):
        loop.call_at(start + 0.002 + number / 10_000, order.append, number)
    run_for(loop, 0.004)
    assert order == [1, 2, 5, 7, 9]


@pytest.mark.loops("tloop")  # asyncio's heap is not stable
def test_equal_deadlines_run_in_start_order(loop: Loop) -> None:
    order: list[int] = []
    when = loop.time() + 0.001
    for number in range(500):
        loop.call_at(when, order.append, number)
    run_for(loop, 0.003)
    assert order == list(range(500))


def test_negative_delays_keep_their_order(loop: Loop) -> None:
    order: list[str] = []
    loop.call_later(-1, order.append, "b")
    loop.call_later(-5, order.append, "a")
    loop.call_later(0, order.append, "c")
    loop.stop()
    loop.run_forever()
    assert order == ["a", "b", "c"]


def test_call_at_in_the_past_runs_in_the_next_tick(loop: Loop) -> None:
    order: list[str] = []
    loop.call_at(0, order.append, "past")
    loop.call_at(-1e9, order.append, "long past")
    loop.stop()
    loop.run_forever()
    assert order == ["long past", "past"]


def test_many_that_are_due_at_once_run_in_order(loop: Loop) -> None:
    """Among others that are not, and some that are cancelled."""
    order: list[int] = []
    start = loop.time()
    numbers = random.Random(1).sample(range(5000), 5000)
    timers = [
        loop.call_at(start - 1 + number / 5000, order.append, number)
        if number < 4000
        else loop.call_at(start + 3600 + number, order.append, number)
        for number in numbers
    ]
    for number, timer in zip(numbers, timers, strict=True):
        if number % 10 == 0:
            timer.cancel()
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert order == [number for number in range(4000) if number % 10]
    order.clear()
    for number in (3, 1, 2):
        loop.call_later(number / 1000, order.append, number)
    run_for(loop, 0.25)
    assert order == [1, 2, 3]


@pytest.mark.loops("tloop")  # asyncio: fires at once up to 3.11, later breaks run_forever
def test_nan_neither_hangs_nor_breaks_the_loop(loop: Loop) -> None:
    order: list[str] = []
    with contextlib.suppress(ValueError):
        loop.call_later(math.nan, int)
    for number in range(3):
        loop.call_later(number / 1000, order.append, str(number))
    run_for(loop, 0.005)
    assert order == ["0", "1", "2"]


@pytest.mark.parametrize("delay", [math.inf, 1e18, 1e10, 2**31])
def test_far_deadlines_neither_fire_nor_overflow(loop: Loop, delay: float) -> None:
    order: list[float] = []
    handle = loop.call_later(delay, order.append, delay)
    run_for(loop, 0.002)
    handle.cancel()
    assert order == []


@pytest.mark.parametrize("delay", [0.0001, 0.0005, 0.001, 0.0033, 0.01])
def test_timers_are_never_early(loop: Loop, delay: float) -> None:
    late: list[float] = []

    def note(when: float) -> None:
        late.append(loop.time() - when)

    for _ in range(5):
        when = loop.time() + delay
        loop.call_at(when, note, when)
        run_for(loop, delay + 0.002)
    assert len(late) == 5
    assert min(late) >= -RESOLUTION


@pytest.mark.real
def test_when_tells_the_deadline(loop: Loop) -> None:
    handle = loop.call_at(123.25, print)
    assert handle.when() == 123.25
    before = loop.time()
    later = loop.call_later(100, print)
    assert before + 100 <= later.when() <= loop.time() + 100
    assert handle < later
    for timer in (handle, later):
        timer.cancel()


def test_a_cancelled_timer_does_not_fire(loop: Loop) -> None:
    order: list[str] = []
    handle = loop.call_later(0.001, order.append, "never")
    handle.cancel()
    handle.cancel()
    assert handle.cancelled()
    run_for(loop, 0.004)
    assert order == []


def test_a_timer_can_cancel_another_that_is_due(loop: Loop) -> None:
    order: list[str] = []
    when = loop.time()
    timers: list[asyncio.TimerHandle] = []
    loop.call_at(when - 2, lambda: timers[0].cancel())
    timers.append(loop.call_at(when - 1, order.append, "never"))
    run_for(loop, 0.001)
    assert order == []


@pytest.mark.real
def test_a_timer_restarted_with_zero_starves_neither_io_nor_callbacks(loop: Loop) -> None:
    near, far = socket.socketpair()

    def again() -> None:
        loop.call_later(0, again)

    with near, far:
        again()
        loop.call_later(0.002, far.send, b"x")
        loop.add_reader(near, loop.stop)
        loop.run_forever()
        loop.remove_reader(near)


def test_a_timer_that_a_timer_starts_waits_for_the_next_tick(loop: Loop) -> None:
    order: list[str] = []

    def first() -> None:
        loop.call_later(-1, order.append, "second")
        order.append("first")

    loop.call_later(0, first)
    loop.stop()
    loop.run_forever()
    assert order == ["first"]
    loop.stop()
    loop.run_forever()
    assert order == ["first", "second"]


class Payload:
    """Something that can be referred to weakly."""


def test_cancel_frees_what_the_callback_held(loop: Loop) -> None:
    payload = Payload()
    gone = weakref.ref(payload)
    handle = loop.call_later(1000, print, payload)
    handle.cancel()
    del payload
    collect()
    assert gone() is None


async def test_cancelled_timers_are_freed_before_they_are_due(loop: Loop) -> None:
    handles: list[weakref.ref[asyncio.TimerHandle]] = []
    for _ in range(5000):
        handle = loop.call_later(1000, print)
        handles.append(weakref.ref(handle))
        handle.cancel()
    del handle
    await turns()
    collect()
    assert sum(ref() is not None for ref in handles) < 200


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


@pytest.mark.slow
def test_a_million_cancelled_timers_do_not_pile_up(loop: Loop) -> None:
    loop.set_debug(False)  # a million source tracebacks take a minute

    def start_and_cancel() -> None:
        for _ in range(10_000):
            loop.call_later(1000, print).cancel()
        loop.stop()
        loop.run_forever()

    growth = []
    for _ in range(10):
        before = resident_bytes()
        for _ in range(10):
            start_and_cancel()
        collect()
        growth.append(resident_bytes() - before)
    # 100,000 timers that stay would add 10 MiB each time; PyPy's heap grows now and then.
    assert min(growth) < 4 << 20, growth


@pytest.mark.slow
def test_many_live_timers_fire_in_order(loop: Loop) -> None:
    fired: list[float] = []
    start = loop.time()
    whens = [start + (number * 7919 % 50_000) / 1e6 for number in range(50_000)]
    for when in whens:
        loop.call_at(when, fired.append, when)
    run_for(loop, 0.06)
    assert fired == sorted(whens)


async def test_sleeps_end_in_the_order_in_which_they_are_due(loop: Loop) -> None:
    ended: list[float] = []

    async def nap(seconds: float) -> None:
        due = loop.time() + seconds  # a busy machine may begin the next nap much later
        await asyncio.sleep(seconds)
        ended.append(due)

    await asyncio.gather(*(nap(length) for length in (0.006, 0.002, 0.004)))
    assert len(ended) == 3
    assert ended == sorted(ended)


async def test_timeout_and_wait_for_cut_a_wait_short(loop: Loop) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await loop.create_future()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(loop.create_future(), 0.001)


@pytest.mark.parametrize("method", ["call_later", "call_at"])
def test_none_is_no_time(loop: Loop, method: str) -> None:
    schedule: Any = getattr(loop, method)
    with pytest.raises(TypeError):
        schedule(None, print)


@pytest.mark.loops("tloop")  # asyncio's loop ends with the error when it comes to the timer
def test_what_is_no_number_is_refused_as_a_time(loop: Loop) -> None:
    with pytest.raises(TypeError, match="when must be a number of seconds, not 'soon'"):
        loop.call_at("soon", print)  # type: ignore[arg-type]
    run_for(loop, 0.001)


def test_call_later_asks_the_call_at_of_a_subclass(loop: Loop) -> None:
    asked: list[Any] = []

    class Watching:
        def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
            asked.append((callback, args))
            return super().call_at(when, callback, *args, context=context)  # type: ignore[misc]

    class Watched(Watching, type(loop)):  # type: ignore[misc]
        pass

    with contextlib.closing(Watched()) as watched:
        watched.call_later(0, watched.stop)
        watched.run_forever()
        assert asked == [(watched.stop, ())]


@pytest.mark.parametrize("count", [3, 300])
def test_a_timer_may_be_cancelled_in_its_own_tick_or_later(loop: Loop, count: int) -> None:
    """Before and after it has joined the others, few or many at a time."""
    fired: list[int] = []
    start = loop.time() + 0.2  # time to make them all, in debug mode, too

    def make(first: int) -> list[asyncio.TimerHandle]:
        numbers = range(first, first + count)
        return [loop.call_at(start + n / 1e6, fired.append, n) for n in reversed(numbers)]

    older = make(0)
    loop.call_soon(loop.stop)
    loop.run_forever()
    newer = make(count)
    for timer in (*older[::2], *newer[::2]):
        timer.cancel()
    run_for(loop, 0.25)
    assert fired == sorted(int(1e6 * (t.when() - start) + 0.5) for t in older[1::2] + newer[1::2])


@pytest.mark.loops("tloop")  # on asyncio call_at() itself is interrupted
def test_an_interrupt_among_new_timers_loses_none_and_repeats_none(loop: Loop) -> None:
    class Interrupting(float):
        left = 1

        def __lt__(self, other: float) -> bool:
            if self.left and type(self) is type(other):  # in the heap, which compares the new ones
                Interrupting.left -= 1
                raise KeyboardInterrupt
            return float(self) < other

    fired: list[int] = []
    start = loop.time() + 0.001
    for number in range(5):
        loop.call_at(Interrupting(start + number / 1e6), fired.append, number)
    with pytest.raises(KeyboardInterrupt):
        run_for(loop, 0.003)
    assert not fired
    loop.run_forever()  # until the stop() of then
    assert sorted(fired) == list(range(5))
