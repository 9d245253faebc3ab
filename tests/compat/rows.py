"""The rows of the table, as rows.toml has them."""

from __future__ import annotations

import ast
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DATA = tomllib.loads(Path(__file__).with_name("rows.toml").read_text())
METHODS = "Methods of `asyncio.AbstractEventLoop`"
# What no test that runs on a loop can prove, and what is not there at all: name, how or why.
ELSEWHERE: dict[str, str] = DATA["elsewhere"]
ABSENT: dict[str, str] = DATA["absent"]


@dataclass(frozen=True)
class Row:
    text: str
    tests: tuple[str, ...]  # as pytest names them: tests/test_x.py::test_y
    since: str = ""  # a Python version

    @property
    def label(self) -> str:
        return f"{self.text} ({self.since}+)" if self.since else self.text


@dataclass(frozen=True)
class Section:
    title: str
    rows: tuple[Row, ...]


def load() -> list[Section]:
    methods = [{"row": f"`{name}`", "tests": tests} for name, tests in DATA["methods"].items()]
    parts = [{"title": METHODS, "rows": methods}, *DATA["section"]]
    return [Section(part["title"], tuple(map(_row, part["rows"]))) for part in parts]


def _row(entry: dict[str, Any]) -> Row:
    return Row(entry["row"], tuple(map(_test, entry["tests"])), entry.get("since", ""))


def _test(short: str) -> str:
    """ "apps/aiohttp::x" is tests/apps/test_aiohttp.py::test_x."""
    path, _, name = short.partition("::")
    folder, _, module = path.rpartition("/")
    return str(Path("tests", folder, f"test_{module}.py")) + f"::test_{name}"


def all_rows() -> list[Row]:
    return [row for section in load() for row in section.rows]


def all_tests() -> list[str]:
    return list(dict.fromkeys(test for row in all_rows() for test in row.tests))


@cache
def functions_of(path: str) -> frozenset[str]:
    """The functions at the top level of a test file; none if there is no such file."""
    file = ROOT / path
    if not file.exists():
        return frozenset()
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(n.name for n in ast.parse(file.read_text()).body if isinstance(n, kinds))
