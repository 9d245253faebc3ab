"""Who trusts whom: refused certificates and what they leave, client certificates, sessions."""

from __future__ import annotations

import asyncio
import gc
import ssl
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from loopkit import REFCOUNTS, Echo, Loop, Recorder, collect, end_of, listening, turns, until
from tlskit import (
    CERTIFICATES,
    CLIENT_NAME,
    NAME,
    VERSIONS,
    Peer,
    client_context,
    kind_of,
    only,
    tls_connected,
    tls_pair,
    trust_authority,
)

pytestmark = pytest.mark.usefixtures("loop")


@pytest.fixture
def stranger(engine: str) -> ssl.SSLContext:
    """A context that knows no authority."""
    context: ssl.SSLContext = kind_of("client", engine)(ssl.PROTOCOL_TLS_CLIENT)
    return context


@contextmanager
def no_collection() -> Iterator[None]:
    """Objects are freed by their reference counts or not at all."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# -- refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_untrusted_certificate_is_refused(
    loop: Loop, server_tls: ssl.SSLContext, stranger: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    only(version, stranger)
    client = Recorder()
    async with listening(Recorder, ssl=server_tls) as address:
        with pytest.raises(ssl.SSLCertVerificationError, match="CERTIFICATE_VERIFY_FAILED"):
            await loop.create_connection(
                lambda: client, *address, ssl=stranger, server_hostname=NAME
            )
        await turns(20)
    assert client.calls == []  # it never had a connection


async def test_the_default_context_verifies(loop: Loop, server_tls: ssl.SSLContext) -> None:
    async with listening(Recorder, ssl=server_tls) as address:
        with pytest.raises(ssl.SSLCertVerificationError):
            await loop.create_connection(Recorder, *address, ssl=True, server_hostname=NAME)
        await turns(20)


async def test_a_server_without_a_certificate_serves_nobody(
    loop: Loop, client_tls: ssl.SSLContext
) -> None:
    server = Recorder()
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    async with listening(lambda: server, ssl=bare) as address:
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await loop.create_connection(Recorder, *address, ssl=client_tls, server_hostname=NAME)
        await turns(20)
    assert server.calls == []


async def test_verification_can_be_switched_off(
    loop: Loop, server_tls: ssl.SSLContext, stranger: ssl.SSLContext
) -> None:
    stranger.check_hostname = False
    stranger.verify_mode = ssl.CERT_NONE
    async with tls_pair(server_tls, stranger) as (transport, client, _):
        transport.write(b"hello")
        assert await client.received(5) == b"hello"
        assert transport.get_extra_info("peercert") == {}


async def test_a_refused_certificate_leaves_nothing_in_the_client(
    loop: Loop, server_tls: ssl.SSLContext
) -> None:
    """asyncio makes a cycle of the exception and its frames: no more than that."""
    made: list[weakref.ref[Any]] = []

    async def refused() -> None:
        client, context = Recorder(), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.extend([weakref.ref(client), weakref.ref(context)])
        try:
            await loop.create_connection(
                lambda: client, *address, ssl=context, server_hostname=NAME
            )
        except ssl.SSLCertVerificationError:
            return
        raise AssertionError("the certificate was accepted")

    async with listening(Recorder, ssl=server_tls) as address:
        await refused()
        await turns(20)
    collect()
    assert [ref() for ref in made] == [None, None]


@pytest.mark.skipif(sys.version_info < (3, 13), reason="asyncio makes a cycle before 3.13")
@pytest.mark.skipif(not REFCOUNTS, reason="needs reference counting")
async def test_a_refusal_leaves_no_cycle_in_the_server(
    loop: Loop, server_tls: ssl.SSLContext, stranger: ssl.SSLContext
) -> None:
    loop.set_debug(False)  # which logs, and so keeps, the exception
    made: list[weakref.ref[Any]] = []

    def serve() -> Recorder:
        protocol = Recorder()
        made.append(weakref.ref(protocol))
        return protocol

    async with listening(serve, ssl=server_tls) as address:
        with no_collection():
            with pytest.raises(ssl.SSLCertVerificationError):
                await loop.create_connection(Recorder, *address, ssl=stranger, server_hostname=NAME)
            await until(lambda: made and made[0]() is None)


@pytest.mark.skipif(not REFCOUNTS, reason="needs reference counting")
async def test_a_connection_that_ended_leaves_no_cycle(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    class Chatty(Echo):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self.transport = None  # the cycle that the protocol itself makes

    made: list[weakref.ref[Any]] = []

    def remember() -> Recorder:
        protocol = Chatty()
        made.append(weakref.ref(protocol))
        return protocol

    async def talk() -> None:
        transport, client = await loop.create_connection(
            Recorder, *address, ssl=client_tls, server_hostname=NAME
        )
        made.append(weakref.ref(transport.get_extra_info("ssl_object")))
        transport.write(b"hello")
        await client.received(5)
        transport.close()
        await end_of(client)
        client.transport = None

    async with listening(remember, ssl=server_tls) as address:
        with no_collection():
            await talk()
            await until(lambda: [ref() for ref in made] == [None, None])


# -- client certificates ---------------------------------------------------------------------------


def ask_clients(server_tls: ssl.SSLContext, mode: ssl.VerifyMode) -> None:
    server_tls.verify_mode = mode
    trust_authority(server_tls)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mode", [ssl.CERT_REQUIRED, ssl.CERT_OPTIONAL])
async def test_client_certificates_are_asked_for_and_shown(
    loop: Loop,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    mode: ssl.VerifyMode,
    version: ssl.TLSVersion,
) -> None:
    ask_clients(server_tls, mode)
    only(version, client_tls)
    client_tls.load_cert_chain(CERTIFICATES / "client.pem")
    async with tls_pair(server_tls, client_tls) as (_, _, server):
        names = server.transport.get_extra_info("peercert")["subjectAltName"]
        assert names == (("DNS", CLIENT_NAME),)


async def test_an_optional_certificate_may_be_missing(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    ask_clients(server_tls, ssl.CERT_OPTIONAL)
    async with tls_pair(server_tls, client_tls) as (transport, client, server):
        assert server.transport.get_extra_info("peercert") is None
        transport.write(b"hello")
        assert await client.received(5) == b"hello"


async def test_a_required_certificate_is_missing(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """TLS 1.2: the client's handshake fails."""
    ask_clients(server_tls, ssl.CERT_REQUIRED)
    only(VERSIONS[0], client_tls)
    server = Recorder()
    async with listening(lambda: server, ssl=server_tls) as address:
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await loop.create_connection(Recorder, *address, ssl=client_tls, server_hostname=NAME)
        await turns(20)
    assert server.calls == []


async def test_a_required_certificate_is_missed_after_the_handshake(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """TLS 1.3: the client is done before the server judges it, and learns of it by the end."""
    ask_clients(server_tls, ssl.CERT_REQUIRED)
    only(VERSIONS[1], client_tls)
    server = Recorder()
    async with listening(lambda: server, ssl=server_tls) as address:
        _, client = await loop.create_connection(
            Recorder, *address, ssl=client_tls, server_hostname=NAME
        )
        await end_of(client)
        await turns(20)
    assert server.calls == []
    assert client.calls[0] == "made"
    assert client.data == b""


@pytest.mark.engines("ssl", "client")  # a TLSContext without authorities does not serve at all
async def test_an_untrusted_client_is_told_in_debug_mode(
    loop: Loop, client_tls: ssl.SSLContext, server_tls: ssl.SSLContext
) -> None:
    server_tls.verify_mode = ssl.CERT_REQUIRED  # and no authority is known
    client_tls.load_cert_chain(CERTIFICATES / "client.pem")
    loop.set_debug(True)
    told: list[tuple[str, type]] = []
    loop.set_exception_handler(
        lambda _, context: told.append((context["message"], type(context["exception"])))
    )
    only(VERSIONS[0], client_tls)
    async with listening(Recorder, ssl=server_tls) as address:
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await loop.create_connection(Recorder, *address, ssl=client_tls, server_hostname=NAME)
        await until(lambda: told)
        await turns(20)
    message = "Error on transport creation for incoming connection"
    assert told == [(message, ssl.SSLCertVerificationError)]


# -- sessions --------------------------------------------------------------------------------------


class Resuming(ssl.SSLContext):
    """asyncio has no argument for a session: a context of one's own hands it over."""

    kept: ssl.SSLSession | None = None

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return super().wrap_bio(*args, **{**kwargs, "session": self.kept})


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_session_is_resumed(
    loop: Loop, server_tls: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    context = client_context(Resuming)
    assert isinstance(context, Resuming)
    only(version, context)
    reused = []
    async with listening(Echo, ssl=server_tls) as address:
        for _ in range(3):
            transport, client = await loop.create_connection(
                Recorder, *address, ssl=context, server_hostname=NAME
            )
            transport.write(b"hello")
            await client.received(5)  # TLS 1.3 sends the ticket after the handshake
            tls = transport.get_extra_info("ssl_object")
            reused.append(tls.session_reused)
            context.kept = tls.session
            transport.close()
            await end_of(client)
        await turns(20)
    assert reused == [False, True, True]


@pytest.mark.engines("ssl")
async def test_a_session_of_another_context_is_refused(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with tls_connected(server_tls, client_tls) as (transport, client, peer):
        await peer.write(b"x")
        await client.received(1)
        other = client_context(Resuming)
        assert isinstance(other, Resuming)
        other.kept = transport.get_extra_info("ssl_object").session
        near = ssl.MemoryBIO()
        with pytest.raises(ValueError, match="different SSLContext"):
            other.wrap_bio(near, near, server_hostname=NAME)


async def test_tickets_may_come_at_any_time(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """TLS 1.3 tickets are records without data: nothing is told to the protocol."""
    server_tls.num_tickets = 5
    only(VERSIONS[1], server_tls)
    async with tls_connected(server_tls, client_tls) as (_, client, peer):
        assert isinstance(peer, Peer)
        await turns(20)
        assert client.calls == ["made"]
        await peer.write(b"hello")
        assert await client.received(5) == b"hello"
        assert client.calls == ["made", "data"]


async def test_many_handshakes_at_a_time(
    loop: Loop, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with listening(Echo, ssl=server_tls) as address:

        async def talk(text: bytes) -> bytes:
            reader, writer = await asyncio.open_connection(
                *address, ssl=client_tls, server_hostname=NAME
            )
            writer.write(text)
            answer = await reader.readexactly(len(text))
            writer.close()
            await writer.wait_closed()
            return answer

        texts = [b"%d" % number * 100 for number in range(40)]
        assert await asyncio.gather(*map(talk, texts)) == texts
        await turns(30)
