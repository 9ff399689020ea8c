// What a unit detects, and whether it really does. For a unit the property (a cell of a board function, or
// what text_labels.h asks about a text; or that it does not hold) and the threshold that go best with its
// firing are chosen on one set of games, by the Matthews correlation; precision, recall and F1 are measured
// on another, with 95% intervals over games. A unit counts as found only if that beats what costs nothing:
// the property's base rate, always saying yes, and the same search on labels that are permuted, over all
// positions or among the games at the same move.
//
//   1 evidence: properties and where they hold     2 choosing a unit's property     3 is it found?
#pragma once
#include "fires.h"
#include "score.h"
#include "statistics.h"
#include <unordered_map>

// ---------------------------------------------------------------------------------------------------------
// 1 Evidence: properties and where they hold

// A yes-or-no question. "fires when" goes before its words; words[1] is for when it does not hold.
struct Property {
    std::string function, words[2];
    size_t board_function = n_board_functions, cls = 0; // chess
};

// The places of a set of games (rows of text) at which units and properties are compared: as many of every
// game, one game after the other.
struct Places {
    size_t games = 0, per_game = 0;
    LabelRows labels; // columns: the properties

    size_t size() const { return games * per_game; }
};
struct Evidence {
    std::vector<Property> properties; // (P)
    Places train, test;
};

// So often a property must hold, and not hold, and a unit be on, to be considered: on the train games.
constexpr size_t least_places = 10;

// The rows of the labels that can be told from each other. Those that are true or false too seldom are left
// out, and so is what equals a row before it.
inline std::vector<uint32_t> distinct_cells(const BoardLabels& labels, size_t n_cells) {
    std::vector<uint32_t> kept;
    std::unordered_multimap<uint64_t, uint32_t> of_hash;
    for (uint32_t c = 0; c < n_cells; c++) {
        const uint64_t *row = labels.cell(c), *end = row + labels.words;
        size_t positives = 0;
        uint64_t hash = 0;
        for (const uint64_t* word = row; word < end; word++)
            positives += size_t(std::popcount(*word)), hash = mix64(hash ^ *word);
        if (positives < least_places || positives + least_places > labels.tokens) continue;
        bool known = false;
        for (auto [at, last] = of_hash.equal_range(hash); at != last; at++)
            known |= std::equal(row, end, labels.cell(at->second));
        if (known) continue;
        of_hash.emplace(hash, c);
        kept.push_back(c);
    }
    return kept;
}

// properties: one for each row of both labels, of `games` games each.
inline Evidence make_evidence(const std::vector<Property>& properties, const BoardLabels& train,
                              size_t train_games, const BoardLabels& test, size_t test_games) {
    Evidence e;
    const std::vector<uint32_t> kept = distinct_cells(train, properties.size());
    e.train = {train_games, train.tokens / train_games, label_rows(train, kept, true)};
    e.test = {test_games, test.tokens / test_games, label_rows(test, kept, true)};
    for (const uint32_t c : kept) e.properties.push_back(properties[c]);
    return e;
}

// Every cell of the 23 board functions of the default run.
inline std::vector<Property> board_properties() {
    std::vector<Property> list;
    for (size_t f = 0; f < n_board_functions && board_functions[f].measured; f++) {
        const BoardFunction& function = board_functions[f];
        for (size_t cell = 0; cell < cells_of(function); cell++) {
            const size_t square = cell / function.classes, cls = cell % function.classes,
                         row = square / function.columns, column = square % function.columns;
            list.push_back({function.name,
                            {cell_text(f, row, column, cls), cell_text(f, row, column, cls, true)},
                            f,
                            cls});
        }
    }
    return list;
}

// ---------------------------------------------------------------------------------------------------------
// 2 Choosing a unit's property

// Of n places the unit is on at `on` and the property holds at `positives`, both at tp of them.
struct Counts {
    double n = 0, on = 0, positives = 0, tp = 0;

    Counts negated() const { return {n, on, n - positives, on - tp}; }
    double precision() const { return on > 0 ? tp / on : undefined; }
    double recall() const { return positives > 0 ? tp / positives : undefined; }
    double f1() const { return on + positives > 0 ? 2 * tp / (on + positives) : 0; }
    double base() const { return positives / n; }
    double floor() const { return 2 * positives / (n + positives); } // F1 of a unit that is always on
    // Matthews correlation, that of two yes-or-no variables: (n tp - on pos) / sqrt(on (n-on) pos (n-pos))
    double mcc() const {
        const double square = on * (n - on) * positives * (n - positives);
        return square > 0 ? (n * tp - on * positives) / std::sqrt(square) : 0;
    }
};

struct Choice {
    size_t property = SIZE_MAX, threshold = 0; // SIZE_MAX: none, the unit is on too seldom
    bool negated = false;
    double score = 0; // the Matthews correlation, on the train games

    bool any() const { return property != SIZE_MAX; }
};
// The best of all properties, and of those that ask about squares.
struct Choices {
    Choice best, square;
};

// order: see score.h. tp is scratch. Of equal scores the lower threshold and the earlier property.
inline Choices choose(const UnitFires& fires, size_t unit, const Evidence& e, const Order* order,
                      std::vector<uint32_t>& tp) {
    const LabelRows& labels = e.train.labels;
    Choices choices;
    if (fires.on(unit, 0) < least_places) return choices;
    count_cells(fires, unit, labels, order, tp);
    for (size_t t = 0; t < n_thresholds; t++) {
        const size_t on = fires.on(unit, t);
        if (on < least_places || (t > 0 && on == fires.on(unit, t - 1))) continue;
        for (size_t c = 0; c < labels.columns(); c++) {
            const Counts counts = {double(labels.tokens), double(on), double(labels.positives[c]),
                                   double(tp[t * labels.columns() + c])};
            const double score = counts.mcc();
            const Choice choice = {c, t, score < 0, std::fabs(score)};
            if (choice.score > choices.best.score) choices.best = choice;
            const size_t f = e.properties[c].board_function;
            if (f < n_board_functions && board_functions[f].rows == 8 && choice.score > choices.square.score)
                choices.square = choice;
        }
    }
    return choices;
}

// The choice of a unit, on the places of a set.
inline Counts count(const UnitFires& fires, size_t unit, const Choice& choice, const Places& places,
                    const Order* order) {
    Counts counts = {double(places.size()), double(fires.on(unit, choice.threshold)),
                     double(places.labels.positives[choice.property]), 0};
    for (const uint32_t* n = fires.first(unit); n < fires.last(unit, choice.threshold); n++)
        counts.tp += places.labels.at(choice.property, order ? (*order)[*n] : *n);
    return choice.negated ? counts.negated() : counts;
}

// ---------------------------------------------------------------------------------------------------------
// 3 Is it found?

// Labels as they are, or in another order, on both sets.
struct Labelling {
    Order train, test; // empty: as they are

    const Order* of_train() const { return train.empty() ? nullptr : &train; }
    const Order* of_test() const { return test.empty() ? nullptr : &test; }
};
struct Labellings {
    Labelling truth, permuted, same_move;
};
inline Labelling same_move_labelling(const Evidence& e, uint64_t seed) {
    return {same_move_order(e.train.games, e.train.per_game, seed),
            same_move_order(e.test.games, e.test.per_game, seed + 1)};
}
inline Labellings make_labellings(const Evidence& e, uint64_t seed) {
    return {{},
            {permuted_order(e.train.games, e.train.per_game, seed),
             permuted_order(e.test.games, e.test.per_game, seed + 1)},
            same_move_labelling(e, seed)};
}
// A control of the whole procedure: how many units are found when the truth is another game's, too?
inline Labellings false_labellings(const Labellings& labellings, const Evidence& e, uint64_t seed) {
    return {labellings.same_move, labellings.permuted, same_move_labelling(e, seed + 2)};
}

// Resamples of the test games, the same for every unit: how often each game is drawn, (resamples,games).
struct Resamples {
    size_t games = 0;
    std::vector<float> times;
};
inline Resamples make_resamples(size_t games, uint64_t seed) {
    Resamples r{games, std::vector<float>(bootstrap_resamples * games)};
    for (size_t i = 0; i < bootstrap_resamples; i++) {
        Random random{seed, random_stream("bootstrap") + i};
        for (size_t g = 0; g < games; g++) r.times[i * games + random.below(games)]++;
    }
    return r;
}

// What a search chose on the train games, counted on the test games.
struct Held {
    Choice choice;
    Counts counts;
};
struct Finding {
    Choice square;                  // the best of the properties of squares
    Held real, permuted, same_move; // the search, and the same search in permuted labels
    Held same_choice;               // the search's choice, with the labels of other games at the same move
    Interval precision, f1, mcc;    // 95%, over games
    double clearance = -INFINITY;   // by how many standard errors F1 and mcc exceed the permuted ones'
    bool found = false;

    // The most that the number of the move alone gives.
    double same_move_f1() const { return std::max(same_move.counts.f1(), same_choice.counts.f1()); }
    double same_move_mcc() const { return std::max(same_move.counts.mcc(), same_choice.counts.mcc()); }
};

// Chance alone exceeds four standard errors for one unit in 30,000.
constexpr double least_clearance = 4;

// The counts of every game. They are whole numbers whose sums stay below 2^24: float32 holds them exactly.
struct GameCounts {
    std::vector<float> on, positives, tp;

    GameCounts(const UnitFires& fires, size_t unit, const Choice& c, const Places& places, const Order* order)
        : on(places.games), positives(places.games), tp(places.games) {
        if (!c.any()) return;
        const auto holds = [&](size_t n) {
            return places.labels.at(c.property, order ? (*order)[n] : n) != c.negated;
        };
        for (const uint32_t* n = fires.first(unit); n < fires.last(unit, c.threshold); n++)
            on[*n / places.per_game]++, tp[*n / places.per_game] += holds(*n);
        for (size_t n = 0; n < places.size(); n++) positives[n / places.per_game] += holds(n);
    }
    Counts sum(const float* times, double n) const {
        float on_sum = 0, positive_sum = 0, tp_sum = 0;
#pragma omp simd reduction(+ : on_sum, positive_sum, tp_sum)
        for (size_t g = 0; g < on.size(); g++)
            on_sum += times[g] * on[g], positive_sum += times[g] * positives[g], tp_sum += times[g] * tp[g];
        return {n, on_sum, positive_sum, tp_sum};
    }
};

// Intervals and clearance, from the same resamples for the search and its controls.
inline void add_intervals(Finding& f, const UnitFires& fires, size_t unit, const Places& places,
                          const Labellings& labels, const Resamples& resamples) {
    if (!f.real.choice.any() || places.games < 2) return;
    const GameCounts real(fires, unit, f.real.choice, places, labels.truth.of_test());
    const GameCounts controls[] = {{fires, unit, f.permuted.choice, places, labels.permuted.of_test()},
                                   {fires, unit, f.same_move.choice, places, labels.same_move.of_test()},
                                   {fires, unit, f.same_choice.choice, places, labels.same_move.of_test()}};
    std::vector<double> precision, f1, mcc, margins[6];
    for (size_t r = 0; r < bootstrap_resamples; r++) {
        const float* times = resamples.times.data() + r * places.games;
        const Counts counts = real.sum(times, f.real.counts.n);
        if (counts.on == 0) continue;
        precision.push_back(counts.precision()), f1.push_back(counts.f1()), mcc.push_back(counts.mcc());
        for (const size_t i : {0, 1, 2}) {
            const Counts control = controls[i].sum(times, f.real.counts.n);
            margins[i].push_back(counts.f1() - control.f1());
            margins[3 + i].push_back(counts.mcc() - control.mcc());
        }
    }
    f.clearance = INFINITY;
    for (const std::vector<double>& margin : margins)
        if (const Moments m = moments(margin.data(), margin.size()); !(m.mean > 0))
            f.clearance = -INFINITY;
        else if (m.sd > 0)
            f.clearance = std::min(f.clearance, m.mean / m.sd);
    const auto interval = [](std::vector<double>& values) {
        std::sort(values.begin(), values.end());
        return Interval{quantile(values, 0.025), quantile(values, 0.975)};
    };
    f.precision = interval(precision), f.f1 = interval(f1), f.mcc = interval(mcc);
}

// Chosen on the train games, measured on the test games. Found: the low ends of the intervals exceed the base
// rate (precision) and the always-on floor (F1), and F1 and Matthews correlation exceed clearly those of the
// same search in permuted labels, and of the same property at the same move of other games. (F1 alone is easy
// for properties that mostly hold; and of properties that go equally well with a clock the searches may
// choose different ones.) Intervals are computed here only where the numbers themselves pass.
inline Finding find(const LayerFires& fires, size_t unit, const Evidence& e, const Labellings& labels,
                    const Resamples& resamples, std::vector<uint32_t>& scratch) {
    const auto search = [&](const Labelling& labelling, Choice* square) {
        const Choices choices = choose(fires.train, unit, e, labelling.of_train(), scratch);
        if (square) *square = choices.square;
        Held held = {choices.best, {}};
        if (held.choice.any())
            held.counts = count(fires.test, unit, held.choice, e.test, labelling.of_test());
        return held;
    };
    Finding f;
    f.real = search(labels.truth, &f.square);
    if (!f.real.choice.any()) return f;
    f.permuted = search(labels.permuted, nullptr), f.same_move = search(labels.same_move, nullptr);
    f.same_choice = {f.real.choice,
                     count(fires.test, unit, f.real.choice, e.test, labels.same_move.of_test())};
    const Counts& counts = f.real.counts;
    bool passes =
        counts.on >= least_places && counts.precision() > counts.base() && counts.f1() > counts.floor();
    for (const Held* control : {&f.permuted, &f.same_move, &f.same_choice})
        passes = passes && counts.f1() > control->counts.f1() && counts.mcc() > control->counts.mcc();
    if (!passes) return f;
    add_intervals(f, fires.test, unit, e.test, labels, resamples);
    f.found = f.precision.low > counts.base() && f.f1.low > counts.floor() && f.clearance > least_clearance;
    return f;
}

// Every unit of a layer.
inline std::vector<Finding> find_all(const LayerFires& fires, const Evidence& e, const Labellings& labels,
                                     const Resamples& resamples) {
    std::vector<Finding> findings(fires.units);
#pragma omp parallel
    {
        std::vector<uint32_t> scratch;
#pragma omp for schedule(dynamic, 8)
        for (size_t u = 0; u < fires.units; u++) findings[u] = find(fires, u, e, labels, resamples, scratch);
    }
    return findings;
}
