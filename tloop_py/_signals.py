"""Signals: add_signal_handler, and the wake-up descriptor that lets any handler act at once.

CPython's C handler writes the signal's number to the descriptor given to `signal.set_wakeup_fd`:
here the loop's wake pipe. The poll then ends, and the interpreter runs the Python handler between
two bytecodes; without it a signal that arrives just before the poll would wait for the next event.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import sys
import threading
import warnings
from asyncio import coroutines, events
from typing import TYPE_CHECKING, Any

from tloop_py._base import BaseLoop
from tloop_py._compat import is_coroutine_function
from tloop_py._ffi import lib

if TYPE_CHECKING:
    from collections.abc import Callable

_logger = logging.getLogger("asyncio")


def _noop(signum: int, frame: object) -> None:
    """A Python handler must exist for the number to be written to the wake-up descriptor."""


class SignalMixin(BaseLoop):
    def __init__(self) -> None:
        super().__init__()
        self._signal_handlers: dict[int, asyncio.Handle] = {}

    def add_signal_handler(  # type: ignore[override]
        self, sig: int, callback: Callable[..., object], *args: Any
    ) -> None:
        """Call callback(*args) in the loop when the signal arrives; main thread only.

        Raises TypeError, ValueError (no such signal) or RuntimeError (cannot be caught, or not in
        the main thread). The former handler is not restored by remove_signal_handler.
        """
        if coroutines.iscoroutine(callback) or is_coroutine_function(callback):
            raise TypeError("coroutines cannot be used with add_signal_handler()")
        self._check_signal(sig)
        self._check_closed()
        try:
            signal.set_wakeup_fd(lib.tl_loop_wake_fd(self._c))
        except (ValueError, OSError) as exc:
            raise RuntimeError(str(exc)) from exc
        handle: Any = events.Handle(callback, args, self, None)
        if handle._source_traceback:
            del handle._source_traceback[-1]
        self._signal_handlers[sig] = handle
        try:
            signal.signal(sig, _noop)
            signal.siginterrupt(sig, False)
        except OSError as exc:
            del self._signal_handlers[sig]
            self._release_wakeup_fd()
            if exc.errno == errno.EINVAL:
                raise RuntimeError(f"sig {sig} cannot be caught") from exc
            raise

    def remove_signal_handler(self, sig: int) -> bool:
        """Restore the default action. Returns whether there was a handler."""
        self._check_signal(sig)
        if self._signal_handlers.pop(sig, None) is None:
            return False
        default = signal.default_int_handler if sig == signal.SIGINT else signal.SIG_DFL
        try:
            signal.signal(sig, default)
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                raise RuntimeError(f"sig {sig} cannot be caught") from exc
            raise
        self._release_wakeup_fd()
        return True

    def _check_signal(self, sig: object) -> None:
        if not isinstance(sig, int):
            raise TypeError(f"sig must be an int, not {sig!r}")
        if sig not in signal.valid_signals():
            raise ValueError(f"invalid signal number {sig}")

    def _handle_signal(self, sig: int) -> None:
        handle = self._signal_handlers.get(sig)
        if handle is None:
            return  # a handler of signal.signal, which has run by now
        if handle.cancelled():
            self.remove_signal_handler(sig)
        else:
            self._add_callback_signalsafe(handle)

    def _close_signals(self) -> None:
        if not sys.is_finalizing():
            for sig in list(self._signal_handlers):
                self.remove_signal_handler(sig)
        elif self._signal_handlers:
            warnings.warn(
                f"Closing the loop {self!r} on interpreter shutdown stage, "
                f"skipping signal handlers removal",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )
            self._signal_handlers.clear()

    # -- the wake-up descriptor -------------------------------------------------------------------

    def _release_wakeup_fd(self) -> None:
        """Nobody needs signals any more, unless the loop runs: then its end restores."""
        if self._signal_handlers or self.is_running():
            return
        try:
            signal.set_wakeup_fd(-1)
        except (ValueError, OSError) as exc:
            _logger.info("set_wakeup_fd(-1) failed: %s", exc)

    def _begin_wakeup_fd(self) -> int | None:
        """Returns what was there before, or None outside of the main thread."""
        if self._closed or threading.current_thread() is not threading.main_thread():
            return None
        try:
            return signal.set_wakeup_fd(lib.tl_loop_wake_fd(self._c), warn_on_full_buffer=False)
        except ValueError:  # not the main interpreter's main thread
            return None

    def _end_wakeup_fd(self, former: int | None) -> None:
        if former is None or self._signal_handlers:
            return
        own = lib.tl_loop_wake_fd(self._c)
        signal.set_wakeup_fd(-1 if former == own else former)

    def _after_fork(self) -> None:
        """In a forked child: leave parent's poll set and wake pipe alone."""
        own = lib.tl_loop_wake_fd(self._c)
        lib.tl_loop_after_fork(self._c)
        self._woken = False
        self._outbox.clear()
        if threading.current_thread() is threading.main_thread():
            former = signal.set_wakeup_fd(-1)
            if former not in (-1, own):
                signal.set_wakeup_fd(former)
