"""Compare event loops under load: ``python bench/run.py [--full]``, see bench/README.md."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import harness
from harness import Contender, Row

LOOPS = "tloop,uvloop,uvloop+primed,asyncio,asyncio+primed,tloop.h"
SHORT_ROWS = "protocol,buffered,streams,raw,http,unix-protocol"
FULL_ROWS = ",".join(
    f"{mode}:{size}:{connections}"
    for mode in ("protocol", "buffered", "streams", "raw", "unix-protocol", "unix-streams")
    for size in (1024, 10240, 102400)
    for connections in (1, 50)
)
BASELINE = "uvloop"
SHOWN = ("cpu_us_per_request", "rps", "p50_us", "p99_us", "p999_us")

Samples = dict[Row, dict[str, list[dict[str, Any]]]]


def collect(rows: list[Row], contenders: list[Contender], rounds: int, seconds: float) -> Samples:
    """Measure every row on every contender, once per round, in an order that rotates."""
    samples: Samples = {row: {c.name: [] for c in contenders if c.serves(row)} for row in rows}
    for number in range(rounds):
        turn = number % len(contenders)
        for row in rows:
            for contender in contenders[turn:] + contenders[:turn]:
                if contender.serves(row):
                    harness.progress(f"round {number + 1}: {row}, {contender.name}")
                    samples[row][contender.name].append(harness.measure(contender, row, seconds))
    harness.progress("")
    return samples


def summarise(samples: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Give median, min and max of each figure, and the ratio of CPU cost to the baseline's."""
    summary: dict[str, dict[str, Any]] = {}
    costs = {name: [s["cpu_us_per_request"] for s in runs] for name, runs in samples.items()}
    for name, runs in samples.items():
        summary[name] = {key: harness.spread([run[key] for run in runs]) for key in SHOWN}
        if BASELINE in costs:
            summary[name]["ratio"] = harness.paired_ratio(costs[name], costs[BASELINE])
    return summary


def printable(row: Row, summary: dict[str, dict[str, Any]]) -> str:
    head = [str(row), "CPU us/request", "min", "max", f"x {BASELINE}"]
    lines = [[*head, "requests/s", "p50 us", "p99 us", "p99.9 us"]]
    for name, figures in sorted(summary.items(), key=lambda item: item[1][SHOWN[0]]["median"]):
        cpu = figures["cpu_us_per_request"]
        ratio = f"{figures['ratio']['median']:.2f}" if "ratio" in figures else "-"
        lines.append([name, *(f"{cpu[key]:.2f}" for key in ("median", "min", "max")), ratio])
        lines[-1] += [f"{figures[key]['median']:,.0f}" for key in SHOWN[1:]]
    return harness.table(lines)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="all sizes, 5 rounds, longer windows")
    parser.add_argument("--rows", help="[unix-]mode[:size[:connections]],...")
    parser.add_argument("--loops", default=LOOPS, help="default: %(default)s")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="length of one measured window")
    parser.add_argument("--connections", type=int, default=50, help="where a row does not say")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the servers")
    args = parser.parse_args()
    args.rows = args.rows or (FULL_ROWS if args.full else SHORT_ROWS)
    args.rounds = args.rounds or (5 if args.full else 3)
    args.seconds = args.seconds or (2.0 if args.full else 1.0)
    return args


def main() -> None:
    args = parse_args()
    harness.build_load()
    rows = [Row.parse(text, args.connections) for text in args.rows.split(",")]
    contenders, versions = harness.available(args.loops.split(","), args.python)
    samples = collect(rows, list(contenders.values()), args.rounds, args.seconds)
    summaries = {row: summarise(runs) for row, runs in samples.items()}
    print("\n\n".join(printable(row, summary) for row, summary in summaries.items()))
    harness.print_absent(versions)
    settings = {"rounds": args.rounds, "seconds": args.seconds, "baseline": BASELINE}
    results = [
        {"row": vars(row), "summary": summaries[row], "samples": samples[row]} for row in rows
    ]
    harness.save("run", {"versions": versions, "settings": settings, "rows": results})


if __name__ == "__main__":
    try:
        main()
    except harness.BenchError as error:
        sys.exit(f"bench: {error}")
