"""Small receives share a tick, large ones do not: nobody may notice which is which."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
from typing import Any

import pytest
from conftest import AsyncioLog
from loopkit import Buffered, Loop, Recorder, connected, is_tloop, send_reset, tcp_sockets, until

pytestmark = pytest.mark.usefixtures("loop")

# Around the sizes at which the way of receiving changes, up and down.
SIZES = [1, 20_000, 300_000, 5, 4000, 17_000, 17_000, 16_384, 16_383, 100, 100_000, 3, 9000, 2]


@pytest.mark.parametrize("buffer", [0, 512 * 1024, 8192, 700])
async def test_every_size_arrives(loop: Loop, buffer: int) -> None:
    rng, sent = random.Random(1), bytearray()
    async with connected(Buffered(buffer) if buffer else Recorder()) as (_, protocol, far):
        for size in SIZES:  # each when the former has come
            message = rng.randbytes(size)
            await loop.sock_sendall(far, message)
            sent.extend(message)
            await until(lambda: len(protocol.data) == len(sent))
            assert protocol.data[-size:] == message
        assert protocol.data == sent


async def test_streams_of_every_size(loop: Loop) -> None:
    near, far = tcp_sockets()
    reader, writer = await asyncio.open_connection(sock=near, limit=1 << 20)
    rng = random.Random(2)
    with far:
        for size in SIZES:
            message = rng.randbytes(size)
            sending = asyncio.ensure_future(loop.sock_sendall(far, message))
            assert await reader.readexactly(size) == message
            await sending
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_a_reader_of_ones_own_keeps_what_it_was_given(loop: Loop) -> None:
    kept: list[Any] = []

    class Keeping(asyncio.StreamReader):
        def feed_data(self, data: Any) -> None:
            kept.append(data)

    reader = Keeping()
    protocol = asyncio.StreamReaderProtocol(reader)
    async with connected(protocol) as (_, _, far):
        for text in (b"first", b"other"):
            far.send(text)
            await until(lambda text=text: text in kept)  # type: ignore[misc]
    assert kept == [b"first", b"other"]
    assert {type(data) for data in kept} == {bytes}


async def test_pausing_between_large_receives(loop: Loop) -> None:
    class Pausing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            assert not self.paused_reading
            self.paused_reading = True
            self.transport.pause_reading()
            loop.call_later(0.001, self.go_on)

        def go_on(self) -> None:
            self.paused_reading = False
            self.transport.resume_reading()

        paused_reading = False

    async with connected(Pausing()) as (_, protocol, far):
        data = random.Random(3).randbytes(3_000_000)
        await loop.sock_sendall(far, data)
        await until(lambda: len(protocol.data) == len(data))
        assert protocol.data == data


async def test_a_change_of_protocol_between_large_receives(loop: Loop) -> None:
    async with connected() as (transport, protocol, far):
        await loop.sock_sendall(far, b"x" * 50_000)
        await until(lambda: len(protocol.data) == 50_000)
        following: Any
        for following in (Buffered(9000), Recorder(), Buffered(100_000), Recorder()):
            following.calls.append("made")
            transport.set_protocol(following)
            await loop.sock_sendall(far, b"y" * 50_000)
            await until(lambda p=following: len(p.data) == 50_000)  # type: ignore[misc]


@pytest.mark.parametrize("end", ["close", "shutdown", "reset"])
async def test_the_end_behind_a_large_receive(loop: Loop, end: str) -> None:
    async with connected() as (_, protocol, far):
        for _ in range(2):
            await loop.sock_sendall(far, b"x" * 50_000)
        await until(lambda: len(protocol.data) == 100_000)
        if end == "close":
            far.close()
        elif end == "shutdown":
            far.shutdown(socket.SHUT_WR)
        else:
            send_reset(far)
        await until(lambda: protocol.lost)
        if end == "reset":
            assert isinstance(protocol.error, ConnectionResetError)
        else:
            assert protocol.calls[-2:] == ["eof", "lost"]
            assert protocol.error is None


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EIO])
async def test_a_large_receive_that_fails(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    if not is_tloop(loop) or not loop._may_receive:  # type: ignore[attr-defined]
        pytest.skip("injected into a receive of CPython's, which is not used here")
    failures = [OSError(code, "injected")]

    def failing(fd: int, size: int) -> bytes:
        if failures:
            raise failures.pop()
        return original(fd, size)

    from tloop_py import _stream

    original = _stream._read
    monkeypatch.setattr(_stream, "_read", failing)
    async with connected() as (_, protocol, far):
        await loop.sock_sendall(far, b"x" * 50_000)
        await until(lambda: len(protocol.data) == 50_000)
        await loop.sock_sendall(far, b"y" * 50_000)
        if code == errno.EAGAIN:  # what came is announced again with what follows
            await loop.sock_sendall(far, b"z")
            await until(lambda: len(protocol.data) == 100_001)
        else:
            await until(lambda: protocol.lost)
            assert protocol.error.errno == errno.EIO
    assert not failures


async def test_an_exception_out_of_a_large_receive(loop: Loop, asyncio_log: AsyncioLog) -> None:
    class Failing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if len(self.data) > 50_000:
                raise ZeroDivisionError

    async with connected(Failing()) as (_, protocol, far):
        await loop.sock_sendall(far, b"x" * 50_000)
        await until(lambda: len(protocol.data) == 50_000)
        await loop.sock_sendall(far, b"x" * 50_000)
        await until(lambda: protocol.lost)
        assert isinstance(protocol.error, ZeroDivisionError)
    asyncio_log.expect("Fatal error: protocol.data_received() call failed.")
