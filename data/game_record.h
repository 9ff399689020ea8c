// A game as a file tells it, and the builder that checks it: word by word the moves are played by the rules,
// and the first thing that cannot belong to a game that was played from the usual start gives the reason why
// it is dropped. Only games whose every move is told and legal are good; the others are counted by reason,
// each reason with an example to look up in the file. Used by the readers of PGN, game text and CSV.
#pragma once
#include "chess.h"
#include "movetext.h"
#include <functional>
#include <utility>

namespace chess {

// Tag pairs, or the columns beside a game; names in lower case.
struct Tags {
    std::vector<std::pair<std::string, std::string>> list;

    void add(const std::string& name, const std::string& value) {
        if (list.size() < 64) list.push_back({name, value});
    }
    // "" when there is none.
    const std::string& find(std::string_view name) const {
        static const std::string none;
        for (const auto& tag : list)
            if (tag.first == name) return tag.second;
        return none;
    }
};

inline std::string lower(std::string text) {
    for (char& c : text) c = char(tolower((unsigned char)c));
    return text;
}

struct GameRecord {
    std::vector<Move> moves;
    std::string text;   // `;1.e4 e5 2.Nf3`, exact SAN
    std::string result; // "1-0", "0-1", "1/2-1/2" or "*"; "*" also when there is none
    Tags tags;
    size_t line = 0; // of the file, where the game begins; 1 is the first
};

// Why a game is not kept.
enum Fault {
    GOOD,
    NO_MOVES,
    OTHER_START,
    ILLEGAL,
    NULL_MOVE,
    NUMBERS,
    COMMENT,
    CUT,
    OVERLONG,
    UNWANTED,
    FAULTS
};
inline const char* fault_name(size_t fault) {
    static const char* names[FAULTS] = {"good",
                                        "without moves",
                                        "FEN or variant",
                                        "with an illegal move",
                                        "with a null move",
                                        "with a gap in the move numbers",
                                        "with a comment that has no clear end",
                                        "cut",
                                        "too long",
                                        "unwanted"};
    return names[fault];
}

// Every game that begins in a file is counted once: as good, or under its first fault.
struct GameCounts {
    uint64_t of[FAULTS] = {};
    std::string example[FAULTS];  // of the first such game: `line 12, 3... 'Ke9'`
    uint64_t tags = 0, stray = 0; // tag pairs seen; words outside any game

    uint64_t good() const { return of[GOOD]; }
    uint64_t games() const {
        uint64_t sum = 0;
        for (uint64_t n : of) sum += n;
        return sum;
    }
    uint64_t dropped() const { return games() - of[GOOD] - of[UNWANTED]; }
    // `1 illegal move (line 12, 3... 'Ke9'), 2 cut (line 40)`; "" when nothing was dropped.
    std::vector<std::string> reasons() const {
        std::vector<std::string> out;
        for (size_t f = NO_MOVES; f < UNWANTED; f++)
            if (of[f])
                out.push_back(
                    strf("%llu %s (%s)", (unsigned long long)of[f], fault_name(f), example[f].c_str()));
        return out;
    }
};

// A FEN, or what a [FEN] tag holds, that says the usual start: its clocks may be missing or anything, the
// castling rights may be written as in Chess960 (HAha), of which this is position 518.
inline bool is_usual_start(std::string fen) {
    const auto edge = [](char c) { return c == '"' || c == '\'' || c == ' ' || (unsigned char)c >= 0x80; };
    while (!fen.empty() && edge(fen.back())) fen.pop_back();
    while (!fen.empty() && edge(fen[0])) fen.erase(0, 1);
    std::vector<std::string> fields = {""};
    for (char c : fen)
        if (c != ' ')
            fields.back() += c;
        else if (!fields.back().empty())
            fields.push_back("");
    if (fields.size() < 3 || fields[0] != "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR" || fields[1] != "w")
        return false;
    std::string rights = fields[2];
    std::sort(rights.begin(), rights.end());
    return (rights == "KQkq" || rights == "AHah") && (fields.size() == 3 || fields[3] == "-");
}

// Do the tags say a game of standard chess from the usual start? Names of variants that may begin with any
// position are decided by the FEN that must come with them.
inline bool starts_as_usual(const Tags& tags) {
    const std::string &fen = tags.find("fen"), &set_up = tags.find("setup");
    const std::string variant = lower(tags.find("variant"));
    if (!fen.empty() && fen != "?" && fen != "-") {
        if (!is_usual_start(fen)) return false;
        for (const char* name : {"from position", "fromposition", "chess960", "chess 960", "fischerandom",
                                 "fischer random", "freestyle"})
            if (variant == name) return true;
    } else if (!set_up.empty() && set_up != "0" && set_up != "?" && set_up != "-") {
        return false;
    }
    for (const char* name :
         {"", "?", "-", "standard", "chess", "normal", "regular", "classic", "classical", "orthodox"})
        if (variant == name) return true;
    return false;
}

// Takes a game's words in their order. What must hold of the numbers: each is that of the move it stands
// before, three dots mean Black's move.
struct GameBuilder {
    static constexpr size_t most_plies = 17697; // the 75-move rule lets no game be longer

    GameRecord game;
    Position position;
    Fault fault = GOOD;
    std::string example; // of the fault
    size_t tried = 0;    // words read as moves
    bool ended = false;  // the result has come
    // Asked once, when the moves begin: is a game with these tags wanted at all? The moves of another are not
    // looked at.
    std::function<bool(const Tags&)> wanted;

    void begin() {
        position = start_position();
        legal_known = false;
        game.moves.clear();
        game.text = ';';
        game.result = '*';
        game.tags.list.clear();
        game.line = 0;
        fault = GOOD;
        example.clear();
        tried = 0;
        ended = begun = lone_knight = false;
        pawn.clear();
        split_result.clear();
    }

    void set_fault(Fault f, const std::string& where) {
        if (fault != GOOD) return;
        fault = f;
        example = where;
    }

    // word as read_move_word() gives it; raw: as it stands in the file, for messages; cut: the file ends
    // right behind it.
    void take(const MoveWord& word, const std::string& raw, size_t line, bool cut) {
        begin_moves();
        if (join_result(word, raw)) return;
        if (!split_result.empty()) number_gap(split_result, line);
        split_result.clear();
        if (word.kind == MoveWord::PROMOTION && !pawn.empty())
            return play(std::exchange(pawn, "") + "=" + word.text, raw, line, cut);
        if (!pawn.empty() && (word.kind != MoveWord::NOTE || word.number >= 0))
            illegal(std::exchange(pawn, ""), line, cut);
        if (!number_fits(word)) {
            // `1 - 0` in three words begins like this.
            if (word.dots == 0 && (raw == "1" || raw == "0")) {
                split_result = raw;
                return;
            }
            tried += word.kind != MoveWord::NOTE;
            return number_gap(raw, line);
        }
        switch (word.kind) {
        case MoveWord::NOTE:
            break;
        case MoveWord::RESULT:
            game.result = word.text;
            ended = true;
            break;
        case MoveWord::NULL_MOVE:
            tried++;
            set_fault(NULL_MOVE, where(raw, line));
            break;
        case MoveWord::PROMOTION: // of no pawn: `N` may be a novelty or a knight's move in two words
            if (raw == "N")
                lone_knight = true;
            else if (raw.size() == 1)
                illegal(raw, line, cut);
            break;
        case MoveWord::MOVE:
            if (std::exchange(lone_knight, false) && is_legal_san("N" + word.text))
                return illegal("N " + raw, line, cut);
            play(word.text, raw, line, cut);
            break;
        }
    }

    // For the last word of a text that may be cut anywhere: is it a number without its move, or only the
    // beginning of a move? or_long_castling: castling short counts as a beginning where long is legal, too.
    bool begins_a_move(std::string_view word, bool or_long_castling) {
        while (!word.empty() && words::one_of("0123456789.", word[0]) && word.substr(0, 3) != "0-0") {
            word.remove_prefix(1);
            if (word.empty()) return true;
        }
        if (fault != GOOD || word[0] == '-') return false;
        if (!std::exchange(legal_known, true)) generate(position, legal);
        bool found = false;
        for (Move m : legal) {
            const std::string san = to_san(position, m, legal);
            if (san == word && !or_long_castling) return false;
            found = found || (san.size() > word.size() && san.compare(0, word.size(), word) == 0 &&
                              !(parse_san(position, word, legal).move == m));
        }
        return found;
    }

    // The game is over; the fault it has, GOOD for none.
    Fault finish(size_t line) {
        begin_moves();
        if (!split_result.empty()) number_gap(split_result, line);
        if (!pawn.empty()) illegal(pawn, line, false);
        if (game.moves.empty()) set_fault(NO_MOVES, strf("line %zu", game.line));
        return fault;
    }

  private:
    MoveList legal; // of `position`, when legal_known
    bool legal_known = false, begun = false;
    bool lone_knight = false; // `N` was the word before
    std::string pawn;         // a pawn on its last rank whose piece has not been told yet
    std::string split_result; // `1` or `1-` of a result in several words

    // `line 12, 3... 'Ke9'`; the number in front of the word itself is not told twice.
    std::string where(std::string raw, size_t line) const {
        const size_t digits = std::min(raw.find_first_not_of("0123456789"), raw.size());
        const size_t dots = std::min(raw.find_first_not_of('.', digits), raw.size());
        if (digits < dots && dots < raw.size()) raw.erase(0, dots);
        return strf("line %zu, %d%s %s", line, position.fullmove, position.turn == WHITE ? "." : "...",
                    quoted(raw).c_str());
    }

    void begin_moves() {
        if (std::exchange(begun, true)) return;
        if (wanted && !wanted(game.tags)) return set_fault(UNWANTED, "");
        if (starts_as_usual(game.tags)) return;
        const char* name =
            game.tags.find("fen").empty() ? game.tags.find("variant").empty() ? "setup" : "variant" : "fen";
        set_fault(OTHER_START,
                  strf("line %zu, %s %s", game.line, name, quoted(game.tags.find(name)).c_str()));
    }

    bool join_result(const MoveWord& word, const std::string& raw) {
        if (split_result.empty()) return false;
        if (split_result.size() == 1 && (raw == "-" || raw == ":")) {
            split_result += '-';
            return true;
        }
        const char* result = words::result(split_result + raw);
        if (split_result.size() != 2 || word.dots || !*result) return false;
        game.result = result;
        ended = true;
        split_result.clear();
        return true;
    }

    bool number_fits(const MoveWord& word) const {
        if (word.number >= 0 && word.number != position.fullmove) return false;
        return word.dots < 3 || position.turn == BLACK;
    }
    void number_gap(const std::string& raw, size_t line) {
        set_fault(NUMBERS, strf("line %zu, %s where %d%s comes next", line, quoted(raw).c_str(),
                                position.fullmove, position.turn == WHITE ? "." : "..."));
    }
    // A word that the end of the file has cut short is not a wrong move.
    void illegal(const std::string& raw, size_t line, bool cut) {
        cut ? set_fault(CUT, strf("line %zu", line)) : set_fault(ILLEGAL, where(raw, line));
    }

    bool is_legal_san(const std::string& san) {
        if (!std::exchange(legal_known, true)) generate(position, legal);
        return parse_san(position, san, legal).move != no_move;
    }

    void play(const std::string& san, const std::string& raw, size_t line, bool cut) {
        tried++;
        if (fault != GOOD) return;
        if (game.moves.size() == most_plies) return set_fault(OVERLONG, strf("line %zu", game.line));
        if (!std::exchange(legal_known, true)) generate(position, legal);
        const Move m = parse_san(position, san, legal).move;
        if (m == no_move) {
            if (!is_legal_san(san + "=Q")) return illegal(raw, line, cut);
            pawn = san;
            return;
        }
        if (!game.moves.empty()) game.text += ' ';
        if (position.turn == WHITE) game.text += std::to_string(position.fullmove) + '.';
        game.text += to_san(position, m, legal);
        game.moves.push_back(m);
        make(position, m);
        generate(position, legal);
    }
};

} // namespace chess
