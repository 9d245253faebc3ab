"""`python -m tests.soak`: run the soak, print what it did, and fail if anything was wrong."""

from __future__ import annotations

import argparse
import faulthandler
import random
import sys
import time

from tests.loopkit import FACTORIES
from tests.soak.accounting import one_arena
from tests.soak.catalogue import ALL
from tests.soak.driver import Plan, soak
from tests.soak.faults import no_descriptors
from tests.soak.field import Field


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--windows", type=int, default=30, help="below 30 no memory is judged")
    parser.add_argument("--seed", type=int, help="as printed by the run to repeat")
    parser.add_argument("--loop", choices=FACTORIES, default="tloop")
    parser.add_argument("--only", action="append", choices=ALL, help="these loads (repeatable)")
    return parser.parse_args()


def report(field: Field) -> None:
    for name in ALL:
        done, cancelled = field.rounds[name], field.cancelled[name]
        if done or cancelled:
            verified = field.verified[name] / 1e6
            print(f"  {name:<14} {done:>7} rounds, {cancelled:>6} cancelled, {verified:>9.1f} MB")


def main() -> int:
    options = arguments()
    seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
    print(f"soaking {options.loop} for {options.seconds:.0f} s, --seed {seed}", flush=True)
    faulthandler.dump_traceback_later(2 * options.seconds + 120, exit=True)
    one_arena()
    began = time.monotonic()
    loads = {name: load for name, load in ALL.items() if name in (options.only or ALL)}
    plan = Plan(options.seconds, options.windows)
    interlude = None if options.only else no_descriptors
    field, measured = soak(FACTORIES[options.loop], loads, seed, plan, interlude)
    report(field)
    print("  resident MiB:", *(f"{value / (1 << 20):.1f}" for value in measured.resident))
    print("  traced KiB:", *(f"{value / 1024:.0f}" for value in measured.traced))
    for problem in field.problems:
        print(f"\nPROBLEM {problem}")
    verdict = f"{len(field.problems)} problems" if field.problems else "nothing left, nothing grew"
    print(f"{verdict} after {time.monotonic() - began:.0f} s (--seed {seed})")
    return 1 if field.problems else 0


if __name__ == "__main__":
    sys.exit(main())
