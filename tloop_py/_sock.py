"""add_reader/add_writer and the sock_* operations: one registration per descriptor.

Readers and writers are watched level-triggered, as asyncio does. A socket of sock_* operations is
registered when one first has to wait, once, edge-triggered, and stays registered while the object
lives: so waiting costs no epoll_ctl, and none fails with BlockingIOError just to find out.
An event only wakes the task that waits. The task itself receives, in its own step: if it is
cancelled instead, be it in the tick in which the data came, nothing was taken from the kernel.
"""

from __future__ import annotations

import asyncio
import collections
import errno
import socket
import threading
from asyncio import events, tasks
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar

from tloop_py._base import BaseLoop, base_events
from tloop_py._descriptor import Descriptor
from tloop_py._ffi import CAP_EDGE, EDGE, READ, WRITE, lib
from tloop_py._handles import Handle

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context


_T = TypeVar("_T")
_WOULD_BLOCK = (BlockingIOError, InterruptedError)
_PAUSES = (0.001, 0.05)  # seconds: the shortest and the longest between two attempts


def _can_wait(argument: Any) -> bool:
    """Is it a size or a buffer for which data must come? Others are for the socket to judge."""
    kind = type(argument)
    if kind is int:
        return bool(argument > 0)
    if kind is memoryview:
        return bool(argument.contiguous and argument.nbytes and not argument.readonly)
    return kind is bytearray and len(argument) > 0


class SockMixin(BaseLoop):
    def __init__(self) -> None:
        super().__init__()
        self._descriptors: dict[int, Descriptor] = {}
        self._dead_descriptors: collections.deque[Descriptor] = collections.deque()
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

    def _known(self, sock: socket.socket) -> Descriptor | None:
        """What is known of a socket that had to wait before; others are checked."""
        entry = self._descriptors.get(sock.fileno())
        if entry is not None and (entry.sock is None or entry.sock() is not sock):
            entry = None
        if entry is None or self._debug:
            self._check_socket(sock)
        return entry

    def _check_socket(self, sock: socket.socket) -> None:
        base_events._check_ssl_socket(sock)
        if self._debug and sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking")

    def _descriptor_of(self, sock: socket.socket) -> Descriptor:
        """For a socket that has to wait. Refuses those that cannot."""
        fd = sock.fileno()
        entry = self._descriptors.get(fd)
        if entry is not None and entry.sock is not None:
            if entry.sock() is sock:
                return entry
            self._forget_descriptor(fd)
            entry = None
        self._check_closed()
        if fd < 0:
            raise OSError(errno.EBADF, "Bad file descriptor")
        self._ensure_fd_no_transport(fd)
        self._bury_sockets()
        if entry is None:
            self._descriptors[fd] = entry = Descriptor(self, fd)
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
        self,
        fd: int,
        side: str,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: Context | None = None,
    ) -> None:
        self._check_closed()
        handle: Any
        if self._debug:
            handle = events.Handle(callback, args, self, context)
            del handle._source_traceback[-3:]
        else:
            handle = Handle(callback, args, self, copy_context() if context is None else context)
        self._swap(self._entry(fd), side, handle)

    def _entry(self, fd: int) -> Descriptor:
        entry = self._descriptors.get(fd)
        if entry is not None and entry.is_outlived():
            self._forget_descriptor(fd)  # with the events that are on their way
            entry = None
        if entry is None:
            self._descriptors[fd] = entry = Descriptor(self, fd)
        return entry

    def _swap(self, entry: Descriptor, side: str, handle: asyncio.Handle | None) -> None:
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

    # What asyncio's own transports ask of their loop: as above, also for a transport's descriptor;
    # from 3.15 on with the context to call in.

    def _add_reader(
        self, fd: int, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> None:
        self._watch_side(fd, "reader", callback, args, context)

    def _remove_reader(self, fd: int) -> bool:
        return self._unwatch_side(fd, "reader")

    def _add_writer(
        self, fd: int, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> None:
        self._watch_side(fd, "writer", callback, args, context)

    def _remove_writer(self, fd: int) -> bool:
        return self._unwatch_side(fd, "writer")

    def _run_side(self, entry: Descriptor, side: str, handle: asyncio.Handle) -> None:
        if handle.cancelled():
            self._swap(entry, side, None)
        else:
            self._run_handle(handle)

    # -- operations -------------------------------------------------------------------------------

    async def _in_turn(
        self,
        sock: socket.socket,
        bit: int,
        attempt: Callable[[Any], _T],
        argument: Any = None,
    ) -> _T:
        """The result of attempt(argument), made when the kernel reports the socket, again and again
        while it raises BlockingIOError. Who waited before comes first."""
        entry = self._descriptor_of(sock)
        turns = entry.reads if bit == READ else entry.writes if bit == WRITE else entry.errors
        turn = self.create_future()
        turns.append(turn)
        try:
            if not entry.mask & EDGE or not self._edge:
                entry.await_event(bit)
            while True:
                await turn
                if entry.gone:
                    break
                try:
                    result = attempt(argument)
                except _WOULD_BLOCK:
                    turn = turns[0] = self.create_future()
                    entry.would_block(bit)
                else:
                    if isinstance(result, bytes):
                        entry.received(len(result), argument)
                    return result
        finally:
            turns.remove(turn)
            if turns or not entry.mask & EDGE:
                entry.left(bit, turns)
        return await self._in_turn(sock, bit, attempt, argument)

    async def sock_recv(self, sock: socket.socket, n: int) -> bytes:
        """Receive up to n bytes; b"" at end of file."""
        entry = self._descriptors.get(sock.fileno())
        if entry is None or entry.sock is None or entry.sock() is not sock or self._debug:
            entry = self._known(sock)  # which looks at the same first
        if entry is None or (
            not entry.reads and (entry.readable or n.__class__ is not int or n <= 0)
        ):
            try:
                data = sock.recv(n)
            except _WOULD_BLOCK:
                pass
            else:
                if entry is not None:
                    entry.received(len(data), n)
                return data
        elif not entry.reads and entry.mask & EDGE and self._edge:
            # What _in_turn does for one that waits alone, without its frames: 1 us of 10.
            reads = entry.reads
            turn = self.create_future()
            reads.append(turn)
            try:
                await turn
                if not entry.gone:
                    data = sock.recv(n)
                    if 0 < len(data) < n and entry.tcp and not entry.hup:  # see received()
                        entry.readable = False
                    return data
            except _WOULD_BLOCK:
                entry.would_block(READ)
            finally:
                reads.popleft()  # its own: others have come later
                if reads:
                    entry.left(READ, reads)
        return await self._in_turn(sock, READ, sock.recv, n)

    async def sock_recv_into(self, sock: socket.socket, buf: Any) -> int:
        """Receive into buf; returns the number of bytes."""
        return await self._receive(sock, sock.recv_into, buf)

    async def sock_recvfrom(self, sock: socket.socket, bufsize: int) -> tuple[bytes, Any]:
        """Receive one datagram; returns it and its sender."""
        return await self._receive(sock, sock.recvfrom, bufsize)

    async def sock_recvfrom_into(
        self, sock: socket.socket, buf: Any, nbytes: int = 0
    ) -> tuple[int, Any]:
        """Receive one datagram into buf; returns its length and its sender."""
        size = nbytes or len(buf)
        return await self._receive(sock, lambda _: sock.recvfrom_into(buf, size))

    async def sock_accept(self, sock: socket.socket) -> tuple[socket.socket, Any]:
        """Accept one connection; returns its socket, non-blocking, and the peer's address."""

        def attempt(_: None) -> tuple[socket.socket, Any]:
            conn, address = sock.accept()
            conn.setblocking(False)
            return conn, address

        return await self._receive(sock, attempt)

    async def _receive(
        self, sock: socket.socket, attempt: Callable[[Any], _T], argument: Any = None
    ) -> _T:
        entry = self._known(sock)
        if entry is None or (not entry.reads and (entry.readable or not _can_wait(argument))):
            try:
                return attempt(argument)
            except _WOULD_BLOCK:
                pass
        return await self._in_turn(sock, READ, attempt, argument)

    async def sock_sendall(self, sock: socket.socket, data: Any) -> None:
        """Send all of data. After an exception nobody knows how much was sent."""
        entry = self._descriptors.get(sock.fileno())
        if entry is None or entry.sock is None or entry.sock() is not sock or self._debug:
            entry = self._known(sock)
        first = entry is None or not entry.writes
        sent = 0
        if first:
            try:
                sent = sock.send(data)
            except _WOULD_BLOCK:
                sent = 0
            if sent == len(data):
                return
        view = memoryview(data).cast("B")

        def attempt(_: None) -> None:
            nonlocal sent
            # Until EAGAIN: only that makes the kernel announce new room.
            while sent < len(view):
                sent += sock.send(view[sent:])

        try:
            if first:
                attempt(None)
                return
        except _WOULD_BLOCK:
            pass
        await self._in_turn(sock, WRITE, attempt)

    async def sock_sendto(self, sock: socket.socket, data: Any, address: Any) -> int:
        """Send one datagram; returns the number of bytes."""
        return await self._send(sock, lambda _: sock.sendto(data, 0, address))

    async def _send(self, sock: socket.socket, attempt: Callable[[None], _T]) -> _T:
        entry = self._known(sock)
        if entry is None or not entry.writes:
            try:
                return attempt(None)
            except _WOULD_BLOCK:
                pass
        if sock.family == socket.AF_UNIX and sock.type == socket.SOCK_DGRAM:
            return await _patiently(attempt)
        return await self._in_turn(sock, WRITE, attempt)

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
            pass
        if sock.family == socket.AF_UNIX:  # the listener's backlog is full
            await _patiently(lambda _: sock.connect(address))
        else:
            await self._connected(sock, address)

    async def _connected(self, sock: socket.socket, address: Any) -> None:
        fd = sock.fileno()

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
            await self._in_turn(sock, WRITE, attempt)
        finally:
            self._release_connected(fd)

    def _release_connected(self, fd: int) -> None:
        """Most sockets become a transport's now, or are closed because they failed."""
        entry = self._descriptors.get(fd)
        if entry and not (entry.reader or entry.writer or entry.reads or entry.writes):
            self._forget_descriptor(fd)


async def _patiently(attempt: Callable[[None], _T]) -> _T:
    """What waits for room in a queue of another Unix socket: the kernel does not announce it."""
    pause, longest = _PAUSES
    while True:
        await tasks.sleep(pause)
        try:
            return attempt(None)
        except _WOULD_BLOCK:
            pause = min(2 * pause, longest)
