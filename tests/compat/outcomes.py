"""Run tests on a loop, in other processes: a loop that hangs or aborts fails its test alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

from tests.compat import reporter
from tests.compat.rows import ROOT

LOOPS = ("tloop", "asyncio", "uvloop")
# Seconds for one process, and in a process of its own for a test and what it waits for: a slow loop
# is not one that hangs.
LIMIT, ALONE, PATIENCE = 60.0, 50.0, 45.0
PASSED = "pass"
SKIPPED = "skipped"
WRONG = ("dies", "hangs", "fails", "missing")  # from bad to better
# What a loop that lacks something raises.
_MISSING = re.compile(
    r"NotImplementedError|has no attribute|unexpected keyword argument|cannot import name"
)
_HANGS = re.compile(r"TimeoutError|Timeout \(?[>\d]|TimeoutExpired")
# What differs from run to run: folders, addresses, times, ports.
_VARIABLE = re.compile(r"(?<![\w./])/(?:[\w.+-]+/)+|0x[0-9a-f]+|\d+\.\d+|\d{5,}")


@dataclass(frozen=True)
class Outcome:
    kind: str  # PASSED, SKIPPED or one of WRONG
    reason: str = ""


def run_all(loop: str, tests: list[str]) -> dict[str, Outcome]:
    """The outcome of each test on the loop: together with the others of its file, which is quick,
    or, where it did not pass so, alone."""
    outcomes: dict[str, Outcome] = {}
    files = [list(group) for _, group in groupby(sorted(tests), _path)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(partial(_run, loop), files):
            outcomes |= found
        alone = [[test] for test, outcome in outcomes.items() if outcome.kind in WRONG]
        for found in pool.map(partial(_run, loop), alone):
            outcomes |= found
    return outcomes


def _path(test: str) -> str:
    return test.partition("::")[0]


def _run(loop: str, tests: list[str]) -> dict[str, Outcome]:
    """In one process; what it has not reported ends as the process does."""
    found: dict[str, list[Outcome]] = {test: [] for test in tests}
    with tempfile.TemporaryDirectory(prefix="tloop-compat-") as folder:
        report = Path(folder, "report")
        report.touch()
        end = _wait(_pytest(loop, tests, report), LIMIT)
        for line in report.read_text().splitlines():
            case, result, message = json.loads(line)
            found[case.partition("[")[0]].append(outcome_of(loop, case, result, message))
    return {test: worst(outcomes or [end]) for test, outcomes in found.items()}


def _pytest(loop: str, tests: list[str], report: Path) -> subprocess.Popen[bytes]:
    plugins = ["-p", "no:cacheprovider", "-p", reporter.__name__]
    variables = {"TLOOP_TEST_LOOPS": loop, "TLOOP_TEST_UNPROMISED": "1", reporter.FILE: str(report)}
    options = []
    if len(tests) == 1:
        options = ["-x", f"--timeout={ALONE}"]
        variables["TLOOP_TEST_PATIENCE"] = str(PATIENCE)
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", *plugins, *options, *tests],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _wait(process: subprocess.Popen[bytes], limit: float) -> Outcome:
    """How the process ended, for when it has reported nothing."""
    try:
        status = process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return Outcome("hangs", f"stopped after {limit:.0f} s")
    return Outcome("dies", signal.Signals(-status).name if status < 0 else f"status {status}")


def outcome_of(loop: str, case: str, result: str, message: str) -> Outcome:
    """Of a test with one set of parameters, as pytest tells it."""
    if result == "skipped":
        return Outcome(SKIPPED)
    if result == "failed":
        return judge(message)
    if loop != "tloop" and loop not in re.split(r"[\[\]-]", case)[1:]:
        return Outcome("missing", "a test of tloop's own")
    return Outcome(PASSED)


def judge(message: str) -> Outcome:
    """Of a test that went wrong; the message is that of its exception."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["no message"]
    reason = _VARIABLE.sub("…", lines[0])
    if _MISSING.search(reason):
        return Outcome("missing", reason)
    return Outcome("hangs" if _HANGS.search(reason) else "fails", reason)


def worst(outcomes: list[Outcome]) -> Outcome:
    """Of all parameters of a test: it passed if none went wrong and one was not skipped."""
    for kind in (*WRONG, PASSED):
        for outcome in outcomes:
            if outcome.kind == kind:
                return outcome
    return outcomes[0]
