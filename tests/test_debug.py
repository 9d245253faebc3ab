"""Debug mode: all the checks and log lines that asyncio has."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import AsyncioLog
from loopkit import (
    Loop,
    LoopFactory,
    Recorder,
    connected,
    run_python,
    tcp_sockets,
    turns,
    warnings_seen,
)


@pytest.fixture
def debug_loop(loop: Loop) -> Loop:
    loop.set_debug(True)
    loop.slow_callback_duration = 10  # this machine may be busy
    return loop


def forgive(loop: Loop, log: AsyncioLog) -> None:
    """A busy machine may make more callbacks slow than those that are meant to be."""
    loop.slow_callback_duration = 10
    log.records.clear()


def test_debug_mode_can_be_switched(loop: Loop) -> None:
    before = loop.get_debug()
    loop.set_debug(True)
    assert loop.get_debug()
    assert "debug=True" in repr(loop)
    loop.set_debug(before)


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
    record = asyncio_log.expect("Executing <Handle")
    assert " took 0." in record.getMessage()
    forgive(loop, asyncio_log)


def test_a_slow_step_of_a_task_is_logged(loop: Loop, asyncio_log: AsyncioLog) -> None:
    async def slow() -> None:
        time.sleep(0.006)  # noqa: ASYNC251 -- being slow is the point

    loop.set_debug(True)
    loop.slow_callback_duration = 0.005
    loop.run_until_complete(slow())
    assert "slow()" in asyncio_log.expect("Executing <Task").getMessage()
    forgive(loop, asyncio_log)


def test_slow_callbacks_are_not_logged_without_debug_mode(loop: Loop) -> None:
    loop.set_debug(False)
    loop.slow_callback_duration = 0.001
    loop.run_until_complete(asyncio.sleep(0))
    loop.call_soon(time.sleep, 0.002)
    loop.call_soon(loop.stop)
    loop.run_forever()


UNSAFE: dict[str, Callable[[Loop], object]] = {
    "call_soon": lambda loop: loop.call_soon(print),
    "call_later": lambda loop: loop.call_later(0, print),
    "call_at": lambda loop: loop.call_at(0, print),
}


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


def test_handles_tell_where_they_were_made(debug_loop: Loop) -> None:
    handles = [debug_loop.call_soon(print), debug_loop.call_later(1000, print)]
    for handle in handles:
        assert f"created at {__file__}:" in repr(handle)
        traceback = handle._source_traceback  # type: ignore[attr-defined]
        assert traceback[-1].name == "test_handles_tell_where_they_were_made"
        handle.cancel()


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


def test_an_unclosed_transport_warns_in_debug_mode(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    loop.set_debug(True)
    loop.slow_callback_duration = 10
    near, far = tcp_sockets()
    with far:
        loop.run_until_complete(loop.create_connection(Recorder, sock=near))
        del near
        with warnings_seen() as seen:
            loop.close()
        assert any("unclosed transport" in text for text in seen)


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
