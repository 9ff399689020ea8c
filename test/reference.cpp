// The reference of dev/cpu in double, behind the names of reference.h. Its sources stand in a namespace,
// since the CUDA program has functions of the same names; what they include is included first, outside, so
// that the namespace takes in nothing but the reference itself.
#include "reference.h"
#include "../dev/lib/threads.h"
#include "../dev/run/parameters.h"
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <numeric>
#include <sys/mman.h>
#include <utility>
#include <vector>

namespace reference {

namespace cpu {
#include "../dev/cpu/attention.cpp"
#include "../dev/cpu/gemm.cpp"
#include "../dev/cpu/layers.cpp"
#include "../dev/cpu/model.cpp"
#include "../dev/cpu/moe.cpp"
#include "../dev/cpu/monet.cpp"
#include "../dev/cpu/peer.cpp"
#include "../dev/cpu/penalty.cpp"
#include "../dev/cpu/router_sd.cpp"
#include "../dev/cpu/sparse.cpp"
static_assert(sizeof(real) == 8, "build with -DMOEX_DOUBLE");
} // namespace cpu

decltype(add_column_sums) add_column_sums = cpu::add_column_sums;
decltype(embedding_forward) embedding_forward = cpu::embedding_forward;
decltype(embedding_backward) embedding_backward = cpu::embedding_backward;
decltype(layernorm_forward) layernorm_forward = cpu::layernorm_forward;
decltype(layernorm_backward) layernorm_backward = cpu::layernorm_backward;
decltype(linear_forward) linear_forward = cpu::linear_forward;
decltype(linear_backward) linear_backward = cpu::linear_backward;
decltype(activation_forward) activation_forward = cpu::activation_forward;
decltype(activation_backward) activation_backward = cpu::activation_backward;
decltype(geglu_forward) geglu_forward = cpu::geglu_forward;
decltype(geglu_backward) geglu_backward = cpu::geglu_backward;
decltype(solu_forward) solu_forward = cpu::solu_forward;
decltype(solu_backward) solu_backward = cpu::solu_backward;
decltype(classifier) classifier = cpu::classifier;
decltype(attention_forward) attention_forward = cpu::attention_forward;
decltype(attention_backward) attention_backward = cpu::attention_backward;
decltype(expert_statistics_forward) expert_statistics_forward = cpu::expert_statistics_forward;
decltype(balance_forward) balance_forward = cpu::balance_forward;
decltype(balance_backward) balance_backward = cpu::balance_backward;
decltype(expected_share_backward) expected_share_backward = cpu::expected_share_backward;
decltype(dispatch) dispatch = cpu::dispatch;
decltype(gather) gather = cpu::gather;
decltype(gather_backward) gather_backward = cpu::gather_backward;
decltype(combine_forward) combine_forward = cpu::combine_forward;
decltype(combine_backward) combine_backward = cpu::combine_backward;

void expert_statistics_backward(double* dw_enc, double* db_enc, const double* dm, const double* dv,
                                const double* dmb, const double* dvb, const double* w_enc,
                                const double* b_enc, const double* m, const double* mb, size_t E, size_t D,
                                size_t C) {
    const auto written_by_others = [](const double* p) { return const_cast<double*>(p); };
    const cpu::RouterGradients d = {written_by_others(dm),
                                    written_by_others(dv),
                                    written_by_others(dmb),
                                    written_by_others(dvb),
                                    nullptr,
                                    nullptr};
    cpu::expert_statistics_backward(dw_enc, db_enc, d, w_enc, b_enc,
                                    {m, nullptr, mb, nullptr, nullptr, nullptr}, E, D, C);
}
void router_backward(double* dx, double* dm, double* dv, double* dmb, double* dvb, double* dmu, double* dvar,
                     double* scratch, const double* dg, const double* x, const double* mu, const double* sd,
                     const double* m, const double* v, const double* rho, size_t N, size_t E, size_t C) {
    cpu::router_backward(dx, {dm, dv, dmb, dvb, dmu, dvar}, dg, x, {m, v, nullptr, nullptr, mu, sd, rho},
                         scratch, N, E, C);
}

void router_forward(double* g, double* mu, double* sd, const double* x, const double* m, const double* v,
                    const double* mb, const double* vb, const double* rho, size_t N, size_t E, size_t C) {
    cpu::router_forward(g, mu, sd, x, m, v, mb, vb, N, E, C, rho);
}
void add_variances(double* sums, const double* h, const double* sd, const double* rho, const int32_t* begin,
                   const int32_t* token, size_t E, size_t D) {
    cpu::add_variances((cpu::Variances*)sums, h, sd, rho, begin, token, E, D);
}
void move_rho(double* rho, const double* sums, size_t E) {
    cpu::move_rho(rho, (const cpu::Variances*)sums, E);
}
void choice_forward(int32_t* choice, double* weight, const double* g, size_t N, size_t E, size_t K,
                    const int8_t* standing, uint64_t ranks) {
    cpu::choice_forward(choice, weight, g, N, E, K, {nullptr, false, standing, ranks});
}
void choice_backward(double* dg, const double* dweight, const double* weight, const int32_t* choice, size_t N,
                     size_t E, size_t K) {
    cpu::choice_backward(dg, dweight, weight, choice, N, E, K);
}

// The same experts with the scratch they need.
struct Scratch {
    std::vector<cpu::Product> products;
    std::vector<cpu::ExpertPart> parts;
    cpu::Experts experts;
    explicit Scratch(const Experts& e)
        : products(e.E),
          parts(e.E), experts{e.E,     e.D,     e.C,     e.relu,          e.w_enc,      e.b_enc,
                              e.w_dec, e.b_dec, e.begin, products.data(), parts.data(), {-1, -1, -1}} {}
};
void experts_forward(double* y, double* z, double* h, const double* x, const Experts& e) {
    cpu::experts_forward(y, z, h, x, Scratch(e).experts);
}
void experts_backward(double* dx, double* dw_enc, double* db_enc, double* dw_dec, double* db_dec, double* dh,
                      const double* dy, const double* x, const double* z, const double* h, const Experts& e) {
    const size_t all = size_t(e.begin[e.E]) * e.D; // as if every unit had fired: nothing to skip
    cpu::experts_backward(dx, {dw_enc, db_enc, dw_dec, db_dec, dh}, dy, x, z, h, all, Scratch(e).experts);
}

void multiply(double* out, const double* a, const double* b, size_t M, size_t N, size_t K, bool a_transposed,
              bool b_transposed, bool accumulate) {
    using cpu::row_major;
    cpu::multiply({out, a_transposed ? row_major(a, M).transposed() : row_major(a, K),
                   b_transposed ? row_major(b, K).transposed() : row_major(b, N), M, N, K, accumulate});
}

Results train(const Config& config, const std::vector<float>& weights, const std::vector<int32_t>& tokens,
              const std::vector<int32_t>& targets, size_t micros, size_t B, size_t T, size_t steps, double lr,
              double aux_weight, double l0_weight, double clip, double weight_decay) {
    const size_t N = B * T, E = config.n_expert, K = config.n_expert_active;
    cpu::Model model(config, B, T);
    std::copy(weights.begin(), weights.end(), model.weights.data);
    cpu::AdamW adam;
    adam.lr = lr, adam.weight_decay = weight_decay;
    Results r{};
    cpu::forward_logits(model, tokens.data(), B, T);
    r.logits.assign(model.a.logits, model.a.logits + N * config.vocab_size);
    for (const cpu::LayerActivations& h : model.a.h) {
        if (!config.moe()) break;
        r.choice.insert(r.choice.end(), h.choice, h.choice + N * K);
        r.scores.insert(r.scores.end(), h.g, h.g + N * E);
    }
    for (size_t step = 0; step < steps; step++) {
        cpu::Losses mean;
        cpu::zero_gradients(model);
        for (size_t i = 0; i < micros; i++) {
            const cpu::Losses losses =
                cpu::forward(model, &tokens[i * N], &targets[i * N], B, T, 1.0 / micros);
            mean.loss += losses.loss / micros, mean.aux += losses.aux / micros;
            cpu::backward(model, {aux_weight / micros, l0_weight / micros});
        }
        if (step == 0) {
            r.loss = mean.loss, r.aux = mean.aux;
            r.gradients.assign(model.gradients.data, model.gradients.data + model.gradients.count);
        }
        r.losses.push_back(mean.loss);
        const double norm = cpu::gradient_norm(model);
        cpu::update(model, adam, step + 1, clip > 0 && norm > clip ? clip / norm : 1);
        cpu::update_running(model, 0);
    }
    r.weights.assign(model.weights.data, model.weights.data + model.weights.count);
    return r;
}

std::vector<LayerUnits> units(const Config& config, const std::vector<float>& weights,
                              const std::vector<int32_t>& tokens, size_t B, size_t T) {
    const size_t N = B * T, E = config.moe() ? config.n_expert : 1,
                 K = config.moe() ? config.n_expert_active : 1;
    const size_t D = config.moe() ? config.d_expert : config.dense_width();
    cpu::Model model(config, B, T, false);
    std::copy(weights.begin(), weights.end(), model.weights.data);
    cpu::forward_logits(model, tokens.data(), B, T);
    std::vector<LayerUnits> layers;
    for (const cpu::LayerActivations& h : model.a.h) {
        const double* z = config.solu() ? h.u : h.z; // what a model is judged by
        LayerUnits u;
        u.x.assign(h.ln_2, h.ln_2 + N * config.n_embd);
        u.mega.resize(N * E * D);
        if (config.moe()) u.g.assign(h.g, h.g + N * E);
        for (size_t n = 0; n < N; n++)
            for (size_t k = 0; k < K; k++)
                for (size_t i = 0; i < D; i++) {
                    const size_t expert = config.moe() ? h.choice[n * K + k] : 0;
                    const size_t slot = config.moe() ? h.slot[n * K + k] : n;
                    u.mega[(n * E + expert) * D + i] =
                        (config.moe() ? h.weight[n * K + k] : 1) * z[slot * D + i];
                }
        layers.push_back(std::move(u));
    }
    return layers;
}

} // namespace reference
