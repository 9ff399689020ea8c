// A Reader (units.h) that runs the CUDA program's forward pass and copies what a layer did to the host, in
// fp32; the views are those of units_cpu.h. For .cu files that have included train_moex.cu as a library
// before.
#pragma once
#include "units.h"
#include <memory>

// A model on the GPU and the host's copy of what was asked for last.
struct CudaUnits {
    Model model;
    std::vector<float> weights, logits, residual, x, z, weight, g, mu, sd;
    std::vector<int32_t> choice, slot;
    std::vector<floatX> raw;

    CudaUnits(const Config& config, size_t B, size_t T) : model(config, B, T, 0, false) {
        weights.resize(model.weights.count);
    }
    void copy(std::vector<float>& to, const floatX* from, size_t count) {
        raw.resize(count);
        cuda_check(cudaMemcpy(raw.data(), from, count * sizeof(floatX), cudaMemcpyDeviceToHost));
        to.assign(raw.begin(), raw.end());
    }
    template <class From, class To>
    static void copy_plain(std::vector<To>& to, const From* from, size_t count) {
        static_assert(sizeof(From) == sizeof(To));
        to.resize(count);
        cuda_check(cudaMemcpy(to.data(), from, count * sizeof(To), cudaMemcpyDeviceToHost));
    }
};

// For batches of up to B x T tokens.
inline Reader cuda_reader(const Config& config, size_t B, size_t T) {
    const auto gpu = std::make_shared<CudaUnits>(config, B, T);
    Reader reader;
    reader.config = config;
    reader.table = gpu->model.table;
    reader.max_B = B;
    reader.max_T = T;
    reader.weights = [=] { return gpu->weights.data(); };
    reader.changed = [=] { load_weights(gpu->model, gpu->weights.data(), 0, 0); };
    reader.read = [=](const int32_t* tokens, size_t b, size_t t) {
        upload_batch(gpu->model, tokens, nullptr, b, t, false);
        zero_totals(gpu->model);
        forward(gpu->model);
        cuda_check(cudaStreamSynchronize(gpu->model.gpu.stream));
    };
    reader.logits = [=] {
        const size_t V = config.vocab_size, Vp = gpu->model.shape().padded_vocab();
        const size_t N = gpu->model.B * gpu->model.T;
        gpu->copy(gpu->logits, gpu->model.a.logits, N * Vp);
        for (size_t n = 0; n < N; n++) // the padding goes: (N,Vp) to (N,V)
            std::copy(&gpu->logits[n * Vp], &gpu->logits[n * Vp] + V, &gpu->logits[n * V]);
        return gpu->logits.data();
    };
    reader.residual = [=](size_t l) {
        gpu->copy(gpu->residual, gpu->model.a.h[l].out, gpu->model.B * gpu->model.T * config.n_embd);
        return gpu->residual.data();
    };
    const auto dense_view = [=](floatX* LayerActivations::*z) {
        return [=](size_t l) {
            const size_t N = gpu->model.B * gpu->model.T;
            gpu->copy(gpu->x, gpu->model.a.h[l].ln_2, N * config.n_embd);
            gpu->copy(gpu->z, gpu->model.a.h[l].*z, N * config.dense_width());
            LayerUnits units{};
            units.E = units.K = 1;
            units.D = config.dense_width();
            units.x = gpu->x.data();
            units.z = gpu->z.data();
            return units;
        };
    };
    reader.layer = [=](size_t l) {
        const Config& c = config;
        const LayerActivations& h = gpu->model.a.h[l];
        const size_t N = gpu->model.B * gpu->model.T, E = c.n_expert, K = c.n_expert_active;
        gpu->copy(gpu->x, h.ln_2, N * c.n_embd);
        if (!c.moe()) return dense_view(c.solu() ? &LayerActivations::u : &LayerActivations::z)(l);
        gpu->copy(gpu->z, h.z, N * c.dense_width());
        LayerUnits units{};
        units.x = gpu->x.data();
        units.z = gpu->z.data();
        gpu->copy_plain(gpu->weight, h.router.weight, N * K);
        gpu->copy_plain(gpu->choice, h.router.choice, N * K);
        gpu->copy_plain(gpu->slot, h.router.slot, N * K);
        gpu->copy_plain(gpu->g, h.router.g, N * E);
        units.E = E;
        units.K = K;
        units.D = c.d_expert;
        units.weight = gpu->weight.data();
        units.g = gpu->g.data();
        units.choice = gpu->choice.data();
        units.slot = gpu->slot.data();
        if (c.topk()) return units;
        gpu->copy_plain(gpu->mu, h.router.mu, N * E);
        gpu->copy_plain(gpu->sd, h.router.sd, N * E);
        units.mu = gpu->mu.data();
        units.sd = gpu->sd.data();
        return units;
    };
    reader.n_units = config.moe() ? config.n_expert * config.d_expert : config.dense_width();
    reader.views = {{config.solu() ? "pre" : "units", reader.n_units, reader.layer}};
    if (config.solu()) reader.views.push_back({"post", reader.n_units, dense_view(&LayerActivations::z)});
    if (config.geglu())
        reader.views.push_back({"gate", reader.n_units, [=](size_t l) {
                                    const LayerUnits units = dense_view(&LayerActivations::gate)(l);
                                    for (float& a : gpu->z) a = gelu(a);
                                    return units;
                                }});
    return reader;
}
