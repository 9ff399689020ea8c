// Pairs of units: see unit_pairs.h.
#include "unit_pairs.h"
#include <array>

namespace {
constexpr size_t n_cases = 4;
using Table = std::array<std::array<double, 2>, n_cases>; // counts by case and by whether the property holds

// Of places by case: the masks of their bits, at the places whose labels they get.
using Masks = std::array<std::vector<uint64_t>, n_cases>;
Masks masks_of(const std::vector<uint8_t>& cases, const Order* order) {
    Masks masks;
    for (std::vector<uint64_t>& m : masks) m.assign((cases.size() + 63) / 64, 0);
    for (size_t n = 0; n < cases.size(); n++) {
        const size_t at = order ? (*order)[n] : n;
        masks[cases[n]][at / 64] |= uint64_t(1) << (at % 64);
    }
    return masks;
}

Table count_table(const Labels& labels, size_t property, const Masks& masks) {
    Table t{};
    const uint64_t* bits = labels.cell(property);
    for (size_t c = 0; c < n_cases; c++)
        for (size_t w = 0; w < labels.words; w++) {
            const int holds = std::popcount(bits[w] & masks[c][w]);
            t[c][1] += holds;
            t[c][0] += std::popcount(masks[c][w]) - holds;
        }
    return t;
}

// Probabilities that a property holds, by case.
struct PairModel {
    double base = 0;
    std::array<double, n_cases> apart{}, whole{};
};
// Half a place is added everywhere. Without an interaction: the sums of (a, property), (b, property) and (a,
// b) are kept, by iterative proportional fitting.
PairModel fit(Table t) {
    double positives = 0, all = 0;
    for (auto& row : t)
        for (double& n : row) n += 0.5;
    for (const auto& row : t) {
        positives += row[1];
        all += row[0] + row[1];
    }
    Table m;
    for (auto& row : m) row = {1, 1};
    for (int round = 0; round < 50; round++) {
        for (const size_t bit : {size_t(1), size_t(2)})
            for (const size_t value : {size_t(0), bit})
                for (size_t holds = 0; holds < 2; holds++) {
                    double wanted = 0, there = 0;
                    for (size_t c = 0; c < n_cases; c++)
                        if ((c & bit) == value) {
                            wanted += t[c][holds];
                            there += m[c][holds];
                        }
                    for (size_t c = 0; c < n_cases; c++)
                        if ((c & bit) == value) m[c][holds] *= wanted / there;
                }
        for (size_t c = 0; c < n_cases; c++) {
            const double scale = (t[c][0] + t[c][1]) / (m[c][0] + m[c][1]);
            for (double& n : m[c]) n *= scale;
        }
    }
    PairModel model;
    model.base = positives / all;
    for (size_t c = 0; c < n_cases; c++) {
        model.apart[c] = m[c][1] / (m[c][0] + m[c][1]);
        model.whole[c] = t[c][1] / (t[c][0] + t[c][1]);
    }
    return model;
}

double bits(double p, double q, bool holds) {
    return holds ? std::log2(p / q) : std::log2((1 - p) / (1 - q));
}

// Bits of the interaction on the places that it was fitted on.
double interaction(const Table& t) {
    const PairModel m = fit(t);
    double sum = 0;
    for (size_t c = 0; c < n_cases; c++)
        for (const bool holds : {false, true}) sum += t[c][holds] * bits(m.whole[c], m.apart[c], holds);
    return sum;
}

struct Told {
    size_t property = SIZE_MAX;
    Estimate apart, beyond;
};
// The property chosen and fitted on the train places, what is told of it on the test places.
Told told(const std::vector<uint8_t>& train_cases, const std::vector<uint8_t>& test_cases,
          const Places& train, const Places& test, const Order* orders, uint64_t seed) {
    const Masks masks = masks_of(train_cases, orders);
    Told out;
    double most = 0;
    for (size_t p = 0; p < train.properties.cells(); p++)
        if (const double x = interaction(count_table(train.properties, p, masks)); x > most) {
            most = x;
            out.property = p;
        }
    if (out.property == SIZE_MAX) return out;
    const PairModel m = fit(count_table(train.properties, out.property, masks));
    std::vector<double> apart, beyond;
    std::vector<uint32_t> game;
    for (size_t n = 0; n < test.size(); n++) {
        const bool holds = test.properties.at(out.property, orders ? orders[1][n] : n);
        const size_t c = test_cases[n];
        apart.push_back(bits(m.apart[c], m.base, holds));
        beyond.push_back(bits(m.whole[c], m.apart[c], holds));
        game.push_back(uint32_t(n / test.per_game));
    }
    out.apart = mean_by_group(apart, game, seed);
    out.beyond = mean_by_group(beyond, game, seed);
    return out;
}
} // namespace

std::vector<uint8_t> pair_cases(const UnitFires& fires, size_t a, size_t b) {
    std::vector<uint8_t> cases(fires.tokens);
    for (const uint32_t* n = fires.first(a); n < fires.last(a, 0); n++) cases[*n] |= 1;
    for (const uint32_t* n = fires.first(b); n < fires.last(b, 0); n++) cases[*n] |= 2;
    return cases;
}

PairFinding measure_pair(const std::vector<uint8_t>& train_cases, const std::vector<uint8_t>& test_cases,
                         const Places& train, const Places& test, const Order orders[2], uint64_t seed) {
    PairFinding f;
    const size_t games = test.games, per_game = test.per_game;
    std::vector<std::array<double, 3>> on(games); // places of a game where a, b and both fire
    std::array<double, 3> all{};
    for (size_t n = 0; n < test.size(); n++)
        for (size_t i = 0; i < 3; i++) {
            const bool fires = i < 2 ? test_cases[n] >> i & 1 : test_cases[n] == 3;
            on[n / per_game][i] += fires;
            all[i] += fires;
        }
    const double n = double(test.size());
    f.rate_a = all[0] / n, f.rate_b = all[1] / n, f.both = all[2] / n;
    f.lift = {f.both / (f.rate_a * f.rate_b), bootstrap(games, seed, [&](const std::vector<uint32_t>& times) {
                  double sum[3] = {}, places = 0;
                  for (size_t g = 0; g < games; g++) {
                      places += double(times[g] * per_game);
                      for (size_t i = 0; i < 3; i++) sum[i] += times[g] * on[g][i];
                  }
                  return sum[0] * sum[1] > 0 ? sum[2] * places / (sum[0] * sum[1]) : undefined;
              })};
    const Told real = told(train_cases, test_cases, train, test, nullptr, seed);
    f.property = real.property;
    f.apart = real.apart;
    f.beyond = real.beyond;
    f.null = told(train_cases, test_cases, train, test, orders, seed).beyond;
    return f;
}

std::vector<PairFinding> frequent_pairs(const LayerFires& fires, const Evidence& e, size_t most,
                                        uint64_t seed) {
    std::vector<size_t> units;
    for (size_t u = 0; u < fires.units; u++)
        if (const size_t on = fires.train.on(u, 0); on > 0 && on * 10 <= fires.train.tokens * 9)
            units.push_back(u);
    std::stable_sort(units.begin(), units.end(),
                     [&](size_t a, size_t b) { return fires.train.on(a, 0) > fires.train.on(b, 0); });
    units.resize(std::min(units.size(), pair_units));
    struct Pair {
        size_t both, a, b;
    };
    std::vector<Pair> pairs;
    for (size_t i = 0; i < units.size(); i++)
        for (size_t j = 0; j < i; j++) {
            const std::vector<uint8_t> cases = pair_cases(fires.train, units[i], units[j]);
            const size_t both = size_t(std::count(cases.begin(), cases.end(), uint8_t(3)));
            if (both) pairs.push_back({both, std::min(units[i], units[j]), std::max(units[i], units[j])});
        }
    std::sort(pairs.begin(), pairs.end(), [](const Pair& x, const Pair& y) {
        return x.both != y.both ? x.both > y.both : std::pair{x.a, x.b} < std::pair{y.a, y.b};
    });
    pairs.resize(std::min(pairs.size(), most));
    const Order orders[2] = {same_move_order(e.train.games, e.train.per_game, seed),
                             same_move_order(e.test.games, e.test.per_game, seed + 1)};
    std::vector<PairFinding> findings(pairs.size());
    for (size_t i = 0; i < pairs.size(); i++) {
        findings[i] =
            measure_pair(pair_cases(fires.train, pairs[i].a, pairs[i].b),
                         pair_cases(fires.test, pairs[i].a, pairs[i].b), e.train, e.test, orders, seed);
        findings[i].a = pairs[i].a;
        findings[i].b = pairs[i].b;
    }
    return findings;
}
