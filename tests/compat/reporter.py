"""A pytest plugin: each test's own outcome, a line of JSON as soon as it is known.

Its fixtures may fail or hang afterwards: they are made for tloop and asyncio.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

FILE = "TLOOP_COMPAT_REPORT"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or (report.when == "setup" and not report.passed):
        crash = getattr(report.longrepr, "reprcrash", None)
        message = crash.message if crash else str(report.longrepr or "")
        with Path(os.environ[FILE]).open("a") as file:
            print(json.dumps([report.nodeid, report.outcome, message]), file=file)
