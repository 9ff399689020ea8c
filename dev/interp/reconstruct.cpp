// Reconstruction: what units that are sure predict together (score.h).
#include "score.h"

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

// What a unit predicts at each level under the max mask, (labelled,11,words): at level t + 1.
static std::vector<uint64_t> highest_labels(const Selection& said,
                                            const std::vector<FunctionColumns>& functions) {
    const size_t words = said.words();
    std::vector<uint64_t> highest(said.labels.size());
    for (size_t i = 0; i < said.labelled.size(); i++)
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
    return highest;
}

constexpr size_t n_prediction_rows = n_thresholds + 1;

// The cells that units predict at the tokens [begin, end).
struct PredictedBlock {
    size_t begin = 0, end = 0, words;
    std::vector<uint64_t> bits; // (12,tokens,words)

    uint64_t* row(size_t row, size_t n) { return &bits[(row * (end - begin) + n - begin) * words]; }

    void predict(const UnitFires& fires, const Selection& said, const std::vector<uint64_t>& highest,
                 const std::vector<std::vector<uint32_t>>& words_of) {
        bits.assign(n_prediction_rows * (end - begin) * words, 0);
        for (size_t i = 0; i < said.labelled.size(); i++) {
            const auto add = [&](uint64_t* to, const uint64_t* cells) {
                for (const uint32_t w : words_of[i]) to[w] |= cells[w];
            };
            const uint32_t* from = fires.first(said.labelled[i]);
            for (size_t level = n_thresholds; level > 0; level--) {
                const uint32_t* to = fires.last(said.labelled[i], level - 1);
                for (const uint32_t* n = std::lower_bound(from, to, begin); n < to && *n < end; n++) {
                    for (size_t t = 0; t < level; t++) add(row(t, *n), said.row(i, t));
                    add(row(max_mask, *n), &highest[(i * n_thresholds + level - 1) * words]);
                }
                from = to;
            }
        }
    }
};

// Adds what is predicted of a function at one token. said: what the text says there, or null.
static void count_predictions(Predictions& counts, const uint64_t* predicted, const uint64_t* is,
                              const uint64_t* said, const FunctionColumns& f) {
    const size_t w0 = f.first / 64;
    uint32_t tp = 0, fp = 0;
    for (size_t w = 0; w < f.mask.size(); w++) {
        const uint64_t cells = predicted[w0 + w] & f.mask[w];
        const uint64_t open = said ? cells & ~said[w0 + w] : cells;
        counts.tp_open += uint32_t(std::popcount(open & is[w0 + w]));
        counts.fp_open += uint32_t(std::popcount(open & ~is[w0 + w]));
        tp += uint32_t(std::popcount(cells & is[w0 + w]));
        fp += uint32_t(std::popcount(cells & ~is[w0 + w]));
    }
    counts.tp += tp;
    counts.fp += fp;
    if (tp == 0 || fp == 0) return;
    for (size_t s = 0; s + 1 < f.square.size(); s++) {
        const size_t c = f.square[s], c_end = f.square[s + 1];
        if (c == c_end) continue;
        const uint64_t cells = bits_between(predicted, c, c_end);
        counts.both += std::popcount(cells & bits_between(is, c, c_end)) == 1 && std::popcount(cells) == 2;
    }
}

Reconstruction reconstruct(const UnitFires& fires, const Selection& said, const TruthRows& truth,
                           const std::vector<FunctionColumns>& functions, const Order* order) {
    constexpr size_t block = 16; // games
    const size_t n_blocks = (truth.games + block - 1) / block;
    const std::vector<std::vector<uint32_t>> words_of = words_said(said);
    const std::vector<uint64_t> highest = highest_labels(said, functions);
    Reconstruction out;
    out.functions = functions.size();
    out.games = truth.games;
    out.counts.resize(n_prediction_rows * out.functions * out.games);
    Items blocks(n_blocks);
    parallel_parts(std::min(thread_count(), std::max<size_t>(1, n_blocks)), [&](size_t) {
        PredictedBlock predicted{0, 0, truth.words, {}};
        for (size_t b; blocks.take(&b);) {
            predicted.begin = b * block * truth.dots;
            predicted.end = std::min(truth.tokens(), predicted.begin + block * truth.dots);
            predicted.predict(fires, said, highest, words_of);
            for (size_t row = 0; row < n_prediction_rows; row++)
                for (size_t n = predicted.begin; n < predicted.end; n++) {
                    const size_t at = order ? (*order)[n] : n;
                    const uint64_t* said_here = truth.said.empty() ? nullptr : &truth.said[at * truth.words];
                    for (size_t f = 0; f < functions.size(); f++)
                        count_predictions(out.counts[(row * out.functions + f) * out.games + n / truth.dots],
                                          predicted.row(row, n), truth.row(at), said_here, functions[f]);
                }
        }
    });
    return out;
}

double class_f1(const Reconstruction& r, const TruthRows& truth, size_t row, size_t f,
                const std::vector<uint32_t>* times, bool per_square) {
    uint64_t tp = 0, fp = 0, both = 0, positives = 0;
    for (size_t g = 0; g < r.games; g++) {
        const uint64_t n = times ? (*times)[g] : 1;
        const Predictions& p = r.at(row, f, g);
        tp += n * p.tp;
        fp += n * p.fp;
        both += n * p.both;
        positives += n * truth.positives[f * r.games + g];
    }
    const uint64_t right = per_square ? tp - both : tp, missed = positives - tp;
    return double(f1_score(float(right), float(right + fp), float(right + missed)));
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
