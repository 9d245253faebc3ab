"""fork in a running loop: the child starts afresh, the parent goes on."""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
import warnings
from collections.abc import Callable

import pytest
from loopkit import Echo, Loop, LoopFactory, connected, read_all, turns

pytestmark = pytest.mark.usefixtures("loop")


def forked(work: Callable[[], None]) -> int:
    """Run the work in a child process; gives its exit code, 0 for success."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads may be running
        child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


async def talk() -> None:
    async with connected(Echo()) as (_, _, far):
        far.send(b"hello")
        assert await read_all(far, 5) == b"hello"


async def test_the_child_is_in_no_running_loop(loop: Loop) -> None:
    def child() -> None:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()

    assert forked(child) == 0
    assert asyncio.get_running_loop() is loop


async def test_the_child_can_run_a_loop_of_its_own(loop: Loop, loop_factory: LoopFactory) -> None:
    def child() -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(talk())

    assert forked(child) == 0
    await talk()


async def test_the_parent_goes_on(loop: Loop) -> None:
    order: list[str] = []
    loop.call_later(0.002, order.append, "timer")
    async with connected(Echo()) as (transport, _, far):
        assert forked(lambda: None) == 0
        far.send(b"hello")
        assert await read_all(far, 5) == b"hello"
        transport.write(b"on its own")
        assert await read_all(far, 10) == b"on its own"
    await asyncio.sleep(0.005)
    assert order == ["timer"]


async def test_what_the_child_does_with_its_loop_does_not_disturb_the_parent(
    loop: Loop, loop_factory: LoopFactory
) -> None:
    async with connected(Echo()) as (_, _, far):

        def child() -> None:
            for _ in range(3):
                with asyncio.Runner(loop_factory=loop_factory) as runner:
                    runner.run(talk())

        assert forked(child) == 0
        for _ in range(3):
            far.send(b"x" * 100)
            assert await read_all(far, 100) == b"x" * 100


def test_a_stopped_loop_survives_a_fork(loop: Loop) -> None:
    loop.run_until_complete(talk())
    assert forked(lambda: None) == 0
    loop.run_until_complete(talk())


async def test_call_soon_threadsafe_works_in_the_parent_after_a_fork(loop: Loop) -> None:
    assert forked(lambda: None) == 0
    assert await asyncio.to_thread(pow, 2, 3) == 8
    await turns()
