"""connect_read_pipe and connect_write_pipe: pipes, FIFOs, sockets, terminals, devices."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import os
import socket
import tty
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest
from conftest import AsyncioLog
from loopkit import (
    Loop,
    Recorder,
    end_of,
    is_tloop,
    run_python,
    turns,
    until,
    warnings_seen,
)

Ends = tuple[IO[bytes], IO[bytes]]


def plain_pipe(_folder: Path) -> Ends:
    reading, writing = os.pipe()
    return os.fdopen(reading, "rb", 0), os.fdopen(writing, "wb", 0)


def fifo(folder: Path) -> Ends:
    path = folder / "fifo"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(path, os.O_WRONLY)
    return os.fdopen(reading, "rb", 0), os.fdopen(writing, "wb", 0)


def sockets(_folder: Path) -> Ends:
    left, right = socket.socketpair()
    return os.fdopen(left.detach(), "rb", 0), os.fdopen(right.detach(), "wb", 0)


def terminal(_folder: Path) -> Ends:
    """Read at the master what is written to the slave, byte for byte."""
    try:
        master, slave = os.openpty()
    except OSError as exc:
        pytest.skip(f"no pseudo-terminals here: {exc}")
    tty.setraw(slave)
    return os.fdopen(master, "rb", 0), os.fdopen(slave, "wb", 0)


KINDS: list[Callable[[Path], Ends]] = [plain_pipe, fifo, sockets, terminal]
OF_EVERY_KIND = pytest.mark.parametrize("ends_of", KINDS, ids=lambda kind: kind.__name__)


@asynccontextmanager
async def reading(protocol: Any = None) -> AsyncIterator[tuple[Any, Any, int]]:
    """A transport that reads a pipe, its protocol, and the descriptor of the writing end."""
    read_fd, write_fd = os.pipe()
    chosen = protocol or Recorder()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: chosen, os.fdopen(read_fd, "rb", 0))
    try:
        yield transport, chosen, write_fd
    finally:
        with suppress(OSError):
            os.close(write_fd)
        transport.close()
        await turns()


@asynccontextmanager
async def writing(protocol: Any = None) -> AsyncIterator[tuple[Any, Any, int]]:
    """A transport that writes to a pipe, its protocol, and the descriptor of the reading end."""
    read_fd, write_fd = os.pipe()
    chosen = protocol or Recorder()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_write_pipe(lambda: chosen, os.fdopen(write_fd, "wb", 0))
    try:
        yield transport, chosen, read_fd
    finally:
        with suppress(OSError):
            os.close(read_fd)
        if not transport.is_closing():
            transport.abort()
        await turns()


async def read_to_end(fd: int) -> int:
    """Read a descriptor until end of file without the loop's help; gives the number of bytes."""
    os.set_blocking(fd, False)
    total = 0

    def ended() -> bool:
        nonlocal total
        with suppress(BlockingIOError):
            while data := os.read(fd, 1 << 16):
                total += len(data)
            return True
        return False

    await until(ended)
    return total


# -- what every kind of pipe does ------------------------------------------------------------------


@OF_EVERY_KIND
async def test_a_megabyte_from_end_to_end(
    loop: Loop, tmp_path: Path, ends_of: Callable[[Path], Ends]
) -> None:
    data = bytes(range(256)) * 4096
    read_end, write_end = ends_of(tmp_path)
    reader, writer = Recorder(), Recorder()
    await loop.connect_read_pipe(lambda: reader, read_end)
    transport, _ = await loop.connect_write_pipe(lambda: writer, write_end)
    transport.write(data)
    assert writer.calls == ["made", "pause"]
    assert await reader.received(len(data)) == data
    await until(lambda: "resume" in writer.calls)
    transport.close()
    await end_of(reader, writer)
    assert writer.calls == ["made", "pause", "resume", "lost"]
    assert writer.error is None
    assert read_end.closed
    assert write_end.closed


@OF_EVERY_KIND
async def test_types_and_extra_info(
    loop: Loop, tmp_path: Path, ends_of: Callable[[Path], Ends]
) -> None:
    read_end, write_end = ends_of(tmp_path)
    reader, protocol = await loop.connect_read_pipe(Recorder, read_end)
    writer, _ = await loop.connect_write_pipe(Recorder, write_end)
    assert isinstance(reader, asyncio.ReadTransport)
    assert not isinstance(reader, asyncio.WriteTransport)
    assert isinstance(writer, asyncio.WriteTransport)
    assert reader.get_extra_info("pipe") is read_end
    assert writer.get_extra_info("pipe") is write_end
    assert writer.get_extra_info("socket", "none") == "none"
    assert reader.get_extra_info("peername") is None
    assert reader.get_protocol() is protocol
    assert writer.can_write_eof()
    assert reader.is_reading()
    assert not os.get_blocking(read_end.fileno())
    assert not os.get_blocking(write_end.fileno())
    writer.close()
    reader.close()
    assert reader.is_closing()
    assert writer.is_closing()
    assert not reader.is_reading()
    await turns()
    assert reader.get_extra_info("pipe") is read_end


@pytest.mark.parametrize("name", ["connect_read_pipe", "connect_write_pipe"])
async def test_what_is_no_pipe_is_refused(loop: Loop, tmp_path: Path, name: str) -> None:
    connect = getattr(loop, name)
    with (tmp_path / "file").open("wb") as file:
        with pytest.raises(ValueError, match=r"^Pipe transport is .*for pipes"):
            await connect(Recorder, file)
        assert not file.closed
        assert os.get_blocking(file.fileno())


@pytest.mark.loops("tloop")
@pytest.mark.parametrize("name", ["connect_read_pipe", "connect_write_pipe"])
async def test_what_has_no_descriptor_is_refused(loop: Loop, tmp_path: Path, name: str) -> None:
    """asyncio raises the same, and then once more when it collects its half-made transport."""
    connect = getattr(loop, name)
    file = (tmp_path / "file").open("wb")
    file.close()
    with pytest.raises(ValueError, match="closed file"):
        await connect(Recorder, file)
    with pytest.raises(AttributeError):
        await connect(Recorder, None)
    read_end, write_end = plain_pipe(tmp_path)
    write_end.close()
    os.close(read_end.fileno())
    with pytest.raises(OSError, match="Bad file descriptor"):
        await connect(Recorder, read_end)
    with pytest.raises(OSError, match="Bad file descriptor"):
        read_end.close()


@pytest.mark.parametrize("name", ["connect_read_pipe", "connect_write_pipe"])
async def test_a_cancelled_connect_closes_the_pipe(loop: Loop, name: str) -> None:
    ends = dict(zip(("connect_read_pipe", "connect_write_pipe"), plain_pipe(Path()), strict=True))
    protocol = Recorder()
    task = loop.create_task(getattr(loop, name)(lambda: protocol, ends[name]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await turns()
    assert ends[name].closed
    assert protocol.calls == ["made", "lost"]
    for end in ends.values():
        end.close()


def test_a_closed_loop(loop: Loop) -> None:
    read_end, write_end = plain_pipe(Path())

    async def connect() -> tuple[Any, Any]:
        reader, _ = await loop.connect_read_pipe(Recorder, read_end)
        writer, _ = await loop.connect_write_pipe(Recorder, write_end)
        return reader, writer

    reader, writer = loop.run_until_complete(connect())
    loop.close()
    assert "open" in repr(reader)
    assert "open" in repr(writer)
    for transport in (reader, writer):
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            transport.close()
    with warnings_seen() as seen:
        del reader, writer, transport
    assert len(seen) == 2
    assert all("unclosed transport" in text for text in seen)
    assert read_end.closed
    assert write_end.closed


# -- reading ---------------------------------------------------------------------------------------


async def test_end_of_file_ends_the_transport(loop: Loop) -> None:
    async with reading(Recorder(keep_open_after_eof=True)) as (transport, protocol, far):
        os.write(far, b"hello")
        assert await protocol.received(5) == b"hello"
        os.close(far)
        await end_of(protocol)
        assert protocol.calls == ["made", "data", "eof", "lost"]
        assert protocol.error is None
        assert transport.get_protocol() is None


async def test_paused_bytes_stay_in_the_pipe(loop: Loop) -> None:
    async with reading() as (transport, protocol, far):
        other = os.dup(transport.get_extra_info("pipe").fileno())
        transport.pause_reading()
        transport.pause_reading()
        assert not transport.is_reading()
        os.write(far, b"for somebody else")
        await turns()
        assert os.read(other, 100) == b"for somebody else"
        os.write(far, b"for us")
        await turns()
        transport.resume_reading()
        transport.resume_reading()
        assert await protocol.received(6) == b"for us"
        os.close(other)


async def test_closing_leaves_unread_bytes_in_the_pipe(loop: Loop) -> None:
    async with reading() as (transport, protocol, far):
        other = os.dup(transport.get_extra_info("pipe").fileno())
        os.write(far, b"hello")
        transport.close()
        transport.close()
        await end_of(protocol)
        assert protocol.calls == ["made", "lost"]
        assert os.read(other, 100) == b"hello"
        os.close(other)


class Pausing(Recorder):
    """Pauses, or closes, other transports as soon as it gets data."""

    others: list[Any]
    method = "pause_reading"

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        for other in self.others:
            getattr(other, self.method)()


@pytest.mark.parametrize("ended", [False, True], ids=["data", "end-of-file"])
async def test_paused_by_a_callback_of_the_same_tick(loop: Loop, ended: bool) -> None:
    """Whichever comes first pauses the other; nothing is told to it, and nothing lost."""
    one, two = Pausing(), Pausing()
    async with reading(one) as (first, _, far_first), reading(two) as (second, _, far_second):
        one.others, two.others = [second], [first]
        os.write(far_first, b"1")
        os.write(far_second, b"2")
        if ended:
            os.close(far_first)
            os.close(far_second)
        await until(lambda: one.data or two.data)
        await turns()
        assert [bytes(one.data), bytes(two.data)] in ([b"1", b""], [b"", b"2"])
        assert "eof" not in (two if one.data else one).calls
        one.others = two.others = []
        for transport in (first, second):
            transport.resume_reading()
        assert await one.received(1) + await two.received(1) == b"12"
        if ended:
            await end_of(one, two)
            assert one.calls == two.calls == ["made", "data", "eof", "lost"]


async def test_closed_by_a_callback_of_the_same_tick(loop: Loop) -> None:
    one, two = Pausing(), Pausing()
    async with reading(one) as (first, _, far_first), reading(two) as (second, _, far_second):
        one.method = two.method = "close"
        one.others, two.others = [second], [first]
        os.write(far_first, b"1")
        os.write(far_second, b"2")
        await until(lambda: one.lost or two.lost)
        await turns()
        assert [bytes(one.data), bytes(two.data)] in ([b"1", b""], [b"", b"2"])


async def test_a_hang_up_in_the_tick_that_pauses_comes_after_resuming(loop: Loop) -> None:
    master, slave = terminal(Path())
    one, two = Pausing(), Recorder()
    async with reading(one) as (_, _, far):
        second, _ = await loop.connect_read_pipe(lambda: two, master)
        one.others = [second]
        os.write(far, b"1")
        slave.close()
        await one.received(1)
        await turns()
        assert two.calls == ["made"]
        second.resume_reading()
        await end_of(two)
        assert two.calls == ["made", "lost"]
        assert isinstance(two.error, OSError)


async def test_an_end_of_file_while_paused_comes_after_resuming(loop: Loop) -> None:
    async with reading() as (transport, protocol, far):
        transport.pause_reading()
        os.write(far, b"last words")
        os.close(far)
        await turns()
        assert protocol.calls == ["made"]
        transport.resume_reading()
        await end_of(protocol)
        assert protocol.calls == ["made", "data", "eof", "lost"]
        assert protocol.data == b"last words"


async def test_a_protocol_that_fails_goes_on_reading(loop: Loop) -> None:
    class Failing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            raise ZeroDivisionError

    reports: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: reports.append(context))
    async with reading(Failing()) as (_, protocol, far):
        os.write(far, b"1")
        assert await protocol.received(1) == b"1"
        os.write(far, b"2")
        assert await protocol.received(2) == b"12"
    assert [type(report["exception"]) for report in reports] == [ZeroDivisionError] * 2
    assert protocol.calls == ["made", "data", "lost"]


async def test_the_protocol_can_be_exchanged(loop: Loop) -> None:
    async with reading() as (transport, protocol, far):
        os.write(far, b"1")
        await protocol.received(1)
        later = Recorder()
        later.connection_made(transport)
        transport.set_protocol(later)
        assert transport.get_protocol() is later
        os.write(far, b"2")
        assert await later.received(1) == b"2"
        transport.close()
        await end_of(later)
    assert protocol.calls == ["made", "data"]


async def test_data_comes_in_the_context_of_the_connect(loop: Loop) -> None:
    variable = contextvars.ContextVar("variable", default="nobody")
    seen = []

    class Asking(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            seen.append(variable.get())

    variable.set("creator")
    async with reading(Asking()) as (_, protocol, far):
        variable.set("later")
        os.write(far, b"x")
        await protocol.received(1)
    assert seen == ["creator"]


async def test_reading_that_fails_is_reported(loop: Loop) -> None:
    """A TCP socket as pipe, and its peer resets the connection."""
    reports: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: reports.append(context))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    protocol = Recorder()
    transport, _ = await loop.connect_read_pipe(lambda: protocol, near)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    far.close()
    await end_of(protocol)
    assert protocol.calls == ["made", "lost"]
    assert isinstance(protocol.error, ConnectionResetError)
    assert [report["message"] for report in reports] == ["Fatal read error on pipe transport"]
    assert reports[0]["transport"] is transport
    assert near.fileno() == -1


async def test_a_stream_reader_on_a_pipe(loop: Loop) -> None:
    """Its limit pauses and resumes the transport."""
    reader = asyncio.StreamReader(limit=4096)
    async with reading(asyncio.StreamReaderProtocol(reader)) as (_, _, far):
        sent = b"x" * 60000 + b"\n"
        os.write(far, sent)
        os.close(far)
        await turns()
        got = b""
        while piece := await reader.read(1000):
            got += piece
            await turns(1)
        assert got == sent


# -- writing ---------------------------------------------------------------------------------------


async def test_flow_control(loop: Loop) -> None:
    async with writing() as (transport, protocol, far):
        transport.set_write_buffer_limits(high=1000, low=100)
        assert transport.get_write_buffer_limits() == (100, 1000)
        while not transport.get_write_buffer_size():
            transport.write(b"x" * 4096)
        transport.write(b"y" * 2000)
        size = transport.get_write_buffer_size()
        assert size >= 2000
        assert protocol.calls == ["made", "pause"]
        os.set_blocking(far, False)
        while transport.get_write_buffer_size():
            with suppress(BlockingIOError):
                os.read(far, 1 << 16)
            await asyncio.sleep(0)
        await turns()
        assert protocol.calls == ["made", "pause", "resume"]


async def test_every_kind_of_bytes(loop: Loop) -> None:
    async with writing() as (transport, _, far):
        transport.write(b"")
        transport.write(b"one ")
        transport.write(bytearray(b"two "))
        transport.write(memoryview(b"three "))
        transport.writelines([b"four ", b"five"])
        await turns()
        assert os.read(far, 100) == b"one two three four five"
        with pytest.raises(AssertionError):
            transport.write("text")


@pytest.mark.parametrize("method", ["close", "write_eof"])
async def test_closing_sends_what_is_queued(loop: Loop, method: str) -> None:
    async with writing() as (transport, protocol, far):
        transport.write(b"x" * 500000)
        getattr(transport, method)()
        getattr(transport, method)()
        transport.write(b"too late")
        assert transport.is_closing()
        await turns()
        assert "lost" not in protocol.calls
        assert await read_to_end(far) == 500000
        await end_of(protocol)
        assert protocol.calls == ["made", "pause", "resume", "lost"]
        assert protocol.error is None
        transport.close()


async def test_aborting_drops_what_is_queued(loop: Loop) -> None:
    async with writing() as (transport, protocol, far):
        transport.write(b"x" * 500000)
        transport.close()
        transport.abort()
        await end_of(protocol)
        assert protocol.calls == ["made", "pause", "lost"]
        assert protocol.error is None
        assert await read_to_end(far) < 500000


@OF_EVERY_KIND
@pytest.mark.parametrize("queued", [False, True], ids=["idle", "queued"])
async def test_the_reader_goes_away(
    loop: Loop, tmp_path: Path, ends_of: Callable[[Path], Ends], queued: bool
) -> None:
    """Noticed at once, unless it is a terminal: that tells when something is written."""
    read_end, write_end = ends_of(tmp_path)
    protocol = Recorder()
    transport, _ = await loop.connect_write_pipe(lambda: protocol, write_end)
    if queued:
        transport.write(b"x" * 1000000)
    await turns()
    read_end.close()
    if ends_of is terminal and not queued:
        await turns()
        assert not protocol.lost
        transport.write(b"x")
    await end_of(protocol)
    if ends_of is terminal:
        assert isinstance(protocol.error, OSError)
        assert protocol.error.errno == errno.EIO
    elif queued:
        assert isinstance(protocol.error, BrokenPipeError)
    else:
        assert protocol.error is None
    assert write_end.closed


async def test_writing_before_the_lost_reader_was_noticed(
    loop: Loop, asyncio_log: AsyncioLog
) -> None:
    async with writing() as (transport, protocol, far):
        os.close(far)
        for _ in range(5):
            transport.write(b"x")
        assert transport.is_closing()
        assert not asyncio_log.messages
        transport.write(b"x")
        asyncio_log.expect("pipe closed by peer")
        await end_of(protocol)
        assert protocol.calls == ["made", "lost"]
        assert isinstance(protocol.error, BrokenPipeError)


async def test_a_socket_that_receives_counts_as_closed(loop: Loop) -> None:
    """asyncio's way to notice a closed peer takes any bytes for its end."""
    near, far = socket.socketpair()
    protocol = Recorder()
    await loop.connect_write_pipe(lambda: protocol, near)
    far.send(b"answer")
    await end_of(protocol)
    assert protocol.calls == ["made", "lost"]
    assert protocol.error is None
    assert near.fileno() == -1
    far.close()


async def test_a_stream_writer_on_a_pipe(loop: Loop) -> None:
    async with writing(asyncio.streams.FlowControlMixin()) as (transport, protocol, far):
        writer = asyncio.StreamWriter(transport, protocol, None, loop)
        reader = loop.create_task(read_to_end(far))
        for _ in range(20):
            writer.write(b"x" * 50000)
            await writer.drain()
        writer.close()
        assert await reader == 1000000


@pytest.mark.loops("tloop")
def test_a_broken_pipe_raises_no_signal(loop_name: str) -> None:
    """Also in a program that has switched the default action of SIGPIPE on; asyncio dies of it."""
    run_python(
        """
import asyncio, os, signal, loopkit, tloop_py
signal.signal(signal.SIGPIPE, signal.SIG_DFL)

async def main():
    read_fd, write_fd = os.pipe()
    protocol = loopkit.Recorder()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_write_pipe(lambda: protocol, os.fdopen(write_fd, "wb", 0))
    os.close(read_fd)
    transport.write(b"x")
    await loopkit.end_of(protocol)
    assert isinstance(protocol.error, BrokenPipeError), protocol.error

tloop_py.run(main())
"""
    )


# -- devices ---------------------------------------------------------------------------------------


async def test_a_terminal_that_hangs_up(loop: Loop) -> None:
    master, slave = terminal(Path())
    protocol = Recorder()
    await loop.connect_read_pipe(lambda: protocol, master)
    slave.write(b"hello")
    assert await protocol.received(5) == b"hello"
    slave.close()
    await end_of(protocol)
    assert protocol.calls == ["made", "data", "lost"]
    assert isinstance(protocol.error, OSError)
    assert protocol.error.errno == errno.EIO
    assert master.closed


async def test_the_end_of_file_key_of_a_terminal(loop: Loop) -> None:
    try:
        master_fd, slave_fd = os.openpty()
    except OSError as exc:
        pytest.skip(f"no pseudo-terminals here: {exc}")
    protocol = Recorder()
    await loop.connect_read_pipe(lambda: protocol, os.fdopen(slave_fd, "rb", 0))
    os.write(master_fd, b"line\n")
    assert await protocol.received(5) == b"line\n"
    os.write(master_fd, b"\x04")
    await end_of(protocol)
    assert protocol.calls == ["made", "data", "eof", "lost"]
    os.close(master_fd)


async def test_one_terminal_read_and_written_by_two_transports(loop: Loop) -> None:
    """Both on the same descriptor number."""
    master, slave = terminal(Path())
    reader, writer = Recorder(), Recorder()
    same = os.fdopen(master.fileno(), "wb", 0, closefd=False)
    reading_end, _ = await loop.connect_read_pipe(lambda: reader, master)
    writing_end, _ = await loop.connect_write_pipe(lambda: writer, same)
    writing_end.write(b"x" * 100000)
    assert writing_end.get_write_buffer_size()
    slave_reader = Recorder()
    echo, _ = await loop.connect_read_pipe(lambda: slave_reader, slave)
    assert await slave_reader.received(100000) == b"x" * 100000
    os.write(slave.fileno(), b"answer")
    assert await reader.received(6) == b"answer"
    for transport in (writing_end, reading_end, echo):
        transport.close()
    await end_of(writer, reader, slave_reader)


async def test_the_null_device_takes_everything(loop: Loop) -> None:
    protocol = Recorder()
    pipe = Path("/dev/null").open("wb", 0)  # noqa: ASYNC230, SIM115 -- the transport closes it
    transport, _ = await loop.connect_write_pipe(lambda: protocol, pipe)
    for _ in range(10):
        transport.write(b"x" * 100000)
    assert transport.get_write_buffer_size() == 0
    transport.close()
    await end_of(protocol)
    assert protocol.calls == ["made", "lost"]


async def test_a_device_that_cannot_be_waited_for(loop: Loop) -> None:
    """epoll refuses it, and asyncio reports that; poll finds it always ready."""
    reports: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: reports.append(context))
    protocol = Recorder()
    pipe = Path("/dev/null").open("rb", 0)  # noqa: ASYNC230, SIM115 -- the transport closes it
    transport, _ = await loop.connect_read_pipe(lambda: protocol, pipe)
    await turns()
    if is_tloop(loop) and loop.backend == "poll":  # type: ignore[attr-defined]
        await end_of(protocol)
        assert protocol.calls == ["made", "eof", "lost"]
        return
    assert [type(report["exception"]) for report in reports] == [PermissionError]
    assert not protocol.lost
    transport.close()
    await end_of(protocol)
    assert protocol.calls == ["made", "lost"]


# -- what it looks like ----------------------------------------------------------------------------


async def test_repr(loop: Loop) -> None:
    async with reading() as (transport, _, _):
        fd = transport.get_extra_info("pipe").fileno()
        assert repr(transport).endswith(f"ReadPipeTransport fd={fd} polling>")
        transport.pause_reading()
        assert repr(transport).endswith(f"ReadPipeTransport fd={fd} idle>")
        transport.close()
        assert f"ReadPipeTransport closing fd={fd}" in repr(transport)
    assert f"ReadPipeTransport closed fd={fd}" in repr(transport)
    async with writing() as (transport, _, _):
        fd = transport.get_extra_info("pipe").fileno()
        assert repr(transport).endswith(f"WritePipeTransport fd={fd} idle bufsize=0>")
        transport.write(b"x" * 500000)
        size = transport.get_write_buffer_size()
        assert repr(transport).endswith(f"WritePipeTransport fd={fd} polling bufsize={size}>")
        transport.abort()
        assert f"WritePipeTransport closing fd={fd}" in repr(transport)
    assert f"WritePipeTransport closed fd={fd}" in repr(transport)


async def test_debug_mode(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    loop.set_debug(True)
    caplog.set_level("DEBUG", "asyncio")
    async with reading() as (transport, protocol, far):
        transport.pause_reading()
        transport.resume_reading()
        os.write(far, b"x")
        await protocol.received(1)
        os.close(far)
        await end_of(protocol)
    async with writing() as (_, protocol, far):
        os.close(far)
        await end_of(protocol)
    texts = [record.getMessage().partition("> ")[2] for record in caplog.records]
    wanted = ["pauses reading", "resumes reading", "was closed by peer", "was closed by peer"]
    assert [text for text in texts if text in wanted] == wanted


@pytest.mark.loops("tloop")
async def test_the_descriptor_cannot_be_watched_besides(loop: Loop) -> None:
    """asyncio lets add_reader() take it away from the transport."""
    async with reading() as (transport, _, _):
        fd = transport.get_extra_info("pipe").fileno()
        with pytest.raises(RuntimeError, match=f"File descriptor {fd} is used by transport"):
            loop.add_reader(fd, print)


async def test_a_descriptor_that_was_watched_before(loop: Loop) -> None:
    read_end, write_end = plain_pipe(Path())
    loop.add_reader(read_end.fileno(), print)
    protocol = Recorder()
    transport, _ = await loop.connect_read_pipe(lambda: protocol, read_end)
    write_end.write(b"hello")
    assert await protocol.received(5) == b"hello"
    write_end.close()
    await end_of(protocol)
    assert transport.is_closing()
