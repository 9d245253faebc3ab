"""TCP echo server: python echo.py PORT (0: any free one). Ends on SIGINT or SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import sys

import tloop_py


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()  # a slow reader must not fill us
    writer.close()


async def main(port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = await asyncio.start_server(echo, "127.0.0.1", port)
    host, port = server.sockets[0].getsockname()
    print(f"listening on {host}:{port}", flush=True)
    async with server:
        await stop.wait()


if __name__ == "__main__":
    tloop_py.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 7000))
