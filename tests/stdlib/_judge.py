"""Hold what happened against what is expected."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.stdlib._expect import DATA

if TYPE_CHECKING:
    from tests.stdlib._expect import Entry, Expectations
    from tests.stdlib._process import ModuleRun


@dataclass
class Verdict:
    """The judgement over one module."""

    ok: int = 0
    skipped: int = 0
    expected: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, other: Verdict) -> None:
        self.ok += other.ok
        self.skipped += other.skipped
        self.expected += other.expected
        self.problems += other.problems


def judge(run: ModuleRun, expect: Expectations, *, whole: bool, stock: bool) -> Verdict:
    """Hold the outcomes against what is expected."""
    verdict = Verdict()
    failing = expect.failing_in(run.name)
    for name, end in run.ends.items():
        _judge_test(verdict, name, end, failing.get(name))
        if end["loops"].get("stock") and not stock:
            verdict.problems.append(f"{name}: ran on asyncio's own loop")
    if not run.complete:
        verdict.problems.append(f"{run.name}: not run to its end")
    elif run.skipped:
        verdict.skipped += 1
    elif whole:
        verdict.problems += _stale(run, expect)
        if not stock:
            verdict.problems += _loopless(run, expect)
    return verdict


def _judge_test(verdict: Verdict, name: str, end: dict[str, Any], entry: Entry | None) -> None:
    outcome = end["outcome"]
    if outcome == "fail" and entry is None:
        verdict.problems.append(f"{name}: failed\n{end['detail']}")
    elif outcome == "ok" and entry is not None:
        verdict.problems.append(f"{name}: passed, but is expected to fail: {entry.reason}")
    elif outcome == "fail":
        verdict.expected += 1
    elif outcome == "skip":
        verdict.skipped += 1
    else:
        verdict.ok += 1


def _stale(run: ModuleRun, expect: Expectations) -> list[str]:
    """Entries that name a test which the module does not have."""
    listed = {**expect.failing_in(run.name), **expect.left_out_in(run.name)}
    known = {*run.names, *(name.rpartition(".")[0] for name in run.names)}
    return [
        f"{name}: listed in {DATA.name}, but there is no such test"
        for name, entry in listed.items()
        if name not in known and not entry.may_be_absent
    ]


def _loopless(run: ModuleRun, expect: Expectations) -> list[str]:
    """A module that never used the loop under test proves nothing about it."""
    tested = sum(end["loops"].get("tested", 0) for end in run.ends.values())
    if not tested and run.name not in expect.without_loop:
        return [f"{run.name}: made no loop of the kind under test"]
    if tested and run.name in expect.without_loop:
        return [f"{run.name}: listed as making no loop, but made {tested}"]
    return []


def unclassified(modules: list[str], expect: Expectations) -> list[str]:
    """Modules that a new Python version brought, and entries for modules that are never run."""
    known = {*expect.run, *expect.modules_left_out}
    listed = [test for entry in expect.failing + expect.left_out for test in entry.tests]
    return [
        f"{name}: neither to be run nor left out in {DATA.name}"
        for name in modules
        if name not in known
    ] + [
        f"{test}: listed in {DATA.name}, but its module is never run"
        for test in listed
        if test.partition(".")[0] not in expect.run
    ]
