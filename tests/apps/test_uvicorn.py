"""uvicorn as its users start it, in a process of its own; httpx and websockets are its clients."""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import requests
from appkit import (
    COMPLAINT,
    MB,
    Certificates,
    Program,
    blocks,
    digest_of,
    python_program,
    same_loop,
)
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

# httptools has no wheel for PyPy.
PARSERS = ["h11"] if sys.implementation.name == "pypy" else ["httptools", "h11"]
CURL = shutil.which("curl")
LOOPS = {"tloop": "tloop_py:new_event_loop", "asyncio": "asyncio", "uvloop": "uvloop"}


@contextmanager
def uvicorn(app_loop: str, *options: str) -> Iterator[Program]:
    """A server that is ready; the test ends it, or it is ended here and must end well."""
    command = ["-m", "uvicorn", "starlette_app:app", "--loop", LOOPS[app_loop]]
    with python_program(*command, "--ws", "websockets-sansio", *options) as server:
        loop = server.expect(r"the loop is (\S+)")[1]
        server.expect("Uvicorn running on")
        assert same_loop(loop, app_loop)
        yield server
        if server.process.poll() is None:
            server.end()
        assert "lifespan ended" in server.output


def port_of(server: Program) -> int:
    return int(server.expect(r"Uvicorn running on http://127\.0\.0\.1:(\d+)")[1])


@pytest.fixture(scope="module", params=PARSERS)
def server(request: pytest.FixtureRequest, app_loop: str) -> Iterator[Program]:
    with uvicorn(app_loop, "--port", "0", "--http", request.param) as server:
        yield server


@pytest.fixture
def port(server: Program) -> Iterator[int]:
    """The server's port; what it writes during the test must be no complaint."""
    before = len(server.lines)
    yield port_of(server)
    complaints = [line for line in server.lines[before:] if COMPLAINT.search(line)]
    assert not complaints


def client(port: int) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30)


async def block_stream(count: int) -> AsyncIterator[bytes]:
    for block in blocks(count):
        yield block


async def test_plain_and_json(port: int, app_loop: str) -> None:
    async with client(port) as http:
        plain = await http.get("/")
        described = (await http.get("/describe", params={"a": "1"})).json()
    assert plain.text == "hello, world"
    assert plain.headers["content-type"] == "text/plain; charset=utf-8"
    assert described["query"] == {"a": "1"}
    assert same_loop(described["loop"], app_loop)


async def test_many_requests_on_many_connections(port: int) -> None:
    async def session(http: httpx.AsyncClient, number: int) -> None:
        for turn in range(10):
            body = f"{number}/{turn}".encode()
            assert (await http.post("/echo", content=body)).content == body

    async with client(port) as http, asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(session(http, number))


@pytest.mark.parametrize("size", [0, 1, 65_536, 5 * MB + 1])
async def test_bodies_are_echoed(port: int, size: int) -> None:
    body = (b"%08d" * (size // 8 + 1) % tuple(range(size // 8 + 1)))[:size]
    async with client(port) as http:
        assert (await http.post("/echo", content=body)).content == body


async def test_streaming_response(port: int) -> None:
    digest = hashlib.blake2b()
    async with client(port) as http, http.stream("GET", "/download/20") as response:
        assert response.headers["transfer-encoding"] == "chunked"
        async for piece in response.aiter_raw():
            digest.update(piece)
    assert digest.hexdigest() == digest_of(20)


async def test_streaming_request(port: int) -> None:
    async with client(port) as http:
        response = await http.post("/upload", content=block_stream(20))
    assert response.text == digest_of(20)


async def test_request_and_response_stream_at_the_same_time(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST /converse HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head)
    for word in (b"one", b"two", b"three"):
        writer.write(b"%x\r\n%b\r\n" % (len(word), word))
        await reader.readuntil(word.upper() + b"\r\n")
    writer.write(b"0\r\n\r\n")
    assert await reader.readuntil(b"0\r\n\r\n")
    writer.close()
    await writer.wait_closed()


async def test_pipelined_requests_are_answered_in_order(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for number in range(50):
        writer.write(b"GET /describe?n=%d HTTP/1.1\r\nHost: x\r\n\r\n" % number)
    for number in range(50):
        await reader.readuntil(b'{"n":"%d"}}' % number)
    writer.close()
    await writer.wait_closed()


async def test_client_that_goes_away_harms_nobody(port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /download/100 HTTP/1.1\r\nHost: x\r\n\r\n")
    await writer.drain()
    writer.transport.abort()
    async with client(port) as http:
        assert (await http.get("/")).text == "hello, world"


async def test_bad_request(port: int, server: Program) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"this is no HTTP\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    writer.close()
    await writer.wait_closed()
    warning = await asyncio.to_thread(server.expect, "WARNING: +Invalid HTTP request received.\n")
    server.lines.remove(warning[0])


async def test_websocket_echo(port: int) -> None:
    async with connect(f"ws://127.0.0.1:{port}/ws", subprotocols=["echo"], max_size=None) as ws:  # type: ignore[list-item]
        assert ws.subprotocol == "echo"
        for number in range(500):
            await ws.send(str(number))
        assert [await ws.recv() for _ in range(500)] == [str(n) for n in range(500)]
        large = next(blocks(1)) * 8
        await ws.send(large)
        assert await ws.recv() == large


async def test_websocket_close_codes(port: int, server: Program) -> None:
    async with connect(f"ws://127.0.0.1:{port}/ws") as ws:
        await ws.send("close 4321")
        with pytest.raises(ConnectionClosed):
            await ws.recv()
    assert (ws.close_code, ws.close_reason) == (4321, "as asked")
    async with connect(f"ws://127.0.0.1:{port}/ws") as ws:
        await ws.close(4000)
    await asyncio.to_thread(server.expect, "client closed with 4000")


def test_older_websocket_protocol(app_loop: str) -> None:
    """`--ws websockets` is the implementation that uses StreamReader and tasks."""
    with uvicorn(app_loop, "--port", "0", "--ws", "websockets") as server:
        asyncio.run(echo_once(port_of(server)))


async def echo_once(port: int) -> None:
    async with connect(f"ws://127.0.0.1:{port}/ws") as ws:
        await ws.send("once")
        assert await ws.recv() == "once"


async def test_error_in_the_application(app_loop: str) -> None:
    with uvicorn(app_loop, "--port", "0") as server:
        for path, status in (("/fail", 500), ("/", 200)):
            async with client(port_of(server)) as http:
                assert (await http.get(path)).status_code == status
        assert "LookupError: raised on purpose" in server.output


async def test_unix_socket(app_loop: str, tmp_path: Path) -> None:
    path = str(tmp_path / "uvicorn.sock")
    transport = httpx.AsyncHTTPTransport(uds=path)
    with uvicorn(app_loop, "--uds", path) as server:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            assert (await http.post("/upload", content=block_stream(5))).text == digest_of(5)
        assert not COMPLAINT.search(server.output)


async def test_tls(app_loop: str, certificates: Certificates) -> None:
    """uvicorn leaves TLS to asyncio, httpx to anyio, and websockets to asyncio again."""
    files = ["--ssl-keyfile", str(certificates.key), "--ssl-certfile", str(certificates.chain)]
    trust = certificates.client()
    with uvicorn(app_loop, "--port", "0", *files) as server:
        port = server.expect(r"Uvicorn running on https://127\.0\.0\.1:(\d+)")[1]
        async with connect(f"wss://127.0.0.1:{port}/ws", ssl=trust) as ws:
            await ws.send("in secret")
            assert await ws.recv() == "in secret"
        async with httpx.AsyncClient(base_url=f"https://127.0.0.1:{port}", verify=trust) as http:
            assert (await http.get("/")).text == "hello, world"
            assert (await http.post("/upload", content=block_stream(20))).text == digest_of(20)
        server.end()
        assert not COMPLAINT.search(server.output)


CORE_TLS = """
import sys, uvicorn
from appkit import Certificates
key, chain, root = sys.argv[1:]
certificates = Certificates.__new__(Certificates)
certificates.key, certificates.chain, certificates.root = key, chain, root
config = uvicorn.Config("starlette_app:app", port=0, loop="tloop_py:new_event_loop")
config.load()
config.ssl = certificates.core_server()
uvicorn.Server(config).run()
"""


@pytest.mark.skipif(CURL is None, reason="needs the curl command")
async def test_tls_in_c(app_loop: str, certificates: Certificates) -> None:
    """A TLSContext of our own instead of the files that uvicorn would load."""
    if app_loop != "tloop":
        pytest.skip("a TLSContext is for tloop's loops")
    files = [str(path) for path in (certificates.key, certificates.chain, certificates.root)]
    trust = certificates.client()
    with python_program("-c", CORE_TLS, *files) as server:
        port = server.expect(r"Uvicorn running on https://127\.0\.0\.1:(\d+)")[1]
        url = f"https://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, verify=trust) as http:
            assert (await http.get("/")).text == "hello, world"
            assert (await http.post("/upload", content=block_stream(20))).text == digest_of(20)
        assert (await asyncio.to_thread(requests.get, url, verify=files[2])).text == "hello, world"
        with pytest.raises(requests.exceptions.SSLError):  # it does not trust the server
            await asyncio.to_thread(requests.get, url)
        for options, expected in ((["--cacert", files[2]], "hello, world"), ([], "")):
            shown = await asyncio.to_thread(curl, url, *options)
            assert shown == expected  # nothing of a server that it does not trust
        server.end()
        assert not COMPLAINT.search(server.output)


def curl(url: str, *options: str) -> str:
    assert CURL
    command = [CURL, "--silent", "--max-time", "20", *options, url]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout


def ended_by(how: signal.Signals) -> int:
    """uvicorn lets SIGTERM end the process in the usual way, and takes Ctrl-C as a wish."""
    return 0 if how == signal.SIGINT else -how


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)
async def test_graceful_shutdown(app_loop: str, how: signal.Signals) -> None:
    """A request that is under way is finished; an idle connection is closed; no new one comes."""
    with uvicorn(app_loop, "--port", "0") as server:
        port = port_of(server)
        idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n01234")
        await wait_until_served(port)
        server.process.send_signal(how)
        await asyncio.to_thread(server.expect, "Waiting for connections to close")
        assert await idle_reader.read() == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
        writer.write(b"56789")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert answer.endswith(hashlib.blake2b(b"0123456789").hexdigest().encode())
        for side in (idle_writer, writer):
            side.close()
            await side.wait_closed()
        assert await asyncio.to_thread(server.wait) == ended_by(how)
        assert "Finished server process" in server.output
        assert not COMPLAINT.search(server.output)


async def wait_until_served(port: int) -> None:
    """What was sent on earlier connections has been received when a later one is answered."""
    async with client(port) as http:
        await http.get("/")


async def test_worker_processes_share_the_socket(app_loop: str) -> None:
    with uvicorn(app_loop, "--port", "0", "--workers", "2") as server:
        await asyncio.to_thread(server.expect, r"(?s)(Application startup complete.*){2}")
        async with client(port_of(server)) as http:
            assert (await http.post("/upload", content=block_stream(5))).text == digest_of(5)
        assert await asyncio.to_thread(server.end) == 0
        assert server.output.count("lifespan ended") == 2
        # The parent process forgets to close its listening socket, and warns of that on any loop.
        assert not re.search("Traceback|ERROR|never", server.output)
