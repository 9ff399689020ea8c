#!/usr/bin/env bash
# Everything there is to know about the CUDA program on this machine's GPU, in one command and at most 19
# minutes: what is missing here, build, tests, every launcher beside the card's own limits, training steps and
# their dense twins, sampling, the PyTorch peer, compute-sanitizer. Needs no network.
#   dev/bench/gpu.sh                 QUICK=1 dev/bench/gpu.sh: at most ten, no fp32, peer or sanitizer
#   dev/bench/gpu.sh test bench      these stages only: build test bench ranks bench32 sample peer sanitize, and what
#                                    is not among these minutes: peer_chess programs
#   dev/bench/gpu.sh --rehearse      all of it on the CPU with the emulated programs, so that no typing error is
#                                    left for the card (--rehearse=short: what takes seconds, nothing is built)
# What it prints is in RESULTS/<card>.md line by line, and every row of the tables in <card>.jsonl beside it when
# its stage ends, so that what has been measured is kept whatever happens later. RESULTS is dev/bench/results
# unless set. A part that cannot run here says `skipped: why`; one that fails or runs out of time is named, the
# others still run, and the exit status is 1.
# Also read from the environment: JOBS (of make), PYTHON, COMMIT (where there is no git to ask), B (the build folder).
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
quick=${QUICK:-0} jobs=${JOBS:-$(nproc)} results=${RESULTS:-} b=${B:-build} rehearse=
if [[ ${1:-} == --rehearse || ${1:-} == --rehearse=short ]]; then
    rehearse=${1#--rehearse} rehearse=${rehearse:-=full}
    shift
fi
stages=("$@")
[[ $quick == 0 ]] && minutes=19 || minutes=10
[[ $rehearse == =full ]] && minutes=60 # two cores instead of a GPU
deadline=$((SECONDS + 60 * minutes - 20)) failed=()
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch/bin"
PATH=$scratch/bin:$PATH:/usr/local/cuda/bin # first what stands for a toolkit in a rehearsal, last one that was forgotten

say() { printf '%s\n' "$*" | tee -a "$report"; }
have() { command -v "$1" > /dev/null; }
wanted() { # is this stage among those asked for?
    [[ ${#stages[@]} -eq 0 || " ${stages[*]} " == *" $1 "* ]]
}
skip() { # NAME WHY
    printf '\n## %s\n\nskipped: %s\n' "$1" "$2" | tee -a "$report"
}

# stage NAME SECONDS COMMAND..: the command's output in a block of its own, then how long it took. Of SECONDS it
# gets what the whole run has left. The rows that it wrote to $rows are kept when it ends.
stage() {
    local name=$1 limit=$2 begin=$SECONDS left=$((deadline - SECONDS)) status last
    shift 2
    [[ $rehearse == =full ]] && limit=$((limit * 30))
    ((left < limit)) && limit=$left
    if ((limit < 5)); then
        skip "$name" "no time was left for it"
        return
    fi
    printf '\n## %s\n\n```\n' "$name" | tee -a "$report"
    timeout -k 5 "$limit" "$@" < /dev/null 2>&1 | tr '\r' '\n' | tee -a "$report"
    status=${PIPESTATUS[0]}
    last=$(tail -n 1 "$report")
    printf '```\n\n' | tee -a "$report"
    if [[ -s $rows ]]; then cat "$rows" >> "${report%.md}.jsonl"; fi
    rm -f "$rows"
    if ((status == 0)) && [[ $last == skipped:* ]]; then
        say "$name: $last"
    elif ((status == 0)); then
        say "$name: $((SECONDS - begin)) s"
    else
        failed+=("$name")
        ((status == 124 || status == 137)) && status="out of time"
        say "$name: FAILED ($status) after $((SECONDS - begin)) s"
    fi
}

# ---------------------------------------------------------------------------------------------------------
# The stages' commands

# The programs, the tests and the benchmark, in both precisions; only what make has to say of errors.
build() {
    make -s -j "$jobs" B="$b" GPU_ARCH="$arch" all "$b"/{make_chess,sample_cpu,test_programs,test_interp} \
        "$b"/{bench_gpu,train_moex,sample,bsp_gpu}{,_fp32} "$b"/gpu/test_{kernels,cuda,sample,units}{,_fp32} || return 1
    echo "kernels by ptxas, sm_$arch:"
    dev/bench/ptxas_table.sh "$b/train_moex.ptxas" "sm_${arch/#90/90a}"
    test/test_ptxas.sh "$b"/{train_moex,sample}.ptxas
}

# Sampling from preset chess as initialised, the most probable token always: its speed does not depend on what
# it has learned, but for the units that fire, here about half of them. A text ends where it begins another game.
sampling() {
    local run=$scratch/sampling lines white black
    mkdir -p "$run"
    if ! { "$b/make_chess" --games 200 --row 1024 --out "$run/data" &&
        "$b/train_moex" --init chess $model_sizes --train "$run/data/train_*.bin" --out "$run/model" --steps 1 \
            --batch 1 --total-tokens 1023 --sample-every 0; } > "$run/log" 2>&1; then
        cat "$run/log"
        return 1
    fi
    for lines in 1 8 64; do
        for white in {a..h}; do
            for black in {a..h}; do echo ";1.${white}4 ${black}5 2."; done
        done | head -n "$lines" > "$run/prompts"
        if ! "$b/sample" --ckpt "$run/model" --prompts "$run/prompts" --tokens "$sample_tokens" --temperature 0 \
            > "$run/text" 2> "$run/log"; then
            cat "$run/log"
            return 1
        fi
        printf 'batch %2d   %s\n' "$lines" "$(tail -n 1 "$run/log")"
    done
}

# peer MODEL LAYERS HEADS CHANNELS POSITIONS ROWS VOCABULARY UNITS: MoE-X or dense, at the sizes of a preset. The
# vocabulary is a multiple of 64, which is the faster way for torch.
peer() {
    local flags=(--ffn "$1" --act relu --layers "$2" --heads "$3" --embd "$4" --seq "$5" --batch "$6" --vocab "$7" --d-expert "$8")
    if [[ -n $rehearse ]]; then
        "$python" dev/bench/peer_torch.py --ffn "$1" --layers 2 --embd 32 --heads 2 --seq 32 --batch 2 --vocab 64 \
            --d-expert 32 --steps 2 --experts-by loop
    else
        "$python" dev/bench/peer_torch.py --device cuda --dtype bf16 --compile --experts-by grouped --steps 20 "${flags[@]}"
    fi
}
export -f build sampling peer

# ---------------------------------------------------------------------------------------------------------
# A rehearsal: the same commands, in a build folder whose programs are the emulated ones, with tools that stand
# for the driver's and the toolkit's.

model_sizes='' sample_tokens=1000 bench_sizes=()
if [[ -n $rehearse ]]; then
    results=${results:-$scratch/results}
    model_sizes='--layers 1 --heads 1 --embd 32 --d-expert 32 --experts 4' sample_tokens=6 bench_sizes=(--tiny)
    emulated=("$b"/{train_moex,sample,bsp_gpu,bench_gpu}{,_fp32}_emu "$b"/test_{kernels,cuda,sample,units}{,_fp32}_emu)
    if [[ $rehearse == =full ]]; then
        make -s -j "$jobs" B="$b" all "${emulated[@]}" "$b/test_programs" "$b/test_interp" || exit 1
    fi
    mkdir -p "$scratch/build/gpu"
    for program in "$b"/*; do [[ -f $program ]] && ln -sf "$(realpath "$program")" "$scratch/build/"; done
    for program in "${emulated[@]}"; do
        name=$(basename "${program%_emu}")
        [[ $name == test_* ]] && name=gpu/$name
        ln -sf "$(realpath "$program")" "$scratch/build/$name"
    done
    b=$scratch/build
    cat > "$scratch/bin/nvidia-smi" << 'END'
#!/usr/bin/env bash
case "$*" in
*query-gpu=name*) printf 'Rehearsal\nRehearsal\n' ;;
*compute_cap*) echo 9.0 ;;
*) echo "0.0, 0 MiB, 0 MHz, 0 MHz, 0 W" ;;
esac
END
    # Runs the program, and reports on it as the tools do when a kernel of a library puzzles them.
    cat > "$scratch/bin/compute-sanitizer" << 'END'
#!/usr/bin/env bash
while [[ $1 == --* ]]; do
    case $1 in --tool) tool=$2 ;; esac
    shift 2
done
echo "========= COMPUTE-SANITIZER"
"$@"
status=$?
if [[ $tool == initcheck ]]; then
    echo "========= Uninitialized __global__ memory read of size 4 bytes"
    echo "=========     at nvjet_hsh_128x256_64x4_1x2_h_bz_TNT+0x1a40"
    echo "========="
fi
echo "========= ERROR SUMMARY: 0 errors"
exit $status
END
    chmod +x "$scratch"/bin/*
    export EMU_DEVICES=2
    if [[ $rehearse == =short ]]; then export MOEX_TESTS=test_units; fi
fi
results=${results:-dev/bench/results}
export b jobs scratch rehearse model_sizes sample_tokens

# ---------------------------------------------------------------------------------------------------------
# The probe: what is here, in five seconds. Everything below goes on without what is not.

names=$(nvidia-smi --query-gpu=name --format=csv,noheader 2> /dev/null) card=${names%%$'\n'*} cards=$(grep -c . <<< "$names")
if [[ -z $card ]]; then
    report=$scratch/report.md arch=90
else
    arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | grep -E '^[0-9.]+$' | head -n 1 | tr -d .)
    arch=${arch:-90}
    mkdir -p "$results" || exit 1
    report=$results/$(tr -cs 'A-Za-z0-9\n' '-' <<< "$card" | tr '[:upper:]' '[:lower:]').md
    : > "$report"
    rm -f "${report%.md}.jsonl"
fi
rows=$scratch/rows.jsonl
export arch
commit=${COMMIT:-$(git rev-parse --short HEAD 2> /dev/null || echo unknown)}
[[ -n $(git status --porcelain 2> /dev/null) ]] && commit+=", with changes"

say "# ${card:-No GPU}"
say ""
say "$(date -u '+%Y-%m-%d %H:%M UTC'), commit $commit, \`$([[ $quick == 0 ]] || echo 'QUICK=1 ')dev/bench/gpu.sh${rehearse:+ --rehearse$rehearse}${stages[*]:+ ${stages[*]}}\`."
if [[ -z $card ]]; then
    say "No GPU was found (nvidia-smi lists none): nothing is measured and no results are written."
    say "What can be done without one: build for an H100, and count bytes and FLOPs."
    failed+=("finding a GPU")
else
    say "Driver, memory, highest clocks of multiprocessors and memory, power limit: $(
        nvidia-smi --query-gpu=driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit --format=csv,noheader | head -n 1)."
fi

python=
for candidate in ${PYTHON:-python3 /usr/bin/python3}; do
    see=$([[ -n $rehearse ]] && echo 'import torch' || echo 'import torch; assert torch.cuda.is_available()')
    timeout 20 "$candidate" -c "$see" 2> /dev/null && python=$candidate && break
done
export python
can_build=1 link='cuBLASLt not tried'
have make && have "${CXX:-g++}" && have nvcc || can_build=0

# Does a program that uses cuBLASLt link and run? Says so; otherwise why not.
try_link() {
    local said
    said=$(timeout 30 nvcc "$scratch/probe.cu" -lcublasLt -o "$scratch/probe" 2>&1) || {
        echo "cublasLt does not link: $(grep -v '^$' <<< "$said" | tail -n 1)"
        return 1
    }
    timeout 10 "$scratch/probe" 2>&1
}
if have nvcc; then
    printf '#include <cublasLt.h>\n#include <cstdio>\nint main() { printf("cuBLASLt %%zu", cublasLtGetVersion()); }\n' > "$scratch/probe.cu"
    if ! link=$(try_link); then
        # A library beside the toolkit, or the one that came with torch, whose name ends in a version.
        mkdir "$scratch/lib"
        wheels=$([[ -n $python ]] && "$python" -c 'import nvidia; print(*nvidia.__path__)' 2> /dev/null)
        library=$(find /usr/local/cuda*/ $wheels -name 'libcublasLt.so*' 2> /dev/null | head -n 1)
        if [[ -n $library ]]; then
            ln -s "$library" "$scratch/lib/libcublasLt.so"
            export LIBRARY_PATH=$scratch/lib${LIBRARY_PATH:+:$LIBRARY_PATH} CPATH=$(dirname "$library")/../include${CPATH:+:$CPATH}
            export LD_LIBRARY_PATH=$(dirname "$library")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
            link=$(try_link) && link+=" by $library" || can_build=0
        else
            can_build=0
        fi
    fi
fi
[[ -n $rehearse ]] && can_build=1
release=$(nvcc --version 2> /dev/null | grep -o 'release [0-9.]*')
found() { have "$1" && echo "$1" || echo "no $1"; }
say "$(nproc) CPU cores; $(found make), $(found "${CXX:-g++}"), nvcc ${release:-not found}, sm_$arch; $link; $(found compute-sanitizer); $([[ -n $python ]] && "$python" -c 'import torch; print("torch", torch.__version__)' 2> /dev/null || echo 'no torch that sees the GPU')."

# ---------------------------------------------------------------------------------------------------------
# The stages, each with its limit in seconds: of those that run without being asked for, 1,120 in all. On an
# H200 with 16 cores the tests took 183 seconds, added up, the launchers 94; a PyTorch peer needed more than 55 to
# compile, and of compute-sanitizer's eight runs not all ended within 100.

built=1
if [[ $can_build == 0 ]]; then
    skip "Build" "make, a C++ compiler, nvcc and a cuBLASLt that links are needed: see above"
    [[ -x $b/bench_gpu ]] || built=0
elif ! wanted build; then
    skip "Build" "not asked for: what is in $b is run"
    [[ -x $b/bench_gpu ]] || built=0
elif [[ -n $rehearse ]]; then
    skip "Build" "a rehearsal runs what has been built for the CPU"
else
    stage "Build" 200 bash -c build
    [[ -x $b/bench_gpu ]] || built=0
fi
if [[ $built == 0 ]]; then
    skip "Everything else" "nothing has been built"
elif [[ -z $card ]]; then
    stage "Counts" 30 "$b/bench_gpu" --count
else
    [[ $quick == 0 ]] && repeats=(--steps 12) || repeats=(--steps 8)
    wanted test && stage "Tests on the GPU" 220 test/on_gpu.sh "$b"
    wanted bench && stage "Launchers and steps, bf16" 120 "$b/bench_gpu" "${bench_sizes[@]}" "${repeats[@]}" --json "$rows"
    if wanted ranks && ((cards > 1)); then
        stage "What $cards GPUs exchange" 25 "$b/bench_gpu" --gpus "$cards" "${bench_sizes[@]}" "${repeats[@]}" --json "$rows"
    elif wanted ranks; then
        skip "What several GPUs exchange" "one GPU is here"
    fi
    if [[ $quick == 0 || ${#stages[@]} -gt 0 ]]; then
        wanted bench32 && [[ $rehearse != =short ]] && stage "Launchers and steps, fp32, preset chess" 40 \
            "$b/bench_gpu_fp32" --preset chess "${bench_sizes[@]}" --steps 4 --json "$rows"
        wanted sample && stage "Sampling, preset chess" 25 bash -c sampling
        if [[ -n $python && $rehearse != =short ]]; then
            wanted peer && for ffn in moe dense; do
                stage "PyTorch peer, $ffn, preset small" 120 bash -c "peer $ffn 12 12 768 1024 8 50304 3072"
            done
            [[ " ${stages[*]} " == *" peer_chess "* ]] && for ffn in moe dense; do
                stage "PyTorch peer, $ffn, preset chess" 120 bash -c "peer $ffn 8 8 512 1023 10 32 2048"
            done
        elif wanted peer; then
            skip "PyTorch peer" "$([[ -n $python ]] && echo "a short rehearsal" || echo "no python3 here has a torch that sees the GPU (PYTHON names another)")"
        fi
        [[ " ${stages[*]} " == *" programs "* ]] && stage "Programs on the GPU" 300 test/on_gpu.sh "$b" programs
        wanted sanitize && stage "compute-sanitizer" 250 test/test_sanitizer.sh "$b"
    fi
fi

say ""
verdict="Every stage that could run passed."
((${#failed[@]})) && verdict="FAILED:$(printf ' %s;' "${failed[@]}")"
say "$SECONDS s in all. $verdict"
if [[ -n $card ]]; then echo "written to $report"; fi
[[ ${#failed[@]} -eq 0 ]]
