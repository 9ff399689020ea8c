// wgmma, the matrix product of a warpgroup (sm_90a): D (64,N) += A (64,16) B (16,N), both from shared memory,
// where descriptors say how they lie. It goes on by itself until a wait covers its group; here every warp
// does its 16 rows for itself.
//
// The hardware reads an operand at any time between start and wait. So it is read at the start, when it must
// be there, and compared at the wait: whoever has written to it meanwhile was too early. Until the wait the
// registers of the sums hold 0xFF. Also found: a product without wgmma.fence since the last wait; data that
// cp.async has brought, by a thread without fence.proxy.async since; warps of a warpgroup that do not start
// the same products; a block that ends before its products have.
#pragma once
#include "device.h"

namespace emu {

inline float bf16_to_float(uint16_t bits) { return std::bit_cast<float>(uint32_t(bits) << 16); }

// A descriptor: the address, without its last four bits, in bits 0 to 13; likewise the leading offset from
// bit 16 on and the stride offset from bit 32 on; the swizzle from bit 62 on, of which 1, 128 bytes, is known
// here.
//
// A matrix is `rows` (of A, or columns of B) of 16 numbers that are summed over. It lies in lines of 128
// bytes, 8 of them 1024 bytes, where chunk c (16 bytes) of line l stands at c ^ l % 8: bits 4 to 6 of an
// address are changed by its bits 7 to 9. Plain, a row is a quarter of a line, and 8 rows are `stride` apart
// from the next 8. Transposed, a line is one of the 16 numbers of 64 rows: 8 lines are `stride`, 64 rows
// `leading` apart from the next.
struct WgmmaOperand {
    uint64_t start, leading, stride;
    bool transposed;
    int first, rows;

    WgmmaOperand(uint64_t d, bool transposed, int first, int rows, int line)
        : start((d & 0x3fff) << 4), leading((d >> 16 & 0x3fff) << 4), stride((d >> 32 & 0x3fff) << 4),
          transposed(transposed), first(first), rows(rows) {
        if (d >> 62 != 1 || (d >> 46 & 0xffff) != 0)
            die("wgmma (line %d): descriptor 0x%016llx: only the swizzle of 128 bytes is emulated, without "
                "base "
                "offset",
                line, (unsigned long long)d);
    }
    int chunks() const { return rows * 2; }
    uint64_t address(int i) const { // of chunk i, 8 numbers of a row or of 8 rows one number each
        const int row = first + (transposed ? i / 16 * 8 : i / 2), k = transposed ? i % 16 : i % 2 * 8;
        const uint64_t at =
            start + (transposed ? unsigned(row / 64) * leading + unsigned(k / 8) * stride +
                                      unsigned(k % 8 * 128 + row % 64 * 2)
                                : unsigned(row / 8) * stride + unsigned(row % 8 * 128 + k * 2));
        return at ^ (at >> 7 & 7) << 4;
    }
    void read(std::vector<char>& bytes) const { // is appended to them
        for (int i = 0; i < chunks(); i++) {
            const char* const chunk = shared_memory(address(i), 16, "wgmma");
            bytes.insert(bytes.end(), chunk, chunk + 16);
        }
    }
    void check_fences(int line) const {
        if (worker->copied.empty()) return;
        for (int i = 0; i < chunks(); i++) {
            const auto& [thread, fences] = worker->copied[(address(i) - shared_window) / 16];
            if (worker->copies[thread].fences == fences)
                die("wgmma (line %d) reads what thread %u has copied, without fence.proxy.async since", line,
                    thread);
        }
    }
    float get(const char* bytes, int row, int k) const { // of those that were read
        const int chunk = transposed ? row / 8 * 16 + k : row * 2 + k / 8,
                  in_chunk = transposed ? row % 8 : k % 8;
        uint16_t number;
        memcpy(&number, bytes + chunk * 16 + in_chunk * 2, 2);
        return bf16_to_float(number);
    }
};

struct WgmmaLane { // what a lane brings
    float* const* sums;
    int columns;
    uint64_t a, b;
    bool a_transposed, b_transposed;
};

inline void read_operands(std::vector<char>& bytes, const WgmmaOperand& a, const WgmmaOperand& b) {
    bytes.clear();
    a.read(bytes);
    b.read(bytes);
}

// d (16,columns) += a (16,16) b (16,columns)
inline void multiply(float d[16][256], const WgmmaOperand& a, const WgmmaOperand& b, const char* bytes) {
    alignas(32) float columns[16][256];
    const char* const b_bytes = bytes + a.chunks() * 16;
    for (int k = 0; k < 16; k++)
        for (int n = 0; n < b.rows; n++) columns[k][n] = b.get(b_bytes, n, k);
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 16; k++) {
            const float row = a.get(bytes, m, k);
            for (int n = 0; n < b.rows; n += 8) {
                Float8 sum, column;
                memcpy(&sum, &d[m][n], sizeof sum);
                memcpy(&column, &columns[k][n], sizeof column);
                sum += row * column;
                memcpy(&d[m][n], &sum, sizeof sum);
            }
        }
}

// Lane l of a warp has, of the warp's 16 rows, rows l / 4 (registers 4 i and 4 i + 1) and l / 4 + 8 (the next
// two), columns 8 i + 2 (l % 4) and the next.
template <class F> void each_sum(SumsInFlight& s, F f) {
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < s.columns / 2; i++)
            f(*s.places[lane][i], s.d[lane / 4 + i % 4 / 2 * 8][i / 4 * 8 + lane % 4 * 2 + i % 2]);
}
inline void check_unused(SumsInFlight& s, int line) {
    each_sum(s, [&](const float& place, float) {
        if (std::bit_cast<uint32_t>(place) != 0xffffffff)
            die("wgmma (line %d): a register of its sums was written before it was waited for", line);
    });
}

inline void start_product(Thread* lanes, int line) {
    const WgmmaLane& l = *static_cast<const WgmmaLane*>(lanes[0].operands);
    const unsigned warp = lanes->number / 32, warpgroup = warp / 4;
    WarpProducts& p = worker->products[warp];
    if (compute_capability() != 90) die("wgmma (line %d): the device has none (EMU_SM)", line);
    if ((warpgroup + 1) * 128 > worker->n_threads)
        die("wgmma (line %d): the warpgroup has less than four warps", line);
    if (!p.fenced) die("wgmma (line %d): no wgmma.fence since the last wait", line);
    for (int i = 1; i < 32; i++) {
        const WgmmaLane& other = *static_cast<const WgmmaLane*>(lanes[i].operands);
        if (other.a != l.a || other.b != l.b) die("wgmma (line %d): lanes have different descriptors", line);
    }
    worker->any_products = true;
    std::vector<StartedProduct>& started = worker->started_products[warpgroup];
    const StartedProduct mine = {line, l.a, l.b};
    if (p.started == started.size()) started.push_back(mine);
    if (started[p.started++] != mine)
        die("wgmma (line %d): another warp of the warpgroup started a different product (line %d)", line,
            started[p.started - 1].line);

    ProductInFlight product{p.group, line, l.columns, l.a, l.b, l.a_transposed, l.b_transposed, nullptr, {}};
    const WgmmaOperand a(l.a, l.a_transposed, int(warp % 4) * 16, 16, line),
        b(l.b, l.b_transposed, 0, l.columns, line);
    a.check_fences(line);
    b.check_fences(line);
    read_operands(product.operands, a, b);
    for (const auto& sums : p.sums)
        if (sums->places[0][0] == l.sums[0] && sums->columns == l.columns) product.sums = sums.get();
    if (!product.sums) {
        p.sums.push_back(std::make_unique<SumsInFlight>());
        SumsInFlight& s = *(product.sums = p.sums.back().get());
        s.columns = l.columns;
        for (int i = 0; i < 32; i++)
            memcpy(s.places[i], static_cast<const WgmmaLane*>(lanes[i].operands)->sums,
                   sizeof(float*) * size_t(l.columns / 2));
        each_sum(s, [](const float& place, float& sum) { sum = place; });
        each_sum(s, [](float& place, float) { memset(&place, 0xff, sizeof place); });
    }
    check_unused(*product.sums, line);
    product.sums->products++;
    multiply(product.sums->d, a, b, product.operands.data());
    p.products.push_back(std::move(product));
}

// All products but those of the latest `newest` committed groups end.
inline void end_products(Thread* lanes, unsigned newest) {
    const unsigned warp = lanes->number / 32;
    WarpProducts& p = worker->products[warp];
    p.fenced = false;
    std::erase_if(p.products, [&](const ProductInFlight& product) {
        if (product.group + newest >= p.group) return false;
        std::vector<char> now;
        read_operands(now, {product.a, product.a_transposed, int(warp % 4) * 16, 16, product.line},
                      {product.b, product.b_transposed, 0, product.columns, product.line});
        if (now != product.operands)
            die("wgmma (line %d): an operand was written before it was waited for", product.line);
        check_unused(*product.sums, product.line);
        if (--product.sums->products > 0) return true;
        each_sum(*product.sums, [](float& place, float sum) { place = sum; });
        std::erase_if(p.sums, [&](const auto& sums) { return sums.get() == product.sums; });
        return true;
    });
}

inline void wgmma(WgmmaLane mine, int line) {
    warp_meet(0xffffffff, &mine, "wgmma.mma_async", line,
              [=](Thread* lanes, unsigned) { start_product(lanes, line); });
}
inline void wgmma_fence(int line) {
    warp_meet(0xffffffff, nullptr, "wgmma.fence", line,
              [](Thread* lanes, unsigned) { worker->products[lanes->number / 32].fenced = true; });
}
inline void wgmma_commit(int line) {
    warp_meet(0xffffffff, nullptr, "wgmma.commit_group", line,
              [](Thread* lanes, unsigned) { worker->products[lanes->number / 32].group++; });
}
inline void wgmma_wait(unsigned newest, int line) {
    warp_meet(0xffffffff, nullptr, "wgmma.wait_group", line,
              [=](Thread* lanes, unsigned) { end_products(lanes, newest); });
}

} // namespace emu
