// Products that skip the zeros of relu. A trained MoE-X layer fires 4 to 20% of its units, so in five of its
// six products (all but the encoder's) most of the work is multiplication by zero. Here, for one expert with
// n slots, D units and C channels, only the rows that count are moved:
//
//   skipping_decode   y_s    = b_dec + sum over units u that fire in slot s of  z_su W_dec_u
//   skipping_slots    dh_su  = dy_s . W_dec_u where u fires, else 0;   dx_s = sum of dh_su W_enc_u
//   skipping_units    dW_dec_u += sum over slots s where u fires of  z_su dy_s;
//                     dW_enc_u += sum of dh_su x_s
//
// A unit fires where z > 0. A NaN counts as firing: it must reach the loss, where the trainer sees it. Rows
// are taken in chunks that stay in the second-level cache, and every sum runs in order, so the bits do not
// depend on threads.
#pragma once
#include "gemm.h"
#include <vector>

constexpr size_t list_lanes = 16;  // lists made together, so that columns of z are read by whole cache lines
constexpr size_t list_group = 64;  // slots or units of one work item
constexpr size_t list_chunk = 512; // the most entries of a list

// One expert's part of the layer: n slots, D units, C channels; all row-major.
struct ExpertPart {
    size_t n, D, C;
    const real* z;             // (n,D)
    const real *w_enc, *w_dec; // (D,C)
    const real* b_dec;         // (C)
    real* y;                   // forward: (n,C)
    Matrix x;                  // backward: (n,C), rows by an index or not
    const real* dy;            // backward: (n,C)
    real *dh, *dx;             // backward: (n,D), (n,C)
    real *dw_enc, *dw_dec;     // backward: (D,C)
};

// What they are made of. out (C) += sum over i < count of value[i] * rows[index[i]];
// value[i] = a . rows[index[i]], a (C).  rows (any,C)
void add_rows(real* out, const int32_t* index, const real* value, size_t count, const real* rows, size_t C);
void dot_rows(real* value, const int32_t* index, size_t count, const real* a, const real* rows, size_t C);

// Counts the different numbers among those that were added, in the time that these take.
class Distinct {
    std::vector<char> seen;
    std::vector<size_t> numbers;

  public:
    void add(size_t number) {
        if (number >= seen.size()) seen.resize(number + 1);
        if (seen[number]) return;
        seen[number] = true;
        numbers.push_back(number);
    }
    // And forgets them.
    size_t take_count() {
        const size_t count = numbers.size();
        for (const size_t number : numbers) seen[number] = false;
        numbers.clear();
        return count;
    }
};

// One to three products of n_parts experts; what each computes stands above.
void skipping_decode(const ExpertPart* parts, size_t n_parts);
void skipping_slots(const ExpertPart* parts, size_t n_parts);
void skipping_units(const ExpertPart* parts, size_t n_parts);
