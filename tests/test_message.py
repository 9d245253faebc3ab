"""sock_recvmsg and sock_sendmsg: messages with ancillary data."""

from __future__ import annotations

import array
import asyncio
import errno
import os
import select
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from loopkit import Loop, finish, python, tcp_sockets, turns, until

pytestmark = [pytest.mark.usefixtures("loop"), pytest.mark.loops("tloop")]

# Not in every version's socket module.
IP_PKTINFO, IP_RECVERR, MSG_CMSG_CLOEXEC = 8, 11, 0x40000000
Message = tuple[bytes, list[tuple[int, int, bytes]], int, Any]


@pytest.fixture
def any_loop(loop: Loop) -> Any:
    """The loop, whose additions asyncio's types do not know."""
    return loop


@pytest.fixture
def unix() -> Iterator[list[socket.socket]]:
    yield from lend(*socket.socketpair())


@pytest.fixture
def datagrams() -> Iterator[list[socket.socket]]:
    yield from lend(*socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))


@pytest.fixture
def udp() -> Iterator[list[socket.socket]]:
    pair = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for sock in pair:
        sock.bind(("127.0.0.1", 0))
    yield from lend(*pair)


def lend(*sockets: socket.socket) -> Iterator[list[socket.socket]]:
    pair = list(sockets)
    for sock in pair:
        sock.setblocking(False)
    yield pair
    while pair:
        pair.pop().close()


def rights(*fds: int) -> tuple[int, int, bytes]:
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes()


def descriptors(message: Message) -> list[int]:
    fds = array.array("i")
    for level, kind, data in message[1]:
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        fds.frombytes(data)
    return list(fds)


ROOM = socket.CMSG_SPACE(4 * 10)  # for ten descriptors

# --- messages ---------------------------------------------------------------------------------


async def test_parts_are_sent_as_one_message(any_loop: Any, udp: list[socket.socket]) -> None:
    near, far = udp
    address = far.getsockname()
    sent = await any_loop.sock_sendmsg(near, [b"one, ", bytearray(b"two")], address=address)
    assert sent == 8
    message = await any_loop.sock_recvmsg(far, 100)
    assert message == (b"one, two", [], 0, near.getsockname())


async def test_receiving_waits(any_loop: Any, unix: list[socket.socket]) -> None:
    near, far = unix
    receiving = any_loop.create_task(any_loop.sock_recvmsg(near, 100))
    await turns()
    assert not receiving.done()
    far.send(b"later")
    assert (await receiving)[0] == b"later"
    far.close()
    assert (await any_loop.sock_recvmsg(near, 100))[0] == b""


async def test_receiving_into_several_buffers(any_loop: Any, unix: list[socket.socket]) -> None:
    near, far = unix
    parts = [bytearray(3), memoryview(bytearray(9))[:4]]
    receiving = any_loop.create_task(any_loop.sock_recvmsg_into(near, iter(parts), ROOM))
    await turns()
    far.sendmsg([b"hello"], [rights(far.fileno())])
    message = await receiving
    assert message[0] == 5
    assert [bytes(part) for part in parts] == [b"hel", b"lo\0\0"]
    for fd in descriptors(message):
        os.close(fd)


async def test_sending_waits_for_room(any_loop: Any, unix: list[socket.socket]) -> None:
    """What is given as iterators is taken only once, however often sending is tried."""
    near, far = unix
    while True:
        try:
            near.send(b"x" * 1000)
        except BlockingIOError:
            break
    read, write = os.pipe()
    buffers, ancillary = iter([b"the ", b"end"]), iter([rights(read)])
    sending = any_loop.create_task(any_loop.sock_sendmsg(near, buffers, ancillary))
    await turns()
    assert not sending.done()
    got = b""
    while not got.endswith(b"the end"):
        message = await any_loop.sock_recvmsg(far, 1000, ROOM)
        got += message[0]
    assert await sending == 7
    (received,) = descriptors(message)
    os.write(write, b"through")
    assert os.read(received, 100) == b"through"
    for fd in (read, write, received):
        os.close(fd)


async def test_a_stream_takes_a_part(any_loop: Any, unix: list[socket.socket]) -> None:
    near, far = unix
    data = b"x" * (8 << 20)
    sent = await any_loop.sock_sendmsg(near, [data])
    assert 0 < sent < len(data)
    assert len((await any_loop.sock_recvmsg(far, sent))[0]) <= sent


async def test_a_full_datagram_receiver(any_loop: Any, datagrams: list[socket.socket]) -> None:
    near, far = datagrams
    count = 0
    while True:
        try:
            near.send(b"x")
            count += 1
        except BlockingIOError:
            break
    sending = any_loop.create_task(any_loop.sock_sendmsg(near, [b"y"]))
    await turns()
    assert not sending.done()
    for _ in range(count):
        assert (await any_loop.sock_recvmsg(far, 1))[0] == b"x"
    assert (await any_loop.sock_recvmsg(far, 1))[0] == b"y"
    assert await sending == 1


async def test_flags_go_in_and_come_out(any_loop: Any, udp: list[socket.socket]) -> None:
    near, far = udp
    near.sendto(b"message", far.getsockname())
    peeked = await any_loop.sock_recvmsg(far, 100, 0, socket.MSG_PEEK)
    assert peeked[:3] == (b"message", [], 0)
    short = await any_loop.sock_recvmsg(far, 4)
    assert short[:3] == (b"mess", [], socket.MSG_TRUNC)


async def test_messages_and_bytes_take_turns(any_loop: Any) -> None:
    near, far = tcp_sockets()
    with near, far:
        first = any_loop.create_task(any_loop.sock_recvmsg(near, 3))
        second = any_loop.create_task(any_loop.sock_recv(near, 3))
        await turns()
        far.send(b"onetwo")
        assert (await first)[0] == b"one"
        assert await second == b"two"


async def test_the_address_a_datagram_was_sent_to(any_loop: Any, udp: list[socket.socket]) -> None:
    """IP_PKTINFO, both ways: it tells the receiver's address and chooses the sender's."""
    _, far = udp
    far.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    source = struct.pack("@i4s4s", 0, socket.inet_aton("127.0.0.7"), bytes(4))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as anywhere:
        anywhere.setblocking(False)
        anywhere.bind(("0.0.0.0", 0))
        await any_loop.sock_sendmsg(
            anywhere, [b"hi"], [(socket.IPPROTO_IP, IP_PKTINFO, source)], 0, far.getsockname()
        )
        data, ancillary, _, address = await any_loop.sock_recvmsg(far, 10, socket.CMSG_SPACE(12))
        assert (data, address) == (b"hi", ("127.0.0.7", anywhere.getsockname()[1]))
    ((level, kind, info),) = ancillary
    assert (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO)
    assert socket.inet_ntoa(info[8:12]) == "127.0.0.1"


async def test_the_queue_of_errors(any_loop: Any, udp: list[socket.socket]) -> None:
    """Waiting for an error neither takes data nor hides it from others."""
    near, far = udp
    near.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    asked = (near, 100, 200, socket.MSG_ERRQUEUE)
    waiting = any_loop.create_task(any_loop.sock_recvmsg(*asked))
    await turns()
    far.sendto(b"data", near.getsockname())
    await until(lambda: select.select([near], [], [], 0)[0])
    await turns()
    assert not waiting.done()
    assert await any_loop.sock_recv(near, 100) == b"data"
    nobody = far.getsockname()
    far.close()
    near.sendto(b"to nobody", nobody)
    _, ancillary, flags, address = await waiting
    assert flags & socket.MSG_ERRQUEUE
    assert address == nobody
    ((level, kind, data),) = ancillary
    assert (level, kind) == (socket.IPPROTO_IP, IP_RECVERR)
    assert struct.unpack_from("@I", data)[0] == errno.ECONNREFUSED


async def test_an_error_that_is_there_is_told_beside_a_waiting_receive(
    any_loop: Any, udp: list[socket.socket]
) -> None:
    near, far = udp
    near.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    receiving = any_loop.create_task(any_loop.sock_recv(near, 100))
    await turns()
    nobody = far.getsockname()
    far.close()
    near.sendto(b"to nobody", nobody)
    with pytest.raises(ConnectionRefusedError):  # the pending error, which is told once
        await receiving
    receiving = any_loop.create_task(any_loop.sock_recv(near, 100))
    await turns()
    message = await any_loop.sock_recvmsg(near, 100, 200, socket.MSG_ERRQUEUE)
    assert message[3] == nobody
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.sendto(b"data", near.getsockname())
        assert await receiving == b"data"


# --- descriptors ------------------------------------------------------------------------------


async def test_descriptors_pass_between_processes(any_loop: Any, unix: list[socket.socket]) -> None:
    """The child gets the write end of a pipe, and gives a socket pair's end back."""
    child_code = """if True:
        import array, asyncio, os, socket, sys, tloop_py

        async def main():
            loop = asyncio.get_running_loop()
            with socket.socket(fileno=int(sys.argv[1])) as parent:
                parent.setblocking(False)
                data, ancillary, flags, _ = await loop.sock_recvmsg(parent, 10, 100)
                pipe = array.array("i", ancillary[0][2])[0]
                os.write(pipe, data + b" by pipe")
                near, far = socket.socketpair()
                ends = array.array("i", [far.fileno()]).tobytes()
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, ends)]
                await loop.sock_sendmsg(parent, [b"end"], rights)
                far.close()
                near.sendall(b"by socket")
                near.close()

        tloop_py.run(main())
    """
    near, far = unix
    child = python(child_code, str(far.fileno()), pass_fds=[far.fileno()])
    read, write = os.pipe()
    await any_loop.sock_sendmsg(near, [b"hello"], [rights(write)])
    os.close(write)
    message = await any_loop.sock_recvmsg(near, 100, ROOM)
    (fd,) = descriptors(message)
    assert (message[0], message[2]) == (b"end", 0)
    assert not os.get_inheritable(fd)
    with socket.socket(fileno=fd) as received:
        received.setblocking(False)
        assert await any_loop.sock_recv(received, 100) == b"by socket"
    out, err = await any_loop.run_in_executor(None, finish, child)
    assert (child.returncode, out, err) == (0, "", "")
    assert os.read(read, 100) == b"hello by pipe"
    os.close(read)


async def test_close_on_exec_is_reported_to_who_asked(
    any_loop: Any, unix: list[socket.socket]
) -> None:
    near, far = unix
    for flags in (0, MSG_CMSG_CLOEXEC):
        far.sendmsg([b"x"], [rights(far.fileno())])
        message = await any_loop.sock_recvmsg(near, 1, ROOM, flags)
        assert message[2] == flags
        (fd,) = descriptors(message)
        assert not os.get_inheritable(fd)
        os.close(fd)


async def test_too_many_descriptors_are_closed_by_the_kernel(
    any_loop: Any, unix: list[socket.socket]
) -> None:
    near, far = unix
    far.sendmsg([b"x"], [rights(*[far.fileno()] * 20)])
    message = await any_loop.sock_recvmsg(near, 1, ROOM)
    assert message[2] & socket.MSG_CTRUNC
    assert len(descriptors(message)) == 10
    for fd in descriptors(message):
        os.close(fd)


@pytest.mark.parametrize("wait", range(4))
async def test_cancelling_loses_no_descriptor(
    any_loop: Any, unix: list[socket.socket], wait: int
) -> None:
    """Neither when nothing came, nor when it came in the very tick."""
    near, far = unix
    receiving = any_loop.create_task(any_loop.sock_recvmsg(near, 100, ROOM))
    await turns(wait)
    far.sendmsg([b"kept"], [rights(far.fileno())])
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    message = await any_loop.sock_recvmsg(near, 100, ROOM)
    assert message[0] == b"kept"
    os.close(*descriptors(message))


async def test_cancelling_behind_the_event_loses_no_descriptor(
    any_loop: Any, unix: list[socket.socket]
) -> None:
    near, far = unix
    trigger, pull = socket.socketpair()
    with trigger, pull:
        receiving = any_loop.create_task(any_loop.sock_recvmsg(near, 100, ROOM))
        any_loop.add_reader(trigger, receiving.cancel)
        await turns()
        far.sendmsg([b"kept"], [rights(far.fileno())])
        pull.send(b"!")
        with pytest.raises(asyncio.CancelledError):
            await receiving
        any_loop.remove_reader(trigger)
    message = await any_loop.sock_recvmsg(near, 100, ROOM)
    assert message[0] == b"kept"
    os.close(*descriptors(message))


# --- what is refused --------------------------------------------------------------------------

CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "recvmsg": lambda loop, sock: loop.sock_recvmsg(sock, 10),
    "recvmsg_into": lambda loop, sock: loop.sock_recvmsg_into(sock, [bytearray(10)]),
    "sendmsg": lambda loop, sock: loop.sock_sendmsg(sock, [b"x"]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_useless_sockets(any_loop: Any, call: Callable[[Any, Any], Any]) -> None:
    near, far = tcp_sockets()
    with near, far:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        tls = context.wrap_socket(near, do_handshake_on_connect=False)
        with tls, pytest.raises(TypeError, match="SSLSocket"):
            await call(any_loop, tls)
        far.setblocking(True)
        any_loop.set_debug(True)
        with pytest.raises(ValueError, match="non-blocking"):
            await call(any_loop, far)
        any_loop.set_debug(False)
        far.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            await call(any_loop, far)


async def test_wrong_arguments(any_loop: Any, unix: list[socket.socket]) -> None:
    near, _ = unix
    for arguments in ([None], [10, None], [10, 0, None], [10, "x"], []):
        with pytest.raises(TypeError):
            await any_loop.sock_recvmsg(near, *arguments)
    for arguments in ([-1], [10, -1]):
        with pytest.raises(ValueError, match=r"negative|invalid"):
            await any_loop.sock_recvmsg(near, *arguments)
    for arguments in ([None], [[b"read only"]], [[bytearray(1)], None]):
        with pytest.raises(TypeError):
            await any_loop.sock_recvmsg_into(near, *arguments)
    for arguments in ([None], ["text"], [b"x"], [[b"x"], None], [[b"x"], [()]], [[b"x"], (), "0"]):
        with pytest.raises(TypeError):
            await any_loop.sock_sendmsg(near, *arguments)


async def test_a_transports_socket_is_refused(any_loop: Any) -> None:
    near, far = tcp_sockets()
    transport, _ = await any_loop.create_connection(asyncio.Protocol, sock=near)
    with pytest.raises(RuntimeError, match="is used by transport"):
        await any_loop.sock_recvmsg(near, 10)
    transport.abort()
    far.close()
    await turns()
