"""Datagram transports: UDP, Unix and other families. The C core receives and sends in batches."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from typing import Any

from tloop_py import _addr
from tloop_py._base import BaseLoop
from tloop_py._ffi import ADDR_BYTES, DATAGRAM, DRAIN, KEEP_FD, ffi, lib, oserror
from tloop_py._transport import Transport, adopt


class DatagramTransport(Transport, asyncio.DatagramTransport):
    """A datagram socket; address: the only peer that datagrams may be sent to."""

    __slots__ = ("_address", "_connected", "_family")

    def __init__(
        self,
        loop: Any,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        address: Any = None,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        handle = adopt(lib.tl_udp_open(loop._c, sock.fileno(), KEEP_FD), repr(sock))
        self._address = address
        super().__init__(loop, protocol, handle, sock, extra, None)
        self._family = sock.family
        self._connected = bool(self.get_extra_info("peername"))
        self._begin(waiter)

    def _make_socket(self) -> socket.socket:
        assert self._sock is not None
        return self._sock

    # -- receiving --------------------------------------------------------------------------------

    def _start_reading(self) -> None:
        if self._handle and self.is_reading():
            self._take_events()
            rc = lib.tl_udp_read_start(self._c, self._handle)
            if rc < 0:
                self._fatal_error(oserror(rc), "Fatal read error on datagram transport")

    def _stop_reading(self) -> None:
        lib.tl_udp_read_stop(self._c, self._handle)

    def _event(self, kind: int, result: int, offset: int) -> None:
        if kind == DRAIN:
            self._drained()
        elif self._closing:
            return
        elif kind == DATAGRAM:
            address = _addr.parse(self._arena[offset - ADDR_BYTES : offset])
            self._protocol.datagram_received(self._arena[offset : offset + result], address)
        else:
            self._protocol.error_received(oserror(result))

    # -- sending ----------------------------------------------------------------------------------

    def sendto(self, data: bytes | bytearray | memoryview, addr: Any = None) -> None:
        """Send one datagram; one that the kernel has no room for is copied and sent later.

        Failures go to protocol.error_received. Raises TypeError for data that is not bytes-like,
        ValueError for another address than the transport's.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(
                f"data argument must be a bytes-like object, not {type(data).__name__!r}"
            )
        if self._address:
            if addr not in (None, self._address):
                raise ValueError(f"Invalid address: must be None or {self._address}")
            addr = self._address
        if self._conn_lost and self._address:
            self._lost_write()
            return
        if not self._handle:
            return
        target = ffi.NULL if self._connected else self._target(addr)
        if target is None:
            self._send_by_socket(data, addr)
            return
        data = bytes(data)
        self._sent(lib.tl_udp_send(self._c, self._handle, data, len(data), target))

    def _target(self, addr: Any) -> Any:
        try:
            return _addr.pack(self._family, addr)
        except (TypeError, ValueError, OSError, OverflowError, LookupError, struct.error):
            return None  # a host name, or nonsense: the socket module tells

    def _send_by_socket(self, data: bytes | bytearray | memoryview, addr: Any) -> None:
        assert self._sock is not None
        try:
            self._sock.sendto(data, addr)
        except BlockingIOError:
            self._queue_resolved(bytes(data), addr)
        except OSError as exc:
            self._protocol.error_received(exc)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal write error on datagram transport")

    def _queue_resolved(self, data: bytes, addr: Any) -> None:
        """The kernel has no room now for a datagram whose address only the socket module reads."""
        if self._family == socket.AF_UNIX:
            raw = ffi.new("tl_addr *")
            path = os.fsencode(addr)
            lib.tl_addr_unix(raw, path, len(path))
        else:
            info = socket.getaddrinfo(addr[0], addr[1], self._family, socket.SOCK_DGRAM)
            raw = _addr.pack(self._family, info[0][4])
        self._sent(lib.tl_udp_send(self._c, self._handle, data, len(data), raw))

    def _sent(self, queued: int) -> None:
        if queued > 0:
            self._maybe_pause_protocol()
        elif queued < 0:
            if queued == -errno.EBADF and self._loop.is_closed():
                raise RuntimeError("Event loop is closed")
            self._protocol.error_received(oserror(queued))


class DatagramMixin(BaseLoop):
    def _make_datagram_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        address: Any = None,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> asyncio.DatagramTransport:
        self._ensure_fd_no_transport(sock)
        self._forget_descriptor(sock.fileno())
        return DatagramTransport(self, sock, protocol, address, waiter, extra)
