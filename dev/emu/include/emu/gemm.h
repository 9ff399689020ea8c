// The products behind cublasLt.h: fp32 or bf16 matrices with any strides, summed in fp32, in tiles dealt to
// all cores. A tile of both factors is copied to fp32 in the order in which the inner loop reads it; that
// loop keeps 16 x 6 sums in registers. The order of summation depends on the shape alone.
#pragma once
#include "ptx.h"

namespace emu {

// An element (i,j) of a matrix lies at data + i * row_stride + j * column_stride (in elements).
struct Matrix {
    void* data;
    bool bf16;
    size_t row_stride, column_stride;

    float get(size_t i, size_t j) const {
        const size_t at = i * row_stride + j * column_stride;
        return bf16 ? bf16_to_float(static_cast<const uint16_t*>(data)[at])
                    : static_cast<const float*>(data)[at];
    }
    void set(size_t i, size_t j, float x) const {
        const size_t at = i * row_stride + j * column_stride;
        if (bf16)
            static_cast<uint16_t*>(data)[at] = float_to_bf16(x);
        else
            static_cast<float*>(data)[at] = x;
    }
};

constexpr size_t tile = 96, depth_tile = 256; // of the product, and of the summed dimension
constexpr size_t strip_m = 16, strip_n = 6;   // the inner loop's share of a tile

// Strips of `width` rows: out[strip][k][row], rows beyond the matrix zero. `along` strides from row to row,
// `deep` along k.
template <class T>
void pack(float* out, const T* data, size_t along, size_t deep, size_t rows, size_t depth, size_t width) {
    const auto value = [](T x) {
        if constexpr (sizeof(T) == 2)
            return bf16_to_float(x);
        else
            return x;
    };
    for (size_t first = 0; first < rows; first += width, out += width * depth) {
        const size_t n = std::min(width, rows - first);
        const T* from = data + first * along;
        if (n < width) memset(out, 0, width * depth * sizeof(float));
        if (along == 1)
            for (size_t k = 0; k < depth; k++)
                for (size_t i = 0; i < n; i++) out[k * width + i] = value(from[k * deep + i]);
        else
            for (size_t i = 0; i < n; i++)
                for (size_t k = 0; k < depth; k++) out[k * width + i] = value(from[i * along + k * deep]);
    }
}

inline void pack_matrix(float* out, const Matrix& m, size_t i, size_t j, bool rows_are_strips, size_t count,
                        size_t depth, size_t width) {
    const size_t at = i * m.row_stride + j * m.column_stride;
    const size_t along = rows_are_strips ? m.row_stride : m.column_stride;
    const size_t deep = rows_are_strips ? m.column_stride : m.row_stride;
    if (m.bf16)
        pack(out, static_cast<const uint16_t*>(m.data) + at, along, deep, count, depth, width);
    else
        pack(out, static_cast<const float*>(m.data) + at, along, deep, count, depth, width);
}

// c[j][i] += sum over k of a[k][i] b[k][j], for 16 i and 6 j; c's columns are `tile` apart.
__attribute__((no_sanitize("address", "undefined"))) inline void
multiply_strips(float* c, const float* a, const float* b, size_t depth) {
    Float8 sum[strip_n][2] = {};
    for (size_t k = 0; k < depth; k++) {
        Float8 a0, a1;
        memcpy(&a0, a + k * strip_m, sizeof a0);
        memcpy(&a1, a + k * strip_m + 8, sizeof a1);
        for (size_t j = 0; j < strip_n; j++) {
            const float s = b[k * strip_n + j];
            sum[j][0] += a0 * s;
            sum[j][1] += a1 * s;
        }
    }
    for (size_t j = 0; j < strip_n; j++)
        for (size_t i = 0; i < strip_m; i++) c[j * tile + i] += sum[j][i / 8][i % 8];
}

// The product of a (m,k) and b (k,n) in tiles: finish(i0, j0, rows, columns, c) is called for each, its sums
// being c[j * tile + i]. narrow_parts: what is summed of every part of k is rounded to bf16, as split-K in
// the type of the output does.
template <class Finish>
void gemm(const Matrix& a, const Matrix& b, size_t m, size_t n, size_t k, bool narrow_parts, Finish finish) {
    const size_t tiles_m = (m + tile - 1) / tile, tiles_n = (n + tile - 1) / tile;
    parallel_for(tiles_m * tiles_n, [&](size_t t) {
        static thread_local std::vector<float> memory(tile * depth_tile * 2 + tile * tile);
        float *const packed_a = memory.data(), *const packed_b = packed_a + tile * depth_tile;
        float* const c = packed_b + tile * depth_tile;
        const size_t i0 = t % tiles_m * tile, j0 = t / tiles_m * tile;
        const size_t rows = std::min(tile, m - i0), columns = std::min(tile, n - j0);
        memset(c, 0, tile * tile * sizeof(float));
        for (size_t k0 = 0; k0 < k; k0 += depth_tile) {
            const size_t depth = std::min(depth_tile, k - k0);
            pack_matrix(packed_a, a, i0, k0, true, rows, depth, strip_m);
            pack_matrix(packed_b, b, k0, j0, false, columns, depth, strip_n);
            for (size_t j = 0; j < columns; j += strip_n)
                for (size_t i = 0; i < rows; i += strip_m)
                    multiply_strips(c + j * tile + i, packed_a + i * depth, packed_b + j * depth, depth);
            if (narrow_parts)
                for (size_t i = 0; i < tile * tile; i++) c[i] = bf16_to_float(float_to_bf16(c[i]));
        }
        finish(i0, j0, rows, columns, c);
    });
}

} // namespace emu
