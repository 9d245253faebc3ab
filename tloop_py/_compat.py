"""Differences between interpreters and their versions; nothing else may ask for either."""

from __future__ import annotations

import asyncio
import sys
from asyncio import coroutines, events, tasks, unix_events
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio.base_events import Server
    from collections.abc import Callable

CPYTHON = sys.implementation.name == "cpython"  # and not PyPy

# From 3.13 on a server remembers its transports; before it counted them.
_ATTACH_TAKES_TRANSPORT = sys.version_info >= (3, 13)

# asyncio's own test of a callback; the public function warns from 3.14 on.
is_coroutine_function: Callable[[object], bool] = (
    coroutines._iscoroutinefunction  # type: ignore[attr-defined]
    if sys.version_info >= (3, 14)
    else coroutines.iscoroutinefunction
)

# From 3.15 on all callbacks of a connection run in one context; before, each registration with the
# loop (connecting, resume_reading, closing) had its own.
CONTEXT_OF_CONNECTION = sys.version_info >= (3, 15)

# From 3.14 on sendfile() leaves a file at the given offset even when it could send nothing of it.
SENDFILE_ALWAYS_SEEKS = sys.version_info >= (3, 14)

# The create_unix_server default of `cleanup_socket`, an argument that 3.13 introduced.
CLEANUP_UNIX_SOCKET = sys.version_info >= (3, 13)


# From 3.14 on a handle of call_soon_threadsafe can be cancelled from another thread, too.
THREADSAFE_HANDLES = sys.version_info >= (3, 14)

# Event loop policies; asyncio's public names for them warn from 3.14 on, and 3.16 has none.
POLICIES_DEPRECATED = sys.version_info >= (3, 14)
_mark = "_" if POLICIES_DEPRECATED else ""
DefaultEventLoopPolicy: Any = getattr(unix_events, f"{_mark}DefaultEventLoopPolicy", None)
set_event_loop_policy: Any = getattr(events, f"{_mark}set_event_loop_policy", None)


class Clients:
    """The transports of a server, which the loop knows. Stands for asyncio's WeakSet (from 3.13),
    which takes 0.7 us and 140 bytes for each connection. The server asks for their number when it
    closes, and from then on each time that one of them ends; before, nobody counts them."""

    __slots__ = ("_count", "_loop", "_server")

    def __init__(self, loop: Any, server: Server) -> None:
        self._count: int | None = None
        self._loop = loop
        self._server: Any = server

    def __len__(self) -> int:
        if self._count is not None:
            return self._count
        count = len(self.copy())
        if self._server._sockets is None:  # no more will come
            self._count = count
        return count

    def discard(self, transport: object) -> None:
        if self._count is not None:
            self._count -= 1

    def copy(self) -> list[Any]:
        known = self._loop._handlers.values()
        return [t for t in known if getattr(t, "_server", None) is self._server]


def attach(server: Any, transport: asyncio.BaseTransport) -> None:
    if not _ATTACH_TAKES_TRANSPORT:
        server._attach()
    elif server._sockets is None or type(server._clients) is not Clients:
        server._attach(transport)  # which refuses when the server is closed


def detach(server: Any, transport: asyncio.BaseTransport) -> None:
    if not _ATTACH_TAKES_TRANSPORT:
        server._detach()
    elif server._sockets is None or type(server._clients) is not Clients:
        server._detach(transport)


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
