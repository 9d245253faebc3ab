"""What the TLS tests share: contexts, connected pairs, and a peer whose records the test holds."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
from loopkit import HERE, Echo, Recorder, end_of, listening, tcp_sockets, turns, until

from tloop_py import TLSContext

NAME = "server.example"
CLIENT_NAME = "client.example"
CERTIFICATES = HERE / "tls"  # made by tls/make_certificates.py
CASES = CERTIFICATES / "cases"  # made by tls/make_cases.py
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]

# Which side of a connection has a TLSContext of tloop instead of the interpreter's ssl.
ENGINES = ["ssl", "server", "client", "both"]

# A Peer is made of the interpreter's ssl: the test varies the side that is not it.
PEER_SERVES = pytest.mark.engines("ssl", "client")
PEER_CALLS = pytest.mark.engines("ssl", "server")

_T = TypeVar("_T")


def trust_authority(context: ssl.SSLContext) -> None:
    context.load_verify_locations(CERTIFICATES / "authority.pem")


def kind_of(side: str, engine: str) -> Any:
    """The class of that side's context; a TLSContext has the methods of ssl.SSLContext."""
    return TLSContext if engine in (side, "both") else ssl.SSLContext


def server_context(
    certificate: str = "server.pem", kind: type[ssl.SSLContext] = ssl.SSLContext
) -> ssl.SSLContext:
    context = kind(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / certificate)
    return context


def client_context(kind: type[ssl.SSLContext] = ssl.SSLContext) -> ssl.SSLContext:
    context = kind(ssl.PROTOCOL_TLS_CLIENT)
    trust_authority(context)
    return context


def only(version: ssl.TLSVersion, *contexts: ssl.SSLContext) -> None:
    for context in contexts:
        context.minimum_version = context.maximum_version = version


def hung_up(client: Any, engine: str) -> bool:
    """Was it told in the right way that its peer hung up without a close_notify? asyncio takes that
    for an end like any other; a TLSContext takes it for what it may be, a cut."""
    if engine in ("ssl", "server"):
        return client.calls[-2:] == ["eof", "lost"] and client.error is None
    return "eof" not in client.calls and isinstance(client.error, ssl.SSLEOFError)


@asynccontextmanager
async def tls_pair(
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    factory: Callable[[], Any] = Echo,
    client_factory: Callable[[], Any] = Recorder,
    **options: Any,
) -> AsyncIterator[tuple[Any, Any, Any]]:
    """A client transport, its protocol, and the server's protocol."""
    loop = asyncio.get_running_loop()
    accepted: list[Any] = []

    def accept() -> Any:
        accepted.append(factory())
        return accepted[-1]

    async with listening(accept, ssl=server_tls, **options) as address:
        transport, client = await loop.create_connection(
            client_factory, *address, ssl=client_tls, server_hostname=NAME, **options
        )
        await until(lambda: accepted and accepted[0].transport)
        try:
            yield transport, client, accepted[0]
        finally:
            transport.abort()
            accepted[0].transport.abort()
            await end_of(client, accepted[0])
            await turns(10)


class Peer:
    """The far end of a TLS connection: an SSLObject over a raw socket, none of the loop's code.

    Every operation sends what TLS asks for, and waits for what TLS needs from the other side.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, **options: Any) -> None:
        self.sock = sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, **options)
        self.piece = 1 << 18  # how many bytes go into the socket, and come out, at a time

    async def handshake(self) -> None:
        await self._do(self.tls.do_handshake)

    async def read_some(self, limit: int = 1 << 18) -> bytes:
        """What there is, at least one byte; none when the other side has said that it is done."""
        return await self._do(lambda: self.tls.read(limit))

    async def read(self, count: int) -> bytes:
        got = b""
        while len(got) < count:
            more = await self.read_some(count - len(got))
            if not more:
                raise EOFError(got)
            got += more
        return got

    async def write(self, data: bytes) -> None:
        await self.send(self.encrypt(data))

    async def close_notify(self) -> None:
        """Say that no more comes, and wait for the other side to say so."""
        await self._do(self.tls.unwrap)

    def encrypt(self, data: bytes) -> bytes:
        """The records that carry the data; the test sends them, or not."""
        self.tls.write(data)
        return self.outgoing.read()

    async def send(self, records: bytes) -> None:
        while records:
            try:
                records = records[self.sock.send(records[: self.piece]) :]
            except BlockingIOError:
                await asyncio.sleep(0.001)
            if self.piece < 100:
                await turns(1)  # the other side sees the pieces one by one

    async def _do(self, operation: Callable[[], _T]) -> _T:
        while True:
            try:
                result = operation()
            except ssl.SSLWantReadError:
                await self.send(self.outgoing.read())
                await self.receive()
            else:
                await self.send(self.outgoing.read())
                return result

    async def receive(self) -> None:
        """Take in what comes next, or the end."""
        while True:
            try:
                data = self.sock.recv(self.piece)
            except BlockingIOError:
                await asyncio.sleep(0.001)
                continue
            if data:
                self.incoming.write(data)
            else:
                self.incoming.write_eof()
            return


@asynccontextmanager
async def tls_connected(
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    protocol: Any = None,
    *,
    piece: int = 1 << 18,
    **options: Any,
) -> AsyncIterator[tuple[Any, Any, Peer]]:
    """A client transport of this loop, its protocol, and the Peer that serves it."""
    near, far = tcp_sockets()
    chosen = protocol or Recorder()
    with far:
        peer = Peer(far, server_tls, server_side=True)
        peer.piece = piece
        (transport, _), _ = await asyncio.gather(
            asyncio.get_running_loop().create_connection(
                lambda: chosen, sock=near, ssl=client_tls, server_hostname=NAME, **options
            ),
            peer.handshake(),
        )
        try:
            yield transport, chosen, peer
        finally:
            transport.abort()
            await end_of(chosen)
            await turns()
