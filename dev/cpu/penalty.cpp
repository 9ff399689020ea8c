// The terms of penalty.h, in its order: there the formulas and shapes, here the loops.
#include "penalty.h"
#include <cmath>

double expected_share(const real* g, const int32_t* choice, size_t N, size_t E, size_t K) {
    double sum = 0;
    for (size_t n = 0; n < N; n++)
        for (size_t k = 0; k < K; k++) sum += (1 - g[n * E + choice[n * K + k]]) / 2;
    return sum / double(N * K);
}

void expected_share_backward(real* dg, const int32_t* choice, real scale, size_t N, size_t E, size_t K) {
    parallel_for(N, [&](size_t n) {
        for (size_t k = 0; k < K; k++) dg[n * E + choice[n * K + k]] -= scale / real(2 * N * K);
    });
}

void row_norms(real* norm, Matrix w_dec, size_t units, size_t C) {
    parallel_for(units, [&](size_t i) {
        real sum = 0;
        for (size_t c = 0; c < C; c++) sum += w_dec.at(i, c) * w_dec.at(i, c);
        norm[i] = std::sqrt(sum);
    });
}

double weighted_l1(const real* z, const L1& l1, size_t slots, size_t D) {
    double sum = 0;
    for (size_t s = 0; s < slots; s++) {
        real row = 0;
#pragma omp simd reduction(+ : row)
        for (size_t i = 0; i < D; i++) row += z[s * D + i] * l1.norm[i];
        sum += double(l1.factor ? l1.factor[s] : 1) * row;
    }
    return sum;
}

void weighted_l1_units(real* dh, const real* z, const L1& l1, size_t slots, size_t D) {
    parallel_for(slots, [&](size_t s) {
        const real each = l1.scale * (l1.factor ? l1.factor[s] : 1);
        for (size_t i = 0; i < D; i++) dh[s * D + i] += z[s * D + i] > 0 ? each * l1.norm[i] : 0;
    });
}

void weighted_l1_rows(real* dw_dec, Matrix w_dec, const real* z, const L1& l1, size_t slots, size_t D,
                      size_t C) {
    static thread_local Workspace memory;
    real* sum = memory.reserve(D); // over the slots, of w z
    parallel_ranges(D, 64, [&](size_t begin, size_t end) {
        std::fill(sum + begin, sum + end, real(0));
        for (size_t s = 0; s < slots; s++)
            for (size_t i = begin; i < end; i++) sum[i] += (l1.factor ? l1.factor[s] : 1) * z[s * D + i];
        for (size_t i = begin; i < end; i++)
            for (size_t c = 0; c < C && l1.norm[i] > 0; c++)
                dw_dec[i * w_dec.row + c * w_dec.column] += l1.scale * sum[i] / l1.norm[i] * w_dec.at(i, c);
    });
}
