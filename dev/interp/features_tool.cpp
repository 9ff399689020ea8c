// The tool features: see features.h.
#include "features.h"

std::vector<double> square_lifts(const UnitFires& fires, size_t unit, size_t threshold, size_t first,
                                 size_t stride, const Labels& labels, size_t per_game) {
    std::vector<double> lifts(64), positives(per_game);
    const double games = double(labels.tokens) / double(per_game);
    for (size_t s = 0; s < 64; s++) {
        const size_t cell = first + s * stride;
        double tp = 0, expected = 0;
        std::fill(positives.begin(), positives.end(), 0);
        each_place(labels, cell, [&](size_t n) { positives[n % per_game]++; });
        for (const uint32_t* n = fires.first(unit); n < fires.last(unit, threshold); n++) {
            tp += labels.at(cell, *n);
            expected += positives[*n % per_game] / games;
        }
        lifts[s] = (tp + 1) / (expected + 1);
    }
    return lifts;
}

std::vector<double> direct_logits(const Config& c, const Parameters<float>& w, size_t layer, size_t unit) {
    const size_t C = c.n_embd, V = c.vocab_size;
    const LayerParameters<float>& h = w.h[layer];
    std::vector<double> d(C);
    for (size_t i = 0; i < C; i++)
        d[i] = c.moe() ? h.w_dec[unit * C + i] : h.fc_proj_weight[i * c.dense_width() + unit];
    const double mean = std::accumulate(d.begin(), d.end(), 0.0) / double(C);
    for (size_t i = 0; i < C; i++) d[i] = (d[i] - mean) * w.ln_f_weight[i];
    std::vector<double> logits(V);
    for (size_t v = 0; v < V; v++) {
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (size_t i = 0; i < C; i++) sum += w.wte[v * C + i] * d[i];
        logits[v] = sum;
    }
    const double middle = std::accumulate(logits.begin(), logits.end(), 0.0) / double(V);
    for (double& logit : logits) logit -= middle;
    return logits;
}

void add_output_tokens(Feature& f, const std::vector<double>& logits, const std::vector<std::string>& names) {
    std::vector<size_t> order(std::min(logits.size(), names.size()));
    std::iota(order.begin(), order.end(), size_t(0));
    const size_t n = std::min(n_output_tokens, order.size());
    for (const bool promotes : {true, false}) {
        std::partial_sort(order.begin(), order.begin() + std::ptrdiff_t(n), order.end(),
                          [&](size_t a, size_t b) {
                              return logits[a] != logits[b] ? promotes == (logits[a] > logits[b]) : a < b;
                          });
        for (size_t i = 0; i < n; i++)
            (promotes ? f.promotes : f.suppresses).push_back({names[order[i]], logits[order[i]]});
    }
}

FeatureContext game_context(const std::string& text, size_t place, float value) {
    using namespace chess;
    GameTextReader game;
    for (size_t i = 0; i <= place; i++) game.push(text[i]);
    FeatureContext context;
    size_t begin = place > 60 ? text.find(' ', place - 60) : 0, end = std::min(text.size(), place + 20);
    if (begin > 0) begin = begin < place ? begin + 1 : place;
    if (end < text.size()) end = std::max(place + 1, text.rfind(' ', end));
    context.text = text.substr(begin, end - begin), context.mark = place - begin, context.length = 1;
    context.value = value;
    if (!game.ok()) return context;
    context.fen = to_fen(game.position);
    if (game.moves.empty()) return context;
    Position before = start_position();
    for (size_t i = 0; i + 1 < game.moves.size(); i++) make(before, game.moves[i]);
    const char* dots = before.turn == WHITE ? "." : "...";
    context.move = strf("%d%s", before.fullmove, dots) + to_san(before, game.moves.back());
    context.last = to_uci(game.moves.back());
    return context;
}

FeatureContext text_context(const int32_t* row, size_t T, size_t place,
                            const std::vector<std::string>& vocabulary, float value) {
    std::string before, after;
    for (size_t t = place; t-- > 0 && before.size() < 60;) before = vocabulary[size_t(row[t])] + before;
    for (size_t t = place + 1; t < T && after.size() < 20; t++) after += vocabulary[size_t(row[t])];
    while (!before.empty() && (before[0] & 0xC0) == 0x80) before.erase(0, 1); // half of a character
    const std::string& token = vocabulary[size_t(row[place])];
    const std::string marked = token.empty() ? "<end of text>" : shown(token);
    FeatureContext context;
    context.text = shown(before) + marked + shown(after);
    context.mark = code_points(shown(before)), context.length = code_points(marked), context.value = value;
    return context;
}

UnitName parse_unit(const std::string& text, const Config& c) {
    unsigned long layer = 0, expert = 0, unit = 0;
    int end = -1;
    if (text.find_first_not_of("0123456789/") == std::string::npos) {
        sscanf(text.c_str(), "%9lu/%9lu/%9lu%n", &layer, &expert, &unit, &end);
        if (end < 0 && !c.moe()) expert = 0, sscanf(text.c_str(), "%9lu/%9lu%n", &layer, &unit, &end);
    }
    const size_t E = c.moe() ? c.n_expert : 1, D = c.moe() ? c.d_expert : c.dense_width();
    if (end != int(text.size()))
        fail_usage("--unit: %s, expected layer/expert/unit, as in 2/5/113", quoted(text).c_str());
    if (layer >= c.n_layer || expert >= E || unit >= D)
        fail("--unit %s: the model has %zu layers of %zu experts of %zu units, counted from 0", text.c_str(),
             c.n_layer, E, D);
    return {layer, expert, unit};
}

std::set<UnitName> parse_units(const FeatureOptions& o, const Config& c) {
    std::set<UnitName> units;
    for (const std::string& name : o.units) units.insert(parse_unit(name, c));
    for (size_t at = 0; at < o.unit.size();) {
        const size_t comma = std::min(o.unit.find(',', at), o.unit.size());
        units.insert(parse_unit(o.unit.substr(at, comma - at), c));
        at = comma + 1;
    }
    return units;
}

size_t split_rows(const TokenRows& all, TokenRows& train, TokenRows& test) {
    const size_t gap = std::max<size_t>(1, all.rows / 20), half = all.rows > gap ? (all.rows - gap) / 2 : 0;
    if (half < least_blocks)
        fail("%s: %zu rows of %zu tokens, expected %zu or more: %zu to choose on, as many to measure on, and "
             "a gap",
             all.source.c_str(), all.rows, all.T, 2 * least_blocks + 4, least_blocks);
    const size_t rows_per_block = std::max<size_t>(1, half / most_blocks),
                 rows = half / rows_per_block * rows_per_block;
    train = test = {all.source, rows, all.T, {}, {}, {}};
    const auto begin = all.tokens.begin(), end = begin + std::ptrdiff_t(all.size());
    train.tokens.assign(begin, begin + std::ptrdiff_t(rows * all.T));
    test.tokens.assign(end - std::ptrdiff_t(rows * all.T), end);
    return rows_per_block;
}

void read_games_material(Material& m, const FeatureOptions& o, const Config& c, const std::string& model) {
    if (c.tokenizer.empty() ? c.vocab_size < size_t(chess_vocab) : c.tokenizer != "chess-32")
        fail("%s: a model of %s, expected one of chess (chess-32) to read games; give text as --data",
             model.c_str(), c.tokenizer.empty() ? "too few tokens" : c.tokenizer.c_str());
    m.T = std::min<size_t>(c.block_size, 256);
    m.games = split_games(o.games, o.test_games, m.T, std::max<size_t>(1, m.T * 20 / 256), size_t(o.count));
    m.train_name = m.games.train.source, m.test_name = m.games.test.source;
    m.where = {m.games.train.dots, true};
    const ChessQuestions questions = chess_questions(m.games.train, m.where);
    Answers answers[2];
    for (const bool is_test : {false, true}) {
        const GameSet& set = is_test ? m.games.test : m.games.train;
        answers[is_test] = {label_boards(set, m.where),
                            label_chess_text(set, questions),
                            chess_strata(set, m.where),
                            set.size(),
                            {}};
    }
    answers[1].seen = seen_places(m.games, m.where);
    m.test_boards = answers[1].properties;
    std::vector<std::vector<uint32_t>> natural(BoardFamilies::size);
    for (size_t piece = 0; piece < 13; piece++)
        for (size_t s = 0; s < 64 && piece != 6; s++)
            natural[BoardFamilies::piece + piece * 64 + s] =
                natural_questions(questions, piece < 6, size_t(std::abs(int(piece) - 6)) - 1, s);
    for (size_t white = 0; white < 2; white++)
        for (size_t s = 0; s < 64; s++)
            natural[BoardFamilies::color + white * 64 + s] = natural_questions(questions, !white, n_kinds, s);
    for (size_t other = 0; other < 2; other++)
        for (size_t s = 0; s < 64; s++) {
            natural[BoardFamilies::whose + other * 64 + s] =
                natural_questions(questions, 2 + other, n_kinds, s);
            for (size_t kind = 0; kind < n_kinds; kind++)
                natural[BoardFamilies::kind + (other * n_kinds + kind) * 64 + s] =
                    natural_questions(questions, 2 + other, kind, s);
        }
    m.evidence = make_evidence(board_properties(), questions.list, std::move(answers[0]),
                               std::move(answers[1]), natural);
    for (int i = 0; i < chess_vocab; i++) m.token_names.push_back(std::string(1, chess_char(i)));
}

void read_text_material(Material& m, const FeatureOptions& o, const Config& c, const std::string& model) {
    if (c.tokenizer == "chess-32")
        fail("%s: a model of chess (chess-32), expected one of text; give games as --games", model.c_str());
    if (!o.test_games.empty()) fail_usage("--test-games goes with --games, not with --data");
    const ShardHeader header = open_shards(o.data)[0].header;
    m.T = header.row ? std::min(c.block_size, header.row - 1) : c.block_size;
    const size_t rows = std::min(size_t(o.count), std::max<size_t>(1, (size_t(1) << 16) / m.T));
    const TokenRows all =
        token_rows(o.data, c, m.T, 2 * rows + std::max<size_t>(1, rows / 10), o.tokenizer, model);
    const size_t rows_per_block = split_rows(all, m.train, m.test);
    m.train_name = m.test_name = o.data;
    m.text = text_properties(m.train, header.tokenizer, o.tokenizer);
    std::vector<Property> lists[2]; // properties, questions
    std::vector<uint32_t> cells[2];
    for (size_t i = 0; i < m.text.list.size(); i++) {
        const TextProperty& p = m.text.list[i];
        lists[p.said].push_back({p.function, {p.words, p.negated}});
        cells[p.said].push_back(uint32_t(i));
    }
    Answers answers[2];
    for (const bool is_test : {false, true}) {
        const TokenRows& set = is_test ? m.test : m.train;
        const Labels labels = label_text(set, m.text);
        Strata strata; // the same token
        strata.of.assign(set.tokens.begin(), set.tokens.end());
        strata.count = uint32_t(m.text.vocabulary.size());
        answers[is_test] = {chosen_cells(labels, cells[0]),
                            chosen_cells(labels, cells[1]),
                            strata,
                            set.rows / rows_per_block,
                            {}};
    }
    m.evidence = make_evidence(lists[0], lists[1], std::move(answers[0]), std::move(answers[1]));
    for (const std::string& token : m.text.vocabulary)
        m.token_names.push_back(token.empty() ? "<end of text>" : shown(token));
}

Material read_material(const FeatureOptions& o, const Config& c, const std::string& model) {
    if (o.games.empty() == o.data.empty())
        fail_usage("expected --games for a model of chess, or --data for a model of text");
    Material m;
    m.chess = !o.games.empty();
    if (m.chess)
        read_games_material(m, o, c, model);
    else
        read_text_material(m, o, c, model);
    return m;
}

bool goes_before(const Finding& a, const Finding& b) {
    if (a.verdict != b.verdict) return a.verdict > b.verdict;
    if (a.verdict == KNOWS)
        return a.beyond_mcc() - 2 * a.beyond_error() > b.beyond_mcc() - 2 * b.beyond_error();
    return a.verdict == READS ? a.text_counts.mcc() > b.text_counts.mcc() : a.choice.score > b.choice.score;
}

std::vector<size_t> rank_units(const std::vector<Feature>& units) {
    std::vector<size_t> order(units.size()), ranking;
    std::iota(order.begin(), order.end(), size_t(0));
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return goes_before(units[a].finding, units[b].finding); });
    for (const Verdict verdict : {KNOWS, READS, NOTHING}) {
        std::set<std::string> seen;
        std::vector<size_t> again;
        for (const size_t i : order) {
            const Finding& f = units[i].finding;
            if (f.verdict != verdict) continue;
            const std::string what = verdict == READS ? strf("%u %u", f.text.a, f.text.b)
                                                      : units[i].property.function + ": " + units[i].words();
            (seen.insert(what).second ? ranking : again).push_back(i);
        }
        ranking.insert(ranking.end(), again.begin(), again.end());
    }
    return ranking;
}

std::vector<size_t> units_of_layer(const Config& c, size_t layer, const std::set<UnitName>& wanted) {
    const size_t E = c.moe() ? c.n_expert : 1, D = c.moe() ? c.d_expert : c.dense_width();
    std::vector<size_t> list;
    for (size_t u = 0; u < E * D; u++)
        if (wanted.empty() || wanted.count({layer, u / D, u % D})) list.push_back(u);
    return list;
}

void search_units(Features& out, const std::set<UnitName>& wanted, size_t per_expert,
                  const std::vector<LayerFires>& layers, const Evidence& e) {
    const Config& c = out.config;
    const size_t E = c.moe() ? c.n_expert : 1, D = layers[0].units / E;
    const Order other_games[2] = {same_move_order(e.train.games, e.train.per_game, out.seed),
                                  same_move_order(e.test.games, e.test.per_game, out.seed + 1)};
    out.all = wanted.empty();
    Progress progress("units", "layers", double(c.n_layer));
    for (size_t l = 0; l < c.n_layer; l++) {
        const std::vector<size_t> units = units_of_layer(c, l, wanted);
        const std::vector<Finding> findings = find(layers[l], units, e);
        out.trained.add(findings);
        if (out.all) out.other_labels.add(find(layers[l], units, e, other_games));
        for (size_t expert = 0; expert < E; expert++) {
            std::vector<Feature> list;
            for (size_t i = 0; i < units.size(); i++) {
                const bool tested = findings[i].choice.any();
                if (units[i] / D != expert || (out.all && !tested)) continue;
                Feature f;
                f.layer = l, f.expert = expert, f.unit = units[i] % D, f.finding = findings[i];
                f.max = layers[l].rate[units[i]] > 0 ? layers[l].max[units[i]] : 0,
                f.rate = layers[l].rate[units[i]];
                if (tested) f.property = e.properties[f.finding.choice.property];
                list.push_back(f);
            }
            std::stable_sort(list.begin(), list.end(), [](const Feature& a, const Feature& b) {
                return goes_before(a.finding, b.finding);
            });
            if (out.all) list.resize(std::min(list.size(), per_expert));
            std::move(list.begin(), list.end(), std::back_inserter(out.units));
        }
        progress.update(double(l + 1));
    }
    progress.finish(double(c.n_layer));
}

void describe_units(std::vector<Feature>& units, Reader& reader, const Material& m,
                    const std::vector<LayerFires>& layers, uint64_t seed, bool gated) {
    const Config& c = reader.config;
    const size_t D = c.moe() ? c.d_expert : c.dense_width();
    UnitWatch watch(units, reader, gated);
    const auto visit = [&](size_t first, size_t B) { watch.add(reader, first, B, m.T); };
    if (m.chess)
        read_batches(reader, m.games.test, "contexts", visit);
    else
        read_rows(reader, m.test, "contexts", visit);

    const Parameters<float> weights = carve_parameters(c, reader.table, reader.weights());
    const Truth truth(m.evidence.test, nullptr);
    Progress progress("listed units", "units", double(units.size()));
    size_t done = 0;
#pragma omp parallel for schedule(dynamic, 1)
    for (size_t i = 0; i < units.size(); i++) {
        Feature& f = units[i];
        const size_t u = f.expert * D + f.unit;
        const UnitFires& fires = layers[f.layer].test;
        if (f.finding.choice.any()) describe(f.finding, fires, u, truth, seed);
        if (const Choice& square = f.finding.square; square.any()) {
            const Property& p = m.evidence.properties[square.property];
            f.heat_words = p.squares;
            f.heat = square_lifts(fires, u, f.finding.choice.threshold, p.square, p.stride, m.test_boards,
                                  m.evidence.test.per_game);
        }
        for (const Peak& peak : watch.units[i].peaks.best)
            f.contexts.push_back(m.chess ? game_context(m.games.test.texts[peak.game], peak.place, peak.value)
                                         : text_context(m.test.tokens.data() + peak.game * m.T, m.T,
                                                        peak.place, m.text.vocabulary, peak.value));
        watch.fill(f, watch.units[i]);
        add_output_tokens(f, direct_logits(c, weights, f.layer, u), m.token_names);
#pragma omp critical(describe_units_progress)
        progress.update(double(++done));
    }
    progress.finish(double(units.size()));
}

Features measure_features(const FeatureOptions& o, const MakeReader& make_reader) {
    const double begin = now_seconds();
    const SafeTensorsFile file(find_checkpoint(o.ckpt));
    Features out;
    out.checkpoint = file.path, out.step = checkpoint_step(file), out.seed = uint64_t(o.seed);
    out.untrained_seed = seed_of_run(file.path, out.step), out.gated = !o.ungated;
    out.config = read_config(file);
    const std::set<UnitName> wanted = parse_units(o, out.config);
    const Material m = read_material(o, out.config, file.path);
    const Evidence& e = m.evidence;
    out.chess = m.chess, out.train = m.train_name, out.test = m.test_name;
    out.own_data = trained_on(file.path, out.step, m.train_name);
    out.train_games = e.train.games, out.test_games = e.test.games;
    out.characters = m.T, out.per_game = e.train.per_game;
    out.properties = e.properties.size(), out.questions = e.questions.size();
    out.asked = e.properties;
    for (const uint8_t seen : e.test.seen) out.seen += seen / double(e.test.size());

    Reader reader = make_reader(out.config, batch_rows(m.T), m.T);
    const auto fires = [&](const std::string& name) {
        return m.chess ? model_fires(reader, m.games, m.where, out.gated, name)
                       : text_fires(reader, m.train, m.test, out.gated);
    };
    load_weights(reader, file);
    {
        const std::vector<LayerFires> layers = fires(file.path);
        search_units(out, wanted, size_t(o.per_expert), layers, e);
        describe_units(out.units, reader, m, layers, out.seed, out.gated);
    }
    if (out.all) {
        untrained_weights(reader, out.untrained_seed);
        for (const LayerFires& layer : fires("untrained weights"))
            out.untrained.add(find(layer, units_of_layer(out.config, 0, {}), e));
    }
    out.ranking = rank_units(out.units);
    for (const Feature& f : out.units) {
        const bool tested = f.finding.choice.any();
        out.text_words.push_back(rule_text(f.finding.text, e.questions));
        Rule rule = tested ? e.rules[f.finding.choice.property] : Rule{};
        if (tested && f.finding.choice.negated)
            rule.yes = uint8_t(rule.single() ? rule.yes ^ 9 : rule.yes ^ 15);
        out.rule_words.push_back(rule_text(rule, e.questions));
    }
    out.seconds = now_seconds() - begin;
    return out;
}

std::string best_sentence(const Features& features) {
    const char* held = features.chess ? "games" : "rows";
    const std::string tells = features.chess ? "of the board" : "of what comes next";
    if (!features.any_found()) {
        std::string text =
            strf("none of %zu units tested is found to tell more %s than rules about the text do",
                 features.trained.tested, tells.c_str());
        if (!features.ranking.empty() && features.units[features.ranking[0]].finding.verdict == READS)
            text += strf("; %zu read the text, as %s: ", features.trained.reads,
                         unit_text(features.units[features.ranking[0]], features.config).c_str()) +
                    features.text_words[features.ranking[0]];
        return text;
    }
    const size_t i = features.ranking[0];
    const Feature& f = features.units[i];
    const Counts& c = f.finding.counts;
    return unit_text(f, features.config) + " tells that " + f.words() + ": right at " +
           share_text(c.precision()) +
           strf(" of the %.0f places where it is on, of %.0f in %zu %s it was not chosen on", c.on, c.n,
                features.test_games, held) +
           " (base rate " + share_text(c.base()) + ", recall " + share_text(c.recall()) +
           "); the best rule about the text (" + features.rule_words[i] + ") has Matthews " +
           share_text(f.finding.rule.mcc()) + " to its " + share_text(c.mcc());
}

std::string boards_text(const Feature& f) {
    using namespace chess;
    const Position p = parse_fen(f.contexts[0].fen);
    const bool heat = !f.heat.empty();
    std::string out =
        heat ? strf("    %-32s%s\n", "strongest", ("lift in %, " + f.heat_words).c_str()) : "    strongest\n";
    for (int rank = 7; rank >= 0; rank--) {
        out += strf("    %d ", rank + 1);
        for (int file = 0; file < 8; file++) {
            const int piece = p.board[square_at(file, rank)];
            out += strf(" %c ", piece ? char(piece_letters[std::abs(piece)] + (piece < 0 ? 32 : 0)) : '.');
        }
        if (heat) out += "      ";
        for (int file = 0; file < 8 && heat; file++)
            out += strf("%5.0f", 100 * f.heat[size_t(square_at(file, rank))]);
        out += "\n";
    }
    out += "       a  b  c  d  e  f  g  h";
    return out + (heat ? "            a    b    c    d    e    f    g    h\n" : "\n");
}

void print_finding(const Feature& f, const Features& features, size_t i) {
    const Finding& finding = f.finding;
    const Counts& held = finding.counts;
    const char* game = features.chess ? "game" : "row";
    printf("  on             above %.1f of its maximum: at %.1f places a %s, at %.0f of the %.0f that are "
           "tested (%s)\n",
           threshold(finding.choice.threshold), f.on_anywhere, game, held.on, held.n,
           features.chess ? "the boundaries between moves" : "all tokens");
    printf("  verdict        %s\n", finding.verdict == KNOWS   ? "knows: it tells this beyond the text"
                                    : finding.verdict == READS ? "reads the text"
                                                               : "nothing is found");
    printf("  tells that     %s   (%s)\n", f.words().c_str(), f.property.function.c_str());
    printf("  held out       precision %s (%s)   recall %s   F1 %s (%s)   Matthews %s (%s)\n",
           share_text(held.precision()).c_str(), range_text(finding.precision).c_str(),
           share_text(held.recall()).c_str(), share_text(held.f1()).c_str(), range_text(finding.f1).c_str(),
           share_text(held.mcc()).c_str(), range_text(finding.mcc).c_str());
    if (finding.fresh.on > 0)
        printf("                 where the text so far is in no train game: precision %s, recall %s\n",
               share_text(finding.fresh.precision()).c_str(), share_text(finding.fresh.recall()).c_str());
    printf("  for nothing    base rate %s   always on: F1 %s   labels shuffled: F1 %s   %s: F1 %s\n",
           share_text(held.base()).c_str(), share_text(held.floor()).c_str(),
           share_text(held.shuffled()).c_str(),
           features.chess ? "move, last move and length alone" : "the token alone",
           share_text(finding.matched_f1()).c_str());
    printf("  the text       the best rule for it has F1 %s, Matthews %s: %s\n",
           share_text(finding.rule.f1()).c_str(), share_text(finding.rule.mcc()).c_str(),
           features.rule_words[i].c_str());
    printf("                 the rule nearest to its firing has Matthews %s with it: %s\n",
           share_text(finding.text_counts.mcc()).c_str(), features.text_words[i].c_str());
    printf("  beyond it      Matthews %+.3f, %.1f standard errors\n", finding.beyond_mcc(),
           finding.beyond.errors());
}

void print_feature(const Features& features, size_t i) {
    const Feature& f = features.units[i];
    printf("\n%s\n", unit_text(f, features.config).c_str());
    printf("  fires          on %.2f%% of the %s, at most %.3g\n", 100 * f.rate,
           features.chess ? "characters" : "tokens", f.max);
    if (f.finding.choice.any())
        print_finding(f, features, i);
    else
        printf("  property       none: it is on at fewer than %zu %s in %zu %s\n", least_places,
               features.chess ? "boundaries of moves, where properties are compared," : "tokens", least_games,
               features.chess ? "games" : "blocks of rows");
    for (const bool promotes : {true, false}) {
        printf(promotes ? "  promotes      " : "  suppresses    ");
        for (const OutputToken& t : promotes ? f.promotes : f.suppresses)
            printf(" '%s' %+.2f ", t.text.c_str(), t.logit);
        printf("\n");
    }
    if (!f.with.empty()) {
        printf("  experts with it");
        for (const auto& [expert, share, base] : f.with)
            if (share >= 0.01) printf("  %zu (%.0f%%, else %.0f%%)", expert, 100 * share, 100 * base);
        printf("\n");
    }
    if (f.contexts.empty()) return;
    printf("  contexts\n");
    for (const FeatureContext& c : f.contexts) {
        const auto at = [&](size_t characters) { // the byte where so many characters end
            size_t byte = 0;
            for (size_t n = 0; byte < c.text.size(); byte++)
                if ((c.text[byte] & 0xC0) != 0x80 && n++ == characters) break;
            return byte;
        };
        const size_t begin = at(c.mark), end = at(c.mark + c.length);
        printf("    %8.3g  %s[%s]%s\n", c.value, c.text.substr(0, begin).c_str(),
               c.text.substr(begin, end - begin).c_str(), c.text.substr(end).c_str());
    }
    if (!f.contexts[0].fen.empty()) printf("%s", boards_text(f).c_str());
}

std::string census_text(const Census& c) {
    return strf("%zu of %zu units tested tell more than the text says (%zu of them more than its best rule), "
                "%zu read "
                "the text",
                c.knows, c.tested, c.outright, c.reads);
}

void print_features(const Features& features, size_t best) {
    const char* games = features.chess ? "games" : "blocks of rows";
    printf("%s: %zu properties and %zu questions about the text, chosen on %zu %s of %s, measured on %zu of "
           "%s\n",
           features.checkpoint.c_str(), features.properties, features.questions, features.train_games, games,
           features.train.c_str(), features.test_games, features.test.c_str());
    if (features.own_data)
        printf("warning: the model was trained on these %s\n", features.chess ? "games" : "data");
    for (size_t i = 0; i < std::min(best, features.ranking.size()); i++)
        print_feature(features, features.ranking[i]);
    printf("\n%s\n", census_text(features.trained).c_str());
    if (features.all) {
        printf("untrained weights (seed %llu): %s\n", (unsigned long long)features.untrained_seed,
               census_text(features.untrained).c_str());
        printf("with the labels of another %s at the same %s (seed %llu): %zu would know\n",
               features.chess ? "game" : "block", features.chess ? "move" : "place",
               (unsigned long long)features.seed, features.other_labels.knows);
    }
    printf("%s\n", best_sentence(features).c_str());
}

void unit_json(JsonWriter& out, const Features& features, size_t i) {
    const Feature& f = features.units[i];
    const Finding& finding = f.finding;
    const Counts& held = finding.counts;
    const bool tested = finding.choice.any();
    const auto number = [&](const char* name, double x) { out.key(name).value(tested ? x : undefined, 4); };
    out.open('{').member("layer", f.layer).member("expert", f.expert).member("unit", f.unit);
    out.key("rate").value(f.rate, 4).key("max").value(double(f.max), 4);
    number("threshold", double(threshold(finding.choice.threshold)));
    number("on_anywhere", f.on_anywhere), number("on", held.on), number("places", held.n);
    number("games", double(finding.games));
    out.member("function", f.property.function).member("property", f.words());
    out.member("verdict", verdict_names[finding.verdict]).member("found", finding.found());
    out.member("outright", finding.outright).key("rivals").open('[');
    for (const Choice& r : finding.rivals) out.value(features.rival_words(r));
    out.close();
    number("score", finding.choice.score);
    number("precision", held.precision()), number("precision_low", finding.precision.low);
    number("precision_high", finding.precision.high), number("recall", held.recall());
    number("f1", held.f1()), number("f1_low", finding.f1.low), number("f1_high", finding.f1.high);
    number("mcc", held.mcc()), number("mcc_low", finding.mcc.low), number("mcc_high", finding.mcc.high);
    number("fresh_precision", finding.fresh.precision()), number("fresh_recall", finding.fresh.recall());
    number("base", held.base()), number("floor", held.floor());
    number("shuffled", held.shuffled()), number("matched", finding.matched_f1());
    out.member("rule", features.rule_words[i]), number("rule_f1", finding.rule.f1());
    number("rule_mcc", finding.rule.mcc());
    out.member("text", features.text_words[i]), number("text_mcc", finding.text_counts.mcc());
    number("beyond", finding.beyond_mcc()), number("beyond_error", finding.beyond_error());
    out.member("heat_function", f.heat_words).key("heat").open('[');
    for (const double lift : f.heat) out.value(std::lround(100 * lift));
    out.close().key("contexts").open('[');
    for (const FeatureContext& c : f.contexts) {
        out.open('{').member("text", c.text).member("mark", c.mark).member("length", c.length);
        out.key("value").value(double(c.value), 4);
        if (features.chess) out.member("fen", c.fen).member("move", c.move).member("last", c.last);
        out.close();
    }
    out.close();
    for (const bool promotes : {true, false}) {
        out.key(promotes ? "promotes" : "suppresses").open('[');
        for (const OutputToken& t : promotes ? f.promotes : f.suppresses)
            out.open('[').value(t.text).value(t.logit, 4).close();
        out.close();
    }
    out.key("with").open('[');
    for (const auto& [expert, share, base] : f.with)
        if (features.config.moe()) out.open('[').value(expert).value(share, 4).value(base, 4).close();
    out.close().close();
}

std::string features_json(const Features& features) {
    JsonWriter out =
        begin_json("features", features.checkpoint, features.step, features.config, features.seconds);
    out.member("own_data", features.own_data).key(features.chess ? "games" : "data").open('{');
    out.member("source", as_utf8(features.train)).member("test_source", as_utf8(features.test));
    out.member("train", features.train_games).member("test", features.test_games);
    out.member("characters", features.characters)
        .member(features.chess ? "boundaries" : "tokens", features.per_game);
    out.member("seen", features.seen).close();
    out.member("gated", features.gated)
        .member("properties", features.properties)
        .member("questions", features.questions);
    out.member("seed", features.seed).member("untrained_seed", features.untrained_seed);
    out.key("units").open('[');
    for (size_t i = 0; i < features.units.size(); i++) unit_json(out, features, i);
    out.close().member("sentence", best_sentence(features)).key("best");
    if (features.ranking.empty())
        out.value(undefined);
    else
        out.value(features.ranking[0]);
    out.key("summary").open('{');
    const auto census = [&](const Census& c) {
        out.member("units", c.units).member("tested", c.tested).member("knows", c.knows);
        out.member("outright", c.outright).member("reads", c.reads);
    };
    census(features.trained);
    for (const auto& [name, c] :
         {std::pair{"untrained", &features.untrained}, {"other_labels", &features.other_labels}}) {
        out.key(name);
        if (!features.all) {
            out.value(undefined);
            continue;
        }
        out.open('{');
        census(*c);
        out.close();
    }
    out.close().close();
    return out.text;
}

int features_program(int argc, char** argv, const MakeReader& make_reader) {
    FeatureOptions flags;
    Options options("features",
                    "Says what single units of a checkpoint tell of the board, or of what comes next in a "
                    "text, and whether\n"
                    "that is more than rules about the text tell: measured on games they were not chosen on.",
                    "[more of --unit]");
    flags.declare(options);
    if (!options.parse(argc, argv)) return 0;
    flags.units = options.arguments;
    const Features features = measure_features(flags, make_reader);
    const bool some = !flags.unit.empty() || !flags.units.empty();
    print_features(features, some ? SIZE_MAX : size_t(flags.best));
    if (!some || !flags.json.empty()) { // a part has a file of its own
        std::string name = "features";
        if (flags.count != FeatureOptions().count) name += strf("_count_%lld", (long long)flags.count);
        if (flags.ungated) name += "_ungated";
        write_json(json_path(flags.json, features.checkpoint, name.c_str()), features_json(features));
    }
    return 0;
}
