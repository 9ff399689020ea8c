// The blocking of the products of gemm.h, from the innermost kernel outwards.
#include "gemm.h"
#include <algorithm>
#include <cstring>
#include <new>
#include <sys/mman.h>
#include <utility>

real* allocate(size_t count) {
    if (count > SIZE_MAX / sizeof(real) / 2) throw std::bad_alloc();
    const size_t large_page = size_t(2) << 20, bytes = count * sizeof(real),
                 align = bytes >= large_page ? large_page : 64;
    void* p = std::aligned_alloc(align, round_up(bytes, align));
    if (!p) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (align == large_page)
        madvise(p, round_up(bytes, align), MADV_HUGEPAGE); // a refusal costs nothing but speed
#endif
    return (real*)p;
}

// The lanes `index` of a and b, those of b counted on from a's. (GCC has the builtin of clang since
// version 12.)
template <size_t... index>
[[gnu::always_inline]] inline vec shuffle(const vec& a, const vec& b, std::index_sequence<index...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, index...);
#else
    typedef decltype(a < b) lanes;
    return __builtin_shuffle(a, b, lanes{index...});
#endif
}

// A square of vector_length vectors, transposed in registers: in round S = 1, 2, 4, .. rows i and i + S
// exchange the entries whose column has bit S the other way round.
template <size_t S, size_t... lane>
[[gnu::always_inline]] inline void exchange(vec& a, vec& b, std::index_sequence<lane...>) {
    const vec first = shuffle(a, b, std::index_sequence<(lane & S ? vector_length + lane - S : lane)...>());
    b = shuffle(a, b, std::index_sequence<(lane & S ? vector_length + lane : lane + S)...>());
    a = first;
}

template <size_t S = 1> [[gnu::always_inline]] inline void transpose(vec* rows) {
    if constexpr (S < vector_length) {
#pragma GCC unroll 16
        for (size_t i = 0; i < vector_length; i++)
            if (!(i & S)) exchange<S>(rows[i], rows[i + S], std::make_index_sequence<vector_length>());
        transpose<2 * S>(rows);
    }
}

void pack_b(real* packed, Matrix b, size_t count, size_t columns) {
    for (size_t j = 0; j < columns; j += NR, packed += count * NR) {
        const size_t width = std::min(NR, columns - j);
        const Matrix panel = b.from(0, j);
        size_t k = 0;
        if (panel.column == 1 && width == NR)
            for (; k < count; k++) std::memcpy(packed + k * NR, panel.line(k), NR * sizeof(real));
        else if (panel.row == 1 && width == NR) // a transpose: whole squares
            for (; k + vector_length <= count; k += vector_length)
                for (size_t lane = 0; lane < NR; lane += vector_length) {
                    vec square[vector_length];
#pragma GCC unroll 16
                    for (size_t i = 0; i < vector_length; i++)
                        square[i] = load_vec(panel.data + (lane + i) * panel.column + k);
                    transpose(square);
#pragma GCC unroll 16
                    for (size_t i = 0; i < vector_length; i++)
                        store_vec(packed + (k + i) * NR + lane, square[i]);
                }
        for (; k < count; k++)
            for (size_t lane = 0; lane < NR; lane++)
                packed[k * NR + lane] = lane < width ? panel.at(k, lane) : real(0);
    }
}

// out (rows, columns) = (accumulate ? out : bias or 0) + sum over k < count of a(i,k) b[k][j], rows <= MR,
// columns <= NR; b is a panel (count, NR). Rows beyond the last read the last one again and are dropped. What
// is at out comes last and is asked for first: it is on its way from memory while the sum runs.
// (The parts of a come one by one: a struct on the stack costs the kernel more than a few of its rounds. All
// loops over the tile are unrolled, so that it never is an array in memory: clearing one takes as long as 20
// rounds.)
static void kernel(real* out, size_t out_row, const real* a, size_t a_row, size_t a_column,
                   const int32_t* a_index, const real* b, size_t count, size_t rows, size_t columns,
                   bool accumulate, const real* bias) {
    vec sum[MR][NV];
    const real* row[MR];
#pragma GCC unroll 16
    for (size_t i = 0; i < MR; i++)
#pragma GCC unroll 4
        for (size_t v = 0; v < NV; v++) sum[i][v] = vec{};
    for (size_t i = 0; i < MR; i++) {
        const size_t r = std::min(i, rows - 1);
        row[i] = a + (a_index ? size_t(a_index[r]) : r) * a_row;
        for (size_t j = 0; j < columns; j += 64 / sizeof(real)) __builtin_prefetch(out + r * out_row + j, 1);
    }
    for (size_t k = 0, at = 0; k < count; k++, at += a_column, b += NR) {
        vec bk[NV];
        for (size_t v = 0; v < NV; v++) bk[v] = load_vec(b + v * vector_length);
#pragma GCC unroll 16
        for (size_t i = 0; i < MR; i++)
#pragma GCC unroll 4
            for (size_t v = 0; v < NV; v++) sum[i][v] += row[i][at] * bk[v];
    }
    if (rows == MR && columns == NR) {
#pragma GCC unroll 16
        for (size_t i = 0; i < MR; i++) {
            real* to = out + i * out_row;
            const real* start = accumulate ? to : bias;
#pragma GCC unroll 4
            for (size_t v = 0; v < NV; v++)
                store_vec(to + v * vector_length,
                          start ? load_vec(start + v * vector_length) + sum[i][v] : sum[i][v]);
        }
    } else {
        real edge[MR * NR];
#pragma GCC unroll 16
        for (size_t i = 0; i < MR; i++)
#pragma GCC unroll 4
            for (size_t v = 0; v < NV; v++) store_vec(edge + i * NR + v * vector_length, sum[i][v]);
        for (size_t i = 0; i < rows; i++)
            for (size_t j = 0; j < columns; j++) {
                real& to = out[i * out_row + j];
                to = (accumulate ? to : bias ? bias[j] : 0) + edge[i * NR + j];
            }
    }
}

void multiply_block(real* out, size_t out_row, Matrix a, const real* b, size_t b_count, size_t rows,
                    size_t columns, size_t count, bool accumulate, const real* bias) {
    for (size_t j = 0; j < columns; j += NR)
        for (size_t i = 0; i < rows; i += MR) {
            const Matrix tile = a.from(i, 0);
            kernel(out + i * out_row + j, out_row, tile.data, tile.row, tile.column, tile.index,
                   b + j * b_count, count, std::min(MR, rows - i), std::min(NR, columns - j), accumulate,
                   bias ? bias + j : nullptr);
        }
}

// The rows from i and up to NC columns from j of a product, by one thread.
static void multiply_part(const Product& g, size_t i, size_t j, size_t rows, size_t columns) {
    static thread_local Workspace memory;
    real *packed = memory.reserve(KC * NC + KC * MC), *together = packed + KC * NC;
    for (size_t k = 0; k < g.K; k += KC) {
        const size_t count = std::min(KC, g.K - k);
        pack_b(packed, g.b.from(k, j), count, columns);
        for (size_t r = i; r < i + rows; r += MC) {
            const size_t n = std::min(MC, i + rows - r);
            Matrix a = g.a.from(r, k);
            if (a.column != 1 && a.row == 1 &&
                columns == NC) { // a transpose whose k are far apart, read often
                for (size_t l = 0; l < count; l++)
                    std::memcpy(together + l * MC, a.data + l * a.column, n * sizeof(real));
                a = {together, 1, MC};
            }
            multiply_block(g.out + r * g.N + j, g.N, a, packed, count, n, columns, count,
                           g.accumulate || k > 0, g.bias ? g.bias + j : nullptr);
        }
    }
}

// Work is counted in tiles of MR rows and one block of columns. Each thread takes as many as any other, one
// after the other: the b that it packs for them stays in its cache, and so do the rows that it makes for the
// next product of a layer.
void multiply(const Product* products, size_t n_products, const Finished& finished) {
    auto width = [&](size_t p) { // of a block: those of a product are about equally wide
        const size_t blocks = (products[p].N + NC - 1) / NC;
        return blocks > 1 ? round_up((products[p].N + blocks - 1) / blocks, NR) : NC;
    };
    auto row_tiles = [&](size_t p) { return (products[p].M + MR - 1) / MR; };
    auto tiles = [&](size_t p) { return row_tiles(p) * ((products[p].N + width(p) - 1) / width(p)); };
    size_t n_tiles = 0, work = 0;
    for (size_t p = 0; p < n_products; p++) {
        n_tiles += tiles(p);
        work += products[p].M * products[p].N * products[p].K;
    }
    const size_t n_parts = work > 1 << 15 ? thread_count() : 1; // or not worth waking them
    parallel_parts(n_parts, [&](size_t part) {
        const size_t end = (part + 1) * n_tiles / n_parts;
        for (size_t q = part * n_tiles / n_parts, taken; q < end; q += taken) {
            size_t p;
            const size_t tile = locate(q, &p, tiles);
            const Product& g = products[p];
            const size_t first = tile % row_tiles(p), i = first * MR, j = tile / row_tiles(p) * width(p);
            taken = std::min(row_tiles(p) - first, end - q);
            const size_t rows = std::min(taken * MR, g.M - i), columns = std::min(width(p), g.N - j);
            multiply_part(g, i, j, rows, columns);
            if (finished) finished(p, i, j, rows, columns);
        }
    });
}

void multiply(const Product& product) { multiply(&product, 1); }
