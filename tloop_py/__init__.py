"""tloop: an asyncio event loop on a small C core, for CPython and PyPy.

    import tloop_py
    tloop_py.run(main())

or, wherever a loop factory is taken, `tloop_py.new_event_loop`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from tloop_py import _compat
from tloop_py._ffi import ffi as _ffi
from tloop_py._ffi import lib as _lib
from tloop_py._guest import GuestLoop
from tloop_py._loop import Loop
from tloop_py._tlscontext import TLSContext, create_tls_context
from tloop_py._tlsobject import TLSSession

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tloop_py._policy import EventLoopPolicy as EventLoopPolicy
    from tloop_py._policy import install as install

__all__ = [
    "GuestLoop",
    "Loop",
    "TLSContext",
    "TLSSession",
    "__version__",
    "create_tls_context",
    "new_event_loop",
    "run",
]

__version__: str = _ffi.string(_lib.tl_version()).decode()

_T = TypeVar("_T")


def new_event_loop(backend: str | None = None) -> Loop:
    """Make a loop, for `asyncio.Runner(loop_factory=...)`, `uvicorn --loop` and the like.

    backend: "epoll", "io_uring", "poll" or "dummy" (virtual time); None takes
    $TLOOP_BACKEND, else the best that works.
    Raises ValueError for an unknown one. The caller closes the loop.
    """
    return Loop(backend)


def run(
    main: Coroutine[Any, Any, _T],
    *,
    debug: bool | None = None,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> _T:
    """`asyncio.run(main)` on a new tloop loop: same result, same exceptions, same Ctrl-C.

    loop_factory: makes the loop, for one that is not the default `new_event_loop()`.
    """
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("tloop_py.run() cannot be called from a running event loop")
    with asyncio.Runner(debug=debug, loop_factory=loop_factory or new_event_loop) as runner:
        return runner.run(main)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """What needs event loop policies is made when it is asked for: Python 3.16 has none."""
        if name not in ("EventLoopPolicy", "install"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if _compat.DefaultEventLoopPolicy is None:
            raise AttributeError(
                f"{__name__}.{name} needs event loop policies, which this Python no longer has: "
                f"use {__name__}.run(), or loop_factory={__name__}.new_event_loop"
            )
        from tloop_py import _policy

        if name == "EventLoopPolicy":
            _policy.warn_deprecated(name)
        return getattr(_policy, name)
