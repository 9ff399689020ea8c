#!/usr/bin/env bash
# The scripts that a GPU's first minute depends on, without one: what test_sanitizer.sh makes of reports,
# test_ptxas.sh of ptxas' words, and gpu.sh as a whole with the emulated programs in the folder given (B=build
# unless told; left out where they have not been built).
cd "$(dirname "$0")/.." || exit 1
b=${1:-build} passed=0 failed=0
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

# expect WHAT STATUS PATTERN COMMAND..: the command ends with the status, and its output has the pattern.
expect() {
    local what=$1 wanted=$2 pattern=$3 output status
    shift 3
    output=$("$@" 2>&1)
    status=$?
    if [[ $status -eq $wanted ]] && grep -qE "$pattern" <<< "$output"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        printf 'FAILED %s: status %d, expected %d and "%s" in:\n%s\n' "$what" "$status" "$wanted" "$pattern" "$output"
    fi
}

# ---- compute-sanitizer: programs that do nothing, and a tool that reports what REPORT says -----------------

mkdir "$dir/bin"
for program in make_chess train_moex{,_fp32} sample{,_fp32}; do
    printf '#!/bin/sh\nexit ${STATUS:-0}\n' > "$dir/bin/$program"
done
printf '#!/bin/sh\nexit 0\n' > "$dir/bin/make_chess"
cat > "$dir/bin/tool" << 'END'
#!/bin/bash
while [[ $1 == --* ]]; do shift 2; done
echo "========= COMPUTE-SANITIZER"
"$@" || { echo "========= Target application returned an error"; exit 1; }
printf '%b' "$REPORT"
echo "========= ERROR SUMMARY: 0 errors"
END
chmod +x "$dir"/bin/*
export SANITIZER=$dir/bin/tool
library='========= Uninitialized __global__ memory read of size 4 bytes\n=========     at void cutlass::Kernel2<cutlass_80_simt_sgemm>(T1)+0x10\n=========     by thread (0,0,0) in block (1,0,0)\n=========\n'
ours='========= Invalid __global__ read of size 16 bytes\n=========     at gather_kernel(__nv_bfloat16 *)+0x90 in train_moex.cu:1234\n=========\n'
race='========= Error: Race reported between Write access at router_forward_kernel(int)+0x90 in train_moex.cu:900\n=========     and Read access at router_forward_kernel(int)+0xa0 in train_moex.cu:901 [16 hazards]\n=========\n'
expect "no report" 0 '^8 passed, 0 failed' env REPORT= test/test_sanitizer.sh "$dir/bin"
expect "all variants" 0 '^24 passed, 0 failed' env REPORT= test/test_sanitizer.sh "$dir/bin" all
expect "a library's report" 0 '^8 reports on kernels' env REPORT="$library" test/test_sanitizer.sh "$dir/bin"
expect "our report" 1 'gather_kernel' env REPORT="$ours" test/test_sanitizer.sh "$dir/bin"
expect "ours among the library's" 1 '^0 passed, 8 failed' env REPORT="$library$ours$library" test/test_sanitizer.sh "$dir/bin"
expect "a race" 1 'Race reported' env REPORT="$race" test/test_sanitizer.sh "$dir/bin"
expect "a program that fails" 1 'status 1' env STATUS=3 REPORT= test/test_sanitizer.sh "$dir/bin"
printf '#!/bin/sh\nexit 0\n' > "$dir/bin/tool"
expect "a tool that does nothing" 1 '^0 passed, 8 failed' env REPORT= test/test_sanitizer.sh "$dir/bin"

# ---- ptxas ---------------------------------------------------------------------------------------------

# log REGISTERS SPILLS: 21 small kernels and classifier_kernel, whose blocks have 1024 threads
log() {
    local i name
    for i in {11..31} classifier; do
        name=_Z8kernel${i}v registers=16 spills=0
        [[ $i == classifier ]] && name=_Z17classifier_kernelPfi registers=$1 spills=$2
        echo "ptxas info    : Compiling entry function '$name' for 'sm_90a'"
        echo "    0 bytes stack frame, $spills bytes spill stores, $spills bytes spill loads"
        echo "ptxas info    : Used $registers registers, 256 bytes smem"
    done > "$dir/log.ptxas"
}
for release in 13.0 12.4; do
    printf '#!/bin/sh\necho "Cuda compilation tools, release %s, V"\n' $release > "$dir/nvcc-$release"
done
chmod +x "$dir"/nvcc-*
log 64 0
expect "a program that fits" 0 ' 0 failed' env NVCC="$dir/nvcc-13.0" test/test_ptxas.sh "$dir/log.ptxas"
log 72 0
expect "too many registers for 1024 threads" 1 'classifier_kernel does not fit: 1024 threads of 72' \
    env NVCC="$dir/nvcc-12.4" test/test_ptxas.sh "$dir/log.ptxas"
log 64 8
expect "spills" 1 'spills 8 8 bytes' env NVCC="$dir/nvcc-13.0" test/test_ptxas.sh "$dir/log.ptxas"
expect "spills of another toolkit" 0 '^warning: .*spills 8 8 bytes' env NVCC="$dir/nvcc-12.4" test/test_ptxas.sh "$dir/log.ptxas"

# ---- gpu.sh: with programs and a toolkit that only pretend, then with the emulated ones --------------------

unset SANITIZER
stubs=$dir/stubs
mkdir "$stubs"
for precision in "" _fp32; do
    for program in train_moex sample bsp_gpu; do printf '#!/bin/sh\necho done >&2\n' > "$stubs/$program${precision}_emu"; done
    printf '#!/bin/sh\necho "1 passed, 0 failed"\n' > "$stubs/test_units${precision}_emu"
    cat > "$stubs/bench_gpu${precision}_emu" << 'END'
#!/bin/bash
while [[ $1 != --json ]]; do shift; done
echo '{"row": "ratio"}' > "$2"
exit ${BENCH:-0}
END
done
printf '#!/bin/sh\nexit 0\n' > "$stubs/make_chess"
mkdir "$dir/toolkit"
cat > "$dir/toolkit/nvcc" << 'END'
#!/bin/bash
case $1${LINKS:-} in
--version*) echo "Cuda compilation tools, release 13.0, V" ;;
*no) echo "ld: cannot find -lcublasLt" && exit 1 ;;
*) printf '#!/bin/sh\necho cuBLASLt 130000\n' > "${!#}" && chmod +x "${!#}" ;;
esac
END
printf '#!/bin/sh\necho torch 2\n' > "$dir/toolkit/python3"
chmod +x "$stubs"/* "$dir"/toolkit/*
rehearse() {
    env "$@" PATH="$dir/toolkit:$PATH" PYTHON="$dir/toolkit/python3" B="$stubs" RESULTS="$dir/pretended" \
        dev/bench/gpu.sh --rehearse=short
}
expect "a rehearsal" 0 'Every stage that could run passed' rehearse QUICK=0
expect "its probe" 0 'nvcc release 13.0, sm_90; cuBLASLt 130000; compute-sanitizer; torch 2\.$' cat "$dir/pretended/rehearsal.md"
expect "a stage that fails" 1 'FAILED: Launchers and steps, bf16; What 2 GPUs exchange;$' rehearse BENCH=3 LINKS=no
expect "a library that is not there" 0 'cublasLt does not link: ld: cannot find' cat "$dir/pretended/rehearsal.md"
expect "its rows, and those after it" 0 '^Sampling, preset chess: [0-9]+ s' cat "$dir/pretended/rehearsal.md"
expect "its rows" 0 '"row": "ratio"' cat "$dir/pretended/rehearsal.jsonl"

if [[ -x $b/bench_gpu_emu && -x $b/train_moex_emu && -x $b/train_moex_fp32_emu && -x $b/sample_emu &&
    -x $b/sample_fp32_emu && -x $b/test_units_emu && -x $b/test_units_fp32_emu && -x $b/make_chess ]]; then
    expect "the rehearsal" 0 'Every stage that could run passed' env B="$b" RESULTS="$dir/results" dev/bench/gpu.sh --rehearse=short
    expect "its page" 0 'compute-sanitizer: [0-9]+ s' cat "$dir/results/rehearsal.md"
    expect "its rows" 0 '"row": "ratio"' cat "$dir/results/rehearsal.jsonl"
else
    echo "gpu.sh was not rehearsed: $b lacks emulated programs"
fi
echo "$passed passed, $failed failed"
[[ $failed -eq 0 ]]
