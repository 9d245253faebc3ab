"""What a soak may not leave behind, and how growth is told from noise."""

from __future__ import annotations

import ctypes
import logging
import os
import statistics
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tests.loopkit import collect, open_fds
from tests.soak.field import Field
from tloop_py import _addr

_M_ARENA_MAX = -8  # of malloc.h
_PAGE = os.sysconf("SC_PAGE_SIZE")
_POLL_SET = "anon_inode:[eventpoll]"


# -- what is there ---------------------------------------------------------------------------------


class Census(NamedTuple):
    """What this process has: descriptors with what they refer to, threads, children."""

    fds: dict[str, str]
    threads: frozenset[threading.Thread]
    kernel_threads: int
    children: tuple[str, ...]

    @staticmethod
    def take() -> Census:
        return Census(open_fds(), frozenset(threading.enumerate()), _kernel_threads(), _children())

    def poll_sets(self) -> int:
        """A loop may have made its own anew, under another number (tl__rebuild in tloop.h)."""
        return list(self.fds.values()).count(_POLL_SET)

    def complaints(self, before: Census) -> list[str]:
        """What is there now and was not before."""
        found = [
            f"descriptor {fd} was left open: {target}"
            for fd, target in self.fds.items()
            if before.fds.get(fd) != target and target != _POLL_SET
        ]
        if self.poll_sets() > before.poll_sets():
            found.append(f"{self.poll_sets() - before.poll_sets()} poll sets were left open")
        found += [f"thread left running: {thread}" for thread in self.threads - before.threads]
        if self.kernel_threads > before.kernel_threads and not found:
            found.append(f"{self.kernel_threads - before.kernel_threads} threads left running")
        found += [f"child left: {child}" for child in self.children if child not in before.children]
        return found


def _kernel_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _children() -> tuple[str, ...]:
    """Process id, name and state ("Z": a zombie) of each child."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, name, rest = path.read_text().replace("(", ")").split(")", 2)
        except (OSError, ValueError):  # gone by now
            continue
        state, parent = rest.split()[:2]
        if int(parent) == os.getpid():
            found.append(f"{number}{name} {state}")
    return tuple(found)


# -- what was said ---------------------------------------------------------------------------------


class _Log(logging.Handler):
    def __init__(self, field: Field) -> None:
        super().__init__(logging.WARNING)
        self._field = field

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if not any(expected in text for expected in self._field.expected):
            self._field.problem(f"logged: {text}\n{''.join(traceback.format_stack()[-12:-5])}")


@contextmanager
def nothing_said(field: Field) -> Iterator[None]:
    """Log lines, warnings, and exceptions that nobody can catch, are problems of the soak."""

    def warned(message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
        field.problem(f"{filename}:{lineno}: {category.__name__}: {message}")

    def unraisable(what: Any) -> None:
        field.failure(f"{what.err_msg or 'exception ignored'} in {what.object!r}", what.exc_value)

    def in_thread(what: Any) -> None:
        field.failure(f"in {what.thread}", what.exc_value)

    log = _Log(field)
    logging.getLogger().addHandler(log)
    hooks = sys.unraisablehook, threading.excepthook
    sys.unraisablehook, threading.excepthook = unraisable, in_thread
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = warned
            yield
            collect()
    finally:
        sys.unraisablehook, threading.excepthook = hooks
        logging.getLogger().removeHandler(log)


# -- memory ----------------------------------------------------------------------------------------


def one_arena() -> None:
    """Keep glibc from making heaps per thread, whose sizes wander by megabytes. For the process."""
    with suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _empty_caches() -> None:
    """They grow for a while, but not without end."""
    for answers in (_addr.addresses, *_addr.targets.values()):
        answers.clear()


def settle_memory() -> None:
    """Collect all garbage, and let the C library give back to the kernel what it has freed."""
    _empty_caches()
    collect()
    with suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


MIN_VALUES = 9  # three for each part


def slope(values: Sequence[float]) -> float:
    """Growth from one value to the next: the median over all pairs (Theil and Sen), which single
    steps and outliers do not move."""
    pairs = combinations(enumerate(values), 2)
    return statistics.median((b - a) / (j - i) for (i, a), (j, b) in pairs)


def growth(values: Sequence[float]) -> float:
    """Growth per window that goes on: the smallest slope of three parts.

    A heap that grows by a step or two, or comes to rest late, has a part without growth.
    """
    if len(values) < MIN_VALUES:
        raise ValueError(f"{len(values)} values are too few to judge growth; take {MIN_VALUES}")
    ends = [len(values) * part // 3 for part in range(4)]
    return min(slope(values[begin:end]) for begin, end in pairwise(ends))


def memory_complaints(
    what: str, values: Sequence[float], limit: float, details: Sequence[str] = ()
) -> list[str]:
    """values: bytes at the end of each window; limit: bytes per window."""
    grown = growth(values)
    if grown <= limit:
        return []
    series = " ".join(f"{value / 1024:.0f}" for value in values)
    text = f"{what} grows by {grown / 1024:.1f} KiB per window (KiB: {series})"
    return ["\n    ".join([text, *details])]


class Tracer:
    """tracemalloc, from one window to the end; not available on PyPy."""

    def __init__(self) -> None:
        try:
            import tracemalloc
        except ImportError:
            self._module: Any = None
        else:
            self._module = tracemalloc
        self._first: Any = None

    @property
    def available(self) -> bool:
        return self._module is not None

    @property
    def runs(self) -> bool:
        return self.available and bool(self._module.is_tracing())

    def start(self) -> None:
        self._module.start()

    def take(self) -> float:
        """Bytes that were allocated since the start and are not freed."""
        size: int = self._module.get_traced_memory()[0]
        if self._first is None:
            self._first = self._module.take_snapshot()
        return size

    def differences(self, count: int = 15) -> list[str]:
        """Where most has been allocated since the first `take`."""
        now = self._module.take_snapshot()
        return [str(entry) for entry in now.compare_to(self._first, "lineno")[:count]]

    def stop(self) -> None:
        if self.available:
            self._module.stop()
