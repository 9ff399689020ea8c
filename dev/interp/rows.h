// The rows of tokens that sparsity and router run a model on: samples of token shards of any tokenizer, or
// the games of a PGN or game-text file. Every token belongs to a group, so that what a model does can be told
// apart by where it does it: in chess by the phase of the game, in text by the class of the byte.
#pragma once
#include "../../data/loader.h"
#include "../../data/tokenizer.h"
#include "units.h"

constexpr uint8_t no_group = 255;

struct TokenRows {
    std::string source;
    size_t rows = 0, T = 0;
    std::vector<int32_t> tokens;     // (rows,T)
    std::vector<std::string> groups; // their names
    std::vector<uint8_t> group;      // (rows,T) place in groups, or no_group

    size_t size() const { return rows * T; }
};

// ---------------------------------------------------------------------------------------------------------
// Groups

// Phases of a game by the number of the move that is being written, which changes at the space before it; a
// new game begins at ';'. What stands before a row's first ';' (in a stream) is of no phase.
inline const std::vector<std::string> phase_names = {"opening (moves 1-10)", "middle (11-25)", "late (26+)"};

inline void phases_of(const int32_t* tokens, size_t T, uint8_t* group) { // tokens of chess-32
    bool known = false;
    for (size_t t = 0, plies = 0; t < T; t++) {
        const char c = chess_char(tokens[t]);
        if (c == ';') known = true, plies = 0;
        plies += c == ' ';
        const size_t move = plies / 2 + 1;
        group[t] = !known ? no_group : move <= 10 ? 0 : move <= 25 ? 1 : 2;
    }
}

// Classes of bytes, ASCII. A GPT-2 token is of the class of its first byte, of its second when the first is
// the blank before a word. End of text is of class other.
inline const std::vector<std::string> byte_class_names = {"lower case", "upper case",  "digit", "space",
                                                          "newline",    "punctuation", "other"};
inline uint8_t byte_class(const std::string& text) {
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

// kind: of the tokens. gpt2_file: as for TextTokenizer; without one GPT-2's tokens are of one class.
inline void group_tokens(TokenRows& rows, Tokenizer kind, const std::string& gpt2_file) {
    rows.group.assign(rows.size(), 0);
    if (kind == TOKENIZER_CHESS) {
        rows.groups = phase_names;
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

// ---------------------------------------------------------------------------------------------------------
// Reading

// Does the path name one file that is no token shard?
inline bool is_games_file(const std::string& path) {
    struct stat st;
    if (stat(path.c_str(), &st) != 0 || !S_ISREG(st.st_mode)) return false;
    const MappedFile file(path);
    return file.size < sizeof shard_magic || memcmp(file.data, &shard_magic, sizeof shard_magic) != 0;
}

// Up to `most` rows of T tokens for a model of config c, in the order of the file. T = 0: as long as model
// and data have them; of a game the first 256 characters, as in the board metrics, with their 20 moves of
// White. model: its file, for messages.
inline TokenRows token_rows(const std::string& data, const Config& c, size_t T, size_t most,
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
        rows.T = T ? T : std::min<size_t>(c.block_size, 256);
        const GameSet games = read_games(data, rows.T, std::max<size_t>(1, rows.T * 20 / 256), most);
        rows.rows = games.size();
        for (const std::string& text : games.texts)
            for (const char character : text) rows.tokens.push_back(chess_id(character));
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

// Rows per batch that keep the activations of a batch at about 16K tokens.
inline size_t batch_rows(size_t T) { return std::max<size_t>(1, std::min<size_t>(16, 16384 / T)); }

// Runs the model over the rows in batches; visit(first row, rows) after each, with the reader holding all
// their tokens. Refuses a model whose logits are not finite.
template <class Visit> void read_rows(Reader& reader, const TokenRows& rows, const char* label, Visit visit) {
    Progress progress(label, "rows", double(rows.rows));
    for (size_t first = 0; first < rows.rows; first += reader.max_B) {
        const size_t B = std::min(reader.max_B, rows.rows - first), V = reader.config.vocab_size;
        reader.read(rows.tokens.data() + first * rows.T, B, rows.T);
        const float* logits = reader.logits();
        for (size_t n = 0; n < B * rows.T; n++)
            for (size_t i = 0; i < V; i++)
                if (!std::isfinite(logits[n * V + i]))
                    fail("%s: the model's logits at row %zu, token %zu are not finite", rows.source.c_str(),
                         first + n / rows.T, n % rows.T);
        visit(first, B);
        progress.update(double(first + B));
    }
    progress.finish(double(rows.rows));
}
