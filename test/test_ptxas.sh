#!/usr/bin/env bash
# What nvcc and ptxas said when they compiled the CUDA programs (the logs given, as make keeps them beside a
# binary): no warnings, no registers spilled to memory on any architecture, no wgmma that waits for the one before
# it, and every kernel's block fits a multiprocessor: threads times registers and shared memory, by
# dev/bench/ptxas_table.sh.
# What is said of warnings and spills is a promise for the toolkit below; of another it warns and does not fail.
toolkit=13.0
passed=0 failed=0
[[ $# -gt 0 ]] || { echo "skipped: no CUDA toolkit"; exit 0; }
nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
release=$("$nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p')
pass() { passed=$((passed + 1)); }
fail() {
    failed=$((failed + 1))
    echo "$1"
}
# A fault of the program as this toolkit compiles it, or only worth a line.
complain() { if [[ $release == "$toolkit" ]]; then fail "$1"; else echo "warning: $1 (by nvcc ${release:-of an unknown release}; expected of $toolkit)"; fi; }

for log in "$@"; do
    if ! grep -qi 'warning\|performance loss' "$log"; then pass; else complain "$log: $(grep -i 'warning\|performance loss' "$log")"; fi
    kernels=0
    while read -r name; do
        read -r spills
        kernels=$((kernels + 1))
        if [[ $spills == "0 0" ]]; then pass; else complain "$log: $name spills $spills bytes"; fi
    done < <(sed -n "s/.*Compiling entry function '\(.*\)' for '\(.*\)'.*/\2 \1/p; s/.* \([0-9]*\) bytes spill stores, \([0-9]*\) bytes spill loads.*/\1 \2/p" "$log")
    if [[ $kernels -gt 20 ]]; then pass; else fail "$log: only $kernels kernels"; fi
    for arch in $(sed -n "s/.*Compiling entry function '.*' for '\(sm_[0-9a]*\)'.*/\1/p" "$log" | sort -u); do
        if ! table=$("$(dirname "$0")/../dev/bench/ptxas_table.sh" "$log" "$arch" 2>&1); then
            echo "warning: $log: $table"
            continue
        fi
        while read -r name registers _ _ _ threads occupancy; do
            if [[ ${occupancy%\%} -gt 0 ]]; then pass; else fail "$log, $arch: a block of $name does not fit: $threads threads of $registers registers"; fi
        done < <(tail -n +2 <<< "$table")
    done
done
echo "$passed passed, $failed failed"
[[ $failed -eq 0 ]]
