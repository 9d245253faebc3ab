"""Run one module of `test.test_asyncio` on the loop under test, in this process.

Every start and every outcome is one line of JSON in the report, flushed at once, so that a hang or
a crash still tells which test it was and what went before.
"""

from __future__ import annotations

import argparse
import faulthandler
import fnmatch
import gc
import json
import os
import sys
import tempfile
import traceback
import unittest
import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.stdlib._substitute import Substitution

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

PACKAGE = "test.test_asyncio"


class Recorder(unittest.TestResult):
    """Writes outcomes to the report and counts the loops each test made."""

    def __init__(self, report: Path, substitution: Substitution, limit: float) -> None:
        super().__init__()
        self.failfast = False
        self._report = report.open("a", encoding="utf-8")
        self._substitution = substitution
        self._limit = limit
        self._current: unittest.TestCase | None = None
        self._outcome, self._detail = "ok", ""

    def write(self, **row: object) -> None:
        self._report.write(json.dumps(row) + "\n")
        self._report.flush()

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        if self._outcome == "fail":
            # What a failed test left unclosed must not warn in the middle of the next one.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                gc.collect()
        self._current = test
        self._outcome, self._detail = "ok", ""
        print(f"-- {name_of(test)}", flush=True)
        self.write(start=name_of(test))
        faulthandler.dump_traceback_later(self._limit, exit=True)

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        faulthandler.cancel_dump_traceback_later()
        self._end(name_of(test), self._outcome, self._detail)
        self._current = None

    def note(self, test: unittest.TestCase, outcome: str, detail: str) -> None:
        """Take the outcome of the running test, or of a class or module set-up around tests."""
        if self._current is None:
            self._end(name_of(test), outcome, detail)
        elif self._outcome != "fail":
            self._outcome, self._detail = outcome, detail
        elif outcome == "fail":
            self._detail += "\n" + detail

    def addError(self, test: Any, err: Any) -> None:
        self.note(test, "fail", formatted(err))

    addFailure = addError

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            self.note(test, "fail", f"{subtest}\n{formatted(err)}")

    def addSkip(self, test: Any, reason: str) -> None:
        self.note(test, "skip", reason)

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        """The suite itself marks it as failing: that is a pass."""

    def addUnexpectedSuccess(self, test: Any) -> None:
        self.note(test, "fail", "the suite marks this test as failing, but it passed")

    def unraisable(self, what: Any) -> None:
        """An exception in a finaliser or a C callback: the test that ran meanwhile takes it."""
        where = what.err_msg or f"exception ignored in {what.object!r}"
        error = (what.exc_type, what.exc_value, what.exc_traceback)
        if self._current is not None:
            self.note(self._current, "fail", f"{where}\n{formatted(error)}")

    def _end(self, name: str, outcome: str, detail: str) -> None:
        loops = dict(self._substitution.census)
        self._substitution.census.clear()
        self.write(end=name, outcome=outcome, detail=detail, loops=loops)


def name_of(test: Any) -> str:
    """Test id without the package: module.Class.method."""
    name: str = test.id()
    return name.replace(f"{PACKAGE}.", "")


def formatted(err: tuple[type[BaseException], BaseException, TracebackType | None]) -> str:
    return "".join(traceback.format_exception(*err))


def each_test(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from each_test(item)
        else:
            yield item


def selected(module: Any, args: argparse.Namespace) -> tuple[list[unittest.TestCase], list[str]]:
    """The tests to run now, and the names of all that the module has."""
    done = set(args.done.read_text(encoding="utf-8").split())
    tests = list(each_test(unittest.defaultTestLoader.loadTestsFromModule(module)))
    chosen = [
        test
        for test in tests
        if fnmatch.fnmatchcase(name_of(test), args.match)
        and name_of(test) not in done
        and not any(name_of(test) == out or name_of(test).startswith(f"{out}.") for out in args.out)
    ]
    return chosen, [name_of(test) for test in tests]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("--factory", required=True)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--done", type=Path, required=True, help="file of ids not to run again")
    parser.add_argument("--out", action="append", default=[], help="class or test to leave out")
    parser.add_argument("--match", default="*")
    parser.add_argument("--limit", type=float, required=True, help="seconds for one test")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    substitution = Substitution(args.factory)
    substitution.install()
    recorder = Recorder(args.report, substitution, args.limit)
    recorder.write(loop=str(substitution.loop_class), backend=substitution.backend)
    # Files that tests make in the current directory stay out of the checkout.
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run_module(args, substitution, recorder)
        os.chdir("/")


def run_module(args: argparse.Namespace, substitution: Substitution, recorder: Recorder) -> None:
    try:
        module = import_module(f"{PACKAGE}.{args.module}")
    except unittest.SkipTest as why:
        recorder.write(done=True, tests=[], skipped=str(why))
        return
    substitution.adapt(module)
    tests, names = selected(module, args)
    sys.unraisablehook = recorder.unraisable
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        unittest.TestSuite(tests).run(recorder)
    gc.collect()
    recorder.write(done=True, tests=names)


if __name__ == "__main__":
    main()
