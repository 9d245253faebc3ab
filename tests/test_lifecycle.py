"""From the making of a loop to its end: closing, restarting, collecting, several loops."""

from __future__ import annotations

import asyncio
import socket
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from loopkit import (
    Loop,
    LoopFactory,
    Recorder,
    collect,
    connected,
    run_python,
    tcp_sockets,
    turns,
    warnings_seen,
)


def test_state_is_told_by_is_running_and_is_closed(loop: Loop) -> None:
    seen: list[bool] = []
    assert not loop.is_running()
    assert not loop.is_closed()
    loop.call_soon(lambda: seen.append(loop.is_running()))
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert seen == [True]
    loop.close()
    assert loop.is_closed()
    assert not loop.is_running()


def test_a_loop_runs_again_after_it_was_stopped(loop: Loop) -> None:
    for _ in range(3):
        loop.call_soon(loop.stop)
        loop.run_forever()
    assert loop.run_until_complete(asyncio.sleep(0, "again")) == "again"


def test_close_twice_is_harmless(loop: Loop) -> None:
    loop.close()
    loop.close()


def test_a_loop_that_never_ran_can_be_closed(loop_factory: LoopFactory) -> None:
    loop_factory().close()


async def test_a_running_loop_cannot_be_closed(loop: Loop) -> None:
    with pytest.raises(RuntimeError, match="running"):
        loop.close()
    assert not loop.is_closed()


USES: dict[str, Callable[[Loop], object]] = {
    "call_soon": lambda loop: loop.call_soon(print),
    "call_soon_threadsafe": lambda loop: loop.call_soon_threadsafe(print),
    "call_later": lambda loop: loop.call_later(1, print),
    "call_at": lambda loop: loop.call_at(1, print),
    "run_forever": lambda loop: loop.run_forever(),
    "run_until_complete": lambda loop: loop.run_until_complete(asyncio.Future(loop=loop)),
    "run_in_executor": lambda loop: loop.run_in_executor(None, print),
    "add_reader": lambda loop: loop.add_reader(0, print),
    "add_writer": lambda loop: loop.add_writer(0, print),
}


@pytest.mark.parametrize("use", USES)
def test_a_closed_loop_refuses_work(loop: Loop, use: str) -> None:
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        USES[use](loop)


def test_a_closed_loop_still_lets_watchers_be_removed(loop: Loop) -> None:
    near, far = socket.socketpair()
    with near, far:
        loop.add_reader(near, print)
        loop.close()
        for remove in (loop.remove_reader, loop.remove_writer):
            assert not remove(near)


def test_close_drops_callbacks_and_timers(loop: Loop) -> None:
    class Payload:
        pass

    payload = Payload()
    gone = weakref.ref(payload)
    loop.call_soon(print, payload)
    timer = loop.call_later(1000, print, payload)
    del payload
    loop.close()
    timer.cancel()
    collect()
    assert gone() is None


def test_a_callback_cannot_close_the_running_loop(loop: Loop) -> None:
    contexts: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: contexts.append(context))
    loop.call_soon(loop.close)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert isinstance(contexts[0]["exception"], RuntimeError)
    assert not loop.is_closed()


def test_close_with_open_transports_leaves_no_fd(loop_factory: LoopFactory) -> None:
    """B4: what a closed loop leaves behind is closed when it is collected, with a warning."""
    loop = loop_factory()
    near, far = tcp_sockets()
    with far:
        loop.run_until_complete(loop.create_connection(Recorder, sock=near))
        del near
        with warnings_seen() as seen:
            loop.close()
        assert any("unclosed transport" in text for text in seen)
        far.setblocking(True)
        assert far.recv(1) == b""


def test_an_unclosed_loop_warns_when_it_is_collected(loop_factory: LoopFactory) -> None:
    with warnings_seen() as seen:
        loop = loop_factory()
        del loop
    assert any("unclosed event loop" in text for text in seen)


def test_a_closed_loop_is_collected(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    loop.run_until_complete(asyncio.sleep(0))
    gone = weakref.ref(loop)
    loop.close()
    del loop
    collect()
    assert gone() is None


def test_two_loops_take_turns_in_one_thread(loop_factory: LoopFactory) -> None:
    first, second = loop_factory(), loop_factory()
    order: list[str] = []
    for name, loop in (("first", first), ("second", second)) * 3:
        loop.call_soon(order.append, name)
        loop.run_until_complete(asyncio.sleep(0.001))
    for loop in (first, second):
        loop.close()
    assert order == ["first", "second"] * 3


def test_many_loops_one_after_the_other_leak_nothing(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with connected() as (transport, _, far):
            far.send(b"x")
            transport.write(b"y")
            await turns()

    for _ in range(100):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())


def test_a_loop_made_here_runs_in_another_thread(loop: Loop) -> None:
    results: list[str] = []

    def work() -> None:
        results.append(loop.run_until_complete(asyncio.sleep(0.001, "there")))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == ["there"]
    assert loop.run_until_complete(asyncio.sleep(0, "here")) == "here"


def test_the_runner_closes_the_loop_it_made(loop_factory: LoopFactory) -> None:
    async def main() -> str:
        return "ran"

    runner = asyncio.Runner(loop_factory=loop_factory)
    assert runner.run(main()) == "ran"
    loop = runner.get_loop()
    runner.close()
    assert loop.is_closed()


def test_the_runner_cancels_the_tasks_left(loop_factory: LoopFactory) -> None:
    order: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            order.append("cancelled")

    async def main() -> None:
        order.append(asyncio.get_running_loop().create_task(forever()).get_name())
        await turns()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    assert order[1:] == ["cancelled"]


def test_a_loop_left_open_at_exit_does_not_crash_the_interpreter(loop_name: str) -> None:
    run_python(
        "import sys, asyncio, loopkit\n"
        "loop = loopkit.FACTORIES[sys.argv[1]]()\n"
        "near, far = loopkit.tcp_sockets()\n"
        "made = loop.run_until_complete(loop.create_connection(loopkit.Recorder, sock=near))\n"
        "loop.call_later(1000, print)\n",
        loop_name,
    )
