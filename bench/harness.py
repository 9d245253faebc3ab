"""Contenders, their servers and the load generator: processes of their own, on their own cores."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import serve
from rounds import BUILD, ROOT, BenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rows import Row

SERVE = ROOT / "bench" / "serve.py"
MBEDTLS = ROOT / "build" / "mbedtls.flags"  # what the compiler needs, made by `make`

_CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE = _CORES[0]
LOAD_CORE = _CORES[1 % len(_CORES)]


@dataclass(frozen=True)
class Contender:
    """A loop on some interpreter, or a C program; ``+primed`` primes the allocator first, and
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
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
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


def pin(core: int) -> Callable[[], None]:
    return functools.partial(os.sched_setaffinity, 0, {core})


@functools.cache
def load_program() -> tuple[Path, bool]:
    """Compile the load generator; the flag tells whether it speaks TLS (with OpenSSL's headers)."""
    for name, *flags in (("load-tls", "-DLOAD_TLS", "-lssl", "-lcrypto"), ("load",)):
        if compile_c("bench/load.c", *flags, name=name):
            return BUILD / name, bool(flags)
    raise BenchError("bench/load.c does not compile here")


def report_of(argv: Sequence[str], core: int, what: str, timeout: float) -> dict[str, Any]:
    """Run a program on a core and return the JSON that it prints."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=timeout, preexec_fn=pin(core)
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{what}: not done after {timeout} s") from None
    if done.returncode:
        raise BenchError(f"{what}: {done.stderr.strip()}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@contextlib.contextmanager
def running(contender: Contender, row: Row) -> Iterator[tuple[int, str]]:
    """Run a fresh server on its own core; give its process id and address."""
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/errors", "w+") as errors:
        argv = contender.command(row, folder)
        with subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=errors, text=True, preexec_fn=pin(SERVER_CORE)
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


def measure(contender: Contender, row: Row, seconds: float, warmup: float = 0.3) -> dict[str, Any]:
    """Drive one fresh server and return what the load generator reports."""
    with running(contender, row) as (pid, target):
        argv = [str(load_program()[0]), *row.kind.load, "-p", str(pid), "-c", str(row.connections)]
        argv += ["-s", str(row.size)] * bool(row.size)
        if body := body_of(row):
            argv += ["-b", str(body)]
        argv += ["-t", str(seconds), "-w", str(warmup), target]
        return report_of(argv, LOAD_CORE, f"{contender.name}, {row}", seconds + warmup + 30)


def available(
    names: Sequence[str], python: str = sys.executable
) -> tuple[dict[str, Contender], dict[str, dict[str, Any]]]:
    """Return the contenders that can run here and the version of every one asked for."""
    contenders = {name: Contender(name, python) for name in names}
    versions = {name: contender.probe() for name, contender in contenders.items()}
    return {name: c for name, c in contenders.items() if "version" in versions[name]}, versions
