"""The aiohttp application of test_aiohttp.py; `aiohttp_app.py LOOP FOLDER` serves it by itself."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import sys
from contextlib import suppress
from pathlib import Path

from aiohttp import WSMsgType, web
from appkit import MB, blocks, type_of_loop
from loopkit import FACTORIES

SHUTDOWN = web.AppKey("shutdown", asyncio.Event)


async def describe(request: web.Request) -> web.Response:
    """Tells about the loop and the connection, so that a client sees whether it was kept."""
    assert request.transport
    peer = request.transport.get_extra_info("peername")
    loop = type_of_loop(asyncio.get_running_loop())
    return web.json_response({"loop": loop, "port": peer[1] if peer else None})


async def echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read())


async def download(request: web.Request) -> web.StreamResponse:
    """All blocks: with a length when the client asks for that, else chunked."""
    count = int(request.match_info["count"])
    response = web.StreamResponse()
    if "sized" in request.query:
        response.content_length = count * MB
    else:
        response.enable_chunked_encoding()
    await response.prepare(request)
    with suppress(ConnectionError):  # the client may go away
        for block in blocks(count):
            await response.write(block)
        await response.write_eof()
    return response


async def upload(request: web.Request) -> web.Response:
    digest = hashlib.blake2b()
    async for piece in request.content.iter_any():
        digest.update(piece)
    return web.Response(text=digest.hexdigest())


async def websocket(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(max_msg_size=0)
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        else:
            await socket.send_bytes(message.data)
    return socket


async def until_shutdown(request: web.Request) -> web.StreamResponse:
    """A request that is still under way when the server shuts down."""
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"first")
    await request.app[SHUTDOWN].wait()
    with suppress(ConnectionError):  # the client may have gone away
        await response.write(b"last")
    return response


async def tell_shutdown(app: web.Application) -> None:
    print("shutting down")
    app[SHUTDOWN].set()


def application(folder: Path) -> web.Application:
    """The application; what lies in the folder is served below /static/."""
    app = web.Application(client_max_size=1 << 30)
    app[SHUTDOWN] = asyncio.Event()
    app.on_shutdown.append(tell_shutdown)
    app.router.add_get("/", describe)
    app.router.add_post("/echo", echo)
    app.router.add_get("/download/{count}", download)
    app.router.add_post("/upload", upload)
    app.router.add_get("/ws", websocket)
    app.router.add_get("/until-shutdown", until_shutdown)
    app.router.add_static("/static/", folder)
    return app


def main(loop_name: str, folder: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"port {listener.getsockname()[1]}")
    loop = FACTORIES[loop_name]()
    web.run_app(application(Path(folder)), sock=listener, loop=loop, access_log=None)


if __name__ == "__main__":
    main(*sys.argv[1:])
