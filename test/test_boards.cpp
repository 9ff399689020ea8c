// Tests of the board functions (dev/interp/boards.h) and of their table (dev/interp/labels_csv.h): facts
// known from the definitions' own tests; every function against a slow implementation on a plain array of
// squares, which shares nothing with the bitboards; labels at dots against the board found by counting
// spaces; the table read back; files of every wrong kind.
#include "../data/selfplay.h"
#include "../dev/interp/labels_csv.h"
#include "../dev/lib/options.h"
#include "check.h"
#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#ifdef _OPENMP
#include <omp.h>
#endif

// ---------------------------------------------------------------------------------------------------------
// The rules and the board functions once more, square by square

struct SlowMove {
    int from, to, promotion; // promotion: 2 knight .. 5 queen, or 0
};

struct SlowBoard {
    int at[64] = {};     // 1 pawn .. 6 king, Black's negative
    int side = 1;        // 1 White, -1 Black
    bool rights[4] = {}; // K Q k q
    int passed = -1;     // the square a pawn has just gone over
    int clock = 0;

    bool attacked(int square, int by) const {
        for (int from = 0; from < 64; from++)
            if (at[from] * by > 0 && attacks(from, square)) return true;
        return false;
    }
    bool attacks(int from, int to) const {
        const int df = to % 8 - from % 8, dr = to / 8 - from / 8, f = std::abs(df), r = std::abs(dr);
        const int kind = std::abs(at[from]), sign = at[from] > 0 ? 1 : -1;
        if (from == to) return false;
        if (kind == 1) return dr == sign && f == 1;
        if (kind == 2) return f * r == 2;
        if (kind == 6) return f <= 1 && r <= 1;
        const bool straight = f == 0 || r == 0, diagonal = f == r;
        if (!((straight && kind != 3) || (diagonal && kind != 4))) return false;
        for (int i = 1; i < std::max(f, r); i++) {
            const int file = from % 8 + i * (df > 0 ? 1 : df < 0 ? -1 : 0);
            const int rank = from / 8 + i * (dr > 0 ? 1 : dr < 0 ? -1 : 0);
            if (at[rank * 8 + file] != 0) return false;
        }
        return true;
    }
    int king(int color) const { return int(std::find(at, at + 64, 6 * color) - at); }
    bool in_check(int color) const { return attacked(king(color), -color); }

    std::vector<SlowMove> pseudo_legal() const {
        std::vector<SlowMove> moves;
        for (int from = 0; from < 64; from++) {
            if (at[from] * side <= 0) continue;
            const int kind = std::abs(at[from]), rank = from / 8;
            for (int to = 0; to < 64; to++) {
                bool can = false;
                if (kind == 1) {
                    const int steps = (to / 8 - rank) * side, sideways = std::abs(to % 8 - from % 8);
                    const bool home = rank == (side > 0 ? 1 : 6);
                    if (sideways == 0 && steps == 1) can = at[to] == 0;
                    if (sideways == 0 && steps == 2) can = home && at[to] == 0 && at[from + 8 * side] == 0;
                    if (sideways == 1 && steps == 1) can = at[to] * side < 0 || to == passed;
                } else {
                    can = attacks(from, to) && at[to] * side <= 0;
                }
                if (!can) continue;
                if (kind == 1 && (to / 8 == 0 || to / 8 == 7))
                    for (int promotion = 2; promotion <= 5; promotion++)
                        moves.push_back({from, to, promotion});
                else
                    moves.push_back({from, to, 0});
            }
        }
        const int home = side > 0 ? 4 : 60;
        const auto safe = [&](int s) { return !attacked(s, -side); };
        if (rights[side > 0 ? 0 : 2] && !at[home + 1] && !at[home + 2] && safe(home) && safe(home + 1) &&
            safe(home + 2))
            moves.push_back({home, home + 2, 0});
        if (rights[side > 0 ? 1 : 3] && !at[home - 1] && !at[home - 2] && !at[home - 3] && safe(home) &&
            safe(home - 1) && safe(home - 2))
            moves.push_back({home, home - 2, 0});
        return moves;
    }
    SlowBoard after(SlowMove m) const {
        SlowBoard b = *this;
        const int kind = std::abs(at[m.from]);
        b.clock = kind == 1 || at[m.to] ? 0 : clock + 1;
        if (kind == 1 && m.to == passed) b.at[m.to - 8 * side] = 0;
        if (kind == 6 && m.to - m.from == 2) b.at[m.to + 1] = 0, b.at[m.to - 1] = 4 * side;
        if (kind == 6 && m.to - m.from == -2) b.at[m.to - 2] = 0, b.at[m.to + 1] = 4 * side;
        b.at[m.to] = m.promotion ? m.promotion * side : at[m.from];
        b.at[m.from] = 0;
        b.passed = kind == 1 && std::abs(m.to - m.from) == 16 ? (m.to + m.from) / 2 : -1;
        b.side = -side;
        const int king_home[] = {4, 4, 60, 60}, rook_home[] = {7, 0, 63, 56};
        for (int i = 0; i < 4; i++)
            b.rights[i] =
                rights[i] && b.at[king_home[i]] == (i < 2 ? 6 : -6) && b.at[rook_home[i]] == (i < 2 ? 4 : -4);
        return b;
    }
    std::vector<SlowMove> legal() const {
        std::vector<SlowMove> moves;
        for (const SlowMove& m : pseudo_legal())
            if (!after(m).in_check(side)) moves.push_back(m);
        return moves;
    }
    bool mate() const { return in_check(side) && legal().empty(); }
    bool en_passant() const {
        for (const SlowMove& m : legal())
            if (std::abs(at[m.from]) == 1 && m.to == passed) return true;
        return false;
    }
    // Sole piece between its king and an enemy slider: without it the king would be attacked from further
    // away.
    bool pinned(int square) const {
        const int color = at[square] > 0 ? 1 : -1, home = king(color);
        if (square == home) return false;
        SlowBoard without = *this;
        without.at[square] = 0;
        for (int from = 0; from < 64; from++)
            if (at[from] * color < 0 && !attacks(from, home) && without.attacks(from, home)) return true;
        return false;
    }
};

// The same for repetition: pieces, side, rights, and en passant where it is legal.
static bool same_position(const SlowBoard& a, const SlowBoard& b) {
    return std::equal(a.at, a.at + 64, b.at) && a.side == b.side &&
           std::equal(a.rights, a.rights + 4, b.rights) &&
           (a.passed == b.passed || (!a.en_passant() && !b.en_passant()));
}
static bool slow_claim(const std::vector<SlowBoard>& history) {
    const SlowBoard& b = history.back();
    const std::vector<SlowMove> moves = b.legal();
    const auto seen = [&](const SlowBoard& other) {
        return std::count_if(history.begin(), history.end(),
                             [&](const SlowBoard& x) { return same_position(x, other); });
    };
    if (b.clock >= 100 && !moves.empty()) return true;
    if (seen(b) >= 3) return true;
    for (const SlowMove& m : moves) {
        const SlowBoard next = b.after(m);
        if (next.clock > 0 && b.clock >= 99 && !next.legal().empty()) return true;
        if (history.size() > 4 && seen(next) >= 2) return true;
    }
    return false;
}

static SlowBoard slow_board(const chess::Position& p) {
    SlowBoard b;
    for (int s = 0; s < 64; s++) b.at[s] = p.board[s];
    b.side = p.turn == chess::WHITE ? 1 : -1;
    for (int i = 0; i < 4; i++) b.rights[i] = p.castling >> i & 1;
    b.passed = p.en_passant, b.clock = p.halfmove;
    return b;
}

// All answers by function, as a list of cells.
using Answers = std::map<std::string, std::vector<int>>;
static Answers slow_answers(const std::vector<SlowBoard>& history) {
    const SlowBoard& b = history.back();
    static const SlowBoard start = slow_board(chess::start_position());
    const std::vector<SlowMove> legal = b.legal();
    const int us = b.side;
    Answers a;
    const auto one_hot = [&](const char* name, size_t classes, size_t s, int cls) {
        std::vector<int>& cells = a[name];
        cells.resize(64 * classes);
        if (cls >= 0) cells[s * classes + size_t(cls)] = 1;
    };
    for (const char* name : {"threat_state", "legal_moves_state", "pseudo_legal_moves_state"})
        a[name].resize(64);
    for (size_t s = 0; s < 64; s++) {
        const int piece = b.at[s];
        one_hot("piece_state", 13, s, piece + 6);
        one_hot("piece_masked_blank_state", 13, s, piece ? piece + 6 : -1);
        one_hot("piece_masked_blank_and_initial_state", 13, s,
                piece && piece != start.at[s] ? piece + 6 : -1);
        one_hot("piece_color_state", 3, s, piece > 0 ? 2 : piece == 0);
        one_hot("prev_state", 13, s, 6 + (history.size() >= 26 ? history[history.size() - 26].at[s] : 0));
        a["threat_state"][s] = b.attacked(int(s), -1);
    }
    bool check_next = false, mate_next = false, take_queen = false, ambiguous = false;
    int queen = 63;
    while (queen >= 0 && b.at[queen] != -5 * us) queen--;
    for (const SlowMove& m : legal) {
        if (us > 0) a["legal_moves_state"][size_t(m.to)] = 1;
        const SlowBoard next = b.after(m);
        check_next |= next.in_check(-us), mate_next |= next.mate(), take_queen |= m.to == queen;
        for (const SlowMove& other : legal)
            ambiguous |= other.to == m.to && other.from != m.from && b.at[other.from] == b.at[m.from];
    }
    for (const SlowMove& m : b.pseudo_legal()) a["pseudo_legal_moves_state"][size_t(m.to)] = 1;

    int pins = 0, knight_pairs = 0, pairs[7][7] = {}, count[7] = {}, connected = 0;
    bool fork = false;
    const int worth[] = {0, 1, 3, 3, 5, 9, 100};
    for (int s = 0; s < 64; s++) {
        if (b.at[s] == 0) continue;
        const bool pinned = b.pinned(s);
        pins += pinned;
        if (b.at[s] * us < 0) continue;
        const int kind = std::abs(b.at[s]);
        count[kind]++;
        int more_valuable = 0;
        for (int t = 0; t < 64; t++) {
            if (kind == 4 && t != s && b.at[t] == b.at[s] && b.attacks(s, t)) connected++;
            if (pinned || b.at[t] * us >= 0 || !b.attacks(s, t)) continue;
            const int target = std::abs(b.at[t]);
            if (kind == 2 && target >= 4) knight_pairs++;
            if (kind == 1 ? target >= 2 : kind <= 3 ? target >= 4 : kind == 4 && target >= 5)
                pairs[kind][target]++;
            more_valuable += worth[target] > worth[kind];
        }
        fork |= more_valuable >= 2;
    }
    bool any_fork = false;
    for (const auto& row : pairs)
        for (const int n : row) any_fork |= n >= 2;
    bool threat = false;
    if (!b.in_check(us)) {
        SlowBoard passed = b;
        passed.side = -us, passed.passed = -1;
        for (const SlowMove& m : passed.legal()) threat |= passed.after(m).mate();
    }
    const bool king_side = b.rights[us > 0 ? 0 : 2], queen_side = b.rights[us > 0 ? 1 : 3];
    a["check_state"] = {b.in_check(us)};
    a["pin_state"] = {pins > 0};
    a["specific_fork"] = {knight_pairs >= 2};
    a["any_fork"] = {any_fork};
    a["has_castling_rights"] = {king_side || queen_side};
    a["has_kingside_castling_rights"] = {king_side};
    a["has_queenside_castling_rights"] = {queen_side};
    a["has_legal_en_passant"] = {b.en_passant()};
    a["can_claim_draw"] = {slow_claim(history)};
    a["can_check_next"] = {check_next};
    a["has_bishop_pair"] = {count[3] >= 2};
    a["has_mate_threat"] = {mate_next};
    a["can_capture_queen"] = {take_queen};
    a["has_queen"] = {count[5] > 0};
    a["has_connected_rooks"] = {connected > 0};
    a["ambiguous_moves"] = {ambiguous};
    a["is_stalemate"] = {legal.empty() && !b.in_check(us)};
    a["material"] = {count[1] + 3 * count[2] + 3 * count[3] + 5 * count[4] + 9 * count[5]};
    a["number_of_pieces"] = {count[1] + count[2] + count[3] + count[4] + count[5]};
    a["fork"] = {fork};
    a["opponent_mate_threat"] = {threat};
    return a;
}

// Where the two implementations differ first, or nothing.
static std::string difference(const BoardHistory& history, const std::vector<SlowBoard>& slow) {
    static std::vector<uint8_t> cells;
    label_position(history, cells);
    const Answers answers = slow_answers(slow);
    if (cells.size() != total_cells() || answers.size() != n_board_functions) return "their sizes";
    size_t cell = 0;
    for (size_t f = 0; f < n_board_functions; f++) {
        const BoardFunction& function = board_functions[f];
        const std::vector<int>& expected = answers.at(function.name);
        if (!function.binary) {
            const int got = std::string(function.name) == "material" ? material_of(history.position())
                                                                     : number_of_pieces(history.position());
            if (got != expected[0]) return strf("%s: %d, not %d", function.name, got, expected[0]);
            continue;
        }
        if (expected.size() != cells_of(function)) return strf("%s: its size", function.name);
        for (size_t i = 0; i < expected.size(); i++, cell++)
            if (cells[cell] != expected[i])
                return strf("%s, cell %zu: %d, not %d", function.name, i, cells[cell], expected[i]);
    }
    return cell == total_cells() ? "" : "cells left over";
}

// ---------------------------------------------------------------------------------------------------------
// The table, and facts

static void test_table() {
    const std::vector<std::string> measured =
        split("piece_state piece_masked_blank_state piece_masked_blank_and_initial_state "
              "piece_color_state threat_state legal_moves_state pseudo_legal_moves_state "
              "check_state pin_state specific_fork any_fork has_castling_rights "
              "has_kingside_castling_rights has_queenside_castling_rights has_legal_en_passant "
              "can_claim_draw can_check_next has_bishop_pair has_mate_threat can_capture_queen "
              "has_queen has_connected_rooks ambiguous_moves",
              ' ');
    for (size_t f = 0; f < n_board_functions; f++) {
        const BoardFunction& function = board_functions[f];
        check(function.measured == (f < 23), "%s", function.name);
        check(f >= 23 || function.name == measured[f], "%s", function.name);
        check(board_function(function.name) == f, "%s", function.name);
        check(function.binary == (cells_of(function) > 0), "%s", function.name);
        check(first_cell(f) + cells_of(function) == first_cell(f + 1), "%s", function.name);
        check((function.negation != nullptr) == (cells_of(function) == 1), "%s", function.name);
    }
    check(n_board_functions == 29 && measured.size() == 23);
    check(first_cell(23) == 832 * 3 + 192 + 64 * 3 + 16 && total_cells() == 3731);
    check(board_function("no_such") == n_board_functions && board_function("") == n_board_functions);
    const std::vector<std::string> strategy =
        split("threat_state legal_moves_state check_state can_check_next has_queen "
              "can_capture_queen has_bishop_pair has_castling_rights has_kingside_castling_rights "
              "has_queenside_castling_rights any_fork pin_state has_legal_en_passant "
              "ambiguous_moves",
              ' ');
    check(strategy.size() == 14);
    for (const BoardFunction& f : board_functions)
        check(f.strategy == (std::count(strategy.begin(), strategy.end(), f.name) == 1), "%s", f.name);
    check(board_functions[1].masked == 6 && board_functions[2].masked == 6 &&
          board_functions[0].masked == -1);
}

static BoardHistory history_of(const std::string& text) {
    const chess::GameTextReader reader = chess::parse_game_text(text[0] == ';' ? text : ";" + text);
    check(reader.ok() && reader.token.empty(), "%s: %s", text.c_str(), reader.error.c_str());
    BoardHistory history;
    for (chess::Move m : reader.moves) history.play(m);
    return history;
}
static int answer(const BoardHistory& history, const char* function) {
    std::vector<uint8_t> cells;
    label_position(history, cells);
    check(cells_of(board_functions[board_function(function)]) == 1, "%s", function);
    return cells[first_cell(board_function(function))];
}
static int answer(const std::string& fen, const char* function) {
    return answer(BoardHistory(chess::parse_fen(fen)), function);
}

static void test_facts() {
    // After 1.e4 e5 2.Nf3: rows from rank 1.
    const int rows[8][8] = {{4, 2, 3, 5, 6, 3, 0, 4},        {1, 1, 1, 1, 0, 1, 1, 1},
                            {0, 0, 0, 0, 0, 2, 0, 0},        {0, 0, 0, 0, 1, 0, 0, 0},
                            {0, 0, 0, 0, -1, 0, 0, 0},       {0, 0, 0, 0, 0, 0, 0, 0},
                            {-1, -1, -1, -1, 0, -1, -1, -1}, {-4, -2, -3, -5, -6, -3, -2, -4}};
    std::vector<uint8_t> cells;
    label_position(history_of("1.e4 e5 2.Nf3"), cells);
    check(cells[10] == 1 && cells[8] == 0); // a1: class 10, a white rook
    for (size_t s = 0; s < 64; s++)
        for (int cls = 0; cls < 13; cls++)
            check(cells[s * 13 + size_t(cls)] == (rows[s / 8][s % 8] + 6 == cls), "%zu %d", s, cls);
    const size_t masked = first_cell(2);
    check(std::count(cells.begin() + long(masked), cells.begin() + long(masked) + 832, 1) == 3);
    check(cells[masked + 28 * 13 + 7] && cells[masked + 36 * 13 + 5] && cells[masked + 21 * 13 + 8]);

    // The text as tokens; whose move a character belongs to: the board, and with it the turn, changes on the
    // space behind a move.
    const int ids[] = {15, 6, 4, 27, 9, 0, 25, 10, 0, 7, 4, 19};
    for (size_t i = 0; i < std::size(ids); i++) check(chess_id(";1.e4 c5 2.N"[i]) == ids[i], "%zu", i);
    chess::GameTextReader moving, three;
    std::string turns;
    for (const char c : std::string(";1.e4 c5 2.Nf3 d6 3")) {
        moving.push(c);
        turns += moving.position.turn == chess::WHITE ? 'w' : 'b';
    }
    check(turns == "wwwwwbbbwwwwwwbbbww", "%s", turns.c_str()); // White 0-4, 8-13, 17-18; Black 5-7, 14-16
    for (const char c : std::string(";1.e4 e5 2.Nf3")) three.push(c);
    check(three.moves.size() == 2);
    three.push(' '); // the state after 2.Nf3 is that of the last character alone
    check(three.moves.size() == 3 && three.position.board[21] == chess::KNIGHT);

    const BoardHistory start;
    for (const char* f :
         {"pin_state", "has_legal_en_passant", "can_claim_draw", "is_stalemate", "can_check_next",
          "has_mate_threat", "can_capture_queen", "has_connected_rooks", "ambiguous_moves", "check_state",
          "specific_fork", "any_fork", "fork", "opponent_mate_threat"})
        check(answer(start, f) == 0, "%s", f);
    for (const char* f : {"has_castling_rights", "has_kingside_castling_rights",
                          "has_queenside_castling_rights", "has_bishop_pair", "has_queen"})
        check(answer(start, f) == 1, "%s", f);
    check(material_of(start.position()) == 39 && number_of_pieces(start.position()) == 15);

    check(answer(history_of("1.e4 e5 2.d3 f6 3.Nd2 Bb4"), "pin_state") == 1);
    const std::string castled =
        "1.e4 d5 2.Nc3 dxe4 3.Nxe4 Nf6 4.d3 e6 5.Be3 h6 6.Qf3 Be7 7.O-O-O"; // Black to move
    check(answer(history_of(castled), "has_kingside_castling_rights") == 1);
    for (const char* f :
         {"has_castling_rights", "has_kingside_castling_rights", "has_queenside_castling_rights"})
        check(answer(history_of(castled + " Nh5"), f) == 0, "%s", f);
    check(answer(history_of("1.e4 Nc6 2.e5 f5"), "has_legal_en_passant") == 1);
    check(answer(history_of("1.e4 Nc6 2.e5 f5 3.d4 d6"), "has_legal_en_passant") == 0);
    check(answer(history_of("1.e4 f5"), "can_check_next") == 1);
    check(answer(history_of("1.e4 g6 2.Qh5"), "can_capture_queen") == 1);
    const BoardHistory rooks = history_of("1.a4 d6 2.Ra3 e6 3.h4 f6 4.Rhh3 c6");
    check(answer(rooks, "has_connected_rooks") == 1 && answer(rooks, "ambiguous_moves") == 1);
    check(answer(history_of("1.e4 f6 2.Nc3 g5"), "has_mate_threat") == 1);
    check(
        answer(history_of("1.e3 a5 2.Qh5 Ra6 3.Qxa5 h5 4.h4 Rah6 5.Qxc7 f6 6.Qxd7+ Kf7 7.Qxb7 Qd3 8.Qxb8 Qh7 "
                          "9.Qxc8 Kg6 10.Qe6"),
               "is_stalemate") == 1);
    check(answer(history_of("1.e4 d5 2.Bc4 dxc4"), "has_bishop_pair") == 0);
    check(answer(history_of("1.e4 g6 2.Qh5 gxh5"), "has_queen") == 0);
    const BoardHistory taken = history_of("1.e4 d5 2.exd5");
    check(material_of(taken.position()) == 38 && number_of_pieces(taken.position()) == 14);

    // Draws. Black brings the position about for the third time only at the end; before, White may claim with
    // the move that does it.
    const std::string there = "1.Nf3 Nc6 2.Ng1 Nb8 ", again = "3.Nf3 Nc6 4.Ng1 Nb8 ",
                      third = "5.Nf3 Nc6 6.Ng1 Nb8";
    check(answer(history_of(there + again + third), "can_claim_draw") == 1);
    check(answer(history_of(there + "3.Nf3 Nc6 4.Ng1 Nb8"), "can_claim_draw") == 1); // the start three times
    check(answer(history_of(there + "3.Nf3 Nc6 4.Ng1"), "can_claim_draw") == 1);     // .. with Nb8
    check(answer(history_of(there + "3.Nf3 Nc6"), "can_claim_draw") == 0);
    // The first time the rook's right was still there: another position.
    check(answer(history_of("1.a4 a5 2.Ra3 Ra6 3.Ra1 Ra8 4.Ra3 Ra6 5.Ra1"), "can_claim_draw") == 0);
    check(answer(history_of("1.a4 a5 2.Ra3 Ra6 3.Ra1 Ra8 4.Ra3 Ra6 5.Ra1 Ra8 6.Ra3"), "can_claim_draw") == 1);
    check(answer("7k/8/8/8/8/8/8/R6K w - - 99 80", "can_claim_draw") == 1);
    check(answer("7k/8/8/8/8/8/8/R6K w - - 98 80", "can_claim_draw") == 0);
    check(answer("7k/8/8/8/8/8/8/R6K b - - 100 80", "can_claim_draw") == 1);
    check(answer("8/8/8/8/8/2k5/p7/K7 w - - 99 80", "can_claim_draw") == 0);  // only a capture
    check(answer("7k/5Q2/8/8/8/8/8/K7 b - - 100 80", "can_claim_draw") == 0); // stalemate: no legal move

    // Castling needs free and safe squares, the right does not.
    const size_t legal = cell_of("legal_moves_state");
    const auto can_move_to = [&](const std::string& fen, size_t square) {
        label_position(BoardHistory(chess::parse_fen(fen)), cells);
        return int(cells[legal + square]);
    };
    check(can_move_to("4k3/8/8/8/8/8/8/R3K2R w KQ - 0 1", 6) == 1);
    check(can_move_to("4kr2/8/8/8/8/8/7P/4K2R w K - 0 1", 6) == 1); // Rg1
    check(can_move_to("4kr2/8/8/8/8/6N1/7P/4K2R w K - 0 1", 2) == 0);
    check(answer("4kr2/8/8/8/8/8/7P/4K2R w K - 0 1", "has_kingside_castling_rights") == 1);
    check(answer("4kr2/8/8/8/8/8/7P/4K2R w K - 0 1", "has_queenside_castling_rights") == 0);
    check(can_move_to("4k3/8/8/8/8/8/8/R3K3 b Q - 0 1", 2) == 0); // Black's turn: no square of White's

    // A capture en passant that would open the rank to the king: pseudo-legal, not legal.
    const std::string pinned = "7k/8/8/K2pP2r/8/8/8/8 w - d6 0 1";
    label_position(BoardHistory(chess::parse_fen(pinned)), cells);
    check(answer(pinned, "has_legal_en_passant") == 0 && cells[legal + 43] == 0);
    check(cells[cell_of("pseudo_legal_moves_state") + 43] == 1);

    // Promotions: four of one pawn are not ambiguous, two pawns that take on one square are.
    check(answer("7k/P7/8/8/8/8/8/K7 w - - 0 1", "ambiguous_moves") == 0);
    check(answer("1n5k/P1P5/8/8/8/8/8/K7 w - - 0 1", "ambiguous_moves") == 1);
    // In double check only the king moves.
    label_position(BoardHistory(chess::parse_fen("4r1k1/8/8/8/8/5n2/8/R3K2R w KQ - 0 1")), cells);
    check(answer("4r1k1/8/8/8/8/5n2/8/R3K2R w KQ - 0 1", "check_state") == 1);
    check(std::count(cells.begin() + long(legal), cells.begin() + long(legal) + 64, 1) == 3); // d1, f1, f2

    // Of two queens only the one on the higher square counts.
    check(answer("7k/8/8/q7/8/8/Q7/4K2q w - - 0 1", "can_capture_queen") == 0); // in check by the other
    check(answer("7k/8/8/q7/8/q7/QK6/8 w - - 0 1", "can_capture_queen") == 0);
    check(answer("7k/8/8/8/8/q7/QK6/3q4 w - - 0 1", "can_capture_queen") == 1);

    // Forks: a knight on a rook and a queen is specific and one, not any; on two rooks it is all three; when
    // it is pinned it is none; two knights on one queen are specific and any.
    const auto forks = [&](const char* fen) {
        return answer(fen, "specific_fork") * 100 + answer(fen, "any_fork") * 10 + answer(fen, "fork");
    };
    check(forks("7k/2q5/6r1/4N3/8/8/8/K7 w - - 0 1") == 0);
    check(forks("7k/3q4/6r1/4N3/8/8/8/K7 w - - 0 1") == 101);
    check(forks("7k/3r4/6r1/4N3/8/8/8/K7 w - - 0 1") == 111);
    check(forks("4r2k/3r4/6r1/4N3/8/8/8/4K3 w - - 0 1") == 0);
    check(forks("7k/8/3q4/8/2N1N3/8/8/K7 w - - 0 1") == 110);
    check(forks("7k/8/8/3n1b2/4P3/8/8/K7 w - - 0 1") == 1);
    check(forks("7k/8/8/3n1n2/4P3/8/8/K7 w - - 0 1") == 11);
    check(forks("7k/3q4/6b1/4N3/8/8/8/K7 w - - 0 1") == 0); // a bishop is worth what a knight is

    check(answer("6k1/5ppp/8/8/8/8/5PPP/3r2K1 w - - 0 1", "opponent_mate_threat") == 0); // it is mate already
    check(answer("3r2k1/5ppp/8/8/8/8/5PPP/6K1 w - - 0 1", "opponent_mate_threat") == 1);
    check(answer("3r2k1/5ppp/8/8/8/7P/5PP1/6K1 w - - 0 1", "opponent_mate_threat") == 0);
}

// ---------------------------------------------------------------------------------------------------------
// Against the slow implementation

static void test_against_slow() {
    size_t positions[2] = {};
    std::map<std::string, size_t> seen; // how often the rare ones were true
    std::string first;
    const auto compare = [&](const BoardHistory& history, const std::vector<SlowBoard>& slow) {
        const chess::Position& p = history.position();
        positions[p.turn]++;
        const std::string what = difference(history, slow);
        if (!what.empty() && first.empty()) first = chess::to_fen(p) + ": " + what;
        std::vector<uint8_t> cells;
        label_position(history, cells);
        for (size_t f = 0; f < n_board_functions; f++)
            if (cells_of(board_functions[f]) == 1) seen[board_functions[f].name] += cells[first_cell(f)];
    };
    // Games of the players, and of a player who moves at random and likes to take back, so that positions
    // repeat.
    Random random{20240901};
    for (uint64_t g = 0; g < 24; g++) {
        BoardHistory history;
        std::vector<SlowBoard> slow = {slow_board(history.position())};
        std::vector<chess::Move> moves;
        if (g < 8) moves = chess::play_game({}, g).moves;
        for (size_t ply = 0; ply < (g < 8 ? moves.size() : 120); ply++) {
            compare(history, slow);
            const chess::MoveList legal = chess::legal_moves(history.position());
            if (legal.size == 0) break;
            chess::Move m = g < 8 ? moves[ply] : legal.moves[random.below(legal.size)];
            if (g >= 8 && ply >= 2 && random.below(3) < 2) {
                const chess::Move back = {moves[ply - 2].to, moves[ply - 2].from, chess::NONE};
                if (legal.contains(back)) m = back;
            }
            if (g >= 8) moves.push_back(m);
            history.play(m);
            slow.push_back(slow.back().after({m.from, m.to, m.promotion}));
        }
    }
    // Positions at random: few or many pieces, rooks and kings at home or not, pawns that have just gone
    // past.
    for (size_t tried = 0; tried < 12000; tried++) {
        char board[64];
        std::fill_n(board, 64, '.');
        const bool home = random.below(3) == 0;
        for (uint64_t n = random.below(24); n > 0; n--)
            board[random.below(64)] = "PPPNBRQpppnbrq"[random.below(14)];
        std::string rights;
        if (home) {
            for (const auto& [square, piece] :
                 {std::pair{4, 'K'}, {0, 'R'}, {7, 'R'}, {60, 'k'}, {56, 'r'}, {63, 'r'}})
                board[square] = piece;
            for (const char c : {'K', 'Q', 'k', 'q'})
                if (random.below(2)) rights += c;
        } else {
            const size_t white = random.below(64), black = random.below(64);
            board[white] = 'K', board[black] = 'k';
        }
        for (size_t s = 0; s < 64; s++)
            if ((s < 8 || s >= 56) && (board[s] == 'P' || board[s] == 'p')) board[s] = '.';
        const bool white_moves = random.below(2);
        std::string passed = "-";
        if (random.below(2)) {
            const size_t file = random.below(8), to = file + (white_moves ? 32 : 24);
            const size_t over = white_moves ? to + 8 : to - 8, from = white_moves ? to + 16 : to - 16;
            if (board[over] == '.' && board[from] == '.' && board[to] == '.') {
                board[to] = white_moves ? 'p' : 'P', passed = chess::square_name(int(over));
                for (const size_t s : {to - 1, to + 1})
                    if (s / 8 == to / 8 && board[s] == '.' && random.below(2))
                        board[s] = white_moves ? 'P' : 'p';
            }
        }
        std::string fen;
        for (size_t rank = 8; rank-- > 0;) {
            for (size_t file = 0; file < 8; file++)
                fen += board[rank * 8 + file] == '.' ? '1' : board[rank * 8 + file];
            if (rank) fen += '/';
        }
        fen += std::string(white_moves ? " w " : " b ") + (rights.empty() ? "-" : rights) + " " + passed +
               " " + std::to_string(passed == "-" ? 97 + random.below(5) : 0) + " 1";
        chess::Position p;
        try {
            p = chess::parse_fen(fen);
        } catch (const Error&) {
            continue; // a king that could be taken, two kings on one square, ..
        }
        compare(BoardHistory(p), {slow_board(p)});
    }
    check(first.empty(), "%s", first.c_str());
    check(positions[0] > 2000 && positions[1] > 2000, "%zu and %zu", positions[0], positions[1]);
    for (const auto& [name, n] : seen)
        check(n >= 5 || name == "is_stalemate", "%s only %zu times in %zu positions", name.c_str(), n,
              positions[0] + positions[1]);
}

// ---------------------------------------------------------------------------------------------------------
// Labels at dots

static GameSet played_games(size_t n, size_t characters, size_t dots) {
    GameSet set;
    set.source = "self-play", set.characters = characters, set.dots = dots;
    for (uint64_t g = 0; set.size() < n; g++) {
        std::string text = chess::to_game_text(chess::play_game({}, g).moves);
        text.resize(std::min(text.size(), characters));
        if (text.size() == characters && dots_of(text, dots).size() == dots) set.texts.push_back(text);
    }
    return set;
}

static void test_label_games() {
    for (const size_t dots : {20, 7}) {
        const GameSet games = played_games(dots == 20 ? 37 : 70, 256, dots);
        const Labels labels = label_games(games, dots);
        check(labels.tokens == games.size() * dots && labels.words == (labels.tokens + 63) / 64);
        check(labels.bits.size() == total_cells() * labels.words);

        // The board at a character is that after as many plies as there are spaces up to it.
        size_t wrong = 0, not_white = 0;
        for (size_t g = 0; g < games.size(); g += dots == 20 ? 5 : 23) {
            const std::string& text = games.texts[g];
            for (size_t dot = 0, i = 0; dot < dots; i++) {
                if (text[i] != '.') continue;
                const auto spaces = std::count(text.begin(), text.begin() + long(i), ' ');
                BoardHistory history;
                chess::GameTextReader reader = chess::parse_game_text(text.substr(0, text.rfind(' ')));
                for (long ply = 0; ply < spaces; ply++) history.play(reader.moves[size_t(ply)]);
                std::vector<SlowBoard> slow;
                for (const auto& board : history.boards) {
                    slow.emplace_back();
                    std::copy(board.begin(), board.end(), slow.back().at);
                }
                slow.back() = slow_board(history.position());
                Answers answers = slow_answers(slow);
                std::vector<uint8_t> cells; // repetition needs more than the boards
                label_position(history, cells);
                answers["can_claim_draw"] = {cells[cell_of("can_claim_draw")]};
                not_white += history.position().turn != chess::WHITE;
                for (size_t f = 0; f < n_board_functions; f++)
                    for (size_t c = 0; c < cells_of(board_functions[f]); c++)
                        wrong += labels.at(first_cell(f) + c, g * dots + dot) !=
                                 bool(answers.at(board_functions[f].name)[c]);
                dot++;
            }
        }
        check(wrong == 0 && not_white == 0, "%zu dots: %zu cells, %zu positions", dots, wrong, not_white);

        // What must hold between the functions, summed over everything.
        const auto positives = [&](size_t c) {
            size_t n = 0;
            for (size_t t = 0; t < labels.tokens; t++) n += labels.at(c, t);
            return n;
        };
        const auto implies = [&](const char* a, const char* b) {
            const size_t first_a = first_cell(board_function(a)), first_b = first_cell(board_function(b));
            const size_t n = cells_of(board_functions[board_function(a)]);
            check(n == cells_of(board_functions[board_function(b)]), "%s %s", a, b);
            size_t broken = 0;
            for (size_t c = 0; c < n; c++)
                for (size_t w = 0; w < labels.words; w++)
                    broken += (labels.cell(first_a + c)[w] & ~labels.cell(first_b + c)[w]) != 0;
            check(broken == 0, "%s without %s", a, b);
        };
        implies("piece_masked_blank_and_initial_state", "piece_masked_blank_state");
        implies("piece_masked_blank_state", "piece_state");
        implies("legal_moves_state", "pseudo_legal_moves_state");
        implies("has_mate_threat", "can_check_next");
        implies("has_kingside_castling_rights", "has_castling_rights");
        implies("has_queenside_castling_rights", "has_castling_rights");
        size_t padding = 0, pieces = 0, blanks = 0, never = 0;
        for (size_t c = 0; c < total_cells() && labels.tokens % 64; c++)
            padding += labels.cell(c)[labels.words - 1] >> (labels.tokens % 64) != 0;
        check(padding == 0 && labels.tokens % 64 != 0);
        for (size_t c = 0; c < 832; c++) {
            const size_t n = positives(first_cell(2) + c);
            pieces += positives(c), blanks += c % 13 == 6 ? positives(c) : 0;
            never += c % 13 != 6 && n == 0;
            if (c % 13 == 6) check(n == 0 && positives(first_cell(1) + c) == 0);
        }
        check(pieces == 64 * labels.tokens && blanks > 32 * labels.tokens && blanks < pieces);
        check(never >= 64, "%zu", never);
        for (size_t g = 0; g < games.size(); g++) // the first dot is the initial position
            check(labels.at(cell_of("has_queen"), g * dots) && labels.at(10, g * dots) &&
                  !labels.at(cell_of("can_check_next"), g * dots));
        check(positives(cell_of("has_castling_rights")) > labels.tokens / 10);

        // The same by one thread.
#ifdef _OPENMP
        const size_t threads = thread_count();
        for (const int n : {1, 7}) {
            set_thread_count(n);
            check(label_games(games, dots).bits == labels.bits, "%d threads", n);
        }
        set_thread_count(threads);
#endif
    }

    // Whatever comes behind the last dot does not matter; a game with too few moves is refused.
    GameSet games = played_games(3, 256, 20);
    const Labels labels = label_games(games, 20);
    for (std::string& text : games.texts) text.resize(dots_of(text, 20).back() + 1);
    check(label_games(games, 20).bits == labels.bits);
    games.texts[1] += "Zz9 wrong";
    check(label_games(games, 20).bits == labels.bits);
    games.texts[2].resize(100);
    check_error(label_games(games, 20), "self-play", "game 3", "38");
    games.texts[0] = ";1.e4 e5 2.Ke3 Nf6 3.";
    check_error(label_games(games, 3), "game 1", "2 legal plies", "expected 4");
    check(label_games(GameSet{}, 20).tokens == 0);
    const Labels first = label_games(games, 1);
    check(first.tokens == 3 && first.at(10, 0) && first.at(10, 2));
}

// ---------------------------------------------------------------------------------------------------------
// Words

static std::string words(const char* function, const char* square, size_t cls, bool negated = false) {
    return cell_text(board_function(function), size_t(square[1] - '1'), size_t(square[0] - 'a'), cls,
                     negated);
}

static void test_words() {
    check(words("piece_state", "f3", 8) == "a white knight stands on f3");
    check(words("piece_state", "f3", 8, true) == "no white knight stands on f3");
    check(words("piece_state", "d8", 1, true) == "Black's queen is off d8");
    check(words("piece_state", "d8", 1) == "a black queen stands on d8");
    check(words("piece_state", "e2", 7, true) == "White's pawn is off e2");
    check(words("piece_state", "g1", 12) == "White's king stands on g1");
    check(words("piece_state", "g1", 12, true) == "White's king is not on g1");
    check(words("piece_state", "e1", 12, true) == "White's king is off e1");
    check(words("piece_state", "e4", 6) == "e4 is empty");
    check(words("piece_state", "e4", 6, true) == "e4 is occupied");
    check(words("piece_masked_blank_and_initial_state", "h6", 5) == "a black pawn stands on h6");
    check(words("piece_color_state", "a1", 0) == "a black piece stands on a1");
    check(words("piece_color_state", "a1", 2, true) == "no white piece stands on a1");
    check(words("piece_color_state", "a1", 1, true) == "a1 is occupied");
    check(words("prev_state", "c3", 8) == "a white knight stood on c3 25 plies ago");
    check(words("prev_state", "e8", 0, true) == "Black's king was off e8 25 plies ago");
    check(words("threat_state", "e5", 0) == "Black attacks e5");
    check(words("threat_state", "e5", 0, true) == "Black does not attack e5");
    check(words("legal_moves_state", "h8", 0) == "White can move to h8");
    check(words("check_state", "a1", 0) == "White is in check");
    check(words("check_state", "a1", 0, true) == "White is not in check");
    for (size_t f = 0; f < n_board_functions; f++) { // every cell of a function has words of its own
        const BoardFunction& function = board_functions[f];
        std::set<std::string> texts;
        for (size_t c = 0; c < cells_of(function); c++)
            for (const bool negated : {false, true})
                texts.insert(cell_text(f, c / function.classes / 8, c / function.classes % 8,
                                       c % function.classes, negated));
        check(texts.size() == 2 * cells_of(function) && !texts.count(""), "%s: %zu", function.name,
              texts.size());
    }
}

// ---------------------------------------------------------------------------------------------------------
// The table of labels

struct Folder {
    std::string path;
    Folder() {
        char name[] = "/tmp/moex_test_boards_XXXXXX";
        check(mkdtemp(name) != nullptr);
        path = name;
    }
    ~Folder() { std::filesystem::remove_all(path); }
    std::string file(const std::string& name, const std::string& content) const {
        FILE* f = fopen((path + "/" + name).c_str(), "wb");
        check(f && fwrite(content.data(), 1, content.size(), f) == content.size());
        fclose(f);
        return path + "/" + name;
    }
};

using Table = std::vector<std::map<std::string, std::string>>;
static Table labels_of(const std::string& path, LabelCounts* counts = nullptr) {
    FILE* f = tmpfile();
    std::string text;
    try {
        const LabelCounts n = write_labels(path, f);
        if (counts) *counts = n;
        rewind(f);
        for (int c; (c = fgetc(f)) != EOF;) text += char(c);
        fclose(f);
    } catch (...) {
        fclose(f);
        throw;
    }
    check(text.back() == '\n' && text.find('"') == std::string::npos && text.find('\r') == std::string::npos);
    text.pop_back();
    Table table;
    std::vector<std::string> names;
    for (const std::string& line : split(text, '\n')) {
        const std::vector<std::string> fields = split(line, ',');
        if (names.empty()) {
            names = fields;
            continue;
        }
        check(fields.size() == names.size() && names.size() == n_board_functions + 3);
        table.emplace_back();
        for (size_t i = 0; i < names.size(); i++) table.back()[names[i]] = fields[i];
    }
    return table;
}

// A row says what the slow implementation finds.
static bool row_is(const std::map<std::string, std::string>& row, const std::vector<SlowBoard>& slow) {
    for (const auto& [name, cells] : slow_answers(slow)) {
        const std::string& field = row.at(name == "piece_state" ? "piece64" : name);
        std::string expected;
        if (cells.size() == 1) {
            expected = std::to_string(cells[0]);
        } else if (cells.size() == 64) {
            const char digits[] = "0123456789abcdef";
            for (size_t digit = 16; digit-- > 0;)
                expected += digits[cells[digit * 4] + 2 * cells[digit * 4 + 1] + 4 * cells[digit * 4 + 2] +
                                   8 * cells[digit * 4 + 3]];
        } else {
            const size_t classes = cells.size() / 64;
            for (size_t s = 0; s < 64; s++) {
                char letter = '.';
                for (size_t c = 0; c < classes; c++)
                    if (cells[s * classes + c]) letter = (classes == 3 ? "b.w" : "kqrbnp.PNBRQK")[c];
                expected += letter;
            }
        }
        if (field != expected) {
            printf("%s: %s, expected %s\n", name.c_str(), field.c_str(), expected.c_str());
            return false;
        }
    }
    return true;
}

static void test_labels() {
    const Folder folder;
    const std::string pgn =
        "[Event \"a\"]\n\n1. e4 e5 2. Nf3 {good} Nc6 3. Bb5 a6 1-0\n\n[Event \"none\"]\n\n*\n\n"
        "[Event \"b\"]\r\n\r\n1. d4 *\r\n";
    const std::string text = ";1.e4 e5 2.Nf3 Nc6 3.Bb5 a6;1.d4\n";
    LabelCounts counts;
    const Table from_pgn = labels_of(folder.file("a.pgn", pgn), &counts);
    check(counts.games == 2 && counts.positions == 9 && counts.left_out == 1);
    check(from_pgn.size() == 9 && from_pgn[7].at("game") == "3" && from_pgn[8].at("ply") == "1");
    const Table from_text = labels_of(folder.file("a.txt", text), &counts);
    check(counts.games == 2 && counts.positions == 9 && counts.left_out == 0);
    for (size_t i = 0; i < 9; i++)
        for (const auto& [name, field] : from_pgn[i])
            check(name == "game" || from_text[i].at(name) == field, "row %zu, %s", i, name.c_str());
    check(from_pgn[0].at("piece64") == "RNBQKBNRPPPPPPPP................................pppppppprnbqkbnr");
    check(from_pgn[0].at("threat_state") == "7effff0000000000"); // a8 and h8 are nobody's to protect
    check(from_pgn[0].at("fen") == chess::start_fen && from_pgn[0].at("ply") == "0");
    check(from_pgn[1].at("fen") == "rnbqkbnr/pppppppp/8/8/4P3/8/PPPP1PPP/RNBQKBNR b KQkq - 0 1");
    check(from_pgn[1].at("legal_moves_state") == "0000000000000000" && from_pgn[1].at("material") == "39");
    for (const std::string& variant : std::vector<std::string>{
             std::string("\xEF\xBB\xBF") + text, ";1.e4 e5 2.Nf3 Nc6 3.Bb5 a6\r\n\r\n  ;1.d4\r\n",
             ";1.e4 e5 2.Nf3 Nc6 3.Bb5 a6\n;1.d4 N"}) {
        const Table table = labels_of(folder.file("b.txt", variant));
        check(table == from_text);
    }

    // Long games, every field, with the history (prev_state, draws).
    std::string games;
    std::vector<std::vector<chess::Move>> moves = {chess::play_game({}, 3).moves};
    moves.push_back(chess::parse_game_text(";1.Nf3 Nc6 2.Ng1 Nb8 3.Nf3 Nc6 4.Ng1 Nb8 5.e4").moves);
    for (const auto& m : moves) games += chess::to_game_text(m) + "\n";
    const Table table = labels_of(folder.file("long.txt", games));
    size_t row = 0, wrong = 0, claims = 0;
    std::string fens;
    for (const auto& m : moves) {
        std::vector<SlowBoard> slow;
        chess::Position p = chess::start_position();
        for (size_t ply = 0;; ply++, row++) {
            slow.push_back(slow_board(p));
            wrong += row >= table.size() || !row_is(table[row], slow) ||
                     table[row].at("fen") != chess::to_fen(p) || table[row].at("ply") != std::to_string(ply);
            claims += row < table.size() && table[row].at("can_claim_draw") == "1";
            fens += chess::to_fen(p) + "\n";
            if (ply == m.size()) break;
            chess::make(p, m[ply]);
        }
        row++;
    }
    check(row == table.size() && wrong == 0 && claims >= 2, "%zu rows, %zu wrong", row, wrong);

    // The same positions as FEN lines: all but what needs the history.
    const Table from_fens = labels_of(folder.file("a.fen", fens), &counts);
    check(from_fens.size() == table.size() && counts.games == 0 && counts.positions == table.size());
    for (size_t i = 0; i < table.size() && i < from_fens.size(); i++)
        for (const auto& [name, field] : table[i])
            if (name != "game" && name != "prev_state" && name != "can_claim_draw")
                check(from_fens[i].at(name) == field, "row %zu, %s", i, name.c_str());
    const Table four = labels_of(folder.file("b.fen", "\n8/8/8/8/8/8/k7/2K5 b - -\r\n\n"));
    check(four.size() == 1 && four[0].at("game") == "2" && four[0].at("ply") == "1");

    // What is wrong, and where.
    const auto refused = [&](const char* name, const std::string& content, auto... parts) {
        const std::string path = folder.file(name, content);
        check_error(labels_of(path), name, parts...);
    };
    const std::string fen = "8/8/8/8/8/8/k7/2K5 b - - 0 1\n";
    refused("bad.fen", fen + "8/8/8/8/8/8/k7/2K4 b - - 0 1\n", "line 2", "8 ranks");
    refused("bad.fen", fen + "\n" + fen + "8/8/8/8/8/8/8/2K5 b - - 0 1\n", "line 4", "kings");
    refused("bad.fen", fen + "1.e4 e5\n", "line 2", "FEN");
    refused("bad.fen", "8/8/8/x7/8/8/k7/2K5 b - - 0 1", "line 1", "not a piece");
    refused("bad.fen", std::string("8/8/8/8\0\1/8/8/k7/2K5 b - - 0 1", 31), "line 1");
    refused("bad.pgn", "1.e4 e5 2.Nf3 *\n\n1.e4 e5 2.Ke3 *\n", "line 3", "Ke3", "not a legal move");
    refused("bad.pgn", "1.e4 e5 2.Ke3 *\n\n1.e4 e5 2.Ke2 *\n", "line 1", "Ke3");
    refused("bad.pgn", "[FEN \"8/8/8/8/8/8/k7/2K5 b - - 0 1\"]\n\n1... Ka3 *\n", "no usable game", "1 FEN");
    refused("bad.txt", ";1.e4 e5\n;1.e4 e5 2.Ke3 d5\n", "line 2", "game 2", "ply 3", "'2.Ke3'",
            "illegal move");
    refused("bad.txt", ";1.e4 e5 3.Nf3 d5\n", "line 1", "expected '2.'");
    check(labels_of(folder.file("no_mark.txt", ";1.e4 e5\n1.d4\n"), &counts).size() == 5 &&
          counts.games == 2);
    refused("bad.txt", ";1.e4 e5\n;1. e4 e5 2. Ke3\n", "line 2", "Ke3", "not a legal move");
    refused("text.txt", "To be, or not to be\n", "not PGN");
    refused("empty.pgn", "", "empty");
    refused("blank.pgn", "\n  \n", "no game found");
    FILE* f = tmpfile(); // nothing is written behind an illegal game
    check_error(write_labels(folder.file("c.pgn", "1.e4 *\n\n1.Ke2 *\n\n1.d4 *\n"), f), "line 3");
    rewind(f);
    size_t lines = 0;
    for (int c; (c = fgetc(f)) != EOF;) lines += c == '\n';
    fclose(f);
    check(lines == 3, "%zu", lines);
    check_error(labels_of(folder.path + "/missing.pgn"), "missing.pgn", "cannot be opened");
    check_error(labels_of(folder.path), "not a regular file");
    if (FILE* full = fopen("/dev/full", "w")) {
        check_error(write_labels(folder.path + "/long.txt", full), "long.txt", "cannot be written", "space");
        check_error(write_labels(folder.path + "/b.fen", full), "b.fen", "cannot be written", "space");
        fclose(full);
    }
}

int main() {
    test_table();
    test_facts();
    test_against_slow();
    test_label_games();
    test_words();
    test_labels();
    return finish();
}
