"""Accepting: many at once, failing factories, connections that never were, running out of fds."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import re
import socket
import ssl
from typing import Any

import pytest
from loopkit import (
    PATIENCE,
    REFCOUNTS,
    Loop,
    Recorder,
    collect,
    end_of,
    is_tloop,
    listening,
    read_all,
    run_python,
    turns,
    until,
    warnings_seen,
)
from serverkit import Accepted, serve

pytestmark = pytest.mark.usefixtures("loop")


async def test_a_server_accepts_many_clients_in_one_go(loop: Loop) -> None:
    accepted = Accepted()
    async with listening(accepted, backlog=200) as address:
        raw = [socket.create_connection(address) for _ in range(150)]
        await until(lambda: len(accepted.open) == 150)
        for sock in raw:
            sock.close()
        await until(lambda: not accepted.open)


@pytest.mark.skipif(not REFCOUNTS, reason="tracemalloc exists on CPython only")
async def test_an_accepted_connection_takes_little_memory(loop: Loop) -> None:
    import tracemalloc

    class Bare(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.append(transport)

    loop.set_debug(False)  # in which each transport remembers who made it
    accepted: list[Any] = []
    count = 150
    async with listening(Bare, backlog=count) as address:
        raw = [socket.create_connection(address) for _ in range(count)]
        tracemalloc.start()
        try:
            await until(lambda: len(accepted) == count)
            await turns()
            used = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        for sock in raw:
            sock.close()
        await until(lambda: all(transport.is_closing() for transport in accepted))
        await turns()
    assert used / count < (750 if is_tloop(loop) else 4000)


async def test_a_factory_that_fails_does_not_stop_the_server(loop: Loop) -> None:
    """B4: the accepted socket is closed."""
    loop.set_debug(False)  # a report would keep alive the socket that asyncio merely forgets
    accepted = Accepted()
    failures = [LookupError("no protocol")]

    def sometimes() -> Recorder:
        if failures:
            raise failures.pop()
        return accepted()

    async with listening(sometimes) as address:
        with warnings_seen(), socket.create_connection(address) as refused:
            refused.setblocking(False)
            await until(lambda: not failures)
            await turns()
            collect()
            assert await read_all(refused, 1) == b""
        with socket.create_connection(address) as served:
            served.send(b"x")
            await until(lambda: accepted.made and accepted.made[0].data)
        await until(lambda: not accepted.open)


async def test_connections_waiting_when_the_server_closes_are_refused(loop: Loop) -> None:
    server = await serve(loop, Accepted(), start_serving=False)
    await server.start_serving()
    sock = socket.create_connection(server.sockets[0].getsockname())
    server.close()
    await turns(5)
    sock.setblocking(False)
    with sock, contextlib.suppress(ConnectionResetError):
        assert await read_all(sock, 1) == b""  # accepted and closed: as good as refused


@pytest.mark.parametrize("debug", [False, True])
async def test_a_connection_of_the_tick_in_which_the_server_closes_is_closed(
    loop: Loop, debug: bool
) -> None:
    loop.set_debug(debug)
    accepted = Accepted()
    server = await serve(loop, accepted)
    sock = socket.create_connection(server.sockets[0].getsockname())
    sock.setblocking(False)
    loop.call_soon(server.close)  # runs after the poll that accepts
    await turns(5)
    with sock, contextlib.suppress(ConnectionResetError):
        assert await read_all(sock, 1) == b""
    assert not accepted.made


@pytest.mark.parametrize("debug", [False, True])
async def test_a_failing_factory_is_reported_in_debug_mode(loop: Loop, debug: bool) -> None:
    told: list[tuple[str, type]] = []  # not the exception: it would keep the connection alive
    loop.set_exception_handler(
        lambda _, context: told.append((context["message"], type(context["exception"])))
    )
    loop.set_debug(debug)
    failed: list[bool] = []

    def broken() -> Recorder:
        failed.append(True)
        raise LookupError("no protocol")

    async with listening(broken) as address:
        with warnings_seen(), socket.create_connection(address) as refused:
            refused.setblocking(False)
            await until(lambda: failed)
            await turns()
            collect()
            assert await read_all(refused, 1) == b""
    expected = [("Error on transport creation for incoming connection", LookupError)]
    assert told == (expected if debug else [])
    loop.set_debug(False)


async def test_a_failing_connection_made_is_reported(loop: Loop) -> None:
    reports: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reports.append(context))

    class Broken(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            raise LookupError("not today")

    made: list[Broken] = []

    def factory() -> Broken:
        made.append(Broken())
        return made[-1]

    async with listening(factory) as address:
        with socket.create_connection(address) as client:
            client.send(b"x")
            await until(lambda: made and made[0].data)  # the connection lives on
        await end_of(*made)
    assert [type(context["exception"]) for context in reports] == [LookupError]
    assert re.match("Exception in callback .*Broken.connection_made\\(", reports[0]["message"])


async def test_each_connection_has_a_context_of_its_own(loop: Loop) -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("server")
    seen: list[tuple[str, str]] = []

    class Noting(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.before = variable.get()
            variable.set(str(id(self)))

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            seen.append((self.before, variable.get()))

    made: list[Noting] = []

    def factory() -> Noting:
        made.append(Noting())
        return made[-1]

    async with listening(factory) as address:
        variable.set("later")
        for number in range(2):
            with socket.create_connection(address) as client:
                client.send(b"x")
                await until(lambda n=number: len(seen) == n + 1)
        await end_of(*made)
    assert seen == [("server", str(id(protocol))) for protocol in made]


@pytest.mark.loops("tloop")  # asyncio accepts it, and leaves it open: its Server asserts
@pytest.mark.parametrize("tls", [False, True])
async def test_a_connection_accepted_while_the_server_closes_is_dropped(
    loop: Loop, tls: bool, server_tls: ssl.SSLContext
) -> None:
    def accept() -> Recorder:
        server.close()
        return Recorder()

    for factory, from_outside in ((Recorder, True), (accept, False)):
        server = await loop.create_server(factory, "127.0.0.1", 0, ssl=server_tls if tls else None)
        address = server.sockets[0].getsockname()
        clients = [socket.create_connection(address) for _ in range(3)]
        if from_outside:
            loop.call_soon(server.close)  # runs after the poll that tells of the connections
        await turns(5)
        for client in clients:
            with client, contextlib.suppress(ConnectionResetError):
                client.settimeout(PATIENCE)
                assert client.recv(1) == b""


OUT_OF_FDS = """
import asyncio, os, resource, socket, sys, time
import loopkit

async def main():
    loop = asyncio.get_running_loop()
    reports, accepted = [], []
    loop.set_exception_handler(lambda loop, context: reports.append(context))

    def factory():
        accepted.append(loopkit.Recorder())
        return accepted[-1]

    listener = socket.create_server(("127.0.0.1", 0))
    clients = [socket.create_connection(listener.getsockname()) for _ in range(5)]
    used = len(os.listdir("/proc/self/fd")) - 1
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 2, hard))  # room for two of the five
    server = await loop.create_server(factory, sock=listener)
    await loopkit.until(lambda: reports)
    assert isinstance(reports[0]["exception"], OSError), reports
    assert "out of system resource" in reports[0]["message"], reports
    assert len(accepted) == 2, accepted
    busy = time.process_time()
    await asyncio.sleep(0.5)
    busy = time.process_time() - busy
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 50, hard))
    await loopkit.until(lambda: len(accepted) == 5)
    clients += [socket.create_connection(server.sockets[0].getsockname())]
    await loopkit.until(lambda: len(accepted) == 6)
    for sock in clients:
        sock.close()
    await loopkit.until(lambda: all(protocol.lost for protocol in accepted))
    server.close()
    print(len(reports), busy)

asyncio.Runner(loop_factory=loopkit.FACTORIES[sys.argv[1]]).run(main())
"""


@pytest.mark.slow
def test_a_server_out_of_file_descriptors_backs_off_and_recovers(loop_name: str) -> None:
    """B3: it says so, does not spin, and accepts again once there is room."""
    reports, busy = run_python(OUT_OF_FDS, loop_name).split()
    assert float(busy) < 0.1
    if loop_name == "tloop":  # asyncio tries once for every place in the backlog
        assert int(reports) <= 3
