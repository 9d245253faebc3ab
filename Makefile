# tloop: `make` builds .venv with tloop_py in it, `make demo` shows it, `make test` tests all.

PYTHON ?= python3
CC ?= cc
CFLAGS ?= -O2 -g
VENV ?= .venv
VENVS ?= .venvs
# Which tests, for one interpreter: make test-py PYTEST="-k timers -x"
PYTEST ?=
# How long each fuzzer runs, all at once: make fuzz FUZZ_SECONDS=60
FUZZ_SECONDS ?= 1800
# How to soak: make soak SOAK="--seconds 60 --seed 7"
SOAK ?=

export CC
SHELL := /bin/bash -o pipefail
MAKEFLAGS += --no-print-directory
py := $(VENV)/bin/python
strict := -std=c11 -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Werror

# Tests of the sources, the build and the wheel need to run once, not for each backend and Python.
once := $(wildcard $(patsubst %,tests/test_%.py,header cdef abi_mode packaging examples)) \
  tests/test_bench.py tests/stdlib/test_runner.py tests/soak/test_accounting.py \
  tests/compat/test_compatibility.py
# What virtual time runs, too: nothing but callbacks, tasks and timers.
virtual := $(patsubst %,tests/test_%.py,timers tasks scheduling lifecycle context asyncgens \
  exception_handler)
behaviour := $(filter-out $(once),$(wildcard tests/test_*.py))
# The outer limit is for what no test's own time-out ends: a thread that hangs at the exit.
limit := timeout --foreground --kill-after=10 900
pytest = $(limit) $(py) -m pytest -q $(PYTEST)
stdlib = $(limit) $(py) -m tests.stdlib.run
pip = $(VENV)/bin/pip --quiet --disable-pip-version-check --no-input

c_programs := $(patsubst examples/%.c,build/examples/%,$(wildcard examples/*.c))
c_sources := $(wildcard tloop.h tloop_tls.h \
  $(foreach folder,examples bench tests/c tests/fuzz tests/interop .ci,$(folder)/*.[ch]))
# What the compiler needs for mbedTLS, one word per line; empty when there is none.
tls := build/mbedtls.flags

.PHONY: all demo soak test test-fast test-fast-tls test-fast-rest test-all test-next test-pypy
.PHONY: test-c test-py test-apps test-interop test-stdlib test-once interop fuzz fuzz-short
.PHONY: asan tsan lint lint-cdef lint-python lint-types lint-format lint-c format
.PHONY: bench bench-full bench-matrix bench-report compatibility examples module mbedtls tools clean
.DELETE_ON_ERROR:

all: module

# -- what is built ---------------------------------------------------------------------------------

# Says which Debian package is missing before pip or the compiler fail in their own words.
tools:
	@command -v $(firstword $(CC)) >/dev/null || { \
	  echo "tloop needs a C compiler: apt-get install build-essential" >&2; exit 1; }
	@command -v $(PYTHON) >/dev/null || { \
	  echo "tloop needs Python: apt-get install python3 python3-venv python3-dev" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "tloop needs Python 3.11 or later: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig as s; \
	  sys.exit(not os.path.exists(s.get_path("include") + "/Python.h"))' || { \
	  echo "Python.h of $(PYTHON) is missing: apt-get install python3-dev" >&2; exit 1; }
	@echo '#include <stdlib.h>' | $(CC) -E -xc - >/dev/null 2>&1 || { \
	  echo "$(CC) finds no C library headers: apt-get install libc6-dev" >&2; exit 1; }

# Each stamp is one dependency group of pyproject.toml, installed.
$(VENV)/build.stamp: pyproject.toml | tools
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(pip) install pip==26.3
	@$(pip) install --group build
	@$(py) -c 'import pathlib, sysconfig; \
	  pathlib.Path(sysconfig.get_path("purelib"), "tloop.pth").write_text("$(CURDIR)\n")'
	@touch $@

$(VENV)/%.stamp: pyproject.toml $(VENV)/build.stamp
	@echo "installing the packages for $*"
	@$(pip) install --group $*
	@touch $@

# A good mbedTLS of the system, else the pinned release; without either everything but TLS is built.
$(tls): .ci/mbedtls | tools
	@mkdir -p $(@D)
	@.ci/mbedtls flags >$@ 2>/dev/null || { \
	  echo "building mbedTLS"; \
	  .ci/mbedtls build && .ci/mbedtls flags >$@; \
	} || { echo "going on without TLS; \`make mbedtls\` tries again" >&2; : >$@; }

# Builds the pinned release whatever the system has.
mbedtls: | tools
	@.ci/mbedtls build
	@.ci/mbedtls flags >$(tls)

module: $(VENV)/build.stamp $(tls)
	@$(py) cffi_build.py --inplace

libtloop.so: tloop.h tloop_tls.h $(tls)
	@header=tloop.h; [ ! -s $(tls) ] || header=tloop_tls.h; \
	$(CC) $(strict) $(CFLAGS) -shared -fPIC -pthread -DTLOOP_IMPLEMENTATION -x c $$header \
	  -x none $$(cat $(tls)) -o $@

examples: $(c_programs)

build/examples/%: examples/%.c tloop.h
	@mkdir -p $(@D)
	@$(CC) $(strict) $(CFLAGS) -I. $< -o $@

build/examples/tls_%: examples/tls_%.c tloop.h tloop_tls.h $(tls)
	@mkdir -p $(@D)
	@[ ! -s $(tls) ] || $(CC) $(strict) $(CFLAGS) -I. $< $$(cat $(tls)) -o $@

# -- what it does ----------------------------------------------------------------------------------

demo: module examples $(VENV)/demo.stamp
	@$(py) bench/demo.py

# A peer without a wheel for this machine is left out.
$(VENV)/peers.stamp: pyproject.toml $(VENV)/bench.stamp
	@$(pip) install --only-binary :all: --group peers || echo "going on without some peers"
	@touch $@

bench: module $(VENV)/bench.stamp
	@$(py) bench/run.py
	@$(py) bench/micro.py

# All rows and loops, five rounds, on this interpreter: an hour, or less: make bench-full
# BENCH="--seconds 0.2 --loops tloop,uvloop,asyncio". The files in build/bench are named after it.
BENCH ?=
bench-full: module $(VENV)/peers.stamp
	@$(py) bench/run.py --full $(BENCH)
	@$(py) bench/micro.py --full

# The same on the interpreters of docs/benchmarks.md, each in a Debian of its own, then the page:
# make bench-matrix MATRIX="3.14 pypy"
MATRIX ?= 3.13 3.14 pypy
bench-matrix: $(tls)
	@.ci/bench-matrix $(MATRIX)
	@$(MAKE) bench-report

# Writes docs/benchmarks.md, its plots and the README's table.
bench-report:
	@$(PYTHON) bench/report.py

# -- tests -----------------------------------------------------------------------------------------

test: test-c test-once test-py test-apps test-interop test-stdlib

# In two processes: most tests wait more than they work.
fast_tls := $(filter tests/test_tls% tests/test_start_tls% tests/test_sendfile%,$(behaviour))
test-fast: module $(VENV)/test.stamp
	@$(MAKE) --no-print-directory --output-sync -j2 test-fast-tls test-fast-rest
test-fast-tls: private files := $(fast_tls)
test-fast-rest: private files := $(filter-out $(fast_tls),$(behaviour))
test-fast-tls test-fast-rest:
	@TLOOP_TEST_LOOPS=tloop $(pytest) $(files) -m "not slow"

test-c: $(tls)
	@$(MAKE) -C tests/c check
	@$(MAKE) -C tests/c compile

asan: $(tls)
	@$(MAKE) -C tests/c check

tsan: $(tls)
	@$(MAKE) -C tests/c tsan

test-once: module libtloop.so $(VENV)/test.stamp
	@$(pytest) $(once)

test-py: module $(VENV)/test.stamp
	@$(pytest) $(behaviour)
	@echo "the same on the poll backend"
	@TLOOP_TEST_LOOPS=tloop TLOOP_BACKEND=poll $(pytest) $(behaviour)
	@$(py) -c 'import tloop_py; tloop_py.new_event_loop("io_uring").close()' 2>/dev/null || { \
	    echo "io_uring is not to be had here, so nothing is tested on it"; exit; } && \
	  echo "the same on the io_uring backend, with all that the ring can do" && \
	  TLOOP_TEST_LOOPS=tloop TLOOP_BACKEND=io_uring TLOOP_URING=accept,recv,send $(pytest) $(behaviour)
	@echo "callbacks, tasks and timers in virtual time"
	@TLOOP_TEST_LOOPS=tloop TLOOP_BACKEND=dummy $(pytest) $(virtual) -m "not real and not slow"
	@echo "all in debug mode"
	@TLOOP_TEST_LOOPS=tloop PYTHONASYNCIODEBUG=1 $(pytest) $(behaviour)

interop_programs := peer peer_asan go_peer
# TLS in C with other people's; what is not installed is skipped. `make interop` has what is slow, too.
interop_parts := module $(VENV)/interop.stamp $(interop_programs:%=build/interop/%)
test-interop: $(interop_parts)
	@[ ! -s $(tls) ] || $(pytest) tests/interop -m "not slow"

interop: $(interop_parts)
	@[ ! -s $(tls) ] || $(pytest) tests/interop

build/interop/peer_asan: CFLAGS := -g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all
build/interop/peer build/interop/peer_asan: tests/interop/peer.c tloop.h tloop_tls.h $(tls)
	@mkdir -p $(@D)
	@[ ! -s $(tls) ] || $(CC) $(strict) $(CFLAGS) -I. $< $$(cat $(tls)) -pthread -o $@

build/interop/go_peer: tests/interop/go_peer.go
	@mkdir -p $(@D)
	@if command -v go >/dev/null; then go build -o $@ $<; \
	else echo "without Go's TLS: apt-get install golang-go"; fi

# Half an hour each; what is found goes to build/fuzz (tests/fuzz/Makefile).
fuzz:
	@$(MAKE) -C tests/fuzz run SECONDS=$(FUZZ_SECONDS)

fuzz-short:
	@$(MAKE) -C tests/fuzz replay

test-apps: module $(VENV)/apps.stamp
	@$(pytest) tests/apps

# 77: this interpreter comes without its test package, which the runner says.
test-stdlib: module $(VENV)/test.stamp
	@$(stdlib) || [ $$? -eq 77 ]

# Five minutes of everything at once, if not told otherwise.
soak: module $(VENV)/test.stamp
	@$(py) -m tests.soak $(SOAK)

# Writes docs/compatibility.md. The page in the repository is of CPython 3.13:
# make compatibility PYTHON=python3.13 VENV=.venvs/3.13
compatibility: module $(VENV)/apps.stamp $(VENV)/bench.stamp
	@$(py) -m tests.compat

# The same binding and tests on every CPython that this machine has, but for those `tested` already.
test-all:
	@failed=; \
	while read -r version python; do \
	  echo "== CPython $$version"; \
	  $(MAKE) PYTHON=$$python VENV=$(VENVS)/$$version test-interpreter </dev/null \
	    || failed="$$failed $$version"; \
	done <<< "$$($(PYTHON) .ci/pythons.py $(tested))"; \
	[ -z "$$failed" ] || { echo "failed on CPython$$failed" >&2; exit 1; }

.PHONY: test-interpreter
test-interpreter: module $(VENV)/test.stamp
	@TLOOP_TEST_LOOPS=tloop $(pytest) $(behaviour)
	@$(stdlib) || [ $$? -eq 77 ]

# PyPy 3.11: the one on PATH, else Debian 13's in a root of its own (kept in ~/.cache/tloop).
pypy_packages := pypy3 pypy3-dev pypy3-venv pypy3-lib-testsuite gcc libc6-dev make \
  libmbedtls-dev
test-pypy:
	@if pypy3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  $(MAKE) PYTHON=pypy3 VENV=$(VENVS)/pypy3.11 test-interpreter; \
	else \
	  .ci/debian-root trixie "$(pypy_packages)" \
	    make PYTHON=pypy3 VENV=/opt/tloop-venv test-interpreter; \
	fi

# CPython newer than Debian's stable: those of Debian's unstable, in a root of its own as above.
# Patterns, because versions come and go there. One build of the binding serves them all (abi3);
# without `tls` it counts as fresh in there, too, where no mbedTLS was built.
next_packages := python3 python3.1[45]-dev python3.1[45]-venv libpython3.1[45]-testsuite
next_packages += gcc libc6-dev make
test-next: module
	@.ci/debian-root sid "$(next_packages)" make tls= VENVS=/opt/tloop-venvs test-all

# -- style -----------------------------------------------------------------------------------------

# `make -k lint` goes on after the first complaint.
lint: lint-cdef lint-python lint-types lint-format lint-c

lint-cdef: module
	@$(py) cffi_build.py --check

lint-python: $(VENV)/lint.stamp
	@$(VENV)/bin/ruff check --quiet --output-format concise
	@$(VENV)/bin/ruff format --quiet --check --output-format concise

lint-types: module $(VENV)/lint.stamp
	@$(VENV)/bin/mypy --no-error-summary

lint-format: $(VENV)/lint.stamp
	@$(VENV)/bin/clang-format --dry-run -Werror $(c_sources)

lint-c: $(VENV)/lint.stamp $(tls)
	@$(VENV)/bin/clang-tidy --quiet --warnings-as-errors='*' tloop.h -- \
	  -x c -std=c11 -DTLOOP_IMPLEMENTATION
	@[ ! -s $(tls) ] || $(VENV)/bin/clang-tidy --quiet --warnings-as-errors='*' tloop_tls.h -- \
	  -x c -std=c11 -DTLOOP_IMPLEMENTATION $$(grep '^-[ID]' $(tls))

format: $(VENV)/lint.stamp
	@$(VENV)/bin/ruff check --quiet --fix
	@$(VENV)/bin/ruff format --quiet
	@$(VENV)/bin/clang-format -i $(c_sources)

clean:
	rm -rf build dist libtloop.so tloop_py/_tloop*.so $(VENV) $(VENVS) *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache
