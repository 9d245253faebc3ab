"""PostgreSQL and Redis from the system's packages, each on a data folder that vanishes with it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from appkit import Certificates, Program, free_port


@dataclass(frozen=True)
class PostgresServer:
    host: str
    port: int
    folder: str  # where its Unix socket lies


@dataclass(frozen=True)
class RedisServer:
    host: str
    port: int
    path: str  # of its Unix socket


def binary(name: str, package: str, *folders: str) -> str:
    """Where a server's program is; CI must have it."""
    search = os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)])
    if found := shutil.which(name, path=search):
        return found
    reason = f"{name} is not installed: apt-get install {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def postgres_folders() -> list[str]:
    """Debian keeps the server's programs out of PATH; the newest version first."""
    installed = Path("/usr/lib/postgresql").glob("*/bin")
    return [str(path) for path in sorted(installed, reverse=True)]


def unprivileged(*users: str) -> str | None:
    """The first of the users that exists, for servers that refuse to run as root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(user for user in users if user in known)


@contextmanager
def folder_of(user: str | None) -> Iterator[Path]:
    """A folder of the user's own, with a path short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="tloop-") as name:
        if user:
            shutil.chown(name, user)
        yield Path(name)


@contextmanager
def running(program: Program, ready: str, stop: signal.Signals) -> Iterator[None]:
    with program:
        program.expect(ready)
        yield
        code = program.end(stop)
        assert code == 0, program.output


def init_database(folder: Path, user: str | None, initdb: str) -> Path:
    data = folder / "data"
    options = ["--no-sync", "--auth=trust", "--username=tester", "--encoding=UTF8", "--locale=C"]
    with Program(initdb, "-D", str(data), *options, cwd=folder, user=user) as program:
        assert program.wait() == 0, program.output
    return data


def give_certificate(folder: Path, user: str | None, certificates: Certificates) -> list[str]:
    """Options for TLS; the server demands a key file that is its own and closed to others."""
    for source in (certificates.key, certificates.chain):
        copy = Path(shutil.copy(source, folder))
        copy.chmod(0o600)
        if user:
            shutil.chown(copy, user)
    key, chain = folder / certificates.key.name, folder / certificates.chain.name
    return ["-c", "ssl=on", "-c", f"ssl_key_file={key}", "-c", f"ssl_cert_file={chain}"]


@contextmanager
def running_postgres(certificates: Certificates) -> Iterator[PostgresServer]:
    folders = postgres_folders()
    initdb, postgres = (binary(name, "postgresql", *folders) for name in ("initdb", "postgres"))
    user = unprivileged("postgres", "nobody")
    with folder_of(user) as folder:
        data = init_database(folder, user, initdb)
        port = free_port()
        options = ["-D", str(data), "-k", str(folder), "-h", "127.0.0.1", "-p", str(port)]
        options += ["-c", "fsync=off", *give_certificate(folder, user, certificates)]
        program = Program(postgres, *options, cwd=folder, user=user)
        with running(program, "ready to accept connections", signal.SIGINT):
            yield PostgresServer("127.0.0.1", port, str(folder))


@contextmanager
def running_redis() -> Iterator[RedisServer]:
    redis = binary("redis-server", "redis-server")
    user = unprivileged("redis", "nobody")
    with folder_of(user) as folder:
        port, path = free_port(), folder / "redis.sock"
        options = ["--bind", "127.0.0.1", "--port", str(port), "--unixsocket", str(path)]
        options += ["--save", "", "--appendonly", "no", "--dir", str(folder)]
        program = Program(redis, *options, cwd=folder, user=user)
        with running(program, "eady to accept connections", signal.SIGTERM):
            yield RedisServer("127.0.0.1", port, str(path))
