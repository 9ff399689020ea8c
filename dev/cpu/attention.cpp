// The attention of attention.h, by blocks of queries and keys.
#include "attention.h"
#include <algorithm>
#include <cmath>

constexpr size_t attention_block = 64; // queries and keys per block, a multiple of NR

// Scratch of one thread: operands packed once per head, and blocks of S and dP.
struct AttentionScratch {
    real *b[4], *block[2], *row[2];
    AttentionScratch(size_t T, size_t HS) {
        static thread_local Workspace memory;
        const size_t bl = attention_block, rows = round_up(T, bl), columns = round_up(HS, NR);
        const size_t b_size = rows * columns;
        real* p = memory.reserve(4 * b_size + 2 * bl * bl + 2 * rows + 8 * bl);
        auto take = [&p](size_t count) {
            real* const place = p;
            p += count;
            return place;
        };
        for (real*& x : b) x = take(b_size);
        for (real*& x : block) x = take(bl * bl);
        for (real*& x : row) x = take(rows);
    }
};

// s (rows, columns) of a block: query i0 + i sees key j0 + j only when j0 + j <= i0 + i
static void mask_future(real* s, size_t rows, size_t columns, size_t i0, size_t j0, real value) {
    for (size_t i = 0; i < rows; i++)
        for (size_t j = i0 + i + 1 > j0 ? i0 + i + 1 - j0 : 0; j < columns; j++)
            s[i * attention_block + j] = value;
}

void attention_forward(real* out, real* lse, const real* qkv, size_t B, size_t T, size_t C, size_t NH) {
    const size_t HS = C / NH, block = attention_block, C3 = 3 * C;
    parallel_items(B * NH, [&](size_t head) {
        const size_t b = head / NH, h = head % NH;
        const real scale = 1 / std::sqrt(real(HS)); // in here, where no store can change it
        AttentionScratch scratch(T, HS);
        const Matrix q = {qkv + b * T * C3 + h * HS, C3, 1}, k = q.from(0, C), v = q.from(0, 2 * C);
        real *keys = scratch.b[0], *values = scratch.b[1], *s = scratch.block[0];
        pack_b(keys, k.transposed(), HS, T);
        pack_b(values, v, T, HS);
        for (size_t i0 = 0; i0 < T; i0 += block) {
            const size_t rows = std::min(block, T - i0);
            real *o = out + (b * T + i0) * C + h * HS, *l = lse + (b * NH + h) * T + i0;
            real most[attention_block], sum[attention_block];
            std::fill(most, most + block, real(-INFINITY));
            std::fill(sum, sum + block, real(0));
            for (size_t j0 = 0; j0 <= i0; j0 += block) {
                const size_t columns = std::min(block, T - j0);
                multiply_block(s, block, q.from(i0, 0), keys + j0 * HS, HS, rows, columns, HS, false);
                if (j0 == i0) mask_future(s, rows, columns, i0, j0, -INFINITY);
                for (size_t i = 0; i < rows; i++) {
                    real* row = s + i * block;
                    real m = most[i], total = 0;
#pragma omp simd reduction(max : m)
                    for (size_t j = 0; j < columns; j++) m = scale * row[j] > m ? scale * row[j] : m;
#pragma omp simd reduction(+ : total)
                    for (size_t j = 0; j < columns; j++) total += row[j] = fast_exp(scale * row[j] - m);
                    const real fade =
                        j0 == 0 ? 0 : fast_exp(most[i] - m); // what came before, on the new scale
                    for (size_t d = 0; d < HS && j0 > 0; d++) o[i * C + d] *= fade;
                    sum[i] = sum[i] * fade + total;
                    most[i] = m;
                }
                multiply_block(o, C, row_major(s, block), values + j0 * NR, T, rows, HS, columns, j0 > 0);
            }
            for (size_t i = 0; i < rows; i++) {
                for (size_t d = 0; d < HS; d++) o[i * C + d] /= sum[i];
                l[i] = most[i] + std::log(sum[i]);
            }
        }
    });
}

void attention_backward(real* dqkv, const real* dout, const real* out, const real* lse, const real* qkv,
                        size_t B, size_t T, size_t C, size_t NH) {
    const size_t HS = C / NH, block = attention_block, C3 = 3 * C;
    parallel_items(B * NH, [&](size_t head) {
        const size_t b = head / NH, h = head % NH;
        const real scale = 1 / std::sqrt(real(HS));
        AttentionScratch scratch(T, HS);
        const Matrix q = {qkv + b * T * C3 + h * HS, C3, 1}, k = q.from(0, C), v = q.from(0, 2 * C);
        const Matrix d_o = {dout + b * T * C + h * HS, C, 1};
        const real* o = out + b * T * C + h * HS;
        real *dq = dqkv + b * T * C3 + h * HS, *dk = dq + C, *dv = dq + 2 * C;
        real *p = scratch.block[0], *ds = scratch.block[1], *delta = scratch.row[0];
        real *q_t = scratch.b[0], *o_t = scratch.b[1], *q_rows = scratch.b[2], *o_rows = scratch.b[3];
        for (size_t i = 0; i < T; i++) {
            real sum = 0;
#pragma omp simd reduction(+ : sum)
            for (size_t d = 0; d < HS; d++) sum += d_o.data[i * C + d] * o[i * C + d];
            delta[i] = sum;
        }
        // Blocks are kept transposed, keys down and queries across: S^T = K Q^T and dP^T = V dO^T, so
        // that dK and dV are sums along rows and only dQ needs a transposed operand.
        pack_b(q_t, q.transposed(), HS, T);
        pack_b(o_t, d_o.transposed(), HS, T);
        pack_b(q_rows, q, T, HS);
        pack_b(o_rows, d_o, T, HS);
        static thread_local Workspace key_memory;
        real* k_rows = key_memory.reserve(block * round_up(HS, NR));
        for (size_t j0 = 0; j0 < T; j0 += block) {
            const size_t keys = std::min(block, T - j0);
            pack_b(k_rows, k.from(j0, 0), keys, HS);
            for (size_t i0 = j0; i0 < T; i0 += block) {
                const size_t queries = std::min(block, T - i0);
                multiply_block(p, block, k.from(j0, 0), q_t + i0 * HS, HS, keys, queries, HS, false);
                multiply_block(ds, block, v.from(j0, 0), o_t + i0 * HS, HS, keys, queries, HS, false);
                const real* l = lse + (b * NH + h) * T + i0;
                for (size_t j = 0; j < keys; j++) {
                    const size_t first = i0 == j0 ? j : 0; // queries before the key do not see it
                    for (size_t i = 0; i < first; i++) p[j * block + i] = ds[j * block + i] = 0;
#pragma omp simd
                    for (size_t i = first; i < queries; i++) {
                        const real pij = fast_exp(scale * p[j * block + i] - l[i]);
                        p[j * block + i] = pij;
                        ds[j * block + i] = scale * pij * (ds[j * block + i] - delta[i0 + i]);
                    }
                }
                multiply_block(dv + j0 * C3, C3, row_major(p, block), o_rows + i0 * NR, T, keys, HS, queries,
                               i0 > j0);
                multiply_block(dk + j0 * C3, C3, row_major(ds, block), q_rows + i0 * NR, T, keys, HS, queries,
                               i0 > j0);
                multiply_block(dq + i0 * C3, C3, row_major(ds, block).transposed(), k_rows, keys, queries, HS,
                               keys, j0 > 0);
            }
        }
    });
}
