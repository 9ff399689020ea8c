// The units of a model at work. A Reader runs a model over batches of tokens and shows, layer by layer, what
// happened inside; units_cpu.h makes one of the CPU's reference, units_cuda.h of the CUDA program. Units of a
// layer are numbered as the rows of its mega-decoder: unit i of expert j is j*D + i; a dense layer has one
// expert. What has many units of which few are not zero (the latents of an SAE) comes as a list instead.
#pragma once
#include "../lib/terminal.h"
#include "../run/checkpoint.h"
#include "games.h"
#include <functional>

// Values w z of `count` units from `first` on as two each, a NaN as the first: f(unit, values, count, 1) for
// those that are positive and, `negative` units further on, for the others with their sign turned.
template <class F>
void split_signs(size_t first, const float* z, size_t count, float w, size_t negative, F f) {
    constexpr size_t most = 64;
    float up[most], down[most];
    for (size_t i = 0; i < count; i += most) {
        const size_t here = std::min(most, count - i);
        for (size_t j = 0; j < here; j++) {
            const float v = w * z[i + j];
            up[j] = v <= 0 ? 0 : v;
            down[j] = v < 0 ? -v : 0;
        }
        f(first + i, up, here, 1.0f);
        f(negative + first + i, down, here, 1.0f);
    }
}

// What one layer did with the last batch of N = B*T tokens. Valid until the next batch.
struct LayerUnits {
    size_t E, K, D;               // dense: 1, 1 and its width
    const float* x;               // (N,C) the layer's input, after ln_2
    const float* z;               // (N*K,D) units after the activation, by slot
    const float* weight;          // (N,K) gate weights; dense: null, all are 1
    const int32_t *choice, *slot; // (N,K) experts in falling order of score, and the row of z; dense: null
    const float *g, *mu, *sd;     // (N,E) router; mu and sd null for topk, all three for dense
    // Or, where begin is not null, D units in all; those of token n that are not zero are [begin[n],
    // begin[n+1]).
    const size_t* begin = nullptr;  // (N+1)
    const uint32_t* unit = nullptr; // in rising order within a token
    const float* value = nullptr;
    // Not 0: each of so many units is two, the second that many further on: max(v, 0) and max(-v, 0).
    size_t split = 0;

    // f(unit, z, count, w) for every expert of token n: z_j of the count units from that one on, and the gate
    // weight w_j, 1 if not gated; for every unit of a list.
    template <class F> void each_expert(size_t n, bool gated, F f) const {
        if (split)
            each_signed(n, gated, [&](size_t first, const float* row, size_t count, float w) {
                split_signs(first, row, count, w, split, f);
            });
        else
            each_signed(n, gated, f);
    }
    // f(unit, value) for every unit of token n that is not zero: w_j z_j, or z_j if not gated.
    template <class F> void each(size_t n, bool gated, F f) const {
        each_expert(n, gated, [&](size_t first, const float* row, size_t count, float w) {
            for (size_t i = 0; i < count; i++)
                if (row[i] != 0) f(first + i, w * row[i]);
        });
    }

  private:
    template <class F> void each_signed(size_t n, bool gated, F f) const {
        if (begin) {
            for (size_t i = begin[n]; i < begin[n + 1]; i++) f(unit[i], value + i, 1, 1.0f);
            return;
        }
        for (size_t k = 0; k < K; k++) {
            const size_t first = choice ? choice[n * K + k] * D : 0;
            f(first, z + (slot ? size_t(slot[n * K + k]) : n) * D, D,
              gated && weight ? weight[n * K + k] : 1.0f);
        }
    }
};

// A way to look at a layer: what is taken for its units. The first of a model is what it is judged by.
struct UnitView {
    std::string name;
    size_t units;                                  // of a layer
    std::function<LayerUnits(size_t layer)> layer; // of the batch just read
};

struct Reader {
    Config config;
    std::vector<Tensor> table;
    size_t max_B = 0, max_T = 0;                                         // of a batch
    std::function<float*()> weights;                                     // the fp32 block, on the host
    std::function<void()> changed;                                       // call it after writing there
    std::function<void(const int32_t* tokens, size_t B, size_t T)> read; // tokens (B,T)
    std::function<LayerUnits(size_t layer)> layer;                       // of the batch just read
    std::vector<UnitView> views;                                         // of the model, the first as `layer`
    std::function<const float*(size_t layer)> residual; // (N,C) the stream behind a layer, of that batch
    std::function<const float*()> logits;               // (N,V) of the batch just read

    size_t n_units = 0; // of a layer, as `layer` shows them

    size_t units() const { return n_units; }
};

// The same model, its layers looked at in another way: by the features of a name ("": the first), each of
// them as two by the sign of its value if split. where: the model's file, for messages.
inline Reader view_reader(const Reader& reader, const std::string& name, bool split,
                          const std::string& where) {
    const UnitView* found = nullptr;
    std::string names;
    for (const UnitView& f : reader.views) {
        if (f.name == name || (name.empty() && !found)) found = &f;
        names += (names.empty() ? "" : " or ") + f.name;
    }
    if (!found)
        fail("--features: %s: a layer has no %s, expected %s", where.c_str(), quoted(name).c_str(),
             names.c_str());
    Reader out = reader;
    out.n_units = split ? 2 * found->units : found->units;
    out.layer = [split, view = *found](size_t l) {
        LayerUnits units = view.layer(l);
        if (split) units.split = view.units;
        return units;
    };
    return out;
}

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
