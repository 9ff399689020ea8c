// The board functions: what is true of a chess position, as the yes-or-no questions that a unit of a model
// may answer. A function gives one answer, or one for each square, or for each square and class (which piece
// stands there); each answer is a cell. Definitions: Karvonen et al., "Measuring Progress in Dictionary
// Learning for Language Model Interpretability with Board Game Models" (arXiv 2408.00113), and the code
// published with it, whose surprises are kept: what we would rather ask is a function of its own (fork).
//
// Squares are cells a1, b1, .. h8: row = rank, column = file. Colours are absolute, White and Black, but most
// functions ask about the mover, the side whose turn it is. At the dot of a move number that is White, so the
// texts here say White.
#pragma once
#include "../lib/terminal.h"
#include "games.h"
#include "labels.h"
#include <array>
#include <numeric>

// ---------------------------------------------------------------------------------------------------------
// The functions

// Classes of a piece: k q r b n p, blank, P N B R Q K; of a colour: black, blank, white.
inline constexpr char piece_class_letters[] = "kqrbnp.PNBRQK", color_class_letters[] = "b.w";

struct BoardFunction {
    const char* name;
    size_t rows, columns, classes; // no classes: a whole number, which has no cells
    int masked;                    // the class whose cells are never true and not counted, or -1
    bool binary;                   // answers yes or no
    bool measured;                 // one of the 23 of the default run
    bool strategy;                 // one of the 14 of the strategy group
    const char* meaning;           // of a single cell: what follows "fires when"
    const char* negation;          // .. and when it is false; null for the others
};

inline constexpr BoardFunction board_functions[] = {
    {"piece_state", 8, 8, 13, -1, true, true, false, "the piece on each square, or none", nullptr},
    {"piece_masked_blank_state", 8, 8, 13, 6, true, true, false, "the piece on each square", nullptr},
    {"piece_masked_blank_and_initial_state", 8, 8, 13, 6, true, true, false,
     "the piece on each square, unless it stood there at the start", nullptr},
    {"piece_color_state", 8, 8, 3, -1, true, true, false, "the colour of the piece on each square, or none",
     nullptr},
    {"threat_state", 8, 8, 1, -1, true, true, true, "the squares that Black attacks", nullptr},
    {"legal_moves_state", 8, 8, 1, -1, true, true, true, "the squares that White can move to", nullptr},
    {"pseudo_legal_moves_state", 8, 8, 1, -1, true, true, false,
     "the squares that White could move to if its king might be left in check", nullptr},
    {"check_state", 1, 1, 1, -1, true, true, true, "White is in check", "White is not in check"},
    {"pin_state", 1, 1, 1, -1, true, true, true, "a piece of either side is pinned to its king",
     "no piece is pinned to its king"},
    {"specific_fork", 1, 1, 1, -1, true, true, false, "White's knights attack rooks or queens twice",
     "White's knights do not attack rooks or queens twice"},
    {"any_fork", 1, 1, 1, -1, true, true, true,
     "White's pieces of one kind attack pieces of one more valuable kind twice",
     "no kind of White's pieces attacks pieces of one more valuable kind twice"},
    {"has_castling_rights", 1, 1, 1, -1, true, true, true, "White has a right to castle",
     "White has lost its rights to castle"},
    {"has_kingside_castling_rights", 1, 1, 1, -1, true, true, true, "White has the right to castle kingside",
     "White has lost the right to castle kingside"},
    {"has_queenside_castling_rights", 1, 1, 1, -1, true, true, true,
     "White has the right to castle queenside", "White has lost the right to castle queenside"},
    {"has_legal_en_passant", 1, 1, 1, -1, true, true, true, "White can capture en passant",
     "White cannot capture en passant"},
    {"can_claim_draw", 1, 1, 1, -1, true, true, false, "White can claim a draw", "White cannot claim a draw"},
    {"can_check_next", 1, 1, 1, -1, true, true, true, "White can give check", "White cannot give check"},
    {"has_bishop_pair", 1, 1, 1, -1, true, true, true, "White has both bishops",
     "White has lost the bishop pair"},
    {"has_mate_threat", 1, 1, 1, -1, true, true, false, "White has a mate in one",
     "White has no mate in one"},
    {"can_capture_queen", 1, 1, 1, -1, true, true, true, "White can capture Black's queen",
     "White cannot capture Black's queen"},
    {"has_queen", 1, 1, 1, -1, true, true, true, "White has a queen", "White has no queen"},
    {"has_connected_rooks", 1, 1, 1, -1, true, true, false, "White's rooks are connected",
     "White's rooks are not connected"},
    {"ambiguous_moves", 1, 1, 1, -1, true, true, true,
     "two of White's pieces of one kind can move to the same square",
     "no two of White's pieces of one kind can move to the same square"},
    {"is_stalemate", 1, 1, 1, -1, true, false, false, "White is stalemated", "White is not stalemated"},
    {"prev_state", 8, 8, 13, -1, true, false, false, "the piece on each square 25 plies ago, or none",
     nullptr},
    {"material", 1, 1, 0, -1, false, false, false, "White's pieces in pawns: 1, 3, 3, 5, 9", nullptr},
    {"number_of_pieces", 1, 1, 0, -1, false, false, false, "White's pieces and pawns without the king",
     nullptr},
    {"fork", 1, 1, 1, -1, true, false, false, "one piece of White attacks two more valuable ones",
     "no piece of White attacks two more valuable ones"},
    {"opponent_mate_threat", 1, 1, 1, -1, true, false, false, "Black threatens mate in one",
     "Black does not threaten mate in one"},
};
inline constexpr size_t n_board_functions = std::size(board_functions);

// The place of a function in the table, or n_board_functions.
constexpr size_t board_function(std::string_view name) {
    size_t f = 0;
    while (f < n_board_functions && name != board_functions[f].name) f++;
    return f;
}

// All cells lie one function after the other: cell = first_cell(f) + (row*columns + column)*classes + class.
constexpr size_t cells_of(const BoardFunction& f) { return f.rows * f.columns * f.classes; }
constexpr size_t first_cell(size_t function) {
    size_t cell = 0;
    for (size_t f = 0; f < function; f++) cell += cells_of(board_functions[f]);
    return cell;
}
constexpr size_t total_cells() { return first_cell(n_board_functions); }

// first_cell of a function by its name, for use in constants.
consteval size_t cell_of(std::string_view name) {
    const size_t f = board_function(name);
    if (f == n_board_functions) throw "no such board function";
    return first_cell(f);
}

// ---------------------------------------------------------------------------------------------------------
// A position and its answers

// A game with the history that draws and prev_state ask about. It may begin at any position (a FEN).
struct BoardHistory {
    chess::Game game;
    std::vector<std::array<int8_t, 64>> boards; // of every position so far, this one last

    explicit BoardHistory(const chess::Position& p = chess::start_position()) : game(p) { remember(); }

    const chess::Position& position() const { return game.position; }
    void play(chess::Move m) {
        game.play(m);
        remember();
    }

  private:
    void remember() {
        boards.emplace_back();
        std::copy(std::begin(game.position.board), std::end(game.position.board), boards.back().begin());
    }
};

// The mover's pieces without the king, as pawns are worth (material), and counted.
int material_of(const chess::Position& p);
inline int number_of_pieces(const chess::Position& p) { return chess::count(p.colors[p.turn]) - 1; }

// specific_fork: two pairs of an unpinned knight and an enemy rook or queen that it attacks.
// any_fork: two such pairs of one kind of attacker and one more valuable kind of target: a knight that
// attacks a rook and a queen is none, two knights that attack the same queen are one.
// fork: one unpinned piece attacks two enemy pieces worth more than itself.
// The king is no target: where it is the mover's turn it cannot be attacked.
struct Forks {
    bool specific = false, any = false, one = false;
};
Forks find_forks(const chess::Position& p);

// Were it the other side's turn, would it have a mate in one? No, if the mover is in check: the other side
// has the move behind it, and another one would take the king.
bool opponent_mates_next(chess::Position p);

// What the mover's legal moves can do.
struct MoveFacts {
    chess::Bitboard targets = 0; // squares moved to; castling: the king's
    bool check = false, mate = false, captures_queen = false, ambiguous = false;
};
MoveFacts find_move_facts(chess::Position p);

// Two of the mover's rooks on a rank or file with nothing between.
bool has_connected_rooks(const chess::Position& p);

// The answers of every function about a position, for either side to move: cells (total_cells()), 0 or 1.
void label_position(const BoardHistory& history, std::vector<uint8_t>& cells);

// ---------------------------------------------------------------------------------------------------------
// The answers at the dots of many games

// Labels at the first `dots` dots of every game: token n = game * dots + dot. The board at dot d is that
// after 2d plies, so a last move that is cut does not matter. Refuses games with fewer legal moves.
Labels label_games(const GameSet& games, size_t dots);

// ---------------------------------------------------------------------------------------------------------
// Cells in words

// What follows "fires when": "a white knight stands on f3", negated "Black's queen is off d8".
std::string cell_text(size_t function, size_t row, size_t column, size_t cls, bool negated = false);
