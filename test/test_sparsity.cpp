// sparsity and router: the statistics against known values and slow versions, the rows and their groups, and
// both measurements on small models against counting that goes token by token and expert by expert in double.
#include "../dev/interp/router.h"
#include "../dev/interp/units_cpu.h"
#include "check.h"
#include <filesystem>

static std::string folder; // a temporary folder for the files of this test

static void write_all(const std::string& path, const std::string& text) {
    AtomicFile file(path);
    file.write(text.data(), text.size());
    file.commit();
}
static std::string read_all(const std::string& path) {
    const MappedFile file(path);
    return std::string((const char*)file.data, file.size);
}

// body() with its standard output in a file.
template <class Body> std::string printed(Body body) {
    const std::string path = folder + "/printed";
    fflush(nullptr);
    const int saved = dup(1), file = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
    dup2(file, 1);
    try {
        body();
    } catch (...) {
        fflush(nullptr), dup2(saved, 1), close(saved), close(file);
        throw;
    }
    fflush(nullptr), dup2(saved, 1), close(saved), close(file);
    return read_all(path);
}

static double uniform(size_t i, uint64_t stream = 0) { return random_uniform(7, stream, i); }
static double normal(size_t i, uint64_t stream = 0) { return random_normal(7, stream, i); }

// ---------------------------------------------------------------------------------------------------------
// Statistics

// r from the mean product of differences over all pairs: no means are taken.
static double slow_pearson(const std::vector<double>& x, const std::vector<double>& y) {
    double xy = 0, xx = 0, yy = 0;
    for (size_t i = 0; i < x.size(); i++)
        for (size_t j = 0; j < i; j++) {
            const double dx = x[i] - x[j], dy = y[i] - y[j];
            xy += dx * dy, xx += dx * dx, yy += dy * dy;
        }
    return xx > 0 && yy > 0 ? xy / std::sqrt(xx * yy) : undefined;
}
static std::vector<double> slow_ranks(const std::vector<double>& x) {
    std::vector<double> rank(x.size());
    for (size_t i = 0; i < x.size(); i++)
        for (size_t j = 0; j < x.size(); j++) rank[i] += x[j] < x[i] ? 1 : x[j] == x[i] && j != i ? 0.5 : 0;
    return rank;
}

static void test_moments() {
    const double flat[] = {1, 2, 3, 4, 5}, skewed[] = {0, 0, 0, 4}, constant[] = {3, 3, 3};
    Moments m = moments(flat, 5);
    check_near(m.mean, 3, 1e-15), check_near(m.sd, std::sqrt(2), 1e-15);
    check_near(m.skew, 0, 1e-15), check_near(m.kurtosis, -1.3, 1e-14);
    m = moments(skewed, 4);
    check_near(m.mean, 1, 1e-15), check_near(m.sd, std::sqrt(3), 1e-15);
    check_near(m.skew, 2 / std::sqrt(3), 1e-14), check_near(m.kurtosis, 21 / 9.0 - 3, 1e-14);
    m = moments(constant, 3);
    check(m.mean == 3 && m.sd == 0 && std::isnan(m.skew) && std::isnan(m.kurtosis));
    check(std::isnan(moments(flat, 0).mean));
    const float one = 2;
    check(moments(&one, 1).mean == 2 && moments(&one, 1).sd == 0);
    check(mean_of(std::vector<uint32_t>{1, 2, 6}) == 3);
}

static void test_normal() {
    check_near(normal_cdf(0), 0.5, 1e-15);
    check_near(normal_cdf(1), 0.84134474606854293, 1e-15);
    check_near(normal_cdf(-1.96), 0.024997895148220435, 1e-15);
    check_near(normal_cdf(-8) / 6.2209605742717841e-16, 1, 1e-12);
    const double origin[] = {0}, pair[] = {-1, 1};
    check_near(distance_from_normal(origin, 1, 0, 1), 0.5, 1e-15);
    check_near(distance_from_normal(pair, 2, 0, 1), 0.34134474606854293, 1e-15);
    check_near(distance_from_normal(origin, 1, 5, 2), normal_cdf(2.5), 1e-15);
    check(std::isnan(distance_from_normal(origin, 1, 0, 0)) &&
          std::isnan(distance_from_normal(origin, 0, 0, 1)));

    // The largest difference, sought on both sides of every point.
    std::vector<float> x(101);
    for (size_t i = 0; i < x.size(); i++) x[i] = float(std::pow(uniform(i), 2) * 3 - 0.5);
    std::sort(x.begin(), x.end());
    double slow = 0;
    for (const float at : x)
        for (const double beside : {std::nextafter(double(at), -9.0), double(at)}) {
            const double share =
                double(std::count_if(x.begin(), x.end(), [&](float v) { return v <= beside; }));
            slow = std::max(slow, std::fabs(share / x.size() - normal_cdf((beside - 0.4) / 0.7)));
        }
    check_near(distance_from_normal(x.data(), x.size(), 0.4, 0.7), slow, 1e-9);
}

static void test_quantiles_and_histograms() {
    const std::vector<double> x = {1, 2, 3, 4};
    check_near(quantile(x, 0), 1, 0), check_near(quantile(x, 1), 4, 0),
        check_near(quantile(x, 0.5), 2.5, 1e-15);
    check_near(quantile(x, 0.25), 1.75, 1e-15),
        check_near(quantile(std::vector<uint32_t>{5, 3000}, 0.1), 304.5, 1e-9);
    check(quantile(std::vector<double>{7}, 0.9) == 7 && std::isnan(quantile(std::vector<double>{}, 0.5)));

    Histogram h({0, 1, 2, 4});
    for (const double v : {0.0, 0.5, 1.0, 1.9, 2.0, 3.0, 4.0, -0.1, 4.1, undefined}) h.add(v);
    h.add(0.1, 5);
    check(h.counts == std::vector<size_t>({7, 2, 3}), "%zu %zu %zu", h.counts[0], h.counts[1], h.counts[2]);
    Histogram none({});
    none.add(1);
    check(none.counts.empty());

    check(whole_edges(3, 6, 40) == std::vector<double>({3, 4, 5, 6, 7}));
    check(whole_edges(5, 5, 40) == std::vector<double>({5, 6}));
    for (const size_t high : {39, 40, 41, 80, 1000, 4096}) {
        const std::vector<double> edges = whole_edges(0, high, 40);
        check(edges.size() <= 42 && edges.back() > high && edges.front() == 0, "to %zu: %zu edges", high,
              edges.size());
        check(edges[1] == std::floor(edges[1]) && edges[2] - edges[1] == edges[1]);
    }
    check(whole_edges(100, 119, 10).front() == 100 && whole_edges(101, 119, 10).front() <= 101);
}

static void test_correlations() {
    const double a[] = {1, 2, 3, 4}, b[] = {2, 1, 4, 3}, same[] = {0.1, 0.1, 0.1, 0.1};
    check_near(pearson(a, b, 4), 0.6, 1e-15), check_near(pearson(a, a, 4), 1, 1e-15);
    check(std::isnan(pearson(a, same, 4)) && std::isnan(pearson(same, a, 4)) && std::isnan(pearson(a, b, 1)));
    const double far[] = {1e6 + 1, 1e6 + 2, 1e6 + 3, 1e6 + 4};
    check_near(pearson(far, b, 4), 0.6, 1e-9);
    const double p[] = {1, 2, 3, 4, 5}, q[] = {5, 6, 7, 8, 7}; // the example of SciPy's documentation
    check_near(spearman(p, q, 5), 0.82078268166812329, 1e-14);
    check(ranks(q, 5) == std::vector<double>({0, 1, 2.5, 4, 2.5}));
    check(ranks(same, 4) == std::vector<double>({1.5, 1.5, 1.5, 1.5}) && std::isnan(spearman(same, p, 4)));

    for (size_t trial = 0; trial < 20; trial++) {
        std::vector<double> x(30), y(30);
        for (size_t i = 0; i < 30; i++) {
            x[i] = std::floor(6 * uniform(i, trial)); // ties
            y[i] = normal(i, trial) + 0.5 * x[i] - 100;
        }
        check_near(pearson(x.data(), y.data(), 30), slow_pearson(x, y), 1e-11);
        check(ranks(x.data(), 30) == slow_ranks(x));
        check_near(spearman(x.data(), y.data(), 30), slow_pearson(slow_ranks(x), slow_ranks(y)), 1e-12);
        PairSums whole, first, second, sum; // parts add up, a part taken twice counts twice
        for (size_t i = 0; i < 30; i++) {
            (i < 11 ? first : second).add(x[i], y[i] + 100);
            whole.add(x[i], y[i] + 100);
            if (i >= 11) whole.add(x[i], y[i] + 100);
        }
        sum.add(first, 1), sum.add(second, 2);
        check_near(sum.pearson(), whole.pearson(), 1e-12);
    }
}

static void test_bootstrap() {
    // The interval of a mean of n normal numbers is about 1.96 / sqrt(n) to either side, and holds the truth
    // in about 95 of 100 samples.
    const size_t n = 50, trials = 200;
    size_t covered = 0;
    double width = 0;
    std::vector<uint32_t> alone(n); // every number a group of its own
    std::iota(alone.begin(), alone.end(), 0u);
    for (size_t trial = 0; trial < trials; trial++) {
        std::vector<double> x(n);
        for (size_t i = 0; i < n; i++) x[i] = normal(i, 100 + trial);
        const Interval interval = mean_by_group(x, alone, trial).interval;
        covered += interval.low <= 0 && 0 <= interval.high;
        width += (interval.high - interval.low) / trials;
    }
    check(covered >= 180 && covered <= 198, "%zu of %zu", covered, trials);
    check_near(width, 2 * 1.96 / std::sqrt(n), 0.03);

    // Groups of 1, 2, 4 and 2 values with the sums 1, 5, 2 and 8; an undefined one counts for nothing.
    const std::vector<double> values = {1, 2, 3, 0, 1, 0, 1, undefined, 4, 4};
    const std::vector<uint32_t> group = {3, 5, 5, 6, 6, 6, 6, 6, 7, 7};
    const Estimate a = mean_by_group(values, group, 1), b = mean_by_group(values, group, 1),
                   c = mean_by_group(values, group, 2);
    check_near(a.value, 16 / 9.0, 1e-15), check(c.value == a.value);
    check(a.interval.low == b.interval.low && a.interval.high == b.interval.high);
    check(c.interval.low != a.interval.low || c.interval.high != a.interval.high);
    // The same from all of the 4^4 equally likely draws.
    const double sums[] = {1, 5, 2, 8}, counts[] = {1, 2, 4, 2};
    std::vector<double> all;
    for (size_t draw = 0; draw < 256; draw++) {
        double sum = 0, count = 0;
        for (size_t i = 0; i < 4; i++) sum += sums[draw >> 2 * i & 3], count += counts[draw >> 2 * i & 3];
        all.push_back(sum / count);
    }
    std::sort(all.begin(), all.end());
    check_near(a.interval.low, quantile(all, 0.025), 0.12),
        check_near(a.interval.high, quantile(all, 0.975), 0.12);
    check(std::isnan(mean_by_group(values, std::vector<uint32_t>(10), 1).interval.low));
    check(std::isnan(mean_by_group(std::vector<double>(), {}, 1).value));
    check(std::isnan(mean_by_group(std::vector<double>(3, undefined), {1, 2, 3}, 1).value));
    set_thread_count(3);
    const Estimate three = mean_by_group(values, group, 1);
    set_thread_count(1);
    check(three.interval.low == a.interval.low && three.interval.high == a.interval.high);

    // Groups of a block are drawn together, as many blocks as there are.
    const std::vector<uint32_t> block = {0, 0, 1, 2, 2, 2};
    for (const std::vector<uint32_t>& times : resample(
             6, 3, [](const std::vector<uint32_t>& t) { return t; }, block))
        check(times[0] == times[1] && times[3] == times[4] && times[4] == times[5] &&
              times[0] + times[2] + times[3] == 3);

    // Pairs that lie on a line in every group: whatever is drawn, r = 1. Groups of opposite signs: all of it.
    std::vector<double> x, same, opposite;
    std::vector<uint32_t> rows;
    for (size_t row = 0; row < 12; row++) {
        rows.push_back(uint32_t(row / 6));
        for (size_t e = 0; e < 2; e++) {
            x.push_back(normal(2 * row + e)), same.push_back(2 * x.back() + 7);
            opposite.push_back(row < 6 ? x.back() : -x.back());
        }
    }
    const Estimate line = pearson_by_group(x, same, 2, rows, 1),
                   cross = pearson_by_group(x, opposite, 2, rows, 1);
    check_near(line.value, 1, 1e-12), check_near(line.interval.low, 1, 1e-12),
        check_near(line.interval.high, 1, 1e-12);
    check_near(cross.value, slow_pearson(x, opposite), 1e-12);
    check(cross.interval.low < -0.9 && cross.interval.high > 0.9);
    check(std::isnan(pearson_by_group(x, same, 24, {1}, 1).interval.low));
}

// A v = lambda v for every eigenvector of a small symmetric matrix; the projection against all of them.
static void test_principal_components() {
    const size_t C = 12, n = 400;
    std::vector<float> x(n * C);
    std::vector<double> a(C), b(C); // two orthogonal directions
    for (size_t c = 0; c < C; c++) a[c] = c % 2 ? 1 : -1, b[c] = c < C / 2 ? 1 : -1;
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < C; c++)
            x[i * C + c] =
                float(5 + 3 * normal(i, 1) * a[c] + normal(i, 2) * b[c] + 0.1 * normal(i * C + c, 3));
    const Projection p = principal_components(x.data(), n, C);

    std::vector<double> mean(C), covariance(C * C), vectors;
    for (size_t i = 0; i < n * C; i++) mean[i % C] += x[i] / double(n);
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < C * C; c++)
            covariance[c] += (x[i * C + c / C] - mean[c / C]) * (x[i * C + c % C] - mean[c % C]) / n;
    std::vector<double> values = covariance;
    jacobi(values, vectors, C);
    double trace = 0, largest = 0;
    std::vector<double> eigenvalues;
    for (size_t i = 0; i < C; i++) {
        for (size_t r = 0; r < C; r++) {
            double image = 0;
            for (size_t c = 0; c < C; c++) image += covariance[r * C + c] * vectors[i * C + c];
            largest = std::max(largest, std::fabs(image - values[i * C + i] * vectors[i * C + r]));
        }
        eigenvalues.push_back(values[i * C + i]);
        trace += covariance[i * C + i];
    }
    check(largest < 1e-10, "%g", largest);
    std::sort(eigenvalues.rbegin(), eigenvalues.rend());
    check_near(p.explained[0], eigenvalues[0] / trace, 1e-6);
    check_near(p.explained[1], eigenvalues[1] / trace, 1e-6);
    check(p.explained[0] > 0.8 && p.explained[1] > 0.05);
    double along_a = 0, along_b = 0, length = 0, cross = 0;
    for (size_t c = 0; c < C; c++) {
        along_a += p.axes[c] * a[c] / std::sqrt(C), along_b += p.axes[C + c] * b[c] / std::sqrt(C);
        length += p.axes[c] * p.axes[c], cross += p.axes[c] * p.axes[C + c];
    }
    check(std::fabs(along_a) > 0.99 && std::fabs(along_b) > 0.98, "%g %g", along_a, along_b);
    check_near(length, 1, 1e-12), check_near(cross, 0, 1e-10);
    for (size_t axis = 0; axis < 2; axis++) { // the points are centred, and vary as much as is said
        double sum = 0, squares = 0;
        for (size_t i = 0; i < n; i++) {
            double at = 0;
            for (size_t c = 0; c < C; c++) at += (x[i * C + c] - mean[c]) * p.axes[axis * C + c];
            check_near(p.points[i * 2 + axis], at, 1e-4);
            sum += p.points[i * 2 + axis], squares += std::pow(p.points[i * 2 + axis], 2);
        }
        check_near(sum / n, 0, 1e-5), check_near(squares / n / trace, p.explained[axis], 1e-5);
        const double* v = &p.axes[axis * C];
        const double high = *std::max_element(v, v + C), low = *std::min_element(v, v + C);
        check(high >= -low * (1 - 1e-6), "sign of axis %zu", axis);
    }

    // Noise, whose largest eigenvalues are close to each other: still the first two of all, each an
    // eigenvector.
    for (uint64_t seed = 20; seed < 28; seed++) {
        const size_t many = 40, few = 90;
        std::vector<float> noise(few * many);
        for (size_t i = 0; i < few * many; i++) noise[i] = float(normal(i, seed));
        const Projection q = principal_components(noise.data(), few, many);
        std::vector<double> centre(many), cov(many * many), turned;
        for (size_t i = 0; i < few * many; i++) centre[i % many] += noise[i] / double(few);
        for (size_t i = 0; i < few; i++)
            for (size_t c = 0; c < many * many; c++)
                cov[c] += (noise[i * many + c / many] - centre[c / many]) *
                          (noise[i * many + c % many] - centre[c % many]) / few;
        std::vector<double> diagonal = cov, best;
        jacobi(diagonal, turned, many);
        for (size_t i = 0; i < many; i++) best.push_back(diagonal[i * many + i]);
        const double sum = std::accumulate(best.begin(), best.end(), 0.0);
        std::sort(best.rbegin(), best.rend());
        for (size_t axis = 0; axis < 2; axis++) {
            const double* v = &q.axes[axis * many];
            check_near(q.explained[axis], best[axis] / sum, 1e-6);
            double residual = 0;
            for (size_t r = 0; r < many; r++) {
                double image = 0;
                for (size_t c = 0; c < many; c++) image += cov[r * many + c] * v[c];
                residual = std::max(residual, std::fabs(image - best[axis] * v[r]));
            }
            check(residual < 1e-4, "seed %zu axis %zu: %g", size_t(seed), axis, residual);
            check(*std::max_element(v, v + many) >= -*std::min_element(v, v + many) * (1 - 1e-6));
        }
    }

    // A line, one row, one channel, nothing at all.
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < C; c++) x[i * C + c] = float(i * (c + 1.0));
    const Projection line = principal_components(x.data(), n, C);
    check_near(line.explained[0], 1, 1e-6), check_near(line.explained[1], 0, 1e-5);
    check(std::isnan(principal_components(x.data(), 1, C).explained[0]));
    check(principal_components(x.data(), 1, C).points == std::vector<float>({0, 0}));
    const float column[] = {1, 2, 4};
    const Projection one = principal_components(column, 3, 1);
    check_near(one.explained[0], 1, 1e-6);
    check_near(one.points[0], 1 - 7 / 3.0, 1e-6), check(one.points[1] == 0);
    const std::vector<float> zero(n * C);
    check(principal_components(zero.data(), n, C).points == std::vector<float>(2 * n));
}

// ---------------------------------------------------------------------------------------------------------
// Rows

static std::vector<int32_t> chess_tokens(const std::string& text) {
    std::vector<int32_t> tokens;
    for (const char c : text) tokens.push_back(chess_id(c));
    return tokens;
}
static std::string phases(const std::string& text) {
    std::vector<uint8_t> group(text.size());
    phases_of(chess_tokens(text).data(), text.size(), group.data());
    std::string out;
    for (const uint8_t g : group) out += g == no_group ? '-' : char('0' + g);
    return out;
}

static void test_groups() {
    std::string text = ";", expected = "0";
    for (int move = 1; move <= 30; move++) {
        const std::string number = std::to_string(move), written = number + ".Nf3 Nc6";
        if (move > 1)
            text += ' ', expected += move <= 10 ? '0' : move <= 25 ? '1' : '2'; // with the space before
        text += written, expected += std::string(written.size(), move <= 10 ? '0' : move <= 25 ? '1' : '2');
    }
    check(phases(text) == expected);
    check(phases(" 40.Kd2 Kd7 ;1.e4 e5") == std::string(12, '-') + std::string(8, '0'));
    check(phases(text + text) == expected + expected);

    const std::pair<const char*, int> classes[] = {
        {"a", 0},    {"z", 0},    {"A", 1},  {"Z", 1},   {"0", 2},  {"9", 2},  {" ", 3}, {"\t", 3},
        {"\n", 4},   {"\r", 4},   {".", 5},  {"~", 5},   {"`", 5},  {"@", 5},  {"", 6},  {"\x7f", 6},
        {"\x80", 6}, {"\x01", 6}, {" a", 0}, {" 7x", 2}, {"  ", 3}, {" (", 5}, {"Ab", 1}};
    for (const auto& [bytes, wanted] : classes)
        check(byte_class(bytes) == wanted, "%s: %d", quoted(bytes).c_str(), byte_class(bytes));
    check(byte_class(std::string(1, '\0')) == 6);

    TokenRows rows;
    rows.rows = 2, rows.T = 3, rows.tokens = {'a', 'B', '7', ' ', '\n', 256};
    group_tokens(rows, TOKENIZER_BYTES, "");
    check(rows.group == std::vector<uint8_t>({0, 1, 2, 3, 4, 6}) && rows.groups.size() == 7);
    group_tokens(rows, TOKENIZER_GPT2, "");
    check(rows.group == std::vector<uint8_t>(6, 0) &&
          rows.groups == std::vector<std::string>({"all tokens"}));

    // GPT-2 by a tokenizer file: the bytes, two words, end of text.
    std::string file(1024, '\0');
    const int32_t header[] = {20250307, 1, 259, 258, 0, 0, 0};
    memcpy(file.data(), header, sizeof header);
    for (int id = 0; id < 259; id++) {
        const std::string token = id < 256    ? std::string(1, char(id))
                                  : id == 256 ? " The"
                                  : id == 257 ? " 42"
                                              : "";
        file += {char(token.size()), '\0'};
        file += token;
    }
    write_all(folder + "/gpt2.bin", file);
    rows.tokens = {'a', 256, 257, 258, 50000, '\n'};
    group_tokens(rows, TOKENIZER_GPT2, folder + "/gpt2.bin");
    check(rows.group == std::vector<uint8_t>({0, 1, 2, 6, no_group, 4}));
}

// ---------------------------------------------------------------------------------------------------------
// Models and data to measure

struct Variant {
    const char *name, *ffn, *act, *router;
};
static const Variant variants[] = {{"MoE-X", "moe", "relu", "sparsity"},
                                   {"Switch", "moe", "gelu", "topk"},
                                   {"dense relu", "dense", "relu", "sparsity"},
                                   {"dense gelu", "dense", "gelu", "sparsity"}};

// L 2, NH 2, C 16, T 24, E 5, K 2, D 12
static Config small_config(const Variant& v, const char* tokenizer = "bytes") {
    Config c;
    c.n_layer = 2, c.n_head = 2, c.n_embd = 16, c.block_size = 24, c.d_expert = 12, c.n_expert = 5;
    c.tokenizer = tokenizer, c.vocab_size = tokenizer_vocab(tokenizer_from_name(tokenizer));
    c.ffn = v.ffn, c.act = v.act, c.router = v.router;
    return c;
}

// Every weight and bias random and of a size that makes experts differ.
static void random_weights(Reader& reader, uint64_t seed) {
    for (const Tensor& t : reader.table)
        for (size_t i = 0; i < t.count; i++)
            reader.weights()[t.offset + i] =
                float(0.3 * random_normal(seed, random_stream(t.name.c_str()), i) + (t.init == Init::ones));
    reader.changed();
}

static TokenRows random_rows(size_t rows, size_t T) {
    TokenRows r;
    r.source = "random bytes", r.rows = rows, r.T = T;
    for (size_t i = 0; i < rows * T; i++) r.tokens.push_back(int32_t(40 + 80 * uniform(i, 5)));
    group_tokens(r, TOKENIZER_BYTES, "");
    return r;
}

static void save(const Reader& reader, const std::string& path, int64_t step) {
    save_model(path, reader.config, reader.table, reader.weights(), step);
}

// ---------------------------------------------------------------------------------------------------------
// Sparsity

// The numbers of every group, counted token by token.
static void check_groups(const LayerSparsity& s, Reader& reader, const TokenRows& rows, size_t layer) {
    for (size_t g = 0; g < s.groups.size(); g++) {
        const LayerSparsity& group = s.groups[g];
        if (!group.tokens) {
            check(std::isnan(group.l0.value) && group.dead == group.units && group.load.empty());
            continue;
        }
        std::vector<double> l0;
        double participation = 0;
        std::vector<size_t> fired(s.units), chosen(group.load.size()), together(group.together.size());
        for (size_t r = 0; r < rows.rows; r++) {
            reader.read(&rows.tokens[r * rows.T], 1, rows.T);
            const LayerUnits u = reader.layer(layer);
            for (size_t t = 0; t < rows.T; t++) {
                if (rows.group[r * rows.T + t] != g) continue;
                size_t active = 0;
                double sizes = 0, squares = 0;
                u.each(t, true, [&](size_t unit, float value) {
                    active += value > 0, fired[unit] += value > 0;
                    sizes += std::fabs(double(value)), squares += double(value) * value;
                });
                l0.push_back(double(active));
                participation += squares > 0 ? sizes * sizes / squares : 0;
                for (size_t k = 0; k < u.K && u.choice; k++)
                    for (size_t i = 0; i < u.K; i++) {
                        chosen[size_t(u.choice[t * u.K + k])] += i == 0;
                        together[size_t(u.choice[t * u.K + k]) * u.E + size_t(u.choice[t * u.K + i])]++;
                    }
            }
        }
        const Moments m = moments(l0.data(), l0.size());
        const size_t dead = size_t(std::count(fired.begin(), fired.end(), size_t(0)));
        check_near(group.l0.value, m.mean, 1e-12), check_near(group.sd, m.sd, 1e-9);
        check_near(group.participation, participation / double(l0.size()), 1e-5);
        check(group.dead == dead && group.tokens == l0.size() && group.units == s.units);
        const bool gelu = reader.config.act == "gelu"; // hardly any of whose units comes out zero
        check_near(group.zero_work, gelu ? 0 : 1 - m.mean / double(s.work), gelu ? 0.05 : 1e-12);
        size_t in_histogram = 0, in_rates = 0;
        for (const size_t n : group.histogram.counts) in_histogram += n;
        for (const size_t n : group.rates.counts) in_rates += n;
        check(in_histogram == l0.size() && in_rates == s.units - dead);
        double entropy = 0;
        for (size_t j = 0; j < chosen.size(); j++) {
            const double share = double(chosen[j]) / double(chosen.size() ? 2 * l0.size() : 1);
            check_near(group.load[j], share, 1e-12);
            if (share > 0) entropy -= share * std::log2(share);
        }
        for (size_t i = 0; i < together.size(); i++)
            check_near(group.together[i], double(together[i]) / double(l0.size()), 1e-12);
        if (!chosen.empty()) {
            check_near(group.entropy, entropy, 1e-12);
            check(group.largest() == *std::max_element(group.load.begin(), group.load.end()));
            check(group.smallest() <= group.largest());
        }
    }
}

static void test_sparsity_against_slow() {
    for (const Variant& v : variants) {
        const Config c = small_config(v);
        const size_t E = c.moe() ? c.n_expert : 0, K = c.moe() ? 2 : 1;
        Reader reader = cpu_reader(c, 3, 24);
        random_weights(reader, 1);
        const TokenRows rows = random_rows(7, 20);
        const size_t N = rows.size();
        const std::vector<LayerSparsity> fast = measure_layers_sparsity(reader, rows);
        for (size_t l = 0; l < c.n_layer; l++) {
            const LayerSparsity& s = fast[l];
            std::vector<double> l0(N), fired(reader.units()), load(E), units(E), together(E * E);
            std::vector<double> group_tokens(7), group_l0(7), group_load(7 * E);
            double bits = 0;
            for (size_t r = 0; r < rows.rows; r++) { // one row at a time
                reader.read(&rows.tokens[r * rows.T], 1, rows.T);
                const LayerUnits u = reader.layer(l);
                for (size_t t = 0; t < rows.T; t++) {
                    const size_t n = r * rows.T + t, g = rows.group[n];
                    u.each(t, true, [&](size_t unit, float value) {
                        if (!(value > 0)) return;
                        l0[n]++, fired[unit]++, group_l0[g]++;
                        if (E) units[unit / c.d_expert]++;
                    });
                    group_tokens[g]++;
                    for (size_t k = 0; k < K && E; k++) {
                        const size_t j = u.choice[t * K + k];
                        load[j]++, group_load[g * E + j]++;
                        bits -= u.weight[t * K + k] * std::log(double(u.weight[t * K + k])) / std::log(2.0);
                        for (size_t other = 0; other < K; other++)
                            together[j * E + u.choice[t * K + other]]++;
                    }
                }
            }
            const Moments m = moments(l0.data(), N);
            check_near(s.l0.value, m.mean, 1e-9), check_near(s.sd, m.sd, 1e-9);
            check(s.l0.interval.low < s.l0.value && s.l0.value < s.l0.interval.high &&
                  s.l0.interval.high - s.l0.interval.low < 4 * s.sd);
            check(s.units == (E ? 60 : 24) && s.work == 24);
            // What does not fire is zero for relu; gelu takes it to something small.
            check_near(s.zero_work, c.act == "gelu" ? 0 : 1 - m.mean / 24, c.act == "gelu" ? 0.05 : 1e-12);
            size_t in_bins = 0, dead = 0, above = 0;
            for (size_t b = 0; b < s.histogram.counts.size(); b++) {
                const auto in = [&](double x) {
                    return x >= s.histogram.edges[b] && x < s.histogram.edges[b + 1];
                };
                check(s.histogram.counts[b] == size_t(std::count_if(l0.begin(), l0.end(), in)));
                in_bins += s.histogram.counts[b];
            }
            check(in_bins == N);
            for (const double count : fired) dead += count == 0, above += count / N >= 0.1;
            check(s.dead == dead, "%s layer %zu: %zu dead, expected %zu", v.name, l, s.dead, dead);
            check(std::accumulate(s.rates.counts.begin(), s.rates.counts.end(), size_t(0)) == s.units - dead);
            check(s.rates.edges.front() <= 1.0 / N && s.rates.edges.back() == 1);
            check(std::accumulate(s.rates.counts.end() - 4, s.rates.counts.end(), size_t(0)) == above);
            double entropy = 0;
            for (size_t j = 0; j < E; j++) {
                check_near(s.load[j], load[j] / (N * K), 1e-12);
                if (load[j])
                    check_near(s.expert_units[j], units[j] / load[j], 1e-12);
                else
                    check(std::isnan(s.expert_units[j]));
                for (size_t i = 0; i < E; i++)
                    check_near(s.together[j * E + i], together[j * E + i] / N, 1e-12);
                check_near(s.together[j * E + j], s.load[j] * K, 1e-12);
                if (load[j]) entropy -= load[j] / (N * K) * std::log2(load[j] / (N * K));
            }
            if (E) check_near(s.entropy, entropy, 1e-12), check_near(s.weight_entropy, bits / N, 1e-6);
            if (!E) check(std::isnan(s.entropy) && s.load.empty() && s.together.empty());
            for (size_t g = 0; g < 7; g++) {
                check(s.groups[g].tokens == size_t(group_tokens[g]));
                if (group_tokens[g]) check_near(s.groups[g].l0.value, group_l0[g] / group_tokens[g], 1e-12);
                for (size_t j = 0; j < E && group_tokens[g]; j++)
                    check_near(s.groups[g].load[j], group_load[g * E + j] / (group_tokens[g] * K), 1e-12);
            }
            check_groups(s, reader, rows, l);
        }
    }
}

// W_enc = 0 and b_enc = +1 for a third of an expert's units, -1 for the rest: exactly these fire, and as all
// experts score alike, the first K are chosen always.
static void test_sparsity_planted() {
    const Config c = small_config(variants[0]);
    Reader reader = cpu_reader(c, 2, 24);
    random_weights(reader, 2);
    const Parameters<float> w = carve_parameters(c, reader.table, reader.weights());
    for (size_t l = 0; l < 2; l++) {
        std::fill(w.h[l].w_enc, w.h[l].w_enc + 5 * 12 * 16, 0.0f);
        for (size_t i = 0; i < 5 * 12; i++) w.h[l].b_enc[i] = i % 3 ? -1.0f : 1.0f;
    }
    reader.changed();
    const TokenRows rows = random_rows(5, 24);
    const std::vector<LayerSparsity> layers = measure_layers_sparsity(reader, rows);
    for (const LayerSparsity& s : layers) {
        check(s.l0.value == 8 && s.l0.interval.low == 8 && s.l0.interval.high == 8);
        check(s.sd == 0 && s.dead == 60 - 8);
        check_near(s.zero_work, 2.0 / 3, 1e-12);
        double participation = 0; // of 4 equal units each of two experts: 4 (w + v)^2 / (w^2 + v^2)
        for (size_t r = 0; r < rows.rows; r++) {
            reader.read(&rows.tokens[r * rows.T], 1, rows.T);
            const LayerUnits u = reader.layer(size_t(&s - layers.data()));
            for (size_t t = 0; t < rows.T; t++) {
                const double w = u.weight[2 * t], v = u.weight[2 * t + 1];
                participation += 4 * (w + v) * (w + v) / (w * w + v * v);
            }
        }
        check_near(s.participation, participation / double(rows.size()), 1e-6);
        check(s.histogram.edges == std::vector<double>({8, 9}) &&
              s.histogram.counts == std::vector<size_t>({120}));
        check(s.rates.counts.back() == 8);
        check(s.load == std::vector<double>({0.5, 0.5, 0, 0, 0}) && s.expert_units[1] == 4);
        check(s.together[0] == 1 && s.together[1] == 1 && s.together[2] == 0 && s.together[6] == 1);
        check_near(s.entropy, 1, 1e-12), check_near(s.weight_entropy, 1, 1e-6);
    }
}

// ---------------------------------------------------------------------------------------------------------
// Router

struct SlowExpert {
    double mu, sd, g, predicted, actual, skew, kurtosis, sd_ratio;
};

// One expert at one input, in double, from the definitions.
static SlowExpert slow_expert(const float* x, const float* w, const float* b, size_t D, size_t C) {
    SlowExpert e{};
    double var = 1e-12;
    for (size_t c = 0; c <= C; c++) { // the bias is a channel whose input is 1
        double mean = 0, square = 0;
        const double at = c < C ? x[c] : 1;
        for (size_t i = 0; i < D; i++) mean += (c < C ? w[i * C + c] : b[i]) / double(D);
        for (size_t i = 0; i < D; i++) square += std::pow((c < C ? w[i * C + c] : b[i]) - mean, 2) / D;
        e.mu += mean * at, var += square * at * at;
    }
    e.sd = std::sqrt(var), e.g = -std::erf(e.mu / e.sd / std::sqrt(2));
    e.predicted = D * (1 - e.g) / 2;
    std::vector<double> h(D);
    for (size_t i = 0; i < D; i++) {
        h[i] = b[i];
        for (size_t c = 0; c < C; c++) h[i] += double(w[i * C + c]) * x[c];
        e.actual += h[i] > 0;
    }
    const Moments m = moments(h.data(), D);
    e.skew = m.skew, e.kurtosis = m.kurtosis, e.sd_ratio = m.sd / e.sd;
    return e;
}

static void check_truth(const char* name, const RouterTruth& truth, const std::vector<float>& g,
                        const std::vector<float>& actual, size_t S, size_t E, size_t K) {
    double agreement = 0, chance = 0, regret = 0, random_regret = 0, within = 0, within_rank = 0, defined = 0;
    for (size_t n = 0; n < S; n++) {
        const std::vector<double> x(&g[n * E], &g[n * E] + E), y(&actual[n * E], &actual[n * E] + E);
        const double r = slow_pearson(x, y);
        if (!std::isnan(r)) within += r, within_rank += slow_pearson(slow_ranks(x), slow_ranks(y)), defined++;
        // Every subset of K experts: the fewest units, the mean over all subsets, the one of highest scores.
        double fewest = INFINITY, mean = 0, subsets = 0, best_score = -INFINITY, chosen = 0;
        size_t best = 0;
        for (size_t set = 0; set < size_t(1) << E; set++) {
            if (size_t(__builtin_popcountll(set)) != K) continue;
            double units = 0, score = 0;
            for (size_t j = 0; j < E; j++)
                if (set >> j & 1) units += y[j], score += x[j];
            fewest = std::min(fewest, units), mean += units, subsets++;
            if (score > best_score) best_score = score, chosen = units, best = set;
        }
        regret += chosen - fewest, random_regret += mean / subsets - fewest;
        for (size_t j = 0; j < E; j++) { // among the K sparsest: fewer than K experts have fewer units
            size_t sparser = 0;
            for (size_t i = 0; i < E; i++) sparser += y[i] < y[j];
            chance += double(sparser < K) / E, agreement += (best >> j & 1) && sparser < K ? 1.0 / K : 0;
        }
    }
    const std::vector<double> x(g.begin(), g.end()), y(actual.begin(), actual.end());
    check(defined > 0, "%s", name);
    check_near(truth.pearson.within.value, within / defined, 1e-9);
    check_near(truth.spearman.within.value, within_rank / defined, 1e-9);
    check_near(truth.pearson.overall.value, slow_pearson(x, y), 1e-9);
    check_near(truth.spearman.overall.value, slow_pearson(slow_ranks(x), slow_ranks(y)), 1e-9);
    check_near(truth.agreement.value, agreement / S, 1e-9), check_near(truth.chance, chance / S, 1e-9);
    check_near(truth.regret.value, regret / S, 1e-9),
        check_near(truth.random_regret, random_regret / S, 1e-9);
    for (const Estimate& e : {truth.pearson.within, truth.pearson.overall, truth.spearman.within,
                              truth.spearman.overall, truth.agreement, truth.regret})
        check(e.interval.low <= e.value && e.value <= e.interval.high && e.interval.low < e.interval.high,
              "%s: %g in %g %g", name, e.value, e.interval.low, e.interval.high);
}

static void test_router_against_slow() {
    for (const Variant& v : {variants[0], variants[1]}) {
        const Config c = small_config(v);
        const size_t E = 5, D = 12, C = 16, K = 2;
        Reader reader = cpu_reader(c, 3, 24);
        random_weights(reader, 3);
        const Parameters<float> w = carve_parameters(c, reader.table, reader.weights());
        const TokenRows rows = random_rows(8, 24);
        const size_t N = rows.size();
        const std::vector<ExpertSample> samples = sample_experts(reader, rows, N, N, "test");
        for (size_t l = 0; l < 2; l++) {
            const ExpertSample& s = samples[l];
            check(s.S == N && s.row[0] == 0 && s.row[N - 1] == 7 && s.row[24] == 1);
            std::vector<SlowExpert> slow;
            size_t wrong = 0, wrong_choice = 0;
            double largest_g = 0, largest_own = 0, largest_prediction = 0;
            for (size_t r = 0; r < rows.rows; r++) {
                reader.read(&rows.tokens[r * rows.T], 1, rows.T);
                const LayerUnits u = reader.layer(l);
                for (size_t i = 0; i < rows.T * E; i++) {
                    const size_t t = i / E, j = i % E, at = r * rows.T * E + i;
                    const SlowExpert e =
                        slow_expert(u.x + t * C, w.h[l].w_enc + j * D * C, w.h[l].b_enc + j * D, D, C);
                    slow.push_back(e);
                    wrong += e.actual != s.actual[at];
                    largest_g = std::max(largest_g, std::fabs(u.g[i] - double(s.g[at])));
                    largest_own = std::max(largest_own, std::fabs(e.g - s.sparsity_g[at]));
                    largest_prediction =
                        std::max(largest_prediction, std::fabs(e.predicted - s.predicted[at]));
                }
                for (size_t t = 0; t < rows.T; t++) // the experts the model ran have as many units there
                    for (size_t k = 0; k < K; k++) {
                        size_t units = 0;
                        const float* z = u.z + u.slot[t * K + k] * D;
                        for (size_t i = 0; i < D; i++) units += z[i] > 0;
                        wrong_choice += units != s.actual[(r * rows.T + t) * E + u.choice[t * K + k]];
                    }
            }
            check(wrong == 0 && wrong_choice == 0, "%s: %zu and %zu", v.name, wrong, wrong_choice);
            check(largest_g < 1e-5 && largest_own < 1e-5 && largest_prediction < 1e-4, "%g %g %g", largest_g,
                  largest_own, largest_prediction);

            check_truth(v.name, router_truth(s, s.g), s.g, s.actual, N, E, K);
            check_truth(v.name, router_truth(s, s.sparsity_g), s.sparsity_g, s.actual, N, E, K);

            for (size_t j = 0; j < E; j++) {
                ExpertSample::Shape all;
                for (size_t i = j; i < N * E; i += E) {
                    all.skew += slow[i].skew, all.kurtosis += slow[i].kurtosis,
                        all.sd_ratio += slow[i].sd_ratio;
                    all.skew_squared += slow[i].skew * slow[i].skew;
                }
                const ExpertSample::Shape& shape = s.shape[j];
                check(shape.n == N);
                check_near(shape.skew / N, all.skew / N, 1e-4);
                check_near(shape.skew_squared / N, all.skew_squared / N, 1e-4);
                check_near(shape.kurtosis / N, all.kurtosis / N, 1e-4);
                check_near(shape.sd_ratio / N, all.sd_ratio / N, 1e-4);
                check(shape.ks > shape.ks_fitted * 0.5 && shape.ks / N < 1 && shape.ks_fitted / N > 0.02);
            }

            const Calibration k = calibrate(s, 7);
            std::vector<std::pair<double, double>> pairs;
            double bias = 0, square = 0;
            for (size_t i = 0; i < N * E; i++) {
                pairs.push_back({s.predicted[i], s.actual[i]});
                bias += slow[i].predicted - slow[i].actual;
                square += std::pow(slow[i].predicted - slow[i].actual, 2);
            }
            check_near(k.bias, bias / (N * E), 1e-4), check_near(k.rmse, std::sqrt(square / (N * E)), 1e-4);
            std::stable_sort(pairs.begin(), pairs.end(), [](auto& a, auto& b) { return a.first < b.first; });
            size_t at = 0;
            for (size_t b = 0; b < 7; b++) {
                double predicted = 0, actual = 0;
                for (size_t i = 0; i < k.count[b]; i++, at++)
                    predicted += pairs[at].first / k.count[b], actual += pairs[at].second / k.count[b];
                check_near(k.predicted[b], predicted, 1e-6), check_near(k.actual[b], actual, 1e-6);
                check(k.count[b] == N * E / 7 || k.count[b] == N * E / 7 + 1);
            }
            check(at == N * E && k.count.size() == 7);
        }
    }
}

// What the router's choice costs when it is wrong by construction, and what chance is with ties.
static void test_truth_by_hand() {
    ExpertSample s;
    s.S = 3, s.E = 4, s.K = 2, s.D = 10, s.row = {0, 0, 1};
    s.actual = {1, 2, 3, 4, /**/ 5, 5, 5, 5, /**/ 0, 2, 2, 9};
    s.g = {4, 3, 2, 1, /**/ 1, 2, 3, 4, /**/ 0, 1, 0.5, 2};
    const RouterTruth t = router_truth(s, s.g);
    check_near(t.agreement.value, (1 + 1 + 0.5) / 3, 1e-12); // the last: expert 1 is, expert 3 is not
    check_near(t.chance, (0.5 + 1 + 0.75) / 3, 1e-12);       // 2, 4 and 3 of 4 experts are among the sparsest
    check_near(t.regret.value, (0 + 0 + 9) / 3.0, 1e-12);    // experts 3 and 1: 11 units instead of 2
    check_near(t.random_regret, (2 + 0 + 4.5) / 3, 1e-12);   // 5 instead of 3, 10 of 10, 6.5 instead of 2
    check_near(t.pearson.within.value, (-1 + 9.625 / std::sqrt(2.1875 * 46.75)) / 2,
               1e-6); // of the second there is none
    s.predicted = {2, 2, 2, 2, /**/ 5, 5, 5, 5, /**/ 1, 1, 1, 1};
    const Calibration k = calibrate(s);
    check_near(k.bias, (8 + 20 + 4 - 43) / 12.0, 1e-9);
    check_near(k.chosen_bias, (0.5 + 0 - 4.5) / 3, 1e-9);
    check(k.count.size() == 12 && k.predicted[0] == 1 && k.predicted[11] == 5);
}

// Rows that are Gaussian, rows that are not, and rows whose channels are not independent.
static void test_gaussian_check() {
    const size_t E = 3, D = 256, C = 64, n = 64;
    std::vector<float> w(E * D * C), b(E * D), x(n * C);
    for (size_t i = 0; i < n * C; i++) x[i] = float(normal(i, 11));
    for (size_t i = 0; i < D * C; i++) {
        w[i] = float(0.1 * normal(i, 12));                                       // expert 0: Gaussian
        w[D * C + i] = float(0.1 * normal(i / C, 13) * (i % C < 32 ? 1 : -0.5)); // 1: all rows on one line
        const double outlier = i / C % 16 == 0 ? 1 : 0.02;
        w[2 * D * C + i] = float(outlier * normal(i, 14)); // 2: a few large rows
    }
    ExpertSample s;
    s.E = E, s.K = 1, s.D = D, s.shape.resize(E);
    LayerUnits units{};
    units.E = E, units.K = 1, units.D = D, units.x = x.data();
    std::vector<float> g(n * E, 0.5f);
    units.g = g.data();
    std::vector<int32_t> which(n);
    std::iota(which.begin(), which.end(), 0);
    add_to_sample(s, units, {which, std::vector<uint32_t>(n), std::vector<uint8_t>(n, 1)}, w.data(), b.data(),
                  EncoderStatistics(w.data(), b.data(), E, D, C), C);
    const ExpertSample::Shape truth = gaussian_shape(D);
    const auto mean = [](double sum, const ExpertSample::Shape& shape) { return sum / shape.n; };
    check(truth.n == 1000 && s.shape[0].n == n);
    // Known of n Gaussian numbers: the variance of the skew 6(n-2)/((n+1)(n+3)), the mean kurtosis -6/(n+1).
    check_near(mean(truth.skew, truth), 0, 0.015);
    check_near(std::sqrt(mean(truth.skew_squared, truth)), std::sqrt(6.0 * 254 / (257.0 * 259)), 0.008);
    check_near(mean(truth.kurtosis, truth), -6.0 / 257, 0.03);
    check_near(mean(truth.sd_ratio, truth), 1, 0.01);
    // Kolmogorov's distance has the mean sqrt(pi/2) ln 2 / sqrt(n) when nothing is fitted: an upper bound.
    check(mean(truth.ks, truth) < std::sqrt(M_PI / 2) * std::log(2) / 16 &&
          mean(truth.ks_fitted, truth) < mean(truth.ks, truth));
    check(mean(truth.ks_fitted, truth) > 0.035);

    check_near(mean(s.shape[0].ks, s.shape[0]), mean(truth.ks, truth), 0.006);
    check_near(mean(s.shape[0].ks_fitted, s.shape[0]), mean(truth.ks_fitted, truth), 0.004);
    check_near(mean(s.shape[0].sd_ratio, s.shape[0]), 1, 0.05);
    check_near(mean(s.shape[0].kurtosis, s.shape[0]), 0, 0.15);
    // On one line h_i = u_i (d.x) with Gaussian u: the shape is right, the sd is sd(u) |d.x| instead of the
    // router's sd(u) sqrt(sum d^2 x^2).
    double ratio = 0;
    for (size_t i = 0; i < n; i++) {
        double along = 0, squares = 0;
        for (size_t c = 0; c < C; c++) {
            const double d = c < 32 ? 1 : -0.5;
            along += d * x[i * C + c], squares += d * d * x[i * C + c] * x[i * C + c];
        }
        ratio += std::fabs(along) / std::sqrt(squares) / n;
    }
    check_near(mean(s.shape[1].sd_ratio, s.shape[1]), ratio, 1e-3);
    check(mean(s.shape[1].ks, s.shape[1]) > 2 * mean(truth.ks, truth), "%g", mean(s.shape[1].ks, s.shape[1]));
    check(mean(s.shape[1].ks_fitted, s.shape[1]) < 1.5 * mean(truth.ks_fitted, truth));
    check(mean(s.shape[2].kurtosis, s.shape[2]) > 5 && mean(s.shape[2].ks_fitted, s.shape[2]) > 0.2);
    // Where the model says what its router computed (in bf16, perhaps), that is taken.
    std::vector<float> mu(n * E, 1), sd(n * E, 2);
    units.mu = mu.data(), units.sd = sd.data();
    ExpertSample own;
    own.E = E, own.K = 1, own.D = D, own.shape.resize(E);
    add_to_sample(own, units, {which, std::vector<uint32_t>(n), std::vector<uint8_t>(n, 0)}, w.data(),
                  b.data(), EncoderStatistics(w.data(), b.data(), E, D, C), C);
    check_near(own.predicted[0], D * normal_cdf(0.5), 1e-3);
    check(own.sparsity_g == g && own.actual == s.actual && own.shape[0].n == 0 && s.sparsity_g != g);
    // Gaussian rows are well calibrated.
    double error = 0;
    for (size_t i = 0; i < n * E; i += E) error += (s.predicted[i] - s.actual[i]) / double(n);
    check_near(error, 0, 1);
}

static void test_sampling() {
    Reader reader = cpu_reader(small_config(variants[0]), 3, 24);
    random_weights(reader, 4);
    const TokenRows rows = random_rows(50, 24);
    for (const size_t tokens : {1, 7, 100, 599, 601, 1200, 5000}) {
        const ExpertSample s = sample_experts(reader, rows, tokens, 10, "test")[0];
        check(s.S >= std::min<size_t>(tokens, 1200) && s.S <= std::max<size_t>(2 * tokens, 2),
              "%zu asked for, %zu taken", tokens, s.S);
        check(std::is_sorted(s.row.begin(), s.row.end()) && s.g.size() == s.S * 5 &&
              s.actual.size() == s.S * 5);
        check(s.shape[0].n >= std::min<size_t>(10, s.S) && s.shape[0].n <= 20 &&
              s.shape[4].n == s.shape[0].n);
    }
    const ExpertSample one_of_30 = sample_experts(reader, rows, 40, 10, "test")[0];
    size_t first = 0;
    for (size_t k = 0; k < one_of_30.S; k++) { // anywhere in its 30 tokens
        check(one_of_30.row[k] >= k * 30 / 24 && one_of_30.row[k] <= (k * 30 + 29) / 24);
        first += one_of_30.row[k] == k * 30 / 24;
    }
    check(one_of_30.S == 40 && first < 35, "%zu of %zu", first, one_of_30.S);
    const std::vector<int64_t> steps = {900, 100, 500, 300, 700};
    check(history_steps(steps, 5) == std::vector<int64_t>({100, 300, 500, 700, 900}));
    check(history_steps(steps, 2) == std::vector<int64_t>({300, 900}));
    check(history_steps(steps, 1) == std::vector<int64_t>({900}) && history_steps({}, 3).empty());
}

// ---------------------------------------------------------------------------------------------------------
// The programs

using Program = int (*)(int, char**, const MakeReader&);
static std::string run_program(Program program, std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "program");
    std::vector<char*> argv;
    for (std::string& a : arguments) argv.push_back(a.data());
    argv.push_back(nullptr);
    return printed([&] { check(program(int(arguments.size()), argv.data(), cpu_reader) == 0); });
}

static const Json& at(const Json& json, const std::string& path) { // "layers.0.l0.mean"
    const Json* here = &json;
    for (size_t begin = 0; begin <= path.size();) {
        const size_t end = std::min(path.find('.', begin), path.size());
        const std::string name = path.substr(begin, end - begin);
        const bool index = here->type == Json::Array;
        here = !index                                  ? here->find(name)
               : std::stoul(name) < here->items.size() ? &here->items[std::stoul(name)]
                                                       : nullptr;
        if (!here) fail("the JSON has no %s", path.c_str());
        begin = end + 1;
    }
    return *here;
}

static std::string without_seconds(const std::string& json) {
    const size_t begin = json.find("\"seconds\":"), end = json.find(',', begin);
    return json.substr(0, begin) + json.substr(end);
}

static void write_shard(const std::string& path, Tokenizer tokenizer, size_t row,
                        const std::vector<int32_t>& tokens) {
    ShardWriter out(path, tokenizer, row);
    for (const int32_t token : tokens) {
        const uint16_t id = uint16_t(token);
        out.write(&id, 1);
    }
    out.commit();
}

// Random legal games long enough for `characters`, as game text.
static std::string random_games(size_t games, size_t characters) {
    std::string out;
    for (size_t g = 0; g < games;) {
        chess::Position p = chess::start_position();
        std::vector<chess::Move> moves;
        for (size_t ply = 0; ply < 200; ply++) {
            const chess::MoveList legal = chess::legal_moves(p);
            if (legal.size == 0) break;
            auto move = legal.begin();
            for (uint64_t skip = random_u64(g, 77, ply + 1000 * out.size()) % legal.size; skip > 0; skip--)
                ++move;
            moves.push_back(*move);
            chess::make(p, *move);
        }
        const std::string text = chess::to_game_text(moves);
        if (text.size() >= characters) out += text + "\n", g++;
    }
    return out;
}

static void test_programs() {
    const std::string run = folder + "/run", text = folder + "/text.bin", json_file = folder + "/out.json";
    make_directories(run);
    std::vector<int32_t> bytes;
    for (size_t i = 0; i < 1000; i++) bytes.push_back(int32_t(10 + 100 * uniform(i, 9)));
    write_shard(text, TOKENIZER_BYTES, 0, bytes);
    Reader reader = cpu_reader(small_config(variants[0]), 2, 24);
    for (const int64_t step : {20, 5, 10}) {
        random_weights(reader, uint64_t(step));
        save(reader, model_path(run, step), step);
    }

    // sparsity of the newest checkpoint, of a file, into the place it says; 41 windows of 24 tokens are
    // there.
    const std::string table = run_program(sparsity_program, {"--ckpt", run, "--data", text, "--rows", "30"});
    check(table.find("step 20") != std::string::npos &&
          table.find(run + "/interp/sparsity.json") != std::string::npos);
    const std::string written = read_all(run + "/interp/sparsity.json");
    const Json s = parse_json(written, "sparsity.json");
    check(at(s, "tool").text == "sparsity" && at(s, "step").int64() == 20 && at(s, "tokens").int64() == 720);
    check(at(s, "config.n_layer").text == "2" && at(s, "groups").items.size() == 7);
    check(at(s, "layers").items.size() == 2 && at(s, "layers.1.layer").int64() == 1 &&
          at(s, "layers.0.units").int64() == 60);
    check(at(s, "layers.0.l0.low").number < at(s, "layers.0.l0.mean").number &&
          at(s, "layers.0.l0.mean").number < at(s, "layers.0.l0.high").number &&
          at(s, "layers.0.l0.sd").number > 0);
    check(at(s, "layers.0.histogram.edges").items.size() ==
          at(s, "layers.0.histogram.counts").items.size() + 1);
    check(at(s, "layers.0.rates.edges").items.size() == at(s, "layers.0.rates.counts").items.size() + 1);
    check(at(s, "layers.0.experts").items.size() == 5 && at(s, "layers.0.experts.4.load").is_number() &&
          at(s, "layers.0.corouting").items.size() == 5 && at(s, "layers.0.corouting.3").items.size() == 5);
    check_near(at(s, "layers.0.max_entropy").number, std::log2(5), 1e-5);
    check(at(s, "layers.0.groups.0.name").text == "lower case" &&
          at(s, "layers.0.groups.0.experts").items.size() == 5 &&
          at(s, "layers.0.groups.0.corouting").items.size() == 5 &&
          at(s, "layers.0.groups.0.l0.mean").is_number());
    check(at(s, "layers.0.dead").is_unsigned() && at(s, "layers.0.zero_work").is_number() &&
          at(s, "layers.0.participation").number > 1);
    run_program(sparsity_program,
                {"--ckpt", model_path(run, 5), "--data", text, "--json", json_file, "--seq", "10"});
    check(at(parse_json(read_all(json_file), "out"), "step").int64() == 5 &&
          at(parse_json(read_all(json_file), "out"), "tokens").int64() == 990); // (1000 - 1) / 10 windows

    // router of the run: the newest, and the history with the untrained weights before it.
    const std::vector<std::string> router = {"--ckpt", run, "--data", text, "--tokens", "300"};
    run_program(router_program, router);
    const std::string routed = read_all(run + "/interp/router.json");
    const Json r = parse_json(routed, "router.json");
    check(at(r, "tool").text == "router" && at(r, "step").int64() == 20 &&
          at(r, "sample.rows").int64() == 41);
    check(at(r, "history").items.size() == 4 && at(r, "history.0.untrained").boolean &&
          at(r, "history.0.step").int64() == 0);
    for (size_t i = 1; i < 4; i++)
        check(at(r, strf("history.%zu.step", i)).int64() == int64_t(i == 3 ? 20 : 5 * i));
    for (const char* name : {"skew", "kurtosis", "ks", "ks_gaussian", "pearson_within"})
        check(at(r, std::string("history.3.layers.1.") + name).is_number(), "%s", name);
    for (const char* name : {"pearson.within", "pearson.overall", "pearson.low", "pearson.high",
                             "spearman.within", "spearman.overall", "spearman.low", "spearman.high",
                             "agreement", "chance", "regret", "rmse", "pca.explained.0", "pca.explained.1"})
        check(at(r, std::string("layers.1.") + name).is_number(), "%s", name);
    check(at(r, "layers.0.calibration.predicted").items.size() == 20 &&
          at(r, "layers.0.calibration.count").items.size() == 20);
    check(at(r, "layers.0.scatter").items.size() == scatter_points &&
          at(r, "layers.0.scatter.7").items.size() == 3);
    check(at(r, "layers.0.pca.points").items.size() == 60 && at(r, "layers.0.pca.points.59.2").int64() == 4);
    int64_t largest = 0;
    std::set<int64_t> experts;
    for (const Json& p : at(r, "layers.0.pca.points").items)
        largest = std::max({largest, std::abs(p.items[0].int64()), std::abs(p.items[1].int64())});
    for (const Json& p : at(r, "layers.0.scatter").items) {
        check(p.items[0].number >= -1 && p.items[0].number <= 1 && p.items[1].number >= 0 &&
              p.items[1].number <= 12);
        experts.insert(p.items[2].int64());
    }
    check(largest == 1000 && experts.size() == 5);
    check(!at(r, "layers.0").find("sparsity_router"));
    Reader untrained = cpu_reader(reader.config, 2, 24);
    untrained_weights(untrained, 1);
    const CheckpointShape initial =
        checkpoint_shape(sample_experts(untrained, token_rows(text, reader.config, 0, 41, "", ""),
                                        shape_tokens, shape_tokens, "test"),
                         0, true);
    check_near(at(r, "history.0.layers.1.ks").number, initial.layers[1].ks / initial.layers[1].n, 1e-6);
    check_near(at(r, "history.0.layers.1.pearson_within").number, initial.pearson_within[1], 1e-5);
    run_program(router_program, {"--ckpt", model_path(run, 10), "--data", text, "--json", json_file});
    check(at(parse_json(read_all(json_file), "out"), "history").items.size() == 2);
    run_program(router_program, {"--ckpt", run, "--data", text, "--json", json_file, "--history", "0"});
    check(at(parse_json(read_all(json_file), "out"), "history").items.empty());

    // The same with one thread and with three.
    const size_t threads = thread_count();
    for (const int n : {1, 3}) {
        set_thread_count(n);
        run_program(sparsity_program, {"--ckpt", run, "--data", text, "--rows", "30"});
        run_program(router_program, router);
        check(without_seconds(read_all(run + "/interp/sparsity.json")) == without_seconds(written));
        check(without_seconds(read_all(run + "/interp/router.json")) == without_seconds(routed));
    }
    set_thread_count(threads);

    // The seed of the run, as its state file says.
    check(seed_of_run(model_path(run, 20), 20) == 1);
    write_blocks<float>(state_path(run, 20), {{"flag.seed", "33"}}, reader.table, {{"m.", reader.weights()}});
    check(seed_of_run(model_path(run, 20), 20) == 33);

    // The other variants: a topk router beside what sparsity would have chosen; dense layers without experts.
    Reader topk = cpu_reader(small_config(variants[1]), 1, 24);
    random_weights(topk, 6);
    save(topk, folder + "/topk.safetensors", 1);
    run_program(router_program,
                {"--ckpt", folder + "/topk.safetensors", "--data", text, "--json", json_file});
    const Json t = parse_json(read_all(json_file), "out");
    check(at(t, "layers.0.sparsity_router.pearson.within").number < at(t, "layers.0.pearson.within").number);
    check(at(t, "layers.0.sparsity_router.agreement").number > at(t, "layers.0.agreement").number);
    Reader dense = cpu_reader(small_config(variants[2]), 1, 24);
    random_weights(dense, 7);
    const std::string dense_path = folder + "/dense.safetensors";
    save(dense, dense_path, 1);
    run_program(sparsity_program, {"--ckpt", dense_path, "--data", text, "--json", json_file});
    const Json d = parse_json(read_all(json_file), "out");
    check(at(d, "layers.0.experts").items.empty() && at(d, "layers.0.entropy").type == Json::Null &&
          at(d, "layers.0.units").int64() == 24);
    check_error(run_program(router_program, {"--ckpt", dense_path, "--data", text}), dense_path, "dense",
                "expected a mixture of experts");

    // Chess: games as text and rows of a shard; phases.
    Config chess_config = small_config(variants[0], "chess-32");
    chess_config.block_size = 300;
    Reader chess_reader = cpu_reader(chess_config, 2, 300);
    random_weights(chess_reader, 8);
    const std::string chess_path = folder + "/chess.safetensors", games = folder + "/games.txt";
    save(chess_reader, chess_path, 1);
    write_all(games, random_games(6, 300));
    run_program(sparsity_program, {"--ckpt", chess_path, "--data", games, "--json", json_file});
    const Json g = parse_json(read_all(json_file), "out");
    check(at(g, "tokens").int64() == 6 * 256 && at(g, "groups").items.size() == 3);
    check(at(g, "layers.0.groups.0.tokens").int64() > 400 && at(g, "layers.0.groups.1.tokens").int64() > 400);
    std::vector<int32_t> row = chess_tokens(random_games(1, 300).substr(0, 280)), two = row;
    two.insert(two.end(), row.begin(), row.end());
    write_shard(folder + "/rows.bin", TOKENIZER_CHESS, 280, two);
    const TokenRows rows = token_rows(folder + "/rows.bin", chess_config, 0, 9, "", "model");
    check(rows.rows == 2 && rows.T == 279 && rows.tokens[0] == chess_id(';') &&
          rows.tokens[279] == chess_id(';') && rows.group[0] == 0 &&
          rows.group[278] == rows.group[279 + 278]);
    check(token_rows(folder + "/rows.bin", chess_config, 100, 1, "", "model").size() == 100);
    check(token_rows(games, chess_config, 0, 4, "", "model").rows == 4);

    // What is wrong gets one line.
    const std::string c = chess_path;
    check_error(run_program(sparsity_program, {"--ckpt", run}), "--data is missing");
    check_error(run_program(router_program, {"--ckpt", run}), "--data is missing");
    check_error(run_program(sparsity_program, {"--data", text}), "--ckpt is missing");
    check_error(run_program(sparsity_program, {"--ckpt", run, "--data", folder + "/none"}),
                "matches no file");
    check_error(run_program(sparsity_program, {"--ckpt", run, "--data", games}), games, "chess-32",
                "reads bytes");
    check_error(run_program(sparsity_program, {"--ckpt", c, "--data", text}), text, "bytes",
                "reads chess-32");
    check_error(run_program(router_program, {"--ckpt", c, "--data", text}), text, "bytes", "reads chess-32");
    check_error(run_program(sparsity_program, {"--ckpt", run, "--data", text, "--seq", "25"}), "--seq 25",
                "24 positions");
    check_error(run_program(sparsity_program, {"--ckpt", run, "--data", text, "--rows", "0"}), "--rows",
                "out of range");
    write_all(folder + "/short.txt", ";1.e4 e5 2.Nf3 Nc6 3.Bb5 a6\n");
    check_error(run_program(sparsity_program, {"--ckpt", c, "--data", folder + "/short.txt"}), "short.txt",
                "1 are shorter");
    write_shard(folder + "/large.bin", TOKENIZER_BYTES, 0, std::vector<int32_t>(100, 300));
    check_error(run_program(sparsity_program, {"--ckpt", run, "--data", folder + "/large.bin"}),
                "token 0 is 300");
    write_shard(folder + "/few.bin", TOKENIZER_BYTES, 0, std::vector<int32_t>(20, 65));
    check_error(run_program(sparsity_program, {"--ckpt", run, "--data", folder + "/few.bin"}),
                "no shard is long enough");
    Config unstated = chess_config;
    unstated.tokenizer = "", unstated.vocab_size = 31;
    check_error(token_rows(games, unstated, 0, 4, "", "the model"), "the model", "reads 31 tokens");
    unstated.vocab_size = 32;
    check(token_rows(games, unstated, 0, 4, "", "the model").rows == 4);
    for (const Tensor& t : reader.table)
        if (t.name == "wpe.weight") reader.weights()[t.offset] = NAN;
    save(reader, folder + "/nan.safetensors", 1);
    check_error(run_program(sparsity_program, {"--ckpt", folder + "/nan.safetensors", "--data", text}), text,
                "units at row 0, token 0 are not finite");
    // What cannot be read is passed over in the history: another config, a cut file, numbers that are not
    // finite.
    save(topk, model_path(run, 7), 7);
    write_all(model_path(run, 8), read_all(model_path(run, 5)).substr(0, 9000));
    save(reader, model_path(run, 9), 9);
    const std::string output = run_program(router_program, router);
    for (const char* part : {"passed over step 7: ", "another config", "passed over step 8: ", "truncated",
                             "passed over step 9: ", "not finite"})
        check(output.find(part) != std::string::npos, "%s", part);
    check(at(parse_json(read_all(run + "/interp/router.json"), "out"), "history").items.size() == 4);
}

int main() {
    return run_main([] {
        const char* temporary = getenv("TMPDIR");
        folder = std::string(temporary ? temporary : "/tmp") + "/test_sparsity.XXXXXX";
        if (!mkdtemp(folder.data())) fail("%s: cannot be created: %s", folder.c_str(), strerror(errno));
        set_thread_count(1); // the models are tiny: threads are for the tests that compare their numbers
        test_moments();
        test_normal();
        test_quantiles_and_histograms();
        test_correlations();
        test_bootstrap();
        test_principal_components();
        test_groups();
        test_sparsity_against_slow();
        test_sparsity_planted();
        test_router_against_slow();
        test_truth_by_hand();
        test_gaussian_check();
        test_sampling();
        test_programs();
        std::filesystem::remove_all(folder);
        return finish();
    });
}
