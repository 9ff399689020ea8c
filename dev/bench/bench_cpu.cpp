// Speed of the reference on this machine: training steps of the dense twin and of the MoE-X of the same
// active size (4 layers, 4 heads, C 128, T 256, B 4, V 96: the model llm.c's CPU trainer was timed on), the
// matrix products behind them, and what skipping relu's zeros buys, each beside the machine's own measured
// peak.
//   bench_cpu [--steps N] [--what table|sparse|moe|dense]     moe, dense: one line of JSON for peers.sh
#include "../cpu/model.h"
#include "../lib/options.h"
#include "../lib/terminal.h"

static double median(std::vector<double> x) {
    std::sort(x.begin(), x.end());
    return x[x.size() / 2];
}

// Fused multiply-adds on registers, in as many independent chains as hide their latency. GFLOP/s
static real sink[64 * 64];
static double fma_peak(int threads) {
    std::vector<double> rates;
    for (int run = 0; run < 7; run++) {
        const size_t rounds = 4'000'000;
        const double begin = now_seconds();
#pragma omp parallel num_threads(threads)
        {
            vec a0{}, a1 = a0 + 1, a2 = a0 + 2, a3 = a0 + 3, a4 = a0 + 4, a5 = a0 + 5, a6 = a0 + 6,
                      a7 = a0 + 7;
            vec b = vec{} + *(volatile real*)sink, c = b + real(1e-3);
            for (size_t i = 0; i < rounds; i++) {
                a0 = a0 * b + c, a1 = a1 * b + c, a2 = a2 * b + c, a3 = a3 * b + c;
                a4 = a4 * b + c, a5 = a5 * b + c, a6 = a6 * b + c, a7 = a7 * b + c;
            }
            *(vec*)(sink + 64 * (omp_get_thread_num() % 63 + 1)) = a0 + a1 + a2 + a3 + a4 + a5 + a6 + a7;
        }
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
#pragma omp parallel for schedule(static)
        for (size_t i = 0; i < count; i++) to[i] = from[i];
        best = std::max(best, 2.0 * count * sizeof(float) / (now_seconds() - begin) / 1e9);
    }
    return best;
}

struct Timing {
    double ms, tok_s, gflops, l0;
};

// One model's training step. density > 0: the biases of the experts are shifted first so that about this
// share of the units fires, as it would in a trained model.
static Timing time_step(const char* ffn, const char* act, double density, int64_t steps) {
    const size_t B = 4, T = 256, V = 96;
    Config c;
    c.n_layer = 4, c.n_head = 4, c.n_embd = 128, c.block_size = T, c.vocab_size = V, c.ffn = ffn, c.act = act;
    Model model(c, B, T);
    init_parameters(c, model.table, model.weights.data, 1);
    std::vector<int32_t> x(B * T), y(B * T);
    for (size_t i = 0; i < B * T; i++)
        x[i] = int32_t(random_u64(1, 2, i) % V), y[i] = (x[i] * 7 + 3) % int32_t(V);
    auto shift = [&](real by) {
        for (LayerParameters<real>& h : model.w.h) std::fill(h.b_enc, h.b_enc + c.n_expert * c.d_expert, by);
        model.statistics_stale = true;
        forward(model, x.data(), y.data(), B, T);
        return mean_l0(model) / c.dense_width();
    };
    if (density > 0) {
        real low = -4, high = 0;
        for (int i = 0; i < 20; i++) (shift((low + high) / 2) > density ? high : low) = (low + high) / 2;
    }
    std::vector<double> ms;
    for (int64_t step = 0; step < steps + 3; step++) {
        const double begin = now_seconds();
        zero_gradients(model);
        forward(model, x.data(), y.data(), B, T, 1);
        backward(model, real(1e-3));
        const double norm = gradient_norm(model);
        // With a set density the weights stay: the step costs the same, the activity does not drift away.
        update(model, {density > 0 ? 1e-12 : 1e-3}, uint64_t(step + 1), norm > 1 ? 1 / norm : 1);
        if (step >= 3) ms.push_back(1e3 * (now_seconds() - begin)); // the first steps grow the workspaces
    }
    const double m = median(ms);
    return {m, 1e3 * B * T / m, flops_per_token(c, T) * B * T / m / 1e6, mean_l0(model)};
}

static void table(int64_t steps) {
    const int threads = omp_get_max_threads();
    const double peak_1 = fma_peak(1), peak = fma_peak(threads);
    printf(
        "machine    %d threads, vectors of %d bits: peak %.0f GFLOP/s (one thread %.0f), copy %.1f GB/s\n\n",
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
    printf("\ntraining step, 4 layers, 4 heads, C 128, T 256, B 4, V 96: median of %lld\n", (long long)steps);
    printf("  %-34s %9s %9s %9s %7s %6s\n", "", "ms", "tok/s", "GFLOP/s", "peak", "l0");
    struct Row {
        const char *what, *ffn, *act;
        double density;
    };
    for (const Row& r : {Row{"dense twin, gelu (GPT-2)", "dense", "gelu", 0},
                         {"dense twin, relu", "dense", "relu", 0},
                         {"MoE, gelu", "moe", "gelu", 0},
                         {"MoE-X, half of the units fire", "moe", "relu", 0},
                         {"MoE-X, 20% fire (as in the demo)", "moe", "relu", 0.20},
                         {"MoE-X, 10% fire", "moe", "relu", 0.10},
                         {"MoE-X, 4% fire", "moe", "relu", 0.04}}) {
        const Timing t = time_step(r.ffn, r.act, r.density, steps);
        printf("  %-34s %9.2f %9.0f %9.1f %6.0f%% %6.0f\n", r.what, t.ms, t.tok_s, t.gflops,
               100 * t.gflops / peak, t.l0);
        fflush(stdout);
    }
}

int main(int argc, char** argv) {
    return run_main([&] {
        int64_t steps = 60;
        std::string what = "table";
        Options options("bench_cpu", "Measures the reference on this machine.");
        options.add(0, "steps", "N", &steps, 1, 100000, "steps to take the median of");
        options.add(0, "what", &what, {"table", "moe", "dense"},
                    "all for people, or one model as a line of JSON");
        if (!options.parse(argc, argv)) return 0;
        if (what == "table") return table(steps), 0;
        const Timing t = time_step(what.c_str(), what == "moe" ? "relu" : "gelu", 0, steps);
        printf("{\"what\": \"moex %s\", \"ms_median\": %.3f, \"tok_s\": %.0f, \"threads\": %d}\n",
               what.c_str(), t.ms, t.tok_s, omp_get_max_threads());
        return 0;
    });
}
