// What features asks about a board, at the boundaries of moves of either side (chess_text.h): more than the
// board functions of the field (boards.h), which are about White at White's turn. Of squares: the piece, its
// colour, whose piece it is (of the side to move or the other), who attacks it, where the side to move can
// go. Of the rest every question is asked three times: of the side to move, of White and of Black.
#pragma once
#include "controls.h"

// Questions without squares. always: true of a side whoever's turn it is; else only of the side whose turn it
// is.
struct SideQuestion {
    const char* function; // of boards.h, or one of ours
    bool always;
    const char *words, *negated; // A is the side, B the other
};
inline constexpr SideQuestion side_questions[] = {
    {"check_state", false, "A is in check", "A is not in check"},
    {"discovered_check", false, "A is in check from a piece that did not just move",
     "A is in no discovered check"},
    {"has_castling_rights", true, "A has a right to castle", "A has lost its rights to castle"},
    {"has_kingside_castling_rights", true, "A has the right to castle kingside",
     "A has lost the right to castle kingside"},
    {"has_queenside_castling_rights", true, "A has the right to castle queenside",
     "A has lost the right to castle queenside"},
    {"has_bishop_pair", true, "A has both bishops", "A has lost the bishop pair"},
    {"has_queen", true, "A has a queen", "A has no queen"},
    {"has_connected_rooks", true, "A has connected rooks", "A has no connected rooks"},
    {"specific_fork", false, "A's knights attack rooks or queens twice",
     "A's knights do not attack rooks or queens twice"},
    {"fork", false, "one piece of A attacks two more valuable ones",
     "no piece of A attacks two more valuable ones"},
    {"has_legal_en_passant", false, "A can capture en passant", "A cannot capture en passant"},
    {"can_claim_draw", false, "A can claim a draw", "A cannot claim a draw"},
    {"can_check_next", false, "A can give check", "A cannot give check"},
    {"has_mate_threat", false, "A has a mate in one", "A has no mate in one"},
    {"opponent_mate_threat", false, "B threatens mate in one", "B does not threaten mate in one"},
    {"can_capture_queen", false, "A can capture the queen of B", "A cannot capture the queen of B"},
    {"ambiguous_moves", false, "two pieces of A of one kind can move to the same square",
     "no two pieces of A of one kind can move to the same square"},
    {"pin_state", true, "a piece of A is pinned to its king", "no piece of A is pinned to its king"},
};
inline constexpr size_t n_side_questions = std::size(side_questions);

// Where the families begin: each of squares is (classes,64), the last (questions,3): mover, White, Black.
struct BoardFamilies {
    static constexpr size_t piece = 0, color = piece + 13 * 64, whose = color + 2 * 64, kind = whose + 2 * 64,
                            attacked = kind + 12 * 64, target = attacked + 2 * 64, side = target + 64,
                            size = side + 3 * n_side_questions;
};

std::string with_sides(std::string words, size_t whose);

std::vector<Property> board_properties();

// The answers about one position, as place n; cells is only lent.
void label_board(const BoardHistory& history, std::vector<uint8_t>& cells, Labels& out, size_t n);

// At the boundaries of every game: place n = game * per_game + place.
Labels label_boards(const GameSet& games, const Boundaries& where);
