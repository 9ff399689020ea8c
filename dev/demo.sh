#!/usr/bin/env bash
# make demo: games of chess, a small MoE-X trained on them, what it learned and what its units mean, on a machine
# with g++ and make and nothing else, in six minutes. The first games are played while the rest compiles; then a
# few steps are timed, and as many trained as the time allows.
#   demo.sh FOLDER      of what is built; the environment sets DEMO_DIR DEMO_GAMES DEMO_STEPS DEMO_SEED DEMO_FRESH
# A folder that is there already is left alone unless DEMO_FORCE=1, or a demo that was interrupted left it behind.
set -euo pipefail
b=$1 dir=${DEMO_DIR:-runs/demo} seed=${DEMO_SEED:-1} fresh=${DEMO_FRESH:-2400}
full=9500 steps=${DEMO_STEPS:-} minutes=6
after=2100 # what comes after the training, most of it step 5, takes about as long as so many steps
begun=$dir/.demo_begun # from the first game to the last line

if [[ -e $dir && ! -e $begun && ${DEMO_FORCE:-0} != 1 && -n $(ls -A "$dir") ]]; then
    echo "moex: $dir is there already; DEMO_FORCE=1 makes the demo anew in its place, DEMO_DIR=runs/other elsewhere" >&2
    exit 1
fi
rm -rf "$dir"
mkdir -p "$dir"
touch "$begun"

say() { printf '\n== %s\n' "$*"; }
train() {
    "$b/train_moex_cpu" --init demo --train "$dir/data/train_*.bin" --val "$dir/data/val_*.bin" --seed "$seed" \
        --val-batches 16 --sample-every 0 "$@"
}

# The maker of games first, the rest while it plays.
build=
trap '[[ -z $build ]] || kill "$build" 2> /dev/null || true' EXIT
trap 'exit 130' INT TERM HUP
"$MAKE" --no-print-directory --silent "$b/make_chess"
"$MAKE" --no-print-directory --silent "$b"/{train_moex_cpu,evaluate,sample_cpu,report} > "$dir/build.log" 2>&1 &
build=$!

say "1. Playing ${DEMO_GAMES:=43000} games of chess to learn from, while the rest of the programs is compiled"
"$b/make_chess" --games "$DEMO_GAMES" --row 257 --seed "$seed" --out "$dir/data"
if ! wait "$build"; then
    cat "$dir/build.log" >&2
    exit 1
fi
build=
rm "$dir/build.log"

if [[ -z $steps ]]; then
    train --out "$dir/timing" --steps 60 --val-every 0 --checkpoint-every 0 > /dev/null
    ms=$(sed -n 's/.*"step": *\([0-9]*\),.*"ms": *\([0-9.]*\).*/\1 \2/p' "$dir/timing/log.jsonl" |
        awk '$1 > 20 { print $2 }' | sort -n | awk '{ t[NR] = $1 } END { printf "%.1f\n", t[int((NR + 1) / 2)] }')
    rm -r "$dir/timing"
    steps=$(awk -v ms="$ms" -v left=$((minutes * 60 - SECONDS)) -v full=$full -v after=$after 'BEGIN {
        n = int((1000 * left / ms - after) / 500) * 500
        print (n > full ? full : n < 500 ? 500 : n) }')
    said="a step takes $ms ms here"
    ((steps == full)) || said+=", so that $steps of the README's $full fit into $minutes minutes (DEMO_STEPS=$full for all)"
fi

say "2. Training a MoE-X on them, $steps steps${said:+: $said}"
train --out "$dir" --steps "$steps" --print-every 250 --val-every 1000 --checkpoint-every 2500
say "3. What it learned, on games it has not seen"
"$b/evaluate" --ckpt "$dir" --val "$dir/data/val_*.bin"
say "4. A game it plays by itself"
"$b/sample_cpu" --ckpt "$dir" --tokens 254 --temperature 0.3 --seed "$seed" --board
say "5. What its units mean, on $fresh new games: half to choose a unit's property on, half to try it on"
"$b/make_chess" --games "$fresh" --row 257 --seed $((seed + 1000)) --train-text "$dir/games.txt" --out "$dir/fresh" > /dev/null
"$b/report" --run "$dir" --games "$dir/games.txt"
say "6. Where things are, $((SECONDS / 60))m$((SECONDS % 60))s after the first line"
echo "games       $dir/data, $dir/games.txt"
echo "model       $(ls "$dir"/model_*.safetensors | tail -1)"
echo "log         $dir/log.jsonl"
echo "experts     $b/report --run $dir --games $dir/games.txt --all adds what experts take and a few units tell, in a minute or two"
echo "see inside  $b/sample_cpu --ckpt $dir --prompt ';1.e4 e5 2.' --tokens 3 --trace"
echo "play        open $dir/report.html in a browser: the model runs in it, to play against, look into and change"
rm "$begun"
