// Answers and how they are counted: see labels.h.
#include "labels.h"

std::vector<uint8_t> answers_of(const Labels& labels, size_t cell) {
    std::vector<uint8_t> answers(labels.words * 64);
    for (size_t w = 0; w < labels.words; w++) {
        const uint64_t word = labels.cell(cell)[w];
        for (size_t b = 0; b < 64; b++) answers[w * 64 + b] = uint8_t(word >> b & 1);
    }
    answers.resize(labels.tokens);
    return answers;
}

Labels chosen_cells(const Labels& labels, const std::vector<uint32_t>& cells) {
    Labels out;
    out.tokens = labels.tokens;
    out.words = labels.words;
    for (const uint32_t c : cells)
        out.bits.insert(out.bits.end(), labels.cell(c), labels.cell(c) + labels.words);
    return out;
}

size_t games_where(const Labels& labels, size_t cell, size_t per_game, bool holds) {
    size_t games = 0, last = SIZE_MAX;
    for (size_t n = 0; n < labels.tokens; n++)
        if (labels.at(cell, n) == holds && n / per_game != last) {
            last = n / per_game;
            games++;
        }
    return games;
}

std::vector<uint32_t> distinct_cells(const Labels& labels, size_t per_game, size_t places, size_t games) {
    std::vector<uint32_t> kept;
    std::unordered_multimap<uint64_t, uint32_t> of_hash;
    std::vector<uint8_t> enough(labels.cells());
    parallel_items(labels.cells(), [&](size_t c) {
        const size_t positives = labels.positives(c);
        enough[c] = positives >= places && positives + places <= labels.tokens &&
                    games_where(labels, c, per_game, true) >= games &&
                    games_where(labels, c, per_game, false) >= games;
    });
    for (uint32_t c = 0; c < labels.cells(); c++) {
        if (!enough[c]) continue;
        const uint64_t *row = labels.cell(c), *end = row + labels.words;
        uint64_t hash = 0;
        for (const uint64_t* word = row; word < end; word++) hash = mix64(hash ^ *word);
        bool known = false;
        for (auto [at, last] = of_hash.equal_range(hash); at != last; at++)
            known |= std::equal(row, end, labels.cell(at->second));
        if (known) continue;
        of_hash.emplace(hash, c);
        kept.push_back(c);
    }
    return kept;
}

LabelRows label_rows(const Labels& labels, const std::vector<uint32_t>& cells, bool all) {
    LabelRows out;
    out.tokens = labels.tokens;
    for (const uint32_t c : cells) {
        const size_t holds = labels.positives(c);
        if (holds == 0 && !all) continue;
        out.cell.push_back(c);
        out.positives.push_back(uint32_t(holds));
    }
    out.tiles = (out.columns() + tile_cells - 1) / tile_cells;
    out.rows.assign(out.tiles * out.tokens, TileRow{});
    parallel_for(out.tiles, [&](size_t tile) {
        const size_t first = tile * tile_cells, last = std::min(out.columns(), first + tile_cells);
        fill_tile(labels, out.cell.data() + first, last - first, out.rows.data() + tile * out.tokens);
    });
    return out;
}
