// Tests of dev/emu itself: launches, threads, barriers, warp operations, shared memory, atomics, PTX against
// the tables of the PTX manual, bf16, cublasLt against plain loops in double, the runtime's errors, and that
// what hardware leaves undefined stops with the kernel and the thread. Built by nvcc, the same tests (but
// those of the emulator's strictness) say whether the emulator's picture of the hardware is right.
#include "check.h"
#define MOEX_LIBRARY
#include "test_library.cu"
#include <algorithm>
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <functional>
#include <random>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

// Device memory that holds a vector, comes back as one, and is freed at the end of its scope.
template <class T> struct Device {
    T* data = nullptr;
    size_t n;
    explicit Device(size_t n) : n(n) {
        if (cudaMalloc(&data, n * sizeof(T)) != cudaSuccess) fail("out of device memory in a test");
    }
    explicit Device(const std::vector<T>& v) : Device(v.size()) {
        cudaMemcpy(data, v.data(), n * sizeof(T), cudaMemcpyHostToDevice);
    }
    Device(const Device&) = delete;
    ~Device() { cudaFree(data); }
    std::vector<T> get() const {
        std::vector<T> v(n);
        check(cudaMemcpy(v.data(), data, n * sizeof(T), cudaMemcpyDeviceToHost) == cudaSuccess);
        return v;
    }
};

#ifdef MOEX_EMU // programs that the emulator stops

struct Death {
    int status;
    std::string message;
};
// Runs f in a child and returns how it ended and what it wrote to stderr.
static Death run_child(const std::function<void()>& f) {
    int ends[2];
    if (pipe(ends) != 0) fail("no pipe");
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        f();
        _exit(0);
    }
    close(ends[1]);
    Death d{0, ""};
    char part[4096];
    for (ssize_t n; (n = read(ends[0], part, sizeof part)) > 0;) d.message.append(part, size_t(n));
    close(ends[0]);
    waitpid(child, &d.status, 0);
    return d;
}
template <class... Parts> static void check_stops(int line, const std::function<void()>& f, Parts... parts) {
    const Death d = run_child(f);
    bool named =
        d.message.rfind("emu: ", 0) == 0 && std::count(d.message.begin(), d.message.end(), '\n') == 1;
    for (const std::string& part : {std::string(parts)...})
        named = named && d.message.find(part) != std::string::npos;
    check_at(WIFEXITED(d.status) && WEXITSTATUS(d.status) == 1 && named, __FILE__, line,
             strf("status %d, message: %s", d.status, d.message.c_str()));
}
#endif

// ---- launches -------------------------------------------------------------------------------------------

struct Index {
    uint3 thread, block;
    int lane;
};
__global__ void write_index(Index* out) {
    const unsigned b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const unsigned t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    out[b * blockDim.x * blockDim.y * blockDim.z + t] = {threadIdx, blockIdx, int(t % warpSize)};
}
template <int N, bool negate> __global__ void __launch_bounds__(64, 2)
    write_template(int* out, size_t offset) {
    out[offset + threadIdx.x] = negate ? -N : N;
}
template <class T> __global__ void __launch_bounds__(256) fill(T* out, T value, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = value;
}
namespace outer {
namespace inner {
__global__ void add_one(int* x) { x[threadIdx.x] += 1; }
} // namespace inner
} // namespace outer
__global__ void nothing() {}
__device__ int counted;
__global__ void count_threads() { atomicAdd(&counted, 1); }

static int evaluations = 0;
template <class T> static T once(T x) { return evaluations++, x; }

static void test_launches() {
    Device<Index> index(2 * 3 * 2 * 4 * 3 * 2);
    write_index<<<dim3(2, 3, 2), dim3(4, 3, 2)>>>(index.data);
    size_t i = 0;
    bool right = true;
    const std::vector<Index> got = index.get();
    for (unsigned b = 0; b < 12; b++)
        for (unsigned t = 0; t < 24; t++, i++) {
            const Index& x = got[i];
            right = right && x.thread.x == t % 4 && x.thread.y == t / 4 % 3 && x.thread.z == t / 12 &&
                    x.block.x == b % 2 && x.block.y == b / 2 % 3 && x.block.z == b / 6 && x.lane == int(t);
        }
    check(right, "thread and block indices");

    Device<int> out(256);
    cudaMemset(out.data, 0, 256 * sizeof(int));
    // clang-format off
    const int before = __LINE__; // a launch over several lines, with a comment in it, keeps the line numbers
    write_template<7, (1 > 2)> // <<< not here
        <<<1, // one block
           (128 >> 1),
           0
        >>>(out.data,
            0); write_template<9, true><<<once(1), once(64), once(sizeof(int)), once(cudaStream_t(0))>>>(once(out.data), once(64));
    // clang-format on
    check(__LINE__ - before == 8, "%d lines", __LINE__ - before);
    check(evaluations == 6, "each expression of a launch is evaluated once, not %d times in all",
          evaluations);
    fill<<<2, 32>>>(out.data + 128, 5, 40);
    fill<float><<<1, 32>>>((float*)out.data + 192, 1, 32);
    std::vector<int> v = out.get();
    check(v[0] == 7 && v[63] == 7 && v[64] == -9 && v[127] == -9 && v[167] == 5 && v[168] == 0 &&
          v[192] == 0x3f800000);
    outer::inner::add_one<<<1, 64>>>(out.data);
    void (*pointer)(int*) = outer::inner::add_one;
    pointer<<<1, 64>>>(out.data);
    (*pointer)<<<1, 64>>>(out.data);
    if (out.n) ::outer::inner::add_one<<<1, 64>>>(out.data);
    check(out.get()[5] == 11);
    const int zero = 0;
    cudaMemcpyToSymbol(counted, &zero, sizeof zero);
    count_threads<<<1000, 33>>>();
    int total = 0;
    check(cudaMemcpyFromSymbol(&total, counted, sizeof total) == cudaSuccess && total == 33000);
    const std::string text = "kernel<<<1, 2>>>(x); __shared__ asm(\"\")"; // strings stay strings
    check(text.size() == 39);
    check(cudaGetLastError() == cudaSuccess && cudaDeviceSynchronize() == cudaSuccess);
}

// What the hardware refuses, with its own error codes.
__global__ void use_dynamic(int* out, int n) {
    extern __shared__ int numbers[];
    for (int i = threadIdx.x; i < n; i += blockDim.x) numbers[i] = i;
    __syncthreads();
    if (threadIdx.x == 0) *out = numbers[n - 1];
}
static void test_launch_errors() {
    const auto error = [](dim3 grid, dim3 block, size_t shared) {
        nothing<<<grid, block, shared>>>();
        const cudaError_t peeked = cudaPeekAtLastError(), got = cudaGetLastError();
        check(peeked == got && cudaGetLastError() == cudaSuccess);
        return got;
    };
    check(error(1, 1024, 0) == cudaSuccess);
    check(error(1, 1025, 0) == cudaErrorInvalidConfiguration);
    check(error(1, dim3(32, 33), 0) == cudaErrorInvalidConfiguration);
    check(error(1, dim3(1, 1, 65), 0) == cudaErrorInvalidConfiguration);
    check(error(1, 0, 0) == cudaErrorInvalidConfiguration);
    check(error(0, 32, 0) == cudaErrorInvalidConfiguration);
    check(error(dim3(1, 65536), 1, 0) == cudaErrorInvalidConfiguration);
    check(error(dim3(1, 1, 65536), 1, 0) == cudaErrorInvalidConfiguration);
    check(error(dim3(1, 65535), 1, 0) == cudaSuccess);
    check(error(1, 1, 48 << 10) == cudaSuccess);
    check(error(1, 1, (48 << 10) + 1) == cudaErrorInvalidValue);

    Device<int> out(1);
    const size_t bytes = 100 << 10;
    use_dynamic<<<1, 128, bytes>>>(out.data, int(bytes / 4));
    check(cudaGetLastError() == cudaErrorInvalidValue,
          "dynamic shared memory beyond 48 KiB needs the attribute");
    check(cudaFuncSetAttribute(use_dynamic, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)) ==
          cudaSuccess);
    use_dynamic<<<1, 128, bytes>>>(out.data, int(bytes / 4));
    check(cudaGetLastError() == cudaSuccess && out.get()[0] == int(bytes / 4) - 1);
    use_dynamic<<<1, 128, bytes + 4>>>(out.data, 1);
    check(cudaGetLastError() == cudaErrorInvalidValue);
    check(cudaFuncSetAttribute(use_dynamic, cudaFuncAttributeMaxDynamicSharedMemorySize, (227 << 10) + 1) ==
          cudaErrorInvalidValue);
    check(cudaFuncSetAttribute(use_dynamic, cudaFuncAttributeMaxDynamicSharedMemorySize, 0) == cudaSuccess);
    cudaGetLastError();
}

// ---- graphs, and kernels that begin early ---------------------------------------------------------------

__global__ void plus_one_early(int* x, int steps) {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("prefetch.global.L2 [%0];" ::"l"(x));
    if (steps < 0) return; // without having waited
    asm volatile("griddepcontrol.wait;" ::: "memory");
    for (int i = 0; i < steps; i++) x[threadIdx.x] += 1;
}
static cudaError_t launch_early(int* x, int steps, cudaStream_t stream, unsigned threads = 32) {
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = 1;
    config.blockDim = threads;
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, plus_one_early, x, steps);
}

// A captured stream does nothing; the graph does all of it at every launch, with what is then in memory.
static void test_graphs() {
    cudaStream_t stream;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    int* host = nullptr;
    check(cudaStreamCreate(&stream) == cudaSuccess && cudaMallocHost(&host, 3 * 32 * sizeof(int)) == 0);
    Device<int> x(32), cleared(32);
    const size_t bytes = 32 * sizeof(int);
    for (int i = 0; i < 32; i++) host[i] = i, host[32 + i] = host[64 + i] = -5;
    check(cudaMemset(cleared.data, 1, bytes) == cudaSuccess);
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
    check(cudaMemcpyAsync(x.data, host, bytes, cudaMemcpyHostToDevice, stream) == cudaSuccess);
    outer::inner::add_one<<<1, 32, 0, stream>>>(x.data);
    check(launch_early(x.data, 10, stream) == cudaSuccess);
    check(launch_early(x.data, 10, stream, 1025) == cudaErrorInvalidConfiguration);
    check(cudaMemsetAsync(cleared.data, 0, bytes, stream) == cudaSuccess);
    check(cudaMemcpyAsync(host + 32, x.data, bytes, cudaMemcpyDeviceToHost, stream) == cudaSuccess);
    check(cudaMemcpyAsync(host + 64, cleared.data, bytes, cudaMemcpyDeviceToHost, stream) == cudaSuccess);
    check(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
    check(cudaGetLastError() == cudaErrorInvalidConfiguration && cudaGetLastError() == cudaSuccess);
    check(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess && cudaGraphDestroy(graph) == cudaSuccess);
    check(cudaStreamSynchronize(stream) == cudaSuccess && host[32 + 7] == -5 &&
          cleared.get()[3] == 0x01010101);
    for (const int first : {0, 100}) {
        for (int i = 0; i < 32; i++) host[i] = first + i;
        check(cudaGraphLaunch(exec, stream) == cudaSuccess);
        check(cudaStreamSynchronize(stream) == cudaSuccess);
        check(host[32] == first + 11 && host[32 + 31] == first + 42 && host[64 + 3] == 0);
    }
    check(cudaGraphExecDestroy(exec) == cudaSuccess);

    // What waits makes the capture invalid, and the stream is free again.
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaErrorIllegalState);
    outer::inner::add_one<<<1, 32, 0, stream>>>(x.data);
    check(cudaStreamSynchronize(stream) == cudaErrorStreamCaptureUnsupported);
    check(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated && !graph);
    check(cudaStreamEndCapture(stream, &graph) == cudaErrorIllegalState);
    check(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal) == cudaErrorStreamCaptureUnsupported);
    cudaGetLastError();
    check(launch_early(x.data, 3, stream) == cudaSuccess && cudaGetLastError() == cudaSuccess);
    check(cudaStreamSynchronize(stream) == cudaSuccess && x.get()[0] == 114);
#ifdef MOEX_EMU
    check_stops(
        __LINE__, [&] { launch_early(x.data, -1, stream), cudaDeviceSynchronize(); },
        "ends without a griddepcontrol.wait");
    check_stops(
        __LINE__,
        [&] {
            cudaEvent_t event;
            cudaEventCreate(&event);
            cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
            cudaEventRecord(event, stream);
        },
        "cudaEventRecord: not emulated on a stream that is being captured");
#endif
    check(cudaStreamDestroy(stream) == cudaSuccess && cudaFreeHost(host) == cudaSuccess);
}

// ---- the runtime ----------------------------------------------------------------------------------------

static void test_runtime() {
    int count = 0, device = 7, sms = 0, opt_in = 0;
    check(cudaGetDeviceCount(&count) == cudaSuccess && count >= 1);
    check(cudaSetDevice(0) == cudaSuccess && cudaGetDevice(&device) == cudaSuccess && device == 0);
    cudaDeviceProp p;
    check(cudaGetDeviceProperties(&p, 0) == cudaSuccess && p.warpSize == 32 && p.maxThreadsPerBlock == 1024);
    check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0) == cudaSuccess &&
          sms == p.multiProcessorCount);
    check(cudaDeviceGetAttribute(&opt_in, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) == cudaSuccess &&
          size_t(opt_in) == p.sharedMemPerBlockOptin);
    size_t available, total;
    check(cudaMemGetInfo(&available, &total) == cudaSuccess && available <= total &&
          total == p.totalGlobalMem);
    check(cudaSetDevice(count) == cudaErrorInvalidDevice && cudaGetLastError() == cudaErrorInvalidDevice);
    check(std::string(cudaGetErrorName(cudaErrorMemoryAllocation)) == "cudaErrorMemoryAllocation");
    check(std::string(cudaGetErrorString(cudaErrorMemoryAllocation)) == "out of memory");
    check(std::string(cudaGetErrorString(cudaErrorInvalidConfiguration)) == "invalid configuration argument");

    std::vector<float> host(100, 3), back(100);
    float *a = nullptr, *b = nullptr, *pinned = nullptr;
    check(cudaMalloc(&a, 400) == cudaSuccess && cudaMalloc((void**)&b, 400) == cudaSuccess);
    check(size_t(a) % 256 == 0 && size_t(b) % 256 == 0);
    check(cudaMallocHost(&pinned, 400) == cudaSuccess);
    cudaStream_t stream;
    cudaEvent_t start = nullptr, stop = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
    check(cudaEventCreate(&start) == cudaSuccess &&
          cudaEventCreateWithFlags(&stop, cudaEventDefault) == cudaSuccess);
    check(cudaEventRecord(start, stream) == cudaSuccess);
    check(cudaMemcpyAsync(a, host.data(), 400, cudaMemcpyHostToDevice, stream) == cudaSuccess);
    check(cudaMemcpyAsync(b, a, 400, cudaMemcpyDeviceToDevice, stream) == cudaSuccess);
    check(cudaMemsetAsync(b + 50, 0, 200, stream) == cudaSuccess);
    check(cudaMemcpyAsync(pinned, b, 400, cudaMemcpyDeviceToHost, stream) == cudaSuccess);
    check(cudaEventRecord(stop, stream) == cudaSuccess &&
          cudaStreamWaitEvent(stream, stop, 0) == cudaSuccess);
    check(cudaEventSynchronize(stop) == cudaSuccess && cudaEventQuery(stop) == cudaSuccess);
    check(cudaStreamSynchronize(stream) == cudaSuccess && pinned[49] == 3 && pinned[50] == 0);
    float ms = -1;
    check(cudaEventElapsedTime(&ms, start, stop) == cudaSuccess && ms >= 0 && ms < 1e4);
    // a (10,5) block of 4-byte elements out of rows of 10
    check(cudaMemcpy2D(back.data(), 20, b, 40, 20, 10, cudaMemcpyDeviceToHost) == cudaSuccess &&
          back[24] == 3 && back[25] == 0);
    check(cudaFree(nullptr) == cudaSuccess);
    cudaEventDestroy(start), cudaEventDestroy(stop), cudaStreamDestroy(stream), cudaFreeHost(pinned);

    float* huge = (float*)1;
    check(cudaMalloc(&huge, size_t(1) << 60) == cudaErrorMemoryAllocation && huge == nullptr);
    check(cudaGetLastError() == cudaErrorMemoryAllocation && cudaGetLastError() == cudaSuccess);
#ifdef MOEX_EMU
    // fresh memory is NaN; copies that leave their allocation are refused, as are host pointers
    check(cudaMemcpy(back.data(), a, 404, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
    check(cudaMemcpy(a, host.data(), 8, cudaMemcpyDeviceToDevice) == cudaErrorInvalidValue);
    check(cudaMemset(host.data(), 0, 4) == cudaErrorInvalidValue &&
          cudaFree(host.data()) == cudaErrorInvalidValue);
    check(cudaGetLastError() == cudaErrorInvalidValue);
    check(std::isnan(Device<float>(3).get()[2]));
    setenv("EMU_MEMORY", "1000000", 1);
    char *big = nullptr, *rest = nullptr;
    cudaMemGetInfo(&available, &total);
    check(total == 1000000 && available == 1000000 - 800);
    check(cudaMalloc(&big, 900000) == cudaSuccess && cudaMalloc(&rest, 200000) == cudaErrorMemoryAllocation);
    cudaFree(big);
    check(cudaMalloc(&rest, 200000) == cudaSuccess);
    cudaFree(rest), cudaGetLastError();
    unsetenv("EMU_MEMORY");
#endif
    cudaFree(a), cudaFree(b);
}

// ---- barriers and shared memory -------------------------------------------------------------------------

__global__ void reverse_in_blocks(int* x) {
    __shared__ int tile[4][32], other[128];
    __shared__ alignas(16) float4 wide;
    __shared__ int total;
    const int i = threadIdx.x, n = blockDim.x;
    tile[i / 32][i % 32] = x[blockIdx.x * n + i];
    if (i == 0) total = 0, wide = make_float4(1, 2, 3, 4);
    __syncthreads();
    other[i] = tile[(n - 1 - i) / 32][(n - 1 - i) % 32];
    atomicAdd(&total, 1);
    __syncthreads();
    x[blockIdx.x * n + i] = other[i] * 1000 + total * int(wide.w);
}
__device__ int device_function_tile(int value) {
    __shared__ int place[64];
    place[threadIdx.x] = value;
    __syncthreads();
    return place[threadIdx.x ^ 1];
}
template <class T, int N> __global__ void template_tile(T* x) {
    __shared__ T tile[N][N + 1];
    tile[threadIdx.y][threadIdx.x] = x[threadIdx.y * N + threadIdx.x];
    __syncthreads();
    x[threadIdx.y * N + threadIdx.x] = tile[threadIdx.x][threadIdx.y];
}
__global__ void predicates(int* out) {
    const int i = threadIdx.x;
    out[i] = __syncthreads_count(i % 3 == 0);
    out[i] += 1000 * __syncthreads_or(i == 5) + 2000 * __syncthreads_or(0);
    out[i] += 10000 * __syncthreads_and(1) + 20000 * __syncthreads_and(i != 5);
    out[i] += 100000 * device_function_tile(i);
}
template <class T> __global__ void poisoned(T* out, int n) {
    extern __shared__ __align__(16) unsigned char bytes[];
    __shared__ T fixed[32];
    T* const dynamic = reinterpret_cast<T*>(bytes);
    for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = dynamic[i];
    out[n + threadIdx.x] = fixed[threadIdx.x];
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) dynamic[i] = 1;
    fixed[threadIdx.x] = 1;
}

static void test_shared() {
    std::vector<int> v(3 * 128);
    for (size_t i = 0; i < v.size(); i++) v[i] = int(i);
    Device<int> x(v);
    reverse_in_blocks<<<3, 128>>>(x.data);
    const std::vector<int> got = x.get();
    bool right = true;
    for (int i = 0; i < 384; i++) right = right && got[i] == (i / 128 * 128 + 127 - i % 128) * 1000 + 128 * 4;
    check(right, "reversed in shared memory");
    std::vector<double> square(256);
    for (size_t i = 0; i < 256; i++) square[i] = double(i);
    Device<double> s(square);
    template_tile<double, 16><<<1, dim3(16, 16)>>>(s.data);
    check(s.get()[3 * 16 + 5] == 5 * 16 + 3);
    Device<int> p(64);
    predicates<<<1, 64>>>(p.data);
    check(p.get()[0] == 22 + 1000 + 10000 + 100000 && p.get()[63] == 22 + 1000 + 10000 + 62 * 100000);
#ifdef MOEX_EMU
    Device<float> fresh(64 + 32);
    bool poison = true;
    for (int round = 0; round < 2; round++) { // also in a block that another has used
        poisoned<float><<<4, 32, 256>>>(fresh.data, 64);
        for (float f : fresh.get()) poison = poison && std::isnan(f);
    }
    check(poison, "shared memory starts as NaN");
#endif
}

// ---- warp operations ------------------------------------------------------------------------------------

template <class T> __global__ void shuffles(T* out, const T* in, int by, int width) {
    const int i = threadIdx.x;
    out[i] = __shfl_sync(0xffffffff, in[i], by, width);
    out[32 + i] = __shfl_up_sync(0xffffffff, in[i], by, width);
    out[64 + i] = __shfl_down_sync(0xffffffffu, in[i], by, width);
    out[96 + i] = __shfl_xor_sync(0xffffffffu, in[i], by, width);
}
// The pseudo code of shfl.sync in the PTX manual, with the control word that CUDA's functions make.
static int shuffle_source(char mode, int lane, int by, int width) {
    const int segment = (32 - width) & 31, c = mode == 'u' ? segment << 8 : segment << 8 | 0x1f;
    const int segmask = c >> 8 & 0x1f, bval = by & 0x1f, cval = c & 0x1f;
    const int max_lane = (lane & segmask) | (cval & ~segmask), min_lane = lane & segmask;
    int j = 0;
    bool p = false;
    if (mode == 'u') j = lane - bval, p = j >= max_lane;
    if (mode == 'd') j = lane + bval, p = j <= max_lane;
    if (mode == 'x') j = lane ^ bval, p = j <= max_lane;
    if (mode == 'i') j = min_lane | (bval & ~segmask), p = j <= max_lane;
    return p ? j : lane;
}
template <class T> static void test_shuffle_type(const char* name) {
    std::vector<T> v(32);
    for (int i = 0; i < 32; i++) v[i] = T(i * 1000003.25 + 7777.5);
    Device<T> in(v), out(128);
    bool right = true;
    for (int width = 1; width <= 32; width *= 2)
        for (int by : {0, 1, 2, 3, 7, 8, 16, 17, 31}) {
            shuffles<<<1, 32>>>(out.data, in.data, by, width);
            const std::vector<T> got = out.get();
            for (int i = 0; i < 128; i++)
                right = right && got[i] == v[shuffle_source("iudx"[i / 32], i % 32, by, width)];
        }
    check(right, "shuffles of %s", name);
}
__global__ void votes(unsigned* out, const int* in) {
    const int i = threadIdx.x;
    unsigned* const mine = out + i * 10;
    mine[0] = __ballot_sync(0xffffffff, in[i] & 1);
    mine[1] = __any_sync(0xffffffff, in[i] == 6), mine[2] = __any_sync(0xffffffff, in[i] == 99);
    mine[3] = __all_sync(0xffffffff, in[i] < 50), mine[4] = __all_sync(0xffffffff, in[i] < 7);
    mine[5] = __match_any_sync(0xffffffff, in[i] % 4);
    mine[6] = __reduce_add_sync(0xffffffff, unsigned(in[i]));
    mine[7] = __reduce_max_sync(0xffffffff, in[i]) * 100 + __reduce_min_sync(0xffffffff, in[i]);
    if (i < 16) // two masks at once
        mine[8] = __shfl_sync(0x0000ffff, in[i], 3) + __ballot_sync(0x0000ffff, 1);
    else
        mine[8] = __shfl_sync(0xffff0000, in[i], 20) + __ballot_sync(0xffff0000, i != 16);
    __syncwarp();
    mine[9] = __activemask();
}
__global__ void bits(unsigned* out) {
    const unsigned x = 0x00f01234;
    out[0] = __popc(x), out[1] = __clz(int(x)), out[2] = __ffs(int(x)), out[3] = __brev(x);
    out[4] = __popcll(0xff00000000000001ull), out[5] = __clz(0), out[6] = __ffs(0);
    out[7] = __float_as_uint(1.5f), out[8] = unsigned(__uint_as_float(0x40400000));
    out[9] = __float_as_int(-0.f) == int(0x80000000), out[10] = unsigned(min(3, -1) + max(2u, 7u));
}
static void test_warps() {
    test_shuffle_type<int>("int");
    test_shuffle_type<unsigned>("unsigned");
    test_shuffle_type<float>("float");
    test_shuffle_type<double>("double");
    test_shuffle_type<long long>("long long");
    test_shuffle_type<unsigned long long>("unsigned long long");
    std::vector<int> v(32);
    for (int i = 0; i < 32; i++) v[i] = i * 7 % 40;
    Device<int> in(v);
    Device<unsigned> out(320), b(11);
    votes<<<1, 32>>>(out.data, in.data);
    const std::vector<unsigned> got = out.get();
    bool right = true;
    for (int i = 0; i < 32; i++) {
        unsigned ballot = 0, match = 0, sum = 0;
        for (int j = 0; j < 32; j++)
            ballot |= unsigned(v[j] & 1) << j, match |= unsigned(v[j] % 4 == v[i] % 4) << j,
                sum += unsigned(v[j]);
        const unsigned* m = &got[i * 10];
        right = right && m[0] == ballot && m[1] == 1 && m[2] == 0 && m[3] == 1 && m[4] == 0 &&
                m[5] == match && m[6] == sum && m[7] == 3900 && m[9] == 0xffffffff &&
                m[8] == (i < 16 ? unsigned(v[3]) + 0xffff : unsigned(v[20]) + 0xfffe0000);
    }
    check(right, "votes");
    bits<<<1, 1>>>(b.data);
    const std::vector<unsigned> wanted = {9, 8, 3, 0x2c480f00, 9, 32, 0, 0x3fc00000, 3, 1, 6};
    check(b.get() == wanted);
}

// ---- atomics --------------------------------------------------------------------------------------------

struct Totals {
    int sum, largest, smallest, swapped;
    unsigned usum, umax;
    unsigned long long wide;
    float real;
};
__global__ void atomics(Totals* t) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(&t->sum, i);
    atomicMax(&t->largest, i), atomicMin(&t->smallest, -i);
    atomicAdd(&t->usum, 1u), atomicMax(&t->umax, unsigned(i));
    atomicAdd(&t->wide, 1ull << 33);
    atomicAdd(&t->real, 1.f);
    int old = t->swapped, seen; // an addition by compare and swap
    do {
        seen = old;
        old = atomicCAS(&t->swapped, seen, seen + 2);
    } while (old != seen);
    __threadfence();
}
// The last block to finish adds up what all wrote.
__global__ void last_block(int* partial, unsigned* finished, int* total) {
    __shared__ bool last;
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = int(blockIdx.x) + 1;
        __threadfence();
        last = atomicAdd(finished, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last || threadIdx.x != 0) return;
    int sum = 0;
    for (unsigned b = 0; b < gridDim.x; b++) sum += atomicExch(&partial[b], 0);
    *total = sum;
}
static void test_atomics() {
    Device<Totals> t(std::vector<Totals>(1));
    const int n = 200 * 100;
    atomics<<<200, 100>>>(t.data);
    const Totals got = t.get()[0];
    check(got.sum == n * (n - 1) / 2 && got.largest == n - 1 && got.smallest == 1 - n &&
          got.swapped == 2 * n);
    check(got.usum == unsigned(n) && got.umax == unsigned(n - 1) && got.real == float(n));
    check(got.wide == (unsigned long long)(n) << 33);
    Device<int> partial(100), total(1);
    Device<unsigned> finished(std::vector<unsigned>(1));
    last_block<<<100, 64>>>(partial.data, finished.data, total.data);
    check(total.get()[0] == 5050);
}

// ---- PTX ------------------------------------------------------------------------------------------------

__device__ __forceinline__ void mma(float* d, const unsigned* a, const unsigned* b, const float* c) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};\n" // d, a, b, c
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]),
                   "f"(c[2]), "f"(c[3]));
}
__global__ void multiply(float* d, const unsigned* a, const unsigned* b, const float* c) {
    const int w = threadIdx.x / 32, i = threadIdx.x;
    float in_place[4];
    mma(d + i * 4, a + i * 4, b + i * 2, c + i * 4);
    for (int k = 0; k < 4; k++) in_place[k] = d[i * 4 + k];
    // the same once more with d and c one operand
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(in_place[0]), "+f"(in_place[1]), "+f"(in_place[2]), "+f"(in_place[3])
                 : "r"(a[i * 4]), "r"(a[i * 4 + 1]), "r"(a[i * 4 + 2]), "r"(a[i * 4 + 3]), "r"(b[i * 2]),
                   "r"(b[i * 2 + 1])
                 : "memory");
    for (int k = 0; k < 4; k++) d[(64 + i) * 4 + k] = in_place[k];
    (void)w;
}
static unsigned short bf16_bits(float x) { return __bfloat16_as_ushort(__float2bfloat16(x)); }

// The fragment tables of the PTX manual for m16n8k16 with .bf16: element i of lane's fragment.
static int a_row(int lane, int i) { return i < 2 || (i >= 4 && i < 6) ? lane >> 2 : (lane >> 2) + 8; }
static int a_column(int lane, int i) { return (lane % 4) * 2 + (i & 1) + (i >= 4 ? 8 : 0); }
static int b_row(int lane, int i) { return (lane % 4) * 2 + (i & 1) + (i >= 2 ? 8 : 0); }
static int b_column(int lane, int) { return lane >> 2; }
static int c_row(int lane, int i) { return i < 2 ? lane >> 2 : (lane >> 2) + 8; }
static int c_column(int lane, int i) { return (lane % 4) * 2 + (i & 1); }

static void test_mma() {
    std::mt19937 random(1);
    const int warps = 2;
    std::vector<unsigned> a(warps * 32 * 4), b(warps * 32 * 2);
    std::vector<float> c(warps * 32 * 4);
    std::vector<float> A(warps * 256), B(warps * 128), C(warps * 128);
    for (float& x : A) x = float(int(random() % 64) - 32) / 8;
    for (float& x : B) x = float(int(random() % 64) - 32) / 8;
    for (float& x : C) x = float(int(random() % 64) - 32) / 8;
    for (int t = 0; t < warps * 32; t++) {
        const int w = t / 32, lane = t % 32;
        for (int i = 0; i < 8; i++)
            a[t * 4 + i / 2] |= unsigned(bf16_bits(A[w * 256 + a_row(lane, i) * 16 + a_column(lane, i)]))
                                << i % 2 * 16;
        for (int i = 0; i < 4; i++) {
            b[t * 2 + i / 2] |= unsigned(bf16_bits(B[w * 128 + b_row(lane, i) * 8 + b_column(lane, i)]))
                                << i % 2 * 16;
            c[t * 4 + i] = C[w * 128 + c_row(lane, i) * 8 + c_column(lane, i)];
        }
    }
    Device<unsigned> da(a), db(b);
    Device<float> dc(c), dd(2 * warps * 32 * 4);
    multiply<<<1, warps * 32>>>(dd.data, da.data, db.data, dc.data);
    const std::vector<float> d = dd.get();
    bool right = true;
    for (int t = 0; t < warps * 32; t++)
        for (int i = 0; i < 4; i++) {
            const int w = t / 32, row = c_row(t % 32, i), column = c_column(t % 32, i);
            double product = 0;
            for (int k = 0; k < 16; k++)
                product += double(A[w * 256 + row * 16 + k]) * B[w * 128 + k * 8 + column];
            const double once =
                C[w * 128 + row * 8 + column] + product; // exact in fp32: all are multiples of 1/64
            right = right && d[t * 4 + i] == once && d[(64 + t) * 4 + i] == once + product;
        }
    check(right, "mma against the manual's tables");
}

__global__ void load_matrices(unsigned* out, const unsigned short* in) {
    __shared__ alignas(16) unsigned short tile[32 * 24]; // rows of 8 at a stride of 24
    for (int i = threadIdx.x; i < 32 * 24; i += 32) tile[i] = in[i];
    __syncwarp();
    const int lane = threadIdx.x;
    const unsigned row = unsigned(__cvta_generic_to_shared(&tile[lane * 24]));
    unsigned* r = out + lane * 14;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[4]), "=r"(r[5]), "=r"(r[6]), "=r"(r[7])
                 : "r"(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2 + 16];"
                 : "=r"(r[8]), "=r"(r[9])
                 : "r"(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared::cta.b16 {%0,%1}, [%2];"
                 : "=r"(r[10]), "=r"(r[11])
                 : "r"(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[12]) : "r"(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[13]) : "r"(row));
}
static void test_ldmatrix() {
    std::vector<unsigned short> v(32 * 24);
    for (size_t i = 0; i < v.size(); i++) v[i] = (unsigned short)(i * 40503u);
    Device<unsigned short> in(v);
    Device<unsigned> out(32 * 14);
    load_matrices<<<1, 32>>>(out.data, in.data);
    const std::vector<unsigned> got = out.get();
    // The manual: lane l receives of each matrix row l / 4, elements 2 (l % 4) and the next, the first in the
    // low half; with .trans the matrix is transposed first. Matrix i's rows come from lanes 8i .. 8i+7.
    const auto wanted = [&](int lane, int matrix, bool trans, int offset) {
        const int row = lane / 4, column = 2 * (lane % 4);
        const auto at = [&](int r, int c) { return unsigned(v[(matrix * 8 + r) * 24 + offset + c]); };
        return trans ? at(column, row) | at(column + 1, row) << 16
                     : at(row, column) | at(row, column + 1) << 16;
    };
    bool right = true;
    for (int lane = 0; lane < 32; lane++) {
        const unsigned* r = &got[lane * 14];
        for (int i = 0; i < 4; i++)
            right = right && r[i] == wanted(lane, i, false, 0) && r[4 + i] == wanted(lane, i, true, 0);
        for (int i = 0; i < 2; i++)
            right = right && r[8 + i] == wanted(lane, i, false, 8) && r[10 + i] == wanted(lane, i, true, 0);
        right = right && r[12] == wanted(lane, 0, false, 0) && r[13] == wanted(lane, 0, true, 0);
    }
    check(right, "ldmatrix against the manual");
}

template <int N> __device__ __forceinline__ void wait_group() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(N));
}
__device__ __forceinline__ void copy16(void* to, const void* from, int bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(
                     unsigned(__cvta_generic_to_shared(to))),
                 "l"(from), "r"(bytes)
                 : "memory");
}
// out: what the thread sees of its four 16-byte pieces after each step.
__global__ void async_copies(int* out, const int* in) {
    __shared__ alignas(16) int tile[32][16];
    int* const mine = tile[threadIdx.x];
    for (int i = 0; i < 16; i++) mine[i] = 0;
    copy16(mine, in, 16);
    asm volatile("cp.async.commit_group;\n" ::);
    copy16(mine + 4, in + 4, 8); // the rest is zero
    asm volatile("cp.async.commit_group;\n");
    const unsigned third = unsigned(__cvta_generic_to_shared(mine + 8));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;\n"
                 "cp.async.ca.shared.global [%0 + 8], [%2], 8;\n" ::"r"(third),
                 "l"(in + 8), "l"(in + 10));
    out += threadIdx.x * 48;
    wait_group<1>();
    for (int i = 0; i < 16; i++) out[i] = mine[i];
    wait_group<0>();
    for (int i = 0; i < 16; i++) out[16 + i] = mine[i];
    asm volatile("cp.async.wait_all;" ::: "memory");
    for (int i = 0; i < 16; i++) out[32 + i] = mine[i];
}
static void test_cp_async() {
    std::vector<int> v(16);
    for (int i = 0; i < 16; i++) v[i] = i + 1;
    Device<int> in(v), out(32 * 48);
    async_copies<<<1, 32>>>(out.data, in.data);
    const std::vector<int> got = out.get();
    const int* last = &got[31 * 48];
    check(last[0] == 1 && last[3] == 4, "the first group has landed");
    check(last[32] == 1 && last[36] == 5 && last[37] == 6 && last[38] == 0 && last[39] == 0,
          "zeros beyond the source");
    check(last[40] == 9 && last[41] == 0 && last[42] == 11 && last[43] == 12 && last[44] == 0);
#ifdef MOEX_EMU
    check(last[4] == -1 && last[7] == -1, "the second group is not there before its wait");
    check(last[16 + 4] == 5 && last[16 + 7] == 0);
    check(last[16 + 8] == -1 && last[16 + 9] == 0 && last[16 + 10] == -1,
          "what was not committed is in no group");
#endif
}

// A warpgroup's product. Its operands lie in lines of 128 bytes, chunk c of line l at c ^ l % 8: of a row 64
// numbers that are summed over, or, wide, of one of these numbers 64 rows.
template <bool a_wide, bool b_wide>
__device__ __forceinline__ void warpgroup_multiply(float* d, uint64_t a, uint64_t b) {
    // clang-format off
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, 1, 1, 1, %34, %35;"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
                   "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
                   "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
                   "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
                 : "l"(a), "l"(b), "n"(int(a_wide)), "n"(int(b_wide)));
    // clang-format on
}
__device__ inline void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> __device__ void warpgroup_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
__device__ inline uint64_t descriptor(const void* p) {
    return __cvta_generic_to_shared(p) >> 4 | uint64_t(8192 >> 4) << 16 | uint64_t(1024 >> 4) << 32 |
           uint64_t(1) << 62;
}
enum class Mistake { none, no_fence, no_proxy_fence, overwritten, register_written, no_wait, missing_warp };
// d (64,64) = a (64,64) b (64,64)^T, wide: a, b (64 of the sum, 64 rows). The last 16 numbers go in a group
// of their own. Behind d, what each warp has between the two waits.
template <bool a_wide, bool b_wide, Mistake mistake>
__global__ void multiply_warpgroup(float* d, const __nv_bfloat16* a, const __nv_bfloat16* b) {
    extern __shared__ uint4 tiles[];
    for (int i = threadIdx.x; i < 1024; i += 128) {
        const int line = i % 512 / 8, chunk = i % 8;
        copy16(tiles + i / 512 * 512 + line * 8 + (chunk ^ line % 8), (i < 512 ? a : b) + i % 512 * 8, 16);
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    if (mistake != Mistake::no_proxy_fence) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    if (mistake == Mistake::missing_warp && threadIdx.x >= 96) return;
    float c[32] = {};
    if (mistake != Mistake::no_fence) warpgroup_fence();
    const uint64_t a_at = descriptor(tiles), b_at = descriptor(tiles + 512);
    for (int k = 0; k < 4; k++) {
        warpgroup_multiply<a_wide, b_wide>(c, a_at + k * (a_wide ? 128 : 2), b_at + k * (b_wide ? 128 : 2));
        if (k >= 2) warpgroup_commit();
    }
    if (mistake == Mistake::register_written) c[5] = 1;
    if (mistake == Mistake::overwritten && threadIdx.x == 0) tiles[800] = {1, 1, 1, 1};
    if (mistake == Mistake::no_wait) return;
    warpgroup_wait<1>();
    if (threadIdx.x % 32 == 0) d[64 * 64 + threadIdx.x / 32] = c[0];
    warpgroup_wait<0>();
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    for (int i = 0; i < 32; i++) d[(row + i / 2 % 2 * 8) * 64 + column + i / 4 * 8 + i % 2] = c[i];
}
template <bool a_wide, bool b_wide> void test_wgmma(const char* what) {
    std::mt19937 random(2);
    std::vector<__nv_bfloat16> a(64 * 64), b(64 * 64);
    for (auto* matrix : {&a, &b})
        for (__nv_bfloat16& x : *matrix) x = float(int(random() % 64) - 32) / 8;
    Device<__nv_bfloat16> da(a), db(b);
    Device<float> d(64 * 64 + 4);
    multiply_warpgroup<a_wide, b_wide, Mistake::none><<<1, 128, 16384>>>(d.data, da.data, db.data);
    const std::vector<float> got = d.get();
    bool right = true;
    for (int m = 0; m < 64; m++)
        for (int n = 0; n < 64; n++) {
            double sum = 0; // exact in fp32
            for (int k = 0; k < 64; k++)
                sum += double(float(a[a_wide ? k * 64 + m : m * 64 + k])) *
                       float(b[b_wide ? k * 64 + n : n * 64 + k]);
            right = right && got[m * 64 + n] == sum;
        }
    check(right, what);
#ifdef MOEX_EMU
    for (int warp = 0; warp < 4; warp++)
        check(std::isnan(got[64 * 64 + warp]), "sums are not there before the last wait");
#endif
}

// Two warps produce, two consume, through named barriers 1 (full) and 2 (empty) of all 128 threads.
__global__ void produce_and_consume(int* out, int rounds) {
    __shared__ int buffer[64];
    const int i = threadIdx.x;
    int sum = 0;
    for (int r = 0; r < rounds; r++) {
        if (i < 64) {
            buffer[i] = r * 64 + i;
            asm volatile("bar.sync 1, 128;" ::: "memory");
            asm volatile("bar.sync %0, %1;" ::"r"(2), "n"(128) : "memory");
        } else {
            asm volatile("bar.sync 1, 128;" ::: "memory");
            sum += buffer[127 - i];
            asm volatile("bar.sync 2, 128;" ::: "memory");
        }
    }
    if (i < 64)
        asm volatile("bar.sync 3, 64;" ::: "memory"); // half of the block
    else
        out[i - 64] = sum;
}
__global__ void functions(float* out, unsigned* packed) {
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out[0]) : "f"(3.f));
    asm("ex2.approx.f32 %0, %1;" : "=f"(out[1]) : "f"(-1.5f));
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out[2]) : "f"(-140.f));
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(*packed) : "f"(1.f), "f"(-2.f));
    out[3] = __expf(1), out[4] = __fdividef(1, 4), out[5] = rsqrtf(16), out[6] = __saturatef(3),
    out[7] = erff(0.5f);
    out[8] = exp2f(-2), out[9] = fmaxf(1, 2), out[10] = __logf(1), out[11] = tanhf(0.5f);
}
static void test_other_ptx() {
    Device<int> out(64);
    produce_and_consume<<<2, 128>>>(out.data, 10);
    check(out.get()[0] == 45 * 64 + 10 * 63 && out.get()[63] == 45 * 64);
    Device<float> f(12);
    Device<unsigned> packed(1);
    functions<<<1, 1>>>(f.data, packed.data);
    const std::vector<float> v = f.get();
    const float wanted[] = {8, std::exp2(-1.5f), 0, std::exp(1.f), 0.25f, 0.25f, 1, std::erf(0.5f), 0.25f, 2,
                            0, std::tanh(0.5f)};
    for (int i = 0; i < 12; i++) check_near(v[i], wanted[i], 1e-6 + 1e-6 * std::fabs(wanted[i]));
    check(packed.get()[0] == 0x3f80c000);
}

// ---- bf16 -----------------------------------------------------------------------------------------------

__global__ void round_to_bf16(unsigned short* out, const float* in, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        out[i] = __bfloat16_as_ushort(__float2bfloat16_rn(in[i]));
}
__global__ void bf16_arithmetic(float* out) {
    __nv_bfloat16 a = __float2bfloat16(1.5f), b = __float2bfloat16(-0.25f);
    const __nv_bfloat162 pair = __floats2bfloat162_rn(3.f, 4.f);
    const float2 both = __bfloat1622float2(pair + __halves2bfloat162(a, b));
    out[0] = __bfloat162float(a + b), out[1] = __bfloat162float(a * b), out[2] = __bfloat162float(a / b);
    out[3] = both.x, out[4] = both.y, out[5] = a > b, out[6] = __low2float(pair), out[7] = __high2float(pair);
    a += b;
    out[8] = __bfloat162float(a), out[9] = __bfloat162float(__hmax(a, b)), out[10] = __bfloat162float(-b);
    out[11] = __bfloat162float(__ushort_as_bfloat16(0x4049)), out[12] = sizeof(__nv_bfloat162);
    out[13] = __bfloat162float(__ldg(&pair).x);
}
static void test_bf16() {
    // Independently: of the two neighbours with 8 significant bits the nearer, the even one of equally near
    // ones.
    std::mt19937 random(3);
    std::vector<float> in;
    for (int i = 0; i < 200000; i++) {
        const unsigned r = i < 100000 ? random() : (random() & 0xffff8000u); // many halfway cases
        in.push_back(float());
        memcpy(&in.back(), &r, 4);
    }
    for (float x : {0.f, -0.f, INFINITY, -INFINITY, 3.3895314e38f, 3.4e38f, 1e-45f, 1e-40f}) in.push_back(x);
    Device<float> din(in);
    Device<unsigned short> dout(in.size());
    round_to_bf16<<<1, 256>>>(dout.data, din.data, int(in.size()));
    const std::vector<unsigned short> out = dout.get();
    const auto value = [](unsigned bits) {
        const unsigned wide = bits << 16;
        float f;
        memcpy(&f, &wide, 4);
        return double(f);
    };
    size_t wrong = 0;
    for (size_t i = 0; i < in.size(); i++) {
        const double x = in[i];
        if (std::isnan(x)) {
            wrong += out[i] != 0x7fff;
            continue;
        }
        unsigned bits;
        memcpy(&bits, &in[i], 4);
        const unsigned below = bits >> 16, above = below + 1; // towards zero, away from it
        const bool exact = (bits & 0xffff) == 0;
        // beyond the largest finite number the next one would be 2^128
        const double high = (above & 0x7fff) == 0x7f80 ? std::copysign(std::ldexp(1, 128), x) : value(above);
        const double down = exact ? 0 : std::fabs(x - value(below)), up = exact ? 1 : std::fabs(high - x);
        const unsigned wanted = down < up || (down == up && below % 2 == 0) ? below : above;
        wrong += out[i] != wanted;
    }
    check(wrong == 0, "%zu of %zu roundings are wrong", wrong, in.size());
    Device<float> r(14);
    bf16_arithmetic<<<1, 1>>>(r.data);
    const std::vector<float> wanted = {1.25f, -0.375f, -6,    4.5f,  3.75f,     1, 3,
                                       4,     1.25f,   1.25f, 0.25f, 3.140625f, 4, 3};
    check(r.get() == wanted);
}

// ---- cublasLt -------------------------------------------------------------------------------------------

struct Problem { // D (m,n) = epilogue(alpha op(A) op(B) + beta C), all column-major
    int m, n, k;
    bool transa, transb;
    cudaDataType in, out;
    cublasLtEpilogue_t epilogue;
    float alpha, beta;
    int64_t pad; // what leading dimensions have beyond the rows
};
static float as_bf16(float x) { return __bfloat162float(__float2bfloat16(x)); }

// A vector as fp32 or bf16 in device memory, and back.
struct Typed {
    cudaDataType type;
    Device<float> wide;
    Device<unsigned short> narrow;
    Typed(const std::vector<float>& v, cudaDataType type)
        : type(type), wide(v), narrow([&] {
              std::vector<unsigned short> bits;
              for (float x : v) bits.push_back(bf16_bits(x));
              return bits;
          }()) {}
    void* data() { return type == CUDA_R_16BF ? (void*)narrow.data : (void*)wide.data; }
    std::vector<float> get() const {
        if (type == CUDA_R_32F) return wide.get();
        std::vector<float> v;
        for (unsigned short x : narrow.get()) v.push_back(__bfloat162float(__ushort_as_bfloat16(x)));
        return v;
    }
};
static double gelu(double x) {
    return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

static cublasLtHandle_t lt;
struct Descriptors {
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulPreference_t preference;
    Descriptors(const Problem& p, int64_t lda, int64_t ldb, int64_t ldd) {
        cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
        set(CUBLASLT_MATMUL_DESC_TRANSA, p.transa ? CUBLAS_OP_T : CUBLAS_OP_N);
        set(CUBLASLT_MATMUL_DESC_TRANSB, p.transb ? CUBLAS_OP_T : CUBLAS_OP_N);
        set(CUBLASLT_MATMUL_DESC_EPILOGUE, p.epilogue);
        cublasLtMatrixLayoutCreate(&a, p.in, uint64_t(p.transa ? p.k : p.m), uint64_t(p.transa ? p.m : p.k),
                                   lda);
        cublasLtMatrixLayoutCreate(&b, p.in, uint64_t(p.transb ? p.n : p.k), uint64_t(p.transb ? p.k : p.n),
                                   ldb);
        cublasLtMatrixLayoutCreate(&d, p.out, uint64_t(p.m), uint64_t(p.n), ldd);
        cublasLtMatmulPreferenceCreate(&preference);
    }
    Descriptors(const Descriptors&) = delete;
    ~Descriptors() {
        cublasLtMatmulDescDestroy(operation), cublasLtMatmulPreferenceDestroy(preference);
        for (cublasLtMatrixLayout_t l : {a, b, d}) cublasLtMatrixLayoutDestroy(l);
    }
    template <class T> cublasStatus_t set(cublasLtMatmulDescAttributes_t attribute, T value) {
        return cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof value);
    }
    cublasStatus_t heuristic(cublasLtMatmulHeuristicResult_t& result, int& found) {
        return cublasLtMatmulAlgoGetHeuristic(lt, operation, a, b, d, d, preference, 1, &result, &found);
    }
};

static void test_problem(const Problem& p) {
    const bool relu = p.epilogue & 2, bias = p.epilogue & 4, drelu = (p.epilogue & 136) == 136,
               aux = p.epilogue & 128;
    const bool gelu_forward = (p.epilogue & 32) != 0, dgelu = (p.epilogue & 192) == 192,
               bgrad = (p.epilogue & 16) != 0;
    const bool bgrada = p.epilogue == CUBLASLT_EPILOGUE_BGRADA,
               bgradb = p.epilogue == CUBLASLT_EPILOGUE_BGRADB;
    const bool bits = aux && (relu || drelu);
    std::mt19937 random(unsigned(p.m * 7 + p.n * 3 + p.k + int(p.epilogue)));
    std::normal_distribution<float> normal;
    const auto numbers = [&](size_t n, bool narrow) {
        std::vector<float> v(n);
        for (float& x : v) x = narrow ? as_bf16(normal(random)) : normal(random);
        return v;
    };
    const bool narrow_in = p.in == CUDA_R_16BF, narrow_out = p.out == CUDA_R_16BF;
    const int64_t lda = (p.transa ? p.k : p.m) + p.pad, ldb = (p.transb ? p.n : p.k) + p.pad,
                  ldd = p.m + p.pad;
    const int64_t ld_aux =
        bits ? (p.m + 127) / 128 * 128 + (p.pad ? 128 : 0) : (p.m + 7) / 8 * 8 + (p.pad ? 8 : 0);
    const std::vector<float> A = numbers(size_t(lda * (p.transa ? p.m : p.k)), narrow_in);
    const std::vector<float> B = numbers(size_t(ldb * (p.transb ? p.k : p.n)), narrow_in);
    const std::vector<float> C = numbers(size_t(ldd * p.n), narrow_out);
    const std::vector<float> vector = numbers(size_t(std::max(p.m, p.n)), narrow_out);
    const std::vector<float> kept = numbers(size_t(ld_aux * p.n), narrow_out);
    std::vector<unsigned char> mask(size_t(ld_aux * p.n / 8));
    for (unsigned char& m : mask) m = (unsigned char)random();

    Typed da(A, p.in), db(B, p.in), dd(C, p.out), dv(vector, p.out), dk(kept, p.out);
    Device<unsigned char> dm(mask);
    Descriptors x(p, lda, ldb, ldd);
    if (bias || bgrad || bgrada || bgradb) x.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, dv.data());
    if (bias) x.set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, p.out);
    if (aux) {
        x.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, bits ? (void*)dm.data : dk.data());
        x.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, ld_aux);
    }
    const std::string name =
        strf("epilogue %d, (%d,%d,%d) %c%c %s->%s", int(p.epilogue), p.m, p.n, p.k, p.transa ? 'T' : 'N',
             p.transb ? 'T' : 'N', narrow_in ? "bf16" : "fp32", narrow_out ? "bf16" : "fp32");
    cublasLtMatmulHeuristicResult_t found{};
    int n_found = 0;
    const size_t space = 1 << 20;
    cublasLtMatmulPreferenceSetAttribute(x.preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &space,
                                         sizeof space);
    const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    cublasLtMatmulPreferenceSetAttribute(x.preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction,
                                         sizeof reduction);
    const cublasStatus_t status = x.heuristic(found, n_found);
    if (!check(status == CUBLAS_STATUS_SUCCESS && n_found == 1, "%s", name.c_str())) return;
    Device<char> workspace(space);
    const cublasStatus_t done =
        cublasLtMatmul(lt, x.operation, &p.alpha, da.data(), x.a, db.data(), x.b, &p.beta, dd.data(), x.d,
                       dd.data(), x.d, &found.algo, workspace.data, space, 0);
    if (!check(done == CUBLAS_STATUS_SUCCESS, "%s", name.c_str())) return;
    cudaDeviceSynchronize();

    const std::vector<float> D = dd.get(), V = dv.get(), K = dk.get();
    const std::vector<unsigned char> M = dm.get();
    const auto a = [&](int i, int l) { return double(p.transa ? A[l + i * lda] : A[i + l * lda]); };
    const auto b = [&](int l, int j) { return double(p.transb ? B[j + l * ldb] : B[l + j * ldb]); };
    double worst = 0, worst_sum = 0; // in units of the tolerance
    const double eps = narrow_out ? 1.0 / 256 : 1e-6;
    std::vector<double> sums(size_t(p.m));
    bool right = true;
    for (int j = 0; j < p.n; j++) {
        for (int i = 0; i < p.m; i++) {
            double s = 0, size = 0;
            for (int l = 0; l < p.k; l++) s += a(i, l) * b(l, j), size += std::fabs(a(i, l) * b(l, j));
            double y = p.alpha * s + (p.beta != 0 ? double(p.beta) * C[size_t(i + j * ldd)] : 0);
            if (bias) y += vector[size_t(i)];
            const size_t at = size_t(i + j * ld_aux);
            if (relu && aux && std::fabs(y) > 1e-4) right = right && (M[at / 8] >> at % 8 & 1) == (y > 0);
            if (gelu_forward && aux)
                worst = std::max(worst, std::fabs(K[at] - y) / (eps * (std::fabs(y) + 0.3 * size + 0.1)));
            if (relu) y = std::max(y, 0.0);
            if (gelu_forward) y = gelu(y);
            if (drelu) y = mask[at / 8] >> at % 8 & 1 ? y : 0;
            if (dgelu) { // by differences: independent of the formula
                const double z = kept[at], h = 1e-5;
                y *= (gelu(z + h) - gelu(z - h)) / (2 * h);
            }
            sums[size_t(i)] += y;
            const double error =
                std::fabs(D[size_t(i + j * ldd)] - y) / (eps * (std::fabs(y) + 0.3 * size + 0.1));
            worst = std::max(worst, std::isnan(error) ? 1e9 : error);
        }
        for (int64_t i = p.m; i < ldd; i++) // what lies between columns is not touched
            right = right && D[size_t(i + j * ldd)] == C[size_t(i + j * ldd)];
    }
    if (bgrad)
        for (int i = 0; i < p.m; i++)
            worst_sum = std::max(worst_sum, std::fabs(V[size_t(i)] - sums[size_t(i)]) /
                                                (eps * (std::fabs(sums[size_t(i)]) + p.n)));
    for (int i = 0; (bgrada && i < p.m) || (bgradb && i < p.n); i++) {
        double s = 0;
        for (int l = 0; l < p.k; l++) s += bgrada ? a(i, l) : b(l, i);
        worst_sum = std::max(worst_sum, std::fabs(V[size_t(i)] - s) / (eps * (std::fabs(s) + p.k)));
    }
    check(worst < 2 && worst_sum < 1 && right, "%s: error %.2f, of the vector %.2f, mask and gaps %s",
          name.c_str(), worst, worst_sum, right ? "right" : "wrong");
}

#ifdef MOEX_EMU
// An algorithm serves the sizes it was asked for, and another number of rows; it can be told to refuse.
static void test_algorithms() {
    const cudaDataType h = CUDA_R_16BF, f = CUDA_R_32F;
    Device<unsigned short> memory(300 * 300);
    Device<float> sums(300 * 300);
    cublasLtMatmulHeuristicResult_t r{};
    int n = 0;
    const auto ask = [&](const Problem& p) {
        Descriptors x(p, p.transa ? p.k : p.m, p.transb ? p.n : p.k, p.m);
        return x.heuristic(r, n);
    };
    // the product p by the algorithm in r
    const auto run = [&](const Problem& p) {
        Descriptors x(p, p.transa ? p.k : p.m, p.transb ? p.n : p.k, p.m);
        x.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, memory.data);
        const float one = 1, zero = 0;
        void* const out = p.out == f ? (void*)sums.data : memory.data;
        return cublasLtMatmul(lt, x.operation, &one, memory.data, x.a, memory.data, x.b, &zero, out, x.d, out,
                              x.d, &r.algo, nullptr, 0, 0);
    };
    const auto right = CUBLAS_STATUS_SUCCESS, refused = CUBLAS_STATUS_NOT_SUPPORTED;
    const cublasLtEpilogue_t plain = CUBLASLT_EPILOGUE_DEFAULT;
    const Problem forward{64, 32, 16, true, false, h, h, plain, 1, 0, 0};
    const auto changed = [](Problem p, int m, int n, int k) { return p.m = m, p.n = n, p.k = k, p; };
    check(ask(forward) == right && run(forward) == right && run(forward) == right);
    check(run(changed(forward, 64, 31, 16)) == right, "another number of rows");
    check(run(changed(forward, 72, 32, 16)) == refused, "another width");
    check(run(changed(forward, 64, 32, 24)) == refused, "another depth");
    Problem other = forward;
    other.transa = false;
    check(run(other) == refused, "not transposed");
    other = forward, other.out = f;
    check(run(other) == refused, "another type");
    const Problem backward{64, 32, 16, false, true, h, f, plain, 1, 0, 0}; // sums over the rows
    check(ask(backward) == right && run(backward) == right);
    check(run(changed(backward, 64, 32, 9)) == right, "another number of rows");
    check(run(changed(backward, 64, 40, 16)) == refused, "another width");

    setenv("EMU_CUBLASLT_REFUSE", "2", 1);
    check(ask(forward) == right && run(forward) == right, "the first use is none of a reuse");
    std::string uses;
    for (int i = 0; i < 6; i++) uses += run(forward) == right ? '1' : '0';
    check(uses == "101010", "%s", uses.c_str());
    setenv("EMU_CUBLASLT_REFUSE", "1", 1);
    check(ask(forward) == right && run(changed(forward, 64, 31, 16)) == refused, "of another size");
    check(ask(forward) == right && run(forward) == right && run(forward) == refused);
    unsetenv("EMU_CUBLASLT_REFUSE");

    // epilogues that are missing for a type, for few rows, or at all
    const auto knows = [&](const char* list, cublasLtEpilogue_t e, cudaDataType type, int rows) {
        setenv("EMU_CUBLASLT_MISSING", list, 1);
        Problem p = changed(forward, 64, rows, 16);
        p.epilogue = e, p.in = p.out = type;
        const bool found = ask(p) == right;
        unsetenv("EMU_CUBLASLT_MISSING");
        return found;
    };
    const cublasLtEpilogue_t bias = CUBLASLT_EPILOGUE_BIAS, relu = CUBLASLT_EPILOGUE_RELU_BIAS;
    check(knows("relu_bias", bias, h, 4) && !knows("relu_bias", relu, h, 4) &&
          !knows("relu_bias", relu, f, 4));
    check(knows("gelu,relu_bias/bf16", relu, f, 4) && !knows("gelu,relu_bias/bf16", relu, h, 4));
    check(knows("relu_bias/bf16/3", relu, h, 4) && !knows("relu_bias/bf16/3", relu, h, 3));
    check_stops(
        __LINE__, [&] { knows("swish", relu, h, 4); }, "EMU_CUBLASLT_MISSING has 'swish'");

    // Sums of parts of k in bf16, unless that is ruled out: 1, then 2^-9 in each of many parts, is lost.
    const int k = 300 * 256;
    const std::vector<unsigned short> ones(k, bf16_bits(1));
    std::vector<unsigned short> small(k, 0);
    small[0] = bf16_bits(1);
    for (int i = 256; i < k; i += 256) small[size_t(i)] = bf16_bits(0x1p-9f);
    const Device<unsigned short> a(ones), b(small), d(1);
    for (const uint32_t mask :
         {uint32_t(CUBLASLT_REDUCTION_SCHEME_MASK), uint32_t(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)}) {
        Descriptors x({1, 1, k, true, false, h, h, plain, 1, 0, 0}, k, k, 1);
        cublasLtMatmulPreferenceSetAttribute(x.preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &mask,
                                             sizeof mask);
        uint32_t scheme = 0;
        check(x.heuristic(r, n) == right &&
              cublasLtMatmulAlgoConfigGetAttribute(&r.algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme,
                                                   sizeof scheme, nullptr) == right);
        const float one = 1, zero = 0;
        check(cublasLtMatmul(lt, x.operation, &one, a.data, x.a, b.data, x.b, &zero, d.data, x.d, d.data, x.d,
                             &r.algo, nullptr, 0, 0) == right);
        const bool narrow = mask == CUBLASLT_REDUCTION_SCHEME_MASK;
        const float sum = __bfloat162float(__ushort_as_bfloat16(d.get()[0]));
        check(scheme == (narrow ? CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE
                                : CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE) &&
                  sum == (narrow ? 1 : 1.5859375f),
              "scheme %u, sum %g", scheme, double(sum));
    }
}
#endif

static void test_cublaslt() {
    check(cublasLtCreate(&lt) == CUBLAS_STATUS_SUCCESS);
    const cudaDataType f = CUDA_R_32F, h = CUDA_R_16BF;
    const cublasLtEpilogue_t all[] = {
        CUBLASLT_EPILOGUE_DEFAULT,       CUBLASLT_EPILOGUE_BIAS,        CUBLASLT_EPILOGUE_RELU,
        CUBLASLT_EPILOGUE_RELU_BIAS,     CUBLASLT_EPILOGUE_RELU_AUX,    CUBLASLT_EPILOGUE_RELU_AUX_BIAS,
        CUBLASLT_EPILOGUE_GELU,          CUBLASLT_EPILOGUE_GELU_BIAS,   CUBLASLT_EPILOGUE_GELU_AUX,
        CUBLASLT_EPILOGUE_GELU_AUX_BIAS, CUBLASLT_EPILOGUE_DRELU,       CUBLASLT_EPILOGUE_DRELU_BGRAD,
        CUBLASLT_EPILOGUE_DGELU,         CUBLASLT_EPILOGUE_DGELU_BGRAD, CUBLASLT_EPILOGUE_BGRADA,
        CUBLASLT_EPILOGUE_BGRADB};
    for (const auto& [in, out] : {std::pair(f, f), std::pair(h, h), std::pair(h, f)})
        for (int trans = 0; trans < 4; trans++) {
            const bool ta = trans & 1, tb = trans & 2;
            for (cublasLtEpilogue_t e : all)
#ifdef MOEX_EMU // which of them a card has, it says itself
                test_problem({128 + 8, 104, 40, ta, tb, in, out, e, 1, 0, 0});
#else
                if (e == CUBLASLT_EPILOGUE_DEFAULT || e == CUBLASLT_EPILOGUE_BIAS)
                    test_problem({128 + 8, 104, 40, ta, tb, in, out, e, 1, 0, 0});
#endif
            test_problem({200, 7, 300, ta, tb, in, out, CUBLASLT_EPILOGUE_DEFAULT, 0.5f, 1,
                          8}); // accumulation, strides
            test_problem({5, 1, 3, ta, tb, in, out, CUBLASLT_EPILOGUE_BIAS, 1, 0, 0});
        }
#ifdef MOEX_EMU
    test_problem({200, 97, 300, true, false, h, h, CUBLASLT_EPILOGUE_RELU_AUX_BIAS, 1, 0, 16});
    test_problem({200, 197, 30, true, true, h, h, CUBLASLT_EPILOGUE_DRELU_BGRAD, 1, 0, 16});
    test_problem({33, 129, 30, true, true, f, f, CUBLASLT_EPILOGUE_DGELU_BGRAD, 1, 0, 16});

    // what the documentation rules out
    const Problem p{64, 32, 16, false, false, h, h, CUBLASLT_EPILOGUE_RELU_AUX_BIAS, 1, 0, 0};
    Descriptors x(p, 64, 16, 64);
    Device<unsigned short> a(64 * 16), b(16 * 32), d(64 * 32), bias(64), aux(128 * 32 / 16);
    cublasLtMatmulHeuristicResult_t r{};
    int n = -1;
    const auto refused = [&](cublasStatus_t expected) { return x.heuristic(r, n) == expected && n == 0; };
    check(refused(CUBLAS_STATUS_NOT_SUPPORTED), "no leading dimension for the mask");
    check(x.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, int64_t(64)) == CUBLAS_STATUS_SUCCESS);
    check(refused(CUBLAS_STATUS_NOT_SUPPORTED), "the mask's leading dimension must be a multiple of 128");
    x.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, int64_t(128));
    check(x.heuristic(r, n) == CUBLAS_STATUS_SUCCESS && n == 1);
    x.set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_32F);
    check(refused(CUBLAS_STATUS_NOT_SUPPORTED), "the bias has the type of D");
    x.set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_16BF);
    check(x.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, 128) == CUBLAS_STATUS_INVALID_VALUE,
          "an int where int64_t is due");
    const float one = 1, zero = 0;
    const auto run = [&](void* left, void* out, const cublasLtMatmulAlgo_t* algo) {
        return cublasLtMatmul(lt, x.operation, &one, left, x.a, b.data, x.b, &zero, out, x.d, out, x.d, algo,
                              nullptr, 0, 0);
    };
    check(x.heuristic(r, n) == CUBLAS_STATUS_SUCCESS);
    check(run(a.data, d.data, &r.algo) == CUBLAS_STATUS_INVALID_VALUE, "no bias, no mask");
    x.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias.data);
    x.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux.data + 1);
    check(run(a.data, d.data, &r.algo) == CUBLAS_STATUS_NOT_SUPPORTED, "an unaligned mask");
    x.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux.data);
    check(run(a.data, d.data, &r.algo) == CUBLAS_STATUS_SUCCESS);
    check(run(a.data + 1, d.data, &r.algo) == CUBLAS_STATUS_NOT_SUPPORTED,
          "the algorithm was chosen for aligned matrices");
    const uint64_t rows = 65;
    cublasLtMatrixLayoutSetAttribute(x.d, CUBLASLT_MATRIX_LAYOUT_ROWS, &rows, sizeof rows);
    check(refused(CUBLAS_STATUS_INVALID_VALUE), "shapes that do not fit");
    const uint64_t none = 0;
    cublasLtMatrixLayoutSetAttribute(x.d, CUBLASLT_MATRIX_LAYOUT_ROWS, &none, sizeof none);
    check(refused(CUBLAS_STATUS_INVALID_VALUE), "no rows");
    const uint64_t back = 64;
    cublasLtMatrixLayoutSetAttribute(x.d, CUBLASLT_MATRIX_LAYOUT_ROWS, &back, sizeof back);
    const int64_t narrow = 63;
    cublasLtMatrixLayoutSetAttribute(x.d, CUBLASLT_MATRIX_LAYOUT_LD, &narrow, sizeof narrow);
    check(refused(CUBLAS_STATUS_INVALID_VALUE), "a leading dimension below the rows");
    const int64_t wide = 64;
    cublasLtMatrixLayoutSetAttribute(x.d, CUBLASLT_MATRIX_LAYOUT_LD, &wide, sizeof wide);
    setenv("EMU_CUBLASLT_EPILOGUES", "0", 1);
    check(refused(CUBLAS_STATUS_NOT_SUPPORTED));
    x.set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_DEFAULT);
    check(x.heuristic(r, n) == CUBLAS_STATUS_SUCCESS && n == 1);
    x.set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    check(refused(CUBLAS_STATUS_NOT_SUPPORTED));
    setenv("EMU_CUBLASLT_EPILOGUES", "bias", 1);
    check(x.heuristic(r, n) == CUBLAS_STATUS_SUCCESS && n == 1);
    x.set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_RELU_BIAS);
    check(refused(CUBLAS_STATUS_NOT_SUPPORTED));
    unsetenv("EMU_CUBLASLT_EPILOGUES");
    test_algorithms();
#endif
    cublasLtDestroy(lt);
}

// ---- strictness: what hardware leaves undefined ---------------------------------------------------------
#ifdef MOEX_EMU

__global__ void barrier_after_exit(int n) {
    if (int(threadIdx.x) >= n) return;
    __syncthreads();
}
__global__ void barrier_in_branches() {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
}
__global__ void barrier_and_shuffle(int* out) {
    if (threadIdx.x >= 32 && threadIdx.x != 40) out[threadIdx.x] = __shfl_sync(0xffffffff, 1, 0);
    __syncthreads();
}
__global__ void shuffle_after_exit(float* out) {
    if (threadIdx.x == 7) return;
    out[threadIdx.x] = __shfl_down_sync(0xffffffff, 1.f, 1);
}
template <unsigned mask> __global__ void shuffle_mask(float* out, int source) {
    if (mask >> threadIdx.x % 32 & 1 || threadIdx.x == 3) out[threadIdx.x] = __shfl_sync(mask, 1.f, source);
}
__global__ void different_operations(int* out) {
    if (threadIdx.x % 2)
        out[threadIdx.x] = int(__ballot_sync(0xffffffff, 1));
    else
        out[threadIdx.x] = __shfl_sync(0xffffffff, 1, 0);
}
__global__ void named_barrier(int id, int count) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(count)); }
__global__ void unknown_ptx(int* out) {
    asm volatile("vote.sync.ballot.b32 %0, 1, 0xffffffff;" : "=r"(*out));
}
__global__ void wrong_operands(float* out) {
    asm volatile("ex2.approx.f32 %0, {%1};" : "=f"(*out) : "f"(1.f));
}
__global__ void matrix_address(unsigned offset) {
    __shared__ alignas(128) unsigned char tile[512];
    unsigned r;
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(r)
                 : "r"(unsigned(__cvta_generic_to_shared(tile)) + (threadIdx.x == 5 ? offset : 0)));
}
__global__ void copy_address(const char* from, unsigned offset) {
    __shared__ alignas(128) unsigned char tile[64];
    asm volatile(
        "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(unsigned(__cvta_generic_to_shared(tile)) + offset),
        "l"(from));
}
__global__ void not_shared(int* p) { *p = int(__cvta_generic_to_shared(p)); }
__global__ void unaligned_load(const float* p, float4* out) { *out = __ldg((const float4*)(p + 1)); }
__global__ void too_much_shared(int* out) {
    __shared__ int a[8000], b[5000];
    a[0] = b[0] = 1;
    *out = a[0];
}
__global__ void static_and_dynamic(int* out) {
    extern __shared__ int dynamic[];
    __shared__ int fixed[256];
    dynamic[0] = 1;
    fixed[0] = 1;
    *out = dynamic[0];
}
__global__ void bad_pointer(int* p) {
    if (threadIdx.x == 9) *p = 1;
}
__global__ void beyond_shared(int* out, int where) {
    extern __shared__ int dynamic[];
    __shared__ int fixed[8];
    int* const p = where < 0 ? dynamic - where : fixed + where;
    *p = 1;
    *out = *p;
}
__global__ void endless(int depth, volatile int* out) {
    volatile char frame[4096];
    frame[0] = char(depth);
    out[0] = frame[0];
    if (depth >= 0) endless(depth + 1, out);
    out[0] = frame[0];
}
__global__ void trap() { __trap(); }

static void test_strictness() {
    Device<int> i(64);
    Device<float> f(64);
    Device<float4> f4(1);
    check_stops(
        __LINE__, [] { barrier_after_exit<<<2, 64>>>(50); }, "kernel barrier_after_exit, block (",
        "), thread (0,0,0): ", "__syncthreads", "50 of 64 threads", "thread 50 has exited");
    check_stops(
        __LINE__, [] { barrier_in_branches<<<1, 64>>>(); },
        "kernel barrier_in_branches, block (0,0,0), thread (32,0,0)", "__syncthreads (line ",
        "thread 0 waits at __syncthreads (line ");
    check_stops(
        __LINE__, [&] { barrier_and_shuffle<<<1, 64>>>(i.data); }, "kernel barrier_and_shuffle",
        "__syncthreads", "33 of 64", "thread 32 waits at __shfl_sync (line ");
    check_stops(
        __LINE__, [&] { shuffle_after_exit<<<1, 64>>>(f.data); },
        "kernel shuffle_after_exit, block (0,0,0), thread (0,0,0)", "__shfl_down_sync", "lane 7 has exited");
    check_stops(
        __LINE__, [&] { shuffle_mask<0xffffffff><<<1, 20>>>(f.data, 0); }, "kernel shuffle_mask<0xffffffff>",
        "lane 20 does not exist", "20 threads");
    check_stops(
        __LINE__, [&] { shuffle_mask<0xf0><<<1, 32>>>(f.data, 4); }, "thread (3,0,0)", "mask 0x000000f0",
        "own lane 3");
    check_stops(
        __LINE__, [&] { shuffle_mask<0xff><<<1, 32>>>(f.data, 9); }, "thread (0,0,0)", "reads lane 9",
        "0x000000ff");
    check_stops(
        __LINE__, [&] { different_operations<<<1, 32>>>(i.data); }, "__ballot_sync", "__shfl_sync");
    check_stops(
        __LINE__, [] { named_barrier<<<1, 64>>>(16, 64); }, "bar.sync names barrier 16");
    check_stops(
        __LINE__, [] { named_barrier<<<1, 64>>>(1, 33); }, "bar.sync for 33 threads", "multiple of 32");
    check_stops(
        __LINE__, [] { named_barrier<<<1, 64>>>(1, 96); }, "bar.sync for 96 threads in a block of 64");
    check_stops(
        __LINE__, [&] { unknown_ptx<<<1, 32>>>(i.data); }, "kernel unknown_ptx", "does not know",
        "'vote.sync.ballot.b32'");
    check_stops(
        __LINE__, [&] { wrong_operands<<<1, 32>>>(f.data); }, "ex2.approx.f32", "f,{f}", "expected f,f");
    check_stops(
        __LINE__, [] { matrix_address<<<1, 32>>>(8); }, "thread (5,0,0)", "ldmatrix", "not a multiple of 16");
    check_stops(
        __LINE__, [] { matrix_address<<<1, 32>>>(512); }, "thread (5,0,0)", "ldmatrix", "beyond the block's");
    check_stops(
        __LINE__, [&] { copy_address<<<1, 1>>>((char*)f.data + 4, 0); }, "cp.async.cg",
        "not a multiple of 16");
    check_stops(
        __LINE__, [&] { copy_address<<<1, 1>>>((char*)f.data, 1024); }, "cp.async.cg", "beyond");
    check_stops(
        __LINE__, [&] { not_shared<<<1, 1>>>(i.data); }, "no address of shared memory");
    check_stops(
        __LINE__, [&] { unaligned_load<<<1, 1>>>(f.data, f4.data); }, "__ldg of 16 bytes", "multiple of 16");
    check_stops(
        __LINE__, [&] { too_much_shared<<<1, 1>>>(i.data); }, "52000 bytes of static shared memory");
    check_stops(
        __LINE__, [&] { static_and_dynamic<<<1, 1, 48 << 10>>>(i.data); }, "50176 bytes of shared memory",
        "limit is 49152");
    check_stops(
        __LINE__, [] { trap<<<1, 1>>>(); }, "kernel trap", "__trap");
    Device<__nv_bfloat16> zeros(std::vector<__nv_bfloat16>(64 * 64));
    Device<float> product(64 * 64 + 4);
    const auto stops = [&](int line, auto mistake, const char* why) {
        check_stops(
            line,
            [&] {
                multiply_warpgroup<false, true, mistake()>
                    <<<1, 128, 16384>>>(product.data, zeros.data, zeros.data);
            },
            "kernel multiply_warpgroup", "wgmma (line ", why);
    };
    using M = Mistake;
    stops(__LINE__, std::integral_constant<M, M::no_fence>(), "no wgmma.fence");
    stops(__LINE__, std::integral_constant<M, M::no_proxy_fence>(), "without fence.proxy.async since");
    stops(__LINE__, std::integral_constant<M, M::overwritten>(), "an operand was written before");
    stops(__LINE__, std::integral_constant<M, M::register_written>(), "a register of its sums was written");
    stops(__LINE__, std::integral_constant<M, M::no_wait>(), "the block has ended");
    stops(__LINE__, std::integral_constant<M, M::missing_warp>(), "not by warp 3");
    setenv("EMU_SM", "80", 1);
    stops(__LINE__, std::integral_constant<M, M::none>(), "the device has none");
    unsetenv("EMU_SM");
    setenv("EMU_ORDER", "sideways", 1);
    check_stops(
        __LINE__, [] { trap<<<1, 1>>>(); }, "EMU_ORDER is 'sideways'");
    unsetenv("EMU_ORDER");
#ifndef EMU_ASAN
    check_stops(
        __LINE__, [] { bad_pointer<<<1, 32>>>((int*)0x1000); },
        "kernel bad_pointer, block (0,0,0), thread (9,0,0): ", "0x1000");
    check_stops(
        __LINE__, [&] { endless<<<1, 1>>>(0, i.data); }, "kernel endless", "stack overflow");
#else
    const auto check_asan = [](int line, const char* thread, const std::function<void()>& f) {
        const Death d = run_child(f);
        check_at(d.status != 0 && d.message.find("AddressSanitizer") != std::string::npos &&
                     d.message.find(thread) != std::string::npos,
                 __FILE__, line, d.message);
    };
    const char* const ninth = "kernel bad_pointer, block (0,0,0), thread (9,0,0)";
    check_asan(__LINE__, ninth, [&] { bad_pointer<<<1, 32>>>(i.data + 64); });
    check_asan(__LINE__, ninth, [] { bad_pointer<<<1, 32>>>((int*)0x1000); });
    const auto shared = [&](int where) {
        return [&i, where] { beyond_shared<<<1, 1, 64>>>(i.data, where); };
    };
    check_asan(__LINE__, "kernel beyond_shared", shared(8));
    check_asan(__LINE__, "kernel beyond_shared", shared(-16));
    check(run_child(shared(7)).status == 0 && run_child(shared(-15)).status == 0);
#endif
}

// A missing barrier shows as a difference between orders; a right kernel gives the same in all.
template <bool barrier> __global__ void neighbours(int* out) {
    __shared__ int x[128];
    x[threadIdx.x] = int(threadIdx.x) * 3 + 1;
    if (barrier) __syncthreads();
    out[blockIdx.x * 128 + threadIdx.x] = x[(threadIdx.x + 127) % 128];
}
// Here the program's order of writes and reads hides the mistake unless lanes are switched at the shuffles.
template <bool barrier> __global__ void rewritten(int* out) {
    __shared__ int x[64];
    int sum = 0;
    for (int r = 0; r < 4; r++) {
        x[threadIdx.x] = r * 64 + int(threadIdx.x);
        __syncthreads();
        sum += __shfl_xor_sync(0xffffffff, x[63 - threadIdx.x], 1);
        if (barrier) __syncthreads();
    }
    out[blockIdx.x * 64 + threadIdx.x] = sum;
}
// Here only a warp that runs ahead of the others by many warp operations shows the mistake.
template <bool barrier> __global__ void lapped(int* out) {
    __shared__ int x[2];
    int sum = 0;
    for (int r = 0; r < 4; r++) {
        if (threadIdx.x % 32 == 0) x[threadIdx.x / 32] = r + 1;
        __syncthreads();
        for (int i = 0; i < 40; i++) sum += __shfl_xor_sync(0xffffffff, i, 1);
        sum += x[1 - threadIdx.x / 32] << 8 * r;
        if (barrier) __syncthreads();
    }
    out[blockIdx.x * 64 + threadIdx.x] = sum;
}
static void test_random_order() {
    Device<int> out(16 * 128);
    const auto run = [&](int seed, const std::function<void()>& f) {
        cudaMemset(out.data, 0xFF, 16 * 128 * sizeof(int));
        if (seed) setenv("EMU_ORDER", strf("random:%d", seed).c_str(), 1);
        f();
        unsetenv("EMU_ORDER");
        return out.get();
    };
    const auto differs = [&](const std::function<void()>& f) {
        const std::vector<int> straight = run(0, f);
        check(straight == run(0, f), "the usual order is always the same");
        int different = 0;
        for (int seed = 1; seed <= 10; seed++) different += straight != run(seed, f);
        return different;
    };
    check(differs([&] { neighbours<true><<<16, 128>>>(out.data); }) == 0);
    check(differs([&] { neighbours<false><<<16, 128>>>(out.data); }) == 10);
    check(differs([&] { rewritten<true><<<16, 64>>>(out.data); }) == 0);
    check(differs([&] { rewritten<false><<<16, 64>>>(out.data); }) > 0);
    check(differs([&] { lapped<true><<<16, 64>>>(out.data); }) == 0);
    check(differs([&] { lapped<false><<<16, 64>>>(out.data); }) == 10);
    // every block and every warp operation under random order
    setenv("EMU_ORDER", "random", 1);
    test_launches(), test_shared(), test_warps(), test_atomics(), test_mma(), test_ldmatrix(),
        test_cp_async(), test_other_ptx();
    unsetenv("EMU_ORDER");
}
#endif

// ---- streams that run late ------------------------------------------------------------------------------

#ifdef MOEX_EMU
__global__ void set(int* x, int value) { x[threadIdx.x] = value; }
__global__ void times_two_plus(int* x, int add) { x[threadIdx.x] = 2 * x[threadIdx.x] + add; }
__global__ void copy_kernel(int* to, const int* from) { to[threadIdx.x] = from[threadIdx.x]; }

// How many of 20 seeds give something else than `expected`.
static int seeds_that_differ(int expected, const std::function<int()>& f) {
    int different = 0;
    for (int seed = 1; seed <= 20; seed++) {
        setenv("EMU_STREAMS", strf("random:%d", seed).c_str(), 1);
        different += f() != expected;
        cudaDeviceSynchronize();
    }
    unsetenv("EMU_STREAMS");
    return different;
}

struct TwoStreams {
    cudaStream_t a, b;
    cudaEvent_t event;
    int* pinned;
    Device<int> x{32}, y{32};
    explicit TwoStreams(unsigned flags = cudaStreamDefault) {
        cudaStreamCreateWithFlags(&a, flags);
        cudaStreamCreateWithFlags(&b, flags);
        cudaEventCreate(&event);
        cudaMallocHost(&pinned, 32 * sizeof(int));
    }
    TwoStreams(const TwoStreams&) = delete;
    ~TwoStreams() {
        cudaDeviceSynchronize();
        cudaStreamDestroy(a);
        cudaStreamDestroy(b);
        cudaEventDestroy(event);
        cudaFreeHost(pinned);
    }
};
constexpr size_t int_row = 32 * sizeof(int);

// A wait that is there gives the same for every seed, one that is missing does not.
static void test_waits() {
    TwoStreams s;
    // between streams
    const auto across = [&](bool waits) {
        set<<<1, 32>>>(s.x.data, 1);
        set<<<1, 32>>>(s.y.data, 1);
        cudaDeviceSynchronize();
        for (int i = 0; i < 5; i++) times_two_plus<<<1, 32, 0, s.a>>>(s.x.data, i);
        cudaEventRecord(s.event, s.a);
        if (waits) cudaStreamWaitEvent(s.b, s.event);
        copy_kernel<<<1, 32, 0, s.b>>>(s.y.data, s.x.data);
        return s.y.get()[7];
    };
    check(across(true) == 58 && across(false) == 58);
    check(seeds_that_differ(58, [&] { return across(true); }) == 0);
    check(seeds_that_differ(58, [&] { return across(false); }) > 3);
    // an event means what it was recorded for before the wait was put, not what comes later
    const auto recorded_again = [&] {
        set<<<1, 32>>>(s.x.data, 1);
        cudaDeviceSynchronize();
        cudaEventRecord(s.event, s.a);
        cudaStreamWaitEvent(s.b, s.event);
        times_two_plus<<<1, 32, 0, s.a>>>(s.x.data, 0);
        cudaEventRecord(s.event, s.a);
        copy_kernel<<<1, 32, 0, s.b>>>(s.y.data, s.x.data);
        return s.y.get()[0];
    };
    check(seeds_that_differ(2, recorded_again) > 3);
    // the host reads what a copy has not yet brought: always 0xFF, even where the number was there before
    const auto read_back = [&](bool waits) {
        set<<<1, 32>>>(s.x.data, 5);
        cudaDeviceSynchronize();
        s.pinned[3] = 5;
        cudaMemcpyAsync(s.pinned, s.x.data, int_row, cudaMemcpyDeviceToHost, s.a);
        cudaEventRecord(s.event, s.a);
        if (waits) cudaEventSynchronize(s.event);
        return s.pinned[3];
    };
    check(seeds_that_differ(5, [&] { return read_back(true); }) == 0);
    check(seeds_that_differ(-1, [&] { return read_back(false); }) == 0);
    // the host overwrites what a copy has not yet taken
    const auto reuse = [&](bool waits) {
        s.pinned[0] = 1;
        cudaMemcpyAsync(s.x.data, s.pinned, int_row, cudaMemcpyHostToDevice, s.a);
        if (waits) cudaStreamSynchronize(s.a);
        s.pinned[0] = 2;
        return s.x.get()[0];
    };
    check(seeds_that_differ(1, [&] { return reuse(true); }) == 0);
    check(seeds_that_differ(2, [&] { return reuse(false); }) == 0);
    // .. unless it is not pinned: then the driver has it when the call returns
    const auto pageable = [&] {
        std::vector<int> host(32, 1);
        cudaMemcpyAsync(s.x.data, host.data(), int_row, cudaMemcpyHostToDevice, s.a);
        host.assign(32, 2);
        cudaMemcpyAsync(host.data(), s.x.data, int_row, cudaMemcpyDeviceToHost, s.a); // the host waits
        return host[31];
    };
    check(seeds_that_differ(1, pageable) == 0);
    // a buffer that goes up and comes down in one stream is not poisoned before it has gone up
    const auto up_and_down = [&] {
        s.pinned[1] = 9;
        cudaMemcpyAsync(s.x.data, s.pinned, int_row, cudaMemcpyHostToDevice, s.a);
        times_two_plus<<<1, 32, 0, s.a>>>(s.x.data, 0);
        cudaMemcpyAsync(s.pinned, s.x.data, int_row, cudaMemcpyDeviceToHost, s.a);
        cudaStreamSynchronize(s.a);
        return s.pinned[1];
    };
    check(seeds_that_differ(18, up_and_down) == 0);
}

// Without a stream: the legacy default stream, which blocking streams wait for and which waits for them.
static void test_default_stream() {
    for (const bool blocking : {true, false}) {
        TwoStreams s(blocking ? cudaStreamDefault : cudaStreamNonBlocking);
        const auto run = [&] {
            cudaMemset(s.x.data, 0, int_row);
            cudaDeviceSynchronize();
            set<<<1, 32, 0, s.a>>>(s.x.data, 3);
            times_two_plus<<<1, 32>>>(s.x.data, 1);
            times_two_plus<<<1, 32, 0, s.b>>>(s.x.data, 1);
            cudaDeviceSynchronize();
            return s.x.get()[0];
        };
        const int different = seeds_that_differ(15, run);
        check(blocking ? different == 0 : different > 3, "%d seeds", different);
    }
}

// What waits, and what does not.
static void test_what_waits() {
    setenv("EMU_STREAMS", "random:3", 1);
    TwoStreams s;
    int calls = 0;
    const auto count = [](void* data) { ++*static_cast<int*>(data); };
    const auto put = [&] {
        calls = 0;
        cudaLaunchHostFunc(s.a, count, &calls);
    };
    int* p = nullptr;
    put();
    check(cudaMalloc(&p, 4) == cudaSuccess && calls == 0, "cudaMalloc does not wait");
    check(cudaMemset(p, 0, 4) == cudaSuccess && calls == 0, "nor does cudaMemset");
    check(cudaStreamSynchronize(s.b) == cudaSuccess && cudaFree(p) == cudaSuccess && calls == 1,
          "cudaFree does");
    put();
    check(cudaMalloc(&p, 4) == cudaSuccess && cudaFreeAsync(p, s.a) == cudaSuccess && calls == 0);
    check(cudaStreamSynchronize(s.a) == cudaSuccess && calls == 1 && cudaFree(p) == cudaErrorInvalidValue);
    cudaGetLastError();
    check_stops(
        __LINE__,
        [&] {
            cudaMalloc(&p, 4), cudaFreeAsync(p, s.a), cudaMemsetAsync(p, 0, 4, s.a);
            cudaDeviceSynchronize();
        },
        "cudaMemsetAsync: the memory at ", "has been freed");
    put();
    std::vector<int> host(32);
    cudaMemcpy(host.data(), s.x.data, int_row, cudaMemcpyDeviceToHost);
    check(calls == 1, "a blocking copy waits for blocking streams");
    put();
    cudaMemcpy(s.y.data, s.x.data, int_row, cudaMemcpyDeviceToDevice);
    check(calls == 0, "one within the device does not");
    cudaDeviceSynchronize();
    // questions, and times
    cudaEvent_t start;
    cudaEventCreate(&start);
    float ms = -1;
    check(cudaEventElapsedTime(&ms, start, s.event) == cudaErrorInvalidResourceHandle, "not recorded");
    check(cudaEventQuery(start) == cudaSuccess && cudaEventSynchronize(start) == cudaSuccess,
          "nor is that waited for");
    cudaEventRecord(start, s.a);
    set<<<1, 32, 0, s.a>>>(s.x.data, 1);
    cudaEventRecord(s.event, s.a);
    check(cudaEventElapsedTime(&ms, start, s.event) == cudaErrorNotReady);
    check(cudaStreamQuery(s.a) == cudaErrorNotReady);
    int questions = 1;
    while (cudaEventQuery(s.event) == cudaErrorNotReady) questions++;
    check(questions > 1 && questions < 10 && cudaStreamQuery(s.a) == cudaSuccess, "%d questions", questions);
    cudaGetLastError();
    check(cudaEventElapsedTime(&ms, start, s.event) == cudaSuccess && ms >= 0);
    cudaEventDestroy(start);
    // one seed, one order
    std::vector<std::string> orders;
    for (const int seed : {1, 2, 3, 4, 5, 6, 7, 8, 5}) {
        setenv("EMU_STREAMS", strf("random:%d", seed).c_str(), 1);
        std::string order;
        struct Note {
            std::string* order;
            char name;
        } notes[] = {{&order, 'a'}, {&order, 'b'}};
        cudaStream_t a, b;
        cudaStreamCreate(&a), cudaStreamCreate(&b);
        for (int i = 0; i < 8; i++)
            cudaLaunchHostFunc(
                i % 2 ? a : b,
                [](void* data) {
                    const Note& note = *static_cast<Note*>(data);
                    note.order->push_back(note.name);
                },
                &notes[i % 2]);
        cudaDeviceSynchronize();
        cudaStreamDestroy(a), cudaStreamDestroy(b);
        orders.push_back(order);
    }
    check(orders[4].size() == 8 && orders[4] == orders[8], "the same seed, the same order");
    check(std::count(orders.begin(), orders.end(), orders[0]) < 9, "another seed, another order");
    unsetenv("EMU_STREAMS");
}

// Products on two streams: each needs a workspace of its own.
static void test_products_on_streams() {
    check(cublasLtCreate(&lt) == CUBLAS_STATUS_SUCCESS);
    const Problem p{32, 32, 32, false, false, CUDA_R_32F, CUDA_R_32F, CUBLASLT_EPILOGUE_DEFAULT, 1, 0, 0};
    const auto multiply = [&](bool shared) {
        TwoStreams s;
        Device<float> a(std::vector<float>(1024, 1)), out(2 * 1024);
        Device<char> workspace(2 * 8192);
        Descriptors x(p, 32, 32, 32);
        const size_t bytes = 8192;
        cublasLtMatmulPreferenceSetAttribute(x.preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes,
                                             sizeof bytes);
        cublasLtMatmulHeuristicResult_t r{};
        int n = 0;
        x.heuristic(r, n);
        for (int i = 0; i < 8; i++) {
            const float one = i == 7, zero = 0; // on the host, and gone when the product is computed
            check(cublasLtMatmul(lt, x.operation, &one, a.data, x.a, a.data, x.b, &zero,
                                 out.data + i % 2 * 1024, x.d, out.data + i % 2 * 1024, x.d, &r.algo,
                                 workspace.data + (shared ? 0 : i % 2 * bytes), bytes,
                                 i % 2 ? s.a : s.b) == CUBLAS_STATUS_SUCCESS);
        }
        const std::vector<float> got = out.get();
        return got[0] == 0 && got[1024 + 5] == 32 ? 1 : 0;
    };
    check(seeds_that_differ(1, [&] { return multiply(false); }) == 0);
    int refused = 0;
    for (int seed = 1; seed <= 20; seed++) {
        const Death d = run_child([&] {
            setenv("EMU_STREAMS", strf("random:%d", seed).c_str(), 1);
            multiply(true);
        });
        refused += d.message.find("emu: cublasLtMatmul: its workspace at ") == 0 && d.status != 0;
    }
    check(refused > 3, "a workspace for two streams is noticed by %d seeds of 20", refused);
    cublasLtDestroy(lt);
}

static void test_stream_misuse() {
    setenv("EMU_STREAMS", "random", 1);
    cudaStream_t s;
    cudaEvent_t e;
    check(cudaStreamCreate(&s) == cudaSuccess && cudaEventCreate(&e) == cudaSuccess);
    check_stops(
        __LINE__, [&] { nothing<<<1, 1, 0, s>>>(), cudaStreamDestroy(s); }, "cudaStreamDestroy",
        "nobody has waited", "1 operation");
    check(cudaStreamDestroy(s) == cudaSuccess && cudaEventDestroy(e) == cudaSuccess);
    check_stops(
        __LINE__, [&] { nothing<<<1, 1, 0, s>>>(); }, "nothing: this stream has been destroyed");
    check_stops(
        __LINE__, [&] { cudaStreamSynchronize(s); }, "cudaStreamSynchronize: this stream has been destroyed");
    check_stops(
        __LINE__, [&] { cudaMemsetAsync(Device<int>(1).data, 0, 4, s); }, "cudaMemsetAsync: this stream");
    check_stops(
        __LINE__, [&] { cudaEventRecord(e, nullptr); }, "cudaEventRecord: this event has been destroyed");
    check_stops(
        __LINE__, [&] { cudaStreamWaitEvent(nullptr, e); },
        "cudaStreamWaitEvent: this event has been destroyed");
    check(cudaEventRecord(nullptr, nullptr) == cudaErrorInvalidResourceHandle);
    check(cudaStreamCreateWithFlags(&s, 8) == cudaErrorInvalidValue);
    setenv("EMU_STREAMS", "sideways", 1);
    check_stops(
        __LINE__, [] { nothing<<<1, 1>>>(); }, "EMU_STREAMS is 'sideways'");
    unsetenv("EMU_STREAMS");
    cudaGetLastError();
}

static void test_late_streams() {
    test_waits();
    test_default_stream();
    test_what_waits();
    test_products_on_streams();
    test_stream_misuse();
    // everything else while streams run late
    setenv("EMU_STREAMS", "random:7", 1);
    evaluations = 0;
    test_launches();
    test_launch_errors();
    test_graphs();
    test_runtime();
    test_shared();
    test_cublaslt();
    unsetenv("EMU_STREAMS");
}
#endif

// ---- a program that is included -------------------------------------------------------------------------

// Kernels launched from here and from there, device functions with shared memory in kernels of both, and host
// functions whose bodies are elsewhere.
__global__ void includer_kernel(int* out) { out[threadIdx.x] = shared_total(2) + scale(1); }

static void test_library() {
    Device<int> out(128);
    library_launch(out.data, 2, 64);
    const std::vector<int> there = out.get();
    library_kernel<<<2, 64>>>(out.data, 7);
    const std::vector<int> here = out.get();
    bool right = true;
    for (int i = 0; i < 128; i++) {
        const int value = i % 64 * library_step + 64;
        right = right && there[size_t(i)] == value + 100 && here[size_t(i)] == value + 7;
    }
    check(right, "a kernel of an included program");
    includer_kernel<<<1, 32>>>(out.data);
    library_template_kernel<<<1, 1>>>(out.data, 5);
    const std::vector<int> mixed = out.get();
    check(mixed[0] == 5 && mixed[1] == 64 + library_step && mixed[31] == 64 + library_step);

    library::Counter counter(4);
    const int calls = library_calls;
    check(counter.next() == 4 + library_step && counter.next() == 4 + 2 * library_step);
    check(library_calls == calls + 2, "one variable in both");
    check(std::string(library::name()) == library_name);
    check(library_brackets(4) == 9 || library_brackets(4) == 8);
#ifdef MOEX_EMU // to nvcc it is one program; here its functions were compiled without this file's macros
    check(std::string(library_file()) == "linked");
#else
    check(std::string(library_file()) == "included");
#endif
}

int main() {
    return run_main([] {
        test_library();
        test_launches();
        test_launch_errors();
        test_graphs();
        test_runtime();
        test_shared();
        test_warps();
        test_atomics();
        test_mma();
        test_ldmatrix();
        test_cp_async();
        test_wgmma<false, false>("wgmma");
        test_wgmma<false, true>("wgmma, b wide");
        test_wgmma<true, true>("wgmma, a and b wide");
        test_other_ptx();
        test_bf16();
        test_cublaslt();
#ifdef MOEX_EMU
        test_strictness();
        evaluations = 0;
        test_random_order();
        test_late_streams();
#endif
        return finish();
    });
}
