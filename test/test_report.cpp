// The report: what it takes from a run's folder, and the page itself, opened in a real Chromium. The runs are
// made up here, in the schemas the tools write; `test_report DIR` only writes such a run into DIR to look at.
#include "../dev/interp/report.h"
#include "browser.h"

// ---------------------------------------------------------------------------------------------------------
// A made-up run

struct MadeUp {
    Config config;
    int64_t step = 9500;
    bool hostile = false; // texts that try to get out of the page
};

static double noise(uint64_t a, uint64_t b = 0) { return random_normal(7, a, b); }
static double share(uint64_t a, uint64_t b = 0) { return 0.5 + 0.5 * std::tanh(noise(a, b)); }

static const char* const escape = "</script><img src=x onerror=\"document.title='out'\"><!--<script>";

static const char* const weights_of_run = "the hash of the weights"; // filled in by of_weights

static void begin_json(JsonWriter& out, const char* tool, const MadeUp& m) {
    out.open('{').member("tool", tool).member("checkpoint", model_path("runs/made_up", m.step));
    out.member("step", m.step).member("weights", weights_of_run).key("config").open('{');
    for (const auto& [name, value] : config_to_strings(m.config)) out.member(name, value);
    out.close().member("seconds", 12.5);
}

// What a tool would have said of the checkpoint it measured.
static std::string of_weights(std::string text, const std::string& checkpoint) {
    return text.replace(text.find(weights_of_run), strlen(weights_of_run), weights_hash(checkpoint));
}

static const struct {
    const char* name;
    size_t cells;
    bool strategy;
    double rate; // base rate
} made_up_functions[] = {{"piece_state", 832, false, .077},
                         {"piece_masked_blank_state", 768, false, .038},
                         {"piece_masked_blank_and_initial_state", 768, false, .014},
                         {"piece_color_state", 192, false, .33},
                         {"threat_state", 64, true, .51},
                         {"legal_moves_state", 64, true, .34},
                         {"pseudo_legal_moves_state", 64, false, .35},
                         {"check_state", 1, true, .02},
                         {"pin_state", 1, true, .1},
                         {"specific_fork", 1, false, .0004},
                         {"any_fork", 1, true, .003},
                         {"has_castling_rights", 1, true, .53},
                         {"has_kingside_castling_rights", 1, true, .52},
                         {"has_queenside_castling_rights", 1, true, .51},
                         {"has_legal_en_passant", 1, true, .003},
                         {"can_claim_draw", 1, false, 0},
                         {"can_check_next", 1, true, .33},
                         {"has_bishop_pair", 1, true, .71},
                         {"has_mate_threat", 1, false, 0},
                         {"can_capture_queen", 1, true, .02},
                         {"has_queen", 1, true, .92},
                         {"has_connected_rooks", 1, false, .15},
                         {"ambiguous_moves", 1, true, .31}};

// S of the schema. board: also the value over the cells that can occur.
static void score(JsonWriter& out, uint64_t id, double level, double floor, bool board) {
    const double coverage = floor + (0.93 - floor) * level * share(id, 1), held = coverage * 0.98;
    const double rec = coverage * (0.4 + 1.2 * level), beyond = 0.1 * held;
    const auto estimate = [&](const std::string& name, double x, double width) {
        out.member(name.c_str(), x)
            .member((name + "_low").c_str(), x - width)
            .member((name + "_high").c_str(), x + width);
    };
    estimate("beyond", beyond, .004), estimate("rec_beyond", beyond * .8, .003);
    estimate("held_out", held, .01), estimate("rec", rec * .99, .02);
    out.member("gain", beyond * 1.1).member("unseen", held * .97).member("common", held * 1.1);
    out.member("text_common", .5).member("matched", floor * 1.1);
    out.member("coverage", coverage)
        .member("threshold", .1 * double(id % 4))
        .member("per_cell", coverage * 1.04);
    out.member("of_704", board ? coverage * 768 / 704 : NAN);
    out.member("rec_published", rec)
        .member("rec_threshold", .1 * double(id % 3))
        .member("rec_max_mask", rec * 1.05);
    for (const char* control : {"untrained", "permuted", "same_move", "text"}) {
        const bool text = control[0] == 't';
        const double c = std::min(.98, floor * (1.02 + .1 * share(id, control[0])) + (text ? .3 : .02)),
                     r = control[0] == 's' ? .1 : .01;
        out.key(control)
            .open('{')
            .member("coverage", c)
            .member("held_out", c * .8)
            .member("rec_published", r * share(id, control[1]))
            .member("beyond", text ? NAN : .002)
            .member("rec_beyond", text ? NAN : .001)
            .close();
    }
}

static std::string made_up_bsp(const MadeUp& m) {
    JsonWriter out;
    begin_json(out, "bsp", m);
    out.key("games")
        .open('{')
        .member("source", "runs/made_up/test.txt")
        .member("train", 1000)
        .member("test", 1000);
    out.member("characters", 256).member("dots", 20).member("seen", .16).close().member("gated", true);
    out.member("best_layer", 1).member("own_games", false);
    out.key("seeds").open('{').member("untrained", 1).member("permutation", 2).member("bootstrap", 3).close();
    out.key("functions").open('[');
    for (const auto& f : made_up_functions) {
        out.open('{').member("name", f.name);
        out.member("meaning",
                   m.hostile ? std::string(escape) : "what " + std::string(f.name) + " says of the position");
        out.member("strategy", f.strategy).member("cells", f.cells);
        out.key("positives")
            .values(std::vector<size_t>{size_t(f.rate * 20000 * f.cells), size_t(f.rate * 20100 * f.cells)});
        out.member("floor", 2 * f.rate / (1 + f.rate)).member("floor_test", 2.1 * f.rate / (1 + f.rate));
        out.member("attainable", .76).member("attainable_test", .71).member("common", 400);
        out.member("text_rule", m.hostile      ? escape
                                : f.cells == 1 ? "Black's last move gave check"
                                               : "")
            .close();
    }
    out.close().key("layers").open('[');
    const size_t L = m.config.n_layer;
    for (size_t l = 0; l < L; l++) {
        const double level = .25 + .5 * double(l) / L - (l + 1 == L ? .2 : 0);
        out.open('{')
            .member("layer", l)
            .member("units", 2048)
            .member("alive", 2048 - 40 * l)
            .key("active")
            .open('[');
        for (int t = 0; t < 11; t++) out.value(120.0 * std::exp(-.5 * t));
        out.close();
        out.key("board").open('{'), score(out, 50 + l, level, .03, true), out.close();
        out.key("strategy").open('{'), score(out, 70 + l, level, .42, false), out.close();
        out.key("functions").open('[');
        for (size_t f = 0; f < std::size(made_up_functions); f++) {
            const double rate = made_up_functions[f].rate;
            out.open('{').member("name", made_up_functions[f].name);
            score(out, 100 * f + l, level, 2 * rate / (1 + rate), f == 2), out.close();
        }
        out.close().close();
    }
    out.close().close();
    return out.text;
}

static std::string made_up_sparsity(const MadeUp& m) {
    const Config& c = m.config;
    const size_t E = c.moe() ? c.n_expert : 0, units = c.moe() ? E * c.d_expert : c.dense_width();
    const std::vector<const char*> groups =
        c.tokenizer == "chess-32"
            ? std::vector<const char*>{"opening (moves 1-10)", "middle game (moves 11-25)",
                                       "endgame (moves 26+)"}
            : std::vector<const char*>{"lower", "upper", "digit", "space", "newline", "punctuation", "other"};
    JsonWriter out;
    begin_json(out, "sparsity", m);
    out.member("data", "runs/made_up/val_*.bin").member("tokens", 131072).key("groups").values(groups);
    // The members of layer l: of all tokens (group 0), or of group - 1.
    const auto numbers = [&](size_t l, size_t group) {
        const double mean =
                         (160 - 30.0 * double(l)) * (group ? 1.1 - .12 * double(group) * share(l, group) : 1),
                     sd = 22;
        const size_t tokens = group ? 131072 / groups.size() : 131072;
        out.member("tokens", tokens).member("units", units).key("l0").open('{');
        out.member("mean", mean).member("sd", sd).member("low", mean - .8).member("high", mean + .8).close();
        out.key("histogram").open('{').key("edges").open('[');
        for (int i = 0; i <= 64; i++) out.value(8.0 * i);
        out.close().key("counts").open('[');
        for (int i = 0; i < 64; i++)
            out.value(
                int(double(tokens) * 8 / sd / 2.5 * std::exp(-.5 * std::pow((8 * i + 4 - mean) / sd, 2))));
        out.close().close().member("dead", 12 * l + group);
        out.key("rates").open('{').key("edges").open('[');
        for (int i = 0; i <= 12; i++) out.value(std::pow(10.0, -6 + i / 2.0));
        out.close().key("counts").open('[');
        for (int i = 0; i < 12; i++)
            out.value(int(700 * std::exp(-.3 * std::pow(i - 8.5 + .2 * double(l), 2))));
        out.close().close().member("zero_work", 1 - mean / double(c.dense_width()));
        std::vector<double> load(E);
        double total = 0, entropy = 0;
        for (size_t e = 0; e < E; e++) total += load[e] = .4 + share(l, group * 50 + e);
        for (double& x : load) x /= total, entropy -= x * std::log2(x);
        out.key("experts").open('[');
        for (size_t e = 0; e < E; e++)
            out.open('{').member("load", load[e]).member("units", mean / 2 * (.7 + .6 * share(e, l))).close();
        out.close().key("corouting").open('[');
        for (size_t a = 0; a < E; a++) {
            out.open('[');
            for (size_t b = 0; b < E; b++)
                out.value(a == b ? 0.0
                                 : load[a] * load[b] * 2 * share(std::min(a, b) * 99 + std::max(a, b), l));
            out.close();
        }
        out.close().member("entropy", entropy);
        out.member("max_entropy", std::log2(std::max<double>(1, double(E))));
    };
    out.key("layers").open('[');
    for (size_t l = 0; l < c.n_layer; l++) {
        out.open('{').member("layer", l);
        numbers(l, 0);
        out.key("groups").open('[');
        for (size_t g = 0; g < groups.size(); g++) {
            out.open('{').member("name", groups[g]);
            numbers(l, g + 1);
            out.close();
        }
        out.close().close();
    }
    out.close().close();
    return out.text;
}

static std::string made_up_router(const MadeUp& m) {
    const Config& c = m.config;
    const size_t E = c.moe() ? c.n_expert : 0;
    JsonWriter out;
    begin_json(out, "router", m);
    out.key("sample").open('{').member("tokens", 4096).member("rows", 64).close().key("layers").open('[');
    for (size_t l = 0; l < c.n_layer && E; l++) {
        out.open('{').member("layer", l);
        for (const char* name : {"pearson", "spearman"}) {
            const double r = -.95 + .03 * l;
            out.key(name)
                .open('{')
                .member("within", r)
                .member("overall", r + .02)
                .member("low", r - .004)
                .member("high", r + .004)
                .close();
        }
        out.member("agreement", .93 - .03 * l).member("chance", .25).member("regret", 1.5 + l);
        out.key("calibration").open('{');
        for (const char* name : {"predicted", "actual", "count"}) {
            out.key(name).open('[');
            for (int i = 0; i < 12; i++)
                out.value(name[0] == 'c' ? 500.0
                                         : 10 + 14.0 * i + (name[0] == 'a' ? 6 * std::sin(i) + l : 0));
            out.close();
        }
        out.close().member("rmse", 7.5).key("scatter").open('[');
        for (size_t i = 0; i < 1500; i++) {
            const double g = std::tanh(.8 * noise(l + 300, i));
            out.open('[')
                .value(g, 3)
                .value(int(std::max(0.0, 128 * (1 - g) + 9 * noise(l + 400, i))))
                .value(i % E)
                .close();
        }
        out.close()
            .key("pca")
            .open('{')
            .key("explained")
            .values(std::vector<double>{.11, .07})
            .key("points")
            .open('[');
        for (size_t i = 0; i < 2048; i++) {
            const size_t e = i * E / 2048;
            out.open('[')
                .value(int(700 * std::cos(.8 * double(e)) + 160 * noise(l + 500, i)))
                .value(int(700 * std::sin(.8 * double(e)) + 160 * noise(l + 600, i)))
                .value(e)
                .close();
        }
        out.close().close().close();
    }
    out.close().key("history").open('[');
    for (int64_t step : {int64_t(0), m.step / 4, m.step / 2, m.step}) {
        out.open('{').member("step", step).key("layers").open('[');
        for (size_t l = 0; l < c.n_layer; l++) {
            const double t = double(step) / double(m.step);
            out.open('{')
                .member("skew", .02 + .3 * t * share(l, 1))
                .member("kurtosis", .05 + 1.5 * t * share(l, 2))
                .member("ks", .05 + .06 * t * share(l, 3));
            out.member("ks_gaussian", .052).member("pearson_within", -.99 + .05 * t * share(l, 4)).close();
        }
        out.close().close();
    }
    out.close().close();
    return out.text;
}

static const struct {
    const char *text, *fen;
    size_t mark;
    const char* move;
} made_up_contexts[] = {{"1.e4 e5 2.Nf3 Nc6 3.Bb5 a6 4.Ba4 Nf6 5.O-O Be7 6.Re1 b5 7.Bb3 d6 8.c3 O-O 9.h3",
                         "r1bq1rk1/2p1bppp/p1np1n2/1p2p3/4P3/1BP2N2/PP1P1PPP/RNBQR1K1 w - - 1 9", 77, "9."},
                        {"4 d5 2.exd5 Qxd5 3.Nc3 Qa5 4.d4 Nf6 5.Nf3 Bf5 6.Bc4 e6 7.Bd2 c6 8.Nd5 Qd8 9.Nxf6",
                         "rn1qkb1r/pp3ppp/2p1pn2/3N1b2/2BP4/5N2/PPPB1PPP/R2QK2R w KQkq - 2 9", 78, "9."},
                        {"32.Rd1 Kg7 33.Kf2 h5 34.Ke3 Kf6 35.h4 Ke5 36.Rd5+ Ke6 37.Kd4 b6 38.",
                         "8/8/1p2k3/3R3p/3K3P/8/8/8 w - - 0 38", 68, "38."},
                        {"1.d4 d5 2.c4 e6 3.Nc3 Nf6 4.Bg5 Be7 5.e3 O-O 6.Nf3 h6 7.Bh4 b6 8.",
                         "rnbq1rk1/p1p1bpp1/1p2pn1p/3p4/2PP3B/2N1PN2/PP3PPP/R2QKB1R w KQ - 0 8", 66, "8."}};

static void estimate(JsonWriter& out, const char* name, double value, double width) {
    out.key(name).open('{').member("value", value).member("low", value - width);
    out.member("high", value + width).close();
}

static const struct {
    const char *group, *name;
} made_up_concepts[] = {{"squares", "piece_state: e4 is empty"},
                        {"squares", "threat_state: Black attacks f4"},
                        {"board", "has_castling_rights"},
                        {"character", "a digit"},
                        {"move", "of a check"}};

static std::string made_up_experts(const MadeUp& m) {
    const Config& c = m.config;
    const size_t n_concepts = std::size(made_up_concepts);
    JsonWriter out;
    begin_json(out, "experts", m);
    out.member("data", "runs/made_up/games.txt").member("rows", 400).member("tokens", 256).member("seed", 1);
    out.member("cache", c.n_expert / 2).key("layers").open('[');
    for (size_t l = 0; l < c.n_layer; l++) {
        out.open('{').member("layer", l).key("slots").open('[');
        for (size_t k = 0; k < c.n_expert_active; k++) {
            out.open('{').member("entropy", 2.5 + .1 * double(k));
            estimate(out, "token", .8 - .1 * share(l, k), .003);
            for (const char* name : {"position", "before", "below", "group"})
                estimate(out, name, l == 0 && name == std::string("below") ? NAN : .2 * share(l, k + name[2]),
                         .004);
            out.close();
        }
        out.close().key("concepts").open('[');
        for (size_t i = 0; i < n_concepts; i++) {
            out.open('{').member("group", made_up_concepts[i].group);
            out.member("concept", m.hostile ? escape : made_up_concepts[i].name);
            estimate(out, "alone", .1 * share(l, i + 1), .01);
            estimate(out, "beyond", i == 1 ? NAN : .1 * share(l, i + 1), .01);
            out.member("moved", i == 1 ? NAN : .02).close();
        }
        out.close().key("windows").open('[');
        for (const size_t tokens : {4, 16, 64, 256}) {
            out.open('{').member("tokens", tokens);
            estimate(out, "srp", .6 - .0002 * double(tokens) + .01 * double(l), .002);
            out.member("group", 2.5).member("srp_shuffled", .58).member("sch", .7).member("sch_shuffled", .6);
            out.member("lru", .5).member("lfu", .55).close();
        }
        out.close().key("clusters").open('[').open('{').member("clusters", 4);
        estimate(out, "divergence", .3, .1);
        out.close().close().key("experts").open('[');
        for (size_t e = 0; e < c.n_expert; e++) {
            const bool idle = l == 1 && e == 1; // no token went to it
            const std::string label = m.hostile ? escape : "a digit and the next token is not '4'";
            out.open('{')
                .member("load", idle ? 0 : 1.0 / double(c.n_expert))
                .member("label", idle ? "" : label);
            out.member("train", .8).member("validation", .8).member("named", l == 2 && e == 3);
            for (const char* rule : {"own", "token", "other", "random"}) {
                const double right = idle ? NAN : .5 + .4 * share(e + 10 * l, rule[1]);
                out.key(rule).open('{').member("balanced", right).member("error", right * .02);
                out.member("f1", right).member("sensitivity", right).member("specificity", right);
                out.key("by_quarter").values(std::vector<double>{right, .6, .7, right}).close();
            }
            out.key("gain").values(std::vector<double>{.1, .2, .3});
            out.key("gain_error").values(std::vector<double>{.02, .02, .02});
            if (e == 2) {
                out.key("language").open('{').member("hypothesis", m.hostile ? escape : "numbers of moves");
                out.member("named", false);
                for (const char* who : {"own", "control"})
                    out.key(who).open('{').member("balanced", .75).member("error", .04).close();
                out.member("unread", .02).close();
            }
            const double change = idle ? NAN : -.3 * share(e, l + 5);
            out.key("effect").open('{');
            for (const char* name : {"off", "zero", "inside", "outside", "control", "beyond"})
                estimate(out, name, change * (1 + .1 * double(name[1] % 7)), .012);
            if (!idle) out.member("other", (e + 1) % c.n_expert);
            out.member("triggers", idle ? 0 : 20).member("at_position", change).member("dla", -change);
            out.key("by_concept").open('[');
            for (size_t i = 0; i < n_concepts; i++) {
                const double there = i == 1 ? NAN : change * share(i, e);
                out.open('[').value(there).value(there - .01).value(there + .01).close();
            }
            out.close().close().close();
        }
        out.close();
        estimate(out, "agreement", .4, .1);
        out.close();
    }
    out.close().close();
    return out.text;
}

static std::string made_up_probe(const MadeUp& m, bool twin) {
    const std::vector<size_t> ks = {1, 2, 4, 8, 16, 32, 64};
    JsonWriter out;
    begin_json(out, "probe", m);
    out.member("data", "runs/made_up/games.txt").member("rows", 800).member("tokens", 256);
    out.key("documents").values(std::vector<size_t>{400, 200, 200}).key("k").values(ks);
    out.key("layers").open('[');
    for (size_t l = 0; l < m.config.n_layer; l++) out.value(l);
    out.close().member("seed", 1).member("gated", false).member("raw", false);
    if (twin) out.key("twin").open('{').member("checkpoint", "runs/dense/model.safetensors").close();
    out.member("sentence", twin ? "No difference was found." : "Without --twin there is no sentence.");
    out.member("counted", 2);
    for (const char* name : {"A_less_E", "D_less_dense"}) estimate(out, name, twin ? .01 : NAN, .03);
    out.key("concepts").open('[');
    for (size_t c = 0; c < std::size(made_up_concepts); c++) {
        const auto figures = [&](const char* name, size_t id) {
            out.key(name).open('[');
            for (size_t k = 0; k < ks.size(); k++) {
                const double f1 = .6 + .3 * share(c, id) + .01 * double(k);
                out.open('{').member("k", ks[k]).member("A", f1).member("B", f1 - .02).member("C", f1 - .03);
                out.member("auroc", f1).member("D", f1 - .1).member("D_validation", f1 - .1);
                out.member("coverage", .3).member("H", .7).member("H_most", .75).member("layer", 1);
                out.member("expert", 3).member("D_layer", 2).close();
            }
            out.close();
        };
        out.open('{').member("group", made_up_concepts[c].group);
        out.member("concept", m.hostile ? escape : made_up_concepts[c].name).member("counts", c > 2);
        out.key("positives").values(std::vector<size_t>{500, 250, 250});
        out.member("rule", c < 3 ? "no move has ended on e4" : "");
        for (const char* negatives : {"same document", "other documents", "same token"}) {
            if (c == 3 && negatives == std::string("same token")) continue; // a token alone tells it
            out.key(negatives).open('{');
            figures("model", negatives[1]);
            if (twin) figures("dense", negatives[2] + 1);
            if (twin && negatives == std::string("same document"))
                for (const char* name : {"E", "F", "J"}) {
                    out.key(name).open('[');
                    for (size_t k = 0; k < ks.size(); k++) out.value(.7 + .01 * double(k) - .001 * name[0]);
                    out.close();
                }
            out.member("I_token", .7).member("I_position", .72).member("I_rule", c < 3 ? .8 : NAN);
            out.member("k95", 1).member("gap", .06).close();
        }
        out.key("G").open('{').member("A_mean", .65).member("A_most", .7).member("D_mean", .6);
        out.member("D_most", .62).close().close();
    }
    out.close().key("left_out").values(std::vector<std::string>{"squares: threat_state: Black attacks a1"});
    out.close();
    return out.text;
}

// Pairs of units: of the first layer more than are shown.
static void made_up_pairs(JsonWriter& out, const MadeUp& m) {
    out.key("pairs").open('[');
    for (size_t i = 0; i < 30; i++) {
        const double beyond = .03 * share(i, 8);
        out.open('{').member("layer", i < 25 ? 0 : 1).member("a", i == 0 ? 5 : i).member("b", 40 + i);
        out.member("rate_a", .4).member("rate_b", .5).member("both", .3 + .01 * double(i));
        out.member("property", m.hostile ? std::string(escape) : i == 7 ? "" : strf("property %zu", i));
        const auto interval = [&](const char* name, double x, double width) {
            out.key(name).values(std::vector<double>{x, x - width, x + width});
        };
        interval("lift", 1.1, .02);
        interval("apart", i == 7 ? NAN : .05, .01);
        interval("beyond", i == 7 ? NAN : beyond, .004);
        interval("null", i == 7 ? NAN : .005, .004);
        out.member("more", i != 7 && beyond - .004 > .009).close();
    }
    out.close();
}

static std::string made_up_features(const MadeUp& m, size_t per_expert) {
    const Config& c = m.config;
    const bool chess = c.tokenizer == "chess-32";
    const size_t E = c.moe() ? c.n_expert : 1;
    JsonWriter out;
    begin_json(out, "features", m);
    out.key("games")
        .open('{')
        .member("source", "runs/made_up/test.txt")
        .member("train", 1000)
        .member("test", 1000)
        .member("characters", 256)
        .member("dots", 20)
        .close();
    out.key("units").open('[');
    size_t index = 0, knows = 0, reads = 0;
    for (size_t l = 0; l < c.n_layer; l++)
        for (size_t e = 0; e < E; e++)
            for (size_t i = 0; i < per_expert; i++, index++) {
                const double p = share(index, 1);
                const int file = int(index * 7 % 8), rank = int(index * 5 % 8);
                const std::string square = {char('a' + file), char('1' + rank)};
                static const char* const pieces[] = {"a black queen", "a white knight", "a black pawn",
                                                     "a white bishop", "a black rook"};
                std::string property = chess ? strf(index % 3 ? "%s stands on %s" : "%s is off %s",
                                                    pieces[index % 5], square.c_str())
                                             : "the byte is a digit";
                if (m.hostile) property += escape;
                out.open('{')
                    .member("layer", l)
                    .member("expert", e)
                    .member("unit", i * 17 + 5)
                    .member("rate", .001 + .2 * share(index, 2))
                    .member("max", 3.4)
                    .member("share", .49)
                    .member("threshold", .1 * double(index % 5));
                const char* const verdict = p > .7 ? "knows" : p > .3 ? "reads" : "nothing";
                const std::string text = m.hostile ? std::string(escape) : "White's last move was a capture";
                knows += p > .7, reads += p > .3 && p <= .7;
                out.member("on_anywhere", 3.5)
                    .member("on", 200)
                    .member("places", 39000)
                    .member("witnesses", 150);
                out.member("function", chess ? "piece" : "next token").member("property", property);
                out.member("verdict", verdict).member("found", p > .7).member("outright", p > .9);
                out.key("rivals").open('[');
                if (index % 3 == 0) out.value(property);
                out.close().key("effect"); // of some of them
                if (index % 2) {
                    out.value(NAN);
                } else {
                    const std::vector<double> none = {NAN, NAN, NAN}, less = {-.0123, -.02, -.004};
                    const auto changes = [&] {
                        out.key("inside").values(less).key("outside").values(index % 4 ? less : none);
                        if (chess) out.key("legal_inside").values(less).key("legal_outside").values(less);
                    };
                    out.open('{').member("places", 450).member("games", 100);
                    changes();
                    out.key("control").open('{').member("expert", e).member("unit", 3).member("rate", .04);
                    changes();
                    out.close().key("beyond").values(less).close();
                }
                out.member("precision", p).member("precision_low", p - .03 * (1 - p));
                out.member("precision_high", p + .01 * (1 - p)).member("recall", p * .8);
                out.member("f1", p * .87).member("f1_low", p * .84).member("f1_high", p * .9);
                out.member("mcc", p * .8).member("base", .05 + .2 * share(index, 3));
                out.member("floor", .1 + .2 * share(index, 3))
                    .member("shuffled", .12 + .15 * share(index, 4));
                out.member("matched", .1 + .3 * share(index, 5)).member("rule", text).member("rule_f1", .3);
                out.member("rule_mcc", .25)
                    .member("text", text)
                    .member("text_mcc", .3)
                    .member("beyond", .4 * p);
                out.member("beyond_error", .02);
                if (chess) {
                    out.member("heat_function", "where a black knight stands").key("heat").open('[');
                    for (int s = 0; s < 64; s++) {
                        const int dx = s % 8 - file, dy = s / 8 - rank;
                        out.value(
                            int(100 + 700 * p * std::exp(-.6 * (dx * dx + dy * dy)) + 9 * noise(index, s)));
                    }
                    out.close();
                }
                out.key("contexts").open('[');
                for (size_t k = 0; k < 4; k++) {
                    const auto& x = made_up_contexts[(index + k) % 4];
                    std::string text = chess ? x.text : "the year 1623 was a good one,\nfor the folio";
                    if (m.hostile) text = escape + text;
                    out.open('{')
                        .member("text", text)
                        .member("mark", chess ? std::min(x.mark, strlen(x.text) - 1) : size_t(9))
                        .member("value", 3.4 - .3 * double(k));
                    out.member("length", 1);
                    if (chess) out.member("fen", x.fen).member("move", x.move).member("last", "f6d5");
                    out.close();
                }
                out.close();
                for (const char* list : {"promotes", "suppresses"}) {
                    out.key(list).open('[');
                    const char* tokens[] = {"Q", " ", "x", "\n", "e"};
                    for (int k = 0; k < 5; k++)
                        out.open('[')
                            .value(m.hostile ? escape : tokens[(k + index) % 5])
                            .value((list[0] == 'p' ? 1 : -1) * (1.4 - .25 * k))
                            .close();
                    out.close();
                }
                out.key("with").open('[');
                for (size_t k = 0; k < 3 && E > 1; k++)
                    out.open('[').value((e + k + 1) % E).value(.5 - .14 * double(k)).value(.14).close();
                out.close().close();
            }
    out.close();
    made_up_pairs(out, m);
    out.member("best", 5);
    out.member(
        "sentence",
        "layer 0, unit 90 tells that a black queen stands on d8: right at 0.98 of the places where it is on");
    out.key("summary").open('{').member("units", index * 25).member("tested", index * 20);
    out.member("knows", knows).member("reads", reads).member("outright", 2).member("properties", knows);
    out.member("knows_firing", .01).member("reads_firing", .7);
    for (const char* control : {"untrained", "other_labels"})
        out.key(control)
            .open('{')
            .member("units", index * 25)
            .member("tested", index * 20)
            .member("knows", 1)
            .member("reads", 90)
            .member("properties", 1)
            .member("knows_firing", .001)
            .member("reads_firing", .6)
            .close();
    out.close().close();
    return out.text;
}

static Config small_config(const char* tokenizer) {
    Config c;
    c.n_embd = 16, c.block_size = 256, c.tokenizer = tokenizer;
    c.vocab_size = tokenizer_vocab(tokenizer_from_name(tokenizer));
    return c;
}

// A folder with a checkpoint (untrained weights of the config), its state's flags and a log.
static void write_run(const std::string& dir, const MadeUp& m) {
    make_directories(dir + "/interp");
    const std::vector<Tensor> table = tensor_table(m.config);
    std::vector<float> weights(block_elements(table));
    init_parameters(m.config, table, weights.data(), 1);
    save_model(model_path(dir, m.step), m.config, table, weights.data(), m.step);
    write_blocks<float>(state_path(dir, m.step),
                        {{"format", "pt"},
                         {"model", "moex-state"},
                         {"flag.lr", "0.0015"},
                         {"flag.batch", "4"},
                         {"flag.seq", "256"},
                         {"flag.steps", "9500"},
                         {"flag.seed", "1"},
                         {"flag.train", "runs/made_up/train_*.bin"},
                         {"flag.total-tokens", "1024"},
                         {"flag.weight-decay", "0.1"},
                         {"flag.aux-weight", "0.001"}},
                        table, {{"m.", weights.data()}, {"v.", weights.data()}});
    unlink((dir + "/log.jsonl").c_str());
    Log log(dir);
    for (uint64_t s = 0; s <= uint64_t(m.step); s++) {
        const double t = double(s) / double(m.step), loss = .72 + 2.8 * std::exp(-9 * t) * (1 - .5 * t);
        if (s > 0)
            log.step({s, loss + .03 * noise(1, s), 1.01, .4, 1.5e-3, 22.5, 45400,
                      90 + 250 * std::exp(-6 * t) + 3 * noise(2, s)});
        if (s % 1000 == 0 || s == uint64_t(m.step)) {
            std::vector<std::vector<double>> load(m.config.moe() ? m.config.n_layer : 0,
                                                  std::vector<double>(m.config.n_expert));
            for (size_t l = 0; l < load.size(); l++)
                for (size_t e = 0; e < load[l].size(); e++)
                    load[l][e] = 1.0 / double(load[l].size()) *
                                 (1 + .6 * (1.2 - t) * (share(l, e) - .5) + .05 * noise(l * 8 + e, s));
            log.evaluation(s, loss + .02, load);
        }
    }
}

static void write_measurements(const std::string& dir, const MadeUp& m, size_t per_expert) {
    const auto write = [&](const char* name, const std::string& text) {
        write_file(dir + "/interp/" + name, of_weights(text, model_path(dir, m.step)));
    };
    if (m.config.tokenizer == "chess-32") write("bsp.json", made_up_bsp(m));
    write("sparsity.json", made_up_sparsity(m));
    write("router.json", made_up_router(m));
    if (m.config.moe()) write("experts.json", made_up_experts(m));
    write("probe.json", made_up_probe(m, m.config.moe()));
    write("features.json", made_up_features(m, per_expert));
}

// ---------------------------------------------------------------------------------------------------------
// What goes into the page

static size_t count(const std::string& text, const std::string& part) {
    size_t n = 0;
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) n++;
    return n;
}
// The JSON of a page's data element, read back.
static Json embedded(const std::string& page, const std::string& id) {
    const std::string begin = "id=\"data-" + id + "\">";
    const size_t from = page.find(begin), to = page.find("</script>", from);
    if (from == std::string::npos) return {};
    return parse_json(page.substr(from + begin.size(), to - from - begin.size()), id);
}
static const Json& at(const Json& json, std::initializer_list<const char*> names) {
    static const Json none;
    const Json* here = &json;
    for (const char* name : names)
        if (here) here = here->find(name);
    return here ? *here : none;
}
static Report report(const std::string& dir, const Measurements& m = {}, const std::string& games = "",
                     const std::string& data = "", bool all = false) {
    ReportOptions options;
    options.all = all;
    options.run = dir, options.games = games, options.data = data;
    return write_report(options, m);
}

static void test_curves() {
    Curve curve; // steps 1..1000, values 2 s: bins of 100 steps
    Json x;
    x.type = Json::Number;
    for (int s = 1; s <= 1000; s++) x.number = 2 * s, curve.add(s, &x);
    curve.add(1001, nullptr);
    JsonWriter out;
    out.open('{');
    curve.write(out, "c", 10);
    out.close();
    const Json json = parse_json(out.text, "curve");
    const Json& bins = *json.find("c");
    check(bins.items.size() == 10, "%zu bins", bins.items.size());
    for (size_t b = 0; b < bins.items.size(); b++) {
        const double expected[] = {100.0 * b + 50.5, 200.0 * b + 101, 200.0 * b + 2, 200.0 * b + 200};
        for (size_t i = 0; i < 4; i++) check_near(bins.items[b].items[i].number, expected[i], 1e-9);
    }
}

static void test_inputs(const std::string& folder) {
    const MadeUp m{small_config("chess-32")};
    const std::string dir = folder + "/in puts";
    check_error(report(""), "--run");
    check_error(report(folder + "/nothing"), folder + "/nothing");
    make_directories(dir);
    check_error(report(dir), "no model_");
    write_run(dir, m);

    const MadeUp text{small_config("bytes")};
    write_run(folder + "/text_run", text);
    check_error(report(folder + "/text_run", {}, "games.pgn"), "model_00009500", "--games", "bytes");

    // Without a measurement: every section names its command, quoted for a shell.
    report(dir);
    std::string page = read_text(dir + "/report.html");
    Json run = embedded(page, "run");
    check(at(run, {"step"}).int64() == 9500 && at(run, {"flags", "lr"}).text == "0.0015");
    check(at(run, {"config", "n_expert"}).text == "8" && at(run, {"parameters"}).magnitude > 10000);
    check(at(run, {"tools", "bsp", "command"}).text.starts_with("bsp --ckpt '" + dir + "/model_00009500"));
    check(at(run, {"tools", "bsp", "note"}).text == "not measured yet");
    check(at(run, {"val_loss"}).items.size() == 11 && at(run, {"load"}).items.size() == 11);
    const Json& loss = at(run, {"loss"});
    check(loss.items.size() > 400 && loss.items.size() <= 500);
    check_near(at(run, {"train_seconds"}).number, 9500 * .0225, 1e-6);
    check_near(at(run, {"tokens_per_second"}).number, 45400, 1);
    for (const char* id : {"bsp", "sparsity", "router", "experts", "probe", "features"})
        check(embedded(page, id).type == Json::Null);

    // Files that are of something else are not shown, and it is said what they are.
    write_measurements(dir, m, 2);
    const std::string good = read_text(dir + "/interp/router.json");
    const auto note = [&](const std::string& text) {
        write_file(dir + "/interp/router.json", text);
        report(dir);
        page = read_text(dir + "/report.html");
        run = embedded(page, "run");
        return at(run, {"tools", "router", "measured"}).boolean ? ""
                                                                : at(run, {"tools", "router", "note"}).text;
    };
    const auto changed = [&](const char* from, const char* to) {
        std::string text = good;
        return text.replace(text.find(from), strlen(from), to);
    };
    check(note(good).empty() && embedded(page, "router").type == Json::Object);
    check(note(changed("\"step\":9500", "\"step\":2500")).find("step 2500") != std::string::npos);
    check(embedded(page, "router").type == Json::Null);
    check(note(changed("\"n_expert\":\"8\"", "\"n_expert\":\"4\"")).find("n_expert") != std::string::npos);
    check(note(changed(weights_hash(model_path(dir, 9500)).c_str(), "0123456789abcdef"))
              .find("other weights") != std::string::npos);
    check(embedded(page, "router").type == Json::Null, "another run's numbers are shown");
    check(note(changed("\"router\"", "\"bsp\"")).find("results of router") != std::string::npos);
    check(note(good.substr(0, good.size() - 1)).find("broken JSON") != std::string::npos);
    check(note("[]").find("results of router") != std::string::npos);
    check(note("").find("broken JSON") != std::string::npos);
    check(note(good).empty());
    const std::string twice = read_text(dir + "/report.html");
    report(dir);
    check(read_text(dir + "/report.html") == twice, "the same files give another page");
}

// Measurements that are missing are made if the caller can and the inputs are there, and only then.
static void test_measurements(const std::string& folder) {
    const MadeUp m{small_config("chess-32")};
    const std::string dir = folder + "/measure";
    write_run(dir, m);
    std::vector<std::string> called;
    const std::vector<std::string> both = {"bsp games.pgn ", "sparsity games.pgn "};
    Measurements can;
    can.bsp = [&](const MeasureInputs& in) {
        called.push_back("bsp " + in.games + " " + in.data);
        check(in.ckpt == model_path(dir, 9500) && in.run == dir && in.json == dir + "/interp/bsp.json");
        write_file(in.json, of_weights(made_up_bsp(m), in.ckpt));
    };
    can.sparsity = [&](const MeasureInputs& in) {
        called.push_back("sparsity " + in.games + " " + in.data);
        write_file(in.json, "{}");
    };
    report(dir, can);
    check(called.empty());
    report(dir, can, "", "val_*.bin");
    check(called == std::vector<std::string>{"sparsity  val_*.bin"});
    called.clear();
    report(dir, can, "games.pgn");
    check(called == both);
    Json run = embedded(read_text(dir + "/report.html"), "run");
    check(at(run, {"tools", "bsp", "measured"}).boolean);
    check(!at(run, {"tools", "sparsity", "measured"}).boolean);
    check(at(run, {"tools", "sparsity", "note"}).text.find("results of sparsity") != std::string::npos);
    called.clear();
    report(dir, can, "games.pgn");
    check(called == std::vector<std::string>{"sparsity games.pgn "}, "what is there is measured again");

    // What takes longer only if asked for; and what experts said of other weights is not shown.
    write_file(dir + "/interp/sparsity.json", of_weights(made_up_sparsity(m), model_path(dir, 9500)));
    can.experts = [&](const MeasureInputs& in) {
        called.push_back("experts " + in.games);
        write_file(in.json, of_weights(made_up_experts(m), in.ckpt));
    };
    can.probe = [&](const MeasureInputs& in) {
        called.push_back("probe " + in.games);
        write_file(in.json, made_up_probe(m, true));
    };
    called.clear();
    const std::vector<std::string> long_ones = {"experts games.pgn", "probe games.pgn"};
    report(dir, can, "games.pgn");
    check(called.empty());
    const Report whole = report(dir, can, "games.pgn", "", true);
    check(called == long_ones);
    const std::string page = read_text(dir + "/report.html");
    run = embedded(page, "run");
    check(at(run, {"tools", "experts", "measured"}).boolean &&
          !at(run, {"tools", "probe", "measured"}).boolean);
    check(at(run, {"tools", "probe", "note"}).text.find("other weights") != std::string::npos);
    check(embedded(page, "experts").type == Json::Object && embedded(page, "probe").type == Json::Null);
    for (const ReportedTool& tool : whole.tools)
        if (tool.name == std::string("experts"))
            check(headline("experts", tool.text) == "1 of 32 experts take what is more than their tokens",
                  "%s", headline("experts", tool.text).c_str());

    // Of a dense model there are no experts to ask.
    MadeUp dense{small_config("bytes")};
    dense.config.ffn = "dense";
    write_run(folder + "/measure_dense", dense);
    called.clear();
    report(folder + "/measure_dense", can, "", "val_*.bin", true);
    run = embedded(read_text(folder + "/measure_dense/report.html"), "run");
    for (const char* tool : {"router", "experts"})
        check(at(run, {"tools", tool, "note"}).text == "for mixtures of experts only");
    check(at(run, {"tools", "bsp", "note"}).text == "for chess models only");
    check(std::find(called.begin(), called.end(), "experts ") == called.end() &&
          std::find(called.begin(), called.end(), "probe ") != called.end());
}

// ---------------------------------------------------------------------------------------------------------
// The page in a browser

// Opens every page of a list in a frame of the width given and looks at it. Each finding becomes a line of
// the document, `ok ...` or `no ...`.
static const char* const look_script = R"js(
const lines = [], say = (ok, page, what) => lines.push((ok ? 'ok ' : 'no ') + page + ': ' + what);
const wait = ms => new Promise(done => setTimeout(done, ms));
function luminance(colour) {
  const c = document.createElement('canvas').getContext('2d');
  c.fillStyle = colour, c.fillRect(0, 0, 1, 1);
  const [r, g, b] = [...c.getImageData(0, 0, 1, 1).data].map(x => (x /= 255) <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
}
const contrast = (a, b) => { const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); };
async function look(name, file, width, tests) {
  const frame = document.createElement('iframe');
  frame.width = width, frame.height = 900, frame.src = file;
  document.body.append(frame);
  await new Promise(done => frame.onload = done);
  await wait(300);
  const d = frame.contentDocument, w = frame.contentWindow, root = d.documentElement, body = d.getElementById('page');
  say(root.dataset.drawn === 'true', name, 'drawn');
  say(root.scrollWidth <= root.clientWidth, name, `no horizontal overflow at ${width} (${root.scrollWidth} of ${root.clientWidth})`);
  say(w.performance.getEntriesByType('resource').length === 0, name, 'nothing fetched');
  say(!/NaN|undefined|null|\[object|could not be drawn/.test(body.innerHTML.replace(/font-variant[^;]*;/g, '')), name, 'no stray values: ' + (/.{30}(NaN|undefined|null|\[object|could not be drawn).{30}/.exec(body.innerHTML) || [''])[0]);
  say([...d.querySelectorAll('svg[role=img]')].every(x => x.getAttribute('aria-label')), name, 'every chart has a label');
  say([...d.querySelectorAll('button')].every(x => x.textContent.trim() || x.getAttribute('aria-label')), name, 'every button has a name');
  say([...d.querySelectorAll('nav a')].every(a => d.getElementById(a.hash.slice(1))), name, 'links lead somewhere');
  say(new Set([...d.querySelectorAll('[id]')].map(x => x.id)).size === d.querySelectorAll('[id]').length, name, 'every id once');
  const style = w.getComputedStyle(root), colour = v => style.getPropertyValue(v);
  for (const v of ['--ink', '--muted', '--accent']) say(contrast(colour(v), colour('--paper')) >= 4.5, name, `contrast of ${v}: ${contrast(colour(v), colour('--paper')).toFixed(2)}`);
  await tests(d, w, (ok, what) => say(ok, name, what));
  frame.remove();
}
const text = d => d.getElementById('page').textContent;
// The model at work: a board, keys, what comes next, what happens inside, changes and the way back.
async function playing(d, w, say) {
  const $ = q => d.querySelector('#play ' + q), all = q => [...d.querySelectorAll('#play ' + q)];
  const squareAt = name => $(`.squares [data-key="${name}"]`), field = $('textarea'), said = () => $('.desk-said').textContent;
  const press = (on, k) => on.dispatchEvent(new w.KeyboardEvent('keydown', {key: k, bubbles: true, cancelable: true}));
  const type = (input, value, event) => { input.value = value, input.dispatchEvent(new w.Event(event || 'input', {bubbles: true})); };
  say(all('.squares button').length === 64 && squareAt('e2').getAttribute('aria-label') === 'e2, white pawn' && field.value === ';1.', 'a game begins');
  say(all('.desk-next table').length === 2 && all('.desk-inside .layer').length === 4 && all('.expert').length === 8, 'what comes next, and four layers inside');
  $('input[type=checkbox]').click();
  squareAt('e2').click();
  say(squareAt('e2').getAttribute('aria-pressed') === 'true' && all('.target').map(b => b.dataset.key).sort().join() === 'e3,e4', 'where a piece can go');
  squareAt('e2').focus(), press(d.activeElement, 'ArrowUp'), press(d.activeElement, 'ArrowUp');
  say(d.activeElement === squareAt('e4') && squareAt('e4').getAttribute('aria-label') === 'e4, can go here', 'arrow keys go over the squares');
  d.activeElement.click();
  say(field.value === ';1.e4 ' && said() === 'You play e4.' && squareAt('e4').querySelector('svg') && d.activeElement === squareAt('e4'), 'a move by keys: ' + field.value);
  squareAt('e7').click(), squareAt('e5').click();
  say(field.value === ';1.e4 e5 2.' && all('.squares .last').length === 2, 'and by clicks, with the number of the next: ' + field.value);
  all('.pick button').find(b => b.textContent === 'Take back').click();
  say(field.value === ';1.e4 ', 'a move taken back');
  const first = squareAt('a1'), turn = all('.pick button').find(b => b.textContent === 'Turn the board');
  turn.click();
  say(all('.squares button')[0].dataset.key === 'h1', 'the board turned');
  turn.click();
  type(field, ';1.e4 e5 2.Ke4 ');
  say($('.desk-board .note').textContent.includes('“2.Ke4” is not a legal move') && all('.desk-next table').length === 1, 'a move that is not legal: ' + $('.desk-board .note').textContent);
  type(field, ';1.f3 e5 2.g4 Qh4# ');
  say($('.desk-board .note').textContent.includes('Checkmate'), 'mate');
  type(field, ';1.e4 _');
  say($('.wrong').textContent.includes('character') && !$('.desk-inside .layer'), 'what it cannot read');
  type(field, ';' + '1'.repeat(256));
  say($('.wrong').textContent.includes('256'), 'too much to read');
  type(field, ';1.e4 e5 2.Nf3 Nc6 3.');
  say($('.wrong').textContent === '', 'and all is well again');

  // Inside: the token looked at; a change to an expert and a unit; before and after; the way back.
  type($('.reader input'), '5');
  say(all('.strip .here').length === 1 && all('.strip span').indexOf($('.strip .here')) === 4 && $('.desk-inside h3').textContent.includes('4'), 'the token looked at');
  all('.strip span')[6].click();
  say($('.reader input').value === '7', 'or by a click');
  const before = $('.desk-next').textContent;
  const off = $('.strongest button'), key = off.dataset.key;
  off.focus(), off.click();
  say(d.activeElement.dataset.key === key && d.activeElement.textContent === 'on' && all('.desk-changes li').length === 1, 'a unit switched off');
  say([...$('.desk-next thead').querySelectorAll('th')].map(x => x.textContent).join() === 'move,as it is,changed', 'before and after');
  say($('.flags').textContent === '--units-off ' + key, 'the flags of the same: ' + $('.flags').textContent);
  const expert = $('.expert p button').dataset.key;
  $('.expert p button').click();
  say($('.flags').textContent === `--experts-off ${expert} --units-off ${key}`, 'and with an expert: ' + $('.flags').textContent);
  say(all('.desk-changes li').length === 2 && $('.desk-next').textContent !== before, 'an expert, too');
  const never = $('.desk-changes input[type=checkbox]');
  say(never.checked && !all('.layer')[0].textContent.includes($('.desk-changes li:last-child span').textContent.split(', ')[1].replace('e', 'E') + ' '), 'it is not chosen any more');
  never.click();
  type($('.desk-changes li:last-child input[type=number]'), '3', 'change');
  say($('.desk-changes li:last-child input[type=number]').value === '3' && all('.expert p.changed').length === 1, 'scaled instead');
  d.querySelector('.unit .small').click();
  say(all('.desk-changes li').length === 3 && all('.desk-changes li')[2].textContent.startsWith(d.querySelector('.unit .kicker').textContent), 'the unit of a card switched off');
  say(!$('.flags'), 'an expert scaled has no flag');
  press(d.body, 'Escape');
  say(all('.desk-changes li').length === 0 && $('.desk-next').textContent === before && said() === 'The model is as it was.', 'one key puts everything back');

  for (let i = 0; i < 7; i++) $('.layer .expert p button').click();
  say(all('.desk-changes li input:checked').length === 6 && said().includes('no more experts to spare'), 'as many as a token goes to stay: ' + said());
  press(d.body, 'Escape');
  all('.reader button')[0].click();
  say($('.reader input').value === '1', 'it reads from the beginning');
  await new Promise(done => w.setTimeout(done, 900));
  say(+$('.reader input').value >= 4 && +$('.reader input').value <= 6, 'and on: ' + $('.reader input').value);
  type($('.reader input'), '7');

  // A unit that features knows: its name leads to its card, pointing at it shows its squares.
  const link = $('.strongest a');
  if (link) {
    link.dispatchEvent(new w.FocusEvent('focusin', {bubbles: true}));
    say(all('.squares i').length > 0 && $('.desk-board .note').textContent.includes('Red: '), 'squares of a unit');
    link.click();
    await new Promise(done => w.setTimeout(done, 100));
    say(w.location.hash === link.hash && link.hash.startsWith('#unit='), 'a name leads to its card');
  } else say(false, 'no unit with a name');
  all('.pick button').find(b => b.textContent === 'New game').click();
  all('.pick button').find(b => b.textContent === 'The model moves').click();
  say(/^It wrote .*(It plays|It finds no legal move)|^It plays/.test(said()), 'the model moves: ' + said());
  all('input, textarea').forEach(e => say(e.closest('label') || e.getAttribute('aria-label'), 'a field has a name: ' + e.outerHTML.slice(0, 60)));
}
)js";

// What experts, probe and features --pairs measured: every number beside the JSON's, choices by keys, names.
static const char* const experts_script = R"js(
const dataOf = (d, id) => JSON.parse(d.getElementById('data-' + id).textContent);
const shown = (x, digits = 3) => typeof x === 'number' ? x.toFixed(digits).replace(/^-(?=0*\.?0*$)/, '').replace('-', '−') : '–';
const from = q => `${shown(q.low)} to ${shown(q.high)}`, meanOf = list => list.reduce((a, x) => a + x, 0) / list.length;
async function ofExperts(d, w, say) {
  const all = q => [...d.querySelectorAll(q)], $ = q => d.querySelector(q), {layers} = dataOf(d, 'experts');
  const pick = (section, label, text) => all(`#${section} .pick`).find(p => p.getAttribute('aria-label') === label)
    .querySelectorAll('button').forEach(b => b.textContent === text && b.click());
  const region = name => all('[role=region]').find(r => r.getAttribute('aria-label') === name), rows = name => [...region(name).querySelectorAll('tbody tr')];
  const frame = () => new Promise(done => w.setTimeout(done, 100));

  // Experts: opened on the one that is named.
  say($('#experts .card .kicker').textContent === 'Layer 2, expert 3' && $('#experts .card h3').textContent.includes('more than its tokens'), 'opens on an expert that is named');
  say($('#experts .lede').textContent.includes('1 of 32 experts takes what is more'), 'how many there are');
  for (const [i, key] of ['token', 'position', 'before', 'below', 'group'].entries())
    for (const slot of [0, 1]) {
      pick('experts', 'Of a token’s experts, the', ['first', 'second'][slot]);
      await frame();
      const values = layers.map(l => l.slots[slot][key].value).filter(x => x !== null).map(x => shown(x));
      say([...all('#experts .three figure')[i].querySelectorAll('.strong')].map(t => t.textContent).join() === values.join(), `${key}, slot ${slot}: ${values}`);
    }
  say(d.activeElement.textContent === 'second' && d.activeElement.getAttribute('aria-pressed') === 'true', 'the choice keeps the focus');
  for (const l of layers) {
    pick('experts', 'Layer', String(l.layer));
    say(d.activeElement.textContent === String(l.layer), 'and that of the layer');
    const list = rows(`The experts of layer ${l.layer}`);
    l.experts.forEach((x, e) => {
      const text = list[e].textContent, {inside, control, other} = x.effect;
      say(list[e].querySelector('.bar .value').textContent === shown(x.own.balanced) && text.includes(x.label || 'no label'), `expert ${l.layer}/${e}: its label`);
      say(list[e].querySelector('.reach .value').textContent === shown(inside.value) && (inside.value === null ||
          list[e].querySelector('.reach').textContent.includes(`${from(inside)}); expert ${other} off: ${shown(control.value)} (${from(control)})`)), `expert ${l.layer}/${e}: switched off, beside its control, also said`);
      const ticks = [...list[e].querySelectorAll('.tick')].map(t => t.title);
      say(ticks.join() === (x.own.balanced === null ? '' : [`the tokens alone ${shown(x.token.balanced)}`, `labels of other experts ${shown(x.other.balanced)}`, `random routing ${shown(x.random.balanced)}`].join()), 'its controls: ' + ticks);
    });
    const told = l.concepts.filter(c => c.beyond.value !== null).sort((a, b) => b.beyond.value - b.moved - a.beyond.value + a.moved);
    say(rows(`Concepts that tell the first expert of layer ${l.layer}`).map(r => r.querySelector('.value').textContent).join() === told.map(c => shown(c.beyond.value)).join(), 'concepts beyond the token, those that tell most first');
  }
  pick('experts', 'Layer', '1');
  const button = [...region('The experts of layer 1').querySelectorAll('tbody button')][2];
  button.focus(), button.click();
  say(d.activeElement.textContent === 'expert 2' && d.activeElement.getAttribute('aria-pressed') === 'true', 'an expert chosen, the focus stays');
  const x = layers[1].experts[2], effects = rows('What is lost without expert 2 of layer 1').map(r => [...r.querySelectorAll('td')].map(c => c.textContent.split(' ')[0]));
  const four = q => shown(q.value, 4);
  say(effects.join(';') === [[four(x.effect.off), four(x.effect.inside), four(x.effect.outside)], [four(x.effect.zero), '–', '–'], ['–', four(x.effect.control), '–'], ['–', four(x.effect.beyond), '–']].join(';'), 'what is lost: ' + effects.join(';'));
  say($('#experts .card').textContent.includes('numbers of moves'), 'what a language model says');
  const most = x.effect.by_concept.map(q => q[0]).filter(q => q !== null).sort((a, b) => a - b).map(q => shown(q));
  say(rows('Concepts at which most is lost without expert 2 of layer 1').map(r => r.querySelector('.value').textContent).join() === most.join(), 'where most is lost: ' + most);
  $('#experts .card .small').click();
  say(d.querySelector('#play .desk-changes').textContent.includes('expert 2') && d.querySelector('#play .flags').textContent === '--experts-off 1/2', 'switched off in the model at work');
  d.body.dispatchEvent(new w.KeyboardEvent('keydown', {key: 'Escape', bubbles: true}));
  [...region('The experts of layer 1').querySelectorAll('tbody button')][1].click();
  say(!/NaN|undefined/.test($('#experts').textContent) && rows('What is lost without expert 1 of layer 1').length === 2, 'and nothing stands for what is not known');
  say($('#experts .card h3').textContent.includes('No label'), 'an expert that is never chosen');

  // Probes: what the curves show is the mean of the concepts'.
  const probe = dataOf(d, 'probe'), negatives = ['same document', 'other documents', 'same token'];
  say($('#probes .verdict').textContent === probe.sentence, 'the sentence');
  const curve = i => all('#probes .two svg[role=img]')[i].getAttribute('aria-label'), legend = i => all('#probes .two figure')[i].querySelector('.legend').textContent;
  const model = (c, v) => c[negatives[v]].model[0], dense = (c, v) => c[negatives[v]].dense[0];
  for (const v of [0, 1, 2])
    for (const group of ['all', 'squares', 'move']) {
      pick('probes', 'Negatives', negatives[v]), pick('probes', 'Concepts', group);
      await frame();
      const list = probe.concepts.filter(c => (group === 'all' || c.group === group) && c[negatives[v]]), of = f => shown(meanOf(list.map(f)));
      const bests = [`picked on other documents ${of(c => model(c, v).B)}`, `as published ${of(c => model(c, v).A)}`, `yes, best expert ${of(c => model(c, v).H_most)}`,
                     ...(v ? [] : [`on the same tokens ${of(c => c[negatives[0]].E[0])}`, `dealt out at random ${of(c => c[negatives[0]].F[0])}`, `twin’s units ${of(c => c[negatives[0]].J[0])}`, `labels shifted, one unit ${of(c => c.G.A_mean)}`])];
      for (const text of bests) say(curve(0).includes(text), `${negatives[v]}, ${group}: ${text} in ${curve(0)}`);
      const together = [`all experts together ${of(c => model(c, v).D)}`, `the dense twin ${of(c => dense(c, v).D)}`, `the token alone ${of(c => c[negatives[v]].I_token)}`, `and its place ${of(c => c[negatives[v]].I_position)}`,
                        ...(group === 'squares' ? [`rule about the text ${of(c => c[negatives[v]].I_rule)}`] : []), ...(v ? [] : [`labels shifted, one unit ${of(c => c.G.D_mean)}`])];
      for (const text of together) say(curve(1).includes(text), `${negatives[v]}, ${group}: ${text} in ${curve(1)}`);
      say(curve(1).includes('rule about') === (group === 'squares') && legend(1).includes('the dense twin') && (v === 0) === legend(0).includes('labels shifted'), 'controls only where all concepts have them');
    }
  pick('probes', 'Negatives', 'same document'), pick('probes', 'Concepts', 'all');
  const fold = $('#probes details');
  fold.open = true;
  for (const k of [0, 6]) {
    pick('probes', 'Units', String(probe.k[k]));
    say($('#probes details').open && d.activeElement.textContent === String(probe.k[k]), 'what was unfolded stays so');
    rows('Concepts by probes').filter(r => !r.classList.contains('group')).forEach((r, i) => {
      const m = probe.concepts[i]['same document'].model[k];
      say([...r.querySelectorAll('.value')].map(q => q.textContent).join() === [shown(m.B), shown(m.D)].join(), `concept ${i}, k ${probe.k[k]}`);
      say([...r.querySelectorAll('.tick')].some(t => t.title === `a dense twin on the same tokens ${shown(probe.concepts[i]['same document'].E[k])}`), 'its twin beside it');
    });
  }
  await frame();
  const plotted = all('#probes .two svg[role=img]')[0];
  plotted.dispatchEvent(new w.PointerEvent('pointermove', {clientX: plotted.getBoundingClientRect().left + 45, bubbles: true}));
  say(/k 1  B 0\.\d\d  A 0\.\d\d  E/.test(plotted.textContent), 'pointing reads the curves: ' + plotted.textContent);

  // Pairs: those that tell more first, with a way to the card of a unit that has one.
  const {pairs} = dataOf(d, 'features'), list = rows('Pairs of units'), tested = pairs.filter(q => q.beyond[0] !== null);
  say(list.length === 20 && list.filter(r => r.classList.contains('this')).length === Math.min(20, tested.filter(q => q.more).length), 'twenty pairs: ' + list.length);
  say(tested.filter(q => q.more).length > 0 && all('#units figure').some(f => f.textContent.includes(`Of the 30 pairs that fire together most often, ${tested.filter(q => q.more).length} tell`)), 'how many tell more');
  for (const r of list) {
    const q = pairs.find(p => p.property === r.querySelector('small').textContent), D = dataOf(d, 'run').config.d_expert;
    const name = i => `${q.layer}/${Math.floor(i / D)}/${i % D}`, told = ([value, low, high]) => `${shown(value)} (${shown(low)} to ${shown(high)})`;
    say(r.querySelector('th').textContent.startsWith(`${name(q.a)} and ${name(q.b)}`) && r.querySelector('.reach').textContent === `${told(q.beyond)}; with other labels: ${told(q.null)}`, 'a pair: ' + r.textContent);
  }
  const link = region('Pairs of units').querySelector('a');
  say(!link || all('.units').length === 1 && link.hash.startsWith('#unit='), 'a unit of a pair leads to its card');
  for (const id of ['experts', 'probes', 'units'])
    say([...d.getElementById(id).querySelectorAll('button:not([disabled]), summary, a[href], [role=region]')].every(e => e.tabIndex === 0), `keys reach all of #${id}`);
}
)js";

static const char* const whole_tests = R"js(async (d, w, say) => {
  const $ = q => d.querySelector(q), all = q => [...d.querySelectorAll(q)];
  say(all('section').length === 11, 'eleven sections');
  say(all('svg').length > 60, 'charts: ' + all('svg').length);
  say(/0\.740|0\.7\d\d/.test($('.numbers').textContent), 'validation loss in the head');
  say(all('#board tr.this').length === 0 && $('#board').textContent.includes('0.840'), 'the paper in a block of its own');
  const numbersOf = title => all('#board figure').filter(f => f.querySelector('h3') && f.querySelector('h3').textContent === title)[0];
  const ticksOf = title => [...numbersOf(title).querySelectorAll('svg text')].map(t => t.textContent).filter(t => /^0(\.\d\d?)?$/.test(t)).join();
  say(ticksOf('Coverage, held out') === ticksOf('Coverage, as published'), 'charts side by side share a scale');
  say($('.numbers').textContent.includes('beyond the text'), 'the tile is what is beyond the text');
  say($('.board').getAttribute('aria-label').includes('white queen d1'), 'the board in words');
  say($('#units [aria-live]').textContent === 'layer 0, expert 0, unit 90', 'the unit is announced');
  say(all('#strategy tbody tr').length === 25, 'every board function: ' + all('#strategy tbody tr').length);
  const before = $('#strategy').textContent;
  $('#strategy .pick button').click();
  say($('#strategy').textContent !== before && d.activeElement === $('#strategy .pick button'), 'layer picker of the functions');
  const sparse = $('#sparsity').textContent;
  $('#sparsity .pick button:last-child').click();
  say($('#sparsity').textContent !== sparse && d.activeElement === $('#sparsity .pick button:last-child'), 'group picker of the sparsity figures');
  $('#encoder .pick button:last-child').click();
  await new Promise(done => w.setTimeout(done, 100));
  say($('#encoder').textContent.includes('Layer 3: 2,048 rows') && all('#encoder path').length === 8, 'encoder rows of another layer');

  // The browser of units: opened on the best one; keys, clicks and the address.
  const now = () => w.location.hash, current = () => $('.units [aria-current=true]').textContent;
  const key = (k, shift) => $('.browser').dispatchEvent(new w.KeyboardEvent('keydown', {key: k, shiftKey: !!shift, bubbles: true, cancelable: true}));
  say($('.unit .kicker').textContent === 'Layer 0, expert 0, unit 90', 'opens on the best unit');
  say(!$('.unit table'), 'nothing is said of what was not measured');
  await ofExperts(d, w, say);
  say(all('.units li').length === 12 && all('.units [aria-current]').length === 1, 'the units of one expert');
  say(all('.board rect').length >= 64 && all('.board g').length === 64, 'a board of 64 squares');
  say(all('.board path').length > 20, 'pieces on it: ' + all('.board path').length);
  key('ArrowDown');
  say(now() === '#unit=0/0/107' && current().includes('unit 107'), 'arrow down: ' + now());
  key('ArrowUp'), key('ArrowUp');
  say(now() === '#unit=0/0/73', 'arrow up: ' + now());
  key('ArrowRight');
  say(now() === '#unit=0/1/5', 'arrow right: ' + now());
  key('ArrowRight', true);
  say(now() === '#unit=1/1/5', 'shift and arrow right: ' + now());
  key('ArrowLeft', true), key('ArrowLeft', true);
  say(now() === '#unit=3/1/5', 'layers go round: ' + now());
  key('ArrowLeft'), key('ArrowLeft');
  say(now() === '#unit=3/7/5', 'experts go round: ' + now());
  key('ArrowUp');
  say(now() === '#unit=3/7/5', 'stays at the first unit');
  const board = () => all('.board g title').map(t => t.textContent).join();
  const first = board();
  key('3');
  say(now() === '#unit=3/7/5/2' && board() !== first && all('.contexts [aria-pressed=true]').length === 1, 'a key chooses the context: ' + now());
  all('.contexts button')[1].click();
  say(now() === '#unit=3/7/5/1' && d.activeElement === all('.contexts button')[1], 'a click, too');
  w.location.hash = '#unit=2/5/39/1';
  await new Promise(done => w.setTimeout(done, 100));
  say($('.unit .kicker').textContent === 'Layer 2, expert 5, unit 39', 'the address chooses');
  say($('.unit table').textContent.includes('0.0123') && $('.unit table').textContent.includes('unit 5/3, as often on'), 'what it does');
  w.location.hash = '#unit=9/9/9';
  await new Promise(done => w.setTimeout(done, 100));
  say($('.unit .kicker').textContent === 'Layer 2, expert 5, unit 39', 'an address without a unit changes nothing');
  w.location.hash = '#unit=0/0/5/3';
  await new Promise(done => w.setTimeout(done, 100));
  // The context's FEN: rnbq1rk1/p1p1bpp1/..., white to move.
  const titles = all('.board g title').map(t => t.textContent.split(':')[0]);
  for (const t of ['a8, black rook', 'b8, black knight', 'g8, black king', 'd1, white queen', 'h4, white bishop', 'e4', 'a1, white rook'])
    say(titles.includes(t), 'on the board: ' + t);
  say(titles.length === 64 && new Set(titles).size === 64 && titles[0] === 'a1, white rook' && titles[63] === 'h8', 'squares from a1 to h8');
  say($('.contexts [aria-pressed=true] mark').textContent === '.', 'the character is marked');
  const hottest = all('.board g').map((g, i) => [+(g.querySelectorAll('rect')[1] || {getAttribute: () => 0}).getAttribute('opacity'), i]).sort((a, b) => b[0] - a[0])[0][1];
  say(hottest === 0, 'the hottest square is a1: ' + hottest);
  say([...$('.tokens').querySelectorAll('.token')].some(t => t.textContent === '␣'), 'a space is made visible');
  say(!d.querySelector('.absent'), 'nothing is missing');
  await playing(d, w, say);
  $('svg[aria-label="Loss over steps"]').dispatchEvent(new w.PointerEvent('pointermove', {clientX: $('svg[aria-label="Loss over steps"]').getBoundingClientRect().left + 150, bubbles: true}));
  say(/step [\d,]+  training \d\.\d+  validation/.test($('svg[aria-label="Loss over steps"]').textContent), 'pointing reads the curve');
})js";

static void test_browser(const std::string& folder) {
    struct Page {
        const char* name;
        MadeUp run;
        bool measured;
        const char* tests; // JavaScript: async (document, window, say) => ...
    };
    Config dense = small_config("chess-32"), topk = dense, text = small_config("bytes"), many = dense;
    dense.ffn = "dense", topk.router = "topk", topk.act = "gelu";
    many.n_layer = 6, many.n_expert = 32, many.n_expert_active = 1, many.d_expert = 8;
    const std::vector<Page> pages = {
        {"whole", {small_config("chess-32")}, true, whole_tests},
        {"bare", {small_config("chess-32")}, false, R"js((d, w, say) => {
            say(d.querySelectorAll('.absent').length === 6, 'sections without numbers: ' + d.querySelectorAll('.absent').length);
            for (const tool of ['bsp', 'sparsity', 'router', 'experts', 'probe', 'features']) say(text(d).includes('build/' + tool + ' --ckpt '), 'the command of ' + tool);
            say(text(d).includes('--games GAMES') && text(d).includes("--data 'SHARDS'"), 'with its inputs');
            say(d.querySelectorAll('#training svg').length >= 6, 'the curves are there');
        })js"},
        {"hostile", {small_config("chess-32"), 9500, true}, true, R"js((d, w, say) => {
            say(!d.title.includes('out') && d.querySelectorAll('img, main script').length === 0, 'text stays text');
            say(text(d).includes('<\/script><img'), 'and is shown');
        })js"},
        {"dense", {dense}, true, R"js((d, w, say) => {
            say(!d.getElementById('router') && !d.getElementById('encoder') && !text(d).includes('expert 0'), 'no experts');
            say(d.querySelector('.unit .kicker').textContent === 'Layer 0, unit 90', 'units of a layer');
            d.querySelector('.browser').dispatchEvent(new w.KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}));
            say(w.location.hash === '#unit=1/0/5', 'arrows go through the layers');
        })js"},
        {"topk",
         {topk},
         true,
         "(d, w, say) => say(text(d).includes('weights of its own') && text(d).includes('Switch-style'), 'a "
         "router of its own')"},
        {"text", {text}, true, R"js((d, w, say) => {
            say(!d.getElementById('board') && !d.querySelector('.board'), 'no board');
            say([...d.querySelectorAll('.contexts mark')].map(m => m.textContent)[0] === '1', 'the byte is marked');
            const field = d.querySelector('#play textarea'), length = field.value.length;
            say(length > 0 && d.querySelectorAll('.desk-next table').length === 1 && d.querySelectorAll('.desk-inside .layer').length === 4, 'a prompt');
            const heat = d.querySelector('#play input[type=range]');
            heat.value = '0', heat.dispatchEvent(new w.Event('input', {bubbles: true}));
            d.querySelector('#play .settings-row button').click();
            say(field.value.length > length || d.querySelector('.desk-said').textContent.includes('ends'), 'it goes on: ' + field.value.length + d.querySelector('.desk-said').textContent);
            say(d.querySelector('.desk-said').textContent !== '', 'and says so');
        })js"},
        {"many",
         {many},
         true,
         "(d, w, say) => say(d.querySelectorAll('#sparsity svg').length >= 18, 'many experts')"}};
    std::string looks[2]; // in the light every page, in the dark the first
    for (const Page& page : pages) {
        const std::string dir = folder + "/" + page.name;
        write_run(dir, page.run);
        if (page.measured) write_measurements(dir, page.run, page.run.config.n_expert > 8 ? 2 : 12);
        const size_t bytes = report(dir).bytes;
        const std::string html = read_text(dir + "/report.html");
        check(bytes == html.size() && bytes < 5 << 20, "%s: %zu bytes", page.name, bytes);
        check(count(html, "://") == 0, "%s: an address in the page", page.name);
        check(html.find("default-src 'none'; style-src 'unsafe-inline'; script-src 'nonce-page'\"") !=
              std::string::npos);
        const Config& c = page.run.config; // run, model, the script; and the tools
        const size_t scripts =
            3 + (page.measured ? 3 + size_t(c.tokenizer == "chess-32") + 2 * size_t(c.moe()) : 0);
        check(count(html, "<script") == scripts && count(html, "</script>") == scripts, "%s: %zu scripts",
              page.name, count(html, "<script"));
        for (const int width : {360, 1200})
            looks[page.name != std::string("whole")] +=
                strf("await look('%s %d', '%s/report.html', %d, %s);\n", page.name, width, page.name, width,
                     page.tests);
    }
    for (const bool dark : {false, true}) {
        write_file(folder + "/look.html",
                   "<!DOCTYPE html><meta charset=utf-8><body><script>" + std::string(look_script) +
                       experts_script + "(async () => {\n" + looks[0] + (dark ? "" : looks[1]) +
                       "document.body.textContent = '\\n' + lines.join('\\n') + '\\nend\\n';\n})()"
                       ".catch(e => document.body.textContent = '\\nno ' + e.stack.replace(/\\n/g, ' ') + "
                       "'\\n');</script>");
        std::string console;
        const std::string dom =
            browse(folder,
                   std::string("--dump-dom ") + (dark ? "--blink-settings=preferredColorScheme=0"
                                                      : "--blink-settings=preferredColorScheme=1"),
                   folder + "/look.html", &console);
        check(console.empty(), "console: %s", console.substr(0, 500).c_str());
        check(dom.find("\nend\n") != std::string::npos, "the pages were not looked at to the end: %s",
              dom.substr(0, 400).c_str());
        const size_t lines = check_findings(dom);
        check(lines > (dark ? 150 : 320), "%zu findings", lines);
    }

    // Pictures: of the size asked for, other ones in the dark; and on paper.
    std::string pictures[2];
    for (const bool dark : {false, true}) {
        const std::string file = folder + (dark ? "/dark.png" : "/light.png");
        browse(folder,
               strf("--screenshot=%s --window-size=1200,900 --blink-settings=preferredColorScheme=%d",
                    file.c_str(), !dark),
               folder + "/whole/report.html");
        pictures[dark] = read_text(file);
        check(pictures[dark].size() > 20000 && pictures[dark].substr(1, 3) == "PNG", "%zu bytes",
              pictures[dark].size());
        check(pictures[dark].substr(16, 8) == std::string("\0\0\x04\xb0\0\0\x03\x84", 8), "not 1200 x 900");
    }
    check(pictures[0] != pictures[1]);
    browse(folder, "--no-pdf-header-footer --print-to-pdf=" + folder + "/page.pdf",
           folder + "/whole/report.html");
    const std::string pdf = read_text(folder + "/page.pdf");
    check(pdf.starts_with("%PDF") && pdf.size() > 50000, "%zu bytes", pdf.size());
}

int main(int argc, char** argv) {
    return run_main([&] {
        if (argc == 2) {
            const MadeUp m{small_config("chess-32")};
            write_run(argv[1], m), write_measurements(argv[1], m, 12);
            return 0;
        }
        const PageFolder folder;
        test_curves();
        test_inputs(folder.path);
        test_measurements(folder.path);
        in_browser(test_browser, folder);
        return finish();
    });
}
