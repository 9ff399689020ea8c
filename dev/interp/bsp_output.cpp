// What bsp measured, as tables and as JSON (bsp.h, section 5).
#include "bsp.h"

void print_scores(const char* title, const std::vector<ScoreRow>& rows,
                  const std::vector<BspColumn>& columns) {
    size_t first = 5;
    for (const ScoreRow& row : rows) first = std::max(first, row.name.size());
    printf("\n%s\n", title);
    for (const bool heads : {false, true}) {
        std::string line(first, ' ');
        for (size_t c = 0; c < columns.size(); c++) {
            size_t width = std::max<size_t>(8, std::string_view(columns[c].head).size());
            for (const ScoreRow& row : rows) width = std::max(width, columns[c].text(row).size());
            const std::string text = heads ? columns[c].head : columns[c].group;
            line += "  " + (heads ? std::string(width - std::min(width, text.size()), ' ') + text
                                  : text + std::string(width - std::min(width, text.size()), ' '));
        }
        printf("%s\n", line.c_str());
    }
    for (const ScoreRow& row : rows) {
        std::string line = row.name + std::string(first - row.name.size(), ' ');
        for (const BspColumn& column : columns) {
            size_t width = std::max<size_t>(8, std::string_view(column.head).size());
            for (const ScoreRow& other : rows) width = std::max(width, column.text(other).size());
            const std::string text = column.text(row);
            line += "  " + std::string(width - text.size(), ' ') + text;
        }
        printf("%s\n", line.c_str());
    }
}

void print_coverage(const char* title, const std::vector<ScoreRow>& rows) {
    using R = const ScoreRow&;
    print_scores(title, rows,
                 {{"beyond", "the text", [](R r) { return digits(r.score->beyond); }},
                  {"", "95% interval", [](R r) { return interval_text(r.score->beyond_interval); }},
                  {"", "untrained", [](R r) { return digits(r.score->untrained.beyond); }},
                  {"held", "out", [](R r) { return digits(r.score->held_out); }},
                  {"", "95% interval", [](R r) { return interval_text(r.score->held_out_interval); }},
                  {"", "text", [](R r) { return digits(r.score->text.held_out); }},
                  {"", "matched", [](R r) { return digits(r.score->matched); }},
                  {"", "same move", [](R r) { return digits(r.score->same_move.held_out); }},
                  {"", "permuted", [](R r) { return digits(r.score->permuted.held_out); }},
                  {"", "untrained", [](R r) { return digits(r.score->untrained.held_out); }},
                  {"", "always on", [](R r) { return digits(r.floor_test); }},
                  {"as", "published", [](R r) { return digits(r.score->coverage); }},
                  {"", "T", [](R r) { return threshold_text(r.score->threshold); }},
                  {"", "text", [](R r) { return digits(r.score->text.coverage); }},
                  {"", "untrained", [](R r) { return digits(r.score->untrained.coverage); }}});
}

void print_reconstruction(const char* title, const std::vector<ScoreRow>& rows) {
    using R = const ScoreRow&;
    print_scores(title, rows,
                 {{"beyond", "the text", [](R r) { return digits(r.score->rec_beyond); }},
                  {"", "95% interval", [](R r) { return interval_text(r.score->rec_beyond_interval); }},
                  {"", "same move", [](R r) { return digits(r.score->same_move.rec_beyond); }},
                  {"", "untrained", [](R r) { return digits(r.score->untrained.rec_beyond); }},
                  {"held", "out", [](R r) { return digits(r.score->rec); }},
                  {"", "95% interval", [](R r) { return interval_text(r.score->rec_interval); }},
                  {"as", "published", [](R r) { return digits(r.score->rec_published); }},
                  {"", "T", [](R r) { return threshold_text(r.score->rec_threshold); }},
                  {"", "text", [](R r) { return digits(r.score->text.rec_published); }},
                  {"", "same move", [](R r) { return digits(r.score->same_move.rec_published); }},
                  {"", "permuted", [](R r) { return digits(r.score->permuted.rec_published); }},
                  {"", "untrained", [](R r) { return digits(r.score->untrained.rec_published); }},
                  {"", "max mask", [](R r) { return digits(r.score->rec_max_mask); }}});
}

void print_other_coverages(const Bsp& bsp, const BspFunction& board, double all) {
    printf("\nBoard state, coverage in other ways. Of the %.0f cells %.0f hold in the train games: at most "
           "%.3f can be\n"
           "reached there; held out, where some of these never hold, %.3f. Common cells: 20 dots or more of "
           "10 games or\n"
           "more in either set, %zu cells. New dots: those whose text so far is in no train game, %.1f%%.\n",
           all, board.attainable * all, board.attainable, board.attainable_test, board.common,
           100 * (1 - bsp.seen));
    printf("       held out:                                as published:\n"
           "       common cells  text's there  new dots     a T for each  704 cells that  cells with an F1 "
           "above\n"
           "                                                cell          can occur          0.5    0.8    "
           "0.9\n");
    for (const LayerBsp& layer : bsp.layers)
        printf("%-5zu  %12s  %12s  %8s  %15s  %14s  %12zu %6zu %6zu\n", layer.layer,
               digits(layer.board.common).c_str(), digits(layer.board.text_common).c_str(),
               digits(layer.board.unseen).c_str(), digits(layer.board.per_cell).c_str(),
               digits(layer.board.of_704).c_str(), layer.board.above[5], layer.board.above[8],
               layer.board.above[9]);
}

// A number of every draw: mean, lowest, highest.
struct DrawRange {
    double mean = 0, low = INFINITY, high = -INFINITY;

    DrawRange(const std::vector<BspControl>& of, double BspControl::*number) {
        for (const BspControl& c : of) {
            mean += c.*number / double(of.size());
            low = std::min(low, c.*number);
            high = std::max(high, c.*number);
        }
    }
};

void print_subsets(const Bsp& bsp) {
    if (bsp.layers[0].subset.board.empty()) return;
    printf("\nSome units of a layer, %zu draws: mean (lowest-highest)\n"
           "layer   units   board state: held out    as published          reconstruction        strategy: "
           "held out\n",
           bsp.layers[0].subset.board.size());
    for (const LayerBsp& layer : bsp.layers) {
        const auto range = [&](const std::vector<BspControl>& of, double BspControl::*number) {
            const DrawRange r(of, number);
            return strf("%.3f (%.3f-%.3f)", r.mean, r.low, r.high);
        };
        const SubsetScores& s = layer.subset;
        printf("%-5zu %7zu   %-22s   %-19s   %-19s   %s\n", layer.layer, s.units,
               range(s.board, &BspControl::held_out).c_str(), range(s.board, &BspControl::coverage).c_str(),
               range(s.board, &BspControl::rec_published).c_str(),
               range(s.strategy, &BspControl::held_out).c_str());
    }
}

static void subset_json(JsonWriter& out, const SubsetScores& s) {
    out.key("subset").open('{').member("units", s.units).member("draws", s.board.size());
    for (const auto& [group, of] : {std::pair{"board", &s.board}, {"strategy", &s.strategy}}) {
        out.key(group).open('{');
        for (const auto& [name, number] : {std::pair{"coverage", &BspControl::coverage},
                                           {"held_out", &BspControl::held_out},
                                           {"rec_published", &BspControl::rec_published},
                                           {"beyond", &BspControl::beyond},
                                           {"rec_beyond", &BspControl::rec_beyond}}) {
            const DrawRange r(*of, number);
            out.key(name).open('[').value(r.mean).value(r.low).value(r.high).close();
        }
        out.close();
    }
    out.close();
}

void print_bsp(const Bsp& bsp) {
    const GameSplit& games = bsp.games;
    const std::string model = bsp.activations.empty() ? bsp.checkpoint : bsp.activations;
    printf("%s%s\nunits are chosen on %zu games of %s, measured on %zu others of %s; %zu dots of each\n",
           model.c_str(), bsp.sae.empty() ? "" : (", latents of " + bsp.sae).c_str(), games.train.size(),
           games.train.source.c_str(), games.test.size(), games.test.source.c_str(), games.train.dots);
    if (bsp.own_games)
        printf("warning: the model was trained on these games; give others to learn what it knows of games "
               "it has not "
               "seen\n");
    const GameSet &a = games.train, &b = games.test;
    const bool one_file = a.source == b.source; // read once, counted once
    printf("left out: %zu games too short, %zu not legal, %zu repeated\n",
           a.shorter + (one_file ? 0 : b.shorter), a.illegal + (one_file ? 0 : b.illegal),
           a.repeated + (one_file ? 0 : b.repeated));
    printf("\nlayer   units   alive   units on per dot at T = 0, 0.1, .. 1.0%s\n",
           ((bsp.gated ? "" : " (without gate weights)") +
            std::string(bsp.split ? " (each as two, by its sign)" : ""))
               .c_str());
    for (const LayerBsp& layer : bsp.layers) {
        printf("%-5zu %7zu %7zu  ", layer.layer, layer.units, layer.alive);
        for (const double on : layer.active) printf(" %6.1f", on);
        printf("\n");
    }
    std::vector<ScoreRow> board, strategy, functions;
    for (const LayerBsp& layer : bsp.layers) {
        board.push_back({std::to_string(layer.layer), &layer.board, bsp.board_floor_test});
        strategy.push_back({std::to_string(layer.layer), &layer.strategy, bsp.strategy_floor_test});
    }
    const LayerBsp& best = bsp.best_layer();
    const BspFunction* headline = nullptr;
    for (size_t f = 0; f < bsp.functions.size(); f++) {
        const BspFunction& function = bsp.functions[f];
        functions.push_back(
            {board_functions[function.function].name, &best.functions[f], function.floor_test});
        if (function.function == board_function("piece_masked_blank_and_initial_state")) headline = &function;
    }
    print_coverage("Board state, coverage (pieces that do not stand where they began)", board);
    print_other_coverages(bsp, *headline, 768);
    print_reconstruction("Board state, reconstruction", board);
    print_coverage("Strategy, coverage (mean of 14 functions)", strategy);
    print_reconstruction("Strategy, reconstruction (mean of 14 functions)", strategy);
    print_subsets(bsp);
    print_coverage(strf("Layer %zu, coverage of every function", best.layer).c_str(), functions);
    print_reconstruction(strf("Layer %zu, reconstruction of every function", best.layer).c_str(), functions);
    printf("\nbeyond the text: coverage, what units have more than the best rules about the text alone; "
           "reconstruction, F1 over the\n  cells that no rule about the text says\n"
           "held out: unit and threshold chosen on the train games, measured on the others; the interval "
           "resamples "
           "games\n"
           "text: the best rules about the text; matched: the same units, as expected at the same move, last "
           "move and "
           "range of\n  character number\n"
           "same move, permuted: the search in labels of another game at that move, of any other position "
           "(seed %llu)\n"
           "as published: the best threshold T (times a unit's maximum) of the games it is measured on; of "
           "reconstruction on the test games\n",
           (unsigned long long)bsp.seed);
    if (bsp.activations.empty())
        printf("untrained: %s of seed %llu\n",
               bsp.sae.empty() ? "the initial weights" : "as many latents of random directions,",
               (unsigned long long)bsp.untrained_seed);
}

void score_json(JsonWriter& out, const BspScore& s) {
    const auto share = [](int t) { return t < 0 ? undefined : double(t) / 10; };
    const auto with_interval = [&](const std::string& name, double value, const Interval& i) {
        out.member(name.c_str(), value);
        out.member((name + "_low").c_str(), i.low).member((name + "_high").c_str(), i.high);
    };
    with_interval("beyond", s.beyond, s.beyond_interval);
    with_interval("rec_beyond", s.rec_beyond, s.rec_beyond_interval);
    out.member("gain", s.gain);
    with_interval("held_out", s.held_out, s.held_out_interval);
    out.member("unseen", s.unseen).member("common", s.common).member("text_common", s.text_common);
    out.member("matched", s.matched);
    with_interval("rec", s.rec, s.rec_interval);
    out.member("coverage", s.coverage).member("threshold", share(s.threshold));
    out.member("per_cell", s.per_cell).member("of_704", s.of_704);
    out.member("rec_published", s.rec_published).member("rec_threshold", share(s.rec_threshold));
    out.member("rec_max_mask", s.rec_max_mask);
    out.key("above").values(s.above).key("above_threshold").open('[');
    for (const size_t t : s.above_threshold) out.value(share(int(t)));
    out.close();
    for (const auto& [name, control] : {std::pair{"untrained", s.untrained},
                                        {"permuted", s.permuted},
                                        {"same_move", s.same_move},
                                        {"text", s.text}}) {
        out.key(name).open('{').member("coverage", control.coverage).member("held_out", control.held_out);
        out.member("rec_published", control.rec_published).member("beyond", control.beyond);
        out.member("rec_beyond", control.rec_beyond).close();
    }
}

std::string bsp_json(const Bsp& bsp) {
    JsonWriter out;
    if (bsp.activations.empty()) {
        out = begin_json("bsp", bsp.checkpoint, bsp.step, bsp.config, bsp.seconds);
        out.member("own_games", bsp.own_games);
        if (!bsp.sae.empty()) out.member("sae", as_utf8(bsp.sae));
    } else {
        out.open('{').member("tool", "bsp").member("activations", as_utf8(bsp.activations));
        out.member("checkpoint", undefined).member("step", undefined).key("seconds").value(bsp.seconds, 3);
    }
    out.key("games").open('{').member("source", as_utf8(bsp.games.train.source));
    out.member("test_source", as_utf8(bsp.games.test.source));
    out.member("train", bsp.games.train.size()).member("test", bsp.games.test.size());
    out.member("characters", bsp.games.train.characters).member("dots", bsp.games.train.dots);
    out.member("seen", bsp.seen).close();
    if (!bsp.features.empty()) out.member("features", bsp.features);
    out.member("split", bsp.split).member("gated", bsp.gated).key("seeds").open('{');
    out.member("untrained", bsp.activations.empty() ? double(bsp.untrained_seed) : undefined);
    out.member("permutation", bsp.seed).member("bootstrap", bsp.seed).close();
    out.member("best_layer", bsp.best_layer().layer);
    out.member("board_floor", bsp.board_floor).member("strategy_floor", bsp.strategy_floor);
    out.member("board_floor_test", bsp.board_floor_test)
        .member("strategy_floor_test", bsp.strategy_floor_test);
    out.key("functions").open('[');
    for (const BspFunction& f : bsp.functions) {
        const BoardFunction& board = board_functions[f.function];
        out.open('{').member("name", board.name).member("meaning", board.meaning);
        out.member("strategy", board.strategy).member("cells", cells_of(board));
        out.key("positives").open('[').value(f.positives[0]).value(f.positives[1]).close();
        out.member("floor", f.floor).member("floor_test", f.floor_test);
        out.member("attainable", f.attainable).member("attainable_test", f.attainable_test);
        out.member("common", f.common).member("text_rule", f.text_rule).close();
    }
    out.close().key("layers").open('[');
    for (const LayerBsp& layer : bsp.layers) {
        out.open('{').member("layer", layer.layer).member("units", layer.units).member("alive", layer.alive);
        out.key("active").values(layer.active).key("board").open('{');
        score_json(out, layer.board);
        out.close().key("strategy").open('{');
        score_json(out, layer.strategy);
        out.close();
        if (!layer.subset.board.empty()) subset_json(out, layer.subset);
        out.key("functions").open('[');
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
