// Games of chess as the tools of this folder measure on: as characters, from the first, one game each, cut to
// the same length. They are read from any file of games (data/game_file.h) or from the rows of chess-32
// shards. A game that is too short, or whose moves are not legal, is counted and left out; so is one that has
// been seen before.
//
// A dot stands between a move's number and the move, so at the dot of move n it is White's turn, and 2(n-1)
// plies have been played. The board metrics look at a game's first 20 dots (the field's choice: Karvonen et
// al., arXiv 2408.00113).
#pragma once
#include "../../data/game_file.h"
#include "../../data/tokenizer.h"
#include <unordered_set>

struct GameSet {
    std::string source;              // where they are from, for messages
    std::vector<std::string> texts;  // the first `characters` characters of each
    size_t characters = 0, dots = 0; // every text has so many characters and at least so many dots
    size_t read = 0, shorter = 0, illegal = 0, repeated = 0; // games seen; of them left out

    size_t size() const { return texts.size(); }
};

// The places of a text's first n dots.
inline std::vector<size_t> dots_of(const std::string& text, size_t n) {
    std::vector<size_t> places;
    for (size_t i = 0; i < text.size() && places.size() < n; i++)
        if (text[i] == '.') places.push_back(i);
    return places;
}

// Are the moves before the last of the first `dots` dots legal? What comes later may be cut.
inline bool legal_up_to_dots(const std::string& text, size_t dots) {
    const size_t last = dots_of(text, dots).back();
    chess::GameTextReader game;
    for (size_t i = 0; i < last && game.ok(); i++) game.push(text[i]);
    return game.ok();
}

// Up to `most` fit games of a file (or, for shards, of a glob).
inline GameSet read_games(const std::string& path, size_t characters, size_t dots, size_t most) {
    GameSet set;
    set.source = path;
    set.characters = characters;
    set.dots = dots;
    std::unordered_set<std::string> seen;
    const auto add = [&](std::string text) { // false: enough
        set.read++;
        text.resize(std::min({text.size(), characters, text.find(';', 1)}));
        if (text.size() < characters || dots_of(text, dots).size() < dots)
            set.shorter++;
        else if (!legal_up_to_dots(text, dots))
            set.illegal++;
        else if (!seen.insert(text).second)
            set.repeated++;
        else
            set.texts.push_back(std::move(text));
        return set.size() < most;
    };

    // A name under which nothing stands is a pattern; so is what begins as a shard. (A pipe does not.)
    struct stat st;
    const bool there = stat(path.c_str(), &st) == 0 && !S_ISDIR(st.st_mode);
    int32_t magic = 0;
    if (FILE* file = there && S_ISREG(st.st_mode) ? fopen(path.c_str(), "rb") : nullptr) {
        if (fread(&magic, sizeof magic, 1, file) != 1) magic = 0;
        fclose(file);
    }
    if (!there || magic == shard_magic) {
        for (const Shard& shard : open_shards(path)) {
            const char* name = shard.file.path.c_str();
            if (shard.header.tokenizer != TOKENIZER_CHESS)
                fail("%s: its tokens are %s, expected chess-32", name,
                     tokenizer_name(shard.header.tokenizer));
            if (shard.header.row == 0) fail("%s: a stream, expected rows that begin with a game", name);
            std::string row(std::min(shard.header.row, characters + 1), ' ');
            for (size_t at = 0; at < shard.header.tokens; at += shard.header.row) {
                for (size_t i = 0; i < row.size(); i++) {
                    if (shard.tokens[at + i] >= chess_vocab)
                        fail("%s: token %zu is %d, expected less than %zu", name, at + i,
                             shard.tokens[at + i], size_t(chess_vocab));
                    row[i] = chess_char(shard.tokens[at + i]);
                }
                if (!add(row)) return set;
            }
        }
    } else {
        const chess::InputFile input(path);
        chess::GameFile games(input.source(), path, "", {}, true);
        for (chess::GameRecord game; games.next(game);)
            if (!add(game.text)) return set;
        games.fail_if_none();
    }
    if (set.texts.empty())
        fail("%s: none of its %zu games has %zu characters with %zu legal moves of White (%zu are shorter, "
             "%zu not legal)",
             path.c_str(), set.read, characters, dots, set.shorter, set.illegal);
    return set;
}

// Two sets of up to `count` games each without a game in common: what is chosen on one is measured on the
// other. From two files, or from one, whose games then are dealt out in turn.
struct GameSplit {
    GameSet train, test;
};
inline GameSplit split_games(const std::string& path, const std::string& test_path, size_t characters,
                             size_t dots, size_t count) {
    GameSplit split;
    if (test_path.empty()) {
        const GameSet all = read_games(path, characters, dots, 2 * count);
        if (all.size() < 2)
            fail("%s: 1 fit game, expected 2 or more: one to choose on and one to measure on", path.c_str());
        split.train = split.test = all;
        split.train.texts.clear(), split.test.texts.clear();
        for (size_t i = 0; i < all.size() / 2 * 2; i++)
            (i % 2 ? split.test : split.train).texts.push_back(all.texts[i]);
        return split;
    }
    split.train = read_games(path, characters, dots, count);
    split.test = read_games(test_path, characters, dots, 2 * count);
    const std::unordered_set<std::string> known(split.train.texts.begin(), split.train.texts.end());
    std::vector<std::string> fresh;
    for (std::string& text : split.test.texts)
        if (known.count(text))
            split.test.repeated++;
        else if (fresh.size() < count)
            fresh.push_back(std::move(text));
    if (fresh.empty()) fail("%s: every one of its games is in %s, too", test_path.c_str(), path.c_str());
    split.test.texts = std::move(fresh);
    return split;
}
