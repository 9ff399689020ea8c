// The rows of tokens that sparsity, router, probe and experts run a model on: samples of token shards of any tokenizer, or
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
inline const std::vector<std::string> game_phases = {"opening (moves 1-10)", "middle (11-25)", "late (26+)"};

void phases_of(const int32_t* tokens, size_t T, uint8_t* group);

// Classes of bytes, ASCII. A GPT-2 token is of the class of its first byte, of its second when the first is
// the blank before a word. End of text is of class other.
inline const std::vector<std::string> byte_class_names = {"lower case", "upper case",  "digit", "space",
                                                          "newline",    "punctuation", "other"};
uint8_t byte_class(const std::string& text);

// kind: of the tokens. gpt2_file: as for TextTokenizer; without one GPT-2's tokens are of one class.
void group_tokens(TokenRows& rows, Tokenizer kind, const std::string& gpt2_file);

// ---------------------------------------------------------------------------------------------------------
// Reading

// Refuses a --data that was not given.
void need_data(const std::string& data);

// Does the path name one file that is no token shard?
bool is_games_file(const std::string& path);

// The games of a set, a row each. Of no groups.
TokenRows game_rows(const GameSet& games);

// Up to `most` rows of T tokens for a model of config c, in the order of the file. T = 0: as long as model
// and data have them; of a game the first 256 characters, as in the board metrics, with their 20 moves of
// White. model: its file, for messages.
TokenRows token_rows(const std::string& data, const Config& c, size_t T, size_t most,
                     const std::string& gpt2_file, const std::string& model);

// Rows per batch that keep the activations of a batch at about 16K tokens.
inline size_t batch_rows(size_t T) { return std::max<size_t>(1, std::min<size_t>(16, 16384 / T)); }

// Refuses a batch of N tokens whose units, or what they see, are not finite. The head is not run for it: what
// the last layer sees shows what the others did.
void check_finite(Reader& reader, const TokenRows& rows, size_t first, size_t N);

// Runs the model over the rows in batches; visit(first row, rows) after each, with the reader holding all
// their tokens. What the model makes of them may not be finite.
template <class Visit> void read_rows(Reader& reader, const TokenRows& rows, const char* label, Visit visit) {
    if (rows.T > reader.max_T)
        fail("the model reads %zu tokens at most, expected the %zu of each row of %s", reader.max_T, rows.T,
             rows.source.c_str());
    Progress progress(label, "rows", double(rows.rows));
    for (size_t first = 0; first < rows.rows; first += reader.max_B) {
        const size_t B = std::min(reader.max_B, rows.rows - first);
        reader.read(rows.tokens.data() + first * rows.T, B, rows.T);
        visit(first, B);
        progress.update(double(first + B));
    }
    progress.finish(double(rows.rows));
}
