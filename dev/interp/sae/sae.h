// A sparse autoencoder (SAE): activations x (C) of a model as sums of a few of F directions.
//
//   a  = relu(W_e (x - b_d) + b_e)              f  = a on the latents that are kept, else 0
//   xh = sum_i f_i W_d[i] + b_d                 W_e W_d (F,C), b_e (F), b_d (C); rows of W_d of unit length
//
//   kept  batchtopk  the kN largest of a batch of N tokens (Bussmann et al., arXiv 2412.06410); in use those
//                    above theta, the running mean of a batch's smallest kept value
//         topk       the k largest of a token (Gao et al., arXiv 2406.04093)
//         relu       all
//   loss  fvu = sum_n |x - xh|^2 / sum_n |x - mean x|^2          the share of the variance unexplained
//         topk kinds:  + aux / 32,  aux = sum |e - W_d^T f'|^2 / sum |e - mean e|^2,  e = x - xh a constant,
//                      f' the C/2 largest a > 0 of a token among the dead latents: what is left for them
//         relu:        + lambda mean_n sum_i phi(f_i),  phi(f) = (f + s)^p - s^p,  s = 1e-3: f^p without its
//                      endless slope at 0. p may fall while it trains (Karvonen et al., arXiv 2408.00113).
//
// All in `real` (dev/cpu/real.h), so that the gradients can be tested in double. Results do not depend on the
// number of threads.
//
//   1 the autoencoder    2 which latents are kept    3 forward    4 backward    5 update    6 start and
//   events
#pragma once
#include "../../cpu/model.h"

// ---------------------------------------------------------------------------------------------------------
// 1 The autoencoder

enum class SaeKind { batchtopk, topk, relu };
inline const std::vector<std::string> sae_kinds = {"batchtopk", "topk", "relu"}; // in that order

struct SaeTensors {
    real *w_enc, *b_enc, *w_dec, *b_dec; // (F,C) (F) (F,C) (C)
};
std::vector<Tensor> sae_table(size_t F, size_t C);

struct Sae {
    SaeKind kind;
    size_t C, F, k; // k: the topk kinds
    std::vector<Tensor> table;
    Block weights, gradients, moment_1, moment_2; // the last three empty where nothing is trained
    SaeTensors w, g;
    double theta = -1;           // batchtopk: above it a latent is kept in use; -1 before the first step
    double theta_share = 1e-3;   // how much of it a step moves
    double lambda = 0, p = 1;    // relu
    std::vector<uint32_t> idle;  // (F) steps since a latent was last kept
    std::vector<double> partial; // scratch of the gradient norm

    Sae(SaeKind kind, size_t C, size_t F, size_t k, bool training);
};

// ---------------------------------------------------------------------------------------------------------
// 2 Which latents are kept. Values that are not positive are kept nowhere.

// Those of token n are [begin[n], begin[n+1]), in rising order of unit.
struct Latents {
    std::vector<size_t> begin = {0}; // (N+1)
    std::vector<uint32_t> unit;
    std::vector<real> value;

    size_t size() const { return unit.size(); }
};

// Of a (N,F): the k largest of every token, the `count` largest of all, those above theta. Of equal values
// those of the lower token, then unit.
void keep_topk(Latents& kept, const real* a, size_t N, size_t F, size_t k);
void keep_largest(Latents& kept, const real* a, size_t N, size_t F, size_t count);
void keep_above(Latents& kept, const real* a, size_t N, size_t F, real theta);

// ---------------------------------------------------------------------------------------------------------
// 3 Forward

// What a batch of up to `max` tokens is in an SAE, and scratch.
struct SaeActivations {
    size_t max, N = 0;
    Block centred, a;      // (N,C) x - b_d, (N,F)
    Latents kept, revived; // f and f'
    Block xh, error, d;    // (N,C) the last: the gradient of what the latents add up to
    double variance = 0;   // sum_n |x - mean x|^2
    double error_variance = 0;

    SaeActivations(const Sae& s, size_t max);
};

// a; what is kept, in training or in use; xh.
void sae_encode(const Sae& s, SaeActivations& t, const real* x, size_t N);
void sae_keep(const Sae& s, SaeActivations& t, bool training);
void sae_decode(const Sae& s, SaeActivations& t);

// The three, and error = x - xh. Returns fvu. x (N,C)
double sae_forward(const Sae& s, SaeActivations& t, const real* x, size_t N, bool training);

// lambda mean_n sum_i phi(f_i)
double sae_penalty(const Sae& s, const SaeActivations& t);

// aux of the error that stands there; dead: latents not kept for more than `idle` steps. 0 where none is.
double sae_revive(const Sae& s, SaeActivations& t, uint32_t idle);

// ---------------------------------------------------------------------------------------------------------
// 4 Backward: adds to the gradients
//   dxh = -2 (x - xh) / sum |x - mean x|^2;   df = W_d dxh on the kept (+ lambda phi'(f) / N)
//   dW_d += f^T dxh;   dW_e += df^T (x - b_d);   db_e += sum df;   db_d += sum dxh - W_e^T sum df

constexpr real sae_aux_share = real(1) / 32;

// After sae_forward, and with revived after sae_revive. The gradients are those of one batch: written.
void sae_backward(Sae& s, SaeActivations& t, bool revived);

// ---------------------------------------------------------------------------------------------------------
// 5 Update

// Adam 0.9/0.999, no decay. The part of dW_d along its row is removed before, rows are made unit length
// after. Returns the gradient's norm before it was clipped to 1; where it is not finite nothing is changed.
double sae_update(Sae& s, uint64_t t, double lr);

// Counts idle latents, moves theta. After sae_forward in training.
void sae_count(Sae& s, const SaeActivations& t);

// A whole step t = 1, 2, .. on x (N,C), latents idle for more than `idle` steps being dead.
struct SaeStep {
    double fvu, aux, penalty, norm;
    double l0; // latents kept per token
    bool finite() const { return std::isfinite(fvu) && std::isfinite(aux + penalty) && std::isfinite(norm); }
};
SaeStep sae_step(Sae& s, SaeActivations& t, const real* x, size_t N, uint32_t idle, uint64_t step, double lr);

// The share of the peak rate at a step from 0: warm-up over the first twentieth, linear to 0 over the last
// fifth.
double sae_rate(int64_t step, int64_t steps);

// ---------------------------------------------------------------------------------------------------------
// 6 Start and events

// Rows of W_d random unit vectors, W_e = W_d, b_e 0, b_d the geometric median of x (N,C).
void sae_start(Sae& s, const real* x, size_t N, uint64_t seed, uint64_t stream);

// The point with the least sum of distances to x (N,C): Weiszfeld's iteration.
void geometric_median(real* median, const real* x, size_t N, size_t C, size_t rounds = 100);

// relu: a dead latent starts anew in the direction of an input, drawn with probability ~ its squared error,
// with 0.2 of the mean norm of the living encoder rows. Returns how many.  x (N,C) as in sae_forward
size_t sae_resample(Sae& s, const SaeActivations& t, const real* x, uint32_t idle, uint64_t seed,
                    uint64_t stream);

// relu: p falls to another value; lambda so that the penalty of this batch stays as it is.
void sae_anneal(Sae& s, const SaeActivations& t, double p);
