// Speed of the CUDA program on this card, beside what the card can do: its copy bandwidth and matrix rate
// first, then whole training steps of a MoE-X and of its dense twin in turn, with the library's epilogues,
// with our own, and with the experts' products by hand, then every launcher of such a step. Weights as
// initialised, random tokens, one micro-batch per step.
//   bench_gpu [--preset chess|small|medium|demo] [--batch N] [--json FILE]
//   bench_gpu --count        bytes and FLOPs of every launcher on an H100's data sheet; needs no GPU
//   bench_gpu --count --gpus 8 --nodes 4 [--rows N]   what a step should take on so many GPUs of each machine
//   bench_gpu --gpus 8       on 8 GPUs: summing gradients, sending weights, NCCL's memory at 8, 16, 32
//   channels
//                            (or started by torchrun, mpirun, srun, as the trainer is)
//   bench_gpu --tiny         models of a few hundred tokens, to see that it runs (under dev/emu, too)
//
// What is timed is the trainer's own step: it calls gpu.before_launch before each launcher, and here that
// records an event. roofline.h lists the same launchers by the same names, which is checked.
#define MOEX_LIBRARY
#include "../../train_moex.cu"
#include "roofline.h"
#include <sys/prctl.h>
#include <sys/wait.h>

constexpr bool fp32 = sizeof(floatX) == 4;

constexpr float aux_weight = 1e-3f;

struct Settings {
    std::string preset = "both", json;
    int64_t batch = 0, steps = 20, nodes = 1, rows = 0, channels = 0;
    bool count = false, tiny = false;
};

static Config with_ffn(Config c, const char* ffn) {
    c.ffn = ffn;
    return c;
}

static double median(std::vector<double> x) {
    std::sort(x.begin(), x.end());
    return x[x.size() / 2];
}

// One JSON object per row of every table, when asked for: in the file as soon as it is known, so that what
// has been measured is kept if the rest is not.
struct JsonLines {
    FILE* file = nullptr;

    void open(const std::string& path, const char* mode = "w") {
        file = fopen(path.c_str(), mode);
        if (!file) fail("%s cannot be written: %s", path.c_str(), strerror(errno));
    }
    void row(const std::string& fields) {
        if (!file) return;
        if (fprintf(file, "{%s}\n", fields.c_str()) < 0 || fflush(file) != 0)
            fail("a row of JSON cannot be written: %s", strerror(errno));
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
        for (size_t i = 0; i < repeats; i++) {
            run(i);
            mark(i + 1, stream);
        }
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
    card.wgmma = gpu.chip.wgmma;
    int kilohertz = 0; // the highest clock
    cuda_check(cudaDeviceGetAttribute(&kilohertz, cudaDevAttrClockRate, 0));
    card.issue = 4 * card.multiprocessors * kilohertz * 1e3;
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
// One model: its batch, its steps, and what they were spent on

struct StepTimes { // seconds, of every step
    size_t streams;
    std::vector<double> wall, forward, backward, update;

    // Of a step of several micro-batches: the update is paid once.
    double of_step(double micros) const {
        return median(wall) + (micros - 1) * (median(forward) + median(backward));
    }
};

struct Measured {
    std::string preset, what; // what: MoE-X or dense twin, and whose epilogues
    Config config;
    size_t B, T;
    Design design;
    double memory, imbalance; // bytes; the fullest expert's tokens beside the mean, the worst of the layers
    std::vector<StepTimes> steps;
    std::map<std::string, double> launchers; // seconds of a step, on one stream

    double flops() const { return flops_per_token(config, T) * double(B * T); }
};

struct Subject {
    Model model;
    std::vector<int32_t> tokens, targets;
    uint64_t steps = 0;

    // whose: what the experts are made by, the library's products and epilogues, its products and our own
    // epilogues, or all by hand.
    Subject(const Config& config, size_t B, size_t T, const std::string& whose)
        : model(config, B, T, 0, true, whose == "hand" ? "auto" : whose, Exchange(),
                whose == "hand" ? whose : "library") {
        load_weights(model, 0, 1, [&](const Tensor& t, float* to) { init_tensor(config, t, to, 1); });
        model.count_units = false; // as in all steps but those that print
        for (size_t i = 0; i < B * T; i++) {
            tokens.push_back(int32_t(random_u64(1, 1, i) % config.vocab_size));
            targets.push_back(int32_t(random_u64(1, 2, i) % config.vocab_size));
        }
        step([] {});
    }

    // A training step as train_step() makes it; mark() is called before and after each of its four passes.
    void step(const std::function<void()>& mark) {
        mark();
        zero_gradients(model);
        zero_totals(model);
        mark();
        upload_batch(model, tokens.data(), targets.data(), model.max_B, model.max_T, true);
        forward(model, 1, 1);
        mark();
        backward(model, aux_weight);
        mark();
        finish_gradients(model);
        AdamW adam;
        adam.lr = 0;
        update(model, adam, ++steps, 1);
        mark();
        const Totals totals = read_totals(model);
        if (!std::isfinite(totals.loss + totals.aux + totals.norm))
            fail("loss %g, aux %g, norm %g: expected finite numbers", totals.loss, totals.aux, totals.norm);
    }
    StepTimes time_steps(Clock& clock, size_t streams, size_t count) {
        StepTimes times{streams, {}, {}, {}, {}};
        model.gpu.branch_count = streams;
        for (size_t i = 0; i < count + 3; i++) {
            size_t marks = 0;
            const double begin = now_seconds();
            step([&] { clock.mark(marks++, model.gpu.stream); });
            if (i < 3) continue; // clocks and caches settle
            times.wall.push_back(now_seconds() - begin);
            times.forward.push_back(clock.seconds(1, 2));
            times.backward.push_back(clock.seconds(2, 3));
            times.update.push_back(clock.seconds(0, 1) + clock.seconds(3, 4));
        }
        return times;
    }
    // Seconds of every launcher's calls in a step, on one stream: an event before each, layer after layer as
    // in any step, the median over a few.
    std::map<std::string, double> time_launchers(Clock& clock, size_t count) {
        std::map<std::string, std::vector<double>> all;
        model.gpu.branch_count = 1;
        for (size_t i = 0; i < count; i++) {
            std::vector<std::string> names; // of what follows each mark; empty at the end of a pass
            model.gpu.before_launch = [&](const char* launcher) {
                clock.mark(names.size(), model.gpu.stream);
                names.push_back(launcher ? launcher : "");
            };
            step([] {});
            std::map<std::string, double> sums;
            for (size_t k = 0; k + 1 < names.size(); k++)
                if (!names[k].empty()) sums[names[k]] += clock.seconds(k, k + 1);
            for (const auto& [name, seconds] : sums) all[name].push_back(seconds);
        }
        model.gpu.before_launch = nullptr;
        std::map<std::string, double> medians;
        for (const auto& [name, seconds] : all) medians[name] = median(seconds);
        return medians;
    }
    double imbalance() const {
        double worst = 0;
        for (size_t l = 0; l < model.config.n_layer; l++) {
            const Experts e = model.experts(l);
            for (size_t j = 0; j < e.E; j++)
                worst =
                    std::max(worst, double(e.host_begin[j + 1] - e.host_begin[j]) * e.E / e.host_begin[e.E]);
        }
        return worst;
    }
};

static Measured measure(const std::string& preset, const Config& config, size_t B, const std::string& whose,
                        Clock& clock, const Settings& settings) {
    size_t before = 0, after = 0, total = 0;
    cuda_check(cudaMemGetInfo(&before, &total));
    Subject s(config, B, config.block_size, whose);
    cuda_check(cudaMemGetInfo(&after, &total));
    Measured m{preset,
               strf("%s, %s", config.moe() ? "MoE-X" : "dense twin",
                    s.model.by_hand ? "hand"
                    : s.model.fused ? "library"
                                    : "own"),
               config,
               B,
               config.block_size,
               {},
               double(before) - double(after),
               0,
               {},
               {}};
    m.design = {s.model.fused, s.model.keep_slots, 1, false, s.model.by_hand};
    for (const size_t streams : {size_t(1), Gpu::most_branches})
        m.steps.push_back(s.time_steps(clock, streams, size_t(settings.steps)));
    m.launchers = s.time_launchers(clock, size_t(std::max<int64_t>(3, settings.steps / 2)));
    m.imbalance = s.imbalance();
    return m;
}

// ---------------------------------------------------------------------------------------------------------
// The tables

// Whole steps: measured of one micro-batch, and reckoned of as many as the preset's steps have. Each model's
// are printed as soon as they are known.
static std::set<size_t> micros_of(const Preset& preset, size_t B) {
    return {1, std::max<size_t>(1, preset.rows / B)};
}
static void print_steps_header(const Preset& preset, size_t B, const Settings& settings) {
    printf(
        "\n%s: training steps, median of %lld; micro-batches of %zu x %zu tokens (more than one: reckoned, "
        "as many forwards and backwards, one update)\n",
        preset.name, (long long)settings.steps, B, preset.config.block_size);
    printf("  %-20s %5s %7s %9s %9s %9s %9s %9s %9s %7s %11s\n", "", "streams", "batches", "ms", "forward",
           "backward", "update", "tok/s", "TFLOP/s", "share", "memory");
}
static void print_steps(const Measured& m, const Preset& preset, const Card& card, JsonLines& json) {
    for (const size_t micros : micros_of(preset, m.B))
        for (const StepTimes& times : m.steps) {
            const double n = double(micros), seconds = times.of_step(n), forward = n * median(times.forward),
                         backward = n * median(times.backward), update = median(times.update);
            const double tok_s = n * double(m.B * m.T) / seconds, rate = n * m.flops() / seconds;
            printf("  %-20s %5zu %7zu %9.3f %9.3f %9.3f %9.3f %9s %9.1f %6.1f%% %11s\n", m.what.c_str(),
                   times.streams, micros, seconds * 1e3, forward * 1e3, backward * 1e3, update * 1e3,
                   human_count(tok_s).c_str(), rate / 1e12, 100 * rate / card.matrix,
                   human_bytes(m.memory).c_str());
            json.row(strf("\"row\": \"step\", \"preset\": \"%s\", \"model\": \"%s\", \"precision\": \"%s\", "
                          "\"batch\": %zu, \"streams\": %zu, \"micro_batches\": %zu, \"measured\": %s, "
                          "\"ms\": %.4f, \"forward_ms\": %.4f, \"backward_ms\": %.4f, \"update_ms\": %.4f, "
                          "\"tok_s\": %.1f, \"tflop_s\": %.3f, \"share\": %.4f, \"memory_bytes\": %.0f",
                          preset.name, m.what.c_str(), precision_name, m.B, times.streams, micros,
                          micros == 1 ? "true" : "false", seconds * 1e3, forward * 1e3, backward * 1e3,
                          update * 1e3, tok_s, rate / 1e12, rate / card.matrix, m.memory));
        }
    fflush(stdout);
}
static void print_ratios(const std::vector<Measured>& all, const Preset& preset, JsonLines& json) {
    for (const size_t micros : micros_of(preset, all[0].B)) {
        double fastest[2] = {INFINITY, INFINITY}; // of the MoE-X, of its dense twin
        for (const Measured& m : all)
            for (const StepTimes& times : m.steps) {
                double& best = fastest[!m.config.moe()];
                best = std::min(best, times.of_step(double(micros)));
            }
        printf("  MoE-X takes %.3f of its dense twin's time in steps of %zu micro-batch%s, each at its "
               "fastest\n",
               fastest[0] / fastest[1], micros, micros == 1 ? "" : "es");
        json.row(strf("\"row\": \"ratio\", \"preset\": \"%s\", \"precision\": \"%s\", \"batch\": %zu, "
                      "\"micro_batches\": %zu, \"moe_over_dense\": %.4f",
                      preset.name, precision_name, all[0].B, micros, fastest[0] / fastest[1]));
    }
}

// Every launcher: what it took beside what it must move and compute, and what was expected of it. Products
// say how many waves of tiles of 128 x 256 they are on this card.
static void print_launchers(const Measured& m, const Card& card, JsonLines& json) {
    const Config& c = m.config;
    const std::vector<Work> list = work_of_step(c, m.B, m.T, sizeof(floatX), m.design);
    // Marks that stand for nothing in this kind of model (a dense one has no experts' statistics) do no harm.
    std::set<std::string> known;
    for (const char* ffn : {"moe", "dense"})
        for (const Work& work : work_of_step(with_ffn(c, ffn), m.B, m.T, sizeof(floatX), m.design))
            known.insert(work.name);
    for (const auto& [name, seconds] : m.launchers)
        if (!known.count(name)) fail("%s: called in a step, but not counted in roofline.h", name.c_str());
    const std::string units = c.moe() ? strf("%zu experts of %zu units", c.n_expert, c.d_expert)
                                      : strf("%zu units", c.dense_width());
    printf("\n%s, %s, one stream: %zu layers, C %zu, T %zu, B %zu, V %zu, %s\n", m.preset.c_str(),
           m.what.c_str(), c.n_layer, c.n_embd, m.T, m.B, c.vocab_size, units.c_str());
    printf("  %-31s %5s %9s %9s %8s %7s %8s %6s %7s %6s %9s %9s\n", "", "calls", "us", "MB", "GFLOP", "GB/s",
           "TFLOP/s", "waves", "bound", "share", "expect us", "step, ms");
    double sum = 0;
    for (const Work& work : list) {
        const auto found = m.launchers.find(work.name);
        if (found == m.launchers.end())
            fail("%s: counted in roofline.h, but not called in a step", work.name);
        const double step = found->second, seconds = std::max(step / double(work.times), 1e-9);
        const double share = floor_seconds(work, card) / seconds, expected = expected_seconds(work, card);
        double waves = 0;
        for (const MatrixProduct& p : work.products) waves += tiles_of(p) / card.multiprocessors;
        printf("  %-31s %5zu %9.1f %9.1f %8.2f %7.0f %8.1f %6s %7s %5.0f%% %9.1f %9.3f\n", work.name,
               work.times, seconds * 1e6, work.bytes / 1e6, work.flops / 1e9, work.bytes / seconds / 1e9,
               work.flops / seconds / 1e12, waves > 0 ? strf("%.2f", waves).c_str() : "",
               bound_of(work, card), 100 * share, expected * 1e6, step * 1e3);
        json.row(
            strf("\"row\": \"launcher\", \"preset\": \"%s\", \"model\": \"%s\", \"precision\": \"%s\", "
                 "\"batch\": %zu, \"name\": \"%s\", \"part\": \"%s\", \"phase\": \"%s\", \"calls\": %zu, "
                 "\"us\": %.3f, \"bytes\": %.0f, \"flops\": %.0f, \"waves\": %.3f, \"bound\": \"%s\", "
                 "\"share\": %.4f, \"expected_us\": %.3f, \"step_ms\": %.4f",
                 m.preset.c_str(), m.what.c_str(), precision_name, m.B, work.name, work.part, work.phase,
                 work.times, seconds * 1e6, work.bytes, work.flops, waves, bound_of(work, card), share,
                 expected * 1e6, step * 1e3));
        sum += step;
    }
    printf("  all launchers %.3f ms", sum * 1e3);
    if (c.moe()) printf("; fullest expert: %.2f of the mean", m.imbalance);
    printf("\n");
}

// What the steps are spent on, by the events between the launchers.
static void print_parts(const std::vector<Measured>& all, JsonLines& json) {
    const std::vector<const char*> parts = {"experts",   "attention",  "linear",    "router", "gather",
                                            "LayerNorm", "classifier", "embedding", "update"};
    printf("\n%s: what a step of B %zu is spent on, ms, one stream\n  %-20s", all[0].preset.c_str(), all[0].B,
           "");
    for (const char* part : parts) printf(" %10s", part);
    printf("\n");
    for (const Measured& m : all) {
        std::map<std::string, double> of_part;
        double total = 0;
        for (const Work& w : work_of_step(m.config, m.B, m.T, sizeof(floatX), m.design)) {
            of_part[w.part] += m.launchers.at(w.name);
            total += m.launchers.at(w.name);
        }
        std::string fields;
        printf("  %-20s", m.what.c_str());
        for (const char* part : parts) {
            printf(" %10.3f", of_part[part] * 1e3);
            fields += strf(", \"%s\": %.4f", part, of_part[part] * 1e3);
        }
        printf("\n  %-20s", "");
        for (const char* part : parts) printf(" %9.1f%%", 100 * of_part[part] / total);
        printf("\n");
        json.row(strf("\"row\": \"parts\", \"preset\": \"%s\", \"model\": \"%s\", \"precision\": \"%s\", "
                      "\"batch\": %zu, \"unit\": \"ms\"%s",
                      m.preset.c_str(), m.what.c_str(), precision_name, m.B, fields.c_str()));
    }
}

// ---------------------------------------------------------------------------------------------------------

static Preset tiny_preset() {
    Preset p = presets()[0];
    p.name = "tiny";
    p.batch = 2;
    Config& c = p.config;
    c.n_layer = 2;
    c.n_head = 1;
    c.n_embd = 64;
    c.d_expert = 128;
    c.block_size = 65;
    c.vocab_size = 61;
    c.tokenizer = "";
    return p;
}

// What there is to know without a GPU. The formulas, of both models:
static void print_formulas(const Config& config) {
    printf("  %-31s %-44s %s\n", "", "bytes", "FLOP");
    std::set<std::string> printed;
    for (const char* ffn : {"moe", "dense"})
        for (const Work& w : work_of_step(with_ffn(config, ffn), 1, config.block_size, sizeof(floatX), {}))
            if (printed.insert(w.name).second)
                printf("  %-31s %-44s %s\n", w.name, w.bytes_formula, w.flops_formula);
}
// and the numbers of a preset.
static void print_counts(const Preset& p, size_t batch) {
    const Card card = h100_datasheet(fp32);
    const size_t T = p.config.block_size;
    const double N = double(batch * T), micros = std::max(1.0, std::floor(double(p.rows) / double(batch)));
    double steps[2][2] = {};
    for (const char* ffn : {"moe", "dense"}) {
        const Config c = with_ffn(p.config, ffn);
        printf("\n%s, %s, %s, a micro-batch of %zu x %zu\n", p.name, c.moe() ? "MoE-X" : "dense twin",
               precision_name, batch, T);
        printf("  %-31s %5s %7s %9s %9s %7s %11s %11s %10s\n", "", "calls", "kernels", "MB", "GFLOP", "bound",
               "at least us", "expected us", "step, ms");
        double least = 0, expected = 0, once = 0;
        size_t kernels = 0;
        for (const Work& w : work_of_step(c, batch, T, sizeof(floatX), {})) {
            const double all = double(w.times) * expected_seconds(w, card);
            printf("  %-31s %5zu %7zu %9.1f %9.2f %7s %11.1f %11.1f %10.3f\n", w.name, w.times, w.kernels,
                   w.bytes / 1e6, w.flops / 1e9, bound_of(w, card), floor_seconds(w, card) * 1e6,
                   expected_seconds(w, card) * 1e6, all * 1e3);
            least += double(w.times) * floor_seconds(w, card);
            kernels += w.times * w.kernels;
            expected += all;
            if (once_a_step(w)) once += all;
        }
        const double flops = flops_per_token(c, T) * N;
        printf("  %-31s %5s %7zu %9s %9.0f %7s %11.0f %11.0f %10.3f\n", "a step of one micro-batch", "",
               kernels, "", flops / 1e9, "", least * 1e6, expected * 1e6, expected * 1e3);
        for (const double n : {1.0, micros}) {
            const double seconds = n * (expected - once) + once;
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

// What several GPUs should make of a preset: of its steps, and of steps so large that each GPU has five
// micro-batches of the size that one would take.
static void print_scaling(const Preset& p, const Settings& settings, size_t gpus, size_t memory) {
    const Card card = h100_datasheet(fp32);
    const size_t T = p.config.block_size, G = gpus, M = size_t(settings.nodes), P = G * M;
    Sharing sharing;
    sharing.lanes = {P, M, G};
    const size_t alone = largest_batch(p.config, T, 0, p.rows, memory);
    printf("\n%s, %s, on %zu x %zu GPUs, as expected (roofline.h): nothing of this has been measured\n",
           p.name, precision_name, M, G);
    printf("  %12s %5s %7s %6s %9s %9s %11s %9s %9s %9s\n", "rows, a step", "B", "rounds", "busy", "reduce",
           "gather", "step, ms", "exposed", "tok/s", "of ideal");
    const size_t asked = size_t(settings.rows);
    for (const size_t rows : asked ? std::vector{asked} : std::vector{p.rows, 5 * P * alone}) {
        const size_t B = settings.batch > 0 ? size_t(settings.batch)
                                            : largest_batch(p.config, T, 0, rows, memory, sharing);
        const size_t A = rows / B;
        if (A < P) {
            printf("  %12zu %5zu  too few micro-batches for %zu GPUs\n", rows, B, P);
            continue;
        }
        const ScaledStep s = scaled_step(p.config, B, T, A, sizeof(floatX), card, sharing.lanes, {});
        printf("  %12zu %5zu %7zu %5.0f%% %9.2f %9.2f %11.2f %9.2f %9s %8.0f%%\n", rows, B,
               sharing.lanes.rounds(A), 100 * sharing.lanes.busy(A), s.reduce * 1e3, s.gather * 1e3,
               s.step * 1e3, s.step_exposed * 1e3, human_count(double(rows * T) / s.step).c_str(),
               100 * s.alone / (double(P) * s.step));
    }
}

static void bench(const Preset& p, size_t batch, const Card& card, Clock& clock, const Settings& settings,
                  JsonLines& json) {
    std::vector<Measured> all;
    print_steps_header(p, batch, settings);
    for (const char* ffn : {"moe", "dense"})
        for (const char* whose : {"library", "own", "hand"}) {
            all.push_back(measure(p.name, with_ffn(p.config, ffn), batch, whose, clock, settings));
            print_steps(all.back(), p, card, json);
        }
    print_ratios(all, p, json);
    for (const Measured& m : all) print_launchers(m, card, json);
    print_parts(all, json);
}

// ---------------------------------------------------------------------------------------------------------
// Several GPUs, each a process: what the trainer sends in a step, piece by piece and nothing beside it.

// What of NCCL decides about its memory and, with fast connections, about its speed; read when it is opened.
constexpr const char* channels_variable = "NCCL_MAX_P2P_NCHANNELS";

// Time of the slowest GPU for one step's reduce or gather of a model.
static void print_exchange(const char* what, const Preset& p, const Exchange& exchange, double numbers,
                           double bytes, Clock& clock, const Settings& settings, JsonLines& json,
                           const std::function<void()>& run) {
    const Lanes& lanes = exchange.sharing.lanes;
    exchange.add({0}, nullptr); // all begin together
    const cudaStream_t stream = exchange.stream.get();
    const double seconds =
        exchange.largest(clock.time(stream, size_t(settings.steps), [&](size_t) { run(); }));
    const double sent = exchange_seconds(numbers, bytes, lanes, {1, 1});
    const double expected = exchange_seconds(numbers, bytes, lanes, {});
    printf("  %-9s %-7s %10s %10.3f %9.2f %13.3f\n", p.name, what, human_bytes(sent).c_str(), seconds * 1e3,
           sent / seconds * 1e-9, expected * 1e3);
    json.row(strf("\"exchange\":\"%s\",\"preset\":\"%s\",\"machines\":%zu,\"gpus\":%zu,\"channels\":%lld,"
                  "\"bytes\":%.0f,\"seconds\":%.6e,\"expected\":%.6e",
                  what, p.name, lanes.machines, lanes.per_machine, (long long)settings.channels, sent,
                  seconds, expected));
}

static void bench_exchange(const Preset& p, Exchange& exchange, Clock& clock, const Settings& settings,
                           JsonLines& json) {
    const std::vector<Tensor> table = gpu_tensor_table(p.config);
    const std::vector<Piece> pieces = pieces_of_table(p.config, table, exchange.sharing);
    const size_t count = block_elements(table);
    const Block<float> gradients(count);
    const Block<floatX> weights(count);
    gradients.zero();
    weights.zero();
    exchange.received = Block<float>(largest_exchange(pieces, exchange.sharing));
    const cudaStream_t stream = exchange.stream.get();
    print_exchange("reduce", p, exchange, double(count), sizeof(float), clock, settings, json, [&] {
        for (auto piece = pieces.rbegin(); piece != pieces.rend(); ++piece)
            exchange.reduce(gradients.data, piece->all, stream);
    });
    print_exchange("gather", p, exchange, double(count), sizeof(floatX), clock, settings, json, [&] {
        for (const Piece& piece : pieces) exchange.gather(weights.data, sizeof(floatX), piece.all, stream);
    });
}

// A rank of a run on several GPUs.
static int bench_ranks(Ranks& ranks, const std::vector<Preset>& chosen, const Settings& settings) {
    if (settings.channels > 0)
        setenv(channels_variable, strf("%lld", (long long)settings.channels).c_str(), 1);
    const std::string version = Network::version(); // or an error, before anything is taken
    const UsedGpu gpu = use_gpu(ranks);
    Hello hello;
    hello.gpu = gpu.bus;
    hello.kind = gpu.name;
    hello.agree = {{"--preset", settings.preset},
                   {"--steps", strf("%lld", (long long)settings.steps)},
                   {"--channels", strf("%lld", (long long)settings.channels)},
                   {"the program", strf("bench_gpu %s, %s", precision_name, version.c_str())}};
    if (ranks.rank == 0) hello.id = Network::new_id();
    const std::string id = ranks.meet(hello);
    Exchange exchange;
    exchange.sharing.lanes = {size_t(ranks.size), size_t(ranks.machines),
                              size_t(ranks.size / ranks.machines)};
    exchange.sharing.place = size_t(ranks.place);
    const double network = open_network(exchange, id, 0);
    ranks.watch([network = exchange.network] { return network.error(); });
    const char* const most = getenv(channels_variable);
    printf("\n%s\n%d x %zu GPUs (%s), %s, %s=%s: it takes %s of each GPU\n", gpu.text.c_str(), ranks.machines,
           exchange.sharing.lanes.per_machine, ranks.launcher.c_str(), version.c_str(), channels_variable,
           most ? most : "", human_bytes(network).c_str());
    JsonLines json;
    if (ranks.rank == 0 && !settings.json.empty()) json.open(settings.json, "a");
    json.row(strf("\"network\":\"%s\",\"channels\":%lld,\"bytes\":%.0f", version.c_str(),
                  (long long)settings.channels, network));
    printf("  %-9s %-7s %10s %10s %9s %13s\n", "preset", "", "each sends", "ms", "GB/s", "expected, ms");
    Clock clock(settings.tiny ? 1 << 10 : size_t(1) << 28);
    for (const Preset& p : chosen) bench_exchange(p, exchange, clock, settings, json);
    ranks.watch(nullptr);
    ranks.finish(0);
    return 0;
}

// Starts the ranks, once for each number of channels. NCCL asks for it once in the life of a process, and one
// that has started ranks is set up for them: each time is a process of its own.
static int start_ranks(const RankFlags& flags, const std::vector<Preset>& chosen, const Settings& settings,
                       bool starts, char** argv) {
    const auto run = [&](char** arguments) {
        return run_ranks(flags, arguments, &stop_signal,
                         [&](Ranks& ranks) { return bench_ranks(ranks, chosen, settings); });
    };
    if (starts && !settings.json.empty()) JsonLines().open(settings.json); // the ranks add to it
    if (!starts || settings.channels > 0) return run(argv);
    for (const char* channels : {"8", "16", "32"}) {
        std::vector<char*> arguments;
        for (char** a = argv; *a; a++) arguments.push_back(*a);
        for (const char* a : {"--channels", channels}) arguments.push_back(const_cast<char*>(a));
        arguments.push_back(nullptr);
        fflush(nullptr);
        const pid_t pid = fork();
        if (pid < 0) fail("a process cannot be started: %s", strerror(errno));
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGTERM); // it ends its ranks
            exit(run_main([&] { return run(arguments.data()); }));
        }
        int status = 0;
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
        }
        if (status != 0) return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    return 0;
}

int main(int argc, char** argv) {
    return run_main([&] {
        Settings settings;
        Options options("bench_gpu", "Measures the CUDA program beside what this card can do.");
        options.add(0, "preset", &settings.preset, {"both", "chess", "small", "medium", "demo"},
                    "sizes; both: small and chess");
        options.add(0, "batch", "N", &settings.batch, 0, 100000,
                    "rows of a micro-batch; 0: the most that fit and make 64K tokens, then the preset's");
        options.add(0, "steps", "N", &settings.steps, 1, 100000, "steps of each model");
        options.add(0, "json", "FILE", &settings.json, "write every row as a line of JSON, too");
        options.add(0, "count", &settings.count, "only count bytes and FLOPs, for an H100; needs no GPU");
        options.add(0, "tiny", &settings.tiny, "models of a few hundred tokens, to see that it runs");
        RankFlags rank_flags;
        rank_flags.declare(options);
        options.add(0, "channels", "N", &settings.channels, 0, 32,
                    "of NCCL between two GPUs (0: with --gpus 8, 16 and 32 in turn, else the trainer's)");
        options.add(0, "nodes", "M", &settings.nodes, 1, 1024, "with --count: machines of --gpus each");
        options.add(0, "rows", "N", &settings.rows, 0, 100000000,
                    "with --count: of a step (0: the preset's)");
        if (!options.parse(argc, argv)) return 0;
        std::vector<Preset> chosen;
        if (settings.tiny)
            chosen = {tiny_preset()};
        else
            for (const char* name : {"small", "chess", "medium", "demo"})
                if (settings.preset == name ||
                    (settings.preset == "both" && (!strcmp(name, "chess") || !strcmp(name, "small"))))
                    chosen.push_back(*find_preset(name));
        size_t memory = 80'000'000'000; // of an H100, unless there is a card to ask
        const auto batches = [&](const Preset& p) {
            if (settings.batch > 0) return std::vector<size_t>{size_t(settings.batch)};
            const size_t large =
                settings.tiny ? 0 : largest_batch(p.config, p.config.block_size, 0, p.rows, memory);
            if (large <= p.batch) return std::vector<size_t>{p.batch};
            return std::vector<size_t>{large, p.batch};
        };
        const size_t gpus = size_t(std::max<int64_t>(1, rank_flags.gpus));
        if (!settings.count && settings.nodes > 1)
            fail_usage("--nodes is of --count; several machines are measured by --gpus with --node I/%lld "
                       "--master HOST:PORT on each, or by torchrun, mpirun, srun",
                       (long long)settings.nodes);
        if (settings.count && gpus * size_t(settings.nodes) > 1) {
            for (const Preset& p : chosen) print_scaling(p, settings, gpus, memory);
            return 0;
        }
        if (settings.count) {
            print_formulas(chosen[0].config);
            for (const Preset& p : chosen)
                for (const size_t batch : batches(p)) print_counts(p, batch);
            return 0;
        }
        const RankIdentity id = rank_identity(rank_flags, [](const char* name) { return getenv(name); });
        if (id.size > 1 || id.starts > 1)
            return start_ranks(rank_flags, chosen, settings, id.starts > 0, argv);
        JsonLines json;
        if (!settings.json.empty()) json.open(settings.json);
        const UsedGpu gpu = use_gpu(Ranks());
        memory = gpu.free;
        printf("%s\n", gpu.text.c_str());
        Clock clock(settings.tiny ? 1 << 10 : size_t(1) << 30);
        const Card card = measure_card(clock, settings, json);
        for (const Preset& p : chosen)
            for (const size_t batch : batches(p)) bench(p, batch, card, clock, settings, json);
        return 0;
    });
}
