// The gradient of every tensor of every variant against central finite differences, in double. For each
// tensor, the derivative along random directions (which touch every element) and along single elements:
//   |analytic - numeric| <= 1e-6 * max(|analytic|, |numeric|)
// Weights are drawn large enough that attention, routing and both moments of the router matter.
#include "../dev/cpu/model.h"
#include "check.h"
#include "variants.h"

static_assert(sizeof(real) == 8, "build with -DMOEX_DOUBLE");

struct Variant {
    const char *name, *ffn, *act, *router;
    size_t E, K, B, T, NH, C;
    double skip = 0; // 1: the products that skip zeros, whatever the share of active units
    Later later = {};
};

static double total_loss(Model& model, const std::vector<int32_t>& x, const std::vector<int32_t>& y, size_t B,
                         size_t T, const LossWeights& weights) {
    model.statistics_stale = true;
    const Losses losses = forward(model, x.data(), y.data(), B, T);
    double loss = losses.loss + (model.config.biased() ? 0 : weights.aux * losses.aux);
    const Penalties penalty = penalties(model);
    if (weights.l0) loss += weights.l0 * penalty.l0;
    if (weights.l1) loss += weights.l1 * penalty.l1;
    return loss;
}

static void test_variant(const Variant& v) {
    Config c;
    c.n_layer = 2, c.n_head = v.NH, c.n_embd = v.C, c.block_size = v.T, c.vocab_size = 13;
    c.ffn = v.ffn, c.act = v.act, c.router = v.router, c.n_expert = v.E, c.n_expert_active = v.K,
    c.d_expert = 10;
    set_later(c, v.later);
    check_config(c, v.name);
    Model model(c, v.B, v.T);
    model.skip = {v.skip, v.skip, v.skip};
    for (size_t i = 0; i < model.weights.count; i++) model.weights.data[i] = 0.3 * random_normal(11, 0, i);
    for (const Tensor& t : model.table)
        if (t.init == Init::ones)
            for (size_t i = 0; i < t.count; i++) model.weights.data[t.offset + i] += 1;
    std::vector<int32_t> x(v.B * v.T), y(v.B * v.T);
    for (size_t i = 0; i < x.size(); i++) x[i] = random_u64(3, 1, i) % 13, y[i] = random_u64(3, 2, i) % 13;

    const LossWeights weights = {0.7, v.later.l0, v.later.l1};
    const double share = 0.5; // as in one of two accumulation steps
    const LossWeights scales = {share * weights.aux, share * weights.l0, share * weights.l1};
    model.statistics_stale = true;
    forward(model, x.data(), y.data(), v.B, v.T, share);
    backward(model, scales);
    forward(model, x.data(), y.data(), v.B, v.T, share); // gradients add up over micro-steps
    backward(model, scales);

    double worst = 0;
    for (const Tensor& t : trained_tensors(model.table)) {
        real* w = model.weights.data + t.offset;
        const std::vector<real> saved(w, w + t.count);
        for (int trial = 0; trial < 5; trial++) {
            std::vector<real> direction(t.count);
            double length = 0, analytic = 0;
            for (size_t i = 0; i < t.count; i++) {
                const uint64_t one =
                    random_u64(5, trial, t.offset) % t.count; // trials 3 and 4: a single element
                direction[i] = trial < 3 ? random_normal(5, trial, t.offset + i) : i == one;
                length += direction[i] * direction[i];
            }
            for (size_t i = 0; i < t.count; i++) {
                direction[i] /= std::sqrt(length);
                analytic += direction[i] * model.gradients.data[t.offset + i];
            }
            auto loss_at = [&](double s) {
                for (size_t i = 0; i < t.count; i++) w[i] = saved[i] + s * direction[i];
                return total_loss(model, x, y, v.B, v.T, weights);
            };
            // A large step crosses kinks of relu and changes of routing, a small one drowns in the rounding
            // of the loss: the better of two counts. Below 1e-3 that rounding is all there is, as for the
            // bias of the keys.
            double error = INFINITY, numeric = 0;
            for (double step : {1e-5, 1e-6}) {
                const double near = loss_at(step) - loss_at(-step),
                             far = loss_at(2 * step) - loss_at(-2 * step);
                const double estimate = (8 * near - far) / (12 * step); // fourth order
                const double size = std::fmax(std::fmax(std::fabs(analytic), std::fabs(estimate)), 1e-3);
                if (std::fabs(analytic - estimate) / size < error)
                    error = std::fabs(analytic - estimate) / size, numeric = estimate;
            }
            std::copy(saved.begin(), saved.end(), w);
            worst = std::fmax(worst, error);
            check(error <= 1e-6, "%s %s: analytic %.10g numeric %.10g", v.name, t.name.c_str(), analytic,
                  numeric);
        }
    }
    if (getenv("MOEX_TEST_VERBOSE")) printf("%-28s worst relative error %.2g\n", v.name, worst);
}

int main() {
    set_thread_count(1); // the models are too small for more
    for (const Variant& v : std::vector<Variant>{
             {"moe relu sparsity", "moe", "relu", "sparsity", 4, 2, 2, 9, 2, 16},
             {"moe gelu topk", "moe", "gelu", "topk", 4, 2, 2, 9, 2, 16},
             {"moe relu topk", "moe", "relu", "topk", 4, 2, 2, 9, 2, 16},
             {"moe gelu sparsity", "moe", "gelu", "sparsity", 4, 2, 2, 9, 2, 16},
             {"dense gelu", "dense", "gelu", "sparsity", 4, 2, 2, 9, 2, 16},
             {"dense relu", "dense", "relu", "sparsity", 4, 2, 2, 9, 2, 16},
             {"dense geglu", "dense", "geglu", "sparsity", 4, 2, 2, 9, 2, 16},
             {"dense solu", "dense", "solu", "sparsity", 4, 2, 2, 9, 2, 16},
             {"gate all", "moe", "relu", "sparsity", 4, 2, 2, 9, 2, 16, 0, {.gate = "all"}},
             {"topk, gate all, K = 1", "moe", "gelu", "topk", 4, 1, 2, 9, 2, 16, 0, {.gate = "all"}},
             {"balance bias", "moe", "relu", "sparsity", 4, 2, 2, 9, 2, 16, 0, {.balance = "bias"}},
             {"sd scaled", "moe", "relu", "sparsity", 4, 2, 2, 9, 2, 16, 0, {.router_sd = "scaled"}},
             {"sd full", "moe", "relu", "sparsity", 4, 2, 2, 9, 2, 16, 0, {.router_sd = "full"}},
             {"unit top", "moe", "relu", "sparsity", 4, 2, 2, 9, 2, 16, 0, {.unit_top = 3}},
             {"unit top, skipped", "moe", "relu", "sparsity", 4, 2, 2, 9, 2, 16, 1, {.unit_top = 2}},
             {"l0 weight", "moe", "relu", "sparsity", 4, 2, 2, 9, 2, 16, 0, {.l0 = 0.8}},
             {"l1 weight", "moe", "relu", "sparsity", 4, 2, 2, 9, 2, 16, 1, {.l1 = 0.3}},
             {"topk, l1 weight", "moe", "relu", "topk", 4, 2, 2, 9, 2, 16, 0, {.gate = "all", .l1 = 0.3}},
             {"dense, l1 weight", "dense", "relu", "sparsity", 4, 2, 2, 9, 2, 16, 0, {.l1 = 0.3}},
             {"hd", "monet-hd", "relu2", "sparsity", 1, 1, 2, 9, 2, 16, 0, {7, 3, 2, 0, 1}},
             {"hd share 2", "monet-hd", "relu2", "sparsity", 1, 1, 2, 9, 2, 16, 0, {7, 3, 2, 0, 2}},
             {"vd", "monet-vd", "relu2", "sparsity", 1, 1, 2, 9, 2, 16, 0, {7, 3, 2, 0, 1}},
             {"vd share 2", "monet-vd", "relu2", "sparsity", 1, 1, 2, 9, 2, 16, 0, {7, 3, 2, 0, 2}},
             {"hd k = Q", "monet-hd", "relu2", "sparsity", 1, 1, 2, 5, 2, 16, 0, {3, 1, 3, 0, 2}},
             {"vd k = 1", "monet-vd", "relu2", "sparsity", 1, 1, 2, 5, 2, 16, 0, {5, 2, 1, 0, 2}},
             {"peer gelu", "peer", "gelu", "sparsity", 1, 1, 2, 9, 2, 16, 0, {6, 3, 4, 10, 0}},
             {"peer relu", "peer", "relu", "sparsity", 1, 1, 2, 9, 2, 16, 0, {6, 3, 4, 10, 0}},
             {"peer k = 1", "peer", "gelu", "sparsity", 1, 1, 2, 5, 2, 16, 0, {6, 3, 1, 4, 0}},
             {"peer k = Q, shared units", "peer", "gelu", "sparsity", 1, 1, 2, 5, 2, 16, 0, {2, 5, 2, 6, 0}},
             {"moe K = 1", "moe", "relu", "sparsity", 3, 1, 2, 5, 1, 8},
             {"moe K = E", "moe", "relu", "sparsity", 3, 3, 2, 5, 4, 12},
             {"topk K = 1", "moe", "gelu", "topk", 3, 1, 1, 6, 2, 8},
             {"moe E = 1", "moe", "relu", "sparsity", 1, 1, 1, 6, 2, 8},
             {"attention blocks", "moe", "relu", "sparsity", 2, 1, 1, 131, 2, 8},
             {"zeros skipped", "moe", "relu", "sparsity", 4, 2, 2, 40, 2, 24, 1},
             {"one position", "moe", "relu", "sparsity", 4, 2, 3, 1, 2, 8},
         })
        test_variant(v);
    return finish();
}
