#!/usr/bin/env bash
# compute-sanitizer on a tiny run of the CUDA programs in the folder given: out-of-bounds and misaligned accesses,
# races in shared memory, reads of what was never written, barriers that not all threads reach.
bin=$(realpath "$1") passed=0 failed=0
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
[[ -n $sanitizer ]] || { echo "compute-sanitizer was not found (it comes with the CUDA toolkit)"; exit 1; }
"$bin/make_chess" --games 40 --row 98 --seed 1 --out "$dir/data" >/dev/null || exit 1
for suffix in "" _fp32; do
    for tool in memcheck racecheck initcheck synccheck; do
        for variant in "" "--ffn dense --act gelu" "--router topk --act gelu --recompute 2"; do
            rm -rf "$dir/run"
            if "$sanitizer" --tool $tool --error-exitcode 9 "$bin/train_moex$suffix" --train "$dir/data/train_*.bin" \
                --val "$dir/data/val_*.bin" --out "$dir/run" --layers 2 --heads 2 --embd 64 --d-expert 128 --batch 2 \
                --total-tokens 388 --steps 2 --val-batches 1 --sample-every 0 $variant >"$dir/log" 2>&1 &&
                "$sanitizer" --tool $tool --error-exitcode 9 "$bin/sample$suffix" --ckpt "$dir/run" --tokens 6 >"$dir/log" 2>&1; then
                passed=$((passed + 1))
            else
                failed=$((failed + 1))
                echo "FAILED $tool, train_moex$suffix $variant"
                tail -n 30 "$dir/log"
            fi
        done
    done
done
echo "$passed passed, $failed failed"
[[ $failed -eq 0 ]]
