"""What the behaviour tests share: the loops under test, recording protocols, connected pairs."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

Loop = asyncio.AbstractEventLoop
LoopFactory = Callable[[], Loop]

HERE = Path(__file__).parent
REFCOUNTS = sys.implementation.name == "cpython"
# Seconds until a bounded wait gives up; below the time limit of a test.
PATIENCE = float(os.environ.get("TLOOP_TEST_PATIENCE", "15"))


def new_tloop() -> Loop:
    import tloop_py

    return tloop_py.new_event_loop()


def new_asyncio_loop() -> Loop:
    return asyncio.SelectorEventLoop()


def new_uvloop() -> Loop:
    import uvloop  # not there in most environments: only docs/compatibility.md asks for it

    loop: Loop = uvloop.new_event_loop()
    return loop


FACTORIES: dict[str, LoopFactory] = {
    "tloop": new_tloop,
    "asyncio": new_asyncio_loop,
    "uvloop": new_uvloop,
}
TESTED = ("tloop", "asyncio")


def selected_loops() -> list[str]:
    """The loops to test, or those that TLOOP_TEST_LOOPS names."""
    names = os.environ.get("TLOOP_TEST_LOOPS", ",".join(TESTED)).split(",")
    unknown = set(names) - set(FACTORIES)
    if unknown:
        raise ValueError(f"TLOOP_TEST_LOOPS names {unknown}; known: {', '.join(FACTORIES)}")
    return names


def is_tloop(loop: Loop) -> bool:
    return type(loop).__module__.startswith("tloop_py")


def stats(loop: Loop) -> dict[str, int]:
    """tloop's counters (only for tests that run on tloop alone)."""
    counters: dict[str, int] = loop.stats()  # type: ignore[attr-defined]
    return counters


def live_handles(loop: Loop) -> int:
    """How many handles the C core has alive; a constant on other loops."""
    return stats(loop)["live"] if is_tloop(loop) else 0


async def turns(count: int = 3) -> None:
    """Let the loop go round a few times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds; a test that waits in vain fails."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 -- conditions of any kind, without an event
            await asyncio.sleep(0.001)


async def end_of(*protocols: Any) -> None:
    """Wait until each protocol was told that its connection is lost."""
    await until(lambda: all(protocol.lost for protocol in protocols))


class Recorder(asyncio.Protocol):
    """A protocol that writes down every call it gets, in order."""

    transport: Any = None

    def __init__(self, *, keep_open_after_eof: bool = False) -> None:
        self.calls: list[str] = []
        self.data = bytearray()
        self.error: Exception | None = None
        self.keep_open_after_eof = keep_open_after_eof

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.calls.append("made")

    def data_received(self, data: bytes) -> None:
        self.data += data
        if self.calls[-1] != "data":  # how many pieces the bytes come in is not told by anyone
            self.calls.append("data")

    def eof_received(self) -> bool | None:
        self.calls.append("eof")
        return self.keep_open_after_eof

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("lost")
        self.error = exc

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    @property
    def lost(self) -> bool:
        return "lost" in self.calls

    async def received(self, count: int) -> bytes:
        """All that came, once it is at least `count` bytes."""
        await until(lambda: len(self.data) >= count)
        return bytes(self.data)


class Buffered(asyncio.BufferedProtocol):
    """Receives into one buffer of a given size, and keeps what came."""

    transport: Any = None

    def __init__(self, size: int = 1000) -> None:
        self.buffer = bytearray(size)
        self.calls: list[str] = []
        self.data = bytearray()
        self.hints: list[int] = []
        self.error: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.calls.append("made")

    def get_buffer(self, sizehint: int) -> Any:
        self.hints.append(sizehint)
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data += self.buffer[:nbytes]
        if self.calls[-1] != "data":
            self.calls.append("data")

    def eof_received(self) -> bool | None:
        self.calls.append("eof")
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("lost")
        self.error = exc

    @property
    def lost(self) -> bool:
        return "lost" in self.calls


class Echo(Recorder):
    """Sends back what it gets."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(data)


def protocol_of(side: asyncio.BaseTransport) -> Any:
    return side.get_protocol()


@asynccontextmanager
async def listening(
    factory: Callable[[], asyncio.BaseProtocol], **options: Any
) -> AsyncIterator[tuple[str, int]]:
    """A TCP server on loopback; gives its address."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(factory, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()


def tcp_sockets() -> tuple[socket.socket, socket.socket]:
    """Two connected TCP sockets, both non-blocking; the kernel holds some 100 KiB between them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    for side in (near, far):
        side.setblocking(False)
        side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        side.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    return near, far


@asynccontextmanager
async def connected(
    protocol: asyncio.BaseProtocol | None = None,
) -> AsyncIterator[tuple[Any, Any, socket.socket]]:
    """A TCP transport of this loop, its protocol, and the raw non-blocking socket at its end."""
    loop = asyncio.get_running_loop()
    near, far = tcp_sockets()
    chosen = protocol or Recorder()
    transport, _ = await loop.create_connection(lambda: chosen, sock=near)
    try:
        yield transport, chosen, far
    finally:
        far.close()
        if not transport.is_closing():
            transport.abort()
        await turns()


@asynccontextmanager
async def streams(
    limit: int = 1 << 16,
) -> AsyncIterator[tuple[Any, asyncio.StreamWriter, socket.socket]]:
    """Reader and writer of a TCP connection, and the raw non-blocking socket at its end."""
    near, far = tcp_sockets()
    reader, writer = await asyncio.open_connection(sock=near, limit=limit)
    with far:
        yield reader, writer, far
    writer.close()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)


def open_fds() -> dict[str, str]:
    """Every open file descriptor and what it refers to."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{fd}"
        if os.path.exists(path) or os.path.islink(path):  # the folder's own fd is gone by now
            found[fd] = os.readlink(path)
    return found


def collect() -> None:
    """Collect all garbage; PyPy frees objects with finalizers and what they held step by step."""
    for _ in range(1 if REFCOUNTS else 4):
        gc.collect()


@contextmanager
def warnings_seen() -> Iterator[list[str]]:
    """The text of every warning, whatever object it is about; collects garbage at the end."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
        collect()
        texts += [str(warning.message) for warning in caught]


def send_reset(sock: socket.socket) -> None:
    """Close so that the peer gets RST rather than FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    sock.close()


async def read_all(sock: socket.socket, count: int) -> bytes:
    """Read `count` bytes of a non-blocking socket without using the loop's socket methods."""
    got = bytearray()

    def readable() -> bool:
        try:
            while len(got) < count and (piece := sock.recv(1 << 18)):
                got.extend(piece)
        except BlockingIOError:
            return False
        return True

    await until(readable)
    return bytes(got)


def python(code: str, *args: str, **options: Any) -> subprocess.Popen[str]:
    """Start a Python program that can import the loops under test."""
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    env = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **options.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process: subprocess.Popen[str], timeout: float = PATIENCE) -> tuple[str, str]:
    """What the program wrote; it is ended when it takes too long."""
    with process:
        try:
            return process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def run_python(code: str, *args: str, **options: Any) -> str:
    """Run a Python program to its end; it must succeed. Gives what it printed."""
    process = python(code, *args, **options)
    out, err = finish(process)
    assert process.returncode == 0, err
    return out
