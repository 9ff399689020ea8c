// Counts tiles of units that are zero: see tiles.h.
#include "tiles.h"
#include "../lib/threads.h"
#include <algorithm>
#include <numeric>

namespace tiles {
void count(Counts& counts, const LayerUnits& layer, size_t n, const std::vector<uint32_t>& rate) {
    const size_t E = layer.E, K = layer.K, D = layer.D;
    std::vector<std::vector<const float*>> of_expert(E); // z of its rows
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < K; k++)
            of_expert[layer.choice ? size_t(layer.choice[i * K + k]) : 0].push_back(
                layer.z + (layer.slot ? size_t(layer.slot[i * K + k]) : i) * D);
    std::vector<Counts> own(E);
    parallel_for(E, [&](size_t j) {
        std::vector<size_t> unit(D);
        std::iota(unit.begin(), unit.end(), size_t(0));
        for (size_t order = 0; order < n_orders; order++) {
            if (order == 1)
                std::stable_sort(unit.begin(), unit.end(),
                                 [&](size_t a, size_t b) { return rate[j * D + a] > rate[j * D + b]; });
            for (size_t r = 0; r < n_rows; r++)
                for (size_t first = 0; first < of_expert[j].size(); first += rows[r]) {
                    const size_t end = std::min(first + rows[r], of_expert[j].size());
                    std::vector<uint8_t> fires(D); // in any of the rows
                    for (size_t row = first; row < end; row++)
                        for (size_t u = 0; u < D; u++) fires[u] |= of_expert[j][row][unit[u]] != 0;
                    for (size_t size = 0; size < n_units; size++)
                        for (size_t u = 0; u < D; u += units[size]) {
                            const auto from = fires.begin() + std::ptrdiff_t(u);
                            const auto to = fires.begin() + std::ptrdiff_t(std::min(u + units[size], D));
                            own[j][order][r][size].all++;
                            own[j][order][r][size].zero += std::find(from, to, 1) == to;
                        }
                }
        }
    });
    for (const Counts& expert : own)
        for (size_t o = 0; o < n_orders; o++)
            for (size_t r = 0; r < n_rows; r++)
                for (size_t u = 0; u < n_units; u++) {
                    counts[o][r][u].all += expert[o][r][u].all;
                    counts[o][r][u].zero += expert[o][r][u].zero;
                }
}
} // namespace tiles

std::vector<tiles::Counts> measure_tiles(Reader& reader, const TokenRows& rows) {
    const size_t L = reader.config.n_layer, half = rows.rows / 2;
    std::vector<tiles::Counts> counts(L);
    std::vector<std::vector<uint32_t>> rate(L);
    for (std::vector<uint32_t>& of_layer : rate) of_layer.resize(reader.units());
    read_rows(reader, rows, "tiles", [&](size_t first, size_t B) {
        for (size_t l = 0; l < L; l++) {
            const LayerUnits layer = reader.layer(l);
            const size_t other =
                std::min(B, half > first ? half - first : 0) * rows.T; // rows of the first half
            for (size_t n = 0; n < other; n++)
                layer.each_expert(n, false, [&](size_t unit, const float* z, size_t count, float) {
                    for (size_t i = 0; i < count; i++) rate[l][unit + i] += z[i] != 0;
                });
            if (other == 0) tiles::count(counts[l], layer, B * rows.T, rate[l]);
        }
    });
    return counts;
}
