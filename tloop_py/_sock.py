"""add_reader/add_writer and the sock_* operations: one registration per descriptor.

Readers and writers are watched level-triggered, as asyncio does. Sockets of sock_* operations are
registered once, edge-triggered, and stay registered: an operation first tries, if the socket is not
known to be empty (or full), and else waits for the next edge; so none costs an epoll_ctl, and none
fails with BlockingIOError just to find out. An operation receives in its own event, after the
check for cancellation: what a cancelled operation did not take stays in the kernel.
"""

from __future__ import annotations

import asyncio
import collections
import errno
import socket
import threading
import weakref
from asyncio import events, tasks
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar

from tloop_py._base import BaseLoop, base_events
from tloop_py._ffi import CAP_EDGE, EDGE, ERR, HUP, READ, WRITE, lib, oserror
from tloop_py._receiver import EventReceiver

if TYPE_CHECKING:
    from collections.abc import Callable

    _Op = tuple[asyncio.Future[Any], Callable[[Any], Any], Any]


_T = TypeVar("_T")
_WOULD_BLOCK = (BlockingIOError, InterruptedError)
_LONGEST_PAUSE = 0.05  # seconds between two attempts to connect where the backlog is full


class _Descriptor(EventReceiver):
    """What a loop knows of one file descriptor."""

    __slots__ = (
        "__weakref__", "_c", "_context", "_edge", "_loop", "fd", "gone", "handle", "hup", "mask",
        "readable", "reader", "reads", "sock", "tcp", "writable", "writer", "writes",
    )  # fmt: skip

    def __init__(self, loop: SockMixin, fd: int) -> None:
        self._loop = loop
        self._c = loop._c
        self._edge = loop._edge
        self.fd = fd
        self.mask = 0
        self.handle: int = lib.tl_poll_create(self._c, fd)
        if self.handle < 0:
            raise oserror(self.handle)
        # The socket object of sock_* operations. A closed one whose number is in use again is
        # another object, so it can never be mistaken.
        self.sock: weakref.ref[socket.socket] | None = None
        self.reader: asyncio.Handle | None = None
        self.writer: asyncio.Handle | None = None
        # Waiting operations: (future, attempt, argument); attempt(argument) raises BlockingIOError
        # until it can be done.
        self.reads: collections.deque[_Op] = collections.deque()
        self.writes: collections.deque[_Op] = collections.deque()
        self.readable = self.writable = True  # not known, so try
        self.hup = self.tcp = False
        self.gone = False
        self._context = copy_context()
        loop._handlers[self.handle] = self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} fd={self.fd} reader={self.reader} writer={self.writer}>"

    # -- registration -----------------------------------------------------------------------------

    def watch(self) -> None:
        """Tell the C core what is wanted now. Raises OSError; nothing has changed then."""
        level = (READ if self.reader else 0) | (WRITE if self.writer else 0)
        if level:
            mask = level | (READ if self.reads else 0) | (WRITE if self.writes else 0)
        else:
            mask = READ | WRITE | EDGE if self.sock is not None else 0
        # A level registration is repeated: the number may belong to another file by now.
        if mask == self.mask and not level:
            return
        rc = lib.tl_poll_start(self._c, self.handle, mask)
        if rc < 0:
            raise oserror(rc)
        self.mask = mask

    def serve(self, sock: socket.socket) -> None:
        """From now on for sock_* operations on sock."""
        self.sock = weakref.ref(sock, self._socket_died)
        # Not Unix sockets: those that pass descriptors give less than is there.
        self.tcp = sock.type == socket.SOCK_STREAM and sock.family in (
            socket.AF_INET,
            socket.AF_INET6,
        )

    def _socket_died(self, ref: object) -> None:
        """The collector may run in any thread, also while the C loop works without the lock."""
        self._loop._dead_descriptors.append(self)
        if threading.get_ident() == self._loop._home_thread:
            self._loop._bury_sockets()

    def is_outlived(self) -> bool:
        """Does the number belong to another file by now, than the socket that was used here?"""
        sock = self.sock() if self.sock is not None else None
        return self.sock is not None and (sock is None or sock.fileno() != self.fd)

    def close(self) -> None:
        self.gone = True
        self.sock = None
        self._loop._handlers.pop(self.handle, None)
        lib.tl_close(self._c, self.handle)

    # -- operations -------------------------------------------------------------------------------

    async def wait(self, write: bool, attempt: Callable[[Any], Any], argument: Any = None) -> Any:
        """The result of attempt(argument), tried whenever the kernel reports the descriptor."""
        ops = self.writes if write else self.reads
        future: asyncio.Future[Any] = self._loop.create_future()
        ops.append((future, attempt, argument))
        if not self.mask & EDGE:
            self.watch()
        if not self._edge:
            lib.tl_poll_rearm(self._c, self.handle, WRITE if write else READ)
        try:
            return await future
        except BaseException:
            self._drop(ops, future)
            raise
        finally:
            del future  # the traceback of its exception keeps this frame: break the cycle

    @staticmethod
    def _drop(ops: collections.deque[_Op], future: asyncio.Future[Any]) -> None:
        """Forget a cancelled operation: until the next event it would keep the socket alive."""
        for op in ops:
            if op[0] is future:
                ops.remove(op)
                return

    def _event(self, kind: int, mask: int, offset: int) -> None:
        if mask & HUP:
            self.hup = True
        if mask & (READ | HUP | ERR):
            self.readable = True
            if self.reader is not None:
                self._loop._run_side(self, "reader", self.reader)
            if self.reads:
                self._run_ops(self.reads, READ)
        if mask & (WRITE | HUP | ERR):
            self.writable = True
            if self.writer is not None:
                self._loop._run_side(self, "writer", self.writer)
            if self.writes:
                self._run_ops(self.writes, WRITE)

    def _run_ops(self, ops: collections.deque[_Op], bit: int) -> None:
        while ops:
            future: Any
            future, attempt, argument = ops[0]
            if not future.done():
                try:
                    result = attempt(argument)
                except _WOULD_BLOCK:
                    self._would_block(bit)
                    return
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as exc:
                    future.set_exception(exc)
                    future = None  # whose traceback keeps this frame: break the cycle
                else:
                    future.set_result(result)
                    if type(result) is bytes:
                        self.received(len(result), argument)
            ops.popleft()

    def received(self, got: int, asked: int) -> None:
        """TCP that gave less than it was asked for is empty; unless its end has come, which edges
        report only once."""
        if 0 < got < asked and self.tcp and not self.hup:
            self.readable = False

    def _would_block(self, bit: int) -> None:
        if bit == READ:
            self.readable = False
        else:
            self.writable = False
        if not self._edge:
            lib.tl_poll_rearm(self._c, self.handle, bit)


class SockMixin(BaseLoop):
    def __init__(self) -> None:
        super().__init__()
        self._descriptors: dict[int, _Descriptor] = {}
        self._dead_descriptors: collections.deque[_Descriptor] = collections.deque()
        self._home_thread = threading.get_ident()  # where the loop was made, or runs
        self._edge = bool(lib.tl_loop_caps(self._c) & CAP_EDGE)

    # -- descriptors ------------------------------------------------------------------------------

    def _ensure_fd_no_transport(self, fd: Any) -> int:
        """The number of a descriptor (or object with one) that no transport uses."""
        fileno = fd
        if not isinstance(fileno, int):
            try:
                fileno = int(fileno.fileno())
            except (AttributeError, TypeError, ValueError):
                raise ValueError(f"Invalid file object: {fd!r}") from None
        transport = self._transports.get(fileno)
        if transport is not None and not transport.is_closing():
            raise RuntimeError(f"File descriptor {fd!r} is used by transport {transport!r}")
        if fileno < 0:
            raise ValueError(f"Invalid file descriptor: {fileno}")
        return fileno

    def _descriptor_of(self, sock: socket.socket) -> _Descriptor:
        """For a sock_* operation. Refuses sockets that cannot be used on a loop."""
        entry = self._descriptors.get(sock.fileno())
        if entry is None or entry.sock is None or entry.sock() is not sock or self._debug:
            entry = self._check_descriptor(sock)
        return entry

    def _check_socket(self, sock: socket.socket) -> None:
        base_events._check_ssl_socket(sock)
        if self._debug and sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking")

    def _check_descriptor(self, sock: socket.socket) -> _Descriptor:
        self._check_socket(sock)
        fd = sock.fileno()
        entry = self._descriptors.get(fd)
        if entry is not None:
            if entry.sock is not None and entry.sock() is sock:
                return entry
            if entry.sock is not None:
                self._forget_descriptor(fd)
                entry = None
        self._check_closed()
        if fd < 0:
            raise OSError(errno.EBADF, "Bad file descriptor")
        self._ensure_fd_no_transport(fd)
        self._bury_sockets()
        if entry is None:
            self._descriptors[fd] = entry = _Descriptor(self, fd)
        entry.serve(sock)
        return entry

    def _forget_descriptor(self, fd: int) -> None:
        entry = self._descriptors.pop(fd, None)
        if entry is not None:
            entry.close()

    def _bury_sockets(self) -> None:
        """Let go of descriptors whose socket objects are gone."""
        while self._dead_descriptors:
            entry = self._dead_descriptors.popleft()
            if entry.gone or (entry.sock is not None and entry.sock() is not None):
                continue
            entry.sock = None
            if entry.reader is None and entry.writer is None:
                if self._descriptors.get(entry.fd) is entry:
                    del self._descriptors[entry.fd]
                entry.close()

    def _close_descriptors(self, dead: Any) -> None:
        for entry in self._descriptors.values():
            entry._c, entry.gone = dead, True
        self._descriptors.clear()
        self._dead_descriptors.clear()

    # -- readers and writers ----------------------------------------------------------------------

    def add_reader(  # type: ignore[override]
        self, fd: Any, callback: Callable[..., object], *args: Any
    ) -> None:
        """Call callback(*args) whenever fd is readable; replaces the former reader.

        fd: number, or object with fileno(). Raises RuntimeError for a transport's descriptor,
        ValueError, and OSError (PermissionError for a regular file).
        """
        self._add(fd, "reader", callback, args)

    def remove_reader(self, fd: Any) -> bool:
        """Returns whether there was one."""
        return self._remove(fd, "reader")

    def add_writer(  # type: ignore[override]
        self, fd: Any, callback: Callable[..., object], *args: Any
    ) -> None:
        """As add_reader, for writing; independent of the reader of the same descriptor."""
        self._add(fd, "writer", callback, args)

    def remove_writer(self, fd: Any) -> bool:
        """Returns whether there was one."""
        return self._remove(fd, "writer")

    def _add(
        self, fd: Any, side: str, callback: Callable[..., object], args: tuple[Any, ...]
    ) -> None:
        self._watch_side(self._ensure_fd_no_transport(fd), side, callback, args)

    def _watch_side(
        self, fd: int, side: str, callback: Callable[..., object], args: tuple[Any, ...]
    ) -> None:
        self._check_closed()
        handle = events.Handle(callback, args, self, None)
        if handle._source_traceback:  # type: ignore[attr-defined]
            del handle._source_traceback[-3:]  # type: ignore[attr-defined]
        self._swap(self._entry(fd), side, handle)

    def _entry(self, fd: int) -> _Descriptor:
        entry = self._descriptors.get(fd)
        if entry is not None and entry.is_outlived():
            self._forget_descriptor(fd)  # with the events that are on their way
            entry = None
        if entry is None:
            self._descriptors[fd] = entry = _Descriptor(self, fd)
        return entry

    def _swap(self, entry: _Descriptor, side: str, handle: asyncio.Handle | None) -> None:
        former = getattr(entry, side)
        setattr(entry, side, handle)
        try:
            entry.watch()
        except OSError:
            setattr(entry, side, former)
            if not entry.mask:
                self._forget_descriptor(entry.fd)
            raise
        if former is not None:
            former.cancel()
        if not entry.mask:
            self._forget_descriptor(entry.fd)

    def _remove(self, fd: Any, side: str) -> bool:
        return self._unwatch_side(self._ensure_fd_no_transport(fd), side)

    def _unwatch_side(self, fd: int, side: str) -> bool:
        entry = self._descriptors.get(fd)
        if entry is None or getattr(entry, side) is None:
            return False
        self._swap(entry, side, None)
        return True

    # What asyncio's own transports ask of their loop: as above, also for a transport's descriptor.

    def _add_reader(self, fd: int, callback: Callable[..., object], *args: Any) -> None:
        self._watch_side(fd, "reader", callback, args)

    def _remove_reader(self, fd: int) -> bool:
        return self._unwatch_side(fd, "reader")

    def _add_writer(self, fd: int, callback: Callable[..., object], *args: Any) -> None:
        self._watch_side(fd, "writer", callback, args)

    def _remove_writer(self, fd: int) -> bool:
        return self._unwatch_side(fd, "writer")

    def _run_side(self, entry: _Descriptor, side: str, handle: asyncio.Handle) -> None:
        if handle.cancelled():
            self._swap(entry, side, None)
        else:
            self._run_handle(handle)

    # -- operations -------------------------------------------------------------------------------

    async def sock_recv(self, sock: socket.socket, n: int) -> bytes:
        """Receive up to n bytes; b"" at end of file."""
        entry = self._descriptor_of(sock)
        if entry.readable and not entry.reads:
            try:
                data = sock.recv(n)
            except _WOULD_BLOCK:
                entry.readable = False
            else:
                entry.received(len(data), n)
                return data
        return await entry.wait(False, sock.recv, n)  # type: ignore[no-any-return]

    async def sock_recv_into(self, sock: socket.socket, buf: Any) -> int:
        """Receive into buf; returns the number of bytes."""
        return await self._do_read(sock, sock.recv_into, buf)

    async def sock_recvfrom(self, sock: socket.socket, bufsize: int) -> tuple[bytes, Any]:
        """Receive one datagram; returns it and its sender."""
        return await self._do_read(sock, sock.recvfrom, bufsize)

    async def sock_recvfrom_into(
        self, sock: socket.socket, buf: Any, nbytes: int = 0
    ) -> tuple[int, Any]:
        """Receive one datagram into buf; returns its length and its sender."""
        size = nbytes or len(buf)
        return await self._do_read(sock, lambda _: sock.recvfrom_into(buf, size), None)

    async def sock_accept(self, sock: socket.socket) -> tuple[socket.socket, Any]:
        """Accept one connection; returns its socket, non-blocking, and the peer's address."""

        def attempt(_: None) -> tuple[socket.socket, Any]:
            conn, address = sock.accept()
            conn.setblocking(False)
            return conn, address

        return await self._do_read(sock, attempt, None)

    async def _do_read(
        self, sock: socket.socket, attempt: Callable[[Any], _T], argument: Any
    ) -> _T:
        entry = self._descriptor_of(sock)
        if entry.readable and not entry.reads:
            try:
                return attempt(argument)
            except _WOULD_BLOCK:
                entry.readable = False
        result: _T = await entry.wait(False, attempt, argument)
        return result

    async def sock_sendall(self, sock: socket.socket, data: Any) -> None:
        """Send all of data. After an exception nobody knows how much was sent."""
        entry = self._descriptor_of(sock)
        sent = 0
        if not entry.writes:
            try:
                sent = sock.send(data)
            except _WOULD_BLOCK:
                sent = 0
            if sent == len(data):
                return
        view = memoryview(data)

        def attempt(_: None) -> None:
            nonlocal sent
            # Until EAGAIN: only that makes the kernel announce new room.
            while sent < len(view):
                sent += sock.send(view[sent:])

        try:
            if not entry.writes:
                attempt(None)
                return
        except _WOULD_BLOCK:
            entry.writable = False
        await entry.wait(True, attempt)

    async def sock_sendto(self, sock: socket.socket, data: Any, address: Any) -> int:
        """Send one datagram; returns the number of bytes."""
        entry = self._descriptor_of(sock)
        if not entry.writes:
            try:
                return sock.sendto(data, address)
            except _WOULD_BLOCK:
                entry.writable = False
        sent: int = await entry.wait(True, lambda _: sock.sendto(data, 0, address))
        return sent

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """Connect; host names are resolved by the executor."""
        self._check_socket(sock)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            resolved = await self._ensure_resolved(
                address, family=sock.family, type=sock.type, proto=sock.proto, loop=self
            )
            address = resolved[0][4]
        try:
            sock.connect(address)
            return
        except _WOULD_BLOCK:
            if sock.family == socket.AF_UNIX:
                await _connect_patiently(sock, address)
                return
        entry = self._descriptor_of(sock)

        def attempt(_: None) -> None:
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, f"Connect call failed {address}")
            try:
                sock.getpeername()
            except OSError as exc:  # an edge of before the connect
                if exc.errno == errno.ENOTCONN:
                    raise BlockingIOError from None
                raise

        try:
            await entry.wait(True, attempt)
        finally:
            self._release_connected(entry)

    def _release_connected(self, entry: _Descriptor) -> None:
        """Most sockets become a transport's now, or are closed because they failed."""
        waiting = any(not future.done() for future, _, _ in entry.writes)
        used = entry.reader or entry.writer or entry.reads or waiting
        if not used and self._descriptors.get(entry.fd) is entry:
            self._forget_descriptor(entry.fd)


async def _connect_patiently(sock: socket.socket, address: Any) -> None:
    """A Unix listener's backlog is full, and the kernel will not say when it has room."""
    pause = 0.001
    while True:
        await tasks.sleep(pause)
        try:
            sock.connect(address)
            return
        except _WOULD_BLOCK:
            pause = min(2 * pause, _LONGEST_PAUSE)
