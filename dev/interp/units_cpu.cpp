// A Reader of the CPU's reference: see units_cpu.h.
#include "units_cpu.h"
#include "../cpu/model.h"
#include <algorithm>
#include <memory>

// The units of a layer as one array (N,units).
static LayerUnits dense_units(const float* x, const float* z, size_t units) {
    LayerUnits out{};
    out.E = 1;
    out.K = 1;
    out.D = units;
    out.x = x;
    out.z = z;
    return out;
}

// A list of (unit, value) for every token, built batch by batch. A unit that comes several times has the sum.
struct UnitLists {
    std::vector<size_t> begin;
    std::vector<uint32_t> unit;
    std::vector<float> value;

    // add(n, put) calls put(unit, value) for what token n has.
    template <class Add> LayerUnits make(const float* x, size_t N, size_t units, Add add) {
        std::vector<std::vector<std::pair<uint32_t, float>>> rows(N);
        parallel_for(N, [&](size_t n) {
            std::vector<std::pair<uint32_t, float>> all;
            add(n, [&](size_t u, float v) { all.push_back({uint32_t(u), v}); });
            std::stable_sort(all.begin(), all.end(),
                             [](const auto& a, const auto& b) { return a.first < b.first; });
            for (const auto& [u, v] : all)
                if (!rows[n].empty() && rows[n].back().first == u)
                    rows[n].back().second += v;
                else
                    rows[n].push_back({u, v});
        });
        begin.assign(1, 0);
        unit.clear();
        value.clear();
        for (const auto& row : rows) {
            for (const auto& [u, v] : row) {
                unit.push_back(u);
                value.push_back(v);
            }
            begin.push_back(unit.size());
        }
        LayerUnits out = dense_units(x, nullptr, units);
        out.begin = begin.data();
        out.unit = unit.data();
        out.value = value.data();
        return out;
    }
};

// What a reader keeps of each layer, until the next batch, to show views that the model does not hold as one
// array.
struct ViewScratch {
    std::vector<float> gate, parts, encoder;
    UnitLists routing, units;
};

// GEGLU: what the output reads, gelu(a) u, and gelu(a) alone. SoLU: u before its LayerNorm, and behind it.
static std::vector<UnitView> dense_features(const std::shared_ptr<Model>& model,
                                            const std::shared_ptr<std::vector<ViewScratch>>& scratch) {
    const size_t W = model->config.dense_width();
    const auto array = [=](real* LayerActivations::*z) {
        return [=](size_t l) { return dense_units(model->a.h[l].ln_2, model->a.h[l].*z, W); };
    };
    if (model->config.solu())
        return {{"pre", W, array(&LayerActivations::u)}, {"post", W, array(&LayerActivations::z)}};
    if (!model->config.geglu()) return {{"units", W, array(&LayerActivations::z)}};
    return {{"units", W, array(&LayerActivations::z)},
            {"gate", W, [=](size_t l) {
                 const size_t count = model->B * model->T * W;
                 std::vector<float>& out = (*scratch)[l].gate;
                 out.resize(count);
                 parallel_for(count, [&](size_t i) { out[i] = gelu(model->a.h[l].gate[i]); });
                 return dense_units(model->a.h[l].ln_2, out.data(), W);
             }}};
}

// Monet: the routing score of expert (i,j), sum over heads of g0_hi g1_hj; what the decoders read; the hidden
// units max(U x + b, 0)^2.
static std::vector<UnitView> monet_features(const std::shared_ptr<Model>& model,
                                            const std::shared_ptr<std::vector<ViewScratch>>& scratch) {
    const Config& c = model->config;
    const size_t Q = c.n_key, H = c.n_retrieve, k = c.n_top, P = c.ffn == "monet-vd" ? 2 : 1,
                 part = Q * c.d_expert / P;
    const auto side_by_side = [=](std::vector<float>& out, const std::vector<const real*>& parts, size_t N,
                                  bool square) {
        out.resize(N * parts.size() * part);
        parallel_for(N, [&](size_t n) {
            for (size_t p = 0; p < parts.size(); p++)
                for (size_t i = 0; i < part; i++) {
                    const float v = parts[p][n * part + i];
                    out[(n * parts.size() + p) * part + i] = square ? v * v : v;
                }
        });
        return out.data();
    };
    return {{"routing", Q * Q,
             [=](size_t l) {
                 const MonetRouting& r = model->a.h[l].monet.routing;
                 return (*scratch)[l].routing.make(
                     model->a.h[l].ln_2, model->B * model->T, Q * Q, [&](size_t n, auto put) {
                         for (size_t h = 0; h < H; h++) {
                             const size_t a = ((n * 2 + 0) * H + h) * k, b = ((n * 2 + 1) * H + h) * k;
                             for (size_t i = 0; i < k; i++)
                                 for (size_t j = 0; j < k; j++)
                                     put(size_t(r.index[a + i]) * Q + size_t(r.index[b + j]),
                                         r.g[a + i] * r.g[b + j]);
                         }
                     });
             }},
            {"units", P * P * part,
             [=](size_t l) {
                 const MonetActivations& h = model->a.h[l].monet;
                 std::vector<const real*> parts;
                 for (size_t s = 0; s < P; s++)
                     for (size_t b = 0; b < P; b++) parts.push_back(h.r[s][b]);
                 return dense_units(model->a.h[l].ln_2,
                                    side_by_side((*scratch)[l].parts, parts, model->B * model->T, false),
                                    P * P * part);
             }},
            {"encoder", P * part, [=](size_t l) {
                 const MonetActivations& h = model->a.h[l].monet;
                 std::vector<const real*> parts(h.hidden, h.hidden + P);
                 return dense_units(model->a.h[l].ln_2,
                                    side_by_side((*scratch)[l].encoder, parts, model->B * model->T, true),
                                    P * part);
             }}};
}

// PEER: gate times activation of a unit, summed over the heads that retrieved it; the gate alone.
static std::vector<UnitView> peer_features(const std::shared_ptr<Model>& model,
                                           const std::shared_ptr<std::vector<ViewScratch>>& scratch) {
    const size_t visits = model->config.n_retrieve * model->config.n_top,
                 units = model->config.n_key * model->config.n_key;
    const auto view = [=](UnitLists ViewScratch::*lists, bool active) {
        return [=](size_t l) {
            const PeerActivations& h = model->a.h[l].peer;
            return ((*scratch)[l].*lists)
                .make(model->a.h[l].ln_2, model->B * model->T, units, [&](size_t n, auto put) {
                    for (size_t i = n * visits; i < (n + 1) * visits; i++)
                        put(size_t(h.unit[i]), active ? h.w[i] * h.f[i] : h.w[i]);
                });
        };
    };
    return {{"units", units, view(&ViewScratch::units, true)},
            {"routing", units, view(&ViewScratch::routing, false)}};
}

// The experts' units by slot.
static LayerUnits expert_units(const Model& model, size_t l) {
    const Config& c = model.config;
    const LayerActivations& h = model.a.h[l];
    LayerUnits out{};
    out.E = c.n_expert;
    out.K = c.n_expert_active;
    out.D = c.d_expert;
    out.x = h.ln_2;
    out.z = h.z;
    out.weight = h.weight;
    out.choice = h.choice;
    out.slot = h.slot;
    out.g = h.g;
    out.mu = c.topk() ? nullptr : h.mu;
    out.sd = c.topk() ? nullptr : h.sd;
    return out;
}

Reader cpu_reader(const Config& config, size_t B, size_t T) {
    const auto model = std::make_shared<Model>(config, B, T, false);
    const auto scratch = std::make_shared<std::vector<ViewScratch>>(config.n_layer);
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
    if (config.monet())
        reader.views = monet_features(model, scratch);
    else if (config.peer())
        reader.views = peer_features(model, scratch);
    else if (config.dense())
        reader.views = dense_features(model, scratch);
    else
        reader.views = {
            {"units", config.n_expert * config.d_expert, [=](size_t l) { return expert_units(*model, l); }}};
    reader.n_units = reader.views[0].units;
    reader.layer = reader.views[0].layer;
    return reader;
}
