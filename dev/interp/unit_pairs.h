// Units in company: do two units that fire together form a code that neither shows alone? For the most
// frequent pairs of a layer, at the places where properties are asked:
//   joint    how often both fire, and that over the product of their rates; 1: as if by chance
//   apart    bits per place that the two tell of a property when each adds its own log-odds (the model of the
//            counts without an interaction of all three), beyond the property's base rate
//   beyond   bits per place that the four cases (both, one, the other, neither) tell of it beyond that
// The property is the one whose interaction is largest on the train places; probabilities are the train
// places', too, and what they tell is measured on the test places, so chance and overfitting come out at or
// below 0.
//   null     beyond, of the whole procedure with the labels of another game at the same move
// A pair tells more than its units if beyond is above 0 and above the null, by their 95% intervals over
// games.
#pragma once
#include "detect.h"
#include "statistics.h"

struct PairFinding {
    size_t a = 0, b = 0;                     // units of the layer
    double rate_a = 0, rate_b = 0, both = 0; // shares of the test places
    Estimate lift;                           // both / (rate_a rate_b)
    size_t property = SIZE_MAX;              // SIZE_MAX: none has an interaction
    Estimate apart, beyond, null;
    bool more() const { return beyond.interval.low > 0 && beyond.interval.low > null.interval.high; }
};

// The four cases by place: 1 where a fires, 2 where b fires, 3 both.
std::vector<uint8_t> pair_cases(const UnitFires& fires, size_t a, size_t b);

// orders: of the train and the test places whose labels a place gets in the null.
PairFinding measure_pair(const std::vector<uint8_t>& train_cases, const std::vector<uint8_t>& test_cases,
                         const Places& train, const Places& test, const Order orders[2], uint64_t seed);

// The `most` pairs that fire together most often on the train places, among the layer's `pair_units` most
// frequent units; a unit that fires at more than nine places of ten is left out.
constexpr size_t pair_units = 64;
std::vector<PairFinding> frequent_pairs(const LayerFires& fires, const Evidence& e, size_t most,
                                        uint64_t seed);
