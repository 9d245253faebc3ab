"""asyncio's streams on the loop's transports: whole chunks, limits, and replaced methods."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from loopkit import Loop, Recorder, connected, send_reset, streams, tcp_sockets, turns, until

pytestmark = pytest.mark.usefixtures("loop")


async def test_every_way_to_read(loop: Loop) -> None:
    async with streams() as (reader, _, far):
        far.send(b"line one\nexactly|until;the rest")
        assert await reader.readline() == b"line one\n"
        assert await reader.readexactly(7) == b"exactly"
        assert await reader.read(1) == b"|"
        assert await reader.readuntil(b";") == b"until;"
        assert not reader.at_eof()
        far.shutdown(socket.SHUT_WR)
        assert await reader.read() == b"the rest"
        assert reader.at_eof()
        assert await reader.read() == b""


async def test_reads_wait_for_their_data(loop: Loop) -> None:
    async with streams() as (reader, _, far):
        reading = loop.create_task(reader.readexactly(6))
        for piece in (b"ab", b"cd", b"ef"):
            await turns(5)
            assert not reading.done()
            far.send(piece)
        assert await reading == b"abcdef"


async def test_lines_are_iterated(loop: Loop) -> None:
    async with streams() as (reader, _, far):
        far.send(b"".join(b"%d\n" % number for number in range(100)))
        far.shutdown(socket.SHUT_WR)
        assert [int(line) async for line in reader] == list(range(100))


async def test_an_incomplete_read_tells_what_it_got(loop: Loop) -> None:
    async with streams() as (reader, _, far):
        far.send(b"half")
        far.shutdown(socket.SHUT_WR)
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await reader.readexactly(8)
        assert caught.value.partial == b"half"


async def test_a_line_over_the_limit_is_refused(loop: Loop) -> None:
    async with streams(limit=100) as (reader, _, far):
        far.send(b"x" * 1000 + b"\n")
        with pytest.raises(ValueError, match="limit"):
            await reader.readline()


async def test_a_reader_that_is_not_read_pauses_the_transport(loop: Loop) -> None:
    data = bytes(range(256)) * 4096
    async with streams(limit=1000) as (reader, writer, far):
        sending = loop.create_task(loop.sock_sendall(far, data))
        await until(lambda: not writer.transport.is_reading())  # type: ignore[attr-defined]
        await turns(5)
        assert not sending.done()
        assert await reader.readexactly(len(data)) == data
        await sending


async def test_megabytes_line_by_line(loop: Loop) -> None:
    lines = [b"x" * (number % 1000) + b"\n" for number in range(4000)]
    async with streams() as (reader, _, far):
        sending = loop.create_task(loop.sock_sendall(far, b"".join(lines)))
        assert [await reader.readline() for _ in lines] == lines
        await sending


async def test_a_reset_is_raised_in_the_read(loop: Loop) -> None:
    async with streams() as (reader, writer, far):
        reading = loop.create_task(reader.read(100))
        await turns()
        send_reset(far)
        with pytest.raises(ConnectionResetError):
            await reading
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await writer.drain()


async def test_two_reads_at_once_are_refused(loop: Loop) -> None:
    async with streams() as (reader, _, far):
        reading = loop.create_task(reader.read(100))
        await turns()
        with pytest.raises(RuntimeError, match="another coroutine is already waiting"):
            await reader.read(100)
        far.send(b"x")
        assert await reading == b"x"


async def test_a_cancelled_read_loses_nothing(loop: Loop) -> None:
    async with streams() as (reader, _, far):
        for wait in (0, 1, 3):
            reading = loop.create_task(reader.readexactly(4))
            await turns(wait)
            far.send(b"da")
            await turns(wait)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            far.send(b"ta")
            assert await reader.readexactly(4) == b"data"


async def test_feed_data_can_be_replaced_on_the_reader(loop: Loop) -> None:
    """Test suites and wrappers do so; it works on asyncio."""
    async with streams() as (reader, _, far):
        seen: list[bytes] = []
        feed = reader.feed_data

        def watched(data: Any) -> None:
            seen.append(bytes(data))
            feed(data)

        far.send(b"before")
        assert await reader.readexactly(6) == b"before"
        reader.feed_data = watched  # type: ignore[method-assign]
        far.send(b"after")
        assert await reader.readexactly(5) == b"after"
        assert b"".join(seen) == b"after"


async def test_a_subclass_of_the_stream_protocol_sees_its_data(loop: Loop) -> None:
    class Counting(asyncio.StreamReaderProtocol):
        count = 0

        def data_received(self, data: bytes) -> None:
            self.count += len(data)
            super().data_received(data)

    reader = asyncio.StreamReader()
    near, far = tcp_sockets()
    with far:
        transport, protocol = await loop.create_connection(lambda: Counting(reader), sock=near)
        far.send(b"counted")
        assert await reader.readexactly(7) == b"counted"
        assert protocol.count == 7
        transport.abort()
        await turns()


async def test_a_subclass_of_the_reader_sees_its_data(loop: Loop) -> None:
    class Counting(asyncio.StreamReader):
        count = 0

        def feed_data(self, data: Any) -> None:
            self.count += len(data)
            super().feed_data(data)

    reader = Counting()
    near, far = tcp_sockets()
    with far:
        transport, _ = await loop.create_connection(
            lambda: asyncio.StreamReaderProtocol(reader), sock=near
        )
        far.send(b"counted")
        assert await reader.readexactly(7) == b"counted"
        assert reader.count == 7
        transport.abort()
        await turns()


async def test_methods_can_be_replaced_on_a_protocol(loop: Loop) -> None:
    async with connected(Recorder()) as (_, protocol, far):
        far.send(b"first")
        await protocol.received(5)
        seen: list[bytes] = []
        protocol.data_received = seen.append
        far.send(b"second")
        await until(lambda: b"".join(seen) == b"second")
        del protocol.data_received
        far.send(b"third")
        assert await protocol.received(10) == b"firstthird"


async def test_data_is_given_as_bytes_of_its_own(loop: Loop) -> None:
    """The loop's receive buffer is used again; what was handed out must not change."""
    kept: list[Any] = []

    class Keeping(Recorder):
        def data_received(self, data: bytes) -> None:
            kept.append(data)

    async with connected(Keeping()) as (_, _, far):
        for number in range(50):
            far.send(b"%03d" % number)
            await until(lambda number=number: len(kept) == number + 1)  # type: ignore[misc]
    assert kept == [b"%03d" % number for number in range(50)]
    assert {type(data) for data in kept} == {bytes}
