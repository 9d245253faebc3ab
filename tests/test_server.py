"""Servers: serving, closing, waiting, their sockets, their clients, and running out of fds."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import sys
from typing import Any

import pytest
from loopkit import (
    PATIENCE,
    Echo,
    Loop,
    Recorder,
    collect,
    end_of,
    listening,
    read_all,
    run_python,
    turns,
    until,
    warnings_seen,
)

pytestmark = pytest.mark.usefixtures("loop")


class Accepted:
    """A protocol factory that remembers what it made."""

    def __init__(self, kind: type[Recorder] = Echo) -> None:
        self.kind = kind
        self.made: list[Recorder] = []

    def __call__(self) -> Recorder:
        self.made.append(self.kind())
        return self.made[-1]

    def ready(self) -> bool:
        return any(protocol.transport for protocol in self.made)

    @property
    def open(self) -> list[Recorder]:
        return [protocol for protocol in self.made if not protocol.lost]


async def serve(loop: Loop, accepted: Accepted, **options: Any) -> Any:
    return await loop.create_server(accepted, "127.0.0.1", 0, **options)


async def connect(loop: Loop, server: Any) -> tuple[Any, Recorder]:
    """A client that the server has accepted."""
    transport, client = await loop.create_connection(Recorder, *server.sockets[0].getsockname())
    transport.write(b"hello")
    await client.received(5)
    return transport, client


async def leave(accepted: Accepted, *clients: tuple[Any, Recorder]) -> None:
    for transport, _ in clients:
        transport.close()
    await until(lambda: not accepted.open and all(client.lost for _, client in clients))


async def test_a_server_tells_its_state(loop: Loop) -> None:
    server = await serve(loop, Accepted())
    assert asyncio.AbstractServer in type(server).__mro__
    assert server.is_serving()
    assert server.get_loop() is loop
    assert isinstance(server.sockets, tuple)
    assert isinstance(server.sockets[0], asyncio.trsock.TransportSocket)
    server.close()
    assert not server.is_serving()
    assert server.sockets == ()
    server.close()


async def test_start_serving_can_wait(loop: Loop) -> None:
    accepted = Accepted()
    server = await serve(loop, accepted, start_serving=False)
    assert not server.is_serving()
    address = server.sockets[0].getsockname()
    with pytest.raises(ConnectionRefusedError):
        await loop.create_connection(Recorder, *address)
    await server.start_serving()
    await server.start_serving()
    assert server.is_serving()
    await leave(accepted, await connect(loop, server))
    server.close()


async def test_serve_forever_ends_when_cancelled(loop: Loop) -> None:
    accepted = Accepted()
    server = await serve(loop, accepted, start_serving=False)
    serving = loop.create_task(server.serve_forever())
    await until(server.is_serving)
    await leave(accepted, await connect(loop, server))
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert not server.is_serving()


async def test_serve_forever_ends_when_the_server_is_closed(loop: Loop) -> None:
    server = await serve(loop, Accepted())
    serving = loop.create_task(server.serve_forever())
    await turns()
    server.close()
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_serve_forever_twice_is_refused(loop: Loop) -> None:
    server = await serve(loop, Accepted())
    serving = loop.create_task(server.serve_forever())
    await turns()
    with pytest.raises(RuntimeError, match="already being awaited"):
        await server.serve_forever()
    server.close()
    with pytest.raises(asyncio.CancelledError):
        await serving
    with pytest.raises(RuntimeError, match="closed"):
        await server.serve_forever()


async def test_async_with_closes_the_server(loop: Loop) -> None:
    accepted = Accepted()
    async with await serve(loop, accepted) as server:
        await leave(accepted, await connect(loop, server))
    assert not server.is_serving()


async def test_clients_live_on_when_their_server_is_closed(loop: Loop) -> None:
    accepted = Accepted()
    server = await serve(loop, accepted)
    transport, client = await connect(loop, server)
    server.close()
    await turns()
    transport.write(b", again")
    assert await client.received(12) == b"hello, again"
    await leave(accepted, (transport, client))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="wait_closed waits since Python 3.12")
async def test_wait_closed_waits_for_the_clients(loop: Loop) -> None:
    accepted = Accepted()
    server = await serve(loop, accepted)
    clients = [await connect(loop, server) for _ in range(2)]
    server.close()
    waiting = loop.create_task(server.wait_closed())
    await turns(10)
    assert not waiting.done()
    clients[0][0].close()
    await turns(10)
    assert not waiting.done()
    await leave(accepted, *clients)
    await waiting
    await server.wait_closed()


async def test_wait_closed_returns_when_no_client_is_left(loop: Loop) -> None:
    accepted = Accepted()
    server = await serve(loop, accepted)
    await leave(accepted, await connect(loop, server))
    server.close()
    await server.wait_closed()


@pytest.mark.skipif(sys.version_info < (3, 13), reason="close_clients came with Python 3.13")
@pytest.mark.parametrize("method", ["close_clients", "abort_clients"])
async def test_the_server_can_end_its_clients(loop: Loop, method: str) -> None:
    accepted = Accepted()
    server = await serve(loop, accepted)
    clients = [await connect(loop, server) for _ in range(3)]
    server.close()
    getattr(server, method)()
    await until(lambda: not accepted.open)
    await server.wait_closed()
    await leave(accepted, *clients)
    assert all(client.error is None for _, client in clients) or method == "abort_clients"


@pytest.mark.skipif(sys.version_info < (3, 13), reason="close_clients came with Python 3.13")
async def test_close_clients_sends_what_was_written_and_abort_clients_does_not(
    loop: Loop,
) -> None:
    data = b"x" * 8_000_000
    for method, complete in (("close_clients", True), ("abort_clients", False)):
        accepted = Accepted(Recorder)
        server = await serve(loop, accepted)
        transport, client = await loop.create_connection(Recorder, *server.sockets[0].getsockname())
        transport.pause_reading()
        await until(accepted.ready)
        accepted.made[0].transport.write(data)
        server.close()
        getattr(server, method)()
        transport.resume_reading()
        await end_of(client)
        assert (client.data == data) is complete
        await end_of(*accepted.made)


async def test_a_server_accepts_many_clients_in_one_go(loop: Loop) -> None:
    accepted = Accepted()
    async with listening(accepted, backlog=200) as address:
        raw = [socket.create_connection(address) for _ in range(150)]
        await until(lambda: len(accepted.open) == 150)
        for sock in raw:
            sock.close()
        await until(lambda: not accepted.open)


async def test_a_server_listens_on_several_hosts(loop: Loop) -> None:
    accepted = Accepted()
    server = await loop.create_server(accepted, ["127.0.0.1", "::1"], 0)
    assert {sock.family for sock in server.sockets} == {socket.AF_INET, socket.AF_INET6}
    for sock in server.sockets:
        transport, client = await loop.create_connection(Recorder, *sock.getsockname()[:2])
        transport.close()
        await end_of(client)
    await until(lambda: len(accepted.made) == 2 and not accepted.open)
    server.close()


async def test_no_host_means_every_address(loop: Loop) -> None:
    server = await loop.create_server(Echo, None, 0)
    assert socket.AF_INET in {sock.family for sock in server.sockets}
    server.close()


async def test_an_address_in_use_is_refused(loop: Loop) -> None:
    async with listening(Echo) as (host, port):
        with pytest.raises(OSError, match="address already in use") as caught:
            await loop.create_server(Echo, host, port)
        assert caught.value.errno == errno.EADDRINUSE
        assert str(port) in str(caught.value)


async def test_an_address_of_another_machine_is_refused(loop: Loop) -> None:
    with pytest.raises(OSError, match=r"assign requested address|bind on"):
        await loop.create_server(Echo, "203.0.113.1", 0)


async def test_a_port_out_of_range_is_refused(loop: Loop) -> None:
    with pytest.raises(OverflowError):
        await loop.create_server(Echo, "127.0.0.1", 70_000)


async def test_reuse_port_lets_two_servers_share(loop: Loop) -> None:
    first = await loop.create_server(Echo, "127.0.0.1", 0, reuse_port=True)
    port = first.sockets[0].getsockname()[1]
    second = await loop.create_server(Echo, "127.0.0.1", port, reuse_port=True)
    assert second.sockets[0].getsockname()[1] == port
    for server in (first, second):
        server.close()


async def test_the_address_is_free_after_close(loop: Loop) -> None:
    first = await serve(loop, Accepted())
    port = first.sockets[0].getsockname()[1]
    first.close()
    await first.wait_closed()
    second = await loop.create_server(Echo, "127.0.0.1", port)
    second.close()


async def test_an_existing_socket_can_be_served(loop: Loop) -> None:
    accepted = Accepted()
    server = await loop.create_server(accepted, sock=socket.create_server(("127.0.0.1", 0)))
    await leave(accepted, await connect(loop, server))
    server.close()


@pytest.mark.parametrize("options", [{}, {"host": "127.0.0.1", "port": 0, "sock": ...}])
async def test_contradicting_arguments_are_refused(loop: Loop, options: dict[str, Any]) -> None:
    with socket.socket() as sock:
        if "sock" in options:
            options = {**options, "sock": sock}
        with pytest.raises(ValueError, match="host/port"):
            await loop.create_server(Echo, **options)


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


async def test_an_accepted_socket_becomes_a_transport(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        sock, _ = listener.accept()
    with client:
        transport, echo = await loop.connect_accepted_socket(Echo, sock)
        client.send(b"hello")
        await echo.received(5)
        assert client.recv(5) == b"hello"
        transport.close()
        await until(lambda: echo.lost)
    assert echo.calls == ["made", "data", "lost"]


async def test_only_stream_sockets_can_be_accepted(loop: Loop) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        pytest.raises(ValueError, match="Stream Socket"),
    ):
        await loop.connect_accepted_socket(Echo, sock)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="keep_alive came with Python 3.13")
async def test_keep_alive_is_set_on_the_listener(loop: Loop) -> None:
    server = await serve(loop, Accepted(), keep_alive=True)
    sock = server.sockets[0]
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    server.close()


async def test_the_listener_belongs_to_the_server(loop: Loop) -> None:
    server = await serve(loop, Accepted())
    sock = server.sockets[0]
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert sock.gettimeout() == 0
    server.close()


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

    server = await loop.create_server(factory, "127.0.0.1", 0)
    clients = [socket.create_connection(server.sockets[0].getsockname()) for _ in range(5)]
    used = len(os.listdir("/proc/self/fd")) - 1
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 2, hard))  # room for two of the five
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
