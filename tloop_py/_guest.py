"""`GuestLoop`: a loop that lives inside a foreign main loop (GTK, Tk, Qt, a game's frame loop).

The host watches one descriptor, keeps one timer, and calls `step`:

    def step():
        delay = loop.step()
        # have step() called again after `delay` seconds, unless that is None

    host.when_readable(loop.fileno(), step)
    step()

No thread is needed, and nothing is polled: the host sleeps until one of the two has work.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tloop_py._ffi import lib, oserror
from tloop_py._loop import Loop

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable


class GuestLoop(Loop):
    """A `Loop` that a foreign main loop drives by `step`; all of it stays in one thread.

    Between steps the host may call anything of the loop and its transports: whatever becomes due by
    that makes the descriptor readable. `asyncio.get_running_loop` works in callbacks of this loop
    only; elsewhere name the loop, as in `loop.create_task(...)`. Signal handlers of the host stay
    in place. `run_forever` and `run_until_complete` still work, before and after.
    """

    def fileno(self) -> int:
        """The descriptor that is readable when `step` has something to do. Changes with a fork.

        Raises OSError (ENOSYS) on backends that have none: step those by time.
        """
        fd: int = lib.tl_loop_fd(self._c)
        if fd < 0:
            raise oserror(fd, f"the {self.backend} backend has no descriptor to watch")
        return fd

    def step(self) -> float | None:
        """Run what is due now, without waiting: one tick.

        Returns seconds until the next step is due though the descriptor stays silent; 0.0: at once;
        None: when the descriptor is readable, no sooner. Raises RuntimeError when the loop is
        closed or running, so also from within one of its callbacks.
        """
        self._check_closed()
        self._check_running()
        self._stopping = True  # one tick, which does not wait
        asyncio.BaseEventLoop.run_forever(self)  # not Loop's: signals are the host's
        return self.timeout()

    def timeout(self) -> float | None:
        """What `step` returned, as of now; for hosts that ask right before they sleep."""
        self._check_closed()
        if self._ready or lib.tl_loop_timeout(self._c) == 0:
            return 0.0
        waiting = self._timeout_ns(self.time)
        return None if waiting < 0 else waiting / 1e9

    def call_soon(  # type: ignore[override]
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Any:
        handle = super().call_soon(callback, *args, context=context)
        self._tell_host(handle)
        return handle

    def _choose_append(self) -> None:
        super()._choose_append()
        append = self._append

        def append_and_tell(item: tuple[Any, ...]) -> None:
            append(item)
            self._tell_host(None)

        self._append = append_and_tell

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Any:
        timer = super().call_at(when, callback, *args, context=context)
        self._tell_host(timer)
        return timer

    def _tell_host(self, handle: asyncio.Handle | None) -> None:
        if handle is not None and handle._source_traceback:  # type: ignore[attr-defined]
            del handle._source_traceback[-1]  # type: ignore[attr-defined]
        if not self.is_running():
            self._write_to_self()
