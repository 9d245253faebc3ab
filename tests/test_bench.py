"""Every row of the benchmarks runs, and the load generator compares the bytes. Nothing is timed."""

from __future__ import annotations

import asyncio
import importlib.util
from dataclasses import replace

import harness
import pytest
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
