"""Stream transports: TCP and Unix sockets. The C core receives, sends and queues."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from asyncio import constants, protocols
from asyncio.exceptions import SendfileNotAvailableError
from typing import TYPE_CHECKING, Any

from tloop_py._ffi import DATA, DRAIN, EOF, ERROR, KEEP_FD, WRITE, ffi, lib, oserror
from tloop_py._outbox import BATCH, SMALL, Outbox
from tloop_py._reader import keep_chunks
from tloop_py._receiver import COPIES
from tloop_py._ssl import SSLProtocol
from tloop_py._transport import Transport, adopt

if TYPE_CHECKING:
    from asyncio.base_events import Server
    from collections.abc import Iterable, Iterator
    from contextvars import Context

_logger = logging.getLogger("asyncio")

_write = lib.tl_stream_write  # looking it up through `lib` costs 40 ns a time
_recv = lib.tl_stream_recv
_read_mixed = lib.tl_stream_read_mixed
_read_stop = lib.tl_stream_read_stop
_tell_received = lib.tl_stream_received
_read = os.read
_from_buffer = ffi.from_buffer
_release = ffi.release
_memmove = ffi.memmove
_CHARS = ffi.typeof("char[]")
_EAGAIN = -errno.EAGAIN
_READ_FAILED = "Fatal read error on socket transport"
_WRITE_FAILED = "Fatal write error on socket transport"
_EMPTY_BUFFER = "get_buffer() returned an empty buffer"

# From so many bytes on a receive is worth a call of its own: into a new `bytes`, which is sent from
# the cache, or into the protocol's buffer without a copy. Server CPU, 50 connections: protocols
# with 20 KiB 0.91, 48 KiB 0.88, 100 KiB 0.85; with buffers 10 KiB 0.97, 100 KiB 0.75.
_LARGE = 16 << 10
LARGE_FOR_BUFFER = 8 << 10
NEVER = 1 << 62
_LARGEST = 256 << 10  # as much as asyncio receives at a time


class StreamTransport(Transport, asyncio.Transport):
    """A connected stream socket.

    Made from a socket object (sock), which stays its owner, or from a handle that the C core
    accepted, with the kind of socket: family, type, protocol. Or from a handle that another
    transport had until now, with what that one had.
    """

    # CPython from 3.14 on keeps room in an object, beside its slots, for all that methods assign to
    # self: 168 of 464 bytes. Of that it reads in this name of the class; now the module has it.
    global __static_attributes__

    __slots__ = (
        "_buffered", "_eof", "_held", "_kind", "_large", "_outbox", "_pending", "_reading",
    )  # fmt: skip

    _batch_limit = SMALL
    _large_for_bytes = _LARGE
    _start_tls_compatible = True
    _sendfile_compatible = constants._SendfileMode.TRY_NATIVE
    # Only while sendfile() runs has a transport its own, in its __dict__.
    _empty_waiter: asyncio.Future[None] | None = None
    _lent: socket.socket | None = None

    def __init__(
        self,
        loop: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        sock: socket.socket | None = None,
        handle: int = 0,
        kind: tuple[int, int, int] | None = None,
        extra: dict[str, Any] | None = None,
        server: Server | None = None,
        context: Context | None = None,
    ) -> None:
        if sock is not None and not handle:
            handle = adopt(loop, lib.tl_stream_open(loop._c, sock.fileno(), KEEP_FD), sock)
        self._buffered = False
        self._reading = False  # has reading begun?
        self._eof = False
        # Received, but the stream was paused, or the protocol changed, earlier in the tick.
        self._held: tuple[memoryview, ...] = ()
        self._kind = kind
        self._outbox: Outbox = loop._outbox
        self._pending = 0  # bytes in the outbox
        super().__init__(loop, protocol, handle, sock, extra, server, context)
        self._begin(waiter)

    def _make_socket(self) -> socket.socket:
        self._flush()
        assert self._kind is not None
        if not self._handle:  # asked for the first time after the end
            sock = socket.socket(*self._kind)
            sock.close()
            return sock
        fd = lib.tl_release_fd(self._c, self._handle)
        sock = socket.socket(*self._kind, fileno=fd)
        sock.setblocking(False)  # PyPy has just made the descriptor blocking
        return sock

    # -- receiving --------------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        buffered = isinstance(protocol, protocols.BufferedProtocol)
        tls = buffered and isinstance(protocol, SSLProtocol)
        loop = self._loop
        if loop is not None:  # else closed, and asyncio's sendfile() restores the protocol
            self._arena = loop._arena_view if tls else loop._arena
            if buffered:
                self._large = NEVER if tls else LARGE_FOR_BUFFER
            else:
                self._large = self._large_for_bytes if loop._may_receive else NEVER
            keep_chunks(loop, protocol)
        buffered = buffered and not tls
        changed, self._buffered = buffered != self._buffered, buffered
        self._protocol = protocol
        self._choose_way()
        if changed and self._reading and self.is_reading():
            self._read_on()

    def _choose_way(self) -> None:
        """What events may go the short way, past _event."""
        if self._held or self._closing or self._paused:
            self._takes = 0
        else:
            self._takes = COPIES if self._buffered else DATA

    def _read_on(self) -> None:
        """Read; but of _large bytes and more be told, to receive them by a call of their own."""
        rc = _read_mixed(self._c, self._handle, self._large)
        if rc < 0:
            self._loop.call_soon(self._fatal_error, oserror(rc), _READ_FAILED, context=self._home)

    def _start_reading(self) -> None:
        if self._handle:
            self._reading = True
            if not (self._closing or self._paused):
                self._read_on()

    def _stop_reading(self) -> None:
        self._held = ()
        _read_stop(self._c, self._handle)

    def pause_reading(self) -> None:
        if self._closing or self._paused:
            return
        self._paused = True
        self._takes = 0
        lib.tl_stream_read_stop(self._c, self._handle)
        if self._loop._debug:
            _logger.debug("%r pauses reading", self)

    def resume_reading(self) -> None:
        if self._closing or not self._paused:
            return
        self._paused = False
        self._choose_way()
        if self._reading:
            self._renew_context()
            if self._held:
                self._call_soon(self._deliver_held)
            self._read_on()
        if self._loop._debug:
            _logger.debug("%r resumes reading", self)

    def _event(self, kind: int, result: int, offset: int) -> None:
        if kind == DATA:  # paused, or what came before is not delivered yet
            if not self._closing:
                self._hold(bytes(self._arena[offset : offset + result]))
        elif kind == DRAIN:
            self._drained()
        elif kind == ERROR and offset == WRITE:
            self._fatal_error(oserror(result), _WRITE_FAILED)
        else:
            if self._held:
                self._deliver_held()
            # When paused the C core remembers, and resuming tells; so it does when the protocol has
            # just changed to one without a buffer.
            if self._closing or self._paused:
                return
            if kind == EOF:
                self._received_eof()
            elif kind == ERROR:
                self._fatal_error(oserror(result), _READ_FAILED)
            else:
                self._receive_large()

    def _event_failed(self, exc: BaseException) -> None:
        buffered = isinstance(self._protocol, protocols.BufferedProtocol)  # so is TLS, for asyncio
        method = "buffer_updated" if buffered else "data_received"
        self._fatal_error(exc, f"Fatal error: protocol.{method}() call failed.")

    def _received(self, data: bytes) -> None:
        try:
            self._protocol.data_received(data)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._event_failed(exc)

    def _hold(self, data: bytes) -> None:
        self._held += (memoryview(data),)
        self._deliver_held()

    def _deliver_held(self) -> None:
        """Give what is held to whoever reads now, as if it came from the kernel."""
        while self._held and self.is_reading():
            if self._buffered:
                self._fill_buffer()
            else:
                self._received(bytes(self._take_held()))
        self._choose_way()

    def _take_held(self) -> memoryview:
        first, *rest = self._held
        self._held = tuple(rest)
        return first

    def _copy_in(self, data: bytes, size: int) -> None:
        """A small receive; the protocol is asked for its buffer now, as on asyncio."""
        try:  # what _ask_buffer does, without its frame
            buffer = self._protocol.get_buffer(-1)
            room = len(buffer)
            if not room:
                raise RuntimeError(_EMPTY_BUFFER)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._no_buffer(exc)
            return
        if room < size:
            self._held = (memoryview(data),)
            self._fill(buffer)
            self._deliver_held()
            return
        try:
            _memmove(buffer, data, size)
        except (TypeError, ValueError, BufferError):
            self._refuse(buffer)
            return
        self._protocol.buffer_updated(size)  # what it raises the dispatcher gives _event_failed

    def _fill_buffer(self) -> None:
        buffer = self._ask_buffer()
        if buffer is not None:
            self._fill(buffer)

    def _fill(self, buffer: Any) -> None:
        lent = self._lend(buffer)
        if lent is None:
            return
        data = self._take_held() if self._held else memoryview(b"")  # get_buffer() may have closed
        size = min(len(lent), len(data))
        _memmove(lent, data, size)
        _release(lent)
        if size < len(data):
            self._held = (data[size:], *self._held)
        if size:
            self._buffer_updated(size)

    def _receive_large(self) -> None:
        if self._buffered:
            self._receive_into()
        else:
            self._receive_bytes()

    def _receive_into(self) -> None:
        buffer = self._ask_buffer()
        lent = None if buffer is None else self._lend(buffer)
        if lent is None:
            return
        n = _recv(self._c, self._handle, lent, len(lent))
        _release(lent)
        if n > 0:
            self._protocol.buffer_updated(n)
        elif n == 0:
            self._received_eof()
        elif n != _EAGAIN:
            self._fatal_error(oserror(n), _READ_FAILED)

    def _receive_bytes(self) -> None:
        try:
            data = _read(self._fd, _LARGEST)
        except BlockingIOError:
            _tell_received(self._c, self._handle, _EAGAIN, _LARGEST)
        except OSError as exc:
            self._fatal_error(exc, _READ_FAILED)
        else:
            _tell_received(self._c, self._handle, len(data), _LARGEST)
            if data:
                self._protocol.data_received(data)
            else:
                self._received_eof()

    def _ask_buffer(self) -> Any:
        """The protocol's buffer; None when that was a fatal error."""
        try:
            buffer = self._protocol.get_buffer(-1)
            if not len(buffer):
                raise RuntimeError(_EMPTY_BUFFER)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._no_buffer(exc)
            return None
        return buffer

    def _no_buffer(self, exc: BaseException) -> None:
        self._fatal_error(exc, "Fatal error: protocol.get_buffer() call failed.")

    def _lend(self, buffer: Any) -> Any:
        """Its memory, to be released; None when that was a fatal error."""
        try:
            return _from_buffer(_CHARS, buffer, True)  # by position: half of the time
        except (TypeError, ValueError, BufferError):
            self._refuse(buffer)
            return None

    def _refuse(self, buffer: object) -> None:
        kind = type(buffer).__name__
        failure = TypeError(f"get_buffer() must return a read-write bytes-like object, not {kind}")
        self._fatal_error(failure, _READ_FAILED)

    def _buffer_updated(self, nbytes: int) -> None:
        try:
            self._protocol.buffer_updated(nbytes)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal error: protocol.buffer_updated() call failed.")

    def _received_eof(self) -> None:
        if self._loop._debug:
            _logger.debug("%r received EOF", self)
        try:
            keep_open = self._protocol.eof_received()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal error: protocol.eof_received() call failed.")
            return
        if not keep_open:
            self.close()

    # -- sending ----------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send; what the kernel does not take at once is copied. Never blocks."""
        outbox = self._outbox
        if outbox.is_open and not self._write_barred:
            part: bytes | None
            if type(data) is bytes:
                part = data
            elif type(data) is bytearray and len(data) <= SMALL:
                part = bytes(data)  # for it must not change in the outbox
            else:
                part = _small_copy(data)
            if part:
                pending = self._pending + len(part)
                if pending <= SMALL:
                    self._pending = pending
                    outbox.transports.append(self)
                    outbox.parts.append(part)
                    if len(outbox.parts) == BATCH:
                        outbox.flush()
                    return
        self._write_now(self._check_write(data))

    def _write_now(self, data: bytes | bytearray | memoryview) -> None:
        if self._pending:
            self._outbox.flush()
        if not data:
            return
        if type(data) is bytes:
            queued = _write(self._c, self._handle, data, len(data))
        else:
            with ffi.from_buffer(_CHARS, data) as view:
                queued = _write(self._c, self._handle, view, len(view))
        if queued:
            self._not_all_sent(queued)

    def _check_write(self, data: object) -> bytes | bytearray | memoryview:
        """What to send; nothing if the connection is lost."""
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(
                f"data argument must be a bytes-like object, not {type(data).__name__!r}"
            )
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._empty_waiter is not None:
            raise RuntimeError("unable to write; sendfile is in progress")
        if self._conn_lost:
            if data:
                self._lost_write()
            return b""
        if isinstance(data, memoryview) and not data.c_contiguous:
            return bytes(data)
        return data

    def _not_all_sent(self, queued: int) -> None:
        if queued > 0:
            self._write_barred = True
            self._maybe_pause_protocol()
        elif self._loop.is_closed():
            raise RuntimeError("Event loop is closed")
        else:
            self._fatal_error(oserror(queued), _WRITE_FAILED)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """As one write of all; the parts are joined, which is cheaper than telling C of each."""
        if self._eof:
            raise RuntimeError("Cannot call writelines() after write_eof()")
        if self._empty_waiter is not None:
            raise RuntimeError("unable to writelines; sendfile is in progress")
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        """Half-close: the peer reads end of file after what is queued."""
        if self._closing or self._eof:
            return
        self._flush()
        self._eof = self._write_barred = True
        rc = lib.tl_stream_shutdown(self._c, self._handle)
        if rc < 0:
            self._loop._check_closed()
            raise oserror(rc)

    def can_write_eof(self) -> bool:
        return True

    # -- start_tls() goes on with another transport ------------------------------------------------

    def _hand_over(self) -> dict[str, Any]:
        """The connection, as the heir's constructor takes it. This transport is closed by that, but
        its protocol is not told. _forward must follow."""
        self._outbox.flush()
        self._unregister()
        self._closing = self._write_barred = True
        self._takes = 0
        self._conn_lost += 1
        handle, self._handle = self._handle, 0
        sock, self._sock = self._sock, None
        return {
            "handle": handle,
            "sock": sock,
            "kind": self._kind,
            "extra": dict(self._extra),
            "context": self._home,
        }

    def _forward(self, heir: StreamTransport) -> None:
        """Whoever still has this transport may ask it, and end the connection. The heir takes its
        place with the server, which may have closed and would take no other client."""
        heir._server, self._server = self._server, None
        self.__dict__.update(
            abort=heir.abort,
            close=heir.abort,
            get_extra_info=heir.get_extra_info,
            is_closing=heir.is_closing,
        )

    # -- sendfile() waits for an empty queue, then sends by itself --------------------------------

    def _make_empty_waiter(self) -> asyncio.Future[None]:
        if self._empty_waiter is not None:
            raise RuntimeError("Empty waiter is already set")
        self._empty_waiter = self._loop.create_future()
        self._write_barred = True
        if not self.get_write_buffer_size():
            self._empty_waiter.set_result(None)
        return self._empty_waiter

    def _reset_empty_waiter(self) -> None:
        self._empty_waiter = None
        self._unbar()

    @contextlib.contextmanager
    def _lend_socket(self) -> Iterator[socket.socket]:
        """A duplicate of the socket, whose room can be waited for beside the C core's own waiting.
        Raises ConnectionError when the transport has begun to close."""
        if self._closing:
            raise ConnectionError("Connection is closed by peer")
        try:
            sock = self.get_extra_info("socket").dup()
        except OSError as exc:  # no descriptor left
            raise SendfileNotAvailableError("the socket cannot be duplicated") from exc
        with sock:
            self._lent = sock
            try:
                yield sock
            finally:
                self._lent = None

    def get_write_buffer_size(self) -> int:
        if not (self._write_barred or self._pending):  # a queue bars writing past it
            return 0
        return super().get_write_buffer_size()

    def _flush(self) -> None:
        if self._pending:
            self._outbox.flush()

    def _unbar(self) -> None:
        if self._eof or self._empty_waiter is not None:
            self._write_barred = True
        else:
            super()._unbar()

    def _emptied(self) -> None:
        if self._empty_waiter is not None and not self._empty_waiter.done():
            self._empty_waiter.set_result(None)
        super()._emptied()

    def _call_connection_lost(self, exc: BaseException | None) -> None:
        super()._call_connection_lost(exc)
        waiter = self._empty_waiter
        if waiter is not None and not waiter.done():
            lost = exc if isinstance(exc, OSError) else None
            waiter.set_exception(lost or ConnectionError("Connection is closed by peer"))
        if self._lent is not None:  # sendfile fails now, instead of keeping the connection open
            with contextlib.suppress(OSError):
                self._lent.shutdown(socket.SHUT_RDWR)


def _small_copy(data: object) -> bytes | None:
    """What a memoryview shows, to wait in the outbox; None for more, or for what is none."""
    return bytes(data) if type(data) is memoryview and data.nbytes <= SMALL else None
