"""Every row of the benchmarks runs, and the load generator compares the bytes. Nothing is timed.
What is measured becomes a page, whoever was there to be compared with."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import socket
import sys
import threading
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

import harness
import micro
import pyperf
import pytest
import report
import rounds
import rows
import run
import serve
import work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Without the services, and without what is measured outside of a loop.
ALONE = [name for name, row in work.ROWS.items() if not row.service and name != "import"]


def small(kind: rows.Kind) -> rows.Kind:
    """The same row with less to move, and few idle connections."""
    load = tuple("20" if word.isdigit() else word for word in kind.load)
    return replace(kind, load=load, size=1_000_000 if kind.file else kind.size)


SERVED = [
    (name, loop)
    for loop in ("tloop", serve.FLOOR)
    for name, kind in rows.KINDS.items()
    if loop == "tloop" or not (kind.tls or kind.file)
]


@pytest.mark.parametrize(("name", "loop"), SERVED)
def test_row(name: str, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit, too, answers like a loop in the rows that it has."""
    kind = small(rows.KINDS[name])
    monkeypatch.setitem(rows.KINDS, name, kind)
    if absent := [package for package in kind.needs if not importlib.util.find_spec(package)]:
        pytest.skip(f"without {absent}, of the benchmarks' own packages")
    if kind.tls and not harness.load_program()[1]:
        pytest.skip("OpenSSL's headers are not installed: apt-get install libssl-dev")
    monkeypatch.setattr(harness, "wrk_version", lambda: None)
    row = rows.Row.parse(name)
    contender = harness.Contender(loop + "+mbedtls" * kind.tls)
    assert contender.serves(row)
    with harness.driven(contender, row, seconds=0.02, warmup=0.02) as window:
        for report in [window() for _ in range(1 + kind.divisible)]:
            assert report["requests"] > 0
            assert row.kind.unit == "datagram" or report["verified_bytes"] > 0


def test_contenders_take_turns_within_a_round() -> None:
    """Each sample is the median of windows. Who fails is out of the row, with all that it had."""
    asked: list[str] = []
    costs = {"a": [3.0, 1.0, 2.0, 9.0, 8.0, 7.0], "b": [5.0] * 6, "breaks": [4.0]}
    running: set[str] = set()

    @contextlib.contextmanager
    def start(row: str, name: str) -> Iterator[Callable[[], rounds.Sample]]:
        if name == "absent":
            raise rounds.BenchError("absent")
        running.add(name)
        yield lambda: window(name)
        running.remove(name)

    def window(name: str) -> rounds.Sample:
        assert name in running
        asked.append(name)
        if not costs[name]:
            raise rounds.BenchError("broken")
        return {"cost": costs[name].pop(0), "text": name}

    plan = {"row": ["absent", "a", "b", "breaks"]}
    measured = rounds.collect(plan, 2, start, lambda _: None, lambda row: 3)["row"]
    assert " ".join(asked) == "a b breaks breaks b a a b a b b a a b"
    assert measured.samples["a"] == [{"cost": 2.0, "text": "a"}, {"cost": 8.0, "text": "a"}]
    assert measured.samples.keys() == {"a", "b"}
    assert measured.failures == {"absent": "absent", "breaks": "broken"}
    assert not running


def test_windows_keep_their_connections() -> None:
    """A second connection is accepted by nobody, and would wait for its reply in vain."""
    peers = []

    def echo(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        with peer:
            peers.append(peer)
            while data := peer.recv(64):
                peer.sendall(data)

    program, _ = harness.load_program()
    argv = [str(program), "-c", "1", "-s", "64", "-w", "0.01", "-t", "0.01"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=echo, args=[listener], daemon=True)
        thread.start()
        target = f"127.0.0.1:{listener.getsockname()[1]}"
        with harness.loading([*argv, target], "here", timeout=10) as window:
            assert all(window()["requests"] > 0 for _ in range(3))
            peers[0].shutdown(socket.SHUT_RDWR)
            thread.join()
            with pytest.raises(rounds.BenchError, match="here: load: server closed"):
                window()


def test_the_floor_sends_what_a_pipe_does_not_take_at_once() -> None:
    async def main(reader: IO[bytes], pipe: IO[bytes]) -> None:
        loop = asyncio.get_running_loop()
        writer, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, pipe)
        for message in (b"x" * 1_000_000, b"more"):
            writer.write(message)
            assert await asyncio.to_thread(reader.read, len(message)) == message
        writer.close()

    out, into = os.pipe()
    with (
        open(out, "rb") as reader,
        open(into, "wb", 0) as pipe,
        asyncio.Runner(loop_factory=serve.loop_module(serve.FLOOR).new_event_loop) as runner,
    ):
        runner.run(main(reader, pipe))


def test_spared() -> None:
    """A full run measures everything but what priming tells nothing about."""
    spared = {
        (n, t)
        for n in run.LOOPS.split(",")
        for t in rows.FULL.split(",")
        if run.spared(n, rows.Row.parse(t))
    }
    assert {name for name, _ in spared} == {"asyncio+primed"}
    assert not {text for _, text in spared if text.startswith("protocol") and text.endswith(":50")}


@pytest.mark.parametrize(
    ("name", "loop"),
    [(n, loop) for n in ALONE for loop in ("tloop", serve.FLOOR) if work.ROWS[n].takes(loop)],
)
def test_work(name: str, loop: str) -> None:
    row = work.ROWS[name]
    few = replace(row, count=max(row.count // 400, 20))
    with asyncio.Runner(loop_factory=serve.loop_module(loop).new_event_loop) as runner:
        figures = runner.run(work.timed(few))
    assert figures["cpu_ns"] > 0
    assert set(row.figures) <= set(figures)


@pytest.mark.parametrize("name", ["http", "uvicorn"])
@pytest.mark.skipif(not harness.wrk_version(), reason="wrk is not installed")
def test_wrk(name: str) -> None:
    if absent := [p for p in rows.KINDS[name].needs if not importlib.util.find_spec(p)]:
        pytest.skip(f"without {absent}, of the benchmarks' own packages")
    report = harness.measure(harness.Contender("tloop"), rows.Row.parse(name), 1, warmup=0.02)
    assert report["generator"].startswith("wrk ")
    assert report["requests"] > 0
    assert report["verified_bytes"] > 0
    assert report["p50_us"] <= report["p99_us"] <= report["p999_us"]
    assert report["cpu_us_per_request"] > 0


@pytest.mark.skipif(not harness.wrk_version(), reason="wrk is not installed")
def test_wrk_errors_fail_the_sample() -> None:
    """A server that answers 404: what wrk measured then is worth nothing."""
    row = rows.Row.parse("http")
    server = harness.running(harness.Contender("tloop"), row)
    with server as (pid, target), pytest.raises(rounds.BenchError, match="status"):
        harness.measure_by_wrk(row, pid, f"{target}/absent", 1, "here")


def test_warm_up_ends() -> None:
    """That of a server which compiles nothing has nothing to wait for."""
    report = harness.measure(
        harness.Contender("tloop"), rows.Row.parse("protocol"), 0.02, warmup=0.02, patience=5
    )
    assert report["requests"] > 0


def test_pyperf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process is a run, in a file that pyperf reads."""
    monkeypatch.setattr(rounds, "BUILD", tmp_path)
    samples = {"tloop": [{"values": [1e-6, 2e-6, 3e-6], "loops": 10}] * 2}
    micro.keep_suites("micro", "CPython 3", {"call_soon chain": rounds.Measured(samples)})
    (found,) = pyperf.BenchmarkSuite.load(str(tmp_path / "micro-tloop.pyperf.json"))
    assert found.get_name() == "call_soon chain"
    assert found.get_nrun() == 2
    assert found.mean() == pytest.approx(2e-6)


@pytest.mark.parametrize("name", ["import", "call_soon chain"])
def test_micro(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = micro.sample(sys.executable, name, "tloop", None)
    assert figures["cpu_ns"] > 0
    assert len(figures["values"]) == (1 if name == "import" else work.ROWS[name].repeat)


def fake_run(cost: dict[str, float], python: str) -> dict[str, object]:
    """Two rounds of every row of a full run, in which each contender always costs the same."""

    def start(
        text: str, name: str
    ) -> contextlib.AbstractContextManager[Callable[[], rounds.Sample]]:
        return contextlib.nullcontext(lambda: sample(text, name))

    def sample(text: str, name: str) -> rounds.Sample:
        figures = {"p50_us": 10.0, "p99_us": 20.0, "p999_us": 30.0, "rps": 1e5}
        if name == "broken":
            raise rounds.BenchError(f"{text}: broken")
        return {"cpu_us_per_request": cost[name], "rss_per_idle": 900, **figures}

    asked = {str(row): row for row in map(rows.Row.parse, rows.FULL.split(","))}
    measured = rounds.collect({text: [*cost] for text in asked}, 2, start, lambda _: None)
    return {
        "machine": rounds.machine(),
        "versions": {name: {"version": "1", "python": python} for name in cost},
        "rows": [{"row": vars(asked[text]), **vars(m)} for text, m in measured.items()],
    }


CPYTHON = {"tloop": 5.0, "uvloop": 4.0, "asyncio": 20.0, "floor": 3.0, "broken": 0.0}
PYPY = {"tloop": 5.0, "asyncio": 20.0}


def write_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What report.py makes of full runs on two interpreters."""
    monkeypatch.setattr(report, "DOCS", folder)
    measured = [folder / "cpython-run.json", folder / "pypy-run.json"]
    measured[0].write_text(json.dumps(fake_run(CPYTHON, "CPython 3.13.5")))
    measured[1].write_text(json.dumps(fake_run(PYPY, "PyPy 3.11.1")))
    (folder / "README.md").write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write(measured, folder / "README.md")
    return (folder / "benchmarks.md").read_text()


def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = write_page(tmp_path, monkeypatch)
    short, cpython, pypy = page.split("\n## ")[1:]
    assert "| 1.25 / 1.25 / 1.25 | uvloop 1.00 / 1.00 / 1.00 |" in short
    assert "| 0.25 / 0.25 / 0.25 | asyncio 1.00 / 1.00 / 1.00 |" in short
    assert "5.00 (1.25)" in cpython
    assert "Where another loop leads" in cpython
    assert "| protocol, 1 KiB x 50 | 5.00 | uvloop | 4.00 | 0.75 | 1.25 |" in cpython
    assert "- broken: protocol, 1 KiB x 1; protocol, 1 KiB x 50;" in cpython
    assert "**5.00 (0.25)**" in pypy
    assert "Where another loop leads" not in pypy


def test_report_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = write_page(tmp_path, monkeypatch)
    plots = list((tmp_path / "benchmarks").glob("*.svg"))
    assert {plot.name.split("-echo")[0] for plot in plots} >= {"cpython-3.13", "pypy-3.11"}
    assert {f"(benchmarks/{plot.name})" in page for plot in plots} == {True}
    for plot in plots:
        ET.parse(plot)


def test_report_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_page(tmp_path, monkeypatch)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| protocol echo, 1 / 100 KiB | 1.25 / 1.25 |" in text
