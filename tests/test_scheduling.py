"""The order in which callbacks run, and what run, stop and cancel mean."""

from __future__ import annotations

import asyncio
import contextvars
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest
from loopkit import Loop, LoopFactory, turns

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def one_turn(loop: Loop) -> None:
    """Run what one tick runs, and no more."""
    loop.stop()
    loop.run_forever()


def test_callbacks_run_in_the_order_of_call_soon(loop: Loop) -> None:
    order: list[int] = []
    for number in range(1000):
        loop.call_soon(order.append, number)
    one_turn(loop)
    assert order == list(range(1000))


def test_a_callback_scheduled_by_a_callback_waits_for_the_next_tick(loop: Loop) -> None:
    order: list[str] = []

    def first() -> None:
        order.append("first")
        loop.call_soon(order.append, "third")

    loop.call_soon(first)
    loop.call_soon(order.append, "second")
    one_turn(loop)
    assert order == ["first", "second"]
    one_turn(loop)
    assert order == ["first", "second", "third"]


@pytest.mark.real
def test_ready_callbacks_run_before_io_and_io_before_timers(loop: Loop) -> None:
    order: list[str] = []
    near, far = socket.socketpair()
    with near, far:
        far.send(b"x")
        loop.call_later(0, order.append, "timer")
        loop.add_reader(near, order.append, "io")
        loop.call_soon(order.append, "soon")
        one_turn(loop)
        loop.remove_reader(near)
    assert order == ["soon", "io", "timer"]


@pytest.mark.real
def test_what_io_and_timers_schedule_waits_for_the_next_tick(loop: Loop) -> None:
    order: list[str] = []
    near, far = socket.socketpair()

    def log(name: str) -> None:
        order.append(name)
        loop.call_soon(order.append, f"after {name}")

    def readable() -> None:
        near.recv(1)
        log("io")

    with near, far:
        far.send(b"x")
        loop.add_reader(near, readable)
        loop.call_later(0, log, "timer")
        one_turn(loop)
        assert order == ["io", "timer"]
        one_turn(loop)
        loop.remove_reader(near)
    assert order == ["io", "timer", "after io", "after timer"]


def test_call_later_zero_runs_after_call_soon_but_in_the_same_tick(loop: Loop) -> None:
    order: list[str] = []
    loop.call_later(0, order.append, "later")
    loop.call_soon(order.append, "soon")
    one_turn(loop)
    assert order == ["soon", "later"]


@pytest.mark.real
def test_callbacks_that_reschedule_themselves_do_not_starve_io(loop: Loop) -> None:
    near, far = socket.socketpair()

    def spin() -> None:
        loop.call_soon(spin)

    with near, far:
        far.send(b"x")
        loop.add_reader(near, loop.stop)
        loop.call_soon(spin)
        loop.run_forever()
        loop.remove_reader(near)


def test_a_cancelled_callback_does_not_run(loop: Loop) -> None:
    order: list[str] = []
    handle = loop.call_soon(order.append, "cancelled")
    loop.call_soon(order.append, "kept")
    assert not handle.cancelled()
    handle.cancel()
    handle.cancel()
    assert handle.cancelled()
    one_turn(loop)
    assert order == ["kept"]


def test_a_callback_can_cancel_the_next_of_the_same_tick(loop: Loop) -> None:
    order: list[str] = []
    handles: list[asyncio.Handle] = []
    loop.call_soon(lambda: handles[0].cancel())
    handles.append(loop.call_soon(order.append, "never"))
    one_turn(loop)
    assert order == []


def test_cancel_after_the_callback_ran_is_harmless(loop: Loop) -> None:
    order: list[str] = []
    handle = loop.call_soon(order.append, "ran")
    one_turn(loop)
    handle.cancel()
    assert order == ["ran"]


def test_handles_are_asyncio_handles(loop: Loop) -> None:
    soon = loop.call_soon(print)
    later = loop.call_later(1000, print)
    assert isinstance(soon, asyncio.Handle)
    assert isinstance(later, asyncio.TimerHandle)
    for handle in (soon, later):
        handle.cancel()


def test_repr_of_a_handle_names_its_callback_and_state(loop: Loop) -> None:
    handle = loop.call_soon(one_turn, loop)
    assert "one_turn" in repr(handle)
    assert f"{__file__}:" in repr(handle)
    handle.cancel()
    assert "cancelled" in repr(handle)
    timer = loop.call_at(12345.5, print)
    assert "when=12345.5" in repr(timer)
    timer.cancel()


Schedule = Callable[..., asyncio.Handle]
SCHEDULERS: list[Any] = [
    pytest.param(lambda loop, *a, **k: loop.call_soon(*a, **k), id="call_soon"),
    pytest.param(lambda loop, *a, **k: loop.call_soon_threadsafe(*a, **k), id="threadsafe"),
    pytest.param(lambda loop, *a, **k: loop.call_later(0, *a, **k), id="call_later"),
    pytest.param(lambda loop, *a, **k: loop.call_at(loop.time(), *a, **k), id="call_at"),
]


@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_a_callback_runs_in_a_copy_of_the_current_context(loop: Loop, schedule: Schedule) -> None:
    seen: list[str] = []
    outer = contextvars.copy_context()
    outer.run(variable.set, "outer")
    outer.run(schedule, loop, lambda: seen.append(variable.get()))
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    assert seen == ["outer"]


@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_a_callback_runs_in_the_context_it_is_given(loop: Loop, schedule: Schedule) -> None:
    context = contextvars.copy_context()
    handle = schedule(loop, variable.set, "inner", context=context)
    if sys.version_info >= (3, 12):
        assert handle.get_context() is context
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    assert context[variable] == "inner"
    assert variable.get() == "unset"


async def test_a_task_runs_in_the_context_it_is_given(loop: Loop) -> None:
    context = contextvars.copy_context()

    async def change() -> None:
        variable.set("task")

    await loop.create_task(change(), name="changer", context=context)
    assert context[variable] == "task"
    assert variable.get() == "unset"


async def test_a_future_calls_back_in_the_context_of_the_registration(loop: Loop) -> None:
    future = loop.create_future()
    context = contextvars.copy_context()
    future.add_done_callback(lambda _: variable.set("future"), context=context)
    future.set_result(None)
    await turns()
    assert context[variable] == "future"


def test_stop_before_run_forever_runs_exactly_one_tick(loop: Loop) -> None:
    order: list[str] = []

    def first() -> None:
        order.append("first")
        loop.call_soon(order.append, "next tick")

    loop.call_soon(first)
    loop.stop()
    loop.run_forever()
    assert order == ["first"]
    assert not loop.is_running()


def test_stop_lets_the_rest_of_the_tick_run(loop: Loop) -> None:
    order: list[str] = []

    def stop() -> None:
        loop.stop()
        loop.call_soon(order.append, "kept for the next run")

    loop.call_soon(stop)
    loop.call_soon(order.append, "same tick")
    loop.run_forever()
    assert order == ["same tick"]
    one_turn(loop)
    assert order == ["same tick", "kept for the next run"]


def test_run_until_complete_gives_the_result_or_the_exception(loop: Loop) -> None:
    async def answer() -> int:
        return 42

    async def fail() -> None:
        raise LookupError("lost")

    assert loop.run_until_complete(answer()) == 42
    with pytest.raises(LookupError, match="lost"):
        loop.run_until_complete(fail())
    future = loop.create_future()
    loop.call_soon(future.set_result, "done")
    assert loop.run_until_complete(future) == "done"


def test_run_until_complete_says_when_the_loop_was_stopped_first(loop: Loop) -> None:
    loop.call_soon(loop.stop)
    with pytest.raises(RuntimeError, match="stopped before Future completed"):
        loop.run_until_complete(loop.create_future())


async def test_a_running_loop_cannot_be_run(loop: Loop) -> None:
    assert loop.is_running()
    with pytest.raises(RuntimeError, match="already running"):
        loop.run_until_complete(loop.create_future())


async def test_no_other_loop_runs_inside_a_running_loop(
    loop: Loop, loop_factory: LoopFactory
) -> None:
    other = loop_factory()
    with pytest.raises(RuntimeError, match="another loop is running"):
        other.run_until_complete(other.create_future())
    other.close()
    assert asyncio.get_running_loop() is loop


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupts_in_callbacks_leave_the_loop_usable(
    loop: Loop, error: type[BaseException]
) -> None:
    order: list[str] = []

    def interrupt() -> None:
        raise error

    loop.call_soon(interrupt)
    loop.call_soon(order.append, "after")
    with pytest.raises(error):
        loop.run_forever()
    assert not loop.is_running()
    assert asyncio._get_running_loop() is None
    one_turn(loop)
    assert order == ["after"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupts_in_tasks_and_timers_propagate(loop: Loop, error: type[BaseException]) -> None:
    async def interrupted() -> None:
        raise error

    def interrupt() -> None:
        raise error

    with pytest.raises(error):
        loop.run_until_complete(interrupted())
    loop.call_later(0, interrupt)
    with pytest.raises(error):
        loop.run_forever()


@pytest.mark.real
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupts_in_io_callbacks_propagate(loop: Loop, error: type[BaseException]) -> None:
    def interrupt() -> None:
        raise error

    near, far = socket.socketpair()
    with near, far:
        loop.add_writer(near, interrupt)
        with pytest.raises(error):
            loop.run_forever()
        assert loop.remove_writer(near)


async def test_futures_and_tasks_are_those_of_asyncio(loop: Loop) -> None:
    future = loop.create_future()
    assert type(future) is asyncio.Future
    assert future.get_loop() is loop
    future.cancel()
    task = loop.create_task(asyncio.sleep(0, "slept"), name="sleeper")
    assert type(task) is asyncio.Task
    assert task.get_name() == "sleeper"
    assert task in asyncio.all_tasks()
    assert await task == "slept"


async def test_the_task_factory_makes_the_tasks(loop: Loop) -> None:
    made: list[Any] = []

    def factory(loop: Loop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
        made.append(coro)
        return asyncio.Task(coro, loop=loop, **kwargs)

    assert loop.get_task_factory() is None
    loop.set_task_factory(factory)
    assert loop.get_task_factory() is factory
    coro = asyncio.sleep(0, "made")
    assert await loop.create_task(coro) == "made"
    assert made == [coro]
    with pytest.raises(TypeError):
        loop.set_task_factory(1)  # type: ignore[arg-type]
    loop.set_task_factory(None)


async def test_tasks_take_turns(loop: Loop) -> None:
    order: list[int] = []

    async def work(number: int) -> None:
        for _ in range(3):
            order.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(work(number) for number in range(4)))
    assert order == [0, 1, 2, 3] * 3


async def test_a_cancelled_task_ends_with_cancelled_error(loop: Loop) -> None:
    task = loop.create_task(asyncio.sleep(1000))
    await asyncio.sleep(0)
    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError, match="enough"):
        await task
    assert task.cancelled()


async def test_methods_can_be_replaced_on_the_loop_object(loop: Loop) -> None:
    """Test suites mock loop methods; asyncio's loops allow it."""
    called: list[object] = []
    loop.call_soon = lambda *args, **_: called.append(args)  # type: ignore[assignment,method-assign]
    loop.call_soon(print, "x")
    del loop.call_soon
    assert called == [(print, "x")]
