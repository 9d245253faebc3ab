#!/bin/sh
# The header as others will compile it: check.sh PROJECT OUTPUT
# Every build must be free of warnings and, where it is a program, must run.
set -eu
root=$1 out=$2
here=$root/tests/c/compile
mkdir -p "$out"
warnings="-Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Werror"
cxx_warnings="-Wall -Wextra -Wshadow -Wconversion -Werror"
passed=0 failed=0

verdict() {  # NAME COMMAND...: the command must succeed
  name=$1
  shift
  if "$@" >"$out/log" 2>&1; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    echo "FAIL $name: $*"
    head -n 5 "$out/log"
  fi
}

program() {  # NAME CC SOURCE-AND-OPTIONS...: builds and runs
  name=$1 cc=$2
  shift 2
  # shellcheck disable=SC2086
  verdict "$cc $name" "$cc" -std=c11 $warnings -I"$root" "$@" -o "$out/program"
  verdict "$cc $name runs" "$out/program"
}

refused() {  # NAME CC OPTIONS...: must not compile
  name=$1 cc=$2
  shift 2
  verdict "$cc refuses $name" sh -c '! "$@"' refused "$cc" -std=c11 -I"$root" "$@" \
    -fsyntax-only "$here/single.c"
}

one_compiler() {  # CC CXX
  for level in -O0 -O1 -O2 -O3; do
    program "two units $level" "$1" "$level" "$here/unit_a.c" "$here/unit_b.c"
  done
  program TL_STATIC "$1" -O1 -DTL_STATIC "$here/single.c"
  for left_out in EPOLL IO_URING POLL DUMMY; do
    program "TL_NO_$left_out" "$1" -O1 "-DTL_NO_$left_out" "$here/single.c"
  done
  program "dummy only" "$1" -O1 -DTL_NO_EPOLL -DTL_NO_POLL "$here/single.c"
  program TL_ASSERT "$1" -O1 -D_GNU_SOURCE=1 -include assert.h '-DTL_ASSERT(x)=assert(x)' "$here/single.c"
  program sizes "$1" -O1 -DTL_ARENA_BYTES=65536 -DTL_CHUNK_BYTES=1024 "$here/single.c"
  program allocator "$1" -O1 "$here/allocator.c"
  refused "an incomplete allocator" "$1" '-DTL_MALLOC(n)=malloc(n)'
  refused "an allocator without malloc" "$1" '-DTL_REALLOC(p,n)=realloc(p,n)' '-DTL_FREE(p)=free(p)'
  refused "no backend at all" "$1" -DTL_NO_EPOLL -DTL_NO_POLL -DTL_NO_DUMMY
  # shellcheck disable=SC2086
  verdict "$2 C++17" "$2" -std=c++17 $cxx_warnings -I"$root" -c "$here/cxx.cc" -o "$out/cxx.o"
  verdict "$1 links C++" "$1" -std=c11 -I"$root" "$here/unit_a.c" "$out/cxx.o" -o "$out/program"
  verdict "$1 with C++ runs" "$out/program"
}

one_compiler gcc g++
if command -v clang >/dev/null; then one_compiler clang clang++; fi
echo "test_compile: $passed passed, $failed failed, 0 skipped"
[ "$failed" = 0 ]
