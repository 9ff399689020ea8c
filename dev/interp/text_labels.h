// What is true of a place in a text, for units of models of text: what boards.h is for models of chess. A
// property is a yes-or-no question about a token and its neighbours in the row; "fires when" goes before its
// words:
//   token, next token, token before   which one it is, and the same for its class of bytes (rows.h)
//   ending                            which two or three tokens end here
//   place                             in a word, in a number, at the start of a line, ..
// Which tokens and endings are asked about is what the rows that a unit's property is chosen on hold most of.
#pragma once
#include "boards.h"
#include "rows.h"
#include <unordered_map>

struct TextProperty {
    const char* function;
    std::string words, negated;
};

struct TextProperties {
    std::vector<std::string> vocabulary;         // (V) the bytes of every token; none: end of text
    std::vector<uint8_t> classes;                // (V) of rows.h
    std::vector<TextProperty> list;              // (P)
    std::unordered_map<uint64_t, size_t> of_key; // tokens and endings: the place in the list
    size_t first_class = 0, first_place = 0;     // the others begin there
};

constexpr size_t n_text_tokens = 256, n_text_endings = 256; // asked about at most, each
constexpr size_t least_seen = 10;                           // in the rows that properties are taken from

// Text that can be shown on one line: line ends and tabs are spelt out, other control characters and bytes
// that are not UTF-8 become hexadecimal.
inline std::string shown(const std::string& text) {
    std::string out;
    for (size_t i = 0, length; i < text.size(); i += std::max<size_t>(1, length)) {
        length = utf8_length(text.data() + i, text.size() - i);
        const unsigned char c = (unsigned char)text[i];
        if (length == 0 || c < 32 || c == 127)
            out += c == '\n' ? "\\n" : c == '\t' ? "\\t" : c == '\r' ? "\\r" : strf("\\x%02X", c);
        else
            out.append(text, i, length);
    }
    return out;
}

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
    if (t >= 1) f(TOKEN_BEFORE << 48 | id(t - 1)), f(TWO_END << 48 | id(t - 1) << 16 | id(t));
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
inline void check_known(const TokenRows& rows, const TextProperties& p) {
    for (const int32_t token : rows.tokens)
        if (size_t(token) >= p.vocabulary.size())
            fail("%s: token %d, expected less than the %zu of the tokenizer", rows.source.c_str(), token,
                 p.vocabulary.size());
}

inline TextProperties text_properties(const TokenRows& rows, Tokenizer kind, const std::string& gpt2_file) {
    TextProperties p;
    const TextTokenizer tokenizer = TextTokenizer::load(kind, gpt2_file);
    for (size_t id = 0; id < tokenizer.vocab_size(); id++) {
        p.vocabulary.push_back(tokenizer.decode(int32_t(id)));
        p.classes.push_back(byte_class(p.vocabulary.back()));
    }

    check_known(rows, p);
    std::unordered_map<uint64_t, size_t> counts;
    for (size_t i = 0; i < rows.size(); i++)
        text_keys(rows.tokens.data() + i / rows.T * rows.T, i % rows.T, rows.T,
                  [&](uint64_t key) { counts[key]++; });
    for (uint64_t k = 0; k < n_text_keys; k++) {
        std::vector<std::pair<size_t, uint64_t>> order;
        for (const auto& [key, n] : counts)
            if (key >> 48 == k && n >= least_seen) order.push_back({rows.size() - n, key});
        std::sort(order.begin(), order.end()); // the most frequent first
        order.resize(std::min(order.size(), k < TWO_END ? n_text_tokens : n_text_endings / 2));
        for (const auto& [rest, key] : order) {
            std::string text;
            for (int place = k == THREE_END ? 2 : k == TWO_END; place >= 0; place--)
                text += p.vocabulary[key >> (16 * place) & 0xFFFF];
            const std::string words = text.empty() ? " the end of a text" : " '" + shown(text) + "'";
            p.of_key[key] = p.list.size();
            p.list.push_back({text_key_names[k], text_key_words[k] + words, text_key_negated[k] + words});
        }
    }
    p.first_class = p.list.size();
    for (uint64_t k = 0; k < TWO_END; k++)
        for (const std::string& name : byte_class_names)
            p.list.push_back({text_key_names[k], std::string(text_key_words[k]) + " of class " + name,
                              std::string(text_key_negated[k]) + " of class " + name});
    p.first_place = p.list.size();
    for (const auto& [words, negated] : place_words) p.list.push_back({"place", words, negated});
    return p;
}

// ---------------------------------------------------------------------------------------------------------
// Where they hold

// Every token of the rows is labelled: token n of the labels is token n of the rows.
inline BoardLabels label_text(const TokenRows& rows, const TextProperties& p) {
    check_known(rows, p);
    BoardLabels labels;
    labels.tokens = rows.size();
    labels.words = (labels.tokens + 63) / 64;
    labels.bits.assign(p.list.size() * labels.words, 0);
    const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
    const auto is_capital = [](char c) { return c >= 'A' && c <= 'Z'; };
    const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
    const std::string nothing;
    for (size_t r = 0; r < rows.rows; r++) {
        const int32_t* row = rows.tokens.data() + r * rows.T;
        bool quoted = false;
        size_t capitals = 0; // that end here
        for (size_t t = 0; t < rows.T; t++) {
            const size_t n = r * rows.T + t;
            const auto set = [&](size_t i) {
                labels.bits[i * labels.words + n / 64] |= uint64_t(1) << n % 64;
            };
            text_keys(row, t, rows.T, [&](uint64_t key) {
                if (const auto found = p.of_key.find(key); found != p.of_key.end()) set(found->second);
                if (const uint64_t k = key >> 48; k < TWO_END)
                    set(p.first_class + k * byte_class_names.size() + p.classes[key & 0xFFFF]);
            });

            const std::string& here = p.vocabulary[size_t(row[t])];
            const std::string& before = t ? p.vocabulary[size_t(row[t - 1])] : nothing;
            const std::string& next = t + 1 < rows.T ? p.vocabulary[size_t(row[t + 1])] : nothing;
            const auto set_place = [&](TextPlace place, bool holds) {
                if (holds) set(p.first_place + place);
            };
            const char first = here.empty() ? 0 : here[here.size() > 1 && here[0] == ' '];
            const char last = here.empty() ? 0 : here.back(), left = before.empty() ? 0 : before.back();
            const bool joined = !here.empty() && here[0] == first; // no blank before the word
            for (const char c : here) {
                capitals = is_capital(c) ? capitals + 1 : 0;
                quoted = c == '"' ? !quoted : quoted && c != '\n';
            }
            if (here.empty()) capitals = 0, quoted = false;
            set_place(IN_WORD, joined && is_letter(first) && is_letter(left));
            set_place(WORD_BEGINS, is_letter(first) && !(joined && is_letter(left)));
            set_place(WORD_ENDS, is_letter(last) && t + 1 < rows.T && (next.empty() || !is_letter(next[0])));
            set_place(IN_NUMBER, joined && is_digit(first) && is_digit(left));
            set_place(LINE_BEGINS, left == '\n');
            set_place(IN_CAPITALS, capitals >= 2);
            set_place(IN_QUOTES, quoted);
        }
    }
    return labels;
}
