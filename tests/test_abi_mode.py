"""The same declarations drive libtloop.so through cffi's ABI mode, without compiling anything."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import cffi_build

CAPACITY = 16
SECOND = 1_000_000_000


class Loop:
    """A tl_loop as a binding uses it: poll, then look at the events."""

    def __init__(self, binding: ModuleType) -> None:
        self.ffi = binding.ffi
        self.lib = binding.ffi.dlopen(str(cffi_build.ROOT / "libtloop.so"))
        error = self.ffi.new("int *")
        self.loop = self.lib.tl_loop_create(self.ffi.NULL, error)
        assert self.loop != self.ffi.NULL, error[0]
        self.events = self.ffi.new("tl_event[]", CAPACITY)

    def poll(self) -> list[Any]:
        """The events of one tick; a second passes at most."""
        count = self.lib.tl_loop_poll(self.loop, self.events, CAPACITY, SECOND)
        assert count >= 0, self.text(self.lib.tl_strerror(count))
        return [self.events[n] for n in range(count)]

    def wait_for(self, kind: int) -> Any:
        """The next event of that kind."""
        for _ in range(20):
            for event in self.poll():
                if event.kind == kind:
                    return event
        raise AssertionError(f"no event of kind {kind} came")

    def text(self, string: Any) -> str:
        decoded: str = self.ffi.string(string).decode()
        return decoded


@pytest.fixture(scope="module")
def binding(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    subprocess.run(
        ["make", "libtloop.so"], cwd=cffi_build.ROOT, check=True, stdout=subprocess.DEVNULL
    )
    path = tmp_path_factory.mktemp("abi") / "tloop_abi.py"
    cffi_build.write_abi_module(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def loop(binding: ModuleType) -> Iterator[Loop]:
    loop = Loop(binding)
    yield loop
    assert loop.lib.tl_loop_close(loop.loop) == 0, "handles were left open"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        far.settimeout(5)
        yield near, far


def test_library_is_the_headers(loop: Loop) -> None:
    assert loop.text(loop.lib.tl_version()) == cffi_build.version()
    assert loop.text(loop.lib.tl_loop_backend(loop.loop)) in loop.text(loop.lib.tl_backends())


def test_library_has_every_declared_function(binding: ModuleType) -> None:
    api = cffi_build.load(cffi_build.module_path()).lib
    abi = binding.ffi.dlopen(str(cffi_build.ROOT / "libtloop.so"))
    functions = [name for name in dir(api) if name.startswith("tl_")]
    assert [name for name in functions if not hasattr(abi, name)] == []


def test_constants_are_the_same_as_in_api_mode(binding: ModuleType) -> None:
    api = cffi_build.load(cffi_build.module_path()).lib
    abi = binding.ffi.dlopen(str(cffi_build.ROOT / "libtloop.so"))
    names = [name for name in dir(api) if name.startswith("TL_")]
    assert {name: getattr(abi, name) for name in names} == {
        name: getattr(api, name) for name in names
    }


def test_timer_fires(loop: Loop) -> None:
    timer = loop.lib.tl_timer_create(loop.loop)
    assert loop.lib.tl_timer_start(loop.loop, timer, 1000, 0) == 0
    assert loop.wait_for(loop.lib.TL_EV_TIMER).handle == timer
    assert loop.lib.tl_close(loop.loop, timer) == 0
    assert loop.wait_for(loop.lib.TL_EV_CLOSED).handle == timer


def test_wake_ups_are_one_event(loop: Loop) -> None:
    assert loop.lib.tl_loop_wake(loop.loop) == 0
    assert loop.lib.tl_loop_wake(loop.loop) == 0
    assert [event.kind for event in loop.poll()] == [loop.lib.TL_EV_WAKE]


def test_stream_echoes(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    lib = loop.lib
    stream = lib.tl_stream_open(loop.loop, near.fileno(), lib.TL_KEEP_FD)
    assert stream > 0
    assert lib.tl_stream_read_start(loop.loop, stream) == 0
    far.sendall(b"through the arena and back")
    event = loop.wait_for(lib.TL_EV_DATA)
    data = loop.ffi.buffer(lib.tl_event_data(loop.loop, loop.ffi.addressof(event)), event.result)
    assert lib.tl_stream_write(loop.loop, stream, loop.ffi.from_buffer(data), len(data)) == 0
    assert far.recv(100) == b"through the arena and back"
    far.close()
    assert loop.wait_for(lib.TL_EV_EOF).handle == stream
    assert lib.tl_close(loop.loop, stream) == 0
    assert loop.wait_for(lib.TL_EV_CLOSED).handle == stream


def test_stale_handle_is_refused(loop: Loop) -> None:
    timer = loop.lib.tl_timer_create(loop.loop)
    assert loop.lib.tl_close(loop.loop, timer) == 0
    assert loop.wait_for(loop.lib.TL_EV_CLOSED).handle == timer
    assert loop.lib.tl_timer_start(loop.loop, timer, 0, 0) == loop.lib.TL_EBADH
