"""What the tests of datagrams share: recording protocols, endpoints, a pair that is soon full."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from loopkit import until


class Datagrams(asyncio.DatagramProtocol):
    """Writes down every call it gets."""

    transport: Any = None

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.got: list[tuple[bytes, Any]] = []
        self.errors: list[Exception] = []
        self.error: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.calls.append("made")

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.calls.append("datagram")
        self.got.append((data, addr))

    def error_received(self, exc: Exception) -> None:
        self.calls.append("error")
        self.errors.append(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("lost")
        self.error = exc

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    @property
    def lost(self) -> bool:
        return "lost" in self.calls

    async def received(self, count: int) -> list[bytes]:
        await until(lambda: len(self.got) >= count)
        return [data for data, _ in self.got]


class EchoDatagrams(Datagrams):
    def datagram_received(self, data: bytes, addr: Any) -> None:
        super().datagram_received(data, addr)
        self.transport.sendto(data, addr)


@asynccontextmanager
async def endpoint(
    protocol: Datagrams | None = None, **options: Any
) -> AsyncIterator[tuple[Any, Any]]:
    """A datagram transport (bound to loopback unless told otherwise) and its protocol."""
    chosen = protocol or Datagrams()
    if not options:
        options = {"local_addr": ("127.0.0.1", 0)}
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: chosen, **options)
    try:
        yield transport, chosen
    finally:
        if not transport.is_closing():
            transport.abort()
        await until(lambda: chosen.lost)


def address_of(transport: asyncio.BaseTransport) -> Any:
    return transport.get_extra_info("sockname")


@asynccontextmanager
async def full_pipe() -> AsyncIterator[tuple[Any, Any, socket.socket]]:
    """An endpoint and its peer: a Unix datagram socket is full after a few datagrams."""
    with (
        tempfile.TemporaryDirectory(prefix="tl-") as name,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far,
    ):
        far.bind(f"{name}/far")
        far.setblocking(False)
        options: dict[str, Any] = {"family": socket.AF_UNIX, "remote_addr": f"{name}/far"}
        async with endpoint(**options) as (transport, protocol):
            yield transport, protocol, far


async def read_datagrams(sock: socket.socket, count: int) -> list[bytes]:
    got: list[bytes] = []

    def readable() -> bool:
        try:
            while len(got) < count:
                got.append(sock.recv(1 << 16))
        except BlockingIOError:
            return False
        return True

    await until(readable)
    return got
