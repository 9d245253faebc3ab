"""The reader of a connection is asyncio's StreamReader in all that can be seen, however bytes came
to it and whatever mixture of methods takes them out."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest
from loopkit import streams, turns, until

if TYPE_CHECKING:
    import socket

    from loopkit import Loop


async def take(reader: Any, rng: random.Random, left: bytes) -> bytes:
    """Some of what is left, by a method of the reader that cannot wait for ever."""
    size = rng.choice([1, 7, 100, 1000, 100_000])
    match rng.randrange(4):
        case 0:
            end = left.find(b"\n", 0, 60_000)
            if end >= 0:
                line: bytes = await reader.readline()
                assert line == left[: end + 1]
                return line
        case 1:
            exact: bytes = await reader.readexactly(min(size, len(left)))
            return exact
        case 2:
            await turns(rng.randrange(3))
    some: bytes = await reader.read(size)
    assert 0 < len(some) <= size
    return some


@pytest.mark.parametrize("seed", range(8))
async def test_any_mixture_of_methods_gives_the_bytes_in_order(loop: Loop, seed: int) -> None:
    rng = random.Random(seed)
    pieces = [rng.randbytes(rng.choice([1, 50, 1000, 20_000, 150_000])) for _ in range(60)]
    message = b"".join(pieces)

    async def send(far: socket.socket) -> None:
        for piece in pieces:
            await loop.sock_sendall(far, piece)
            await turns(rng.randrange(4))

    async with streams() as (reader, _, far):
        sending = loop.create_task(send(far))
        done = 0
        while done < len(message):
            data = await take(reader, rng, message[done:])
            assert data == message[done : done + len(data)]
            done += len(data)
        await sending


@pytest.mark.parametrize("feeds", [[b"alone"], [b"first", b"second"], [bytearray(b"array")]])
async def test_what_was_fed_is_read(loop: Loop, feeds: list[Any]) -> None:
    async with streams() as (reader, _, _):
        for data in feeds:
            reader.feed_data(data)
        reader.feed_data(b"")
        assert await reader.read(100) == b"".join(feeds)
        reader.feed_data(b"more")
        assert await reader.read(1) == b"m"
        reader.feed_data(b" and more")
        assert await reader.read(2) == b"or"
        reader.feed_eof()
        assert not reader.at_eof()
        assert await reader.read(-1) == b"e and more"
        assert reader.at_eof()
        assert await reader.read(10) == b""


@pytest.mark.loops("tloop")
async def test_a_chunk_that_comes_alone_is_not_copied(loop: Loop) -> None:
    chunk = b"x" * 1000
    loop.set_debug(False)  # in which the reader is asyncio's
    async with streams() as (reader, _, _):
        for _ in range(3):
            reader.feed_data(chunk)
            assert await reader.read(4096) is chunk
        reader.feed_data(b"12345")
        assert await reader.readexactly(5) == b"12345"
        assert type(reader) is asyncio.StreamReader


async def test_read_of_nothing_leaves_what_is_there(loop: Loop) -> None:
    async with streams() as (reader, _, _):
        reader.feed_data(b"kept")
        assert await reader.read(0) == b""
        assert await reader.read(4) == b"kept"


async def test_a_size_that_is_no_integer_is_answered_as_by_asyncio(loop: Loop) -> None:
    async def outcome(reader: asyncio.StreamReader, size: Any) -> object:
        reader.feed_data(b"kept")
        try:
            return await reader.read(size)
        except TypeError as error:
            await reader.readexactly(4)  # nothing was lost
            return str(error)

    for size in (float("inf"), 2.5, "4", None, True):  # CPython 3.15 answers inf
        async with streams() as (reader, _, _):
            plain = asyncio.StreamReader(loop=loop)
            expected = [await outcome(plain, size), bytes(plain._buffer)]
            assert [await outcome(reader, size), bytes(reader._buffer)] == expected


async def test_the_buffer_holds_what_was_fed(loop: Loop) -> None:
    async with streams() as (reader, _, _):
        reader.feed_data(b"seen")
        assert repr(reader).startswith("<StreamReader 4 bytes transport=")
        assert reader._buffer == bytearray(b"seen")
        reader._buffer.clear()
        reader.feed_data(b"other")
        reader._buffer = bytearray(b"replaced")
        assert await reader.read(100) == b"replaced"


async def test_a_kept_method_feeds_the_reader_of_later(loop: Loop) -> None:
    async with streams() as (reader, _, _):
        feed, read, exactly = reader.feed_data, reader.read(100), reader.readexactly(1)
        feed(b"1line\n")
        assert await exactly == b"1"
        assert await reader.readline() == b"line\n"
        feed(b"more")
        assert await read == b"more"


async def test_too_much_pauses_reading_until_it_is_read(loop: Loop) -> None:
    async with streams(limit=1000) as (reader, _, _):
        transport = reader._transport
        reader.feed_data(b"x" * 2000)
        assert transport.is_reading()
        reader.feed_data(b"y")
        assert not transport.is_reading()
        assert len(await reader.read(5000)) == 2001
        assert transport.is_reading()
        reader.feed_data(b"z" * 2001)
        assert not transport.is_reading()
        assert len(await reader.read(1000)) == 1000
        assert not transport.is_reading()
        assert len(await reader.read(1000)) == 1000
        assert transport.is_reading()
        assert len(await reader.read(1000)) == 1


async def test_a_large_chunk_pauses_reading_until_it_is_read(loop: Loop) -> None:
    async with streams(limit=1000) as (reader, _, far):
        far.send(b"x" * 3000)
        await until(lambda: not reader._transport.is_reading())
        assert await reader.read(3000) == b"x" * 3000
        assert reader._transport.is_reading()
        far.send(b"y")
        assert await reader.read(3000) == b"y"


@pytest.mark.parametrize("method", ["read", "readexactly"])
async def test_one_coroutine_waits_at_a_time(loop: Loop, method: str) -> None:
    async with streams() as (reader, _, far):
        first, second = [loop.create_task(getattr(reader, method)(1)) for _ in range(2)]
        await turns()
        with pytest.raises(RuntimeError, match=f"{method}.. called while another coroutine"):
            await second
        far.send(b"1")
        assert await first == b"1"


async def test_an_exception_comes_before_what_was_fed(loop: Loop) -> None:
    async with streams() as (reader, _, _):
        reader.feed_data(b"late")
        reader.set_exception(ValueError("first"))
        with pytest.raises(ValueError, match="first"):
            await reader.read(10)


async def test_feeding_after_the_end_is_refused(loop: Loop) -> None:
    async with streams() as (reader, _, _):
        reader.feed_eof()
        with pytest.raises(AssertionError, match="feed_data after feed_eof"):
            reader.feed_data(b"late")


async def test_a_cancelled_read_loses_nothing(loop: Loop) -> None:
    async with streams() as (reader, _, far):
        reading = loop.create_task(reader.read(100))
        await turns()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        far.send(b"kept")
        assert await reader.read(100) == b"kept"


async def test_methods_replaced_on_the_class_are_used(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[bytes] = []
    monkeypatch.setattr(asyncio.StreamReader, "feed_data", lambda _, data: fed.append(data))
    async with streams() as (_, _, far):
        far.send(b"watched")
        await until(lambda: b"".join(fed) == b"watched")


async def test_debug_mode_keeps_the_reader_of_asyncio(loop: Loop) -> None:
    loop.set_debug(True)
    async with streams() as (reader, _, far):
        assert type(reader) is asyncio.StreamReader
        far.send(b"seen")
        assert await reader.read(100) == b"seen"
