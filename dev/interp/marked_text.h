// A text whose bytes are being marked, and what the readers of language.h ask of it.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

inline bool is_digit(char c) { return c >= '0' && c <= '9'; }
inline bool is_upper(char c) { return c >= 'A' && c <= 'Z'; }
inline bool is_letter(char c) { return is_upper(c) || (c >= 'a' && c <= 'z'); }
inline bool is_name(char c) { return is_letter(c) || is_digit(c) || c == '_'; }
inline bool is_blank(char c) { return c == ' ' || c == '\t'; }

// A text, and bits set on stretches of it.
template <class Bit> struct Marked {
    const std::string& text;
    std::vector<uint32_t> bits = std::vector<uint32_t>(text.size());

    explicit Marked(const std::string& text) : text(text) {}
    char at(size_t i) const { return i < text.size() ? text[i] : 0; }
    bool holds(size_t i, std::string_view s) const {
        return i < text.size() && text.compare(i, s.size(), s) == 0;
    }
    void mark(size_t begin, size_t end, Bit bit) {
        for (size_t i = begin; i < std::min(end, text.size()); i++) bits[i] |= 1u << int(bit);
    }
    // Behind the next s, or the end.
    size_t behind(std::string_view s, size_t from) const {
        const size_t found = text.find(s, from);
        return found == std::string::npos ? text.size() : found + s.size();
    }
    size_t line_end(size_t from) const { return std::min(text.find('\n', from), text.size()); }
    size_t skip_blanks(size_t i) const {
        while (is_blank(at(i))) i++;
        return i;
    }
    // Is there nothing but blanks between it and the begin of its line?
    bool first_on_line(size_t i) const {
        while (i > 0 && is_blank(text[i - 1])) i--;
        return i == 0 || text[i - 1] == '\n';
    }
    // Behind the closer that belongs to the opener at i, or as far as a group may reach.
    size_t behind_group(size_t i, char open, char close) const {
        const size_t most = std::min(text.size(), i + 10000);
        for (int depth = 0; i < most; i++) {
            if (text[i] == '\\') {
                i++;
                continue;
            }
            depth += text[i] == open;
            depth -= text[i] == close;
            if (depth == 0) return i + 1;
        }
        return most;
    }
};

inline std::string lower_word(const std::string& text, size_t begin, size_t end) {
    std::string word = text.substr(begin, end - begin);
    for (char& c : word) c = is_upper(c) ? char(c + 32) : c;
    return word;
}
