#!/usr/bin/env bash
# The GPU benchmark (the program given) runs, at tiny sizes: every launcher of a step is counted in roofline.h and
# the other way round, either kind of epilogue is timed, and every figure it prints is a number.
output=$("$1" --tiny --steps 3 2>&1)
if [[ $? -eq 0 && $(wc -l <<< "$output") -gt 100 ]] && ! grep -qwiE 'nan|inf' <<< "$output" &&
    grep -q 'MoE-X, library *4' <<< "$output" && grep -q 'dense twin, own *1' <<< "$output" &&
    grep -q 'experts_backward dW_enc' <<< "$output" &&
    count=$("$1" --count --preset small 2>&1) && grep -q 'MoE-X is expected to take 1' <<< "$count" &&
    ! grep -qwiE 'nan|inf' <<< "$count"; then
    echo "1 passed, 0 failed"
else
    echo "$output"
    echo "0 passed, 1 failed"
    exit 1
fi
