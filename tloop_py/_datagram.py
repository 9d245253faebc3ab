"""Datagram transports: UDP, Unix and other families. The C core receives and sends in batches."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from tloop_py import _addr
from tloop_py._base import BaseLoop, base_events, selector_events
from tloop_py._ffi import ADDR_BYTES, DATAGRAM, DRAIN, ERROR, KEEP_FD, WRITE, ffi, lib, oserror
from tloop_py._outbox import BATCH, PACKERS
from tloop_py._transport import Transport, adopt

_send = lib.tl_udp_send
_CONNECTED = ffi.NULL, 0
# The bytes of datagrams that leave by one system call: half of the default high-water mark.
_BATCH_BYTES = 32768


class DatagramTransport(Transport, asyncio.DatagramTransport):
    """A datagram socket; address: the only peer that datagrams may be sent to."""

    _batch_limit = _BATCH_BYTES
    __slots__ = (
        "_address", "_batch", "_batch_bytes", "_connected", "_family", "_held", "_name_bytes",
        "_targets",
    )  # fmt: skip

    def __init__(
        self,
        loop: Any,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        address: Any = None,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        handle = adopt(loop, lib.tl_udp_open(loop._c, sock.fileno(), KEEP_FD), sock)
        self._address = address
        self._batch: list[tuple[bytes, tuple[Any, int]]] = []  # not handed to the kernel yet
        self._batch_bytes = 0
        super().__init__(loop, protocol, handle, sock, extra, None)
        self._family = sock.family
        self._targets = _addr.targets[sock.family]
        self._name_bytes = _addr.NAME_BYTES.get(sock.family, ADDR_BYTES)
        self._held: list[tuple[bytes, Any]] = []  # received, but paused within the same batch
        self.get_extra_info("sockname")  # as it is now: the first sendto() may bind the socket
        self._connected = bool(self.get_extra_info("peername"))
        self._begin(waiter)

    def _make_socket(self) -> socket.socket:
        assert self._sock is not None
        return self._sock

    # -- receiving --------------------------------------------------------------------------------

    def _start_reading(self) -> None:
        if self._handle and self.is_reading():
            self._choose_way()
            rc = lib.tl_udp_read_start(self._c, self._handle)
            if rc < 0:
                self._fatal_error(oserror(rc), "Fatal read error on datagram transport")

    def _choose_way(self) -> None:
        """May datagrams go the short way, past _event?"""
        self._takes = DATAGRAM if self.is_reading() and not self._held else 0

    def _stop_reading(self) -> None:
        self._held.clear()
        lib.tl_udp_read_stop(self._c, self._handle)

    def pause_reading(self) -> None:
        if not self.is_reading():
            return
        self._paused = True
        self._takes = 0
        lib.tl_udp_read_stop(self._c, self._handle)
        if self._loop._debug:
            base_events.logger.debug("%r pauses reading", self)

    def resume_reading(self) -> None:
        if self._closing or not self._paused:
            return
        self._paused = False
        self._loop.call_soon(self._deliver_held)
        self._renew_context()
        self._start_reading()
        if self._loop._debug:
            base_events.logger.debug("%r resumes reading", self)

    def _deliver_held(self) -> None:
        try:
            while self._held and self.is_reading():
                self._protocol.datagram_received(*self._held.pop(0))
        finally:
            if self._held and self.is_reading():  # the protocol has raised
                self._loop.call_soon(self._deliver_held)
            self._choose_way()

    def _event(self, kind: int, result: int, offset: int) -> None:
        if kind == DRAIN:
            self._drained()
        elif kind == ERROR:
            if not self._closing or (offset == WRITE and not self._conn_lost):
                self._protocol.error_received(oserror(result))
        elif not self._closing:  # paused, or what came before is not delivered yet
            start = offset - ADDR_BYTES
            address = _addr.addresses[self._arena[start : start + self._name_bytes]]
            self._held.append((self._arena[offset : offset + result], address))

    # -- sending ----------------------------------------------------------------------------------

    def sendto(self, data: bytes | bytearray | memoryview, addr: Any = None) -> None:
        """Send one datagram; one that the kernel has no room for is copied and sent later.

        Failures go to protocol.error_received. Raises TypeError for data that is not bytes-like,
        ValueError for another address than the transport's.
        """
        if type(data) is not bytes:
            data = _to_bytes(data)
        if self._address:
            if addr not in (None, self._address):
                raise ValueError(f"Invalid address: must be None or {self._address}")
            addr = self._address
            if self._conn_lost:
                self._lost_write()
                return
        if not self._handle:
            return
        try:
            target = _CONNECTED if self._connected else self._targets[addr]
        except Exception:  # a host name, or nonsense
            self._send_by_socket(data, addr)
            return
        outbox = self._loop._outbox
        if outbox.is_open and not self._write_barred:
            size = self._batch_bytes + len(data)
            if size <= _BATCH_BYTES:
                if not self._batch:
                    outbox.senders.append(self)
                self._batch_bytes = size
                self._batch.append((data, target))
                if len(self._batch) == BATCH:
                    self._flush()
                return
        self._send_now(data, target)

    def _send_now(self, data: bytes, target: tuple[Any, int]) -> None:
        self._flush()
        self._send_one(data, target)

    def _send_one(self, data: bytes, target: tuple[Any, int]) -> None:
        queued = _send(self._c, self._handle, data, len(data), target[0])
        if queued:
            self._sent(queued)

    def drop_batch(self) -> list[tuple[bytes, tuple[Any, int]]]:
        """What was not handed over, and is the caller's now."""
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        return batch

    def finish_batch(self) -> None:
        """At the end of a tick, when nobody is there who could get an exception of the protocol."""
        try:
            self._flush()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._event_failed(exc)

    def _flush(self) -> None:
        """Hand what was sent in this tick to the kernel."""
        batch = self.drop_batch()
        count = len(batch)
        if count == 1:
            self._send_one(*batch[0])
        elif count:
            self._send_rows(batch, count)

    def _send_rows(self, batch: list[tuple[bytes, tuple[Any, int]]], count: int) -> None:
        parts, targets = zip(*batch, strict=True)
        places = [place for _, place in targets]
        box = self._loop._outbox
        PACKERS[count].pack_into(box.buffer, 0, *map(len, parts), *places)
        data = b"".join(parts)
        failures = lib.tl_udp_send_rows(self._c, self._handle, box.rows, count, data)
        errors = [code for code in ffi.unpack(box.rows, count) if code] if failures else ()
        queued = self.get_write_buffer_size()
        if queued:
            self._sent(queued)
        for code in errors:
            self._sent(code)

    def _send_by_socket(self, data: bytes, addr: Any) -> None:
        """The socket module resolves the address, which blocks, or tells what is wrong with it."""
        try:
            # What waits already must not be overtaken.
            if not self.get_write_buffer_size() and self._sent_at_once(data, addr):
                return
            target = self._targets[self._resolve(*addr)]
        except OSError as exc:
            self._protocol.error_received(exc)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal write error on datagram transport")
        else:
            self._send_now(data, target)

    def _sent_at_once(self, data: bytes, addr: Any) -> bool:
        assert self._sock is not None
        try:
            self._sock.sendto(data, addr)
        except BlockingIOError:
            return False
        return True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "socket":  # which the first datagram binds
            self._flush()
        return super().get_extra_info(name, default)

    def _resolve(self, host: str, *rest: int) -> tuple[Any, ...]:
        info = socket.getaddrinfo(host, None, self._family, socket.SOCK_DGRAM)
        return (info[0][4][0], *rest)

    def _sent(self, queued: int) -> None:
        if queued > 0:
            self._write_barred = True
            self._maybe_pause_protocol()
        elif queued < 0:
            if self._loop.is_closed():
                raise RuntimeError("Event loop is closed")
            self._protocol.error_received(oserror(queued))


def _to_bytes(data: object) -> bytes:
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
    return bytes(data)


class SocketDatagramTransport(selector_events._SelectorDatagramTransport):  # type: ignore[misc]
    """asyncio's own transport, for families whose addresses only the socket module understands.
    It receives and sends; the C core tells it when."""

    def __repr__(self) -> str:  # asyncio's asks a selector
        state = "closed" if self._sock is None else "closing" if self._closing else "open"
        return f"<{type(self).__name__} {state} fd={self._sock_fd}>"

    def _call_connection_lost(self, exc: BaseException | None) -> None:
        self._loop._transports.pop(self._sock_fd, None)
        super()._call_connection_lost(exc)


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
        kind = DatagramTransport if sock.family in _addr.targets else SocketDatagramTransport
        return kind(self, sock, protocol, address, waiter, extra)
