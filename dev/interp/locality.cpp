// Local routing consistency: see locality.h.
#include "locality.h"

// By windows' c: how many there are.
static std::pair<double, double> best_group(const std::vector<double>& windows) {
    const size_t m = windows.size() - 1;
    double A = 0, M = 0, P = 0, best = undefined, size = undefined;
    for (size_t c = 0; c <= m; c++) A += double(c) * windows[c];
    if (!(A > 0)) return {best, size};
    for (size_t t = m + 1; t-- > 0;) {
        M += double(t) * windows[t];
        P += double(m) * windows[t];
        const double f1 = 2 * M / (P + A);
        if (best >= f1) continue;
        best = f1;
        size = P / A;
    }
    return {best, size};
}

Locality segment_routing(const Deal& deal, size_t T, size_t m, uint64_t seed) {
    const size_t rows = deal.expert.size() / deal.K / T;
    std::vector<std::vector<double>> of_row(rows, std::vector<double>(m + 1));
    parallel_for(rows, [&](size_t row) {
        std::vector<size_t> c(deal.E);
        for (size_t t = 0; t < T; t++) {
            const uint16_t* at = deal.expert.data() + (row * T + t) * deal.K;
            for (size_t k = 0; k < deal.K; k++) c[at[k]]++;
            if (t >= m)
                for (size_t k = 0; k < deal.K; k++) c[(at - m * deal.K)[k]]--;
            if (t + 1 >= m)
                for (const size_t count : c) of_row[row][count]++;
        }
    });
    const auto of_drawn = [&](const std::vector<uint32_t>& times) {
        std::vector<double> sum(m + 1);
        for (size_t row = 0; row < rows; row++)
            if (times[row])
                for (size_t c = 0; c <= m; c++) sum[c] += times[row] * of_row[row][c];
        return best_group(sum);
    };
    const auto [srp, size] = of_drawn(std::vector<uint32_t>(rows, 1));
    return {{srp, bootstrap(rows, seed, [&](const auto& times) { return of_drawn(times).first; })}, size};
}

double cache_hits(const Deal& deal, size_t T, size_t m, size_t size, Eviction eviction) {
    const size_t rows = deal.expert.size() / deal.K / T, K = deal.K;
    std::vector<double> found(rows);
    parallel_for(rows, [&](size_t row) {
        const uint16_t* expert = deal.expert.data() + row * T * K;
        std::vector<size_t> to_come(deal.E), so_far(deal.E), last(deal.E);
        std::vector<uint8_t> cached(deal.E), seen(deal.E);
        size_t held = 0, different = 0, clock = 0;
        const auto count_to_come = [&](size_t token, int by) {
            if (token < T)
                for (size_t k = 0; k < K; k++) to_come[expert[token * K + k]] += size_t(by);
        };
        for (size_t t = 1; t < m; t++) count_to_come(t, 1);
        for (size_t t = 0; t < T; t++) { // to come: t + 1 .. t + m
            if (t > 0) count_to_come(t, -1);
            count_to_come(t + m, 1);
            for (size_t k = 0; k < K; k++) {
                const size_t e = expert[t * K + k];
                found[row] += cached[e] || (!seen[e] && different < size);
                different += !seen[e];
                seen[e] = 1;
            }
            for (size_t k = 0; k < K; k++) {
                const size_t e = expert[t * K + k];
                so_far[e]++;
                last[e] = ++clock;
                if (cached[e]) continue;
                if (held == size) {
                    size_t out = SIZE_MAX;
                    const auto worth = [&](size_t j) {
                        return std::pair{eviction == FEWEST_TO_COME   ? to_come[j]
                                         : eviction == LEAST_FREQUENT ? so_far[j]
                                                                      : 0,
                                         last[j]};
                    };
                    for (size_t j = 0; j < deal.E; j++)
                        if (cached[j] && (out == SIZE_MAX || worth(j) < worth(out))) out = j;
                    cached[out] = 0;
                    held--;
                }
                cached[e] = 1;
                held++;
            }
        }
    });
    return std::accumulate(found.begin(), found.end(), 0.0) / double(deal.expert.size());
}

Deal shuffled_rows(const Deal& deal, size_t T, uint64_t seed) {
    const size_t rows = deal.expert.size() / deal.K / T, K = deal.K;
    Deal out = deal;
    parallel_for(rows, [&](size_t row) {
        Random random{seed, random_stream("rows") + row};
        uint16_t* at = out.expert.data() + row * T * K;
        for (size_t t = T; t > 1; t--) {
            const size_t other = random.below(t);
            if (other != t - 1) std::swap_ranges(at + (t - 1) * K, at + t * K, at + other * K);
        }
    });
    return out;
}
