"""PostgreSQL and Redis for the rows in which the loop is the client; on Unix sockets alone."""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
from rounds import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 20  # seconds until a server has to be there
SERVER_USERS = ("postgres", "redis", "nobody")  # for servers that refuse to run as root


@dataclass(frozen=True)
class Service:
    """A program, what it needs before it starts, and the socket at which it then listens."""

    package: str  # of Python, the client
    program: str
    arguments: str  # {folder} is a folder of its own
    socket: str
    prepare: str = ""

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Run it on the core of the load; gives the folder of its socket."""
        user = _unprivileged()
        with tempfile.TemporaryDirectory(prefix="tloop-") as folder:
            if user:
                shutil.chown(folder, user)
            if self.prepare:
                subprocess.run(
                    self._words(self.prepare, folder), check=True, **_quiet(user, folder)
                )
            words = self._words(f"{self.program} {self.arguments}", folder)
            process = subprocess.Popen(
                harness.pinned(harness.LOAD_CORE, words), **_quiet(user, folder)
            )
            try:
                _await_socket(f"{folder}/{self.socket}", process)
                yield folder
            finally:
                process.terminate()
                process.wait(PATIENCE)

    @staticmethod
    def _words(command: str, folder: str) -> list[str]:
        name, *arguments = shlex.split(command.format(folder=folder))
        return [binary(name) or name, *arguments]


SERVICES = {
    "redis": Service(
        "redis",
        "redis-server",
        "--port 0 --unixsocket {folder}/socket --save '' --appendonly no --dir {folder}",
        "socket",
    ),
    "postgres": Service(
        "asyncpg",
        "postgres",
        "-D {folder}/data -k {folder} -c listen_addresses= -c fsync=off",
        ".s.PGSQL.5432",
        "initdb -D {folder}/data --no-sync --auth=trust --username=bench --locale=C",
    ),
}


def binary(name: str) -> str | None:
    """Debian keeps PostgreSQL's servers out of PATH; the newest version is taken."""
    folders = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
    return shutil.which(name, path=os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)]))


def absent(name: str, packages: set[str]) -> str | None:
    """What is missing for a service: the client's package, or the program."""
    service = SERVICES[name]
    if service.package not in packages:
        return service.package
    return None if binary(service.program) else service.program


def _unprivileged() -> str | None:
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(user for user in SERVER_USERS if user in known)


def _quiet(user: str | None, folder: str) -> dict[str, Any]:
    nothing = subprocess.DEVNULL
    return {"user": user, "cwd": folder, "stdout": nothing, "stderr": nothing}


def _await_socket(path: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket(socket.AF_UNIX) as client:
            if client.connect_ex(path) == 0:
                return
        time.sleep(0.01)
    raise BenchError(f"{process.args!r} does not listen at {path}")
