// Documents, their parts and what is asked of them: see concepts.h.
#include "concepts.h"
#include "npy.h"
#include <map>

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

size_t new_concept(Concepts& out, Concept about) {
    out.list.push_back(std::move(about));
    if (out.labels.words == 0) out.labels = empty_labels(0, out.rows.size());
    out.labels.bits.resize(out.list.size() * out.labels.words);
    return out.list.size() - 1;
}

void carry_bits(Concepts& out, size_t of_bit_0, const std::vector<uint32_t>& bits,
                const std::vector<size_t>& end, size_t first) {
    for (size_t t = 0; t < end.size(); t++) {
        uint32_t any = 0;
        for (size_t i = t ? end[t - 1] : 0; i < end[t]; i++) any |= bits[i];
        for (; any; any &= any - 1) out.labels.set(of_bit_0 + size_t(__builtin_ctz(any)), first + t);
    }
}

// What a concept says of every token comes from says(n).
template <class F> static void add_concept(Concepts& out, Concept about, F says) {
    const size_t c = new_concept(out, std::move(about));
    for (size_t n = 0; n < out.rows.size(); n++)
        if (says(n)) out.labels.set(c, n);
}

std::vector<std::string> label_sources(Concepts& out, const std::string& path,
                                       const std::vector<size_t>& document) {
    const MappedFile file(path);
    std::vector<std::string> lines;
    const std::string text((const char*)file.data, file.size);
    for (size_t at = 0, end; at < text.size(); at = end + 1) {
        end = std::min(text.find('\n', at), text.size());
        lines.push_back(text.substr(at, end - at));
    }
    const size_t documents = document.empty() ? 0 : document.back() + 1;
    if (documents > lines.size())
        fail("%s: %zu lines, expected one for each document: the %zu rows that are read have %zu",
             path.c_str(), lines.size(), out.rows.rows, documents);
    std::map<std::string, size_t> place; // of a source, in the order of their names
    for (size_t d = 0; d < documents; d++) {
        if (lines[d].empty())
            fail("%s: line %zu is empty, expected what the document is", path.c_str(), d + 1);
        place[lines[d]] = 0;
    }
    if (place.size() >= no_group)
        fail("%s: %zu different sources, expected fewer than %d", path.c_str(), place.size(), int(no_group));
    out.rows.groups.clear();
    for (auto& [name, i] : place) {
        i = out.rows.groups.size();
        out.rows.groups.push_back(shown(name));
    }
    for (size_t d = 0; d < out.rows.rows; d++) // rows of one document are one witness
        out.block[d] = uint32_t(document[d * out.rows.T]);
    for (size_t n = 0; n < out.rows.size(); n++) out.rows.group[n] = uint8_t(place.at(lines[document[n]]));
    for (size_t i = 0; i < out.rows.groups.size(); i++)
        add_concept(out, {"source", out.rows.groups[i], false, true},
                    [&](size_t n) { return out.rows.group[n] == i; });
    return lines;
}

void label_given(Concepts& out, const std::string& path) {
    const NpyArray given = read_npy(path);
    const std::vector<size_t>& shape = given.shape;
    const size_t concepts = shape.empty() ? 0 : shape.back();
    const bool rows = shape.size() == 3 && shape[0] == out.rows.rows && shape[1] == out.rows.T,
               tokens = shape.size() == 2 && shape[0] == out.rows.size();
    if (!(rows || tokens) || concepts == 0)
        fail("%s: shape %s, expected (%zu, concepts) or (%zu, %zu, concepts)", path.c_str(),
             npy_shape_text(shape).c_str(), out.rows.size(), out.rows.rows, out.rows.T);
    for (size_t i = 0; i < out.rows.size() * concepts; i++)
        if (given.data[i] != 0 && given.data[i] != 1)
            fail("%s: %g at token %zu, concept %zu, expected 0 or 1", path.c_str(), double(given.data[i]),
                 i / concepts, i % concepts);
    for (size_t k = 0; k < concepts; k++)
        add_concept(out, {"given", strf("label %zu", k)},
                    [&](size_t n) { return given.data[n * concepts + k] == 1; });
}

static void read_treebank(Concepts& out, std::vector<uint32_t>& tags, TextTokenizer& tokenizer,
                          const ConceptInput& in, const Config& c, const std::string& model) {
    const Tokenizer kind = c.tokenizer == tokenizer_name(TOKENIZER_GPT2) ? TOKENIZER_GPT2 : TOKENIZER_BYTES;
    if (c.tokenizer.empty() ? c.vocab_size < tokenizer_vocab(kind) : c.tokenizer != tokenizer_name(kind))
        fail("%s: a treebank is a text, but the model %s reads %s", in.conllu.c_str(), model.c_str(),
             c.tokenizer.empty() ? strf("%zu tokens", c.vocab_size).c_str() : c.tokenizer.c_str());
    if (in.T > c.block_size)
        fail("--seq %zu is more than the %zu positions of the model %s", in.T, c.block_size, model.c_str());
    tokenizer = TextTokenizer::load(kind, in.tokenizer);
    out.rows = conllu_rows(read_conllu(in.conllu), tokenizer, in.T ? in.T : c.block_size, in.most, tags);
    out.rows.source = in.conllu;
    group_tokens(out.rows, kind, in.tokenizer);
}

void ConceptInput::check() const {
    if (!conllu.empty() && !data.empty())
        fail_usage("--conllu is read in the place of --data, expected one of them");
    if (!conllu.empty() && !sources.empty()) fail_usage("--sources goes with --data, not with --conllu");
    if (conllu.empty()) need_data(data);
}

Concepts read_concepts(const ConceptInput& in, const Config& c, const std::string& model) {
    in.check();
    const std::string& data = in.conllu.empty() ? in.data : in.conllu;
    const EnoughWitnesses& enough = in.enough;
    const size_t T = in.T, most = in.most;
    Concepts out;
    if (in.conllu.empty() && (is_games_file(data) || c.tokenizer == "chess-32")) {
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
        if (!in.sources.empty())
            fail_usage("--sources goes with a text, %s are games of chess", quoted(data).c_str());
        if (!in.labels.empty()) label_given(out, in.labels);
        keep_answerable(out, enough);
        add_rules(out, games);
    } else {
        bool goes_on = true; // from row to row
        std::vector<uint32_t> tags;
        TextTokenizer tokenizer;
        if (in.conllu.empty()) {
            const std::vector<Shard> shards = open_shards(data);
            goes_on = shards.size() == 1 && !shards[0].header.row;
            if (!in.sources.empty() && !goes_on)
                fail("--sources goes with one shard of a stream, %s are %zu%s", quoted(data).c_str(),
                     shards.size(), shards[0].header.row ? ", of rows" : "");
            out.rows = token_rows(data, c, T, most, in.tokenizer, model);
            tokenizer = TextTokenizer::load(shards[0].header.tokenizer, in.tokenizer);
        } else {
            read_treebank(out, tags, tokenizer, in, c, model);
        }
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
        const std::vector<size_t> document = documents_of(out.rows, tokenizer.start(), goes_on);
        std::vector<std::string> sources;
        if (!in.sources.empty()) sources = label_sources(out, in.sources, document);
        const bool many = !document.empty() && document.back() + 1 >= n_parts * enough.documents;
        label_language_concepts(out, out.vocabulary, document, sources, sources.empty() && many);
        if (!tags.empty()) label_speech(out, tags);
        if (!in.labels.empty()) label_given(out, in.labels);
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
