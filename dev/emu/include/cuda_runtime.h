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
//     emu/ptx.h      mma, ldmatrix, cp.async, ...          emu/wgmma.h    wgmma
//     emu/streams.h  streams and events
//     cuda_runtime.h the host's side (this file)           cublasLt.h     matrix products with epilogues
//     cuda_bf16.h    bfloat16                              nccl.h         between processes and threads
//
// Strict where hardware is silent. The program stops with kernel, block and thread for: a barrier that some
// thread of the block does not reach, or reaches at another line; a warp operation whose mask names a lane
// that has exited, does not exist or waits elsewhere; reading a lane outside of the mask; shared addresses
// out of bounds or unaligned in PTX. cp.async delivers at the wait and no earlier. Fresh device and shared
// memory is full of NaN (0xFF). Every cudaMalloc is an allocation of its own, so AddressSanitizer sees what
// leaves it; copies outside of device memory are refused with the error a GPU gives.
//
// Environment:  EMU_ORDER=random[:seed]   threads and blocks in random order: what differs lacks a barrier
//               EMU_STREAMS=random[:seed] what is put on streams runs late, in any order that streams and
//                                         events allow: what differs lacks a wait
//               EMU_THREADS=n             workers (default: OMP_NUM_THREADS, or the cores this process may
//                                         use, at most 16)
//               EMU_SM=80                 a device without wgmma (90: with it)
//               EMU_MEMORY=bytes          what cudaMalloc gives before cudaErrorMemoryAllocation
//               EMU_DEVICES=n             how many devices there are (8)
//               EMU_CUBLASLT_..=          what cublasLt refuses: see cublasLt.h
//               EMU_NCCL=hang             calls that can never end wait for ever: see nccl.h
//
// Not emulated: time (kernels run one after the other, programmatic dependent launches too, whose threads
// must all wait for the kernel before; one that waits for another block may wait for ever), kernels started
// by kernels, clusters, textures, CUDA graphs other than one captured from a single stream.
#pragma once
#include "emu/device.h"
#include "emu/ptx.h"
#include "emu/streams.h"
#include "emu/types.h"
#include <cstdlib>
#include <map>
#include <mutex>
#include <utility>

#define CUDART_VERSION 12040

enum cudaError {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidSymbol = 13,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorNotReady = 600,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901,
    cudaErrorIllegalState = 401,
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
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalState, "cudaErrorIllegalState",
     "the operation cannot be performed in the present state"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
};

inline thread_local constinit cudaError_t last_error = cudaSuccess;
inline cudaError_t result(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

// Memory that is known by address: the device's, with the symbols whose address was asked for, and what the
// host has pinned.
struct Memory {
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
inline Memory& device_memory() {
    static Memory* const memory = new Memory;
    return *memory;
}
inline Memory& pinned_memory() {
    static Memory* const memory = new Memory;
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

namespace emu {
// Several devices in name: they share this machine's cores, and a process has one memory for all of them.
inline int device_count() {
    const char* const text = getenv("EMU_DEVICES");
    return text ? std::max(1, atoi(text)) : 8;
}
inline thread_local constinit int current_device = 0;
inline bool is_device(int device) { return device >= 0 && device < device_count(); }
} // namespace emu

inline cudaError_t cudaGetDeviceCount(int* count) { return *count = emu::device_count(), cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = emu::current_device, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
    if (!emu::is_device(device)) return emu::result(cudaErrorInvalidDevice);
    emu::current_device = device;
    return cudaSuccess;
}
inline cudaError_t cudaDeviceGetPCIBusId(char* id, int bytes, int device) {
    if (!emu::is_device(device)) return emu::result(cudaErrorInvalidDevice);
    if (!id || bytes < 13) return emu::result(cudaErrorInvalidValue);
    snprintf(id, size_t(bytes), "0000:%02X:00.0", unsigned(device + 1) & 0xffu);
    return cudaSuccess;
}
// An H100's limits, this machine's memory.
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
    if (!emu::is_device(device)) return emu::result(cudaErrorInvalidDevice);
    *p = {};
    strcpy(p->name, "emulated");
    p->totalGlobalMem = emu::device_memory().total();
    p->sharedMemPerBlock = emu::shared_default;
    p->sharedMemPerBlockOptin = emu::shared_opt_in();
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
    p->major = emu::compute_capability() / 10, p->minor = 0;
    p->multiProcessorCount = 132;
    p->maxBlocksPerMultiProcessor = 32;
    p->clockRate = 1980000, p->memoryClockRate = 2619000, p->memoryBusWidth = 5120;
    p->l2CacheSize = 50 << 20;
    p->concurrentKernels = p->asyncEngineCount = p->unifiedAddressing = 1;
    p->pciBusID = device + 1;
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
inline cudaError_t cudaDeviceSynchronize() {
    if (emu::streams().breaks_capture()) return emu::result(cudaErrorStreamCaptureUnsupported);
    return emu::streams().finish_all(), cudaSuccess;
}
inline cudaError_t cudaDeviceReset() { return cudaDeviceSynchronize(); }

// ---- memory ---------------------------------------------------------------------------------------------

inline cudaError_t emu_malloc(void** p, size_t bytes) {
    if (emu::streams().breaks_capture()) return emu::result(cudaErrorStreamCaptureUnsupported);
    emu::Memory& memory = emu::device_memory();
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
// Waits for all that is pending; cudaMalloc does not.
inline cudaError_t cudaFree(void* p) {
    if (!p) return cudaSuccess;
    emu::streams().finish_all();
    emu::Memory& memory = emu::device_memory();
    std::lock_guard lock(memory.mutex);
    const auto region = memory.regions.find(static_cast<char*>(p));
    if (region == memory.regions.end()) return emu::result(cudaErrorInvalidValue);
    memory.used -= region->second;
    memory.regions.erase(region);
    free(p);
    return cudaSuccess;
}
inline cudaError_t cudaFreeAsync(void* p, cudaStream_t stream) {
    if (!p) return cudaSuccess;
    if (!emu::device_memory().holds(p, 1)) return emu::result(cudaErrorInvalidValue);
    emu::streams().put(stream, "cudaFreeAsync", [p] {
        emu::Memory& memory = emu::device_memory();
        std::lock_guard lock(memory.mutex);
        const auto region = memory.regions.find(static_cast<char*>(p));
        if (region == memory.regions.end()) emu::die("cudaFreeAsync: %p is no longer allocated", p);
        memory.used -= region->second;
        memory.regions.erase(region);
        free(p);
    });
    return cudaSuccess;
}
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
    void* data;
    if (posix_memalign(&data, 256, bytes ? bytes : 1) != 0) return emu::result(cudaErrorMemoryAllocation);
    std::lock_guard lock(emu::pinned_memory().mutex);
    emu::pinned_memory().regions[static_cast<char*>(data)] = bytes;
    *p = static_cast<T*>(data);
    return cudaSuccess;
}
template <class T> cudaError_t cudaMallocHost(T** p, size_t bytes) { return cudaHostAlloc(p, bytes, 0); }
inline cudaError_t cudaFreeHost(void* p) {
    if (!p) return cudaSuccess;
    emu::streams().finish_all();
    std::lock_guard lock(emu::pinned_memory().mutex);
    if (!emu::pinned_memory().regions.erase(static_cast<char*>(p))) return emu::result(cudaErrorInvalidValue);
    free(p);
    return cudaSuccess;
}
// Pinned memory has one address for both.
template <class T> cudaError_t cudaHostGetDevicePointer(T** device, void* host, unsigned) {
    if (!emu::pinned_memory().holds(host, 1)) return emu::result(cudaErrorInvalidValue);
    *device = static_cast<T*>(host);
    return cudaSuccess;
}

enum cudaMemcpyKind {
    cudaMemcpyHostToHost = 0,
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3,
    cudaMemcpyDefault = 4,
};

namespace emu {

// `height` rows of `width` bytes each, `pitch` bytes apart.
struct Rows {
    char* data;
    size_t pitch, width, height;
    size_t span() const { return (height - 1) * pitch + width; }
    Range range() const { return {data, span()}; }
    void fill(int value) const {
        for (size_t y = 0; y < height; y++) memset(data + y * pitch, value, width);
    }
    void copy_from(const Rows& from) const {
        for (size_t y = 0; y < height; y++) memmove(data + y * pitch, from.data + y * from.pitch, width);
    }
};

// What stands where something will be written: 0xFF, as long as nothing that is pending may read it first.
inline void poison(const Rows& to, bool on_device) {
    Streams& s = streams();
    if (on_device ? !s.anything_pending() : !s.is_read(to.range())) to.fill(0xFF);
}

// When a call's turn comes: is the memory that it was given still there?
inline void check_allocated(const char* call, const Rows& r) {
    if (!device_memory().holds(r.data, r.span()))
        die("%s: the memory at %p has been freed before its turn came", call, static_cast<void*>(r.data));
}

// blocking: the call of that kind, without a stream. What it waits for is what the documentation says.
inline cudaError_t copy(const char* call, const Rows& to, const Rows& from, cudaMemcpyKind kind,
                        cudaStream_t stream, bool blocking) {
    if (unsigned(kind) > cudaMemcpyDefault || to.pitch < to.width || from.pitch < to.width)
        return result(cudaErrorInvalidValue);
    if (to.width == 0 || to.height == 0) return cudaSuccess;
    const bool inferred = kind == cudaMemcpyDefault;
    const bool to_device = inferred ? device_memory().holds(to.data, to.span())
                                    : kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = inferred ? device_memory().holds(from.data, from.span())
                                      : kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if ((to_device && !device_memory().holds(to.data, to.span())) ||
        (from_device && !device_memory().holds(from.data, from.span())))
        return result(cudaErrorInvalidValue);

    Streams& s = streams();
    if ((blocking || !stream) && s.breaks_capture()) return result(cudaErrorStreamCaptureUnsupported);
    if (s.captured(stream, call, [=](cudaStream_t again) { copy(call, to, from, kind, again, false); }))
        return cudaSuccess;
    const std::lock_guard lock(s.mutex);
    s.listen();
    if (!s.late) return s.live(stream, call), to.copy_from(from), cudaSuccess;
    if (!to_device && !from_device) { // the host waits
        s.finish(stream, call);
        to.copy_from(from);
        return cudaSuccess;
    }
    const bool pinned = pinned_memory().holds((to_device ? from : to).data, (to_device ? from : to).span());
    if (to_device && !from_device &&
        !pinned) { // by way of a buffer of the driver's, filled before the call returns
        const auto staged = std::make_shared<std::vector<char>>(to.width * to.height);
        const Rows buffer{staged->data(), to.width, to.width, to.height};
        buffer.copy_from(from);
        poison(to, true);
        s.put(stream, call, [=] {
            check_allocated(call, to);
            to.copy_from(buffer);
            (void)staged; // keeps the buffer
        });
        return cudaSuccess;
    }
    const bool overlapping = from_device && to_device && to.range().meets(from.range());
    if (!overlapping) poison(to, to_device);
    const uint64_t number = s.put(
        stream, call,
        [=] {
            if (to_device) check_allocated(call, to);
            if (from_device) check_allocated(call, from);
            to.copy_from(from);
        },
        from_device ? nothing : from.range());
    const bool waits = from_device && to_device ? false : blocking || !pinned;
    if (waits) s.finish(stream, call, number);
    return cudaSuccess;
}

inline cudaError_t fill(const char* call, void* p, int value, size_t bytes, cudaStream_t stream) {
    if (bytes == 0) return cudaSuccess;
    if (!device_memory().holds(p, bytes)) return result(cudaErrorInvalidValue);
    Streams& s = streams();
    if (!stream && s.breaks_capture()) return result(cudaErrorStreamCaptureUnsupported);
    if (s.captured(stream, call, [=](cudaStream_t again) { fill(call, p, value, bytes, again); }))
        return cudaSuccess;
    const std::lock_guard lock(s.mutex);
    s.listen();
    const Rows to{static_cast<char*>(p), bytes, bytes, 1};
    if (s.late) poison(to, true);
    s.put(stream, call, [=] {
        check_allocated(call, to);
        to.fill(value);
    });
    return cudaSuccess;
}

inline Rows rows(const void* p, size_t pitch, size_t width, size_t height) {
    return {static_cast<char*>(const_cast<void*>(p)), pitch, width, height};
}

} // namespace emu

inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    return emu::copy("cudaMemcpy", emu::rows(to, bytes, bytes, 1), emu::rows(from, bytes, bytes, 1), kind,
                     nullptr, true);
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t stream = nullptr) {
    return emu::copy("cudaMemcpyAsync", emu::rows(to, bytes, bytes, 1), emu::rows(from, bytes, bytes, 1),
                     kind, stream, false);
}
inline cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                size_t height, cudaMemcpyKind kind) {
    return emu::copy("cudaMemcpy2D", emu::rows(to, to_pitch, width, height),
                     emu::rows(from, from_pitch, width, height), kind, nullptr, true);
}
inline cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                                     size_t width, size_t height, cudaMemcpyKind kind,
                                     cudaStream_t stream = nullptr) {
    return emu::copy("cudaMemcpy2DAsync", emu::rows(to, to_pitch, width, height),
                     emu::rows(from, from_pitch, width, height), kind, stream, false);
}
inline cudaError_t cudaMemset(void* p, int value, size_t bytes) {
    return emu::fill("cudaMemset", p, value, bytes, nullptr);
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream = nullptr) {
    return emu::fill("cudaMemsetAsync", p, value, bytes, stream);
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

// ---- streams and events ---------------------------------------------------------------------------------

enum {
    cudaEventDefault = 0,
    cudaEventBlockingSync = 1,
    cudaEventDisableTiming = 2,
    cudaEventRecordDefault = 0
};
enum { cudaEventWaitDefault = 0 };

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    if (flags > cudaStreamNonBlocking) return emu::result(cudaErrorInvalidValue);
    emu::Streams& s = emu::streams();
    const std::lock_guard lock(s.mutex);
    s.all.push_back({flags});
    s.all.back().priority = s.random.next();
    *stream = &s.all.back();
    return cudaSuccess;
}
inline cudaError_t cudaStreamCreate(cudaStream_t* s) {
    return cudaStreamCreateWithFlags(s, cudaStreamDefault);
}
inline cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned flags, int) {
    return cudaStreamCreateWithFlags(s, flags);
}
// Hardware lets what is pending run on, beside whatever comes next.
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    if (!stream) return emu::result(cudaErrorInvalidResourceHandle);
    emu::Streams& s = emu::streams();
    const std::lock_guard lock(s.mutex);
    const size_t pending = s.live(stream, "cudaStreamDestroy").queue.size();
    if (pending) emu::die("cudaStreamDestroy: nobody has waited for the last %zu operations on it", pending);
    stream->destroyed = true;
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    if (emu::streams().breaks_capture()) return emu::result(cudaErrorStreamCaptureUnsupported);
    return emu::streams().finish(stream, "cudaStreamSynchronize"), cudaSuccess;
}
// Something is done at every question, so that a loop around it ends.
inline cudaError_t cudaStreamQuery(cudaStream_t stream) {
    emu::Streams& s = emu::streams();
    if (s.breaks_capture()) return emu::result(cudaErrorStreamCaptureUnsupported);
    const std::lock_guard lock(s.mutex);
    const CUstream_st& asked = s.live(stream, "cudaStreamQuery");
    if (asked.queue.empty()) return cudaSuccess;
    s.step();
    return cudaErrorNotReady;
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned = 0) {
    if (!event) return emu::result(cudaErrorInvalidResourceHandle);
    const char* const call = "cudaStreamWaitEvent";
    const std::shared_ptr<emu::Record> last = emu::live(event, call).last; // as recorded now, not later
    if (last)
        emu::streams().put(
            stream, call, [] {}, emu::nothing, last);
    return cudaSuccess;
}
inline cudaError_t cudaLaunchHostFunc(cudaStream_t stream, void (*f)(void*), void* data) {
    emu::streams().put(
        stream, "cudaLaunchHostFunc", [f, data] { f(data); }, emu::anything);
    return cudaSuccess;
}

inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned flags) {
    emu::Streams& s = emu::streams();
    const std::lock_guard lock(s.mutex);
    s.events.push_back({flags});
    return *e = &s.events.back(), cudaSuccess;
}
inline cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, cudaEventDefault); }
inline cudaError_t cudaEventDestroy(cudaEvent_t e) {
    if (!e) return emu::result(cudaErrorInvalidResourceHandle);
    emu::live(e, "cudaEventDestroy").destroyed = true;
    return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t stream = nullptr) {
    if (!e) return emu::result(cudaErrorInvalidResourceHandle);
    const auto record = std::make_shared<emu::Record>();
    emu::live(e, "cudaEventRecord").last = record;
    emu::streams().put(stream, "cudaEventRecord", [record] {
        clock_gettime(CLOCK_MONOTONIC, &record->time);
        record->done = true;
    });
    return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    if (!e) return emu::result(cudaErrorInvalidResourceHandle);
    const std::shared_ptr<emu::Record> last = emu::live(e, "cudaEventSynchronize").last;
    emu::Streams& s = emu::streams();
    const std::lock_guard lock(s.mutex);
    s.run_until([&] { return !last || last->done; });
    return cudaSuccess;
}
inline cudaError_t cudaEventQuery(cudaEvent_t e) {
    if (!e) return emu::result(cudaErrorInvalidResourceHandle);
    const std::shared_ptr<emu::Record> last = emu::live(e, "cudaEventQuery").last;
    if (!last || last->done) return cudaSuccess;
    const std::lock_guard lock(emu::streams().mutex);
    emu::streams().step();
    return cudaErrorNotReady;
}
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
    if (!from || !to || !from->last || !to->last || ((from->flags | to->flags) & cudaEventDisableTiming))
        return emu::result(cudaErrorInvalidResourceHandle);
    if (!from->last->done || !to->last->done) return emu::result(cudaErrorNotReady);
    const timespec &begin = from->last->time, &end = to->last->time;
    *milliseconds =
        float(double(end.tv_sec - begin.tv_sec) * 1e3 + double(end.tv_nsec - begin.tv_nsec) * 1e-6);
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
    cudaStream_t stream;
    bool programmatic; // may begin before the kernel ahead of it has ended, and waits for that itself
    Config(dim3 grid, dim3 block, size_t dynamic_shared = 0, cudaStream_t stream = nullptr,
           bool programmatic = false)
        : grid(grid), block(block), dynamic_shared(dynamic_shared), stream(stream),
          programmatic(programmatic) {}
};

inline void start(const char* name, const Config& c, const void* kernel, void (*body)(const void*),
                  const std::shared_ptr<const void>& arguments) {
    const dim3 g = c.grid, b = c.block;
    const bool fits = g.x && g.y && g.z && g.x <= 0x7fffffff && g.y <= 65535 && g.z <= 65535 && b.x && b.y &&
                      b.z && b.x <= 1024 && b.y <= 1024 && b.z <= 64 && b.x * b.y * b.z <= max_threads;
    if (!fits) return void(result(cudaErrorInvalidConfiguration));
    const size_t limit = shared_limits().of(kernel);
    if (c.dynamic_shared > limit) return void(result(cudaErrorInvalidValue));
    // Static shared memory counts, too, and is known when its declaration is reached.
    if (!c.stream && streams().breaks_capture()) return void(result(cudaErrorStreamCaptureUnsupported));
    if (streams().captured(c.stream, name, [=](cudaStream_t again) {
            start(name, {g, b, c.dynamic_shared, again, c.programmatic}, kernel, body, arguments);
        }))
        return;
    Launch launch{name, g, b, c.dynamic_shared, limit, body, arguments.get(), c.programmatic, false, 0};
    if (const char* order = getenv("EMU_ORDER")) {
        static std::atomic<uint64_t> launches{0};
        if (strncmp(order, "random", 6) != 0 || (order[6] && order[6] != ':'))
            die("EMU_ORDER is '%s', expected 'random' or 'random:seed'", order);
        launch.random = true;
        launch.seed = Random{strtoull(order[6] ? order + 7 : "1", nullptr, 10) + (launches++ << 32)}.next();
    }
    streams().put(c.stream, name, [launch, arguments] { run_grid(launch); });
}

// kernel<<<config>>>(arguments): they are converted to the kernel's parameters here, once.
template <class... P> void launch(const char* name, const Config& config, void (*kernel)(P...),
                                  std::type_identity_t<P>... arguments) {
    typedef std::tuple<void (*)(P...), P...> Call;
    const auto call = std::make_shared<const Call>(kernel, arguments...);
    const auto body = [](const void* call) {
        std::apply([](void (*f)(P...), const P&... a) { f(a...); }, *static_cast<const Call*>(call));
    };
    start(name, config, reinterpret_cast<const void*>(kernel), body, call);
}

// The same for a kernel template whose parameters follow from the arguments; its limit is 48 KiB.
template <class F, class... A>
void launch_deduced(const char* name, const Config& config, F kernel, A... arguments) {
    typedef std::tuple<F, A...> Call;
    const auto call = std::make_shared<const Call>(kernel, arguments...);
    const auto body = [](const void* call) {
        std::apply([](const F& f, const A&... a) { f(a...); }, *static_cast<const Call*>(call));
    };
    start(name, config, nullptr, body, call);
}

} // namespace emu

enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
union cudaLaunchAttributeValue {
    int programmaticStreamSerializationAllowed;
};
struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute* attrs;
    unsigned numAttrs;
};
template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* c, void (*kernel)(P...), A&&... arguments) {
    bool programmatic = false;
    for (unsigned i = 0; i < c->numAttrs; i++) {
        if (c->attrs[i].id != cudaLaunchAttributeProgrammaticStreamSerialization)
            return emu::result(cudaErrorInvalidValue);
        programmatic = c->attrs[i].val.programmaticStreamSerializationAllowed;
    }
    const cudaError_t before = std::exchange(emu::last_error, cudaSuccess);
    emu::launch("cudaLaunchKernelEx", {c->gridDim, c->blockDim, c->dynamicSmemBytes, c->stream, programmatic},
                kernel, std::forward<A>(arguments)...);
    const cudaError_t error = emu::last_error;
    if (error == cudaSuccess) emu::last_error = before;
    return error;
}

// ---- graphs ---------------------------------------------------------------------------------------------

enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal = 0, cudaStreamCaptureModeThreadLocal = 1 };
typedef struct CUgraphExec_st {
    CUgraph_st graph;
} * cudaGraphExec_t;

inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    emu::Streams& s = emu::streams();
    const std::lock_guard lock(s.mutex);
    if (!stream) return emu::result(cudaErrorStreamCaptureUnsupported); // the legacy stream
    if (s.live(stream, "cudaStreamBeginCapture").capture) return emu::result(cudaErrorIllegalState);
    stream->capture = new CUgraph_st;
    return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    emu::Streams& s = emu::streams();
    const std::lock_guard lock(s.mutex);
    *graph = nullptr;
    if (!stream || !stream->capture) return emu::result(cudaErrorIllegalState);
    *graph = std::exchange(stream->capture, nullptr);
    if (!(*graph)->broken) return cudaSuccess;
    delete std::exchange(*graph, nullptr);
    return emu::result(cudaErrorStreamCaptureInvalidated);
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long = 0) {
    if (!graph) return emu::result(cudaErrorInvalidValue);
    return *exec = new CUgraphExec_st{*graph}, cudaSuccess;
}
// Its nodes check again what was true when they were captured: memory that has been freed is refused.
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    if (!exec) return emu::result(cudaErrorInvalidValue);
    const cudaError_t before = std::exchange(emu::last_error, cudaSuccess);
    for (const auto& node : exec->graph.nodes) node(stream);
    const cudaError_t error = emu::last_error;
    if (error == cudaSuccess) emu::last_error = before;
    return error;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return delete exec, cudaSuccess; }

template <class F> cudaError_t cudaFuncSetAttribute(F* kernel, cudaFuncAttribute attribute, int value) {
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
        size_t(value) > emu::shared_opt_in())
        return emu::result(cudaErrorInvalidValue);
    std::lock_guard lock(emu::shared_limits().mutex);
    emu::shared_limits().bytes[reinterpret_cast<const void*>(kernel)] = size_t(value);
    return cudaSuccess;
}
struct cudaFuncAttributes {
    size_t sharedSizeBytes, constSizeBytes, localSizeBytes;
    int maxThreadsPerBlock, numRegs, ptxVersion, binaryVersion, cacheModeCA, maxDynamicSharedSizeBytes;
};
// Registers are not known here: the most that a thread has.
template <class F> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, F* kernel) {
    *a = {};
    a->maxThreadsPerBlock = int(emu::max_threads);
    a->numRegs = 255;
    a->ptxVersion = a->binaryVersion = emu::compute_capability();
    a->maxDynamicSharedSizeBytes = int(emu::shared_limits().of(reinterpret_cast<const void*>(kernel)));
    return cudaSuccess;
}
// By threads and shared memory; nor are registers here.
template <class F> cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, F*, int threads,
                                                                             size_t dynamic_shared) {
    if (threads < 1) return emu::result(cudaErrorInvalidValue);
    const size_t by_threads = threads > 1024 ? 0 : 2048 / size_t((threads + 31) / 32 * 32);
    const size_t by_shared = (228 << 10) / (dynamic_shared + emu::shared_window);
    *blocks = int(std::min({by_threads, by_shared, size_t(32)}));
    return cudaSuccess;
}
