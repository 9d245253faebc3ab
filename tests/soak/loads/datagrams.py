"""Datagram endpoints over UDP and Unix sockets."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.soak.field import Field, Round, bounded
from tests.soak.protocols import Checked

AT_ONCE = 8  # datagrams on their way; the kernel's receive buffer holds more of them
LARGEST = 4000  # bytes


class _Endpoint(Checked, asyncio.DatagramProtocol):
    def error_received(self, exc: Exception) -> None:
        self._field.failure(type(self).__name__, exc)


class _Echo(_Endpoint):
    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._expect("datagram_received", "made")
        self.transport.sendto(data, addr)

    def error_received(self, exc: Exception) -> None:
        pass  # a cancelled client has closed its socket


class _Client(_Endpoint):
    def __init__(self, field: Field) -> None:
        super().__init__(field)
        self.got: asyncio.Queue[bytes] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._expect("datagram_received", "made")
        self.got.put_nowait(data)


async def _exchange(field: Field, rng: random.Random, client: _Client, address: Any) -> int:
    """Datagrams come back whole and, on one machine, in order."""
    sent, expected = field.patterns(rng)
    for _ in range(rng.randrange(1, 10)):
        sizes = [rng.randrange(LARGEST) for _ in range(AT_ONCE)]
        for size in sizes:
            client.transport.sendto(sent.take(size), address)
            await client.writable()
        for size in sizes:
            data = await bounded(client.got.get(), "a datagram")
            assert len(data) == size, f"a datagram of {size} bytes came back with {len(data)}"
            expected.check(data)
    return expected.count


@asynccontextmanager
async def _endpoint(protocol: Any, **options: Any) -> AsyncIterator[Any]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: protocol, **options)
    try:
        yield protocol
    finally:
        transport.close()
        await protocol.ended()


@asynccontextmanager
async def datagrams(field: Field) -> AsyncIterator[Round]:
    async def one_round(rng: random.Random) -> int:
        async with _endpoint(_Echo(field), local_addr=("127.0.0.1", 0)) as server:
            address = server.transport.get_extra_info("sockname")
            if rng.random() < 0.5:
                options: dict[str, Any] = {"remote_addr": address}
                to = None
            else:
                options, to = {"local_addr": ("127.0.0.1", 0)}, address
            async with _endpoint(_Client(field), **options) as client:
                return await _exchange(field, rng, client, to)

    yield one_round


@asynccontextmanager
async def unix_datagrams(field: Field) -> AsyncIterator[Round]:
    async def one_round(rng: random.Random) -> int:
        paths = [str(field.path(".dgram")) for _ in range(2)]
        try:
            async with (
                _endpoint(_Echo(field), local_addr=paths[0], family=socket.AF_UNIX),
                _endpoint(_Client(field), local_addr=paths[1], family=socket.AF_UNIX) as client,
            ):
                return await _exchange(field, rng, client, paths[0])
        finally:
            field.remove(*paths)

    yield one_round
