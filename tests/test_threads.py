"""Threads: waking a loop from outside, executors, one loop in each thread."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import time
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest
from loopkit import Echo, Loop, LoopFactory, connected, read_all, until


def in_thread(work: object, *args: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=args)  # type: ignore[arg-type]
    thread.start()
    return thread


def test_a_thread_wakes_a_sleeping_loop(loop: Loop) -> None:
    def wake() -> None:
        time.sleep(0.005)
        loop.call_soon_threadsafe(loop.stop)

    thread = in_thread(wake)
    woken = loop.time()
    guard = loop.call_later(10, loop.stop)
    loop.run_forever()
    thread.join()
    guard.cancel()
    assert loop.time() < woken + 10


def test_callbacks_of_many_threads_all_arrive_in_each_ones_order(loop: Loop) -> None:
    got: list[tuple[int, int]] = []
    threads, calls = 8, 500

    def work(thread: int) -> None:
        for number in range(calls):
            loop.call_soon_threadsafe(got.append, (thread, number))

    workers = [in_thread(work, thread) for thread in range(threads)]
    loop.run_until_complete(until(lambda: len(got) == threads * calls))
    for worker in workers:
        worker.join()
    for thread in range(threads):
        assert [number for who, number in got if who == thread] == list(range(calls))


def test_a_threadsafe_callback_can_be_cancelled(loop: Loop) -> None:
    got: list[str] = []
    loop.call_soon_threadsafe(got.append, "cancelled").cancel()
    loop.call_soon_threadsafe(loop.stop)
    loop.run_forever()
    assert got == []


def test_a_callback_scheduled_before_the_run_is_not_lost(loop: Loop) -> None:
    thread = in_thread(loop.call_soon_threadsafe, loop.stop)
    thread.join()
    loop.run_forever()


def test_a_closed_loop_refuses_callbacks_from_threads(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_soon_threadsafe(print)


def test_closing_while_a_thread_calls_is_an_error_not_a_crash(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    errors: list[Exception] = []
    calling = threading.Event()

    def hammer() -> None:
        for _ in range(1_000_000):
            try:
                loop.call_soon_threadsafe(int)
            except RuntimeError as exc:
                errors.append(exc)
                return
            calling.set()

    thread = in_thread(hammer)
    calling.wait()
    loop.close()
    thread.join()
    assert "closed" in str(errors[0])


async def test_run_coroutine_threadsafe_answers_the_thread(loop: Loop) -> None:
    answers: list[object] = []

    def ask() -> None:
        answers.append(asyncio.run_coroutine_threadsafe(asyncio.sleep(0, "hello"), loop).result(5))

    await asyncio.to_thread(ask)
    assert answers == ["hello"]


handles_wait = pytest.mark.skipif(
    sys.version_info < (3, 14), reason="handles wait for other threads since 3.14"
)


@handles_wait
def test_cancel_from_another_thread_waits_for_the_running_callback(loop: Loop) -> None:
    started, order = threading.Event(), []

    def callback() -> None:
        started.set()
        time.sleep(0.005)
        order.append("ran")

    handle = loop.call_soon_threadsafe(callback)
    thread = in_thread(loop.run_until_complete, asyncio.sleep(0.001))
    started.wait()
    handle.cancel()
    order.append("cancelled")
    thread.join()
    assert order == ["ran", "cancelled"]


@handles_wait
def test_cancel_waits_for_a_callback_that_fails(loop: Loop) -> None:
    started, reported = threading.Event(), []
    loop.set_exception_handler(lambda loop, context: reported.append(context["handle"]))

    def callback() -> None:
        started.set()
        time.sleep(0.005)
        raise ZeroDivisionError

    handle = loop.call_soon_threadsafe(callback)
    thread = in_thread(loop.run_until_complete, asyncio.sleep(0.001))
    started.wait()
    assert not handle.cancelled()  # which waits as well
    assert reported == [handle]
    handle.cancel()
    assert handle.cancelled()
    thread.join()


@handles_wait
def test_a_callback_cancelled_by_another_thread_has_ended_or_never_begins(loop: Loop) -> None:
    begun: list[int] = []
    ended: list[int] = []
    wrong: list[int] = []

    def callback(number: int) -> None:
        begun.append(number)
        ended.append(number)

    def work() -> None:
        for number in range(4000):
            handle = loop.call_soon_threadsafe(callback, number)
            for _ in range(number % 40):  # until the callback runs, or has run
                pass
            handle.cancel()
            before = number in begun[-1:], number in ended[-1:]
            time.sleep(0)
            if before != (number in begun[-1:],) * 2:
                wrong.append(number)
        loop.call_soon_threadsafe(loop.stop)

    former = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        thread = in_thread(work)
        loop.run_forever()
        thread.join()
    finally:
        sys.setswitchinterval(former)
    assert wrong == []
    assert begun, "each was cancelled too soon for the test to tell anything"


def test_a_threadsafe_callback_may_cancel_itself(loop: Loop) -> None:
    seen: list[bool] = []

    def callback() -> None:
        handle.cancel()
        seen.append(handle.cancelled())
        loop.stop()

    handle = loop.call_soon_threadsafe(callback)
    loop.run_forever()
    assert seen == [True]


async def test_run_in_executor_gives_result_and_exception(loop: Loop) -> None:
    assert await loop.run_in_executor(None, pow, 2, 10) == 1024
    with pytest.raises(ZeroDivisionError):
        await loop.run_in_executor(None, divmod, 1, 0)
    with ThreadPoolExecutor(1, thread_name_prefix="own") as pool:
        name = await loop.run_in_executor(pool, lambda: threading.current_thread().name)
    assert name.startswith("own")


async def test_to_thread_carries_the_context(loop: Loop) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")
    variable.set(7)
    assert await asyncio.to_thread(variable.get) == 7


async def test_the_default_executor_can_be_set(loop: Loop) -> None:
    pool = ThreadPoolExecutor(1, thread_name_prefix="default")
    loop.set_default_executor(pool)
    name = await loop.run_in_executor(None, lambda: threading.current_thread().name)
    assert name.startswith("default")
    with pytest.raises(TypeError, match="ThreadPoolExecutor"):
        loop.set_default_executor(Executor())  # type: ignore[arg-type]


async def test_after_its_shutdown_the_default_executor_refuses_work(loop: Loop) -> None:
    await loop.run_in_executor(None, int)
    await loop.shutdown_default_executor()
    with pytest.raises(RuntimeError, match="shutdown"):
        loop.run_in_executor(None, int)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="3.12.1 waits for ever, 3.11 has none")
async def test_shutdown_of_the_executor_gives_up_after_its_timeout(loop: Loop) -> None:
    release = threading.Event()
    threads = threading.active_count()
    work = loop.run_in_executor(None, release.wait)
    try:
        with pytest.warns(RuntimeWarning, match="The executor did not finish"):
            await loop.shutdown_default_executor(0.005)  # type: ignore[call-arg,unused-ignore]
    finally:
        release.set()
    assert await work
    await until(lambda: threading.active_count() == threads)


def test_each_thread_runs_its_own_loop(loop_factory: LoopFactory) -> None:
    answers: list[bytes] = []

    async def main(name: bytes) -> None:
        async with connected(Echo()) as (_, _, far):
            far.send(name * 1000)
            answers.append(await read_all(far, len(name) * 1000))

    def work(name: bytes) -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main(name))

    workers = [in_thread(work, bytes([65 + number])) for number in range(4)]
    for worker in workers:
        worker.join()
    assert sorted(answers) == [name * 1000 for name in (b"A", b"B", b"C", b"D")]


def test_get_running_loop_is_per_thread(loop_factory: LoopFactory) -> None:
    seen: list[bool] = []

    def no_loop_here() -> None:
        seen.append(asyncio._get_running_loop() is None)

    async def main() -> None:
        await asyncio.to_thread(no_loop_here)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    assert seen == [True]
