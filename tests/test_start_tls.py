"""Plain connections that turn to TLS in their middle, TLS connections that do so again."""

from __future__ import annotations

import asyncio
import ssl
import sys
from typing import Any

import pytest
from conftest import AsyncioLog
from loopkit import (
    Echo,
    Loop,
    Recorder,
    connected,
    end_of,
    listening,
    read_all,
    tcp_sockets,
    turns,
    until,
)
from serverkit import Accepted, serve
from tlskit import (
    NAME,
    PEER_CALLS,
    PEER_SERVES,
    Peer,
    client_context,
    hung_up,
    server_context,
    tls_connected,
)

pytestmark = pytest.mark.usefixtures("loop")


class Upgrading(Recorder):
    """Answers the first line, then turns to TLS and echoes."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        super().__init__()
        self.tls = tls
        self.inner = Echo()
        self.upgrade: asyncio.Task[None] | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(b"go ahead")
        self.upgrade = asyncio.get_running_loop().create_task(self.start_tls())

    async def start_tls(self) -> None:
        loop = asyncio.get_running_loop()
        transport = await loop.start_tls(self.transport, self.inner, self.tls, server_side=True)
        assert transport is not None
        self.inner.connection_made(transport)
        transport.write(b"welcome")  # from now on we are ready to answer


async def secure(transport: Any, context: ssl.SSLContext, **options: Any) -> tuple[Any, Recorder]:
    """Turn a client's transport to TLS: the new transport and its protocol."""
    inner = Recorder()
    loop = asyncio.get_running_loop()
    outer = await loop.start_tls(transport, inner, context, server_hostname=NAME, **options)
    inner.connection_made(outer)  # type: ignore[arg-type]
    return outer, inner


# -- transports ------------------------------------------------------------------------------------


async def test_start_tls_upgrades_both_sides(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    servers: list[Upgrading] = []

    def factory() -> Upgrading:
        servers.append(Upgrading(server_tls))
        return servers[-1]

    async with listening(factory) as address:
        plain, client = await loop.create_connection(Recorder, *address)
        plain.write(b"start tls, please")
        assert await client.received(8) == b"go ahead"
        transport, inner = await secure(plain, client_tls)
        await inner.received(7)
        transport.write(b"secret" * 10_000)
        assert await inner.received(60_007) == b"welcome" + b"secret" * 10_000
        assert transport.get_extra_info("peercert")
        assert transport.get_extra_info("peername") == address
        transport.close()
        await end_of(inner, servers[0].inner)
        assert servers[0].upgrade is not None
        await servers[0].upgrade
    assert client.calls == ["made", "data"]  # it has nothing to do with it any more
    assert servers[0].calls == ["made", "data"]


async def test_start_tls_when_the_server_has_closed(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    accepted = Accepted(Recorder)
    server = await serve(loop, accepted)
    plain, _ = await loop.create_connection(Recorder, *server.sockets[0].getsockname())
    await until(accepted.ready)
    server.close()
    waiting = loop.create_task(server.wait_closed())
    inner = Echo()
    upgrade = loop.create_task(
        loop.start_tls(accepted.made[0].transport, inner, server_tls, server_side=True)
    )
    transport, client = await secure(plain, client_tls)
    inner.connection_made(await upgrade)  # type: ignore[arg-type]
    transport.write(b"secret")
    assert await client.received(6) == b"secret"
    assert waiting.done() == (sys.version_info < (3, 12))  # which did not wait for connections
    transport.close()
    await end_of(client, inner)
    await waiting


@PEER_SERVES
async def test_the_protocol_is_not_told_of_a_new_connection(
    loop: Loop, engine: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """It is up to the caller; the old protocol may be the new one."""
    async with connected() as (plain, client, far):
        peer = Peer(far, server_tls, server_side=True)
        transport: Any
        transport, _ = await asyncio.gather(
            loop.start_tls(plain, client, client_tls, server_hostname=NAME), peer.handshake()
        )
        assert client.calls == ["made"]
        assert client.transport is plain
        await peer.write(b"hello")
        assert await client.received(5) == b"hello"
        transport.write(b"x" * 100_000)
        assert await peer.read(100_000) == b"x" * 100_000
        far.close()
        await end_of(client)
        assert hung_up(client, engine)


@PEER_CALLS
@pytest.mark.parametrize("piece", [1, 1 << 18])
async def test_a_handshake_that_has_come_already(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, piece: int
) -> None:
    """The client did not wait for us: its hello lies in the kernel, or comes in the same tick."""
    async with connected() as (plain, _, far):
        plain.pause_reading()
        peer = Peer(far, client_tls, server_hostname=NAME)
        peer.piece = piece
        greeting = loop.create_task(peer.handshake())
        await turns(20)
        plain.resume_reading()
        inner = Echo()
        transport: Any = await loop.start_tls(plain, inner, server_tls, server_side=True)
        inner.connection_made(transport)
        await greeting
        await peer.write(b"hello")
        assert await peer.read(5) == b"hello"
        far.close()
        await end_of(inner)


@PEER_CALLS
async def test_what_was_received_before_stays_with_the_old_protocol(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """start_tls in data_received, behind which the first record follows in a segment of its own."""
    upgrades: list[asyncio.Task[Any]] = []
    inner = Echo()

    class Eager(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            upgrades.append(
                loop.create_task(
                    loop.start_tls(self.transport, inner, server_tls, server_side=True)
                )
            )
            self.transport.pause_reading()  # until the task runs

    async with connected(Eager()) as (_, outer, far):
        far.send(b"STARTTLS")
        await until(lambda: upgrades)
        peer = Peer(far, client_tls, server_hostname=NAME)
        handshake = loop.create_task(peer.handshake())
        await turns(1)
        outer.transport.resume_reading()
        inner.connection_made(await upgrades[0])
        await handshake
        await peer.write(b"hello")
        assert await peer.read(5) == b"hello"
        assert outer.data == b"STARTTLS"
        far.close()
        await end_of(inner)


@PEER_SERVES
@pytest.mark.parametrize("paused", [False, True])
async def test_what_was_written_before_goes_out_first(
    loop: Loop,
    engine: str,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    asyncio_log: AsyncioLog,
    paused: bool,
) -> None:
    """Plain bytes that the kernel did not take yet are not overtaken by the handshake."""
    async with connected() as (plain, client, far):
        total = 0
        while not (client.calls[-1] == "pause" if paused else plain.get_write_buffer_size()):
            plain.write(b"p" * 10_000)
            total += 10_000
        upgrading = loop.create_task(secure(plain, client_tls))
        received = await read_all(far, total)
        assert received[:total] == b"p" * total
        peer = Peer(far, server_tls, server_side=True)
        peer.incoming.write(received[total:])
        await peer.handshake()
        transport, inner = await upgrading
        await peer.write(b"hello")
        assert await inner.received(5) == b"hello"
        transport.abort()
        await end_of(inner)
    # asyncio's TLS takes over in the middle, and is surprised: nothing is lost by it
    if paused and engine == "ssl":
        asyncio_log.expect("protocol.resume_writing() failed")


@PEER_SERVES
async def test_a_paused_transport_is_resumed(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with connected() as (plain, _, far):
        plain.pause_reading()
        peer = Peer(far, server_tls, server_side=True)
        (transport, inner), _ = await asyncio.gather(secure(plain, client_tls), peer.handshake())
        await peer.write(b"hello")
        assert await inner.received(5) == b"hello"
        transport.abort()
        await end_of(inner)


@pytest.mark.parametrize("context", [True, None, "context", 1])
async def test_start_tls_wants_a_context(loop: Loop, context: Any) -> None:
    async with connected() as (transport, client, _):
        with pytest.raises(TypeError, match="SSLContext"):
            await loop.start_tls(transport, client, context)
        assert not transport.is_closing()


async def test_not_every_transport_can_be_upgraded(loop: Loop, client_tls: ssl.SSLContext) -> None:
    transport, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
    )
    for other in (transport, asyncio.Transport(), None):
        with pytest.raises(TypeError, match=r"not supported by start_tls\(\)"):
            await loop.start_tls(other, Recorder(), client_tls)  # type: ignore[arg-type]
    transport.abort()
    await turns()


@pytest.mark.parametrize("name", ["ssl_handshake_timeout", "ssl_shutdown_timeout"])
@pytest.mark.parametrize("value", [0, -1])
async def test_time_outs_are_positive(
    loop: Loop, client_tls: ssl.SSLContext, name: str, value: int
) -> None:
    async with connected() as (transport, client, _):
        timeout: Any = {name: value}
        with pytest.raises(ValueError, match=f"{name} should be a positive number"):
            await loop.start_tls(transport, client, client_tls, **timeout)
        assert transport.get_protocol() is client
        assert not transport.is_closing()


async def test_a_handshake_that_takes_too_long(loop: Loop, client_tls: ssl.SSLContext) -> None:
    async with connected() as (plain, client, _):
        with pytest.raises(ConnectionAbortedError, match=r"taking longer than 0\.01 seconds"):
            await secure(plain, client_tls, ssl_handshake_timeout=0.01)
        assert plain.is_closing()
        await turns()
        assert client.calls == ["made"]


@PEER_SERVES
async def test_a_refused_certificate_closes_the_connection(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with connected() as (plain, client, far):
        peer = Peer(far, server_tls, server_side=True)
        handshake = loop.create_task(peer.handshake())
        with pytest.raises(ssl.SSLCertVerificationError):
            await secure(plain, type(client_tls)(ssl.PROTOCOL_TLS_CLIENT))
        assert plain.is_closing()
        handshake.cancel()
        await turns()
        assert client.calls == ["made"]


async def test_plain_text_fails_the_handshake(loop: Loop, client_tls: ssl.SSLContext) -> None:
    async with connected() as (plain, _, far):
        far.send(b"this is no TLS record, not by far")
        with pytest.raises(ssl.SSLError):
            await secure(plain, client_tls)
        assert plain.is_closing()
        await turns()


async def test_a_peer_that_leaves_fails_the_handshake(
    loop: Loop, client_tls: ssl.SSLContext
) -> None:
    async with connected() as (plain, _, far):
        far.close()
        with pytest.raises(ConnectionResetError):
            await secure(plain, client_tls)
        await turns()


@pytest.mark.parametrize("rounds", [0, 1, 2, 20])
async def test_cancelling_an_upgrade_closes_the_connection(
    loop: Loop, client_tls: ssl.SSLContext, rounds: int
) -> None:
    async with connected() as (plain, client, _):
        upgrading = loop.create_task(secure(plain, client_tls))
        await turns(1 + rounds)
        upgrading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upgrading
        assert plain.is_closing()
        await turns(10)
        assert client.calls == ["made"]


# -- streams ---------------------------------------------------------------------------------------


async def test_stream_writers_start_tls(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"ready\n")
        await writer.drain()
        assert writer.get_extra_info("ssl_object") is None
        await writer.start_tls(server_tls)
        assert writer.get_extra_info("sslcontext") is server_tls
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"STARTTLS\n")
    assert await reader.readline() == b"ready\n"
    plain = writer.transport
    await writer.start_tls(client_tls, server_hostname=NAME)
    assert writer.transport is not plain
    assert writer.get_extra_info("peercert")
    writer.write(b"hello\n")
    assert await reader.readline() == b"HELLO\n"
    writer.close()
    await writer.wait_closed()
    server.close()
    await turns(10)


@pytest.mark.loops("tloop")  # asyncio waits for ever before 3.14.3
async def test_a_hello_that_the_stream_reader_has_received_is_not_lost(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await until(lambda: reader._buffer)  # type: ignore[attr-defined]
        await writer.start_tls(server_tls)
        writer.write(await reader.readline())
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    await writer.start_tls(client_tls, server_hostname=NAME)
    writer.write(b"hello\n")
    assert await reader.readline() == b"hello\n"
    writer.close()
    await writer.wait_closed()
    server.close()
    await turns(10)


@PEER_SERVES
async def test_what_a_reader_holds_stays_readable(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """Plain lines not read yet come before the first secret one."""
    near, far = tcp_sockets()
    with far:
        reader, writer = await asyncio.open_connection(sock=near)
        far.send(b"plain 1\nplain 2\n")
        assert await reader.readline() == b"plain 1\n"
        peer = Peer(far, server_tls, server_side=True)
        await asyncio.gather(writer.start_tls(client_tls, server_hostname=NAME), peer.handshake())
        await peer.write(b"secret\n")
        assert await reader.readline() == b"plain 2\n"
        assert await reader.readline() == b"secret\n"
        writer.write(b"x" * 300_000)
        draining = loop.create_task(writer.drain())
        assert await peer.read(300_000) == b"x" * 300_000
        await draining
        writer.close()
        await peer.close_notify()
        await writer.wait_closed()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="arguments that are new in Python 3.12")
async def test_stream_writers_have_time_outs(loop: Loop, client_tls: ssl.SSLContext) -> None:
    near, far = tcp_sockets()
    with far:
        _, writer = await asyncio.open_connection(sock=near)
        for name in ("ssl_handshake_timeout", "ssl_shutdown_timeout"):
            timeout: Any = {name: 0}
            with pytest.raises(ValueError, match=f"{name} should be a positive number"):
                await writer.start_tls(client_tls, server_hostname=NAME, **timeout)
        with pytest.raises(ConnectionAbortedError, match="taking longer"):
            await writer.start_tls(
                client_tls,
                server_hostname=NAME,
                ssl_handshake_timeout=0.01,
            )
        await turns()
        assert writer.transport.is_closing()


# -- TLS in TLS ------------------------------------------------------------------------------------


async def test_tls_in_tls(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    servers: list[Upgrading] = []

    def factory() -> Upgrading:
        servers.append(Upgrading(server_context()))
        return servers[-1]

    async with listening(factory, ssl=server_tls) as address:
        outer, client = await loop.create_connection(
            Recorder, *address, ssl=client_tls, server_hostname=NAME
        )
        outer.write(b"again")
        assert await client.received(8) == b"go ahead"
        transport, inner = await secure(outer, client_context())
        await inner.received(7)
        transport.write(b", deep")
        assert await inner.received(13) == b"welcome, deep"
        transport.close()
        await end_of(inner, servers[0].inner)
        await turns(20)


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An HTTP proxy that can do one thing: CONNECT."""
    method, target, _ = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)
    assert method == b"CONNECT"
    host, _, port = target.decode().partition(":")
    far_reader, far_writer = await asyncio.open_connection(host, int(port))
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    await asyncio.gather(
        relay(reader, far_writer), relay(far_reader, writer), return_exceptions=True
    )
    for side in (writer, far_writer):
        side.close()
        await asyncio.gather(side.wait_closed(), return_exceptions=True)


async def test_through_the_tunnel_of_a_tls_proxy(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """TLS to the proxy, CONNECT, and TLS to the origin within it, as HTTP clients do it."""
    tunnel = await asyncio.start_server(proxy, "127.0.0.1", 0, ssl=server_tls)
    async with listening(Echo, ssl=server_tls) as (host, port):
        reader, writer = await asyncio.open_connection(
            *tunnel.sockets[0].getsockname(), ssl=client_tls, server_hostname=NAME
        )
        writer.write(b"CONNECT %s:%d HTTP/1.1\r\n\r\n" % (host.encode(), port))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        outer = writer.get_extra_info("ssl_object")
        await writer.start_tls(client_context(), server_hostname=NAME)
        assert writer.get_extra_info("ssl_object") is not outer
        assert writer.get_extra_info("peername") == tunnel.sockets[0].getsockname()
        data = bytes(range(256)) * 4000
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        writer.close()
        await writer.wait_closed()
        await turns(30)
    tunnel.close()
    await until(lambda: len(asyncio.all_tasks()) == 1)


class InnerPeer(Peer):
    """The far end of TLS in TLS: its records travel in those of another peer."""

    def __init__(self, outer: Peer, context: ssl.SSLContext) -> None:
        super().__init__(outer.sock, context, server_side=True)
        self.outer = outer

    async def send(self, records: bytes) -> None:
        if records:
            await self.outer.write(records)

    async def receive(self) -> None:
        self.incoming.write(await self.outer.read_some())


async def test_the_end_of_the_outer_one_is_the_end_of_the_inner_one(
    loop: Loop, engine: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_connected(server_tls, client_tls) as (outer, client, peer):
        deep = InnerPeer(peer, server_tls)
        (transport, inner), _ = await asyncio.gather(
            secure(outer, client_context()), deep.handshake()
        )
        await deep.write(b"hello")
        assert await inner.received(5) == b"hello"
        peer.sock.close()
        await end_of(inner)
        assert transport.is_closing()
        assert outer.is_closing()
        assert hung_up(inner, engine)
        client.calls.append("lost")  # it is not the one who is told


async def test_closing_the_inner_one_closes_the_outer_one(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_connected(server_tls, client_tls) as (outer, client, peer):
        deep = InnerPeer(peer, server_tls)
        (transport, inner), _ = await asyncio.gather(
            secure(outer, client_context()), deep.handshake()
        )
        transport.write(b"x" * 500_000)
        transport.close()
        assert await deep.read(500_000) == b"x" * 500_000
        await deep.close_notify()
        await peer.close_notify()
        await end_of(inner)
        assert outer.is_closing()
        assert inner.error is None
        client.calls.append("lost")  # it is not the one who is told


async def test_upgrading_after_the_end(loop: Loop, client_tls: ssl.SSLContext) -> None:
    """asyncio answers None when the connection ends on the way."""
    async with connected() as (plain, _, _):
        plain.close()
        assert await loop.start_tls(plain, Recorder(), client_tls, server_hostname=NAME) is None
