// dev/emu: CUDA on the CPU. g++ or clang builds an unchanged .cu file into a program whose kernels run on all
// cores of this machine, so that they can be tested, sanitized and stepped through without a GPU:
//
//     g++ -std=c++20 -O2 dev/emu/translate.cpp -o build/translate
//     build/translate train.cu build/train_emu.cpp
//     g++ -std=c++20 -O3 -march=native -g -I dev/emu/include build/train_emu.cpp -o build/train_emu
//
// Add -fopenmp where the program uses it, and -fsanitize=address,undefined to have every access of every
// thread checked, bounds and alignment. The code sees MOEX_EMU defined, and neither __CUDACC__ nor
// __CUDA_ARCH__.
//
// translate rewrites the four things that are not C++: kernel<<<...>>>(...), __shared__, asm and #pragma
// unroll; line numbers stay those of the .cu, for compiler messages and gdb alike (break train.cu:120 if
// threadIdx.x == 5; print s[3]). These headers do the rest:
//
//     emu/types.h    qualifiers, dim3, vector types        emu/fiber.h    switching stacks
//     emu/machine.h  blocks, threads, shared memory        emu/device.h   what device code calls
//     emu/ptx.h      mma, ldmatrix, cp.async, ...          cuda_runtime.h the host's side (this file)
//     cuda_bf16.h    bfloat16                              cublasLt.h     matrix products with epilogues
//     nccl.h         collectives between threads
//
// Strict where hardware is silent. The program stops with kernel, block and thread for: a barrier that some
// thread of the block does not reach, or reaches at another line; a warp operation whose mask names a lane
// that has exited, does not exist or waits elsewhere; reading a lane outside of the mask; shared addresses
// out of bounds or unaligned in PTX. cp.async delivers at the wait and no earlier. Fresh device and shared
// memory is full of NaN (0xFF). Every cudaMalloc is an allocation of its own, so AddressSanitizer sees what
// leaves it; copies outside of device memory are refused with the error a GPU gives.
//
// Environment:  EMU_ORDER=random[:seed]   threads and blocks in random order: what differs lacks a barrier
//               EMU_THREADS=n             workers (default: the cores this process may use, at most 16)
//               EMU_MEMORY=bytes          what cudaMalloc gives before cudaErrorMemoryAllocation
//               EMU_CUBLASLT_EPILOGUES=0  cublasLt has the default epilogue only; =bias: and the bias
//
// Not emulated: time (streams are synchronous; a kernel that waits for another block may wait for ever),
// kernels started by kernels, clusters, textures, CUDA graphs.
#pragma once
#include "emu/device.h"
#include "emu/ptx.h"
#include "emu/types.h"
#include <cstdlib>
#include <ctime>
#include <map>
#include <mutex>

#define CUDART_VERSION 12040

enum cudaError {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidSymbol = 13,
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorNotReady = 600,
};
typedef enum cudaError cudaError_t;

namespace emu {

struct ErrorText {
    cudaError_t error;
    const char *name, *text;
};
constexpr ErrorText error_texts[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidSymbol, "cudaErrorInvalidSymbol", "invalid device symbol"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
};

inline thread_local constinit cudaError_t last_error = cudaSuccess;
inline cudaError_t result(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

// The device memory: what is allocated, by address, and the symbols whose address was asked for.
struct DeviceMemory {
    std::mutex mutex;
    std::map<const char*, size_t> regions;
    size_t used = 0;

    size_t total() const {
        if (const char* limit = getenv("EMU_MEMORY")) return strtoull(limit, nullptr, 10);
        return size_t(sysconf(_SC_PHYS_PAGES)) * size_t(sysconf(_SC_PAGE_SIZE));
    }
    // Do these bytes lie in one region?
    bool holds(const void* p, size_t bytes) {
        std::lock_guard lock(mutex);
        const char* first = static_cast<const char*>(p);
        auto after = regions.upper_bound(first);
        if (after == regions.begin()) return false;
        const auto& [start, size] = *--after;
        return size_t(first - start) <= size && bytes <= size - size_t(first - start);
    }
};
inline DeviceMemory& device_memory() {
    static DeviceMemory* const memory = new DeviceMemory;
    return *memory;
}

} // namespace emu

inline const char* cudaGetErrorName(cudaError_t error) {
    for (const emu::ErrorText& e : emu::error_texts)
        if (e.error == error) return e.name;
    return "unrecognized error code";
}
inline const char* cudaGetErrorString(cudaError_t error) {
    for (const emu::ErrorText& e : emu::error_texts)
        if (e.error == error) return e.text;
    return "unrecognized error code";
}
inline cudaError_t cudaPeekAtLastError() { return emu::last_error; }
inline cudaError_t cudaGetLastError() {
    const cudaError_t error = emu::last_error;
    emu::last_error = cudaSuccess;
    return error;
}

// ---- the device -----------------------------------------------------------------------------------------

struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor;
    size_t reservedSharedMemPerBlock, totalConstMem, memPitch;
    int regsPerBlock, regsPerMultiprocessor, warpSize, maxThreadsPerBlock, maxThreadsPerMultiProcessor;
    int maxThreadsDim[3], maxGridSize[3];
    int major, minor, multiProcessorCount, maxBlocksPerMultiProcessor;
    int clockRate, memoryClockRate, memoryBusWidth, l2CacheSize; // the rates are gone since CUDA 13
    int concurrentKernels, asyncEngineCount, unifiedAddressing, integrated, ECCEnabled, cooperativeLaunch;
    int pciBusID, pciDeviceID, pciDomainID;
};

inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
    return emu::result(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
// An H100's limits, this machine's memory.
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
    if (device != 0) return emu::result(cudaErrorInvalidDevice);
    *p = {};
    strcpy(p->name, "emulated");
    p->totalGlobalMem = emu::device_memory().total();
    p->sharedMemPerBlock = emu::shared_default;
    p->sharedMemPerBlockOptin = emu::shared_opt_in;
    p->sharedMemPerMultiprocessor = 228 << 10;
    p->reservedSharedMemPerBlock = emu::shared_window;
    p->totalConstMem = 64 << 10;
    p->memPitch = 0x7fffffff;
    p->regsPerBlock = p->regsPerMultiprocessor = 64 << 10;
    p->warpSize = 32;
    p->maxThreadsPerBlock = emu::max_threads;
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 0x7fffffff, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->major = 9, p->minor = 0;
    p->multiProcessorCount = 132;
    p->maxBlocksPerMultiProcessor = 32;
    p->clockRate = 1980000, p->memoryClockRate = 2619000, p->memoryBusWidth = 5120;
    p->l2CacheSize = 50 << 20;
    p->concurrentKernels = p->asyncEngineCount = p->unifiedAddressing = 1;
    return cudaSuccess;
}

enum cudaDeviceAttr {
    cudaDevAttrMaxThreadsPerBlock = 1,
    cudaDevAttrMaxSharedMemoryPerBlock = 8,
    cudaDevAttrWarpSize = 10,
    cudaDevAttrClockRate = 13,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrMemoryClockRate = 36,
    cudaDevAttrGlobalMemoryBusWidth = 37,
    cudaDevAttrL2CacheSize = 38,
    cudaDevAttrMaxThreadsPerMultiProcessor = 39,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
    cudaDevAttrCooperativeLaunch = 95,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp p;
    if (cudaError_t error = cudaGetDeviceProperties(&p, device)) return error;
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
        *value = p.maxThreadsPerBlock;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = int(p.sharedMemPerBlock);
        break;
    case cudaDevAttrWarpSize:
        *value = p.warpSize;
        break;
    case cudaDevAttrClockRate:
        *value = p.clockRate;
        break;
    case cudaDevAttrMultiProcessorCount:
        *value = p.multiProcessorCount;
        break;
    case cudaDevAttrMemoryClockRate:
        *value = p.memoryClockRate;
        break;
    case cudaDevAttrGlobalMemoryBusWidth:
        *value = p.memoryBusWidth;
        break;
    case cudaDevAttrL2CacheSize:
        *value = p.l2CacheSize;
        break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *value = p.maxThreadsPerMultiProcessor;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *value = p.major;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = p.minor;
        break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = int(p.sharedMemPerMultiprocessor);
        break;
    case cudaDevAttrCooperativeLaunch:
        *value = 0;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = int(p.sharedMemPerBlockOptin);
        break;
    default:
        return emu::result(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaDeviceReset() { return cudaSuccess; }

// ---- memory ---------------------------------------------------------------------------------------------

typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;

inline cudaError_t emu_malloc(void** p, size_t bytes) {
    emu::DeviceMemory& memory = emu::device_memory();
    std::lock_guard lock(memory.mutex);
    *p = nullptr;
    if (bytes == 0) return cudaSuccess;
    const size_t limit = memory.total();
    if (bytes > limit || memory.used > limit - bytes || posix_memalign(p, 256, bytes) != 0)
        return emu::result(cudaErrorMemoryAllocation);
    memset(*p, 0xFF, bytes);
    memory.used += bytes;
    memory.regions[static_cast<char*>(*p)] = bytes;
    return cudaSuccess;
}
template <class T> cudaError_t cudaMalloc(T** p, size_t bytes) {
    return emu_malloc(reinterpret_cast<void**>(p), bytes);
}
template <class T> cudaError_t cudaMallocAsync(T** p, size_t bytes, cudaStream_t) {
    return cudaMalloc(p, bytes);
}
inline cudaError_t cudaFree(void* p) {
    if (!p) return cudaSuccess;
    emu::DeviceMemory& memory = emu::device_memory();
    std::lock_guard lock(memory.mutex);
    const auto region = memory.regions.find(static_cast<char*>(p));
    if (region == memory.regions.end()) return emu::result(cudaErrorInvalidValue);
    memory.used -= region->second;
    memory.regions.erase(region);
    free(p);
    return cudaSuccess;
}
inline cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return cudaFree(p); }
inline cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
    *total = emu::device_memory().total();
    *available = *total - std::min(*total, emu::device_memory().used);
    return cudaSuccess;
}

enum {
    cudaHostAllocDefault = 0,
    cudaHostAllocPortable = 1,
    cudaHostAllocMapped = 2,
    cudaHostAllocWriteCombined = 4
};
template <class T> cudaError_t cudaHostAlloc(T** p, size_t bytes, unsigned) {
    void* memory;
    if (posix_memalign(&memory, 256, bytes ? bytes : 1) != 0) return emu::result(cudaErrorMemoryAllocation);
    *p = static_cast<T*>(memory);
    return cudaSuccess;
}
template <class T> cudaError_t cudaMallocHost(T** p, size_t bytes) { return cudaHostAlloc(p, bytes, 0); }
inline cudaError_t cudaFreeHost(void* p) { return free(p), cudaSuccess; }

enum cudaMemcpyKind {
    cudaMemcpyHostToHost = 0,
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3,
    cudaMemcpyDefault = 4,
};
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (bytes == 0) return cudaSuccess;
    if (unsigned(kind) > cudaMemcpyDefault || (to_device && !emu::device_memory().holds(to, bytes)) ||
        (from_device && !emu::device_memory().holds(from, bytes)))
        return emu::result(cudaErrorInvalidValue);
    memmove(to, from, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t = nullptr) {
    return cudaMemcpy(to, from, bytes, kind);
}
inline cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                size_t height, cudaMemcpyKind kind) {
    if (to_pitch < width || from_pitch < width) return emu::result(cudaErrorInvalidValue);
    for (size_t y = 0; y < height; y++)
        if (cudaError_t error = cudaMemcpy(static_cast<char*>(to) + y * to_pitch,
                                           static_cast<const char*>(from) + y * from_pitch, width, kind))
            return error;
    return cudaSuccess;
}
inline cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                                     size_t width, size_t height, cudaMemcpyKind kind,
                                     cudaStream_t = nullptr) {
    return cudaMemcpy2D(to, to_pitch, from, from_pitch, width, height, kind);
}
inline cudaError_t cudaMemset(void* p, int value, size_t bytes) {
    if (bytes == 0) return cudaSuccess;
    if (!emu::device_memory().holds(p, bytes)) return emu::result(cudaErrorInvalidValue);
    memset(p, value, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t = nullptr) {
    return cudaMemset(p, value, bytes);
}

// __device__ and __constant__ variables are ordinary ones; asking for the address makes it device memory.
template <class T> cudaError_t cudaGetSymbolAddress(void** p, const T& symbol) {
    *p = const_cast<void*>(static_cast<const void*>(&symbol));
    std::lock_guard lock(emu::device_memory().mutex);
    emu::device_memory().regions[static_cast<char*>(*p)] = sizeof(T);
    return cudaSuccess;
}
template <class T> cudaError_t cudaMemcpyToSymbol(const T& symbol, const void* from, size_t bytes,
                                                  size_t offset = 0,
                                                  cudaMemcpyKind kind = cudaMemcpyHostToDevice) {
    void* p;
    cudaGetSymbolAddress(&p, symbol);
    return cudaMemcpy(static_cast<char*>(p) + offset, from, bytes, kind);
}
template <class T> cudaError_t cudaMemcpyFromSymbol(void* to, const T& symbol, size_t bytes,
                                                    size_t offset = 0,
                                                    cudaMemcpyKind kind = cudaMemcpyDeviceToHost) {
    void* p;
    cudaGetSymbolAddress(&p, symbol);
    return cudaMemcpy(to, static_cast<char*>(p) + offset, bytes, kind);
}

// ---- streams and events: everything has happened when the call returns ----------------------------------

struct CUstream_st {
    unsigned flags;
};
struct CUevent_st {
    timespec time;
    bool recorded;
};
enum { cudaStreamDefault = 0, cudaStreamNonBlocking = 1 };
enum {
    cudaEventDefault = 0,
    cudaEventBlockingSync = 1,
    cudaEventDisableTiming = 2,
    cudaEventRecordDefault = 0
};
enum { cudaEventWaitDefault = 0 };

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned flags) {
    return *s = new CUstream_st{flags}, cudaSuccess;
}
inline cudaError_t cudaStreamCreate(cudaStream_t* s) {
    return cudaStreamCreateWithFlags(s, cudaStreamDefault);
}
inline cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned flags, int) {
    return cudaStreamCreateWithFlags(s, flags);
}
inline cudaError_t cudaStreamDestroy(cudaStream_t s) { return delete s, cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t e, unsigned = 0) {
    return emu::result(e ? cudaSuccess : cudaErrorInvalidResourceHandle);
}
inline cudaError_t cudaLaunchHostFunc(cudaStream_t, void (*f)(void*), void* data) {
    return f(data), cudaSuccess;
}

inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) {
    return *e = new CUevent_st{}, cudaSuccess;
}
inline cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, cudaEventDefault); }
inline cudaError_t cudaEventDestroy(cudaEvent_t e) { return delete e, cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t = nullptr) {
    if (!e) return emu::result(cudaErrorInvalidResourceHandle);
    clock_gettime(CLOCK_MONOTONIC, &e->time);
    e->recorded = true;
    return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    return emu::result(e ? cudaSuccess : cudaErrorInvalidResourceHandle);
}
inline cudaError_t cudaEventQuery(cudaEvent_t e) { return cudaEventSynchronize(e); }
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
    if (!from || !to || !from->recorded || !to->recorded) return emu::result(cudaErrorInvalidResourceHandle);
    *milliseconds = float(double(to->time.tv_sec - from->time.tv_sec) * 1e3 +
                          double(to->time.tv_nsec - from->time.tv_nsec) * 1e-6);
    return cudaSuccess;
}

// ---- launches -------------------------------------------------------------------------------------------

enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};

namespace emu {

// The dynamic shared memory that kernels were allowed beyond 48 KiB, by the kernel's address.
struct SharedLimits {
    std::mutex mutex;
    std::map<const void*, size_t> bytes;
    size_t of(const void* kernel) {
        std::lock_guard lock(mutex);
        const auto found = bytes.find(kernel);
        return found == bytes.end() ? shared_default : std::max(shared_default, found->second);
    }
};
inline SharedLimits& shared_limits() {
    static SharedLimits* const limits = new SharedLimits;
    return *limits;
}

struct Config { // what stands between <<< and >>>
    dim3 grid, block;
    size_t dynamic_shared;
    Config(dim3 grid, dim3 block, size_t dynamic_shared = 0, cudaStream_t = nullptr)
        : grid(grid), block(block), dynamic_shared(dynamic_shared) {}
};

inline void start(const char* name, const Config& c, const void* kernel, void (*body)(const void*),
                  const void* arguments) {
    const dim3 g = c.grid, b = c.block;
    const bool fits = g.x && g.y && g.z && g.x <= 0x7fffffff && g.y <= 65535 && g.z <= 65535 && b.x && b.y &&
                      b.z && b.x <= 1024 && b.y <= 1024 && b.z <= 64 && b.x * b.y * b.z <= max_threads;
    if (!fits) return void(result(cudaErrorInvalidConfiguration));
    const size_t limit = shared_limits().of(kernel);
    if (c.dynamic_shared > limit) return void(result(cudaErrorInvalidValue));
    // Static shared memory counts, too, and is known when its declaration is reached.
    Launch launch{name, g, b, c.dynamic_shared, limit, body, arguments, false, 0};
    if (const char* order = getenv("EMU_ORDER")) {
        static std::atomic<uint64_t> launches{0};
        if (strncmp(order, "random", 6) != 0 || (order[6] && order[6] != ':'))
            die("EMU_ORDER is '%s', expected 'random' or 'random:seed'", order);
        launch.random = true;
        launch.seed = Random{strtoull(order[6] ? order + 7 : "1", nullptr, 10) + (launches++ << 32)}.next();
    }
    run_grid(launch);
}

// kernel<<<config>>>(arguments): they are converted to the kernel's parameters here, once.
template <class... P> void launch(const char* name, const Config& config, void (*kernel)(P...),
                                  std::type_identity_t<P>... arguments) {
    typedef std::tuple<void (*)(P...), P...> Call;
    const Call call(kernel, arguments...);
    const auto body = [](const void* call) {
        std::apply([](void (*f)(P...), const P&... a) { f(a...); }, *static_cast<const Call*>(call));
    };
    start(name, config, reinterpret_cast<const void*>(kernel), body, &call);
}

// The same for a kernel template whose parameters follow from the arguments; its limit is 48 KiB.
template <class F, class... A>
void launch_deduced(const char* name, const Config& config, F kernel, A... arguments) {
    typedef std::tuple<F, A...> Call;
    const Call call(kernel, arguments...);
    const auto body = [](const void* call) {
        std::apply([](const F& f, const A&... a) { f(a...); }, *static_cast<const Call*>(call));
    };
    start(name, config, nullptr, body, &call);
}

} // namespace emu

template <class F> cudaError_t cudaFuncSetAttribute(F* kernel, cudaFuncAttribute attribute, int value) {
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
        size_t(value) > emu::shared_opt_in)
        return emu::result(cudaErrorInvalidValue);
    std::lock_guard lock(emu::shared_limits().mutex);
    emu::shared_limits().bytes[reinterpret_cast<const void*>(kernel)] = size_t(value);
    return cudaSuccess;
}
// By threads and shared memory; registers are not known here.
template <class F> cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, F*, int threads,
                                                                             size_t dynamic_shared) {
    if (threads < 1) return emu::result(cudaErrorInvalidValue);
    const size_t by_threads = threads > 1024 ? 0 : 2048 / size_t((threads + 31) / 32 * 32);
    const size_t by_shared = (228 << 10) / (dynamic_shared + emu::shared_window);
    *blocks = int(std::min({by_threads, by_shared, size_t(32)}));
    return cudaSuccess;
}
