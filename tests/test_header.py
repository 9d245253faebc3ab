"""tloop.h as a source file: its documentation, its sections, and how compilers take it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEADER = (ROOT / "tloop.h").read_text()
BANNER = HEADER[: HEADER.index("*/")]
API = HEADER[: HEADER.index("#endif /* TLOOP_H */")]

CXX_STRICT = [f"-I{ROOT}", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"]
STRICT = [*CXX_STRICT, "-Wstrict-prototypes"]
C_COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)] or ["cc"]
CXX_COMPILERS = [name for name in ("g++", "clang++") if shutil.which(name)]
SWITCHES = sorted(set(re.findall(r"\bTL_NO_[A-Z_]+", HEADER)))
PROTOTYPE = re.compile(
    r"(?P<comment>/\*(?:(?!\*/).)*\*/\n)?^TL_API (?P<text>[^;{]+);", re.DOTALL | re.MULTILINE
)

IMPLEMENTATION = '#define TLOOP_IMPLEMENTATION\n#include "tloop.h"\n'
PRINTS_VERSION = '#include "tloop.h"\n#include <stdio.h>\nint main(void) { puts(tl_version()); }\n'


def prototypes() -> list[tuple[str, str, str]]:
    """Name, text and preceding comment of each public function."""
    found = [(match["text"], match["comment"] or "") for match in PROTOTYPE.finditer(API)]
    return [(re.findall(r"(tl_\w+)\(", text)[0], text, comment) for text, comment in found]


def run(*command: str | Path) -> str:
    """Run a compiler or a program; what it complains about is the test's message."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


def build(folder: Path, compiler: str, *flags: str, **sources: str) -> Path:
    """Compile each source (name_extension=text) by itself, then link them all."""
    objects = []
    for name, text in sources.items():
        source = folder / name.replace("_", ".")
        source.write_text(text)
        objects.append(source.with_suffix(".o"))
        run(compiler, *STRICT, *flags, "-c", source, "-o", objects[-1])
    program = folder / "program"
    run(compiler, *objects, "-o", program)
    return program


def programs() -> dict[str, str]:
    """The complete C programs that the documentation shows."""
    banner = BANNER[BANNER.index("A COMPLETE PROGRAM") :].split("\n", 1)[1]
    lines = re.split(r"\n   (?=\S)", banner, maxsplit=1)[0]
    readme = re.findall(r"```c\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    complete = [block for block in readme if "int main(" in block]
    return {"banner": lines} | {f"README {n}": block for n, block in enumerate(complete, 1)}


def test_each_public_function_is_in_a_region() -> None:
    inside = "".join(re.findall(r"/\* @api begin \w+ \*/(.*?)/\* @api end \*/", API, re.DOTALL))
    assert [name for name, text, _ in prototypes() if text not in inside] == []


def test_each_public_function_says_what_it_returns_and_who_may_call_it() -> None:
    silent = [
        name
        for name, text, comment in prototypes()
        if "Thread:" not in comment or ("Returns:" not in comment and not text.startswith("void "))
    ]
    assert len(prototypes()) > 50
    assert silent == []


def test_each_public_function_is_defined_in_the_implementation() -> None:
    body = HEADER[len(API) :]
    defined = set(re.findall(r"^TL_API [^;{]*?(tl_\w+)\([^;{]*\)\s*\{", body, re.MULTILINE))
    assert defined == {name for name, _, _ in prototypes()}


def test_sections_are_a_table_of_contents() -> None:
    sections = re.findall(r"^// >>(.*)$", HEADER, re.MULTILINE)
    assert len(sections) > 10
    assert len(sections) == len(set(sections))
    assert [name for name in sections if not re.fullmatch(r"[a-z][a-z-]*", name)] == []


def test_banner_lists_each_macro_that_users_may_define() -> None:
    tested = re.findall(
        r"^\s*#\s*ifndef (TL_[A-Z]\w+)|defined\((TL_[A-Z]\w+)\)", HEADER, re.MULTILINE
    )
    options = {name for pair in tested for name in pair if name}
    assert sorted(name for name in options | set(SWITCHES) if name not in BANNER) == []


def test_lines_are_short_enough_to_read() -> None:
    lines = HEADER.splitlines()
    assert [n for n, line in enumerate(lines, 1) if len(line) > 100 or "\t" in line] == []


def test_every_macro_has_the_librarys_prefix() -> None:
    macros = set(re.findall(r"^\s*#\s*define (\w+)", HEADER, re.MULTILINE))
    assert sorted(name for name in macros if not name.startswith(("TL_", "TLOOP_"))) == [
        "_GNU_SOURCE"
    ]


@pytest.mark.parametrize("compiler", C_COMPILERS)
def test_programs_of_the_documentation_compile(tmp_path: Path, compiler: str) -> None:
    for text in programs().values():
        build(tmp_path, compiler, "-std=c11", main_c=text)


def test_readme_has_a_complete_program() -> None:
    assert "README 1" in programs()


@pytest.mark.parametrize("compiler", C_COMPILERS)
def test_two_translation_units_link(tmp_path: Path, compiler: str) -> None:
    program = build(tmp_path, compiler, "-std=c11", tl_c=IMPLEMENTATION, main_c=PRINTS_VERSION)
    assert f'#define TL_VERSION "{run(program).strip()}"' in HEADER


@pytest.mark.parametrize("compiler", CXX_COMPILERS)
def test_declarations_are_cxx17(tmp_path: Path, compiler: str) -> None:
    implementation = tmp_path / "tl.c"
    implementation.write_text(IMPLEMENTATION)
    source, parts = tmp_path / "main.cc", [tmp_path / "tl.o", tmp_path / "main.o"]
    source.write_text(PRINTS_VERSION)
    run("cc", "-c", f"-I{ROOT}", implementation, "-o", parts[0])
    run(compiler, "-std=c++17", *CXX_STRICT, "-c", source, "-o", parts[1])
    run(compiler, *parts, "-o", tmp_path / "program")
    assert run(tmp_path / "program").strip()


@pytest.mark.parametrize("compiler", C_COMPILERS)
@pytest.mark.parametrize("switch", SWITCHES)
def test_each_switch_compiles(tmp_path: Path, compiler: str, switch: str) -> None:
    sources = {"tl_c": IMPLEMENTATION, "main_c": PRINTS_VERSION}
    assert run(build(tmp_path, compiler, "-std=c11", f"-D{switch}", **sources))


@pytest.mark.parametrize("compiler", C_COMPILERS)
def test_all_functions_can_be_static(tmp_path: Path, compiler: str) -> None:
    text = f"#define TL_STATIC\n{IMPLEMENTATION}{PRINTS_VERSION}"
    program = build(tmp_path, compiler, "-std=c11", "-Wno-unused-function", main_c=text)
    assert run(program)


def test_library_exports_its_prefix_only_and_cannot_print_or_abort(tmp_path: Path) -> None:
    source, built = tmp_path / "tl.c", tmp_path / "tl.o"
    source.write_text(IMPLEMENTATION)
    run("cc", "-O2", "-U_FORTIFY_SOURCE", f"-I{ROOT}", "-c", source, "-o", built)
    symbols = [line.split()[-2:] for line in run("nm", "-g", built).splitlines()]
    exported = {name for kind, name in symbols if kind != "U"}
    imported = {name for kind, name in symbols if kind == "U"}
    assert exported == {name for name, _, _ in prototypes()}
    assert imported & {"abort", "exit", "_exit", "printf", "fprintf", "puts", "perror"} == set()
    assert "__assert_fail" not in imported
