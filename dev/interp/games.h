// Games of chess as the tools of this folder measure on: as characters, from the first, one game each, cut to
// the same length. They are read from any file of games (data/game_file.h) or from the rows of chess-32
// shards. A game that is too short, or whose moves are not legal, is counted and left out; so is one that has
// been seen before.
//
// A dot stands between a move's number and the move, so at the dot of move n it is White's turn, and 2(n-1)
// plies have been played. The board metrics look at a game's first 20 dots (the field's choice: Karvonen et
// al., arXiv 2408.00113).
//
// Games of one event that stand one behind the other (people sort PGN so) share players, openings, even
// moves: they are a block, which goes to one set as a whole and counts as one witness. Of a long event, and
// of a file that names one for all games, every hundredth part is a block of its own, so that there are
// enough. A game of no event is a block by itself.
#pragma once
#include "../../data/game_file.h"
#include "../../data/tokenizer.h"

struct GameSet {
    std::string source;              // where they are from, for messages
    std::vector<std::string> texts;  // the first `characters` characters of each
    std::vector<uint32_t> block;     // (games) in rising order; none: every game by itself
    size_t characters = 0, dots = 0; // every text has so many characters and at least so many dots
    size_t read = 0, shorter = 0, illegal = 0, repeated = 0; // games seen; of them left out

    size_t size() const { return texts.size(); }
};

// The places of a text's first n dots.
std::vector<size_t> dots_of(const std::string& text, size_t n);

// Are the moves before the last of the first `dots` dots legal? What comes later may be cut.
bool legal_up_to_dots(const std::string& text, size_t dots);

// The blocks of games by their events, "" and "?" for none.
std::vector<uint32_t> blocks_of_events(const std::vector<std::string>& events);

// Up to `most` fit games of a file (or, for shards, of a glob).
GameSet read_games(const std::string& path, size_t characters, size_t dots, size_t most);

// Two sets of up to `count` games each without a game in common: what is chosen on one is measured on the
// other. From two files, or from one, whose blocks are dealt out: the next one to the smaller set.
struct GameSplit {
    GameSet train, test;
};
GameSplit split_games(const std::string& path, const std::string& test_path, size_t characters, size_t dots,
                      size_t count);
