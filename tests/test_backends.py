"""What only tloop has: backends, counters, and what it must not do behind the user's back."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import pytest
from loopkit import (
    Echo,
    Loop,
    connected,
    listening,
    new_tloop,
    read_all,
    run_python,
    stats,
    turns,
    until,
)

pytestmark = [pytest.mark.loops("tloop"), pytest.mark.usefixtures("loop_name")]


def tloop() -> Any:
    import tloop_py

    return tloop_py


@pytest.fixture(params=["epoll", "io_uring", "poll"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("TLOOP_BACKEND", raising=False)
    name: str = request.param
    if name == "io_uring":
        try:
            tloop().Loop(name).close()
        except (OSError, ValueError) as error:
            pytest.skip(str(error))
    return name


async def echo() -> None:
    async with connected(Echo()) as (_, _, far):
        far.send(b"hello")
        assert await read_all(far, 5) == b"hello"


def test_every_backend_carries_connections_and_timers(backend: str) -> None:
    with asyncio.Runner(loop_factory=lambda: tloop().Loop(backend)) as runner:
        assert runner.get_loop().backend == backend  # type: ignore[attr-defined]
        runner.run(echo())
        assert runner.run(asyncio.sleep(0.001, "slept")) == "slept"


def test_the_environment_chooses_the_backend(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLOOP_BACKEND", backend)
    loop = new_tloop()
    assert loop.backend == backend  # type: ignore[attr-defined]
    loop.close()


def test_the_default_backend_is_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TLOOP_BACKEND", raising=False)
    loop = new_tloop()
    assert loop.backend == "epoll"  # type: ignore[attr-defined]
    loop.close()


def test_an_unknown_backend_is_refused_with_the_known_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValueError, match="epoll") as caught:
        tloop().Loop("kernel-bypass")
    assert "poll" in str(caught.value)
    assert "kernel-bypass" in str(caught.value)
    monkeypatch.setenv("TLOOP_BACKEND", "typo")
    with pytest.raises(ValueError, match="typo"):
        new_tloop()


SANDBOX = """
import ctypes, os, struct
import tloop_py

# A filter as container runtimes have it: io_uring_setup (425 everywhere) answers EPERM.
program = b"".join(struct.pack("HBBI", *step) for step in [
    (0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)])
kept = ctypes.create_string_buffer(program, len(program))
prctl = ctypes.CDLL(None, use_errno=True).prctl
assert prctl(38, 1, 0, 0, 0) == 0, os.strerror(ctypes.get_errno())
filter = struct.pack("HP", 4, ctypes.addressof(kept))
assert prctl(22, 2, filter) == 0, os.strerror(ctypes.get_errno())

os.environ.pop("TLOOP_BACKEND", None)
try:
    tloop_py.new_event_loop("io_uring")
except OSError as error:
    print(type(error).__name__, error)
except ValueError:
    print("PermissionError on io_uring")  # built without it
loop = tloop_py.new_event_loop()
print(loop.backend)
loop.close()
"""


def test_a_sandbox_without_io_uring_is_noticed_only_by_who_asks_for_it() -> None:
    asked, default = run_python(SANDBOX, "tloop").splitlines()
    assert asked.startswith("PermissionError")
    assert "on io_uring" in asked
    assert default == "epoll"


@pytest.mark.parametrize("backend", [1, b"epoll", ["epoll"]])
def test_a_backend_is_named_by_text(backend: Any) -> None:
    with pytest.raises(TypeError):
        tloop().Loop(backend)


def test_the_package_offers_what_it_documents() -> None:
    module = tloop()
    assert issubclass(module.Loop, asyncio.AbstractEventLoop)
    assert module.__version__.count(".") == 2
    for name in ("Loop", "new_event_loop", "run", "__version__"):
        assert name in module.__all__
    assert module.run(asyncio.sleep(0, "ran")) == "ran"


def test_run_tells_which_debug_mode() -> None:
    async def debug() -> bool:
        return asyncio.get_running_loop().get_debug()

    assert tloop().run(debug(), debug=True) is True
    assert tloop().run(debug(), debug=False) is False


async def test_run_in_a_running_loop_is_refused(loop: Loop) -> None:
    coro = asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="running event loop"):
        tloop().run(coro)
    coro.close()


# --- counters ---------------------------------------------------------------------------------


def test_the_counters_are_numbers(loop: Loop) -> None:
    counters = stats(loop)
    for key in ("ticks", "events", "handles", "live", "bytes_in", "bytes_out", "syscalls"):
        assert isinstance(counters[key], int)


async def test_bytes_are_counted(loop: Loop) -> None:
    async with connected(Echo()) as (_, _, far):
        before = stats(loop)
        far.send(b"x" * 1000)
        await read_all(far, 1000)
        after = stats(loop)
    assert after["bytes_in"] - before["bytes_in"] == 1000
    assert after["bytes_out"] - before["bytes_out"] == 1000


async def test_a_handle_is_live_until_its_end(loop: Loop) -> None:
    before = stats(loop)
    async with connected():
        assert stats(loop)["live"] == before["live"] + 1
    await until(lambda: stats(loop)["live"] == before["live"])


def requests(address: tuple[str, int], count: int) -> None:
    """A blocking client that waits for each answer."""
    with socket.create_connection(address) as sock:
        for _ in range(count):
            sock.sendall(b"x" * 1024)
            left = 1024
            while left:
                left -= len(sock.recv(left))


async def test_an_echo_costs_one_receive_and_one_send(loop: Loop) -> None:
    """B9: per request, besides the wait for it; a connection costs a few more. A wait for
    the ring is followed by one for its epoll set."""
    count = 200
    per_request = 3 if loop.backend == "io_uring" else 2  # type: ignore[attr-defined]
    async with listening(Echo) as address:
        before = stats(loop)
        await loop.run_in_executor(None, requests, address, count)
        used = {key: value - before[key] for key, value in stats(loop).items()}
        await turns(10)
    assert used["bytes_in"] == count * 1024
    assert used["syscalls"] - used["ticks"] <= per_request * count + 20


@pytest.mark.slow
async def test_an_idle_loop_makes_no_wake_ups(loop: Loop) -> None:
    """B16: nothing happens in a second in which nothing is due."""
    server = await loop.create_server(Echo, "127.0.0.1", 0)
    async with connected():
        await turns(5)
        before = stats(loop)["ticks"]
        await asyncio.sleep(1)
        assert stats(loop)["ticks"] - before <= 3
    server.close()


# --- no traps -----------------------------------------------------------------------------------


def test_no_selector_is_used(loop: Loop) -> None:
    loop.run_until_complete(echo())
    for name in ("_selector", "_ssock", "_csock"):
        assert not hasattr(loop, name)
    assert not isinstance(loop, asyncio.SelectorEventLoop)


PATCHED = """
import asyncio, asyncio.base_events, asyncio.events, asyncio.sslproto, asyncio.streams
import selectors, signal, socket, ssl, sys, threading

watched = ("asyncio", "selectors", "signal", "socket", "ssl", "threading")
modules = [module for name, module in sys.modules.items() if name.split(".")[0] in watched]

def snapshot():
    found = {}
    for module in modules:
        for name, value in vars(module).items():
            found[module.__name__, name] = id(value)
            if isinstance(value, type):
                for attribute, member in vars(value).items():
                    found[module.__name__, name, attribute] = id(member)
    return found

hooks = lambda: (signal.getsignal(signal.SIGINT), sys.excepthook, sys.unraisablehook,
                 sys.getswitchinterval(), sys.get_asyncgen_hooks(), threading.active_count())
before, hooked = snapshot(), hooks()
import tloop_py
after = snapshot()
changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
changed = {key for key in changed if key[-1] not in ("_abc_impl", "__annotations_cache__")
           and not (len(key) == 2 and key[0] == key[-1])}
assert not changed, changed
assert hooks() == hooked
assert type(asyncio.new_event_loop()).__module__.startswith("asyncio")
"""


def test_importing_changes_nothing_elsewhere() -> None:
    run_python(PATCHED, "tloop")


def test_nothing_is_imported_that_is_not_needed() -> None:
    out = run_python("import tloop_py, sys; print(*sys.modules)", "tloop")
    assert "ctypes" not in out.split()


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="PyPy's cffi needs no import lock")
def test_the_loop_can_be_made_first_in_any_thread() -> None:
    run_python(
        "import threading\n"
        "def work():\n"
        "    import tloop_py, asyncio\n"
        "    tloop_py.run(asyncio.sleep(0))\n"
        "thread = threading.Thread(target=work)\n"
        "thread.start()\n"
        "thread.join()\n"
        "work()\n",
        "tloop",
    )
