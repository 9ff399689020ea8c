// Games as text, a game or several to the line (`;1.e4 e5 2.Nf3;1.d4 ..`), and tables of them: CSV as the
// chess-GPT data sets have it, with a column `transcript`. Blank lines, a byte order mark, a header, quotes,
// separators of comma, semicolon or tab, other columns: all read. Columns named as PGN's tags (WhiteElo,
// Result, ..) become the game's tags.
#pragma once
#include "byte_reader.h"
#include "game_record.h"
#include <deque>

namespace chess {

// A record of a table: its fields, quotes taken off.
struct TableRecord {
    std::vector<std::string> fields;
    size_t line = 0;       // where it begins
    bool unclosed = false; // a quote without end: the file is over, or the field is longer than any game
};
inline constexpr size_t longest_field = 1 << 20;

// False at the end. separator 0: the whole line is one field. Lines that are blank are passed over.
inline bool read_record(ByteReader& bytes, char separator, TableRecord& record) {
    for (;;) {
        record.fields.assign(1, "");
        record.line = bytes.line;
        record.unclosed = false;
        bool quoted = false, any = false;
        for (;;) {
            const int c = bytes.peek();
            std::string& field = record.fields.back();
            if (c < 0 || (quoted && field.size() > longest_field)) {
                record.unclosed = quoted;
                if (!any) return false;
                break;
            }
            bytes.take();
            if (!quoted && (c == '\n' || c == '\r')) break;
            any = true;
            if (separator && c == '"' && quoted && bytes.peek() == '"') {
                bytes.take();
                field += '"';
            } else if (separator && c == '"' && (quoted || field.empty())) {
                quoted = !quoted;
            } else if (!quoted && separator && c == separator) {
                record.fields.push_back("");
            } else if (field.size() <= longest_field) {
                field += char(c == '\n' || c == '\r' ? ' ' : c);
            }
        }
        const bool blank = !record.unclosed && record.fields.size() == 1 &&
                           record.fields[0].find_first_not_of(" \t") == std::string::npos;
        if (!blank) return true;
    }
}

// Where in a table the games are.
struct TableLayout {
    char separator = 0; // 0: no table, a line is games
    bool header = false;
    size_t column = 0;
    std::vector<std::string> names; // of all columns, in lower case without blanks and underscores
};

inline std::string column_name(const std::string& text) {
    std::string name;
    for (char c : lower(text))
        if (isalnum((unsigned char)c)) name += c;
    return name;
}
inline bool is_game_text(const std::string& text) { return text.compare(0, 3, ";1.") == 0; }

// The layout of text that begins like this (whole lines, two or more if there are); false if it is neither
// game text nor a table of games. A table's games stand in the column of the name transcript or moves, or
// in the first that holds game text.
inline bool find_layout(std::string_view first, TableLayout& layout) {
    if (first.substr(0, 3) == "\xEF\xBB\xBF") first.remove_prefix(3);
    const size_t begin = std::min(first.find_first_not_of(" \t\r\n"), first.size());
    const std::string text(first.substr(begin));
    if (is_game_text(text)) {
        layout = {};
        return true;
    }
    for (const char separator : {',', '\t', ';'}) {
        ByteReader bytes(source_of(text));
        TableRecord heads, row;
        if (!read_record(bytes, separator, heads)) return false;
        const bool more = read_record(bytes, separator, row);
        layout = {separator, true, 0, {}};
        for (const std::string& head : heads.fields) layout.names.push_back(column_name(head));
        if (separator != ',' && layout.names.size() == 1) continue;
        for (const char* name : {"transcript", "moves"})
            for (size_t i = 0; i < layout.names.size(); i++)
                if (layout.names[i] == name) {
                    layout.column = i;
                    return true;
                }
        for (const bool header : {false, true}) {
            const TableRecord& record = header ? row : heads;
            for (size_t i = 0; i < record.fields.size() && (!header || more); i++)
                if (is_game_text(record.fields[i])) {
                    layout.column = i;
                    layout.header = header;
                    if (!header) layout.names.clear();
                    return true;
                }
        }
    }
    return false;
}

struct TextGameReader {
    GameCounts counts;

    // beginnings: games are given as they stand, unread and uncounted but for their number, for those who
    // look at beginnings only (a row's last game is cut anywhere, and what is behind its first part may be
    // anything); only text, line and tags are filled in.
    TextGameReader(ByteReader bytes, std::string name, TableLayout layout,
                   std::function<bool(const Tags&)> wanted = {}, bool beginnings = false)
        : bytes(std::move(bytes)), name(std::move(name)), layout(std::move(layout)), beginnings(beginnings) {
        builder.wanted = std::move(wanted);
        if (this->bytes.ahead(3) == "\xEF\xBB\xBF") this->bytes.skip(3);
        TableRecord heads;
        if (this->layout.header) read_record(this->bytes, this->layout.separator, heads);
    }
    uint64_t bytes_read() const { return bytes.bytes; }

    bool next(GameRecord& game) {
        for (;;) {
            while (games.empty())
                if (!next_record()) return false;
            const std::string text = games.front();
            games.pop_front();
            const bool last_of_several = of_record > 1 && games.empty();
            if (beginnings && text.compare(0, 2, "1.") == 0 && text.size() > 2 && text[2] != ' ') {
                game = {};
                game.text = ";" + text;
                game.line = record.line;
                add_tags(game);
                counts.of[GOOD]++;
                return true;
            }
            read_game(text, last_of_several);
            const Fault fault = builder.finish(record.line);
            if (counts.of[fault]++ == 0) counts.example[fault] = builder.example;
            if (fault != GOOD) continue;
            std::swap(game, builder.game);
            return true;
        }
    }

    void fail_if_none() const {
        if (counts.good()) return;
        std::string why;
        for (const std::string& reason : counts.reasons()) why += (why.empty() ? "" : ", ") + reason;
        fail("%s: no usable game%s", name.c_str(), why.empty() ? " in it" : (": " + why).c_str());
    }

  private:
    ByteReader bytes;
    std::string name;
    TableLayout layout;
    bool beginnings;
    TableRecord record;
    std::deque<std::string> games; // of the record, not given yet
    size_t of_record = 0;          // how many there were
    GameBuilder builder;

    bool next_record() {
        if (!read_record(bytes, layout.separator, record)) return false;
        games.clear();
        const std::string text = layout.column < record.fields.size() ? record.fields[layout.column] : "";
        for (size_t at = 0; at < text.size();) {
            const size_t end = std::min(text.find(';', at), text.size());
            if (text.find_first_not_of(" \t\r", at) < end) games.push_back(text.substr(at, end - at));
            at = end + 1;
        }
        if (games.empty()) games.push_back(""); // a record without a game counts as one without moves
        of_record = games.size();
        return true;
    }

    void add_tags(GameRecord& game) const {
        for (size_t i = 0; i < layout.names.size() && i < record.fields.size(); i++)
            if (i != layout.column && !record.fields[i].empty())
                game.tags.add(layout.names[i], record.fields[i]);
    }

    void read_game(const std::string& text, bool last_of_several) {
        builder.begin();
        builder.game.line = record.line;
        add_tags(builder.game);
        if (record.unclosed) builder.set_fault(CUT, strf("line %zu, a quote without end", record.line));
        const std::string plain = plain_movetext(text);
        for (size_t at = 0; at < plain.size() && !builder.ended;) {
            const size_t end = std::min(plain.find(' ', at), plain.size());
            const std::string word = plain.substr(at, end - at);
            at = end + 1;
            if (word.empty()) continue;
            if (at >= plain.size() && builder.begins_a_move(word, last_of_several))
                builder.set_fault(CUT, strf("line %zu, %s", record.line, quoted(word).c_str()));
            builder.take(read_move_word(word), word, record.line, false);
        }
    }
};

} // namespace chess
