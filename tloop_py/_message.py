"""sock_recvmsg and sock_sendmsg: messages with ancillary data, which asyncio does not have."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from tloop_py._ffi import ERR, READ
from tloop_py._sock import SockMixin

if TYPE_CHECKING:
    from collections.abc import Iterable

    _Ancillary = list[tuple[int, int, bytes]]
    _Message = tuple[Any, _Ancillary, int, Any]

_CLOEXEC: int = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_ERRQUEUE: int = getattr(socket, "MSG_ERRQUEUE", 0)


class MessageMixin(SockMixin):
    async def sock_recvmsg(
        self, sock: socket.socket, bufsize: int, ancbufsize: int = 0, flags: int = 0
    ) -> tuple[bytes, _Ancillary, int, Any]:
        """Receive one message; returns (data, ancdata, msg_flags, address), as socket.recvmsg does.

        Received descriptors are not inheritable and belong to the caller, who must close them. None
        is lost when the operation is cancelled. With MSG_ERRQUEUE it waits for an error.
        """
        return await self._receive(
            sock,
            lambda _: _as_asked(sock.recvmsg(bufsize, ancbufsize, flags | _CLOEXEC), flags),
            bit=ERR if flags & _ERRQUEUE else READ,
        )

    async def sock_recvmsg_into(
        self, sock: socket.socket, buffers: Iterable[Any], ancbufsize: int = 0, flags: int = 0
    ) -> tuple[int, _Ancillary, int, Any]:
        """As sock_recvmsg, into buffers; returns (nbytes, ancdata, msg_flags, address)."""
        parts = list(buffers)
        return await self._receive(
            sock,
            lambda _: _as_asked(sock.recvmsg_into(parts, ancbufsize, flags | _CLOEXEC), flags),
            bit=ERR if flags & _ERRQUEUE else READ,
        )

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


def _as_asked(message: _Message, flags: int) -> Any:
    """The kernel repeats MSG_CMSG_CLOEXEC in the flags of the message; who asked expects it."""
    data, ancillary, got, address = message
    return data, ancillary, got & ~(_CLOEXEC & ~flags), address
