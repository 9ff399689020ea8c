// Speed of the CUDA program on this card, beside what the card can do: its copy bandwidth and matrix rate
// first, then every launcher of train_moex.cu at the sizes of a preset, then whole training steps, of the
// MoE-X and of its dense twin in turn. Weights as initialised, random tokens, one micro-batch per step.
//   bench_gpu [--preset chess|small|medium|demo] [--json FILE]
//   bench_gpu --count        bytes and FLOPs of every launcher on an H100's data sheet; needs no GPU
//   bench_gpu --tiny         models of a few hundred tokens, to see that it runs (under dev/emu, too)
//
// The launchers are listed once, in the order of a step. Run one by one they give the times; run in order
// they give the same gradients as forward() and backward(), bit for bit, which is checked: what is timed here
// is what the trainer does.
#define MOEX_LIBRARY
#include "../../train_moex.cu"
#include "roofline.h"

constexpr bool fp32 = sizeof(floatX) == 4;

struct Settings {
    std::string preset = "both", json;
    int64_t repeats = 24, steps = 20;
    bool count = false, tiny = false;
};

static double median(std::vector<double> x) {
    std::sort(x.begin(), x.end());
    return x[x.size() / 2];
}

// One JSON object per row of every table, when asked for.
struct JsonLines {
    std::optional<AtomicFile> file;
    void row(const std::string& fields) {
        if (!file) return;
        const std::string line = "{" + fields + "}\n";
        file->write(line.data(), line.size());
    }
};

// ---------------------------------------------------------------------------------------------------------
// Timing. Events between calls, all in the queue before the first of them is reached: a long memset goes
// ahead, and the GPU does not wait for the host between short kernels.

struct Clock {
    std::vector<cudaEvent_t> events;
    Block<char> ahead;

    explicit Clock(size_t bytes) : ahead(bytes) {}
    Clock(const Clock&) = delete;
    ~Clock() {
        for (cudaEvent_t event : events) cudaEventDestroy(event);
    }
    void mark(size_t i, cudaStream_t stream) {
        while (events.size() <= i) {
            cudaEvent_t event;
            cuda_check(cudaEventCreate(&event));
            events.push_back(event);
        }
        cuda_check(cudaEventRecord(events[i], stream));
    }
    void keep_busy(cudaStream_t stream) const {
        cuda_check(cudaMemsetAsync(ahead.data, 0, ahead.count, stream));
    }
    // Seconds between two marks that have passed.
    double seconds(size_t from, size_t to) const {
        float ms = 0;
        cuda_check(cudaEventElapsedTime(&ms, events[from], events[to]));
        return ms * 1e-3;
    }
    // Median seconds of run(0), run(1), ..
    double time(cudaStream_t stream, size_t repeats, const std::function<void(size_t)>& run) {
        for (size_t i = 0; i < 3; i++) run(i);
        keep_busy(stream);
        mark(0, stream);
        for (size_t i = 0; i < repeats; i++) run(i), mark(i + 1, stream);
        cuda_check(cudaStreamSynchronize(stream));
        std::vector<double> times;
        for (size_t i = 0; i < repeats; i++) times.push_back(std::max(seconds(i, i + 1), 1e-9));
        return median(times);
    }
};

// ---------------------------------------------------------------------------------------------------------
// What the card can do

__global__ void empty_kernel() {}

// Uniform in [-1, 1): multiplying zeros takes less power, and so less time, than multiplying numbers.
__global__ void fill_kernel(floatX* out, uint64_t seed, size_t count) {
    const size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x;
    if (i < count) out[i] = floatX(float(int(mix64(seed ^ i) >> 40)) * 0x1p-23f - 1);
}

// Fused multiply-adds on registers, in as many independent chains as hide their latency.
constexpr int fma_chains = 8;
__global__ void fma_kernel(float* out, float b, float c, int rounds) {
    float a[fma_chains];
    for (int k = 0; k < fma_chains; k++) a[k] = float(threadIdx.x + k);
    for (int i = 0; i < rounds; i++)
#pragma unroll
        for (int k = 0; k < fma_chains; k++) a[k] = fmaf(a[k], b, c);
    float sum = 0;
    for (int k = 0; k < fma_chains; k++) sum += a[k];
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

#ifndef PRECISION_FP32
// The same of mma.sync, 4096 FLOP each: what attention's kernels could do if they did nothing else.
constexpr int mma_chains = 8;
__global__ void mma_kernel(float* out, uint64_t seed, int rounds) {
    float d[mma_chains][4] = {};
    uint32_t a[4], b[2]; // pairs of bf16 below 2
    for (int i = 0; i < 4; i++) a[i] = uint32_t(mix64(seed + 8 * threadIdx.x + i)) & 0x3fff3fff;
    for (int i = 0; i < 2; i++) b[i] = uint32_t(mix64(seed + 8 * threadIdx.x + 4 + i)) & 0x3fff3fff;
    for (int i = 0; i < rounds; i++)
#pragma unroll
        for (int k = 0; k < mma_chains; k++) mma_m16n8k16(d[k], a, b[0], b[1]);
    float sum = 0;
    for (int k = 0; k < mma_chains; k++) sum += d[k][0] + d[k][1] + d[k][2] + d[k][3];
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
#endif

static Card measure_card(Clock& clock, const Settings& settings, JsonLines& json) {
    Gpu gpu;
    const cudaStream_t stream = gpu.stream;
    const bool tiny = settings.tiny;
    const size_t side = tiny ? 64 : 8192;
    cudaDeviceProp properties;
    cuda_check(cudaGetDeviceProperties(&properties, 0));
    Card card{};
    card.multiprocessors = properties.multiProcessorCount;
    {
        const size_t bytes = tiny ? 1 << 20 : size_t(1) << 30;
        const Block<char> from(bytes), to(bytes);
        from.zero();
        card.bandwidth = 2.0 * bytes / clock.time(stream, 24, [&](size_t) {
            cuda_check(cudaMemcpyAsync(to.data, from.data, bytes, cudaMemcpyDeviceToDevice, stream));
        });
    }
    {
        // As in linear_forward(): the second operand transposed. For a third of a second first, so that the
        // clock has come down to what the card keeps up.
        const size_t n = side;
        const Block<floatX> a(n * n), b(n * n), out(n * n);
        for (const Block<floatX>* block : {&a, &b})
            fill_kernel<<<blocks_for(n * n, 256), 256, 0, stream>>>(block->data, block == &a, n * n);
        cuda_check(cudaGetLastError());
        Product p{out.data, a.data, b.data, n, n, n};
        p.b_transposed = true;
        for (int i = 0; i < (tiny ? 1 : fp32 ? 20 : 200); i++) multiply(gpu, p);
        card.matrix = 2.0 * n * n * n / clock.time(stream, tiny ? 3 : 60, [&](size_t) { multiply(gpu, p); });
    }
    {
        const unsigned blocks = tiny ? 2 : unsigned(16 * card.multiprocessors), threads = 256;
        const int rounds = tiny ? 4 : 4096;
        const Block<float> out(blocks * threads);
        const auto launch_rate = [&](double flops, const std::function<void(size_t)>& run) {
            return flops * rounds * blocks * threads / clock.time(stream, 24, run);
        };
        card.vector = launch_rate(2.0 * fma_chains, [&](size_t) {
            fma_kernel<<<blocks, threads, 0, stream>>>(out.data, 0.5f, 1, rounds);
        });
#ifdef PRECISION_FP32
        card.mma = card.vector;
#else
        card.mma = launch_rate(4096.0 / warp_size * mma_chains, [&](size_t) {
            mma_kernel<<<blocks, threads, 0, stream>>>(out.data, 1, rounds);
        });
#endif
    }
    card.launch = clock.time(stream, 200, [&](size_t) { empty_kernel<<<1, warp_size, 0, stream>>>(); });
    // What the host pays: to launch, and to hear of the end of what it launched.
    const size_t launches = tiny ? 10 : 2000;
    double begin = now_seconds();
    for (size_t i = 0; i < launches; i++) empty_kernel<<<1, warp_size, 0, stream>>>();
    const double host_launch = (now_seconds() - begin) / launches;
    cuda_check(cudaStreamSynchronize(stream));
    std::vector<double> trips;
    for (int i = 0; i < 50; i++) {
        begin = now_seconds();
        empty_kernel<<<1, warp_size, 0, stream>>>();
        cuda_check(cudaStreamSynchronize(stream));
        trips.push_back(now_seconds() - begin);
    }
    cuda_check(cudaGetLastError());

    const Card sheet = h100_datasheet(fp32);
    printf("copy          %7.0f GB/s read and written (an H100's data sheet: %.0f)\n", card.bandwidth / 1e9,
           sheet.bandwidth / 1e9);
    printf("%s products %6.1f TFLOP/s, %zu x %zu x %zu (data sheet: %.0f)\n", precision_name,
           card.matrix / 1e12, side, side, side, sheet.matrix / 1e12);
    if (!fp32)
        printf("mma.sync      %7.1f TFLOP/s of m16n8k16 on registers (reported: %.0f)\n", card.mma / 1e12,
               sheet.mma / 1e12);
    printf("fp32          %7.1f TFLOP/s of fused multiply-adds (data sheet: %.0f)\n", card.vector / 1e12,
           sheet.vector / 1e12);
    printf("launch        %7.2f us per empty kernel in a full queue, %.2f us of the host, %.1f us there and "
           "back\n",
           card.launch * 1e6, host_launch * 1e6, median(trips) * 1e6);
    json.row(
        strf("\"row\": \"card\", \"name\": %s, \"precision\": \"%s\", \"copy_gb_s\": %.1f, "
             "\"matrix_tflop_s\": %.2f, \"mma_tflop_s\": %.2f, \"fp32_tflop_s\": %.2f, \"launch_us\": %.3f, "
             "\"host_launch_us\": %.3f, \"round_trip_us\": %.2f",
             json_quote(properties.name).c_str(), precision_name, card.bandwidth / 1e9, card.matrix / 1e12,
             card.mma / 1e12, card.vector / 1e12, card.launch * 1e6, host_launch * 1e6, median(trips) * 1e6));
    return card;
}

// ---------------------------------------------------------------------------------------------------------
// A step as a list of launchers

struct Launch {
    const char* name; // as in work_of_step()
    std::function<void(size_t layer)> run;
};
// Launches in order, once or for each layer.
struct Stage {
    enum { once, layers, layers_reversed } how;
    std::vector<Launch> launches;
};

constexpr float aux_weight = 1e-3f;

// What train_step() does with one micro-batch, call by call, for the variants that the presets have; a rate
// of zero leaves the weights as they are.
static std::vector<Stage> stages_of_step(Model& model) {
    Model* const m = &model;
    const Config& c = model.config;
    const size_t B = model.B, T = model.T, N = B * T, V = c.vocab_size, Vp = model.shape().padded_vocab();
    const size_t C = c.n_embd, E = c.n_expert, K = c.n_expert_active, D = c.d_expert, L = c.n_layer;
    const size_t W = c.dense_width();
    const cudaStream_t stream = model.gpu.stream;
    Activations* const a = &model.a;
    auto w = [m](size_t l) -> const LayerParameters<floatX>& { return m->w.h[l]; };
    auto dw = [m](size_t l) -> const LayerParameters<float>& { return m->g.h[l]; };
    auto h = [a](size_t l) -> LayerActivations& { return a->h[l]; };
    auto x = [a](size_t l) { return l ? a->h[l - 1].out : a->embedded; };

    std::vector<Launch> statistics, first, into, feed_forward, head, head_back, back, last;
    first.push_back(
        {"embedding_layernorm_forward", [=](size_t) {
             const Norm norm = {h(0).ln_1, h(0).ln_1_mean, h(0).ln_1_rstd, w(0).ln_1_weight, w(0).ln_1_bias};
             embedding_layernorm_forward(a->embedded, norm, m->tokens, m->w.wte, m->w.wpe, N, T, C, stream);
         }});
    into = {
        {"linear_forward c_attn",
         [=](size_t l) {
             linear_forward(m->gpu, h(l).qkv, h(l).ln_1, w(l).c_attn_weight, w(l).c_attn_bias, N, C, 3 * C);
         }},
        {"attention_forward",
         [=](size_t l) {
             attention_forward(h(l).att, h(l).lse, h(l).qkv, B, T, C, m->config.n_head, stream);
         }},
        {"linear_forward c_proj",
         [=](size_t l) {
             linear_forward(m->gpu, a->proj, h(l).att, w(l).c_proj_weight, w(l).c_proj_bias, N, C, C);
         }},
        {"residual_layernorm_forward ln_2", [=](size_t l) {
             const Norm norm = {h(l).ln_2, h(l).ln_2_mean, h(l).ln_2_rstd, w(l).ln_2_weight, w(l).ln_2_bias};
             residual_layernorm_forward(h(l).mid, norm, x(l), a->proj, N, C, stream);
         }}};
    auto count = [=](size_t l) {
        const Experts e = m->experts(l);
        const bool masked = e.fused && e.relu && e.D % 128 == 0;
        count_active(&a->totals->active, e.z, masked ? (const uint4*)e.mask : nullptr, N * W, stream);
    };
    if (c.moe()) {
        statistics = {{"expert_statistics_forward", [=](size_t l) {
                           expert_statistics_forward(h(l).statistics, w(l).w_enc, w(l).b_enc, E, D, C,
                                                     stream);
                       }}};
        auto gather_slots = [=](size_t l) { gather(a->slots_x, h(l).ln_2, h(l).token, N * K, C, stream); };
        feed_forward = {
            {"router_forward",
             [=](size_t l) {
                 router_forward(h(l).routing, a->sum_p, a->partial, h(l).ln_2, h(l).statistics, false, N, E,
                                K, C, stream);
             }},
            {"dispatch",
             [=](size_t l) {
                 dispatch(h(l).begin, h(l).slot, h(l).token, a->counts, h(l).routing.choice, N, E, K, stream);
                 cuda_check(cudaMemcpyAsync(m->host_begin + l * (E + 1), h(l).begin, (E + 1) * sizeof(int),
                                            cudaMemcpyDeviceToHost, stream));
                 cuda_check(cudaEventRecord(m->begin_copied, stream));
             }},
            {"balance_forward",
             [=](size_t l) { balance_forward(&a->totals->aux, a->sum_p, h(l).begin, 1, N, E, K, stream); }},
            {"gather", gather_slots},
            {"wait for the counts", [=](size_t) { cuda_check(cudaEventSynchronize(m->begin_copied)); }},
            {"experts_encode", [=](size_t l) { experts_encode(m->gpu, m->experts(l), a->slots_x); }},
            {"experts_decode", [=](size_t l) { experts_decode(m->gpu, m->experts(l), h(l).y); }},
            {"combine_layernorm_forward",
             [=](size_t l) {
                 combine_layernorm_forward(h(l).out, norm_after(*m, l), h(l).mid, h(l).y, h(l).routing.weight,
                                           h(l).slot, N, K, C, stream);
             }},
            {"count_active", count}};
        back = {{"combine_backward",
                 [=](size_t l) {
                     combine_backward(a->dy, a->dweight, a->dresidual, h(l).y, h(l).routing.weight, h(l).slot,
                                      N, K, C, stream);
                 }},
                {"gather again", gather_slots},
                {"experts_backward",
                 [=](size_t l) {
                     experts_backward(m->gpu, m->experts(l), a->dslots, dw(l).w_enc, dw(l).b_enc, dw(l).w_dec,
                                      dw(l).b_dec, a->dh, a->db, a->partial, a->dy, a->slots_x);
                 }},
                {"router_backward", [=](size_t l) {
                     router_backward(a->dln, h(l).dstatistics, a->dmu, a->dvar, a->partial, a->dslots,
                                     a->dweight, h(l).slot, h(l).ln_2, h(l).routing, h(l).statistics,
                                     h(l).begin, aux_weight, false, N, E, K, C, stream);
                 }}};
        last = {{"expert_statistics_backward", [=](size_t l) {
                     expert_statistics_backward(dw(l).w_enc, dw(l).b_enc, h(l).dstatistics, w(l).w_enc,
                                                w(l).b_enc, h(l).statistics, E, D, C, stream);
                 }}};
    } else {
        for (size_t l = 0; l < L; l++) m->host_begin[2 * l] = 0, m->host_begin[2 * l + 1] = int(N);
        feed_forward = {
            {"experts_encode", [=](size_t l) { experts_encode(m->gpu, m->experts(l), h(l).ln_2); }},
            {"experts_decode", [=](size_t l) { experts_decode(m->gpu, m->experts(l), a->proj); }},
            {"residual_layernorm_forward",
             [=](size_t l) {
                 residual_layernorm_forward(h(l).out, norm_after(*m, l), h(l).mid, a->proj, N, C, stream);
             }},
            {"count_active", count}};
        back = {{"experts_backward", [=](size_t l) {
                     experts_backward(m->gpu, m->experts(l), a->dln, dw(l).fc_weight, dw(l).fc_bias,
                                      dw(l).fc_proj_weight, dw(l).fc_proj_bias, a->dh, a->db, a->partial,
                                      a->dresidual, h(l).ln_2);
                 }}};
    }
    into.insert(into.end(), feed_forward.begin(), feed_forward.end());
    head = {{"head",
             [=](size_t) {
                 Product p{a->logits, a->ln_f, m->w.wte, N, V, C};
                 p.b_transposed = true, p.out_stride = Vp;
                 multiply(m->gpu, p);
             }},
            {"classifier",
             [=](size_t) { classifier(a->losses, a->logits, m->targets, 1.0f / N, N, V, Vp, stream); }},
            {"sum_losses", [=](size_t) {
                 sum_losses_kernel<<<1, 1024, 0, stream>>>(&a->totals->loss, a->losses, 1.0 / N, N);
                 cuda_check(cudaGetLastError());
             }}};
    head_back = {{"head to ln_f",
                  [=](size_t) {
                      Product p{a->dln, a->logits, m->w.wte, N, C, V};
                      p.a_stride = Vp;
                      multiply(m->gpu, p);
                  }},
                 {"head to wte",
                  [=](size_t) {
                      Product p{m->g.wte, a->logits, a->ln_f, V, C, N};
                      p.a_transposed = true, p.a_stride = Vp, p.accumulate = true;
                      multiply(m->gpu, p);
                  }},
                 {"layernorm_backward ln_f", [=](size_t) {
                      cuda_check(cudaMemsetAsync(a->dresidual, 0, N * C * sizeof(floatX), stream));
                      layernorm_backward(a->dresidual, m->g.ln_f_weight, m->g.ln_f_bias, a->dln, h(L - 1).out,
                                         a->ln_f_mean, a->ln_f_rstd, m->w.ln_f_weight, a->partial, N, C,
                                         stream);
                  }}};
    const std::vector<Launch> attention_back = {
        {"layernorm_backward ln_2",
         [=](size_t l) {
             layernorm_backward(a->dresidual, dw(l).ln_2_weight, dw(l).ln_2_bias, a->dln, h(l).mid,
                                h(l).ln_2_mean, h(l).ln_2_rstd, w(l).ln_2_weight, a->partial, N, C, stream);
         }},
        {"linear_backward c_proj",
         [=](size_t l) {
             linear_backward(m->gpu, a->datt, dw(l).c_proj_weight, dw(l).c_proj_bias, a->partial,
                             a->dresidual, h(l).att, w(l).c_proj_weight, m->all, N, C, C);
         }},
        {"attention_backward",
         [=](size_t l) {
             attention_backward(a->dqkv, a->delta, a->datt, h(l).att, h(l).lse, h(l).qkv, B, T, C,
                                m->config.n_head, stream);
         }},
        {"linear_backward c_attn",
         [=](size_t l) {
             linear_backward(m->gpu, a->dln, dw(l).c_attn_weight, dw(l).c_attn_bias, a->partial, a->dqkv,
                             h(l).ln_1, w(l).c_attn_weight, m->all, N, C, 3 * C);
         }},
        {"layernorm_backward ln_1", [=](size_t l) {
             layernorm_backward(a->dresidual, dw(l).ln_1_weight, dw(l).ln_1_bias, a->dln, x(l),
                                h(l).ln_1_mean, h(l).ln_1_rstd, w(l).ln_1_weight, a->partial, N, C, stream);
         }}};
    back.insert(back.end(), attention_back.begin(), attention_back.end());
    const Launch embedding_back = {"embedding_backward", [=](size_t) {
                                       embedding_backward(m->g.wte, m->g.wpe, a->partial, a->dresidual,
                                                          m->places, B, T, C, stream);
                                   }};
    const Launch norm = {"gradient_norm", [=](size_t) {
                             gradient_norm(&a->totals->norm, a->norm_partial, m->gradients.data,
                                           m->gradients.count, stream);
                         }};
    const Launch adam = {"update", [=](size_t) {
                             const size_t fours = m->gradients.count / 4;
                             AdamW rate_zero;
                             rate_zero.lr = 0;
                             update_kernel<<<blocks_for(fours, 256), 256, 0, stream>>>(
                                 m->weights.data, (float4*)m->master_weights(),
                                 (const float4*)m->gradients.data, (float4*)m->moment_1.data,
                                 (float4*)m->moment_2.data, m->decays.data, a->totals, rate_zero, 1, 1,
                                 rounding_key(1, 1), fours);
                             cuda_check(cudaGetLastError());
                         }};
    return {{Stage::once, {{"zero_gradients", [=](size_t) { zero_gradients(*m); }}}},
            {Stage::layers, statistics},
            {Stage::once, first},
            {Stage::layers, into},
            {Stage::once, head},
            {Stage::once, head_back},
            {Stage::layers_reversed, back},
            {Stage::once, {embedding_back}},
            {Stage::layers, last},
            {Stage::once, {norm, adam}}};
}

// Runs the stages in order; before each launch, and at the end, calls mark(the launch or null).
static void walk(const Model& model, const std::vector<Stage>& stages,
                 const std::function<void(const Launch*)>& mark) {
    const size_t L = model.config.n_layer;
    for (const Stage& stage : stages)
        for (size_t i = 0; i < (stage.how == Stage::once ? 1 : L); i++)
            for (const Launch& launch : stage.launches) {
                mark(&launch);
                launch.run(stage.how == Stage::layers_reversed ? L - 1 - i : i);
            }
    mark(nullptr);
}

// ---------------------------------------------------------------------------------------------------------
// One model: its batch, its launchers, its steps

struct Subject {
    std::string preset, what; // what: MoE-X or dense twin
    size_t B, T;
    std::unique_ptr<Model> model;
    std::vector<int32_t> tokens, targets;
    double memory = 0; // bytes of the GPU taken by the model and its steps
    std::vector<double> wall, forward_seconds, backward_seconds, update_seconds;
    std::map<std::string, double> parts; // seconds of a step by what they are spent on
    uint64_t steps = 0;

    Subject(std::string preset, const Config& config, size_t B, size_t T)
        : preset(std::move(preset)), what(config.moe() ? "MoE-X" : "dense twin"), B(B), T(T) {
        const std::vector<Tensor> table = gpu_tensor_table(config);
        std::vector<float> weights(block_elements(table));
        init_parameters(config, table, weights.data(), 1);
        size_t free_before = 0, free_after = 0, total = 0;
        cuda_check(cudaMemGetInfo(&free_before, &total));
        model = std::make_unique<Model>(config, B, T);
        load_weights(*model, weights.data(), 0, 1);
        for (size_t i = 0; i < B * T; i++) {
            tokens.push_back(int32_t(random_u64(1, 1, i) % config.vocab_size));
            targets.push_back(int32_t(random_u64(1, 2, i) % config.vocab_size));
        }
        step(nullptr);
        cuda_check(cudaMemGetInfo(&free_after, &total));
        memory = double(free_before) - double(free_after);
    }

    // A training step as train_step() makes it. With a clock, its times are kept.
    void step(Clock* clock) {
        Model& m = *model;
        const cudaStream_t stream = m.gpu.stream;
        auto mark = [&](size_t i) {
            if (clock) clock->mark(i, stream);
        };
        const double begin = now_seconds();
        mark(0);
        zero_gradients(m);
        zero_totals(m);
        mark(1);
        upload_batch(m, tokens.data(), targets.data(), B, T, true);
        forward(m, 1, 1);
        mark(2);
        backward(m, aux_weight);
        mark(3);
        finish_gradients(m);
        AdamW adam;
        adam.lr = 0;
        update(m, adam, ++steps, 1);
        mark(4);
        const Totals totals = read_totals(m);
        if (!std::isfinite(totals.loss + totals.aux + totals.norm))
            fail("%s, %s: loss %g, aux %g, norm %g: expected finite numbers", preset.c_str(), what.c_str(),
                 totals.loss, totals.aux, totals.norm);
        if (!clock) return;
        wall.push_back(now_seconds() - begin);
        forward_seconds.push_back(clock->seconds(1, 2));
        backward_seconds.push_back(clock->seconds(2, 3));
        update_seconds.push_back(clock->seconds(0, 1) + clock->seconds(3, 4));
    }
    // Seconds of a step of several micro-batches: the update is paid once.
    double step_seconds(double micros) const {
        return median(wall) + (micros - 1) * (median(forward_seconds) + median(backward_seconds));
    }
    double flops() const { return flops_per_token(model->config, T) * double(B * T); }
    // The fullest expert's tokens beside the mean, the worst of the layers.
    double imbalance() const {
        double worst = 0;
        for (size_t l = 0; l < model->config.n_layer; l++) {
            const Experts e = model->experts(l);
            for (size_t j = 0; j < e.E; j++)
                worst =
                    std::max(worst, double(e.host_begin[j + 1] - e.host_begin[j]) * e.E / e.host_begin[e.E]);
        }
        return worst;
    }
};

// The gradients of forward() and backward(), and of the list of launchers.
static void check_launches(Subject& s, const std::vector<Stage>& stages) {
    Model& m = *s.model;
    std::vector<float> expected(m.gradients.count), got(expected.size());
    zero_gradients(m);
    zero_totals(m);
    forward(m, 1, 1);
    backward(m, aux_weight);
    finish_gradients(m);
    const Totals totals = read_totals(m);
    m.gradients.download(expected.data(), expected.size());
    zero_totals(m);
    walk(m, stages, [](const Launch*) {});
    const Totals walked = read_totals(m);
    m.gradients.download(got.data(), got.size());
    if (memcmp(expected.data(), got.data(), got.size() * sizeof(float)) != 0 || walked.loss != totals.loss ||
        walked.aux != totals.aux || walked.active != totals.active)
        fail("%s, %s: the launchers of this benchmark give other gradients than forward() and backward()",
             s.preset.c_str(), s.what.c_str());
    if (!std::isfinite(walked.norm))
        fail("%s, %s: a gradient is not finite", s.preset.c_str(), s.what.c_str());
}

// Every launcher: alone, the median over calls that go from layer to layer, so that what a layer keeps is not
// in the cache (scratch that all layers share may be, as in a step); and within a step.
static void time_launches(Subject& s, const Card& card, Clock& clock, const Settings& settings,
                          JsonLines& json) {
    Model& m = *s.model;
    const Config& c = m.config;
    const cudaStream_t stream = m.gpu.stream;
    const std::vector<Work> list = work_of_step(c, s.B, s.T, sizeof(floatX), m.fused);
    const std::vector<Stage> stages = stages_of_step(m);
    check_launches(s, stages);

    // Within a step: the sum over the layers, the median over a few steps.
    std::map<std::string, std::vector<double>> in_step;
    std::vector<double> walked;
    for (int64_t i = 0; i < std::max<int64_t>(3, settings.steps / 2); i++) {
        std::vector<const Launch*> order;
        zero_totals(m);
        walk(m, stages, [&](const Launch* launch) {
            clock.mark(order.size(), stream);
            order.push_back(launch);
        });
        cuda_check(cudaStreamSynchronize(stream));
        std::map<std::string, double> sums;
        for (size_t k = 0; order[k]; k++) sums[order[k]->name] += clock.seconds(k, k + 1);
        for (const auto& [name, seconds] : sums) in_step[name].push_back(seconds);
        walked.push_back(clock.seconds(0, order.size() - 1));
    }

    const std::string units = c.moe() ? strf("%zu experts of %zu units", c.n_expert, c.d_expert)
                                      : strf("%zu units", c.dense_width());
    printf("\n%s, %s: %zu layers, C %zu, T %zu, B %zu, V %zu, %s, %s epilogues\n", s.preset.c_str(),
           s.what.c_str(), c.n_layer, c.n_embd, s.T, s.B, c.vocab_size, units.c_str(),
           m.fused ? "fused" : "no fused");
    printf("  %-31s %5s %9s %9s %8s %7s %8s %7s %6s %9s\n", "", "calls", "us", "MB", "GFLOP", "GB/s",
           "TFLOP/s", "bound", "share", "step, ms");
    double sum = 0;
    std::vector<std::string> done;
    for (const Work& work : list) {
        for (const Stage& stage : stages)
            for (const Launch& launch : stage.launches) {
                if (strcmp(launch.name, work.name) != 0) continue;
                const double seconds = clock.time(stream, size_t(settings.repeats), [&](size_t i) {
                    launch.run(stage.how == Stage::once ? 0 : i % c.n_layer);
                });
                const double step = median(in_step.at(work.name));
                const double share = floor_seconds(work, card) / seconds;
                const char* bound = bound_of(work, card);
                printf("  %-31s %5zu %9.1f %9.1f %8.2f %7.0f %8.1f %7s %5.0f%% %9.3f\n", work.name,
                       work.times, seconds * 1e6, work.bytes / 1e6, work.flops / 1e9,
                       work.bytes / seconds / 1e9, work.flops / seconds / 1e12, bound, 100 * share,
                       step * 1e3);
                json.row(strf("\"row\": \"launcher\", \"preset\": \"%s\", \"model\": \"%s\", \"precision\": "
                              "\"%s\", \"name\": \"%s\", \"part\": \"%s\", \"phase\": \"%s\", \"calls\": "
                              "%zu, \"us\": %.3f, "
                              "\"bytes\": %.0f, \"flops\": %.0f, \"bound\": \"%s\", \"share\": %.4f, "
                              "\"step_ms\": %.4f",
                              s.preset.c_str(), s.what.c_str(), precision_name, work.name, work.part,
                              work.phase, work.times, seconds * 1e6, work.bytes, work.flops, bound, share,
                              step * 1e3));
                s.parts[work.part] += step;
                sum += seconds * double(work.times);
                done.push_back(work.name);
            }
        if (done.empty() || done.back() != work.name)
            fail("%s: this launcher is counted, but not timed", work.name);
    }
    printf("  all calls one by one %.3f ms; in a step %.3f ms", sum * 1e3, median(walked) * 1e3);
    if (c.moe()) printf("; fullest expert: %.2f of the mean", s.imbalance());
    printf("\n");
}

// What the steps are spent on, by the events between the launchers of a step.
static void print_parts(const std::vector<Subject>& subjects, JsonLines& json) {
    const std::vector<const char*> parts = {"experts",   "attention",  "linear",    "router", "gather",
                                            "LayerNorm", "classifier", "embedding", "update"};
    printf("\n%s: what a step is spent on, ms\n  %-12s", subjects[0].preset.c_str(), "");
    for (const char* part : parts) printf(" %10s", part);
    printf("\n");
    for (const Subject& s : subjects) {
        double total = 0;
        std::string fields;
        auto at = [&](const char* part) { return s.parts.count(part) ? s.parts.at(part) : 0; };
        printf("  %-12s", s.what.c_str());
        for (const char* part : parts) {
            printf(" %10.3f", at(part) * 1e3);
            fields += strf(", \"%s\": %.4f", part, at(part) * 1e3);
            total += at(part);
        }
        printf("\n  %-12s", "");
        for (const char* part : parts) printf(" %9.1f%%", 100 * at(part) / total);
        printf("\n");
        json.row(strf("\"row\": \"parts\", \"preset\": \"%s\", \"model\": \"%s\", \"precision\": \"%s\", "
                      "\"unit\": \"ms\"%s",
                      s.preset.c_str(), s.what.c_str(), precision_name, fields.c_str()));
    }
}

// The head with the vocabulary as it is, and as it would be if it were rounded up to 64. The rows beyond V
// are those of wpe, which stands behind wte: any numbers will do here.
static void time_head(Subject& s, Clock& clock, const Settings& settings) {
    Model& m = *s.model;
    const size_t N = s.B * s.T, V = m.config.vocab_size, Vp = m.shape().padded_vocab(), C = m.config.n_embd;
    if (V == Vp || m.table[1].count < (Vp - V) * C) return;
    auto forward_seconds = [&](size_t columns) {
        Product p{m.a.logits, m.a.ln_f, m.w.wte, N, columns, C};
        p.b_transposed = true, p.out_stride = Vp;
        return clock.time(m.gpu.stream, size_t(settings.repeats), [&](size_t) { multiply(m.gpu, p); });
    };
    auto backward_seconds = [&](size_t columns) {
        Product p{m.a.dln, m.a.logits, m.w.wte, N, C, columns};
        p.a_stride = Vp;
        return clock.time(m.gpu.stream, size_t(settings.repeats), [&](size_t) { multiply(m.gpu, p); });
    };
    const double padded_forward = forward_seconds(Vp), padded_backward = backward_seconds(Vp);
    printf("  were V %zu instead of %zu: head %.1f us instead of %.1f, head to ln_f %.1f instead of %.1f\n",
           Vp, V, padded_forward * 1e6, forward_seconds(V) * 1e6, padded_backward * 1e6,
           backward_seconds(V) * 1e6);
}

// Whole steps, the two models in turn: of one micro-batch, and what follows for the preset's steps.
static void time_steps(std::vector<Subject>& subjects, const Preset& preset, const Card& card, Clock& clock,
                       const Settings& settings, JsonLines& json) {
    for (int64_t i = 0; i < 3; i++)
        for (Subject& s : subjects) s.step(nullptr);
    for (int64_t i = 0; i < settings.steps; i++)
        for (Subject& s : subjects) s.step(&clock);
    const size_t preset_micros = std::max<size_t>(1, preset.rows / preset.batch);
    printf("\n%s: training steps, median of %lld, the models in turn; micro-batches of %zu x %zu tokens\n",
           preset.name, (long long)settings.steps, subjects[0].B, subjects[0].T);
    printf("  %-12s %7s %9s %9s %9s %9s %9s %9s %7s %11s\n", "", "batches", "ms", "forward", "backward",
           "update", "tok/s", "TFLOP/s", "share", "memory");
    for (const size_t micros : {size_t(1), preset_micros}) {
        for (const Subject& s : subjects) {
            const double seconds = s.step_seconds(double(micros)),
                         forward = double(micros) * median(s.forward_seconds),
                         backward = double(micros) * median(s.backward_seconds),
                         update = median(s.update_seconds);
            const double tok_s = double(micros * s.B * s.T) / seconds,
                         rate = double(micros) * s.flops() / seconds;
            printf("  %-12s %7zu %9.3f %9.3f %9.3f %9.3f %9s %9.1f %6.1f%% %11s\n", s.what.c_str(), micros,
                   seconds * 1e3, forward * 1e3, backward * 1e3, update * 1e3, human_count(tok_s).c_str(),
                   rate / 1e12, 100 * rate / card.matrix, human_bytes(s.memory).c_str());
            json.row(strf("\"row\": \"step\", \"preset\": \"%s\", \"model\": \"%s\", \"precision\": \"%s\", "
                          "\"micro_batches\": %zu, \"measured\": %s, \"ms\": %.4f, \"forward_ms\": %.4f, "
                          "\"backward_ms\": %.4f, \"update_ms\": %.4f, \"tok_s\": %.1f, "
                          "\"tflop_s\": %.3f, \"share\": %.4f, \"memory_bytes\": %.0f",
                          preset.name, s.what.c_str(), precision_name, micros, micros == 1 ? "true" : "false",
                          seconds * 1e3, forward * 1e3, backward * 1e3, update * 1e3, tok_s, rate / 1e12,
                          rate / card.matrix, s.memory));
        }
        const double ratio =
            subjects[0].step_seconds(double(micros)) / subjects[1].step_seconds(double(micros));
        printf("  MoE-X takes %.3f of its dense twin's time%s\n", ratio,
               micros == 1 ? "" : ", reckoned: as many forwards and backwards, one update");
        json.row(strf("\"row\": \"ratio\", \"preset\": \"%s\", \"precision\": \"%s\", "
                      "\"micro_batches\": %zu, \"moe_over_dense\": %.4f",
                      preset.name, precision_name, micros, ratio));
    }
}

// ---------------------------------------------------------------------------------------------------------

static Preset tiny_preset() {
    Preset p = presets()[0];
    p.name = "tiny", p.batch = 2;
    Config& c = p.config;
    c.n_layer = 2, c.n_head = 1, c.n_embd = 64, c.d_expert = 128, c.block_size = 65, c.vocab_size = 61;
    c.tokenizer = "";
    return p;
}

static Config with_ffn(Config c, const char* ffn) { return c.ffn = ffn, c; }

// What there is to know without a GPU. The formulas, of both models:
static void print_formulas(const Config& config) {
    printf("  %-31s %-44s %s\n", "", "bytes", "FLOP");
    std::set<std::string> printed;
    for (const char* ffn : {"moe", "dense"})
        for (const Work& w : work_of_step(with_ffn(config, ffn), 1, config.block_size, sizeof(floatX), true))
            if (printed.insert(w.name).second)
                printf("  %-31s %-44s %s\n", w.name, w.bytes_formula, w.flops_formula);
}
// and the numbers of a preset.
static void print_counts(const Preset& p) {
    const Card card = h100_datasheet(fp32);
    const size_t T = p.config.block_size;
    const double N = double(p.batch * T),
                 micros = std::max(1.0, std::floor(double(p.rows) / double(p.batch)));
    double steps[2][2] = {};
    for (const char* ffn : {"moe", "dense"}) {
        const Config c = with_ffn(p.config, ffn);
        printf("\n%s, %s, %s, a micro-batch of %zu x %zu\n", p.name, c.moe() ? "MoE-X" : "dense twin",
               precision_name, p.batch, T);
        printf("  %-31s %5s %7s %9s %9s %7s %11s %11s %10s\n", "", "calls", "kernels", "MB", "GFLOP", "bound",
               "at least us", "expected us", "step, ms");
        double least = 0, expected = 0, update = 0;
        size_t kernels = 0;
        for (const Work& w : work_of_step(c, p.batch, T, sizeof(floatX), true)) {
            const double all = double(w.times) * expected_seconds(w, card);
            printf("  %-31s %5zu %7zu %9.1f %9.2f %7s %11.1f %11.1f %10.3f\n", w.name, w.times, w.kernels,
                   w.bytes / 1e6, w.flops / 1e9, bound_of(w, card), floor_seconds(w, card) * 1e6,
                   expected_seconds(w, card) * 1e6, all * 1e3);
            least += double(w.times) * floor_seconds(w, card);
            kernels += w.times * w.kernels;
            expected += all;
            if (strcmp(w.part, "update") == 0) update += all;
        }
        const double flops = flops_per_token(c, T) * N;
        printf("  %-31s %5s %7zu %9s %9.0f %7s %11.0f %11.0f %10.3f\n", "a step of one micro-batch", "",
               kernels, "", flops / 1e9, "", least * 1e6, expected * 1e6, expected * 1e3);
        for (const double n : {1.0, micros}) {
            const double seconds = n * (expected - update) + update;
            printf(
                "  expected of a step of %.0f micro-batch%s: %.2f ms, %s tok/s, %.0f%% of the matrix rate\n",
                n, n == 1 ? "" : "es", seconds * 1e3, human_count(n * N / seconds).c_str(),
                100 * n * flops / seconds / card.matrix);
            steps[n > 1][!c.moe()] = seconds;
        }
    }
    printf("  MoE-X is expected to take %.2f of its dense twin's time, %.2f in steps of %.0f micro-batches\n",
           steps[0][0] / steps[0][1], steps[1][0] / steps[1][1], micros);
}

static void bench(const Preset& p, const Card& card, Clock& clock, const Settings& settings,
                  JsonLines& json) {
    std::vector<Subject> subjects;
    for (const char* ffn : {"moe", "dense"})
        subjects.emplace_back(p.name, with_ffn(p.config, ffn), p.batch, p.config.block_size);
    time_steps(subjects, p, card, clock, settings, json);
    for (Subject& s : subjects) time_launches(s, card, clock, settings, json);
    print_parts(subjects, json);
    time_head(subjects[0], clock, settings);
}

int main(int argc, char** argv) {
    return run_main([&] {
        Settings settings;
        Options options("bench_gpu", "Measures the CUDA program beside what this card can do.");
        options.add(0, "preset", &settings.preset, {"both", "chess", "small", "medium", "demo"},
                    "sizes; both: chess and small");
        options.add(0, "repeats", "N", &settings.repeats, 1, 100000, "calls of each launcher");
        options.add(0, "steps", "N", &settings.steps, 1, 100000, "steps of each model");
        options.add(0, "json", "FILE", &settings.json, "write every row as a line of JSON, too");
        options.add(0, "count", &settings.count, "only count bytes and FLOPs, for an H100; needs no GPU");
        options.add(0, "tiny", &settings.tiny, "models of a few hundred tokens, to see that it runs");
        if (!options.parse(argc, argv)) return 0;
        std::vector<Preset> chosen;
        if (settings.tiny)
            chosen = {tiny_preset()};
        else
            for (const char* name : {"chess", "small", "medium", "demo"})
                if (settings.preset == name ||
                    (settings.preset == "both" && (!strcmp(name, "chess") || !strcmp(name, "small"))))
                    chosen.push_back(*find_preset(name));
        if (settings.count) {
            print_formulas(chosen[0].config);
            for (const Preset& p : chosen) print_counts(p);
            return 0;
        }
        JsonLines json;
        if (!settings.json.empty()) json.file.emplace(settings.json);
        size_t free = 0;
        printf("%s\n", use_gpu(&free).c_str());
        Clock clock(settings.tiny ? 1 << 10 : size_t(1) << 30);
        const Card card = measure_card(clock, settings, json);
        for (const Preset& p : chosen) bench(p, card, clock, settings, json);
        if (json.file) json.file->commit();
        return 0;
    });
}
