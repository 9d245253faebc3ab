"""One benchmark server: ``servers.py MODE LOOP [--prime] [--unix PATH]``.

Listens on a free loopback port (or a Unix socket), prints ``ready <port or path>`` and serves until
it is killed. ``--probe`` only says which version of LOOP this interpreter has.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import importlib
import importlib.metadata
import json
import platform
import signal
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import ModuleType

# More than the largest message of any row, and below the 128 KiB from which glibc maps every
# block afresh: what is compared is the loops, not their users' choice of a receive size.
CHUNK = 100 * 1024
BACKLOG = 1024

MODULES = {"tloop": "tloop_py"}  # every other loop is named like its module

BODY = b"Hello from an asyncio server\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s" % (
    len(BODY),
    BODY,
)
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Connection(asyncio.BaseProtocol):
    """Remembers its transport."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it


class Echo(Connection, asyncio.Protocol):
    """Data comes as bytes."""

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class BufferedEcho(Connection, asyncio.BufferedProtocol):
    """Data comes into the protocol's own buffer."""

    def __init__(self) -> None:
        self.buffer = bytearray(CHUNK)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        # A copy: asyncio keeps a reference to what it could not send at once.
        self.transport.write(self.buffer[:nbytes])


class Http(Connection, asyncio.Protocol):
    """A small HTTP/1.1 server: keep-alive, pipelining, GET of ``/`` only."""

    def __init__(self) -> None:
        self.pending = b""

    def data_received(self, data: bytes) -> None:
        *requests, self.pending = (self.pending + data).split(b"\r\n\r\n")
        for request in requests:
            self.answer(request)
        if len(self.pending) > CHUNK:
            self.transport.abort()

    def answer(self, request: bytes) -> None:
        line, _, headers = request.partition(b"\r\n")
        parts = line.split(b" ")
        if len(parts) != 3 or parts[0] != b"GET":
            self.transport.write(BAD_REQUEST)
            self.transport.close()
            return
        self.transport.write(RESPONSE if parts[1] == b"/" else NOT_FOUND)
        if b"connection: close" in headers.lower():
            self.transport.close()


async def echo_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):  # the client just leaves when it has measured
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    writer.close()


async def echo_socket(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with sock, contextlib.suppress(ConnectionError):
        while data := await loop.sock_recv(sock, CHUNK):
            await loop.sock_sendall(sock, data)


def tls_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(__file__).parent.parent / "tests" / "tls" / "server.pem")
    return context


def listener(path: str | None) -> socket.socket:
    if path is None:
        return socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen(BACKLOG)
    return sock


async def serve_protocol(
    sock: socket.socket, factory: Callable[[], Any], tls: ssl.SSLContext | None = None
) -> None:
    loop = asyncio.get_running_loop()
    if sock.family == socket.AF_UNIX:
        server = await loop.create_unix_server(factory, sock=sock, backlog=BACKLOG, ssl=tls)
    else:
        server = await loop.create_server(factory, sock=sock, backlog=BACKLOG, ssl=tls)
    await server.serve_forever()


async def serve_streams(sock: socket.socket, tls: ssl.SSLContext | None = None) -> None:
    unix = sock.family == socket.AF_UNIX
    start = asyncio.start_unix_server if unix else asyncio.start_server
    server = await start(echo_stream, sock=sock, backlog=BACKLOG, ssl=tls)
    await server.serve_forever()


async def serve_raw(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    async with asyncio.TaskGroup() as connections:
        while True:
            peer, _ = await loop.sock_accept(sock)
            if peer.family != socket.AF_UNIX:
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connections.create_task(echo_socket(peer))


SERVE: dict[str, Callable[[socket.socket], Awaitable[None]]] = {
    "protocol": lambda sock: serve_protocol(sock, Echo),
    "buffered": lambda sock: serve_protocol(sock, BufferedEcho),
    "http": lambda sock: serve_protocol(sock, Http),
    "streams": serve_streams,
    "raw": serve_raw,
    "tls": lambda sock: serve_protocol(sock, Echo, tls_context()),
    "tls-buffered": lambda sock: serve_protocol(sock, BufferedEcho, tls_context()),
    "tls-streams": lambda sock: serve_streams(sock, tls_context()),
}


async def serve(mode: str, path: str | None) -> None:
    sock = listener(path)
    address = sock.getsockname() if path else sock.getsockname()[1]
    print(f"ready {address}", flush=True)  # connections made from here on wait in the backlog
    await SERVE[mode](sock)


def prime_allocator() -> None:
    """Allocate and free one 8 MiB block, after which glibc keeps more memory for reuse.

    The first tloop of a process does so by itself; the "primed" rows give it to the peers as well.
    """
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    libc.free(libc.malloc(ctypes.c_size_t(8 << 20)))


def loop_module(name: str) -> ModuleType:
    return importlib.import_module(MODULES.get(name, name))


def probe(name: str) -> dict[str, str]:
    module = loop_module(name)
    version = getattr(module, "__version__", None)
    if version is None and name != "asyncio":
        version = importlib.metadata.version(module.__name__)
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return {"python": python, "version": version or "(standard library)"}


def main() -> None:
    parser = argparse.ArgumentParser(description="one benchmark server process")
    parser.add_argument("mode", choices=SERVE)
    parser.add_argument("loop", help="asyncio, uvloop, tloop or any module with new_event_loop()")
    parser.add_argument("--unix", metavar="PATH", help="listen there instead of on a TCP port")
    parser.add_argument("--prime", action="store_true", help="prime glibc's allocator first")
    parser.add_argument("--probe", action="store_true", help="print the loop's version and exit")
    parser.add_argument("--lifetime", type=int, default=120, help="end after so many seconds")
    args = parser.parse_args()
    if args.probe:
        print(json.dumps(probe(args.loop)))
        return
    signal.alarm(args.lifetime)  # never outlive a parent that was killed
    if args.prime:
        prime_allocator()
    with asyncio.Runner(loop_factory=loop_module(args.loop).new_event_loop) as runner:
        runner.run(serve(args.mode, args.unix))


if __name__ == "__main__":
    main()
