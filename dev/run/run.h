// A training run, apart from the arithmetic: its flags, what they resolve to, the table printed at the start,
// the step line, stopping on a signal, and what a checkpoint must hold so that the run resumes exactly. The
// CPU and the CUDA trainer share all of it; each has the training loop itself, and its own forward, backward,
// update.
#pragma once
#include "../../data/loader.h"
#include "../lib/options.h"
#include "../lib/terminal.h"
#include "checkpoint.h"
#include "log.h"
#include "sampler.h"
#include "schedule.h"
#include "upcycle.h"
#include <csignal>
#include <cstdarg>
#include <optional>
#include <set>

// ---------------------------------------------------------------------------------------------------------
// Flags

struct Flags {
    std::string train, val, out = "runs/train", init = "demo", tokenizer;
    int64_t batch = 0, seq = 0, total_tokens = 0, steps = 0, warmup = -1; // 0, -1: as the preset says
    double lr = 0, final_lr_frac = 0.1, weight_decay = 0.1, clip = 1.0, aux_weight = 1e-3;
    bool upcycle = false, resume = false;
    int64_t print_every = 1, val_every = 100, val_batches = 20, sample_every = 500, checkpoint_every = 500,
            seed = 1;
    int64_t zero_stage = 0, recompute = 0;
    int64_t layers = 0, heads = 0, embd = 0, experts = 0, active = 0, d_expert = 0; // 0: as the preset says
    std::string ffn = "moe", act = "relu", router = "sparsity", epilogues = "auto";

    void declare(Options& o) {
        const int64_t big = int64_t(1) << 40;
        const Stored free = Stored::Free, preset = Stored::FromPreset; // the others stay as the run began
        o.section("Data and files");
        o.add('i', "train", "GLOB", &train, "token shards to train on", free);
        o.add('j', "val", "GLOB", &val, "token shards to validate on (none: no validation)", free);
        o.add('o', "out", "DIR", &out, "folder for checkpoints and log.jsonl", Stored::No);
        o.add('e', "init", "FILE|NAME", &init,
              "start from a checkpoint, or a new model of preset demo, chess, small or medium");
        o.add('y', "resume", &resume,
              "continue the run in --out from its newest whole checkpoint, with its flags", Stored::No);
        o.add(0, "upcycle", &upcycle, "make a mixture of experts from the dense checkpoint of --init");
        o.add(0, "tokenizer", "FILE", &tokenizer,
              "GPT-2 only: the file written by data/fineweb.py, to print samples as text", free);
        o.section("Batch and length of the run (default: the preset's)");
        o.add('b', "batch", "ROWS", &batch, 0, 1 << 20, "sequences per micro-batch", preset);
        o.add('t', "seq", "TOKENS", &seq, 0, 1 << 24, "positions per sequence", preset);
        o.add('d', "total-tokens", "TOKENS", &total_tokens, 0, big,
              "tokens per step, reached by gradient accumulation", preset);
        o.add('x', "steps", "STEPS", &steps, 0, big, "optimizer steps", preset);
        o.section("Optimization");
        o.add('l', "lr", "RATE", &lr, 0, 1e30, "peak learning rate (0: the preset's)", preset);
        o.add('u', "warmup", "STEPS", &warmup, -1, big,
              "steps of linear warm-up (-1: the preset's, at most a tenth of --steps)", preset);
        o.add('q', "final-lr-frac", "FRACTION", &final_lr_frac, 0, 1,
              "learning rate at the end, as a fraction of the peak");
        o.add('c', "weight-decay", "DECAY", &weight_decay, 0, 10, "on matrices and embeddings");
        o.add(0, "clip", "NORM", &clip, 0, 1e30, "largest global norm of the gradient (0: no clipping)");
        o.add(0, "aux-weight", "LAMBDA", &aux_weight, 0, 1e6, "weight of the load-balance loss");
        o.add(0, "seed", "N", &seed, 0, INT64_MAX, "of initial weights, data order, upcycling and samples");
        o.section("While it runs");
        o.add(0, "print-every", "STEPS", &print_every, 1, big,
              "steps between step lines; on a terminal those between show in place", free);
        o.add('v', "val-every", "STEPS", &val_every, 0, big, "steps between validations (0: at the end only)",
              free);
        o.add('m', "val-batches", "BATCHES", &val_batches, 0, big,
              "micro-batches per validation (0: the whole set)", free);
        o.add('s', "sample-every", "STEPS", &sample_every, 0, big, "steps between samples (0: none)", free);
        o.add('n', "checkpoint-every", "STEPS", &checkpoint_every, 0, big,
              "steps between checkpoints (0: at the end only)", free);
        o.add_threads();
        o.section("Model (default: the preset's)");
        o.add(0, "layers", "L", &layers, 0, 1024, "layers", preset);
        o.add(0, "heads", "NH", &heads, 0, 1024, "attention heads", preset);
        o.add(0, "embd", "C", &embd, 0, 1 << 16, "channels", preset);
        o.add(0, "experts", "E", &experts, 0, 4096, "experts per layer", preset);
        o.add(0, "active", "K", &active, 0, 4096, "experts per token", preset);
        o.add(0, "d-expert", "D", &d_expert, 0, 1 << 20, "hidden units per expert (a dense model has K*D)",
              preset);
        o.add(0, "ffn", &ffn, ffn_words, "feed-forward layer");
        o.add(0, "act", &act, act_words, "activation");
        o.add(0, "router", &router, router_words, "sparsity is MoE-X's, topk a learned linear one");
        o.section("GPU only (no effect on the CPU)");
        o.add('z', "zero-stage", "STAGE", &zero_stage, 0, 1,
              "optimizer state: 0 whole on every GPU, 1 sharded", free);
        o.add('r', "recompute", "LEVEL", &recompute, 0, 2,
              "recompute activations in the backward pass to save memory: 0 none, 1 units, 2 also LayerNorms",
              free);
        o.add(0, "epilogues", &epilogues, {"auto", "own", "library"},
              "who applies bias and activation after a product: our kernels or cuBLASLt", preset);
    }
};

// ---------------------------------------------------------------------------------------------------------
// What the flags resolve to

struct Run {
    Flags flags;
    Config config;
    size_t B, T, accumulate; // micro-batch and how many of them make a step
    Schedule schedule;
    std::optional<Loader> train, val;
    int64_t step = 0; // optimizer steps done
    std::optional<SafeTensorsFile>
        init_file; // weights start from here (checkpoint of --init or of the resumed step)
    std::optional<SafeTensorsFile> state_file; // resume only
    std::string data;                          // fingerprint of the training data
    Config dense_config;                       // --upcycle only: of init_file
    std::string resumed_note;

    size_t tokens_per_step() const { return accumulate * B * T; }
};

// What identifies the training data, for a resumed run must see the same samples: its sizes, and a hash of
// the first and last tokens of every shard.
inline std::string data_fingerprint(const std::vector<Shard>& shards) {
    uint64_t hash = 0;
    size_t tokens = 0;
    for (const Shard& shard : shards) {
        const size_t n = shard.header.tokens, edge = std::min<size_t>(n, 4096);
        for (size_t i = 0; i < edge; i++)
            hash = mix64(hash ^ shard.tokens[i] ^ uint64_t(shard.tokens[n - edge + i]) << 16);
        tokens += n;
    }
    return strf("%zu tokens in %zu shards, hash %016llx", tokens, shards.size(), (unsigned long long)hash);
}

// Continuing: the flags of the run are those in its state file. One given now must say the same.
inline void resume_flags(Run& run, Options& options) {
    std::string broken;
    const int64_t step = newest_checkpoint(run.flags.out, &broken);
    if (step < 0) {
        if (!broken.empty())
            fail("--resume: %s holds no whole checkpoint: %s", run.flags.out.c_str(), broken.c_str());
        run.resumed_note = "nothing to resume in " + run.flags.out + ": a new run";
        return;
    }
    run.init_file.emplace(model_path(run.flags.out, step));
    run.state_file.emplace(state_path(run.flags.out, step));
    run.step = step;
    const char* state = run.state_file->path.c_str();
    run.resumed_note =
        "resumed from " + run.init_file->path + (broken.empty() ? "" : " (passed over: " + broken + ")");
    std::string differ;
    for (const std::string& name : options.names()) {
        const auto stored = run.state_file->metadata.find("flag." + name);
        if (stored == run.state_file->metadata.end()) continue;
        const std::string now = options.text(name);
        const Stored kind = options.stored(name);
        if (!options.given(name) || (kind == Stored::FromPreset && now == options.initial(name))) {
            try {
                options.restore(name, stored->second);
            } catch (const Error& e) {
                fail("%s: metadata: %s", state, e.what());
            }
        } else if (kind != Stored::Free && now != stored->second)
            differ += strf("%s--%s %s (was %s)", differ.empty() ? "" : ", ", name.c_str(), now.c_str(),
                           stored->second.c_str());
    }
    if (!differ.empty())
        fail("--resume: %s ran with other flags: %s; leave them out, or start a new run with --init %s and "
             "another --out",
             run.flags.out.c_str(), differ.c_str(), run.init_file->path.c_str());
}

// A number a flag gave, or else the preset's.
inline size_t given_or(int64_t flag, size_t otherwise) { return flag > 0 ? size_t(flag) : otherwise; }

// Everything that can be wrong with flags, data and checkpoint is found here, before any memory is taken.
inline Run resolve_run(Options& options, Flags& flags) {
    Run run;
    if (flags.out.empty()) fail_usage("--out: the name of a folder is missing");
    run.flags = flags; // declared on `flags`; copied back below once restored
    if (flags.resume) {
        resume_flags(run, options);
    } else if (struct stat st;
               stat((flags.out + "/log.jsonl").c_str(), &st) == 0 || !checkpoint_steps(flags.out).empty()) {
        fail("%s already holds a run: continue it with --resume, or choose another --out", flags.out.c_str());
    }
    if (flags.train.empty()) fail_usage("--train is missing: a glob of token shards");
    const Preset* preset = find_preset(flags.init);
    const Preset from_checkpoint = {"", {}, 8, 8, 1000, 100, 3e-4};
    const Preset& defaults = preset ? *preset : from_checkpoint;
    if (!run.init_file && !preset) run.init_file.emplace(flags.init);

    // The model: of the checkpoint, or of the preset with the flags' changes.
    const bool from_file = run.init_file.has_value(), upcycling = flags.upcycle && !run.state_file;
    Config& c = run.config;
    c = from_file ? read_config(*run.init_file) : defaults.config;
    if (flags.upcycle && !from_file) fail_usage("--upcycle needs --init FILE, a dense checkpoint");
    run.dense_config = c;
    auto change = [&](const char* name, auto& field, auto value, bool upcycled_may) {
        if (!options.given(name) || field == value) return;
        if (from_file && !(upcycling && upcycled_may))
            fail("--%s: %s is a model with another value, which a flag cannot change", name,
                 run.init_file->path.c_str());
        field = value;
    };
    if (!run.state_file) {
        change("layers", c.n_layer, size_t(flags.layers), false);
        change("heads", c.n_head, size_t(flags.heads), false);
        change("embd", c.n_embd, size_t(flags.embd), false);
        if (upcycling) c.ffn = "moe", c.router = "sparsity";
        change("ffn", c.ffn, flags.ffn, true);
        change("experts", c.n_expert, size_t(flags.experts), true);
        change("active", c.n_expert_active, size_t(flags.active), true);
        change("d-expert", c.d_expert, size_t(flags.d_expert), true);
        change("act", c.act, flags.act, true);
        change("router", c.router, flags.router, true);
    }
    if (upcycling) check_upcycle(run.dense_config, c, run.init_file->path);

    // Data, and what depends on it: the vocabulary of a new model, the number of positions.
    const std::vector<Shard> shards = open_shards(flags.train);
    const ShardHeader& header = shards[0].header;
    run.data = data_fingerprint(shards);
    if (!from_file) {
        c.tokenizer = tokenizer_name(header.tokenizer);
        c.vocab_size = tokenizer_vocab(header.tokenizer);
        if (flags.seq > 0)
            c.block_size = size_t(flags.seq);
        else if (header.row)
            c.block_size = std::min(c.block_size, header.row - 1);
    } else if (!c.tokenizer.empty() && c.tokenizer != tokenizer_name(header.tokenizer)) {
        fail("%s: its tokens are %s, but the model %s reads %s", shards[0].file.path.c_str(),
             tokenizer_name(header.tokenizer), run.init_file->path.c_str(), c.tokenizer.c_str());
    }
    check_config(c, from_file ? run.init_file->path : "model");
    run.T = given_or(flags.seq, header.row ? std::min(c.block_size, header.row - 1) : c.block_size);
    if (run.T > c.block_size)
        fail("--seq %zu is more than the %zu positions of the model", run.T, c.block_size);
    run.train.emplace(flags.train, run.T, c.vocab_size, true, uint64_t(flags.seed));
    if (!flags.val.empty()) {
        run.val.emplace(flags.val, run.T, c.vocab_size, false, 0);
        if (run.val->tokenizer != run.train->tokenizer)
            fail("%s: its tokens are %s, the training tokens %s", flags.val.c_str(),
                 tokenizer_name(run.val->tokenizer), tokenizer_name(run.train->tokenizer));
    }

    // Batch, schedule.
    run.B = given_or(flags.batch, defaults.batch);
    const size_t micro = run.B * run.T;
    const size_t total = given_or(flags.total_tokens, std::max<size_t>(1, defaults.rows / run.B) * micro);
    if (total % micro)
        fail_usage("--total-tokens %zu is not a multiple of batch times seq, %zu x %zu = %zu", total, run.B,
                   run.T, micro);
    run.accumulate = total / micro;
    if (double(run.B) * double(run.T) * double(c.n_layer) *
            double(c.vocab_size + 9 * c.n_embd + 4 * c.n_expert + 4 * c.dense_width()) >
        0x1p50)
        fail("--batch %zu x --seq %zu: activations of this size do not fit into any memory", run.B, run.T);
    const int64_t steps = int64_t(given_or(flags.steps, defaults.steps));
    const int64_t warmup = flags.warmup >= 0 ? flags.warmup : std::min<int64_t>(defaults.warmup, steps / 10);
    run.schedule = {flags.lr > 0 ? flags.lr : defaults.lr, flags.final_lr_frac, warmup, steps};
    if (run.schedule.warmup > run.schedule.steps)
        fail_usage("--warmup %lld is more than --steps %lld", (long long)run.schedule.warmup,
                   (long long)run.schedule.steps);
    flags.batch = int64_t(run.B), flags.seq = int64_t(run.T), flags.total_tokens = int64_t(total);
    flags.steps = run.schedule.steps, flags.warmup = run.schedule.warmup, flags.lr = run.schedule.lr;

    if (run.state_file) {
        const std::string& was = metadata_entry(*run.state_file, "data");
        if (was != run.data)
            fail("--resume: %s trained on other data: %s (was %s)", flags.out.c_str(), run.data.c_str(),
                 was.c_str());
        const std::string& position = metadata_entry(*run.state_file, "position");
        if (position.empty() || position.size() > 18 ||
            position.find_first_not_of("0123456789") != std::string::npos)
            fail("%s: metadata: position is %s, expected a whole number", run.state_file->path.c_str(),
                 quoted(position).c_str());
        run.train->position = std::stoull(position);
    }
    run.flags = flags;
    return run;
}

// The strings of a state file: every flag as resolved, the place in the data, the step. Where the run lies
// and whether it was stopped on its way is left out: the files are then those of the unbroken run.
inline Strings state_strings(const Run& run, const Options& options) {
    Strings strings = {{"format", "pt"},
                       {"model", "moex-state"},
                       {"step", std::to_string(run.step)},
                       {"position", std::to_string(run.train->position)},
                       {"data", run.data}};
    for (const std::string& name : options.names())
        if (options.stored(name) != Stored::No) strings["flag." + name] = options.text(name);
    return strings;
}

// ---------------------------------------------------------------------------------------------------------
// What is printed

struct SettingsTable {
    static constexpr int left = 20, right = 66;
    void rule() const {
        printf("+%s+%s+\n", std::string(left + 2, '-').c_str(), std::string(right + 2, '-').c_str());
    }
    __attribute__((format(printf, 3, 4))) void row(const char* name, const char* format, ...) const {
        va_list args;
        va_start(args, format);
        std::string value = vstrf(format, args);
        va_end(args);
        for (bool first = true; first || !value.empty(); first = false) {
            printf("| %-*s | %-*s |\n", left, first ? name : "", right, value.substr(0, right).c_str());
            value.erase(0, right);
        }
    }
};

inline void print_settings(const Run& run, const std::vector<Tensor>& table, const std::string& machine,
                           const std::vector<std::pair<const char*, double>>& memory) {
    const Config& c = run.config;
    const ParameterCount n = count_parameters(c, table);
    const double flops = flops_per_token(c, run.T);
    SettingsTable t;
    t.rule();
    t.row("machine", "%s", machine.c_str());
    t.row("model", "%zu layers, %zu heads, %zu channels, %zu positions", c.n_layer, c.n_head, c.n_embd,
          c.block_size);
    if (c.moe())
        t.row("feed-forward", "%zu of %zu experts of %zu %s units, %s router", c.n_expert_active, c.n_expert,
              c.d_expert, c.act.c_str(), c.router.c_str());
    else
        t.row("feed-forward", "dense, %zu %s units", c.dense_width(), c.act.c_str());
    t.row("vocabulary", "%zu (%s)", c.vocab_size,
          c.tokenizer.empty() ? "tokenizer unstated" : c.tokenizer.c_str());
    t.row("parameters", "%s (%zu), of which a token uses %s", human_count(double(n.total)).c_str(), n.total,
          human_count(double(n.active)).c_str());
    t.row("compute", "%s FLOP per token, %s per step", human_count(flops).c_str(),
          human_count(flops * run.tokens_per_step()).c_str());
    t.rule();
    t.row("training data", "%s", run.flags.train.c_str());
    t.row("", "%s tokens per epoch: %zu samples in %zu shard%s of %s",
          human_count(double(run.train->tokens_per_epoch)).c_str(), run.train->samples, run.train->n_shards,
          run.train->n_shards == 1 ? "" : "s",
          run.train->row ? strf("rows of %zu", run.train->row).c_str() : "a stream");
    if (run.val)
        t.row("validation data", "%s: %s tokens", run.flags.val.c_str(),
              human_count(double(run.val->tokens_per_epoch)).c_str());
    else
        t.row("validation data", "none");
    t.row("batch", "%zu x %zu x %zu = %s tokens (accumulation x rows x positions)", run.accumulate, run.B,
          run.T, human_count(double(run.tokens_per_step())).c_str());
    t.row("steps", "%lld = %.2f epochs, from step %lld", (long long)run.schedule.steps,
          double(run.schedule.steps) * run.tokens_per_step() / run.train->tokens_per_epoch,
          (long long)run.step);
    t.row("learning rate", "%g, warm-up %lld steps, cosine to %g", run.schedule.lr,
          (long long)run.schedule.warmup, run.schedule.lr * run.schedule.final_fraction);
    t.row("optimizer", "AdamW 0.9 0.95, decay %g, clip %g, load balance %g, seed %lld",
          run.flags.weight_decay, run.flags.clip, run.flags.aux_weight, (long long)run.flags.seed);
    t.rule();
    double total = 0;
    for (const auto& [name, bytes] : memory) t.row(name, "%s", human_bytes(bytes).c_str()), total += bytes;
    t.row("memory in all", "%s", human_bytes(total).c_str());
    t.row("output", "%s", run.flags.out.c_str());
    t.rule();
    if (!run.resumed_note.empty()) printf("%s\n", run.resumed_note.c_str());
    fflush(stdout);
}

// Every line stays that --print-every asks for; on a terminal the others are drawn over.
inline void print_step(const StepRecord& r, const Run& run, double eta_seconds) {
    const long long step = (long long)r.step, steps = (long long)run.schedule.steps;
    const bool stays = step % run.flags.print_every == 0 || step == 1 || step == steps, terminal = isatty(1);
    if (!stays && !terminal) return;
    const int width = int(std::to_string(steps).size());
    printf("%sstep %*lld/%lld | loss %.4f | aux %.3f | norm %.3f | lr %.2e | l0 %.0f | %.1f ms | %s tok/s | "
           "eta %s%s",
           terminal ? "\r\033[K" : "", width, step, steps, r.loss, r.aux, r.norm, r.lr, r.l0, r.ms,
           human_count(r.tok_s).c_str(), human_duration(eta_seconds).c_str(), stays ? "\n" : "");
    fflush(stdout);
}

// ---------------------------------------------------------------------------------------------------------
// Stopping: the first SIGINT or SIGTERM asks the loop to stop after its step, a second one ends the process.

inline volatile std::sig_atomic_t stop_signal = 0;

inline void stop_on_signals() {
    struct sigaction action = {};
    action.sa_handler = [](int signal) { stop_signal = signal; };
    action.sa_flags = int(SA_RESETHAND) | SA_RESTART;
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
    signal(SIGXFSZ, SIG_IGN); // a file-size limit is then an error of write(), with a message
}

// The command that goes on with a run, ready for a POSIX shell.
inline std::string resume_command(const char* program, const std::string& out) {
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
inline void remove_unfinished(const std::string& dir) {
    glob_t found = {};
    std::string literal; // the folder's name may hold what a pattern gives a meaning
    for (const char c : dir) literal += strchr("*?[\\", c) ? std::string("\\") + c : std::string(1, c);
    if (glob((literal + "/*.safetensors.tmp.*").c_str(), 0, nullptr, &found) == 0)
        for (size_t i = 0; i < found.gl_pathc; i++) unlink(found.gl_pathv[i]);
    globfree(&found);
}

// The name of the first tensor of a block that holds a number that is not finite, or nullptr.
template <class T> const char* first_not_finite(const std::vector<Tensor>& table, const T* block) {
    for (const Tensor& t : table)
        for (size_t i = 0; i < t.count; i++)
            if (!std::isfinite(double(block[t.offset + i]))) return t.name.c_str();
    return nullptr;
}

// What every message about such numbers ends with.
inline std::string what_is_left(const Run& run) {
    const int64_t good = newest_checkpoint(run.flags.out);
    return "nothing was overwritten, " +
           (good >= 0 ? "the last good checkpoint is " + model_path(run.flags.out, good)
                      : "there is no checkpoint yet") +
           "; a lower --lr or --clip may help";
}

// A loss or a norm that is not finite ends the run before anything is overwritten.
template <class T> [[noreturn]] void fail_not_finite(const Run& run, const std::vector<Tensor>& table,
                                                     const T* weights, const T* gradients, double loss,
                                                     double norm) {
    const char *weight = first_not_finite(table, weights), *gradient = first_not_finite(table, gradients);
    const std::string where = weight     ? strf("the weights of %s are not finite", weight)
                              : gradient ? strf("the gradient of %s is not finite", gradient)
                                         : "every gradient is finite, but not the norm";
    fail("step %lld: loss %g, norm %g: %s; %s", (long long)run.step + 1, loss, norm, where.c_str(),
         what_is_left(run).c_str());
}

// Such numbers are not written either: the square of a gradient overflows where loss and norm do not yet.
template <class T>
void check_finite(const Run& run, const std::vector<Tensor>& table, const char* what, const T* block) {
    if (const char* name = first_not_finite(table, block))
        fail("step %lld: the %s of %s are not finite; %s", (long long)run.step, what, name,
             what_is_left(run).c_str());
}
