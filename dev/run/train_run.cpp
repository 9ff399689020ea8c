// The loop of train_run.h, at the end, and before it what it does now and then: clean up the folder, look for
// numbers that are not finite, save, validate, sample.
#include "train_run.h"
#include "../lib/stop.h"
#include "sampler.h"
#include "stored_flags.h"
#include <numeric>

// ---------------------------------------------------------------------------------------------------------
// The folder of a run

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

constexpr int n_families = 4;

// Blocks as rank 0 has them, and of each the number of the first tensor that holds a number that is not
// finite, -1 for none, as all ranks know it: they all end with the same message.
struct Examined {
    const float* block[n_families] = {};
    double bad[n_families] = {-1, -1, -1, -1};

    const float* of(Family f) const { return block[size_t(f)]; }
    // The name of that tensor, or nullptr.
    const char* not_finite(const std::vector<Tensor>& table, Family f) const {
        const double i = bad[size_t(f)];
        return i < 0 ? nullptr : table[size_t(i)].name.c_str();
    }
};
static Examined examine(const std::vector<Tensor>& table, const TrainingEngine& engine,
                        const std::vector<Family>& families) {
    Examined all;
    std::vector<double> found(n_families, engine.ranks.rank == 0 ? -1 : 0);
    for (const Family f : families) {
        const float* const block = all.block[size_t(f)] = engine.block(f);
        double& first = found[size_t(f)];
        for (size_t n = table.size(); block && n-- > 0;)
            for (size_t i = 0; i < table[n].count; i++)
                if (!std::isfinite(block[table[n].offset + i])) {
                    first = double(n);
                    break;
                }
    }
    found = engine.add(found);
    std::copy(found.begin(), found.end(), all.bad);
    return all;
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
                                         const TrainingEngine& engine, double loss, double norm) {
    const Examined found = examine(table, engine, {Family::weights, Family::gradients});
    const char *weight = found.not_finite(table, Family::weights),
               *gradient = found.not_finite(table, Family::gradients);
    const std::string where = weight     ? strf("the weights of %s are not finite", weight)
                              : gradient ? strf("the gradient of %s is not finite", gradient)
                                         : "every gradient is finite, but not the norm";
    fail("step %lld: loss %g, norm %g: %s; %s", (long long)run.step + 1, loss, norm, where.c_str(),
         what_is_left(run).c_str());
}

// ---------------------------------------------------------------------------------------------------------
// From step to step

// After ln_2 a channel has deviation 1, so a pre-activation of weights N(0, 0.02) has 0.02 sqrt(C).
static void new_weights(const Run& run, const Tensor& t, float* weights) {
    init_tensor(run.config, t, weights, uint64_t(run.flags.seed));
    if (run.flags.bias_init == 0 || !(t.name.ends_with(".moe.b_enc") || t.name.ends_with(".mlp.c_fc.bias")))
        return;
    const double deviation = 0.02 * std::sqrt(double(run.config.n_embd));
    std::fill(weights, weights + t.count, float(-run.flags.bias_init * deviation));
}

void initial_weights(const Run& run, const Tensor& t, float* weights) {
    if (!run.init_file)
        new_weights(run, t, weights);
    else if (run.flags.upcycle && !run.state_file)
        upcycle_tensor(*run.init_file, run.dense_config, run.config, t, weights, uint64_t(run.flags.seed));
    else
        read_floats(*run.init_file->find(t.name), weights);
}

// Where several ranks train, rank 0 has the log, and writes.
static void save_checkpoint(const Run& run, const Options& options, const std::vector<Tensor>& table,
                            const TrainingEngine& engine, std::optional<Log>& log) {
    const Examined found = examine(table, engine, {Family::weights, Family::moment_1, Family::moment_2});
    // The square of a gradient overflows where loss and norm do not yet.
    for (const auto& [family, what] : {std::pair(Family::weights, "weights"),
                                       {Family::moment_1, "first moments"},
                                       {Family::moment_2, "second moments"}})
        if (const char* name = found.not_finite(table, family))
            fail("step %lld: the %s of %s are not finite; %s", (long long)run.step, what, name,
                 what_is_left(run).c_str());
    if (log) {
        log->sync();
        write_blocks<float>(state_path(run.flags.out, run.step), state_strings(run, options),
                            trained_tensors(table),
                            {{"m.", found.of(Family::moment_1)}, {"v.", found.of(Family::moment_2)}});
        save_model(model_path(run.flags.out, run.step), run.config, table, found.of(Family::weights),
                   run.step);
    }
    printf("%scheckpoint %s\n", line_start(), model_path(run.flags.out, run.step).c_str());
    fflush(stdout);
}

// The signal that asks any rank to stop, as all of them know it; 0 for none.
static int stop_of_all(const TrainingEngine& engine) {
    std::vector<double> signals(size_t(engine.ranks.size));
    signals[size_t(engine.ranks.place)] = double(stop_signal);
    signals = engine.add(signals);
    return int(*std::max_element(signals.begin(), signals.end()));
}

// Mean loss over the first val_batches batches of the validation data, or all of it to the last row; the load
// of every expert goes to the log, too. Each rank takes its share of the batches. Returns the signal that
// asked to stop meanwhile, with nothing logged: the run that goes on from here validates then.
static int validate(Run& run, const TrainingEngine& engine, std::optional<Log>& log) {
    const Config& c = run.config;
    const Loader& val = *run.val;
    const size_t B = std::min(run.B, val.samples), whole = (val.samples + B - 1) / B;
    const size_t batches = run.flags.val_batches ? std::min(size_t(run.flags.val_batches), whole) : whole;
    const size_t rows = std::min(batches * B, val.samples), L = c.moe() ? c.n_layer : 0, E = c.n_expert;
    std::vector<int32_t> tokens(B * run.T), targets(B * run.T);
    std::vector<double> sums(batches + L * E); // losses of the batches, each of one rank; tokens of experts
    std::optional<Progress> progress;
    if (log) progress.emplace("validation", "rows", double(rows));
    const auto ranks = size_t(engine.ranks.size);
    for (size_t i = size_t(engine.ranks.place); i < batches && !stop_signal; i += ranks) {
        const size_t b = std::min(B, rows - i * B);
        val.read(i * B, b, tokens.data(), targets.data());
        val.will_need((i + ranks) * B, B);
        sums[i] = engine.loss(tokens.data(), targets.data(), b) * double(b);
        for (size_t l = 0; l < L; l++)
            for (size_t j = 0; j < E; j++) sums[batches + l * E + j] += double(engine.load(l, j));
        if (progress) progress->update(double(i * B + b));
    }
    if (const int stop = stop_of_all(engine)) return stop;
    sums = engine.add(sums);
    if (progress) progress->finish(double(rows));
    const double loss =
        std::accumulate(sums.begin(), sums.begin() + std::ptrdiff_t(batches), 0.0) / double(rows);
    std::vector<std::vector<double>> load(L, std::vector<double>(E));
    for (size_t l = 0; l < L; l++)
        for (size_t j = 0; j < E; j++)
            load[l][j] = sums[batches + l * E + j] / double(rows * run.T * c.n_expert_active);
    if (log) log->evaluation(uint64_t(run.step), loss, load);
    printf("%sstep %lld/%lld | val loss %.4f\n", line_start(), (long long)run.step,
           (long long)run.schedule.steps, loss);
    fflush(stdout);
    return 0;
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

// What rank 0 alone does in the folder, before anything is trained.
static void open_folder(const Run& run, std::optional<Log>& log) {
    make_directories(run.flags.out);
    if (run.state_file)
        log.emplace(run.flags.out, uint64_t(run.step));
    else
        log.emplace(run.flags.out);
    if (!log->set_aside.empty())
        printf("the log of the run that was here is kept as %s\n", log->set_aside.c_str());
    remove_unfinished(run.flags.out);
    { AtomicFile probe(state_path(run.flags.out, run.step)); } // a folder that takes no files: said now
}

int run_training(Run& run, const Options& options, const std::vector<Tensor>& table, TrainingEngine& engine,
                 const std::vector<std::string>& program) {
    const Config& c = run.config;
    Ranks& ranks = engine.ranks;
    const std::string command = resume_command(program, run.flags.out);
    const bool can_print =
        c.tokenizer == "chess-32" || c.tokenizer == "bytes" || !run.flags.tokenizer.empty();
    std::optional<TextTokenizer> tokenizer;
    if (can_print && ranks.rank == 0)
        tokenizer = TextTokenizer::load(tokenizer_from_name(c.tokenizer), run.flags.tokenizer);
    std::optional<Log> log; // of rank 0
    if (ranks.rank == 0) open_folder(run, log);
    stop_on_signals(Reads::go_on);
    stop_on_broken_pipe();

    const int64_t first = run.step, steps = run.schedule.steps;
    const int64_t resumed_from = run.state_file ? first : -1;
    if (run.state_file) ranks.saved(model_path(run.flags.out, first), command);
    double training_seconds = 0;
    int64_t saved = resumed_from;
    int64_t evaluated = int64_t(engine.add({log ? double(log->evaluated) : 0})[0]);
    engine.compare();
    int stop = stop_of_all(engine);
    const auto save = [&] {
        ranks.at(run.step, Phase::checkpoint);
        engine.compare();
        save_checkpoint(run, options, table, engine, log);
        engine.add({0}); // it is there when rank 0 has come here
        saved = run.step;
        ranks.saved(model_path(run.flags.out, run.step), command);
        if (log && run.flags.keep > 0)
            remove_old_checkpoints(run.flags.out, run.step, run.flags.keep, run.flags.keep_every,
                                   resumed_from);
    };
    // Work on data that may turn out to be damaged: what was learned before is saved then. (Where one of
    // several ranks finds that, the others are in the middle of the step.)
    const auto or_save = [&](auto work) {
        const uint64_t position = run.train->position;
        try {
            return work();
        } catch (const DataError& e) {
            if (ranks.size > 1) throw;
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
        bool validated = true;
        if (run.val && (run.step == 0 || falls_on(run.flags.val_every)) && evaluated != run.step) {
            ranks.at(run.step, Phase::validation);
            engine.compare();
            const int asked = or_save([&] { return validate(run, engine, log); });
            validated = !asked;
            if (validated) evaluated = run.step;
            if (asked) stop = asked;
        }
        if (((run.step > first && falls_on(run.flags.checkpoint_every)) || stop) && saved != run.step) save();
        if (tokenizer && !stop && run.step > first && run.flags.sample_every > 0 &&
            falls_on(run.flags.sample_every)) {
            ranks.at(run.step, Phase::sample);
            print_sample(run, engine, *tokenizer);
        }
        if (stop && (!last || !validated)) {
            printf("%sstopped at step %lld of %lld; to go on: %s\n", line_start(), (long long)run.step,
                   (long long)steps, command.c_str());
            return 128 + stop;
        }
        if (last) break;

        const double begin = now_seconds(), lr = run.schedule.at(run.step);
        const StepResult result = or_save([&] { return engine.step(uint64_t(run.step + 1), lr); });
        if (!result.finite()) fail_not_finite(run, table, engine, result.loss, result.norm);
        stop = result.stop;
        const double seconds = now_seconds() - begin;
        training_seconds += seconds;
        const int64_t done = run.step + 1 - first;
        const StepRecord record = {uint64_t(run.step + 1),
                                   result.loss,
                                   c.routers() ? result.aux / double(c.routers()) : 0,
                                   result.norm,
                                   lr,
                                   1e3 * seconds,
                                   run.tokens_per_step() / seconds,
                                   result.l0};
        if (log) log->step(record);
        print_step(record, run, training_seconds / done * (steps - run.step - 1));
    }
    printf("done: %s\n", model_path(run.flags.out, run.step).c_str());
    fflush(stdout);
    return stop_signal == SIGPIPE ? 128 + SIGPIPE : 0; // all is saved, but nobody reads on
}
