"""What is expected of which test: the data of `expected.toml`, and the judgement over outcomes."""

from __future__ import annotations

import re
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.stdlib._environment import PROBES

DATA = Path(__file__).with_name("expected.toml")
_KEYS = {"reason", "tests", "python", "implementation", "backends", "probe", "may_be_absent"}


@dataclass(frozen=True)
class Entry:
    """Some tests that may not be expected to pass, and why."""

    tests: list[str]
    reason: str
    python: str = ""
    implementation: str = ""
    backends: list[str] = field(default_factory=list)
    probe: str = ""
    # The tests came or went within the releases of one Python version.
    may_be_absent: bool = False

    def applies(self, backend: str) -> bool:
        return (
            version_matches(self.python)
            and self.implementation in ("", sys.implementation.name)
            and (not self.backends or backend in self.backends)
            and (not self.probe or not PROBES[self.probe]())
        )


@dataclass(frozen=True)
class Expectations:
    """All of `expected.toml` that holds for this interpreter and backend."""

    run: list[str]
    without_loop: list[str]
    modules_left_out: dict[str, str]
    left_out: list[Entry]
    failing: list[Entry]

    def failing_in(self, module: str) -> dict[str, Entry]:
        return {
            test: entry
            for entry in self.failing
            for test in entry.tests
            if test.partition(".")[0] == module
        }

    def left_out_in(self, module: str) -> dict[str, Entry]:
        return {
            test: entry
            for entry in self.left_out
            for test in entry.tests
            if test.partition(".")[0] == module
        }


def version_matches(spec: str, version: tuple[int, ...] = sys.version_info[:3]) -> bool:
    """Whether the version meets all conditions of a spec such as ">=3.12, <3.13.1"."""
    return all(_meets(condition, version) for condition in spec.split(",") if spec)


def _meets(condition: str, version: tuple[int, ...]) -> bool:
    parts = re.fullmatch(r"\s*(>=|<)\s*(\d+(?:\.\d+)*)\s*", condition)
    if parts is None:
        raise ValueError(f"not a condition on a version: {condition!r}")
    bound = tuple(int(number) for number in parts[2].split("."))
    return version >= bound if parts[1] == ">=" else version < bound


def load(backend: str, loop: str) -> Expectations:
    """Read the data; for another loop than tloop only what holds for any."""
    data = tomllib.loads(DATA.read_text(encoding="utf-8"))
    groups = ["environment"] + ["expected_failure"] * (loop == "tloop")
    failing = [entry for group in groups for entry in _entries(data.get(group, []))]
    modules = data["modules"]
    return Expectations(
        run=modules["run"],
        without_loop=modules["without_loop"],
        modules_left_out=modules["left_out"],
        left_out=[entry for entry in _entries(data.get("left_out", [])) if entry.applies(backend)],
        failing=[entry for entry in failing if entry.applies(backend)],
    )


def _entries(rows: list[dict[str, Any]]) -> list[Entry]:
    for row in rows:
        if unknown := set(row) - _KEYS:
            raise ValueError(f"{DATA.name}: unknown key {sorted(unknown)} in {row}")
        if not row.get("reason") or not row.get("tests"):
            raise ValueError(f"{DATA.name}: an entry needs tests and a reason: {row}")
    return [Entry(**row) for row in rows]
