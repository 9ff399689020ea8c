// The roofline: what every launcher of train_moex.cu must move and compute in a training step, and how long a
// card needs for it at least. Takes a config and a batch; gives, in the order of the step, the bytes and
// FLOPs of each launcher with their formulas. bench_gpu divides its timings by these numbers, and `bench_gpu
// --count` prints them for an H100, no GPU needed: there is no second count.
//
// Bytes: each array once for each kernel that reads it and once for each that writes it, as if a kernel's
// second look at a number always hit the cache. FLOPs: those of the mathematics, two for a multiply-add;
// attention at its causal half, its backward as five products of the forward's two (the kernels do seven).
// How a sum is cut into parts and what a block takes are train_moex.cu's constants, which is included before.
#pragma once
#include "../run/sharing.h"
#include <algorithm>
#include <cmath>
#include <cstring>

// The rates of a card, per second. Those below are NVIDIA's data sheet, and for mma.sync, the instruction
// that our attention is made of, the 62.9% of it that Luo et al. (arXiv 2402.13499) report: leads, to be
// compared with measurements.
struct Card {
    double bandwidth, matrix, mma, vector; // bytes; FLOP of library products, of mma.sync, of fp32 arithmetic
    double issue;                          // instructions of warps: 4 a cycle and multiprocessor
    double multiprocessors, launch;        // seconds from the end of a short kernel to the end of the next
    bool wgmma;                            // for the experts by hand
};
inline Card h100_datasheet(bool fp32) {
    const double vector = 67e12, matrix = fp32 ? vector : 989e12;
    return {3.35e12,
            matrix,
            fp32 ? vector : 0.629 * matrix,
            vector,
            4 * multiprocessors * 1.755e9,
            multiprocessors,
            2.5e-6,
            !fp32};
}

struct MatrixProduct {
    double count, M, N, K;
};

struct Work {
    const char *name, *part, *phase; // launcher; what it belongs to; forward, backward or update
    size_t times, kernels;           // calls in a step of one micro-batch; kernels that a call starts
    double bytes = 0, flops = 0;     // of one call
    const char *bytes_formula = "", *flops_formula = "";
    std::vector<MatrixProduct> products = {}; // when the FLOPs are theirs
    double streams = 1;                       // that so many of them share at a time
    bool by_hand = false;                     // they are one launch of ours
    bool tensor = false;                      // the FLOPs are done by the tensor cores (in the bf16 build)
    double efficiency = 0.8; // share of the FLOP rate to be expected of such a kernel; products: see below
    double memory = 0.8;     // share of the bandwidth: less where few loads are under way
    double instructions = 0; // of warps, where they may be what takes longest
    double serial = 0; // seconds of steps that wait for one another, however many multiprocessors there are
    double idle = 0;   // seconds that the GPU is expected to stand still
};

// How the program was set up: its epilogues do bias and activation; the experts' gathered inputs are kept for
// the backward pass; so many streams share independent products; active units are counted in this step; the
// experts' products are by hand (then the epilogues are, too, and neither slots nor products are there to
// keep or to share).
struct Design {
    bool fused = true, keep_slots = true;
    double streams = 4;
    bool counting = false, by_hand = false;
};

// The letters of the formulas: x bytes of an activation (2 in bf16); S slots, N*K; W = K*D units of a token;
// R rows that were chosen, of W_enc and W_dec, E*D (dense: W); Vp the vocabulary rounded up to 64; P
// parameters, with those rows; Q parts of a sum over tokens; G blocks of layernorm_backward. The rest as in
// train_moex.cu.
inline std::vector<Work> work_of_step(const Config& c, size_t B, size_t T_, double x, const Design& design) {
    const bool fused = design.fused, by_hand = design.by_hand;
    const double N = double(B) * T_, T = T_, C = c.n_embd, NH = c.n_head, V = c.vocab_size,
                 Vp = double(round_up(c.vocab_size, vocab_multiple));
    const double E = c.moe() ? c.n_expert : 1, K = c.moe() ? c.n_expert_active : 1,
                 D = c.moe() ? c.d_expert : c.dense_width();
    const double S = N * K, R = E * D, P = double(block_elements(tensor_table(c))) + (Vp - V) * C,
                 Q = token_parts(B * T_), G = layernorm_blocks;
    const double mask = S * D / 8;
    const size_t L = c.n_layer, unfused = fused ? 0 : 1, experts = by_hand ? 1 : size_t(E); // launches
    std::vector<Work> list;
    const char* phase = "forward";
    auto add = [&](const char* name, const char* part, size_t times, size_t kernels, double bytes,
                   const char* bytes_formula) -> Work& {
        list.push_back({name, part, phase, times, kernels, bytes, 0, bytes_formula});
        return list.back();
    };
    auto multiplies = [&](Work& work, const char* formula, std::vector<MatrixProduct> products) {
        for (const MatrixProduct& p : products) work.flops += 2 * p.count * p.M * p.N * p.K;
        work.flops_formula = formula;
        work.products = std::move(products);
        work.tensor = true;
        work.streams = design.streams;
    };
    auto computes = [](Work& work, const char* formula, double flops, double efficiency) {
        work.flops_formula = formula;
        work.flops = flops;
        work.efficiency = efficiency;
    };

    // A sum of parts by 32 threads a column, 4 loads of each under way at a time.
    const auto sum_of = [](double parts) { return std::ceil(parts / 128) * 0.5e-6; };

    add("zero_gradients", "update", 1, 1, 4 * P, "4P");
    if (c.moe()) {
        Work& statistics =
            add("expert_statistics_forward", "router", L, 2, x * R * C + 8 * E * C, "xRC + 8EC");
        computes(statistics, "4RC", 4 * R * C, 0.5);
        statistics.memory = 0.1; // E C / 64 blocks, 4 KB under way in each
    }
    add("embedding_layernorm_forward", "embedding", 1, 1,
        x * (std::min(N, V) + std::min(N, T) + 2 * N) * C + 8 * N, "x(min(N,V) + T + 2N)C + 8N");
    multiplies(add("linear_forward c_attn", "linear", L, 1, x * (4 * N * C + 3 * C * C), "x(4NC + 3CC)"),
               "6NCC", {{1, N, 3 * C, C}});
    Work& attention = add("attention_forward", "attention", L, 1, x * 4 * N * C + 4 * N * NH, "4xNC + 4N NH");
    computes(attention, "2NC(T+1)", 2 * N * C * (T + 1), 0.35);
    attention.tensor = true;
    multiplies(add("linear_forward c_proj", "linear", L, 1, x * (2 * N * C + C * C), "x(2NC + CC)"), "2NCC",
               {{1, N, C, C}});
    add("residual_layernorm_forward ln_2", "LayerNorm", L, 1, 4 * x * N * C + 8 * N, "4xNC + 8N");
    if (c.moe()) {
        computes(add("router_forward", "router", L, 2, x * N * C + 8 * E * C + 12 * N * E + 8 * S,
                     "xNC + 8EC + 12NE + 8S"),
                 "4NEC", 4 * N * E * C, 0.35);
        add("dispatch", "router", L, 3, 16 * S + 12 * E * S / dispatch_tile, "16S + 3ES/64");
        add("balance_forward", "router", L, 1, 8 * E, "8E");
    }
    if (c.moe() && !by_hand) {
        add("gather", "gather", L, 1, x * (N + S) * C + 4 * S, "x(N + S)C + 4S");
        // The copy goes beside the gather; what is left of 15 us there and back is idle.
        add("wait for the counts", "router", L, 0, 4 * E, "4E, to the host").idle =
            std::max(0.0, 15e-6 - x * (N + S) * C / (0.8 * 3.35e12));
    }
    const auto multiplies_experts = [&](Work& work, MatrixProduct product) {
        multiplies(work, "2NWC", {product});
        work.by_hand = by_hand;
    };
    if (by_hand)
        multiplies_experts(
            add("experts_encode", "experts", L, 1, x * (S * C + R * C + S * D), "x(SC + RC + SD)"),
            {E, S / E, D, C});
    else
        multiplies_experts(add("experts_encode", "experts", L, experts * (1 + unfused),
                               x * (S * C + R * C + S * D) + (fused ? mask : 2 * x * S * D),
                               fused ? "x(SC + RC + SD) + SD/8" : "x(SC + RC + 3SD)"),
                           {E, S / E, D, C});
    multiplies_experts(
        add("experts_decode", "experts", L, experts, x * (S * D + R * C + S * C), "x(SD + RC + SC)"),
        {E, S / E, C, D});
    if (c.moe())
        add("combine_layernorm_forward", "gather", L, 1, x * (3 * N + S) * C + 8 * N + 8 * S,
            "x(3N + S)C + 8N + 8S");
    else
        add("residual_layernorm_forward", "LayerNorm", L, 1, 4 * x * N * C + 8 * N, "4xNC + 8N");
    if (design.counting && !by_hand)
        add("count_active", "experts", L, 1, fused ? mask : x * S * D, fused ? "SD/8" : "xSD");
    multiplies(add("head", "classifier", 1, 1, x * (N * C + Vp * C + N * Vp), "x(NC + VpC + NVp)"), "2NVpC",
               {{1, N, Vp, C}});
    add("classifier", "classifier", 1, 1, 2 * x * N * V + 8 * N, "2xNV + 8N").instructions =
        130 * N * V / 256; // of 32 lanes with 8 logits each, both passes
    add("sum_losses", "classifier", 1, 1, 4 * N, "4N");

    phase = "backward";
    multiplies(add("head to ln_f", "classifier", 1, 1, x * (N * Vp + Vp * C + N * C), "x(NVp + VpC + NC)"),
               "2NVpC", {{1, N, C, Vp}});
    multiplies(
        add("head to wte", "classifier", 1, 1, x * (N * Vp + N * C) + 8 * Vp * C, "x(NVp + NC) + 8VpC"),
        "2NVpC", {{1, Vp, C, N}});
    // Sums of the blocks: of weight and bias, and of the residual stream's gradient where a bias was added to
    // it.
    const double norm_bytes = 4 * x * N * C + 8 * N + 16 * G * C, sum_bytes = 8 * G * C;
    const double before = c.moe() ? 0 : sum_bytes; // of ln_1 and ln_f
    const char* norm_formula = c.moe() ? "4xNC + 8N + 16GC" : "4xNC + 8N + 24GC";
    const auto norm_backward = [&](const char* name, size_t times, size_t kernels, double bytes,
                                   const char* formula) {
        Work& norm = add(name, "LayerNorm", times, kernels, bytes, formula);
        norm.memory = 0.5; // 15 to 24 warps a multiprocessor, each row loaded twice
        norm.serial = sum_of(G);
    };
    norm_backward("layernorm_backward ln_f", 1, 3, norm_bytes + before + x * N * C,
                  c.moe() ? "5xNC + 8N + 16GC" : "5xNC + 8N + 24GC");
    if (c.moe()) {
        if (by_hand) // it reads what dh left of the rows, instead of y
            add("combine_backward", "gather", L, 1, x * (N + S) * C + S * D / 8 + 16 * S,
                "x(N + S)C + SD/8 + 16S");
        else
            add("combine_backward", "gather", L, 1, x * (N + 2 * S) * C + 12 * S, "x(N + 2S)C + 12S");
        if (!design.keep_slots && !by_hand)
            add("gather again", "gather", L, 1, x * (N + S) * C + 4 * S, "x(N + S)C + 4S");
    }
    // act' reads dh and z and writes dh, the bias's gradient reads dh
    if (by_hand) // z is read; sums of 64 rows are written and read, moe those of 32 columns written
        multiplies_experts(add("experts_backward dh", "experts", L, 2,
                               x * (S * C + R * C + 2 * S * D) + S * D / (c.moe() ? 4 : 8),
                               c.moe() ? "x(SC + RC + 2SD) + SD/4" : "x(SC + RC + 2SD) + SD/8"),
                           {E, S / E, D, C});
    else
        multiplies_experts(add("experts_backward dh", "experts", L, fused ? experts + 2 : 2 * experts + 2,
                               x * (S * C + R * C + S * D) + (fused ? mask : 4 * x * S * D),
                               fused ? "x(SC + RC + SD) + SD/8" : "x(SC + RC + 5SD)"),
                           {E, S / E, D, C});
    multiplies_experts(
        add("experts_backward dx", "experts", L, experts, x * (S * D + R * C + S * C), "x(SD + RC + SC)"),
        {E, S / E, C, D});
    for (const char* name : {"experts_backward dW_dec", "experts_backward dW_enc"})
        multiplies_experts(add(name, "experts", L, by_hand ? 2 : experts, x * (S * D + S * C) + 8 * R * C,
                               "x(SD + SC) + 8RC"),
                           {E, D, C, S / E});
    if (c.moe()) {
        add("experts_backward db_dec", "experts", L, 2, x * S * C, "xSC").serial = sum_of(Q);
        Work& router =
            add("router_backward", "router", L, 4, x * (3 * N + S) * C + 28 * N * E + Q * 16 * E * C + 12 * S,
                "x(3N + S)C + 28NE + 16QEC + 12S");
        computes(router, "8NEC", 8 * N * E * C, 0.35);
        // A warp's four tokens: scores, then E fused multiply-adds twice a channel; and those of the
        // statistics.
        router.instructions = N / router_tokens * (900 + 3.1 * C) + N * C / 64 * 45;
        // A part's tokens wait for one another, four loads at a time; then two sums of parts.
        router.serial = N / Q / 4 * 0.3e-6 + sum_of(N / router_block) + sum_of(Q);
    } else {
        add("experts_backward db_dec", "experts", L, 0, 0, ""); // layernorm_backward has the numbers at hand
    }
    norm_backward("layernorm_backward ln_2", L, 2, norm_bytes + sum_bytes, "4xNC + 8N + 24GC");
    multiplies(
        add("linear_backward c_proj", "linear", L, 2, 4 * x * N * C + (x + 8) * C * C, "4xNC + (x + 8)CC"),
        "4NCC", {{1, N, C, C}, {1, C, C, N}});
    Work& attention_back =
        add("attention_backward", "attention", L, 3, 13 * x * N * C + 20 * N * NH, "13xNC + 20N NH");
    computes(attention_back, "5NC(T+1)", 5 * N * C * (T + 1), 0.2);
    attention_back.tensor = true;
    multiplies(add("linear_backward c_attn", "linear", L, 4, 11 * x * N * C + (3 * x + 24) * C * C,
                   "11xNC + (3x + 24)CC"),
               "12NCC", {{1, N, C, 3 * C}, {1, 3 * C, C, N}});
    norm_backward("layernorm_backward ln_1", L, 2, norm_bytes + before, norm_formula);
    add("embedding_backward", "embedding", 1, 3,
        2 * x * N * C + 8 * N * C / places_per_chunk + 8 * (std::min(N, V) + T) * C,
        "2xNC + NC/4 + 8(min(N,V) + T)C");

    phase = "update";
    if (c.moe()) add("expert_statistics_backward", "router", L, 1, (x + 8) * R * C, "(x + 8)RC");
    const size_t pieces = pieces_of_table(c, tensor_table(c), {}).size();
    add("gradient_norm", "update", 1, pieces + 1, 4 * P, "4P");
    add("update", "update", 1, pieces, (x < 4 ? 28 + x : 28) * P, x < 4 ? "(28 + x)P" : "28P");
    return list;
}

// Seconds of one call at least, and what sets them.
inline double rate_of(const Work& w, const Card& card) {
    return !w.tensor ? card.vector : w.products.empty() ? card.mma : card.matrix;
}
inline double floor_seconds(const Work& w, const Card& card) {
    return std::max(w.bytes / card.bandwidth, w.flops / rate_of(w, card));
}
inline const char* bound_of(const Work& w, const Card& card) {
    if (floor_seconds(w, card) < card.launch / 2) return "launch";
    if (w.bytes / card.bandwidth >= floor_seconds(w, card)) return "memory";
    return !w.tensor ? "fp32" : w.products.empty() ? "mma" : "matrix";
}

// Done once a step, however many micro-batches it has: update, and what goes through the expert statistics.
inline bool once_a_step(const Work& w) {
    return strcmp(w.part, "update") == 0 || strncmp(w.name, "expert_statistics", 17) == 0;
}

// Tiles of 128 x 256 that products of this kind have in all: those that a card can work on at a time.
inline double tiles_of(const MatrixProduct& p) {
    return p.count * std::ceil(p.M / 128) * std::ceil(p.N / 256);
}

// A guess at the time of `count` products: tiles, one on each multiprocessor at a time, of 128 x 256 at 80%
// of the matrix rate or of 128 x 128 at 65%. On one stream each product has waves of its own, and a wave that
// is not full leaves multiprocessors idle; several streams fill them with the tiles of the next product. K is
// cut into up to 32 parts where there are too few tiles to go round, each part then writing its sums in fp32
// for another kernel.
inline double product_seconds(const MatrixProduct& p, const Card& card, double streams) {
    double best = INFINITY;
    const double together = streams > 1 ? p.count : 1;
    for (const auto& [width, efficiency] : {std::pair{256.0, 0.8}, {128.0, 0.65}})
        for (double parts = 1; parts == 1 || (parts <= 32 && p.K / parts >= 64); parts *= 2) {
            const double tiles = together * std::ceil(p.M / 128) * std::ceil(p.N / width) * parts;
            const double waves = std::ceil(tiles / card.multiprocessors);
            const double flops = waves * card.multiprocessors * 2 * 128 * width * p.K / parts;
            const double sums =
                parts > 1 ? together * parts * 2 * 4 * p.M * p.N / (0.8 * card.bandwidth) + card.launch : 0;
            best = std::min(best, flops / (efficiency * card.matrix) + sums);
        }
    return p.count / together * best + p.count / std::min(p.count, streams) * card.launch;
}

// Ours: rounds of tiles on all blocks, at the rate of mma.sync or, by wgmma, as the library's of 128 x 256.
// Even loads are not cut.
inline double grouped_seconds(const MatrixProduct& p, const Card& card) {
    double seconds = 0;
    with_tile({unsigned(card.multiprocessors), card.wgmma}, [&](auto tile) {
        typedef decltype(tile) Tile;
        const double blocks = Tile::blocks * card.multiprocessors;
        const double tiles = p.count * std::ceil(p.M / grouped_rows) * std::ceil(p.N / Tile::columns);
        const double flops = std::ceil(tiles / blocks) * blocks * 2 * grouped_rows * Tile::columns * p.K;
        seconds = flops / (card.wgmma ? 0.8 * card.matrix : card.mma);
    });
    return seconds;
}

// Seconds to be expected of one call, before it has been measured.
inline double expected_seconds(const Work& w, const Card& card) {
    const double overhead = double(w.kernels) * card.launch;
    const double memory = w.bytes / card.bandwidth / w.memory + overhead;
    const double issue = w.instructions / card.issue + overhead;
    double arithmetic = 0;
    for (const MatrixProduct& p : w.products)
        arithmetic += w.by_hand ? grouped_seconds(p, card) + overhead : product_seconds(p, card, w.streams);
    if (w.products.empty()) arithmetic = w.flops / rate_of(w, card) / w.efficiency + overhead;
    return std::max({memory, arithmetic, issue}) + w.serial + w.idle;
}

// ---------------------------------------------------------------------------------------------------------
// Several GPUs, on paper. Of a step of A micro-batches each GPU of P = G M (G in each of M machines) does r =
// ceil(A/P) rounds; then 4 bytes a parameter are summed and x are sent on:
//   reduce = 4n (G-1)/G / within + 4n/G (M-1)/M / among       gather = the same of x bytes
//   step   = r a + z + u/P + exposed + 0.1 ms
//   exposed = max(reduce e/n, reduce - 0.8 (2/3) a) + max(0, gather - 0.8 a/3)
// a, z, u: seconds of a micro-batch, of clearing the gradients and the expert statistics, and of norm and
// update on one GPU; n parameters, of which e are the embeddings, whose gradients are the last to be ready.
// The sums go on beside the backward pass of the last micro-batch, two thirds of a, the gather beside the
// next forward pass.

// Bytes per second of each GPU: 80% of the 370 GB/s that NVIDIA states for NCCL on the NVSwitch of H100s
// (nccl-tests, issue 212), and of a port of 400 Gb/s for each GPU between machines: to be measured.
struct Links {
    double within = 300e9, among = 40e9;
};

// Seconds in which each GPU sends its share of n numbers of `bytes` each: to reduce them, or to gather them.
inline double exchange_seconds(double n, double bytes, const Lanes& lanes, const Links& links) {
    const double G = double(lanes.per_machine), M = double(lanes.machines);
    return bytes * n * (G - 1) / G / links.within + bytes * n / G * (M - 1) / M / links.among;
}

struct ScaledStep { // seconds; alone: on one GPU; step_exposed: were the gather not hidden
    double alone, reduce, gather, step, step_exposed;
};
inline ScaledStep scaled_step(const Config& c, size_t B, size_t T, size_t A, double x, const Card& card,
                              const Lanes& lanes, const Links& links) {
    double a = 0, z = 0, u = 0;
    for (const Work& w : work_of_step(c, B, T, x, {})) {
        const double seconds = double(w.times) * expected_seconds(w, card);
        const bool shared = strcmp(w.name, "gradient_norm") == 0 || strcmp(w.name, "update") == 0;
        (!once_a_step(w) ? a : shared ? u : z) += seconds;
    }
    const std::vector<Tensor> table = tensor_table(c, 64);
    const double n = double(block_elements(table)), e = double(table[2].offset);
    const double P = double(lanes.places());
    ScaledStep s{double(A) * a + z + u, exchange_seconds(n, 4, lanes, links),
                 exchange_seconds(n, x, lanes, links), 0, 0};
    const double rounds = double(lanes.rounds(A)) * a + z + u / P + 0.1e-3;
    const double sums = std::max(s.reduce * e / n, s.reduce - 0.8 * (2.0 / 3) * a);
    s.step = rounds + sums + std::max(0.0, s.gather - 0.8 * a / 3);
    s.step_exposed = rounds + sums + s.gather;
    return s;
}
