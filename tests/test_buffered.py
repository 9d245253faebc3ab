"""BufferedProtocol: the protocol lends the buffer that is received into."""

from __future__ import annotations

import asyncio
import random
import socket
from typing import Any

import pytest
from conftest import AsyncioLog
from loopkit import Buffered, Loop, Recorder, connected, tcp_sockets, until

pytestmark = pytest.mark.usefixtures("loop")


@pytest.mark.parametrize("size", [1, 3, 1000, 1 << 20])
async def test_every_byte_arrives_whatever_the_size_of_the_buffer(loop: Loop, size: int) -> None:
    data = bytes(range(256)) * 20
    async with connected(Buffered(size)) as (_, protocol, far):
        far.sendall(data)
        await until(lambda: len(protocol.data) == len(data))
        assert protocol.data == data
        assert protocol.hints[0] == -1
        far.close()
        await until(lambda: protocol.lost)
        assert protocol.calls == ["made", "data", "eof", "lost"]


@pytest.mark.parametrize("wrap", [memoryview, lambda buffer: memoryview(buffer)[2:9]])
async def test_a_view_is_a_buffer_too(loop: Loop, wrap: Any) -> None:
    class Viewing(Buffered):
        def get_buffer(self, sizehint: int) -> Any:
            return wrap(self.buffer)

        def buffer_updated(self, nbytes: int) -> None:
            self.data += bytes(wrap(self.buffer)[:nbytes])

    async with connected(Viewing()) as (_, protocol, far):
        far.send(b"through a view")
        await until(lambda: len(protocol.data) == 14)
        assert protocol.data == b"through a view"


async def test_a_large_transfer_through_a_small_buffer(loop: Loop) -> None:
    data = bytes(range(256)) * 4096
    async with connected(Buffered(7001)) as (_, protocol, far):
        await loop.sock_sendall(far, data)
        await until(lambda: len(protocol.data) == len(data))
        assert protocol.data == data


NO_BUFFER = "Fatal error: protocol.get_buffer() call failed."
USELESS = "Fatal read error on socket transport"


@pytest.mark.parametrize(
    ("buffer", "kind", "message"),
    [
        pytest.param(bytearray(), RuntimeError, NO_BUFFER, id="empty"),
        pytest.param(None, TypeError, NO_BUFFER, id="None"),
        pytest.param(5, TypeError, NO_BUFFER, id="number"),
        pytest.param(b"read only", TypeError, USELESS, id="bytes"),
        pytest.param(memoryview(b"read only"), TypeError, USELESS, id="read-only view"),
        pytest.param(memoryview(bytearray(9))[::2], TypeError, USELESS, id="view with gaps"),
        pytest.param("text", TypeError, USELESS, id="text"),
        pytest.param([1, 2], TypeError, USELESS, id="list"),
    ],
)
async def test_a_useless_buffer_ends_the_connection(
    loop: Loop,
    asyncio_log: AsyncioLog,
    buffer: Any,
    kind: type[Exception],
    message: str,
) -> None:
    class Useless(Buffered):
        def get_buffer(self, sizehint: int) -> Any:
            return buffer

    async with connected(Useless()) as (_, protocol, far):
        far.send(b"x")
        await until(lambda: protocol.lost)
        assert protocol.calls == ["made", "lost"]
        assert type(protocol.error) is kind
    record = asyncio_log.expect(message)
    assert record.exc_info
    assert record.exc_info[0] is kind


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("get_buffer", "Fatal error: protocol.get_buffer() call failed."),
        ("buffer_updated", "Fatal error: protocol.buffer_updated() call failed."),
    ],
)
async def test_an_error_in_the_protocol_ends_the_connection(
    loop: Loop, asyncio_log: AsyncioLog, method: str, message: str
) -> None:
    def broken(*_: object) -> None:
        raise LookupError("broken")

    protocol = Buffered()
    setattr(protocol, method, broken)
    async with connected(protocol) as (_, _, far):
        far.send(b"x")
        await until(lambda: protocol.lost)
        assert isinstance(protocol.error, LookupError)
    asyncio_log.expect(message)


async def test_pausing_in_buffer_updated_loses_no_byte(loop: Loop) -> None:
    class Hesitant(Buffered):
        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            self.transport.pause_reading()
            loop.call_soon(self.transport.resume_reading)

    data = bytes(range(256)) * 100
    async with connected(Hesitant(300)) as (_, protocol, far):
        far.sendall(data)
        await until(lambda: len(protocol.data) == len(data))
        assert protocol.data == data


async def test_a_stream_changes_between_both_kinds_of_protocol(loop: Loop) -> None:
    plain, buffered = Recorder(), Buffered(4)
    async with connected(plain) as (transport, _, far):
        far.send(b"one")
        await plain.received(3)
        buffered.connection_made(transport)
        transport.set_protocol(buffered)
        far.send(b"two, in several parts")
        await until(lambda: len(buffered.data) == 21)
        transport.set_protocol(plain)
        far.send(b"three")
        assert await plain.received(8) == b"onethree"
        transport.set_protocol(buffered)
        far.shutdown(socket.SHUT_WR)
        await until(lambda: buffered.lost)
        assert buffered.calls == ["made", "data", "eof", "lost"]


async def test_a_protocol_can_hand_over_inside_buffer_updated(loop: Loop) -> None:
    plain = Recorder()
    plain.calls.append("made")

    class Handing(Buffered):
        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            self.transport.set_protocol(plain)

    async with connected(Handing(5)) as (_, protocol, far):
        far.send(b"firstsecond")
        assert await plain.received(6) == b"second"
        assert protocol.data == b"first"


async def test_a_closed_stream_takes_another_protocol(loop: Loop) -> None:
    async with connected(Recorder()) as (transport, protocol, _far):
        transport.abort()
        await until(lambda: protocol.lost)
        for other in (Buffered(), Recorder()):
            transport.set_protocol(other)
            assert transport.get_protocol() is other
            assert other.calls == []


@pytest.mark.parametrize("action", ["close", "abort"])
async def test_ending_in_buffer_updated(loop: Loop, action: str) -> None:
    class Ending(Buffered):
        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            getattr(self.transport, action)()

    async with connected(Ending(2)) as (_, protocol, far):
        far.send(b"only the beginning")
        await until(lambda: protocol.lost)
        assert protocol.calls == ["made", "data", "lost"]
        assert protocol.data == b"on"


@pytest.mark.parametrize("action", ["close", "abort"])
async def test_ending_in_get_buffer(loop: Loop, action: str) -> None:
    class Ending(Buffered):
        def get_buffer(self, sizehint: int) -> Any:
            getattr(self.transport, action)()
            return self.buffer

    async with connected(Ending()) as (_, protocol, far):
        far.send(b"x")
        await until(lambda: protocol.lost)
        assert protocol.calls.count("lost") == 1
        assert protocol.calls[-1] == "lost"


async def test_the_buffer_can_be_resized_between_receives(loop: Loop) -> None:
    class Growing(Buffered):
        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            self.buffer.extend(bytes(10))  # BufferError if anyone still held the buffer

    data = bytes(range(256)) * 10
    async with connected(Growing(1)) as (_, protocol, far):
        far.send(data)
        await until(lambda: len(protocol.data) == len(data))
        assert protocol.data == data


class Switching:
    """A stream whose protocol changes at random, in every callback and between them; all protocols
    write into one log."""

    def __init__(self, loop: Loop, seed: int) -> None:
        self.loop = loop
        self.random = random.Random(seed)
        self.log = bytearray()
        self.ends = 0
        self.lost = False
        self.transport: Any = None
        self.paused = False
        self.protocols = [Plain(self), Plain(self), *(Lending(self) for _ in range(3))]

    def switch(self) -> None:
        self.transport.set_protocol(self.random.choice(self.protocols))

    def rest(self) -> None:
        """Pause, and resume a little later; or at once."""
        self.transport.pause_reading()
        if self.random.random() < 0.5:
            self.switch()
        if self.random.random() < 0.3:
            self.transport.resume_reading()
        elif self.random.random() < 0.5:
            self.loop.call_soon(self.transport.resume_reading)
        else:
            self.loop.call_later(0.0001, self.transport.resume_reading)

    def received(self, data: bytes) -> None:
        assert self.transport.is_reading()
        assert not self.ends
        self.log += data
        self.disturb()

    def disturb(self) -> None:
        chance = self.random.random()
        if chance < 0.4:
            self.switch()
        elif chance < 0.6:
            self.rest()


class Switched(asyncio.BaseProtocol):
    """What both kinds of protocol on such a stream have in common."""

    def __init__(self, stream: Switching) -> None:
        self.stream = stream

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.stream.transport = transport

    def eof_received(self) -> None:
        self.stream.ends += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.stream.lost = True


class Plain(Switched, asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes
        self.stream.received(data)


class Lending(Switched, asyncio.BufferedProtocol):
    def __init__(self, stream: Switching) -> None:
        super().__init__(stream)
        self.buffer = bytearray(stream.random.choice([1, 7, 100, 5000, 1 << 18]))

    def get_buffer(self, sizehint: int) -> bytearray:
        assert sizehint == -1
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.stream.received(bytes(self.buffer[:nbytes]))


class Disturbing(asyncio.Protocol):
    """Data of one connection changes another one, within the tick that has data of both."""

    def __init__(self, stream: Switching) -> None:
        self.stream = stream

    def data_received(self, data: bytes) -> None:
        if not self.stream.lost and not self.stream.transport.is_closing():
            self.stream.disturb()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
@pytest.mark.parametrize("seed", range(20))
async def test_changing_protocols_loses_and_reorders_no_byte(
    loop: Loop, seed: int, family: socket.AddressFamily
) -> None:
    stream = Switching(loop, seed)
    connect = loop.create_connection
    if family == socket.AF_UNIX:
        connect = loop.create_unix_connection  # type: ignore[assignment]
    near, far = tcp_sockets() if family == socket.AF_INET else socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    data = stream.random.randbytes(200_000)
    async with connected(Disturbing(stream)) as (_, _, elsewhere):
        await connect(lambda: stream.protocols[seed % 5], sock=near)
        sent = 0
        while sent < len(data):
            elsewhere.send(b"!")
            piece = data[sent : sent + stream.random.choice([1, 10, 1000, 30_000])]
            await loop.sock_sendall(far, piece)
            sent += len(piece)
            if stream.random.random() < 0.3:
                await asyncio.sleep(0)
        far.shutdown(socket.SHUT_WR)
        await until(lambda: stream.lost)
        assert stream.log == data
        assert stream.ends == 1
        far.close()


@pytest.mark.parametrize("first", [Recorder, Buffered])
async def test_a_switch_by_another_connection_in_the_same_tick(loop: Loop, first: type) -> None:
    """When the loop has looked for data already, the new protocol gets it in its own way."""
    protocols = [first(), Recorder() if first is Buffered else Buffered(4)]
    transports: list[Any] = []

    class Changing(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            for transport in transports:
                transport.set_protocol(protocols[1])

    protocols[1].calls.append("made")
    async with (
        connected(Changing()) as (_, _, before),
        connected(protocols[0]) as (middle, _, far),
        connected(Changing()) as (_, _, after),
    ):
        transports.append(middle)
        for sock in (before, far, after):
            sock.send(b"in one tick")
        await until(lambda: len(protocols[0].data) + len(protocols[1].data) == 11)
        assert protocols[0].data + protocols[1].data == b"in one tick"
        far.send(b", and more")
        await until(lambda: len(protocols[0].data) + len(protocols[1].data) == 21)
        assert protocols[0].data + protocols[1].data == b"in one tick, and more"
