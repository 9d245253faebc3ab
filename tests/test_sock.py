"""The sock_* methods: one operation on a caller's non-blocking socket, and its cancelling."""

from __future__ import annotations

import asyncio
import errno
import socket
import tempfile
import weakref
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from loopkit import Loop, collect, tcp_sockets, turns, until

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
        assert not waiting.done()
        for _ in range(sent):
            assert await loop.sock_recv(far, 1) == b"x"
        assert await waiting == 1
        assert await loop.sock_recv(far, 1) == b"y"


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
    assert not task.done()
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
