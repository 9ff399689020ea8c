// A streaming PGN reader: any number of games in constant memory, every move checked against the rules.
// It takes PGN as it is found: comments, clocks, NAGs, nested variations, `1...` continuations, CRLF, byte
// order marks, missing results, missing tags, several files in one stream, cut files, text or binary garbage
// between games. It gives the good games one by one, and counts the others by what was wrong with them.
#pragma once
#include "chess.h"
#include <cctype>
#include <cstring>
#include <functional>
#include <string>
#include <utility>

namespace chess {

struct PgnGame {
    std::vector<Move> moves;
    std::string text;   // `;1.e4 e5 2.Nf3`, exact SAN
    std::string result; // "1-0", "0-1", "1/2-1/2" or "*"; "*" also when there is none
};

// Every game that begins in the stream is counted once: as good, or under its first fault.
struct PgnCounts {
    uint64_t good = 0;
    uint64_t empty = 0;           // tags or a result, but no move
    uint64_t variant = 0;         // FEN, SetUp or Variant tag: not chess from the start position
    uint64_t illegal = 0;         // a move that is illegal, ambiguous, or no move at all
    uint64_t cut = 0;             // ends in the middle
    uint64_t overlong = 0;        // has more plies than the longest possible game
    uint64_t tags = 0, stray = 0; // tag pairs seen; words outside any game
    uint64_t bytes = 0;           // read from the source
    uint64_t games() const { return good + dropped(); }
    uint64_t dropped() const { return empty + variant + illegal + cut + overlong; }
};

// Fills up to n bytes and returns how many; 0 at the end. What goes wrong is thrown.
using ByteSource = std::function<size_t(char* to, size_t n)>;

struct PgnReader {
    PgnCounts counts;
    std::string first_illegal; // where the first illegal game went wrong, for a summary

    // name: for messages. chunk: bytes asked for at a time; it changes nothing but the speed.
    PgnReader(ByteSource source, std::string name, size_t chunk = 1 << 16)
        : source(std::move(source)), name(std::move(name)), buffer(chunk) {}

    // The next good game, or false at the end of the stream.
    bool next(PgnGame& game) {
        while (pending != NOTHING || peek() >= 0) {
            begin_game();
            read_game();
            if (!count_game()) continue;
            game = {moves, text, result};
            return true;
        }
        return false;
    }

    // For the end of a stream without a good game: throws what it was instead.
    void fail_if_none() const {
        const auto n = [](uint64_t x) { return (unsigned long long)x; };
        if (counts.good) return;
        if (counts.bytes == 0) fail("%s: empty, expected games in PGN", name.c_str());
        if (counts.tags == 0 && !any_move)
            fail("%s: not PGN: no game found in its %llu bytes", name.c_str(), n(counts.bytes));
        fail("%s: no usable game: %llu illegal, %llu cut, %llu FEN or variant, %llu without moves, %llu too "
             "long",
             name.c_str(), n(counts.illegal), n(counts.cut), n(counts.variant), n(counts.empty),
             n(counts.overlong));
    }

  private:
    enum Fault { GOOD, EMPTY, VARIANT, ILLEGAL, CUT, OVERLONG };
    enum Pending { NOTHING, WORD, EVENT_TAG };  // what has been read already though it is the next game's
    static constexpr size_t longest_word = 32;  // no word of PGN is longer
    static constexpr size_t longest_value = 64; // as much of a tag's value is kept
    static constexpr size_t most_plies = 17697; // the 75-move rule lets no game be longer

    ByteSource source;
    std::string name;
    std::vector<char> buffer;
    size_t at = 0, end = 0;
    bool line_start = true; // only blanks stand before the next byte in its line
    Pending pending = NOTHING;
    bool any_move = false; // a legal move has been seen in the stream

    // The game being read.
    Position position;
    MoveList legal; // of `position`
    std::vector<Move> moves;
    std::string text, result, word;
    bool active;   // a tag or the move number 1 has been seen
    bool event;    // its Event tag has been seen
    bool in_moves; // its tags are over
    size_t tried;  // words read as moves
    Fault fault;

    // --- Bytes

    int peek() {
        if (at == end) {
            at = 0;
            end = source(buffer.data(), buffer.size());
            counts.bytes += end;
            if (end == 0) return -1;
        }
        return (unsigned char)buffer[at];
    }
    int take() {
        const int c = peek();
        if (c < 0) return c;
        at++;
        line_start = c == '\n' || c == '\r' || (line_start && (c == ' ' || c == '\t'));
        return c;
    }
    bool at_line_end() { return peek() < 0 || peek() == '\n' || peek() == '\r'; }
    void skip_line() {
        while (!at_line_end()) take();
    }

    // --- Games

    void begin_game() {
        position = start_position();
        generate(position, legal);
        moves.clear();
        text = ';';
        result = '*';
        active = event = in_moves = false;
        tried = 0;
        fault = GOOD;
    }
    // Counts the game that has been read; true for a good one.
    bool count_game() {
        if (!active) return false;
        if (fault == GOOD && moves.empty()) fault = EMPTY;
        switch (fault) {
        case GOOD:
            counts.good++;
            break;
        case EMPTY:
            counts.empty++;
            break;
        case VARIANT:
            counts.variant++;
            break;
        case ILLEGAL:
            counts.illegal++;
            break;
        case CUT:
            counts.cut++;
            break;
        case OVERLONG:
            counts.overlong++;
            break;
        }
        return fault == GOOD;
    }
    void set_fault(Fault f) {
        if (fault == GOOD) fault = f;
    }

    // Up to and with the game's result, or up to what can only be the next game's, or to the end of the
    // stream.
    void read_game() {
        const Pending before = std::exchange(pending, NOTHING);
        if (before == EVENT_TAG) read_tag_value("Event");
        if (before == WORD && read_token()) return;
        for (size_t depth = 0;;) { // depth: open variations
            const int c = peek();
            if (c < 0) {
                // A whole file ends with a result or at least with a line end.
                if (depth > 0 || !in_moves || !line_start) set_fault(CUT);
                return;
            }
            const bool first = line_start;
            if (c == '[' && (first || !in_moves)) {
                // Tags behind moves are the next game's, so this one has no result. Inside a variation they
                // mean that the rest of this game is missing.
                if (in_moves) {
                    if (depth > 0) set_fault(CUT);
                    return;
                }
                read_tag();
            } else if (c == '{') {
                if (!skip_comment()) return;
            } else if (c == ';' || (c == '%' && first)) {
                skip_line();
            } else if (c == '$') {
                do take();
                while (peek() >= '0' && peek() <= '9');
            } else if (c == '(') {
                take();
                depth += active;
            } else if (c == ')') {
                take();
                depth -= depth > 0;
            } else if (is_word(c)) {
                read_word();
                if (depth == 0 && read_token()) return;
            } else {
                take();
            }
        }
    }

    // A comment ends with its brace. If that is missing, the comment swallows all games that follow; so a
    // line inside it that begins with [Event " is taken for the next game. False: that has happened.
    bool skip_comment() {
        static constexpr std::string_view event_tag = "[Event \"";
        take();
        for (size_t matched = 0; peek() >= 0;) {
            const bool first = line_start;
            const int c = take();
            if (c == '}') return true;
            matched = c == event_tag[matched] && (matched > 0 || first) ? matched + 1 : 0;
            if (matched == event_tag.size()) {
                pending = EVENT_TAG;
                set_fault(CUT);
                return false;
            }
        }
        set_fault(CUT);
        return true;
    }

    // [Name "value"]. Anything else in brackets is skipped to the bracket or the end of the line.
    void read_tag() {
        take();
        std::string tag;
        while (isalnum(peek()) || peek() == '_') {
            const char c = char(take());
            if (tag.size() < longest_word) tag += c;
        }
        while (peek() == ' ' || peek() == '\t') take();
        if (tag.empty() || peek() != '"') {
            counts.stray++;
            while (!at_line_end() && take() != ']') {
            }
            return;
        }
        take();
        if (tag == "Event" && event) { // a second one: the game before had no moves and no result
            count_game();
            begin_game();
        }
        read_tag_value(tag);
    }
    // The rest of a tag pair, the opening quote having been read.
    void read_tag_value(const std::string& tag) {
        std::string value;
        for (bool inside = true; !at_line_end();) {
            char c = char(take());
            if (c == '"') {
                inside = !inside;
                continue;
            }
            if (c == ']' && !inside) break;
            if (c == '\\' && !at_line_end()) c = char(take());
            if (inside && value.size() < longest_value) value += char(tolower((unsigned char)c));
        }
        counts.tags++;
        active = true;
        event |= tag == "Event";
        const bool standard = value.empty() || value == "standard" || value == "chess" || value == "normal";
        if (tag == "FEN" || (tag == "SetUp" && value != "0") || (tag == "Variant" && !standard))
            set_fault(VARIANT);
    }

    // --- Moves

    static bool is_word(int c) { return c > ' ' && c != 127 && !strchr("{}()[];$<>\"", c); }

    // A run of word bytes into `word`, cut at longest_word + 1; `*` is a word of its own.
    void read_word() {
        static constexpr std::string_view byte_order_mark = "\xEF\xBB\xBF";
        const bool first = line_start;
        word.clear();
        do {
            const char c = char(take());
            if (word.size() <= longest_word) word += c;
        } while (word != "*" && is_word(peek()) && peek() != '*');
        if (word.compare(0, 3, byte_order_mark) == 0) {
            word.erase(0, 3);
            if (word.empty()) line_start = first;
        }
    }

    // Takes `word` for what it is: a result, a move number, a move, or both in one. True when the game is
    // over.
    bool read_token() {
        if (word == "1-0" || word == "0-1" || word == "1/2-1/2" || word == "1/2" || word == "*") {
            result = word == "1/2" ? "1/2-1/2" : word;
            counts.stray += !active;
            return active;
        }
        std::string_view rest = word;
        const size_t digits = std::min(rest.find_first_not_of("0123456789"), rest.size());
        if (digits == rest.size() || rest[digits] == '.') {
            const bool one = rest.substr(0, digits) == "1";
            rest.remove_prefix(digits);
            const size_t dots = std::min(rest.find_first_not_of('.'), rest.size());
            rest.remove_prefix(dots);
            // `1.` after some moves: this game had no result, the next one has no tags.
            if (one && dots == 1 && tried > 1) {
                pending = WORD;
                return true;
            }
            if (one && dots > 0) active = true;
            in_moves = active;
            if (rest.empty()) return false;
        }
        if (!active) {
            counts.stray++;
            return false;
        }
        const bool null_move = rest.substr(0, 2) == "--";
        if (rest.empty() || rest == "e.p." || (strchr("!?+-=~#/", rest[0]) && !null_move)) return false;
        in_moves = true;
        play(rest);
        return false;
    }

    void play(std::string_view san) {
        tried++;
        if (fault != GOOD) return;
        if (moves.size() == most_plies) return set_fault(OVERLONG);
        const Move m = parse_san(position, san, legal).move;
        if (m == no_move) {
            // A word that the end of the stream has cut short is not a wrong move.
            set_fault(peek() < 0 ? CUT : ILLEGAL);
            if (fault == ILLEGAL && first_illegal.empty())
                first_illegal =
                    strf("game %llu, %d%s %s", (unsigned long long)counts.games() + 1, position.fullmove,
                         position.turn == WHITE ? "." : "...", quoted(std::string(san)).c_str());
            return;
        }
        any_move = true;
        if (!moves.empty()) text += ' ';
        if (position.turn == WHITE) text += std::to_string(position.fullmove) + '.';
        text += to_san(position, m, legal);
        moves.push_back(m);
        make(position, m);
        generate(position, legal);
    }
};

} // namespace chess
