// Random numbers that depend on nothing but their place: a counter-based generator (the finaliser of
// splitmix64) addressed by (seed, stream, index). Any number can be computed at any time, in any order,
// on any thread, and a run that resumes needs only the index. Same numbers on every machine.
#pragma once
#include <cmath>
#include <cstdint>

// constexpr, so that nvcc lets kernels call it as well.
constexpr uint64_t mix64(uint64_t x) {
    x += 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

inline uint64_t random_u64(uint64_t seed, uint64_t stream, uint64_t index) {
    return mix64(mix64(mix64(seed) ^ stream) ^ index);
}

// Uniform in [0, 1), 53 bits.
inline double random_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
    return (random_u64(seed, stream, index) >> 11) * 0x1p-53;
}

// Standard normal (Box-Muller on the pair of uniforms 2*index, 2*index + 1).
inline double random_normal(uint64_t seed, uint64_t stream, uint64_t index) {
    double u = 1.0 - random_uniform(seed, stream, 2 * index); // (0, 1], so that the logarithm is finite
    double angle = 6.283185307179586477 * random_uniform(seed, stream, 2 * index + 1);
    return std::sqrt(-2.0 * std::log(u)) * std::cos(angle);
}

// A stream's number from its name (FNV-1a), so that what is random about a tensor depends on its name
// and not on its place in a list.
inline uint64_t random_stream(const char* name) {
    uint64_t h = 0xCBF29CE484222325ull;
    for (; *name; name++) h = (h ^ (unsigned char)*name) * 0x100000001B3ull;
    return h;
}

// The same generator, used in sequence. below(n) is uniform in [0, n).
struct Random {
    uint64_t seed, stream = 0, index = 0;
    uint64_t u64() { return random_u64(seed, stream, index++); }
    double uniform() { return random_uniform(seed, stream, index++); }
    uint64_t below(uint64_t n) { return uint64_t((unsigned __int128)u64() * n >> 64); }
};
