"""TLS through the interpreter's own ssl module: any ssl.SSLContext works on the loop."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from loopkit import HERE, Echo, Loop, Recorder, listening, turns, until, warnings_seen

pytestmark = pytest.mark.usefixtures("loop")

NAME = "server.example"
CERTIFICATES = HERE / "tls"  # made by tls/make_certificates.py


def trust_authority(context: ssl.SSLContext) -> None:
    context.load_verify_locations(CERTIFICATES / "authority.pem")


@pytest.fixture
def server_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / "server.pem")
    return context


@pytest.fixture
def client_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust_authority(context)
    return context


@asynccontextmanager
async def tls_pair(
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    factory: Callable[[], Recorder] = Echo,
) -> AsyncIterator[tuple[Any, Any, Any]]:
    """A client transport, its protocol, and the server's protocol."""
    loop = asyncio.get_running_loop()
    accepted: list[Recorder] = []

    def accept() -> Recorder:
        accepted.append(factory())
        return accepted[-1]

    async with listening(accept, ssl=server_tls) as address:
        transport, client = await loop.create_connection(
            Recorder, *address, ssl=client_tls, server_hostname=NAME
        )
        await until(lambda: accepted and accepted[0].transport)
        try:
            yield transport, client, accepted[0]
        finally:
            transport.abort()
            accepted[0].transport.abort()
            await until(lambda: client.lost and accepted[0].lost)
            await turns(10)


async def test_echo_over_tls(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_pair(server_tls, client_tls) as (transport, client, server):
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"hello")
        assert await client.received(5) == b"hello"
        transport.close()
        await until(lambda: client.lost and server.lost)
        for protocol in (client, server):  # the peer's close_notify may be seen, as EOF
            assert protocol.calls in (["made", "data", "lost"], ["made", "data", "eof", "lost"])
        assert client.error is None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_extra_info_describes_the_session(
    loop: Loop,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    version: ssl.TLSVersion,
) -> None:
    client_tls.minimum_version = client_tls.maximum_version = version
    async with tls_pair(server_tls, client_tls) as (transport, client, _):
        transport.write(b"x")
        await client.received(1)
        assert isinstance(transport.get_extra_info("ssl_object"), ssl.SSLObject)
        assert transport.get_extra_info("ssl_object").version() == version.name.replace("_", ".")
        assert transport.get_extra_info("sslcontext") is client_tls
        assert transport.get_extra_info("cipher")[2] >= 128
        assert transport.get_extra_info("compression") is None
        names = transport.get_extra_info("peercert")["subjectAltName"]
        assert ("DNS", NAME) in names
        assert transport.get_extra_info("peername")
        assert isinstance(transport.get_extra_info("socket"), asyncio.trsock.TransportSocket)


async def test_alpn_is_negotiated(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    server_tls.set_alpn_protocols(["h2", "http/1.1"])
    client_tls.set_alpn_protocols(["http/1.1"])
    async with tls_pair(server_tls, client_tls) as (transport, _, server):
        for side in (transport, server.transport):
            assert side.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"


async def test_streams_over_tls(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_tls)
    reader, writer = await asyncio.open_connection(
        *server.sockets[0].getsockname(), ssl=client_tls, server_hostname=NAME
    )
    writer.write(b"hello\n")
    assert await reader.read() == b"HELLO\n"
    writer.close()
    await writer.wait_closed()
    server.close()
    await turns(10)


async def test_a_large_transfer_both_ways(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    block = bytes(range(256)) * 256
    async with tls_pair(server_tls, client_tls) as (transport, client, _):
        for _ in range(80):
            transport.write(block)
        received = await client.received(80 * len(block))
        assert hashlib.sha256(received).digest() == hashlib.sha256(block * 80).digest()


async def test_writes_are_flow_controlled(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_pair(server_tls, client_tls, Recorder) as (transport, client, server):
        server.transport.pause_reading()
        for _ in range(100):
            transport.write(b"x" * 100_000)
        await until(lambda: "pause" in client.calls)
        server.transport.resume_reading()
        await server.received(10_000_000)
        await until(lambda: client.calls[-1] == "resume")


async def test_close_sends_all_that_was_written(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_pair(server_tls, client_tls, Recorder) as (transport, client, server):
        transport.write(b"x" * 2_000_000)
        transport.close()
        await until(lambda: server.lost and client.lost)
        assert server.data == b"x" * 2_000_000
        assert server.calls == ["made", "data", "eof", "lost"]
        assert client.error is None


async def test_abort_ends_at_once(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_pair(server_tls, client_tls, Recorder) as (transport, client, server):
        transport.abort()
        await until(lambda: server.lost and client.lost)
        assert client.calls == ["made", "lost"]


async def test_an_untrusted_certificate_is_refused(loop: Loop, server_tls: ssl.SSLContext) -> None:
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    async with listening(Recorder, ssl=server_tls) as address:
        with pytest.raises(ssl.SSLCertVerificationError):
            await loop.create_connection(Recorder, *address, ssl=stranger, server_hostname=NAME)
        await turns(20)


async def test_a_certificate_for_another_name_is_refused(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with listening(Recorder, ssl=server_tls) as address:
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            await loop.create_connection(
                Recorder, *address, ssl=client_tls, server_hostname="other.example"
            )
        await turns(20)


async def test_client_certificates_are_asked_for_and_shown(
    loop: Loop,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> None:
    server_tls.verify_mode = ssl.CERT_REQUIRED
    trust_authority(server_tls)
    client_tls.load_cert_chain(CERTIFICATES / "client.pem")
    async with tls_pair(server_tls, client_tls) as (_, _, server):
        names = server.transport.get_extra_info("peercert")["subjectAltName"]
        assert names == (("DNS", "client.example"),)


async def test_the_server_chooses_by_name(
    loop: Loop,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> None:
    asked: list[str | None] = []

    def choose(_: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> None:
        asked.append(name)

    server_tls.sni_callback = choose
    async with tls_pair(server_tls, client_tls):
        assert asked == [NAME]


async def test_a_peer_that_does_not_speak_tls_fails_the_handshake(
    loop: Loop, client_tls: ssl.SSLContext
) -> None:
    class Rude(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.write(b"this is no TLS record, not by far")

    async with listening(Rude) as address:
        with pytest.raises(ssl.SSLError):
            await loop.create_connection(Recorder, *address, ssl=client_tls, server_hostname=NAME)
        await turns(20)


async def test_a_peer_that_hangs_up_fails_the_handshake(
    loop: Loop, client_tls: ssl.SSLContext
) -> None:
    class Short(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.close()

    async with listening(Short) as address:
        with pytest.raises(ConnectionError):
            await loop.create_connection(Recorder, *address, ssl=client_tls, server_hostname=NAME)
        await turns(20)


async def test_the_handshake_times_out(loop: Loop, client_tls: ssl.SSLContext) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(ConnectionAbortedError, match="handshake is taking longer"):
            await loop.create_connection(
                Recorder,
                *silent.getsockname(),
                ssl=client_tls,
                server_hostname=NAME,
                ssl_handshake_timeout=0.01,
            )
        await turns(10)


async def test_cancelling_a_handshake_leaves_nothing(
    loop: Loop, client_tls: ssl.SSLContext
) -> None:
    """B4"""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connecting = loop.create_task(
            loop.create_connection(
                Recorder, *silent.getsockname(), ssl=client_tls, server_hostname=NAME
            )
        )
        far, _ = await loop.run_in_executor(None, silent.accept)
        with far:
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            await turns(10)


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
        inner = Recorder()
        transport: Any = await loop.start_tls(plain, inner, client_tls, server_hostname=NAME)
        inner.connection_made(transport)
        await inner.received(7)
        transport.write(b"secret" * 10_000)
        assert await inner.received(60_007) == b"welcome" + b"secret" * 10_000
        assert transport.get_extra_info("peercert")
        transport.close()
        await until(lambda: inner.lost and servers[0].inner.lost)
        assert servers[0].upgrade is not None
        await servers[0].upgrade


async def test_stream_writers_start_tls(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"ready\n")
        await writer.drain()
        await writer.start_tls(server_tls)
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"STARTTLS\n")
    assert await reader.readline() == b"ready\n"
    await writer.start_tls(client_tls, server_hostname=NAME)
    writer.write(b"hello\n")
    assert await reader.readline() == b"HELLO\n"
    writer.close()
    await writer.wait_closed()
    server.close()
    await turns(10)


async def test_start_tls_wants_a_context(loop: Loop) -> None:
    async with listening(Recorder) as address:
        transport, client = await loop.create_connection(Recorder, *address)
        with pytest.raises(TypeError, match="SSLContext"):
            await loop.start_tls(transport, client, True)  # type: ignore[arg-type]
        transport.abort()
        await until(lambda: client.lost)
        await turns(10)


async def test_tls_in_tls(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    servers: list[Upgrading] = []

    def factory() -> Upgrading:
        servers.append(Upgrading(server_tls))
        return servers[-1]

    async with listening(factory, ssl=server_tls) as address:
        outer, client = await loop.create_connection(
            Recorder, *address, ssl=client_tls, server_hostname=NAME
        )
        outer.write(b"again")
        assert await client.received(8) == b"go ahead"
        inner = Recorder()
        transport: Any = await loop.start_tls(outer, inner, client_tls, server_hostname=NAME)
        inner.connection_made(transport)
        await inner.received(7)
        transport.write(b", deep")
        assert await inner.received(13) == b"welcome, deep"
        transport.close()
        await until(lambda: inner.lost and servers[0].inner.lost)
        await turns(20)


async def test_tls_over_unix_sockets(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    echoes: list[Echo] = []

    def factory() -> Echo:
        echoes.append(Echo())
        return echoes[-1]

    with tempfile.TemporaryDirectory(prefix="tl-") as folder:
        path = str(Path(folder) / "sock")
        server = await loop.create_unix_server(factory, path, ssl=server_tls)
        transport, client = await loop.create_unix_connection(
            Recorder, path, ssl=client_tls, server_hostname=NAME
        )
        transport.write(b"hello")
        assert await client.received(5) == b"hello"
        transport.close()
        await until(lambda: client.lost and echoes[0].lost)
        server.close()
        await turns(10)


@pytest.mark.parametrize("ssl_argument", ["text", 1])
async def test_what_is_no_context_is_refused(loop: Loop, ssl_argument: Any) -> None:
    async with listening(Recorder) as address:
        with warnings_seen(), pytest.raises((TypeError, AttributeError)):
            await loop.create_connection(Recorder, *address, ssl=ssl_argument, server_hostname=NAME)
        await turns(20)
    with pytest.raises(TypeError, match="SSLContext"):
        await loop.create_server(Recorder, "127.0.0.1", 0, ssl=True)
