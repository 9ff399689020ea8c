// The tool probe: see probe.h. A model's layers, and its twin's, are probed one group after the other.
#include "probe.h"

namespace {
enum System { MODEL, DENSE, TWIN_ON_EXPERTS, TWIN_DEALT, TWIN_SUBSETS, n_systems }; // A-D, D, E, F, J

// The controls E, F and J are probed with negatives of the same document alone, as is published.
bool measured(size_t negatives, size_t system) { return negatives == SAME_DOCUMENT || system <= DENSE; }

std::vector<size_t> whole_numbers(const std::string& text) {
    std::vector<size_t> list;
    for (const std::string& word : split(text, ',')) {
        if (word.empty() || word.size() > 4 || word.find_first_not_of("0123456789") != std::string::npos ||
            std::stoul(word) == 0 || (!list.empty() && std::stoul(word) <= list.back()))
            fail_usage("--k: %s, expected rising numbers of units, as in 1,2,4", quoted(text).c_str());
        list.push_back(std::stoul(word));
    }
    return list;
}

std::vector<size_t> layers_of(const std::string& text, size_t n_layer) {
    std::vector<size_t> layers;
    if (text == "all") {
        layers.resize(n_layer);
        std::iota(layers.begin(), layers.end(), size_t(0));
        return layers;
    }
    if (text.empty() || text.size() > 4 || text.find_first_not_of("0123456789") != std::string::npos ||
        std::stoul(text) >= n_layer)
        fail_usage("--layer: %s, expected all or one of %zu layers, counted from 0", quoted(text).c_str(),
                   n_layer);
    return {std::stoul(text)};
}

void check_twin(const Config& c, const Config& twin, const std::string& path, const std::string& of) {
    if (!twin.dense())
        fail("%s: --twin is a mixture (ffn %s), expected a dense model", path.c_str(), twin.ffn.c_str());
    if (twin.n_layer != c.n_layer || twin.vocab_size != c.vocab_size || twin.tokenizer != c.tokenizer)
        fail("%s: --twin has %zu layers and %zu tokens (%s), expected the %zu and %zu (%s) of %s",
             path.c_str(), twin.n_layer, twin.vocab_size, twin.tokenizer.c_str(), c.n_layer, c.vocab_size,
             c.tokenizer.c_str(), of.c_str());
}

// Units of some layers on all rows.
std::vector<TokenUnits> read_units(Reader& reader, const TokenRows& rows, const std::vector<size_t>& layers,
                                   bool gated, const char* label) {
    std::vector<TokenUnits> units(layers.size());
    read_rows(reader, rows, label, [&](size_t first, size_t B) {
        check_finite(reader, rows, first, B * rows.T);
        std::vector<LayerUnits> views;
        for (const size_t l : layers) views.push_back(reader.layer(l));
        parallel_items(layers.size(), [&](size_t i) { units[i].add(views[i], B * rows.T, gated); });
    });
    return units;
}

// Everything that is probed, kept by layer.
struct Probing {
    const Concepts& concepts;
    std::vector<size_t> ks;
    bool raw = false, twin = false;
    uint64_t seed = 1;
    std::vector<uint32_t> block;                              // (documents) witnesses of the test part
    std::vector<std::array<ProbeSample, n_negatives>> sample; // (concepts)
    std::vector<std::array<bool, n_negatives>> asked;
    std::vector<std::array<ProbeSample, n_shifts>> shifted;
    std::vector<std::array<std::array<ConceptCells, n_systems>, n_negatives>> cells;
    std::vector<std::array<ConceptCells, n_shifts>> shifted_cells;

    Probing(const Concepts& concepts, const ProbeOptions& o);
    void probe_layer(const TokenUnits& model, const TokenUnits* dense, size_t layer);
};

bool has_enough(const ProbeSample& sample) {
    bool enough = true;
    for (size_t part = 0; part < n_parts; part++)
        enough &= sample.token[part].size() >= 2 * (part == TRAIN ? least_train : least_other);
    return enough;
}

Probing::Probing(const Concepts& all, const ProbeOptions& o)
    : concepts(all), ks(whole_numbers(o.k)), raw(o.raw), twin(!o.twin.empty()), seed(uint64_t(o.seed)) {
    const size_t C = concepts.list.size();
    block.assign(concepts.documents(), 0);
    uint32_t next = 0;
    for (size_t d = 0, last = SIZE_MAX; d < concepts.documents(); d++) {
        if (concepts.part[d] != TEST) continue;
        if (last != SIZE_MAX && concepts.block[d] != concepts.block[last]) next++;
        last = d;
        block[d] = next;
    }
    sample.resize(C);
    asked.resize(C);
    shifted.resize(C);
    cells.resize(C);
    shifted_cells.resize(C);
    Progress progress("samples", "concepts", double(C));
    std::mutex mutex;
    size_t done = 0;
    parallel_items(C, [&](size_t c) {
        for (size_t v = 0; v < n_negatives; v++) {
            sample[c][v] = draw_sample(concepts, c, concepts.labels, c, Negatives(v), size_t(o.most), seed);
            asked[c][v] = has_enough(sample[c][v]);
        }
        for (size_t s = 0; s < n_shifts; s++)
            shifted[c][s] = draw_sample(concepts, c, shifted_labels(concepts, c, seed + s), 0, SAME_DOCUMENT,
                                        size_t(o.most), seed + s);
        const std::lock_guard lock(mutex);
        progress.update(double(++done));
    });
    progress.finish(double(C));
}

void Probing::probe_layer(const TokenUnits& model, const TokenUnits* dense, size_t layer) {
    const size_t C = concepts.list.size(), E = model.deal.E;
    CellPlan plans[n_systems];
    plans[MODEL] = {&model, &model.deal, E, model.units / E, nullptr};
    Deal dealt;
    std::vector<std::vector<uint8_t>> subset;
    if (dense) {
        dealt = shuffled_deal(model.deal, seed + layer);
        Random random{seed, random_stream("subsets") + layer};
        for (size_t e = 0; e < E; e++) { // as many units as an expert has, if there are so many
            std::vector<uint32_t> order(dense->units);
            std::iota(order.begin(), order.end(), 0u);
            subset.emplace_back(dense->units, 0);
            for (size_t i = 0; i < std::min(dense->units, model.units / E); i++) {
                std::swap(order[i], order[i + random.below(order.size() - i)]);
                subset.back()[order[i]] = 1;
            }
        }
        plans[DENSE] = {dense, nullptr, 1, 0, nullptr};
        plans[TWIN_ON_EXPERTS] = {dense, &model.deal, E, 0, nullptr};
        plans[TWIN_DEALT] = {dense, &dealt, E, 0, nullptr};
        plans[TWIN_SUBSETS] = {dense, nullptr, E, 0, &subset};
    }
    const size_t systems = dense ? n_systems : 1, of_concept = n_negatives * systems + n_shifts;
    Progress progress(strf("layer %zu", layer), "concepts", double(C));
    std::mutex mutex;
    size_t done = 0;
    parallel_items(C * of_concept, [&](size_t item) {
        const size_t c = item / of_concept, i = item % of_concept;
        std::vector<CellResult> results;
        if (i >= n_negatives * systems) {
            const size_t s = i - n_negatives * systems;
            for (size_t e = 0; e < E; e++)
                results.push_back(probe_cell(plans[MODEL], e, shifted[c][s], {1}, raw));
            shifted_cells[c][s].push_back(std::move(results));
        } else if (const size_t v = i / systems, system = i % systems; asked[c][v] && measured(v, system)) {
            const bool interval = v == SAME_DOCUMENT && twin && system <= TWIN_ON_EXPERTS;
            for (size_t e = 0; e < plans[system].cells; e++)
                results.push_back(probe_cell(plans[system], e, sample[c][v], ks, raw,
                                             interval ? &block : nullptr, concepts.rows.T));
            cells[c][v][system].push_back(std::move(results));
        }
        if (i + 1 < of_concept) return;
        const std::lock_guard lock(mutex);
        progress.update(double(++done));
    });
    progress.finish(double(C));
}

ConceptProbe concept_figures(const Probing& p, size_t c) {
    ConceptProbe out;
    out.about = p.concepts.list[c];
    out.rule = p.concepts.rule[c];
    for (size_t part = 0; part < n_parts; part++)
        out.positives[part] = p.sample[c][SAME_DOCUMENT].token[part].size() / 2;
    for (size_t v = 0; v < n_negatives; v++) {
        ConceptProbe::Variant& variant = out.variant[v];
        variant.asked = p.asked[c][v];
        if (!variant.asked) continue;
        const ProbeSample& sample = p.sample[c][v];
        variant.rival = rival_of(p.concepts, c, sample);
        const double positives = double(sample.token[TEST].size()) / 2;
        for (size_t k = 0; k < p.ks.size(); k++) {
            variant.model.push_back(figures_of(p.cells[c][v][MODEL], k, positives));
            if (!p.twin) continue;
            variant.dense.push_back(figures_of(p.cells[c][v][DENSE], k, positives));
            if (!measured(v, TWIN_ON_EXPERTS)) continue;
            variant.E.push_back(figures_of(p.cells[c][v][TWIN_ON_EXPERTS], k, positives).A);
            variant.F.push_back(figures_of(p.cells[c][v][TWIN_DEALT], k, positives).A);
            variant.J.push_back(figures_of(p.cells[c][v][TWIN_SUBSETS], k, positives).A);
        }
    }
    std::vector<double> A, D;
    for (const ConceptCells& cells : p.shifted_cells[c]) {
        const Figures f = figures_of(cells, 0, 1);
        if (std::isfinite(f.A)) A.push_back(f.A);
        if (std::isfinite(f.D)) D.push_back(f.D);
    }
    if (!A.empty()) {
        out.shifted_A[0] = mean_of(A);
        out.shifted_A[1] = *std::max_element(A.begin(), A.end());
    }
    if (!D.empty()) {
        out.shifted_D[0] = mean_of(D);
        out.shifted_D[1] = *std::max_element(D.begin(), D.end());
    }
    const ConceptProbe::Variant& first = out.variant[SAME_DOCUMENT];
    for (const auto* list : {&first.model, &first.dense})
        for (const Figures& f : *list) out.counts |= first.asked && f.D_validation > first.rival.best();
    return out;
}

// Of a resample of blocks, the sums of a cell.
Tally drawn(const CellResult& cell, const std::vector<uint32_t>& times) {
    Tally sum;
    for (size_t b = 0; b < times.size(); b++)
        if (times[b]) sum.add(cell.by_block[b], times[b]);
    return sum;
}

double best_of(const ConceptCells& cells, const std::vector<uint32_t>& times) { // A
    double most = undefined;
    for (const auto& layer : cells)
        for (const CellResult& cell : layer) {
            if (!cell.probed) continue;
            const double f1 = drawn(cell, times).f1();
            if (!(most >= f1)) most = f1;
        }
    return most;
}

double pooled_of(const std::vector<CellResult>& layer, const std::vector<uint32_t>& times) { // D
    Tally sum;
    for (const CellResult& cell : layer) sum.add(drawn(cell, times));
    return sum.balanced();
}

// The two differences of the sentence.
void add_differences(ProbeReport& r, const Probing& p) {
    std::vector<size_t> counted;
    for (size_t c = 0; c < r.concepts.size(); c++)
        if (r.concepts[c].counts) counted.push_back(c);
    r.counted = counted.size();
    if (!p.twin || counted.empty()) return;
    using Pair = std::pair<double, double>;
    const auto mean = [&](const std::vector<uint32_t>& times) {
        double E = 0, D = 0, n_E = 0, n_D = 0;
        for (const size_t c : counted) {
            const auto& systems = p.cells[c][SAME_DOCUMENT];
            const ConceptProbe::Variant& v = r.concepts[c].variant[SAME_DOCUMENT];
            const double e = best_of(systems[MODEL], times) - best_of(systems[TWIN_ON_EXPERTS], times);
            const double d = pooled_of(systems[MODEL][v.model[0].pooled_layer], times) -
                             pooled_of(systems[DENSE][v.dense[0].pooled_layer], times);
            if (std::isfinite(e)) {
                E += e;
                n_E++;
            }
            if (std::isfinite(d)) {
                D += d;
                n_D++;
            }
        }
        return Pair{n_E > 0 ? E / n_E : undefined, n_D > 0 ? D / n_D : undefined};
    };
    const size_t blocks = *std::max_element(p.block.begin(), p.block.end()) + size_t(1);
    const Pair all = mean(std::vector<uint32_t>(blocks, 1));
    std::vector<double> E, D;
    for (const Pair& pair : resample(blocks, p.seed, mean)) {
        E.push_back(pair.first);
        D.push_back(pair.second);
    }
    r.beyond_E = {all.first, interval_of(E)};
    r.beyond_D = {all.second, interval_of(D)};
}
} // namespace

ProbeReport measure_probe(const ProbeOptions& o, const MakeReader& make_reader) {
    const double begin = now_seconds();
    const ConceptInput input = {
        o.data,   o.tokenizer,   o.sources,      o.conllu,
        o.labels, size_t(o.seq), size_t(o.rows), {size_t(o.least), size_t(o.least_documents)}};
    input.check();
    whole_numbers(o.k);
    const SafeTensorsFile file(find_checkpoint(o.ckpt));
    ProbeReport r;
    r.checkpoint = file.path;
    r.step = checkpoint_step(file);
    r.config = read_config(file);
    if (!r.config.moe() && !r.config.dense())
        fail("%s: ffn is %s, expected moe or dense", file.path.c_str(), r.config.ffn.c_str());
    r.layers = layers_of(o.layer, r.config.n_layer);
    std::optional<SafeTensorsFile> twin_file;
    Config twin_config;
    if (!o.twin.empty()) {
        twin_file.emplace(find_checkpoint(o.twin));
        r.twin = twin_file->path;
        twin_config = read_config(*twin_file);
        check_twin(r.config, twin_config, r.twin, file.path);
    }
    const Concepts concepts = read_concepts(input, r.config, file.path);
    const TokenRows& rows = concepts.rows;
    r.source = rows.source;
    r.rows = rows.rows;
    r.T = rows.T;
    for (const uint8_t part : concepts.part)
        if (part < n_parts) r.documents[part]++;
    r.seed = uint64_t(o.seed);
    r.gated = o.gated;
    r.raw = o.raw;
    r.left_out = concepts.left_out;

    Probing probing(concepts, o);
    r.ks = probing.ks;
    Reader reader = make_reader(r.config, batch_rows(rows.T), rows.T), twin;
    load_weights(reader, file);
    if (twin_file) {
        twin = make_reader(twin_config, batch_rows(rows.T), rows.T);
        load_weights(twin, *twin_file);
    }
    constexpr size_t budget = size_t(1)
                              << 30; // bytes of units at a time; a quarter of them, about, is not zero
    const size_t width = r.config.most_active() + (twin_file ? 4 * twin_config.dense_width() : 0);
    const size_t group = std::max<size_t>(1, budget / (rows.size() * width * 2));
    for (size_t at = 0; at < r.layers.size(); at += group) {
        const std::vector<size_t> layers(r.layers.begin() + long(at),
                                         r.layers.begin() + long(std::min(r.layers.size(), at + group)));
        const std::vector<TokenUnits> model = read_units(reader, rows, layers, o.gated, "model");
        std::vector<TokenUnits> dense;
        if (twin_file) dense = read_units(twin, rows, layers, o.gated, "twin");
        for (size_t i = 0; i < layers.size(); i++)
            probing.probe_layer(model[i], twin_file ? &dense[i] : nullptr, layers[i]);
    }
    for (size_t c = 0; c < concepts.list.size(); c++) r.concepts.push_back(concept_figures(probing, c));
    add_differences(r, probing);
    r.seconds = now_seconds() - begin;
    return r;
}

int probe_program(int argc, char** argv, const MakeReader& make_reader) {
    return tool_program<ProbeOptions>(
        argc, argv, "probe",
        "Says how well a few units of an expert tell a concept, beside what explains it away: the token, "
        "the\n"
        "choice among many experts, and a dense twin on the same tokens. More checkpoints, of other seeds, "
        "are\n"
        "probed one after the other and shown side by side.",
        [&](const ProbeOptions& options) { return measure_probe(options, make_reader); }, print_probe,
        probe_json,
        [](const std::vector<ProbeReport>& reports) {
            printf("\n%s", probes_side_by_side(reports).c_str());
        });
}
