// The tool experts: see experts.h.
#include "experts.h"

constexpr uint32_t no_token = (1 << 20) - 1; // before the first of a row

static Kinds first_experts(const Deal& deal) {
    Kinds R;
    for (size_t at = 0; at < deal.expert.size(); at += deal.K) R.push_back(deal.expert[at]);
    return R;
}

LayerRouting layer_routing(const std::vector<Deal>& deals, size_t layer, const Concepts& concepts,
                           const std::vector<Labels>& moved, uint64_t seed) {
    const TokenRows& rows = concepts.rows;
    const size_t T = rows.T, tokens = rows.size();
    const Kinds R = first_experts(deals[layer]);
    const Kinds token(rows.tokens.begin(), rows.tokens.end());
    const std::vector<uint8_t> group = document_groups(concepts.block, T);
    LayerRouting out;
    out.entropy = entropy_of(R);
    Kinds position, before, kind;
    for (size_t n = 0; n < tokens; n++) {
        position.push_back(uint32_t(n % T * position_bins / T));
        before.push_back(n % T ? token[n - 1] : no_token);
        kind.push_back(rows.group.empty() ? 0 : rows.group[n]);
    }
    out.concepts.resize(concepts.list.size());
    const auto told = [&](size_t i) { // the answers of the list, then the concepts'
        switch (i) {
        case 0:
            out.token = told_share(R, token, {}, group);
            return;
        case 1:
            out.position = told_share(R, position, token, group);
            return;
        case 2:
            out.before = told_share(R, before, token, group);
            return;
        case 3:
            out.group = told_share(R, kind, token, group);
            return;
        case 4:
            if (layer) out.below = told_share(R, first_experts(deals[layer - 1]), token, group);
            return;
        }
        const size_t c = i - 5;
        const std::vector<uint8_t>* asked = concepts.list[c].at_dots ? &concepts.dot : nullptr;
        const auto answers = [](const Labels& labels, size_t row) {
            const std::vector<uint8_t> yes = answers_of(labels, row);
            return Kinds(yes.begin(), yes.end());
        };
        LayerRouting::ByConcept& by = out.concepts[c];
        const Kinds X = answers(concepts.labels, c);
        by.alone = told_share(R, X, {}, group, asked);
        by.beyond = told_share(R, X, token, group, asked);
        double sum = 0;
        for (size_t s = 0; s < n_moved; s++)
            sum += told_share(R, answers(moved[c], s), token, group, asked).value;
        by.moved = sum / n_moved;
    };
    Progress progress(strf("layer %zu", layer), "concepts", double(concepts.list.size()));
    std::mutex mutex;
    size_t done = 0;
    parallel_items(5 + concepts.list.size(), [&](size_t i) {
        told(i);
        const std::lock_guard lock(mutex);
        progress.update(double(++done > 5 ? done - 5 : 0));
    });
    progress.finish(double(concepts.list.size()));

    const Deal& deal = deals[layer];
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
    return out;
}

ExpertsReport measure_experts(const ExpertsOptions& o, const MakeReader& make_reader) {
    const double begin = now_seconds();
    need_data(o.data);
    const SafeTensorsFile file(find_checkpoint(o.ckpt));
    ExpertsReport r;
    r.checkpoint = file.path;
    r.step = checkpoint_step(file);
    r.config = read_config(file);
    if (!r.config.moe())
        fail("%s: ffn is %s, expected moe: a mixture of experts", file.path.c_str(), r.config.ffn.c_str());
    const Concepts concepts = read_concepts(o.data, r.config, size_t(o.seq), size_t(o.rows), o.tokenizer,
                                            {size_t(o.least), size_t(o.least_documents)}, file.path);
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
    std::vector<Deal> deals(r.config.n_layer);
    read_rows(reader, rows, "model", [&](size_t first, size_t B) {
        check_finite(reader, rows, first, B * rows.T);
        for (size_t l = 0; l < deals.size(); l++) {
            const LayerUnits units = reader.layer(l);
            deals[l].E = units.E;
            deals[l].K = units.K;
            deals[l].expert.insert(deals[l].expert.end(), units.choice, units.choice + B * rows.T * units.K);
        }
    });
    std::vector<Labels> moved(concepts.list.size());
    parallel_items(moved.size(), [&](size_t c) {
        for (size_t s = 0; s < n_moved; s++) {
            const Labels one = shifted_labels(concepts, c, r.seed + s);
            moved[c].tokens = one.tokens;
            moved[c].words = one.words;
            moved[c].bits.insert(moved[c].bits.end(), one.bits.begin(), one.bits.end());
        }
    });
    for (size_t l = 0; l < deals.size(); l++)
        r.layers.push_back(layer_routing(deals, l, concepts, moved, r.seed));
    r.seconds = now_seconds() - begin;
    return r;
}

int experts_program(int argc, char** argv, const MakeReader& make_reader) {
    return tool_program<ExpertsOptions>(
        argc, argv, "experts",
        "Says what decides which expert a token goes to, beyond the token itself, and how local routing is.",
        [&](const ExpertsOptions& options) { return measure_experts(options, make_reader); }, print_experts,
        experts_json);
}
