// Tests of dev/run/lanes: the sum over lanes has the bits of one plain tree, whatever GPUs share it: here a
// model of the exchange, with arrays for GPUs and copies for messages, goes through what each of them does.
#include "../dev/lib/random.h"
#include "../dev/run/sharing.h"
#include "check.h"
#include <algorithm>
#include <vector>

typedef std::vector<float> Floats;

// The definition: the upper half is added to the lower until one is left.
static float plain_tree(std::vector<float> parts) {
    while (parts.size() > 1) {
        const size_t lower = (parts.size() + 1) / 2;
        for (size_t i = 0; lower + i < parts.size(); i++) parts[i] += parts[lower + i];
        parts.resize(lower);
    }
    return parts[0];
}

static float number(uint64_t part, uint64_t i) {
    const float x = float(random_uniform(7, part, i) - 0.5);
    return x * std::exp2(float(random_u64(8, part, i) % 12)); // of different sizes, so that order matters
}

static bool same_bits(const Floats& a, const Floats& b) {
    return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// E1
static void test_tree() {
    size_t differ = 0;
    for (size_t n = 1; n <= 16; n++)
        for (uint64_t i = 0; i < 50; i++) {
            Floats parts;
            for (size_t p = 0; p < n; p++) parts.push_back(number(p, i));
            const float expected = plain_tree(parts);
            float in_a_row = 0;
            for (const float x : parts) in_a_row += x;
            differ += in_a_row != expected;
            for (const auto& [first, second] : tree_additions(n)) parts[first] += parts[second];
            check(same_bits({parts[0]}, {expected}), "%zu parts", n);
        }
    check(differ > 100); // the order is seen in the bits
    check(tree_additions(1).empty() && tree_additions(16).size() == 15);
}

static void test_spans() {
    for (const size_t n : {size_t(1), size_t(4095), size_t(4096), size_t(4097), size_t(40000), largest_piece})
        for (const size_t M : {1, 2, 4})
            for (const size_t G : {1, 2, 3, 4, 6}) {
                const Lanes lanes = {M * G, M, G};
                const Span piece = {1000, 1000 + n};
                size_t at = piece.begin;
                for (size_t place = 0; place < M * G; place++) { // each number once, in order of places
                    const Span mine = owned(piece, place, M * G);
                    check(mine.begin == at && mine.end >= at);
                    check(mine.begin == piece.end || (mine.begin - piece.begin) % segment_numbers == 0);
                    at = mine.end;
                }
                check(at == piece.end);
                for (size_t l = 0; l < G; l++)
                    check(column(piece, l, lanes) ==
                          Span({owned(piece, l * M, M * G).begin, owned(piece, l * M + M - 1, M * G).end}));
            }
    const std::vector<Span> pieces = pieces_of({5, 5 + 2 * largest_piece + 3});
    check(pieces == std::vector<Span>({{5, 5 + largest_piece},
                                       {5 + largest_piece, 5 + 2 * largest_piece},
                                       {5 + 2 * largest_piece, 8 + 2 * largest_piece}}));
    check(pieces_of({7, 7}).empty() && pieces_of({0, 1}) == std::vector<Span>({{0, 1}}));
}

// The gradients of A micro-batches of n numbers, summed as M machines of G GPUs do it.
static Floats exchange(const Lanes& lanes, size_t A, size_t n) {
    const size_t P = lanes.places(), M = lanes.machines, G = lanes.per_machine;
    std::vector<Floats> gradients(P);
    std::vector<bool> used(A);
    size_t highest = 0;
    for (size_t place = 0; place < P; place++) {
        std::vector<Floats> pile;
        const std::vector<size_t> order = lanes.order(place);
        for (size_t index = 0; index < order.size(); index++) {
            pile.push_back(Floats(n, 0.0f));
            for (const size_t i : lanes.micro_batches(order[index], A)) {
                check(i % P == place && !used[i]);
                used[i] = true;
                for (size_t j = 0; j < n; j++) pile.back()[j] += number(i, j);
            }
            highest = std::max(highest, pile.size());
            for (size_t k = Lanes::additions_after(index); k > 0; k--) {
                Floats& below = pile[pile.size() - 2];
                for (size_t j = 0; j < n; j++) below[j] += pile.back()[j];
                pile.pop_back();
            }
        }
        check(pile.size() == 1);
        gradients[place] = pile[0];
    }
    size_t log2 = 0;
    while (size_t(1) << log2 < lanes.of_place()) log2++;
    check(highest == log2 + 1);
    check(std::find(used.begin(), used.end(), false) == used.end());

    const Span piece = {0, n};
    std::vector<Floats> sums(P, Floats(n, NAN)); // of what a place owns, or its column
    for (size_t place = 0; place < P; place++) { // level 1: within the machine
        const size_t l = place / M, m = place % M;
        const Span mine = column(piece, l, lanes);
        std::vector<Floats> copies;
        for (size_t other = 0; other < G; other++)
            copies.push_back({gradients[other * M + m].begin() + long(mine.begin),
                              gradients[other * M + m].begin() + long(mine.end)});
        for (const auto& [first, second] : tree_additions(G))
            for (size_t j = 0; j < mine.count(); j++) copies[first][j] += copies[second][j];
        std::copy(copies[0].begin(), copies[0].end(), sums[place].begin() + long(mine.begin));
    }
    Floats whole(n, NAN);
    for (size_t place = 0; place < P; place++) { // level 2: between machines, the GPUs of the same number
        const size_t l = place / M;
        const Span mine = owned(piece, place, P);
        for (size_t j = mine.begin; j < mine.end; j++) {
            std::vector<float> parts;
            for (size_t m = 0; m < M; m++) parts.push_back(sums[l * M + m][j]);
            for (const auto& [first, second] : tree_additions(M)) parts[first] += parts[second];
            whole[j] = parts[0]; // gathered
        }
    }
    return whole;
}

// The tree over all lanes, or for numbers that are no powers of two over each level.
static Floats expected_sum(const Lanes& lanes, size_t A, size_t n) {
    const size_t M = lanes.machines, upper = lanes.lanes / M;
    Floats sum;
    for (size_t j = 0; j < n; j++) {
        std::vector<float> of_lane(lanes.lanes, 0.0f);
        for (size_t i = 0; i < A; i++) of_lane[i % lanes.lanes] += number(i, j);
        std::vector<float> of_machine;
        for (size_t m = 0; m < M; m++) {
            std::vector<float> parts;
            for (size_t u = 0; u < upper; u++) parts.push_back(of_lane[u * M + m]);
            of_machine.push_back(plain_tree(parts));
        }
        sum.push_back(plain_tree(of_machine));
    }
    return sum;
}

// E2, its arithmetic
static void test_exchange() {
    for (const size_t V : {1, 2, 4, 8, 16})
        for (const size_t A : {V, V + 1, 3 * V + V / 2}) {
            const Lanes one = {V, 1, 1};
            const Floats whole = expected_sum(one, A, 300);
            for (size_t M = 1; M <= V; M *= 2)
                for (size_t G = 1; M * G <= V; G *= 2)
                    check(same_bits(exchange({V, M, G}, A, 300), whole),
                          "%zu lanes on %zu x %zu GPUs, %zu micro-batches", V, M, G, A);
        }
    for (const auto& [M, G] : {std::pair<size_t, size_t>{1, 3}, {1, 6}, {2, 3}, {3, 2}, {3, 1}}) {
        const Lanes lanes = {M * G, M, G};
        lanes.validate(false);
        for (const size_t A : {M * G, M * G + 2})
            check(same_bits(exchange(lanes, A, 100), expected_sum(lanes, A, 100)), "%zu x %zu", M, G);
    }
    for (const size_t n : {1, 4095, 4097, 40000})
        check(same_bits(exchange({4, 2, 2}, 4, n), expected_sum({4, 1, 1}, 4, n)), "%zu numbers", n);
}

static void test_words() {
    check_error(Lanes({8, 1, 3}).validate(true),
                "this run sums in 8 lanes, which 3 GPUs cannot share: 1, 2, 4 or 8 GPUs",
                "or --lanes 3 (the same training, other last bits)");
    check_error(Lanes({8, 3, 2}).validate(false), "--lanes 8 cannot be shared by 6 GPUs");
    check_error(Lanes({6, 1, 2}).validate(false), "6 GPUs, or --lanes 2");
    check_error(Lanes({4, 1, 8}).validate(false), "--lanes 4");
    Lanes({8, 2, 2}).validate(true);
    Lanes({6, 2, 3}).validate(true);
    Lanes({1, 1, 1}).validate(true);
    check(Lanes({8, 1, 8}).busy_text(10, 10) == "62% busy; --batch 5: 83%");
    check(Lanes({8, 1, 8}).busy_text(10, 16) == "2 micro-batches each");
    check(Lanes({8, 1, 8}).busy_text(1, 9) == "56% busy");
    check(Lanes({1, 1, 1}).busy_text(10, 1) == "1 micro-batch each");
}

// Of a model every number is owned once, whatever shares it, and the sums of a step are added in one order.
static void test_sharing() {
    Config config;
    config.n_layer = 3, config.n_head = 2, config.n_embd = 104, config.block_size = 17;
    config.vocab_size = 70, config.n_expert = 4, config.n_expert_active = 2, config.d_expert = 56;
    const std::vector<Tensor> table = tensor_table(config, 64);
    const size_t count = block_elements(table), A = 11, words = 5;
    const std::vector<Piece> alone = pieces_of_table(config, table, {});
    check(alone.size() == config.n_layer + 1 && alone.back().all.end == count);
    check(state_elements(alone) == count && largest_exchange(alone, {}) == 0);
    std::vector<size_t> segments_alone;
    for (const Piece& p : alone) {
        check(p.owned == p.all && p.updated == p.all && p.state == p.all.begin);
        segments_alone.push_back(segments_of(p.all));
    }
    for (const auto& [M, G] : {std::pair<size_t, size_t>{1, 1}, {1, 2}, {1, 3}, {2, 2}, {2, 3}, {1, 16}}) {
        Sharing sharing;
        sharing.lanes = {M * G, M, G};
        sharing.micro_batches = A;
        const size_t P = M * G;
        const SumsLayout layout(config, table, sharing, words);
        check(layout.segments + A == layout.order.size());
        std::vector<int> taken(layout.doubles()); // by a square or totals
        for (size_t i = 0; i < layout.order.size(); i++)
            for (size_t k = 0; k < (i < layout.segments ? 1 : words); k++)
                taken[size_t(layout.order[i]) + k]++;
        check(taken == std::vector<int>(layout.doubles(), 1));
        std::vector<int> owners(count);
        size_t states = 0, segment = 0;
        for (size_t place = 0; place < P; place++) {
            sharing.place = place;
            const std::vector<Piece> pieces = pieces_of_table(config, table, sharing);
            for (const Piece& p : pieces) {
                for (size_t i = p.owned.begin; i < p.owned.end; i++) owners[i]++;
                check(p.owned == p.updated && (p.owned.begin - p.all.begin) % segment_numbers == 0);
            }
            states += state_elements(pieces);
            for (size_t i = place; i < A; i += P)
                check(layout.totals_of(i) >= layout.of_place[place].begin &&
                      layout.totals_of(i) + words <= layout.of_place[place].end);
            sharing.sharded = false;
            check(state_elements(pieces_of_table(config, table, sharing)) == count);
            sharing.sharded = true;
        }
        check(states == count && owners == std::vector<int>(count, 1), "%zu x %zu", M, G);
        // Segment after segment, piece after piece: at place p those that it owns.
        for (size_t i = 0; i < alone.size(); i++)
            for (size_t s = 0; s < segments_alone[i]; s++, segment++) {
                size_t owner = 0;
                while (owned(alone[i].all, owner, P).end <= alone[i].all.begin + s * segment_numbers) owner++;
                const Span part = layout.of_place[owner];
                check(size_t(layout.order[segment]) >= part.begin &&
                      size_t(layout.order[segment]) < part.end);
            }
        check(segment == layout.segments);
    }
}

int main() {
    return run_main([] {
        test_tree();
        test_sharing();
        test_spans();
        test_exchange();
        test_words();
        return finish();
    });
}
