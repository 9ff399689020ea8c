// What SAEs are worth on held-out data, and what the model is worth with what they make of its activations in
// their place.
#pragma once
#include "../../../data/loader.h"
#include "sae_file.h"

struct SaeEvaluation {
    size_t layer = 0;
    double fvu = 0, l0 = 0;
    size_t dead = 0;                              // latents that fire nowhere in the data
    double loss = 0, loss_sae = 0, loss_zero = 0; // as it is; with xh, with 0 in the activations' place

    // The share of what the activations are worth that xh keeps.
    double recovered() const { return (loss_zero - loss_sae) / (loss_zero - loss); }
};

// Each of the SAEs on the first rows of T tokens.
std::vector<SaeEvaluation> evaluate_saes(Model& model, const std::vector<SaeFile>& saes, Loader& data,
                                         size_t rows, size_t T);
