// train_moex: trains MoE-X language models (Yang et al., arXiv 2503.07639) on an NVIDIA GPU, from token
// shards to checkpoints. Everything that happens on the GPU stands in this file, to be read from top to
// bottom; what it shares with the plain C++ reference of dev/cpu (flags, files, the loop over the steps) is
// in dev/run.
//
//   1. Numbers, checks, and what a thread, a warp and a launch are made of
//   2. Kernels, each forward beside its backward, in the order a token meets them:
//        LayerNorm . embedding . bias . attention . expert statistics . router . load balance . dispatch .
//        scaled deviations . experts . GEGLU, SoLU . combine . classifier . update . products of a tile .
//        experts by hand
//   3. Matrix products (cuBLASLt)
//   4. Several GPUs
//   5. The model's memory
//   6. Forward
//   7. Backward
//   8. Update
//   9. The choices that are measured, the training step and main
//
// Shapes: B rows of T positions are N = B*T tokens of C channels; NH heads of HS = C/NH channels; E experts
// of D units, K of them per token. A token's visit to one of its experts is a slot; the N*K slots are sorted
// by expert. V tokens in the vocabulary. Outputs come first, then inputs, then sizes; what belongs to a layer
// comes as a view of it: Norm, Linear, Router, Experts. Gradients of parameters are added to, in fp32 (a
// micro-batch's of b_enc may come from the library rounded to floatX); gradients of activations are written,
// but for the residual stream's, which is added to. Every sum has one order, so two runs give the same bits:
// partial sums go to memory and are then added up in turn, and only integers are counted with atomics.
#include "dev/lib/stop.h"
#include "dev/run/sharing.h"
#include "dev/run/train_run.h"
#include <array>
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <functional>
#include <memory>
#ifdef MOEX_NCCL
#include <nccl.h>
#endif

// ---------------------------------------------------------------------------------------------------------
// 1. Numbers, checks, and what a thread, a warp and a launch are made of

// Weights and activations; PRECISION=FP32 at build time makes them float. Statistics, scores, sums, gradients
// of parameters and the optimizer are fp32 in either build.
#ifdef PRECISION_FP32
typedef float floatX;
constexpr cudaDataType_t floatX_type = CUDA_R_32F;
constexpr const char* precision_name = "fp32";
#else
typedef __nv_bfloat16 floatX;
constexpr cudaDataType_t floatX_type = CUDA_R_16BF;
constexpr const char* precision_name = "bf16";
#endif

inline void cuda_check_at(cudaError_t error, const char* file, int line) {
    if (error != cudaSuccess) fail("%s:%d: CUDA: %s", file, line, cudaGetErrorString(error));
}
inline void cublas_check_at(cublasStatus_t status, const char* file, int line) {
    if (status != CUBLAS_STATUS_SUCCESS) fail("%s:%d: cuBLASLt: status %d", file, line, int(status));
}
#define cuda_check(call) cuda_check_at(call, __FILE__, __LINE__)
#define cublas_check(call) cublas_check_at(call, __FILE__, __LINE__)

// Blocks that cover `items` things, `per_block` each.
inline unsigned blocks_for(size_t items, size_t per_block) {
    const size_t blocks = (items + per_block - 1) / per_block;
    if (blocks > 0x7fffffff)
        fail("a kernel over %zu items is too large to launch: a smaller --batch would help", items);
    return unsigned(blocks);
}

constexpr size_t round_up(size_t x, size_t multiple) { return (x + multiple - 1) / multiple * multiple; }

constexpr int warp_size = 32;

// Grids and chunks are sized for the 132 multiprocessors of an H100, and by the model and the batch, never by
// the card that is there: the order of every sum, and so its bits, are then those of any card.
constexpr size_t multiprocessors = 132;
[[maybe_unused]] constexpr size_t cache_bytes = 16 << 20; // of the L2 cache, what a kernel counts on
constexpr size_t layernorm_blocks = 3 * multiprocessors, count_blocks = 8 * multiprocessors;
// Parts that a sum over N tokens is cut into: more tokens make more parts, so that no part grows long.
constexpr size_t part_tokens = 128, most_parts = 512;
constexpr size_t token_parts(size_t N) { return std::clamp<size_t>(N / part_tokens, 1, most_parts); }

// A thread moves 16 bytes of activations at once, the widest access there is: `pack` numbers, fp32 while it
// has them. All channel counts are multiples of it. Arrays in fp32 are read and written by the same channels.
constexpr int pack = 16 / sizeof(floatX);

struct Pack {
    float v[pack];
    __device__ float& operator[](int i) { return v[i]; }
    __device__ float operator[](int i) const { return v[i]; }
    __device__ void operator+=(const Pack& other) {
#pragma unroll
        for (int i = 0; i < pack; i++) v[i] += other.v[i];
    }
};
__device__ inline Pack operator*(float factor, Pack x) {
#pragma unroll
    for (int i = 0; i < pack; i++) x[i] *= factor;
    return x;
}
template <class T> __device__ inline Pack load_pack(const T* p) {
    uint4 bytes[pack * sizeof(T) / 16];
    Pack v;
#pragma unroll
    for (size_t i = 0; i < sizeof bytes / 16; i++) bytes[i] = ((const uint4*)p)[i];
#pragma unroll
    for (int i = 0; i < pack; i++) v[i] = float(((const T*)bytes)[i]);
    return v;
}
template <class T> __device__ inline void store_pack(T* p, const Pack& v) {
    uint4 bytes[pack * sizeof(T) / 16];
#pragma unroll
    for (int i = 0; i < pack; i++) ((T*)bytes)[i] = T(v[i]);
#pragma unroll
    for (size_t i = 0; i < sizeof bytes / 16; i++) ((uint4*)p)[i] = bytes[i];
}

// The sum, maximum over a warp, or over as many neighbouring lanes of it, in every one of them.
template <int lanes = warp_size> __device__ inline float warp_sum(float x) {
#pragma unroll
    for (int offset = lanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffff, x, offset);
    return x;
}
template <int lanes = warp_size> __device__ inline float warp_max(float x) {
#pragma unroll
    for (int offset = lanes / 2; offset > 0; offset /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, offset));
    return x;
}
// The sums over a warp of 32 numbers that each lane has: number i arrives in lane i. Half of what is left is
// handed over at a time, so that it takes 31 shuffles instead of the 160 of 32 calls of warp_sum(), whose
// bits it has. rows * columns = 32; x is used up.
template <int half = warp_size / 2, int rows, int columns>
__device__ __forceinline__ float sums_by_lane(float (&x)[rows][columns]) {
    static_assert(rows * columns == warp_size && columns >= 2);
    const bool upper = threadIdx.x & half;
#pragma unroll
    for (int i = 0; i < half; i++) {
        const int j = i + half;
        const float low = x[i / columns][i % columns], high = x[j / columns][j % columns];
        x[i / columns][i % columns] =
            (upper ? high : low) + __shfl_xor_sync(0xffffffff, upper ? low : high, half);
    }
    if constexpr (half > 1) return sums_by_lane<half / 2>(x);
    return x[0][0];
}
// The sum over a block of `threads`, a power of two, in thread 0.
template <int threads, class T> __device__ inline T block_sum(T x) {
    __shared__ T sums[threads];
    sums[threadIdx.x] = x;
    for (int half = threads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (int(threadIdx.x) < half) sums[threadIdx.x] = x += sums[threadIdx.x + half];
    }
    return x; // not sums[0], which other threads would read while thread 0 writes it
}

// A block of GPU memory, its contents undefined: a kernel that reads what none has written can so be found.
template <class T> struct Block {
    T* data = nullptr;
    size_t count = 0;
    explicit Block(size_t count = 0) : count(count) {
        if (!count) return;
        const cudaError_t error = cudaMalloc(&data, count * sizeof(T));
        if (error == cudaErrorMemoryAllocation) {
            cudaGetLastError();
            fail("the GPU has no block of %s left: a smaller --batch or --recompute 1 or 2 would help",
                 human_bytes(double(count) * sizeof(T)).c_str());
        }
        cuda_check(error);
    }
    Block(Block&& other) noexcept
        : data(std::exchange(other.data, nullptr)), count(std::exchange(other.count, 0)) {}
    Block& operator=(Block&& other) noexcept {
        std::swap(data, other.data);
        std::swap(count, other.count);
        return *this;
    }
    ~Block() { cudaFree(data); }

    void zero() const { cuda_check(cudaMemset(data, 0, count * sizeof(T))); }
    void upload(const T* from, size_t n) const {
        cuda_check(cudaMemcpy(data, from, n * sizeof(T), cudaMemcpyHostToDevice));
    }
    void download(T* to, size_t n) const {
        cuda_check(cudaMemcpy(to, data, n * sizeof(T), cudaMemcpyDeviceToHost));
    }
};

// What a micro-batch adds up on the GPU, and a step over its micro-batches; the host reads a step's, once.
struct Totals {
    double loss, aux;
    unsigned long long active; // units that fired, over all layers
    double norm;               // of the gradient: a step's
    unsigned long long stop;   // the signal that asked to stop, 0 for none
    // A step whose totals are not finite changes nothing; the host will say so.
    __device__ bool finite() const { return std::isfinite(norm + loss + aux); }
};

// ---------------------------------------------------------------------------------------------------------
// 2. Kernels
// ---------------------------------------------------------------------------------------------------------
// Partial sums: the second half of every sum over tokens, in the order of the parts.

// Up to three sums side by side: out[i] (G,count) (+)= sum over parts of partial (G,parts,stride), of which
// sum i has the numbers from i*count on; out[i] may be null.
struct SumsOut {
    float* out[3];
};
constexpr int sum_rows = 32; // parts that a block reads at a time

__global__ void __launch_bounds__(warp_size* sum_rows)
    sum_partials_kernel(SumsOut sums_out, const float* partial, size_t parts, size_t stride, size_t count,
                        bool accumulate) {
    __shared__ float sums[sum_rows][warp_size + 1];
    float* out = blockIdx.z == 0 ? sums_out.out[0] : blockIdx.z == 1 ? sums_out.out[1] : sums_out.out[2];
    if (!out) return;
    const size_t column = blockIdx.x * size_t(warp_size) + threadIdx.x;
    const float* group = partial + blockIdx.y * parts * stride + blockIdx.z * count;
    float sum = 0;
    if (column < count)
        for (size_t part = threadIdx.y; part < parts; part += sum_rows) sum += group[part * stride + column];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= count) return;
    for (int i = 1; i < sum_rows; i++) sum += sums[i][threadIdx.x];
    float* to = out + blockIdx.y * count + column;
    *to = accumulate ? *to + sum : sum;
}

void sum_partials(SumsOut out, const float* partial, size_t groups, size_t parts, size_t stride, size_t count,
                  bool accumulate, cudaStream_t stream) {
    const unsigned sums = out.out[2] ? 3 : out.out[1] ? 2 : 1;
    const dim3 grid(blocks_for(count, warp_size), unsigned(groups), sums);
    sum_partials_kernel<<<grid, dim3(warp_size, sum_rows), 0, stream>>>(out, partial, parts, stride, count,
                                                                        accumulate);
    cuda_check(cudaGetLastError());
}

// ---------------------------------------------------------------------------------------------------------
// LayerNorm: out = weight * norm + bias, norm = (x - mean) * rstd, rstd = 1 / sqrt(var + 1e-5) over the C
// channels. It is always fused with what makes its input, so that a row of the residual stream is normalised
// while it is at hand: the embedding, a residual addition, or the combination of the experts.
//
// One warp makes one row, `run_channels` of it at a time. It keeps the row in shared memory as the numbers
// that are also stored, for the passes over it; a lane reads only what it wrote itself, without a barrier.
constexpr int run_channels = warp_size * pack;

// One LayerNorm of the model and the batch that goes through it.
struct Norm {
    floatX* out;                 // (N,C)
    float *mean, *rstd;          // (N) (N)
    const floatX *weight, *bias; // (C) (C)
    float *dweight, *dbias;      // (C) (C)
    size_t N;
    int C;
};

__device__ inline float rstd_of(float squares, int C) { return 1 / sqrtf(squares / C + 1e-5f); }
__device__ inline float normalized(float x, float mean, float rstd, float weight, float bias) {
    return (x - mean) * rstd * weight + bias;
}

constexpr size_t shared_bytes = 48 << 10; // what every GPU gives a block without asking

inline int row_warps(size_t bytes_per_row) {
    return int(std::clamp<size_t>(shared_bytes / bytes_per_row, 1, 8));
}

// out (N,C) = the rows that `make` makes, normalised: make(n, c) is the pack of row n that begins at channel
// c. out may be null.
template <class Make> __global__ void rows_layernorm_kernel(floatX* out, Norm norm, Make make) {
    extern __shared__ uint4 shared[];
    const int warp = threadIdx.x / warp_size, lane = threadIdx.x % warp_size, C = norm.C;
    const size_t n = blockIdx.x * size_t(blockDim.x / warp_size) + warp;
    if (n >= norm.N) return;
    floatX* row = (floatX*)shared + warp * C;
    float sum = 0, squares = 0;
    for (int c = lane * pack; c < C; c += run_channels) {
        store_pack(row + c, make(n, c));
        const Pack v = load_pack(row + c); // as it is stored
#pragma unroll
        for (int i = 0; i < pack; i++) sum += v[i];
        if (out) store_pack(out + n * C + c, v);
    }
    const float mean = warp_sum(sum) / C;
    for (int c = lane * pack; c < C; c += run_channels) {
        const Pack v = load_pack(row + c);
#pragma unroll
        for (int i = 0; i < pack; i++) squares += (v[i] - mean) * (v[i] - mean);
    }
    const float rstd = rstd_of(warp_sum(squares), C);
    for (int c = lane * pack; c < C; c += run_channels) {
        const Pack weight = load_pack(norm.weight + c), bias = load_pack(norm.bias + c);
        Pack v = load_pack(row + c);
#pragma unroll
        for (int i = 0; i < pack; i++) v[i] = normalized(v[i], mean, rstd, weight[i], bias[i]);
        store_pack(norm.out + n * C + c, v);
    }
    if (lane > 0) return;
    norm.mean[n] = mean;
    norm.rstd[n] = rstd;
}

template <class Make> void rows_layernorm(floatX* out, const Norm& norm, Make make, cudaStream_t stream) {
    const size_t bytes = norm.C * sizeof(floatX);
    const int warps = row_warps(bytes);
    rows_layernorm_kernel<<<blocks_for(norm.N, warps), warps * warp_size, warps * bytes, stream>>>(out, norm,
                                                                                                   make);
    cuda_check(cudaGetLastError());
}

// x_n + sum_k w_nk y_slot(n,k); without weights and slots x_n + sum_k y_nk.
struct MakeSum {
    const floatX *x, *y; // (N,C) (N*K,C)
    size_t K;            // may be 0
    int C;
    const float* weight = nullptr; // (N,K)
    const int* slot = nullptr;     // (N,K)
    __device__ Pack operator()(size_t n, int c) const {
        Pack v = load_pack(x + n * C + c);
#pragma unroll 2
        for (size_t nk = n * K; nk < (n + 1) * K; nk++)
            v += (weight ? weight[nk] : 1) * load_pack(y + (slot ? slot[nk] : nk) * C + c);
        return v;
    }
};

// out = x + y, normalised. y may be null; then x is normalised as it is, and out is null.
// out x y (N,C)
void residual_layernorm_forward(floatX* out, const Norm& norm, const floatX* x, const floatX* y,
                                cudaStream_t stream) {
    rows_layernorm(out, norm, MakeSum{x, y, y ? size_t(1) : 0, norm.C}, stream);
}

// A warp's sums over its rows lie in shared memory, and its lanes, whose packs of channels are side by side,
// must fall into different banks: within a run of channels that a warp takes at a time come all lanes' first
// numbers, then all lanes' second ones. Where the sum of channel c lies, and whose sum lies in a place:
__host__ __device__ constexpr int place_of_channel(int c) {
    return c / run_channels * run_channels + c % pack * warp_size + c % run_channels / pack;
}
__host__ __device__ constexpr int channel_of_place(int p) {
    return p / run_channels * run_channels + p % warp_size * pack + p % run_channels / warp_size;
}

// With dnorm = weight * dout and averages over the channels:
//   dx += rstd * (dnorm - avg(dnorm) - norm * avg(dnorm * norm))
//   dweight += sum over n of norm * dout      dbias += sum over n of dout
// dx (N,C) is the residual stream's gradient; with three sums, its own sums over n, the gradient of the bias
// of what was added to the stream before, are taken on the way. A block takes rows gridDim.x apart and sums
// per warp in shared memory: partial (blocks,sums,C).
constexpr int layernorm_sums = 3; // at most
// The sums of one warp, 72 KB, are what limits the channels of a model.
constexpr size_t most_channels = 6144;

__global__ void layernorm_backward_kernel(floatX* dx, float* partial, const floatX* dout, const floatX* x,
                                          Norm norm, int sums) {
    extern __shared__ float warp_sums[]; // (warps,sums,places)
    const int warps = blockDim.x / warp_size, warp = threadIdx.x / warp_size, lane = threadIdx.x % warp_size;
    const int C = norm.C, places = int(round_up(C, run_channels));
    float* weight_sums = warp_sums + warp * sums * places;
    float *bias_sums = weight_sums + places, *dx_sums = bias_sums + places;
    for (int p = lane; p < sums * places; p += warp_size) weight_sums[p] = 0;
    __syncwarp();
    for (size_t n = blockIdx.x * size_t(warps) + warp; n < norm.N; n += gridDim.x * size_t(warps)) {
        const float m = norm.mean[n], r = norm.rstd[n];
        float sum = 0, sum_norm = 0;
        for (int c = lane * pack; c < C; c += run_channels) {
            const Pack d = load_pack(dout + n * C + c), v = load_pack(x + n * C + c);
            const Pack w = load_pack(norm.weight + c);
#pragma unroll
            for (int i = 0; i < pack; i++) {
                sum += w[i] * d[i];
                sum_norm += w[i] * d[i] * ((v[i] - m) * r);
            }
        }
        sum = warp_sum(sum) / C;
        sum_norm = warp_sum(sum_norm) / C;
        for (int c = lane * pack; c < C; c += run_channels) {
            const Pack d = load_pack(dout + n * C + c), v = load_pack(x + n * C + c);
            const Pack w = load_pack(norm.weight + c);
            Pack g = load_pack(dx + n * C + c);
#pragma unroll
            for (int i = 0; i < pack; i++) {
                const float normed = (v[i] - m) * r;
                g[i] += r * (w[i] * d[i] - sum - normed * sum_norm);
                const int p = place_of_channel(c + i);
                weight_sums[p] += normed * d[i];
                bias_sums[p] += d[i];
                if (sums == 3) dx_sums[p] += float(floatX(g[i])); // as it is stored
            }
            store_pack(dx + n * C + c, g);
        }
    }
    __syncthreads();
    for (int p = threadIdx.x; p < sums * places; p += blockDim.x) {
        const int which = p / places, c = channel_of_place(p % places);
        if (c >= C) continue;
        float sum = 0;
        for (int i = 0; i < warps; i++) sum += warp_sums[i * sums * places + p];
        partial[(blockIdx.x * size_t(sums) + which) * C + c] = sum;
    }
}

// dsum (C) += the sums over n of dx as it is afterwards; may be null. partial: scratch (layernorm_blocks,3,C)
void layernorm_backward(floatX* dx, float* dsum, const Norm& norm, const floatX* dout, const floatX* x,
                        float* partial, cudaStream_t stream) {
    const size_t C = norm.C, sums = dsum ? 3 : 2, bytes = sums * round_up(C, run_channels) * sizeof(float);
    const int warps = row_warps(bytes);
    const unsigned blocks = unsigned(std::min<size_t>(layernorm_blocks, blocks_for(norm.N, warps)));
    layernorm_backward_kernel<<<blocks, warps * warp_size, warps * bytes, stream>>>(dx, partial, dout, x,
                                                                                    norm, int(sums));
    cuda_check(cudaGetLastError());
    sum_partials({norm.dweight, norm.dbias, dsum}, partial, 1, blocks, sums * C, C, true, stream);
}

// ---------------------------------------------------------------------------------------------------------
// Embedding: out[b,t] = wte[token[b,t]] + wpe[t], normalised by the first layer's ln_1

struct MakeEmbedding {
    const int* tokens;       // (N)
    const floatX *wte, *wpe; // (V,C) (>=T,C)
    const float* hidden_nan; // 0 or NaN, added to every number; may be null
    size_t T;
    int C;
    __device__ Pack operator()(size_t n, int c) const {
        const Pack position = load_pack(wpe + n % T * C + c);
        Pack v = load_pack(wte + size_t(tokens[n]) * C + c);
        const float hidden = hidden_nan ? *hidden_nan : 0;
#pragma unroll
        for (int i = 0; i < pack; i++) v[i] += position[i] + hidden;
        return v;
    }
};

// out (N,C)
void embedding_layernorm_forward(floatX* out, const Norm& norm, const int* tokens, const floatX* wte,
                                 const floatX* wpe, const float* hidden_nan, size_t T, cudaStream_t stream) {
    rows_layernorm(out, norm, MakeEmbedding{tokens, wte, wpe, hidden_nan, T, norm.C}, stream);
}

// *hidden becomes NaN where one of x (count) is, and is left alone otherwise. The library's relu may make 0
// of a NaN, and with it hide one among the weights of the units: the embedding adds it, so that it comes out.
__global__ void find_nan_kernel(float* hidden, const floatX* x, size_t count) {
    const size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x;
    if (i < count && float(x[i]) != float(x[i])) *hidden = NAN; // all that write write the same
}
void find_nan(float* hidden, const floatX* x, size_t count, cudaStream_t stream) {
    find_nan_kernel<<<blocks_for(count, 256), 256, 0, stream>>>(hidden, x, count);
    cuda_check(cudaGetLastError());
}

// dwte[token] += dout of every place the token stands. Where each token stands is known on the host, which
// sorts the places by token and cuts long lists into chunks; chunks are summed first, then each token's
// chunks.
struct TokenPlaces {
    int* order;       // (N) places sorted by token
    int* chunk_begin; // (chunks+1) of order; a chunk's places hold one token
    int* token;       // (distinct) the tokens
    int* token_begin; // (distinct+1) of chunks
    size_t chunks, distinct;
};
constexpr size_t places_per_chunk = 32;

// Row b of out = the sum of rows order[i] of x, i from begin[b] to begin[b+1]; with `token`, its row token[b]
// += the sum of rows i.   C channels
template <class T> __global__ void embedding_backward_kernel(float* out, const T* x, const int* begin,
                                                             const int* order, const int* token, size_t C) {
    const size_t c = (blockIdx.y * size_t(blockDim.x) + threadIdx.x) * pack;
    if (c >= C) return;
    float* to = out + size_t(token ? token[blockIdx.x] : blockIdx.x) * C + c;
    Pack sum = {};
    for (int i = begin[blockIdx.x]; i < begin[blockIdx.x + 1]; i++)
        sum += load_pack(x + size_t(order ? order[i] : i) * C + c);
    if (token) sum += load_pack(to);
    store_pack(to, sum);
}

// dwpe[t] += sum over b of dout[b,t].   dwpe (>=T,C)
__global__ void embedding_backward_positions_kernel(float* dwpe, const floatX* dout, size_t B, size_t T,
                                                    size_t C) {
    const size_t i = (blockIdx.x * size_t(blockDim.x) + threadIdx.x) * pack;
    if (i >= T * C) return;
    Pack sum = {};
    for (size_t b = 0; b < B; b++) sum += load_pack(dout + b * T * C + i);
    sum += load_pack(dwpe + i);
    store_pack(dwpe + i, sum);
}

// partial: scratch (chunks,C), at most N of them
void embedding_backward(float* dwte, float* dwpe, float* partial, const floatX* dout,
                        const TokenPlaces& places, size_t B, size_t T, size_t C, cudaStream_t stream) {
    const TokenPlaces& p = places;
    const unsigned slabs = blocks_for(C, 64 * pack), packs = blocks_for(T * C, 256 * pack);
    const dim3 chunks(unsigned(p.chunks), slabs), tokens(unsigned(p.distinct), slabs);
    embedding_backward_kernel<<<chunks, 64, 0, stream>>>(partial, dout, p.chunk_begin, p.order, nullptr, C);
    embedding_backward_kernel<<<tokens, 64, 0, stream>>>(dwte, partial, p.token_begin, nullptr, p.token, C);
    embedding_backward_positions_kernel<<<packs, 256, 0, stream>>>(dwpe, dout, B, T, C);
    cuda_check(cudaGetLastError());
}

// ---------------------------------------------------------------------------------------------------------
// Bias: its forward is an epilogue of the matrix product; its backward sums over rows.

// Of G groups of rows of x (rows,M), group g being rows begin[g] to begin[g+1], and of gridDim.y chunks of
// each: partial (G,chunks,M). A lane has `pack` columns, a warp every eighth row of the chunk.
__global__ void column_sums_kernel(float* partial, const floatX* x, const int* begin, size_t M) {
    __shared__ float sums[8][warp_size * pack];
    const int lane = threadIdx.x, warp = threadIdx.y;
    const size_t column = (blockIdx.x * size_t(warp_size) + lane) * pack;
    const size_t g = blockIdx.z, chunk = blockIdx.y, chunks = gridDim.y;
    const size_t first = begin[g], rows = begin[g + 1] - first;
    const size_t from = first + rows * chunk / chunks, to = first + rows * (chunk + 1) / chunks;
    Pack sum = {};
    if (column < M)
        for (size_t n = from + warp; n < to; n += 8) sum += load_pack(x + n * M + column);
#pragma unroll
    for (int i = 0; i < pack; i++) sums[warp][i * warp_size + lane] = sum[i];
    __syncthreads();
    if (warp > 0 || column >= M) return;
    for (int k = 1; k < 8; k++)
#pragma unroll
        for (int i = 0; i < pack; i++) sum[i] += sums[k][i * warp_size + lane];
    store_pack(partial + (g * chunks + chunk) * M + column, sum);
}

// Rows of `partial` that the sums of G groups of `rows` in all need.
inline size_t bias_parts(size_t rows, size_t G) { return std::max(token_parts(rows), G); }

// dbias (G,M) += column sums of dout by group; begin (G+1), rows in all. partial: scratch
// (bias_parts(rows,G),M)
void bias_backward(float* dbias, float* partial, const floatX* dout, const int* begin, size_t rows, size_t G,
                   size_t M, cudaStream_t stream) {
    const size_t chunks = std::max<size_t>(1, token_parts(rows) / G);
    const dim3 grid(blocks_for(M, warp_size * pack), unsigned(chunks), unsigned(G));
    column_sums_kernel<<<grid, dim3(warp_size, 8), 0, stream>>>(partial, dout, begin, M);
    cuda_check(cudaGetLastError());
    sum_partials({dbias}, partial, G, chunks, M, M, true, stream);
}

// ---------------------------------------------------------------------------------------------------------
// Causal multi-head attention
//
//   S = Q K^T / sqrt(HS), only keys <= query;   P = softmax(S);   O = P V;   lse_i = ln sum_j exp S_ij
//
//   From dO:  delta_i = dO_i . O_i   (= sum_j P_ij dP_ij, what softmax takes away)
//   P = exp(S - lse)    dP = dO V^T    dS = P (dP - delta)
//   dV = P^T dO         dQ = dS K / sqrt(HS)         dK = dS^T Q / sqrt(HS)
//
// The T x T matrices exist only as small pieces in registers (FlashAttention: Dao et al., arXiv 2205.14135,
// 2307.08691): going along a row, the sum of exponentials and the output are kept relative to the largest
// score so far and rescaled when a larger one comes. The backward pass computes P again from lse. Memory is
// O(T). Two kernels write the gradients, one by keys (dK, dV) and one by queries (dQ): S and dP are computed
// twice, but every number is the sum of one thread block, in one order, so the bits never change.
//
// Shapes: qkv dqkv (B,T,3C), a row being q, k, v of NH heads of HS each, read in place; out dout (B,T,C);
// lse delta (B,NH,T) in fp32. Positions are int (T below 2^30), offsets size_t.

constexpr float log2_e = 1.4426950408889634f;

// Where the numbers of one head are, head = b * NH + h: from position to position they lie C3 apart in qkv
// and dqkv, C apart in out and dout, 1 apart in lse and delta.
struct HeadView {
    size_t C, C3;
    size_t in, out, statistic; // of its first position: in (B,T,3C), (B,T,C), (B,NH,T)
    const floatX *q, *k, *v;
    __device__ HeadView(const floatX* qkv, unsigned head, int T, int NH, int HS)
        : C(size_t(NH) * HS), C3(3 * C), in(size_t(head / NH) * T * C3 + head % NH * HS),
          out(size_t(head / NH) * T * C + head % NH * HS), statistic(size_t(head) * T), q(qkv + in), k(q + C),
          v(k + C) {}
};

// ---------------------------------------------------------------------------------------------------------
// Attention, the plain path: fp32 arithmetic, one warp per query (forward, dQ) or per key (dK, dV). It serves
// the FP32 build and the head sizes that the tensor cores do not, and says what those kernels must compute.
// A warp takes 32 partners at a time: each lane forms the scores of one; then each lane holds every 32nd
// channel of the sums, and the partners are gone through one by one, their scores passed round by shuffles.

constexpr int plain_threads = 128;       // 4 warps: 4 rows
constexpr int plain_channels = 256 / 32; // sums held by a lane; HS <= 256

__device__ inline float dot(const floatX* a, const floatX* b, int n) {
    float sum = 0;
    for (int i = 0; i < n; i++) sum = fmaf(float(a[i]), float(b[i]), sum);
    return sum;
}

__global__ void __launch_bounds__(plain_threads)
    attention_forward_plain_kernel(floatX* out, float* lse, const floatX* qkv, size_t rows, int T, int NH,
                                   int HS) {
    const size_t warp = (size_t(blockIdx.x) * plain_threads + threadIdx.x) / 32;
    if (warp >= rows) return;
    const size_t row = rows - 1 - warp; // long rows first
    const HeadView head(qkv, unsigned(row / T), T, NH, HS);
    const int lane = threadIdx.x % 32, i = int(row % T);
    const size_t C = head.C, C3 = head.C3;
    const floatX *q = head.q + i * C3, *k = head.k, *v = head.v;
    const float scale = 1 / sqrtf(HS);
    float o[plain_channels] = {}, most = -INFINITY, sum = 0;
    for (int j0 = 0; j0 <= i; j0 += 32) {
        const int j = j0 + lane;
        const float s = j <= i ? scale * dot(q, k + j * C3, HS) : -INFINITY;
        const float new_most = fmaxf(most, warp_max(s));
        const float p = expf(s - new_most), fade = expf(most - new_most);
        most = new_most;
        sum = sum * fade + warp_sum(p);
        for (int c = 0; c < plain_channels; c++) o[c] *= fade;
        for (int key = j0; key <= min(j0 + 31, i); key++) {
            const float p_key = __shfl_sync(~0u, p, key - j0);
            for (int c = 0, d = lane; c < plain_channels; c++, d += 32)
                if (d < HS) o[c] = fmaf(p_key, float(v[key * C3 + d]), o[c]);
        }
    }
    for (int c = 0, d = lane; c < plain_channels; c++, d += 32)
        if (d < HS) out[head.out + i * C + d] = floatX(o[c] / sum);
    if (lane == 0) lse[row] = most + logf(sum);
}

// dQ of one query, and delta, which the keys' kernel reads afterwards
__global__ void __launch_bounds__(plain_threads)
    attention_backward_dq_plain_kernel(floatX* dqkv, float* delta, const floatX* dout, const floatX* out,
                                       const float* lse, const floatX* qkv, size_t rows, int T, int NH,
                                       int HS) {
    const size_t warp = (size_t(blockIdx.x) * plain_threads + threadIdx.x) / 32;
    if (warp >= rows) return;
    const size_t row = rows - 1 - warp;
    const HeadView head(qkv, unsigned(row / T), T, NH, HS);
    const int lane = threadIdx.x % 32, i = int(row % T);
    const size_t C = head.C, C3 = head.C3;
    const floatX *q = head.q + i * C3, *k = head.k, *v = head.v;
    const floatX *d_o = dout + head.out + i * C, *o = out + head.out + i * C;
    const float scale = 1 / sqrtf(HS), lse_i = lse[row];
    float dq[plain_channels] = {}, delta_i = 0;
    for (int d = lane; d < HS; d += 32) delta_i = fmaf(float(d_o[d]), float(o[d]), delta_i);
    delta_i = warp_sum(delta_i);
    for (int j0 = 0; j0 <= i; j0 += 32) {
        const int j = j0 + lane;
        float ds = 0;
        if (j <= i) {
            const float p = expf(scale * dot(q, k + j * C3, HS) - lse_i);
            ds = p * (dot(d_o, v + j * C3, HS) - delta_i);
        }
        for (int key = j0; key <= min(j0 + 31, i); key++) {
            const float ds_key = __shfl_sync(~0u, ds, key - j0);
            for (int c = 0, d = lane; c < plain_channels; c++, d += 32)
                if (d < HS) dq[c] = fmaf(ds_key, float(k[key * C3 + d]), dq[c]);
        }
    }
    for (int c = 0, d = lane; c < plain_channels; c++, d += 32)
        if (d < HS) dqkv[head.in + i * C3 + d] = floatX(scale * dq[c]);
    if (lane == 0) delta[row] = delta_i;
}

// dK and dV of one key: the queries that see it are its own and the later ones
__global__ void __launch_bounds__(plain_threads)
    attention_backward_dkv_plain_kernel(floatX* dqkv, const floatX* dout, const float* lse,
                                        const float* delta, const floatX* qkv, size_t rows, int T, int NH,
                                        int HS) {
    const size_t warp = (size_t(blockIdx.x) * plain_threads + threadIdx.x) / 32;
    if (warp >= rows) return;
    const HeadView head(qkv, unsigned(warp / T), T, NH, HS); // the first keys have the most queries
    const int lane = threadIdx.x % 32, j = int(warp % T);
    const size_t C = head.C, C3 = head.C3;
    const floatX *q = head.q, *k = head.k + j * C3, *v = head.v + j * C3, *d_o = dout + head.out;
    const float *lse_0 = lse + head.statistic, *delta_0 = delta + head.statistic; // of the first query
    const float scale = 1 / sqrtf(HS);
    float dk[plain_channels] = {}, dv[plain_channels] = {};
    for (int i0 = j; i0 < T; i0 += 32) {
        const int i = i0 + lane;
        float p = 0, ds = 0;
        if (i < T) {
            p = expf(scale * dot(q + i * C3, k, HS) - lse_0[i]);
            ds = p * (dot(d_o + i * C, v, HS) - delta_0[i]);
        }
        for (int query = i0; query < min(i0 + 32, T); query++) {
            const float p_query = __shfl_sync(~0u, p, query - i0),
                        ds_query = __shfl_sync(~0u, ds, query - i0);
            for (int c = 0, d = lane; c < plain_channels; c++, d += 32)
                if (d < HS) {
                    dv[c] = fmaf(p_query, float(d_o[query * C + d]), dv[c]);
                    dk[c] = fmaf(ds_query, float(q[query * C3 + d]), dk[c]);
                }
        }
    }
    floatX* dk_row = dqkv + head.in + C + j * C3;
    for (int c = 0, d = lane; c < plain_channels; c++, d += 32)
        if (d < HS) {
            dk_row[d] = floatX(scale * dk[c]);
            dk_row[C + d] = floatX(dv[c]);
        }
}

inline unsigned plain_blocks(size_t B, size_t T, size_t C, size_t NH) {
    if (C / NH > 32 * plain_channels)
        fail("attention with heads of %zu channels: expected at most %d (more heads, or fewer channels)",
             C / NH, 32 * plain_channels);
    return blocks_for(B * NH * T, plain_threads / 32);
}

// out (B,T,C), lse (B,NH,T), qkv (B,T,3C)
inline void attention_forward_plain(floatX* out, float* lse, const floatX* qkv, size_t B, size_t T, size_t C,
                                    size_t NH, cudaStream_t stream) {
    const unsigned blocks = plain_blocks(B, T, C, NH);
    attention_forward_plain_kernel<<<blocks, plain_threads, 0, stream>>>(out, lse, qkv, B * NH * T, int(T),
                                                                         int(NH), int(C / NH));
    cuda_check(cudaGetLastError());
}

// dqkv (B,T,3C), delta (B,NH,T) scratch, dout out (B,T,C), lse (B,NH,T), qkv (B,T,3C)
inline void attention_backward_plain(floatX* dqkv, float* delta, const floatX* dout, const floatX* out,
                                     const float* lse, const floatX* qkv, size_t B, size_t T, size_t C,
                                     size_t NH, cudaStream_t stream) {
    const unsigned blocks = plain_blocks(B, T, C, NH);
    attention_backward_dq_plain_kernel<<<blocks, plain_threads, 0, stream>>>(
        dqkv, delta, dout, out, lse, qkv, B * NH * T, int(T), int(NH), int(C / NH));
    cuda_check(cudaGetLastError());
    attention_backward_dkv_plain_kernel<<<blocks, plain_threads, 0, stream>>>(
        dqkv, dout, lse, delta, qkv, B * NH * T, int(T), int(NH), int(C / NH));
    cuda_check(cudaGetLastError());
}

// ---------------------------------------------------------------------------------------------------------
// Copies from global to shared memory that go on while a block computes

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return uint32_t(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes from global to shared memory without passing through registers and without waiting; of
// them only the first valid_bytes are read, the rest becomes zero. Both addresses are multiples of 16.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, int valid_bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid_bytes)
                 : "memory");
}

// Copies are counted in groups: commit closes one, wait<N> returns when at most the N latest of this thread's
// groups are still under way. A barrier then shows the data to the other threads.
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int N> __device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#ifndef PRECISION_FP32 // from here to the launchers floatX is __nv_bfloat16
// ---------------------------------------------------------------------------------------------------------
// Tensor cores: the instructions that the attention kernels are made of, by name
//
// A tensor core multiplies small matrices held in the registers of a warp, each lane holding a few elements
// of each. With g = lane / 4 and t = lane % 4, the unit of everything below is the 8 x 8 matrix of bf16 of
// which a lane holds, in one 32-bit register, the elements (row g, columns 2t and 2t + 1), the lower column
// in the lower half.

// D = A B + D, A (16,16) and B (16,8) in bf16, D (16,8) in fp32.
//
//            columns 0-7   8-15                 B is held by columns:          columns 0-7
//   A  rows 0-7     a[0]   a[2]                 b0: (rows 2t, 2t+1, column g)  D rows 0-7    d[0] d[1]
//      rows 8-15    a[1]   a[3]                 b1: the same, rows + 8         D rows 8-15   d[2] d[3]
//
// so b0 and b1 are 8 x 8 matrices of B transposed, and a lane's d[0] d[1] (d[2] d[3]) stand at row g (g + 8),
// columns 2t, 2t + 1: where A has its elements. What one product leaves is, rounded, an operand of the next.
__device__ __forceinline__ void mma_m16n8k16(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices from shared memory. A row is 16 contiguous bytes; lane l gives the address of row
// l % 8 of matrix l / 8, and every lane receives its two elements of each matrix. With .trans they are
// elements of the matrix transposed.
__device__ __forceinline__ void ldmatrix_x4(uint32_t r[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t r[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// Copies 4 bytes, otherwise like copy_async_16().
__device__ __forceinline__ void copy_async_4(void* shared, const void* global, int valid_bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid_bytes)
                 : "memory");
}

constexpr float ln_2 = 0.6931471805599453f;

// 2^x in one instruction, relative error 2^-22; 0 for -infinity
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Two floats rounded to bf16 in one register, the first in the lower half
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &pair, 4);
    return bits;
}

// ---------------------------------------------------------------------------------------------------------
// Attention, the tensor core path: bf16, heads of 32, 64 or 128
//
// Four warps share a thread block. The block owns 64 or 128 rows (queries, or keys for dK and dV), each warp
// M times 16 of them, and streams the other side through shared memory in tiles of TILE rows, STAGES of them
// on their way at any time. A warp keeps its sums, (16 M, HS) in fp32, in registers for the whole pass:
// registers are what limits M, and M is how often a value read from shared memory is used.
//
// A tile (rows, HS) has rows of HS + 8 numbers. Shared memory serves 128 bytes at once if they lie in
// different banks; with the 8 numbers between, the 8 rows of 16 bytes that ldmatrix reads together do, and it
// takes one pass and not eight.

constexpr int attention_warps = 4, attention_threads = 32 * attention_warps;

template <int HS> constexpr int tile_stride = HS + pack;

// Where a lane reads its row of any 16 x 16 block, as bytes of shared memory. The four 8 x 8 matrices of the
// block go down the left half, then down the right: the registers of an operand A, and, read with .trans from
// a tile of B, b0 b1 of its first 8 columns and then of the second.
template <int HS> __device__ __forceinline__ uint32_t lane_address(const floatX* tile) {
    const int lane = threadIdx.x % 32;
    return shared_address(tile + lane % 16 * tile_stride<HS> + lane / 16 * 8);
}

// The same, to the right along the upper half, then the lower: of a tile of B transposed, b0 b1 of the first
// 8 columns of B (rows of the tile), then of the second. A product wants b0 b1 in neighbouring registers.
template <int HS> __device__ __forceinline__ uint32_t lane_address_transposed(const floatX* tile) {
    const int lane = threadIdx.x % 32;
    return shared_address(tile + (lane / 16 * 8 + lane % 8) * tile_stride<HS> + lane / 8 % 2 * 8);
}

// a = 16 columns of the operand A (16 M, HS)
template <int HS, int M> __device__ __forceinline__ void load_operand(uint32_t a[M][4], uint32_t address) {
#pragma unroll
    for (int m = 0; m < M; m++) ldmatrix_x4(a[m], address + m * 16 * tile_stride<HS> * sizeof(floatX));
}

// c (16 M, N) += a (16 M, 16) times 16 columns of the tile (N, HS) transposed
template <int HS, int M, int N> __device__ __forceinline__ void
tile_multiply_transposed(float c[M][N / 8][4], const uint32_t a[M][4], uint32_t tile) {
#pragma unroll
    for (int n = 0; n < N; n += 16) {
        uint32_t b[4];
        ldmatrix_x4(b, tile + n * tile_stride<HS> * sizeof(floatX));
#pragma unroll
        for (int m = 0; m < M; m++) {
            mma_m16n8k16(c[m][n / 8], a[m], b[0], b[1]);
            mma_m16n8k16(c[m][n / 8 + 1], a[m], b[2], b[3]);
        }
    }
}

// c (16 M, HS) += s (16 M, N), rounded to bf16, times the tile (N, HS)
template <int HS, int M, int N> __device__ __forceinline__ void
tile_multiply(float c[M][HS / 8][4], const float s[M][N / 8][4], uint32_t tile) {
#pragma unroll
    for (int k = 0; k < N; k += 16) {
        uint32_t a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++)
            for (int e = 0; e < 4; e++) {
                const float* pair = s[m][k / 8 + e / 2] + e % 2 * 2;
                a[m][e] = pack_bf16(pair[0], pair[1]);
            }
#pragma unroll
        for (int n = 0; n < HS; n += 16) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, tile + (k * tile_stride<HS> + n) * sizeof(floatX));
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_m16n8k16(c[m][n / 8], a[m], b[0], b[1]);
                mma_m16n8k16(c[m][n / 8 + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// Calls f(m, n, e) for each element that a lane holds of a matrix (16 M, N): it is [m][n][e], and stands at
// row 16 m + e / 2 * 8, column 8 n + e % 2 from the lane's first.
template <int M, int N, class F> __device__ __forceinline__ void each_element(F f) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) f(m, n, e);
}

// -infinity where the key comes after the query; s (16 M queries, N keys), or of (16 M keys, N queries) when
// TRANSPOSED. row and column are the positions of s[0][0] in the sequence.
template <int M, int N, bool TRANSPOSED>
__device__ __forceinline__ void hide_future(float s[M][N / 8][4], int row, int column) {
    const int lane = threadIdx.x % 32;
    const int ahead = column + lane % 4 * 2 - row - lane / 4; // of the lane's first element: column - row
    each_element<M, N>([&](int m, int n, int e) {
        const int key_ahead = ahead + 8 * n + e % 2 - 16 * m - e / 2 * 8;
        if (TRANSPOSED ? key_ahead < 0 : key_ahead > 0) s[m][n][e] = -INFINITY;
    });
}

// Starts copying a tile of ROWS rows of one head; rows from `valid` on become zero and are not read.
template <int HS, int ROWS>
__device__ __forceinline__ void load_tile(floatX* tile, const floatX* rows, size_t row_stride, int valid) {
    constexpr int packs = HS / pack, step = attention_threads / packs; // 16 bytes each; rows at once
    const int row = threadIdx.x / packs, column = threadIdx.x % packs * pack;
    tile += row * tile_stride<HS> + column;
    rows += row * row_stride + column;
#pragma unroll
    for (int i = 0; i < ROWS; i += step) {
        copy_async_16(tile + i * tile_stride<HS>, rows, row + i < valid ? 16 : 0);
        rows += step * row_stride;
    }
}

// Writes a warp's sums (16 M, HS) to the first `valid` rows of one head. They go by way of `staging`, rows of
// shared memory that only this warp uses, to be written 16 bytes at a time.
template <int HS, int M> __device__ __forceinline__ void
store_rows(floatX* rows, size_t row_stride, int valid, floatX* staging, const float c[M][HS / 8][4]) {
    const int lane = threadIdx.x % 32;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < HS / 8; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = 16 * m + 8 * half + lane / 4, column = 8 * n + lane % 4 * 2;
                const uint32_t pair = pack_bf16(c[m][n][2 * half], c[m][n][2 * half + 1]);
                *(uint32_t*)(staging + row * tile_stride<HS> + column) = pair;
            }
    __syncwarp();
    constexpr int packs = HS / pack;
#pragma unroll
    for (int i = 0; i < M * 16 * packs / 32; i++) {
        const int row = (i * 32 + lane) / packs, column = lane % packs * pack;
        if (row < valid)
            *(uint4*)(rows + row * row_stride + column) =
                *(const uint4*)(staging + row * tile_stride<HS> + column);
    }
}

// The sizes of a call, and the order of work. A head has `blocks` thread blocks, of which number 0 is the
// longest; to end together the long ones must start first. But a head's tiles should be read by all its
// blocks while they are in the L2 cache, so heads go in groups that fit there, and within a group the longest
// blocks of all heads go first.
struct AttentionWork {
    int T, NH;
    unsigned blocks, heads, group; // of a head, of ROWS rows each; B * NH; heads
    AttentionWork(size_t B, size_t T, size_t NH, size_t HS, size_t rows_of_block)
        : T(int(T)), NH(int(NH)), blocks(blocks_for(T, rows_of_block)), heads(blocks_for(B * NH, 1)) {
        const size_t streamed = 2 * T * HS * sizeof(floatX); // two matrices of a head
        group = unsigned(std::max<size_t>(1, cache_bytes / streamed));
    }
    unsigned grid() const { return blocks_for(size_t(heads) * blocks, 1); }
};
struct AttentionPlace {
    unsigned head, block; // b * NH + h, and the rank of the block, 0 the longest
};

__device__ __forceinline__ AttentionPlace attention_place(const AttentionWork& work) {
    const unsigned first = blockIdx.x / (work.blocks * work.group) * work.group;
    const unsigned members = min(work.group, work.heads - first), rest = blockIdx.x - first * work.blocks;
    return {first + rest % members, rest / members};
}

// Attention forward: each block 128 queries, each warp 32, keys and values streamed from the first to the
// diagonal. The sum of exponentials is kept per lane (its columns only) and added up at the end.
template <int HS> struct AttentionForward {
    static constexpr int M = 2, ROWS = 16 * M * attention_warps; // of queries
    static constexpr int TILE = HS <= 64 ? 64 : 32, STAGES = 2;  // keys per tile
    static constexpr int shared_bytes = (ROWS + STAGES * 2 * TILE) * tile_stride<HS> * sizeof(floatX);
};

// out (B,T,C), lse (B,NH,T), qkv (B,T,3C)
template <int HS> __global__ void __launch_bounds__(attention_threads)
    attention_forward_kernel(floatX* out, float* lse, const floatX* qkv, AttentionWork work) {
    using Shape = AttentionForward<HS>;
    constexpr int M = Shape::M, QUERIES = Shape::ROWS, TILE = Shape::TILE, STAGES = Shape::STAGES;
    constexpr int stride = tile_stride<HS>;
    const AttentionPlace place = attention_place(work);
    const int T = work.T, NH = work.NH;
    // A HeadView written out: it would take registers that this kernel does not have.
    const size_t b = place.head / NH, h = place.head % NH, C = size_t(NH) * HS, C3 = 3 * C;
    const int i0 = (work.blocks - 1 - place.block) * QUERIES; // the last queries see the most keys
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16 * M, first = i0 + warp_row;
    const floatX *q = qkv + b * T * C3 + h * HS, *k = q + C, *v = k + C;

    extern __shared__ __align__(16) floatX attention_shared[];
    floatX* const q_tile = attention_shared;                  // (QUERIES, HS)
    floatX* const k_tiles = q_tile + QUERIES * stride;        // (STAGES, TILE, HS)
    floatX* const v_tiles = k_tiles + STAGES * TILE * stride; // (STAGES, TILE, HS)
    const int tiles = (min(i0 + QUERIES, T) + TILE - 1) / TILE;
    const auto load = [&](int tile) {
        if (tile < tiles) {
            const int j0 = tile * TILE, at = tile % STAGES * TILE * stride;
            load_tile<HS, TILE>(k_tiles + at, k + j0 * C3, C3, T - j0);
            load_tile<HS, TILE>(v_tiles + at, v + j0 * C3, C3, T - j0);
        }
        copy_async_commit();
    };
    load_tile<HS, QUERIES>(q_tile, q + i0 * C3, C3, T - i0);
    for (int tile = 0; tile < STAGES - 1; tile++) load(tile);

    // With heads of 128 there are no registers to keep Q in: it is read again for every tile.
    constexpr bool keep_q = HS <= 64;
    uint32_t q_operand[keep_q ? HS / 16 : 1][M][4];
    const uint32_t q_address = lane_address<HS>(q_tile + warp_row * stride);
    const uint32_t k_address = lane_address_transposed<HS>(k_tiles), v_address = lane_address<HS>(v_tiles);

    // exp(S - most) = 2^(scale (q.k - most)); `most` is the largest q.k of the row so far
    const float scale = log2_e / sqrtf(HS);
    float o[M][HS / 8][4] = {}, most[M][2], sum[M][2];
    for (int m = 0; m < M; m++)
        for (int half = 0; half < 2; half++) {
            most[m][half] = -INFINITY;
            sum[m][half] = 0;
        }

    for (int tile = 0; tile < tiles; tile++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads(); // the tile has landed, and all are done with the one before: its place is free
        load(tile + STAGES - 1);
        const int j0 = tile * TILE;
        const uint32_t at = tile % STAGES * TILE * stride * sizeof(floatX);
        if (keep_q && tile == 0)
            for (int c = 0; c < HS / 16; c++) load_operand<HS, M>(q_operand[c], q_address + c * 32);
        if (j0 > first + 16 * M - 1) continue; // all in the future of this warp's queries

        float s[M][TILE / 8][4] = {};
#pragma unroll
        for (int c = 0; c < HS / 16; c++) { // 16 channels, 32 bytes
            if (!keep_q) load_operand<HS, M>(q_operand[0], q_address + c * 32);
            tile_multiply_transposed<HS, M, TILE>(s, q_operand[keep_q ? c : 0], k_address + at + c * 32);
        }
        if (j0 + TILE - 1 > first) hide_future<M, TILE, false>(s, first, j0);
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) { // the lane's rows g and g + 8, shared with 3 other lanes
                float new_most = most[m][half];
                for (int n = 0; n < TILE / 8; n++)
                    new_most = fmaxf(new_most, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
                new_most = fmaxf(new_most, __shfl_xor_sync(~0u, new_most, 1));
                new_most = fmaxf(new_most, __shfl_xor_sync(~0u, new_most, 2));
                const float fade = exp2_approx(scale * (most[m][half] - new_most)); // 0 at the first tile
                const float shift = scale * new_most;
                most[m][half] = new_most;
                sum[m][half] *= fade;
                for (int n = 0; n < TILE / 8; n++)
                    for (int e = 2 * half; e < 2 * half + 2; e++) {
                        s[m][n][e] = exp2_approx(fmaf(scale, s[m][n][e], -shift));
                        sum[m][half] += s[m][n][e];
                    }
                for (int n = 0; n < HS / 8; n++)
                    for (int e = 2 * half; e < 2 * half + 2; e++) o[m][n][e] *= fade;
            }
        tile_multiply<HS, M, TILE>(o, s, v_address + at);
    }

#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float total = sum[m][half];
            total += __shfl_xor_sync(~0u, total, 1);
            total += __shfl_xor_sync(~0u, total, 2);
            for (int n = 0; n < HS / 8; n++)
                for (int e = 2 * half; e < 2 * half + 2; e++) o[m][n][e] *= 1 / total;
            const int i = first + 16 * m + 8 * half + lane / 4;
            if (lane % 4 == 0 && i < T)
                lse[size_t(place.head) * T + i] = ln_2 * fmaf(scale, most[m][half], log2f(total));
        }
    store_rows<HS, M>(out + (b * T + first) * C + h * HS, C, T - first, q_tile + warp_row * stride, o);
}

// delta_i = dO_i . O_i: a thread takes a pack of channels, HS / pack neighbours a head.
// delta (B,NH,T), dout out (B,T,C), packs B*T*C / pack
template <int HS> __global__ void attention_delta_kernel(float* delta, const floatX* dout, const floatX* out,
                                                         size_t packs, int T, int NH) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    float sum = 0;
    if (i < packs) {
        const Pack d_o = load_pack(dout + i * pack), o = load_pack(out + i * pack);
        for (int c = 0; c < pack; c++) sum = fmaf(d_o[c], o[c], sum);
    }
    constexpr int lanes = HS / pack;
    sum = warp_sum<lanes>(sum);
    const size_t row = i / lanes, b = row / NH / T, t = row / NH % T, h = row % NH; // row of (B,T,NH)
    if (i < packs && i % lanes == 0) delta[(b * NH + h) * T + t] = sum;
}

// Attention backward, both kernels: heads of 128 leave registers for 16 rows per warp only.
template <int HS> struct AttentionBackward {
    static constexpr int M = HS <= 64 ? 2 : 1, ROWS = 16 * M * attention_warps; // owned by a block
    static constexpr int TILE = 32, STAGES = 2;                                 // rows streamed past them
    static constexpr int shared_bytes = (2 * ROWS + STAGES * 2 * TILE) * tile_stride<HS> * sizeof(floatX) +
                                        STAGES * 2 * TILE * sizeof(float); // the last for lse and delta
};

// dK and dV: a block owns keys, and queries stream past from the diagonal to the last. Everything is held
// transposed (keys down, queries across), so that P^T and dS^T leave the tensor cores as the operand of the
// next product and never go through memory. Queries past the end are zeros with dO = 0 and add nothing. The
// loops over channels are unrolled by 2 only: further, the sums would not all fit in the registers.
template <int HS> __global__ void __launch_bounds__(attention_threads)
    attention_backward_dkv_kernel(floatX* dqkv, const floatX* dout, const float* lse, const float* delta,
                                  const floatX* qkv, AttentionWork work) {
    using Shape = AttentionBackward<HS>;
    constexpr int M = Shape::M, KEYS = Shape::ROWS, TILE = Shape::TILE, STAGES = Shape::STAGES;
    constexpr int stride = tile_stride<HS>;
    const AttentionPlace place = attention_place(work);
    const int T = work.T;
    const HeadView head(qkv, place.head, T, work.NH, HS);
    const size_t C = head.C, C3 = head.C3;
    const int j0 = place.block * KEYS; // the first keys are seen by the most queries
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16 * M, first = j0 + warp_row;
    const floatX *q = head.q, *k = head.k, *v = head.v, *d_o = dout + head.out;
    lse += head.statistic;
    delta += head.statistic;

    extern __shared__ __align__(16) floatX attention_shared[];
    floatX* const k_tile = attention_shared;                              // (KEYS, HS)
    floatX* const v_tile = k_tile + KEYS * stride;                        // (KEYS, HS)
    floatX* const q_tiles = v_tile + KEYS * stride;                       // (STAGES, TILE, HS)
    floatX* const do_tiles = q_tiles + STAGES * TILE * stride;            // (STAGES, TILE, HS)
    float* const lse_tiles = (float*)(do_tiles + STAGES * TILE * stride); // (STAGES, TILE)
    float* const delta_tiles = lse_tiles + STAGES * TILE;                 // (STAGES, TILE)
    const int begin = j0 / TILE, end = (T + TILE - 1) / TILE;
    const auto load = [&](int tile) {
        if (tile < end) {
            const int i0 = tile * TILE, slot = tile % STAGES, i = threadIdx.x % TILE;
            load_tile<HS, TILE>(q_tiles + slot * TILE * stride, q + i0 * C3, C3, T - i0);
            load_tile<HS, TILE>(do_tiles + slot * TILE * stride, d_o + i0 * C, C, T - i0);
            const float* statistic = threadIdx.x < TILE ? lse : delta;
            float* const tiles = threadIdx.x < TILE ? lse_tiles : delta_tiles;
            if (threadIdx.x < 2 * TILE)
                copy_async_4(tiles + slot * TILE + i, statistic + i0 + i, i0 + i < T ? 4 : 0);
        }
        copy_async_commit();
    };
    load_tile<HS, KEYS>(k_tile, k + j0 * C3, C3, T - j0);
    load_tile<HS, KEYS>(v_tile, v + j0 * C3, C3, T - j0);
    for (int tile = begin; tile < begin + STAGES - 1; tile++) load(tile);

    const uint32_t k_address = lane_address<HS>(k_tile + warp_row * stride);
    const uint32_t v_address = lane_address<HS>(v_tile + warp_row * stride);
    const uint32_t q_address = lane_address<HS>(q_tiles), do_address = lane_address<HS>(do_tiles);
    const uint32_t qt_address = lane_address_transposed<HS>(q_tiles);   // the same tiles, read as Q^T
    const uint32_t dot_address = lane_address_transposed<HS>(do_tiles); // and dO^T
    const float scale = log2_e / sqrtf(HS);
    float dk[M][HS / 8][4] = {}, dv[M][HS / 8][4] = {};

    for (int tile = begin; tile < end; tile++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        load(tile + STAGES - 1);
        const int i0 = tile * TILE, slot = tile % STAGES;
        const uint32_t at = slot * TILE * stride * sizeof(floatX);
        if (i0 + TILE - 1 < first) continue; // all of these queries come before this warp's keys

        float p[M][TILE / 8][4] = {}; // S^T, then P^T
#pragma unroll 2
        for (int c = 0; c < HS / 16; c++) {
            uint32_t a[M][4];
            load_operand<HS, M>(a, k_address + c * 32);
            tile_multiply_transposed<HS, M, TILE>(p, a, qt_address + at + c * 32);
        }
        if (i0 < first + 16 * M - 1) hide_future<M, TILE, true>(p, first, i0);
        const float* const lse_tile = lse_tiles + slot * TILE + lane % 4 * 2;
        each_element<M, TILE>([&](int m, int n, int e) {
            p[m][n][e] = exp2_approx(fmaf(scale, p[m][n][e], -log2_e * lse_tile[8 * n + e % 2]));
        });
        tile_multiply<HS, M, TILE>(dv, p, do_address + at);

        float ds[M][TILE / 8][4]; // -delta, then dP^T - delta, then dS^T
        const float* const delta_tile = delta_tiles + slot * TILE + lane % 4 * 2;
        each_element<M, TILE>([&](int m, int n, int e) { ds[m][n][e] = -delta_tile[8 * n + e % 2]; });
#pragma unroll 2
        for (int c = 0; c < HS / 16; c++) {
            uint32_t a[M][4];
            load_operand<HS, M>(a, v_address + c * 32);
            tile_multiply_transposed<HS, M, TILE>(ds, a, dot_address + at + c * 32);
        }
        each_element<M, TILE>([&](int m, int n, int e) { ds[m][n][e] *= p[m][n][e]; });
        tile_multiply<HS, M, TILE>(dk, ds, q_address + at);
    }

    each_element<M, HS>([&](int m, int n, int e) { dk[m][n][e] *= ln_2 * scale; }); // 1 / sqrt(HS)
    floatX* const dk_rows = dqkv + head.in + first * C3 + C;
    store_rows<HS, M>(dk_rows, C3, T - first, k_tile + warp_row * stride, dk);
    store_rows<HS, M>(dk_rows + C, C3, T - first, v_tile + warp_row * stride, dv);
}

// dQ: a block owns queries, and keys stream past from the first to the diagonal, as in the forward pass. With
// heads of up to 64 the compiler is held to the registers that let three blocks share a multiprocessor.
template <int HS> __global__ void __launch_bounds__(attention_threads, HS <= 64 ? 3 : 2)
    attention_backward_dq_kernel(floatX* dqkv, const floatX* dout, const float* lse, const float* delta,
                                 const floatX* qkv, AttentionWork work) {
    using Shape = AttentionBackward<HS>;
    constexpr int M = Shape::M, QUERIES = Shape::ROWS, TILE = Shape::TILE, STAGES = Shape::STAGES;
    constexpr int stride = tile_stride<HS>;
    const AttentionPlace place = attention_place(work);
    const int T = work.T, NH = work.NH;
    // As in the forward pass, a HeadView written out.
    const size_t b = place.head / NH, h = place.head % NH, C = size_t(NH) * HS, C3 = 3 * C;
    const int i0 = (work.blocks - 1 - place.block) * QUERIES;
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16 * M, first = i0 + warp_row;
    const floatX *q = qkv + b * T * C3 + h * HS, *k = q + C, *v = k + C, *d_o = dout + b * T * C + h * HS;

    extern __shared__ __align__(16) floatX attention_shared[];
    floatX* const q_tile = attention_shared;                  // (QUERIES, HS)
    floatX* const do_tile = q_tile + QUERIES * stride;        // (QUERIES, HS)
    floatX* const k_tiles = do_tile + QUERIES * stride;       // (STAGES, TILE, HS)
    floatX* const v_tiles = k_tiles + STAGES * TILE * stride; // (STAGES, TILE, HS)
    const int tiles = (min(i0 + QUERIES, T) + TILE - 1) / TILE;
    const auto load = [&](int tile) {
        if (tile < tiles) {
            const int j0 = tile * TILE, at = tile % STAGES * TILE * stride;
            load_tile<HS, TILE>(k_tiles + at, k + j0 * C3, C3, T - j0);
            load_tile<HS, TILE>(v_tiles + at, v + j0 * C3, C3, T - j0);
        }
        copy_async_commit();
    };
    load_tile<HS, QUERIES>(q_tile, q + i0 * C3, C3, T - i0);
    load_tile<HS, QUERIES>(do_tile, d_o + i0 * C, C, T - i0);
    for (int tile = 0; tile < STAGES - 1; tile++) load(tile);

    const uint32_t q_address = lane_address<HS>(q_tile + warp_row * stride);
    const uint32_t do_address = lane_address<HS>(do_tile + warp_row * stride);
    const uint32_t k_address = lane_address<HS>(k_tiles);
    const uint32_t kt_address = lane_address_transposed<HS>(k_tiles); // the same tiles, read as K^T
    const uint32_t vt_address = lane_address_transposed<HS>(v_tiles);
    const float scale = log2_e / sqrtf(HS);
    float dq[M][HS / 8][4] = {}, lse_row[M][2], delta_row[M][2];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int i = first + 16 * m + 8 * half + lane / 4;
            lse_row[m][half] = i < T ? log2_e * lse[size_t(place.head) * T + i] : 0; // of 2^, not of e^
            delta_row[m][half] = i < T ? delta[size_t(place.head) * T + i] : 0;
        }

    for (int tile = 0; tile < tiles; tile++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        load(tile + STAGES - 1);
        const int j0 = tile * TILE;
        const uint32_t at = tile % STAGES * TILE * stride * sizeof(floatX);
        if (j0 > first + 16 * M - 1) continue; // all in the future of this warp's queries

        float p[M][TILE / 8][4] = {}; // S, then P
#pragma unroll
        for (int c = 0; c < HS / 16; c++) {
            uint32_t a[M][4];
            load_operand<HS, M>(a, q_address + c * 32);
            tile_multiply_transposed<HS, M, TILE>(p, a, kt_address + at + c * 32);
        }
        if (j0 + TILE - 1 > first) hide_future<M, TILE, false>(p, first, j0);
        each_element<M, TILE>([&](int m, int n, int e) {
            p[m][n][e] = exp2_approx(fmaf(scale, p[m][n][e], -lse_row[m][e / 2]));
        });

        float ds[M][TILE / 8][4]; // -delta, then dP - delta, then dS
        each_element<M, TILE>([&](int m, int n, int e) { ds[m][n][e] = -delta_row[m][e / 2]; });
#pragma unroll
        for (int c = 0; c < HS / 16; c++) {
            uint32_t a[M][4];
            load_operand<HS, M>(a, do_address + c * 32);
            tile_multiply_transposed<HS, M, TILE>(ds, a, vt_address + at + c * 32);
        }
        each_element<M, TILE>([&](int m, int n, int e) { ds[m][n][e] *= p[m][n][e]; });
        tile_multiply<HS, M, TILE>(dq, ds, k_address + at);
    }

    each_element<M, HS>([&](int m, int n, int e) { dq[m][n][e] *= ln_2 * scale; }); // 1 / sqrt(HS)
    store_rows<HS, M>(dqkv + (b * T + first) * C3 + h * HS, C3, T - first, q_tile + warp_row * stride, dq);
}

// Calls f with the head size as a constant where tensor cores serve it, and returns whether they do.
template <class F> bool with_tensor_cores(size_t HS, F f) {
    if (HS == 32) f(std::integral_constant<int, 32>());
    if (HS == 64) f(std::integral_constant<int, 64>());
    if (HS == 128) f(std::integral_constant<int, 128>());
    return HS == 32 || HS == 64 || HS == 128;
}
#endif // PRECISION_FP32

// ---------------------------------------------------------------------------------------------------------
// Attention: what the model calls

// out (B,T,C), lse (B,NH,T), qkv (B,T,3C); all but lse begin at multiples of 16 bytes
inline void attention_forward(floatX* out, float* lse, const floatX* qkv, size_t B, size_t T, size_t C,
                              size_t NH, cudaStream_t stream) {
#ifndef PRECISION_FP32
    const bool done = with_tensor_cores(C / NH, [&](auto HS) {
        using Shape = AttentionForward<HS>;
        const AttentionWork work(B, T, NH, HS, Shape::ROWS);
        attention_forward_kernel<HS>
            <<<work.grid(), attention_threads, Shape::shared_bytes, stream>>>(out, lse, qkv, work);
        cuda_check(cudaGetLastError());
    });
    if (done) return;
#endif
    attention_forward_plain(out, lse, qkv, B, T, C, NH, stream);
}

// dqkv (B,T,3C) written whole, delta (B,NH,T) scratch, dout out (B,T,C), lse (B,NH,T), qkv (B,T,3C); all but
// lse and delta begin at multiples of 16 bytes
inline void attention_backward(floatX* dqkv, float* delta, const floatX* dout, const floatX* out,
                               const float* lse, const floatX* qkv, size_t B, size_t T, size_t C, size_t NH,
                               cudaStream_t stream) {
#ifndef PRECISION_FP32
    const bool done = with_tensor_cores(C / NH, [&](auto HS) {
        using Shape = AttentionBackward<HS>;
        const AttentionWork work(B, T, NH, HS, Shape::ROWS);
        const size_t packs = B * T * C / pack;
        attention_delta_kernel<HS>
            <<<blocks_for(packs, 256), 256, 0, stream>>>(delta, dout, out, packs, int(T), int(NH));
        attention_backward_dkv_kernel<HS><<<work.grid(), attention_threads, Shape::shared_bytes, stream>>>(
            dqkv, dout, lse, delta, qkv, work);
        attention_backward_dq_kernel<HS><<<work.grid(), attention_threads, Shape::shared_bytes, stream>>>(
            dqkv, dout, lse, delta, qkv, work);
        cuda_check(cudaGetLastError());
    });
    if (done) return;
#endif
    attention_backward_plain(dqkv, delta, dout, out, lse, qkv, B, T, C, NH, stream);
}

// ---------------------------------------------------------------------------------------------------------
// Expert statistics, once per optimizer step: over the D rows of W_enc[j] and the D numbers of b_enc[j],
//   m_j = mean (C),  v_j = population variance (C),  mb_j, vb_j the same of b_enc[j]
// They are the router: a topk router keeps its E rows in m and has no v.

struct Statistics {
    float *m, *v;   // (E,C) (E,C)
    float *mb, *vb; // (E) (E)
};

// mean variance (E,C) of rows (E,D,C). Eight threads, or one, side by side have `width` channels each of one
// expert; the rest of a block's 1024 share the D rows.
template <int width> __global__ void __launch_bounds__(1024)
    expert_statistics_forward_kernel(float* mean, float* variance, const floatX* rows, size_t D, size_t C) {
    constexpr int columns = width == 1 ? 1 : 8, warps = 1024 / warp_size;
    __shared__ float sums[warps][columns][width];
    const int column = threadIdx.x % columns, warp = threadIdx.x / warp_size;
    const size_t c = (blockIdx.x * size_t(columns) + column) * width, j = blockIdx.y;
    const bool inside = c < C;
    const auto load = [&](size_t i) {
        const floatX* row = rows + (j * D + i) * C + c;
        if constexpr (width == pack) return load_pack(row);
        return Pack{{float(*row)}};
    };
    // In every thread: the sums over the rows of f of a row.
    const auto sum_rows = [&](auto f) {
        Pack sum = {};
#pragma unroll 4
        for (size_t i = threadIdx.x / columns; i < D && inside; i += 1024 / columns) {
            const Pack w = load(i);
#pragma unroll
            for (int k = 0; k < width; k++) sum[k] += f(w[k], k);
        }
#pragma unroll
        for (int k = 0; k < width; k++) {
#pragma unroll
            for (int offset = columns; offset < warp_size; offset *= 2)
                sum[k] += __shfl_xor_sync(0xffffffff, sum[k], offset);
            if (int(threadIdx.x) % warp_size < columns) sums[warp][column][k] = sum[k];
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < width; k++) {
            sum[k] = 0;
            for (int i = 0; i < warps; i++) sum[k] += sums[i][column][k];
        }
        __syncthreads();
        return sum;
    };
    Pack m = sum_rows([](float w, int) { return w; });
#pragma unroll
    for (int k = 0; k < width; k++) m[k] /= D;
    const Pack v = sum_rows([&](float w, int k) { return (w - m[k]) * (w - m[k]); });
    if (!inside || int(threadIdx.x) >= columns) return;
#pragma unroll
    for (int k = 0; k < width; k++) {
        mean[j * C + c + k] = m[k];
        variance[j * C + c + k] = v[k] / D;
    }
}

// w_enc (E,D,C), b_enc (E,D)
void expert_statistics_forward(Statistics s, const floatX* w_enc, const floatX* b_enc, size_t E, size_t D,
                               size_t C, cudaStream_t stream) {
    const dim3 grid(blocks_for(C, 8 * pack), unsigned(E)), one(1, unsigned(E));
    expert_statistics_forward_kernel<pack><<<grid, 1024, 0, stream>>>(s.m, s.v, w_enc, D, C);
    expert_statistics_forward_kernel<1><<<one, 1024, 0, stream>>>(s.mb, s.vb, b_enc, D, 1);
    cuda_check(cudaGetLastError());
}

// The mean moves by 1/D of any row; the variance by 2/D (row - mean), its own mean's part summing to zero:
//   dW_enc[j][i] += dm_j / D + dv_j * 2 (W_enc[j][i] - m_j) / D,   db_enc[j][i] likewise
// One warp per row.
__global__ void expert_statistics_backward_kernel(float* dw_enc, float* db_enc, Statistics ds,
                                                  const floatX* w_enc, const floatX* b_enc, Statistics s,
                                                  size_t E, size_t D, size_t C) {
    const size_t row = blockIdx.x * size_t(blockDim.x / warp_size) + threadIdx.x / warp_size, j = row / D;
    const int lane = threadIdx.x % warp_size;
    if (row >= E * D) return;
    const float share = 1.0f / D;
    for (size_t c = lane * pack; c < C; c += run_channels) {
        const Pack w = load_pack(w_enc + row * C + c), m = load_pack(s.m + j * C + c);
        const Pack dm = load_pack(ds.m + j * C + c), dv = load_pack(ds.v + j * C + c);
        Pack dw = load_pack(dw_enc + row * C + c);
#pragma unroll
        for (int i = 0; i < pack; i++) dw[i] += share * (dm[i] + 2 * dv[i] * (w[i] - m[i]));
        store_pack(dw_enc + row * C + c, dw);
    }
    if (lane == 0) db_enc[row] += share * (ds.mb[j] + 2 * ds.vb[j] * (float(b_enc[row]) - s.mb[j]));
}

// ds: the gradients of the statistics, summed over the micro-batches of a step; the weights do not change
// within it, so once per step is enough here, too.
void expert_statistics_backward(float* dw_enc, float* db_enc, Statistics ds, const floatX* w_enc,
                                const floatX* b_enc, Statistics s, size_t E, size_t D, size_t C,
                                cudaStream_t stream) {
    expert_statistics_backward_kernel<<<blocks_for(E * D, 8), 8 * warp_size, 0, stream>>>(
        dw_enc, db_enc, ds, w_enc, b_enc, s, E, D, C);
    cuda_check(cudaGetLastError());
}

// out (count) (+)= x
template <class T> __global__ void to_fp32_kernel(float* out, const T* x, size_t count, bool accumulate) {
    const size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x;
    if (i < count) out[i] = accumulate ? out[i] + float(x[i]) : float(x[i]);
}
template <class T> void to_fp32(float* out, const T* x, size_t count, bool accumulate, cudaStream_t stream) {
    to_fp32_kernel<<<blocks_for(count, 256), 256, 0, stream>>>(out, x, count, accumulate);
    cuda_check(cudaGetLastError());
}

// topk: the rows of its router (E,C) stand for the means.
void router_weights_forward(Statistics s, const floatX* router, size_t E, size_t C, cudaStream_t stream) {
    to_fp32(s.m, router, E * C, false, stream);
}
void router_weights_backward(float* drouter, Statistics ds, size_t E, size_t C, cudaStream_t stream) {
    to_fp32(drouter, ds.m, E * C, true, stream);
}

// ---------------------------------------------------------------------------------------------------------
// Router: how sparsely would expert j fire on x? Were the rows of W_enc[j] Gaussian, its pre-activations
// would be Gaussian over the units, of mean and variance
//   mu_j = m_j . x + mb_j        var_j = v_j . (x*x) + vb_j + 1e-12        sd_j = rho_j sqrt(var_j)
// and a share Phi(mu/sd) of them positive. The score falls as that share rises:
//   g_j = -erf(mu_j / (sqrt(2) sd_j)) = 1 - 2 Phi(mu_j / sd_j)          (topk: g_j = m_j . x)
// rho is 1, or with router_sd scaled what the variances are found to be: see "Scaled deviations" below.
// Choice: S = the K experts of highest score, a tie to the lower index;  w = softmax of g over S.
// Load balance: aux = E sum_j f_j P_j, f_j = share of the N*K slots that went to expert j (a constant in the
// backward pass), P_j = mean over tokens of p_nj, p_n = softmax of g_n over all E.
//
// A warp takes four tokens through the experts eight at a time, so that a row of m or v is read once for four
// tokens and a token once for eight experts; then each of its 32 lanes has one (token, expert) pair.

constexpr int router_tokens = 4, router_experts = 8, router_warps = 8;
constexpr size_t router_block = router_warps * router_tokens; // tokens of one block

// The router of a layer and what it made of a batch of N tokens.
struct Router {
    size_t N, E, K, C;
    bool topk;
    Statistics statistics, dstatistics; // and their gradients
    float *mu, *sd, *g;                 // (N,E) x3; topk: g only
    int* choice;                        // (N,K) in falling order of score
    float* weight;                      // (N,K) gate weights
    int *slot, *token, *begin;          // (N,K) (N*K) (E+1) see dispatch()
    float* rho = nullptr;               // (E) null: 1
    // What is changed after training (dev/run/routing.h): the order in which experts are taken, and of it the
    // places whose bit is set.
    const int8_t* standing = nullptr; // (E) null: all alike
    uint64_t ranks = 0;               // 0: the first K; else it has K bits
    float* slot_weight = nullptr;     // (N*K) the gate weights by slot; null: not wanted
};

// The same for all layers, and K; 0 and null: as trained.
struct ChangedRouting {
    size_t K = 0;
    uint64_t ranks = 0;
    const int8_t* standing = nullptr; // (L,E)
};

// Is expert i, of score a, taken before expert j, of score b?
__device__ inline bool taken_before(const int8_t* standing, int i, float a, int j, float b) {
    const int more = standing ? standing[i] - standing[j] : 0;
    return more ? more > 0 : a > b || (a == b && i < j);
}

__device__ inline float rho_of(const Router& r, int j) { return r.rho ? r.rho[j] : 1; }
__device__ inline float router_sd(const Router& r, int j, float var) { // var: v_j . (x*x)
    return rho_of(r, j) * sqrtf(var + r.statistics.vb[j] + 1e-12f);
}
__device__ inline float sparsity_score(float mu, float sd) { return -erff(0.70710678f * mu / sd); }

// Goes from expert *last, of score *most, to the next in falling order of the scores g. As many neighbouring
// lanes as `lanes` share the search.
template <int lanes, class Scores>
__device__ inline void next_best(float* most, int* last, const Scores& g, const int8_t* standing, int E) {
    float best = -INFINITY;
    int index = E;
    for (int j = threadIdx.x % lanes; j < E; j += lanes) {
        const bool after = *last < 0 || taken_before(standing, *last, *most, j, g[j]);
        if (after && (index == E || taken_before(standing, j, g[j], index, best))) {
            best = g[j];
            index = j;
        }
    }
#pragma unroll
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
        const float other = __shfl_xor_sync(0xffffffff, best, offset);
        const int other_index = __shfl_xor_sync(0xffffffff, index, offset);
        if (other_index < E && (index == E || taken_before(standing, other_index, other, index, best))) {
            best = other;
            index = other_index;
        }
    }
    // Scores that are not numbers have no order. Any expert will do, but the NaN must reach the loss.
    *most = index < E ? best : NAN;
    *last = index < E ? index : 0;
}

// As many neighbouring lanes as `lanes` choose the experts of one token by its scores g[0] to g[E - 1]:
// choice weight (K), not written unless `inside`. Returns the highest score of those chosen. All lanes of a
// warp call.
template <int lanes = warp_size, class Scores> __device__ inline float
choose_experts(int* choice, float* weight, const Scores& g, const Router& r, bool inside = true) {
    const int lane = threadIdx.x % lanes, E = int(r.E), K = int(r.K);
    float score = 0, highest = 0, sum = 0; // sum of e^(score - highest) of those chosen
    int expert = -1;
    for (int k = 0, rank = 0; k < K; rank++) {
        next_best<lanes>(&score, &expert, g, r.standing, E);
        if (r.ranks && !(r.ranks >> rank & 1)) continue;
        const float before = highest;
        highest = k == 0 ? score : fmaxf(highest, score); // the first has it, but for `standing`
        sum = (highest == before ? sum : sum * expf(before - highest)) + expf(score - highest);
        if (k % lanes == lane && inside) {
            choice[k] = expert;
            weight[k] = score;
        }
        k++;
    }
    for (int k = lane; k < K && inside; k += lanes) weight[k] = expf(weight[k] - highest) / sum; // its own
    return highest;
}

// The token of a lane, eight of which share one.
__device__ inline int lane_token() { return int(blockIdx.x * router_block + threadIdx.x / router_experts); }

// out (E): for each expert j the sum of f(n, j) over the tokens n of a block. All its threads call; f is
// called for a lane's own token and for every eighth expert from lane % 8 on.
template <class F> __device__ void sum_over_block(float* out, const Router& r, F f) {
    __shared__ float sums[router_warps][router_experts];
    const int warp = threadIdx.x / warp_size, lane = threadIdx.x % warp_size, E = int(r.E);
    const size_t n = lane_token();
    for (int j = lane % router_experts; j - lane % router_experts < E; j += router_experts) {
        float sum = j < E && n < r.N ? f(n, j) : 0;
#pragma unroll
        for (int offset = router_experts; offset < warp_size; offset *= 2)
            sum += __shfl_xor_sync(0xffffffff, sum, offset);
        if (lane < router_experts) sums[warp][lane] = sum;
        __syncthreads();
        if (threadIdx.x < router_experts && j < E) {
            for (int i = 1; i < router_warps; i++) sum += sums[i][lane];
            out[j] = sum;
        }
        __syncthreads(); // before the next experts' sums
    }
}

// The scores (E) of a lane's token, for experts whose score this lane has computed: the first of them is in a
// register.
struct OwnScores {
    float first;
    const float* all; // null: there is no such token
    __device__ float operator[](int j) const { return j < router_experts ? first : all ? all[j] : 0; }
};

// partial (blocks,E): sums over the block's tokens of p.  x (N,C)
__global__ void __launch_bounds__(router_warps* warp_size, 2)
    router_forward_kernel(Router r, float* partial, const floatX* x) {
    const int E = int(r.E), K = int(r.K);
    const unsigned packs = unsigned(r.C / pack); // of a row; x has less than 2^32, in 64 GiB
    const int N = int(r.N), first = int(blockIdx.x * router_block + threadIdx.x / warp_size * router_tokens);
    const Statistics s = r.statistics;
    float first_score = 0;
    for (int j0 = 0; j0 < E; j0 += router_experts) {
        // A warp's four tokens, or their squares, times eight rows: lane i has token i / 8 and row i % 8.
        const auto multiply = [&](const float* rows, bool squares) {
            float sums[router_tokens][router_experts] = {};
            for (unsigned p = threadIdx.x % warp_size; p < packs; p += warp_size) {
                Pack v[router_tokens];
#pragma unroll
                for (int t = 0; t < router_tokens; t++) {
                    v[t] = load_pack(x + size_t(min(first + t, N - 1) * packs + p) * pack);
#pragma unroll
                    for (int i = 0; i < pack; i++) v[t][i] *= squares ? v[t][i] : 1;
                }
#pragma unroll
                for (int j = 0; j < router_experts; j++) {
                    const unsigned row = min(j0 + j, E - 1); // past the last: for nobody
                    const Pack w = load_pack(rows + (row * packs + p) * pack);
#pragma unroll
                    for (int t = 0; t < router_tokens; t++)
#pragma unroll
                        for (int i = 0; i < pack; i++) sums[t][j] += w[i] * v[t][i];
                }
            }
            return sums_by_lane(sums);
        };
        float score = multiply(s.m, false);
        const float var = r.topk ? 0 : multiply(s.v, true);
        const int n = lane_token(), j = j0 + int(threadIdx.x) % router_experts;
        if (n >= N || j >= E) continue;
        if (!r.topk) {
            const float mu = score + s.mb[j], sd = router_sd(r, j, var);
            score = sparsity_score(mu, sd);
            r.mu[size_t(n) * E + j] = mu;
            r.sd[size_t(n) * E + j] = sd;
        }
        r.g[size_t(n) * E + j] = score;
        if (j0 == 0) first_score = score;
    }
    const int n = lane_token();
    const OwnScores g = {first_score, n < N ? r.g + size_t(n) * E : nullptr};
    const float highest =
        choose_experts<router_experts>(r.choice + size_t(n) * K, r.weight + size_t(n) * K, g, r, n < N);
    float all = 0;
    for (int j = threadIdx.x % router_experts; j < E && n < N; j += router_experts)
        all += expf(g[j] - highest);
    all = warp_sum<router_experts>(all);
    sum_over_block(partial + blockIdx.x * E, r, [&](size_t, int j) { return expf(g[j] - highest) / all; });
}

// sum_p (E): sums over the tokens of p.  partial: scratch (N / 32 rounded up, E)
void router_forward(const Router& r, float* sum_p, float* partial, const floatX* x, cudaStream_t stream) {
    const unsigned blocks = blocks_for(r.N, router_block);
    router_forward_kernel<<<blocks, router_warps * warp_size, 0, stream>>>(r, partial, x);
    cuda_check(cudaGetLastError());
    sum_partials({sum_p}, partial, 1, blocks, r.E, r.E, false, stream);
}

// *aux += scale * E sum_j f_j P_j, of the slots that dispatch() made
__global__ void balance_forward_kernel(double* aux, Router r, const float* sum_p, float scale) {
    float sum = 0;
    for (size_t j = threadIdx.x; j < r.E; j += warp_size)
        sum += r.E * (float(r.begin[j + 1] - r.begin[j]) / (r.N * r.K)) * (sum_p[j] / r.N);
    sum = warp_sum(sum);
    if (threadIdx.x == 0) *aux += scale * sum;
}
void balance_forward(double* aux, const Router& r, const float* sum_p, float scale, cudaStream_t stream) {
    balance_forward_kernel<<<1, warp_size, 0, stream>>>(aux, r, sum_p, scale);
    cuda_check(cudaGetLastError());
}

// Load balance:  dp_nj = aux_scale E f_j / N                dg_nj  = p_nj (dp_nj - sum_i dp_ni p_ni)
// Choice:        a constant, its weights a softmax          dg_ns += w_k (dw_k - sum_i dw_i w_i), s = s_k
// Expected share: the mean of (1 - g_ns) / 2 over the N*K slots      dg_ns -= l0_scale / (2 N K)
// Score, with phi = exp(-mu^2 / (2 sd^2)) sqrt(2/pi), from d erf(u)/du = 2/sqrt(pi) exp(-u^2):
//   dg/dmu = -phi / sd      dg/dsd = phi mu / sd^2      dsd/dvar = rho^2 / (2 sd)        (topk: dmu = dg)
// Inputs:        dx_n = sum_j dmu_nj m_j + 2 x dvar_nj v_j + sum of dslots over its slots (gather's backward)
//
// The weights of a loss's terms beside the cross-entropy: load balance, and the expected share.
struct LossWeights {
    float aux, l0;
    LossWeights(float aux, float l0 = 0) : aux(aux), l0(l0) {}
};

// dx (N,C); dmu dvar (N,E); partial (blocks,2,E): sums over the block's tokens of dmu and dvar;
// dweight (N,K); dslots (N*K,C)
__global__ void __launch_bounds__(router_warps* warp_size, 2)
    router_backward_kernel(floatX* dx, Router r, float* dmu, float* dvar, float* partial,
                           const floatX* dslots, const float* dweight, const floatX* x, LossWeights scales) {
    const int warp = threadIdx.x / warp_size, lane = threadIdx.x % warp_size;
    const int E = int(r.E), K = int(r.K), C = int(r.C);
    const size_t N = r.N, first = blockIdx.x * router_block + warp * router_tokens;
    { // Eight lanes for each of the four tokens, for every eighth expert each.
        const size_t n = min(first + lane / router_experts, N - 1);
        const bool inside = first + lane / router_experts < N;
        const int j0 = lane % router_experts;
        const float* g = r.g + n * E;
        float most = -INFINITY, sum = 0, mean = 0, mean_weight = 0;
        for (int j = j0; j < E; j += router_experts) most = fmaxf(most, g[j]);
        most = warp_max<router_experts>(most);
        for (int j = j0; j < E; j += router_experts) {
            const float e = expf(g[j] - most);
            sum += e;
            mean += e * float(r.begin[j + 1] - r.begin[j]);
        }
        sum = warp_sum<router_experts>(sum);
        const float per_slot = scales.aux * E / (N * K) / N; // dp_nj = per_slot * (slots of expert j)
        mean = per_slot * warp_sum<router_experts>(mean) / sum;
        for (int k = 0; k < K; k++) mean_weight += dweight[n * K + k] * r.weight[n * K + k];
        for (int j = j0; j < E && inside; j += router_experts) {
            float dg = expf(g[j] - most) / sum * (per_slot * float(r.begin[j + 1] - r.begin[j]) - mean);
            for (int k = 0; k < K; k++)
                if (r.choice[n * K + k] == j)
                    dg += r.weight[n * K + k] * (dweight[n * K + k] - mean_weight) - scales.l0 / (2 * N * K);
            if (r.topk) {
                dmu[n * E + j] = dg;
            } else {
                const float sd = r.sd[n * E + j], z = r.mu[n * E + j] / sd;
                const float phi = 0.79788456f * expf(-0.5f * z * z);
                dmu[n * E + j] = dg * -phi / sd;
                dvar[n * E + j] = dg * phi * z / sd * rho_of(r, j) * rho_of(r, j) / (2 * sd);
            }
        }
    }
    // What all lanes of a warp ask for again and again: the tokens' first slots, their first dmu and dvar.
    __shared__ int slots[router_block][router_experts];
    __shared__ float2 gradients[router_block][router_experts];
    {
        const int i = lane % router_experts, token = threadIdx.x / router_experts;
        const size_t n = first + lane / router_experts;
        slots[token][i] = n < N && i < K ? r.slot[n * K + i] : 0;
        gradients[token][i] = {n < N && i < E ? dmu[n * E + i] : 0,
                               n < N && i < E && !r.topk ? dvar[n * E + i] : 0};
    }
    __syncwarp(); // these, dmu and dvar are read by other lanes of this warp
    for (int c = lane * pack; c < C && first < N; c += run_channels) {
        uint4 v[router_tokens];                                  // of x, asked for before it is needed
        Pack sum[router_tokens] = {}, curve[router_tokens] = {}; // sum_j dmu m, sum_j dvar v
#pragma unroll
        for (int t = 0; t < router_tokens; t++) v[t] = *(const uint4*)(x + min(first + t, N - 1) * C + c);
        for (int j = 0; j < E; j++) {
            const Pack m = load_pack(r.statistics.m + j * C + c);
            const Pack w = r.topk ? Pack{} : load_pack(r.statistics.v + j * C + c);
#pragma unroll
            for (int t = 0; t < router_tokens; t++) {
                const size_t nj = min(first + t, N - 1) * E + j;
                const float2 d = j < router_experts ? gradients[warp * router_tokens + t][j]
                                                    : float2{dmu[nj], r.topk ? 0 : dvar[nj]};
                sum[t] += d.x * m;
                curve[t] += d.y * w;
            }
        }
#pragma unroll
        for (int t = 0; t < router_tokens; t++)
#pragma unroll
            for (int i = 0; i < pack; i++) sum[t][i] += 2 * float(((const floatX*)&v[t])[i]) * curve[t][i];
        for (int k = 0; k < K; k++)
#pragma unroll
            for (int t = 0; t < router_tokens; t++) {
                const size_t slot = k < router_experts ? slots[warp * router_tokens + t][k]
                                                       : r.slot[min(first + t, N - 1) * K + k];
                sum[t] += load_pack(dslots + slot * C + c);
            }
#pragma unroll
        for (int t = 0; t < router_tokens; t++)
            if (first + t < N) store_pack(dx + (first + t) * C + c, sum[t]);
    }
    if (r.topk) return;
    sum_over_block(partial + blockIdx.x * 2 * E, r, [&](size_t n, int j) { return dmu[n * E + j]; });
    sum_over_block(partial + blockIdx.x * 2 * E + E, r, [&](size_t n, int j) { return dvar[n * E + j]; });
}

// dm_j += sum_n dmu_nj x_n      dv_j += sum_n dvar_nj (x_n*x_n)
// A thread has two channels of eight experts, a block a part of the tokens, of which it has 64 at a time:
// partial (parts,2,E,C).
constexpr int staged_tokens = 64, statistics_threads = 64;

struct alignas(2 * sizeof(floatX)) ChannelPair {
    floatX a, b;
};

__global__ void __launch_bounds__(statistics_threads)
    router_backward_statistics_kernel(float* partial, const float* dmu, const float* dvar, const floatX* x,
                                      bool topk, size_t N, int E, int C) {
    __shared__ float staged[2][staged_tokens][router_experts]; // dmu, dvar; zeros where there is no expert
    const int c = int(blockIdx.x * blockDim.x + threadIdx.x) * 2, j0 = blockIdx.z * router_experts;
    const size_t part = blockIdx.y, parts = gridDim.y, from = N * part / parts, to = N * (part + 1) / parts;
    float dm[router_experts][2] = {}, dv[router_experts][2] = {};
    for (size_t n0 = from; n0 < to; n0 += staged_tokens) {
        const int tokens = int(min(to - n0, size_t(staged_tokens)));
        __syncthreads(); // those before have been read
        for (int i = threadIdx.x; i < tokens * router_experts; i += statistics_threads) {
            const int t = i / router_experts, j = i % router_experts;
            const size_t nj = (n0 + t) * E + j0 + j;
            staged[0][t][j] = j0 + j < E ? dmu[nj] : 0;
            staged[1][t][j] = j0 + j < E && !topk ? dvar[nj] : 0;
        }
        __syncthreads();
        if (c >= C) continue;
#pragma unroll 4
        for (int t = 0; t < tokens; t++) {
            const ChannelPair pair = *(const ChannelPair*)(x + (n0 + t) * C + c);
            const float x0 = float(pair.a), x1 = float(pair.b);
#pragma unroll
            for (int j = 0; j < router_experts; j++) {
                const float a = staged[0][t][j], b = staged[1][t][j];
                dm[j][0] += a * x0;
                dm[j][1] += a * x1;
                dv[j][0] += b * (x0 * x0);
                dv[j][1] += b * (x1 * x1);
            }
        }
    }
    if (c >= C) return;
#pragma unroll
    for (int j = 0; j < router_experts; j++) {
        if (j0 + j >= E) break;
        float2* to_m = (float2*)(partial + (part * 2 * E + j0 + j) * C + c);
        float2* to_v = (float2*)(partial + ((part * 2 + 1) * E + j0 + j) * C + c);
        *to_m = {dm[j][0], dm[j][1]};
        *to_v = {dv[j][0], dv[j][1]};
    }
}

// Adds to r.dstatistics. dmu dvar: scratch (N,E); partial: scratch, the larger of (N / 32 rounded up, 2, E)
// and (token_parts(N),2,E,C)
void router_backward(floatX* dx, const Router& r, float* dmu, float* dvar, float* partial,
                     const floatX* dslots, const float* dweight, const floatX* x, const LossWeights& scales,
                     cudaStream_t stream) {
    const size_t E = r.E, C = r.C, parts = token_parts(r.N);
    const unsigned blocks = blocks_for(r.N, router_block);
    router_backward_kernel<<<blocks, router_warps * warp_size, 0, stream>>>(dx, r, dmu, dvar, partial, dslots,
                                                                            dweight, x, scales);
    cuda_check(cudaGetLastError());
    const Statistics& ds = r.dstatistics;
    if (!r.topk) sum_partials({ds.mb, ds.vb}, partial, 1, blocks, 2 * E, E, true, stream);
    const dim3 grid(blocks_for(C, 2 * statistics_threads), unsigned(parts), blocks_for(E, router_experts));
    router_backward_statistics_kernel<<<grid, statistics_threads, 0, stream>>>(partial, dmu, dvar, x, r.topk,
                                                                               r.N, int(E), int(C));
    cuda_check(cudaGetLastError());
    sum_partials({ds.m, r.topk ? nullptr : ds.v}, partial, 1, parts, 2 * E * C, E * C, true, stream);
}

// ---------------------------------------------------------------------------------------------------------
// Dispatch: a stable counting sort of the N*K assignments by expert. No expert is ever full. A warp counts
// its tile of the assignments by expert; one block turns the counts into places; then each warp goes through
// its tile again and puts the assignments there, in their order.

constexpr size_t dispatch_tile = 256;

// counts (E,tiles), choice (N*K)
__global__ void dispatch_count_kernel(int* counts, const int* choice, size_t assignments, size_t E,
                                      size_t tiles) {
    extern __shared__ int count[]; // (E)
    for (size_t j = threadIdx.x; j < E; j += warp_size) count[j] = 0;
    __syncwarp();
    const size_t from = blockIdx.x * dispatch_tile, to = min(from + dispatch_tile, assignments);
    for (size_t i = from + threadIdx.x; i < to; i += warp_size) atomicAdd(&count[choice[i]], 1);
    __syncwarp();
    for (size_t j = threadIdx.x; j < E; j += warp_size) counts[j * tiles + blockIdx.x] = count[j];
}

// A warp makes out[i] (n) = the sum of the counts before i; out may be counts. Returns the sum of all.
__device__ inline int exclusive_scan(int* out, const int* counts, size_t n) {
    const int lane = threadIdx.x % warp_size;
    int total = 0;
    for (size_t i = lane; i - lane < n; i += warp_size) {
        const int count = i < n ? counts[i] : 0;
        int sum = count; // with the lanes before this one
#pragma unroll
        for (int offset = 1; offset < warp_size; offset *= 2) {
            const int before = __shfl_up_sync(0xffffffff, sum, offset);
            if (lane >= offset) sum += before;
        }
        if (i < n) out[i] = total + sum - count;
        total += __shfl_sync(0xffffffff, sum, warp_size - 1);
    }
    return total;
}

// counts (E,tiles) become the places of each tile's first assignment among those of its expert; begin (E+1)
__global__ void __launch_bounds__(1024)
    dispatch_scan_kernel(int* counts, int* begin, size_t E, size_t tiles) {
    extern __shared__ int total[]; // (E)
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size, warps = blockDim.x / warp_size;
    for (size_t j = warp; j < E; j += warps) {
        const int sum = exclusive_scan(counts + j * tiles, counts + j * tiles, tiles);
        if (lane == 0) total[j] = sum;
    }
    __syncthreads();
    if (warp > 0) return;
    const int sum = exclusive_scan(begin, total, E);
    if (lane == 0) begin[E] = sum;
}

// slot (N,K): where assignment (n,k) went; token (N*K): whose it is; slot_weight (N*K): its gate weight
__global__ void dispatch_place_kernel(Router r, const int* place, size_t assignments, size_t tiles) {
    extern __shared__ int next[]; // (E) the next free place of this tile
    for (size_t j = threadIdx.x; j < r.E; j += warp_size)
        next[j] = r.begin[j] + place[j * tiles + blockIdx.x];
    __syncwarp();
    const size_t from = blockIdx.x * dispatch_tile, to = min(from + dispatch_tile, assignments);
    const unsigned lanes_before = (1u << threadIdx.x) - 1;
    for (size_t i = from + threadIdx.x; i - threadIdx.x < to; i += warp_size) {
        const int expert = i < to ? r.choice[i] : -1;
        const unsigned same = __match_any_sync(0xffffffff, expert); // the lanes with this expert
        if (i < to) {
            const int s = next[expert] + __popc(same & lanes_before);
            r.slot[i] = s;
            r.token[s] = int(i / r.K);
            if (r.slot_weight) r.slot_weight[s] = r.weight[i];
        }
        __syncwarp();
        if (i < to && (same & lanes_before) == 0) next[expert] += __popc(same);
        __syncwarp();
    }
}

// From the choice: begin (E+1), expert j's slots being [begin[j], begin[j+1]); slot, token, slot_weight.
// counts: scratch (E, N*K / 256 rounded up)
void dispatch(const Router& r, int* counts, cudaStream_t stream) {
    const size_t assignments = r.N * r.K, shared = r.E * sizeof(int);
    const unsigned tiles = blocks_for(assignments, dispatch_tile);
    dispatch_count_kernel<<<tiles, warp_size, shared, stream>>>(counts, r.choice, assignments, r.E, tiles);
    dispatch_scan_kernel<<<1, 1024, shared, stream>>>(counts, r.begin, r.E, tiles);
    dispatch_place_kernel<<<tiles, warp_size, shared, stream>>>(r, counts, assignments, tiles);
    cuda_check(cudaGetLastError());
}

// out (slots,C): the row of x (N,C) of each slot's token
__global__ void gather_kernel(floatX* out, const floatX* x, const int* token, size_t slots, size_t C) {
    const size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x, packs = C / pack, s = i / packs;
    if (s >= slots) return;
    ((uint4*)out)[i] = ((const uint4*)x)[token[s] * packs + i % packs];
}
void gather(floatX* out, const floatX* x, const int* token, size_t slots, size_t C, cudaStream_t stream) {
    gather_kernel<<<blocks_for(slots * C / pack, 256), 256, 0, stream>>>(out, x, token, slots, C);
    cuda_check(cudaGetLastError());
}

// ---------------------------------------------------------------------------------------------------------
// Scaled deviations (router_sd scaled; dev/cpu/router_sd.h): v_j takes the coordinates of an expert's rows
// for independent of each other. How far off that is, is found on the tokens that chose j; after each step
//   rho_j^2 = 0.99 rho_j^2 + 0.01 sum of variances of h over the D units / sum of (sd / rho)^2

struct Variances {
    double truth, estimate; // sums over slots
};

// One warp per slot: variances (N*K), h (N*K,D)
__global__ void slot_variances_kernel(float2* variances, Router r, const floatX* h, int D) {
    const size_t s = blockIdx.x * size_t(blockDim.x / warp_size) + threadIdx.x / warp_size, K = r.K;
    const int lane = threadIdx.x % warp_size;
    if (s >= r.N * K) return;
    float sum = 0, squares = 0;
    for (int c = lane * pack; c < D; c += run_channels) {
        const Pack v = load_pack(h + s * D + c);
#pragma unroll
        for (int i = 0; i < pack; i++) sum += v[i];
    }
    const float mean = warp_sum(sum) / D;
    for (int c = lane * pack; c < D; c += run_channels) {
        const Pack v = load_pack(h + s * D + c);
#pragma unroll
        for (int i = 0; i < pack; i++) squares += (v[i] - mean) * (v[i] - mean);
    }
    squares = warp_sum(squares);
    if (lane > 0) return;
    const size_t n = r.token[s];
    int j = 0; // whose slot it is
    for (size_t k = 0; k < K; k++)
        if (size_t(r.slot[n * K + k]) == s) j = r.choice[n * K + k];
    const float sd = r.sd[n * r.E + j] / r.rho[j];
    variances[s] = {squares / D, sd * sd};
}
// sums (E) += over the slots of each expert, a block for each
__global__ void __launch_bounds__(256)
    sum_variances_kernel(Variances* sums, const float2* variances, const int* begin) {
    double truth = 0, estimate = 0;
    for (int s = begin[blockIdx.x] + int(threadIdx.x); s < begin[blockIdx.x + 1]; s += 256) {
        truth += variances[s].x;
        estimate += variances[s].y;
    }
    truth = block_sum<256>(truth);
    __syncthreads(); // the sums have been read
    estimate = block_sum<256>(estimate);
    if (threadIdx.x > 0) return;
    sums[blockIdx.x].truth += truth;
    sums[blockIdx.x].estimate += estimate;
}
// partial: scratch (N*K,2)
void add_variances(Variances* sums, const Router& r, const floatX* h, size_t D, float* partial,
                   cudaStream_t stream) {
    slot_variances_kernel<<<blocks_for(r.N * r.K, 8), 8 * warp_size, 0, stream>>>((float2*)partial, r, h,
                                                                                  int(D));
    sum_variances_kernel<<<unsigned(r.E), 256, 0, stream>>>(sums, (const float2*)partial, r.begin);
    cuda_check(cudaGetLastError());
}

// rho sums (count)
__global__ void move_rho_kernel(float* rho, const Variances* sums, const Totals* totals, size_t count) {
    const size_t j = blockIdx.x * size_t(blockDim.x) + threadIdx.x;
    if (j >= count || !totals->finite() || sums[j].estimate <= 0) return; // nobody chose it
    rho[j] = float(sqrt(0.99 * double(rho[j]) * rho[j] + 0.01 * sums[j].truth / sums[j].estimate));
}

// ---------------------------------------------------------------------------------------------------------
// Experts: on its own slots, expert j computes
//   h = x W_enc[j]^T + b_enc[j]      z = act(h)      y = z W_dec[j] + b_dec[j]
// in matrix products (section 3) whose epilogues add the bias and apply the activation. Where cuBLASLt has no
// such epilogue for a shape, these kernels do it. relu(h) = max(h, 0); gelu(h) = h/2 (1 + tanh u) with
// u = sqrt(2/pi) (h + 0.044715 h^3).

__host__ __device__ inline float gelu(float h) {
    return 0.5f * h * (1 + tanhf(0.79788456f * (h + 0.044715f * h * h * h)));
}
// gelu' = (1 + tanh u)/2 + h/2 (1 - tanh^2 u) u'
__device__ inline float gelu_slope(float h) {
    const float t = tanhf(0.79788456f * (h + 0.044715f * h * h * h));
    return 0.5f * (1 + t) + 0.5f * h * (1 - t * t) * 0.79788456f * (1 + 3 * 0.044715f * h * h);
}

// z = act(h), z may be h; count a multiple of pack
__global__ void activation_forward_kernel(floatX* z, const floatX* h, size_t count, bool relu) {
    const size_t i = (blockIdx.x * size_t(blockDim.x) + threadIdx.x) * pack;
    if (i >= count) return;
    Pack v = load_pack(h + i);
#pragma unroll
    for (int k = 0; k < pack; k++) v[k] = !relu ? gelu(v[k]) : v[k] <= 0 ? 0 : v[k]; // NaN stays NaN
    store_pack(z + i, v);
}
void activation_forward(floatX* z, const floatX* h, size_t count, bool relu, cudaStream_t stream) {
    activation_forward_kernel<<<blocks_for(count, 256 * pack), 256, 0, stream>>>(z, h, count, relu);
    cuda_check(cudaGetLastError());
}

// dh = dz * act'(h), in place. For relu, h may be its output: both are positive together.
__global__ void activation_backward_kernel(floatX* dh, const floatX* h, size_t count, bool relu) {
    const size_t i = (blockIdx.x * size_t(blockDim.x) + threadIdx.x) * pack;
    if (i >= count) return;
    const Pack v = load_pack(h + i);
    Pack d = load_pack(dh + i);
#pragma unroll
    for (int k = 0; k < pack; k++) d[k] = !relu ? d[k] * gelu_slope(v[k]) : v[k] > 0 ? d[k] : 0;
    store_pack(dh + i, d);
}
void activation_backward(floatX* dh, const floatX* h, size_t count, bool relu, cudaStream_t stream) {
    activation_backward_kernel<<<blocks_for(count, 256 * pack), 256, 0, stream>>>(dh, h, count, relu);
    cuda_check(cudaGetLastError());
}

// ---------------------------------------------------------------------------------------------------------
// Dense layers of two more kinds of units (dev/cpu/layers.h says whose they are), W of them:
//   GEGLU   z = gelu(a) u, a and u two products of x     da = dz u gelu'(a)      du = dz gelu(a)
//   SoLU    s = softmax of h over the W units            u = W h s               z = LayerNorm of u
//           with q = sum_i du_i u_i:                     dh_i = s_i (W du_i (1 + h_i) - q)

// z a u (count), a multiple of pack
__global__ void geglu_forward_kernel(floatX* z, const floatX* a, const floatX* u, size_t count) {
    const size_t i = (blockIdx.x * size_t(blockDim.x) + threadIdx.x) * pack;
    if (i >= count) return;
    const Pack gate = load_pack(a + i);
    Pack v = load_pack(u + i);
#pragma unroll
    for (int k = 0; k < pack; k++) v[k] *= gelu(gate[k]);
    store_pack(z + i, v);
}
void geglu_forward(floatX* z, const floatX* a, const floatX* u, size_t count, cudaStream_t stream) {
    geglu_forward_kernel<<<blocks_for(count, 256 * pack), 256, 0, stream>>>(z, a, u, count);
    cuda_check(cudaGetLastError());
}

// da du a u (count); du is dz on entry
__global__ void geglu_backward_kernel(floatX* da, floatX* du, const floatX* a, const floatX* u,
                                      size_t count) {
    const size_t i = (blockIdx.x * size_t(blockDim.x) + threadIdx.x) * pack;
    if (i >= count) return;
    const Pack gate = load_pack(a + i), v = load_pack(u + i);
    Pack d = load_pack(du + i), dgate;
#pragma unroll
    for (int k = 0; k < pack; k++) {
        dgate[k] = d[k] * v[k] * gelu_slope(gate[k]);
        d[k] *= gelu(gate[k]);
    }
    store_pack(da + i, dgate);
    store_pack(du + i, d);
}
void geglu_backward(floatX* da, floatX* du, const floatX* a, const floatX* u, size_t count,
                    cudaStream_t stream) {
    geglu_backward_kernel<<<blocks_for(count, 256 * pack), 256, 0, stream>>>(da, du, a, u, count);
    cuda_check(cudaGetLastError());
}

// A softmax is kept as the logarithm of its sum: s_i = exp(h_i - lse). A warp finds that of a row (W).
template <class T> __device__ inline float log_sum_exp(const T* row, int W) {
    const int first = threadIdx.x % warp_size * pack;
    float most = -INFINITY, sum = 0;
    for (int c = first; c < W; c += run_channels) {
        const Pack v = load_pack(row + c);
#pragma unroll
        for (int i = 0; i < pack; i++) most = fmaxf(most, v[i]);
    }
    most = warp_max(most);
    for (int c = first; c < W; c += run_channels) {
        const Pack v = load_pack(row + c);
#pragma unroll
        for (int i = 0; i < pack; i++) sum += expf(v[i] - most);
    }
    return most + logf(warp_sum(sum));
}
// One warp per row of h (N,W); lse (N)
__global__ void solu_lse_kernel(float* lse, const floatX* h, size_t N, int W) {
    const size_t n = blockIdx.x * size_t(blockDim.x / warp_size) + threadIdx.x / warp_size;
    if (n >= N) return;
    const float of_row = log_sum_exp(h + n * W, W);
    if (threadIdx.x % warp_size == 0) lse[n] = of_row;
}

__device__ inline float solu(float h, float lse, int W) { return W * h * expf(h - lse); }

struct MakeSolu {     // rows of u
    const floatX* h;  // (N,W)
    const float* lse; // (N)
    int W;
    __device__ Pack operator()(size_t n, int c) const {
        Pack v = load_pack(h + n * W + c);
#pragma unroll
        for (int i = 0; i < pack; i++) v[i] = solu(v[i], lse[n], W);
        return v;
    }
};

// u h (N,W), lse (N); z is what the norm gives
void solu_forward(floatX* u, float* lse, const Norm& norm, const floatX* h, cudaStream_t stream) {
    solu_lse_kernel<<<blocks_for(norm.N, 8), 8 * warp_size, 0, stream>>>(lse, h, norm.N, norm.C);
    cuda_check(cudaGetLastError());
    rows_layernorm(u, norm, MakeSolu{h, lse, norm.C}, stream);
}

// One warp per row.  dh du u h (N,W), lse (N)
__global__ void solu_backward_kernel(floatX* dh, const floatX* du, const floatX* u, const floatX* h,
                                     const float* lse, size_t N, int W) {
    const size_t n = blockIdx.x * size_t(blockDim.x / warp_size) + threadIdx.x / warp_size;
    if (n >= N) return;
    const size_t row = n * W;
    const int first = threadIdx.x % warp_size * pack;
    float q = 0;
    for (int c = first; c < W; c += run_channels) {
        const Pack d = load_pack(du + row + c), v = load_pack(u + row + c);
#pragma unroll
        for (int i = 0; i < pack; i++) q += d[i] * v[i];
    }
    q = warp_sum(q);
    for (int c = first; c < W; c += run_channels) {
        const Pack v = load_pack(h + row + c);
        Pack d = load_pack(du + row + c);
#pragma unroll
        for (int i = 0; i < pack; i++) d[i] = expf(v[i] - lse[n]) * (W * d[i] * (1 + v[i]) - q);
        store_pack(dh + row + c, d);
    }
}
constexpr size_t most_solu_units = layernorm_sums * most_channels / 2; // layernorm_backward has two sums here

// dh is dz on entry. du: scratch (N,W); partial: scratch (layernorm_blocks,2,W)
void solu_backward(floatX* dh, floatX* du, const Norm& norm, const floatX* u, const floatX* h,
                   const float* lse, float* partial, cudaStream_t stream) {
    cuda_check(cudaMemsetAsync(du, 0, norm.N * norm.C * sizeof(floatX), stream));
    layernorm_backward(du, nullptr, norm, dh, u, partial, stream);
    solu_backward_kernel<<<blocks_for(norm.N, 8), 8 * warp_size, 0, stream>>>(dh, du, u, h, lse, norm.N,
                                                                              norm.C);
    cuda_check(cudaGetLastError());
}

// ---------------------------------------------------------------------------------------------------------
// How many units fire

// *active += how many of z are positive: the units that fired. With relu's mask, a bit for each unit, the
// bits are counted instead: a sixteenth of the bytes. A thread takes 16 bytes of either at a time.
__global__ void count_active_kernel(unsigned long long* active, const floatX* z, const uint4* mask,
                                    size_t packs) {
    int sum = 0;
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < packs;
         i += gridDim.x * size_t(blockDim.x)) {
        const uint4 bits = mask ? mask[i] : uint4{};
        const Pack v = mask ? Pack{} : load_pack(z + i * pack);
        sum += __popc(bits.x) + __popc(bits.y) + __popc(bits.z) + __popc(bits.w);
#pragma unroll
        for (int k = 0; k < pack; k++) sum += v[k] > 0;
    }
    sum = __reduce_add_sync(0xffffffff, sum);
    if (threadIdx.x % warp_size == 0 && sum) atomicAdd(active, (unsigned long long)sum);
}
// z or mask for `count` units
void count_active(unsigned long long* active, const floatX* z, const uint4* mask, size_t count,
                  cudaStream_t stream) {
    const size_t packs = count / (mask ? 128 : pack);
    const unsigned blocks = std::min(unsigned(count_blocks), blocks_for(packs, 256));
    count_active_kernel<<<blocks, 256, 0, stream>>>(active, z, mask, packs);
    cuda_check(cudaGetLastError());
}

// ---------------------------------------------------------------------------------------------------------
// Combine: out_n = x_n + sum_k w_nk y_slot(n,k), normalised by the next layer's ln_1 (after the last, ln_f)

// out x (N,C), y (N*K,C); weighted: y is w_nk times that already
void combine_layernorm_forward(floatX* out, const Norm& norm, const floatX* x, const floatX* y,
                               const Router& r, bool weighted, cudaStream_t stream) {
    rows_layernorm(out, norm, MakeSum{x, y, r.K, norm.C, weighted ? nullptr : r.weight, r.slot}, stream);
}

// Of experts by hand (below) there is no y without its weight: their part z W_dec of dw_nk comes as sums
// along parts of the rows (N*K,parts), and of y there is the bias, by expert.
struct PartsOfY {
    const float* z_sums; // (N*K,parts)
    int parts;
    const floatX* b_dec; // (E,C)
};

// dy_slot(n,k) = w_nk dout_n      dw_nk = dout_n . y_slot(n,k).   One warp per token. y may be null.
__global__ void combine_backward_kernel(floatX* dy, float* dweight, const floatX* dout, const floatX* y,
                                        PartsOfY without_y, Router r) {
    const int lane = threadIdx.x % warp_size, C = int(r.C), K = int(r.K);
    const size_t n = blockIdx.x * size_t(blockDim.x / warp_size) + threadIdx.x / warp_size;
    if (n >= r.N) return;
    for (int k = 0; k < K; k++) {
        const size_t s = r.slot[n * K + k];
        const floatX* const row = y ? y + s * C : without_y.b_dec + size_t(r.choice[n * K + k]) * C;
        const float w = r.weight[n * K + k];
        float dot = 0;
        for (int i = lane; i < without_y.parts; i += warp_size)
            dot += without_y.z_sums[s * without_y.parts + i];
        for (int c = lane * pack; c < C; c += run_channels) {
            const Pack d = load_pack(dout + n * C + c), v = load_pack(row + c);
#pragma unroll
            for (int i = 0; i < pack; i++) dot += d[i] * v[i];
            store_pack(dy + s * C + c, w * d);
        }
        dot = warp_sum(dot);
        if (lane == 0) dweight[n * K + k] = dot;
    }
}
// dy (N*K,C), dweight (N,K), dout (N,C), y (N*K,C), or null and without_y
void combine_backward(floatX* dy, float* dweight, const floatX* dout, const floatX* y,
                      const PartsOfY& without_y, const Router& r, cudaStream_t stream) {
    combine_backward_kernel<<<blocks_for(r.N, 8), 8 * warp_size, 0, stream>>>(dy, dweight, dout, y, without_y,
                                                                              r);
    cuda_check(cudaGetLastError());
}

// ---------------------------------------------------------------------------------------------------------
// Classifier: loss_n = -log softmax(logits_n)[target_n];  dlogits_nv = scale (softmax_nv - [v = target_n])

__device__ inline float exp_of(float x) { return exp2f(log2_e * x); }

// losses (N), targets (N), logits (N,Vp) of which the first V of a row count; with scale not 0 they become
// their gradient, and those behind V become 0. One block per row. Each thread runs over its part of the row
// with a maximum and a sum of exponentials on the scale of that maximum, so the row is read once for the loss
// and once, by then from the cache, for the gradient. What is left of a row after whole packs is gone through
// number by number.
__global__ void __launch_bounds__(1024)
    classifier_kernel(float* losses, floatX* logits, const int* targets, float scale, size_t V, size_t Vp) {
    __shared__ float mosts[warp_size], sums[warp_size];
    const int warp = threadIdx.x / warp_size, lane = threadIdx.x % warp_size, warps = blockDim.x / warp_size;
    floatX* row = logits + blockIdx.x * Vp;
    const int target = targets[blockIdx.x], whole = int(V / pack * pack), step = int(blockDim.x) * pack;
    const float target_logit = float(row[target]);
    float most = -INFINITY, sum = 0;
    for (int c = int(threadIdx.x) * pack; c < whole; c += step) {
        const Pack v = load_pack(row + c);
        float higher = most;
#pragma unroll
        for (int i = 0; i < pack; i++) higher = fmaxf(higher, v[i]);
        sum *= exp_of(most - higher);
#pragma unroll
        for (int i = 0; i < pack; i++) sum += exp_of(v[i] - higher);
        most = higher;
    }
    for (int c = whole + int(threadIdx.x); c < int(V); c += int(blockDim.x)) {
        const float v = float(row[c]), higher = fmaxf(most, v);
        sum = sum * exp_of(most - higher) + exp_of(v - higher);
        most = higher;
    }
    const float warp_most = warp_max(most);
    if (lane == 0) mosts[warp] = warp_most;
    __syncthreads();
    float row_most = -INFINITY;
    for (int i = 0; i < warps; i++) row_most = fmaxf(row_most, mosts[i]);
    sum = warp_sum(sum * exp_of(most - row_most));
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
    float row_sum = 0;
    for (int i = 0; i < warps; i++) row_sum += sums[i];
    // The maximum and the target before the logarithm: exact where two large logits differ little.
    if (threadIdx.x == 0) losses[blockIdx.x] = logf(row_sum) + (row_most - target_logit);
    if (scale == 0) return;
    const float factor = scale / row_sum;
    for (int c = int(threadIdx.x) * pack; c < whole; c += step) {
        Pack v = load_pack(row + c);
#pragma unroll
        for (int i = 0; i < pack; i++) v[i] = factor * exp_of(v[i] - row_most);
        store_pack(row + c, v);
    }
    for (int c = whole + int(threadIdx.x); c < int(Vp); c += int(blockDim.x))
        row[c] = floatX(c < int(V) ? factor * exp_of(float(row[c]) - row_most) : 0);
    __syncthreads();
    if (threadIdx.x == 0) row[target] = floatX(factor * exp_of(target_logit - row_most) - scale);
}
void classifier(float* losses, floatX* logits, const int* targets, float scale, size_t N, size_t V, size_t Vp,
                cudaStream_t stream) {
    const size_t threads = std::clamp<size_t>(round_up(V / pack, warp_size), warp_size, 1024);
    classifier_kernel<<<unsigned(N), unsigned(threads), 0, stream>>>(losses, logits, targets, scale, V, Vp);
    cuda_check(cudaGetLastError());
}

// *total += scale * sum of losses (N), in one block
__global__ void __launch_bounds__(1024)
    sum_losses_kernel(double* total, const float* losses, double scale, size_t N) {
    double sum = 0;
    for (size_t n = threadIdx.x; n < N; n += blockDim.x) sum += losses[n];
    sum = block_sum<1024>(sum);
    if (threadIdx.x == 0) *total += scale * sum;
}

// ---------------------------------------------------------------------------------------------------------
// Update: the norm of the gradient, clipping, and AdamW with decoupled weight decay (Loshchilov and Hutter,
// arXiv 1711.05101), t = 1, 2, ..., G = clipped gradient:
//   m = b1 m + (1-b1) G     v = b2 v + (1-b2) G^2     mhat = m / (1-b1^t)     vhat = v / (1-b2^t)
//   w -= lr (mhat / (sqrt(vhat) + eps) + decay w)
// w is the fp32 master weight. The bf16 weight the model computes with is w rounded at random to one of its
// two neighbours, to each as often as w is close to it: an update smaller than a bf16 step is then not lost,
// but taken now and then. The random bits depend on the seed, the step and the place alone, so a run that
// resumes makes the same bf16 weights from the master weights again, and only these have to be saved.

// squares (segments): the sum of squares of every segment of the numbers, of which the last may be shorter.
__global__ void __launch_bounds__(256)
    segment_squares_kernel(double* squares, const float* numbers, size_t count) {
    const size_t begin = blockIdx.x * segment_numbers, end = min(begin + segment_numbers, count);
    double sum = 0;
    for (size_t i = begin + threadIdx.x * pack; i < end; i += 256 * pack) {
        const Pack g = load_pack(numbers + i);
        float of_pack = 0;
#pragma unroll
        for (int k = 0; k < pack; k++) of_pack += g[k] * g[k];
        sum += of_pack;
    }
    sum = block_sum<256>(sum);
    if (threadIdx.x == 0) squares[blockIdx.x] = sum;
}
// numbers (count), count a multiple of 32
void segment_squares(double* squares, const float* numbers, size_t count, cudaStream_t stream) {
    if (count == 0) return;
    segment_squares_kernel<<<blocks_for(count, segment_numbers), 256, 0, stream>>>(squares, numbers, count);
    cuda_check(cudaGetLastError());
}

// Adds the totals of the micro-batches of a step, and the squares of the segments of its gradient: norm =
// sqrt(sum of squares). In one block, each in its order, wherever in `parts` it lies: order
// (segments + micro_batches). Behind the totals of a micro-batch lie its variances; all go to variances
// (experts).
__global__ void __launch_bounds__(1024)
    step_totals_kernel(Totals* totals, Variances* variances, const double* parts, const int* order,
                       size_t segments, size_t micro_batches, size_t experts) {
    double sum = 0;
#pragma unroll 4
    for (size_t s = threadIdx.x; s < segments; s += 1024) sum += parts[order[s]];
    sum = block_sum<1024>(sum);
    for (size_t i = 0; i < micro_batches; i++)
        for (size_t j = threadIdx.x; j < experts; j += 1024) {
            const Variances& v = ((const Variances*)((const Totals*)(parts + order[segments + i]) + 1))[j];
            variances[j].truth += v.truth;
            variances[j].estimate += v.estimate;
        }
    if (threadIdx.x > 0) return;
    totals->norm = sqrt(sum);
    for (size_t i = 0; i < micro_batches; i++) {
        const Totals& micro = *(const Totals*)(parts + order[segments + i]);
        totals->loss += micro.loss;
        totals->aux += micro.aux;
        totals->active += micro.active;
        if (micro.stop > totals->stop) totals->stop = micro.stop;
    }
}
void step_totals(Totals* totals, Variances* variances, const double* parts, const int* order, size_t segments,
                 size_t micro_batches, size_t experts, cudaStream_t stream) {
    step_totals_kernel<<<1, 1024, 0, stream>>>(totals, variances, parts, order, segments, micro_batches,
                                               experts);
    cuda_check(cudaGetLastError());
}

// to += from (count), count a multiple of 32
__global__ void add_parts_kernel(float* to, const float* from, size_t count) {
    const size_t i = (blockIdx.x * size_t(blockDim.x) + threadIdx.x) * pack;
    if (i >= count) return;
    Pack sum = load_pack(to + i);
    sum += load_pack(from + i);
    store_pack(to + i, sum);
}
void add_parts(float* to, const float* from, size_t count, cudaStream_t stream) {
    if (count == 0) return;
    add_parts_kernel<<<blocks_for(count, 256 * pack), 256, 0, stream>>>(to, from, count);
    cuda_check(cudaGetLastError());
}

// *hash += a sum over the words, each mixed with its place: another word, another hash. Integers: any order.
__global__ void hash_kernel(unsigned long long* hash, const uint32_t* words, size_t count) {
    unsigned long long sum = 0;
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < count;
         i += gridDim.x * size_t(blockDim.x))
        sum += mix64(uint64_t(i) << 32 ^ words[i]);
    sum = block_sum<256>(sum);
    if (threadIdx.x == 0) atomicAdd(hash, sum);
}

__device__ inline __nv_bfloat16 round_at_random(float w, uint32_t random) {
    // The upper half of a float is a bf16; a random number below one step of it, added, carries into it.
    // (Into a NaN, whose bits may all be ones, it would carry until a zero is left.)
    if (w != w) return __float2bfloat16(w);
    const uint32_t bits = __float_as_uint(w) + (random & 0xffff);
    return __ushort_as_bfloat16((unsigned short)(bits >> 16));
}
__device__ inline void round_weight(floatX* weight, float master, [[maybe_unused]] uint64_t key,
                                    [[maybe_unused]] size_t i) {
#ifdef PRECISION_FP32
    *weight = master;
#else
    *weight = key ? round_at_random(master, uint32_t(mix64(key ^ i))) : __float2bfloat16(master);
#endif
}
// The random bits of step t; a model's first weights (t = 0) are rounded to the nearest.
inline uint64_t rounding_key(uint64_t seed, uint64_t t) {
    return t ? random_u64(seed, random_stream("rounding"), t) | 1 : 0;
}

// weights master (count), of the whole block those from `first` on
__global__ void round_weights_kernel(floatX* weights, const float* master, uint64_t key, size_t first,
                                     size_t count) {
    const size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x;
    if (i < count) round_weight(weights + i, master[i], key, first + i);
}
void round_weights(floatX* weights, const float* master, uint64_t key, size_t first, size_t count,
                   cudaStream_t stream) {
    round_weights_kernel<<<blocks_for(count, 256), 256, 0, stream>>>(weights, master, key, first, count);
    cuda_check(cudaGetLastError());
}

struct AdamW {
    float lr = 3e-4f, beta_1 = 0.9f, beta_2 = 0.95f, eps = 1e-8f, weight_decay = 0.1f, clip = 1;
};

// weights master gradients m v (count), of the whole block those from `first` on, count a multiple of 32;
// decays (count/32): whether the tensor that these 32 belong to decays.
__global__ void update_kernel(floatX* weights, float* master, const float* gradients, float* m, float* v,
                              const uint8_t* decays, const Totals* totals, AdamW a, float fix_1, float fix_2,
                              uint64_t key, size_t first, size_t count) {
    const size_t i = (blockIdx.x * size_t(blockDim.x) + threadIdx.x) * pack;
    if (i >= count || !totals->finite()) return;
    const float norm = float(totals->norm), scale = a.clip > 0 && norm > a.clip ? a.clip / norm : 1;
    const float decay = decays[i / 32] ? a.weight_decay : 0;
    const Pack g = load_pack(gradients + i);
    Pack w = load_pack(master + i), m_i = load_pack(m + i), v_i = load_pack(v + i);
    uint4 rounded; // a pack of weights
#pragma unroll
    for (int k = 0; k < pack; k++) {
        const float G = scale * g[k];
        m_i[k] = a.beta_1 * m_i[k] + (1 - a.beta_1) * G;
        v_i[k] = a.beta_2 * v_i[k] + (1 - a.beta_2) * G * G;
        w[k] -= a.lr * (fix_1 * m_i[k] / (sqrtf(fix_2 * v_i[k]) + a.eps) + decay * w[k]);
        round_weight((floatX*)&rounded + k, w[k], key, first + i + k);
    }
    store_pack(m + i, m_i);
    store_pack(v + i, v_i);
    *(uint4*)(weights + i) = rounded;
    if ((void*)weights != (void*)master) store_pack(master + i, w);
}

// ---------------------------------------------------------------------------------------------------------
// Products of a tile, by mma.sync and by wgmma: what the experts by hand are made of
//
// A block multiplies a tile of numbers at a time: 128 rows of a by 128 or 256 columns, which are rows of b,
// each summed over `depth` numbers. It does so in one of two ways, as the card has it, MmaTile or WgmmaTile:
// how an operand lies in shared memory, how it is multiplied, and which sums a lane then has. How the
// operands come there is the same for both, and so are the epilogues.

constexpr int grouped_rows = 128; // of a tile
constexpr int grouped_ahead = 2;  // steps of a tile that are on their way while one is multiplied
__host__ __device__ constexpr int tiles_along(int n, int width) { return (n + width - 1) / width; }

// A lane has its numbers as mma.sync leaves them: of every 8 rows one, of every 8 columns two. As the columns
// of a product are in whatever order the rows of b are, those of 32 columns are given an order in which a
// lane's eight are beside each other, and reach memory in one piece: column 8 t + 2 q + e, of lane t of four,
// is the 8 q + 2 t + e-th. A wide b has its columns as they lie in memory; there lanes exchange:
// beside_each_other().
__device__ inline int ordered(int column) {
#ifdef PRECISION_FP32
    return column;
#else
    return column / 32 * 32 + column / 2 % 4 * 8 + column / 8 % 4 * 2 + column % 2;
#endif
}

// The product of a tile goes in steps of `depth` numbers of each row that are summed over. An operand of a
// step lies in shared memory as it does in memory: narrow, the tile's rows (of b: columns), each a line of
// `depth` numbers; or wide, `depth` lines, one for each number that is summed over, of the tile's rows
// (columns).
//
// By mma.sync: 8 warps, 2 x 4 of them, have 64 x 32 numbers each; in the fp32 build every lane sums the same
// ones by itself. Between lines there are 16 bytes, as in attention. Two such blocks share a multiprocessor:
// one multiplies while the other waits or has its epilogue.
struct MmaTile {
    static constexpr int columns = 128, depth = 64 / sizeof(floatX), stages = 3, threads = 256;
    static constexpr unsigned blocks = pack == 4 ? 1 : 2; // of a multiprocessor; fp32 needs the registers
    static constexpr int m = 4, n = 4;                    // a lane's share: of 16 m rows, 8 n columns
    static constexpr int window = 8 / pack; // packs that it asks for ahead, as far as the registers go
    static constexpr bool compiled = true;
    static constexpr int narrow_stride = depth + pack, wide_stride = columns + pack;
    static constexpr int a_size = grouped_rows * narrow_stride, stage_size = 2 * a_size; // in numbers
    static_assert(depth * wide_stride <= a_size && grouped_rows == columns);
    static constexpr size_t shared_bytes = stages * stage_size * sizeof(floatX);

    __device__ static int warp_row() { return threadIdx.x / 128 * 64; }
    __device__ static int warp_column() { return threadIdx.x / 32 % 4 * 32; }
    static constexpr int line_packs(bool wide) { return (wide ? columns : depth) / pack; }
    __host__ __device__ static constexpr int line_stride(bool wide) {
        return wide ? wide_stride : narrow_stride;
    }
    template <bool wide> __device__ static int place(int line, int column) {
        return line * line_stride(wide) + column;
    }
    __device__ static void publish() {}
    __device__ static void finish(float[m][n][4]) {}
    template <bool a_wide, bool b_wide>
    __device__ __forceinline__ static void multiply(float c[m][n][4], const floatX* a, const floatX* b);
};

// c += a b of one step
template <bool a_wide, bool b_wide>
__device__ __forceinline__ void MmaTile::multiply(float c[m][n][4], const floatX* a, const floatX* b) {
    a += warp_row() * (a_wide ? 1 : narrow_stride);
    b += warp_column() * (b_wide ? 1 : narrow_stride);
#ifndef PRECISION_FP32
    const uint32_t a_at = a_wide ? lane_address_transposed<columns>(a) : lane_address<depth>(a);
    const uint32_t b_at = b_wide ? lane_address<columns>(b) : lane_address_transposed<depth>(b);
#pragma unroll
    for (int k = 0; k < depth; k += 16) {
        uint32_t rows[m][4];
#pragma unroll
        for (int i = 0; i < m; i++)
            if constexpr (a_wide)
                ldmatrix_x4_trans(rows[i], a_at + (k * wide_stride + i * 16) * sizeof(floatX));
            else
                ldmatrix_x4(rows[i], a_at + (i * 16 * narrow_stride + k) * sizeof(floatX));
#pragma unroll
        for (int j = 0; j < n; j += 2) {
            uint32_t columns[4];
            if constexpr (b_wide)
                ldmatrix_x4_trans(columns, b_at + (k * wide_stride + j * 8) * sizeof(floatX));
            else
                ldmatrix_x4(columns, b_at + (j * 8 * narrow_stride + k) * sizeof(floatX));
#pragma unroll
            for (int i = 0; i < m; i++) {
                mma_m16n8k16(c[i][j], rows[i], columns[0], columns[1]);
                mma_m16n8k16(c[i][j + 1], rows[i], columns[2], columns[3]);
            }
        }
    }
#else
    const int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * pack;
#pragma unroll 2 // as far as the registers go
    for (int k = 0; k < depth; k++) {
        float rows[8], columns[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int r = row + i * 8, j = column + i / pack * 4 * pack + i % pack;
            rows[i] = a_wide ? a[k * wide_stride + r] : a[r * narrow_stride + k];
            columns[i] = b_wide ? b[k * wide_stride + j] : b[j * narrow_stride + k];
        }
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int j = 0; j < 8; j++) c[i / 2][j / 2][i % 2 * 2 + j % 2] += rows[i] * columns[j];
    }
#endif
}

#ifndef PRECISION_FP32
// By wgmma, which only code for sm_90a has: four warps, a warpgroup, multiply 64 x 16 by 16 x 256 numbers
// that they leave in shared memory, at twice the rate of mma.sync. It goes on by itself: it reads shared
// memory and adds to registers until wait says that at most so many of the groups closed by commit are still
// at it.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// What threads have written to shared memory before, copies included, wgmma reads after it.
__device__ __forceinline__ void fence_async_proxy() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// c (64,256) += a (64,16) b (256,16)^T. A lane's c: as mma.sync's, warp after warp 16 rows.
template <bool a_wide, bool b_wide> __device__ __forceinline__ void wgmma(float* c, uint64_t a, uint64_t b) {
    // clang-format off
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
                 " %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
                 " %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
                 " %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
                 " %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
                 "%128, %129, 1, 1, 1, %130, %131;"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),
                   "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]),
                   "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]),
                   "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]),
                   "+f"(c[32]), "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]),
                   "+f"(c[40]), "+f"(c[41]), "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]),
                   "+f"(c[48]), "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]),
                   "+f"(c[56]), "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63]),
                   "+f"(c[64]), "+f"(c[65]), "+f"(c[66]), "+f"(c[67]), "+f"(c[68]), "+f"(c[69]), "+f"(c[70]), "+f"(c[71]),
                   "+f"(c[72]), "+f"(c[73]), "+f"(c[74]), "+f"(c[75]), "+f"(c[76]), "+f"(c[77]), "+f"(c[78]), "+f"(c[79]),
                   "+f"(c[80]), "+f"(c[81]), "+f"(c[82]), "+f"(c[83]), "+f"(c[84]), "+f"(c[85]), "+f"(c[86]), "+f"(c[87]),
                   "+f"(c[88]), "+f"(c[89]), "+f"(c[90]), "+f"(c[91]), "+f"(c[92]), "+f"(c[93]), "+f"(c[94]), "+f"(c[95]),
                   "+f"(c[96]), "+f"(c[97]), "+f"(c[98]), "+f"(c[99]), "+f"(c[100]), "+f"(c[101]), "+f"(c[102]), "+f"(c[103]),
                   "+f"(c[104]), "+f"(c[105]), "+f"(c[106]), "+f"(c[107]), "+f"(c[108]), "+f"(c[109]), "+f"(c[110]), "+f"(c[111]),
                   "+f"(c[112]), "+f"(c[113]), "+f"(c[114]), "+f"(c[115]), "+f"(c[116]), "+f"(c[117]), "+f"(c[118]), "+f"(c[119]),
                   "+f"(c[120]), "+f"(c[121]), "+f"(c[122]), "+f"(c[123]), "+f"(c[124]), "+f"(c[125]), "+f"(c[126]), "+f"(c[127])
                 : "l"(a), "l"(b), "n"(int(a_wide)), "n"(int(b_wide)));
    // clang-format on
}

// An operand lies in lines of 128 bytes. So that neither 8 lines at the same column nor 8 columns of a line
// share banks, chunk i (16 bytes) of line l stands at i ^ l % 8: the swizzle of 128 bytes. Narrow, a line is
// a row; wide, it is one number of 64 rows (columns), and after `depth` such lines come those of the next 64.
// wgmma is told by a descriptor: address / 16; from bit 16 on how far the next 64 are, if wide, and from bit
// 32 on how far the next 8 lines are, both / 16; bit 62: this swizzle, which it finds by the bits of an
// address.
//
// 2 warpgroups have 64 x 256 numbers each: half of a lane's registers. One block has the multiprocessor for
// itself, and the next tile's first steps are loaded during the epilogue. The larger the tile, the less is
// read for each product: a step reads 48 KB from the L2 cache in the time of 1,024 cycles of multiplying.
struct WgmmaTile {
    static constexpr int columns = 256, depth = 64, stages = 4, threads = 256;
    static constexpr unsigned blocks = 1;
    static constexpr int m = 1, n = 32, window = 8;
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(MOEX_EMU)
    static constexpr bool compiled = true;
#else
    static constexpr bool compiled = false;
#endif
    static constexpr int line = 64, a_size = grouped_rows * line, stage_size = a_size + columns * line;
    static_assert(line * sizeof(floatX) == 128 && stage_size * sizeof(floatX) % 1024 == 0);
    // and the sums of UnitsBackward of 8 warps
    static constexpr size_t shared_bytes = stages * stage_size * sizeof(floatX) + 8 * columns * sizeof(float);

    __device__ static int warp_row() { return threadIdx.x / 32 * 16; }
    __device__ static int warp_column() { return 0; }
    static constexpr int line_packs(bool) { return line / pack; }
    __host__ __device__ static constexpr int line_stride(bool) { return line; }
    template <bool wide> __device__ static int place(int l, int column) {
        return l * line + (column / pack ^ l % 8) * pack;
    }
    __device__ static uint64_t descriptor(const floatX* p) {
        const uint64_t next_64 = depth * line * sizeof(floatX), next_8 = 8 * line * sizeof(floatX);
        return shared_address(p) >> 4 | next_64 >> 4 << 16 | next_8 >> 4 << 32 | uint64_t(1) << 62;
    }
    __device__ static void publish() { fence_async_proxy(); }
    __device__ __forceinline__ static void finish(float c[m][n][4]) {
        wgmma_wait<0>();
#pragma unroll
        for (int i = 0; i < n * 4; i++)
            asm volatile("" : "+f"(c[0][i / 4][i % 4])::"memory"); // nobody reads it before
    }
    // c += a b of one step: is under way when this returns, and the step before has ended
    template <bool a_wide, bool b_wide>
    __device__ __forceinline__ static void multiply(float c[m][n][4], const floatX* a, const floatX* b) {
        const uint64_t a_at = descriptor(a + threadIdx.x / 128 * 64 * line), b_at = descriptor(b);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < depth; k += 16)
            wgmma<a_wide, b_wide>(c[0][0], a_at + k * (a_wide ? line : 1) * sizeof(floatX) / 16,
                                  b_at + k * (b_wide ? line : 1) * sizeof(floatX) / 16);
        wgmma_commit();
        wgmma_wait<1>();
    }
};
#endif

// One operand of a tile: `across` rows (wide: columns) of it, of `depth` numbers (wide: rows) to sum over.
struct Operand {
    const floatX* from; // the first row, but with `index` row 0, of which row index[i] is taken as the i-th
    const int* index;
    int stride, across, depth; // stride: from row to row
};

// A thread's share of copying an operand, `turns` times 16 bytes of a step. What there is not arrives as
// zeros and is not read.
template <class Tile, bool wide, bool is_b, bool gathers>
struct OperandCopy { // gathers: `index` may be given
    static constexpr int packs = Tile::line_packs(wide), between = Tile::threads / packs; // its lines
    static constexpr int turns = (is_b ? Tile::columns : grouped_rows) * Tile::depth / pack / Tile::threads;
    static constexpr int rows =
        wide ? Tile::depth / between : turns; // wide: then the same ones, further right
    static_assert(between % (is_b && !wide ? 32 : 8) ==
                  0); // so far apart lines are put in order, swizzled alike
    Operand o;
    const int row = threadIdx.x / packs, column = threadIdx.x % packs * pack;
    const int place = Tile::template place<wide>(is_b && !wide ? ordered(row) : row, column);
    int at[rows]; // which rows are next

    __device__ void begin(const Operand& operand) {
        o = operand;
        find_rows(0);
    }
    __device__ void find_rows(int step) {
        const int first = wide ? step * Tile::depth : 0, last = (wide ? o.depth : o.across) - 1;
#pragma unroll
        for (int i = 0; i < rows; i++) {
            const int r = first + row + i * between;
            at[i] = gathers && o.index ? o.index[min(r, last)] : r;
        }
    }
    __device__ void start(floatX* to, int step) {
        const char* const from = (const char*)(o.from + column + (wide ? 0 : step * Tile::depth));
        const long long row_bytes = o.stride * int(sizeof(floatX));
#pragma unroll
        for (int i = 0; i < turns; i++) {
            const int r = row + i % rows * between, c = column + i / rows * packs * pack;
            const bool there = step * Tile::depth + (wide ? r : c) < o.depth && (wide ? c : r) < o.across;
            copy_async_16(to + place + i * between * Tile::line_stride(wide),
                          from + (gathers ? at[i % rows] : (wide ? step * Tile::depth : 0) + r) * row_bytes +
                              i / rows * packs * 16,
                          there ? 16 : 0);
        }
        if (wide && gathers) find_rows(step + 1); // before they are needed
    }
};

// The products of a block's tiles, one after the other; all threads of the block call.
//
// All steps, of all tiles, go through the stages in turn. When a step is multiplied, the next is there or on
// its way, and the one after it is sent for: to the stage of the step before last (with three stages, the
// last), which all have left, since all have come to the barrier of this one.
template <class Tile, bool a_wide, bool b_wide> struct TileProducts {
    OperandCopy<Tile, a_wide, false, !a_wide> a; // the tokens: a's rows, or, for a matrix's gradient, b's
    OperandCopy<Tile, b_wide, true, a_wide> b;
    int steps;          // of the tile
    unsigned stage = 0; // of the next step

    static __device__ floatX* shared() {
        extern __shared__ __align__(1024) uint4 grouped_memory[];
        return (floatX*)grouped_memory;
    }
    __device__ floatX* stage_of(unsigned ahead) const {
        return shared() + (stage + ahead) % Tile::stages * Tile::stage_size;
    }
    __device__ void load(int step, unsigned ahead) {
        if (step < steps) {
            a.start(stage_of(ahead), step);
            b.start(stage_of(ahead) + Tile::a_size, step);
        }
        copy_async_commit(); // also of nothing, so that groups are counted as steps are
    }
    __device__ void begin(const Operand& a_operand, const Operand& b_operand) {
        a.begin(a_operand);
        b.begin(b_operand);
        steps = tiles_along(a_operand.depth, Tile::depth);
        for (int step = 0; step < grouped_ahead; step++) load(step, step);
    }
    // c += a b. It may be under way until Tile::finish(); before it comes, the next tile can begin.
    __device__ __forceinline__ void multiply(float c[Tile::m][Tile::n][4]) {
        for (int step = 0; step < steps; step++) {
            copy_async_wait<grouped_ahead - 1>();
            Tile::publish();
            __syncthreads();
            load(step + grouped_ahead, grouped_ahead);
            Tile::template multiply<a_wide, b_wide>(c, stage_of(0), stage_of(0) + Tile::a_size);
            stage = (stage + 1) % Tile::stages;
        }
    }
};

// ---------------------------------------------------------------------------------------------------------
// Experts by hand: the products of all experts in one launch, grouped products
//
// Expert j multiplies its own rows, s from begin[j] to begin[j + 1], by its own matrices; x_s is row token[s]
// of x, dout_s of dout, w_s the slot's gate weight:
//   z_s = act(x_s W_enc_j^T + b_enc_j)                  y_s = w_s (z_s W_dec_j + b_dec_j)
//   dz_s = dout_s W_dec_j^T     dh_s = w_s dz_s act'    dx_s = dh_s W_enc_j      db_enc_j += sum of dh_s
//   dW_enc_j += sum of dh_s^T x_s                       dW_dec_j += sum of z_s^T (w_s dout_s)
//   dw_s = dout_s . (z_s W_dec_j + b_dec_j) = dz_s . z_s + dout_s . b_dec_j      (SonicMoE: Guo et al., 2025,
// arXiv 2512.14080: nobody need keep y).
// One product for each expert is a product too small for a large card, launched by a host that must first
// wait for the counts. Here the whole is cut into tiles of numbers of one expert, numbered expert by expert,
// and a block takes every gridDim.x-th of them. Which expert a tile belongs to it finds by going through
// begin: its tiles come in rising order, so once through is enough for all of them. The host need not know
// any count, and rows come by way of token[]: no copy of them is gathered before. What would be a second
// kernel, to add a bias, to apply an activation, to count or to sum, is an epilogue: done with a tile while
// it is in registers.
//
// A number is one block's sum in rising order. In a row its bits depend on the row and on its expert's matrix
// alone, not on who else visits the expert; those of a matrix's gradient on the rows of the expert and on how
// many rows there are; none of them on the number of blocks. Cards whose tensor cores are spoken to in
// different ways, MmaTile and WgmmaTile, may differ in bits.

// A tile of rows (rows of all experts, M): rows first to first + rows of `expert`, `columns` from `column`
// on.
struct RowTile {
    int expert, number; // of all tiles beside each other the number-th
    int first, rows, column, columns;
};

// A lane's numbers in the tile: packs, one in each 8 of its warp's 16 m rows, and of its 8 n columns so many:
template <class Tile> constexpr int lane_packs = 2 * Tile::n / pack;
template <class Tile> __device__ inline int lane_row(int i) {
    return Tile::warp_row() + threadIdx.x % 32 / 4 + i * 8;
}
template <class Tile> __device__ inline int lane_column(int n) {
    return Tile::warp_column() + (n * 4 + threadIdx.x % 4) * pack;
}

// Of a wide b a lane t of four has columns 2 t and 2 t + 1 of each of four times 8; it takes all of the
// t-th 8.
template <class Tile> __device__ __forceinline__ void beside_each_other(float c[Tile::m][Tile::n][4]) {
    if (pack != 8) return;          // in the fp32 build they are
    float(*const blocks)[4] = c[0]; // (16 rows, 8 columns)
#pragma unroll
    for (int by = 1; by <= 2; by *= 2)
#pragma unroll
        for (int i = 0; i < Tile::m * Tile::n; i++)
#pragma unroll
            for (int e = 0; e < 4 && !(i & by); e++) {
                float &low = blocks[i][e], &high = blocks[i + by][e];
                const bool upper = threadIdx.x & by;
                const float got = __shfl_xor_sync(0xffffffff, upper ? low : high, by);
                low = upper ? got : low;
                high = upper ? high : got;
            }
}

// The lane's n-th pack of its i-th row
template <class Tile>
__device__ __forceinline__ Pack lane_pack(const float c[Tile::m][Tile::n][4], int n, int i) {
    Pack v;
#pragma unroll
    for (int e = 0; e < pack; e++) v[e] = c[i / 2][(n * pack + e) / 2][i % 2 * 2 + e % 2];
    return v;
}

// Calls f(i, place, pack) for the lane's n-th packs, each at place of an array (rows,M)
template <class Tile, class F> __device__ __forceinline__ void
each_pack(const float c[Tile::m][Tile::n][4], const RowTile& t, int n, int M, F f) {
#pragma unroll
    for (int i = 0; i < 2 * Tile::m; i++)
        if (lane_row<Tile>(i) < t.rows)
            f(i, size_t(t.first + lane_row<Tile>(i)) * M + t.column + lane_column<Tile>(n),
              lane_pack<Tile>(c, n, i));
}

// What an epilogue reads it asks for while the last products are under way: packs as they lie in memory, the
// nearest ones instead of those that are not there.
template <class Tile>
__device__ __forceinline__ const uint4* nearest(const floatX* row, const RowTile& t, int n) {
    return (const uint4*)(row + t.column + min(lane_column<Tile>(n), t.columns - pack));
}
template <class Tile> __device__ __forceinline__ int nearest_row(const RowTile& t, int i) {
    return t.first + min(lane_row<Tile>(i), t.rows - 1);
}
template <class Tile> __device__ __forceinline__ void ask_bias(uint4 ahead[Tile::window], const floatX* bias,
                                                               const RowTile& t, int M) {
#pragma unroll
    for (int n = 0; n < lane_packs<Tile>; n++)
        ahead[n] = bias ? *nearest<Tile>(bias + size_t(t.expert) * M, t, n) : uint4{};
}

// What all experts' rows are multiplied by: out (rows,M) = a (.,K) B.   B (E,M,K), or wide (E,K,M)
struct Grouped {
    const floatX *a, *b;
    const int *begin, *index; // (E+1); (rows) or null: which row of a each is
    int E, M, K;              // M, K multiples of 8
};

template <class Tile, bool b_wide, class Epilogue>
__global__ void __launch_bounds__(Tile::threads, Tile::blocks) grouped_kernel(Grouped g, Epilogue epilogue) {
    if constexpr (!Tile::compiled) {
        __trap();
    } else {
        const int across = tiles_along(g.M, Tile::columns);
        int tile = blockIdx.x, expert = 0, before = 0; // tiles beside each other, of all experts before
        TileProducts<Tile, false, b_wide> products;
        RowTile next;
        const auto begin_next = [&] { // false: there is none
            for (;; expert++) {
                if (expert == g.E) return false;
                const int down = tiles_along(g.begin[expert + 1] - g.begin[expert], grouped_rows);
                if (tile < (before + down) * across) break;
                before += down;
            }
            const int number = tile / across, column = tile % across * Tile::columns;
            const int first = g.begin[expert] + (number - before) * grouped_rows;
            next = {expert, number,
                    first,  min(grouped_rows, g.begin[expert + 1] - first),
                    column, min(Tile::columns, g.M - column)};
            const floatX* const b = g.b + size_t(expert) * g.M * g.K;
            products.begin({g.index ? g.a : g.a + size_t(first) * g.K, g.index ? g.index + first : nullptr,
                            g.K, next.rows, g.K},
                           {b_wide ? b + column : b + size_t(column) * g.K, nullptr, b_wide ? g.M : g.K,
                            next.columns, g.K});
            tile += gridDim.x;
            return true;
        };
        for (bool more = begin_next(); more;) {
            const RowTile t = next;
            float c[Tile::m][Tile::n][4] = {};
            products.multiply(c);
            uint4 ahead[Tile::window];
            if (!b_wide) epilogue.template ask<Tile>(ahead, t, g.M);
            more = begin_next();
            Tile::finish(c);
            if (b_wide) { // then they would not have the registers
                beside_each_other<Tile>(c);
                epilogue.template ask<Tile>(ahead, t, g.M);
            }
            epilogue.template finish<Tile>(c, ahead, t, g.M);
        }
    }
}

// z = act(h), h = c + bias; counts those that fire
struct Units {
    floatX *z, *h;              // (rows,M), h may be null
    const floatX* bias;         // (E,M)
    unsigned long long* active; // null: not counted
    bool relu;                  // or gelu

    template <class Tile> __device__ void ask(uint4 ahead[Tile::window], const RowTile& t, int M) const {
        ask_bias<Tile>(ahead, bias, t, M);
    }
    template <class Tile> __device__ void finish(const float c[Tile::m][Tile::n][4],
                                                 const uint4 ahead[Tile::window], const RowTile& t,
                                                 int M) const {
        relu ? finish_as<Tile, true>(c, ahead, t, M) : finish_as<Tile, false>(c, ahead, t, M);
    }
    template <class Tile, bool relu>
    __device__ __forceinline__ void finish_as(const float c[Tile::m][Tile::n][4],
                                              const uint4 ahead[Tile::window], const RowTile& t,
                                              int M) const {
        int fired = 0;
#pragma unroll
        for (int n = 0; n < lane_packs<Tile>; n++) {
            if (lane_column<Tile>(n) >= t.columns) continue;
            const Pack b = load_pack((const floatX*)&ahead[n]);
            each_pack<Tile>(c, t, n, M, [&](int, size_t place, Pack v) {
                v += b;
                if (h) store_pack(h + place, v);
#pragma unroll
                for (int e = 0; e < pack; e++) {
                    v[e] = !relu ? gelu(v[e]) : v[e] <= 0 ? 0 : v[e]; // NaN stays NaN
                    fired += float(floatX(v[e])) > 0;
                }
                store_pack(z + place, v);
            });
        }
        if (!active) return;
        fired = __reduce_add_sync(0xffffffff, fired);
        if (threadIdx.x % warp_size == 0 && fired) atomicAdd(active, (unsigned long long)fired);
    }
};

// out = weight (c + bias)
struct Weighted {
    floatX* out;         // (rows,M)
    const floatX* bias;  // (E,M) null: 0
    const float* weight; // (rows) null: 1

    template <class Tile> __device__ void ask(uint4 ahead[Tile::window], const RowTile& t, int M) const {
        ask_bias<Tile>(ahead, bias, t, M);
    }
    template <class Tile> __device__ void finish(const float c[Tile::m][Tile::n][4],
                                                 const uint4 ahead[Tile::window], const RowTile& t,
                                                 int M) const {
        float w[2 * Tile::m];
#pragma unroll
        for (int i = 0; i < 2 * Tile::m; i++) w[i] = weight ? weight[nearest_row<Tile>(t, i)] : 1;
#pragma unroll
        for (int n = 0; n < lane_packs<Tile>; n++) {
            if (lane_column<Tile>(n) >= t.columns) continue;
            const Pack b = load_pack((const floatX*)&ahead[n]);
            each_pack<Tile>(c, t, n, M, [&](int i, size_t place, Pack v) {
                v += b;
                store_pack(out + place, w[i] * v);
            });
        }
    }
};

// dh = weight c act'(h), c being dz. Its sums over 64 rows, and those of z dz over the columns of a lane and
// its three neighbours, are left for others to add up.
struct UnitsBackward {
    floatX* dh;           // (rows,M)
    const floatX *z, *h;  // (rows,M), h gelu only
    const float* weight;  // (rows) null: 1
    float *sums, *z_sums; // (2 tiles,M); (rows,parts(M)) null: not wanted
    bool relu;

    // z, pack j of all of the lane's, row after row of the same columns
    template <class Tile> __device__ uint4 unit_pack(const RowTile& t, int M, int j) const {
        const int n = j / (2 * Tile::m), i = j % (2 * Tile::m);
        return *nearest<Tile>(z + size_t(nearest_row<Tile>(t, i)) * M, t, n);
    }
    template <class Tile> __device__ void ask(uint4 ahead[Tile::window], const RowTile& t, int M) const {
#pragma unroll
        for (int j = 0; j < Tile::window; j++) ahead[j] = unit_pack<Tile>(t, M, j);
    }
    template <class Tile> __device__ void finish(const float c[Tile::m][Tile::n][4],
                                                 uint4 ahead[Tile::window], const RowTile& t, int M) const {
        relu ? finish_as<Tile, true>(c, ahead, t, M) : finish_as<Tile, false>(c, ahead, t, M);
    }
    template <class Tile, bool relu> __device__ __forceinline__ void
    finish_as(const float c[Tile::m][Tile::n][4], uint4 ahead[Tile::window], const RowTile& t, int M) const {
        constexpr int rows = 2 * Tile::m, packs = lane_packs<Tile>;
        // (Tile::columns) a row of sums: that of these 64 rows, or, to be added up below, of a warp's 16
        float* const warp_sums =
            (float*)(TileProducts<Tile, false, false>::shared() + Tile::stages * Tile::stage_size);
        float* const to = Tile::m == 4 ? sums + size_t(2 * t.number + Tile::warp_row() / 64) * M + t.column
                                       : warp_sums + threadIdx.x / warp_size * Tile::columns;
        float w[rows], along[rows][(packs + 3) / 4]; // along a row: of every fourth n; the lanes share them
#pragma unroll
        for (int n = 0; n < packs; n++) {
            Pack down = {};
#pragma unroll
            for (int i = 0; i < rows; i++) { // of what is not there dz is 0
                if (n == 0) w[i] = weight ? weight[nearest_row<Tile>(t, i)] : 1;
                const int j = n * rows + i;
                const Pack unit = load_pack((const floatX*)&ahead[j % Tile::window]);
                if (j + Tile::window < packs * rows)
                    ahead[j % Tile::window] = unit_pack<Tile>(t, M, j + Tile::window);
                const Pack dz = lane_pack<Tile>(c, n, i);
                const size_t place =
                    size_t(t.first + lane_row<Tile>(i)) * M + t.column + lane_column<Tile>(n);
                const bool there = lane_row<Tile>(i) < t.rows && lane_column<Tile>(n) < t.columns;
                Pack d = w[i] * dz, before;
                if (!relu && there) before = load_pack(h + place);
                float sum = 0;
#pragma unroll
                for (int e = 0; e < pack; e++) {
                    sum += unit[e] * dz[e];
                    d[e] = relu ? unit[e] > 0 ? d[e] : 0 : there ? d[e] * gelu_slope(before[e]) : 0;
                }
                if (there) store_pack(dh + place, d);
                down += d;
                sum = warp_sum<4>(sum);
                if (int(threadIdx.x % 4) == n % 4) along[i][n / 4] = sum;
            }
            const int column = lane_column<Tile>(n) + sum_of_pack(down);
            if (column < t.columns) to[column] = down[0];
        }
#pragma unroll
        for (int k = 0; k < rows * ((packs + 3) / 4); k++) {
            const int i = k % rows, n = k / rows * 4 + int(threadIdx.x % 4);
            if (z_sums && n < packs && lane_row<Tile>(i) < t.rows &&
                Tile::warp_column() + n * 4 * pack < t.columns)
                z_sums[size_t(t.first + lane_row<Tile>(i)) * parts(M) +
                       (t.column + Tile::warp_column()) / (4 * pack) + n] = along[i][k / rows];
        }
        if constexpr (Tile::m == 1) {
            __syncthreads();
            const int column = threadIdx.x;
            for (int i = 0; i < 8 && column < t.columns; i += 4) {
                float sum = 0;
                for (int warp = i; warp < i + 4; warp++) sum += warp_sums[warp * Tile::columns + column];
                sums[size_t(2 * t.number + i / 4) * M + t.column + column] = sum;
            }
        }
    }
    // The sums of a pack over the 8 lanes that have the same columns: one arrives in v[0]. Which?
    static __device__ __forceinline__ int sum_of_pack(Pack& v) {
#pragma unroll
        for (int half = pack / 2, by = 16; by >= 4; half /= 2, by /= 2) {
            const bool upper = threadIdx.x & by;
            if (half == 0) v[0] += __shfl_xor_sync(0xffffffff, v[0], by);
#pragma unroll
            for (int e = 0; e < half; e++) {
                const float got = __shfl_xor_sync(0xffffffff, upper ? v[e] : v[e + half], by);
                v[e] = (upper ? v[e + half] : v[e]) + got;
            }
        }
        return threadIdx.x % warp_size / 4 * pack / 8;
    }
    static __host__ __device__ constexpr int parts(int M) { return tiles_along(M, 4 * pack); }
    static constexpr size_t sums_rows(size_t rows, size_t E) { return 2 * (rows / grouped_rows + E); }
};

// db (E,M) += the sums (2 tiles,M) that UnitsBackward left, in the order of the rows
__global__ void grouped_bias_backward_kernel(float* db, const float* sums, const int* begin, int M) {
    __shared__ float rows[8][warp_size];
    const int expert = blockIdx.y, m = blockIdx.x * warp_size + threadIdx.x;
    int from = 0, to = 0;
    for (int j = 0; j <= expert; j++) {
        from = to;
        to += 2 * tiles_along(begin[j + 1] - begin[j], grouped_rows);
    }
    float sum = 0;
    for (int i = from + threadIdx.y; i < to && m < M; i += 8) sum += sums[size_t(i) * M + m];
    rows[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || m >= M) return;
    for (int i = 1; i < 8; i++) sum += rows[i][threadIdx.x];
    db[size_t(expert) * M + m] += sum;
}

// Gradients of matrices: out (E,M,N) += a_j^T b_j over the rows of each expert. a (rows,M), b (.,N)
//
// A tile is a sum over all rows of an expert, and one expert may have nearly all rows there are: so that many
// blocks share its work, its rows, if more than part_rows, are cut into even parts. The first is added to
// out, the others are left in `parts`, which a second kernel adds in turn. With part_rows() a single expert
// with everything makes tiles for all blocks, and experts together never have more than extra_parts() of
// them.
struct GroupedGradient {
    float *out, *parts; // (E,M,N) (extra_parts,M,N)
    const floatX *a, *b;
    const int *begin, *index; // (E+1); (rows) or null: which row of b each is
    int E, M, N, part_rows;

    __device__ int parts_of(int expert) const { // 0: no rows
        return (begin[expert + 1] - begin[expert] + part_rows - 1) / part_rows;
    }
};
constexpr size_t extra_parts(size_t M, size_t N) {
    const size_t tiles = size_t(tiles_along(int(M), grouped_rows)) * tiles_along(int(N), MmaTile::columns);
    return round_up(2 * MmaTile::blocks * multiprocessors, tiles) / tiles;
}
constexpr size_t least_part = 256; // rows
inline size_t part_rows(size_t rows, size_t M, size_t N) {
    const size_t parts = extra_parts(M, N);
    return std::max(least_part, (rows + parts - 1) / parts);
}

template <class Tile> __global__ void __launch_bounds__(Tile::threads, Tile::blocks)
    grouped_gradient_kernel(GroupedGradient g) {
    if constexpr (!Tile::compiled) {
        __trap();
    } else {
        const int across = tiles_along(g.N, Tile::columns),
                  tiles = tiles_along(g.M, grouped_rows) * across; // of a part
        int tile = blockIdx.x, expert = 0, before = 0, extra = 0;  // parts, extra ones, of all before
        TileProducts<Tile, true, true> products;
        RowTile next; // its rows are those of the matrix
        float* next_out;
        bool next_adds;
        const auto begin_next = [&] { // false: there is none
            int parts;
            for (;; expert++) {
                if (expert == g.E) return false;
                parts = g.parts_of(expert);
                if (tile < (before + parts) * tiles) break;
                before += parts;
                extra += max(parts - 1, 0);
            }
            const int part = tile / tiles - before, begin = g.begin[expert];
            const size_t rows = g.begin[expert + 1] - begin;
            const int from = begin + int(rows * part / parts), to = begin + int(rows * (part + 1) / parts);
            const int m = tile % tiles / across * grouped_rows, n = tile % across * Tile::columns;
            next = {expert, 0, m, min(grouped_rows, g.M - m), n, min(Tile::columns, g.N - n)};
            next_adds = part == 0;
            next_out =
                part ? g.parts + size_t(extra + part - 1) * g.M * g.N : g.out + size_t(expert) * g.M * g.N;
            products.begin({g.a + size_t(from) * g.M + m, nullptr, g.M, next.rows, to - from},
                           {g.b + (g.index ? 0 : size_t(from) * g.N) + n, g.index ? g.index + from : nullptr,
                            g.N, next.columns, to - from});
            tile += gridDim.x;
            return true;
        };
        for (bool more = begin_next(); more;) {
            const RowTile t = next;
            float* const out = next_out;
            const bool adds = next_adds;
            float c[Tile::m][Tile::n][4] = {};
            products.multiply(c);
            more = begin_next();
            Tile::finish(c);
            beside_each_other<Tile>(c);
#pragma unroll
            for (int i = 0; i < lane_packs<Tile>; i++) {
                if (lane_column<Tile>(i) >= t.columns) continue;
                each_pack<Tile>(c, t, i, g.N, [&](int, size_t place, Pack v) {
                    if (adds) v += load_pack(out + place);
                    store_pack(out + place, v);
                });
            }
        }
    }
}

__global__ void add_extra_parts_kernel(GroupedGradient g) {
    const size_t count = size_t(g.M) * g.N;
    const float* from = g.parts;
    for (int expert = 0; expert < g.E; expert++) {
        const int extra = g.parts_of(expert) - 1;
        if (extra < 1) continue;
        float* const out = g.out + expert * count;
        for (size_t i = (blockIdx.x * size_t(blockDim.x) + threadIdx.x) * pack; i < count;
             i += gridDim.x * size_t(blockDim.x) * pack) {
            Pack sum = load_pack(out + i);
            for (int part = 0; part < extra; part++) sum += load_pack(from + part * count + i);
            store_pack(out + i, sum);
        }
        from += extra * count;
    }
}

// What the launches need to know of the card: that all blocks begin at once is what makes their shares even.
struct Chip {
    unsigned multiprocessors = 0;
    bool wgmma = false; // has it, and this program's code for it
};
inline Chip this_chip() {
    int device = 0, count = 0, major = 0, minor = 0;
    cuda_check(cudaGetDevice(&device));
    cuda_check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
    cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    cuda_check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    bool wgmma = false;
#ifndef PRECISION_FP32
    cudaFuncAttributes
        kernel; // empty where it was not compiled for sm_90a; else half of its registers are sums
    cuda_check(cudaFuncGetAttributes(&kernel, grouped_gradient_kernel<WgmmaTile>));
    wgmma = major == 9 && minor == 0 && kernel.numRegs > 128;
#endif
    return {unsigned(count), wgmma};
}
template <class F> void with_tile([[maybe_unused]] const Chip& chip, F f) {
#ifndef PRECISION_FP32
    if (chip.wgmma) return f(WgmmaTile{});
#endif
    f(MmaTile{});
}

template <class Epilogue> void grouped_multiply(const Grouped& g, bool b_wide, const Epilogue& epilogue,
                                                const Chip& chip, cudaStream_t stream) {
    with_tile(chip, [&](auto tile) {
        typedef decltype(tile) Tile;
        const auto kernel =
            b_wide ? grouped_kernel<Tile, true, Epilogue> : grouped_kernel<Tile, false, Epilogue>;
        kernel<<<Tile::blocks * chip.multiprocessors, Tile::threads, Tile::shared_bytes, stream>>>(g,
                                                                                                   epilogue);
    });
    cuda_check(cudaGetLastError());
}
void grouped_gradient(const GroupedGradient& g, const Chip& chip, cudaStream_t stream) {
    with_tile(chip, [&](auto tile) {
        typedef decltype(tile) Tile;
        grouped_gradient_kernel<Tile>
            <<<Tile::blocks * chip.multiprocessors, Tile::threads, Tile::shared_bytes, stream>>>(g);
    });
    add_extra_parts_kernel<<<count_blocks, 256, 0, stream>>>(g);
    cuda_check(cudaGetLastError());
}

// ---------------------------------------------------------------------------------------------------------
// 3. Matrix products
// ---------------------------------------------------------------------------------------------------------
// out (M,N) = a (M,K) b (K,N), or += with accumulate; all row-major, an operand that is stored the other way
// round is marked as transposed. cuBLASLt counts columns first: to it, our row-major out is out^T (N,M) =
// b^T a^T, so b is its first operand and a its second, and a bias along our N lies along its rows, as its
// epilogues want it.
struct Product {
    void* out;
    const floatX *a, *b;
    size_t M, N, K;
    bool a_transposed = false, b_transposed = false; // stored (K,M), (N,K)
    bool accumulate = false;                         // then out is fp32 and is added to
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    const void* bias = nullptr; // (N), read; or the gradient of a bias, written
    void* aux = nullptr;        // what the activation's backward needs: relu a bit mask, gelu its input (M,N)
    size_t aux_stride = 0;      // from row to row: bits of the mask, or numbers
    bool adds = false;          // out, of floatX, is added to

    // How many tokens it is about: the size that changes from batch to batch and from expert to expert. The
    // other two are the model's.
    size_t& tokens() { return a_transposed ? K : M; }
    size_t tokens() const { return a_transposed ? K : M; }
};

// A block gets more than 48 KB of shared memory only if its kernel has asked for it, once.
inline void prepare_kernels(const Chip& chip) {
    const auto ask = [](auto kernel, size_t bytes) {
        cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
    };
    for (const bool wgmma : {false, chip.wgmma})
        with_tile({chip.multiprocessors, wgmma}, [&](auto tile) {
            typedef decltype(tile) Tile;
            const auto ask_grouped = [&](auto epilogue) {
                ask(grouped_kernel<Tile, false, decltype(epilogue)>, Tile::shared_bytes);
                ask(grouped_kernel<Tile, true, decltype(epilogue)>, Tile::shared_bytes);
            };
            ask_grouped(Units{});
            ask_grouped(Weighted{});
            ask_grouped(UnitsBackward{});
            ask(grouped_gradient_kernel<Tile>, Tile::shared_bytes);
        });
    ask(layernorm_backward_kernel, layernorm_sums * most_channels * sizeof(float));
#ifndef PRECISION_FP32
    for (const size_t head_size : {32, 64, 128})
        with_tensor_cores(head_size, [&](auto HS) {
            ask(attention_forward_kernel<HS>, AttentionForward<HS>::shared_bytes);
            ask(attention_backward_dkv_kernel<HS>, AttentionBackward<HS>::shared_bytes);
            ask(attention_backward_dq_kernel<HS>, AttentionBackward<HS>::shared_bytes);
        });
#endif
}

// A stream, and the memory that products on it may use meanwhile. Products on several branches run side by
// side: one expert's alone leaves much of a large card idle. The bits are the same for any number of
// branches.
struct Branch {
    cudaStream_t stream = nullptr;
    void* workspace = nullptr;
    cudaEvent_t done = nullptr;
};

struct Gpu {
    static constexpr size_t workspace_bytes = 32 << 20; // of a branch; what NVIDIA recommends for Hopper
    static constexpr size_t most_branches = 4;
    cudaStream_t stream = nullptr; // of everything that is not forked: the first branch's
    cudaStream_t copies = nullptr; // of what the host waits for while the first branch goes on
    cudaEvent_t forked = nullptr;
    Branch branches[most_branches];
    size_t branch_count = most_branches; // in use
    const Branch& branch(size_t i) const { return branches[i % branch_count]; }
    cublasLtHandle_t blas = nullptr;
    // Called before each launcher of a step with its name (those of dev/bench/roofline.h), and with null
    // after the last launcher of a pass: what dev/bench times a step by. Null in production. Launchers that
    // fork run side by side with what comes after them; with one branch each stands for itself.
    std::function<void(const char* launcher)> before_launch;
    void mark(const char* launcher) const {
        if (before_launch) before_launch(launcher);
    }
    cudaStream_t marked(const char* launcher) const { // and gives the stream to launch it on
        mark(launcher);
        return stream;
    }
    // The algorithm of every kind of product met so far; none where cuBLASLt knows none.
    std::map<std::array<size_t, 7>, std::optional<cublasLtMatmulAlgo_t>> algorithms;
    Chip chip;
    size_t refused = 0; // how often an algorithm of the kind did not serve the size

    Gpu() {
        for (Branch& branch : branches) {
            cuda_check(cudaStreamCreate(&branch.stream));
            cuda_check(cudaEventCreateWithFlags(&branch.done, cudaEventDisableTiming));
            cuda_check(cudaMalloc(&branch.workspace, workspace_bytes));
        }
        stream = branches[0].stream;
        cuda_check(cudaStreamCreate(&copies));
        cuda_check(cudaEventCreateWithFlags(&forked, cudaEventDisableTiming));
        cublas_check(cublasLtCreate(&blas));
        chip = this_chip();
        prepare_kernels(chip);
    }
    Gpu(const Gpu&) = delete;
    ~Gpu() {
        cublasLtDestroy(blas);
        cudaEventDestroy(forked);
        cudaStreamDestroy(copies);
        for (Branch& branch : branches) {
            cudaFree(branch.workspace);
            cudaEventDestroy(branch.done);
            cudaStreamDestroy(branch.stream);
        }
    }
};

// What is launched on a branch after fork_branches() sees what gpu.stream did before; what is launched on
// gpu.stream after join_branches() sees what all branches did.
inline void fork_branches(Gpu& gpu) {
    if (gpu.branch_count == 1) return;
    cuda_check(cudaEventRecord(gpu.forked, gpu.stream));
    for (size_t i = 1; i < gpu.branch_count; i++)
        cuda_check(cudaStreamWaitEvent(gpu.branches[i].stream, gpu.forked, 0));
}
inline void join_branches(Gpu& gpu) {
    for (size_t i = 1; i < gpu.branch_count; i++) {
        cuda_check(cudaEventRecord(gpu.branches[i].done, gpu.branches[i].stream));
        cuda_check(cudaStreamWaitEvent(gpu.stream, gpu.branches[i].done, 0));
    }
}

// cuBLASLt's description of a product, made on the stack: nothing is allocated for a product.
struct Description {
    cublasLtMatmulDescOpaque_t operation;
    cublasLtMatrixLayoutOpaque_t a, b, out;

    explicit Description(const Product& p) {
        cublas_check(cublasLtMatmulDescInit(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
        const cublasOperation_t transpose = CUBLAS_OP_T, plain = CUBLAS_OP_N;
        set(CUBLASLT_MATMUL_DESC_TRANSA, p.b_transposed ? transpose : plain);
        set(CUBLASLT_MATMUL_DESC_TRANSB, p.a_transposed ? transpose : plain);
        set(CUBLASLT_MATMUL_DESC_EPILOGUE, p.epilogue);
        if (p.bias) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
        if (p.aux) {
            set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, p.aux);
            set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, int64_t(p.aux_stride));
        }
        layout(&b, floatX_type, p.N, p.K, p.b_transposed);
        layout(&a, floatX_type, p.K, p.M, p.a_transposed);
        layout(&out, p.accumulate ? CUDA_R_32F : floatX_type, p.N, p.M, false);
    }

  private:
    template <class T> void set(cublasLtMatmulDescAttributes_t attribute, T value) {
        cublas_check(cublasLtMatmulDescSetAttribute(&operation, attribute, &value, sizeof value));
    }
    static void layout(cublasLtMatrixLayout_t to, cudaDataType_t type, size_t rows, size_t columns,
                       bool transposed) {
        if (transposed) std::swap(rows, columns);
        cublas_check(cublasLtMatrixLayoutInit(to, type, rows, columns, int64_t(rows)));
    }
};

// Numbers of tokens to three significant bits, rounded up: sizes in one bucket share an algorithm, so that
// there are few to ask for, whatever the router does.
constexpr size_t bucket(size_t tokens) {
    size_t step = 1;
    while ((tokens + step - 1) / step > 8) step *= 2;
    return round_up(tokens, step);
}

// What cuBLASLt's heuristic recommends for a product, asked for once; none where it knows nothing. The
// question holds sizes and strides alone: where the numbers lie counts to it by their alignment, so pointers
// are asked about at an address that is as round as is promised, and no more. The answer then is a function
// of the sizes and the card, whatever ran before.
inline std::optional<cublasLtMatmulAlgo_t> choose_algorithm(Gpu& gpu, Product p) {
    const std::array<size_t, 7> kind = {
        p.M, p.N, p.K, p.a_transposed, p.b_transposed, p.accumulate, size_t(p.epilogue)};
    const auto found = gpu.algorithms.find(kind);
    if (found != gpu.algorithms.end()) return found->second;

    constexpr size_t alignment = 16; // the rows of an expert begin anywhere, but they are multiples of it
    if (p.bias) p.bias = (const void*)alignment;
    if (p.aux) p.aux = (void*)alignment;
    Description d(p);
    cublasLtMatmulPreference_t preference;
    cublas_check(cublasLtMatmulPreferenceCreate(&preference));
    auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
        cublas_check(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value));
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, gpu.workspace_bytes);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, uint32_t(alignment));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, uint32_t(alignment));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, uint32_t(alignment));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, uint32_t(alignment));
    // Where K is cut into parts, their sums are kept in fp32, not in the bf16 of the result.
    if (sizeof(floatX) < 4 && !p.accumulate)
        prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    cublasLtMatmulHeuristicResult_t result;
    int results = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(gpu.blas, &d.operation, &d.b, &d.a, &d.out,
                                                                 &d.out, preference, 1, &result, &results);
    cublasLtMatmulPreferenceDestroy(preference);
    std::optional<cublasLtMatmulAlgo_t> algorithm;
    if (status == CUBLAS_STATUS_SUCCESS && results > 0) algorithm = result.algo;
    gpu.algorithms[kind] = algorithm;
    return algorithm;
}

// With the algorithm of its bucket; where that is refused or there is none, with one for exactly this size.
// Returns false when there is none either: then nothing has been launched.
inline bool try_multiply(Gpu& gpu, const Product& p, size_t branch = 0) {
    if (p.M == 0 || p.N == 0 || p.K == 0) return true; // no tokens; sums over nothing add nothing
    Product like = p;
    like.tokens() = bucket(p.tokens());
    const Branch& on = gpu.branch(branch);
    for (const Product& kind : {like, p}) {
        const std::optional<cublasLtMatmulAlgo_t> algorithm = choose_algorithm(gpu, kind);
        if (!algorithm) continue;
        Description d(p);
        const float alpha = 1, beta = p.accumulate || p.adds ? 1 : 0;
        const cublasStatus_t status =
            cublasLtMatmul(gpu.blas, &d.operation, &alpha, p.b, &d.b, p.a, &d.a, &beta, p.out, &d.out, p.out,
                           &d.out, &*algorithm, on.workspace, gpu.workspace_bytes, on.stream);
        if (status == CUBLAS_STATUS_SUCCESS) return true;
        if (status != CUBLAS_STATUS_NOT_SUPPORTED && status != CUBLAS_STATUS_INVALID_VALUE)
            cublas_check(status);
        gpu.refused++;
    }
    return false;
}

inline void multiply(Gpu& gpu, const Product& p, size_t branch = 0) {
    if (!try_multiply(gpu, p, branch))
        fail("cuBLASLt has no algorithm for a product of %zu x %zu x %zu%s%s, epilogue %d", p.M, p.N, p.K,
             p.a_transposed ? ", first transposed" : "", p.b_transposed ? ", second transposed" : "",
             int(p.epilogue));
}

// dweight (OC,C) += dout (N,OC)^T x (N,C)
inline Product weight_gradient(float* dweight, const floatX* dout, const floatX* x, size_t OC, size_t C,
                               size_t N) {
    Product p{dweight, dout, x, OC, C, N};
    p.a_transposed = true;
    p.accumulate = true;
    return p;
}

// A linear layer and the number of tokens that go through it.
struct Linear {
    const floatX *weight, *bias; // (OC,C) (OC)
    float *dweight, *dbias;      // dbias null: it is summed elsewhere
    size_t N, C, OC;
};

// out (N,OC) = x (N,C) weight^T + bias
inline void linear_forward(Gpu& gpu, floatX* out, const floatX* x, const Linear& l) {
    Product p{out, x, l.weight, l.N, l.OC, l.C};
    p.b_transposed = true;
    p.epilogue = CUBLASLT_EPILOGUE_BIAS;
    p.bias = l.bias;
    multiply(gpu, p);
}

// dx = dout weight;  dweight += dout^T x;  dbias += sum dout.   whole_batch (2): 0 and N; partial: scratch
// (bias_parts(N,1),OC)
inline void linear_backward(Gpu& gpu, floatX* dx, const floatX* dout, const floatX* x, const Linear& l,
                            float* partial, const int* whole_batch) {
    fork_branches(gpu);
    multiply(gpu, {dx, dout, l.weight, l.N, l.C, l.OC}, 0);
    multiply(gpu, weight_gradient(l.dweight, dout, x, l.OC, l.C, l.N), 1);
    if (l.dbias) bias_backward(l.dbias, partial, dout, whole_batch, l.N, 1, l.OC, gpu.branch(2).stream);
    join_branches(gpu);
}

// One feed-forward layer: its experts, their slots, and what they make of them. A dense layer is one expert
// of W = K*D units that sees every token; only its W_dec lies the other way round in memory, (C,W).
struct Experts {
    size_t E, D, C;
    bool relu, fused;                            // fused: the library's epilogues do bias and activation
    const floatX *w_enc, *b_enc, *w_dec, *b_dec; // (E,D,C) (E,D) (E,D,C) (E,C)
    float *dw_enc, *db_enc, *dw_dec, *db_dec;    // gradients; db_dec null: it is summed elsewhere
    bool w_dec_transposed;
    const int *begin, *host_begin; // (E+1): expert j's rows are [begin[j], begin[j+1])
    uint8_t* own;                  // (E) on the host: whose products went without the library's activation
    floatX *x, *y, *dx, *dy;       // (slots,C) inputs, outputs and their gradients
    floatX *h, *z;                 // (slots,D) pre-activations (but for relu) and units
    uint8_t* mask;                 // (slots, mask_stride bits), relu when fused
    floatX *dh, *db;               // (slots,D) (E,D) scratch of the backward pass
    float* partial;                // (bias_parts(slots,E), max(C,D)) likewise
    bool keeps_h = false;          // pre-activations are wanted of relu, too: then it is not fused
    // By hand it is not fused, either; x is not used, and y is weighted.
    bool by_hand = false;
    const floatX *tokens_x = nullptr, *tokens_dout = nullptr; // (N,C) x before it is gathered; dy likewise
    Router router = {};                                       // moe; of a dense layer E is 0
    float* dweight = nullptr;                                 // (N,K) moe
    float *z_sums = nullptr, *parts = nullptr;                // scratch: UnitsBackward, GroupedGradient
    unsigned long long* active = nullptr;                     // units that fire are added to it; may be null
    // Of a dense layer, which then is not fused either
    bool geglu = false, solu = false;
    Linear to_gate = {};                      // geglu: from x to what goes through gelu
    floatX *gate = nullptr, *dgate = nullptr; // (slots,D) its output; scratch
    Norm norm = {};                           // solu: of u, giving z
    floatX *u = nullptr, *du = nullptr;       // (slots,D); scratch
    float* lse = nullptr;                     // (slots)

    enum Own : uint8_t { own_forward = 1, own_backward = 2 };
    size_t slots() const { return router.E ? router.N * router.K : host_begin[E]; }
    size_t mask_stride() const { return round_up(D, 128); }
    // Every unit that fired has its bit in the mask, and there are no other bits.
    bool all_masked() const {
        return fused && relu && D % 128 == 0 &&
               std::none_of(own, own + E, [](uint8_t o) { return o & own_forward; });
    }

    // Calls make(expert, its first row, its number of rows) for every expert that has rows.
    template <class Make> void each(Make make) const {
        for (size_t j = 0; j < E; j++) {
            const size_t first = host_begin[j], rows = host_begin[j + 1] - first;
            if (rows) make(j, first, rows);
        }
    }
    // z = act(x W_enc^T + b_enc); without the library's activation, into what comes before it
    Product encode(size_t j, size_t first, size_t rows, bool activated) const {
        Product p{z + first * D, x + first * C, w_enc + j * D * C, rows, D, C};
        p.b_transposed = true;
        p.bias = b_enc + j * D;
        p.epilogue = !activated ? CUBLASLT_EPILOGUE_BIAS
                     : relu     ? CUBLASLT_EPILOGUE_RELU_AUX_BIAS
                                : CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
        if (activated)
            set_aux(p, first);
        else if (!relu || keeps_h)
            p.out = h + first * D;
        return p;
    }
    // dh = dy W_dec^T act'(h), and the sums over its rows into db; without the library's activation, dz
    Product decode_backward(size_t j, size_t first, size_t rows, bool activated) const {
        Product p{dh + first * D, dy + first * C, w_dec + j * D * C, rows, D, C};
        p.b_transposed = !w_dec_transposed;
        if (!activated) return p;
        p.epilogue = relu ? CUBLASLT_EPILOGUE_DRELU_BGRAD : CUBLASLT_EPILOGUE_DGELU_BGRAD;
        p.bias = db + j * D;
        set_aux(p, first);
        return p;
    }
    // What the library keeps of the rows from `first` on for their backward pass.
    void set_aux(Product& p, size_t first) const {
        p.aux = relu ? (void*)(mask + first * mask_stride() / 8) : h + first * D;
        p.aux_stride = relu ? mask_stride() : D;
    }
};

// The units of an expert's rows, and the way back from dz to dh, where the library has not done it.
inline void units_forward(Gpu& gpu, const Experts& e, size_t j, size_t first, size_t rows) {
    const cudaStream_t stream = gpu.branch(j).stream;
    floatX *z = e.z + first * e.D, *h = e.relu && !e.keeps_h ? z : e.h + first * e.D;
    if (e.geglu) {
        linear_forward(gpu, e.gate, e.x, e.to_gate);
        geglu_forward(z, e.gate, h, rows * e.D, stream);
    } else if (e.solu) {
        solu_forward(e.u, e.lse, e.norm, h, stream);
    } else {
        activation_forward(z, h, rows * e.D, e.relu, stream);
    }
}
inline void units_backward(Gpu& gpu, const Experts& e, size_t j, size_t first, size_t rows) {
    const cudaStream_t stream = gpu.branch(j).stream;
    floatX *dh = e.dh + first * e.D, *h = (e.relu ? e.z : e.h) + first * e.D;
    if (e.geglu)
        geglu_backward(e.dgate, dh, e.gate, h, rows * e.D, stream);
    else if (e.solu)
        solu_backward(dh, e.du, e.norm, e.u, h, e.lse, e.partial, stream);
    else
        activation_backward(dh, h, rows * e.D, e.relu, stream);
}

// z from x; h or mask with it
inline void experts_encode(Gpu& gpu, const Experts& e) {
    gpu.mark("experts_encode");
    std::fill(e.own, e.own + e.E, uint8_t(e.fused ? 0 : Experts::own_forward));
    if (e.by_hand) {
        floatX* const h = e.relu && !e.keeps_h ? nullptr : e.h;
        grouped_multiply({e.tokens_x, e.w_enc, e.begin, e.router.token, int(e.E), int(e.D), int(e.C)}, false,
                         Units{e.z, h, e.b_enc, e.active, e.relu}, gpu.chip, gpu.stream);
        return;
    }
    fork_branches(gpu);
    e.each([&](size_t j, size_t first, size_t rows) {
        if (e.fused && try_multiply(gpu, e.encode(j, first, rows, true), j)) return;
        multiply(gpu, e.encode(j, first, rows, false), j);
        units_forward(gpu, e, j, first, rows);
        e.own[j] = Experts::own_forward;
    });
    join_branches(gpu);
}

// y = z W_dec + b_dec; by hand, times the gate weight
inline void experts_decode(Gpu& gpu, const Experts& e) {
    gpu.mark("experts_decode");
    if (e.by_hand) {
        grouped_multiply({e.z, e.w_dec, e.begin, nullptr, int(e.E), int(e.C), int(e.D)}, !e.w_dec_transposed,
                         Weighted{e.y, e.b_dec, e.router.slot_weight}, gpu.chip, gpu.stream);
        return;
    }
    fork_branches(gpu);
    e.each([&](size_t j, size_t first, size_t rows) {
        Product p{e.y + first * e.C, e.z + first * e.D, e.w_dec + j * e.D * e.C, rows, e.C, e.D};
        p.b_transposed = e.w_dec_transposed;
        p.epilogue = CUBLASLT_EPILOGUE_BIAS;
        p.bias = e.b_dec + j * e.C;
        multiply(gpu, p, j);
    });
    join_branches(gpu);
}

// From tokens_dout, what the library is given as dy and dweight by combine_backward(), with the rest.
inline void experts_backward_by_hand(Gpu& gpu, const Experts& e) {
    const int E = int(e.E), D = int(e.D), C = int(e.C), parts = int(part_rows(e.slots(), e.D, e.C));
    const Router& r = e.router;
    gpu.mark("experts_backward dh");
    grouped_multiply(
        {e.tokens_dout, e.w_dec, e.begin, r.token, E, D, C}, e.w_dec_transposed,
        UnitsBackward{e.dh, e.z, e.h, r.slot_weight, e.partial, r.E ? e.z_sums : nullptr, e.relu}, gpu.chip,
        gpu.stream);
    grouped_bias_backward_kernel<<<dim3(blocks_for(e.D, warp_size), E), dim3(warp_size, 8), 0, gpu.stream>>>(
        e.db_enc, e.partial, e.begin, D);
    cuda_check(cudaGetLastError());
    if (r.E)
        combine_backward(e.dy, e.dweight, e.tokens_dout, nullptr,
                         {e.z_sums, UnitsBackward::parts(D), e.b_dec}, r, gpu.marked("combine_backward"));
    gpu.mark("experts_backward dx");
    grouped_multiply({e.dh, e.w_enc, e.begin, nullptr, E, C, D}, true, Weighted{e.dx, nullptr, nullptr},
                     gpu.chip, gpu.stream);
    gpu.mark("experts_backward dW_dec");
    if (e.w_dec_transposed)
        grouped_gradient({e.dw_dec, e.parts, e.dy, e.z, e.begin, nullptr, E, C, D, parts}, gpu.chip,
                         gpu.stream);
    else
        grouped_gradient({e.dw_dec, e.parts, e.z, e.dy, e.begin, nullptr, E, D, C, parts}, gpu.chip,
                         gpu.stream);
    gpu.mark("experts_backward dW_enc");
    grouped_gradient({e.dw_enc, e.parts, e.dh, e.tokens_x, e.begin, r.token, E, D, C, parts}, gpu.chip,
                     gpu.stream);
    gpu.mark("experts_backward db_dec");
    if (e.db_dec) bias_backward(e.db_dec, e.partial, e.dy, e.begin, e.slots(), e.E, e.C, gpu.stream);
}

// From dy: dz = dy W_dec^T,  dW_dec += z^T dy,  db_dec += sum dy,  dh from dz,
//          dx = dh W_enc,   dW_enc += dh^T x,  db_enc += sum dh.
// The library sums db_enc in fp32 over the rows of an expert, but hands the sum over in floatX: in bf16 it is
// rounded once for every micro-batch.
inline void experts_backward(Gpu& gpu, const Experts& e) {
    if (e.by_hand) return experts_backward_by_hand(gpu, e);
    const size_t D = e.D, C = e.C;
    gpu.mark("experts_backward dh");
    if (e.fused) cuda_check(cudaMemsetAsync(e.db, 0, e.E * D * sizeof(floatX), gpu.stream));
    fork_branches(gpu);
    e.each([&](size_t j, size_t first, size_t rows) {
        const bool fused = !(e.own[j] & Experts::own_forward);
        if (fused && try_multiply(gpu, e.decode_backward(j, first, rows, true), j)) return;
        multiply(gpu, e.decode_backward(j, first, rows, false), j);
        units_backward(gpu, e, j, first, rows);
        e.own[j] |= Experts::own_backward;
    });
    join_branches(gpu);
    if (e.fused) {
        to_fp32(e.db_enc, e.db, e.E * D, true, gpu.stream);
        e.each([&](size_t j, size_t, size_t rows) {
            if (e.own[j] & Experts::own_backward)
                bias_backward(e.db_enc + j * D, e.partial, e.dh, e.begin + j, rows, 1, D, gpu.stream);
        });
    } else {
        bias_backward(e.db_enc, e.partial, e.dh, e.begin, e.slots(), e.E, D, gpu.stream);
    }
    if (e.geglu) linear_backward(gpu, e.dx, e.dgate, e.x, e.to_gate, e.partial, e.begin);

    size_t branch = 0;
    fork_branches(gpu);
    gpu.mark("experts_backward dx");
    e.each([&](size_t j, size_t first, size_t rows) {
        Product dx{e.dx + first * C, e.dh + first * D, e.w_enc + j * D * C, rows, C, D};
        dx.adds = e.geglu; // to what came by way of the gate
        multiply(gpu, dx, branch++);
    });
    gpu.mark("experts_backward dW_dec");
    e.each([&](size_t j, size_t first, size_t rows) {
        const floatX *z = e.z + first * D, *dy = e.dy + first * C;
        float* dw_dec = e.dw_dec + j * D * C;
        multiply(gpu,
                 e.w_dec_transposed ? weight_gradient(dw_dec, dy, z, C, D, rows)
                                    : weight_gradient(dw_dec, z, dy, D, C, rows),
                 branch++);
    });
    gpu.mark("experts_backward dW_enc");
    e.each([&](size_t j, size_t first, size_t rows) {
        multiply(gpu, weight_gradient(e.dw_enc + j * D * C, e.dh + first * D, e.x + first * C, D, C, rows),
                 branch++);
    });
    gpu.mark("experts_backward db_dec");
    if (e.db_dec)
        bias_backward(e.db_dec, e.partial, e.dy, e.begin, e.slots(), e.E, C, gpu.branch(branch).stream);
    join_branches(gpu);
}

// Whether cuBLASLt has the fused epilogues for these experts, `rows` tokens each: of the forward and the
// backward pass, since only it knows how its mask lies in memory.
inline bool fused_epilogues(Gpu& gpu, Experts e, size_t rows) {
    if (e.geglu || e.solu || e.keeps_h) return false;
    floatX* const anywhere = (floatX*)16; // pointers are not followed, but must be there
    e.x = e.dy = e.h = e.z = e.dh = e.db = anywhere;
    e.mask = (uint8_t*)anywhere;
    return choose_algorithm(gpu, e.encode(0, 0, bucket(rows), true)) &&
           choose_algorithm(gpu, e.decode_backward(0, 0, bucket(rows), true));
}

// --epilogues: who adds the bias and applies the activation, the library's products (true) or our kernels
// after them. Before a card of compute capability 9.0 the library does it in a second pass over memory; and
// its gelu is too coarse for the fp32 build.
inline bool choose_epilogues(Gpu& gpu, const Experts& e, const std::string& epilogues, size_t rows) {
    int device = 0, major = 0;
    cuda_check(cudaGetDevice(&device));
    cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    if (epilogues == "own" || (epilogues == "auto" && (major < 9 || (sizeof(floatX) == 4 && !e.relu))))
        return false;
    const bool found = fused_epilogues(gpu, e, rows);
    if (!found && epilogues == "library")
        fail("--epilogues library: cuBLASLt has none for experts of %zu units and %zu channels on this GPU, "
             "expected --epilogues own (a run that goes on keeps its choice, as its bits depend on it: start "
             "a new one from its model with --init)",
             e.D, e.C);
    return found;
}

// ---------------------------------------------------------------------------------------------------------
// 4. Several GPUs: a process for each (dev/run/ranks.h), all with the whole model, which share the
// micro-batches of a step, add up their gradients, update a part of the weights each, and send it to all.
// Whose part is whose is in dev/run/sharing.h, the order of the sums in dev/run/lanes.h: it does not depend
// on the number of GPUs, nor do the bits. One GPU alone is everyone, and sends nothing.
// ---------------------------------------------------------------------------------------------------------

// Bytes from GPU to GPU: what is sent and received between begin() and end() goes side by side, in the order
// of the stream. Nothing more is asked of NCCL: its sums have no order that one could rely on.
#ifdef MOEX_NCCL
inline void nccl_check_at(ncclResult_t result, const char* file, int line) {
    if (result != ncclSuccess)
        fail("%s:%d: NCCL: %s: %s", file, line, ncclGetErrorString(result), ncclGetLastError(nullptr));
}
#define nccl_check(call) nccl_check_at(call, __FILE__, __LINE__)

struct Network {
    std::shared_ptr<std::remove_pointer_t<ncclComm_t>> communicator;

    static std::string version() {
        int version = 0;
        nccl_check(ncclGetVersion(&version));
        return strf("NCCL %d.%d.%d", version / 10000, version / 100 % 100, version % 100);
    }
    // What the others need to reach the one that made it.
    static std::string new_id() {
        ncclUniqueId id;
        nccl_check(ncclGetUniqueId(&id));
        return std::string(id.internal, sizeof id.internal);
    }
    void join(const std::string& id_bytes, size_t place, size_t places) {
        setenv("NCCL_MAX_P2P_NCHANNELS", "16", 0); // 32 took 3.3 GB of each of 8 H100s (NCCL issue 1685)
        setenv("NCCL_NVLS_ENABLE", "0", 0);        // memory for sums that are not asked for
        ncclUniqueId id;
        if (id_bytes.size() != sizeof id.internal) fail("rank 0 sent no id of NCCL");
        memcpy(id.internal, id_bytes.data(), sizeof id.internal);
        ncclComm_t comm = nullptr;
        nccl_check(ncclCommInitRank(&comm, int(places), id, int(place)));
        communicator.reset(comm, ncclCommDestroy);
    }
    // An error that came since: of a connection, say.
    std::string error() const {
        ncclResult_t result = ncclSuccess;
        nccl_check(ncclCommGetAsyncError(communicator.get(), &result));
        if (result == ncclSuccess || result == ncclInProgress) return "";
        return strf("NCCL: %s: %s", ncclGetErrorString(result), ncclGetLastError(communicator.get()));
    }
    void begin() const {
        if (communicator) nccl_check(ncclGroupStart());
    }
    void end() const {
        if (communicator) nccl_check(ncclGroupEnd());
    }
    void send(const void* from, size_t bytes, size_t to_place, cudaStream_t stream) const {
        if (bytes) nccl_check(ncclSend(from, bytes, ncclUint8, int(to_place), communicator.get(), stream));
    }
    void receive(void* to, size_t bytes, size_t from_place, cudaStream_t stream) const {
        if (bytes) nccl_check(ncclRecv(to, bytes, ncclUint8, int(from_place), communicator.get(), stream));
    }
};
#else
struct Network {
    [[noreturn]] static std::string version() {
        fail("this program was built without NCCL, which several GPUs need: install it (Debian, Ubuntu: "
             "libnccl2 and libnccl-dev, or with the CUDA toolkit) and build again, or use one GPU");
    }
    static std::string new_id() { return ""; }
    void join(const std::string&, size_t, size_t) {}
    std::string error() const { return ""; }
    void begin() const {}
    void end() const {}
    void send(const void*, size_t, size_t, cudaStream_t) const {}
    void receive(void*, size_t, size_t, cudaStream_t) const {}
};
#endif

// GPUs that exchange with one another: the place of each, its part of the numbers, and which of them is ours.
struct Circle {
    std::vector<size_t> places;
    std::vector<Span> parts;
    size_t ours;
};

struct Exchange {
    Sharing sharing;
    Network network;
    typedef std::shared_ptr<std::remove_pointer_t<cudaEvent_t>> Event;
    std::shared_ptr<std::remove_pointer_t<cudaStream_t>> stream; // beside what is computed
    Event reached;
    std::vector<Event> gathered; // the weights of the embeddings, then of each layer
    Block<float> received{};     // what others have of our part, or in a checkpoint of theirs

    size_t places() const { return sharing.lanes.places(); }

    void make_stream(size_t layers) {
        const auto make_event = [] {
            cudaEvent_t event;
            cuda_check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
            return Event(event, cudaEventDestroy);
        };
        cudaStream_t s;
        cuda_check(cudaStreamCreate(&s));
        stream.reset(s, cudaStreamDestroy);
        reached = make_event();
        for (size_t l = 0; l <= layers; l++) gathered.push_back(make_event());
    }
    // A stream for what needs all that was put on `computing` until now, and nothing after it.
    cudaStream_t beside(cudaStream_t computing) const {
        if (!stream) return computing;
        cuda_check(cudaEventRecord(reached.get(), computing));
        cuda_check(cudaStreamWaitEvent(stream.get(), reached.get(), 0));
        return stream.get();
    }
    // What is put on `computing` from now on sees what was put beside it.
    void join(cudaStream_t computing) const {
        if (!stream) return;
        cuda_check(cudaEventRecord(reached.get(), stream.get()));
        cuda_check(cudaStreamWaitEvent(computing, reached.get(), 0));
    }

    // What is put on `computing` from now on sees the weights of a layer (1 + l; 0: the embeddings) that were
    // gathered last; those behind the last are none.
    void wait_for_weights(size_t layer, cudaStream_t computing) const {
        if (stream && layer < gathered.size())
            cuda_check(cudaStreamWaitEvent(computing, gathered[layer].get(), 0));
    }

    // The GPUs of our machine with their columns of a piece; those of our number on all machines, with what
    // each owns of our column; and all there are, with what each owns.
    Circle neighbours(Span piece) const {
        const Lanes& lanes = sharing.lanes;
        Circle c{{}, {}, sharing.place / lanes.machines};
        for (size_t l = 0; l < lanes.per_machine; l++) {
            c.places.push_back(l * lanes.machines + sharing.place % lanes.machines);
            c.parts.push_back(column(piece, l, lanes));
        }
        return c;
    }
    Circle counterparts(Span piece) const {
        const size_t M = sharing.lanes.machines;
        Circle c{{}, {}, sharing.place % M};
        for (size_t m = 0; m < M; m++) {
            c.places.push_back(sharing.place / M * M + m);
            c.parts.push_back(owned(piece, c.places.back(), places()));
        }
        return c;
    }
    Circle everyone(const std::vector<Span>& parts) const {
        Circle c{{}, parts, sharing.place};
        for (size_t p = 0; p < places(); p++) c.places.push_back(p);
        return c;
    }

    // Our part = the sum of what all of the circle have of it, in the tree of lanes.h.
    void add_up(float* data, const Circle& c, cudaStream_t stream) const {
        if (c.places.size() == 1) return;
        const Span part = c.parts[c.ours];
        float *const ours = data + part.begin, *next = received.data;
        std::vector<float*> copies;
        network.begin();
        for (size_t i = 0; i < c.places.size(); i++) {
            copies.push_back(i == c.ours ? ours : next);
            if (i == c.ours) continue;
            next += part.count();
            network.send(data + c.parts[i].begin, c.parts[i].count() * sizeof(float), c.places[i], stream);
            network.receive(copies[i], part.count() * sizeof(float), c.places[i], stream);
        }
        network.end();
        for (const auto& [first, second] : tree_additions(copies.size())) {
            if (copies[second] == ours) std::swap(copies[first], copies[second]); // a + b is b + a
            add_parts(copies[first], copies[second], part.count(), stream);
        }
    }
    // Everyone's part to all of the circle. numbers: of `width` bytes each
    void spread(void* numbers, size_t width, const Circle& c, cudaStream_t stream) const {
        if (c.places.size() == 1) return;
        char* const data = (char*)numbers;
        const Span part = c.parts[c.ours];
        network.begin();
        for (size_t i = 0; i < c.places.size(); i++) {
            if (i == c.ours) continue;
            network.send(data + part.begin * width, part.count() * width, c.places[i], stream);
            network.receive(data + c.parts[i].begin * width, c.parts[i].count() * width, c.places[i], stream);
        }
        network.end();
    }

    // What we own of a piece of the gradients = its sum over all GPUs: first within a machine, which has the
    // fast connections, so that between machines each number goes once.
    void reduce(float* gradients, Span piece, cudaStream_t stream) const {
        add_up(gradients, neighbours(piece), stream);
        add_up(gradients, counterparts(piece), stream);
    }
    // The way back: what each owns, to all.
    void gather(void* numbers, size_t width, Span piece, cudaStream_t stream) const {
        spread(numbers, width, counterparts(piece), stream);
        spread(numbers, width, neighbours(piece), stream);
    }

    // The sum of each number over all GPUs, in order of their places, to each of them. They must all call.
    std::vector<double> add(const std::vector<double>& numbers, cudaStream_t computing) const {
        if (places() == 1 || numbers.empty()) return numbers;
        join(computing);
        const size_t n = numbers.size();
        const Block<double> all(places() * n);
        std::vector<Span> parts;
        for (size_t p = 0; p < places(); p++) parts.push_back({p * n, (p + 1) * n});
        cuda_check(cudaMemcpyAsync(all.data + sharing.place * n, numbers.data(), n * sizeof(double),
                                   cudaMemcpyHostToDevice, computing));
        spread(all.data, sizeof(double), everyone(parts), computing);
        std::vector<double> got(all.count), sums(n);
        cuda_check(cudaMemcpyAsync(got.data(), all.data, got.size() * sizeof(double), cudaMemcpyDeviceToHost,
                                   computing));
        cuda_check(cudaStreamSynchronize(computing));
        for (size_t i = 0; i < got.size(); i++) sums[i % n] += got[i];
        return sums;
    }

    // The largest of the numbers that the GPUs have here. They must all call.
    double largest(double number) const {
        std::vector<double> all(places());
        all[sharing.place] = number;
        all = add(all, nullptr);
        return *std::max_element(all.begin(), all.end());
    }

    // A piece of which each GPU has what it owns at `ours`, into memory of the host of rank 0.
    void collect(float* host, const float* ours, Span piece, cudaStream_t computing) const {
        join(computing);
        std::vector<Span> parts;
        for (size_t p = 0; p < places(); p++) parts.push_back(owned(piece, p, places()));
        auto theirs = [&](size_t p) { return received.data + (parts[p].begin - piece.begin); };
        network.begin();
        if (sharing.place > 0) network.send(ours, parts[sharing.place].count() * sizeof(float), 0, computing);
        for (size_t p = 1; p < places() && sharing.place == 0; p++)
            network.receive(theirs(p), parts[p].count() * sizeof(float), p, computing);
        network.end();
        for (size_t p = 0; p < places() && sharing.place == 0; p++)
            cuda_check(cudaMemcpyAsync(host + parts[p].begin, p ? theirs(p) : ours,
                                       parts[p].count() * sizeof(float), cudaMemcpyDeviceToHost, computing));
        cuda_check(cudaStreamSynchronize(computing));
    }
};

// The sums of a step on their way together: the squares of the segments of its gradient and the totals of its
// micro-batches, those of all GPUs.
struct StepSums {
    SumsLayout layout;
    Block<double> parts; // as laid out
    Block<int> order;

    StepSums() = default;
    explicit StepSums(const SumsLayout& l) : layout(l), parts(l.doubles()), order(l.order.size()) {
        order.upload(l.order.data(), l.order.size());
    }
    // Of a micro-batch; its variances lie behind them.
    Totals* totals(size_t micro_batch) const { return (Totals*)(parts.data + layout.totals_of(micro_batch)); }
};

// ---------------------------------------------------------------------------------------------------------
// 5. The model's memory: one allocation for each family, made at the start, carved by the tables below.
// ---------------------------------------------------------------------------------------------------------

struct LayerActivations {
    floatX* ln_1;                   // (N,C)
    float *ln_1_mean, *ln_1_rstd;   // (N) (N)
    floatX *qkv, *att;              // (N,3C) (N,C)
    float* lse;                     // (B,NH,T)
    floatX* mid;                    // (N,C) residual stream after attention
    floatX* ln_2;                   // (N,C)
    float *ln_2_mean, *ln_2_rstd;   // (N) (N)
    floatX *h, *z;                  // (slots,D) pre-activations, but for relu; units.  dense: (N,W)
    floatX *gate, *u;               // geglu: (N,W); solu: (N,W)
    float *lse_u, *u_mean, *u_rstd; // solu: (N) (N) (N)
    uint8_t* mask;                  // (slots, D bits) where z > 0; relu with fused epilogues only
    floatX* out;                    // (N,C) residual stream after the feed-forward layer
    // moe only
    Router router;       // with its sizes; N is the batch's, see Model::router()
    floatX *slots_x, *y; // (N*K,C) inputs, gathered, and outputs of the experts
};

struct Activations {
    floatX* embedded;                // (N,C)
    std::vector<LayerActivations> h; // L
    floatX* ln_f;                    // (N,C)
    float *ln_f_mean, *ln_f_rstd;    // (N) (N)
    floatX* logits;                  // (N,Vp), in the backward pass its gradient
    float* losses;                   // (N)
    Totals* totals;                  // of the step
    Variances* variances;            // (L,E) of the step; router_sd scaled only
    float* hidden_nan;               // 0, or NaN where relu would hide one among the weights: find_nan()
    // scratch, used by one layer at a time
    floatX* proj;                          // (N,C)
    floatX *dresidual, *dln, *datt, *dqkv; // (N,C) (N,C) (N,C) (N,3C)
    float* delta;                          // (B,NH,T)
    floatX *dh, *db, *dy, *dslots;         // (slots,D), (E,D), (N*K,C), (N*K,C)
    floatX *dgate, *du;                    // geglu: (N,W); solu: (N,W)
    float *z_sums, *parts;                 // by hand, see UnitsBackward and GroupedGradient
    float *dmu, *dvar, *dweight;           // (N,E) (N,E) (N,K)
    float* sum_p;                          // (E)
    int* counts;                           // (E, N*K/256)
    float* partial;                        // of any sum over tokens
};

// The vocabulary in memory is a multiple of 64: cuBLASLt is at its best when all rows are multiples of 16
// bytes, and GPT-2's 50257 makes odd ones of three products. The rows of wte behind V are zeros and stay so:
// their logits' gradient is 0. Files hold V rows.
constexpr size_t vocab_multiple = 64;
inline std::vector<Tensor> gpu_tensor_table(const Config& config) {
    return tensor_table(config, vocab_multiple);
}

// What decides the sizes of the activations.
struct Shape {
    const Config& c;
    size_t B, T;
    int recompute; // 0: all is kept; 1: the units are computed again in the backward pass; 2: LayerNorms, too
    bool fused;    // the epilogues of matrix products do bias and activation
    bool training; // with a backward pass
    bool keep_slots = false; // the experts' gathered inputs are kept for the backward pass
    // Who may compute the experts' products. By hand inputs are not gathered, and outputs not kept.
    bool by_library = true, by_hand = false;
    size_t padded_vocab() const { return round_up(c.vocab_size, vocab_multiple); }
    size_t experts() const { return c.moe() ? c.n_expert : 1; }
    size_t width() const { return c.moe() ? c.d_expert : c.dense_width(); } // units of one expert
    size_t partial() const;
};

// Room for the partial sums of any kernel above.
inline size_t Shape::partial() const {
    const size_t N = B * T, C = c.n_embd, E = experts(), K = c.moe() ? c.n_expert_active : 1, D = width();
    return std::max({layernorm_blocks * layernorm_sums * C,                      // layernorm_backward
                     c.solu() ? layernorm_blocks * 2 * D : 0,                    // likewise, of units
                     bias_parts(N * K, E) * std::max(3 * C, D),                  // bias_backward
                     by_hand ? UnitsBackward::sums_rows(N * K, E) * D : 0,       // of units by hand
                     (N / places_per_chunk + std::min(N, c.vocab_size) + 1) * C, // embedding_backward
                     blocks_for(N, router_block) * 2 * E,                        // router forward, backward
                     c.scaled() ? N * K * 2 : 0,                                 // add_variances
                     token_parts(N) * 2 * E * C});                               // and its statistics
}

// Experts whose deviations are scaled.
inline size_t scaled_experts(const Config& c) { return c.scaled() ? c.n_layer * c.n_expert : 0; }

// Lists every activation with its number of elements. Arrays that a layer may compute again are shared by all
// layers: visited once, for the first.
template <class Visit> void for_each_activation(const Shape& s, Activations& a, Visit visit) {
    const Config& c = s.c;
    const size_t N = s.B * s.T, C = c.n_embd, E = s.experts(), K = c.moe() ? c.n_expert_active : 1,
                 D = s.width();
    const size_t mask_bytes = N * K * round_up(D, 128) / 8;
    auto each = [&](size_t count, auto*&... arrays) { (visit(arrays, count), ...); };
    a.h.resize(c.n_layer);
    each(1, a.totals);
    each(scaled_experts(c), a.variances);
    each(1, a.hidden_nan);
    each(N * C, a.embedded);
    for (size_t l = 0; l < c.n_layer; l++) {
        LayerActivations &h = a.h[l], &first = a.h[0];
        if (l == 0 || s.recompute < 2) {
            each(N * C, h.ln_1, h.ln_2);
        } else {
            h.ln_1 = first.ln_1;
            h.ln_2 = first.ln_2;
        }
        each(N, h.ln_1_mean, h.ln_1_rstd, h.ln_2_mean, h.ln_2_rstd);
        each(N * 3 * C, h.qkv);
        each(N * C, h.att, h.mid, h.out);
        each(N * c.n_head, h.lse);
        if (l == 0 || s.recompute < 1) {
            each(N * K * D, h.z);
            if (!c.relu() || c.scaled()) each(N * K * D, h.h);
            if (c.relu() && s.fused) each(mask_bytes, h.mask);
            if (c.geglu()) each(N * D, h.gate);
            if (c.solu()) each(N * D, h.u);
        } else {
            h.z = first.z;
            h.h = first.h;
            h.mask = first.mask;
            h.gate = first.gate;
            h.u = first.u;
        }
        if (c.solu()) each(N, h.lse_u, h.u_mean, h.u_rstd);
        if (!c.moe()) continue;
        Router& r = h.router;
        each(E * C, r.statistics.m, r.statistics.v);
        each(E, r.statistics.mb, r.statistics.vb);
        if (c.scaled()) each(E, r.rho);
        each(N * E, r.mu, r.sd, r.g);
        each(N * K, r.choice, r.slot, r.token);
        each(N * K, r.weight);
        each(E + 1, r.begin);
        if (s.by_hand) each(N * K, r.slot_weight);
        if (l == 0 || s.by_library)
            each(N * K * C, h.y);
        else
            h.y = first.y;
        if (s.by_library && (l == 0 || s.keep_slots))
            each(N * K * C, h.slots_x);
        else
            h.slots_x = first.slots_x;
    }
    each(N * C, a.ln_f, a.proj);
    each(N, a.ln_f_mean, a.ln_f_rstd, a.losses);
    each(N * s.padded_vocab(), a.logits);
    each(s.partial(), a.partial);
    if (c.moe()) {
        each(E, a.sum_p);
        each(E * blocks_for(N * K, dispatch_tile), a.counts);
    }
    if (!s.training) return;
    each(N * C, a.dresidual, a.dln, a.datt);
    each(N * 3 * C, a.dqkv);
    each(N * c.n_head, a.delta);
    each(N * K * D, a.dh);
    each(E * D, a.db);
    if (s.by_hand) each(extra_parts(D, C) * D * C, a.parts);
    if (c.geglu()) each(N * D, a.dgate);
    if (c.solu()) each(N * D, a.du);
    if (!c.moe()) return;
    each(N * K * C, a.dy, a.dslots);
    if (s.by_hand) each(N * K * UnitsBackward::parts(int(D)), a.z_sums);
    each(N * E, a.dmu, a.dvar);
    each(N * K, a.dweight);
}

// What is taken beside our own blocks, and later: the context, and the library's kernels when first used.
constexpr double unaccounted_bytes = 0.7e9;

inline size_t activation_bytes(const Shape& shape) {
    Activations unused{};
    size_t total = 0;
    for_each_activation(shape, unused,
                        [&](auto*& p, size_t count) { total += round_up(count * sizeof *p, 256); });
    return total;
}
// Of training, whoever may compute the experts' products.
inline size_t training_activation_bytes(const Config& c, size_t B, size_t T, int recompute) {
    Shape shape = {c, B, T, recompute, true, true};
    shape.by_hand = !c.geglu() && !c.solu();
    return activation_bytes(shape);
}

// The gradients of the statistics of all layers, one after the other, so that one call zeroes them.
inline size_t statistics_elements(const Config& c) { return c.moe() ? 2 * c.n_expert * (c.n_embd + 4) : 0; }

// A batch on its way to the GPU: tokens, targets and the places of each token, in one copy. There are two, so
// that one can be filled while the other is being read.
struct BatchBuffer {
    int* host = nullptr; // pinned
    cudaEvent_t copied = nullptr;
};

// What the kernels can do; everything else is possible, but not here.
inline void check_gpu_config(const Config& c, const std::string& where) {
    auto multiple = [&](const char* name, size_t value) {
        if (value % 8) fail("%s: %s is %zu, expected a multiple of 8 on the GPU", where.c_str(), name, value);
    };
    if (const std::string what = reference_only(c); !what.empty())
        fail("%s: %s is known to train_moex_cpu and sample_cpu, not to the GPU programs", where.c_str(),
             what.c_str());
    multiple("n_embd", c.n_embd);
    multiple(c.moe() ? "d_expert" : "n_expert_active * d_expert", c.moe() ? c.d_expert : c.dense_width());
    if (c.n_embd > most_channels)
        fail("%s: n_embd is %zu, expected at most %zu on the GPU", where.c_str(), c.n_embd, most_channels);
    if (c.solu() && c.dense_width() > most_solu_units)
        fail("%s: a solu layer of %zu units, expected at most %zu on the GPU", where.c_str(), c.dense_width(),
             most_solu_units);
    if (c.n_embd / c.n_head > 256)
        fail("%s: heads of %zu channels, expected at most 256 on the GPU", where.c_str(),
             c.n_embd / c.n_head);
}

struct Model {
    Config config;
    std::vector<Tensor> table;
    Gpu gpu;
    size_t max_B, max_T;
    int recompute;
    bool fused = false, by_hand = false;                   // see Experts
    bool may_be_by_library = true, may_be_by_hand = false; // by_hand may be changed
    Block<floatX> weights;
    Block<float> master, gradients, moment_1, moment_2, dstatistics;
    Exchange exchange;                // with the other GPUs
    std::vector<Piece> pieces;        // of the block, in order
    std::vector<Block<float>> summed; // more gradients: sums of some lanes, while others are computed
    StepSums sums;
    Block<uint8_t> decays; // (count/32)
    Block<char> activations;
    Block<int> batch; // as laid out by upload_batch
    Parameters<floatX> w;
    Parameters<float> g{}; // all null where there is no backward pass
    Activations a{};
    Totals* totals = nullptr;                  // where forward() adds: to the step's, or its micro-batch's
    Variances* variances = nullptr;            // likewise
    size_t B = 0, T = 0;                       // of the last batch
    int *tokens = nullptr, *targets = nullptr; // (B,T) (B,T) of `batch`
    int* whole_batch = nullptr;                // (2) 0 and N: the rows of a layer without experts
    TokenPlaces places{};
    BatchBuffer buffers[2];
    size_t next_buffer = 0;
    std::vector<int> token_end;                // (V+1) scratch of upload_batch
    int* host_begin = nullptr;                 // (L,E+1) pinned: what the GPU found in begin
    std::unique_ptr<uint8_t[]> own_activation; // (L,E) see Experts::own
    Totals* host_totals = nullptr;             // pinned
    cudaEvent_t dispatched = nullptr, begin_copied = nullptr;
    bool keep_slots = false;      // the experts' gathered inputs are kept for the backward pass
    bool count_units = true;      // forward() with a gradient_scale counts the units that fired
    bool statistics_stale = true; // the weights changed since the expert statistics were computed
    ChangedRouting routing;       // how experts are chosen, where not as trained: for sampling

    // For batches of up to B x T tokens; with training = false there is no backward pass. With B = 0 there
    // are the weights alone.
    explicit Model(const Config& config, size_t B, size_t T, int recompute = 0, bool training = true,
                   const std::string& epilogues = "auto", Exchange others = Exchange(),
                   const std::string& experts_by = "library")
        : config(config), table(gpu_tensor_table(config)), max_B(B), max_T(T), recompute(recompute),
          exchange(std::move(others)) {
        check_gpu_config(config, "model");
        const size_t count = block_elements(table), E = shape().experts();
        weights = Block<floatX>(count);
        w = carve_parameters(config, table, weights.data);
        g.h.resize(config.n_layer);
        if (B == 0) return;
        if (T > config.block_size)
            fail("T is %zu, more than the model's block_size %zu", T, config.block_size);
        if (double(B) * double(T) * double(config.n_expert_active) > 0x1p30)
            fail("a batch of %zu x %zu tokens is too large: a smaller --batch would help", B, T);
        if (training) {
            const Sharing& sharing = exchange.sharing;
            pieces = pieces_of_table(config, table, sharing);
            exchange.received = Block<float>(largest_exchange(pieces, sharing));
            sums = StepSums({config, table, sharing, totals_bytes() / sizeof(double)});
            const size_t state = state_elements(pieces);
            if (!std::is_same_v<floatX, float>) master = Block<float>(state);
            gradients = Block<float>(count);
            for (size_t n = sharing.lanes.of_place(); n > 1; n /= 2) summed.emplace_back(count);
            moment_1 = Block<float>(state);
            moment_2 = Block<float>(state);
            moment_1.zero();
            moment_2.zero();
            g = carve_parameters(config, table, gradients.data);
            std::vector<uint8_t> decay(count / 32);
            for (const Tensor& t : table)
                std::fill(decay.begin() + t.offset / 32,
                          decay.begin() + round_up(t.offset + t.count, 32) / 32, t.decay);
            decays = Block<uint8_t>(decay.size());
            decays.upload(decay.data(), decay.size());
        }
        const size_t slots = B * T * (config.moe() ? config.n_expert_active : 1);
        const bool known_by_hand = !config.geglu() && !config.solu();
        by_hand = experts_by == "hand";
        may_be_by_library = !by_hand;
        may_be_by_hand = by_hand || (experts_by == "auto" && known_by_hand);
        if (by_hand && !known_by_hand)
            fail("--experts-by hand knows relu and gelu, expected --experts-by library for %s",
                 config.geglu() ? "GEGLU" : "SoLU");
        if (by_hand && epilogues == "library")
            fail("--experts-by hand does bias and activation itself, expected --epilogues own or auto");
        fused =
            may_be_by_library && choose_epilogues(gpu, experts(0), epilogues, std::max<size_t>(1, slots / E));
        keep_slots = training && may_be_by_library && recompute == 0 && leaves_room_for_slots();
        activations = Block<char>(activation_bytes(shape(training)));
        char* place = activations.data;
        for_each_activation(shape(training), a, [&](auto*& pointer, size_t elements) {
            pointer = (std::remove_reference_t<decltype(pointer)>)place;
            place += round_up(elements * sizeof *pointer, 256);
        });
        totals = a.totals;
        variances = a.variances;
        dstatistics = Block<float>(training ? config.n_layer * statistics_elements(config) : 0);
        float* d = dstatistics.data;
        for (LayerActivations& h : a.h) {
            if (!training || !config.moe()) break;
            auto take = [&](size_t elements) { return std::exchange(d, d + elements); };
            Statistics& ds = h.router.dstatistics;
            ds.m = take(E * config.n_embd);
            ds.v = take(E * config.n_embd);
            ds.mb = take(4 * E);
            ds.vb = take(4 * E);
        }
        batch = Block<int>(batch_ints(B * T));
        token_end.resize(config.vocab_size + 1);
        for (BatchBuffer& b : buffers) {
            cuda_check(cudaMallocHost(&b.host, batch.count * sizeof(int)));
            cuda_check(cudaEventCreateWithFlags(&b.copied, cudaEventDisableTiming));
        }
        cuda_check(cudaMallocHost(&host_begin, config.n_layer * (E + 1) * sizeof(int)));
        own_activation = std::make_unique<uint8_t[]>(config.n_layer * E);
        cuda_check(cudaMallocHost(&host_totals, sizeof(Totals)));
        for (cudaEvent_t* event : {&dispatched, &begin_copied})
            cuda_check(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
    }
    Model(const Model&) = delete;
    ~Model() {
        for (BatchBuffer& b : buffers) {
            cudaFreeHost(b.host);
            if (b.copied) cudaEventDestroy(b.copied);
        }
        cudaFreeHost(host_begin);
        cudaFreeHost(host_totals);
        if (begin_copied) cudaEventDestroy(begin_copied);
        if (dispatched) cudaEventDestroy(dispatched);
    }

    // Whether there is memory to keep the experts' gathered inputs, instead of gathering them again.
    bool leaves_room_for_slots() const {
        size_t free = 0, total = 0;
        cuda_check(cudaMemGetInfo(&free, &total));
        Shape keeping = shape();
        keeping.keep_slots = true;
        return config.moe() && double(activation_bytes(keeping)) + unaccounted_bytes <= 0.95 * double(free);
    }

    Shape shape(bool training = true) const {
        return {config,        max_B, max_T, recompute, fused, training, keep_slots, may_be_by_library,
                may_be_by_hand};
    }
    // Where gradients are added up: of the lanes that wait to be summed, number 0 the first.
    float* gradients_of(size_t lane) const { return lane ? summed[lane - 1].data : gradients.data; }
    // The fp32 weights that belong to what is updated of a piece.
    float* master_weights(const Piece& piece) {
        return master.count ? master.data + piece.state : (float*)weights.data + piece.updated.begin;
    }
    // Totals and variances of a micro-batch.
    size_t totals_bytes() const { return sizeof(Totals) + scaled_experts(config) * sizeof(Variances); }
    // whole_batch, tokens, targets, order, token; chunk_begin and token_begin
    static size_t batch_ints(size_t N) { return 2 + 4 * N + 2 * (N + 1); }

    // Views of a layer, for the batch that upload_batch() sent: its weights, their gradients, its
    // activations.
    Norm norm_1(size_t l) const {
        const LayerActivations& h = a.h[l];
        const LayerParameters<floatX>& p = w.h[l];
        const LayerParameters<float>& d = g.h[l];
        return norm(h.ln_1, h.ln_1_mean, h.ln_1_rstd, p.ln_1_weight, p.ln_1_bias, d.ln_1_weight, d.ln_1_bias);
    }
    Norm norm_2(size_t l) const {
        const LayerActivations& h = a.h[l];
        const LayerParameters<floatX>& p = w.h[l];
        const LayerParameters<float>& d = g.h[l];
        return norm(h.ln_2, h.ln_2_mean, h.ln_2_rstd, p.ln_2_weight, p.ln_2_bias, d.ln_2_weight, d.ln_2_bias);
    }
    Norm norm_f() const {
        return norm(a.ln_f, a.ln_f_mean, a.ln_f_rstd, w.ln_f_weight, w.ln_f_bias, g.ln_f_weight, g.ln_f_bias);
    }
    Norm norm(floatX* out, float* mean, float* rstd, const floatX* weight, const floatX* bias, float* dweight,
              float* dbias) const {
        return {out, mean, rstd, weight, bias, dweight, dbias, B * T, int(config.n_embd)};
    }
    // The one that follows layer l: the next layer's first, after the last layer the final one.
    Norm norm_after(size_t l) const { return l + 1 == a.h.size() ? norm_f() : norm_1(l + 1); }
    Linear c_attn(size_t l) const {
        const LayerParameters<floatX>& p = w.h[l];
        const LayerParameters<float>& d = g.h[l];
        const size_t C = config.n_embd;
        return {p.c_attn_weight, p.c_attn_bias, d.c_attn_weight, d.c_attn_bias, B * T, C, 3 * C};
    }
    Linear c_proj(size_t l) const { // the gradient of its bias is summed by layernorm_backward()
        const LayerParameters<floatX>& p = w.h[l];
        const LayerParameters<float>& d = g.h[l];
        const size_t C = config.n_embd;
        return {p.c_proj_weight, p.c_proj_bias, d.c_proj_weight, nullptr, B * T, C, C};
    }
    Router router(size_t l) const {
        Router r = a.h[l].router;
        r.N = B * T;
        r.E = config.n_expert;
        r.K = routing.K ? routing.K : config.n_expert_active;
        r.ranks = routing.ranks;
        if (routing.standing) r.standing = routing.standing + l * r.E;
        r.C = config.n_embd;
        r.topk = config.topk();
        return r;
    }
    Experts experts(size_t l) const {
        const LayerParameters<floatX>& p = w.h[l];
        const LayerParameters<float>& d = g.h[l];
        const bool moe = config.moe();
        Experts e{};
        e.E = shape().experts();
        e.D = shape().width();
        e.C = config.n_embd;
        e.relu = config.relu();
        e.fused = fused && !by_hand;
        e.w_enc = moe ? p.w_enc : p.fc_weight;
        e.b_enc = moe ? p.b_enc : p.fc_bias;
        e.w_dec = moe ? p.w_dec : p.fc_proj_weight;
        e.b_dec = moe ? p.b_dec : p.fc_proj_bias;
        e.dw_enc = moe ? d.w_enc : d.fc_weight;
        e.db_enc = moe ? d.b_enc : d.fc_bias;
        e.dw_dec = moe ? d.w_dec : d.fc_proj_weight;
        e.db_dec = d.b_dec; // a dense layer's is summed by layernorm_backward()
        e.w_dec_transposed = !moe;
        e.dh = a.dh;
        e.db = a.db;
        e.partial = a.partial;
        e.by_hand = by_hand;
        e.keeps_h = config.scaled();
        e.geglu = config.geglu();
        e.solu = config.solu();
        e.to_gate = {p.gate_weight, p.gate_bias, d.gate_weight, d.gate_bias, B * T, e.C, e.D};
        e.dgate = a.dgate;
        e.du = a.du;
        if (a.h.empty()) return e;
        e.begin = moe ? a.h[l].router.begin : whole_batch;
        e.x = moe ? a.h[l].slots_x : a.h[l].ln_2;
        e.tokens_x = a.h[l].ln_2;
        e.tokens_dout = a.dresidual;
        if (moe) e.router = router(l);
        e.dweight = a.dweight;
        e.z_sums = a.z_sums;
        e.parts = a.parts;
        e.y = moe ? a.h[l].y : a.proj;
        e.dx = moe ? a.dslots : a.dln;
        e.dy = moe ? a.dy : a.dresidual;
        e.h = a.h[l].h;
        e.z = a.h[l].z;
        e.mask = a.h[l].mask;
        e.gate = a.h[l].gate;
        e.u = a.h[l].u;
        e.lse = a.h[l].lse_u;
        e.norm = {e.z,           a.h[l].u_mean,   a.h[l].u_rstd, p.ln_mid_weight,
                  p.ln_mid_bias, d.ln_mid_weight, d.ln_mid_bias, B * T,
                  int(e.D)};
        e.host_begin = host_begin + l * (e.E + 1);
        e.own = &own_activation[l * e.E];
        return e;
    }
};

// Sends a batch of B x T tokens to the GPU; targets may be null. With places, also where each token stands.
inline void upload_batch(Model& model, const int32_t* tokens, const int32_t* targets, size_t B, size_t T,
                         bool with_places) {
    const size_t N = B * T;
    if (N > model.max_B * model.max_T || T > model.config.block_size)
        fail("a batch of %zu x %zu tokens does not fit in this model's memory", B, T);
    BatchBuffer& buffer = model.buffers[model.next_buffer++ % 2];
    cuda_check(cudaEventSynchronize(buffer.copied)); // of the batch before the last
    int *to = buffer.host, *device = model.batch.data;
    auto place = [&](size_t count) {
        return std::pair{std::exchange(to, to + count), std::exchange(device, device + count)};
    };
    auto [host_whole, gpu_whole] = place(2);
    auto [host_tokens, gpu_tokens] = place(N);
    auto [host_targets, gpu_targets] = place(N);
    host_whole[0] = 0;
    host_whole[1] = int(N);
    std::copy(tokens, tokens + N, host_tokens);
    if (targets) std::copy(targets, targets + N, host_targets);
    model.B = B;
    model.T = T;
    model.whole_batch = gpu_whole;
    model.tokens = gpu_tokens;
    model.targets = targets ? gpu_targets : nullptr;
    if (with_places) {
        // A counting sort of the places by token.
        std::vector<int>& end = model.token_end;
        std::fill(end.begin(), end.end(), 0);
        for (size_t n = 0; n < N; n++) end[tokens[n] + 1]++;
        auto [order, gpu_order] = place(N);
        auto [chunk_begin, gpu_chunk_begin] = place(N + 1);
        auto [token, gpu_token] = place(N);
        auto [token_begin, gpu_token_begin] = place(N + 1);
        size_t chunks = 0, distinct = 0;
        for (size_t v = 0; v < model.config.vocab_size; v++) {
            const int count = end[v + 1];
            end[v + 1] = end[v] + count;
            if (!count) continue;
            token[distinct] = int(v);
            token_begin[distinct++] = int(chunks);
            for (int i = 0; i < count; i += places_per_chunk) chunk_begin[chunks++] = end[v] + i;
        }
        chunk_begin[chunks] = int(N);
        token_begin[distinct] = int(chunks);
        for (size_t n = 0; n < N; n++) order[end[tokens[n]]++] = int(n);
        model.places = {gpu_order, gpu_chunk_begin, gpu_token, gpu_token_begin, chunks, distinct};
    }
    cuda_check(cudaMemcpyAsync(model.batch.data, buffer.host, (to - buffer.host) * sizeof(int),
                               cudaMemcpyHostToDevice, model.gpu.stream));
    cuda_check(cudaEventRecord(buffer.copied, model.gpu.stream));
}

// ---------------------------------------------------------------------------------------------------------
// 6. Forward
// ---------------------------------------------------------------------------------------------------------

// Once per optimizer step. The NaN that relu would hide among the weights of a layer's units; the statistics
// of a sparsity router show one themselves.
inline void find_hidden_nan(Model& model) {
    const Config& c = model.config;
    const cudaStream_t stream = model.gpu.stream;
    cuda_check(cudaMemsetAsync(model.a.hidden_nan, 0, sizeof(float), stream));
    for (size_t l = 0; l < c.n_layer && model.fused && !model.by_hand && c.relu() && !(c.moe() && !c.topk());
         l++) {
        const Experts e = model.experts(l);
        model.exchange.wait_for_weights(1 + l, stream);
        find_nan(model.a.hidden_nan, e.w_enc, e.E * e.D * e.C, stream);
        find_nan(model.a.hidden_nan, e.b_enc, e.E * e.D, stream);
    }
}
// The router of layer l, from the weights.
inline void refresh_statistics(Model& model, size_t l) {
    const Config& c = model.config;
    const LayerParameters<floatX>& w = model.w.h[l];
    const Router& r = model.a.h[l].router;
    const Statistics& s = r.statistics;
    model.gpu.mark("expert_statistics_forward");
    if (c.scaled()) to_fp32(r.rho, w.rho, c.n_expert, false, model.gpu.stream);
    if (c.topk())
        router_weights_forward(s, w.router, c.n_expert, c.n_embd, model.gpu.stream);
    else
        expert_statistics_forward(s, w.w_enc, w.b_enc, c.n_expert, c.d_expert, c.n_embd, model.gpu.stream);
}

// Which experts of layer l the tokens go to, and, for the library, h.ln_2 in their slots.
inline void route(Model& model, size_t l, float share) {
    Activations& a = model.a;
    const LayerActivations& h = a.h[l];
    Gpu& gpu = model.gpu;
    const Router router = model.router(l);
    router_forward(router, a.sum_p, a.partial, h.ln_2, gpu.marked("router_forward"));
    dispatch(router, a.counts, gpu.marked("dispatch"));
    // How many tokens each expert has goes to the host beside the gather.
    cuda_check(cudaEventRecord(model.dispatched, gpu.stream));
    cuda_check(cudaStreamWaitEvent(gpu.copies, model.dispatched, 0));
    cuda_check(cudaMemcpyAsync(model.host_begin + l * (router.E + 1), router.begin,
                               (router.E + 1) * sizeof(int), cudaMemcpyDeviceToHost, gpu.copies));
    cuda_check(cudaEventRecord(model.begin_copied, gpu.copies));
    balance_forward(&model.totals->aux, router, a.sum_p, share, gpu.marked("balance_forward"));
    if (model.by_hand) return; // whose products need neither
    gather(h.slots_x, h.ln_2, router.token, router.N * router.K, router.C, gpu.marked("gather"));
    gpu.mark("wait for the counts");
    cuda_check(cudaEventSynchronize(model.begin_copied)); // the one wait of the layer
}

// Of the batch that upload_batch() sent. Fills model.a, logits included, and adds share times its loss and
// load balance to the totals. gradient_scale 0: evaluation. Otherwise the logits are replaced by
// gradient_scale times the gradient of the mean cross-entropy, ready for backward(), and the units that fired
// are counted.
inline void forward(Model& model, float gradient_scale = 0, float share = 1) {
    const Config& c = model.config;
    const size_t B = model.B, T = model.T, N = B * T, C = c.n_embd, V = c.vocab_size,
                 Vp = model.shape().padded_vocab();
    Activations& a = model.a;
    Gpu& gpu = model.gpu;
    const bool stale = std::exchange(model.statistics_stale, false);
    if (stale) find_hidden_nan(model);

    model.exchange.wait_for_weights(1, gpu.stream); // the embeddings came before
    embedding_layernorm_forward(a.embedded, model.norm_1(0), model.tokens, model.w.wte, model.w.wpe,
                                a.hidden_nan, T, gpu.marked("embedding_layernorm_forward"));
    const floatX* x = a.embedded;
    for (size_t l = 0; l < c.n_layer; l++) {
        const LayerActivations& h = a.h[l];
        const bool counts = model.count_units && gradient_scale != 0;
        Experts experts = model.experts(l);
        if (counts) experts.active = &model.totals->active;
        if (stale && c.moe()) refresh_statistics(model, l);
        model.exchange.wait_for_weights(2 + l, gpu.stream); // its end normalises for the layer behind it
        gpu.mark("linear_forward c_attn");
        linear_forward(gpu, h.qkv, h.ln_1, model.c_attn(l));
        attention_forward(h.att, h.lse, h.qkv, B, T, C, c.n_head, gpu.marked("attention_forward"));
        gpu.mark("linear_forward c_proj");
        linear_forward(gpu, a.proj, h.att, model.c_proj(l));
        residual_layernorm_forward(h.mid, model.norm_2(l), x, a.proj,
                                   gpu.marked("residual_layernorm_forward ln_2"));
        if (c.moe()) {
            route(model, l, share);
        } else {
            model.host_begin[2 * l] = 0;
            model.host_begin[2 * l + 1] = int(N);
        }
        experts_encode(gpu, experts);
        experts_decode(gpu, experts);
        if (c.moe())
            combine_layernorm_forward(h.out, model.norm_after(l), h.mid, experts.y, model.router(l),
                                      model.by_hand, gpu.marked("combine_layernorm_forward"));
        else
            residual_layernorm_forward(h.out, model.norm_after(l), h.mid, experts.y,
                                       gpu.marked("residual_layernorm_forward"));
        if (counts && !experts.by_hand)
            count_active(&model.totals->active, experts.solu ? experts.u : experts.z,
                         experts.all_masked() ? (const uint4*)experts.mask : nullptr,
                         N * (c.moe() ? c.n_expert_active : 1) * experts.D, gpu.marked("count_active"));
        if (c.scaled() && gradient_scale != 0)
            add_variances(model.variances + l * c.n_expert, model.router(l), experts.h, experts.D, a.partial,
                          gpu.marked("add_variances"));
        x = h.out;
    }
    // By hand no layer waited for the counts; they are there when what is launched from here on is.
    if (model.by_hand && c.moe()) cuda_check(cudaStreamWaitEvent(gpu.stream, model.begin_copied, 0));
    gpu.mark("head");
    Product head{a.logits, a.ln_f, model.w.wte, N, Vp, C};
    head.b_transposed = true;
    multiply(gpu, head);
    if (!model.targets) return gpu.mark(nullptr);
    classifier(a.losses, a.logits, model.targets, gradient_scale / N, N, V, Vp, gpu.marked("classifier"));
    const cudaStream_t stream = gpu.marked("sum_losses");
    sum_losses_kernel<<<1, 1024, 0, stream>>>(&model.totals->loss, a.losses, double(share) / N, N);
    cuda_check(cudaGetLastError());
    gpu.mark(nullptr);
}

// ---------------------------------------------------------------------------------------------------------
// 7. Backward: after forward() with a gradient_scale, adds to model.gradients the gradient of gradient_scale
// * (mean cross-entropy + weights * sums over layers of aux and of the expected share), but for the part that
// goes through the expert statistics, which finish_gradients() adds once per step.
// ---------------------------------------------------------------------------------------------------------

// scales: times gradient_scale. layer_done(1 + l), and at the end layer_done(0) for the embeddings:
// nothing more is added to these gradients; what has to be done with them goes on beside the other layers.
inline void backward(Model& model, const LossWeights& scales,
                     const std::function<void(size_t)>& layer_done = nullptr) {
    const Config& c = model.config;
    const size_t B = model.B, T = model.T, N = B * T, C = c.n_embd, Vp = model.shape().padded_vocab();
    Activations& a = model.a;
    const Parameters<float>& g = model.g;
    Gpu& gpu = model.gpu;
    const cudaStream_t stream = gpu.stream;
    // The bias behind what was last added to the stream before LayerNorm ln_1 of layer l, or ln_f (l = L).
    auto bias_before = [&](size_t l) { return l == 0 || c.moe() ? nullptr : g.h[l - 1].fc_proj_bias; };

    fork_branches(gpu);
    gpu.mark("head to ln_f");
    multiply(gpu, {a.dln, a.logits, model.w.wte, N, C, Vp}, 0);
    gpu.mark("head to wte");
    multiply(gpu, weight_gradient(g.wte, a.logits, a.ln_f, Vp, C, N), 1);
    join_branches(gpu);
    gpu.mark("layernorm_backward ln_f");
    cuda_check(cudaMemsetAsync(a.dresidual, 0, N * C * sizeof(floatX), stream));
    layernorm_backward(a.dresidual, bias_before(c.n_layer), model.norm_f(), a.dln, a.h.back().out, a.partial,
                       stream);
    for (size_t l = c.n_layer; l-- > 0;) {
        const LayerActivations& h = a.h[l];
        const floatX* x = l ? a.h[l - 1].out : a.embedded;
        const Router router = model.router(l);
        const Experts experts = model.experts(l);
        if (model.recompute >= 2) {
            residual_layernorm_forward(nullptr, model.norm_1(l), x, nullptr, stream);
            residual_layernorm_forward(nullptr, model.norm_2(l), h.mid, nullptr, stream);
        }
        // a.dln, the gradient of h.ln_2, from a.dresidual
        if (c.moe() && !model.by_hand)
            combine_backward(experts.dy, a.dweight, a.dresidual, experts.y, {}, router,
                             gpu.marked("combine_backward"));
        if (c.moe() && !model.by_hand && !model.keep_slots)
            gather(experts.x, h.ln_2, router.token, N * router.K, C, gpu.marked("gather again"));
        if (model.recompute >= 1) experts_encode(gpu, experts);
        experts_backward(gpu, experts);
        if (c.moe())
            router_backward(a.dln, router, a.dmu, a.dvar, a.partial, experts.dx, a.dweight, h.ln_2, scales,
                            gpu.marked("router_backward"));
        layernorm_backward(a.dresidual, g.h[l].c_proj_bias, model.norm_2(l), a.dln, h.mid, a.partial,
                           gpu.marked("layernorm_backward ln_2"));
        gpu.mark("linear_backward c_proj");
        linear_backward(gpu, a.datt, a.dresidual, h.att, model.c_proj(l), a.partial, model.whole_batch);
        attention_backward(a.dqkv, a.delta, a.datt, h.att, h.lse, h.qkv, B, T, C, c.n_head,
                           gpu.marked("attention_backward"));
        gpu.mark("linear_backward c_attn");
        linear_backward(gpu, a.dln, a.dqkv, h.ln_1, model.c_attn(l), a.partial, model.whole_batch);
        layernorm_backward(a.dresidual, bias_before(l), model.norm_1(l), a.dln, x, a.partial,
                           gpu.marked("layernorm_backward ln_1"));
        if (layer_done) layer_done(1 + l);
    }
    embedding_backward(g.wte, g.wpe, a.partial, a.dresidual, model.places, B, T, C,
                       gpu.marked("embedding_backward"));
    gpu.mark(nullptr);
    if (layer_done) layer_done(0);
}

// From here on backward() adds to this block of gradients.
inline void add_gradients_to(Model& model, float* block) {
    model.g = carve_parameters(model.config, model.table, block);
}

inline void zero_gradients(Model& model) {
    const cudaStream_t stream = model.gpu.stream;
    model.gpu.mark("zero_gradients");
    cuda_check(cudaMemsetAsync(model.g.wte, 0, model.gradients.count * sizeof(float), stream));
    if (model.dstatistics.count)
        cuda_check(
            cudaMemsetAsync(model.dstatistics.data, 0, model.dstatistics.count * sizeof(float), stream));
    model.gpu.mark(nullptr);
}

// After the last micro-batch: what the router asks of the experts' weights. layer: 1 + l, or 0.
inline void finish_layer(Model& model, size_t layer) {
    const Config& c = model.config;
    if (layer == 0 || !c.moe()) return;
    model.gpu.mark("expert_statistics_backward");
    const Router& r = model.a.h[layer - 1].router;
    const LayerParameters<floatX>& w = model.w.h[layer - 1];
    const LayerParameters<float>& dw = model.g.h[layer - 1];
    if (c.topk())
        router_weights_backward(dw.router, r.dstatistics, c.n_expert, c.n_embd, model.gpu.stream);
    else
        expert_statistics_backward(dw.w_enc, dw.b_enc, r.dstatistics, w.w_enc, w.b_enc, r.statistics,
                                   c.n_expert, c.d_expert, c.n_embd, model.gpu.stream);
    model.gpu.mark(nullptr);
}

// ---------------------------------------------------------------------------------------------------------
// 8. Update
// ---------------------------------------------------------------------------------------------------------

// The squares of a layer's gradients (layer 1 + l; 0: the embeddings), which are complete. Several GPUs meet
// here: what each of them owns is the sum over all of them from here on.
inline void reduce_layer(Model& model, size_t layer) {
    const Exchange& exchange = model.exchange;
    const StepSums& sums = model.sums;
    model.gpu.mark("gradient_norm");
    const cudaStream_t stream = exchange.beside(model.gpu.stream);
    double* const squares = sums.parts.data + sums.layout.of_place[exchange.sharing.place].begin;
    for (const Piece& p : model.pieces) {
        if (p.layer != layer) continue;
        exchange.reduce(model.gradients.data, p.all, stream);
        segment_squares(squares + p.squares, model.gradients.data + p.owned.begin, p.owned.count(), stream);
        if (!exchange.sharing.sharded) exchange.gather(model.gradients.data, sizeof(float), p.all, stream);
    }
    model.gpu.mark(nullptr);
}
// All layers, where that was not done on the way.
inline void finish_gradients(Model& model) {
    for (size_t layer = model.config.n_layer + 1; layer-- > 0;) {
        finish_layer(model, layer);
        reduce_layer(model, layer);
    }
}

// The weights of a layer that each GPU has updated, to all of them, while the next layers are updated;
// forward() waits for them.
inline void gather_weights(Model& model, size_t layer) {
    const Exchange& exchange = model.exchange;
    if (!exchange.stream || !exchange.sharing.sharded) return;
    const cudaStream_t stream = exchange.beside(model.gpu.stream);
    for (const Piece& p : model.pieces)
        if (p.layer == layer) exchange.gather(model.weights.data, sizeof(floatX), p.all, stream);
    cuda_check(cudaEventRecord(exchange.gathered[layer].get(), stream));
}

// What this GPU updates of the factors of layer l; they have no gradient, and update_kernel leaves them.
inline void move_rho(Model& model, size_t l) {
    const size_t E = model.config.n_expert, first = size_t(model.w.h[l].rho - model.weights.data);
    for (const Piece& p : model.pieces) {
        const size_t begin = std::max(p.updated.begin, first), end = std::min(p.updated.end, first + E);
        if (begin >= end) continue;
        move_rho_kernel<<<blocks_for(end - begin, 256), 256, 0, model.gpu.stream>>>(
            model.master_weights(p) + (begin - p.updated.begin), model.a.variances + l * E + (begin - first),
            model.a.totals, end - begin);
        cuda_check(cudaGetLastError());
    }
}

// Step t = 1, 2, ... from the gradients, which finish_gradients() has left, to weights that are the same on
// all GPUs.
inline void update(Model& model, const AdamW& adam, uint64_t t, uint64_t seed) {
    Totals* totals = model.a.totals;
    const Exchange& exchange = model.exchange;
    const StepSums& sums = model.sums;
    const cudaStream_t stream = model.gpu.stream;
    model.gpu.mark("gradient_norm");
    exchange.join(stream);
    exchange.spread(sums.parts.data, sizeof(double), exchange.everyone(sums.layout.of_place), stream);
    step_totals(totals, model.a.variances, sums.parts.data, sums.order.data, sums.layout.segments,
                sums.layout.micro_batches, scaled_experts(model.config), stream);
    const float fix_1 = float(1 / (1 - std::pow(double(adam.beta_1), double(t)))),
                fix_2 = float(1 / (1 - std::pow(double(adam.beta_2), double(t))));
    model.gpu.mark("update");
    for (size_t layer = 0; layer <= model.config.n_layer; layer++) { // as the next forward pass needs them
        if (layer > 0 && model.config.scaled()) move_rho(model, layer - 1);
        for (const Piece& p : model.pieces) {
            const size_t first = p.updated.begin, count = p.updated.count();
            if (p.layer != layer || count == 0) continue;
            update_kernel<<<blocks_for(count, 256 * pack), 256, 0, stream>>>(
                model.weights.data + first, model.master_weights(p), model.gradients.data + first,
                model.moment_1.data + p.state, model.moment_2.data + p.state, model.decays.data + first / 32,
                totals, adam, fix_1, fix_2, rounding_key(seed, t), first, count);
            cuda_check(cudaGetLastError());
        }
        gather_weights(model, layer);
    }
    model.gpu.mark(nullptr);
    model.statistics_stale = true;
}

// Gives the model the weights of step t, tensor by tensor: make(tensor, where on the host) makes one of them
// in fp32. What lies between the tensors becomes 0.
template <class Make> void load_weights(Model& model, uint64_t t, uint64_t seed, Make make) {
    const cudaStream_t stream = model.gpu.stream;
    size_t largest = 0;
    for (const Tensor& tensor : model.table) largest = std::max(largest, tensor.count);
    std::vector<float> host(largest);
    const Block<float> fp32(model.master.count ? 0 : largest); // in training the gradients have room
    model.weights.zero();
    if (model.gradients.count) model.gradients.zero();
    for (const Tensor& tensor : model.table) {
        make(tensor, host.data());
        float* const to = fp32.count ? fp32.data : model.gradients.data + tensor.offset;
        cuda_check(cudaMemcpy(to, host.data(), tensor.count * sizeof(float), cudaMemcpyHostToDevice));
        round_weights(model.weights.data + tensor.offset, to, rounding_key(seed, t), tensor.offset,
                      tensor.count, stream);
        cuda_check(cudaStreamSynchronize(stream));
    }
    for (const Piece& p : model.pieces)
        if (model.master.count)
            cuda_check(cudaMemcpy(model.master_weights(p), model.gradients.data + p.updated.begin,
                                  p.updated.count() * sizeof(float), cudaMemcpyDeviceToDevice));
    model.statistics_stale = true;
}
// From a block laid out as the table says.
inline void load_weights(Model& model, const float* weights, uint64_t t, uint64_t seed) {
    load_weights(model, t, seed, [&](const Tensor& tensor, float* to) {
        std::copy_n(weights + tensor.offset, tensor.count, to);
    });
}
// Fills a family of the optimizer's state from a checkpoint, of which it has the prefix.
inline void load_state(Model& model, float* state, const SafeTensorsFile& file, const std::string& prefix) {
    std::vector<float> host;
    for (const Piece& p : model.pieces)
        for (const Tensor& t : model.table) {
            const size_t begin = std::max(p.updated.begin, t.offset),
                         end = std::min(p.updated.end, t.offset + t.count);
            if (begin >= end || !t.trained) continue;
            host.resize(end - begin);
            read_floats(*file.find(prefix + t.name), host.data(), begin - t.offset, host.size());
            cuda_check(cudaMemcpy(state + p.state + (begin - p.updated.begin), host.data(),
                                  host.size() * sizeof(float), cudaMemcpyHostToDevice));
        }
}

// ---------------------------------------------------------------------------------------------------------
// 9. The choices that are measured, the training step and main
// ---------------------------------------------------------------------------------------------------------

// For measuring: the experts of the first layer as a step has them, their tokens shared out evenly and made
// of weights, forward and backward. Gradients are left behind.
inline void make_tokens(Model& model) {
    Gpu& gpu = model.gpu;
    Activations& a = model.a;
    model.B = model.max_B;
    model.T = model.max_T;
    model.whole_batch = model.batch.data;
    const size_t N = model.B * model.T;
    const Experts e = model.experts(0);
    if (e.router.E) {
        std::vector<int> choice(e.slots());
        for (size_t i = 0; i < choice.size(); i++) choice[i] = int(i % e.E);
        const std::vector<float> weight(choice.size(), 1 / float(e.router.K));
        cuda_check(
            cudaMemcpy(e.router.choice, choice.data(), choice.size() * sizeof(int), cudaMemcpyHostToDevice));
        cuda_check(cudaMemcpy(e.router.weight, weight.data(), weight.size() * sizeof(float),
                              cudaMemcpyHostToDevice));
        dispatch(e.router, a.counts, gpu.stream);
        cuda_check(cudaMemcpyAsync(model.host_begin, e.begin, (e.E + 1) * sizeof(int), cudaMemcpyDeviceToHost,
                                   gpu.stream));
        cuda_check(cudaStreamSynchronize(gpu.stream));
    } else {
        model.host_begin[0] = 0;
        model.host_begin[1] = int(N);
        cuda_check(cudaMemcpy(model.whole_batch, model.host_begin, 2 * sizeof(int), cudaMemcpyHostToDevice));
    }
    for (floatX* to : {a.h[0].ln_2, a.dresidual})
        for (size_t at = 0, n; at < N * e.C; at += n) {
            n = std::min(N * e.C - at, model.weights.count);
            cuda_check(cudaMemcpyAsync(to + at, model.weights.data, n * sizeof(floatX),
                                       cudaMemcpyDeviceToDevice, gpu.stream));
        }
}
inline void run_experts(Model& model) {
    Gpu& gpu = model.gpu;
    Activations& a = model.a;
    const Experts e = model.experts(0);
    const Router& r = e.router;
    const bool gathers = r.E && !e.by_hand;
    if (gathers) gather(e.x, e.tokens_x, r.token, e.slots(), e.C, gpu.stream);
    experts_encode(gpu, e);
    experts_decode(gpu, e);
    if (gathers) combine_backward(e.dy, a.dweight, e.tokens_dout, e.y, {}, r, gpu.stream);
    if (gathers && !model.keep_slots) gather(e.x, e.tokens_x, r.token, e.slots(), e.C, gpu.stream);
    experts_backward(gpu, e);
}

// Milliseconds that run_experts() takes with the model's choice of epilogues, streams and products: the
// better of two runs after one that warms up.
inline float time_experts(Model& model) {
    Gpu& gpu = model.gpu;
    zero_gradients(model);
    make_tokens(model);
    cudaEvent_t from, to;
    cuda_check(cudaEventCreate(&from));
    cuda_check(cudaEventCreate(&to));
    float best = INFINITY;
    for (int i = 0; i < 3; i++) {
        float ms = 0;
        cuda_check(cudaEventRecord(from, gpu.stream));
        run_experts(model);
        cuda_check(cudaEventRecord(to, gpu.stream));
        cuda_check(cudaEventSynchronize(to));
        cuda_check(cudaEventElapsedTime(&ms, from, to));
        if (i > 0) best = std::min(best, ms);
    }
    cuda_check(cudaEventDestroy(from));
    cuda_check(cudaEventDestroy(to));
    return best;
}

// What run_experts() computes, by name: gradients of parameters whole, and of the slots up to 4,096, taken
// here and there.
using ExpertsResults = std::vector<std::pair<const char*, std::vector<float>>>;
inline ExpertsResults experts_results(Model& model) {
    zero_gradients(model);
    make_tokens(model);
    run_experts(model);
    cuda_check(cudaStreamSynchronize(model.gpu.stream));
    const Experts e = model.experts(0);
    ExpertsResults results;
    const auto take = [&](const char* name, const float* from, size_t count) {
        std::vector<float> all(count);
        cuda_check(cudaMemcpy(all.data(), from, count * sizeof(float), cudaMemcpyDeviceToHost));
        results.push_back({name, all});
    };
    const auto take_slots = [&](const char* name, const floatX* from, size_t width) {
        const size_t runs = 64, rows = std::clamp<size_t>(e.slots() / runs, 1, 64);
        std::vector<floatX> some(rows * width);
        std::vector<float> all;
        for (size_t i = 0; i < runs; i++) {
            const size_t first = i * (e.slots() - rows) / (runs - 1);
            cuda_check(cudaMemcpy(some.data(), from + first * width, some.size() * sizeof(floatX),
                                  cudaMemcpyDeviceToHost));
            all.insert(all.end(), some.begin(), some.end());
        }
        results.push_back({name, all});
    };
    take_slots("z", e.z, e.D);
    take_slots("y", e.y, e.C);
    if (e.router.E && !e.by_hand)
        for (float& y : results.back().second) y /= float(e.router.K); // by hand it has its weight
    take_slots("dx", e.dx, e.C);
    take("dW_enc", e.dw_enc, e.E * e.D * e.C);
    take("db_enc", e.db_enc, e.E * e.D);
    take("dW_dec", e.dw_dec, e.E * e.D * e.C);
    if (!e.router.E) return results;
    take("db_dec", e.db_dec, e.E * e.C);
    take("dw", e.dweight, e.slots());
    return results;
}
// What of `ours` is not what the library has, but for rounding: empty, or its name and by how much.
inline std::string disagreement(const ExpertsResults& ours, const ExpertsResults& library) {
    constexpr double tolerance = sizeof(floatX) == 2 ? 2e-2 : 1e-4;
    for (size_t i = 0; i < library.size(); i++) {
        double error = 0, size = 0;
        for (size_t k = 0; k < library[i].second.size(); k++) {
            const double expected = library[i].second[k], difference = ours[i].second[k] - expected;
            error += difference * difference;
            size += expected * expected;
        }
        if (!(error <= tolerance * tolerance * size)) // NaN is none
            return strf("%s by %.2g of its size", library[i].first, std::sqrt(error / size));
    }
    return "";
}

// Settles what the flags leave open, epilogues (auto), streams (0) and who computes the experts' products
// (auto), by measuring; writes it into the flags, so that the state file has it and a resumed run does the
// same. Streams never change bits, the others do: there the library's, when it has them, are kept unless ours
// are clearly faster; and ours must give its results. Of a model so small that its products do not fill a
// card nothing is measured. Returns what to print.
inline std::string measure_choices(Model& model, Flags& flags, double least_work = 0x1p32) {
    const Experts e = model.experts(0);
    const double work = double(model.max_B * model.max_T) * double(e.C) * double(model.config.dense_width());
    const bool measures = work > least_work, open = flags.epilogues == "auto" && model.fused && measures;
    const bool both = model.may_be_by_library && model.may_be_by_hand && measures;
    const auto streams_given = size_t(flags.streams);
    model.gpu.branch_count = streams_given ? streams_given : Gpu::most_branches;
    std::string found, wrong;
    auto time = [&](const std::string& what) {
        const float ms = time_experts(model);
        found += strf("%s%s %.2f ms", found.empty() ? "" : ", ", what.c_str(), ms);
        return ms;
    };
    auto time_library = [&](bool fused, size_t streams) {
        model.fused = fused;
        model.gpu.branch_count = streams;
        return time(
            strf("%s with %zu stream%s", fused ? "library" : "own", streams, streams == 1 ? "" : "s"));
    };
    bool fused = model.fused, by_hand = model.by_hand;
    size_t streams = model.gpu.branch_count;
    if (open || both || (measures && !streams_given && !by_hand)) {
        float best = time_library(fused, streams);
        if (open && time_library(false, streams) < 0.95f * best) fused = false;
        for (const size_t fewer : {2, 1}) {
            if (streams_given) break;
            const float ms = time_library(fused, fewer);
            if (ms >= 0.98f * best) continue;
            best = ms;
            streams = fewer;
        }
        if (both) {
            const ExpertsResults results = experts_results(model);
            model.by_hand = true;
            wrong = disagreement(experts_results(model), results);
            by_hand = wrong.empty() && time("by hand") < 0.98f * best;
            if (!wrong.empty()) found += ", by hand not used: it differs in " + wrong;
        }
    }
    // Several GPUs may measure differently: the first one's choice is taken.
    const bool ours = model.exchange.sharing.place == 0;
    const std::vector<double> choice = model.exchange.add(
        {ours && fused ? 1.0 : 0.0, ours ? double(streams) : 0.0, ours && by_hand ? 1.0 : 0.0},
        model.gpu.stream);
    streams = size_t(choice[1]);
    model.by_hand = choice[2] > 0;
    model.fused = choice[0] > 0 && !model.by_hand;
    model.gpu.branch_count = streams;
    flags.epilogues = model.fused ? "library" : "own";
    flags.streams = int64_t(streams);
    flags.experts_by = model.by_hand ? "hand" : "library";
    return strf("experts by %s, epilogues %s, %zu stream%s%s", flags.experts_by.c_str(),
                flags.epilogues.c_str(), streams, streams == 1 ? "" : "s",
                found.empty() ? "" : (" (a layer's experts: " + found + ")").c_str());
}

inline void zero_totals(Model& model) {
    cuda_check(cudaMemsetAsync(model.a.totals, 0, sizeof(Totals), model.gpu.stream));
    if (const size_t experts = scaled_experts(model.config))
        cuda_check(cudaMemsetAsync(model.a.variances, 0, experts * sizeof(Variances), model.gpu.stream));
}
// Waits for the GPU.
inline Totals read_totals(Model& model) {
    cuda_check(cudaMemcpyAsync(model.host_totals, model.a.totals, sizeof(Totals), cudaMemcpyDeviceToHost,
                               model.gpu.stream));
    cuda_check(cudaStreamSynchronize(model.gpu.stream));
    return *model.host_totals;
}

// The micro-batches of a step that are this GPU's, lane by lane (dev/run/lanes.h); the sum of their gradients
// is then in model.gradients.
inline void compute_gradients(Model& model, Run& run, Ranks& ranks, std::vector<int32_t>& tokens,
                              std::vector<int32_t>& targets, int64_t t) {
    const Lanes& lanes = model.exchange.sharing.lanes;
    const float share = 1.0f / run.accumulate;
    const std::vector<size_t> order = lanes.order(model.exchange.sharing.place);
    const size_t layers = model.config.n_layer + 1; // and the embeddings
    size_t waiting = 0;                             // sums of lanes
    for (size_t index = 0; index < order.size(); index++) {
        add_gradients_to(model, model.gradients_of(waiting++));
        zero_gradients(model);
        const std::vector<size_t> micro_batches = lanes.micro_batches(order[index], run.accumulate);
        for (const size_t micro : micro_batches) {
            ranks.at(t, Phase::data);
            run.train->read(run.train->position + micro * run.B, run.B, tokens.data(), targets.data());
            run.train->will_need(run.train->position + (micro + lanes.places()) * run.B, run.B);
            upload_batch(model, tokens.data(), targets.data(), run.B, run.T, true);
            model.totals = model.sums.totals(micro);
            model.variances = (Variances*)(model.totals + 1);
            cuda_check(cudaMemsetAsync(model.totals, 0, model.totals_bytes(), model.gpu.stream));
            ranks.at(t, Phase::forward);
            forward(model, share, share);
            ranks.at(t, Phase::backward);
            const LossWeights scales(share * float(run.flags.aux_weight), share * float(run.l0_weight));
            backward(model, scales, [&](size_t layer) {
                if (micro != micro_batches.back()) return;
                finish_layer(model, layer);
                if (order.size() == 1) reduce_layer(model, layer); // while the layers below it are computed
            });
        }
        for (size_t n = Lanes::additions_after(index); n > 0; n--, waiting--)
            add_parts(model.gradients_of(waiting - 2), model.gradients_of(waiting - 1), model.gradients.count,
                      model.gpu.stream);
    }
    for (size_t layer = layers; order.size() > 1 && layer-- > 0;) reduce_layer(model, layer);
    run.train->position += run.accumulate * run.B;
    model.totals = model.a.totals;
    model.variances = model.a.variances;
}

inline StepResult train_step(Model& model, Run& run, Ranks& ranks, std::vector<int32_t>& tokens,
                             std::vector<int32_t>& targets, uint64_t t, double lr) {
    zero_totals(model);
    compute_gradients(model, run, ranks, tokens, targets, int64_t(t));
    ranks.at(int64_t(t), Phase::exchange);
    // Travels with the totals of our first micro-batch; the number of a signal is one byte.
    Totals* const first = model.sums.totals(model.exchange.sharing.place);
    cuda_check(cudaMemsetAsync(&first->stop, stop_signal, 1, model.gpu.stream));
    AdamW adam;
    adam.lr = float(lr);
    adam.weight_decay = float(run.flags.weight_decay);
    adam.clip = float(run.flags.clip);
    update(model, adam, t, uint64_t(run.flags.seed));
    const Totals totals = read_totals(model);
    const double slots = run.tokens_per_step() * double(run.config.n_layer);
    const StepResult result = {totals.loss, totals.aux, totals.norm,
                               model.count_units ? double(totals.active) / slots : NAN, int(totals.stop)};
    if (run.flags.l0_target > 0 && result.finite())
        run.l0_weight =
            next_l0_weight(run.l0_weight, result.l0, run.flags.l0_target, int64_t(t), run.schedule.warmup);
    return result;
}

// Mean loss of a batch, without gradients.
inline double batch_loss(Model& model, const int32_t* tokens, const int32_t* targets, size_t B, size_t T) {
    upload_batch(model, tokens, targets, B, T, false);
    zero_totals(model);
    forward(model);
    return read_totals(model).loss;
}

// The logits (V) after the last of these tokens. For the samples a trainer prints now and then the whole text
// is read again for each token; sample.cu keeps what it has read.
inline const float* last_logits(Model& model, const std::vector<int32_t>& text, std::vector<float>& logits) {
    const size_t V = model.config.vocab_size;
    upload_batch(model, text.data(), nullptr, 1, text.size(), false);
    forward(model);
    std::vector<floatX> row(V);
    cuda_check(cudaMemcpyAsync(row.data(), model.a.logits + (text.size() - 1) * model.shape().padded_vocab(),
                               V * sizeof(floatX), cudaMemcpyDeviceToHost, model.gpu.stream));
    cuda_check(cudaStreamSynchronize(model.gpu.stream));
    logits.assign(row.begin(), row.end());
    return logits.data();
}

// The most numbers of the optimizer's state that one of the GPUs has, and the most that one receives at once.
struct LargestShare {
    size_t state = 0, exchange = 0;
    LargestShare(const Config& config, const std::vector<Tensor>& table, Sharing sharing) {
        for (sharing.place = 0; sharing.place < sharing.lanes.places(); sharing.place++) {
            const std::vector<Piece> pieces = pieces_of_table(config, table, sharing);
            state = std::max(state, state_elements(pieces));
            exchange = std::max(exchange, largest_exchange(pieces, sharing));
        }
    }
};

// Memory that training takes of each GPU, by family, with micro-batches of B rows of T: on the GPU that it
// takes most of. network: what NCCL takes there.
inline std::vector<std::pair<const char*, double>> memory_families(const Config& config, size_t B, size_t T,
                                                                   int recompute, const Sharing& sharing = {},
                                                                   double network = 0) {
    const std::vector<Tensor> table = gpu_tensor_table(config);
    const LargestShare largest(config, table, sharing);
    const double count = double(block_elements(table)), bytes = sizeof(floatX);
    const double state = double(largest.state), lanes = double(sharing.lanes.of_place());
    std::vector<std::pair<const char*, double>> families = {{"weights", count * bytes}};
    if (bytes < 4) families.push_back({"fp32 weights", state * 4});
    families.push_back({"gradients", count * 4 * (1 + std::ceil(std::log2(lanes)))});
    families.push_back({"optimizer moments", state * 8});
    families.push_back({"activations", double(training_activation_bytes(config, B, T, recompute))});
    families.push_back({"batches, workspaces", double(Model::batch_ints(B * T)) * 4 +
                                                   double(config.n_layer * statistics_elements(config)) * 4 +
                                                   double(Gpu::most_branches * Gpu::workspace_bytes)});
    if (sharing.lanes.places() > 1) {
        families.push_back({"exchange", double(largest.exchange) * 4});
        families.push_back({"NCCL", network});
    }
    families.push_back({"CUDA and cuBLASLt", unaccounted_bytes});
    return families;
}
inline double memory_needed(const Config& config, size_t B, size_t T, int recompute,
                            const Sharing& sharing = {}, double network = 0) {
    double needed = 0;
    for (const auto& family : memory_families(config, B, T, recompute, sharing, network))
        needed += family.second;
    return needed;
}

// What NCCL is expected to take, before it has.
constexpr double network_bytes = 1e9;

// --batch auto: small micro-batches leave a large card idle, so of the step's rows the largest divisor is
// taken that makes at most 64K tokens and leaves a twentieth of the memory free. Several GPUs do the
// micro-batches in rounds, of which the last may leave some idle: then a step is to be short, counting 2048
// tokens more for each round.
inline size_t largest_batch(const Config& config, size_t T, int recompute, size_t rows, size_t free,
                            const Sharing& sharing = {}) {
    constexpr size_t most_tokens = 64 << 10, tokens_of_a_round = 2048;
    const double network = sharing.lanes.places() > 1 ? network_bytes : 0;
    size_t best = 1, shortest = SIZE_MAX;
    for (size_t B = 1; B <= rows && B * T <= most_tokens; B++) {
        if (rows % B != 0 || rows / B < sharing.lanes.places()) continue;
        if (memory_needed(config, B, T, recompute, sharing, network) > 0.95 * double(free)) continue;
        const size_t tokens = sharing.lanes.rounds(rows / B) * (B * T + tokens_of_a_round);
        if (tokens > shortest) continue;
        shortest = tokens;
        best = B;
    }
    return best;
}
inline size_t choose_batch(Run& run, size_t rows, size_t free, const Sharing& sharing = {}) {
    const size_t best = largest_batch(run.config, run.T, int(run.flags.recompute), rows, free, sharing);
    run.batch_note = strf("%zu rows: of the step's %zu the most that fit, up to 64K tokens%s", best, rows,
                          sharing.lanes.places() > 1 ? ", and keep all GPUs busy" : "");
    return best;
}

// Refuses a run that needs more memory than the GPU has left; what NCCL has taken is not needed any more.
inline std::vector<std::pair<const char*, double>>
memory_of(const Run& run, size_t free, const Sharing& sharing = {}, double network = 0) {
    const int recompute = int(run.flags.recompute);
    const double needed = memory_needed(run.config, run.B, run.T, recompute, sharing);
    if (needed > double(free)) {
        const size_t activations = training_activation_bytes(run.config, run.B, run.T, recompute);
        fail("this run needs %s of GPU memory (activations %s), %s are free: a smaller --batch%s would help",
             human_bytes(needed).c_str(), human_bytes(double(activations)).c_str(),
             human_bytes(double(free)).c_str(), recompute < 2 ? ", or --recompute 1 or 2," : "");
    }
    return memory_families(run.config, run.B, run.T, recompute, sharing, network);
}

// What cudaGetDeviceCount() answered; a driver that is too old is another matter than no GPU.
inline void check_gpu_found(cudaError_t error, int devices) {
    if (error == cudaErrorNoDevice || (error == cudaSuccess && devices == 0))
        fail("no CUDA GPU was found: train_moex_cpu and sample_cpu need none");
    if (error != cudaSuccess)
        fail("no CUDA GPU can be used: %s (%s); train_moex_cpu and sample_cpu need none",
             cudaGetErrorString(error), cudaGetErrorName(error));
}

// Takes the GPU of this rank, and says what it is.
struct UsedGpu {
    std::string name, bus, text; // text: a line of the settings
    size_t free = 0;
};
inline size_t free_memory() {
    size_t free = 0, total = 0;
    cuda_check(cudaMemGetInfo(&free, &total));
    return free;
}
inline UsedGpu use_gpu(const Ranks& ranks) {
    int devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);
    check_gpu_found(error, devices);
    const int device = ranks.device(devices);
    cudaDeviceProp properties;
    char bus[32];
    cuda_check(cudaSetDevice(device));
    cuda_check(cudaGetDeviceProperties(&properties, device));
    cuda_check(cudaDeviceGetPCIBusId(bus, sizeof bus, device));
    UsedGpu gpu{properties.name, bus, "", free_memory()};
    gpu.text = strf("%s%s, %d multiprocessors, %s of memory, %s", ranks.size > 1 ? "each: " : "",
                    properties.name, properties.multiProcessorCount,
                    human_bytes(double(properties.totalGlobalMem)).c_str(), precision_name);
    return gpu;
}

// Opens the network to the GPUs of exchange.sharing, which must all call. Returns the most memory that NCCL
// took of one of them.
inline double open_network(Exchange& exchange, const std::string& id, size_t layers) {
    const size_t before = free_memory(), place = exchange.sharing.place;
    exchange.network.join(id, place, exchange.places());
    exchange.make_stream(layers);
    exchange.add(std::vector<double>(1 << 17), nullptr); // NCCL takes its memory with the first messages
    return exchange.largest(double(before) - double(free_memory()));
}

// Meets the other ranks, and opens the network to them: until then nobody has begun. Returns the exchange
// with them, and in *network the most memory that NCCL took of one of them.
inline Exchange meet(Ranks& ranks, Run& run, const Options& options, const UsedGpu& gpu, double* network) {
    Exchange exchange;
    Sharing& sharing = exchange.sharing;
    Hello hello;
    if (ranks.size > 1) {
        hello.gpu = gpu.bus;
        hello.kind = gpu.name;
        hello.agree = agreement(run, options);
        hello.agree.push_back({"the program", strf("train_moex %s, %s, cuBLASLt %zu", precision_name,
                                                   Network::version().c_str(), cublasLtGetVersion())});
        if (ranks.rank == 0) hello.id = Network::new_id();
    }
    const std::string id = ranks.meet(hello);
    sharing.lanes = {size_t(run.flags.lanes), size_t(ranks.machines), size_t(ranks.size / ranks.machines)};
    sharing.place = size_t(ranks.place);
    sharing.sharded = run.flags.zero_stage > 0;
    sharing.micro_batches = run.accumulate;
    const size_t places = sharing.lanes.places();
    sharing.lanes.validate(run.state_file.has_value() && !options.given("lanes"));
    if (run.accumulate < places)
        fail_usage("a step is %zu micro-batch%s of %zu rows, which cannot keep %zu GPUs busy: a smaller "
                   "--batch, or --total-tokens %zu and more",
                   run.accumulate, run.accumulate == 1 ? "" : "es", run.B, places, places * run.B * run.T);
    if (places == 1) return exchange;
    run.ranks_note = strf("%zu (%s): %d machine%s x %zu GPU%s, %zu lanes, %s", places, ranks.launcher.c_str(),
                          ranks.machines, ranks.machines == 1 ? "" : "s", sharing.lanes.per_machine,
                          sharing.lanes.per_machine == 1 ? "" : "s", sharing.lanes.lanes,
                          sharing.lanes.busy_text(run.B, run.accumulate).c_str());
    *network = open_network(exchange, id, run.config.n_layer);
    ranks.watch([network = exchange.network] { return network.error(); });
    return exchange;
}

// A hash of the weights.
inline uint64_t hash_weights(Model& model) {
    const Block<unsigned long long> hash(1);
    unsigned long long value = 0;
    const cudaStream_t stream = model.gpu.stream;
    model.exchange.join(stream);
    cuda_check(cudaMemsetAsync(hash.data, 0, sizeof value, stream));
    hash_kernel<<<count_blocks, 256, 0, stream>>>(hash.data, (const uint32_t*)model.weights.data,
                                                  model.weights.count * sizeof(floatX) / 4);
    cuda_check(cudaGetLastError());
    cuda_check(cudaMemcpyAsync(&value, hash.data, sizeof value, cudaMemcpyDeviceToHost, stream));
    cuda_check(cudaStreamSynchronize(stream));
    return value;
}

// A family of parameters in memory of the host of rank 0; the others send what they have of it.
inline void collect_family(Model& model, Family family, std::vector<float>& host) {
    const Exchange& exchange = model.exchange;
    const bool here = exchange.sharing.place == 0;
    if (here) host.resize(model.weights.count);
    for (const Piece& p : model.pieces) {
        const float* ours = family == Family::weights     ? model.master_weights(p)
                            : family == Family::gradients ? model.gradients.data + p.updated.begin
                            : family == Family::moment_1  ? model.moment_1.data + p.state
                                                          : model.moment_2.data + p.state;
        if (exchange.sharing.sharded)
            exchange.collect(host.data(), ours, p.all, model.gpu.stream);
        else if (here)
            cuda_check(cudaMemcpy(host.data() + p.all.begin, ours, p.all.count() * sizeof(float),
                                  cudaMemcpyDeviceToHost));
    }
}

// From the first weights to the last step.
inline int train(Model& model, Run& run, Ranks& ranks, Options& options, Flags& flags,
                 const std::vector<std::string>& program) {
    const std::vector<Tensor>& table = model.table;
    load_weights(model, uint64_t(run.step), uint64_t(run.flags.seed),
                 [&](const Tensor& t, float* to) { initial_weights(run, t, to); });
    if (run.state_file) {
        load_state(model, model.moment_1.data, *run.state_file, "m.");
        load_state(model, model.moment_2.data, *run.state_file, "v.");
    }
    printf("%s\n", measure_choices(model, flags).c_str());
    run.flags = flags;
    std::vector<int32_t> tokens(run.B * run.T), targets(run.B * run.T), text;
    std::vector<float> logits, blocks[4]; // copies for the host, made when first asked for
    TrainingEngine engine;
    engine.ranks = ranks;
    engine.add = [&](const std::vector<double>& numbers) {
        return model.exchange.add(numbers, model.gpu.stream);
    };
    int64_t compared = -1;
    engine.compare = [&] {
        if (ranks.size > 1 && compared != run.step) ranks.same("weights", run.step, hash_weights(model));
        compared = run.step;
    };
    // Units are counted in every step where rank 0 draws every line.
    const bool every_line = engine.add({ranks.rank == 0 && escapes_wanted(1) ? 1.0 : 0.0})[0] > 0;
    engine.step = [&](uint64_t t, double lr) {
        model.count_units = every_line || run.flags.l0_target > 0 || step_line_stays(run, int64_t(t));
        return train_step(model, run, ranks, tokens, targets, t, lr);
    };
    engine.loss = [&](const int32_t* x, const int32_t* y, size_t B) {
        return batch_loss(model, x, y, B, run.T);
    };
    engine.load = [&](size_t l, size_t j) {
        const int* begin = model.experts(l).host_begin;
        return size_t(begin[j + 1] - begin[j]);
    };
    engine.restart = [&] { text.clear(); };
    engine.read = [&](int32_t token) {
        if (text.size() == run.B * run.T) text.erase(text.begin(), text.begin() + (text.size() + 1) / 2);
        text.push_back(token);
        return last_logits(model, text, logits);
    };
    engine.block = [&](Family family) -> const float* {
        collect_family(model, family, blocks[size_t(family)]);
        return ranks.rank == 0 ? blocks[size_t(family)].data() : nullptr;
    };
    const int status = run_training(run, options, table, engine, program);
    ranks.watch(nullptr);
    ranks.finish(status);
    return status;
}

// One rank, or all there is.
inline int train_rank(Ranks& ranks, Options& options, Flags& flags, const std::vector<std::string>& program) {
    if (ranks.size > 1) Network::version(); // or an error: before anything is taken
    std::optional<UsedGpu> gpu;
    auto check_and_use_gpu = [&](const Run& run) {
        if (gpu) return;
        check_gpu_config(run.config, run.init_file ? run.init_file->path : "model");
        gpu = use_gpu(ranks);
    };
    Run run = resolve_run(options, flags, [&](Run& run, size_t rows) {
        check_and_use_gpu(run);
        Sharing sharing;
        sharing.lanes = {size_t(flags.lanes ? flags.lanes : ranks.size), 1, size_t(ranks.size)};
        sharing.sharded = flags.zero_stage > 0;
        return choose_batch(run, rows, gpu->free, sharing);
    });
    check_and_use_gpu(run);
    if (const std::string what = reference_only(flags); !what.empty())
        fail("%s is known to train_moex_cpu, not to the GPU program", what.c_str());
    if (flags.lanes == 0) flags.lanes = ranks.size;
    run.flags = flags;
    double network = 0;
    Exchange exchange = meet(ranks, run, options, *gpu, &network);
    print_settings(run, gpu_tensor_table(run.config), gpu->text,
                   memory_of(run, free_memory(), exchange.sharing, network));

    Model model(run.config, run.B, run.T, int(run.flags.recompute), true, run.flags.epilogues,
                std::move(exchange), run.flags.experts_by);
    try {
        return train(model, run, ranks, options, flags, program);
    } catch (...) {
        ranks.error(); // before anything is freed: that might wait for what other GPUs do not send any more
        throw;
    }
}

inline int start(int argc, char** argv) {
    Flags flags;
    RankFlags rank_flags;
    Options options("train_moex", "Trains a MoE-X language model on token shards, on NVIDIA GPUs.");
    flags.declare(options);
    rank_flags.declare(options);
    if (!options.parse(argc, argv)) return 0;
    std::vector<std::string> program = {argv[0]};
    for (const char* name : {"gpus", "node", "master", "timeout"})
        if (options.given(name))
            program.insert(program.end(), {std::string("--") + name, options.text(name)});
    return run_ranks(rank_flags, argv, &stop_signal,
                     [&](Ranks& ranks) { return train_rank(ranks, options, flags, program); });
}

#ifndef MOEX_LIBRARY // sample.cu and the tests use the model and have a main of their own
int main(int argc, char** argv) {
    return run_main([&] { return start(argc, argv); });
}
#endif
