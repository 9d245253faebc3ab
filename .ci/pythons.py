"""Print one CPython per minor version that tloop supports, as `3.12 /path/to/python` lines.

Arguments are minor versions to leave out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MINORS = range(11, 20)
PROBE = (
    "import sys, sysconfig\n"
    "if sys.implementation.name == 'cpython' and not sysconfig.get_config_var('Py_GIL_DISABLED'):\n"
    "    import ensurepip, venv\n"
    "    print('%d.%d' % sys.version_info[:2], sys.executable)\n"
)


def candidates(minor: int) -> list[Path]:
    """Whatever is called python3.<minor> on PATH, or was built by pyenv."""
    folders = [Path(folder) for folder in os.get_exec_path()]
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    built = sorted(pyenv.glob(f"3.{minor}.*/bin"), reverse=True)
    return [folder / f"python3.{minor}" for folder in [*built, *folders]]


def probe(path: Path) -> str:
    """`3.12 /path` of an interpreter that works and can make virtual environments, else nothing."""
    if not os.access(path, os.X_OK):
        return ""
    # A pyenv shim exists for versions that are not selected, and fails.
    result = subprocess.run([path, "-c", PROBE], capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else ""


def find() -> dict[str, str]:
    """Minor version to path."""
    found = (next(filter(None, map(probe, candidates(minor))), "") for minor in MINORS)
    return dict(line.split(" ", 1) for line in found if line)


if __name__ == "__main__":
    for version, path in find().items():
        if version not in sys.argv[1:]:
            print(version, path)
