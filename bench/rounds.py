"""Interleaved rounds of samples, and what they are turned into: ratios, tables, a JSON file."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "bench"
BASELINES = ("uvloop", "asyncio")  # the first that the interpreter has

Sample = dict[str, Any]
Versions = dict[str, dict[str, Any]]


class BenchError(Exception):
    """A server or the load generator failed; the text says what it printed."""


@dataclass
class Measured:
    """The samples of one row by contender, and why the others have none."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def is_out(self, name: str) -> bool:
        """Has it failed, or has the same loop, unprimed, before it was tried?"""
        stock = name.removesuffix("+primed")
        return name in self.failures or (name not in self.samples and stock in self.failures)

    @contextlib.contextmanager
    def failing(self, name: str) -> Iterator[None]:
        """Who fails in here is out, and the reason kept."""
        try:
            yield
        except BenchError as error:
            self.failures[name] = str(error)
            self.samples.pop(name, None)

    def summary(self, cost: str, baseline: str) -> dict[str, dict[str, dict[str, float]]]:
        """Median, min and max of each figure; ``ratio`` is that of a cost to the baseline's."""
        costs = {name: [sample[cost] for sample in runs] for name, runs in self.samples.items()}
        result = {}
        for name, runs in self.samples.items():
            numbers = [key for key, value in runs[0].items() if isinstance(value, float | int)]
            result[name] = {key: spread([run[key] for run in runs]) for key in numbers}
            if baseline in costs:
                result[name]["ratio"] = paired_ratio(costs[name], costs[baseline])
        return result


def collect(
    plan: dict[str, list[str]],
    rounds: int,
    start: Callable[[str, str], AbstractContextManager[Callable[[], Sample]]],
    keep: Callable[[dict[str, Measured]], None],
    windows: Callable[[str], int] = lambda row: 1,
) -> dict[str, Measured]:
    """Sample every row on every contender once per round, in an order that rotates.

    `start` gives what takes one window's figures of a contender; they take turns until each has had
    so many `windows`. Who fails is out of that row from then on, as rounds are compared one by one.
    After each round `keep` gets what there is: a long run that is stopped is not lost.
    """
    measured = {row: Measured() for row in plan}
    for number in range(rounds):
        for row, names in plan.items():
            turn = number % max(len(names), 1)
            progress(f"round {number + 1}: {row}")
            sample_all(
                measured[row], names[turn:] + names[:turn], partial(start, row), windows(row)
            )
        keep(measured)
    progress("")
    return measured


def sample_all(
    measured: Measured,
    names: list[str],
    start: Callable[[str], AbstractContextManager[Callable[[], Sample]]],
    windows: int,
) -> None:
    """Add a sample of each contender: the medians of its windows."""
    taken: dict[str, list[Sample]] = {}
    with contextlib.ExitStack() as alive:
        contenders = {}
        for name in names:
            if not measured.is_out(name):
                with measured.failing(name):
                    contenders[name] = alive.enter_context(start(name))
        order = list(contenders)
        for _ in range(windows):
            for name in order:
                if not measured.is_out(name):
                    with measured.failing(name):
                        taken.setdefault(name, []).append(contenders[name]())
            order.reverse()
    for name, samples in taken.items():
        if not measured.is_out(name):
            measured.samples.setdefault(name, []).append(median_of(samples))


def median_of(windows: list[Sample]) -> Sample:
    """The median of each figure; what is no number is the first's."""
    figures = {key for key, value in windows[0].items() if isinstance(value, float | int)}
    return windows[0] | {key: statistics.median(w[key] for w in windows) for key in figures}


def baseline_of(versions: Versions) -> str:
    """What all others are compared with."""
    return next((name for name in BASELINES if "version" in versions.get(name, {})), BASELINES[0])


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
    git = "git", "-c", f"safe.directory={ROOT}"  # whoever the checkout belongs to
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
        "commit": _output(*git, "rev-parse", "HEAD"),
        "dirty": bool(_output(*git, "status", "--porcelain")),
    }


def name_of(python: str, what: str, full: bool) -> str:
    """What a file is called: a full run has a place of its own for each interpreter."""
    return f"{slug(python)}-{what}" if full else what


def slug(python: str) -> str:
    """``cpython-3.13`` of ``CPython 3.13.5``."""
    name, _, version = python.lower().partition(" ")
    return "-".join([name, *[".".join(version.split(".")[:2])] * bool(version)])


def save(name: str, report: dict[str, Any]) -> None:
    """Keep every sample, and where it is from, in ``build/bench/<name>.json``."""
    path = BUILD / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **report}, indent=1))


def progress(text: str) -> None:
    """Show what is being measured, where someone looks."""
    if sys.stderr.isatty():
        print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)


def short_reason(reason: str) -> str:
    """The exception or the complaint, without its traceback, row and number."""
    errors = [line for line in reason.splitlines() if re.match(r"[\w.]*(Error|Exception)\b", line)]
    complaint = reason.splitlines()[0].partition(": ")[2]
    return errors[-1] if errors else re.sub(r"^load: (\d+ )?", "", complaint)


def print_absent(versions: Versions, failures: Sequence[str] = ()) -> None:
    """Say which contenders are not there, and which failed at a row."""
    lines = [f"{name}: {v['error']}" for name, v in versions.items() if "error" in v]
    lines += [f"{text.partition(': ')[0]}: {short_reason(text)}" for text in failures]
    if lines:
        print("not measured:", *lines, sep="\n  ")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align columns: the first to the left, the others to the right; the first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])
