// The units that dev/interp sees when the model runs on the GPU (units_cuda.h), against the reference in
// double. For the GPU, or for the CPU by dev/emu; in bf16 or with -DPRECISION_FP32.
#define MOEX_LIBRARY
#include "../train_moex.cu"

#include "../dev/interp/units_cuda.h"
#include "check.h"
#include "reference.h"

constexpr bool fp32 = sizeof(floatX) == 4;
constexpr double tolerance = fp32 ? 1e-5 : 3e-2;

// ||got - expected|| / ||expected||; NaN where anything is.
template <class T> static double difference(const T* got, const std::vector<double>& expected) {
    double error = 0, size = 0;
    for (size_t i = 0; i < expected.size(); i++) {
        error += (double(got[i]) - expected[i]) * (double(got[i]) - expected[i]);
        size += expected[i] * expected[i];
    }
    return std::sqrt(error / size);
}

static void test_units(const char* ffn, const char* act, const char* router) {
    const std::string name = std::string(ffn) + " " + act + " " + router;
    Config c;
    c.n_layer = 2, c.n_head = 2, c.n_embd = 32, c.block_size = 40, c.vocab_size = 32;
    c.n_expert = 4, c.n_expert_active = 2, c.d_expert = 24;
    c.ffn = ffn, c.act = act, c.router = router;
    Reader reader = cuda_reader(c, 3, 40);
    untrained_weights(reader, 7);
    for (const Tensor& t : reader.table) // as the build can represent them, and experts that differ
        for (size_t i = 0; i < t.count; i++) {
            float& w = reader.weights()[t.offset + i];
            const bool unit = t.name.find("b_enc") != std::string::npos;
            w += float(0.1 * random_normal(7, 99, t.offset + i) + (unit ? 0.3 * double(i / 24) : 0));
            w = float(floatX(w));
        }
    reader.changed();
    const std::vector<Tensor> plain = tensor_table(c); // the GPU has rows behind the vocabulary
    std::vector<float> weights(block_elements(plain));
    for (size_t i = 0; i < plain.size(); i++)
        std::copy_n(reader.weights() + reader.table[i].offset, plain[i].count, &weights[plain[i].offset]);

    size_t ties = 0;
    for (const size_t B : {2, 1}) { // a smaller batch after a larger one
        const size_t T = 40 - B, N = B * T;
        std::vector<int32_t> tokens;
        for (size_t n = 0; n < N; n++) tokens.push_back(int32_t(random_u64(B, 1, n) % c.vocab_size));
        const std::vector<reference::LayerUnits> expected = reference::units(c, weights, tokens, B, T);
        reader.read(tokens.data(), B, T);
        for (size_t l = 0; l < c.n_layer; l++) {
            const LayerUnits u = reader.layer(l);
            check(difference(u.x, expected[l].x) <= tolerance, "%s: x %g", name.c_str(),
                  difference(u.x, expected[l].x));
            std::vector<double> mega(N * reader.units()), ungated(mega.size());
            bool once = true;
            for (size_t n = 0; n < N; n++) {
                u.each(n, true, [&](size_t unit, float value) {
                    double& place = mega[n * reader.units() + unit];
                    once &= place == 0;
                    place = value;
                });
                u.each(n, false,
                       [&](size_t unit, float value) { ungated[n * reader.units() + unit] = value; });
                for (size_t k = 0; k < u.K && u.weight; k++)
                    for (size_t i = 0; i < u.D; i++)
                        ungated[n * reader.units() + u.choice[n * u.K + k] * u.D + i] *=
                            u.weight[n * u.K + k];
                // A token whose last two scores tie within rounding may go to another expert.
                bool same = true;
                for (size_t j = 0; j < u.E; j++) {
                    const auto chosen = [&](const std::vector<double>& all) {
                        const double* first = &all[n * reader.units() + j * u.D];
                        return std::any_of(first, first + u.D, [](double x) { return x != 0; });
                    };
                    same &= chosen(mega) == chosen(expected[l].mega);
                }
                if (same) continue;
                ties++;
                for (size_t i = n * reader.units(); i < (n + 1) * reader.units(); i++)
                    mega[i] = ungated[i] = expected[l].mega[i];
            }
            check(once, "%s: a unit comes twice", name.c_str());
            for (const std::vector<double>& got : {mega, ungated})
                check(difference(got.data(), expected[l].mega) <= tolerance, "%s: units %g", name.c_str(),
                      difference(got.data(), expected[l].mega));
            if (c.moe())
                check(difference(u.g, expected[l].g) <= tolerance, "%s: scores %g", name.c_str(),
                      difference(u.g, expected[l].g));
            check((u.mu && u.sd) == (c.moe() && !c.topk()), "%s: mu and sd", name.c_str());
            for (size_t i = 0; i < N * u.E && u.mu; i++)
                check_near(u.g[i], -std::erf(u.mu[i] / (std::sqrt(2.0) * u.sd[i])), 1e-4);
        }
        const float* logits = reader.logits();
        bool finite = true, different = false;
        for (size_t i = 0; i < N * c.vocab_size; i++)
            finite &= std::isfinite(logits[i]), different |= logits[i] != logits[0];
        check(finite && different, "%s: logits", name.c_str());
    }
    check(ties <= (fp32 ? 0 : 8), "%s: %zu tokens with other experts", name.c_str(), ties);
}

// The other views of a layer, from its input, or from its first view.
static void test_views() {
    const size_t N = 20, W = 48, C = 32;
    std::vector<int32_t> tokens;
    for (size_t n = 0; n < N; n++) tokens.push_back(int32_t(random_u64(3, 1, n) % 32));
    for (const char* act : {"geglu", "solu", "gelu"}) {
        Config c;
        c.n_layer = 2, c.n_head = 2, c.n_embd = C, c.block_size = N, c.vocab_size = 32;
        c.ffn = "dense", c.act = act, c.n_expert_active = 2, c.d_expert = W / 2;
        Reader reader = cuda_reader(c, 1, N);
        untrained_weights(reader, 7);
        std::map<std::string, const float*> weights;
        for (const Tensor& t : reader.table) {
            float* const w = reader.weights() + t.offset;
            for (size_t i = 0; i < t.count; i++)
                w[i] = float(floatX(w[i] + float(0.1 * random_normal(7, 99, t.offset + i))));
            weights[t.name] = w;
        }
        reader.changed();
        reader.read(tokens.data(), 1, N);
        std::string names;
        for (const UnitView& view : reader.views) names += view.name + " ";
        check(names == (c.geglu()  ? "units gate "
                        : c.solu() ? "pre post "
                                   : "units "),
              "%s: %s", act, names.c_str());
        for (size_t l = 0; l < c.n_layer && reader.views.size() > 1; l++) {
            const LayerUnits first = reader.views[0].layer(l);
            const std::vector<double> x(first.x, first.x + N * C), z(first.z, first.z + N * W);
            const auto of = [&](const char* name) { return weights.at(strf("h.%zu.mlp.%s", l, name)); };
            std::vector<double> expected(N * W);
            for (size_t n = 0; n < N; n++) {
                double mean = 0, squares = 0;
                for (size_t i = 0; i < W; i++) mean += z[n * W + i] / W;
                for (size_t i = 0; i < W; i++) squares += (z[n * W + i] - mean) * (z[n * W + i] - mean) / W;
                for (size_t i = 0; i < W; i++) {
                    double& to = expected[n * W + i];
                    if (c.solu()) {
                        to = (z[n * W + i] - mean) / std::sqrt(squares + 1e-5) * of("ln_mid.weight")[i] +
                             of("ln_mid.bias")[i];
                        continue;
                    }
                    double a = of("c_gate.bias")[i];
                    for (size_t k = 0; k < C; k++) a += x[n * C + k] * of("c_gate.weight")[i * C + k];
                    to = a / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (a + 0.044715 * a * a * a)));
                }
            }
            const LayerUnits second = reader.views[1].layer(l);
            check(second.D == W && difference(second.z, expected) <= tolerance, "%s: %s %g", act,
                  reader.views[1].name.c_str(), difference(second.z, expected));
        }
    }
}

int main() {
    return run_main([] {
        test_units("moe", "relu", "sparsity");
        test_units("moe", "gelu", "topk");
        test_units("moe", "gelu", "sparsity");
        test_units("dense", "relu", "sparsity");
        test_units("dense", "gelu", "sparsity");
        test_units("dense", "geglu", "sparsity");
        test_units("dense", "solu", "sparsity");
        test_views();
        return finish();
    });
}
