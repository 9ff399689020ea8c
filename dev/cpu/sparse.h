// Products that skip the zeros of relu. A trained MoE-X layer fires 4 to 20% of its units, so in five of its six
// products (all but the encoder's) most of the work is multiplication by zero. Here only rows that count are moved:
//
//   sparse_multiply    out_i (+)= sum over k with mask_ik > 0 of  s_ik rows_k
//   sampled_multiply   out_ik = a_i . rows_k where mask_ik > 0, else 0
//
// mask is relu's output: the unit fired where it is positive. The rows are taken in chunks that stay in the second-
// level cache, and every sum runs over k in order, so the bits do not depend on the number of threads.
#pragma once
#include "gemm.h"

// One product of a group: rows (K,C) row-major, s and mask (M,K) of any strides, out (M,C) or, sampled, (M,K) row-major.
struct SparseProduct {
    real* out;
    Matrix s, mask;   // sampled: s is a (M,C)
    const real* rows;
    size_t M, K, C;
};

constexpr size_t sparse_lanes = 16; // outputs whose lists are made together, so that strided masks are read by lines
constexpr size_t sparse_group = 64; // outputs of one work item
constexpr size_t sparse_chunk = 512;

struct ActiveList {
    int32_t index[sparse_chunk];
    real value[sparse_chunk];
    size_t count;
};

// For lanes i < n: which k < count have mask(i,k) > 0, and s(i,k) there. Every k is written and only some are kept:
// that costs less than a branch that cannot be foreseen.
inline void list_active(ActiveList* lists, Matrix mask, Matrix s, size_t n, size_t count) {
    for (size_t i = 0; i < n; i++) lists[i].count = 0;
    if (mask.column == 1) {
        for (size_t i = 0; i < n; i++) {
            const real* row = mask.data + i * mask.row;
            size_t found = 0;
            for (size_t k = 0; k < count; k++) {
                lists[i].index[found] = int32_t(k);
                found += row[k] > 0;
            }
            lists[i].count = found;
        }
    } else {
        for (size_t k = 0; k < count; k++)
            for (size_t i = 0; i < n; i++) {
                lists[i].index[lists[i].count] = int32_t(k);
                lists[i].count += mask.at(i, k) > 0;
            }
    }
    for (size_t i = 0; i < n; i++)
        for (size_t a = 0; a < lists[i].count; a++) lists[i].value[a] = s.at(i, lists[i].index[a]);
}

// out (C) += sum over the list of value * rows[index], in strips of columns that stay in registers
inline void add_rows(real* out, const ActiveList& list, const real* rows, size_t C) {
    constexpr size_t vectors = 8, strip = vectors * vector_length;
    size_t c = 0;
    for (; c + strip <= C; c += strip) {
        vec sum[vectors];
#pragma GCC unroll 8
        for (size_t v = 0; v < vectors; v++) sum[v] = *(const vec*)(out + c + v * vector_length);
        for (size_t i = 0; i < list.count; i++) {
            const real* row = rows + list.index[i] * C + c;
#pragma GCC unroll 8
            for (size_t v = 0; v < vectors; v++) sum[v] += list.value[i] * *(const vec*)(row + v * vector_length);
        }
#pragma GCC unroll 8
        for (size_t v = 0; v < vectors; v++) *(vec*)(out + c + v * vector_length) = sum[v];
    }
    for (; c < C; c++)
        for (size_t i = 0; i < list.count; i++) out[c] += list.value[i] * rows[list.index[i] * C + c];
}

// out[index] = a . rows[index] for the list
inline void dot_rows(real* out, const ActiveList& list, const real* a, const real* rows, size_t C) {
    for (size_t i = 0; i < list.count; i++) {
        const real* row = rows + list.index[i] * C;
        real sum = 0;
#pragma omp simd reduction(+ : sum)
        for (size_t c = 0; c < C; c++) sum += a[c] * row[c];
        out[list.index[i]] = sum;
    }
}

// The frame of both: work items are groups of outputs of one product; inside, chunks of rows; inside, lanes.
template <class Each> void for_each_active(const SparseProduct* products, size_t n_products, Each each) {
    size_t items = 0;
    for (size_t p = 0; p < n_products; p++) items += (products[p].M + sparse_group - 1) / sparse_group;
#pragma omp parallel
    {
        static thread_local std::vector<ActiveList> lists(sparse_lanes);
#pragma omp for schedule(dynamic, 1)
        for (size_t q = 0; q < items; q++) {
            size_t item = q, p = 0;
            for (; item >= (products[p].M + sparse_group - 1) / sparse_group; p++)
                item -= (products[p].M + sparse_group - 1) / sparse_group;
            const SparseProduct& g = products[p];
            const size_t first = item * sparse_group, end = std::min(first + sparse_group, g.M);
            const size_t chunk = std::clamp<size_t>(131072 / g.C, 32, sparse_chunk); // rows of half a megabyte
            for (size_t k = 0; k < g.K; k += chunk)
                for (size_t i = first; i < end; i += sparse_lanes)
                    each(g, lists.data(), i, std::min(sparse_lanes, end - i), k, std::min(chunk, g.K - k));
        }
    }
}

inline void sparse_multiply(const SparseProduct* products, size_t n_products) {
    for_each_active(products, n_products, [](const SparseProduct& g, ActiveList* lists, size_t i, size_t n, size_t k, size_t count) {
        list_active(lists, g.mask.from(i, k), g.s.from(i, k), n, count);
        for (size_t lane = 0; lane < n; lane++) add_rows(g.out + (i + lane) * g.C, lists[lane], g.rows + k * g.C, g.C);
    });
}

inline void sampled_multiply(const SparseProduct* products, size_t n_products) {
    for_each_active(products, n_products, [](const SparseProduct& g, ActiveList* lists, size_t i, size_t n, size_t k, size_t count) {
        list_active(lists, g.mask.from(i, k), g.mask.from(i, k), n, count);
        for (size_t lane = 0; lane < n; lane++) {
            real* out = g.out + (i + lane) * g.K + k;
            std::fill(out, out + count, real(0));
            dot_rows(out, lists[lane], g.s.data + (i + lane) * g.s.row, g.rows + k * g.C, g.C);
        }
    });
}
