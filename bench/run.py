"""Compare event loops under load: ``python bench/run.py [--full]``, see bench/README.md."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import harness
import rows
from harness import Contender
from rows import Row

LOOPS = (
    "tloop,tloop+mbedtls,uvloop,uvloop+primed,asyncio,asyncio+primed,tloop.h,tloop_tls.h,"
    "epoll,libuv"
)
PEERS = "rloop,rloop+primed,blazio,blazio+primed,zloop,zloop+primed"
BASELINE = "uvloop"
SHOWN = {
    "cpu_us_per_request": "CPU us",
    "rps": "per second",
    "p50_us": "p50 us",
    "p99_us": "p99 us",
    "p999_us": "p99.9 us",
    "rss_per_idle": "bytes/idle",
}
CPU = "cpu_us_per_request"

Samples = dict[Row, dict[str, list[dict[str, Any]]]]


class Measured:
    """The samples of a run, and who could not be measured for what reason."""

    def __init__(self, rows: list[Row], contenders: list[Contender]) -> None:
        self.samples: Samples = {row: {} for row in rows}
        self.failures: dict[str, dict[str, str]] = {}
        self.plan = {row: [c for c in contenders if c.serves(row)] for row in rows}

    def sample(self, row: Row, contender: Contender, seconds: float) -> None:
        """Measure once; who fails is out of that row, as rounds are compared one by one."""
        try:
            sample = harness.measure(contender, row, seconds)
        except harness.BenchError as error:
            self.plan[row].remove(contender)
            self.samples[row].pop(contender.name, None)
            self.failures.setdefault(str(row), {})[contender.name] = str(error)
        else:
            self.samples[row].setdefault(contender.name, []).append(sample)


def collect(rows: list[Row], contenders: list[Contender], rounds: int, seconds: float) -> Measured:
    """Measure every row on every contender, once per round, in an order that rotates."""
    measured = Measured(rows, contenders)
    for number in range(rounds):
        for row in rows:
            plan = measured.plan[row]
            turn = number % max(len(plan), 1)
            for contender in plan[turn:] + plan[:turn]:
                harness.progress(f"round {number + 1}: {row}, {contender.name}")
                measured.sample(row, contender, seconds)
    harness.progress("")
    return measured


def possible(texts: list[str], connections: int | None, packages: set[str]) -> list[Row]:
    """The rows asked for, without those that need a package that is not there."""
    found = []
    for row in [Row.parse(text, connections) for text in texts]:
        if absent := [package for package in row.kind.needs if package not in packages]:
            print(f"not measured: {row}, without {' and '.join(absent)}")
        else:
            found.append(row)
    return found


def summarise(samples: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Give median, min and max of each figure, and the ratio of CPU cost to the baseline's."""
    summary: dict[str, dict[str, Any]] = {}
    costs = {name: [sample[CPU] for sample in runs] for name, runs in samples.items()}
    for name, runs in samples.items():
        summary[name] = {
            key: harness.spread([run[key] for run in runs]) for key in SHOWN if key in runs[0]
        }
        if BASELINE in costs:
            summary[name]["ratio"] = harness.paired_ratio(costs[name], costs[BASELINE])
    return summary


def printable(row: Row, summary: dict[str, dict[str, Any]]) -> str:
    keys = [key for key in SHOWN if any(key in figures for figures in summary.values())]
    head = [str(row), f"{SHOWN[CPU]}/{row.kind.unit}", "min", "max", f"x {BASELINE}"]
    lines = [head + [SHOWN[key] for key in keys[1:]]]
    for name, figures in sorted(summary.items(), key=lambda item: item[1][CPU]["median"]):
        cpu = figures[CPU]
        ratio = f"{figures['ratio']['median']:.2f}" if "ratio" in figures else "-"
        lines.append([name, *(f"{cpu[key]:.2f}" for key in ("median", "min", "max")), ratio])
        lines[-1] += [f"{figures[key]['median']:,.0f}" for key in keys[1:]]
    return harness.table(lines)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="all sizes, 5 rounds, longer windows")
    parser.add_argument("--rows", help="kind[:size[:connections]],...; bench/rows.py has them")
    parser.add_argument("--loops", help=f"default: {LOOPS}; --full: these and {PEERS}")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="length of one measured window")
    parser.add_argument("--connections", type=int, help="where a row does not say")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the servers")
    parser.add_argument("--name", default="run", help="build/bench/NAME.json gets the samples")
    args = parser.parse_args()
    args.rows = args.rows or (rows.FULL if args.full else rows.SHORT)
    args.loops = args.loops or (f"{LOOPS},{PEERS}" if args.full else LOOPS)
    args.rounds = args.rounds or (5 if args.full else 3)
    args.seconds = args.seconds or (2.0 if args.full else 1.0)
    return args


def main() -> None:
    args = parse_args()
    harness.build_load()
    contenders, versions = harness.available(args.loops.split(","), args.python)
    packages = {name for version in versions.values() for name in version.get("packages", ())}
    chosen = possible(args.rows.split(","), args.connections, packages)
    measured = collect(chosen, list(contenders.values()), args.rounds, args.seconds)
    results = []
    for row, samples in measured.samples.items():
        summary = summarise(samples)
        print(printable(row, summary), end="\n\n")
        results.append({"row": vars(row), "summary": summary, "samples": samples})
    harness.print_absent(versions, measured.failures)
    settings = {"rounds": args.rounds, "seconds": args.seconds, "baseline": BASELINE}
    report = {"versions": versions, "settings": settings, "failures": measured.failures}
    harness.save(args.name, {**report, "rows": results})


if __name__ == "__main__":
    try:
        main()
    except (harness.BenchError, ValueError) as error:
        sys.exit(f"bench: {error}")
