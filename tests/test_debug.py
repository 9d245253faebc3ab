"""Debug mode: all the checks and log lines that asyncio has."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import AsyncioLog
from loopkit import (
    REFCOUNTS,
    Loop,
    Recorder,
    collect,
    connected,
    finish,
    listening,
    python,
    run_python,
    tcp_sockets,
    turns,
    until,
    warnings_seen,
)


@pytest.fixture
def debug_loop(loop: Loop) -> Loop:
    loop.set_debug(True)
    loop.slow_callback_duration = 10  # this machine may be busy
    return loop


def assert_slow(log: AsyncioLog, pattern: str) -> None:
    """What matches was logged once; a busy machine may have made other callbacks slow, too."""
    found = [
        text for text in log.in_debug_mode if re.search(f"^Executing {pattern}.* took \\d", text)
    ]
    assert len(found) == 1, log.in_debug_mode


def test_debug_mode_can_be_switched(loop: Loop) -> None:
    before = loop.get_debug()
    loop.set_debug(True)
    assert loop.get_debug()
    assert "debug=True" in repr(loop)
    loop.set_debug(before)


def test_a_subclass_may_decide_about_debug_mode(loop: Loop) -> None:
    class Debugged(type(loop)):  # type: ignore[misc]
        def get_debug(self) -> bool:
            return True

    with contextlib.closing(Debugged()) as debugged:
        assert debugged.create_future()._source_traceback
        debugged.set_debug(False)
        assert debugged.create_future()._source_traceback


@pytest.mark.parametrize(("value", "expected"), [("1", "True"), ("", "False")])
def test_the_environment_switches_debug_mode_on(loop_name: str, value: str, expected: str) -> None:
    out = run_python(
        "import sys, loopkit\n"
        "loop = loopkit.FACTORIES[sys.argv[1]]()\n"
        "print(loop.get_debug())\n"
        "loop.close()\n",
        loop_name,
        env={"PYTHONASYNCIODEBUG": value},
    )
    assert out.strip() == expected


def test_a_slow_callback_is_logged(loop: Loop, asyncio_log: AsyncioLog) -> None:
    loop.set_debug(True)
    loop.slow_callback_duration = 0.005
    loop.call_soon(time.sleep, 0.006)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert_slow(asyncio_log, r"<Handle sleep\(0.006\).* created at .*test_debug.py")


def test_a_slow_step_of_a_task_is_logged(loop: Loop, asyncio_log: AsyncioLog) -> None:
    async def slow() -> None:
        time.sleep(0.006)  # noqa: ASYNC251 -- being slow is the point

    loop.set_debug(True)
    loop.slow_callback_duration = 0.005
    loop.run_until_complete(slow())
    assert_slow(asyncio_log, r"<Task finished .*slow\(\).* created at")


def test_slow_callbacks_are_not_logged_without_debug_mode(
    loop: Loop, asyncio_log: AsyncioLog
) -> None:
    loop.set_debug(False)
    loop.slow_callback_duration = 0.001
    loop.run_until_complete(asyncio.sleep(0))
    loop.call_soon(time.sleep, 0.002)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert not asyncio_log.in_debug_mode


async def test_slow_data_received_is_logged(loop: Loop, asyncio_log: AsyncioLog) -> None:
    class Slow(Recorder):
        def data_received(self, data: bytes) -> None:
            time.sleep(0.006)
            super().data_received(data)

    loop.set_debug(True)
    loop.slow_callback_duration = 0.005
    async with connected(Slow()) as (_, protocol, far):
        far.send(b"hello")
        await protocol.received(5)
    shown = r"StreamTransport._event\(DATA, 5\) of <StreamTransport fd=\d+ .* protocol=<.*Slow"
    assert_slow(asyncio_log, rf"<Handle ({shown}|_SelectorSocketTransport._read_ready\(\))")


@pytest.mark.parametrize("side", ["reader", "writer"])
async def test_a_slow_reader_is_logged_once(loop: Loop, asyncio_log: AsyncioLog, side: str) -> None:
    """It runs within an event of the C core, which is not to be blamed as well."""
    loop.set_debug(True)
    loop.slow_callback_duration = 0.005
    near, far = tcp_sockets()
    far.send(b"x")
    called = asyncio.Event()

    def slow() -> None:
        getattr(loop, f"remove_{side}")(near)
        called.set()
        time.sleep(0.006)

    with near, far:
        getattr(loop, f"add_{side}")(near, slow)
        await called.wait()
        await turns()
    assert_slow(asyncio_log, r"<Handle .*slow\(\)|<Handle cancelled .*slow\(\)")
    assert sum("slow()" in text or "_Descriptor" in text for text in asyncio_log.in_debug_mode) == 1


def test_a_slow_timer_is_logged(loop: Loop, asyncio_log: AsyncioLog) -> None:
    loop.set_debug(True)
    loop.slow_callback_duration = 0.005
    loop.call_later(0, time.sleep, 0.006)
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    assert_slow(asyncio_log, r"<TimerHandle when=\S+ sleep\(0.006\).* created at .*test_debug.py")


def test_a_slow_signal_handler_is_logged(loop: Loop, asyncio_log: AsyncioLog) -> None:
    def slow() -> None:
        time.sleep(0.006)
        loop.stop()

    loop.set_debug(True)
    loop.slow_callback_duration = 0.005
    loop.add_signal_handler(signal.SIGUSR1, slow)
    os.kill(os.getpid(), signal.SIGUSR1)
    loop.run_forever()
    loop.remove_signal_handler(signal.SIGUSR1)
    assert_slow(asyncio_log, r"<Handle .*slow\(\)")


UNSAFE: dict[str, Callable[[Loop], object]] = {
    "call_soon": lambda loop: loop.call_soon(print),
    "call_later": lambda loop: loop.call_later(0, print),
    "call_at": lambda loop: loop.call_at(0, print),
    "add_done_callback": lambda loop: done_future(loop).add_done_callback(print),
}


def done_future(loop: Loop) -> asyncio.Future[None]:
    future = loop.create_future()
    future.set_result(None)
    return future


@pytest.mark.parametrize("method", UNSAFE)
async def test_calls_from_another_thread_are_detected(loop: Loop, method: str) -> None:
    loop.set_debug(True)
    loop.slow_callback_duration = 10
    errors: list[Exception] = []

    def work() -> None:
        try:
            UNSAFE[method](loop)
        except RuntimeError as exc:
            errors.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "Non-thread-safe operation" in str(errors[0])


def source_of(thing: Any) -> str:
    """The function in which a handle, future or task was made: the innermost frame's."""
    name: str = thing._source_traceback[-1].name
    return name


HANDLES: dict[str, Callable[[Loop], Any]] = {
    "call_soon": lambda loop: loop.call_soon(print),
    "call_soon_threadsafe": lambda loop: loop.call_soon_threadsafe(print),
    "call_later": lambda loop: loop.call_later(1000, print),
    "call_at": lambda loop: loop.call_at(loop.time() + 1000, print),
}


@pytest.mark.parametrize("method", HANDLES)
def test_handles_tell_where_they_were_made(debug_loop: Loop, method: str) -> None:
    handle = HANDLES[method](debug_loop)
    assert f"created at {__file__}:" in repr(handle)
    assert source_of(handle) == "<lambda>"
    handle.cancel()
    assert "print()" in repr(handle)  # what was cancelled can still be told


async def test_tasks_and_futures_tell_where_they_were_made(debug_loop: Loop) -> None:
    def make() -> list[asyncio.Future[Any]]:
        return [
            debug_loop.create_task(asyncio.sleep(0)),
            asyncio.create_task(asyncio.sleep(0)),
            asyncio.Task(asyncio.sleep(0), loop=debug_loop),
        ]

    made = make()
    assert [source_of(task) for task in made] == ["make", "create_task", "make"]
    await asyncio.gather(*made)
    assert debug_loop.create_future()._source_traceback  # type: ignore[attr-defined]


async def test_an_exception_no_one_awaits_tells_where_its_task_was_made(debug_loop: Loop) -> None:
    contexts: list[dict[str, Any]] = []
    debug_loop.set_exception_handler(lambda _, context: contexts.append(context))

    async def failing() -> None:
        raise LookupError

    def forget() -> None:
        debug_loop.create_task(failing())

    forget()
    await turns()
    collect()
    assert contexts[0]["source_traceback"][-1].name == "forget"


FAILING: dict[str, Callable[[Loop, Any], Any]] = {
    "call_soon": lambda loop, fail: loop.call_soon(fail),
    "call_soon_threadsafe": lambda loop, fail: loop.call_soon_threadsafe(fail),
    "call_later": lambda loop, fail: loop.call_later(0, fail),
}


@pytest.mark.parametrize("method", FAILING)
async def test_a_failing_callback_tells_where_it_was_scheduled(
    debug_loop: Loop, method: str
) -> None:
    contexts: list[dict[str, Any]] = []
    debug_loop.set_exception_handler(lambda _, context: contexts.append(context))

    def fail() -> None:
        raise LookupError

    FAILING[method](debug_loop, fail)
    await asyncio.sleep(0.001)
    assert contexts[0]["source_traceback"][-1].name == "<lambda>"


async def test_what_fails_within_a_handle_tells_where_that_was_made(
    debug_loop: Loop, asyncio_log: AsyncioLog
) -> None:
    debug_loop.call_soon(debug_loop.call_exception_handler, {"message": "trouble"})
    await turns()
    text = asyncio_log.expect("trouble").getMessage()
    assert "Handle created at (most recent call last)" in text
    assert "test_what_fails_within_a_handle" in text


async def test_what_fails_within_an_event_tells_where_its_transport_was_made(
    debug_loop: Loop, asyncio_log: AsyncioLog
) -> None:
    class Failing(Recorder):
        def data_received(self, data: bytes) -> None:
            raise LookupError

    async with connected(Failing()) as (_, protocol, far):
        far.send(b"x")
        await until(lambda: protocol.lost)
    text = asyncio_log.expect("data_received() call failed").getMessage()
    assert "Handle created at (most recent call last)" in text


async def test_a_failing_factory_is_reported(debug_loop: Loop) -> None:
    """In debug mode only: a factory that fails is no news to a server under attack."""
    messages: list[str] = []
    debug_loop.set_exception_handler(lambda _, context: messages.append(context["message"]))

    def factory() -> asyncio.Protocol:
        raise LookupError

    async with listening(factory) as address:
        with warnings_seen(), socket.create_connection(address):
            await until(lambda: messages)
    assert messages == ["Error on transport creation for incoming connection"]


@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe"])
def test_what_is_no_callback_is_refused(debug_loop: Loop, method: str) -> None:
    async def coroutine() -> None:
        """Never run."""

    schedule = getattr(debug_loop, method)
    with pytest.raises(TypeError, match="coroutines cannot be used"):
        schedule(coroutine)
    with pytest.raises(TypeError, match="callable object was expected"):
        schedule("text")


@pytest.mark.parametrize("method", ["call_later", "call_at"])
def test_what_is_no_callback_is_refused_by_timers(debug_loop: Loop, method: str) -> None:
    with pytest.raises(TypeError, match="callable object was expected"):
        getattr(debug_loop, method)(0, "text")


async def test_blocking_sockets_are_refused(debug_loop: Loop) -> None:
    near, far = tcp_sockets()
    near.setblocking(True)
    calls: list[Callable[[], Any]] = [
        lambda: debug_loop.sock_recv(near, 1),
        lambda: debug_loop.sock_recv_into(near, bytearray(1)),
        lambda: debug_loop.sock_recvfrom(near, 1),
        lambda: debug_loop.sock_recvfrom_into(near, bytearray(1)),
        lambda: debug_loop.sock_sendall(near, b"x"),
        lambda: debug_loop.sock_sendto(near, b"x", ("127.0.0.1", 9)),
        lambda: debug_loop.sock_connect(near, ("127.0.0.1", 9)),
        lambda: debug_loop.sock_accept(near),
        lambda: debug_loop.sock_sendfile(near, io.BytesIO()),
    ]
    with near, far:
        for call in calls:
            with pytest.raises(ValueError, match="non-blocking"):
                await call()


async def test_transports_work_in_debug_mode(debug_loop: Loop) -> None:
    async with connected() as (transport, protocol, far):
        far.send(b"hello")
        assert await protocol.received(5) == b"hello"
        assert "_SelectorSocketTransport" in repr(transport) or "fd=" in repr(transport)
        transport.close()
        await turns()
        assert protocol.calls == ["made", "data", "lost"]


UNCLOSED = {
    "loop": "",
    "transport": "loop.run_until_complete(loop.create_connection(Recorder, sock=near))",
    "datagram transport": "loop.run_until_complete(loop.create_datagram_endpoint("
    "asyncio.DatagramProtocol, local_addr=('127.0.0.1', 0)))",
    "server": "server = loop.run_until_complete(loop.create_server(Recorder, '127.0.0.1', 0));"
    "del server",
}


@pytest.mark.parametrize("what", UNCLOSED)
def test_unclosed_resources_tell_where_they_were_made(loop_name: str, what: str) -> None:
    """By tracemalloc, for each warning names its source. CPython 3.11's tracemalloc finds no
    object that has slots and a dictionary, as transports do: tloop's tell by themselves.
    """
    code = (
        "import asyncio, sys, loopkit\n"
        f"{'import tracemalloc' if REFCOUNTS else ''}\n"  # too late within a collection
        "from loopkit import Recorder\n"
        "near, far = loopkit.tcp_sockets()\n"
        "loop = loopkit.FACTORIES[sys.argv[1]]()\n"
        f"{UNCLOSED[what]}\n"
        f"{'del loop' if what == 'loop' else 'loop.close()'}\n"
        "near = None\n"
        "loopkit.collect()\n"
        "far.close()\n"
    )
    program = python(
        code,
        loop_name,
        env={
            "PYTHONASYNCIODEBUG": "1",
            "PYTHONTRACEMALLOC": "1",
            "PYTHONWARNINGS": "always::ResourceWarning",
        },
    )
    _, errors = finish(program)
    if what == "server":  # which has no finaliser: its socket warns
        assert "unclosed <socket.socket" in errors
    else:
        kind = "event loop" if what == "loop" else "transport"
        assert f"ResourceWarning: unclosed {kind}" in errors
    traced = REFCOUNTS and sys.version_info >= (3, 12)  # PyPy has no tracemalloc
    if traced or (loop_name == "tloop" and "transport" in what):
        assert re.search(r"(Object allocated|created) at \(most recent call last\)", errors)


@pytest.mark.loops("tloop")
def test_an_unclosed_transport_tells_by_itself_where_it_was_made(loop: Loop) -> None:
    """asyncio needs tracemalloc for that."""
    loop.set_debug(True)
    near, far = tcp_sockets()
    with far:
        loop.run_until_complete(loop.create_connection(Recorder, sock=near))
        del near
        with warnings_seen() as seen:
            loop.close()
        [text] = [text for text in seen if "unclosed transport" in text]
        assert "created at (most recent call last)" in text
        assert "create_connection" in text


async def test_a_coroutine_that_no_one_awaited_tells_where_it_was_made(debug_loop: Loop) -> None:
    async def forgotten() -> None:
        """Never run."""

    with warnings_seen() as seen:
        coro = forgotten()
        del coro
    assert any("Coroutine created at" in text for text in seen)


def test_coroutine_origins_are_tracked_only_while_the_loop_runs(debug_loop: Loop) -> None:

    async def depth() -> int:
        return sys.get_coroutine_origin_tracking_depth()

    before = sys.get_coroutine_origin_tracking_depth()
    assert debug_loop.run_until_complete(depth()) > before
    assert sys.get_coroutine_origin_tracking_depth() == before


# -- switched while the loop runs ------------------------------------------------------------------


async def test_debug_mode_switches_on_while_running(loop: Loop, asyncio_log: AsyncioLog) -> None:
    loop.set_debug(False)
    before = loop.call_soon(print)
    before.cancel()
    loop.set_debug(True)
    loop.slow_callback_duration = 0.005
    loop.call_soon(time.sleep, 0.006)
    with pytest.raises(TypeError):
        loop.call_soon("text")  # type: ignore[arg-type]
    await turns()
    assert sys.get_coroutine_origin_tracking_depth() > 0
    assert_slow(asyncio_log, "<Handle sleep")


async def test_debug_mode_switches_off_while_running(loop: Loop, asyncio_log: AsyncioLog) -> None:
    loop.set_debug(True)
    loop.slow_callback_duration = 0.005
    loop.set_debug(False)
    loop.call_soon(time.sleep, 0.006)
    handle = loop.call_later(1000, print)
    assert handle._source_traceback is None  # type: ignore[attr-defined]
    handle.cancel()
    await turns()
    assert sys.get_coroutine_origin_tracking_depth() == 0
    assert not any("sleep" in text for text in asyncio_log.in_debug_mode)


@pytest.mark.parametrize("debug", [False, True])
async def test_what_is_scheduled_when_debug_mode_switches_runs_in_order(
    loop: Loop, debug: bool
) -> None:
    """Callbacks, steps of tasks, wake-ups of tasks, timers and events are on their way."""
    order: list[str] = []

    async def step(name: str) -> None:
        order.append(name)
        await asyncio.sleep(0)
        order.append(f"{name} again")

    async def woken(future: asyncio.Future[None]) -> None:
        await future
        order.append("woken")

    loop.set_debug(not debug)
    future = loop.create_future()
    async with connected() as (_, protocol, far):
        tasks = [loop.create_task(woken(future))]
        await turns()
        tasks.append(loop.create_task(step("task")))
        loop.call_soon(order.append, "callback")
        future.set_result(None)
        loop.call_later(0, order.append, "timer")
        far.send(b"x")
        loop.set_debug(debug)
        await asyncio.gather(*tasks)
        await protocol.received(1)
    assert order == ["task", "callback", "woken", "timer", "task again"]


async def test_debug_mode_switches_within_an_event(loop: Loop) -> None:
    """Back and forth with each piece of data; none of it is lost."""

    class Switching(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            loop.set_debug(not loop.get_debug())

    async with connected(Switching()) as (_, one, far), connected(Switching()) as (_, two, far2):
        for count in range(1, 20):
            far.send(b"x")
            far2.send(b"x")
            await one.received(count)
            await two.received(count)
    loop.set_debug(False)
