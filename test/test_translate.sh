#!/usr/bin/env bash
# What dev/emu's source step (the program given) makes of a .cu that includes another, and what it refuses.
translate=$(realpath "$1") passed=0 failed=0
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1

right() { # WHAT STATUS: of the test before
    if [[ $2 -eq 0 ]]; then passed=$((passed + 1)); else failed=$((failed + 1)) && echo "FAILED $1"; fi
}
has() { # FILE TEXT
    grep -qF -- "$2" "$1"
    right "$1 has '$2'" $?
}
lacks() {
    ! grep -qF -- "$2" "$1"
    right "$1 lacks '$2'" $?
}
refused() { # SOURCE MESSAGE: when user.cu includes a program that has this line
    printf '%s\n' "$1" > program.cu
    local said
    said=$("$translate" user.cu out.cpp 2>&1)
    [[ $? -eq 1 && $said == "moex: ./program.cu:1: $2"* || $said == "moex: program.cu:1: $2"* ]]
    right "refused: $1 (said: $said)" $?
}

cat > program.cu << 'END'
#include "part.cuh"
constexpr int size = 3;
template <class T> T twice(T x) { return kept_template(x); }
static int host(int x) { return gone_host(x); }
inline const char* text() { return "gone }"; }
__device__ int on_device(int x) { return kept_device(x); }
__global__ void kernel(int* out) {
    __shared__ int gone_shared[4];
}
struct Kept { int f() { return kept_member; } };
int Kept::g() { return gone_member; }
int main() { return gone_main; }
END
echo 'int of_the_part() { return 7; }' > part.cuh
printf '#include "program.cu"\nint user() { return kept_user; }\n' > user.cu

"$translate" user.cu user.cpp
right "user.cu is translated" $?
for kept in template device member user; do has user.cpp "kept_$kept"; done
lacks user.cpp gone_
has user.cpp "int host(int x) ;"
has user.cpp "inline __device__ int on_device"
has user.cpp "constexpr int size = 3;"
"$translate" --library program.cu library.cpp
right "program.cu is translated" $?
for all in kept_template kept_device kept_member gone_host gone_member gone_main; do has library.cpp "$all"; done
lacks library.cpp "static int host"
lacks library.cpp "inline const char* text"
has library.cpp "__attribute__((weak)) int main"
lacks user.cpp "return 7" # what a .cuh holds is part of the program that includes it
has library.cpp "return 7"

# make learns what was read, and a line is where it was: the compiler's message on line 2 of user.cu says so.
grep -qx 'user.cpp: .*program.cu.* .*user.cu' user.cpp.d
right "user.cpp.d: $(cat user.cpp.d)" $?
grep -n 'kept_user' user.cpp > place
grep -B 1 'kept_user' user.cpp | grep -qx '#line 2 "user.cu"'
right "lines are counted: $(cat place)" $?

refused 'int counter = 0;' 'a variable of a program that others include'
refused '__device__ float table[4];' 'a variable of a program that others include'
refused '#define LAUNCH kernel<<<1, 1>>>()' 'launches, __shared__ and asm inside a macro'
refused 'void open() {' 'a bracket that is not closed'
for fine in 'inline int counter = 0;' 'const int table[] = {1, 2};' 'extern int counter;' 'struct A { int x = 1; } const a;' \
    'namespace n { constexpr int x = 1; }' 'std::function<void(int)> f(int x = {}) { return {}; }'; do
    printf '%s\n' "$fine" > program.cu
    "$translate" user.cu out.cpp
    right "accepted: $fine" $?
done
echo "$passed passed, $failed failed"
[[ $failed -eq 0 ]]
