#!/usr/bin/env bash
# What nvcc and ptxas said when they compiled the CUDA programs (the files given): no warnings, and of no kernel
# on any architecture are registers spilled to memory.
passed=0 failed=0
[[ $# -gt 0 ]] || { echo "skipped: no CUDA toolkit"; exit 0; }
for log in "$@"; do
    warnings=$(grep -ci 'warning' "$log")
    if [[ $warnings -eq 0 ]]; then passed=$((passed + 1)); else failed=$((failed + 1)); grep -i 'warning' "$log"; fi
    kernels=0
    while read -r name; do
        read -r spills
        kernels=$((kernels + 1))
        if [[ $spills == "0 0" ]]; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "$log: $name spills $spills bytes"; fi
    done < <(sed -n "s/.*Compiling entry function '\(.*\)' for '\(.*\)'.*/\2 \1/p; s/.* \([0-9]*\) bytes spill stores, \([0-9]*\) bytes spill loads.*/\1 \2/p" "$log")
    if [[ $kernels -gt 20 ]]; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "$log: only $kernels kernels"; fi
done
echo "$passed passed, $failed failed"
[[ $failed -eq 0 ]]
