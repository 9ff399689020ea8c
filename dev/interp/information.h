// How much one thing tells of another, in bits, from counts of tokens, each of which belongs to a group of
// documents. Entropies are corrected after Miller and Madow, H + (cells - 1) / (2 n ln 2), since that of few
// counts is too small; intervals leave out one group of documents after the other (the jackknife).
#pragma once
#include "statistics.h"

constexpr size_t n_groups = 32; // of documents

// By token: what it is, counted from 0.
using Kinds = std::vector<uint32_t>;

// I(R; X | Z) / H(R), R and X given Z; Z empty: I(R; X) / H(R).  group (tokens) less than n_groups
// Only tokens with asked[n], if there is such a list.
Estimate told_share(const Kinds& R, const Kinds& X, const Kinds& Z, const std::vector<uint8_t>& group,
                    const std::vector<uint8_t>* asked = nullptr);

// H(R) in bits.
double entropy_of(const Kinds& R);

// Of every document a group, in turn.  block (documents) in rising order; tokens of T each
std::vector<uint8_t> document_groups(const std::vector<uint32_t>& block, size_t T);
