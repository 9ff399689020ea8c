// A streaming PGN reader: any number of games in constant memory, every move checked against the rules.
// It takes PGN as it is found: comments (also nested), clocks, NAGs, variations in either brackets, `1...`
// continuations, CRLF, byte order marks, missing results, missing tags, several files in one stream, cut
// files, text or binary garbage between games; data/movetext.h says how moves may be spelt. It gives the good
// games one by one, and counts the others by what is wrong with them (data/game_record.h).
#pragma once
#include "byte_reader.h"
#include "game_record.h"
#include <array>
#include <cstring>

namespace chess {

struct PgnReader {
    GameCounts counts;

    // name: for messages. wanted: see GameBuilder.
    PgnReader(ByteReader bytes, std::string name, std::function<bool(const Tags&)> wanted = {})
        : bytes(std::move(bytes)), name(std::move(name)) {
        builder.wanted = std::move(wanted);
    }

    uint64_t bytes_read() const { return bytes.bytes; }

    // The next good game, or false at the end of the stream.
    bool next(GameRecord& game) {
        while (pending != NOTHING || peek() >= 0) {
            begin_game();
            read_game();
            if (!count_game()) continue;
            std::swap(game, builder.game);
            return true;
        }
        return false;
    }

    // For the end of a stream without a good game: throws what it was instead.
    void fail_if_none() const {
        if (counts.good()) return;
        if (bytes.bytes == 0) fail("%s: empty, expected games in PGN", name.c_str());
        if (counts.tags == 0 && !any_move)
            fail("%s: not PGN: no game found in its %llu bytes", name.c_str(),
                 (unsigned long long)bytes.bytes);
        std::string why;
        for (const std::string& reason : counts.reasons()) why += (why.empty() ? "" : ", ") + reason;
        fail("%s: no usable game: %s", name.c_str(), why.c_str());
    }

  private:
    enum Pending { NOTHING, WORD, EVENT_TAG };   // what has been read already though it is the next game's
    static constexpr size_t lookahead = 8;       // bytes
    static constexpr size_t longest_word = 32;   // no word of PGN is longer
    static constexpr size_t longest_value = 255; // as much of a tag's value is kept

    ByteReader bytes;
    std::string name;
    bool line_start = true; // only blanks stand before the next byte in its line
    Pending pending = NOTHING;
    bool any_move = false; // a legal move has been seen in the stream

    // The game being read.
    GameBuilder builder;
    std::string word;
    bool active;   // a tag or the move number 1 has been seen
    bool event;    // its Event tag has been seen
    bool in_moves; // its tags are over
    size_t depth;  // open variations
    // Braces do not nest, says the standard, and people nest them. A comment is over at its first closing
    // brace; but if braces were opened inside it and another closing one follows, it was not over, and what
    // has been read since is taken back.
    size_t inner_braces;         // opened inside a comment and not closed yet
    size_t inner_closed;         // closed by taking back
    GameBuilder before_comment;  // as it was at the first closing brace, if inner_braces
    size_t depth_before_comment; //
    size_t moves_at_comment;     // how many there were at the end of the last comment; NONE before the first

    static constexpr size_t NONE = SIZE_MAX;

    // --- Bytes

    int peek() { return bytes.peek(); }
    int take() {
        const int c = bytes.take();
        line_start = c == '\n' || c == '\r' || (line_start && (c == ' ' || c == '\t'));
        return c;
    }
    std::string_view ahead() { return bytes.ahead(lookahead); }
    bool at_line_end() { return peek() < 0 || peek() == '\n' || peek() == '\r'; }

    // A character beyond ASCII that is a blank, or nothing, is passed over: it changes no line's start.
    bool skip_invisible() {
        if (peek() < 0x80) return false;
        const Character c = first_character(ahead());
        const char* plain = plain_text(c.code);
        if (!plain || (*plain && *plain != ' ')) return false;
        bytes.skip(c.bytes);
        return true;
    }
    void skip_blanks() {
        for (;;) {
            if (skip_invisible()) continue;
            if (peek() != ' ' && peek() != '\t') return;
            take();
        }
    }

    // --- Games

    void begin_game() {
        builder.begin();
        active = event = in_moves = false;
        depth = 0;
        inner_braces = inner_closed = 0;
        moves_at_comment = NONE;
    }
    void activate() {
        if (!active) builder.game.line = bytes.line;
        active = true;
    }
    void set_fault(Fault fault) { builder.set_fault(fault, strf("line %zu", bytes.line)); }

    // Counts the game that has been read; true for a good one.
    bool count_game() {
        if (!active) return false;
        if (inner_closed && inner_braces) set_fault(COMMENT);
        const Fault fault = builder.finish(bytes.line);
        if (counts.of[fault]++ == 0) counts.example[fault] = builder.example;
        return fault == GOOD;
    }

    // Up to and with the game's result, or up to what can only be the next game's, or to the end of the
    // stream.
    void read_game() {
        const Pending before = std::exchange(pending, NOTHING);
        if (before == EVENT_TAG) {
            activate();
            read_tag_value("event", '"');
        }
        if (before == WORD && read_token()) return;
        for (;;) {
            const int c = peek();
            if (c < 0) {
                // A whole file ends with a result or at least with a line end.
                if (!builder.ended && (depth > 0 || !in_moves || !line_start)) set_fault(CUT);
                return;
            }
            if (skip_invisible()) continue;
            const bool first = line_start;
            if (c == '[' && (!in_moves || (first && tag_ahead()))) {
                // Tags behind moves are the next game's, so this one has no result. Inside a variation they
                // mean that the rest of this game is missing.
                if (in_moves) {
                    if (depth > 0) set_fault(CUT);
                    return;
                }
                read_tag();
            } else if (c == '{') {
                if (!skip_comment()) return;
            } else if (c == '}') {
                take();
                close_brace();
            } else if (c == ';' || (c == '%' && first)) {
                skip_line();
            } else if (c == '$') {
                do take();
                while (peek() >= '0' && peek() <= '9');
            } else if (c == '(' && depth == 0 && promotion_ahead()) {
                word = "=";
                take_promotion();
                if (read_token()) return;
            } else if (c == '(' || c == '[') {
                take();
                depth += active;
            } else if (c == ')' || c == ']') {
                take();
                depth -= depth > 0;
            } else if (c == '<') {
                take();
                skip_blanks();
                if (peek() != '>') continue;
                take();
                word = "<>";
                if (depth == 0 && read_token()) return;
            } else if (is_word(c)) {
                read_word();
                if (depth == 0 && !word.empty() && read_token()) return;
            } else {
                take();
            }
        }
    }

    // If a comment's closing brace is missing, the comment swallows all games that follow; so a line inside
    // it that begins with [Event " is taken for the next game. False: that has happened.
    bool skip_comment() {
        static constexpr std::string_view event_tag = "[Event \"";
        take();
        size_t inner = 0;
        for (size_t matched = 0; peek() >= 0;) {
            const bool first = line_start;
            const int c = take();
            if (c == '}') {
                if (inner > 0 && inner_braces == 0) {
                    before_comment = builder;
                    depth_before_comment = depth;
                }
                inner_braces += inner;
                moves_at_comment = builder.game.moves.size();
                return true;
            }
            inner += c == '{';
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

    // A closing brace outside a comment.
    void close_brace() {
        if (inner_braces > 0) {
            inner_braces--;
            inner_closed++;
            builder = before_comment;
            depth = depth_before_comment;
            moves_at_comment = builder.game.moves.size();
        } else if (moves_at_comment != NONE && moves_at_comment != builder.game.moves.size()) {
            set_fault(COMMENT); // the last comment may have gone on up to here, or not
        }
    }

    // A comment to the end of the line. (Some write a semicolon between moves: then the next number follows.)
    void skip_line() {
        if (take() == ';' && in_moves) {
            skip_blanks();
            const std::string next = std::to_string(builder.position.fullmove) + ".";
            if (ahead().substr(0, next.size()) == next) return;
        }
        while (!at_line_end() && !(inner_braces && peek() == '}')) take();
    }

    // `[Name "`, or a name that counts without quotes? (A variation in brackets may begin a line, too.)
    bool tag_ahead() {
        const std::string_view text = bytes.ahead(2 * longest_word);
        const size_t begin = std::min(text.find_first_not_of(" \t", 1), text.size());
        size_t end = begin;
        while (end < text.size() && (isalnum((unsigned char)text[end]) || text[end] == '_')) end++;
        const size_t value = std::min(text.find_first_not_of(" \t", end), text.size());
        return end > begin && (value == text.size() || text[value] == '"' ||
                               says_start(lower(std::string(text.substr(begin, end - begin)))));
    }
    // Tags that decide where a game starts.
    static bool says_start(const std::string& tag) {
        return tag == "fen" || tag == "setup" || tag == "variant";
    }

    // [Name "value"], also with blanks inside the bracket. Anything else in brackets is skipped to the
    // bracket or the end of the line; but what decides where a game starts counts without quotes, too.
    void read_tag() {
        take();
        skip_blanks();
        std::string tag;
        while (isalnum(peek()) || peek() == '_') {
            const char c = char(take());
            if (tag.size() < longest_word) tag += char(tolower(c));
        }
        skip_blanks();
        const bool quoted = peek() == '"';
        if (tag.empty() || (!quoted && !says_start(tag))) {
            counts.stray++;
            while (!at_line_end() && take() != ']') {
            }
            return;
        }
        if (quoted) take();
        if (tag == "event" && event) { // a second one: the game before had no moves and no result
            count_game();
            begin_game();
        }
        activate();
        read_tag_value(tag, quoted ? '"' : 0);
    }
    // The rest of a tag pair, the opening quote having been read.
    void read_tag_value(const std::string& tag, char quote) {
        std::string value;
        for (bool inside = true; !at_line_end();) {
            char c = char(take());
            if (quote && c == quote) {
                inside = !inside;
                continue;
            }
            if (c == ']' && (!inside || !quote)) break;
            if (quote && c == '\\' && !at_line_end()) c = char(take());
            if (inside && value.size() < longest_value) value += c;
        }
        counts.tags++;
        event |= tag == "event";
        builder.game.tags.add(tag, value);
    }

    // --- Moves

    // The bytes that words are made of.
    static bool is_word(int c) {
        static constexpr auto table = [] {
            std::array<bool, 256> word = {};
            for (int byte = ' ' + 1; byte < 256; byte++)
                word[size_t(byte)] = byte != 127 && !words::one_of("{}()[];$<>\",", char(byte));
            return word;
        }();
        return c >= 0 && table[size_t(c)];
    }

    // `(Q)` and the like: no variation is so short.
    bool promotion_ahead() {
        const std::string_view next = ahead();
        return next.size() > 2 && words::one_of("QRBNqrbn", next[1]) && next[2] == ')';
    }
    void take_promotion() {
        if (word.empty() || word.back() != '=') word += '=';
        word += ahead()[1];
        bytes.skip(3);
        line_start = false;
    }

    // A run of word characters into `word`, made plain and cut at longest_word + 1; `*` is a word of its own.
    // Empty if there was nothing in it.
    void read_word() {
        word.clear();
        const auto add = [&](char c) {
            if (word.size() <= longest_word) word += c;
        };
        for (;;) {
            const int c = peek();
            if (c >= 0x80) {
                const Character character = first_character(ahead());
                const char* plain = plain_text(character.code);
                for (size_t i = 0; !plain && i < character.bytes; i++) add(bytes.waiting()[i]);
                for (const char* p = plain; p && *p && *p != ' '; p++) add(*p);
                bytes.skip(character.bytes);
                line_start = false;
                if (plain && *plain == ' ') return;
            } else if (c == '(' && promotion_ahead()) {
                take_promotion();
            } else if (is_word(c) && !(c == '*' && !word.empty())) {
                add(char(take()));
                if (word == "*") return;
            } else {
                return;
            }
        }
    }

    // Takes `word` for what it is. True when the game is over.
    bool read_token() {
        const MoveWord read = read_move_word(word);
        // `1.` after some moves: this game had no result, the next one has no tags.
        if (read.number == 1 && read.dots == 1 && builder.tried > 1) {
            pending = WORD;
            return true;
        }
        if (read.number == 1 && read.dots > 0) activate();
        if (!active) {
            counts.stray += read.number < 0 || read.kind != MoveWord::NOTE;
            return false;
        }
        in_moves |= read.kind != MoveWord::NOTE || read.number >= 0;
        if (builder.ended && read.kind != MoveWord::NOTE) set_fault(COMMENT);
        builder.take(read, word, bytes.line, peek() < 0);
        any_move |= !builder.game.moves.empty();
        // (Inside a comment that may go on the result may be part of it.)
        return builder.ended && inner_braces == 0;
    }
};

} // namespace chess
