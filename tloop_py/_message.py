"""sock_recvmsg and sock_sendmsg: messages with ancillary data, which asyncio does not have."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from tloop_py._ffi import ERR
from tloop_py._sock import SockMixin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    _Ancillary = list[tuple[int, int, bytes]]
    _Message = tuple[Any, _Ancillary, int, Any]

# Linux' numbers, where the socket module lacks the name (PyPy).
_CLOEXEC: int = getattr(socket, "MSG_CMSG_CLOEXEC", 0x40000000)
_ERRQUEUE: int = getattr(socket, "MSG_ERRQUEUE", 0x2000)


class MessageMixin(SockMixin):
    async def sock_recvmsg(
        self, sock: socket.socket, bufsize: int, ancbufsize: int = 0, flags: int = 0
    ) -> tuple[bytes, _Ancillary, int, Any]:
        """Receive one message; returns (data, ancdata, msg_flags, address), as socket.recvmsg does.

        Received descriptors are not inheritable and belong to the caller, who must close them. None
        is lost when the operation is cancelled. With MSG_ERRQUEUE it waits for an error.
        """
        return await self._receive_message(
            sock, flags, lambda actual: sock.recvmsg(bufsize, ancbufsize, actual)
        )

    async def sock_recvmsg_into(
        self, sock: socket.socket, buffers: Iterable[Any], ancbufsize: int = 0, flags: int = 0
    ) -> tuple[int, _Ancillary, int, Any]:
        """As sock_recvmsg, into buffers; returns (nbytes, ancdata, msg_flags, address)."""
        parts = list(buffers)
        return await self._receive_message(
            sock, flags, lambda actual: sock.recvmsg_into(parts, ancbufsize, actual)
        )

    async def _receive_message(
        self, sock: socket.socket, flags: int, receive: Callable[[int], _Message]
    ) -> _Message:
        def attempt(_: None) -> _Message:
            data, ancillary, got, address = receive(flags | _CLOEXEC)
            # The kernel repeats MSG_CMSG_CLOEXEC in its flags; only who asked for it expects that.
            return data, ancillary, got & ~(_CLOEXEC & ~flags), address

        if not flags & _ERRQUEUE:
            return await self._receive(sock, attempt)
        self._check_socket(sock)
        try:
            return attempt(None)
        except (BlockingIOError, InterruptedError):  # which tells nothing of the data
            return await self._in_turn(sock, ERR, attempt)

    async def sock_sendmsg(
        self,
        sock: socket.socket,
        buffers: Iterable[Any],
        ancdata: Iterable[tuple[int, int, Any]] = (),
        flags: int = 0,
        address: Any = None,
    ) -> int:
        """Send one message; returns the number of bytes, as socket.sendmsg does: a stream may take
        less than all, and has taken ancdata then."""
        parts, ancillary = list(buffers), list(ancdata)
        return await self._send(sock, lambda _: sock.sendmsg(parts, ancillary, flags, address))
