// The best rules about the text: see rules.h.
#include "rules.h"

std::string rule_text(const Rule& r, const std::vector<Property>& questions) {
    if (!r.any()) return "nothing";
    const auto words = [&](uint32_t q, bool holds) { return questions[q].words[!holds]; };
    if (r.single()) return words(r.a, r.yes >> 3 & 1);
    const bool is_or = std::popcount(r.yes) == 3;
    const int cell =
        std::countr_zero(unsigned(is_or ? uint8_t(~r.yes & 15) : r.yes)); // the one that is alone
    const bool a = (cell >> 1 & 1) != is_or, b = (cell & 1) != is_or;
    return words(r.a, a) + (is_or ? " or " : " and ") + words(r.b, b);
}

void add_rule(const Rule& r, const Labels& questions, Labels& out, size_t row) {
    if (!r.any()) return;
    uint64_t* to = out.bits.data() + row * out.words;
    const uint64_t *a = questions.cell(r.a), *b = questions.cell(r.b);
    for (size_t w = 0; w < out.words; w++) {
        if (r.yes & 1) to[w] |= ~a[w] & ~b[w];
        if (r.yes & 2) to[w] |= ~a[w] & b[w];
        if (r.yes & 4) to[w] |= a[w] & ~b[w];
        if (r.yes & 8) to[w] |= a[w] & b[w];
    }
    if (out.tokens % 64) to[out.words - 1] &= (uint64_t(1) << out.tokens % 64) - 1;
}

Labels rule_labels(const std::vector<Rule>& rules, const Labels& questions) {
    Labels out = empty_labels(rules.size(), questions.tokens);
    for (size_t i = 0; i < rules.size(); i++) add_rule(rules[i], questions, out, i);
    return out;
}

std::vector<Rule> best_rules(const Labels& questions, const std::vector<uint32_t>& kept,
                             const std::vector<std::vector<uint32_t>>& targets,
                             double (*score)(const Counts&)) {
    constexpr size_t n_first = 2;
    const size_t n = questions.tokens, Q = kept.size(), n_targets = targets.size();
    std::vector<Rule> rules(n_targets);
    if (n_targets == 0) return rules;
    std::vector<uint32_t> on(Q), tp(n_targets * Q); // of every question, of every target and question
    for (size_t q = 0; q < Q; q++) on[q] = uint32_t(questions.positives(kept[q]));

    // sums (lists,Q): at how many places of a list every question holds.
    const auto count = [&](const std::vector<const std::vector<uint32_t>*>& lists,
                           std::vector<uint32_t>& sums) {
        std::vector<TileRow> rows(n);
        for (size_t first = 0; first < Q; first += tile_cells) {
            const size_t columns = std::min(tile_cells, Q - first);
            std::fill(rows.begin(), rows.end(), TileRow{});
            fill_tile(questions, &kept[first], columns, rows.data());
#pragma omp parallel for schedule(dynamic, 16)
            for (size_t i = 0; i < lists.size(); i++) {
                uint32_t sum[tile_cells] = {};
                add_rows(rows.data(), lists[i]->data(), lists[i]->data() + lists[i]->size(), nullptr, sum);
                std::copy(sum, sum + columns, &sums[i * Q + first]);
            }
        }
    };
    std::vector<const std::vector<uint32_t>*> lists;
    for (const auto& target : targets) lists.push_back(&target);
    count(lists, tp);

    // Single questions, as they are or negated.
    std::vector<uint32_t> best(n_targets * n_first, UINT32_MAX);
#pragma omp parallel for schedule(dynamic, 16)
    for (size_t i = 0; i < n_targets; i++) {
        double top[n_first] = {};
        for (uint32_t q = 0; q < Q; q++) {
            const double N = double(n), T = double(targets[i].size()), a = on[q], at = tp[i * Q + q];
            const double yes = score({N, a, T, at}), no = score({N, N - a, T, T - at});
            const double higher = std::max(yes, no);
            if (higher > rules[i].score) rules[i] = {kept[q], kept[q], uint8_t(yes >= no ? 8 : 1), higher};
            for (size_t k = 0; k < n_first; k++)
                if (higher > top[k]) {
                    for (size_t j = n_first; --j > k;) {
                        top[j] = top[j - 1];
                        best[i * n_first + j] = best[i * n_first + j - 1];
                    }
                    top[k] = higher;
                    best[i * n_first + k] = q;
                    break;
                }
        }
    }

    // Pairs. both (firsts,Q): places where two questions hold; both_target (targets*2,Q): .. of a target.
    std::vector<uint32_t> firsts = best;
    std::sort(firsts.begin(), firsts.end());
    firsts.erase(std::unique(firsts.begin(), firsts.end()), firsts.end());
    if (!firsts.empty() && firsts.back() == UINT32_MAX) firsts.pop_back();
    std::vector<std::vector<uint32_t>> places(firsts.size()), within(n_targets * n_first);
    for (size_t i = 0; i < firsts.size(); i++)
        each_place(questions, kept[firsts[i]], [&](size_t at) { places[i].push_back(uint32_t(at)); });
#pragma omp parallel for schedule(dynamic, 16)
    for (size_t i = 0; i < within.size(); i++)
        if (best[i] != UINT32_MAX)
            for (const uint32_t at : targets[i / n_first])
                if (questions.at(kept[best[i]], at)) within[i].push_back(at);
    std::vector<uint32_t> both(firsts.size() * Q), both_target(within.size() * Q);
    lists.clear();
    for (const auto& list : places) lists.push_back(&list);
    count(lists, both);
    lists.clear();
    for (const auto& list : within) lists.push_back(&list);
    count(lists, both_target);
#pragma omp parallel for schedule(dynamic, 16)
    for (size_t i = 0; i < n_targets; i++)
        for (size_t k = 0; k < n_first; k++) {
            const uint32_t first = best[i * n_first + k];
            if (first == UINT32_MAX) continue;
            const size_t row = size_t(std::lower_bound(firsts.begin(), firsts.end(), first) - firsts.begin());
            const double N = double(n), T = double(targets[i].size()), a = on[first], at = tp[i * Q + first];
            for (uint32_t q = 0; q < Q; q++) {
                const double b = on[q], bt = tp[i * Q + q], ab = both[row * Q + q],
                             abt = both_target[(i * n_first + k) * Q + q];
                const double cells[4] = {N - a - b + ab, b - ab, a - ab, ab};
                const double cells_true[4] = {T - at - bt + abt, bt - abt, at - abt, abt};
                for (unsigned cell = 0; cell < 4; cell++) {
                    const double one = score({N, cells[cell], T, cells_true[cell]});
                    const double three = score({N, N - cells[cell], T, T - cells_true[cell]});
                    const double higher = std::max(one, three);
                    if (higher > rules[i].score + 1e-9)
                        rules[i] = {kept[first], kept[q],
                                    uint8_t(one >= three ? 1u << cell : 15u & ~(1u << cell)), higher};
                }
            }
        }
    return rules;
}

std::vector<uint32_t> places_where(const Labels& labels, size_t cell) {
    std::vector<uint32_t> list;
    each_place(labels, cell, [&](size_t n) { list.push_back(uint32_t(n)); });
    return list;
}
