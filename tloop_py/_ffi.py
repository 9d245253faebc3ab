"""The only importer of the compiled module: constants, error translation, process-wide set-up."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

try:
    from tloop_py._tloop import ffi as ffi
    from tloop_py._tloop import lib as lib
except ImportError as exc:
    raise ImportError(
        "tloop_py's compiled module is missing or was built for another interpreter; "
        "in a checkout run `make`, elsewhere reinstall tloop with a C compiler present"
    ) from exc

if TYPE_CHECKING:
    from typing import Any

# Event kinds; module constants, because each look-up through `lib` costs as much as a call.
DATA: Final[int] = lib.TL_EV_DATA
READABLE: Final[int] = lib.TL_EV_READABLE
EOF: Final[int] = lib.TL_EV_EOF
ERROR: Final[int] = lib.TL_EV_ERROR
DRAIN: Final[int] = lib.TL_EV_DRAIN
ACCEPT: Final[int] = lib.TL_EV_ACCEPT
DATAGRAM: Final[int] = lib.TL_EV_DATAGRAM
POLL: Final[int] = lib.TL_EV_POLL
SIGNAL: Final[int] = lib.TL_EV_SIGNAL
CLOSED: Final[int] = lib.TL_EV_CLOSED
TLS: Final[int] = lib.TL_EV_TLS
# For people: {1: "DATA", ...}
EVENT_NAMES: Final = {
    getattr(lib, name): name.removeprefix("TL_EV_")
    for name in dir(lib)
    if name.startswith("TL_EV_")
}

READ: Final[int] = lib.TL_READ
WRITE: Final[int] = lib.TL_WRITE
HUP: Final[int] = lib.TL_HUP
ERR: Final[int] = lib.TL_ERR
EDGE: Final[int] = lib.TL_EDGE
KEEP_FD: Final[int] = lib.TL_KEEP_FD
HAS_TLS: Final = hasattr(lib, "tl_tls_create")  # was mbedTLS there when the module was built?
_TLS_ERRORS: Final[int] = lib.TL_ETLS
CAP_EDGE: Final[int] = lib.TL_CAP_EDGE
CAP_RECEIVED: Final[int] = lib.TL_CAP_RECEIVED
CAP_VIRTUAL: Final[int] = lib.TL_CAP_VIRTUAL
ADDR_BYTES: Final[int] = lib.TL_ADDR_BYTES

# glibc serves blocks of 128 KiB and more by mmap until a larger one was freed once; then they come
# from the heap. Measured: stock asyncio's 1 KiB echo 24.2 -> 6.7 us of CPU per request.
_PRIME_BYTES: Final = 8 << 20
_primed = os.environ.get("TLOOP_PRIME_MALLOC", "1") == "0"


def oserror(code: int, what: str = "") -> OSError:
    """The OSError (of the right subclass) for a negative return code of the library."""
    if code <= _TLS_ERRORS:
        from tloop_py._tlserror import tls_error  # which needs this module

        return tls_error(code)
    if code < -4000:
        return OSError(9, f"{what or 'tloop'}: {ffi.string(lib.tl_strerror(code)).decode()}")
    text = os.strerror(-code)
    return OSError(-code, f"{what}: {text}" if what else text)


def create_loop(backend: str | None) -> Any:
    """Make a C loop; the caller ends it with `lib.tl_loop_close`.

    Raises ValueError for an unknown backend, naming the known ones, and OSError.
    """
    global _primed
    if backend is not None and not isinstance(backend, str):
        raise TypeError(f"backend must be str or None, not {type(backend).__name__}")
    if not _primed:
        lib.tl_prime_malloc(_PRIME_BYTES)
        _primed = True
    name = ffi.NULL if backend is None else ffi.new("char[]", backend.encode())
    desc = ffi.new("tl_loop_desc *", {"backend": name, "quiet_close": True})
    error = ffi.new("int *")
    loop = lib.tl_loop_create(desc, error)
    if loop == ffi.NULL:
        if error[0] == lib.TL_EBACKEND:
            known = ffi.string(lib.tl_backends()).decode()
            asked = repr(backend) if backend else f"TLOOP_BACKEND={os.environ['TLOOP_BACKEND']!r}"
            raise ValueError(f"unknown tloop backend {asked}; known are: {known}")
        named = backend or os.environ.get("TLOOP_BACKEND")
        raise oserror(error[0], f"cannot make an event loop{f' on {named}' if named else ''}")
    return loop


_dead: Any = None


def dead_loop() -> Any:
    """What objects of a closed loop refer to instead of freed memory: a C loop that has ended, on
    which every function answers with an error. Finalizers run in any order, so it must be there."""
    global _dead
    if _dead is None:
        _dead = create_loop(None)
        lib.tl_loop_shutdown(_dead)
    return _dead
