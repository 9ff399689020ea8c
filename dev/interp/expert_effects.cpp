// What removing an expert does: see expert_effects.h.
#include "expert_effects.h"

std::vector<float> next_log_p(Model& model, const std::vector<int32_t>& tokens, size_t T) {
    const size_t rows = tokens.size() / T;
    std::vector<float> out;
    std::vector<int32_t> y;
    for (size_t first = 0; first < rows; first += model.max_B) {
        const size_t B = std::min(model.max_B, rows - first);
        const int32_t* x = tokens.data() + first * T;
        y.assign(x, x + B * T);
        for (size_t b = 0; b < B; b++) { // the last of a row has no successor
            std::copy_n(x + b * T + 1, T - 1, y.data() + b * T);
            y[(b + 1) * T - 1] = 0;
        }
        if (!forward(model, x, y.data(), B, T).finite()) fail("the model's loss is not finite");
        for (size_t b = 0; b < B; b++)
            for (size_t t = 0; t + 1 < T; t++) out.push_back(-float(model.a.losses[b * T + t]));
    }
    return out;
}

double direct_logit(const float* u, const float* wte_v, const float* gamma, double rstd, size_t C) {
    double mean = 0, sum = 0;
    for (size_t c = 0; c < C; c++) mean += double(u[c]) / double(C);
    for (size_t c = 0; c < C; c++) sum += double(wte_v[c]) * gamma[c] * (u[c] - mean);
    return sum * rstd;
}

namespace {
// Test documents, and what is asked of their tokens that have a successor.
struct Rows {
    size_t T = 0;
    std::vector<int32_t> tokens;    // (rows,T)
    std::vector<uint32_t> place;    // (rows*(T-1)) the token in the concepts
    std::vector<uint32_t> document; // (rows*(T-1)) in rising order, as statistics want it
};

Rows test_rows(const Concepts& concepts, size_t most) {
    Rows out;
    out.T = concepts.rows.T;
    uint32_t taken = 0;
    for (size_t d = 0; d < concepts.documents() && taken < most; d++) {
        if (concepts.part[d] != TEST) continue;
        const auto row = concepts.rows.tokens.begin() + long(d * out.T);
        out.tokens.insert(out.tokens.end(), row, row + long(out.T));
        for (size_t t = 0; t + 1 < out.T; t++) {
            out.place.push_back(uint32_t(d * out.T + t));
            out.document.push_back(taken);
        }
        taken++;
    }
    return out;
}

// The mean of change over the places where says(i), by document.
Estimate mean_where(const Rows& rows, const std::vector<float>& change, uint64_t seed,
                    const std::function<bool(size_t i)>& says) {
    std::vector<double> values(change.size(), undefined);
    for (size_t i = 0; i < change.size(); i++)
        if (says(i)) values[i] = change[i];
    return mean_by_group(values, rows.document, seed);
}

std::vector<float> less(const std::vector<float>& a, const std::vector<float>& b) {
    std::vector<float> out(a);
    for (size_t i = 0; i < out.size(); i++) out[i] -= b[i];
    return out;
}

// The other expert of the nearest load.
size_t nearest_load(const Deal& deal, size_t e) {
    std::vector<double> load(deal.E);
    for (const uint16_t x : deal.expert) load[x]++;
    size_t best = SIZE_MAX;
    for (size_t j = 0; j < deal.E; j++)
        if (j != e && (best == SIZE_MAX || std::fabs(load[j] - load[e]) < std::fabs(load[best] - load[e])))
            best = j;
    return best;
}

struct Trigger {
    uint32_t i, expert;        // its place in Rows::place
    double exact = 0, dla = 0; // change of log p; attribution
};

// Takes the experts of a layer away at one position of a row each: a row of the batch for each trigger.
void measure_triggers(Model& model, const Rows& rows, const std::vector<float>& with, size_t layer,
                      std::vector<Trigger>& triggers) {
    const size_t T = rows.T, C = model.config.n_embd, K = model.config.n_expert_active;
    for (size_t first = 0; first < triggers.size(); first += model.max_B) {
        const size_t B = std::min(model.max_B, triggers.size() - first);
        std::vector<int32_t> tokens;
        for (size_t b = 0; b < B; b++) {
            const size_t row = triggers[first + b].i / (T - 1);
            tokens.insert(tokens.end(), rows.tokens.begin() + long(row * T),
                          rows.tokens.begin() + long((row + 1) * T));
        }
        const auto at = [&](size_t b) { return b * T + triggers[first + b].i % (T - 1); };
        const auto taken = [&](size_t b) { // w y of the expert there
            const LayerActivations& h = model.a.h[layer];
            std::vector<float> u(C);
            for (size_t k = 0; k < K; k++)
                if (uint32_t(h.choice[at(b) * K + k]) == triggers[first + b].expert)
                    for (size_t c = 0; c < C; c++)
                        u[c] = h.weight[at(b) * K + k] * h.y[size_t(h.slot[at(b) * K + k]) * C + c];
            return u;
        };
        next_log_p(model, tokens, T);
        for (size_t b = 0; b < B; b++)
            triggers[first + b].dla =
                direct_logit(taken(b).data(), model.w.wte + size_t(tokens[at(b) + 1]) * C,
                             model.w.ln_f_weight, model.a.ln_f_rstd[at(b)], C);
        model.intervene = [&](size_t l, Place place, real* x) {
            if (l != layer || place != Place::out) return;
            for (size_t b = 0; b < B; b++) {
                const std::vector<float> u = taken(b);
                for (size_t c = 0; c < C; c++) x[at(b) * C + c] -= u[c];
            }
        };
        const std::vector<float> without = next_log_p(model, tokens, T);
        model.intervene = nullptr;
        for (size_t b = 0; b < B; b++) {
            Trigger& t = triggers[first + b];
            t.exact = double(without[b * (T - 1) + t.i % (T - 1)]) - with[t.i];
        }
    }
}
} // namespace

std::vector<LayerEffects> expert_effects(const SafeTensorsFile& file, const Config& config,
                                         const std::vector<RoutedLayer>& routed, const Concepts& concepts,
                                         const std::function<bool(size_t, size_t, size_t)>& says,
                                         const EffectOptions& o) {
    const Rows rows = test_rows(concepts, o.rows);
    const size_t L = config.n_layer, E = config.n_expert, D = config.d_expert, C = config.n_embd;
    std::vector<LayerEffects> out(L);
    Model model(config, batch_rows(rows.T), rows.T, false);
    read_block(file, model.table, "", model.weights.data);
    const std::vector<float> with = next_log_p(model, rows.tokens, rows.T);
    Progress progress("effects", "experts", double(L * E));
    for (size_t l = 0; l < L; l++) {
        out[l].experts.resize(E);
        std::vector<std::vector<float>> off(E), zero(E);
        for (size_t e = 0; e < E; e++) {
            if (config.n_expert_active < E) {
                model.routing.set(config, l, e, Routing::off);
                off[e] = less(next_log_p(model, rows.tokens, rows.T), with);
                model.routing.set(config, l, e, Routing::as_scored);
            }
            real *w = model.w.h[l].w_dec + e * D * C, *b = model.w.h[l].b_dec + e * C;
            const std::vector<real> kept_w(w, w + D * C), kept_b(b, b + C);
            std::fill(w, w + D * C, real(0));
            std::fill(b, b + C, real(0));
            zero[e] = less(next_log_p(model, rows.tokens, rows.T), with);
            std::copy(kept_w.begin(), kept_w.end(), w);
            std::copy(kept_b.begin(), kept_b.end(), b);
            progress.update(double(l * E + e + 1));
        }
        std::vector<Trigger> triggers;
        for (size_t e = 0; e < E; e++) {
            std::vector<Trigger> of;
            for (uint32_t i = 0; i < rows.place.size(); i++)
                if (routed[l].deal.has(rows.place[i], e) && says(l, e, rows.place[i]))
                    of.push_back({i, uint32_t(e)});
            Random random{o.seed, random_stream("triggers") + l * E + e};
            for (size_t n = of.size(); n > 1; n--) std::swap(of[n - 1], of[random.below(n)]);
            of.resize(std::min(of.size(), o.triggers));
            triggers.insert(triggers.end(), of.begin(), of.end());
        }
        measure_triggers(model, rows, with, l, triggers);
        parallel_items(E, [&](size_t e) {
            ExpertEffect& x = out[l].experts[e];
            const auto everywhere = [](size_t) { return true; };
            const auto inside = [&](size_t i) { return says(l, e, rows.place[i]); };
            x.zero = mean_where(rows, zero[e], o.seed, everywhere);
            for (const Trigger& t : triggers) {
                if (t.expert != e) continue;
                x.at_position = (x.triggers ? x.at_position : 0) + t.exact;
                x.dla = (x.triggers++ ? x.dla : 0) + t.dla;
            }
            x.at_position /= double(x.triggers);
            x.dla /= double(x.triggers);
            if (off[e].empty()) return;
            x.off = mean_where(rows, off[e], o.seed, everywhere);
            x.inside = mean_where(rows, off[e], o.seed, inside);
            x.outside = mean_where(rows, off[e], o.seed, [&](size_t i) { return !inside(i); });
            x.other = nearest_load(routed[l].deal, e);
            x.control = mean_where(rows, off[x.other], o.seed, inside);
            x.beyond = mean_where(rows, less(off[e], off[x.other]), o.seed, inside);
            for (size_t c = 0; c < concepts.list.size(); c++)
                x.by_concept.push_back(mean_where(rows, off[e], o.seed, [&](size_t i) {
                    return concepts.asked(c, rows.place[i]) && concepts.labels.at(c, rows.place[i]);
                }));
        });
        std::sort(triggers.begin(), triggers.end(), [](const Trigger& a, const Trigger& b) {
            return std::pair{a.i, a.expert} < std::pair{b.i, b.expert};
        });
        std::vector<double> dla, exact;
        std::vector<uint32_t> document;
        for (const Trigger& t : triggers) {
            dla.push_back(t.dla);
            exact.push_back(-t.exact);
            document.push_back(rows.document[t.i]);
        }
        if (!triggers.empty()) out[l].agreement = pearson_by_group(dla, exact, 1, document, o.seed);
    }
    progress.finish(double(L * E));
    return out;
}
