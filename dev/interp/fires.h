// Which units are on where. A unit's value is compared with eleven thresholds, tenths of the largest value it
// takes anywhere in the train games; what the measures need of a value is only how many of them it exceeds,
// its level. So a layer's activity at the dots of the games is kept as lists: for every unit the tokens at
// which it fires, by level. Values that are not positive are on at no threshold and are not kept.
//
// (Karvonen et al., arXiv 2408.00113, section 3: a feature classifies a board property at a threshold.)
#pragma once
#include "units.h"
#include <cmath>

constexpr size_t n_thresholds = 11; // 0, 0.1, .. 1

// A unit is on at threshold t where its value exceeds threshold(t) times its maximum.
inline float threshold(size_t t) { return float(t) / 10.0f; }

// How many thresholds a value exceeds, in float32 and strictly: 0 for none, t + 1 when on at t and not above.
inline size_t level_of(float value, float max) {
    size_t level = 0; // (no threshold of an infinite maximum is exceeded: 0 times infinity is NaN)
    while (level < n_thresholds && value > threshold(level) * max) level++;
    return level;
}

// Where the units of a layer fire, over a set of tokens. The tokens of a unit stand in order of falling
// level, those of one level in rising order: where it is on at a threshold is the front part of its list.
struct UnitFires {
    size_t units = 0, tokens = 0;
    std::vector<size_t> begin;   // (units*11 + 1) into token: of unit u at level l, begin[u*11 + 11 - l]
    std::vector<uint32_t> token; // (fires)

    const uint32_t* first(size_t unit) const { return token.data() + begin[unit * n_thresholds]; }
    // The end of the tokens where the unit is on at threshold t, which begin at first(unit).
    const uint32_t* last(size_t unit, size_t t) const {
        return token.data() + begin[unit * n_thresholds + n_thresholds - t];
    }
    size_t on(size_t unit, size_t t) const { return size_t(last(unit, t) - first(unit)); }
};

struct UnitValue {
    uint32_t unit;
    float value;
};
using TokenValues = std::vector<std::vector<UnitValue>>; // by token: the units above zero, in rising order

// The lists of a layer from the values at its tokens, which are freed on the way. max (units).
inline UnitFires unit_fires(TokenValues& values, const std::vector<float>& max) {
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

// What one layer does on a set of games, collected batch by batch.
struct FireCollector {
    size_t characters = 0;       // read, of all games
    std::vector<float> max;      // (units) the largest value; -infinity before the first
    std::vector<size_t> nonzero; // (units) characters where it is not zero
    TokenValues values;          // at the chosen characters of every game, one game after the other

    explicit FireCollector(size_t units) : max(units, -INFINITY), nonzero(units) {
        if (units > UINT32_MAX / n_thresholds)
            fail("a layer of %zu units, expected %zu or fewer", units, size_t(UINT32_MAX / n_thresholds));
    }

    // A batch of B games of T characters; each(n, f) calls f(unit, value) for every value of character n =
    // game*T + character that is not zero, units in rising order within an expert. chosen[game]: the
    // characters whose values are kept, the same number for every game. Returns the first character of the
    // batch with a value that is not finite, B*T if there is none.
    template <class Each>
    size_t add(size_t B, size_t T, const std::vector<std::vector<size_t>>& chosen, Each each) {
        const size_t first = values.size(), dots = chosen[0].size();
        values.resize(first + B * dots);
        size_t bad = B * T;
#pragma omp parallel
        {
            std::vector<float> top(max.size(), -INFINITY);
            std::vector<size_t> count(max.size());
            std::vector<UnitValue> here;
            size_t broken = B * T;
#pragma omp for schedule(dynamic, 1) nowait
            for (size_t b = 0; b < B; b++) {
                size_t dot = 0;
                for (size_t n = b * T; n < (b + 1) * T; n++) {
                    const bool keep = dot < dots && chosen[b][dot] == n - b * T;
                    bool finite = true;
                    here.clear();
                    each(n, [&](size_t unit, float value) {
                        finite &= std::isfinite(value);
                        top[unit] = value > top[unit] ? value : top[unit];
                        count[unit]++;
                        if (keep && value > 0) here.push_back({uint32_t(unit), value});
                    });
                    if (!finite) broken = std::min(broken, n);
                    if (keep) values[first + b * dots + dot++] = here; // a copy has no room to spare
                }
            }
#pragma omp critical(fire_collector)
            {
                bad = std::min(bad, broken);
                for (size_t u = 0; u < max.size(); u++)
                    max[u] = std::max(max[u], top[u]), nonzero[u] += count[u];
            }
        }
        characters += B * T;
        return bad;
    }
};

// One layer on both sets of games. What is compared with a unit's maximum is that of the train games.
struct LayerFires {
    size_t units = 0, alive = 0; // alive: not zero somewhere in the train games
    std::vector<float> max;   // (units) |largest value| there; infinite for a dead unit, which is on nowhere
    std::vector<double> rate; // (units) the share of the train games' characters where it is not zero
    UnitFires train, test;    // at the dots

    // Units on per dot of the test games.
    double active(size_t t) const {
        size_t on = 0;
        for (size_t u = 0; u < units; u++) on += test.on(u, t);
        return double(on) / double(test.tokens);
    }
};

inline LayerFires train_fires(FireCollector& train) {
    LayerFires fires;
    fires.units = train.max.size();
    fires.max.assign(fires.units, INFINITY), fires.rate.resize(fires.units);
    for (size_t u = 0; u < fires.units; u++) {
        if (train.nonzero[u] == 0) continue;
        const bool always = train.nonzero[u] == train.characters; // if not, some of its values are zeros
        fires.max[u] = std::fabs(always ? train.max[u] : std::max(train.max[u], 0.0f));
        fires.rate[u] = double(train.nonzero[u]) / double(train.characters);
        fires.alive++;
    }
    fires.train = unit_fires(train.values, fires.max);
    return fires;
}

// The first `dots` dots of the games [first, first + n).
inline std::vector<std::vector<size_t>> dots_of_games(const GameSet& games, size_t first, size_t n) {
    std::vector<std::vector<size_t>> dots(n);
    for (size_t i = 0; i < n; i++) dots[i] = dots_of(games.texts[first + i], games.dots);
    return dots;
}

// Every layer of a model on both sets of games, with the weights that the reader holds: token n of a set is
// game n / dots, dot n % dots. gated: units times the gate weight of their expert. name: the model's file,
// for messages and progress. which: the layers wanted, in rising order; none: all of them.
inline std::vector<LayerFires> model_fires(Reader& reader, const GameSplit& games, bool gated,
                                           const std::string& name = "model",
                                           std::vector<size_t> which = {}) {
    if (which.empty())
        for (size_t l = 0; l < reader.config.n_layer; l++) which.push_back(l);
    std::vector<LayerFires> layers;
    for (const bool test : {false, true}) {
        const GameSet& set = test ? games.test : games.train;
        std::vector<FireCollector> collectors(which.size(), FireCollector(reader.units()));
        const std::string label =
            name.substr(name.rfind('/') + 1) + (test ? " on the test games" : " on the train games");
        read_batches(reader, set, label.c_str(), [&](size_t first, size_t B) {
            const auto dots = dots_of_games(set, first, B);
            for (size_t i = 0; i < which.size(); i++) {
                const LayerUnits layer = reader.layer(which[i]);
                const size_t bad = collectors[i].add(B, set.characters, dots,
                                                     [&](size_t n, auto f) { layer.each(n, gated, f); });
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

// Features made elsewhere: (games, characters, features) of each set. `names` are the files, for messages.
inline LayerFires array_fires(const float* train, const float* test, size_t features, const GameSplit& games,
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
            const size_t bad = collector.add(B, T, dots_of_games(set, first, B), [&](size_t n, auto f) {
                for (size_t i = 0; i < features; i++)
                    if (const float value = here[n * features + i]; value != 0) f(i, value);
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
            fires.test = unit_fires(collector.values, fires.max);
        else
            fires = train_fires(collector);
    }
    return fires;
}
