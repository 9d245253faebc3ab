"""Socket addresses: the C library's `tl_addr` bytes to Python's tuples and back."""

from __future__ import annotations

import os
import socket
import struct
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tloop_py._ffi import ADDR_BYTES, ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable

# tl_addr: u32 nbytes, u32 unused, then the sockaddr, which begins with the family (native order).
_HEAD = struct.Struct("=I4xH")
# How much of one an address needs, where that is known.
NAME_BYTES = {socket.AF_INET: 24, socket.AF_INET6: 36}


_MOST = 4096  # peers whose addresses are remembered

_K = TypeVar("_K")
_V = TypeVar("_V")


class _Answers(dict[_K, _V]):
    """What a function gave for each key: a look-up takes a third of `functools.lru_cache`'s. The
    values are shared and must not be changed."""

    def __init__(self, function: Callable[[_K], _V]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, key: _K) -> _V:
        answer = self._function(key)
        if len(self) >= _MOST:
            self.clear()
        self[key] = answer
        return answer


def _parse(raw: bytes) -> Any:
    """The address as `socket.getpeername()` gives it; None where there is none.

    raw: a tl_addr, or as much of it as the address needs.
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
    if family == socket.AF_NETLINK:
        return struct.unpack_from("=II", raw, 12)
    return family, raw[10 : 8 + nbytes]


def _parse_unix(path: bytes) -> str | bytes:
    if path[:1] == b"\0":
        return path  # abstract: counted, and not text
    return os.fsdecode(path.split(b"\0", 1)[0])


# So that a peer's datagrams share one tuple.
addresses: Final = _Answers(_parse)


def _pack(family: int, address: Any) -> tuple[Any, int]:
    """A `tl_addr *`, and where that is, for an address that needs no resolving. Raises an exception
    of any kind for what only the socket module can judge: host names, nonsense."""
    result = ffi.new("tl_addr *")
    if family == socket.AF_UNIX:
        path = os.fsencode(address) if isinstance(address, str) else address
        if lib.tl_addr_unix(result, path, len(path)) < 0:
            raise ValueError("no path of a Unix socket")
        return result, _place_of(result)
    data = struct.pack("=H", family) + _packers[family](*address)
    raw = struct.pack("=I4x", len(data)) + data
    ffi.buffer(result)[:] = raw.ljust(ADDR_BYTES, b"\0")
    return result, _place_of(result)


def _place_of(result: Any) -> int:
    return int(ffi.cast("intptr_t", result))


def _pack4(host: str, port: int) -> bytes:
    return struct.pack("!H4s8x", port, socket.inet_pton(socket.AF_INET, _names.get(host, host)))


_names = {"": "0.0.0.0", "<broadcast>": "255.255.255.255"}  # as the socket module reads them


def _pack6(host: str, port: int, flow: int = 0, scope: int = 0) -> bytes:
    ip = socket.inet_pton(socket.AF_INET6, host)
    return struct.pack("!HI16s", port, flow, ip) + struct.pack("=I", scope)


def _pack_netlink(port: int, groups: int) -> bytes:
    return struct.pack("=2xII", port, groups)


_packers: dict[int, Callable[..., bytes]] = {
    socket.AF_INET: _pack4,
    socket.AF_INET6: _pack6,
    socket.AF_NETLINK: _pack_netlink,
}

# By family, of those whose addresses are read and made here: the `tl_addr` of each address.
targets: Final = {
    family: _Answers[Any, tuple[Any, int]](partial(_pack, family))
    for family in (socket.AF_UNIX, *_packers)
}
