"""The Starlette application that uvicorn serves in test_uvicorn.py."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from appkit import blocks, type_of_loop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    print(f"the loop is {type_of_loop(asyncio.get_running_loop())}")
    yield
    print("lifespan ended")


async def plain(request: Request) -> Response:
    return PlainTextResponse("hello, world")


async def describe(request: Request) -> Response:
    loop = type_of_loop(asyncio.get_running_loop())
    return JSONResponse({"loop": loop, "query": dict(request.query_params)})


async def echo(request: Request) -> Response:
    return Response(await request.body(), media_type="application/octet-stream")


async def download(request: Request) -> Response:
    return StreamingResponse(all_blocks(request.path_params["count"]))


async def all_blocks(count: int) -> AsyncIterator[bytes]:
    for block in blocks(count):
        yield block


async def upload(request: Request) -> Response:
    digest = hashlib.blake2b()
    async for piece in request.stream():
        digest.update(piece)
    return PlainTextResponse(digest.hexdigest())


class Converse:
    """Answers each piece of the request body while the next is still to come."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        more = True
        while more:
            piece = await receive()
            more = piece.get("more_body", False)
            answer = piece.get("body", b"").upper()
            await send({"type": "http.response.body", "body": answer, "more_body": more})


async def fail(request: Request) -> Response:
    raise LookupError("raised on purpose")


async def websocket(socket: WebSocket) -> None:
    """Echo texts and bytes; `close CODE` asks for that close code."""
    offered = socket.scope["subprotocols"]
    await socket.accept(subprotocol="echo" if "echo" in offered else None)
    while (message := await socket.receive())["type"] != "websocket.disconnect":
        text = message.get("text")
        if text and text.startswith("close "):
            return await socket.close(int(text.split()[1]), "as asked")
        if text is not None:
            await socket.send_text(text)
        else:
            await socket.send_bytes(message["bytes"])
    print(f"client closed with {message['code']}")


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/", plain),
        Route("/describe", describe),
        Route("/echo", echo, methods=["POST"]),
        Route("/download/{count:int}", download),
        Route("/upload", upload, methods=["POST"]),
        Route("/converse", Converse(), methods=["POST"]),
        Route("/fail", fail),
        WebSocketRoute("/ws", websocket),
    ],
)
