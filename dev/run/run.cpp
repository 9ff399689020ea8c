// From flags, data and checkpoints to a run; every refusal stands here.
#include "run.h"
#include "stored_flags.h"

void Flags::declare(Options& o) {
    const int64_t big = int64_t(1) << 40;
    const Stored free = Stored::Free, preset = Stored::FromPreset; // the others stay as the run began
    o.section("Data and files");
    o.add('i', "train", "GLOB", &train, "token shards to train on", free);
    o.add('j', "val", "GLOB", &val, "token shards to validate on (none: no validation)", free);
    o.add('o', "out", "DIR", &out, "folder for checkpoints and log.jsonl", Stored::No);
    o.add('e', "init", "FILE|NAME", &init,
          "start from a checkpoint, or a new model of preset demo, mid, chess, small or medium");
    o.add('y', "resume", &resume,
          "continue the run in --out from its newest whole checkpoint, with its flags", Stored::No);
    o.add(0, "upcycle", &upcycle, "make a mixture of experts from the dense checkpoint of --init");
    o.add(0, "tokenizer", "FILE", &tokenizer,
          "GPT-2 only: the file written by data/fineweb.py, to print samples as text", free);
    o.section("Batch and length of the run (default: the preset's)");
    o.add('b', "batch", "ROWS", &batch, 0, 1 << 20,
          "sequences per micro-batch (auto: the preset's, on a GPU the most that fit, up to 64K tokens)",
          preset);
    o.add('t', "seq", "TOKENS", &seq, 0, 1 << 24, "positions per sequence", preset);
    o.add('d', "total-tokens", "TOKENS", &total_tokens, 0, big,
          "tokens per step, reached by gradient accumulation", preset);
    o.add('x', "steps", "STEPS", &steps, 0, big,
          "optimizer steps; with --resume more of them: the rate goes on in a cosine from where it is",
          preset);
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
    o.add(0, "keep", "N", &keep, 0, big, "keep the newest N checkpoints only (0: all)", free);
    o.add(0, "keep-every", "STEPS", &keep_every, 0, big,
          "with --keep: also those of every multiple of so many steps (0: none)", free);
    o.add_threads();
    o.section("Model (default: the preset's)");
    o.add(0, "layers", "L", &layers, 0, 1024, "layers", preset);
    o.add(0, "heads", "NH", &heads, 0, 1024, "attention heads", preset);
    o.add(0, "embd", "C", &embd, 0, 1 << 16, "channels", preset);
    o.add(0, "experts", "E", &experts, 0, 4096, "experts per layer", preset);
    o.add(0, "active", "K", &active, 0, 4096, "experts per token", preset);
    o.add(0, "d-expert", "D", &d_expert, 0, 1 << 20,
          "hidden units per expert (a dense model has K*D, geglu 2/3 of them)", preset);
    o.add(0, "ffn", &ffn, ffn_words, "feed-forward layer: a mixture of experts, one MLP, Monet's, PEER's");
    o.add(0, "act", &act, act_words, "activation; geglu and solu go with --ffn dense");
    o.add(0, "router", &router, router_words, "sparsity is MoE-X's, topk a learned linear one");
    o.add(0, "gate", &gate, gate_words,
          "gate weights: softmax over the chosen scores, or over all, which trains a topk router of K = 1 "
          "(CPU only)");
    o.add(0, "balance", &balance, balance_words,
          "what evens the experts' loads: a loss, or a bias on the choice that moves after each step (CPU "
          "only)");
    o.add(0, "balance-rate", "STEP", &balance_rate, 0, 1, "by how much that bias moves");
    o.section("What sets the sparsity (--unit-top, --l1-weight and --router-sd full: CPU only)");
    o.add(
        0, "router-sd", &router_sd, router_sd_words,
        "the sparsity router's deviation: coordinates independent, that times a factor per expert, or exact");
    o.add(0, "unit-top", "Q", &unit_top, 0, 1 << 20, "of an expert's units only the Q largest stay (0: all)");
    o.add(0, "l0-weight", "MU", &l0_weight, 0, 1e6,
          "weight of the share of units the router expects to fire");
    o.add(0, "l0-target", "UNITS", &l0_target, 0, 1e9,
          "sets that weight, after warm-up, so that so many units fire per token (0: no)");
    o.add(0, "l1-weight", "MU", &l1_weight, 0, 1e6,
          "weight of the sum of relu units, each times its gate and the length of its decoder row");
    o.add(0, "bias-init", "B", &bias_init, -100, 100,
          "a new model's b_enc is -B deviations of the pre-activation at the start");
    o.section(
        "--ffn monet-hd, monet-vd, peer (CPU only; default: as many active parameters as E, K and D make)");
    o.add(0, "keys", "Q", &keys, 0, 4096, "sub-keys a side: Q*Q experts", preset);
    o.add(0, "retrieve", "H", &retrieve, 0, 4096, "heads that retrieve experts", preset);
    o.add(0, "top", "K", &top, 0, 4096, "sub-keys that a head keeps of a side; PEER: experts of a head",
          preset);
    o.add(0, "d-key", "N", &d_key, 0, 1 << 16, "PEER: numbers of a query", preset);
    o.add(0, "share", "LAYERS", &share, 0, 1024, "Monet: layers that share a router", preset);
    o.section("GPU only (no effect on the CPU)");
    o.add('z', "zero-stage", "STAGE", &zero_stage, 0, 1, "optimizer state: 0 whole on every GPU, 1 sharded",
          free);
    o.add(0, "lanes", "V", &lanes, 0, 1 << 16,
          "parts in which gradients are summed: up to V GPUs give the same bits (0: as many as GPUs)", free);
    o.add('r', "recompute", "LEVEL", &recompute, 0, 2,
          "recompute activations in the backward pass to save memory: 0 none, 1 units, 2 also LayerNorms",
          free);
    o.add(0, "epilogues", &epilogues, {"auto", "own", "library"},
          "who applies bias and activation after a product: our kernels or cuBLASLt (auto: as measured)",
          preset);
    o.add(0, "experts-by", &experts_by, {"library", "hand", "auto"},
          "the experts' products: one by one by cuBLASLt, or all in one launch by our kernels (auto: as "
          "measured)",
          preset);
    o.add(0, "streams", "N", &streams, 0, 4,
          "products of experts side by side; the results are the same for any (0: as measured)", free);
}

std::string data_fingerprint(const std::vector<Shard>& shards) {
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

// Continuing: the flags of the run are those in its state file. One given now must say the same, unless it is
// free to change. Only --steps may grow: run.steps_before is then what it was.
static void resume_flags(Run& run, Options& options) {
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
    run.resumed_note =
        "resumed from " + run.init_file->path + (broken.empty() ? "" : " (passed over: " + broken + ")");
    const std::string differ = restore_flags(
        *run.state_file, options, [&](const std::string& name, const std::string& was, std::string& note) {
            const std::string now = options.text(name);
            if (name == "lanes" && was != "0" && now != was) {
                run.resumed_note += strf("; summed in %s lanes from here on, not %s: other last bits",
                                         now == "0" ? "as many as GPUs" : now.c_str(), was.c_str());
                return true;
            }
            if (name != "steps") return false;
            note = ": a run can only be made longer";
            const int64_t steps = whole_number(*run.state_file, name, was);
            if (std::stoll(now) <= steps) return false;
            run.steps_before = steps;
            return true;
        });
    if (!differ.empty())
        fail("--resume: %s ran with other flags: %s; leave them out, or start a new run with --init %s and "
             "another --out",
             run.flags.out.c_str(), differ.c_str(), run.init_file->path.c_str());
}

// The schedule of a resumed run: as it was, and made longer where --steps asks for it.
static Schedule resumed_schedule(Run& run, Schedule schedule) {
    const SafeTensorsFile& state = *run.state_file;
    if (const auto stored = state.metadata.find("lengthened"); stored != state.metadata.end()) {
        const size_t blank = stored->second.find(' ');
        char* end = nullptr;
        schedule.lengthened_at = whole_number(state, "lengthened", stored->second.substr(0, blank));
        schedule.lengthened_lr =
            strtod(stored->second.c_str() + std::min(blank, stored->second.size()), &end);
        if (blank == std::string::npos || *end || !std::isfinite(schedule.lengthened_lr))
            fail("%s: metadata: lengthened is %s, expected a step and a learning rate", state.path.c_str(),
                 quoted(stored->second).c_str());
    }
    if (run.steps_before < 0) return schedule;
    const int64_t steps = schedule.steps;
    schedule.steps = run.steps_before;
    schedule = lengthened(schedule, run.step, steps);
    run.resumed_note += strf("; made longer, %lld -> %lld steps: the learning rate goes on from %g",
                             (long long)run.steps_before, (long long)steps, schedule.at(run.step));
    return schedule;
}

// A name that is no preset has to be a file: says what it may have meant otherwise.
static void check_init_name(const std::string& name) {
    if (access(name.c_str(), F_OK) == 0) return;
    std::vector<std::string> words;
    std::string list;
    for (const Preset& p : presets()) {
        words.push_back(p.name);
        list += (list.empty() ? "" : ", ") + words.back();
    }
    const std::string meant = nearest_word(name, words);
    fail("--init %s: no such file, and no preset; %sthe presets are %s", quoted(name).c_str(),
         meant.empty() ? "" : ("did you mean " + meant + "? ").c_str(), list.c_str());
}

// A number a flag gave, or else the preset's.
static size_t given_or(int64_t flag, size_t otherwise) { return flag > 0 ? size_t(flag) : otherwise; }

Run resolve_run(Options& options, Flags& flags,
                const std::function<size_t(Run& run, size_t rows)>& choose_batch) {
    Run run;
    if (flags.out.empty()) fail_usage("--out: the name of a folder is missing");
    run.flags = flags; // declared on `flags`; copied back below once restored
    if (flags.resume) {
        resume_flags(run, options);
    } else if (!checkpoint_steps(flags.out).empty()) {
        fail("%s already holds a run: continue it with --resume, or choose another --out", flags.out.c_str());
    } else if (access((flags.out + "/log.jsonl").c_str(), F_OK) == 0) {
        fail("%s already holds a run, which ended before its first checkpoint: this command line with "
             "--resume begins it anew (and keeps its log), or choose another --out",
             flags.out.c_str());
    }
    if (flags.train.empty() && flags.resume)
        fail_usage("--resume: %s holds no checkpoint (a run that is killed before its first leaves a log at "
                   "most): begin anew with the whole command line, --resume included",
                   flags.out.c_str());
    if (flags.train.empty()) fail_usage("--train is missing: a glob of token shards");
    if (options.given("keep-every") && flags.keep_every > 0 && flags.keep == 0)
        fail_usage("--keep-every goes with --keep N; without it all checkpoints are kept");
    const Preset* preset = find_preset(flags.init);
    const Preset from_checkpoint = {"", {}, 8, 8, 1000, 100, 3e-4};
    const Preset& defaults = preset ? *preset : from_checkpoint;
    if (!run.init_file && !preset) {
        check_init_name(flags.init);
        run.init_file.emplace(flags.init);
    }

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
        if (upcycling) {
            c.ffn = "moe";
            c.router = "sparsity";
        }
        change("ffn", c.ffn, flags.ffn, true);
        change("act", c.act, flags.act, true);
        change("experts", c.n_expert, size_t(flags.experts), true);
        change("active", c.n_expert_active, size_t(flags.active), true);
        change("d-expert", c.d_expert, size_t(flags.d_expert), true);
        change("keys", c.n_key, size_t(flags.keys), false);
        change("retrieve", c.n_retrieve, size_t(flags.retrieve), false);
        change("top", c.n_top, size_t(flags.top), false);
        change("d-key", c.d_key, size_t(flags.d_key), false);
        change("share", c.n_share, size_t(flags.share), false);
        change("router", c.router, flags.router, true);
        change("gate", c.gate, flags.gate, true);
        change("balance", c.balance, flags.balance, true);
        change("router-sd", c.router_sd, flags.router_sd, true);
        change("unit-top", c.unit_top, size_t(flags.unit_top), true);
        if (!from_file) {
            if (!options.given("act") && (c.monet() || c.peer())) c.act = c.monet() ? "relu2" : "gelu";
            take_equal_size(c);
        }
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
    if ((flags.l0_weight > 0 || flags.l0_target > 0) && (!c.moe() || c.topk()))
        fail("--l0-weight and --l0-target go with ffn moe and router sparsity, this is ffn %s, router %s",
             c.ffn.c_str(), c.router.c_str());
    if (flags.l0_weight > 0 && flags.l0_target > 0)
        fail("--l0-target sets the weight itself: leave --l0-weight out");
    if (flags.l1_weight > 0 && !((c.moe() || c.dense()) && c.relu()))
        fail("--l1-weight goes with relu units of ffn moe or dense, this is ffn %s, act %s", c.ffn.c_str(),
             c.act.c_str());
    if (flags.bias_init != 0 && (!(c.moe() || c.dense()) || c.geglu() || c.solu()))
        fail("--bias-init goes with relu and gelu units of ffn moe or dense, this is ffn %s, act %s",
             c.ffn.c_str(), c.act.c_str());
    if (flags.bias_init != 0 && from_file && !run.state_file)
        fail("--bias-init is for a new model, %s has its biases", run.init_file->path.c_str());
    run.l0_weight = flags.l0_weight;
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
    const size_t rows = flags.total_tokens > 0 ? size_t(flags.total_tokens) / run.T : defaults.rows;
    if (choose_batch && flags.batch == 0 && rows > 0) run.B = choose_batch(run, rows);
    const size_t micro = run.B * run.T;
    const size_t total = given_or(flags.total_tokens, std::max<size_t>(1, defaults.rows / run.B) * micro);
    if (total % micro)
        fail_usage("--total-tokens %zu is not a multiple of batch times seq, %zu x %zu = %zu", total, run.B,
                   run.T, micro);
    run.accumulate = total / micro;
    if (double(run.B) * double(run.T) * double(c.n_layer) *
            double(c.vocab_size + 9 * c.n_embd + 4 * c.n_expert + 4 * c.dense_width() +
                   c.n_key * (4 * c.d_expert + 4 * c.n_retrieve)) >
        0x1p50)
        fail("--batch %zu x --seq %zu: activations of this size do not fit into any memory", run.B, run.T);
    const int64_t steps = int64_t(given_or(flags.steps, defaults.steps));
    const int64_t warmup = flags.warmup >= 0 ? flags.warmup : std::min<int64_t>(defaults.warmup, steps / 10);
    run.schedule.lr = flags.lr > 0 ? flags.lr : defaults.lr;
    run.schedule.final_fraction = flags.final_lr_frac;
    run.schedule.warmup = warmup;
    run.schedule.steps = steps;
    if (run.schedule.warmup > run.schedule.steps)
        fail_usage("--warmup %lld is more than --steps %lld", (long long)run.schedule.warmup,
                   (long long)run.schedule.steps);
    flags.batch = int64_t(run.B);
    flags.seq = int64_t(run.T);
    flags.total_tokens = int64_t(total);
    flags.steps = run.schedule.steps;
    flags.warmup = run.schedule.warmup;
    flags.lr = run.schedule.lr;

    if (run.state_file) {
        const std::string& was = metadata_entry(*run.state_file, "data");
        if (was != run.data)
            fail("--resume: %s trained on other data: %s (was %s)", flags.out.c_str(), run.data.c_str(),
                 was.c_str());
        run.train->position =
            uint64_t(whole_number(*run.state_file, "position", metadata_entry(*run.state_file, "position")));
        run.schedule = resumed_schedule(run, run.schedule);
        if (flags.l0_target > 0) run.l0_weight = real_number(*run.state_file, "l0_weight");
    }
    run.flags = flags;
    return run;
}

std::vector<std::pair<std::string, std::string>> agreement(const Run& run, const Options& options) {
    std::vector<std::pair<std::string, std::string>> list = {
        {"the step of the checkpoint", std::to_string(run.step)},
        {"the training data", run.data},
        {"the validation data", run.val ? strf("%zu samples of %zu", run.val->samples, run.val->T) : "none"}};
    for (const std::string& name : options.names())
        if (options.stored(name) != Stored::No && name != "train" && name != "val" && name != "tokenizer")
            list.push_back({"--" + name, options.text(name)});
    return list;
}

std::string reference_only(const Flags& f) {
    if (f.l1_weight > 0) return "--l1-weight";
    return "";
}

double next_l0_weight(double weight, double l0, double target, int64_t t, int64_t warmup) {
    if (t < warmup) return 0;
    if (weight == 0) return 1e-3;
    if (t % 100) return weight;
    return std::clamp(weight * std::exp(0.2 * std::clamp((l0 - target) / target, -1.0, 1.0)), 1e-6, 1.0);
}

Strings state_strings(const Run& run, const Options& options) {
    Strings strings = {{"format", "pt"},
                       {"model", "moex-state"},
                       {"step", std::to_string(run.step)},
                       {"position", std::to_string(run.train->position)},
                       {"data", run.data}};
    if (run.flags.l0_target > 0) strings["l0_weight"] = strf("%.17g", run.l0_weight);
    if (run.schedule.lengthened_at >= 0)
        strings["lengthened"] =
            strf("%lld %.17g", (long long)run.schedule.lengthened_at, run.schedule.lengthened_lr);
    strings.merge(flag_strings(options));
    return strings;
}
