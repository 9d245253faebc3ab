"""The websockets library, server and client on the same loop, over TCP, TLS and Unix sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from appkit import MB, Certificates, blocks
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.asyncio.server import Server, ServerConnection, serve, unix_serve
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK

# No time limit of the library's own may hide that the end of a connection was missed.
PATIENT: dict[str, Any] = {"max_size": None, "ping_interval": None, "close_timeout": None}

Connected = Callable[..., AbstractAsyncContextManager[ClientConnection]]


async def echo(connection: ServerConnection) -> None:
    """Echo messages; `close CODE` asks for that close code, `drop` for none at all."""
    async for message in connection:
        match message.split() if isinstance(message, str) else ():
            case ["close", code]:
                return await connection.close(int(code), "as asked")
            case ["drop"]:
                return connection.transport.abort()
            case _:
                await connection.send(message)


def port_of(server: Server) -> int:
    port: int = next(iter(server.sockets)).getsockname()[1]
    return port


@pytest.fixture(params=["tcp", "tls", "tls in C", "unix"])
def connected(
    request: pytest.FixtureRequest, app_loop: str, certificates: Certificates, tmp_path: Path
) -> Connected:
    """Opens a connection to an echo server on the same loop."""

    @asynccontextmanager
    async def tcp(**options: Any) -> AsyncIterator[ClientConnection]:
        async with serve(echo, "127.0.0.1", 0, **PATIENT) as server:
            url = f"ws://127.0.0.1:{port_of(server)}"
            async with connect(url, max_size=None, **options) as client:
                yield client

    @asynccontextmanager
    async def tls(
        server_tls: Any = certificates.server, client_tls: Any = certificates.client, **options: Any
    ) -> AsyncIterator[ClientConnection]:
        async with serve(echo, "127.0.0.1", 0, ssl=server_tls(), **PATIENT) as server:
            url = f"wss://127.0.0.1:{port_of(server)}"
            async with connect(url, max_size=None, ssl=client_tls(), **options) as client:
                yield client

    def core_tls(**options: Any) -> AbstractAsyncContextManager[ClientConnection]:
        if app_loop != "tloop":
            pytest.skip("a TLSContext is for tloop's loops")
        return tls(certificates.core_server, certificates.core_client, **options)

    @asynccontextmanager
    async def unix(**options: Any) -> AsyncIterator[ClientConnection]:
        path = str(tmp_path / "ws.sock")
        async with (
            unix_serve(echo, path, **PATIENT),
            unix_connect(path, max_size=None, **options) as client,
        ):
            yield client

    ways: dict[str, Connected] = {"tcp": tcp, "tls": tls, "tls in C": core_tls, "unix": unix}
    return ways[request.param]


async def test_many_messages(connected: Connected) -> None:
    sent = [str(number) * (number % 50) for number in range(3000)]
    async with connected() as client:

        async def send_all() -> None:
            for message in sent:
                await client.send(message)

        async with asyncio.TaskGroup() as group:
            group.create_task(send_all())
            received = [await client.recv() for _ in sent]
    assert received == sent


@pytest.mark.parametrize("compression", [None, "deflate"])
async def test_large_messages(connected: Connected, compression: str | None) -> None:
    large = b"".join(blocks(4))
    async with connected(compression=compression) as client:
        for message in (large, large[: MB + 1].hex(), b"", ""):
            await client.send(message)
            assert await client.recv() == message


async def test_fragmented_message(connected: Connected) -> None:
    async with connected() as client:
        await client.send(blocks(3))
        pieces = b"".join(blocks(3))
        assert await client.recv() == pieces


async def test_ping(connected: Connected) -> None:
    async with connected(ping_interval=0.01) as client:
        pong = await client.ping()
        assert await pong >= 0
        await client.send("still there")
        assert await client.recv() == "still there"


@pytest.mark.parametrize(
    ("code", "error"),
    [(1000, ConnectionClosedOK), (4321, ConnectionClosedError)],
)
async def test_server_closes(connected: Connected, code: int, error: type[Exception]) -> None:
    async with connected() as client:
        await client.send(f"close {code}")
        with pytest.raises(error):
            await client.recv()
    assert (client.close_code, client.close_reason) == (code, "as asked")


async def test_client_closes(connected: Connected) -> None:
    async with connected() as client:
        await client.close(4000, "enough")
    assert (client.close_code, client.close_reason) == (4000, "enough")


async def test_connection_is_dropped(connected: Connected) -> None:
    async with connected() as client:
        await client.send("drop")
        with pytest.raises(ConnectionClosedError):
            await client.recv()
    assert client.close_code == 1006


async def test_receiving_is_cancelled(connected: Connected) -> None:
    async with connected() as client:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.recv(), 0.005)
        await client.send("after that")
        assert await client.recv() == "after that"


async def send_much(client: ClientConnection) -> None:
    for _ in range(200):
        await client.send(bytes(MB))


async def test_slow_reader_stops_the_writer(connected: Connected) -> None:
    """Backpressure: what the client does not read must not pile up, here or in the server."""
    async with connected(max_queue=1, compression=None) as client:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(send_much(client), 0.2)
        assert client.transport.get_write_buffer_size() < 4 * MB
        client.transport.abort()


async def test_server_shuts_down_under_its_clients() -> None:
    async with serve(echo, "127.0.0.1", 0) as server:
        port = port_of(server)
        clients = [await connect(f"ws://127.0.0.1:{port}") for _ in range(30)]
        server.close()
        await server.wait_closed()
        for client in clients:
            with pytest.raises(ConnectionClosedOK):
                await client.recv()
            assert client.close_code == 1001
            await client.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()
