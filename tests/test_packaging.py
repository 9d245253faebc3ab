"""What users install: sdist and wheel, each proved by an echo in a clean environment."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import cffi_build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ROOT = cffi_build.ROOT
VERSION = cffi_build.version()
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", "*.so", ".*_cache"
)

# A wheel carries the pinned mbedTLS, where that was built.
PINNED = ROOT / "build" / "mbedtls"
ENVIRONMENT = {**os.environ, **({"MBEDTLS_PREFIX": str(PINNED)} if PINNED.exists() else {})}

ECHO = """
import asyncio, sys, tloop_py

async def echo(reader, writer):
    writer.write(await reader.readline())
    await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\\n")
        print((await asyncio.wait_for(reader.readline(), 10)).decode(), end="")
        writer.close()
        await writer.wait_closed()
    loop = asyncio.get_running_loop()
    assert isinstance(loop, tloop_py.Loop)
    print(tloop_py.__version__, "%d.%d" % sys.version_info[:2], tloop_py.__file__)

tloop_py.run(main())
"""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command; all that it printed is the message when it fails."""
    result = subprocess.run(
        command,
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def build(hook: str, source: Path, out: Path) -> Path:
    """Call a PEP 517 hook with the build requirements of this environment."""
    out.mkdir(exist_ok=True)
    code = f"import sys, setuptools.build_meta as b; b.{hook}(sys.argv[1])"
    run(sys.executable, "-c", code, out, cwd=source)
    (built,) = out.iterdir()
    return built


def smoke_test(python: str, package: Path, folder: Path) -> list[str]:
    """Install into a new environment and echo a line; what the program printed."""
    run(python, "-m", "venv", folder)
    own = folder / "bin" / "python"
    run(own, "-m", "pip", "install", "--disable-pip-version-check", package)
    lines = run(own, "-I", "-W", "error", "-c", ECHO, cwd=folder).splitlines()
    assert lines[0] == "hello"
    version, running, path = lines[1].split(" ")
    assert version == VERSION
    assert Path(path).is_relative_to(folder), "ran the checkout, not the installed package"
    return [version, running]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("copy") / "tloop"
    shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
    return build("build_sdist", copy, copy.parent / "dist")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from the sdist, so that whatever the sdist lacks shows."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return build("build_wheel", next(folder.iterdir()), folder / "dist")


def other_python() -> tuple[str, str] | None:
    """Another minor version of CPython, the newest there is."""
    pythons: dict[str, str] = runpy.run_path(str(ROOT / ".ci" / "pythons.py"))["find"]()
    mine = "{}.{}".format(*sys.version_info)
    return next((pair for pair in reversed(pythons.items()) if pair[0] != mine), None)


def test_sdist_has_what_a_reader_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = "tloop.h cffi_build.py setup.py pyproject.toml Makefile LICENSE README.md"
    assert set(needed.split()) - names == set()
    assert {name.partition("/")[0] for name in names} >= {"tloop_py", "tests", "examples"}
    assert [name for name in names if name.endswith((".so", ".pyc", ".o"))] == []


def test_wheel_is_named_for_the_stable_abi(wheel: Path) -> None:
    name, version, python, abi, platform = wheel.stem.split("-")
    assert (name, version) == ("tloop", VERSION)
    assert platform.startswith("linux_")
    if cffi_build.ABI3:
        assert (python, abi) == ("cp311", "abi3")
    else:
        assert abi not in ("abi3", "none")


def test_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name) for name in archive.namelist()}
        metadata = archive.read(f"tloop-{VERSION}.dist-info/METADATA").decode()
    modules = {str(name) for name in names if name.parts[0] == "tloop_py"}
    sources = {f"tloop_py/{path.name}" for path in (ROOT / "tloop_py").glob("*.py")}
    binary = f"tloop_py/{cffi_build.module_path().name}"
    assert modules == sources | {binary, "tloop_py/_tloop.pyi", "tloop_py/py.typed"}
    assert {name.parts[0] for name in names} == {"tloop_py", f"tloop-{VERSION}.dist-info"}
    assert "License-Expression: MIT" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert any(name.name == "LICENSE" for name in names)


@pytest.mark.skipif(not PINNED.exists(), reason="the pinned mbedTLS was not built here")
def test_wheel_carries_mbedtls(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        module = Path(archive.extract(f"tloop_py/{cffi_build.module_path().name}", tmp_path))
    assert hasattr(cffi_build.load(module).lib, "tl_tls_create")
    assert "mbed" not in run("ldd", module)
    shown = [line.split()[-1] for line in run("nm", "-D", "--defined-only", module).splitlines()]
    assert [name for name in shown if "mbedtls" in name or "psa" in name] == []


def test_wheel_runs_on_the_python_that_built_it(wheel: Path, tmp_path: Path) -> None:
    assert smoke_test(sys.executable, wheel, tmp_path / "venv")


@pytest.mark.skipif(not cffi_build.ABI3, reason="this Python has no stable ABI")
def test_wheel_runs_on_another_python(wheel: Path, tmp_path: Path) -> None:
    other = other_python()
    if other is None:
        pytest.skip("this machine has no other CPython")
    minor, python = other
    assert smoke_test(python, wheel, tmp_path / "venv") == [VERSION, minor]


def test_pip_installs_the_checkout(sdist: Path, tmp_path: Path) -> None:
    """With build isolation: the build requirements are complete."""
    assert smoke_test(sys.executable, sdist, tmp_path / "venv")
