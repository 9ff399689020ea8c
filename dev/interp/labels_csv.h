// The board functions of every position as a table (CSV), for use elsewhere: of all positions of the games of
// a file (data/game_file.h: PGN, game text, tables), or of the positions of a file of FEN lines. A function
// of squares is one field: 64 characters from a1, b1, .. to h8 for pieces (letters as in FEN) and colours (w,
// b), a dot where there is none or the class is masked; 16 hexadecimal digits for yes-or-no answers, bit s
// for square s, a1 = bit 0. The others are 0 or 1, or a whole number. No field holds a comma or a quotation
// mark, so none is quoted.
#pragma once
#include "boards.h"

std::string labels_header();

// One position; `cells` is only lent.
std::string labels_row(size_t game, size_t ply, const BoardHistory& history, std::vector<uint8_t>& cells);

struct LabelCounts {
    size_t games = 0, positions = 0;
    size_t left_out = 0; // games that are cut, without moves, or begin elsewhere
};

// Writes the header and a row for every position: game (from 1: its place in the file, or the line of a FEN),
// ply (0 at the start position), fen, and the functions in the order of their table. Refuses a file without
// any position, an illegal move and a wrong FEN, each with its place.
LabelCounts write_labels(const std::string& path, FILE* out);
