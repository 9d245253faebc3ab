"""Run CPython's own asyncio tests on tloop: `python -m tests.stdlib.run`.

Each module of the running interpreter's `test.test_asyncio` gets a process of its own, in which
every way to a new event loop leads to tloop. `expected.toml` lists by name what cannot pass and
why; an unexpected pass is a failure like an unexpected failure, and so is a test that ran on
asyncio's own loop unnoticed. `--loop asyncio` runs the same tests on the stock loop, to tell a
fault of the machine from a fault of tloop.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __package__ in (None, ""):  # started by its path rather than with -m
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.stdlib._expect import Expectations, load
from tests.stdlib._judge import Verdict, judge, unclassified
from tests.stdlib._process import Job, ModuleRun, run_module
from tests.stdlib._substitute import Substitution

# The stock loop by its class: `asyncio.new_event_loop` is among what gets replaced.
FACTORIES = {"tloop": "tloop_py:new_event_loop", "asyncio": "asyncio:SelectorEventLoop"}
NO_SUITE = 77  # the exit status that means "skipped" to test drivers
HOW_TO_GET_IT = f"Debian packages it apart: libpython3.{sys.version_info.minor}-testsuite"
if sys.implementation.name == "pypy":
    HOW_TO_GET_IT = "Debian packages it apart: pypy3-lib-testsuite"


def available() -> list[str]:
    """The test modules that this interpreter ships; none where its test package is missing."""
    try:
        spec = importlib.util.find_spec("test.test_asyncio")
    except ModuleNotFoundError:
        spec = None
    folders = (spec.submodule_search_locations if spec else None) or []
    return sorted(path.stem for folder in folders for path in Path(folder).glob("test_*.py"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.stdlib.run", description="See the module's text.")
    parser.add_argument("--loop", choices=FACTORIES, default="tloop")
    parser.add_argument(
        "--baseline", action="store_const", dest="loop", const="asyncio", help="--loop asyncio"
    )
    parser.add_argument("--factory", help="module:attribute of any other loop factory")
    parser.add_argument("--module", action="append", help="only this module (repeatable)")
    parser.add_argument("--match", default="*", help="only tests whose id matches this pattern")
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--list", action="store_true", help="show what would be run, and stop")
    parser.add_argument("--logs", type=Path, help="keep the output of each module in this folder")
    return parser.parse_args()


def show_list(modules: list[str], expect: Expectations) -> None:
    for name in modules:
        if name in expect.modules_left_out:
            print(f"{name:<26} left out: {expect.modules_left_out[name]}")
            continue
        print(f"{name:<26} expected failures: {len(expect.failing_in(name))}")
        for test, entry in expect.left_out_in(name).items():
            print(f"    {test} left out: {entry.reason}")


def show_module(run: ModuleRun, verdict: Verdict) -> None:
    loops = sum(end["loops"].get("tested", 0) for end in run.ends.values())
    print(
        f"{run.name:<26} loops {loops:>4}, ran {len(run.ends):>4}, ok {verdict.ok:>4}, "
        f"skipped {verdict.skipped:>3}, expected failures {verdict.expected:>3}, "
        f"unexpected {len(verdict.problems):>3}, {run.seconds:5.1f} s",
        flush=True,
    )


def run_all(names: list[str], expect: Expectations, options: argparse.Namespace) -> Verdict:
    """Run the modules side by side; print a line for each."""
    job = Job(options.factory or FACTORIES[options.loop], options.match)
    whole, stock = options.match == "*", job.factory == FACTORIES["asyncio"]
    total = Verdict()
    with ThreadPoolExecutor(options.jobs) as pool:
        for run in pool.map(lambda name: run_module(name, job, expect.left_out_in(name)), names):
            if options.logs:
                options.logs.mkdir(parents=True, exist_ok=True)
                (options.logs / f"{run.name}.log").write_text(run.log)
            verdict = judge(run, expect, whole=whole, stock=stock)
            show_module(run, verdict)
            total.add(verdict)
    return total


def close(total: Verdict) -> int:
    """Print the problems and the closing line; the exit status."""
    for problem in total.problems:
        print(f"\nUNEXPECTED {problem}")
    print(f"\n{total.expected} failed as expected")
    print(f"{total.ok} passed, {len(total.problems)} failed, {total.skipped} skipped")
    return 1 if total.problems else 0


def main() -> int:
    options = arguments()
    present = available()
    if not present:
        print(f"{sys.executable} has no test.test_asyncio ({HOW_TO_GET_IT})")
        return NO_SUITE
    factory = options.factory or FACTORIES[options.loop]
    expect = load(Substitution(factory).backend, options.loop if not options.factory else "")
    problems = unclassified(present, expect)
    names = [name for name in expect.run if name in present]
    if options.module:
        problems += [f"{name}: no such module" for name in options.module if name not in names]
        names = [name for name in names if name in options.module]
    if options.list:
        show_list(present, expect)
        return close(Verdict(problems=problems))
    total = run_all(names, expect, options)
    total.problems += problems
    return close(total)


if __name__ == "__main__":
    sys.exit(main())
