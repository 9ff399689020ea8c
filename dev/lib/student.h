// Means over few runs: Student's t intervals, paired differences, and Holm's correction for many comparisons
// at once. What has no value (an interval of one run) is NaN.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

// The regularised incomplete beta function I_x(a, b), by its continued fraction (modified Lentz).
inline double incomplete_beta(double a, double b, double x) {
    if (x <= 0) return 0;
    if (x >= 1) return 1;
    if (x > (a + 1) / (a + b + 2)) return 1 - incomplete_beta(b, a, 1 - x);
    const double front = std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) + a * std::log(x) +
                                  b * std::log1p(-x)) /
                         a;
    const auto away = [](double y) { return std::fabs(y) < 1e-300 ? 1e-300 : y; };
    double c = 1, d = 1 / away(1 - (a + b) * x / (a + 1)), sum = d;
    for (int m = 1; m <= 10000; m++) {
        for (const double term : {m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
                                  -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))}) {
            d = 1 / away(1 + term * d);
            c = away(1 + term / c);
            sum *= c * d;
        }
        if (std::fabs(c * d - 1) < 1e-15) break;
    }
    return front * sum;
}

// P(|T| > t) of a t distribution.
inline double t_two_sided(double t, double freedom) {
    return std::isnan(t) ? NAN : incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t));
}

// The t that |T| exceeds with probability 1 - level: 4.303 for level 0.95 and two degrees of freedom.
inline double t_quantile(double level, double freedom) {
    if (!(freedom >= 1)) return NAN;
    double low = 0, high = 1;
    while (t_two_sided(high, freedom) > 1 - level) high *= 2;
    for (int i = 0; i < 200; i++) {
        const double middle = (low + high) / 2;
        (t_two_sided(middle, freedom) > 1 - level ? low : high) = middle;
    }
    return (low + high) / 2;
}

// Mean, its 95% interval, and the two-sided p of "the mean is 0".
struct MeanInterval {
    size_t n = 0;
    double mean = NAN, low = NAN, high = NAN, p = NAN;
};
inline MeanInterval mean_interval(const std::vector<double>& x) {
    MeanInterval m;
    m.n = x.size();
    if (x.empty()) return m;
    double sum = 0, squares = 0;
    for (const double v : x) sum += v;
    m.mean = sum / double(m.n);
    if (m.n < 2) return m;
    for (const double v : x) squares += (v - m.mean) * (v - m.mean);
    const double freedom = double(m.n - 1), error = std::sqrt(squares / freedom / double(m.n));
    m.low = m.mean - t_quantile(0.95, freedom) * error;
    m.high = m.mean + t_quantile(0.95, freedom) * error;
    m.p = error > 0 ? t_two_sided(m.mean / error, freedom) : m.mean == 0 ? 1 : 0;
    return m;
}

// Holm's step-down p of each, all of them being looked at together: the i-th smallest of m times m - i + 1,
// not below those before it. NaN are no comparisons.
inline std::vector<double> holm(const std::vector<double>& p) {
    std::vector<size_t> order;
    for (size_t i = 0; i < p.size(); i++)
        if (!std::isnan(p[i])) order.push_back(i);
    std::sort(order.begin(), order.end(),
              [&](size_t a, size_t b) { return p[a] != p[b] ? p[a] < p[b] : a < b; });
    std::vector<double> corrected(p.size(), NAN);
    double most = 0;
    for (size_t i = 0; i < order.size(); i++) {
        most = std::max(most, std::min(1.0, p[order[i]] * double(order.size() - i)));
        corrected[order[i]] = most;
    }
    return corrected;
}
