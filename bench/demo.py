"""``make demo``: a C echo server and an asyncio HTTP server on tloop, each driven by a client."""

from __future__ import annotations

import http.client
import platform
import sys

import harness
import rounds
from harness import Contender
from rows import Row

SECONDS = 1.5
ECHO = Row.parse("protocol")
HTTP = Row.parse("http")
# The first of each list is what is being shown, asyncio what it is compared with; "primed" is what
# asyncio can do once glibc keeps freed memory, which tloop sees to by itself (bench/README.md).
ECHO_CONTENDERS = ("tloop.h", "tloop", "uvloop", "asyncio+primed", "asyncio")
HTTP_CONTENDERS = ("tloop", "uvloop", "asyncio+primed", "asyncio")
LABELS = {
    "tloop.h": "tloop.h, C program",
    "tloop": "tloop_py",
    "uvloop": "uvloop",
    "asyncio+primed": "asyncio, allocator primed",
    "asyncio": "asyncio (standard library)",
}


def fetch_page() -> str:
    """Ask the HTTP server on tloop for a page with a client that knows nothing of this bench."""
    with harness.running(Contender("tloop"), HTTP) as (_, target):
        client = http.client.HTTPConnection(target, timeout=5)
        client.request("GET", "/")
        reply = client.getresponse()
        return f"GET / -> {reply.status} {reply.reason}: {reply.read().decode().strip()}"


def compare(title: str, row: Row, names: tuple[str, ...]) -> None:
    contenders, _ = harness.available(names)
    reports = {name: harness.measure(c, row, SECONDS) for name, c in contenders.items()}
    rps = reports["asyncio"]["rps"]
    head = [title, "requests/s", "x asyncio", "p50 us", "p99 us", "server CPU us/request"]
    lines = [head]
    for name, report in reports.items():
        figures = [f"{report[key]:,.0f}" for key in ("rps", "p50_us", "p99_us")]
        figures.insert(1, f"{report['rps'] / rps:.2f}")
        lines.append([LABELS[name], *figures, f"{report['cpu_us_per_request']:.1f}"])
    print(f"\n{rounds.table(lines)}", flush=True)


def main() -> None:
    for name in (ECHO_CONTENDERS[0], HTTP_CONTENDERS[0]):
        if error := Contender(name).probe().get("error"):
            sys.exit(f"demo: {LABELS[name]} cannot run ({error}); `make demo` builds it")
    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"tloop on {python}, Linux {platform.release()}: {ECHO.connections} connections,")
    print("one request in flight on each; server and client are processes of their own.")
    print(fetch_page(), flush=True)
    compare(f"TCP echo, {ECHO.size} bytes", ECHO, ECHO_CONTENDERS)
    compare("HTTP/1.1 keep-alive", HTTP, HTTP_CONTENDERS)


if __name__ == "__main__":
    try:
        main()
    except rounds.BenchError as error:
        sys.exit(f"demo: {error}")
