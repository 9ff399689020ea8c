#!/usr/bin/env bash
# The GPU benchmark (the program given) runs, at tiny sizes: every launcher of a step is counted in roofline.h and
# the other way round, either kind of epilogue and the experts by hand are timed, and every figure it prints is a number. So it does as two
# processes that exchange, at three numbers of NCCL's channels, with a row of JSON for each figure.
output=$("$1" --tiny --steps 3 2>&1)
if [[ $? -eq 0 && $(wc -l <<< "$output") -gt 100 ]] && ! grep -qwiE 'nan|inf' <<< "$output" &&
    grep -q 'MoE-X, library *4' <<< "$output" && grep -q 'dense twin, own *1' <<< "$output" &&
    grep -q 'MoE-X, hand *4' <<< "$output" && grep -q 'dense twin, hand *1' <<< "$output" &&
    grep -q 'experts_backward dW_enc' <<< "$output" &&
    count=$("$1" --count --preset small 2>&1) && grep -q 'MoE-X is expected to take 1' <<< "$count" &&
    ! grep -qwiE 'nan|inf' <<< "$count" &&
    rows=$(mktemp) && ranks=$(EMU_DEVICES=2 EMU_THREADS=1 "$1" --tiny --gpus 2 --steps 2 --json "$rows" 2>&1) &&
    [[ $(grep -cE '^  tiny +(reduce|gather) +[0-9.]+ [KM]iB +[0-9.]+ +[0-9.]+ +[0-9.]+$' <<< "$ranks") -eq 6 ]] &&
    [[ $(grep -cE 'NCHANNELS=(8|16|32): it takes [0-9]' <<< "$ranks") -eq 3 ]] &&
    [[ $(grep -cE '"channels":(8|16|32),' "$rows") -eq 9 ]] && ! "$1" --tiny --gpus 2 --nodes 2 2> /dev/null; then
    rm "$rows"
    echo "1 passed, 0 failed"
else
    printf '%s\n' "$output" "${ranks:-}"
    echo "0 passed, 1 failed"
    exit 1
fi
