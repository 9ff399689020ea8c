// Which units are on where: see fires.h.
#include "fires.h"

// ---------------------------------------------------------------------------------------------------------
// Thresholds and lists

std::vector<float> cuts_of_maximum(const std::vector<float>& max) {
    std::vector<float> cuts;
    for (const float m : max)
        for (size_t t = 0; t < n_thresholds; t++) cuts.push_back(threshold(t) * m);
    return cuts;
}

std::vector<float> cuts_of_firings(const TokenValues& values, size_t units) {
    std::vector<std::vector<float>> fired(units);
    for (const std::vector<UnitValue>& at : values)
        for (const UnitValue& v : at) fired[v.unit].push_back(v.value);
    std::vector<float> cuts(units * n_thresholds);
    parallel_items(units, [&](size_t u) {
        std::vector<float>& list = fired[u];
        std::sort(list.begin(), list.end(), std::greater<float>());
        for (size_t t = 1; t < n_thresholds; t++) { // no more than that share is strictly above
            const size_t above = size_t(firing_share(t) * double(list.size()));
            cuts[u * n_thresholds + t] = list.empty() ? INFINITY : list[above];
        }
    });
    return cuts;
}

void count_cells(const UnitFires& fires, size_t unit, const LabelRows& labels,
                 const std::vector<uint32_t>* order, std::vector<uint32_t>& tp) {
    const size_t columns = labels.columns();
    uint32_t some[n_thresholds * tile_cells];
    tp.resize(n_thresholds * columns);
    for (size_t first = 0; first < columns; first += tile_cells) {
        count_tile(fires, unit, labels, order, first / tile_cells, some);
        for (size_t t = 0; t < n_thresholds; t++)
            std::copy_n(some + t * tile_cells, std::min(tile_cells, columns - first),
                        &tp[t * columns + first]);
    }
}

UnitFires unit_fires(TokenValues& values, const std::vector<float>& cuts) {
    UnitFires fires;
    fires.units = cuts.size() / n_thresholds;
    fires.tokens = values.size();
    fires.begin.assign(cuts.size() + 1, 0);
    for (std::vector<UnitValue>& at : values) { // from here on the place of the list takes the value's place
        size_t kept = 0;
        for (const UnitValue& v : at)
            if (const size_t level = level_of(v.value, &cuts[v.unit * n_thresholds])) {
                const uint32_t list = uint32_t(v.unit * n_thresholds + n_thresholds - level);
                fires.begin[list + 1]++;
                at[kept++].unit = list;
            }
        at.resize(kept);
    }
    for (size_t i = 1; i < fires.begin.size(); i++) fires.begin[i] += fires.begin[i - 1];
    fires.token.resize(fires.begin.back());
    std::vector<size_t> end(fires.begin.begin(), fires.begin.end() - 1); // of each list so far
    for (size_t n = 0; n < values.size(); n++) {
        for (const UnitValue& v : values[n]) fires.token[end[v.unit]++] = uint32_t(n);
        std::vector<UnitValue>().swap(values[n]);
    }
    return fires;
}

// ---------------------------------------------------------------------------------------------------------
// Layers

LayerFires train_fires(FireCollector& train, Ladder ladder) {
    LayerFires fires;
    fires.units = train.max.size();
    fires.max.assign(fires.units, INFINITY);
    fires.rate.resize(fires.units);
    for (size_t u = 0; u < fires.units; u++) {
        if (train.nonzero[u] == 0) continue;
        const bool always = train.nonzero[u] == train.characters; // if not, some of its values are zeros
        fires.max[u] = std::fabs(always ? train.max[u] : std::max(train.max[u], 0.0f));
        fires.rate[u] = double(train.above[u]) / double(train.characters);
        fires.alive++;
    }
    fires.cuts = ladder == Ladder::OF_MAXIMUM ? cuts_of_maximum(fires.max)
                                              : cuts_of_firings(train.values, fires.units);
    fires.train = unit_fires(train.values, fires.cuts);
    return fires;
}

std::vector<std::vector<size_t>> boundaries_of_games(const GameSet& games, const Boundaries& where) {
    std::vector<std::vector<size_t>> places;
    for (const std::string& text : games.texts) places.push_back(boundary_characters(text, where));
    return places;
}

PlacedRows placed_games(const GameSet& games, const Boundaries& where) {
    return {game_rows(games), boundaries_of_games(games, where)};
}

PlacedRows all_places(TokenRows rows) {
    std::vector<size_t> all(rows.T);
    std::iota(all.begin(), all.end(), size_t(0));
    const size_t n = rows.rows;
    return {std::move(rows), std::vector<std::vector<size_t>>(n, all)};
}

// One set of rows into a collector of each layer.
static std::vector<FireCollector> collect_fires(const FireReading& r, const std::vector<size_t>& layers,
                                                const PlacedRows& set, const char* which) {
    const TokenRows& rows = set.rows;
    std::vector<FireCollector> collectors(layers.size(), FireCollector(r.reader.units()));
    const std::string label = r.name.substr(r.name.rfind('/') + 1) + " on the " + which;
    read_rows(r.reader, rows, label.c_str(), [&](size_t first, size_t B) {
        for (size_t i = 0; i < layers.size(); i++) {
            const LayerUnits layer = r.reader.layer(layers[i]);
            const size_t bad = collectors[i].add(B, rows.T, set.places, first,
                                                 [&](size_t n, auto f) { layer.each_expert(n, r.gated, f); });
            if (bad < B * rows.T)
                fail("%s: layer %zu has a value that is not finite at token %zu of row %zu of %s",
                     r.name.c_str(), layers[i], bad % rows.T, first + bad / rows.T, rows.source.c_str());
        }
    });
    return collectors;
}

std::vector<LayerFires> model_fires(const FireReading& r, const std::vector<size_t>& layers) {
    std::vector<LayerFires> fires(layers.size());
    std::vector<FireCollector> collectors = collect_fires(r, layers, r.train, "train rows");
    parallel_items(layers.size(), [&](size_t i) { fires[i] = train_fires(collectors[i], r.ladder); });
    collectors = collect_fires(r, layers, r.test, "test rows");
    parallel_items(layers.size(),
                   [&](size_t i) { fires[i].test = unit_fires(collectors[i].values, fires[i].cuts); });
    return fires;
}

void each_layer_group(const FireReading& r, const std::vector<size_t>& layers,
                      const std::function<void(const std::vector<size_t>&, std::vector<LayerFires>&)>& visit,
                      size_t most_bytes) {
    // Units above zero at a place, of every layer, by the first batch.
    const TokenRows& rows = r.train.rows;
    const size_t B = std::min(r.reader.max_B, rows.rows);
    r.reader.read(rows.tokens.data(), B, rows.T);
    std::vector<double> bytes;
    for (const size_t l : layers) {
        const LayerUnits layer = r.reader.layer(l);
        size_t above = 0;
        for (size_t n = 0; n < B * rows.T; n++)
            layer.each(n, false, [&](size_t, float value) { above += value > 0; });
        const double places =
            double(r.train.places.size() + r.test.places.size()) * double(r.train.places[0].size());
        bytes.push_back(double(above) / double(B * rows.T) * places * sizeof(UnitValue));
    }
    for (size_t first = 0, end; first < layers.size(); first = end) {
        double sum = bytes[first];
        for (end = first + 1; end < layers.size() && sum + bytes[end] <= double(most_bytes);)
            sum += bytes[end++];
        const std::vector<size_t> group(layers.begin() + std::ptrdiff_t(first),
                                        layers.begin() + std::ptrdiff_t(end));
        std::vector<LayerFires> fires = model_fires(r, group);
        visit(group, fires);
    }
}

LayerFires array_fires(const float* train, const float* test, size_t features, const GameSplit& games,
                       const std::string names[2], bool split) {
    LayerFires fires;
    for (const bool is_test : {false, true}) {
        FireCollector collector(split ? 2 * features : features);
        const GameSet& set = is_test ? games.test : games.train;
        const auto places = boundaries_of_games(set, {set.dots, false});
        const size_t T = set.characters, batch = 64;
        const float* values = is_test ? test : train;
        Progress progress(is_test ? "test features" : "train features", "games", double(set.size()));
        for (size_t first = 0; first < set.size(); first += batch) {
            const size_t B = std::min(batch, set.size() - first);
            const float* here = values + first * T * features;
            const size_t bad = collector.add(B, T, places, first, [&](size_t n, auto f) {
                if (split)
                    split_signs(0, here + n * features, features, 1.0f, features, f);
                else
                    f(0, here + n * features, features, 1.0f);
            });
            if (bad < B * T) {
                size_t i = 0;
                while (std::isfinite(here[bad * features + i])) i++;
                fail("%s: game %zu, character %zu, feature %zu is %g, expected finite numbers",
                     names[is_test].c_str(), first + bad / T, bad % T, i, here[bad * features + i]);
            }
            progress.update(double(first + B));
        }
        progress.finish(double(set.size()));
        if (is_test)
            fires.test = unit_fires(collector.values, fires.cuts);
        else
            fires = train_fires(collector, Ladder::OF_MAXIMUM);
    }
    return fires;
}

LayerFires some_units(const LayerFires& fires, const std::vector<uint32_t>& units) {
    LayerFires some;
    some.units = units.size();
    for (const bool test : {false, true}) {
        const UnitFires& from = test ? fires.test : fires.train;
        UnitFires& to = test ? some.test : some.train;
        to.units = units.size();
        to.tokens = from.tokens;
        to.begin = {0};
        for (const uint32_t u : units) {
            const size_t first = from.begin[u * n_thresholds], here = to.token.size();
            to.token.insert(to.token.end(), from.first(u), from.last(u, 0));
            for (size_t i = 1; i <= n_thresholds; i++)
                to.begin.push_back(here + from.begin[u * n_thresholds + i] - first);
        }
    }
    for (const uint32_t u : units) {
        const auto cuts = fires.cuts.begin() + std::ptrdiff_t(u * n_thresholds);
        some.cuts.insert(some.cuts.end(), cuts, cuts + n_thresholds);
        some.max.push_back(fires.max[u]);
        some.rate.push_back(fires.rate[u]);
        some.alive += fires.max[u] != INFINITY;
    }
    return some;
}
