#!/usr/bin/env bash
# The compiler's flags. The reference refuses to be compiled with -ffast-math or -Ofast, which change what it
# computes, and says why; and what was compiled with other flags is compiled anew.
#   test_flags.sh [CXX]
set -uo pipefail
cd "$(dirname "$0")/.."
passed=0 failed=0
note() { if [[ $1 == 0 ]]; then ((passed++)); else failed=$((failed + 1)) && echo "FAILED: $2"; fi; }
compile() { "${CXX[@]}" -std=c++20 -fsyntax-only "$@" dev/cpu/real.h -x c++ 2>&1; }
CXX=(${1:-${CXX:-g++}} -x c++)

compile -O3 >/dev/null
note $? "-O3 does not compile"
for flag in -ffast-math -Ofast; do
    message=$(compile "$flag")
    [[ $? != 0 && $message == *"under -ffast-math or -Ofast"* ]]
    note $? "$flag is not refused: $message"
done

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
object=$dir/obj/dev/lib/json.o
compiled() { [[ -n $(make -n SAN= B="$dir" "$object" "$@" 2>/dev/null | grep dev/lib/json.cpp) ]]; }
compiled
note $? "nothing is compiled where there is nothing"
mkdir -p "${object%/*}" && touch "$object"
! compiled
note $? "the same flags compile it anew"
compiled CXXFLAGS=-O1
note $? "other flags do not compile it anew"
# Given on make's command line, too, they are the product's; tests and sanitizers have their own.
call() { make -n SAN= B="$dir" "$dir/obj/$1.o" CXXFLAGS="-O3 -march=native" "${@:2}" 2>/dev/null | grep -- "-c $1.cpp"; }
[[ $(call dev/cpu/moe) == *" -O3 "* && $(call test/test_log) == *" -O1 "* ]]
note $? "tests are compiled as the product is: $(call test/test_log)"
[[ $(call dev/lib/json SAN=1) == *" -fsanitize=address,undefined "* ]]
note $? "SAN=1 without sanitizers: $(call dev/lib/json SAN=1)"
echo "$passed passed, $failed failed"
[[ $failed == 0 ]]
