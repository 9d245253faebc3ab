"""Rows, tests and docs/compatibility.md are in step."""

from __future__ import annotations

import asyncio

import pytest

from tests.compat import page
from tests.compat.outcomes import Outcome, judge, outcome_of, worst
from tests.compat.page import NOT_HERE, PAGE, rows_of, verdict
from tests.compat.rows import ELSEWHERE, METHODS, ROOT, Row, all_rows, functions_of, load


def by_label(row: Row) -> str:
    return row.label


@pytest.mark.parametrize("row", all_rows(), ids=by_label)
def test_each_row_names_tests_that_exist(row: Row) -> None:
    assert row.tests
    for test in row.tests:
        path, _, name = test.partition("::")
        assert name in functions_of(path), f"{path} has no {name}"


def test_each_method_of_the_abstract_loop_has_a_row() -> None:
    methods = {name for name in vars(asyncio.AbstractEventLoop) if not name.startswith("_")}
    (section,) = (section for section in load() if section.title == METHODS)
    assert methods <= {row.text.strip("`") for row in section.rows}


def test_the_makefile_has_the_targets_that_prove_the_rest() -> None:
    text = (ROOT / "Makefile").read_text()
    assert [name for name in ELSEWHERE.values() if f"\n{name}:" not in text] == []


def test_the_page_is_of_these_rows() -> None:
    text = PAGE.read_text()
    expected = [(row.label, page.proof(row)) for row in all_rows()]
    assert [(row[0], row[-1]) for row in rows_of(text)] == expected, "run: make compatibility"
    for part in (page.INTRODUCTION, page.elsewhere(), page.absent()):
        assert part in text, "run: make compatibility"


def test_tloop_passes_all() -> None:
    verdicts = {row[0]: row[1] for row in rows_of(PAGE.read_text())}
    assert {what: said for what, said in verdicts.items() if said not in ("pass", NOT_HERE)} == {}


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (["pass", "pass"], "pass"),
        (["pass", "skipped"], "pass"),
        (["skipped"], NOT_HERE),
        (["missing", "skipped"], "missing"),
        (["missing", "dies", "fails"], "dies"),
        (["pass", "hangs", "pass"], "2 of 3"),
    ],
)
def test_what_a_cell_says(kinds: list[str], said: str) -> None:
    assert verdict([Outcome(kind) for kind in kinds]) == said


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("NotImplementedError", "missing"),
        ("TypeError: f() got an unexpected keyword argument 'x'", "missing"),
        ("AttributeError: 'Server' object has no attribute 'close_clients'", "missing"),
        ("TimeoutError", "hangs"),
        ("Failed: Timeout (>20.0s) from pytest-timeout.", "hangs"),
        ("AssertionError: assert 1 == 2", "fails"),
    ],
)
def test_how_a_test_went_wrong(message: str, kind: str) -> None:
    assert judge(message).kind == kind


def test_a_reason_is_the_same_in_every_run() -> None:
    reason = judge("assert [12345, '/tmp/x/y.py'] <= 0.0631").reason
    assert reason == "assert […, '…y.py'] <= …"


@pytest.mark.parametrize(
    ("case", "result", "kind"),
    [
        ("test_x[uvloop]", "passed", "pass"),
        ("test_x[ssl-uvloop]", "skipped", "skipped"),
        ("test_x[uvloop]", "failed", "fails"),
        ("test_x[tloop]", "passed", "missing"),
        ("test_x", "passed", "missing"),
    ],
)
def test_how_a_report_is_read(case: str, result: str, kind: str) -> None:
    assert outcome_of("uvloop", f"tests/test_x.py::{case}", result, "assert 0").kind == kind


def test_one_parameter_that_went_wrong_decides() -> None:
    assert worst([Outcome("pass"), Outcome("fails"), Outcome("skipped")]).kind == "fails"
    assert worst([Outcome("skipped"), Outcome("pass")]).kind == "pass"
