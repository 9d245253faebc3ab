"""What the benchmark programs share: cores, servers, the load generator, contenders, tables."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).resolve().parent.parent
SERVERS = ROOT / "bench" / "servers.py"
LOAD = ROOT / "build" / "bench" / "load"
C_ECHO = ROOT / "build" / "examples" / "echo"

_CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE = _CORES[0]
LOAD_CORE = _CORES[1 % len(_CORES)]


class BenchError(Exception):
    """A server or the load generator failed; the text says what it printed."""


@dataclass(frozen=True)
class Row:
    """What is served, and how it is asked: ``[unix-]mode[:size[:connections]]``."""

    mode: str
    size: int = 1024
    connections: int = 50
    unix: bool = False

    @classmethod
    def parse(cls, text: str, connections: int = 50) -> Row:
        name, *numbers = text.split(":")
        mode = name.removeprefix("unix-")
        if mode not in servers.SERVE or not all(map(str.isdigit, numbers)) or len(numbers) > 2:
            raise BenchError(f"not a row: {text!r}; modes are {', '.join(servers.SERVE)}")
        size, connections = [*map(int, numbers), *[cls.size, connections][len(numbers) :]]
        return cls(mode, size, connections, mode != name)

    def __str__(self) -> str:
        size = "" if self.mode == "http" else f" {self.size} B"
        return f"{'unix ' * self.unix}{self.mode}{size} x {self.connections}"


@dataclass(frozen=True)
class Contender:
    """A loop on some interpreter, or the C echo server; ``+primed`` primes the allocator first."""

    name: str
    python: str = sys.executable

    @property
    def loop(self) -> str:
        return self.name.removesuffix("+primed")

    @property
    def native(self) -> bool:
        return self.loop == "tloop.h"

    def probe(self) -> dict[str, str]:
        """Give the installed ``version``, or the ``error`` for which it cannot run."""
        if self.native:
            return {"version": "C"} if C_ECHO.exists() else {"error": f"no {C_ECHO.name} program"}
        argv = [self.python, str(SERVERS), "protocol", self.loop, "--probe"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
        if done.returncode:
            return {"error": done.stderr.strip().rpartition("\n")[2]}
        versions: dict[str, str] = json.loads(done.stdout)
        return versions

    def serves(self, row: Row) -> bool:
        return not self.native or (row.mode == "protocol" and not row.unix)

    def command(self, row: Row, path: str) -> list[str]:
        if self.native:
            return [str(C_ECHO), "0"]
        argv = [self.python, str(SERVERS), row.mode, self.loop]
        argv += ["--unix", path] * row.unix
        return argv + ["--prime"] * self.name.endswith("+primed")


def pin(core: int) -> Callable[[], None]:
    return partial(os.sched_setaffinity, 0, {core})


def build_load() -> None:
    """Compile the load generator unless ``make`` has done so."""
    source = ROOT / "bench" / "load.c"
    if LOAD.exists() and LOAD.stat().st_mtime >= source.stat().st_mtime:
        return
    LOAD.parent.mkdir(parents=True, exist_ok=True)
    compile_it = [os.environ.get("CC", "cc"), "-std=c11", "-O2", str(source), "-o", str(LOAD)]
    with_tls = [*compile_it, "-DLOAD_TLS", "-lssl", "-lcrypto"]
    # Without OpenSSL's headers only the rows of TLS cannot be measured.
    if subprocess.run(with_tls, stderr=subprocess.DEVNULL, check=False).returncode:
        subprocess.run(compile_it, check=True)


def _target(line: str) -> str:
    """Turn ``ready 4711``, ``ready /path`` or ``listening on 127.0.0.1:4711`` into an address."""
    address = line.split()[-1] if line.split() else ""
    if address.startswith("/"):
        return f"unix:{address}"
    port = address.rpartition(":")[2]
    if not port.isdigit():
        raise BenchError(f"instead of its port the server printed {line!r}")
    return f"127.0.0.1:{port}"


def report_of(argv: Sequence[str], core: int, what: str, timeout: float) -> dict[str, Any]:
    """Run a program on a core and return the JSON that it prints."""
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=timeout, preexec_fn=pin(core)
    )
    if done.returncode:
        raise BenchError(f"{what}: {done.stderr.strip()}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@contextlib.contextmanager
def running(contender: Contender, row: Row) -> Iterator[tuple[int, str]]:
    """Run a fresh server on its own core; give its process id and address."""
    with tempfile.TemporaryDirectory() as folder:
        argv = contender.command(row, f"{folder}/server")
        with subprocess.Popen(
            argv, stdout=subprocess.PIPE, text=True, preexec_fn=pin(SERVER_CORE)
        ) as server:
            assert server.stdout is not None
            try:
                yield server.pid, _target(server.stdout.readline())
            finally:
                server.kill()


def measure(contender: Contender, row: Row, seconds: float, warmup: float = 0.3) -> dict[str, Any]:
    """Drive one fresh server and return what the load generator reports."""
    with running(contender, row) as (pid, target):
        kind = row.mode.partition("-")[0]
        mode = kind if kind in ("http", "tls") else "echo"
        argv = [str(LOAD), "-m", mode, "-p", str(pid)]
        argv += ["-c", str(row.connections), "-s", str(row.size)]
        argv += ["-t", str(seconds), "-w", str(warmup), target]
        return report_of(argv, LOAD_CORE, f"{contender.name}, {row}", seconds + warmup + 30)


def available(
    names: Sequence[str], python: str = sys.executable
) -> tuple[dict[str, Contender], dict[str, dict[str, str]]]:
    """Return the contenders that can run here and the version of every one asked for."""
    contenders = {name: Contender(name, python) for name in names}
    versions = {name: contender.probe() for name, contender in contenders.items()}
    return {name: c for name, c in contenders.items() if "version" in versions[name]}, versions


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def paired_ratio(values: Sequence[float], baseline: Sequence[float]) -> dict[str, float]:
    """Compare round by round, so that a slow spell of the machine hits both sides."""
    return spread([a / b for a, b in zip(values, baseline, strict=True)])


def _output(*argv: str) -> str | None:
    try:
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if not done.returncode else None


def machine() -> dict[str, Any]:
    """Describe where the figures come from."""
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "kernel": platform.release(),
        "cpu": model[0] if model else platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "commit": _output("git", "rev-parse", "HEAD"),
        "dirty": bool(_output("git", "status", "--porcelain")),
    }


def save(name: str, report: dict[str, Any]) -> None:
    """Keep every sample, and where it is from, in ``build/bench/<name>.json``."""
    path = ROOT / "build" / "bench" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **report}, indent=1))
    print(f"\nall samples: {path.relative_to(ROOT)}")


def progress(text: str) -> None:
    """Show what is being measured, where someone looks."""
    if sys.stderr.isatty():
        print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)


def print_absent(versions: dict[str, dict[str, str]]) -> None:
    lines = [f"  {name}: {v['error']}" for name, v in versions.items() if "error" in v]
    if lines:
        print("\nnot measured:", *lines, sep="\n")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align columns: the first to the left, the others to the right; the first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])
