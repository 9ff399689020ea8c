// The reference model, piece by piece and as a whole, against numbers computed by hand and against plain
// loops in double, written here from the formulas of the model. What finite differences prove
// (test_gradients.cpp) is not repeated. The same source builds in float and with -DMOEX_DOUBLE; tolerances
// follow the type.
#include "../dev/cpu/decode.h"
#include "../dev/cpu/sparse.h"
#include "../dev/lib/terminal.h"
#include "../dev/run/sampler.h"
#include "check.h"
#include "variants.h"
#include <array>
#include <bit>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <thread>

constexpr double epsilon = std::numeric_limits<real>::epsilon();

using Vector = std::vector<double>;

// ---------------------------------------------------------------------------------------------------------
// Helpers

static std::vector<real> normals(uint64_t stream, size_t count, double scale = 1) {
    std::vector<real> out(count);
    for (size_t i = 0; i < count; i++) out[i] = real(scale * random_normal(17, stream, i));
    return out;
}
// From -8 to 8: sums of thousands of products of such numbers are exact in float, in any order.
static real whole(uint64_t stream, size_t i) { return real(int(mix64(stream << 40 ^ i) % 17) - 8); }

static std::vector<int32_t> some_tokens(uint64_t stream, size_t count, size_t V) {
    std::vector<int32_t> out(count);
    for (size_t i = 0; i < count; i++) out[i] = int32_t(random_u64(3, stream, i) % V);
    return out;
}

// Every |got - expected| <= tolerance * (largest |expected|); false when anything is NaN.
static void check_all(const std::string& what, const real* got, const Vector& expected, double tolerance) {
    double size = 0, worst = 0;
    size_t at = 0;
    for (const double e : expected) size = std::fmax(size, std::fabs(e));
    for (size_t i = 0; i < expected.size(); i++) {
        const double difference = std::fabs(got[i] - expected[i]);
        if (!(difference <= worst)) worst = difference, at = i;
        if (!(difference <= tolerance * size)) break;
    }
    check(worst <= tolerance * size, "%s: [%zu] is %.9g, expected %.9g (relative error %.3g of %.3g)",
          what.c_str(), at, double(got[at]), expected[at], worst / size, tolerance);
    if (getenv("MOEX_TEST_VERBOSE")) printf("%-60s %.2g of %.2g\n", what.c_str(), worst / size, tolerance);
}
static void check_all(const std::string& what, const std::vector<real>& got, const Vector& expected,
                      double tolerance = 4 * epsilon) {
    if (check(got.size() >= expected.size(), "%s: too few numbers", what.c_str()))
        check_all(what, got.data(), expected, tolerance);
}
template <class T> std::string list_text(const std::vector<T>& list) {
    std::string text;
    for (const T& x : list) text += strf("%s%.9g", text.empty() ? "" : " ", double(x));
    return text;
}
template <class T>
void check_list(const char* what, const std::vector<T>& got, const std::vector<T>& expected) {
    check(got == expected, "%s: %s, expected %s", what, list_text(got).c_str(), list_text(expected).c_str());
}
static bool same_bits(const Block& a, const Block& b) {
    return a.count == b.count && a.count && memcmp(a.data, b.data, a.count * sizeof(real)) == 0;
}

struct Variant {
    const char *name, *ffn, *act, *router;
    size_t E = 4, K = 2;
    bool skip_zeros = false; // the products that skip relu's zeros, whatever the share of active units
    Later later = {};
};
static const std::vector<Variant> variants = {
    {"moe relu sparsity", "moe", "relu", "sparsity"},
    {"moe gelu topk", "moe", "gelu", "topk"},
    {"moe relu topk", "moe", "relu", "topk"},
    {"moe gelu sparsity", "moe", "gelu", "sparsity"},
    {"dense gelu", "dense", "gelu", "sparsity"},
    {"dense relu", "dense", "relu", "sparsity"},
    {"dense geglu", "dense", "geglu", "sparsity"},
    {"dense solu", "dense", "solu", "sparsity"},
    {"moe sparsity K = 1", "moe", "relu", "sparsity", 3, 1},
    {"moe sparsity K = E", "moe", "relu", "sparsity", 3, 3},
    {"moe topk K = 1", "moe", "gelu", "topk", 3, 1},
    {"zeros skipped", "moe", "relu", "sparsity", 4, 2, true},
    {"gate all", "moe", "relu", "sparsity", 4, 2, false, {.gate = "all"}},
    {"topk, gate all, K = 1", "moe", "gelu", "topk", 3, 1, false, {.gate = "all"}},
    {"balance bias", "moe", "relu", "sparsity", 4, 2, false, {.balance = "bias"}},
    {"sd scaled", "moe", "relu", "sparsity", 4, 2, false, {.router_sd = "scaled"}},
    {"sd full", "moe", "gelu", "sparsity", 4, 2, false, {.router_sd = "full"}},
    {"unit top", "moe", "relu", "sparsity", 4, 2, true, {.unit_top = 3}},
    {"hd", "monet-hd", "relu2", "sparsity", 1, 1, false, {7, 3, 2, 0, 1}},
    {"hd share 2", "monet-hd", "relu2", "sparsity", 1, 1, false, {7, 3, 2, 0, 2}},
    {"vd share 2", "monet-vd", "relu2", "sparsity", 1, 1, false, {7, 3, 2, 0, 2}},
    {"peer gelu", "peer", "gelu", "sparsity", 1, 1, false, {6, 3, 4, 10, 0}},
    {"peer relu", "peer", "relu", "sparsity", 1, 1, false, {5, 4, 5, 6, 0}},
};

struct Sizes {
    size_t L = 2, NH = 2, C = 16, D = 12, T = 10, V = 13;
};
static Config config_of(const Variant& v, const Sizes& s = {}) {
    Config c;
    c.n_layer = s.L, c.n_head = s.NH, c.n_embd = s.C, c.block_size = s.T, c.vocab_size = s.V,
    c.d_expert = s.D;
    c.ffn = v.ffn, c.act = v.act, c.router = v.router, c.n_expert = v.E, c.n_expert_active = v.K;
    set_later(c, v.later);
    return c;
}
static Model model_of(const Variant& v, size_t B, size_t T, const Sizes& s = {}) {
    Model model(config_of(v, s), B, T);
    if (v.skip_zeros) model.skip = {1, 1, 1};
    return model;
}
// Weights large enough that attention, routing and both moments of the router matter.
static void randomize(Model& model, uint64_t seed = 1, double scale = 0.2) {
    init_parameters(model.config, model.table, model.weights.data, seed);
    for (const Tensor& t : model.table)
        for (size_t i = t.offset; i < t.offset + t.count; i++)
            model.weights.data[i] += real(scale * random_normal(seed, 99, i));
    model.statistics_stale = true;
}
static const Tensor& find_tensor(const Model& model, const std::string& name) {
    for (const Tensor& t : model.table)
        if (t.name == name) return t;
    fail("no tensor %s", name.c_str());
}
// One optimizer step on micro-batches of B x T tokens, clipped as the trainer does. Returns the mean loss.
static double train_step(Model& model, const std::vector<int32_t>& x, const std::vector<int32_t>& y, size_t B,
                         size_t T, uint64_t t, double lr, double aux_weight = 1e-2) {
    const size_t micros = x.size() / (B * T);
    const real share = real(1) / micros;
    double loss = 0;
    zero_gradients(model);
    for (size_t i = 0; i < micros; i++) {
        loss += forward(model, &x[i * B * T], &y[i * B * T], B, T, share).loss / micros;
        backward(model, share * real(aux_weight));
    }
    const double norm = gradient_norm(model);
    AdamW adam;
    adam.lr = lr;
    update(model, adam, t, norm > 1 ? 1 / norm : 1);
    update_running(model, 1e-2);
    return loss;
}

// ---------------------------------------------------------------------------------------------------------
// Matrix products

// A (rows, columns) matrix of whole numbers, by rows or by columns, with NaN in the gaps between them.
struct Stored {
    std::vector<real> data;
    Matrix matrix;
    Stored(uint64_t stream, size_t rows, size_t columns, bool transposed) {
        const size_t lines = transposed ? columns : rows, stride = (transposed ? rows : columns) + 3;
        data.assign(lines * stride + 1, real(NAN));
        for (size_t i = 0; i < rows; i++)
            for (size_t j = 0; j < columns; j++)
                data[transposed ? j * stride + i : i * stride + j] = whole(stream, i * columns + j);
        matrix = transposed ? Matrix{data.data(), 1, stride} : Matrix{data.data(), stride, 1};
    }
};

static Vector plain_product(Matrix a, Matrix b, size_t M, size_t N, size_t K) {
    Vector out(M * N);
    for (size_t i = 0; i < M; i++)
        for (size_t k = 0; k < K; k++)
            for (size_t j = 0; j < N; j++) out[i * N + j] += double(a.at(i, k)) * b.at(k, j);
    return out;
}

enum Mode { assign, with_bias, accumulated };

// The output of multiply() for one product, exact; nothing written beyond the end.
static void check_product(const char* what, const Product& p, const std::vector<real>& out,
                          const Vector& plain, Mode mode) {
    bool exact = out[p.M * p.N] == 12345;
    for (size_t i = 0; i < p.M * p.N; i++) {
        const real start = mode == with_bias ? whole(3, i % p.N) : mode == accumulated ? whole(4, i) : 0;
        exact = exact && out[i] == plain[i] + start;
    }
    check(exact, "%s: %zu x %zu x %zu, a %s, b %s, mode %d", what, p.M, p.N, p.K,
          p.a.row == 1 ? "transposed" : "plain", p.b.row == 1 ? "transposed" : "plain", int(mode));
}
static std::vector<real> start_of(size_t M, size_t N, Mode mode) {
    std::vector<real> out(M * N + 1, mode == accumulated ? real(0) : real(NAN));
    for (size_t i = 0; i < M * N && mode == accumulated; i++) out[i] = whole(4, i);
    out[M * N] = 12345;
    return out;
}

static void test_multiply() {
    std::vector<real> bias(2 * NC);
    for (size_t j = 0; j < bias.size(); j++) bias[j] = whole(3, j);
    for (const size_t M : {size_t(1), MR - 1, MR, MR + 1, MC + 1})
        for (const size_t N : {size_t(1), NR - 1, NR, NR + 1, round_up(NC, NR) + 1})
            for (const size_t K : {size_t(1), size_t(5), KC - 1, KC, KC + 1}) {
                const Stored a[] = {{1, M, K, false}, {1, M, K, true}},
                             b[] = {{2, K, N, false}, {2, K, N, true}};
                const Vector plain = plain_product(a[0].matrix, b[0].matrix, M, N, K);
                for (const Stored& left : a)
                    for (const Stored& right : b)
                        for (const Mode mode : {assign, with_bias, accumulated}) {
                            std::vector<real> out = start_of(M, N, mode);
                            const Product p = {out.data(),
                                               left.matrix,
                                               right.matrix,
                                               M,
                                               N,
                                               K,
                                               mode == accumulated,
                                               mode == with_bias ? bias.data() : nullptr};
                            multiply(p);
                            check_product("multiply", p, out, plain, mode);
                        }
            }

    // A group of products of every kind, among them empty ones.
    const struct {
        size_t M, N, K;
        bool a_transposed, b_transposed;
        Mode mode;
    } shapes[] = {{5, 40, 30, false, true, assign},
                  {0, 40, 30, false, true, with_bias},
                  {300, 70, KC + 8, true, false, accumulated},
                  {1, 1, 1, false, false, with_bias},
                  {7, 0, 9, false, false, assign},
                  {97, 2 * NC, 3, false, true, with_bias},
                  {MC, NR, 2, true, true, accumulated}};
    std::vector<Stored> a, b;
    std::vector<std::vector<real>> out;
    std::vector<Product> group;
    for (const auto& s : shapes) {
        a.emplace_back(1, s.M, s.K, s.a_transposed), b.emplace_back(2, s.K, s.N, s.b_transposed);
        out.push_back(start_of(s.M, s.N, s.mode));
    }
    for (size_t i = 0; i < a.size(); i++)
        group.push_back({out[i].data(), a[i].matrix, b[i].matrix, shapes[i].M, shapes[i].N, shapes[i].K,
                         shapes[i].mode == accumulated, shapes[i].mode == with_bias ? bias.data() : nullptr});
    multiply(group.data(), group.size());
    for (size_t i = 0; i < a.size(); i++)
        check_product("group", group[i], out[i],
                      plain_product(a[i].matrix, b[i].matrix, shapes[i].M, shapes[i].N, shapes[i].K),
                      shapes[i].mode);
    multiply(group.data(), 0);

    // Rows that an index finds, in either operand; and every element is finished exactly once.
    std::vector<int32_t> index(KC + MC + 1);
    for (size_t i = 0; i < index.size(); i++) index[i] = int32_t(random_u64(7, 1, i) % 50);
    for (const std::array<size_t, 3>& sizes :
         {std::array{MC + 3, 2 * NR + 1, KC + 5}, {MR, NC + NR, size_t(9)}}) {
        const size_t M = sizes[0], N = sizes[1], K = sizes[2];
        const Stored rows_a = {1, 50, K, false}, rows_b = {2, 50, N, false}, plain_b = {2, K, N, false},
                     turned = {1, M, K, true};
        Matrix indexed = rows_a.matrix, indexed_b = rows_b.matrix;
        indexed.index = indexed_b.index = index.data();
        check(indexed.from(2, 1).at(1, 2) == rows_a.matrix.at(size_t(index[3]), 3));
        std::vector<real> out_a = start_of(M, N, accumulated), out_b = start_of(M, N, with_bias);
        const Product both[] = {{out_a.data(), indexed, plain_b.matrix, M, N, K, true},
                                {out_b.data(), turned.matrix, indexed_b, M, N, K, false, bias.data()}};
        std::vector<int> finished(2 * M * N);
        multiply(both, 2, [&](size_t p, size_t i, size_t j, size_t rows, size_t columns) {
            for (size_t r = i; r < i + rows; r++)
                for (size_t c = j; c < j + columns; c++) finished[(p * M + r) * N + c]++;
        });
        check_product("rows of a by index", both[0], out_a, plain_product(indexed, plain_b.matrix, M, N, K),
                      accumulated);
        check_product("rows of b by index", both[1], out_b, plain_product(turned.matrix, indexed_b, M, N, K),
                      with_bias);
        check(finished == std::vector<int>(2 * M * N, 1), "finished once");
    }

    // Rounding stays that of a sum in order: with K random terms of size 1 about 0.2 K epsilon. In double the
    // sum it is held against rounds as much.
    const size_t M = 33, N = 65, K = 3 * KC + 7;
    const std::vector<real> x = normals(5, M * K), y = normals(6, K * N);
    std::vector<real> product(M * N);
    multiply({product.data(), row_major(x.data(), K), row_major(y.data(), N), M, N, K, false, nullptr});
    const Vector plain = plain_product(row_major(x.data(), K), row_major(y.data(), N), M, N, K);
    double worst = 0;
    for (size_t i = 0; i < M * N; i++) worst = std::fmax(worst, std::fabs(product[i] - plain[i]));
    check(worst <= 2 * K * epsilon, "worst error %.3g, expected at most %.3g", worst, 2 * K * epsilon);
    const Matrix shifted = row_major(x.data(), K).from(2, 3).transposed();
    check(shifted.at(4, 5) == x[(2 + 5) * K + 3 + 4]);
}

// An expert's products that skip zeros, beside what plain loops over everything give. The numbers are small
// and whole (z in halves), so that every sum is exact; a guard stands behind each output.
struct SkippingCase {
    size_t n, D, C;
    std::vector<real> z, w_enc, w_dec, b_dec, x, dy, y, dh, dx, dw_enc, dw_dec;
    std::vector<int32_t> token; // where the rows of x are; empty: in order
    Vector expected_y, expected_dh, expected_dx, expected_dw_enc, expected_dw_dec;

    SkippingCase(size_t n, size_t D, size_t C, double density, uint64_t seed) : n(n), D(D), C(C) {
        auto numbers = [&](uint64_t stream, size_t count) {
            std::vector<real> out(count + 1, 12345);
            for (size_t i = 0; i < count; i++) out[i] = real(int(random_u64(seed, stream, i) % 5) - 2);
            return out;
        };
        w_enc = numbers(1, D * C), w_dec = numbers(2, D * C), x = numbers(3, n * C), dy = numbers(4, n * C);
        b_dec = numbers(5, C), dw_enc = numbers(6, D * C), dw_dec = numbers(7, D * C); // added to
        for (auto [out, count] : {std::pair{&y, n * C}, {&dh, n * D}, {&dx, n * C}})   // written
            out->assign(count + 1, real(NAN)), out->back() = 12345;
        for (size_t s = 0; s < n && seed % 2; s++) token.push_back(int32_t(random_u64(seed, 9, s) % n));
        z.assign(n * D, 0);
        for (size_t i = 0; i < z.size(); i++)
            if (random_uniform(seed, 8, i) < density) z[i] = real(0.5) * (1 + i % 3);
        auto start = [](const std::vector<real>& v) { return Vector(v.begin(), v.end() - 1); };
        expected_dh.assign(n * D, 0), expected_dx.assign(n * C, 0);
        for (size_t i = 0; i < n * C; i++) expected_y.push_back(b_dec[i % C]);
        expected_dw_enc = start(dw_enc), expected_dw_dec = start(dw_dec);
        for (size_t s = 0; s < n; s++)
            for (size_t u = 0; u < D; u++) {
                const double unit = z[s * D + u];
                if (unit == 0) continue;
                double d = 0;
                for (size_t c = 0; c < C; c++) {
                    expected_y[s * C + c] += unit * w_dec[u * C + c];
                    expected_dw_dec[u * C + c] += unit * dy[s * C + c];
                    d += double(dy[s * C + c]) * w_dec[u * C + c];
                }
                expected_dh[s * D + u] = d;
                for (size_t c = 0; c < C; c++) {
                    expected_dx[s * C + c] += d * w_enc[u * C + c];
                    expected_dw_enc[u * C + c] += d * x[(token.empty() ? s : token[s]) * C + c];
                }
            }
    }
    ExpertPart part() {
        return {n,
                D,
                C,
                z.data(),
                w_enc.data(),
                w_dec.data(),
                b_dec.data(),
                y.data(),
                row_major(x.data(), C, token.empty() ? nullptr : token.data()),
                dy.data(),
                dh.data(),
                dx.data(),
                dw_enc.data(),
                dw_dec.data()};
    }
    void check_outputs(const char* what) const {
        auto exact = [](const std::vector<real>& got, const Vector& expected) {
            return std::equal(expected.begin(), expected.end(), got.begin(), got.end() - 1) &&
                   got.back() == 12345;
        };
        check(exact(y, expected_y), "%s: y, %zu slots, %zu units, %zu channels", what, n, D, C);
        check(exact(dh, expected_dh), "%s: dh, %zu slots, %zu units, %zu channels", what, n, D, C);
        check(exact(dx, expected_dx), "%s: dx, %zu slots, %zu units, %zu channels", what, n, D, C);
        check(exact(dw_enc, expected_dw_enc), "%s: dW_enc, %zu slots, %zu units, %zu channels", what, n, D,
              C);
        check(exact(dw_dec, expected_dw_dec), "%s: dW_dec, %zu slots, %zu units, %zu channels", what, n, D,
              C);
    }
};

static void test_skipping() {
    auto run = [](const char* what, std::vector<SkippingCase>& cases) {
        std::vector<ExpertPart> parts;
        for (SkippingCase& c : cases) parts.push_back(c.part());
        skipping_decode(parts.data(), parts.size());
        skipping_slots(parts.data(), parts.size());
        skipping_units(parts.data(), parts.size());
        for (const SkippingCase& c : cases) c.check_outputs(what);
    };
    // Lists that end anywhere in a chunk, groups of lanes of any size, channels beside the vector strips.
    const size_t strip = 8 * vector_length, chunk = list_chunk;
    const std::pair<size_t, size_t> sizes[] = {{1, 1},
                                               {1, chunk + 3},
                                               {list_lanes + 1, 33},
                                               {list_group, list_group + 1},
                                               {list_group + 1, chunk},
                                               {chunk + 3, list_lanes},
                                               {2 * chunk + 1, 3}};
    uint64_t seed = 100;
    for (const auto& [n, D] : sizes)
        for (const size_t C : {size_t(1), strip - 1, strip, strip + 1, 2 * strip + 44})
            for (const double density : {0.0, 0.1, 1.0}) {
                std::vector<SkippingCase> one = {{n, D, C, density, seed++}};
                run(strf("density %g", density).c_str(), one);
            }
    std::vector<SkippingCase> wide = {
        {50, 70, 4200, 0.3, 1}}; // rows so long that the shortest chunk is taken
    run("long rows", wide);
    // Several experts at once, one of them without slots.
    std::vector<SkippingCase> group = {
        {70, 40, 24, 0.2, 1}, {0, 40, 24, 1, 2}, {3, 40, 24, 0.5, 3}, {130, 9, 200, 0.1, 4}};
    run("group", group);
}

// ---------------------------------------------------------------------------------------------------------
// exp, tanh, gelu

static void test_functions() {
    double worst_exp = 0, worst_tanh = 0, worst_erf = 0, worst_gelu = 0, worst_slope = 0;
    for (const uint32_t sign : {0u, 1u << 31})
        for (uint32_t bits = 0; bits < 0x7F800000; bits += 1009) { // floats of every size
            const float x = std::bit_cast<float>(bits | sign);
            if (x >= -87 && x <= 88) {
                const double error = std::fabs(fast_exp(x) / std::exp(double(x)) - 1);
                worst_exp = error <= worst_exp ? worst_exp : error;
            }
            const double error = std::fabs(fast_tanh(x) - std::tanh(double(x)));
            worst_tanh = error <= worst_tanh ? worst_tanh : error;
            if (std::fabs(x) < 1e-37f) continue; // numbers too small to be whole have no relative error
            const double of_erf = std::fabs(fast_erf(x) / std::erf(double(x)) - 1);
            worst_erf = of_erf <= worst_erf ? worst_erf : of_erf;
        }
    check(worst_erf < 3e-7, "worst relative error of fast_erf %.3g", worst_erf);
    if (getenv("MOEX_TEST_VERBOSE")) printf("fast_erf: worst relative error %.3g\n", worst_erf);
    for (uint32_t bits = 0x3F700000; bits < 0x40900000;
         bits += 3) { // where its parts meet, and where it ends
        const float x = std::bit_cast<float>(bits);
        const double of_erf = std::fabs(fast_erf(x) / std::erf(double(x)) - 1);
        worst_erf = of_erf <= worst_erf && fast_erf(-x) == -fast_erf(x) ? worst_erf : 1;
    }
    check(worst_erf < 3e-7, "fast_erf between 0.94 and 4.5");
    check(fast_erf(0.0f) == 0 && fast_erf(4.0f) == 1 && fast_erf(-float(INFINITY)) == -1);
    check(std::isnan(fast_erf(float(NAN))) && std::isnan(fast_erf(double(NAN))) &&
          fast_erf(0.5) == std::erf(0.5));
    check(worst_exp < 3e-7, "worst relative error of fast_exp %.3g", worst_exp);
    check(worst_tanh < 2e-7, "worst absolute error of fast_tanh %.3g", worst_tanh);
    const float inf = INFINITY;
    check(fast_exp(0.0f) == 1 && fast_exp(-0.0f) == 1);
    for (const float x : {-87.001f, -100.0f, -1e30f, -inf})
        check(fast_exp(x) == 0, "fast_exp(%g)", double(x));
    for (const float x : {88.5f, 100.0f, 1e30f, inf})
        check(fast_exp(x) == fast_exp(88.0f), "fast_exp(%g)", double(x));
    check(fast_exp(88.0f) > 1.6e38 && fast_exp(-87.0f) > 0);
    check(fast_tanh(inf) == 1 && fast_tanh(-inf) == -1 && fast_tanh(0.0f) == 0);
    check(std::isnan(fast_exp(float(NAN))) && std::isnan(fast_exp(-float(NAN))) &&
          std::isnan(fast_tanh(float(NAN))));
    check(std::isnan(fast_exp(double(NAN))) && std::isnan(fast_tanh(double(NAN))) &&
          fast_exp(1.0) == std::exp(1.0));

    // gelu(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) and its derivative
    std::vector<real> x, out, slope;
    for (int i = -4800; i <= 4800; i++) x.push_back(real(i) / 400);
    x.push_back(1e4), x.push_back(-1e4);
    out.resize(x.size()), slope.assign(x.size(), 2);
    activation_forward(out.data(), x.data(), x.size(), false);
    activation_backward(slope.data(), slope.data(), x.data(), x.size(), false);
    for (size_t i = 0; i < x.size(); i++) {
        const double h = x[i], a = std::sqrt(2 / M_PI), t = std::tanh(a * (h + 0.044715 * h * h * h));
        const double e1 = std::fabs(out[i] - h / 2 * (1 + t)) / std::fmax(1, std::fabs(h));
        const double e2 =
            std::fabs(slope[i] - 2 * ((1 + t) / 2 + h / 2 * (1 - t * t) * a * (1 + 3 * 0.044715 * h * h)));
        worst_gelu = e1 <= worst_gelu ? worst_gelu : e1, worst_slope = e2 <= worst_slope ? worst_slope : e2;
    }
    check(worst_gelu < 2 * epsilon, "worst error of gelu %.3g", worst_gelu);
    check(worst_slope < 48 * epsilon, "worst error of its slope %.3g", worst_slope);
    check_near(gelu(real(1)), 0.8411919906082768, 2 * epsilon);
    check_near(gelu(real(-1)), -0.15880800939172324, 2 * epsilon);
    check_near(gelu(real(3)), 2.996362607918227, 4 * epsilon);
    check(gelu(real(0)) == 0);
    check_near(gelu_slope(real(1)), 1.0829640838457826, 4 * epsilon);
    check_near(gelu_slope(real(0)), 0.5, epsilon);

    // relu, and its backward in place from its own output
    const std::vector<real> h = {-2, 0, real(-0.0), 3, real(1e-30), real(INFINITY)};
    std::vector<real> z(h.size()), dh = {10, 20, 30, 40, 50, 60};
    activation_forward(z.data(), h.data(), h.size(), true);
    check_list("relu", z, {0, 0, 0, 3, real(1e-30), real(INFINITY)});
    activation_backward(dh.data(), dh.data(), z.data(), h.size(), true);
    check_list("relu backward", dh, {0, 0, 0, 40, 50, 60});
    const real nan = real(NAN);
    activation_forward(z.data(), &nan, 1, true);
    check(std::isnan(z[0]), "relu of NaN");
    activation_forward(z.data(), &nan, 1, false);
    check(std::isnan(z[0]), "gelu of NaN");
}

// ---------------------------------------------------------------------------------------------------------
// Layers by hand

static void test_layers() {
    // Embedding: B 2, T 2, C 2, V 3.
    const std::vector<real> wte = {1, 2, 3, 4, 5, 6}, wpe = {10, 20, 30, 40};
    const std::vector<int32_t> tokens = {2, 0, 2, 2};
    std::vector<real> out(8);
    embedding_forward(out.data(), tokens.data(), wte.data(), wpe.data(), 2, 2, 2);
    check_list("embedding", out, {15, 26, 31, 42, 15, 26, 35, 46});
    std::vector<real> dwte(6, 100), dwpe(4, 200), dout = {1, 2, 3, 4, 5, 6, 7, 8};
    embedding_backward(dwte.data(), dwpe.data(), dout.data(), tokens.data(), 2, 2, 2);
    check_list("embedding backward, tokens", dwte, {103, 104, 100, 100, 113, 116});
    check_list("embedding backward, positions", dwpe, {206, 208, 210, 212});

    // LayerNorm of (1,2,3,4): mean 2.5, variance 1.25; of a constant row: the bias.
    const std::vector<real> x = {1, 2, 3, 4, 7, 7, 7, 7}, weight = {1, 2, 1, -1}, bias = {0, 0, 10, 1};
    std::vector<real> mean(2), rstd(2);
    layernorm_forward(out.data(), mean.data(), rstd.data(), x.data(), weight.data(), bias.data(), 2, 4);
    check_all(
        "layernorm", out,
        {-1.3416354199689269, -0.894423613312618, 10.447211806656309, -0.3416354199689269, 0, 0, 10, 1});
    check_all("layernorm mean", mean, {2.5, 7});
    check_all("layernorm rstd", rstd, {0.894423613312618, 1 / std::sqrt(1e-5)});
    // Backward of the first row with dout = (1,0,0,0), weight 1: norm = (-3,-1,1,3)/2 rstd;
    // dx = rstd ((3,-1,-1,-1)/4 - norm norm_0 / 4), added to what is there.
    const std::vector<real> ones(4, 1);
    std::vector<real> dx(4, 5), dweight(4, 1), dbias(4, 2);
    const real one_hot[] = {1, 0, 0, 0};
    layernorm_backward(dx.data(), dweight.data(), dbias.data(), one_hot, x.data(), mean.data(), rstd.data(),
                       ones.data(), 1, 4);
    Vector expected(4);
    const double r = 1 / std::sqrt(1.25001);
    for (int i = 0; i < 4; i++) expected[i] = 5 + r * ((i == 0) - 0.25 - (i - 1.5) * r * (-1.5 * r) / 4);
    check_all("layernorm backward", dx, expected);
    check_all("layernorm backward, weight", dweight, {1 - 1.5 * r, 1, 1, 1});
    check_all("layernorm backward, bias", dbias, {3, 2, 2, 2});

    // Linear, 2 rows, 3 -> 2.
    const std::vector<real> in = {1, 2, 3, 0, -1, 4}, w = {1, 0, -1, 2, 2, 2}, b = {10, 20};
    std::vector<real> dw(6, 1), db(2, 1), din(6);
    linear_forward(out.data(), in.data(), w.data(), b.data(), 2, 3, 2);
    check_list("linear", std::vector<real>(out.begin(), out.begin() + 4), {8, 32, 6, 26});
    linear_forward(out.data(), in.data(), w.data(), nullptr, 2, 3, 2);
    check_list("linear without bias", std::vector<real>(out.begin(), out.begin() + 4), {-2, 12, -4, 6});
    const std::vector<real> d = {1, 0, 2, -1};
    linear_backward(din.data(), dw.data(), db.data(), d.data(), in.data(), w.data(), 2, 3, 2);
    check_list("linear backward, input", din, {1, 0, -1, 0, -2, -4});
    check_list("linear backward, weight", dw, {2, 1, 12, 1, 2, -3});
    check_list("linear backward, bias", db, {4, 0});

    // Classifier: logits log(1,2,3), so probabilities 1/6, 1/3, 1/2.
    std::vector<real> logits = {0, real(std::log(2)), real(std::log(3)), 10000, 10000, -10000}, losses(2);
    const std::vector<real> before = logits;
    const std::vector<int32_t> targets = {1, 0};
    classifier(losses.data(), logits.data(), targets.data(), 2, 3, 0);
    check_all("cross-entropy", losses, {std::log(3), std::log(2)});
    check(logits == before, "an evaluation leaves the logits");
    classifier(losses.data(), logits.data(), targets.data(), 2, 3, 6);
    check_all("cross-entropy", losses, {std::log(3), std::log(2)});
    check_all("cross-entropy backward", logits, {1, -4, 3, -3, 3, 0});
    for (size_t i = 0; i < 3; i++) {
        logits = {1, 2, 3};
        logits[i] = real(NAN);
        classifier(losses.data(), logits.data(), targets.data(), 1, 3, 0);
        check(std::isnan(losses[0]), "logit %zu is NaN, the loss %g", i, double(losses[0]));
    }
    // 1000 equal logits: log 1000, and the gradient sums to zero.
    std::vector<real> many(1000, -3);
    classifier(losses.data(), many.data(), targets.data(), 1, 1000, 1);
    check_near(losses[0], std::log(1000.0), 8 * epsilon);
    double sum = 0;
    for (const real g : many) sum += g;
    check_near(sum, 0, 8 * epsilon);

    std::vector<real> sums(130, 1), rows(3 * 130);
    for (size_t i = 0; i < rows.size(); i++) rows[i] = whole(1, i);
    add_column_sums(sums.data(), rows.data(), 3, 130);
    bool exact = true;
    for (size_t j = 0; j < 130; j++) exact = exact && sums[j] == 1 + rows[j] + rows[130 + j] + rows[260 + j];
    check(exact, "column sums");
}

// ---------------------------------------------------------------------------------------------------------
// Attention

struct NaiveAttention {
    Vector out, lse, dqkv; // (B,T,C) (B,NH,T) (B,T,3C)
};
static NaiveAttention naive_attention(const std::vector<real>& qkv, const std::vector<real>& dout, size_t B,
                                      size_t T, size_t C, size_t NH) {
    NaiveAttention r = {Vector(B * T * C), Vector(B * NH * T), Vector(B * T * 3 * C)};
    const size_t HS = C / NH;
    const double scale = 1 / std::sqrt(double(HS));
    for (size_t b = 0; b < B; b++)
        for (size_t h = 0; h < NH; h++)
            for (size_t i = 0; i < T; i++) {
                auto at = [&](size_t t, size_t which) { return (b * T + t) * 3 * C + which * C + h * HS; };
                Vector p(i + 1), dp(i + 1);
                double most = -INFINITY, sum = 0, delta = 0;
                for (size_t j = 0; j <= i; j++) {
                    for (size_t d = 0; d < HS; d++) p[j] += scale * qkv[at(i, 0) + d] * qkv[at(j, 1) + d];
                    most = std::fmax(most, p[j]);
                }
                for (double& x : p) sum += x = std::exp(x - most);
                r.lse[(b * NH + h) * T + i] = most + std::log(sum);
                const size_t o = (b * T + i) * C + h * HS;
                for (size_t j = 0; j <= i; j++) {
                    p[j] /= sum;
                    for (size_t d = 0; d < HS; d++) {
                        r.out[o + d] += p[j] * qkv[at(j, 2) + d];
                        dp[j] += double(dout[o + d]) * qkv[at(j, 2) + d];
                    }
                    delta += p[j] * dp[j];
                }
                for (size_t j = 0; j <= i; j++)
                    for (size_t d = 0; d < HS; d++) {
                        const double ds = scale * p[j] * (dp[j] - delta);
                        r.dqkv[at(i, 0) + d] += ds * qkv[at(j, 1) + d];
                        r.dqkv[at(j, 1) + d] += ds * qkv[at(i, 0) + d];
                        r.dqkv[at(j, 2) + d] += p[j] * dout[o + d];
                    }
            }
    return r;
}

static void test_attention() {
    // By hand, one head of 4, T 2. Position 0 sees itself: out = v_0. Position 1: q.k = (2, 0), scores (1,
    // 0), weights e/(1+e) = 0.7310586 and 0.2689414.
    const std::vector<real> qkv = {3, 1, 0, 0, /*k*/ 1, 0, 0, 0, /*v*/ 1, 2, 3, 4,
                                   2, 0, 0, 0, /*k*/ 0, 5, 0, 0, /*v*/ 5, 6, 7, 0};
    std::vector<real> out(8), lse(2), dqkv(24);
    attention_forward(out.data(), lse.data(), qkv.data(), 1, 1, 4, 1);
    check_all("attention, T 1", std::vector<real>(out.begin(), out.begin() + 4), {1, 2, 3, 4});
    check_near(lse[0], 1.5, 2 * epsilon);
    attention_forward(out.data(), lse.data(), qkv.data(), 1, 2, 4, 1);
    const double p = 0.7310585786300049, q = 0.2689414213699951;
    check_all("attention, T 2", out, {1, 2, 3, 4, p + 5 * q, 2 * p + 6 * q, 3 * p + 7 * q, 4 * p});
    check_all("attention, T 2, lse", lse, {1.5, 1.3132616875182228});
    // Backward with dout_1 = (1,0,0,0): dv = (p, q), dP = (1, 5), dS = p q (1-5), q (5 - p - 5q) = -4pq, 4pq,
    // halved.
    const std::vector<real> dout = {0, 0, 0, 0, 1, 0, 0, 0};
    attention_backward(dqkv.data(), dout.data(), out.data(), lse.data(), qkv.data(), 1, 2, 4, 1);
    const double s = 2 * p * q;
    check_all("attention backward, T 2", dqkv,
              {0, 0, 0, 0, -2 * s, 0, 0, 0, p, 0, 0, 0, -s, 5 * s, 0, 0, 2 * s, 0, 0, 0, q, 0, 0, 0},
              8 * epsilon);

    const size_t B = 2, NH = 2;
    for (const size_t HS : {4, 32, 64, 80})
        for (const size_t T : {1, 2, 63, 64, 65, 130, 257})
            for (const double scale :
                 {1.0, 4.0}) { // the larger one makes single keys win: large maxima, tiny tails
                if (scale > 1 && T != 130) continue;
                const size_t C = NH * HS;
                const std::vector<real> x = normals(T, B * T * 3 * C, scale), d = normals(T + 1, B * T * C);
                std::vector<real> y(B * T * C, real(NAN)), l(B * NH * T, real(NAN)), dx(x.size(), real(NAN));
                attention_forward(y.data(), l.data(), x.data(), B, T, C, NH);
                attention_backward(dx.data(), d.data(), y.data(), l.data(), x.data(), B, T, C, NH);
                const NaiveAttention naive = naive_attention(x, d, B, T, C, NH);
                const std::string what = strf("attention T %zu, head %zu, scale %g", T, HS, scale);
                check_all(what, y, naive.out, (scale > 1 ? 128 : 16) * epsilon);
                check_all(what + ", lse", l, naive.lse, 8 * epsilon);
                check_all(what + ", backward", dx, naive.dqkv, (scale > 1 ? 256 : 32) * epsilon);
            }
}

// ---------------------------------------------------------------------------------------------------------
// The pieces of the MoE-X layer by hand

static void test_router() {
    // Two experts of four units, two channels: columns 1,3,5,7 (mean 4, variance 5) and 0,0,0,8 (mean 2,
    // variance 12); then equal rows (variance 0).
    const size_t E = 2, D = 4, C = 2;
    const std::vector<real> w_enc = {1, 0, 3, 0, 5, 0, 7, 8, /*second*/ -1, 2, -1, 2, -1, 2, -1, 2};
    const std::vector<real> b_enc = {0, 0, 0, 4, /*second*/ -3, -3, -3, -3};
    std::vector<real> m(E * C), v(E * C), mb(E), vb(E), g(E), mu(E), sd(E);
    expert_statistics_forward(m.data(), v.data(), mb.data(), vb.data(), w_enc.data(), b_enc.data(), E, D, C);
    check_list("means", m, {4, 2, -1, 2});
    check_list("variances", v, {5, 12, 0, 0});
    check_list("bias means", mb, {1, -3});
    check_list("bias variances", vb, {3, 0});

    // x = (1,1): mu = 4+2+1 = 7, variance = 5+12+3 = 20, so g = -erf(7/sqrt(40)); the second expert is
    // certain: mu = -2, sd = 1e-6, no unit fires, g = 1.
    const std::vector<real> x = {1, 1};
    router_forward(g.data(), mu.data(), sd.data(), x.data(), m.data(), v.data(), mb.data(), vb.data(), 1, E,
                   C);
    check_list("mu", mu, {7, -2});
    check_all("sd", sd, {std::sqrt(20 + 1e-12), 1e-6});
    check_all("score", g, {-0.8824751319033608, 1}, 4 * epsilon + 1e-13);

    // mu / (sqrt(2) sd) = 1, 1/2, 0, -1 at variance 8: erf(1) = 0.84270079, erf(1/2) = 0.52049988.
    const real x1 = 1, m4[] = {4, 2, 0, -4}, v4[] = {8, 3, 8, 0}, mb4[] = {0, 0, 0, 0}, vb4[] = {0, 5, 0, 8};
    std::vector<real> g4(4), mu4(4), sd4(4);
    router_forward(g4.data(), mu4.data(), sd4.data(), &x1, m4, v4, mb4, vb4, 1, 4, 1);
    check_all("scores", g4, {-0.8427007929497149, -0.5204998778130465, 0, 0.8427007929497149},
              4 * epsilon + 1e-13); // 1e-13: of the 1e-12 in the variance
    // An expert without any weights: no units expected either way.
    const real zero[] = {0};
    router_forward(g4.data(), mu4.data(), sd4.data(), &x1, zero, zero, zero, zero, 1, 1, 1);
    check(g4[0] == 0);
}

static void test_choice() {
    const std::vector<real> g = {real(0.5), real(0.5), real(0.1), real(0.5)};
    for (size_t K = 1; K <= 4; K++) {
        std::vector<int32_t> choice(K);
        std::vector<real> weight(K);
        choice_forward(choice.data(), weight.data(), g.data(), 1, 4, K);
        const std::vector<int32_t> order = {0, 1, 3, 2};
        check_list("a tie goes to the lower index", choice,
                   std::vector<int32_t>(order.begin(), order.begin() + K));
        if (K < 4) check_all("equal scores weigh the same", weight, Vector(K, 1.0 / K));
    }
    // Softmax over the chosen only: log 3 against 0 is 3/4 and 1/4, whatever the others are.
    const std::vector<real> scores = {-1, 0, -5, real(std::log(3)), /*second token*/ 1000, -1000, 999, 998};
    std::vector<int32_t> choice(4);
    std::vector<real> weight(4);
    choice_forward(choice.data(), weight.data(), scores.data(), 2, 4, 2);
    check_list("the highest first", choice, {3, 1, 0, 2});
    check_all("softmax over the chosen", weight, {0.75, 0.25, 0.7310585786300049, 0.2689414213699951});
    choice_forward(choice.data(), weight.data(), scores.data(), 2, 4, 1);
    check(choice[0] == 3 && choice[1] == 0 && weight[0] == 1 && weight[1] == 1, "K = 1 weighs 1");

    // A bias moves the choice, not the weights: g 3 1 0 2 chosen as 3 + 0, 1 + 4, 0 + 4.5, 2 - 9. Then
    // weights over all of log 1, 2, 3, 4.
    const real g4[] = {3, 1, 0, 2}, bias[] = {0, 4, 4.5, -9};
    choice.resize(2), weight.resize(2);
    choice_forward(choice.data(), weight.data(), g4, 1, 4, 2, {bias, false});
    check_list("the highest with their bias", choice, {1, 2});
    check_all("weights without it", weight, {0.7310585786300049, 0.2689414213699951});
    const real logs[] = {0, real(std::log(2)), real(std::log(3)), real(std::log(4))};
    choice_forward(choice.data(), weight.data(), logs, 1, 4, 2, {nullptr, true});
    check_list("the gate over all", choice, {3, 2});
    check_all("weighs among all", weight, {0.4, 0.3});
    // p (1, 2, 3, 4)/10, dw (2, -2) at 3 and 2: sum dw w = 0.2; dg_j = p_j ([j in S] dw_j - 0.2).
    const std::vector<real> p = {real(0.1), real(0.2), real(0.3), real(0.4)}, dw_all = {2, -2};
    std::vector<real> dg_all = {1, 1, 1, 1};
    choice_backward(dg_all.data(), dw_all.data(), weight.data(), choice.data(), 1, 4, 2, p.data());
    check_all("gate over all, backward", dg_all, {1 - 0.02, 1 - 0.04, 1 + 0.3 * -2.2, 1 + 0.4 * 1.8});
    // Loads 5, 1, 4, 2 of mean 3.
    std::vector<real> moved = {0, 0, 1, real(0.5)};
    const size_t load[] = {5, 1, 4, 2}, even[] = {3, 3, 3, 3};
    move_bias(moved.data(), load, real(0.25), 4);
    move_bias(moved.data(), even, real(0.25), 4);
    // The three largest of each slot, a tie to the lower index; a NaN stays.
    std::vector<real> z = {1, 5, 0, 3, 3, 3, /**/ 0, 2, 0, 0, 0, 1, /**/ 1, 4, 3, real(NAN), 2, 0};
    check(keep_largest(z.data(), 2, 6, 3) == 5);
    check_list("the largest units", std::vector<real>(z.begin(), z.begin() + 12),
               {0, 5, 0, 3, 3, 0, 0, 2, 0, 0, 0, 1});
    keep_largest(z.data() + 12, 1, 6, 3);
    check(std::isnan(z[15]), "NaN among the units");
    // Four tokens' pre-activations of variance 1, 4, 0 at expert 0, 9 at expert 1, whose sd are 2, 2, 1 and 3
    // with factors 2 and 1: true over diagonal is 5/2.25 = 20/9 and 1. An expert without slots keeps its
    // factor.
    const std::vector<real> h = {0, 2, 0, 4, 7, 7, 0, 6}, sd = {2, 0, 0, 2, 0, 0, 1, 3, 0, 9, 9, 9};
    std::vector<real> rho = {2, 1, 5};
    Variances variances[3];
    add_variances(variances, h.data(), sd.data(), rho.data(), std::vector<int32_t>{0, 3, 4, 4}.data(),
                  std::vector<int32_t>{0, 1, 2, 2}.data(), 3, 2);
    check_near(variances[0].truth, 5, 1e-6);
    check_near(variances[0].diagonal, 2.25, 1e-6);
    move_rho(rho.data(), variances, 3);
    check_all("rho", rho, {std::sqrt(0.99 * 4 + 0.01 * 5 / 2.25), 1, 5});
    check_list("the bias", moved, {real(-0.25), real(0.25), real(0.75), real(0.75)});

    // dg_k = w_k (dw_k - sum w dw), added to what the load balance wrote.
    const std::vector<real> w2 = {real(0.75), real(0.25)}, dw = {2, -2};
    const std::vector<int32_t> c2 = {3, 1};
    std::vector<real> dg = {1, 1, 1, 1};
    choice_backward(dg.data(), dw.data(), w2.data(), c2.data(), 1, 4, 2);
    check_list("choice backward", dg, {1, real(1 - 0.75), 1, real(1 + 0.75)});
}

static void test_dispatch() {
    struct Sorted {
        std::vector<int32_t> begin, slot, token;
    };
    auto sort = [](const std::vector<int32_t>& choice, size_t E, size_t K) {
        Sorted s = {std::vector<int32_t>(E + 1, -1), std::vector<int32_t>(choice.size(), -1),
                    std::vector<int32_t>(choice.size(), -1)};
        dispatch(s.begin.data(), s.slot.data(), s.token.data(), choice.data(), choice.size() / K, E, K);
        return s;
    };
    Sorted s = sort({2, 0, /**/ 0, 2, /**/ 3, 2, /**/ 2, 0}, 4, 2); // expert 1 is empty
    check_list("begin", s.begin, {0, 3, 3, 7, 8});
    check_list("slot", s.slot, {3, 0, 1, 4, 7, 5, 6, 2});
    check_list("token", s.token, {0, 1, 3, 0, 1, 2, 3, 2});
    s = sort({1, 1, 1, 1, 1}, 3, 1); // all on one expert, none dropped
    check_list("begin", s.begin, {0, 0, 5, 5});
    check_list("slot", s.slot, {0, 1, 2, 3, 4});
    check_list("token", s.token, {0, 1, 2, 3, 4});
    s = sort({2, 1, 0, 0, 1, 2}, 3, 3); // K = E
    check_list("begin", s.begin, {0, 2, 4, 6});
    check_list("slot", s.slot, {4, 2, 0, 1, 3, 5});
    check_list("token", s.token, {0, 1, 0, 1, 0, 1});

    // Many random ones: the slots of an expert are its assignments in the order of the tokens.
    const size_t N = 1000, E = 7, K = 3;
    std::vector<real> g = normals(1, N * E), weight(N * K);
    std::vector<int32_t> choice(N * K);
    choice_forward(choice.data(), weight.data(), g.data(), N, E, K);
    s = sort(choice, E, K);
    std::vector<int32_t> next(s.begin.begin(), s.begin.end() - 1);
    bool right = s.begin[0] == 0 && s.begin[E] == int32_t(N * K);
    for (size_t i = 0; i < N * K; i++)
        right = right && s.slot[i] == next[choice[i]]++ && s.token[s.slot[i]] == int32_t(i / K);
    for (size_t j = 0; j < E; j++) right = right && next[j] == s.begin[j + 1];
    check(right, "a stable counting sort");

    // gather, and its backward: a token receives from each of its slots.
    const std::vector<real> x = {1, 2, 3, 4};
    std::vector<real> slots_x(8), dx(4, 77);
    gather(slots_x.data(), x.data(), std::vector<int32_t>{1, 0, 1, 0}.data(), 4, 2);
    check_list("gather", slots_x, {3, 4, 1, 2, 3, 4, 1, 2});
    const std::vector<real> dslots = {1, 2, 10, 20, 100, 200, 1000, 2000};
    gather_backward(dx.data(), dslots.data(), std::vector<int32_t>{1, 3, 0, 2}.data(), 2, 2, 2);
    check_list("gather backward", dx, {1010, 2020, 101, 202});

    // combine: the residual plus the weighted outputs; backward: dy = w dout, dw = dout . y
    const std::vector<real> residual = {100, 200, 300, 400},
                            w = {real(0.75), real(0.25), real(0.5), real(0.5)};
    const std::vector<int32_t> slot = {1, 3, 0, 2};
    std::vector<real> out(4), dy(8), dweight(4);
    combine_forward(out.data(), residual.data(), dslots.data(), w.data(), slot.data(), 2, 2, 2);
    check_list("combine", out, {real(100 + 7.5 + 250), 200 + 15 + 500, real(300 + 0.5 + 50), 400 + 1 + 100});
    const std::vector<real> dout = {4, 8, -4, 0};
    combine_backward(dy.data(), dweight.data(), dout.data(), dslots.data(), w.data(), slot.data(), 2, 2, 2);
    check_list("combine backward, outputs", dy, {-2, 0, 3, 6, -2, 0, 1, 2});
    check_list("combine backward, weights", dweight, {200, 20000, -4, -400});
}

static void test_balance() {
    auto aux = [](const std::vector<real>& g, const std::vector<int32_t>& begin, size_t E, size_t K) {
        std::vector<real> p(g.size()), mean(E);
        return balance_forward(p.data(), mean.data(), g.data(), begin.data(), g.size() / E, E, K);
    };
    check_near(aux(std::vector<real>(4 * 8, real(0.3)), {0, 1, 2, 3, 4, 5, 6, 7, 8}, 8, 2), 1, 4 * epsilon);
    check_near(aux({0, 9, 9, 0}, {0, 1, 2}, 2, 1), 1, 4 * epsilon);              // even over the tokens
    check_near(aux({500, 0, 0, 500, 0, 0}, {0, 2, 2, 2}, 3, 1), 3, 4 * epsilon); // all on one: E
    // One token, logits log 3 and 0, on the first of two experts: 2 * 1 * 3/4.
    check_near(aux({real(std::log(3)), 0}, {0, 1, 1}, 2, 1), 1.5, 4 * epsilon);
    // dg = p (dp - sum p dp) with dp = scale E f / N = (4, 0): 3/4 (4 - 3), 1/4 (0 - 3). It is written, not
    // added.
    const std::vector<real> p = {real(0.75), real(0.25)};
    const std::vector<int32_t> begin = {0, 1, 1};
    std::vector<real> dg = {77, 77};
    balance_backward(dg.data(), p.data(), begin.data(), 2, 1, 2, 1);
    check_list("balance backward", dg, {real(0.75), real(-0.75)});
}

// ---------------------------------------------------------------------------------------------------------
// The whole model against the formulas, in double, token by token

struct Naive {
    Vector logits;                                      // (N,V)
    double loss = 0, aux = 0, l0 = 0, gap = INFINITY;   // gap: between the last score chosen and the next one
    std::vector<std::vector<int32_t>> choice, activity; // by layer: (N,K); units > 0 per token
};

static Vector linear(const Vector& weight, const Vector& bias,
                     const Vector& x) { // weight (out, in), bias (out) or ()
    Vector out(weight.size() / x.size());
    for (size_t o = 0; o < out.size(); o++) {
        if (!bias.empty()) out[o] = bias[o];
        for (size_t i = 0; i < x.size(); i++) out[o] += weight[o * x.size() + i] * x[i];
    }
    return out;
}
static Vector layernorm(const Vector& weight, const Vector& bias, const Vector& x) {
    double mean = 0, variance = 0;
    for (const double a : x) mean += a / x.size();
    for (const double a : x) variance += (a - mean) * (a - mean) / x.size();
    Vector out(x.size());
    for (size_t i = 0; i < x.size(); i++)
        out[i] = (x[i] - mean) / std::sqrt(variance + 1e-5) * weight[i] + bias[i];
    return out;
}
static Vector softmax(const Vector& x) {
    Vector p(x.size());
    double sum = 0;
    for (size_t i = 0; i < x.size(); i++) sum += p[i] = std::exp(x[i]);
    for (double& a : p) a /= sum;
    return p;
}
static double activation(double h, const std::string& act) {
    return act == "relu" ? std::fmax(h, 0)
                         : h / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (h + 0.044715 * h * h * h)));
}
static Vector part(const Vector& x, size_t index, size_t size) {
    return Vector(x.begin() + index * size, x.begin() + (index + 1) * size);
}

// Scores of all experts for a token: -erf(mu / (sqrt(2) sd)), or the linear router's.
static Vector naive_scores(const Config& c, const Vector& x, const Vector& w_enc, const Vector& b_enc,
                           const Vector& router, const Vector& rho) {
    if (c.router == "topk") return linear(router, {}, x);
    Vector g(c.n_expert);
    const size_t C = c.n_embd, D = c.d_expert;
    for (size_t j = 0; j < c.n_expert; j++) {
        double mu = 0, variance = 1e-12;
        for (size_t column = 0; column <= C; column++) { // the last "column" is the bias
            double mean = 0, spread = 0;
            auto at = [&](size_t i) {
                return column < C ? w_enc[(j * D + i) * C + column] : b_enc[j * D + i];
            };
            for (size_t i = 0; i < D; i++) mean += at(i) / D;
            for (size_t i = 0; i < D; i++) spread += (at(i) - mean) * (at(i) - mean) / D;
            const double in = column < C ? x[column] : 1;
            mu += mean * in, variance += spread * in * in;
        }
        if (c.full()) { // the variance of the pre-activations themselves
            const Vector h = linear(part(w_enc, j, D * C), part(b_enc, j, D), x);
            variance = 1e-12;
            for (const double a : h) variance += (a - mu) * (a - mu) / D;
        }
        if (c.scaled()) variance *= rho[j] * rho[j];
        g[j] = -std::erf(mu / std::sqrt(2 * variance));
    }
    return g;
}

// Places of the k largest, a tie to the lower place, and how far the next one is.
static std::vector<size_t> largest(const Vector& z, size_t k, double& gap) {
    std::vector<size_t> order(z.size());
    std::iota(order.begin(), order.end(), size_t(0));
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return z[a] > z[b]; });
    if (k < z.size()) gap = std::fmin(gap, z[order[k - 1]] - z[order[k]]);
    order.resize(k);
    return order;
}
static Vector softmax_over(const Vector& z, const std::vector<size_t>& kept) { // 0 elsewhere
    Vector g(z.size());
    double sum = 0;
    for (const size_t i : kept) sum += g[i] = std::exp(z[i]);
    for (double& a : g) a /= sum;
    return g;
}

// Monet: g (N) of (2,H,Q); returns aux.
static double naive_route(const Config& c, const Vector& router, const std::vector<Vector>& x,
                          std::vector<Vector>& g, double& gap) {
    const size_t Q = c.n_key, heads = 2 * c.n_retrieve;
    Vector mean_p(heads * Q);
    double aux = -std::log(double(Q));
    for (size_t n = 0; n < x.size(); n++) {
        g[n].clear();
        const Vector z = linear(router, {}, x[n]);
        for (size_t s = 0; s < heads; s++) {
            const Vector row = part(z, s, Q), p = softmax(row);
            const Vector kept = softmax_over(row, largest(row, c.n_top, gap));
            for (size_t i = 0; i < Q; i++) mean_p[s * Q + i] += p[i] / double(x.size());
            g[n].insert(g[n].end(), kept.begin(), kept.end());
            aux += (1 - *std::max_element(kept.begin(), kept.end())) / double(heads * x.size());
        }
    }
    for (const double p : mean_p) aux -= std::log(p) / double(heads * Q);
    return aux;
}

using Weights = std::function<Vector(const std::string& name)>;
static Vector relu2(const Vector& u, const Vector& b, const Vector& x) {
    Vector a = linear(u, b, x);
    for (double& h : a) h = std::fmax(h, 0) * std::fmax(h, 0);
    return a;
}

// The sum over all Q*Q experts, one by one.
static Vector naive_monet(const Config& c, const Weights& w, const std::string& at, const Vector& x,
                          const Vector& g, size_t& active) {
    const size_t Q = c.n_key, H = c.n_retrieve, C = c.n_embd, m = c.d_expert;
    const bool vd = c.ffn == "monet-vd";
    const Vector a1 = relu2(w(at + (vd ? "u1" : "u")), w(at + (vd ? "b_u1" : "b_u")), x);
    const Vector a2 = vd ? relu2(w(at + "u2"), w(at + "b_u2"), x) : a1;
    std::map<std::string, Vector> v;
    for (const char* name : {"v", "b_v"})
        if (!vd) v[name] = w(at + name);
    for (const char* name : {"v11", "v12", "v21", "v22", "b_v1", "b_v2"})
        if (vd) v[name] = w(at + name);
    Vector y(C);
    for (size_t i = 0; i < Q; i++)
        for (size_t j = 0; j < Q; j++) {
            double weight = 0;
            for (size_t h = 0; h < H; h++) weight += g[h * Q + i] * g[(H + h) * Q + j];
            active += weight > 0;
            for (size_t o = 0; o < C; o++) {
                const size_t M = m / 2, O = C / 2;
                double e;
                if (!vd) {
                    e = v["b_v"][j * C + o];
                    for (size_t u = 0; u < m; u++) e += v["v"][(j * m + u) * C + o] * a1[i * m + u];
                } else {
                    const bool right = o >= O;
                    const size_t half = right ? j : i, column = o % O;
                    e = v[right ? "b_v2" : "b_v1"][half * O + column];
                    for (size_t u = 0; u < M; u++)
                        e += v[right ? "v21" : "v11"][(half * M + u) * O + column] * a1[i * M + u] +
                             v[right ? "v22" : "v12"][(half * M + u) * O + column] * a2[j * M + u];
                }
                y[o] += weight * e;
            }
        }
    return y;
}

// The k best of all Q*Q units by looking at every one.
static Vector naive_peer(const Config& c, const Weights& w, const std::string& at, const Vector& x,
                         double& gap, size_t& active) {
    const size_t Q = c.n_key, C = c.n_embd, half = c.d_key / 2;
    const Vector q = linear(w(at + "query"), {}, x), keys = w(at + "keys"), dec = w(at + "w_dec");
    Vector f = linear(w(at + "w_enc"), {}, x), y(C), gates(Q * Q);
    for (double& a : f) a = activation(a, c.act);
    for (size_t h = 0; h < c.n_retrieve; h++) {
        Vector fit(Q * Q);
        for (size_t e = 0; e < Q * Q; e++)
            for (size_t d = 0; d < half; d++)
                fit[e] += q[h * c.d_key + d] * keys[e / Q * half + d] +
                          q[h * c.d_key + half + d] * keys[(Q + e % Q) * half + d];
        const Vector weight = softmax_over(fit, largest(fit, c.n_top, gap));
        for (size_t e = 0; e < Q * Q; e++) gates[e] += weight[e];
    }
    for (size_t e = 0; e < Q * Q; e++) {
        active += gates[e] * f[e] > 0;
        for (size_t i = 0; i < C; i++) y[i] += gates[e] * f[e] * dec[e * C + i];
    }
    return y;
}

static Naive naive_forward(const Model& model, const std::vector<int32_t>& tokens,
                           const std::vector<int32_t>& targets, size_t T) {
    const Config& c = model.config;
    const size_t N = tokens.size(), C = c.n_embd, NH = c.n_head, HS = C / NH, E = c.n_expert,
                 K = c.n_expert_active, D = c.d_expert;
    auto w = [&](const std::string& name) {
        const Tensor& t = find_tensor(model, name);
        return Vector(model.weights.data + t.offset, model.weights.data + t.offset + t.count);
    };
    Naive r;
    std::vector<Vector> x(N), in(N), g(N); // in, g: Monet and PEER, the layer's input and its group's weights
    const Vector wte = w("wte.weight"), wpe = w("wpe.weight");
    for (size_t n = 0; n < N; n++) {
        x[n] = part(wte, tokens[n], C);
        for (size_t i = 0; i < C; i++) x[n][i] += wpe[n % T * C + i];
    }
    for (size_t l = 0; l < c.n_layer; l++) {
        const std::string h = "h." + std::to_string(l) + ".";
        // Attention: every position looks at itself and what stands before it in its row.
        const Vector ln_1w = w(h + "ln_1.weight"), ln_1b = w(h + "ln_1.bias"),
                     attn_w = w(h + "attn.c_attn.weight"), attn_b = w(h + "attn.c_attn.bias"),
                     proj_w = w(h + "attn.c_proj.weight"), proj_b = w(h + "attn.c_proj.bias");
        std::vector<Vector> q(N), k(N), v(N);
        for (size_t n = 0; n < N; n++) {
            const Vector qkv = linear(attn_w, attn_b, layernorm(ln_1w, ln_1b, x[n]));
            q[n] = part(qkv, 0, C), k[n] = part(qkv, 1, C), v[n] = part(qkv, 2, C);
        }
        for (size_t n = 0; n < N; n++) {
            Vector att(C);
            for (size_t head = 0; head < NH; head++) {
                Vector scores;
                for (size_t t = n - n % T; t <= n; t++) {
                    double dot = 0;
                    for (size_t i = head * HS; i < (head + 1) * HS; i++) dot += q[n][i] * k[t][i];
                    scores.push_back(dot / std::sqrt(double(HS)));
                }
                const Vector p = softmax(scores);
                for (size_t t = 0; t < p.size(); t++)
                    for (size_t i = head * HS; i < (head + 1) * HS; i++) att[i] += p[t] * v[n - n % T + t][i];
            }
            const Vector out = linear(proj_w, proj_b, att);
            for (size_t i = 0; i < C; i++) x[n][i] += out[i];
        }
        // Feed-forward.
        const Vector ln_2w = w(h + "ln_2.weight"), ln_2b = w(h + "ln_2.bias");
        if (c.ffn == "dense") {
            const Vector fc_w = w(h + "mlp.c_fc.weight"), fc_b = w(h + "mlp.c_fc.bias"),
                         out_w = w(h + "mlp.c_proj.weight"), out_b = w(h + "mlp.c_proj.bias");
            for (size_t n = 0; n < N; n++) {
                const Vector in = layernorm(ln_2w, ln_2b, x[n]);
                Vector z = linear(fc_w, fc_b, in);
                if (c.act == "geglu") {
                    const Vector gate = linear(w(h + "mlp.c_gate.weight"), w(h + "mlp.c_gate.bias"), in);
                    for (size_t u = 0; u < z.size(); u++) z[u] *= activation(gate[u], "gelu");
                } else if (c.act == "solu") {
                    const Vector s = softmax(z);
                    for (size_t u = 0; u < z.size(); u++) z[u] *= double(z.size()) * s[u];
                } else {
                    for (double& a : z) a = activation(a, c.act);
                }
                for (const double a : z) r.l0 += (a > 0) / double(N * c.n_layer);
                if (c.act == "solu") z = layernorm(w(h + "mlp.ln_mid.weight"), w(h + "mlp.ln_mid.bias"), z);
                const Vector out = linear(out_w, out_b, z);
                for (size_t i = 0; i < C; i++) x[n][i] += out[i];
            }
            continue;
        }
        if (c.monet() || c.peer()) {
            for (size_t n = 0; n < N; n++) in[n] = layernorm(ln_2w, ln_2b, x[n]);
            if (c.monet() && l % c.n_share == 0) r.aux += naive_route(c, w(h + "monet.router"), in, g, r.gap);
            for (size_t n = 0; n < N; n++) {
                size_t active = 0;
                const Vector y = c.monet() ? naive_monet(c, w, h + "monet.", in[n], g[n], active)
                                           : naive_peer(c, w, h + "peer.", in[n], r.gap, active);
                r.l0 += double(active) / double(N * c.n_layer);
                for (size_t i = 0; i < C; i++) x[n][i] += y[i];
            }
            continue;
        }
        const Vector w_enc = w(h + "moe.w_enc"), b_enc = w(h + "moe.b_enc"), w_dec = w(h + "moe.w_dec"),
                     b_dec = w(h + "moe.b_dec"), router = c.router == "topk" ? w(h + "moe.router") : Vector();
        const Vector rho = c.scaled() ? w(h + "moe.rho") : Vector();
        Vector share(E), mean_p(E);
        r.choice.emplace_back();
        for (size_t n = 0; n < N; n++) {
            const Vector in = layernorm(ln_2w, ln_2b, x[n]),
                         g = naive_scores(c, in, w_enc, b_enc, router, rho), p = softmax(g);
            std::vector<int32_t> order(E);
            std::iota(order.begin(), order.end(), 0);
            Vector score = g;
            for (size_t j = 0; j < E && c.biased(); j++) score[j] += w(h + "moe.balance")[j];
            std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return score[a] > score[b]; });
            Vector chosen;
            for (size_t i = 0; i < K; i++) chosen.push_back(g[order[i]]), r.choice[l].push_back(order[i]);
            for (size_t i = 0; i < K && i + 1 < E; i++)
                r.gap = std::fmin(r.gap, score[order[i]] - score[order[i + 1]]);
            Vector weight = softmax(chosen);
            for (size_t i = 0; i < K && c.gate_all(); i++) weight[i] = p[order[i]];
            for (size_t i = 0; i < K; i++) {
                const size_t j = order[i];
                Vector z = linear(part(w_enc, j, D * C), part(b_enc, j, D), in), y = part(b_dec, j, C);
                for (double& a : z) a = activation(a, c.act);
                Vector falling = z;
                std::sort(falling.rbegin(), falling.rend());
                for (size_t u = 0; u < D; u++) {
                    if (c.unit_top && z[u] < falling[c.unit_top - 1]) z[u] = 0;
                    r.l0 += (z[u] > 0) / double(N * c.n_layer);
                    for (size_t a = 0; a < C; a++) y[a] += z[u] * w_dec[(j * D + u) * C + a];
                }
                for (size_t a = 0; a < C; a++) x[n][a] += weight[i] * y[a];
                share[j] += 1.0 / (N * K);
            }
            for (size_t j = 0; j < E; j++) mean_p[j] += p[j] / N;
        }
        for (size_t j = 0; j < E; j++) r.aux += E * share[j] * mean_p[j];
    }
    const Vector ln_fw = w("ln_f.weight"), ln_fb = w("ln_f.bias");
    for (size_t n = 0; n < N; n++) {
        const Vector logits = linear(wte, {}, layernorm(ln_fw, ln_fb, x[n]));
        r.logits.insert(r.logits.end(), logits.begin(), logits.end());
        r.loss -= std::log(softmax(logits)[targets[n]]) / N;
    }
    return r;
}

static void check_against_naive(const std::string& what, Model& model, const std::vector<int32_t>& x,
                                const std::vector<int32_t>& y, size_t B, size_t T) {
    const Config& c = model.config;
    const Naive naive = naive_forward(model, x, y, T);
    if (!c.dense())
        check(naive.gap > 1e-5, "%s: a near tie (%.2g) makes this test meaningless", what.c_str(), naive.gap);
    const double aux = forward_logits(model, x.data(), B, T);
    check_all(what + ": logits", model.a.logits, naive.logits, 32 * epsilon);
    check_near(aux, naive.aux, 16 * epsilon * std::fmax(1, naive.aux));
    const Losses losses = forward(model, x.data(), y.data(), B, T);
    check(losses.finite());
    check_near(losses.loss, naive.loss, 16 * epsilon * naive.loss);
    check_near(losses.aux, naive.aux, 16 * epsilon * std::fmax(1, naive.aux));
    check_near(mean_l0(model), naive.l0, 1e-9 * naive.l0);
    for (size_t l = 0; l < c.n_layer && c.moe(); l++)
        check_list((what + ": experts chosen").c_str(),
                   std::vector<int32_t>(model.a.h[l].choice, model.a.h[l].choice + B * T * c.n_expert_active),
                   naive.choice[l]);
}

static void test_whole_model() {
    for (const Variant& v : variants) {
        const size_t B = 2, T = 9; // one position fewer than the model has
        Model model = model_of(v, B, T + 1);
        randomize(model);
        const std::vector<int32_t> x = some_tokens(1, B * T, 13), y = some_tokens(2, B * T, 13);
        check_against_naive(v.name, model, x, y, B, T);
        // Other weights, the same memory: nothing of the first is left.
        randomize(model, 2);
        check_against_naive(std::string(v.name) + ", again", model, y, x, B, T);
        // Memory for the forward pass alone gives the same.
        Model forward_only(model.config, B, T, false);
        std::copy(model.weights.data, model.weights.data + model.weights.count, forward_only.weights.data);
        forward_only.skip = model.skip;
        check(forward(forward_only, y.data(), x.data(), B, T).loss ==
                      forward(model, y.data(), x.data(), B, T).loss &&
                  forward_only.gradients.count == 0,
              "%s: without training", v.name);
    }
    const Config c = config_of(variants[0]);
    check_error(Model(c, 1, c.block_size + 1), "block_size 10");
    Model small(c, 2, 3);
    const std::vector<int32_t> x(20, 0);
    check_error(forward_logits(small, x.data(), 3, 3), "3 x 3", "memory");
    check_error(forward_logits(small, x.data(), 1, 4), "1 x 4", "memory");
}

// concat_j(w_j z_j) W_dec, with W_dec stacked over the experts as one (E*D, C) matrix, + sum_j w_j b_dec[j]
static void test_mega_decoder() {
    for (const Variant& v : variants) {
        const size_t B = 2, T = 10;
        Model model = model_of(v, B, T);
        const Config& c = model.config;
        if (!c.moe()) continue;
        randomize(model);
        const std::vector<int32_t> x = some_tokens(1, B * T, 13);
        forward_logits(model, x.data(), B, T);
        const size_t C = c.n_embd, E = c.n_expert, K = c.n_expert_active, D = c.d_expert, N = B * T;
        for (size_t l = 0; l < c.n_layer; l++) {
            const LayerActivations& h = model.a.h[l];
            Vector units(N * E * D), expected(h.mid, h.mid + N * C);
            for (size_t n = 0; n < N; n++)
                for (size_t k = 0; k < K; k++) {
                    const size_t j = h.choice[n * K + k], slot = h.slot[n * K + k];
                    for (size_t u = 0; u < D; u++)
                        units[(n * E + j) * D + u] = double(h.weight[n * K + k]) * h.z[slot * D + u];
                    for (size_t i = 0; i < C; i++)
                        expected[n * C + i] += double(h.weight[n * K + k]) * model.w.h[l].b_dec[j * C + i];
                }
            for (size_t n = 0; n < N; n++)
                for (size_t u = 0; u < E * D; u++)
                    for (size_t i = 0; i < C; i++)
                        expected[n * C + i] += units[n * E * D + u] * model.w.h[l].w_dec[u * C + i];
            check_all(strf("%s: mega-decoder, layer %zu", v.name, l), h.out, expected, 16 * epsilon);
        }
    }
}

// All tokens on one expert: it takes them all.
static void test_nothing_dropped() {
    for (const Variant& v : variants) {
        const size_t B = 4, T = 10, favourite = 1;
        Model model = model_of(v, B, T);
        const Config& c = model.config;
        if (!c.moe()) continue;
        randomize(model);
        const size_t C = c.n_embd, E = c.n_expert, D = c.d_expert;
        for (LayerParameters<real>& h : model.w.h) {
            h.ln_2_bias[0] = 20; // a channel that every token has
            for (size_t j = 0; j < E; j++)
                if (c.topk())
                    h.router[j * C] = j == favourite ? 1 : -1;
                else
                    for (size_t u = 0; u < D; u++)
                        h.w_enc[(j * D + u) * C] = j == favourite ? real(-0.05) : real(0.1);
        }
        const std::vector<int32_t> x = some_tokens(1, B * T, 13), y = some_tokens(2, B * T, 13);
        forward_logits(model, x.data(), B, T);
        for (const LayerActivations& h : model.a.h)
            check(h.begin[favourite + 1] - h.begin[favourite] == int32_t(B * T) &&
                      h.begin[E] == int32_t(B * T * c.n_expert_active),
                  "%s: the expert has %d of %zu tokens", v.name, h.begin[favourite + 1] - h.begin[favourite],
                  B * T);
        const Naive naive = naive_forward(model, x, y, T);
        check(naive.gap > 1e-5, "%s: a near tie", v.name);
        check_all(std::string(v.name) + ", one expert", model.a.logits, naive.logits, 64 * epsilon);
        if (c.n_expert_active == 1)
            check(naive.aux > 1.5 * c.n_layer, "%s: aux %g of an uneven load", v.name, naive.aux);
    }
}

// A NaN in any tensor reaches the loss or aux, and so stops a run; one in a gradient reaches the norm.
static void test_nan_is_seen() {
    for (const Variant& v : variants) {
        const size_t B = 2, T = 10;
        Model model = model_of(v, B, T);
        randomize(model);
        const std::vector<int32_t> x = some_tokens(1, B * T, 13), y = some_tokens(2, B * T, 13);
        for (const Tensor& t : trained_tensors(model.table)) {
            std::vector<real> saved(model.weights.data + t.offset, model.weights.data + t.offset + t.count);
            std::fill(model.weights.data + t.offset, model.weights.data + t.offset + t.count, real(NAN));
            model.statistics_stale = true;
            const Losses losses = forward(model, x.data(), y.data(), B, T);
            check(!losses.finite(), "%s: %s is NaN, the loss %g, aux %g", v.name, t.name.c_str(), losses.loss,
                  losses.aux);
            std::copy(saved.begin(), saved.end(), model.weights.data + t.offset);
        }
        model.statistics_stale = true;
        check(forward(model, x.data(), y.data(), B, T).finite(), "%s: and back", v.name);
        // One unit of one expert is enough, where it is used.
        if (model.config.moe()) {
            const size_t j = model.a.h[1].choice[0];
            model.w.h[1].b_enc[j * model.config.d_expert + 3] = real(NAN);
            check(!forward(model, x.data(), y.data(), B, T).finite(), "%s: one unit is NaN", v.name);
        }
        model.gradients.data[model.table[3].offset] = real(NAN);
        check(std::isnan(gradient_norm(model)), "%s: norm %g", v.name, gradient_norm(model));
    }
}

// ---------------------------------------------------------------------------------------------------------
// Training

// 5 steps of 2 micro-batches; sizes that leave ragged edges in every block.
static void test_threads() {
    const size_t B = 2, T = 67, V = 530;
    const std::vector<int32_t> x = some_tokens(1, 2 * B * T, V), y = some_tokens(2, 2 * B * T, V);
    const size_t threads = thread_count();
    for (Variant v : variants) {
        if (v.E == 4) v.E = 5;
        std::vector<Model> models;
        for (const int n : {1, 2, 3}) {
            set_thread_count(n);
            Model& model = models.emplace_back(model_of(v, B, T, {2, 4, 136, 51, T + 2, V}));
            init_parameters(model.config, model.table, model.weights.data, 1);
            double loss = 0;
            for (uint64_t t = 1; t <= 5; t++) loss = train_step(model, x, y, B, T, t, 1e-2);
            check(std::isfinite(loss));
            if (n == 1) continue;
            check(same_bits(model.weights, models[0].weights), "%s: weights with %d threads", v.name, n);
            check(same_bits(model.moment_1, models[0].moment_1), "%s: first moments with %d threads", v.name,
                  n);
            check(same_bits(model.moment_2, models[0].moment_2), "%s: second moments with %d threads", v.name,
                  n);
            check(same_bits(model.gradients, models[0].gradients), "%s: gradients with %d threads", v.name,
                  n);
        }
    }
    set_thread_count(threads);
}

// Two micro-batches of B are one of 2B. (Not so for aux, which is a mean of products of means.)
static void test_accumulation() {
    const size_t B = 2, T = 10;
    const std::vector<int32_t> x = some_tokens(1, 2 * B * T, 13), y = some_tokens(2, 2 * B * T, 13);
    for (const Variant& v : variants) {
        Model two = model_of(v, B, T), one = model_of(v, 2 * B, T);
        randomize(two), randomize(one);
        double loss = 0;
        for (const size_t first : {size_t(0), B * T}) {
            loss += forward(two, &x[first], &y[first], B, T, real(0.5)).loss / 2;
            backward(two, 0);
        }
        check_near(forward(one, x.data(), y.data(), 2 * B, T, 1).loss, loss, 8 * epsilon * loss);
        backward(one, 0);
        for (const Tensor& t : one.table) {
            const real *g = one.gradients.data + t.offset, *whole = one.gradients.data;
            Vector expected(g, g + t.count);
            double largest = 0, block_largest = 0;
            for (size_t i = 0; i < t.count; i++) largest = std::fmax(largest, std::fabs(g[i]));
            for (size_t i = 0; i < one.gradients.count; i++)
                block_largest = std::fmax(block_largest, std::fabs(whole[i]));
            const bool none =
                !t.trained || (one.config.moe() && !one.config.gate_all() && v.K == 1 &&
                               t.name.find("router") != std::string::npos); // one gate weight is always 1
            check(none == !(largest > 1e-6 * block_largest), "%s: %s has no gradient", v.name,
                  t.name.c_str());
            check_all(strf("%s: accumulated gradient of %s", v.name, t.name.c_str()),
                      two.gradients.data + t.offset, expected, 64 * epsilon);
        }
    }
}

// m = 0.1 G, v = 0.05 G^2 after one step, so that the first update is lr (sign G + decay w); three steps were
// computed by hand for gradients 1/2, -1, 2 and rates 0.1, 0.05, 0.02.
static void test_adamw() {
    Model model(config_of(variants[0]), 1, 1);
    const Tensor &decays = find_tensor(model, "h.0.moe.w_enc"), &keeps = find_tensor(model, "ln_f.weight");
    real *a = model.weights.data + decays.offset, *b = model.weights.data + keeps.offset;
    a[0] = b[0] = 1;
    const double gradient[] = {0.5, -1, 2}, lr[] = {0.1, 0.05, 0.02};
    const double m[] = {0.05, -0.055, 0.1505}, v[] = {0.0125, 0.061875, 0.25878125};
    const double w_decays[] = {0.8900000020, 0.9037186992857963, 0.8936655410580131};
    const double w_keeps[] = {0.9000000020, 0.9181686992957964, 0.9099229784665848};
    AdamW adam;
    check(adam.beta_1 == 0.9 && adam.beta_2 == 0.95 && adam.eps == 1e-8 && adam.weight_decay == 0.1);
    for (int i = 0; i < 3; i++) {
        adam.lr = lr[i];
        model.gradients.data[decays.offset] = model.gradients.data[keeps.offset] = real(4 * gradient[i]);
        model.statistics_stale = false;
        update(model, adam, i + 1, 0.25); // 0.25: as clipping would scale it
        check_near(a[0], w_decays[i], 3 * epsilon);
        check_near(b[0], w_keeps[i], 3 * epsilon);
        check_near(model.moment_1.data[decays.offset], m[i], epsilon);
        check_near(model.moment_2.data[decays.offset], v[i], epsilon);
        check(model.statistics_stale, "the experts' statistics are computed again after an update");
        check(a[1] == 0 && b[1] == 0, "no gradient, no movement");
    }

    // The moments of what has no gradient end at zero, not at denormals; a NaN stays one.
    real *m1 = model.moment_1.data + decays.offset, *m2 = model.moment_2.data + decays.offset;
    const real faded = real(1e-38) / 1000000; // a denormal of float
    m1[0] = faded;
    m1[1] = -faded;
    m1[2] = real(1e-20);
    m1[3] = NAN;
    for (size_t i = 0; i < 4; i++) m2[i] = i == 3 ? real(NAN) : m1[i] * m1[i] + faded;
    std::fill(model.gradients.data, model.gradients.data + model.gradients.count, real(0));
    update(model, adam, 4, 1);
    check(m1[0] == 0 && m1[1] == 0 && m2[0] == 0 && m2[1] == 0, "faded moments: %g %g %g %g", m1[0], m1[1],
          m2[0], m2[1]);
    check_near(m1[2], 0.9e-20, 1e-26);
    check(std::isnan(m1[3]) && std::isnan(m2[3]), "a moment that is not a number is hidden");

    // Weight decay alone moves exactly the tensors used as matrices.
    for (const Variant& variant : variants) {
        Model decayed(config_of(variant), 1, 1);
        randomize(decayed);
        const std::vector<real> before(decayed.weights.data, decayed.weights.data + decayed.weights.count);
        adam.lr = 0.5;
        update(decayed, adam, 1, 1);
        for (const Tensor& t : decayed.table) {
            const bool matrix =
                t.name == "wte.weight" || t.name == "wpe.weight" ||
                t.name.find("c_attn.weight") != std::string::npos ||
                t.name.find("c_proj.weight") != std::string::npos ||
                t.name.find("c_fc.weight") != std::string::npos ||
                t.name.find("c_gate.weight") != std::string::npos ||
                t.name.find("w_enc") != std::string::npos || t.name.find("w_dec") != std::string::npos ||
                t.name.find("router") != std::string::npos || t.name.find("monet.u") != std::string::npos ||
                t.name.find("monet.v") != std::string::npos || t.name.find("peer.") != std::string::npos;
            const real *w = decayed.weights.data + t.offset, *was = &before[t.offset];
            bool right = true;
            for (size_t i = 0; i < t.count; i++)
                right = right && (matrix ? std::fabs(w[i] - 0.95 * was[i]) <= epsilon * std::fabs(was[i])
                                         : w[i] == was[i]);
            check(right, "%s: %s %s", variant.name, t.name.c_str(), matrix ? "decays" : "does not decay");
        }
    }
}

static void test_norm() {
    Model model(config_of(variants[1], {2, 4, 64, 51, 10, 530}), 1, 1);
    check(model.gradients.count > 3 * norm_block, "several blocks");
    check(gradient_norm(model) == 0);
    model.gradients.data[model.table.front().offset] = 3;
    model.gradients.data[model.table.back().offset + model.table.back().count - 1] = -4;
    check_near(gradient_norm(model), 5, 1e-15);
    double sum = 0;
    for (const Tensor& t : model.table)
        for (size_t i = t.offset; i < t.offset + t.count; i++) {
            const double g = model.gradients.data[i] = real(random_normal(1, 2, i));
            sum += g * g;
        }
    check_near(gradient_norm(model), std::sqrt(sum), (4 * epsilon + 1e-12) * std::sqrt(sum));
    zero_gradients(model);
    check(gradient_norm(model) == 0);
}

static void test_learning() {
    const size_t B = 4, T = 16, V = 16;
    const std::vector<int32_t> x = some_tokens(1, B * T, V), y = some_tokens(2, B * T, V);
    for (const Variant& v : variants) {
        Model model = model_of(v, B, T, {2, 2, 32, 32, T, V});
        init_parameters(model.config, model.table, model.weights.data, 1);
        double first = 0;
        for (uint64_t t = 1; t <= 60; t++) {
            const double loss = train_step(model, x, y, B, T, t, 1e-2 * std::fmin(1, t / 5.0), 1e-3);
            if (t == 1) first = loss;
        }
        const double last = forward(model, x.data(), y.data(), B, T).loss;
        check_near(first, std::log(double(V)), 0.1); // a new model knows nothing
        check(last < first / 10, "%s: the loss fell from %.4f to %.4f only", v.name, first, last);
        if (getenv("MOEX_TEST_VERBOSE")) printf("%s: %.4f -> %.4f\n", v.name, first, last);
    }
}

static void test_init() {
    const Sizes sizes = {3, 4, 64, 96, 40, 200};
    for (const Variant& v : variants) {
        const Config c = config_of(v, sizes);
        const std::vector<Tensor> table = tensor_table(c);
        std::vector<real> block(block_elements(table), 7), again(block), other(block), shuffled(block);
        init_parameters(c, table, block.data(), 1);
        init_parameters(c, table, again.data(), 1);
        init_parameters(c, table, other.data(), 2);
        std::vector<Tensor> reversed(table.rbegin(), table.rend());
        init_parameters(c, reversed, shuffled.data(), 1);
        check(block == again, "%s: same seed, same bits", v.name);
        check(block == shuffled, "%s: the order of the tensors does not matter", v.name);
        for (const Tensor& t : table) {
            const real* w = &block[t.offset];
            const std::string &name = t.name, what = std::string(v.name) + ": " + name;
            auto ends = [&](const std::string& end) {
                return name.size() >= end.size() && name.substr(name.size() - end.size()) == end;
            };
            const bool norm = name.find("ln_") != std::string::npos,
                       bias = ends("bias") || name.find(".b_") != std::string::npos || !t.trained;
            if (norm || bias) {
                bool right = true;
                const bool one = (norm && !bias) || ends(".rho");
                for (size_t i = 0; i < t.count; i++) right = right && w[i] == real(one);
                check(right, "%s is %d", what.c_str(), int(one));
                continue;
            }
            const bool residual =
                ends("c_proj.weight") || ends("w_dec") || name.find("monet.v") != std::string::npos;
            const bool fan_in = name.find("peer.") != std::string::npos ||
                                name.find("monet.u") != std::string::npos || ends("monet.router");
            const double std =
                (fan_in ? 1 / std::sqrt(double(t.shape.back())) : 0.02) / (residual ? std::sqrt(2.0 * 3) : 1);
            double mean = 0, square = 0, inside = 0;
            for (size_t i = 0; i < t.count; i++)
                mean += w[i], square += double(w[i]) * w[i], inside += std::fabs(w[i]) < std;
            const double n = double(t.count);
            check(std::fabs(mean / n) < 4.5 * std / std::sqrt(n), "%s: mean %g", what.c_str(), mean / n);
            check(std::fabs(std::sqrt(square / n) / std - 1) < 4.5 / std::sqrt(2 * n),
                  "%s: deviation %g, expected %g", what.c_str(), std::sqrt(square / n), std);
            check(std::fabs(inside / n - 0.6827) < 4.5 * 0.4654 / std::sqrt(n), "%s: %g within one deviation",
                  what.c_str(), inside / n);
            size_t same = 0;
            for (size_t i = 0; i < t.count; i++) same += w[i] == other[t.offset + i];
            check(same < 2, "%s: %zu of %zu numbers are those of another seed", what.c_str(), same, t.count);
            check(w[t.count - 1] ==
                      real(float(std * random_normal(1, random_stream(name.c_str()), t.count - 1))),
                  "%s", what.c_str());
        }
    }
}

// ---------------------------------------------------------------------------------------------------------
// Decoding

static void test_decoder() {
    const size_t T = 70, V = 13;
    for (const Variant& v : variants) {
        Model model = model_of(v, 1, T, {2, 2, 16, 12, T, V});
        const Config& c = model.config;
        Decoder decoder(model);
        for (const uint64_t seed :
             {1, 2}) { // the second time with new weights, which refresh() takes notice of
            randomize(model, seed);
            decoder.refresh();
            check(decoder.position == 0);
            const std::vector<int32_t> x = some_tokens(seed, T, V);
            forward_logits(model, x.data(), 1, T);
            double worst = 0;
            bool choices = true;
            for (size_t t = 0; t < T; t++) {
                decoder.step(x[t]);
                double size = 0, difference = 0;
                for (size_t i = 0; i < V; i++) {
                    const double expected = model.a.logits[t * V + i],
                                 error = std::fabs(decoder.logits[i] - expected);
                    size = std::fmax(size, std::fabs(expected));
                    difference = error <= difference ? difference : error; // NaN stays
                }
                worst = difference / size <= worst ? worst : difference / size;
                for (size_t l = 0; l < c.n_layer && c.moe(); l++)
                    for (size_t k = 0; k < c.n_expert_active; k++)
                        choices = choices && decoder.layers[l].choice[k] ==
                                                 model.a.h[l].choice[t * c.n_expert_active + k];
            }
            check(worst <= 64 * epsilon, "%s: cached against uncached logits, relative error %.3g", v.name,
                  worst);
            check(choices, "%s: the decoder chooses other experts", v.name);
            check(decoder.position == T);
        }
        check_error(decoder.step(0), "context of 70 tokens is full");
        decoder.refresh();
        decoder.step(4);
        const std::vector<real> after_one = decoder.logits;
        check_error(decoder.step(-1), "token -1", "vocabulary of 13");
        check_error(decoder.step(13), "token 13", "vocabulary of 13");
        check(decoder.position == 1, "a refused token is not read");
        decoder.refresh();
        decoder.step(4);
        check(decoder.logits == after_one, "%s: the same after a refresh", v.name);
    }
}

// Decoders of one model at work side by side, each in a thread, say what they say alone.
static void test_decoders_side_by_side() {
    const size_t T = 128, V = 13, n = 4, rounds = 4;
    for (const Variant& v : variants) {
        Model model = model_of(v, 0, 0, {2, 2, 64, 24, T, V});
        randomize(model, 3);
        std::vector<std::vector<real>> alone(n), beside(n);
        const auto decode = [&](size_t i, std::vector<real>& logits, size_t times) {
            Decoder decoder(model);
            for (size_t round = 0; round < times; round++) {
                decoder.refresh();
                for (const int32_t token : some_tokens(i, T, V)) decoder.step(token);
                logits.insert(logits.end(), decoder.logits.begin(), decoder.logits.end());
            }
        };
        for (size_t i = 0; i < n; i++) {
            std::vector<real> once;
            decode(i, once, 1);
            for (size_t round = 0; round < rounds; round++)
                alone[i].insert(alone[i].end(), once.begin(), once.end());
        }
        std::vector<std::thread> threads;
        for (size_t i = 0; i < n; i++) threads.emplace_back([&, i] { decode(i, beside[i], rounds); });
        for (std::thread& thread : threads) thread.join();
        check(alone == beside, "%s: decoders disturb each other", v.name);
    }
}

// ---------------------------------------------------------------------------------------------------------
// Interventions

static InterventionFlags flags_of(const std::string& experts_off, const std::string& units_off = "") {
    InterventionFlags f;
    f.experts_off = experts_off;
    f.units_off = units_off;
    return f;
}

// Without expert 1 in any layer: its part of every tensor that has one leaves.
static void copy_without_expert(Model& to, const Model& from) {
    for (const Tensor& t : from.table) {
        const Tensor& less = find_tensor(to, t.name);
        const real* source = from.weights.data + t.offset;
        real* out = to.weights.data + less.offset;
        const size_t E = from.config.n_expert, of_one = t.count / E;
        if (t.count == less.count)
            std::copy(source, source + t.count, out);
        else
            for (size_t e = 0; e < E; e++)
                if (e != 1) out = std::copy(source + e * of_one, source + (e + 1) * of_one, out);
    }
    to.statistics_stale = true;
}
static double difference(const real* a, const real* b, size_t count) {
    double worst = 0;
    for (size_t i = 0; i < count; i++) {
        const double d = std::fabs(double(a[i]) - double(b[i]));
        if (!(d <= worst)) worst = d;
    }
    return worst;
}

static void test_interventions() {
    const size_t B = 2, T = 10, V = 13, N = B * T;
    const std::vector<int32_t> x = some_tokens(1, N, V);
    for (const Variant& v : variants) {
        Model plain = model_of(v, B, T), changed = model_of(v, B, T);
        const Config& c = plain.config;
        const size_t K = c.n_expert_active, E = c.n_expert, C = c.n_embd;
        randomize(plain);
        const auto run = [&](Model& model, const Intervention& i) {
            std::copy(plain.weights.data, plain.weights.data + plain.weights.count, model.weights.data);
            model.statistics_stale = true;
            apply(model, i);
            forward_logits(model, x.data(), B, T);
            return model.a.logits;
        };
        const real* before = run(plain, {});
        const auto same = [&](const real* logits) {
            return memcmp(logits, before, N * V * sizeof(real)) == 0;
        };
        check(same(run(changed, InterventionFlags().read(c, "model"))), "%s: nothing given, other bits",
              v.name);
        // What the decoder says after each token of the first row, and that it chooses as the model does.
        const auto decoder_agrees = [&](const Model& model) {
            Decoder decoder(model);
            double worst = 0;
            bool choices = true;
            for (size_t t = 0; t < T; t++) {
                decoder.step(x[t]);
                const double d = difference(decoder.logits.data(), model.a.logits + t * V, V);
                if (!(d <= worst)) worst = d;
                for (size_t l = 0; l < c.n_layer && c.moe(); l++)
                    for (size_t k = 0; k < model.config.n_expert_active; k++)
                        choices = choices && decoder.layers[l].choice[k] ==
                                                 model.a.h[l].choice[t * model.config.n_expert_active + k];
            }
            check(worst <= 64 * epsilon && choices, "%s: the decoder intervenes otherwise: %g", v.name,
                  worst);
        };

        InterventionFlags units = flags_of("");
        if (!c.moe() && !c.dense()) {
            units.units_off = "0/0/0";
            check_error(units.read(c, "model"), "--units-off", "no units", c.ffn.c_str());
            check_error(flags_of("0/0").read(c, "model"), "--experts-off", "no experts", c.ffn.c_str());
            continue;
        }
        // Units: by hand, their numbers set to 0 or scaled where the decoder's rows are multiplied with them.
        units.units_off = "1/0/3";
        units.units_scale = "0/0/5=-2.5,1/0/4=0.5";
        run(changed, units.read(c, "model"));
        decoder_agrees(changed);
        Model by_hand = model_of(v, B, T);
        run(by_hand, {});
        for (const auto& [l, u, factor] :
             {std::tuple<size_t, size_t, real>{1, 3, 0}, {0, 5, real(-2.5)}, {1, 4, real(0.5)}})
            for (size_t i = 0; i < C; i++)
                (c.moe() ? by_hand.w.h[l].w_dec[u * C + i]
                         : by_hand.w.h[l].fc_proj_weight[i * c.dense_width() + u]) *= factor;
        forward_logits(by_hand, x.data(), B, T);
        check((c.unit_top || !same(changed.a.logits)) && // units may never be among the largest
                  memcmp(changed.a.logits, by_hand.a.logits, N * V * sizeof(real)) == 0,
              "%s: units", v.name);
        if (c.topk() || (c.dense() && !c.geglu() && !c.solu())) {
            // Deleted on the other side: a bias far below 0 keeps it silent.
            run(changed, flags_of("", "1/0/3").read(c, "model"));
            run(by_hand, {});
            (c.moe() ? by_hand.w.h[1].b_enc : by_hand.w.h[1].fc_bias)[3] = real(-1e6);
            forward_logits(by_hand, x.data(), B, T);
            const double d = difference(changed.a.logits, by_hand.a.logits, N * V);
            check(d <= 1e-6, "%s: a silent unit: %g", v.name, d);
        }
        if (!c.moe()) {
            check_error(flags_of("0/0").read(c, "model"), "--experts-off", "no experts", "dense");
            continue;
        }

        InterventionFlags first_ranks;
        for (size_t k = 0; k < K; k++) first_ranks.ranks += strf("%s%zu", k ? "," : "", K - 1 - k);
        check(same(run(changed, first_ranks.read(c, "model"))), "%s: the first ranks, other bits", v.name);
        if (K < E) {
            Variant less_experts = v;
            less_experts.E--;
            Model less = model_of(less_experts, B, T);
            copy_without_expert(less, plain);
            forward_logits(less, x.data(), B, T);
            run(changed, flags_of("0/1,1/1").read(c, "model"));
            const double d = difference(changed.a.logits, less.a.logits, N * V);
            check(d <= 1e-6 && !same(changed.a.logits), "%s: off and deleted: %g", v.name, d);
            decoder_agrees(changed);

            // On: each token goes there first, its weight by its score.
            InterventionFlags on;
            on.experts_on = "0/2";
            run(changed, on.read(c, "model"));
            decoder_agrees(changed);
            const LayerActivations& h = changed.a.h[0];
            bool all = true;
            for (size_t n = 0; n < N; n++) {
                double sum = 0;
                for (size_t k = 0; k < K; k++) sum += std::exp(h.g[n * E + h.choice[n * K + k]]);
                if (c.gate_all()) sum = 0;
                for (size_t j = 0; j < E && c.gate_all(); j++) sum += std::exp(h.g[n * E + j]);
                all = all && h.choice[n * K] == 2 &&
                      std::fabs(h.weight[n * K] - std::exp(h.g[n * E + 2]) / sum) < 1e-5;
            }
            check(all, "%s: on", v.name);
        }

        // Rank 2 alone: what stands third where all are chosen; one expert of weight 1, or its share of all.
        InterventionFlags every, third;
        every.active = int64_t(E);
        third.ranks = "2";
        const Intervention all = every.read(c, "model"), one = third.read(c, "model");
        Variant whole = v, single = v;
        whole.K = all.apply(c).n_expert_active;
        single.K = one.apply(c).n_expert_active;
        check(whole.K == E && single.K == 1);
        Model of_all = model_of(whole, B, T), of_one = model_of(single, B, T);
        run(of_all, all);
        run(of_one, one);
        decoder_agrees(of_all);
        decoder_agrees(of_one);
        bool third_of_all = true;
        for (size_t n = 0; n < N; n++)
            third_of_all = third_of_all && of_one.a.h[0].choice[n] == of_all.a.h[0].choice[n * E + 2] &&
                           std::fabs(of_one.a.h[0].weight[n] -
                                     (c.gate_all() ? of_all.a.h[0].weight[n * E + 2] : 1)) < 1e-6;
        check(third_of_all, "%s: the third rank", v.name);
    }

    // What is refused, with the range.
    const Config moe = config_of(variants[0]); // 2 layers of 4 experts of 12 units, 2 active
    const auto refused = [&](std::string InterventionFlags::*flag, const char* text, auto... parts) {
        InterventionFlags f;
        f.*flag = text;
        check_error(f.read(moe, "model"), parts...);
    };
    const auto off = &InterventionFlags::experts_off, on = &InterventionFlags::experts_on,
               unit = &InterventionFlags::units_off, scale = &InterventionFlags::units_scale,
               ranks = &InterventionFlags::ranks;
    refused(off, "2/0", "--experts-off", "layer '2'", "0 to 1");
    refused(off, "0/4", "--experts-off", "expert '4'", "0 to 3");
    refused(off, "0/-1", "expert '-1'", "0 to 3");
    refused(off, "0", "'0'", "layer/expert");
    refused(off, "0/0,", "''", "layer/expert");
    refused(off, "0/0/1", "'0/0/1'", "layer/expert");
    refused(off, "1/0,1/1,1/3", "--experts-off", "layer 1 has 1 experts left", "first 2");
    refused(on, "0/0,0/1,0/2", "--experts-on", "layer 0", "3 experts on");
    refused(unit, "0/0/12", "--units-off", "unit '12'", "0 to 11");
    refused(unit, "0/0/1,0/0/1", "named twice");
    refused(unit, "0/1", "layer/expert/unit");
    refused(scale, "0/0/1", "--units-scale", "=factor");
    for (const char* bad : {"0/0/1=", "0/0/1=x", "0/0/1=nan", "0/0/1=inf", "0/0/1=2,5", "0/0/1=1e7"})
        refused(scale, bad, "--units-scale");
    refused(ranks, "4", "--ranks", "rank '4'", "0 to 3");
    refused(ranks, "1,1", "twice");
    refused(ranks, "1,", "rank ''");
    InterventionFlags f;
    f.active = 5;
    check_error(f.read(moe, "model"), "--active 5", "4 experts");
    f.active = 1, f.ranks = "0";
    check_error(f.read(moe, "model"), "--active", "--ranks");
    f = flags_of("0/1");
    f.experts_on = "0/1";
    check_error(f.read(moe, "model"), "'0/1'", "--experts-off");
    f = {};
    f.ranks = "1", f.experts_on = "0/3";
    check_error(f.read(moe, "model"), "--experts-on", "first 0");
    f.ranks = "0,2";
    check(f.read(moe, "model").K == 2 && f.text() == "--ranks 0,2 --experts-on 0/3");
    check(flags_of("0/0,0/1").read(moe, "model").routing.standing ==
          (std::vector<int8_t>{-1, -1, 0, 0, 0, 0, 0, 0}));
    ContrastFlags contrast;
    contrast.ranks = "3";
    check(contrast.weak({}, moe, "model").routing.ranks == 8 && contrast.weak({}, moe, "model").K == 1);
    check_error(contrast.weak(flags_of("0/0").read(moe, "model"), moe, "model"), "--contrast",
                "3 experts left");
    check_error(contrast.weak({}, config_of(variants[4]), "model"), "--contrast", "no experts", "dense");
}

// Logits 4, 3, 0 against 4, 1, 2: alpha 0.1 keeps what has at least exp(4) / 10.
static void test_contrast() {
    const float strong[] = {4, 3, 0}, weak[] = {4, 1, 2}, odd[] = {0.1f, -7, 1e-30f};
    float out[3];
    contrast(out, strong, weak, 3, 1, 0.1);
    check(out[0] == 4 && out[1] == 5 && out[2] == -1e30f, "%g %g %g", out[0], out[1], out[2]);
    contrast(out, strong, weak, 3, 0.5, 0.0);
    check(out[0] == 4 && out[1] == 4 && out[2] == -1);
    contrast(out, odd, weak, 3, 0, 0);
    check(memcmp(out, odd, sizeof odd) == 0, "beta and alpha 0: the same bits");
    const float broken[] = {NAN, 1, 2};
    contrast(out, broken, weak, 3, 0.5, 0.1);
    check(std::isnan(out[0]));
    contrast(out, strong, broken, 3, 0.5, 0.1);
    check(std::isnan(out[0]));
}

// ---------------------------------------------------------------------------------------------------------
// Sampling

static void test_sampler() {
    Sampler sampler;
    const double below_one = std::nextafter(1.0, 0.0);
    sampler.temperature = 0;
    const float ties[] = {1, 3, 2, 3, -1};
    for (const double u : {0.0, 0.5, below_one})
        check(sampler.choose(ties, 5, u) == 1, "argmax, a tie to the lower id");

    // Probabilities 4/16, 8/16, 1/16, 1/16, 2/16 at temperature 1: in falling order the ids 1 0 4 2 3.
    const float logits[] = {std::log(4.0f), std::log(8.0f), 0, 0, std::log(2.0f)};
    const double falling[] = {8, 12, 14, 15, 16}, by_id[] = {4, 12, 13, 14, 16}; // sums of sixteenths
    const int32_t order[] = {1, 0, 4, 2, 3};
    auto choose = [&](double temperature, int64_t k, double p, double u) {
        sampler.temperature = temperature, sampler.top_k = k, sampler.top_p = p;
        return sampler.choose(logits, 5, u);
    };
    auto kept = [&](double temperature, int64_t k, double p) { // ids that u from 0 to 1 brings out
        std::set<int32_t> ids;
        for (int i = 0; i < 4096; i++) ids.insert(choose(temperature, k, p, i / 4096.0));
        return std::vector<int32_t>(ids.begin(), ids.end());
    };
    // Each has its place on the distribution: by id when none is cut off, else in falling order.
    for (int i = 0; i < 5; i++) {
        for (const double edge : {i ? by_id[i - 1] / 16 + 1e-6 : 0, by_id[i] / 16 - 1e-6})
            check(choose(1, 0, 1, edge) == i && choose(1, 5, 1, edge) == i, "place %d", i);
        for (const double edge : {i ? falling[i - 1] / 16 + 1e-6 : 0, falling[i] / 16 - 1e-6})
            check(choose(1, 0, 0.9999999, edge) == order[i], "place %d in falling order", i);
    }
    check(choose(1, 0, 1, below_one) == 4 && choose(1, 0, 0.9999999, below_one) == 3);
    check(choose(1, 2, 1, 0) == 1 && choose(1, 2, 1, below_one) == 0);
    check_list("all", kept(1, 0, 1), {0, 1, 2, 3, 4});
    check_list("top-k 1", kept(1, 1, 1), {1});
    check_list("top-k 3", kept(1, 3, 1), {0, 1, 4});
    check_list("top-k 4, a tie to the lower id", kept(1, 4, 1), {0, 1, 2, 4});
    check_list("top-k beyond the vocabulary", kept(1, 100, 1), {0, 1, 2, 3, 4});
    check_list("top-p 0", kept(1, 0, 0), {1});
    check_list("top-p 0.49", kept(1, 0, 0.49), {1});
    check_list("top-p 0.6", kept(1, 0, 0.6), {0, 1});
    check_list("top-p 0.76", kept(1, 0, 0.76), {0, 1, 4});
    check_list("top-p 0.9", kept(1, 0, 0.9), {0, 1, 2, 4});
    check_list("top-p 0.999", kept(1, 0, 0.999), {0, 1, 2, 3, 4});
    check_list("top-p of what top-k keeps: 8/12", kept(1, 2, 0.66), {1});
    check_list("top-p of what top-k keeps", kept(1, 2, 0.67), {0, 1});
    check_list("temperature 1/2 squares: 64/86 reach 0.7", kept(0.5, 0, 0.7), {1});
    check_list("temperature 1/2 squares: 64/86 do not reach 0.75", kept(0.5, 0, 0.75), {0, 1});
    check(choose(1e-300, 0, 1, below_one) == 1, "a tiny temperature is an argmax");

    // Over many draws: chi-square with V - 1 degrees of freedom, mean V - 1, deviation sqrt(2 (V - 1)).
    const size_t V = 40, draws = 200000;
    for (const double temperature : {1.0, 0.7, 2.0}) {
        const std::vector<real> many = normals(5, V, 1.5);
        Vector scaled(many.begin(), many.end()), count(V);
        for (double& x : scaled) x /= temperature;
        const Vector p = softmax(scaled);
        Sampler fair;
        fair.temperature = temperature;
        for (size_t i = 0; i < draws; i++) count[fair.choose(many.data(), V, random_uniform(9, 1, i))]++;
        double chi = 0;
        for (size_t i = 0; i < V; i++)
            chi += (count[i] - draws * p[i]) * (count[i] - draws * p[i]) / (draws * p[i]);
        check(chi < V - 1 + 4 * std::sqrt(2.0 * (V - 1)), "temperature %g: chi-square %.1f", temperature,
              chi);
    }

    // The last place never falls on a token of probability zero, however the sums round.
    size_t impossible = 0;
    for (uint64_t trial = 0; trial < 2000; trial++) {
        std::vector<real> some = normals(100 + trial, 50);
        for (size_t i = 25; i < 50; i++) some[i] = -1e6;
        impossible += Sampler().choose(some.data(), 50, below_one) >= 25;
    }
    check(impossible == 0, "%zu of 2000 draws gave a token of probability 0", impossible);
}

// ---------------------------------------------------------------------------------------------------------
// Two models in one process: each goes the way it goes alone.

static void test_two_models() {
    const size_t B = 2, T = 10;
    const std::vector<int32_t> x = some_tokens(1, B * T, 13), y = some_tokens(2, B * T, 13);
    const Config small = config_of(variants[0]), large = config_of(variants[1], {3, 4, 136, 70, 40, 600});
    Model alone(small, B, T), a(small, B, T), b(large, 3, 40);
    for (Model* m : {&alone, &a, &b}) init_parameters(m->config, m->table, m->weights.data, 1);
    const std::vector<int32_t> bx = some_tokens(3, 3 * 40, 600), by = some_tokens(4, 3 * 40, 600);
    for (uint64_t t = 1; t <= 3; t++) train_step(alone, x, y, B, T, t, 1e-2);
    Decoder decoder(b);
    for (uint64_t t = 1; t <= 3; t++) {
        train_step(b, bx, by, 3, 40, t, 1e-2);
        zero_gradients(a);
        forward(a, x.data(), y.data(), B, T, 1);
        forward(b, bx.data(), by.data(), 3, 40); // between the halves of the other's step
        decoder.step(1);
        backward(a, real(1e-2));
        const double norm = gradient_norm(a);
        AdamW adam;
        adam.lr = 1e-2;
        update(a, adam, t, norm > 1 ? 1 / norm : 1);
    }
    check(same_bits(a.weights, alone.weights) && same_bits(a.moment_2, alone.moment_2),
          "two models disturb each other");
    Model moved = std::move(a);
    check(forward(moved, x.data(), y.data(), B, T).loss == forward(alone, x.data(), y.data(), B, T).loss,
          "a model that was moved");
}

int main(int, char** argv) {
    // Threads that spin at a barrier take a busy machine's cores from those that work: here they sleep. The
    // OpenMP library reads this when the process starts.
    if (!getenv("OMP_WAIT_POLICY")) setenv("OMP_WAIT_POLICY", "passive", 1), execv("/proc/self/exe", argv);
    return run_main([] {
        const char* only = getenv("MOEX_TEST_ONLY");
        const std::pair<const char*, void (*)()> tests[] = {
            {"multiply", test_multiply},
            {"skipping", test_skipping},
            {"functions", test_functions},
            {"layers", test_layers},
            {"attention", test_attention},
            {"router", test_router},
            {"choice", test_choice},
            {"interventions", test_interventions},
            {"contrast", test_contrast},
            {"dispatch", test_dispatch},
            {"balance", test_balance},
            {"whole model", test_whole_model},
            {"mega-decoder", test_mega_decoder},
            {"nothing dropped", test_nothing_dropped},
            {"nan", test_nan_is_seen},
            {"threads", test_threads},
            {"accumulation", test_accumulation},
            {"adamw", test_adamw},
            {"norm", test_norm},
            {"learning", test_learning},
            {"init", test_init},
            {"decoder", test_decoder},
            {"decoders side by side", test_decoders_side_by_side},
            {"sampler", test_sampler},
            {"two models", test_two_models}};
        for (const auto& [name, test] : tests) {
            if (only && strcmp(only, name)) continue;
            const double begin = now_seconds();
            test();
            if (getenv("MOEX_TEST_VERBOSE")) printf("[%s: %.2f s]\n", name, now_seconds() - begin);
        }
        return finish();
    });
}
