// An SAE on disk, and at work on a model: one safetensors file for each layer.
//
//   tensors    w_enc (F,C)  b_enc (F)  w_dec (F,C)  b_dec (C), for activations as the model has them: the
//              scale s they were trained at is folded in (w_enc s, b_dec/s, w_dec/s), a and f stay the same
//   metadata   model=moex-sae, kind, k, theta, site (residual: the stream behind the layer; mlp-in: what its
//              feed-forward layer reads), layer, tokens it has seen; fvu and l0, running means over the last
//              steps, and dead latents; checkpoint, the model's file, and weights, the hash of what stands in
//              it (weights_hash in results.h); untrained_seed, if the model had the untrained weights of a
//              seed instead
//
// An SAE is good for the weights it was trained on and for no others: what does not fit is refused.
#pragma once
#include "../bsp.h"
#include "sae.h"

inline const std::vector<std::string> sae_sites = {"residual", "mlp-in"};

struct SaeFile {
    std::string path, site, checkpoint, weights;
    size_t layer = 0;
    uint64_t tokens = 0;
    int64_t untrained_seed = -1; // -1: trained weights
    double fvu = 0, l0 = 0;
    size_t dead = 0;
    Sae sae;
};

void write_sae(const SaeFile& file, double scale);

// The file, or all layer_*.safetensors of a folder, in rising order of layer; of one width and site.
std::vector<SaeFile> read_saes(const std::string& path);

// Refuses SAEs of another model. file: of the checkpoint, c: its config.
void check_saes(const std::vector<SaeFile>& saes, const std::string& file, const Config& c);

// The activations (N,C) an SAE of that site is about, of the batch that the reader has just read.
const float* site_activations(const Reader& reader, const std::string& site, size_t layer);

// A reader whose layers' units are latents, of those layers that have an SAE. untrained: latents of random
// directions instead, as many kept for each token as the SAE has on average. The saes must outlive it.
Reader sae_reader(const Reader& reader, const std::vector<SaeFile>& saes, bool untrained = false,
                  uint64_t seed = 1);

// For bsp: those of a file or folder, which must be of that checkpoint.
SaeViews open_saes(const std::string& path, const std::string& checkpoint, const Config& config);
