"""tloop: an asyncio event loop on a small C core, for CPython and PyPy.

    import tloop_py
    tloop_py.run(main())

or, wherever a loop factory is taken, `tloop_py.new_event_loop`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from tloop_py._compat import run_with_factory
from tloop_py._ffi import ffi as _ffi
from tloop_py._ffi import lib as _lib
from tloop_py._guest import GuestLoop
from tloop_py._loop import Loop

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["GuestLoop", "Loop", "__version__", "new_event_loop", "run"]

__version__: str = _ffi.string(_lib.tl_version()).decode()

_T = TypeVar("_T")


def new_event_loop(backend: str | None = None) -> Loop:
    """Make a loop, for `asyncio.Runner(loop_factory=...)`, `uvicorn --loop` and the like.

    backend: "epoll", "poll" or "dummy" (virtual time); None takes $TLOOP_BACKEND, else the best.
    Raises ValueError for an unknown one. The caller closes the loop.
    """
    return Loop(backend)


def run(main: Coroutine[Any, Any, _T], *, debug: bool | None = None) -> _T:
    """`asyncio.run(main)` on a new tloop loop: same result, same exceptions, same Ctrl-C."""
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("tloop_py.run() cannot be called from a running event loop")
    return run_with_factory(main, new_event_loop, debug)
