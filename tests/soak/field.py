"""What all loads of a soak share: the loop, its servers' TLS, a folder, and where to complain."""

from __future__ import annotations

import asyncio
import random
import ssl
import tempfile
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.loopkit import HERE, PATIENCE, Loop, LoopFactory

# One piece of work on its own; gives how many bytes it has verified. Must clean up when cancelled.
Round = Callable[[random.Random], Awaitable[int]]
# What a round needs for as long as the soak lasts, servers mostly.
Load = Callable[["Field"], AbstractAsyncContextManager[Round]]

CERTIFICATES = HERE / "tls"
SERVER_NAME = "server.example"
_TABLE_BYTES = (1 << 20) + 7  # not a multiple of any usual block: a block out of place is noticed
_MAX_PROBLEMS = 20
# What asyncio's own code logs under these loads, on any loop.
ALWAYS_EXPECTED = frozenset(
    {
        # sslproto hands over what it has received from a connection that is lost, and before 3.12
        # its transport does not say that it is closing: an echo writes five times in vain.
        "socket.send() raised exception.",
        # asyncio's streams, when the peer hangs up while start_tls returns.
        "returning true from eof_received() has no effect when using ssl",
    }
)


class Deliberate(Exception):
    """Raised by a load on purpose; may be reported by the loop."""


class Pattern:
    """An endless stream of bytes that both ends of a connection know."""

    def __init__(self, table: bytes, start: int) -> None:
        self._table = table
        self._at = start % len(table)
        self.count = 0  # bytes so far

    def take(self, size: int) -> bytes:
        self.count += size
        table, at = self._table, self._at
        self._at = (at + size) % len(table)
        if at + size <= len(table):
            return table[at : at + size]
        return (table[at:] + table * (size // len(table) + 1))[:size]

    def check(self, data: bytes | bytearray | memoryview) -> None:
        """The next bytes of the stream must be these."""
        before = self.count
        if self.take(len(data)) != data:
            raise AssertionError(f"wrong bytes within {len(data)} after {before} right ones")


@dataclass
class Field:
    """One soak."""

    loop_factory: LoopFactory
    seed: int
    folder: Path
    problems: list[str] = field(default_factory=list)
    rounds: Counter[str] = field(default_factory=Counter)
    cancelled: Counter[str] = field(default_factory=Counter)
    verified: Counter[str] = field(default_factory=Counter)  # bytes
    # Parts of messages that the loop may report just now.
    expected: set[str] = field(default_factory=lambda: set(ALWAYS_EXPECTED))

    @cached_property
    def rng(self) -> random.Random:
        """For what servers choose; rounds have their own."""
        return random.Random(self.seed)

    @cached_property
    def table(self) -> bytes:
        return random.Random(self.seed).randbytes(_TABLE_BYTES)

    def patterns(self, rng: random.Random) -> tuple[Pattern, Pattern]:
        """The same stream twice: to send, and to check what comes back."""
        start = rng.randrange(_TABLE_BYTES)
        return Pattern(self.table, start), Pattern(self.table, start)

    @cached_property
    def server_tls(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATES / "server.pem")
        return context

    @cached_property
    def client_tls(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(CERTIFICATES / "authority.pem")
        return context

    def path(self, suffix: str) -> Path:
        """A file name that no one else uses."""
        return Path(tempfile.mktemp(suffix, dir=self.folder))

    def remove(self, *paths: str) -> None:
        for path in paths:
            Path(path).unlink(missing_ok=True)

    def problem(self, text: str) -> None:
        """Something that must not happen; the soak ends soon."""
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(text)

    def failure(self, where: str, exc: BaseException) -> None:
        self.problem(f"{where}: {''.join(traceback.format_exception(exc))}")

    def exception_handler(self, loop: Loop, context: dict[str, Any]) -> None:
        """The loop's: what it reports is a problem unless a load did it on purpose."""
        exc = context.get("exception")
        message = context["message"]
        if isinstance(exc, Deliberate) or any(text in message for text in self.expected):
            return
        text = "".join(traceback.format_exception(exc)) if exc else ""
        details = {key: value for key, value in context.items() if key != "exception"}
        self.problem(f"the loop reported {details}\n{text}")


async def bounded(awaitable: Awaitable[Any], what: str) -> Any:
    """Await what must come soon."""
    try:
        async with asyncio.timeout(PATIENCE):
            return await awaitable
    except TimeoutError:
        raise AssertionError(f"{what} did not come within {PATIENCE:.0f} s") from None
