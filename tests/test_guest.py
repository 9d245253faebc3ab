"""A loop inside a foreign main loop: stepped when its descriptor or its timer says so."""

from __future__ import annotations

import asyncio
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loopkit import PATIENCE, Recorder

import tloop_py

ROOT = Path(__file__).parent.parent


class Host:
    """The smallest foreign main loop: sleeps in poll, and counts how often it steps."""

    def __init__(self, loop: tloop_py.GuestLoop) -> None:
        self.loop = loop
        self.steps = 0
        self.poll = select.poll()
        self.poll.register(loop.fileno(), select.POLLIN)
        self.delay = self.step()

    def step(self) -> float | None:
        self.steps += 1
        self.delay = self.loop.step()
        return self.delay

    def turn(self, patience: float = PATIENCE) -> bool:
        """Sleep until the loop has something to do, and step it; False: nothing came."""
        seconds = patience if self.delay is None else min(self.delay, patience)
        ready = self.poll.poll(seconds * 1000 + 0.999)
        if ready or self.delay is not None:
            self.step()
            return True
        return False

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, "the host waited in vain"
            self.turn()

    def settle(self) -> None:
        """Turn until the loop has nothing to do but wait."""
        while self.turn(patience=0):
            pass


@pytest.fixture
def loop() -> Iterator[tloop_py.GuestLoop]:
    loop = tloop_py.GuestLoop("epoll")
    yield loop
    loop.close()


@pytest.fixture
def host(loop: tloop_py.GuestLoop) -> Host:
    host = Host(loop)
    host.settle()
    return host


def test_an_idle_guest_needs_no_step(host: Host) -> None:
    assert host.delay is None
    assert not host.turn(patience=0.05)


def test_a_task_runs_in_steps(host: Host, loop: tloop_py.GuestLoop) -> None:
    seen: list[object] = []

    async def main() -> None:
        seen.append(asyncio.get_running_loop())
        await asyncio.sleep(0.01)
        seen.append(await loop.run_in_executor(None, threading.get_ident))

    task = loop.create_task(main())
    host.until(task.done)
    assert asyncio._get_running_loop() is None
    assert seen[0] is loop
    assert seen[1] != threading.get_ident()
    loop.run_until_complete(loop.shutdown_default_executor())


@pytest.mark.parametrize("debug", [False, True])
def test_what_the_host_schedules_wakes_it(
    debug: bool, host: Host, loop: tloop_py.GuestLoop
) -> None:
    loop.set_debug(debug)
    seen: list[str] = []
    handle = loop.call_soon(seen.append, "soon")
    assert host.turn()
    assert seen == ["soon"]
    host.settle()
    loop.call_later(0.01, seen.append, "later")
    loop.call_later(1000, seen.append, "never").cancel()
    host.until(lambda: "later" in seen)
    if debug:
        assert handle._source_traceback[-1].name.startswith("test_")


def test_the_delay_is_that_of_the_next_timer(host: Host, loop: tloop_py.GuestLoop) -> None:
    timer = loop.call_later(1000, print)
    host.turn()
    assert host.delay is not None
    assert 900 < host.delay <= 1000.001
    loop.call_soon(print)
    assert loop.timeout() == 0.0
    host.step()
    timer.cancel()
    assert loop.timeout() is None


def test_another_thread_wakes_the_host(host: Host, loop: tloop_py.GuestLoop) -> None:
    seen: list[int] = []
    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(seen.append, 1))
    thread.start()
    host.until(lambda: seen)
    thread.join()


@pytest.mark.slow
def test_steps_come_only_when_there_is_something_to_do(
    host: Host, loop: tloop_py.GuestLoop
) -> None:
    before = host.steps
    loop.call_later(0.2, host.loop.time)
    deadline = time.monotonic() + 0.25
    while time.monotonic() < deadline:
        host.turn(patience=0.05)
    assert host.steps - before < 20


def connected(host: Host, loop: tloop_py.GuestLoop) -> tuple[Any, Recorder, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    task = loop.create_task(loop.create_connection(Recorder, sock=ours))
    host.until(task.done)
    transport, protocol = task.result()
    return transport, protocol, theirs


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        return client, server.accept()[0]


def test_transports_work_between_steps(host: Host, loop: tloop_py.GuestLoop) -> None:
    transport, protocol, peer = connected(host, loop)
    with peer:
        transport.write(b"from the host")
        assert peer.recv(100) == b"from the host"
        peer.sendall(b"to the guest")
        host.until(lambda: protocol.data == b"to the guest")
        transport.close()
        host.until(lambda: protocol.calls[-1] == "lost")


def test_reading_that_the_host_resumes_wakes_it(host: Host, loop: tloop_py.GuestLoop) -> None:
    ours, peer = tcp_pair()
    ours.setblocking(False)
    task = loop.create_task(loop.create_connection(Recorder, sock=ours))
    host.until(task.done)
    transport, protocol = task.result()
    with peer:
        transport.pause_reading()
        peer.sendall(b"waits")
        host.settle()
        assert protocol.data == b""
        transport.resume_reading()
        host.until(lambda: protocol.data == b"waits")
        transport.abort()
        host.until(lambda: protocol.calls[-1] == "lost")


def test_a_large_write_of_the_host_is_sent_in_steps(host: Host, loop: tloop_py.GuestLoop) -> None:
    transport, protocol, peer = connected(host, loop)
    received = bytearray()

    def receive() -> None:
        while len(received) < 5_000_000:
            received.extend(peer.recv(1 << 20))

    with peer:
        transport.write(bytes(5_000_000))
        thread = threading.Thread(target=receive)
        thread.start()
        host.until(lambda: not transport.get_write_buffer_size())
        thread.join()
        transport.close()
        host.until(lambda: protocol.calls[-1] == "lost")
    assert received == bytes(5_000_000)


def test_a_step_within_a_step_is_refused(host: Host, loop: tloop_py.GuestLoop) -> None:
    errors: list[BaseException] = []

    def nested() -> None:
        with pytest.raises(RuntimeError, match="already running") as caught:
            loop.step()
        errors.append(caught.value)

    loop.call_soon(nested)
    host.until(lambda: errors)


def test_after_close_a_step_says_so(loop: tloop_py.GuestLoop) -> None:
    loop.close()
    for method in (loop.step, loop.timeout):
        with pytest.raises(RuntimeError, match="closed"):
            method()


def test_a_backend_without_a_descriptor_says_so() -> None:
    loop = tloop_py.GuestLoop("poll")
    with pytest.raises(OSError, match="poll backend has no descriptor"):
        loop.fileno()
    assert loop.step() is None
    loop.close()


def test_it_also_runs_by_itself(loop: tloop_py.GuestLoop) -> None:
    assert loop.run_until_complete(asyncio.sleep(0.001, "result")) == "result"


def test_single_ticks_see_events_while_callbacks_are_ready(loop: tloop_py.GuestLoop) -> None:
    """Any Loop: a task that is always ready must not hide what the kernel has to tell."""
    woken = threading.Event()
    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(woken.set,))

    async def busy() -> None:
        for _ in range(100):
            await asyncio.sleep(0)

    task = loop.create_task(busy())
    ticks = loop.stats()["ticks"]
    for _ in range(5):
        loop.step()
    assert loop.stats()["ticks"] == ticks + 5
    thread.start()
    thread.join()
    loop.step()
    assert woken.is_set()
    task.cancel()
    loop.step()
    loop.step()
    assert task.cancelled()


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    """An X server of our own."""
    pytest.importorskip("tkinter", exc_type=ImportError, reason="Python without Tk (python3-tk)")
    if not shutil.which("Xvfb"):
        pytest.skip("no X server to test with (xvfb)")
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", "1", "-nolisten", "tcp"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout
    try:
        yield ":" + server.stdout.readline().strip()
    finally:
        server.terminate()
        server.communicate(timeout=PATIENCE)


@pytest.mark.slow
def test_inside_the_main_loop_of_tk(display: str) -> None:
    program = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "guest_tk.py")],
        stdout=subprocess.PIPE,
        text=True,
        env={"DISPLAY": display, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
    )
    assert program.stdout
    try:
        host, _, port = program.stdout.readline().split()[-1].partition(":")
        with (
            socket.create_connection((host, int(port)), timeout=PATIENCE) as client,
            client.makefile("r") as lines,
        ):
            for word in ("first", "second", "quit"):
                client.sendall(f"{word}\n".encode())
                assert lines.readline() == f"shown: {word}\n"
        assert program.wait(PATIENCE) == 0
    finally:
        program.kill()
        program.communicate(timeout=PATIENCE)
