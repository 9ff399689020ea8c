// sample: samples text or games of chess from a MoE-X checkpoint on an NVIDIA GPU. Many prompts are gone on
// from side by side, each a token per step, with the keys and values of what they have read kept in a cache.
// Flags, prompts, the choice of tokens and printing are dev/run/sample_run.h's, shared with the CPU's
// sample_cpu; the weights, and the forward pass that reads a prompt, are those of train_moex.cu.
//
//   1. Kernels that begin early . rows times vectors
//   2. The residual stream: embedding . LayerNorm . router . combination of the experts
//   3. Attention over the cache
//   4. Experts: units, and the rows of those that fired
//   5. Decoder: the memory, a step, reading a prompt
//   6. main
//
// A step is bound by memory: it multiplies every weight it reads with a few vectors only. So weights are read
// once for all texts, 16 bytes at a time; of the experts' weights only the rows of the chosen experts are
// read, and of W_dec only those whose unit fired. Everything between two matrices is fp32. A single text's
// step takes as long as its kernels wait for one another: it is recorded as a CUDA graph, and its kernels
// begin early.
//
// Shapes: S places, each at its own position of its own text or idle, position -1; the rest as in
// train_moex.cu. A slot is one of the S*K visits of a place to an expert. What a text's numbers are, to the
// bit, depends on its tokens alone: every sum has an order that no other place has part in.
#ifndef MOEX_LIBRARY
#define MOEX_LIBRARY
#define MOEX_SAMPLE // a test that includes this file defines MOEX_LIBRARY, and has a main of its own
#endif
#include "dev/run/sample_run.h"
#include "train_moex.cu"

// ---------------------------------------------------------------------------------------------------------
// 1. Kernels that begin early: a step is a chain of kernels, each so short that starting it takes as long as
// running it. So a kernel may start, and fetch weights, while the one before it runs (programmatic dependent
// launch, since sm_90), and then waits for its end.
// ---------------------------------------------------------------------------------------------------------

// First thing in every kernel of a step, in every thread: neither may anything that another kernel writes be
// read before, nor anything be written. One chain: that the kernel before has ended says that all have.
__device__ inline void wait_for_kernel_before() {
#if defined(MOEX_EMU) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Before that wait: what no kernel of the step writes, on its way to the cache.
constexpr size_t line_bytes = 128;
__device__ inline void prefetch_line(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
__device__ inline void prefetch(const void* from, size_t bytes) { // by the threads of a block
    for (size_t i = threadIdx.x * line_bytes; i < bytes; i += blockDim.x * line_bytes)
        prefetch_line((const char*)from + i);
}

// Launches a kernel that begins with that wait. What is before it on the stream must be a kernel, too.
template <class... P, class... A> void launch_early(void (*kernel)(P...), dim3 grid, unsigned threads,
                                                    size_t shared, cudaStream_t stream, A... arguments) {
    cudaFuncAttributes compiled; // for an older card it would not wait, even if a newer one runs it
    cuda_check(cudaFuncGetAttributes(&compiled, kernel));
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = threads;
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = compiled.ptxVersion >= 90 ? 1 : 0;
    cuda_check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...));
}

// ---------------------------------------------------------------------------------------------------------
// Rows times vectors: out_s = W x_s for all s, each row of W read from memory once.
//
// A block has four rows of W. Its warps share the row's channels between them, so that a small matrix still
// keeps the memory busy; a lane multiplies a pack of each row with the same channels of up to eight vectors.
// More vectors are for other blocks, whose rows come from the cache, or another round over the same rows.
// ---------------------------------------------------------------------------------------------------------

constexpr int rows_at_once = 4, vectors_at_once = 8; // 32 sums: in the end, one for each lane
constexpr int max_row_warps = 8, row_group_threads = max_row_warps * warp_size;

// Warps that share a row, for `groups` groups of four rows of C channels.
inline int row_group_warps(size_t groups, size_t C) {
    const size_t wanted = 16 * multiprocessors / std::max<size_t>(groups, 1);
    const size_t most = std::min<size_t>(max_row_warps, (C + warp_size * pack - 1) / (warp_size * pack));
    return int(std::clamp<size_t>(wanted, 1, most));
}

// Rows row .. row+3 of weight (M,C) times x[0] .. x[n-1] (C), n <= 8, the rest of x being any of them: the
// sum of row r and vector i arrives in lane 8 r + i of warp 0. sums: shared, 32 for each warp. For all
// threads of a block.
__device__ inline float multiply_rows(float* sums, const floatX* weight, size_t row, size_t M,
                                      const float* const x[vectors_at_once], int n, size_t C) {
    const int warp = threadIdx.x / warp_size, lane = threadIdx.x % warp_size;
    const floatX* from[rows_at_once];
#pragma unroll
    for (int r = 0; r < rows_at_once; r++) from[r] = weight + min(row + r, M - 1) * C;
    float sum[rows_at_once][vectors_at_once] = {};
#pragma unroll 1
    for (size_t c = threadIdx.x * size_t(pack); c < C; c += blockDim.x * size_t(pack)) {
        Pack w[rows_at_once];
#pragma unroll
        for (int r = 0; r < rows_at_once; r++) w[r] = load_pack(from[r] + c);
#pragma unroll
        for (int first = 0, end = 1; first < vectors_at_once; first = end, end *= 2) {
            if (first >= n) break; // within such a group no branch, so that its loads are under way together
            Pack v[vectors_at_once / 2];
#pragma unroll
            for (int i = first; i < end; i++) v[i - first] = load_pack(x[i] + c);
#pragma unroll
            for (int i = first; i < end; i++)
#pragma unroll
                for (int r = 0; r < rows_at_once; r++)
#pragma unroll
                    for (int k = 0; k < pack; k++) sum[r][i] += w[r][k] * v[i - first][k];
        }
    }
    float mine = sums_by_lane(sum);
    if (blockDim.x == warp_size) return mine;
    __syncthreads(); // the sums of the round before have been read
    sums[threadIdx.x] = mine;
    __syncthreads();
    if (warp == 0)
        for (unsigned other = lane + warp_size; other < blockDim.x; other += warp_size) mine += sums[other];
    return mine;
}

enum class Activation { none, relu, gelu, gate }; // gate: gelu of it, times what is there already
__device__ inline float activate(float h, Activation act) {
    return act == Activation::none ? h : act != Activation::relu ? gelu(h) : h <= 0 ? 0 : h; // NaN stays NaN
}

// out (S,M) = act(x (S,C) weight (M,C)^T + bias (M)); bias may be null
__global__ void __launch_bounds__(row_group_threads)
    matrix_vectors_kernel(float* out, const floatX* weight, const floatX* bias, const float* x, int S,
                          size_t M, size_t C, Activation act) {
    __shared__ float sums[row_group_threads];
    const size_t row = blockIdx.x * size_t(rows_at_once), mine = row + threadIdx.x / vectors_at_once;
    const int s = blockIdx.y * vectors_at_once, to = s + threadIdx.x % vectors_at_once;
    if (s == 0) prefetch(weight + row * C, min(size_t(rows_at_once), M - row) * C * sizeof(floatX));
    wait_for_kernel_before();
    const float* from[vectors_at_once];
#pragma unroll
    for (int i = 0; i < vectors_at_once; i++) from[i] = x + min(s + i, S - 1) * C;
    const float sum = multiply_rows(sums, weight, row, M, from, min(S - s, vectors_at_once), C);
    if (threadIdx.x >= warp_size || to >= S || mine >= M) return;
    const float value = activate(bias ? sum + float(bias[mine]) : sum, act);
    out[to * M + mine] = act == Activation::gate ? value * out[to * M + mine] : value;
}

void matrix_vectors(float* out, const floatX* weight, const floatX* bias, const float* x, size_t S, size_t M,
                    size_t C, Activation act, cudaStream_t stream) {
    const unsigned groups = blocks_for(M, rows_at_once);
    launch_early(matrix_vectors_kernel, dim3(groups, blocks_for(S, vectors_at_once)),
                 row_group_warps(groups, C) * warp_size, 0, stream, out, weight, bias, x, int(S), M, C, act);
}

// ---------------------------------------------------------------------------------------------------------
// 2. The residual stream: a block makes one place's row, x += what the layer gave, and norm = LayerNorm(x),
// the input of the layer that follows. In the middle of a mixture of experts the same block is also the
// router. Idle places are left as they are.
// ---------------------------------------------------------------------------------------------------------

constexpr int row_threads = 256, row_warps_each = row_threads / warp_size;

__device__ inline float block_sum(float x, float* sums) {
    x = warp_sum(x);
    __syncthreads(); // the sums of the call before have been read
    if (threadIdx.x % warp_size == 0) sums[threadIdx.x / warp_size] = x;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < row_warps_each; i++) sum += sums[i];
    return sum;
}

// norm (C) of row (C), which is in shared memory and there replaced by norm. A thread has every 256th
// channel.
__device__ inline void normalize_row(float* norm, float* row, const floatX* weight, const floatX* bias,
                                     size_t C) {
    __shared__ float sums[row_warps_each];
    float sum = 0, squares = 0;
    for (size_t c = threadIdx.x; c < C; c += row_threads) sum += row[c];
    const float mean = block_sum(sum, sums) / C;
    for (size_t c = threadIdx.x; c < C; c += row_threads) squares += (row[c] - mean) * (row[c] - mean);
    const float rstd = rstd_of(block_sum(squares, sums), int(C));
    for (size_t c = threadIdx.x; c < C; c += row_threads)
        norm[c] = row[c] = normalized(row[c], mean, rstd, float(weight[c]), float(bias[c]));
}

// The rows of the stream and their LayerNorm.
struct Stream {
    float *x, *norm;             // (S,C) (S,C)
    const floatX *weight, *bias; // (C) (C) of the LayerNorm
    const int* position;         // (S)
    size_t S, C;
};
__device__ inline void prefetch_norm(const Stream& stream) {
    prefetch(stream.weight, stream.C * sizeof(floatX));
    prefetch(stream.bias, stream.C * sizeof(floatX));
}

// x = wte[token] + wpe[position].   tokens (S)
__global__ void __launch_bounds__(row_threads)
    embed_kernel(Stream stream, const int* tokens, const floatX* wte, const floatX* wpe) {
    extern __shared__ float row[];
    const size_t s = blockIdx.x, C = stream.C;
    wait_for_kernel_before();
    if (stream.position[s] < 0) return;
    for (size_t c = threadIdx.x; c < C; c += row_threads)
        stream.x[s * C + c] = row[c] = float(wte[tokens[s] * C + c]) + float(wpe[stream.position[s] * C + c]);
    normalize_row(stream.norm + s * C, row, stream.weight, stream.bias, C);
}

// x += y.   y (S,C).   Then the router chooses the experts of norm, a warp forming the score of an expert;
// the places are its tokens, the choice of an idle one is -1. A dense layer has none: then E = 0. As a rule
// there are fewer blocks than multiprocessors: one on each is enough, and no register need be saved.
__global__ void __launch_bounds__(row_threads, 1)
    add_and_route_kernel(Stream stream, const float* y, Router r) {
    extern __shared__ float row[]; // (C), then the scores (E)
    const size_t s = blockIdx.x, C = stream.C;
    const int warp = threadIdx.x / warp_size, lane = threadIdx.x % warp_size;
    prefetch_norm(stream);
    prefetch(r.statistics.m, r.E * C * sizeof(float));
    if (!r.topk) prefetch(r.statistics.v, r.E * C * sizeof(float));
    wait_for_kernel_before();
    if (stream.position[s] < 0) {
        for (size_t k = threadIdx.x; k < r.K; k += row_threads) r.choice[s * r.K + k] = -1;
        return;
    }
    for (size_t c = threadIdx.x; c < C; c += row_threads)
        stream.x[s * C + c] = row[c] = stream.x[s * C + c] + y[s * C + c];
    normalize_row(stream.norm + s * C, row, stream.weight, stream.bias, C);
    if (r.E == 0) return;

    float* scores = row + C;
    __syncthreads();
    for (size_t j = warp; j < r.E; j += row_warps_each) {
        float mean = 0, variance = 0;
#pragma unroll 4
        for (int c = lane * 4; c < int(C); c += warp_size * 4) {
            const float4 x = *(const float4*)(row + c), m = *(const float4*)(r.statistics.m + j * C + c);
            const float4 v = *(const float4*)((r.topk ? r.statistics.m : r.statistics.v) + j * C + c);
            mean += m.x * x.x + m.y * x.y + (m.z * x.z + m.w * x.w);
            variance += v.x * (x.x * x.x) + v.y * (x.y * x.y) + (v.z * (x.z * x.z) + v.w * (x.w * x.w));
        }
        const float mu = warp_sum(mean), var = warp_sum(variance);
        if (lane > 0) continue;
        scores[j] = r.topk ? mu : sparsity_score(mu + r.statistics.mb[j], router_sd(r, int(j), var));
    }
    __syncthreads();
    if (warp == 0) choose_experts(r.choice + s * r.K, r.weight + s * r.K, scores, r);
}

// x += sum over the chosen experts of w (W_dec's part + b_dec).  y (parts,S*K,C), gate weights included,
// b_dec (E,C)
__global__ void __launch_bounds__(row_threads, 1)
    add_experts_kernel(Stream stream, const float* y, size_t parts, const floatX* b_dec, const int* choice,
                       const float* weight, size_t K) {
    extern __shared__ float row[];
    const size_t s = blockIdx.x, C = stream.C, slots = stream.S * K;
    prefetch_norm(stream);
    wait_for_kernel_before();
    if (stream.position[s] < 0) return;
    for (size_t c = threadIdx.x; c < C; c += row_threads) {
        float x = stream.x[s * C + c];
        for (size_t slot = s * K; slot < (s + 1) * K; slot++) {
            float sum = weight[slot] * float(b_dec[choice[slot] * C + c]);
#pragma unroll 16
            for (size_t part = 0; part < parts; part++) sum += y[(part * slots + slot) * C + c];
            x += sum;
        }
        stream.x[s * C + c] = row[c] = x;
    }
    normalize_row(stream.norm + s * C, row, stream.weight, stream.bias, C);
}

// SoLU, from its pre-activations, in place: the units, normalised.  units (S,W)
__global__ void __launch_bounds__(row_threads)
    solu_units_kernel(float* units, const floatX* weight, const floatX* bias, int W) {
    extern __shared__ float row[];
    float* const mine = units + blockIdx.x * size_t(W);
    wait_for_kernel_before();
    for (int c = threadIdx.x; c < W; c += row_threads) row[c] = mine[c];
    __syncthreads();
    const float lse = log_sum_exp(row, W); // by every warp for itself
    __syncthreads();
    for (int c = threadIdx.x; c < W; c += row_threads) row[c] = solu(row[c], lse, W);
    normalize_row(mine, row, weight, bias, W);
}

// ---------------------------------------------------------------------------------------------------------
// 3. Attention over the cache, for the newest query of every text: o = softmax(q K^T / sqrt(HS)) V
//
// A block takes 64 consecutive keys of one head of one place, so that even a single text has enough blocks
// (FlashDecoding: Dao et al., 2023): it forms their softmax and sum of values relative to the largest score
// among them. The block that is the last to finish its piece joins the pieces of the head. They begin at
// multiples of 64 whatever else is being read, and are joined in order, so their sums are always the same.
// ---------------------------------------------------------------------------------------------------------

constexpr int piece_keys = 64, piece_threads = 64;
constexpr size_t max_head = 256; // check_gpu_config() refuses larger ones

// Up to `pack` channels of a head, n being left. A head size that is no multiple of pack has heads that begin
// anywhere, and is read number by number.
template <bool aligned> __device__ inline Pack load_channels(const floatX* from, int n) {
    if constexpr (aligned) {
        return load_pack(from);
    } else {
        Pack v;
#pragma unroll
        for (int i = 0; i < pack; i++) v[i] = i < n ? float(from[i]) : 0;
        return v;
    }
}

// What a piece of the keys came to: scores' largest, sum of exp(score - largest), sum of exp(..) value.
struct Pieces {
    float *most, *sum; // (S,NH,pieces) (S,NH,pieces)
    float* values;     // (S,NH,pieces,HS)
    int* finished;     // (S,NH) how many are there; 0 between two kernels
};

// out (HS) = sum over n pieces of exp(most_i - most) values_i / sum over n pieces of exp(most_i - most) sum_i
__device__ inline void join_pieces(float* out, Pieces pieces, size_t first, size_t n, int HS) {
    for (int c = threadIdx.x; c < HS; c += piece_threads) {
        float most = -INFINITY, sum = 0, o = 0;
#pragma unroll 8
        for (size_t i = first; i < first + n; i++) most = fmaxf(most, pieces.most[i]);
#pragma unroll 8
        for (size_t i = first; i < first + n; i++) {
            const float share = expf(pieces.most[i] - most);
            sum += share * pieces.sum[i];
            o += share * pieces.values[i * HS + c];
        }
        out[c] = o / sum;
    }
}

// out (S,C) keys values (S,block_size,C), of one layer; the block that has the newest position puts its key
// and value there first.  qkv (S,3C)
template <bool aligned> __global__ void __launch_bounds__(piece_threads)
    attend_kernel(float* out, Pieces pieces, floatX* keys, floatX* values, const float* qkv,
                  const int* positions, size_t block_size, int HS) {
    __shared__ float q[max_head], p[piece_keys], of_warp[2][piece_threads / warp_size];
    __shared__ float sums[piece_threads * pack];
    __shared__ bool last;
    const int h = blockIdx.y, NH = gridDim.y, s = blockIdx.z, position = positions[s], t = threadIdx.x;
    const int first = blockIdx.x * piece_keys, n = min(piece_keys, position + 1 - first);
    const size_t C = size_t(NH) * HS, at = (s * block_size + first) * C + h * HS;
    floatX *k = keys + at, *v = values + at; // of the piece's first position, a row of C apart
    // The positions are older than the chain of kernels, and so are all keys and values but the newest.
    for (int c = 0; t < n && c < HS; c += line_bytes / sizeof(floatX)) {
        prefetch_line(k + t * C + c);
        prefetch_line(v + t * C + c);
    }
    wait_for_kernel_before();
    if (n <= 0) return; // idle, or not so far yet
    const float* newest = qkv + s * 3 * C + h * HS;
    const float scale = 1 / sqrtf(float(HS));
    for (int c = t; c < HS; c += piece_threads) {
        q[c] = scale * newest[c];
        if (position - first >= piece_keys) continue;
        k[(position - first) * C + c] = floatX(newest[C + c]);
        v[(position - first) * C + c] = floatX(newest[2 * C + c]);
    }
    __syncthreads();

    // One key per thread.
    float score = -INFINITY;
    if (t < n) {
        score = 0;
#pragma unroll 4
        for (int c = 0; c < HS; c += pack) {
            const Pack key = load_channels<aligned>(k + t * C + c, HS - c);
#pragma unroll
            for (int i = 0; i < pack; i++)
                if (aligned || c + i < HS) score += q[c + i] * key[i];
        }
    }
    const int warp = t / warp_size;
    float most = warp_max(score);
    if (t % warp_size == 0) of_warp[0][warp] = most;
    __syncthreads();
    most = fmaxf(of_warp[0][0], of_warp[0][1]);
    p[t] = t < n ? expf(score - most) : 0;
    const float sum = warp_sum(p[t]);
    if (t % warp_size == 0) of_warp[1][warp] = sum;
    __syncthreads();

    // A pack of channels per thread; as many keys side by side as there are threads for.
    const int packs = (HS + pack - 1) / pack, side_by_side = piece_threads / packs, group = t / packs;
    Pack o = {};
    const int c = t % packs * pack;
    for (int first_key = group; first_key < n && group < side_by_side; first_key += 4 * side_by_side) {
        Pack value[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            value[i] = load_channels<aligned>(v + min(first_key + i * side_by_side, n - 1) * C + c, HS - c);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int key = first_key + i * side_by_side;
            o += (key < n ? p[key] : 0) * value[i];
        }
    }
#pragma unroll
    for (int i = 0; i < pack; i++) sums[t * pack + i] = o[i];
    __syncthreads();
    const size_t piece = (s * size_t(NH) + h) * gridDim.x + blockIdx.x;
    for (int d = t; d < HS; d += piece_threads) {
        float whole = 0;
        for (int g = 0; g < side_by_side; g++) whole += sums[g * packs * pack + d];
        pieces.values[piece * HS + d] = whole;
    }
    if (t == 0) {
        pieces.most[piece] = most;
        pieces.sum[piece] = of_warp[1][0] + of_warp[1][1];
    }
    __threadfence(); // the piece is there for all before it is counted
    __syncthreads();
    const size_t head = s * size_t(NH) + h, pieces_needed = position / piece_keys + 1;
    if (t == 0) {
        last = atomicAdd(&pieces.finished[head], 1) == int(pieces_needed) - 1;
        if (last) pieces.finished[head] = 0;
    }
    __syncthreads();
    if (!last) return;
    __threadfence(); // nothing of another block's piece is read as it was before
    join_pieces(out + s * C + h * HS, pieces, head * gridDim.x, pieces_needed, HS);
}

inline size_t piece_count(size_t block_size) { return blocks_for(block_size, piece_keys); }

void attend(float* out, Pieces pieces, floatX* keys, floatX* values, const float* qkv, const int* positions,
            size_t S, size_t block_size, size_t C, size_t NH, cudaStream_t stream) {
    const size_t HS = C / NH, count = piece_count(block_size);
    launch_early(HS % pack == 0 ? attend_kernel<true> : attend_kernel<false>,
                 dim3(unsigned(count), unsigned(NH), unsigned(S)), piece_threads, 0, stream, out, pieces,
                 keys, values, qkv, positions, block_size, int(HS));
}

// Keys and values of the first n positions of one place and layer, from the trainer's forward pass.
// keys values (n,C), qkv (n,3C)
__global__ void keep_keys_values_kernel(floatX* keys, floatX* values, const floatX* qkv, size_t n, size_t C) {
    const size_t i = (blockIdx.x * size_t(blockDim.x) + threadIdx.x) * pack, from = i / C * 3 * C + i % C;
    if (i >= n * C) return;
    *(uint4*)(keys + i) = *(const uint4*)(qkv + from + C);
    *(uint4*)(values + i) = *(const uint4*)(qkv + from + 2 * C);
}

// ---------------------------------------------------------------------------------------------------------
// 4. Experts: for every slot of expert j
//   z = act(W_enc[j] x + b_enc[j])        y = w sum over the units u that fired of z_u W_dec[j][u]
// An expert's rows are read once for all places that chose it. The blocks of an expert that no place chose
// end at once. More slots of an expert than 16 are for other blocks, so that all texts may choose the same
// expert without waiting for one another.
// ---------------------------------------------------------------------------------------------------------

constexpr size_t max_places = 64;
constexpr int share_slots = 16;

// The expert of the blocks `index` along a grid of min(E, slots), and its slots, at most one for each place,
// in rising order. Returns how many: 0 when there is nothing to do. For all threads of a block.
struct ExpertSlots {
    int expert, count, slots[max_places];
};
__device__ inline int find_slots(ExpertSlots* e, size_t index, const int* choice, size_t S, size_t K,
                                 size_t E) {
    if (threadIdx.x < warp_size) {
        const int lane = threadIdx.x;
        const bool by_slot = S * K < E; // then the blocks of a slot do the work of its expert's slots
        const int expert = by_slot ? choice[index] : int(index);
        int count = 0;
        for (size_t s0 = 0; s0 < S; s0 += warp_size) {
            int slot = -1;
            for (size_t k = 0; k < K && s0 + lane < S; k++)
                if (choice[(s0 + lane) * K + k] == expert) slot = int((s0 + lane) * K + k);
            const unsigned chose = __ballot_sync(0xffffffff, slot >= 0);
            if (slot >= 0) e->slots[count + __popc(chose & ((1u << lane) - 1))] = slot;
            count += __popc(chose);
        }
        __syncwarp();
        if (lane == 0) {
            const bool another = expert < 0 || (by_slot && count && size_t(e->slots[0]) != index);
            e->expert = expert;
            e->count = another ? 0 : count;
        }
    }
    __syncthreads();
    return e->count;
}

// z (S*K,D), w_enc (E,D,C), b_enc (E,D), x (S,C), choice (S,K).  rows_read += rows of w_enc that moved.
// gridDim: groups of rows, min(E, S*K), shares of the slots
__global__ void __launch_bounds__(row_group_threads)
    units_kernel(float* z, unsigned long long* rows_read, const floatX* w_enc, const floatX* b_enc,
                 const float* x, const int* choice, size_t S, size_t K, size_t E, size_t D, size_t C,
                 Activation act) {
    __shared__ ExpertSlots e;
    __shared__ float sums[row_group_threads];
    wait_for_kernel_before();
    const int count = find_slots(&e, blockIdx.y, choice, S, K, E);
    if (count == 0) return;
    const size_t row = blockIdx.x * size_t(rows_at_once), mine = row + threadIdx.x / vectors_at_once;
    const floatX* weight = w_enc + e.expert * D * C;
    const int share = blockIdx.z * share_slots, end = min(share + share_slots, count);
    for (int first = share; first < end; first += vectors_at_once) {
        const float* from[vectors_at_once];
#pragma unroll
        for (int i = 0; i < vectors_at_once; i++) from[i] = x + e.slots[min(first + i, end - 1)] / K * C;
        const float sum = multiply_rows(sums, weight, row, D, from, min(end - first, vectors_at_once), C);
        const int to = first + threadIdx.x % vectors_at_once;
        if (threadIdx.x < warp_size && to < end && mine < D)
            z[e.slots[to] * D + mine] = activate(sum + float(b_enc[e.expert * D + mine]), act);
    }
    if (threadIdx.x == 0 && share == 0)
        atomicAdd(rows_read, (unsigned long long)min(size_t(rows_at_once), D - row));
}

// A block has 128 units and a slab of channels, a pack for each lane; a warp has 16 of the units, and goes
// through those of them that fired, in rising order, four rows on their way at a time. Where a part begins
// does not depend on which units fired: that of another place then only adds zeros. Few units to a warp, so
// that the rows of a single token are on their way from enough warps at once.
constexpr int part_warps = 8, warp_units = 16, part_units = part_warps * warp_units;
constexpr int part_threads = part_warps * warp_size, slab = warp_size * pack;
constexpr int fired_rows_at_once = 4, slots_at_once = 8; // of more slots the rows come from the cache

// y (parts,S*K,C): of 128 units each, times the gate weight.  z (S*K,D), w_dec (E,D,C), choice weight (S,K).
// rows_read += rows of w_dec that moved.  gridDim: parts, slabs of every share of the slots, min(E, S*K)
__global__ void __launch_bounds__(part_threads)
    fired_rows_kernel(float* y, unsigned long long* rows_read, const floatX* w_dec, const float* z,
                      const int* choice, const float* weight, size_t S, size_t K, size_t E, size_t D,
                      size_t C) {
    __shared__ ExpertSlots e;
    __shared__ float sums[part_warps][slab];
    wait_for_kernel_before();
    const int count = find_slots(&e, blockIdx.z, choice, S, K, E);
    if (count == 0) return;
    const int warp = threadIdx.x / warp_size, lane = threadIdx.x % warp_size;
    const size_t first_unit = blockIdx.x * size_t(part_units) + warp * warp_units; // of the warp
    const size_t unit = lane < warp_units ? first_unit + lane : D;                 // this lane's, or none
    const unsigned slabs = unsigned((C + slab - 1) / slab);
    const size_t c = blockIdx.y % slabs * size_t(slab) + lane * pack;
    const int share = blockIdx.y / slabs * share_slots, end = min(share + share_slots, count);
    const bool inside = c < C;
    const floatX* rows = w_dec + (e.expert * D + first_unit) * C + c;
    unsigned read = 0;
    for (int first = share; first < end; first += slots_at_once) {
        const int n = min(end - first, slots_at_once);
        float mine[slots_at_once];
        bool any = false;
#pragma unroll
        for (int i = 0; i < slots_at_once; i++) {
            mine[i] = i < n && unit < D ? z[e.slots[first + i] * D + unit] : 0;
            any |= mine[i] != 0; // a NaN moves its row, too, and so comes to light
        }
        unsigned fired = __ballot_sync(0xffffffff, any);
        read |= fired;
        Pack sum[slots_at_once] = {};
        while (fired) {
            Pack w[fired_rows_at_once];
            int from[fired_rows_at_once];
#pragma unroll
            for (int r = 0; r < fired_rows_at_once; r++) {
                from[r] = __ffs(int(fired)) - 1; // -1: no more
                fired &= fired - 1;
                if (from[r] >= 0 && inside) w[r] = load_pack(rows + from[r] * C);
            }
#pragma unroll
            for (int r = 0; r < fired_rows_at_once; r++) {
                if (from[r] < 0) break;
#pragma unroll
                for (int i = 0; i < slots_at_once; i++) {
                    if (i >= n) break;
                    const float value = __shfl_sync(0xffffffff, mine[i], from[r]);
                    if (inside) sum[i] += value * w[r];
                }
            }
        }
        // The warps' sums, added up in turn; the lanes side by side, so that they fall into different banks.
#pragma unroll
        for (int i = 0; i < slots_at_once; i++) {
            if (i >= n) break;
            __syncthreads();
#pragma unroll
            for (int k = 0; k < pack; k++) sums[warp][k * warp_size + lane] = sum[i][k];
            __syncthreads();
            const int slot = e.slots[first + i];
            const size_t to = c + warp; // warp k has number k of a pack
            if (warp >= pack || to >= C) continue;
            float whole = 0;
            for (int other = 0; other < part_warps; other++) whole += sums[other][threadIdx.x];
            y[(blockIdx.x * S * K + slot) * C + to] = weight[slot] * whole;
        }
    }
    if (blockIdx.y > 0) return;
    bool elsewhere = false; // fired for a slot of another share
#pragma unroll 8
    for (int i = end; i < count; i++) elsewhere |= unit < D && z[e.slots[i] * D + unit] != 0;
    read |= __ballot_sync(0xffffffff, elsewhere);
    if (lane == 0 && read) atomicAdd(rows_read, (unsigned long long)__popc(read));
}

// ---------------------------------------------------------------------------------------------------------
// 5. Decoder
// ---------------------------------------------------------------------------------------------------------

// Host memory that the GPU copies from and to.
template <class T> struct Pinned {
    T* data = nullptr;
    explicit Pinned(size_t count) { cuda_check(cudaMallocHost(&data, count * sizeof(T))); }
    Pinned(const Pinned&) = delete;
    ~Pinned() { cudaFreeHost(data); }
};

struct Decoder {
    Model& model;                                     // its weights; its forward pass reads prompts
    size_t S;                                         // places
    Block<floatX> keys, values;                       // (L,S,block_size,C)
    std::vector<size_t> length;                       // (S) tokens read at each place
    Pinned<float> logits;                             // (S,V) after the last step
    Pinned<int> inputs;                               // (2,S) tokens and positions of a step
    Block<int> gpu_inputs;                            // (2,S)
    Block<float> x, norm, qkv, att, proj, gpu_logits; // (S,C) (S,C) (S,3C) (S,C) (S,C) (S,V)
    Block<float> piece_block, y;                      // Pieces; (parts,S*K,C)
    Block<int> finished;                              // (S,NH) of them
    cudaGraphExec_t graph = nullptr;                  // a step, once there was one
    // of the last token, layer by layer, for the trace
    Block<int> choice;                   // (L,S,K)
    Block<float> weight, z;              // (L,S,K) (L,S*K,D); dense: z (L,S,W)
    Block<unsigned long long> rows_read; // (1) of the experts' matrices, in all steps
    double other_bytes = 0;              // that all steps had to move besides those rows
    size_t K;                            // experts of a token
    uint64_t ranks;                      // dev/run/routing.h
    Block<int8_t> standing;              // (L,E) or none

    Decoder(Model& model, size_t S) : Decoder(model, S, model.config.n_expert_active, Routing()) {}
    // With K experts per token, at most as many as the model has memory for, chosen as the routing says.
    Decoder(Model& model, size_t S, size_t K, const Routing& routing)
        : model(model), S(S), keys(cache_elements(model.config) * S), values(keys.count), length(S),
          logits(S * model.config.vocab_size), inputs(2 * S), gpu_inputs(2 * S), rows_read(1), K(K),
          ranks(routing.ranks), standing(routing.standing.size()) {
        const Config& c = model.config;
        const size_t C = c.n_embd, HS = C / c.n_head;
        if (standing.count) standing.upload(routing.standing.data(), standing.count);
        if (S < 1 || S > max_places) fail("%zu places, expected 1 to %zu", S, max_places);
        x = Block<float>(S * C);
        norm = Block<float>(S * C);
        qkv = Block<float>(S * 3 * C);
        att = Block<float>(S * C);
        proj = Block<float>(S * C);
        gpu_logits = Block<float>(S * c.vocab_size);
        piece_block = Block<float>(S * c.n_head * piece_count(c.block_size) * (HS + 2));
        z = Block<float>(c.n_layer * S * K * c.d_expert);
        finished = Block<int>(S * c.n_head);
        finished.zero();
        rows_read.zero();
        norm.zero(); // of places that have been idle so far, whose products nobody looks at
        att.zero();
        if (!c.moe()) return;
        choice = Block<int>(c.n_layer * S * K);
        weight = Block<float>(c.n_layer * S * K);
        y = Block<float>(parts() * S * K * C);
    }

    ~Decoder() {
        if (graph) cudaGraphExecDestroy(graph);
    }

    // Keys, or values, of one place.
    static size_t cache_elements(const Config& c) { return c.n_layer * c.block_size * c.n_embd; }
    size_t parts() const { return blocks_for(model.config.d_expert, part_units); }

    // The place forgets what it has read and reads these n < block_size tokens instead, all in one forward
    // pass.
    void restart(size_t place, const int32_t* tokens, size_t n) {
        const Config& c = model.config;
        const size_t C = c.n_embd;
        length[place] = n;
        if (n == 0) return;
        upload_batch(model, tokens, nullptr, 1, n, false);
        zero_totals(model);
        change_routing();
        forward(model);
        for (size_t l = 0; l < c.n_layer; l++) {
            const size_t at = (l * S + place) * c.block_size * C;
            keep_keys_values_kernel<<<blocks_for(n * C, 256 * pack), 256, 0, model.gpu.stream>>>(
                keys.data + at, values.data + at, model.a.h[l].qkv, n, C);
            cuda_check(cudaGetLastError());
        }
        cuda_check(cudaStreamSynchronize(model.gpu.stream));
    }

    // Every place reads its token of tokens (S), -1: none; on return `logits` are those of the token after
    // it. What is launched is the same in every step, and recorded in the first: what differs is in inputs.
    void step(const int32_t* tokens) {
        const Config& c = model.config;
        const size_t C = c.n_embd, V = c.vocab_size;
        const cudaStream_t stream = model.gpu.stream;
        for (size_t s = 0; s < S; s++) {
            const bool idle = tokens[s] < 0;
            if (!idle && size_t(tokens[s]) >= V)
                fail("token %d is not in the vocabulary of %zu", tokens[s], V);
            if (!idle && length[s] >= c.block_size) fail("the context of %zu tokens is full", c.block_size);
            inputs.data[s] = tokens[s];
            inputs.data[S + s] = idle ? -1 : int(length[s]++);
            if (!idle) other_bytes += 2.0 * c.n_layer * C * length[s] * sizeof(floatX);
        }
        other_bytes += fixed_bytes();
        if (std::exchange(model.statistics_stale, false)) {
            find_hidden_nan(model);
            for (size_t l = 0; l < model.config.n_layer && model.config.moe(); l++)
                refresh_statistics(model, l);
        }
        if (!graph) {
            cudaGraph_t recorded;
            cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
            launch_step();
            cuda_check(cudaStreamEndCapture(stream, &recorded));
            cuda_check(cudaGraphInstantiate(&graph, recorded, 0));
            cuda_check(cudaGraphDestroy(recorded));
        }
        cuda_check(cudaGraphLaunch(graph, stream));
        cuda_check(cudaStreamSynchronize(stream));
    }

    // A step: the inputs to the GPU, 7 kernels for each layer (geglu, solu: 8; other dense ones 6) and 2
    // more, and the logits to the host.
    void launch_step() {
        const Config& c = model.config;
        const size_t C = c.n_embd, V = c.vocab_size, NH = c.n_head, E = c.n_expert, D = c.d_expert,
                     W = c.dense_width(), bytes = C * sizeof(float);
        const cudaStream_t stream = model.gpu.stream;
        const Activation act = c.geglu() || c.solu() ? Activation::none
                               : c.relu()            ? Activation::relu
                                                     : Activation::gelu;
        const unsigned experts = unsigned(std::min(E, S * K)), places = unsigned(S),
                       shares = blocks_for(S, share_slots);
        const int *tokens = gpu_inputs.data, *positions = tokens + S;
        const size_t heads = S * NH * piece_count(c.block_size);
        change_routing();
        const Pieces pieces = {piece_block.data, piece_block.data + heads, piece_block.data + 2 * heads,
                               finished.data};
        const std::vector<LayerParameters<floatX>>& h = model.w.h;
        auto normed_by = [&](const floatX* w, const floatX* b) {
            return Stream{x.data, norm.data, w, b, positions, S, C};
        };
        cuda_check(cudaMemcpyAsync(gpu_inputs.data, inputs.data, 2 * S * sizeof(int), cudaMemcpyHostToDevice,
                                   stream));
        embed_kernel<<<places, row_threads, bytes, stream>>>(normed_by(h[0].ln_1_weight, h[0].ln_1_bias),
                                                             tokens, model.w.wte, model.w.wpe);
        for (size_t l = 0; l < c.n_layer; l++) {
            const LayerParameters<floatX>& w = h[l];
            const size_t cache = l * S * c.block_size * C;
            matrix_vectors(qkv.data, w.c_attn_weight, w.c_attn_bias, norm.data, S, 3 * C, C, Activation::none,
                           stream);
            attend(att.data, pieces, keys.data + cache, values.data + cache, qkv.data, positions, S,
                   c.block_size, C, NH, stream);
            matrix_vectors(proj.data, w.c_proj_weight, w.c_proj_bias, att.data, S, C, C, Activation::none,
                           stream);
            Router router{};
            if (c.moe()) {
                router = model.router(l);
                router.N = S;
                router.choice = choice.data + l * S * K;
                router.weight = weight.data + l * S * K;
            }
            launch_early(add_and_route_kernel, places, row_threads, bytes + router.E * sizeof(float), stream,
                         normed_by(w.ln_2_weight, w.ln_2_bias), proj.data, router);
            const Stream after = l + 1 < c.n_layer ? normed_by(h[l + 1].ln_1_weight, h[l + 1].ln_1_bias)
                                                   : normed_by(model.w.ln_f_weight, model.w.ln_f_bias);
            float* units = z.data + l * S * K * D;
            if (c.moe()) {
                const unsigned groups = blocks_for(D, rows_at_once);
                const int warps = row_group_warps(groups * K, C);
                launch_early(units_kernel, dim3(groups, experts, shares), warps * warp_size, 0, stream, units,
                             rows_read.data, w.w_enc, w.b_enc, norm.data, router.choice, S, K, E, D, C, act);
                launch_early(fired_rows_kernel,
                             dim3(unsigned(parts()), blocks_for(C, slab) * shares, experts), part_threads, 0,
                             stream, y.data, rows_read.data, w.w_dec, units, router.choice, router.weight, S,
                             K, E, D, C);
                launch_early(add_experts_kernel, places, row_threads, bytes, stream, after, y.data, parts(),
                             w.b_dec, router.choice, router.weight, K);
            } else {
                matrix_vectors(units, w.fc_weight, w.fc_bias, norm.data, S, W, C, act, stream);
                if (c.geglu())
                    matrix_vectors(units, w.gate_weight, w.gate_bias, norm.data, S, W, C, Activation::gate,
                                   stream);
                if (c.solu())
                    launch_early(solu_units_kernel, places, row_threads, W * sizeof(float), stream, units,
                                 w.ln_mid_weight, w.ln_mid_bias, int(W));
                matrix_vectors(proj.data, w.fc_proj_weight, w.fc_proj_bias, units, S, C, W, Activation::none,
                               stream);
                launch_early(add_and_route_kernel, places, row_threads, bytes, stream, after, proj.data,
                             Router{});
            }
        }
        matrix_vectors(gpu_logits.data, model.w.wte, nullptr, norm.data, S, V, C, Activation::none, stream);
        cuda_check(cudaMemcpyAsync(logits.data, gpu_logits.data, S * V * sizeof(float),
                                   cudaMemcpyDeviceToHost, stream));
    }

    // What every step reads whatever is chosen: all weights but the experts', and the router.
    double fixed_bytes() const {
        const Config& c = model.config;
        double bytes = 0;
        for (const Tensor& t : model.table)
            if (!t.experts && t.name != "wpe.weight" && t.name.find(".router") == std::string::npos)
                bytes += double(t.count) * sizeof(floatX);
        if (c.moe()) bytes += double(c.n_layer * c.n_expert * c.n_embd * sizeof(float)) * (c.topk() ? 1 : 2);
        return bytes;
    }
    double bytes() const {
        unsigned long long rows;
        rows_read.download(&rows, 1);
        return other_bytes + double(rows) * model.config.n_embd * sizeof(floatX);
    }

    // changes: what a unit puts into the output is its value times its factor
    std::vector<TraceLayer> trace(size_t place, const Intervention& changes = {}) const {
        const Config& c = model.config;
        const size_t K = c.moe() ? this->K : 1, D = c.moe() ? c.d_expert : c.dense_width();
        std::vector<int> experts(K);
        std::vector<float> weights(K, 1), units(K * D);
        std::vector<TraceLayer> layers(c.n_layer);
        for (size_t l = 0; l < c.n_layer; l++) {
            const size_t first = (l * S + place) * K; // slot
            copy_out(units, z.data + first * D);
            if (c.moe()) {
                copy_out(experts, choice.data + first);
                copy_out(weights, weight.data + first);
            }
            for (size_t k = 0; k < K; k++) {
                const size_t expert = size_t(experts[k]);
                if (c.moe()) layers[l].experts.push_back({expert, weights[k]});
                for (size_t u = 0; u < D; u++) {
                    if (!(units[k * D + u] > 0)) continue;
                    const double factor = changes.factor(l, expert, u);
                    if (factor != 0)
                        layers[l].units.push_back(
                            {expert, u, double(weights[k]) * factor * units[k * D + u]});
                }
            }
        }
        return layers;
    }

  private:
    // What the model does from here on it does as this decoder does: several may share it.
    void change_routing() { model.routing = {K, ranks, standing.count ? standing.data : nullptr}; }
    template <class T> static void copy_out(std::vector<T>& to, const T* from) {
        cuda_check(cudaMemcpy(to.data(), from, to.size() * sizeof(T), cudaMemcpyDeviceToHost));
    }
};

// ---------------------------------------------------------------------------------------------------------
// 6. main
// ---------------------------------------------------------------------------------------------------------

// How many prompts can be gone on from side by side: as many as there are, up to max_places, and as the
// memory holds the caches of, `decoders` for each. Refuses a model that does not leave room for one.
inline size_t fitting_places(const Config& config, size_t prompts, size_t free, const std::string& where,
                             size_t decoders = 1) {
    const double weights = double(block_elements(gpu_tensor_table(config))) * (sizeof(floatX) < 4 ? 6 : 4);
    const Shape shape = {config, 1, config.block_size, 2, true, false};
    const double cache = double(decoders) * 2.0 * double(Decoder::cache_elements(config)) * sizeof(floatX);
    const double rest = weights + double(activation_bytes(shape)) +
                        double(Gpu::most_branches * Gpu::workspace_bytes) + unaccounted_bytes;
    if (rest + cache > double(free))
        fail("%s: sampling from this model needs %s of GPU memory, %s are free", where.c_str(),
             human_bytes(rest + cache).c_str(), human_bytes(double(free)).c_str());
    return std::min({prompts, max_places, size_t((double(free) - rest) / cache)});
}

inline int sample_program(int argc, char** argv) {
    SampleFlags flags;
    Options options("sample", "Samples text or games of chess from a MoE-X checkpoint, on an NVIDIA GPU.");
    flags.declare(options);
    if (!options.parse(argc, argv)) return 0;
    const std::vector<std::string> prompts = flags.texts();
    flags.ckpt = find_checkpoint(flags.ckpt);
    const SafeTensorsFile file(flags.ckpt);
    const Config trained = read_config(file);
    check_gpu_config(trained, flags.ckpt);
    const Intervention changes = flags.changes.read(trained, flags.ckpt);
    const Config config = changes.apply(trained);
    std::optional<Intervention> weak; // the other routing of --contrast, which reads the same texts
    if (flags.contrast.given()) weak = flags.contrast.weak(changes, trained, flags.ckpt);
    Config largest = config; // what the model has memory for
    if (weak) largest.n_expert_active = std::max(config.n_expert_active, weak->K);
    const UsedGpu gpu = use_gpu(Ranks());
    const size_t places = fitting_places(largest, prompts.size(), gpu.free, flags.ckpt, weak ? 2 : 1);

    Model model(largest, 1, config.block_size, 2, false);
    load_weights(model, 0, 0, [&](const Tensor& t, float* to) {
        read_floats(*file.find(t.name), to);
        changes.apply(config, t, to);
    });
    std::vector<std::unique_ptr<Decoder>> decoders;
    decoders.push_back(std::make_unique<Decoder>(model, places, config.n_expert_active, changes.routing));
    if (weak) decoders.push_back(std::make_unique<Decoder>(model, places, weak->K, weak->routing));
    Engine engine;
    engine.places = places;
    engine.restart = [&](size_t place, const int32_t* tokens, size_t n) {
        for (const auto& decoder : decoders) decoder->restart(place, tokens, n);
    };
    engine.step = [&](const std::vector<int32_t>& tokens) {
        for (const auto& decoder : decoders) decoder->step(tokens.data());
    };
    const auto logits_of = [&](size_t decoder) {
        return [&, decoder](size_t place) {
            return (const float*)decoders[decoder]->logits.data + place * config.vocab_size;
        };
    };
    engine.logits = logits_of(0);
    if (weak) engine.weak_logits = logits_of(1);
    engine.trace = [&](size_t place) { return decoders[0]->trace(place, changes); };
    engine.bytes = [&] {
        double bytes = 0;
        for (const auto& decoder : decoders) bytes += decoder->bytes();
        return bytes;
    };
    sample(flags, prompts, config, engine);
    return 0;
}

#ifdef MOEX_SAMPLE
int main(int argc, char** argv) {
    return run_main([&] { return sample_program(argc, argv); });
}
#endif
