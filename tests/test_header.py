"""The headers as source files: their documentation, their sections, and how compilers take them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEADER = (ROOT / "tloop.h").read_text()
TLS_HEADER = (ROOT / "tloop_tls.h").read_text()
each_header = pytest.mark.parametrize(
    "header", [HEADER, TLS_HEADER], ids=["tloop.h", "tloop_tls.h"]
)

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


def banner_of(header: str) -> str:
    return header[: header.index("*/")]


def api_of(header: str) -> str:
    """All that stands before the implementation."""
    return re.split(r"#endif /\* TLOOP_(?:TLS_)?H \*/", header)[0]


def prototypes(header: str = HEADER) -> list[tuple[str, str, str]]:
    """Name, text and preceding comment of each public function."""
    api = api_of(header)
    found = [(match["text"], match["comment"] or "") for match in PROTOTYPE.finditer(api)]
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
    banner = banner_of(HEADER).split("A COMPLETE PROGRAM", 1)[1].split("\n", 1)[1]
    lines = re.split(r"\n   (?=\S)", banner, maxsplit=1)[0]
    readme = re.findall(r"```c\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    complete = [block for block in readme if "int main(" in block]
    return {"banner": lines} | {f"README {n}": block for n, block in enumerate(complete, 1)}


@each_header
def test_each_public_function_is_in_a_region(header: str) -> None:
    marked = re.compile(r"/\* @api begin \w+ \*/(.*?)/\* @api end \*/", re.DOTALL)
    inside = "".join(marked.findall(api_of(header)))
    assert [name for name, text, _ in prototypes(header) if text not in inside] == []


@each_header
def test_each_public_function_says_what_it_returns_and_who_may_call_it(header: str) -> None:
    silent = [
        name
        for name, text, comment in prototypes(header)
        if "Thread:" not in comment or ("Returns:" not in comment and not text.startswith("void "))
    ]
    assert len(prototypes(header)) > 15
    assert silent == []


@each_header
def test_each_public_function_is_defined_in_the_implementation(header: str) -> None:
    body = header[len(api_of(header)) :]
    defined = set(re.findall(r"^TL_API [^;{]*?(tl_\w+)\([^;{]*\)\s*\{", body, re.MULTILINE))
    assert defined == {name for name, _, _ in prototypes(header)}


@each_header
def test_sections_are_a_table_of_contents(header: str) -> None:
    sections = re.findall(r"^// >>(.*)$", header, re.MULTILINE)
    assert len(sections) > 10
    assert len(sections) == len(set(sections))
    assert [name for name in sections if not re.fullmatch(r"[a-z][a-z-]*", name)] == []


def test_banner_lists_each_macro_that_users_may_define() -> None:
    tested = re.findall(
        r"^\s*#\s*ifndef (TL_[A-Z]\w+)|defined\((TL_[A-Z]\w+)\)", HEADER, re.MULTILINE
    )
    options = {name for pair in tested for name in pair if name}
    banner = banner_of(HEADER)
    assert sorted(name for name in options | set(SWITCHES) if name not in banner) == []


@each_header
def test_lines_are_short_enough_to_read(header: str) -> None:
    lines = header.splitlines()
    assert [n for n, line in enumerate(lines, 1) if len(line) > 100 or "\t" in line] == []


@each_header
def test_every_macro_has_the_librarys_prefix(header: str) -> None:
    macros = set(re.findall(r"^\s*#\s*define (\w+)", header, re.MULTILINE))
    foreign = {name for name in macros if not name.startswith(("TL_", "TLOOP_"))}
    assert foreign <= {"_GNU_SOURCE"}


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


@pytest.mark.parametrize("compiler", CXX_COMPILERS)
def test_declarations_of_tls_are_cxx17(tmp_path: Path, compiler: str) -> None:
    """They need no mbedTLS: only the implementation does."""
    source = tmp_path / "main.cc"
    source.write_text(
        '#include "tloop_tls.h"\nint main() { tl_tls_desc desc = {}; return desc.role; }\n'
    )
    run(compiler, "-std=c++17", *CXX_STRICT, "-c", source, "-o", tmp_path / "main.o")


def test_implementations_are_compiled_together(tmp_path: Path) -> None:
    source = tmp_path / "tl.c"
    source.write_text('#define TLOOP_IMPLEMENTATION\n#include "tloop.h"\n#include "tloop_tls.h"\n')
    result = subprocess.run(
        ["cc", f"-I{ROOT}", "-fsyntax-only", source], capture_output=True, text=True, check=False
    )
    assert "include it instead of tloop.h" in result.stderr


# Each stands in a false <mbedtls/version.h>, in front of which nothing else of mbedTLS is read.
UNFIT = {
    "#define MBEDTLS_VERSION_NUMBER 0x021C0300": "needs mbedTLS 3.6.6 or later",
    "#define MBEDTLS_VERSION_NUMBER 0x03060500": "needs mbedTLS 3.6.6 or later",
    "#define MBEDTLS_VERSION_NUMBER 0x04000000\n#define MBEDTLS_VERSION_MAJOR 4": "mbedTLS 4.1",
    "#define MBEDTLS_VERSION_NUMBER 0x03060600": "MBEDTLS_THREADING_C",
}


@pytest.mark.parametrize(
    ("version", "reason"), UNFIT.items(), ids=["2.28", "3.6.5", "4.0", "alone"]
)
def test_an_unfit_mbedtls_is_refused(tmp_path: Path, version: str, reason: str) -> None:
    names = "version error platform platform_util ssl ssl_cache ssl_ticket x509_crl x509_crt"
    (tmp_path / "mbedtls").mkdir()
    (tmp_path / "psa").mkdir()
    for name in names.split():
        (tmp_path / "mbedtls" / f"{name}.h").write_text("")
    (tmp_path / "psa" / "crypto.h").write_text("")
    (tmp_path / "mbedtls" / "version.h").write_text(version + "\n")
    source = tmp_path / "tl.c"
    source.write_text('#define TLOOP_IMPLEMENTATION\n#include "tloop_tls.h"\n')
    result = subprocess.run(
        ["cc", f"-I{ROOT}", f"-I{tmp_path}", "-fsyntax-only", source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert reason in result.stderr
