"""What KeyboardInterrupt, SystemExit and stop() leave behind in the middle of a tick."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from loopkit import Loop, Recorder, end_of, tcp_sockets, turns

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    made = [socket.socketpair() for _ in range(5)]
    yield made
    while made:
        for sock in made.pop():
            sock.close()


class Interrupted(Recorder):
    """Raises once, on the first data that any of the group gets."""

    def __init__(self, errors: list[type[BaseException]]) -> None:
        super().__init__()
        self.errors = errors

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.errors:
            raise self.errors.pop()


def connect_all(loop: Loop, protocols: list[Interrupted]) -> list[socket.socket]:
    far_sides = []
    for protocol in protocols:
        near, far = tcp_sockets()
        far_sides.append(far)
        made = loop.create_connection(lambda protocol=protocol: protocol, sock=near)  # type: ignore[misc]
        loop.run_until_complete(made)
    return far_sides


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_loses_no_data_of_other_connections(
    loop: Loop, error: type[BaseException]
) -> None:
    errors: list[type[BaseException]] = []
    protocols = [Interrupted(errors) for _ in range(5)]
    far_sides = connect_all(loop, protocols)
    errors.append(error)
    for far in far_sides:
        far.send(b"data")
    with pytest.raises(error):
        loop.run_forever()
    loop.run_until_complete(turns(5))
    assert [bytes(protocol.data) for protocol in protocols] == [b"data"] * 5
    for protocol, far in zip(protocols, far_sides, strict=True):
        far.close()
        protocol.transport.abort()
    loop.run_until_complete(end_of(*protocols))


@pytest.mark.parametrize("where", ["soon", "timer", "reader"])
def test_an_interrupt_loses_no_other_callback(loop: Loop, pairs: list[Pair], where: str) -> None:
    order: list[str] = []

    def interrupt() -> None:
        loop.remove_reader(pairs[0][0])
        raise KeyboardInterrupt

    if where == "soon":
        loop.call_soon(interrupt)
    loop.call_soon(order.append, "soon")
    for near, far in pairs:
        far.send(b"x")
        loop.add_reader(near, order.append, "reader")
    if where == "reader":
        loop.add_reader(pairs[0][0], interrupt)
    if where == "timer":
        loop.call_later(-1, interrupt)
    loop.call_later(0, order.append, "timer")
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    for near, _ in pairs[1:]:
        loop.add_reader(near, order.append, "reader")
    loop.stop()
    loop.run_forever()
    for near, _ in pairs:
        loop.remove_reader(near)
    assert order.count("soon") == 1
    assert order.count("timer") == 1
    assert order.count("reader") >= 4


def test_an_interrupt_loses_no_receive_of_a_socket(loop: Loop, pairs: list[Pair]) -> None:
    for pair in pairs:
        for sock in pair:
            sock.setblocking(False)

    def interrupt() -> None:
        raise KeyboardInterrupt

    async def start() -> list[asyncio.Task[bytes]]:
        tasks = [loop.create_task(loop.sock_recv(near, 100)) for near, _ in pairs]
        await turns()
        return tasks

    tasks = loop.run_until_complete(start())
    loop.call_soon(interrupt)
    for _, far in pairs:
        far.send(b"data")
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    results: list[Any] = loop.run_until_complete(asyncio.wait_for(asyncio.gather(*tasks), 5))
    assert results == [b"data"] * 5


def test_stop_in_an_io_callback_lets_the_other_events_of_the_tick_run(
    loop: Loop, pairs: list[Pair]
) -> None:
    calls: list[int] = []

    def readable(number: int) -> None:
        calls.append(number)
        loop.stop()

    for number, (near, far) in enumerate(pairs):
        far.send(b"x")
        loop.add_reader(near, readable, number)
    loop.run_forever()
    for near, _ in pairs:
        loop.remove_reader(near)
    assert sorted(calls) == list(range(5))


def test_a_callback_can_close_the_fd_of_another_that_is_ready(
    loop: Loop, pairs: list[Pair]
) -> None:
    calls: list[str] = []

    def readable() -> None:
        calls.append("called")
        for near, _ in pairs:
            loop.remove_reader(near)
            near.close()

    for near, far in pairs:
        far.send(b"x")
        loop.add_reader(near, readable)
    loop.stop()
    loop.run_forever()
    assert calls == ["called"]
