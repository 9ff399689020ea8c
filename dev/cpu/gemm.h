// Matrix products, the one place where the reference spends its time: out (+)= a b, blocked and vectorised in
// plain C++, for any strides (so that transposed operands need no copies), one product or a group of them
// (the experts of a layer) in one parallel region.
//
// b is packed into panels of NR columns, so that the inner kernel streams it while it keeps an MR x NR tile
// of the output in registers; a is read where it is, since the kernel takes one number of it for every NR of
// b, and only a transpose that is read many times is copied together. Each thread packs what it multiplies
// with: no thread waits for another, and nothing has to come out of another core's cache. Every output
// element is summed over k in the same order whatever the blocking of rows and columns and whatever the
// number of threads: the bits do not depend on them.
#pragma once
#include "real.h"
#include <algorithm>
#include <cstdlib>
#include <functional>
#include <memory>

constexpr size_t MR = vector_registers == 32 ? 8 : 6, NV = 2, NR = NV * vector_length;
constexpr size_t KC = 512;    // k in blocks of KC: MR rows of a stay in the first-level cache
constexpr size_t MC = 8 * MR; // rows in blocks of MC: KC x MC numbers of a transpose that was copied, and
constexpr size_t NC = 8 * NR; // columns in blocks of NC: KC x NC of packed b, stay in the second

// A matrix that is read: element (i, j) at data[i * row + j * column]; with an index, row i is row index[i]
// of what is at data (and there is no transpose).
struct Matrix {
    const real* data;
    size_t row, column;
    const int32_t* index = nullptr;
    const real* line(size_t i) const { return data + (index ? size_t(index[i]) : i) * row; }
    real at(size_t i, size_t j) const { return line(i)[j * column]; }
    Matrix transposed() const { return {data, column, row}; }
    Matrix from(size_t i, size_t j) const {
        return {data + (index ? 0 : i * row) + j * column, row, column, index ? index + i : nullptr};
    }
};
inline Matrix row_major(const real* data, size_t columns, const int32_t* index = nullptr) {
    return {data, columns, 1, index};
}

inline size_t round_up(size_t x, size_t to) { return (x + to - 1) / to * to; }

// Memory for count reals, aligned to vectors. Large blocks ask for large pages: tens of megabytes are walked
// through in every step, and every 4 KiB page of them would need its own entry in the address translation.
real* allocate(size_t count);

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

// b (count, columns) -> panels of NR columns, each (count, NR), the columns beyond the last zero.
void pack_b(real* packed, Matrix b, size_t count, size_t columns);

// out (rows, columns) (+)= a b for a block of rows of a and packed b. b_count is the k-length the panels of b
// were packed with (b itself may point to a later k inside its panels).
void multiply_block(real* out, size_t out_row, Matrix a, const real* b, size_t b_count, size_t rows,
                    size_t columns, size_t count, bool accumulate, const real* bias = nullptr);

// out (M,N) = a (M,K) b (K,N) [+ bias (N)], or += with accumulate.
struct Product {
    real* out;
    Matrix a, b;
    size_t M, N, K;
    bool accumulate = false;
    const real* bias = nullptr;
};

// What is called for every part of a product when it is done, by the thread that made it: rows i to i + rows,
// columns j to j + columns of products[p].out.
using Finished = std::function<void(size_t p, size_t i, size_t j, size_t rows, size_t columns)>;

// All products of a group, in one parallel region.
void multiply(const Product* products, size_t n_products, const Finished& finished = nullptr);
void multiply(const Product& product);

// Item q of a group whose member p has items(p) of them: sets p, returns the number of the item within p.
template <class Items> size_t locate(size_t q, size_t* p, Items items) {
    for (*p = 0; q >= items(*p); ++*p) q -= items(*p);
    return q;
}
