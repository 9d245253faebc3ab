"""Derive everything cffi needs from tloop.h and tloop_tls.h: nothing is declared a second time.

    cffi_build.py --inplace        compile tloop_py/_tloop*.so, unless it is up to date
    cffi_build.py --check [FILE]   name file, line and text of whatever cffi cannot take
    cffi_build.py --print-cdef     show the declarations
    cffi_build.py --abi FILE.py    write an out-of-line ABI-mode module, for dlopen of libtloop.so

TLS is in the module when there is a good mbedTLS, which `.ci/mbedtls flags` finds.

Public declarations stand in the headers between `/* @api begin <group> */` and `/* @api end */`.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import warnings
from bisect import bisect_left
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cffi
from cffi import recompiler

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

ROOT = Path(__file__).resolve().parent
HEADER = ROOT / "tloop.h"
TLS_HEADER = ROOT / "tloop_tls.h"
TLS_FLAGS = ROOT / "build" / "mbedtls.flags"
PACKAGE = ROOT / "tloop_py"
MODULE = "tloop_py._tloop"
SOURCES = [HEADER, TLS_HEADER, ROOT / "cffi_build.py", ROOT / "setup.py"]

# A free-threaded CPython (before 3.15) and PyPy have no stable ABI.
ABI3 = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")

# One translation unit: `static` lets the compiler inline the API into cffi's wrappers.
PREAMBLE = """
#define TL_API static
#define TLOOP_IMPLEMENTATION
#include "%s"
#include <string.h>

/* cffi gives the GIL up around every call. Only waiting blocks; the other functions take a
   microsecond, giving up and taking back costs 0.1 of it, and a busy thread in between would keep
   the GIL for 5 ms each time. So only the wrappers of functions that wait let go of it, and
   none bothers with errno, which the library does not use. (PyPy has its own ways.) */
#if defined(Py_PYTHON_H) && !defined(PYPY_VERSION)
static inline int tloop_waits(const char *wrapper) {
  return !strcmp(wrapper, "_cffi_f_tl_loop_tick") || !strcmp(wrapper, "_cffi_f_tl_loop_poll") ||
         !strcmp(wrapper, "_cffi_f_tl_loop_step") || !strcmp(wrapper, "_cffi_f_tl_loop_run") ||
         !strcmp(wrapper, "_cffi_f_tl_child_wait") || !strcmp(wrapper, "_cffi_f_tl_tls_create") ||
         !strncmp(wrapper, "_cffi_f_tl_tls_add_", 19);
}
#undef Py_BEGIN_ALLOW_THREADS
#undef Py_END_ALLOW_THREADS
#define Py_BEGIN_ALLOW_THREADS \
  { PyThreadState *_save = tloop_waits(__func__) ? PyEval_SaveThread() : NULL;
#define Py_END_ALLOW_THREADS \
  if (_save) PyEval_RestoreThread(_save); }
#undef _cffi_restore_errno
#undef _cffi_save_errno
#define _cffi_restore_errno() ((void)0)
#define _cffi_save_errno() ((void)0)
#endif
"""
# What Python answers for a TLS context; rare, and in the middle of a handshake.
TLS_CALLBACKS = """
extern "Python" int tloop_on_name(tl_loop *loop, int64_t stream, const char *name, void *user);
extern "Python" void tloop_on_keylog(const char *line, void *user);
"""
COMPILE_ARGS = ["-std=gnu11", "-O3", "-g1", "-fvisibility=hidden", "-fno-semantic-interposition"]

_BEGIN = re.compile(r"/\* @api begin (\w+) \*/")
_END = re.compile(r"/\* @api end \*/")
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)


class HeaderError(Exception):
    """A construct that the binding cannot take: `file:line: what`."""

    def __init__(self, path: Path, line: int, what: str) -> None:
        super().__init__(f"{path}:{line}: {what}")


class Declaration(NamedTuple):
    """One top-level declaration and the header line on which it begins."""

    line: int
    text: str


def version(header: Path = HEADER) -> str:
    """The project's version: tloop.h is the only place that states it."""
    found = re.search(r'^#define TL_VERSION "([^"]+)"', header.read_text(), re.MULTILINE)
    if not found:
        raise HeaderError(header, 1, "no #define TL_VERSION")
    return found[1]


def regions(header: Path = HEADER) -> Iterator[tuple[str, int, list[str]]]:
    """Each marked region: its group, the number of its first line, its lines."""
    group, first = "", 0
    body: list[str] = []
    for number, line in enumerate(header.read_text().splitlines(), 1):
        if begin := _BEGIN.search(line):
            if group:
                raise HeaderError(header, number, f"@api begin inside region {group!r}: {line}")
            group, first, body = begin[1], number + 1, []
        elif _END.search(line):
            if not group:
                raise HeaderError(header, number, f"@api end without a begin: {line}")
            yield group, first, body
            group = ""
        elif group:
            body.append(line)
    if group:
        raise HeaderError(header, first - 1, f"region {group!r} has no @api end")


def cdef(header: Path = HEADER) -> str:
    """The declarations, each on the line that it has in the header; all other lines are empty."""
    lines: list[str] = []
    for _, first, body in regions(header):
        lines += [""] * (first - 1 - len(lines)) + body
    if not lines:
        raise HeaderError(header, 1, "no /* @api begin <group> */ region")
    return re.sub(r"\bTL_API\s+", "", "\n".join(lines) + "\n")


def tls_words() -> list[str]:
    """What the compiler needs for mbedTLS; empty, and the reason on stderr, when there is none."""
    found = subprocess.run(
        [ROOT / ".ci" / "mbedtls", "flags"], stdout=subprocess.PIPE, text=True, check=False
    )
    if found.returncode:
        print("building tloop_py without TLSContext", file=sys.stderr)
    return found.stdout.splitlines()


def declarations(source: str) -> Iterator[Declaration]:
    """Split `source` at `;` outside braces, and at the end of each #define."""
    code = _COMMENT.sub(lambda comment: "\n" * comment[0].count("\n") or " ", source)
    start, depth, text = 0, 0, ""
    for number, line in enumerate(code.splitlines(), 1):
        if not text.strip():
            start, text = number, ""
        text += line + "\n"
        depth += line.count("{") - line.count("}")
        directive = text.lstrip().startswith("#") and not line.endswith("\\")
        if directive or (depth == 0 and line.rstrip().endswith((";", "}"))):
            yield Declaration(start, text.rstrip())
            text = ""
    if text.strip():
        yield Declaration(start, text.rstrip())


def make_ffi() -> cffi.FFI:
    """What setuptools compiles (setup.py names it in `cffi_modules`)."""
    ffi, words = cffi.FFI(), tls_words()
    ffi.cdef(cdef())
    if words:
        ffi.cdef(cdef(TLS_HEADER) + TLS_CALLBACKS)
    includes = [word[2:] for word in words if word.startswith("-I")]
    ffi.set_source(
        MODULE,
        PREAMBLE % (TLS_HEADER if words else HEADER).name,
        include_dirs=[str(ROOT), *includes],
        depends=[str(path) for path in SOURCES],
        extra_compile_args=COMPILE_ARGS,
        # Hidden, so that another mbedTLS in the process does not meet this one.
        extra_link_args=[
            *(word for word in words if not word.startswith("-I")),
            "-Wl,--exclude-libs,ALL",
        ],
    )
    return ffi


def _complaint(items: list[Declaration]) -> str:
    """What cffi says against these declarations; empty if it takes them."""
    ffi = cffi.FFI()
    try:
        with warnings.catch_warnings(action="error"):
            ffi.cdef("\n".join(item.text for item in items))
            # Opaque types used by value and the like show only when code is generated.
            recompiler.make_c_source(ffi, "probe", "", io.StringIO())
            recompiler.make_py_source(ffi, "probe", io.StringIO())
    except Exception as error:  # cffi raises half a dozen unrelated types
        return f"{type(error).__name__}: {error}"
    return ""


def check(header: Path = HEADER) -> int:
    """Return the number of declarations, or raise HeaderError for the first that cffi refuses."""
    known = list(declarations(cdef())) if header == TLS_HEADER else []
    items = list(declarations(cdef(header)))
    if _complaint(known + items):
        taken = range(len(items))
        bad = bisect_left(taken, True, key=lambda n: bool(_complaint(known + items[: n + 1])))
        line, text = items[bad]
        why = _complaint(known + items[: bad + 1])
        raise HeaderError(header, line, f"cffi cannot take `{text}`\n{why}")
    return len(items)


def write_abi_module(path: Path) -> None:
    """Write the same declarations as an ABI-mode module, which needs no compiler."""
    ffi = cffi.FFI()
    ffi.cdef(cdef())
    if tls_words():
        ffi.cdef(cdef(TLS_HEADER))
    recompiler.make_py_source(ffi, path.stem, str(path))


def module_path() -> Path:
    """Where the compiled module of this interpreter lies in the checkout."""
    suffix = ".abi3.so" if ABI3 else sysconfig.get_config_var("EXT_SUFFIX")
    return PACKAGE / f"_tloop{suffix}"


def is_fresh(path: Path) -> bool:
    """Newer than all that it is made from."""
    sources = [*SOURCES, TLS_FLAGS] if TLS_FLAGS.exists() else SOURCES
    newest = max(source.stat().st_mtime_ns for source in sources)
    return path.exists() and path.stat().st_mtime_ns > newest


def build_inplace() -> None:
    """Compile as a wheel would, then put the module into the package in one step."""
    target = module_path()
    build = ROOT / "build" / f"inplace-{sys.implementation.cache_tag}"
    build.mkdir(parents=True, exist_ok=True)
    with open(build / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_fresh(target):
            return
        command = [sys.executable, "setup.py", "-q", "build_ext", "--force"]
        command += ["--build-lib", str(build / "lib"), "--build-temp", str(build / "temp")]
        subprocess.run(command, cwd=ROOT, check=True)
        # A program that starts meanwhile finds the old module or the new one, never half of it.
        fresh = target.with_name(f"{target.name}.new")
        shutil.copy(build / "lib" / "tloop_py" / target.name, fresh)
        os.replace(fresh, target)
        if ABI3:
            write_stub(target)


def load(path: Path) -> ModuleType:
    """Import the compiled module alone: the package around it may be half-edited."""
    spec = importlib.util.spec_from_file_location(MODULE, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _hint(ctype: cffi.FFI.CType) -> str:
    if ctype.kind == "void":
        return "None"
    if ctype.kind == "enum":
        return "int"
    if ctype.kind == "primitive":
        return {"_Bool": "bool", "float": "float", "double": "float"}.get(ctype.cname, "int")
    return "Any"


def _method(name: str, ctype: cffi.FFI.CType) -> str:
    arguments = [f"a{n}: {_hint(kind)}" for n, kind in enumerate(ctype.args)]
    parameters = ", ".join(["self", *arguments, *(["/"] if arguments else [])])
    return f"    def {name}({parameters}) -> {_hint(ctype.result)}: ..."


def stub(path: Path) -> str:
    """The typing stub of the module at `path`: mypy then checks names and argument counts."""
    module = load(path)
    members = [(name, getattr(module.lib, name)) for name in sorted(dir(module.lib))]
    return "\n".join(
        [
            "# Generated from tloop.h and tloop_tls.h by cffi_build.py: do not edit.",
            "from typing import Any",
            "",
            "ffi: Any",
            "",
            "class _Lib:",
            *(f"    {name}: int" for name, value in members if isinstance(value, int)),
            *(
                _method(name, module.ffi.typeof(value))
                for name, value in members
                if not isinstance(value, int)
            ),
            "",
            "lib: _Lib",
            "",
        ]
    )


def write_stub(path: Path) -> None:
    """Refresh tloop_py/_tloop.pyi; an unchanged file keeps its date, and TLS is never dropped."""
    target, text = PACKAGE / "_tloop.pyi", stub(path)
    if "tl_tls_create" not in text:
        return
    if not target.exists() or target.read_text() != text:
        target.write_text(text)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--inplace", action="store_true", help="compile into tloop_py/")
    mode.add_argument("--check", nargs="*", type=Path, metavar="FILE")
    mode.add_argument("--print-cdef", action="store_true")
    mode.add_argument("--abi", type=Path, metavar="FILE.py")
    mode.add_argument("--version", action="version", version=version())
    options = parser.parse_args()
    try:
        if options.check is not None:
            for header in options.check or [HEADER, TLS_HEADER]:
                print(f"{header}: cffi takes all {check(header)} declarations")
        elif options.print_cdef:
            shown = cdef() + cdef(TLS_HEADER)
            print("\n".join(line for line in shown.splitlines() if line.strip()))
        elif options.abi:
            write_abi_module(options.abi)
        else:
            build_inplace()
    except HeaderError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
