// A mixture of experts started from a trained dense model ("upcycling", after Komatsuzaki et al.,
// arXiv 2212.05055). Everything but the feed-forward layers is copied. Expert j takes D of the W dense units:
//   D < W   a random subset, seeded; its rows of W_dec are scaled by W/D, since the gate weights sum to 1
//           and each expert must stand for all W units
//   D = W   all of them, plus noise of 1% of each matrix's rms: identical experts would tie in the router
// b_dec is the dense output bias. A topk router starts at random.
#pragma once
#include "checkpoint.h"
#include <numeric>

// The config of the moe model: the dense one's, with what the command line changed already in `wanted`.
inline void check_upcycle(const Config& dense, const Config& wanted, const std::string& where) {
    if (dense.moe())
        fail("%s: --upcycle starts from a dense model, this one is a mixture of experts already",
             where.c_str());
    if (!wanted.moe()) fail("--upcycle makes a mixture of experts: --ffn dense does not go with it");
    if (wanted.d_expert > dense.dense_width())
        fail("--d-expert %zu: an upcycled expert has at most the %zu units of the dense layer",
             wanted.d_expert, dense.dense_width());
    if (wanted.n_layer != dense.n_layer || wanted.n_head != dense.n_head || wanted.n_embd != dense.n_embd ||
        wanted.block_size != dense.block_size || wanted.vocab_size != dense.vocab_size)
        fail("--upcycle keeps layers, heads, channels, positions and vocabulary as they are in %s",
             where.c_str());
}

// weights: a block of the table of `config`, filled from the dense checkpoint.
template <class T> void upcycle(const SafeTensorsFile& file, const Config& dense, const Config& config,
                                const std::vector<Tensor>& table, T* weights, uint64_t seed) {
    const size_t C = config.n_embd, E = config.n_expert, D = config.d_expert, W = dense.dense_width();
    init_parameters(config, table, weights, seed); // what has no source: a topk router
    for (const Tensor& t : table)
        if (const SafeTensor* source = file.find(t.name)) read_floats(*source, weights + t.offset);
    Parameters<T> p = carve_parameters(config, table, weights);
    for (size_t l = 0; l < config.n_layer; l++) {
        auto dense_tensor = [&](const char* name) {
            const SafeTensor& t = *file.find("h." + std::to_string(l) + ".mlp." + name);
            std::vector<T> values(t.elements());
            read_floats(t, values.data());
            return values;
        };
        const std::vector<T> fc = dense_tensor("c_fc.weight"),
                             fc_bias = dense_tensor("c_fc.bias"); // (W,C) (W)
        const std::vector<T> proj = dense_tensor("c_proj.weight"),
                             proj_bias = dense_tensor("c_proj.bias"); // (C,W) (C)
        auto rms = [](const std::vector<T>& values) {
            double sum = 0;
            for (const T x : values) sum += double(x) * x;
            return std::sqrt(sum / values.size());
        };
        const double noise = D == W ? 0.01 : 0, fc_noise = noise * rms(fc), proj_noise = noise * rms(proj);
        for (size_t j = 0; j < E; j++) {
            Random random{seed, random_stream("upcycle") + l * E + j};
            std::vector<size_t> unit(W);
            std::iota(unit.begin(), unit.end(), size_t(0));
            for (size_t i = 0; i < D && D < W; i++) std::swap(unit[i], unit[i + random.below(W - i)]);
            std::sort(unit.begin(),
                      unit.begin() + D); // the order of units means nothing; a stable one reads better
            const uint64_t enc_stream = random.stream ^ 0x656E63, dec_stream = random.stream ^ 0x646563;
            for (size_t i = 0; i < D; i++) {
                for (size_t c = 0; c < C; c++) {
                    const size_t at = (j * D + i) * C + c, index = i * C + c;
                    p.h[l].w_enc[at] =
                        T(fc[unit[i] * C + c] + fc_noise * random_normal(seed, enc_stream, index));
                    p.h[l].w_dec[at] =
                        T(double(W) / D *
                          (proj[c * W + unit[i]] + proj_noise * random_normal(seed, dec_stream, index)));
                }
                p.h[l].b_enc[j * D + i] = fc_bias[unit[i]];
            }
            std::copy(proj_bias.begin(), proj_bias.end(), p.h[l].b_dec + j * C);
        }
    }
}
