// How much of an expert's work a kernel could leave out: the share of tiles, so many rows by so many units,
// in which every unit is zero for every row. Rows are those of one expert, in the order in which the router's
// dispatch lays them out, a batch at a time; the last tile of an expert may have fewer. Units stand as they
// are, or by how often each fires on other rows, the most frequent first.
#pragma once
#include "rows.h"
#include <array>

namespace tiles {
inline constexpr size_t rows[] = {1, 16, 64, 128}, units[] = {8, 16, 32, 64};
inline constexpr const char* orders[] = {"as they are", "by firing rate"};
constexpr size_t n_rows = std::size(rows), n_units = std::size(units), n_orders = std::size(orders);

struct Count {
    size_t all = 0, zero = 0;
    double share() const { return all ? double(zero) / double(all) : NAN; }
};
// Of one layer, by order, rows, units.
using Counts = std::array<std::array<std::array<Count, n_units>, n_rows>, n_orders>;

// Adds a batch of n tokens. rate (E,D): how often each unit fired elsewhere.
void count(Counts& counts, const LayerUnits& layer, size_t n, const std::vector<uint32_t>& rate);
} // namespace tiles

// Of every layer: rates from the first half of the rows, tiles on the others.
std::vector<tiles::Counts> measure_tiles(Reader& reader, const TokenRows& rows);
