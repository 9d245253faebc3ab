"""The sock_* methods: one operation on a caller's non-blocking socket, and its cancelling."""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import functools
import os
import socket
import ssl
import tempfile
import weakref
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from loopkit import REFCOUNTS, Loop, collect, read_all, stats, tcp_sockets, turns, until

pytestmark = pytest.mark.usefixtures("loop")

Pair = list[socket.socket]


def lend(*sockets: socket.socket) -> Iterator[Pair]:
    """Closed and forgotten after the test: the loop remembers a socket while the object lives."""
    pair = list(sockets)
    yield pair
    while pair:
        pair.pop().close()


@pytest.fixture
def tcp() -> Iterator[Pair]:
    yield from lend(*tcp_sockets())


@pytest.fixture
def udp() -> Iterator[Pair]:
    yield from lend(*(udp_socket() for _ in range(2)))


def udp_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind(("127.0.0.1", 0))
    return sock


# --- receiving ------------------------------------------------------------------------------


async def test_recv_gives_what_is_there_already(loop: Loop, tcp: Pair) -> None:
    near, far = tcp
    far.send(b"hello")
    await until(lambda: near.recv(1, socket.MSG_PEEK))
    assert await loop.sock_recv(near, 3) == b"hel"
    assert await loop.sock_recv(near, 100) == b"lo"


async def test_recv_waits_for_data(loop: Loop, tcp: Pair) -> None:
    """B1: not before there is some."""
    near, far = tcp
    receiving = loop.create_task(loop.sock_recv(near, 100))
    await asyncio.sleep(0.005)
    assert not receiving.done()
    far.send(b"later")
    assert await receiving == b"later"


async def test_recv_gives_nothing_at_end_of_file(loop: Loop, tcp: Pair) -> None:
    near, far = tcp
    far.send(b"last")
    far.close()
    assert await loop.sock_recv(near, 100) == b"last"
    assert await loop.sock_recv(near, 100) == b""
    assert await loop.sock_recv(near, 100) == b""


async def test_recv_into_fills_the_buffer_from_its_start(loop: Loop, tcp: Pair) -> None:
    near, far = tcp
    buffer = bytearray(b"." * 8)
    receiving = loop.create_task(loop.sock_recv_into(near, buffer))
    await turns()
    far.send(b"hello")
    assert await receiving == 5
    assert buffer == b"hello..."
    buffer.append(1)  # BufferError if the loop still held it
    far.send(b"hello")
    assert await loop.sock_recv_into(near, memoryview(buffer)[2:4]) == 2
    assert buffer[:5] == b"heheo"


async def test_many_receives_one_after_the_other(loop: Loop, tcp: Pair) -> None:
    near, far = tcp
    for number in range(500):
        message = b"%d" % number
        if number % 2:
            far.send(message)
            assert await loop.sock_recv(near, 100) == message
        else:
            receiving = loop.create_task(loop.sock_recv(near, 100))
            await asyncio.sleep(0)
            far.send(message)
            assert await receiving == message


async def test_a_reset_is_raised(loop: Loop, tcp: Pair) -> None:
    near, far = tcp
    receiving = loop.create_task(loop.sock_recv(near, 100))
    await turns()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    far.close()
    with pytest.raises(ConnectionResetError):
        await receiving


async def test_recvfrom_tells_the_sender(loop: Loop, udp: Pair) -> None:
    near, far = udp
    receiving = loop.create_task(loop.sock_recvfrom(near, 100))
    await turns()
    far.sendto(b"late", near.getsockname())
    assert await receiving == (b"late", far.getsockname())
    far.sendto(b"early", near.getsockname())
    assert await loop.sock_recvfrom(near, 100) == (b"early", far.getsockname())


async def test_recvfrom_into_fills_the_buffer_and_tells_the_sender(loop: Loop, udp: Pair) -> None:
    near, far = udp
    buffer = bytearray(10)
    receiving = loop.create_task(loop.sock_recvfrom_into(near, buffer))
    await turns()
    far.sendto(b"hello", near.getsockname())
    assert await receiving == (5, far.getsockname())
    assert buffer[:5] == b"hello"
    far.sendto(b"again", near.getsockname())
    assert await loop.sock_recvfrom_into(near, buffer, 2) == (2, far.getsockname())


async def test_empty_datagrams_are_data(loop: Loop, udp: Pair) -> None:
    near, far = udp
    assert await loop.sock_sendto(far, b"", near.getsockname()) == 0
    assert await loop.sock_recvfrom(near, 100) == (b"", far.getsockname())


@pytest.mark.skipif(not REFCOUNTS, reason="PyPy's socket asks the kernel for no byte, and waits")
async def test_receiving_nothing_needs_no_data(loop: Loop, tcp: Pair) -> None:
    """Also when the loop knows that there is none."""
    near, far = tcp
    for _ in range(2):
        assert await loop.sock_recv(near, 0) == b""
        assert await loop.sock_recv_into(near, bytearray()) == 0
        assert await loop.sock_recv_into(near, memoryview(bytearray(4))[2:2]) == 0
        receiving = loop.create_task(loop.sock_recv(near, 100))
        await turns()
        far.send(b"some")
        assert await receiving == b"some"


WRONG: dict[str, Callable[[Any, socket.socket], Any]] = {
    "text": lambda loop, sock: loop.sock_recv(sock, "1"),
    "negative": lambda loop, sock: loop.sock_recv(sock, -1),
    "bytes": lambda loop, sock: loop.sock_recv_into(sock, b"read only"),
    "view": lambda loop, sock: loop.sock_recv_into(sock, memoryview(b"read only")),
    "gaps": lambda loop, sock: loop.sock_recv_into(sock, memoryview(bytearray(9))[::2]),
    "None": lambda loop, sock: loop.sock_recvfrom(sock, None),
    "no buffer": lambda loop, sock: loop.sock_recvfrom_into(sock, 5),
    "long": lambda loop, sock: loop.sock_recvfrom_into(sock, bytearray(5), 6),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
async def test_wrong_arguments_need_no_data(
    loop: Loop, tcp: Pair, call: Callable[[Any, socket.socket], Any]
) -> None:
    """Also when the loop knows that there is none."""
    near, far = tcp
    receiving = loop.create_task(loop.sock_recv(near, 100))
    await turns()
    far.send(b"some")
    await receiving
    with pytest.raises((TypeError, ValueError, BufferError)):
        await call(loop, near)


# --- sending ----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
async def test_sendall_sends_all(loop: Loop, tcp: Pair, wrap: Callable[[bytes], Any]) -> None:
    near, far = tcp
    data = bytes(range(256)) * 8192
    sending = loop.create_task(loop.sock_sendall(near, wrap(data)))
    got = bytearray()
    while len(got) < len(data):
        got += await loop.sock_recv(far, 1 << 16)
    await sending
    assert got == data


async def test_sendall_of_nothing_returns(loop: Loop, tcp: Pair) -> None:
    await loop.sock_sendall(tcp[0], b"")


@pytest.mark.loops("tloop")
async def test_sendall_counts_bytes_and_not_items(loop: Loop, tcp: Pair) -> None:
    """asyncio counts items, and never ends."""
    near, far = tcp
    data = array.array("i", range(500_000))
    sending = loop.create_task(loop.sock_sendall(near, data))
    assert await read_all(far, len(data) * 4) == data.tobytes()
    await sending
    await loop.sock_sendall(near, data[:3])
    assert await read_all(far, 12) == data[:3].tobytes()


async def test_sendall_to_a_closed_peer_raises(loop: Loop, tcp: Pair) -> None:
    near, far = tcp
    sending = loop.create_task(loop.sock_sendall(near, b"x" * (4 << 20)))
    await turns()
    far.close()
    with pytest.raises(ConnectionError):
        await sending


async def test_sendto_gives_the_count(loop: Loop, udp: Pair) -> None:
    near, far = udp
    assert await loop.sock_sendto(near, b"hello", far.getsockname()) == 5
    assert await loop.sock_recvfrom(far, 100) == (b"hello", near.getsockname())


async def test_sendto_waits_for_room(loop: Loop) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="tl-") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as near,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far,
    ):
        far.bind(f"{folder}/far")
        near.connect(f"{folder}/far")
        for sock in (near, far):
            sock.setblocking(False)
        sent = 0
        try:
            while True:
                near.send(b"x")
                sent += 1
        except BlockingIOError:
            waiting = loop.create_task(loop.sock_sendto(near, b"y", f"{folder}/far"))
        await turns()
        assert not waiting.done(), waiting.exception()
        for _ in range(sent):
            assert await loop.sock_recv(far, 1) == b"x"
        assert await waiting == 1
        assert await loop.sock_recv(far, 1) == b"y"


async def test_sendto_waits_for_room_that_others_took(loop: Loop) -> None:
    """The kernel does not tell when a Unix socket has room that this one is not connected to."""
    with (
        tempfile.TemporaryDirectory(prefix="tl-") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as near,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far,
    ):
        far.bind(f"{folder}/far")
        for sock in (near, other, far):
            sock.setblocking(False)
        taken = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                taken += other.sendto(b"x", f"{folder}/far")
        waiting = loop.create_task(loop.sock_sendto(near, b"y", f"{folder}/far"))
        await asyncio.sleep(0.003)
        assert not waiting.done()
        assert await read_all(far, taken) == b"x" * taken
        assert await waiting == 1
        assert await loop.sock_recvfrom(far, 1) == (b"y", None)


async def test_sending_and_receiving_at_once(loop: Loop, tcp: Pair) -> None:
    near, far = tcp
    data = b"x" * (1 << 20)

    async def read(sock: socket.socket) -> int:
        count = 0
        while count < len(data):
            count += len(await loop.sock_recv(sock, 1 << 16))
        return count

    counts = await asyncio.gather(
        read(near),
        read(far),
        loop.sock_sendall(near, data),
        loop.sock_sendall(far, data),
    )
    assert tuple(counts[:2]) == (len(data), len(data))


# --- connecting and accepting -----------------------------------------------------------------


async def test_connect_and_accept(loop: Loop) -> None:
    """B1: a raw server, without any transport."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        listener.setblocking(False)
        client.setblocking(False)
        accepting = loop.create_task(loop.sock_accept(listener))
        await turns()
        assert not accepting.done()
        await loop.sock_connect(client, listener.getsockname())
        server, address = await accepting
        with server:
            assert address == client.getsockname()
            assert server.gettimeout() == 0
            await loop.sock_sendall(client, b"hello")
            assert await loop.sock_recv(server, 100) == b"hello"


async def test_accept_gives_every_connection(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=20) as listener:
        listener.setblocking(False)
        clients = [socket.create_connection(listener.getsockname()) for _ in range(10)]
        accepted = [await loop.sock_accept(listener) for _ in range(10)]
        assert [address for _, address in accepted] == [sock.getsockname() for sock in clients]
        for sock in [*clients, *(sock for sock, _ in accepted)]:
            sock.close()


async def test_a_refused_connect_raises(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = listener.getsockname()
    with socket.socket() as client:
        client.setblocking(False)
        with pytest.raises(ConnectionRefusedError, match="Connect call failed"):
            await loop.sock_connect(client, nobody)


async def test_connect_resolves_host_names(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.setblocking(False)
        await loop.sock_connect(client, ("localhost", listener.getsockname()[1]))
        assert client.getpeername() == listener.getsockname()


async def test_connecting_a_unix_socket(loop: Loop) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="tl-") as folder,
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as client,
    ):
        listener.bind(f"{folder}/sock")
        listener.listen()
        listener.setblocking(False)
        client.setblocking(False)
        await loop.sock_connect(client, f"{folder}/sock")
        server, _ = await loop.sock_accept(listener)
        server.close()


# --- cancelling ---------------------------------------------------------------------------------

Operation = Callable[[Loop, socket.socket], Coroutine[Any, Any, Any]]
RECEIVES: dict[str, Operation] = {
    "recv": lambda loop, sock: loop.sock_recv(sock, 100),
    "recv_into": lambda loop, sock: loop.sock_recv_into(sock, bytearray(100)),
    "recvfrom": lambda loop, sock: loop.sock_recvfrom(sock, 100),
    "recvfrom_into": lambda loop, sock: loop.sock_recvfrom_into(sock, bytearray(100)),
}


async def cancelled(loop: Loop, coro: Coroutine[Any, Any, Any], wait: int = 3) -> None:
    """Start the operation, let it wait, and cancel it."""
    task = loop.create_task(coro)
    await turns(wait)
    assert not task.done(), task.exception()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("receive", RECEIVES)
async def test_a_cancelled_receive_takes_no_data(loop: Loop, tcp: Pair, receive: str) -> None:
    near, far = tcp
    await cancelled(loop, RECEIVES[receive](loop, near))
    far.send(b"kept")
    assert await loop.sock_recv(near, 100) == b"kept"


@pytest.mark.parametrize("receive", RECEIVES)
async def test_data_that_races_with_the_cancelling_is_not_lost(
    loop: Loop, tcp: Pair, receive: str
) -> None:
    near, far = tcp
    for _ in range(20):
        task = loop.create_task(RECEIVES[receive](loop, near))
        await turns()
        far.send(b"x")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await loop.sock_recv(near, 100) == b"x"


async def cancelled_behind_the_event(
    loop: Loop, coro: Coroutine[Any, Any, Any], arrive: Callable[[], object]
) -> None:
    """Cancel the operation after the event it waits for, in the same tick."""
    trigger, pull = socket.socketpair()
    with trigger, pull:
        task = loop.create_task(coro)
        loop.add_reader(trigger, task.cancel)
        await turns()
        arrive()
        pull.send(b"!")
        with pytest.raises(asyncio.CancelledError):
            await task
        loop.remove_reader(trigger)


@pytest.mark.loops("tloop")
@pytest.mark.parametrize("receive", RECEIVES)
async def test_what_a_task_did_not_get_any_more_is_not_lost(
    loop: Loop, tcp: Pair, receive: str
) -> None:
    """A time-out, say, may come in the very tick of the data. asyncio loses it."""
    near, far = tcp
    await cancelled_behind_the_event(loop, RECEIVES[receive](loop, near), lambda: far.send(b"kept"))
    assert near.recv(100, socket.MSG_PEEK) == b"kept"
    assert await loop.sock_recv(near, 100) == b"kept"


@pytest.mark.loops("tloop")
async def test_a_connection_that_a_task_did_not_get_any_more_is_not_lost(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        listener.setblocking(False)
        connect = functools.partial(client.connect, listener.getsockname())
        await cancelled_behind_the_event(loop, loop.sock_accept(listener), connect)
        server, address = await loop.sock_accept(listener)
        server.close()
        assert address == client.getsockname()


@pytest.mark.loops("tloop")
async def test_waiting_receives_are_served_in_order(loop: Loop, tcp: Pair) -> None:
    near, far = tcp
    receiving = [loop.create_task(loop.sock_recv(near, 1)) for _ in range(5)]
    await turns()
    receiving[1].cancel()
    far.send(b"abcd")
    got = await asyncio.gather(*receiving, return_exceptions=True)
    assert [got[0], *got[2:]] == [b"a", b"b", b"c", b"d"]
    assert isinstance(got[1], asyncio.CancelledError)


@pytest.mark.loops("tloop")
async def test_a_receive_cancelled_in_front_leaves_the_data_to_the_next(
    loop: Loop, tcp: Pair
) -> None:
    near, far = tcp
    trigger, pull = socket.socketpair()
    with trigger, pull:
        first = loop.create_task(loop.sock_recv(near, 100))
        loop.add_reader(trigger, first.cancel)
        await turns()
        second = loop.create_task(loop.sock_recv(near, 100))
        await turns()
        far.send(b"data")
        pull.send(b"!")
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await second == b"data"
        loop.remove_reader(trigger)


@pytest.mark.loops("tloop")
async def test_waiting_sends_do_not_mix(loop: Loop, tcp: Pair) -> None:
    near, far = tcp
    pieces = [bytes([letter]) * 500_000 for letter in b"abc"]
    sending = [loop.create_task(loop.sock_sendall(near, piece)) for piece in pieces]
    assert await read_all(far, 1_500_000) == b"".join(pieces)
    await asyncio.gather(*sending)


@pytest.mark.parametrize("receive", RECEIVES)
async def test_a_cancelled_receive_does_not_keep_the_socket(loop: Loop, receive: str) -> None:
    near, far = tcp_sockets()
    await cancelled(loop, RECEIVES[receive](loop, near))
    alive = weakref.ref(near)
    near.close()
    del near
    await turns()
    collect()
    assert alive() is None
    far.close()


async def test_a_cancelled_accept_takes_no_connection(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        await cancelled(loop, loop.sock_accept(listener))
        with socket.create_connection(listener.getsockname()) as client:
            server, address = await loop.sock_accept(listener)
            server.close()
            assert address == client.getsockname()


async def test_a_cancelled_connect_leaves_the_socket_to_its_owner(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        queue = [socket.socket() for _ in range(4)]  # fills the backlog: the last one waits
        tasks = []
        for sock in queue:
            sock.setblocking(False)
            tasks.append(loop.create_task(loop.sock_connect(sock, listener.getsockname())))
        await asyncio.sleep(0.005)
        assert not tasks[-1].done()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert tasks[-1].cancelled()
        for sock in queue:
            assert not loop.remove_writer(sock)
            sock.close()


async def test_a_cancelled_sendall_stops_sending(loop: Loop, tcp: Pair) -> None:
    near, far = tcp
    await cancelled(loop, loop.sock_sendall(near, b"x" * (8 << 20)))
    near.shutdown(socket.SHUT_WR)
    count = 0
    while data := await loop.sock_recv(far, 1 << 16):
        count += len(data)
    assert 0 < count < 8 << 20


async def test_the_socket_works_on_after_every_cancelling(loop: Loop, tcp: Pair) -> None:
    near, far = tcp
    for wait in (0, 1, 2, 5):
        task = loop.create_task(loop.sock_recv(near, 100))
        await turns(wait)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        far.send(b"ping")
        assert await loop.sock_recv(near, 100) == b"ping"
        await loop.sock_sendall(near, b"pong")
        assert await loop.sock_recv(far, 100) == b"pong"


# --- what is refused ------------------------------------------------------------------------------

OPERATIONS: dict[str, Callable[[Any, socket.socket], Any]] = {
    **RECEIVES,
    "sendall": lambda loop, sock: loop.sock_sendall(sock, b"x"),
    "sendto": lambda loop, sock: loop.sock_sendto(sock, b"x", ("127.0.0.1", 9)),
    "connect": lambda loop, sock: loop.sock_connect(sock, ("127.0.0.1", 9)),
    "accept": lambda loop, sock: loop.sock_accept(sock),
}
each_operation = pytest.mark.parametrize("call", OPERATIONS.values(), ids=OPERATIONS)


@each_operation
async def test_a_tls_socket_is_refused(loop: Loop, tcp: Pair, call: Any) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    tls = context.wrap_socket(tcp[0], do_handshake_on_connect=False)
    with tls, pytest.raises(TypeError, match="Socket cannot be of type SSLSocket"):
        await call(loop, tls)


@each_operation
async def test_a_blocking_socket_is_refused_in_debug_mode(loop: Loop, tcp: Pair, call: Any) -> None:
    near, far = tcp
    loop.set_debug(True)
    receiving = loop.create_task(loop.sock_recv(near, 100))
    await turns()
    far.send(b"known to the loop by now")
    await receiving
    near.setblocking(True)
    with pytest.raises(ValueError, match="the socket must be non-blocking"):
        await call(loop, near)


@each_operation
async def test_a_socket_that_is_closed_already(loop: Loop, tcp: Pair, call: Any) -> None:
    tcp[0].close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        await call(loop, tcp[0])


@pytest.mark.parametrize("name", RECEIVES)
async def test_a_transports_socket_is_refused_when_it_would_have_to_wait(
    loop: Loop, name: str
) -> None:
    near, far = tcp_sockets()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=near)
    transport.pause_reading()
    with pytest.raises(RuntimeError, match="is used by transport"):
        await RECEIVES[name](loop, near)
    far.send(b"past the transport")
    await until(lambda: near.recv(1, socket.MSG_PEEK))
    assert await loop.sock_recv(near, 100) == b"past the transport"
    transport.abort()
    far.close()
    await turns()


@pytest.mark.loops("tloop")
async def test_a_waiting_receive_finds_out_that_a_transport_has_taken_the_socket(
    loop: Loop,
) -> None:
    """On asyncio it waits for ever."""
    near, far = tcp_sockets()
    receiving = loop.create_task(loop.sock_recv(near, 100))
    await turns()
    reader, writer = await asyncio.open_connection(sock=near)
    far.send(b"for the transport")
    with pytest.raises(RuntimeError, match="is used by transport"):
        await receiving
    assert await reader.read(100) == b"for the transport"
    writer.close()
    await writer.wait_closed()
    far.close()


@pytest.mark.loops("tloop")
async def test_a_waiting_receive_finds_out_that_its_number_is_used_again(loop: Loop) -> None:
    """On asyncio it waits for ever."""
    near, far = tcp_sockets()
    fd = near.fileno()
    receiving = loop.create_task(loop.sock_recv(near, 100))
    await turns()
    near.close()
    other, others_peer = tcp_sockets()
    with far, others_peer, socket.socket(fileno=os.dup2(other.detach(), fd)) as successor:
        successor.setblocking(False)
        waiting = loop.create_task(loop.sock_recv(successor, 100))
        with pytest.raises(OSError, match="Bad file descriptor"):
            await receiving
        others_peer.send(b"for the successor")
        assert await waiting == b"for the successor"


# --- sharing the socket with others ---------------------------------------------------------------


async def test_bytes_read_by_others_are_not_missed(loop: Loop, tcp: Pair) -> None:
    """The loop may know that there was data; someone else may have read it by now."""
    near, far = tcp
    far.send(b"first")
    assert await loop.sock_recv(near, 2) == b"fi"
    assert near.recv(100) == b"rst"
    receiving = loop.create_task(loop.sock_recv(near, 100))
    await turns()
    assert not receiving.done()
    far.send(b"second")
    assert await receiving == b"second"


async def test_a_reader_can_be_added_after_a_receive(loop: Loop, tcp: Pair) -> None:
    near, far = tcp
    far.send(b"one")
    assert await loop.sock_recv(near, 100) == b"one"
    calls: list[str] = []
    loop.add_reader(near, calls.append, "readable")
    far.send(b"two")
    await until(lambda: len(calls) >= 2)
    assert loop.remove_reader(near)
    assert await loop.sock_recv(near, 100) == b"two"


@pytest.mark.loops("tloop")
async def test_a_finished_operation_beside_a_reader_or_writer_is_not_watched_for(
    loop: Loop, tcp: Pair
) -> None:
    """Else the loop would turn without end: there is always room, or data, of the other kind."""
    near, far = tcp
    loop.add_reader(near, print)
    sending = loop.create_task(loop.sock_sendall(near, b"x" * 2_000_000))
    assert len(await read_all(far, 2_000_000)) == 2_000_000
    await sending
    ticks = stats(loop)["ticks"]
    await asyncio.sleep(0.005)
    assert stats(loop)["ticks"] < ticks + 10
    assert loop.remove_reader(near)


async def test_a_receive_waits_again_after_a_reader_was_removed(loop: Loop, tcp: Pair) -> None:
    near, far = tcp
    loop.add_reader(near, print)
    assert loop.remove_reader(near)
    receiving = loop.create_task(loop.sock_recv(near, 100))
    await turns()
    far.send(b"data")
    assert await receiving == b"data"


async def test_a_socket_becomes_a_transport_after_raw_use(loop: Loop, tcp: Pair) -> None:
    near, far = tcp
    far.send(b"raw")
    assert await loop.sock_recv(near, 100) == b"raw"
    reader, writer = await asyncio.open_connection(sock=near)
    far.send(b"line\n")
    assert await reader.readline() == b"line\n"
    writer.close()
    await writer.wait_closed()


async def test_a_closed_and_reused_number_is_another_socket(loop: Loop) -> None:
    """What the loop remembers of a socket must not be taken for its successor."""
    for message in (b"one", b"two", b"three"):
        near, far = tcp_sockets()
        with near, far:
            receiving = loop.create_task(loop.sock_recv(near, 100))
            await turns()
            far.send(message)
            assert await receiving == message
            far.send(b"left over")


async def test_a_socket_closed_after_use_frees_its_fd(loop: Loop, tcp: Pair) -> None:
    """B4: the peer sees the end at once; the loop keeps no copy of the fd."""
    near, far = tcp
    far.send(b"x")
    await loop.sock_recv(near, 1)
    near.close()
    assert await loop.sock_recv(far, 1) == b""


async def test_a_socket_closed_under_a_waiting_receive_does_no_harm(loop: Loop) -> None:
    near, far = tcp_sockets()
    with far:
        receiving = loop.create_task(loop.sock_recv(near, 100))
        await turns()
        near.close()
        await turns()
        receiving.cancel()
        with pytest.raises((asyncio.CancelledError, OSError)):
            await receiving
    near, far = tcp_sockets()
    with near, far:
        far.send(b"next")
        assert await loop.sock_recv(near, 100) == b"next"


@pytest.mark.parametrize("name", ["sock_recv", "sock_accept"])
async def test_a_closed_socket_is_refused(loop: Loop, name: str) -> None:
    sock = socket.socket()
    sock.setblocking(False)
    sock.close()
    arguments = [100] if name == "sock_recv" else []
    with pytest.raises((ValueError, OSError)):
        await getattr(loop, name)(sock, *arguments)


async def test_an_unconnected_socket_says_so(loop: Loop) -> None:
    with socket.socket() as sock:
        sock.setblocking(False)
        with pytest.raises(OSError, match="not connected") as caught:
            await loop.sock_recv(sock, 100)
        assert caught.value.errno == errno.ENOTCONN
        with pytest.raises(OSError, match=r"Broken pipe|not connected"):
            await loop.sock_sendall(sock, b"x")
        with pytest.raises(OSError, match="Invalid argument"):
            await loop.sock_accept(sock)


async def test_many_sockets_wait_at_once(loop: Loop) -> None:
    pairs = [tcp_sockets() for _ in range(100)]
    receiving = [loop.create_task(loop.sock_recv(near, 100)) for near, _ in pairs]
    await turns()
    for number, (_, far) in enumerate(pairs):
        far.send(b"%d" % number)
    assert await asyncio.gather(*receiving) == [b"%d" % number for number in range(100)]
    for near, far in pairs:
        near.close()
        far.close()
