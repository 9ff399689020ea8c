// The feed-forward layer of PEER (He, "Mixture of A Million Experts", arXiv 2407.04153), which MoE-X is
// compared with, forward and backward, in the order a token meets it: query, product keys, units. Q*Q experts
// of a single unit each; H heads retrieve k of them for a token. An expert's key is a pair of sub-keys, (i,j)
// for unit i*Q + j, so the k best of all Q*Q are found among the k best on each side. C channels, N tokens.
//
//   q_h  = B_h x (d_key), its halves q_h0, q_h1;   s0_hi = q_h0 . c0_i,   s1_hj = q_h1 . c1_j    (Q of each)
//   I, J = the k best of s0_h and of s1_h
//   the k best sums s0_hi + s1_hj over I x J, a tie to the lower place;   w_h = softmax of those k sums
//   y    = sum over h and its k units e = (i,j) of  w_he f_e v_e,   f_e = act(u_e . x)
//
// The heads share the sub-keys, as the paper's text says, and a unit that several heads choose counts for
// each. There are no biases, and no batch normalisation of the query: with as few units as here all are used
// without.
#pragma once
#include "../run/parameters.h"
#include "layers.h"

struct PeerActivations {
    real* query;   // (N,H,d_key)
    int32_t* unit; // (N,H,k) in falling order of the sum
    real* w;       // (N,H,k) gates
    real *h, *f;   // (N,H,k) u_e . x and act of it; relu: one array
};
struct PeerScratch {
    real* s[2];             // (N,H,Q) scores of the sub-keys, in the backward pass their gradients
    real* dquery[2];        // (N,H,d_key/2)
    real* dq;               // (N,H,d_key)
    real *wf, *dh;          // (N*H*k) by unit: w f, and the gradient of u_e . x
    int32_t* begin;         // (Q*Q+1) unit e has the visits begin[e] to begin[e+1]
    int32_t *place, *token; // (N,H,k) where a visit stands in that order, (N*H*k) whose it is
};

// Visits every array. Scratch is shared by the layers; training: what only the backward pass needs, too.
void for_each_array(PeerActivations& a, const Config& c, size_t N, const Visit& visit,
                    const VisitIndices& visit_indices);
void for_each_array(PeerScratch& a, const Config& c, size_t N, bool training, const Visit& visit,
                    const VisitIndices& visit_indices);

// out = mid + y;  out mid x (N,C). Returns how many units fired (f > 0), each counted once a token.
size_t peer_forward(real* out, const real* mid, const real* x, const PeerParameters<real>& w,
                    const PeerActivations& h, const PeerScratch& scratch, const Config& c, size_t N);

// Per visit of a token to unit e by head h, with b = dy . v_e:
//   dw = b f;   dpre = b w act'(u_e . x);   dv_e += w f dy;   du_e += dpre x;   dx += dpre u_e
//   dsum = w (dw - sum over the head's k of w dw)
//   dq_h0 += dsum c0_i;   dc0_i += dsum q_h0;   likewise side 1;   dB_h += dq_h x^T;   dx += B_h^T dq_h
// dx (N,C) is written; dy x (N,C)
void peer_backward(real* dx, const PeerParameters<real>& dw, const PeerScratch& d, const real* dy,
                   const real* x, const PeerParameters<real>& w, const PeerActivations& h, const Config& c,
                   size_t N);
