// What features reads: see features.h, section 2.
#include "features.h"

UnitName parse_unit(const std::string& text, const Config& c) {
    unsigned long layer = 0, expert = 0, unit = 0;
    int end = -1;
    if (text.find_first_not_of("0123456789/") == std::string::npos) {
        sscanf(text.c_str(), "%9lu/%9lu/%9lu%n", &layer, &expert, &unit, &end);
        if (end < 0 && !c.moe()) {
            expert = 0;
            sscanf(text.c_str(), "%9lu/%9lu%n", &layer, &unit, &end);
        }
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
    if (!o.unit.empty())
        for (const std::string& name : split(o.unit, ',')) units.insert(parse_unit(name, c));
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

// By property of the board its natural questions (rules.h).
static std::vector<std::vector<uint32_t>> natural_board_questions(const ChessQuestions& q) {
    using F = BoardFamilies;
    std::vector<std::vector<uint32_t>> natural(F::size);
    for (size_t s = 0; s < 64; s++) {
        for (size_t piece = 0; piece < 13; piece++)
            if (piece != 6)
                natural[F::piece + piece * 64 + s] =
                    natural_questions(q, piece < 6, size_t(std::abs(int(piece) - 6)) - 1, s);
        for (size_t i = 0; i < 2; i++) { // black, white; own, other
            natural[F::color + i * 64 + s] = natural_questions(q, !i, n_kinds, s);
            natural[F::whose + i * 64 + s] = natural_questions(q, 2 + i, n_kinds, s);
            for (size_t kind = 0; kind < n_kinds; kind++)
                natural[F::kind + (i * n_kinds + kind) * 64 + s] = natural_questions(q, 2 + i, kind, s);
        }
    }
    return natural;
}

static Material games_material(const FeatureOptions& o, const Config& c, const std::string& model) {
    if (c.tokenizer.empty() ? c.vocab_size < size_t(chess_vocab) : c.tokenizer != "chess-32")
        fail("%s: a model of %s, expected one of chess (chess-32) to read games; give text as --data",
             model.c_str(), c.tokenizer.empty() ? "too few tokens" : c.tokenizer.c_str());
    const size_t T = std::min<size_t>(c.block_size, 256);
    const GameSplit games =
        split_games(o.games, o.test_games, T, std::max<size_t>(1, T * 20 / 256), size_t(o.count));
    const Boundaries where = {games.train.dots, true};
    const ChessQuestions questions = chess_questions(games.train, where);
    const auto answers = [&](const GameSet& set) {
        return Answers{label_boards(set, where), label_chess_text(set, questions),
                       chess_strata(set, where), set.size(),
                       std::vector<uint8_t>(),   set.block};
    };
    Answers test = answers(games.test);
    test.seen = seen_places(games, where);
    Material m;
    m.chess = true;
    m.train_name = games.train.source;
    m.test_name = games.test.source;
    m.train = placed_games(games.train, where);
    m.test = placed_games(games.test, where);
    m.test_texts = games.test.texts;
    m.test_boards = test.properties;
    m.seen = std::accumulate(test.seen.begin(), test.seen.end(), 0.0) / double(test.seen.size());
    m.evidence = make_evidence(board_properties(), questions.list, answers(games.train), std::move(test),
                               natural_board_questions(questions));
    for (int i = 0; i < chess_vocab; i++) m.token_names.push_back(std::string(1, chess_char(i)));
    return m;
}

static Material text_material(const FeatureOptions& o, const Config& c, const std::string& model) {
    if (c.tokenizer == "chess-32")
        fail("%s: a model of chess (chess-32), expected one of text; give games as --games", model.c_str());
    if (!o.test_games.empty()) fail_usage("--test-games goes with --games, not with --data");
    const ShardHeader header = open_shards(o.data)[0].header;
    const size_t T = header.row ? std::min(c.block_size, header.row - 1) : c.block_size;
    const size_t rows = std::min(size_t(o.count), std::max<size_t>(1, (size_t(1) << 16) / T));
    const TokenRows all =
        token_rows(o.data, c, T, 2 * rows + std::max<size_t>(1, rows / 10), o.tokenizer, model);
    TokenRows train, test;
    const size_t rows_per_block = split_rows(all, train, test);
    const TextProperties text = text_properties(train, header.tokenizer, o.tokenizer);
    std::vector<Property> lists[2]; // properties, questions
    std::vector<uint32_t> cells[2];
    for (size_t i = 0; i < text.list.size(); i++) {
        const TextProperty& p = text.list[i];
        lists[p.said].push_back({p.function, {p.words, p.negated}});
        cells[p.said].push_back(uint32_t(i));
    }
    const auto answers = [&](const TokenRows& set) {
        const Labels labels = label_text(set, text);
        const Strata same_token = {{set.tokens.begin(), set.tokens.end()}, uint32_t(text.vocabulary.size())};
        return Answers{chosen_cells(labels, cells[0]), chosen_cells(labels, cells[1]), same_token,
                       set.rows / rows_per_block};
    };
    Material m;
    m.train_name = m.test_name = o.data;
    m.evidence = make_evidence(lists[0], lists[1], answers(train), answers(test));
    m.train = all_places(std::move(train));
    m.test = all_places(std::move(test));
    m.vocabulary = text.vocabulary;
    for (const std::string& token : m.vocabulary)
        m.token_names.push_back(token.empty() ? "<end of text>" : shown(token));
    return m;
}

Material read_material(const FeatureOptions& o, const Config& c, const std::string& model) {
    if (o.games.empty() == o.data.empty())
        fail_usage("expected --games for a model of chess, or --data for a model of text");
    return o.games.empty() ? text_material(o, c, model) : games_material(o, c, model);
}
