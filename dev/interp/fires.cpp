// Which units are on where: see fires.h.
#include "fires.h"

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

UnitFires unit_fires(TokenValues& values, const std::vector<float>& max) {
    UnitFires fires;
    fires.units = max.size(), fires.tokens = values.size();
    fires.begin.assign(max.size() * n_thresholds + 1, 0);
    for (std::vector<UnitValue>& at : values) { // from here on the place of the list takes the value's place
        size_t kept = 0;
        for (const UnitValue& v : at)
            if (const size_t level = level_of(v.value, max[v.unit])) {
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

LayerFires train_fires(FireCollector& train) {
    LayerFires fires;
    fires.units = train.max.size();
    fires.max.assign(fires.units, INFINITY), fires.rate.resize(fires.units);
    for (size_t u = 0; u < fires.units; u++) {
        if (train.nonzero[u] == 0) continue;
        const bool always = train.nonzero[u] == train.characters; // if not, some of its values are zeros
        fires.max[u] = std::fabs(always ? train.max[u] : std::max(train.max[u], 0.0f));
        fires.rate[u] = double(train.above[u]) / double(train.characters);
        fires.alive++;
    }
    fires.train = unit_fires(train.values, fires.max);
    return fires;
}

std::vector<std::vector<size_t>> boundaries_of_games(const GameSet& games, const Boundaries& where,
                                                     size_t first, size_t n) {
    std::vector<std::vector<size_t>> places(n);
    for (size_t i = 0; i < n; i++) places[i] = boundary_characters(games.texts[first + i], where);
    return places;
}

std::vector<LayerFires> model_fires(Reader& reader, const GameSplit& games, const Boundaries& where,
                                    bool gated, const std::string& name, std::vector<size_t> which) {
    if (which.empty())
        for (size_t l = 0; l < reader.config.n_layer; l++) which.push_back(l);
    std::vector<LayerFires> layers;
    for (const bool test : {false, true}) {
        const GameSet& set = test ? games.test : games.train;
        std::vector<FireCollector> collectors(which.size(), FireCollector(reader.units()));
        const std::string label =
            name.substr(name.rfind('/') + 1) + (test ? " on the test games" : " on the train games");
        read_batches(reader, set, label.c_str(), [&](size_t first, size_t B) {
            const auto dots = boundaries_of_games(set, where, first, B);
            for (size_t i = 0; i < which.size(); i++) {
                const LayerUnits layer = reader.layer(which[i]);
                const size_t bad = collectors[i].add(
                    B, set.characters, dots, [&](size_t n, auto f) { layer.each_expert(n, gated, f); });
                if (bad < B * set.characters)
                    fail(
                        "%s: layer %zu has a value that is not finite at character %zu of fit game %zu of %s",
                        name.c_str(), which[i], bad % set.characters, first + bad / set.characters + 1,
                        set.source.c_str());
            }
        });
        layers.resize(which.size());
#pragma omp parallel for schedule(dynamic, 1)
        for (size_t i = 0; i < which.size(); i++) // lists take half the memory of the values, which are freed
            if (test)
                layers[i].test = unit_fires(collectors[i].values, layers[i].max);
            else
                layers[i] = train_fires(collectors[i]);
    }
    return layers;
}

std::vector<LayerFires> text_fires(Reader& reader, const TokenRows& train, const TokenRows& test,
                                   bool gated) {
    std::vector<LayerFires> layers;
    std::vector<size_t> all(train.T);
    std::iota(all.begin(), all.end(), size_t(0));
    for (const bool is_test : {false, true}) {
        const TokenRows& rows = is_test ? test : train;
        std::vector<FireCollector> collectors(reader.config.n_layer, FireCollector(reader.units()));
        read_rows(reader, rows, is_test ? "model on the test rows" : "model on the train rows",
                  [&](size_t first, size_t B) {
                      const std::vector<std::vector<size_t>> chosen(B, all);
                      for (size_t l = 0; l < collectors.size(); l++) {
                          const LayerUnits layer = reader.layer(l);
                          const size_t bad = collectors[l].add(
                              B, rows.T, chosen, [&](size_t n, auto f) { layer.each_expert(n, gated, f); });
                          if (bad < B * rows.T)
                              fail("%s: layer %zu has a value that is not finite at token %zu of row %zu",
                                   rows.source.c_str(), l, bad % rows.T, first + bad / rows.T + 1);
                      }
                  });
        for (size_t l = 0; l < collectors.size(); l++)
            if (is_test)
                layers[l].test = unit_fires(collectors[l].values, layers[l].max);
            else
                layers.push_back(train_fires(collectors[l]));
    }
    return layers;
}

LayerFires array_fires(const float* train, const float* test, size_t features, const GameSplit& games,
                       const std::string names[2]) {
    LayerFires fires;
    for (const bool is_test : {false, true}) {
        FireCollector collector(features);
        const GameSet& set = is_test ? games.test : games.train;
        const size_t T = set.characters, batch = 64;
        const float* values = is_test ? test : train;
        Progress progress(is_test ? "test features" : "train features", "games", double(set.size()));
        for (size_t first = 0; first < set.size(); first += batch) {
            const size_t B = std::min(batch, set.size() - first);
            const float* here = values + first * T * features;
            const size_t bad =
                collector.add(B, T, boundaries_of_games(set, {set.dots, false}, first, B),
                              [&](size_t n, auto f) { f(0, here + n * features, features, 1.0f); });
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
            fires.test = unit_fires(collector.values, fires.max);
        else
            fires = train_fires(collector);
    }
    return fires;
}
