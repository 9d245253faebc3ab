"""Connections over every kind of wire: protocols, streams, upgrades to TLS, short-lived servers."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from tests.soak.field import SERVER_NAME, Field, Round, bounded
from tests.soak.protocols import (
    BufferedClient,
    BufferedEcho,
    Client,
    Echo,
    pause_now_and_then,
)
from tests.soak.wires import serving, serving_on_all

SIZES = [1, 100, 1000, 5000, 1 << 16, 300_000]  # of a message, at most


async def talk(field: Field, rng: random.Random, connection: Any, client: Any) -> None:
    """Send messages to an echo; each byte must come back."""
    transport, protocol = await connection
    try:
        await _messages(field, rng, transport, protocol, client)
        if rng.random() < 0.5:
            transport.close()
    finally:
        transport.abort()
        await protocol.ended()


async def _messages(
    field: Field, rng: random.Random, transport: Any, protocol: Any, pattern: Any
) -> None:
    largest = rng.choice(SIZES)
    for _ in range(rng.randrange(1, 12)):
        if rng.random() < 0.2:
            transport.writelines([pattern.take(rng.randrange(largest)) for _ in range(5)])
        else:
            transport.write(pattern.take(rng.randint(1, largest)))
        await protocol.writable()
        await pause_now_and_then(transport, rng)
        if rng.random() < 0.5:
            await protocol.received(pattern.count)
    await protocol.received(pattern.count)


@asynccontextmanager
async def protocols(field: Field) -> AsyncIterator[Round]:
    def accept() -> Any:
        return field.rng.choice((Echo, BufferedEcho))(field)

    async with serving_on_all(field, accept) as wires:

        async def one_round(rng: random.Random) -> int:
            sent, expected = field.patterns(rng)
            kind = rng.choice((Client, BufferedClient))
            connection = rng.choice(wires).connection(field, lambda: kind(field, expected))
            await talk(field, rng, connection, sent)
            return expected.count

        yield one_round


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """For each line with a number, that many bytes follow; their digest is the answer."""
    while line := await reader.readline():
        body = await reader.readexactly(int(line))
        writer.write(hashlib.sha256(body).digest())
        await writer.drain()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await _answer(reader, writer)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the client was cancelled, and hung up
    finally:
        await hang_up(writer)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, EOFError):  # what the peer did to the connection before
        await bounded(writer.wait_closed(), "the end of a stream")


async def _ask(
    field: Field, rng: random.Random, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> int:
    pattern, _ = field.patterns(rng)
    for _ in range(rng.randrange(1, 8)):
        body = pattern.take(rng.randrange(rng.choice(SIZES)))
        writer.write(b"%d\n" % len(body))
        writer.write(body)
        await writer.drain()
        digest = await bounded(reader.readexactly(32), "the digest")
        assert digest == hashlib.sha256(body).digest(), f"other bytes than the {len(body)} sent"
    return pattern.count


@asynccontextmanager
async def lines_and_blocks(field: Field) -> AsyncIterator[Round]:
    async with serving_on_all(field, _serve, streams=True) as wires:

        async def one_round(rng: random.Random) -> int:
            reader, writer = await rng.choice(wires).connection(field)
            try:
                return await _ask(field, rng, reader, writer)
            finally:
                await hang_up(writer)

        yield one_round


async def _upgrade(writer: asyncio.StreamWriter, **options: Any) -> None:
    """When start_tls fails, asyncio tells no protocol of the end: wait_closed() would hang."""
    try:
        await writer.start_tls(**options)
    except BaseException:
        writer.transport.abort()
        raise


async def _serve_upgrade(
    field: Field, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    if await reader.readline() != b"STARTTLS\n":  # the client was cancelled
        await hang_up(writer)
        return
    writer.write(b"go\n")
    with contextlib.suppress(OSError):
        await _upgrade(writer, sslcontext=field.server_tls)
        await _serve(reader, writer)


@asynccontextmanager
async def start_tls(field: Field) -> AsyncIterator[Round]:
    async def one_round(rng: random.Random) -> int:
        reader, writer = await wire.connection(field)
        try:
            writer.write(b"STARTTLS\n")
            assert await bounded(reader.readline(), "the answer to STARTTLS") == b"go\n"
        except BaseException:
            await hang_up(writer)
            raise
        await _upgrade(writer, sslcontext=field.client_tls, server_hostname=SERVER_NAME)
        try:
            return await _ask(field, rng, reader, writer)
        finally:
            await hang_up(writer)

    serve = partial(_serve_upgrade, field)
    async with serving(field, serve, unix=False, tls=False, streams=True) as wire:
        yield one_round


@asynccontextmanager
async def servers(field: Field) -> AsyncIterator[Round]:
    async def one_round(rng: random.Random) -> int:
        kind = {"unix": rng.random() < 0.5, "tls": rng.random() < 0.3}
        total = 0
        async with serving(field, lambda: Echo(field), **kind) as wire:
            for _ in range(rng.randrange(3)):
                sent, expected = field.patterns(rng)
                connection = wire.connection(field, lambda e=expected: Client(field, e))
                await talk(field, rng, connection, sent)
                total += expected.count
        return total

    yield one_round
