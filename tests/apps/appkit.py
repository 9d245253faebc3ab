"""What the tests of real programs share: which loops, programs run as processes, TLS, test data."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import loopkit
import trustme

import tloop_py

HERE = Path(__file__).parent
PATIENCE = 60.0  # seconds until a bounded wait gives up; below the time limit of a test
MB = 1 << 20

# What a program writes when its loop or one of its objects was not left clean.
COMPLAINT = re.compile(
    r"Traceback|Warning|WARNING|ERROR|CRITICAL|never retrieved|never awaited|was destroyed"
)


def selected_loops() -> list[str]:
    """The loops to run the programs on: those of TLOOP_APPS_LOOPS, else as in all other tests."""
    names = os.environ.get("TLOOP_APPS_LOOPS")
    if not names:
        return loopkit.selected_loops()
    unknown = set(names.split(",")) - set(loopkit.FACTORIES)
    if unknown:
        raise ValueError(f"TLOOP_APPS_LOOPS names {unknown}; known: {', '.join(loopkit.FACTORIES)}")
    return names.split(",")


def same_loop(type_name: str, app_loop: str) -> bool:
    """Whether a loop type, as `type_of_loop` names it, is the one that a program was to run on."""
    return type_name.partition(".")[0] == ("tloop_py" if app_loop == "tloop" else app_loop)


def type_of_loop(loop: loopkit.Loop) -> str:
    return f"{type(loop).__module__}.{type(loop).__qualname__}"


class Program:
    """A process whose output can be waited for; leaving its `with` block proves that it ended."""

    def __init__(self, *command: str, cwd: Path | None = None, user: str | None = None) -> None:
        path = [str(HERE), str(loopkit.HERE), str(loopkit.HERE.parent)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
        env["PYTHONWARNINGS"] = "default::ResourceWarning,default::RuntimeWarning"
        self.lines: list[str] = []
        self._ended = False  # its output has
        self._more = threading.Condition()
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            user=user,
            group=user and primary_group(user),
            extra_groups=[] if user else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            with self._more:
                self.lines.append(line)
                self._more.notify_all()
        with self._more:
            self._ended = True
            self._more.notify_all()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def expect(self, pattern: str) -> re.Match[str]:
        """Wait until the output has the pattern."""
        deadline = time.monotonic() + PATIENCE
        with self._more:
            while not (match := re.search(pattern, self.output)):
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    raise AssertionError(f"no {pattern!r} in the output:\n{self.output}")
                self._more.wait(left)
        return match

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end, unless it has; gives its exit code."""
        self.process.send_signal(how)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        running = self.process.poll() is None
        if running:
            self.process.kill()
        self.wait()
        assert self.process.stdout
        self.process.stdout.close()
        assert exc[0] or not running, f"the program was left running:\n{self.output}"


def python_program(*arguments: str) -> Program:
    return Program(sys.executable, *arguments, cwd=HERE)


def primary_group(user: str) -> int:
    import pwd

    return pwd.getpwnam(user).pw_gid


def free_port() -> int:
    """A loopback port for servers that cannot choose one themselves."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Certificates:
    """A certificate authority of our own and what it signed for localhost."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        issued = self.authority.issue_cert("localhost", "127.0.0.1")
        self.key, self.chain = folder / "server.key", folder / "server.pem"
        self.root = folder / "authority.pem"
        self.authority.cert_pem.write_to_path(str(self.root))
        issued.private_key_pem.write_to_path(str(self.key))
        self.chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))

    def server(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.chain, self.key)
        return context

    def core_server(self) -> Any:
        """The same by a TLSContext, in the C core."""
        return tloop_py.create_tls_context(
            ssl.Purpose.CLIENT_AUTH,
            certfile=self.chain,
            keyfile=self.key,
            alpn_protocols=["http/1.1"],
        )

    def core_client(self) -> Any:
        return tloop_py.create_tls_context(cafile=self.root)

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


def blocks(count: int) -> Iterator[bytes]:
    """Blocks of 1 MiB, always the same ones, no two of them equal."""
    noise = random.Random(count).randbytes(MB - 8)
    for number in range(count):
        yield number.to_bytes(8, "big") + noise


def digest_of(count: int) -> str:
    """The hash of all bytes of `blocks(count)`."""
    digest = hashlib.blake2b()
    for block in blocks(count):
        digest.update(block)
    return digest.hexdigest()
