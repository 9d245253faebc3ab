"""The runner must fail where something is not as expected; these tests show that it does."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.stdlib._expect import DATA, Entry, Expectations, load, version_matches
from tests.stdlib._judge import judge, unclassified
from tests.stdlib._process import ModuleRun, _read

if TYPE_CHECKING:
    from pathlib import Path

TEST = "test_x.Case.test_a"


def expectations(**given: Any) -> Expectations:
    empty: dict[str, Any] = {
        "run": ["test_x"],
        "without_loop": [],
        "modules_left_out": {},
        "left_out": [],
        "failing": [],
    }
    return Expectations(**{**empty, **given})


def a_run(outcome: str, **loops: int) -> ModuleRun:
    end = {"outcome": outcome, "detail": "why", "loops": loops or {"tested": 1}}
    return ModuleRun("test_x", ends={TEST: end}, names=[TEST], complete=True)


def problems(
    run: ModuleRun, expect: Expectations | None = None, *, whole: bool = True
) -> list[str]:
    return judge(run, expect or expectations(), whole=whole, stock=False).problems


FAILING = expectations(failing=[Entry([TEST], "a reason")])


@pytest.mark.parametrize(
    ("run", "expect"),
    [
        (a_run("ok"), expectations()),
        (a_run("skip"), expectations()),
        (a_run("fail"), FAILING),
        (a_run("ok", simulated=1), expectations(without_loop=["test_x"])),
        (a_run("ok"), expectations(failing=[Entry(["test_y.Case.test"], "r")])),
        (a_run("ok"), expectations(failing=[Entry(["test_x.Old.t"], "r", may_be_absent=True)])),
        (a_run("ok"), expectations(left_out=[Entry(["test_x.Case"], "a class")])),
    ],
)
def test_what_is_expected_is_no_problem(run: ModuleRun, expect: Expectations) -> None:
    assert problems(run, expect) == []


@pytest.mark.parametrize(
    ("run", "expect", "problem"),
    [
        (a_run("fail"), expectations(), f"{TEST}: failed\nwhy"),
        (a_run("ok"), FAILING, "passed, but is expected to fail: a reason"),
        (a_run("ok", stock=1, tested=1), expectations(), "ran on asyncio's own loop"),
        (a_run("ok", simulated=1), expectations(), "made no loop of the kind under test"),
        (a_run("ok"), expectations(without_loop=["test_x"]), "but made 1"),
        (a_run("ok"), expectations(failing=[Entry(["test_x.C.t"], "r")]), "there is no such test"),
        (a_run("ok"), expectations(left_out=[Entry(["test_x.C"], "r")]), "there is no such test"),
        (ModuleRun("test_x"), expectations(), "not run to its end"),
    ],
)
def test_what_is_not_expected_is_a_problem(
    run: ModuleRun, expect: Expectations, problem: str
) -> None:
    assert [problem in found for found in problems(run, expect)] == [True]


def test_modules_that_nobody_has_looked_at() -> None:
    strange = expectations(failing=[Entry(["test_typo.Case.test"], "r")])
    assert len(unclassified(["test_x", "test_new"], strange)) == 2


def report(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "report"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_death_is_blamed_on_the_test_that_ran(tmp_path: Path) -> None:
    run = ModuleRun("test_x")
    end = {"end": "test_x.Case.test_b", "outcome": "ok", "detail": "", "loops": {}}
    rows: list[dict[str, Any]] = [{"start": "test_x.Case.test_b"}, end, {"start": TEST}]
    assert not _read(run, report(tmp_path, *rows), "killed by signal 11")
    assert run.ends[TEST]["outcome"] == "fail"
    assert "signal 11" in run.ends[TEST]["detail"]
    assert not run.complete


def test_a_death_outside_of_tests_ends_the_module(tmp_path: Path) -> None:
    run = ModuleRun("test_x")
    assert _read(run, report(tmp_path), "exit status 1")
    assert len(problems(run)) == 2


@pytest.mark.parametrize(
    ("spec", "matches"),
    [("", True), (">=3.12", True), (">=3.12.2", False), ("<3.12", False), (">=3.11,<3.13", True)],
)
def test_version_conditions(spec: str, *, matches: bool) -> None:
    assert version_matches(spec, (3, 12, 1)) is matches


def test_a_condition_that_nobody_understands() -> None:
    with pytest.raises(ValueError, match="not a condition"):
        version_matches("3.12")


def test_the_data_is_sound() -> None:
    expect = load("epoll", "tloop")
    assert len(set(expect.run)) == len(expect.run)
    assert not set(expect.run) & set(expect.modules_left_out)
    listed = [test for entry in expect.failing + expect.left_out for test in entry.tests]
    assert {test.count(".") for test in listed} <= {1, 2}, DATA
    assert unclassified([], expect) == []


def test_entries_are_limited_by_what_they_name() -> None:
    assert Entry([TEST], "r").applies("epoll")
    assert not Entry([TEST], "r", backends=["poll"]).applies("epoll")
    assert Entry([TEST], "r", implementation=sys.implementation.name).applies("epoll")
    assert not Entry([TEST], "r", python="<3").applies("epoll")
