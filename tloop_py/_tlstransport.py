"""Transports with TLS in the C core: after the handshake they are stream transports of plain bytes.

What a protocol sees, and when, is what it sees on asyncio's SSLProtocol, but for an end without
close_notify, which is an error here: somebody may have cut the connection.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from asyncio import constants
from typing import TYPE_CHECKING, Any, Final

from tloop_py._environ import logger as _tloop_logger
from tloop_py._ffi import CLOSED, KEEP_FD, TLS, ffi, lib, oserror
from tloop_py._stream import NEVER, StreamTransport
from tloop_py._tlscore import nanoseconds
from tloop_py._tlserror import tls_error
from tloop_py._tlsobject import TLSObject
from tloop_py._transport import LAZY_INFO, Transport, adopt

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tloop_py._tlscontext import TLSContext
    from tloop_py._tlscore import Core
    from tloop_py._tlsobject import NameCallback

_logger = logging.getLogger("asyncio")

# Known after the handshake; found out when asked for.
_SETTLED: Final[dict[str, Callable[[TLSObject], Any]]] = {
    "ssl_object": lambda tls: tls,
    "peercert": TLSObject.getpeercert,
    "cipher": TLSObject.cipher,
    "compression": TLSObject.compression,
}
_HIGH_WATER: Final = constants.FLOW_CONTROL_HIGH_WATER_SSL_WRITE * 1024  # bytes
_EINVAL: Final = -errno.EINVAL


class TLSTransport(StreamTransport):
    """A stream transport whose handle has TLS.

    Until the handshake is over its protocol knows nothing of it, as asyncio has it. close() leaves
    the rest to the C core: to send what is queued and close_notify, and to wait for the peer's.
    """

    global __static_attributes__  # see StreamTransport

    __slots__ = (
        "_began", "_calls_made", "_core", "_established", "_handshake_timeout", "_late_writes",
        "_protocol_connected", "_tls", "_told_eof", "_waiter",
    )  # fmt: skip

    _large_for_bytes = NEVER  # records come through the C core
    _sendfile_compatible = constants._SendfileMode.FALLBACK

    def __init__(
        self,
        loop: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None,
        options: TLSOptions,
        *,
        calls_made: bool = True,
        **stream: Any,
    ) -> None:
        self._core = options.core  # keeps alive what the handshake calls
        self._handshake_timeout = options.handshake_timeout
        self._tls = TLSObject(self, options.context, options.server_hostname)
        self._waiter = waiter
        self._calls_made = calls_made  # connection_made: not for a protocol that has it behind it
        self._established = self._protocol_connected = self._told_eof = False
        self._late_writes = 0
        super().__init__(loop, protocol, **stream)
        self._set_write_buffer_limits()
        self._note("sslcontext", options.context)

    def _begin(self, waiter: asyncio.Future[None] | None) -> None:
        """The handshake runs already: what follows is its event."""
        self._began = self._loop.time()
        if self._loop._debug:
            _logger.debug("%r starts SSL handshake", self)

    # -- the handshake -----------------------------------------------------------------------------

    def _event(self, kind: int, result: int, offset: int) -> None:
        if kind == TLS:
            if not self._conn_lost:
                self._handshake_ended(result)
        elif kind == CLOSED:
            self._closed_by_core(result)
        else:
            super()._event(kind, result, offset)

    def _choose_certificate(self, callback: NameCallback, name: str) -> bool:
        """Ask sni_callback, which may call _use. Is the client welcome?"""
        try:
            context = self._tls.context
            answer = self._context.run(callback, self._tls, name or None, context)
            return answer is None and not self._conn_lost  # it may have aborted
        except (SystemExit, KeyboardInterrupt) as exc:
            self._loop.call_soon(_raise, exc)  # nothing can pass through the C core
        except BaseException as exc:
            self._loop.call_exception_handler(
                {"message": "sni_callback failed", "exception": exc, "transport": self}
            )
        return False

    def _use(self, context: TLSContext) -> None:
        """Within sni_callback: go on as a server of another context."""
        core = context._ready(server_side=True)
        code = lib.tl_tls_use(self._c, self._handle, core.c)
        if code < 0:
            raise ValueError("context can be set within sni_callback only")
        self._core = core
        self._note("sslcontext", context)

    def _handshake_ended(self, code: int) -> None:
        if code < 0:
            self._handshake_failed(self._handshake_error(code))
            return
        self._established = True
        self._tls._settle(self._c, self._handle)
        milliseconds = (self._loop.time() - self._began) * 1e3
        if self._loop._debug:
            _logger.debug("%r: SSL handshake took %.1f ms", self, milliseconds)
        _tloop_logger.debug("%r: %s, %s", self, self._tls.version(), self._tls.cipher())
        self._protocol_connected = True
        if self._calls_made and not self._made():
            return
        self._wake_waiter(None)
        self._start_reading()
        if self._protocol_paused:  # before TLS, and the queue became empty in the meantime
            self._drained()

    def _made(self) -> bool:
        try:
            self._protocol.connection_made(self)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal error: protocol.connection_made() call failed.")
            return False
        return True

    def _handshake_error(self, code: int) -> OSError:
        if code == -errno.ETIMEDOUT:
            return ConnectionAbortedError(
                f"SSL handshake is taking longer than {self._handshake_timeout} seconds: "
                "aborting the connection"
            )
        if code == lib.TL_ETLS_TRUNCATED:
            return ConnectionResetError(
                errno.ECONNRESET, "The peer ended the connection during the TLS handshake"
            )
        if code <= lib.TL_ETLS:
            return tls_error(code, self._tls.server_hostname)
        return oserror(code)

    def _handshake_failed(self, exc: OSError) -> None:
        _tloop_logger.info("%r: TLS handshake failed: %s", self, exc)
        self._fatal_error(exc, "SSL handshake failed")
        self._wake_waiter(exc)

    def _wake_waiter(self, exc: BaseException | None) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is None or waiter.done():
            return
        if exc is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(exc)

    # -- receiving ---------------------------------------------------------------------------------

    def _event_failed(self, exc: BaseException) -> None:
        if self._conn_lost:  # an event of the end failed
            super(StreamTransport, self)._event_failed(exc)
        else:
            super()._event_failed(exc)

    def _received_eof(self) -> None:
        """The peer's close_notify, which is answered: TLS is never closed by halves."""
        if self._loop._debug:
            _logger.debug("%r received EOF", self)
        self._tell_eof()
        self.close()

    def _tell_eof(self) -> None:
        if self._told_eof or self._conn_lost:
            return
        self._told_eof = True
        try:
            keep_open = self._protocol.eof_received()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Error calling eof_received()")
            return
        if keep_open:
            _logger.warning("returning true from eof_received() has no effect when using ssl")

    # -- sending -----------------------------------------------------------------------------------

    def _check_write(self, data: object) -> bytes | bytearray | memoryview:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data: expecting a bytes-like instance, got {type(data).__name__}")
        if self._closing:
            if data:
                self._lost_write()
            return b""
        return super()._check_write(data)

    def _lost_write(self) -> None:
        if self._late_writes >= constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES:
            _logger.warning("SSL connection is closed")
        self._late_writes += 1

    def write_eof(self) -> None:
        """TLS is never closed by halves, as asyncio has it."""
        raise NotImplementedError

    def can_write_eof(self) -> bool:
        return False

    def _unbar(self) -> None:
        super()._unbar()
        if self._closing:
            self._write_barred = True

    get_write_buffer_size = Transport.get_write_buffer_size  # records of C's own may be queued

    def _drained(self) -> None:
        if not self._closing:
            super()._drained()

    def _set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = _HIGH_WATER if low is None else 4 * low
        super()._set_write_buffer_limits(high, low)

    # -- the end -----------------------------------------------------------------------------------

    def close(self) -> None:
        """Send what is written and close_notify, wait for the peer's until the time-out, then
        connection_lost(None), or of TimeoutError."""
        self._flush()  # which may find the connection broken
        if self._closing:
            return
        if not self._established:
            self._force_close(None)
            return
        self._closing = self._write_barred = True
        self._takes = 0
        self._held = ()
        self._names = self._ask_names()  # the handle ends before connection_lost
        code = lib.tl_stream_close(self._c, self._handle)
        if code < 0:
            self._force_close(oserror(code))

    def _closed_by_core(self, code: int) -> None:
        if self._conn_lost:
            return
        if code == 0:
            self._tell_eof()
        self._force_close(self._close_error(code))

    def _close_error(self, code: int) -> OSError | None:
        if code == -errno.ETIMEDOUT:
            return TimeoutError("SSL shutdown timed out")
        return oserror(code) if code < 0 else None

    def _call_connection_lost(self, exc: BaseException | None) -> None:
        if not self._protocol_connected:
            self._protocol = asyncio.BaseProtocol()  # in place of one that does not know of this
        super()._call_connection_lost(exc)
        self._wake_waiter(exc)

    # -- extra info --------------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As asyncio's TLS transports: "ssl_object" (a TLSObject), "peercert" (a dict), "cipher",
        "compression", "sslcontext", and what stream transports tell."""
        if name in _SETTLED and name not in self._extra and self._established:
            self._note(name, _SETTLED[name](self._tls))
        if self._loop is None and name in LAZY_INFO:  # as asyncio: the session is still told
            return default
        return super().get_extra_info(name, default)


class TLSOptions:
    """How TLS is attached to one stream. Raises for what can be known to be wrong before."""

    def __init__(
        self,
        context: TLSContext,
        server_side: bool,
        server_hostname: str | None,
        handshake_timeout: float | None,
        shutdown_timeout: float | None,
    ) -> None:
        self.handshake_timeout = _seconds("ssl_handshake_timeout", handshake_timeout)
        self.shutdown_timeout = _seconds("ssl_shutdown_timeout", shutdown_timeout)
        if self.handshake_timeout is None:
            self.handshake_timeout = constants.SSL_HANDSHAKE_TIMEOUT
        self.context = context
        self.core: Core = context._ready(server_side)
        self.server_hostname = None if server_side else server_hostname or None
        if self.server_hostname is None and context.check_hostname:
            raise ValueError("check_hostname requires server_hostname")

    def attach(self, c: Any, handle: int, received: bytes = b"") -> None:
        """Raises OSError, of which ssl.SSLError is one."""
        desc = ffi.new("tl_tls_attach_desc *")
        keep = [ffi.from_buffer(received)]
        if self.server_hostname is not None:
            keep.append(ffi.new("char[]", _host_bytes(self.server_hostname)))
            desc.hostname = keep[-1]
        if received:
            desc.received, desc.received_nbytes = keep[0], len(received)
        assert self.handshake_timeout is not None
        desc.handshake_timeout_ns = nanoseconds(self.handshake_timeout)
        if self.shutdown_timeout is not None:
            desc.close_timeout_ns = nanoseconds(self.shutdown_timeout)
        code = self._attach(c, handle, desc)
        if code < 0:
            raise oserror(code, "TLS")

    def _attach(self, c: Any, handle: int, desc: Any) -> int:
        """With the session to be resumed, unless it is another host's, or its certificate was
        verified less than this context does."""
        session = self.context.session
        code: int
        if session is not None:
            desc.session = session._c
            code = lib.tl_tls_attach(c, handle, self.core.c, desc)
            if code != _EINVAL:
                return code
            desc.session = ffi.NULL
        code = lib.tl_tls_attach(c, handle, self.core.c, desc)
        return code


def _seconds(name: str, value: float | None) -> float | None:
    if value is not None and value <= 0:
        raise ValueError(f"{name} should be a positive number, got {value}")
    return value


def _host_bytes(hostname: str) -> bytes:
    if not hostname or hostname.startswith("."):
        raise ValueError("server_hostname cannot be an empty string or start with a leading dot.")
    return hostname.encode("idna")


def _raise(exc: BaseException) -> None:
    raise exc


# -- who makes them --------------------------------------------------------------------------------


def make_transport(
    loop: Any,
    rawsock: socket.socket | None,
    protocol: asyncio.BaseProtocol,
    waiter: asyncio.Future[None] | None,
    options: TLSOptions,
    *,
    handle: int = 0,
    **stream: Any,
) -> TLSTransport:
    """On a connected socket, or on a handle that the C core has accepted."""
    if rawsock is not None:
        handle = adopt(loop, lib.tl_stream_open(loop._c, rawsock.fileno(), KEEP_FD), rawsock)
    try:
        options.attach(loop._c, handle)
    except BaseException:
        if rawsock is not None:
            lib.tl_close(loop._c, handle)
        raise
    return TLSTransport(loop, protocol, waiter, options, sock=rawsock, handle=handle, **stream)


class _Upgrade(asyncio.Protocol):
    """start_tls(): the protocol of the plain transport until its heir has taken over."""

    def __init__(
        self,
        loop: Any,
        plain: StreamTransport,
        protocol: asyncio.BaseProtocol,
        options: TLSOptions,
        waiter: asyncio.Future[None],
    ) -> None:
        self.loop, self.plain, self.options, self.waiter = loop, plain, options, waiter
        self.protocol, self.former = protocol, plain.get_protocol()
        self.heir: TLSTransport | None = None

    def begin(self) -> None:
        """In the tick after start_tls(): by now all has been told that was received before."""
        plain, options = self.plain, self.options
        if plain.is_closing():
            if not plain._handle:  # nobody will tell of it any more
                self.connection_lost(None)
            return
        try:
            options.attach(plain._c, plain._handle, self._received())
        except OSError as exc:
            self.connection_lost(exc)
            return
        paused = plain._protocol_paused and self.protocol is self.former
        self.heir = TLSTransport(
            self.loop,
            self.protocol,
            self.waiter,
            options,
            calls_made=False,
            **plain._hand_over(),
        )
        self.heir._protocol_paused = paused
        plain._forward(self.heir)

    def _received(self) -> bytes:
        """What the peer may have sent of its hello already: a client does so after STARTTLS."""
        received = b"".join(self.plain._held)
        if self.options.context._server and isinstance(self.protocol, asyncio.StreamReaderProtocol):
            reader: Any = self.protocol._stream_reader  # type: ignore[attr-defined]
            if reader is not None:
                received = bytes(reader._buffer) + received
                reader._buffer.clear()
        return received

    def connection_lost(self, exc: BaseException | None) -> None:
        if self.waiter.done():
            return
        if exc is None:
            self.waiter.set_result(None)
        else:
            self.waiter.set_exception(exc)

    def pause_writing(self) -> None:
        self.former.pause_writing()

    def resume_writing(self) -> None:
        self.former.resume_writing()


async def start_tls(
    loop: Any, transport: Any, protocol: asyncio.BaseProtocol, options: TLSOptions
) -> TLSTransport | None:
    """None, as asyncio has it, when the transport was closed meanwhile."""
    waiter = loop.create_future()
    upgrade = _Upgrade(loop, transport, protocol, options, waiter)
    transport.pause_reading()
    transport.set_protocol(upgrade)
    step = loop.call_soon(upgrade.begin)
    try:
        await waiter
    except BaseException:
        transport.close()
        step.cancel()
        del waiter  # breaks the cycle with the traceback
        raise
    heir = upgrade.heir
    return heir if heir is not None and heir._established else None


def can_upgrade(transport: object) -> bool:
    return isinstance(transport, StreamTransport) and not isinstance(transport, TLSTransport)
