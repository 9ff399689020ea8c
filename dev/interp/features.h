// features: what single units of a checkpoint detect, measured on games it was not chosen on (detect.h), and
// what else tells about them: the squares that go with them, where they fire most strongly, which output
// tokens they promote, which experts fire with them. Of every expert the units that say most go to the JSON,
// for the report; a page of each of the best is printed, and at the end the best of all in a sentence.
//
//   1 one unit: squares, output tokens, contexts, experts    3 measuring a checkpoint
//   2 what is read                                           4 pages, JSON, the program
#pragma once
#include "../lib/options.h"
#include "detect.h"
#include "results.h"
#include "text_labels.h"

// ---------------------------------------------------------------------------------------------------------
// 1 One unit: squares, output tokens, contexts, experts

constexpr size_t n_contexts = 4, n_output_tokens = 5;

struct FeatureContext {
    std::string text;            // one line; line ends and the like are spelt out
    size_t mark = 0, length = 0; // the characters (code points) that stand for the marked token
    float value = 0;             // the unit there: w_j z_j
    std::string fen, move, last; // chess: the board there, the move that led to it: 4.Qh5, d1h5
};

struct OutputToken {
    std::string text;
    double logit = 0;
};

struct Feature {
    size_t layer = 0, expert = 0, unit = 0;
    float max = 0;   // over all characters of the train games
    double rate = 0; // share of those characters where it fires
    Property property;
    Finding finding;
    std::string heat_words;
    std::vector<double> heat; // (64) lift, 1: as often as always; none for text
    std::vector<FeatureContext> contexts;
    std::vector<OutputToken> promotes, suppresses;
    std::vector<std::pair<size_t, double>> with; // other experts, and how often they work when it is on

    const std::string& words() const { return property.words[finding.real.choice.negated]; }
};

// Which squares go with a unit: where a class of a function of squares holds more often than it does anyway
// when the unit is on,
//   lift(square) = (TP + 1) / (on * positives / n + 1)
// on the test games. The ones keep squares where the class is rare near 1.
inline std::vector<double> square_lifts(const UnitFires& fires, size_t unit, size_t threshold, size_t first,
                                        size_t classes, const BoardLabels& labels) {
    std::vector<double> lifts(64);
    const double on = double(fires.on(unit, threshold));
    for (size_t s = 0; s < 64; s++) {
        const size_t cell = first + s * classes;
        size_t tp = 0, positives = 0;
        for (const uint32_t* n = fires.first(unit); n < fires.last(unit, threshold); n++)
            tp += labels.at(cell, *n);
        for (size_t w = 0; w < labels.words; w++) positives += size_t(std::popcount(labels.cell(cell)[w]));
        lifts[s] = (double(tp) + 1) / (on * double(positives) / double(labels.tokens) + 1);
    }
    return lifts;
}

// "where black queens stand", "the squares that Black attacks".
inline std::string squares_text(const BoardFunction& f, size_t cls) {
    if (f.classes == 1) return f.meaning;
    static constexpr const char* kinds[] = {"pieces", "pawns", "knights", "bishops", "rooks", "queens"};
    const int piece = f.classes == 3 ? 0 : int(cls) - 6, color = f.classes == 3 ? int(cls) - 1 : piece;
    if (color == 0) return "empty squares";
    const std::string white = color > 0 ? "white" : "black";
    if (std::abs(piece) == chess::KING) return "where the " + white + " king stands";
    return "where " + white + " " + kinds[std::abs(piece)] + " stand";
}

// The direct effect of a unit on the output, per unit of its value. Its decoder row d joins the residual
// stream, which the head reads through ln_f: with the row centred as ln_f does,
//   logit(token) = wte[token] . (ln_f.weight * (d - mean(d))),   less its mean over the vocabulary.
// An approximation: later layers read the row, too; ln_f divides by the spread of the whole stream, a common
// factor that is left out; and the row's own share in that spread is ignored.
inline std::vector<double> direct_logits(const Config& c, const Parameters<float>& w, size_t layer,
                                         size_t unit) {
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

// The tokens with the largest and the smallest logits; of equal ones the lower id.
inline void add_output_tokens(Feature& f, const std::vector<double>& logits,
                              const std::vector<std::string>& names) {
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

// The strongest places of a unit, one of each game, in falling order; of equal values the earlier game and
// the earlier place.
struct Peak {
    float value;
    size_t game, place;
};
struct Peaks {
    std::vector<Peak> best;
    void add(const Peak& peak) {
        const auto at =
            std::find_if(best.begin(), best.end(), [&](const Peak& p) { return peak.value > p.value; });
        if (at == best.end() && best.size() >= n_contexts) return;
        best.insert(at, peak);
        if (best.size() > n_contexts) best.pop_back();
    }
};

// Looks at the units of a list over a set of games, batch by batch: their peaks, and the experts at work
// where they are on.
struct UnitWatch {
    struct Watched {
        Peaks peaks;
        size_t on = 0;
        std::vector<size_t> experts; // (E) places where it is on and that expert is chosen, too
    };
    std::vector<Watched> units;                // as in the list
    std::vector<std::vector<size_t>> of_layer; // (L,units of the layer) place in the list, or SIZE_MAX
    std::vector<float> level;                  // above which it is on

    UnitWatch(const std::vector<Feature>& list, const Reader& reader)
        : units(list.size()), of_layer(reader.config.n_layer, std::vector<size_t>(reader.units(), SIZE_MAX)) {
        const size_t E = reader.config.moe() ? reader.config.n_expert : 1;
        for (size_t i = 0; i < list.size(); i++) {
            of_layer[list[i].layer][list[i].expert * (reader.units() / E) + list[i].unit] = i;
            level.push_back(threshold(list[i].finding.real.choice.threshold) * list[i].max);
            units[i].experts.resize(E);
        }
    }
    // The batch that the reader holds: B games of T tokens, the first of them number `first`.
    void add(const Reader& reader, size_t first, size_t B, size_t T) {
        std::vector<LayerUnits> layers;
        for (size_t l = 0; l < of_layer.size(); l++) layers.push_back(reader.layer(l));
#pragma omp parallel for schedule(dynamic, 1)
        for (size_t l = 0; l < layers.size(); l++) {
            const LayerUnits& layer = layers[l];
            std::vector<Peak> top(units.size());
            for (size_t b = 0; b < B; b++) {
                for (Peak& peak : top) peak = {0, first + b, 0};
                for (size_t t = 0; t < T; t++)
                    layer.each(b * T + t, true, [&](size_t unit, float value) {
                        const size_t i = of_layer[l][unit];
                        if (i == SIZE_MAX) return;
                        if (value > top[i].value) top[i].value = value, top[i].place = t;
                        if (!(value > level[i])) return;
                        units[i].on++;
                        for (size_t k = 0; layer.choice && k < layer.K; k++)
                            units[i].experts[size_t(layer.choice[(b * T + t) * layer.K + k])]++;
                    });
                for (size_t i = 0; i < units.size(); i++)
                    if (top[i].value > 0) units[i].peaks.add(top[i]);
            }
        }
    }
    void fill(Feature& f, const Watched& w) const {
        for (size_t e = 0; e < w.experts.size(); e++)
            if (e != f.expert && w.experts[e]) f.with.push_back({e, double(w.experts[e]) / double(w.on)});
        std::stable_sort(f.with.begin(), f.with.end(), [](auto& a, auto& b) { return a.second > b.second; });
    }
};

// A place of a game: some 60 characters before it and 20 behind it, from move to move.
inline FeatureContext game_context(const std::string& text, size_t place, float value) {
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

inline size_t code_points(const std::string& utf8) {
    return size_t(std::count_if(utf8.begin(), utf8.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

// A place of a row of text: some 60 bytes before it and 20 behind it.
inline FeatureContext text_context(const int32_t* row, size_t T, size_t place,
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

// ---------------------------------------------------------------------------------------------------------
// 2 What is read

struct UnitName {
    size_t layer, expert, unit;
    auto operator<=>(const UnitName&) const = default;
};

struct FeatureOptions {
    std::string ckpt, games, test_games, data, tokenizer, json, unit;
    int64_t count = 1000, best = 3, per_expert = 12, seed = 1;
    std::vector<std::string> units; // more of --unit

    void declare(Options& o) {
        o.add(0, "ckpt", "FILE|DIR", &ckpt, "a checkpoint, or the folder of a run for its newest one");
        o.add(0, "games", "FILE", &games, "chess: games to choose on: PGN, game text, or chess-32 shards");
        o.add(0, "test-games", "FILE", &test_games,
              "games to measure on (none: those of --games, dealt out)");
        o.add(0, "data", "GLOB", &data, "text: token shards, whose rows are dealt out");
        o.add(0, "tokenizer", "FILE", &tokenizer, "GPT-2 only: the file written by data/fineweb.py");
        o.add(0, "count", "GAMES", &count, 2, 1 << 24, "games of each at most; text: rows, up to 64K tokens");
        o.add(0, "unit", "L/E/I,..", &unit, "only these units: layer/expert/unit (dense: layer/unit)");
        o.add(0, "best", "UNITS", &best, 0, 1 << 20, "units to print, the best of all");
        o.add(0, "per-expert", "UNITS", &per_expert, 1, 1 << 20, "units of every expert in the JSON");
        o.add(0, "seed", "SEED", &seed, 0, INT64_MAX, "of the permutations and the resampling");
        o.add(0, "json", "FILE", &json,
              "where the numbers go (none: interp/features.json beside the checkpoint)");
    }
};

// "2/5/113", of a dense model also "2/113".
inline UnitName parse_unit(const std::string& text, const Config& c) {
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

// --unit and what follows the options.
inline std::set<UnitName> parse_units(const FeatureOptions& o, const Config& c) {
    std::set<UnitName> units;
    for (const std::string& name : o.units) units.insert(parse_unit(name, c));
    for (size_t at = 0; at < o.unit.size();) {
        const size_t comma = std::min(o.unit.find(',', at), o.unit.size());
        units.insert(parse_unit(o.unit.substr(at, comma - at), c));
        at = comma + 1;
    }
    return units;
}

// Every layer on both sets of rows; every token is a place.
inline std::vector<LayerFires> text_fires(Reader& reader, const TokenRows& train, const TokenRows& test) {
    std::vector<LayerFires> layers;
    std::vector<size_t> all(train.T);
    std::iota(all.begin(), all.end(), size_t(0));
    for (const bool is_test : {false, true}) {
        const TokenRows& rows = is_test ? test : train;
        std::vector<FireCollector> collectors(reader.config.n_layer, FireCollector(reader.units()));
        read_rows(reader, rows, is_test ? "model on the test rows" : "model on the train rows",
                  [&](size_t, size_t B) {
                      const std::vector<std::vector<size_t>> chosen(B, all);
                      for (size_t l = 0; l < collectors.size(); l++) {
                          const LayerUnits layer = reader.layer(l);
                          collectors[l].add(B, rows.T, chosen,
                                            [&](size_t n, auto f) { layer.each(n, true, f); });
                      }
                  });
        for (size_t l = 0; l < collectors.size(); l++)
            if (is_test)
                layers[l].test = unit_fires(collectors[l].values, layers[l].max);
            else
                layers.push_back(train_fires(collectors[l]));
    }
    return layers;
}

// Rows dealt out in turn.
inline void split_rows(const TokenRows& all, TokenRows& train, TokenRows& test) {
    if (all.rows < 2)
        fail("%s: 1 row of %zu tokens, expected 2 or more: one to choose on and one to measure on",
             all.source.c_str(), all.T);
    train = test = {all.source, 0, all.T, {}, {}, {}};
    for (size_t r = 0; r < all.rows / 2 * 2; r++) {
        TokenRows& set = r % 2 ? test : train;
        set.tokens.insert(set.tokens.end(), all.tokens.begin() + std::ptrdiff_t(r * all.T),
                          all.tokens.begin() + std::ptrdiff_t((r + 1) * all.T));
        set.rows++;
    }
}

// What a checkpoint is measured on: games, or rows of text.
struct Material {
    bool chess = false;
    size_t T = 0; // characters of a game, tokens of a row
    GameSplit games;
    BoardLabels test_boards; // every cell, at the dots of the test games
    TokenRows train, test;
    TextProperties text;
    std::string train_name, test_name;
    Evidence evidence;
    std::vector<std::string> token_names; // (V), as they are shown
};

inline Material read_material(const FeatureOptions& o, const Config& c, const std::string& model) {
    if (o.games.empty() == o.data.empty())
        fail_usage("expected --games for a model of chess, or --data for a model of text");
    Material m;
    m.chess = !o.games.empty();
    if (m.chess) {
        if (c.tokenizer.empty() ? c.vocab_size < size_t(chess_vocab) : c.tokenizer != "chess-32")
            fail("%s: a model of %s, expected one of chess (chess-32) to read games; give text as --data",
                 model.c_str(), c.tokenizer.empty() ? "too few tokens" : c.tokenizer.c_str());
        m.T = std::min<size_t>(c.block_size, 256);
        m.games =
            split_games(o.games, o.test_games, m.T, std::max<size_t>(1, m.T * 20 / 256), size_t(o.count));
        m.train_name = m.games.train.source, m.test_name = m.games.test.source;
        const size_t dots = m.games.train.dots;
        m.test_boards = label_games(m.games.test, dots);
        m.evidence = make_evidence(board_properties(), label_games(m.games.train, dots), m.games.train.size(),
                                   m.test_boards, m.games.test.size());
        for (int i = 0; i < chess_vocab; i++) m.token_names.push_back(std::string(1, chess_char(i)));
        return m;
    }
    if (c.tokenizer == "chess-32")
        fail("%s: a model of chess (chess-32), expected one of text; give games as --games", model.c_str());
    if (!o.test_games.empty()) fail_usage("--test-games goes with --games, not with --data");
    const ShardHeader header = open_shards(o.data)[0].header;
    m.T = header.row ? std::min(c.block_size, header.row - 1) : c.block_size;
    const size_t rows = std::min(size_t(o.count), std::max<size_t>(1, (size_t(1) << 16) / m.T));
    split_rows(token_rows(o.data, c, m.T, 2 * rows, o.tokenizer, model), m.train, m.test);
    m.train_name = m.test_name = o.data;
    m.text = text_properties(m.train, header.tokenizer, o.tokenizer);
    std::vector<Property> list;
    for (const TextProperty& p : m.text.list) list.push_back({p.function, {p.words, p.negated}});
    m.evidence = make_evidence(list, label_text(m.train, m.text), m.train.rows, label_text(m.test, m.text),
                               m.test.rows);
    for (const std::string& token : m.text.vocabulary)
        m.token_names.push_back(token.empty() ? "<end of text>" : shown(token));
    return m;
}

// ---------------------------------------------------------------------------------------------------------
// 3 Measuring a checkpoint

struct Features {
    std::string checkpoint, train, test; // files
    int64_t step = 0;
    Config config;
    bool chess = false;
    size_t train_games = 0, test_games = 0, characters = 0, per_game = 0, properties = 0;
    uint64_t seed = 0;
    std::vector<Feature> units;  // by layer and expert; what is found first, then by score
    std::vector<size_t> ranking; // of units: what is found first, then one of every property, then by score
    size_t tested = 0, found = 0;
    size_t found_same_move = 0; // with the labels of another game; SIZE_MAX: not all units were tested
    double seconds = 0;

    bool any_found() const { return !ranking.empty() && units[ranking[0]].finding.found; }
};

inline bool goes_before(const Finding& a, const Finding& b) {
    return a.found != b.found ? a.found : a.real.choice.score > b.real.choice.score;
}

// The best of the list, one of every property before a second of any.
inline std::vector<size_t> rank_units(const std::vector<Feature>& units) {
    std::vector<size_t> order(units.size()), ranking;
    std::iota(order.begin(), order.end(), size_t(0));
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return goes_before(units[a].finding, units[b].finding); });
    for (const bool found : {true, false}) {
        std::set<std::string> seen;
        std::vector<size_t> again;
        for (const size_t i : order) {
            if (units[i].finding.found != found) continue;
            const bool first = seen.insert(units[i].property.function + ": " + units[i].words()).second;
            (first ? ranking : again).push_back(i);
        }
        ranking.insert(ranking.end(), again.begin(), again.end());
    }
    return ranking;
}

// Tests the units asked for, all if none is, and lists the best of every expert.
inline void search_units(Features& out, const std::set<UnitName>& wanted, size_t per_expert,
                         const std::vector<LayerFires>& layers, const Evidence& e,
                         const Labellings& labellings, const Resamples& resamples) {
    const Config& c = out.config;
    const size_t E = c.moe() ? c.n_expert : 1, D = layers[0].units / E;
    const Labellings untrue = false_labellings(labellings, e, out.seed);
    std::vector<uint32_t> scratch;
    if (!wanted.empty()) out.found_same_move = SIZE_MAX;
    Progress progress("units", "layers", double(c.n_layer));
    for (size_t l = 0; l < c.n_layer; l++) {
        std::vector<Finding> findings(layers[l].units);
        if (wanted.empty()) {
            findings = find_all(layers[l], e, labellings, resamples);
            for (const Finding& f : find_all(layers[l], e, untrue, resamples)) out.found_same_move += f.found;
        }
        for (const UnitName& name : wanted)
            if (name.layer == l) {
                const size_t u = name.expert * D + name.unit;
                findings[u] = find(layers[l], u, e, labellings, resamples, scratch);
            }
        for (size_t expert = 0; expert < E; expert++) {
            std::vector<Feature> list;
            for (size_t i = 0; i < D; i++) {
                const size_t u = expert * D + i;
                const bool tested = findings[u].real.choice.any();
                out.tested += tested, out.found += findings[u].found;
                if (wanted.empty() ? !tested : !wanted.count({l, expert, i})) continue;
                Feature f;
                f.layer = l, f.expert = expert, f.unit = i, f.finding = findings[u];
                f.max = layers[l].rate[u] > 0 ? layers[l].max[u] : 0, f.rate = layers[l].rate[u];
                if (tested) f.property = e.properties[f.finding.real.choice.property];
                list.push_back(f);
            }
            std::stable_sort(list.begin(), list.end(), [](const Feature& a, const Feature& b) {
                return goes_before(a.finding, b.finding);
            });
            if (wanted.empty()) list.resize(std::min(list.size(), per_expert));
            std::move(list.begin(), list.end(), std::back_inserter(out.units));
        }
        progress.update(double(l + 1));
    }
    progress.finish(double(c.n_layer));
}

// What else the listed units show.
inline void describe_units(std::vector<Feature>& units, Reader& reader, const Material& m,
                           const std::vector<LayerFires>& layers, const Labellings& labellings,
                           const Resamples& resamples) {
    const Config& c = reader.config;
    const size_t D = c.moe() ? c.d_expert : c.dense_width();
    UnitWatch watch(units, reader);
    const auto visit = [&](size_t first, size_t B) { watch.add(reader, first, B, m.T); };
    if (m.chess)
        read_batches(reader, m.games.test, "contexts", visit);
    else
        read_rows(reader, m.test, "contexts", visit);

    const Parameters<float> weights = carve_parameters(c, reader.table, reader.weights());
    Progress progress("output tokens", "units", double(units.size()));
    size_t done = 0;
#pragma omp parallel for schedule(dynamic, 1)
    for (size_t i = 0; i < units.size(); i++) {
        Feature& f = units[i];
        const size_t u = f.expert * D + f.unit;
        const UnitFires& fires = layers[f.layer].test;
        if (std::isnan(f.finding.f1.low))
            add_intervals(f.finding, fires, u, m.evidence.test, labellings, resamples);
        if (const Choice& square = f.finding.square; square.any()) {
            const Property& p = m.evidence.properties[square.property];
            const BoardFunction& function = board_functions[p.board_function];
            f.heat_words = squares_text(function, p.cls);
            f.heat = square_lifts(fires, u, f.finding.real.choice.threshold,
                                  first_cell(p.board_function) + p.cls, function.classes, m.test_boards);
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

inline Features measure_features(const FeatureOptions& o, const MakeReader& make_reader) {
    const double begin = now_seconds();
    const SafeTensorsFile file(find_checkpoint(o.ckpt));
    Features out;
    out.checkpoint = file.path, out.step = checkpoint_step(file), out.seed = uint64_t(o.seed);
    out.config = read_config(file);
    const std::set<UnitName> wanted = parse_units(o, out.config);
    const Material m = read_material(o, out.config, file.path);
    const Evidence& e = m.evidence;
    out.chess = m.chess, out.train = m.train_name, out.test = m.test_name;
    out.train_games = e.train.games, out.test_games = e.test.games;
    out.characters = m.T, out.per_game = e.train.per_game, out.properties = e.properties.size();

    Reader reader = make_reader(out.config, batch_rows(m.T), m.T);
    load_weights(reader, file);
    const std::vector<LayerFires> layers =
        m.chess ? model_fires(reader, m.games, true) : text_fires(reader, m.train, m.test);
    const Labellings labellings = make_labellings(e, out.seed);
    const Resamples resamples = make_resamples(e.test.games, out.seed);
    search_units(out, wanted, size_t(o.per_expert), layers, e, labellings, resamples);
    describe_units(out.units, reader, m, layers, labellings, resamples);
    out.ranking = rank_units(out.units);
    out.seconds = now_seconds() - begin;
    return out;
}

// ---------------------------------------------------------------------------------------------------------
// 4 Pages, JSON, the program

inline std::string unit_text(const Feature& f, const Config& c) {
    return strf("layer %zu, ", f.layer) + (c.moe() ? strf("expert %zu, ", f.expert) : "") +
           strf("unit %zu", f.unit);
}
// Two digits; three where two would say 1.00 of what is less than 1, and one where they would say 0.00 of
// what is more than 0.
inline std::string share_text(double x) {
    if (x > 0 && x < 0.005) return strf("%.1g", x);
    return x >= 0.995 && x < 1 ? strf("%.3f", std::min(x, 0.999)) : strf("%.2f", x);
}

// The best unit of the run in words, or that there is none.
inline std::string best_sentence(const Features& features) {
    const char* held = features.chess ? "games" : "rows";
    if (!features.any_found())
        return strf("None of the %zu units tested detects a property of the %s on held-out %s.",
                    features.tested, features.chess ? "board" : "text", held);
    const Feature& f = features.units[features.ranking[0]];
    return unit_text(f, features.config) + " fires when " + f.words() + ": precision " +
           share_text(f.finding.real.counts.precision()) + ", recall " +
           share_text(f.finding.real.counts.recall()) + " on held-out " + held + " (base rate " +
           share_text(f.finding.real.counts.base()) + ")";
}

// The boards of a page, side by side: where it fires most strongly, and the lift of every square in percent.
inline std::string boards_text(const Feature& f) {
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

inline void print_feature(const Feature& f, const Features& features) {
    const Finding& finding = f.finding;
    const Counts& held = finding.real.counts;
    printf("\n%s\n", unit_text(f, features.config).c_str());
    printf("  fires          on %.2f%% of the %s, at most %.3g\n", 100 * f.rate,
           features.chess ? "characters" : "tokens", f.max);
    if (!finding.real.choice.any()) {
        printf("  property       none: it is on at fewer than %zu %s\n", least_places,
               features.chess ? "dots, where properties are compared" : "tokens");
    } else {
        const auto range = [](Interval i) { return share_text(i.low) + " to " + share_text(i.high); };
        printf("  fires when     %s   (%s; on above %.1f of its maximum)\n", f.words().c_str(),
               f.property.function.c_str(), threshold(finding.real.choice.threshold));
        printf("  held out       precision %s (%s)   recall %s   F1 %s (%s)   Matthews %s (%s)\n",
               share_text(held.precision()).c_str(), range(finding.precision).c_str(),
               share_text(held.recall()).c_str(), share_text(held.f1()).c_str(), range(finding.f1).c_str(),
               share_text(held.mcc()).c_str(), range(finding.mcc).c_str());
        printf("  for nothing    base rate %s   always on: F1 %s   labels permuted: F1 %s   %s: F1 %s\n",
               share_text(held.base()).c_str(), share_text(held.floor()).c_str(),
               share_text(finding.permuted.counts.f1()).c_str(),
               features.chess ? "same move of another game" : "same place of another row",
               share_text(finding.same_move_f1()).c_str());
        printf("  found          %s\n", finding.found ? "yes" : "no");
    }
    for (const bool promotes : {true, false}) {
        printf(promotes ? "  promotes      " : "  suppresses    ");
        for (const OutputToken& t : promotes ? f.promotes : f.suppresses)
            printf(" '%s' %+.2f ", t.text.c_str(), t.logit);
        printf("\n");
    }
    if (!f.with.empty()) {
        printf("  experts with it");
        for (const auto& [expert, share] : f.with)
            if (share >= 0.01) printf("  %zu (%.0f%%)", expert, 100 * share);
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

inline void print_features(const Features& features, size_t best) {
    const char* games = features.chess ? "games" : "rows";
    printf("%s: %zu properties, chosen on %zu %s of %s, measured on %zu of %s (seed %llu)\n",
           features.checkpoint.c_str(), features.properties, features.train_games, games,
           features.train.c_str(), features.test_games, features.test.c_str(),
           (unsigned long long)features.seed);
    for (size_t i = 0; i < std::min(best, features.ranking.size()); i++)
        print_feature(features.units[features.ranking[i]], features);
    printf("\n%zu of %zu units tested are found", features.found, features.tested);
    if (features.found_same_move != SIZE_MAX)
        printf("; with the labels of another %s at the same %s %zu would be", features.chess ? "game" : "row",
               features.chess ? "move" : "place", features.found_same_move);
    printf("\n%s\n", best_sentence(features).c_str());
}

inline std::string features_json(const Features& features) {
    const bool moe = features.config.moe();
    JsonWriter out =
        begin_json("features", features.checkpoint, features.step, features.config, features.seconds);
    out.key(features.chess ? "games" : "data").open('{');
    out.member("source", features.train).member("test_source", features.test);
    out.member("train", features.train_games).member("test", features.test_games);
    out.member("characters", features.characters)
        .member(features.chess ? "dots" : "tokens", features.per_game);
    out.close().member("properties", features.properties).member("seed", features.seed);
    out.key("units").open('[');
    for (const Feature& f : features.units) {
        const Finding& finding = f.finding;
        const Counts& held = finding.real.counts;
        const Choice& choice = finding.real.choice;
        const auto number = [&](const char* name, double x) { out.key(name).value(x, 4); };
        out.open('{').member("layer", f.layer).member("expert", f.expert).member("unit", f.unit);
        number("rate", f.rate), number("max", f.max);
        number("threshold", choice.any() ? threshold(choice.threshold) : undefined);
        out.member("function", f.property.function)
            .member("property", f.words())
            .member("found", finding.found);
        number("score", choice.any() ? choice.score : undefined), number("on", held.on / held.n);
        number("precision", held.precision()), number("precision_low", finding.precision.low);
        number("recall", held.recall());
        number("f1", held.f1()), number("f1_low", finding.f1.low), number("f1_high", finding.f1.high);
        number("mcc", choice.any() ? held.mcc() : undefined), number("mcc_low", finding.mcc.low);
        number("base", held.base()), number("floor", held.floor());
        number("permuted", finding.permuted.counts.f1()), number("same_move", finding.same_move_f1());
        number("mcc_permuted", finding.permuted.counts.mcc()),
            number("mcc_same_move", finding.same_move_mcc());
        out.member("heat_function", f.heat_words).key("heat").open('[');
        for (const double lift : f.heat) out.value(std::lround(100 * lift));
        out.close().key("contexts").open('[');
        for (const FeatureContext& c : f.contexts) {
            out.open('{').member("text", c.text).member("mark", c.mark).member("length", c.length);
            number("value", c.value);
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
        for (const auto& [expert, share] : f.with)
            if (moe) out.open('[').value(expert).value(share, 4).close();
        out.close().close();
    }
    out.close().key("best");
    if (features.any_found())
        out.open('{')
            .member("index", features.ranking[0])
            .member("sentence", best_sentence(features))
            .close();
    else
        out.value(undefined);
    out.key("summary").open('{').member("tested", features.tested).member("found", features.found);
    out.key("found_same_move");
    if (features.found_same_move == SIZE_MAX)
        out.value(undefined);
    else
        out.value(features.found_same_move);
    out.close().close();
    return out.text;
}

inline int features_program(int argc, char** argv, const MakeReader& make_reader) {
    FeatureOptions flags;
    Options options(
        "features",
        "Says what single units of a checkpoint detect: the property that goes best with a unit,\n"
        "measured on games that it was not chosen on, and where the unit fires.",
        "[more of --unit]");
    flags.declare(options);
    if (!options.parse(argc, argv)) return 0;
    flags.units = options.arguments;
    const Features features = measure_features(flags, make_reader);
    const bool some = !flags.unit.empty() || !flags.units.empty();
    print_features(features, some ? SIZE_MAX : size_t(flags.best));
    if (!some || !flags.json.empty())
        write_json(json_path(flags.json, features.checkpoint, "features"), features_json(features));
    return 0;
}
