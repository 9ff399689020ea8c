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

// For a block of targets, so that the counts of each with every question need no more than some 100 MB.
static std::vector<Rule> best_rules_of_block(const Labels& questions,
                                             const std::vector<std::vector<uint32_t>>& targets,
                                             double (*score)(const Counts&),
                                             const std::vector<std::vector<uint32_t>>& natural) {
    constexpr size_t n_first = 3; // the two best questions, the best natural one
    const size_t n = questions.tokens, Q = questions.cells(), n_targets = targets.size();
    std::vector<Rule> rules(n_targets);
    if (n_targets == 0) return rules;
    std::vector<uint32_t> all(Q), on(Q);     // on: places of every question
    std::vector<uint32_t> tp(n_targets * Q); // of every target and question
    std::iota(all.begin(), all.end(), 0);
    for (size_t q = 0; q < Q; q++) on[q] = uint32_t(questions.positives(q));
    std::vector<double> charged(n_targets); // of the best rule so far

    // sums (lists,Q): at how many places of a list every question holds.
    const auto count = [&](const std::vector<const std::vector<uint32_t>*>& lists,
                           std::vector<uint32_t>& sums) {
        std::vector<TileRow> rows(n);
        for (size_t first = 0; first < Q; first += tile_cells) {
            const size_t columns = std::min(tile_cells, Q - first);
            std::fill(rows.begin(), rows.end(), TileRow{});
            fill_tile(questions, &all[first], columns, rows.data());
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
        const double N = double(n), T = double(targets[i].size());
        const auto single = [&](uint32_t q, size_t picked_from) {
            const double a = on[q], at = tp[i * Q + q];
            const double yes = score({N, a, T, at}), no = score({N, N - a, T, T - at});
            const double higher = std::max(yes, no), rest = higher - rule_charge(picked_from, N, T);
            if (higher > 0 && (!rules[i].any() || rest > charged[i])) {
                rules[i] = {q, q, uint8_t(yes >= no ? 8 : 1), higher};
                charged[i] = rest;
            }
            return higher;
        };
        double top[2] = {}, top_natural = 0;
        for (uint32_t q = 0; q < Q; q++) {
            const double higher = single(q, 2 * Q);
            const size_t k = higher > top[0] ? 0 : 1;
            if (!(higher > top[k])) continue;
            if (k == 0) {
                top[1] = top[0];
                best[i * n_first + 1] = best[i * n_first];
            }
            top[k] = higher;
            best[i * n_first + k] = q;
        }
        if (!natural.empty())
            for (const uint32_t q : natural[i])
                if (const double higher = single(q, 2 * natural[i].size()); higher > top_natural) {
                    top_natural = higher;
                    best[i * n_first + 2] = q;
                }
    }

    // Pairs. both (firsts,Q): places where two questions hold; both_target (targets*3,Q): .. of a target.
    std::vector<uint32_t> firsts = best;
    std::sort(firsts.begin(), firsts.end());
    firsts.erase(std::unique(firsts.begin(), firsts.end()), firsts.end());
    if (!firsts.empty() && firsts.back() == UINT32_MAX) firsts.pop_back();
    std::vector<std::vector<uint32_t>> places(firsts.size()), within(n_targets * n_first);
    for (size_t i = 0; i < firsts.size(); i++)
        each_place(questions, firsts[i], [&](size_t at) { places[i].push_back(uint32_t(at)); });
#pragma omp parallel for schedule(dynamic, 16)
    for (size_t i = 0; i < within.size(); i++)
        if (best[i] != UINT32_MAX)
            for (const uint32_t at : targets[i / n_first])
                if (questions.at(best[i], at)) within[i].push_back(at);
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
            const double charge = rule_charge(n_first * 8 * Q, N, T);
            for (uint32_t q = 0; q < Q; q++) {
                const double b = on[q], bt = tp[i * Q + q], ab = both[row * Q + q],
                             abt = both_target[(i * n_first + k) * Q + q];
                const double cells[4] = {N - a - b + ab, b - ab, a - ab, ab};
                const double cells_true[4] = {T - at - bt + abt, bt - abt, at - abt, abt};
                for (unsigned cell = 0; cell < 4; cell++) {
                    const double one = score({N, cells[cell], T, cells_true[cell]});
                    const double three = score({N, N - cells[cell], T, T - cells_true[cell]});
                    const double higher = std::max(one, three), rest = higher - charge;
                    if (rest > charged[i] + 1e-9) {
                        rules[i] = {first, q, uint8_t(one >= three ? 1u << cell : 15u & ~(1u << cell)),
                                    higher};
                        charged[i] = rest;
                    }
                }
            }
        }
    return rules;
}

std::vector<Rule> best_rules(const Labels& questions, const std::vector<std::vector<uint32_t>>& targets,
                             double (*score)(const Counts&),
                             const std::vector<std::vector<uint32_t>>& natural) {
    constexpr size_t block = 1024;
    std::vector<Rule> rules;
    for (size_t first = 0; first < targets.size(); first += block) {
        const auto begin = std::ptrdiff_t(first),
                   end = std::ptrdiff_t(std::min(targets.size(), first + block));
        const std::vector<std::vector<uint32_t>> some(targets.begin() + begin, targets.begin() + end);
        std::vector<std::vector<uint32_t>> near;
        if (!natural.empty()) near.assign(natural.begin() + begin, natural.begin() + end);
        const std::vector<Rule> of_block = best_rules_of_block(questions, some, score, near);
        rules.insert(rules.end(), of_block.begin(), of_block.end());
    }
    return rules;
}

std::vector<uint32_t> places_where(const Labels& labels, size_t cell) {
    std::vector<uint32_t> list;
    each_place(labels, cell, [&](size_t n) { list.push_back(uint32_t(n)); });
    return list;
}
