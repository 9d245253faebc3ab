"""Subprocesses: asyncio's own transport for one, with the C core telling when it has ended.

Their pipes are pipes (_pipe.py). A child is watched by a pidfd in the loop's poll set; where the
kernel gives none (before 5.3, in a sandbox, out of descriptors) a thread waits for it. No signal
handler and no child watcher of asyncio takes part, so loops in any thread have subprocesses.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import threading
from asyncio import base_subprocess
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from tloop_py._base import BaseLoop
from tloop_py._ffi import lib, oserror
from tloop_py._receiver import EventReceiver

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_logger = logging.getLogger("asyncio")

_LOST_CODE = 255  # what asyncio tells when somebody else has taken the exit status


class ChildWatch(EventReceiver):
    """Reaps one child and calls callback(returncode), once.

    The child is reaped in the loop's thread only, and its exit told at the same moment: until then
    its number cannot have become another process.
    """

    __slots__ = ("_callback", "_context", "_handle", "_loop", "_process", "_thread")

    def __init__(
        self, loop: Any, process: subprocess.Popen[bytes], callback: Callable[[int], None]
    ) -> None:
        self._loop = loop
        self._process = process
        self._callback: Callable[[int], None] | None = callback
        self._context = copy_context()
        self._thread: threading.Thread | None = None
        self._handle: int = lib.tl_child_watch(loop._c, process.pid)
        if self._handle > 0:
            loop._handlers[self._handle] = self
        else:
            self._thread = threading.Thread(
                target=self._wait_in_thread, name=f"tloop-waitpid-{process.pid}", daemon=True
            )
            self._thread.start()

    # -- the end of the child ---------------------------------------------------------------------

    def _event(self, kind: int, result: int, offset: int) -> None:
        self._ended(result)

    def _wait_in_thread(self) -> None:
        lib.tl_child_wait(self._process.pid)
        try:
            self._loop.call_soon_threadsafe(self.look, context=self._context)
        except RuntimeError:
            _logger.warning("Loop %r that handles pid %r is closed", self._loop, self._process.pid)
            self._process.poll()  # reaps

    def look(self) -> None:
        """Reap the child if it has ended."""
        if self._callback is None or self._loop.is_closed():
            return
        status = self._status()
        if status != -errno.EAGAIN:
            self._ended(status)

    def _status(self) -> int:
        """As waitpid gives it, or -EAGAIN, or -ECHILD."""
        if self._handle > 0:
            status: int = lib.tl_child_status(self._loop._c, self._handle)
            return status
        try:
            pid, status = os.waitpid(self._process.pid, os.WNOHANG)
        except ChildProcessError:
            return -errno.ECHILD
        return status if pid else -errno.EAGAIN

    def _ended(self, status: int) -> None:
        callback, self._callback = self._callback, None
        assert callback is not None
        if self._handle > 0:
            del self._loop._handlers[self._handle]
            lib.tl_close(self._loop._c, self._handle)
        if self._thread is not None:  # it is just ending, too, but still uses the loop
            self._thread.join()
        if status >= 0:
            self._process.returncode = os.waitstatus_to_exitcode(status)
        elif self._process.returncode is None:  # else Popen.wait() was faster, and knows
            _logger.warning(
                "child process pid %d exit status already read:  will report returncode %d",
                self._process.pid,
                _LOST_CODE,
            )
            self._process.returncode = _LOST_CODE
        callback(self._process.returncode)

    # -- signals ----------------------------------------------------------------------------------

    def send_signal(self, number: int) -> None:
        """Ignored when the child has ended. Raises PermissionError, OSError (no such signal)."""
        if self._callback is None:
            return
        if self._loop.is_closed():
            self._process.send_signal(number)  # which looks first whether the child has ended
        elif self._handle > 0:
            rc = lib.tl_child_signal(self._loop._c, self._handle, number)
            if rc not in (0, -errno.ESRCH):
                raise oserror(rc)
        else:
            try:
                os.kill(self._process.pid, number)
            except ProcessLookupError:
                return


class SubprocessTransport(base_subprocess.BaseSubprocessTransport):
    _watch: ChildWatch | None = None

    if TYPE_CHECKING:
        _closed: bool
        _loop: Any
        _proc: subprocess.Popen[bytes] | None

        def _check_proc(self) -> None: ...
        def _process_exited(self, returncode: int) -> None: ...
        async def _wait(self) -> int: ...

    def _start(
        self,
        args: Any,
        shell: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        **kwargs: Any,
    ) -> None:
        self._proc = subprocess.Popen(
            args,
            shell=shell,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            universal_newlines=False,
            bufsize=bufsize,
            **kwargs,
        )
        self._watch = ChildWatch(self._loop, self._proc, self._process_exited)

    def close(self) -> None:
        """Close the pipes and kill the child."""
        if self._watch is not None:
            self._watch.look()  # or the inherited close() would take the status of one that ended
        super().close()

    # Each version of asyncio has its own way here, none without a moment in which a number that is
    # no longer the child's may get the signal.

    def send_signal(self, signal: int) -> None:
        self._check_proc()
        assert self._watch is not None
        self._watch.send_signal(signal)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class SubprocessMixin(BaseLoop):
    async def _make_subprocess_transport(
        self,
        protocol: asyncio.SubprocessProtocol,
        args: Any,
        shell: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        extra: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> SubprocessTransport:
        waiter = self.create_future()
        transport = SubprocessTransport(
            self, protocol, args, shell, stdin, stdout, stderr, bufsize, waiter, extra, **kwargs
        )
        try:
            await waiter
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            transport.close()
            await transport._wait()
            raise
        return transport
