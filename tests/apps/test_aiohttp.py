"""aiohttp's server and client: in one process, plain and with TLS, and in two processes."""

from __future__ import annotations

import asyncio
import hashlib
import io
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp_app import application
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

LARGE = 100  # blocks of 1 MiB

Served = Callable[[], AbstractAsyncContextManager[aiohttp.ClientSession]]


@pytest.fixture(scope="session")
def static_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("static")
    folder.joinpath("noise.bin").write_bytes(b"".join(blocks(9)))
    folder.joinpath("index.html").write_text("<p>hello</p>")
    return folder


@asynccontextmanager
async def serving(folder: Path, context: ssl.SSLContext | None) -> AsyncIterator[str]:
    """The application on this loop; gives its URL."""
    runner = web.AppRunner(application(folder), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        yield f"{'https' if context else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def program(loop_name: str, folder: Path) -> AsyncIterator[tuple[Program, str]]:
    """The application in a process of its own; it must end without a complaint."""
    with python_program("aiohttp_app.py", loop_name, str(folder)) as server:
        await asyncio.to_thread(server.expect, "Running on")
        port = server.expect(r"port (\d+)")[1]
        yield server, f"http://127.0.0.1:{port}"
        if "shutting down" not in server.output:
            server.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0
        assert not COMPLAINT.search(server.output)


@pytest.fixture(params=["plain", "tls", "tls in C", "two processes"])
def served(
    request: pytest.FixtureRequest, app_loop: str, static_folder: Path, certificates: Certificates
) -> Served:
    """Opens a client session to the application, wherever that runs."""
    if request.param == "tls in C" and app_loop != "tloop":
        pytest.skip("a TLSContext is for tloop's loops")
    contexts = {"tls": certificates.server, "tls in C": certificates.core_server}

    @asynccontextmanager
    async def opened() -> AsyncIterator[aiohttp.ClientSession]:
        if request.param == "two processes":
            async with program(app_loop, static_folder) as (_, url), session(url) as http:
                yield http
        else:
            context = contexts[request.param]() if request.param in contexts else None
            tls = certificates if context else None
            async with serving(static_folder, context) as url, session(url, tls) as http:
                yield http

    return opened


def session(url: str, tls: Certificates | None = None) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(ssl=tls.client() if tls else True)
    return aiohttp.ClientSession(url, connector=connector, raise_for_status=True)


async def hash_of(response: aiohttp.ClientResponse) -> str:
    digest = hashlib.blake2b()
    async for piece in response.content.iter_any():
        digest.update(piece)
    return digest.hexdigest()


async def block_stream(count: int) -> AsyncIterator[bytes]:
    for block in blocks(count):
        yield block


async def test_connection_is_kept(served: Served, app_loop: str) -> None:
    async with served() as http:
        answers = []
        for _ in range(100):
            async with http.get("/") as response:
                answers.append(await response.json())
    assert same_loop(answers[0]["loop"], app_loop)
    assert len({answer["port"] for answer in answers}) == 1


async def test_many_connections(served: Served) -> None:
    async def requests(number: int) -> None:
        for turn in range(10):
            body = f"{number}/{turn}".encode() * 1000
            async with http.post("/echo", data=body) as response:
                assert await response.read() == body

    async with served() as http, asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(requests(number))


@pytest.mark.parametrize("query", ["", "?sized"], ids=["chunked", "sized"])
async def test_large_download(served: Served, query: str) -> None:
    async with served() as http, http.get(f"/download/{LARGE}{query}") as response:
        chunked = response.headers.get("Transfer-Encoding") == "chunked"
        assert chunked == (not query)
        assert await hash_of(response) == digest_of(LARGE)


async def test_large_chunked_upload(served: Served) -> None:
    async with served() as http, http.post("/upload", data=block_stream(LARGE)) as response:
        assert response.request_info.headers["Transfer-Encoding"] == "chunked"
        assert await response.text() == digest_of(LARGE)


async def test_upload_of_one_piece(served: Served) -> None:
    body = io.BytesIO(b"".join(blocks(9)))
    async with served() as http, http.post("/upload", data=body) as response:
        assert await response.text() == digest_of(9)


async def test_static_file(served: Served) -> None:
    """aiohttp sends files by `loop.sendfile`."""
    async with served() as http:
        async with http.get("/static/noise.bin") as response:
            assert response.content_length == 9 * MB
            assert await hash_of(response) == digest_of(9)
        async with http.get("/static/noise.bin", headers={"Range": "bytes=0-7"}) as response:
            assert response.status == 206
            assert await response.read() == bytes(8)
        async with http.get("/static/index.html") as response:
            assert (response.content_type, await response.read()) == ("text/html", b"<p>hello</p>")


async def test_websocket(served: Served) -> None:
    async with served() as http, http.ws_connect("/ws", max_msg_size=0) as socket:
        for number in range(200):
            await socket.send_str(str(number))
        assert [await socket.receive_str() for _ in range(200)] == [str(n) for n in range(200)]
        large = next(blocks(1)) * 4
        await socket.send_bytes(large)
        assert await socket.receive_bytes() == large
        await socket.close(code=4000)
    assert socket.close_code == 1000  # the server's answer


async def test_client_that_goes_away_harms_nobody(served: Served) -> None:
    async with served() as http:
        response = await http.get(f"/download/{LARGE}")
        await response.content.readexactly(10)
        response.close()
        async with http.get("/") as response:
            assert response.status == 200


async def test_download_that_is_cancelled(served: Served) -> None:
    async with served() as http:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read_for_ever(http), 0.01)
        async with http.get("/") as response:
            assert response.status == 200


async def read_for_ever(http: aiohttp.ClientSession) -> None:
    async with http.get("/until-shutdown") as response:
        await response.read()


async def test_unix_socket(static_folder: Path, tmp_path: Path) -> None:
    runner = web.AppRunner(application(static_folder), access_log=None)
    await runner.setup()
    path = str(tmp_path / "aiohttp.sock")
    await web.UnixSite(runner, path).start()
    connector = aiohttp.UnixConnector(path)
    async with (
        aiohttp.ClientSession("http://localhost", connector=connector) as http,
        http.post("/upload", data=block_stream(9)) as response,
    ):
        assert await response.text() == digest_of(9)
    await runner.cleanup()


async def test_wrong_certificate_is_refused(
    static_folder: Path, certificates: Certificates
) -> None:
    async with serving(static_folder, certificates.server()) as url:
        async with aiohttp.ClientSession() as http:
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await http.get(url)
        async with session(url, certificates) as http, http.get("/") as response:
            assert response.status == 200


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)
async def test_graceful_shutdown(app_loop: str, static_folder: Path, how: signal.Signals) -> None:
    """`web.run_app` catches signals with `add_signal_handler` and finishes what is under way."""
    async with program(app_loop, static_folder) as (server, url), session(url) as http:
        async with http.get("/until-shutdown") as response:
            assert await response.content.readexactly(5) == b"first"
            server.process.send_signal(how)
            await asyncio.to_thread(server.expect, "shutting down")
            assert await response.read() == b"last"
        with pytest.raises(aiohttp.ClientConnectorError):
            await http.get("/")
