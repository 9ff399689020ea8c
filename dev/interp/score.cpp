// Selection, coverage and what is beyond the text: see score.h. (Reconstruction: reconstruct.cpp.)
#include "score.h"
#include <mutex>

// The best F1 of every threshold and column, and whose it is; of several the lowest unit.
struct BestF1 {
    std::vector<float> f1;      // (11,width)
    std::vector<uint32_t> unit; // (11,width)

    explicit BestF1(size_t width) : f1(n_thresholds * width), unit(n_thresholds * width) {}

    // The F1 of a unit that is on at `on` places with the columns of a tile, from `first`; true if it says
    // any of them.
    bool take(uint32_t u, float on, const uint32_t* tp, const float* positives, size_t first) {
        float* best = &f1[first];
        uint32_t* whose = &unit[first];
        int any = 0;
        for (size_t c = 0; c < tile_cells; c++) {
            const float n = float(tp[c]), f = f1_score(n, on, positives[c]);
            whose[c] = f > best[c] ? u : whose[c];
            best[c] = f > best[c] ? f : best[c];
            any |= says(n, on);
        }
        return any;
    }
    void merge(const BestF1& other) {
        for (size_t c = 0; c < f1.size(); c++)
            if (other.f1[c] > f1[c] || (other.f1[c] == f1[c] && f1[c] > 0 && other.unit[c] < unit[c])) {
                f1[c] = other.f1[c];
                unit[c] = other.unit[c];
            }
    }
};

// What some units say, as rows of a Selection; those that say nothing are left out.
struct SaidRows {
    std::vector<uint32_t> units;
    std::vector<uint64_t> rows; // (units,11,words)
};

// Units [begin, end), tile by tile, since a tile of labels then stays in cache.
static SaidRows select_block(const UnitFires& fires, size_t begin, size_t end, const LabelRows& labels,
                             const Order* order, const std::vector<float>& positives, BestF1& best) {
    const size_t width = labels.tiles * tile_cells, words = width / 64, row = n_thresholds * words;
    std::vector<uint64_t> said((end - begin) * row);
    uint32_t tp[n_thresholds * tile_cells];
    for (size_t tile = 0; tile < labels.tiles; tile++)
        for (size_t u = begin; u < end; u++) {
            if (fires.on(u, 0) == 0) continue;
            count_tile(fires, u, labels, order, tile, tp);
            for (size_t t = 0; t < n_thresholds; t++) {
                const float on = float(fires.on(u, t));
                const uint32_t* right = tp + t * tile_cells;
                if (on == 0) break; // nor at any higher threshold
                if (!best.take(uint32_t(u), on, right, &positives[tile * tile_cells],
                               t * width + tile * tile_cells))
                    continue;
                uint64_t* to = &said[(u - begin) * row + t * words + tile * tile_cells / 64];
                for (size_t c = 0; c < tile_cells; c++)
                    to[c / 64] |= uint64_t(says(float(right[c]), on)) << (c % 64);
            }
        }
    SaidRows out;
    for (size_t u = begin; u < end; u++) {
        const auto from = said.begin() + std::ptrdiff_t((u - begin) * row), to = from + std::ptrdiff_t(row);
        if (std::all_of(from, to, [](uint64_t w) { return w == 0; })) continue;
        out.units.push_back(uint32_t(u));
        out.rows.insert(out.rows.end(), from, to);
    }
    return out;
}

Selection select_units(const UnitFires& fires, const LabelRows& labels, const Order* order) {
    constexpr size_t block = 64;
    const size_t width = labels.tiles * tile_cells, n_blocks = (fires.units + block - 1) / block;
    std::vector<float> positives(width);
    std::copy(labels.positives.begin(), labels.positives.end(), positives.begin());
    BestF1 best(width);
    std::vector<SaidRows> said(n_blocks);
    std::mutex mutex;
    Items blocks(n_blocks);
    parallel_parts(std::min(thread_count(), std::max<size_t>(1, n_blocks)), [&](size_t) {
        BestF1 own(width);
        for (size_t i; blocks.take(&i);)
            said[i] = select_block(fires, i * block, std::min(fires.units, (i + 1) * block), labels, order,
                                   positives, own);
        const std::lock_guard lock(mutex);
        best.merge(own);
    });
    Selection out;
    out.width = width;
    out.f1 = std::move(best.f1);
    out.unit = std::move(best.unit);
    for (const SaidRows& some : said) {
        out.labelled.insert(out.labelled.end(), some.units.begin(), some.units.end());
        out.labels.insert(out.labels.end(), some.rows.begin(), some.rows.end());
    }
    return out;
}

std::vector<FunctionColumns> function_columns(const LabelRows& labels,
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
        out.first = out.square.front();
        out.last = out.square.back();
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

Coverage coverage(const Selection& best, const FunctionColumns& f) {
    Coverage out;
    for (size_t t = 0; t < n_thresholds; t++) {
        for (size_t c = f.first; c < f.last; c++) out.average[t] += double(best.f1[t * best.width + c]);
        out.average[t] /= f.cells();
        if (out.average[t] > out.value) {
            out.value = out.average[t];
            out.threshold = t;
        }
        const float *first = &best.f1[t * best.width + f.first], *last = first + (f.last - f.first);
        for (size_t i = 0; i < n_thresholds; i++) {
            const size_t n = size_t(std::count_if(first, last, [&](float f1) { return f1 > threshold(i); }));
            if (n <= out.above[i]) continue;
            out.above[i] = n;
            out.above_threshold[i] = t;
        }
    }
    for (size_t c = f.first; c < f.last; c++) {
        float f1 = 0;
        for (size_t t = 0; t < n_thresholds; t++) f1 = std::max(f1, best.f1[t * best.width + c]);
        out.per_cell += double(f1) / f.cells();
    }
    return out;
}

double always_on_floor(const LabelRows& labels, const FunctionColumns& f) {
    double sum = 0;
    for (size_t c = f.first; c < f.last; c++)
        sum += double(f1_score(float(labels.positives[c]), float(labels.tokens), float(labels.positives[c])));
    return sum / f.cells();
}

TruthRows truth_rows(const Labels& labels, size_t dots, const LabelRows& columns,
                     const std::vector<FunctionColumns>& functions) {
    TruthRows truth;
    truth.games = labels.tokens / dots;
    truth.dots = dots;
    truth.words = columns.tiles * tile_cells / 64;
    truth.bits.assign(labels.tokens * truth.words, 0);
    truth.positives.assign(functions.size() * truth.games, 0);
    for (size_t c = 0; c < columns.columns(); c++)
        each_place(labels, columns.cell[c],
                   [&](size_t n) { truth.bits[n * truth.words + c / 64] |= uint64_t(1) << (c % 64); });
    for (size_t f = 0; f < functions.size(); f++)
        for (size_t c = 0; c < cells_of(board_functions[functions[f].function]); c++)
            each_place(labels, first_cell(functions[f].function) + c,
                       [&](size_t n) { truth.positives[f * truth.games + n / dots]++; });
    return truth;
}

double always_on_floor(const TruthRows& truth, const FunctionColumns& f) {
    std::vector<size_t> positives(f.last - f.first);
    for (size_t n = 0; n < truth.tokens(); n++)
        for (size_t c = f.first; c < f.last; c++)
            positives[c - f.first] += truth.row(n)[c / 64] >> (c % 64) & 1;
    double sum = 0;
    for (const size_t p : positives) sum += double(f1_score(float(p), float(truth.tokens()), float(p)));
    return sum / f.cells();
}

HeldOut held_out(const UnitFires& fires, const Selection& best, size_t t, const TruthRows& truth,
                 const FunctionColumns& f, const Order* order, const std::vector<uint8_t>* skip) {
    HeldOut out;
    out.games = truth.games;
    out.columns = f.last - f.first;
    const size_t n_columns = out.columns;
    for (auto* list : {&out.tp, &out.on, &out.positives}) list->assign(out.games * n_columns, 0);
    const auto holds = [&](size_t n, size_t c) {
        return truth.row(order ? (*order)[n] : n)[c / 64] >> (c % 64) & 1;
    };
    for (size_t n = 0; n < truth.tokens(); n++) {
        if (skip && (*skip)[n]) continue;
        const uint64_t* row = truth.row(order ? (*order)[n] : n) + f.first / 64;
        uint8_t* game = out.positives.data() + n / truth.dots * n_columns; // (there may be no columns)
        for (size_t w = 0; w < f.mask.size(); w++)
            for (uint64_t bits = row[w] & f.mask[w]; bits; bits &= bits - 1)
                game[(f.first / 64 + w) * 64 + size_t(std::countr_zero(bits)) - f.first]++;
    }
    for (size_t c = f.first; c < f.last; c++) {
        if (best.f1[t * best.width + c] == 0) continue; // no unit
        const size_t unit = best.unit[t * best.width + c];
        for (const uint32_t* n = fires.first(unit); n < fires.last(unit, t); n++) {
            if (skip && (*skip)[*n]) continue;
            const size_t i = *n / truth.dots * n_columns + c - f.first;
            out.on[i]++;
            out.tp[i] += uint8_t(holds(*n, c));
        }
    }
    return out;
}

// The sum over games of each column; times: how often each game counts, null: once.
static std::vector<uint32_t> column_sums(const HeldOut& h, const std::vector<uint8_t>& counts,
                                         const std::vector<uint32_t>* times) {
    const size_t columns = h.columns;
    std::vector<uint32_t> sums(columns);
    uint32_t* sum = sums.data();
    for (size_t g = 0; g < h.games; g++) {
        const uint32_t n = times ? (*times)[g] : 1;
        const uint8_t* game = counts.data() + g * columns;
        if (n == 0) continue;
#pragma omp simd
        for (size_t c = 0; c < columns; c++) sum[c] += n * game[c];
    }
    return sums;
}

std::vector<double> column_f1(const HeldOut& h, const std::vector<uint32_t>* times) {
    const std::vector<uint32_t> tp = column_sums(h, h.tp, times), on = column_sums(h, h.on, times),
                                positives = column_sums(h, h.positives, times);
    std::vector<double> f1(h.columns);
    for (size_t c = 0; c < h.columns; c++)
        f1[c] = double(f1_score(float(tp[c]), float(on[c]), float(positives[c])));
    return f1;
}

double held_out_f1(const HeldOut& h, double cells, const std::vector<uint32_t>* times) {
    double sum = 0;
    for (const double f1 : column_f1(h, times)) sum += f1;
    return sum / cells;
}

double matched_f1(const UnitFires& fires, const Selection& best, size_t t, const TruthRows& truth,
                  const FunctionColumns& f, const Strata& strata) {
    std::vector<double> f1(f.last - f.first);
    std::vector<uint32_t> sizes(strata.count);
    for (const uint32_t s : strata.of) sizes[s]++;
    parallel_items(f1.size(), [&](size_t column) {
        const size_t c = f.first + column;
        if (best.f1[t * best.width + c] == 0) return; // no unit
        std::vector<uint32_t> positives(strata.count);
        size_t all = 0;
        for (size_t n = 0; n < truth.tokens(); n++) {
            const uint32_t holds = truth.row(n)[c / 64] >> (c % 64) & 1;
            positives[strata.of[n]] += holds;
            all += holds;
        }
        const size_t unit = best.unit[t * best.width + c];
        double expected = 0;
        for (const uint32_t* n = fires.first(unit); n < fires.last(unit, t); n++)
            expected += double(positives[strata.of[*n]]) / sizes[strata.of[*n]];
        f1[column] = double(f1_score(float(expected), float(fires.on(unit, t)), float(all)));
    });
    return std::accumulate(f1.begin(), f1.end(), 0.0) / f.cells();
}

UnitFires rule_fires(const Labels& rules) {
    UnitFires fires;
    fires.units = rules.cells();
    fires.tokens = rules.tokens;
    fires.begin.assign(fires.units * n_thresholds + 1, 0);
    for (size_t u = 0; u < fires.units; u++) {
        each_place(rules, u, [&](size_t n) { fires.token.push_back(uint32_t(n)); });
        for (size_t i = 1; i < n_thresholds; i++) // on above none but the lowest
            fires.begin[u * n_thresholds + i] = fires.begin[u * n_thresholds];
        fires.begin[(u + 1) * n_thresholds] = fires.token.size();
    }
    return fires;
}

Beyond beyond_text(const HeldOut& units, const Selection& chosen, size_t t, const HeldOut& text,
                   const Selection& rules, const FunctionColumns& f) {
    std::vector<size_t> better;
    for (size_t c = f.first; c < f.last; c++)
        if (chosen.f1[t * chosen.width + c] > rules.f1[c]) better.push_back(c - f.first);
    const auto part = [&](const HeldOut& all) {
        HeldOut out;
        out.games = all.games;
        out.columns = better.size();
        for (size_t g = 0; g < all.games; g++)
            for (const size_t c : better) {
                out.tp.push_back(all.tp[g * all.columns + c]);
                out.on.push_back(all.on[g * all.columns + c]);
                out.positives.push_back(all.positives[g * all.columns + c]);
            }
        return out;
    };
    return {part(units), part(text)};
}
