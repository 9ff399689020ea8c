#!/usr/bin/env bash
# dev/demo.sh with programs that only say how they were called: which folder it takes and which it leaves alone,
# how many steps it trains where a step takes so and so long, and what happens when something fails.
demo=$(realpath "$(dirname "$0")/../dev/demo.sh") passed=0 failed=0
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1
mkdir programs
for name in make_chess train_moex_cpu evaluate sample_cpu report; do
    cat > programs/$name << 'END'
#!/usr/bin/env bash
program=$(basename "$0")
echo "$program $*"
[[ $program != "${FAILS:-}" ]] || exit 1
while [[ $# -gt 0 ]]; do
    [[ $1 != --out ]] || out=$2
    shift
done
[[ -z ${out:-} ]] || mkdir -p "$out"
[[ $program != train_moex_cpu ]] || for step in {1..60}; do # slow at first
    echo "{\"step\":$step,\"loss\":1,\"ms\":$((step < 20 ? 900 : ${MS:-20})).5,\"tok_s\":1}"
done > "$out/log.jsonl"
[[ $program != train_moex_cpu ]] || touch "$out/model_00000060.safetensors"
END
done
printf '#!/usr/bin/env bash\necho "compiled $*"\n[[ ${FAILS:-} != make || $* == *make_chess ]]\n' > make
chmod +x programs/* make

# demo STATUS TEXT SETTINGS..: it ends with the status and says the text.
demo() {
    local wanted=$1 text=$2 said status
    shift 2
    said=$(env MAKE="$dir/make" "$@" "$demo" programs 2>&1)
    status=$?
    if [[ $status -eq $wanted && $said == *"$text"* ]]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1)) && printf 'FAILED %s: status %d, expected %d and "%s" in\n%s\n' "$*" $status "$wanted" "$text" "$said"
    fi
}
right() { # WHAT STATUS
    if [[ $2 -eq 0 ]]; then passed=$((passed + 1)); else failed=$((failed + 1)) && echo "FAILED $1"; fi
}

demo 0 "Training a MoE-X on them, 9500 steps: a step takes 20.5 ms here" X=
[[ -e runs/demo/model_00000060.safetensors && ! -e runs/demo/timing && ! -e runs/demo/build.log && ! -e runs/demo/.demo_begun ]]
right "what a demo leaves" $?
echo mine > runs/demo/notes
demo 1 "runs/demo is there already" X=
demo 1 "runs/demo is there already" DEMO_STEPS=100
[[ $(cat runs/demo/notes) == mine ]]
right "a folder that is there stays" $?
demo 0 "100 steps"$'\n' DEMO_FORCE=1 DEMO_STEPS=100
demo 0 "play        open runs/demo/report.html in a browser" DEMO_FORCE=1 DEMO_STEPS=100
[[ ! -e runs/demo/notes ]]
right "DEMO_FORCE=1 replaces it" $?

demo 0 "a step takes 60.5 ms here, so that 3500 of" DEMO_DIR=slower MS=60
demo 0 "so that 500 of the README's 9500 fit into 6 minutes" DEMO_DIR=slowest MS=100000
demo 1 "compiled --no-print-directory --silent programs/train_moex_cpu" DEMO_DIR=broken FAILS=make
demo 1 "train_moex_cpu --init demo" DEMO_DIR=stopped DEMO_STEPS=100 FAILS=train_moex_cpu
[[ -e stopped/.demo_begun ]]
right "a demo that did not end" $?
demo 0 "100 steps" DEMO_DIR=stopped DEMO_STEPS=100 # is begun anew
mkdir empty
demo 0 "100 steps" DEMO_DIR=empty DEMO_STEPS=100
echo "$passed passed, $failed failed"
[[ $failed -eq 0 ]]
