// What removing an expert does, on test documents: the change of log p of the true next token, without it
// less with it, so what is below zero was of use. For every expert of every layer
//   off      it is never chosen: the next best takes its place
//   zero     its decoder rows and bias are 0: the choice stays, nothing comes of it
// each over all tokens, and off by concept, where its label holds (expert_labels.h) and where not; beside it,
// at the same tokens, the same with the layer's expert of the nearest load off. These reach later tokens,
// too.
//
// And at single positions (triggers: tokens that went to the expert and at which its label holds): w y of
// that expert is taken away at that one position of that layer, which is exact, since what stands before is
// untouched; and the cheap estimate of the same, direct logit attribution, what u = w y adds to the logit of
// the true token v at the true final residual r:
//   DLA = wte_v . (gamma (u - mean u)) / sd(r)
// with the correlation of the two, by which one learns when the cheap one may be trusted.
//
// How an expert is switched off: run/routing.h.
#pragma once
#include "../cpu/model.h"
#include "expert_labels.h"

struct EffectOptions {
    size_t rows = 40, triggers = 20; // test documents; triggers of an expert, at most
    uint64_t seed = 1;
};

struct ExpertEffect {
    Estimate off, zero, inside, outside;
    Estimate control, beyond;         // of the other expert where the label holds; inside less that
    size_t other = SIZE_MAX;          // which expert
    std::vector<Estimate> by_concept; // (concepts) off
    size_t triggers = 0;
    double at_position = undefined, dla = undefined; // means over the triggers
};
struct LayerEffects {
    std::vector<ExpertEffect> experts; // (E)
    Estimate agreement;                // Pearson's correlation of DLA and -(change at the position)
};

// log p of every token's successor in rows of T tokens: (rows, T - 1).
std::vector<float> next_log_p(Model& model, const std::vector<int32_t>& tokens, size_t T);

// What u (C) adds to the logit of a token.  wte_v gamma (C); rstd of the final LayerNorm at that place
double direct_logit(const float* u, const float* wte_v, const float* gamma, double rstd, size_t C);

// The label of expert (l, e) at a token: says(l, e, token). routed: of every layer.
std::vector<LayerEffects> expert_effects(const SafeTensorsFile& file, const Config& config,
                                         const std::vector<RoutedLayer>& routed, const Concepts& concepts,
                                         const std::function<bool(size_t l, size_t e, size_t token)>& says,
                                         const EffectOptions& options);
