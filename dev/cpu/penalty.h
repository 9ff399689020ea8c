// What a training run may add to its loss so that fewer units fire; nothing by default. Each term has a
// weight, its value and its gradient. N tokens, K experts of E each, slots as in moe.h.
#pragma once
#include "layers.h"

// The weights of a loss's terms beside the cross-entropy; with a gradient_scale, times that.
struct LossWeights {
    real aux, l0, l1; // load balance (moe.h), and the two terms below
    LossWeights(real aux, real l0 = 0, real l1 = 0) : aux(aux), l0(l0), l1(l1) {}
};

// ---------------------------------------------------------------------------------------------------------
// Expected share: what the sparsity router believes will fire in the experts it chooses
//   mean over n and chosen j of (1 - g_nj) / 2 = Phi(mu / sd)

// g (N,E), choice (N,K)
double expected_share(const real* g, const int32_t* choice, size_t N, size_t E, size_t K);

// dg_nj -= scale / (2NK) for the chosen
void expected_share_backward(real* dg, const int32_t* choice, real scale, size_t N, size_t E, size_t K);

// ---------------------------------------------------------------------------------------------------------
// Weighted L1 of relu units, each by the length of what it writes (or units would shrink while W_dec grew)
//   mean over n of  sum over its slots of  w sum_i z_i |W_dec_i|
// A dense layer has one slot per token, of weight 1.

// norm (units): the length of each row of W_dec (units,C)
void row_norms(real* norm, Matrix w_dec, size_t units, size_t C);

// z (slots,D), norm (D) and w_dec (D,C) of one expert or dense layer; factor (slots): w, null for 1
struct L1 {
    const real* norm = nullptr; // null: the term is not wanted
    const real* factor = nullptr;
    real scale = 0; // its weight, with the 1/N of the mean
};

// Returns the sum over slots.
double weighted_l1(const real* z, const L1& l1, size_t slots, size_t D);

// dh_si += scale w_s norm_i where z_si > 0
void weighted_l1_units(real* dh, const real* z, const L1& l1, size_t slots, size_t D);
// dW_dec_i += scale (sum_s w_s z_si) W_dec_i / norm_i.   dw_dec has the strides of w_dec
void weighted_l1_rows(real* dw_dec, Matrix w_dec, const real* z, const L1& l1, size_t slots, size_t D,
                      size_t C);
