// Statistics as the tools of this folder use them: moments, the distance of a sample from a normal
// distribution, correlation by value and by rank, histograms, quantiles, and confidence intervals that
// resample whole games or rows (the tokens of one game are no independent witnesses). Sums run in double and
// in the order of the data, so the results do not depend on the number of threads. What has no value, such
// as the correlation with a constant, is NaN, which JSON shows as null.
#pragma once
#include "../lib/random.h"
#include "../lib/threads.h"
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

constexpr double undefined = NAN;

// ---------------------------------------------------------------------------------------------------------
// One variable

// With m_k = mean of (x - mean)^k:  sd = sqrt(m_2)   skew = m_3 / sd^3   kurtosis = m_4 / sd^4 - 3, the
// excess over a normal distribution's. All of the population: nothing is corrected for the size of the
// sample.
struct Moments {
    double mean = undefined, sd = undefined, skew = undefined, kurtosis = undefined;
};
template <class T> Moments moments(const T* x, size_t n) {
    if (n == 0) return {};
    Moments m;
    double sum = 0, m2 = 0, m3 = 0, m4 = 0;
    for (size_t i = 0; i < n; i++) sum += x[i];
    m.mean = sum / n;
    for (size_t i = 0; i < n; i++) {
        const double d = x[i] - m.mean, dd = d * d;
        m2 += dd;
        m3 += dd * d;
        m4 += dd * dd;
    }
    m2 /= n;
    m3 /= n;
    m4 /= n;
    m.sd = std::sqrt(m2);
    if (!(m2 > 0)) return m;
    m.skew = m3 / (m2 * m.sd);
    m.kurtosis = m4 / (m2 * m2) - 3;
    return m;
}

template <class T> double mean_of(const std::vector<T>& x) { return moments(x.data(), x.size()).mean; }

// Phi: the share of a standard normal distribution below z.
inline double normal_cdf(double z) { return 0.5 * std::erfc(-z * 0.70710678118654752440); }

// The Kolmogorov-Smirnov distance of a sample from N(mean, sd): the largest difference, over all x, between
// the share of the sample up to x and Phi((x - mean) / sd). From a sample in rising order.
template <class T> double distance_from_normal(const T* sorted, size_t n, double mean, double sd) {
    if (n == 0 || !(sd > 0)) return undefined;
    double distance = 0;
    for (size_t i = 0; i < n; i++) {
        const double share = normal_cdf((sorted[i] - mean) / sd);
        distance = std::max({distance, (i + 1.0) / n - share, share - double(i) / n});
    }
    return distance;
}

// The value below which a share p of the sample lies, linear between its points (Hyndman and Fan's type 7).
// From a sample in rising order; p in [0, 1].
template <class T> double quantile(const std::vector<T>& sorted, double p) {
    if (sorted.empty()) return undefined;
    const double place = p * (sorted.size() - 1);
    const size_t i = std::min(size_t(place), sorted.size() - 1), next = std::min(i + 1, sorted.size() - 1);
    return sorted[i] + (place - i) * (double(sorted[next]) - sorted[i]);
}

// counts[i]: the values in [edges[i], edges[i+1]); the last bin takes its upper edge, too. What lies outside
// is not counted.
struct Histogram {
    std::vector<double> edges; // rising
    std::vector<size_t> counts;

    explicit Histogram(std::vector<double> edges)
        : edges(std::move(edges)), counts(this->edges.size() < 2 ? 0 : this->edges.size() - 1) {}
    void add(double x, size_t times = 1) {
        if (counts.empty() || !(x >= edges.front() && x <= edges.back())) return;
        const size_t above = std::upper_bound(edges.begin(), edges.end(), x) - edges.begin();
        counts[std::min(above, counts.size()) - 1] += times;
    }
};

// At most `most` bins of one whole width for the whole numbers from low to high.
inline std::vector<double> whole_edges(size_t low, size_t high, size_t most) {
    const size_t width = (high - low) / most + 1;
    std::vector<double> edges;
    for (size_t edge = low / width * width; edge <= high; edge += width) edges.push_back(double(edge));
    edges.push_back(edges.back() + width);
    return edges;
}

// ---------------------------------------------------------------------------------------------------------
// Two variables

// What the correlation of pairs (x, y) is computed from; sums of parts add up to the sum of the whole. The
// values should not be far from zero compared with their spread: subtract a constant first if they are.
struct PairSums {
    double n = 0, x = 0, y = 0, xx = 0, xy = 0, yy = 0;

    void add(double a, double b) { add({1, a, b, a * a, a * b, b * b}, 1); }
    void add(const PairSums& s, double times) {
        n += times * s.n;
        x += times * s.x;
        y += times * s.y;
        xx += times * s.xx;
        xy += times * s.xy;
        yy += times * s.yy;
    }
    // Pearson's r = cov(x,y) / (sd(x) sd(y)); undefined when x or y is constant.
    double pearson() const {
        const double vx = xx - x * x / n, vy = yy - y * y / n;
        if (!(n > 1 && vx > 1e-12 * xx && vy > 1e-12 * yy)) return undefined;
        return std::clamp((xy - x * y / n) / std::sqrt(vx * vy), -1.0, 1.0);
    }
};

template <class X, class Y> double pearson(const X* x, const Y* y, size_t n) {
    const double mean_x = moments(x, n).mean, mean_y = moments(y, n).mean;
    PairSums sums;
    for (size_t i = 0; i < n; i++) sums.add(x[i] - mean_x, y[i] - mean_y);
    return sums.pearson();
}

// The place of every value among the others, from 0; equal values share the mean of their places.
template <class T> std::vector<double> ranks(const T* x, size_t n) {
    std::vector<size_t> order(n);
    std::iota(order.begin(), order.end(), size_t(0));
    std::sort(order.begin(), order.end(),
              [&](size_t a, size_t b) { return x[a] != x[b] ? x[a] < x[b] : a < b; });
    std::vector<double> rank(n);
    for (size_t i = 0, end; i < n; i = end) {
        for (end = i + 1; end < n && x[order[end]] == x[order[i]];) end++;
        for (size_t k = i; k < end; k++) rank[order[k]] = (i + end - 1) / 2.0;
    }
    return rank;
}

// Spearman's rank correlation: Pearson's of the ranks.
template <class X, class Y> double spearman(const X* x, const Y* y, size_t n) {
    const std::vector<double> a = ranks(x, n), b = ranks(y, n);
    return pearson(a.data(), b.data(), n);
}

// ---------------------------------------------------------------------------------------------------------
// How sure

struct Interval {
    double low = undefined, high = undefined;
};
constexpr size_t bootstrap_resamples = 1000;

// Statistics of groups (games, rows) drawn with replacement, as many as there are, 1000 times; none of fewer
// than two groups. statistic(times): of a resample that holds group i times[i] times; any type. The draws
// depend on seed and number of groups alone: what is asked in separate calls can be put together by resample.
// block (groups): groups that are drawn together, as one; none: each by itself.
template <class Statistic>
auto resample(size_t groups, uint64_t seed, Statistic statistic, const std::vector<uint32_t>& block = {}) {
    using Result = decltype(statistic(std::vector<uint32_t>()));
    const size_t blocks = block.empty() ? groups : block.back() + 1;
    std::vector<Result> results(blocks > 1 ? bootstrap_resamples : 0);
    parallel_ranges(results.size(), 1, [&](size_t begin, size_t end) {
        std::vector<uint32_t> drawn(blocks), times(groups);
        for (size_t r = begin; r < end; r++) {
            Random random{seed, random_stream("bootstrap") + r};
            std::fill(drawn.begin(), drawn.end(), 0);
            for (size_t i = 0; i < blocks; i++) drawn[random.below(blocks)]++;
            for (size_t i = 0; i < groups; i++) times[i] = drawn[block.empty() ? i : block[i]];
            results[r] = statistic(times);
        }
    });
    return results;
}

// Where the middle 95% of them lie. Undefined results are left out.
inline Interval interval_of(std::vector<double> results) {
    results.erase(std::remove_if(results.begin(), results.end(), [](double x) { return std::isnan(x); }),
                  results.end());
    std::sort(results.begin(), results.end());
    return {quantile(results, 0.025), quantile(results, 0.975)};
}

// The 95% interval of a statistic by the percentile bootstrap.
template <class Statistic> Interval bootstrap(size_t groups, uint64_t seed, Statistic statistic,
                                              const std::vector<uint32_t>& block = {}) {
    return interval_of(resample(groups, seed, statistic, block));
}

// A number and its 95% interval over groups.
struct Estimate {
    double value = undefined;
    Interval interval;
};

// The mean of values (n), of which value i belongs to group[i]; the groups follow each other. Undefined
// values are left out.
template <class T>
Estimate mean_by_group(const std::vector<T>& values, const std::vector<uint32_t>& group, uint64_t seed) {
    std::vector<double> sums, counts;
    double sum = 0, count = 0;
    for (size_t i = 0; i < values.size(); i++) {
        if (i == 0 || group[i] != group[i - 1]) {
            sums.push_back(0);
            counts.push_back(0);
        }
        if (std::isnan(double(values[i]))) continue;
        sums.back() += values[i];
        counts.back()++;
        sum += values[i];
        count++;
    }
    return {count > 0 ? sum / count : undefined,
            bootstrap(sums.size(), seed, [&](const std::vector<uint32_t>& times) {
                double s = 0, n = 0;
                for (size_t i = 0; i < sums.size(); i++) {
                    s += times[i] * sums[i];
                    n += times[i] * counts[i];
                }
                return n > 0 ? s / n : undefined;
            })};
}

// Pearson's correlation of x and y (n,E), whose rows i belong to group[i] as above.
inline Estimate pearson_by_group(const std::vector<double>& x, const std::vector<double>& y, size_t E,
                                 const std::vector<uint32_t>& group, uint64_t seed) {
    const double mean_x = mean_of(x), mean_y = mean_of(y);
    std::vector<PairSums> sums;
    PairSums all;
    for (size_t i = 0; i < x.size(); i++) {
        if (i == 0 || group[i / E] != group[(i - 1) / E]) sums.emplace_back();
        sums.back().add(x[i] - mean_x, y[i] - mean_y);
        all.add(x[i] - mean_x, y[i] - mean_y);
    }
    return {all.pearson(), bootstrap(sums.size(), seed, [&](const std::vector<uint32_t>& times) {
                PairSums drawn;
                for (size_t i = 0; i < sums.size(); i++) drawn.add(sums[i], times[i]);
                return drawn.pearson();
            })};
}
