#!/usr/bin/env bash
# The reference refuses to be compiled with -ffast-math or -Ofast, which change what it computes, and says why:
#   test_flags.sh [CXX]
set -uo pipefail
cd "$(dirname "$0")/.."
passed=0 failed=0
note() { if [[ $1 == 0 ]]; then ((passed++)); else ((failed++)) && echo "FAILED: $2"; fi; }
compile() { "${CXX[@]}" -std=c++20 -fsyntax-only "$@" dev/cpu/real.h -x c++ 2>&1; }
CXX=(${1:-${CXX:-g++}} -x c++)

compile -O3 >/dev/null
note $? "-O3 does not compile"
for flag in -ffast-math -Ofast; do
    message=$(compile "$flag")
    [[ $? != 0 && $message == *"under -ffast-math or -Ofast"* ]]
    note $? "$flag is not refused: $message"
done
echo "$passed passed, $failed failed"
[[ $failed == 0 ]]
