"""TCP: connecting, accepting, bytes both ways, and what a transport tells about itself."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import socket
import sys
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from loopkit import (
    REFCOUNTS,
    Echo,
    Loop,
    LoopFactory,
    Recorder,
    collect,
    connected,
    end_of,
    is_tloop,
    listening,
    read_all,
    send_reset,
    tcp_sockets,
    turns,
    until,
    warnings_seen,
)

pytestmark = pytest.mark.usefixtures("loop")


async def test_client_and_server_echo(loop: Loop) -> None:
    servers: list[Echo] = []

    def factory() -> Echo:
        servers.append(Echo())
        return servers[-1]

    async with listening(factory) as address:
        transport, client = await loop.create_connection(Recorder, *address)
        transport.write(b"hello")
        assert await client.received(5) == b"hello"
        transport.close()
        await until(lambda: servers[0].lost)
    assert client.calls == ["made", "data", "lost"]
    assert client.error is None
    assert servers[0].calls == ["made", "data", "eof", "lost"]


async def test_streams_echo_line_by_line(loop: Loop) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line.upper())
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    for line in (b"first\n", b"second\n"):
        writer.write(line)
        assert await reader.readline() == line.upper()
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    server.close()


async def test_many_clients_at_once(loop: Loop) -> None:
    async def talk(address: tuple[str, int], number: int) -> None:
        reader, writer = await asyncio.open_connection(*address)
        message = b"%d;" % number * 100
        writer.write(message)
        assert await reader.readexactly(len(message)) == message
        writer.close()
        await writer.wait_closed()

    echoes: list[Echo] = []

    def factory() -> Echo:
        echoes.append(Echo())
        return echoes[-1]

    async with listening(factory, backlog=300) as address:
        await asyncio.gather(*(talk(address, number) for number in range(200)))
        await until(lambda: all(echo.lost for echo in echoes))
    assert len(echoes) == 200


# --- what a transport tells ---------------------------------------------------------------


async def test_a_transport_is_an_asyncio_transport(loop: Loop) -> None:
    async with connected() as (transport, protocol, _):
        assert isinstance(transport, asyncio.Transport)
        assert protocol.transport is transport
        assert transport.get_protocol() is protocol
        assert not transport.is_closing()
        assert transport.is_reading()


async def test_extra_info_describes_the_socket(loop: Loop) -> None:
    async with connected() as (transport, _, far):
        sock = transport.get_extra_info("socket")
        assert isinstance(sock, asyncio.trsock.TransportSocket)
        assert sock.family == socket.AF_INET
        assert sock.type == socket.SOCK_STREAM
        assert sock.fileno() > 0
        assert sock.getsockname() == transport.get_extra_info("sockname") == far.getpeername()
        assert sock.getpeername() == transport.get_extra_info("peername") == far.getsockname()
        assert transport.get_extra_info("socket") is sock
        assert transport.get_extra_info("nothing") is None
        assert transport.get_extra_info("nothing", "default") == "default"


async def test_the_socket_of_a_transport_takes_options(loop: Loop) -> None:
    async with connected() as (transport, _, _):
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


async def test_addresses_are_known_after_close(loop: Loop) -> None:
    async with connected() as (transport, protocol, far):
        expected = far.getsockname()
        transport.close()
        await until(lambda: protocol.lost)
        assert transport.get_extra_info("peername") == expected
        assert transport.get_extra_info("sockname") == far.getpeername()


async def test_ipv6_addresses_have_four_parts(loop: Loop) -> None:
    server = await loop.create_server(Echo, "::1", 0)
    address = server.sockets[0].getsockname()
    transport, client = await loop.create_connection(Recorder, *address[:2])
    assert transport.get_extra_info("peername") == address
    assert transport.get_extra_info("sockname")[0] == "::1"
    assert len(transport.get_extra_info("sockname")) == 4
    transport.close()
    await until(lambda: client.lost)
    server.close()


async def test_nagle_is_off_on_both_sides(loop: Loop) -> None:
    accepted: list[Echo] = []

    def factory() -> Echo:
        accepted.append(Echo())
        return accepted[-1]

    async with listening(factory) as address:
        transport, client = await loop.create_connection(Recorder, *address)
        await until(lambda: accepted and accepted[0].transport)
        for side in (transport, accepted[0].transport):
            sock = side.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        transport.close()
        await until(lambda: client.lost and accepted[0].lost)


async def test_repr_tells_the_state(loop: Loop) -> None:
    async with connected() as (transport, _, _):
        assert f"fd={transport.get_extra_info('socket').fileno()}" in repr(transport)
        transport.close()
        assert "clos" in repr(transport)
        await turns()


async def test_attributes_and_methods_can_be_set_on_a_transport(loop: Loop) -> None:
    """Libraries and their tests do so; it works on asyncio's transports."""
    async with connected() as (transport, _, far):
        written: list[bytes] = []
        transport.note = "mine"
        transport.write = written.append
        transport.write(b"x")
        assert (transport.note, written) == ("mine", [b"x"])
        del transport.write
        transport.write(b"y")
        assert await read_all(far, 1) == b"y"


# --- writing ------------------------------------------------------------------------------

WORDS = memoryview(b"".join(number.to_bytes(4, sys.byteorder) for number in range(1000)))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"bytes", id="bytes"),
        pytest.param(bytearray(b"bytearray"), id="bytearray"),
        pytest.param(memoryview(b"memoryview"), id="memoryview"),
        pytest.param(memoryview(b"part of it")[3:7], id="slice"),
        pytest.param(WORDS.cast("I"), id="wide"),
        pytest.param(WORDS.cast("B", (100, 40)), id="two-dimensional"),
    ],
)
async def test_write_takes_every_bytes_like_type(loop: Loop, data: Any) -> None:
    expected = bytes(data)
    async with connected() as (transport, _, far):
        transport.write(data)
        transport.write(b"")
        transport.write(b"|")
        assert await read_all(far, len(expected) + 1) == expected + b"|"


@pytest.mark.loops("tloop")  # asyncio ends the connection with BufferError
async def test_write_takes_a_view_with_gaps(loop: Loop) -> None:
    view = memoryview(bytes(range(200)))[::2]
    async with connected() as (transport, _, far):
        transport.write(view)
        assert await read_all(far, 100) == bytes(range(0, 200, 2))


@pytest.mark.loops("tloop")  # asyncio counts in items, not bytes, when a wide view is cut
async def test_a_large_wide_view_arrives_whole(loop: Loop) -> None:
    data = bytes(range(256)) * (8 << 12)
    async with connected() as (transport, _, far):
        transport.write(memoryview(data).cast("Q"))
        assert await read_all(far, len(data)) == data


@pytest.mark.parametrize("data", ["text", None, 1, [b"x"], object()])
async def test_write_refuses_other_types(loop: Loop, data: Any) -> None:
    async with connected() as (transport, _, far):
        with pytest.raises(TypeError, match=r"bytes-like|data argument"):
            transport.write(data)
        transport.write(b"still works")
        assert await read_all(far, 11) == b"still works"


@pytest.mark.loops("tloop")  # asyncio keeps a view of what it could not send yet
async def test_a_buffer_changed_after_write_is_sent_as_it_was(loop: Loop) -> None:
    data = bytearray(b"a" * (4 << 20))
    async with connected() as (transport, _, far):
        transport.write(data)
        assert transport.get_write_buffer_size() > 0
        data[:] = b"b" * len(data)
        del data[100:]  # not even its size is held
        assert await read_all(far, 4 << 20) == b"a" * (4 << 20)


async def test_writelines_joins_all_kinds(loop: Loop) -> None:
    pieces = [b"one ", bytearray(b"two "), memoryview(b"three "), b"", b"four"]
    async with connected() as (transport, _, far):
        transport.writelines(pieces)
        transport.writelines([])
        assert await read_all(far, 18) == b"one two three four"


async def test_writelines_takes_more_buffers_than_one_system_call(loop: Loop) -> None:
    pieces = [b"%05d" % number for number in range(5000)]
    async with connected() as (transport, _, far):
        transport.writelines(pieces)
        assert await read_all(far, 25_000) == b"".join(pieces)


async def test_writelines_takes_a_generator(loop: Loop) -> None:
    def pieces() -> Iterator[bytes]:
        for number in range(10):
            yield b"%d" % number

    async with connected() as (transport, _, far):
        transport.writelines(pieces())
        assert await read_all(far, 10) == b"0123456789"


async def test_writes_keep_their_order_when_the_socket_is_full(loop: Loop) -> None:
    pieces = [bytes([number % 251]) * 10_000 for number in range(500)]
    async with connected() as (transport, _, far):
        for number in range(0, 500, 5):
            transport.write(pieces[number])
            transport.writelines(pieces[number + 1 : number + 5])
        assert transport.get_write_buffer_size() > 0
        assert await read_all(far, 5_000_000) == b"".join(pieces)


# --- half-close ---------------------------------------------------------------------------


async def test_write_eof_half_closes(loop: Loop) -> None:
    async with connected() as (transport, protocol, far):
        assert transport.can_write_eof()
        transport.write(b"question")
        transport.write_eof()
        transport.write_eof()
        assert await read_all(far, 100) == b"question"  # ended by EOF
        far.send(b"answer")
        assert await protocol.received(6) == b"answer"
        with pytest.raises(RuntimeError, match="write_eof"):
            transport.write(b"more")


async def test_write_eof_comes_after_all_that_was_written(loop: Loop) -> None:
    data = b"x" * 5_000_000
    async with connected() as (transport, _, far):
        transport.write(data)
        assert transport.get_write_buffer_size() > 0
        transport.write_eof()
        assert await read_all(far, len(data) + 1) == data


async def test_after_eof_a_protocol_may_keep_writing(loop: Loop) -> None:
    async with connected(Recorder(keep_open_after_eof=True)) as (transport, protocol, far):
        far.shutdown(socket.SHUT_WR)
        await until(lambda: "eof" in protocol.calls)
        await turns(10)
        transport.write(b"late answer")
        assert await read_all(far, 11) == b"late answer"
        assert protocol.calls == ["made", "eof"]


async def test_after_eof_the_transport_closes_by_itself(loop: Loop) -> None:
    async with connected() as (transport, protocol, far):
        far.shutdown(socket.SHUT_WR)
        await until(lambda: protocol.lost)
        assert protocol.calls == ["made", "eof", "lost"]
        assert protocol.error is None
        assert transport.is_closing()


# --- large transfers ----------------------------------------------------------------------


class Digest(Recorder):
    """Keeps the hash of what it gets instead of the bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.hash = hashlib.sha256()
        self.count = 0

    def data_received(self, data: bytes) -> None:
        self.hash.update(data)
        self.count += len(data)


class Source(Digest):
    """Writes blocks for as long as the transport takes them, and reads at the same time."""

    def __init__(self, block: bytes, blocks: int) -> None:
        super().__init__()
        self.block, self.blocks = block, blocks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.paused = False
        self.resume_writing()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        while self.blocks and not self.paused:
            self.blocks -= 1
            self.transport.write(self.block)


async def test_fifty_megabytes_each_way_at_once(loop: Loop) -> None:
    blocks, there, back = 50, bytes(range(256)) * 4096, bytes(range(255, -1, -1)) * 4096
    accepted: list[Source] = []

    def factory() -> Source:
        accepted.append(Source(back, blocks))
        return accepted[-1]

    async with listening(factory) as address:
        transport, client = await loop.create_connection(lambda: Source(there, blocks), *address)
        await until(lambda: client.count == len(back) * blocks)
        await until(lambda: accepted[0].count == len(there) * blocks)
        transport.close()
        await until(lambda: accepted[0].lost)
    assert client.hash.digest() == hashlib.sha256(back * blocks).digest()
    assert accepted[0].hash.digest() == hashlib.sha256(there * blocks).digest()


# --- pausing the reading side ---------------------------------------------------------------


async def test_a_paused_transport_delivers_nothing(loop: Loop) -> None:
    async with connected() as (transport, protocol, far):
        transport.pause_reading()
        transport.pause_reading()
        assert not transport.is_reading()
        far.send(b"later")
        await asyncio.sleep(0.01)
        assert protocol.data == b""
        transport.resume_reading()
        transport.resume_reading()
        assert transport.is_reading()
        assert await protocol.received(5) == b"later"


async def test_pausing_in_data_received_loses_no_byte(loop: Loop) -> None:
    class Hesitant(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()
            loop.call_soon(self.transport.resume_reading)

    data = bytes(range(256)) * 8192
    async with connected(Hesitant()) as (_, protocol, far):
        sending = loop.create_task(loop.sock_sendall(far, data))
        assert await protocol.received(len(data)) == data
        await sending


async def test_eof_waits_while_reading_is_paused(loop: Loop) -> None:
    async with connected() as (transport, protocol, far):
        transport.pause_reading()
        far.send(b"last")
        far.shutdown(socket.SHUT_WR)
        await asyncio.sleep(0.01)
        assert protocol.calls == ["made"]
        transport.resume_reading()
        await until(lambda: protocol.lost)
        assert protocol.calls == ["made", "data", "eof", "lost"]


class Meddler(Recorder):
    """On its first data does something to the other connections."""

    def __init__(self, others: list[Meddler], action: str) -> None:
        super().__init__()
        self.others, self.action = others, action

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        for other in self.others:
            if other is not self:
                getattr(other.transport, self.action)()
        self.others.clear()


def the_same(protocol: Meddler) -> Meddler:
    return protocol


async def meddle(loop: Loop, action: str) -> tuple[Meddler, Meddler, list[socket.socket]]:
    """Two connections readable in the same tick; the first one called acts on the other."""
    others: list[Meddler] = []
    both = [Meddler(others, action) for _ in range(2)]
    far_sides = []
    for protocol in both:
        near, far = tcp_sockets()
        far_sides.append(far)
        await loop.create_connection(partial(the_same, protocol), sock=near)
    others += both
    for far in far_sides:
        far.send(b"ready")
    await until(lambda: not others)
    await asyncio.sleep(0.005)
    active, passive = sorted(both, key=lambda protocol: not protocol.data)
    return active, passive, far_sides


async def end(protocols: list[Any], far_sides: list[socket.socket]) -> None:
    for far in far_sides:
        far.close()
    for protocol in protocols:
        protocol.transport.abort()
    await until(lambda: all(protocol.lost for protocol in protocols))


async def test_data_is_held_back_when_the_same_tick_paused_the_transport(loop: Loop) -> None:
    active, passive, far_sides = await meddle(loop, "pause_reading")
    assert active.data == b"ready"
    assert passive.data == b""
    passive.transport.resume_reading()
    assert await passive.received(5) == b"ready"
    await end([active, passive], far_sides)


@pytest.mark.parametrize("action", ["close", "abort"])
async def test_a_callback_can_close_another_ready_connection(loop: Loop, action: str) -> None:
    active, passive, far_sides = await meddle(loop, action)
    assert active.calls == ["made", "data"]
    assert passive.calls == ["made", "lost"]
    assert passive.error is None
    await end([active, passive], far_sides)


# --- protocols ------------------------------------------------------------------------------


async def test_set_protocol_hands_the_stream_over(loop: Loop) -> None:
    second = Recorder()

    class First(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.set_protocol(second)

    async with connected(First()) as (transport, first, far):
        far.send(b"one")
        await first.received(3)
        assert transport.get_protocol() is second
        far.send(b"two")
        second.calls.append("took over")
        assert await second.received(3) == b"two"
        transport.close()
        await turns()
        assert first.calls == ["made", "data"]
        assert second.calls == ["took over", "data", "lost"]


# --- peers that break off -----------------------------------------------------------------------


async def test_a_reset_while_idle_is_reported(loop: Loop) -> None:
    async with connected() as (_, protocol, far):
        send_reset(far)
        await until(lambda: protocol.lost)
        assert protocol.calls == ["made", "lost"]
        assert isinstance(protocol.error, ConnectionResetError)


async def test_a_reset_while_writing_is_reported(loop: Loop) -> None:
    async with connected() as (transport, protocol, far):
        transport.write(b"x" * (8 << 20))
        send_reset(far)
        await until(lambda: protocol.lost)
        assert protocol.calls == ["made", "pause", "lost"]
        assert isinstance(protocol.error, ConnectionResetError | BrokenPipeError)


async def test_a_reset_while_paused_is_reported_after_resuming(loop: Loop) -> None:
    async with connected() as (transport, protocol, far):
        transport.pause_reading()
        send_reset(far)
        await turns(5)
        transport.resume_reading()
        await until(lambda: protocol.lost)
        assert protocol.calls == ["made", "lost"]
        assert isinstance(protocol.error, ConnectionResetError)


async def test_a_write_after_the_reset_ends_the_connection_once(loop: Loop) -> None:
    async with connected() as (transport, protocol, far):
        send_reset(far)
        for _ in range(3):
            transport.write(b"into the void")
        await until(lambda: protocol.lost)
        assert protocol.calls == ["made", "lost"]
        transport.write(b"more")


async def test_a_client_that_resets_before_accept_does_not_hurt(loop: Loop) -> None:
    accepted: list[Recorder] = []

    def factory() -> Recorder:
        accepted.append(Recorder())
        return accepted[-1]

    async with listening(factory) as address:
        for _ in range(5):
            send_reset(socket.create_connection(address))
        good = socket.create_connection(address)
        good.send(b"alive")
        await until(lambda: any(protocol.data == b"alive" for protocol in accepted))
        good.close()
        await until(lambda: all(protocol.lost for protocol in accepted))


@pytest.mark.parametrize("moment", range(6))
async def test_a_reset_at_any_moment_of_a_conversation(loop: Loop, moment: int) -> None:
    async with connected(Echo()) as (_, protocol, far):
        for step in range(6):
            if step == moment:
                send_reset(far)
                break
            far.send(b"x" * 100_000 if step % 2 else b"y")
            await turns(step)
        await until(lambda: protocol.lost)
        assert protocol.calls.count("lost") == 1
        assert protocol.calls[-1] == "lost"


async def test_writing_on_and_on_to_a_lost_connection_is_logged(
    loop: Loop, asyncio_log: Any
) -> None:
    async with connected() as (transport, protocol, _):
        transport.abort()
        for _ in range(5):
            transport.write(b"x")
        await until(lambda: protocol.lost)
    asyncio_log.expect("socket.send() raised exception")


# --- memory -----------------------------------------------------------------------------------


async def test_protocol_and_transport_die_with_the_connection(loop: Loop) -> None:
    """B6, B15: nothing refers to them after connection_lost, even without the collector."""
    collect()
    gc.disable()
    try:
        for broken_off in (False, True):
            near, far = tcp_sockets()
            transport, protocol = await loop.create_connection(Recorder, sock=near)
            near_gone, gone = weakref.ref(transport), weakref.ref(protocol)
            far.send(b"x")
            await protocol.received(1)
            transport.write(b"y")
            if broken_off:
                send_reset(far)
            else:
                transport.close()
            await end_of(protocol)
            far.close()
            protocol.transport = None  # the only cycle is the protocol's own
            del near, transport, protocol
            await turns(5)
            if not REFCOUNTS:
                collect()
            assert gone() is None
            if is_tloop(loop):  # asyncio's own transports are cycles
                assert near_gone() is None
    finally:
        gc.enable()


def alive(references: list[weakref.ref[Recorder]]) -> list[Recorder]:
    return [protocol for ref in references if (protocol := ref())]


async def test_protocols_of_accepted_connections_die_too(loop: Loop) -> None:
    """B6"""
    gone: list[weakref.ref[Recorder]] = []

    def factory() -> Recorder:
        protocol = Recorder()
        gone.append(weakref.ref(protocol))
        return protocol

    async with listening(factory) as address:
        for _ in range(3):
            with socket.create_connection(address):
                await until(lambda: any(ref() is not None for ref in gone))
        await until(lambda: all(protocol.lost for protocol in alive(gone)))
        await turns(5)
        collect()
        assert alive(gone) == []
    assert len(gone) == 3


def test_a_transport_left_open_warns_and_closes_its_socket(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    near, far = tcp_sockets()
    transport = loop.run_until_complete(loop.create_connection(Recorder, sock=near))[0]
    del near
    loop.close()
    with far, warnings_seen() as seen:
        far.setblocking(True)
        del transport
        collect()
        assert far.recv(1) == b""
    assert any("unclosed transport" in text for text in seen)


# --- odd moments --------------------------------------------------------------------------------


async def test_pausing_in_connection_made_holds_everything_back(loop: Loop) -> None:
    class Paused(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.pause_reading()

    async with connected(Paused()) as (transport, protocol, far):
        far.send(b"data")
        await turns(10)
        assert protocol.calls == ["made"]
        transport.resume_reading()
        assert await protocol.received(4) == b"data"


@pytest.mark.parametrize("method", ["connection_made", "connection_lost"])
async def test_a_failing_start_or_end_is_reported(loop: Loop, method: str) -> None:
    def fail(*args: object) -> None:
        protocol.calls.append(method)
        raise LookupError(method)

    contexts: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: contexts.append(context))
    protocol = Recorder()
    setattr(protocol, method, fail)
    near, far = socket.socketpair()
    with far:
        transport, _ = await loop.create_connection(lambda: protocol, sock=near)
        far.send(b"data")
        assert await protocol.received(4) == b"data"
        transport.close()
        await until(lambda: "lost" in protocol.calls or method in protocol.calls)
        await turns(3)
    [context] = contexts
    assert isinstance(context["exception"], LookupError)
    assert isinstance(context["handle"], asyncio.Handle)
    assert context["message"].startswith("Exception in callback ")


@pytest.mark.parametrize("action", ["close", "abort"])
async def test_ending_inside_pause_writing(loop: Loop, action: str) -> None:
    class Ending(Recorder):
        def pause_writing(self) -> None:
            super().pause_writing()
            getattr(self.transport, action)()

    async with connected(Ending()) as (transport, protocol, far):
        transport.write(b"x" * (1 << 20))
        assert transport.is_closing()
        if action == "close":
            assert len(await read_all(far, 1 << 20)) == 1 << 20
        await until(lambda: protocol.lost)
        assert protocol.calls[:2] == ["made", "pause"]
        assert protocol.calls.count("lost") == 1


async def test_writing_in_connection_made(loop: Loop) -> None:
    class Greeting(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.write(b"hello")
            self.transport.write_eof()

    async with connected(Greeting()) as (_, _, far):
        assert await read_all(far, 100) == b"hello"


@pytest.mark.parametrize("action", ["pause_reading", "resume_reading", "write_eof"])
async def test_late_calls_on_an_ended_transport_are_harmless(loop: Loop, action: str) -> None:
    async with connected() as (transport, protocol, _):
        transport.abort()
        getattr(transport, action)()
        await until(lambda: protocol.lost)
        getattr(transport, action)()
        assert transport.get_write_buffer_size() == 0
        assert protocol.calls == ["made", "lost"]


async def test_a_blocking_socket_is_made_non_blocking(loop: Loop) -> None:
    near, far = tcp_sockets()
    near.setblocking(True)
    with far:
        transport, protocol = await loop.create_connection(Recorder, sock=near)
        assert near.gettimeout() == 0
        transport.abort()
        await until(lambda: protocol.lost)


async def test_the_socket_of_an_ended_transport_is_closed(loop: Loop) -> None:
    async with connected() as (transport, protocol, _):
        sock = transport.get_extra_info("socket")
        transport.abort()
        await until(lambda: protocol.lost)
        await turns()
        assert sock.fileno() == -1


async def test_a_proxy_between_two_connections(loop: Loop) -> None:
    class Forwarding(Recorder):
        other: Any = None

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.other.transport.write(data)

        def eof_received(self) -> bool | None:
            self.other.transport.write_eof()
            return True

    data = bytes(range(256)) * 1000
    async with (
        connected(Forwarding()) as (_, left, left_far),
        connected(Forwarding()) as (_, right, right_far),
    ):
        left.other, right.other = right, left
        sending = loop.create_task(loop.sock_sendall(left_far, data))
        assert await read_all(right_far, len(data)) == data
        await sending
        left_far.shutdown(socket.SHUT_WR)
        assert await read_all(right_far, 1) == b""


async def test_asking_for_the_socket_leaves_it_non_blocking(loop: Loop) -> None:
    accepted: list[Recorder] = []

    def factory() -> Recorder:
        accepted.append(Recorder())
        return accepted[-1]

    async with listening(factory) as address:
        transport, client = await loop.create_connection(Recorder, *address)
        await until(lambda: accepted and accepted[0].transport)
        sock = accepted[0].transport.get_extra_info("socket")
        assert not os.get_blocking(sock.fileno())
        transport.close()
        await end_of(client, accepted[0])
