// How the work of an optimizer step is shared among the GPUs of a run, so that no sum depends on how many
// there are. Micro-batch i belongs to lane i mod V; the gradients of the V lanes are added in one fixed
// binary tree, lane v += lane v + V/2, then V/4, .. 1. Of P GPUs, which are numbered by place = l * M + m
// (GPU l of machine m of M), place p has the lanes p, p + P, p + 2P, ..: the highest bits of a lane's number
// are added within a GPU, the next among the GPUs of a machine, the lowest among machines, and each does its
// part of the same tree. The numbers to add are cut into pieces and segments that do not depend on P either.
#pragma once
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

struct Lanes {
    size_t lanes = 1;                     // V
    size_t machines = 1, per_machine = 1; // M, G

    size_t places() const { return machines * per_machine; } // P
    size_t of_place() const { return lanes / places(); }     // lanes of each

    // Error unless P divides V and, where V > P, all of V, G, M are powers of two. from_file: the lanes are
    // those of a run that is resumed.
    void validate(bool from_file) const;

    // The lanes of a place in the order in which it goes through them, and how many additions follow the lane
    // at `index` of that order: the gradients of a lane go on top of a pile of buffers, and each addition
    // adds the topmost to the one below it. The pile is never higher than log2(V/P) + 1.
    std::vector<size_t> order(size_t place) const;
    static size_t additions_after(size_t index);

    // Of A micro-batches those of a lane, in order.
    std::vector<size_t> micro_batches(size_t lane, size_t A) const;

    // Rounds of micro-batches in which the P GPUs do A of them, and the share of their time that has work.
    size_t rounds(size_t A) const { return (A + places() - 1) / places(); }
    double busy(size_t A) const { return double(A) / double(rounds(A) * places()); }
    // "10 micro-batches each", or "62% busy; --batch 5: 83%": rows are those of a step, A of B rows each.
    std::string busy_text(size_t B, size_t A) const;
};

// The additions that make the sum of n parts, in order: part `first` += part `second`; the sum is then part
// 0. Each level adds the upper half to the lower, of which the upper is the shorter. Additions of a level
// touch different parts.
std::vector<std::pair<size_t, size_t>> tree_additions(size_t n);

// Numbers begin .. end-1.
struct Span {
    size_t begin = 0, end = 0;
    size_t count() const { return end - begin; }
    bool operator==(const Span&) const = default;
};

constexpr size_t largest_piece = size_t(1) << 24; // numbers that are exchanged at a time
constexpr size_t segment_numbers = 4096; // whose owner is one place, and which have one part of the norm

// A range of the table of tensors in pieces of at most largest_piece numbers.
std::vector<Span> pieces_of(Span range);

// The segments s p/P .. s (p+1)/P - 1 of the s of a piece, in numbers: what place p adds up and updates.
Span owned(Span piece, size_t place, size_t places);

// What the GPUs number l of all machines own together: one span, for their places are neighbours. Within a
// machine GPU l gets it from the others; between machines they share it as owned() says.
Span column(Span piece, size_t l, const Lanes& lanes);
