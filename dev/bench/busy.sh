#!/usr/bin/env bash
# What a busy machine costs: the trainer, evaluate and bsp, each alone and beside one and four processes that
# only spin, in turn:  busy.sh [BUILD [ROUNDS]].  Prints medians, and their ratio to the run alone. Wanted on two
# cores: at most 2.2 times the time beside one, 5 times beside four. The competitors are this script's own; run
# it on a machine that has nothing else to do. About three minutes.
set -euo pipefail
build=${1:-build} rounds=${2:-3} loads=(0 1 4)
folder=$(mktemp -d)
competitors=()
stop_competitors() {
    for pid in "${competitors[@]}"; do
        kill "$pid"
        wait "$pid" 2>/dev/null || true
    done
    competitors=()
}
trap 'stop_competitors; rm -rf "$folder"' EXIT
start_competitors() {
    for ((i = 0; i < $1; i++)); do
        bash -c 'while :; do :; done' &
        competitors+=($!)
    done
}
median() { sort -n | awk '{x[NR] = $1} END {print x[int((NR + 1) / 2)]}'; }

"$build/make_chess" --games 1200 --row 257 --val-fraction 0.2 --train-text "$folder/games.txt" --out "$folder/data" >/dev/null
steps() { # 40 steps of the demo's model: the median, ms
    rm -rf "$folder/run"
    "$build/train_moex_cpu" --init demo --train "$folder/data/train_*.bin" --steps 40 --sample-every 0 --out "$folder/run" &>/dev/null
    sed -n 's/.*"ms":\([0-9.]*\).*/\1/p' "$folder/run/log.jsonl" | tail -n +4 | median
}
wall() { # of a command, ms
    local begin
    begin=$(date +%s%N)
    "$@" &>/dev/null
    echo $((($(date +%s%N) - begin) / 1000000))
}
evaluation() { wall "$build/evaluate" --ckpt "$folder/run" --val "$folder/data/val_*.bin"; }
boards() { wall "$build/bsp" --ckpt "$folder/run" --games "$folder/games.txt" --count 100 --layer 3 --json "$folder/bsp.json"; }

printf '%d threads; medians of %d rounds, ms (times as long as alone)\n' "${OMP_NUM_THREADS:-$(nproc)}" "$rounds"
printf '%-28s %10s %18s %18s\n' '' alone 'beside one' 'beside four'
declare -A ms
for what in steps evaluation boards; do
    for ((round = 0; round < rounds; round++)); do
        for load in "${loads[@]}"; do
            start_competitors "$load"
            ms[$what$load]+="$($what)"$'\n'
            stop_competitors
        done
    done
    row=()
    for load in "${loads[@]}"; do row+=("$(printf %s "${ms[$what$load]}" | median)"); done
    awk -v what="$what" -v a="${row[0]}" -v b="${row[1]}" -v c="${row[2]}" \
        'BEGIN {printf "%-28s %10.1f %10.1f (%.2f) %10.1f (%.2f)\n", what, a, b, b / a, c, c / a}'
done
