"""Listening and connecting: transports for sockets, accepting for `asyncio.Server`, Unix paths."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
import weakref
from asyncio import constants, tasks, trsock
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from tloop_py import _addr, _compat
from tloop_py._base import base_events
from tloop_py._debug import origin
from tloop_py._ffi import ACCEPT, ADDR_BYTES, KEEP_FD, lib, oserror
from tloop_py._receiver import EventReceiver
from tloop_py._stream import StreamTransport
from tloop_py._tls import TLSMixin
from tloop_py._tlscontext import TLSContext

if TYPE_CHECKING:
    import ssl as ssl_module
    from asyncio.base_events import Server
    from collections.abc import Callable
    from contextvars import Context

_logger = logging.getLogger("asyncio")

_fd_of = lib.tl_fd

_NO_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class _Acceptor(EventReceiver):
    """One listening socket. The C core accepts, many connections per tick."""

    _takes = ACCEPT

    def __init__(
        self,
        loop: ServerMixin,
        sock: socket.socket,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        server: Server | None,
        make_tls: Callable[..., asyncio.Transport] | None,
        context: Context | None,
    ) -> None:
        loop._check_closed()
        self._loop: Any = loop
        self.sock = sock
        self.kind = sock.family, sock.type, sock.proto  # asked for once: sock.type costs 0.3 us
        self.is_unix = sock.family == socket.AF_UNIX
        self.server = server
        self.protocol_factory = protocol_factory
        self.make_tls = make_tls
        self.closed = False
        self.handle: int = lib.tl_listener_open(loop._c, sock.fileno(), KEEP_FD)
        if self.handle < 0:
            raise oserror(self.handle, f"cannot listen on {sock!r}")
        self._context = copy_context() if context is None else context
        self._source_traceback = origin(loop)
        loop._handlers[self.handle] = self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.sock!r}>"

    def close(self) -> None:
        self.closed = True
        self._loop._handlers.pop(self.handle, None)
        lib.tl_close(self._loop._c, self.handle)

    def _not_accepted(self, error: int) -> None:
        if -error not in _NO_RESOURCES:
            raise oserror(error, "accepting a connection")
        self._loop.call_exception_handler(
            {
                "message": "socket.accept() out of system resource",
                "exception": oserror(error),
                "socket": trsock.TransportSocket(self.sock),
            }
        )

    def _peer(self, offset: int) -> Any:
        return _addr.addresses[self._loop._arena[offset - ADDR_BYTES : offset]]

    def _accepted(self, handle: int, offset: int, context: Context) -> None:
        """Make a transport for the handle; context is that of the connection, the present one. Less
        than 0: the kernel's error."""
        if handle < 0:
            self._not_accepted(handle)
            return
        protocol = None
        # The C core remembers IP peers, also when they have reset the connection.
        extra = {"peername": self._peer(offset)} if self.is_unix else None
        loop = self._loop
        if loop._debug:
            address, fd = self._peer(offset), _fd_of(loop._c, handle)
            _logger.debug("%r got a new connection from %r: fd=%d", self.server, address, fd)
        try:
            protocol = self.protocol_factory()
            # A closed socket may have had this number; what is left of it must not watch ours.
            if loop._descriptors:
                loop._forget_descriptor(_fd_of(loop._c, handle))
            if self.closed:  # by the factory
                lib.tl_close(loop._c, handle)
            elif self.make_tls is not None:
                _Handshake(self, protocol).begin(handle, extra, context)
            else:
                # By position: with names CPython would make a dict, and take 0.3 us more.
                StreamTransport(
                    loop, protocol, None, None, handle, self.kind, extra, self.server, context
                )
        except (SystemExit, KeyboardInterrupt):
            lib.tl_close(loop._c, handle)
            raise
        except BaseException as exc:
            lib.tl_close(loop._c, handle)
            self._failed(exc, protocol, None)

    def _failed(
        self, exc: BaseException, protocol: asyncio.BaseProtocol | None, transport: Any
    ) -> None:
        """asyncio tells of this in debug mode only: any peer can cause it."""
        if not self._loop.get_debug():
            return
        context: dict[str, Any] = {
            "message": "Error on transport creation for incoming connection",
            "exception": exc,
        }
        if protocol is not None:
            context["protocol"] = protocol
        if transport is not None:
            context["transport"] = transport
        self._loop.call_exception_handler(context)


class _Handshake:
    """An accepted connection until TLS is established, as the waiter of its transport: the future
    and the task that asyncio has instead were a twelfth of the interpreter's work."""

    __slots__ = ("_acceptor", "_handle", "_protocol", "_transport")

    def __init__(self, acceptor: _Acceptor, protocol: asyncio.BaseProtocol) -> None:
        self._acceptor = acceptor
        self._protocol = protocol
        self._transport: Any = None

    def begin(self, handle: int, extra: dict[str, Any] | None, context: Context) -> None:
        acceptor = self._acceptor
        assert acceptor.make_tls is not None
        self._handle = handle
        self._transport = acceptor.make_tls(
            self._protocol, self, handle=handle, kind=acceptor.kind, extra=extra, context=context
        )
        acceptor._loop._handshakes.add(self)

    def abandon(self) -> None:
        """The loop is being closed, and nobody else has heard of the connection."""
        self._transport.abort()
        self._acceptor._loop._handlers[self._handle]._abandon()

    # What transports ask and tell their waiter.

    def done(self) -> bool:
        return False

    cancelled = done

    def set_result(self, result: None) -> None:
        self._acceptor._loop._handshakes.discard(self)

    def set_exception(self, exc: BaseException) -> None:
        self._acceptor._loop._handshakes.discard(self)
        self._acceptor._loop.call_soon(self._failed, exc)  # the transport is still busy

    def _failed(self, exc: BaseException) -> None:
        self._transport.close()
        self._acceptor._failed(exc, self._protocol, self._transport)


class ServerMixin(TLSMixin):
    def __init__(self) -> None:
        super().__init__()
        self._handshakes: set[_Handshake] = set()
        self._acceptors: dict[socket.socket, _Acceptor] = {}
        self._unix_server_sockets: dict[socket.socket, int] = {}

    # -- what BaseEventLoop asks of its subclasses ------------------------------------------------

    def _make_socket_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        *,
        extra: dict[str, Any] | None = None,
        server: Server | None = None,
        context: Context | None = None,
    ) -> asyncio.Transport:
        self._ensure_fd_no_transport(sock)
        self._forget_descriptor(sock.fileno())
        base_events._set_nodelay(sock)
        return StreamTransport(
            self, protocol, waiter, sock=sock, extra=extra, server=server, context=context
        )

    def _start_serving(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        sock: socket.socket,
        sslcontext: ssl_module.SSLContext | TLSContext | None = None,
        server: Server | None = None,
        backlog: int = 100,
        ssl_handshake_timeout: float | None = constants.SSL_HANDSHAKE_TIMEOUT,
        ssl_shutdown_timeout: float | None = constants.SSL_SHUTDOWN_TIMEOUT,
        context: Context | None = None,
    ) -> None:
        if isinstance(sslcontext, TLSContext):
            self._check_context(sslcontext, server)
        if isinstance(getattr(server, "_clients", None), weakref.WeakSet):
            server._clients = _compat.Clients(self, server)  # type: ignore
        timeouts = ssl_handshake_timeout, ssl_shutdown_timeout
        make_tls = self._tls_maker(sslcontext, server, timeouts) if sslcontext else None
        self._forget_descriptor(self._ensure_fd_no_transport(sock))
        self._acceptors[sock] = _Acceptor(self, sock, protocol_factory, server, make_tls, context)

    def _check_context(self, context: TLSContext, server: Server | None) -> None:
        """A context that cannot serve anybody fails the server, not each of its connections."""
        try:
            context._ready(server_side=True)
        except BaseException:
            if server is not None:
                server.close()
            raise

    def _stop_serving(self, sock: socket.socket) -> None:
        acceptor = self._acceptors.pop(sock, None)
        if acceptor is not None:
            acceptor.close()
        inode = self._unix_server_sockets.pop(sock, None)
        path = sock.getsockname() if inode is not None else None
        sock.close()
        if path is not None:
            _remove_socket_file(path, inode)

    # -- Unix sockets -----------------------------------------------------------------------------

    async def create_unix_connection(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        path: str | bytes | os.PathLike[str] | None = None,
        *,
        ssl: bool | ssl_module.SSLContext | TLSContext | None = None,
        sock: socket.socket | None = None,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """Connect to a Unix stream socket: file system path, or abstract name ("\\0name")."""
        assert server_hostname is None or isinstance(server_hostname, str)
        if ssl and server_hostname is None:
            raise ValueError("you have to pass server_hostname when using ssl")
        if not ssl and server_hostname is not None:
            raise ValueError("server_hostname is only meaningful with ssl")
        _check_tls_timeouts(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)
        if path is not None:
            if sock is not None:
                raise ValueError("path and sock can not be specified at the same time")
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0)
            try:
                sock.setblocking(False)
                await self.sock_connect(sock, os.fspath(path))
            except BaseException:
                sock.close()
                raise
        else:
            if sock is None:
                raise ValueError("no path and sock were specified")
            _check_unix_stream(sock)
            sock.setblocking(False)
        return await self._create_connection_transport(
            sock,
            protocol_factory,
            ssl,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )

    async def create_unix_server(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        path: str | bytes | os.PathLike[str] | None = None,
        *,
        sock: socket.socket | None = None,
        backlog: int = 100,
        ssl: ssl_module.SSLContext | TLSContext | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        start_serving: bool = True,
        cleanup_socket: bool = _compat.CLEANUP_UNIX_SOCKET,
    ) -> Server:
        """Serve on a Unix stream socket. A socket file left by an earlier server is replaced;
        with cleanup_socket (default from Python 3.13 on) ours is removed at the end."""
        if isinstance(ssl, bool):
            raise TypeError("ssl argument must be an SSLContext or None")
        _check_tls_timeouts(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)
        if path is not None:
            if sock is not None:
                raise ValueError("path and sock can not be specified at the same time")
            sock = _bind_unix(os.fspath(path))
        else:
            if sock is None:
                raise ValueError("path was not specified, and no sock specified")
            _check_unix_stream(sock)
        if cleanup_socket:
            self._remember_socket_file(sock)
        sock.setblocking(False)
        server: Server = base_events.Server(
            self, [sock], protocol_factory, ssl, backlog, ssl_handshake_timeout,
            ssl_shutdown_timeout,
        )  # fmt: skip
        if start_serving:
            server._start_serving()  # type: ignore[attr-defined]
            await tasks.sleep(0)
        return server

    def _remember_socket_file(self, sock: socket.socket) -> None:
        name = sock.getsockname()
        if name[0] not in (0, "\x00"):
            try:
                self._unix_server_sockets[sock] = os.stat(name).st_ino
            except FileNotFoundError:
                return  # already gone: nothing to clean up


def _check_tls_timeouts(ssl: object, handshake: float | None, shutdown: float | None) -> None:
    if handshake is not None and not ssl:
        raise ValueError("ssl_handshake_timeout is only meaningful with ssl")
    if shutdown is not None and not ssl:
        raise ValueError("ssl_shutdown_timeout is only meaningful with ssl")


def _check_unix_stream(sock: socket.socket) -> None:
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        raise ValueError(f"A UNIX Domain Stream Socket was expected, got {sock!r}")


def _bind_unix(path: str | bytes) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path[0] not in (0, "\x00"):
            _remove_stale_socket(path)
        sock.bind(path)
    except OSError as exc:
        sock.close()
        if exc.errno == errno.EADDRINUSE:
            raise OSError(errno.EADDRINUSE, f"Address {path!r} is already in use") from None
        raise
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale_socket(path: str | bytes) -> None:
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            os.remove(path)
    except FileNotFoundError:
        return
    except OSError as exc:
        _logger.error("Unable to check or remove stale UNIX socket %r: %r", path, exc)


def _remove_socket_file(path: str | bytes, inode: int | None) -> None:
    """Unless somebody else has put another one there."""
    try:
        if os.stat(path).st_ino == inode:
            os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as exc:
        _logger.error("Unable to clean up listening UNIX socket %r: %r", path, exc)
