"""asyncio's handles, made and cancelled with fewer steps; debug mode uses asyncio's own."""

from __future__ import annotations

from asyncio import events
from threading import get_ident
from typing import TYPE_CHECKING, Any

from tloop_py._compat import THREADSAFE_HANDLES

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context


class _Plain:
    """What handles outside of debug mode share. Each attribute that a constructor need not set is
    2 % of call_soon(): what only debug mode fills is empty here, and a cancelled handle is one
    without arguments. It forgets its callback, even if debug mode was switched on meanwhile."""

    __slots__ = ()

    _repr = _source_traceback = None

    if TYPE_CHECKING:
        _args: Any
        _callback: Any
        _context: Context

    @property
    def _cancelled(self) -> bool:
        return self._args is None

    def cancel(self) -> None:
        self._callback = self._args = None

    def _call(self) -> None:
        args = self._args
        if not args:  # a starred call costs 0.1 us more
            self._context.run(self._callback)
        elif len(args) == 1:
            self._context.run(self._callback, args[0])
        else:
            self._context.run(self._callback, *args)


class Handle(_Plain, events.Handle):  # type: ignore[override]
    """A callback that Loop._run_ready runs."""

    __slots__ = ()

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], loop: Any, context: Context
    ) -> None:
        self._context = context
        self._loop = loop
        self._callback = callback
        self._args = args

    def _event_failed(self, exc: BaseException) -> None:
        """An exception came out of the callback, which an event has called (see Loop._dispatch)."""
        self._loop._callback_failed(self, exc)


class _ThreadSafeHandle(_Plain, getattr(events, "_ThreadSafeHandle", events.Handle)):  # type: ignore[misc]
    """As asyncio's: once cancel() has returned in another thread, the callback has ended or never
    begins. Without the lock of its own that each has there, which takes longer than all else: the
    loop says that it runs and then asks whether it may, cancel() forbids it and then asks whether
    it runs. So one of them always sees the other, as long as the interpreter has a lock."""

    __slots__ = ("_forbidden", "_runner")

    def __init__(
        self: Any,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: Any,
        context: Context,
    ) -> None:
        self._context = context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._forbidden = False
        self._runner = 0  # the thread in which it runs

    def cancel(self) -> None:
        self._forbidden = True
        self._await_end()
        super().cancel()

    def cancelled(self) -> bool:
        self._await_end()
        return self._args is None

    def _run(self) -> None:
        self._runner = get_ident()
        try:
            if not self._forbidden:
                self._call()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._loop._callback_failed(self, exc)
        finally:
            self._runner = 0
            if self._loop._awaiting_end:
                with self._loop._run_ended:
                    self._loop._run_ended.notify_all()

    def _await_end(self) -> None:
        """Unless it is the callback itself that asks."""
        if self._runner not in (0, get_ident()):
            loop = self._loop
            with loop._run_ended:
                loop._awaiting_end += 1
                try:
                    loop._run_ended.wait_for(lambda: not self._runner)
                finally:
                    loop._awaiting_end -= 1


ThreadSafeHandle: Any = _ThreadSafeHandle if THREADSAFE_HANDLES else Handle


class TimerHandle(_Plain, events.TimerHandle):  # type: ignore[override]
    """A callback in the heap of timers. 1.65 -> 1.1 us for a timer that is made and cancelled."""

    __slots__ = ()

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: Any,
        context: Context,
    ) -> None:
        self._context = context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._when = when
        self._scheduled = False  # until it is in the heap

    def cancel(self) -> None:
        if self._scheduled and self._args is not None:
            self._loop._timer_cancelled_count += 1
        self._callback = self._args = None
