"""Differences between interpreter versions; nothing else may ask for a version."""

from __future__ import annotations

import asyncio
import sys
from asyncio import tasks
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from asyncio.base_events import Server
    from collections.abc import Callable, Coroutine

_T = TypeVar("_T")

# From 3.13 on a server remembers its transports; before it counted them.
_ATTACH_TAKES_TRANSPORT = sys.version_info >= (3, 13)

# From 3.14 on sendfile() leaves a file at the given offset even when it could send nothing of it.
SENDFILE_ALWAYS_SEEKS = sys.version_info >= (3, 14)

# The create_unix_server default of `cleanup_socket`, an argument that 3.13 introduced.
CLEANUP_UNIX_SOCKET = sys.version_info >= (3, 13)


# From 3.14 on a handle of call_soon_threadsafe can be cancelled from another thread, too.
THREADSAFE_HANDLES = sys.version_info >= (3, 14)


def attach(server: Server, transport: asyncio.BaseTransport) -> None:
    if _ATTACH_TAKES_TRANSPORT:
        server._attach(transport)  # type: ignore[attr-defined]
    else:
        server._attach()  # type: ignore[attr-defined]


def detach(server: Server, transport: asyncio.BaseTransport) -> None:
    if _ATTACH_TAKES_TRANSPORT:
        server._detach(transport)  # type: ignore[attr-defined]
    else:
        server._detach()  # type: ignore[attr-defined]


def run_with_factory(
    main: Coroutine[Any, Any, _T],
    factory: Callable[[], asyncio.AbstractEventLoop],
    debug: bool | None,
) -> _T:
    with asyncio.Runner(debug=debug, loop_factory=factory) as runner:
        return runner.run(main)


def _find_step_type() -> type | None:
    """The type of the callable by which a C task schedules its own step; None on PyPy.

    Not importable by name. A task hands one to its loop when it is made.
    """
    seen: list[Any] = []

    class Probe(asyncio.BaseEventLoop):
        def call_soon(  # type: ignore[override]
            self, callback: Any, *args: Any, context: Any = None
        ) -> Any:
            seen.append(callback)

        def get_debug(self) -> bool:
            return False

    async def nothing() -> None:
        pass

    loop = Probe()
    coro = nothing()
    task = tasks.Task(coro, loop=loop)
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    coro.close()
    loop.close()
    kind = type(seen[0])
    return kind if kind.__name__ == "TaskStepMethWrapper" else None


STEP_TYPE = _find_step_type()
