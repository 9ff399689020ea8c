// A program that test_emu.cu includes, as the tests include train_moex.cu: what stands here is compiled once,
// and linked. Each function is of a kind that the translator treats in its own way.
#include <cuda_runtime.h>

constexpr int library_step = 3;
const char* const library_name = "library";
inline int library_calls = 0; // one variable, whoever counts

namespace library {

struct Counter {
    int count;
    explicit Counter(int count);
    int next();
};

const char* name() { return library_name; }

Counter::Counter(int count) : count{count} {}
inline int Counter::next() {
    library_calls++;
    return count += library_step;
}

} // namespace library

__device__ int scale(int x) { return x * library_step; } // not inline here: nvcc compiles one program

__device__ inline int shared_total(int x) {
    __shared__ int total;
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    atomicAdd(&total, x);
    __syncthreads();
    return total;
}

__global__ void __launch_bounds__(64) library_kernel(int* out, int offset) {
    const int total = shared_total(1);
    out[blockIdx.x * blockDim.x + threadIdx.x] = scale(int(threadIdx.x)) + offset + total;
}

template <class T> __global__ void library_template_kernel(T* out, T value) { out[threadIdx.x] = value; }

static const char* library_file() {
#ifdef MOEX_LIBRARY
    return "included";
#else
    return "linked";
#endif
}

inline void library_launch(int* out, int blocks, int threads, int offset = 100) {
    library_kernel<<<blocks, threads>>>(out, offset);
}

// A body with everything that a reader of brackets could stumble over.
static int library_brackets(int x) {
#if defined(PRECISION_FP32)
    const char* text = "}";
#else
    const char* text = "{"; // }
#endif
    auto twice = [](int y) { return y > 3 >> 1 ? '}' - '}' + 2 * y : 0; };
    return twice(x) + (text[0] == '{');
}

#ifndef MOEX_LIBRARY
int main() { return 1; } // gives way to the main of the program that this is linked into
#endif
