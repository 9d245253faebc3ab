"""pytest-asyncio, configured as users do: a hook in conftest.py names the loop factories."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from loopkit import Echo, listening

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def address() -> AsyncIterator[tuple[str, int]]:
    async with listening(Echo) as address:
        yield address


async def test_the_test_runs_on_the_loop_that_was_asked_for(
    request: pytest.FixtureRequest,
) -> None:
    wanted = "tloop_py" if "tloop" in request.node.name.split("[")[-1] else "asyncio"
    if "[" in request.node.name:  # the only loop selected is not named
        assert type(asyncio.get_running_loop()).__module__.split(".")[0] == wanted


async def test_fixtures_share_the_loop_of_the_test(address: tuple[str, int]) -> None:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    writer.close()
    await writer.wait_closed()
