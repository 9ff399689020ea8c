// bfloat16 as cuda_bf16.h has it: the upper half of a float. Conversions round to nearest, ties to even, and
// keep NaN; arithmetic converts to float, computes, and rounds.
#pragma once
#include "cuda_runtime.h"

struct __nv_bfloat16_raw {
    unsigned short x;
};
struct alignas(2) __nv_bfloat16 {
    unsigned short bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(__nv_bfloat16_raw raw) : bits(raw.x) {}
    __nv_bfloat16(float x) : bits(emu::float_to_bf16(x)) {}
    __nv_bfloat16(double x) : bits(emu::float_to_bf16(float(x))) {}
    __nv_bfloat16(int x) : bits(emu::float_to_bf16(float(x))) {}
    __nv_bfloat16(unsigned x) : bits(emu::float_to_bf16(float(x))) {}
    __nv_bfloat16(long x) : bits(emu::float_to_bf16(float(x))) {}
    __nv_bfloat16(unsigned long x) : bits(emu::float_to_bf16(float(x))) {}
    operator float() const { return emu::bf16_to_float(bits); }
    operator __nv_bfloat16_raw() const { return {bits}; }
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
    __nv_bfloat162() = default;
    __nv_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) : x(x), y(y) {}
};
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;

inline float __bfloat162float(__nv_bfloat16 x) { return float(x); }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rz(float x) {
    const unsigned bits = __float_as_uint(x);
    return __nv_bfloat16_raw{(unsigned short)(x != x ? 0x7fff : bits >> 16)};
}
inline __nv_bfloat16 __double2bfloat16(double x) { return x; }
inline __nv_bfloat16 __int2bfloat16_rn(int x) { return x; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline short __bfloat16_as_short(__nv_bfloat16 x) { return short(x.bits); }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) { return __nv_bfloat16_raw{x}; }
inline __nv_bfloat16 __short_as_bfloat16(short x) { return __nv_bfloat16_raw{(unsigned short)(x)}; }

inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {v.x, v.y}; }
inline __nv_bfloat162 __float2bfloat162_rn(float x) { return {x, x}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return {x, x}; }
inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
inline float __low2float(__nv_bfloat162 v) { return v.x; }
inline float __high2float(__nv_bfloat162 v) { return v.y; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }

// One of each: of numbers as operator and function, and of pairs likewise.
#define EMU_BF16_ARITHMETIC(op, function)                                                                    \
    inline __nv_bfloat16 operator op(const __nv_bfloat16& a, const __nv_bfloat16& b) {                       \
        return float(a) op float(b);                                                                         \
    }                                                                                                        \
    inline __nv_bfloat16& operator op##=(__nv_bfloat16& a, const __nv_bfloat16& b) { return a = a op b; }    \
    inline __nv_bfloat16 __h##function(__nv_bfloat16 a, __nv_bfloat16 b) { return a op b; }                  \
    inline __nv_bfloat162 operator op(const __nv_bfloat162& a, const __nv_bfloat162& b) {                    \
        return {a.x op b.x, a.y op b.y};                                                                     \
    }                                                                                                        \
    inline __nv_bfloat162& operator op##=(__nv_bfloat162& a, const __nv_bfloat162& b) { return a = a op b; } \
    inline __nv_bfloat162 __h##function##2(__nv_bfloat162 a, __nv_bfloat162 b) { return a op b; }
EMU_BF16_ARITHMETIC(+, add)
EMU_BF16_ARITHMETIC(-, sub)
EMU_BF16_ARITHMETIC(*, mul)
EMU_BF16_ARITHMETIC(/, div)
#undef EMU_BF16_ARITHMETIC

#define EMU_BF16_COMPARISON(op, function)                                                                    \
    inline bool operator op(const __nv_bfloat16& a, const __nv_bfloat16& b) { return float(a) op float(b); } \
    inline bool __h##function(__nv_bfloat16 a, __nv_bfloat16 b) { return a op b; }
EMU_BF16_COMPARISON(==, eq)
EMU_BF16_COMPARISON(!=, ne)
EMU_BF16_COMPARISON(<, lt)
EMU_BF16_COMPARISON(<=, le)
EMU_BF16_COMPARISON(>, gt)
EMU_BF16_COMPARISON(>=, ge)
#undef EMU_BF16_COMPARISON

inline __nv_bfloat16 operator-(const __nv_bfloat16& a) {
    return __nv_bfloat16_raw{(unsigned short)(a.bits ^ 0x8000)};
}
inline __nv_bfloat162 operator-(const __nv_bfloat162& a) { return {-a.x, -a.y}; }
inline __nv_bfloat16 __hneg(__nv_bfloat16 a) { return -a; }
inline __nv_bfloat16 __habs(__nv_bfloat16 a) { return __nv_bfloat16_raw{(unsigned short)(a.bits & 0x7fff)}; }
inline __nv_bfloat16 __hmax(__nv_bfloat16 a, __nv_bfloat16 b) { return fmaxf(a, b); }
inline __nv_bfloat16 __hmin(__nv_bfloat16 a, __nv_bfloat16 b) { return fminf(a, b); }
inline __nv_bfloat162 __hmax2(__nv_bfloat162 a, __nv_bfloat162 b) {
    return {__hmax(a.x, b.x), __hmax(a.y, b.y)};
}
inline __nv_bfloat162 __hmin2(__nv_bfloat162 a, __nv_bfloat162 b) {
    return {__hmin(a.x, b.x), __hmin(a.y, b.y)};
}
inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) { return fmaf(a, b, c); }
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
inline bool __hisnan(__nv_bfloat16 a) { return (a.bits & 0x7fff) > 0x7f80; }
