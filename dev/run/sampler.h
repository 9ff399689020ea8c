// From logits to a token: temperature, top-k, top-p, and one uniform number. Shared by every program that
// samples, so that the same logits and seed give the same token everywhere.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

// Self-contrast (SCMoE: Shi et al., arXiv 2405.14507):  out = (1 + beta) strong - beta weak  over the tokens
// v for which strong_v >= max strong + log alpha; the others can no longer be chosen. Numbers that are not
// finite stay so. beta and alpha 0: out = strong, to the bit.  out strong weak (V)
template <class Out, class Real>
void contrast(Out* out, const Real* strong, const Real* weak, size_t V, double beta, double alpha) {
    const double least = double(*std::max_element(strong, strong + V)) + std::log(alpha);
    for (size_t v = 0; v < V; v++)
        out[v] = strong[v] < least ? Out(-1e30) : Out((1 + beta) * strong[v] - beta * weak[v]);
}

struct Sampler {
    double temperature = 1; // 0: the most probable token, ties to the lower id
    int64_t top_k = 0;      // keep the k most probable, 0: all
    double top_p = 1;       // keep the most probable that together reach p

    // u in [0,1): the place on the cumulative distribution, tokens in falling order of probability where some
    // are cut off, else in the order of their ids, for sorting a large vocabulary takes longer than a GPU's
    // step.
    template <class Real> int32_t choose(const Real* logits, size_t V, double u) {
        order.resize(V);
        for (size_t v = 0; v < V; v++) order[v] = int32_t(v);
        auto before = [&](int32_t a, int32_t b) {
            return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
        };
        if (temperature <= 0) return *std::min_element(order.begin(), order.end(), before);
        size_t kept = top_k > 0 ? std::min(size_t(top_k), V) : V;
        if (kept < V || top_p < 1)
            std::partial_sort(order.begin(), order.begin() + kept, order.end(), before);
        const Real most = *std::max_element(logits, logits + V);
        weight.resize(kept);
        double sum = 0;
        for (size_t i = 0; i < kept; i++)
            sum += weight[i] = std::exp((logits[order[i]] - most) / temperature);
        if (top_p < 1) { // the shortest head that reaches p, at least one token
            double head = 0;
            size_t i = 0;
            while (i < kept && (i == 0 || head < top_p * sum)) head += weight[i++];
            kept = i;
            sum = head;
        }
        double place = u * sum;
        for (size_t i = 0; i < kept; i++)
            if ((place -= weight[i]) < 0) return order[i];
        while (kept > 1 && weight[kept - 1] == 0) kept--; // rounding left a rest: not to one of probability 0
        return order[kept - 1];
    }

  private:
    std::vector<int32_t> order;
    std::vector<double> weight;
};
