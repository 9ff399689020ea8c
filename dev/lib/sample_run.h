// Sampling, apart from the arithmetic: the flags, the prompt, streaming, the board, the trace. The CPU and
// the CUDA sampler share all of it and bring an Engine, which reads one token at a time.
#pragma once
#include "../../data/chess.h"
#include "checkpoint.h"
#include "options.h"
#include "sampler.h"
#include "terminal.h"
#include <functional>

struct SampleFlags {
    std::string ckpt, prompt, tokenizer;
    int64_t tokens = 256, top_k = 0, seed = 1;
    double temperature = 1, top_p = 1;
    bool board = false, trace = false;

    void declare(Options& o) {
        o.add(0, "ckpt", "FILE|DIR", &ckpt, "a checkpoint, or the folder of a run for its newest one");
        o.add(0, "prompt", "TEXT", &prompt, "text to go on from (none: the beginning of a text or game)");
        o.add('n', "tokens", "TOKENS", &tokens, 0, 1 << 30,
              "tokens to sample; a text or game that ends ends the sample");
        o.add(0, "temperature", "X", &temperature, 0, 100, "0 takes the most probable token");
        o.add(0, "top-k", "K", &top_k, 0, 1 << 20, "only the K most probable tokens (0: all)");
        o.add(0, "top-p", "P", &top_p, 0, 1, "only the most probable tokens that together reach P");
        o.add(0, "seed", "N", &seed, 0, INT64_MAX, "same seed, same sample");
        o.add(0, "tokenizer", "FILE", &tokenizer, "GPT-2 only: the file written by data/fineweb.py");
        o.add(0, "board", &board,
              "chess: draw the position after the sampled moves, name the first illegal one");
        o.add(0, "trace", &trace,
              "per token and layer: the chosen experts with their weights and the strongest units");
    }
};

// What one layer did with the last token. Dense layers have no experts; their units are numbered as expert
// 0's.
struct TraceLayer {
    struct Choice {
        size_t expert;
        double weight;
    };
    struct Unit {
        size_t expert, index;
        double value; // w_j z_j: what the unit puts into the output
    };
    std::vector<Choice> experts;
    std::vector<Unit> units; // those that fired, any order
};

struct Engine {
    std::function<const float*(int32_t token)> step; // reads a token; logits (V) of the next one
    std::function<void()> restart;                   // forgets what was read
    std::function<std::vector<TraceLayer>()> trace;  // of the last token
};

inline void print_trace(size_t position, const std::string& text, std::vector<TraceLayer> layers,
                        size_t most = 6) {
    std::string shown;
    for (const unsigned char c : text)
        shown += c < 32 || c == 127 ? strf("\\x%02x", c) : std::string(1, char(c));
    printf("%4zu '%s'\n", position, shown.c_str());
    for (size_t l = 0; l < layers.size(); l++) {
        std::vector<TraceLayer::Unit>& units = layers[l].units;
        const size_t kept = std::min(most, units.size());
        std::partial_sort(units.begin(), units.begin() + kept, units.end(), [](const auto& a, const auto& b) {
            return std::fabs(a.value) > std::fabs(b.value);
        });
        printf("     layer %-2zu ", l);
        for (const auto& e : layers[l].experts) printf(" expert %zu %.2f ", e.expert, e.weight);
        printf("| %4zu units fire:", units.size());
        for (size_t i = 0; i < kept; i++) {
            if (layers[l].experts.empty())
                printf("  %zu %.2f", units[i].index, units[i].value);
            else
                printf("  %zu/%zu %.2f", units[i].expert, units[i].index, units[i].value);
        }
        printf("\n");
    }
}

inline void print_board(const std::string& text) {
    const chess::GameTextReader game = chess::parse_game_text(text);
    printf("%s",
           chess::draw_board(game.position, game.moves.empty() ? chess::no_move : game.moves.back()).c_str());
    const size_t ply = game.moves.size();
    if (game.ok())
        printf("all %zu moves are legal\n", ply);
    else
        printf("the first %zu moves are legal; then move %zu of %s, %s: %s\n", ply, ply / 2 + 1,
               ply % 2 ? "Black" : "White", quoted(game.token).c_str(), game.error.c_str());
}

// Prints the sample on stdout as it comes, and tokens per second on stderr at the end.
inline void sample(const SampleFlags& flags, const Config& config, Engine& engine) {
    if (config.tokenizer.empty())
        fail("%s: its tokenizer is unstated, so its tokens cannot be printed", flags.ckpt.c_str());
    const TextTokenizer tokenizer =
        TextTokenizer::load(tokenizer_from_name(config.tokenizer), flags.tokenizer);
    const bool is_chess = tokenizer.kind == TOKENIZER_CHESS;
    if (flags.board && !is_chess)
        fail("--board: the model's tokenizer is %s, expected chess-32", config.tokenizer.c_str());

    std::vector<int32_t> tokens = tokenizer.encode(flags.prompt);
    if (tokens.empty() || (is_chess && tokens[0] != tokenizer.start()))
        tokens.insert(tokens.begin(), tokenizer.start());
    const size_t prompt_tokens = tokens.size();
    std::string text;
    auto show = [&](int32_t token) {
        const std::string piece = tokenizer.decode(token);
        text += piece;
        if (flags.trace) return;
        const std::string shown = isatty(1) ? printable(piece) : piece;
        fwrite(shown.data(), 1, shown.size(), stdout), fflush(stdout);
    };

    Sampler sampler;
    sampler.temperature = flags.temperature, sampler.top_k = flags.top_k, sampler.top_p = flags.top_p;
    const float* logits = nullptr;
    size_t read = 0, in_context = 0, sampled = 0; // tokens read by the engine: in all, since its last restart
    double begin = now_seconds();
    auto feed = [&](int32_t token) {
        if (in_context == config.block_size) { // full: go on from the second half of what it saw
            const size_t keep = config.block_size / 2;
            engine.restart();
            in_context = 0;
            for (size_t i = read - keep; i < read; i++, in_context++) engine.step(tokens[i]);
        }
        logits = engine.step(token);
        in_context++;
        for (size_t v = 0; v < config.vocab_size; v++)
            if (!std::isfinite(logits[v]))
                fail("%s: its logits after %zu tokens are not finite", flags.ckpt.c_str(), read + 1);
        if (flags.trace) print_trace(read, tokenizer.decode(token), engine.trace());
        read++;
    };
    for (const int32_t token : tokens) show(token);
    for (size_t i = 0; i < tokens.size(); i++) feed(tokens[i]);
    const double prompt_seconds = now_seconds() - begin;
    begin = now_seconds();
    while (sampled < size_t(flags.tokens)) {
        const int32_t token =
            sampler.choose(logits, config.vocab_size,
                           random_uniform(uint64_t(flags.seed), random_stream("sample"), sampled));
        sampled++;
        if (token == tokenizer.start()) break; // the next text or game would begin here
        tokens.push_back(token);
        show(token);
        if (sampled < size_t(flags.tokens)) feed(token);
    }
    const double seconds = now_seconds() - begin;
    if (flags.trace) printf("%s", text.c_str());
    printf("\n");
    if (flags.board) print_board(text);
    fflush(stdout);
    fprintf(stderr, "%zu tokens in %.2f s, %s tokens/s (prompt: %zu tokens in %.2f s)\n", sampled, seconds,
            human_count(seconds > 0 ? sampled / seconds : 0).c_str(), prompt_tokens, prompt_seconds);
}
