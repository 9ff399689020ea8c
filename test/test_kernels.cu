// Every kernel of train_moex.cu by itself, through its launcher, against the reference in double: fresh
// random inputs, outputs that start as NaN, ragged sizes, and each launch twice, for the bits must not
// change. Inputs are rounded to the precision of the build before the reference sees them, so what may differ
// is what the kernel itself rounds; the tolerance of a check says how often that is. Runs on a GPU (make
// test-gpu) or under dev/emu (make test). MOEX_TEST_VERBOSE=1 prints every error beside its tolerance.
#define MOEX_LIBRARY
#include "../dev/run/routing.h"
#include "../train_moex.cu"
#include "check.h"
#include "reference.h"

// ---------------------------------------------------------------------------------------------------------
// Helpers

using Numbers = std::vector<double>;

// Relative errors: of sums in fp32, which is all that a result in fp32 goes through; of a result in floatX
// that is rounded once (to bf16, by at most 2^-8); of one with another rounding on its way.
constexpr bool bf16 = sizeof(floatX) == 2;
constexpr double fp32_sum = 1e-5, rounded = bf16 ? 4e-3 : fp32_sum, rounded_twice = bf16 ? 8e-3 : fp32_sum;

// Numbers on the GPU, alone in their allocation so that a sanitizer sees who leaves it, and what they are
// before the launch: NaN where they are to be written, numbers where they are read or added to.
template <class T> struct Array {
    std::vector<T> initial;
    Block<T> gpu;

    explicit Array(size_t count) : initial(count), gpu(count) {
        if (count) memset((void*)initial.data(), 0xff, count * sizeof(T));
        restore();
    }
    explicit Array(std::vector<T> numbers) : initial(std::move(numbers)), gpu(initial.size()) { restore(); }
    void restore() const { gpu.upload(initial.data(), initial.size()); }
    std::vector<T> result() const {
        std::vector<T> now(initial.size());
        gpu.download(now.data(), now.size());
        return now;
    }
    Numbers before() const { return Numbers(initial.begin(), initial.end()); }
    Numbers after() const {
        const std::vector<T> now = result();
        return Numbers(now.begin(), now.end());
    }
    std::string bits() const {
        const std::vector<T> now = result();
        return std::string((const char*)now.data(), now.size() * sizeof(T));
    }
    bool untouched() const {
        return bits() == std::string((const char*)initial.data(), initial.size() * sizeof(T));
    }
    operator T*() const { return gpu.data; }
};

// Random numbers, other ones at every call.
static uint64_t calls = 0;

template <class T> Array<T> normals(size_t count, double scale = 1, double mean = 0) {
    std::vector<T> numbers(count);
    calls++;
    for (size_t i = 0; i < count; i++) numbers[i] = T(float(mean + scale * random_normal(5, calls, i)));
    return Array<T>(numbers);
}
// Positive ones, with the given mean.
static Array<float> variances(size_t count, double mean) {
    std::vector<float> numbers(count);
    calls++;
    for (size_t i = 0; i < count; i++) numbers[i] = float(2 * mean * random_uniform(5, calls, i));
    return Array<float>(numbers);
}
static std::vector<int> integers(size_t count, size_t below) {
    std::vector<int> numbers(count);
    calls++;
    for (size_t i = 0; i < count; i++) numbers[i] = int(random_u64(5, calls, i) % below);
    return numbers;
}
template <class T> Array<T> to_gpu(const Numbers& numbers) {
    std::vector<T> narrow(numbers.size());
    for (size_t i = 0; i < numbers.size(); i++) narrow[i] = T(float(numbers[i]));
    return Array<T>(narrow);
}

// Launches twice, with all that is written given anew, scratch included, and wants the same bits.
template <class Launch, class... Written>
void run(const std::string& what, Launch launch, const Written&... written) {
    std::vector<std::string> bits[2];
    for (std::vector<std::string>& all : bits) {
        (written.restore(), ...);
        launch();
        cuda_check(cudaDeviceSynchronize());
        (all.push_back(written.bits()), ...);
    }
    check(bits[0] == bits[1], "%s: two launches, two results", what.c_str());
}

// |got - expected| / |expected| <= tolerance, by the norms; and no number is further off than ten times that,
// measured by its own size and the typical one: a wrong number does not hide among a million right ones.
// False when anything is NaN.
static void compare(const std::string& what, const Numbers& got, const Numbers& expected, double tolerance) {
    if (!check(got.size() == expected.size(), "%s: %zu numbers", what.c_str(), got.size())) return;
    double error = 0, size = 0;
    for (size_t i = 0; i < got.size(); i++) {
        error += (got[i] - expected[i]) * (got[i] - expected[i]);
        size += expected[i] * expected[i];
    }
    const double typical = std::sqrt(size / got.size());
    size_t wrong = 0;
    while (wrong < got.size() &&
           std::fabs(got[wrong] - expected[wrong]) <= 10 * tolerance * (std::fabs(expected[wrong]) + typical))
        wrong++;
    const bool all = wrong == got.size();
    check(all && error <= tolerance * tolerance * size, "%s: relative error %.3g, expected %g%s",
          what.c_str(), std::sqrt(error / size), tolerance,
          all ? "" : strf("; [%zu] is %.9g, expected %.9g", wrong, got[wrong], expected[wrong]).c_str());
    if (getenv("MOEX_TEST_VERBOSE"))
        printf("%-64s %.1e of %.1e\n", what.c_str(), size ? std::sqrt(error / size) : error, tolerance);
}
template <class T>
void compare(const std::string& what, const Array<T>& got, const Numbers& expected, double tolerance) {
    compare(what, got.after(), expected, tolerance);
}
static bool all_nan(const Numbers& numbers) {
    return std::all_of(numbers.begin(), numbers.end(), [](double x) { return x != x; });
}
static bool none_nan(const Numbers& numbers) {
    return std::none_of(numbers.begin(), numbers.end(), [](double x) { return x != x; });
}
static Numbers rows_of(const Numbers& all, size_t first, size_t count, size_t C) {
    return Numbers(all.begin() + first * C, all.begin() + (first + count) * C);
}

// Only the emulator can be told to refuse things.
static bool emulated() {
    cudaDeviceProp properties;
    cuda_check(cudaGetDeviceProperties(&properties, 0));
    return strstr(properties.name, "emulat") != nullptr;
}

const size_t token_counts[] = {1, 31, 63, 64, 65, 127, 1023}, channel_counts[] = {8, 64, 136, 256, 768};

// ---------------------------------------------------------------------------------------------------------
// Sums over a warp

__global__ void warp_sums_kernel(float* one_by_one, float* by_lane, const float* x) {
    float numbers[4][8];
    for (int i = 0; i < warp_size; i++) numbers[i / 8][i % 8] = x[threadIdx.x * warp_size + i];
    for (int i = 0; i < warp_size; i++) {
        const float sum = warp_sum(numbers[i / 8][i % 8]);
        if (int(threadIdx.x) == i) one_by_one[i] = sum;
    }
    by_lane[threadIdx.x] = sums_by_lane(numbers);
}
static void test_warp_sums(Gpu& gpu) {
    const Array<float> x = normals<float>(warp_size * warp_size), one_by_one(warp_size), by_lane(warp_size);
    warp_sums_kernel<<<1, warp_size, 0, gpu.stream>>>(one_by_one, by_lane, x);
    const Numbers numbers = x.before();
    Numbers expected(warp_size);
    for (size_t i = 0; i < numbers.size(); i++) expected[i % warp_size] += numbers[i];
    compare("sums over a warp", one_by_one, expected, fp32_sum);
    check(by_lane.bits() == one_by_one.bits(), "sums over a warp by lane: other bits");
}

// ---------------------------------------------------------------------------------------------------------
// Partial sums, launches

static void test_sum_partials(Gpu& gpu) {
    for (const size_t parts : {1, 7, 31, 32, 33, 264})
        for (const size_t count : {1, 31, 32, 33, 1000})
            for (const bool accumulate : {false, true}) {
                const size_t G = parts % 3 + 1, sums = count % 3 + 1, stride = sums * count + 5;
                const std::string what = strf("sum_partials %zu x %zu x %zu x %zu", G, parts, sums, count);
                Array<float> partial = normals<float>(G * parts * stride);
                std::vector<Array<float>> out;
                std::vector<Numbers> expected;
                SumsOut to = {};
                for (size_t i = 0; i < sums; i++) {
                    out.push_back(accumulate ? normals<float>(G * count) : Array<float>(G * count));
                    expected.push_back(accumulate ? out[i].before() : Numbers(G * count));
                    to.out[i] = out[i];
                }
                if (sums == 3) to.out[1] = nullptr; // not wanted
                for (size_t row = 0; row < G * parts; row++)
                    for (size_t i = 0; i < stride; i++) {
                        float& x = partial.initial[row * stride + i];
                        if (i < sums * count)
                            expected[i / count][row / parts * count + i % count] += x;
                        else
                            x = NAN; // belongs to another sum
                    }
                partial.restore();
                auto launch = [&] {
                    sum_partials(to, partial, G, parts, stride, count, accumulate, gpu.stream);
                };
                run(what, launch, out[0], out[sums - 1]);
                for (size_t i = 0; i < sums; i++)
                    if (to.out[i])
                        compare(what, out[i], expected[i], fp32_sum);
                    else
                        check(out[i].untouched(), "%s: a sum that was not wanted", what.c_str());
            }
    check_error(blocks_for(size_t(1) << 40, 256), "--batch");
}

// ---------------------------------------------------------------------------------------------------------
// LayerNorm

// A LayerNorm of N rows with its outputs poisoned, and the check of it: from x (N,C), the sums as stored.
struct NormTest {
    size_t N, C;
    Array<floatX> out, weight, bias;
    Array<float> mean, rstd;
    NormTest(size_t N, size_t C)
        : N(N), C(C), out(N * C), weight(normals<floatX>(C, 0.3, 1)), bias(normals<floatX>(C)), mean(N),
          rstd(N) {}
    Norm norm() const { return {out, mean, rstd, weight, bias, nullptr, nullptr, N, int(C)}; }
    void compare_from(const std::string& what, const Numbers& x) const {
        Numbers o(N * C), m(N), r(N);
        reference::layernorm_forward(o.data(), m.data(), r.data(), x.data(), weight.before().data(),
                                     bias.before().data(), N, C);
        compare(what + " out", out, o, rounded);
        compare(what + " mean", mean, m, fp32_sum);
        compare(what + " rstd", rstd, r, fp32_sum);
    }
};

static void test_layernorm(Gpu& gpu) {
    auto test = [&](size_t N, size_t C) {
        const std::string what = strf("residual_layernorm_forward N %zu C %zu", N, C);
        const NormTest norm(N, C);
        Array<floatX> x = normals<floatX>(N * C, 0.5, 3), y = normals<floatX>(N * C, 2);
        if (N > 1) { // a row without variance
            std::fill_n(x.initial.begin() + C, C, floatX(2.0f)),
                std::fill_n(y.initial.begin() + C, C, floatX(1.0f));
            x.restore(), y.restore();
        }
        const Array<floatX> out(N * C);
        run(
            what, [&] { residual_layernorm_forward(out, norm.norm(), x, y, gpu.stream); }, out, norm.out,
            norm.mean, norm.rstd);
        Numbers sum = x.before();
        const Numbers added = y.before();
        for (size_t i = 0; i < N * C; i++) sum[i] += added[i];
        compare(what, out, sum, rounded);
        norm.compare_from(what, out.after());
        run(
            what, [&] { residual_layernorm_forward(nullptr, norm.norm(), x, nullptr, gpu.stream); }, norm.out,
            norm.mean, norm.rstd);
        norm.compare_from(what + " without y", x.before());
    };
    for (const size_t N : token_counts)
        for (const size_t C : channel_counts) test(N, C);
    test(3, most_channels);

    // A row that is not a number makes no other so.
    const size_t N = 9, C = 64;
    const NormTest norm(N, C);
    Array<floatX> x = normals<floatX>(N * C);
    x.initial[4 * C + 7] = floatX(NAN);
    x.restore();
    residual_layernorm_forward(nullptr, norm.norm(), x, nullptr, gpu.stream);
    const Numbers out = norm.out.after();
    check(all_nan(rows_of(out, 4, 1, C)) && none_nan(rows_of(out, 0, 4, C)) &&
          none_nan(rows_of(out, 5, 4, C)));
}

static void test_layernorm_backward(Gpu& gpu) {
    auto test = [&](size_t N, size_t C) {
        const std::string what = strf("layernorm_backward N %zu C %zu", N, C);
        const Array<floatX> x = normals<floatX>(N * C, 1, 0.5), weight = normals<floatX>(C, 0.3, 1),
                            dout = normals<floatX>(N * C);
        Numbers out(N * C), m(N), r(N);
        reference::layernorm_forward(out.data(), m.data(), r.data(), x.before().data(),
                                     weight.before().data(), weight.before().data(), N, C);
        const Array<float> mean = to_gpu<float>(m), rstd = to_gpu<float>(r);
        const Array<floatX> dx = normals<floatX>(N * C);
        const Array<float> dweight = normals<float>(C), dbias = normals<float>(C), dsum = normals<float>(C);
        const Array<float> partial(layernorm_blocks * layernorm_sums * C);
        const Norm norm = {nullptr, mean, rstd, weight, nullptr, dweight, dbias, N, int(C)};
        const bool with_sum = N != 64;
        run(
            what,
            [&] {
                layernorm_backward(dx, with_sum ? (float*)dsum : nullptr, norm, dout, x, partial, gpu.stream);
            },
            dx, dweight, dbias, dsum, partial);
        if (with_sum) {
            Numbers rdsum = dsum.before();
            const std::vector<int32_t> rows = {0, int32_t(N)};
            reference::add_column_sums(rdsum.data(), dx.after().data(), rows.data(), 1, C);
            compare(what + " dsum", dsum, rdsum, fp32_sum);
        } else {
            check(dsum.untouched(), "%s: a sum that was not wanted", what.c_str());
        }
        Numbers rdx = dx.before(), rdweight = dweight.before(), rdbias = dbias.before();
        reference::layernorm_backward(rdx.data(), rdweight.data(), rdbias.data(), dout.before().data(),
                                      x.before().data(), mean.before().data(), rstd.before().data(),
                                      weight.before().data(), N, C);
        compare(what + " dx", dx, rdx, rounded);
        compare(what + " dweight", dweight, rdweight, fp32_sum);
        compare(what + " dbias", dbias, rdbias, fp32_sum);
    };
    for (const size_t N : token_counts)
        for (const size_t C : channel_counts) test(N, C);
    test(4000, 8); // more rows than all blocks take at once
    test(3, most_channels);
    for (int c = 0; c < 5000; c++)
        check(channel_of_place(place_of_channel(c)) == c && place_of_channel(channel_of_place(c)) == c &&
              place_of_channel(c) / run_channels == c / run_channels);
    for (int i = 0; i < pack; i++) // the lanes of a warp, at the same number of their packs, side by side
        for (int lane = 0; lane < warp_size; lane++)
            check(place_of_channel(lane * pack + i) == i * warp_size + lane);
}

// ---------------------------------------------------------------------------------------------------------
// Embedding, bias

static void test_embedding(Gpu& gpu) {
    struct Case {
        size_t B, T, C, V;
    };
    for (const Case& c : std::vector<Case>{{1, 1, 8, 32},
                                           {3, 21, 64, 32},
                                           {1, 64, 136, 257},
                                           {5, 13, 256, 1000},
                                           {1, 1023, 768, 32},
                                           {33, 31, 8, 50257}})
        for (const char* tokens_are : {"random", "one", "first and last", "distinct"}) {
            const size_t B = c.B, T = c.T, C = c.C, V = c.V, N = B * T, block_size = T + 2;
            if (tokens_are == std::string("distinct") && N > V) continue;
            const std::string what = strf("embedding %zu x %zu, C %zu, V %zu, %s", B, T, C, V, tokens_are);
            std::vector<int> tokens = integers(N, V);
            for (size_t n = 0; n < N; n++)
                tokens[n] = tokens_are == std::string("random")           ? tokens[n]
                            : tokens_are == std::string("one")            ? int(V / 2)
                            : tokens_are == std::string("first and last") ? int(tokens[n] % 2 * (V - 1))
                                                                          : int((n * 7 + 3) % N);
            if (tokens_are == std::string("distinct") && N % 7 == 0)
                for (size_t n = 0; n < N; n++) tokens[n] = int(N - 1 - n);

            const Array<int> on_gpu(tokens);
            const Array<floatX> wte = normals<floatX>(V * C), wpe = normals<floatX>(block_size * C),
                                out(N * C);
            const NormTest norm(N, C);
            run(
                what,
                [&] {
                    embedding_layernorm_forward(out, norm.norm(), on_gpu, wte, wpe, nullptr, T, gpu.stream);
                },
                out, norm.out, norm.mean, norm.rstd);
            Numbers expected(N * C);
            reference::embedding_forward(expected.data(), tokens.data(), wte.before().data(),
                                         wpe.before().data(), B, T, C);
            compare(what, out, expected, rounded);
            norm.compare_from(what, out.after());
            const Array<float> hidden(std::vector<float>{NAN});
            const Array<floatX> poisoned(N * C);
            embedding_layernorm_forward(poisoned, norm.norm(), on_gpu, wte, wpe, hidden, T, gpu.stream);
            check(all_nan(poisoned.after()) && all_nan(norm.out.after()));

            Config config; // a model only to sort the tokens, as upload_batch() does
            config.n_layer = 1, config.n_head = C / 8, config.n_embd = C, config.vocab_size = V;
            config.block_size = block_size, config.ffn = "dense", config.d_expert = 8;
            Model model(config, B, T, 0, false);
            upload_batch(model, tokens.data(), nullptr, B, T, true);
            cuda_check(cudaStreamSynchronize(model.gpu.stream));
            const Array<float> dwte = normals<float>(V * C), dwpe = normals<float>(block_size * C),
                               partial(model.places.chunks * C);
            check(partial.initial.size() <= model.shape().partial());
            const Array<floatX> dout = normals<floatX>(N * C);
            run(
                what,
                [&] { embedding_backward(dwte, dwpe, partial, dout, model.places, B, T, C, gpu.stream); },
                dwte, dwpe, partial);
            Numbers rdwte = dwte.before(), rdwpe = dwpe.before();
            reference::embedding_backward(rdwte.data(), rdwpe.data(), dout.before().data(), tokens.data(), B,
                                          T, C);
            compare(what + " dwte", dwte, rdwte, fp32_sum);
            compare(what + " dwpe", dwpe, rdwpe, fp32_sum);
        }
}

static void test_bias_backward(Gpu& gpu) {
    auto test = [&](const std::vector<int>& begin, size_t M) {
        const size_t G = begin.size() - 1, rows = begin.back();
        const std::string what = strf("bias_backward G %zu rows %zu M %zu", G, rows, M);
        const Array<int> groups(begin);
        const Array<floatX> dout = normals<floatX>(rows * M, 1, 0.3);
        const Array<float> dbias = normals<float>(G * M), partial(bias_parts(rows, G) * M);
        run(
            what, [&] { bias_backward(dbias, partial, dout, groups, rows, G, M, gpu.stream); }, dbias,
            partial);
        Numbers expected = dbias.before();
        reference::add_column_sums(expected.data(), dout.before().data(), begin.data(), G, M);
        compare(what, dbias, expected, fp32_sum);
    };
    for (const size_t N : token_counts)
        for (const size_t M : {8, 136, 768, 2304}) test({0, int(N)}, M);
    test({0, 0, 5, 5, 70, 70}, 136);
    test({0, 0, 0, 1023}, 64);
    test({0, 1023, 1023, 1023, 1023, 1023, 1023, 1023, 1023}, 64);
    std::vector<int> many = {0}; // more groups than chunks
    for (int j = 0; j < 100; j++) many.push_back(many.back() + j % 7);
    test(many, 72);
}

// ---------------------------------------------------------------------------------------------------------
// Attention

// Forward and backward, by way of the launcher that chooses (tensor cores, where they serve the head size) or
// of the plain one. The tensor cores take P and dS rounded to bf16.
static void test_attention(Gpu& gpu, size_t B, size_t T, size_t NH, size_t HS, bool plain) {
    const size_t C = NH * HS, N = B * T;
    const std::string what =
        strf("attention%s B %zu T %zu NH %zu HS %zu", plain ? "_plain" : "", B, T, NH, HS);
    const Array<floatX> qkv = normals<floatX>(N * 3 * C, 1.5), out(N * C), dqkv(N * 3 * C);
    const Array<float> lse(B * NH * T), delta(B * NH * T);
    run(
        what,
        [&] {
            (plain ? attention_forward_plain : attention_forward)(out, lse, qkv, B, T, C, NH, gpu.stream);
        },
        out, lse);
    Numbers rout(N * C), rlse(B * NH * T), rdqkv(N * 3 * C);
    reference::attention_forward(rout.data(), rlse.data(), qkv.before().data(), B, T, C, NH);
    compare(what + " out", out, rout, rounded_twice);
    compare(what + " lse", lse, rlse, fp32_sum);

    const Array<floatX> dout = normals<floatX>(N * C), forward_out = to_gpu<floatX>(rout);
    const Array<float> forward_lse = to_gpu<float>(rlse);
    run(
        what,
        [&] {
            (plain ? attention_backward_plain : attention_backward)(
                dqkv, delta, dout, forward_out, forward_lse, qkv, B, T, C, NH, gpu.stream);
        },
        dqkv, delta);
    reference::attention_backward(rdqkv.data(), dout.before().data(), forward_out.before().data(),
                                  forward_lse.before().data(), qkv.before().data(), B, T, C, NH);
    compare(what + " dqkv", dqkv, rdqkv, rounded_twice);
}

static void test_attentions(Gpu& gpu) {
    for (const size_t T : {1, 31, 63, 64, 65, 127, 129}) {
        test_attention(gpu, 2, T, 2, 32, false);
        test_attention(gpu, 1, T, 2, 64, false);
        test_attention(gpu, 1, T, 1, 128, false);
        test_attention(gpu, 1, T, 2, T % 2 ? 24 : 8, false); // no tensor cores for these
        test_attention(gpu, 2, T, 1, 64, true);
    }
    test_attention(gpu, 1, 65, 2, 80, false);
    test_attention(gpu, 1, 33, 1, 256, false);
    test_attention(gpu, 3, 40, 3, 32, false);
    for (const size_t HS : {32, 64, 128}) test_attention(gpu, 1, 1023, 1, HS, false);
    test_attention(gpu, 1, 300, 1, 128, false);
    check_error(attention_forward(nullptr, nullptr, nullptr, 1, 8, 1024, 2, gpu.stream),
                "heads of 512 channels");
}

// ---------------------------------------------------------------------------------------------------------
// Expert statistics

static void test_expert_statistics(Gpu& gpu) {
    struct Case {
        size_t E, D, C;
    };
    for (const Case& c : std::vector<Case>{
             {1, 8, 8}, {2, 1, 64}, {3, 24, 136}, {8, 72, 256}, {9, 257, 64}, {40, 64, 8}, {2, 1000, 768}}) {
        const size_t E = c.E, D = c.D, C = c.C;
        const std::string what = strf("expert_statistics E %zu D %zu C %zu", E, D, C);
        // Means far from zero: a variance from sums of squares would be lost.
        const Array<floatX> w_enc = normals<floatX>(E * D * C, 0.2, 2),
                            b_enc = normals<floatX>(E * D, 0.1, -1);
        const Array<float> m(E * C), v(E * C), mb(E), vb(E);
        run(
            what,
            [&] {
                expert_statistics_forward({m, v, mb, vb}, w_enc, b_enc, E, D, C, gpu.stream);
            },
            m, v, mb, vb);
        Numbers rm(E * C), rv(E * C), rmb(E), rvb(E);
        reference::expert_statistics_forward(rm.data(), rv.data(), rmb.data(), rvb.data(),
                                             w_enc.before().data(), b_enc.before().data(), E, D, C);
        compare(what + " m", m, rm, fp32_sum);
        compare(what + " mb", mb, rmb, fp32_sum);
        compare(what + " v", v, rv, fp32_sum);
        compare(what + " vb", vb, rvb, fp32_sum);

        const Array<float> dm = normals<float>(E * C), dv = normals<float>(E * C), dmb = normals<float>(E),
                           dvb = normals<float>(E), means = to_gpu<float>(rm),
                           bias_means = to_gpu<float>(rmb);
        const Array<float> dw_enc = normals<float>(E * D * C, 1.0 / D),
                           db_enc = normals<float>(E * D, 1.0 / D);
        run(
            what,
            [&] {
                expert_statistics_backward(dw_enc, db_enc, {dm, dv, dmb, dvb}, w_enc, b_enc,
                                           {means, nullptr, bias_means, nullptr}, E, D, C, gpu.stream);
            },
            dw_enc, db_enc);
        Numbers rdw = dw_enc.before(), rdb = db_enc.before();
        reference::expert_statistics_backward(rdw.data(), rdb.data(), dm.before().data(), dv.before().data(),
                                              dmb.before().data(), dvb.before().data(), w_enc.before().data(),
                                              b_enc.before().data(), means.before().data(),
                                              bias_means.before().data(), E, D, C);
        compare(what + " dw_enc", dw_enc, rdw, fp32_sum);
        compare(what + " db_enc", db_enc, rdb, fp32_sum);
    }
    // The topk router's rows stand for the means.
    const size_t E = 3, C = 136;
    const Array<floatX> router = normals<floatX>(E * C);
    const Array<float> m(E * C), dm = normals<float>(E * C), drouter = normals<float>(E * C);
    run(
        "router_weights_forward",
        [&] {
            router_weights_forward({m, 0, 0, 0}, router, E, C, gpu.stream);
        },
        m);
    check(m.after() == router.before());
    run(
        "router_weights_backward",
        [&] {
            router_weights_backward(drouter, {dm, 0, 0, 0}, E, C, gpu.stream);
        },
        drouter);
    Numbers sum = drouter.before();
    for (size_t i = 0; i < E * C; i++) sum[i] += dm.before()[i];
    compare("router_weights_backward", drouter, sum, fp32_sum);
}

// ---------------------------------------------------------------------------------------------------------
// Router, load balance

struct RouterCase {
    size_t N, E, K, C;
};
static const std::vector<RouterCase> router_cases = {
    {1, 1, 1, 8},     {31, 2, 1, 64},    {63, 3, 3, 136},   {64, 8, 2, 256},
    {65, 9, 1, 64},   {127, 40, 6, 136}, {1023, 8, 2, 64},  {300, 40, 40, 8},
    {33, 300, 5, 64}, {1023, 3, 2, 768}, {5000, 11, 2, 24}, // more parts than one
};

// Statistics such that mu and sd are of the order of 1 for x of that order. Experts 2i and 2i + 1 have the
// same bias and factor: for x = 0 their scores tie.
enum Kind { sparsity, scaled, topk };
const char* const kind_names[] = {"sparsity", "scaled", "topk"};

struct RouterStatistics {
    Array<float> m, v, mb, vb, factors;
    bool topk, scaled;
    RouterStatistics(size_t E, size_t C, Kind kind)
        : m(normals<float>(E * C, 1 / std::sqrt(double(C)))), v(variances(E * C, 1.0 / C)),
          mb(normals<float>(E, 0.5)), vb(variances(E, 0.5)), factors(normals<float>(E, 0.2, 1.5)),
          topk(kind == Kind::topk), scaled(kind == Kind::scaled) {
        for (Array<float>* a : {&mb, &vb, &factors}) {
            for (size_t j = 1; j < E; j += 2) a->initial[j] = a->initial[j - 1];
            a->restore();
        }
    }
    float* rho() const { return scaled ? (float*)factors : nullptr; }
    // A topk router has rows only.
    Statistics statistics() const {
        return topk ? Statistics{m, nullptr, nullptr, nullptr} : Statistics{m, v, mb, vb};
    }
};

// The reference's router: mu, sd (sparsity only), g (N,E).
struct RouterScores {
    Numbers mu, sd, g;
    RouterScores(const RouterStatistics& s, const Numbers& x, size_t N, size_t E, size_t C)
        : mu(N * E), sd(N * E), g(N * E) {
        if (s.topk)
            reference::linear_forward(g.data(), x.data(), s.m.before().data(), nullptr, N, C, E);
        else
            reference::router_forward(g.data(), mu.data(), sd.data(), x.data(), s.m.before().data(),
                                      s.v.before().data(), s.mb.before().data(), s.vb.before().data(),
                                      s.scaled ? s.factors.before().data() : nullptr, N, E, C);
    }
};

static void test_router_forward(Gpu& gpu, const RouterCase& c, Kind kind) {
    const size_t N = c.N, E = c.E, K = c.K, C = c.C;
    const std::string what = strf("router_forward %s N %zu E %zu K %zu C %zu", kind_names[kind], N, E, K, C);
    const RouterStatistics s(E, C, kind);
    const bool topk = s.topk;
    Array<floatX> x = normals<floatX>(N * C);
    if (N > 1) std::fill_n(x.initial.begin(), C, floatX(0.0f)), x.restore(); // a row of ties
    const Array<float> mu(N * E), sd(N * E), g(N * E), weight(N * K), sum_p(E);
    const Array<float> partial(blocks_for(N, router_block) * E);
    const Array<int> choice(N * K);
    Router router = {N,  E, K,      C,      topk,    s.statistics(), {},      mu,
                     sd, g, choice, weight, nullptr, nullptr,        nullptr, s.rho()};
    run(
        what, [&] { router_forward(router, sum_p, partial, x, gpu.stream); }, mu, sd, g, choice, weight,
        sum_p, partial);
    const RouterScores expected(s, x.before(), N, E, C);
    if (!topk) {
        compare(what + " mu", mu, expected.mu, fp32_sum);
        compare(what + " sd", sd, expected.sd, fp32_sum);
    }
    compare(what + " g", g, expected.g, fp32_sum);
    check(!topk || (mu.untouched() && sd.untouched()), "%s: mu or sd", what.c_str());

    // The choice by the scores as the kernel has them, so that none is too close to call.
    const Numbers scores = g.after();
    std::vector<int> rchoice(N * K), begin(E + 1), slot(N * K), token(N * K);
    Numbers rweight(N * K), p(N * E), rsum_p(E);
    reference::choice_forward(rchoice.data(), rweight.data(), scores.data(), N, E, K);
    check(choice.result() == rchoice, "%s: the choice", what.c_str());
    if (N > 1 && E > 1) check(scores[0] == scores[1], "%s: x = 0 makes a tie", what.c_str());
    compare(what + " weight", weight, rweight, fp32_sum);
    for (const bool by_rank : {false, true}) { // experts off and on; other ranks than the first
        if (K + 1 > E || K > 62) continue;
        std::vector<int8_t> standings(E);
        standings[0] = Routing::off, standings[E - 1] = E > 2 ? Routing::on : Routing::as_scored;
        const uint64_t ranks = by_rank ? ((uint64_t(1) << K) - 1) << 1 : 0;
        const Array<int8_t> standing(standings);
        Router changed = router;
        if (by_rank)
            changed.ranks = ranks;
        else
            changed.standing = standing;
        const std::string how = what + (by_rank ? ", ranks" : ", standing");
        run(
            how, [&] { router_forward(changed, sum_p, partial, x, gpu.stream); }, mu, sd, g, choice, weight,
            sum_p, partial);
        std::vector<int> other(N * K);
        Numbers other_weight(N * K);
        reference::choice_forward(other.data(), other_weight.data(), scores.data(), N, E, K,
                                  by_rank ? nullptr : standings.data(), ranks);
        check(choice.result() == other && other != rchoice, "%s: the choice", how.c_str());
        compare(how + " weight", weight, other_weight, fp32_sum);
    }
    run(
        what, [&] { router_forward(router, sum_p, partial, x, gpu.stream); }, mu, sd, g, choice, weight,
        sum_p, partial);
    reference::dispatch(begin.data(), slot.data(), token.data(), rchoice.data(), N, E, K);
    const double raux =
        reference::balance_forward(p.data(), rsum_p.data(), scores.data(), begin.data(), N, E, K);
    compare(what + " sum_p", sum_p, rsum_p, fp32_sum);
    const Array<int> begins(begin);
    const Array<double> aux(std::vector<double>{0.25});
    router.begin = begins;
    run(
        what, [&] { balance_forward(aux, router, sum_p, 0.5f, gpu.stream); }, aux);
    compare(what + " aux", aux, {0.25 + 0.5 * raux}, fp32_sum);
}

static void test_router_backward(Gpu& gpu, const RouterCase& c, Kind kind) {
    const size_t N = c.N, E = c.E, K = c.K, C = c.C;
    const std::string what = strf("router_backward %s N %zu E %zu K %zu C %zu", kind_names[kind], N, E, K, C);
    const RouterStatistics s(E, C, kind);
    const bool topk = s.topk;
    const Array<floatX> x = normals<floatX>(N * C),
                        dslots = normals<floatX>(N * K * C, 0.02); // not to drown the router's part
    const RouterScores scores(s, x.before(), N, E, C);
    const Array<float> mu = to_gpu<float>(scores.mu), sd = to_gpu<float>(scores.sd),
                       g = to_gpu<float>(scores.g);
    std::vector<int> choices(N * K), begins(E + 1), slots(N * K), tokens(N * K);
    Numbers weights(N * K), p(N * E), mean_p(E);
    reference::choice_forward(choices.data(), weights.data(), g.before().data(), N, E, K);
    reference::dispatch(begins.data(), slots.data(), tokens.data(), choices.data(), N, E, K);
    reference::balance_forward(p.data(), mean_p.data(), g.before().data(), begins.data(), N, E, K);
    const Array<int> choice(choices), begin(begins), slot(slots);
    const Array<float> weight = to_gpu<float>(weights), dweight = normals<float>(N * K);
    // So that load balance and expected share weigh as much as the choice.
    const LossWeights scales(2.0f * N, topk ? 0 : 2.0f * N * K);

    const Array<floatX> dx(N * C);
    const Array<float> dm = normals<float>(E * C), dv = normals<float>(E * C), dmb = normals<float>(E),
                       dvb = normals<float>(E), dmu(N * E), dvar(N * E);
    const Array<float> partial(
        std::max<size_t>(blocks_for(N, router_block) * 2 * E, token_parts(N) * 2 * E * C));
    const Router router = {N,     E,      K, C,      topk,   s.statistics(), {dm, dv, dmb, dvb},
                           mu,    sd,     g, choice, weight, slot,           nullptr,
                           begin, s.rho()};
    run(
        what,
        [&] { router_backward(dx, router, dmu, dvar, partial, dslots, dweight, x, scales, gpu.stream); }, dx,
        dm, dv, dmb, dvb, dmu, dvar, partial);

    Numbers rdx(N * C), rdg(N * E), rdm = dm.before(), rdv = dv.before(), rdmb = dmb.before(),
                                    rdvb = dvb.before(), rdmu(N * E), rdvar(N * E), scratch(N * C);
    reference::gather_backward(rdx.data(), dslots.before().data(), slots.data(), N, K, C);
    reference::balance_backward(rdg.data(), p.data(), begins.data(), scales.aux, N, E, K);
    reference::choice_backward(rdg.data(), dweight.before().data(), weight.before().data(), choices.data(), N,
                               E, K);
    reference::expected_share_backward(rdg.data(), choices.data(), scales.l0, N, E, K);
    if (topk) {
        reference::linear_backward(scratch.data(), rdm.data(), nullptr, rdg.data(), x.before().data(),
                                   s.m.before().data(), N, C, E);
        for (size_t i = 0; i < N * C; i++) rdx[i] += scratch[i];
        rdmu = rdg;
    } else {
        reference::router_backward(rdx.data(), rdm.data(), rdv.data(), rdmb.data(), rdvb.data(), rdmu.data(),
                                   rdvar.data(), scratch.data(), rdg.data(), x.before().data(),
                                   mu.before().data(), sd.before().data(), s.m.before().data(),
                                   s.v.before().data(), s.scaled ? s.factors.before().data() : nullptr, N, E,
                                   C);
        compare(what + " dvar", dvar, rdvar, fp32_sum);
    }
    compare(what + " dx", dx, rdx, rounded);
    compare(what + " dmu", dmu, rdmu, fp32_sum);
    compare(what + " dm", dm, rdm, fp32_sum);
    compare(what + " dv", dv, rdv, fp32_sum); // topk: left as it was
    compare(what + " dmb", dmb, rdmb, fp32_sum);
    compare(what + " dvb", dvb, rdvb, fp32_sum);
}

// Scores that are not numbers: the choice stays within the experts, and NaN comes out.
static void test_router_nan(Gpu& gpu, bool topk, size_t E, size_t K) {
    const size_t N = 40, C = 16, bad = 33;
    const std::string what = strf("router_forward, NaN, %s E %zu K %zu", topk ? "topk" : "sparsity", E, K);
    Array<floatX> x = normals<floatX>(N * C);
    for (const bool whole_row : {true, false}) { // or the score of one expert only
        RouterStatistics statistics(E, C, topk ? Kind::topk : Kind::sparsity);
        if (whole_row)
            x.initial[bad * C + 3] = floatX(NAN);
        else
            x.initial[bad * C + 3] = floatX(1.0f), statistics.m.initial[E / 2 * C] = NAN;
        x.restore(), statistics.m.restore();
        const Array<float> mu(N * E), sd(N * E), g(N * E), weight(N * K), sum_p(E);
        const Array<float> partial(blocks_for(N, router_block) * E);
        const Array<int> choice(N * K);
        run(
            what,
            [&] {
                router_forward({N,
                                E,
                                K,
                                C,
                                topk,
                                statistics.statistics(),
                                {},
                                mu,
                                sd,
                                g,
                                choice,
                                weight,
                                nullptr,
                                nullptr,
                                nullptr},
                               sum_p, partial, x, gpu.stream);
            },
            g, choice, weight, sum_p, partial);
        const std::vector<int> chosen = choice.result();
        check(std::all_of(chosen.begin(), chosen.end(), [&](int j) { return j >= 0 && j < int(E); }),
              "%s: an expert that is not there", what.c_str());
        check(all_nan(sum_p.after()), "%s: sum_p hides the NaN", what.c_str());
        const Numbers w = weight.after();
        if (!whole_row) {
            if (K == E) check(all_nan(w), "%s: the weights hide the NaN", what.c_str()); // it is chosen
            continue;
        }
        check(all_nan(rows_of(w, bad, 1, K)) && none_nan(rows_of(w, 0, bad, K)) &&
                  none_nan(rows_of(w, bad + 1, N - bad - 1, K)),
              "%s: the weights", what.c_str());
    }
}

static void test_router(Gpu& gpu) {
    for (const Kind kind : {sparsity, scaled, topk})
        for (const RouterCase& c : router_cases) {
            test_router_forward(gpu, c, kind);
            test_router_backward(gpu, c, kind);
        }
    for (const bool topk : {false, true}) {
        test_router_nan(gpu, topk, 3, 2);
        test_router_nan(gpu, topk, 40, 40);
    }
}

// The variances of an expert's pre-activations, and the factors that follow from them.
static void test_scaled(Gpu& gpu) {
    for (const RouterCase& c : router_cases)
        for (const size_t D : {8, 264}) {
            const size_t N = c.N, E = c.E + 1, K = c.K; // the last expert has no slots
            const std::string what = strf("add_variances N %zu E %zu K %zu D %zu", N, E, K, D);
            std::vector<int> choices(N * K), begins(E + 1), slots(N * K), tokens(N * K);
            for (size_t i = 0; i < N * K; i++) choices[i] = int((i / K * 7 + i % K) % c.E);
            reference::dispatch(begins.data(), slots.data(), tokens.data(), choices.data(), N, E, K);
            const Array<int> choice(choices), begin(begins), slot(slots), token(tokens);
            const Array<floatX> h = normals<floatX>(N * K * D, 1, 0.5);
            const Array<float> sd = variances(N * E, 1), rho = normals<float>(E, 0.2, 1.5),
                               partial(N * K * 2);
            Array<double> sums(std::vector<double>(2 * E, 0.125));
            Router r{};
            r.N = N, r.E = E, r.K = K, r.sd = sd, r.choice = choice, r.slot = slot, r.token = token,
            r.begin = begin, r.rho = rho;
            Variances* const to = (Variances*)(double*)sums;
            run(
                what, [&] { add_variances(to, r, h, D, partial, gpu.stream); }, sums, partial);
            Numbers expected(2 * E, 0.125), factors = rho.before();
            reference::add_variances(expected.data(), h.before().data(), sd.before().data(),
                                     rho.before().data(), begins.data(), tokens.data(), E, D);
            compare(what, sums, expected, fp32_sum);
            sums.initial = sums.result();
            sums.initial[2 * E - 1] = 0; // nobody's
            for (const double loss : {1.0, double(NAN)}) {
                const Array<Totals> totals(std::vector<Totals>{{loss, 0, 0, 1, 0}});
                sums.restore();
                run(
                    what + ", rho",
                    [&] { move_rho_kernel<<<blocks_for(E, 256), 256, 0, gpu.stream>>>(rho, to, totals, E); },
                    rho);
                if (loss == 1) reference::move_rho(factors.data(), sums.before().data(), E);
                compare(what + ", rho", rho, loss == 1 ? factors : rho.before(), 1e-6);
            }
            check(rho.result()[E - 1] == rho.initial[E - 1], "%s: the factor of an expert without slots",
                  what.c_str());
        }
}

// ---------------------------------------------------------------------------------------------------------
// Dispatch, gather

// The experts of N tokens: K different ones each, of all or of the first few; or the same for every token.
static std::vector<int> choices(size_t N, size_t E, size_t K, const std::string& how) {
    std::vector<int> choice(N * K);
    const std::vector<int> random = integers(N * E, 1 << 30);
    for (size_t n = 0; n < N; n++) {
        std::vector<int> order(how == "few" ? std::min(E, K + 1) : E);
        std::iota(order.begin(), order.end(), 0);
        if (how == "same")
            std::rotate(order.begin(), order.end() - 1, order.end()); // the last first
        else
            for (size_t j = order.size(); j > 1; j--)
                std::swap(order[j - 1], order[random[n * E + j - 1] % j]);
        std::copy_n(order.begin(), K, choice.begin() + n * K);
    }
    return choice;
}

static void test_dispatch(Gpu& gpu) {
    for (const size_t N : token_counts)
        for (const size_t E : {1, 2, 3, 8, 9, 40, 300})
            for (const size_t K : std::set<size_t>{1, std::min<size_t>(2, E), E})
                for (const char* how : {"random", "few", "same"}) {
                    if (N * E * K > 1 << 17) continue;
                    const std::string what = strf("dispatch N %zu E %zu K %zu, %s", N, E, K, how);
                    const std::vector<int> chosen = choices(N, E, K, how);
                    const Array<int> choice(chosen), begin(E + 1), slot(N * K), token(N * K),
                        counts(E * blocks_for(N * K, dispatch_tile));
                    Router router = {};
                    router.N = N;
                    router.E = E;
                    router.K = K;
                    router.choice = choice;
                    router.slot = slot;
                    router.token = token;
                    router.begin = begin;
                    const Array<float> weight = normals<float>(N * K), slot_weight(N * K);
                    router.weight = weight;
                    router.slot_weight = slot_weight;
                    run(
                        what, [&] { dispatch(router, counts, gpu.stream); }, begin, slot, token, slot_weight,
                        counts);
                    std::vector<int> rbegin(E + 1), rslot(N * K), rtoken(N * K);
                    reference::dispatch(rbegin.data(), rslot.data(), rtoken.data(), chosen.data(), N, E, K);
                    check(begin.result() == rbegin, "%s: begin", what.c_str());
                    check(slot.result() == rslot, "%s: slot", what.c_str());
                    check(token.result() == rtoken, "%s: token", what.c_str());
                    std::vector<float> by_slot(N * K);
                    for (size_t i = 0; i < N * K; i++) by_slot[rslot[i]] = weight.initial[i];
                    check(slot_weight.result() == by_slot, "%s: slot_weight", what.c_str());
                }
}

static void test_gather(Gpu& gpu) {
    for (const size_t N : token_counts)
        for (const size_t C : channel_counts) {
            const std::string what = strf("gather N %zu C %zu", N, C);
            const size_t slots = N * (C % 3 + 1);
            const Array<floatX> x = normals<floatX>(N * C), out(slots * C);
            const std::vector<int> tokens = integers(slots, N);
            const Array<int> token(tokens);
            run(
                what, [&] { gather(out, x, token, slots, C, gpu.stream); }, out);
            Numbers expected(slots * C);
            reference::gather(expected.data(), x.before().data(), tokens.data(), slots, C);
            check(out.after() == expected, "%s", what.c_str());
        }
}

// ---------------------------------------------------------------------------------------------------------
// Activation, and how many units fired

static void test_activation(Gpu& gpu) {
    for (const bool relu : {true, false})
        for (const size_t count : {8, 256, 2056, 100000}) {
            const std::string what = strf("activation %s %zu", relu ? "relu" : "gelu", count);
            Array<floatX> h = normals<floatX>(count, 2);
            h.initial[0] = floatX(0.0f), h.initial[1] = floatX(-0.0f), h.initial[2] = floatX(30.0f),
            h.initial[3] = floatX(-30.0f);
            h.restore();
            Numbers expected(count), dexpected(count);
            const Numbers before = h.before();
            reference::activation_forward(expected.data(), before.data(), count, relu);
            const Array<floatX> z(count), in_place(h.initial), dh = normals<floatX>(count);
            run(
                what, [&] { activation_forward(z, h, count, relu, gpu.stream); }, z);
            compare(what, z, expected, rounded);
            run(
                what, [&] { activation_forward(in_place, in_place, count, relu, gpu.stream); }, in_place);
            check(in_place.bits() == z.bits(), "%s in place", what.c_str());

            reference::activation_backward(dexpected.data(), dh.before().data(), before.data(), count, relu);
            run(
                what, [&] { activation_backward(dh, h, count, relu, gpu.stream); }, dh);
            compare(what + " backward", dh, dexpected, rounded);

            const Array<unsigned long long> active(std::vector<unsigned long long>{1000});
            const size_t fired = std::count_if(before.begin(), before.end(), [](double x) { return x > 0; });
            run(
                what, [&] { count_active(active, h, nullptr, count, gpu.stream); }, active);
            check(active.result()[0] == 1000 + fired, "%s: count_active", what.c_str());
            if (count % 128) continue;
            std::vector<uint8_t> bits(count / 8);
            for (size_t i = 0; i < count; i++) bits[i / 8] |= (before[i] > 0) << i % 8;
            const Array<uint8_t> mask(bits);
            run(
                what, [&] { count_active(active, nullptr, (const uint4*)(uint8_t*)mask, count, gpu.stream); },
                active);
            check(active.result()[0] == 1000 + fired, "%s: count_active of a mask", what.c_str());
        }
    for (const bool relu : {true, false}) { // NaN stays NaN
        const Array<floatX> h(16), z = normals<floatX>(16);
        activation_forward(z, h, 16, relu, gpu.stream);
        check(all_nan(z.after()));
    }
}

// ---------------------------------------------------------------------------------------------------------
// Dense layers of two more kinds of units

static void test_geglu(Gpu& gpu) {
    for (const size_t count : {8, 256, 2056, 100000}) {
        const std::string what = strf("geglu %zu", count);
        const Array<floatX> a = normals<floatX>(count, 2), u = normals<floatX>(count), z(count), da(count),
                            du = normals<floatX>(count);
        const Numbers gate = a.before(), factor = u.before(), dz = du.before();
        Numbers expected(count), da_expected(count), du_expected(count);
        reference::geglu_forward(expected.data(), gate.data(), factor.data(), count);
        reference::geglu_backward(da_expected.data(), du_expected.data(), dz.data(), gate.data(),
                                  factor.data(), count);
        run(
            what, [&] { geglu_forward(z, a, u, count, gpu.stream); }, z);
        compare(what, z, expected, rounded);
        run(
            what, [&] { geglu_backward(da, du, a, u, count, gpu.stream); }, da, du);
        compare(what + " backward, of what goes through gelu", da, da_expected, rounded);
        compare(what + " backward, of the other factor", du, du_expected, rounded);
    }
    const Array<floatX> nan(16), other = normals<floatX>(16), z = normals<floatX>(16); // NaN stays NaN
    geglu_forward(z, nan, other, 16, gpu.stream);
    check(all_nan(z.after()));
    geglu_forward(z, other, nan, 16, gpu.stream);
    check(all_nan(z.after()));
}

// h as it is at the start, small, where a softmax is flat, and so large that it picks one unit.
static void test_solu(Gpu& gpu) {
    for (const size_t W : {8, 264, 2048, 9216})
        for (const size_t N : {1, 9})
            for (const double size : {0.3, 3.0, 40.0}) {
                const std::string what = strf("solu %zu x %zu, h of %g", N, W, size);
                const Array<floatX> h = normals<floatX>(N * W, size), weight = normals<floatX>(W, 0.1, 1),
                                    bias = normals<floatX>(W), u(N * W), z(N * W), du(N * W),
                                    dh = normals<floatX>(N * W);
                const Array<float> lse(N), mean(N), rstd(N),
                    dweight = normals<float>(W), dbias = normals<float>(W), partial(layernorm_blocks * 2 * W);
                const Norm norm = {z, mean, rstd, weight, bias, dweight, dbias, N, int(W)};
                const Numbers before = h.before(), dz = dh.before(), w = weight.before(), b = bias.before();
                Numbers u_expected(N * W), s(N * W), expected(N * W), m(N), r(N), du_expected(N * W),
                    dh_expected(N * W), dw_expected = dweight.before(), db_expected = dbias.before();
                reference::solu_forward(u_expected.data(), s.data(), before.data(), N, W);
                run(
                    what, [&] { solu_forward(u, lse, norm, h, gpu.stream); }, u, lse, z, mean, rstd);
                compare(what, u, u_expected, rounded);
                // From here on with u as it is stored: the LayerNorm magnifies how it was rounded.
                const Numbers stored = u.after();
                reference::layernorm_forward(expected.data(), m.data(), r.data(), stored.data(), w.data(),
                                             b.data(), N, W);
                compare(what + ", normalised", z, expected, rounded);
                reference::layernorm_backward(du_expected.data(), dw_expected.data(), db_expected.data(),
                                              dz.data(), stored.data(), m.data(), r.data(), w.data(), N, W);
                run(
                    what, [&] { solu_backward(dh, du, norm, u, h, lse, partial, gpu.stream); }, dh, du,
                    dweight, dbias, partial);
                compare(what + ", gradient of u", du, du_expected, rounded);
                compare(what + ", gradient of the LayerNorm's weight", dweight, dw_expected, fp32_sum);
                compare(what + ", of its bias", dbias, db_expected, fp32_sum);
                const Numbers du_stored = du.after();
                reference::solu_backward(dh_expected.data(), du_stored.data(), stored.data(), s.data(),
                                         before.data(), N, W);
                compare(what + ", gradient of h", dh, dh_expected, rounded);
            }
    const Array<floatX> h(16), weight = normals<floatX>(16), u(16), z = normals<floatX>(16); // NaN stays NaN
    const Array<float> one(1);
    solu_forward(u, one, {z, one, one, weight, weight, nullptr, nullptr, 1, 16}, h, gpu.stream);
    check(all_nan(z.after()));
}

// ---------------------------------------------------------------------------------------------------------
// Combine

static void test_combine(Gpu& gpu) {
    struct Case {
        size_t N, K, C;
    };
    for (const Case& c : std::vector<Case>{
             {1, 1, 8}, {31, 2, 64}, {63, 8, 136}, {64, 1, 256}, {65, 2, 768}, {127, 3, 8}, {1023, 2, 64}}) {
        const size_t N = c.N, K = c.K, C = c.C;
        const std::string what = strf("combine N %zu K %zu C %zu", N, K, C);
        std::vector<int> slots = integers(N * K, 1 << 30), order(N * K);
        std::iota(order.begin(), order.end(), 0); // any permutation
        std::sort(order.begin(), order.end(), [&](int a, int b) { return slots[a] < slots[b]; });
        slots = order;
        const Array<int> slot(slots);
        const Array<float> weight = normals<float>(N * K, 0.3, 0.5), dweight(N * K);
        const Array<floatX> x = normals<floatX>(N * C), y = normals<floatX>(N * K * C), out(N * C);
        const NormTest norm(N, C);
        Router router = {};
        router.N = N;
        router.K = K;
        router.C = C;
        router.weight = weight;
        router.slot = slot;
        run(
            what, [&] { combine_layernorm_forward(out, norm.norm(), x, y, router, false, gpu.stream); }, out,
            norm.out, norm.mean, norm.rstd);
        Numbers rout(N * C), rdy(N * K * C), rdweight(N * K);
        reference::combine_forward(rout.data(), x.before().data(), y.before().data(), weight.before().data(),
                                   slots.data(), N, K, C);
        compare(what, out, rout, rounded);
        norm.compare_from(what, out.after());
        run(
            what, [&] { combine_layernorm_forward(out, norm.norm(), x, y, router, true, gpu.stream); }, out,
            norm.out, norm.mean, norm.rstd);
        reference::combine_forward(rout.data(), x.before().data(), y.before().data(),
                                   Numbers(N * K, 1).data(), slots.data(), N, K, C);
        compare(what + ", weighted", out, rout, rounded);

        const Array<floatX> dout = normals<floatX>(N * C), dy(N * K * C);
        run(
            what, [&] { combine_backward(dy, dweight, dout, y, {}, router, gpu.stream); }, dy, dweight);
        reference::combine_backward(rdy.data(), rdweight.data(), dout.before().data(), y.before().data(),
                                    weight.before().data(), slots.data(), N, K, C);
        compare(what + " dy", dy, rdy, rounded);
        compare(what + " dweight", dweight, rdweight, fp32_sum);
    }
}

// ---------------------------------------------------------------------------------------------------------
// Classifier

// The first V numbers of each row.
static Numbers without_padding(const Numbers& padded, size_t N, size_t V, size_t Vp) {
    Numbers out;
    for (size_t n = 0; n < N; n++) out.insert(out.end(), &padded[n * Vp], &padded[n * Vp] + V);
    return out;
}

static void test_classifier(Gpu& gpu) {
    struct Case {
        size_t N, V;
        double size; // of the logits
    };
    for (const Case& c : std::vector<Case>{{1, 32, 1},
                                           {65, 32, 5},
                                           {63, 257, 1},
                                           {127, 33, 3},
                                           {31, 1000, 30},
                                           {4, 7, 3},
                                           {5, 50257, 2},
                                           {3, 50304, 8}}) {
        const size_t N = c.N, V = c.V, Vp = round_up(V, 64);
        const std::string what = strf("classifier N %zu V %zu", N, V);
        Array<floatX> logits = normals<floatX>(N * Vp, c.size, 10);
        for (size_t i = 0; i < N * Vp; i++)
            if (i % Vp >= V) logits.initial[i] = floatX(NAN); // padding that nobody may count
        const std::vector<int> target = integers(N, V);
        const Array<int> targets(target);
        const Array<float> losses(N);
        Numbers rlosses(N), rlogits = without_padding(logits.before(), N, V, Vp);
        run(
            what, [&] { classifier(losses, logits, targets, 0, N, V, Vp, gpu.stream); }, losses, logits);
        check(logits.untouched(), "%s: an evaluation keeps the logits", what.c_str());
        const Numbers evaluated = losses.after();
        const float scale = 0.125f / N;
        run(
            what, [&] { classifier(losses, logits, targets, scale, N, V, Vp, gpu.stream); }, losses, logits);
        reference::classifier(rlosses.data(), rlogits.data(), target.data(), N, V, scale);
        compare(what + " losses", losses, rlosses, fp32_sum);
        check(losses.after() == evaluated, "%s: the same losses in training and evaluation", what.c_str());
        const Numbers dlogits = logits.after();
        compare(what + " dlogits", without_padding(dlogits, N, V, Vp), rlogits, rounded);
        for (size_t n = 0; n < N; n++)
            check(std::all_of(&dlogits[n * Vp] + V, &dlogits[n * Vp] + Vp, [](double x) { return x == 0; }),
                  "%s: the padding is not 0", what.c_str());
    }
    // A NaN among the logits reaches its row's loss and no other.
    const size_t N = 3, V = 257, Vp = 320;
    Array<floatX> logits = normals<floatX>(N * Vp);
    logits.initial[Vp + 200] = floatX(NAN);
    logits.restore();
    const Array<int> targets(std::vector<int>{0, 1, 256});
    const Array<float> losses(N);
    classifier(losses, logits, targets, 0, N, V, Vp, gpu.stream);
    const Numbers l = losses.after();
    check(l[0] == l[0] && l[1] != l[1] && l[2] == l[2]);
}

static void test_sum_losses(Gpu& gpu) {
    for (const size_t N : token_counts) {
        const Array<float> losses = normals<float>(N, 1, 3);
        const Array<double> total(std::vector<double>{1.5});
        run(
            "sum_losses", [&] { sum_losses_kernel<<<1, 1024, 0, gpu.stream>>>(total, losses, 0.25, N); },
            total);
        const Numbers l = losses.before();
        compare(strf("sum_losses N %zu", N), total, {1.5 + 0.25 * std::accumulate(l.begin(), l.end(), 0.0)},
                1e-12);
    }
}

// ---------------------------------------------------------------------------------------------------------
// Update

static void test_gradient_norm(Gpu& gpu) {
    for (const size_t count : {32, 1024, 4096, 32 * 1057, 1 << 21}) {
        Array<float> gradients = normals<float>(count);
        const size_t segments = (count + segment_numbers - 1) / segment_numbers, micros = 3, words = 5;
        static_assert(sizeof(Totals) == words * sizeof(double));
        // The totals of the micro-batches lie before the squares, the last first.
        std::vector<double> initial(micros * words + segments, NAN);
        std::vector<int> at;
        for (size_t s = 0; s < segments; s++) at.push_back(int(micros * words + s));
        for (size_t i = 0; i < micros; i++) {
            at.push_back(int((micros - 1 - i) * words));
            const Totals micro = {0.1 * double(i + 1), 2, 10 + i, NAN, i == 1 ? 15u : 0u};
            memcpy(&initial[size_t(at.back())], &micro, sizeof micro);
        }
        const Array<double> parts(initial);
        const Array<int> order(at);
        const Array<Totals> totals(std::vector<Totals>{{0, 0, 0, NAN, 0}});
        double* const squares = (double*)parts + micros * words;
        auto launch = [&] {
            segment_squares(squares, gradients, count, gpu.stream);
            step_totals(totals, nullptr, parts, order, segments, micros, 0, gpu.stream);
        };
        run("gradient_norm", launch, totals, parts);
        const Numbers g = gradients.before();
        const double expected = std::sqrt(std::inner_product(g.begin(), g.end(), g.begin(), 0.0));
        Totals got;
        cuda_check(cudaMemcpy(&got, totals, sizeof got, cudaMemcpyDeviceToHost));
        check_near(got.norm, expected, 1e-6 * expected);
        check(got.loss == 0.1 + 0.2 + 0.1 * 3 && got.aux == 6 && got.active == 33 && got.stop == 15);
        gradients.initial[count - 1] = NAN;
        gradients.restore();
        launch();
        cuda_check(cudaMemcpy(&got, totals, sizeof got, cudaMemcpyDeviceToHost));
        check(std::isnan(got.norm), "gradient_norm hides a NaN");
    }
}

// The two bf16 numbers beside x, or x itself twice.
static void neighbours(double x, double* below, double* above) {
    const float f = float(x);
    uint32_t bits;
    memcpy(&bits, &f, 4);
    auto value = [](uint32_t b) {
        float v;
        memcpy(&v, &b, 4);
        return double(v);
    };
    const double inner = value(bits & 0xffff0000),
                 outer = bits & 0xffff ? value((bits & 0xffff0000) + 0x10000) : inner;
    *below = std::min(inner, outer), *above = std::max(inner, outer);
}

static void test_rounding(Gpu& gpu) {
    const size_t count = 32 * 101;
    const Array<float> master = normals<float>(count);
    const Numbers w = master.before();
    Array<floatX> weights(count);
    const Array<floatX> again(count);
    check(rounding_key(7, 0) == 0 && rounding_key(7, 1) != 0 && rounding_key(7, 1) != rounding_key(7, 2) &&
          rounding_key(7, 1) != rounding_key(8, 1));
    round_weights(weights, master, 0, 0, count, gpu.stream);
    for (size_t i = 0; i < count; i++) weights.initial[i] = floatX(master.initial[i]);
    check(weights.untouched(), "the first weights are rounded to the nearest");
    run(
        "round_weights", [&] { round_weights(weights, master, rounding_key(7, 1), 0, count, gpu.stream); },
        weights);
    round_weights(again, master, rounding_key(7, 2), 0, count, gpu.stream);
    if (!bf16) {
        check(weights.after() == w && again.after() == w);
        return;
    }
    check(weights.bits() != again.bits(), "another step rounds with other bits");
    // One of the two neighbours always; each in proportion to how close it is: the errors of many steps, away
    // from zero and in units of the distance between the neighbours, have mean 0 and a variance of at most
    // 1/4, over all weights as over the steps of one.
    const size_t steps = 64;
    double sum = 0;
    Numbers of_weight(count);
    for (size_t t = 1; t <= steps; t++) {
        round_weights(weights, master, rounding_key(7, t), 0, count, gpu.stream);
        const Numbers got = weights.after();
        size_t wrong = 0;
        for (size_t i = 0; i < count; i++) {
            double below, above;
            neighbours(w[i], &below, &above);
            wrong += !(got[i] == below || got[i] == above);
            if (above > below) of_weight[i] += (std::fabs(got[i]) - std::fabs(w[i])) / (above - below);
        }
        check(wrong == 0, "%zu weights rounded further than to a neighbour", wrong);
    }
    double worst = 0;
    for (const double error : of_weight) sum += error, worst = std::max(worst, std::fabs(error));
    const double deviation = 0.5 * std::sqrt(double(steps));
    check(std::fabs(sum) < 5 * deviation * std::sqrt(double(count)), "rounding is biased: %g", sum);
    check(worst < 6 * deviation, "a weight is rounded one way too often: %g", worst);

    // What bf16 holds exactly stays, infinity too, and NaN stays NaN whatever its bits.
    std::vector<float> special = {0.0f, -0.0f, 1.0f, -2.5f, INFINITY, -INFINITY, NAN, -NAN, 0.0f, 0.0f};
    const uint32_t nan_of_gpus = 0x7fffffff, negative_nan = 0xffffffff;
    memcpy(&special[8], &nan_of_gpus, 4), memcpy(&special[9], &negative_nan, 4);
    const Array<float> exact(special);
    const Array<floatX> kept(special.size());
    for (uint64_t t = 1; t <= 20; t++) {
        round_weights(kept, exact, rounding_key(7, t), 0, special.size(), gpu.stream);
        const Numbers got = kept.after();
        size_t wrong = 0;
        for (size_t i = 0; i < special.size(); i++)
            wrong += !(got[i] == special[i] || (got[i] != got[i] && special[i] != special[i]));
        check(wrong == 0, "%zu numbers that need no rounding changed", wrong);
    }
}

static void test_update(Gpu& gpu) {
    const size_t count = 32 * 37;
    struct Case {
        double norm, loss;
        float clip;
        uint64_t t;
    };
    for (const Case& c : std::vector<Case>{{5, 1, 1, 1},
                                           {0.5, 1, 1, 2},
                                           {5, 1, 0, 1000},
                                           {NAN, 1, 1, 3},
                                           {INFINITY, 1, 1, 3},
                                           {1, NAN, 1, 3}}) {
        const std::string what =
            strf("update norm %g loss %g clip %g t %d", c.norm, c.loss, c.clip, int(c.t));
        const Array<float> master = normals<float>(count), gradients = normals<float>(count, 0.01),
                           m = normals<float>(count, 0.01), v = variances(count, 1e-4);
        const Array<floatX> weights(count);
        Array<uint8_t> decays(std::vector<uint8_t>(count / 32));
        for (size_t i = 0; i < count / 32; i++) decays.initial[i] = i % 3 == 0;
        decays.restore();
        const Array<Totals> totals(std::vector<Totals>{{c.loss, 0.5, 7, c.norm, 0}});
        AdamW a;
        a.lr = 1e-2f, a.clip = c.clip;
        const double fix_1 = 1 / (1 - std::pow(0.9, double(c.t))),
                     fix_2 = 1 / (1 - std::pow(0.95, double(c.t)));
        const uint64_t key = rounding_key(3, c.t);
        const size_t first = c.t * 4096;                                // the place in the block
        floatX* to = bf16 ? (floatX*)weights : (floatX*)(float*)master; // in fp32 they are the same
        run(
            what,
            [&] {
                update_kernel<<<blocks_for(count, 256 * pack), 256, 0, gpu.stream>>>(
                    to, master, gradients, m, v, decays, totals, a, float(fix_1), float(fix_2), key, first,
                    count);
            },
            weights, master, m, v);
        if (!std::isfinite(c.norm + c.loss)) {
            check(weights.untouched() && master.untouched() && m.untouched() && v.untouched(),
                  "%s changes something", what.c_str());
            continue;
        }
        Numbers rw = master.before(), rm = m.before(), rv = v.before();
        const Numbers g = gradients.before();
        const double scale = c.clip > 0 && c.norm > c.clip ? c.clip / c.norm : 1;
        for (size_t i = 0; i < count; i++) {
            const double G = scale * g[i], decay = i / 32 % 3 == 0 ? 0.1 : 0;
            rm[i] = 0.9 * rm[i] + 0.1 * G;
            rv[i] = 0.95 * rv[i] + 0.05 * G * G;
            rw[i] -= 1e-2 * (fix_1 * rm[i] / (std::sqrt(fix_2 * rv[i]) + 1e-8) + decay * rw[i]);
        }
        compare(what + " m", m, rm, 1e-6);
        compare(what + " v", v, rv, 1e-6);
        compare(what + " weights", master, rw, 1e-6);
        if (!bf16) continue;
        const Array<floatX> expected(count); // what a resumed run makes of the master weights
        round_weights(expected, master, key, first, count, gpu.stream);
        check(weights.bits() == expected.bits(), "%s: the bf16 weights", what.c_str());
    }
}

// ---------------------------------------------------------------------------------------------------------
// Matrix products

static void test_multiply(Gpu& gpu) {
    struct Case {
        size_t M, N, K;
        bool a_transposed, b_transposed, accumulate;
    };
    std::vector<Case> cases = {
        {65, 320, 64, false, true, false},  // the head: logits,
        {65, 64, 320, false, false, false}, // the gradient of its input,
        {320, 64, 65, true, false, true},   // and of its weights
    };
    for (const bool a_transposed : {false, true})
        for (const bool b_transposed : {false, true})
            for (const bool accumulate : {false, true})
                for (const size_t tokens :
                     token_counts) // stand where a row need not be a multiple of 16 bytes
                    cases.push_back({a_transposed ? 136 : tokens, 72,
                                     a_transposed && !b_transposed ? tokens : 64, a_transposed, b_transposed,
                                     accumulate});
    for (const Case& c : cases) {
        const std::string what =
            strf("multiply %zu x %zu x %zu%s%s%s", c.M, c.N, c.K, c.a_transposed ? " a^T" : "",
                 c.b_transposed ? " b^T" : "", c.accumulate ? " +=" : "");
        const Array<floatX> a = normals<floatX>(c.M * c.K), b = normals<floatX>(c.K * c.N), out(c.M * c.N);
        const Array<float> sum = normals<float>(c.M * c.N);
        Product p{c.accumulate ? (void*)(float*)sum : (void*)(floatX*)out, a, b, c.M, c.N, c.K};
        p.a_transposed = c.a_transposed;
        p.b_transposed = c.b_transposed;
        p.accumulate = c.accumulate;
        run(
            what, [&] { multiply(gpu, p); }, out, sum);
        Numbers expected = c.accumulate ? sum.before() : Numbers(c.M * c.N);
        reference::multiply(expected.data(), a.before().data(), b.before().data(), c.M, c.N, c.K,
                            c.a_transposed, c.b_transposed, c.accumulate);
        if (c.accumulate)
            compare(what, sum, expected, fp32_sum);
        else
            compare(what, out, expected, rounded);
    }
    const Array<floatX> none(8); // nothing to multiply: nothing is written
    multiply(gpu, {(floatX*)none, none, none, 0, 8, 8});
    multiply(gpu, {(floatX*)none, none, none, 1, 8, 0});
    check(none.untouched());
}

// Which algorithm a product gets depends on its sizes alone, and one that does not serve is asked for anew.
static void test_algorithms() {
    for (size_t tokens = 1; tokens < 5000; tokens++)
        check(bucket(tokens) >= tokens && bucket(tokens) < tokens * 5 / 4 + 1 &&
                  bucket(bucket(tokens)) == bucket(tokens) && bucket(tokens) <= bucket(tokens + 1),
              "the bucket of %zu tokens is %zu", tokens, bucket(tokens));
    check(bucket(64) == 64 && bucket(65) == 80 && bucket(1024) == 1024); // tiles end where buckets do
    const auto product = [](Gpu& gpu, size_t M, size_t N, size_t K, bool a_transposed = false) {
        const Array<floatX> a = normals<floatX>(M * K), b = normals<floatX>(K * N), out(M * N);
        const Array<float> sum = normals<float>(M * N);
        Product p{a_transposed ? (void*)(float*)sum : (void*)(floatX*)out, a, b, M, N, K};
        p.a_transposed = p.accumulate = a_transposed;
        multiply(gpu, p);
        Numbers expected = a_transposed ? sum.before() : Numbers(M * N);
        reference::multiply(expected.data(), a.before().data(), b.before().data(), M, N, K, a_transposed,
                            false, a_transposed);
        const std::string what = strf("algorithm of %zu x %zu x %zu", M, N, K);
        if (a_transposed)
            compare(what, sum, expected, fp32_sum);
        else
            compare(what, out, expected, rounded);
    };
    Gpu one, other; // the first product of a bucket, whichever it is, asks about the bucket's size
    for (const size_t M : {65, 67, 80}) product(one, M, 64, 72);
    for (const size_t M : {71, 65}) product(other, M, 64, 72);
    for (const size_t K : {65, 70}) product(one, 64, 72, K, true);
    product(other, 64, 72, 80, true);
    const bool may_refuse = !emulated(); // a card, an algorithm for some size of its bucket
    check(may_refuse || (one.algorithms.size() == 2 && other.algorithms.size() == 2));
    for (const auto& [kind, algorithm] : one.algorithms)
        check(may_refuse || other.algorithms.count(kind) == 1);
    check(may_refuse || (one.refused == 0 && other.refused == 0));
    // Sizes of the model are not rounded: 264 and 272 channels are two questions.
    product(one, 65, 64, 264);
    product(one, 65, 64, 272);
    product(one, 65, 264, 64);
    product(one, 65, 272, 64);
    check(may_refuse || (one.algorithms.size() == 6 && one.refused == 0));
    // The sums of parts of a long K are not kept in bf16.
    product(one, 33, 40, 8192);
    // What is refused is asked for again, for exactly this size.
    setenv("EMU_CUBLASLT_REFUSE", "2", 1);
    Gpu strict;
    for (int i = 0; i < 3; i++)
        for (const size_t M : {65, 67, 72}) product(strict, M, 64, 72);
    unsetenv("EMU_CUBLASLT_REFUSE");
    if (emulated()) check(strict.refused > 0);
    // What no algorithm serves ends with a message.
    check_error(multiply(strict, {(void*)16, (floatX*)16, (floatX*)16, 8, 8, 8, false, false, false,
                                  cublasLtEpilogue_t(1023)}),
                "no algorithm for a product of 8 x 8 x 8");
}

static void test_linear(Gpu& gpu) {
    for (const size_t N : token_counts) {
        const size_t C = 136, OC = 256;
        const std::string what = strf("linear N %zu", N);
        const Array<floatX> x = normals<floatX>(N * C), weight = normals<floatX>(OC * C, 0.1),
                            bias = normals<floatX>(OC), out(N * OC), dx(N * C),
                            dout = normals<floatX>(N * OC);
        const Array<float> dweight = normals<float>(OC * C), dbias = normals<float>(OC),
                           partial(bias_parts(N, 1) * OC);
        const Linear linear = {weight, bias, dweight, dbias, N, C, OC};
        run(
            what, [&] { linear_forward(gpu, out, x, linear); }, out);
        Numbers rout(N * OC), rdx(N * C);
        reference::linear_forward(rout.data(), x.before().data(), weight.before().data(),
                                  bias.before().data(), N, C, OC);
        compare(what, out, rout, rounded);
        const Array<int> whole_batch(std::vector<int>{0, int(N)});
        run(
            what, [&] { linear_backward(gpu, dx, dout, x, linear, partial, whole_batch); }, dx, dweight,
            dbias, partial);
        Numbers rdweight = dweight.before(), rdbias = dbias.before();
        reference::linear_backward(rdx.data(), rdweight.data(), rdbias.data(), dout.before().data(),
                                   x.before().data(), weight.before().data(), N, C, OC);
        compare(what + " dx", dx, rdx, rounded);
        compare(what + " dweight", dweight, rdweight, fp32_sum);
        compare(what + " dbias", dbias, rdbias, fp32_sum);
    }
}

// ---------------------------------------------------------------------------------------------------------
// Experts

struct ExpertsCase {
    size_t N, E, K, D, C;
    const char* how; // the choice; "dense": one expert, W_dec transposed
};

// Returns how many experts had fused epilogues.
static size_t test_experts(Gpu& gpu, const ExpertsCase& c, bool relu, bool fused) {
    const bool dense = c.how == std::string("dense");
    const size_t N = c.N, E = c.E, K = c.K, D = c.D, C = c.C, slots = N * K;
    std::vector<int> begins(E + 1), slot(slots), token(slots);
    reference::dispatch(begins.data(), slot.data(), token.data(), choices(N, E, K, c.how).data(), N, E, K);
    const std::string what = strf("experts %s%s N %zu E %zu K %zu D %zu C %zu, %s", relu ? "relu" : "gelu",
                                  fused ? " fused" : "", N, E, K, D, C, c.how);
    // The library's gelu is not as exact as ours: --epilogues auto does not use it in fp32.
    const double least = fused && !relu ? 1e-3 : 0, once = std::max(rounded, least),
                 twice = std::max(rounded_twice, least);
    const Array<floatX> w_enc = normals<floatX>(E * D * C, 1 / std::sqrt(double(C))),
                        b_enc = normals<floatX>(E * D, 0.5), b_dec = normals<floatX>(E * C),
                        w_dec = normals<floatX>(E * D * C, 1 / std::sqrt(double(D))),
                        x = normals<floatX>(slots * C);
    const Array<int> begin(begins);
    const Array<floatX> h(relu ? 0 : slots * D), z(slots * D), y(slots * C);
    const Array<uint8_t> mask(relu && fused ? slots * round_up(D, 128) / 8 : 0);
    std::vector<uint8_t> own(E, 7);
    const Array<floatX> dy = normals<floatX>(slots * C), dx(slots * C), dh(slots * D), db(E * D);
    const Array<float> dw_enc = normals<float>(E * D * C), db_enc = normals<float>(E * D),
                       dw_dec = normals<float>(E * D * C), db_dec = normals<float>(E * C),
                       partial(bias_parts(slots, E) * std::max(C, D));
    const Experts e = {E,          D,      C,      relu,   fused,  w_enc, b_enc, w_dec,
                       b_dec,      dw_enc, db_enc, dw_dec, db_dec, dense, begin, begins.data(),
                       own.data(), x,      y,      dx,     dy,     h,     z,     mask,
                       dh,         db,     partial};
    if (fused && !fused_epilogues(gpu, e, std::max<size_t>(1, slots / E))) return 0;

    run(
        what,
        [&] {
            experts_encode(gpu, e);
            experts_decode(gpu, e);
        },
        h, z, mask, y);
    const Numbers rw_enc = w_enc.before(), rb_enc = b_enc.before(), rb_dec = b_dec.before(), rx = x.before();
    Numbers rw_dec = w_dec.before();
    if (dense) // (C,D) in memory
        for (size_t i = 0; i < D; i++)
            for (size_t k = 0; k < C; k++) rw_dec[i * C + k] = w_dec.before()[k * D + i];
    const reference::Experts re = {
        E, D, C, relu, rw_enc.data(), rb_enc.data(), rw_dec.data(), rb_dec.data(), begins.data()};
    Numbers rh(slots * D), rz(slots * D), ry(slots * C);
    reference::experts_forward(ry.data(), rz.data(), rh.data(), rx.data(), re);
    if (!relu) compare(what + " h", h, rh, rounded);
    compare(what + " z", z, rz, relu || fused ? once : twice);
    compare(what + " y", y, ry, twice);
    size_t library = 0;
    for (size_t j = 0; j < E; j++) library += own[j] == 0 && begins[j + 1] > begins[j];
    if (e.all_masked()) {
        const Array<unsigned long long> active(std::vector<unsigned long long>{0});
        run(
            what, [&] { count_active(active, z, (const uint4*)e.mask, slots * D, gpu.stream); }, active);
        const Numbers units = z.after();
        check(active.result()[0] ==
                  size_t(std::count_if(units.begin(), units.end(), [](double u) { return u > 0; })),
              "%s: units that fired", what.c_str());
    }

    // Backward from the units as the kernels left them.
    const std::vector<uint8_t> own_before = own;
    run(
        what,
        [&] {
            own = own_before;
            experts_backward(gpu, e);
        },
        dx, dw_enc, db_enc, dw_dec, db_dec, dh, db, partial);
    rz = z.after(), rh = relu ? rz : h.after();
    Numbers rdx(slots * C), rdh(slots * D), rdw_enc = dw_enc.before(), rdb_enc = db_enc.before(),
                                            rdw_dec = dw_dec.before(), rdb_dec = db_dec.before();
    auto transpose = [&](Numbers& w) {
        Numbers was = w;
        for (size_t i = 0; i < D && dense; i++)
            for (size_t k = 0; k < C; k++) w[i * C + k] = was[k * D + i];
    };
    transpose(rdw_dec);
    reference::experts_backward(rdx.data(), rdw_enc.data(), rdb_enc.data(), rdw_dec.data(), rdb_dec.data(),
                                rdh.data(), dy.before().data(), rx.data(), rz.data(), rh.data(), re);
    Numbers got_dw_dec = dw_dec.after();
    transpose(got_dw_dec);
    compare(what + " dh", dh, rdh, fused ? once : twice);
    compare(what + " dx", dx, rdx, twice);
    compare(what + " dw_enc", dw_enc, rdw_enc, twice); // fp32, from dh
    compare(what + " db_enc", db_enc, rdb_enc, twice); // likewise
    compare(what + " dw_dec", got_dw_dec, rdw_dec, fp32_sum);
    compare(what + " db_dec", db_dec, rdb_dec, fp32_sum);
    return library;
}

// The rows of x (N,C) of each slot's token, times a weight.
static Numbers gathered(const Numbers& x, const std::vector<int>& token, const Numbers& weight, size_t C) {
    Numbers rows;
    for (size_t s = 0; s < token.size(); s++)
        for (size_t c = 0; c < C; c++) rows.push_back(weight[s] * x[size_t(token[s]) * C + c]);
    return rows;
}

// By hand. The second launch of each has another number of blocks: bits do not depend on it.
static void test_experts_by_hand(Gpu& gpu, const ExpertsCase& c, bool relu, bool keeps_h = false) {
    const bool dense = c.how == std::string("dense");
    const size_t N = c.N, E = c.E, K = c.K, D = c.D, C = c.C, slots = N * K;
    const std::string what = strf("experts by hand %s N %zu E %zu K %zu D %zu C %zu, %s",
                                  relu ? "relu" : "gelu", N, E, K, D, C, c.how);
    const std::vector<int> chosen = choices(N, E, K, c.how);
    std::vector<int> begins(E + 1), slot(slots), token(slots);
    reference::dispatch(begins.data(), slot.data(), token.data(), chosen.data(), N, E, K);
    const Array<floatX> w_enc = normals<floatX>(E * D * C, 1 / std::sqrt(double(C))),
                        b_enc = normals<floatX>(E * D, 0.5), b_dec = normals<floatX>(E * C),
                        w_dec = normals<floatX>(E * D * C, 1 / std::sqrt(double(D))),
                        x = normals<floatX>(N * C), dout = normals<floatX>(N * C);
    const Array<float> weight = variances(slots, 0.5), dweight(slots);
    std::vector<float> by_slot(slots);
    for (size_t i = 0; i < slots; i++) by_slot[slot[i]] = dense ? 1 : weight.initial[i];
    const Array<int> begin(begins), choice(chosen), slot_of(slot), token_of(token);
    const Array<float> slot_weight(by_slot);
    const Array<floatX> h(relu && !keeps_h ? 0 : slots * D), z(slots * D), y(slots * C), dx(slots * C),
        dh(slots * D), dy(dense ? 0 : slots * C);
    const Array<float> dw_enc = normals<float>(E * D * C), db_enc = normals<float>(E * D),
                       dw_dec = normals<float>(E * D * C), db_dec = normals<float>(E * C);
    const Array<float> z_sums(slots * UnitsBackward::parts(int(D))),
        partial(std::max(bias_parts(slots, E) * std::max(C, D), UnitsBackward::sums_rows(slots, E) * D));
    size_t extra = 0; // and no more
    const int most = int(part_rows(slots, D, C));
    for (size_t j = 0; j < E; j++) extra += size_t(std::max(0, (begins[j + 1] - begins[j] - 1) / most));
    check(extra <= extra_parts(D, C), "%s: %zu parts", what.c_str(), extra);
    const Array<float> parts(extra * D * C);
    const Array<unsigned long long> active(std::vector<unsigned long long>{5});

    Experts e = {};
    e.E = E, e.D = D, e.C = C;
    e.relu = relu;
    e.keeps_h = keeps_h;
    e.by_hand = true;
    e.w_enc = w_enc, e.b_enc = b_enc, e.w_dec = w_dec, e.b_dec = b_dec;
    e.dw_enc = dw_enc, e.db_enc = db_enc, e.dw_dec = dw_dec, e.db_dec = db_dec;
    e.w_dec_transposed = dense;
    e.begin = begin;
    std::vector<uint8_t> own(E);
    e.own = own.data();
    e.tokens_x = x, e.tokens_dout = dout;
    e.y = y, e.h = h, e.z = z;
    e.dx = dx, e.dh = dh, e.dy = dense ? dout : dy;
    e.partial = partial, e.z_sums = z_sums, e.parts = parts;
    e.dweight = dweight;
    e.active = active;
    if (dense) {
        e.host_begin = begins.data();
    } else {
        e.router.N = N, e.router.E = E, e.router.K = K, e.router.C = C;
        e.router.choice = choice, e.router.weight = weight;
        e.router.slot = slot_of, e.router.token = token_of, e.router.slot_weight = slot_weight;
    }
    const unsigned multiprocessors = gpu.chip.multiprocessors;
    auto on_another_card = [&] {
        gpu.chip.multiprocessors = gpu.chip.multiprocessors == 1 ? multiprocessors : 1;
    };

    run(
        what,
        [&] {
            on_another_card();
            experts_encode(gpu, e);
            experts_decode(gpu, e);
        },
        h, z, y, active);
    const Numbers w = slot_weight.before(), rw_enc = w_enc.before(), rb_enc = b_enc.before(),
                  rb_dec = b_dec.before(), rx = gathered(x.before(), token, Numbers(slots, 1), C);
    Numbers rw_dec = w_dec.before();
    auto transpose = [&](Numbers& numbers) { // dense: (C,D) in memory
        const Numbers was = numbers;
        for (size_t i = 0; i < D && dense; i++)
            for (size_t k = 0; k < C; k++) numbers[i * C + k] = was[k * D + i];
    };
    transpose(rw_dec);
    const reference::Experts re = {
        E, D, C, relu, rw_enc.data(), rb_enc.data(), rw_dec.data(), rb_dec.data(), begins.data()};
    Numbers rh(slots * D), rz(slots * D), ry(slots * C);
    reference::experts_forward(ry.data(), rz.data(), rh.data(), rx.data(), re);
    if (h.initial.size()) compare(what + " h", h, rh, rounded);
    compare(what + " z", z, rz, rounded);
    for (size_t i = 0; i < ry.size(); i++) ry[i] *= w[i / C];
    compare(what + " y", y, ry, rounded_twice);
    rz = z.after();
    const auto fired = size_t(std::count_if(rz.begin(), rz.end(), [](double unit) { return unit > 0; }));
    check(active.result()[0] == 5 + fired, "%s: units that fired", what.c_str());

    // Backward from the units as the kernels left them.
    run(
        what,
        [&] {
            on_another_card();
            experts_backward(gpu, e);
        },
        dx, dw_enc, db_enc, dw_dec, db_dec, dh, dy, dweight, partial, z_sums);
    check(gpu.chip.multiprocessors == multiprocessors);
    rh = relu ? rz : h.after();
    const Numbers rdout = gathered(dout.before(), token, Numbers(slots, 1), C),
                  rdy = gathered(dout.before(), token, w, C);
    Numbers rdx(slots * C), rdh(slots * D), rdw_enc = dw_enc.before(), rdb_enc = db_enc.before(),
                                            rdw_dec = dw_dec.before(), rdb_dec = db_dec.before();
    transpose(rdw_dec);
    reference::experts_backward(rdx.data(), rdw_enc.data(), rdb_enc.data(), rdw_dec.data(), rdb_dec.data(),
                                rdh.data(), rdy.data(), rx.data(), rz.data(), rh.data(), re);
    Numbers got_dw_dec = dw_dec.after();
    transpose(got_dw_dec);
    compare(what + " dh", dh, rdh, rounded);
    compare(what + " dx", dx, rdx, rounded_twice);
    compare(what + " dw_enc", dw_enc, rdw_enc, rounded); // fp32, from dh
    compare(what + " db_enc", db_enc, rdb_enc, fp32_sum);
    compare(what + " dw_dec", got_dw_dec, rdw_dec, dense ? fp32_sum : rounded); // from dy
    compare(what + " db_dec", db_dec, rdb_dec, dense ? fp32_sum : rounded);     // likewise
    if (dense) return;
    compare(what + " dy", dy, rdy, rounded);
    Numbers rdweight(slots); // dout . (z W_dec + b_dec)
    for (size_t i = 0; i < slots; i++) {
        const size_t s = slot[i], j = chosen[i];
        for (size_t k = 0; k < C; k++) {
            double out = rb_dec[j * C + k];
            for (size_t d = 0; d < D; d++) out += rz[s * D + d] * rw_dec[(j * D + d) * C + k];
            rdweight[i] += rdout[s * C + k] * out;
        }
    }
    compare(what + " dweight", dweight, rdweight, fp32_sum);
}

// By hand: by mma.sync on every card, and by wgmma where there is.
template <class F> void each_way(Gpu& gpu, F test) {
    const Chip chip = gpu.chip;
    test();
    gpu.chip.wgmma = false;
    if (chip.wgmma) test();
    gpu.chip = chip;
}

// By hand the bits of a slot are those of its own row and expert: alone, or with all the others.
static void test_neighbours(Gpu& gpu) {
    const size_t E = 3, M = 136, K = 40, rows = 300;
    const Array<floatX> a = normals<floatX>(rows * K), b = normals<floatX>(E * M * K),
                        bias = normals<floatX>(E * M), before(rows * M), together(rows * M), alone(M);
    const Array<int> begin(std::vector<int>{0, 130, 130, int(rows)});
    run(
        "grouped",
        [&] {
            grouped_multiply({a, b, begin, nullptr, int(E), int(M), int(K)}, false,
                             Units{together, before, bias, nullptr, true}, gpu.chip, gpu.stream);
        },
        together, before);
    const Numbers all = together.after(), h = before.after();
    size_t wrong = 0;
    for (size_t i = 0; i < all.size(); i++) wrong += !(all[i] == std::max(h[i], 0.0));
    check(wrong == 0, "grouped: %zu units are not the relu of what they were before", wrong);
    for (const int row : {0, 127, 128, 129, 130, 257, 299}) {
        const Array<int> one(row < 130 ? std::vector<int>{0, 1, 1, 1} : std::vector<int>{0, 0, 0, 1}),
            token(std::vector<int>{row});
        run(
            "grouped, alone",
            [&] {
                grouped_multiply({a, b, one, token, int(E), int(M), int(K)}, false,
                                 Units{alone, nullptr, bias, nullptr, true}, gpu.chip, gpu.stream);
            },
            alone);
        const Numbers got = alone.after();
        check(std::equal(got.begin(), got.end(), all.begin() + row * std::ptrdiff_t(M)), "grouped: row %d",
              row);
    }
}

static void test_all_experts(Gpu& gpu) {
    const std::vector<ExpertsCase> cases = {
        {1, 1, 1, 8, 8, "random"},       {31, 2, 1, 64, 64, "random"},  {63, 3, 3, 72, 136, "random"},
        {64, 8, 2, 128, 64, "few"},      {65, 9, 1, 136, 64, "same"},   {127, 40, 2, 64, 8, "random"},
        {1023, 8, 2, 256, 64, "random"}, {65, 1, 1, 256, 136, "dense"}, {1, 1, 1, 64, 64, "dense"},
    };
    size_t fused = 0;
    for (const bool relu : {true, false})
        for (const ExpertsCase& c : cases) {
            test_experts(gpu, c, relu, false);
            fused += test_experts(gpu, c, relu, true);
            each_way(gpu, [&] { test_experts_by_hand(gpu, c, relu); });
        }
    // By hand, where tiles end in every way: rows, columns, channels of the sum; where the rows of an expert
    // are cut into parts, of one, of two, of all.
    for (const ExpertsCase& c : {ExpertsCase{129, 1, 1, 136, 72, "dense"},
                                 {300, 5, 2, 144, 152, "random"},
                                 {257, 1, 1, 72, 136, "dense"},
                                 {700, 4, 1, 72, 136, "same"},
                                 {600, 3, 2, 136, 264, "few"}})
        each_way(gpu, [&] { test_experts_by_hand(gpu, c, true, true); });
    each_way(gpu, [&] { test_neighbours(gpu); });
    if (!getenv("EMU_CUBLASLT_EPILOGUES")) check(fused > 0, "no fused epilogue was tested");

    // Some experts have too few tokens for any fused algorithm, forward or backward: bias and activation are
    // then made by our kernels, for these alone.
    for (const char* missing : {"relu_aux_bias//12,gelu_aux_bias//12", "drelu_bgrad//12,dgelu_bgrad//12"})
        for (const bool relu : {true, false}) {
            setenv("EMU_CUBLASLT_MISSING", missing, 1);
            Gpu other; // that has not asked yet
            const size_t library = test_experts(other, {64, 8, 2, 128, 64, "random"}, relu, true);
            unsetenv("EMU_CUBLASLT_MISSING");
            check(library > 0 && library <= 8, "%s: %zu experts were left to the library", missing, library);
        }
}

// NaN in, NaN out, whoever applies the activation: among the weights of units that relu would not let pass.
static void test_hidden_nan(Gpu& gpu) {
    for (const size_t count : {1, 1000, 100000}) {
        Array<floatX> x = normals<floatX>(count);
        Array<float> hidden(std::vector<float>{0});
        find_nan(hidden, x, count, gpu.stream);
        check(hidden.result()[0] == 0);
        x.initial[count - 1] = floatX(INFINITY);
        x.restore();
        find_nan(hidden, x, count, gpu.stream);
        check(hidden.result()[0] == 0);
        x.initial[count / 2] = floatX(NAN);
        x.restore();
        find_nan(hidden, x, count, gpu.stream);
        check(all_nan(hidden.after()));
    }
}

int main() {
    return run_main([] {
        Gpu gpu;
        auto timed = [](const char* what, auto test) {
            const double begin = now_seconds();
            test();
            if (getenv("MOEX_TEST_VERBOSE")) printf("-- %s: %.1f s\n", what, now_seconds() - begin);
        };
        timed("warp_sums", [&] { test_warp_sums(gpu); });
        timed("sum_partials", [&] { test_sum_partials(gpu); });
        timed("layernorm", [&] { test_layernorm(gpu); });
        timed("layernorm_backward", [&] { test_layernorm_backward(gpu); });
        timed("embedding", [&] { test_embedding(gpu); });
        timed("bias_backward", [&] { test_bias_backward(gpu); });
        timed("attention", [&] { test_attentions(gpu); });
        timed("expert_statistics", [&] { test_expert_statistics(gpu); });
        timed("router", [&] { test_router(gpu); });
        timed("scaled", [&] { test_scaled(gpu); });
        timed("dispatch", [&] { test_dispatch(gpu); });
        timed("gather", [&] { test_gather(gpu); });
        timed("activation", [&] { test_activation(gpu); });
        timed("geglu", [&] { test_geglu(gpu); });
        timed("solu", [&] { test_solu(gpu); });
        timed("combine", [&] { test_combine(gpu); });
        timed("classifier", [&] { test_classifier(gpu); });
        timed("sum_losses", [&] { test_sum_losses(gpu); });
        timed("gradient_norm", [&] { test_gradient_norm(gpu); });
        timed("rounding", [&] { test_rounding(gpu); });
        timed("update", [&] { test_update(gpu); });
        timed("multiply", [&] { test_multiply(gpu); });
        timed("linear", [&] { test_linear(gpu); });
        timed("algorithms", [&] { test_algorithms(); });
        timed("experts", [&] { test_all_experts(gpu); });
        timed("hidden_nan", [&] { test_hidden_nan(gpu); });
        return finish();
    });
}
