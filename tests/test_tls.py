"""TLS through the interpreter's own ssl module: connecting, names, what is known of a session.

Any ssl.SSLContext works on the loop. Certificates, flow of data, ends of connections and upgrades
have files of their own: test_tls_*.py, test_start_tls.py.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from loopkit import Echo, Loop, Recorder, end_of, listening, turns, until, warnings_seen
from serverkit import Accepted
from tlskit import CLIENT_NAME, NAME, PEER_CALLS, VERSIONS, Peer, only, server_context, tls_pair

pytestmark = pytest.mark.usefixtures("loop")


async def test_echo_over_tls(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_pair(server_tls, client_tls) as (transport, client, server):
        transport.write(b"hello")
        assert await client.received(5) == b"hello"
        transport.close()
        await end_of(client, server)
        for protocol in (client, server):  # the peer's close_notify may be seen, as EOF
            assert protocol.calls in (["made", "data", "lost"], ["made", "data", "eof", "lost"])
        assert client.error is None


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


async def test_a_connected_socket_is_secured(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with listening(Echo, ssl=server_tls) as address:
        transport, client = await loop.create_connection(
            Recorder, sock=socket.create_connection(address), ssl=client_tls, server_hostname=NAME
        )
        transport.write(b"hello")
        assert await client.received(5) == b"hello"
        transport.close()
        await end_of(client)
        await turns(10)


@PEER_CALLS
async def test_an_accepted_socket_is_secured(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    with far:
        far.setblocking(False)
        peer = Peer(far, client_tls, server_hostname=NAME)
        (transport, echo), _ = await asyncio.gather(
            loop.connect_accepted_socket(Echo, near, ssl=server_tls), peer.handshake()
        )
        await peer.write(b"hello")
        assert await peer.read(5) == b"hello"
        assert transport.get_extra_info("sslcontext") is server_tls
        transport.close()
        await peer.close_notify()
        await end_of(echo)


async def test_tls_over_unix_sockets(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    accepted = Accepted()
    with tempfile.TemporaryDirectory(prefix="tl-") as folder:
        path = str(Path(folder) / "sock")
        server = await loop.create_unix_server(accepted, path, ssl=server_tls)
        transport, client = await loop.create_unix_connection(
            Recorder, path, ssl=client_tls, server_hostname=NAME
        )
        transport.write(b"hello" * 200_000)
        assert await client.received(1_000_000) == b"hello" * 200_000
        assert transport.get_extra_info("peername") == path
        assert ("DNS", NAME) in transport.get_extra_info("peercert")["subjectAltName"]
        assert accepted.made[0].transport.get_extra_info("sockname") == path
        transport.close()
        await end_of(client, *accepted.made)
        server.close()
        await turns(10)


# -- what is known of a session --------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_extra_info_describes_the_session(
    loop: Loop,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    version: ssl.TLSVersion,
) -> None:
    only(version, client_tls)
    async with tls_pair(server_tls, client_tls) as (transport, client, server):
        transport.write(b"x")
        await client.received(1)
        for side, context in ((transport, client_tls), (server.transport, server_tls)):
            assert isinstance(side, asyncio.Transport)
            ask = side.get_extra_info
            assert ask("ssl_object").server_side is (side is server.transport)
            assert ask("ssl_object").server_hostname == (NAME if side is transport else None)
            assert ask("ssl_object").context is context
            assert ask("ssl_object").version() == version.name.replace("_", ".")
            assert ask("sslcontext") is context
            assert ask("cipher") == ask("ssl_object").cipher()
            assert ask("cipher")[2] >= 128
            assert ask("compression", "unknown") is None
            assert isinstance(ask("socket"), asyncio.trsock.TransportSocket)
            assert ask("no such thing") is None
            assert ask("no such thing", 1) == 1
        assert ("DNS", NAME) in transport.get_extra_info("peercert")["subjectAltName"]
        assert not server.transport.get_extra_info("peercert")
        for name, other in (("peername", "sockname"), ("sockname", "peername")):
            assert transport.get_extra_info(name) == server.transport.get_extra_info(other)


async def test_what_is_known_after_the_end(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """The session is still told, the connection no more."""
    async with tls_pair(server_tls, client_tls) as (transport, client, _):
        transport.close()
        assert transport.get_extra_info("peername")
        await end_of(client)
        for name in ("peercert", "cipher", "ssl_object"):
            assert transport.get_extra_info(name)
        assert transport.get_extra_info("sslcontext") is client_tls
        for name in ("socket", "peername", "sockname"):
            assert transport.get_extra_info(name, "gone") == "gone"


@pytest.mark.parametrize(
    ("offered", "supported", "selected"),
    [
        (["http/1.1"], ["h2", "http/1.1"], "http/1.1"),
        (["http/1.1", "h2"], ["h2", "http/1.1"], "h2"),  # the server's order counts
        (["http/1.1"], ["h2"], None),
        ([], ["h2"], None),
    ],
)
async def test_alpn_is_negotiated(
    loop: Loop,
    engine: str,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    offered: list[str],
    supported: list[str],
    selected: str | None,
) -> None:
    server_tls.set_alpn_protocols(supported)
    if offered:
        client_tls.set_alpn_protocols(offered)
    if offered and selected is None and engine in ("server", "both"):  # RFC 7301 has it so
        async with listening(Recorder, ssl=server_tls) as address:
            with pytest.raises(ssl.SSLError, match="no application protocol"):
                await loop.create_connection(
                    Recorder, *address, ssl=client_tls, server_hostname=NAME
                )
            await turns(20)
        return
    async with tls_pair(server_tls, client_tls) as (transport, _, server):
        for side in (transport, server.transport):
            assert side.get_extra_info("ssl_object").selected_alpn_protocol() == selected


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_version_both_have_is_spoken(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    only(version, server_tls)
    async with tls_pair(server_tls, client_tls) as (transport, client, server):
        transport.write(b"x")
        await client.received(1)
        for side in (transport, server.transport):
            spoken = side.get_extra_info("ssl_object").version()
            assert spoken == version.name.replace("_", ".")


async def test_versions_without_overlap_are_refused(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    only(VERSIONS[0], server_tls)
    only(VERSIONS[1], client_tls)
    async with listening(Recorder, ssl=server_tls) as address:
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await loop.create_connection(Recorder, *address, ssl=client_tls, server_hostname=NAME)
        await turns(20)


# -- names -----------------------------------------------------------------------------------------


async def test_the_server_hears_the_name_and_chooses_the_certificate(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    other = server_context("client.pem", type(server_tls))
    asked: list[tuple[str | None, bool]] = []

    def choose(tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        asked.append((name, context is server_tls))
        if name == CLIENT_NAME:
            tls.context = other

    server_tls.sni_callback = choose
    async with listening(Recorder, ssl=server_tls) as address:
        for name in (NAME, CLIENT_NAME):
            transport, client = await loop.create_connection(
                Recorder, *address, ssl=client_tls, server_hostname=name
            )
            names = transport.get_extra_info("peercert")["subjectAltName"]
            assert names == (("DNS", name),)
            transport.abort()
            await end_of(client)
        await turns(20)
    assert asked == [(NAME, True), (CLIENT_NAME, True)]


async def test_the_server_may_refuse_a_name(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    def refuse(*_: object) -> int:
        return ssl.AlertDescription.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

    server_tls.sni_callback = refuse
    async with listening(Recorder, ssl=server_tls) as address:
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await loop.create_connection(Recorder, *address, ssl=client_tls, server_hostname=NAME)
        await turns(20)


async def test_a_certificate_for_another_name_is_refused(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with listening(Recorder, ssl=server_tls) as address:
        for name, why in (("other.example", "Hostname"), ("127.0.0.1", "IP address")):
            with pytest.raises(ssl.SSLCertVerificationError, match=f"{why} mismatch"):
                await loop.create_connection(
                    Recorder, *address, ssl=client_tls, server_hostname=name
                )
        with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
            await loop.create_connection(Recorder, *address, ssl=client_tls)  # the host is the name
        await turns(20)


async def test_an_empty_name_is_not_told(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    client_tls.check_hostname = False  # which needs a name, 3.14 insists
    asked: list[str | None] = []
    server_tls.sni_callback = lambda tls, name, context: asked.append(name)
    async with listening(Recorder, ssl=server_tls) as address:
        transport, client = await loop.create_connection(
            Recorder, *address, ssl=client_tls, server_hostname=""
        )
        assert transport.get_extra_info("peercert")
        transport.abort()
        await end_of(client)
        await turns(20)
    assert asked == [None]


async def test_a_name_goes_with_tls_and_tls_with_a_name(
    loop: Loop, client_tls: ssl.SSLContext
) -> None:
    with pytest.raises(ValueError, match="server_hostname is only meaningful with ssl"):
        await loop.create_connection(Recorder, "127.0.0.1", 1, server_hostname=NAME)
    with pytest.raises(ValueError, match="server_hostname is only meaningful with ssl"):
        await loop.create_unix_connection(Recorder, "/nowhere", server_hostname=NAME)
    with pytest.raises(ValueError, match="you have to pass server_hostname when using ssl"):
        await loop.create_unix_connection(Recorder, "/nowhere", ssl=client_tls)
    with socket.socket() as sock, pytest.raises(ValueError, match="You must set server_hostname"):
        await loop.create_connection(Recorder, sock=sock, ssl=client_tls)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("ssl_argument", ["text", 1])
async def test_what_is_no_context_is_refused(loop: Loop, ssl_argument: Any) -> None:
    async with listening(Recorder) as address:
        with warnings_seen(), pytest.raises((TypeError, AttributeError)):
            await loop.create_connection(Recorder, *address, ssl=ssl_argument, server_hostname=NAME)
        await turns(20)
    with pytest.raises(TypeError, match="SSLContext"):
        await loop.create_server(Recorder, "127.0.0.1", 0, ssl=True)
    with pytest.raises(TypeError, match="SSLContext"):
        await loop.create_unix_server(Recorder, "/nowhere/sock", ssl=True)  # type: ignore[arg-type]


TIMEOUTS = ["ssl_handshake_timeout", "ssl_shutdown_timeout"]


@pytest.mark.parametrize("name", TIMEOUTS)
@pytest.mark.parametrize("value", [0, -1, -0.5])
async def test_time_outs_are_positive(
    loop: Loop, client_tls: ssl.SSLContext, name: str, value: float
) -> None:
    async with listening(Recorder) as address:
        with warnings_seen(), pytest.raises(ValueError, match=f"{name} should be a positive"):
            await loop.create_connection(
                Recorder,
                *address,
                ssl=client_tls,
                server_hostname=NAME,
                **{name: value},  # type: ignore[arg-type]
            )
        await turns(20)


@pytest.mark.parametrize("name", TIMEOUTS)
async def test_time_outs_go_with_tls(loop: Loop, name: str) -> None:
    timeout: Any = {name: 1}
    refused = pytest.raises(ValueError, match=f"{name} is only meaningful with ssl")
    with refused:
        await loop.create_connection(Recorder, "127.0.0.1", 1, **timeout)
    with refused:
        await loop.create_server(Recorder, "127.0.0.1", 0, **timeout)
    with refused:
        await loop.create_unix_connection(Recorder, "/nowhere", **timeout)
    with refused:
        await loop.create_unix_server(Recorder, "/nowhere", **timeout)
    with socket.socket() as sock, refused:
        await loop.connect_accepted_socket(Recorder, sock, **timeout)


@pytest.mark.parametrize("name", TIMEOUTS)
async def test_a_server_with_a_bad_time_out_accepts_nobody(
    loop: Loop, server_tls: ssl.SSLContext, name: str
) -> None:
    """Told in debug mode only: asyncio finds out when a connection comes."""
    told: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    loop.set_debug(True)
    timeout: Any = {name: 0}
    with warnings_seen():  # asyncio leaves the socket to the garbage collector
        async with listening(Recorder, ssl=server_tls, **timeout) as address:
            with socket.create_connection(address):
                await until(lambda: told)
        [context] = told
        assert context["message"] == "Error on transport creation for incoming connection"
        assert isinstance(context["exception"], ValueError)
        assert isinstance(context["protocol"], Recorder)
        assert "transport" not in context
        told.clear()
        context.clear()
        await turns(10)


async def test_half_close_does_not_exist(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_pair(server_tls, client_tls) as (transport, _, server):
        for side in (transport, server.transport):
            assert side.can_write_eof() is False
            with pytest.raises(NotImplementedError):
                side.write_eof()


@pytest.mark.parametrize("data", ["text", None, 1, [1]])
async def test_only_bytes_can_be_written(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, data: Any
) -> None:
    async with tls_pair(server_tls, client_tls) as (transport, client, _):
        with pytest.raises(TypeError, match="expecting a bytes-like instance"):
            transport.write(data)
        for part in (b"ab", bytearray(b"cd"), memoryview(b"ef"), b""):
            transport.write(part)
        transport.writelines([b"g", bytearray(b"h"), memoryview(b"i")])
        assert await client.received(9) == b"abcdefghi"


async def test_files_go_through_tls_in_pieces(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, tmp_path: Path
) -> None:
    """There is no native way: without a fallback it is an error."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    async with tls_pair(server_tls, client_tls) as (transport, client, _):
        with path.open("rb") as file:
            assert await loop.sendfile(transport, file, 1000) == 99_000
            assert await client.received(99_000) == b"x" * 99_000
            with pytest.raises(RuntimeError, match="fallback is disabled"):
                await loop.sendfile(transport, file, fallback=False)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="new in Python 3.13")
@pytest.mark.parametrize("method", ["close_clients", "abort_clients"])
async def test_a_server_ends_its_tls_clients(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, method: str
) -> None:
    made: list[Recorder] = []

    def factory() -> Recorder:
        made.append(Recorder())
        return made[-1]

    server = await loop.create_server(factory, "127.0.0.1", 0, ssl=server_tls)
    transport, client = await loop.create_connection(
        Recorder, *server.sockets[0].getsockname(), ssl=client_tls, server_hostname=NAME
    )
    await until(lambda: made and made[0].transport)
    server.close()
    getattr(server, method)()
    await server.wait_closed()
    await end_of(client, *made)
    assert transport.is_closing()


@pytest.mark.loops("tloop")
@pytest.mark.engines("ssl")
async def test_all_attributes_of_a_connection_are_slots(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """One that asyncio gets in a new version, and we do not know, would cost memory and speed."""
    async with tls_pair(server_tls, client_tls) as (transport, _, server):
        for side in (transport, server.transport):
            assert vars(side) == {}
            assert vars(side._ssl_protocol) == {}
