// The MoE-X feed-forward layer (Yang et al., arXiv 2503.07639), forward and backward, in the order a token
// meets it: expert statistics, router, choice, load balance, dispatch, experts, combine. N tokens, E experts
// of D units, K of them per token, C channels. A token's visit to one of its experts is a slot; the N*K slots
// are sorted by expert, so that each expert works on consecutive rows.
#pragma once
#include "../run/routing.h"
#include "layers.h"
#include "penalty.h"
#include "sparse.h"

// ---------------------------------------------------------------------------------------------------------
// Expert statistics, once per optimizer step: over the D rows of W_enc[j] and the D numbers of b_enc[j],
//   m_j = mean (C),  v_j = population variance (C),  mb_j, vb_j the same of b_enc[j]

// m v (E,C), mb vb (E), w_enc (E,D,C), b_enc (E,D)
void expert_statistics_forward(real* m, real* v, real* mb, real* vb, const real* w_enc, const real* b_enc,
                               size_t E, size_t D, size_t C);

// The mean moves by 1/D of any row; the variance by 2/D (row - mean), its own mean's part summing to zero:
//   dW_enc[j][i] += dm_j / D + dv_j * 2 (W_enc[j][i] - m_j) / D,   db_enc[j][i] likewise
// dw_enc (E,D,C), db_enc (E,D); d and r below
struct RouterGradients;
struct RouterView;
void expert_statistics_backward(real* dw_enc, real* db_enc, const RouterGradients& d, const real* w_enc,
                                const real* b_enc, const RouterView& r, size_t E, size_t D, size_t C);

// ---------------------------------------------------------------------------------------------------------
// Router: how sparsely would expert j fire on x? Were the rows of W_enc[j] Gaussian, its pre-activations
// would be Gaussian over the units, of mean and variance
//   mu_j = m_j . x + mb_j        var_j = v_j . (x*x) + vb_j + 1e-12 = sd_j^2
// and a share Phi(mu/sd) of them positive. The score falls as that share rises:
//   g_j = -erf(mu_j / (sqrt(2) sd_j)) = 1 - 2 Phi(mu_j / sd_j)

// g mu sd (N,E), x (N,C); rho (E): sd_j is taken times rho_j, null for 1 (router_sd.h)
void router_forward(real* g, real* mu, real* sd, const real* x, const real* m, const real* v, const real* mb,
                    const real* vb, size_t N, size_t E, size_t C, const real* rho = nullptr);

// Its last step: sd has the variance on entry.
void score_forward(real* g, real* sd, const real* mu, const real* rho, size_t N, size_t E);

// What the backward pass reads of the forward pass, and the gradients of the same.
struct RouterView {
    const real *m, *v, *mb, *vb; // (E,C) (E,C) (E) (E)
    const real *mu, *sd;         // (N,E)
    const real* rho = nullptr;   // (E)
};
struct RouterGradients {
    real *m, *v, *mb, *vb; // added to
    real *mu, *var;        // (N,E), written
};

// With phi = exp(-mu^2 / (2 sd^2)) sqrt(2/pi), from d erf(u)/du = 2/sqrt(pi) exp(-u^2):
//   dg/dmu = -phi / sd      dg/dsd = phi mu / sd^2      dsd/dvar = 1 / (2 sd), with rho times rho^2
//   dx += sum_j dmu_j m_j + dvar_j 2 x v_j
//   dm_j += sum_n dmu_j x     dv_j += sum_n dvar_j (x*x)     dmb_j += sum_n dmu_j     dvb_j += sum_n dvar_j
// dx x (N,C), dg (N,E); scratch (N,C)
void router_backward(real* dx, const RouterGradients& d, const real* dg, const real* x, const RouterView& r,
                     real* scratch, size_t N, size_t E, size_t C);

// Its first step: dmu and dvar (N,E).
void score_backward(real* dmu, real* dvar, const real* dg, const real* mu, const real* sd, const real* rho,
                    size_t N, size_t E);

// ---------------------------------------------------------------------------------------------------------
// Choice: S = the K experts of highest score, a tie to the lower index. With a bias per expert (balance
// bias), S is chosen by g + bias; the weights know nothing of it.
//   w = softmax of g over S            with the gate `all`: softmax of g over all E, taken at S

// What is changed after training (run/routing.h) is the order in which experts are taken: first by standing,
// then by score; of it the places whose bit is in `ranks`; what is off has no part in a softmax.

// choice (K) in falling order of standing and score, g bias standing (E), of one token; bias and standing may
// be null
void choose(int32_t* choice, const real* g, const real* bias, size_t E, size_t K,
            const int8_t* standing = nullptr);

struct Gate {
    const real* bias = nullptr; // (E)
    bool all = false;
    const int8_t* standing = nullptr; // (E)
    uint64_t ranks = 0;               // 0: the first K; else it has K bits
};

// choice (N,K) in falling order of standing and score, weight (N,K), g (N,E)
void choice_forward(int32_t* choice, real* weight, const real* g, size_t N, size_t E, size_t K,
                    const Gate& gate = {});

// The choice itself is a constant:   dg[s_k] += w_k (dw_k - sum_i dw_i w_i)
// with the gate `all`, p = softmax of g over all E:   dg_j += p_j ([j in S] dw_j - sum_i dw_i w_i)
// dg (N,E), dweight (N,K); p (N,E) or null for the first
void choice_backward(real* dg, const real* dweight, const real* weight, const int32_t* choice, size_t N,
                     size_t E, size_t K, const real* p = nullptr);

// ---------------------------------------------------------------------------------------------------------
// Load balance: aux = E sum_j f_j P_j, f_j = share of the N*K slots that went to expert j (a constant in the
// backward pass), P_j = mean over tokens of p_nj, p_n = softmax of g_n over all E

// returns aux; p (N,E), begin (E+1) from dispatch()
real balance_forward(real* p, real* mean, const real* g, const int32_t* begin, size_t N, size_t E, size_t K);

// dp_nj = scale E f_j / N;  dg_nj = p_nj (dp_nj - sum_i dp_ni p_ni).   dg (N,E) is written.
void balance_backward(real* dg, const real* p, const int32_t* begin, real scale, size_t N, size_t E,
                      size_t K);

// Without a loss (DeepSeek-V3, arXiv 2412.19437, after Wang et al., arXiv 2408.15664): after each step the
// bias of an expert with fewer slots than the mean rises by `rate`, of one with more it falls.
// bias load (E)
void move_bias(real* bias, const size_t* load, real rate, size_t E);

// ---------------------------------------------------------------------------------------------------------
// Dispatch: a stable counting sort of the N*K assignments by expert. No expert is ever full.

// begin (E+1): expert j's slots are [begin[j], begin[j+1]);  slot (N,K): where assignment (n,k) went;
// token (N*K): whose it is
void dispatch(int32_t* begin, int32_t* slot, int32_t* token, const int32_t* choice, size_t N, size_t E,
              size_t K);

// out (N*K,C): the row of x (N,C) of each slot's token. (The experts below read x through `token` instead.)
void gather(real* out, const real* x, const int32_t* token, size_t slots, size_t C);

// ---------------------------------------------------------------------------------------------------------
// Experts: on its own slots, expert j computes
//   h = x W_enc[j]^T + b_enc[j]      z = act(h)      y = z W_dec[j] + b_dec[j]
// After relu most of z is zero. Where few enough units fire, the products that z is part of skip the zeros.

// The share of active units up to which skipping wins, as measured (dev/bench/NOTES.md): 0 never, 1 always.
struct SkipBelow {
    double forward = 0.17, slots = 0.12, units = 0.12;
};

struct Experts {
    size_t E, D, C;
    bool relu;
    const real *w_enc, *b_enc, *w_dec, *b_dec; // (E,D,C) (E,D) (E,D,C) (E,C)
    const int32_t* begin;                      // (E+1)
    Product* products;                         // scratch (E)
    ExpertPart* parts;                         // scratch (E)
    SkipBelow skip;
    const int32_t* token = nullptr; // (N*K): x is read at the row of each slot's token; null: x is by slot
    size_t top = 0;                 // relu: of a slot's units only the `top` largest stay; 0: all
    L1 l1 = {};                     // norm (E,D), factor (N*K): a penalty on what fires (penalty.h)

    size_t slots() const { return begin[E]; }

    // A list of what make(j, first slot, slots) says of every expert that has slots. Returns its length.
    template <class T, class Make> size_t describe(T* list, Make make) const {
        size_t n = 0;
        for (size_t j = 0; j < E; j++)
            if (begin[j + 1] > begin[j])
                list[n++] = make(j, size_t(begin[j]), size_t(begin[j + 1] - begin[j]));
        return n;
    }
    // One product per expert, all in one parallel region.
    template <class Make> void each(Make make) const { multiply(products, describe(products, make)); }
};

// Sets all but the q largest of a slot's units to 0, a tie to the lower index; returns how many are positive.
// z (slots,D), after relu
size_t keep_largest(real* z, size_t slots, size_t D, size_t q);

// z h (N*K,D), h may be z for relu; y (N*K,C); x (N,C). Returns how many units fired.
size_t experts_forward(real* y, real* z, real* h, const real* x, const Experts& e);

// From dy: dz = dy W_dec^T,  dW_dec += z^T dy,  db_dec += sum dy,  dh = dz act'(h),
//          dx = dh W_enc,   dW_enc += dh^T x,  db_enc += sum dh.
// dx dy (N*K,C) by slot; x (N,C); active: what experts_forward returned
struct ExpertsGradients {
    real *w_enc, *b_enc, *w_dec, *b_dec; // added to
    real* h;                             // (N*K,D), written
};
void experts_backward(real* dx, const ExpertsGradients& d, const real* dy, const real* x, const real* z,
                      const real* h, size_t active, const Experts& e);

// ---------------------------------------------------------------------------------------------------------
// Combine: out_n = x_n + sum_k w_nk y_slot(n,k)   (the residual and the weighted sum in one pass)

// out x (N,C), y (N*K,C), weight slot (N,K)
void combine_forward(real* out, const real* x, const real* y, const real* weight, const int32_t* slot,
                     size_t N, size_t K, size_t C);

// dy_slot(n,k) = w_nk dout_n;  dw_nk = dout_n . y_slot(n,k)
void combine_backward(real* dy, real* dweight, const real* dout, const real* y, const real* weight,
                      const int32_t* slot, size_t N, size_t K, size_t C);

// dx_n = sum over its slots of dx_slot: the gather's backward.  dx (N,C), dslots (N*K,C)
void gather_backward(real* dx, const real* dslots, const int32_t* slot, size_t N, size_t K, size_t C);
