#include "lanes.h"
#include "../lib/error.h"
#include <algorithm>

static bool power_of_two(size_t n) { return n > 0 && (n & (n - 1)) == 0; }

// "1, 2, 4 or 8 GPUs": what n lanes can be shared among.
static std::string divisors(size_t n) {
    std::vector<size_t> list;
    for (size_t d = 1; d <= n; d++)
        if (n % d == 0 && (d == n || (power_of_two(n) && power_of_two(d)))) list.push_back(d);
    std::string text;
    for (size_t i = 0; i < list.size(); i++)
        text += (i == 0 ? "" : i + 1 == list.size() ? " or " : ", ") + std::to_string(list[i]);
    return text + (list.back() == 1 ? " GPU" : " GPUs");
}

void Lanes::validate(bool from_file) const {
    const size_t P = places();
    if (lanes == P) return;
    if (lanes % P == 0 && power_of_two(lanes) && power_of_two(machines) && power_of_two(per_machine)) return;
    const std::string instead = divisors(lanes);
    if (from_file)
        fail("this run sums in %zu lanes, which %zu GPUs cannot share: %s, or --lanes %zu (the same "
             "training, other "
             "last bits)",
             lanes, P, instead.c_str(), P);
    fail_usage("--lanes %zu cannot be shared by %zu GPUs: %s, or --lanes %zu", lanes, P, instead.c_str(), P);
}

std::vector<size_t> Lanes::order(size_t place) const {
    const size_t n = of_place();
    std::vector<size_t> list;
    for (size_t index = 0; index < n; index++) {
        size_t reversed = 0; // its bits from the lowest to the highest: halves come together last
        for (size_t bit = 1; bit < n; bit *= 2) reversed = 2 * reversed + (index & bit ? 1 : 0);
        list.push_back(place + reversed * places());
    }
    return list;
}

// Like the carries of a binary counter.
size_t Lanes::additions_after(size_t index) {
    size_t carries = 0;
    for (; index & 1; index /= 2) carries++;
    return carries;
}

std::vector<size_t> Lanes::micro_batches(size_t lane, size_t A) const {
    std::vector<size_t> list;
    for (size_t i = lane; i < A; i += lanes) list.push_back(i);
    return list;
}

std::string Lanes::busy_text(size_t B, size_t A) const {
    if (A % places() == 0) return strf("%zu micro-batch%s each", rounds(A), rounds(A) == 1 ? "" : "es");
    const size_t rows = B * A;
    std::string text = strf("%.0f%% busy", 100 * busy(A));
    for (size_t b = B - 1; b > 0; b--)
        if (rows % b == 0 && busy(rows / b) > busy(A))
            return text + strf("; --batch %zu: %.0f%%", b, 100 * busy(rows / b));
    return text;
}

std::vector<std::pair<size_t, size_t>> tree_additions(size_t n) {
    std::vector<std::pair<size_t, size_t>> list;
    while (n > 1) {
        const size_t lower = (n + 1) / 2;
        for (size_t i = 0; i + lower < n; i++) list.push_back({i, i + lower});
        n = lower;
    }
    return list;
}

std::vector<Span> pieces_of(Span range) {
    std::vector<Span> list;
    for (size_t at = range.begin; at < range.end; at += largest_piece)
        list.push_back({at, std::min(range.end, at + largest_piece)});
    return list;
}

static Span segments(Span piece, size_t first, size_t last) {
    return {std::min(piece.end, piece.begin + first * segment_numbers),
            std::min(piece.end, piece.begin + last * segment_numbers)};
}

Span owned(Span piece, size_t place, size_t places) {
    const size_t s = (piece.count() + segment_numbers - 1) / segment_numbers;
    return segments(piece, s * place / places, s * (place + 1) / places);
}

Span column(Span piece, size_t l, const Lanes& lanes) {
    const size_t first = l * lanes.machines;
    return {owned(piece, first, lanes.places()).begin,
            owned(piece, first + lanes.machines - 1, lanes.places()).end};
}
