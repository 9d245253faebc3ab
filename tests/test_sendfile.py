"""sendfile and sock_sendfile: what arrives, the file's position, and what may happen meanwhile."""

from __future__ import annotations

import asyncio
import bz2
import errno
import io
import os
import socket
import sys
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from loopkit import (
    Loop,
    Recorder,
    connected,
    end_of,
    is_tloop,
    live_handles,
    read_all,
    send_reset,
    tcp_sockets,
    turns,
)

pytestmark = pytest.mark.usefixtures("loop")

# Whether the position of a file changes even when nothing was sent of it.
ALWAYS_SEEKS = sys.version_info >= (3, 14)

DATA = bytes(range(256)) * (1 << 14)  # 4 MiB: more than the kernel holds between two sockets


@pytest.fixture
def file(tmp_path: Path) -> Iterator[BinaryIO]:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    with path.open("rb") as opened:
        yield opened


class Sender:
    """One way to send a file, and the socket at the other end."""

    def __init__(self, loop: Loop, way: str, near: Any, far: socket.socket) -> None:
        self.near, self.far = near, far
        self._send = loop.sock_sendfile if way == "socket" else loop.sendfile

    def __call__(self, *args: Any, **kwargs: Any) -> Awaitable[int]:
        return self._send(self.near, *args, **kwargs)

    async def close(self) -> None:
        self.near.close()
        self.far.close()
        if isinstance(self.near, asyncio.Transport):
            self.near.abort()
            await turns()
        self.near = None  # the loop remembers a socket while the object lives


def unix_sockets() -> tuple[socket.socket, socket.socket]:
    near, far = socket.socketpair()
    for sock in (near, far):
        sock.setblocking(False)
    return near, far


@pytest.fixture(params=["transport", "socket", "unix transport", "unix socket"])
def sender(request: pytest.FixtureRequest, loop: Loop) -> Iterator[Sender]:
    way = request.param.split()[-1]
    near, far = unix_sockets() if request.param.startswith("unix") else tcp_sockets()
    end: Any = near
    if way == "transport":
        connect = loop.create_connection(Recorder, sock=near)
        if near.family == socket.AF_UNIX:
            connect.close()
            connect = loop.create_unix_connection(Recorder, sock=near)
        end, _ = loop.run_until_complete(connect)
    sender = Sender(loop, way, end, far)
    yield sender
    loop.run_until_complete(sender.close())


# --- what is sent -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "count", "begin", "end"),
    [
        pytest.param(0, None, 0, len(DATA), id="all"),
        pytest.param(1000, None, 1000, len(DATA), id="from an offset"),
        pytest.param(0, 5, 0, 5, id="some"),
        pytest.param(1_000_001, 2_000_003, 1_000_001, 3_000_004, id="from an offset, some"),
        pytest.param(1000, len(DATA) * 2, 1000, len(DATA), id="more than there is"),
    ],
)
@pytest.mark.parametrize("fallback", [True, False])
async def test_a_part_of_a_file_is_sent(
    sender: Sender, file: BinaryIO, offset: int, count: int | None, begin: int, end: int,
    fallback: bool,
) -> None:  # fmt: skip
    file.seek(17)  # the position at the beginning does not matter
    sent, got = await asyncio.gather(
        sender(file, offset, count, fallback=fallback), read_all(sender.far, end - begin)
    )
    assert got == DATA[begin:end]
    assert sent == end - begin
    assert file.tell() == end


@pytest.mark.parametrize("offset", [0, 10])
async def test_an_empty_file_and_the_end_of_a_file_send_nothing(
    sender: Sender, tmp_path: Path, offset: int
) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"x" * offset)
    with path.open("rb") as small:
        small.seek(1)
        assert await sender(small, offset, fallback=False) == 0
        assert small.tell() == (offset if offset and ALWAYS_SEEKS else 1)


async def test_writes_before_and_after_keep_their_place(loop: Loop, file: BinaryIO) -> None:
    async with connected() as (transport, _, far):
        before, after = b"<" * 300_000, b">" * 1000
        transport.write(before[:-1])
        transport.write(before[-1:])
        sent, got = await asyncio.gather(
            loop.sendfile(transport, file), read_all(far, len(before) + len(DATA))
        )
        assert sent == len(DATA)
        transport.write(after)
        assert got + await read_all(far, len(after)) == before + DATA + after


async def test_a_socket_sends_a_file_while_it_receives(loop: Loop, file: BinaryIO) -> None:
    near, far = tcp_sockets()
    with near, far:
        receiving = loop.create_task(loop.sock_recv(near, 100))
        await turns()
        sending = loop.create_task(loop.sock_sendfile(near, file))
        await turns()
        far.send(b"meanwhile")
        assert await receiving == b"meanwhile"
        assert not sending.done(), sending.exception()
        assert await read_all(far, len(DATA)) == DATA
        assert await sending == len(DATA)


async def test_other_tasks_run_meanwhile(sender: Sender, file: BinaryIO) -> None:
    """Also when the receiver never lets the sender wait."""
    steps = 0

    async def count() -> None:
        nonlocal steps
        while not sending.done():
            steps += 1
            await asyncio.sleep(0)

    sending = asyncio.ensure_future(sender(file))
    _, got, _ = await asyncio.gather(sending, read_all(sender.far, len(DATA)), count())
    assert got == DATA
    assert steps > 3


# --- the native way, and when it falls back -------------------------------------------------------


async def test_what_is_no_file_is_read_and_sent(sender: Sender) -> None:
    memory = io.BytesIO(DATA)
    sending = asyncio.ensure_future(sender(memory, 1000, len(DATA)))
    assert await read_all(sender.far, len(DATA) - 1000) == DATA[1000:]
    assert await sending == len(DATA) - 1000
    assert memory.tell() == len(DATA)


async def test_what_is_no_file_is_refused_without_fallback(sender: Sender) -> None:
    memory = io.BytesIO(b"data")
    with pytest.raises(asyncio.SendfileNotAvailableError, match="not a regular file"):
        await sender(memory, fallback=False)
    assert memory.tell() == 0


def failing_sendfile(monkeypatch: pytest.MonkeyPatch, good: int, error: Exception) -> list[int]:
    """Let os.sendfile fail after so many good calls; gives the sizes that were sent."""
    real, sizes = os.sendfile, list[int]()

    def sendfile(out: int, source: int, offset: int, count: int) -> int:
        if len(sizes) == good:
            raise error
        sizes.append(real(out, source, offset, min(count, 1000)))
        return sizes[-1]

    monkeypatch.setattr(os, "sendfile", sendfile)
    return sizes


def no_socket() -> OSError:
    return OSError(errno.ENOTSOCK, "no socket")


async def test_a_first_call_that_fails_falls_back(
    sender: Sender, file: BinaryIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_sendfile(monkeypatch, 0, no_socket())
    sent, got = await asyncio.gather(sender(file, 5, 30_000), read_all(sender.far, 30_000))
    assert got == DATA[5:30_005]
    assert sent == 30_000
    assert file.tell() == 30_005


async def test_a_first_call_that_fails_without_fallback(
    sender: Sender, file: BinaryIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_sendfile(monkeypatch, 0, no_socket())
    with pytest.raises(asyncio.SendfileNotAvailableError, match=r"os\.sendfile call failed"):
        await sender(file, 5, fallback=False)
    assert file.tell() == (5 if ALWAYS_SEEKS else 0)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (no_socket(), OSError),
        (OSError(errno.ENOTCONN, "not connected"), ConnectionError),
        (ZeroDivisionError(), ZeroDivisionError),
    ],
)
async def test_an_error_after_some_bytes_is_raised(
    sender: Sender,
    file: BinaryIO,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kind: type[Exception],
) -> None:
    sizes = failing_sendfile(monkeypatch, 3, error)
    with pytest.raises(kind):
        await sender(file, 10)
    assert file.tell() == 10 + sum(sizes)
    assert await read_all(sender.far, sum(sizes)) == DATA[10 : file.tell()]


async def test_a_call_that_would_block_waits_for_room(
    sender: Sender, file: BinaryIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, answers = os.sendfile, [BlockingIOError(), InterruptedError()]

    def sendfile(*args: int) -> int:
        if answers:
            raise answers.pop()
        return real(*args)

    monkeypatch.setattr(os, "sendfile", sendfile)
    assert await sender(file, 0, 10, fallback=False) == 10
    assert not answers


@pytest.mark.loops("tloop")
async def test_without_a_descriptor_to_spare_the_file_is_read(
    loop: Loop, file: BinaryIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_dup(_: socket.socket) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    async with connected() as (transport, _, far):
        monkeypatch.setattr(socket.socket, "dup", no_dup)
        assert await loop.sendfile(transport, file, 0, 10) == 10
        assert await read_all(far, 10) == DATA[:10]
        with pytest.raises(asyncio.SendfileNotAvailableError, match="duplicated"):
            await loop.sendfile(transport, file, fallback=False)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ((0, 0), ValueError),
        ((0, -1), ValueError),
        ((0, "1"), TypeError),
        ((0, 1.5), TypeError),
        ((-1, None), ValueError),
        (("1", None), TypeError),
        ((None, None), TypeError),
    ],
)
async def test_wrong_arguments(
    sender: Sender, file: BinaryIO, arguments: tuple[Any, Any], kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        await sender(file, *arguments)
    assert file.tell() == 0


async def test_a_text_file_is_refused(sender: Sender, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    with (tmp_path / "text").open() as text, pytest.raises(ValueError, match="binary mode"):
        await sender(text)


async def test_a_closed_file_is_refused(sender: Sender, file: BinaryIO) -> None:
    file.close()
    with pytest.raises(ValueError, match="closed file"):
        await sender(file)


async def test_a_closing_transport_is_refused(loop: Loop, file: BinaryIO) -> None:
    async with connected() as (transport, _, _far):
        transport.close()
        with pytest.raises(RuntimeError, match="closing"):
            await loop.sendfile(transport, file)


async def test_datagrams_are_refused(loop: Loop, file: BinaryIO) -> None:
    transport, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
    )
    with pytest.raises(RuntimeError, match="not supported"):
        await loop.sendfile(transport, file)  # type: ignore[arg-type]
    transport.close()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        with pytest.raises(ValueError, match="SOCK_STREAM"):
            await loop.sock_sendfile(sock, file)


async def test_a_transports_socket_is_refused(loop: Loop, file: BinaryIO) -> None:
    near, far = tcp_sockets()
    transport, protocol = await loop.create_connection(Recorder, sock=near)
    with pytest.raises(RuntimeError, match="is used by transport"):
        await loop.sock_sendfile(near, file)
    transport.abort()
    await end_of(protocol)
    far.close()


async def test_a_blocking_socket_is_refused_in_debug_mode(loop: Loop, file: BinaryIO) -> None:
    near, far = tcp_sockets()
    with near, far:
        near.setblocking(True)
        loop.set_debug(True)
        with pytest.raises(ValueError, match="must be non-blocking"):
            await loop.sock_sendfile(near, file)


# --- meanwhile, on a transport --------------------------------------------------------------------


async def test_writing_is_refused_meanwhile(loop: Loop, file: BinaryIO) -> None:
    async with connected() as (transport, _, far):
        for queued in (b"", b"q" * 2_000_000):  # the file waits for what is queued
            transport.write(queued)
            sending = loop.create_task(loop.sendfile(transport, file))
            await turns()
            assert not sending.done(), sending.exception()
            with pytest.raises(RuntimeError, match="sendfile is in progress"):
                transport.write(b"not now")
            with pytest.raises(RuntimeError, match="sendfile is in progress"):
                transport.writelines([b"not", b"now"])
            await read_all(far, len(queued) + len(DATA))
            await sending
            transport.write(b"now")
            assert await read_all(far, 3) == b"now"


@pytest.mark.parametrize("paused", [False, True])
async def test_reading_rests_meanwhile(loop: Loop, file: BinaryIO, paused: bool) -> None:
    async with connected() as (transport, protocol, far):
        if paused:
            transport.pause_reading()
        sending = loop.create_task(loop.sendfile(transport, file))
        await turns()
        assert not transport.is_reading()
        far.send(b"later")
        await asyncio.sleep(0.002)
        assert not sending.done()
        assert protocol.data == b""
        await read_all(far, len(DATA))
        await sending
        assert transport.is_reading() is not paused
        transport.resume_reading()
        assert await protocol.received(5) == b"later"


async def test_the_peer_resets_the_connection(
    loop: Loop, file: BinaryIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected() as (transport, protocol, far):
        sending = loop.create_task(loop.sendfile(transport, file))
        await read_all(far, 1000)
        await turns()
        send_reset(far)
        with pytest.raises(ConnectionError):
            await sending
        assert 0 < file.tell() < len(DATA)
        await end_of(protocol)
        assert transport.is_closing()


async def test_the_peer_resets_before_the_queue_is_empty(loop: Loop, file: BinaryIO) -> None:
    async with connected() as (transport, protocol, far):
        transport.write(b"q" * 2_000_000)
        sending = loop.create_task(loop.sendfile(transport, file))
        await turns()
        if not is_tloop(loop):  # asyncio's clean-up of such a transport raises InvalidStateError
            loop.set_exception_handler(lambda *_: None)
        send_reset(far)
        with pytest.raises(ConnectionError):
            await sending
        assert file.tell() == 0
        await end_of(protocol)


@pytest.mark.loops("tloop")
@pytest.mark.parametrize("queued", [0, 2_000_000])
@pytest.mark.parametrize("action", ["close", "abort"])
async def test_a_transport_that_closes_ends_the_sending(
    loop: Loop, file: BinaryIO, action: str, queued: int
) -> None:
    """On asyncio the sending never ends."""
    async with connected() as (transport, protocol, far):
        transport.write(b"q" * queued)
        sending = loop.create_task(loop.sendfile(transport, file))
        await turns(5)
        getattr(transport, action)()
        got = 0
        while True:
            try:
                got += len(await loop.sock_recv(far, 1 << 20))
            except ConnectionResetError:
                break
            if sending.done():
                break
        with pytest.raises(ConnectionError):
            await sending
        await end_of(protocol)
        assert protocol.error is None
        assert got < queued + len(DATA)
        with pytest.raises(RuntimeError, match="closing"):
            await loop.sendfile(transport, file)


@pytest.mark.loops("tloop")
async def test_one_file_at_a_time(loop: Loop, file: BinaryIO) -> None:
    async with connected() as (transport, _, far):
        sending = loop.create_task(loop.sendfile(transport, file))
        await turns()
        with pytest.raises(RuntimeError, match="already"):
            await loop.sendfile(transport, file)
        assert not transport.is_reading()
        await read_all(far, len(DATA))
        assert await sending == len(DATA)
        assert transport.is_reading()


# --- cancelling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", range(6))
async def test_cancelling(loop: Loop, sender: Sender, file: BinaryIO, wait: int) -> None:
    """Nothing more is sent, nothing is watched any more; the file's position stays, as asyncio's
    does. (Before anything was sent there is nothing to compare.)"""
    idle = live_handles(loop)
    file.seek(3)
    sending = asyncio.ensure_future(sender(file))
    await turns(wait)
    assert not sending.done()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert file.tell() == 3
    await turns()
    assert live_handles(loop) == idle
    sent = len(available(sender.far))
    assert sent < len(DATA)
    await asyncio.sleep(0.002)
    assert not available(sender.far)


def available(sock: socket.socket) -> bytes:
    """What can be received without waiting."""
    got = bytearray()
    while True:
        try:
            got += sock.recv(1 << 20)
        except BlockingIOError:
            return bytes(got)


async def test_a_transport_works_on_after_a_cancelled_sendfile(loop: Loop, file: BinaryIO) -> None:
    async with connected() as (transport, protocol, far):
        sending = loop.create_task(loop.sendfile(transport, file))
        await turns(5)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert available(far)
        transport.write(b"out")
        assert await read_all(far, 3) == b"out"
        far.send(b"in")
        assert await protocol.received(2) == b"in"


@pytest.mark.loops("tloop")
async def test_a_sendfile_cancelled_behind_a_queue_leaves_the_transport_usable(
    loop: Loop, file: BinaryIO
) -> None:
    """On asyncio the transport refuses to write for ever."""
    async with connected() as (transport, protocol, far):
        transport.write(b"q" * 2_000_000)
        sending = loop.create_task(loop.sendfile(transport, file))
        await turns(3)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        transport.write(b"after")
        assert (await read_all(far, 2_000_005))[-6:] == b"qafter"
        far.send(b"in")
        assert await protocol.received(2) == b"in"


async def test_a_file_that_decompresses_is_sent_as_it_reads(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_sendfile(monkeypatch, 0, no_socket())  # it would send what is on disk
    with bz2.open(tmp_path / "packed", "wb") as packed:
        packed.write(DATA[:300_000])
    raw: Any = bz2.open(tmp_path / "packed")  # noqa: SIM115
    with io.BufferedReader(raw) as file:
        async with connected(Recorder()) as (transport, _, far):
            reading = loop.create_task(read_all(far, 300_000))
            assert await loop.sendfile(transport, file) == 300_000
            assert await reading == DATA[:300_000]


def reads_without_waiting(path: Path) -> bool:
    """Does this file system tell what it has in memory?"""
    with path.open("rb") as file:
        try:
            return os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT) == 1
        except (AttributeError, OSError):
            return False


@pytest.mark.loops("tloop")
@pytest.mark.parametrize("absent", [0, 1, 2, 5])
@pytest.mark.parametrize("count", [None, 1_000_001])
async def test_what_is_in_memory_of_a_file_needs_no_thread(
    loop: Loop,
    tmp_path: Path,
    file: BinaryIO,
    monkeypatch: pytest.MonkeyPatch,
    absent: int,
    count: int | None,
) -> None:
    """Of every so many pieces one must be waited for; 0: none, 1: each."""
    if not reads_without_waiting(tmp_path / "file"):
        pytest.skip("this system cannot tell what it has in memory of a file")
    failing_sendfile(monkeypatch, 0, no_socket())  # so that the file is read
    pieces, trips = [], []
    preadv, in_executor = os.preadv, loop.run_in_executor

    def sometimes(*args: Any) -> int:
        pieces.append(args)
        if absent and len(pieces) % absent == 0:
            raise BlockingIOError
        return preadv(*args)

    def counted(*args: Any) -> Any:
        trips.append(args)
        return in_executor(*args)

    monkeypatch.setattr(os, "preadv", sometimes)
    monkeypatch.setattr(loop, "run_in_executor", counted)
    async with connected(Recorder()) as (transport, _, far):
        expected = DATA[7:][:count]
        reading = loop.create_task(read_all(far, len(expected)))
        sent = await loop.sendfile(transport, file, 7, count)
        assert len(trips) == (len(pieces) // absent if absent else 0)
        assert file.tell() == 7 + sent
        assert await reading == expected
