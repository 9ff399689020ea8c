// Coverage and reconstruction: see score.h.
#include "score.h"

Selection select_units(const UnitFires& fires, const LabelRows& labels, const Order* order) {
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

Coverage coverage(const Selection& best, const FunctionColumns& f) {
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

double always_on_floor(const LabelRows& labels, const FunctionColumns& f) {
    double sum = 0;
    for (size_t c = f.first; c < f.last; c++)
        sum += double(f1_score(float(labels.positives[c]), float(labels.tokens), float(labels.positives[c])));
    return sum / f.cells();
}

TruthRows truth_rows(const Labels& labels, size_t dots, const LabelRows& columns,
                     const std::vector<FunctionColumns>& functions) {
    TruthRows truth;
    truth.games = labels.tokens / dots, truth.dots = dots, truth.words = columns.tiles * tile_cells / 64;
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

// By labelled unit the words of a row in which it says anything, at whatever threshold: a few of them.
static std::vector<std::vector<uint32_t>> words_said(const Selection& said) {
    std::vector<std::vector<uint32_t>> list(said.labelled.size());
    for (size_t i = 0; i < list.size(); i++)
        for (uint32_t w = 0; w < said.words(); w++) {
            uint64_t any = 0;
            for (size_t t = 0; t < n_thresholds; t++) any |= said.row(i, t)[w];
            if (any) list[i].push_back(w);
        }
    return list;
}

Reconstruction reconstruct(const UnitFires& fires, const Selection& said, const TruthRows& truth,
                           const std::vector<FunctionColumns>& functions, const Order* order) {
    constexpr size_t n_rows = n_thresholds + 1, block = 16; // games
    const size_t words = truth.words, n_labelled = said.labelled.size();
    Reconstruction out;
    out.functions = functions.size(), out.games = truth.games;
    out.counts.resize(n_rows * out.functions * out.games);

    const std::vector<std::vector<uint32_t>> words_of = words_said(said);

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
            const auto predict = [&](size_t row, size_t n, size_t i, const uint64_t* cells) {
                uint64_t* to = &predicted[(row * block * truth.dots + n - begin) * words];
                for (const uint32_t w : words_of[i]) to[w] |= cells[w];
            };
            for (size_t i = 0; i < n_labelled; i++) {
                const uint32_t* from = fires.first(said.labelled[i]);
                for (size_t level = n_thresholds; level > 0; level--) {
                    const uint32_t* to = fires.last(said.labelled[i], level - 1);
                    for (const uint32_t* n = std::lower_bound(from, to, begin); n < to && *n < end; n++) {
                        for (size_t t = 0; t < level; t++) predict(t, *n, i, said.row(i, t));
                        predict(max_mask, *n, i, &highest[(i * n_thresholds + level - 1) * words]);
                    }
                    from = to;
                }
            }
            for (size_t row = 0; row < n_rows; row++)
                for (size_t n = begin; n < end; n++) {
                    const uint64_t *p = &predicted[(row * block * truth.dots + n - begin) * words],
                                   *is = truth.row(order ? (*order)[n] : n),
                                   *said = truth.said.empty()
                                               ? nullptr
                                               : &truth.said[(order ? (*order)[n] : n) * words];
                    for (size_t f = 0; f < functions.size(); f++) {
                        const FunctionColumns& columns = functions[f];
                        const size_t w0 = columns.first / 64;
                        uint32_t tp = 0, fp = 0, both = 0, tp_open = 0, fp_open = 0;
                        for (size_t w = 0; w < columns.mask.size(); w++) {
                            const uint64_t cells = p[w0 + w] & columns.mask[w];
                            const uint64_t open = said ? cells & ~said[w0 + w] : cells;
                            tp_open += uint32_t(std::popcount(open & is[w0 + w]));
                            fp_open += uint32_t(std::popcount(open & ~is[w0 + w]));
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
                        counts.tp_open += tp_open, counts.fp_open += fp_open;
                    }
                }
        }
    }
    return out;
}

double class_f1(const Reconstruction& r, const TruthRows& truth, size_t row, size_t f,
                const std::vector<uint32_t>* times, bool per_square) {
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
    out.games = truth.games, out.columns = f.last - f.first;
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
            out.on[i]++, out.tp[i] += uint8_t(holds(*n, c));
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
#pragma omp parallel
    {
        std::vector<uint32_t> positives(strata.count);
#pragma omp for schedule(dynamic, 8)
        for (size_t c = f.first; c < f.last; c++) {
            if (best.f1[t * best.width + c] == 0) continue; // no unit
            std::fill(positives.begin(), positives.end(), 0);
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
            f1[c - f.first] = double(f1_score(float(expected), float(fires.on(unit, t)), float(all)));
        }
    }
    return std::accumulate(f1.begin(), f1.end(), 0.0) / f.cells();
}

UnitFires rule_fires(const Labels& rules) {
    UnitFires fires;
    fires.units = rules.cells(), fires.tokens = rules.tokens;
    fires.begin.assign(fires.units * n_thresholds + 1, 0);
    for (size_t u = 0; u < fires.units; u++) {
        each_place(rules, u, [&](size_t n) { fires.token.push_back(uint32_t(n)); });
        for (size_t i = 1; i < n_thresholds; i++) // on above none but the lowest
            fires.begin[u * n_thresholds + i] = fires.begin[u * n_thresholds];
        fires.begin[(u + 1) * n_thresholds] = fires.token.size();
    }
    return fires;
}

std::vector<uint64_t> said_cells(const UnitFires& fires, const Selection& said, size_t words) {
    std::vector<uint64_t> bits(fires.tokens * words);
    const std::vector<std::vector<uint32_t>> words_of = words_said(said);
    for (size_t i = 0; i < said.labelled.size(); i++)
        for (const uint32_t* n = fires.first(said.labelled[i]); n < fires.last(said.labelled[i], 0); n++)
            for (const uint32_t w : words_of[i]) bits[*n * words + w] |= said.row(i, 0)[w];
    return bits;
}

double said_f1(const TruthRows& truth, const std::vector<FunctionColumns>& functions, size_t f) {
    const FunctionColumns& columns = functions[f];
    uint64_t tp = 0, on = 0, all = 0;
    for (size_t n = 0; n < truth.tokens(); n++)
        for (size_t w = 0; w < columns.mask.size(); w++) {
            const size_t at = n * truth.words + columns.first / 64 + w;
            const uint64_t cells = truth.said[at] & columns.mask[w];
            tp += uint64_t(std::popcount(cells & truth.bits[at]));
            on += uint64_t(std::popcount(cells));
        }
    for (size_t g = 0; g < truth.games; g++) all += truth.positives[f * truth.games + g];
    return double(f1_score(float(tp), float(on), float(all)));
}

Beyond beyond_text(const HeldOut& units, const Selection& chosen, size_t t, const HeldOut& text,
                   const Selection& rules, const FunctionColumns& f) {
    std::vector<size_t> better;
    for (size_t c = f.first; c < f.last; c++)
        if (chosen.f1[t * chosen.width + c] > rules.f1[c]) better.push_back(c - f.first);
    const auto part = [&](const HeldOut& all) {
        HeldOut out;
        out.games = all.games, out.columns = better.size();
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

double open_f1(const Reconstruction& r, const std::vector<uint32_t>& positives, size_t row, size_t f,
               const std::vector<uint32_t>* times) {
    uint64_t tp = 0, fp = 0, all = 0;
    for (size_t g = 0; g < r.games; g++) {
        const uint64_t n = times ? (*times)[g] : 1;
        const Predictions& p = r.at(row, f, g);
        tp += n * p.tp_open;
        fp += n * p.fp_open;
        all += n * positives[f * r.games + g];
    }
    return double(f1_score(float(tp), float(tp + fp), float(all)));
}

size_t best_open_threshold(const Reconstruction& r, const std::vector<uint32_t>& positives, size_t f) {
    size_t best = 0;
    double highest = 0;
    for (size_t t = 0; t + 1 < n_thresholds; t++)
        if (const double f1 = open_f1(r, positives, t, f); f1 > highest) {
            highest = f1;
            best = t;
        }
    return best;
}
