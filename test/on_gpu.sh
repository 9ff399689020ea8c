#!/usr/bin/env bash
# What is tested on a GPU, in one place for `make test-gpu` and dev/bench/gpu.sh; the programs have been built.
#   on_gpu.sh FOLDER             kernels, whole model, sampler and units against the reference, in bf16 and fp32;
#                                what several GPUs exchange, where there are several
#   on_gpu.sh FOLDER programs    the programs from the command line
# MOEX_TESTS names fewer of the former: "test_units test_kernels".
set -u
b=$1
cd "$(dirname "$0")/.." || exit 1
if ! nvidia-smi > /dev/null 2>&1; then
    echo "moex: these tests need an NVIDIA GPU and its driver; make test runs them on the CPU" >&2
    exit 1
fi
runs=()
if [[ ${2:-} == programs ]]; then
    runs+=("$b/test_programs $b train_moex sample inputs help usage printed log checkpoints variants not_finite bad_models exchange gpu board")
    runs+=("$b/test_programs $b train_moex_fp32 sample_fp32 inputs variants upcycle kill exchange")
    runs+=("$b/test_training_ranks $b train_moex")
    runs+=("$b/test_interp $b bsp_gpu_fp32" "test/test_ptxas.sh $b/train_moex.ptxas $b/sample.ptxas")
else
    for precision in "" _fp32; do
        for test in ${MOEX_TESTS:-test_kernels test_cuda test_sample test_units}; do
            arguments=
            [[ $test == test_sample ]] && arguments=" $b/sample_cpu"
            runs+=("$b/gpu/$test$precision$arguments")
        done
    done
    [[ -n ${MOEX_TESTS:-} || ! -x $b/gpu/test_exchange ]] || runs+=("$b/gpu/test_exchange")
fi
TEST_JOBS=1 exec test/run.sh "${runs[@]}"
