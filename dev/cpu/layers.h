// The layers every transformer has, forward and backward side by side: embedding, LayerNorm, linear,
// activation, residual, and the classifier. Outputs come first, then inputs, then sizes. N = B*T rows are
// tokens. Gradients of parameters are added to (+=), gradients of activations are written (=), and the
// residual stream's gradient is added to.
#pragma once
#include "gemm.h"

// How a layer says what memory it needs: it visits every array with its number of elements.
using Visit = std::function<void(real*& place, size_t count)>;
using VisitIndices = std::function<void(int32_t*& place, size_t count)>;

// Sum over the rows of x (N,M), added to sums (M): the gradient of a bias. Or, of G groups of rows, sums
// (G,M), group g being the rows begin[g] to begin[g+1]. Columns are summed in the order of the rows whatever
// the number of threads.
void add_column_sums(real* sums, const real* x, const int32_t* begin, size_t G, size_t M);
void add_column_sums(real* sums, const real* x, size_t N, size_t M);

// ---------------------------------------------------------------------------------------------------------
// Embedding: out[b,t] = wte[token[b,t]] + wpe[t]

// out (B,T,C), tokens (B,T), wte (V,C), wpe (>=T,C)
void embedding_forward(real* out, const int32_t* tokens, const real* wte, const real* wpe, size_t B, size_t T,
                       size_t C);

// dwte[token] += dout of every place the token stands; dwpe[t] += dout of every b. Threads share the
// channels, so that the order of each sum is that of the tokens.
void embedding_backward(real* dwte, real* dwpe, const real* dout, const int32_t* tokens, size_t B, size_t T,
                        size_t C);

// ---------------------------------------------------------------------------------------------------------
// LayerNorm over the channels: out = weight * norm + bias, norm = (x - mean) * rstd, rstd = 1 / sqrt(var + 1e-5)

// out (N,C), mean rstd (N), x (N,C), weight bias (C)
void layernorm_forward(real* out, real* mean, real* rstd, const real* x, const real* weight, const real* bias,
                       size_t N, size_t C);

// With dnorm = weight * dout and averages over the channels:
//   dx += rstd * (dnorm - avg(dnorm) - norm * avg(dnorm * norm))
//   dweight += sum norm * dout
//   dbias += sum dout
// dx is the residual stream's gradient, so it is added to.
void layernorm_backward(real* dx, real* dweight, real* dbias, const real* dout, const real* x,
                        const real* mean, const real* rstd, const real* weight, size_t N, size_t C);

// ---------------------------------------------------------------------------------------------------------
// Linear: out = x weight^T + bias

// out (N,OC), x (N,C), weight (OC,C), bias (OC) or null
void linear_forward(real* out, const real* x, const real* weight, const real* bias, size_t N, size_t C,
                    size_t OC);

// dx = dout weight;  dweight += dout^T x;  dbias += sum dout
void linear_backward(real* dx, real* dweight, real* dbias, const real* dout, const real* x,
                     const real* weight, size_t N, size_t C, size_t OC);

// ---------------------------------------------------------------------------------------------------------
// Activation: relu(h) = max(h, 0), or gelu(h) = h/2 (1 + tanh u), u = sqrt(2/pi) (h + 0.044715 h^3)

constexpr real gelu_scale = real(0.79788456080286535588), gelu_cubic = real(0.044715);

inline real gelu(real h) {
    return real(0.5) * h * (1 + fast_tanh(gelu_scale * (h + gelu_cubic * h * h * h)));
}
// gelu' = (1 + tanh u)/2 + h/2 (1 - tanh^2 u) u'
inline real gelu_slope(real h) {
    const real t = fast_tanh(gelu_scale * (h + gelu_cubic * h * h * h));
    return real(0.5) * (1 + t) + real(0.5) * h * (1 - t * t) * gelu_scale * (1 + 3 * gelu_cubic * h * h);
}

// On a few numbers, by one thread: out = act(h). out may be h itself. Returns how many are positive: the
// units that fired.
size_t activate(real* out, const real* h, size_t count, bool relu);

// dh = dout * act'(h). dh may be dout itself. For relu, h may be its output: both are positive together.
void activate_backward(real* dh, const real* dout, const real* h, size_t count, bool relu);

// The same on whole arrays.
void activation_forward(real* out, const real* h, size_t count, bool relu);
void activation_backward(real* dh, const real* dout, const real* h, size_t count, bool relu);

// How many of z (count) are positive.
size_t count_active(const real* z, size_t count);

// ---------------------------------------------------------------------------------------------------------
// GEGLU (Shazeer, arXiv 2002.05202): a unit is the product of two linear functions, the one through gelu
//   z = gelu(a) * u

// z a u (count)
void geglu_forward(real* z, const real* a, const real* u, size_t count);

// da = dz u gelu'(a);  du = dz gelu(a).   da or du may be dz itself.
void geglu_backward(real* da, real* du, const real* dz, const real* a, const real* u, size_t count);

// ---------------------------------------------------------------------------------------------------------
// SoLU (Elhage et al., "Softmax Linear Units", 2022): the units of a token compete
//   s = softmax of h over the W units;   u = W h s
// A LayerNorm follows. It takes out any factor, but for its eps: W makes the size of u that of h. Without it
// the variance of u at the start would be far under 1e-5.

// u s h (N,W)
void solu_forward(real* u, real* s, const real* h, size_t N, size_t W);

// With q = sum_i du_i u_i:  dh_i = s_i (W du_i (1 + h_i) - q).   dh may be du itself.
void solu_backward(real* dh, const real* du, const real* u, const real* s, const real* h, size_t N, size_t W);

// ---------------------------------------------------------------------------------------------------------
// Residual: out = x + y

void residual_forward(real* out, const real* x, const real* y, size_t count);

// ---------------------------------------------------------------------------------------------------------
// Classifier: loss_n = -log softmax(logits_n)[target_n]

// losses (N), logits (N,V), targets (N). With scale not 0 the logits become their gradient, in place:
//   dlogits_nv = scale * (softmax_nv - [v = target_n])
void classifier(real* losses, real* logits, const int32_t* targets, size_t N, size_t V, real scale);
