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
    out.n = questions.tokens;
    out.Q = questions.cells();
    out.on.resize(out.Q);
    out.rows.assign(out.tiles() * out.n, BitRow{});
    parallel_items(out.tiles(), [&](size_t tile) {
        for (size_t q = tile * row_bits; q < std::min(out.Q, (tile + 1) * row_bits); q++) {
            out.on[q] = uint32_t(questions.positives(q));
            each_place(questions, q, [&](size_t at) {
                out.rows[tile * out.n + at].word[q % row_bits / 64] |= uint64_t(1) << q % 64;
            });
        }
    });
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
        parallel_items(lists.size(), [&](size_t i) {
            uint32_t sum[row_bits];
            count_list(&q.rows[tile * q.n], lists[i], sum);
            std::copy(sum, sum + std::min(row_bits, q.Q - first), &sums[i * q.Q + first]);
        });
    }
    return sums;
}

// The search for some targets at a time, so that the counts of each with every question need no more than
// some 100 MB.
struct RuleSearch {
    using Lists = std::vector<std::vector<uint32_t>>;
    const Labels& questions;
    const QuestionRows& rows;
    const Lists &targets, &natural;
    double (*score)(const Counts&);

    static constexpr size_t n_first = 3; // of every target: the two best questions, the best natural one
    std::vector<Rule> rules = std::vector<Rule>(targets.size());
    std::vector<double> charged = std::vector<double>(targets.size()); // what the best rule has so far
    std::vector<uint32_t> first = std::vector<uint32_t>(targets.size() * n_first, UINT32_MAX);
    std::vector<uint32_t> tp = count_lists(rows, targets); // (targets,Q)

    double places() const { return double(rows.n); }
    double positives(size_t i) const { return double(targets[i].size()); }

    void offer(size_t i, const Rule& r, double charge, double least_gain) {
        const double rest = r.score - charge;
        if (!(r.score > 0) || (rules[i].any() && !(rest > charged[i] + least_gain))) return;
        rules[i] = r;
        charged[i] = rest;
    }

    // A single question, as it is or negated; the higher score.
    double single(size_t i, uint32_t q, double charge) {
        const double N = places(), T = positives(i), a = rows.on[q], at = tp[i * rows.Q + q];
        const double yes = score({N, a, T, at}), no = score({N, N - a, T, T - at});
        const double higher = std::max(yes, no);
        offer(i, {q, q, uint8_t(yes >= no ? 8 : 1), higher}, charge, 0);
        return higher;
    }

    void singles(size_t i) {
        double top[2] = {}, top_natural = 0;
        uint32_t* best = &first[i * n_first];
        const double N = places(), T = positives(i), charge = rule_charge(2 * rows.Q, N, T);
        for (uint32_t q = 0; q < rows.Q; q++) {
            const double higher = single(i, q, charge);
            const size_t k = higher > top[0] ? 0 : 1;
            if (!(higher > top[k])) continue;
            if (k == 0) {
                top[1] = top[0];
                best[1] = best[0];
            }
            top[k] = higher;
            best[k] = q;
        }
        for (size_t k = 0; !natural.empty() && k < natural[i].size(); k++) {
            const double higher = single(i, natural[i][k], rule_charge(2 * (k + 1), N, T));
            if (!(higher > top_natural)) continue;
            top_natural = higher;
            best[2] = natural[i][k];
        }
    }

    // Every partner of the k-th of a target's first questions. both (Q): places where the two hold;
    // both_target (Q): .. of the target.
    void pairs(size_t i, size_t k, const uint32_t* both, const uint32_t* both_target) {
        const uint32_t q1 = first[i * n_first + k];
        const size_t Q = rows.Q;
        const double N = places(), T = positives(i), a = rows.on[q1], at = tp[i * Q + q1];
        const double charge = rule_charge(n_first * 8 * Q, N, T);
        for (uint32_t q = 0; q < Q; q++) {
            const double b = rows.on[q], bt = tp[i * Q + q], ab = both[q], abt = both_target[q];
            const double cells[4] = {N - a - b + ab, b - ab, a - ab, ab};
            const double cells_true[4] = {T - at - bt + abt, bt - abt, at - abt, abt};
            for (unsigned cell = 0; cell < 4; cell++) {
                const double one = score({N, cells[cell], T, cells_true[cell]});
                const double three = score({N, N - cells[cell], T, T - cells_true[cell]});
                const uint8_t yes = uint8_t(one >= three ? 1u << cell : 15u & ~(1u << cell));
                offer(i, {q1, q, yes, std::max(one, three)}, charge, 1e-9);
            }
        }
    }

    void all_pairs() {
        std::vector<uint32_t> known = first; // each once
        std::sort(known.begin(), known.end());
        known.erase(std::unique(known.begin(), known.end()), known.end());
        if (!known.empty() && known.back() == UINT32_MAX) known.pop_back();
        Lists where, within(first.size()); // where each of them holds; .. of its target
        for (const uint32_t q : known) where.push_back(places_where(questions, q));
        parallel_items(within.size(), [&](size_t i) {
            if (first[i] == UINT32_MAX) return;
            for (const uint32_t n : targets[i / n_first])
                if (questions.at(first[i], n)) within[i].push_back(n);
        });
        const std::vector<uint32_t> both = count_lists(rows, where), both_target = count_lists(rows, within);
        parallel_items(targets.size(), [&](size_t i) {
            for (size_t k = 0; k < n_first; k++) {
                const auto at = std::lower_bound(known.begin(), known.end(), first[i * n_first + k]);
                if (at == known.end()) continue; // there is none
                pairs(i, k, &both[size_t(at - known.begin()) * rows.Q],
                      &both_target[(i * n_first + k) * rows.Q]);
            }
        });
    }

    void run() {
        parallel_items(targets.size(), [&](size_t i) { singles(i); });
        all_pairs();
    }
};

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
        RuleSearch search{questions, rows, some, near, score};
        search.run();
        rules.insert(rules.end(), search.rules.begin(), search.rules.end());
    }
    return rules;
}

std::vector<uint32_t> places_where(const Labels& labels, size_t cell) {
    std::vector<uint32_t> list;
    each_place(labels, cell, [&](size_t n) { list.push_back(uint32_t(n)); });
    return list;
}
