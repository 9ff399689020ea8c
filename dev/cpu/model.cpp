// The model of model.h: its memory laid out, then the pass down the layers, the pass up, and the update.
#include "model.h"
#include <cmath>
#include <functional>
#include <initializer_list>
#include <numeric>

// ---------------------------------------------------------------------------------------------------------
// Memory

Block allocate_arrays(const std::function<void(const Visit&)>& list) {
    size_t total = 0, offset = 0;
    list([&](real*&, size_t count) { total += round_up(count, 32); });
    Block block(total);
    list([&](real*& place, size_t count) {
        place = block.data + offset;
        offset += round_up(count, 32);
    });
    return block;
}

std::vector<int32_t> allocate_indices(const std::function<void(const VisitIndices&)>& list) {
    size_t total = 0, offset = 0;
    list([&](int32_t*&, size_t count) { total += count; });
    std::vector<int32_t> indices(total);
    list([&](int32_t*& place, size_t count) {
        place = indices.data() + offset;
        offset += count;
    });
    return indices;
}

// Every activation with its number of elements, for N = B T tokens of a batch.
static void for_each_activation(const Config& c, size_t N, Activations& a, const Visit& visit,
                                const VisitIndices& visit_indices) {
    const size_t C = c.n_embd, E = c.n_expert, K = c.n_expert_active, D = c.d_expert;
    const size_t units = c.moe() || c.dense() ? N * K * D : 0;
    struct Item {
        real** place;
        size_t count;
    };
    auto list = [&](std::initializer_list<Item> items) {
        for (const Item& item : items) visit(*item.place, item.count);
    };
    a.h.resize(c.n_layer);
    list({{&a.embedded, N * C}});
    for (size_t l = 0; l < c.n_layer; l++) {
        LayerActivations& h = a.h[l];
        list({{&h.ln_1, N * C}, {&h.ln_1_mean, N}, {&h.ln_1_rstd, N}});
        list({{&h.qkv, N * 3 * C}, {&h.lse, N * c.n_head}, {&h.att, N * C}});
        list({{&h.mid, N * C}});
        list({{&h.ln_2, N * C}, {&h.ln_2_mean, N}, {&h.ln_2_rstd, N}});
        list({{&h.z, units}});
        if (!c.relu() || c.scaled()) list({{&h.h, units}});
        if (c.geglu()) list({{&h.gate, units}});
        if (c.solu()) list({{&h.s, units}, {&h.u, units}, {&h.u_mean, N}, {&h.u_rstd, N}});
        list({{&h.out, N * C}});
        if (c.monet()) for_each_array(h.monet, c, N, c.routes(l), visit, visit_indices);
        if (c.peer()) for_each_array(h.peer, c, N, visit, visit_indices);
        if (!c.moe()) continue;
        list({{&h.m, E * C}, {&h.v, E * C}, {&h.mb, E}, {&h.vb, E}});
        if (c.full()) list({{&h.covariance, E * (C + 1) * (C + 1)}});
        list({{&h.mu, N * E}, {&h.sd, N * E}, {&h.g, N * E}, {&h.p, N * E}, {&h.mean_p, E}});
        list({{&h.weight, N * K}, {&h.y, N * K * C}});
        visit_indices(h.choice, N * K);
        visit_indices(h.slot, N * K);
        visit_indices(h.token, N * K);
        visit_indices(h.begin, E + 1);
    }
    list({{&a.ln_f, N * C}, {&a.ln_f_mean, N}, {&a.ln_f_rstd, N}});
    list({{&a.logits, N * c.vocab_size}, {&a.losses, N}});
    list({{&a.proj, N * C}});
    list({{&a.dresidual, N * C}, {&a.dln, N * C}, {&a.datt, N * C}, {&a.dqkv, N * 3 * C}});
    list({{&a.dh, units}});
    if (c.geglu()) list({{&a.dgate, units}});
    if (c.solu()) list({{&a.du, units}});
    list({{&a.norm, c.moe() ? E * D : units / N}, {&a.factor, N * K}});
    if (c.monet()) for_each_array(a.monet, c, N, visit);
    if (c.peer()) for_each_array(a.peer, c, N, true, visit, visit_indices);
    if (!c.moe()) return;
    list({{&a.dy, N * K * C}, {&a.dslots, N * K * C}});
    list({{&a.dg, N * E}, {&a.dmu, N * E}, {&a.dvar, N * E}, {&a.dweight, N * K}});
    list({{&a.dm, E * C}, {&a.dv, E * C}, {&a.dmb, E}, {&a.dvb, E}});
}

Model::Model(const Config& config, size_t B, size_t T, bool training)
    : config(config), table(tensor_table(config)), weights(block_elements(table)), max_B(B), max_T(T) {
    if (T > config.block_size) fail("T is %zu, more than the model's block_size %zu", T, config.block_size);
    w = carve_parameters(config, table, weights.data);
    if (B == 0) return;
    if (training) {
        gradients = Block(weights.count);
        moment_1 = Block(weights.count);
        moment_2 = Block(weights.count);
        g = carve_parameters(config, table, gradients.data);
    }
    const auto no_reals = [](real*&, size_t) {};
    const auto no_indices = [](int32_t*&, size_t) {};
    activations = allocate_arrays(
        [&](const Visit& visit) { for_each_activation(config, B * T, a, visit, no_indices); });
    indices = allocate_indices(
        [&](const VisitIndices& visit) { for_each_activation(config, B * T, a, no_reals, visit); });
    for (size_t l = 0; l < config.n_layer; l++) {
        LayerActivations& h = a.h[l];
        if (config.relu()) { // relu(h) > 0 exactly where h > 0: one array serves as both
            if (!config.scaled()) h.h = h.z;
            h.peer.h = h.peer.f;
        }
        if (config.monet()) h.monet.routing = a.h[l - l % config.n_share].monet.routing;
    }
    products.resize(config.n_expert);
    parts.resize(config.n_expert);
    load.resize(config.n_layer * config.n_expert);
    variances.resize(load.size());
    partial.resize((weights.count + norm_block - 1) / norm_block);
}

size_t Model::activation_elements(const Config& config, size_t B, size_t T) {
    size_t total = 0;
    Activations unused{};
    for_each_activation(
        config, B * T, unused, [&](real*&, size_t count) { total += round_up(count, 32); },
        [](int32_t*&, size_t) {});
    return total;
}

Experts layer_experts(Model& model, size_t l) {
    const Config& c = model.config;
    const LayerParameters<real>& w = model.w.h[l];
    return {c.n_expert,
            c.d_expert,
            c.n_embd,
            c.relu(),
            w.w_enc,
            w.b_enc,
            w.w_dec,
            w.b_dec,
            model.a.h[l].begin,
            model.products.data(),
            model.parts.data(),
            model.skip,
            model.a.h[l].token,
            c.unit_top};
}

void apply(Model& model, const Intervention& v) {
    model.routing = v.routing;
    for (const Tensor& t : model.table) v.apply(model.config, t, model.weights.data + t.offset);
}

// ---------------------------------------------------------------------------------------------------------
// Feed-forward layers: from a layer's ln_2 to its out, returning its part of aux; backward, from a.dresidual
// to a.dln

static double dense_forward(Model& model, size_t l) {
    const Config& c = model.config;
    const size_t N = model.B * model.T, C = c.n_embd, W = c.dense_width();
    const LayerParameters<real>& w = model.w.h[l];
    LayerActivations& h = model.a.h[l];
    linear_forward(h.h, h.ln_2, w.fc_weight, w.fc_bias, N, C, W);
    if (c.geglu()) {
        linear_forward(h.gate, h.ln_2, w.gate_weight, w.gate_bias, N, C, W);
        geglu_forward(h.z, h.gate, h.h, N * W);
    } else if (c.solu()) {
        solu_forward(h.u, h.s, h.h, N, W);
        layernorm_forward(h.z, h.u_mean, h.u_rstd, h.u, w.ln_mid_weight, w.ln_mid_bias, N, W);
    } else {
        activation_forward(h.z, h.h, N * W, c.relu());
    }
    h.active = count_active(c.solu() ? h.u : h.z, N * W);
    linear_forward(model.a.proj, h.z, w.fc_proj_weight, w.fc_proj_bias, N, W, C);
    residual_forward(h.out, h.mid, model.a.proj, N * C);
    return 0;
}

// The weighted L1 (penalty.h) of a layer, its weight being N times `scale`. Fills a.norm.
static L1 dense_l1(Model& model, size_t l, real scale) {
    const size_t C = model.config.n_embd, W = model.config.dense_width();
    row_norms(model.a.norm, row_major(model.w.h[l].fc_proj_weight, W).transposed(), W, C);
    return {model.a.norm, nullptr, scale};
}

static void dense_backward(Model& model, size_t l, const LossWeights& scales) {
    const Config& c = model.config;
    const size_t N = model.B * model.T, C = c.n_embd, W = c.dense_width();
    const LayerParameters<real>&w = model.w.h[l], &dw = model.g.h[l];
    const LayerActivations& h = model.a.h[l];
    Activations& a = model.a;
    linear_backward(a.dh, dw.fc_proj_weight, dw.fc_proj_bias, a.dresidual, h.z, w.fc_proj_weight, N, W, C);
    if (c.geglu()) {
        geglu_backward(a.dgate, a.dh, a.dh, h.gate, h.h, N * W);
    } else if (c.solu()) {
        std::fill(a.du, a.du + N * W, real(0));
        layernorm_backward(a.du, dw.ln_mid_weight, dw.ln_mid_bias, a.dh, h.u, h.u_mean, h.u_rstd,
                           w.ln_mid_weight, N, W);
        solu_backward(a.dh, a.du, h.u, h.s, h.h, N, W);
    } else {
        activation_backward(a.dh, a.dh, h.h, N * W, c.relu());
    }
    if (scales.l1 > 0) {
        const L1 l1 = dense_l1(model, l, scales.l1 / N);
        weighted_l1_units(a.dh, h.z, l1, N, W);
        weighted_l1_rows(dw.fc_proj_weight, row_major(w.fc_proj_weight, W).transposed(), h.z, l1, N, W, C);
    }
    linear_backward(a.dln, dw.fc_weight, dw.fc_bias, a.dh, h.ln_2, w.fc_weight, N, C, W);
    if (c.geglu()) {
        linear_backward(a.proj, dw.gate_weight, dw.gate_bias, a.dgate, h.ln_2, w.gate_weight, N, C, W);
        residual_forward(a.dln, a.dln, a.proj, N * C);
    }
}

static double moe_forward(Model& model, size_t l) {
    const Config& c = model.config;
    const size_t N = model.B * model.T, C = c.n_embd, E = c.n_expert, K = c.n_expert_active, D = c.d_expert;
    const LayerParameters<real>& w = model.w.h[l];
    LayerActivations& h = model.a.h[l];
    if (c.topk()) {
        linear_forward(h.g, h.ln_2, w.router, nullptr, N, C, E);
    } else {
        if (model.statistics_stale)
            expert_statistics_forward(h.m, h.v, h.mb, h.vb, w.w_enc, w.b_enc, E, D, C);
        if (model.statistics_stale && c.full())
            covariance_forward(h.covariance, w.w_enc, w.b_enc, h.m, h.mb, E, D, C);
        if (c.full())
            full_router_forward(h.g, h.mu, h.sd, h.ln_2, h.covariance, h.m, h.mb, N, E, C);
        else
            router_forward(h.g, h.mu, h.sd, h.ln_2, h.m, h.v, h.mb, h.vb, N, E, C, w.rho);
    }
    choice_forward(h.choice, h.weight, h.g, N, E, K, layer_gate(model, l, model.routing));
    dispatch(h.begin, h.slot, h.token, h.choice, N, E, K);
    const double aux = balance_forward(h.p, h.mean_p, h.g, h.begin, N, E, K);
    h.active = experts_forward(h.y, h.z, h.h, h.ln_2, layer_experts(model, l));
    combine_forward(h.out, h.mid, h.y, h.weight, h.slot, N, K, C);
    return aux;
}

// Likewise of the experts. Fills a.norm and a.factor.
static L1 moe_l1(Model& model, size_t l, real scale) {
    const Config& c = model.config;
    const size_t slots = model.B * model.T * c.n_expert_active, C = c.n_embd;
    const LayerActivations& h = model.a.h[l];
    row_norms(model.a.norm, row_major(model.w.h[l].w_dec, C), c.n_expert * c.d_expert, C);
    for (size_t i = 0; i < slots; i++) model.a.factor[h.slot[i]] = h.weight[i];
    return {model.a.norm, model.a.factor, scale};
}

// Its gradient with respect to decoder rows and gate weights; that of the units is experts_backward()'s.
static void moe_l1_backward(Model& model, size_t l, const L1& l1) {
    const Config& c = model.config;
    const size_t C = c.n_embd, D = c.d_expert, slots = model.B * model.T * c.n_expert_active;
    const LayerActivations& h = model.a.h[l];
    for (size_t j = 0; j < c.n_expert; j++) {
        const size_t s = h.begin[j], at = j * D * C;
        weighted_l1_rows(model.g.h[l].w_dec + at, row_major(model.w.h[l].w_dec + at, C), h.z + s * D,
                         {l1.norm + j * D, l1.factor + s, l1.scale}, h.begin[j + 1] - s, D, C);
    }
    for (size_t i = 0; i < slots; i++)
        model.a.dweight[i] +=
            l1.scale * real(weighted_l1(h.z + h.slot[i] * D, {l1.norm + h.choice[i] * D}, 1, D));
}

static void moe_backward(Model& model, size_t l, const LossWeights& scales) {
    const Config& c = model.config;
    const size_t N = model.B * model.T, C = c.n_embd, E = c.n_expert, K = c.n_expert_active, D = c.d_expert;
    const LayerParameters<real>&w = model.w.h[l], &dw = model.g.h[l];
    const LayerActivations& h = model.a.h[l];
    Activations& a = model.a;
    Experts experts = layer_experts(model, l);
    combine_backward(a.dy, a.dweight, a.dresidual, h.y, h.weight, h.slot, N, K, C);
    if (scales.l1 > 0) {
        experts.l1 = moe_l1(model, l, scales.l1 / N);
        moe_l1_backward(model, l, experts.l1);
    }
    const ExpertsGradients d = {dw.w_enc, dw.b_enc, dw.w_dec, dw.b_dec, a.dh};
    experts_backward(a.dslots, d, a.dy, h.ln_2, h.z, c.relu() ? h.z : h.h, h.active, experts);
    gather_backward(a.dln, a.dslots, h.slot, N, K, C);
    balance_backward(a.dg, h.p, h.begin, c.biased() ? 0 : scales.aux, N, E, K);
    choice_backward(a.dg, a.dweight, h.weight, h.choice, N, E, K, c.gate_all() ? h.p : nullptr);
    if (scales.l0 > 0) expected_share_backward(a.dg, h.choice, scales.l0, N, E, K);
    for (size_t j = 0; j < E; j++) model.load[l * E + j] += size_t(h.begin[j + 1] - h.begin[j]);
    if (c.scaled()) add_variances(&model.variances[l * E], h.h, h.sd, w.rho, h.begin, h.token, E, D);
    if (c.topk()) {
        linear_backward(a.proj, dw.router, nullptr, a.dg, h.ln_2, w.router, N, C, E);
        residual_forward(a.dln, a.dln, a.proj, N * C);
        return;
    }
    for (auto [p, count] : {std::pair{a.dm, E * C}, {a.dv, E * C}, {a.dmb, E}, {a.dvb, E}})
        std::fill(p, p + count, real(0));
    const RouterView router = {h.m, h.v, h.mb, h.vb, h.mu, h.sd, w.rho};
    const RouterGradients drouter = {a.dm, a.dv, a.dmb, a.dvb, a.dmu, a.dvar};
    if (c.full())
        full_router_backward(a.dln, dw.w_enc, dw.b_enc, drouter, a.dg, h.ln_2, router, h.covariance, w.w_enc,
                             w.b_enc, N, E, D, C);
    else
        router_backward(a.dln, drouter, a.dg, h.ln_2, router, a.proj, N, E, C);
    expert_statistics_backward(dw.w_enc, dw.b_enc, drouter, w.w_enc, w.b_enc, router, E, D, C);
}

static double monet_layer_forward(Model& model, size_t l) {
    const Config& c = model.config;
    const size_t N = model.B * model.T;
    const MonetParameters<real>& w = model.w.h[l].monet;
    LayerActivations& h = model.a.h[l];
    const double aux = c.routes(l) ? monet_router_forward(h.monet.routing, h.ln_2, w.router, c, N) : 0;
    h.active = monet_forward(h.out, model.a.proj, h.mid, h.ln_2, w, h.monet, c, N);
    return aux;
}

static void monet_layer_backward(Model& model, size_t l, real aux_scale) {
    const Config& c = model.config;
    const size_t N = model.B * model.T;
    const MonetParameters<real>&w = model.w.h[l].monet, &dw = model.g.h[l].monet;
    const LayerActivations& h = model.a.h[l];
    const MonetScratch& d = model.a.monet;
    if (l + 1 == c.n_layer || c.routes(l + 1)) // the last layer of its group
        std::fill(d.dg, d.dg + N * 2 * c.n_retrieve * c.n_top, real(0));
    monet_backward(model.a.dln, dw, d, model.a.dresidual, h.ln_2, w, h.monet, c, N);
    if (c.routes(l))
        monet_router_backward(model.a.dln, dw.router, d.dg, d.dz, h.ln_2, w.router, h.monet.routing,
                              aux_scale, c, N);
}

static double peer_layer_forward(Model& model, size_t l) {
    LayerActivations& h = model.a.h[l];
    h.active = peer_forward(h.out, h.mid, h.ln_2, model.w.h[l].peer, h.peer, model.a.peer, model.config,
                            model.B * model.T);
    return 0;
}

static void peer_layer_backward(Model& model, size_t l) {
    const LayerActivations& h = model.a.h[l];
    peer_backward(model.a.dln, model.g.h[l].peer, model.a.peer, model.a.dresidual, h.ln_2, model.w.h[l].peer,
                  h.peer, model.config, model.B * model.T);
}

// ---------------------------------------------------------------------------------------------------------
// Forward

double forward_layers(Model& model, const int32_t* tokens, size_t B, size_t T) {
    if (B > model.max_B || T > model.max_T)
        fail("a batch of %zu x %zu tokens does not fit in this model's memory", B, T);
    const Config& c = model.config;
    const size_t N = B * T, C = c.n_embd;
    Activations& a = model.a;
    double aux = 0;
    model.B = B;
    model.T = T;
    model.tokens = tokens;
    model.targets = nullptr;

    embedding_forward(a.embedded, tokens, model.w.wte, model.w.wpe, B, T, C);
    const real* x = a.embedded;
    for (size_t l = 0; l < c.n_layer; l++) {
        LayerParameters<real>& w = model.w.h[l];
        LayerActivations& h = a.h[l];
        layernorm_forward(h.ln_1, h.ln_1_mean, h.ln_1_rstd, x, w.ln_1_weight, w.ln_1_bias, N, C);
        linear_forward(h.qkv, h.ln_1, w.c_attn_weight, w.c_attn_bias, N, C, 3 * C);
        attention_forward(h.att, h.lse, h.qkv, B, T, C, c.n_head);
        linear_forward(a.proj, h.att, w.c_proj_weight, w.c_proj_bias, N, C, C);
        residual_forward(h.mid, x, a.proj, N * C);
        layernorm_forward(h.ln_2, h.ln_2_mean, h.ln_2_rstd, h.mid, w.ln_2_weight, w.ln_2_bias, N, C);
        if (model.intervene) model.intervene(l, Place::ln_2, h.ln_2);
        aux += c.moe()     ? moe_forward(model, l)
               : c.monet() ? monet_layer_forward(model, l)
               : c.peer()  ? peer_layer_forward(model, l)
                           : dense_forward(model, l);
        if (model.intervene) model.intervene(l, Place::out, h.out);
        x = h.out;
    }
    model.statistics_stale = false;
    return aux;
}

void head_forward(Model& model) {
    const Config& c = model.config;
    const size_t N = model.B * model.T, C = c.n_embd;
    Activations& a = model.a;
    const real* x = c.n_layer ? a.h.back().out : a.embedded;
    layernorm_forward(a.ln_f, a.ln_f_mean, a.ln_f_rstd, x, model.w.ln_f_weight, model.w.ln_f_bias, N, C);
    linear_forward(a.logits, a.ln_f, model.w.wte, nullptr, N, C, c.vocab_size);
}

double forward_logits(Model& model, const int32_t* tokens, size_t B, size_t T) {
    const double aux = forward_layers(model, tokens, B, T);
    head_forward(model);
    return aux;
}

Losses forward(Model& model, const int32_t* tokens, const int32_t* targets, size_t B, size_t T,
               real gradient_scale) {
    Losses losses;
    losses.aux = forward_logits(model, tokens, B, T);
    model.targets = targets;
    classifier(model.a.losses, model.a.logits, targets, B * T, model.config.vocab_size,
               gradient_scale / (B * T));
    for (size_t n = 0; n < B * T; n++) losses.loss += model.a.losses[n];
    losses.loss /= B * T;
    return losses;
}

double mean_l0(const Model& model) {
    double active = 0;
    for (const LayerActivations& h : model.a.h) active += double(h.active);
    return active / (model.B * model.T) / model.a.h.size();
}

// ---------------------------------------------------------------------------------------------------------
// Backward

void backward(Model& model, const LossWeights& scales) {
    const Config& c = model.config;
    const size_t B = model.B, T = model.T, N = B * T, C = c.n_embd;
    Activations& a = model.a;
    Parameters<real>& g = model.g;

    linear_backward(a.dln, g.wte, nullptr, a.logits, a.ln_f, model.w.wte, N, C, c.vocab_size);
    std::fill(a.dresidual, a.dresidual + N * C, real(0));
    layernorm_backward(a.dresidual, g.ln_f_weight, g.ln_f_bias, a.dln, a.h.back().out, a.ln_f_mean,
                       a.ln_f_rstd, model.w.ln_f_weight, N, C);
    for (size_t l = c.n_layer; l-- > 0;) {
        LayerParameters<real>&w = model.w.h[l], &dw = g.h[l];
        LayerActivations& h = a.h[l];
        const real* x = l ? a.h[l - 1].out : a.embedded;
        if (c.moe())
            moe_backward(model, l, scales);
        else if (c.monet())
            monet_layer_backward(model, l, scales.aux);
        else if (c.peer())
            peer_layer_backward(model, l);
        else
            dense_backward(model, l, scales);
        layernorm_backward(a.dresidual, dw.ln_2_weight, dw.ln_2_bias, a.dln, h.mid, h.ln_2_mean, h.ln_2_rstd,
                           w.ln_2_weight, N, C);
        linear_backward(a.datt, dw.c_proj_weight, dw.c_proj_bias, a.dresidual, h.att, w.c_proj_weight, N, C,
                        C);
        attention_backward(a.dqkv, a.datt, h.att, h.lse, h.qkv, B, T, C, c.n_head);
        linear_backward(a.dln, dw.c_attn_weight, dw.c_attn_bias, a.dqkv, h.ln_1, w.c_attn_weight, N, C,
                        3 * C);
        layernorm_backward(a.dresidual, dw.ln_1_weight, dw.ln_1_bias, a.dln, x, h.ln_1_mean, h.ln_1_rstd,
                           w.ln_1_weight, N, C);
    }
    embedding_backward(g.wte, g.wpe, a.dresidual, model.tokens, B, T, C);
}

Penalties penalties(Model& model) {
    const Config& c = model.config;
    const size_t N = model.B * model.T, D = c.d_expert;
    Penalties sum;
    for (size_t l = 0; l < c.n_layer; l++) {
        const LayerActivations& h = model.a.h[l];
        if (c.moe()) {
            sum.l0 += expected_share(h.g, h.choice, N, c.n_expert, c.n_expert_active);
            const L1 all = moe_l1(model, l, 0);
            for (size_t j = 0; j < c.n_expert; j++) {
                const size_t s = h.begin[j];
                sum.l1 +=
                    weighted_l1(h.z + s * D, {all.norm + j * D, all.factor + s}, h.begin[j + 1] - s, D) / N;
            }
        } else if (c.dense()) {
            sum.l1 += weighted_l1(h.z, dense_l1(model, l, 0), N, c.dense_width()) / N;
        }
    }
    return sum;
}

void zero_gradients(Model& model) {
    real* g = model.gradients.data;
    parallel_ranges(model.gradients.count, 4096,
                    [=](size_t begin, size_t end) { std::fill(g + begin, g + end, real(0)); });
    std::fill(model.load.begin(), model.load.end(), 0);
    std::fill(model.variances.begin(), model.variances.end(), Variances{});
}

// ---------------------------------------------------------------------------------------------------------
// Update

double block_norm(const real* g, size_t count, std::vector<double>& partial) {
    constexpr size_t block = norm_block, part = 1024;
    partial.resize((count + block - 1) / block);
    parallel_for(partial.size(), [&](size_t j) {
        const size_t block_end = std::min((j + 1) * block, count);
        double total = 0;
        for (size_t k = j * block; k < block_end; k += part) {
            const real* from = g + k;
            const size_t n = std::min(part, block_end - k);
            real sum = 0;
#pragma omp simd reduction(+ : sum)
            for (size_t i = 0; i < n; i++) sum += from[i] * from[i];
            total += sum;
        }
        partial[j] = total;
    });
    return std::sqrt(std::accumulate(partial.begin(), partial.end(), 0.0));
}
double gradient_norm(Model& model) {
    return block_norm(model.gradients.data, model.gradients.count, model.partial);
}

// The moments of a unit that never fires fade to denormals, where rounding holds them and every operation
// takes the processor a hundred times as long. Below this they are zero; no weight can tell the difference
// beside eps.
constexpr real nothing = real(1e-30);

void adamw(real* w, const real* g, real* m, real* v, size_t count, const AdamW& adam, real decay, uint64_t t,
           double gradient_scale) {
    const real b1 = adam.beta_1, b2 = adam.beta_2, scale = gradient_scale, eps = adam.eps, lr = adam.lr;
    const real fix_1 = 1 / (1 - std::pow(adam.beta_1, double(t))),
               fix_2 = 1 / (1 - std::pow(adam.beta_2, double(t)));
    parallel_ranges(count, 2048, [=](size_t begin, size_t end) {
#pragma omp simd
        for (size_t i = begin; i < end; i++) {
            const real G = scale * g[i];
            const real mi = b1 * m[i] + (1 - b1) * G, vi = b2 * v[i] + (1 - b2) * G * G;
            m[i] = std::fabs(mi) < nothing ? 0 : mi;
            v[i] = vi < nothing ? 0 : vi;
            w[i] -= lr * (fix_1 * m[i] / (std::sqrt(fix_2 * v[i]) + eps) + decay * w[i]);
        }
    });
}

void update(Model& model, const AdamW& adam, uint64_t t, double gradient_scale) {
    for (const Tensor& tensor : model.table) {
        if (!tensor.trained) continue;
        adamw(model.weights.data + tensor.offset, model.gradients.data + tensor.offset,
              model.moment_1.data + tensor.offset, model.moment_2.data + tensor.offset, tensor.count, adam,
              tensor.decay ? real(adam.weight_decay) : 0, t, gradient_scale);
    }
    model.statistics_stale = true;
}

void update_running(Model& model, double balance_rate) {
    const Config& c = model.config;
    const size_t E = c.n_expert;
    for (size_t l = 0; l < c.n_layer; l++) {
        if (c.biased()) move_bias(model.w.h[l].balance, &model.load[l * E], real(balance_rate), E);
        if (c.scaled()) move_rho(model.w.h[l].rho, &model.variances[l * E], E);
    }
}
