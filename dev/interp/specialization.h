// How far an expert's tokens are from those of its layer, after "The Expert Strikes Back" (arXiv 2604.02178),
// for comparison only. Tokens fall into clusters of the embedding: rows of wte less their mean, of unit
// length, by spherical k-means. With p the shares of an expert's tokens by cluster and q those of the whole
// layer
//   JSD = H((p + q) / 2) - H(p) / 2 - H(q) / 2      in bits
// less the mean of n_draws multinomial draws of as many tokens from q, over the most that is possible where
// every expert has a share 1/E of the tokens, which is less than 1:
//   JSD_max(s) = (log2(2 / (1+s)) + s log2(2 s / (1+s)) + 1 - s) / 2
// More clusters raise it by themselves, so clusterings are not compared with each other; and the draws take
// tokens for independent, which those of a text are not.
#pragma once
#include "statistics.h"
#include <cstdint>
#include <vector>

constexpr size_t n_draws = 10;
inline constexpr size_t cluster_counts[] = {4, 16, 64, 256};

// Of every row of vectors (n,C) its cluster, less than k; at most 100 rounds. k at most n.
std::vector<uint32_t> spherical_clusters(const float* vectors, size_t n, size_t C, size_t k, uint64_t seed);

double most_divergence(double share); // JSD_max

// Mean over the experts that have tokens, and the 95% interval of a mean of so many.
// counts (E,clusters)
Estimate specialization(const std::vector<double>& counts, size_t E, size_t clusters, uint64_t seed);
