// The loop of train_run.h, at the end, and before it what it does now and then: clean up the folder, look for
// numbers that are not finite, save, validate, sample.
#include "train_run.h"
#include "../lib/stop.h"
#include "sampler.h"

// ---------------------------------------------------------------------------------------------------------
// The folder of a run

// The command that goes on with a run, ready for a POSIX shell.
static std::string resume_command(const char* program, const std::string& out) {
    auto word = [](const std::string& text) {
        if (text.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+-./") ==
            std::string::npos)
            return text;
        std::string quotes = "'";
        for (const char c : text) quotes += c == '\'' ? std::string("'\\''") : std::string(1, c);
        return quotes + "'";
    };
    return word(program) + " --resume --out " + word(out);
}

// A killed run may leave a checkpoint it was writing, under a temporary name. The run that holds the folder
// removes it.
static void remove_unfinished(const std::string& dir) {
    for (const std::string& name : file_names(dir))
        if (name.find(".safetensors.tmp.") != std::string::npos) unlink((dir + "/" + name).c_str());
}

// --keep: once the checkpoint of `step` is on the disk, removes those before it, but for the newest `keep`,
// every multiple of `keep_every` (0: none), and the one that the run itself has come from (-1: none). The
// state goes first: a model alone is never taken for a checkpoint, and found again the next time.
static void remove_old_checkpoints(const std::string& dir, int64_t step, int64_t keep, int64_t keep_every,
                                   int64_t resumed_from) {
    int64_t newer = 0;
    for (const int64_t old : checkpoint_steps(dir)) { // newest first
        if (old > step || newer++ < keep) continue;
        if (old == resumed_from || (keep_every > 0 && old % keep_every == 0)) continue;
        unlink(state_path(dir, old).c_str());
        unlink(model_path(dir, old).c_str());
    }
}

// ---------------------------------------------------------------------------------------------------------
// Numbers that run away

// The name of the first tensor of a block that holds a number that is not finite, or nullptr.
static const char* first_not_finite(const std::vector<Tensor>& table, const float* block) {
    for (const Tensor& t : table)
        for (size_t i = 0; i < t.count; i++)
            if (!std::isfinite(block[t.offset + i])) return t.name.c_str();
    return nullptr;
}

// What every message about such numbers ends with.
static std::string what_is_left(const Run& run) {
    const int64_t good = newest_checkpoint(run.flags.out);
    return "nothing was overwritten, " +
           (good >= 0 ? "the last good checkpoint is " + model_path(run.flags.out, good)
                      : "there is no checkpoint yet") +
           "; a lower --lr or --clip may help";
}

// A loss or a norm that is not finite ends the run before anything is overwritten.
[[noreturn]] static void fail_not_finite(const Run& run, const std::vector<Tensor>& table,
                                         const float* weights, const float* gradients, double loss,
                                         double norm) {
    const char *weight = first_not_finite(table, weights), *gradient = first_not_finite(table, gradients);
    const std::string where = weight     ? strf("the weights of %s are not finite", weight)
                              : gradient ? strf("the gradient of %s is not finite", gradient)
                                         : "every gradient is finite, but not the norm";
    fail("step %lld: loss %g, norm %g: %s; %s", (long long)run.step + 1, loss, norm, where.c_str(),
         what_is_left(run).c_str());
}

// Such numbers are not written either: the square of a gradient overflows where loss and norm do not yet.
static void check_finite(const Run& run, const std::vector<Tensor>& table, const char* what,
                         const float* block) {
    if (const char* name = first_not_finite(table, block))
        fail("step %lld: the %s of %s are not finite; %s", (long long)run.step, what, name,
             what_is_left(run).c_str());
}

// ---------------------------------------------------------------------------------------------------------
// From step to step

void initial_weights(const Run& run, const Tensor& t, float* weights) {
    if (!run.init_file)
        init_tensor(run.config, t, weights, uint64_t(run.flags.seed));
    else if (run.flags.upcycle && !run.state_file)
        upcycle_tensor(*run.init_file, run.dense_config, run.config, t, weights, uint64_t(run.flags.seed));
    else
        read_floats(*run.init_file->find(t.name), weights);
}

static void save_checkpoint(const Run& run, const Options& options, const std::vector<Tensor>& table,
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

// Mean loss over the first val_batches batches of the validation data, or all of it to the last row; the load
// of every expert goes to the log, too. Returns false, with nothing logged, when a signal asks to stop: the
// run that goes on from here validates then.
static bool validate(Run& run, const TrainingEngine& engine, Log& log) {
    const Config& c = run.config;
    Loader& val = *run.val;
    const size_t B = std::min(run.B, val.samples), whole = (val.samples + B - 1) / B;
    const size_t batches = run.flags.val_batches ? std::min(size_t(run.flags.val_batches), whole) : whole;
    const size_t rows = std::min(batches * B, val.samples);
    std::vector<int32_t> tokens(B * run.T), targets(B * run.T);
    std::vector<std::vector<double>> load(c.moe() ? c.n_layer : 0, std::vector<double>(c.n_expert));
    double loss = 0;
    Progress progress("validation", "rows", double(rows));
    val.position = 0;
    for (size_t done = 0; done < rows;) {
        if (stop_signal) return false;
        const size_t b = std::min(B, rows - done);
        val.next(b, tokens.data(), targets.data());
        loss += engine.loss(tokens.data(), targets.data(), b) * double(b);
        for (size_t l = 0; l < load.size(); l++)
            for (size_t j = 0; j < c.n_expert; j++)
                load[l][j] += double(engine.load(l, j)) / double(rows * run.T * c.n_expert_active);
        done += b;
        progress.update(double(done));
    }
    progress.finish(double(rows));
    loss /= double(rows);
    log.evaluation(uint64_t(run.step), loss, load);
    printf("%sstep %lld/%lld | val loss %.4f\n", line_start(), (long long)run.step,
           (long long)run.schedule.steps, loss);
    fflush(stdout);
    return true;
}

static void print_sample(const Run& run, const TrainingEngine& engine, const TextTokenizer& tokenizer) {
    const size_t length = std::min<size_t>(run.config.block_size, 200);
    const size_t V = std::min(run.config.vocab_size, tokenizer.vocab_size()); // the model's may be padded
    Sampler sampler;
    engine.restart();
    int32_t token = tokenizer.start();
    std::string text = tokenizer.decode(token);
    for (size_t i = 0; i + 1 < length; i++) {
        token = sampler.choose(
            engine.read(token), V,
            random_uniform(uint64_t(run.flags.seed), random_stream("sample") + uint64_t(run.step), i));
        if (token == tokenizer.start() && run.config.tokenizer != "chess-32") break; // end of text
        text += tokenizer.decode(token);
    }
    printf("%s--- sample at step %lld\n%s\n---\n", line_start(), (long long)run.step,
           printable(text).c_str());
    fflush(stdout);
}

int run_training(Run& run, const Options& options, const std::vector<Tensor>& table,
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
    if (!log->set_aside.empty())
        printf("the log of the run that was here is kept as %s\n", log->set_aside.c_str());
    remove_unfinished(run.flags.out);
    { AtomicFile probe(state_path(run.flags.out, run.step)); } // a folder that takes no files: said now
    stop_on_signals(Reads::go_on);
    stop_on_broken_pipe();

    const int64_t first = run.step, steps = run.schedule.steps;
    const int64_t resumed_from = run.state_file ? first : -1;
    double training_seconds = 0;
    int64_t saved = resumed_from;
    bool validated = true;
    int stop = 0;
    const auto save = [&] {
        save_checkpoint(run, options, table, engine, *log);
        saved = run.step;
        if (run.flags.keep > 0)
            remove_old_checkpoints(run.flags.out, run.step, run.flags.keep, run.flags.keep_every, resumed_from);
    };
    // Work on data that may turn out to be damaged: what was learned before is saved then.
    const auto or_save = [&](auto work) {
        const uint64_t position = run.train->position;
        try {
            return work();
        } catch (const DataError& e) {
            run.train->position = position;
            if (run.step > first && saved != run.step) save();
            if (saved != run.step) throw;
            fail("%s; all is saved up to step %lld", e.what(), (long long)run.step);
        }
    };
    // A run that was made longer just now is that on the disk, too, before anything can end it.
    if (resumed_from >= 0 && run.schedule.lengthened_at == first) save();
    for (;; run.step++) {
        const bool last = run.step == steps;
        auto falls_on = [&](int64_t every) { return last || (every > 0 && run.step % every == 0); };
        // Also where a resumed run begins, if it was stopped before that validation was done.
        if (run.val && (run.step == 0 || falls_on(run.flags.val_every)) && log->evaluated != run.step)
            validated = or_save([&] { return validate(run, engine, *log); });
        stop = stop_signal; // once a turn: what follows agrees on it
        if (((run.step > first && falls_on(run.flags.checkpoint_every)) || stop) && saved != run.step) save();
        if (tokenizer && !stop && run.step > first && run.flags.sample_every > 0 &&
            falls_on(run.flags.sample_every))
            print_sample(run, engine, *tokenizer);
        if (last || stop) break;

        const double begin = now_seconds(), lr = run.schedule.at(run.step);
        const StepResult result = or_save([&] { return engine.step(uint64_t(run.step + 1), lr); });
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
    if (stop && (run.step < steps || !validated)) {
        printf("%sstopped at step %lld of %lld; to go on: %s\n", line_start(), (long long)run.step,
               (long long)steps, resume_command(program, run.flags.out).c_str());
        return 128 + stop;
    }
    printf("done: %s\n", model_path(run.flags.out, run.step).c_str());
    fflush(stdout);
    return stop_signal == SIGPIPE ? 128 + SIGPIPE : 0; // all is saved, but nobody reads on
}
