// The gradients of sparse autoencoders (dev/interp/sae/sae.h) against central finite differences, in double:
// every tensor of every kind, along random directions and single elements, the choice of latents and the
// error that dead ones are to explain held constant. Also what an update does to the rows of W_d.
#include "../dev/interp/sae/sae.h"
#include "check.h"

static_assert(sizeof(real) == 8, "build with -DMOEX_DOUBLE");

constexpr size_t C = 8, F = 30, N = 40;

static std::vector<real> some_activations() {
    std::vector<real> x(N * C);
    for (size_t i = 0; i < x.size(); i++) x[i] = random_normal(3, 0, i) + 0.3 * double(i % C);
    return x;
}

static Sae some_sae(SaeKind kind, double p) {
    Sae s(kind, C, F, 4, true);
    for (size_t i = 0; i < s.weights.count; i++) s.weights.data[i] = 0.5 * random_normal(4, 0, i);
    s.lambda = 0.3, s.p = p;
    for (uint32_t i = 0; i < F; i += 3) s.idle[i] = 7;
    return s;
}

static void test_kind(SaeKind kind, double p, bool revive) {
    const std::vector<real> x = some_activations();
    Sae s = some_sae(kind, p);
    SaeActivations t(s, N);
    sae_forward(s, t, x.data(), N, true);
    check(t.kept.size() > N && (kind == SaeKind::relu || t.kept.size() <= 4 * N), "%zu", t.kept.size());
    if (revive) check(sae_revive(s, t, 5) > 0);
    sae_backward(s, t, revive);

    // The loss with those latents and, for aux, with that error.
    const std::vector<real> error(t.error.data, t.error.data + N * C);
    const Latents kept = t.kept, revived = t.revived;
    const auto loss = [&] {
        sae_encode(s, t, x.data(), N);
        double sum = 0, variance = 0, penalty = 0, aux = 0, error_variance = 0;
        real mean[C] = {}, mean_error[C] = {};
        for (size_t i = 0; i < N * C; i++) {
            mean[i % C] += x[i] / N;
            mean_error[i % C] += error[i] / N;
        }
        for (size_t n = 0; n < N; n++) {
            const auto add_up = [&](const Latents& f, bool bias, size_t c) {
                real out = bias ? s.w.b_dec[c] : 0;
                for (size_t j = f.begin[n]; j < f.begin[n + 1]; j++)
                    out += t.a.data[n * F + f.unit[j]] * s.w.w_dec[f.unit[j] * C + c];
                return out;
            };
            for (size_t c = 0; c < C; c++) {
                sum += std::pow(x[n * C + c] - add_up(kept, true, c), 2);
                variance += std::pow(x[n * C + c] - mean[c], 2);
                if (!revive) continue;
                aux += std::pow(error[n * C + c] - add_up(revived, false, c), 2);
                error_variance += std::pow(error[n * C + c] - mean_error[c], 2);
            }
            for (size_t j = kept.begin[n]; j < kept.begin[n + 1]; j++)
                penalty += std::pow(t.a.data[n * F + kept.unit[j]] + 1e-3, s.p) - std::pow(1e-3, s.p);
        }
        return sum / variance + (revive ? aux / error_variance / 32 : 0) +
               (kind == SaeKind::relu ? s.lambda * penalty / N : 0);
    };
    double worst = 0;
    for (const Tensor& tensor : s.table) {
        real* w = s.weights.data + tensor.offset;
        const std::vector<real> saved(w, w + tensor.count);
        for (int trial = 0; trial < 6; trial++) {
            std::vector<real> direction(tensor.count);
            double length = 0, analytic = 0;
            for (size_t i = 0; i < tensor.count; i++) {
                const bool one = i == random_u64(5, uint64_t(trial), tensor.offset) % tensor.count;
                direction[i] = trial < 3 ? random_normal(5, uint64_t(trial), tensor.offset + i) : one;
                length += direction[i] * direction[i];
            }
            for (size_t i = 0; i < tensor.count; i++) {
                direction[i] /= std::sqrt(length);
                analytic += direction[i] * s.gradients.data[tensor.offset + i];
            }
            double numeric = 0;                                   // of fourth order
            const double h = kind == SaeKind::relu ? 1e-5 : 1e-3; // phi bends sharply near 0
            for (const auto& [place, share] : {std::pair{2, -1.0}, {1, 8.0}, {-1, -8.0}, {-2, 1.0}}) {
                for (size_t i = 0; i < tensor.count; i++) w[i] = saved[i] + h * place * direction[i];
                numeric += share * loss() / (12 * h);
            }
            std::copy(saved.begin(), saved.end(), w);
            const double most = std::max({std::fabs(analytic), std::fabs(numeric), 1e-5});
            worst = std::max(worst, std::fabs(analytic - numeric) / most);
            check(std::fabs(analytic - numeric) <= 1e-6 * most,
                  "%s, kind %d, p %g, trial %d: %.12g, numeric %.12g", tensor.name.c_str(), int(kind), p,
                  trial, analytic, numeric);
        }
    }
    printf("%-9s p %.1f %s  worst relative error %.1e\n", sae_kinds[size_t(kind)].c_str(), p,
           revive ? "aux" : "   ", worst);
}

// The losses that forward reports are those of the definitions.
static void test_losses() {
    const std::vector<real> x = some_activations();
    const Sae s = some_sae(SaeKind::relu, 0.5);
    SaeActivations t(s, N);
    const double fvu = sae_forward(s, t, x.data(), N, true);
    double sum = 0, variance = 0, penalty = 0;
    for (size_t c = 0; c < C; c++) {
        double mean = 0;
        for (size_t n = 0; n < N; n++) mean += x[n * C + c] / N;
        for (size_t n = 0; n < N; n++) {
            double xh = s.w.b_dec[c];
            for (size_t i = 0; i < F; i++) {
                double a = s.w.b_enc[i];
                for (size_t d = 0; d < C; d++) a += s.w.w_enc[i * C + d] * (x[n * C + d] - s.w.b_dec[d]);
                if (a > 0) xh += a * s.w.w_dec[i * C + c];
                if (a > 0 && c == 0) penalty += std::sqrt(a + 1e-3) - std::sqrt(1e-3);
            }
            sum += std::pow(x[n * C + c] - xh, 2);
            variance += std::pow(x[n * C + c] - mean, 2);
        }
    }
    check_near(fvu, sum / variance, 1e-12 * fvu);
    check_near(sae_penalty(s, t), 0.3 * penalty / N, 1e-12);
}

static void test_update() {
    const std::vector<real> x = some_activations();
    Sae s = some_sae(SaeKind::topk, 1);
    SaeActivations t(s, N);
    sae_start(s, x.data(), N, 1, 2);
    for (uint64_t step = 1; step <= 20; step++) {
        const SaeStep r = sae_step(s, t, x.data(), N, 1000, step, 0.05);
        check(r.finite() && r.l0 <= 4);
        for (size_t i = 0; i < F; i++) {
            double square = 0;
            for (size_t c = 0; c < C; c++) square += std::pow(s.w.w_dec[i * C + c], 2);
            check_near(square, 1, 1e-12);
        }
    }
    // What is taken off before the step: the part along the row.
    sae_forward(s, t, x.data(), N, true);
    sae_backward(s, t, false);
    const std::vector<real> before(s.w.w_dec, s.w.w_dec + F * C);
    sae_update(s, 21, 0);
    for (size_t i = 0; i < F; i++) {
        double along = 0;
        for (size_t c = 0; c < C; c++) along += s.g.w_dec[i * C + c] * before[i * C + c];
        check_near(along, 0, 1e-12);
    }
    // A gradient that is not finite changes nothing.
    s.g.b_enc[0] = NAN;
    const std::vector<real> weights(s.weights.data, s.weights.data + s.weights.count);
    check(!std::isfinite(sae_update(s, 22, 0.1)));
    check(std::equal(weights.begin(), weights.end(), s.weights.data));
}

int main() {
    for (const SaeKind kind : {SaeKind::batchtopk, SaeKind::topk})
        for (const bool revive : {false, true}) test_kind(kind, 1, revive);
    for (const double p : {1.0, 0.6, 0.2}) test_kind(SaeKind::relu, p, false);
    test_losses();
    test_update();
    return finish();
}
