"""Servers: serving, closing, waiting, their sockets and options, their clients."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
import sys
from typing import Any

import pytest
from loopkit import (
    Echo,
    Loop,
    LoopFactory,
    Recorder,
    collect,
    end_of,
    listening,
    turns,
    until,
    warnings_seen,
)
from serverkit import Accepted, connect, leave, serve

pytestmark = pytest.mark.usefixtures("loop")


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


async def test_serve_forever_cancelled_with_a_client(loop: Loop) -> None:
    """From 3.12 on it waits for the client, from 3.14 on it closes it."""
    accepted = Accepted()
    server = await serve(loop, accepted)
    serving = loop.create_task(server.serve_forever())
    client = await connect(loop, server)
    serving.cancel()
    await turns(10)
    if sys.version_info < (3, 14):
        assert serving.done() is (sys.version_info < (3, 12))
        client[0].close()
    with pytest.raises(asyncio.CancelledError):
        await serving
    await leave(accepted, client)


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


async def test_a_closed_server_cannot_serve_again(loop: Loop) -> None:
    server = await serve(loop, Accepted())
    server.close()
    for method in (server.serve_forever, server.__aenter__):
        with contextlib.suppress(RuntimeError):
            await method()
    assert not server.is_serving()


def test_a_server_that_nobody_holds_still_serves(loop_factory: LoopFactory) -> None:
    """Until its loop is gone."""
    loop = loop_factory()
    accepted = Accepted()

    async def forgotten() -> Any:
        server = await serve(asyncio.get_running_loop(), accepted)
        return server.sockets[0].getsockname()

    async def use(address: Any) -> None:
        running = asyncio.get_running_loop()
        transport, client = await running.create_connection(Recorder, *address)
        transport.write(b"anyone?")
        await client.received(7)
        transport.close()
        await until(lambda: client.lost and not accepted.open)

    with warnings_seen() as seen:
        address = loop.run_until_complete(forgotten())
        collect()
        loop.run_until_complete(use(address))
        loop.close()
        del loop
        collect()
    assert any("unclosed <socket.socket" in text for text in seen)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


async def test_repr_shows_the_sockets(loop: Loop) -> None:
    server = await serve(loop, Accepted())
    port = server.sockets[0].getsockname()[1]
    assert repr(server).startswith("<Server sockets=(<asyncio.TransportSocket fd=")
    assert str(port) in repr(server)
    server.close()
    assert repr(server) == "<Server sockets=()>"


async def test_sockets_of_a_server_cannot_be_misused(loop: Loop) -> None:
    server = await serve(loop, Accepted())
    for method in ("accept", "recv", "send", "close"):
        assert not hasattr(server.sockets[0], method)
    server.close()


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


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="wait_closed waits since Python 3.12")
async def test_wait_closed_did_not_wait_for_the_clients(loop: Loop) -> None:
    accepted = Accepted()
    server = await serve(loop, accepted)
    client = await connect(loop, server)
    server.close()
    await server.wait_closed()
    assert accepted.open
    await leave(accepted, client)


async def test_wait_closed_waits_for_close(loop: Loop) -> None:
    server = await serve(loop, Accepted())
    waiting = loop.create_task(server.wait_closed())
    await turns(10)
    assert not waiting.done()
    server.close()
    await waiting


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
async def test_clients_that_nobody_holds_are_closed_too(loop: Loop) -> None:
    """The server refers to its transports weakly; the loop keeps them."""
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    clients = [
        await loop.create_connection(Recorder, *server.sockets[0].getsockname()) for _ in "ab"
    ]
    await turns(5)
    collect()
    server.close()
    server.close_clients()
    await server.wait_closed()
    await end_of(*(client for _, client in clients))


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


async def test_a_host_named_twice_is_served_once(loop: Loop) -> None:
    server = await loop.create_server(Echo, ["127.0.0.1", "127.0.0.1"], 0)
    assert len(server.sockets) == 1
    server.close()


@pytest.mark.parametrize("host", [None, ""])
async def test_both_families_can_be_served(loop: Loop, host: str | None) -> None:
    """Each has a socket, and a port, of its own."""
    accepted = Accepted()
    server = await loop.create_server(accepted, host, 0)
    by_family = {sock.family: sock for sock in server.sockets}
    assert set(by_family) == {socket.AF_INET, socket.AF_INET6}
    assert by_family[socket.AF_INET6].getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    for family, near in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        port = by_family[family].getsockname()[1]
        transport, client = await loop.create_connection(Recorder, near, port)
        transport.close()
        await end_of(client)
    await until(lambda: len(accepted.made) == 2 and not accepted.open)
    server.close()


async def test_an_address_in_use_is_refused(loop: Loop) -> None:
    async with listening(Echo) as (host, port):
        with pytest.raises(OSError, match="address already in use") as caught:
            await loop.create_server(Echo, host, port)
        assert caught.value.errno == errno.EADDRINUSE
        text = f"error while attempting to bind on address ('127.0.0.1', {port}): "
        assert text in str(caught.value)


async def test_of_several_hosts_all_must_be_free(loop: Loop) -> None:
    """B4: the socket of the first one is closed."""
    async with listening(Echo) as (host, port):
        with pytest.raises(OSError, match="address already in use"):
            await loop.create_server(Echo, ["::1", host], port)


async def test_an_address_of_another_machine_is_refused(loop: Loop) -> None:
    loop.set_debug(False)  # debug mode of 3.13 logs it, too
    with pytest.raises(OSError, match=r"assign requested address|bind on"):
        await loop.create_server(Echo, "203.0.113.1", 0)


async def test_a_port_out_of_range_is_refused(loop: Loop) -> None:
    with pytest.raises(OverflowError):
        await loop.create_server(Echo, "127.0.0.1", 70_000)


@pytest.mark.parametrize("reuse", [None, True, False])
async def test_reuse_address_is_the_default(loop: Loop, reuse: bool | None) -> None:
    server = await loop.create_server(Echo, "127.0.0.1", 0, reuse_address=reuse)
    sock = server.sockets[0]
    assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)) is (reuse is not False)
    assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
    server.close()


async def test_the_backlog_is_the_kernels(loop: Loop) -> None:
    server = await loop.create_server(Echo, "127.0.0.1", 0, backlog=7)
    info = server.sockets[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    assert struct.unpack_from("=I", info, 28) == (7,)  # of a listener: its limit
    server.close()


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


async def test_a_socket_that_does_not_listen_yet_can_be_served(loop: Loop) -> None:
    accepted = Accepted()
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(True)
    server = await loop.create_server(accepted, sock=sock)
    assert sock.gettimeout() == 0
    await leave(accepted, await connect(loop, server))
    server.close()
    assert sock.fileno() == -1


@pytest.mark.parametrize("options", [{}, {"host": "127.0.0.1", "port": 0, "sock": ...}])
async def test_contradicting_arguments_are_refused(loop: Loop, options: dict[str, Any]) -> None:
    with socket.socket() as sock:
        if "sock" in options:
            options = {**options, "sock": sock}
        with pytest.raises(ValueError, match="host/port"):
            await loop.create_server(Echo, **options)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="keep_alive came with Python 3.13")
async def test_keep_alive_is_set_on_listener_and_connections(loop: Loop) -> None:
    accepted = Accepted()
    server = await serve(loop, accepted, keep_alive=True)
    sock = server.sockets[0]
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    client = await connect(loop, server)
    near = accepted.made[0].transport.get_extra_info("socket")
    assert near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    await leave(accepted, client)
    server.close()


async def test_the_listener_belongs_to_the_server(loop: Loop) -> None:
    server = await serve(loop, Accepted())
    sock = server.sockets[0]
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert sock.gettimeout() == 0
    server.close()


@pytest.mark.loops("tloop")  # asyncio's selector refuses to watch a number whose file has changed
async def test_a_connection_may_get_the_number_of_a_socket_that_is_still_watched(
    loop: Loop,
) -> None:
    """What is watched by number, of a socket that was closed, must not end who has it now."""
    near, far = socket.socketpair()
    number = near.fileno()
    loop.add_reader(near, int)
    accepted: list[int] = []

    class Watching(asyncio.Protocol):
        def __init__(self) -> None:
            loop.add_writer(number, int)  # of the accepted connection, by now

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.append(transport.get_extra_info("socket").fileno())
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(data)  # type: ignore[attr-defined]

    server = await loop.create_server(Watching, "127.0.0.1", 0)
    client = socket.socket()
    client.connect(server.sockets[0].getsockname())
    collect()  # so that no lower number becomes free
    near.close()
    with far, client:
        client.setblocking(False)
        await loop.sock_sendall(client, b"echo")
        assert await asyncio.wait_for(loop.sock_recv(client, 9), 10) == b"echo"
        assert accepted == [number]
    server.close()
    await server.wait_closed()
