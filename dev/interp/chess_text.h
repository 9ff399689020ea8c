// What the text of a game says aloud: yes-or-no questions that anybody can answer who sees the characters up
// to a place and knows no rules of chess. They are the rivals of the board functions: what a unit tells of
// the board is knowledge only where it is more than these tell (rules.h).
//
//   last moves        of either side, and of the side to move and the other, the last and the one before:
//                     the piece, the square it ended on, both; capture, check, promotion, castling
//   so far            what each side has written: pieces, squares, both; captures, checks, castling
//   squares           by which piece and side the last move was that ended on each of them
//   clocks            number of the move, captures so far, characters so far, whose turn it is
//   ending            the last two, three or four characters
//
// Castling is written O-O and says a king's and a rook's move. Nothing here looks at a board.
#pragma once
#include "boards.h"
#include <map>

// ---------------------------------------------------------------------------------------------------------
// Reading

constexpr size_t n_kinds = 6; // P N B R Q K

// A move as it is written: Nbxd7+.
struct WrittenMove {
    struct Landing {
        size_t kind, square;
    };
    std::vector<Landing> landings; // pieces and where they end: one, two when castling
    bool capture = false, check = false, promotion = false, castles = false, castles_long = false;
};
WrittenMove read_written_move(std::string san, bool white);

// The boundaries between the moves of a game at which it is asked and a unit looked at: the dots of move
// numbers, where it is White's turn, and where both sides are asked also the space behind White's move, where
// it is Black's. Place i of a game stands behind ply i, or behind ply 2i.
struct Boundaries {
    size_t dots = 0;
    bool both = false;

    size_t per_game() const { return both ? 2 * dots - 1 : dots; }
    size_t ply(size_t place) const { return both ? place : 2 * place; }
};
// Their characters in a text with that many dots.
std::vector<size_t> boundary_characters(const std::string& text, const Boundaries& b);

// The moves of a text, as words.
std::vector<std::string> words_of(const std::string& text);

// ---------------------------------------------------------------------------------------------------------
// The questions

// The families lie one behind the other; what follows says where each begins.
enum MoveSlot { WHITE_LAST, BLACK_LAST, WHITE_BEFORE, BLACK_BEFORE, OWN_LAST, OTHER_LAST, n_slots };
enum MoveMark { CAPTURE, CHECK, PROMOTION, CASTLES, CASTLES_LONG, n_marks };
constexpr size_t most_captures = 14, side_captures = 8, n_clock_steps = 24, n_endings = 512;

struct ChessQuestions {
    std::vector<Property> list;
    size_t slot[n_slots] = {}; // kind (6), square (64), kind and square (384), marks (5)
    // Of White, Black, the side to move, the other: the same 6 + 64 + 384 + 5, captures (8), capture on (64).
    size_t so_far[4] = {};
    size_t square = 0;     // last to end there: side and kind (12*64), side (2*64), anybody (64)
    size_t own_square = 0; // the same by kind of the side to move and of the other (12*64); if both are asked
    size_t captures = 0, move = 0;         // so far at least 1.., the number of the move at least 2..
    size_t characters = 0, turn = 0;       // at least so many, Black's turn
    size_t ending = 0;                     // endings
    std::vector<size_t> steps;             // of the characters
    std::map<std::string, size_t> endings; // their place in the list
    Boundaries where;
};

constexpr size_t slot_square = n_kinds, slot_both = slot_square + 64, slot_marks = slot_both + 64 * n_kinds,
                 slot_size = slot_marks + n_marks;

// Characters and endings are taken from these games: quantiles, and the most frequent.
ChessQuestions chess_questions(const GameSet& games, const Boundaries& where);

// ---------------------------------------------------------------------------------------------------------
// The answers

// Of every question at the boundaries of every game: place n = game * per_game + place.
Labels label_chess_text(const GameSet& games, const ChessQuestions& q);

// The questions about a piece of a side and a square: who moved there last, whether such a move was written,
// and lately; the plainest first. side: White, Black, the side to move, the other; kind n_kinds: any piece.
std::vector<uint32_t> natural_questions(const ChessQuestions& q, size_t side, size_t kind, size_t square);
