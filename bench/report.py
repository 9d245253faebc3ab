"""Turn measurements into pages: ``python bench/report.py [build/bench/*.json ...]``.

Writes docs/benchmarks.md, its plots in docs/benchmarks/, and the table between the markers of the
README.
Without arguments it takes what full runs left: <interpreter>-run.json and <interpreter>-micro.json.
Later files add rows to those of the same interpreter, or replace them.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
import plots
import rounds
import rows
import serve
import work
from rounds import BUILD, ROOT, Measured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

DOCS = ROOT / "docs"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
LOST = 1.02  # closer than this to the leader is not behind it
# In every plot, beside the best of the peers.
SHOWN = ("tloop", "tloop+mbedtls", "uvloop", "uvloop+primed", "asyncio", "asyncio+primed", "epoll")


@dataclass(frozen=True)
class Line:
    """One row as measured: what it is called, and the summary of each contender."""

    label: str
    name: str
    unit: str
    cost: str  # the figure that ratios are taken of
    row: dict[str, Any]
    summary: dict[str, dict[str, dict[str, float]]]
    failures: dict[str, str]
    generator: str  # what asked, in rows with a server

    @classmethod
    def of(cls, result: dict[str, Any], baseline: str) -> Line:
        row, name = result["row"], result["row"]["name"]
        served = "size" in row
        cost = "cpu_us_per_request" if served else "cpu_ns"
        unit = f"µs per {rows.KINDS[name].unit}" if served else "ns"
        summary = Measured(result["samples"]).summary(cost, baseline)
        first = next(iter(result["samples"].values()), [{}])[0]
        generator = first.get("generator", "load.c")
        label = variation(row) if served else name
        return cls(label, name, unit, cost, row, summary, result["failures"], generator)

    def median(self, contender: str, figure: str) -> float | None:
        found = self.summary.get(contender, {}).get(figure)
        return found["median"] if found else None

    def cell(self, contender: str) -> str:
        cost, ratio = self.median(contender, self.cost), self.median(contender, "ratio")
        if cost is None:
            return "-"
        text = number(cost) + (f" ({ratio:.2f})" if ratio is not None else "")
        return f"**{text}**" if contender == self.leader else text

    @property
    def leader(self) -> str:
        """The cheapest contender in Python."""
        return self.least(name for name in self.summary if name not in harness.LIMITS)

    @property
    def limit(self) -> str:
        return self.least(name for name in self.summary if name in harness.PROGRAMS)

    def rival(self, figure: str | None = None) -> str:
        """The other loop with the least cost, or figure, as its users have it."""
        return self.least(
            (n for n in self.summary if n not in {"tloop", *harness.LIMITS} and "+" not in n),
            figure,
        )

    def least(self, names: Iterable[str], figure: str | None = None) -> str:
        medians = {name: self.median(name, figure or self.cost) for name in names}
        known = {name: value for name, value in medians.items() if value is not None}
        return min(known, key=known.__getitem__, default="")


@dataclass
class Report:
    """What was measured on one interpreter."""

    python: str
    machine: dict[str, Any]
    baseline: str
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    rounds: int = 0
    lines: dict[str, Line] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        return rounds.slug(self.python)

    def of(self, *names: str) -> list[Line]:
        return [line for name in names for line in self.lines.values() if line.name == name]


@dataclass(frozen=True)
class Group:
    """A section of the page: each table has the rows of some kinds as its columns."""

    title: str
    tables: tuple[tuple[str, ...], ...]
    sizes: tuple[str, ...] = ()  # kinds whose cost is plotted against the size
    latencies: tuple[str, ...] = ()  # kinds whose latencies are plotted


GROUPS = (
    Group(
        "Echo over TCP",
        (("protocol",), ("buffered",), ("streams",), ("raw",)),
        ("protocol", "streams", "raw"),
        ("protocol", "streams"),
    ),
    Group("Echo in TLS", (("tls",), ("tls-buffered",), ("tls-streams",)), ("tls",), ("tls",)),
    Group("TLS handshakes", (("tls-full", "tls-resumed"),)),
    Group("Unix sockets and pipes", (("unix-protocol",), ("unix-streams",), ("pipes",))),
    Group("Connections and datagrams", (("connect", "udp", "udp-flood"),)),
    Group("Beside idle connections", (("idle-5000", "idle-15000", "tls-idle"),)),
    Group(
        "HTTP and files",
        (("http", "uvicorn", "uvicorn-json", "aiohttp"), ("file", "tls-file")),
        latencies=("uvicorn",),
    ),
)


@dataclass(frozen=True)
class Short:
    """One line of a short table: the rows of its cells, and which tloop it is about."""

    label: str
    keys: tuple[str, ...]
    own: str = "tloop"
    figure: str = "ratio"


def echo(kind: str, label: str, *sizes: int, own: str = "tloop") -> Short:
    kib = " / ".join(str(size) for size in sizes)
    return Short(f"{label}, {kib} KiB", tuple(f"{kind}:{s * 1024}:50" for s in sizes), own)


def short_rows(*sizes: int) -> tuple[Short, ...]:
    """What is asked first, of these sizes of a message in KiB."""
    handshakes = ("tls-full:16:10", "tls-resumed:16:10")
    return (
        echo("protocol", "protocol echo", *sizes),
        echo("buffered", "buffered protocol", *sizes),
        echo("streams", "streams", *sizes),
        echo("raw", "`sock_recv`, `sock_sendall`", *sizes),
        echo("tls", "TLS (`ssl`)", *sizes),
        echo("tls", "the same, tloop by mbedTLS", *sizes, own="tloop+mbedtls"),
        Short("TLS handshake, full / resumed", handshakes),
        Short("the same, tloop by mbedTLS", handshakes, "tloop+mbedtls"),
        Short("connect, echo, close", ("connect:64:50",)),
        Short("UDP, 1 / 50 peers", ("udp:1024:1", "udp:1024:50")),
        Short("uvicorn, plain text / JSON", ("uvicorn:0:50", "uvicorn-json:0:50")),
        Short("aiohttp", ("aiohttp:0:50",)),
        Short("`sleep(0)`, 1 / 100 tasks", ("sleep(0), 1 task", "sleep(0), 100 tasks")),
        Short("`call_soon`, chain / bulk", ("call_soon chain", "call_soon bulk")),
        Short("`call_later` and cancel", ("call_later + cancel",)),
        Short("subprocess, spawn and wait", ("subprocess spawn + wait",)),
    )


SUMMARY = (
    *short_rows(1, 10, 100),
    Short("`call_soon_threadsafe`, bulk", ("call_soon_threadsafe bulk",)),
    Short("timer lateness, p50 µs", ("timer lateness",), figure="p50_us"),
    Short("import, ms", ("import",), figure="wall_ns"),
    Short("bytes per idle connection", ("idle-5000:1024:50",), figure="rss_per_idle"),
)
README = short_rows(1, 100)


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def size_of(row: dict[str, Any]) -> str:
    size = row["size"]
    return f"{size // 1024} KiB" if size >= 1024 and size % 1024 == 0 else f"{size:,} B"


def variation(row: dict[str, Any]) -> str:
    """A row's heading: its name, and the numbers that are not the name's own."""
    kind = rows.KINDS[row["name"]]
    several = row["connections"] != kind.connections or row["name"] in ("udp", "protocol")
    parts = [row["name"]]
    if row["size"] and not kind.file and kind.unit == "request":
        parts.append(size_of(row))
    return ", ".join(parts) + (f" x {row['connections']}" if several else "")


def key_of(row: dict[str, Any]) -> str:
    return ":".join(str(row[part]) for part in ("name", "size", "connections") if part in row)


def load(paths: Iterable[Path]) -> list[Report]:
    reports: dict[str, Report] = {}
    for path in paths:
        content = json.loads(path.read_text())
        versions = content["versions"]
        python = harness.interpreter_of(versions)
        fresh = Report(python, content["machine"], rounds.baseline_of(versions))
        report = reports.setdefault(python, fresh)
        report.versions |= versions
        for result in content["rows"]:
            report.lines[key_of(result["row"])] = Line.of(result, report.baseline)
            report.rounds = max([report.rounds, *map(len, result["samples"].values())])
    return list(reports.values())


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    marks = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, marks, *body))


def contenders_of(lines: Sequence[Line], report: Report) -> list[str]:
    """In the order in which they were asked for."""
    return [name for name in report.versions if any(name in line.summary for line in lines)]


def costs(lines: Sequence[Line], report: Report) -> str:
    """Contenders downwards, rows across: CPU cost and ratio."""
    body = [
        [f"`{name}`", *(line.cell(name) for line in lines)] for name in contenders_of(lines, report)
    ]
    return table(["CPU " + lines[0].unit, *(line.label for line in lines)], body)


def load_of(lines: Sequence[Line]) -> list[str]:
    """What was asked by another program than ours."""
    others = {line.generator for line in lines} - {"load.c"}
    labels = [line.label for line in lines if line.generator in others]
    return [f"Load of {', '.join(labels)}: {', '.join(sorted(others))}."] if others else []


def memory(lines: Sequence[Line], report: Report) -> str:
    body = []
    for name in contenders_of(lines, report):
        values = [line.median(name, "rss_per_idle") for line in lines]
        body.append([f"`{name}`", *("-" if v is None else f"{v:,.0f}" for v in values)])
    return table(["bytes per idle connection", *(line.label for line in lines)], body)


FIGURES = {
    "rps": "per second",
    "p50_us": "p50 µs",
    "p99_us": "p99 µs",
    "p999_us": "p99.9 µs",
    "rss_per_idle": "bytes/idle",
}


def details(line: Line, report: Report) -> str:
    """All figures of a row: contenders downwards."""
    shown = [key for key in FIGURES if any(key in figures for figures in line.summary.values())]
    head = [
        line.label,
        "CPU",
        "min",
        "max",
        f"x {report.baseline}",
        *(FIGURES[key] for key in shown),
    ]
    body = []
    for name in contenders_of([line], report):
        figures = line.summary[name]
        cost = [number(figures[line.cost][key]) for key in ("median", "min", "max")]
        ratio = "-"
        if "ratio" in figures:
            ratio = "{median:.2f} ({min:.2f}-{max:.2f})".format(**figures["ratio"])
        rest = [number(figures[key]["median"]) if key in figures else "-" for key in shown]
        body.append([f"`{name}`", *cost, ratio, *rest])
    return table(head, body)


class Page:
    """The Markdown of one interpreter's report, and the plots that it refers to."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.parts: list[str] = []

    def add(self, *parts: str) -> None:
        self.parts += parts

    def plot(self, name: str, alt: str, svg: str) -> None:
        path = DOCS / "benchmarks" / f"{self.report.slug}-{name}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(svg)
        self.add(f"![{alt}](benchmarks/{path.name})")

    def bars(self, group: Group, lines: Sequence[Line]) -> None:
        baseline = self.report.baseline
        ratios: dict[str, dict[str, float]] = {}
        for line in lines:
            names = dict.fromkeys([*SHOWN, line.rival()])
            values = {name: line.median(name, "ratio") for name in names if name != baseline}
            known = {name: value for name, value in values.items() if value is not None}
            if known:
                ratios[line.label] = known
        if ratios:
            title = f"{group.title}: server CPU relative to {baseline}"
            self.plot(slug(group.title), title, plots.bars(title, ratios, baseline))

    def sizes(self, kind: str) -> None:
        lines = [line for line in self.report.of(kind) if line.row["connections"] == 50]
        title = f"{kind}: server CPU per request against the size of a message"
        self.curves(f"{kind}-sizes", title, {size_of(line.row): line for line in lines})

    def connections(self) -> None:
        """Cost against the number of connections, busy and idle."""
        keys = {
            "1": "protocol:1024:1",
            "50": "protocol:1024:50",
            "1,000": "protocol:1024:1000",
            "50 + 5,000 idle": "idle-5000:1024:50",
            "50 + 15,000 idle": "idle-15000:1024:50",
        }
        known = self.report.lines
        title = "protocol, 1 KiB: server CPU per request against connections"
        found = {tick: known[key] for tick, key in keys.items() if key in known}
        self.curves("connections", title, found)

    def curves(self, name: str, title: str, lines: dict[str, Line]) -> None:
        """One curve for each of the usual contenders, and for who leads them somewhere."""
        curves: dict[str, dict[str, float]] = {}
        for contender in dict.fromkeys([*SHOWN, *(line.rival() for line in lines.values())]):
            costs = {tick: line.median(contender, line.cost) for tick, line in lines.items()}
            if known := {tick: cost for tick, cost in costs.items() if cost is not None}:
                curves[contender] = known
        if len(lines) > 1:
            self.plot(name, title, plots.lines(title, list(lines), curves, "µs"))

    def latencies(self, kind: str) -> None:
        busy = [line for line in self.report.of(kind) if line.row["connections"] == 50]
        for line in busy[:1]:
            points: dict[str, list[float]] = {}
            for name in contenders_of([line], self.report):
                values = [line.median(name, key) for key in ("p50_us", "p99_us", "p999_us")]
                points[name] = [value for value in values if value]
            title = f"{line.label}: latency, p50, p99 and p99.9"
            self.plot(f"{kind}-latency", title, plots.ranges(title, points, "µs"))

    def group(self, group: Group) -> None:
        lines = [line for names in group.tables for line in self.report.of(*names)]
        if not lines:
            return
        self.add(f"### {group.title}")
        self.bars(group, [line for line in lines if line.row["connections"] != 1 or len(lines) < 9])
        for names in group.tables:
            if columns := self.report.of(*names):
                self.add(costs(columns, self.report), *load_of(columns))
        if idle := [line for line in lines if "idle" in line.name]:
            self.add(memory(idle, self.report))
            self.connections()
        for kind in group.sizes:
            self.sizes(kind)
        for kind in group.latencies:
            self.latencies(kind)
        everything = [details(line, self.report) for line in lines]
        self.add("<details><summary>all figures</summary>", *everything, "</details>")

    def work(self) -> None:
        """What a loop does by itself: rows downwards."""
        lines = self.report.of(*work.ROWS)
        if not lines:
            return
        names = contenders_of(lines, self.report)
        body = [[line.label, *(line.cell(name) for name in names)] for line in lines]
        self.add("### Alone, and as a client", table(["CPU ns per operation", *names], body))
        body = []
        for line in lines:
            for figure in work.ROWS[line.name].figures:
                values = [line.median(name, figure) for name in names]
                cells = ["-" if value is None else number(value) for value in values]
                body.append([f"{line.label}: {figure}", *cells])
        if body:
            self.add(table(["besides the CPU", *names], body))

    def lost(self) -> None:
        """Rows in which another loop leads, in the open."""
        body = []
        for line in self.report.lines.values():
            own = {name: line.median(name, line.cost) for name in line.summary if "tloop" in name}
            costs = [cost for name, cost in own.items() if cost and name not in harness.LIMITS]
            lead, least = line.median(line.leader, line.cost), line.median(serve.FLOOR, line.cost)
            if costs and lead and min(costs) > LOST * lead:
                floor = f"{least / lead:.2f}" if least else "-"
                cells = (number(min(costs)), line.leader, number(lead), floor)
                body.append([line.label, *cells, f"{min(costs) / lead:.2f}"])
        if body:
            body.sort(key=lambda cells: -float(cells[-1]))
            self.add("### Where another loop leads")
            head = ["row", "tloop", "leader", "leader's CPU", "floor / leader", "tloop / leader"]
            self.add(WHY_LOST, table(head, body))

    def failures(self) -> None:
        """Who could not run, and who failed at which rows and why."""
        items = [
            f"- {name}: {version['error']}"
            for name, version in self.report.versions.items()
            if "error" in version and "+" not in name
        ]
        failed: dict[tuple[str, str], list[str]] = {}
        for line in self.report.lines.values():
            for name, reason in line.failures.items():
                failed.setdefault((name, rounds.short_reason(reason)), []).append(line.label)
        items += [f"- {name}: {'; '.join(at)}: {why}" for (name, why), at in failed.items()]
        if items:
            self.add("### Not measured", "\n".join(items))

    def text(self) -> str:
        machine, versions = self.report.machine, self.report.versions
        loops = [
            f"{n} {v['version']}" for n, v in versions.items() if "version" in v and "+" not in n
        ]
        self.add(f"## {self.report.python}")
        self.add(
            f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, commit "
            f"`{str(machine['commit'])[:10]}`{' and changes' * machine['dirty']}; median of "
            f"{self.report.rounds} interleaved rounds. {', '.join(loops)}."
        )
        self.lost()
        for group in GROUPS:
            self.group(group)
        self.work()
        self.failures()
        return "\n\n".join(self.parts)


def slug(title: str) -> str:
    return title.lower().replace(" ", "-")


INTRODUCTION = """# Benchmarks

Written by `bench/report.py` from what `bench/run.py` and `bench/micro.py` measured (`make
bench-matrix` measures all rows and loops; each section tells which it has);
[bench/README.md](../bench/README.md) tells how. Costs are CPU time of the
server's process, user and kernel together; in parentheses the ratio to uvloop (on PyPy, which has
none, to asyncio) of the same round (median of the rounds), below 1 is cheaper. Bold is the cheapest
loop of a column. `+primed` had glibc's allocator primed first, which tloop does by itself;
`+mbedtls` is a `TLSContext`; `tloop.h`, `tloop_tls.h`, `epoll` and `libuv` are servers in C.

`floor` (`bench/floor.py`) is the least that a loop in Python can cost: the same C core without
error handling, flow control, contexts of connections and all else that asyncio promises. It is a
limit as the servers in C are, and no loop to use."""

WHY_LOST = """Why: where `floor` is behind the leader, too, no loop whose callbacks are called from
Python can lead; [design.md](design.md#where-the-time-goes) has the reason for each row."""


def short_value(line: Line, name: str, figure: str) -> str:
    value = line.median(name, figure)
    if value is None:
        return "-"
    if figure == "ratio":
        return f"{value:.2f}"
    return number(value / 1e6 if figure == "wall_ns" else value)


def short_line(short: Short, lines: Sequence[Line], columns: Iterable[str]) -> list[str]:
    """tloop, the best of the others by name, then who else is shown, and the limit."""

    def cell(name_of: Callable[[Line], str]) -> str:
        return " / ".join(short_value(line, name_of(line), short.figure) for line in lines)

    best, last = [], ""
    for line in lines:
        name = line.rival(short.figure)
        value = short_value(line, name, short.figure)
        best.append(value if name == last else f"{name} {value}")
        last = name
    others = [cell(lambda _, name=name: name) for name in columns]
    return [
        short.label,
        cell(lambda _: short.own),
        " / ".join(best),
        *others,
        cell(lambda line: line.limit),
    ]


def short_table(report: Report, shown: Iterable[Short], *extra: str) -> str:
    names = (*extra, "uvloop+primed", "asyncio", "asyncio+primed")
    columns = [n for n in names if n != report.baseline and "version" in report.versions.get(n, {})]
    head = [f"CPU relative to {report.baseline}", "tloop", "best other loop", *columns, "in C"]
    body = []
    for short in shown:
        lines = [report.lines[key] for key in short.keys if key in report.lines]
        if len(lines) == len(short.keys):
            body.append(short_line(short, lines, columns))
    return table(head, body)


def summary(reports: Iterable[Report]) -> str:
    """The main rows of each interpreter, before all others."""
    parts = ["## In short, 50 connections"]
    for report in reports:
        if short := short_table(report, SUMMARY, serve.FLOOR):
            parts += [f"### {report.python}", short]
    return "\n\n".join(parts)


def replace_between(path: Path, text: str) -> None:
    """Put a text between the markers of a file; a file without them is left alone."""
    content = path.read_text()
    if BEGIN not in content or END not in content:
        print(f"{path.name} has no {BEGIN} … {END}")
        return
    before, rest = content.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    usual = [path for what in ("run", "micro") for path in sorted(BUILD.glob(f"*-{what}.json"))]
    parser.add_argument("files", nargs="*", type=Path, default=usual)
    files = parser.parse_args().files
    if not files:
        sys.exit("report: no build/bench/*-run.json: `make bench-full` makes them")
    write(files, ROOT / "README.md")


def write(files: Sequence[Path], readme: Path) -> None:
    """Replace the page, its plots and the README's table by what the files say."""
    reports = load(files)
    for old in (DOCS / "benchmarks").glob("*.svg"):
        old.unlink()
    pages = [Page(report).text() for report in reports]
    text = "\n\n".join([INTRODUCTION, summary(reports), *pages])
    (DOCS / "benchmarks.md").write_text(text + "\n")
    replace_between(readme, short_table(reports[0], README))


if __name__ == "__main__":
    main()
