"""Debug mode: each event becomes a handle, so that asyncio's checks see all that the loop runs.

What asyncio checks and logs elsewhere (threads, callbacks, blocking sockets, unclosed objects) is
inherited, or stands where it belongs.
"""

from __future__ import annotations

import sys
from asyncio import events, format_helpers
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final

from tloop_py._base import BaseLoop, base_events
from tloop_py._ffi import EVENT_NAMES

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator
    from traceback import StackSummary

NOTHING: Final = object()  # the argument of a queued callback that takes none


def origin(loop: BaseLoop) -> StackSummary | None:
    """In debug mode: who constructs the object whose `__init__` calls this."""
    if not loop._debug:
        return None
    frame: Any = sys._getframe(1)
    while frame.f_code.co_name == "__init__":
        frame = frame.f_back
    return format_helpers.extract_stack(frame)


class EventHandle(events.Handle):
    """One event of the C core (handle, kind, result, offset), as the loop runs and shows it."""

    __slots__ = ("_receiver",)

    def __init__(self, loop: DebugMixin, row: tuple[int, int, int, int]) -> None:
        receiver = loop._handlers.get(row[0])
        self._receiver = receiver
        self._loop = loop
        self._callback = loop._dispatch
        self._args = row
        self._context = copy_context()  # which the receiver replaces by its own
        self._cancelled = False
        self._repr = None
        self._source_traceback = getattr(receiver, "_source_traceback", None)

    def _repr_info(self) -> list[str]:
        _, kind, result, _ = self._args
        info = ["Handle", f"{type(self._receiver).__name__}._event({EVENT_NAMES[kind]}, {result})"]
        if self._receiver is not None:
            info.append(f"of {self._receiver!r}")
        protocol = getattr(self._receiver, "_protocol", None)
        if protocol is not None:
            info.append(f"protocol={protocol!r}")
        if self._source_traceback:
            info.append(
                f"created at {self._source_traceback[-1][0]}:{self._source_traceback[-1][1]}"
            )
        return info

    def _run(self) -> None:
        self._callback(iter((self._args,)))


class DebugMixin(BaseLoop):
    _began = 0.0  # when the running handle began

    def _add_event_handles(self, rows: Iterator[Any], due: int) -> None:
        """Queue the events of a poll before the timers, which are the last `due` handles."""
        timers = [self._ready.pop() for _ in range(due)]
        self._ready.extend(EventHandle(self, row) for row in rows)
        self._ready.extend(reversed(timers))

    def _run_ready_debug(self, count: int) -> None:
        item: Any
        args: Any
        for _ in range(count):
            item = self._ready.popleft()
            if item.__class__ is tuple:  # scheduled before debug mode was switched on
                args = () if item[2] is NOTHING else item[2:]
                item = events.Handle(item[1], args, self, item[0])
            if not item._cancelled:
                self._run_handle(item)
        item = args = None

    def _run_handle(self, handle: asyncio.Handle) -> None:
        """Run one handle; in debug mode, log when it takes long."""
        if not self._debug:
            handle._run()
            return
        outer, self._current_handle = self._current_handle, handle
        self._began = self.time()
        try:
            handle._run()
            seconds = self.time() - self._began
            if seconds >= self.slow_callback_duration:
                base_events.logger.warning(
                    "Executing %s took %.3f seconds", base_events._format_handle(handle), seconds
                )
        finally:
            self._current_handle = outer
            self._began = self.time()  # the event that called a reader is not to blame for it
            handle = None  # type: ignore[assignment]  # breaks cycles
