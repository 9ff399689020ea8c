// The layers every transformer has, forward and backward side by side: embedding, LayerNorm, linear,
// activation, residual, and the classifier. Outputs come first, then inputs, then sizes. N = B*T rows are
// tokens. Gradients of parameters are added to (+=), gradients of activations are written (=), and the
// residual stream's gradient is added to.
#pragma once
#include "gemm.h"
#include <cstddef>

// Sum over the rows of x (N,M), added to sums (M): the gradient of a bias. Or, of G groups of rows, sums
// (G,M), group g being the rows begin[g] to begin[g+1]. Columns are summed in the order of the rows whatever
// the number of threads.
inline void add_column_sums(real* sums, const real* x, const int32_t* begin, size_t G, size_t M) {
    const size_t width = 64;
#pragma omp parallel for collapse(2) schedule(static)
    for (size_t g = 0; g < G; g++)
        for (size_t j = 0; j < M; j += width) {
            const size_t columns = std::min(width, M - j);
            real sum[64] = {};
            for (size_t n = begin[g]; n < size_t(begin[g + 1]); n++)
                for (size_t i = 0; i < columns; i++) sum[i] += x[n * M + j + i];
            for (size_t i = 0; i < columns; i++) sums[g * M + j + i] += sum[i];
        }
}
inline void add_column_sums(real* sums, const real* x, size_t N, size_t M) {
    const int32_t all[] = {0, int32_t(N)};
    add_column_sums(sums, x, all, 1, M);
}

// ---------------------------------------------------------------------------------------------------------
// Embedding: out[b,t] = wte[token[b,t]] + wpe[t]

// out (B,T,C), tokens (B,T), wte (V,C), wpe (>=T,C)
inline void embedding_forward(real* out, const int32_t* tokens, const real* wte, const real* wpe, size_t B,
                              size_t T, size_t C) {
#pragma omp parallel for schedule(static) if (B * T > 1)
    for (size_t n = 0; n < B * T; n++) {
        const real *token = wte + tokens[n] * C, *position = wpe + n % T * C;
        for (size_t i = 0; i < C; i++) out[n * C + i] = token[i] + position[i];
    }
}

// dwte[token] += dout of every place the token stands; dwpe[t] += dout of every b. Threads share the
// channels, so that the order of each sum is that of the tokens.
inline void embedding_backward(real* dwte, real* dwpe, const real* dout, const int32_t* tokens, size_t B,
                               size_t T, size_t C) {
    const size_t width = 64;
#pragma omp parallel for schedule(static)
    for (size_t j = 0; j < C; j += width)
        for (size_t n = 0; n < B * T; n++) {
            real *token = dwte + tokens[n] * C, *position = dwpe + n % T * C;
            for (size_t i = j; i < std::min(j + width, C); i++) {
                token[i] += dout[n * C + i];
                position[i] += dout[n * C + i];
            }
        }
}

// ---------------------------------------------------------------------------------------------------------
// LayerNorm: out = weight * norm + bias, norm = (x - mean) * rstd, rstd = 1 / sqrt(var + 1e-5) over the
// channels

// out (N,C), mean rstd (N), x (N,C), weight bias (C)
inline void layernorm_forward(real* out, real* mean, real* rstd, const real* x, const real* weight,
                              const real* bias, size_t N, size_t C) {
#pragma omp parallel for schedule(static) if (N > 1)
    for (size_t n = 0; n < N; n++) {
        const real* row = x + n * C;
        real m = 0, v = 0;
#pragma omp simd reduction(+ : m)
        for (size_t i = 0; i < C; i++) m += row[i];
        m /= C;
#pragma omp simd reduction(+ : v)
        for (size_t i = 0; i < C; i++) v += (row[i] - m) * (row[i] - m);
        const real r = 1 / std::sqrt(v / C + real(1e-5));
        for (size_t i = 0; i < C; i++) out[n * C + i] = (row[i] - m) * r * weight[i] + bias[i];
        mean[n] = m;
        rstd[n] = r;
    }
}

// With dnorm = weight * dout and averages over the channels:
//   dx += rstd * (dnorm - avg(dnorm) - norm * avg(dnorm * norm));   dweight += sum norm * dout;   dbias +=
//   sum dout
// dx is the residual stream's gradient, so it is added to.
inline void layernorm_backward(real* dx, real* dweight, real* dbias, const real* dout, const real* x,
                               const real* mean, const real* rstd, const real* weight, size_t N, size_t C) {
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (size_t n = 0; n < N; n++) {
            const real *row = x + n * C, *d = dout + n * C;
            const real m = mean[n], r = rstd[n];
            real sum = 0, sum_norm = 0;
#pragma omp simd reduction(+ : sum, sum_norm)
            for (size_t i = 0; i < C; i++) {
                sum += weight[i] * d[i];
                sum_norm += weight[i] * d[i] * ((row[i] - m) * r);
            }
            sum /= C, sum_norm /= C;
            for (size_t i = 0; i < C; i++)
                dx[n * C + i] += r * (weight[i] * d[i] - sum - (row[i] - m) * r * sum_norm);
        }
        const size_t width = 64;
#pragma omp for schedule(static)
        for (size_t j = 0; j < C; j += width) {
            const size_t columns = std::min(width, C - j);
            real weight_sum[64] = {}, bias_sum[64] = {};
            for (size_t n = 0; n < N; n++)
                for (size_t i = 0; i < columns; i++) {
                    const real d = dout[n * C + j + i];
                    weight_sum[i] += (x[n * C + j + i] - mean[n]) * rstd[n] * d;
                    bias_sum[i] += d;
                }
            for (size_t i = 0; i < columns; i++) dweight[j + i] += weight_sum[i], dbias[j + i] += bias_sum[i];
        }
    }
}

// ---------------------------------------------------------------------------------------------------------
// Linear: out = x weight^T + bias

// out (N,OC), x (N,C), weight (OC,C), bias (OC) or null
inline void linear_forward(real* out, const real* x, const real* weight, const real* bias, size_t N, size_t C,
                           size_t OC) {
    multiply({out, row_major(x, C), row_major(weight, C).transposed(), N, OC, C, false, bias});
}

// dx = dout weight;  dweight += dout^T x;  dbias += sum dout
inline void linear_backward(real* dx, real* dweight, real* dbias, const real* dout, const real* x,
                            const real* weight, size_t N, size_t C, size_t OC) {
    multiply({dx, row_major(dout, OC), row_major(weight, C), N, C, OC});
    multiply({dweight, row_major(dout, OC).transposed(), row_major(x, C), OC, C, N, true});
    if (dbias) add_column_sums(dbias, dout, N, OC);
}

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
inline size_t activate(real* out, const real* h, size_t count, bool relu) {
    if (relu)
        for (size_t i = 0; i < count; i++)
            out[i] = h[i] > 0 ? h[i] : h[i] == h[i] ? 0 : h[i]; // NaN stays NaN
    else
#pragma omp simd
        for (size_t i = 0; i < count; i++) out[i] = gelu(h[i]);
    uint32_t active = 0;
    for (size_t i = 0; i < count; i++) active += out[i] > 0;
    return active;
}

// dh = dout * act'(h). dh may be dout itself. For relu, h may be its output: both are positive together.
inline void activate_backward(real* dh, const real* dout, const real* h, size_t count, bool relu) {
    if (relu)
        for (size_t i = 0; i < count; i++) dh[i] = h[i] > 0 ? dout[i] : 0;
    else
#pragma omp simd
        for (size_t i = 0; i < count; i++) dh[i] = dout[i] * gelu_slope(h[i]);
}

// The same on whole arrays.
constexpr size_t activation_block = 4096;

inline void activation_forward(real* out, const real* h, size_t count, bool relu) {
#pragma omp parallel for schedule(static) if (count > 4 * activation_block)
    for (size_t j = 0; j < count; j += activation_block)
        activate(out + j, h + j, std::min(activation_block, count - j), relu);
}
inline void activation_backward(real* dh, const real* dout, const real* h, size_t count, bool relu) {
#pragma omp parallel for schedule(static) if (count > 4 * activation_block)
    for (size_t j = 0; j < count; j += activation_block)
        activate_backward(dh + j, dout + j, h + j, std::min(activation_block, count - j), relu);
}

// How many of z (count) are positive.
inline size_t count_active(const real* z, size_t count) {
    size_t active = 0;
#pragma omp parallel for simd schedule(static) reduction(+ : active) if (count > 16384)
    for (size_t i = 0; i < count; i++) active += z[i] > 0;
    return active;
}

// ---------------------------------------------------------------------------------------------------------
// Residual: out = x + y

inline void residual_forward(real* out, const real* x, const real* y, size_t count) {
#pragma omp parallel for schedule(static) if (count > 16384)
    for (size_t i = 0; i < count; i++) out[i] = x[i] + y[i];
}

// ---------------------------------------------------------------------------------------------------------
// Classifier: loss_n = -log softmax(logits_n)[target_n]

// losses (N), logits (N,V), targets (N). With scale not 0 the logits become their gradient, in place:
//   dlogits_nv = scale * (softmax_nv - [v = target_n])
inline void classifier(real* losses, real* logits, const int32_t* targets, size_t N, size_t V, real scale) {
#pragma omp parallel for schedule(static)
    for (size_t n = 0; n < N; n++) {
        real* row = logits + n * V;
        real most = row[0], sum = 0;
#pragma omp simd reduction(max : most)
        for (size_t v = 0; v < V; v++) most = row[v] > most ? row[v] : most;
        const real target = row[targets[n]];
        if (scale == 0) {
#pragma omp simd reduction(+ : sum)
            for (size_t v = 0; v < V; v++) sum += fast_exp(row[v] - most);
        } else {
#pragma omp simd reduction(+ : sum)
            for (size_t v = 0; v < V; v++) sum += row[v] = fast_exp(row[v] - most);
            const real factor = scale / sum;
            for (size_t v = 0; v < V; v++) row[v] *= factor;
            row[targets[n]] -= scale;
        }
        losses[n] = std::log(sum) + (most - target); // exact where two large logits differ little
    }
}
