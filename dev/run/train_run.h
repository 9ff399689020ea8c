// Training, apart from the arithmetic: the loop from step to step with its validations, samples, checkpoints
// and log. The CPU and the CUDA trainer share it and bring a TrainingEngine, which takes one optimizer step
// at a time.
#pragma once
#include "run.h"
#include <functional>

enum class Family { weights, gradients, moment_1, moment_2 };

struct StepResult {
    double loss, aux, norm, l0; // aux: summed over the layers; l0: active units per token, mean over the layers
    bool finite() const { return std::isfinite(loss) && std::isfinite(aux) && std::isfinite(norm); }
};

struct TrainingEngine {
    // Optimizer step t = 1, 2, ... on the next micro-batches of run.train. Where the result is not finite the
    // weights and moments are left as they were.
    std::function<StepResult(uint64_t t, double lr)> step;
    // Mean cross-entropy of a batch, tokens and targets (B,T); without gradients.
    std::function<double(const int32_t* tokens, const int32_t* targets, size_t B)> loss;
    // How many (token, expert) pairs of that batch went to expert j of layer l.
    std::function<size_t(size_t l, size_t j)> load;
    // Forgets the text read so far; reads a token and returns the logits (V) of the next one.
    std::function<void()> restart;
    std::function<const float*(int32_t token)> read;
    // A block of parameters in memory of the host, laid out as the table says, until the next step.
    std::function<const float*(Family)> block;
};

// Initial weights: a new model's, a checkpoint's, or those of a dense checkpoint cut into experts.
inline void initial_weights(const Run& run, const std::vector<Tensor>& table, float* weights) {
    if (!run.init_file)
        init_parameters(run.config, table, weights, uint64_t(run.flags.seed));
    else if (run.flags.upcycle && !run.state_file)
        upcycle(*run.init_file, run.dense_config, run.config, table, weights, uint64_t(run.flags.seed));
    else
        read_block(*run.init_file, table, "", weights);
}

inline void save_checkpoint(const Run& run, const Options& options, const std::vector<Tensor>& table,
                            const TrainingEngine& engine, Log& log) {
    const float *weights = engine.block(Family::weights), *moment_1 = engine.block(Family::moment_1),
                *moment_2 = engine.block(Family::moment_2);
    check_finite(run, table, "weights", weights);
    check_finite(run, table, "first moments", moment_1);
    check_finite(run, table, "second moments", moment_2);
    log.sync();
    write_blocks<float>(state_path(run.flags.out, run.step), state_strings(run, options), table,
                        {{"m.", moment_1}, {"v.", moment_2}});
    save_model(model_path(run.flags.out, run.step), run.config, table, weights, run.step);
    printf("%scheckpoint %s\n", line_start(), model_path(run.flags.out, run.step).c_str());
    fflush(stdout);
}

// Mean loss over the first val_batches batches of the validation data; the load of every expert goes to the
// log.
inline void validate(Run& run, const TrainingEngine& engine, Log& log) {
    const Config& c = run.config;
    Loader& val = *run.val;
    const size_t B = std::min(run.B, val.samples), whole = val.samples / B;
    const size_t batches = run.flags.val_batches ? std::min(size_t(run.flags.val_batches), whole) : whole;
    std::vector<int32_t> tokens(B * run.T), targets(B * run.T);
    std::vector<std::vector<double>> load(c.n_layer, std::vector<double>(c.n_expert));
    double loss = 0;
    Progress progress("validation", "batches", double(batches));
    val.position = 0;
    for (size_t i = 0; i < batches; i++) {
        val.next(B, tokens.data(), targets.data());
        loss += engine.loss(tokens.data(), targets.data(), B) / batches;
        for (size_t l = 0; l < c.n_layer && c.moe(); l++)
            for (size_t j = 0; j < c.n_expert; j++)
                load[l][j] += double(engine.load(l, j)) / (batches * B * run.T * c.n_expert_active);
        progress.update(double(i + 1));
    }
    progress.finish(double(batches));
    log.evaluation(run.step, loss);
    if (c.moe()) log.expert_load(run.step, load);
    printf("%sstep %lld/%lld | val loss %.4f\n", line_start(), (long long)run.step,
           (long long)run.schedule.steps, loss);
    fflush(stdout);
}

inline void print_sample(const Run& run, const TrainingEngine& engine, const TextTokenizer& tokenizer) {
    const size_t length = std::min<size_t>(run.config.block_size, 200);
    Sampler sampler;
    engine.restart();
    int32_t token = tokenizer.start();
    std::string text = tokenizer.decode(token);
    for (size_t i = 0; i + 1 < length; i++) {
        token = sampler.choose(engine.read(token), run.config.vocab_size,
                               random_uniform(run.flags.seed, random_stream("sample") + run.step, i));
        if (token == tokenizer.start() && run.config.tokenizer != "chess-32") break; // end of text
        text += tokenizer.decode(token);
    }
    printf("%s--- sample at step %lld\n%s\n---\n", line_start(), (long long)run.step,
           printable(text).c_str());
    fflush(stdout);
}

// The loop. Returns the exit status of the program, whose name is for the command that goes on with the run.
inline int run_training(Run& run, const Options& options, const std::vector<Tensor>& table,
                        const TrainingEngine& engine, const char* program) {
    const Config& c = run.config;
    const bool can_print =
        c.tokenizer == "chess-32" || c.tokenizer == "bytes" || !run.flags.tokenizer.empty();
    std::optional<TextTokenizer> tokenizer;
    if (can_print) tokenizer = TextTokenizer::load(tokenizer_from_name(c.tokenizer), run.flags.tokenizer);
    make_directories(run.flags.out);
    std::optional<Log> log;
    if (run.state_file)
        log.emplace(run.flags.out, uint64_t(run.step));
    else
        log.emplace(run.flags.out);
    remove_unfinished(run.flags.out);
    stop_on_signals();

    const int64_t first = run.step, steps = run.schedule.steps;
    double training_seconds = 0;
    int64_t saved = run.state_file ? run.step : -1;
    for (;; run.step++) {
        const bool last = run.step == steps;
        auto due = [&](int64_t every) {
            return run.step > first && (last || (every > 0 && run.step % every == 0));
        };
        if (run.val && (due(run.flags.val_every) || (run.step == 0 && !run.state_file)))
            validate(run, engine, *log);
        if (tokenizer && run.flags.sample_every > 0 && due(run.flags.sample_every))
            print_sample(run, engine, *tokenizer);
        if ((due(run.flags.checkpoint_every) || stop_signal) && saved != run.step) {
            save_checkpoint(run, options, table, engine, *log);
            saved = run.step;
        }
        if (last || stop_signal) break;

        const double begin = now_seconds(), lr = run.schedule.at(run.step);
        const StepResult result = engine.step(uint64_t(run.step + 1), lr);
        if (!result.finite())
            fail_not_finite(run, table, engine.block(Family::weights), engine.block(Family::gradients),
                            result.loss, result.norm);
        const double seconds = now_seconds() - begin;
        training_seconds += seconds;
        const int64_t done = run.step + 1 - first;
        const StepRecord record = {uint64_t(run.step + 1),
                                   result.loss,
                                   c.moe() ? result.aux / c.n_layer : 0,
                                   result.norm,
                                   lr,
                                   1e3 * seconds,
                                   run.tokens_per_step() / seconds,
                                   result.l0};
        log->step(record);
        print_step(record, run, training_seconds / done * (steps - run.step - 1));
    }
    if (stop_signal && run.step < steps) {
        printf("%sstopped at step %lld of %lld; to go on: %s\n", line_start(), (long long)run.step,
               (long long)steps, resume_command(program, run.flags.out).c_str());
        return 128 + stop_signal;
    }
    printf("done: %s\n", model_path(run.flags.out, run.step).c_str());
    return 0;
}
