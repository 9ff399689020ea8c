// The decoder of decode.h: the layers of the model for one row, on its cache.
#include "decode.h"
#include <algorithm>
#include <cmath>

Decoder::Decoder(const Model& model, size_t K, const Routing& routing)
    : model(model), config(model.config), routing(routing) {
    config.n_expert_active = K;
    const Config& c = config;
    const size_t E = c.n_expert, C = c.n_embd, D = c.d_expert;
    keys.resize(c.n_layer * c.block_size * C);
    values.resize(keys.size());
    layers.resize(c.n_layer);
    for (Layer& h : layers) {
        h.z.resize(K * D);
        if (!c.moe()) continue; // below, Monet and PEER
        h.m.resize(E * C);
        h.v.resize(E * C);
        h.mb.resize(E);
        h.vb.resize(E);
        if (c.full()) h.covariance.resize(E * (C + 1) * (C + 1));
        h.g.resize(E);
        h.weight.resize(K);
        h.choice.resize(K);
    }
    auto for_each = [&](const Visit& visit, const VisitIndices& visit_indices) {
        for (size_t l = 0; l < c.n_layer; l++) {
            if (c.monet()) for_each_array(layers[l].monet, c, 1, c.routes(l), visit, visit_indices);
            if (c.peer()) for_each_array(layers[l].peer, c, 1, visit, visit_indices);
        }
        if (c.peer()) for_each_array(peer_scratch, c, 1, false, visit, visit_indices);
    };
    arrays = allocate_arrays([&](const Visit& visit) { for_each(visit, [](int32_t*&, size_t) {}); });
    indices = allocate_indices([&](const VisitIndices& visit) { for_each([](real*&, size_t) {}, visit); });
    for (size_t l = 0; l < c.n_layer; l++) {
        if (c.monet()) layers[l].monet.routing = layers[l - l % c.n_share].monet.routing;
        if (c.peer() && c.relu()) layers[l].peer.h = layers[l].peer.f;
    }
    logits.resize(c.vocab_size);
    x.resize(C);
    norm.resize(C);
    qkv.resize(3 * C);
    att.resize(C);
    proj.resize(C);
    scores.resize(c.block_size);
    mu.resize(E);
    sd.resize(E);
    gate.resize(c.dense_width());
    refresh();
}

void Decoder::refresh() {
    const Config& c = config;
    position = 0;
    for (size_t l = 0; l < c.n_layer && c.moe() && !c.topk(); l++) {
        Layer& h = layers[l];
        expert_statistics_forward(h.m.data(), h.v.data(), h.mb.data(), h.vb.data(), model.w.h[l].w_enc,
                                  model.w.h[l].b_enc, c.n_expert, c.d_expert, c.n_embd);
        if (c.full())
            covariance_forward(h.covariance.data(), model.w.h[l].w_enc, model.w.h[l].b_enc, h.m.data(),
                               h.mb.data(), c.n_expert, c.d_expert, c.n_embd);
    }
}

// out (rows) = weight (rows, columns) x + bias
static void matrix_vector(real* out, const real* weight, const real* bias, const real* x, size_t rows,
                          size_t columns) {
    const size_t worth_a_thread = (1 << 16) / columns + 1; // rows
    parallel_ranges(rows, worth_a_thread, [&](size_t begin, size_t end) {
        for (size_t r = begin; r < end; r++) {
            const real* row = weight + r * columns;
            real sum = 0;
#pragma omp simd reduction(+ : sum)
            for (size_t i = 0; i < columns; i++) sum += row[i] * x[i];
            out[r] = sum + (bias ? bias[r] : 0);
        }
    });
}

void Decoder::layernorm(const real* weight, const real* bias) {
    real mean, rstd;
    layernorm_forward(norm.data(), &mean, &rstd, x.data(), weight, bias, 1, x.size());
}

void Decoder::attend(size_t l) {
    const Config& c = config;
    const size_t C = c.n_embd, HS = C / c.n_head, T = position + 1;
    real *k = keys.data() + l * c.block_size * C, *v = values.data() + l * c.block_size * C;
    std::copy(&qkv[C], &qkv[C] + C, k + position * C);
    std::copy(&qkv[C] + C, &qkv[C] + 2 * C, v + position * C);
    const real scale = 1 / std::sqrt(real(HS));
    for (size_t head = 0; head < c.n_head; head++) {
        const size_t at = head * HS;
        real most = -INFINITY, sum = 0;
        for (size_t t = 0; t < T; t++) {
            real dot = 0;
#pragma omp simd reduction(+ : dot)
            for (size_t i = 0; i < HS; i++) dot += qkv[at + i] * k[t * C + at + i];
            scores[t] = scale * dot;
            most = std::max(most, scores[t]);
        }
        for (size_t t = 0; t < T; t++) sum += scores[t] = std::exp(scores[t] - most);
        std::fill(&att[at], &att[at] + HS, real(0));
        for (size_t t = 0; t < T; t++)
            for (size_t i = 0; i < HS; i++) att[at + i] += scores[t] / sum * v[t * C + at + i];
    }
}

void Decoder::dense(size_t l) {
    const Config& c = config;
    const LayerParameters<real>& w = model.w.h[l];
    const size_t C = c.n_embd, W = c.dense_width();
    real* z = layers[l].z.data();
    matrix_vector(z, w.fc_weight, w.fc_bias, norm.data(), W, C);
    if (c.geglu()) {
        matrix_vector(gate.data(), w.gate_weight, w.gate_bias, norm.data(), W, C);
        geglu_forward(z, gate.data(), z, W);
    } else if (c.solu()) {
        real mean, rstd;
        solu_forward(z, gate.data(), z, 1, W);
        layernorm_forward(z, &mean, &rstd, z, w.ln_mid_weight, w.ln_mid_bias, 1, W);
    } else {
        activation_forward(z, z, W, c.relu());
    }
    matrix_vector(proj.data(), w.fc_proj_weight, w.fc_proj_bias, z, C, W);
}

void Decoder::step(int32_t token) {
    const Config& c = config;
    const size_t C = c.n_embd, E = c.n_expert, K = c.n_expert_active, D = c.d_expert;
    if (position >= c.block_size) fail("the context of %zu tokens is full", c.block_size);
    if (token < 0 || size_t(token) >= c.vocab_size)
        fail("token %d is not in the vocabulary of %zu", token, c.vocab_size);
    embedding_forward(x.data(), &token, model.w.wte, model.w.wpe + position * C, 1, 1, C);
    for (size_t l = 0; l < c.n_layer; l++) {
        const LayerParameters<real>& w = model.w.h[l];
        Layer& h = layers[l];
        layernorm(w.ln_1_weight, w.ln_1_bias);
        matrix_vector(qkv.data(), w.c_attn_weight, w.c_attn_bias, norm.data(), 3 * C, C);
        attend(l);
        matrix_vector(proj.data(), w.c_proj_weight, w.c_proj_bias, att.data(), C, C);
        residual_forward(x.data(), x.data(), proj.data(), C);
        layernorm(w.ln_2_weight, w.ln_2_bias);
        if (c.moe()) {
            if (c.topk())
                matrix_vector(h.g.data(), w.router, nullptr, norm.data(), E, C);
            else if (c.full())
                full_router_forward(h.g.data(), mu.data(), sd.data(), norm.data(), h.covariance.data(),
                                    h.m.data(), h.mb.data(), 1, E, C);
            else
                router_forward(h.g.data(), mu.data(), sd.data(), norm.data(), h.m.data(), h.v.data(),
                               h.mb.data(), h.vb.data(), 1, E, C, w.rho);
            choice_forward(h.choice.data(), h.weight.data(), h.g.data(), 1, E, K,
                           layer_gate(model, l, routing));
            for (size_t k = 0; k < K; k++) {
                const size_t j = h.choice[k];
                real* z = h.z.data() + k * D;
                matrix_vector(z, w.w_enc + j * D * C, w.b_enc + j * D, norm.data(), D, C);
                activation_forward(z, z, D, c.relu());
                if (c.unit_top) keep_largest(z, 1, D, c.unit_top);
                for (size_t i = 0; i < C; i++) proj[i] = w.b_dec[j * C + i];
                for (size_t u = 0; u < D; u++)
                    if (z[u] != 0) // a silent unit moves nothing, not even its row from memory
                        for (size_t i = 0; i < C; i++) proj[i] += z[u] * w.w_dec[(j * D + u) * C + i];
                for (size_t i = 0; i < C; i++) x[i] += h.weight[k] * proj[i];
            }
        } else if (c.monet()) {
            if (c.routes(l)) monet_router_forward(h.monet.routing, norm.data(), w.monet.router, c, 1);
            monet_forward(x.data(), proj.data(), x.data(), norm.data(), w.monet, h.monet, c, 1);
        } else if (c.peer()) {
            peer_forward(x.data(), x.data(), norm.data(), w.peer, h.peer, peer_scratch, c, 1);
        } else {
            dense(l);
            residual_forward(x.data(), x.data(), proj.data(), C);
        }
    }
    layernorm(model.w.ln_f_weight, model.w.ln_f_bias);
    matrix_vector(logits.data(), model.w.wte, nullptr, norm.data(), c.vocab_size, C);
    position++;
}
