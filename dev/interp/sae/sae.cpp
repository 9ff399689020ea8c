// The arithmetic of sae.h, in its order.
#include "sae.h"
#include <bit>
#include <numeric>

// ---------------------------------------------------------------------------------------------------------
// 1 The autoencoder

std::vector<Tensor> sae_table(size_t F, size_t C) {
    std::vector<Tensor> table;
    size_t offset = 0;
    const auto add = [&](const char* name, std::vector<size_t> shape, size_t count) {
        table.push_back({name, std::move(shape), true, false, Init::zeros, false, count, offset});
        offset += round_up(count, 32);
    };
    add("w_enc", {F, C}, F * C);
    add("b_enc", {F}, F);
    add("w_dec", {F, C}, F * C);
    add("b_dec", {C}, C);
    return table;
}

static SaeTensors carve(const std::vector<Tensor>& table, real* block) {
    return {block + table[0].offset, block + table[1].offset, block + table[2].offset,
            block + table[3].offset};
}

Sae::Sae(SaeKind kind, size_t C, size_t F, size_t k, bool training)
    : kind(kind), C(C), F(F), k(k), table(sae_table(F, C)), weights(block_elements(table)), w{}, g{},
      idle(F) {
    w = carve(table, weights.data);
    if (!training) return;
    gradients = Block(weights.count);
    moment_1 = Block(weights.count);
    moment_2 = Block(weights.count);
    g = carve(table, gradients.data);
}

// ---------------------------------------------------------------------------------------------------------
// 2 Which latents are kept

// Bits that rise with the number, for numbers that are not negative; those of NaN are the highest.
using Bits = std::conditional_t<sizeof(real) == 8, uint64_t, uint32_t>;
static Bits bits_of(real x) { return std::bit_cast<Bits>(x) & ~(Bits(1) << (8 * sizeof(Bits) - 1)); }

struct Latent {
    uint32_t unit;
    real value;
};

// list(n, out) appends the latents of token n, in rising order of unit.
template <class List> static void fill(Latents& kept, size_t N, List list) {
    std::vector<std::vector<Latent>> rows(N);
    parallel_for(N, [&](size_t n) { list(n, rows[n]); });
    kept.begin.assign(N + 1, 0);
    for (size_t n = 0; n < N; n++) kept.begin[n + 1] = kept.begin[n] + rows[n].size();
    kept.unit.resize(kept.begin[N]);
    kept.value.resize(kept.begin[N]);
    parallel_for(N, [&](size_t n) {
        size_t at = kept.begin[n];
        for (const Latent& l : rows[n]) {
            kept.unit[at] = l.unit;
            kept.value[at++] = l.value;
        }
    });
}

// Leaves the k largest of a list.
static void cut_to_largest(std::vector<Latent>& list, size_t k) {
    if (list.size() <= k) return;
    std::nth_element(list.begin(), list.begin() + std::ptrdiff_t(k), list.end(),
                     [](const Latent& a, const Latent& b) {
                         const Bits x = bits_of(a.value), y = bits_of(b.value);
                         return x != y ? x > y : a.unit < b.unit;
                     });
    list.resize(k);
    std::sort(list.begin(), list.end(), [](const Latent& a, const Latent& b) { return a.unit < b.unit; });
}

void keep_topk(Latents& kept, const real* a, size_t N, size_t F, size_t k) {
    fill(kept, N, [&](size_t n, std::vector<Latent>& list) {
        for (size_t i = 0; i < F; i++)
            if (bits_of(a[n * F + i]) > 0) list.push_back({uint32_t(i), a[n * F + i]});
        cut_to_largest(list, k);
    });
}

void keep_above(Latents& kept, const real* a, size_t N, size_t F, real theta) {
    const Bits above = bits_of(std::max(theta, real(0)));
    fill(kept, N, [&](size_t n, std::vector<Latent>& list) {
        for (size_t i = 0; i < F; i++)
            if (bits_of(a[n * F + i]) > above) list.push_back({uint32_t(i), a[n * F + i]});
    });
}

// The bits of the number at place `rank` (from 0) of all in falling order, by counting 16 bits at a time.
static Bits bits_at_rank(const real* a, size_t count, size_t rank) {
    constexpr int digit = 16;
    Bits prefix = 0;
    for (int shift = 8 * sizeof(Bits) - digit; shift >= 0; shift -= digit) {
        const size_t parts = thread_count();
        std::vector<std::vector<uint32_t>> counts(parts, std::vector<uint32_t>(1 << digit));
        parallel_parts(parts, [&](size_t part) {
            for (size_t i = part * count / parts; i < (part + 1) * count / parts; i++) {
                const Bits bits = bits_of(a[i]);
                const bool inside = shift + digit == 8 * sizeof(Bits) || (bits >> shift >> digit) == prefix;
                if (inside) counts[part][(bits >> shift) & ((1 << digit) - 1)]++;
            }
        });
        size_t d = size_t(1) << digit;
        for (size_t here = 0;; rank -= here) {
            d--;
            here = 0;
            for (const std::vector<uint32_t>& c : counts) here += c[d];
            if (rank < here || d == 0) break;
        }
        prefix = prefix << digit | Bits(d);
    }
    return prefix;
}

void keep_largest(Latents& kept, const real* a, size_t N, size_t F, size_t count) {
    if (count == 0) return keep_topk(kept, a, N, F, 0);
    const Bits cut = count < N * F ? bits_at_rank(a, N * F, count - 1) : 0;
    if (cut == 0) return keep_above(kept, a, N, F, 0); // fewer are positive
    std::vector<size_t> above(N), equal(N);
    parallel_for(N, [&](size_t n) {
        for (size_t i = 0; i < F; i++) {
            const Bits bits = bits_of(a[n * F + i]);
            above[n] += bits > cut;
            equal[n] += bits == cut;
        }
    });
    size_t left = count;
    for (const size_t n : above) left -= n;
    for (size_t& n : equal) { // of the equal ones the first
        n = std::min(n, left);
        left -= n;
    }
    fill(kept, N, [&](size_t n, std::vector<Latent>& list) {
        list.reserve(above[n] + equal[n]);
        size_t ties = equal[n];
        for (size_t i = 0; i < F; i++) {
            const Bits bits = bits_of(a[n * F + i]);
            if (bits < cut || (bits == cut && ties == 0)) continue;
            ties -= bits == cut;
            list.push_back({uint32_t(i), a[n * F + i]});
        }
    });
}

// ---------------------------------------------------------------------------------------------------------
// 3 Forward

SaeActivations::SaeActivations(const Sae& s, size_t max)
    : max(max), centred(max * s.C), a(max * s.F), xh(max * s.C), error(max * s.C), d(max * s.C) {}

static real dot(const real* a, const real* b, size_t n) {
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static void add_scaled(real* to, real scale, const real* from, size_t n) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) to[i] += scale * from[i];
}

// sum_n |x_n - mean x|^2
static double variance_of(const real* x, size_t N, size_t C) {
    std::vector<real> mean(C);
    add_column_sums(mean.data(), x, N, C);
    for (real& m : mean) m /= real(N);
    std::vector<double> of(N);
    parallel_for(N, [&](size_t n) {
        real sum = 0;
#pragma omp simd reduction(+ : sum)
        for (size_t i = 0; i < C; i++) sum += (x[n * C + i] - mean[i]) * (x[n * C + i] - mean[i]);
        of[n] = sum;
    });
    return std::accumulate(of.begin(), of.end(), 0.0);
}

// sum |x|^2
static double square_sum(const real* x, size_t N, size_t C) {
    std::vector<double> of(N);
    parallel_for(N, [&](size_t n) { of[n] = dot(x + n * C, x + n * C, C); });
    return std::accumulate(of.begin(), of.end(), 0.0);
}

void sae_encode(const Sae& s, SaeActivations& t, const real* x, size_t N) {
    if (N > t.max) fail("a batch of %zu tokens does not fit in this SAE's memory", N);
    t.N = N;
    parallel_for(N, [&](size_t n) {
        for (size_t i = 0; i < s.C; i++) t.centred.data[n * s.C + i] = x[n * s.C + i] - s.w.b_dec[i];
    });
    linear_forward(t.a.data, t.centred.data, s.w.w_enc, s.w.b_enc, N, s.C, s.F);
    parallel_ranges(N * s.F, 4096, [&](size_t begin, size_t end) {
#pragma omp simd
        for (size_t i = begin; i < end; i++) {
            const real h = t.a.data[i];
            t.a.data[i] = h <= 0 ? real(0) : h; // NaN stays
        }
    });
}

void sae_keep(const Sae& s, SaeActivations& t, bool training) {
    if (s.kind == SaeKind::topk)
        keep_topk(t.kept, t.a.data, t.N, s.F, s.k);
    else if (s.kind == SaeKind::relu)
        keep_above(t.kept, t.a.data, t.N, s.F, 0);
    else if (training)
        keep_largest(t.kept, t.a.data, t.N, s.F, t.N * s.k);
    else
        keep_above(t.kept, t.a.data, t.N, s.F, real(s.theta));
}

// out_n = start + sum over the latents of token n of f W_d;  start (C) or null
static void add_up(real* out, const Latents& f, const Sae& s, const real* start) {
    parallel_for(f.begin.size() - 1, [&](size_t n) {
        real* row = out + n * s.C;
        for (size_t i = 0; i < s.C; i++) row[i] = start ? start[i] : real(0);
        for (size_t j = f.begin[n]; j < f.begin[n + 1]; j++)
            add_scaled(row, f.value[j], s.w.w_dec + size_t(f.unit[j]) * s.C, s.C);
    });
}

void sae_decode(const Sae& s, SaeActivations& t) { add_up(t.xh.data, t.kept, s, s.w.b_dec); }

double sae_forward(const Sae& s, SaeActivations& t, const real* x, size_t N, bool training) {
    sae_encode(s, t, x, N);
    sae_keep(s, t, training);
    sae_decode(s, t);
    parallel_ranges(N * s.C, 4096, [&](size_t begin, size_t end) {
#pragma omp simd
        for (size_t i = begin; i < end; i++) t.error.data[i] = x[i] - t.xh.data[i];
    });
    t.variance = variance_of(x, N, s.C);
    return square_sum(t.error.data, N, s.C) / t.variance;
}

constexpr double soft = 1e-3;

static double penalty_sum(const Latents& f, double p) {
    const size_t N = f.begin.size() - 1;
    std::vector<double> of(N);
    parallel_for(N, [&](size_t n) {
        for (size_t j = f.begin[n]; j < f.begin[n + 1]; j++)
            of[n] += std::pow(double(f.value[j]) + soft, p) - std::pow(soft, p);
    });
    return std::accumulate(of.begin(), of.end(), 0.0);
}

double sae_penalty(const Sae& s, const SaeActivations& t) {
    return s.kind == SaeKind::relu ? s.lambda * penalty_sum(t.kept, s.p) / double(t.N) : 0;
}

double sae_revive(const Sae& s, SaeActivations& t, uint32_t idle) {
    std::vector<uint32_t> dead;
    for (uint32_t i = 0; i < s.F; i++)
        if (s.idle[i] > idle) dead.push_back(i);
    fill(t.revived, t.N, [&](size_t n, std::vector<Latent>& list) {
        for (const uint32_t i : dead)
            if (bits_of(t.a.data[n * s.F + i]) > 0) list.push_back({i, t.a.data[n * s.F + i]});
        cut_to_largest(list, s.C / 2);
    });
    if (t.revived.size() == 0) return 0;
    add_up(t.d.data, t.revived, s, nullptr);
    parallel_ranges(t.N * s.C, 4096, [&](size_t begin, size_t end) {
#pragma omp simd
        for (size_t i = begin; i < end; i++) t.d.data[i] = t.error.data[i] - t.d.data[i];
    });
    t.error_variance = variance_of(t.error.data, t.N, s.C);
    return square_sum(t.d.data, t.N, s.C) / t.error_variance;
}

// ---------------------------------------------------------------------------------------------------------
// 4 Backward

// Adds what comes of latents f whose sum has the gradient scale * d; slope(f): of a penalty on a latent.
template <class Slope> static void latents_backward(Sae& s, const SaeActivations& t, const Latents& f,
                                                    const real* d, real scale, Slope slope) {
    const size_t C = s.C;
    std::vector<real> df(f.size());
    std::vector<size_t> begin(s.F + 1);    // by unit
    std::vector<uint32_t> token(f.size()); // of each latent, and the latents of a unit in the tokens' order
    std::vector<size_t> order(f.size());
    parallel_for(t.N, [&](size_t n) {
        for (size_t j = f.begin[n]; j < f.begin[n + 1]; j++) {
            token[j] = uint32_t(n);
            df[j] = scale * dot(s.w.w_dec + size_t(f.unit[j]) * C, d + n * C, C) + slope(f.value[j]);
        }
    });
    for (const uint32_t unit : f.unit) begin[unit + 1]++;
    for (size_t i = 0; i < s.F; i++) begin[i + 1] += begin[i];
    std::vector<size_t> end(begin.begin(), begin.end() - 1);
    for (size_t j = 0; j < f.size(); j++) order[end[f.unit[j]]++] = j;
    parallel_items(s.F, [&](size_t i) {
        for (size_t o = begin[i]; o < begin[i + 1]; o++) {
            const size_t j = order[o], n = token[j];
            add_scaled(s.g.w_dec + i * C, scale * f.value[j], d + n * C, C);
            add_scaled(s.g.w_enc + i * C, df[j], t.centred.data + n * C, C);
            s.g.b_enc[i] += df[j];
        }
    });
}

void sae_backward(Sae& s, SaeActivations& t, bool revived) {
    parallel_ranges(s.gradients.count, 4096, [&](size_t begin, size_t end) {
        std::fill(s.gradients.data + begin, s.gradients.data + end, real(0));
    });
    if (revived && t.revived.size()) // t.d holds e - W_d^T f'
        latents_backward(s, t, t.revived, t.d.data, real(-2 * sae_aux_share / t.error_variance),
                         [](real) { return real(0); });
    const real scale = real(-2 / t.variance), p = real(s.p);
    if (s.kind == SaeKind::relu) {
        const real weight = real(s.lambda / double(t.N));
        latents_backward(s, t, t.kept, t.error.data, scale,
                         [=](real f) { return weight * p * std::pow(f + real(soft), p - 1); });
    } else {
        latents_backward(s, t, t.kept, t.error.data, scale, [](real) { return real(0); });
    }
    add_column_sums(s.g.b_dec, t.error.data, t.N, s.C);
    for (size_t c = 0; c < s.C; c++) s.g.b_dec[c] *= scale;
    for (size_t i = 0; i < s.F; i++) add_scaled(s.g.b_dec, -s.g.b_enc[i], s.w.w_enc + i * s.C, s.C);
}

// ---------------------------------------------------------------------------------------------------------
// 5 Update

static void make_unit_length(real* row, size_t C) {
    const real length = std::sqrt(dot(row, row, C));
    if (length == 0) return;
    for (size_t i = 0; i < C; i++) row[i] /= length;
}

double sae_update(Sae& s, uint64_t t, double lr) {
    parallel_for(s.F, [&](size_t i) {
        real *d = s.g.w_dec + i * s.C, *row = s.w.w_dec + i * s.C;
        add_scaled(d, -dot(d, row, s.C), row, s.C);
    });
    const double norm = block_norm(s.gradients.data, s.gradients.count, s.partial);
    if (!std::isfinite(norm)) return norm;
    AdamW adam;
    adam.lr = lr;
    adam.beta_2 = 0.999;
    adamw(s.weights.data, s.gradients.data, s.moment_1.data, s.moment_2.data, s.weights.count, adam, 0, t,
          norm > 1 ? 1 / norm : 1);
    parallel_for(s.F, [&](size_t i) { make_unit_length(s.w.w_dec + i * s.C, s.C); });
    return norm;
}

void sae_count(Sae& s, const SaeActivations& t) {
    for (uint32_t& n : s.idle) n++;
    for (const uint32_t i : t.kept.unit) s.idle[i] = 0;
    if (s.kind != SaeKind::batchtopk || t.kept.size() == 0) return;
    const double least = *std::min_element(t.kept.value.begin(), t.kept.value.end());
    s.theta = s.theta < 0 ? least : s.theta + s.theta_share * (least - s.theta);
}

SaeStep sae_step(Sae& s, SaeActivations& t, const real* x, size_t N, uint32_t idle, uint64_t step,
                 double lr) {
    SaeStep result = {};
    result.fvu = sae_forward(s, t, x, N, true);
    result.penalty = sae_penalty(s, t);
    result.l0 = double(t.kept.size()) / double(N);
    const bool revive = s.kind != SaeKind::relu;
    if (revive) result.aux = sae_revive(s, t, idle);
    sae_backward(s, t, revive);
    result.norm = sae_update(s, step, lr);
    sae_count(s, t);
    return result;
}

double sae_rate(int64_t step, int64_t steps) {
    const double warmup = std::max(1.0, 0.05 * double(steps)), fall = std::max(1.0, 0.2 * double(steps));
    return std::min({1.0, double(step + 1) / warmup, double(steps - step) / fall});
}

// ---------------------------------------------------------------------------------------------------------
// 6 Start and events

void geometric_median(real* median, const real* x, size_t N, size_t C, size_t rounds) {
    std::vector<real> weight(N), sum(C);
    std::fill(median, median + C, real(0));
    add_column_sums(median, x, N, C);
    for (size_t i = 0; i < C; i++) median[i] /= real(N);
    for (size_t round = 0; round < rounds; round++) {
        parallel_for(N, [&](size_t n) {
            real square = 0;
            for (size_t i = 0; i < C; i++) square += (x[n * C + i] - median[i]) * (x[n * C + i] - median[i]);
            weight[n] = 1 / std::max(std::sqrt(square), real(1e-6));
        });
        std::fill(sum.begin(), sum.end(), real(0));
        double total = 0;
        for (size_t n = 0; n < N; n++) {
            add_scaled(sum.data(), weight[n], x + n * C, C);
            total += weight[n];
        }
        for (size_t i = 0; i < C; i++) median[i] = real(sum[i] / total);
    }
}

void sae_start(Sae& s, const real* x, size_t N, uint64_t seed, uint64_t stream) {
    parallel_for(s.F, [&](size_t i) {
        real* row = s.w.w_dec + i * s.C;
        for (size_t c = 0; c < s.C; c++) row[c] = real(random_normal(seed, stream, i * s.C + c));
        make_unit_length(row, s.C);
        std::copy(row, row + s.C, s.w.w_enc + i * s.C);
    });
    geometric_median(s.w.b_dec, x, N, s.C);
}

size_t sae_resample(Sae& s, const SaeActivations& t, const real* x, uint32_t idle, uint64_t seed,
                    uint64_t stream) {
    std::vector<uint32_t> dead;
    double norms = 0;
    for (uint32_t i = 0; i < s.F; i++)
        if (s.idle[i] > idle)
            dead.push_back(i);
        else
            norms += std::sqrt(double(dot(s.w.w_enc + size_t(i) * s.C, s.w.w_enc + size_t(i) * s.C, s.C)));
    if (dead.size() == s.F) return 0; // none is left to take the norm of
    const real norm = real(0.2 * norms / double(s.F - dead.size()));
    std::vector<double> up_to(t.N);
    double total = 0;
    for (size_t n = 0; n < t.N; n++)
        up_to[n] = total += dot(t.error.data + n * s.C, t.error.data + n * s.C, s.C);
    Random random{seed, stream};
    for (const uint32_t i : dead) {
        const size_t n = std::min(
            size_t(std::upper_bound(up_to.begin(), up_to.end(), random.uniform() * total) - up_to.begin()),
            t.N - 1);
        real *enc = s.w.w_enc + size_t(i) * s.C, *dec = s.w.w_dec + size_t(i) * s.C;
        for (size_t c = 0; c < s.C; c++) dec[c] = x[n * s.C + c] - s.w.b_dec[c];
        make_unit_length(dec, s.C);
        for (size_t c = 0; c < s.C; c++) enc[c] = norm * dec[c];
        s.w.b_enc[i] = 0;
        s.idle[i] = 0;
        for (const Block* moments : {&s.moment_1, &s.moment_2}) {
            const SaeTensors m = carve(s.table, moments->data);
            std::fill_n(m.w_enc + size_t(i) * s.C, s.C, real(0));
            std::fill_n(m.w_dec + size_t(i) * s.C, s.C, real(0));
            m.b_enc[i] = 0;
        }
    }
    return dead.size();
}

void sae_anneal(Sae& s, const SaeActivations& t, double p) {
    const double before = penalty_sum(t.kept, s.p), after = penalty_sum(t.kept, p);
    if (before > 0 && after > 0) s.lambda *= before / after;
    s.p = p;
}
