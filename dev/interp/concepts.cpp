// Documents, their parts and what is asked of them: see concepts.h.
#include "concepts.h"

std::vector<uint8_t> deal_blocks(const std::vector<uint32_t>& block) {
    constexpr uint8_t turn[] = {TRAIN, VALIDATION, TRAIN, TEST};
    std::vector<uint8_t> part;
    for (const uint32_t b : block) part.push_back(turn[b % 4]);
    return part;
}

std::vector<uint8_t> deal_stretches(size_t rows) {
    const size_t gap = std::max<size_t>(1, rows / 40), left = rows > 2 * gap ? rows - 2 * gap : 0;
    const size_t train = left / 2, validation = left / 4;
    std::vector<uint8_t> part(rows, n_parts);
    for (size_t r = 0; r < rows; r++) {
        if (r < train)
            part[r] = TRAIN;
        else if (r >= train + gap && r < train + gap + validation)
            part[r] = VALIDATION;
        else if (r >= train + validation + 2 * gap)
            part[r] = TEST;
    }
    return part;
}

void keep_answerable(Concepts& concepts, const EnoughWitnesses& enough) {
    std::vector<uint32_t> kept;
    std::unordered_multimap<uint64_t, uint32_t> of_hash;
    for (uint32_t c = 0; c < concepts.list.size(); c++) {
        size_t tokens[n_parts][2] = {}, documents[n_parts][2] = {};
        uint64_t hash = 0;
        for (size_t d = 0; d < concepts.documents(); d++) {
            const uint8_t part = concepts.part[d];
            size_t here[2] = {};
            for (size_t n = d * concepts.rows.T; n < (d + 1) * concepts.rows.T; n++)
                if (concepts.asked(c, n)) here[concepts.labels.at(c, n)]++;
            if (part == n_parts) continue;
            for (size_t yes = 0; yes < 2; yes++) {
                tokens[part][yes] += here[yes];
                documents[part][yes] += here[yes] > 0;
            }
        }
        bool answerable = true;
        for (size_t p = 0; p < n_parts; p++)
            for (size_t yes = 0; yes < 2; yes++)
                answerable &= tokens[p][yes] >= enough.tokens && documents[p][yes] >= enough.documents;
        const Concept& asked = concepts.list[c];
        if (!answerable) {
            concepts.left_out.push_back(asked.group + ": " + asked.name);
            continue;
        }
        const Labels& labels = concepts.labels;
        for (size_t w = 0; w < labels.words; w++) hash = mix64(hash ^ labels.cell(c)[w]);
        bool known = false;
        for (auto [at, last] = of_hash.equal_range(hash); at != last; at++)
            known |= std::equal(labels.cell(c), labels.cell(c) + labels.words, labels.cell(at->second)) &&
                     asked.at_dots == concepts.list[at->second].at_dots;
        if (known) continue;
        of_hash.emplace(hash, c);
        kept.push_back(c);
    }
    std::vector<Concept> list;
    for (const uint32_t c : kept) list.push_back(concepts.list[c]);
    concepts.list = list;
    concepts.labels = chosen_cells(concepts.labels, kept);
}

// The rivals of board concepts: the best rule about the text, chosen at the dots of the train games.
static void add_rules(Concepts& out, const GameSet& games) {
    out.rule.assign(out.list.size(), "");
    out.rule_says = empty_labels(out.list.size(), out.rows.size());
    std::vector<uint32_t> asked;
    for (uint32_t c = 0; c < out.list.size(); c++)
        if (out.list[c].at_dots) asked.push_back(c);
    if (asked.empty()) return;
    GameSet train = games;
    train.texts.clear();
    train.block.clear();
    std::vector<uint32_t> dots, train_dots; // tokens
    for (size_t g = 0; g < games.size(); g++) {
        if (out.part[g] == TRAIN) train.texts.push_back(games.texts[g]);
        for (const size_t at : dots_of(games.texts[g], games.dots)) {
            dots.push_back(uint32_t(g * out.rows.T + at));
            if (out.part[g] == TRAIN) train_dots.push_back(dots.back());
        }
    }
    const ChessQuestions questions = chess_questions(train, {games.dots, false});
    std::vector<std::vector<uint32_t>> targets;
    for (const uint32_t c : asked) {
        targets.emplace_back();
        for (uint32_t i = 0; i < train_dots.size(); i++)
            if (out.labels.at(c, train_dots[i])) targets.back().push_back(i);
    }
    const std::vector<Rule> rules = best_rules(label_chess_text(train, questions), targets, mcc_of);
    const Labels said = label_chess_text(games, questions);
    for (size_t i = 0; i < asked.size(); i++) {
        out.rule[asked[i]] = rule_text(rules[i], questions.list);
        for (size_t n = 0; n < dots.size(); n++)
            if (rules[i].says(said, n)) out.rule_says.set(asked[i], dots[n]);
    }
}

Concepts read_concepts(const std::string& data, const Config& c, size_t T, size_t most,
                       const std::string& gpt2_file, const EnoughWitnesses& enough,
                       const std::string& model) {
    Concepts out;
    if (is_games_file(data) || c.tokenizer == "chess-32") {
        if (c.tokenizer.empty() ? c.vocab_size < size_t(chess_vocab) : c.tokenizer != "chess-32")
            fail("%s: games of chess, but the model %s reads %s", data.c_str(), model.c_str(),
                 c.tokenizer.empty() ? strf("%zu tokens", c.vocab_size).c_str() : c.tokenizer.c_str());
        if (T > c.block_size)
            fail("--seq %zu is more than the %zu positions of the model %s", T, c.block_size, model.c_str());
        const size_t characters = T ? T : std::min<size_t>(c.block_size, 256);
        const GameSet games = read_games(data, characters, std::max<size_t>(1, characters * 20 / 256), most);
        out.rows = game_rows(games);
        group_tokens(out.rows, TOKENIZER_CHESS, "");
        out.block = games.block;
        out.part = deal_blocks(out.block);
        for (int id = 0; id < chess_vocab; id++) out.vocabulary.push_back(std::string(1, chess_char(id)));
        label_chess_concepts(out, games);
        keep_answerable(out, enough);
        add_rules(out, games);
    } else {
        const Tokenizer kind = open_shards(data)[0].header.tokenizer;
        out.rows = token_rows(data, c, T, most, gpt2_file, model);
        const TextTokenizer tokenizer = TextTokenizer::load(kind, gpt2_file);
        for (size_t id = 0; id < tokenizer.vocab_size(); id++)
            out.vocabulary.push_back(tokenizer.decode(int32_t(id)));
        for (const int32_t token : out.rows.tokens)
            if (size_t(token) >= out.vocabulary.size())
                fail("%s: token %d, expected less than the %zu of the tokenizer", data.c_str(), token,
                     out.vocabulary.size());
        out.part = deal_stretches(out.rows.rows);
        out.block.resize(out.rows.rows);
        std::iota(out.block.begin(), out.block.end(), 0u);
        out.dot.assign(out.rows.size(), 0);
        label_text_concepts(out, out.vocabulary);
        keep_answerable(out, enough);
        out.rule.assign(out.list.size(), "");
        out.rule_says = empty_labels(out.list.size(), out.rows.size());
    }
    if (out.list.empty())
        fail("%s: %zu documents of %zu tokens, expected more: no concept has %zu tokens of either answer, "
             "from %zu "
             "documents, in each of train, validation and test (--least, --least-documents)",
             data.c_str(), out.documents(), out.rows.T, enough.tokens, enough.documents);
    return out;
}
