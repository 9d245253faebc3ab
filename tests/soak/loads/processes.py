"""Subprocesses, and pipes within this process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.soak.field import Field, Pattern, Round, bounded
from tests.soak.protocols import Checked, Client


@asynccontextmanager
async def _started(*words: str, **options: Any) -> AsyncIterator[Process]:
    """A child that has ended afterwards, with its pipes read to their end."""
    process = await asyncio.create_subprocess_exec(*words, **options)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await bounded(process.communicate(), "the end of a child")


async def _exit_code(rng: random.Random) -> int:
    code = rng.randrange(256)
    async with _started("/bin/sh", "-c", f"exit {code}", stdin=DEVNULL) as process:
        got = await bounded(process.wait(), "an exit code")
        assert got == code, f"exit code {got} instead of {code}"
    return 0


async def _signalled(rng: random.Random) -> int:
    number = rng.choice([signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
    async with _started("/bin/sleep", "1000", stdin=DEVNULL, stdout=PIPE) as process:
        process.send_signal(number)
        got = await bounded(process.wait(), "the end of a child that was sent a signal")
        assert got == -number, f"return code {got} after signal {number}"
    return 0


async def _through_cat(sent: Pattern, expected: Pattern, size: int) -> int:
    async with _started("/bin/cat", stdin=PIPE, stdout=PIPE) as process:
        output, _ = await bounded(process.communicate(sent.take(size)), "what a child wrote")
        expected.check(output)
        assert len(output) == size, f"{len(output)} of {size} bytes"
        assert process.returncode == 0
    return size


@asynccontextmanager
async def subprocesses(field: Field) -> AsyncIterator[Round]:
    async def one_round(rng: random.Random) -> int:
        what = rng.randrange(3)
        if what == 0:
            return await _exit_code(rng)
        if what == 1:
            return await _signalled(rng)
        return await _through_cat(*field.patterns(rng), rng.randrange(300_000))

    yield one_round


class _Writer(Checked, asyncio.BaseProtocol):
    pass


async def _write(rng: random.Random, writer: _Writer, sent: Pattern) -> None:
    for _ in range(rng.randrange(1, 10)):
        writer.transport.write(sent.take(rng.randint(1, 100_000)))
        await writer.writable()


@asynccontextmanager
async def pipes(field: Field) -> AsyncIterator[Round]:
    loop = asyncio.get_running_loop()

    async def one_round(rng: random.Random) -> int:
        sent, expected = field.patterns(rng)
        reader, writer = Client(field, expected), _Writer(field)
        read_fd, write_fd = os.pipe()
        with open(read_fd, "rb", 0) as source, open(write_fd, "wb", 0) as sink:  # noqa: ASYNC230
            source_transport, _ = await loop.connect_read_pipe(lambda: reader, source)
            try:
                sink_transport, _ = await loop.connect_write_pipe(lambda: writer, sink)
                try:
                    await _write(rng, writer, sent)
                    await reader.received(sent.count)
                finally:
                    sink_transport.close()
                    await writer.ended()
            finally:
                source_transport.close()
                await reader.ended()
        return expected.count

    yield one_round
