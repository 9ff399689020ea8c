// Which units are on where. A unit's value is compared with eleven cuts; what the measures need of a value is
// only how many of them it exceeds, its level. So a layer's activity at the places of the games is kept as
// lists: for every unit the places at which it fires, by level. Values that are not positive are on at no
// threshold and are not kept.
//
// The cuts of a unit, the first of them 0:
//   of its maximum   tenths of the largest value it takes anywhere in the train games (bsp, as published:
//                    Karvonen et al., arXiv 2408.00113, section 3). One spike moves them all.
//   of its firings   so that shares of its firings at the places of the train games are above: 1, 0.7, 0.49,
//                    .. (features). They hang on no single value, and on none at other places.
//
//   1 thresholds and lists    2 collecting a layer    3 layers of a model, features made elsewhere
#pragma once
#include "chess_text.h"
#include "rows.h"
#include <cmath>
#include <mutex>

// ---------------------------------------------------------------------------------------------------------
// 1 Thresholds and lists

constexpr size_t n_thresholds = 11;

enum class Ladder { OF_MAXIMUM, OF_FIRINGS };

// Of the maximum: 0, 0.1, .. 1.
inline float threshold(size_t t) { return float(t) / 10.0f; }
// Of the firings: the share that is above.
inline double firing_share(size_t t) { return std::pow(0.7, double(t)); }

// (units,11): a unit is on at threshold t where its value is strictly above the t-th. In float32; no value is
// above a cut that is infinite or, as 0 times an infinite maximum, no number.
std::vector<float> cuts_of_maximum(const std::vector<float>& max);

// How many cuts a value exceeds: 0 for none, t + 1 when on at t and not above.
inline size_t level_of(float value, const float* cuts) {
    size_t level = 0;
    while (level < n_thresholds && value > cuts[level]) level++;
    return level;
}

// Where the units of a layer fire, over a set of places. The places of a unit stand in order of falling
// level, those of one level in rising order: where it is on at a threshold is the front part of its list.
struct UnitFires {
    size_t units = 0, tokens = 0;
    std::vector<size_t> begin;   // (units*11 + 1) into token: of unit u at level l, begin[u*11 + 11 - l]
    std::vector<uint32_t> token; // (fires)

    const uint32_t* first(size_t unit) const { return token.data() + begin[unit * n_thresholds]; }
    // The end of the places where the unit is on at threshold t, which begin at first(unit).
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
    for (size_t t = n_thresholds; t-- > 0;) { // the highest first: what has been added is the TP of its t
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
using TokenValues = std::vector<std::vector<UnitValue>>; // by place: the units above zero, in rising order

std::vector<float> cuts_of_firings(const TokenValues& values, size_t units);

// The lists of a layer from the values at its places, which are freed on the way. cuts (units,11).
UnitFires unit_fires(TokenValues& values, const std::vector<float>& cuts);

// ---------------------------------------------------------------------------------------------------------
// 2 Collecting a layer

// What one layer does on a set of rows, collected batch by batch.
struct FireCollector {
    size_t characters = 0;       // read, of all rows
    std::vector<float> max;      // (units) the largest value; -infinity before the first
    std::vector<size_t> nonzero; // (units) characters where it is not zero: where a unit lives, as published
    std::vector<size_t> above;   // (units) characters where it is above zero: where it fires
    TokenValues values;          // at the chosen places of every row, one row after the other

    explicit FireCollector(size_t units) : max(units, -INFINITY), nonzero(units), above(units) {
        if (units > UINT32_MAX / n_thresholds)
            fail("a layer of %zu units, expected %zu or fewer", units, size_t(UINT32_MAX / n_thresholds));
    }

    // A batch of B rows of T; each(n, f) calls f(unit, z, D, w) for all units of place n = row*T + t that may
    // not be zero, D at a time: the values w z, of those from that unit on. places (rows): the places of a
    // row whose values are kept, the same number for every row; those of the batch begin at `first`. Returns
    // the first place of the batch with a value that is not finite, B*T if there is none.
    template <class Each>
    size_t add(size_t B, size_t T, const std::vector<std::vector<size_t>>& places, size_t first, Each each) {
        values.resize(values.size() + B * places[first].size());
        size_t bad = B * T;
        std::mutex mutex;
        Items rows(B);
        parallel_parts(std::min(thread_count(), B), [&](size_t) {
            Part part(max.size(), B * T);
            for (size_t b; rows.take(&b);) {
                const std::vector<size_t>& kept = places[first + b];
                std::vector<UnitValue>* to = values.data() + values.size() - (B - b) * kept.size();
                for (size_t n = b * T, i = 0; n < (b + 1) * T; n++) {
                    const bool keep = i < kept.size() && kept[i] == n - b * T;
                    part.read(n, keep, each);
                    if (keep) to[i++] = part.here; // a copy has no room to spare
                }
            }
            const std::lock_guard lock(mutex);
            bad = std::min(bad, part.bad);
            for (size_t u = 0; u < max.size(); u++) {
                max[u] = std::max(max[u], part.max[u]);
                nonzero[u] += part.nonzero[u];
                above[u] += part.above[u];
            }
        });
        characters += B * T;
        return bad;
    }

  private:
    struct Part { // of a batch, that one thread reads
        std::vector<float> max;
        std::vector<uint32_t> nonzero, above;
        std::vector<UnitValue> here; // the last place's units above zero
        size_t bad;

        Part(size_t units, size_t end) : max(units, -INFINITY), nonzero(units), above(units), bad(end) {}

        template <class Each> void read(size_t n, bool keep, Each each) {
            bool finite = true;
            here.clear();
            each(n, [&](size_t unit, const float* z, size_t D, float w) {
                float* most = &max[unit];
                uint32_t *times = &nonzero[unit], *above_zero = &above[unit];
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
                    if (const float value = w * z[i]; value > 0) here.push_back({uint32_t(unit + i), value});
            });
            if (!finite) bad = std::min(bad, n);
        }
    };
};

// One layer on both sets; the cuts are those of the train set.
struct LayerFires {
    size_t units = 0, alive = 0; // alive: not zero somewhere in the train games
    std::vector<float> max;   // (units) |largest value| there; infinite for a dead unit, which is on nowhere
    std::vector<float> cuts;  // (units,11) from the train games
    std::vector<double> rate; // (units) the share of the train games' characters where it fires
    UnitFires train, test;    // at the places

    // Units on per place of the test games.
    double active(size_t t) const {
        size_t on = 0;
        for (size_t u = 0; u < units; u++) on += test.on(u, t);
        return double(on) / double(test.tokens);
    }
};

LayerFires train_fires(FireCollector& train, Ladder ladder);

// ---------------------------------------------------------------------------------------------------------
// 3 Layers of a model, features made elsewhere

// Rows and the places of each at which units are looked at, as many of every row.
struct PlacedRows {
    TokenRows rows;
    std::vector<std::vector<size_t>> places; // (rows)
};
std::vector<std::vector<size_t>> boundaries_of_games(const GameSet& games, const Boundaries& where);
PlacedRows placed_games(const GameSet& games, const Boundaries& where);
PlacedRows all_places(TokenRows rows);

// How a model's layers are looked at. gated: units times the gate weight of their expert. name: of the
// weights, for messages and progress.
struct FireReading {
    Reader& reader;
    const PlacedRows &train, &test;
    Ladder ladder;
    bool gated;
    std::string name;
};

// The layers of a list on both sets of rows, with the weights that the reader holds: place n of a set is that
// of row n / places per row.
std::vector<LayerFires> model_fires(const FireReading& r, const std::vector<size_t>& layers);

// Visits layers in groups, as many at a time as need no more memory for their lists than a few GB; how many
// units fire is seen on one batch. visit(layers, their fires).
constexpr size_t most_fire_bytes = size_t(4) << 30;
void each_layer_group(const FireReading& r, const std::vector<size_t>& layers,
                      const std::function<void(const std::vector<size_t>&, std::vector<LayerFires>&)>& visit,
                      size_t most_bytes = most_fire_bytes);

// Features made elsewhere: (games, characters, features) of each set, by tenths of their maxima. `names` are
// the files, for messages. split: each as two, by the sign of its value.
LayerFires array_fires(const float* train, const float* test, size_t features, const GameSplit& games,
                       const std::string names[2], bool split = false);

// Some of a layer's units, in the order of the list.
LayerFires some_units(const LayerFires& fires, const std::vector<uint32_t>& units);
