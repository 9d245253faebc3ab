"""Line chat: python chat.py PORT (0: any free one). What one guest writes, all others read."""

from __future__ import annotations

import asyncio
import itertools
import signal
import sys
from typing import ClassVar

import tloop_py


class Guest(asyncio.Protocol):
    """One connection; the class keeps the list of all of them."""

    present: ClassVar[list[Guest]] = []
    numbers = itertools.count(1)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.name = f"guest {next(self.numbers)}"
        self.rest = b""
        self.present.append(self)
        self.tell(b" joined")

    def data_received(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.tell(b": " + line)

    def connection_lost(self, exc: Exception | None) -> None:
        self.present.remove(self)
        self.tell(b" left")

    def tell(self, text: bytes) -> None:
        for guest in self.present:
            if guest is not self:
                guest.transport.write(self.name.encode() + text + b"\n")


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    server = await loop.create_server(Guest, "127.0.0.1", port)
    host, port = server.sockets[0].getsockname()
    print(f"listening on {host}:{port}", flush=True)
    async with server:
        await stop.wait()
        for guest in Guest.present:
            guest.transport.abort()


if __name__ == "__main__":
    tloop_py.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 7001))
