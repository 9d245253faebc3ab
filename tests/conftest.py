"""Each behaviour test runs on tloop and on stock asyncio, and must leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import os
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import cast

import pytest
from loopkit import (
    FACTORIES,
    HERE,
    PATIENCE,
    REFCOUNTS,
    TESTED,
    Loop,
    LoopFactory,
    collect,
    live_handles,
    open_fds,
    selected_loops,
    turns,
)
from tlskit import ENGINES, client_context, kind_of, server_context


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than a moment, or sleeps on purpose")
    config.addinivalue_line("markers", "real: of real time or descriptors, which dummy has not")
    config.addinivalue_line("markers", "engines(*names): what is tested concerns these only")
    config.addinivalue_line("markers", "loops(*names): what is tested is promised by these only")


def pytest_sessionstart() -> None:
    """uvloop's first loop opens what all loops of the process share: no test is to blame for it."""
    for name in set(selected_loops()) - set(TESTED):
        FACTORIES[name]().close()


def pytest_collection_finish() -> None:
    freeze: Callable[[], None] | None = getattr(gc, "freeze", None)  # PyPy has none
    if freeze:
        freeze()  # what pytest itself made need not be looked at in the collection of each test


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "loop_name" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("loops")
        # docs/compatibility.md also tells of loops that do not promise what is tested.
        unpromised = marker is None or "TLOOP_TEST_UNPROMISED" in os.environ
        wanted = tuple(FACTORIES) if unpromised else marker.args
        loops = [name for name in selected_loops() if name in wanted]
        if "engine" in metafunc.fixturenames:
            metafunc.parametrize(
                ("loop_name", "engine"),
                [(loop, engine) for loop in loops for engine in engines_of(metafunc, loop)],
            )
        else:
            metafunc.parametrize("loop_name", loops)


def engines_of(metafunc: pytest.Metafunc, loop: str) -> list[str]:
    """Who does TLS: the interpreter's ssl, and on tloop a TLSContext on either side or both."""
    if loop != "tloop":
        return ["ssl"]
    marker = metafunc.definition.get_closest_marker("engines")
    if marker:
        return list(marker.args)
    names = metafunc.function.__code__.co_names
    # A Peer is the interpreter's ssl, and there the server.
    return ["ssl", "client"] if "tls_connected" in names else ENGINES


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> Mapping[str, LoopFactory]:
    """The way users tell pytest-asyncio which loops to use; see test_pytest_asyncio.py."""
    return {name: FACTORIES[name] for name in selected_loops()}


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an `async def` test on the `loop` fixture, which lives on for the checks after it."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj) or "loop" not in pyfuncitem.funcargs:
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names}

    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE):
            await pyfuncitem.obj(**arguments)

    loop = cast("Loop", pyfuncitem.funcargs["loop"])
    loop.run_until_complete(bounded())
    return True


class AsyncioLog(logging.Handler):
    """Warnings and errors that the loop logged; each must be expected by the test.

    Apart from what debug mode alone tells, and what is no fault: a busy machine makes any callback
    slow, and any peer can make a handshake fail.
    """

    IN_DEBUG_MODE = ("Executing <", "Error on transport creation for incoming connection")

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []
        self.in_debug_mode: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith(self.IN_DEBUG_MODE):
            self.in_debug_mode.append(text)
        else:
            self.records.append(record)

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]

    def expect(self, text: str) -> logging.LogRecord:
        """Take out the first record that has the text."""
        for record in self.records:
            if text in record.getMessage():
                self.records.remove(record)
                return record
        raise AssertionError(f"{text!r} was not logged; logged: {self.messages}")


@pytest.fixture
def asyncio_log() -> Iterator[AsyncioLog]:
    handler = AsyncioLog()
    loggers = [logging.getLogger(name) for name in ("asyncio", "tloop_py")]
    for logger in loggers:
        logger.addHandler(handler)
    yield handler
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, asyncio_log: AsyncioLog) -> Iterator[None]:
    """No fd, thread, log line or warning outlives a test; folders below have their own rules."""
    if request.path.parent != HERE:
        yield
        return
    fds, threads = open_fds(), set(threading.enumerate())
    yield

    def left() -> dict[str, str]:
        return {fd: target for fd, target in open_fds().items() if fds.get(fd) != target}

    if REFCOUNTS or left():  # elsewhere a collection takes longer than most tests
        collect()  # an unclosed object warns now, so in the test that left it
    assert not asyncio_log.messages, "the loop logged what the test did not expect"
    assert not left(), "file descriptors left open"
    assert not set(threading.enumerate()) - threads, "threads left running"


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder whose path is short enough for names of Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="tl-") as path:
        yield Path(path)


@pytest.fixture
def loop_factory(loop_name: str) -> LoopFactory:
    return FACTORIES[loop_name]


@pytest.fixture
def loop(loop_factory: LoopFactory, nothing_left_behind: None) -> Iterator[Loop]:
    loop = loop_factory()
    idle = live_handles(loop)
    yield loop
    if not loop.is_closed():
        close_clean(loop, idle)


@pytest.fixture
def server_tls(engine: str) -> ssl.SSLContext:
    return server_context(kind=kind_of("server", engine))


@pytest.fixture
def client_tls(engine: str) -> ssl.SSLContext:
    return client_context(kind_of("client", engine))


def close_clean(loop: Loop, idle: int) -> None:
    """Close the loop; it must have no task and no handle left by then."""

    async def settle() -> set[asyncio.Task[object]]:
        await turns(10)
        await asyncio.sleep(0.0001)  # a wait, in which the C core ends what was closed
        return asyncio.all_tasks() - {asyncio.current_task()}

    tasks = loop.run_until_complete(settle())
    if live_handles(loop) > idle:
        collect()  # the loop remembers a raw socket while the object lives
        loop.run_until_complete(settle())
    handles = live_handles(loop) - idle
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    assert not tasks, "tasks left pending"
    assert handles == 0, "handles of the C core left alive"
