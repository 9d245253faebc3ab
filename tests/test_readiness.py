"""add_reader and add_writer: level-triggered, independent of each other, on any pollable fd."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from loopkit import Loop, Recorder, connected, tcp_sockets, turns, until

pytestmark = pytest.mark.usefixtures("loop")

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        yield near, far


def one_turn(loop: Loop) -> None:
    loop.stop()
    loop.run_forever()


@pytest.mark.parametrize("as_number", [True, False])
def test_a_reader_is_called_while_there_is_data(loop: Loop, pair: Pair, as_number: bool) -> None:
    near, far = pair
    fd = near.fileno() if as_number else near
    calls: list[str] = []
    loop.add_reader(fd, calls.append, "readable")
    one_turn(loop)
    assert calls == []
    far.send(b"x")
    one_turn(loop)
    one_turn(loop)
    assert calls == ["readable"] * 2  # level-triggered: the byte is still there
    near.recv(1)
    one_turn(loop)
    assert len(calls) == 2
    assert loop.remove_reader(fd)


async def test_a_silent_socket_is_not_readable(loop: Loop, pair: Pair) -> None:
    """B1: the callback waits for data, however long."""
    near, far = pair
    calls: list[str] = []
    loop.add_reader(near, calls.append, "readable")
    await asyncio.sleep(0.01)
    assert calls == []
    far.send(b"x")
    await until(lambda: calls)
    loop.remove_reader(near)


def test_reader_and_writer_of_one_fd_are_independent(loop: Loop, pair: Pair) -> None:
    """B2: both are called, and removing one keeps the other."""
    near, far = pair
    calls: list[str] = []
    loop.add_reader(near, calls.append, "read")
    loop.add_writer(near, calls.append, "write")
    far.send(b"x")
    one_turn(loop)
    assert sorted(calls) == ["read", "write"]
    assert loop.remove_writer(near)
    calls.clear()
    one_turn(loop)
    assert calls == ["read"]
    loop.add_writer(near, calls.append, "write")
    assert loop.remove_reader(near)
    calls.clear()
    one_turn(loop)
    assert calls == ["write"]
    assert loop.remove_writer(near)


def test_remove_tells_whether_there_was_one(loop: Loop, pair: Pair) -> None:
    near, _ = pair
    for add, remove in (
        (loop.add_reader, loop.remove_reader),
        (loop.add_writer, loop.remove_writer),
    ):
        assert remove(near) is False
        add(near, print)
        assert remove(near.fileno()) is True
        assert remove(near) is False


def test_adding_again_replaces_the_callback(loop: Loop, pair: Pair) -> None:
    near, _ = pair
    calls: list[str] = []
    loop.add_writer(near, calls.append, "first")
    loop.add_writer(near, calls.append, "second")
    one_turn(loop)
    assert calls == ["second"]
    loop.remove_writer(near)


def test_a_removed_callback_is_not_called_though_it_is_ready(loop: Loop, pair: Pair) -> None:
    near, far = pair
    calls: list[str] = []

    def first(me: socket.socket, other: socket.socket) -> None:
        calls.append("called")
        loop.remove_writer(other)
        loop.remove_writer(me)

    loop.add_writer(near, first, near, far)
    loop.add_writer(far, first, far, near)
    one_turn(loop)
    assert calls == ["called"]


def test_end_of_file_is_readable(loop: Loop, pair: Pair) -> None:
    near, far = pair
    calls: list[bytes] = []
    loop.add_reader(near, lambda: calls.append(near.recv(1)))
    far.close()
    one_turn(loop)
    assert calls == [b""]
    loop.remove_reader(near)


def test_a_broken_pipe_wakes_the_writer(loop: Loop) -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with open(write_end, "wb", buffering=0) as pipe:
        while pipe.write(b"x" * 65536):
            """Fill it."""
        calls: list[str] = []
        loop.add_writer(pipe, calls.append, "woken")
        one_turn(loop)
        assert calls == []
        os.close(read_end)
        one_turn(loop)
        assert calls == ["woken"]
        loop.remove_writer(pipe)


def test_pipes_and_objects_with_fileno_can_be_watched(loop: Loop) -> None:
    read_end, write_end = os.pipe()
    with open(read_end, "rb", buffering=0) as reader, open(write_end, "wb", buffering=0) as writer:
        got: list[bytes] = []
        loop.add_reader(reader, lambda: got.append(reader.read(10)))
        writer.write(b"through")
        one_turn(loop)
        loop.remove_reader(reader)
    assert got == [b"through"]


def uses_poll(loop: Loop) -> bool:
    """poll() takes every file and reports a closed fd, where epoll refuses and forgets."""
    return getattr(loop, "backend", "epoll") == "poll"


def test_a_regular_file_is_refused_or_always_ready(loop: Loop) -> None:
    if uses_poll(loop):
        calls: list[str] = []
        with tempfile.TemporaryFile() as file:
            loop.add_reader(file, calls.append, "readable")
            one_turn(loop)
            assert loop.remove_reader(file)
        assert calls == ["readable"]
        return
    with tempfile.TemporaryFile() as file:
        with pytest.raises(PermissionError):
            loop.add_reader(file, print)
        with pytest.raises(PermissionError):
            loop.add_writer(file, print)
        assert not loop.remove_reader(file)


def test_a_number_is_used_again_after_its_fd_was_closed(loop: Loop) -> None:
    calls: list[str] = []
    for name in ("first", "second"):
        near, far = socket.socketpair()
        number = near.fileno()
        loop.add_reader(number, calls.append, name)
        far.send(b"x")
        one_turn(loop)
        loop.remove_reader(number)
        near.close()
        far.close()
    assert calls == ["first", "second"]


def test_an_fd_closed_while_watched_does_no_harm(loop: Loop) -> None:
    """The kernel forgets a closed fd; its number may come back as another file."""
    calls: list[str] = []
    near, far = socket.socketpair()
    number = near.fileno()
    loop.add_reader(number, calls.append, "closed")
    near.close()
    far.close()
    one_turn(loop)
    loop.remove_reader(number)
    near, far = socket.socketpair()
    with near, far:
        assert number in (near.fileno(), far.fileno())
        sides = {near.fileno(): far, far.fileno(): near}
        loop.add_reader(number, calls.append, "new")
        sides[number].send(b"x")
        one_turn(loop)
        assert calls == (["closed", "new"] if uses_poll(loop) else ["new"])
        loop.remove_reader(number)


async def test_a_reader_gets_no_event_of_the_socket_that_had_its_number_before(loop: Loop) -> None:
    calls: list[str] = []
    used, peer = tcp_sockets()
    number = used.fileno()
    receiving = loop.create_task(loop.sock_recv(used, 1))
    await turns()
    peer.send(b"x")
    await receiving

    def exchange() -> None:
        used.close()
        pairs.extend(socket.socketpair())
        assert number in [sock.fileno() for sock in pairs]
        loop.add_reader(number, calls.append, "though nothing was sent")

    pairs: list[socket.socket] = []
    loop.call_soon(exchange)
    peer.send(b"for the closed socket, polled in the same tick")
    await turns()
    assert calls == []
    loop.remove_reader(number)
    for sock in (peer, *pairs):
        sock.close()


def test_a_duplicate_of_a_watched_fd_can_be_watched_too(loop: Loop, pair: Pair) -> None:
    near, far = pair
    calls: list[str] = []
    with near.dup() as twin:
        loop.add_reader(near, calls.append, "near")
        loop.add_reader(twin, calls.append, "twin")
        far.send(b"x")
        one_turn(loop)
        assert sorted(calls) == ["near", "twin"]
        for sock in (near, twin):
            assert loop.remove_reader(sock)


def test_many_fds_are_ready_at_once(loop: Loop) -> None:
    pairs = [socket.socketpair() for _ in range(300)]
    ready: set[int] = set()

    def readable(number: int) -> None:
        ready.add(number)
        pairs[number][0].recv(1)

    for number, (near, far) in enumerate(pairs):
        loop.add_reader(near, readable, number)
        far.send(b"x")
    loop.run_until_complete(until(lambda: len(ready) == 300))
    for near, far in pairs:
        loop.remove_reader(near)
        near.close()
        far.close()


async def test_a_failing_callback_stays_registered(loop: Loop, pair: Pair) -> None:
    near, far = pair
    contexts: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: contexts.append(context))

    def fail() -> None:
        raise LookupError("broken")

    loop.add_reader(near, fail)
    far.send(b"x")
    await until(lambda: len(contexts) >= 2)
    assert loop.remove_reader(near)
    assert isinstance(contexts[0]["exception"], LookupError)


METHODS = ["add_reader", "remove_reader", "add_writer", "remove_writer"]


@pytest.mark.parametrize("method", METHODS)
async def test_the_fd_of_a_transport_is_refused(loop: Loop, method: str) -> None:
    call = getattr(loop, method)
    arguments = [print] if method.startswith("add") else []
    async with connected() as (transport, _, far):
        sock = transport.get_extra_info("socket")
        for fd in (sock, sock.fileno()):
            with pytest.raises(RuntimeError, match="is used by transport"):
                call(fd, *arguments)
        far.send(b"still works")
        await transport.get_protocol().received(11)


@pytest.mark.parametrize("method", METHODS)
async def test_the_fd_of_a_transport_is_free_after_its_end(loop: Loop, method: str) -> None:
    async with connected() as (transport, protocol, far):
        number = transport.get_extra_info("socket").fileno()
        transport.close()
        await until(lambda: protocol.lost)
        with far.dup() as other:
            os.dup2(other.fileno(), number)
            try:
                loop.add_writer(number, print)
                assert loop.remove_writer(number)
            finally:
                os.close(number)


async def test_sock_operations_on_the_fd_of_a_transport_are_refused(loop: Loop) -> None:
    near, far = tcp_sockets()
    with far:
        transport, protocol = await loop.create_connection(Recorder, sock=near)
        with pytest.raises(RuntimeError, match="is used by transport"):
            await loop.sock_recv(near, 1)
        transport.abort()
        await until(lambda: protocol.lost)


BAD_FDS = [
    pytest.param(-1, ValueError, id="negative"),
    pytest.param("text", ValueError, id="text"),
    pytest.param(object(), ValueError, id="object"),
    pytest.param(None, ValueError, id="None"),
    pytest.param(1.5, ValueError, id="float"),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("fd", "error"), BAD_FDS)
def test_what_is_no_fd_is_refused(loop: Loop, method: str, fd: Any, error: type[Exception]) -> None:
    arguments = [print] if method.startswith("add") else []
    with pytest.raises(error):
        getattr(loop, method)(fd, *arguments)


@pytest.mark.parametrize("number", [987_654, 2_000_000_000])
def test_a_number_that_is_no_open_fd_is_refused(loop: Loop, number: int) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        loop.add_reader(number, print)
    assert not loop.remove_reader(number)
