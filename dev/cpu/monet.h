// The feed-forward layer of Monet (Park et al., "Monet: Mixture of Monosemantic Experts for Transformers",
// arXiv 2412.04139), which MoE-X is compared with, forward and backward, in the order a token meets it:
// router, hidden units, mixing, output. Expert (i,j) of Q*Q is put together of half i of one list of Q and
// half j of another, so the experts of a layer cost as much memory as 2Q halves, and their weighted sum can
// be had without making any: every function below equals the plain double sum over all Q*Q experts. H heads
// route, each keeps k halves of a side; an expert has m hidden units; C channels, N tokens.
//
//   hd (cut across): half i is an encoder, half j a decoder
//       E_ij(x) = V_j relu2(U_i x + b_i) + c_j                                  relu2(h) = max(h,0)^2
//   vd (cut along): each half has m/2 of the hidden units and makes C/2 of the output's channels
//       E_ij(x)[0:C/2] = V11_i a1_i + V12_i a2_j + c0_i        a1_i = relu2(U1_i x + b1_i)
//       E_ij(x)[C/2:C] = V21_j a1_i + V22_j a2_j + c1_j        a2_j = relu2(U2_j x + b2_j)
//
// P is 1 for hd and 2 for vd: the number of lists of encoders, each with M = m/P units, and of parts of the
// output, each with O = C/P channels.
#pragma once
#include "../run/parameters.h"
#include "layers.h"

// ---------------------------------------------------------------------------------------------------------
// Router, one for a group of `n_share` layers: head h scores the halves of both sides s = 0, 1 and keeps k
//   z^s_h = R[s,h] x (Q);   K = the k largest, a tie to the lower index;   g^s_h = softmax of z^s_h over K
// The paper compares a batch-normalised score with a quantile of the normal distribution, which keeps k only
// on average and ties a token to its batch; k exactly is what sequential machines can afford.
//
// Its load balance, with p = softmax of z over all Q and P_i its mean over the tokens:
//   aux = -1/(2HQ) sum log P^s_hi - log Q   (0 when all halves are used alike)
//         + 1/(2HN) sum (1 - max_i g^s_nhi)  (0 when every head is certain)

struct MonetRouting {
    int32_t* index;   // (N,2,H,k) the halves kept, in falling order of score
    real* g;          // (N,2,H,k) their weights
    real *p, *mean_p; // (N,2,H,Q) (2,H,Q)
};

// returns aux; x (N,C), router (2,H,Q,C)
double monet_router_forward(const MonetRouting& r, const real* x, const real* router, const Config& c,
                            size_t N);

// dg of the largest -= scale / (2HN), then
//   dz = g (dg - sum g dg) on K  +  p (dp - sum p dp),   dp_i = -scale / (2HQN P_i)
//   dR += dz^T x;   dx += dz R
// dg (N,2,H,k), is changed; dz scratch (N,2,H,Q)
void monet_router_backward(real* dx, real* drouter, real* dg, real* dz, const real* x, const real* router,
                           const MonetRouting& r, real scale, const Config& c, size_t N);

// ---------------------------------------------------------------------------------------------------------
// The layer: hidden units of all Q halves, mixed over those that were kept, and the output
//   hd   t_h = sum_i g0_hi a_i;   r_j = sum_h g1_hj t_h;   S1_j = sum_h g1_hj
//        y = sum_j V_j r_j + S1_j c_j
//   vd   t1_h = sum_i g0_hi a1_i;   t2_h = sum_j g1_hj a2_j;   S0_i = sum_h g0_hi;   S1_j = sum_h g1_hj
//        r11_i = S0_i a1_i;   r12_i = sum_h g0_hi t2_h;   r21_j = sum_h g1_hj t1_h;   r22_j = S1_j a2_j
//        y[0:C/2] = sum_i V11_i r11_i + V12_i r12_i + S0_i c0_i;   y[C/2:C] likewise with j

struct MonetActivations {
    MonetRouting routing; // the group's
    real* hidden[2];      // (N,Q,M) max(U x + b, 0), P of them
    real* r[2][2];        // (N,Q,M) what V reads, P*P of them
    real* s[2];           // (N,Q) S0 and S1; hd: s[0] is not used
};

// Visits every array of a layer, those of the routing where it is the first of its group.
void for_each_array(MonetActivations& a, const Config& c, size_t N, bool routes, const Visit& visit,
                    const VisitIndices& visit_indices);

// out = mid + y; out mid x (N,C), y scratch (N,C). Returns how many pairs (i,j) were kept, each counted once
// a token: the experts at work.
size_t monet_forward(real* out, real* y, const real* mid, const real* x, const MonetParameters<real>& w,
                     const MonetActivations& h, const Config& c, size_t N);

struct MonetScratch {
    real* dg;                    // (N,2,H,k) summed over the layers of a group
    real* dz;                    // (N,2,H,Q)
    real *dhidden[2], *dr[2][2]; // as hidden, r
    real* ds[2];                 // as s
};
void for_each_array(MonetScratch& a, const Config& c, size_t N, const Visit& visit);

// dr_j = V_j dy;  dV_j += r_j dy^T;  dc_j += S_j dy;  dS_j = c_j . dy, and then
//   hd   dt_h = sum_j g1_hj dr_j
//        dg1_hj = dr_j . t_h + dS1_j;   dg0_hi = dt_h . a_i;   da_i = sum_h g0_hi dt_h
//   vd   dt2_h = sum_i g0_hi dr12_i;   dt1_h = sum_j g1_hj dr21_j
//        dS0_i += dr11_i . a1_i;   dS1_j += dr22_j . a2_j
//        dg0_hi = dr12_i . t2_h + dt1_h . a1_i + dS0_i;   da1_i = S0_i dr11_i + sum_h g0_hi dt1_h
//        dg1_hj = dr21_j . t1_h + dt2_h . a2_j + dS1_j;   da2_j = S1_j dr22_j + sum_h g1_hj dt2_h
//   d(U x + b) = 2 da max(U x + b, 0), and a linear layer's backward to dU, db and dx
// dx (N,C) is written, d.dg added to; dy x (N,C)
void monet_backward(real* dx, const MonetParameters<real>& dw, const MonetScratch& d, const real* dy,
                    const real* x, const MonetParameters<real>& w, const MonetActivations& h, const Config& c,
                    size_t N);
