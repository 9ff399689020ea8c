// Who has what of a model that several GPUs train: which numbers of the table of tensors each of them adds up
// and updates, piece by piece (ZeRO-1, arXiv 1910.02054: the optimizer's state is cut up, weights and
// gradients are not), and where the sums of a step lie while they come together. lanes.h says who computes
// what. One GPU has everything.
#pragma once
#include "lanes.h"
#include "parameters.h"

struct Sharing {
    Lanes lanes;
    size_t place = 0;         // ours, among the GPUs
    bool sharded = true;      // each has the optimizer's state of the numbers it owns; else of all (-z 0)
    size_t micro_batches = 0; // of a step, all GPUs together
};

// What is exchanged at a time: a part of the block of parameters, within the embeddings or within a layer.
struct Piece {
    size_t layer;   // 0 the embeddings, 1 + l layer l, of which the last has ln_f
    Span all;       // numbers of the block
    Span owned;     // those whose gradients this GPU adds up
    Span updated;   // and whose weights it updates: the same, or all with -z 0
    size_t state;   // where `updated` begins in its fp32 weights and moments
    size_t squares; // where its segments begin among all that it owns
};

// The pieces of a model, in the order of the table.
std::vector<Piece> pieces_of_table(const Config& config, const std::vector<Tensor>& table,
                                   const Sharing& sharing);

size_t segments_of(Span span);                           // whole ones, and one that is shorter
size_t state_elements(const std::vector<Piece>& pieces); // of whose optimizer's state this GPU has
size_t largest_exchange(const std::vector<Piece>& pieces, const Sharing& sharing); // numbers received at once

// Where the sums of a step lie, in doubles: of place after place the squares of the segments it owns, then
// the totals (of so many doubles) of its micro-batches.
struct SumsLayout {
    size_t segments = 0, micro_batches = 0, totals_doubles = 0;
    std::vector<Span> of_place;
    std::vector<int> order; // (segments + micro_batches) where each of them begins: the order of adding up

    SumsLayout() = default;
    SumsLayout(const Config& config, const std::vector<Tensor>& table, Sharing sharing,
               size_t totals_doubles);
    size_t doubles() const { return of_place.empty() ? 0 : of_place.back().end; }
    size_t totals_of(size_t micro_batch) const { return size_t(order[segments + micro_batch]); }
};
