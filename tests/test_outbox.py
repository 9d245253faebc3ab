"""Small writes of one tick leave together; a program must not notice but by its speed."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack

import pytest
from loopkit import Loop, connected, read_all, stats, turns

BIG = b"b" * 8_000_000


async def test_writes_of_many_transports_keep_their_order(loop: Loop) -> None:
    async with AsyncExitStack() as stack:
        pairs = [await stack.enter_async_context(connected()) for _ in range(10)]
        for number in range(100):
            for transport, _, _ in pairs:
                transport.write(b"%03d" % number)
        expected = b"".join(b"%03d" % number for number in range(100))
        for _, _, far in pairs:
            assert await read_all(far, 300) == expected


async def test_a_large_write_does_not_overtake_small_ones(loop: Loop) -> None:
    async with connected() as (transport, _, far):
        transport.write(b"first")
        transport.write(BIG)
        transport.write(b"last")
        data = await read_all(far, len(BIG) + 9)
        assert (data[:5], data[-4:]) == (b"first", b"last")


async def test_pause_writing_comes_inside_the_write_that_causes_it(loop: Loop) -> None:
    async with connected() as (transport, protocol, _):
        transport.write(b"small")
        assert "pause" not in protocol.calls
        transport.write(BIG)
        assert "pause" in protocol.calls


@pytest.mark.parametrize("high", [0, 1, 1000])
async def test_a_low_mark_is_kept_by_many_small_writes(loop: Loop, high: int) -> None:
    async with connected() as (transport, protocol, _):
        transport.set_write_buffer_limits(high=high)
        while "pause" not in protocol.calls:
            transport.write(b"x" * 500)
            size = transport.get_write_buffer_size()
            assert size <= high or "pause" in protocol.calls


async def test_the_size_of_the_write_buffer_is_what_the_kernel_did_not_take(loop: Loop) -> None:
    async with connected() as (transport, _, _):
        transport.write(b"x" * 100)
        assert transport.get_write_buffer_size() == 0


@pytest.mark.parametrize("end", ["close", "abort", "write_eof"])
async def test_what_was_written_before_the_end_arrives(loop: Loop, end: str) -> None:
    async with connected() as (transport, _, far):
        transport.write(b"before")
        getattr(transport, end)()
        assert await read_all(far, 6) == b"before"
        assert await read_all(far, 1) == b""


@pytest.mark.loops("tloop")
@pytest.mark.parametrize("size", [100, 10_000])
async def test_writes_of_one_transport_in_a_row_are_one_system_call(loop: Loop, size: int) -> None:
    loop.set_debug(False)  # else each is sent at once
    async with connected() as (transport, _, far), connected() as (other, _, _):
        await turns(3)
        for target in (transport, other):
            target.write(b"head")
            target.write(b"x" * size)
        before = stats(loop)["syscalls"]
        transport.get_write_buffer_size()  # which sends
        assert stats(loop)["syscalls"] - before <= 2  # one where the kernel has io_uring
        assert await read_all(far, 4 + size) == b"head" + b"x" * size


async def test_writelines_and_write_keep_their_order(loop: Loop) -> None:
    async with connected() as (transport, _, far):
        transport.write(b"1")
        transport.writelines([b"2", bytearray(b"3"), memoryview(b"4")])
        transport.write(bytearray(b"5"))
        transport.write(b"6")
        assert await read_all(far, 6) == b"123456"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_was_written_before_an_interrupt_arrives(
    loop: Loop, error: type[BaseException]
) -> None:
    async def talk() -> None:
        async with connected() as (transport, _, far):
            loop.call_soon(transport.write, b"before")
            loop.call_soon(_raise, error)
            assert await read_all(far, 6) == b"before"

    task = loop.create_task(talk())
    with pytest.raises(error):
        loop.run_forever()
    loop.run_until_complete(task)


def _raise(error: type[BaseException]) -> None:
    raise error


def test_what_was_written_in_the_last_tick_is_sent(loop: Loop) -> None:
    async def write() -> tuple[object, ...]:
        context = connected()
        transport, _, far = await context.__aenter__()
        transport.write(b"last words")
        return context, far

    context, far = loop.run_until_complete(write())
    assert far.recv(100) == b"last words"  # the loop does not run any more
    loop.run_until_complete(context.__aexit__(None, None, None))


def test_a_write_outside_of_the_running_loop_is_sent_at_once(loop: Loop) -> None:
    async def connect() -> tuple[object, ...]:
        context = connected()
        return context, await context.__aenter__()

    context, (transport, _, far) = loop.run_until_complete(connect())
    transport.write(b"now")
    assert far.recv(100) == b"now"
    loop.run_until_complete(context.__aexit__(None, None, None))


async def test_debug_mode_sends_at_once(loop: Loop) -> None:
    loop.set_debug(True)
    async with connected() as (transport, _, far):
        await turns(2)
        transport.write(b"now")
        assert far.recv(100) == b"now"


# pytest's own thread that watches for hangs; the child runs no code that could mind.
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
async def test_a_forked_child_does_not_send_again(loop: Loop) -> None:
    async with connected() as (transport, _, far):
        transport.write(b"once")
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)  # noqa: ASYNC222 -- a moment
        assert await read_all(far, 4) == b"once"
        await turns(3)
        with pytest.raises(BlockingIOError):
            far.recv(1)


async def test_a_peer_that_is_gone_ends_the_connection_once(loop: Loop) -> None:
    async with connected() as (transport, protocol, far):
        far.close()
        while not protocol.lost:
            transport.write(b"x" * 100)
            transport.write(b"y" * 100)
            await asyncio.sleep(0)
        assert protocol.calls.count("lost") == 1
