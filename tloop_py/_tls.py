"""Where `ssl=` leads: a transport that is encrypted from the start, or upgraded later."""

from __future__ import annotations

import asyncio
import ssl
from asyncio import constants
from typing import TYPE_CHECKING, Any

from tloop_py._base import BaseLoop, base_events
from tloop_py._ssl import SSLProtocol
from tloop_py._stream import StreamTransport
from tloop_py._tlscontext import TLSContext
from tloop_py._tlstransport import TLSOptions, can_upgrade, make_transport
from tloop_py._tlstransport import start_tls as start_core_tls

if TYPE_CHECKING:
    import socket
    from asyncio.base_events import Server
    from collections.abc import Callable
    from contextvars import Context


class TLSMixin(BaseLoop):
    def _make_ssl_transport(
        self,
        rawsock: socket.socket,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext | TLSContext,
        waiter: asyncio.Future[None] | None = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: dict[str, Any] | None = None,
        server: Server | None = None,
        ssl_handshake_timeout: float | None = constants.SSL_HANDSHAKE_TIMEOUT,
        ssl_shutdown_timeout: float | None = constants.SSL_SHUTDOWN_TIMEOUT,
        context: Context | None = None,
    ) -> asyncio.Transport:
        self._ensure_fd_no_transport(rawsock)
        if isinstance(sslcontext, TLSContext):
            return self._make_core_transport(
                rawsock,
                protocol,
                waiter,
                (sslcontext, server_side, server_hostname),
                (ssl_handshake_timeout, ssl_shutdown_timeout),
                extra=extra,
                server=server,
                context=context,
            )
        tls: Any = SSLProtocol(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        self._make_socket_transport(rawsock, tls, extra=extra, server=server, context=context)
        transport: asyncio.Transport = tls._app_transport
        return transport

    def _make_core_transport(
        self,
        rawsock: socket.socket,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None,
        role: tuple[TLSContext, bool, str | None],
        timeouts: tuple[float | None, float | None],
        **stream: Any,
    ) -> asyncio.Transport:
        """TLS in the C core. A socket that gets no transport is closed: nobody else would do it."""
        try:
            options = TLSOptions(*role, *timeouts)
            self._forget_descriptor(rawsock.fileno())
            base_events._set_nodelay(rawsock)
            return make_transport(self, rawsock, protocol, waiter, options, **stream)
        except BaseException:
            rawsock.close()
            raise

    def _tls_maker(
        self,
        sslcontext: ssl.SSLContext | TLSContext,
        server: Server | None,
        timeouts: tuple[float | None, float | None],
    ) -> Callable[..., asyncio.Transport]:
        """What makes the transports of accepted connections."""

        def make(protocol: asyncio.BaseProtocol, waiter: Any, **accepted: Any) -> asyncio.Transport:
            # By position: keywords of asyncio's constructor would pass through ours.
            tls: Any = SSLProtocol(self, protocol, sslcontext, waiter, True, None, True, *timeouts)
            StreamTransport(self, tls, server=server, **accepted)
            transport: asyncio.Transport = tls._app_transport
            return transport

        def make_core(
            protocol: asyncio.BaseProtocol, waiter: Any, **accepted: Any
        ) -> asyncio.Transport:
            assert isinstance(sslcontext, TLSContext)
            options = TLSOptions(sslcontext, True, None, *timeouts)
            return make_transport(self, None, protocol, waiter, options, server=server, **accepted)

        return make_core if isinstance(sslcontext, TLSContext) else make

    async def start_tls(
        self,
        transport: Any,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext | TLSContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> asyncio.Transport | None:
        """As asyncio's: returns the transport that protocol uses from now on, after the handshake;
        the given one must not be used any more. Closes the connection when it fails."""
        if not isinstance(sslcontext, (ssl.SSLContext, TLSContext)):
            raise TypeError(
                f"sslcontext is expected to be an instance of ssl.SSLContext, got {sslcontext!r}"
            )
        if not getattr(transport, "_start_tls_compatible", False):
            raise TypeError(f"transport {transport!r} is not supported by start_tls()")
        if isinstance(sslcontext, TLSContext):
            if not can_upgrade(transport):
                raise TypeError(
                    f"transport {transport!r} is not supported by start_tls() with a TLSContext: "
                    "TLS within TLS needs an ssl.SSLContext"
                )
            role = sslcontext, server_side, server_hostname
            try:
                options = TLSOptions(*role, ssl_handshake_timeout, ssl_shutdown_timeout)
            except ssl.SSLError:  # no handshake could succeed: as if one had failed
                transport.set_protocol(asyncio.Protocol())
                transport.close()
                raise
            return await start_core_tls(self, transport, protocol, options)
        waiter = self.create_future()
        tls: Any = SSLProtocol(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
            call_connection_made=False,
        )
        # No byte may reach the new protocol before its connection_made.
        transport.pause_reading()
        if server_side and isinstance(protocol, asyncio.StreamReaderProtocol):
            _take_over_received(protocol, tls)
        transport.set_protocol(tls)
        steps = [
            self.call_soon(tls.connection_made, transport),
            self.call_soon(transport.resume_reading),
        ]
        try:
            await waiter
        except BaseException:
            transport.close()
            for step in steps:
                step.cancel()
            del waiter  # breaks the cycle with the traceback
            raise
        upgraded: asyncio.Transport = tls._app_transport
        return upgraded


def _take_over_received(protocol: asyncio.StreamReaderProtocol, tls: Any) -> None:
    """A client may send its hello at once, as it does after STARTTLS: then the reader has it."""
    reader: Any = protocol._stream_reader  # type: ignore[attr-defined]
    if reader is not None and reader._buffer:
        tls._incoming.write(reader._buffer)
        reader._buffer.clear()
