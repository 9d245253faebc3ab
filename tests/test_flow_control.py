"""Flow control of the writing side: watermarks, pause_writing and resume_writing, drain."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from conftest import AsyncioLog
from loopkit import Loop, Recorder, connected, read_all, until

pytestmark = pytest.mark.usefixtures("loop")

BIG = b"x" * (1 << 20)  # more than the kernel takes at once between the sockets used here


async def test_pause_writing_is_called_inside_write(loop: Loop) -> None:
    async with connected() as (transport, protocol, far):
        transport.write(BIG)
        assert protocol.calls == ["made", "pause"]
        transport.write(BIG)
        assert protocol.calls == ["made", "pause"]
        await read_all(far, 2 * len(BIG))
        await until(lambda: "resume" in protocol.calls)
        assert protocol.calls == ["made", "pause", "resume"]


@pytest.mark.loops("tloop")  # asyncio of 3.12 and 3.13 forgot it for a while
async def test_pause_writing_is_called_inside_writelines(loop: Loop) -> None:
    async with connected() as (transport, protocol, far):
        transport.writelines([BIG, BIG])
        assert protocol.calls == ["made", "pause"]
        await read_all(far, 2 * len(BIG))
        await until(lambda: "resume" in protocol.calls)


async def test_small_writes_never_pause(loop: Loop) -> None:
    async with connected() as (transport, protocol, far):
        for _ in range(100):
            transport.write(b"x" * 100)
        assert transport.get_write_buffer_size() == 0
        await read_all(far, 10_000)
        assert protocol.calls == ["made"]


async def test_pausing_and_resuming_can_happen_again(loop: Loop) -> None:
    async with connected() as (transport, protocol, far):
        for _ in range(3):
            transport.write(BIG)
            await read_all(far, len(BIG))
            await until(lambda: protocol.calls[-1] == "resume")
        assert protocol.calls == ["made", *["pause", "resume"] * 3]


async def test_the_buffer_size_counts_what_is_not_sent_yet(loop: Loop) -> None:
    async with connected() as (transport, _, far):
        assert transport.get_write_buffer_size() == 0
        transport.write(BIG)
        unsent = transport.get_write_buffer_size()
        assert 0 < unsent < len(BIG)
        transport.write(b"y" * 1000)
        assert transport.get_write_buffer_size() == unsent + 1000
        transport.writelines([b"z" * 10, b"z" * 20])
        assert 1000 < transport.get_write_buffer_size() <= unsent + 1030
        await read_all(far, len(BIG) + 1030)
        await until(lambda: transport.get_write_buffer_size() == 0)


async def test_resume_comes_at_the_low_mark(loop: Loop) -> None:
    low = 100_000
    sizes: list[int] = []

    class Watching(Recorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            sizes.append(self.transport.get_write_buffer_size())

    async with connected(Watching()) as (transport, protocol, far):
        transport.set_write_buffer_limits(high=200_000, low=low)
        transport.write(BIG)
        await read_all(far, len(BIG))
        await until(lambda: protocol.calls[-1] == "resume")
    assert sizes[0] <= low


async def test_zero_limits_pause_on_the_first_unsent_byte(loop: Loop) -> None:
    async with connected() as (transport, protocol, far):
        transport.set_write_buffer_limits(high=0)
        assert transport.get_write_buffer_limits() == (0, 0)
        transport.write(b"fits")
        assert protocol.calls == ["made"]
        transport.write(BIG)
        assert protocol.calls == ["made", "pause"]
        await read_all(far, len(BIG) + 4)
        await until(lambda: protocol.calls[-1] == "resume")
        assert transport.get_write_buffer_size() == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, (16384, 65536)),
        ({"high": 1000}, (250, 1000)),
        ({"low": 1000}, (1000, 4000)),
        ({"high": 100, "low": 10}, (10, 100)),
        ({"high": 50, "low": 50}, (50, 50)),
    ],
)
async def test_limits_not_given_follow_from_the_other(
    loop: Loop, arguments: dict[str, int], expected: tuple[int, int]
) -> None:
    async with connected() as (transport, _, _):
        transport.set_write_buffer_limits(high=7, low=3)
        transport.set_write_buffer_limits(**arguments)
        assert transport.get_write_buffer_limits() == expected


@pytest.mark.parametrize("arguments", [{"high": 1, "low": 2}, {"high": -1}, {"high": 5, "low": -1}])
async def test_impossible_limits_are_refused(loop: Loop, arguments: dict[str, int]) -> None:
    async with connected() as (transport, _, _):
        with pytest.raises(ValueError, match="must be >="):
            transport.set_write_buffer_limits(**arguments)
        assert transport.get_write_buffer_limits() == (16384, 65536)


async def test_lowering_the_limit_below_the_buffer_pauses(loop: Loop) -> None:
    async with connected() as (transport, protocol, far):
        transport.set_write_buffer_limits(high=2 * len(BIG))
        transport.write(BIG)
        assert protocol.calls == ["made"]
        transport.set_write_buffer_limits(high=10)
        assert protocol.calls == ["made", "pause"]
        await read_all(far, len(BIG))
        await until(lambda: protocol.calls[-1] == "resume")


async def test_drain_waits_for_a_slow_reader(loop: Loop) -> None:
    drained: list[str] = []
    async with connected() as (transport, _, far):
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport.set_protocol(protocol)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        writer.write(BIG)

        async def drain() -> None:
            await writer.drain()
            drained.append("drained")

        task = loop.create_task(drain())
        await asyncio.sleep(0.005)
        assert drained == []
        await read_all(far, len(BIG))
        await task
        writer.close()
        await writer.wait_closed()


async def test_a_writer_waiting_in_drain_learns_of_the_loss(loop: Loop) -> None:
    async with connected() as (transport, _, far):
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        protocol.connection_made(transport)
        transport.set_protocol(protocol)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        writer.write(BIG)
        task = loop.create_task(writer.drain())
        await asyncio.sleep(0)
        far.close()
        with pytest.raises(ConnectionError):
            await task
        writer.close()
        with pytest.raises(ConnectionError):
            await writer.wait_closed()
        assert reader.exception() is not None


@pytest.mark.parametrize("name", ["pause_writing", "resume_writing"])
async def test_a_protocol_that_fails_in_flow_control_is_reported(
    loop: Loop, asyncio_log: AsyncioLog, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise LookupError("broken")

    async with connected() as (transport, protocol, far):
        monkeypatch.setattr(protocol, name, broken)
        transport.write(BIG)
        assert await read_all(far, len(BIG)) == BIG
        await until(lambda: transport.get_write_buffer_size() == 0)
        assert not transport.is_closing()
    asyncio_log.expect(f"protocol.{name}() failed")


async def test_writing_again_from_resume_writing(loop: Loop) -> None:
    class Refilling(Recorder):
        left = 3

        def resume_writing(self) -> None:
            super().resume_writing()
            if self.left:
                self.left -= 1
                self.transport.write(BIG)

    async with connected(Refilling()) as (transport, protocol, far):
        transport.write(BIG)
        await read_all(far, 4 * len(BIG))
        await until(lambda: protocol.calls.count("resume") == 4)
        assert protocol.calls == ["made", *["pause", "resume"] * 4]


async def test_close_while_paused_sends_everything_first(loop: Loop) -> None:
    async with connected() as (transport, protocol, far):
        transport.write(BIG)
        transport.close()
        assert transport.is_closing()
        assert await read_all(far, len(BIG) + 1) == BIG
        await until(lambda: protocol.lost)
        assert protocol.error is None
        assert protocol.calls[:2] == ["made", "pause"]
        assert protocol.calls[-1] == "lost"


async def test_abort_while_paused_drops_the_rest(loop: Loop) -> None:
    async with connected() as (transport, protocol, far):
        transport.write(BIG)
        transport.abort()
        assert transport.get_write_buffer_size() == 0
        await until(lambda: protocol.lost)
        assert protocol.calls == ["made", "pause", "lost"]
        got: Any = await read_all(far, len(BIG))
        assert len(got) < len(BIG)
