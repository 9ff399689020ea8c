// sample_cpu: samples from a checkpoint with the reference model, one prompt after the other, one token at a
// time.
#include "../run/sample_run.h"
#include "decode.h"
#include <map>
#include <memory>

// What a layer of Monet or PEER did: experts are single features there, counted once over the heads. Monet's
// is worth its routing score, PEER's its gate times its unit.
static std::map<size_t, double> features(const Config& c, const Decoder::Layer& h) {
    const size_t H = c.n_retrieve, k = c.n_top;
    std::map<size_t, double> values;
    for (size_t i = 0; i < H * k && c.peer(); i++)
        values[size_t(h.peer.unit[i])] += h.peer.w[i] * h.peer.f[i];
    for (size_t a = 0; a < H * k && c.monet(); a++)
        for (size_t b = H * k + a / k * k; b < H * k + (a / k + 1) * k; b++) {
            const MonetRouting& r = h.monet.routing;
            values[size_t(r.index[a]) * c.n_key + size_t(r.index[b])] += r.g[a] * r.g[b];
        }
    return values;
}

static std::vector<TraceLayer> trace(const Decoder& decoder, const Intervention& changes) {
    const Config& c = decoder.config;
    const size_t K = c.moe() ? c.n_expert_active : c.dense(), D = c.moe() ? c.d_expert : c.dense_width();
    std::vector<TraceLayer> layers;
    for (const Decoder::Layer& h : decoder.layers) {
        TraceLayer layer;
        for (size_t k = 0; k < K; k++) {
            const size_t expert = c.moe() ? size_t(h.choice[k]) : 0;
            const double weight = c.moe() ? h.weight[k] : 1;
            if (c.moe()) layer.experts.push_back({expert, weight});
            for (size_t u = 0; u < D; u++)
                if (h.z[k * D + u] > 0) {
                    const double factor = changes.factor(layers.size(), expert, u);
                    if (factor != 0) layer.units.push_back({expert, u, weight * factor * h.z[k * D + u]});
                }
        }
        for (const auto& [unit, value] : features(c, h))
            if (value > 0) layer.units.push_back({0, unit, value});
        layers.push_back(std::move(layer));
    }
    return layers;
}

int main(int argc, char** argv) {
    return run_main([&] {
        SampleFlags flags;
        Options options("sample_cpu", "Samples text or a game of chess from a MoE-X checkpoint, on the CPU.");
        flags.declare(options);
        if (!options.parse(argc, argv)) return 0;
        const std::vector<std::string> prompts = flags.texts();
        flags.ckpt = find_checkpoint(flags.ckpt);
        const SafeTensorsFile file(flags.ckpt);
        const Config config = read_config(file);
        const Intervention changes = flags.changes.read(config, flags.ckpt);
        Model model(changes.apply(config));
        read_block(file, model.table, "", model.weights.data);
        apply(model, changes);
        Decoder decoder(model);
        std::unique_ptr<Decoder> weak; // reads the same
        if (flags.contrast.given()) {
            const Intervention other = flags.contrast.weak(changes, config, flags.ckpt);
            weak = std::make_unique<Decoder>(model, other.K, other.routing);
        }
        const auto each = [&](auto f) {
            f(decoder);
            if (weak) f(*weak);
        };
        Engine engine;
        engine.restart = [&](size_t, const int32_t* tokens, size_t n) {
            each([&](Decoder& d) {
                if (d.position) d.refresh();
                for (size_t i = 0; i < n; i++) d.step(tokens[i]);
            });
        };
        engine.step = [&](const std::vector<int32_t>& tokens) {
            each([&](Decoder& d) { d.step(tokens[0]); });
        };
        engine.logits = [&](size_t) { return decoder.logits.data(); };
        if (weak) engine.weak_logits = [&](size_t) { return weak->logits.data(); };
        engine.trace = [&](size_t) { return trace(decoder, changes); };
        sample(flags, prompts, model.config, engine);
        return 0;
    });
}
