"""What a loop knows of one watched descriptor: its reader, its writer, and who waits in turn."""

from __future__ import annotations

import collections
import contextlib
import socket
import threading
import weakref
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from tloop_py._ffi import EDGE, ERR, HUP, POLL, READ, WRITE, lib, oserror
from tloop_py._handles import Handle
from tloop_py._receiver import EventReceiver

if TYPE_CHECKING:
    import asyncio

    from tloop_py._sock import SockMixin

    Turns = collections.deque[asyncio.Future[None]]

_DATA = READ | WRITE  # an edge tells of the room, too


class _Nobody:
    """As a handle that is not called, so that Descriptor._event is."""

    _args = None


_NOBODY = _Nobody()


class Descriptor(EventReceiver):
    """What a loop knows of one file descriptor."""

    __slots__ = (
        "__weakref__", "_c", "_context", "_edge", "_loop", "errors", "fd", "gone", "handle", "hup",
        "mask", "only", "readable", "reader", "reads", "sock", "tcp", "writable", "writer",
        "writes",
    )  # fmt: skip

    _takes = POLL

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
        # The reader or the writer, while there is nothing else that an event could be for. Not in
        # debug mode, whose handles are asyncio's.
        self.only: Any = _NOBODY
        # Operations that wait, in order. The first one's future is done when it may try; it stays
        # in front until it has succeeded or failed.
        self.reads: Turns = collections.deque()
        self.writes: Turns = collections.deque()
        self.errors: Turns = collections.deque()  # who reads the kernel's queue of errors
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
        handle = self.reader or self.writer
        alone = self.sock is None and not (self.reader and self.writer) and type(handle) is Handle
        self.only = handle if alone else _NOBODY

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
        """Who still waits finds out that its socket is closed, or a transport's."""
        self.gone = True
        self.sock = None
        self._loop._handlers.pop(self.handle, None)
        lib.tl_close(self._c, self.handle)
        for turn in (*self.reads, *self.writes, *self.errors):
            if not turn.done():
                turn.set_result(None)

    # -- operations -------------------------------------------------------------------------------

    def await_event(self, bit: int) -> None:
        """Have the kernel report the descriptor, unless it will do so anyhow."""
        if not self.mask & EDGE:
            self.watch()
        if not self._edge:
            lib.tl_poll_rearm(self._c, self.handle, WRITE if bit == WRITE else READ)

    def would_block(self, bit: int) -> None:
        if bit == READ:
            self.readable = False
        elif bit == WRITE:
            self.writable = False
        self.await_event(bit)

    def left(self, bit: int, turns: Turns) -> None:
        """An operation has ended. The next one may try: an edge tells of much only once."""
        if self.gone:
            return
        if turns:
            if bit == ERR or (self.readable if bit == READ else self.writable):
                _wake(turns)
        elif not self.mask & EDGE:  # a reader or writer remains, which must be watched alone
            with contextlib.suppress(OSError):  # the descriptor is closed: nothing is watched
                self.watch()

    def _event(self, kind: int, mask: int, offset: int) -> None:
        if mask == _DATA and self._edge and not (self.writes or self.reader or self.writer):
            # What all that follows comes to when data has arrived for a sock_recv: 0.2 us of 10.
            self.readable = self.writable = True
            if self.reads and not (turn := self.reads[0]).done():
                turn.set_result(None)
            return
        if mask & HUP:
            self.hup = True
        if self.errors:
            if mask & ERR:
                _wake(self.errors)
            elif not self._edge:  # what comes unasked is muted with the rest
                self.await_event(ERR)
        if mask & (READ | HUP | ERR):
            self.readable = True
            if self.reader is not None:
                self._loop._run_side(self, "reader", self.reader)
            if self.reads:
                _wake(self.reads)
        if mask & (WRITE | HUP | ERR):
            self.writable = True
            if self.writer is not None:
                self._loop._run_side(self, "writer", self.writer)
            if self.writes:
                _wake(self.writes)

    def received(self, got: int, asked: int) -> None:
        """TCP that gave less than it was asked for is empty; unless its end has come, which edges
        report only once."""
        if 0 < got < asked and self.tcp and not self.hup:
            self.readable = False


def _wake(turns: Turns) -> None:
    if not turns[0].done():
        turns[0].set_result(None)
