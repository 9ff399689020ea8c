// Sampling from prompts side by side, and what is printed of it.
#include "sample_run.h"
#include "sampler.h"
#include <algorithm>

void SampleFlags::declare(Options& o) {
    o.add(0, "ckpt", "FILE|DIR", &ckpt, "a checkpoint, or the folder of a run for its newest one");
    o.add(0, "prompt", "TEXT", &prompt, "text to go on from (none: the beginning of a text or game)");
    o.add(0, "prompts", "FILE", &prompts, "a file of prompts, one per line: a sample from each");
    o.add('n', "tokens", "TOKENS", &tokens, 0, 1 << 30,
          "tokens to sample; a text or game that ends ends the sample");
    o.add(0, "temperature", "X", &temperature, 0, 100, "0 takes the most probable token");
    o.add(0, "top-k", "K", &top_k, 0, 1 << 20, "only the K most probable tokens (0: all)");
    o.add(0, "top-p", "P", &top_p, 0, 1, "only the most probable tokens that together reach P");
    o.add(0, "seed", "N", &seed, 0, INT64_MAX, "same seed and prompt, same sample");
    o.add(0, "tokenizer", "FILE", &tokenizer, "GPT-2 only: the file written by data/fineweb.py");
    o.add(0, "board", &board, "chess: draw the position after the sampled moves, name the first illegal one");
    o.add(0, "trace", &trace,
          "per token and layer: the chosen experts with their weights and the strongest units");
    o.add_threads();
    o.section("Intervene");
    changes.declare(o);
    contrast.declare(o);
}

std::vector<std::string> SampleFlags::texts() const {
    if (prompts.empty()) return {prompt};
    if (!prompt.empty()) fail_usage("--prompt and --prompts are both given, expected one of them");
    const MappedFile file(prompts);
    std::vector<std::string> lines;
    const char *at = (const char*)file.data, *end = at + file.size;
    while (at < end) {
        const char* newline = std::find(at, end, '\n');
        lines.emplace_back(at, newline);
        if (!lines.back().empty() && lines.back().back() == '\r') lines.back().pop_back();
        at = newline + (newline < end);
    }
    if (lines.empty()) fail("%s: the file is empty, expected one prompt per line", prompts.c_str());
    return lines;
}

static std::string trace_text(size_t position, const std::string& token, std::vector<TraceLayer> layers) {
    const size_t most = 6; // units shown of a layer

    std::string text = strf("%4zu '", position);
    for (const unsigned char c : token)
        text += c < 32 || c == 127 ? strf("\\x%02x", c) : std::string(1, char(c));
    text += "'\n";
    for (size_t l = 0; l < layers.size(); l++) {
        std::vector<TraceLayer::Unit>& units = layers[l].units;
        const size_t kept = std::min(most, units.size());
        std::partial_sort(units.begin(), units.begin() + kept, units.end(), [](const auto& a, const auto& b) {
            return std::fabs(a.value) > std::fabs(b.value);
        });
        text += strf("     layer %-2zu ", l);
        for (const auto& e : layers[l].experts) text += strf(" expert %zu %.2f ", e.expert, e.weight);
        text += strf("| %4zu units fire:", units.size());
        for (size_t i = 0; i < kept; i++) {
            if (layers[l].experts.empty())
                text += strf("  %zu %.2f", units[i].index, units[i].value);
            else
                text += strf("  %zu/%zu %.2f", units[i].expert, units[i].index, units[i].value);
        }
        text += "\n";
    }
    return text;
}

static std::string board_text(const std::string& text) {
    const chess::GameTextReader game = chess::parse_game_text(text);
    const size_t ply = game.moves.size();
    return chess::draw_board(game.position, game.moves.empty() ? chess::no_move : game.moves.back(),
                             escapes_wanted(1)) +
           (game.ok() ? strf("all %zu moves are legal\n", ply)
                      : strf("the first %zu moves are legal; then move %zu of %s, %s: %s\n", ply, ply / 2 + 1,
                             ply % 2 ? "Black" : "White", quoted(game.token).c_str(), game.error.c_str()));
}

size_t context_begin(size_t read, size_t block_size) {
    const size_t leap = block_size - block_size / 2;
    return read < block_size ? 0 : (read - block_size) / leap * leap + leap;
}

// One text on its way.
struct Sample {
    static constexpr size_t nothing = SIZE_MAX;
    std::vector<int32_t> tokens; // the prompt's, then those sampled
    size_t prompt = 0, read = 0; // tokens of the prompt; tokens read
    size_t context = nothing;    // its place has read the tokens from here on
    std::string text, out;       // all of it; what is still to be printed
    bool finished = false;

    size_t sampled() const { return tokens.size() - prompt; }
};

// The prompts as tokens. Every text and game begins with the token that stands before it in training.
static std::vector<Sample> begin_samples(const SampleFlags& flags, const std::vector<std::string>& prompts,
                                         const TextTokenizer& tokenizer) {
    std::vector<Sample> samples(prompts.size());
    for (size_t i = 0; i < prompts.size(); i++) {
        Sample& x = samples[i];
        try {
            x.tokens = tokenizer.encode(prompts[i]);
        } catch (const Error& e) {
            if (flags.prompts.empty()) throw;
            fail("%s:%zu: %s", flags.prompts.c_str(), i + 1, e.what());
        }
        if (x.tokens.empty() || (tokenizer.kind == TOKENIZER_CHESS && x.tokens[0] != tokenizer.start()))
            x.tokens.insert(x.tokens.begin(), tokenizer.start());
        x.prompt = x.tokens.size();
        if (!flags.prompts.empty()) x.out = strf("--- prompt %zu: %s\n", i + 1, quoted(prompts[i]).c_str());
    }
    return samples;
}

// Text for stdout: on a terminal without what would steer it.
static std::string shown(const std::string& text) { return isatty(1) ? printable(text) : text; }

// All prompts on their way through the places of an engine. A place takes the next prompt when it is free; a
// turn reads one token of every text and chooses what follows it. A sample depends on its prompt and the
// flags alone, not on what is sampled beside it.
struct Sampling {
    const SampleFlags& flags;
    const Config& config;
    const Engine& engine;
    const TextTokenizer& tokenizer;
    std::vector<Sample> samples;
    std::vector<Sample*> at;       // (places) what each place works on; null: free
    std::vector<int32_t> feed;     // (places) the token that each reads in this turn; -1: none
    std::vector<int32_t> chosen;   // (places) the token that follows; -1: its logits are not finite
    std::vector<Sampler> samplers; // (places)
    std::vector<std::vector<float>> contrasted; // (places) (V) with --contrast
    size_t begun = 0, printed = 0;              // samples; all before `printed` are out
    size_t sampled = 0, prompt_tokens = 0;
    double prompt_seconds = 0, step_seconds = 0;

    Sampling(const SampleFlags& flags, const Config& config, const Engine& engine,
             const TextTokenizer& tokenizer, std::vector<Sample> all);

    void run();

    // A free place takes the next prompt and reads all but its last token.
    void begin(size_t place);
    // Sees to it that the place has read what comes before the next token of its sample.
    void make_ready(size_t place);
    void feed_next(size_t place) {
        make_ready(place);
        feed[place] = at[place]->tokens[at[place]->read++];
    }
    void step();
    // The next token of every text: of those the tokenizer has words for, since a vocabulary may be padded.
    void choose();
    // Puts the chosen token behind its text, which may end with it.
    void take(size_t place);

    void add_text(Sample& x, int32_t token) const;
    // In the order of the prompts: what comes after an unfinished sample waits.
    void print();
};

Sampling::Sampling(const SampleFlags& flags, const Config& config, const Engine& engine,
                   const TextTokenizer& tokenizer, std::vector<Sample> all)
    : flags(flags), config(config), engine(engine), tokenizer(tokenizer), samples(std::move(all)),
      at(engine.places), feed(engine.places, -1), chosen(engine.places), samplers(engine.places),
      contrasted(engine.places) {
    for (Sampler& s : samplers) {
        s.temperature = flags.temperature;
        s.top_k = flags.top_k;
        s.top_p = flags.top_p;
    }
}

void Sampling::run() {
    while (printed < samples.size()) {
        for (size_t place = 0; place < at.size(); place++)
            if (!at[place] && begun < samples.size()) begin(place);
        for (size_t place = 0; place < at.size(); place++)
            if (at[place]) feed_next(place);
        step();
        choose();
        for (size_t place = 0; place < at.size(); place++)
            if (at[place]) take(place);
        print();
    }
}

void Sampling::begin(size_t place) {
    const double begin_seconds = now_seconds();
    Sample& x = samples[begun++];
    at[place] = &x;
    for (const int32_t token : x.tokens) add_text(x, token);
    print();
    while (flags.trace && x.read + 1 < x.prompt) {
        feed_next(place);
        step();
    }
    x.read = x.prompt - 1;
    x.context = Sample::nothing; // traced or not, the prompt is read the same way
    make_ready(place);
    prompt_tokens += x.prompt;
    prompt_seconds += now_seconds() - begin_seconds;
}

void Sampling::make_ready(size_t place) {
    Sample& x = *at[place];
    const size_t first = context_begin(x.read, config.block_size);
    if (first != x.context) engine.restart(place, x.tokens.data() + first, x.read - first);
    x.context = first;
}

void Sampling::step() {
    const double begin_seconds = now_seconds();
    engine.step(feed);
    step_seconds += now_seconds() - begin_seconds;
    for (size_t place = 0; place < at.size() && flags.trace; place++)
        if (feed[place] >= 0)
            at[place]->out +=
                trace_text(at[place]->read - 1, tokenizer.decode(feed[place]), engine.trace(place));
    std::fill(feed.begin(), feed.end(), -1);
}

void Sampling::choose() {
    const size_t V = std::min(config.vocab_size, tokenizer.vocab_size());
#pragma omp parallel for schedule(dynamic) if (at.size() * V > 1 << 16) // waking threads takes longer
    for (size_t place = 0; place < at.size(); place++) {
        chosen[place] = -1;
        if (!at[place]) continue;
        const float* logits = engine.logits(place);
        const double u = random_uniform(uint64_t(flags.seed), random_stream("sample"), at[place]->sampled());
        if (engine.weak_logits) {
            std::vector<float>& out = contrasted[place];
            out.resize(V);
            contrast(out.data(), logits, engine.weak_logits(place), V, flags.contrast.beta,
                     flags.contrast.alpha);
            logits = out.data();
        }
        if (std::all_of(logits, logits + V, [](float x) { return std::isfinite(x); }))
            chosen[place] = samplers[place].choose(logits, V, u);
    }
}

void Sampling::take(size_t place) {
    Sample& x = *at[place];
    const int32_t token = chosen[place];
    if (token < 0) fail("%s: its logits after %zu tokens are not finite", flags.ckpt.c_str(), x.read);
    const size_t most = size_t(flags.tokens);
    bool ended = most == 0;
    if (!ended) {
        sampled++;
        ended = token == tokenizer.start(); // the next text or game would begin here
    }
    if (!ended) {
        x.tokens.push_back(token);
        add_text(x, token);
    }
    if (!ended && x.sampled() < most) return;
    if (flags.trace) x.out += shown(x.text);
    x.out += "\n";
    if (flags.board) x.out += board_text(x.text);
    x.finished = true;
    at[place] = nullptr;
}

void Sampling::add_text(Sample& x, int32_t token) const {
    const std::string piece = tokenizer.decode(token);
    x.text += piece;
    if (!flags.trace) x.out += shown(piece);
}

void Sampling::print() {
    while (printed < samples.size()) {
        Sample& x = samples[printed];
        fwrite(x.out.data(), 1, x.out.size(), stdout);
        x.out.clear();
        if (!x.finished) break;
        printed++;
    }
    flush_results();
}

void sample(const SampleFlags& flags, const std::vector<std::string>& prompts, const Config& config,
            const Engine& engine) {
    if (config.tokenizer.empty())
        fail("%s: its tokenizer is unstated, so its tokens cannot be printed", flags.ckpt.c_str());
    const TextTokenizer tokenizer =
        TextTokenizer::load(tokenizer_from_name(config.tokenizer), flags.tokenizer);
    if (flags.board && tokenizer.kind != TOKENIZER_CHESS)
        fail("--board: the model's tokenizer is %s, expected chess-32", config.tokenizer.c_str());
    const double start = now_seconds();
    Sampling sampling(flags, config, engine, tokenizer, begin_samples(flags, prompts, tokenizer));
    sampling.run();

    const double seconds = now_seconds() - start - sampling.prompt_seconds;
    std::string moved;
    if (engine.bytes)
        moved = strf(", %s moved at %.3g GB/s", human_bytes(engine.bytes()).c_str(),
                     sampling.step_seconds > 0 ? engine.bytes() / sampling.step_seconds / 1e9 : 0);
    fprintf(stderr, "%zu tokens in %.2f s, %s tokens/s%s (prompt: %zu tokens in %.2f s)\n", sampling.sampled,
            seconds, human_count(seconds > 0 ? double(sampling.sampled) / seconds : 0).c_str(), moved.c_str(),
            sampling.prompt_tokens, sampling.prompt_seconds);
}
