"""What transports share: the handle, life cycle, flow control, extra info."""

from __future__ import annotations

import asyncio
import logging
import warnings
from asyncio import constants, trsock
from contextvars import copy_context
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tloop_py import _addr, _compat
from tloop_py._base import FlowControl
from tloop_py._debug import NOTHING, origin
from tloop_py._ffi import ADDR_BYTES, lib, oserror
from tloop_py._receiver import EventReceiver

if TYPE_CHECKING:
    import socket
    from asyncio.base_events import Server
    from collections.abc import Callable
    from contextvars import Context

_logger = logging.getLogger("asyncio")

# Each connection calls these; looking them up through `lib` costs 40 ns a time.
_fd_of, _queued, _close = lib.tl_fd, lib.tl_queued, lib.tl_close
_names_of = lib.tl_names

LAZY_INFO = ("socket", "sockname", "peername")
_UNKNOWN = (0, b"")
_MAX_MARK = (1 << 62) - 1
_NO_INFO: Any = MappingProxyType({})  # idle connections share it: 80 bytes less


class Endpoint(EventReceiver):
    """A handle of the C core, and the protocol that hears of it."""

    __slots__ = ()

    if TYPE_CHECKING:
        _arena: Any
        _c: Any  # tl_loop *
        _closing: bool
        _fd: int
        _handle: int
        _paused: bool

    _start_may_fail = False  # If so, that is told apart from a failing connection_made.
    # The context of a connection's callbacks; None: each has that in which it was scheduled.
    _home: Context | None = None

    def _describe(self) -> list[str]:
        """How every repr begins."""
        info = [type(self).__name__]
        if not self._handle:
            info.append("closed")
        elif self._closing:
            info.append("closing")
        return [*info, f"fd={self._fd}"]

    def _register(self, context: Context | None) -> None:
        """Be the transport of the descriptor, and get its events, in that context or a copy of the
        present one."""
        loop = self._loop
        loop._transports[self._fd] = loop._handlers[self._handle] = self
        self._context = copy_context() if context is None else context  # type: ignore[misc]

    def _begin(self, waiter: asyncio.Future[None] | None) -> None:
        """Reading starts after connection_made, and the waiter is woken after both."""
        try:
            connection_made = self._protocol.connection_made
        except BaseException:  # what the factory gave is no protocol
            self._abandon()
            raise
        if self._start_may_fail or self._loop._debug:  # which tells what callback took long
            self._call_soon(connection_made, self)
            self._loop._append((self._context, self._start_reading, NOTHING))
        else:
            self._call_soon(self._establish, connection_made)
        if waiter is not None:
            self._call_soon(_wake, waiter)

    def _establish(self, connection_made: Callable[..., object]) -> None:
        """Both as one entry of the queue. What comes out of it the loop reports as an exception of
        connection_made."""
        try:
            connection_made(self)
        finally:
            self._start_reading()

    def _call_soon(self, callback: Callable[..., object], argument: object = NOTHING) -> None:
        context = copy_context() if self._home is None else self._home
        self._loop._append((context, callback, argument))

    def _renew_context(self) -> None:
        """Who reads again does so in the present context, unless the connection has one."""
        if self._home is None:
            self._context = copy_context()  # type: ignore[misc]  # a slot of each subclass

    def _start_reading(self) -> None:
        raise NotImplementedError

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return not self._closing and not self._paused

    def _unregister(self) -> None:
        self._loop._handlers.pop(self._handle, None)
        if self._loop._transports.get(self._fd) is self:
            del self._loop._transports[self._fd]

    def _abandon(self) -> None:
        """End a transport that nobody has heard of."""
        self._unregister()
        self._close_handle()

    def _close_handle(self) -> None:
        raise NotImplementedError

    def _tell_unclosed(self, warn: Callable[..., None]) -> None:
        text = f"unclosed transport {self!r}"
        if self._source_traceback:
            made = "".join(self._source_traceback.format())
            text += f"; created at (most recent call last):\n{made}"
        warn(text, ResourceWarning, source=self)


class Transport(Endpoint, FlowControl):
    """One handle of the C core, as an asyncio transport.

    `_closing` is set when nothing more may be delivered, `_conn_lost` counts from the moment when
    connection_lost is scheduled; both as in asyncio, whose order of calls this keeps.
    """

    _batch_limit = 0  # bytes that may wait for the end of the tick

    # Libraries set attributes of their own on transports, hence __dict__; ours are slots, for an
    # object whose __dict__ is in use pays 40 ns for each method look-up (CPython 3.13).
    __slots__ = (
        "__dict__", "__weakref__", "_arena", "_c", "_closing", "_conn_lost", "_context", "_fd",
        "_handle", "_home", "_names", "_paused", "_protocol", "_server", "_sock", "_takes",
        "_write_barred",
    )  # fmt: skip

    def __init__(
        self,
        loop: Any,
        protocol: asyncio.BaseProtocol,
        handle: int,
        sock: socket.socket | None,
        extra: dict[str, Any] | None,
        server: Server | None,
        context: Context | None = None,
    ) -> None:
        self._c = loop._c
        self._arena = loop._arena
        self._handle = handle
        self._home = context if _compat.CONTEXT_OF_CONNECTION else None
        self._sock = sock
        # What _ask_names told, when the handle is closed and cannot be asked any more.
        self._names: tuple[int, bytes] | None = None
        self._server: Server | None = None
        self._takes = 0
        self._write_barred = False  # one flag for all that write() must look into
        self._fd: int = _fd_of(self._c, handle)
        # What asyncio's constructors do. The watermarks are those that a handle starts with.
        self._extra = extra or _NO_INFO
        self._loop = loop
        self._protocol_paused = False
        self._high_water, self._low_water = 65536, 16384
        self._closing = False
        self._conn_lost = 0
        self._paused = False
        if loop._debug:
            self._source_traceback = origin(loop)
        self.set_protocol(protocol)
        if server is not None:
            _compat.attach(server, self)
            self._server = server
        self._register(context)

    def __repr__(self) -> str:
        info = self._describe()
        if self._handle and not self._loop.is_closed():
            info.append(f"read={'polling' if self.is_reading() else 'idle'}")
            size = self.get_write_buffer_size()
            info.append(f"write=<{'polling' if size else 'idle'}, bufsize={size}>")
        return f"<{' '.join(info)}>"

    # -- protocol and state -----------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    # -- flow control -----------------------------------------------------------------------------

    def _set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        super()._set_write_buffer_limits(high=high, low=low)
        high, low = int(min(self._high_water, _MAX_MARK)), int(min(self._low_water, _MAX_MARK))
        if self._handle:
            lib.tl_watermarks(self._c, self._handle, high, low)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        super().set_write_buffer_limits(high, low)
        self._unbar()

    def _flush(self) -> None:
        """Hand to the C core what was to leave at the end of the tick."""

    def _unbar(self) -> None:
        """May writes wait for the end of the tick again? None do now, and the queue is empty."""
        tight = self._high_water < self._batch_limit
        self._write_barred = bool(self._conn_lost or tight or self.get_write_buffer_size())

    def get_write_buffer_size(self) -> int:
        """Bytes that the kernel has not taken yet."""
        self._flush()
        if not self._handle:
            return 0
        size: int = _queued(self._c, self._handle)
        return size if size > 0 else 0

    def _drained(self) -> None:
        if self._conn_lost:
            return
        self._maybe_resume_protocol()  # which may write
        if self._handle and not self.get_write_buffer_size():
            self._emptied()

    def _emptied(self) -> None:
        self._unbar()
        if self._closing and not self._conn_lost:
            self._conn_lost += 1
            self._write_barred = True
            self._call_connection_lost(None)

    # -- the end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop receiving, send what is queued, then connection_lost(None)."""
        queued = self.get_write_buffer_size()  # which may find the connection broken
        if self._closing:
            return
        self._closing = True
        self._takes = 0
        self._stop_reading()
        # A paused protocol will be resumed first, and may write then: _drained goes on from there.
        if not queued and not self._protocol_paused:
            self._conn_lost += 1
            self._write_barred = True
            self._call_soon(self._call_connection_lost, None)

    def abort(self) -> None:
        """Drop what is queued, then connection_lost(None)."""
        self._force_close(None)

    def _stop_reading(self) -> None:
        raise NotImplementedError

    def _fatal_error(self, exc: BaseException, message: str = "Fatal error on transport") -> None:
        if isinstance(exc, OSError):
            if self._loop.get_debug():
                _logger.debug("%r: %s", self, message, exc_info=exc)
        else:
            self._loop.call_exception_handler(
                {
                    "message": message,
                    "exception": exc,
                    "transport": self,
                    "protocol": self._protocol,
                }
            )
        self._force_close(exc)

    def _force_close(self, exc: BaseException | None) -> None:
        self._flush()
        if self._conn_lost:
            return
        lib.tl_discard(self._c, self._handle)
        if not self._closing:
            self._closing = True
            self._takes = 0
            self._stop_reading()
        self._conn_lost += 1
        self._write_barred = True
        self._call_soon(self._call_connection_lost, exc)

    def _call_connection_lost(self, exc: BaseException | None) -> None:
        try:
            self._protocol.connection_lost(exc)
        finally:
            if self._names is None:
                self._names = self._ask_names()
            self._unregister()
            self._close_handle()
            self._protocol = None
            self._loop = None
            self._detach_server()

    def _detach_server(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            _compat.detach(server, self)

    def _abandon(self) -> None:
        super()._abandon()
        self._detach_server()

    def _close_handle(self) -> None:
        handle, self._handle = self._handle, 0
        _close(self._c, handle)
        if self._sock is not None:
            self._sock.close()

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if getattr(self, "_handle", 0):  # else the constructor has failed
            self._tell_unclosed(_warn)
            self._close_handle()
            self._detach_server()

    def _lost_write(self) -> None:
        """A write after the connection was lost."""
        if self._conn_lost >= constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES:
            _logger.warning("socket.send() raised exception.")
        self._conn_lost += 1

    # -- extra info -------------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As asyncio's: "socket" (a TransportSocket), "sockname", "peername", and what was given.
        Found out when first asked for."""
        if name in LAZY_INFO and name not in self._extra:
            self._note(name, self._find_info(name))
        return self._extra.get(name, default)

    def _note(self, name: str, info: Any) -> None:
        if self._extra is _NO_INFO:
            self._extra = {}
        self._extra[name] = info

    def _find_info(self, name: str) -> Any:
        if name == "socket":
            if self._sock is None:
                self._sock = self._make_socket()
            return trsock.TransportSocket(self._sock)
        index = int(name == "peername")
        known, raw = self._names or self._ask_names()
        return (
            _addr.addresses[raw[index * ADDR_BYTES :][:ADDR_BYTES]] if known & 1 << index else None
        )

    def _ask_names(self) -> tuple[int, bytes]:
        """Which names the C core knows (1: sockname, 2: peername), and the bytes of two tl_addr:
        most are never parsed, which costs more than the system calls."""
        loop = self._loop
        known = _names_of(self._c, self._handle, 3, loop._names) if self._handle else 0
        return (known, loop._names_bytes[:]) if known > 0 else _UNKNOWN

    def _make_socket(self) -> socket.socket:
        raise NotImplementedError


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.cancelled():
        waiter.set_result(None)


def adopt(loop: Any, handle: int, what: object) -> int:
    """The handle, or the error that it stands for."""
    if handle < 0:
        loop._check_closed()
        raise oserror(handle, repr(what))
    return handle
