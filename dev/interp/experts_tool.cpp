// The tool experts: see experts.h.
#include "experts.h"

constexpr uint32_t no_token = (1 << 20) - 1; // before the first of a row

static Kinds experts_of_slot(const Deal& deal, size_t slot) {
    Kinds R;
    for (size_t at = slot; at < deal.expert.size(); at += deal.K) R.push_back(deal.expert[at]);
    return R;
}

LayerRouting layer_routing(const std::vector<Deal>& deals, size_t layer, const Concepts& concepts,
                           const std::vector<Labels>& moved, uint64_t seed,
                           const std::vector<TokenClusters>& clusterings) {
    const TokenRows& rows = concepts.rows;
    const Deal& deal = deals[layer];
    const size_t T = rows.T, tokens = rows.size(), K = deal.K;
    std::vector<Kinds> R;
    for (size_t slot = 0; slot < K; slot++) R.push_back(experts_of_slot(deal, slot));
    const Kinds token(rows.tokens.begin(), rows.tokens.end());
    const std::vector<uint8_t> group = document_groups(concepts.block, T);
    LayerRouting out;
    Kinds position, before, kind, below;
    for (size_t n = 0; n < tokens; n++) {
        position.push_back(uint32_t(n % T * position_bins / T));
        before.push_back(n % T ? token[n - 1] : no_token);
        kind.push_back(rows.group.empty() ? 0 : rows.group[n]);
    }
    using Slot = LayerRouting::Slot;
    struct Question {
        Estimate Slot::*answer;
        const Kinds* X;
        bool beyond_token;
    };
    std::vector<Question> questions = {{&Slot::token, &token, false},
                                       {&Slot::position, &position, true},
                                       {&Slot::before, &before, true},
                                       {&Slot::group, &kind, true}};
    if (layer) {
        below = experts_of_slot(deals[layer - 1], 0);
        questions.push_back({&Slot::below, &below, true});
    }
    out.slots.resize(K);
    out.concepts.resize(concepts.list.size());
    const auto told_of_slot = [&](size_t slot, const Question& q) {
        out.slots[slot].*q.answer = told_share(R[slot], *q.X, q.beyond_token ? token : Kinds(), group);
    };
    const auto told_by_concept = [&](size_t c) {
        const std::vector<uint8_t>* asked = concepts.list[c].at_dots ? &concepts.dot : nullptr;
        const auto answers = [](const Labels& labels, size_t row) {
            const std::vector<uint8_t> yes = answers_of(labels, row);
            return Kinds(yes.begin(), yes.end());
        };
        LayerRouting::ByConcept& by = out.concepts[c];
        const Kinds X = answers(concepts.labels, c);
        by.alone = told_share(R[0], X, {}, group, asked);
        by.beyond = told_share(R[0], X, token, group, asked);
        double sum = 0;
        for (size_t s = 0; s < n_moved; s++)
            sum += told_share(R[0], answers(moved[c], s), token, group, asked).value;
        by.moved = sum / n_moved;
    };
    Progress progress(strf("layer %zu", layer), "concepts", double(concepts.list.size()));
    std::mutex mutex;
    size_t done = 0;
    const size_t of_slots = K * questions.size();
    parallel_items(of_slots + concepts.list.size(), [&](size_t i) {
        if (i < of_slots) return told_of_slot(i / questions.size(), questions[i % questions.size()]);
        told_by_concept(i - of_slots);
        const std::lock_guard lock(mutex);
        progress.update(double(++done));
    });
    progress.finish(double(concepts.list.size()));
    for (size_t slot = 0; slot < K; slot++) out.slots[slot].entropy = entropy_of(R[slot]);

    const Deal shuffled = shuffled_rows(deal, T, seed);
    const size_t cache = cache_size(deal.E);
    for (const size_t m : window_lengths) {
        if (m > T) continue;
        LayerRouting::Window w;
        w.m = m;
        w.own = segment_routing(deal, T, m, seed);
        w.shuffled = segment_routing(shuffled, T, m, seed);
        w.hits = cache_hits(deal, T, m, cache, FEWEST_TO_COME);
        w.hits_shuffled = cache_hits(shuffled, T, m, cache, FEWEST_TO_COME);
        w.recent = cache_hits(deal, T, m, cache, LEAST_RECENT);
        w.frequent = cache_hits(deal, T, m, cache, LEAST_FREQUENT);
        out.windows.push_back(w);
    }
    for (const TokenClusters& by : clusterings) {
        std::vector<double> counts(deal.E * by.clusters);
        for (size_t i = 0; i < deal.expert.size(); i++)
            counts[deal.expert[i] * by.clusters + by.of_token[token[i / K]]]++;
        out.clustered.push_back({by.clusters, specialization(counts, deal.E, by.clusters, seed)});
    }
    return out;
}

// w |y| of the slots of a batch of N tokens, y = z W_dec + b_dec.  w_dec (E,D,C), b_dec (E,C)
static void add_importance(std::vector<float>& out, const LayerUnits& units, size_t N, size_t C,
                           const float* w_dec, const float* b_dec) {
    const size_t first = out.size(), K = units.K, D = units.D;
    out.resize(first + N * K);
    parallel_for(N, [&](size_t n) {
        std::vector<float> y(C);
        for (size_t k = 0; k < K; k++) {
            const size_t e = size_t(units.choice[n * K + k]);
            const float* z = units.z + size_t(units.slot[n * K + k]) * D;
            std::copy_n(b_dec + e * C, C, y.data());
            for (size_t i = 0; i < D; i++)
                if (z[i] != 0)
                    for (size_t c = 0; c < C; c++) y[c] += z[i] * w_dec[(e * D + i) * C + c];
            double square = 0;
            for (const float v : y) square += double(v) * v;
            out[first + n * K + k] = units.weight[n * K + k] * float(std::sqrt(square));
        }
    });
}

std::vector<RoutedLayer> read_routing(Reader& reader, const TokenRows& rows) {
    std::vector<RoutedLayer> layers(reader.config.n_layer);
    const auto tensor = [&](size_t l, const char* name) {
        const std::string full = strf("h.%zu.moe.%s", l, name);
        for (const Tensor& t : reader.table)
            if (t.name == full) return reader.weights() + t.offset;
        fail("%s: no such tensor", full.c_str());
    };
    read_rows(reader, rows, "model", [&](size_t first, size_t B) {
        const size_t N = B * rows.T;
        check_finite(reader, rows, first, N);
        for (size_t l = 0; l < layers.size(); l++) {
            const LayerUnits units = reader.layer(l);
            Deal& deal = layers[l].deal;
            deal.E = units.E;
            deal.K = units.K;
            deal.expert.insert(deal.expert.end(), units.choice, units.choice + N * units.K);
            add_importance(layers[l].importance, units, N, reader.config.n_embd, tensor(l, "w_dec"),
                           tensor(l, "b_dec"));
        }
    });
    return layers;
}

// What experts take, in words: by rules, and with a language model's windows and answers.
static void add_labels(ExpertsReport& r, const ExpertsOptions& o, const std::vector<RoutedLayer>& routed,
                       const Concepts& concepts, const Literals& literals) {
    Progress progress("labels", "layers", double(routed.size()));
    for (const RoutedLayer& layer : routed) {
        r.labels.push_back(label_experts(layer, literals, concepts, r.label_options));
        progress.update(double(r.labels.size()));
    }
    progress.finish(double(routed.size()));
    if (o.windows.empty() && o.answers.empty()) return;
    std::vector<std::vector<ExpertWindows>> windows;
    for (size_t l = 0; l < routed.size(); l++)
        windows.push_back(expert_windows(routed[l], concepts, l, r.label_options));
    if (!o.windows.empty()) {
        AtomicFile out(o.windows);
        for (const auto& layer : windows)
            for (const ExpertWindows& w : layer) {
                const std::string line = w.line + "\n";
                out.write(line.data(), line.size());
            }
        out.commit();
    }
    if (!o.answers.empty()) r.language = read_answers(o.answers, windows, routed, concepts, r.label_options);
}

ExpertsReport measure_experts(const ExpertsOptions& o, const MakeReader& make_reader) {
    const double begin = now_seconds();
    const ConceptInput input = {
        o.data,   o.tokenizer,   o.sources,      o.conllu,
        o.labels, size_t(o.seq), size_t(o.rows), {size_t(o.least), size_t(o.least_documents)}};
    input.check();
    const SafeTensorsFile file(find_checkpoint(o.ckpt));
    ExpertsReport r;
    r.checkpoint = file.path;
    r.step = checkpoint_step(file);
    r.config = read_config(file);
    if (!r.config.moe())
        fail("%s: ffn is %s, expected moe: a mixture of experts", file.path.c_str(), r.config.ffn.c_str());
    const Concepts concepts = read_concepts(input, r.config, file.path);
    const TokenRows& rows = concepts.rows;
    r.source = rows.source;
    r.rows = rows.rows;
    r.T = rows.T;
    r.seed = uint64_t(o.seed);
    r.top = size_t(o.top);
    r.cache = cache_size(r.config.n_expert);
    r.concepts = concepts.list;

    Reader reader = make_reader(r.config, batch_rows(rows.T), rows.T);
    load_weights(reader, file);
    const std::vector<RoutedLayer> routed = read_routing(reader, rows);
    std::vector<Deal> deals;
    for (const RoutedLayer& layer : routed) deals.push_back(layer.deal);
    std::vector<Labels> moved(concepts.list.size());
    parallel_items(moved.size(), [&](size_t c) {
        for (size_t s = 0; s < n_moved; s++) {
            const Labels one = shifted_labels(concepts, c, r.seed + s);
            moved[c].tokens = one.tokens;
            moved[c].words = one.words;
            moved[c].bits.insert(moved[c].bits.end(), one.bits.begin(), one.bits.end());
        }
    });
    std::vector<TokenClusters> clusterings;
    for (const size_t clusters : cluster_counts)
        if (clusters <= r.config.vocab_size / 2) // of rows of wte, the first tensor
            clusterings.push_back({clusters, spherical_clusters(reader.weights(), r.config.vocab_size,
                                                                r.config.n_embd, clusters, r.seed)});
    for (size_t l = 0; l < deals.size(); l++)
        r.layers.push_back(layer_routing(deals, l, concepts, moved, r.seed, clusterings));
    r.label_options = {size_t(o.length), size_t(o.examples), r.seed};
    const Literals literals = expert_literals(concepts);
    add_labels(r, o, routed, concepts, literals);
    if (o.effects)
        r.effects = expert_effects(file, r.config, routed, concepts,
                                   [&](size_t l, size_t e, size_t n) {
                                       const Formula& f = r.labels[l][e].formula;
                                       return !f.literals.empty() && f.says(literals, n);
                                   },
                                   {size_t(o.effects), 20, r.seed});
    r.seconds = now_seconds() - begin;
    return r;
}

int experts_program(int argc, char** argv, const MakeReader& make_reader) {
    return tool_program<ExpertsOptions>(
        argc, argv, "experts",
        "Says what decides which expert a token goes to, beyond the token itself, how local routing is, and "
        "what\nexperts take, in words, and what removing them does.",
        [&](const ExpertsOptions& options) { return measure_experts(options, make_reader); }, print_experts,
        experts_json);
}
