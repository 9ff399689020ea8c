// The concepts of texts: see concepts.h.
#include "concepts.h"

namespace {
bool is_upper(char c) { return c >= 'A' && c <= 'Z'; }
bool is_lower(char c) { return c >= 'a' && c <= 'z'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_word(char c) { return is_upper(c) || is_lower(c) || is_digit(c); }

// In the order of the list.
enum Bit {
    CAPITAL_WORD,
    LOWER_WORD,
    DIGIT_WORD,
    NON_ASCII,
    SPACES,
    CAPITALS,
    NO_WORD,
    SPACE,
    UPPER,
    DIGIT,
    WORD_BEGIN,
    WORD_END,
    NUMBER,
    QUOTED,
    LINE_BEGIN,
    LOWER,
    NEWLINE,
    PUNCTUATION,
    BLANK,
    DEPTH_1,
    DEPTH_2,
    DEPTH_3,
    IN_ROUND,
    IN_SQUARE,
    IN_CURLY,
    CLOSES_ROUND,
    CLOSES_SQUARE,
    CLOSES_CURLY,
    FAR,
    count
};
constexpr const char* names[][2] = {{"text", "a word with a capital first"},
                                    {"text", "a word with a small letter first"},
                                    {"text", "a word of digits alone"},
                                    {"text", "not ASCII"},
                                    {"text", "two white characters or more"},
                                    {"text", "a word of capitals alone"},
                                    {"text", "neither letter nor digit"},
                                    {"text", "white space"},
                                    {"text", "a capital letter"},
                                    {"text", "a digit"},
                                    {"word", "begins a word"},
                                    {"word", "ends a word"},
                                    {"word", "in a number"},
                                    {"word", "in quotes"},
                                    {"word", "begins a line"},
                                    {"bytes", "lower case"},
                                    {"bytes", "newline"},
                                    {"bytes", "punctuation"},
                                    {"bytes", "blank"},
                                    {"brackets", "in a bracket"},
                                    {"brackets", "two deep or more"},
                                    {"brackets", "three deep or more"},
                                    {"brackets", "a round one is the innermost"},
                                    {"brackets", "a square one is the innermost"},
                                    {"brackets", "a curly one is the innermost"},
                                    {"brackets", "closes a round one"},
                                    {"brackets", "closes a square one"},
                                    {"brackets", "closes a curly one"},
                                    {"brackets", "its opener is 8 bytes back or more"}};
static_assert(std::size(names) == count);

// Bits of every byte of a text. A bracket's own two bytes are inside it; a closer that fits no opener is
// none.
std::vector<uint32_t> byte_concepts(const std::string& text) {
    std::vector<uint32_t> bits(text.size());
    const auto set = [&](size_t i, Bit bit, bool holds) { bits[i] |= uint32_t(holds) << bit; };
    for (size_t i = 0, end; i < text.size(); i = end) { // words and runs of white space
        end = i + 1;
        const bool word = is_word(text[i]), space = is_space(text[i]);
        if (word || space)
            while (end < text.size() && (word ? is_word(text[end]) : is_space(text[end]))) end++;
        const bool digits = word && std::all_of(text.begin() + long(i), text.begin() + long(end), is_digit);
        const bool capitals = word && std::all_of(text.begin() + long(i), text.begin() + long(end), is_upper);
        for (size_t j = i; j < end; j++) {
            set(j, CAPITAL_WORD, word && is_upper(text[i]));
            set(j, LOWER_WORD, word && is_lower(text[i]));
            set(j, DIGIT_WORD, digits);
            set(j, CAPITALS, capitals && end - i >= 2);
            set(j, SPACES, space && end - i >= 2);
        }
        set(i, WORD_BEGIN, word);
        set(end - 1, WORD_END, word && end < text.size());
    }
    bool quoted = false;
    std::vector<std::pair<char, size_t>> open; // what closes it, and where it stands
    for (size_t i = 0; i < text.size(); i++) {
        const char c = text[i], before = i ? text[i - 1] : 0;
        set(i, NON_ASCII, (unsigned char)c >= 128);
        set(i, NO_WORD, !is_word(c));
        set(i, SPACE, is_space(c));
        set(i, UPPER, is_upper(c));
        set(i, DIGIT, is_digit(c));
        set(i, NUMBER,
            is_digit(c) || (c == '.' && is_digit(before) && i + 1 < text.size() && is_digit(text[i + 1])));
        quoted = c == '"' ? !quoted : quoted && c != '\n';
        set(i, QUOTED, quoted);
        set(i, LINE_BEGIN, i > 0 && before == '\n');
        set(i, LOWER, is_lower(c));
        set(i, NEWLINE, c == '\n');
        set(i, BLANK, c == ' ');
        set(i, PUNCTUATION, c > ' ' && (unsigned char)c < 127 && !is_word(c));
        if (c == '(') open.push_back({')', i});
        if (c == '[') open.push_back({']', i});
        if (c == '{') open.push_back({'}', i});
        const bool closes = !open.empty() && c == open.back().first;
        const size_t depth = open.size();
        set(i, DEPTH_1, depth >= 1);
        set(i, DEPTH_2, depth >= 2);
        set(i, DEPTH_3, depth >= 3);
        if (!depth) continue;
        const char kind = open.back().first;
        set(i, IN_ROUND, kind == ')');
        set(i, IN_SQUARE, kind == ']');
        set(i, IN_CURLY, kind == '}');
        set(i, CLOSES_ROUND, closes && kind == ')');
        set(i, CLOSES_SQUARE, closes && kind == ']');
        set(i, CLOSES_CURLY, closes && kind == '}');
        set(i, FAR, i - open.back().second >= 8);
        if (closes) open.pop_back();
    }
    return bits;
}
} // namespace

void label_text_concepts(Concepts& out, const std::vector<std::string>& vocabulary) {
    const size_t first = out.list.size();
    for (const auto& name : names) new_concept(out, {name[0], name[1]});
    for (size_t d = 0; d < out.documents(); d++) {
        const int32_t* row = out.rows.tokens.data() + d * out.rows.T;
        std::vector<size_t> end;
        std::string text;
        for (size_t t = 0; t < out.rows.T; t++) {
            text += vocabulary[size_t(row[t])];
            end.push_back(text.size());
        }
        carry_bits(out, first, byte_concepts(text), end, d * out.rows.T);
    }
}
