// Local routing consistency: do the tokens of a stretch of text go to the same experts? Two measures of arXiv
// 2505.16056, for every expert and every window of m consecutive tokens of a row, c being how many of the
// window's tokens chose the expert:
//   SRP   how well a choice of one group of experts for each whole window can do. With A the sum of c, and
//   for a
//         threshold t the sum M(t) of c and P(t) = m times the number of windows with c >= t,
//         SRP = max over t of F1(t) = 2 M / (P + A).   size: P(t*) / A, what the group holds of what is used
//   SCH   share of requests found in a cache of so many experts that knows the next m tokens; LRU and LFU
//   know
//         none
// Loads alone set the level: beside them belongs the same with the tokens of each row shuffled.
#pragma once
#include "probe.h"

struct Locality {
    Estimate srp;
    double size = undefined;
};
// rows of T tokens each; m at most T. The interval is over rows.
Locality segment_routing(const Deal& deal, size_t T, size_t m, uint64_t seed);

enum Eviction { FEWEST_TO_COME, LEAST_RECENT, LEAST_FREQUENT };
// Requests found. A first use counts as found while fewer than `size` different experts were seen. Each row
// begins with an empty cache. Of equal ones the least recently used is evicted.
double cache_hits(const Deal& deal, size_t T, size_t m, size_t size, Eviction eviction);

// The tokens of each row in a random order, each with its experts.
Deal shuffled_rows(const Deal& deal, size_t T, uint64_t seed);
