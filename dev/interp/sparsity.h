// How sparse a model is, and how it shares out its work. Per layer: how many units fire per token (l0), which
// never do, how often each does; per expert its load, which experts are chosen together, how even the choice
// is; and the same apart for the phases of a game or the classes of bytes. A unit fires when its value
// is above zero.
#pragma once
#include "../lib/options.h"
#include "results.h"
#include "rows.h"
#include "statistics.h"

struct SparsityOptions {
    std::string ckpt, data, tokenizer, json;
    int64_t rows = 512, seq = 0;
    static constexpr uint64_t bootstrap_seed = 1;

    void declare(Options& o) {
        o.add(0, "ckpt", "FILE|DIR", &ckpt, "a checkpoint, or the folder of a run for its newest one");
        o.add(0, "data", "GLOB|FILE", &data, "token shards; for chess also games as PGN or game text");
        o.add(0, "rows", "ROWS", &rows, 1, 1 << 30, "rows or games to read, at most");
        o.add('t', "seq", "TOKENS", &seq, 0, 1 << 24,
              "tokens of a row (0: as many as model and data have, of a game 256)");
        o.add(0, "tokenizer", "FILE", &tokenizer,
              "GPT-2 only: the file written by data/fineweb.py, for the classes of bytes");
        o.add(0, "json", "FILE", &json,
              "where the numbers go (none: interp/sparsity.json beside the checkpoint)");
    }
};

// Of one layer: over all tokens, or over those of a group.
struct LayerSparsity {
    size_t tokens = 0;                      // where there are none, the numbers below are undefined
    size_t units = 0;                       // of all experts; dense: of the layer
    size_t work = 0;                        // units computed per token: K*D
    Estimate l0;                            // units firing per token, mean; the interval over rows
    double sd = undefined;                  // of it over tokens
    Histogram histogram{{}};                // of l0 per token
    size_t dead = 0;                        // units that never fire here
    Histogram rates{{}};                    // of the others, by the share of tokens they fire for
    std::vector<double> load, expert_units; // (E) share of the assignments; units firing when chosen
    std::vector<double> together;           // (E,E) share of tokens that chose both; i,i: that chose i
    double entropy = undefined;             // of the load, in bits; log2 E when all experts work alike
    double weight_entropy = undefined;      // of a token's gate weights, in bits, mean; at most log2 K
    std::vector<LayerSparsity> groups;      // the same of every group of tokens, as in Sparsity

    double zero_work() const { return 1 - l0.value / work; } // share of the units computed that come out zero
    double largest() const { return load.empty() ? undefined : *std::max_element(load.begin(), load.end()); }
    double smallest() const { return load.empty() ? undefined : *std::min_element(load.begin(), load.end()); }
};

struct Sparsity {
    std::string checkpoint, source;
    int64_t step = 0;
    Config config;
    size_t rows = 0, tokens = 0;
    std::vector<std::string> groups; // their names
    std::vector<LayerSparsity> layers;
    double seconds = 0;
};

// - sum p log2 p, of shares that sum to 1.
template <class T> double entropy_bits(const T* p, size_t n) {
    double bits = 0;
    for (size_t i = 0; i < n; i++)
        if (p[i] > 0) bits -= p[i] * std::log2(double(p[i]));
    return bits;
}

// What is counted on the way, of one layer over the tokens of a group. Whole numbers but for the entropy.
struct SparsityCounts {
    std::vector<uint32_t> l0, row; // (tokens) units that fire; which row of the data the token is from
    std::vector<size_t> fired;     // (units) tokens
    std::vector<size_t> chosen;    // (E) tokens
    std::vector<size_t> expert_l0; // (E) units that fired, summed over the tokens that chose it
    std::vector<size_t> together;  // (E,E) tokens
    double weight_entropy = 0;     // summed over tokens

    SparsityCounts(size_t units, size_t E) : fired(units), chosen(E), expert_l0(E), together(E * E) {}
};

// Adds a batch of n tokens, which begins with token `first`. counts: one for each group, the last for the
// tokens of none.
inline void count_layer(std::vector<SparsityCounts>& counts, const LayerUnits& units, const TokenRows& rows,
                        size_t first, size_t n) {
    const size_t E = units.E, K = units.K, D = units.D, G = counts.size();
    const auto group_of = [&](size_t i) { return std::min<size_t>(rows.group[first + i], G - 1); };
    std::vector<uint32_t> slot_l0(n * K);
#pragma omp parallel
    {
        std::vector<uint32_t> fired(G * E * D);
#pragma omp for schedule(static)
        for (size_t i = 0; i < n * K; i++) {
            const float* z = units.z + (units.slot ? size_t(units.slot[i]) : i) * D;
            uint32_t* count = &fired[group_of(i / K) * E * D] + (units.choice ? units.choice[i] * D : 0);
            uint32_t active = 0;
            for (size_t u = 0; u < D; u++) {
                const uint32_t fires = z[u] > 0;
                count[u] += fires, active += fires;
            }
            slot_l0[i] = active;
        }
#pragma omp critical
        for (size_t u = 0; u < G * E * D; u++) counts[u / (E * D)].fired[u % (E * D)] += fired[u];
    }
    for (size_t i = 0; i < n; i++) {
        SparsityCounts& group = counts[group_of(i)];
        group.l0.push_back(std::accumulate(&slot_l0[i * K], &slot_l0[i * K] + K, 0u));
        group.row.push_back(uint32_t((first + i) / rows.T));
        if (!units.choice) continue;
        const int32_t* choice = units.choice + i * K;
        group.weight_entropy += entropy_bits(units.weight + i * K, K);
        for (size_t k = 0; k < K; k++) {
            group.chosen[choice[k]]++;
            group.expert_l0[choice[k]] += slot_l0[i * K + k];
            for (size_t other = 0; other < K; other++) group.together[choice[k] * E + choice[other]]++;
        }
    }
}

// All groups taken together; the tokens keep the order of their rows.
inline SparsityCounts sum_of_groups(const std::vector<SparsityCounts>& groups) {
    SparsityCounts all(groups[0].fired.size(), groups[0].chosen.size());
    const auto add = [](auto& to, const auto& from) {
        for (size_t i = 0; i < to.size(); i++) to[i] += from[i];
    };
    std::vector<std::pair<uint32_t, uint32_t>> tokens; // row, l0
    for (const SparsityCounts& group : groups) {
        for (size_t i = 0; i < group.l0.size(); i++) tokens.push_back({group.row[i], group.l0[i]});
        add(all.fired, group.fired), add(all.chosen, group.chosen);
        add(all.expert_l0, group.expert_l0), add(all.together, group.together);
        all.weight_entropy += group.weight_entropy;
    }
    std::sort(tokens.begin(), tokens.end());
    for (const auto& [row, l0] : tokens) all.row.push_back(row), all.l0.push_back(l0);
    return all;
}

// counts of a layer with E experts (dense: 0), K chosen and `work` units computed per token -> its numbers
inline LayerSparsity layer_sparsity(const SparsityCounts& counts, size_t E, size_t K, size_t work) {
    LayerSparsity s;
    const size_t N = counts.l0.size();
    s.tokens = N, s.units = counts.fired.size(), s.work = work;
    s.dead = size_t(std::count(counts.fired.begin(), counts.fired.end(), size_t(0)));
    if (N == 0) return s;
    s.l0 = mean_by_group(counts.l0, counts.row, SparsityOptions::bootstrap_seed);
    s.sd = moments(counts.l0.data(), N).sd;
    const auto [least, most] = std::minmax_element(counts.l0.begin(), counts.l0.end());
    s.histogram = Histogram(whole_edges(*least, *most, 40));
    for (const uint32_t l0 : counts.l0) s.histogram.add(l0);

    std::vector<double> edges = {1}; // of the rates: quarters of a decade down to one token
    while (edges.back() * N > 1) edges.push_back(std::pow(10.0, -0.25 * edges.size()));
    std::reverse(edges.begin(), edges.end());
    s.rates = Histogram(edges.size() > 1 ? edges : std::vector<double>{0.5, 1});
    for (const size_t fired : counts.fired)
        if (fired) s.rates.add(double(fired) / N);
    if (E == 0) return s;

    s.load.resize(E), s.expert_units.resize(E), s.together.resize(E * E);
    for (size_t j = 0; j < E; j++) {
        s.load[j] = double(counts.chosen[j]) / (N * K);
        s.expert_units[j] = counts.chosen[j] ? double(counts.expert_l0[j]) / counts.chosen[j] : undefined;
        for (size_t i = 0; i < E; i++) s.together[j * E + i] = double(counts.together[j * E + i]) / N;
    }
    s.entropy = entropy_bits(s.load.data(), E);
    s.weight_entropy = counts.weight_entropy / N;
    return s;
}

// Runs the model of the reader, whose weights are there, over the rows.
inline std::vector<LayerSparsity> measure_layers_sparsity(Reader& reader, const TokenRows& rows) {
    const Config& c = reader.config;
    const size_t G = rows.groups.size(), work = c.dense_width();
    const size_t E = c.moe() ? c.n_expert : 0, K = c.moe() ? c.n_expert_active : 1;
    const std::vector<SparsityCounts> zero(G + 1, SparsityCounts(reader.units(), E));
    std::vector<std::vector<SparsityCounts>> counts(c.n_layer, zero); // (L,groups+1)
    read_rows(reader, rows, "sparsity", [&](size_t first, size_t B) {
        for (size_t l = 0; l < c.n_layer; l++)
            count_layer(counts[l], reader.layer(l), rows, first * rows.T, B * rows.T);
    });
    std::vector<LayerSparsity> layers;
    for (const std::vector<SparsityCounts>& count : counts) {
        layers.push_back(layer_sparsity(sum_of_groups(count), E, K, work));
        for (size_t g = 0; g < G; g++) layers.back().groups.push_back(layer_sparsity(count[g], E, K, work));
    }
    return layers;
}

inline Sparsity measure_sparsity(const SparsityOptions& options, const MakeReader& make_reader) {
    const double begin = now_seconds();
    if (options.data.empty()) fail_usage("--data is missing: token shards, or a file of games");
    const SafeTensorsFile file(find_checkpoint(options.ckpt));
    Sparsity s;
    s.checkpoint = file.path, s.step = checkpoint_step(file), s.config = read_config(file);
    const TokenRows rows = token_rows(options.data, s.config, size_t(options.seq), size_t(options.rows),
                                      options.tokenizer, file.path);
    Reader reader = make_reader(s.config, batch_rows(rows.T), rows.T);
    load_weights(reader, file);
    s.source = rows.source, s.rows = rows.rows, s.tokens = rows.size(), s.groups = rows.groups;
    s.layers = measure_layers_sparsity(reader, rows);
    s.seconds = now_seconds() - begin;
    return s;
}

// ---------------------------------------------------------------------------------------------------------
// As a table, as JSON

// A row for every layer: of(layer) is the layer, or one of its groups.
template <class Of> void print_layers(const Sparsity& s, Of of) {
    const Config& c = s.config;
    printf("layer   units    dead     l0 per token, 95%% of the mean       sd   zero work%s\n",
           c.moe() ? "   largest  smallest share   entropy bits" : "");
    for (size_t l = 0; l < s.layers.size(); l++) {
        const LayerSparsity& layer = of(s.layers[l]);
        printf("%-5zu %7zu %7zu   %12.2f  (%.2f to %.2f) %8.2f %9.1f%%", l, layer.units, layer.dead,
               layer.l0.value, layer.l0.interval.low, layer.l0.interval.high, layer.sd,
               100 * layer.zero_work());
        if (c.moe())
            printf("   %6.1f%%   %6.1f%%          %.3f of %.3f", 100 * layer.largest(),
                   100 * layer.smallest(), layer.entropy, std::log2(double(c.n_expert)));
        printf("\n");
    }
    if (!c.moe()) return;
    printf("load of the experts, %% of the assignments, and the units that fire when chosen\n");
    for (size_t l = 0; l < s.layers.size(); l++) {
        const LayerSparsity& layer = of(s.layers[l]);
        printf("%-5zu", l);
        for (const double load : layer.load) printf(" %7.1f", 100 * load);
        printf("\n     ");
        for (const double units : layer.expert_units)
            printf(" %7s", std::isnan(units) ? "-" : strf("%.1f", units).c_str());
        printf("\n");
    }
}

inline void print_sparsity(const Sparsity& s) {
    printf("%s, step %lld, on %zu tokens (%zu rows) of %s\n\n", s.checkpoint.c_str(), (long long)s.step,
           s.tokens, s.rows, s.source.c_str());
    print_layers(s, [](const LayerSparsity& layer) -> const LayerSparsity& { return layer; });
    for (size_t g = 0; g < s.groups.size() && s.groups.size() > 1; g++) {
        const size_t tokens = s.layers[0].groups[g].tokens;
        printf("\n%s: %zu tokens, %.1f%%\n", s.groups[g].c_str(), tokens, 100.0 * tokens / s.tokens);
        if (tokens)
            print_layers(s, [g](const LayerSparsity& l) -> const LayerSparsity& { return l.groups[g]; });
    }
}

inline JsonWriter& histogram_json(JsonWriter& out, const char* name, const Histogram& histogram) {
    return out.key(name)
        .open('{')
        .key("edges")
        .values(histogram.edges)
        .key("counts")
        .values(histogram.counts)
        .close();
}

// The members of an object that is open.
inline void layer_json(JsonWriter& out, const LayerSparsity& layer, const Config& c) {
    const size_t E = layer.load.size();
    out.member("tokens", layer.tokens).member("units", layer.units).key("l0").open('{');
    out.member("mean", layer.l0.value).member("sd", layer.sd);
    out.member("low", layer.l0.interval.low).member("high", layer.l0.interval.high).close();
    histogram_json(out, "histogram", layer.histogram).member("dead", layer.dead);
    histogram_json(out, "rates", layer.rates).member("zero_work", layer.zero_work());
    out.key("experts").open('[');
    for (size_t j = 0; j < E; j++)
        out.open('{').member("load", layer.load[j]).member("units", layer.expert_units[j]).close();
    out.close().key("corouting").open('[');
    for (size_t j = 0; j < E; j++)
        out.values(std::vector<double>(&layer.together[j * E], &layer.together[j * E] + E));
    out.close().member("entropy", layer.entropy);
    out.member("max_entropy", E ? std::log2(double(E)) : undefined);
    out.member("weight_entropy", layer.weight_entropy);
    out.member("max_weight_entropy", E ? std::log2(double(c.n_expert_active)) : undefined);
    out.member("largest", layer.largest()).member("smallest", layer.smallest());
}

inline std::string sparsity_json(const Sparsity& s) {
    JsonWriter out = begin_json("sparsity", s.checkpoint, s.step, s.config, s.seconds);
    out.member("data", s.source).member("rows", s.rows).member("tokens", s.tokens);
    out.member("bootstrap_seed", SparsityOptions::bootstrap_seed).key("groups").values(s.groups);
    out.key("layers").open('[');
    for (size_t l = 0; l < s.layers.size(); l++) {
        out.open('{').member("layer", l);
        layer_json(out, s.layers[l], s.config);
        out.key("groups").open('[');
        for (size_t g = 0; g < s.groups.size(); g++) {
            out.open('{').member("name", s.groups[g]);
            layer_json(out, s.layers[l].groups[g], s.config);
            out.close();
        }
        out.close().close();
    }
    out.close().close();
    return out.text;
}

inline int sparsity_program(int argc, char** argv, const MakeReader& make_reader) {
    SparsityOptions flags;
    Options options("sparsity",
                    "Measures how sparsely a checkpoint's units fire and how its experts share the work.");
    flags.declare(options);
    if (!options.parse(argc, argv)) return 0;
    const Sparsity s = measure_sparsity(flags, make_reader);
    print_sparsity(s);
    write_json(json_path(flags.json, s.checkpoint, "sparsity"), sparsity_json(s));
    return 0;
}
