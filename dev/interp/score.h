// How well units classify cells: coverage, reconstruction, and what they are on other games, for one layer.
// Definitions: Karvonen et al., arXiv 2408.00113, and the code published with it.
//
// Beyond the text. Much of a board is said aloud: "Nf6" stands in the text, and so does the + of a check.
// What the text's own rules come to (rules.h: chosen and measured like units) is taken off.
//
// Coverage: of a cell, the F1 of its unit less that of its best text rule, both on the held-out games, if on
// the train games the unit is the better one, else 0; averaged over all cells as the published coverage is.
// It is what the best of both, chosen on the train games, has more than the text alone. The floor at 0 is put
// where the choice is made: put on the held-out games it would turn the noise of 768 cells into knowledge,
// and every null would have some. A cell that never holds in the train games has neither unit nor rule.
//
// Reconstruction: the F1 over those cells that no text rule says which is 95% sure: of what the text leaves
// open, how much do the units rebuild? (Taking off the text's own F1 would ask units to say again what is
// said.)
//
//   1 selection on the train games    2 reconstruction    3 held-out coverage    4 beyond the text
#pragma once
#include "controls.h"
#include "fires.h"

// P = TP/(on + 1e-8), R = TP/(pos + 1e-8), F1 = 2PR/(P + R + 1e-8), in float32.
inline float f1_score(float tp, float on, float positives) {
    const float p = tp / (on + 1e-8f), r = tp / (positives + 1e-8f);
    return 2 * p * r / (p + r + 1e-8f);
}

// The unit says the cell at this threshold: precision 0.95 or more, of ten tokens or more. As the published
// code rounds: TP times 1/on in float32, which falls short of an exact 0.95 at 23 values of on up to 20000.
inline bool says(float tp, float on) { return (tp >= 10) & (tp * (1 / on) >= 0.95f); }

// ---------------------------------------------------------------------------------------------------------
// 1 Selection on the train games

// For every threshold and column the unit with the highest F1, and for every unit which cells it says.
// Columns are padded to whole tiles here.
struct Selection {
    size_t width = 0;               // columns, padded
    std::vector<float> f1;          // (11,width) 0 where no unit is ever on with the cell
    std::vector<uint32_t> unit;     // (11,width) of several the lowest
    std::vector<uint32_t> labelled; // units that say anything, in rising order
    std::vector<uint64_t> labels;   // (labelled,11,width/64) bit c: says column c

    size_t words() const { return width / 64; }
    const uint64_t* row(size_t i, size_t t) const { return &labels[(i * n_thresholds + t) * words()]; }
};

Selection select_units(const UnitFires& fires, const LabelRows& labels, const Order* order = nullptr);

// The columns of one board function. The columns of a square lie side by side.
struct FunctionColumns {
    size_t function = 0;          // in board_functions
    size_t first = 0, last = 0;   // columns [first, last)
    std::vector<uint32_t> square; // (squares + 1): where the columns of each begin
    std::vector<uint64_t> mask;   // of the words [first/64, ..) that hold them

    double cells() const { // those that are counted
        const BoardFunction& f = board_functions[function];
        return double(f.rows * f.columns * (f.classes - (f.masked >= 0)));
    }
};
std::vector<FunctionColumns> function_columns(const LabelRows& labels,
                                              const std::vector<uint32_t>& functions);

// avg(t): the mean over a function's cells of the best F1; cells that never hold count with 0.
// Coverage is the highest avg(t): one threshold for all cells of a function. per_cell: each has its own.
// above[i]: how many cells have a best F1 above threshold(i), at the t where they are most, the first such.
struct Coverage {
    double average[n_thresholds] = {}, value = 0, per_cell = 0;
    size_t threshold = 0; // the first that gives the highest
    size_t above[n_thresholds] = {}, above_threshold[n_thresholds] = {};
};
Coverage coverage(const Selection& best, const FunctionColumns& f);

// The coverage that a unit which is always on has: F1 = 2p/(1+p) at base rate p.
double always_on_floor(const LabelRows& labels, const FunctionColumns& f);

// ---------------------------------------------------------------------------------------------------------
// 2 Reconstruction

// What is true at the tokens of a set of games, as bits of columns (those chosen on the train games).
struct TruthRows {
    size_t games = 0, dots = 0, words = 0;
    std::vector<uint64_t> bits;      // (games*dots,words)
    std::vector<uint32_t> positives; // (functions,games) true cells, those without a column too
    std::vector<uint64_t> said; // (games*dots,words) cells that the text says, whether true or not; or none

    size_t tokens() const { return games * dots; }
    const uint64_t* row(size_t n) const { return bits.data() + n * words; }
};
TruthRows truth_rows(const Labels& labels, size_t dots, const LabelRows& columns,
                     const std::vector<FunctionColumns>& functions);

// Bits [first, last) of a row, 64 at most.
inline uint64_t bits_between(const uint64_t* row, size_t first, size_t last) {
    const size_t w = first / 64, shift = first % 64;
    uint64_t bits = row[w] >> shift;
    if (shift && (last - 1) / 64 > w) bits |= row[w + 1] << (64 - shift);
    return last - first == 64 ? bits : bits & ((uint64_t(1) << (last - first)) - 1);
}

// A cell is predicted at a token when a unit that says it is on there. Predictions are counted for every
// threshold and, as row 11, for the "max mask": each unit at the highest threshold where it is on and says
// anything of the function.
struct Predictions {
    uint32_t tp = 0, fp = 0;
    uint32_t both = 0;                 // squares with just one right and just one wrong class
    uint32_t tp_open = 0, fp_open = 0; // among the cells that the text leaves open
};
constexpr size_t max_mask = n_thresholds;
struct Reconstruction {
    size_t functions = 0, games = 0;
    std::vector<Predictions> counts; // (12,functions,games)

    const Predictions& at(size_t row, size_t f, size_t game) const {
        return counts[(row * functions + f) * games + game];
    }
};

Reconstruction reconstruct(const UnitFires& fires, const Selection& said, const TruthRows& truth,
                           const std::vector<FunctionColumns>& functions, const Order* order = nullptr);

// F1 over all tokens and cells of a function; per square: squares with just one right and just one wrong
// class do not count as right. times: how often each game counts, null: once.
double class_f1(const Reconstruction& r, const TruthRows& truth, size_t row, size_t f,
                const std::vector<uint32_t>* times = nullptr, bool per_square = false);
// The threshold below 1.0 with the highest F1 per square, of several the first.
inline size_t best_threshold(const Reconstruction& r, const TruthRows& truth, size_t f) {
    size_t best = 0;
    double highest = 0;
    for (size_t t = 0; t + 1 < n_thresholds; t++)
        if (const double f1 = class_f1(r, truth, t, f, nullptr, true); f1 > highest) {
            highest = f1;
            best = t;
        }
    return best;
}

// The same on these games, for every column (those chosen on the train games).
double always_on_floor(const TruthRows& truth, const FunctionColumns& f);

// ---------------------------------------------------------------------------------------------------------
// 3 Held-out coverage: unit and threshold chosen on the train games, F1 on the test games

struct HeldOut {
    size_t games = 0, columns = 0;
    std::vector<uint8_t> tp, on, positives; // (games,columns) tokens of a game
};
// One function at a threshold; skip (tokens): what is left out where it is 1, or null.
HeldOut held_out(const UnitFires& fires, const Selection& best, size_t t, const TruthRows& truth,
                 const FunctionColumns& f, const Order* order = nullptr,
                 const std::vector<uint8_t>* skip = nullptr);
// The F1 of every column; times: how often each game counts, null: once.
std::vector<double> column_f1(const HeldOut& h, const std::vector<uint32_t>* times = nullptr);
// cells: the function's, with those that have no column.
double held_out_f1(const HeldOut& h, double cells, const std::vector<uint32_t>* times = nullptr);

// The held-out coverage expected of the same units if, among the positions that agree in the strata, they
// were on at random: what clock and last move alone give them.
double matched_f1(const UnitFires& fires, const Selection& best, size_t t, const TruthRows& truth,
                  const FunctionColumns& f, const Strata& strata);

// ---------------------------------------------------------------------------------------------------------
// 4 Beyond the text

// The text's rules as the units of a layer: on at threshold 0 where a rule says yes, and at no other.
UnitFires rule_fires(const Labels& rules);

// The cells that units are sure of at threshold 0, (tokens,words).
std::vector<uint64_t> said_cells(const UnitFires& fires, const Selection& said, size_t words);

// The F1 over all tokens and cells of function f if what the text says is predicted (truth.said).
double said_f1(const TruthRows& truth, const std::vector<FunctionColumns>& functions, size_t f);

// Units and text on the columns where, on the train games, the unit is the better one.
struct Beyond {
    HeldOut units, text;
};
Beyond beyond_text(const HeldOut& units, const Selection& chosen, size_t t, const HeldOut& text,
                   const Selection& rules, const FunctionColumns& f);
inline double coverage_beyond(const Beyond& b, double cells, const std::vector<uint32_t>* times = nullptr) {
    return held_out_f1(b.units, cells, times) - held_out_f1(b.text, cells, times);
}

// F1 over the cells that the text leaves open. positives (functions,games): true cells there.
double open_f1(const Reconstruction& r, const std::vector<uint32_t>& positives, size_t row, size_t f,
               const std::vector<uint32_t>* times = nullptr);
// The threshold below 1.0 at which it is highest, of several the first.
size_t best_open_threshold(const Reconstruction& r, const std::vector<uint32_t>& positives, size_t f);
