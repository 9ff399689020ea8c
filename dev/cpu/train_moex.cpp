// train_moex_cpu: trains the reference model. The flags, the files, the loop and what is printed are those of
// the CUDA trainer (dev/run/train_run.h); here stands what an optimizer step is.
#include "../lib/stop.h"
#include "../run/train_run.h"
#include "decode.h"

// Memory by family, and a refusal when it is more than the machine has.
static std::vector<std::pair<const char*, double>> memory_of(const Run& run,
                                                             const std::vector<Tensor>& table) {
    const double parameters = double(block_elements(table)) * sizeof(real);
    const double activations = double(Model::activation_elements(run.config, run.B, run.T)) * sizeof(real);
    const double needed = 4 * parameters + activations,
                 there = double(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
    if (needed > there)
        fail("this run needs %s of memory (activations %s), the machine has %s: a smaller --batch would help",
             human_bytes(needed).c_str(), human_bytes(activations).c_str(), human_bytes(there).c_str());
    return {{"weights", parameters},
            {"gradients", parameters},
            {"optimizer moments", 2 * parameters},
            {"activations", activations}};
}

static StepResult train_step(Model& model, Run& run, std::vector<int32_t>& tokens,
                             std::vector<int32_t>& targets, uint64_t t, double lr) {
    const real share = real(1) / run.accumulate;
    StepResult result = {};
    zero_gradients(model);
    for (size_t micro = 0; micro < run.accumulate; micro++) {
        run.train->next(run.B, tokens.data(), targets.data());
        const Losses part = forward(model, tokens.data(), targets.data(), run.B, run.T, share);
        result.loss += part.loss / run.accumulate;
        result.aux += part.aux / run.accumulate;
        result.l0 += mean_l0(model) / run.accumulate;
        backward(model, LossWeights(share * real(run.flags.aux_weight), share * real(run.l0_weight),
                                    share * real(run.flags.l1_weight)));
    }
    result.norm = gradient_norm(model);
    result.stop = stop_signal;
    if (!result.finite()) return result;
    AdamW adam;
    adam.lr = lr, adam.weight_decay = run.flags.weight_decay;
    update(model, adam, t,
           run.flags.clip > 0 && result.norm > run.flags.clip ? run.flags.clip / result.norm : 1);
    update_running(model, run.flags.balance_rate);
    if (run.flags.l0_target > 0)
        run.l0_weight =
            next_l0_weight(run.l0_weight, result.l0, run.flags.l0_target, int64_t(t), run.schedule.warmup);
    return result;
}

static int train(int argc, char** argv) {
    Flags flags;
    Options options("train_moex_cpu", "Trains a MoE-X language model on token shards, on the CPU.");
    flags.declare(options);
    if (!options.parse(argc, argv)) return 0;
    Run run = resolve_run(options, flags);
    const std::vector<Tensor> table = tensor_table(run.config);
    print_settings(run, table, strf("CPU, %s, vectors of %d bits", threads_text().c_str(), 8 * vector_bytes),
                   memory_of(run, table));

    Model model(run.config, run.B, run.T);
    for (const Tensor& t : table) initial_weights(run, t, model.weights.data + t.offset);
    if (run.state_file) {
        read_block(*run.state_file, trained_tensors(table), "m.", model.moment_1.data);
        read_block(*run.state_file, trained_tensors(table), "v.", model.moment_2.data);
    }
    Decoder decoder(model);
    std::vector<int32_t> tokens(run.B * run.T), targets(run.B * run.T);
    TrainingEngine engine;
    engine.step = [&](uint64_t t, double lr) { return train_step(model, run, tokens, targets, t, lr); };
    engine.loss = [&](const int32_t* x, const int32_t* y, size_t B) {
        return forward(model, x, y, B, run.T).loss;
    };
    engine.load = [&](size_t l, size_t j) {
        return size_t(model.a.h[l].begin[j + 1] - model.a.h[l].begin[j]);
    };
    engine.restart = [&] { decoder.refresh(); };
    engine.read = [&](int32_t token) { return decoder.step(token), decoder.logits.data(); };
    engine.block = [&](Family family) -> const float* {
        return family == Family::weights     ? model.weights.data
               : family == Family::gradients ? model.gradients.data
               : family == Family::moment_1  ? model.moment_1.data
                                             : model.moment_2.data;
    };
    return run_training(run, options, table, engine, {argv[0]});
}

int main(int argc, char** argv) {
    return run_main([&] { return train(argc, argv); });
}
