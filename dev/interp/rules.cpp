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

std::vector<uint8_t> Rule::answers(const Labels& questions) const {
    Labels own = empty_labels(1, questions.tokens);
    add_rule(*this, questions, own, 0);
    return answers_of(own, 0);
}

Labels rule_labels(const std::vector<Rule>& rules, const Labels& questions) {
    Labels out = empty_labels(rules.size(), questions.tokens);
    for (size_t i = 0; i < rules.size(); i++) add_rule(rules[i], questions, out, i);
    return out;
}

// Counting. The lists here are long, up to most of the places, so that questions are kept by place, 512 in a
// row of bits, and the rows of a list are added up bit by bit: plane k holds bit k of 512 sums, and seven
// full adders take in eight rows. (labels.h adds bytes, which is better for the short lists of a unit's
// levels.)

constexpr size_t row_bits = 512;
using Bits = uint64_t __attribute__((vector_size(row_bits / 8), may_alias)); // on any machine
struct alignas(row_bits / 8) BitRow {
    uint64_t word[row_bits / 64];
};
struct QuestionRows {
    size_t n = 0, Q = 0;      // places, questions
    std::vector<uint32_t> on; // (Q) places where each holds
    std::vector<BitRow> rows; // (tiles,n)

    size_t tiles() const { return (Q + row_bits - 1) / row_bits; }
};

static QuestionRows question_rows(const Labels& questions) {
    QuestionRows out;
    out.n = questions.tokens, out.Q = questions.cells(), out.on.resize(out.Q);
    out.rows.assign(out.tiles() * out.n, BitRow{});
#pragma omp parallel for schedule(dynamic, 1)
    for (size_t tile = 0; tile < out.tiles(); tile++)
        for (size_t q = tile * row_bits; q < std::min(out.Q, (tile + 1) * row_bits); q++) {
            out.on[q] = uint32_t(questions.positives(q));
            each_place(questions, q, [&](size_t at) {
                out.rows[tile * out.n + at].word[q % row_bits / 64] |= uint64_t(1) << q % 64;
            });
        }
    return out;
}

// sum + a + b = sum + 2 carry, of every bit
static inline void full_add(Bits& sum, const Bits& a, const Bits& b, Bits& carry) {
    const Bits half = sum ^ a;
    carry = (sum & a) | (half & b);
    sum = half ^ b;
}

// sums (512): at how many places of the list each question of a tile holds.
static void count_list(const BitRow* rows, const std::vector<uint32_t>& list, uint32_t* sums) {
    const size_t n_planes = size_t(std::bit_width(list.size()));
    Bits plane[32] = {}, carry, twos[2], fours[2];
    const auto row = [&](size_t i) -> const Bits& { return *(const Bits*)rows[list[i]].word; };
    const auto add_carry = [&](size_t k) {
        for (; k < n_planes; k++) {
            const Bits next = plane[k] & carry;
            plane[k] ^= carry;
            carry = next;
        }
    };
    size_t i = 0;
    for (; i + 8 <= list.size(); i += 8) {
        for (const size_t half : {0, 1}) {
            full_add(plane[0], row(i + 4 * half), row(i + 4 * half + 1), twos[0]);
            full_add(plane[0], row(i + 4 * half + 2), row(i + 4 * half + 3), twos[1]);
            full_add(plane[1], twos[0], twos[1], fours[half]);
        }
        full_add(plane[2], fours[0], fours[1], carry);
        add_carry(3);
    }
    for (; i < list.size(); i++) {
        carry = row(i);
        add_carry(0);
    }
    std::fill(sums, sums + row_bits, 0);
    for (size_t k = 0; k < n_planes; k++)
        for (size_t at = 0; at < row_bits; at += 32) {
            const uint32_t bits = uint32_t(plane[k][at / 64] >> at % 64);
            for (size_t b = 0; b < 32; b++) sums[at + b] += (bits >> b & 1) << k;
        }
}

// (lists,Q): at how many places of a list every question holds.
static std::vector<uint32_t> count_lists(const QuestionRows& q,
                                         const std::vector<std::vector<uint32_t>>& lists) {
    std::vector<uint32_t> sums(lists.size() * q.Q);
    for (size_t tile = 0; tile < q.tiles(); tile++) { // one after the other, as a tile may stay in cache
        const size_t first = tile * row_bits;
#pragma omp parallel for schedule(dynamic, 16)
        for (size_t i = 0; i < lists.size(); i++) {
            uint32_t sum[row_bits];
            count_list(&q.rows[tile * q.n], lists[i], sum);
            std::copy(sum, sum + std::min(row_bits, q.Q - first), &sums[i * q.Q + first]);
        }
    }
    return sums;
}

// For a block of targets, so that the counts of each with every question need no more than some 100 MB.
static std::vector<Rule> best_rules_of_block(const Labels& questions, const QuestionRows& rows,
                                             const std::vector<std::vector<uint32_t>>& targets,
                                             double (*score)(const Counts&),
                                             const std::vector<std::vector<uint32_t>>& natural) {
    constexpr size_t n_first = 3; // the two best questions, the best natural one
    const size_t n = rows.n, Q = rows.Q, n_targets = targets.size();
    const std::vector<uint32_t>& on = rows.on;
    std::vector<Rule> rules(n_targets);
    if (n_targets == 0) return rules;
    std::vector<double> charged(n_targets);                      // of the best rule so far
    const std::vector<uint32_t> tp = count_lists(rows, targets); // of every target and question

    // Single questions, as they are or negated.
    std::vector<uint32_t> best(n_targets * n_first, UINT32_MAX);
#pragma omp parallel for schedule(dynamic, 16)
    for (size_t i = 0; i < n_targets; i++) {
        const double N = double(n), T = double(targets[i].size());
        const auto single = [&](uint32_t q, double charge) {
            const double a = on[q], at = tp[i * Q + q];
            const double yes = score({N, a, T, at}), no = score({N, N - a, T, T - at});
            const double higher = std::max(yes, no), rest = higher - charge;
            if (higher > 0 && (!rules[i].any() || rest > charged[i])) {
                rules[i] = {q, q, uint8_t(yes >= no ? 8 : 1), higher};
                charged[i] = rest;
            }
            return higher;
        };
        double top[2] = {}, top_natural = 0;
        const double charge = rule_charge(2 * Q, N, T);
        for (uint32_t q = 0; q < Q; q++) {
            const double higher = single(q, charge);
            const size_t k = higher > top[0] ? 0 : 1;
            if (!(higher > top[k])) continue;
            if (k == 0) {
                top[1] = top[0];
                best[i * n_first + 1] = best[i * n_first];
            }
            top[k] = higher;
            best[i * n_first + k] = q;
        }
        for (size_t k = 0; !natural.empty() && k < natural[i].size(); k++)
            if (const double higher = single(natural[i][k], rule_charge(2 * (k + 1), N, T));
                higher > top_natural) {
                top_natural = higher;
                best[i * n_first + 2] = natural[i][k];
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
    const std::vector<uint32_t> both = count_lists(rows, places), both_target = count_lists(rows, within);
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
    const QuestionRows rows = question_rows(questions);
    std::vector<Rule> rules;
    for (size_t first = 0; first < targets.size(); first += block) {
        const auto begin = std::ptrdiff_t(first),
                   end = std::ptrdiff_t(std::min(targets.size(), first + block));
        const std::vector<std::vector<uint32_t>> some(targets.begin() + begin, targets.begin() + end);
        std::vector<std::vector<uint32_t>> near;
        if (!natural.empty()) near.assign(natural.begin() + begin, natural.begin() + end);
        const std::vector<Rule> of_block = best_rules_of_block(questions, rows, some, score, near);
        rules.insert(rules.end(), of_block.begin(), of_block.end());
    }
    return rules;
}

std::vector<uint32_t> places_where(const Labels& labels, size_t cell) {
    std::vector<uint32_t> list;
    each_place(labels, cell, [&](size_t n) { list.push_back(uint32_t(n)); });
    return list;
}
