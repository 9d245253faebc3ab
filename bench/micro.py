"""Time what a loop does by itself or as a client: ``python bench/micro.py [--full]``.

Each sample is a fresh process that runs one row of ``work.py``; rounds are interleaved. All of them
are also kept as pyperf has them, one suite per loop: ``pyperf compare_to`` takes any two.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from functools import partial
from typing import TYPE_CHECKING

import harness
import pyperf
import rounds
import rows
import serve
import services
import work
from rounds import Measured, Sample

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

LOOPS = f"tloop,uvloop,asyncio,{serve.FLOOR}"
PEERS = ",".join(["uvloop+primed", "asyncio+primed", *rows.PEERS])
COST = "cpu_ns"


def sample(python: str, row: str, loop: str, service: str | None) -> Sample:
    if row == "import":
        argv = [python, "-c", work.IMPORT, serve.MODULES.get(loop, loop)]
    else:
        argv = [python, work.__file__, row, loop, *([service] if service else [])]
    return harness.report_of(argv, harness.SERVER_CORE, f"{loop}, {row}", timeout=60)


def printable(results: dict[str, Measured], loops: list[str], baseline: str) -> str:
    """One line per row: the cost of an operation, and ratios with their spread."""
    ratios = [name for name in loops if name != baseline]
    lines = [["CPU ns/operation", *loops, *(f"{name} x {baseline}" for name in ratios)]]
    for row, measured in results.items():
        summary = measured.summary(COST, baseline)
        medians = {name: f"{figures[COST]['median']:.0f}" for name, figures in summary.items()}
        shares = {
            name: "{median:.2f} ({min:.2f}-{max:.2f})".format(**figures["ratio"])
            for name, figures in summary.items()
            if "ratio" in figures
        }
        lines.append([row, *(medians.get(name, "-") for name in loops)])
        lines[-1] += [shares.get(name, "-") for name in ratios]
    return rounds.table(lines)


def print_others(results: dict[str, Measured], loops: list[str], baseline: str) -> None:
    """Figures other than the cost, such as how late timers are."""
    lines = [["besides", *loops]]
    for row, measured in results.items():
        summary = measured.summary(COST, baseline)
        for key in work.ROWS[row].figures:
            values = (summary.get(name, {}).get(key) for name in loops)
            lines.append([f"{row}: {key}", *(f"{v['median']:.1f}" if v else "-" for v in values)])
    if len(lines) > 1:
        print(f"\n{rounds.table(lines)}")


def keep_suites(name: str, python: str, results: dict[str, Measured]) -> None:
    """Write ``build/bench/NAME-LOOP.pyperf.json``: a benchmark per row, a run per process."""
    suites: dict[str, list[pyperf.Benchmark]] = {}
    for row, measured in results.items():
        about = {"name": row, "unit": "second", "timer": "time.process_time()", "python": python}
        for loop, samples in measured.samples.items():
            runs = [
                pyperf.Run(
                    sample["values"],
                    metadata={**about, "loops": sample["loops"]},
                    collect_metadata=False,
                )
                for sample in samples
            ]
            suites.setdefault(loop, []).append(pyperf.Benchmark(runs))
    for loop, benchmarks in suites.items():
        path = rounds.BUILD / f"{name}-{loop}.pyperf.json"
        pyperf.BenchmarkSuite(benchmarks).dump(str(path), replace=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="more loops, 5 rounds, all rows")
    parser.add_argument("--loops", help=f"default: {LOOPS}; --full: these and {PEERS}")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--rows", help="only rows whose name contains this")
    parser.add_argument("--python", default=sys.executable, help="interpreter to measure on")
    parser.add_argument("--name", help="build/bench/NAME.json gets the samples; default: micro")
    args = parser.parse_args()
    args.loops = args.loops or (f"{LOOPS},{PEERS}" if args.full else LOOPS)
    args.rounds = args.rounds or (5 if args.full else 3)
    return args


def chosen(part: str | None, full: bool, packages: set[str]) -> list[str]:
    """The rows to measure, without those that need a package or program that is not there."""
    names = []
    for name, row in work.ROWS.items():
        if (part or "") not in name or (row.full and not full and not part):
            continue
        if row.service and (reason := services.absent(row.service, packages)):
            print(f"not measured: {name}, without {reason}")
        else:
            names.append(name)
    return names


def main() -> None:
    args = parse_args()
    contenders, versions = harness.available(args.loops.split(","), args.python)
    loops = list(contenders)
    packages = {name for version in versions.values() for name in version.get("packages", ())}
    python, baseline = harness.interpreter_of(versions), rounds.baseline_of(versions)
    name = args.name or rounds.name_of(python, "micro", args.full)
    plan = {
        row: [loop for loop in loops if work.ROWS[row].takes(loop)]
        for row in chosen(args.rows, args.full, packages)
    }
    wanted = {service for row in plan if (service := work.ROWS[row].service)}
    with contextlib.ExitStack() as stack:
        folders = {name: stack.enter_context(services.SERVICES[name].running()) for name in wanted}

        def start(row: str, loop: str) -> AbstractContextManager[Callable[[], Sample]]:
            folder = folders.get(work.ROWS[row].service or "")
            return contextlib.nullcontext(partial(sample, args.python, row, loop, folder))

        def keep(results: dict[str, Measured]) -> None:
            kept = [
                {
                    "row": {"name": row},
                    "summary": measured.summary(COST, baseline),
                    **vars(measured),
                }
                for row, measured in results.items()
            ]
            rounds.save(name, {"versions": versions, "rows": kept})

        results = rounds.collect(plan, args.rounds, start, keep)
    keep_suites(name, python, results)
    print(printable(results, loops, baseline))
    print_others(results, loops, baseline)
    rounds.print_absent(versions, [f for m in results.values() for f in m.failures.values()])
    print(f"\nall samples: build/bench/{name}.json")


if __name__ == "__main__":
    try:
        main()
    except rounds.BenchError as error:
        sys.exit(f"micro: {error}")
