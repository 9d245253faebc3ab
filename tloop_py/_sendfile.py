"""sendfile: from a file to a socket or a transport without passing through Python.

When to fall back on reading and writing is decided by asyncio's base loop, which this extends by
the native way; TLS transports always fall back, and read the file in larger pieces than asyncio.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import sys
from asyncio import tasks
from asyncio.exceptions import SendfileNotAvailableError
from typing import TYPE_CHECKING, Any

from tloop_py._base import BaseLoop, base_events
from tloop_py._compat import SENDFILE_ALWAYS_SEEKS

if TYPE_CHECKING:
    import asyncio
    import socket

_MAX_PIECE = sys.maxsize // 2 + 1  # 1 GiB where a size has 32 bits
# asyncio reads 16 KiB per trip to the executor; the trips cost four times as much as TLS itself.
_READ = 256 * 1024
_FILES = (io.BufferedReader, io.BufferedRandom, io.FileIO)


class SendfileMixin(BaseLoop):
    async def _sendfile_native(self, transp: Any, file: Any, offset: int, count: int | None) -> int:
        if transp._loop is not self:
            raise KeyError(f"{transp!r} is a transport of another loop")
        waiter = transp._make_empty_waiter()  # from here on write() is refused
        resume_reading = transp.is_reading()
        transp.pause_reading()
        try:
            await waiter
            with transp._lend_socket() as sock:
                sent: int = await self.sock_sendfile(sock, file, offset, count, fallback=False)
                return sent
        finally:
            transp._reset_empty_waiter()
            if resume_reading:
                transp.resume_reading()

    async def _sendfile_fallback(
        self, transp: Any, file: Any, offset: int, count: int | None
    ) -> int:
        seekable = hasattr(file, "seek")
        if seekable:
            file.seek(offset)
        buffer = memoryview(bytearray(min(count or _READ, _READ)))
        protocol = base_events._SendfileFallbackProtocol(transp)
        sent = 0
        passed = False  # was something read past the file object?
        try:
            while not count or sent < count:
                part = buffer[: count - sent] if count else buffer
                read = _read_cached(file, part, offset + sent)
                if read is not None:
                    passed = True
                    await tasks.sleep(0)  # others get their turn
                else:
                    if passed:
                        file.seek(offset + sent)
                    passed = False
                    read = await self.run_in_executor(None, file.readinto, part)
                if not read:
                    break
                await protocol.drain()
                transp.write(part[:read])  # which copies what it keeps
                sent += read
            return sent
        finally:
            if sent and seekable:
                file.seek(offset + sent)
            await protocol.restore()

    async def _sock_sendfile_native(
        self, sock: socket.socket, file: Any, offset: int, count: int | None
    ) -> int:
        if not hasattr(os, "sendfile"):
            raise SendfileNotAvailableError("os.sendfile() is not available")
        fileno, size = _number_and_size(file)
        blocksize = count or size
        if not blocksize:
            return 0
        if sock.fileno() != -1:  # else sending fails as on any closed socket
            self._ensure_fd_no_transport(sock)
        future: asyncio.Future[int] = self.create_future()
        self._sock_sendfile_native_impl(future, None, sock, fileno, offset, count, blocksize, 0)
        return await future

    def _sock_sendfile_native_impl(
        self,
        fut: asyncio.Future[int],
        registered_fd: int | None,
        sock: socket.socket,
        fileno: int,
        offset: int,
        count: int | None,
        blocksize: int,
        total_sent: int,
    ) -> None:
        """Send one piece; the next when there is room, after others had their turn.

        registered_fd: the descriptor whose writer this call is, None for the first call; offset and
        total_sent: how far it is. CPython's tests know the name and the arguments.
        """
        left = count - total_sent if count else blocksize
        sent: int | None = 0
        try:
            if left > 0 and not fut.cancelled():
                sent = _send_piece(sock.fileno(), fileno, offset, min(left, _MAX_PIECE))
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._end_sendfile(registered_fd, fileno, offset, total_sent)
            fut.set_exception(_failure(exc, registered_fd is None, total_sent))
            return
        if sent == 0:  # all is sent, or the file has ended before
            self._end_sendfile(registered_fd, fileno, offset, total_sent)
            if not fut.cancelled():
                fut.set_result(total_sent)
            return
        if registered_fd is None:
            fut.add_done_callback(functools.partial(self._stop_sendfile, sock))
        offset, total_sent = offset + (sent or 0), total_sent + (sent or 0)
        fd = sock.fileno()
        self.add_writer(
            fd, self._sock_sendfile_native_impl,
            fut, fd, sock, fileno, offset, count, blocksize, total_sent,
        )  # fmt: skip

    def _end_sendfile(
        self, registered_fd: int | None, fileno: int, offset: int, total_sent: int
    ) -> None:
        if registered_fd is not None:
            self.remove_writer(registered_fd)
        # The file's position is where sending has stopped.
        if total_sent > 0 or SENDFILE_ALWAYS_SEEKS:
            os.lseek(fileno, offset, os.SEEK_SET)

    def _stop_sendfile(self, sock: socket.socket, fut: asyncio.Future[int]) -> None:
        """As on asyncio the position of the file stays where it was."""
        if fut.cancelled() and sock.fileno() != -1:
            self.remove_writer(sock)


def _read_cached(file: Any, part: memoryview, position: int) -> int | None:
    """What is in memory of a file, without a trip to the executor; None: go there."""
    raw = getattr(file, "raw", file)  # another one may decompress, or be no file
    if type(file) not in _FILES or type(raw) is not io.FileIO or not hasattr(os, "RWF_NOWAIT"):
        return None
    try:
        return os.preadv(file.fileno(), [part], position, os.RWF_NOWAIT)
    except OSError:  # not all is there, or this file system or kernel cannot tell
        return None


def _number_and_size(file: Any) -> tuple[int, int]:
    try:
        fileno = file.fileno()
    except (AttributeError, io.UnsupportedOperation):
        raise SendfileNotAvailableError("not a regular file") from None
    try:
        return fileno, os.fstat(fileno).st_size
    except OSError:
        raise SendfileNotAvailableError("not a regular file") from None


def _send_piece(out_fd: int, in_fd: int, offset: int, nbytes: int) -> int | None:
    """How much the socket took; 0 at the end of the file, None when there is no room."""
    try:
        return os.sendfile(out_fd, in_fd, offset, nbytes)
    except (BlockingIOError, InterruptedError):
        return None


def _failure(exc: BaseException, first: bool, total_sent: int) -> BaseException:
    """What to raise: as long as nothing was sent the ordinary way may still work."""
    if not isinstance(exc, OSError):
        return exc
    if total_sent == 0:
        failure: Exception = SendfileNotAvailableError("os.sendfile call failed")
    elif exc.errno == errno.ENOTCONN and not first and type(exc) is not ConnectionError:
        failure = ConnectionError("socket is not connected", errno.ENOTCONN)
    else:
        return exc
    failure.__cause__ = exc
    return failure
