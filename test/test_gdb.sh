#!/usr/bin/env bash
# The session of dev/doc/gpu.md: its commands are typed into gdb, and what gdb answers is what stands there, but for the
# digits of numbers.
#   test_gdb.sh FOLDER     (with train_moex_gdb and make_chess)
set -uo pipefail
command -v gdb > /dev/null || { echo "skipped: no gdb"; exit 0; }
chapter=$(dirname "$0")/../dev/doc/gpu.md
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
passed=0 failed=0
note() { if [[ $1 == 0 ]]; then ((passed++)); else failed=$((failed + 1)) && echo "FAILED: $2"; fi; }

"$1/make_chess" --games 40 --row 65 --out "$dir/tour" > /dev/null 2>&1
note $? "make_chess"
flags=$(sed -n '/--layers 1/,/--out/p' "$chapter" | tr -d '\\\n' | grep -o -- '--layers.*--batch 2 --steps 1')
note $? "the chapter's command line"
{ echo "set pagination off"; sed -n 's/^    (gdb) //p' "$chapter"; } > "$dir/typed"
timeout 300 gdb -q -batch -x "$dir/typed" --args "$1/train_moex_gdb" --train "$dir/tour/train*.bin" $flags --out "$dir/run" \
    > "$dir/out" 2> "$dir/err"
if grep -q "ptrace.*not permitted" "$dir/err" "$dir/out"; then echo "skipped: gdb may not trace here"; exit 0; fi

# Every answer the chapter shows, in its order.
shape() { grep -E '^(Value returned is )?\$[0-9]+ = ' | sed -E 's/-?[0-9]+(\.[0-9]+)?(e-?[0-9]+)?/#/g'; }
sed -n 's/^    //p' "$chapter" | shape > "$dir/expected"
shape < "$dir/out" > "$dir/answered"
note $(($(wc -l < "$dir/expected") < 10)) "the chapter shows answers"
diff "$dir/expected" "$dir/answered"
note $? "gdb answers otherwise"
exact() { grep -E '^\$(1|2|3|4|5|6|7|14) = '; } # what follows from the sizes alone
diff <(sed -n 's/^    //p' "$chapter" | exact) <(exact < "$dir/out")
note $? "other sizes"
grep -q "sum_partials" "$dir/out"
note $? "the last stop"
if ((failed)); then tail -n 5 "$dir/err"; fi
echo "$passed passed, $failed failed"
[[ $failed == 0 ]]
