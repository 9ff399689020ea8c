// Other estimates of the sparsity router's deviation sd_j (moe.h), config word `router_sd`. There the
// coordinates of an expert's rows are taken to be independent of each other ("diagonal"); in trained models
// the true variance of an expert's pre-activations over its D units is three to four times that. N tokens, E
// experts of D units, C channels; x' = (x, 1) and w' = (W_enc row, b_enc), both (C+1).
#pragma once
#include "moe.h"

// ---------------------------------------------------------------------------------------------------------
// Scaled: one factor per expert, which costs nothing (score_forward() in moe.h)
//   sd_j = rho_j sqrt(v_j . (x*x) + vb_j + 1e-12)
// and after each step, over the tokens that chose j (an expert without any keeps its factor)
//   rho_j^2 = 0.99 rho_j^2 + 0.01 sum var_true / sum var_diagonal

struct Variances {
    double truth = 0, diagonal = 0; // sums over slots
};

// sums (E) += over the slots of each expert.  h (N*K,D) pre-activations by slot, sd (N,E), rho (E)
void add_variances(Variances* sums, const real* h, const real* sd, const real* rho, const int32_t* begin,
                   const int32_t* token, size_t E, size_t D);
void move_rho(real* rho, const Variances* sums, size_t E);

// ---------------------------------------------------------------------------------------------------------
// Full: the variance itself
//   S_j = (1/D) sum_i (w'_i - m'_j) (w'_i - m'_j)^T, once per step;   var_j = x'^T S_j x' + 1e-12

// covariance (E,C+1,C+1); m (E,C), mb (E)
void covariance_forward(real* covariance, const real* w_enc, const real* b_enc, const real* m, const real* mb,
                        size_t E, size_t D, size_t C);

// g mu sd (N,E), x (N,C)
void full_router_forward(real* g, real* mu, real* sd, const real* x, const real* covariance, const real* m,
                         const real* mb, size_t N, size_t E, size_t C);

// dx += sum_j dmu_j m_j + (2 dvar_j S_j x') without its last;   dm_j += sum_n dmu_j x   dmb_j += sum_n dmu_j
// dS_j = sum_n dvar_nj x' x'^T;   dw'_ji += (2/D) dS_j (w'_ji - m'_j)
// d: m and mb are added to, mu and var written, v and vb left alone; what dm and dmb do to the weights is
// expert_statistics_backward()'s
void full_router_backward(real* dx, real* dw_enc, real* db_enc, const RouterGradients& d, const real* dg,
                          const real* x, const RouterView& r, const real* covariance, const real* w_enc,
                          const real* b_enc, size_t N, size_t E, size_t D, size_t C);
