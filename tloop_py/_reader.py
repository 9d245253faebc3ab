"""asyncio's StreamReader, which hands over what it was fed as it is, if it was fed that alone.

asyncio's copies received bytes into its buffer, and from there into what read() returns. A reader
whose connection belongs to tloop becomes a ChunkReader: one chunk stays outside of the buffer as
long as it is alone, and read() returns that very object. Whatever else looks at the buffer finds
the chunk in it, and the first readuntil() or readexactly(), which need a buffer, make the reader
asyncio's own again.
"""

from __future__ import annotations

from asyncio import StreamReader, StreamReaderProtocol
from typing import TYPE_CHECKING, Any

from tloop_py._compat import CPYTHON

if TYPE_CHECKING:
    import asyncio

    from tloop_py._base import BaseLoop

_feed_data, _read = StreamReader.feed_data, StreamReader.read


class ChunkReader(StreamReader):
    """Made by `keep_chunks` only."""

    if TYPE_CHECKING:
        _bytes: bytearray  # which a StreamReader knows as its _buffer
        _chunk: bytes  # after those
        _eof: bool
        _exception: BaseException | None
        _limit: int
        _loop: asyncio.AbstractEventLoop
        _paused: bool
        _transport: Any
        _waiter: asyncio.Future[None] | None

        async def _wait_for_data(self, func_name: str) -> None: ...

    def feed_data(self, data: Any) -> None:
        # Whoever kept this method may call it when the reader is asyncio's again.
        alone = type(self) is ChunkReader and not (self._chunk or self._bytes or self._eof)
        if not alone or type(data) is not bytes:
            _feed_data(self, data)
        elif data:
            self._chunk = data
            waiter, self._waiter = self._waiter, None  # as _wakeup_waiter, without its frame
            if waiter is not None and not waiter.cancelled():
                waiter.set_result(None)
            if len(data) > 2 * self._limit and not self._paused and self._transport is not None:
                self._transport.pause_reading()
                self._paused = True

    async def read(self, n: int = -1) -> bytes:
        if type(n) is int and n > 0 and self._exception is None and type(self) is ChunkReader:
            if not (self._chunk or self._bytes or self._eof):
                if self._waiter is not None or self._paused:
                    await self._wait_for_data("read")  # which refuses, or resumes
                else:  # the same, without a coroutine of its own
                    self._waiter = self._loop.create_future()
                    try:
                        await self._waiter
                    finally:
                        self._waiter = None
            chunk = self._chunk
            if chunk and len(chunk) <= n:
                self._chunk = b""
                if self._paused:
                    self._paused = False
                    self._transport.resume_reading()
                return chunk
        return await _read(self, n)

    @property
    def _buffer(self) -> bytearray:
        if self._chunk:
            self._bytes += self._chunk
            self._chunk = b""
        return self._bytes

    @_buffer.setter
    def _buffer(self, buffer: bytearray) -> None:
        _make_plain(self)
        self._buffer = buffer

    async def readuntil(self, separator: Any = b"\n") -> bytes:
        _make_plain(self)
        return await self.readuntil(separator)

    async def readexactly(self, n: int) -> bytes:
        _make_plain(self)
        return await self.readexactly(n)


def _make_plain(reader: Any) -> None:
    buffer = reader._buffer
    reader.__class__ = StreamReader
    reader._buffer = buffer


def keep_chunks(loop: BaseLoop, protocol: asyncio.BaseProtocol) -> None:
    """Have the reader of a stream protocol hand over chunks, where both classes are asyncio's own,
    and unchanged. Not in debug mode."""
    if type(protocol) is not StreamReaderProtocol or loop._debug:
        return
    reader: Any = protocol._stream_reader  # type: ignore[attr-defined]
    kind = type(reader)
    if kind is StreamReader and kind.feed_data is _feed_data and kind.read is _read:
        reader._bytes, reader._chunk = reader._buffer, b""
        reader.__class__ = ChunkReader
        if CPYTHON:  # that left a dict which specialised instructions cannot use: 0.4 us of 8
            reader.__dict__ = dict(reader.__dict__)
