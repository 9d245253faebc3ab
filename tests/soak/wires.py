"""The ways in which a client reaches a server: TCP, Unix sockets, and TLS over both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.soak.field import SERVER_NAME, Field


@dataclass(frozen=True)
class Wire:
    """One server, and how to connect to it; what is given comes on top of that."""

    serve: Callable[..., Any]  # of the loop, or of asyncio's streams
    connect: Callable[..., Any]
    address: tuple[Any, ...]
    tls: bool

    def connection(self, field: Field, *factory: Any) -> Any:
        """To await: connects with a protocol factory, or gives streams without one."""
        options: dict[str, Any] = {}
        if self.tls:
            options = {"ssl": field.client_tls, "server_hostname": SERVER_NAME}
        return self.connect(*factory, *self.address, **options)


@asynccontextmanager
async def serving(
    field: Field, accept: Callable[..., Any], *, unix: bool, tls: bool, streams: bool = False
) -> AsyncIterator[Wire]:
    """A server for a protocol factory or, with streams, for a callback of asyncio.start_server."""
    wire = _wire(field, unix=unix, tls=tls, streams=streams)
    options = {"ssl": field.server_tls} if tls else {}
    server = await _started(wire.serve(accept, *wire.address, **options))
    if not unix:
        address = server.sockets[0].getsockname()
        wire = Wire(wire.serve, wire.connect, address, tls)
    try:
        yield wire
    finally:
        server.close()
        await server.wait_closed()


async def _started(starting: Any) -> Any:
    """A cancelled create_server would lose a server that is listening already, on any loop."""
    task = asyncio.ensure_future(starting)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        (await task).close()
        raise


def _wire(field: Field, *, unix: bool, tls: bool, streams: bool) -> Wire:
    loop = asyncio.get_running_loop()
    address: tuple[Any, ...] = (str(field.path(".sock")),) if unix else ("127.0.0.1", 0)
    if streams and unix:
        return Wire(asyncio.start_unix_server, asyncio.open_unix_connection, address, tls)
    if streams:
        return Wire(asyncio.start_server, asyncio.open_connection, address, tls)
    if unix:
        return Wire(loop.create_unix_server, loop.create_unix_connection, address, tls)
    return Wire(loop.create_server, loop.create_connection, address, tls)


@asynccontextmanager
async def serving_on_all(
    field: Field, accept: Callable[..., Any], *, streams: bool = False
) -> AsyncIterator[list[Wire]]:
    """One server for each kind of wire."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                serving(field, accept, unix=unix, tls=tls, streams=streams)
            )
            for unix in (False, True)
            for tls in (False, True)
        ]
