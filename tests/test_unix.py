"""Unix stream sockets: paths, abstract names, socket files, names and credentials of peers."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import AsyncioLog
from loopkit import Echo, Loop, Recorder, end_of, turns, until, warnings_seen

pytestmark = pytest.mark.usefixtures("loop")

SO_PEERCRED = getattr(socket, "SO_PEERCRED", 17)  # PyPy has no name for it

since_3_13 = pytest.mark.skipif(
    sys.version_info < (3, 13), reason="the file is removed since Python 3.13"
)


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


async def ask(loop: Loop, path: str | bytes, echoes: Echoes) -> Recorder:
    """Connect, say hello, hear it back, and end both sides."""
    transport, client = await loop.create_unix_connection(Recorder, path)  # type: ignore[arg-type]
    transport.write(b"hello")
    assert await client.received(5) == b"hello"
    transport.close()
    await end_of(client, *echoes.made)
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
    await end_of(client, *echoes.made)
    server.close()


async def test_names_of_every_form(loop: Loop, path: str) -> None:
    """A client may be bound, to a path, to an abstract name, or to one that the kernel chose."""
    echoes = Echoes()
    server = await loop.create_unix_server(echoes, path)
    abstract = f"\0tloop-{uuid.uuid4().hex}".encode()
    for name in (path + ".client", abstract, ""):
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(name)
        sock.connect(path)
        expected = sock.getsockname()
        transport, client = await loop.create_unix_connection(Recorder, sock=sock)
        await until(lambda: len(echoes.made) and echoes.made[-1].transport)
        assert transport.get_extra_info("sockname") == expected
        assert transport.get_extra_info("peername") == path
        assert echoes.made[-1].transport.get_extra_info("peername") == expected
        transport.close()
        await end_of(client, *echoes.made)
        assert echoes.made.pop().transport.get_extra_info("peername") == expected
    server.close()


async def test_a_name_need_not_be_text(loop: Loop, path: str) -> None:
    odd = os.fsencode(path) + b"-\xff\xfe"
    echoes = Echoes()
    server = await loop.create_unix_server(echoes, odd)  # type: ignore[arg-type]
    assert server.sockets[0].getsockname() == os.fsdecode(odd)
    client = await ask(loop, odd, echoes)
    assert client.transport.get_extra_info("peername") == os.fsdecode(odd)
    server.close()


async def test_a_pair_has_no_names(loop: Loop) -> None:
    near, far = socket.socketpair()
    with far:
        transport, client = await loop.create_unix_connection(Recorder, sock=near)
        assert transport.get_extra_info("peername") == ""
        assert transport.get_extra_info("sockname") == ""
        transport.abort()
        await end_of(client)


async def test_the_socket_tells_the_credentials_of_the_peer(loop: Loop, path: str) -> None:
    echoes = Echoes()
    server = await loop.create_unix_server(echoes, path)
    transport, client = await loop.create_unix_connection(Recorder, path)
    await until(lambda: echoes.made and echoes.made[0].transport)
    for side in (transport, echoes.made[0].transport):
        sock = side.get_extra_info("socket")
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERCRED, 12)
        assert struct.unpack("3i", raw) == (os.getpid(), os.geteuid(), os.getegid())
    transport.abort()
    await end_of(client, *echoes.made)
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


async def test_a_link_to_a_stale_socket_is_replaced(loop: Loop, path: str) -> None:
    """Not what it points to."""
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(path)
    link = path + ".link"
    os.symlink(path, link)
    server = await loop.create_unix_server(Echo, link)
    assert present(link)
    assert present(path)
    with pytest.raises(ConnectionRefusedError):  # nobody listens there
        await loop.create_unix_connection(Recorder, path)
    server.close()


async def test_the_text_of_errors(loop: Loop, path: str, asyncio_log: AsyncioLog) -> None:
    write_text(path, "precious")
    abstract = f"\0tloop-{uuid.uuid4().hex}"
    server = await loop.create_unix_server(Echo, abstract)
    for name in (path, os.fsencode(path), abstract):
        with pytest.raises(OSError, match="in use") as caught:
            await loop.create_unix_server(Echo, name)  # type: ignore[arg-type]
        assert caught.value.strerror == f"Address {name!r} is already in use"
    server.close()
    with pytest.raises(NotADirectoryError):
        await loop.create_unix_server(Echo, path + "/sock")
    asyncio_log.expect(f"Unable to check or remove stale UNIX socket '{path}/sock'")


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may do everything: be nobody for a while."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(me)


async def test_what_is_not_permitted(loop: Loop, path: str) -> None:
    server = await loop.create_unix_server(Echo, path)
    os.chmod(path, 0)
    folder = os.path.dirname(path)
    os.chmod(folder, 0o555)
    try:
        with unprivileged():
            with pytest.raises(PermissionError):
                await loop.create_unix_connection(Recorder, path)
            with pytest.raises(PermissionError):
                await loop.create_unix_server(Echo, path + ".other")
    finally:
        os.chmod(folder, 0o700)
    server.close()


async def test_a_stale_socket_that_may_not_be_removed(
    loop: Loop, path: str, asyncio_log: AsyncioLog
) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(path)
    os.chmod(os.path.dirname(path), 0o555)
    try:
        with unprivileged(), pytest.raises(OSError, match="is already in use"):
            await loop.create_unix_server(Echo, path)
    finally:
        os.chmod(os.path.dirname(path), 0o700)
    asyncio_log.expect("Unable to check or remove stale UNIX socket")


@since_3_13
@pytest.mark.parametrize("cleanup", [True, False])
async def test_the_socket_file_goes_with_the_server(loop: Loop, path: str, cleanup: bool) -> None:
    server = await loop.create_unix_server(
        Echo,
        path,
        cleanup_socket=cleanup,  # type: ignore[call-arg,unused-ignore]
    )
    server.close()
    assert present(path) is not cleanup


@since_3_13
async def test_another_servers_socket_file_is_left_alone(loop: Loop, path: str) -> None:
    first = await loop.create_unix_server(Echo, path)
    second = await loop.create_unix_server(Echo, path)  # replaces the file
    first.close()
    assert present(path)
    second.close()
    assert not present(path)


@since_3_13
async def test_every_kind_of_server_removes_its_file(loop: Loop, path: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    options: list[dict[str, Any]] = [
        {"sock": listener},
        {"path": Path(path)},
        {"path": os.fsencode(path)},
        {"path": path, "start_serving": False},
    ]
    for chosen in options:
        server = await loop.create_unix_server(Echo, **chosen)
        assert present(path)
        server.close()
        await server.wait_closed()
        assert not present(path)


@since_3_13
async def test_a_file_that_is_gone_or_replaced_is_no_concern(loop: Loop, path: str) -> None:
    server = await loop.create_unix_server(Echo, path)
    os.unlink(path)
    server.close()
    server = await loop.create_unix_server(Echo, path)
    os.rename(path, path + ".moved")  # keeps the inode that ours had
    write_text(path, "somebody else's")
    server.close()
    assert read_text(path) == "somebody else's"
    assert present(path + ".moved")


@since_3_13
async def test_a_file_that_cannot_be_removed_is_logged(
    loop: Loop, path: str, asyncio_log: AsyncioLog
) -> None:
    server = await loop.create_unix_server(Echo, path)
    os.chmod(os.path.dirname(path), 0o555)
    try:
        with unprivileged():
            server.close()
    finally:
        os.chmod(os.path.dirname(path), 0o700)
    asyncio_log.expect(f"Unable to clean up listening UNIX socket '{path}'")
    assert present(path)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="the file is removed since Python 3.13")
async def test_the_socket_file_stays(loop: Loop, path: str) -> None:
    server = await loop.create_unix_server(Echo, path)
    server.close()
    assert present(path)


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
    await end_of(client, *echoes.made)
    server.close()


async def test_a_socket_pair_becomes_two_transports(loop: Loop) -> None:
    near, far = socket.socketpair()
    ours, _ = await loop.create_unix_connection(Recorder, sock=near)
    _, echo = await loop.create_unix_connection(Echo, sock=far)
    ours.write(b"x" * 1_000_000)
    recorder: Any = ours.get_protocol()
    assert await recorder.received(1_000_000) == b"x" * 1_000_000
    ours.close()
    await end_of(recorder, echo)


async def test_start_serving_can_wait(loop: Loop, path: str) -> None:
    echoes = Echoes()
    server = await loop.create_unix_server(echoes, path, start_serving=False)
    with pytest.raises(ConnectionRefusedError):
        await loop.create_unix_connection(Recorder, path)
    await server.start_serving()
    await ask(loop, path, echoes)
    server.close()


async def test_half_a_connection(loop: Loop, path: str) -> None:
    class Patient(Recorder):
        def __init__(self) -> None:
            super().__init__(keep_open_after_eof=True)

    made: list[Recorder] = []

    def factory() -> Recorder:
        made.append(Patient())
        return made[-1]

    server = await loop.create_unix_server(factory, path)
    transport, client = await loop.create_unix_connection(Recorder, path)
    transport.write(b"x" * 1_000_000)
    transport.write_eof()
    await until(lambda: made and "eof" in made[0].calls)
    assert len(made[0].data) == 1_000_000
    made[0].transport.write(b"y" * 1_000_000)
    made[0].transport.close()
    await end_of(client, *made)
    assert client.data == b"y" * 1_000_000
    for protocol in (client, *made):  # which of the two writes had to wait is the kernel's business
        calls = [call for call in protocol.calls if call not in ("pause", "resume")]
        assert calls[-2:] == ["eof", "lost"]
        assert protocol.error is None
    server.close()


async def test_a_peer_that_leaves_what_it_got_unread(loop: Loop) -> None:
    """A reset, on a Unix socket: who reads gets ECONNRESET."""
    near, far = socket.socketpair()
    transport, client = await loop.create_unix_connection(Recorder, sock=near)
    transport.write(b"never read")
    await turns()
    far.close()
    await end_of(client)
    assert client.calls == ["made", "lost"]
    assert isinstance(client.error, ConnectionResetError)


async def test_writing_to_a_peer_that_has_left(loop: Loop) -> None:
    near, far = socket.socketpair()
    transport, client = await loop.create_unix_connection(Recorder, sock=near)
    transport.pause_reading()
    far.close()
    transport.write(b"into the void")
    await end_of(client)
    assert isinstance(client.error, BrokenPipeError)


@contextmanager
def crowded(path: str) -> Iterator[socket.socket]:
    """A listener whose backlog is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(0)
        with suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(path)
        yield listener


@pytest.mark.loops("tloop")
async def test_a_full_backlog_is_waited_for(loop: Loop, path: str) -> None:
    """asyncio takes the kernel's EAGAIN for a connection that is under way, and then for one."""
    with crowded(path) as listener:
        connecting = loop.create_task(loop.create_unix_connection(Recorder, path))
        given_up = loop.create_task(loop.create_unix_connection(Recorder, path))
        for _ in range(5):
            await asyncio.sleep(0.001)
        assert not connecting.done()
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        listener.accept()[0].close()
        transport, client = await connecting
        assert transport.get_extra_info("peername") == path
        transport.abort()
        await end_of(client)


@pytest.mark.loops("tloop")
async def test_a_listener_that_leaves_with_a_full_backlog(loop: Loop, path: str) -> None:
    with crowded(path) as listener:
        connecting = loop.create_task(loop.create_unix_connection(Recorder, path))
        await turns()
        assert not connecting.done()
        listener.close()
        with pytest.raises(ConnectionRefusedError):
            await connecting


@pytest.mark.parametrize("method", ["create_unix_connection", "create_unix_server"])
async def test_contradicting_arguments_are_refused(loop: Loop, path: str, method: str) -> None:
    create = getattr(loop, method)
    contradiction = pytest.raises(ValueError, match="can not be specified at the same time")
    with socket.socket(socket.AF_UNIX) as sock, contradiction:
        await create(Recorder, path, sock=sock)
    for family, kind in (
        (socket.AF_INET, socket.SOCK_STREAM),
        (socket.AF_UNIX, socket.SOCK_DGRAM),
        (socket.AF_UNIX, socket.SOCK_SEQPACKET),
    ):
        wrong = pytest.raises(ValueError, match="A UNIX Domain Stream Socket was expected")
        with socket.socket(family, kind) as other, wrong:
            await create(Recorder, sock=other)
    with pytest.raises(ValueError, match="specified"):
        await create(Recorder)
    with pytest.raises(TypeError):
        await create(Recorder, 1)


async def test_a_factory_that_fails_fails_the_connect(loop: Loop, path: str) -> None:
    """B4: the socket is closed."""

    def broken() -> Recorder:
        raise LookupError("no protocol")

    server = await loop.create_unix_server(Echo, path)
    with warnings_seen(), pytest.raises(LookupError, match="no protocol"):
        await loop.create_unix_connection(broken, path)
    server.close()
