"""B12: every way a connection can end calls the protocol in the same order, and only once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Callable
from typing import Any

import pytest
from conftest import AsyncioLog
from loopkit import (
    Loop,
    Recorder,
    connected,
    end_of,
    read_all,
    send_reset,
    tcp_sockets,
    turns,
    until,
)

pytestmark = pytest.mark.usefixtures("loop")

OURS: dict[str, Callable[[Any], object]] = {
    "write": lambda transport: transport.write(b"x"),
    "write_eof": lambda transport: transport.can_write_eof() and transport.write_eof(),
    "close": lambda transport: transport.close(),
    "abort": lambda transport: transport.abort(),
    "pause": lambda transport: transport.pause_reading(),
}
THEIRS: dict[str, Callable[[socket.socket], object]] = {
    "nothing": lambda _: None,
    "data": lambda far: far.send(b"y"),
    "eof": lambda far: far.shutdown(socket.SHUT_WR),
    "gone": lambda far: far.close(),
    "reset": send_reset,
}


def check(calls: list[str]) -> None:
    """made (pause resume | data)* eof? lost, each at most once where it must be."""
    assert calls[0] == "made"
    assert calls[-1] == "lost"
    for once in ("made", "eof", "lost"):
        assert calls.count(once) <= 1
    assert "data" not in calls[calls.index("eof") :] if "eof" in calls else True


@pytest.mark.parametrize("theirs", THEIRS)
@pytest.mark.parametrize("wait", [0, 3])
async def test_connection_lost_comes_once_for_every_sequence_of_ours(
    loop: Loop, theirs: str, wait: int
) -> None:
    """B12: all pairs of what we do, before or after what the peer does."""
    for first, second in set(itertools.product(OURS, repeat=2)) - {("write_eof", "write")}:
        for peer_first in (True, False):
            async with connected() as (transport, protocol, far):
                if peer_first:
                    THEIRS[theirs](far)
                    await turns(wait)
                for action in (first, second):
                    if action == "close" or not transport.is_closing():
                        with contextlib.suppress(OSError):  # write_eof() after a reset
                            OURS[action](transport)
                if not peer_first:
                    THEIRS[theirs](far)
                    await turns(wait)
                transport.close()
                far.close()
                await end_of(protocol)
                await turns(5)
                check(protocol.calls)


@pytest.mark.parametrize("action", ["close", "abort"])
async def test_connection_lost_is_never_called_inside_the_call(loop: Loop, action: str) -> None:
    async with connected() as (transport, protocol, _):
        OURS[action](transport)
        assert protocol.calls == ["made"]
        assert transport.is_closing()
        await turns()
        assert protocol.calls == ["made", "lost"]
        assert protocol.error is None


@pytest.mark.parametrize("ending", list(itertools.product(["close", "abort"], repeat=2)))
async def test_ending_twice_is_harmless(loop: Loop, ending: tuple[str, str]) -> None:
    async with connected() as (transport, protocol, _):
        for action in ending:
            OURS[action](transport)
        await turns()
        assert protocol.calls == ["made", "lost"]


async def test_close_after_the_end_is_harmless(loop: Loop) -> None:
    async with connected() as (transport, protocol, _):
        transport.abort()
        await until(lambda: protocol.lost)
        for action in ("close", "abort"):
            OURS[action](transport)
        await turns()
        assert protocol.calls == ["made", "lost"]


async def test_nothing_is_received_after_close(loop: Loop) -> None:
    async with connected() as (transport, protocol, far):
        far.send(b"too late")
        transport.close()
        await until(lambda: protocol.lost)
        assert protocol.calls == ["made", "lost"]


async def send_for_ever(far: socket.socket) -> None:
    while True:
        with contextlib.suppress(BlockingIOError):
            far.send(b"x")
        await turns()


async def test_a_peer_that_goes_on_sending_after_close_is_reset(loop: Loop) -> None:
    async with connected() as (transport, protocol, far):
        transport.close()
        await until(lambda: protocol.lost)
        with pytest.raises(ConnectionError):
            await send_for_ever(far)


async def test_close_sends_what_was_written(loop: Loop) -> None:
    data = b"x" * 3_000_000
    async with connected() as (transport, protocol, far):
        transport.write(data)
        transport.close()
        await turns()
        assert not protocol.lost
        assert await read_all(far, len(data) + 1) == data
        await until(lambda: protocol.lost)
        assert protocol.error is None


async def test_a_peer_that_goes_while_we_flush_ends_the_close(loop: Loop) -> None:
    async with connected() as (transport, protocol, far):
        transport.write(b"x" * 3_000_000)
        transport.close()
        await turns()
        send_reset(far)
        await until(lambda: protocol.lost)
        assert protocol.calls == ["made", "pause", "lost"]


async def test_writes_after_close_are_dropped(loop: Loop) -> None:
    async with connected() as (transport, protocol, far):
        transport.close()
        transport.write(b"dropped")
        await until(lambda: protocol.lost)
        assert await read_all(far, 10) == b""


@pytest.mark.parametrize("action", ["close", "abort"])
@pytest.mark.parametrize(
    "where", ["connection_made", "data_received", "eof_received", "connection_lost"]
)
async def test_ending_inside_any_callback(loop: Loop, action: str, where: str) -> None:
    class Ending(Recorder):
        def __getattribute__(self, name: str) -> Any:
            method = super().__getattribute__(name)
            if name != where:
                return method

            def call_and_end(*args: Any) -> Any:
                answer = method(*args)
                OURS[action](self.transport)
                return answer

            return call_and_end

    async with connected(Ending()) as (_, protocol, far):
        with contextlib.suppress(OSError):  # we may have ended it already
            far.send(b"data")
            far.shutdown(socket.SHUT_WR)
        await until(lambda: protocol.lost)
        await turns(5)
        expected = {
            "connection_made": ["made", "lost"],
            "data_received": ["made", "data", "lost"],
        }
        assert protocol.calls == expected.get(where, ["made", "data", "eof", "lost"])


@pytest.mark.parametrize("kind", [LookupError, MemoryError])
async def test_an_error_in_data_received_ends_the_connection(
    loop: Loop, asyncio_log: AsyncioLog, kind: type[Exception]
) -> None:
    class Broken(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            raise kind("broken")

    async with connected(Broken()) as (_, protocol, far):
        far.send(b"x")
        await until(lambda: protocol.lost)
        assert protocol.calls == ["made", "data", "lost"]
        assert isinstance(protocol.error, kind)
    record = asyncio_log.expect("Fatal error: protocol.data_received() call failed.")
    assert "transport:" in record.getMessage()


async def test_an_error_in_eof_received_ends_the_connection(
    loop: Loop, asyncio_log: AsyncioLog
) -> None:
    class Broken(Recorder):
        def eof_received(self) -> None:
            super().eof_received()
            raise LookupError("broken")

    async with connected(Broken()) as (_, protocol, far):
        far.shutdown(socket.SHUT_WR)
        await until(lambda: protocol.lost)
        assert protocol.calls == ["made", "eof", "lost"]
        assert isinstance(protocol.error, LookupError)
    asyncio_log.expect("Fatal error: protocol.eof_received() call failed.")


async def test_an_error_in_connection_lost_is_reported(loop: Loop, asyncio_log: AsyncioLog) -> None:
    class Broken(Recorder):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            raise LookupError("broken")

    async with connected(Broken()) as (transport, protocol, far):
        transport.close()
        await until(lambda: protocol.lost)
        assert await read_all(far, 1) == b""
    asyncio_log.expect("Exception in callback")


async def test_an_error_in_connection_made_is_reported(loop: Loop, asyncio_log: AsyncioLog) -> None:
    class Broken(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            raise LookupError("broken")

    async with connected(Broken()) as (_, protocol, far):
        far.send(b"still read")
        assert await protocol.received(10) == b"still read"
    asyncio_log.expect("Exception in callback")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupts_in_data_received_propagate(loop: Loop, error: type[BaseException]) -> None:
    class Interrupted(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            raise error

    async def start() -> Any:
        made = connected(Interrupted())
        return made, await made.__aenter__()

    context, (_, _, far) = loop.run_until_complete(start())
    far.send(b"x")
    with pytest.raises(error):
        loop.run_forever()
    loop.run_until_complete(context.__aexit__(None, None, None))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_reading_starts_after_an_interrupt_in_connection_made(
    loop: Loop, error: type[BaseException]
) -> None:
    class Interrupted(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            raise error

    protocol = Interrupted()
    near, far = tcp_sockets()
    with far:
        far.send(b"x")
        connecting = loop.create_task(loop.create_connection(lambda: protocol, sock=near))
        with pytest.raises(error):
            loop.run_until_complete(connecting)
        loop.run_until_complete(connecting)
        assert loop.run_until_complete(protocol.received(1)) == b"x"
    loop.run_until_complete(end_of(protocol))


async def test_connection_made_comes_before_the_waiter_and_the_first_data(loop: Loop) -> None:
    order: list[str] = []

    class Ordered(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            order.append("made")
            loop.call_soon(order.append, "tick after made")

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            order.append("data")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    with far:
        far.send(b"early")
        near.setblocking(False)
        transport, protocol = await loop.create_connection(Ordered, sock=near)
        order.append("connected")
        await protocol.received(5)
        transport.abort()
        await until(lambda: protocol.lost)
    assert order[0] == "made"
    assert order.index("made") < order.index("connected")
    assert "data" in order


async def test_the_fd_is_free_once_connection_lost_was_called(loop: Loop) -> None:
    """B4: the peer sees the end, and the number may be used again."""
    async with connected() as (transport, protocol, far):
        transport.close()
        await until(lambda: protocol.lost)
        assert await read_all(far, 1) == b""
