"""Every row of the benchmarks runs, and the load generator compares the bytes. Nothing is timed.
What is measured becomes a page, whoever was there to be compared with."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import harness
import pytest
import report
import rounds
import rows
import work

import tloop_py

# Without the services, and without what is measured outside of a loop.
ALONE = [name for name, row in work.ROWS.items() if not row.service and name != "import"]


def small(kind: rows.Kind) -> rows.Kind:
    """The same row with less to move, and few idle connections."""
    load = tuple("20" if word.isdigit() else word for word in kind.load)
    return replace(kind, load=load, size=1_000_000 if kind.file else kind.size)


@pytest.mark.parametrize("name", rows.KINDS)
def test_row(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = small(rows.KINDS[name])
    monkeypatch.setitem(rows.KINDS, name, kind)
    if absent := [package for package in kind.needs if not importlib.util.find_spec(package)]:
        pytest.skip(f"without {absent}, of the benchmarks' own packages")
    if kind.tls and not harness.load_program()[1]:
        pytest.skip("OpenSSL's headers are not installed: apt-get install libssl-dev")
    row = rows.Row.parse(name)
    contender = harness.Contender("tloop+mbedtls" if kind.tls else "tloop")
    report = harness.measure(contender, row, seconds=0.02, warmup=0.02)
    assert report["requests"] > 0
    assert kind.unit == "datagram" or report["verified_bytes"] > 0


@pytest.mark.parametrize("name", ALONE)
def test_work(name: str) -> None:
    row = work.ROWS[name]
    few = replace(row, count=max(row.count // 400, 20))
    with asyncio.Runner(loop_factory=tloop_py.new_event_loop) as runner:
        figures = runner.run(work.timed(few))
    assert figures["cpu_ns"] > 0
    assert set(row.figures) <= set(figures)


def fake_run(cost: dict[str, float]) -> dict[str, object]:
    """Two rounds of every row of a full run, in which each contender always costs the same."""

    def sample(text: str, name: str) -> rounds.Sample:
        figures = {"p50_us": 10.0, "p99_us": 20.0, "p999_us": 30.0, "rps": 1e5}
        if name == "broken":
            raise rounds.BenchError(f"{text}: broken")
        return {"cpu_us_per_request": cost[name], "rss_per_idle": 900, **figures}

    asked = {str(row): row for row in map(rows.Row.parse, rows.FULL.split(","))}
    measured = rounds.collect({text: [*cost] for text in asked}, 2, sample, lambda _: None)
    return {
        "machine": rounds.machine(),
        "versions": {name: {"version": "1", "python": "CPython 3"} for name in cost},
        "rows": [
            {"row": vars(asked[text]), "summary": m.summary("cpu_us_per_request"), **vars(m)}
            for text, m in measured.items()
        ],
    }


@pytest.mark.parametrize("baseline", [["uvloop"], []])
def test_report(baseline: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = {"tloop": 5.0, "asyncio": 20.0, "broken": 0.0, **dict.fromkeys(baseline, 4.0)}
    measured = tmp_path / "run.json"
    measured.write_text(json.dumps(fake_run(cost)))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    monkeypatch.setattr(report, "DOCS", tmp_path)
    report.write([measured], readme)

    page = (tmp_path / "benchmarks.md").read_text()
    assert "5.00 (1.25)" in page if baseline else "**5.00**" in page
    assert ("Where another loop leads" in page) == bool(baseline)
    assert "protocol 1024 B x 1: broken" in page
    plots = list((tmp_path / "benchmarks").glob("*.svg"))
    assert {f"(benchmarks/{plot.name})" in page for plot in plots} == {True}
    for plot in plots:
        ET.parse(plot)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
