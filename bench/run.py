"""Compare event loops under load: ``python bench/run.py [--full]``, see bench/README.md."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

import harness
import rounds
import rows
from rounds import Measured
from rows import Row

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

LOOPS = (
    "tloop,tloop+mbedtls,uvloop,uvloop+primed,asyncio,asyncio+primed,tloop.h,tloop_tls.h,"
    "epoll,libuv,floor"
)
PEERS = ",".join(f"{name},{name}+primed" for name in rows.PEERS)
SHOWN = {
    "cpu_us_per_request": "CPU us",
    "rps": "per second",
    "p50_us": "p50 us",
    "p99_us": "p99 us",
    "p999_us": "p99.9 us",
    "rss_per_idle": "bytes/idle",
}
CPU = "cpu_us_per_request"


def possible(texts: list[str], connections: int | None, packages: set[str]) -> list[Row]:
    """The rows asked for, without those that need a package that is not there."""
    found = []
    for row in [Row.parse(text, connections) for text in texts]:
        absent = [package for package in row.kind.needs if package not in packages]
        if row.kind.tls and not harness.load_program()[1]:
            absent.append("OpenSSL's headers (libssl-dev)")
        if absent:
            print(f"not measured: {row}, without {' and '.join(absent)}")
        else:
            found.append(row)
    return found


def spared(name: str, row: Row) -> bool:
    """Is this a primed loop in a row that tells nothing new about it?"""
    telling = row.name in rows.PRIMED and row.connections == 50
    return name.endswith("+primed") and name != "uvloop+primed" and not telling


def printable(row: Row, summary: dict[str, dict[str, Any]], baseline: str) -> str:
    keys = [key for key in SHOWN if any(key in figures for figures in summary.values())]
    head = [str(row), f"{SHOWN[CPU]}/{row.kind.unit}", "min", "max", f"x {baseline}"]
    lines = [head + [SHOWN[key] for key in keys[1:]]]
    for name, figures in sorted(summary.items(), key=lambda item: item[1][CPU]["median"]):
        cpu = figures[CPU]
        ratio = f"{figures['ratio']['median']:.2f}" if "ratio" in figures else "-"
        lines.append([name, *(f"{cpu[key]:.2f}" for key in ("median", "min", "max")), ratio])
        lines[-1] += [f"{figures[key]['median']:,.0f}" for key in keys[1:]]
    return rounds.table(lines)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="all sizes and loops, 5 rounds")
    parser.add_argument("--rows", help="kind[:size[:connections]],...; bench/rows.py has them")
    parser.add_argument("--loops", help=f"default: {LOOPS}; --full: these and {PEERS}")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="measured time of a contender in a round")
    parser.add_argument("--warmup", type=float, default=0.15, help="and warm-up before it")
    parser.add_argument("--windows", type=int, default=5, help="parts of both, taken in turns")
    parser.add_argument("--connections", type=int, help="where a row does not say")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the servers")
    parser.add_argument("--name", help="build/bench/NAME.json gets the samples; default: run")
    args = parser.parse_args()
    args.rows = args.rows or (rows.FULL if args.full else rows.SHORT)
    args.loops = args.loops or (f"{LOOPS},{PEERS}" if args.full else LOOPS)
    args.rounds = args.rounds or (5 if args.full else 3)
    args.seconds = args.seconds or (0.4 if args.full else 1.0)
    return args


def main() -> None:
    args = parse_args()
    contenders, versions = harness.available(args.loops.split(","), args.python)
    packages = {name for version in versions.values() for name in version.get("packages", ())}
    asked = {str(row): row for row in possible(args.rows.split(","), args.connections, packages)}
    python, baseline = harness.interpreter_of(versions), rounds.baseline_of(versions)
    name = args.name or rounds.name_of(python, "run", args.full)
    plan = {
        text: [
            loop
            for loop, contender in contenders.items()
            if contender.serves(row) and not (args.full and spared(loop, row))
        ]
        for text, row in asked.items()
    }

    def keep(measured: dict[str, Measured]) -> None:
        results = [
            {"row": vars(asked[text]), "summary": figures.summary(CPU, baseline), **vars(figures)}
            for text, figures in measured.items()
        ]
        settings = {key: getattr(args, key) for key in ("rounds", "seconds", "windows")}
        rounds.save(name, {"versions": versions, "settings": settings, "rows": results})

    patience = harness.patience_with(python)

    def windows(text: str) -> int:
        """What compiles while it runs is warmed up once."""
        return args.windows if asked[text].kind.divisible and not patience else 1

    def start(text: str, loop: str) -> AbstractContextManager[Callable[[], rounds.Sample]]:
        parts = windows(text)
        seconds, warmup = args.seconds / parts, args.warmup / parts
        return harness.driven(contenders[loop], asked[text], seconds, warmup, patience)

    measured = rounds.collect(plan, args.rounds, start, keep, windows)
    for text, figures in measured.items():
        print(printable(asked[text], figures.summary(CPU, baseline), baseline), end="\n\n")
    rounds.print_absent(versions, [f for m in measured.values() for f in m.failures.values()])
    print(f"\nall samples: build/bench/{name}.json")


if __name__ == "__main__":
    try:
        main()
    except (rounds.BenchError, ValueError) as error:
        sys.exit(f"bench: {error}")
