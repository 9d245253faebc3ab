"""What debug mode logs, line by line; and that it is silent without it."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from conftest import AsyncioLog
from loopkit import (
    HERE,
    Loop,
    Recorder,
    connected,
    end_of,
    listening,
    read_all,
    send_reset,
    tcp_sockets,
    turns,
    until,
)


class Child(asyncio.SubprocessProtocol):
    lost = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


DEBUG, INFO, WARNING = logging.DEBUG, logging.INFO, logging.WARNING


async def resolve(loop: Loop) -> None:
    await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)


async def resolve_slowly(loop: Loop) -> None:
    loop.slow_callback_duration = 0
    await resolve(loop)
    loop.slow_callback_duration = 10


async def serve_and_connect(loop: Loop) -> None:
    accepted = Recorder()
    async with listening(lambda: accepted) as address:
        transport, client = await loop.create_connection(Recorder, *address)
        await until(lambda: accepted.transport)
        transport.close()
        await end_of(client, accepted)


async def serve_without_family(loop: Loop) -> None:
    """A family that this machine does not have is left out."""

    async def resolved(*_: Any, **__: Any) -> list[Any]:
        unknown = (4242, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))
        return [unknown, (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    loop.getaddrinfo = resolved  # type: ignore[method-assign]
    server = await loop.create_server(Recorder, "localhost", 0)
    server.close()
    await turns()


async def accept_one(loop: Loop) -> None:
    near, far = tcp_sockets()
    with far:
        transport, protocol = await loop.connect_accepted_socket(Recorder, near)
        transport.close()
        await end_of(protocol)


async def pause_and_resume(loop: Loop) -> None:
    async with connected() as (transport, _, _):
        await turns()
        transport.pause_reading()
        transport.resume_reading()


async def meet_the_end(loop: Loop) -> None:
    async with connected() as (_, protocol, far):
        far.shutdown(socket.SHUT_WR)
        await until(lambda: protocol.lost)


async def be_reset(loop: Loop) -> None:
    async with connected() as (_, protocol, far):
        send_reset(far)
        await until(lambda: protocol.lost)


async def fill_a_stream(loop: Loop) -> None:
    near, far = tcp_sockets()
    reader, writer = await asyncio.open_connection(sock=near)
    with far:
        writer.write(bytes(1 << 22))
        drained = loop.create_task(writer.drain())
        assert await read_all(far, 1 << 22) == bytes(1 << 22)
        await drained
        writer.close()
        await writer.wait_closed()
    assert reader.at_eof()


async def open_datagrams(loop: Loop, **where: Any) -> None:
    transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, **where)
    transport.close()
    await turns()


async def bound_datagrams(loop: Loop) -> None:
    await open_datagrams(loop, local_addr=("127.0.0.1", 0))


async def connected_datagrams(loop: Loop) -> None:
    await open_datagrams(loop, remote_addr=("127.0.0.1", 9))


@asynccontextmanager
async def piped(loop: Loop) -> AsyncIterator[tuple[Any, Any, Recorder, Recorder]]:
    """Both ends of a pipe as transports, and their protocols."""
    ends = os.pipe()
    source, reading = await loop.connect_read_pipe(Recorder, os.fdopen(ends[0], "rb", 0))
    sink, writing = await loop.connect_write_pipe(Recorder, os.fdopen(ends[1], "wb", 0))
    yield source, sink, reading, writing
    source.close()
    sink.close()
    await end_of(reading, writing)


async def close_the_writing_end(loop: Loop) -> None:
    async with piped(loop) as (source, sink, reading, _):
        source.pause_reading()
        source.resume_reading()
        sink.close()
        await end_of(reading)


async def close_the_reading_end(loop: Loop) -> None:
    async with piped(loop) as (source, _, _, writing):
        source.close()
        await end_of(writing)


async def run_a_child(loop: Loop) -> None:
    transport, protocol = await loop.subprocess_exec(Child, "true")
    await until(lambda: protocol.lost)
    transport.close()


async def run_a_shell(loop: Loop) -> None:
    transport, protocol = await loop.subprocess_shell(Child, "true", stderr=subprocess.STDOUT)
    await until(lambda: protocol.lost)
    transport.close()


async def close_a_running_child(loop: Loop) -> None:
    transport, protocol = await loop.subprocess_exec(Child, "cat")
    transport.close()
    await until(lambda: protocol.lost)


async def shake_hands(loop: Loop) -> None:
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_tls.load_cert_chain(HERE / "tls" / "server.pem")
    client_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_tls.load_verify_locations(HERE / "tls" / "authority.pem")
    accepted = Recorder()
    async with listening(lambda: accepted, ssl=server_tls) as address:
        transport, client = await loop.create_connection(
            Recorder, *address, ssl=client_tls, server_hostname="server.example"
        )
        await until(lambda: accepted.transport)
        transport.close()
        await end_of(client, accepted)


async def close_another_loop(loop: Loop) -> None:
    other = type(loop)()
    other.set_debug(loop.get_debug())
    other.close()


# name: (what happens, the level and the pattern of each line that tells of it)
LINES: dict[str, tuple[Callable[[Loop], Coroutine[Any, Any, None]], list[tuple[int, str]]]] = {
    "getaddrinfo": (
        resolve,
        [
            (DEBUG, r"Get address info 127.0.0.1:80, type="),
            (DEBUG, r"Getting address info 127.0.0.1:80, .* took [\d.]+ms: \[\("),
        ],
    ),
    "slow getaddrinfo": (resolve_slowly, [(INFO, r"Getting address info .* took [\d.]+ms")]),
    "connecting": (
        serve_and_connect,
        [
            (INFO, r"<Server sockets=.* is serving"),
            (DEBUG, r"<Server .* got a new connection from \('127.0.0.1', \d+\): .*fd=\d+"),
            (DEBUG, r"<asyncio.TransportSocket .* connected to 127.0.0.1:\d+: \(<.*Transport"),
        ],
    ),
    "family": (
        serve_without_family,
        [(WARNING, r"create_server\(\) failed to create socket.socket\(4242, ")],
    ),
    "accepted socket": (accept_one, [(DEBUG, r"<asyncio.TransportSocket .* handled: \(<")]),
    "reading": (
        pause_and_resume,
        [
            (DEBUG, r"<\w*Transport fd=\d+ read=idle .*> pauses reading"),
            (DEBUG, r"<\w*Transport fd=\d+ read=polling .*> resumes reading"),
        ],
    ),
    "end of file": (meet_the_end, [(DEBUG, r"<\w*Transport .*> received EOF")]),
    "reset": (be_reset, [(DEBUG, r"<\w*Transport .*>: Fatal read error on socket transport")]),
    "writing": (
        fill_a_stream,
        [
            (DEBUG, r"<.*StreamReaderProtocol.*> pauses writing"),
            (DEBUG, r"<.*StreamReaderProtocol.*> resumes writing"),
        ],
    ),
    "bound datagrams": (
        bound_datagrams,
        [(INFO, r"Datagram endpoint local_addr=\('127.0.0.1', 0\) remote_addr=None created: \(<")],
    ),
    "connected datagrams": (
        connected_datagrams,
        [(DEBUG, r"Datagram endpoint remote_addr=\('127.0.0.1', 9\) created: \(<")],
    ),
    "tls": (
        shake_hands,
        [
            (DEBUG, r"<\S+SSLProtocol.*> starts SSL handshake"),
            (DEBUG, r"<\S+SSLProtocol.*>: SSL handshake took [\d.]+ ms"),
        ],
    ),
    "pipes": (
        close_the_writing_end,
        [
            (DEBUG, r"Read pipe \d+ connected: \(<\w*ReadPipeTransport .*"),
            (DEBUG, r"Write pipe \d+ connected: \(<\w*WritePipeTransport .*"),
            (DEBUG, r"<\w*ReadPipeTransport .* pauses reading"),
            (DEBUG, r"<\w*ReadPipeTransport .* resumes reading"),
            (INFO, r"<\w*ReadPipeTransport .* was closed by peer"),
        ],
    ),
    "broken pipe": (
        close_the_reading_end,
        [(INFO, r"<\w*WritePipeTransport .* was closed by peer")],
    ),
    "child": (
        run_a_child,
        [
            (DEBUG, r"execute program 'true' stdin=<pipe> stdout=<pipe> stderr=<pipe>"),
            (DEBUG, r"process 'true' created: pid \d+"),
            (INFO, r"execute program 'true': <\w+ pid=\d+"),
            (INFO, r"<\w+ pid=\d+ .*> exited with return code 0"),
        ],
    ),
    "shell": (
        run_a_shell,
        [
            (DEBUG, r"run shell command 'true' stdin=<pipe> stdout=stderr=<pipe>"),
            (INFO, r"run shell command 'true': <\w+ pid=\d+"),
        ],
    ),
    "running child": (
        close_a_running_child,
        [(WARNING, r"Close running child process: kill <\w+ closed pid=\d+ running")],
    ),
    "close": (close_another_loop, [(DEBUG, r"Close <\w+ running=False closed=False debug=True>")]),
}


class Lines(logging.Handler):
    """Level, text as it was at that moment, and type of the exception of each line."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, str, type[BaseException] | None]] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[0] if record.exc_info else None
        self.seen.append((record.levelno, record.getMessage(), error))


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler, logger = Lines(), logging.getLogger("asyncio")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(DEBUG)
    yield handler
    logger.setLevel(level)
    logger.removeHandler(handler)


@pytest.mark.parametrize("name", LINES)
async def test_debug_mode_logs(
    loop: Loop, name: str, lines: Lines, asyncio_log: AsyncioLog
) -> None:
    loop.set_debug(True)
    loop.slow_callback_duration = 10
    happen, expected = LINES[name]
    await happen(loop)
    for level, pattern in expected:
        found = [one for one in lines.seen if one[0] == level and re.match(pattern, one[1])]
        assert found, lines.seen
    asyncio_log.records.clear()


@pytest.mark.parametrize("name", LINES)
def test_without_debug_mode_nothing_is_logged(loop: Loop, name: str, lines: Lines) -> None:
    loop.set_debug(False)
    loop.run_until_complete(LINES[name][0](loop))
    assert [text for _, text, _ in lines.seen if not text.startswith("Using ")] == []


async def test_a_fatal_error_is_logged_with_its_traceback(loop: Loop, lines: Lines) -> None:
    loop.set_debug(True)
    loop.slow_callback_duration = 10
    await be_reset(loop)
    [error] = [error for _, text, error in lines.seen if "Fatal read error" in text]
    assert error is ConnectionResetError
