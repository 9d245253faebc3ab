"""Pipe transports: the two ends of pipes, FIFOs, sockets, terminals and other character devices."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
import warnings
from asyncio import constants
from typing import IO, TYPE_CHECKING, Any

from tloop_py._base import BaseLoop
from tloop_py._debug import origin
from tloop_py._ffi import DATA, DRAIN, EOF, ERROR, KEEP_FD, lib, oserror
from tloop_py._transport import Endpoint, Transport, adopt

if TYPE_CHECKING:
    from collections.abc import Callable

_logger = logging.getLogger("asyncio")


def _is_pipe(mode: int) -> bool:
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _mode(pipe: IO[bytes], refusal: str) -> int:
    """File type of what can be a pipe transport; ValueError for the rest."""
    mode = os.fstat(pipe.fileno()).st_mode
    if not (_is_pipe(mode) or stat.S_ISCHR(mode)):
        raise ValueError(refusal)
    return mode


def _open(loop: Any, pipe: IO[bytes]) -> int:
    """A handle of the C core for a file object, which goes on owning its descriptor."""
    loop._check_closed()
    fd = pipe.fileno()
    if fd not in loop._transports:
        loop._forget_descriptor(fd)
        return adopt(loop, lib.tl_stream_open(loop._c, fd, KEEP_FD), pipe)
    # Reading and writing one terminal by two transports works on asyncio. The kernel watches a
    # descriptor for one handle only, but its duplicate for another.
    fd = os.dup(fd)
    handle: int = lib.tl_stream_open(loop._c, fd, 0)
    if handle < 0:
        os.close(fd)
    return adopt(loop, handle, pipe)


class ReadPipeTransport(Endpoint, asyncio.ReadTransport):
    """The reading end; closes the pipe object when it ends."""

    __slots__ = (
        "__dict__", "__weakref__", "_arena", "_c", "_closing", "_context", "_fd", "_handle",
        "_held", "_loop", "_paused", "_pipe", "_protocol", "_takes",
    )  # fmt: skip

    if TYPE_CHECKING:
        _extra: dict[str, Any]

    _start_may_fail = True  # on a device that cannot be waited for, such as /dev/null

    def __init__(
        self,
        loop: Any,
        pipe: IO[bytes],
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        _mode(pipe, "Pipe transport is for pipes/sockets only.")
        self._handle = _open(loop, pipe)
        super().__init__(extra)
        self._extra["pipe"] = pipe
        self._loop, self._c, self._arena = loop, loop._c, loop._arena
        self._pipe: Any = pipe  # None: closed
        self._fd: int = lib.tl_fd(self._c, self._handle)
        self._protocol: Any = protocol
        self._closing = self._paused = False
        self._takes = DATA
        # What came while an earlier callback of the tick had paused reading; b"" is end of file.
        self._held: list[bytes] = []
        if loop._debug:
            self._source_traceback = origin(loop)
        self._register(None)
        self._begin(waiter)

    def __repr__(self) -> str:
        info = self._describe()
        if self._handle and self._loop.is_closed():
            info.append("open")
        elif self._handle:
            info.append("polling" if self.is_reading() else "idle")
        return f"<{' '.join(info)}>"

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    # -- reading ----------------------------------------------------------------------------------

    def _start_reading(self) -> None:
        if self.is_reading():
            self._read_on()

    def _read_on(self) -> None:
        rc = lib.tl_stream_read_start(self._c, self._handle)
        if rc == -errno.EPERM:
            raise oserror(rc, repr(self._pipe))
        if rc < 0:
            self._loop.call_soon(self._read_failed, oserror(rc))

    def pause_reading(self) -> None:
        if not self.is_reading():
            return
        self._paused = True
        self._takes = 0
        lib.tl_stream_read_stop(self._c, self._handle)
        if self._loop.get_debug():
            _logger.debug("%r pauses reading", self)

    def resume_reading(self) -> None:
        if self._closing or not self._paused:
            return
        self._paused = False
        self._takes = DATA
        for _ in self._held:
            self._loop.call_soon(self._deliver_held)
        self._renew_context()
        self._read_on()
        if self._loop.get_debug():
            _logger.debug("%r resumes reading", self)

    def _event(self, kind: int, result: int, offset: int) -> None:
        if self._closing:
            return
        if kind == DATA:
            self._deliver(self._arena[offset : offset + result])
        elif kind == EOF and not result:
            self._deliver(b"")
        elif not self._paused:  # else the same answer comes after resuming
            self._read_failed(oserror(result))

    def _deliver(self, data: bytes) -> None:
        if self._paused:
            self._held.append(data)
        elif data:
            self._protocol.data_received(data)
        else:
            self._received_eof()

    def _deliver_held(self) -> None:
        if self._held and self.is_reading():
            self._deliver(self._held.pop(0))

    def _received_eof(self) -> None:
        if self._loop.get_debug():
            _logger.info("%r was closed by peer", self)
        self._loop.call_soon(self._protocol.eof_received)
        self._close(None)

    def _read_failed(self, exc: OSError) -> None:
        if self._closing:
            return
        message = "Fatal read error on pipe transport"
        if exc.errno != errno.EIO:
            self._loop.call_exception_handler(
                {
                    "message": message,
                    "exception": exc,
                    "transport": self,
                    "protocol": self._protocol,
                }
            )
        elif self._loop.get_debug():  # a terminal has hung up
            _logger.debug("%r: %s", self, message, exc_info=exc)
        self._close(exc)

    # -- the end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop reading, then connection_lost(None). What was not read stays in the pipe."""
        if not self._closing:
            self._close(None)

    def _close(self, exc: OSError | None) -> None:
        self._closing = True
        self._takes = 0
        lib.tl_stream_read_stop(self._c, self._handle)
        self._loop.call_soon(self._call_connection_lost, exc)

    def _call_connection_lost(self, exc: OSError | None) -> None:
        try:
            self._protocol.connection_lost(exc)
        finally:
            self._unregister()
            self._protocol = self._loop = None
            self._close_handle()

    def _close_handle(self) -> None:
        handle, self._handle = self._handle, 0
        lib.tl_close(self._c, handle)
        pipe, self._pipe = self._pipe, None
        pipe.close()

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        if getattr(self, "_pipe", None) is not None:  # else the constructor has failed
            self._tell_unclosed(_warn)
            self._close_handle()


class WritePipeTransport(Transport):
    """The writing end; closes the pipe object when it ends.

    The end of the reader is noticed where the kernel tells it: on pipes, FIFOs and sockets.
    """

    __slots__ = ("_lost_writes", "_pipe", "_watched")

    _start_may_fail = True

    def __init__(
        self,
        loop: Any,
        pipe: IO[bytes],
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        mode = _mode(pipe, "Pipe transport is only for pipes, sockets and character devices")
        self._watched = _is_pipe(mode)
        self._pipe: Any = pipe  # None: closed
        self._lost_writes = 0
        super().__init__(loop, protocol, _open(loop, pipe), None, extra, None)
        self._note("pipe", pipe)
        self._begin(waiter)

    def __repr__(self) -> str:
        info = self._describe()
        if self._handle and self._loop.is_closed():
            info.append("open")
        elif self._handle:
            size = self.get_write_buffer_size()
            info += ["polling" if size else "idle", f"bufsize={size}"]
        return f"<{' '.join(info)}>"

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`pipe` is the file object; and what was given."""
        return self._extra.get(name, default)

    # -- the reader's end -------------------------------------------------------------------------

    def _start_reading(self) -> None:
        """Nothing is read: a pipe becomes readable here when it has lost its reader."""
        if self._watched and not self._closing:
            rc = lib.tl_stream_read_notify(self._c, self._handle)
            if rc < 0:
                raise oserror(rc, repr(self._pipe))

    def _stop_reading(self) -> None:
        lib.tl_stream_read_stop(self._c, self._handle)

    def _event(self, kind: int, result: int, offset: int) -> None:
        if kind == DRAIN:
            self._drained()
        elif kind == ERROR and not self._watched:
            self._fatal_error(oserror(result), "Fatal write error on pipe transport")
        elif not self._conn_lost:
            self._lost_reader(kind == ERROR or self.get_write_buffer_size() > 0)

    def _lost_reader(self, unsent: bool) -> None:
        if self._loop.get_debug():
            _logger.info("%r was closed by peer", self)
        self._force_close(BrokenPipeError() if unsent else None)

    # -- writing ----------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send; what the kernel does not take at once is copied. Never blocks."""
        assert isinstance(data, (bytes, bytearray, memoryview)), repr(data)
        if not data:
            return
        if self._conn_lost or self._closing:
            self._lost_write()
            return
        data = bytes(data)
        queued = lib.tl_stream_write(self._c, self._handle, data, len(data))
        if queued > 0:
            self._maybe_pause_protocol()
        elif queued < 0:
            if self._loop.is_closed():
                raise RuntimeError("Event loop is closed")
            self._lost_writes += 1
            self._fatal_error(oserror(queued), "Fatal write error on pipe transport")

    def _lost_write(self) -> None:
        if self._lost_writes >= constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES:
            _logger.warning("pipe closed by peer or os.write(pipe, data) raised exception.")
        self._lost_writes += 1

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """The same as close(): a pipe has no half that could stay open."""
        self.close()

    def _close_handle(self) -> None:
        super()._close_handle()
        pipe, self._pipe = self._pipe, None
        pipe.close()

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        if getattr(self, "_pipe", None) is not None:
            super().__del__(_warn)


class PipeMixin(BaseLoop):
    def _make_read_pipe_transport(
        self,
        pipe: IO[bytes],
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> ReadPipeTransport:
        return ReadPipeTransport(self, pipe, protocol, waiter, extra)

    def _make_write_pipe_transport(
        self,
        pipe: IO[bytes],
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> WritePipeTransport:
        return WritePipeTransport(self, pipe, protocol, waiter, extra)
