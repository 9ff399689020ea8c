// The estimates of router_sd.h, in its order: there the formulas and shapes, here the loops.
#include "router_sd.h"
#include <cmath>

// ---------------------------------------------------------------------------------------------------------
// Scaled

void add_variances(Variances* sums, const real* h, const real* sd, const real* rho, const int32_t* begin,
                   const int32_t* token, size_t E, size_t D) {
    parallel_items(E, [&](size_t j) {
        for (size_t s = begin[j]; s < size_t(begin[j + 1]); s++) {
            const real* row = h + s * D;
            real mean = 0, variance = 0;
#pragma omp simd reduction(+ : mean)
            for (size_t i = 0; i < D; i++) mean += row[i];
            mean /= D;
#pragma omp simd reduction(+ : variance)
            for (size_t i = 0; i < D; i++) variance += (row[i] - mean) * (row[i] - mean);
            const double diagonal = sd[size_t(token[s]) * E + j] / rho[j];
            sums[j].truth += variance / D;
            sums[j].diagonal += diagonal * diagonal;
        }
    });
}

void move_rho(real* rho, const Variances* sums, size_t E) {
    for (size_t j = 0; j < E; j++)
        if (sums[j].diagonal > 0)
            rho[j] =
                real(std::sqrt(0.99 * double(rho[j]) * rho[j] + 0.01 * sums[j].truth / sums[j].diagonal));
}

// ---------------------------------------------------------------------------------------------------------
// Full

// The rows w'_i - m'_j of expert j: (D,C+1)
static void centre(real* rows, const real* w_enc, const real* b_enc, const real* m, real mb, size_t D,
                   size_t C) {
    for (size_t i = 0; i < D; i++) {
        for (size_t c = 0; c < C; c++) rows[i * (C + 1) + c] = w_enc[i * C + c] - m[c];
        rows[i * (C + 1) + C] = b_enc[i] - mb;
    }
}

static void with_one(real* xs, const real* x, size_t N, size_t C) { // x' (N,C+1)
    parallel_for(N, [&](size_t n) {
        std::copy(x + n * C, x + (n + 1) * C, xs + n * (C + 1));
        xs[n * (C + 1) + C] = 1;
    });
}

void covariance_forward(real* covariance, const real* w_enc, const real* b_enc, const real* m, const real* mb,
                        size_t E, size_t D, size_t C) {
    const size_t X = C + 1;
    static thread_local Workspace memory;
    real* rows = memory.reserve(D * X);
    for (size_t j = 0; j < E; j++) {
        real* S = covariance + j * X * X;
        centre(rows, w_enc + j * D * C, b_enc + j * D, m + j * C, mb[j], D, C);
        multiply({S, row_major(rows, X).transposed(), row_major(rows, X), X, X, D});
        for (size_t i = 0; i < X * X; i++) S[i] /= D;
    }
}

void full_router_forward(real* g, real* mu, real* sd, const real* x, const real* covariance, const real* m,
                         const real* mb, size_t N, size_t E, size_t C) {
    const size_t X = C + 1;
    static thread_local Workspace memory;
    real *xs = memory.reserve(2 * N * X), *Sx = xs + N * X;
    with_one(xs, x, N, C);
    multiply({mu, row_major(x, C), row_major(m, C).transposed(), N, E, C, false, mb});
    for (size_t j = 0; j < E; j++) {
        multiply({Sx, row_major(xs, X), row_major(covariance + j * X * X, X), N, X, X});
        parallel_for(N, [&](size_t n) {
            real variance = 0;
#pragma omp simd reduction(+ : variance)
            for (size_t i = n * X; i < (n + 1) * X; i++) variance += xs[i] * Sx[i];
            sd[n * E + j] = variance < 0 ? 0 : variance; // rounding may take nothing below 0; a NaN stays
        });
    }
    score_forward(g, sd, mu, nullptr, N, E);
}

void full_router_backward(real* dx, real* dw_enc, real* db_enc, const RouterGradients& d, const real* dg,
                          const real* x, const RouterView& r, const real* covariance, const real* w_enc,
                          const real* b_enc, size_t N, size_t E, size_t D, size_t C) {
    const size_t X = C + 1;
    static thread_local Workspace memory;
    real *xs = memory.reserve(3 * N * X + X * X + 2 * D * X), *scaled = xs + N * X, *dxs = scaled + N * X;
    real *dS = dxs + N * X, *rows = dS + X * X, *drows = rows + D * X;
    score_backward(d.mu, d.var, dg, r.mu, r.sd, nullptr, N, E);
    add_column_sums(d.mb, d.mu, N, E);
    const Matrix dmu = row_major(d.mu, E);
    multiply({d.m, dmu.transposed(), row_major(x, C), E, C, N, true});
    multiply({dx, dmu, row_major(r.m, C), N, C, E, true});
    with_one(xs, x, N, C);
    for (size_t j = 0; j < E; j++) {
        parallel_for(N, [&](size_t n) {
            for (size_t i = n * X; i < (n + 1) * X; i++) scaled[i] = 2 * d.var[n * E + j] * xs[i];
        });
        multiply({dxs, row_major(scaled, X), row_major(covariance + j * X * X, X), N, X, X, j > 0});
        multiply({dS, row_major(scaled, X).transposed(), row_major(xs, X), X, X, N}); // twice dS
        centre(rows, w_enc + j * D * C, b_enc + j * D, r.m + j * C, r.mb[j], D, C);
        multiply({drows, row_major(rows, X), row_major(dS, X), D, X, X});
        for (size_t i = 0; i < D; i++) {
            for (size_t c = 0; c < C; c++) dw_enc[(j * D + i) * C + c] += drows[i * X + c] / D;
            db_enc[j * D + i] += drows[i * X + C] / D;
        }
    }
    parallel_for(N, [&](size_t n) {
        for (size_t c = 0; c < C; c++) dx[n * C + c] += dxs[n * X + c];
    });
}
