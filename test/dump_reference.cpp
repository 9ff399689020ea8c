// What the reference computes, in double, for the PyTorch twin to check: for each variant OUT/<variant>/
// holds model.safetensors (a checkpoint) and expect.safetensors (tokens, logits, loss, aux, every gradient,
// the losses of ten AdamW steps on that batch and the weights after them).
#include "../dev/cpu/model.h"
#include "../dev/run/checkpoint.h"
#include "../dev/run/schedule.h"
#include "variants.h"

static_assert(sizeof(real) == 8, "build with -DMOEX_DOUBLE");

struct Variant {
    const char *name, *ffn, *act, *router;
    size_t E, K;
    Later later = {};
};

static void dump(const std::string& dir, const Variant& v) {
    const size_t B = 3, T = 70; // more than one block of attention
    Config c;
    c.n_layer = 2, c.n_head = 2, c.n_embd = 16, c.block_size = 72, c.vocab_size = 13;
    c.ffn = v.ffn, c.act = v.act, c.router = v.router, c.n_expert = v.E, c.n_expert_active = v.K,
    c.d_expert = 12;
    set_later(c, v.later);
    Model model(c, B, T);
    init_parameters(c, model.table, model.weights.data, 1);
    for (size_t i = 0; i < model.weights.count; i++) model.weights.data[i] += 0.2 * random_normal(11, 0, i);
    make_directories(dir);
    save_model(dir + "/model.safetensors", c, model.table, model.weights.data, 0);

    std::vector<int32_t> x(B * T), y(B * T);
    for (size_t i = 0; i < x.size(); i++) x[i] = random_u64(3, 1, i) % 13, y[i] = random_u64(3, 2, i) % 13;
    const double aux_weight = 0.05, clip = 1.0, balance_rate = 0.02;
    const Schedule schedule{1e-2, 0.1, 4, 20};
    AdamW adam;

    forward_logits(model, x.data(), B, T);
    const std::vector<double> logits(model.a.logits, model.a.logits + B * T * 13);
    const LossWeights weights = {aux_weight, v.later.l0, v.later.l1};
    const Losses losses = forward(model, x.data(), y.data(), B, T, 1);
    backward(model, weights);
    const std::vector<double> gradients(model.gradients.data, model.gradients.data + model.gradients.count);
    std::vector<double> losses10;
    for (int64_t step = 0; step < 10; step++) {
        zero_gradients(model);
        losses10.push_back(forward(model, x.data(), y.data(), B, T, 1).loss);
        backward(model, weights);
        const double norm = gradient_norm(model);
        adam.lr = schedule.at(step);
        update(model, adam, step + 1, norm > clip ? clip / norm : 1);
        update_running(model, balance_rate);
    }

    SafeTensorsWriter out(dir + "/expect.safetensors",
                          {{"aux_weight", strf("%.17g", aux_weight)},
                           {"lr", strf("%.17g", schedule.lr)},
                           {"warmup", std::to_string(schedule.warmup)},
                           {"steps", std::to_string(schedule.steps)},
                           {"final_lr_frac", strf("%.17g", schedule.final_fraction)},
                           {"weight_decay", strf("%.17g", adam.weight_decay)},
                           {"clip", strf("%.17g", clip)},
                           {"l0_weight", strf("%.17g", v.later.l0)},
                           {"l1_weight", strf("%.17g", v.later.l1)},
                           {"balance_rate", strf("%.17g", balance_rate)}});
    const std::vector<Tensor> trained = trained_tensors(model.table);
    out.declare("inputs", I64, {B, T}), out.declare("targets", I64, {B, T});
    out.declare("logits", F64, {B, T, 13}), out.declare("loss", F64, {1}), out.declare("aux", F64, {1});
    out.declare("losses10", F64, {10});
    for (const Tensor& t : trained) out.declare("grad." + t.name, F64, t.shape);
    for (const Tensor& t : model.table) out.declare("step10." + t.name, F64, t.shape);
    for (const std::vector<int32_t>* tokens : {&x, &y}) {
        const std::vector<int64_t> wide(tokens->begin(), tokens->end());
        out.write(wide.data(), wide.size() * 8);
    }
    out.write(logits.data(), logits.size() * 8), out.write(&losses.loss, 8), out.write(&losses.aux, 8);
    out.write(losses10.data(), losses10.size() * 8);
    for (const Tensor& t : trained) out.write(gradients.data() + t.offset, t.count * 8);
    for (const Tensor& t : model.table) out.write(model.weights.data + t.offset, t.count * 8);
    out.commit();
}

int main(int argc, char** argv) {
    return run_main([&] {
        if (argc != 2) fail_usage("usage: dump_reference OUT");
        for (const Variant& v :
             std::vector<Variant>{{"moe-relu-sparsity", "moe", "relu", "sparsity", 4, 2},
                                  {"moe-gelu-topk", "moe", "gelu", "topk", 4, 2},
                                  {"moe-relu-topk", "moe", "relu", "topk", 4, 2},
                                  {"moe-gelu-sparsity", "moe", "gelu", "sparsity", 4, 2},
                                  {"moe-relu-sparsity-k1", "moe", "relu", "sparsity", 4, 1},
                                  {"moe-relu-sparsity-kE", "moe", "relu", "sparsity", 4, 4},
                                  {"dense-gelu", "dense", "gelu", "sparsity", 4, 2},
                                  {"dense-relu", "dense", "relu", "sparsity", 4, 2},
                                  {"dense-geglu", "dense", "geglu", "sparsity", 4, 2},
                                  {"dense-solu", "dense", "solu", "sparsity", 4, 2},
                                  {"gate-all", "moe", "relu", "sparsity", 4, 2, {.gate = "all"}},
                                  {"topk-k1-gate-all", "moe", "gelu", "topk", 4, 1, {.gate = "all"}},
                                  {"balance-bias", "moe", "relu", "sparsity", 4, 2, {.balance = "bias"}},
                                  {"sd-scaled", "moe", "relu", "sparsity", 4, 2, {.router_sd = "scaled"}},
                                  {"sd-full", "moe", "relu", "sparsity", 4, 2, {.router_sd = "full"}},
                                  {"unit-top", "moe", "relu", "sparsity", 4, 2, {.unit_top = 3}},
                                  {"penalties", "moe", "relu", "sparsity", 4, 2, {.l0 = 0.8, .l1 = 0.3}},
                                  {"dense-l1", "dense", "relu", "sparsity", 4, 2, {.l1 = 0.3}},
                                  {"monet-hd-1", "monet-hd", "relu2", "sparsity", 1, 1, {7, 3, 2, 0, 1}},
                                  {"monet-hd-2", "monet-hd", "relu2", "sparsity", 1, 1, {7, 3, 2, 0, 2}},
                                  {"monet-vd-1", "monet-vd", "relu2", "sparsity", 1, 1, {7, 3, 2, 0, 1}},
                                  {"monet-vd-2", "monet-vd", "relu2", "sparsity", 1, 1, {7, 3, 2, 0, 2}},
                                  {"peer-gelu", "peer", "gelu", "sparsity", 1, 1, {6, 3, 4, 10, 0}},
                                  {"peer-relu", "peer", "relu", "sparsity", 1, 1, {6, 3, 4, 10, 0}}})
            dump(std::string(argv[1]) + "/" + v.name, v);
        return 0;
    });
}
