// Yes-or-no questions and their answers at many places: of cells of board functions (boards.h), of what a
// game's text says (chess_text.h), of tokens (text_labels.h). Answers are kept as bits by question; where
// they are counted they become bytes by place, 128 questions at a time, so that the rows of a unit's places
// are added up for all of them at once. (A popcount over bit sets of all places costs the same at every
// firing rate and threshold; see dev/bench/bench_bsp.cpp.)
//
//   1 questions and answers    2 counting many questions at the same places
#pragma once
#include "../lib/random.h"
#include "../lib/terminal.h"
#include "../lib/threads.h"
#include <algorithm>
#include <bit>
#include <cstdint>
#include <mutex>
#include <numeric>
#include <string>
#include <unordered_map>
#include <vector>

// ---------------------------------------------------------------------------------------------------------
// 1 Questions and answers

// "fires when" goes before its words; words[1] is for when it does not hold.
struct Property {
    std::string function, words[2];
    size_t square = SIZE_MAX,
           stride = 0;        // of a square: the cell of a1, and how far apart those of squares lie
    std::string squares = ""; // .. and all of them in words: "where black queens stand"
};

// Bit n % 64 of word n / 64 of a cell's row is its answer at place n; the bits behind the last place are
// zero.
struct Labels {
    size_t tokens = 0, words = 0; // places, and words of a row
    std::vector<uint64_t> bits;   // (cells, words)

    const uint64_t* cell(size_t c) const { return bits.data() + c * words; }
    bool at(size_t c, size_t n) const { return cell(c)[n / 64] >> (n % 64) & 1; }
    void set(size_t c, size_t n) { bits[c * words + n / 64] |= uint64_t(1) << (n % 64); }
    size_t cells() const { return words ? bits.size() / words : 0; }
    size_t positives(size_t c) const {
        size_t sum = 0;
        for (size_t w = 0; w < words; w++) sum += size_t(std::popcount(cell(c)[w]));
        return sum;
    }
};
inline Labels empty_labels(size_t cells, size_t places) {
    Labels labels;
    labels.tokens = places;
    labels.words = (places + 63) / 64;
    labels.bits.assign(cells * labels.words, 0);
    return labels;
}
inline void set_squares(Labels& labels, size_t first, uint64_t squares, size_t n) {
    for (; squares; squares &= squares - 1) labels.set(first + size_t(std::countr_zero(squares)), n);
}

// f(n) for every place where a cell holds, in rising order.
template <class F> void each_place(const Labels& labels, size_t cell, F f) {
    for (size_t w = 0; w < labels.words; w++)
        for (uint64_t bits = labels.cell(cell)[w]; bits; bits &= bits - 1)
            f(w * 64 + size_t(std::countr_zero(bits)));
}

// f(g) for every game of a set, which may write to the labels of its places, per_game of each. Games are
// taken in groups whose places fill whole words, so that no two threads write to the same word.
template <class F> void each_labelled_game(const char* label, size_t games, size_t per_game, F f) {
    const size_t group = 64 / std::gcd(size_t(64), per_game);
    Progress progress(label, "games", double(games));
    std::mutex mutex;
    size_t done = 0;
    parallel_items((games + group - 1) / group, [&](size_t i) {
        const size_t end = std::min(games, (i + 1) * group);
        for (size_t g = i * group; g < end; g++) f(g);
        const std::lock_guard lock(mutex);
        progress.update(double(done += end - i * group));
    });
    progress.finish(double(games));
}

// The answers of a cell by place, (places) 0 or 1.
std::vector<uint8_t> answers_of(const Labels& labels, size_t cell);

// Some cells of the labels, in the order of the list.
Labels chosen_cells(const Labels& labels, const std::vector<uint32_t>& cells);

// A question is asked only if it is answered yes, and no, and a unit considered only if it is on, at so many
// places in so many games (rows of text): what holds in one game alone is no witness.
constexpr size_t least_places = 10, least_games = 10;

size_t games_where(const Labels& labels, size_t cell, size_t per_game, bool holds);

// The cells that can be told from each other: those that hold or fail too seldom, as said above, are left
// out, and so is what equals a cell before it.
std::vector<uint32_t> distinct_cells(const Labels& labels, size_t per_game, size_t places = least_places,
                                     size_t games = least_games);

// ---------------------------------------------------------------------------------------------------------
// 2 Counting many questions at the same places

constexpr size_t tile_cells = 128;                                 // columns that are counted together
using Bytes = uint8_t __attribute__((vector_size(64), may_alias)); // adds 64 bytes at a time, on any machine
struct alignas(64) TileRow { // plain bytes, since nvcc knows no vectors in a std::vector
    uint8_t byte[tile_cells];
};

// sum[c] += the places [begin, end) at which column c of the tile holds. order: whose labels a place gets, or
// null.
inline void add_rows(const TileRow* rows, const uint32_t* begin, const uint32_t* end, const uint32_t* order,
                     uint32_t* sum) {
    while (begin < end) {
        Bytes some[tile_cells / 64] = {};
        const uint32_t* stop = begin + std::min<size_t>(255, size_t(end - begin)); // what a byte can count
        for (; begin < stop; begin++) {
            const Bytes* row = (const Bytes*)rows[order ? order[*begin] : *begin].byte;
            for (size_t i = 0; i < std::size(some); i++) some[i] += row[i];
        }
        const uint8_t* bytes = (const uint8_t*)some;
        for (size_t c = 0; c < tile_cells; c++) sum[c] += bytes[c];
    }
}

// Up to tile_cells cells of the labels, by place. rows (places) are all zero before.
inline void fill_tile(const Labels& labels, const uint32_t* cells, size_t n_cells, TileRow* rows) {
    for (size_t i = 0; i < n_cells; i++) each_place(labels, cells[i], [&](size_t n) { rows[n].byte[i] = 1; });
}

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
LabelRows label_rows(const Labels& labels, const std::vector<uint32_t>& cells, bool all = false);
