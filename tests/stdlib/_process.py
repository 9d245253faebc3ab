"""Run one test module in as many processes as it takes, and collect what they report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).resolve().parents[2]
TEST_LIMIT = 60.0
MODULE_LIMIT = 200.0
# A process that dies of a test is started again behind that test, but not for ever.
MAX_DEATHS = 5


@dataclass
class ModuleRun:
    """What the processes of one module reported."""

    name: str
    ends: dict[str, dict[str, Any]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    complete: bool = False
    loop: str = ""
    backend: str = ""
    skipped: str = ""
    seconds: float = 0.0
    log: str = ""


@dataclass(frozen=True)
class Job:
    """What every module of a run has in common."""

    factory: str
    match: str = "*"


def run_module(name: str, job: Job, left_out: Iterable[str]) -> ModuleRun:
    """Run one module, in as many processes as it takes."""
    run = ModuleRun(name)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tloop-stdlib-") as folder:
        for _ in range(MAX_DEATHS):
            left = MODULE_LIMIT - (time.monotonic() - began)
            if left <= 0 or _one_process(run, job, left_out, Path(folder), left):
                break
    run.seconds = time.monotonic() - began
    return run


def _one_process(
    run: ModuleRun, job: Job, left_out: Iterable[str], folder: Path, limit: float
) -> bool:
    """Run what is left of a module; tell whether the process came to its end."""
    report, done, log = folder / "report", folder / "done", folder / "log"
    report.write_text("")
    done.write_text("\n".join(run.ends))
    command = [sys.executable, "-m", "tests.stdlib._child", run.name]
    command += ["--factory", job.factory, "--match", job.match]
    command += ["--report", str(report), "--done", str(done), "--limit", str(TEST_LIMIT)]
    command += [f"--out={name}" for name in left_out]
    how = _wait(command, log, limit)
    text = log.read_text(encoding="utf-8", errors="replace")
    run.log += text
    tail = "\n".join(text.splitlines()[-60:])
    return _read(run, report, f"the process died: {how}\n{tail}")


def _wait(command: list[str], log: Path, limit: float) -> str:
    """Run a command to its end or to the limit; tell how it ended."""
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return f"exit status {process.wait(limit)}"
        except subprocess.TimeoutExpired:
            # The dump of all stacks goes to the log.
            os.kill(process.pid, signal.SIGABRT)
            process.wait()
            return f"module stopped after {limit:.0f} s"


def _read(run: ModuleRun, report: Path, how: str) -> bool:
    """Take over the report of a process; blame its end on the test that was running."""
    running = ""
    for line in report.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "loop" in row:
            run.loop, run.backend = row["loop"], row["backend"]
        elif "start" in row:
            running = row["start"]
        elif "end" in row:
            run.ends[row["end"]] = row
            running = ""
        elif "done" in row:
            run.complete = True
            run.names, run.skipped = row["tests"], row.get("skipped", "")
    if not run.complete:
        blamed = running or f"{run.name}.<process>"
        run.ends[blamed] = {"outcome": "fail", "detail": how, "loops": {}}
    return run.complete or not running
