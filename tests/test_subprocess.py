"""Subprocesses: arguments, pipes, exit codes, signals, and children by the thousand."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import AsyncioLog
from loopkit import (
    REFCOUNTS,
    Loop,
    LoopFactory,
    finish,
    live_handles,
    python,
    turns,
    until,
    warnings_seen,
)

import tloop_py._subprocess as tloop_subprocess

exec_ = asyncio.create_subprocess_exec
shell = asyncio.create_subprocess_shell


class WithoutPidfd:
    """The compiled library, on a kernel or in a sandbox that gives no pidfd."""

    def __init__(self, error: int) -> None:
        self._lib = tloop_subprocess.lib
        self._error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, name)

    def tl_child_watch(self, _loop: object, _pid: int) -> int:
        return -self._error


@pytest.fixture(autouse=True)
def no_child_left_behind(nothing_left_behind: None) -> Iterator[None]:
    """Every child has been reaped when a test ends."""
    yield
    for thread in threading.enumerate():
        if "waitpid" in thread.name:  # asyncio's own way, on 3.11: its thread is just ending
            thread.join(10)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


class Protocol(asyncio.SubprocessProtocol):
    """Writes down every call it gets, in order."""

    transport: Any = None

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.data: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.calls.append("made")

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.data[fd] += data

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self.calls.append(f"pipe {fd} lost")

    def process_exited(self) -> None:
        self.calls.append("exited")

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("lost")

    @property
    def lost(self) -> bool:
        return "lost" in self.calls


async def output(command: str, **options: Any) -> str:
    """What a shell command writes; it must succeed."""
    process = await shell(command, stdout=PIPE, **options)
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode().strip()


class Leash:
    """Starts a child that ends with a code as soon as it is told to."""

    def __init__(self, code: int) -> None:
        self.command = f"read word; exit {code}"
        self.stdin, self._held = os.pipe()

    def release(self, pid: int, expected: int = 0) -> None:
        """End the child, and block until it has ended; it is left to be reaped."""
        os.close(self.stdin)
        os.close(self._held)
        assert tloop_subprocess.lib.tl_child_wait(pid) == expected


# -- exit codes ------------------------------------------------------------------------------------


async def test_exit_codes(loop: Loop) -> None:
    for code in (0, 1, 77, 255):
        process = await exec_("sh", "-c", f"exit {code}")
        assert await process.wait() == code
        assert process.returncode == code
        assert await process.wait() == code


async def test_ended_by_a_signal(loop: Loop) -> None:
    process = await shell("kill -KILL $$")
    assert await process.wait() == -signal.SIGKILL


async def test_ended_before_anybody_looks(loop: Loop) -> None:
    """The child is a zombie by the time it is watched, and the loop has not run."""
    process = await exec_("sh", "-c", "exit 5", stdout=PIPE)
    assert process.stdout
    assert await process.stdout.read() == b""
    assert await process.wait() == 5


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


async def test_a_stopped_child_has_not_ended(loop: Loop) -> None:
    process = await exec_("sh", "-c", "kill -STOP $$; exit 3")
    await until(lambda: is_stopped(process.pid))
    await turns()
    assert process.returncode is None
    process.send_signal(signal.SIGCONT)
    assert await process.wait() == 3


async def test_the_order_of_calls(loop: Loop) -> None:
    protocol = Protocol()
    transport, same = await loop.subprocess_shell(
        lambda: protocol, "echo out; echo err >&2; read word; exit 4"
    )
    assert same is protocol
    assert protocol.calls == ["made"]
    assert transport.get_returncode() is None
    await until(lambda: protocol.data[1] and protocol.data[2])
    for fd in (0, 1, 2):
        pipe = transport.get_pipe_transport(fd)
        assert isinstance(pipe, asyncio.ReadTransport if fd else asyncio.WriteTransport)
        assert pipe.get_extra_info("pipe").fileno() > 2
    assert transport.get_pipe_transport(3) is None
    popen = transport.get_extra_info("subprocess")
    assert isinstance(popen, subprocess.Popen)
    assert popen.pid == transport.get_pid()
    transport.get_pipe_transport(0).close()  # type: ignore[union-attr]
    await until(lambda: protocol.lost)
    assert protocol.calls[0] == "made"
    assert protocol.calls[-1] == "lost"
    assert sorted(protocol.calls[1:-1]) == ["exited", "pipe 0 lost", "pipe 1 lost", "pipe 2 lost"]
    assert protocol.data == {1: b"out\n", 2: b"err\n"}
    assert transport.get_returncode() == popen.returncode == 4
    transport.close()
    assert "closed" in repr(transport)


# -- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fd", [0, 1, 2])
async def test_pipes_are_pipes(loop: Loop, fd: int) -> None:
    """They can be opened by name, which a socket cannot."""
    process = await exec_(
        "sh", "-c", f"readlink /proc/self/fd/{fd} && : <>/proc/self/fd/{fd}",
        stdin=PIPE, stdout=PIPE, stderr=PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert out.startswith(b"pipe:[")
    assert err == b""
    assert process.returncode == 0


async def test_where_output_goes(loop: Loop, tmp_path: Path) -> None:
    command = "echo out; echo err >&2"
    process = await shell(command, stdout=PIPE, stderr=STDOUT)
    assert await process.communicate() == (b"out\nerr\n", None)
    process = await shell(command, stdout=PIPE, stderr=PIPE)
    assert await process.communicate() == (b"out\n", b"err\n")
    process = await shell(command, stdout=DEVNULL, stderr=PIPE)
    assert await process.communicate() == (None, b"err\n")
    with (tmp_path / "out").open("w+b") as file:
        process = await shell(command, stdin=DEVNULL, stdout=file, stderr=file)
        assert await process.wait() == 0
        assert (tmp_path / "out").read_bytes() == b"out\nerr\n"
        assert not file.closed


async def test_working_directory_and_environment(loop: Loop) -> None:
    assert await output("pwd", cwd="/proc") == "/proc"
    assert await output("echo $WORD", env={**os.environ, "WORD": "hello"}) == "hello"
    assert await output("umask", umask=0o027) in ("0027", "027")


async def test_sessions_and_process_groups(loop: Loop) -> None:
    mine = os.getpgid(0)
    ask = (sys.executable, "-c", "import os; print(os.getpid(), os.getpgid(0), os.getsid(0))")
    for options, own_group, own_session in [
        ({}, False, False),
        ({"process_group": 0}, True, False),
        ({"start_new_session": True}, True, True),
    ]:
        process = await exec_(*ask, stdout=PIPE, **options)  # type: ignore[arg-type]
        out, _ = await process.communicate()
        pid, group, session = map(int, out.split())
        assert pid == process.pid
        assert group == (pid if own_group else mine)
        assert session == (pid if own_session else os.getsid(0))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
async def test_another_user_and_group(loop: Loop) -> None:
    command = "id -u; id -g; id -G"
    assert (await output(command, user=65534, group=65533, extra_groups=[65532])).split() == [
        "65534",
        "65533",
        "65533",
        "65532",
    ]


async def test_descriptors_are_passed_or_not(loop: Loop) -> None:
    read_fd, write_fd = os.pipe()
    try:
        process = await shell(f"echo hello >/proc/self/fd/{write_fd}", pass_fds=[write_fd])
        assert await process.wait() == 0
        assert os.read(read_fd, 100) == b"hello\n"
        process = await shell(f"echo hello >/proc/self/fd/{write_fd}", stderr=DEVNULL)
        assert await process.wait() != 0
    finally:
        os.close(read_fd)
        os.close(write_fd)


async def test_nothing_of_the_loop_is_inherited(loop: Loop) -> None:
    """Not even its descriptors while a preexec_fn runs in the fork."""
    names = await output("ls /proc/self/fd", close_fds=False, preexec_fn=os.getpid)
    passed = {fd for fd in os.listdir("/proc/self/fd") if inheritable(int(fd))}
    assert set(names.split()) - passed <= {"3", "4"}  # the shell's and that of ls


def inheritable(fd: int) -> bool:
    with contextlib.suppress(OSError):
        return os.get_inheritable(fd)
    return False


async def test_code_between_fork_and_exec(loop: Loop) -> None:
    assert await output("pwd", preexec_fn=lambda: os.chdir("/")) == "/"


@pytest.mark.filterwarnings("ignore:.*preexec_fn")
async def test_code_between_fork_and_exec_that_fails(loop: Loop) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(subprocess.SubprocessError, match="preexec_fn"):
        await exec_("true", preexec_fn=fail)


async def test_programs_that_cannot_be_started(loop: Loop, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        await exec_(tmp_path / "no-such-program", stdin=PIPE, stdout=PIPE, stderr=PIPE)
    with pytest.raises(PermissionError):
        await exec_(tmp_path, stdin=PIPE, stdout=PIPE)
    with pytest.raises(FileNotFoundError):
        await exec_("true", cwd=tmp_path / "no-such-folder", stdout=PIPE)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"universal_newlines": True}, ValueError),
        ({"shell": True}, ValueError),
        ({"bufsize": 4096}, ValueError),
        ({"text": True}, ValueError),
        ({"encoding": "utf-8"}, ValueError),
        ({"errors": "strict"}, ValueError),
        ({"no_such_option": 1}, TypeError),
    ],
    ids=str,
)
async def test_options_that_are_refused(
    loop: Loop, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await loop.subprocess_exec(Protocol, "true", **options)


# -- pipes -----------------------------------------------------------------------------------------


async def test_a_megabyte_there_and_back(loop: Loop) -> None:
    data = os.urandom(1 << 20)
    process = await exec_("cat", stdin=PIPE, stdout=PIPE)
    assert await process.communicate(data) == (data, None)
    assert process.returncode == 0


async def test_a_conversation(loop: Loop) -> None:
    process = await exec_("cat", stdin=PIPE, stdout=PIPE)
    assert process.stdin
    assert process.stdout
    for line in (b"one\n", b"two\n"):
        process.stdin.write(line)
        await process.stdin.drain()
        assert await process.stdout.readline() == line
    process.stdin.close()
    await process.stdin.wait_closed()
    assert await process.stdout.read() == b""
    assert await process.wait() == 0


async def test_a_slow_reader_pauses_the_child(loop: Loop) -> None:
    process = await exec_("head", "-c", "3000000", "/dev/zero", stdout=PIPE, limit=10000)
    assert process.stdout
    total = 0
    while data := await process.stdout.read(100000):
        total += len(data)
        await turns(1)
    assert total == 3000000
    assert await process.wait() == 0


async def test_input_that_nobody_reads(loop: Loop) -> None:
    process = await exec_("true", stdin=PIPE, stdout=PIPE)
    assert await process.communicate(b"x" * 1000000) == (b"", None)
    assert process.returncode == 0


async def with_grandchild(loop: Loop, protocol: Protocol) -> Any:
    """A child that ends with code 6; its own child still waits for a line to write."""
    transport, _ = await loop.subprocess_shell(
        lambda: protocol, "exec 3<&0; (read word <&3; echo $word) & exit 6", stderr=None
    )
    return transport


async def test_a_grandchild_keeps_the_pipe_open(loop: Loop) -> None:
    """The child has ended and is reaped, its output has not ended."""
    protocol = Protocol()
    transport = await with_grandchild(loop, protocol)
    await until(lambda: "exited" in protocol.calls)
    assert transport.get_returncode() == 6
    assert not protocol.lost
    transport.get_pipe_transport(0).write(b"hello\n")
    await until(lambda: protocol.lost)
    assert protocol.data[1] == b"hello\n"
    transport.close()


# -- signals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["kill", "terminate", "send_signal"])
async def test_signals(loop: Loop, how: str) -> None:
    numbers = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "send_signal": signal.SIGHUP}
    number = numbers[how]
    process = await exec_("sleep", "60")
    getattr(process, how)(*([number] if how == "send_signal" else []))
    assert await process.wait() == -number
    with pytest.raises(ProcessLookupError):
        getattr(process, how)(*([number] if how == "send_signal" else []))


async def test_signals_that_do_not_exist(loop: Loop) -> None:
    process = await exec_("cat", stdin=PIPE)
    with pytest.raises(OSError, match="Invalid argument"):
        process.send_signal(1000)
    with pytest.raises(TypeError):
        process.send_signal("TERM")  # type: ignore[arg-type]
    process.send_signal(0)
    await process.communicate(b"")


@pytest.mark.loops("tloop")
async def test_a_signal_to_a_zombie_is_ignored(loop: Loop) -> None:
    """The child has ended, and the loop does not know it yet. asyncio 3.11 loses the exit code."""
    leash = Leash(9)
    process = await shell(leash.command, stdin=leash.stdin)
    leash.release(process.pid)
    process.send_signal(signal.SIGTERM)
    process.terminate()
    process.kill()
    assert await process.wait() == 9


@pytest.mark.loops("tloop")
async def test_a_reaped_number_is_never_signalled(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio 3.13 kills whoever has the number by then."""
    signalled = []
    monkeypatch.setattr(os, "kill", lambda pid, number: signalled.append((pid, number)))
    protocol = Protocol()
    transport = await with_grandchild(loop, protocol)
    popen = transport.get_extra_info("subprocess")
    await until(lambda: popen.returncode is not None)  # before the protocol is told
    for _ in range(5):
        transport.send_signal(signal.SIGTERM)
        transport.terminate()
        transport.kill()
        await turns(1)
    assert transport.get_returncode() == 6
    transport.get_pipe_transport(0).close()
    await until(lambda: protocol.lost)
    assert not signalled
    transport.close()


@pytest.mark.loops("tloop")
async def test_a_number_that_somebody_else_reaped_is_not_signalled(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, asyncio_log: AsyncioLog
) -> None:
    """Only the pidfd can tell, before the loop has seen that the child ended."""
    leash = Leash(9)
    process = await shell(leash.command, stdin=leash.stdin)
    leash.release(process.pid)
    pid, _ = os.waitpid(process.pid, os.WNOHANG)  # noqa: ASYNC222 -- it has ended
    assert pid == process.pid
    signalled = []
    monkeypatch.setattr(os, "kill", lambda pid, number: signalled.append((pid, number)))
    process.kill()
    assert not signalled
    assert await process.wait() == 255
    asyncio_log.expect("will report returncode 255")


# -- who reaps -------------------------------------------------------------------------------------


@pytest.fixture
def reaped_by_the_kernel() -> Iterator[None]:
    former = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGCHLD, former)


@pytest.mark.usefixtures("reaped_by_the_kernel")
async def test_an_exit_code_that_somebody_else_took(loop: Loop, asyncio_log: AsyncioLog) -> None:
    process = await exec_("cat", stdin=PIPE)
    await process.communicate(b"")
    assert process.returncode == 255
    assert str(process.pid) in asyncio_log.expect("will report returncode 255").getMessage()


@pytest.mark.usefixtures("reaped_by_the_kernel")
async def test_closing_when_somebody_else_took_it(loop: Loop, asyncio_log: AsyncioLog) -> None:
    """The inherited close() asks `Popen`, which takes an exit code that it cannot get for 0."""
    leash, protocol = Leash(8), Protocol()
    transport, _ = await loop.subprocess_shell(
        lambda: protocol, leash.command, stdin=leash.stdin, stderr=None
    )
    leash.release(transport.get_pid(), -errno.ECHILD)
    transport.close()
    await until(lambda: protocol.lost)
    assert transport.get_returncode() == 255
    asyncio_log.expect("will report returncode 255")


@pytest.mark.loops("tloop")
@pytest.mark.usefixtures("reaped_by_the_kernel")
async def test_gone_before_it_is_watched(
    loop: Loop, asyncio_log: AsyncioLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio raises ProcessLookupError here and leaves its transport open."""
    popen = subprocess.Popen

    def start(*args: Any, **options: Any) -> Any:
        child = popen(*args, **options)
        tloop_subprocess.lib.tl_child_wait(child.pid)
        return child

    monkeypatch.setattr(subprocess, "Popen", start)
    process = await exec_("true")
    assert await process.wait() == 255
    asyncio_log.expect("will report returncode 255")


@pytest.mark.loops("tloop")
async def test_popen_may_take_the_exit_code(loop: Loop) -> None:
    """It is not lost then: `Popen` knows it. asyncio reports 255."""
    leash, protocol = Leash(8), Protocol()
    transport, _ = await loop.subprocess_shell(
        lambda: protocol, leash.command, stdin=leash.stdin, stderr=None
    )
    leash.release(transport.get_pid())
    assert transport.get_extra_info("subprocess").wait() == 8
    await until(lambda: protocol.lost)
    assert transport.get_returncode() == 8
    transport.close()


@pytest.mark.loops("tloop")
@pytest.mark.parametrize("rounds", range(4))
async def test_closing_does_not_take_the_exit_code(loop: Loop, rounds: int) -> None:
    """The child has ended; the loop knows it not yet, or just, or has told. asyncio: 255."""
    leash, protocol = Leash(8), Protocol()
    transport, _ = await loop.subprocess_shell(
        lambda: protocol, leash.command, stdin=leash.stdin, stderr=None
    )
    leash.release(transport.get_pid())
    await turns(rounds)
    transport.close()
    await until(lambda: protocol.lost)
    assert transport.get_returncode() == 8
    assert transport.get_extra_info("subprocess").returncode == 8


@pytest.mark.loops("tloop")
async def test_closing_in_the_tick_that_reaped(loop: Loop) -> None:
    """One poll brings both the output's end, whose callback closes, and the end of the child."""

    class Closing(Protocol):
        def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
            super().pipe_connection_lost(fd, exc)
            self.transport.close()

    for _ in range(20):
        leash, protocol = Leash(8), Closing()
        transport, _ = await loop.subprocess_shell(
            lambda protocol=protocol: protocol, leash.command, stdin=leash.stdin
        )
        leash.release(transport.get_pid())
        await until(lambda protocol=protocol: protocol.lost)
        assert transport.get_returncode() == 8


@pytest.mark.loops("tloop")
async def test_no_signal_handler_and_no_child_watcher(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio's child watchers are deprecated, and a handler would need the main thread."""

    def refuse(*_args: object) -> None:
        raise AssertionError("a child watcher was asked for")

    for owner in (asyncio, asyncio.events):
        if hasattr(owner, "get_child_watcher"):
            monkeypatch.setattr(owner, "get_child_watcher", refuse)
    before = signal.getsignal(signal.SIGCHLD)
    with warnings_seen() as seen:
        process = await exec_("true")
        assert signal.getsignal(signal.SIGCHLD) is before
        assert await process.wait() == 0
    assert seen == []


# -- without pidfd ---------------------------------------------------------------------------------


@pytest.mark.loops("tloop")
@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM, errno.EMFILE, errno.ENOMEM])
async def test_a_thread_waits_where_there_is_no_pidfd(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    monkeypatch.setattr(tloop_subprocess, "lib", WithoutPidfd(error))
    idle = live_handles(loop)
    process = await exec_("cat", stdin=PIPE)
    names = [thread.name for thread in threading.enumerate()]
    assert f"tloop-waitpid-{process.pid}" in names
    assert live_handles(loop) == idle + 1  # the pipe
    await process.communicate(b"")
    assert process.returncode == 0
    assert len(threading.enumerate()) == len(names) - 1


# A filter for the kernel: pidfd_open (434 on every architecture) fails with ENOSYS.
SANDBOX = """
import asyncio, ctypes, errno, struct, sys, threading, tloop_py
libc = ctypes.CDLL(None, use_errno=True)
code = b"".join(struct.pack("HBBI", *line) for line in [
    (0x20, 0, 0, 0), (0x15, 0, 1, 434),
    (0x06, 0, 0, 0x50000 | errno.ENOSYS), (0x06, 0, 0, 0x7fff0000),
])
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(
    buffer := ctypes.create_string_buffer(code))))
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):
    print("no seccomp here")
    sys.exit()

async def main():
    process = await asyncio.create_subprocess_shell("read word; exit 7", stdin=-1)
    waiting = [t.name for t in threading.enumerate() if "waitpid" in t.name]
    await process.communicate(b"")
    print(len(waiting), process.returncode)

tloop_py.run(main())
"""


def test_in_a_sandbox_without_pidfd() -> None:
    process = python(SANDBOX)
    out, err = finish(process)
    assert process.returncode == 0, err
    if "no seccomp" in out:
        pytest.skip(out.strip())
    assert out == "1 7\n"


# -- cancellation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", range(6))
async def test_cancelling_the_start(loop: Loop, rounds: int, asyncio_log: AsyncioLog) -> None:
    """The child is killed, and reaped: no_child_left_behind looks."""
    protocol = Protocol()
    task = loop.create_task(loop.subprocess_exec(lambda: protocol, "sleep", "60", stderr=None))
    await turns(rounds)
    task.cancel()
    try:
        transport, _ = await task
    except asyncio.CancelledError:
        if loop.get_debug() and rounds:
            asyncio_log.expect("Close running child process")
        return
    transport.close()
    await until(lambda: protocol.lost)
    assert transport.get_returncode() == -signal.SIGKILL


async def test_cancelling_the_wait(loop: Loop) -> None:
    process = await exec_("sleep", "60", stdin=PIPE, stdout=PIPE)
    for call in (process.wait, process.communicate):
        task = loop.create_task(call())
        await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert process.returncode is None
    process.kill()
    assert await process.wait() == -signal.SIGKILL


async def test_cancelling_communicate_ends_nothing(loop: Loop) -> None:
    process = await exec_("cat", stdin=PIPE, stdout=PIPE)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(process.wait(), 0.001)
    assert await process.communicate(b"still here") == (b"still here", None)


# -- many, and loops in threads --------------------------------------------------------------------


async def exit_code(code: int) -> int:
    process = await exec_("sh", "-c", f"exit {code}")
    return await process.wait()


async def test_many_at_once(loop: Loop) -> None:
    codes = [number % 256 for number in range(60)]
    assert await asyncio.gather(*map(exit_code, codes)) == codes


@pytest.mark.slow
@pytest.mark.loops("tloop")
async def test_thousands_of_short_children(loop: Loop) -> None:
    """Neither zombies nor lost exit codes, nor anything left in the C core."""
    idle = live_handles(loop)
    count = 2000 if REFCOUNTS else 200  # PyPy's fork takes 20 ms
    for start in range(0, count, 50):
        codes = [number % 256 for number in range(start, start + 50)]
        assert await asyncio.gather(*map(exit_code, codes)) == codes
    await turns()
    assert live_handles(loop) == idle


def test_loops_in_several_threads(loop_factory: LoopFactory) -> None:
    results: dict[int, list[object]] = {}

    async def work(number: int) -> list[object]:
        process = await exec_("cat", stdin=PIPE, stdout=PIPE)
        text = str(number).encode()
        codes = await asyncio.gather(*(exit_code(number + k) for k in range(5)))
        return [*codes, (await process.communicate(text))[0]]

    def run(number: int) -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            results[number] = runner.run(work(number))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        assert results[number] == [*range(number, number + 5), str(number).encode()]


# -- the end of the loop ---------------------------------------------------------------------------


@pytest.mark.loops("tloop")
def test_closing_the_loop_while_a_child_runs(loop: Loop) -> None:
    """asyncio leaves the pidfd open. The child runs on, and can still be ended and reaped."""
    protocol = Protocol()
    transport, _ = loop.run_until_complete(
        loop.subprocess_exec(lambda: protocol, "sleep", "60", stdin=None, stdout=None, stderr=None)
    )
    loop.close()
    assert "running" in repr(transport)
    popen = transport.get_extra_info("subprocess")
    assert popen.poll() is None
    transport.kill()
    assert popen.wait() == -signal.SIGKILL
    transport.send_signal(signal.SIGTERM)
    transport.close()
    assert protocol.calls == ["made"]


@pytest.mark.loops("tloop")
def test_closing_the_loop_while_a_thread_waits(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, asyncio_log: AsyncioLog
) -> None:
    monkeypatch.setattr(tloop_subprocess, "lib", WithoutPidfd(errno.ENOSYS))
    process = loop.run_until_complete(exec_("sleep", "60"))
    (thread,) = (thread for thread in threading.enumerate() if "waitpid" in thread.name)
    loop.close()
    process.kill()
    thread.join()
    asyncio_log.expect(f"that handles pid {process.pid} is closed")
    popen = process._transport.get_extra_info("subprocess")  # type: ignore[attr-defined]
    assert popen.returncode == -signal.SIGKILL
    process._transport.close()  # type: ignore[attr-defined]


async def test_debug_mode(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    loop.set_debug(True)
    caplog.set_level("DEBUG", "asyncio")
    process = await shell("cat; exit 3", stdin=PIPE, stdout=PIPE)
    assert await process.communicate(b"hello") == (b"hello", None)
    texts = [record.getMessage() for record in caplog.records]
    assert any("exited with return code 3" in text for text in texts)
    assert any(f"created: pid {process.pid}" in text for text in texts)
