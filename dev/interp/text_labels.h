// What is true of a place in a text, for units of models of text: what boards.h is for models of chess. A
// property is a yes-or-no question about a token and its neighbours in the row; "fires when" goes before its
// words:
//   token, next token, token before   which one it is, and the same for its class of bytes (rows.h)
//   ending                            which two or three tokens end here
//   place                             in a word, in a number, at the start of a line, ..
//   position                          how far into the row
// What the token itself, the few before it and the position say is read, not known (said): such questions are
// the rivals (rules.h) of the others, which are about what comes next or stands far back. Which tokens and
// endings are asked about is what the rows that a unit's property is chosen on hold most of.
#pragma once
#include "boards.h"
#include "rows.h"
#include <unordered_map>

struct TextProperty {
    const char* function;
    std::string words, negated;
    bool said =
        false; // by the last tokens and the place in the row: a question about the text, and no knowledge
};

struct TextProperties {
    std::vector<std::string> vocabulary;         // (V) the bytes of every token; none: end of text
    std::vector<uint8_t> classes;                // (V) of rows.h
    std::vector<TextProperty> list;              // (P)
    std::unordered_map<uint64_t, size_t> of_key; // tokens and endings: the place in the list
    size_t first_class = 0, first_place = 0, first_position = 0; // the others begin there
    std::vector<size_t> positions;                               // in the row: asked whether so far
};

constexpr size_t n_text_tokens = 256, n_text_endings = 256; // asked about at most, each
constexpr size_t least_seen = 10;                           // in the rows that properties are taken from

// Text that can be shown on one line: line ends and tabs are spelt out, other control characters and bytes
// that are not UTF-8 become hexadecimal.
std::string shown(const std::string& text);

// ---------------------------------------------------------------------------------------------------------
// Which properties there are

// A token here, next or before; the two or three tokens that end here. A key is the kind and the tokens.
enum TextKey : uint64_t { TOKEN_HERE, TOKEN_NEXT, TOKEN_BEFORE, TWO_END, THREE_END, n_text_keys };
inline constexpr const char* text_key_names[] = {"token", "next token", "token before", "ending", "ending"};
inline constexpr const char* text_key_words[] = {"the token is", "the next token is", "the token before is",
                                                 "the text ends in", "the text ends in"};
inline constexpr const char* text_key_negated[] = {"the token is not", "the next token is not",
                                                   "the token before is not", "the text does not end in",
                                                   "the text does not end in"};

// f(key) for every key of token t of a row of T.
template <class F> void text_keys(const int32_t* row, size_t t, size_t T, F f) {
    const auto id = [&](size_t at) { return uint64_t(uint16_t(row[at])); };
    f(TOKEN_HERE << 48 | id(t));
    if (t + 1 < T) f(TOKEN_NEXT << 48 | id(t + 1));
    if (t >= 1) {
        f(TOKEN_BEFORE << 48 | id(t - 1));
        f(TWO_END << 48 | id(t - 1) << 16 | id(t));
    }
    if (t >= 2) f(THREE_END << 48 | id(t - 2) << 32 | id(t - 1) << 16 | id(t));
}

// Places, in the order of their bits.
enum TextPlace { IN_WORD, WORD_BEGINS, WORD_ENDS, IN_NUMBER, LINE_BEGINS, IN_CAPITALS, IN_QUOTES, n_places };
inline constexpr const char* place_words[][2] = {
    {"the token goes on with a word", "the token does not go on with a word"},
    {"the token begins a word", "the token does not begin a word"},
    {"the token ends a word", "the token does not end a word"},
    {"the token goes on with a number", "the token does not go on with a number"},
    {"the token begins a line", "the token does not begin a line"},
    {"two capital letters or more end here", "not two capital letters end here"},
    {"a quotation mark is open on this line", "no quotation mark is open on this line"}};

// A model's vocabulary may be larger than its tokenizer's.
void check_known(const TokenRows& rows, const TextProperties& p);

TextProperties text_properties(const TokenRows& rows, Tokenizer kind, const std::string& gpt2_file);

// ---------------------------------------------------------------------------------------------------------
// Where they hold

// Every token of the rows is labelled: token n of the labels is token n of the rows.
Labels label_text(const TokenRows& rows, const TextProperties& p);
