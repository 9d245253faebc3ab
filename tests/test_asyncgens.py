"""Asynchronous generators are closed by the loop that ran them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import pytest
from conftest import AsyncioLog
from loopkit import Loop, collect, until


class Numbers:
    """Makes endless generators and notes when each is closed."""

    def __init__(self) -> None:
        self.closed = 0

    async def count(self) -> AsyncIterator[int]:
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            await asyncio.sleep(0)  # closing needs the loop
            self.closed += 1


async def test_a_generator_dropped_half_way_is_closed_by_the_loop(loop: Loop) -> None:
    numbers = Numbers()
    async for number in numbers.count():
        if number == 2:
            break
    collect()
    await until(lambda: numbers.closed)
    assert numbers.closed == 1


def test_shutdown_closes_the_generators_still_open(loop: Loop) -> None:
    numbers = Numbers()
    generators = [numbers.count() for _ in range(3)]

    async def start() -> list[int]:
        return [await anext(generator) for generator in generators]

    assert loop.run_until_complete(start()) == [0, 0, 0]
    loop.run_until_complete(loop.shutdown_asyncgens())
    assert numbers.closed == 3


def test_a_generator_that_fails_in_its_end_is_reported(loop: Loop, asyncio_log: AsyncioLog) -> None:
    async def broken() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise LookupError("broken")

    generator = broken()

    async def start() -> int:
        return await anext(generator)

    loop.run_until_complete(start())
    loop.run_until_complete(loop.shutdown_asyncgens())
    asyncio_log.expect("an error occurred during closing of asynchronous generator")


def test_a_generator_first_used_after_the_shutdown_warns(loop: Loop) -> None:
    loop.run_until_complete(loop.shutdown_asyncgens())
    generator = Numbers().count()

    async def start() -> int:
        return await anext(generator)

    with pytest.warns(ResourceWarning, match="was scheduled after"):
        loop.run_until_complete(start())
    loop.run_until_complete(generator.aclose())  # type: ignore[attr-defined]


def test_the_loop_sets_its_hooks_only_while_it_runs(loop: Loop) -> None:
    async def hooks() -> object:
        return sys.get_asyncgen_hooks()

    before = sys.get_asyncgen_hooks()
    assert loop.run_until_complete(hooks()) != before
    assert sys.get_asyncgen_hooks() == before
