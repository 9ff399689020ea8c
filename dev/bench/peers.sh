#!/usr/bin/env bash
# The reference beside PyTorch, the same model and batch, in turn and several times so that both meet the same
# machine:  peers.sh BENCH_CPU PYTHON [ROUNDS].  Prints the median step time of each and their ratio.
set -euo pipefail
ours=$1 python=$2 rounds=${3:-3}
here=$(dirname "$0")
threads=${OMP_NUM_THREADS:-$(nproc)}
ms() { grep -o '"ms_median": [0-9.]*' | tail -n 1 | cut -d' ' -f2; }
median() { sort -n | awk '{x[NR] = $1} END {print x[int((NR + 1) / 2)]}'; }

echo
echo "beside PyTorch $($python -c 'import torch; print(torch.__version__)') on the CPU, fp32, $threads threads, $rounds rounds in turn"
printf '  %-28s %10s %10s %14s\n' '' 'ours, ms' 'torch, ms' 'torch / ours'
for what in dense moe; do
    act=relu; [[ $what == dense ]] && act=gelu
    mine=() theirs=()
    for ((i = 0; i < rounds; i++)); do
        mine+=("$("$ours" --what $what --steps 60 | ms)")
        theirs+=("$($python "$here/peer_torch.py" --ffn $what --act $act --steps 30 --threads "$threads" | ms)")
    done
    a=$(printf '%s\n' "${mine[@]}" | median) b=$(printf '%s\n' "${theirs[@]}" | median)
    printf '  %-28s %10.2f %10.2f %14.2f\n' "$([[ $what == moe ]] && echo 'MoE-X' || echo 'dense twin, gelu')" "$a" "$b" "$(awk "BEGIN {print $b / $a}")"
done
