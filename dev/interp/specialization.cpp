// The divergence of experts by clusters of tokens: see specialization.h.
#include "specialization.h"

std::vector<uint32_t> spherical_clusters(const float* vectors, size_t n, size_t C, size_t k, uint64_t seed) {
    std::vector<double> x(vectors, vectors + n * C), mean(C);
    for (size_t i = 0; i < n * C; i++) mean[i % C] += x[i] / double(n);
    for (size_t i = 0; i < n * C; i++) x[i] -= mean[i % C];
    const auto to_unit_length = [&](double* row) {
        double square = 0;
        for (size_t c = 0; c < C; c++) square += row[c] * row[c];
        if (square > 0)
            for (size_t c = 0; c < C; c++) row[c] /= std::sqrt(square);
    };
    for (size_t i = 0; i < n; i++) to_unit_length(x.data() + i * C);

    std::vector<double> center(k * C);
    std::vector<uint32_t> order(n);
    std::iota(order.begin(), order.end(), 0u);
    Random random{seed, random_stream("clusters")};
    for (size_t j = 0; j < k; j++) { // begin at k of the rows
        std::swap(order[j], order[j + random.below(n - j)]);
        std::copy_n(x.data() + order[j] * C, C, center.data() + j * C);
    }
    std::vector<uint32_t> cluster(n, UINT32_MAX);
    for (size_t round = 0; round < 100; round++) {
        std::vector<uint8_t> moved(n);
        parallel_for(n, [&](size_t i) {
            uint32_t nearest = 0;
            double most = -2;
            for (size_t j = 0; j < k; j++) {
                double dot = 0;
                for (size_t c = 0; c < C; c++) dot += x[i * C + c] * center[j * C + c];
                if (dot <= most) continue;
                most = dot;
                nearest = uint32_t(j);
            }
            moved[i] = nearest != cluster[i];
            cluster[i] = nearest;
        });
        if (std::none_of(moved.begin(), moved.end(), [](uint8_t m) { return m; })) break;
        std::fill(center.begin(), center.end(), 0);
        for (size_t i = 0; i < n; i++)
            for (size_t c = 0; c < C; c++) center[cluster[i] * C + c] += x[i * C + c];
        for (size_t j = 0; j < k; j++) to_unit_length(center.data() + j * C);
    }
    return cluster;
}

double most_divergence(double s) {
    return 0.5 * (std::log2(2 / (1 + s)) + s * std::log2(2 * s / (1 + s)) + 1 - s);
}

// JSD of two lists of counts, in bits.
static double divergence(const double* a, const double* b, size_t clusters) {
    const double all_a = std::accumulate(a, a + clusters, 0.0), all_b = std::accumulate(b, b + clusters, 0.0);
    double sum = 0;
    for (size_t c = 0; c < clusters; c++) {
        const double p = a[c] / all_a, q = b[c] / all_b, m = (p + q) / 2;
        if (p > 0) sum += 0.5 * p * std::log2(p / m);
        if (q > 0) sum += 0.5 * q * std::log2(q / m);
    }
    return sum;
}

Estimate specialization(const std::vector<double>& counts, size_t E, size_t clusters, uint64_t seed) {
    std::vector<double> layer(clusters), up_to(clusters), values;
    for (size_t i = 0; i < counts.size(); i++) layer[i % clusters] += counts[i];
    std::partial_sum(layer.begin(), layer.end(), up_to.begin());
    for (size_t e = 0; e < E; e++) {
        const double* own = counts.data() + e * clusters;
        const size_t n = size_t(std::accumulate(own, own + clusters, 0.0));
        if (n == 0) continue;
        double chance = 0;
        for (size_t draw = 0; draw < n_draws; draw++) {
            std::vector<double> drawn(clusters);
            Random random{seed, random_stream("draws") + e * n_draws + draw};
            for (size_t i = 0; i < n; i++) {
                const double at = random.uniform() * up_to.back();
                drawn[size_t(std::upper_bound(up_to.begin(), up_to.end(), at) - up_to.begin())]++;
            }
            chance += divergence(drawn.data(), layer.data(), clusters) / n_draws;
        }
        values.push_back((divergence(own, layer.data(), clusters) - chance) /
                         most_divergence(1.0 / double(E)));
    }
    const Moments m = moments(values.data(), values.size());
    if (values.size() < 2) return {m.mean, {}};
    const double error = m.sd / std::sqrt(double(values.size()) - 1);
    return {m.mean, {m.mean - 1.96 * error, m.mean + 1.96 * error}};
}
