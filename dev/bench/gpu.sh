#!/usr/bin/env bash
# Everything there is to know about the CUDA program on this machine's GPU, in one command and under nine
# minutes: build, tests, every kernel beside the card's own limits, training steps and their dense twins,
# sampling, and the PyTorch peer. Needs no network.
#   dev/bench/gpu.sh            QUICK=1 dev/bench/gpu.sh: three minutes, fewer repetitions, no fp32, no peer
# What it prints is also written to RESULTS/<card>.md, and every row of the tables to <card>.jsonl beside it, if there
# is a card. RESULTS is dev/bench/results unless set.
# A stage that fails or runs out of time is named, the others still run, and the exit status is 1.
# Also read from the environment: JOBS (of make), PYTHON, COMMIT (where there is no git to ask), B (the build folder).
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
quick=${QUICK:-0} jobs=${JOBS:-$(nproc)} results=${RESULTS:-dev/bench/results} b=${B:-build}
[[ $quick == 0 ]] && minutes=9 || minutes=3
deadline=$((SECONDS + 60 * minutes - 20)) failed=()
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
report=$scratch/report.md

say() { printf '%s\n' "$*" | tee -a "$report"; }

# stage NAME SECONDS COMMAND..: the command's output in a block of its own, then how long it took. Of SECONDS it
# gets what the whole run has left.
stage() {
    local name=$1 limit=$2 begin=$SECONDS left=$((deadline - SECONDS)) status
    shift 2
    ((left < limit)) && limit=$left
    printf '\n## %s\n\n```\n' "$name" | tee -a "$report"
    if ((limit < 5)); then
        status=124
    else
        timeout -k 5 "$limit" "$@" < /dev/null 2>&1 | tr '\r' '\n' | tee -a "$report"
        status=${PIPESTATUS[0]}
    fi
    printf '```\n\n' | tee -a "$report"
    if ((status == 0)); then
        say "$name: $((SECONDS - begin)) s"
    else
        failed+=("$name")
        ((status == 124 || status == 137)) && status="out of time"
        say "$name: FAILED ($status) after $((SECONDS - begin)) s"
    fi
}

make_all() { # the programs and the benchmark, in both precisions; only what make has to say of errors
    make -s -j "$jobs" B="$b" GPU_ARCH="$arch" all "$b/bench_gpu" &&
        make -s -j "$jobs" B="$b" GPU_ARCH="$arch" PRECISION=FP32 all "$b/bench_gpu_fp32"
}

# Sampling from preset chess as initialised, the most probable token always: its speed does not depend on what
# it has learned, but for the units that fire, here about half of them. A text ends where it begins another game.
sampling() {
    local run=$scratch/sampling lines
    mkdir -p "$run"
    if ! { "$b/make_chess" --games 200 --row 1024 --out "$run/data" &&
        "$b/train_moex" --init chess --train "$run/data/train_*.bin" --out "$run/model" --steps 1 --batch 1 \
            --total-tokens 1023 --sample-every 0; } > "$run/log" 2>&1; then
        cat "$run/log"
        return 1
    fi
    for lines in 1 8 64; do
        for white in {a..h}; do
            for black in {a..h}; do echo ";1.${white}4 ${black}5 2."; done
        done | head -n "$lines" > "$run/prompts"
        if ! "$b/sample" --ckpt "$run/model" --prompts "$run/prompts" --tokens 1000 --temperature 0 \
            > "$run/text" 2> "$run/log"; then
            cat "$run/log"
            return 1
        fi
        printf 'batch %2d   %s\n' "$lines" "$(tail -n 1 "$run/log")"
    done
}

# peer MODEL LAYERS HEADS CHANNELS POSITIONS ROWS VOCABULARY UNITS: MoE-X or dense, at the sizes of a preset.
peer() {
    "$python" dev/bench/peer_torch.py --device cuda --dtype bf16 --compile --ffn "$1" --act relu --layers "$2" \
        --heads "$3" --embd "$4" --seq "$5" --batch "$6" --vocab "$7" --d-expert "$8" --steps 20
}
export -f make_all sampling peer
export b jobs scratch

# ---------------------------------------------------------------------------------------------------------

card=$(nvidia-smi --query-gpu=name --format=csv,noheader 2> /dev/null | head -n 1)
if [[ -z $card ]]; then
    echo "moex: no GPU was found (nvidia-smi lists none): nothing is measured and no results are written." >&2
    echo "      What can be done without one: build for an H100, and count bytes and FLOPs." >&2
    failed+=("finding a GPU")
    arch=90
else
    arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
fi
export arch
commit=${COMMIT:-$(git rev-parse --short HEAD 2> /dev/null || echo unknown)}
[[ -n $(git status --porcelain 2> /dev/null) ]] && commit+=", with changes"

say "# ${card:-No GPU}"
say ""
say "$(date -u '+%Y-%m-%d %H:%M UTC'), commit $commit, \`$([[ $quick == 0 ]] || echo 'QUICK=1 ')dev/bench/gpu.sh\`."
say "$(nproc) CPU cores, $("${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}" --version 2> /dev/null | grep -o 'release [0-9.]*' || echo 'no nvcc'), sm_$arch."
[[ -n $card ]] && say "Driver, memory, highest clocks of multiprocessors and memory, power limit: $(
    nvidia-smi --query-gpu=driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit --format=csv,noheader | head -n 1)."

stage "Build" 240 bash -c make_all
if [[ -z $card ]]; then
    stage "Counts" 30 "$b/bench_gpu" --count
else
    full=(--repeats 24 --steps 20) short=(--repeats 20 --steps 8)
    [[ $quick == 0 ]] && repeats=("${full[@]}") || repeats=("${short[@]}")
    stage "Tests on the GPU" 180 make -s B="$b" GPU_ARCH="$arch" test-gpu
    stage "Kernels and steps, bf16" 120 "$b/bench_gpu" "${repeats[@]}" --json "$scratch/bf16.jsonl"
    [[ $quick == 0 ]] && stage "Kernels and steps, fp32, preset chess" 60 \
        "$b/bench_gpu_fp32" --preset chess --repeats 20 --steps 4 --json "$scratch/fp32.jsonl"
    stage "Sampling, preset chess" 40 bash -c sampling
    python=
    for candidate in ${PYTHON:-python3 /usr/bin/python3}; do
        "$candidate" -c 'import torch; assert torch.cuda.is_available()' 2> /dev/null && python=$candidate && break
    done
    export python
    if [[ $quick != 0 ]]; then
        say "PyTorch peer: left out (QUICK=1)"
    elif [[ -z $python ]]; then
        say "PyTorch peer: skipped, no python3 here has a torch that sees the GPU (PYTHON names another)"
    else
        # The vocabulary is rounded up to 64 for torch, which is the faster way for it.
        for ffn in moe dense; do
            stage "PyTorch peer, $ffn, preset small" 110 bash -c "peer $ffn 12 12 768 1024 8 50304 3072"
            stage "PyTorch peer, $ffn, preset chess" 110 bash -c "peer $ffn 8 8 512 1023 10 32 2048"
        done
    fi
fi

say ""
verdict="Every stage passed."
((${#failed[@]})) && verdict="FAILED:$(printf ' %s;' "${failed[@]}")"
say "$SECONDS s in all. $verdict"
if [[ -n $card ]]; then
    name=$(tr -cs 'A-Za-z0-9\n' '-' <<< "$card" | tr '[:upper:]' '[:lower:]')
    mkdir -p "$results" && cp "$report" "$results/$name.md" && echo "written to $results/$name.md"
    compgen -G "$scratch/*.jsonl" > "$scratch/rows" && xargs cat < "$scratch/rows" > "$results/$name.jsonl"
fi
[[ ${#failed[@]} -eq 0 ]]
