"""Datagrams that wait for room: flow control, order, closing with a full queue."""

from __future__ import annotations

import errno
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from datagramkit import address_of, endpoint, full_pipe, read_datagrams
from loopkit import Loop, end_of, is_tloop, turns, until

pytestmark = pytest.mark.usefixtures("loop")


async def test_datagrams_wait_when_the_socket_is_full(loop: Loop) -> None:
    async with full_pipe() as (transport, protocol, far):
        sent = [b"%d " % number * 200 for number in range(1000)]
        for data in sent:
            transport.sendto(data)
        assert transport.get_write_buffer_size() > 0
        assert protocol.calls == ["made", "pause"]
        assert await read_datagrams(far, 1000) == sent
        await until(lambda: protocol.calls[-1] == "resume")
        if is_tloop(loop):  # asyncio of 3.12 and 3.13 miscounts
            assert transport.get_write_buffer_size() == 0


async def test_close_sends_what_is_waiting_and_abort_does_not(loop: Loop) -> None:
    for action, complete in (("close", True), ("abort", False)):
        async with full_pipe() as (transport, protocol, far):
            for number in range(1000):
                transport.sendto(b"%d " % number * 200)
            getattr(transport, action)()
            assert transport.is_closing()
            await turns()
            assert protocol.lost is not complete
            if complete:
                assert len(await read_datagrams(far, 1000)) == 1000
            await end_of(protocol)
            assert protocol.error is None
            assert protocol.calls == ["made", "pause", "lost"] or complete


async def test_limits_of_the_write_buffer_can_be_set(loop: Loop) -> None:
    async with full_pipe() as (transport, protocol, far):
        assert transport.get_write_buffer_limits() == (16384, 65536)
        transport.set_write_buffer_limits(high=1 << 20)
        for number in range(100):
            transport.sendto(b"%d " % number * 200)
        assert protocol.calls == ["made"]
        await read_datagrams(far, 100)


async def fill(transport: Any, *address: Any) -> int:
    """Send numbers until some wait; gives how many were sent."""
    number = 0
    while not transport.get_write_buffer_size():
        transport.sendto(b"%d" % number, *address)
        number += 1
    return number


async def test_the_header_of_a_datagram_counts(loop: Loop) -> None:
    """Else empty ones could pile up without end."""
    if not is_tloop(loop) and sys.version_info < (3, 13):
        pytest.skip("asyncio counts it since Python 3.13")
    async with full_pipe() as (transport, _, far):
        count = await fill(transport)
        before = transport.get_write_buffer_size()
        assert before == len(b"%d" % (count - 1)) + 8
        for _ in range(100):
            transport.sendto(b"")
        assert transport.get_write_buffer_size() == before + 800
        assert (await read_datagrams(far, count + 100))[count:] == [b""] * 100


async def test_what_waits_is_not_overtaken(loop: Loop, folder: Path) -> None:
    """There is room again, but the first in the queue goes first."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far:
        far.bind(str(folder / "far"))
        far.setblocking(False)
        local = str(folder / "near")
        async with endpoint(local_addr=local, family=socket.AF_UNIX) as (transport, _):
            count = await fill(transport, far.getsockname())
            for number in range(5):
                far.recv(100)
                transport.sendto(b"%d" % (count + number), far.getsockname())
            rest = await read_datagrams(far, count)
            assert [int(data) for data in rest] == list(range(5, count + 5))


@pytest.mark.loops("tloop")  # no kernel queue for IP is ever full on loopback
async def test_a_host_name_waits_its_turn_too(loop: Loop) -> None:
    async with endpoint() as (server, protocol), endpoint() as (client, _):
        client.get_write_buffer_size = lambda: 1
        client.sendto(b"by name", ("localhost", address_of(server)[1]))
        assert await protocol.received(1) == [b"by name"]
        client.sendto(b"x", ("no.such.host.invalid", 9))
        del client.get_write_buffer_size


async def test_an_error_costs_one_datagram_not_the_rest(loop: Loop) -> None:
    async with full_pipe() as (transport, protocol, far):
        await fill(transport)
        for _ in range(4):
            transport.sendto(b"x")
        far.close()  # whoever waits in the queue fails now, one by one
        await until(lambda: len(protocol.errors) == 5)
        assert [error.errno for error in protocol.errors] == [
            errno.ECONNREFUSED, *[errno.ENOTCONN] * 4
        ]  # fmt: skip
        await turns(10)
        assert len(protocol.errors) == 5
        assert not transport.is_closing()


async def test_errors_are_told_while_closing(loop: Loop) -> None:
    async with full_pipe() as (transport, protocol, far):
        await fill(transport)
        transport.close()
        far.close()
        await end_of(protocol)
        assert protocol.calls == ["made", "error", "lost"]
        assert protocol.error is None


async def test_sending_goes_on_in_resume_writing(loop: Loop) -> None:
    async with full_pipe() as (transport, protocol, far):
        transport.set_write_buffer_limits(high=1000, low=100)
        await fill(transport)
        while "pause" not in protocol.calls:
            transport.sendto(b"x" * 100)
        resumed = []

        def resume() -> None:
            resumed.append(transport.get_write_buffer_size())
            transport.sendto(b"last")

        protocol.resume_writing = resume
        got: list[bytes] = []
        while b"last" not in got:
            got += await read_datagrams(far, 1)
        assert len(resumed) == 1
        if is_tloop(loop) or sys.version_info[:2] not in ((3, 12), (3, 13)):  # they miscount
            assert resumed[0] <= 100


async def test_closing_inside_pause_writing(loop: Loop) -> None:
    async with full_pipe() as (transport, protocol, far):
        protocol.pause_writing = transport.close
        count = 0
        while not transport.is_closing():
            transport.sendto(b"x" * 5000)
            count += 1
        assert len(await read_datagrams(far, count)) == count
        await end_of(protocol)
        assert protocol.calls == ["made", "resume", "lost"]


async def test_an_aborted_endpoint_forgets_what_waits(loop: Loop) -> None:
    async with full_pipe() as (transport, protocol, far):
        count = await fill(transport)
        transport.abort()
        assert transport.get_write_buffer_size() == 0 or not is_tloop(loop)
        await end_of(protocol)
        assert len(await read_datagrams(far, count - 1)) == count - 1
        await turns()
        with pytest.raises(BlockingIOError):
            far.recv(1)
