"""Transports of a TLSContext: what is theirs alone, and what tests of both engines cannot ask."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import sys
import warnings
from typing import Any

import pytest
from conftest import AsyncioLog
from loopkit import (
    REFCOUNTS,
    Echo,
    Loop,
    Recorder,
    collect,
    connected,
    end_of,
    listening,
    read_all,
    stats,
    tcp_sockets,
    turns,
    until,
)
from tlskit import CLIENT_NAME, NAME, Peer, client_context, server_context, tls_connected, tls_pair

from tloop_py import TLSContext

pytestmark = [pytest.mark.usefixtures("loop"), pytest.mark.loops("tloop")]

MIB = 1 << 20


@pytest.fixture
def server_tls() -> Any:
    return server_context(kind=TLSContext)  # type: ignore[type-var]


@pytest.fixture
def client_tls() -> Any:
    return client_context(TLSContext)  # type: ignore[type-var]


# -- receiving -------------------------------------------------------------------------------------


async def test_a_paused_reader_stops_the_peer(loop: Loop, client_tls: Any) -> None:
    async with tls_connected(server_context(), client_tls) as (transport, client, peer):
        transport.pause_reading()
        assert transport.is_reading() is False
        sending = loop.create_task(peer.write(b"x" * 8 * MIB))
        for _ in range(30):
            await asyncio.sleep(0.001)
        assert client.data == b""
        assert not sending.done()
        transport.resume_reading()
        assert await client.received(8 * MIB) == b"x" * 8 * MIB
        await sending


async def test_the_protocol_can_be_changed(loop: Loop, client_tls: Any) -> None:
    async with tls_connected(server_context(), client_tls) as (transport, first, peer):
        await peer.write(b"one")
        assert await first.received(3) == b"one"
        second = Recorder()
        second.connection_made(transport)
        transport.set_protocol(second)
        await peer.write(b"two")
        assert await second.received(3) == b"two"
        transport.abort()
        await end_of(second)
        assert first.calls == ["made", "data"]
        first.calls.append("lost")  # it is not the one who is told


async def test_one_byte_of_a_record_at_a_time(loop: Loop, client_tls: Any) -> None:
    """A buffer smaller than a record: the rest comes without a sign from the kernel."""

    class Sipping(Recorder, asyncio.BufferedProtocol):
        def get_buffer(self, sizehint: int) -> Any:
            self.buffer = bytearray(1)
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            Recorder.data_received(self, bytes(self.buffer))

    async with tls_connected(server_context(), client_tls, Sipping()) as (_, client, peer):
        await peer.write(bytes(range(256)))
        assert await client.received(256) == bytes(range(256))


# -- sni -------------------------------------------------------------------------------------------


async def reach(address: Any, client_tls: Any, name: str = NAME) -> Any:
    """The certificate that a server shows to who asks for that name."""
    transport, protocol = await asyncio.get_running_loop().create_connection(
        Recorder, *address, ssl=client_tls, server_hostname=name
    )
    certificate = transport.get_extra_info("peercert")
    transport.abort()
    await end_of(protocol)
    return certificate


async def test_another_context_judges_the_client_too(
    loop: Loop, server_tls: Any, client_tls: Any
) -> None:
    strict = server_context("client.pem", TLSContext)  # type: ignore[type-var]
    strict.verify_mode = ssl.CERT_REQUIRED
    strict.load_verify_locations(cadata=client_tls.get_ca_certs(binary_form=True)[0])

    def choose(tls: Any, name: str | None, context: Any) -> None:
        assert (tls.context, tls.server_side, context) == (server_tls, True, server_tls)
        if name == CLIENT_NAME:
            tls.context = strict

    server_tls.sni_callback = choose
    client_tls.maximum_version = ssl.TLSVersion.TLSv1_2  # so that the client hears of it at once
    async with listening(Recorder, ssl=server_tls) as address:
        assert (await reach(address, client_tls))["subjectAltName"] == (("DNS", NAME),)
        with pytest.raises(ssl.SSLError):
            await reach(address, client_tls, CLIENT_NAME)
        await turns(20)


async def test_a_callback_that_fails_refuses(
    loop: Loop, server_tls: Any, client_tls: Any, asyncio_log: AsyncioLog
) -> None:
    def fail(*_: object) -> None:
        raise LookupError("who is that?")

    server_tls.sni_callback = fail
    async with listening(Recorder, ssl=server_tls) as address:
        with pytest.raises(ssl.SSLError) as caught:
            await reach(address, client_tls)
        assert caught.value.reason == "TLSV1_UNRECOGNIZED_NAME"
        await turns(20)
    record = asyncio_log.expect("sni_callback failed")
    assert record.exc_info
    assert isinstance(record.exc_info[1], LookupError)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_a_callback_may_end_the_program(
    loop: Loop, server_tls: Any, client_tls: Any, kind: type[BaseException]
) -> None:
    def leave(*_: object) -> None:
        raise kind

    server_tls.sni_callback = leave
    outcome: list[Any] = []

    async def main() -> None:
        async with listening(Recorder, ssl=server_tls) as address:
            outcome.append(loop.create_task(reach(address, client_tls)))
            await asyncio.wait(outcome)

    running = loop.create_task(main())
    with pytest.raises(kind):
        loop.run_until_complete(running)
    loop.run_until_complete(running)
    assert isinstance(outcome[0].exception(), ssl.SSLError)


async def test_a_callback_may_abort(loop: Loop, server_tls: Any, client_tls: Any) -> None:
    loop_handlers: Any = loop

    def abort(tls: Any, *_: object) -> None:
        for transport in list(loop_handlers._handlers.values()):
            if getattr(transport, "_tls", None) is tls:
                transport.abort()

    server_tls.sni_callback = abort
    async with listening(Recorder, ssl=server_tls) as address:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await reach(address, client_tls)
        await turns(20)


async def test_a_context_is_set_in_the_callback_only(
    loop: Loop, server_tls: Any, client_tls: Any
) -> None:
    async with tls_pair(server_tls, client_tls) as (_, _, server):
        tls = server.transport.get_extra_info("ssl_object")
        with pytest.raises(ValueError, match="within sni_callback only"):
            tls.context = server_tls
        with pytest.raises(TypeError, match="must be a TLSContext"):
            tls.context = server_context()


# -- start_tls -------------------------------------------------------------------------------------


async def test_the_former_transport_stands_for_the_new_one(loop: Loop, client_tls: Any) -> None:
    async with connected() as (plain, client, far):
        peer = Peer(far, server_context(), server_side=True)
        protocol = Recorder()
        transport, _ = await asyncio.gather(
            loop.start_tls(plain, protocol, client_tls, server_hostname=NAME), peer.handshake()
        )
        assert transport is not None
        assert not plain.is_closing()
        assert plain.get_extra_info("peername") == transport.get_extra_info("peername")
        plain.write(b"dropped")
        plain.close()
        assert transport.is_closing()
        await until(lambda: protocol.lost)
        assert protocol.error is None
        assert client.calls == ["made"]


async def test_closing_the_former_transport_in_the_handshake(loop: Loop, client_tls: Any) -> None:
    async with connected() as (plain, client, _):
        protocol = Recorder()
        upgrading = loop.create_task(
            loop.start_tls(plain, protocol, client_tls, server_hostname=NAME)
        )
        await turns(5)
        plain.close()
        assert await upgrading is None  # as asyncio has it
        assert plain.is_closing()
        assert protocol.calls == []
        assert client.calls == ["made"]


async def test_a_writer_that_was_paused_before_is_resumed(loop: Loop, client_tls: Any) -> None:
    async with connected() as (plain, client, far):
        total = 0
        while client.calls[-1] != "pause":
            plain.write(b"p" * 10_000)
            total += 10_000
        upgrading = loop.create_task(
            loop.start_tls(plain, client, client_tls, server_hostname=NAME)
        )
        peer = Peer(far, server_context(), server_side=True)
        received = await read_all(far, total)
        peer.incoming.write(received[total:])
        await peer.handshake()
        transport = await upgrading
        assert transport is not None
        await until(lambda: client.calls[-1] == "resume")
        transport.abort()
        await end_of(client)


async def test_tls_within_tls_is_for_an_ssl_context(
    loop: Loop, server_tls: Any, client_tls: Any
) -> None:
    for outer in (client_tls, client_context()):
        async with tls_pair(server_tls, outer) as (transport, client, _):
            with pytest.raises(TypeError, match=r"TLS within TLS needs an ssl\.SSLContext"):
                await loop.start_tls(transport, client, client_tls, server_hostname=NAME)
            assert not transport.is_closing()


# -- the end ---------------------------------------------------------------------------------------


async def test_a_slow_peer_gets_all_that_was_written(loop: Loop, client_tls: Any) -> None:
    """The time-out of closing counts anew while the peer takes something."""
    async with tls_connected(server_context(), client_tls, ssl_shutdown_timeout=0.3) as (
        transport,
        client,
        peer,
    ):
        transport.write(b"x" * MIB)
        transport.close()
        received = 0
        while received < MIB:
            received += len(await peer.read_some(50_000))
            await asyncio.sleep(0.01)
        await peer.close_notify()
        await end_of(client)
        assert client.error is None


async def test_the_contexts_own_time_out_of_closing(loop: Loop, client_tls: Any) -> None:
    client_tls.close_timeout = 0.01
    async with tls_connected(server_context(), client_tls) as (transport, client, _):
        transport.close()
        await end_of(client)
        assert isinstance(client.error, TimeoutError)


async def test_aborting_while_it_closes(loop: Loop, client_tls: Any) -> None:
    async with tls_connected(server_context(), client_tls) as (transport, client, _):
        transport.write(b"x" * 8 * MIB)
        transport.close()
        await turns(3)
        assert not client.lost
        transport.abort()
        await end_of(client)
        assert client.error is None


async def test_the_descriptor_is_free_after_the_end(
    loop: Loop, server_tls: Any, client_tls: Any
) -> None:
    async with tls_pair(server_tls, client_tls) as (transport, client, server):
        live = stats(loop)["live"]
        transport.close()
        await end_of(client, server)
        await asyncio.sleep(0.0001)
        assert stats(loop)["live"] == live - 2


@pytest.mark.skipif(not REFCOUNTS, reason="needs reference counting")
async def test_an_unclosed_transport_warns(loop: Loop, client_tls: Any) -> None:
    near, far = tcp_sockets()
    handlers: Any = loop

    async def forget() -> None:
        peer = Peer(far, server_context(), server_side=True)
        handshake = loop.create_task(peer.handshake())
        _, protocol = await loop.create_connection(
            Recorder, sock=near, ssl=client_tls, server_hostname=NAME
        )
        await handshake
        protocol.transport = None
        handlers._handlers.clear()
        handlers._transports.clear()

    with far:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            await forget()
            collect()
        assert any("unclosed transport <TLSTransport" in str(one.message) for one in caught)


@pytest.mark.skipif(not REFCOUNTS, reason="needs reference counting")
async def test_nothing_keeps_an_old_context(loop: Loop) -> None:
    import weakref

    async def use() -> Any:
        server: Any = server_context(kind=TLSContext)  # type: ignore[type-var]
        server.sni_callback = lambda *_: None
        async with tls_pair(server, client_context()) as (_, _, accepted):
            accepted.transport.get_extra_info("ssl_object")
        return weakref.ref(server)

    gone = await use()
    await turns(20)
    gc.collect()
    assert gone() is None


@pytest.mark.skipif(sys.version_info < (3, 13), reason="new in Python 3.13")
@pytest.mark.parametrize("method", ["close_clients", "abort_clients"])
async def test_a_server_ends_its_clients_in_their_handshake(
    loop: Loop, server_tls: Any, method: str
) -> None:
    protocol = Echo()
    server = await loop.create_server(lambda: protocol, "127.0.0.1", 0, ssl=server_tls)
    with socket.create_connection(server.sockets[0].getsockname()):
        handlers: Any = loop
        await until(lambda: len(handlers._handlers) > 1)
        server.close()
        getattr(server, method)()  # type: ignore[attr-defined]
        await server.wait_closed()
    await turns(20)
    assert protocol.calls == []
