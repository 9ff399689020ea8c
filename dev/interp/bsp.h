// bsp: what the units of a model know about the board. For every layer coverage and reconstruction of the
// board functions (boards.h, score.h), on the games that units were chosen on, as the field reports them, and
// on held-out games; each beside what costs nothing: a unit that is always on, the untrained weights, labels
// permuted over all positions, and labels of another game at the same move. Features made elsewhere (an
// SAE's, say) are measured by the same ruler when they come as .npy files.
//
//   1 options    2 the ruler: games and labels    3 a layer    4 the model    5 table, JSON, program
#pragma once
#include "../lib/options.h"
#include "labels.h"
#include "npy.h"
#include "results.h"
#include "score.h"
#include "statistics.h"
#include <optional>

// ---------------------------------------------------------------------------------------------------------
// 1 Options

struct BspOptions {
    std::string ckpt, games, test_games, layer = "all", functions = "default";
    std::string activations, test_activations, labels, write_games, json;
    int64_t count = 1000, untrained_seed = -1, seed = 1;
    bool ungated = false;
    size_t characters = 256, dots = 20; // of each game

    void declare(Options& o) {
        o.add(0, "ckpt", "FILE|DIR", &ckpt, "a checkpoint, or the folder of a run for its newest one");
        o.add(0, "games", "FILE", &games,
              "games of 256 characters or more: PGN, game text, or chess-32 shards");
        o.add(0, "test-games", "FILE", &test_games, "held-out games (none: --games are dealt out in turn)");
        o.add(0, "count", "GAMES", &count, 2, 1 << 20, "games of each of the two sets, at most");
        o.add(0, "layer", "N|all", &layer, "the layer to measure");
        o.add(0, "ungated", &ungated, "units without the gate weight of their expert");
        o.add(0, "functions", &functions, {"default", "all"}, "board functions: the field's 23, or ours too");
        o.add(0, "untrained-seed", "SEED", &untrained_seed, -1, INT64_MAX,
              "of the untrained weights (-1: the run's own, else 1)");
        o.add(0, "seed", "SEED", &seed, 0, INT64_MAX, "of permutations and resamples");
        o.add(0, "json", "FILE", &json, "where the numbers go (none: interp/bsp.json beside the checkpoint)");
        o.section("Features made elsewhere, instead of --ckpt:");
        o.add(0, "activations", "FILE.npy", &activations,
              "float32 (games, characters, features) of the train games");
        o.add(0, "test-activations", "FILE.npy", &test_activations, "the same of the held-out games");
        o.add(0, "write-games", "DIR", &write_games,
              "write the fit games, in order, to train.txt and test.txt there, and end");
        o.section("Labels alone:");
        o.add(0, "labels", "FILE|-", &labels,
              "write the board functions of every position of --games as CSV, and end");
    }
};

// ---------------------------------------------------------------------------------------------------------
// 2 The ruler: games and labels

struct Ruler {
    GameSplit games;
    std::vector<FunctionColumns> functions;
    LabelRows columns; // of the train games
    TruthRows train, test;
    Order permuted[2], same_move[2]; // of the train and the test games
    size_t board = 0;                // place of the headline function in functions
    std::vector<size_t> strategy;    // places of the 14
};

inline Ruler make_ruler(GameSplit games, bool all_functions, uint64_t seed) {
    Ruler ruler;
    std::vector<uint32_t> functions, cells;
    for (uint32_t f = 0; f < n_board_functions; f++) {
        if (!board_functions[f].binary || !(board_functions[f].measured || all_functions)) continue;
        if (board_functions[f].strategy) ruler.strategy.push_back(functions.size());
        if (f == board_function("piece_masked_blank_and_initial_state")) ruler.board = functions.size();
        functions.push_back(f);
        for (size_t c = 0; c < cells_of(board_functions[f]); c++)
            cells.push_back(uint32_t(first_cell(f) + c));
    }
    const size_t dots = games.train.dots;
    const BoardLabels train = label_games(games.train, dots), test = label_games(games.test, dots);
    ruler.columns = label_rows(train, cells);
    ruler.functions = function_columns(ruler.columns, functions);
    ruler.train = truth_rows(train, dots, ruler.columns, ruler.functions);
    ruler.test = truth_rows(test, dots, ruler.columns, ruler.functions);
    for (const bool is_test : {false, true}) {
        const size_t n = (is_test ? games.test : games.train).size();
        ruler.permuted[is_test] = permuted_order(n, dots, seed + is_test);
        ruler.same_move[is_test] = same_move_order(n, dots, seed + is_test);
    }
    ruler.games = std::move(games);
    return ruler;
}

// ---------------------------------------------------------------------------------------------------------
// 3 A layer

// What the same search comes to where there is nothing to find.
struct BspControl {
    double coverage = undefined, held_out = undefined, reconstruction = undefined;
};
// Of a function, or the mean over a group's.
struct BspScore {
    double coverage = undefined, per_cell = undefined, possible = undefined;
    double reconstruction = undefined, last = undefined;
    int threshold = -1, rec_threshold = -1;                // indices; a group has none
    double held_out = undefined, rec_held_out = undefined; // all choices made on the train games
    Interval held_out_interval, rec_interval;
    std::vector<size_t> above, above_threshold; // (11) as in Coverage; a group has none
    BspControl untrained, permuted, same_move;
};
struct LayerBsp {
    size_t layer = 0, units = 0, alive = 0;
    double active[n_thresholds] = {}; // units on per dot
    BspScore board, strategy;
    std::vector<BspScore> functions;
};

// The numbers of every function, for other weights or, with orders (train, test), for other labels.
inline std::vector<BspControl> control_scores(const LayerFires& fires, const Ruler& ruler,
                                              const Order* orders = nullptr) {
    const Order *train = orders ? &orders[0] : nullptr, *test = orders ? &orders[1] : nullptr;
    const Selection chosen = select_units(fires.train, ruler.columns, train);
    const Reconstruction r = reconstruct(fires.test, chosen, ruler.test, ruler.functions, test);
    std::vector<BspControl> controls;
    for (size_t f = 0; f < ruler.functions.size(); f++) {
        const FunctionColumns& columns = ruler.functions[f];
        const Coverage c = coverage(chosen, columns);
        const HeldOut held = held_out(fires.test, chosen, c.threshold, ruler.test, columns, test);
        controls.push_back({c.value, held_out_f1(held, columns.cells()),
                            class_f1(r, ruler.test, best_threshold(r, ruler.test, f), f)});
    }
    return controls;
}

// The mean of a number over the strategy functions.
template <class Value> double strategy_mean(const Ruler& ruler, Value value) {
    double sum = 0;
    for (const size_t f : ruler.strategy) sum += value(f);
    return sum / double(ruler.strategy.size());
}

inline BspControl strategy_control(const Ruler& ruler, const std::vector<BspControl>& of) {
    return {strategy_mean(ruler, [&](size_t f) { return of[f].coverage; }),
            strategy_mean(ruler, [&](size_t f) { return of[f].held_out; }),
            strategy_mean(ruler, [&](size_t f) { return of[f].reconstruction; })};
}

inline LayerBsp measure_layer(const LayerFires& fires, const Ruler& ruler, uint64_t seed) {
    LayerBsp out;
    out.units = fires.units, out.alive = fires.alive;
    for (size_t t = 0; t < n_thresholds; t++) out.active[t] = fires.active(t);

    const Selection chosen = select_units(fires.train, ruler.columns);
    const Reconstruction known = reconstruct(fires.train, chosen, ruler.train, ruler.functions),
                         r = reconstruct(fires.test, chosen, ruler.test, ruler.functions);
    const std::vector<BspControl> permuted = control_scores(fires, ruler, ruler.permuted),
                                  same_move = control_scores(fires, ruler, ruler.same_move);
    const size_t games = ruler.test.games, F = ruler.functions.size();
    std::vector<HeldOut> held(F);
    std::vector<size_t> t_known(F); // of reconstruction, chosen on the train games
    const auto held_f1 = [&](size_t f, const std::vector<uint32_t>* times) {
        return held_out_f1(held[f], ruler.functions[f].cells(), times);
    };
    const auto rec_f1 = [&](size_t f, const std::vector<uint32_t>* times) {
        return class_f1(r, ruler.test, t_known[f], f, times);
    };
    for (size_t f = 0; f < F; f++) {
        const FunctionColumns& columns = ruler.functions[f];
        BspScore s;
        const Coverage c = coverage(chosen, columns);
        s.coverage = c.value, s.per_cell = c.per_cell, s.threshold = int(c.threshold);
        s.above.assign(c.above, c.above + n_thresholds);
        s.above_threshold.assign(c.above_threshold, c.above_threshold + n_thresholds);
        held[f] = held_out(fires.test, chosen, c.threshold, ruler.test, columns);
        s.held_out = held_f1(f, nullptr);
        s.held_out_interval = bootstrap(games, seed, [&](const auto& times) { return held_f1(f, &times); });
        const size_t t = best_threshold(r, ruler.test, f);
        t_known[f] = best_threshold(known, ruler.train, f);
        s.rec_threshold = int(t), s.reconstruction = class_f1(r, ruler.test, t, f);
        s.last = class_f1(r, ruler.test, max_mask, f);
        s.rec_held_out = rec_f1(f, nullptr);
        s.rec_interval = bootstrap(games, seed, [&](const auto& times) { return rec_f1(f, &times); });
        s.permuted = permuted[f], s.same_move = same_move[f];
        out.functions.push_back(s);
    }

    // 64 of the headline's 768 cells can never hold: each initial piece on its own square, pawns on the first
    // and the last rank.
    out.board = out.functions[ruler.board];
    out.board.possible = out.board.coverage * 768 / (768 - 64);
    BspScore& s = out.strategy;
    const auto mean = [&](auto member) {
        return strategy_mean(ruler, [&](size_t f) { return member(out.functions[f]); });
    };
    s.coverage = mean([](const BspScore& f) { return f.coverage; });
    s.per_cell = mean([](const BspScore& f) { return f.per_cell; });
    s.held_out = mean([](const BspScore& f) { return f.held_out; });
    s.reconstruction = mean([](const BspScore& f) { return f.reconstruction; });
    s.last = mean([](const BspScore& f) { return f.last; });
    s.rec_held_out = mean([](const BspScore& f) { return f.rec_held_out; });
    s.permuted = strategy_control(ruler, permuted);
    s.same_move = strategy_control(ruler, same_move);
    s.held_out_interval = bootstrap(games, seed, [&](const auto& times) {
        return strategy_mean(ruler, [&](size_t f) { return held_f1(f, &times); });
    });
    s.rec_interval = bootstrap(games, seed, [&](const auto& times) {
        return strategy_mean(ruler, [&](size_t f) { return rec_f1(f, &times); });
    });
    return out;
}

// The untrained weights' numbers, beside a layer's.
inline void add_untrained(LayerBsp& layer, const std::vector<BspControl>& of, const Ruler& ruler) {
    for (size_t f = 0; f < of.size(); f++) layer.functions[f].untrained = of[f];
    layer.board.untrained = of[ruler.board];
    layer.strategy.untrained = strategy_control(ruler, of);
}

// ---------------------------------------------------------------------------------------------------------
// 4 The model

struct BspFunction {
    size_t function, positives[2]; // true cells at the dots of the train and the test games
    double floor;                  // the coverage of a unit that is always on
};
struct Bsp {
    std::string checkpoint, activations; // one of them
    int64_t step = -1;
    Config config;
    double seconds = 0, board_floor = undefined, strategy_floor = undefined;
    GameSplit games;
    bool gated = true;
    uint64_t untrained_seed = 0, seed = 0;
    std::vector<BspFunction> functions;
    std::vector<LayerBsp> layers;
};

inline GameSplit bsp_games(const BspOptions& options) {
    if (options.games.empty()) fail_usage("--games is missing: a file of games");
    return split_games(options.games, options.test_games, options.characters, options.dots,
                       size_t(options.count));
}

// A model that reads games: chess-32 tokens, and enough of them.
inline void check_chess_model(const Config& c, const std::string& path, size_t characters) {
    if (c.tokenizer.empty() ? c.vocab_size != chess_vocab : c.tokenizer != tokenizer_name(TOKENIZER_CHESS))
        fail("%s: a model of %s tokens, expected chess-32: its units are compared with games of chess",
             path.c_str(), c.tokenizer.empty() ? std::to_string(c.vocab_size).c_str() : c.tokenizer.c_str());
    if (c.block_size < characters)
        fail("%s: reads %zu characters, expected the %zu of each game", path.c_str(), c.block_size,
             characters);
}

// (games, characters, features) of a set of games.
inline NpyArray read_activations(const std::string& path, const GameSet& games) {
    NpyArray array = read_npy(path);
    const std::vector<size_t>& shape = array.shape;
    if (shape.size() != 3 || shape[0] != games.size() || shape[1] != games.characters || shape[2] == 0)
        fail("%s: shape %s, expected (%zu, %zu, features): the fit games of %s in order (see --write-games)",
             path.c_str(), npy_shape_text(shape).c_str(), games.size(), games.characters,
             games.source.c_str());
    return array;
}

inline Bsp measure_bsp(const BspOptions& options, const MakeReader& make_reader) {
    const double begin = now_seconds();
    Bsp bsp;
    bsp.gated = !options.ungated, bsp.seed = uint64_t(options.seed);
    if (options.ckpt.empty() == options.activations.empty())
        fail_usage("one of --ckpt and --activations is needed");
    if (options.activations.empty() != options.test_activations.empty())
        fail_usage("--activations and --test-activations go together");

    // Features first: what cannot be read is refused before any work.
    std::optional<SafeTensorsFile> file;
    std::vector<size_t> which; // layers
    if (!options.ckpt.empty()) {
        file.emplace(find_checkpoint(options.ckpt));
        bsp.checkpoint = file->path, bsp.config = read_config(*file), bsp.step = checkpoint_step(*file);
        check_chess_model(bsp.config, file->path, options.characters);
        bsp.untrained_seed = options.untrained_seed >= 0 ? uint64_t(options.untrained_seed)
                                                         : seed_of_run(file->path, bsp.step);
        if (options.layer != "all") {
            size_t layer = 0;
            const char *text = options.layer.data(), *end = text + options.layer.size();
            const auto [stop, error] = std::from_chars(text, end, layer);
            if (error != std::errc() || stop != end || layer >= bsp.config.n_layer)
                fail_usage("--layer: %s, expected all or 0 to %zu", quoted(options.layer).c_str(),
                           bsp.config.n_layer - 1);
            which = {layer};
        }
    } else if (options.layer != "all" || options.ungated) {
        fail_usage("--layer and --ungated are for --ckpt");
    }
    const Ruler ruler = make_ruler(bsp_games(options), options.functions == "all", bsp.seed);
    std::vector<LayerFires> fires;
    std::optional<Reader> reader;
    if (file) {
        reader.emplace(make_reader(bsp.config, 16, options.characters));
        load_weights(*reader, *file);
        fires = model_fires(*reader, ruler.games, bsp.gated, file->path, which);
    } else {
        bsp.activations = options.activations;
        const std::string names[2] = {options.activations, options.test_activations};
        const NpyArray train = read_activations(names[0], ruler.games.train),
                       test = read_activations(names[1], ruler.games.test);
        if (train.shape[2] != test.shape[2])
            fail("%s: %zu features, expected the %zu of %s", names[1].c_str(), test.shape[2], train.shape[2],
                 names[0].c_str());
        fires.push_back(array_fires(train.data, test.data, train.shape[2], ruler.games, names));
    }

    const auto score_all = [&](const char* label, auto score) { // frees the fires
        Progress progress(label, "layers", double(fires.size()));
        for (size_t i = 0; i < fires.size(); i++) {
            score(i);
            fires[i] = {};
            progress.update(double(i + 1));
        }
        progress.finish(double(fires.size()));
    };
    score_all("scores", [&](size_t i) {
        bsp.layers.push_back(measure_layer(fires[i], ruler, bsp.seed));
        bsp.layers.back().layer = which.empty() ? i : which[i];
    });
    if (reader) {
        untrained_weights(*reader, bsp.untrained_seed);
        fires = model_fires(*reader, ruler.games, bsp.gated, "untrained weights", which);
        score_all("untrained scores",
                  [&](size_t i) { add_untrained(bsp.layers[i], control_scores(fires[i], ruler), ruler); });
    }

    for (size_t f = 0; f < ruler.functions.size(); f++) {
        BspFunction out = {
            ruler.functions[f].function, {}, always_on_floor(ruler.columns, ruler.functions[f])};
        for (size_t i = 0; i < 2; i++) {
            const TruthRows& truth = i ? ruler.test : ruler.train;
            out.positives[i] = std::accumulate(&truth.positives[f * truth.games],
                                               &truth.positives[f * truth.games] + truth.games, size_t(0));
        }
        bsp.functions.push_back(out);
    }
    bsp.board_floor = bsp.functions[ruler.board].floor;
    bsp.strategy_floor = strategy_mean(ruler, [&](size_t f) { return bsp.functions[f].floor; });
    bsp.games = ruler.games;
    bsp.seconds = now_seconds() - begin;
    return bsp;
}

// ---------------------------------------------------------------------------------------------------------
// 5 Table, JSON, program

struct ScoreRow {
    std::string name;
    const BspScore* score;
    double floor; // coverage of a unit that is always on
};

// A number of three digits, or "-" where there is none.
inline std::string digits(double x) { return std::isnan(x) ? "-" : strf("%.3f", x); }
inline std::string interval_text(const Interval& i) {
    return std::isnan(i.low) ? "-" : strf("%.3f-%.3f", i.low, i.high);
}

inline size_t name_width(const std::vector<ScoreRow>& rows) {
    size_t width = 5;
    for (const ScoreRow& row : rows) width = std::max(width, row.name.size());
    return width;
}
inline std::string threshold_text(int t) { return t < 0 ? "" : strf("%.1f", double(threshold(size_t(t)))); }

inline void print_coverage(const char* title, const std::vector<ScoreRow>& rows) {
    const int width = int(name_width(rows));
    printf("\n%s\n%*s  %-41s  %s\n%*s", title, width, "", "as published:", "held out:", width, "");
    printf("  coverage   T untrained permuted same move  coverage  95%% of games always on untrained "
           "permuted same "
           "move\n");
    for (const auto& [name, s, floor] : rows)
        printf("%-*s  %8s %3s %9s %8s %9s  %8s  %12s %9s %9s %8s %9s\n", width, name.c_str(),
               digits(s->coverage).c_str(), threshold_text(s->threshold).c_str(),
               digits(s->untrained.coverage).c_str(), digits(s->permuted.coverage).c_str(),
               digits(s->same_move.coverage).c_str(), digits(s->held_out).c_str(),
               interval_text(s->held_out_interval).c_str(), digits(floor).c_str(),
               digits(s->untrained.held_out).c_str(), digits(s->permuted.held_out).c_str(),
               digits(s->same_move.held_out).c_str());
}
inline void print_reconstruction(const char* title, const std::vector<ScoreRow>& rows) {
    const int width = int(name_width(rows));
    printf("\n%s\n%*s  %-41s  %s\n%*s", title, width, "", "as published:", "held out:", width, "");
    printf("        F1   T untrained permuted same move        F1  95%% of games  max mask\n");
    for (const auto& [name, s, floor] : rows)
        printf("%-*s  %8s %3s %9s %8s %9s  %8s  %12s %9s\n", width, name.c_str(),
               digits(s->reconstruction).c_str(), threshold_text(s->rec_threshold).c_str(),
               digits(s->untrained.reconstruction).c_str(), digits(s->permuted.reconstruction).c_str(),
               digits(s->same_move.reconstruction).c_str(), digits(s->rec_held_out).c_str(),
               interval_text(s->rec_interval).c_str(), digits(s->last).c_str());
}

// The layer with the highest held-out board coverage.
inline const LayerBsp& best_layer(const Bsp& bsp) {
    return *std::max_element(bsp.layers.begin(), bsp.layers.end(), [](const LayerBsp& a, const LayerBsp& b) {
        return a.board.held_out < b.board.held_out;
    });
}

// Board coverage counted in other ways, as published otherwise.
inline void print_other_coverages(const Bsp& bsp) {
    printf(
        "\nBoard state, coverage in other ways (as published otherwise)\n       a T for each  704 cells that "
        "  "
        "  cells of 768 with an F1 above\n       cell          can occur            0.5      0.8      0.9\n");
    for (const LayerBsp& layer : bsp.layers)
        printf("%-5zu  %12.3f  %14.3f  %13zu %8zu %8zu\n", layer.layer, layer.board.per_cell,
               layer.board.possible, layer.board.above[5], layer.board.above[8], layer.board.above[9]);
}

inline void print_bsp(const Bsp& bsp) {
    const GameSplit& games = bsp.games;
    const std::string model = bsp.activations.empty() ? bsp.checkpoint : bsp.activations;
    printf("%s\nchosen on %zu games of %s, held out: %zu of %s; %zu dots of each\n", model.c_str(),
           games.train.size(), games.train.source.c_str(), games.test.size(), games.test.source.c_str(),
           games.train.dots);
    const GameSet &a = games.train, &b = games.test;
    const bool one_file = a.source == b.source; // read once, counted once
    printf("left out: %zu games too short, %zu not legal, %zu repeated\n",
           a.shorter + (one_file ? 0 : b.shorter), a.illegal + (one_file ? 0 : b.illegal),
           a.repeated + (one_file ? 0 : b.repeated));
    printf("\nlayer   units   alive   units on per dot at T = 0, 0.1, .. 1.0%s\n",
           bsp.gated ? "" : " (without gate weights)");
    for (const LayerBsp& layer : bsp.layers) {
        printf("%-5zu %7zu %7zu  ", layer.layer, layer.units, layer.alive);
        for (const double on : layer.active) printf(" %6.1f", on);
        printf("\n");
    }
    std::vector<ScoreRow> board, strategy, functions;
    for (const LayerBsp& layer : bsp.layers) {
        board.push_back({std::to_string(layer.layer), &layer.board, bsp.board_floor});
        strategy.push_back({std::to_string(layer.layer), &layer.strategy, bsp.strategy_floor});
    }
    const LayerBsp& best = best_layer(bsp);
    for (size_t f = 0; f < bsp.functions.size(); f++)
        functions.push_back(
            {board_functions[bsp.functions[f].function].name, &best.functions[f], bsp.functions[f].floor});
    print_coverage("Board state, coverage (pieces that do not stand where they began; 0.917 at most)", board);
    print_other_coverages(bsp);
    print_reconstruction("Board state, reconstruction", board);
    print_coverage("Strategy, coverage (mean of 14 functions)", strategy);
    print_reconstruction("Strategy, reconstruction (mean of 14 functions)", strategy);
    print_coverage(strf("Layer %zu, coverage of every function", best.layer).c_str(), functions);
    print_reconstruction(strf("Layer %zu, reconstruction of every function", best.layer).c_str(), functions);
    printf("\nas published: the best threshold T (times a unit's maximum) of the games it is measured on; of "
           "reconstruction on the held-out ones\nheld out: unit and threshold chosen on the train games, "
           "measured "
           "on the others; the interval resamples games\n");
    printf("%spermuted: labels of other positions; same move: of another game at that move (seed %llu)\n",
           bsp.activations.empty()
               ? strf("untrained: the initial weights of seed %llu; ", (unsigned long long)bsp.untrained_seed)
                     .c_str()
               : "",
           (unsigned long long)bsp.seed);
}

inline void score_json(JsonWriter& out, const BspScore& s) {
    const auto index = [&](const char* name, int t) { out.member(name, t < 0 ? undefined : double(t)); };
    out.member("coverage", s.coverage), index("threshold", s.threshold);
    out.member("per_cell", s.per_cell).member("possible", s.possible).member("held_out", s.held_out);
    out.member("held_out_low", s.held_out_interval.low).member("held_out_high", s.held_out_interval.high);
    out.member("reconstruction", s.reconstruction), index("rec_threshold", s.rec_threshold);
    out.member("last", s.last).member("rec_held_out", s.rec_held_out);
    out.key("above").values(s.above).key("above_threshold").values(s.above_threshold);
    out.member("rec_low", s.rec_interval.low).member("rec_high", s.rec_interval.high);
    for (const auto& [name, control] :
         {std::pair{"untrained", s.untrained}, {"permuted", s.permuted}, {"same_move", s.same_move}}) {
        out.key(name).open('{').member("coverage", control.coverage).member("held_out", control.held_out);
        out.member("reconstruction", control.reconstruction).close();
    }
}

inline std::string bsp_json(const Bsp& bsp) {
    JsonWriter out;
    if (bsp.activations.empty()) {
        out = begin_json("bsp", bsp.checkpoint, bsp.step, bsp.config, bsp.seconds);
    } else {
        out.open('{').member("tool", "bsp").member("activations", bsp.activations);
        out.member("checkpoint", undefined).member("step", undefined).key("seconds").value(bsp.seconds, 3);
    }
    out.key("games").open('{').member("source", bsp.games.train.source);
    out.member("test_source", bsp.games.test.source);
    out.member("train", bsp.games.train.size()).member("test", bsp.games.test.size());
    out.member("characters", bsp.games.train.characters).member("dots", bsp.games.train.dots).close();
    out.member("gated", bsp.gated).key("seeds").open('{');
    out.member("untrained", bsp.activations.empty() ? double(bsp.untrained_seed) : undefined);
    out.member("permutation", bsp.seed).member("bootstrap", bsp.seed).close();
    out.member("board_floor", bsp.board_floor).member("strategy_floor", bsp.strategy_floor);
    out.key("functions").open('[');
    for (const BspFunction& f : bsp.functions) {
        const BoardFunction& board = board_functions[f.function];
        out.open('{').member("name", board.name).member("meaning", board.meaning);
        out.member("strategy", board.strategy).member("cells", cells_of(board));
        out.key("positives").open('[').value(f.positives[0]).value(f.positives[1]).close();
        out.member("floor", f.floor).close();
    }
    out.close().key("layers").open('[');
    for (const LayerBsp& layer : bsp.layers) {
        out.open('{').member("layer", layer.layer).member("units", layer.units).member("alive", layer.alive);
        out.key("active").values(layer.active).key("board").open('{');
        score_json(out, layer.board);
        out.close().key("strategy").open('{');
        score_json(out, layer.strategy);
        out.close().key("functions").open('[');
        for (size_t f = 0; f < layer.functions.size(); f++) {
            out.open('{').member("name", board_functions[bsp.functions[f].function].name);
            score_json(out, layer.functions[f]);
            out.close();
        }
        out.close().close();
    }
    out.close().close();
    return out.text;
}

// The games of a set, one per line: game text that --games reads.
inline void write_games(const std::string& path, const GameSet& games) {
    AtomicFile out(path);
    for (const std::string& text : games.texts) out.write((text + "\n").data(), text.size() + 1);
    out.commit();
    printf("%zu games in %s\n", games.size(), path.c_str());
}

// The labels of a file, whole under its name or not there.
// The CSV of --labels to a file, which is there whole or not at all, or to stdout.
inline void labels_to(const std::string& path, const std::string& games) {
    if (games.empty()) fail_usage("--games is missing: games or positions to label");
    const bool to_file = path != "-";
    const std::string temporary = strf("%s.tmp.%d", path.c_str(), int(getpid()));
    FILE* file = to_file ? fopen(temporary.c_str(), "w") : stdout;
    if (!file) fail("%s: cannot be created: %s", path.c_str(), strerror(errno));
    LabelCounts counts;
    try {
        counts = write_labels(games, file);
        if (to_file &&
            (fclose(std::exchange(file, nullptr)) != 0 || rename(temporary.c_str(), path.c_str()) != 0))
            fail("%s: cannot be written: %s", path.c_str(), strerror(errno));
    } catch (...) {
        if (to_file && file) fclose(file);
        if (to_file) unlink(temporary.c_str());
        throw;
    }
    if (counts.left_out)
        fprintf(stderr, "%zu games of %s are left out: cut, empty or variants\n", counts.left_out,
                games.c_str());
    if (to_file) printf("%zu positions of %zu games in %s\n", counts.positions, counts.games, path.c_str());
}

// The program; make_reader runs the model, on the CPU or the GPU.
inline int bsp_program(int argc, char** argv, const MakeReader& make_reader) {
    BspOptions flags;
    Options options("bsp", "Measures what the units of a checkpoint know about the board: coverage and "
                           "reconstruction of\nboard functions, beside their controls.");
    flags.declare(options);
    if (!options.parse(argc, argv)) return 0;
    if (!flags.labels.empty()) return labels_to(flags.labels, flags.games), 0;
    if (!flags.write_games.empty()) {
        const GameSplit games = bsp_games(flags);
        make_directories(flags.write_games);
        write_games(flags.write_games + "/train.txt", games.train);
        write_games(flags.write_games + "/test.txt", games.test);
        return 0;
    }
    const Bsp bsp = measure_bsp(flags, make_reader);
    print_bsp(bsp);
    write_json(json_path(flags.json, bsp.activations.empty() ? bsp.checkpoint : bsp.activations, "bsp"),
               bsp_json(bsp));
    return 0;
}
