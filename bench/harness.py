"""Contenders, their servers and the load generator: processes of their own, on their own cores."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import serve
import work
from rounds import BUILD, ROOT, BenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rows import Row

SERVE = ROOT / "bench" / "serve.py"
MBEDTLS = ROOT / "build" / "mbedtls.flags"  # what the compiler needs, made by `make`

WRK_REPORT = ROOT / "bench" / "wrk.lua"
# Compiled once, as users have it: what starts afresh for each sample has to start fast.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

_CORES = list(range(os.cpu_count() or 1))
if hasattr(os, "sched_getaffinity"):  # not on PyPy
    _CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE = _CORES[0]
LOAD_CORE = _CORES[1 % len(_CORES)]


@dataclass(frozen=True)
class Contender:
    """A loop on some interpreter, a C program, or a limit. ``+primed`` primes the allocator first;
    ``+mbedtls`` has TLS rows served by a ``TLSContext``."""

    name: str
    python: str = sys.executable

    @property
    def loop(self) -> str:
        return self.name.partition("+")[0]

    def probe(self) -> dict[str, Any]:
        """Give the installed ``version``, or the ``error`` for which it cannot run."""
        if self.loop in PROGRAMS:
            return PROGRAMS[self.loop].build()
        argv = [self.python, str(SERVE), "protocol", self.loop, "--probe"]
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=30, env=ENVIRONMENT
        )
        if done.returncode:
            return {"error": done.stderr.strip().rpartition("\n")[2]}
        versions: dict[str, Any] = json.loads(done.stdout)
        return versions

    def serves(self, row: Row) -> bool:
        """Is there such a server? Whether it works is seen when it is measured."""
        if self.loop in PROGRAMS:
            kind = row.kind
            return (kind.server, kind.tls, kind.unix) == (
                "protocol",
                PROGRAMS[self.loop].tls,
                False,
            )
        if self.loop == serve.FLOOR:
            return not (row.kind.file or row.kind.tls)
        return row.kind.tls or "+mbedtls" not in self.name

    def command(self, row: Row, folder: str) -> list[str]:
        if self.loop in PROGRAMS:
            return PROGRAMS[self.loop].command
        kind = row.kind
        argv = [self.python, str(SERVE), kind.server, self.loop]
        argv += ["--tls", "mbedtls" if "+mbedtls" in self.name else "ssl"] * kind.tls
        argv += ["--unix", f"{folder}/server"] * (kind.unix or kind.server == "pipes")
        argv += ["--file", str(body_of(row))] * kind.file
        return argv + ["--prime"] * ("+primed" in self.name)


@dataclass(frozen=True)
class Program:
    """A server in C, which shows what can be reached."""

    source: str
    arguments: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    tls: bool = False

    @property
    def path(self) -> Path:
        return BUILD / Path(self.source).stem

    @property
    def command(self) -> list[str]:
        return [str(self.path), *self.arguments]

    def build(self) -> dict[str, Any]:
        flags = MBEDTLS.read_text().split() if self.tls and MBEDTLS.exists() else ()
        if compile_c(self.source, *self.libraries, *flags):
            return {"version": "C"}
        return {"error": f"{self.source} does not compile here"}


PROGRAMS = {
    "epoll": Program("bench/echo_epoll.c"),
    "libuv": Program("bench/echo_libuv.c", (), ("-luv",)),
    "tloop.h": Program("examples/echo.c", ("0",)),
    "tloop_tls.h": Program("examples/tls_echo.c", ("0", str(serve.CERTIFICATE)), tls=True),
}

LIMITS = {*PROGRAMS, serve.FLOOR}  # what nobody would use as an event loop of asyncio


def compile_c(source: str, *flags: str, name: str | None = None) -> bool:
    """Compile a program of one file into ``build/bench``, unless that is done."""
    program = BUILD / (name or Path(source).stem)
    inputs = [ROOT / source, ROOT / "tloop.h", ROOT / "tloop_tls.h"]
    if program.exists() and program.stat().st_mtime >= max(i.stat().st_mtime for i in inputs):
        return True
    BUILD.mkdir(parents=True, exist_ok=True)
    compiler = os.environ.get("CC", "cc").split()
    argv = [*compiler, "-std=c11", "-O2", f"-I{ROOT}", source, *flags, "-o", str(program)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, check=False)
    return done.returncode == 0


def body_of(row: Row) -> Path | None:
    """The file that holds what the server has to reply, where that is not an echo."""
    kind = row.kind
    if not kind.file and kind.body is None:
        return None
    path = BUILD / (f"{row.size}.bytes" if kind.file else f"{row.name}.body")
    size = row.size if kind.file else len(kind.body or b"")
    if not path.exists() or path.stat().st_size != size:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size) if kind.body is None else kind.body)
    return path


def pinned(core: int, argv: Sequence[str]) -> list[str]:
    """The same program on one core. It keeps its process id."""
    return ["taskset", "-c", str(core), *argv]


@functools.cache
def load_program() -> tuple[Path, bool]:
    """Compile the load generator; the flag tells whether it speaks TLS (with OpenSSL's headers)."""
    for name, *flags in (("load-tls", "-DLOAD_TLS", "-lssl", "-lcrypto"), ("load",)):
        if compile_c("bench/load.c", *flags, name=name):
            return BUILD / name, bool(flags)
    raise BenchError("bench/load.c does not compile here")


def report_of(argv: Sequence[str], core: int, what: str, timeout: float) -> dict[str, Any]:
    """Run a program on a core and return the JSON that its last line is."""
    try:
        done = subprocess.run(
            pinned(core, argv),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env=ENVIRONMENT,
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{what}: not done after {timeout} s") from None
    if done.returncode:
        raise BenchError(f"{what}: {done.stderr.strip()}")
    report: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    return report


@contextlib.contextmanager
def loading(
    argv: Sequence[str], what: str, timeout: float
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Run the load generator; the result has it measure one window. Connections stay open from one
    to the next: who makes new ones measures a server that has closed some, and TCP's beginnings."""
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            pinned(LOAD_CORE, [*argv, "-k"]),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        ) as load,
    ):  # fmt: skip
        assert load.stdin is not None
        assert load.stdout is not None
        asks = load.stdin.fileno()

        def window() -> dict[str, Any]:
            with contextlib.suppress(BrokenPipeError):  # it has failed, and said why
                os.write(asks, b"\n")
            if not select.select([load.stdout], [], [], timeout)[0]:
                raise BenchError(f"{what}: not done after {timeout} s")
            line = load.stdout.readline()
            if not line:
                errors.seek(0)
                raise BenchError(f"{what}: {errors.read().strip()}")
            report: dict[str, Any] = json.loads(line)
            return report

        try:
            yield window
        finally:
            load.kill()


@contextlib.contextmanager
def running(contender: Contender, row: Row) -> Iterator[tuple[int, str]]:
    """Run a fresh server on its own core; give its process id and address."""
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/errors", "w+") as errors:
        argv = pinned(SERVER_CORE, contender.command(row, folder))
        with subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=errors, text=True, env=ENVIRONMENT
        ) as server:
            assert server.stdout is not None
            try:
                line = server.stdout.readline().split()  # "ready ADDRESS", "listening on ADDRESS"
                if not line:
                    errors.seek(0)
                    reason = errors.read().strip().rpartition("\n")[2]
                    raise BenchError(f"{contender.name}, {row}: {reason or 'does not start'}")
                threading.Thread(target=server.stdout.read, daemon=True).start()  # never blocks it
                yield server.pid, line[-1]
            finally:
                server.kill()


def load_command(row: Row, pid: int) -> list[str]:
    argv = [str(load_program()[0]), *row.kind.load, "-p", str(pid), "-c", str(row.connections)]
    argv += ["-s", str(row.size)] * bool(row.size)
    if body := body_of(row):
        argv += ["-b", str(body)]
    return argv


@contextlib.contextmanager
def driven(
    contender: Contender, row: Row, seconds: float, warmup: float = 0.2, patience: float = 0
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Run a fresh server; the result drives it for so long, after a warm-up, and returns what the
    load generator reports.

    `patience` is for a server that compiles while it runs: the warm-up goes on until its cost is
    steady, but no longer than so many seconds."""
    what = f"{contender.name}, {row}"
    if contender.loop in PROGRAMS:
        patience = 0
    if patience:  # the cost of a few requests says nothing of how compiled they are
        warmup = max(warmup, 0.5)
    timeout = seconds + warmup + patience + 30
    with running(contender, row) as (pid, target):
        argv = [*load_command(row, pid), "-w", str(warmup), "-W", str(patience)]
        if wrk := row.kind.body and wrk_version():

            def window() -> dict[str, Any]:  # load.c compares bytes; wrk looks at the status alone
                report = report_of([*argv, "-t", "0.02", target], LOAD_CORE, what, timeout)
                return report | measure_by_wrk(row, pid, target, seconds, what) | {"generator": wrk}

            yield window
        else:
            with loading([*argv, "-t", str(seconds), target], what, timeout) as window:
                yield window


def measure(
    contender: Contender, row: Row, seconds: float, warmup: float = 0.2, patience: float = 0
) -> dict[str, Any]:
    """One window of a fresh server."""
    with driven(contender, row, seconds, warmup, patience) as window:
        return window()


@functools.cache
def wrk_version() -> str | None:
    """What HTTP rows are measured with where it is installed, else that is `load.c`."""
    if not shutil.which("wrk"):
        return None
    done = subprocess.run(["wrk", "--version"], capture_output=True, text=True, check=False)
    return " ".join(done.stdout.split()[:2])


def measure_by_wrk(row: Row, pid: int, target: str, seconds: float, what: str) -> dict[str, Any]:
    argv = ["wrk", "-t1", f"-c{row.connections}", f"-d{max(1, round(seconds))}s"]
    clock = ~pid << 3 | 2  # of another process, as clock_getcpuclockid() makes it
    before = time.clock_gettime(clock)
    report = report_of([*argv, "-s", str(WRK_REPORT), f"http://{target}/"], LOAD_CORE, what, 60)
    cpu = time.clock_gettime(clock) - before
    if errors := {name: count for name, count in report.pop("errors").items() if count}:
        raise BenchError(f"{what}: errors under wrk: {errors}")
    return {
        **report,
        "cpu_us_per_request": 1e6 * cpu / report["requests"],
        "server_busy": cpu / report["seconds"],
    }


def available(
    names: Sequence[str], python: str = sys.executable
) -> tuple[dict[str, Contender], dict[str, dict[str, Any]]]:
    """Return the contenders that can run here and the version of every one asked for."""
    contenders = {name: Contender(name, python) for name in names}
    versions = {name: contender.probe() for name, contender in contenders.items()}
    return {name: c for name, c in contenders.items() if "version" in versions[name]}, versions


def interpreter_of(versions: dict[str, dict[str, Any]]) -> str:
    """Its name and version, as whichever loop runs on it said."""
    return next((v["python"] for v in versions.values() if "python" in v), "C")


def patience_with(python: str) -> float:
    """Seconds that an interpreter may take until it has compiled what it runs."""
    return work.PATIENCE if python.startswith("PyPy") else 0
