// The tool sparsity: see sparsity.h.
#include "sparsity.h"
#include <mutex>

// Of every slot (a token's k-th expert) the units that fire and those that are zero, of every token its
// participation ratio; and adds to the counts which units fire.
struct SlotCounts {
    std::vector<uint32_t> fire, zero;  // (n,K)
    std::vector<double> participation; // (n)

    SlotCounts(std::vector<SparsityCounts>& counts, const LayerUnits& units, const uint8_t* group, size_t n)
        : fire(n * units.K), zero(n * units.K), participation(n) {
        const size_t K = units.K, D = units.D, width = units.E * D;
        std::mutex mutex;
        parallel_ranges(n, 1, [&](size_t begin, size_t end) {
            std::vector<uint32_t> fired(counts.size() * width);
            for (size_t i = begin; i < end; i++) {
                size_t slot = i * K, listed = 0; // a list has one slot, and leaves out what is zero
                double sizes = 0, squares = 0;
                units.each_expert(i, true, [&](size_t first, const float* z, size_t number, float w) {
                    uint32_t* count = &fired[group[i] * width + first];
                    uint32_t active = 0, zeros = 0;
                    float size = 0, square = 0;
                    for (size_t u = 0; u < number; u++) {
                        const uint32_t fires = z[u] > 0;
                        count[u] += fires;
                        active += fires;
                        zeros += z[u] == 0;
                        size += std::fabs(z[u]);
                        square += z[u] * z[u];
                    }
                    sizes += double(w) * size;
                    squares += double(w) * w * square;
                    fire[slot] += active;
                    zero[slot] += zeros;
                    listed += number;
                    if (!units.begin) slot++;
                });
                if (units.begin) zero[slot] += uint32_t(D - listed);
                participation[i] = squares > 0 ? sizes * sizes / squares : 0;
            }
            const std::lock_guard lock(mutex);
            for (size_t u = 0; u < fired.size(); u++) counts[u / width].fired[u % width] += fired[u];
        });
    }
};

void count_layer(std::vector<SparsityCounts>& counts, const LayerUnits& units, const TokenRows& rows,
                 size_t first, size_t n) {
    const size_t E = units.E, K = units.K;
    std::vector<uint8_t> group(n); // that of no group goes to the last
    for (size_t i = 0; i < n; i++)
        group[i] = uint8_t(std::min<size_t>(rows.group[first + i], counts.size() - 1));
    const SlotCounts slots(counts, units, group.data(), n);
    for (size_t i = 0; i < n; i++) {
        SparsityCounts& to = counts[group[i]];
        to.l0.push_back(std::accumulate(&slots.fire[i * K], &slots.fire[i * K] + K, 0u));
        to.row.push_back(uint32_t((first + i) / rows.T));
        to.participation += slots.participation[i];
        to.zeros += std::accumulate(&slots.zero[i * K], &slots.zero[i * K] + K, size_t(0));
        if (!units.choice) continue;
        const int32_t* choice = units.choice + i * K;
        to.weight_entropy += entropy_bits(units.weight + i * K, K);
        for (size_t k = 0; k < K; k++) {
            to.chosen[choice[k]]++;
            to.expert_l0[choice[k]] += slots.fire[i * K + k];
            for (size_t other = 0; other < K; other++) to.together[choice[k] * E + choice[other]]++;
        }
    }
}

SparsityCounts sum_of_groups(const std::vector<SparsityCounts>& groups) {
    SparsityCounts all(groups[0].fired.size(), groups[0].chosen.size());
    const auto add = [](auto& to, const auto& from) {
        for (size_t i = 0; i < to.size(); i++) to[i] += from[i];
    };
    std::vector<std::pair<uint32_t, uint32_t>> tokens; // row, l0
    for (const SparsityCounts& group : groups) {
        for (size_t i = 0; i < group.l0.size(); i++) tokens.push_back({group.row[i], group.l0[i]});
        add(all.fired, group.fired);
        add(all.chosen, group.chosen);
        add(all.expert_l0, group.expert_l0);
        add(all.together, group.together);
        all.weight_entropy += group.weight_entropy;
        all.participation += group.participation;
        all.zeros += group.zeros;
    }
    std::sort(tokens.begin(), tokens.end());
    for (const auto& [row, l0] : tokens) {
        all.row.push_back(row);
        all.l0.push_back(l0);
    }
    return all;
}

LayerSparsity layer_sparsity(const SparsityCounts& counts, size_t E, size_t K, size_t work) {
    LayerSparsity s;
    const size_t N = counts.l0.size();
    s.tokens = N;
    s.units = counts.fired.size();
    s.work = work;
    s.dead = size_t(std::count(counts.fired.begin(), counts.fired.end(), size_t(0)));
    if (N == 0) return s;
    s.participation = counts.participation / double(N);
    s.zero_work = double(counts.zeros) / double(N * work);
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

    s.load.resize(E);
    s.expert_units.resize(E);
    s.together.resize(E * E);
    for (size_t j = 0; j < E; j++) {
        s.load[j] = double(counts.chosen[j]) / (N * K);
        s.expert_units[j] = counts.chosen[j] ? double(counts.expert_l0[j]) / counts.chosen[j] : undefined;
        for (size_t i = 0; i < E; i++) s.together[j * E + i] = double(counts.together[j * E + i]) / N;
    }
    s.entropy = entropy_bits(s.load.data(), E);
    s.weight_entropy = counts.weight_entropy / N;
    return s;
}

std::vector<LayerSparsity> measure_layers_sparsity(Reader& reader, const TokenRows& rows) {
    const Config& c = reader.config;
    const size_t G = rows.groups.size(), work = c.dense_width();
    const size_t E = c.moe() ? c.n_expert : 0, K = c.moe() ? c.n_expert_active : 1;
    const std::vector<SparsityCounts> zero(G + 1, SparsityCounts(reader.units(), E));
    std::vector<std::vector<SparsityCounts>> counts(c.n_layer, zero); // (L,groups+1)
    read_rows(reader, rows, "sparsity", [&](size_t first, size_t B) {
        check_finite(reader, rows, first, B * rows.T);
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

Sparsity measure_sparsity(const SparsityOptions& options, const MakeReader& make_reader) {
    const double begin = now_seconds();
    need_data(options.data);
    const SafeTensorsFile file(find_checkpoint(options.ckpt));
    Sparsity s;
    s.checkpoint = file.path;
    s.step = checkpoint_step(file);
    s.config = read_config(file);
    const TokenRows rows = token_rows(options.data, s.config, size_t(options.seq), size_t(options.rows),
                                      options.tokenizer, file.path);
    Reader reader = make_reader(s.config, batch_rows(rows.T), rows.T);
    load_weights(reader, file);
    s.source = rows.source;
    s.rows = rows.rows;
    s.tokens = rows.size();
    s.groups = rows.groups;
    s.layers = measure_layers_sparsity(reader, rows);
    s.seconds = now_seconds() - begin;
    return s;
}

void print_sparsity(const Sparsity& s) {
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

JsonWriter& histogram_json(JsonWriter& out, const char* name, const Histogram& histogram) {
    return out.key(name)
        .open('{')
        .key("edges")
        .values(histogram.edges)
        .key("counts")
        .values(histogram.counts)
        .close();
}

void layer_json(JsonWriter& out, const LayerSparsity& layer, const Config& c) {
    const size_t E = layer.load.size();
    out.member("tokens", layer.tokens).member("units", layer.units).key("l0").open('{');
    out.member("mean", layer.l0.value).member("sd", layer.sd);
    out.member("low", layer.l0.interval.low).member("high", layer.l0.interval.high).close();
    out.member("participation", layer.participation);
    histogram_json(out, "histogram", layer.histogram).member("dead", layer.dead);
    histogram_json(out, "rates", layer.rates).member("zero_work", layer.zero_work);
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

std::string sparsity_json(const Sparsity& s) {
    JsonWriter out = begin_json("sparsity", s.checkpoint, s.step, s.config, s.seconds);
    out.member("data", as_utf8(s.source)).member("rows", s.rows).member("tokens", s.tokens);
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

int sparsity_program(int argc, char** argv, const MakeReader& make_reader) {
    return tool_program<SparsityOptions>(
        argc, argv, "sparsity",
        "Measures how sparsely a checkpoint's units fire and how its experts share the work.",
        [&](const SparsityOptions& options) { return measure_sparsity(options, make_reader); },
        print_sparsity, sparsity_json);
}
