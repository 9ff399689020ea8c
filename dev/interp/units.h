// The units of a model at work. A Reader runs a model over batches of tokens and shows, layer by layer, what
// happened inside; units_cpu.h makes one of the CPU's reference, units_cuda.h of the CUDA program. Units of a
// layer are numbered as the rows of its mega-decoder: unit i of expert j is j*D + i; a dense layer has one
// expert.
#pragma once
#include "../lib/terminal.h"
#include "../run/checkpoint.h"
#include "games.h"
#include <functional>

// What one layer did with the last batch of N = B*T tokens. Valid until the next batch.
struct LayerUnits {
    size_t E, K, D;               // dense: 1, 1 and its width
    const float* x;               // (N,C) the layer's input, after ln_2
    const float* z;               // (N*K,D) units after the activation, by slot
    const float* weight;          // (N,K) gate weights; dense: null, all are 1
    const int32_t *choice, *slot; // (N,K) experts in falling order of score, and the row of z; dense: null
    const float *g, *mu, *sd;     // (N,E) router; mu and sd null for topk, all three for dense

    // f(unit, z, D, w) for every expert of token n: z_j (D) of the units from that one on, and the gate
    // weight w_j, 1 if not gated.
    template <class F> void each_expert(size_t n, bool gated, F f) const {
        for (size_t k = 0; k < K; k++) {
            const size_t first = choice ? choice[n * K + k] * D : 0;
            f(first, z + (slot ? size_t(slot[n * K + k]) : n) * D, D,
              gated && weight ? weight[n * K + k] : 1.0f);
        }
    }
    // f(unit, value) for every unit of token n that is not zero: w_j z_j, or z_j if not gated.
    template <class F> void each(size_t n, bool gated, F f) const {
        each_expert(n, gated, [&](size_t first, const float* row, size_t, float w) {
            for (size_t i = 0; i < D; i++)
                if (row[i] != 0) f(first + i, w * row[i]);
        });
    }
};

struct Reader {
    Config config;
    std::vector<Tensor> table;
    size_t max_B = 0, max_T = 0;                                         // of a batch
    std::function<float*()> weights;                                     // the fp32 block, on the host
    std::function<void()> changed;                                       // call it after writing there
    std::function<void(const int32_t* tokens, size_t B, size_t T)> read; // tokens (B,T)
    std::function<LayerUnits(size_t layer)> layer;                       // of the batch just read
    std::function<const float*()> logits;                                // (N,V) of the batch just read

    size_t units() const { // of a layer
        return config.moe() ? config.n_expert * config.d_expert : config.dense_width();
    }
};

// reader = make_reader(config, B, T): a reader of that model for batches of up to B x T tokens.
using MakeReader = std::function<Reader(const Config& config, size_t B, size_t T)>;

// Weights from a checkpoint of the reader's config, or the untrained ones that a seed gives.
inline void load_weights(Reader& reader, const SafeTensorsFile& file) {
    read_block(file, reader.table, "", reader.weights());
    reader.changed();
}
inline void untrained_weights(Reader& reader, uint64_t seed) {
    init_parameters(reader.config, reader.table, reader.weights(), seed);
    reader.changed();
}
