// What device code calls: barriers, warp shuffles and votes, atomics, loads and stores with cache hints, bit
// counting and the fast forms of the mathematical functions (computed by the C library: at least as precise
// as the hardware's). Line numbers come in as default arguments and are what the messages show.
#pragma once
#include "machine.h"
#include <bit>
#include <cassert>
#include <cmath>
#include <type_traits>

// ---- barriers -------------------------------------------------------------------------------------------

EMU_INLINE void __syncthreads(int line = __builtin_LINE()) {
    emu::barrier_wait(0, emu::worker->n_threads, false, "__syncthreads", line);
}
EMU_INLINE int __syncthreads_count(int predicate, int line = __builtin_LINE()) {
    return int(emu::barrier_wait(0, emu::worker->n_threads, predicate != 0, "__syncthreads_count", line));
}
EMU_INLINE int __syncthreads_and(int predicate, int line = __builtin_LINE()) {
    return emu::barrier_wait(0, emu::worker->n_threads, predicate == 0, "__syncthreads_and", line) == 0;
}
EMU_INLINE int __syncthreads_or(int predicate, int line = __builtin_LINE()) {
    return emu::barrier_wait(0, emu::worker->n_threads, predicate != 0, "__syncthreads_or", line) != 0;
}
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_block() { __threadfence(); }
inline void __threadfence_system() { __threadfence(); }

// ---- warp operations ------------------------------------------------------------------------------------

namespace emu {

struct Exchange { // what a lane brings to a warp operation, and what it takes home
    uint64_t value;
    int source;
};

// Every lane of `mask` takes the value of its source lane.
inline void exchange_all(Thread* lanes, unsigned mask, const char* name, int line) {
    uint64_t values[32];
    for (int l = 0; l < 32; l++)
        if (mask >> l & 1) values[l] = static_cast<Exchange*>(lanes[l].operands)->value;
    for (int l = 0; l < 32; l++) {
        if (!(mask >> l & 1)) continue;
        Exchange& e = *static_cast<Exchange*>(lanes[l].operands);
        if (!(mask >> e.source & 1)) {
            self = &lanes[l];
            die("%s%s reads lane %d, which mask 0x%08x does not name", name, at_line(line).c_str(), e.source,
                mask);
        }
        e.value = values[e.source];
    }
}

// The source lane of a shuffle as in the PTX manual (shfl.sync): lanes form segments of `width`, and a lane
// whose source would lie outside of its segment reads itself.
template <class T>
T shuffle(unsigned mask, T value, char how, int by, int width, const char* name, int line) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
    if (width < 1 || width > 32 || (width & (width - 1))) die("%s: width %d is no power of two", name, width);
    const int lane = int(self->lane()), first = lane & ~(width - 1), last = first + width - 1;
    int source = how == 'u'   ? lane - by
                 : how == 'd' ? lane + by
                 : how == 'x' ? lane ^ by
                              : first | (by & (width - 1));
    if (how == 'u' ? source < first : source > last) source = lane;
    Exchange e{0, source};
    memcpy(&e.value, &value, sizeof(T));
    warp_meet(mask, &e, name, line,
              [=](Thread* lanes, unsigned mask) { exchange_all(lanes, mask, name, line); });
    memcpy(&value, &e.value, sizeof(T));
    return value;
}

// Every lane brings a value and takes the result of all(values by lane, mask).
template <class F>
EMU_INLINE uint64_t vote(unsigned mask, uint64_t value, const char* name, int line, F all) {
    Exchange mine{value, 0};
    warp_meet(mask, &mine, name, line, [&](Thread* lanes, unsigned mask) {
        uint64_t values[32] = {}, results[32];
        for (int l = 0; l < 32; l++)
            if (mask >> l & 1) values[l] = static_cast<Exchange*>(lanes[l].operands)->value;
        all(values, mask, results);
        for (int l = 0; l < 32; l++)
            if (mask >> l & 1) static_cast<Exchange*>(lanes[l].operands)->value = results[l];
    });
    return mine.value;
}

template <class T, class F>
EMU_INLINE T reduce(unsigned mask, T value, const char* name, int line, F combine) {
    return T(
        vote(mask, uint64_t(value), name, line, [&](const uint64_t* values, unsigned mask, uint64_t* out) {
            T total{};
            for (int l = 0, n = 0; l < 32; l++)
                if (mask >> l & 1) total = n++ ? combine(total, T(values[l])) : T(values[l]);
            for (int l = 0; l < 32; l++) out[l] = uint64_t(total);
        }));
}

} // namespace emu

template <class T>
EMU_INLINE T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
    return emu::shuffle(mask, value, 'i', source, width, "__shfl_sync", line);
}
template <class T> EMU_INLINE T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32,
                                               int line = __builtin_LINE()) {
    return emu::shuffle(mask, value, 'u', int(by), width, "__shfl_up_sync", line);
}
template <class T> EMU_INLINE T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32,
                                                 int line = __builtin_LINE()) {
    return emu::shuffle(mask, value, 'd', int(by), width, "__shfl_down_sync", line);
}
template <class T>
EMU_INLINE T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32, int line = __builtin_LINE()) {
    return emu::shuffle(mask, value, 'x', with, width, "__shfl_xor_sync", line);
}
EMU_INLINE void __syncwarp(unsigned mask = 0xffffffff, int line = __builtin_LINE()) {
    // The lanes that a block's last warp does not have need not come: 0xffffffff is the default argument.
    const unsigned lanes = emu::worker->n_threads - (emu::self->number & ~31u);
    if (mask == 0xffffffff && lanes < 32) mask = (1u << lanes) - 1;
    emu::warp_meet(mask, nullptr, "__syncwarp", line, [](emu::Thread*, unsigned) {});
}
EMU_INLINE unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return emu::reduce(mask, predicate ? 1u << emu::self->lane() : 0u, "__ballot_sync", line,
                       [](unsigned a, unsigned b) { return a | b; });
}
EMU_INLINE int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return emu::reduce(mask, int(predicate != 0), "__any_sync", line, [](int a, int b) { return a | b; });
}
EMU_INLINE int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return emu::reduce(mask, int(predicate != 0), "__all_sync", line, [](int a, int b) { return a & b; });
}
template <class T> EMU_INLINE unsigned __match_any_sync(unsigned mask, T value, int line = __builtin_LINE()) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    return unsigned(emu::vote(mask, bits, "__match_any_sync", line,
                              [](const uint64_t* values, unsigned mask, uint64_t* out) {
                                  for (int l = 0; l < 32; l++) {
                                      out[l] = 0;
                                      for (int k = 0; k < 32; k++)
                                          if ((mask >> k & 1) && values[k] == values[l]) out[l] |= 1u << k;
                                  }
                              }));
}
template <class T> EMU_INLINE T __reduce_add_sync(unsigned mask, T value, int line = __builtin_LINE()) {
    return emu::reduce(mask, value, "__reduce_add_sync", line,
                       [](T a, T b) { return T(unsigned(a) + unsigned(b)); });
}
template <class T> EMU_INLINE T __reduce_min_sync(unsigned mask, T value, int line = __builtin_LINE()) {
    return emu::reduce(mask, value, "__reduce_min_sync", line, [](T a, T b) { return a < b ? a : b; });
}
template <class T> EMU_INLINE T __reduce_max_sync(unsigned mask, T value, int line = __builtin_LINE()) {
    return emu::reduce(mask, value, "__reduce_max_sync", line, [](T a, T b) { return a > b ? a : b; });
}
// All lanes that the warp has, as if none had diverged or exited: code that counts on more than that stops at
// the warp operation it asks for.
inline unsigned __activemask() {
    const unsigned lanes = emu::worker->n_threads - (emu::self->number & ~31u);
    return lanes < 32 ? (1u << lanes) - 1 : 0xffffffff;
}

// ---- loads and stores -----------------------------------------------------------------------------------

namespace emu {
template <class T> const T* aligned(const T* p, const char* name) {
    if (reinterpret_cast<uintptr_t>(p) % alignof(T) != 0)
        die("%s of %zu bytes at %p, which is not a multiple of %zu", name, sizeof(T), (const void*)p,
            alignof(T));
    return p;
}
} // namespace emu
template <class T> T __ldg(const T* p) { return *emu::aligned(p, "__ldg"); }
template <class T> T __ldcs(const T* p) { return *emu::aligned(p, "__ldcs"); }
template <class T> T __ldcg(const T* p) { return *emu::aligned(p, "__ldcg"); }
template <class T> T __ldca(const T* p) { return *emu::aligned(p, "__ldca"); }
template <class T> T __ldlu(const T* p) { return *emu::aligned(p, "__ldlu"); }
template <class T> T __ldcv(const T* p) { return *emu::aligned(p, "__ldcv"); }
template <class T> void __stcs(T* p, std::type_identity_t<T> v) {
    *const_cast<T*>(emu::aligned(p, "__stcs")) = v;
}
template <class T> void __stcg(T* p, std::type_identity_t<T> v) {
    *const_cast<T*>(emu::aligned(p, "__stcg")) = v;
}
template <class T> void __stwb(T* p, std::type_identity_t<T> v) {
    *const_cast<T*>(emu::aligned(p, "__stwb")) = v;
}
template <class T> void __stwt(T* p, std::type_identity_t<T> v) {
    *const_cast<T*>(emu::aligned(p, "__stwt")) = v;
}
inline size_t __cvta_generic_to_shared(const void* p) { return emu::shared_address(p); }

// ---- atomics: real ones, since blocks run at the same time ----------------------------------------------

namespace emu {
template <class T, class F> T atomic_change(T* p, F change) {
    std::atomic_ref<T> place(*const_cast<T*>(aligned(p, "atomic operation")));
    T old = place.load();
    while (!place.compare_exchange_weak(old, change(old))) {
    }
    return old;
}
} // namespace emu
template <class T> T atomicAdd(T* p, std::type_identity_t<T> v) {
    return emu::atomic_change(p, [v](T old) { return T(old + v); });
}
template <class T> T atomicSub(T* p, std::type_identity_t<T> v) {
    return emu::atomic_change(p, [v](T old) { return T(old - v); });
}
template <class T> T atomicMax(T* p, std::type_identity_t<T> v) {
    return emu::atomic_change(p, [v](T old) { return old > v ? old : v; });
}
template <class T> T atomicMin(T* p, std::type_identity_t<T> v) {
    return emu::atomic_change(p, [v](T old) { return old < v ? old : v; });
}
template <class T> T atomicAnd(T* p, std::type_identity_t<T> v) {
    return emu::atomic_change(p, [v](T old) { return T(old & v); });
}
template <class T> T atomicOr(T* p, std::type_identity_t<T> v) {
    return emu::atomic_change(p, [v](T old) { return T(old | v); });
}
template <class T> T atomicXor(T* p, std::type_identity_t<T> v) {
    return emu::atomic_change(p, [v](T old) { return T(old ^ v); });
}
template <class T> T atomicExch(T* p, std::type_identity_t<T> v) {
    return emu::atomic_change(p, [v](T) { return v; });
}
inline unsigned atomicInc(unsigned* p, unsigned limit) {
    return emu::atomic_change(p, [limit](unsigned old) { return old >= limit ? 0 : old + 1; });
}
template <class T> T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
    std::atomic_ref<T>(*p).compare_exchange_strong(expected, v);
    return expected;
}

// ---- bits -----------------------------------------------------------------------------------------------

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(unsigned(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= (x >> i & 1) << (31 - i);
    return r;
}
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>((unsigned __int128)a * b >> 64);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
    return unsigned((uint64_t(high) << 32 | low) << (by & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
    return unsigned((uint64_t(high) << 32 | low) >> (by & 31));
}

// ---- mathematics ----------------------------------------------------------------------------------------

inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float a, float b) { return a / b; }
inline float fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return 1 / sqrtf(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __saturatef(float x) { return x > 0 ? x < 1 ? x : 1 : 0; } // NaN becomes 0
inline int __float2int_rn(float x) { return int(rintf(x)); }
inline int __float2int_rz(float x) { return int(x); }
inline unsigned __float2uint_rn(float x) { return unsigned(rintf(x)); }
inline unsigned __float2uint_rz(float x) { return unsigned(x); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline float __double2float_rn(double x) { return float(x); }

// min and max of equal types, and of the mixtures that CUDA has.
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline unsigned min(int a, unsigned b) { return min(unsigned(a), b); }
inline unsigned max(int a, unsigned b) { return max(unsigned(a), b); }
inline unsigned min(unsigned a, int b) { return min(a, unsigned(b)); }
inline unsigned max(unsigned a, int b) { return max(a, unsigned(b)); }
inline long min(long a, long b) { return a < b ? a : b; }
inline long max(long a, long b) { return a > b ? a : b; }
inline unsigned long min(unsigned long a, unsigned long b) { return a < b ? a : b; }
inline unsigned long max(unsigned long a, unsigned long b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline unsigned long long min(unsigned long long a, unsigned long long b) { return a < b ? a : b; }
inline unsigned long long max(unsigned long long a, unsigned long long b) { return a > b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

inline void __nanosleep(unsigned) {}
[[noreturn]] inline void __trap() { emu::die("__trap()"); }
inline long long clock64() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}
