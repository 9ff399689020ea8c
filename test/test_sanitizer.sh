#!/usr/bin/env bash
# compute-sanitizer on a tiny run of the CUDA programs in the folder given, trainer and sampler: accesses out of
# bounds or misaligned, races in shared memory, reads of what was never written, barriers that not all threads
# reach. Eight runs: every tool on MoE-X in bf16, and on a topk gelu model that computes again in fp32.
#   test_sanitizer.sh FOLDER [all]      all: three variants in either precision, 24 runs
#   TOOLS='racecheck initcheck' test_sanitizer.sh FOLDER      these tools only
# Its tools are known to report kernels of NVIDIA's libraries, whose work they cannot follow on every card. Those
# reports, by the kernel's name, are counted and left out; whatever names a kernel or a file of ours fails.
bin=$(realpath "$1") passed=0 failed=0 left_out=0
library='cublas|cutlass|nvjet|xmma|gemm[A-Zk_]|splitK|sm(80|86|89|90)_'
ours='train_moex\.cu|sample\.cu|_kernel[(<+]'
sanitizer=${SANITIZER:-$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2> /dev/null)}
[[ -n $sanitizer ]] || { echo "skipped: no compute-sanitizer here (it comes with the CUDA toolkit)"; exit 0; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"$bin/make_chess" --games 40 --row 98 --seed 1 --out "$dir/data" > /dev/null || exit 1

# The program both tools run: two steps, then six tokens after a prompt.  steps SUFFIX FLAGS..
cat > "$dir/steps" <<END
#!/usr/bin/env bash
suffix=\$1
shift
"$bin/train_moex\$suffix" --train "$dir/data/train_*.bin" --val "$dir/data/val_*.bin" --out "$dir/run" \\
    --layers 2 --heads 2 --embd 64 --d-expert 128 --batch 2 --total-tokens 388 --steps 2 --val-batches 1 \\
    --sample-every 0 "\$@" && "$bin/sample\$suffix" --ckpt "$dir/run" --prompt ';1.e4' --tokens 6
END
chmod +x "$dir/steps"

# Reports are runs of lines between bare `=========` ones. Prints those that are ours, and last how many were
# the library's.
reports() {
    awk -v library="$library" -v ours="$ours" '
        function finish() {
            if (report ~ /Invalid|Misaligned|Uninitialized|[Rr]ace reported|Barrier|barrier|divergent|Program hit|was created|hazard|error/ &&
                report !~ /COMPUTE-SANITIZER\n$/) {
                if (report ~ library && report !~ ours) left_out++
                else printf "%s", report
            }
            report = ""
        }
        /^=========/ {
            if ($0 ~ /^=========[ \t]*$/) finish()
            else if ($0 !~ /SUMMARY|COMPUTE-SANITIZER|No attached|Target application|Saved host backtrace/) report = report $0 "\n"
            next
        }
        END { finish(); print left_out + 0 }' "$1"
}

# run TOOL SUFFIX FLAGS..
run() {
    local tool=$1 suffix=$2 status found
    rm -rf "$dir/run"
    "$sanitizer" --tool "$tool" --target-processes all --print-limit 0 "$dir/steps" "${@:2}" > "$dir/log" 2>&1
    status=$?
    found=$(reports "$dir/log")
    left_out=$((left_out + $(tail -n 1 <<< "$found")))
    found=$(head -n -1 <<< "$found")
    if [[ $status -eq 0 && -z $found ]] && grep -q 'ERROR SUMMARY\|RACECHECK SUMMARY' "$dir/log"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED $tool, train_moex$suffix ${*:3} (status $status)"
        if [[ -n $found ]]; then head -n 30 <<< "$found"; else tail -n 30 "$dir/log"; fi
    fi
}

moe=() topk=(--router topk --act gelu --recompute 2) dense=(--ffn dense --act gelu)
for tool in ${TOOLS:-memcheck racecheck initcheck synccheck}; do
    run "$tool" "" "${moe[@]}"
    run "$tool" _fp32 "${topk[@]}"
    [[ ${2:-} == all ]] || continue
    for flags in "${dense[*]}" "${topk[*]}"; do run "$tool" "" $flags; done
    for flags in "${dense[*]}" "${moe[*]}"; do run "$tool" _fp32 $flags; done
done
((left_out == 0)) || echo "$left_out reports on kernels of NVIDIA's libraries were left out"
echo "$passed passed, $failed failed"
[[ $failed -eq 0 ]]
