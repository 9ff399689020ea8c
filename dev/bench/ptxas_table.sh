#!/usr/bin/env bash
# What ptxas says of every kernel, as a table: registers, shared memory, spilled bytes, and how many of its
# warps a multiprocessor of that architecture can hold.  ptxas_table.sh LOG [sm_90a]
# LOG is what `make` keeps beside a CUDA program (build/train_moex.ptxas). Threads and dynamic shared memory are
# decided at the launch; here they stand for preset small in bf16 (C 768, heads of 64, E 8).
set -euo pipefail
log=$1 arch=${2:-sm_90a}
c++filt < "$log" | awk -v arch="$arch" '
    BEGIN {
        # threads dynamic_shared_bytes of each launch; 256 0 where nothing is said
        launch["rows_layernorm_kernel"] = "256 12288"
        launch["layernorm_backward_kernel"] = "160 46080"
        launch["attention_forward_kernel<32>"] = "128 " (128 + 4 * 64) * 40 * 2
        launch["attention_forward_kernel<64>"] = "128 " (128 + 4 * 64) * 72 * 2
        launch["attention_forward_kernel<128>"] = "128 " (128 + 4 * 32) * 136 * 2
        for (half = 0; half < 2; half++) {
            name = "attention_backward_" (half ? "dq" : "dkv") "_kernel"
            launch[name "<32>"] = "128 " (256 + 4 * 32) * 40 * 2 + 512
            launch[name "<64>"] = "128 " (256 + 4 * 32) * 72 * 2 + 512
            launch[name "<128>"] = "128 " (128 + 4 * 32) * 136 * 2 + 512
        }
        launch["grouped_kernel"] = launch["grouped_gradient_kernel"] = "256 " 3 * 2 * 128 * 40 * 2
        launch["grouped_kernel wgmma"] = launch["grouped_gradient_kernel wgmma"] = \
            "256 " 4 * (128 + 256) * 128 + 8 * 256 * 4
        launch["attention_forward_plain_kernel"] = launch["attention_backward_dq_plain_kernel"] = "128 0"
        launch["attention_backward_dkv_plain_kernel"] = "128 0"
        launch["embedding_backward_chunks_kernel"] = launch["router_backward_statistics_kernel"] = "64 0"
        launch["balance_forward_kernel"] = "32 0"
        launch["dispatch_count_kernel"] = launch["dispatch_place_kernel"] = "32 32"
        launch["dispatch_scan_kernel"] = "1024 32"
        launch["classifier_kernel"] = launch["sum_losses_kernel"] = launch["sum_partials_kernel"] = "1024 0"
        # what a multiprocessor has: threads, blocks, shared memory in KiB
        limits["sm_80"] = "2048 32 164"; limits["sm_89"] = "1536 24 100"; limits["sm_90a"] = "2048 32 228"
        if (!(arch in limits)) { print "moex: " arch ": expected sm_80, sm_89 or sm_90a" > "/dev/stderr"; exit 1 }
        split(limits[arch], limit, " ")
        printf "%-41s %9s %11s %13s %6s %7s %9s\n", "kernel (" arch ")", "registers", "shared, B", "dynamic, B", \
            "spills", "threads", "occupancy"
    }
    /Compiling entry function/ {
        wanted = index($0, "\047" arch "\047") > 0
        name = $0
        sub(/.*entry function \047(void )?/, "", name)
        sub(/[(\047].*/, "", name)
        gsub(/ /, "", name)
    }
    wanted && /spill stores/ { spills = $0; gsub(/[^0-9,]/, "", spills); split(spills, bytes, ","); spilled = bytes[2] + bytes[3] }
    wanted && /Used [0-9]+ registers/ {
        registers = $0; sub(/.*Used /, "", registers); registers += 0
        shared = 0
        if (match($0, /[0-9]+ bytes smem/)) shared = substr($0, RSTART) + 0
        plain = name
        sub(/<.*/, "", plain)
        if (name ~ /WgmmaTile/) {
            if (arch != "sm_90a") next # empty: it has none
            plain = plain " wgmma"
        }
        split((name in launch) ? launch[name] : (plain in launch) ? launch[plain] : "256 0", at, " ")
        threads = at[1]; dynamic = at[2]; warps = threads / 32
        # Registers are given to a warp in units of 256, shared memory to a block in units of 128 and with
        # 1 KiB on top; blocks fit as long as each of the four resources lasts.
        blocks = limit[2]
        fit = int(limit[1] / threads); if (fit < blocks) blocks = fit
        fit = int(65536 / (int((registers * 32 + 255) / 256) * 256 * warps)); if (fit < blocks) blocks = fit
        fit = int(limit[3] * 1024 / (int((shared + dynamic + 127) / 128) * 128 + 1024)); if (fit < blocks) blocks = fit
        printf "%-41s %9d %11d %13d %6d %7d %8d%%\n", name, registers, shared, dynamic, spilled, threads, \
            100 * blocks * threads / limit[1] + 0.5
    }' | { read -r head; echo "$head"; sort; }
