// How much one thing tells of another: see information.h.
#include "information.h"
#include <array>

namespace {
// Entropies of all tokens (the last) and of those without each group.
using Entropies = std::array<double, n_groups + 1>;

Entropies entropies_of(std::vector<std::pair<uint64_t, uint8_t>> keys) {
    std::sort(keys.begin(), keys.end());
    std::array<double, n_groups + 1> n{}, sum{}, cells{}; // sum of c log2 c
    std::array<size_t, n_groups> in_group{};
    for (const auto& [key, group] : keys) in_group[group]++;
    for (size_t g = 0; g <= n_groups; g++) n[g] = double(keys.size() - (g < n_groups ? in_group[g] : 0));
    for (size_t i = 0, end; i < keys.size(); i = end) {
        std::array<size_t, n_groups> here{};
        for (end = i; end < keys.size() && keys[end].first == keys[i].first; end++) here[keys[end].second]++;
        const double all = double(end - i), all_log = all * std::log2(all);
        for (size_t g = 0; g <= n_groups; g++) {
            const size_t left_out = g < n_groups ? here[g] : 0;
            const double c = all - double(left_out);
            sum[g] += left_out == 0 ? all_log : c > 0 ? c * std::log2(c) : 0;
            cells[g] += c > 0;
        }
    }
    Entropies H{};
    for (size_t g = 0; g <= n_groups; g++)
        H[g] = n[g] > 0 ? std::log2(n[g]) - sum[g] / n[g] + (cells[g] - 1) / (2 * n[g] * std::log(2.0))
                        : undefined;
    return H;
}
} // namespace

Estimate told_share(const Kinds& R, const Kinds& X, const Kinds& Z, const std::vector<uint8_t>& group,
                    const std::vector<uint8_t>* asked) {
    const auto entropies = [&](bool r, bool x, bool z) {
        std::vector<std::pair<uint64_t, uint8_t>> keys;
        for (size_t n = 0; n < R.size(); n++) {
            if (asked && !(*asked)[n]) continue;
            const uint64_t condition = z && !Z.empty() ? Z[n] + uint64_t(1) : 0;
            keys.push_back(
                {condition << 42 | uint64_t(x ? X[n] + uint64_t(1) : 0) << 21 | (r ? R[n] + uint64_t(1) : 0),
                 group[n]});
        }
        return entropies_of(std::move(keys));
    };
    const Entropies R_only = entropies(true, false, false), RZ = entropies(true, false, true),
                    XZ = entropies(false, true, true), RXZ = entropies(true, true, true),
                    Z_only = entropies(false, false, true);
    const auto share = [&](size_t g) {
        return R_only[g] > 0 ? (RZ[g] + XZ[g] - RXZ[g] - Z_only[g]) / R_only[g] : undefined;
    };
    std::array<uint8_t, n_groups> there{};
    for (size_t n = 0; n < R.size(); n++)
        if (!asked || (*asked)[n]) there[group[n]] = 1;
    double groups = 0, mean = 0, square = 0;
    for (size_t g = 0; g < n_groups; g++) groups += there[g];
    for (size_t g = 0; g < n_groups; g++)
        if (there[g]) mean += share(g) / groups;
    for (size_t g = 0; g < n_groups; g++)
        if (there[g]) square += (share(g) - mean) * (share(g) - mean);
    Estimate out;
    out.value = share(n_groups);
    if (groups < 2) return out;
    const double error = std::sqrt((groups - 1) / groups * square);
    out.interval = {out.value - 1.96 * error, out.value + 1.96 * error};
    return out;
}

double entropy_of(const Kinds& R) {
    std::vector<std::pair<uint64_t, uint8_t>> keys;
    for (const uint32_t r : R) keys.push_back({r, 0});
    return entropies_of(std::move(keys))[n_groups];
}

std::vector<uint8_t> document_groups(const std::vector<uint32_t>& block, size_t T) {
    std::vector<uint8_t> group;
    for (const uint32_t b : block) group.insert(group.end(), T, uint8_t(b % n_groups));
    return group;
}
