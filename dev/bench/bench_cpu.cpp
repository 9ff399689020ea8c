// Speed of the reference on this machine: training steps of the dense twin, of the MoE-X of the same active
// size (4 layers, 4 heads, C 128, T 256, B 4, V 96: the model llm.c's CPU trainer was timed on) and of what
// it is compared with, the matrix products behind them, and what skipping relu's zeros buys, each beside the
// machine's own measured peak.
//   bench_cpu [--steps N] [--what table|moe|dense]     moe, dense: one line of JSON for peers.sh
//   bench_cpu --zero-tiles CKPT --data GLOB            what a kernel could skip in a trained MoE-X
#include "../../data/loader.h"
#include "../cpu/model.h"
#include "../lib/options.h"
#include "../lib/terminal.h"
#include "../run/checkpoint.h"
#include <numeric>

static double median(std::vector<double> x) {
    std::sort(x.begin(), x.end());
    return x[x.size() / 2];
}

// Fused multiply-adds on registers, in as many independent chains as hide their latency. GFLOP/s
static real sink[64 * 64];
static double fma_peak(size_t threads) {
    std::vector<double> rates;
    for (int run = 0; run < 7; run++) {
        const size_t rounds = 4'000'000;
        const double begin = now_seconds();
        parallel_parts(threads, [&](size_t part) {
            vec a0{}, a1 = a0 + 1, a2 = a0 + 2, a3 = a0 + 3, a4 = a0 + 4, a5 = a0 + 5, a6 = a0 + 6,
                      a7 = a0 + 7;
            vec b = vec{} + *(volatile real*)sink, c = b + real(1e-3);
            for (size_t i = 0; i < rounds; i++) {
                a0 = a0 * b + c, a1 = a1 * b + c, a2 = a2 * b + c, a3 = a3 * b + c;
                a4 = a4 * b + c, a5 = a5 * b + c, a6 = a6 * b + c, a7 = a7 * b + c;
            }
            *(vec*)(sink + 64 * (part % 63 + 1)) = a0 + a1 + a2 + a3 + a4 + a5 + a6 + a7;
        });
        rates.push_back(threads * rounds * 8.0 * 2 * vector_length / (now_seconds() - begin) / 1e9);
    }
    return *std::max_element(rates.begin(), rates.end());
}

// Sum of bytes read and written by a copy larger than any cache. GB/s
static double copy_bandwidth() {
    const size_t count = size_t(64) << 20;
    std::vector<float> from(count, 1.0f), to(count);
    double best = 0;
    for (int run = 0; run < 4; run++) {
        const double begin = now_seconds();
        parallel_ranges(count, 1, [&](size_t first, size_t last) {
            for (size_t i = first; i < last; i++) to[i] = from[i];
        });
        best = std::max(best, 2.0 * count * sizeof(float) / (now_seconds() - begin) / 1e9);
    }
    return best;
}

// One model and its training step. density > 0: the biases of the experts are shifted first so that about
// this share of the units fires, as it would in a trained model.
struct Row {
    static constexpr size_t B = 4, T = 256, V = 96;
    const char* what;
    Model model;
    std::vector<int32_t> x, y;
    std::vector<double> ms;
    uint64_t steps = 0;

    static Config config(const char* ffn, const char* act) {
        Config c;
        c.n_layer = 4, c.n_head = 4, c.n_embd = 128, c.block_size = T, c.vocab_size = V;
        c.ffn = ffn, c.act = act;
        take_equal_size(c);
        return c;
    }
    Row(const char* what, const char* ffn, const char* act, double density)
        : what(what), model(config(ffn, act), B, T), x(B * T), y(B * T) {
        init_parameters(model.config, model.table, model.weights.data, 1);
        for (size_t i = 0; i < B * T; i++)
            x[i] = int32_t(random_u64(1, 2, i) % V), y[i] = (x[i] * 7 + 3) % int32_t(V);
        real low = -4, high = 0;
        for (int i = 0; i < 20 && density > 0; i++)
            (share_with_bias((low + high) / 2) > density ? high : low) = (low + high) / 2;
        for (int i = 0; i < 3; i++) step(); // the first steps grow the workspaces
        ms.clear();
    }
    double share_with_bias(real b_enc) {
        const Config& c = model.config;
        for (LayerParameters<real>& h : model.w.h)
            std::fill(h.b_enc, h.b_enc + c.n_expert * c.d_expert, b_enc);
        model.statistics_stale = true;
        forward(model, x.data(), y.data(), B, T);
        return mean_l0(model) / c.dense_width();
    }
    void step() {
        const double begin = now_seconds();
        zero_gradients(model);
        forward(model, x.data(), y.data(), B, T, 1);
        backward(model, real(1e-3));
        const double norm = gradient_norm(model);
        // The weights hardly move: a step costs the same, and the share of active units stays what it was.
        update(model, {1e-12}, ++steps, norm > 1 ? 1 / norm : 1);
        ms.push_back(1e3 * (now_seconds() - begin));
    }
    double tok_s() const { return 1e3 * B * T / median(ms); }
    double gflops() const { return flops_per_token(model.config, T) * tok_s() / 1e9; }
    // How fast beside another row: median over the rounds of its time divided by ours, of the same round.
    double speed_beside(const Row& other) const {
        std::vector<double> ratios;
        for (size_t i = 0; i < ms.size(); i++) ratios.push_back(other.ms[i] / ms[i]);
        return median(ratios);
    }
};

static void table(int64_t steps) {
    const size_t threads = thread_count();
    const double peak_1 = fma_peak(1), peak = fma_peak(threads);
    printf(
        "machine    %zu threads, vectors of %d bits: peak %.0f GFLOP/s (one thread %.0f), copy %.1f GB/s\n\n",
        threads, 8 * vector_bytes, peak, peak_1, copy_bandwidth());
    printf("matrix products, GFLOP/s (share of peak)\n");
    struct Shape {
        const char* what;
        size_t M, N, K;
        bool transpose_a, transpose_b;
    };
    for (const Shape& s : {Shape{"forward 1024x512x128", 1024, 512, 128, false, true},
                           {"input gradient 1024x128x512", 1024, 128, 512, false, false},
                           {"weight gradient 512x128x1024", 512, 128, 1024, true, false},
                           {"square 2048", 2048, 2048, 2048, false, true}}) {
        std::vector<real> a(s.M * s.K, 1), b(s.K * s.N, 1), out(s.M * s.N);
        const Matrix A = s.transpose_a ? row_major(a.data(), s.M).transposed() : row_major(a.data(), s.K);
        const Matrix Bm = s.transpose_b ? row_major(b.data(), s.K).transposed() : row_major(b.data(), s.N);
        std::vector<double> rates;
        for (int run = 0; run < 21; run++) {
            const double begin = now_seconds();
            multiply({out.data(), A, Bm, s.M, s.N, s.K, false, nullptr});
            rates.push_back(2.0 * s.M * s.N * s.K / (now_seconds() - begin) / 1e9);
        }
        printf("  %-30s %6.0f  (%2.0f%%)\n", s.what, median(rates), 100 * median(rates) / peak);
    }
    // A machine's clock wanders. The rows take turns, one step each, so that they all meet the same machine.
    printf("\ntraining step, 4 layers, 4 heads, C 128, T 256, B 4, V 96: median of %lld, the rows in turn;\n"
           "the last column is the speed beside the dense twin's in the same turn\n",
           (long long)steps);
    printf("  %-34s %9s %9s %9s %7s %6s %9s\n", "", "ms", "tok/s", "GFLOP/s", "peak", "l0", "of dense");
    Row rows[] = {{"dense twin, gelu (GPT-2)", "dense", "gelu", 0},
                  {"dense twin, relu", "dense", "relu", 0},
                  {"MoE, gelu", "moe", "gelu", 0},
                  {"MoE-X, half of the units fire", "moe", "relu", 0},
                  {"MoE-X, 20% fire (as in the demo)", "moe", "relu", 0.20},
                  {"MoE-X, 10% fire", "moe", "relu", 0.10},
                  {"MoE-X, 4% fire", "moe", "relu", 0.04},
                  {"GEGLU", "dense", "geglu", 0},
                  {"SoLU", "dense", "solu", 0},
                  {"Monet, hd", "monet-hd", "relu2", 0},
                  {"Monet, vd", "monet-vd", "relu2", 0},
                  {"PEER", "peer", "gelu", 0}};
    for (int64_t i = 0; i < steps; i++)
        for (Row& row : rows) row.step();
    for (const Row& row : rows)
        printf("  %-34s %9.2f %9.0f %9.1f %6.0f%% %6.0f %9.3f\n", row.what, median(row.ms), row.tok_s(),
               row.gflops(), 100 * row.gflops() / peak, mean_l0(row.model), row.speed_beside(rows[0]));
}

// ---------------------------------------------------------------------------------------------------------
// Tiles of zeros: a kernel of the experts' second products (y = z W_dec and its gradients) could leave out a
// tile of units that are zero for all its rows. Rows are an expert's slots one after the other, as the GPU
// program sorts them, the last tile of an expert shorter; units lie in W_dec as they are, or sorted by how
// often they fire, which is counted on other rows of the data than the tiles.

constexpr size_t tile_rows[] = {16, 64}, tile_units[] = {8, 16, 32, 64};

struct TileCounts {
    size_t zero = 0, tiles = 0;
};

// z (slots,D) of one expert; order (D): which unit lies where.
static void count_tiles(TileCounts counts[2][4], const real* z, size_t slots, size_t D,
                        const std::vector<size_t>& order) {
    for (size_t r = 0; r < 2; r++)
        for (size_t from = 0; from < slots; from += tile_rows[r]) {
            std::vector<char> fires(D);
            for (size_t s = from; s < std::min(slots, from + tile_rows[r]); s++)
                for (size_t i = 0; i < D; i++) fires[i] |= z[s * D + order[i]] != 0;
            for (size_t u = 0; u < 4; u++)
                for (size_t i = 0; i < D; i += tile_units[u]) {
                    const auto end = fires.begin() + std::min(D, i + tile_units[u]);
                    counts[r][u].tiles++;
                    counts[r][u].zero += std::find(fires.begin() + i, end, 1) == end;
                }
        }
}

static void zero_tiles(const std::string& ckpt, const std::string& data) {
    constexpr size_t B = 16, batches = 16; // of each half
    const SafeTensorsFile file(find_checkpoint(ckpt));
    const Config c = read_config(file);
    if (!c.moe() || !c.relu()) fail("%s: expected experts of relu units", file.path.c_str());
    const size_t row = open_shards(data)[0].header.row,
                 T = row ? std::min(row - 1, c.block_size) : c.block_size, E = c.n_expert, D = c.d_expert;
    const Loader loader(data, T, c.vocab_size, true, 1);
    if (loader.samples < 2 * B * batches)
        fail("%s: %zu samples, expected %zu", data.c_str(), loader.samples, 2 * B * batches);
    Model model(c, B, T, false);
    read_block(file, model.table, "", model.weights.data);
    std::vector<int32_t> tokens(B * T), targets(B * T);
    std::vector<size_t> fired(c.n_layer * E * D), slots(c.n_layer * E);
    TileCounts counts[2][2][4]; // as they are, sorted
    auto pass = [&](size_t first, auto each_expert) {
        for (size_t i = first; i < first + batches; i++) {
            loader.read(i * B, B, tokens.data(), targets.data());
            forward_layers(model, tokens.data(), B, T);
            for (size_t l = 0; l < c.n_layer; l++)
                for (size_t j = 0; j < E; j++) {
                    const LayerActivations& h = model.a.h[l];
                    each_expert(l * E + j, h.z + h.begin[j] * D, size_t(h.begin[j + 1] - h.begin[j]));
                }
        }
    };
    pass(0, [&](size_t expert, const real* z, size_t n) {
        slots[expert] += n;
        for (size_t k = 0; k < n * D; k++) fired[expert * D + k % D] += z[k] != 0;
    });
    pass(batches, [&](size_t expert, const real* z, size_t n) {
        std::vector<size_t> order(D);
        std::iota(order.begin(), order.end(), 0);
        count_tiles(counts[0], z, n, D, order);
        std::stable_sort(order.begin(), order.end(),
                         [&](size_t a, size_t b) { return fired[expert * D + a] > fired[expert * D + b]; });
        count_tiles(counts[1], z, n, D, order);
    });
    const double all = double(std::accumulate(slots.begin(), slots.end(), size_t(0)) * D);
    printf("%s, step %s: %.1f%% of the units fire; tiles that are zero for all their rows\n",
           file.path.c_str(), metadata_entry(file, "step").c_str(),
           100 * double(std::accumulate(fired.begin(), fired.end(), size_t(0))) / all);
    printf("  %-26s", "rows x units");
    for (const size_t units : tile_units) printf(" %6zu", units);
    for (size_t sorted = 0; sorted < 2; sorted++)
        for (size_t r = 0; r < 2; r++) {
            printf("\n  %2zu, %-22s", tile_rows[r], sorted ? "units sorted by rate" : "units as they are");
            for (size_t u = 0; u < 4; u++) {
                const TileCounts& t = counts[sorted][r][u];
                printf(" %5.1f%%", 100 * double(t.zero) / double(t.tiles));
            }
        }
    printf("\n");
}

int main(int argc, char** argv) {
    return run_main([&] {
        int64_t steps = 60;
        std::string what = "table", ckpt, data;
        Options options("bench_cpu", "Measures the reference on this machine.");
        options.add(0, "steps", "N", &steps, 1, 100000, "steps of each model to take the median of");
        options.add(0, "what", &what, {"table", "moe", "dense"},
                    "all for people, or one model as a line of JSON");
        options.add(0, "zero-tiles", "FILE|DIR", &ckpt,
                    "instead: the share of tiles of units that are zero in this checkpoint");
        options.add(0, "data", "GLOB", &data, "token shards for it");
        if (!options.parse(argc, argv)) return 0;
        if (!ckpt.empty()) return zero_tiles(ckpt, data), 0;
        if (what == "table") return table(steps), 0;
        Row row("", what.c_str(), what == "moe" ? "relu" : "gelu", 0);
        for (int64_t i = 0; i < steps; i++) row.step();
        printf("{\"what\": \"moex %s\", \"ms_median\": %.3f, \"tok_s\": %.0f, \"threads\": %zu}\n",
               what.c_str(), median(row.ms), row.tok_s(), thread_count());
        return 0;
    });
}
