// train_sae: sparse autoencoders (sae.h) on the activations of a checkpoint, one for each layer asked for,
// from one forward pass. It stops, resumes and logs as the trainers do: OUT/state.safetensors holds what
// exact resume needs, OUT/layer_N.safetensors the SAEs as they are (sae_file.h), OUT/log.jsonl a line for
// each step.
//
// Activations come in chunks of 16 batches: so many rows of the training shards, in the loader's order, are
// read by the model, and their tokens are dealt out to the batches by a seeded permutation. What a chunk
// holds depends on its number alone, and a resumed run finds its place by the step.
#include "../../lib/stop.h"
#include "../../run/print.h"
#include "../../run/stored_flags.h"
#include "../units_cpu.h"
#include "sae_file.h"

constexpr size_t chunk_batches = 16;

struct SaeFlags {
    std::string ckpt, train, out, layer = "all", site = "residual", kind = "batchtopk";
    int64_t width = 0, k = 32, tokens = 30'000'000, batch = 4096, seed = 1, untrained_seed = -1;
    int64_t print_every = 100, checkpoint_every = 1000;
    double lr = 0, lambda = 1e-3, p_end = 1;
    bool resume = false;

    void declare(Options& o) {
        const int64_t big = int64_t(1) << 40;
        o.add(0, "ckpt", "FILE|DIR", &ckpt, "a checkpoint, or the folder of a run for its newest one");
        o.add('i', "train", "GLOB", &train, "token shards whose activations it learns from", Stored::Free);
        o.add('o', "out", "DIR", &out, "folder for the SAEs and log.jsonl (none: sae beside the checkpoint)",
              Stored::No);
        o.add('y', "resume", &resume, "continue the run in --out, with its flags", Stored::No);
        o.add(0, "layer", "N|all", &layer, "the layer, or an SAE for each");
        o.add(0, "site", &site, sae_sites,
              "activations: the residual stream behind the layer, or what its feed-forward layer reads");
        o.section("The autoencoder");
        o.add(0, "kind", &kind, sae_kinds,
              "which latents are kept: the k largest on average, of every token, "
              "or all that are positive");
        o.add(0, "width", "F", &width, 0, 1 << 24,
              "latents (0: as many as the model, or a dense one's twin, has units; 8 for each channel if "
              "that is more)",
              Stored::FromPreset);
        o.add(0, "k", "K", &k, 1, 1 << 16, "latents a token keeps");
        o.add(0, "lambda", "WEIGHT", &lambda, 0, 1e6, "relu: of the penalty on latents");
        o.add(0, "p-end", "P", &p_end, 0.01, 1,
              "relu: the penalty's power falls from 1 to this (p-annealing)");
        o.section("Training");
        o.add(0, "tokens", "TOKENS", &tokens, 1, big, "tokens in all");
        o.add('b', "batch", "TOKENS", &batch, 1, 1 << 20, "tokens of a step");
        o.add('l', "lr", "RATE", &lr, 0, 1e30, "peak rate (0: 2e-4 sqrt(16384/F))", Stored::FromPreset);
        o.add(0, "seed", "N", &seed, 0, INT64_MAX, "of directions and data order");
        o.add(0, "untrained-seed", "SEED", &untrained_seed, -1, INT64_MAX,
              "a null: the activations of the untrained weights of that seed (-1: the checkpoint's)");
        o.add(0, "print-every", "STEPS", &print_every, 1, big, "steps between step lines", Stored::Free);
        o.add('n', "checkpoint-every", "STEPS", &checkpoint_every, 0, big,
              "steps between saves (0: at the end only)", Stored::Free);
    }
};

// One layer's SAE and its activations of the chunk.
struct LayerRun {
    SaeFile file;
    double scale = 0; // 0: not known yet
    Block chunk;      // (chunk_batches*batch,C), scaled
};

struct SaeRun {
    SaeFlags flags;
    Config config;
    std::string checkpoint, hash, data, state, note;
    std::optional<Loader> loader;
    std::optional<Reader> reader;
    std::vector<LayerRun> layers;
    size_t T = 0, F = 0;
    int64_t step = 0, steps = 0;
    uint32_t idle = 0;   // steps after which a latent is dead
    int64_t filled = -1; // the chunk that the layers hold

    size_t batch() const { return size_t(flags.batch); }
};

// ---------------------------------------------------------------------------------------------------------
// The state file: flags, place, and of every layer the weights, the moments and what else a step changes

static std::string prefix_of(const LayerRun& l, const char* family) {
    return strf("layer_%zu.%s", l.file.layer, family);
}

static constexpr std::pair<const char*, Block Sae::*> families[] = {
    {"", &Sae::weights}, {"m.", &Sae::moment_1}, {"v.", &Sae::moment_2}};

struct LayerNumber { // a number of a layer in the metadata
    const char* name;
    double& value;
};
static std::vector<LayerNumber> numbers_of(LayerRun& l) {
    return {{"scale", l.scale},  {"theta", l.file.sae.theta}, {"lambda", l.file.sae.lambda},
            {"p", l.file.sae.p}, {"fvu", l.file.fvu},         {"l0", l.file.l0}};
}

static void save(SaeRun& run, const Options& options, Log& log) {
    log.sync();
    Strings strings = flag_strings(options);
    strings["format"] = "pt";
    strings["model"] = "moex-sae-state";
    strings["step"] = std::to_string(run.step);
    strings["data"] = run.data;
    strings["weights"] = run.hash;
    for (LayerRun& l : run.layers)
        for (const LayerNumber& n : numbers_of(l)) strings[prefix_of(l, n.name)] = strf("%.17g", n.value);
    SafeTensorsWriter out(run.state, strings);
    for (LayerRun& l : run.layers) {
        for (const auto& [name, block] : families)
            for (const Tensor& t : l.file.sae.table)
                out.declare(prefix_of(l, name) + t.name, dtype_of<real>(), t.shape);
        out.declare(prefix_of(l, "idle"), F32, {run.F});
    }
    for (LayerRun& l : run.layers) {
        for (const auto& [name, block] : families)
            for (const Tensor& t : l.file.sae.table)
                out.write((l.file.sae.*block).data + t.offset, t.count * sizeof(real));
        const std::vector<float> idle(l.file.sae.idle.begin(), l.file.sae.idle.end());
        out.write(idle.data(), idle.size() * sizeof(float));
    }
    out.commit();
    for (LayerRun& l : run.layers) {
        l.file.tokens = uint64_t(run.step) * run.batch();
        l.file.dead = size_t(std::count_if(l.file.sae.idle.begin(), l.file.sae.idle.end(),
                                           [&](uint32_t n) { return n > run.idle; }));
        if (run.step > 0) write_sae(l.file, l.scale);
    }
}

static void read_tensor(const SafeTensorsFile& file, const std::string& name,
                        const std::vector<size_t>& shape, float* out) {
    const SafeTensor* t = file.find(name);
    if (!t) fail("%s: tensor %s is missing", file.path.c_str(), name.c_str());
    if (t->shape != shape)
        fail("%s: tensor %s has shape %s, expected %s", file.path.c_str(), name.c_str(),
             shape_text(t->shape).c_str(), shape_text(shape).c_str());
    read_floats(*t, out);
}

static void restore(SaeRun& run, const SafeTensorsFile& file) {
    for (LayerRun& l : run.layers) {
        for (const LayerNumber& n : numbers_of(l)) {
            const std::string& text = metadata_entry(file, prefix_of(l, n.name));
            char* end = nullptr;
            n.value = strtod(text.c_str(), &end);
            if (text.empty() || *end || !std::isfinite(n.value))
                fail("%s: metadata: %s is %s, expected a number", file.path.c_str(),
                     prefix_of(l, n.name).c_str(), quoted(text).c_str());
        }
        for (const auto& [name, block] : families)
            for (const Tensor& t : l.file.sae.table)
                read_tensor(file, prefix_of(l, name) + t.name, t.shape, (l.file.sae.*block).data + t.offset);
        std::vector<float> idle(run.F);
        read_tensor(file, prefix_of(l, "idle"), {run.F}, idle.data());
        l.file.sae.idle.assign(idle.begin(), idle.end());
    }
}

// ---------------------------------------------------------------------------------------------------------
// From flags to a run

static std::vector<size_t> wanted_layers(const std::string& text, size_t n_layer) {
    std::vector<size_t> layers(n_layer);
    std::iota(layers.begin(), layers.end(), size_t(0));
    if (text == "all") return layers;
    size_t layer = 0;
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), layer);
    if (error != std::errc() || stop != text.data() + text.size() || layer >= n_layer)
        fail_usage("--layer: %s, expected all or 0 to %zu", quoted(text).c_str(), n_layer - 1);
    return {layer};
}

// Where the run stands, and its flags, if it is to go on from a state file.
static std::optional<SafeTensorsFile> resume(SaeRun& run, Options& options, SaeFlags& flags) {
    if (flags.out.empty() && flags.ckpt.empty() && flags.resume)
        fail_usage("--resume: --out is missing, the folder of the run");
    if (flags.out.empty()) flags.out = parent_directory(find_checkpoint(flags.ckpt)) + "/sae";
    run.state = flags.out + "/state.safetensors";
    const bool there = access(run.state.c_str(), F_OK) == 0;
    if (there && !flags.resume)
        fail("%s already holds a run: continue it with --resume, or choose another --out", flags.out.c_str());
    if (!flags.resume) return std::nullopt;
    if (!there) {
        if (flags.train.empty() || flags.ckpt.empty())
            fail_usage("--resume: %s holds no state.safetensors: begin anew with the whole command line, "
                       "--resume included",
                       flags.out.c_str());
        run.note = "nothing to resume in " + flags.out + ": a new run";
        return std::nullopt;
    }
    SafeTensorsFile file(run.state);
    if (const auto model = file.metadata.find("model");
        model == file.metadata.end() || model->second != "moex-sae-state")
        fail("%s: not the state of a run of train_sae", run.state.c_str());
    const std::string differ = restore_flags(file, options);
    if (!differ.empty())
        fail("--resume: %s ran with other flags: %s; leave them out, or choose another --out",
             flags.out.c_str(), differ.c_str());
    run.step = whole_number(file, "step", metadata_entry(file, "step"));
    run.note = strf("resumed from %s, step %lld", run.state.c_str(), (long long)run.step);
    return file;
}

static void check_memory(const SaeRun& run) {
    const double C = double(run.config.n_embd), F = double(run.F), L = double(run.layers.size());
    const double saes = L * 4 * (2 * F * C + F + C), chunk = L * double(chunk_batches * run.batch()) * C,
                 step = double(run.batch()) * (F + 4 * C);
    const double needed = sizeof(real) * (saes + chunk + step),
                 there = double(sysconf(_SC_PHYS_PAGES)) * double(sysconf(_SC_PAGESIZE));
    if (needed > there)
        fail("this run needs %s of memory (activations of a chunk %s), the machine has %s: one --layer at a "
             "time, or a smaller --batch, would help",
             human_bytes(needed).c_str(), human_bytes(sizeof(real) * chunk).c_str(),
             human_bytes(there).c_str());
}

static void prepare(SaeRun& run, Options& options, SaeFlags& flags) {
    const std::optional<SafeTensorsFile> state = resume(run, options, flags);
    if (flags.train.empty()) fail_usage("--train is missing: a glob of token shards");
    const SafeTensorsFile model(find_checkpoint(flags.ckpt));
    run.checkpoint = model.path;
    run.hash = weights_hash(model.path);
    Config& c = run.config = read_config(model);

    const std::vector<Shard> shards = open_shards(flags.train);
    const ShardHeader& header = shards[0].header;
    run.data = data_fingerprint(shards);
    if (!c.tokenizer.empty() && c.tokenizer != tokenizer_name(header.tokenizer))
        fail("%s: its tokens are %s, but the model %s reads %s", flags.train.c_str(),
             tokenizer_name(header.tokenizer), model.path.c_str(), c.tokenizer.c_str());
    run.T = header.row ? std::min(c.block_size, header.row - 1) : c.block_size;
    run.loader.emplace(flags.train, run.T, c.vocab_size, true, uint64_t(flags.seed));
    if (state) {
        for (const auto& [name, now] : {std::pair{"data", run.data}, {"weights", run.hash}})
            if (const std::string& was = metadata_entry(*state, name); was != now)
                fail("--resume: %s began with other %s: %s (was %s)", flags.out.c_str(), name, now.c_str(),
                     was.c_str());
    }

    run.F = flags.width > 0 ? size_t(flags.width) : std::max(c.n_expert * c.d_expert, 8 * c.n_embd);
    if (size_t(flags.k) > run.F && flags.kind != "relu")
        fail("--k %lld is more than the %zu latents", (long long)flags.k, run.F);
    flags.width = int64_t(run.F);
    if (flags.lr == 0) flags.lr = 2e-4 * std::sqrt(16384.0 / double(run.F));
    run.steps = flags.tokens / flags.batch;
    if (run.steps == 0)
        fail("--tokens %lld are less than a batch of %lld", (long long)flags.tokens, (long long)flags.batch);
    run.idle = uint32_t(std::max<int64_t>(1, std::min<int64_t>(10'000'000, flags.tokens / 20) / flags.batch));
    run.flags = flags;
    const SaeKind kind =
        SaeKind(std::find(sae_kinds.begin(), sae_kinds.end(), flags.kind) - sae_kinds.begin());
    for (const size_t layer : wanted_layers(flags.layer, c.n_layer)) {
        LayerRun l{.file = {.path = strf("%s/layer_%zu.safetensors", flags.out.c_str(), layer),
                            .site = flags.site,
                            .checkpoint = run.checkpoint,
                            .weights = run.hash,
                            .layer = layer,
                            .untrained_seed = flags.untrained_seed,
                            .sae = Sae(kind, c.n_embd, run.F, size_t(flags.k), true)},
                   .chunk = Block()};
        l.file.sae.lambda = flags.lambda;
        l.file.sae.theta_share = std::max(1e-3, 20.0 / double(run.steps)); // a short run has no time for less
        run.layers.push_back(std::move(l));
    }
    check_memory(run);
    for (LayerRun& l : run.layers) l.chunk = Block(chunk_batches * run.batch() * c.n_embd);
    if (state) restore(run, *state);
    run.reader.emplace(cpu_reader(c, std::max<size_t>(1, std::min<size_t>(16, 16384 / run.T)), run.T));
    if (flags.untrained_seed >= 0)
        untrained_weights(*run.reader, uint64_t(flags.untrained_seed));
    else
        load_weights(*run.reader, model);
}

static void print_sae_settings(const SaeRun& run) {
    const SaeFlags& f = run.flags;
    const SettingsTable t(window_width(1));
    t.rule();
    t.row("machine", "CPU, %s, vectors of %d bits", threads_text().c_str(), 8 * vector_bytes);
    t.row("model", "%s%s", run.checkpoint.c_str(),
          f.untrained_seed < 0
              ? ""
              : strf(", with the untrained weights of seed %lld", (long long)f.untrained_seed).c_str());
    t.row("activations", "%s %s, %zu channels",
          f.site == "residual" ? "the residual stream behind" : "what the feed-forward layer reads in",
          f.layer == "all" ? "every layer" : ("layer " + f.layer).c_str(), run.config.n_embd);
    t.row("autoencoder", "%s, %zu latents%s", f.kind.c_str(), run.F,
          f.kind == "relu" ? strf(", lambda %g, power 1 to %g", f.lambda, f.p_end).c_str()
                           : strf(", %lld a token", (long long)f.k).c_str());
    t.row("training data", "%s: %s tokens per epoch", f.train.c_str(),
          human_count(double(run.loader->tokens_per_epoch)).c_str());
    t.row("steps", "%lld of %lld tokens, from step %lld", (long long)run.steps, (long long)f.batch,
          (long long)run.step);
    t.row("learning rate", "%g, warm-up over a twentieth, to 0 over the last fifth", f.lr);
    t.row("output", "%s", f.out.c_str());
    t.rule();
    if (!run.note.empty()) printf("%s\n", run.note.c_str());
    fflush(stdout);
}

// ---------------------------------------------------------------------------------------------------------
// From step to step

// The activations of a chunk, each token at its place in the batches.
static void fill_chunk(SaeRun& run, int64_t chunk) {
    const size_t C = run.config.n_embd, T = run.T, places = chunk_batches * run.batch();
    const size_t rows = (places + T - 1) / T, tokens = rows * T;
    std::vector<size_t> place(tokens, places); // of a token; places: it is left out
    const uint64_t key = random_u64(uint64_t(run.flags.seed), random_stream("sae chunk"), uint64_t(chunk));
    for (size_t i = 0; i < places; i++) place[permuted(i, tokens, key)] = i;

    Reader& reader = *run.reader;
    std::vector<int32_t> x(reader.max_B * T), y(reader.max_B * T);
    for (size_t first = 0; first < rows; first += reader.max_B) {
        const size_t B = std::min(reader.max_B, rows - first);
        run.loader->read(uint64_t(chunk) * rows + first, B, x.data(), y.data());
        reader.read(x.data(), B, T);
        for (LayerRun& l : run.layers) {
            const float* from = site_activations(reader, run.flags.site, l.file.layer);
            const real scale = real(l.scale == 0 ? 1 : l.scale);
            parallel_for(B * T, [&](size_t n) {
                const size_t to = place[first * T + n];
                for (size_t i = 0; i < C && to < places; i++)
                    l.chunk.data[to * C + i] = scale * real(from[n * C + i]);
            });
        }
    }
    for (LayerRun& l : run.layers) {
        if (l.scale != 0) continue; // else so that mean |x|^2 = C, from the first chunk
        double sum = 0;
        for (size_t i = 0; i < places * C; i++) sum += double(l.chunk.data[i]) * double(l.chunk.data[i]);
        l.scale = std::sqrt(double(C) * double(places) / sum);
        if (!std::isfinite(l.scale) || l.scale == 0)
            fail("%s: the activations of layer %zu are zero or not finite", run.checkpoint.c_str(),
                 l.file.layer);
        for (size_t i = 0; i < places * C; i++) l.chunk.data[i] *= real(l.scale);
        sae_start(l.file.sae, l.chunk.data, run.batch(), uint64_t(run.flags.seed),
                  random_stream("sae") + l.file.layer);
    }
    run.filled = chunk;
}

// What happens to a relu SAE at certain steps: dead latents start anew, the penalty's power falls.
static void events(SaeRun& run, LayerRun& l, const SaeActivations& t, const real* x) {
    if (l.file.sae.kind != SaeKind::relu) return;
    const int64_t step = run.step, steps = run.steps, third = steps / 3;
    if (step > 0 && (step == steps / 4 || step == steps / 2))
        sae_resample(l.file.sae, t, x, run.idle, uint64_t(run.flags.seed),
                     random_stream("sae resample") + uint64_t(step) * 1024 + l.file.layer);
    for (int64_t n = 1; n <= 10 && run.flags.p_end < 1; n++)
        if (step == third + (n - 1) * (steps - third) / 10)
            sae_anneal(l.file.sae, t, 1 - (1 - run.flags.p_end) * double(n) / 10);
}

static void log_step(Log& log, const SaeRun& run, const std::vector<SaeStep>& results, double lr,
                     double seconds) {
    JsonWriter out;
    out.open('{').member("step", run.step + 1);
    const auto list = [&](const char* name, auto value) {
        out.key(name).open('[');
        for (const SaeStep& r : results) out.value(value(r));
        out.close();
    };
    list("fvu", [](const SaeStep& r) { return r.fvu; });
    list("l0", [](const SaeStep& r) { return r.l0; });
    list("aux", [](const SaeStep& r) { return r.aux; });
    list("norm", [](const SaeStep& r) { return r.norm; });
    out.member("lr", lr).member("ms", 1e3 * seconds).member("tok_s", double(run.batch()) / seconds).close();
    log.append(out.text);
}

static void print_sae_step(const SaeRun& run, const std::vector<SaeStep>& results, double lr, double seconds,
                           double eta) {
    double fvu = 0, l0 = 0, dead = 0, norm = 0;
    const double L = double(results.size());
    for (size_t i = 0; i < results.size(); i++) {
        fvu += results[i].fvu / L;
        l0 += results[i].l0 / L;
        norm += results[i].norm / L;
        for (const uint32_t n : run.layers[i].file.sae.idle) dead += double(n > run.idle) / L;
    }
    const int64_t done = run.step + 1;
    const int width = int(std::to_string(run.steps).size());
    show_line(
        [&](size_t columns) {
            return fitted_line({{9, strf("step %*lld/%lld", width, (long long)done, (long long)run.steps)},
                                {8, strf("fvu %.4f", fvu)},
                                {6, strf("l0 %.1f", l0)},
                                {5, strf("dead %.0f", dead)},
                                {1, strf("norm %.3f", norm)},
                                {2, strf("lr %.2e", lr)},
                                {3, strf("%.1f ms", 1e3 * seconds)},
                                {4, human_count(double(run.batch()) / seconds) + " tok/s"},
                                {7, "eta " + human_duration(eta)}},
                               " | ", columns);
        },
        done % run.flags.print_every == 0 || done == 1 || done == run.steps);
}

static int train(int argc, char** argv) {
    SaeFlags flags;
    Options options("train_sae",
                    "Trains sparse autoencoders on the activations of a checkpoint, on the CPU.");
    flags.declare(options);
    if (!options.parse(argc, argv)) return 0;
    SaeRun run;
    prepare(run, options, flags);
    print_sae_settings(run);

    make_directories(run.flags.out);
    std::optional<Log> log;
    if (run.step > 0)
        log.emplace(run.flags.out, uint64_t(run.step));
    else
        log.emplace(run.flags.out);
    remove_unfinished(run.flags.out);
    { AtomicFile probe(run.state); } // a folder that takes no files: said now
    stop_on_signals(Reads::go_on);
    stop_on_broken_pipe();

    SaeActivations t(run.layers[0].file.sae, run.batch());
    const int64_t first = run.step;
    double training_seconds = 0;
    int64_t saved = first > 0 ? first : -1;
    int stop = 0;
    for (;; run.step++) {
        const bool last = run.step == run.steps;
        stop = stop_signal;
        const bool due =
            last || (run.flags.checkpoint_every > 0 && run.step % run.flags.checkpoint_every == 0);
        if (((run.step > first && due) || stop || last) && run.step > 0 && (saved != run.step || last)) {
            save(run, options, *log);
            saved = run.step;
        }
        if (last || stop) break;

        const double begin = now_seconds(), lr = run.flags.lr * sae_rate(run.step, run.steps);
        if (const int64_t chunk = run.step / int64_t(chunk_batches); chunk != run.filled)
            fill_chunk(run, chunk);
        std::vector<SaeStep> results;
        for (LayerRun& l : run.layers) {
            const real* x = l.chunk.data + size_t(run.step) % chunk_batches * run.batch() * run.config.n_embd;
            const SaeStep r = sae_step(l.file.sae, t, x, run.batch(), run.idle, uint64_t(run.step + 1), lr);
            if (!r.finite())
                fail("step %lld: layer %zu: fvu %g, norm %g; nothing was overwritten, a lower --lr may help",
                     (long long)run.step + 1, l.file.layer, r.fvu, r.norm);
            events(run, l, t, x);
            const double share = run.step == 0 ? 1 : 0.05; // running means over the last tens of steps
            l.file.fvu += share * (r.fvu - l.file.fvu);
            l.file.l0 += share * (r.l0 - l.file.l0);
            results.push_back(r);
        }
        const double seconds = now_seconds() - begin;
        training_seconds += seconds;
        log_step(*log, run, results, lr, seconds);
        print_sae_step(run, results, lr, seconds,
                       training_seconds / double(run.step + 1 - first) * double(run.steps - run.step - 1));
    }
    if (run.step < run.steps) {
        if (run.step == 0)
            printf("%sstopped before the first step\n", line_start());
        else
            printf("%sstopped at step %lld of %lld; to go on: %s\n", line_start(), (long long)run.step,
                   (long long)run.steps, resume_command({argv[0]}, run.flags.out).c_str());
        return 128 + stop;
    }
    for (const LayerRun& l : run.layers)
        printf("layer %-2zu  fvu %.4f   l0 %.1f   dead %zu of %zu   %s\n", l.file.layer, l.file.fvu,
               l.file.l0, l.file.dead, run.F, l.file.path.c_str());
    fflush(stdout);
    return stop_signal == SIGPIPE ? 128 + SIGPIPE : 0;
}

int main(int argc, char** argv) {
    return run_main([&] { return train(argc, argv); });
}
