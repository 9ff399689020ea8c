// Which units are on where. A unit's value is compared with eleven thresholds, tenths of the largest value it
// takes anywhere in the train games; what the measures need of a value is only how many of them it exceeds,
// its level. So a layer's activity at the dots of the games is kept as lists: for every unit the tokens at
// which it fires, by level. Values that are not positive are on at no threshold and are not kept.
//
// (Karvonen et al., arXiv 2408.00113, section 3: a feature classifies a board property at a threshold.)
#pragma once
#include "chess_text.h"
#include "rows.h"
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

// tp (11,tile_cells): places where the unit is on at t and column tile*tile_cells + c holds. order: whose
// labels a place gets (controls.h), or null.
inline void count_tile(const UnitFires& fires, size_t unit, const LabelRows& labels,
                       const std::vector<uint32_t>* order, size_t tile, uint32_t* tp) {
    const TileRow* rows = labels.rows.data() + tile * labels.tokens;
    const uint32_t* from = fires.first(unit);
    uint32_t sum[tile_cells] = {};
    for (size_t t = n_thresholds;
         t-- > 0;) { // the highest level first: what has been added is the TP of its t
        add_rows(rows, from, fires.last(unit, t), order ? order->data() : nullptr, sum);
        from = fires.last(unit, t);
        std::copy(sum, sum + tile_cells, tp + t * tile_cells);
    }
}

// tp (11,columns): the same for all columns.
void count_cells(const UnitFires& fires, size_t unit, const LabelRows& labels,
                 const std::vector<uint32_t>* order, std::vector<uint32_t>& tp);

struct UnitValue {
    uint32_t unit;
    float value;
};
using TokenValues = std::vector<std::vector<UnitValue>>; // by token: the units above zero, in rising order

// The lists of a layer from the values at its tokens, which are freed on the way. max (units).
UnitFires unit_fires(TokenValues& values, const std::vector<float>& max);

// What one layer does on a set of games, collected batch by batch.
struct FireCollector {
    size_t characters = 0;       // read, of all games
    std::vector<float> max;      // (units) the largest value; -infinity before the first
    std::vector<size_t> nonzero; // (units) characters where it is not zero: where a unit lives, as published
    std::vector<size_t> above;   // (units) characters where it is above zero: where it fires
    TokenValues values;          // at the chosen characters of every game, one game after the other

    explicit FireCollector(size_t units) : max(units, -INFINITY), nonzero(units), above(units) {
        if (units > UINT32_MAX / n_thresholds)
            fail("a layer of %zu units, expected %zu or fewer", units, size_t(UINT32_MAX / n_thresholds));
    }

    // A batch of B games of T characters; each(n, f) calls f(unit, z, D, w) for all units of character n =
    // game*T + character that may not be zero, D at a time: the values w z, of those from that unit on.
    // chosen[game]: the characters whose values are kept, the same number for every game. Returns the first
    // character of the batch with a value that is not finite, B*T if there is none.
    template <class Each>
    size_t add(size_t B, size_t T, const std::vector<std::vector<size_t>>& chosen, Each each) {
        const size_t first = values.size(), dots = chosen[0].size();
        values.resize(first + B * dots);
        size_t bad = B * T;
#pragma omp parallel
        {
            std::vector<float> top(max.size(), -INFINITY);
            std::vector<uint32_t> count(max.size()), positive(max.size());
            std::vector<UnitValue> here;
            size_t broken = B * T;
#pragma omp for schedule(dynamic, 1) nowait
            for (size_t b = 0; b < B; b++) {
                size_t dot = 0;
                for (size_t n = b * T; n < (b + 1) * T; n++) {
                    const bool keep = dot < dots && chosen[b][dot] == n - b * T;
                    bool finite = true;
                    here.clear();
                    each(n, [&](size_t unit, const float* z, size_t D, float w) {
                        float* most = &top[unit];
                        uint32_t *times = &count[unit], *above_zero = &positive[unit];
                        int bad_values = 0;
#pragma omp simd reduction(+ : bad_values)
                        for (size_t i = 0; i < D; i++) {
                            const float value = w * z[i];
                            most[i] = z[i] != 0 && value > most[i] ? value : most[i];
                            times[i] += z[i] != 0;
                            above_zero[i] += value > 0;
                            bad_values += !std::isfinite(value);
                        }
                        finite &= bad_values == 0;
                        for (size_t i = 0; keep && i < D; i++)
                            if (const float value = w * z[i]; value > 0)
                                here.push_back({uint32_t(unit + i), value});
                    });
                    if (!finite) broken = std::min(broken, n);
                    if (keep) values[first + b * dots + dot++] = here; // a copy has no room to spare
                }
            }
#pragma omp critical(fire_collector)
            {
                bad = std::min(bad, broken);
                for (size_t u = 0; u < max.size(); u++) {
                    max[u] = std::max(max[u], top[u]);
                    nonzero[u] += count[u];
                    above[u] += positive[u];
                }
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
    std::vector<double> rate; // (units) the share of the train games' characters where it fires
    UnitFires train, test;    // at the dots

    // Units on per dot of the test games.
    double active(size_t t) const {
        size_t on = 0;
        for (size_t u = 0; u < units; u++) on += test.on(u, t);
        return double(on) / double(test.tokens);
    }
};

LayerFires train_fires(FireCollector& train);

// The boundaries of the games [first, first + n).
std::vector<std::vector<size_t>> boundaries_of_games(const GameSet& games, const Boundaries& where,
                                                     size_t first, size_t n);

// Every layer of a model on both sets of games, with the weights that the reader holds: place n of a set is
// that of game n / per_game, boundary n % per_game. gated: units times the gate weight of their expert. name:
// the model's file, for messages and progress. which: the layers wanted, in rising order; none: all of them.
std::vector<LayerFires> model_fires(Reader& reader, const GameSplit& games, const Boundaries& where,
                                    bool gated, const std::string& name = "model",
                                    std::vector<size_t> which = {});

// Every layer on both sets of rows; every token is a place.
std::vector<LayerFires> text_fires(Reader& reader, const TokenRows& train, const TokenRows& test, bool gated);

// Features made elsewhere: (games, characters, features) of each set. `names` are the files, for messages.
LayerFires array_fires(const float* train, const float* test, size_t features, const GameSplit& games,
                       const std::string names[2]);
