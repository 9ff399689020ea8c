// What is changed of a trained model while it is used, by flags that sample, sample_cpu and evaluate share:
// which experts a token goes to, and how much single units count. Whoever intervenes uses this one mechanism:
// the reference, its decoder, the CUDA program, the tools.
//
// Experts. A layer's router orders the experts of a token: those that are on come first, then the others in
// falling order of their score g (with balance bias, of g + bias), a tie to the lower index; those that are
// off come last and are never taken. The token goes to the first K of that order, or, with ranks, to those at
// the given places of it, 0 being the first. The weights are a softmax of g over the experts it goes to, so
// they sum to 1 whatever was changed (with the gate `all` over all experts that are not off). So a model with
// an expert off is the model from which that expert has been deleted: the next best takes its place.
//
// Units. A unit's factor is put on its row of the decoder: y = sum over u of z_u W_dec[u], in which X times
// the row is X times the unit. A unit that is off, factor 0, is the unit of a model whose row of W_dec is 0.
// Its row of W_enc stays: the router's statistics are made of it, so the routing is as before; and in what
// counts the units that fire it is counted as before.
#pragma once
#include "parameters.h"
#include <string>
#include <vector>

struct Options;

// How the experts are chosen, where not as trained.
struct Routing {
    enum Standing : int8_t { off = -1, as_scored = 0, on = 1 };
    uint64_t ranks = 0;           // bit r: the expert at place r of the order is taken; 0: the first K are
    std::vector<int8_t> standing; // (L,E); empty: all as scored

    const int8_t* standing_of(size_t layer, size_t E) const { // (E) or null
        return standing.empty() ? nullptr : standing.data() + layer * E;
    }
    void set(const Config& c, size_t layer, size_t expert, Standing to) {
        standing.resize(c.n_layer * c.n_expert);
        standing[layer * c.n_expert + expert] = to;
    }
};

struct UnitFactor {
    size_t layer, expert, unit; // of a dense layer: expert 0
    double factor;
};

struct Intervention {
    size_t K = 0; // experts per token; 0: as trained
    Routing routing;
    std::vector<UnitFactor> units;

    // The config of the model that is to be made: K decides how much memory it needs, and no tensor's shape.
    Config apply(Config c) const {
        if (K) c.n_expert_active = K;
        return c;
    }
    // f(i, factor) for every value i of a tensor of the model that a unit's factor goes on.
    template <class F> void each_value(const Config& c, const Tensor& t, F f) const {
        for (const UnitFactor& u : units) {
            const std::string at = "h." + std::to_string(u.layer);
            const size_t C = c.n_embd, W = c.dense_width();
            if (t.name == at + ".moe.w_dec") // (E,D,C)
                for (size_t i = 0; i < C; i++) f((u.expert * c.d_expert + u.unit) * C + i, u.factor);
            if (t.name == at + ".mlp.c_proj.weight") // (C,W)
                for (size_t i = 0; i < C; i++) f(i * W + u.unit, u.factor);
        }
    }
    template <class T> void apply(const Config& c, const Tensor& t, T* values) const {
        each_value(c, t, [&](size_t i, double factor) { values[i] *= T(factor); });
    }
    // By how much a unit counts.
    double factor(size_t layer, size_t expert, size_t unit) const {
        for (const UnitFactor& u : units)
            if (u.layer == layer && u.expert == expert && u.unit == unit) return u.factor;
        return 1;
    }
};

struct InterventionFlags {
    int64_t active = 0;
    std::string ranks, experts_off, experts_on, units_off, units_scale;

    void declare(Options& o);
    // For a model of this config; refuses what the model does not have, `where` being its file.
    Intervention read(const Config& c, const std::string& where) const;
    std::string text() const; // as they were typed, "" if none was
};

// Self-contrast (SCMoE: Shi et al., arXiv 2405.14507): the same text is also read with another routing, and
// what that one expects, too, counts less. The formula is contrast() in sampler.h.
struct ContrastFlags {
    std::string ranks;
    double beta = 0.5, alpha = 0.1;

    void declare(Options& o);
    bool given() const { return !ranks.empty(); }
    std::string text(const std::string& before) const; // likewise, behind `before`
    // The other routing, of a model that is used with `strong`: its own ranks, and the same experts off.
    Intervention weak(const Intervention& strong, const Config& c, const std::string& where) const;
};
