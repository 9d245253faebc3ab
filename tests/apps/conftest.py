"""Every real program runs on tloop and on stock asyncio, and must leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from appkit import HERE, PATIENCE, Certificates, selected_loops
from loopkit import FACTORIES, LoopFactory, live_handles
from servers import PostgresServer, RedisServer, running_postgres, running_redis


class Log(Protocol):
    """The part of tests/conftest.py's log recorder that is used here."""

    messages: list[str]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.apps)
            item.add_marker(pytest.mark.timeout(2 * PATIENCE))


@pytest.fixture(scope="session", params=selected_loops())
def app_loop(request: pytest.FixtureRequest) -> str:
    """The name of the loop that the programs run on."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def loop_factory(app_loop: str) -> LoopFactory:
    return FACTORIES[app_loop]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def postgres(certificates: Certificates) -> Iterator[PostgresServer]:
    with running_postgres(certificates) as server:
        yield server


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an `async def` test on a loop of its own, which must be idle when the test ends."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    factory: Any = pyfuncitem.funcargs["loop_factory"]
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(bounded(pyfuncitem.obj, arguments))
        tasks = runner.run(settled())
        assert not tasks, "tasks left pending"
    return True


async def bounded(test: Any, arguments: dict[str, Any]) -> None:
    idle = live_handles(asyncio.get_running_loop())
    async with asyncio.timeout(PATIENCE):
        await test(**arguments)
    gc.collect()  # tloop forgets a closed socket when its object goes, which a traceback may hold
    await settled()
    assert live_handles(asyncio.get_running_loop()) <= idle, "handles of the C core left alive"


async def settled() -> set[asyncio.Task[Any]]:
    """Let transports that were closed come to their end; gives the tasks that are still there."""
    for _ in range(50):
        await asyncio.sleep(0)
    return asyncio.all_tasks() - {asyncio.current_task()}


def open_fds() -> dict[str, str]:
    folder = Path("/proc/self/fd")
    paths = [folder / name for name in os.listdir(folder)]
    return {path.name: os.readlink(path) for path in paths if path.is_symlink()}


def child_processes() -> set[str]:
    """The ids of all living or unreaped processes that the main thread started."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.fixture(autouse=True)
def nothing_left_behind(loop_factory: LoopFactory, asyncio_log: Log) -> Iterator[None]:
    """No fd, thread, process, log line or warning outlives a test; servers are started before."""
    fds, threads, processes = open_fds(), set(threading.enumerate()), child_processes()
    yield
    gc.collect()  # an unclosed object warns now, so in the test that left it
    assert not asyncio_log.messages, "the loop logged what the test did not expect"
    left = {fd: target for fd, target in open_fds().items() if fds.get(fd) != target}
    assert not left, "file descriptors left open"
    for thread in set(threading.enumerate()) - threads:
        thread.join(PATIENCE)  # anyio tells its threads to end, but does not wait
    assert not set(threading.enumerate()) - threads, "threads left running"
    assert not child_processes() - processes, "processes left running"
