// A Reader (units.h) that runs the CPU's reference.
#pragma once
#include "../cpu/model.h"
#include "units.h"
#include <memory>

// For batches of up to B x T tokens, its weights all zero.
inline Reader cpu_reader(const Config& config, size_t B, size_t T) {
    if (!config.moe() && !config.dense())
        fail(
            "ffn %s: units are read of mixtures of experts and dense layers only; evaluate measures the loss",
            config.ffn.c_str());
    const auto model = std::make_shared<Model>(config, B, T, false);
    Reader reader;
    reader.config = config;
    reader.table = model->table;
    reader.max_B = B;
    reader.max_T = T;
    reader.weights = [=] { return model->weights.data; };
    reader.changed = [=] { model->statistics_stale = true; };
    reader.read = [=](const int32_t* tokens, size_t b, size_t t) { forward_layers(*model, tokens, b, t); };
    reader.logits = [=] {
        head_forward(*model);
        return model->a.logits;
    };
    reader.residual = [=](size_t l) { return model->a.h[l].out; };
    reader.layer = [=](size_t l) {
        const Config& c = model->config;
        const LayerActivations& h = model->a.h[l];
        if (!c.moe())
            return LayerUnits{1,       1,       c.dense_width(), h.ln_2,  h.z,    nullptr,
                              nullptr, nullptr, nullptr,         nullptr, nullptr};
        return LayerUnits{c.n_expert,
                          c.n_expert_active,
                          c.d_expert,
                          h.ln_2,
                          h.z,
                          h.weight,
                          h.choice,
                          h.slot,
                          h.g,
                          c.topk() ? nullptr : h.mu,
                          c.topk() ? nullptr : h.sd};
    };
    reader.n_units = config.moe() ? config.n_expert * config.d_expert : config.dense_width();
    reader.views = {{"units", reader.n_units, reader.layer}};
    return reader;
}
