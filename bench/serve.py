"""One benchmark server: ``serve.py MODE LOOP [--tls ENGINE] [--prime] [--unix PATH]``.

Listens on a free loopback port (or a Unix socket), prints ``ready <address>``, as ``load.c`` takes
it, and serves until it is killed. ``--probe`` only says which version of LOOP this interpreter has.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import signal
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import rows

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import ModuleType

# More than the largest message of any row, and below the 128 KiB from which glibc maps every
# block afresh: what is compared is the loops, not their users' choice of a receive size.
CHUNK = 100 * 1024
BACKLOG = 1024

CERTIFICATE = Path(__file__).parent.parent / "tests" / "tls" / "server.pem"
MODULES = {"tloop": "tloop_py"}  # every other loop is named like its module
FLOOR = "floor"  # floor.py: the least that a loop in Python can cost

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
RESPONSE = HEAD % len(rows.HELLO) + rows.HELLO
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


class PipeEcho(asyncio.Protocol):
    """What comes from one pipe goes into another."""

    def __init__(self, writer: asyncio.WriteTransport) -> None:
        self.writer = writer

    def data_received(self, data: bytes) -> None:
        self.writer.write(data)


class BufferedEcho(Connection, asyncio.BufferedProtocol):
    """Data comes into the protocol's own buffer."""

    def __init__(self) -> None:
        self.buffer = bytearray(CHUNK)
        self.view = memoryview(self.buffer)  # asyncio's TLS reads into slices of it

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.view

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


class FileServer(Connection, asyncio.Protocol):
    """Answers every request with one file."""

    def __init__(self, path: str) -> None:
        self.file = Path(path)
        self.writable = asyncio.Event()
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self.task = asyncio.ensure_future(self.answer())

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.writable.set()

    async def answer(self) -> None:
        loop = asyncio.get_running_loop()
        with self.file.open("rb") as file, contextlib.suppress(ConnectionError):
            self.transport.write(HEAD % os.stat(file.fileno()).st_size)
            try:
                await loop.sendfile(self.transport, file)
            except NotImplementedError:  # uvloop; this is what its users do instead
                await self.copy(file)

    async def copy(self, file: Any) -> None:
        while (data := file.read(CHUNK)) and not self.transport.is_closing():
            self.transport.write(data)
            await self.writable.wait()


class DatagramEcho(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.transport.sendto(data, address)


class DatagramCount(DatagramEcho):
    """Counts datagrams, and tells the number to whoever sends a single byte."""

    count = 0

    def datagram_received(self, data: bytes, address: Any) -> None:
        if len(data) == 1:
            self.transport.sendto(b"%d" % self.count, address)
        else:
            self.count += 1


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


def tls_context(engine: str | None) -> ssl.SSLContext | None:
    """A server's context: of the interpreter's OpenSSL, or of mbedTLS in tloop's C core."""
    if engine is None:
        return None
    kind = importlib.import_module("tloop_py").TLSContext if engine == "mbedtls" else ssl.SSLContext
    context: ssl.SSLContext = kind(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


def place(path: str | None) -> tuple[Any, ...]:
    """Where a loop's own server listens, as its first arguments. Not all take a socket."""
    return (path,) if path else ("127.0.0.1", 0)


def ready(address: str) -> None:
    print(f"ready {address}", flush=True)  # connections made from here on wait in the backlog


def address_of(server: Any) -> str:
    return "{}:{}".format(*server.sockets[0].getsockname())


async def forever() -> None:
    """Until the process is killed. Not by serve_forever(), with which rloop's server ends."""
    await asyncio.get_running_loop().create_future()


async def serve_by(args: argparse.Namespace, start: Any, what: Callable[..., Any]) -> None:
    options = {"backlog": BACKLOG, "ssl": tls_context(args.tls)}
    server = await start(what, *place(args.unix), **options)
    ready(f"unix:{args.unix}" if args.unix else address_of(server))
    await forever()


async def serve_protocol(args: argparse.Namespace, factory: Callable[[], Any]) -> None:
    loop = asyncio.get_running_loop()
    await serve_by(args, loop.create_unix_server if args.unix else loop.create_server, factory)


async def serve_streams(args: argparse.Namespace) -> None:
    start = asyncio.start_unix_server if args.unix else asyncio.start_server
    await serve_by(args, start, echo_stream)


async def serve_raw(args: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    sock = socket.create_server(place(None), backlog=BACKLOG)
    sock.setblocking(False)
    ready("{}:{}".format(*sock.getsockname()))
    async with asyncio.TaskGroup() as connections:
        while True:
            peer, _ = await loop.sock_accept(sock)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connections.create_task(echo_socket(peer))


async def serve_datagrams(factory: Callable[[], Any]) -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(factory, ("127.0.0.1", 0))
    ready("{}:{}".format(*transport.get_extra_info("sockname")))
    await forever()


def open_fifo(path: str, flags: int) -> Any:
    os.mkfifo(path)
    os.open(path, os.O_RDWR)  # stays: opening an end waits for nobody, and no end is the last one
    return open(os.open(path, flags), "rb" if flags == os.O_RDONLY else "wb", buffering=0)


async def serve_pipes(args: argparse.Namespace) -> None:
    """Echo from PATH.in to PATH.out."""
    loop = asyncio.get_running_loop()
    source, target = (
        open_fifo(f"{args.unix}.in", os.O_RDONLY),
        open_fifo(f"{args.unix}.out", os.O_WRONLY),
    )
    writer, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, target)
    await loop.connect_read_pipe(lambda: PipeEcho(writer), source)
    ready(f"fifo:{args.unix}")
    await forever()


async def serve_uvicorn(args: argparse.Namespace, body: bytes, kind: bytes) -> None:
    import uvicorn

    start = {"type": "http.response.start", "status": 200}
    start["headers"] = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start)
        await send({"type": "http.response.body", "body": body})

    http = "httptools" if importlib.util.find_spec("httptools") else "h11"  # on PyPy
    config = uvicorn.Config(app, http=http, lifespan="off", ws="none", access_log=False)
    config.host, config.port, config.log_level = *place(None), "warning"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready(address_of(self.servers[0]))

    await Server(config).serve()


async def serve_aiohttp(args: argparse.Namespace) -> None:
    from aiohttp import web

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=rows.HELLO)

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, *place(None), backlog=BACKLOG).start()
    ready("{}:{}".format(*runner.addresses[0]))
    await forever()


SERVE: dict[str, Callable[[argparse.Namespace], Coroutine[Any, Any, None]]] = {
    "protocol": lambda args: serve_protocol(args, Echo),
    "buffered": lambda args: serve_protocol(args, BufferedEcho),
    "http": lambda args: serve_protocol(args, Http),
    "file": lambda args: serve_protocol(args, lambda: FileServer(args.file)),
    "streams": serve_streams,
    "raw": serve_raw,
    "udp": lambda args: serve_datagrams(DatagramEcho),
    "udp-count": lambda args: serve_datagrams(DatagramCount),
    "pipes": serve_pipes,
    "uvicorn": lambda args: serve_uvicorn(args, rows.HELLO, b"text/plain"),
    "uvicorn-json": lambda args: serve_uvicorn(args, rows.JSON, b"application/json"),
    "aiohttp": serve_aiohttp,
}


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


def probe(name: str) -> dict[str, Any]:
    """The versions of a loop and of its interpreter, and which packages of the rows it has."""
    module = loop_module(name)
    version = getattr(module, "__version__", None)
    if version is None and name != "asyncio":
        version = importlib.metadata.version(module.__name__)
    python = f"{platform.python_implementation()} {platform.python_version()}"
    needed = {package for kind in rows.KINDS.values() for package in kind.needs} | rows.CLIENTS
    packages = sorted(package for package in needed if importlib.util.find_spec(package))
    return {"python": python, "version": version or "(standard library)", "packages": packages}


def main() -> None:
    parser = argparse.ArgumentParser(description="one benchmark server process")
    parser.add_argument("mode", choices=SERVE)
    parser.add_argument("loop", help="asyncio, uvloop, tloop or any module with new_event_loop()")
    parser.add_argument("--tls", choices=("ssl", "mbedtls"), help="serve TLS, by this engine")
    parser.add_argument("--unix", metavar="PATH", help="listen there instead of on a TCP port")
    parser.add_argument("--file", metavar="PATH", help="what mode `file` sends")
    parser.add_argument("--prime", action="store_true", help="prime glibc's allocator first")
    parser.add_argument("--probe", action="store_true", help="print the loop's version and exit")
    parser.add_argument("--lifetime", type=int, default=120, help="end after so many seconds")
    args = parser.parse_args()
    if args.probe:
        print(json.dumps(probe(args.loop)))
        return
    signal.alarm(args.lifetime)  # never outlive a parent that was killed
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if args.prime:
        prime_allocator()
    with asyncio.Runner(loop_factory=loop_module(args.loop).new_event_loop) as runner:
        runner.run(SERVE[args.mode](args))


if __name__ == "__main__":
    main()
