"""The least that a loop written in Python costs: a contender that is a limit, not a loop to use.

It runs the same C core as tloop does, and the same protocols, tasks and futures; but a callback
that raises ends it, nothing is checked, and there is no flow control, no debug mode, no context
per connection, no signal. What tloop costs more than this is the price of asyncio's behaviour; what
this costs more than a loop in C is the price of Python.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from contextvars import copy_context
from functools import partial
from heapq import heapify, heappop
from itertools import count
from struct import Struct
from time import monotonic
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tloop_py._compat import CPYTHON, STEP_TYPE
from tloop_py._ffi import (
    ACCEPT,
    ADDR_BYTES,
    CAP_RECEIVED,
    DATA,
    DATAGRAM,
    DRAIN,
    EDGE,
    KEEP_FD,
    POLL,
    READ,
    READABLE,
    create_loop,
    ffi,
    lib,
)
from tloop_py._outbox import BATCH, PACKERS, SMALL
from tloop_py._reader import keep_chunks
from tloop_py._stream import LARGE_FOR_BUFFER, NEVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__version__ = "the least in Python"

_write, _write_batch = lib.tl_stream_write, lib.tl_stream_write_batch
_CAPACITY = 1024
_LARGEST = 256 << 10  # bytes of one receive
_ROW = Struct("4q")


class Handle:
    """Also a timer. An object of its own, for it can be cancelled."""

    __slots__ = ("args", "callback", "cancelled", "context")

    def __init__(self, context: Any, callback: Callable[..., object], args: Any) -> None:
        self.context = context
        self.callback = callback
        self.args = args
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Stream:
    """A connection, as its protocol sees it."""

    __slots__ = ("handle", "loop")

    def __init__(self, loop: Loop, handle: int) -> None:
        self.loop = loop
        self.handle = handle

    def write(self, data: bytes) -> None:
        loop = self.loop
        if len(data) > SMALL:
            loop.flush()
            _write(loop.c, self.handle, bytes(data), len(data))
            return
        loop.written.append(self.handle)
        # A buffer may change before the end of the tick.
        loop.parts.append(data if type(data) is bytes else bytes(data))
        if len(loop.parts) == BATCH:
            loop.flush()

    def writelines(self, parts: Iterable[bytes]) -> None:
        self.write(b"".join(parts))

    def get_extra_info(self, name: str) -> None:
        return None

    def is_closing(self) -> bool:
        return self.handle not in self.loop.receive

    def close(self) -> None:
        loop = self.loop
        if loop.receive.pop(self.handle, None):
            loop.flush()
            lib.tl_close(loop.c, self.handle)
            loop.call_soon(loop.protocols.pop(self.handle).connection_lost, None)

    abort = close


class Datagrams:
    __slots__ = ("handle", "loop")

    def __init__(self, loop: Loop, handle: int) -> None:
        self.loop = loop
        self.handle = handle

    def sendto(self, data: bytes, place: int) -> None:
        """To whom the address in the arena names: none is taken apart and put together again."""
        loop = self.loop
        loop.places.append(place)
        loop.parts.append(data)
        if len(loop.parts) == BATCH:
            loop.flush()

    def get_extra_info(self, name: str) -> Any:
        own = ffi.new("tl_addr *")
        lib.tl_sockname(self.loop.c, self.handle, own)
        return "127.0.0.1", lib.tl_addr_port(own)


class Readable:
    """A socket of sock_recv(), by the edges that the kernel reports."""

    __slots__ = ("known", "waiter")

    def __init__(self) -> None:
        self.known = True
        self.waiter: Any = None

    def event(self) -> None:
        self.known = True
        if self.waiter is not None:
            waiter, self.waiter = self.waiter, None
            waiter.set_result(None)


class Loop(asyncio.BaseEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self.c: Any = create_loop(None)
        self.events: Any = ffi.new("tl_event[]", _CAPACITY)
        self.tick: Any = ffi.new("tl_tick *", (self.c, self.events, 0, _CAPACITY))
        self.rows: Any = ffi.buffer(self.events)
        may_receive = lib.tl_loop_caps(self.c) & CAP_RECEIVED and CPYTHON  # as tloop does
        self.large = SMALL if may_receive else NEVER
        begin = lib.tl_loop_arena(self.c)
        self.begin = int(ffi.cast("intptr_t", begin))
        self.arena: Any = ffi.buffer(begin, lib.tl_loop_arena_bytes(self.c))
        self.receive: dict[int, Callable[..., None]] = {}  # by handle
        self.protocols: dict[int, Any] = {}  # the same; a listener's is its factory
        self.watched: dict[Any, Any] = {}  # by socket: a reader's handle, or Readable
        self.woken = False
        self.timers: list[tuple[float, int, Handle]] = []
        self.fresh: list[tuple[float, int, Handle]] = []  # which join them before the next poll
        self.numbers = count()
        self.written: list[int] = []  # handles
        self.places: list[int] = []  # addresses of datagrams
        self.parts: list[bytes] = []  # for either; no row has both
        self.box: Any = ffi.new("int64_t[]", 2 * BATCH)
        self.box_bytes: Any = ffi.buffer(self.box)

    def close(self) -> None:
        if not self.is_closed():
            super().close()
            lib.tl_loop_close(self.c)

    time = staticmethod(monotonic)
    get_debug = bool

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> Any:
        if callback.__class__ is STEP_TYPE:
            self._ready.append((context, callback))
            return None
        handle = Handle(copy_context() if context is None else context, callback, args)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> Any:
        handle = Handle(copy_context() if context is None else context, callback, args)
        self._ready.append(handle)
        if not self.woken:
            self.woken = True
            lib.tl_loop_wake(self.c)
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> Any:
        timer = Handle(copy_context() if context is None else context, callback, args)
        self.fresh.append((when, next(self.numbers), timer))
        return timer

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> Any:
        timer = Handle(copy_context() if context is None else context, callback, args)
        self.fresh.append((monotonic() + delay, next(self.numbers), timer))
        return timer

    def _run_once(self) -> None:
        """Until stop(), as tloop's."""
        ready, timers, fresh, rows = self._ready, self.timers, self.fresh, self.rows
        rows_of, size, poll, tick = _ROW.iter_unpack, _ROW.size, lib.tl_loop_tick, self.tick
        row_of = _ROW.unpack_from
        asked = tick.timeout_ns
        while True:
            if ready and not (timers or fresh or self.protocols or self._stopping):
                self.run(len(ready))  # the kernel has nothing for it
                continue
            if self.parts:
                self.flush()
            patience = 0 if ready or self._stopping else -1
            if timers or fresh:
                patience = self.patience()
            if patience != asked:
                tick.timeout_ns = asked = patience
            n = poll(tick)
            self.woken = False
            before = len(ready)
            if timers:
                self.move_due()
            if n == 1:
                self.dispatch((row_of(rows),))
            elif n:
                self.dispatch(rows_of(rows[: n * size]))
            if before:
                self.run(before)
            if self._stopping:
                break
        self.flush()

    def patience(self) -> int:
        timers, fresh = self.timers, self.fresh
        if fresh or (timers and timers[0][2].cancelled):
            timers[:] = [timer for timer in (*timers, *fresh) if not timer[2].cancelled]
            heapify(timers)
            fresh.clear()
        if self._ready or self._stopping:
            return 0
        return max(int((timers[0][0] - monotonic()) * 1e9) + 1, 0) if timers else -1

    def move_due(self) -> None:
        now, timers = monotonic(), self.timers
        while timers and timers[0][0] <= now:
            self._ready.append(heappop(timers)[2])

    def run(self, count: int) -> None:
        popleft = self._ready.popleft
        item: Any
        for _ in range(count):
            item = popleft()
            if item.__class__ is tuple:
                item[0].run(item[1])
            elif not item.cancelled:
                if len(item.args) == 1:  # a starred call costs 0.1 us more
                    item.context.run(item.callback, item.args[0])
                else:
                    item.context.run(item.callback, *item.args)

    def dispatch(self, events: Any) -> None:
        receive, arena = self.receive, self.arena
        for handle, kind, result, offset in events:
            if kind == DATA:
                if handle in receive:  # its protocol may have closed it since
                    receive[handle](arena[offset : offset + result])
            elif kind == DATAGRAM:
                place = self.begin + offset - ADDR_BYTES
                receive[handle](arena[offset : offset + result], place)
            elif kind == POLL:
                receive[handle]()
            elif kind == ACCEPT:
                self.connect(result, self.protocols[handle]())
            elif handle in receive:
                if kind == READABLE:
                    self.receive_large(handle)
                elif kind != DRAIN:
                    self.end(handle)

    def receive_large(self, handle: int) -> None:
        protocol = self.protocols[handle]
        if isinstance(protocol, asyncio.BufferedProtocol):
            buffer = ffi.from_buffer(protocol.get_buffer(-1))
            size = lib.tl_stream_recv(self.c, handle, buffer, len(buffer))
            if size > 0:
                protocol.buffer_updated(size)
        else:
            try:
                data = os.read(lib.tl_fd(self.c, handle), _LARGEST)
                size = len(data)
            except BlockingIOError:
                size = -errno.EAGAIN
            lib.tl_stream_received(self.c, handle, size, _LARGEST)
            if size > 0:
                protocol.data_received(data)
        if not size:
            self.end(handle)

    def end(self, handle: int) -> None:
        del self.receive[handle]
        lib.tl_close(self.c, handle)
        protocol = self.protocols.pop(handle)
        protocol.eof_received()
        protocol.connection_lost(None)

    def connect(self, handle: int, protocol: Any) -> Stream:
        self.protocols[handle] = protocol
        keep_chunks(self, protocol)  # type: ignore[arg-type]
        if isinstance(protocol, asyncio.BufferedProtocol):
            self.receive[handle], large = copier(protocol), LARGE_FOR_BUFFER
        else:
            self.receive[handle], large = getattr(protocol, "data_received", ignore), self.large
        transport = Stream(self, handle)
        protocol.connection_made(transport)
        lib.tl_stream_read_mixed(self.c, handle, large)
        return transport

    def flush(self) -> None:
        parts, count = self.parts, len(self.parts)
        if count == 1 and not self.places:
            part = parts.pop()
            _write(self.c, self.written.pop(), part, len(part))
        elif count:
            self.parts = []
            self.flush_batch(parts, count)

    def flush_batch(self, parts: list[bytes], count: int) -> None:
        if self.places:
            places, self.places = self.places, []
            PACKERS[count].pack_into(self.box_bytes, 0, *map(len, parts), *places)
            (handle,) = self.receive
            lib.tl_udp_send_rows(self.c, handle, self.box, count, b"".join(parts))
        else:
            written, self.written = self.written, []
            PACKERS[count].pack_into(self.box_bytes, 0, *written, *map(len, parts))
            _write_batch(self.c, self.box, count, b"".join(parts))

    def watch(self, fd: int, mask: int, callback: Callable[[], object]) -> int:
        handle = lib.tl_poll_create(self.c, fd)
        self.receive[handle] = callback
        lib.tl_poll_start(self.c, handle, mask)
        return handle

    def add_reader(  # type: ignore[override]
        self, sock: socket.socket, callback: Callable[..., object], *args: Any
    ) -> None:
        run = partial(copy_context().run, callback, *args)
        self.watched[sock] = self.watch(sock.fileno(), READ, run)

    def remove_reader(self, sock: socket.socket) -> None:  # type: ignore[override]
        handle = self.watched.pop(sock)
        del self.receive[handle]
        lib.tl_close(self.c, handle)

    def readable(self, sock: socket.socket) -> Readable:
        self.watched[sock] = entry = Readable()
        self.watch(sock.fileno(), READ | EDGE, entry.event)
        return entry

    async def sock_recv(self, sock: socket.socket, n: int) -> bytes:
        entry = self.watched.get(sock) or self.readable(sock)
        while True:
            if not entry.known:
                entry.waiter = self.create_future()
                await entry.waiter
            try:
                data = sock.recv(n)
            except BlockingIOError:
                entry.known = False
                continue
            entry.known = not 0 < len(data) < n
            return data

    async def sock_sendall(self, sock: socket.socket, data: bytes) -> None:
        if sock.send(data) < len(data):
            raise BlockingIOError("the load must not send more than the kernel's queue takes")

    async def sock_accept(self, sock: socket.socket) -> tuple[socket.socket, Any]:
        entry = self.watched.get(sock) or self.readable(sock)
        while True:
            try:
                peer, address = sock.accept()
            except BlockingIOError:
                entry.waiter = self.create_future()
                await entry.waiter
            else:
                peer.setblocking(False)
                return peer, address

    async def create_server(  # type: ignore[override]
        self, factory: Callable[[], Any], host: str, port: int, *, backlog: int, **_: object
    ) -> Any:
        server = socket.create_server((host, port), backlog=backlog)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.listen(server, factory)

    async def create_unix_server(  # type: ignore[override]
        self, factory: Callable[[], Any], path: str, *, backlog: int, **_: object
    ) -> Any:
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        server.listen(backlog)
        return self.listen(server, factory)

    def listen(self, server: socket.socket, factory: Callable[[], Any]) -> SimpleNamespace:
        server.setblocking(False)
        handle = lib.tl_listener_open(self.c, server.fileno(), KEEP_FD)
        self.protocols[handle] = factory
        return SimpleNamespace(sockets=[server])

    async def create_unix_connection(  # type: ignore[override]
        self, factory: Callable[[], Any], path: str
    ) -> tuple[Stream, Any]:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        return self.open(sock.detach(), factory())

    async def connect_read_pipe(  # type: ignore[override]
        self, factory: Callable[[], Any], pipe: Any
    ) -> tuple[Stream, Any]:
        return self.open(os.dup(pipe.fileno()), factory())

    connect_write_pipe = connect_read_pipe  # type: ignore[assignment]

    def open(self, fd: int, protocol: Any) -> tuple[Stream, Any]:
        os.set_blocking(fd, False)
        return self.connect(lib.tl_stream_open(self.c, fd, 0), protocol), protocol

    async def create_datagram_endpoint(  # type: ignore[override]
        self, factory: Callable[[], Any], local: tuple[str, int]
    ) -> tuple[Datagrams, Any]:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind(local)
        handle, protocol = lib.tl_udp_open(self.c, sock.detach(), 0), factory()
        self.receive[handle] = protocol.datagram_received
        transport = Datagrams(self, handle)
        protocol.connection_made(transport)
        lib.tl_udp_read_start(self.c, handle)
        return transport, protocol


def ignore(data: bytes) -> None:
    """For what has nobody to receive."""


def copier(protocol: asyncio.BufferedProtocol) -> Callable[[bytes], None]:
    get_buffer, updated, copy = protocol.get_buffer, protocol.buffer_updated, ffi.memmove

    def receive(data: bytes) -> None:
        size = len(data)
        copy(get_buffer(-1), data, size)
        updated(size)

    return receive


def new_event_loop() -> Loop:
    return Loop()
