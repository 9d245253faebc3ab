"""Wrong types and values: the same exception as asyncio, and nothing is left behind."""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections.abc import Callable
from typing import Any

import pytest
from loopkit import (
    FACTORIES,
    LoopFactory,
    Recorder,
    connected,
    new_asyncio_loop,
    tcp_sockets,
    warnings_seen,
)

Call = Callable[[Any, Any], Any]  # the arguments are wrong on purpose

CALLS: dict[str, Call] = {
    "call_later: no delay": lambda loop, _: loop.call_later(None, print),
    "call_later: text": lambda loop, _: loop.call_later("1", print),
    "call_at: no time": lambda loop, _: loop.call_at(None, print),
    "call_soon: nothing": lambda loop, _: loop.call_soon(),
    "call_soon: keyword": lambda loop, _: loop.call_soon(print, end=""),
    "call_soon_threadsafe: nothing": lambda loop, _: loop.call_soon_threadsafe(),
    "run_until_complete: number": lambda loop, _: loop.run_until_complete(1),
    "run_until_complete: function": lambda loop, _: loop.run_until_complete(print),
    "set_exception_handler": lambda loop, _: loop.set_exception_handler(1),
    "set_task_factory": lambda loop, _: loop.set_task_factory(1),
    "set_default_executor": lambda loop, _: loop.set_default_executor(1),
    "create_task: number": lambda loop, _: loop.create_task(1),
    "add_reader: no callback": lambda loop, sock: loop.add_reader(sock),
    "add_reader: text": lambda loop, _: loop.add_reader("x", print),
    "add_reader: closed": lambda loop, _: loop.add_reader(socket_closed(), print),
    "add_writer: huge": lambda loop, _: loop.add_writer(1 << 70, print),
    "remove_reader: negative": lambda loop, _: loop.remove_reader(-5),
    "sock_recv: text": lambda loop, sock: loop.sock_recv(sock, "x"),
    "sock_recv: negative": lambda loop, sock: loop.sock_recv(sock, -1),
    "sock_recv: no size": lambda loop, sock: loop.sock_recv(sock, None),
    "sock_recv: no socket": lambda loop, _: loop.sock_recv(None, 1),
    "sock_recv_into: bytes": lambda loop, sock: loop.sock_recv_into(sock, b"x"),
    "sock_recv_into: text": lambda loop, sock: loop.sock_recv_into(sock, "x"),
    "sock_recvfrom: text": lambda loop, sock: loop.sock_recvfrom(sock, "x"),
    "sock_recvfrom_into: None": lambda loop, sock: loop.sock_recvfrom_into(sock, None),
    "sock_recvfrom_into: size": lambda loop, sock: loop.sock_recvfrom_into(sock, bytearray(1), 2),
    "sock_sendall: text": lambda loop, sock: loop.sock_sendall(sock, "x"),
    "sock_sendall: None": lambda loop, sock: loop.sock_sendall(sock, None),
    "sock_sendall: number": lambda loop, sock: loop.sock_sendall(sock, 1),
    "sock_sendto: text": lambda loop, sock: loop.sock_sendto(sock, "x", ("127.0.0.1", 9)),
    "sock_sendto: address": lambda loop, sock: loop.sock_sendto(sock, b"x", 5),
    "sock_connect: number": lambda loop, sock: loop.sock_connect(sock, 5),
    "sock_connect: port": lambda loop, sock: loop.sock_connect(sock, ("127.0.0.1", 65_536)),
    "sock_accept: not listening": lambda loop, sock: loop.sock_accept(sock),
    "sock_accept: no socket": lambda loop, _: loop.sock_accept(1),
    "create_connection: port text": lambda loop, _: loop.create_connection(
        Recorder, "127.0.0.1", "no such service"
    ),
    "create_connection: port huge": lambda loop, _: loop.create_connection(
        Recorder, "127.0.0.1", 1 << 40
    ),
    "create_connection: port negative": lambda loop, _: loop.create_connection(
        Recorder, "127.0.0.1", -1
    ),
    "create_connection: host number": lambda loop, _: loop.create_connection(Recorder, 1, 2),
    "create_connection: host with zero": lambda loop, _: loop.create_connection(
        Recorder, "127.0.0.1\0", 9
    ),
    "create_connection: factory": lambda loop, sock: loop.create_connection(None, sock=sock.dup()),
    "create_connection: local_addr": lambda loop, _: loop.create_connection(
        Recorder,
        "127.0.0.1",
        9,
        local_addr=5,
    ),
    "create_server: port text": lambda loop, _: loop.create_server(Recorder, "127.0.0.1", "x"),
    "create_server: port negative": lambda loop, _: loop.create_server(Recorder, "127.0.0.1", -1),
    "create_server: backlog": lambda loop, _: loop.create_server(
        Recorder,
        "127.0.0.1",
        0,
        backlog="x",
    ),
    "create_server: hosts": lambda loop, _: loop.create_server(Recorder, 5, 0),
    "create_server: ssl": lambda loop, _: loop.create_server(Recorder, "127.0.0.1", 0, ssl=5),
    "create_unix_server: number": lambda loop, _: loop.create_unix_server(Recorder, 5),
    "create_unix_server: zero inside": lambda loop, _: loop.create_unix_server(
        Recorder, "not\0here"
    ),
    "create_unix_connection: number": lambda loop, _: loop.create_unix_connection(Recorder, 5),
    "create_unix_connection: zero": lambda loop, _: loop.create_unix_connection(
        Recorder, "not\0here"
    ),
    "connect_accepted_socket: None": lambda loop, _: loop.connect_accepted_socket(Recorder, None),
    "create_datagram_endpoint: text": lambda loop, _: loop.create_datagram_endpoint(
        asyncio.DatagramProtocol,
        local_addr="text",
    ),
    "create_datagram_endpoint: port": lambda loop, _: loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=("127.0.0.1", 65_536)
    ),
    "create_datagram_endpoint: unix": lambda loop, _: loop.create_datagram_endpoint(
        asyncio.DatagramProtocol,
        local_addr=5,
        family=socket.AF_UNIX,
    ),
    "add_signal_handler: text": lambda loop, _: loop.add_signal_handler("x", print),
    "getaddrinfo: port": lambda loop, _: loop.getaddrinfo("127.0.0.1", object()),
    "getnameinfo: text": lambda loop, _: loop.getnameinfo("127.0.0.1"),
    "run_in_executor: nothing": lambda loop, _: loop.run_in_executor(None),
    "start_tls: None": lambda loop, _: loop.start_tls(None, None, None),
}


def socket_closed() -> socket.socket:
    sock = socket.socket()
    sock.close()
    return sock


async def error_of(call: Call) -> type[BaseException] | None:
    """The exception that the call ends with."""
    loop = asyncio.get_running_loop()
    near, far = tcp_sockets()
    with near, far:
        try:
            result = call(loop, near)
            if inspect.isawaitable(result):
                async with asyncio.timeout(0.05):
                    await result
        except BaseException as exc:
            return type(exc)
    return None


@pytest.mark.loops("tloop")
@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_argument_ends_as_on_asyncio(loop_factory: LoopFactory, name: str) -> None:
    errors = []
    for factory in (loop_factory, new_asyncio_loop):
        with warnings_seen(), asyncio.Runner(loop_factory=factory) as runner:
            errors.append(runner.run(error_of(CALLS[name])))
    ours, theirs = errors
    assert ours is theirs


METHODS: dict[str, list[Any]] = {
    "write": ["text"],
    "writelines": [5],
    "set_write_buffer_limits": ["x"],
    "set_protocol": [],
    "get_extra_info": [],
    "write_eof": [1],
}


@pytest.mark.loops("tloop")
@pytest.mark.parametrize("name", METHODS)
def test_a_wrong_argument_of_a_transport_ends_as_on_asyncio(
    loop_factory: LoopFactory, name: str
) -> None:
    async def call() -> type[BaseException] | None:
        async with connected() as (transport, _, _):
            try:
                getattr(transport, name)(*METHODS[name])
            except BaseException as exc:
                return type(exc)
        return None

    errors = []
    for factory in (loop_factory, new_asyncio_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            errors.append(runner.run(call()))
    assert errors[0] is errors[1]


def test_the_loops_under_test_are_what_they_are_called(loop_name: str) -> None:
    loop = FACTORIES[loop_name]()
    loop.close()
    assert type(loop).__module__.split(".")[0] == {"tloop": "tloop_py"}.get(loop_name, "asyncio")
