// What a training run is: its flags, what they resolve to, how a run goes on from a checkpoint, and what a
// checkpoint must hold so that it does so exactly. Everything that can be wrong with flags, data and
// checkpoints is found here, before any memory is taken. The loop is train_run.h's, what is printed
// print.h's.
#pragma once
#include "../../data/loader.h"
#include "../lib/options.h"
#include "checkpoint.h"
#include "schedule.h"
#include "upcycle.h"
#include <functional>
#include <optional>

// ---------------------------------------------------------------------------------------------------------
// Flags

struct Flags {
    std::string train, val, out = "runs/train", init = "demo", tokenizer;
    int64_t batch = 0, seq = 0, total_tokens = 0, steps = 0, warmup = -1; // 0, -1: as the preset says
    double lr = 0, final_lr_frac = 0.1, weight_decay = 0.1, clip = 1.0, aux_weight = 1e-3;
    bool upcycle = false, resume = false;
    int64_t print_every = 1, val_every = 100, val_batches = 20, sample_every = 500, checkpoint_every = 500,
            keep = 0, keep_every = 0, seed = 1;
    int64_t zero_stage = 1, lanes = 0, recompute = 0, streams = 0;
    int64_t layers = 0, heads = 0, embd = 0, experts = 0, active = 0, d_expert = 0; // 0: as the preset says
    int64_t keys = 0, retrieve = 0, top = 0, d_key = 0, share = 0;                  // likewise
    std::string ffn = "moe", act = "relu", router = "sparsity", gate = "chosen", balance = "loss";
    std::string epilogues = "auto", experts_by = "library";
    std::string router_sd = "diagonal";
    double balance_rate = 1e-3, l0_weight = 0, l0_target = 0, l1_weight = 0, bias_init = 0;
    int64_t unit_top = 0;

    void declare(Options& o);
};

// ---------------------------------------------------------------------------------------------------------
// What the flags resolve to

struct Run {
    Flags flags;
    Config config;
    size_t B, T, accumulate; // micro-batch and how many of them make a step
    Schedule schedule;
    std::optional<Loader> train, val;
    int64_t step = 0;                          // optimizer steps done
    double l0_weight = 0;                      // --l0-weight, or what --l0-target has made of it by now
    std::optional<SafeTensorsFile> init_file;  // weights start from here: --init's, or the resumed step's
    std::optional<SafeTensorsFile> state_file; // resume only
    std::string data;                          // fingerprint of the training data
    Config dense_config;                       // --upcycle only: of init_file
    int64_t steps_before = -1;                 // of a resumed run that --steps makes longer
    std::string resumed_note;                  // how it came to be, for a line under the settings
    std::string batch_note;                    // why this B, if choose_batch took it
    std::string ranks_note;                    // how several GPUs share a step, "" for one

    size_t tokens_per_step() const { return accumulate * B * T; }
};

// What identifies the training data, for a resumed run must see the same samples: its sizes, and a hash of
// the first and last tokens of every shard.
std::string data_fingerprint(const std::vector<Shard>& shards);

// Settles what the flags leave open and puts it back into them. choose_batch gives the rows of a micro-batch
// for a step of `rows`, where no flag does; null: the preset's.
Run resolve_run(Options& options, Flags& flags,
                const std::function<size_t(Run& run, size_t rows)>& choose_batch = nullptr);

// What all ranks of a run must have in common, by the names that users know: every flag as resolved, but for
// names of files, which are each machine's own; the data, and the step from which the run goes on.
std::vector<std::pair<std::string, std::string>> agreement(const Run& run, const Options& options);

// The flag and value that only the reference (dev/cpu) knows, "" if there is none (config.h has those of a
// model).
std::string reference_only(const Flags& flags);

// --l0-target: the weight of the penalty on the expected share of active units (dev/cpu/penalty.h), after
// step t = 1, 2, ... with so many active units. None during warm-up, then 1e-3, and every 100 steps
//   weight *= exp(0.2 clamp((l0 - target) / target, -1, 1)),   within [1e-6, 1]
double next_l0_weight(double weight, double l0, double target, int64_t t, int64_t warmup);

// The strings of a state file: every flag as resolved, the place in the data, the step. Where the run lies
// and whether it was stopped on its way is left out: the files are then those of the unbroken run.
Strings state_strings(const Run& run, const Options& options);
