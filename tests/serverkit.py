"""What the tests of servers share: a factory that remembers its protocols, served clients."""

from __future__ import annotations

from typing import Any

from loopkit import Echo, Loop, Recorder, until


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
