"""What flows through TLS: large transfers, back-pressure, pausing, buffers, records in pieces."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import ssl
from typing import Any

import pytest
from conftest import AsyncioLog
from loopkit import REFCOUNTS, Loop, Recorder, collect, end_of, listening, turns, until
from tlskit import NAME, VERSIONS, hung_up, only, tls_connected, tls_pair

pytestmark = pytest.mark.usefixtures("loop")

MIB = 1 << 20
BLOCK = bytes(range(256)) * 256  # 64 KiB


async def test_a_large_transfer_both_ways(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_pair(server_tls, client_tls) as (transport, client, _):
        for _ in range(80):
            transport.write(BLOCK)
        received = await client.received(80 * len(BLOCK))
        assert hashlib.sha256(received).digest() == hashlib.sha256(BLOCK * 80).digest()


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
async def test_64_mib_there_and_back_with_back_pressure(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    """Neither side holds more than its limits: both wait for each other all the time."""
    only(version, client_tls)
    total = 64 * MIB
    held: list[int] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100_000):
            writer.write(data)
            held.append(writer.transport.get_write_buffer_size())
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def send(writer: asyncio.StreamWriter) -> None:
        for _ in range(total // len(BLOCK)):
            writer.write(BLOCK)
            held.append(writer.transport.get_write_buffer_size())
            await writer.drain()

    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=server_tls)
    reader, writer = await asyncio.open_connection(
        *server.sockets[0].getsockname(), ssl=client_tls, server_hostname=NAME
    )
    sending = loop.create_task(send(writer))
    received = hashlib.sha256()
    count = 0
    while count < total:
        data = await reader.read(MIB)
        received.update(data)
        count += len(data)
    await sending
    assert received.digest() == hashlib.sha256(BLOCK * (total // len(BLOCK))).digest()
    assert max(held) < 2 * MIB
    writer.close()
    await writer.wait_closed()
    server.close()
    await turns(20)


async def test_writes_are_flow_controlled(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_pair(server_tls, client_tls, Recorder) as (transport, client, server):
        server.transport.pause_reading()
        for _ in range(100):
            transport.write(b"x" * 100_000)
        await until(lambda: "pause" in client.calls)
        assert transport.get_write_buffer_size() > 0
        server.transport.resume_reading()
        await server.received(10_000_000)
        await until(lambda: client.calls[-1] == "resume")
        assert transport.get_write_buffer_size() == 0


@pytest.mark.engines("ssl")  # the C core holds no more than a record back
async def test_limits_of_both_directions_can_be_set(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_pair(server_tls, client_tls) as (transport, client, _):
        transport.set_write_buffer_limits(high=1000)
        assert transport.get_write_buffer_limits() == (250, 1000)
        transport.set_read_buffer_limits(high=2000, low=100)
        assert transport.get_read_buffer_limits() == (100, 2000)
        with pytest.raises(ValueError, match="must be >="):
            transport.set_write_buffer_limits(high=1, low=2)
        assert transport.get_read_buffer_size() == 0
        transport.set_write_buffer_limits(high=0)  # pauses at once, resumes when something moves
        assert client.calls[-1] == "pause"
        transport.set_write_buffer_limits()
        assert client.calls[-1] == "resume"


@pytest.mark.engines("ssl")  # see test_tls_transport.py
async def test_a_paused_reader_gets_nothing_and_stops_the_peer(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_connected(server_tls, client_tls) as (transport, client, peer):
        await turns(10)
        transport.pause_reading()
        assert transport.is_reading() is False
        total = 8 * MIB
        sending = loop.create_task(peer.write(b"x" * total))
        await until(lambda: transport.get_read_buffer_size() > 0)
        for _ in range(30):
            await asyncio.sleep(0.001)
        assert client.data == b""
        assert transport.get_read_buffer_size() < 2 * MIB
        assert not sending.done()
        transport.resume_reading()
        assert transport.is_reading() is True
        assert await client.received(total) == b"x" * total
        await sending


async def test_pausing_in_data_received(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    class Sipping(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self.transport.resume_reading)

    async with tls_connected(server_tls, client_tls, Sipping()) as (_, client, peer):
        records = b"".join(peer.encrypt(BLOCK) for _ in range(20))
        await peer.send(records)
        assert await client.received(20 * len(BLOCK)) == BLOCK * 20


async def test_the_end_comes_after_what_was_held_back(
    loop: Loop, engine: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_connected(server_tls, client_tls) as (transport, client, peer):
        await turns(10)
        transport.pause_reading()
        await peer.write(b"last words")
        peer.sock.close()
        for _ in range(10):
            await asyncio.sleep(0.001)
        assert client.calls == ["made"]
        transport.resume_reading()
        await end_of(client)
        assert client.data == b"last words"
        assert hung_up(client, engine)


# -- records in pieces -----------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_bytes_may_come_one_at_a_time(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    """From the first byte of the handshake on; a record is told when it is whole."""
    only(version, client_tls)
    async with tls_connected(server_tls, client_tls, piece=1) as (transport, client, peer):
        await peer.write(b"hello")
        assert await client.received(5) == b"hello"
        transport.write(b"x" * 1000)
        assert await peer.read(1000) == b"x" * 1000
        records = peer.encrypt(b"one") + peer.encrypt(b"two")
        await peer.send(records[:-1])
        await turns(10)
        assert client.data == b"helloone"
        await peer.send(records[-1:])
        assert await client.received(11) == b"helloonetwo"
        transport.close()
        await peer.close_notify()
        await end_of(client)
        assert client.error is None


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("buffer", [0, 700])
async def test_records_cut_anywhere(
    loop: Loop,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    version: ssl.TLSVersion,
    seed: int,
    buffer: int,
) -> None:
    """Whatever is whole is delivered, at once and no more, wherever the segments end."""
    only(version, client_tls)
    chance = random.Random(seed)
    protocol = Buffered(buffer) if buffer else Recorder()
    async with tls_connected(server_tls, client_tls, protocol) as (_, client, peer):
        stream, whole = b"", [(0, 0)]  # so many bytes of records make so many of text
        for _ in range(30):
            size = chance.choice([1, 2, 100, chance.randrange(1, 16384), 16384])
            stream += peer.encrypt(bytes([size % 251]) * size)
            whole.append((len(stream), whole[-1][1] + size))
        sent = 0
        while sent < len(stream):
            piece = chance.choice([1, 3, 5, chance.randrange(1, 30_000)])
            await peer.send(stream[sent : sent + piece])
            sent += piece
            expected = max(text for records, text in whole if records <= sent)
            await client.received(expected)
            await turns(chance.randrange(3))
            assert len(client.data) == expected
        assert bytes(client.data) == texts(whole)


def texts(whole: list[tuple[int, int]]) -> bytes:
    sizes = [after - before for (_, before), (_, after) in itertools.pairwise(whole)]
    return b"".join(bytes([size % 251]) * size for size in sizes)


async def test_many_records_in_one_piece(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_connected(server_tls, client_tls) as (_, client, peer):
        await peer.send(b"".join(peer.encrypt(b"%4d" % number) for number in range(1000)))
        assert await client.received(4000) == b"".join(b"%4d" % number for number in range(1000))


async def test_data_right_behind_the_handshake(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """The server speaks first, in the same segment as the end of its handshake."""

    class Greeting(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.write(b"welcome")

    async with tls_pair(server_tls, client_tls, Greeting, Greeting) as (_, client, server):
        assert await client.received(7) == b"welcome"
        assert await server.received(7) == b"welcome"
        assert client.calls == ["made", "data"]


# -- protocols -------------------------------------------------------------------------------------


class Buffered(Recorder, asyncio.BufferedProtocol):
    """Receives into a buffer of its own."""

    def __init__(self, size: int = 1000) -> None:
        super().__init__()
        self.buffer: memoryview | bytearray = memoryview(bytearray(size))

    def get_buffer(self, sizehint: int) -> Any:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        Recorder.data_received(self, bytes(self.buffer[:nbytes]))


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
async def test_buffered_protocols_over_tls(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, size: int
) -> None:
    data = BLOCK[:3000] if size == 1 else BLOCK * 10
    async with tls_connected(server_tls, client_tls, Buffered(size)) as (transport, client, peer):
        await peer.write(data)
        assert await client.received(len(data)) == data
        transport.write(data)
        assert await peer.read(len(data)) == data


@pytest.mark.loops("tloop")  # asyncio loses all but the first record
async def test_a_bytearray_is_filled_by_many_records(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    protocol = Buffered()
    protocol.buffer = bytearray(1 << 18)
    async with tls_connected(server_tls, client_tls, protocol) as (_, client, peer):
        await peer.send(b"".join(peer.encrypt(b"%4d" % number) for number in range(1000)))
        assert await client.received(4000) == b"".join(b"%4d" % number for number in range(1000))


async def test_a_buffer_may_be_resized_when_it_is_filled(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    class Growing(Buffered):
        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            assert isinstance(self.buffer, bytearray)
            self.buffer += bytes(len(self.buffer))

    protocol = Growing()
    protocol.buffer = bytearray(8)
    async with tls_connected(server_tls, client_tls, protocol) as (_, client, peer):
        for text, size in ((b"one", 16), (b"two", 32), (b"three", 64)):
            before = len(protocol.data)
            await peer.write(text)
            assert (await client.received(before + len(text)))[before:] == text
            assert len(protocol.buffer) == size


async def test_a_buffered_protocol_whose_peer_hangs_up(
    loop: Loop, engine: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_connected(server_tls, client_tls, Buffered(100)) as (_, client, peer):
        await peer.write(b"x" * 250)
        peer.sock.close()
        await end_of(client)
        assert client.data == b"x" * 250
        assert hung_up(client, engine)


@pytest.mark.engines("ssl")  # see test_tls_transport.py
async def test_the_protocol_can_be_changed(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """To and fro between the two kinds; what each gets is whole."""
    async with tls_connected(server_tls, client_tls) as (transport, first, peer):
        assert transport.get_protocol() is first
        await peer.write(b"one")
        assert await first.received(3) == b"one"
        second, third = Buffered(2), Recorder()
        for protocol, text in ((second, b"two"), (third, b"three")):
            protocol.connection_made(transport)
            transport.set_protocol(protocol)
            assert transport.get_protocol() is protocol
            await peer.write(text)
            assert await protocol.received(len(text)) == text
        transport.pause_reading()
        await peer.write(b"four")
        await until(lambda: transport.get_read_buffer_size())
        transport.set_protocol(first)
        transport.resume_reading()
        assert await first.received(7) == b"onefour"
        transport.abort()
        await end_of(first)
        assert not second.lost
        assert not third.lost


class Failing(Buffered):
    """Its method of that name fails."""

    def __init__(self, method: str) -> None:
        super().__init__()
        setattr(self, method, self.fail)

    def fail(self, *_: object) -> Any:
        raise LookupError("out of order")


@pytest.mark.parametrize("method", ["get_buffer", "buffer_updated"])
async def test_a_buffered_protocol_that_fails_loses_its_connection(
    loop: Loop,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    asyncio_log: AsyncioLog,
    method: str,
) -> None:
    async with tls_connected(server_tls, client_tls) as (transport, client, peer):
        protocol = Failing(method)
        protocol.connection_made(transport)
        transport.set_protocol(protocol)
        await peer.write(b"hello")
        await end_of(protocol)
        assert isinstance(protocol.error, LookupError)
        asyncio_log.expect("Fatal error")
        client.calls.append("lost")  # it is not the one who is told


async def test_a_protocol_that_fails_loses_its_connection(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, asyncio_log: AsyncioLog
) -> None:
    class Broken(Recorder):
        def data_received(self, data: bytes) -> None:
            raise LookupError("out of order")

    async with tls_connected(server_tls, client_tls, Broken()) as (_, client, peer):
        await peer.write(b"hello")
        await end_of(client)
        assert isinstance(client.error, LookupError)
        asyncio_log.expect("Fatal error")


async def test_a_protocol_that_fails_at_once(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, asyncio_log: AsyncioLog
) -> None:
    class Stillborn(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            raise LookupError("out of order")

    server = Stillborn()
    async with listening(lambda: server, ssl=server_tls) as address:
        _, client = await loop.create_connection(
            Recorder, *address, ssl=client_tls, server_hostname=NAME
        )
        await end_of(client, server)
        await turns(20)
    assert isinstance(server.error, LookupError)
    asyncio_log.expect("() call failed")


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not REFCOUNTS, reason="tracemalloc exists on CPython only")
async def test_a_connection_that_has_worked_holds_no_more_memory(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    import tracemalloc

    async with tls_pair(server_tls, client_tls) as (transport, client, server):

        async def work() -> None:
            for size in (10, 100_000, 1_000_000):
                client.data = bytearray()
                transport.write(b"x" * size)
                await client.received(size)
            client.data, server.data = bytearray(), bytearray()
            await turns(10)

        tracemalloc.start()
        try:
            await work()
            growth = []
            for _ in range(5):
                collect()
                before = tracemalloc.get_traced_memory()[0]
                await work()
                collect()
                growth.append(tracemalloc.get_traced_memory()[0] - before)
        finally:
            tracemalloc.stop()
        assert min(growth) < 10_000, growth
