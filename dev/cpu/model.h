// The reference model: its memory, forward, backward and update. Everything is allocated when the model is
// made; a step allocates nothing. Two models can live in one process.
#pragma once
#include "../run/parameters.h"
#include "attention.h"
#include "moe.h"
#include "monet.h"
#include "peer.h"
#include "router_sd.h"
#include <cmath>
#include <functional>
#include <utility>
#include <vector>

// ---------------------------------------------------------------------------------------------------------
// Memory

struct Block { // zeroed
    real* data = nullptr;
    size_t count = 0;
    explicit Block(size_t count = 0) : count(count) {
        if (count) data = allocate(count);
        std::fill(data, data + count, real(0));
    }
    Block(Block&& other) noexcept
        : data(std::exchange(other.data, nullptr)), count(std::exchange(other.count, 0)) {}
    Block& operator=(Block&& other) noexcept {
        std::swap(data, other.data);
        std::swap(count, other.count);
        return *this;
    }
    ~Block() { std::free(data); }
};

// Memory for all arrays that `list` visits, in one block; their pointers are set.
Block allocate_arrays(const std::function<void(const Visit&)>& list);
std::vector<int32_t> allocate_indices(const std::function<void(const VisitIndices&)>& list);

struct LayerActivations {
    real *ln_1, *ln_1_mean, *ln_1_rstd; // (N,C) (N) (N)
    real *qkv, *lse, *att;              // (N,3C) (B,NH,T) (N,C)
    real* mid;                          // (N,C) residual stream after attention
    real *ln_2, *ln_2_mean, *ln_2_rstd; // (N,C) (N) (N)
    real *h, *z;                        // pre-activations and units: moe (N*K,D) by slot, dense (N,W)
    real* gate;                         // geglu only: (N,W) what goes through gelu
    real *s, *u, *u_mean, *u_rstd;      // solu only: (N,W) softmax, (N,W) before the LayerNorm, (N) (N)
    size_t active;                      // how many units fire: of z, solu u, are positive
    real* out;                          // (N,C) residual stream after the feed-forward layer
    // moe only
    real *m, *v, *mb, *vb;                  // expert statistics (E,C) (E,C) (E) (E)
    real* covariance;                       // router_sd full only: (E,C+1,C+1)
    real *mu, *sd, *g, *p, *mean_p;         // router (N,E) x4, (E)
    real *weight, *y;                       // gate weights (N,K); expert outputs (N*K,C)
    int32_t *choice, *slot, *token, *begin; // (N,K) (N,K) (N*K) (E+1)
    MonetActivations monet;                 // monet only
    PeerActivations peer;                   // peer only
};

struct Activations {
    real* embedded;                     // (N,C)
    std::vector<LayerActivations> h;    // L
    real *ln_f, *ln_f_mean, *ln_f_rstd; // (N,C) (N) (N)
    real *logits, *losses;              // (N,V), in the backward pass its gradient; (N)
    // scratch, used by one layer at a time
    real* proj;                          // (N,C)
    real *dresidual, *dln, *datt, *dqkv; // (N,C) (N,C) (N,C) (N,3C)
    real *dh, *dgate, *du;               // as h; geglu only: as gate; solu only: as u
    real *dy, *dslots;                   // (N*K,C) (N*K,C)
    real *dg, *dmu, *dvar, *dweight;     // (N,E) x3, (N,K)
    real *dm, *dv, *dmb, *dvb;           // (E,C) (E,C) (E) (E)
    real *norm, *factor;                 // penalty.h: (E,D) or (W), (N*K)
    MonetScratch monet;                  // monet only
    PeerScratch peer;                    // peer only
};

// Places of a layer at which what stands there can be changed before the layers behind read it.
enum class Place { ln_2, out };

constexpr size_t norm_block = 1 << 14; // of block_norm() below

struct Model {
    Config config;
    std::vector<Tensor> table;
    Block weights, gradients, moment_1, moment_2, activations;
    std::vector<int32_t> indices; // the activations that are integers
    Parameters<real> w, g;
    Activations a;
    size_t B = 0, T = 0; // of the last forward pass; the activations hold max_tokens
    size_t max_B = 0, max_T = 0;
    const int32_t *tokens = nullptr, *targets = nullptr;
    bool statistics_stale = true;  // the weights changed since the expert statistics were computed
    std::vector<Product> products; // scratch of the experts
    std::vector<ExpertPart> parts;
    SkipBelow skip;                   // when the experts skip relu's zeros
    std::vector<double> partial;      // scratch of the gradient norm
    std::vector<size_t> load;         // (L,E) slots of the experts since zero_gradients()
    std::vector<Variances> variances; // (L,E) of router_sd scaled, likewise
    // Called by the forward pass with the activations (N,C) of a place, or null.
    std::function<void(size_t layer, Place place, real* x)> intervene;
    Routing routing; // how experts are chosen, where not as trained

    // For batches of up to B x T tokens; with training = false there is no backward pass, with B = 0 the
    // weights alone.
    explicit Model(const Config& config, size_t B = 0, size_t T = 0, bool training = true);
    static size_t activation_elements(const Config& config, size_t B, size_t T);
};

Experts layer_experts(Model& model, size_t l);
inline Gate layer_gate(const Model& model, size_t l, const Routing& routing) {
    return {model.w.h[l].balance, model.config.gate_all(), routing.standing_of(l, model.config.n_expert),
            routing.ranks};
}

// Weights that have just been read, and their routing, with what is changed of them. The model's config is
// already v.apply(config).
void apply(Model& model, const Intervention& v);

// ---------------------------------------------------------------------------------------------------------
// Forward

struct Losses {
    double loss = 0,
           aux = 0; // mean cross-entropy; load balance summed over layers, without its weight lambda
    bool finite() const { return std::isfinite(loss) && std::isfinite(aux); }
};

// The layers alone, and then ln_f and the head: who looks at units only needs no logits, which a large
// vocabulary makes dear. forward_layers returns the sum over layers of aux.  tokens (B,T), kept by reference
double forward_layers(Model& model, const int32_t* tokens, size_t B, size_t T);
void head_forward(Model& model);

// Both. Fills model.a, logits included; returns the sum over layers of aux.
double forward_logits(Model& model, const int32_t* tokens, size_t B, size_t T);

// Loss of the batch. gradient_scale 0: evaluation. Otherwise the logits are replaced by gradient_scale times
// the gradient of the mean cross-entropy (1 / accumulation steps), ready for backward().  targets (B,T)
Losses forward(Model& model, const int32_t* tokens, const int32_t* targets, size_t B, size_t T,
               real gradient_scale = 0);

// Active units (> 0) per token, mean over layers, of the last forward pass.
double mean_l0(const Model& model);

// ---------------------------------------------------------------------------------------------------------
// Backward: after forward() with a gradient_scale, adds to model.gradients the gradient of
// gradient_scale * (mean cross-entropy + sum over layers of the terms of LossWeights, each times its weight);
// without aux for balance bias. scales: gradient_scale * the weights
void backward(Model& model, const LossWeights& scales);

// The values of those terms in the last forward pass, summed over layers: expected share, weighted L1.
struct Penalties {
    double l0 = 0, l1 = 0;
};
Penalties penalties(Model& model);

void zero_gradients(Model& model);

// ---------------------------------------------------------------------------------------------------------
// Update

// Global norm of a gradient, summed in blocks of fixed size: in `real` within a short one, then in double.
// partial: scratch
double block_norm(const real* g, size_t count, std::vector<double>& partial);
double gradient_norm(Model& model);

struct AdamW {
    double lr = 3e-4, beta_1 = 0.9, beta_2 = 0.95, eps = 1e-8, weight_decay = 0.1;
};

// Decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101), t = 1, 2, ..., G = gradient_scale *
// gradient:
//   m = b1 m + (1-b1) G     v = b2 v + (1-b2) G^2     mhat = m / (1-b1^t)     vhat = v / (1-b2^t)
//   w -= lr (mhat / (sqrt(vhat) + eps) + decay w)
// Moments below 1e-30 become 0.
void adamw(real* w, const real* g, real* m, real* v, size_t count, const AdamW& adam, real decay, uint64_t t,
           double gradient_scale);
void update(Model& model, const AdamW& adam, uint64_t t, double gradient_scale);

// After it, what moves by a rule of its own, by what the step has seen: the experts' biases of balance bias,
// rho of router_sd scaled.
void update_running(Model& model, double balance_rate);
