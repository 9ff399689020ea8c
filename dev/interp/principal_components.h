// Many rows seen in two dimensions: their first two principal components, by hand (subspace iteration, and
// Jacobi's rotations for what is small) and the same in every run.
#pragma once
#include "../cpu/gemm.h"
#include "../lib/random.h"
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

struct Projection {
    double explained[2] = {NAN, NAN}; // share of the variance of the rows, per axis
    std::vector<double> axes;         // (2,C) unit vectors
    std::vector<float> points;        // (n,2)
};

// The eigenvectors of the symmetric a (n,n) as the rows of `vectors` (n,n), by Jacobi's rotations; the
// diagonal of a becomes their eigenvalues.
inline void jacobi(std::vector<double>& a, std::vector<double>& vectors, size_t n) {
    vectors.assign(n * n, 0);
    for (size_t i = 0; i < n; i++) vectors[i * n + i] = 1;
    for (int sweep = 0; sweep < 50; sweep++) {
        double off = 0, scale = 0;
        for (size_t i = 0; i < n * n; i++) (i / n == i % n ? scale : off) += a[i] * a[i];
        if (off <= 1e-30 * scale) break;
        for (size_t p = 0; p < n; p++)
            for (size_t q = p + 1; q < n; q++) {
                if (a[p * n + q] == 0) continue;
                const double theta = (a[q * n + q] - a[p * n + p]) / (2 * a[p * n + q]);
                const double t = (theta < 0 ? -1 : 1) / (std::fabs(theta) + std::sqrt(theta * theta + 1));
                const double c = 1 / std::sqrt(t * t + 1), s = t * c;
                for (size_t k = 0; k < n; k++) {
                    const double x = a[k * n + p], y = a[k * n + q];
                    a[k * n + p] = c * x - s * y;
                    a[k * n + q] = s * x + c * y;
                }
                for (size_t k = 0; k < n; k++) {
                    const double x = a[p * n + k], y = a[q * n + k];
                    a[p * n + k] = c * x - s * y;
                    a[q * n + k] = s * x + c * y;
                    const double u = vectors[p * n + k], v = vectors[q * n + k];
                    vectors[p * n + k] = c * u - s * v;
                    vectors[q * n + k] = s * u + c * v;
                }
            }
    }
}

// The first two principal components of the rows of x (n,C): the two directions of largest variance around
// the mean row. A block of 8 vectors is multiplied by the covariance and made orthonormal, again and again
// (subspace iteration), and the two best directions within it are taken. An axis points to where its
// component of largest size is positive.
inline Projection principal_components(const float* x, size_t n, size_t C) {
    Projection projection;
    const size_t p = std::min<size_t>(8, C);
    std::vector<double> mean(C), covariance(C * C);
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < C; c++) mean[c] += x[i * C + c] / double(n);
    std::vector<float> centred(n * C), product(C * C);
    for (size_t i = 0; i < n * C; i++) centred[i] = float(x[i] - mean[i % C]);
    const Matrix rows = row_major(centred.data(), C);
    multiply({product.data(), rows.transposed(), rows, C, C, n});
    double total = 0;
    for (size_t i = 0; i < C * C; i++) covariance[i] = product[i] / double(n);
    for (size_t c = 0; c < C; c++) total += covariance[c * C + c];

    std::vector<double> basis(p * C), image(p * C), small(p * p), turn;
    for (size_t i = 0; i < p * C; i++) basis[i] = random_normal(1, random_stream("principal components"), i);
    const auto dot = [&](const double* a, const double* b) {
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (size_t c = 0; c < C; c++) sum += a[c] * b[c];
        return sum;
    };
    const auto orthonormal = [&](std::vector<double>& vectors) { // what depends on those before becomes 0
        for (size_t i = 0; i < p; i++) {
            double* v = &vectors[i * C];
            const double before = std::sqrt(dot(v, v));
            for (int twice = 0; twice < 2; twice++) // once leaves what rounding put back
                for (size_t k = 0; k < i; k++) {
                    const double* u = &vectors[k * C];
                    const double overlap = dot(u, v);
                    for (size_t c = 0; c < C; c++) v[c] -= overlap * u[c];
                }
            const double length = std::sqrt(dot(v, v));
            for (size_t c = 0; c < C; c++) v[c] = length > 1e-12 * before ? v[c] / length : 0;
        }
    };
    const auto apply = [&] {
        parallel_ranges(p * C, 1 << 14, [&](size_t begin, size_t end) {
            for (size_t i = begin; i < end; i++) image[i] = dot(&covariance[i % C * C], &basis[i / C * C]);
        });
    };
    orthonormal(basis);
    double last = 0;
    for (int round = 0; round < 500; round++) {
        apply();
        double sum = 0;
        for (size_t i = 0; i < p; i++) sum += dot(&basis[i * C], &image[i * C]);
        basis = image;
        orthonormal(basis);
        if (round > 10 && std::fabs(sum - last) <= 1e-13 * sum) break;
        last = sum;
    }
    apply();
    for (size_t i = 0; i < p; i++)
        for (size_t k = 0; k < p; k++) small[i * p + k] = dot(&basis[i * C], &image[k * C]);
    jacobi(small, turn, p);
    std::vector<size_t> order(p);
    std::iota(order.begin(), order.end(), size_t(0));
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return small[a * p + a] > small[b * p + b]; });

    projection.axes.assign(2 * C, 0);
    projection.points.resize(n * 2);
    for (size_t a = 0; a < std::min<size_t>(2, p); a++) {
        double* axis = &projection.axes[a * C];
        for (size_t i = 0; i < p; i++)
            for (size_t c = 0; c < C; c++) axis[c] += turn[order[a] * p + i] * basis[i * C + c];
        const double* largest = std::max_element(
            axis, axis + C, [](double u, double v) { return std::fabs(u) < std::fabs(v) * (1 - 1e-9); });
        if (*largest < 0)
            for (size_t c = 0; c < C; c++) axis[c] = -axis[c];
        if (total > 0) projection.explained[a] = small[order[a] * p + order[a]] / total;
        parallel_for(n, [&](size_t i) {
            double at = 0;
            for (size_t c = 0; c < C; c++) at += axis[c] * centred[i * C + c];
            projection.points[i * 2 + a] = float(at);
        });
    }
    return projection;
}
