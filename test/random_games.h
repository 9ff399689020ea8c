// Games of random legal moves, for tests and benchmarks of what looks at boards.
#pragma once
#include "../dev/interp/games.h"

// The first `characters` of a game, with at least so many dots among them.
inline std::string random_game(uint64_t seed, size_t characters, size_t dots) {
    Random random{seed, random_stream("game")};
    for (;;) {
        chess::Game game;
        std::vector<chess::Move> moves;
        while (moves.size() < 120 && game.outcome() == chess::UNFINISHED) {
            const chess::MoveList legal = chess::legal_moves(game.position);
            moves.push_back(legal.moves[random.below(legal.size)]);
            game.play(moves.back());
        }
        const std::string text = chess::to_game_text(moves).substr(0, characters);
        if (text.size() == characters && dots_of(text, dots).size() == dots) return text;
    }
}
inline GameSet random_games(size_t n, uint64_t seed) {
    GameSet games;
    games.source = "random games", games.characters = 256, games.dots = 20;
    for (size_t i = 0; i < n; i++) games.texts.push_back(random_game(seed * 1000 + i, 256, 20));
    return games;
}
