"""Raw sockets: the sock_* operations, readers and writers."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from tests.loopkit import Loop
from tests.soak.field import Field, Pattern, Round, bounded


@asynccontextmanager
async def connected_sockets() -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection, made by sock_connect and sock_accept."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as near:
        listener.setblocking(False)
        near.setblocking(False)
        accepting = asyncio.ensure_future(loop.sock_accept(listener))
        try:
            await loop.sock_connect(near, listener.getsockname())
            far, _ = await bounded(asyncio.shield(accepting), "a connection")
        except BaseException:
            await _end_accept(accepting, near)
            raise
        with far:
            yield near, far


async def _end_accept(accepting: asyncio.Future[Any], near: socket.socket) -> None:
    """Cancel it, unless there is a connection that it would take and, then, drop."""
    try:
        near.getpeername()
    except OSError:
        accepting.cancel()
        await asyncio.wait([accepting])
    else:
        far, _ = await bounded(accepting, "a connection")
        far.close()


async def _echo(loop: Loop, rng: random.Random, sock: socket.socket) -> None:
    buffer = bytearray(rng.choice([1000, 1 << 16]))
    while True:
        if rng.random() < 0.5:
            data: Any = await loop.sock_recv(sock, len(buffer))
        else:
            data = buffer[: await loop.sock_recv_into(sock, buffer)]
        if not data:
            return
        await loop.sock_sendall(sock, data)


async def _receive(loop: Loop, sock: socket.socket, expected: Pattern, count: int) -> None:
    while expected.count < count:
        data = await loop.sock_recv(sock, 1 << 16)
        assert data, f"the end came after {expected.count} of {count} bytes"
        expected.check(data)


@asynccontextmanager
async def stream_operations(field: Field) -> AsyncIterator[Round]:
    loop = asyncio.get_running_loop()

    async def one_round(rng: random.Random) -> int:
        sent, expected = field.patterns(rng)
        async with connected_sockets() as (near, far), asyncio.TaskGroup() as tasks:
            tasks.create_task(_echo(loop, random.Random(rng.random()), far))
            for _ in range(rng.randrange(1, 10)):
                data = sent.take(rng.randint(1, rng.choice([1000, 300_000])))
                sending = tasks.create_task(loop.sock_sendall(near, data))
                await bounded(_receive(loop, near, expected, sent.count), "the echo")
                await sending
            near.shutdown(socket.SHUT_WR)
        return expected.count

    yield one_round


@contextmanager
def _bound_pair() -> Any:
    with (
        socket.socket(type=socket.SOCK_DGRAM) as near,
        socket.socket(type=socket.SOCK_DGRAM) as far,
    ):
        for sock in (near, far):
            sock.setblocking(False)
            sock.bind(("127.0.0.1", 0))
        yield near, far


@asynccontextmanager
async def datagram_operations(field: Field) -> AsyncIterator[Round]:
    loop = asyncio.get_running_loop()

    async def one_round(rng: random.Random) -> int:
        sent, expected = field.patterns(rng)
        buffer = bytearray(8192)
        with _bound_pair() as (near, far):
            for _ in range(rng.randrange(1, 30)):
                data = sent.take(rng.randrange(8192))
                receiving = asyncio.ensure_future(loop.sock_recvfrom_into(far, buffer))
                try:
                    await loop.sock_sendto(near, data, far.getsockname())
                    count, sender = await bounded(receiving, "a datagram")
                finally:
                    receiving.cancel()
                await loop.sock_sendto(far, buffer[:count], sender)
                back, _ = await bounded(loop.sock_recvfrom(near, 8192), "a datagram")
                assert len(back) == len(data), f"{len(data)} bytes came back as {len(back)}"
                expected.check(back)
        return expected.count

    yield one_round


class _Pump:
    """Sends a stream by a writer callback and checks it in a reader callback."""

    def __init__(self, loop: Loop, field: Field, rng: random.Random, size: int) -> None:
        self._loop, self._rng, self._size = loop, rng, size
        self._sent, self._expected = field.patterns(rng)
        self._rest = b""
        self.near, self.far = socket.socketpair()
        for sock in (self.near, self.far):
            sock.setblocking(False)
        self.done: asyncio.Future[None] = loop.create_future()

    def start(self) -> None:
        self._loop.add_writer(self.near, self._send)
        self._loop.add_reader(self.far, self._receive)

    def stop(self) -> None:
        self._loop.remove_writer(self.near)
        self._loop.remove_reader(self.far)
        self.near.close()
        self.far.close()

    def _send(self) -> None:
        self._rest = self._rest or self._sent.take(self._rng.randint(1, 50_000))
        try:
            self._rest = self._rest[self.near.send(self._rest) :]
        except BlockingIOError:
            return
        if self._sent.count >= self._size and not self._rest:
            self._loop.remove_writer(self.near)

    def _receive(self) -> None:
        try:
            self._expected.check(self.far.recv(1 << 16))
        except Exception as exc:
            self._loop.remove_reader(self.far)
            self.done.set_exception(exc)
        if self._expected.count == self._sent.count >= self._size and not self.done.done():
            self._loop.remove_reader(self.far)
            self.done.set_result(None)


@asynccontextmanager
async def readers_and_writers(field: Field) -> AsyncIterator[Round]:
    loop = asyncio.get_running_loop()

    async def one_round(rng: random.Random) -> int:
        size = rng.randint(1, 500_000)
        pump = _Pump(loop, field, rng, size)
        pump.start()
        try:
            await bounded(pump.done, "the end of the stream")
        finally:
            pump.stop()
        return size

    yield one_round
