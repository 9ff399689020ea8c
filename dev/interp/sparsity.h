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

struct GroupSparsity {
    size_t tokens = 0;
    double l0 = undefined;
    std::vector<double> load; // (E) share of the group's assignments
};

struct LayerSparsity {
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
    std::vector<GroupSparsity> groups;      // as in Sparsity

    double zero_work() const { return 1 - l0.value / work; } // share of the units computed that come out zero
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

// What is counted on the way, of one layer over all tokens. Whole numbers but for the entropy.
struct SparsityCounts {
    std::vector<uint32_t> l0;      // (tokens) units that fire
    std::vector<size_t> fired;     // (units) tokens
    std::vector<size_t> chosen;    // (groups + 1, E) tokens; the last: of no group
    std::vector<size_t> expert_l0; // (E) units that fired, summed over the tokens that chose it
    std::vector<size_t> together;  // (E,E) tokens
    double weight_entropy = 0;     // summed over tokens
};

// Adds the batch of n tokens that begins with token `first`.
inline void count_layer(SparsityCounts& counts, const LayerUnits& units, const uint8_t* group, size_t groups,
                        size_t first, size_t n) {
    const size_t E = units.E, K = units.K, D = units.D;
    std::vector<uint32_t> slot_l0(n * K);
#pragma omp parallel
    {
        std::vector<uint32_t> fired(E * D);
#pragma omp for schedule(static)
        for (size_t i = 0; i < n * K; i++) {
            const float* z = units.z + (units.slot ? size_t(units.slot[i]) : i) * D;
            uint32_t* count = fired.data() + (units.choice ? units.choice[i] * D : 0);
            uint32_t active = 0;
            for (size_t u = 0; u < D; u++) {
                const uint32_t fires = z[u] > 0;
                count[u] += fires, active += fires;
            }
            slot_l0[i] = active;
        }
#pragma omp critical
        for (size_t u = 0; u < E * D; u++) counts.fired[u] += fired[u];
    }
    for (size_t i = 0; i < n; i++) {
        counts.l0[first + i] = std::accumulate(&slot_l0[i * K], &slot_l0[i * K] + K, 0u);
        if (!units.choice) continue;
        const int32_t* choice = units.choice + i * K;
        const size_t g = std::min<size_t>(group[first + i], groups);
        counts.weight_entropy += entropy_bits(units.weight + i * K, K);
        for (size_t k = 0; k < K; k++) {
            counts.chosen[g * E + choice[k]]++;
            counts.expert_l0[choice[k]] += slot_l0[i * K + k];
            for (size_t other = 0; other < K; other++) counts.together[choice[k] * E + choice[other]]++;
        }
    }
}

// counts of a layer with E experts (dense: 0), K chosen and `work` units computed per token -> its numbers
inline LayerSparsity layer_sparsity(const SparsityCounts& counts, const TokenRows& rows, size_t E, size_t K,
                                    size_t work) {
    LayerSparsity s;
    const size_t N = rows.size(), G = rows.groups.size();
    s.units = counts.fired.size(), s.work = work;

    std::vector<uint32_t> row(N);
    for (size_t i = 0; i < N; i++) row[i] = uint32_t(i / rows.T);
    s.l0 = mean_by_group(counts.l0, row, SparsityOptions::bootstrap_seed);
    s.sd = moments(counts.l0.data(), N).sd;
    const auto [least, most] = std::minmax_element(counts.l0.begin(), counts.l0.end());
    s.histogram = Histogram(whole_edges(*least, *most, 40));
    for (const uint32_t l0 : counts.l0) s.histogram.add(l0);

    std::vector<double> edges = {1}; // of the rates: quarters of a decade down to one token
    while (edges.back() * N > 1) edges.push_back(std::pow(10.0, -0.25 * edges.size()));
    std::reverse(edges.begin(), edges.end());
    s.rates = Histogram(edges.size() > 1 ? edges : std::vector<double>{0.5, 1});
    for (const size_t fired : counts.fired)
        if (fired)
            s.rates.add(double(fired) / N);
        else
            s.dead++;

    s.groups.resize(G);
    std::vector<size_t> group_l0(G);
    for (size_t i = 0; i < N; i++)
        if (rows.group[i] < G) s.groups[rows.group[i]].tokens++, group_l0[rows.group[i]] += counts.l0[i];
    for (size_t g = 0; g < G; g++)
        if (s.groups[g].tokens) s.groups[g].l0 = double(group_l0[g]) / s.groups[g].tokens;
    if (E == 0) return s;

    s.load.resize(E), s.expert_units.resize(E), s.together.resize(E * E);
    for (size_t j = 0; j < E; j++) {
        size_t chosen = 0;
        for (size_t g = 0; g <= G; g++) chosen += counts.chosen[g * E + j];
        s.load[j] = double(chosen) / (N * K);
        s.expert_units[j] = chosen ? double(counts.expert_l0[j]) / chosen : undefined;
        for (size_t i = 0; i < E; i++) s.together[j * E + i] = double(counts.together[j * E + i]) / N;
    }
    s.entropy = entropy_bits(s.load.data(), E);
    s.weight_entropy = counts.weight_entropy / N;
    for (size_t g = 0; g < G; g++)
        for (size_t j = 0; j < E; j++)
            s.groups[g].load.push_back(
                s.groups[g].tokens ? double(counts.chosen[g * E + j]) / (s.groups[g].tokens * K) : undefined);
    return s;
}

// Runs the model of the reader, whose weights are there, over the rows.
inline std::vector<LayerSparsity> measure_layers_sparsity(Reader& reader, const TokenRows& rows) {
    const Config& c = reader.config;
    const size_t N = rows.size(), G = rows.groups.size();
    const size_t E = c.moe() ? c.n_expert : 0, K = c.moe() ? c.n_expert_active : 1;
    SparsityCounts zero;
    zero.l0.resize(N), zero.fired.resize(reader.units());
    zero.chosen.resize((G + 1) * E), zero.expert_l0.resize(E), zero.together.resize(E * E);
    std::vector<SparsityCounts> counts(c.n_layer, zero);
    read_rows(reader, rows, "sparsity", [&](size_t first, size_t B) {
        for (size_t l = 0; l < c.n_layer; l++)
            count_layer(counts[l], reader.layer(l), rows.group.data(), G, first * rows.T, B * rows.T);
    });
    std::vector<LayerSparsity> layers;
    for (const SparsityCounts& count : counts)
        layers.push_back(layer_sparsity(count, rows, E, K, c.dense_width()));
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

inline void print_sparsity(const Sparsity& s) {
    const Config& c = s.config;
    printf("%s, step %lld, on %zu tokens (%zu rows) of %s\n\n", s.checkpoint.c_str(), (long long)s.step,
           s.tokens, s.rows, s.source.c_str());
    printf("layer   units    dead     l0 per token, 95%% of the mean       sd   zero work%s\n",
           c.moe() ? "   largest  smallest share   entropy bits" : "");
    for (size_t l = 0; l < s.layers.size(); l++) {
        const LayerSparsity& layer = s.layers[l];
        printf("%-5zu %7zu %7zu   %12.2f  (%.2f to %.2f) %8.2f %9.1f%%", l, layer.units, layer.dead,
               layer.l0.value, layer.l0.interval.low, layer.l0.interval.high, layer.sd,
               100 * layer.zero_work());
        if (c.moe()) {
            const auto [least, most] = std::minmax_element(layer.load.begin(), layer.load.end());
            printf("   %6.1f%%   %6.1f%%          %.3f of %.3f", 100 * *most, 100 * *least, layer.entropy,
                   std::log2(double(c.n_expert)));
        }
        printf("\n");
    }
    if (c.moe()) {
        printf("\nload of the experts, %% of the assignments, and the units that fire when chosen\n");
        for (size_t l = 0; l < s.layers.size(); l++) {
            printf("%-5zu", l);
            for (const double load : s.layers[l].load) printf(" %7.1f", 100 * load);
            printf("\n     ");
            for (const double units : s.layers[l].expert_units) printf(" %7.1f", units);
            printf("\n");
        }
    }
    if (s.groups.size() < 2) return;
    printf("\nl0 per token by where it stands\nlayer");
    for (const std::string& name : s.groups) printf("  %20s", name.c_str());
    printf("\n");
    for (size_t l = 0; l < s.layers.size(); l++) {
        printf("%-5zu", l);
        for (const GroupSparsity& group : s.layers[l].groups)
            printf("  %20s", group.tokens ? strf("%.2f", group.l0).c_str() : "-");
        printf("\n");
    }
    printf("share");
    for (const GroupSparsity& group : s.layers[0].groups)
        printf("  %19.1f%%", 100.0 * group.tokens / s.tokens);
    printf("\n");
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

inline std::string sparsity_json(const Sparsity& s) {
    const size_t E = s.config.moe() ? s.config.n_expert : 0;
    JsonWriter out = begin_json("sparsity", s.checkpoint, s.step, s.config, s.seconds);
    out.member("data", s.source).member("rows", s.rows).member("tokens", s.tokens);
    out.member("bootstrap_seed", SparsityOptions::bootstrap_seed).key("groups").values(s.groups);
    out.key("layers").open('[');
    for (size_t l = 0; l < s.layers.size(); l++) {
        const LayerSparsity& layer = s.layers[l];
        out.open('{')
            .member("layer", l)
            .member("units", layer.units)
            .key("l0")
            .open('{')
            .member("mean", layer.l0.value);
        out.member("sd", layer.sd)
            .member("low", layer.l0.interval.low)
            .member("high", layer.l0.interval.high)
            .close();
        histogram_json(out, "histogram", layer.histogram).member("dead", layer.dead);
        histogram_json(out, "rates", layer.rates).member("zero_work", layer.zero_work());
        out.key("experts").open('[');
        for (size_t j = 0; j < E; j++)
            out.open('{').member("load", layer.load[j]).member("units", layer.expert_units[j]).close();
        out.close().key("corouting").open('[');
        for (size_t j = 0; j < E; j++)
            out.values(std::vector<double>(&layer.together[j * E], &layer.together[j * E] + E));
        out.close()
            .member("entropy", layer.entropy)
            .member("max_entropy", E ? std::log2(double(E)) : undefined);
        out.member("weight_entropy", layer.weight_entropy);
        out.member("max_weight_entropy", E ? std::log2(double(s.config.n_expert_active)) : undefined);
        out.member("largest", E ? *std::max_element(layer.load.begin(), layer.load.end()) : undefined);
        out.member("smallest", E ? *std::min_element(layer.load.begin(), layer.load.end()) : undefined);
        out.key("groups").open('[');
        for (size_t g = 0; g < s.groups.size(); g++) {
            const GroupSparsity& group = layer.groups[g];
            out.open('{').member("name", s.groups[g]).member("tokens", group.tokens).member("l0", group.l0);
            out.key("load").values(group.load).close();
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
