// The layers of layers.h, in its order: there the formulas and shapes, here the loops.
#include "layers.h"
#include <algorithm>

// Sums over rows go by blocks of columns: threads share the columns, and each sum runs in the order of rows.
constexpr size_t column_block = 64;
static size_t blocks_of(size_t columns) { return (columns + column_block - 1) / column_block; }

void add_column_sums(real* sums, const real* x, const int32_t* begin, size_t G, size_t M) {
    const size_t blocks = blocks_of(M);
    parallel_for(G * blocks, [&](size_t item) {
        const size_t g = item / blocks, j = item % blocks * column_block;
        const size_t columns = std::min(column_block, M - j);
        real sum[column_block] = {};
        for (size_t n = begin[g]; n < size_t(begin[g + 1]); n++)
            for (size_t i = 0; i < columns; i++) sum[i] += x[n * M + j + i];
        for (size_t i = 0; i < columns; i++) sums[g * M + j + i] += sum[i];
    });
}

void add_column_sums(real* sums, const real* x, size_t N, size_t M) {
    const int32_t all[] = {0, int32_t(N)};
    add_column_sums(sums, x, all, 1, M);
}

// ---------------------------------------------------------------------------------------------------------
// Embedding

void embedding_forward(real* out, const int32_t* tokens, const real* wte, const real* wpe, size_t B, size_t T,
                       size_t C) {
    parallel_for(B * T, [&](size_t n) {
        const real *token = wte + tokens[n] * C, *position = wpe + n % T * C;
        for (size_t i = 0; i < C; i++) out[n * C + i] = token[i] + position[i];
    });
}

void embedding_backward(real* dwte, real* dwpe, const real* dout, const int32_t* tokens, size_t B, size_t T,
                        size_t C) {
    parallel_for(blocks_of(C), [&](size_t block) {
        const size_t j = block * column_block, end = std::min(j + column_block, C);
        for (size_t n = 0; n < B * T; n++) {
            real *token = dwte + tokens[n] * C, *position = dwpe + n % T * C;
            for (size_t i = j; i < end; i++) {
                token[i] += dout[n * C + i];
                position[i] += dout[n * C + i];
            }
        }
    });
}

// ---------------------------------------------------------------------------------------------------------
// LayerNorm

void layernorm_forward(real* out, real* mean, real* rstd, const real* x, const real* weight, const real* bias,
                       size_t N, size_t C) {
    parallel_for(N, [&](size_t n) {
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
    });
}

void layernorm_backward(real* dx, real* dweight, real* dbias, const real* dout, const real* x,
                        const real* mean, const real* rstd, const real* weight, size_t N, size_t C) {
    parallel_for(N, [&](size_t n) {
        const real *row = x + n * C, *d = dout + n * C;
        const real m = mean[n], r = rstd[n];
        real sum = 0, sum_norm = 0;
#pragma omp simd reduction(+ : sum, sum_norm)
        for (size_t i = 0; i < C; i++) {
            sum += weight[i] * d[i];
            sum_norm += weight[i] * d[i] * ((row[i] - m) * r);
        }
        sum /= C;
        sum_norm /= C;
        for (size_t i = 0; i < C; i++)
            dx[n * C + i] += r * (weight[i] * d[i] - sum - (row[i] - m) * r * sum_norm);
    });
    parallel_for(blocks_of(C), [&](size_t block) {
        const size_t j = block * column_block, columns = std::min(column_block, C - j);
        real weight_sum[column_block] = {}, bias_sum[column_block] = {};
        for (size_t n = 0; n < N; n++) {
            const real *row = x + n * C + j, *d = dout + n * C + j;
            const real m = mean[n], r = rstd[n];
            for (size_t i = 0; i < columns; i++) {
                weight_sum[i] += (row[i] - m) * r * d[i];
                bias_sum[i] += d[i];
            }
        }
        for (size_t i = 0; i < columns; i++) {
            dweight[j + i] += weight_sum[i];
            dbias[j + i] += bias_sum[i];
        }
    });
}

// ---------------------------------------------------------------------------------------------------------
// Linear

void linear_forward(real* out, const real* x, const real* weight, const real* bias, size_t N, size_t C,
                    size_t OC) {
    multiply({out, row_major(x, C), row_major(weight, C).transposed(), N, OC, C, false, bias});
}

void linear_backward(real* dx, real* dweight, real* dbias, const real* dout, const real* x,
                     const real* weight, size_t N, size_t C, size_t OC) {
    multiply({dx, row_major(dout, OC), row_major(weight, C), N, C, OC});
    multiply({dweight, row_major(dout, OC).transposed(), row_major(x, C), OC, C, N, true});
    if (dbias) add_column_sums(dbias, dout, N, OC);
}

// ---------------------------------------------------------------------------------------------------------
// Activation

size_t activate(real* out, const real* h, size_t count, bool relu) {
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

void activate_backward(real* dh, const real* dout, const real* h, size_t count, bool relu) {
    if (relu)
        for (size_t i = 0; i < count; i++) dh[i] = h[i] > 0 ? dout[i] : 0;
    else
#pragma omp simd
        for (size_t i = 0; i < count; i++) dh[i] = dout[i] * gelu_slope(h[i]);
}

constexpr size_t worth_a_thread = 8192; // numbers of an elementwise loop: below, waking one takes longer

void activation_forward(real* out, const real* h, size_t count, bool relu) {
    parallel_ranges(count, worth_a_thread,
                    [&](size_t begin, size_t end) { activate(out + begin, h + begin, end - begin, relu); });
}

void activation_backward(real* dh, const real* dout, const real* h, size_t count, bool relu) {
    parallel_ranges(count, worth_a_thread, [&](size_t begin, size_t end) {
        activate_backward(dh + begin, dout + begin, h + begin, end - begin, relu);
    });
}

size_t count_active(const real* z, size_t count) {
    std::atomic<size_t> active{0};
    parallel_ranges(count, worth_a_thread, [&](size_t begin, size_t end) {
        size_t found = 0;
        for (size_t i = begin; i < end; i++) found += z[i] > 0;
        active += found;
    });
    return active;
}

// ---------------------------------------------------------------------------------------------------------
// GEGLU

void geglu_forward(real* z, const real* a, const real* u, size_t count) {
    parallel_ranges(count, worth_a_thread, [&](size_t begin, size_t end) {
#pragma omp simd
        for (size_t i = begin; i < end; i++) z[i] = gelu(a[i]) * u[i];
    });
}

void geglu_backward(real* da, real* du, const real* dz, const real* a, const real* u, size_t count) {
    parallel_ranges(count, worth_a_thread, [&](size_t begin, size_t end) {
#pragma omp simd
        for (size_t i = begin; i < end; i++) {
            const real d = dz[i];
            du[i] = d * gelu(a[i]);
            da[i] = d * u[i] * gelu_slope(a[i]);
        }
    });
}

// ---------------------------------------------------------------------------------------------------------
// SoLU

void solu_forward(real* u, real* s, const real* h, size_t N, size_t W) {
    parallel_for(N, [&](size_t n) {
        const real* hn = h + n * W;
        real *sn = s + n * W, most = hn[0], sum = 0;
#pragma omp simd reduction(max : most)
        for (size_t i = 0; i < W; i++) most = hn[i] > most ? hn[i] : most;
#pragma omp simd reduction(+ : sum)
        for (size_t i = 0; i < W; i++) sum += sn[i] = fast_exp(hn[i] - most);
        for (size_t i = 0; i < W; i++) {
            sn[i] /= sum;
            u[n * W + i] = W * hn[i] * sn[i];
        }
    });
}

void solu_backward(real* dh, const real* du, const real* u, const real* s, const real* h, size_t N,
                   size_t W) {
    parallel_for(N, [&](size_t n) {
        const size_t first = n * W, end = first + W;
        real q = 0;
#pragma omp simd reduction(+ : q)
        for (size_t i = first; i < end; i++) q += du[i] * u[i];
        for (size_t i = first; i < end; i++) dh[i] = s[i] * (W * du[i] * (1 + h[i]) - q);
    });
}

// ---------------------------------------------------------------------------------------------------------
// Residual

void residual_forward(real* out, const real* x, const real* y, size_t count) {
    parallel_ranges(count, worth_a_thread, [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; i++) out[i] = x[i] + y[i];
    });
}

// ---------------------------------------------------------------------------------------------------------
// Classifier

void classifier(real* losses, real* logits, const int32_t* targets, size_t N, size_t V, real scale) {
    parallel_for(N, [&](size_t n) {
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
    });
}
