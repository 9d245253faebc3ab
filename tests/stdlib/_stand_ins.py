"""Loops for those of the suite's tests that reach into a base loop or simulate its clock."""

from __future__ import annotations

from asyncio import base_events
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable, Generator


class Selector:
    """The loop's `_selector` to tests that ask it what is still watched; replaceable by a mock."""

    def __init__(self, loop: Any = None) -> None:
        self._loop = loop

    def __get__(self, loop: Any, owner: type) -> Selector:
        return Selector(loop)

    def get_key(self, sock: socket.socket) -> Any:
        return self._loop._descriptors[sock.fileno()]


def stepping(loop_class: Any) -> type:
    """The loop for tests that expect a base loop with its polling mocked away.

    They may call `_run_once()` by hand, for one turn that does not wait; and a mocked wake-up is
    ignored, for unlike a mocked selector this loop does wait.
    """

    class SteppingLoop(loop_class):  # type: ignore[misc]
        @property
        def _write_to_self(self) -> Any:
            return super()._write_to_self

        @_write_to_self.setter
        def _write_to_self(self, mock: Any) -> None:
            pass

        def _run_once(self) -> None:
            if self.is_running():
                super()._run_once()
                return
            self.stop()
            super()._run_once()
            self._stopping = False

    return SteppingLoop


def with_generator(loop_class: Any) -> type:
    """The suite's `TestLoop` on the loop under test and its virtual clock.

    The suite's own simulates the clock and polls nothing. A generator checks each deadline as it
    is asked for; the time steps that it yields are not needed, for the clock jumps by itself.
    """

    class TestLoop(stepping(loop_class)):  # type: ignore[misc]
        time: Callable[[], float]

        def __init__(self, gen: Callable[[], Generator[float, float, None]] | None = None) -> None:
            super().__init__("dummy")
            self._offset = 0.0
            clock = self.time
            self.time = lambda: clock() + self._offset
            self._generator = gen() if gen else None
            if self._generator:
                next(self._generator)

        def advance_time(self, seconds: float) -> None:
            self._offset += seconds

        def call_at(self, when: float, *args: Any, **kwargs: Any) -> asyncio.TimerHandle:
            if self._generator:
                self._generator.send(when)
            timer: asyncio.TimerHandle = super().call_at(when, *args, **kwargs)
            return timer

        def close(self) -> None:
            super().close()
            if self._generator:
                for _ in self._generator:
                    raise AssertionError("not every deadline was asked for")

    return TestLoop


def without_sendfile(loop_class: Any) -> type:
    """The loop for tests of what asyncio's selector loop is without a native sendfile."""
    missing = base_events.BaseEventLoop._sock_sendfile_native  # type: ignore[attr-defined]
    return type("LoopWithoutSendfile", (loop_class,), {"_sock_sendfile_native": missing})
