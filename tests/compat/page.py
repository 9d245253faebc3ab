"""The page: Markdown from rows and outcomes, and the rows back from Markdown."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from itertools import groupby

import tloop_py
from tests.compat.outcomes import LOOPS, PASSED, SKIPPED, WRONG, Outcome
from tests.compat.rows import ABSENT, ELSEWHERE, ROOT, Row, Section, all_rows, all_tests, load

PAGE = ROOT / "docs" / "compatibility.md"
NOT_HERE = "n/a"
_LONGEST_REASON = 110
Outcomes = Mapping[str, Mapping[str, Outcome]]  # loop, test

INTRODUCTION = """\
# Compatibility

What asyncio offers and what programs ask of it, with the tests that prove it, run in the same way
on three loops. Written by `make compatibility` from `tests/compat/rows.toml`; not to be edited.

- *pass*: all tests of the row pass; *2 of 3*: so many of them. Else how they end: *fails*,
  *missing* (the loop says that it has no such thing), *hangs*, *dies* (the process is killed). What
  was seen is at the end. *n/a*: this version of Python has no such thing; see `make test-next`.
- A test that does not pass together with others runs again in a process of its own, for a minute.
- The tests ask for what asyncio does, to the letter: the order of callbacks, the type of an error,
  a line of the log. A loop that answers otherwise fails, though a program may live with it.
- What a test itself sees counts, and not what its fixtures, which are made for tloop and asyncio,
  find afterwards: descriptors, tasks, threads or lines of the log left behind.
- What asyncio does not have is tested, too; the other loops then say *missing* or *fails*.

"""


def render(outcomes: Outcomes) -> str:
    parts = [INTRODUCTION, _versions(), "\n", _totals(outcomes)]
    parts += [_section(section, outcomes) for section in load()]
    parts += [elsewhere(), absent(), "\n## What was seen\n"]
    parts += [_reasons(loop, outcomes[loop]) for loop in LOOPS]
    return "".join(parts)


def _versions() -> str:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    kernel = ".".join(platform.release().split(".")[:2])
    loops = f"tloop {tloop_py.__version__}, its asyncio, uvloop {version('uvloop')}"
    return f"{python} on Linux {kernel}: {loops}.\n"


def _totals(outcomes: Outcomes) -> str:
    """How much each loop passes, of all that this Python has."""
    rows, tests = [], []
    for loop in LOOPS:
        verdicts = [verdict([outcomes[loop][test] for test in row.tests]) for row in all_rows()]
        kinds = [outcome.kind for outcome in outcomes[loop].values() if outcome.kind != SKIPPED]
        rows.append(f"{verdicts.count(PASSED)} of {len(verdicts) - verdicts.count(NOT_HERE)}")
        tests.append(f"{kinds.count(PASSED)} of {len(kinds)}")
    return _table(["passed", *LOOPS], [["rows", *rows], ["tests", *tests]])


def _section(section: Section, outcomes: Outcomes) -> str:
    rows = []
    for row in section.rows:
        cells = [verdict([outcomes[loop][test] for test in row.tests]) for loop in LOOPS]
        shown = [cell if cell in (PASSED, NOT_HERE) else f"**{cell}**" for cell in cells]
        rows.append([row.label, *shown, proof(row)])
    return f"\n## {section.title}\n\n" + _table(["", *LOOPS, "tests"], rows)


def elsewhere() -> str:
    rows = [[what, f"`make {target}`"] for what, target in ELSEWHERE.items()]
    return "\n## Proved by other tests\n\n" + _table(["", "by"], rows)


def absent() -> str:
    return "\n## Not there\n\n" + _table(["", "why"], [list(row) for row in ABSENT.items()])


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _file_and_words(test: str) -> tuple[str, str]:
    """ "tests/apps/test_anyio.py::test_cancel_scopes": a link to the file, "cancel scopes"."""
    path, _, name = test.partition("::")
    short = path.removeprefix("tests/").removesuffix(".py").replace("test_", "")
    return f"[{short}](../{path})", name.removeprefix("test_").replace("_", " ")


def proof(row: Row) -> str:
    """The tests of a row, those of a file behind its name."""
    pairs = [_file_and_words(test) for test in row.tests]
    files = groupby(pairs, key=lambda pair: pair[0])
    return "<br>".join(f"{file}: {', '.join(words for _, words in of)}" for file, of in files)


def verdict(outcomes: list[Outcome]) -> str:
    """What a cell says of the tests of a row on one loop."""
    counts = Counter(outcome.kind for outcome in outcomes if outcome.kind != SKIPPED)
    if not counts:
        return NOT_HERE
    if 0 < counts[PASSED] < counts.total():
        return f"{counts[PASSED]} of {counts.total()}"
    return next(kind for kind in (*WRONG, PASSED) if counts[kind])


def _reasons(loop: str, outcomes: Mapping[str, Outcome]) -> str:
    wrong = [test for test in all_tests() if outcomes[test].kind in WRONG]
    if not wrong:
        return f"\n{loop}: all passed.\n"
    lines = [f"- {': '.join(_file_and_words(test))}: {_text(outcomes[test])}" for test in wrong]
    summary = f"<summary>{loop}: {len(wrong)} tests</summary>"
    return "\n".join([f"\n<details>{summary}\n", *lines, "\n</details>\n"])


def _text(outcome: Outcome) -> str:
    reason = outcome.reason
    if len(reason) > _LONGEST_REASON:
        reason = reason[:_LONGEST_REASON] + " …"
    return f"{outcome.kind}, `{reason.replace('`', '')}`"


def rows_of(text: str) -> list[list[str]]:
    """The cells of all rows of a page: label, a verdict for each loop, tests."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [line for line in lines if len(line) == 2 + len(LOOPS) and line[-1].startswith("[")]
