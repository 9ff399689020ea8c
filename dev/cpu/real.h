// The number the reference computes in: float, or double when built with -DMOEX_DOUBLE (the gradient tests).
// Also the widest vector of that number the compiler was told it may use, and exp, tanh and erf written so
// that loops over them vectorise.
#pragma once
#include "../lib/threads.h"
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __FAST_MATH__ // -ffast-math, -Ofast: fast_exp would be cancelled to a power of two, NaN pass every
                     // check
#error "moex computes another function under -ffast-math or -Ofast: use -O3, which is as fast"
#endif

#ifdef MOEX_DOUBLE
using real = double;
#else
using real = float;
#endif

#if defined(__AVX512F__)
constexpr int vector_bytes = 64, vector_registers = 32;
#elif defined(__AVX__)
constexpr int vector_bytes = 32, vector_registers = 16;
#elif defined(__aarch64__)
constexpr int vector_bytes = 16, vector_registers = 32;
#else
constexpr int vector_bytes = 16, vector_registers = 16;
#endif
constexpr size_t vector_length = vector_bytes / sizeof(real);
typedef real vec __attribute__((vector_size(vector_bytes)));
// A vector of numbers that lie anywhere in memory. The type that says so is named in these two alone:
// compilers forget it where a template or a reference passes it on.
typedef real vec_in_memory __attribute__((vector_size(vector_bytes), aligned(alignof(real)), may_alias));
inline vec load_vec(const real* from) { return *(const vec_in_memory*)from; }
inline void store_vec(real* to, vec v) { *(vec_in_memory*)to = v; }

// e^x, relative error below 3e-7 for x in [-87, 88]; below that 0, above it e^88. x = n ln 2 + r with
// |r| <= ln 2 / 2, so e^x = 2^n e^r: a polynomial for e^r, and n added to the exponent bits.
inline float fast_exp(float x) {
    float clamped = x > 88.0f ? 88.0f : x < -87.0f ? -87.0f : x;
    float n = clamped * 1.44269504f + 12582912.0f; // adding 1.5 * 2^23 rounds to an integer in the low bits
    uint32_t bits;                                 // unsigned: those of a NaN may wrap
    std::memcpy(&bits, &n, 4);
    n -= 12582912.0f;
    float r = clamped - n * 0.693145752f; // ln 2 in two parts, so that r keeps its low bits
    r = r - n * 1.42860677e-6f;
    float p = 1.0f +
              r * (1.0f + r * (0.5f + r * (0.166666672f +
                                           r * (0.0416664310f + r * (0.00833336823f + r * 0.00139304355f)))));
    uint32_t scale_bits = (bits - 0x4B400000 + 127) << 23;
    float scale;
    std::memcpy(&scale, &scale_bits, 4);
    float y = x < -87.0f ? 0.0f : p * scale;
    return x == x ? y : x; // NaN stays NaN
}
inline double fast_exp(double x) { return std::exp(x); }

// tanh x = 1 - 2 / (e^2x + 1), absolute error below 2e-7
inline float fast_tanh(float x) { return 1.0f - 2.0f / (fast_exp(2.0f * x) + 1.0f); }
inline double fast_tanh(double x) { return std::tanh(x); }

// erf x, relative error below 3e-7: up to |x| = 1 x times a polynomial in x^2, beyond it 1 - e^-q, q a
// polynomial in |x| for -log(1 - erf |x|); both are minimax fits. At 4 erf is 1 in float.
inline float fast_erf(float x) {
    const float a = std::fabs(x) > 4.0f ? 4.0f : std::fabs(x), s = x * x;
    const float near =
        x * (1.12837912f +
             s * (-0.376123262f +
                  s * (0.112801803f + s * (-0.0267113151f + s * (0.00491755462f + s * -0.000563143169f)))));
    const float q = 0.00261917502f +
                    a * (1.11762126f +
                         a * (0.654240081f + a * (0.0887997007f + a * (-0.0148318361f + a * 0.0011572195f))));
    const float far = std::copysign(1.0f - fast_exp(-q), x);
    return a >= 1.0f ? far : near; // NaN stays NaN
}
inline double fast_erf(double x) { return std::erf(x); }
