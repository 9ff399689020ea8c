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
    if (!dense.dense() || dense.geglu() || dense.solu())
        fail("%s: --upcycle starts from a dense model of act relu or gelu, this one is %s, act %s",
             where.c_str(), dense.ffn.c_str(), dense.act.c_str());
    if (!wanted.moe()) fail("--upcycle makes a mixture of experts: --ffn dense does not go with it");
    if (wanted.d_expert > dense.dense_width())
        fail("--d-expert %zu: an upcycled expert has at most the %zu units of the dense layer",
             wanted.d_expert, dense.dense_width());
    if (wanted.n_layer != dense.n_layer || wanted.n_head != dense.n_head || wanted.n_embd != dense.n_embd ||
        wanted.block_size != dense.block_size || wanted.vocab_size != dense.vocab_size)
        fail("--upcycle keeps layers, heads, channels, positions and vocabulary as they are in %s",
             where.c_str());
}

// The units of the dense layer that expert j of layer l takes.
inline std::vector<size_t> upcycled_units(size_t W, size_t D, Random random) {
    std::vector<size_t> unit(W);
    std::iota(unit.begin(), unit.end(), size_t(0));
    for (size_t i = 0; i < D && D < W; i++) std::swap(unit[i], unit[i + random.below(W - i)]);
    unit.resize(D);
    std::sort(unit.begin(), unit.end()); // the order of units means nothing; a stable one reads better
    return unit;
}

// A tensor of `config`, from the dense checkpoint.
template <class T> void upcycle_tensor(const SafeTensorsFile& file, const Config& dense, const Config& config,
                                       const Tensor& t, T* out, uint64_t seed) {
    const size_t C = config.n_embd, E = config.n_expert, D = config.d_expert, W = dense.dense_width();
    if (const SafeTensor* source = file.find(t.name)) return read_floats(*source, out);
    const std::string layer = t.name.substr(0, t.name.find("moe.")), part = t.name.substr(layer.size());
    if (part == "moe.router" || !t.trained) return init_tensor(config, t, out, seed); // they have no source
    const bool encoder = part == "moe.w_enc", matrix = encoder || part == "moe.w_dec";
    const SafeTensor& source = *file.find(layer + (part == "moe.w_enc"   ? "mlp.c_fc.weight"   // (W,C)
                                                   : part == "moe.b_enc" ? "mlp.c_fc.bias"     // (W)
                                                   : matrix              ? "mlp.c_proj.weight" // (C,W)
                                                                         : "mlp.c_proj.bias"));             // (C)
    std::vector<T> from(source.elements());
    read_floats(source, from.data());
    double squares = 0;
    for (const T x : from) squares += double(x) * x;
    const double noise = D == W ? 0.01 * std::sqrt(squares / from.size()) : 0;
    const size_t l = size_t(std::stoull(layer.substr(2)));
    for (size_t j = 0; j < E; j++) {
        const Random random{seed, random_stream("upcycle") + l * E + j};
        const std::vector<size_t> unit = upcycled_units(W, D, random);
        const uint64_t stream = random.stream ^ (encoder ? 0x656E63 : 0x646563);
        if (part == "moe.b_dec") std::copy(from.begin(), from.end(), out + j * C);
        if (part == "moe.b_enc")
            for (size_t i = 0; i < D; i++) out[j * D + i] = from[unit[i]];
        for (size_t i = 0; i < D && matrix; i++)
            for (size_t c = 0; c < C; c++) {
                const double w = encoder ? from[unit[i] * C + c] : from[c * W + unit[i]];
                const double noisy = w + noise * random_normal(seed, stream, i * C + c);
                out[(j * D + i) * C + c] = T(encoder ? noisy : double(W) / D * noisy);
            }
    }
}
// weights: a block of the table.
template <class T> void upcycle(const SafeTensorsFile& file, const Config& dense, const Config& config,
                                const std::vector<Tensor>& table, T* weights, uint64_t seed) {
    for (const Tensor& t : table) upcycle_tensor(file, dense, config, t, weights + t.offset, seed);
}
