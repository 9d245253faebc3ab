"""tloop_py.run and asyncio.Runner: results, leftovers, Ctrl-C, and what asyncio.run refuses."""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from conftest import AsyncioLog
from loopkit import Loop, LoopFactory, is_tloop, new_tloop, turns, warnings_seen

import tloop_py

Run = Callable[..., Any]


@pytest.fixture
def run(loop_name: str) -> Run:
    if loop_name == "tloop":
        return tloop_py.run
    module: Any = importlib.import_module(loop_name)
    function: Run = module.run
    return function


@pytest.fixture
def runner(loop_factory: LoopFactory) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        yield runner


# -- run -------------------------------------------------------------------------------------------


def test_run_gives_the_result_on_a_loop_of_its_own(run: Run, loop_name: str) -> None:
    async def main() -> Loop:
        await asyncio.sleep(0)
        return asyncio.get_running_loop()

    first, second = run(main()), run(main())
    assert first is not second
    assert first.is_closed()
    assert is_tloop(first) == (loop_name == "tloop")


class Special(BaseException):
    """What nobody catches."""


@pytest.mark.parametrize("error", [LookupError, Special, SystemExit, asyncio.CancelledError])
def test_run_gives_the_exception_and_cleans_up(run: Run, error: type[BaseException]) -> None:
    loops = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        raise error("out")

    with pytest.raises(error):
        run(main())
    assert loops[0].is_closed()


@pytest.mark.parametrize("debug", [True, False])
def test_run_sets_debug_mode(run: Run, debug: bool) -> None:
    async def main() -> bool:
        return asyncio.get_running_loop().get_debug()

    assert run(main(), debug=debug) == debug


@pytest.mark.parametrize("wanted", [new_tloop, asyncio.SelectorEventLoop])
def test_run_takes_a_loop_factory(run: Run, wanted: Any) -> None:
    if run is asyncio.run and sys.version_info < (3, 12):
        pytest.skip("asyncio.run has no loop_factory before 3.12")

    async def main() -> Loop:
        return asyncio.get_running_loop()

    assert is_tloop(run(main(), loop_factory=wanted)) == (wanted is new_tloop)


def test_run_within_a_running_loop_is_refused(run: Run) -> None:
    async def inner() -> None:
        raise AssertionError("never runs")

    async def main() -> None:
        coro = inner()
        with pytest.raises(RuntimeError, match=r"run\(\) cannot be called from a running event"):
            run(coro)
        coro.close()

    run(main())


@pytest.mark.parametrize("thing", [None, 7, print, asyncio.sleep])
def test_run_wants_a_coroutine(run: Run, thing: Any) -> None:
    if sys.version_info >= (3, 14):
        error, text = TypeError, "a coroutine or an awaitable is required"
    else:
        error, text = ValueError, "a coroutine was expected"
    with pytest.raises(error, match=text):
        run(thing)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="any awaitable since 3.14")
def test_run_takes_an_awaitable(run: Run) -> None:
    class Answer:
        def __await__(self) -> Iterator[Any]:
            yield from asyncio.sleep(0).__await__()
            return 42

    assert run(Answer()) == 42


def test_run_works_outside_of_the_main_thread(run: Run) -> None:
    results = []
    thread = threading.Thread(target=lambda: results.append(run(asyncio.sleep(0, "there"))))
    thread.start()
    thread.join()
    assert results == ["there"]


def test_run_leaves_no_current_loop(run: Run) -> None:
    async def main() -> None:
        await asyncio.sleep(0)

    run(main())
    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.get_running_loop()


# -- what main() leaves ----------------------------------------------------------------------------


def test_tasks_left_are_cancelled_and_awaited(run: Run) -> None:
    order: list[str] = []

    async def left(name: str) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0)
            order.append(name)

    async def main() -> None:
        order.extend(task.get_name() for task in tasks)
        tasks.extend(asyncio.create_task(left(name)) for name in ("a", "b"))
        await turns()

    tasks: list[asyncio.Task[None]] = []
    run(main())
    assert sorted(order) == ["a", "b"]
    assert all(task.cancelled() for task in tasks)


def test_a_task_that_fails_in_its_end_is_reported(run: Run, asyncio_log: AsyncioLog) -> None:
    async def left() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            raise LookupError("in the end")

    async def main() -> None:
        asyncio.get_running_loop().keep = asyncio.create_task(left())  # type: ignore[attr-defined]
        await turns()

    run(main())
    record = asyncio_log.expect("unhandled exception during asyncio.run() shutdown")
    assert record.exc_info
    assert record.exc_info[0] is LookupError


def test_generators_and_executors_end_with_the_run(run: Run) -> None:
    order: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            order.append("generator")

    generator = numbers()

    async def main() -> None:
        await anext(generator)
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, lambda: (time.sleep(0.005), order.append("executor")))

    before = threading.active_count()
    run(main())
    assert sorted(order) == ["executor", "generator"]
    assert threading.active_count() == before


# -- Runner ----------------------------------------------------------------------------------------


def test_a_runner_keeps_loop_and_context_from_run_to_run(runner: asyncio.Runner) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    async def count() -> tuple[int, Loop]:
        variable.set(variable.get() + 1)
        return variable.get(), asyncio.get_running_loop()

    first, second = runner.run(count()), runner.run(count())
    assert [first[0], second[0]] == [1, 2]
    assert first[1] is second[1] is runner.get_loop()
    assert variable.get() == 0


def test_a_runner_runs_in_the_context_it_is_given(runner: asyncio.Runner) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    context = contextvars.copy_context()

    async def change() -> None:
        variable.set("changed")

    runner.run(change(), context=context)
    assert context[variable] == "changed"
    assert variable.get("unset") == "unset"


def test_a_closed_runner_refuses_to_run(loop_factory: LoopFactory) -> None:
    runner = asyncio.Runner(loop_factory=loop_factory)
    runner.run(asyncio.sleep(0))
    runner.close()
    runner.close()
    coro = asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="Runner is closed"):
        runner.run(coro)
    coro.close()


def test_a_runner_in_a_running_loop_refuses_to_run(runner: asyncio.Runner) -> None:
    async def main() -> None:
        coro = asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="cannot be called from a running event loop"):
            runner.run(coro)
        coro.close()

    runner.run(main())


# -- Ctrl-C ----------------------------------------------------------------------------------------


def press_ctrl_c() -> None:
    """The signal comes from outside, while the loop waits for events."""
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_cancels_the_main_task(run: Run) -> None:
    order: list[str] = []

    async def main() -> None:
        threading.Timer(0.005, press_ctrl_c).start()
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # there is time to clean up
            order.append("cancelled")
            raise

    with pytest.raises(KeyboardInterrupt):
        run(main())
    assert order == ["cancelled"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_again_interrupts_at_once(run: Run) -> None:
    order: list[str] = []

    async def main() -> None:
        signal.raise_signal(signal.SIGINT)
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            order.append("cancelled")
            signal.raise_signal(signal.SIGINT)
            order.append("not reached")

    with pytest.raises(KeyboardInterrupt):
        run(main())
    assert order == ["cancelled"]


def test_a_main_task_may_survive_ctrl_c(run: Run) -> None:
    async def main() -> str:
        signal.raise_signal(signal.SIGINT)
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            return "survived"
        return "not cancelled"

    assert run(main()) == "survived"


def test_ctrl_c_of_an_ended_main_task_interrupts(runner: asyncio.Runner) -> None:
    """While a callback of the last tick runs, nobody is left to be cancelled."""

    async def main() -> None:
        task = asyncio.current_task()
        assert task
        task.add_done_callback(lambda _: signal.raise_signal(signal.SIGINT))

    with pytest.raises(KeyboardInterrupt):
        runner.run(main())


def test_a_cancelled_main_task_is_no_ctrl_c(run: Run) -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task
        task.cancel("by itself")
        await asyncio.sleep(0)

    with pytest.raises(asyncio.CancelledError):
        run(main())


def test_a_handler_of_the_program_is_left_alone(run: Run) -> None:
    seen: list[int] = []

    def handler(number: int, frame: object) -> None:
        seen.append(number)

    async def main() -> object:
        press_ctrl_c()
        await turns()
        return signal.getsignal(signal.SIGINT)

    former = signal.signal(signal.SIGINT, handler)
    try:
        assert run(main()) is handler
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, former)
    assert seen == [signal.SIGINT]


def test_a_handler_set_by_main_stays(run: Run) -> None:
    def handler(number: int, frame: object) -> None:
        raise AssertionError("never called")

    async def main() -> None:
        signal.signal(signal.SIGINT, handler)

    try:
        run(main())
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_add_signal_handler_takes_ctrl_c_over(run: Run) -> None:
    seen: list[str] = []

    async def main() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
        threading.Timer(0.005, press_ctrl_c).start()
        await stop.wait()
        seen.append("stopped")

    run(main())
    assert seen == ["stopped"]


def test_only_the_main_thread_cares_for_ctrl_c(run: Run) -> None:
    handlers: list[object] = []

    async def main() -> None:
        handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=lambda: run(main()))
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]


# -- run_until_complete ----------------------------------------------------------------------------


async def test_a_nested_run_is_refused_before_the_coroutine_is_touched(loop: Loop) -> None:
    async def inner() -> str:
        return "still to be awaited"

    coro = inner()
    with pytest.raises(RuntimeError, match="This event loop is already running"):
        loop.run_until_complete(coro)
    assert len(asyncio.all_tasks()) == 1
    assert await coro == "still to be awaited"


@pytest.mark.loops("tloop")  # asyncio 3.13.0 forgets that it runs, then
async def test_a_nested_run_that_is_refused_disturbs_nothing(
    loop: Loop, loop_factory: LoopFactory
) -> None:
    wakeup_fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup_fd)
    other = loop_factory()
    for refusing, why in ((loop, "already running"), (other, "another loop is running")):
        with pytest.raises(RuntimeError, match=why):
            refusing.run_forever()
    other.close()
    assert asyncio.get_running_loop() is loop
    assert signal.set_wakeup_fd(wakeup_fd) == wakeup_fd
    await asyncio.sleep(0.001)


async def test_a_coroutine_of_a_refused_run_warns_as_on_asyncio(
    loop: Loop, loop_factory: LoopFactory
) -> None:
    async def inner() -> None:
        raise AssertionError("never runs")

    other = loop_factory()
    with warnings_seen() as seen:
        for refusing in (loop, other):
            with pytest.raises(RuntimeError):
                refusing.run_until_complete(inner())
    other.close()
    assert len([text for text in seen if "inner' was never awaited" in text]) == 2


def test_a_closed_loop_refuses_to_run(loop: Loop) -> None:
    loop.close()
    coro = asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.run_until_complete(coro)
    coro.close()


def test_run_until_complete_wants_something_to_await(loop: Loop) -> None:
    with pytest.raises(TypeError, match="awaitable is required"):
        loop.run_until_complete(7)  # type: ignore[arg-type]


def test_a_future_of_another_loop_is_refused(loop: Loop, loop_factory: LoopFactory) -> None:
    other = loop_factory()
    future = other.create_future()
    with pytest.raises(ValueError, match="belongs to a different loop"):
        loop.run_until_complete(future)
    other.close()
