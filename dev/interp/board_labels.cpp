// What features asks about a board: see board_labels.h.
#include "board_labels.h"

std::string with_sides(std::string words, size_t whose) { // 0: the side to move, 1: White, 2: Black
    static constexpr const char* a[] = {"the side to move", "White", "Black"};
    static constexpr const char* b[] = {"the other side", "Black", "White"};
    std::string out;
    for (size_t i = 0; i < words.size(); i++) {
        const bool whole = (i == 0 || words[i - 1] == ' ') &&
                           (i + 1 == words.size() || words[i + 1] == ' ' || words[i + 1] == '\'');
        out += whole && words[i] == 'A'   ? a[whose]
               : whole && words[i] == 'B' ? b[whose]
                                          : std::string(1, words[i]);
    }
    return out;
}

std::vector<Property> board_properties() {
    static constexpr const char* kinds[] = {"pawn", "knight", "bishop", "rook", "queen", "king"};
    static constexpr const char* many[] = {"pawns", "knights", "bishops", "rooks", "queens", "kings"};
    std::vector<Property> list;
    const auto family = [&](const char* function, const std::string& squares, const std::string& before,
                            const std::string& negated, const std::string& after = "") {
        const size_t first = list.size();
        for (size_t s = 0; s < 64; s++) {
            const std::string square = chess::square_name(int(s));
            list.push_back(
                {function, {before + square + after, negated + square + after}, first, 1, squares});
        }
    };
    const size_t piece_state = board_function("piece_state");
    for (size_t cls = 0; cls < 13; cls++) {
        const int piece = int(cls) - 6;
        const size_t first = list.size();
        const std::string squares =
            piece == 0 ? "empty squares"
                       : strf("where %s %s", piece > 0 ? "white" : "black",
                              std::abs(piece) == 6 ? "king stands" : many[std::abs(piece) - 1]) +
                             (std::abs(piece) == 6 ? "" : " stand");
        for (size_t s = 0; s < 64; s++)
            list.push_back(
                {"piece",
                 {cell_text(piece_state, s / 8, s % 8, cls), cell_text(piece_state, s / 8, s % 8, cls, true)},
                 first,
                 1,
                 std::abs(piece) == 6 ? strf("where the %s king stands", piece > 0 ? "white" : "black")
                                      : squares});
    }
    for (const char* c : {"black", "white"})
        family("colour", strf("where %s pieces stand", c), strf("a %s piece stands on ", c),
               strf("no %s piece stands on ", c));
    for (const char* w : {"the side to move", "the other side"})
        family("whose", strf("where pieces of %s stand", w), strf("a piece of %s stands on ", w),
               strf("no piece of %s stands on ", w));
    for (const char* w : {"the side to move", "the other side"})
        for (size_t k = 0; k < 6; k++)
            family("whose piece", strf("where %s of %s stand", many[k], w),
                   strf("a %s of %s stands on ", kinds[k], w), strf("no %s of %s stands on ", kinds[k], w));
    for (const char* w : {"White", "Black"})
        family("attacks", strf("the squares that %s attacks", w), strf("%s attacks ", w),
               strf("%s does not attack ", w));
    family("moves", "the squares that the side to move can move to", "the side to move can move to ",
           "the side to move cannot move to ");
    for (const SideQuestion& q : side_questions)
        for (size_t whose = 0; whose < 3; whose++)
            list.push_back({q.function, {with_sides(q.words, whose), with_sides(q.negated, whose)}});
    return list;
}

void label_board(const BoardHistory& history, std::vector<uint8_t>& cells, Labels& out, size_t n) {
    using namespace chess;
    using F = BoardFamilies;
    const Position& p = history.position();
    label_position(history, cells);
    for (size_t s = 0; s < 64; s++) {
        const int piece = p.board[s];
        out.set(F::piece + size_t(piece + 6) * 64 + s, n);
        if (!piece) continue;
        const size_t white = piece > 0, other = (piece > 0) != (p.turn == WHITE);
        out.set(F::color + white * 64 + s, n);
        out.set(F::whose + other * 64 + s, n);
        out.set(F::kind + (other * 6 + size_t(std::abs(piece)) - 1) * 64 + s, n);
    }
    set_squares(out, F::attacked, attacked_squares(p, WHITE), n);
    set_squares(out, F::attacked + 64, attacked_squares(p, BLACK), n);
    set_squares(out, F::target, find_move_facts(p).targets, n);

    // A check is discovered where it comes from a square that the last move did not change.
    bool discovered = false;
    if (const size_t ply = history.boards.size(); ply > 1)
        for (Bitboard b = checkers(p); b;) {
            const size_t s = size_t(take_first(b));
            discovered |= history.boards[ply - 1][s] == history.boards[ply - 2][s];
        }
    for (size_t q = 0; q < n_side_questions; q++) {
        const std::string_view name = side_questions[q].function;
        for (size_t whose = 0; whose < 3; whose++) {
            const Color side = whose == 0 ? Color(p.turn) : whose == 1 ? WHITE : BLACK;
            bool holds = false;
            if (name == "discovered_check") {
                holds = side == p.turn && discovered;
            } else if (name == "pin_state") {
                holds = pinned(p, side) != 0;
            } else if (name == "has_castling_rights") {
                holds = (p.castling & (kingside(side) | queenside(side))) != 0;
            } else if (name == "has_kingside_castling_rights") {
                holds = (p.castling & kingside(side)) != 0;
            } else if (name == "has_queenside_castling_rights") {
                holds = (p.castling & queenside(side)) != 0;
            } else if (name == "has_bishop_pair") {
                holds = count(p.pieces(side, BISHOP)) >= 2;
            } else if (name == "has_queen") {
                holds = p.pieces(side, QUEEN) != 0;
            } else if (name == "has_connected_rooks") {
                for (Bitboard b = p.pieces(side, ROOK); b;)
                    holds |= (rook_attacks(take_first(b), p.occupied()) & p.pieces(side, ROOK)) != 0;
            } else {
                holds = side == p.turn && cells[first_cell(board_function(name))];
            }
            if (holds) out.set(F::side + 3 * q + whose, n);
        }
    }
}

Labels label_boards(const GameSet& games, const Boundaries& where) {
    const size_t per_game = where.per_game(), plies = where.ply(per_game - 1);
    Labels labels = empty_labels(BoardFamilies::size, games.size() * per_game);
    each_labelled_game("boards", games.size(), per_game, [&](size_t g) {
        std::vector<uint8_t> cells;
        chess::GameTextReader reader; // the games of a set are legal up to their last dot
        for (const char c : games.texts[g]) {
            if (reader.moves.size() == plies) break;
            reader.push(c);
        }
        BoardHistory history;
        for (size_t place = 0, ply = 0; place < per_game; place++) {
            for (; ply < where.ply(place); ply++) history.play(reader.moves[ply]);
            label_board(history, cells, labels, g * per_game + place);
        }
    });
    return labels;
}
