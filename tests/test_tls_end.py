"""How TLS connections end: closing, aborting, peers that vanish, lie or are silent, key updates."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from conftest import AsyncioLog
from loopkit import (
    PATIENCE,
    Echo,
    Loop,
    LoopFactory,
    Recorder,
    end_of,
    listening,
    send_reset,
    tcp_sockets,
    turns,
    until,
    warnings_seen,
)
from tlskit import (
    CERTIFICATES,
    NAME,
    PEER_CALLS,
    PEER_SERVES,
    VERSIONS,
    Peer,
    hung_up,
    only,
    tls_connected,
    tls_pair,
)

from tloop_py import TLSContext

pytestmark = pytest.mark.usefixtures("loop")


@pytest.fixture
def told(loop: Loop) -> list[dict[str, Any]]:
    """What debug mode tells the exception handler."""
    contexts: list[dict[str, Any]] = []
    loop.set_debug(True)
    loop.set_exception_handler(lambda _, context: contexts.append(context))
    return contexts


# -- our side ends it ------------------------------------------------------------------------------


async def test_close_sends_all_that_was_written(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_pair(server_tls, client_tls, Recorder) as (transport, client, server):
        transport.write(b"x" * 2_000_000)
        transport.close()
        await end_of(server, client)
        assert server.data == b"x" * 2_000_000
        assert server.calls == ["made", "data", "eof", "lost"]
        assert client.error is None


async def test_abort_ends_at_once(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_pair(server_tls, client_tls, Recorder) as (transport, client, server):
        transport.write(b"x" * 10_000_000)
        transport.abort()
        assert client.calls[-1] != "lost"  # which comes in the next turn
        await end_of(server, client)
        assert [call for call in client.calls if call != "pause"] == ["made", "lost"]
        assert client.error is None
        assert len(server.data) < 10_000_000


async def test_closing_says_so_and_waits_for_the_answer(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_connected(server_tls, client_tls) as (transport, client, peer):
        transport.write(b"bye")
        transport.close()
        assert transport.is_closing()
        assert await peer.read(3) == b"bye"
        await turns(10)
        assert not client.lost
        await peer.close_notify()
        await end_of(client)
        assert client.calls == ["made", "eof", "lost"]  # the answer is an end, too
        assert client.error is None


async def test_what_comes_after_close_is_not_delivered(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_connected(server_tls, client_tls) as (transport, client, peer):
        transport.close()
        with pytest.raises(EOFError):
            await peer.read(1)
        await peer.write(b"too late")
        peer.sock.close()
        await end_of(client)
        assert client.data == b""


async def write_for_ever(peer: Peer) -> None:
    while True:
        await peer.write(b"x" * 1000)
        await asyncio.sleep(0.001)


async def test_a_peer_that_goes_on_sending_after_close_is_cut_off(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """Long before the 30 seconds that asyncio waits for an answer."""
    if isinstance(client_tls, TLSContext):
        client_tls.close_timeout = 0.01  # what comes until then is thrown away
    async with tls_connected(server_tls, client_tls) as (transport, client, peer):
        transport.close()
        async with asyncio.timeout(15):
            with pytest.raises(ConnectionError):
                await write_for_ever(peer)
        await end_of(client)
        assert client.data == b""


async def test_an_answer_that_does_not_come_is_waited_for_so_long(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_connected(server_tls, client_tls, ssl_shutdown_timeout=0.01) as (
        transport,
        client,
        _,
    ):
        transport.close()
        await end_of(client)
        assert isinstance(client.error, TimeoutError)
        assert str(client.error) == "SSL shutdown timed out"


async def test_writes_after_close_are_dropped_and_then_warned_of(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, asyncio_log: AsyncioLog
) -> None:
    async with tls_pair(server_tls, client_tls, Recorder) as (transport, client, server):
        transport.close()
        for _ in range(6):
            transport.write(b"dropped")
        assert len(asyncio_log.messages) == 1
        asyncio_log.expect("SSL connection is closed")
        await end_of(server, client)
        assert server.data == b""


async def test_closing_in_connection_made(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    class Closing(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.write(b"bye")
            self.transport.close()

    async with tls_pair(server_tls, client_tls, Closing) as (_, client, server):
        await end_of(client, server)
        assert client.data == b"bye"
        assert client.calls == ["made", "data", "eof", "lost"]
        assert server.error is None


async def test_aborting_in_connection_made(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    class Aborting(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.abort()

    server = Aborting()
    async with listening(lambda: server, ssl=server_tls) as address:
        try:
            _, client = await loop.create_connection(
                Recorder, *address, ssl=client_tls, server_hostname=NAME
            )
        except ConnectionError:
            client = None  # the end overtook the last words of the handshake
        await until(lambda: server.lost and (client is None or client.lost))
        await turns(20)
    assert server.calls == ["made", "lost"]
    assert server.error is None


@pytest.mark.engines("ssl", "server")
@pytest.mark.parametrize("steps", [0, 5])
def test_handshakes_under_way_end_with_the_loop(
    loop_factory: LoopFactory, server_tls: Any, steps: int
) -> None:
    made: list[Recorder] = []

    def accept() -> Recorder:
        made.append(Recorder())
        return made[-1]

    async def main() -> socket.socket:
        async with listening(accept, ssl=server_tls) as address:
            client = socket.create_connection(address)
            await until(lambda: made)
            await turns(steps)
        return client

    runner = asyncio.Runner(loop_factory=loop_factory)
    with warnings_seen() as seen, runner, runner.run(main()) as client:
        client.settimeout(PATIENCE)
        runner.close()
        assert client.recv(1) == b""
    assert made[0].calls == []
    assert seen == []


# -- the peer ends it ------------------------------------------------------------------------------


async def test_the_peer_says_good_bye(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_connected(server_tls, client_tls) as (_, client, peer):
        await peer.write(b"bye")
        await peer.close_notify()  # which is answered
        await end_of(client)
        assert client.calls == ["made", "data", "eof", "lost"]
        assert client.error is None


async def test_the_peer_hangs_up_without_a_word(
    loop: Loop, engine: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_connected(server_tls, client_tls) as (_, client, peer):
        await peer.write(b"tr")
        peer.sock.close()
        await end_of(client)
        assert client.data == b"tr"
        assert hung_up(client, engine)


async def test_the_peer_hangs_up_in_the_middle_of_a_record(
    loop: Loop, engine: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_connected(server_tls, client_tls) as (_, client, peer):
        await peer.send(peer.encrypt(b"whole") + peer.encrypt(b"torn")[:-1])
        peer.sock.close()
        await end_of(client)
        assert client.data == b"whole"
        assert hung_up(client, engine)


async def test_the_peer_resets_the_connection(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_connected(server_tls, client_tls) as (_, client, peer):
        send_reset(peer.sock)
        await end_of(client)
        assert client.calls == ["made", "lost"]
        assert isinstance(client.error, ConnectionResetError)


async def test_the_peer_vanishes_while_we_write(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_connected(server_tls, client_tls) as (transport, client, peer):
        while "pause" not in client.calls:
            transport.write(b"x" * 100_000)
        send_reset(peer.sock)
        await end_of(client)
        assert isinstance(client.error, ConnectionError)
        transport.write(b"into the void")


async def test_a_forged_record_ends_the_connection(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_connected(server_tls, client_tls) as (_, client, peer):
        record = bytearray(peer.encrypt(b"trust me"))
        record[-1] ^= 1
        await peer.send(bytes(record))
        await end_of(client)
        assert client.calls == ["made", "lost"]
        assert isinstance(client.error, ssl.SSLError)


async def test_plain_text_in_the_middle_ends_the_connection(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_connected(server_tls, client_tls) as (_, client, peer):
        await peer.write(b"secret")
        assert await client.received(6) == b"secret"
        await peer.send(b"this is no TLS record, not by far")
        await end_of(client)
        assert client.calls == ["made", "data", "lost"]
        assert isinstance(client.error, ssl.SSLError)


# -- handshakes that fail --------------------------------------------------------------------------


async def test_a_server_that_does_not_speak_tls(loop: Loop, client_tls: ssl.SSLContext) -> None:
    class Rude(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.write(b"this is no TLS record, not by far")

    async with listening(Rude) as address:
        with pytest.raises(ssl.SSLError, match=r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE"):
            await loop.create_connection(Recorder, *address, ssl=client_tls, server_hostname=NAME)
        await turns(20)


@pytest.mark.parametrize(
    ("garbage", "error"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", ssl.SSLError),
        (b"this is no TLS record, not by far", ssl.SSLError),
        (b"\x16\x03\x01\x00\x02\x01", ConnectionResetError),  # a hello that is cut short
        (b"", ConnectionResetError),
    ],
)
async def test_a_client_that_does_not_speak_tls(
    loop: Loop,
    server_tls: ssl.SSLContext,
    told: list[dict[str, Any]],
    garbage: bytes,
    error: type[Exception],
) -> None:
    server = Recorder()
    async with listening(lambda: server, ssl=server_tls) as address:
        with socket.create_connection(address) as rude:
            rude.sendall(garbage)
            rude.shutdown(socket.SHUT_WR)
            await until(lambda: told)
        await turns(20)
    [context] = told
    assert context["message"] == "Error on transport creation for incoming connection"
    assert isinstance(context["exception"], error)
    assert context["protocol"] is server
    assert isinstance(context["transport"], asyncio.Transport)
    assert server.calls == []


async def test_a_failed_handshake_is_not_told_outside_of_debug_mode(
    loop: Loop, server_tls: ssl.SSLContext
) -> None:
    """Any peer can cause it; the log of the test stays empty, too."""
    loop.set_debug(False)
    told: list[dict[str, Any]] = []
    loop.set_debug(False)
    loop.set_exception_handler(lambda _, context: told.append(context))
    async with listening(Recorder, ssl=server_tls) as address:
        with socket.create_connection(address) as rude:
            rude.sendall(b"this is no TLS record, not by far")
            rude.setblocking(False)
            await until(lambda: is_closed(rude))
        await turns(20)
    assert told == []


def is_closed(sock: socket.socket) -> bool:
    """Has the other side closed it?"""
    try:
        return not sock.recv(1000)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


async def test_a_server_that_hangs_up(loop: Loop, client_tls: ssl.SSLContext) -> None:
    class Short(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.close()

    client = Recorder()
    async with listening(Short) as address:
        with pytest.raises(ConnectionError):
            await loop.create_connection(
                lambda: client, *address, ssl=client_tls, server_hostname=NAME
            )
        await turns(20)
    assert client.calls == []


@PEER_SERVES
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("leave", [send_reset, socket.socket.close])
async def test_a_server_that_vanishes_in_the_middle_of_the_handshake(
    loop: Loop,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    leave: Callable[[socket.socket], None],
    version: ssl.TLSVersion,
) -> None:
    only(version, client_tls)
    near, far = tcp_sockets()
    peer = HalfPeer(far, server_tls)
    connecting = loop.create_task(
        loop.create_connection(Recorder, sock=near, ssl=client_tls, server_hostname=NAME)
    )
    await peer.answer_first_half()
    leave(far)
    with pytest.raises(ConnectionResetError):
        await connecting
    await turns(10)


class HalfPeer(Peer):
    """Gives half of its first answer."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(sock, context, server_side=True)

    async def answer_first_half(self) -> None:
        while not self.outgoing.pending:
            await self.receive()
            with pytest.raises(ssl.SSLWantReadError):
                self.tls.do_handshake()
        answer = self.outgoing.read()
        await self.send(answer[: len(answer) // 2])


async def test_a_silent_server_is_waited_for_so_long(
    loop: Loop, client_tls: ssl.SSLContext
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(ConnectionAbortedError) as caught:
            await loop.create_connection(
                Recorder,
                *silent.getsockname(),
                ssl=client_tls,
                server_hostname=NAME,
                ssl_handshake_timeout=0.01,
            )
        expected = "SSL handshake is taking longer than 0.01 seconds: aborting the connection"
        assert str(caught.value) == expected
        await turns(10)


async def test_a_silent_client_is_waited_for_so_long(
    loop: Loop, server_tls: ssl.SSLContext, told: list[dict[str, Any]]
) -> None:
    server = Recorder()
    async with listening(lambda: server, ssl=server_tls, ssl_handshake_timeout=0.01) as address:
        with socket.create_connection(address) as silent:
            silent.setblocking(False)
            await until(lambda: is_closed(silent))
        await until(lambda: told)
        await turns(10)
    assert isinstance(told[0]["exception"], ConnectionAbortedError)
    assert "SSL handshake is taking longer than 0.01 seconds" in str(told[0]["exception"])
    assert server.calls == []


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


@PEER_CALLS
async def test_a_server_closes_in_the_middle_of_a_handshake(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """It accepts nobody else; who is there already is served."""
    server = await loop.create_server(Echo, "127.0.0.1", 0, ssl=server_tls)
    with socket.create_connection(server.sockets[0].getsockname()) as sock:
        sock.setblocking(False)
        await turns(10)
        server.close()
        peer = Peer(sock, client_tls, server_hostname=NAME)
        await peer.handshake()
        await peer.write(b"hello")
        assert await peer.read(5) == b"hello"
        await peer.close_notify()
    await server.wait_closed()
    await turns(20)


# -- new keys --------------------------------------------------------------------------------------

COMMAND = shutil.which("openssl")


class OpensslServer:
    """`openssl s_server`: a letter on its keyboard changes the keys, other lines are sent."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin
        assert process.stdout
        self.keyboard, self.screen = process.stdin, process.stdout
        self.output = bytearray()
        self.changes = 0
        os.set_blocking(self.screen.fileno(), False)

    def printed(self, text: bytes) -> bool:
        self.output += self.screen.read() or b""
        return text in self.output

    async def port(self) -> int:
        await until(lambda: self.printed(b"ACCEPT"))
        found = re.search(rb"ACCEPT \S+:(\d+)", self.output)
        assert found
        return int(found[1])

    async def change_keys(self, command: bytes) -> None:
        self.output.clear()
        self.keyboard.write(command + b"\n")
        await until(lambda: self.printed(b"KeyUpdate") or self.printed(b"HelloRequest"))


@contextmanager
def openssl_server() -> Iterator[OpensslServer]:
    assert COMMAND
    certificate = str(CERTIFICATES / "server.pem")
    with subprocess.Popen(
        [COMMAND, "s_server", "-accept", "127.0.0.1:0", "-cert", certificate, "-msg"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
    ) as process:
        try:
            yield OpensslServer(process)
        finally:
            process.kill()


@pytest.mark.skipif(not COMMAND, reason="needs the openssl command")
@pytest.mark.engines("ssl")  # mbedTLS does not change keys
@pytest.mark.parametrize(
    ("version", "command"),
    [
        (VERSIONS[0], b"r"),  # renegotiation
        (VERSIONS[1], b"k"),  # a key update
        (VERSIONS[1], b"K"),  # a key update that asks for one in return
    ],
)
async def test_the_peer_changes_the_keys(
    loop: Loop, client_tls: ssl.SSLContext, version: ssl.TLSVersion, command: bytes
) -> None:
    only(version, client_tls)
    with openssl_server() as server:
        transport, client = await loop.create_connection(
            Recorder, "127.0.0.1", await server.port(), ssl=client_tls, server_hostname=NAME
        )
        for ping, pong in ((b"ping one\n", b"pong one\n"), (b"ping two\n", b"pong two\n")):
            transport.write(ping)
            await until(partial(server.printed, ping))
            await server.change_keys(command)
            server.keyboard.write(pong)
            await client.received(len(pong))
            assert client.data == pong
            client.data.clear()
        transport.write(b"x" * 100_000 + b"\nthe end\n")
        await until(lambda: server.printed(b"the end"))
        transport.abort()
        await end_of(client)
        assert client.calls == ["made", "data", "lost"]
