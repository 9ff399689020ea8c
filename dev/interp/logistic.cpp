// Logistic regression: see logistic.h.
#include "logistic.h"
#include <algorithm>

// s_i of the two classes.
static void class_weights(const std::vector<uint8_t>& y, double s[2]) {
    const double n = double(y.size()), yes = double(std::count(y.begin(), y.end(), 1));
    s[0] = n / (2 * (n - yes));
    s[1] = n / (2 * yes);
}

double logistic_objective(const std::vector<double>& x, const std::vector<uint8_t>& y, size_t k,
                          const std::vector<double>& w, double b, std::vector<double>& gradient) {
    double s[2], f = 0;
    class_weights(y, s);
    gradient.assign(k + 1, 0);
    for (size_t j = 0; j < k; j++) {
        f += w[j] * w[j] / 2;
        gradient[j] = w[j];
    }
    for (size_t i = 0; i < y.size(); i++) {
        double score = b;
        for (size_t j = 0; j < k; j++) score += w[j] * x[i * k + j];
        const double m = y[i] ? score : -score, e = std::exp(-std::fabs(m)); // no overflow
        f += s[y[i]] * (std::log1p(e) + (m < 0 ? -m : 0));
        const double slope = (y[i] ? -s[1] : s[0]) * (m > 0 ? e / (1 + e) : 1 / (1 + e));
        for (size_t j = 0; j < k; j++) gradient[j] += slope * x[i * k + j];
        gradient[k] += slope;
    }
    return f;
}

// H step = gradient, by Cholesky's H = L L^T in place.  H (m,m), lower triangle; false if it is not positive
static bool solve(std::vector<double>& H, std::vector<double>& step, size_t m) {
    for (size_t j = 0; j < m; j++) {
        for (size_t i = j; i < m; i++) {
            double sum = H[i * m + j];
            for (size_t p = 0; p < j; p++) sum -= H[i * m + p] * H[j * m + p];
            if (i > j)
                H[i * m + j] = sum / H[j * m + j];
            else if (sum > 0)
                H[j * m + j] = std::sqrt(sum);
            else
                return false;
        }
    }
    for (size_t i = 0; i < m; i++) {
        for (size_t p = 0; p < i; p++) step[i] -= H[i * m + p] * step[p];
        step[i] /= H[i * m + i];
    }
    for (size_t i = m; i-- > 0;) {
        for (size_t p = i + 1; p < m; p++) step[i] -= H[p * m + i] * step[p];
        step[i] /= H[i * m + i];
    }
    return true;
}

LogisticFit fit_logistic(const std::vector<double>& x, const std::vector<uint8_t>& y, size_t k) {
    constexpr size_t most_steps = 100, most_halvings = 40;
    const size_t n = y.size(), m = k + 1;
    double s[2];
    class_weights(y, s);
    LogisticFit fit;
    fit.w.assign(k, 0);
    std::vector<double> gradient, next_gradient, H(m * m), step, w(k), row(m, 1.0);
    double f = logistic_objective(x, y, k, fit.w, fit.b, gradient);
    const auto largest = [](const std::vector<double>& v) {
        double most = 0;
        for (const double part : v) most = std::max(most, std::fabs(part));
        return most;
    };
    constexpr double enough = 1e-8, rounding = 1e-12;
    for (size_t steps = 0; steps < most_steps && largest(gradient) > enough; steps++) {
        std::fill(H.begin(), H.end(), 0);
        for (size_t i = 0; i < n; i++) {
            double score = fit.b;
            for (size_t j = 0; j < k; j++) {
                row[j] = x[i * k + j];
                score += fit.w[j] * row[j];
            }
            const double e = std::exp(-std::fabs(score)), curvature = s[y[i]] * e / ((1 + e) * (1 + e));
            for (size_t a = 0; a < m; a++) {
                const double c = curvature * row[a];
                for (size_t b = 0; b <= a; b++) H[a * m + b] += c * row[b];
            }
        }
        for (size_t j = 0; j < k; j++) H[j * m + j] += 1;
        H[k * m + k] += 1e-12;
        step = gradient;
        if (!solve(H, step, m)) break;
        double length = 1;
        size_t halvings = 0;
        for (; halvings < most_halvings; halvings++, length /= 2) {
            for (size_t j = 0; j < k; j++) w[j] = fit.w[j] - length * step[j];
            const double next = logistic_objective(x, y, k, w, fit.b - length * step[k], next_gradient);
            if (next < f || (next <= f * (1 + rounding) && largest(next_gradient) < largest(gradient))) {
                f = next;
                break;
            }
        }
        if (halvings == most_halvings) break; // as low as numbers tell
        fit.w = w;
        fit.b -= length * step[k];
        gradient = next_gradient;
    }
    fit.gradient = largest(gradient);
    return fit;
}
