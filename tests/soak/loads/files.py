"""Files sent through transports and sockets."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, BinaryIO

from tests.soak.field import Field, Round, bounded
from tests.soak.loads.sockets import connected_sockets
from tests.soak.loads.streams import hang_up
from tests.soak.wires import serving_on_all

FILE_BYTES = 1_000_003


def _make_file(field: Field) -> str:
    path = field.path(".bin")
    path.write_bytes(field.patterns(random.Random(0))[0].take(FILE_BYTES))
    return str(path)


def _piece(rng: random.Random) -> tuple[int, int]:
    """Where to begin, and how many bytes."""
    offset = rng.randrange(FILE_BYTES)
    return offset, rng.randint(1, FILE_BYTES - offset)


def _digest(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return hashlib.sha256(file.read(count)).digest()


async def _take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A line with a number, that many bytes; answers with their digest."""
    try:
        left = int(await reader.readline() or b"0")
        digest = hashlib.sha256()
        while left and (data := await reader.read(min(left, 1 << 16))):
            left -= len(data)
            digest.update(data)
        writer.write(digest.digest())
    except ConnectionError:
        pass  # the client was cancelled, and hung up
    finally:
        await hang_up(writer)


@asynccontextmanager
async def sendfile(field: Field) -> AsyncIterator[Round]:
    loop = asyncio.get_running_loop()
    path = _make_file(field)

    async def one_round(rng: random.Random) -> int:
        offset, count = _piece(rng)
        reader, writer = await rng.choice(wires).connection(field)
        with open(path, "rb") as file:  # noqa: ASYNC230 -- in a temporary folder
            try:
                writer.write(b"%d\n" % count)
                sent = await loop.sendfile(writer.transport, file, offset, count)
                assert sent == count, f"sendfile sent {sent} of {count} bytes"
                answer = await bounded(reader.readexactly(32), "the digest")
                assert answer == _digest(file, offset, count), "other bytes than the file's"
            finally:
                await hang_up(writer)
        return count

    async with serving_on_all(field, _take, streams=True) as wires:
        yield one_round


async def _hash_until_end(loop: Any, sock: socket.socket) -> bytes:
    digest = hashlib.sha256()
    while data := await loop.sock_recv(sock, 1 << 18):
        digest.update(data)
    return digest.digest()


@asynccontextmanager
async def sock_sendfile(field: Field) -> AsyncIterator[Round]:
    loop = asyncio.get_running_loop()
    path = _make_file(field)

    async def one_round(rng: random.Random) -> int:
        offset, count = _piece(rng)
        with open(path, "rb") as file:  # noqa: ASYNC230 -- in a temporary folder
            async with connected_sockets() as (near, far), asyncio.TaskGroup() as tasks:
                hashing = tasks.create_task(_hash_until_end(loop, far))
                sent = await loop.sock_sendfile(near, file, offset, count)
                near.shutdown(socket.SHUT_WR)
                assert sent == count, f"sock_sendfile sent {sent} of {count} bytes"
                got = await bounded(hashing, "the end of the file")
                assert got == _digest(file, offset, count), "other bytes than the file's"
        return count

    yield one_round
