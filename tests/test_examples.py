"""Every example runs, and real clients get from it what its first lines promise."""

from __future__ import annotations

import os
import random
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wstrict-prototypes", "-Werror"]
PATIENCE = 10.0
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}

Command = Callable[[str], list[str]]


def compile_c(source: Path, program: Path, *flags: str, last: Iterable[str] = ()) -> Path:
    compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
    command = [*compiler.split(), *flags, f"-I{ROOT}", str(source), *last, "-o", str(program)]
    subprocess.run(command, check=True, timeout=120)
    return program


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(params=["c", "py"])
def command(request: pytest.FixtureRequest, build: Path) -> Command:
    """Turns the name of an example into the words that run it."""

    def words(name: str) -> list[str]:
        source = ROOT / "examples" / f"{name}.{request.param}"
        if request.param == "py":
            return [sys.executable, str(source)]
        program = build / name
        return [
            str(
                program
                if program.exists()
                else compile_c(source, program, "-std=c11", "-O1", *WARNINGS)
            )
        ]

    return words


@contextmanager
def running(words: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)


def address(process: subprocess.Popen[str]) -> tuple[str, int]:
    assert process.stdout
    line = process.stdout.readline()
    found = re.fullmatch(r"listening on (127\.0\.0\.1):(\d+)\n", line)
    assert found, line
    return found[1], int(found[2])


def connect(where: tuple[str, int]) -> socket.socket:
    return socket.create_connection(where, timeout=PATIENCE)


def receive(client: socket.socket, nbytes: int) -> bytes:
    data = bytearray()
    while len(data) < nbytes:
        part = client.recv(nbytes - len(data))
        assert part, f"end after {len(data)} of {nbytes} bytes"
        data += part
    return bytes(data)


def exchange(client: ssl.SSLSocket, data: bytes) -> bytes:
    """Sends and receives at once, in one thread: OpenSSL wants one for a connection, which the
    interpreter's ssl does not enforce (an end of file in the middle, in one run of ten)."""
    client.setblocking(False)
    sent, got = 0, bytearray()
    blocked = suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError)
    while len(got) < len(data):
        writer = [client] if sent < len(data) else []
        assert any(select.select([client], writer, [], PATIENCE)), f"{len(got)} bytes, then nothing"
        with blocked:
            while sent < len(data):
                sent += client.send(data[sent : sent + 65536])
        with blocked:
            while len(got) < len(data):
                part = client.recv(65536)
                assert part, f"end after {len(got)} of {len(data)} bytes"
                got += part
    client.settimeout(PATIENCE)
    return bytes(got)


def end(process: subprocess.Popen[str], number: signal.Signals) -> str:
    process.send_signal(number)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    return output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_echo(command: Command, number: signal.Signals) -> None:
    with running([*command("echo"), "0"]) as process, ExitStack() as stack:
        where = address(process)
        clients = [stack.enter_context(connect(where)) for _ in range(5)]
        for i, client in enumerate(clients):
            client.sendall(b"hello %d" % i)
        for i, client in enumerate(clients):
            assert receive(client, 7) == b"hello %d" % i
        clients[0].shutdown(socket.SHUT_WR)
        assert clients[0].recv(1) == b""
        for client in clients:
            client.close()
        assert end(process, number) == ""


def test_echo_of_more_than_the_kernel_holds(command: Command) -> None:
    data = random.Random(1).randbytes(20_000_000)
    with running([*command("echo"), "0"]) as process, connect(address(process)) as client:
        sender = threading.Thread(target=client.sendall, args=(data,))
        sender.start()
        assert receive(client, len(data)) == data
        sender.join()


def test_echo_says_what_is_wrong(command: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = [*command("echo"), str(taken.getsockname()[1])]
        result = subprocess.run(
            words, capture_output=True, text=True, timeout=PATIENCE, check=False, env=ENVIRONMENT
        )
    assert result.returncode == 1
    assert "address already in use" in result.stderr.lower()
    assert result.stdout == ""


def test_chat(command: Command) -> None:
    with running([*command("chat"), "0"]) as process, ExitStack() as stack:
        where = address(process)
        anna = stack.enter_context(connect(where))
        bert = stack.enter_context(connect(where))
        assert receive(anna, 15) == b"guest 2 joined\n"
        carl = stack.enter_context(connect(where))
        assert receive(anna, 15) == receive(bert, 15) == b"guest 3 joined\n"
        bert.sendall(b"hello ")
        bert.sendall(b"all\nbye\nno newline")
        wanted = b"guest 2: hello all\nguest 2: bye\n"
        assert receive(anna, len(wanted)) == receive(carl, len(wanted)) == wanted
        bert.close()
        assert receive(anna, 13) == receive(carl, 13) == b"guest 2 left\n"
        anna.sendall(b"hi carl\n")
        assert receive(carl, 17) == b"guest 1: hi carl\n"


TLS_FLAGS = ROOT / "build" / "mbedtls.flags"
HAS_TLS = TLS_FLAGS.exists() and TLS_FLAGS.read_text().strip()


@pytest.mark.skipif(not HAS_TLS, reason="this machine has no mbedTLS")
@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_tls_echo(build: Path, version: str) -> None:
    """A client with the interpreter's OpenSSL: echo, more than the kernel holds, a clean end."""
    program, data = build / "tls_echo", random.Random(1).randbytes(5_000_000)
    if not program.exists():
        source = ROOT / "examples" / "tls_echo.c"
        compile_c(source, program, "-std=c11", "-O1", *WARNINGS, last=TLS_FLAGS.read_text().split())
    context = ssl.create_default_context(cafile=ROOT / "tests" / "tls" / "authority.pem")
    context.minimum_version = context.maximum_version = {
        "TLSv1.2": ssl.TLSVersion.TLSv1_2,
        "TLSv1.3": ssl.TLSVersion.TLSv1_3,
    }[version]
    words = [str(program), "0", str(ROOT / "tests" / "tls" / "server.pem")]
    with running(words) as process:
        plain = connect(address(process))
        with context.wrap_socket(plain, server_hostname="server.example") as client:
            assert client.version() == version
            assert exchange(client, data) == data
            client.unwrap().close()
        assert process.stdout
        assert process.stdout.readline().startswith(f"TLS {version[-3:]} TLS_")
        assert end(process, signal.SIGTERM) == ""


def test_timers(command: Command) -> None:
    result = subprocess.run(
        command("timers"),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
        env=ENVIRONMENT,
    )
    assert result.stdout.splitlines() == ["once", "tick 1", "tick 2", "tick 3", "done"]
    assert result.stderr == ""


def test_subprocesses() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "subprocesses.py")],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
        env=ENVIRONMENT,
    )
    assert result.stdout.splitlines() == [
        "cat says hello",
        "cat says again",
        "cat ended with 0",
        "sleep ended with -15",
        "squares " + " ".join(str(number * number) for number in range(20)),
    ]
    assert result.stderr == ""


@pytest.mark.parametrize("last", [signal.SIGINT, signal.SIGTERM])
def test_signals(command: Command, last: signal.Signals) -> None:
    with running(command("signals")) as process:
        assert process.stdout
        assert process.stdout.readline() == f"pid {process.pid}\n"
        for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGUSR2, signal.SIGUSR1):
            process.send_signal(number)
            assert process.stdout.readline() == f"got {number.name}\n"
        assert end(process, last).splitlines() == [f"got {last.name}", "bye"]


@pytest.mark.parametrize("source", sorted((ROOT / "examples").iterdir()), ids=lambda p: p.name)
def test_examples_are_short(source: Path) -> None:
    if source.is_file():
        assert len(source.read_text().splitlines()) <= (70 if "tls" in source.name else 60)


def banner_program() -> str:
    """The complete program in the header's banner, as somebody would copy it."""
    header = (ROOT / "tloop.h").read_text()
    block = header.split("A COMPLETE PROGRAM", 1)[1].split("\n", 1)[1]
    lines = []
    for line in block.splitlines():
        if line and not line.startswith("     "):
            break
        lines.append(line[5:])
    return "\n".join(lines) + "\n"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def connect_when_ready(process: subprocess.Popen[str], port: int) -> socket.socket:
    """The program says nothing when it listens: try until it does or has ended."""
    while process.poll() is None:
        try:
            return connect(("127.0.0.1", port))
        except ConnectionRefusedError:
            continue
    raise AssertionError(f"the program ended with {process.returncode}")


def test_program_in_the_banner(tmp_path: Path) -> None:
    program, port = banner_program(), free_port()
    assert "7000" in program
    source = tmp_path / "program.c"
    source.write_text(program.replace("7000", str(port)))
    words = [str(compile_c(source, tmp_path / "program", "-std=c11", "-O2", "-Wall", "-Werror"))]
    with running(words) as process, connect_when_ready(process, port) as client:
        client.sendall(b"hello")
        assert receive(client, 5) == b"hello"
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
