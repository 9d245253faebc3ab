"""Socket addresses: the C library's `tl_addr` bytes to Python's tuples and back."""

from __future__ import annotations

import os
import socket
import struct
from functools import lru_cache
from typing import Any

from tloop_py._ffi import ADDR_BYTES, ffi

# tl_addr: u32 nbytes, u32 unused, then the sockaddr, which begins with the family (native order).
_HEAD = struct.Struct("=I4xH")


@lru_cache(maxsize=4096)
def parse(raw: bytes) -> Any:
    """The address as `socket.getpeername()` gives it; None where there is none.

    raw: the ADDR_BYTES of a tl_addr. Cached, so that a peer's datagrams share one tuple.
    """
    nbytes, family = _HEAD.unpack_from(raw)
    if nbytes == 0:
        return None
    if family == socket.AF_INET:
        return socket.inet_ntop(family, raw[12:16]), int.from_bytes(raw[10:12], "big")
    if family == socket.AF_INET6:
        port, ip = struct.unpack_from("!H4x16s", raw, 10)
        flow = int.from_bytes(raw[12:16], "big")
        (scope,) = struct.unpack_from("=I", raw, 32)
        return socket.inet_ntop(family, ip), port, flow, scope
    if family == socket.AF_UNIX:
        return _parse_unix(raw[10 : 8 + nbytes])
    if family == getattr(socket, "AF_NETLINK", None):
        return struct.unpack_from("=II", raw, 12)
    return family, raw[10 : 8 + nbytes]


def _parse_unix(path: bytes) -> str | bytes:
    if path[:1] == b"\0":
        return path  # abstract: counted, and not text
    return os.fsdecode(path.split(b"\0", 1)[0])


@lru_cache(maxsize=4096)
def pack(family: int, address: Any) -> Any:
    """A `tl_addr *` for an address that needs no resolving, or None: let the socket module judge.

    The result is shared and must not be changed.
    """
    if family == socket.AF_INET:
        host, port = address
        data = struct.pack("=H", family) + struct.pack("!H4s8x", port, _ip(family, host))
    elif family == socket.AF_INET6 and len(address) == 2:
        host, port = address
        data = struct.pack("=H", family) + _pack6(port, 0, _ip(family, host), 0)
    elif family == socket.AF_INET6:
        host, port, flow, scope = address
        data = struct.pack("=H", family) + _pack6(port, flow, _ip(family, host), scope)
    else:
        return None
    raw = struct.pack("=I4x", len(data)) + data
    result = ffi.new("tl_addr *")
    ffi.buffer(result)[:] = raw.ljust(ADDR_BYTES, b"\0")
    return result


def _ip(family: int, host: str) -> bytes:
    return socket.inet_pton(family, host)


def _pack6(port: int, flow: int, ip: bytes, scope: int) -> bytes:
    return struct.pack("!HI16s", port, flow, ip) + struct.pack("=I", scope)
