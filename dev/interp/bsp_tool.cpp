// The tool bsp: see bsp.h.
#include "bsp.h"

std::vector<uint32_t> open_positives(const TruthRows& truth, const std::vector<FunctionColumns>& functions) {
    std::vector<uint32_t> open = truth.positives;
    for (size_t f = 0; f < functions.size(); f++)
        for (size_t n = 0; n < truth.tokens(); n++)
            for (size_t w = 0; w < functions[f].mask.size(); w++) {
                const size_t at = n * truth.words + functions[f].first / 64 + w;
                open[f * truth.games + n / truth.dots] -=
                    uint32_t(std::popcount(truth.bits[at] & truth.said[at] & functions[f].mask[w]));
            }
    return open;
}

// Of a cell about a piece on a square, the natural questions (rules.h) among those kept.
static std::vector<uint32_t> natural_rules(size_t cell, const ChessQuestions& asked,
                                           const std::vector<uint32_t>& place) {
    size_t f = 0;
    while (cell >= first_cell(f) + cells_of(board_functions[f])) f++;
    const size_t classes = board_functions[f].classes, square = (cell - first_cell(f)) / classes;
    const int cls = int((cell - first_cell(f)) % classes), piece = classes == 13  ? cls - 6
                                                                   : classes == 3 ? cls - 1
                                                                                  : 0;
    std::vector<uint32_t> list;
    if (piece == 0) return list;
    for (const uint32_t q :
         natural_questions(asked, piece < 0, classes == 13 ? size_t(std::abs(piece)) - 1 : n_kinds, square))
        if (place[q] != UINT32_MAX) list.push_back(place[q]);
    return list;
}

void add_text_rival(Ruler& ruler, const Labels& train_labels) {
    const Boundaries where = {ruler.train.dots, false};
    const ChessQuestions asked = chess_questions(ruler.games.train, where);
    Labels train = label_chess_text(ruler.games.train, asked),
           test = label_chess_text(ruler.games.test, asked);
    const std::vector<uint32_t> kept = distinct_cells(train, where.per_game(), 1, 1);
    train = chosen_cells(train, kept), test = chosen_cells(test, kept);
    TextRival& text = ruler.text;
    std::vector<uint32_t> place(asked.list.size(), UINT32_MAX); // of a question among those kept
    for (uint32_t q = 0; q < kept.size(); q++) {
        text.questions.push_back(asked.list[kept[q]]);
        text.rules.push_back({q, q, 8, 0});
        place[kept[q]] = q;
    }
    std::vector<std::vector<uint32_t>> targets, natural;
    for (const uint32_t cell : ruler.columns.cell) {
        targets.push_back(places_where(train_labels, cell));
        natural.push_back(natural_rules(cell, asked, place));
    }
    for (const Rule& r : best_rules(train, targets, f1_of, natural)) text.rules.push_back(r);

    LayerFires layer; // of rules
    layer.train = rule_fires(rule_labels(text.rules, train));
    layer.test = rule_fires(rule_labels(text.rules, test));
    layer.units = text.rules.size();
    text.chosen = select_units(layer.train, ruler.columns);
    for (size_t c = 0; c < ruler.columns.columns(); c++) { // for a column its own rule, not the luckiest
        const Rule& r = text.rules[kept.size() + c];
        for (size_t t = 0; t < n_thresholds; t++) {
            text.chosen.f1[t * text.chosen.width + c] = t + 1 < n_thresholds ? float(r.score) : 0;
            text.chosen.unit[t * text.chosen.width + c] = uint32_t(kept.size() + c);
        }
    }
    ruler.train.said = said_cells(layer.train, text.chosen, ruler.train.words);
    ruler.test.said = said_cells(layer.test, text.chosen, ruler.test.words);
    ruler.open[0] = open_positives(ruler.train, ruler.functions);
    ruler.open[1] = open_positives(ruler.test, ruler.functions);
    for (size_t f = 0; f < ruler.functions.size(); f++) {
        const FunctionColumns& columns = ruler.functions[f];
        text.held_out.push_back(held_out(layer.test, text.chosen, 0, ruler.test, columns));
        text.scores.push_back({coverage(text.chosen, columns).value,
                               held_out_f1(text.held_out.back(), columns.cells()),
                               said_f1(ruler.test, ruler.functions, f), undefined, undefined});
    }
}

Ruler make_ruler(GameSplit games, bool all_functions, uint64_t seed) {
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
    const Labels train = label_games(games.train, dots), test = label_games(games.test, dots);
    ruler.columns = label_rows(train, cells);
    ruler.functions = function_columns(ruler.columns, functions);
    ruler.train = truth_rows(train, dots, ruler.columns, ruler.functions);
    ruler.test = truth_rows(test, dots, ruler.columns, ruler.functions);
    for (const bool is_test : {false, true}) {
        const size_t n = (is_test ? games.test : games.train).size();
        ruler.permuted[is_test] = permuted_order(n, dots, seed + is_test);
        ruler.same_move[is_test] = same_move_order(n, dots, seed + is_test);
    }
    constexpr size_t common_dots = 20;
    for (const uint32_t cell : ruler.columns.cell) {
        bool common = true;
        for (const Labels* set : {&train, &test})
            common = common && set->positives(cell) >= common_dots &&
                     games_where(*set, cell, dots, true) >= least_games;
        ruler.common.push_back(common);
        ruler.in_test.push_back(test.positives(cell) > 0);
    }
    ruler.strata = chess_strata(games.test, {dots, false});
    ruler.seen = seen_places(games, {dots, false});
    ruler.games = std::move(games);
    add_text_rival(ruler, train);
    return ruler;
}

std::vector<BspControl> control_scores(const LayerFires& fires, const Ruler& ruler, const Order* orders) {
    const Order *train = orders ? &orders[0] : nullptr, *test = orders ? &orders[1] : nullptr;
    const Selection chosen = select_units(fires.train, ruler.columns, train);
    const Reconstruction r = reconstruct(fires.test, chosen, ruler.test, ruler.functions, test);
    std::vector<BspControl> controls;
    for (size_t f = 0; f < ruler.functions.size(); f++) {
        const FunctionColumns& columns = ruler.functions[f];
        const Coverage c = coverage(chosen, columns);
        const HeldOut held = held_out(fires.test, chosen, c.threshold, ruler.test, columns, test);
        const Beyond beyond =
            beyond_text(held, chosen, c.threshold, ruler.text.held_out[f], ruler.text.chosen, columns);
        controls.push_back({c.value, held_out_f1(held, columns.cells()),
                            class_f1(r, ruler.test, best_threshold(r, ruler.test, f), f),
                            coverage_beyond(beyond, columns.cells()),
                            open_f1(r, ruler.open[1], best_open_threshold(r, ruler.open[1], f), f)});
    }
    return controls;
}

BspControl strategy_control(const Ruler& ruler, const std::vector<BspControl>& of) {
    const auto mean = [&](double BspControl::*number) {
        return strategy_mean(ruler, [&](size_t f) { return of[f].*number; });
    };
    return {mean(&BspControl::coverage), mean(&BspControl::held_out), mean(&BspControl::rec_published),
            mean(&BspControl::beyond), mean(&BspControl::rec_beyond)};
}

double common_mean(const std::vector<double>& f1, const Ruler& ruler, const FunctionColumns& columns) {
    double sum = 0, n = 0;
    for (size_t c = columns.first; c < columns.last; c++)
        if (ruler.common[c]) {
            sum += f1[c - columns.first];
            n++;
        }
    return n > 0 ? sum / n : undefined;
}

LayerBsp measure_layer(const LayerFires& fires, const Ruler& ruler, uint64_t seed) {
    LayerBsp out;
    out.units = fires.units, out.alive = fires.alive;
    for (size_t t = 0; t < n_thresholds; t++) out.active[t] = fires.active(t);

    const Selection chosen = select_units(fires.train, ruler.columns);
    const Reconstruction known = reconstruct(fires.train, chosen, ruler.train, ruler.functions),
                         r = reconstruct(fires.test, chosen, ruler.test, ruler.functions);
    const std::vector<BspControl> permuted = control_scores(fires, ruler, ruler.permuted),
                                  same_move = control_scores(fires, ruler, ruler.same_move);
    const size_t games = ruler.test.games, F = ruler.functions.size();
    using Times = std::vector<uint32_t>;
    struct Resample { // what has an interval, of one function
        double held_out, beyond, rec, rec_beyond;
    };
    static constexpr std::pair<double Resample::*, Interval BspScore::*> intervals[] = {
        {&Resample::held_out, &BspScore::held_out_interval},
        {&Resample::beyond, &BspScore::beyond_interval},
        {&Resample::rec, &BspScore::rec_interval},
        {&Resample::rec_beyond, &BspScore::rec_beyond_interval}};
    std::vector<std::vector<Resample>> resampled(F);
    std::vector<HeldOut> held(F);
    std::vector<Beyond> beyond(F);
    std::vector<size_t> t_rec(F), t_open(F); // of reconstruction, chosen on the train games
    const auto held_f1 = [&](size_t f, const Times* times) {
        return held_out_f1(held[f], ruler.functions[f].cells(), times);
    };
    const auto rec_f1 = [&](size_t f, const Times* times) {
        return class_f1(r, ruler.test, t_rec[f], f, times);
    };
    const auto beyond_f1 = [&](size_t f, const Times* times) {
        return coverage_beyond(beyond[f], ruler.functions[f].cells(), times);
    };
    const auto rec_beyond_f1 = [&](size_t f, const Times* times) {
        return open_f1(r, ruler.open[1], t_open[f], f, times);
    };
    for (size_t f = 0; f < F; f++) {
        const FunctionColumns& columns = ruler.functions[f];
        BspScore s;
        const Coverage c = coverage(chosen, columns);
        s.coverage = c.value, s.per_cell = c.per_cell, s.threshold = int(c.threshold);
        s.above.assign(c.above, c.above + n_thresholds);
        s.above_threshold.assign(c.above_threshold, c.above_threshold + n_thresholds);
        held[f] = held_out(fires.test, chosen, c.threshold, ruler.test, columns);
        beyond[f] =
            beyond_text(held[f], chosen, c.threshold, ruler.text.held_out[f], ruler.text.chosen, columns);
        s.held_out = held_f1(f, nullptr);
        s.unseen =
            held_out_f1(held_out(fires.test, chosen, c.threshold, ruler.test, columns, nullptr, &ruler.seen),
                        columns.cells());
        s.common = common_mean(column_f1(held[f]), ruler, columns);
        s.text_common = common_mean(column_f1(ruler.text.held_out[f]), ruler, columns);
        s.matched = matched_f1(fires.test, chosen, c.threshold, ruler.test, columns, ruler.strata);
        s.gain = 0;
        for (size_t i = columns.first; i < columns.last; i++)
            s.gain += std::max(0.0, double(chosen.f1[c.threshold * chosen.width + i]) -
                                        double(ruler.text.chosen.f1[i])) /
                      columns.cells();
        s.beyond = beyond_f1(f, nullptr);
        const size_t t = best_threshold(r, ruler.test, f);
        t_rec[f] = best_threshold(known, ruler.train, f);
        t_open[f] = best_open_threshold(known, ruler.open[0], f);
        s.rec_threshold = int(t), s.rec_published = class_f1(r, ruler.test, t, f);
        s.rec_max_mask = class_f1(r, ruler.test, max_mask, f);
        s.rec = rec_f1(f, nullptr), s.rec_beyond = rec_beyond_f1(f, nullptr);
        resampled[f] = resample(games, seed, [&](const Times& times) {
            return Resample{held_f1(f, &times), beyond_f1(f, &times), rec_f1(f, &times),
                            rec_beyond_f1(f, &times)};
        });
        for (const auto& [number, interval] : intervals) {
            std::vector<double> values;
            for (const Resample& r : resampled[f]) values.push_back(r.*number);
            s.*interval = interval_of(values);
        }
        s.permuted = permuted[f], s.same_move = same_move[f], s.text = ruler.text.scores[f];
        out.functions.push_back(s);
    }

    // 64 of the headline's 768 cells can never hold: each initial piece on its own square, pawns on the first
    // and the last rank.
    out.board = out.functions[ruler.board];
    out.board.of_704 = out.board.coverage * 768 / (768 - 64);
    BspScore& s = out.strategy;
    for (double BspScore::*number :
         {&BspScore::coverage, &BspScore::per_cell, &BspScore::held_out, &BspScore::unseen,
          &BspScore::matched, &BspScore::gain, &BspScore::beyond, &BspScore::rec_published,
          &BspScore::rec_max_mask, &BspScore::rec, &BspScore::rec_beyond})
        s.*number = strategy_mean(ruler, [&](size_t f) { return out.functions[f].*number; });
    s.permuted = strategy_control(ruler, permuted);
    s.same_move = strategy_control(ruler, same_move);
    s.text = strategy_control(ruler, ruler.text.scores);
    for (const auto& [number, interval] : intervals) {
        double Resample::*const value = number; // clang 14 captures no structured bindings
        std::vector<double> means;
        for (size_t i = 0; i < resampled[0].size(); i++)
            means.push_back(strategy_mean(ruler, [&](size_t f) { return resampled[f][i].*value; }));
        s.*interval = interval_of(means);
    }
    return out;
}

void add_untrained(LayerBsp& layer, const std::vector<BspControl>& of, const Ruler& ruler) {
    for (size_t f = 0; f < of.size(); f++) layer.functions[f].untrained = of[f];
    layer.board.untrained = of[ruler.board];
    layer.strategy.untrained = strategy_control(ruler, of);
}

GameSplit bsp_games(const BspOptions& options) {
    if (options.games.empty()) fail_usage("--games is missing: a file of games");
    return split_games(options.games, options.test_games, options.characters, options.dots,
                       size_t(options.count));
}

void check_chess_model(const Config& c, const std::string& path, size_t characters) {
    if (c.tokenizer.empty() ? c.vocab_size != chess_vocab : c.tokenizer != tokenizer_name(TOKENIZER_CHESS))
        fail("%s: a model of %s tokens, expected chess-32: its units are compared with games of chess",
             path.c_str(), c.tokenizer.empty() ? std::to_string(c.vocab_size).c_str() : c.tokenizer.c_str());
    if (c.block_size < characters)
        fail("%s: reads %zu characters, expected the %zu of each game", path.c_str(), c.block_size,
             characters);
}

NpyArray read_activations(const std::string& path, const GameSet& games) {
    NpyArray array = read_npy(path);
    const std::vector<size_t>& shape = array.shape;
    if (shape.size() != 3 || shape[0] != games.size() || shape[1] != games.characters || shape[2] == 0)
        fail("%s: shape %s, expected (%zu, %zu, features): the fit games of %s in order (see --write-games)",
             path.c_str(), npy_shape_text(shape).c_str(), games.size(), games.characters,
             games.source.c_str());
    return array;
}

std::string bsp_json_name(const BspOptions& options) {
    std::string name = "bsp";
    if (!options.activations.empty()) {
        const std::string file = options.activations.substr(options.activations.rfind('/') + 1);
        name += "_" + file.substr(0, file.rfind('.'));
    }
    if (options.layer != "all") name += "_layer_" + options.layer;
    if (options.count != BspOptions().count) name += strf("_count_%lld", (long long)options.count);
    if (options.ungated) name += "_ungated";
    return name;
}

Bsp measure_bsp(const BspOptions& options, const MakeReader& make_reader) {
    const double begin = now_seconds();
    Bsp bsp;
    bsp.gated = !options.ungated, bsp.seed = uint64_t(options.seed);
    bsp.json_name = bsp_json_name(options);
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
        bsp.own_games = trained_on(file->path, bsp.step, options.games);
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
        fires = model_fires(*reader, ruler.games, {ruler.train.dots, false}, bsp.gated, file->path, which);
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
        fires = model_fires(*reader, ruler.games, {ruler.train.dots, false}, bsp.gated, "untrained weights",
                            which);
        score_all("untrained scores",
                  [&](size_t i) { add_untrained(bsp.layers[i], control_scores(fires[i], ruler), ruler); });
    }

    for (size_t f = 0; f < ruler.functions.size(); f++) {
        const FunctionColumns& columns = ruler.functions[f];
        BspFunction out = {columns.function, {}, always_on_floor(ruler.columns, columns), 0, 0, 0, 0, ""};
        out.floor_test = always_on_floor(ruler.test, columns);
        out.attainable = double(columns.last - columns.first) / columns.cells();
        for (size_t c = columns.first; c < columns.last; c++) {
            out.attainable_test += ruler.in_test[c] / columns.cells();
            out.common += ruler.common[c];
        }
        if (columns.cells() == 1 && columns.last > columns.first)
            out.text_rule = ruler.text.words(columns.first);
        for (size_t i = 0; i < 2; i++) {
            const TruthRows& truth = i ? ruler.test : ruler.train;
            out.positives[i] = std::accumulate(&truth.positives[f * truth.games],
                                               &truth.positives[f * truth.games] + truth.games, size_t(0));
        }
        bsp.functions.push_back(out);
    }
    bsp.board_floor = bsp.functions[ruler.board].floor;
    bsp.board_floor_test = bsp.functions[ruler.board].floor_test;
    bsp.strategy_floor = strategy_mean(ruler, [&](size_t f) { return bsp.functions[f].floor; });
    bsp.strategy_floor_test = strategy_mean(ruler, [&](size_t f) { return bsp.functions[f].floor_test; });
    bsp.seen = std::accumulate(ruler.seen.begin(), ruler.seen.end(), 0.0) / double(ruler.seen.size());
    bsp.games = ruler.games;
    bsp.seconds = now_seconds() - begin;
    return bsp;
}

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

void print_bsp(const Bsp& bsp) {
    const GameSplit& games = bsp.games;
    const std::string model = bsp.activations.empty() ? bsp.checkpoint : bsp.activations;
    printf("%s\nunits are chosen on %zu games of %s, measured on %zu others of %s; %zu dots of each\n",
           model.c_str(), games.train.size(), games.train.source.c_str(), games.test.size(),
           games.test.source.c_str(), games.train.dots);
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
           bsp.gated ? "" : " (without gate weights)");
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
        printf("untrained: the initial weights of seed %llu\n", (unsigned long long)bsp.untrained_seed);
}

void score_json(JsonWriter& out, const BspScore& s) {
    const auto share = [](int t) { return t < 0 ? undefined : double(t) / 10; };
    const auto interval = [&](const std::string& name, const Interval& i) {
        out.member((name + "_low").c_str(), i.low).member((name + "_high").c_str(), i.high);
    };
    out.member("beyond", s.beyond), interval("beyond", s.beyond_interval);
    out.member("rec_beyond", s.rec_beyond), interval("rec_beyond", s.rec_beyond_interval);
    out.member("gain", s.gain);
    out.member("held_out", s.held_out), interval("held_out", s.held_out_interval);
    out.member("unseen", s.unseen).member("common", s.common).member("text_common", s.text_common);
    out.member("matched", s.matched).member("rec", s.rec), interval("rec", s.rec_interval);
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
    } else {
        out.open('{').member("tool", "bsp").member("activations", as_utf8(bsp.activations));
        out.member("checkpoint", undefined).member("step", undefined).key("seconds").value(bsp.seconds, 3);
    }
    out.key("games").open('{').member("source", as_utf8(bsp.games.train.source));
    out.member("test_source", as_utf8(bsp.games.test.source));
    out.member("train", bsp.games.train.size()).member("test", bsp.games.test.size());
    out.member("characters", bsp.games.train.characters).member("dots", bsp.games.train.dots);
    out.member("seen", bsp.seen).close();
    out.member("gated", bsp.gated).key("seeds").open('{');
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

void write_games(const std::string& path, const GameSet& games) {
    AtomicFile out(path);
    for (const std::string& text : games.texts) out.write((text + "\n").data(), text.size() + 1);
    out.commit();
    printf("%zu games in %s\n", games.size(), path.c_str());
}

void labels_to(const std::string& path, const std::string& games) {
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

int bsp_program(int argc, char** argv, const MakeReader& make_reader) {
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
    write_json(json_path(flags.json, bsp.activations.empty() ? bsp.checkpoint : bsp.activations,
                         bsp.json_name.c_str()),
               bsp_json(bsp));
    return 0;
}
