"""Signals: handlers on the loop, plain handlers, Ctrl-C, all while the loop sleeps."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import AsyncioLog
from loopkit import Loop, LoopFactory, finish, python, until

pytestmark = pytest.mark.usefixtures("dispositions")

TESTED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGTERM, signal.SIGWINCH)


@pytest.fixture
def dispositions() -> Iterator[None]:
    """Every test leaves the handlers of the process and the wake-up fd as they were."""
    before = [signal.getsignal(number) for number in TESTED]
    yield
    assert [signal.getsignal(number) for number in TESTED] == before
    assert signal.set_wakeup_fd(-1) == -1


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def send_soon(loop: Loop, number: signal.Signals) -> threading.Thread:
    """Send from another thread, once the loop runs and most likely sleeps."""

    def work() -> None:
        while not loop.is_running():
            time.sleep(0.001)
        time.sleep(0.005)
        send(number)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def run_until_stopped(loop: Loop) -> None:
    """Run; a loop that nothing stops has missed the signal."""
    start = loop.time()
    guard = loop.call_later(10, loop.stop)
    loop.run_forever()
    guard.cancel()
    assert loop.time() < start + 10


def test_a_handler_is_called_with_its_arguments(loop: Loop) -> None:
    calls: list[tuple[object, ...]] = []

    def handler(*args: object) -> None:
        calls.append(args)
        loop.stop()

    loop.add_signal_handler(signal.SIGUSR1, handler, 1, "two")
    thread = send_soon(loop, signal.SIGUSR1)
    run_until_stopped(loop)
    thread.join()
    assert calls == [(1, "two")]
    assert loop.remove_signal_handler(signal.SIGUSR1)


def test_handlers_of_several_signals(loop: Loop) -> None:
    numbers = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGWINCH)
    calls: list[int] = []
    for number in numbers:
        loop.add_signal_handler(number, calls.append, number)
    for number in numbers:
        send(number)
    loop.run_until_complete(until(lambda: len(calls) == len(numbers)))
    assert sorted(calls) == sorted(numbers)
    for number in numbers:
        assert loop.remove_signal_handler(number)


async def test_a_burst_of_signals_is_not_lost(loop: Loop) -> None:
    calls: list[int] = []
    loop.add_signal_handler(signal.SIGUSR1, calls.append, 1)
    for _ in range(100):
        send(signal.SIGUSR1)
    await until(lambda: calls)
    await asyncio.sleep(0.002)
    before = len(calls)
    send(signal.SIGUSR1)
    await until(lambda: len(calls) > before)
    loop.remove_signal_handler(signal.SIGUSR1)


def test_a_handler_is_called_while_the_loop_is_busy(loop: Loop) -> None:
    def spin() -> None:
        loop.call_soon(spin)

    loop.add_signal_handler(signal.SIGUSR1, loop.stop)
    loop.call_soon(spin)
    thread = send_soon(loop, signal.SIGUSR1)
    run_until_stopped(loop)
    thread.join()
    loop.remove_signal_handler(signal.SIGUSR1)


def test_a_signal_before_the_run_is_handled_in_it(loop: Loop) -> None:
    loop.add_signal_handler(signal.SIGUSR1, loop.stop)
    send(signal.SIGUSR1)
    run_until_stopped(loop)
    loop.remove_signal_handler(signal.SIGUSR1)


async def test_a_second_handler_replaces_the_first(loop: Loop) -> None:
    calls: list[str] = []
    loop.add_signal_handler(signal.SIGUSR1, calls.append, "first")
    loop.add_signal_handler(signal.SIGUSR1, calls.append, "second")
    send(signal.SIGUSR1)
    await until(lambda: calls)
    loop.remove_signal_handler(signal.SIGUSR1)
    assert calls == ["second"]


def test_removing_restores_the_default(loop: Loop) -> None:
    for number, default in (
        (signal.SIGUSR1, signal.SIG_DFL),
        (signal.SIGINT, signal.default_int_handler),
    ):
        assert not loop.remove_signal_handler(number)
        loop.add_signal_handler(number, print)
        assert signal.getsignal(number) != default
        assert loop.remove_signal_handler(number)
        assert signal.getsignal(number) == default
        assert not loop.remove_signal_handler(number)


def test_closing_the_loop_removes_its_handlers(loop: Loop) -> None:
    loop.add_signal_handler(signal.SIGUSR1, print)
    loop.add_signal_handler(signal.SIGINT, print)
    loop.close()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_handler_that_fails_is_reported(loop: Loop, asyncio_log: AsyncioLog) -> None:
    def fail() -> None:
        loop.stop()
        raise LookupError("broken")

    loop.add_signal_handler(signal.SIGUSR1, fail)
    send(signal.SIGUSR1)
    run_until_stopped(loop)
    loop.remove_signal_handler(signal.SIGUSR1)
    asyncio_log.expect("Exception in callback")


async def test_a_handler_may_remove_itself(loop: Loop) -> None:
    removed: list[bool] = []

    def handler() -> None:
        removed.append(loop.remove_signal_handler(signal.SIGUSR1))

    loop.add_signal_handler(signal.SIGUSR1, handler)
    send(signal.SIGUSR1)
    await until(lambda: removed)
    assert removed == [True]


@pytest.mark.parametrize(
    ("number", "error"),
    [
        pytest.param(signal.SIGKILL, RuntimeError, id="SIGKILL"),
        pytest.param(signal.SIGSTOP, RuntimeError, id="SIGSTOP"),
        pytest.param(0, ValueError, id="zero"),
        pytest.param(-1, ValueError, id="negative"),
        pytest.param(1000, ValueError, id="too large"),
        pytest.param("SIGUSR1", TypeError, id="name"),
        pytest.param(None, TypeError, id="None"),
        pytest.param(1.5, TypeError, id="float"),
    ],
)
def test_wrong_signals_are_refused(loop: Loop, number: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        loop.add_signal_handler(number, print)
    if error is not RuntimeError:
        with pytest.raises(error):
            loop.remove_signal_handler(number)


def test_coroutines_are_no_handlers(loop: Loop) -> None:
    async def coroutine() -> None:
        """Never run."""

    with pytest.raises(TypeError, match="coroutines cannot be used"):
        loop.add_signal_handler(signal.SIGUSR1, coroutine)  # type: ignore[arg-type,unused-ignore]


def test_only_the_main_thread_can_add_handlers(loop: Loop) -> None:
    errors: list[Exception] = []

    def work() -> None:
        try:
            loop.add_signal_handler(signal.SIGUSR1, print)
        except (RuntimeError, ValueError) as exc:
            errors.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert isinstance(errors[0], RuntimeError)


# --- plain handlers -----------------------------------------------------------------------------


@pytest.fixture
def plain_handler() -> Iterator[Callable[[Callable[[], object]], None]]:
    before = signal.getsignal(signal.SIGUSR1)

    def install(action: Callable[[], object]) -> None:
        signal.signal(signal.SIGUSR1, lambda *_: action())

    yield install
    signal.signal(signal.SIGUSR1, before)


def test_a_plain_handler_runs_while_the_loop_sleeps(loop: Loop, plain_handler: Any) -> None:
    plain_handler(lambda: loop.call_soon_threadsafe(loop.stop))
    thread = send_soon(loop, signal.SIGUSR1)
    run_until_stopped(loop)
    thread.join()


def test_a_plain_handler_runs_while_the_loop_is_busy(loop: Loop, plain_handler: Any) -> None:
    def spin() -> None:
        loop.call_soon(spin)

    plain_handler(lambda: loop.call_soon_threadsafe(loop.stop))
    loop.call_soon(spin)
    thread = send_soon(loop, signal.SIGUSR1)
    run_until_stopped(loop)
    thread.join()


def test_what_a_plain_handler_raises_leaves_run_forever(loop: Loop, plain_handler: Any) -> None:
    class Interrupted(Exception):
        pass

    def interrupt() -> None:
        raise Interrupted

    plain_handler(interrupt)
    thread = send_soon(loop, signal.SIGUSR1)
    with pytest.raises(Interrupted):
        run_until_stopped(loop)
    thread.join()
    assert loop.run_until_complete(asyncio.sleep(0, "usable")) == "usable"


def test_ctrl_c_leaves_run_forever(loop: Loop) -> None:
    thread = send_soon(loop, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_until_stopped(loop)
    thread.join()
    assert loop.run_until_complete(asyncio.sleep(0, "usable")) == "usable"


def test_the_runner_turns_ctrl_c_into_a_cancelled_main_task(loop_factory: LoopFactory) -> None:
    seen: list[str] = []

    async def main() -> None:
        # Sent from here: before its first step a task is cancelled without a word.
        thread = send_soon(asyncio.get_running_loop(), signal.SIGINT)
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        finally:
            thread.join()

    with asyncio.Runner(loop_factory=loop_factory) as runner, pytest.raises(KeyboardInterrupt):
        runner.run(main())
    assert seen == ["cancelled"]


def test_signals_reach_the_main_thread_while_a_loop_runs_in_another(
    loop: Loop, plain_handler: Any
) -> None:
    handled = threading.Event()
    plain_handler(handled.set)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    send(signal.SIGUSR1)
    assert handled.wait(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def test_a_loop_in_another_thread_takes_no_signals(loop: Loop, loop_factory: LoopFactory) -> None:
    other = loop_factory()
    thread = threading.Thread(target=other.run_forever)
    thread.start()
    loop.add_signal_handler(signal.SIGUSR1, loop.stop)
    sender = send_soon(loop, signal.SIGUSR1)
    run_until_stopped(loop)
    loop.remove_signal_handler(signal.SIGUSR1)
    sender.join()
    other.call_soon_threadsafe(other.stop)
    thread.join()
    other.close()


def test_the_wakeup_fd_of_other_code_is_restored(loop: Loop) -> None:
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        signal.set_wakeup_fd(near.fileno())
        loop.run_until_complete(asyncio.sleep(0))
        assert signal.set_wakeup_fd(-1) == near.fileno()


# --- whole programs -------------------------------------------------------------------------------

MAIN = """
import asyncio, sys, loopkit

async def main():
    print("ready", flush=True)
    try:
        await asyncio.sleep(60)
    finally:
        print("cleaned up", flush=True)

factory = loopkit.FACTORIES[sys.argv[1]]
"""
RUNNERS = {
    "Runner": "asyncio.Runner(loop_factory=factory).run(main())",
    "run_until_complete": "factory().run_until_complete(main())",
    "run": "import tloop_py; tloop_py.run(main())",
}


def interrupted(program: str, *args: str) -> tuple[int, str, str]:
    process: subprocess.Popen[str] = python(program, *args)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = finish(process)
    return process.returncode, out, err


@pytest.mark.parametrize("runner", ["Runner", "run_until_complete"])
def test_ctrl_c_ends_a_sleeping_program(loop_name: str, runner: str) -> None:
    code, out, err = interrupted(MAIN + RUNNERS[runner], loop_name)
    assert code == -signal.SIGINT
    assert err.rstrip().endswith("KeyboardInterrupt")
    if runner == "Runner":
        assert out == "cleaned up\n"


@pytest.mark.loops("tloop")
def test_ctrl_c_ends_a_program_run_by_tloop(loop_name: str) -> None:
    code, out, err = interrupted(MAIN + RUNNERS["run"], loop_name)
    assert code == -signal.SIGINT
    assert out == "cleaned up\n"
    assert err.rstrip().endswith("KeyboardInterrupt")


SHUTDOWN = """
    import signal
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, asyncio.current_task().cancel)
    print("ready", flush=True)
"""


def test_a_program_shuts_down_by_its_own_handler(loop_name: str) -> None:
    program = MAIN.replace('    print("ready", flush=True)\n', SHUTDOWN)
    code, out, err = interrupted(program + RUNNERS["Runner"], loop_name)
    assert "CancelledError" in err
    assert (code, out) == (1, "cleaned up\n")
