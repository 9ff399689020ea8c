// The model in the report's page: its weights rounded to 8 bits as embed.h says, and the page's script in a
// real Chromium beside the reference, on the same rounded weights. One start of Chromium looks at every page.
#include "../dev/cpu/decode.h"
#include "../dev/interp/report.h"
#include "../dev/interp/units_cpu.h"
#include "browser.h"
#include "random_games.h"
#include "variants.h"

// ---------------------------------------------------------------------------------------------------------
// Models

static Config config_of(const char* tokenizer, const char* ffn, const char* act, const char* router,
                        const Later& later) {
    Config c;
    c.n_layer = 3, c.n_head = 2, c.n_embd = 24, c.n_expert = 5, c.n_expert_active = 2, c.d_expert = 13;
    c.block_size = 256, c.tokenizer = tokenizer, c.ffn = ffn, c.act = act, c.router = router;
    c.vocab_size = tokenizer_vocab(tokenizer_from_name(tokenizer));
    set_later(c, later);
    return c;
}

// A folder with a checkpoint whose every tensor matters: logits of a few units' size, nothing 0 or 1.
static void write_model(const std::string& dir, const Config& c) {
    make_directories(dir);
    const std::vector<Tensor> table = tensor_table(c);
    std::vector<float> weights(block_elements(table));
    init_parameters(c, table, weights.data(), 1);
    for (const Tensor& t : table)
        for (size_t i = 0; i < t.count; i++) {
            float& w = weights[t.offset + i];
            const double x = random_normal(2, random_stream(t.name.c_str()), i);
            w = t.decay ? (t.name == "wte.weight" ? 30 : 8) * w
                        : w + float((t.name.ends_with("rho") ? .02 : .1) * x);
        }
    save_model(model_path(dir, 7), c, table, weights.data(), 7);
}

static Report write_page(const std::string& dir, int64_t embed = 4000000) {
    ReportOptions options;
    options.run = dir, options.embed = embed, options.rounded = dir + "/rounded.safetensors";
    return write_report(options, {});
}

// ---------------------------------------------------------------------------------------------------------
// Rounding

static void test_rounding(const std::string& folder) {
    const Config c = config_of("chess-32", "moe", "relu", "sparsity", {});
    const std::vector<Tensor> table = tensor_table(c);
    std::vector<float> weights(block_elements(table)), rounded;
    init_parameters(c, table, weights.data(), 3);
    std::fill_n(&weights[table[0].offset + 24], 24, 0.0f); // a row of zeros
    rounded = weights;
    round_weights(table, rounded.data());
    size_t matrices = 0, bytes = 0;
    for (const Tensor& t : table) {
        const size_t n = t.shape.back();
        bytes += t.decay ? 4 * (t.count / n) + (t.count + 3) / 4 * 4 : 4 * t.count;
        matrices += t.decay;
        double worst = 0;
        for (size_t r = 0; r < t.count / n; r++) {
            const float *x = &weights[t.offset + r * n], *y = &rounded[t.offset + r * n];
            double most = 0;
            for (size_t i = 0; i < n; i++) most = std::max(most, std::fabs(double(x[i])));
            for (size_t i = 0; i < n; i++) // half a step; of a vector nothing
                worst = std::max(worst, std::fabs(double(x[i]) - y[i]) - (t.decay ? most / 127 * .5001 : 0));
        }
        check(worst <= 0, "%s: %g too far", t.name.c_str(), worst);
    }
    check(matrices == 2 + 4 * c.n_layer && packed_weights(table, weights.data()).size() == bytes);
    weights[table.back().offset] = NAN;
    check_error(round_weights(table, weights.data()), "not finite", table.back().name);
    check_error(packed_weights(table, weights.data()), "not finite", table.back().name);

    const char* const pairs[][2] = {
        {"", ""}, {"f", "Zg=="}, {"fo", "Zm8="}, {"foo", "Zm9v"}, {"\xff\xfe\xfd\xfc", "//79/A=="}};
    for (const auto& [plain, coded] : pairs)
        check(base64(plain) == coded, "%s", base64(plain).c_str()); // RFC 4648

    // The file is the model as rounded, and its loss is what is said that rounding costs.
    const std::string dir = folder + "/rounding";
    write_model(dir, c);
    const Report page = write_page(dir);
    check(page.model == "runs in the page, in 8 bits", "%s", page.model.c_str());
    const SafeTensorsFile before(model_path(dir, 7)), after(dir + "/rounded.safetensors");
    std::vector<float> a(block_elements(table)), b(a.size());
    read_block(before, table, "", a.data()), read_block(after, table, "", b.data());
    check(a != b);
    round_weights(table, a.data());
    check(a == b && config_to_strings(read_config(after)) == config_to_strings(c));
    std::string text;
    for (const std::string& game : random_games(20, 1).texts) text += game + "\n";
    write_file(dir + "/games.txt", text);
    const RoundingCost cost = measure_rounding(dir, dir + "/games.txt", "", cpu_reader);
    check(cost.tokens == 20 * 255 && cost.error > 0 && cost.error < .01, "%zu %g", cost.tokens, cost.error);
    double losses[2] = {0, 0};
    const SafeTensorsFile* const files[] = {&before, &after};
    for (int i = 0; i < 2; i++) {
        Model model(c, 1, 255, false);
        read_block(*files[i], model.table, "", model.weights.data);
        for (const std::string& game : random_games(20, 1).texts) {
            std::vector<int32_t> tokens;
            for (const char x : game) tokens.push_back(chess_id(x));
            losses[i] += forward(model, tokens.data(), tokens.data() + 1, 1, 255).loss / 20;
        }
    }
    check_near(cost.loss, losses[0], 1e-4);
    check_near(cost.rounded, losses[1], 1e-4);
    check(std::fabs(cost.loss - cost.rounded) > 1e-6);

    // Weights that are not finite: the page says so, and no file is made of them.
    a[table.back().offset] = NAN;
    save_model(model_path(dir, 8), c, table, a.data(), 8);
    ReportOptions broken;
    broken.run = dir;
    check(write_report(broken, {}).model.find("ln_f.bias are not finite") != std::string::npos);
    check_error(write_page(dir), "model_00000008", "ln_f.bias are not finite");
    check(unlink(model_path(dir, 8).c_str()) == 0);

    // What is not put into a page, and what the page says of it.
    check(write_page(dir, 1000).model.find("With --embed") != std::string::npos);
    const Config peer = config_of("chess-32", "peer", "relu", "sparsity", {4, 2, 2, 8});
    check(page_cannot_run(peer).find("peer") != std::string::npos);
    check(!page_cannot_run(config_of("chess-32", "dense", "solu", "sparsity", {})).empty());
    check(!page_cannot_run(
               config_of("chess-32", "moe", "relu", "sparsity", {0, 0, 0, 0, 0, "chosen", "loss", "full"}))
               .empty());
}

// ---------------------------------------------------------------------------------------------------------
// The script beside the reference

// A change as the page's script takes it. unit < 0: of the expert, which a factor of 0 says is never chosen.
struct Change {
    size_t layer, expert;
    int unit;
    double factor;
};
// The same of the reference.
static Intervention intervention(const Config& c, const std::vector<Change>& changes) {
    Intervention v;
    for (const Change& x : changes)
        if (x.unit >= 0)
            v.units.push_back({x.layer, x.expert, size_t(x.unit), x.factor});
        else if (x.factor == 0)
            v.routing.set(c, x.layer, x.expert, Routing::off);
    return v;
}
static void scale_expert(Model& model, const Change& x) {
    const LayerParameters<real>& w = model.w.h[x.layer];
    const size_t D = model.config.d_expert, C = model.config.n_embd;
    for (size_t i = 0; i < D * C; i++) w.w_dec[x.expert * D * C + i] *= real(x.factor);
    for (size_t i = 0; i < C; i++) w.b_dec[x.expert * C + i] *= real(x.factor);
}

// The logits of every position, as the decoder of sample_cpu has them.
static void add_logits(JsonWriter& out, const std::string& checkpoint,
                       const std::vector<std::vector<int32_t>>& texts, const std::vector<Change>& changes) {
    const SafeTensorsFile file(checkpoint);
    Model model(read_config(file));
    read_block(file, model.table, "", model.weights.data);
    out.key("changes").open('[');
    apply(model, intervention(model.config, changes));
    for (const Change& x : changes) {
        if (x.unit < 0 && x.factor != 0) scale_expert(model, x);
        out.open('{').member("layer", x.layer).member("expert", x.expert).key("unit");
        x.unit < 0 ? out.value(NAN) : out.value(x.unit); // NaN: null
        out.member("off", x.unit < 0 && x.factor == 0).member("factor", x.factor).close();
    }
    out.close();
    Decoder decoder(model);
    out.key("texts").open('[');
    for (const std::vector<int32_t>& tokens : texts) {
        decoder.refresh();
        out.open('{').key("tokens").values(tokens).key("logits").open('[');
        for (const int32_t token : tokens) {
            decoder.step(token);
            out.open('[');
            for (const real x : decoder.logits) out.value(double(x), 9);
            out.close();
        }
        out.close().close();
    }
    out.close();
}

static const char* const look_script = R"js(
const lines = [], say = (ok, what) => lines.push((ok ? 'ok ' : 'no ') + what);
function embeddedOf(w, id) { return JSON.parse(w.document.getElementById('data-' + id).textContent); }
// Every logit of every position of whole texts, beside those of the reference.
function sameLogits(w, name, {texts, changes}) {
  const model = w.readModel(embeddedOf(w, 'model'), embeddedOf(w, 'run').config);
  let worst = 0, size = 0, count = 0;
  for (const {tokens, logits} of texts) {
    const decoder = w.newDecoder(model, w.changeOf(changes));
    tokens.forEach((token, t) => {
      const own = decoder.step(token);
      logits[t].forEach((x, v) => {
        const d = Math.abs(x - own[v]);
        if (!(d <= worst)) worst = d; // NaN stays
        size += x * x, count++;
      });
    });
  }
  say(worst <= 1e-4 && size / count > .3, `${name}: logits of ${count} differ by ${worst} at most, rms ${Math.sqrt(size / count)}`);
}
)js";

// The rules of chess: the legal moves of every position of games of random moves, and of positions that ask
// more.
static std::string legal_moves_json() {
    JsonWriter out;
    out.open('{').key("positions").open('[');
    const auto add = [&](const chess::Position& p) {
        std::vector<std::string> names;
        for (const chess::Move m : chess::legal_moves(p)) names.push_back(chess::to_san(p, m));
        std::sort(names.begin(), names.end());
        out.open('[').value(chess::to_fen(p)).values(names).close();
    };
    for (const char* fen : {"8/8/8/K2pP2r/8/8/8/7k w - d6 0 2", "8/8/8/2k5/3Pp3/8/8/4K3 b - d3 0 1",
                            "r3k2r/8/8/8/8/8/8/R3K2R w KQkq - 0 1", "r3k2r/8/8/8/8/8/6p1/R3K2R w KQkq - 0 1",
                            "1n2k3/P7/8/8/8/8/8/4K3 w - - 0 1", "4k3/8/8/8/1b6/8/3P4/4K3 w - - 0 1",
                            "7k/p7/8/8/Q1Q5/8/Q7/4K3 w - - 0 1", "6k1/8/8/N3N3/8/8/8/N3K2N w - - 0 1",
                            "7k/5Q2/6K1/8/8/8/8/8 b - - 0 1"})
        add(chess::parse_fen(fen));
    std::vector<std::string> texts;
    for (const uint64_t seed : {1, 2, 3, 4}) {
        Random random{seed, random_stream("page")};
        chess::Game game;
        std::vector<chess::Move> moves;
        while (moves.size() < 100 && game.outcome() == chess::UNFINISHED) {
            add(game.position);
            const chess::MoveList legal = chess::legal_moves(game.position);
            moves.push_back(legal.moves[random.below(legal.size)]);
            game.play(moves.back());
        }
        texts.push_back(chess::to_game_text(moves) + " ");
        texts.push_back(chess::to_fen(game.position));
    }
    out.close().key("games").values(texts).key("perft").open('[');
    const std::pair<const char*, int> counts[] = {
        {chess::start_fen, 3},
        {"r3k2r/p1ppqpb1/bn2pnp1/3PN3/1p2P3/2N2Q1p/PPPBBPPP/R3K2R w KQkq - 0 1", 3},
        {"8/2p5/3p4/KP5r/1R3p1k/8/4P1P1/8 w - - 0 1", 4},
        {"r3k2r/Pppp1ppp/1b3nbN/nP6/BBP1P3/q4N2/Pp1P2PP/R2Q1RK1 w kq - 0 1", 3},
        {"rnbq1k1r/pp1Pbppp/2p5/8/2B5/8/PPP1NnPP/RNBQK2R w KQ - 1 8", 2}};
    for (const auto& [fen, depth] : counts) {
        chess::Position p = chess::parse_fen(fen);
        out.open('[').value(fen).value(depth).value(chess::perft(p, depth)).close();
    }
    out.close().close();
    return out.text;
}

static const char* const chess_script = R"js(
function sameChess(w, {positions, games, perft}) {
  const wrong = positions.filter(([fen, names]) => w.namedMoves(w.positionOf(fen)).map(m => m.san).sort().join() !== [...names].sort().join());
  say(!wrong.length && positions.length > 200, `legal moves of ${positions.length} positions; not of ${wrong[0]}`);
  for (let i = 0; i < games.length; i += 2) {
    const read = w.readGame(games[i]), [placement, turn, castling] = games[i + 1].split(' '), {position} = read, own = w.positionOf(games[i + 1]);
    say(!read.error && read.rest === '' && position.board.join() === own.board.join() && position.white === own.white && position.castling === own.castling &&
        position.full === own.full, 'a game read: ' + games[i + 1]);
  }
  for (const [fen, depth, nodes] of perft) say(w.perft(w.positionOf(fen), depth) === nodes, `perft ${depth} of ${fen}: ${w.perft(w.positionOf(fen), depth)}`);
  const bad = w.readGame(';1.e4 e5 2.Ke3 Nf6 ');
  say(bad.error.includes('Ke3') && bad.moves.length === 2 && bad.at === 9, 'the first move that is not legal');
  say(w.readGame(';1.e4 e5 2.N').rest === '2.N' && w.readGame('1.e4 ').error !== '', 'a move begun; no game');
}
// The probability of a move is the product of those of its characters.
function sameMoves(w) {
  const model = w.readModel(embeddedOf(w, 'model'), embeddedOf(w, 'run').config), text = ';1.e4 e5 2.', tokens = w.encodeText(text, 'chess-32');
  const reader = w.follow(w.newReader(model), tokens);
  const again = w.write(reader, 0, 5, () => false), own = w.newDecoder(model);
  [...tokens, ...again].forEach((t, i) => {
    if (i >= tokens.length) say(own.logits.every(x => x <= own.logits[t]), 'at temperature 0 the likeliest');
    own.step(t);
  });
  for (const {text: move, p} of w.lookAhead(reader, t => w.tokenText(t, 'chess-32'), t => t.length === 3).slice(0, 6)) {
    const d = w.newDecoder(model);
    tokens.forEach(t => d.step(t));
    let q = 1;
    for (const t of w.encodeText(move, 'chess-32')) q *= w.softmax(d.logits)[t], d.step(t);
    say(Math.abs(p - q) < 1e-9, `“${move}” ${p} and ${q}`);
  }
  say(reader.decoder.position === tokens.length, 'looking ahead leaves the reader where it was');
  // A writer of e4, as e4+ with one end or the other, of Ke3 and nothing at all: each move once, with what is legal.
  const words = [['e4 ', .35], ['e4+ ', .15], ['e4+;', .1], ['Ke3 ', .24], [' ', .16]], id = c => w.encodeText(c, 'chess-32')[0];
  const after = read => {
    const p = Array(32).fill(0);
    for (const [word, q] of words) if (word.startsWith(read)) p[id(word[read.length])] += q;
    const all = p.reduce((a, b) => a + b, 0);
    return p.map(x => x / all);
  };
  let read = '';
  const fake = {model: {T: 256}, column: () => read, setColumn: (i, x) => read = x, back: n => { read = read.slice(0, n - 1); }, step(t) {
    read += w.tokenText(t, 'chess-32'), fake.logits = after(read).map(Math.log);
  }};
  const moves = w.nextMoves({decoder: fake, tokens: [0], records: [{p: after('')}]}, w.readGame(';').position, '');
  say(moves.map(m => `${m.san} ${m.p.toFixed(2)} ${m.move ? m.move.san : '-'}`).join() === 'e4 0.35 e4,e4+ 0.25 e4,Ke3 0.24 -, 0.16 -', 'moves: ' + JSON.stringify(moves));
  // Reading on and going back leave what reading anew gives.
  w.follow(reader, w.encodeText(';1.d4 d5 ', 'chess-32')), w.follow(reader, tokens);
  const fresh = w.follow(w.newReader(model), tokens);
  say(JSON.stringify(fresh.records) === JSON.stringify(reader.records), 'going back');
  // The units that are shown: those that fire, the strongest first.
  fresh.records[tokens.length - 1].layers.forEach((experts, l) => experts.forEach((e, k) => {
    const {choice, weight, z} = fresh.decoder.layers[l], all = [...z].slice(k * model.D, (k + 1) * model.D).map((x, unit) => ({unit, value: weight[k] * x}));
    const firing = all.filter(u => u.value > 0).sort((a, b) => b.value - a.value);
    say(e.expert === choice[k] && e.weight === weight[k] && e.active === firing.length && firing.length > 0 && JSON.stringify(e.units) === JSON.stringify(firing.slice(0, 5)),
        `units of layer ${l}, expert ${e.expert}`);
  }));
}
function fast(w) {
  const model = w.readModel(embeddedOf(w, 'model'), embeddedOf(w, 'run').config), tokens = [];
  for (let t = 0; t < model.T; t++) tokens.push((7 * t + t * t) % 32);
  let rate = 0; // the best of a few: the machine may be busy
  for (let i = 0; i < 2 || i < 40 && rate < 150; i++) {
    const begin = performance.now();
    w.follow(w.newReader(model), tokens);
    rate = Math.max(rate, 1000 * tokens.length / (performance.now() - begin));
  }
  say(rate >= 150, `the demo's model reads ${rate.toFixed(0)} characters a second`);
}
)js";

static void test_browser(const std::string& folder) {
    std::vector<std::vector<int32_t>> games, texts(1);
    for (const uint64_t seed : {1, 2}) {
        games.emplace_back();
        for (const char x : random_game(seed, 256, 20)) games.back().push_back(chess_id(x));
    }
    for (size_t i = 0; i < 256; i++) texts[0].push_back(int32_t(random_u64(5, 1, i) % 257));
    const Config scaled =
        config_of("chess-32", "moe", "relu", "sparsity", {0, 0, 0, 0, 0, "chosen", "bias", "scaled", 4});
    const struct {
        const char* name;
        Config config;
        std::vector<Change> changes;
    } models[] = {{"moe-x",
                   config_of("chess-32", "moe", "relu", "sparsity", {}),
                   {{1, 2, 3, 0}, {2, 0, -1, .5}, {2, 0, 4, -2}}},
                  {"scaled", scaled, {}},
                  {"changed", scaled, {{0, 1, -1, 0}, {2, 3, -1, 0}}},
                  {"switch",
                   config_of("chess-32", "moe", "gelu", "topk", {0, 0, 0, 0, 0, "all"}),
                   {{0, 2, -1, 0}, {1, 0, -1, 0}}},
                  {"dense", config_of("chess-32", "dense", "gelu", "sparsity", {}), {{1, 0, 7, -1}}},
                  {"text", config_of("bytes", "moe", "relu", "sparsity", {}), {}}};
    std::string frames,
        looks = strf("sameChess(page('moe-x'), %s);\nsameMoves(page('moe-x'));\nfast(page('demo'));\n",
                     legal_moves_json().c_str());
    const auto add_page = [&](const char* name, const Config& config) {
        write_model(folder + "/" + name, config);
        frames += strf("<iframe id='%s' src='%s/report.html' width=1200 height=900></iframe>\n", name, name);
        return write_page(folder + "/" + name).bytes;
    };
    for (const auto& m : models) {
        add_page(m.name, m.config);
        JsonWriter expected;
        expected.open('{');
        add_logits(expected, folder + "/" + m.name + "/rounded.safetensors",
                   m.config.tokenizer == "bytes" ? texts : games, m.changes);
        expected.close();
        looks += strf("sameLogits(page('%s'), '%s', %s);\n", m.name, m.name, expected.text.c_str());
    }
    const size_t bytes = add_page("demo", find_preset("demo")->config);
    check(bytes < 4 << 20, "the demo's model makes a page of %zu bytes",
          bytes); // what was measured is 1 MB more
    write_file(folder + "/look.html",
               "<!DOCTYPE html><meta charset=utf-8><body>" + frames + "<script>" + look_script +
                   chess_script +
                   "const page = name => document.getElementById(name).contentWindow;\n"
                   "onload = () => { try {\n" +
                   looks +
                   "lines.push('end'); } catch (e) { say(false, e.stack.replace(/\\n/g, ' ')); }\n"
                   "document.body.textContent = '\\n' + lines.join('\\n') + '\\n'; };</script>");
    std::string console;
    const std::string dom = browse(folder, "--dump-dom", folder + "/look.html", &console, false);
    check(console.empty(), "console: %s", console.substr(0, 500).c_str());
    check(dom.find("\nend\n") != std::string::npos, "not looked at to the end: %s",
          dom.substr(0, 600).c_str());
    check(check_findings(dom) >= std::size(models) + 20);
    const size_t speed = dom.find("the demo's model reads");
    if (speed != std::string::npos) puts(dom.substr(speed, dom.find('\n', speed) - speed).c_str());
}

int main() {
    return run_main([] {
        const PageFolder folder;
        test_rounding(folder.path);
        in_browser(test_browser, folder);
        return finish();
    });
}
