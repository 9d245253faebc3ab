"""Protocols that check the order in which a loop calls them, and every byte."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from tests.soak.field import Field, Pattern, bounded


class Checked:
    """Calls of a protocol in an order that asyncio rules out are problems of the soak."""

    transport: Any = None

    def __init__(self, field: Field) -> None:
        self._field = field
        self._state = "new"
        self._ended = asyncio.get_running_loop().create_future()
        self._writable: asyncio.Future[None] | None = None

    def _expect(self, call: str, *states: str) -> None:
        if self._state not in states:
            self._field.problem(f"{type(self).__name__}: {call} after {self._state}")

    def connection_made(self, transport: Any) -> None:
        self._expect("connection_made", "new")
        self._state = "made"
        self.transport = transport

    def eof_received(self) -> bool | None:
        self._expect("eof_received", "made")
        self._state = "eof"
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect("connection_lost", "made", "eof")
        self._state = "lost"
        self._wake_writer()
        if not self._ended.done():
            self._ended.set_result(exc)

    def pause_writing(self) -> None:
        if self._writable is not None:
            self._field.problem(f"{type(self).__name__}: pause_writing twice")
        self._writable = self._ended.get_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is None:
            self._field.problem(f"{type(self).__name__}: resume_writing without a pause")
        self._wake_writer()

    def _wake_writer(self) -> None:
        waiter, self._writable = self._writable, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def writable(self) -> None:
        if self._writable is not None:
            await bounded(asyncio.shield(self._writable), "resume_writing")

    async def ended(self) -> None:
        await bounded(asyncio.shield(self._ended), f"connection_lost of {self.transport!r}")


class _Echo(Checked):
    """Sends back what it gets, and gets no more until that is on its way."""

    def _send(self, data: bytes) -> None:
        if not self.transport.is_closing():  # asyncio logs the fifth write to a lost connection
            self.transport.write(data)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.transport.resume_reading()


class Echo(_Echo, asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        self._expect("data_received", "made")
        self._send(data)


class _Buffered(Checked, asyncio.BufferedProtocol):
    """Receives into a buffer of its own."""

    def __init__(self, field: Field, *rest: Any) -> None:
        super().__init__(field, *rest)
        # A view: sslproto slices what it is given, and writes into the slices.
        self._buffer = memoryview(bytearray(field.rng.choice([512, 8192, 1 << 16])))

    def get_buffer(self, sizehint: int) -> memoryview:
        # sslproto asks for it also when nothing more will come.
        self._expect("get_buffer", "made", "eof")
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._expect("buffer_updated", "made")
        self._take(self._buffer[:nbytes])

    def _take(self, data: memoryview) -> None:
        raise NotImplementedError


class BufferedEcho(_Buffered, _Echo):
    def _take(self, data: memoryview) -> None:
        self._send(bytes(data))


class _Client(Checked):
    """Checks that what comes is the stream it expects."""

    def __init__(self, field: Field, expected: Pattern) -> None:
        super().__init__(field)
        self._pattern = expected
        self._goal = -1
        self._reached: asyncio.Future[None] = self._ended.get_loop().create_future()

    def _take(self, data: bytes | memoryview) -> None:
        try:
            self._pattern.check(data)
        except AssertionError as exc:
            self._field.failure(type(self).__name__, exc)
            self.transport.abort()
        self._look()

    def _look(self) -> None:
        if self._pattern.count >= self._goal >= 0 and not self._reached.done():
            self._reached.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self._reached.done():
            self._reached.cancel()

    async def received(self, count: int) -> None:
        """Wait until that many bytes of the stream have come; they are right then."""
        self._goal = count
        self._look()
        await bounded(asyncio.shield(self._reached), f"byte {count} (at {self._pattern.count})")


class Client(_Client, asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        self._expect("data_received", "made")
        self._take(data)


class BufferedClient(_Client, _Buffered):
    pass


async def pause_now_and_then(transport: Any, rng: random.Random) -> None:
    """Stop reading for a moment, once in a while."""
    if rng.random() < 0.1:
        transport.pause_reading()
        await asyncio.sleep(rng.random() * 0.002)
        transport.resume_reading()
