"""What goes wrong in real life: peers that reset, hang up or are not there, protocols that raise,
a process that forks or has no descriptors left. Loads as those of loads/, and one interlude."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import random
import resource
import signal
import socket
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn

from tests.loopkit import send_reset
from tests.soak.accounting import Tracer
from tests.soak.field import Deliberate, Field, Round, bounded
from tests.soak.loads.streams import talk
from tests.soak.protocols import Client, Echo
from tests.soak.wires import Wire, serving


@asynccontextmanager
async def resets(field: Field) -> AsyncIterator[Round]:
    """A peer that resets at any moment ends the connection once, and nothing else."""
    loop = asyncio.get_running_loop()

    async def one_round(rng: random.Random) -> int:
        sent, expected = field.patterns(rng)
        near, far = socket.socket(), None
        near.setblocking(False)
        try:
            await loop.sock_connect(near, wire.address)
            far = near
            for _ in range(rng.randrange(4)):
                await loop.sock_sendall(near, sent.take(rng.randint(1, 100_000)))
            if rng.random() < 0.5 and sent.count:
                expected.check(await bounded(loop.sock_recv(near, 1 << 16), "an echo"))
        finally:
            if far:
                send_reset(near)
            near.close()
        return expected.count

    async with serving(field, lambda: Echo(field), unix=False, tls=False) as wire:
        yield one_round


@asynccontextmanager
async def half_closes(field: Field) -> AsyncIterator[Round]:
    """All that was sent before the half-close comes back, and then the end."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(await reader.read())
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await bounded(writer.wait_closed(), "the end of a stream")

    async def one_round(rng: random.Random) -> int:
        sent, expected = field.patterns(rng)
        reader, writer = await rng.choice(wires).connection(field)
        try:
            writer.write(sent.take(rng.randrange(200_000)))
            writer.write_eof()
            expected.check(await bounded(reader.read(), "the end"))
            assert expected.count == sent.count, f"{expected.count} of {sent.count} bytes"
        finally:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await bounded(writer.wait_closed(), "the end of a stream")
        return expected.count

    async with (
        serving(field, serve, unix=False, tls=False, streams=True) as tcp,
        serving(field, serve, unix=True, tls=False, streams=True) as unix,
    ):
        wires = [tcp, unix]
        yield one_round


@asynccontextmanager
async def refused(field: Field) -> AsyncIterator[Round]:
    """Connecting where no one listens."""
    loop = asyncio.get_running_loop()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # but does not listen

        async def one_round(rng: random.Random) -> int:
            try:
                if rng.random() < 0.5:
                    await loop.create_connection(lambda: Echo(field), *taken.getsockname())
                else:
                    path = str(field.path(".none"))
                    await loop.create_unix_connection(lambda: Echo(field), path)
            except (ConnectionRefusedError, FileNotFoundError):
                return 0
            raise AssertionError("connected to where no one listens")

        yield one_round


class _Raising(Echo):
    """Fails in one of its calls."""

    def __init__(self, field: Field, call: str) -> None:
        super().__init__(field)
        self._call = call

    def _fail(self, call: str) -> None:
        if call == self._call:
            raise Deliberate(call)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._fail("connection_made")

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._fail("data_received")

    def eof_received(self) -> bool | None:
        super().eof_received()
        self._fail("eof_received")
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._fail("connection_lost")


_CALLS = ("connection_made", "data_received", "eof_received", "connection_lost")


@asynccontextmanager
async def raising(field: Field) -> AsyncIterator[Round]:
    """A protocol that raises is reported, and disturbs no other."""

    async def one_round(rng: random.Random) -> int:
        reader, writer = await rng.choice(wires).connection(field)
        try:
            writer.write(b"x" * rng.randrange(10_000))
            if writer.can_write_eof():
                writer.write_eof()
            with contextlib.suppress(ConnectionError):
                await bounded(reader.read(), "the end")
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await bounded(writer.wait_closed(), "the end of a stream")
        return 0

    def accept() -> Echo:
        return _Raising(field, field.rng.choice(_CALLS))

    async with serving(field, accept, unix=False, tls=False) as tcp:
        wires = [_as_streams(tcp)]
        yield one_round


def _as_streams(wire: Wire) -> Wire:
    return Wire(wire.serve, asyncio.open_connection, wire.address, wire.tls)


async def _small_talk(field: Field, rng: random.Random) -> int:
    """A server, a connection, a timer and a thread: what a short program does with a loop."""
    sent, expected = field.patterns(rng)
    served: list[Echo] = []

    def accept() -> Echo:
        served.append(Echo(field))
        return served[-1]

    async with serving(field, accept, unix=rng.random() < 0.5, tls=False) as wire:
        await talk(field, rng, wire.connection(field, lambda: Client(field, expected)), sent)
        await served[0].ended()
    await asyncio.sleep(0.001)
    return expected.count


def _one_loop(field: Field, rng: random.Random) -> int:
    with asyncio.Runner(loop_factory=field.loop_factory) as runner:
        return runner.run(_small_talk(field, rng))


@asynccontextmanager
async def other_loops(field: Field) -> AsyncIterator[Round]:
    """Loops made, used and closed in a thread; some are never run."""

    def work(rng: random.Random) -> int:
        if rng.random() < 0.3:
            field.loop_factory().close()
            return 0
        return _one_loop(field, rng)

    async def one_round(rng: random.Random) -> int:
        results: list[Any] = []

        def guarded() -> None:
            try:
                results.append(work(rng))
            except BaseException as exc:
                results.append(exc)

        thread = threading.Thread(target=guarded)
        thread.start()
        try:
            while thread.is_alive():  # noqa: ASYNC110 -- a thread has no event
                await asyncio.sleep(0.001)
        finally:
            thread.join()
        if isinstance(results[0], BaseException):
            raise results[0]
        return int(results[0])

    yield one_round


CHILD_LIMIT = 20  # seconds


class _Child:
    """A forked process that does some work."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.code: int | None = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other threads are running
            self._pid = os.fork()
        if self._pid == 0:
            self._run(work)

    @staticmethod
    def _run(work: Callable[[], object]) -> NoReturn:
        status = 1
        # A child that hangs shows where, and dies.
        faulthandler.register(signal.SIGALRM, all_threads=True, chain=True)
        signal.alarm(CHILD_LIMIT)
        try:
            work()
            status = 0
        except BaseException as exc:
            sys.stderr.write(f"in a forked child: {exc!r}\n")
            sys.stderr.flush()
        finally:
            os._exit(status)

    def has_ended(self, flags: int = os.WNOHANG) -> bool:
        """Sets the exit code, once there is one."""
        if self.code is None:
            pid, status = os.waitpid(self._pid, flags)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None


@asynccontextmanager
async def forks(field: Field) -> AsyncIterator[Round]:
    """A child of a loop at full load uses a loop of its own; its parent's is not disturbed.

    Not while memory is traced: if another thread allocates just then, the tracer's lock stays
    locked in the child, and CPython waits for it inside of os.fork()."""

    async def one_round(rng: random.Random) -> int:
        if Tracer().runs:
            return 0
        seed = rng.random()
        child = _Child(lambda: _one_loop(field, random.Random(seed)))
        try:
            while not child.has_ended():  # noqa: ASYNC110 -- the loop is not asked for help
                await asyncio.sleep(0.001)
        finally:
            child.has_ended(flags=0)
        assert child.code == 0, f"the child of a fork ended with {child.code}"
        return 0

    yield one_round


# -- the interlude -----------------------------------------------------------------------------


@contextlib.contextmanager
def _few_descriptors() -> Any:
    """As many as are open now, and three more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as probe:
        lowered = probe.fileno() + 4
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowered, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def no_descriptors(field: Field) -> None:
    """Without free descriptors connecting and accepting fail; later all works as before."""
    loop = asyncio.get_running_loop()
    field.expected.add("out of system resource")
    async with serving(field, lambda: Echo(field), unix=False, tls=False) as wire:
        with _few_descriptors(), contextlib.ExitStack() as stack:
            try:
                for _ in range(100):
                    sock = stack.enter_context(socket.socket())
                    sock.setblocking(False)
                    await loop.sock_connect(sock, wire.address)
            except OSError:
                await asyncio.sleep(0.01)  # while the listener fails to accept
            else:
                raise AssertionError("the limit of descriptors was not reached")
        sent, expected = field.patterns(random.Random(1))
        connection = wire.connection(field, lambda: Client(field, expected))
        await talk(field, random.Random(1), connection, sent)
    field.expected.discard("out of system resource")
