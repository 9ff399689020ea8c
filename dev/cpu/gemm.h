// Matrix products, the one place where the reference spends its time: out (+)= a b, blocked and vectorised in
// plain C++, for any strides (so that transposed operands need no copies), one product or a group of them
// (the experts of a layer) in one parallel region.
//
// b is packed into panels of NR columns, so that the inner kernel streams it while it keeps an MR x NR tile
// of the output in registers; a is read where it is when its rows are contiguous, and packed when it is a
// transpose. Every output element is summed over k in the same order whatever the blocking of rows and
// columns and whatever the number of threads: the bits do not depend on them.
#pragma once
#include "real.h"
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <sys/mman.h>
#include <utility>
#include <vector>

constexpr size_t MR = vector_registers == 32 ? 8 : 6, NV = 2, NR = NV * vector_length;
constexpr size_t KC = 512;     // k in blocks of KC: MR rows of a stay in the first-level cache
constexpr size_t MC = 96;      // rows of one work item (a multiple of MR)
constexpr size_t NC = 16 * NR; // columns of one work item

// A matrix that is read: element (i, j) at data[i * row + j * column].
struct Matrix {
    const real* data;
    size_t row, column;
    real at(size_t i, size_t j) const { return data[i * row + j * column]; }
    Matrix transposed() const { return {data, column, row}; }
    Matrix from(size_t i, size_t j) const { return {data + i * row + j * column, row, column}; }
};
inline Matrix row_major(const real* data, size_t columns) { return {data, columns, 1}; }

inline size_t round_up(size_t x, size_t to) { return (x + to - 1) / to * to; }

// Memory for count reals, aligned to vectors. Large blocks ask for large pages: tens of megabytes are walked
// through in every step, and every 4 KiB page of them would need its own entry in the address translation.
inline real* allocate(size_t count) {
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

// Memory that only ever grows.
struct Workspace {
    real* reserve(size_t count) {
        if (count > size) {
            data.reset(allocate(count));
            size = count;
        }
        return data.get();
    }
    struct Free {
        void operator()(real* p) const { std::free(p); }
    };
    std::unique_ptr<real, Free> data;
    size_t size = 0;
};

// A square of vector_length vectors, transposed in registers: in round S = 1, 2, 4, .. rows i and i + S
// exchange the entries whose column has bit S the other way round.
template <size_t S, size_t... lane> void exchange(vec& a, vec& b, std::index_sequence<lane...>) {
    const vec first = __builtin_shufflevector(a, b, (lane & S ? vector_length + lane - S : lane)...);
    b = __builtin_shufflevector(a, b, (lane & S ? vector_length + lane : lane + S)...);
    a = first;
}
template <size_t S = 1> void transpose(vec* rows) {
    if constexpr (S < vector_length) {
#pragma GCC unroll 16
        for (size_t i = 0; i < vector_length; i++)
            if (!(i & S)) exchange<S>(rows[i], rows[i + S], std::make_index_sequence<vector_length>());
        transpose<2 * S>(rows);
    }
}

// `width` consecutive "lanes" of a matrix, interleaved: packed[k * width + lane] for k < count, lanes beyond
// `lanes` zero. lane_stride and k_stride say where element (lane, k) is.
template <size_t width> void pack_panel(real* packed, const real* data, size_t lane_stride, size_t k_stride,
                                        size_t lanes, size_t count) {
    if (lane_stride == 1 && lanes == width) {
        for (size_t k = 0; k < count; k++)
            for (size_t lane = 0; lane < width; lane++) packed[k * width + lane] = data[k * k_stride + lane];
        return;
    }
    size_t done = 0;
    if constexpr (width % vector_length == 0) // whole squares, when each lane is contiguous
        for (; k_stride == 1 && lanes == width && done + vector_length <= count; done += vector_length)
            for (size_t lane = 0; lane < width; lane += vector_length) {
                vec square[vector_length];
#pragma GCC unroll 16
                for (size_t i = 0; i < vector_length; i++)
                    square[i] = *(const vec*)(data + (lane + i) * lane_stride + done);
                transpose(square);
#pragma GCC unroll 16
                for (size_t i = 0; i < vector_length; i++)
                    *(vec*)(packed + (done + i) * width + lane) = square[i];
            }
    for (size_t lane = 0; lane < width; lane++)
        for (size_t k = done; k < count; k++)
            packed[k * width + lane] = lane < lanes ? data[lane * lane_stride + k * k_stride] : real(0);
}

// a (rows, count) -> panels of MR rows, each (count, MR).
inline void pack_a(real* packed, Matrix a, size_t rows, size_t count) {
    for (size_t i = 0; i < rows; i += MR)
        pack_panel<MR>(packed + i * count, a.data + i * a.row, a.row, a.column, std::min(MR, rows - i),
                       count);
}

// b (count, columns) -> panels of NR columns, each (count, NR).
inline void pack_b(real* packed, Matrix b, size_t count, size_t columns) {
    for (size_t j = 0; j < columns; j += NR)
        pack_panel<NR>(packed + j * count, b.data + j * b.column, b.column, b.row, std::min(NR, columns - j),
                       count);
}

// out (rows, columns) = (accumulate ? out : bias or 0) + sum over k < count of a(i,k) b[k][j], rows <= MR,
// columns
// <= NR; b is a panel (count, NR). Rows beyond the last read the last one again and are dropped.
inline void kernel(real* out, size_t out_row, const real* a, size_t a_row, size_t a_column, const real* b,
                   size_t count, size_t rows, size_t columns, bool accumulate, const real* bias) {
    vec acc[MR][NV];
    const real* row[MR];
    alignas(64) real edge[MR * NR];
    const bool whole = rows == MR && columns == NR;
    for (size_t i = 0; i < MR; i++) row[i] = a + std::min(i, rows - 1) * a_row;
    if (accumulate || bias) {
        for (size_t i = 0; i < MR && !whole; i++)
            for (size_t j = 0; j < NR; j++)
                edge[i * NR + j] =
                    i < rows && j < columns ? (accumulate ? out[i * out_row + j] : bias[j]) : real(0);
        for (size_t i = 0; i < MR; i++)
            for (size_t v = 0; v < NV; v++)
                acc[i][v] = *(const vec*)((!whole       ? edge + i * NR
                                           : accumulate ? out + i * out_row
                                                        : bias) +
                                          v * vector_length);
    } else {
        for (size_t i = 0; i < MR; i++)
            for (size_t v = 0; v < NV; v++) acc[i][v] = vec{};
    }
    for (size_t k = 0, at = 0; k < count; k++, at += a_column, b += NR) {
        vec bk[NV];
        for (size_t v = 0; v < NV; v++) bk[v] = *(const vec*)(b + v * vector_length);
#pragma GCC unroll 16
        for (size_t i = 0; i < MR; i++)
#pragma GCC unroll 4
            for (size_t v = 0; v < NV; v++) acc[i][v] += row[i][at] * bk[v];
    }
    for (size_t i = 0; i < MR; i++)
        for (size_t v = 0; v < NV; v++)
            *(vec*)((whole ? out + i * out_row : edge + i * NR) + v * vector_length) = acc[i][v];
    for (size_t i = 0; i < rows && !whole; i++)
        for (size_t j = 0; j < columns; j++) out[i * out_row + j] = edge[i * NR + j];
}

// out (rows, columns) (+)= a b for a block of rows of a and packed b. b_count is the k-length the panels of b
// were packed with (b itself may point to a later k inside its panels). scratch: room for the rows of a,
// packed.
inline void multiply_block(real* out, size_t out_row, Matrix a, const real* b, size_t b_count, real* scratch,
                           size_t rows, size_t columns, size_t count, bool accumulate,
                           const real* bias = nullptr) {
    const bool pack = a.column != 1; // a transpose: its k run down a column, far apart in memory
    if (pack) pack_a(scratch, a, rows, count);
    const real* from = pack ? scratch : a.data;
    const size_t a_row = pack ? 1 : a.row, a_column = pack ? MR : 1, next_rows = pack ? count : a.row;
    for (size_t j = 0; j < columns; j += NR)
        for (size_t i = 0; i < rows; i += MR)
            kernel(out + i * out_row + j, out_row, from + i * next_rows, a_row, a_column, b + j * b_count,
                   count, std::min(MR, rows - i), std::min(NR, columns - j), accumulate,
                   bias ? bias + j : nullptr);
}

// out (M,N) = a (M,K) b (K,N) [+ bias (N)], or += with accumulate.
struct Product {
    real* out;
    Matrix a, b;
    size_t M, N, K;
    bool accumulate = false;
    const real* bias = nullptr;
};

// Work item q of a group whose member p has items(p) of them: sets p, returns the number of the item within
// p.
template <class Items> size_t locate(size_t q, size_t* p, Items items) {
    for (*p = 0; q >= items(*p); ++*p) q -= items(*p);
    return q;
}

inline void multiply(const Product* products, size_t n_products) {
    static Workspace memory;
    auto panels = [&](size_t p) { return (products[p].N + NR - 1) / NR; };
    auto column_blocks = [&](size_t p) { return (products[p].N + NC - 1) / NC; };
    auto blocks = [&](size_t p) { return (products[p].M + MC - 1) / MC * column_blocks(p); };
    auto packed_before = [&](size_t p) { // elements of the packed b of the products before p
        size_t sum = 0;
        for (size_t i = 0; i < p; i++) sum += panels(i) * NR * products[i].K;
        return sum;
    };
    size_t n_panels = 0, n_blocks = 0;
    for (size_t p = 0; p < n_products; p++) n_panels += panels(p), n_blocks += blocks(p);
    real* packed = memory.reserve(packed_before(n_products));
#pragma omp parallel
    {
        static thread_local Workspace scratch_memory;
        real* scratch = scratch_memory.reserve(MC * KC);
        // All of every b, its panels dealt out to the threads.
#pragma omp for schedule(static)
        for (size_t q = 0; q < n_panels; q++) {
            size_t p;
            const size_t j = locate(q, &p, panels) * NR;
            const Product& g = products[p];
            pack_b(packed + packed_before(p) + j * g.K, g.b.from(0, j), g.K, std::min(NR, g.N - j));
        }
        // Then blocks of MC rows and NC columns of every out.
#pragma omp for schedule(dynamic, 1)
        for (size_t q = 0; q < n_blocks; q++) {
            size_t p;
            const size_t block = locate(q, &p, blocks);
            const Product& g = products[p];
            const size_t i = block / column_blocks(p) * MC, j = block % column_blocks(p) * NC;
            const real* b = packed + packed_before(p) + j * g.K;
            for (size_t k = 0; k < g.K; k += KC)
                multiply_block(g.out + i * g.N + j, g.N, g.a.from(i, k), b + k * NR, g.K, scratch,
                               std::min(MC, g.M - i), std::min(NC, g.N - j), std::min(KC, g.K - k),
                               g.accumulate || k > 0, g.bias ? g.bias + j : nullptr);
        }
    }
}

inline void multiply(const Product& product) { multiply(&product, 1); }
