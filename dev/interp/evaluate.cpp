// evaluate: what a checkpoint is worth on held-out data. Loss against what needs no model (uniform, unigram),
// active units and expert loads per layer, and for chess the share of positions whose most probable next move
// is legal: of the model as it is, or with experts and units switched off (run/routing.h). With --sae, too,
// what sparse autoencoders make of the activations, and of the loss. With --text, instead, perplexities of
// documents (perplexity.h).
#include "../../data/chess.h"
#include "../../data/loader.h"
#include "../cpu/decode.h"
#include "../lib/options.h"
#include "../lib/terminal.h"
#include "../run/checkpoint.h"
#include "../run/sampler.h"
#include "perplexity.h"
#include "sae/evaluate_sae.h"
#include <mutex>
#include <numeric>

struct Evaluation {
    double loss = 0, uniform = 0, unigram = 0;
    size_t tokens = 0;
    std::vector<double> l0;                // (L) active units per token
    std::vector<std::vector<double>> load; // (L,E) share of the assignments
    std::vector<double> ply_loss;          // chess, by ply: mean cross-entropy of its characters
    std::vector<size_t> ply_tokens;        // how many those are
};

// Adds the losses of a row to those of the plies they belong to: ply p is written from the end of ply p - 1
// up to the blank behind it, move number included, and where no ply p comes it is the end of the game.
// Nothing is added behind what is no chess.  x (T) as text, losses (T) of what follows each
static void add_by_ply(Evaluation& e, const std::string& x, const real* losses) {
    chess::GameTextReader game;
    for (size_t t = 0; t < x.size(); t++) {
        game.push(x[t]);
        if (!game.ok()) return;
        const size_t ply = game.moves.size(); // counted from 0
        if (ply >= e.ply_loss.size()) {
            e.ply_loss.resize(ply + 1);
            e.ply_tokens.resize(ply + 1);
        }
        e.ply_loss[ply] += double(losses[t]);
        e.ply_tokens[ply]++;
    }
}

// Mean cross-entropy over up to `rows` sequences, beside that of a uniform guess and of the data's own token
// frequencies (the best any model without context can do).
static Evaluation evaluate(Model& model, Loader& data, size_t rows, size_t T) {
    const Config& c = model.config;
    Evaluation e;
    e.l0.resize(c.n_layer);
    e.load.assign(c.n_layer, std::vector<double>(c.n_expert));
    const size_t B = model.max_B, n = std::min(rows, data.samples);
    std::vector<int32_t> x(B * T), y(B * T);
    std::vector<double> seen(c.vocab_size);
    Progress progress("loss", "rows", double(n));
    for (size_t done = 0; done < n;) {
        const size_t b = std::min(B, n - done);
        data.next(b, x.data(), y.data());
        e.loss += forward(model, x.data(), y.data(), b, T).loss * double(b);
        for (size_t i = 0; i < b * T; i++) seen[y[i]]++;
        for (size_t r = 0; r < b && data.tokenizer == TOKENIZER_CHESS; r++) {
            std::string text;
            for (size_t t = 0; t < T; t++) text += chess_char(x[r * T + t]);
            add_by_ply(e, text, model.a.losses + r * T);
        }
        for (size_t l = 0; l < c.n_layer; l++) {
            const LayerActivations& h = model.a.h[l];
            e.l0[l] += double(h.active) / (n * T);
            for (size_t j = 0; j < c.n_expert && c.moe(); j++)
                e.load[l][j] += double(h.begin[j + 1] - h.begin[j]) / (n * T * c.n_expert_active);
        }
        done += b;
        progress.update(double(done));
    }
    progress.finish(double(n));
    e.loss /= double(n);
    e.tokens = n * T;
    for (size_t p = 0; p < e.ply_loss.size(); p++) e.ply_loss[p] /= double(e.ply_tokens[p]);
    e.uniform = std::log(double(c.vocab_size));
    for (const double count : seen)
        if (count > 0) e.unigram -= count / e.tokens * std::log(count / e.tokens);
    return e;
}

constexpr size_t last_ply = 40, plies_per_band = 10;

struct LegalMoves {
    static constexpr size_t bands = last_ply / plies_per_band;
    size_t positions[bands] = {}, legal[bands] = {};

    void add(const LegalMoves& other) {
        for (size_t b = 0; b < bands; b++) {
            positions[b] += other.positions[b];
            legal[b] += other.legal[b];
        }
    }

    size_t all_positions() const {
        return std::accumulate(std::begin(positions), std::end(positions), size_t(0));
    }
    size_t all_legal() const { return std::accumulate(std::begin(legal), std::end(legal), size_t(0)); }
};

// A text that is read by the model, and with --contrast at the same time with another routing.
struct Reading {
    Decoder strong;
    std::unique_ptr<Decoder> weak;
    double beta = 0, alpha = 0;
    std::vector<real> contrasted;

    explicit Reading(const Model& model) : strong(model) {}
    Reading(const Model& model, const Intervention& other, const ContrastFlags& c)
        : strong(model), weak(std::make_unique<Decoder>(model, other.K, other.routing)), beta(c.beta),
          alpha(c.alpha), contrasted(chess_vocab) {}

    size_t position() const { return strong.position; }
    void restart() {
        strong.refresh();
        if (weak) weak->refresh();
    }
    void step(int32_t token) {
        strong.step(token);
        if (weak) weak->step(token);
    }
    void go_back(size_t to) { // the caches beyond are overwritten
        strong.position = to;
        if (weak) weak->position = to;
    }
    const real* logits() { // of chess's tokens, of which the most probable are asked for
        if (!weak) return strong.logits.data();
        contrast(contrasted.data(), strong.logits.data(), weak->logits.data(), chess_vocab, beta, alpha);
        return contrasted.data();
    }
};
using MakeReading = std::function<Reading()>;

// Plays through one game of the data; before each of its moves up to ply 40 asks for the model's own move,
// character by character, each the most probable, and looks whether it is legal there. White's move number is
// given.
static void count_legal(Reading& reading, const std::string& text, LegalMoves& counts) {
    const size_t most_characters = 8; // no move is longer: Qa1xb2+ and its space
    chess::GameTextReader game;
    reading.restart();
    for (size_t i = 0;
         i < text.size() && reading.position() + most_characters < reading.strong.config.block_size; i++) {
        game.push(text[i]);
        if (!game.ok() || game.games > 1 || game.moves.size() >= last_ply) return;
        reading.step(chess_id(text[i]));
        const bool white = game.position.turn == chess::WHITE;
        if (!(white ? text[i] == '.' : text[i] == ' ')) continue; // only where a move begins
        const size_t here = reading.position();
        std::string move;
        while (move.size() < most_characters) {
            const real* logits = reading.logits();
            const char c = chess_char(int(std::max_element(logits, logits + chess_vocab) - logits));
            if (c == ' ' || c == ';') break;
            move += c;
            reading.step(chess_id(c));
        }
        reading.go_back(here);
        const size_t band = game.moves.size() / plies_per_band;
        counts.positions[band]++;
        counts.legal[band] += !chess::parse_san(game.position, move).error;
    }
}

static LegalMoves legal_moves(const MakeReading& reading, Loader& data, size_t games, size_t T) {
    const size_t n = std::min(games, data.samples);
    std::vector<std::string> texts(n);
    std::vector<int32_t> x(T), y(T);
    for (std::string& text : texts) {
        data.next(1, x.data(), y.data());
        for (const int32_t token : x) text += chess_char(token);
    }
    LegalMoves total;
    Progress progress("legal moves", "games", double(n));
    size_t done = 0;
    std::mutex mutex;
    Items games_left(n);
    parallel_parts(std::max<size_t>(1, std::min(thread_count(), n)), [&](size_t) {
        Reading one = reading();
        for (size_t i; games_left.take(&i);) {
            LegalMoves counts;
            count_legal(one, texts[i], counts);
            const std::lock_guard lock(mutex);
            total.add(counts);
            progress.update(double(++done));
        }
    });
    progress.finish(double(n));
    return total;
}

static void print_saes(const std::vector<SaeFile>& saes, const std::vector<SaeEvaluation>& results) {
    for (size_t i = 0; i < saes.size(); i++) {
        const SaeEvaluation& e = results[i];
        printf("sae       layer %zu   fvu %.4f   l0 %.1f   dead %zu of %zu   loss %.4f with it, %.4f with 0 "
               "there: "
               "%.1f%% recovered, perplexity %.3f -> %.3f\n",
               e.layer, e.fvu, e.l0, e.dead, saes[i].sae.F, e.loss_sae, e.loss_zero, 100 * e.recovered(),
               std::exp(e.loss), std::exp(e.loss_sae));
    }
}

// What the tables of dev/experiments read.
static std::string evaluation_json(const SafeTensorsFile& file, const Config& c, double seconds,
                                   const std::string& changes, const std::string& val, const Evaluation& e,
                                   const LegalMoves& moves, const std::vector<SaeFile>& saes,
                                   const std::vector<SaeEvaluation>& results) {
    const ParameterCount n = count_parameters(c, tensor_table(c));
    JsonWriter out = begin_json("evaluate", file.path, checkpoint_step(file), c, seconds);
    if (!changes.empty()) out.member("changed", changes);
    out.member("data", as_utf8(val)).member("tokens", e.tokens).member("loss", e.loss);
    out.member("uniform", e.uniform).member("unigram", e.unigram);
    out.member("parameters", n.total).member("active_parameters", n.active);
    out.key("l0").values(e.l0).key("load").open('[');
    for (const std::vector<double>& layer : e.load)
        if (c.moe()) out.values(layer);
    out.close();
    const size_t positions = moves.all_positions();
    out.member("positions", positions)
        .member("legal", positions ? double(moves.all_legal()) / double(positions) : NAN);
    out.key("legal_by_band").open('[');
    for (size_t b = 0; b < LegalMoves::bands && positions; b++) {
        const size_t n = moves.positions[b];
        out.open('{')
            .member("first_ply", b * plies_per_band + 1)
            .member("last_ply", (b + 1) * plies_per_band);
        out.member("positions", n).member("legal", n ? double(moves.legal[b]) / double(n) : NAN).close();
    }
    out.close();
    out.key("loss_by_ply").values(e.ply_loss).key("tokens_by_ply").values(e.ply_tokens);
    out.key("saes").open('[');
    for (size_t i = 0; i < saes.size(); i++) {
        const SaeEvaluation& s = results[i];
        out.open('{').member("layer", s.layer).member("site", saes[i].site).member("width", saes[i].sae.F);
        out.member("kind", sae_kinds[size_t(saes[i].sae.kind)]).member("k", saes[i].sae.k);
        out.member("fvu", s.fvu).member("l0", s.l0).member("dead", s.dead).member("loss", s.loss_sae);
        out.member("loss_zero", s.loss_zero).member("recovered", s.recovered()).close();
    }
    out.close().close();
    return out.text;
}

static int run(int argc, char** argv) {
    const double begin = now_seconds();
    std::string ckpt, val, text, sae, json;
    int64_t rows = 512, games = 100, seq = 0, stride = 0;
    InterventionFlags change;
    ContrastFlags contrast;
    Options options("evaluate", "Measures a checkpoint on held-out token shards, on the CPU.");
    options.add(0, "ckpt", "FILE|DIR", &ckpt, "a checkpoint, or the folder of a run for its newest one");
    options.add('j', "val", "GLOB", &val, "held-out token shards");
    options.add(0, "rows", "ROWS", &rows, 0, 1 << 30,
                "sequences to measure the loss on, at most (0: the whole set)");
    options.add(0, "games", "GAMES", &games, 0, 1 << 30,
                "chess: games to measure the legal-move rate on, at most");
    options.add('t', "seq", "TOKENS", &seq, 0, 1 << 24,
                "positions per sequence (0: as many as model and data have)");
    options.add(0, "sae", "FILE|DIR", &sae,
                "also what sparse autoencoders of train_sae make of its activations");
    options.add(
        0, "text", "FILE", &text,
        "instead of all that: perplexities of the documents of a NAME.spans.jsonl of data/text_eval.py");
    options.add(0, "stride", "TOKENS", &stride, 0, 1 << 24,
                "--text: by so many tokens windows move on (0: by all that they hold)");
    options.add(0, "json", "FILE", &json,
                "write the numbers there, too; chess: also loss by ply, legal moves by band");
    options.add_threads();
    options.section("Intervene");
    change.declare(options);
    contrast.declare(options);
    if (!options.parse(argc, argv)) return 0;
    if (val.empty() && text.empty()) fail_usage("--val is missing: a glob of token shards");
    const SafeTensorsFile file(find_checkpoint(ckpt));
    const Config trained = read_config(file);
    const Intervention changes = change.read(trained, file.path);
    const Config c = changes.apply(trained);
    const std::string changed = change.text() + contrast.text(change.text().empty() ? "" : " ");
    if (!changed.empty()) printf("with      %s\n", changed.c_str());
    if (!text.empty()) {
        if (contrast.given()) fail_usage("--contrast: here it is about legal moves, not about --text");
        const TextScores scores = evaluate_text(file, c, {text, size_t(seq), size_t(stride), changes});
        print_text_scores(scores, file.path, text);
        if (!json.empty()) write_json(json, text_scores_json(scores, file, c, text, now_seconds() - begin));
        return 0;
    }
    std::vector<SaeFile> saes;
    if (!sae.empty()) {
        saes = read_saes(sae);
        check_saes(saes, file.path, c);
    }
    const ShardHeader header = open_shards(val)[0].header;
    if (!c.tokenizer.empty() && c.tokenizer != tokenizer_name(header.tokenizer))
        fail("%s: its tokens are %s, but the model %s reads %s", val.c_str(),
             tokenizer_name(header.tokenizer), file.path.c_str(), c.tokenizer.c_str());
    const size_t row = header.row;
    if (contrast.given() && (header.tokenizer != TOKENIZER_CHESS || !row || games == 0))
        fail_usage("--contrast: here it is about legal moves, but %s has no games to ask for them",
                   games ? val.c_str() : "--games 0");
    const size_t T = seq > 0 ? size_t(seq) : row ? std::min(c.block_size, row - 1) : c.block_size;
    Loader data(val, T, c.vocab_size, false, 0);
    if (rows == 0) rows = int64_t(data.samples);
    Model model(c, std::max<size_t>(1, std::min<size_t>(16, 16384 / T)), T, false);
    if (!saes.empty() && saes[0].untrained_seed >= 0)
        init_parameters(c, model.table, model.weights.data, uint64_t(saes[0].untrained_seed));
    else
        read_block(file, model.table, "", model.weights.data);
    apply(model, changes);
    MakeReading reading = [&] { return Reading(model); };
    if (contrast.given())
        reading = [&, weak = contrast.weak(changes, trained, file.path)] {
            return Reading(model, weak, contrast);
        };

    const Evaluation e = evaluate(model, data, size_t(rows), T);
    if (!std::isfinite(e.loss)) fail("%s: its loss on %s is not finite", file.path.c_str(), val.c_str());
    printf("%s on %zu tokens of %s%s\n", file.path.c_str(), e.tokens, val.c_str(),
           row > T + 1 ? strf(" (the first %zu of the %zu tokens of each row)", T + 1, row).c_str() : "");
    printf("loss      %.4f   (uniform guess %.4f, token frequencies %.4f)   %.3f bits per token\n", e.loss,
           e.uniform, e.unigram, e.loss / std::log(2.0));
    for (size_t l = 0; l < c.n_layer; l++) {
        printf("layer %-2zu  %5.1f of %zu units fire", l, e.l0[l], c.most_active());
        if (c.moe()) printf("   expert load %%");
        for (size_t j = 0; j < c.n_expert && c.moe(); j++) printf(" %5.1f", 100 * e.load[l][j]);
        printf("\n");
    }
    LegalMoves m;
    if (data.tokenizer == TOKENIZER_CHESS && row && games > 0) {
        data.position = 0;
        m = legal_moves(reading, data, size_t(games), T);
        const size_t positions = m.all_positions(), legal = m.all_legal();
        printf("legal     %.1f%% of %zu positions up to ply %zu have a legal most probable move  (",
               positions ? 100.0 * legal / positions : 0.0, positions, last_ply);
        for (size_t b = 0; b < LegalMoves::bands; b++)
            printf("%splies %zu-%zu %.1f%%", b ? ", " : "", b * plies_per_band + 1, (b + 1) * plies_per_band,
                   m.positions[b] ? 100.0 * m.legal[b] / m.positions[b] : 0.0);
        printf(")\n");
    }
    std::vector<SaeEvaluation> results;
    if (!saes.empty()) results = evaluate_saes(model, saes, data, size_t(rows), T);
    print_saes(saes, results);
    if (!json.empty())
        write_json(json, evaluation_json(file, c, now_seconds() - begin, changed, val, e, m, saes, results));
    return 0;
}

int main(int argc, char** argv) {
    return run_main([&] { return run(argc, argv); });
}
