// Games out of nothing: two weak players who look one move ahead, know what pieces are worth and where they
// like to stand, follow captures to their end, and choose among the good moves at random. Every player has a
// taste and a carelessness of his own, every game an opening, so that games look human and hardly repeat.
// Integers only: game number n of a seed is the same game on every machine, whatever was played before it.
#pragma once
#include "chess.h"
#include <array>

namespace chess {

struct SelfplayOptions {
    uint64_t seed = 1;
    int temperature =
        12; // centipawns: a move that much worse than the best is played half as often; 0: best only
    int max_plies = 240; // a game that long is left unfinished
};

struct PlayedGame {
    std::vector<Move> moves;
    Outcome outcome = UNFINISHED; // that: the ply cap
};

// ---------------------------------------------------------------------------------------------------------
// What a player values, in centipawns: middlegame and endgame, mixed by how many pieces are left

struct Value {
    int16_t middle, end;
};
constexpr Value material[7] = {{0, 0}, {85, 110}, {320, 300}, {330, 310}, {480, 520}, {940, 930}, {0, 0}};
constexpr int phase_weight[7] = {0, 0, 1, 1, 2, 4, 0}; // 24 with all pieces on the board, 0 with pawns only
constexpr int full_phase = 24;

// Where a piece stands well: White's view, rank 8 on top, files a to d (e to h are their mirror image).
constexpr int8_t middle_square[7][8][4] = {
    {},
    // pawns: the centre; the castled king's shelter stays
    {{0, 0, 0, 0},
     {60, 65, 70, 75},
     {18, 24, 30, 38},
     {2, 6, 14, 28},
     {-4, -2, 8, 28},
     {2, 0, 4, 8},
     {5, 9, 2, -20},
     {0, 0, 0, 0}},
    // knights: forward and off the rim
    {{-60, -30, -22, -20},
     {-30, -10, 5, 10},
     {-10, 15, 24, 30},
     {-6, 10, 24, 30},
     {-8, 8, 20, 24},
     {-16, 4, 20, 12},
     {-25, -14, 0, 6},
     {-50, -26, -20, -18}},
    // bishops: off the back rank, on long diagonals
    {{-15, -10, -12, -12},
     {-10, 0, 0, 0},
     {0, 6, 10, 10},
     {0, 14, 12, 16},
     {2, 10, 20, 16},
     {2, 12, 10, 14},
     {4, 16, 8, 8},
     {-12, -10, -18, -12}},
    // rooks: the seventh rank, the centre files
    {{12, 12, 12, 14},
     {18, 20, 22, 22},
     {0, 0, 2, 4},
     {-6, 0, 0, 2},
     {-8, 0, 0, 2},
     {-10, 0, 0, 2},
     {-12, -2, 2, 4},
     {-4, -10, 6, 14}},
    // queen: not too early
    {{-4, 0, 4, 6},
     {0, -6, 4, 4},
     {0, 2, 4, 4},
     {-6, -4, 0, 2},
     {-8, -4, -2, 2},
     {-6, 0, 0, 0},
     {-8, 0, 6, 6},
     {-10, -6, -2, 6}},
    // king: castled
    {{-60, -60, -60, -60},
     {-60, -60, -60, -60},
     {-60, -60, -60, -60},
     {-55, -60, -60, -60},
     {-45, -50, -55, -60},
     {-25, -30, -40, -45},
     {4, 2, -18, -26},
     {20, 34, 6, -4}},
};
constexpr int8_t end_square[7][8][4] = {
    {},
    // pawns: forward
    {{0, 0, 0, 0},
     {110, 105, 100, 95},
     {62, 58, 52, 50},
     {32, 28, 24, 22},
     {16, 14, 10, 8},
     {6, 6, 4, 4},
     {2, 4, 4, 4},
     {0, 0, 0, 0}},
    {{-40, -25, -15, -12},
     {-20, -8, 0, 4},
     {-12, 4, 12, 16},
     {-8, 6, 16, 20},
     {-8, 6, 16, 20},
     {-14, 2, 8, 14},
     {-22, -10, -2, 2},
     {-35, -24, -14, -10}},
    {{-12, -8, -6, -4},
     {-6, 0, 2, 2},
     {0, 4, 6, 8},
     {0, 6, 10, 12},
     {-2, 6, 10, 12},
     {-4, 2, 8, 8},
     {-6, -4, 0, 4},
     {-12, -8, -8, -4}},
    {{8, 8, 8, 8},
     {12, 12, 12, 12},
     {6, 6, 6, 6},
     {4, 4, 4, 4},
     {0, 0, 2, 2},
     {-2, 0, 0, 0},
     {-4, -2, 0, 0},
     {-4, -2, 0, 0}},
    {{-8, 2, 6, 8},
     {-4, 8, 14, 18},
     {-6, 6, 14, 20},
     {0, 12, 18, 24},
     {0, 10, 16, 22},
     {-6, 0, 10, 12},
     {-12, -10, -6, 0},
     {-18, -14, -10, -8}},
    // king: the middle of the board
    {{-50, -30, -20, -16},
     {-22, -4, 6, 10},
     {-10, 10, 20, 24},
     {-12, 10, 24, 30},
     {-14, 6, 22, 28},
     {-18, 0, 12, 18},
     {-28, -12, 0, 4},
     {-50, -34, -24, -22}},
};

// A sum over pieces, seen from White, kept up to date move by move.
struct Balance {
    int middle = 0, end = 0, phase = 0;
};

struct Player {
    Value value[7][64]; // of a White piece there; Black's are the same, upside down
    int temperature;

    // Tastes differ by up to 6 centipawns for every piece and square, carelessness by a factor of 4.
    Player(const SelfplayOptions& options, Random& random) {
        for (int type = PAWN; type <= KING; type++)
            for (Square s = 0; s < 64; s++) {
                const int row = 7 - rank_of(s), column = std::min(file_of(s), 7 - file_of(s));
                const int taste = int(random.below(13)) - 6;
                value[type][s] = {int16_t(material[type].middle + middle_square[type][row][column] + taste),
                                  int16_t(material[type].end + end_square[type][row][column] + taste / 2)};
            }
        temperature = options.temperature * int(8 + random.below(25)) / 16;
    }

    void add(Balance& b, Square s, Color c, PieceType t, int sign) const {
        const Value v = value[t][c == WHITE ? s : s ^ 56];
        const int signed_one = c == WHITE ? sign : -sign;
        b.middle += signed_one * v.middle;
        b.end += signed_one * v.end;
        b.phase += sign * phase_weight[t];
    }
    Balance balance(const Position& p) const {
        Balance b;
        for (Bitboard all = p.occupied(); all;) {
            const Square s = take_first(all);
            add(b, s, p.board[s] > 0 ? WHITE : BLACK, p.type_at(s), 1);
        }
        return b;
    }
    Balance balance_after(Balance b, const Position& p, Move m) const {
        const Color us = p.turn;
        const PieceType type = p.type_at(m.from);
        const Square victim = is_en_passant(p, m) ? m.to ^ 8 : m.to;
        if (p.board[victim]) add(b, victim, !us, p.type_at(victim), -1);
        add(b, m.from, us, type, -1);
        add(b, m.to, us, m.promotion ? PieceType(m.promotion) : type, 1);
        if (is_castling(p, m)) {
            const RookHop rook = castling_rook(m.to);
            add(b, rook.from, us, ROOK, -1);
            add(b, rook.to, us, ROOK, 1);
        } else if (const int lost = count(p.castling & rights_lost(m.from)); lost > 0) {
            b.middle -= (us == WHITE ? 30 : -30) * lost;
        }
        return b;
    }
};

// ---------------------------------------------------------------------------------------------------------
// Search

constexpr int mate_score = 30000, no_score = -32000; // mate in n plies: mate_score - n

inline int king_distance(Square a, Square b) {
    return std::max(std::abs(file_of(a) - file_of(b)), std::abs(rank_of(a) - rank_of(b)));
}

struct Search {
    const Player& player;
    Position p;

    // For the side to move. With little on the board the stronger side also drives the weaker king to the
    // edge and comes near with its own, without which it would never mate.
    int evaluate(const Balance& b) const {
        const int phase = std::min(b.phase, full_phase);
        int score = (b.middle * phase + b.end * (full_phase - phase)) / full_phase;
        if (b.phase <= 6 && std::abs(score) > 250) {
            const Color strong = score > 0 ? WHITE : BLACK;
            const Square weak_king = p.king(!strong);
            const int edge =
                std::abs(2 * file_of(weak_king) - 7) + std::abs(2 * rank_of(weak_king) - 7); // 2..14
            const int drive = 8 * edge - 10 * king_distance(weak_king, p.king(strong));
            score += strong == WHITE ? drive : -drive;
        }
        return p.turn == WHITE ? score : -score;
    }

    // Captures and promotions until it is quiet, most valuable victim by least valuable attacker first. At
    // its first ply a check is answered with any move, so that mate is seen.
    int quiesce(const Balance& b, int alpha, int beta, int ply, bool first_ply) {
        MoveList list;
        const bool check = first_ply && in_check(p);
        int best = no_score;
        if (!check) {
            best = evaluate(b);
            if (best >= beta) return best;
            alpha = std::max(alpha, best);
        }
        generate(p, list, check ? LEGAL : FORCING);
        if (check && list.size == 0) return ply - mate_score;
        int order[sizeof list.moves / sizeof *list.moves];
        for (size_t i = 0; i < list.size; i++) {
            const Move m = list.moves[i];
            order[i] =
                16 * material[p.type_at(m.to)].middle + 16 * material[m.promotion].middle - p.type_at(m.from);
        }
        const int quiet = best;
        for (size_t i = 0; i < list.size; i++) {
            const size_t top = size_t(std::max_element(order + i, order + list.size) - order);
            std::swap(order[i], order[top]);
            std::swap(list.moves[i], list.moves[top]);
            const Move m = list.moves[i];
            // What this capture wins cannot lift the score to alpha any more.
            if (!check && quiet + (order[i] + 15) / 16 + 150 < alpha) break;
            // Nor does a big piece take a protected small one.
            const PieceType taker = p.type_at(m.from);
            if (!check && !m.promotion && material[taker].middle > material[p.type_at(m.to)].middle + 50 &&
                attackers(p, m.to, !p.turn, p.occupied() ^ bit(m.from)))
                continue;
            const Balance next = player.balance_after(b, p, m);
            const Undo undo = make(p, m);
            const int score = -quiesce(next, -beta, -alpha, ply + 1, false);
            unmake(p, m, undo);
            best = std::max(best, score);
            alpha = std::max(alpha, score);
            if (alpha >= beta) break;
        }
        return best;
    }

    // Alpha-beta over all moves, `depth` plies and then captures.
    int search(const Balance& b, int depth, int alpha, int beta, int ply) {
        if (depth == 0) return quiesce(b, alpha, beta, ply, true);
        if (is_insufficient_material(p)) return 0;
        MoveList list;
        generate(p, list);
        if (list.size == 0) return in_check(p) ? ply - mate_score : 0;
        std::stable_partition(list.moves, list.moves + list.size,
                              [&](Move m) { return p.board[m.to] || m.promotion; });
        int best = no_score;
        for (Move m : list) {
            const Balance next = player.balance_after(b, p, m);
            const Undo undo = make(p, m);
            const int score = -search(next, depth - 1, -beta, -alpha, ply + 1);
            unmake(p, m, undo);
            best = std::max(best, score);
            alpha = std::max(alpha, score);
            if (alpha >= beta) break;
        }
        return best;
    }
};

// log2 of 1 + i/256 in 1/65536, without floating point: squaring a number doubles its logarithm, which brings
// out the binary digits one by one.
inline std::array<int, 257> make_log_table() {
    std::array<int, 257> table = {};
    for (uint64_t i = 0; i <= 256; i++) {
        uint64_t x = (256 + i) << 23; // 2^31 is 1
        int log = 0;
        for (int digit = -1; digit < 16; digit++) {
            const int carry = int(x >> 32);
            x >>= carry;
            log = 2 * log + carry;
            x = x * x >> 31;
        }
        table[i] = log;
    }
    return table;
}
inline const std::array<int, 257> log_table = make_log_table();

// log2(x) in 1/65536, x > 0: eight bits from the table, the next sixteen by interpolation.
inline int fixed_log2(uint64_t x) {
    const int whole = std::bit_width(x) - 1;
    const uint64_t mantissa = x << (63 - whole); // the first bit is 1
    const size_t i = mantissa >> 55 & 255;
    const int rest = int(mantissa >> 39 & 65535);
    return (whole << 16) + log_table[i] + int(int64_t(log_table[i + 1] - log_table[i]) * rest >> 16);
}

// To draw a move with probability proportional to 2^(score / temperature), add to every score an independent
// -temperature * log2(-log2 u), u uniform in (0, 1), and take the highest sum (the Gumbel-max trick). Unlike
// drawing from a list of weights it needs the exact score of the move chosen only: all others may be cut off.
inline int score_noise(int temperature, Random& random) {
    const uint64_t u = random.u64() | 1;                           // of 2^64
    const int minus_log = std::max(1, (64 << 16) - fixed_log2(u)); // in 1/65536
    return int(int64_t(temperature) * ((16 << 16) - fixed_log2(uint64_t(minus_log))) / 65536);
}

// The player's move in a game that is not over.
inline Move choose_move(const Game& game, const Player& player, Random& random) {
    const Position& p = game.position;
    MoveList list;
    generate(p, list);
    if (list.size == 1) return list.moves[0];
    const int pieces = count(p.occupied());
    const int depth = pieces <= 5 ? 3 : pieces <= 9 ? 2 : 1; // own move included

    // More choice in the opening; and once in a while anyone is careless.
    int temperature = player.temperature;
    if (game.keys.size() <= 12) temperature = temperature * 3 / 2;
    if (random.below(40) == 0) temperature *= 4;

    struct Candidate {
        Move move;
        Balance balance;
        int noise, promise;
    };
    Candidate candidates[sizeof list.moves / sizeof *list.moves];
    const Balance now = player.balance(p);
    Search search{player, p};
    for (size_t i = 0; i < list.size; i++) {
        const Balance b = player.balance_after(now, p, list.moves[i]);
        const int noise = score_noise(temperature, random);
        candidates[i] = {list.moves[i], b, noise, noise + (p.turn == WHITE ? b.middle : -b.middle)};
    }
    // The most promising first: then most others fall short at the first reply.
    std::sort(candidates, candidates + list.size, [](const Candidate& a, const Candidate& b) {
        return a.promise != b.promise ? a.promise > b.promise
                                      : a.move.from * 64 + a.move.to < b.move.from * 64 + b.move.to;
    });
    int best = 2 * no_score;
    Move chosen = candidates[0].move;
    for (size_t i = 0; i < list.size; i++) {
        const Candidate& c = candidates[i];
        const Undo undo = make(search.p, c.move);
        const bool few = count(search.p.colors[search.p.turn]) <= 5; // who may be stalemated
        int score = 0;
        if (game.occurrences(search.p.key) == 0 && !(few && is_stalemate(search.p)))
            score = -search.search(c.balance, depth - 1, no_score, -std::max(best - c.noise, no_score), 1);
        unmake(search.p, c.move, undo);
        if (score + c.noise > best) best = score + c.noise, chosen = c.move;
    }
    return chosen;
}

// ---------------------------------------------------------------------------------------------------------
// Games

// The openings that amateurs play most, each as far as they usually know it. A game follows one of them for a
// random number of plies.
inline constexpr const char* openings[] = {
    "e4 e5 Nf3 Nc6 Bb5 a6 Ba4 Nf6 O-O Be7",
    "e4 e5 Nf3 Nc6 Bb5 Nf6 O-O Nxe4",
    "e4 e5 Nf3 Nc6 Bc4 Bc5 c3 Nf6",
    "e4 e5 Nf3 Nc6 Bc4 Nf6 Ng5 d5 exd5 Na5",
    "e4 e5 Nf3 Nc6 Bc4 Nf6 d3 Bc5",
    "e4 e5 Nf3 Nc6 d4 exd4 Nxd4 Nf6",
    "e4 e5 Nf3 Nc6 Nc3 Nf6",
    "e4 e5 Nf3 Nf6 Nxe5 d6 Nf3 Nxe4",
    "e4 e5 Nf3 d6 d4 exd4 Nxd4 Nf6",
    "e4 e5 Nc3 Nf6 f4 d5",
    "e4 e5 f4 exf4 Nf3 g5",
    "e4 e5 Bc4 Nf6 d3 Nc6",
    "e4 e5 d4 exd4 Qxd4 Nc6 Qe3 Nf6",
    "e4 c5 Nf3 d6 d4 cxd4 Nxd4 Nf6 Nc3 a6",
    "e4 c5 Nf3 d6 d4 cxd4 Nxd4 Nf6 Nc3 g6",
    "e4 c5 Nf3 Nc6 d4 cxd4 Nxd4 Nf6 Nc3 d6",
    "e4 c5 Nf3 e6 d4 cxd4 Nxd4 a6",
    "e4 c5 Nf3 Nc6 Bb5 g6",
    "e4 c5 c3 d5 exd5 Qxd5 d4 Nf6",
    "e4 c5 Nc3 Nc6 g3 g6",
    "e4 c5 d4 cxd4 c3 dxc3 Nxc3 Nc6",
    "e4 e6 d4 d5 Nc3 Nf6 Bg5 Be7",
    "e4 e6 d4 d5 e5 c5 c3 Nc6",
    "e4 e6 d4 d5 exd5 exd5 Nf3 Nf6",
    "e4 e6 d4 d5 Nd2 Nf6",
    "e4 c6 d4 d5 Nc3 dxe4 Nxe4 Bf5",
    "e4 c6 d4 d5 e5 Bf5 Nf3 e6",
    "e4 c6 d4 d5 exd5 cxd5 Bd3 Nc6",
    "e4 d5 exd5 Qxd5 Nc3 Qa5 d4 Nf6",
    "e4 d5 exd5 Nf6 d4 Nxd5",
    "e4 d6 d4 Nf6 Nc3 g6",
    "e4 g6 d4 Bg7 Nc3 d6",
    "e4 Nf6 e5 Nd5 d4 d6",
    "e4 b6 d4 Bb7 Bd3 e6",
    "d4 d5 c4 e6 Nc3 Nf6 Bg5 Be7",
    "d4 d5 c4 c6 Nf3 Nf6 Nc3 dxc4",
    "d4 d5 c4 dxc4 Nf3 Nf6 e3 e6",
    "d4 d5 Nf3 Nf6 Bf4 c5 e3 Nc6",
    "d4 d5 Bf4 Nf6 e3 e6 Nf3 Bd6",
    "d4 Nf6 c4 g6 Nc3 Bg7 e4 d6 Nf3 O-O",
    "d4 Nf6 c4 g6 Nc3 d5 cxd5 Nxd5",
    "d4 Nf6 c4 e6 Nc3 Bb4 e3 O-O",
    "d4 Nf6 c4 e6 Nf3 b6 g3 Bb7",
    "d4 Nf6 c4 c5 d5 e6 Nc3 exd5",
    "d4 Nf6 Nf3 g6 Bf4 Bg7",
    "d4 f5 g3 Nf6 Bg2 e6",
    "d4 e5 dxe5 Nc6 Nf3 Qe7",
    "c4 e5 Nc3 Nf6 g3 d5",
    "c4 c5 Nf3 Nf6 Nc3 Nc6",
    "c4 Nf6 Nc3 e6",
    "Nf3 d5 g3 Nf6 Bg2 e6",
    "Nf3 Nf6 c4 g6",
    "b3 e5 Bb2 Nc6",
    "f4 d5 Nf3 Nf6 e3 g6",
    "g3 d5 Bg2 e5",
    "e3 d5 d4 Nf6",
    "d3 e5 Nf3 Nc6",
};

// Game number `index` of the seed.
inline PlayedGame play_game(const SelfplayOptions& options, uint64_t index) {
    Random random{mix64(options.seed ^ random_stream("self-play")), index};
    const Player players[2] = {Player(options, random), Player(options, random)};
    Game game;
    PlayedGame played;
    const size_t max_plies = size_t(options.max_plies);

    if (random.below(16) != 0) {
        std::string_view line = openings[random.below(std::size(openings))];
        for (uint64_t known = random.below(11); known > 0 && !line.empty() && played.moves.size() < max_plies;
             known--) {
            const size_t end = std::min(line.find(' '), line.size());
            played.moves.push_back(parse_san(game.position, line.substr(0, end)).move);
            game.play(played.moves.back());
            line.remove_prefix(std::min(end + 1, line.size()));
        }
    }
    while (played.moves.size() < max_plies && (played.outcome = game.outcome()) == UNFINISHED) {
        played.moves.push_back(choose_move(game, players[game.position.turn], random));
        game.play(played.moves.back());
    }
    played.outcome = game.outcome();
    return played;
}

} // namespace chess
