"""Unix stream sockets: paths, abstract names, stale socket files."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopkit import Echo, Loop, Recorder, until, warnings_seen

pytestmark = pytest.mark.usefixtures("loop")


@pytest.fixture
def path() -> Iterator[str]:
    """A path short enough for a socket name."""
    with tempfile.TemporaryDirectory(prefix="tl-") as folder:
        yield str(Path(folder) / "sock")


def present(path: str) -> bool:
    return os.path.exists(path)


def write_text(path: str, text: str) -> None:
    Path(path).write_text(text, encoding="ascii")


def read_text(path: str) -> str:
    return Path(path).read_text(encoding="ascii")


class Echoes:
    """A protocol factory that remembers what it made."""

    def __init__(self) -> None:
        self.made: list[Echo] = []

    def __call__(self) -> Echo:
        self.made.append(Echo())
        return self.made[-1]

    @property
    def all_lost(self) -> bool:
        return bool(self.made) and all(echo.lost for echo in self.made)


async def ask(loop: Loop, path: str | bytes, echoes: Echoes) -> Recorder:
    """Connect, say hello, hear it back, and end both sides."""
    transport, client = await loop.create_unix_connection(Recorder, path)  # type: ignore[arg-type]
    transport.write(b"hello")
    assert await client.received(5) == b"hello"
    transport.close()
    await until(lambda: client.lost and echoes.all_lost)
    return client


async def test_client_and_server_echo(loop: Loop, path: str) -> None:
    echoes = Echoes()
    server = await loop.create_unix_server(echoes, path)
    client = await ask(loop, path, echoes)
    assert client.calls == ["made", "data", "lost"]
    assert echoes.made[0].calls == ["made", "data", "eof", "lost"]
    server.close()


async def test_streams_over_unix_sockets(loop: Loop, path: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(300_000))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_unix_server(serve, path)
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"x" * 300_000)
    assert await reader.read(-1) == b"x" * 300_000
    writer.close()
    await writer.wait_closed()
    server.close()


async def test_extra_info_names_the_path(loop: Loop, path: str) -> None:
    echoes = Echoes()
    server = await loop.create_unix_server(echoes, path)
    assert server.sockets[0].getsockname() == path
    transport, client = await loop.create_unix_connection(Recorder, path)
    assert transport.get_extra_info("peername") == path
    assert transport.get_extra_info("sockname") == ""
    assert transport.get_extra_info("socket").family == socket.AF_UNIX
    await until(lambda: echoes.made and echoes.made[0].transport)
    assert echoes.made[0].transport.get_extra_info("sockname") == path
    assert echoes.made[0].transport.get_extra_info("peername") == ""
    transport.abort()
    await until(lambda: client.lost and echoes.all_lost)
    server.close()


@pytest.mark.parametrize("kind", [os.fsencode, Path])
async def test_bytes_and_path_objects_are_paths(loop: Loop, path: str, kind: Any) -> None:
    echoes = Echoes()
    server = await loop.create_unix_server(echoes, kind(path))
    await ask(loop, kind(path), echoes)
    server.close()


@pytest.mark.parametrize("as_bytes", [False, True])
async def test_abstract_names_leave_no_file(loop: Loop, as_bytes: bool) -> None:
    text = f"\0tloop-{uuid.uuid4().hex}"
    name: Any = text.encode() if as_bytes else text
    echoes = Echoes()
    server = await loop.create_unix_server(echoes, name)
    assert server.sockets[0].getsockname() == text.encode()
    client = await ask(loop, name, echoes)
    assert client.transport.get_extra_info("peername") == text.encode()
    server.close()


async def test_an_abstract_name_in_use_is_refused(loop: Loop) -> None:
    name = f"\0tloop-{uuid.uuid4().hex}"
    server = await loop.create_unix_server(Echo, name)
    with pytest.raises(OSError, match="use") as caught:
        await loop.create_unix_server(Echo, name)
    assert caught.value.errno == errno.EADDRINUSE
    server.close()


async def test_a_stale_socket_file_is_replaced(loop: Loop, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(path)
    echoes = Echoes()
    server = await loop.create_unix_server(echoes, path)
    await ask(loop, path, echoes)
    server.close()


async def test_a_file_that_is_no_socket_is_not_touched(loop: Loop, path: str) -> None:
    write_text(path, "precious")
    with pytest.raises(OSError, match="in use") as caught:
        await loop.create_unix_server(Echo, path)
    assert caught.value.errno == errno.EADDRINUSE
    assert read_text(path) == "precious"


@pytest.mark.skipif(sys.version_info < (3, 13), reason="the file is removed since Python 3.13")
@pytest.mark.parametrize("cleanup", [True, False])
async def test_the_socket_file_goes_with_the_server(loop: Loop, path: str, cleanup: bool) -> None:
    server = await loop.create_unix_server(
        Echo,
        path,
        cleanup_socket=cleanup,  # type: ignore[call-arg,unused-ignore]
    )
    server.close()
    assert present(path) is not cleanup


@pytest.mark.skipif(sys.version_info < (3, 13), reason="the file is removed since Python 3.13")
async def test_another_servers_socket_file_is_left_alone(loop: Loop, path: str) -> None:
    first = await loop.create_unix_server(Echo, path)
    second = await loop.create_unix_server(Echo, path)  # replaces the file
    first.close()
    assert present(path)
    second.close()
    assert not present(path)


async def test_a_path_that_is_too_long_is_refused(loop: Loop, path: str) -> None:
    long = path + "x" * 120
    with pytest.raises(OSError, match="AF_UNIX path too long"):
        await loop.create_unix_server(Echo, long)
    with pytest.raises(OSError, match="AF_UNIX path too long"):
        await loop.create_unix_connection(Recorder, long)


async def test_connecting_where_no_one_listens_fails(loop: Loop, path: str) -> None:
    with pytest.raises(FileNotFoundError):
        await loop.create_unix_connection(Recorder, path)
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(path)
    with pytest.raises(ConnectionRefusedError):
        await loop.create_unix_connection(Recorder, path)


async def test_a_folder_that_does_not_exist_is_an_error(loop: Loop, path: str) -> None:
    with pytest.raises(FileNotFoundError):
        await loop.create_unix_server(Echo, path + "/missing/sock")


async def test_existing_sockets_can_be_used(loop: Loop, path: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    echoes = Echoes()
    server = await loop.create_unix_server(echoes, sock=listener)
    client_socket = socket.socket(socket.AF_UNIX)
    client_socket.connect(path)
    transport, client = await loop.create_unix_connection(Recorder, sock=client_socket)
    transport.write(b"hello")
    assert await client.received(5) == b"hello"
    transport.close()
    await until(lambda: client.lost and echoes.all_lost)
    server.close()


async def test_a_socket_pair_becomes_two_transports(loop: Loop) -> None:
    near, far = socket.socketpair()
    ours, _ = await loop.create_unix_connection(Recorder, sock=near)
    _, echo = await loop.create_unix_connection(Echo, sock=far)
    ours.write(b"x" * 1_000_000)
    recorder: Any = ours.get_protocol()
    assert await recorder.received(1_000_000) == b"x" * 1_000_000
    ours.close()
    await until(lambda: recorder.lost and echo.lost)


async def test_start_serving_can_wait(loop: Loop, path: str) -> None:
    echoes = Echoes()
    server = await loop.create_unix_server(echoes, path, start_serving=False)
    with pytest.raises(ConnectionRefusedError):
        await loop.create_unix_connection(Recorder, path)
    await server.start_serving()
    await ask(loop, path, echoes)
    server.close()


@pytest.mark.parametrize("method", ["create_unix_connection", "create_unix_server"])
async def test_contradicting_arguments_are_refused(loop: Loop, path: str, method: str) -> None:
    create = getattr(loop, method)
    with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_INET) as other:
        with pytest.raises(ValueError, match="can not be specified at the same time"):
            await create(Recorder, path, sock=sock)
        with pytest.raises(ValueError, match="UNIX Domain Stream Socket"):
            await create(Recorder, sock=other)
    with pytest.raises(ValueError, match="specified"):
        await create(Recorder)


async def test_a_factory_that_fails_fails_the_connect(loop: Loop, path: str) -> None:
    """B4: the socket is closed."""

    def broken() -> Recorder:
        raise LookupError("no protocol")

    server = await loop.create_unix_server(Echo, path)
    with warnings_seen(), pytest.raises(LookupError, match="no protocol"):
        await loop.create_unix_connection(broken, path)
    server.close()
