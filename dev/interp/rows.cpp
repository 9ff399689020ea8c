// Rows of tokens and their groups: see rows.h.
#include "rows.h"
#include "../lib/threads.h"

void phases_of(const int32_t* tokens, size_t T, uint8_t* group) { // tokens of chess-32
    bool known = false;
    for (size_t t = 0, plies = 0; t < T; t++) {
        const char c = chess_char(tokens[t]);
        if (c == ';') {
            known = true;
            plies = 0;
        }
        plies += c == ' ';
        const size_t move = plies / 2 + 1;
        group[t] = !known ? no_group : move <= 10 ? 0 : move <= 25 ? 1 : 2;
    }
}

uint8_t byte_class(const std::string& text) {
    if (text.empty()) return 6;
    const unsigned char c = text[text.size() > 1 && text[0] == ' '];
    return c >= 'a' && c <= 'z'     ? 0
           : c >= 'A' && c <= 'Z'   ? 1
           : c >= '0' && c <= '9'   ? 2
           : c == ' ' || c == '\t'  ? 3
           : c == '\n' || c == '\r' ? 4
           : c > ' ' && c < 127     ? 5
                                    : 6;
}

void group_tokens(TokenRows& rows, Tokenizer kind, const std::string& gpt2_file) {
    rows.group.assign(rows.size(), 0);
    if (kind == TOKENIZER_CHESS) {
        rows.groups = game_phases;
        for (size_t r = 0; r < rows.rows; r++)
            phases_of(rows.tokens.data() + r * rows.T, rows.T, rows.group.data() + r * rows.T);
    } else if (kind == TOKENIZER_GPT2 && gpt2_file.empty()) {
        rows.groups = {"all tokens"};
    } else {
        const TextTokenizer tokenizer = TextTokenizer::load(kind, gpt2_file);
        rows.groups = byte_class_names;
        std::vector<uint8_t> class_of(tokenizer.vocab_size());
        for (size_t id = 0; id < class_of.size(); id++)
            class_of[id] = byte_class(tokenizer.decode(int32_t(id)));
        for (size_t i = 0; i < rows.size(); i++)
            rows.group[i] = size_t(rows.tokens[i]) < class_of.size() ? class_of[rows.tokens[i]] : no_group;
    }
}

void need_data(const std::string& data) {
    if (data.empty()) fail_usage("--data is missing: token shards, or a file of games");
}

bool is_games_file(const std::string& path) {
    struct stat st;
    if (stat(path.c_str(), &st) != 0 || !S_ISREG(st.st_mode)) return false;
    const MappedFile file(path);
    return file.size < sizeof shard_magic || memcmp(file.data, &shard_magic, sizeof shard_magic) != 0;
}

TokenRows game_rows(const GameSet& games) {
    TokenRows rows;
    rows.source = games.source;
    rows.rows = games.size();
    rows.T = games.characters;
    rows.tokens.reserve(rows.size());
    for (const std::string& text : games.texts)
        for (const char character : text) rows.tokens.push_back(chess_id(character));
    return rows;
}

TokenRows token_rows(const std::string& data, const Config& c, size_t T, size_t most,
                     const std::string& gpt2_file, const std::string& model) {
    TokenRows rows;
    rows.source = data;
    if (T > c.block_size)
        fail("--seq %zu is more than the %zu positions of the model %s", T, c.block_size, model.c_str());
    const auto check_tokenizer = [&](Tokenizer kind) {
        if (c.tokenizer.empty() ? c.vocab_size < tokenizer_vocab(kind) : c.tokenizer != tokenizer_name(kind))
            fail("%s: its tokens are %s, but the model %s reads %s", data.c_str(), tokenizer_name(kind),
                 model.c_str(),
                 c.tokenizer.empty() ? strf("%zu tokens", c.vocab_size).c_str() : c.tokenizer.c_str());
    };
    if (is_games_file(data)) {
        check_tokenizer(TOKENIZER_CHESS);
        const size_t characters = T ? T : std::min<size_t>(c.block_size, 256);
        rows = game_rows(read_games(data, characters, std::max<size_t>(1, characters * 20 / 256), most));
        group_tokens(rows, TOKENIZER_CHESS, "");
        return rows;
    }
    const ShardHeader header = open_shards(data)[0].header;
    check_tokenizer(header.tokenizer);
    rows.T = T ? T : header.row ? std::min(c.block_size, header.row - 1) : c.block_size;
    Loader loader(data, rows.T, c.vocab_size, false, 0);
    rows.rows = std::min(most, loader.samples);
    rows.tokens.resize(rows.size());
    std::vector<int32_t> targets(rows.T);
    for (size_t r = 0; r < rows.rows; r++) loader.next(1, rows.tokens.data() + r * rows.T, targets.data());
    group_tokens(rows, header.tokenizer, gpt2_file);
    return rows;
}

void check_finite(Reader& reader, const TokenRows& rows, size_t first, size_t N) {
    const LayerUnits units = reader.layer(reader.config.n_layer - 1);
    const size_t C = reader.config.n_embd;
    std::vector<uint8_t> broken(N);
    parallel_for(N, [&](size_t n) {
        bool finite = true;
        for (size_t i = 0; i < C; i++) finite &= std::isfinite(units.x[n * C + i]);
        units.each_expert(n, false, [&](size_t, const float* z, size_t count, float) {
            for (size_t i = 0; i < count; i++) finite &= std::isfinite(z[i]);
        });
        broken[n] = !finite;
    });
    const size_t bad = size_t(std::find(broken.begin(), broken.end(), 1) - broken.begin());
    if (bad < N)
        fail("%s: the model's units at row %zu, token %zu are not finite", rows.source.c_str(),
             first + bad / rows.T, bad % rows.T);
}
