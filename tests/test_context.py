"""Context variables seen by the callbacks of transports, servers, readers and signals."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import socket
import sys
from typing import Any

import pytest
from loopkit import Loop, Recorder, end_of, listening, tcp_sockets, turns, until

pytestmark = pytest.mark.usefixtures("loop")

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


class Watching(Recorder):
    """Notes the variable at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, str] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.seen["made"] = variable.get()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.seen["data"] = variable.get()

    def eof_received(self) -> bool | None:
        self.seen["eof"] = variable.get()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.seen["lost"] = variable.get()


EVERYWHERE = dict.fromkeys(("made", "data", "eof", "lost"))


@pytest.mark.real
async def test_a_client_runs_in_the_context_of_its_connect(loop: Loop) -> None:
    near, far = tcp_sockets()

    async def connect() -> Watching:
        variable.set("connect")
        return (await loop.create_connection(Watching, sock=near))[1]

    with far:
        protocol = await loop.create_task(connect())
        far.send(b"x")
        await protocol.received(1)
    await end_of(protocol)
    assert protocol.seen == {**EVERYWHERE, **dict.fromkeys(EVERYWHERE, "connect")}


@pytest.mark.real
async def test_accepted_connections_run_in_the_context_of_their_server(loop: Loop) -> None:
    accepted: list[Watching] = []

    def factory() -> Watching:
        accepted.append(Watching())
        return accepted[-1]

    variable.set("server")
    async with listening(factory) as address:
        variable.set("client")
        with socket.create_connection(address) as sock:
            sock.send(b"x")
            await until(lambda: accepted and accepted[0].data)
        await end_of(*accepted)
    assert accepted[0].seen == dict.fromkeys(EVERYWHERE, "server")


@pytest.mark.real
async def test_connections_do_not_see_each_others_changes(loop: Loop) -> None:
    class Changing(Watching):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            variable.set(data.decode())

    protocols, far_sides = [], []
    for _ in range(2):
        near, far = tcp_sockets()
        protocols.append((await loop.create_connection(Changing, sock=near))[1])
        far_sides.append(far)
    for protocol, far, name in zip(protocols, far_sides, ("one", "two"), strict=True):
        far.send(name.encode())
        await protocol.received(3)
        assert protocol.seen["data"] == "unset"
    for far in far_sides:
        far.close()
    await end_of(*protocols)
    assert variable.get() == "unset"


ONE_CONTEXT = sys.version_info >= (3, 15)


class Setting(Watching):
    """Changes the variable as soon as it is connected."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        variable.set("made")


@pytest.mark.real
@pytest.mark.parametrize("side", ["client", "server"])
async def test_callbacks_of_a_connection_share_a_context_from_3_15_on(
    loop: Loop, side: str
) -> None:
    protocol = Setting()
    if side == "client":
        near, far = tcp_sockets()
        await loop.create_connection(lambda: protocol, sock=near)
    else:
        async with listening(lambda: protocol) as address:
            far = socket.create_connection(address)
            await until(lambda: protocol.transport)
    with far:
        far.send(b"x")
        await protocol.received(1)
    await end_of(protocol)
    later = "made" if ONE_CONTEXT else "unset"
    assert protocol.seen == {"made": "unset", "data": later, "eof": later, "lost": later}


@pytest.mark.real
async def test_resume_reading_moves_no_callback_to_its_context_from_3_15_on(loop: Loop) -> None:
    near, far = tcp_sockets()
    transport, protocol = await loop.create_connection(Watching, sock=near)

    def resume() -> None:
        variable.set("resumed")
        transport.resume_reading()

    with far:
        await turns()
        transport.pause_reading()
        contextvars.copy_context().run(resume)
        far.send(b"x")
        await protocol.received(1)
    await end_of(protocol)
    assert protocol.seen["data"] == ("unset" if ONE_CONTEXT else "resumed")


@pytest.mark.real
async def test_a_failure_in_connection_made_is_reported_in_its_context(loop: Loop) -> None:
    class Failing(Setting):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            raise LookupError("not today")

    seen: list[str] = []
    loop.set_exception_handler(lambda loop, context: seen.append(variable.get()))
    near, far = tcp_sockets()
    with far:
        _, protocol = await loop.create_connection(Failing, sock=near)
    await end_of(protocol)
    handlers_have_contexts = sys.version_info >= (3, 12)
    assert seen == ["made" if handlers_have_contexts else "unset"]


@pytest.mark.real
async def test_a_reader_keeps_the_context_of_its_registration(loop: Loop) -> None:
    near, far = socket.socketpair()
    seen: list[str] = []

    def readable() -> None:
        near.recv(1)
        seen.append(variable.get())

    def register() -> None:
        variable.set("add")
        loop.add_reader(near, readable)

    with near, far:
        contextvars.copy_context().run(register)
        for count in (1, 2):
            far.send(b"x")
            await until(lambda count=count: len(seen) == count)  # type: ignore[misc]
        loop.remove_reader(near)
    assert seen == ["add", "add"]


async def test_a_signal_handler_keeps_the_context_of_its_registration(loop: Loop) -> None:
    seen: list[str] = []

    def register() -> None:
        variable.set("add")
        loop.add_signal_handler(signal.SIGUSR1, lambda: seen.append(variable.get()))

    contextvars.copy_context().run(register)
    signal.raise_signal(signal.SIGUSR1)
    await until(lambda: seen)
    loop.remove_signal_handler(signal.SIGUSR1)
    assert seen == ["add"]


@pytest.mark.real
async def test_datagrams_arrive_in_the_context_of_the_endpoint(loop: Loop) -> None:
    seen: dict[str, str] = {}

    class Datagrams(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            seen["made"] = variable.get()
            variable.set("made")

        def datagram_received(self, data: bytes, addr: Any) -> None:
            seen["data"] = variable.get()

        def connection_lost(self, exc: Exception | None) -> None:
            seen["lost"] = variable.get()

    async def create() -> asyncio.DatagramTransport:
        variable.set("endpoint")
        address = ("127.0.0.1", 0)
        return (await loop.create_datagram_endpoint(Datagrams, local_addr=address))[0]

    transport = await loop.create_task(create())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", transport.get_extra_info("sockname"))
        await until(lambda: "data" in seen)
    transport.close()
    await turns()
    assert seen == dict.fromkeys(("made", "data"), "endpoint") | {"lost": "unset"}


@pytest.mark.real
async def test_a_pipe_is_read_in_the_context_of_its_connecting(loop: Loop) -> None:
    read_fd, write_fd = os.pipe()
    variable.set("connect")
    _, protocol = await loop.connect_read_pipe(Setting, os.fdopen(read_fd, "rb", 0))
    variable.set("later")
    os.write(write_fd, b"x")
    await protocol.received(1)
    os.close(write_fd)
    await end_of(protocol)
    assert protocol.seen == dict.fromkeys(EVERYWHERE, "connect")
