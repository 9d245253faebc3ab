"""What happens to an exception that no one awaits."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from conftest import AsyncioLog
from loopkit import Loop, collect, turns


def fail() -> None:
    raise LookupError("lost")


def run_briefly(loop: Loop) -> None:
    loop.call_later(0.001, loop.stop)
    loop.run_forever()


def test_a_failing_callback_is_reported_and_the_loop_goes_on(loop: Loop) -> None:
    calls: list[tuple[Loop, dict[str, Any]]] = []
    loop.set_exception_handler(lambda *args: calls.append(args))
    after: list[str] = []
    handle = loop.call_soon(fail)
    loop.call_soon(after.append, "went on")
    run_briefly(loop)
    [(where, context)] = calls
    assert where is loop
    assert isinstance(context["exception"], LookupError)
    assert context["handle"] is handle
    assert "Exception in callback" in context["message"]
    assert after == ["went on"]


@pytest.mark.real
@pytest.mark.parametrize("kind", ["timer", "threadsafe", "reader"])
def test_every_kind_of_callback_is_guarded(loop: Loop, kind: str) -> None:
    contexts: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: contexts.append(context))
    near, far = socket.socketpair()

    def fail_once() -> None:
        loop.remove_reader(near)
        fail()

    with near, far:
        far.send(b"x")
        if kind == "timer":
            loop.call_later(0, fail)
        elif kind == "threadsafe":
            loop.call_soon_threadsafe(fail)
        else:
            loop.add_reader(near, fail_once)
        run_briefly(loop)
    [context] = contexts
    assert isinstance(context["exception"], LookupError)


def test_without_a_handler_the_error_is_logged(loop: Loop, asyncio_log: AsyncioLog) -> None:
    loop.call_soon(fail)
    run_briefly(loop)
    record = asyncio_log.expect("Exception in callback fail()")
    assert record.levelname == "ERROR"
    assert record.exc_info
    assert isinstance(record.exc_info[1], LookupError)


def test_the_default_handler_logs_all_of_the_context(loop: Loop, asyncio_log: AsyncioLog) -> None:
    loop.call_exception_handler({"message": "odd", "detail": "more"})
    record = asyncio_log.expect("odd")
    assert "detail: 'more'" in record.getMessage()


def test_a_handler_that_fails_is_itself_reported(loop: Loop, asyncio_log: AsyncioLog) -> None:
    def broken(loop: Loop, context: dict[str, Any]) -> None:
        raise ZeroDivisionError

    loop.set_exception_handler(broken)
    loop.call_soon(fail)
    run_briefly(loop)
    asyncio_log.expect("Unhandled error in exception handler")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_the_handler_propagates(loop: Loop, error: type[BaseException]) -> None:
    def interrupted(loop: Loop, context: dict[str, Any]) -> None:
        raise error

    loop.set_exception_handler(interrupted)
    loop.call_soon(fail)
    with pytest.raises(error):
        loop.run_forever()


def test_the_handler_can_be_read_set_and_reset(loop: Loop) -> None:
    def handler(loop: Loop, context: dict[str, Any]) -> None:
        """Do nothing."""

    assert loop.get_exception_handler() is None
    loop.set_exception_handler(handler)
    assert loop.get_exception_handler() is handler
    loop.set_exception_handler(None)
    assert loop.get_exception_handler() is None
    with pytest.raises(TypeError):
        loop.set_exception_handler("handler")  # type: ignore[arg-type]


async def test_a_task_whose_exception_no_one_fetched_is_reported(
    loop: Loop, asyncio_log: AsyncioLog
) -> None:
    async def failing() -> None:
        fail()

    task = loop.create_task(failing())
    await turns()
    del task
    collect()
    asyncio_log.expect("Task exception was never retrieved")


async def test_a_task_destroyed_while_pending_is_reported(
    loop: Loop, asyncio_log: AsyncioLog
) -> None:
    async def waiting() -> None:
        await asyncio.Future()

    task = loop.create_task(waiting())
    await turns()
    del task
    collect()
    asyncio_log.expect("Task was destroyed but it is pending")
