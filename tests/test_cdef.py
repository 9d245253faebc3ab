"""cffi_build.py: the binding is derived from the header, and what it cannot take is named."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cffi_build

GOOD = '#define TL_VERSION "9.8.7"\n\n/* @api begin one */\n/* A number. */\nint tl_one(void);\n'
END = "/* @api end */\n"

# Each stands on line 6 of a header whose other lines are good.
REFUSED = {
    "body": "static inline int tl_bad(void) { return 1; }",
    "attribute": "int tl_bad(void) __attribute__((pure));",
    "conditional": "#if TL_X\nint tl_bad(void);\n#endif",
    "include": "#include <stddef.h>",
    "text macro": '#define TL_BAD "text"',
    "function macro": "#define TL_BAD(x) (x)",
    "unknown type": "int tl_bad(va_list list);",
    "opaque value": "typedef struct tl_s tl_s; tl_s tl_bad(void);",
    "sizeof": "typedef struct { char tl_bad[sizeof(long)]; } tl_s;",
    "incomplete enum": "enum tl_e; int tl_bad(enum tl_e value);",
    "errno": "enum { TL_BAD = -ECONNRESET };",
    "assertion": '_Static_assert(sizeof(int) == 4, "int");',
    "syntax": "int tl_bad(void;",
}


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    script = cffi_build.ROOT / "cffi_build.py"
    return subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture
def header(tmp_path: Path) -> Path:
    return tmp_path / "broken.h"


def test_the_headers_are_taken_whole() -> None:
    assert cffi_build.check() > 50
    assert cffi_build.check(cffi_build.TLS_HEADER) > 30


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_check_names_line_and_text(header: Path, text: str) -> None:
    header.write_text(f"{GOOD}{text}\nint tl_two(void);\n{END}")
    with pytest.raises(cffi_build.HeaderError) as caught:
        cffi_build.check(header)
    assert str(caught.value).startswith(f"{header}:6: cffi cannot take `{text.splitlines()[0]}")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (GOOD, 3, "region 'one' has no @api end"),
        (f"{GOOD}/* @api begin two */\n{END}", 6, "inside region 'one'"),
        (GOOD + END + END, 7, "@api end without a begin"),
        ("int tl_one(void);\n", 1, "no /* @api begin <group> */ region"),
    ],
)
def test_check_names_misplaced_marks(header: Path, text: str, line: int, message: str) -> None:
    header.write_text(text)
    with pytest.raises(cffi_build.HeaderError, match=re.escape(message)) as caught:
        cffi_build.check(header)
    assert str(caught.value).startswith(f"{header}:{line}: ")


def test_check_on_the_command_line(header: Path) -> None:
    header.write_text(GOOD + REFUSED["body"] + "\n" + END)
    refused = command("--check", header)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"{header}:6: ")
    assert "Traceback" not in refused.stderr
    header.write_text(GOOD + END)
    assert command("--check", header).stdout == f"{header}: cffi takes all 1 declarations\n"


def test_print_cdef_shows_what_cffi_gets() -> None:
    shown = command("--print-cdef").stdout
    assert "tl_loop *tl_loop_create(" in shown
    assert "TL_API" not in shown
    assert "\n\n" not in shown


def test_lines_of_the_cdef_are_lines_of_the_header(header: Path) -> None:
    header.write_text(GOOD + END + "int tl_private(void);\n" + "/* @api begin b */\nint b;\n" + END)
    assert cffi_build.cdef(header).splitlines()[3:] == [
        "/* A number. */",
        "int tl_one(void);",
        *[""] * 3,
        "int b;",
    ]


def test_version_stands_in_the_header_only(header: Path) -> None:
    import tloop_py

    header.write_text(GOOD)
    assert cffi_build.version(header) == "9.8.7"
    assert tloop_py.__version__ == cffi_build.version()
    header.write_text("")
    with pytest.raises(cffi_build.HeaderError, match="no #define TL_VERSION"):
        cffi_build.version(header)


def test_module_has_every_declared_name() -> None:
    lib = cffi_build.load(cffi_build.module_path()).lib
    source = cffi_build.cdef()
    if hasattr(lib, "tl_tls_create"):
        source += cffi_build.cdef(cffi_build.TLS_HEADER) + cffi_build.TLS_CALLBACKS
    source = re.sub(r"/\*.*?\*/", "", source, flags=re.DOTALL)
    functions = set(re.findall(r"\b(tl(?:oop)?_\w+)\(", source))
    constants = set(re.findall(r"\b(TL_\w+)\b", source))
    assert set(dir(lib)) == functions | constants


def test_stub_is_up_to_date() -> None:
    """A module without TLS has fewer names, never others."""
    written = (cffi_build.PACKAGE / "_tloop.pyi").read_text()
    fresh = cffi_build.stub(cffi_build.module_path())
    if "tl_tls_create" in fresh:
        assert written == fresh, "run cffi_build.py --inplace"
    assert set(fresh.splitlines()) <= set(written.splitlines()), "run cffi_build.py --inplace"


def test_module_is_rebuilt_when_a_source_is_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, module = tmp_path / "tloop.h", tmp_path / "_tloop.so"
    monkeypatch.setattr(cffi_build, "SOURCES", [source])
    source.touch()
    assert not cffi_build.is_fresh(module)
    module.touch()
    os.utime(source, ns=(0, module.stat().st_mtime_ns - 1))
    assert cffi_build.is_fresh(module)
    os.utime(source, ns=(0, module.stat().st_mtime_ns + 1))
    assert not cffi_build.is_fresh(module)


def test_building_again_changes_nothing() -> None:
    assert command("--inplace").returncode == 0
    before = cffi_build.module_path().stat()
    assert command("--inplace").stdout == ""
    assert cffi_build.module_path().stat() == before
