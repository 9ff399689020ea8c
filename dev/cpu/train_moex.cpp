// train_moex_cpu: trains the reference model. The flags, the files and what is printed are those of the CUDA
// trainer; the loop reads from top to bottom in main().
#include "../lib/run.h"
#include "decode.h"

static std::string machine() {
    return strf("CPU, %d threads, vectors of %d bits", omp_get_max_threads(), 8 * vector_bytes);
}

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

static void init_weights(Model& model, const Run& run) {
    if (!run.init_file)
        init_parameters(run.config, model.table, model.weights.data, uint64_t(run.flags.seed));
    else if (run.flags.upcycle && !run.state_file)
        upcycle(*run.init_file, run.dense_config, run.config, model.table, model.weights.data,
                uint64_t(run.flags.seed));
    else
        read_block(*run.init_file, model.table, "", model.weights.data);
    if (!run.state_file) return;
    read_block(*run.state_file, model.table, "m.", model.moment_1.data);
    read_block(*run.state_file, model.table, "v.", model.moment_2.data);
}

static void save_checkpoint(const Model& model, const Run& run, const Options& options, Log& log) {
    check_finite(run, model.table, "weights", model.weights.data);
    check_finite(run, model.table, "first moments", model.moment_1.data);
    check_finite(run, model.table, "second moments", model.moment_2.data);
    log.sync();
    write_blocks<real>(state_path(run.flags.out, run.step), state_strings(run, options), model.table,
                       {{"m.", model.moment_1.data}, {"v.", model.moment_2.data}});
    save_model(model_path(run.flags.out, run.step), run.config, model.table, model.weights.data, run.step);
    printf("%scheckpoint %s\n", line_start(), model_path(run.flags.out, run.step).c_str());
    fflush(stdout);
}

// Mean loss over the first val_batches batches of the validation data; the load of every expert goes to the
// log.
static double evaluate(Model& model, Run& run, std::vector<int32_t>& x, std::vector<int32_t>& y, Log& log) {
    const Config& c = run.config;
    Loader& val = *run.val;
    const size_t B = std::min(run.B, val.samples), whole = val.samples / B;
    const size_t batches = run.flags.val_batches ? std::min(size_t(run.flags.val_batches), whole) : whole;
    std::vector<std::vector<double>> load(c.n_layer, std::vector<double>(c.n_expert));
    double loss = 0;
    Progress progress("validation", "batches", double(batches));
    val.position = 0;
    for (size_t i = 0; i < batches; i++) {
        val.next(B, x.data(), y.data());
        loss += forward(model, x.data(), y.data(), B, run.T).loss / batches;
        for (size_t l = 0; l < c.n_layer && c.moe(); l++)
            for (size_t j = 0; j < c.n_expert; j++)
                load[l][j] += double(model.a.h[l].begin[j + 1] - model.a.h[l].begin[j]) /
                              (batches * B * run.T * c.n_expert_active);
        progress.update(double(i + 1));
    }
    progress.finish(double(batches));
    log.evaluation(run.step, loss);
    if (c.moe()) log.expert_load(run.step, load);
    printf("%sstep %lld/%lld | val loss %.4f\n", line_start(), (long long)run.step,
           (long long)run.schedule.steps, loss);
    fflush(stdout);
    return loss;
}

static void print_sample(Decoder& decoder, const TextTokenizer& tokenizer, const Run& run) {
    const size_t length = std::min<size_t>(run.config.block_size, 200);
    Sampler sampler;
    decoder.refresh();
    int32_t token = tokenizer.start();
    std::string text = tokenizer.decode(token);
    for (size_t i = 0; i + 1 < length; i++) {
        decoder.step(token);
        token = sampler.choose(decoder.logits.data(), run.config.vocab_size,
                               random_uniform(run.flags.seed, random_stream("sample") + run.step, i));
        if (token == tokenizer.start() && run.config.tokenizer != "chess-32") break; // end of text
        text += tokenizer.decode(token);
    }
    printf("%s--- sample at step %lld\n%s\n---\n", line_start(), (long long)run.step,
           printable(text).c_str());
    fflush(stdout);
}

static int train(int argc, char** argv) {
    Flags flags;
    Options options("train_moex_cpu", "Trains a MoE-X language model on token shards, on the CPU.");
    flags.declare(options);
    if (!options.parse(argc, argv)) return 0;
    Run run = resolve_run(options, flags);
    const Config& c = run.config;
    const std::vector<Tensor> table = tensor_table(c);
    print_settings(run, table, machine(), memory_of(run, table));

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

    Model model(c, run.B, run.T);
    init_weights(model, run);
    Decoder decoder(model);
    std::vector<int32_t> x(run.B * run.T), y(run.B * run.T);
    AdamW adam;
    adam.weight_decay = run.flags.weight_decay;
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
            evaluate(model, run, x, y, *log);
        if (tokenizer && run.flags.sample_every > 0 && due(run.flags.sample_every))
            print_sample(decoder, *tokenizer, run);
        if ((due(run.flags.checkpoint_every) || stop_signal) && saved != run.step) {
            save_checkpoint(model, run, options, *log);
            saved = run.step;
        }
        if (last || stop_signal) break;

        const double begin = now_seconds();
        const real share = real(1) / run.accumulate;
        Losses losses;
        double l0 = 0;
        zero_gradients(model);
        for (size_t micro = 0; micro < run.accumulate; micro++) {
            run.train->next(run.B, x.data(), y.data());
            const Losses part = forward(model, x.data(), y.data(), run.B, run.T, share);
            losses.loss += part.loss / run.accumulate;
            losses.aux += part.aux / run.accumulate;
            l0 += mean_l0(model) / run.accumulate;
            backward(model, share * real(run.flags.aux_weight));
        }
        const double norm = gradient_norm(model);
        if (!losses.finite() || !std::isfinite(norm))
            fail_not_finite(run, table, model.weights.data, model.gradients.data, losses.loss, norm);
        adam.lr = run.schedule.at(run.step);
        update(model, adam, uint64_t(run.step + 1),
               run.flags.clip > 0 && norm > run.flags.clip ? run.flags.clip / norm : 1);

        const double seconds = now_seconds() - begin;
        training_seconds += seconds;
        const int64_t done = run.step + 1 - first;
        const StepRecord record = {uint64_t(run.step + 1),
                                   losses.loss,
                                   c.moe() ? losses.aux / c.n_layer : 0,
                                   norm,
                                   adam.lr,
                                   1e3 * seconds,
                                   run.tokens_per_step() / seconds,
                                   l0};
        log->step(record);
        print_step(record, run, training_seconds / done * (steps - run.step - 1));
    }
    if (stop_signal && run.step < steps) {
        printf("%sstopped at step %lld of %lld; to go on: %s\n", line_start(), (long long)run.step,
               (long long)steps, resume_command(argv[0], run.flags.out).c_str());
        return 128 + stop_signal;
    }
    printf("done: %s\n", model_path(run.flags.out, run.step).c_str());
    return 0;
}

int main(int argc, char** argv) {
    return run_main([&] { return train(argc, argv); });
}
