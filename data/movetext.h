// The words of movetext as people and programs write them, made plain: characters beyond ASCII (blanks,
// dashes, figurines, fractions, the signs of the Informant; UTF-8 or Latin-1), move numbers, results in their
// spellings, null moves, signs and words for the reader (+-, N, ch, e.p., mate), promotions (e8(Q), e8 =Q).
// Knows how moves are spelt and nothing of where they are legal: data/game_record.h plays them.
#pragma once
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>
#include <string_view>

namespace chess {

// ---------------------------------------------------------------------------------------------------------
// Characters

struct Character {
    char32_t code;
    size_t bytes;
};

// The first character of a text that is not empty: UTF-8, or, where the bytes are not, one of Windows-1252,
// whose upper half is Latin-1 with punctuation where Latin-1 has control characters.
inline Character first_character(std::string_view text) {
    const auto byte = [&](size_t i) { return (unsigned char)text[i]; };
    const unsigned char lead = byte(0);
    const size_t n = lead < 0x80   ? 1
                     : lead < 0xC2 ? 0
                     : lead < 0xE0 ? 2
                     : lead < 0xF0 ? 3
                     : lead < 0xF5 ? 4
                                   : 0;
    if (n == 1) return {lead, 1};
    if (n > 1 && text.size() >= n) {
        char32_t code = lead & (0x7F >> n);
        bool whole = true;
        for (size_t i = 1; i < n; i++) {
            whole = whole && (byte(i) & 0xC0) == 0x80;
            code = code << 6 | (byte(i) & 0x3F);
        }
        if (whole) return {code, n};
    }
    switch (lead) {
    case 0x85:
        return {U'…', 1};
    case 0x86:
        return {U'†', 1};
    case 0x87:
        return {U'‡', 1};
    case 0x96:
    case 0x97:
        return {U'–', 1};
    default:
        return {lead, 1};
    }
}

// What a character beyond ASCII stands for in movetext: " " for a blank, "" for nothing at all, "~" for a
// sign to the reader, else ASCII; nullptr for a letter of no meaning here.
inline const char* plain_text(char32_t c) {
    const auto between = [&](char32_t low, char32_t high) { return c >= low && c <= high; };
    if (c == 0xA0 || c == 0x1680 || between(0x2000, 0x200A) || between(0x2028, 0x2029) || c == 0x202F ||
        c == 0x205F || c == 0x3000 || between(0x80, 0x9F))
        return " ";
    if (between(0x200B, 0x200F) || between(0x202A, 0x202E) || between(0x2060, 0x206F) || c == 0xFEFF ||
        c == 0x180E || between(0xFE00, 0xFE0F) || between(0x300, 0x36F))
        return ""; // zero width, directions, byte order marks, variants of the character before
    if (c == 0xAD || between(0x2010, 0x2015) || c == 0x2043 || c == 0x2212 || c == 0xFE58 || c == 0xFE63)
        return "-";
    switch (c) {
    case U'½':
        return "1/2";
    case U'…':
        return "...";
    case U'×':
    case U'✕':
    case U'✖':
    case U'⨯':
        return "x";
    case U'†':
    case U'‡':
        return "+";
    case U'∶':
        return ":";
    case U'⁄':
    case U'∕':
        return "/";
    case U'‼':
        return "!!";
    case U'⁇':
        return "??";
    case U'⁈':
        return "?!";
    case U'⁉':
        return "!?";
    default:
        break;
    }
    if (between(0x2654, 0x265F)) { // figurines, White's and Black's
        static const char* pieces[] = {"K", "Q", "R", "B", "N", ""};
        return pieces[(c - 0x2654) % 6];
    }
    if (between(0xFF01, 0xFF5E)) { // full width
        static const char* letters[] = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "a", "b",
                                        "c", "d", "e", "f", "g", "h", "x", "K", "Q", "R", "B", "N",
                                        "O", "-", "+", "=", "#", "/", ".", ":", "!", "?"};
        for (const char* letter : letters)
            if (char32_t(letter[0]) == c - 0xFEE0) return letter;
        return nullptr;
    }
    if (between(0x2190, 0x2BFF) || between(0x1F300, 0x1FAFF) || c == U'±' || c == U'«' || c == U'»' ||
        c == U'°' || c == U'·' || c == U'¹' || c == U'²' || c == U'³' || c == U'•')
        return "~"; // arrows, operators, shapes, pictures
    return nullptr;
}

// A whole text made plain: ASCII but for letters of no meaning, blanks and control characters all ` `.
inline std::string plain_movetext(std::string_view text) {
    std::string out;
    while (!text.empty()) {
        const Character c = first_character(text);
        const char* plain = c.code >= 0x80                   ? plain_text(c.code)
                            : c.code <= ' ' || c.code == 127 ? " "
                                                             : nullptr;
        out += plain ? std::string_view(plain) : text.substr(0, c.bytes);
        text.remove_prefix(c.bytes);
    }
    return out;
}

// ---------------------------------------------------------------------------------------------------------
// Words

struct MoveWord {
    enum Kind {
        NOTE,      // nothing but a number, dots, or something for the reader
        RESULT,    // text: 1-0, 0-1, 1/2-1/2 or *
        NULL_MOVE, // a move that is none: --, <>, 0000, Z0
        PROMOTION, // a piece for the pawn that has just moved; text: its letter
        MOVE,      // text: the move without what is behind it, castling with O, promotions with =
    } kind = NOTE;
    std::string text;
    int number = -1; // in front of it, -1: none. 12.Nf3 has number 12 and one dot, ...Nf6 has three dots
    size_t dots = 0;
};

namespace words {

// (A loop, which the compiler unrolls for the short sets here.)
constexpr bool one_of(std::string_view set, char c) {
    for (char s : set)
        if (s == c) return true;
    return false;
}
inline bool is_file(char c) { return c >= 'a' && c <= 'h'; }
inline bool is_rank(char c) { return c >= '1' && c <= '8'; }
inline bool is_digit(char c) { return c >= '0' && c <= '9'; }
// Takes `prefix` off the text if it begins with it.
inline bool take(std::string_view& text, std::string_view prefix) {
    if (text.substr(0, prefix.size()) != prefix) return false;
    text.remove_prefix(prefix.size());
    return true;
}

// "" if the word is no result. Dash or colon, 1/2 or 0.5, the letter O for a zero.
inline const char* result(std::string_view word) {
    if (word == "*") return "*";
    bool parted = false; // as every result is
    for (char c : word) parted = parted || c == '-' || c == ':' || c == '/';
    if (!parted || !one_of("01Oo.", word[0])) return "";
    while (word.size() > 3 && word.back() == '.') word.remove_suffix(1);
    std::string text;
    for (char c : word.substr(0, 8)) text += c == ':' ? '-' : c == 'O' || c == 'o' ? '0' : c;
    if (text == "1-0") return "1-0";
    if (text == "0-1") return "0-1";
    for (const char* drawn : {"1/2-1/2", "1/2", "1/2-", "0.5-0.5", ".5-.5"})
        if (text == drawn && word.size() == text.size()) return "1/2-1/2";
    return "";
}

inline bool null_move(std::string_view word) {
    if (!one_of("-<0Zz@nNp(", word[0])) return false;
    if (word.size() >= 2 && word.find_first_not_of('-') == std::string_view::npos) return true;
    for (std::string_view spelling :
         {"<>", "0000", "Z0", "z0", "@@@@", "null", "NULL", "Null", "pass", "(null)"})
        if (word == spelling) return true;
    return false;
}

// The length of the sign or word for the reader that the text begins with, 0 for none.
inline size_t note(std::string_view text) {
    const auto first_of = [&](std::initializer_list<std::string_view> notes) -> size_t {
        for (std::string_view n : notes)
            if (text.substr(0, n.size()) == n) return n.size();
        return 0;
    };
    switch (text[0]) {
    case '+':
        return first_of({"+--", "+"});
    case '-':
        return text.substr(0, 2) == "--" ? first_of({"--+"}) : 1; // -- alone is a null move
    case '=':
    case '#':
    case '!':
    case '?':
    case '/':
    case '\\':
    case '~':
    case '^':
    case '.':
        return 1;
    case 'e':
        return first_of({"e.p.", "e.p", "ep"});
    case 'c':
        return first_of({"check", "ch"});
    case 'd':
        return first_of({"dbl", "disc", "dis"});
    case 'm':
        return first_of({"mate", "mat"});
    case 'T':
        return first_of({"TN"});
    case 'R':
        return first_of({"RR"});
    case 'n':
        return first_of({"novelty"});
    case 'u':
        return first_of({"unclear"});
    case 'N': // novelty
    case 'D': // diagram
        return 1;
    default:
        return 0;
    }
}
// Nothing but such, as they stand alone or behind a move.
inline bool only_notes(std::string_view text) {
    while (!text.empty()) {
        const size_t length = note(text);
        if (length == 0) return false;
        text.remove_prefix(length);
    }
    return true;
}

// The length of the castling or move that the text begins with, 0 for none, and how to write it.
inline size_t core(std::string_view text, std::string& move) {
    move.clear();
    if (one_of("O0o", text[0])) {
        size_t length = 1, kings = 1;
        while (kings < 3 && length < text.size()) {
            const bool dash = text[length] == '-';
            if (length + dash >= text.size() || !one_of("O0o", text[length + dash])) break;
            length += dash + 1;
            kings++;
        }
        if (kings < 2) return 0;
        move = kings == 2 ? "O-O" : "O-O-O";
        return length;
    }
    size_t at = 0;
    char piece = 0;
    if (one_of("KQRBNPkqrn", text[0])) { // a small b is a file
        piece = char(text[0] & ~32);
        at = 1;
    }
    const auto square = [&](size_t i) {
        return i + 1 < text.size() && is_file(text[i]) && is_rank(text[i + 1]);
    };
    // Where the piece comes from may be said before where it goes: try the longest way to read it first.
    for (const int form : {7, 6, 5, 4, 3, 2, 1, 0}) {
        if (form == 1 && !piece) continue; // a pawn that captures tells its file
        size_t to = at;
        if (form & 4) {
            if (to >= text.size() || !is_file(text[to])) continue;
            to++;
        }
        if (form & 2) {
            if (to >= text.size() || !is_rank(text[to])) continue;
            to++;
        }
        if (form & 1) {
            if (to >= text.size() || !one_of("x-:", text[to])) continue;
            to++;
        }
        if (!square(to)) continue;
        if (piece) move += piece;
        move += text.substr(at, to + 2 - at);
        size_t length = to + 2;
        if ((piece == 0 || piece == 'P') && one_of("18", text[to + 1])) {
            std::string_view rest = text.substr(length);
            if (!take(rest, "=(") && !rest.empty() && one_of("=/(:", rest[0])) rest.remove_prefix(1);
            if (!rest.empty() && one_of("QRBNqrbn", rest[0])) {
                move += '=';
                move += char(rest[0] & ~32);
                rest.remove_prefix(1);
                take(rest, ")");
                length = text.size() - rest.size();
            }
        }
        return length;
    }
    return 0;
}

} // namespace words

// A word, its characters made plain already, taken for what it is. What is no move, note or result is a MOVE
// with its text as it stands, which nothing will find legal.
inline MoveWord read_move_word(std::string_view word) {
    MoveWord out;
    const auto is = [&](MoveWord::Kind kind, std::string_view text) {
        out.kind = kind;
        out.text = text;
        return out;
    };
    if (const char* result = words::result(word); *result) return is(MoveWord::RESULT, result);
    if (words::null_move(word)) return is(MoveWord::NULL_MOVE, word);

    // The number, and dots behind it or alone. (0-0 and 1/2 begin with a digit and are not numbers.)
    size_t digits = 0;
    while (digits < word.size() && words::is_digit(word[digits])) digits++;
    const bool number =
        digits > 0 && (digits == word.size() || word[digits] == '.' || isalpha((unsigned char)word[digits]));
    if (number) {
        out.number = digits > 6 ? 999999 : 0;
        for (size_t i = 0; i < digits && digits <= 6; i++) out.number = 10 * out.number + (word[i] - '0');
        word.remove_prefix(digits);
    }
    while (!word.empty() && word[0] == '.') {
        word.remove_prefix(1);
        out.dots++;
    }
    if (word.empty()) return out;
    if (const char* result = words::result(word); *result) return is(MoveWord::RESULT, result);
    if (words::null_move(word)) return is(MoveWord::NULL_MOVE, word);

    std::string move;
    if (const size_t length = words::core(word, move); length && words::only_notes(word.substr(length)))
        return is(MoveWord::MOVE, move);
    // A bare N is a promotion behind a pawn on the last rank and means a novelty elsewhere.
    std::string_view piece = word;
    if (!words::take(piece, "=(") && words::one_of("=/(", piece[0])) piece.remove_prefix(1);
    if (!piece.empty() && words::one_of(piece.size() < word.size() ? "QRBNqrbn" : "QRBN", piece[0])) {
        std::string_view behind = piece.substr(1);
        words::take(behind, ")");
        if (words::only_notes(behind)) return is(MoveWord::PROMOTION, std::string(1, char(piece[0] & ~32)));
    }
    if (words::only_notes(word)) return out;
    return is(MoveWord::MOVE, word);
}

} // namespace chess
