// How well units classify cells: coverage, reconstruction, and what they are on other games, for one layer.
// Definitions: Karvonen et al., arXiv 2408.00113, and the code published with it.
//
// Counting. TP of (unit, threshold, cell) is the number of tokens where the unit is on and the cell holds.
// Units fire rarely, so their tokens are listed (fires.h), and a token's labels are a row of zeros and ones,
// one byte each: the rows of a unit's tokens are added up, 64 cells at a time, the highest level first. What
// has been added when a level is done is the TP of its threshold, for all cells at once. (A popcount over bit
// sets of all tokens costs the same at every firing rate and threshold; see dev/bench/bench_bsp.cpp.)
//
//   1 labels by token      3 selection on the train games    5 held-out coverage
//   2 counting             4 reconstruction
#pragma once
#include "../lib/threads.h"
#include "boards.h"
#include "fires.h"

// ---------------------------------------------------------------------------------------------------------
// 1 Labels by token

constexpr size_t tile_cells = 128;                                 // columns that are counted together
using Bytes = uint8_t __attribute__((vector_size(64), may_alias)); // adds 64 bytes at a time, on any machine
struct alignas(64) TileRow { // plain bytes, since nvcc knows no vectors in a std::vector
    uint8_t byte[tile_cells];
};

// Cells of interest as columns, rows by token. Made for the train games: a cell that never holds there has
// F1 = 0 for every unit, gets no label, and needs no column.
struct LabelRows {
    size_t tokens = 0, tiles = 0;
    std::vector<uint32_t> cell;      // (columns) in rising order
    std::vector<uint32_t> positives; // (columns) tokens where it holds
    std::vector<TileRow> rows;       // (tiles, tokens) 0 or 1; columns behind the last are 0

    size_t columns() const { return cell.size(); }
    bool at(size_t column, size_t n) const {
        const TileRow& row = rows[column / tile_cells * tokens + n];
        return row.byte[column % tile_cells];
    }
};

// The cells of the list, of which those that never hold are left out unless told otherwise.
inline LabelRows label_rows(const BoardLabels& labels, const std::vector<uint32_t>& cells, bool all = false) {
    LabelRows out;
    out.tokens = labels.tokens;
    for (const uint32_t c : cells) {
        size_t holds = 0;
        for (size_t w = 0; w < labels.words; w++) holds += size_t(std::popcount(labels.cell(c)[w]));
        if (holds || all) out.cell.push_back(c), out.positives.push_back(uint32_t(holds));
    }
    out.tiles = (out.columns() + tile_cells - 1) / tile_cells;
    out.rows.assign(out.tiles * out.tokens, TileRow{});
#pragma omp parallel for
    for (size_t tile = 0; tile < out.tiles; tile++)
        for (size_t c = tile * tile_cells; c < std::min(out.columns(), (tile + 1) * tile_cells); c++)
            for (size_t w = 0; w < labels.words; w++)
                for (uint64_t bits = labels.cell(out.cell[c])[w]; bits; bits &= bits - 1) {
                    const size_t n = w * 64 + size_t(std::countr_zero(bits));
                    out.rows[tile * out.tokens + n].byte[c % tile_cells] = 1;
                }
    return out;
}

// Whose labels a token gets: order[n], or its own where there is no order. With an order the labels keep
// their frequencies and lose their games.
using Order = std::vector<uint32_t>;

// A random cycle through n things, so that none keeps its place (Sattolo).
inline Order random_cycle(size_t n, uint64_t seed, const char* stream) {
    Order order(n);
    for (size_t i = 0; i < n; i++) order[i] = uint32_t(i);
    Random random{seed, random_stream(stream)};
    for (size_t i = n; i-- > 1;) std::swap(order[i], order[random.below(i)]);
    return order;
}
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
// 2 Counting

// tp (11,tile_cells): tokens where the unit is on at t and column tile*tile_cells + c holds.
inline void count_tile(const UnitFires& fires, size_t unit, const LabelRows& labels, const Order* order,
                       size_t tile, uint32_t* tp) {
    const TileRow* rows = labels.rows.data() + tile * labels.tokens;
    const uint32_t* n = fires.first(unit);
    uint32_t sum[tile_cells] = {};
    for (size_t t = n_thresholds; t-- > 0;) {
        for (const uint32_t* last = fires.last(unit, t); n < last;) {
            Bytes some[tile_cells / 64] = {};
            const uint32_t* end = n + std::min<size_t>(255, size_t(last - n)); // what a byte can count
            for (; n < end; n++) {
                const Bytes* row = (const Bytes*)rows[order ? (*order)[*n] : *n].byte;
                for (size_t i = 0; i < std::size(some); i++) some[i] += row[i];
            }
            const uint8_t* bytes = (const uint8_t*)some;
            for (size_t c = 0; c < tile_cells; c++) sum[c] += bytes[c];
        }
        std::copy(sum, sum + tile_cells, tp + t * tile_cells);
    }
}

// tp (11,columns): the same for all columns.
inline void count_cells(const UnitFires& fires, size_t unit, const LabelRows& labels, const Order* order,
                        std::vector<uint32_t>& tp) {
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

// P = TP/(on + 1e-8), R = TP/(pos + 1e-8), F1 = 2PR/(P + R + 1e-8), in float32.
inline float f1_score(float tp, float on, float positives) {
    const float p = tp / (on + 1e-8f), r = tp / (positives + 1e-8f);
    return 2 * p * r / (p + r + 1e-8f);
}

// The unit says the cell at this threshold: precision 0.95 or more, of ten tokens or more. As the published
// code rounds: TP times 1/on in float32, which falls short of an exact 0.95 at 23 values of on up to 20000.
inline bool says(float tp, float on) { return (tp >= 10) & (tp * (1 / on) >= 0.95f); }

// ---------------------------------------------------------------------------------------------------------
// 3 Selection on the train games

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

inline Selection select_units(const UnitFires& fires, const LabelRows& labels, const Order* order = nullptr) {
    Selection best;
    const size_t width = best.width = labels.tiles * tile_cells, words = best.words();
    best.f1.resize(n_thresholds * width), best.unit.resize(n_thresholds * width);
    std::vector<float> positives(width);
    std::copy(labels.positives.begin(), labels.positives.end(), positives.begin());

    constexpr size_t block = 64; // units for which a tile of labels stays in cache
    const size_t n_blocks = (fires.units + block - 1) / block;
    std::vector<std::vector<uint32_t>> labelled(n_blocks);
    std::vector<std::vector<uint64_t>> rows(n_blocks);
#pragma omp parallel
    {
        std::vector<float> f1(n_thresholds * width);
        std::vector<uint32_t> unit(n_thresholds * width);
        std::vector<uint64_t> said(block * n_thresholds * words);
        uint32_t tp[n_thresholds * tile_cells];
#pragma omp for schedule(dynamic, 1) nowait
        for (size_t i = 0; i < n_blocks; i++) {
            const size_t begin = i * block, end = std::min(fires.units, begin + block);
            std::fill(said.begin(), said.end(), 0);
            for (size_t tile = 0; tile < labels.tiles; tile++)
                for (size_t u = begin; u < end; u++) {
                    if (fires.on(u, 0) == 0) continue;
                    count_tile(fires, u, labels, order, tile, tp);
                    for (size_t t = 0; t < n_thresholds; t++) {
                        const size_t first = t * width + tile * tile_cells;
                        const float on = float(fires.on(u, t)), *pos = &positives[tile * tile_cells];
                        if (on == 0) break; // nor at any higher threshold
                        int any = 0;
                        for (size_t c = 0; c < tile_cells; c++) {
                            const float n = float(tp[t * tile_cells + c]), f = f1_score(n, on, pos[c]);
                            unit[first + c] = f > f1[first + c] ? uint32_t(u) : unit[first + c];
                            f1[first + c] = f > f1[first + c] ? f : f1[first + c];
                            any |= says(n, on);
                        }
                        if (!any) continue;
                        uint64_t* row = &said[((u - begin) * n_thresholds + t) * words];
                        for (size_t c = 0; c < tile_cells; c++)
                            if (says(float(tp[t * tile_cells + c]), on))
                                row[(tile * tile_cells + c) / 64] |= uint64_t(1) << (c % 64);
                    }
                }
            for (size_t u = begin; u < end; u++) {
                const auto row = said.begin() + std::ptrdiff_t((u - begin) * n_thresholds * words),
                           row_end = row + std::ptrdiff_t(n_thresholds * words);
                if (std::all_of(row, row_end, [](uint64_t w) { return w == 0; })) continue;
                labelled[i].push_back(uint32_t(u));
                rows[i].insert(rows[i].end(), row, row_end);
            }
        }
#pragma omp critical(select_units)
        for (size_t c = 0; c < n_thresholds * width; c++)
            if (f1[c] > best.f1[c] || (f1[c] == best.f1[c] && f1[c] > 0 && unit[c] < best.unit[c]))
                best.f1[c] = f1[c], best.unit[c] = unit[c];
    }
    for (size_t i = 0; i < n_blocks; i++) {
        best.labelled.insert(best.labelled.end(), labelled[i].begin(), labelled[i].end());
        best.labels.insert(best.labels.end(), rows[i].begin(), rows[i].end());
    }
    return best;
}

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
inline std::vector<FunctionColumns> function_columns(const LabelRows& labels,
                                                     const std::vector<uint32_t>& functions) {
    std::vector<FunctionColumns> list;
    const auto column_of = [&](size_t cell) {
        return size_t(std::lower_bound(labels.cell.begin(), labels.cell.end(), cell) - labels.cell.begin());
    };
    for (const uint32_t function : functions) {
        const BoardFunction& f = board_functions[function];
        FunctionColumns out;
        out.function = function;
        for (size_t square = 0; square <= f.rows * f.columns; square++)
            out.square.push_back(uint32_t(column_of(first_cell(function) + square * f.classes)));
        out.first = out.square.front(), out.last = out.square.back();
        for (size_t w = out.first / 64; w * 64 < out.last; w++) {
            uint64_t mask = ~uint64_t(0);
            if (w * 64 < out.first) mask &= ~uint64_t(0) << (out.first % 64);
            if (out.last < w * 64 + 64) mask &= ~(~uint64_t(0) << (out.last % 64));
            out.mask.push_back(mask);
        }
        list.push_back(std::move(out));
    }
    return list;
}

// avg(t): the mean over a function's cells of the best F1; cells that never hold count with 0.
// Coverage is the highest avg(t): one threshold for all cells of a function. per_cell: each has its own.
// above[i]: how many cells have a best F1 above threshold(i), at the t where they are most, the first such.
struct Coverage {
    double average[n_thresholds] = {}, value = 0, per_cell = 0;
    size_t threshold = 0; // the first that gives the highest
    size_t above[n_thresholds] = {}, above_threshold[n_thresholds] = {};
};
inline Coverage coverage(const Selection& best, const FunctionColumns& f) {
    Coverage out;
    for (size_t t = 0; t < n_thresholds; t++) {
        for (size_t c = f.first; c < f.last; c++) out.average[t] += double(best.f1[t * best.width + c]);
        out.average[t] /= f.cells();
        if (out.average[t] > out.value) out.value = out.average[t], out.threshold = t;
        const float *first = &best.f1[t * best.width + f.first], *last = first + (f.last - f.first);
        for (size_t i = 0; i < n_thresholds; i++) {
            const size_t n = size_t(std::count_if(first, last, [&](float f1) { return f1 > threshold(i); }));
            if (n > out.above[i]) out.above[i] = n, out.above_threshold[i] = t;
        }
    }
    for (size_t c = f.first; c < f.last; c++) {
        float f1 = 0;
        for (size_t t = 0; t < n_thresholds; t++) f1 = std::max(f1, best.f1[t * best.width + c]);
        out.per_cell += double(f1) / f.cells();
    }
    return out;
}

// The coverage that a unit which is always on has: F1 = 2p/(1+p) at base rate p.
inline double always_on_floor(const LabelRows& labels, const FunctionColumns& f) {
    double sum = 0;
    for (size_t c = f.first; c < f.last; c++)
        sum += double(f1_score(float(labels.positives[c]), float(labels.tokens), float(labels.positives[c])));
    return sum / f.cells();
}

// ---------------------------------------------------------------------------------------------------------
// 4 Reconstruction

// What is true at the tokens of a set of games, as bits of columns (those chosen on the train games).
struct TruthRows {
    size_t games = 0, dots = 0, words = 0;
    std::vector<uint64_t> bits;      // (games*dots,words)
    std::vector<uint32_t> positives; // (functions,games) true cells, those without a column too

    size_t tokens() const { return games * dots; }
    const uint64_t* row(size_t n) const { return bits.data() + n * words; }
};
inline TruthRows truth_rows(const BoardLabels& labels, size_t dots, const LabelRows& columns,
                            const std::vector<FunctionColumns>& functions) {
    TruthRows truth;
    truth.games = labels.tokens / dots, truth.dots = dots, truth.words = columns.tiles * tile_cells / 64;
    truth.bits.assign(labels.tokens * truth.words, 0);
    truth.positives.assign(functions.size() * truth.games, 0);
    const auto each_token = [&](size_t cell, auto f) {
        for (size_t w = 0; w < labels.words; w++)
            for (uint64_t bits = labels.cell(cell)[w]; bits; bits &= bits - 1)
                f(w * 64 + size_t(std::countr_zero(bits)));
    };
    for (size_t c = 0; c < columns.columns(); c++)
        each_token(columns.cell[c],
                   [&](size_t n) { truth.bits[n * truth.words + c / 64] |= uint64_t(1) << (c % 64); });
    for (size_t f = 0; f < functions.size(); f++)
        for (size_t c = 0; c < cells_of(board_functions[functions[f].function]); c++)
            each_token(first_cell(functions[f].function) + c,
                       [&](size_t n) { truth.positives[f * truth.games + n / dots]++; });
    return truth;
}

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
    uint32_t both = 0; // squares with just one right and just one wrong class
};
constexpr size_t max_mask = n_thresholds;
struct Reconstruction {
    size_t functions = 0, games = 0;
    std::vector<Predictions> counts; // (12,functions,games)

    const Predictions& at(size_t row, size_t f, size_t game) const {
        return counts[(row * functions + f) * games + game];
    }
};

inline Reconstruction reconstruct(const UnitFires& fires, const Selection& said, const TruthRows& truth,
                                  const std::vector<FunctionColumns>& functions,
                                  const Order* order = nullptr) {
    constexpr size_t n_rows = n_thresholds + 1, block = 16; // games
    const size_t words = truth.words, n_labelled = said.labelled.size();
    Reconstruction out;
    out.functions = functions.size(), out.games = truth.games;
    out.counts.resize(n_rows * out.functions * out.games);

    // What a unit predicts at each level under the max mask.
    std::vector<uint64_t> highest(said.labels.size()); // (labelled,11,words): at level t + 1
    for (size_t i = 0; i < n_labelled; i++)
        for (size_t t = 0; t < n_thresholds; t++) {
            uint64_t* to = &highest[(i * n_thresholds + t) * words];
            for (const FunctionColumns& f : functions) {
                const size_t w0 = f.first / 64;
                bool any = t == 0;
                for (size_t w = 0; w < f.mask.size(); w++) any |= (said.row(i, t)[w0 + w] & f.mask[w]) != 0;
                const uint64_t* from = any ? said.row(i, t) : to - words;
                for (size_t w = 0; w < f.mask.size(); w++) to[w0 + w] |= from[w0 + w] & f.mask[w];
            }
        }

    const size_t n_blocks = (truth.games + block - 1) / block;
#pragma omp parallel
    {
        std::vector<uint64_t> predicted(n_rows * block * truth.dots * words);
#pragma omp for schedule(dynamic, 1)
        for (size_t b = 0; b < n_blocks; b++) {
            const size_t begin = b * block * truth.dots,
                         end = std::min(truth.tokens(), begin + block * truth.dots);
            std::fill(predicted.begin(), predicted.end(), 0);
            const auto predict = [&](size_t row, size_t n, const uint64_t* cells) {
                uint64_t* to = &predicted[(row * block * truth.dots + n - begin) * words];
                for (size_t w = 0; w < words; w++) to[w] |= cells[w];
            };
            for (size_t i = 0; i < n_labelled; i++) {
                const uint32_t* from = fires.first(said.labelled[i]);
                for (size_t level = n_thresholds; level > 0; level--) {
                    const uint32_t* to = fires.last(said.labelled[i], level - 1);
                    for (const uint32_t* n = std::lower_bound(from, to, begin); n < to && *n < end; n++) {
                        for (size_t t = 0; t < level; t++) predict(t, *n, said.row(i, t));
                        predict(max_mask, *n, &highest[(i * n_thresholds + level - 1) * words]);
                    }
                    from = to;
                }
            }
            for (size_t row = 0; row < n_rows; row++)
                for (size_t n = begin; n < end; n++) {
                    const uint64_t *p = &predicted[(row * block * truth.dots + n - begin) * words],
                                   *is = truth.row(order ? (*order)[n] : n);
                    for (size_t f = 0; f < functions.size(); f++) {
                        const FunctionColumns& columns = functions[f];
                        const size_t w0 = columns.first / 64;
                        uint32_t tp = 0, fp = 0, both = 0;
                        for (size_t w = 0; w < columns.mask.size(); w++) {
                            const uint64_t cells = p[w0 + w] & columns.mask[w];
                            tp += uint32_t(std::popcount(cells & is[w0 + w]));
                            fp += uint32_t(std::popcount(cells & ~is[w0 + w]));
                        }
                        if (tp && fp)
                            for (size_t s = 0; s + 1 < columns.square.size(); s++) {
                                const size_t c = columns.square[s], c_end = columns.square[s + 1];
                                if (c == c_end) continue;
                                const uint64_t cells = bits_between(p, c, c_end),
                                               right = cells & bits_between(is, c, c_end);
                                both += std::popcount(right) == 1 && std::popcount(cells) == 2;
                            }
                        Predictions& counts =
                            out.counts[(row * out.functions + f) * out.games + n / truth.dots];
                        counts.tp += tp, counts.fp += fp, counts.both += both;
                    }
                }
        }
    }
    return out;
}

// F1 over all tokens and cells of a function; per square: squares with just one right and just one wrong
// class do not count as right. times: how often each game counts, null: once.
inline double class_f1(const Reconstruction& r, const TruthRows& truth, size_t row, size_t f,
                       const std::vector<uint32_t>* times = nullptr, bool per_square = false) {
    uint64_t tp = 0, fp = 0, both = 0, positives = 0;
    for (size_t g = 0; g < r.games; g++) {
        const uint64_t n = times ? (*times)[g] : 1;
        const Predictions& p = r.at(row, f, g);
        tp += n * p.tp, fp += n * p.fp, both += n * p.both;
        positives += n * truth.positives[f * r.games + g];
    }
    const uint64_t right = per_square ? tp - both : tp, missed = positives - tp;
    return double(f1_score(float(right), float(right + fp), float(right + missed)));
}
// The threshold below 1.0 with the highest F1 per square, of several the first.
inline size_t best_threshold(const Reconstruction& r, const TruthRows& truth, size_t f) {
    size_t best = 0;
    double highest = 0;
    for (size_t t = 0; t + 1 < n_thresholds; t++)
        if (const double f1 = class_f1(r, truth, t, f, nullptr, true); f1 > highest) highest = f1, best = t;
    return best;
}

// ---------------------------------------------------------------------------------------------------------
// 5 Held-out coverage: unit and threshold chosen on the train games, F1 on the test games

struct HeldOut {
    size_t games = 0, columns = 0;
    std::vector<uint8_t> tp, on, positives; // (games,columns) tokens of a game
};
// One function at a threshold.
inline HeldOut held_out(const UnitFires& fires, const Selection& best, size_t t, const TruthRows& truth,
                        const FunctionColumns& f, const Order* order = nullptr) {
    HeldOut out;
    out.games = truth.games, out.columns = f.last - f.first;
    const size_t n_columns = out.columns;
    for (auto* list : {&out.tp, &out.on, &out.positives}) list->assign(out.games * n_columns, 0);
    const auto holds = [&](size_t n, size_t c) {
        return truth.row(order ? (*order)[n] : n)[c / 64] >> (c % 64) & 1;
    };
    for (size_t c = f.first; c < f.last; c++) {
        for (size_t n = 0; n < truth.tokens(); n++)
            out.positives[n / truth.dots * n_columns + c - f.first] += uint8_t(holds(n, c));
        if (best.f1[t * best.width + c] == 0) continue; // no unit
        const size_t unit = best.unit[t * best.width + c];
        for (const uint32_t* n = fires.first(unit); n < fires.last(unit, t); n++) {
            const size_t i = *n / truth.dots * n_columns + c - f.first;
            out.on[i]++, out.tp[i] += uint8_t(holds(*n, c));
        }
    }
    return out;
}
// cells: the function's, with those that have no column.
inline double held_out_f1(const HeldOut& h, double cells, const std::vector<uint32_t>* times = nullptr) {
    std::vector<uint32_t> tp(h.columns), on(h.columns), positives(h.columns);
    for (size_t g = 0; g < h.games; g++) {
        const uint32_t n = times ? (*times)[g] : 1;
        const size_t row = g * h.columns;
        if (n == 0) continue;
        for (size_t c = 0; c < h.columns; c++) {
            tp[c] += n * h.tp[row + c];
            on[c] += n * h.on[row + c];
            positives[c] += n * h.positives[row + c];
        }
    }
    double sum = 0;
    for (size_t c = 0; c < h.columns; c++)
        sum += double(f1_score(float(tp[c]), float(on[c]), float(positives[c])));
    return sum / cells;
}
