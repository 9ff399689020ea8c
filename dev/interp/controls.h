// What a measurement is read against, for bsp and features alike: the counts and what follows from them;
// labels that are permuted; and the matched null, which is exact.
//
// The matched null. A unit may know the clock or the last move and nothing else. Places are put into strata
// that agree in this: in chess the move, the range of the character number, and the last move (its class
// where there are too few of the very same); in text the token. If, within a stratum, the unit fired at
// places drawn at random,
//     E[TP] = sum over strata s of on_s positives_s / n_s,
// and TP - E[TP] is what it tells beyond them (Cochran, Mantel and Haenszel). Nothing is drawn, so there is
// no seed and no noise. Its standard error is over witnesses, since the places of one game are no independent
// ones: a unit that fires in k games, however often in each, is sqrt(k) standard errors from nothing at most.
//
//   1 counts    2 permuted labels    3 the matched null    4 what has been seen before
#pragma once
#include "chess_text.h"
#include "statistics.h"
#include <unordered_set>

// ---------------------------------------------------------------------------------------------------------
// 1 Counts

// Of n places the unit is on at `on` and the property holds at `positives`, both at tp of them.
struct Counts {
    double n = 0, on = 0, positives = 0, tp = 0;

    Counts negated() const { return {n, on, n - positives, on - tp}; }
    double precision() const { return on > 0 ? tp / on : undefined; }
    double recall() const { return positives > 0 ? tp / positives : undefined; }
    double f1() const { return on + positives > 0 ? 2 * tp / (on + positives) : 0; }
    double base() const { return positives / n; }
    double floor() const { return 2 * positives / (n + positives); } // F1 of a unit that is always on
    // F1 with the same property's labels shuffled, as it is on average.
    double shuffled() const { return on + positives > 0 ? 2 * on * positives / n / (on + positives) : 0; }
    // Matthews correlation, that of two yes-or-no variables: (n tp - on pos) / sqrt(on (n-on) pos (n-pos))
    double mcc() const {
        const double square = on * (n - on) * positives * (n - positives);
        return square > 0 ? (n * tp - on * positives) / std::sqrt(square) : 0;
    }
};
inline double mcc_of(const Counts& c) { return c.mcc(); }
inline double f1_of(const Counts& c) { return c.f1(); }

// How the Matthews correlation changes with each count, n being fixed: its standard error is the spread of
// tp d_tp + on d_on + pos d_pos over games, or over places where those are taken for independent.
struct MccSlopes {
    double tp = 0, on = 0, positives = 0;
};
MccSlopes mcc_slopes(const Counts& c);
// .. as if places were independent.
inline double mcc_error_by_places(const Counts& c) {
    const MccSlopes d = mcc_slopes(c);
    const double fp = c.on - c.tp, fn = c.positives - c.tp;
    const double both = d.tp + d.on + d.positives, sum = c.tp * both + fp * d.on + fn * d.positives;
    const double squares = c.tp * both * both + fp * d.on * d.on + fn * d.positives * d.positives;
    return std::sqrt(std::max(0.0, squares - sum * sum / c.n));
}

// Whose word counts once. Places come as so many of a game, one game after the other; games of one block
// (games.h) are one witness.
struct Witnesses {
    size_t per_game;
    std::vector<uint32_t> block; // (games) in rising order; none: every game by itself

    Witnesses(size_t per_game, std::vector<uint32_t> block = {})
        : per_game(per_game), block(std::move(block)) {}
    size_t of_game(size_t game) const { return block.empty() ? game : block[game]; }
    size_t of(size_t place) const { return of_game(place / per_game); }
    size_t count(size_t places) const { return places ? of(places - 1) + 1 : 0; }
};

// The standard error of a sum of independent values of groups: sqrt(G/(G-1) sum of (value - mean)^2).
double error_of_sum(const std::vector<double>& values);

// The 95% interval of a share by Wilson's formula, right near 0 and 1, too. The n of it are independent
// witnesses.
inline Interval wilson(double share, double n) {
    if (!(n > 0)) return {};
    const double z = 1.959964, middle = share + z * z / (2 * n), d = 1 + z * z / n;
    const double half = z * std::sqrt(share * (1 - share) / n + z * z / (4 * n * n));
    return {std::max(0.0, (middle - half) / d), std::min(1.0, (middle + half) / d)};
}

// ---------------------------------------------------------------------------------------------------------
// 2 Permuted labels

// Whose labels a token gets: order[n], or its own where there is no order. With an order the labels keep
// their frequencies and lose their games.
using Order = std::vector<uint32_t>;

// A random cycle through n things, so that none keeps its place (Sattolo).
Order random_cycle(size_t n, uint64_t seed, const char* stream);
// Labels of any other token.
inline Order permuted_order(size_t games, size_t dots, uint64_t seed) {
    return random_cycle(games * dots, seed, "tokens");
}
// Labels of the same dot of another game: what the number of the move alone gives stays.
inline Order same_move_order(size_t games, size_t dots, uint64_t seed) {
    const Order other = random_cycle(games, seed, "games");
    Order order(games * dots);
    for (size_t n = 0; n < order.size(); n++) order[n] = uint32_t(other[n / dots] * dots + n % dots);
    return order;
}

// ---------------------------------------------------------------------------------------------------------
// 3 The matched null

struct Strata {
    std::vector<uint32_t> of; // (places)
    uint32_t count = 0;

    uint32_t number(std::map<std::string, uint32_t>& known, const std::string& key) {
        const auto [at, fresh] = known.try_emplace(key, count);
        count += fresh;
        return at->second;
    }
};

// Places agree that are at the same boundary of a game, in the same range of character numbers (some 60 games
// share one), behind the same last move; where fewer than ten share it, behind one of its class: piece,
// capture, check, promotion, castling.
constexpr size_t games_per_range = 60, most_ranges = 16;

Strata chess_strata(const GameSet& games, const Boundaries& where);

// What a unit tells beyond the strata, (TP - E[TP]), with its standard error over witnesses.
struct Excess {
    double value = 0, error = INFINITY, expected = 0;

    double errors() const { return error > 0 && std::isfinite(error) ? value / error : 0; }
};
// on, holds (places): 0 or 1; finer (places): 0 to 3, strata within the strata, or null.
Excess matched_excess(const std::vector<uint8_t>& on, const std::vector<uint8_t>& holds, const Strata& strata,
                      const uint8_t* finer, const Witnesses& witnesses);

// ---------------------------------------------------------------------------------------------------------
// 4 What has been seen before

// Places of the test games whose whole text so far stands in a train game, too.
std::vector<uint8_t> seen_places(const GameSplit& games, const Boundaries& where);
