// Tests of the chess rules (data/chess.h), the words of movetext (data/movetext.h), the PGN reader
// (data/pgn.h) and the players (data/selfplay.h): published perft counts, FEN, SAN, draws, what the board
// functions of the interpretability tools will ask, game text, and PGN of every awkward kind.
#include "../data/pgn.h"
#include "../data/selfplay.h"
#include "check.h"

using namespace chess;

static const char* kiwipete = "r3k2r/p1ppqpb1/bn2pnp1/3PN3/1p2P3/2N2Q1p/PPPBBPPP/R3K2R w KQkq - 0 1";
static const char* position_3 = "8/2p5/3p4/KP5r/1R3p1k/8/4P1P1/8 w - - 0 1";
static const char* position_4 = "r3k2r/Pppp1ppp/1b3nbN/nP6/BBP1P3/q4N2/Pp1P2PP/R2Q1RK1 w kq - 0 1";
static const char* position_5 = "rnbq1k1r/pp1Pbppp/2p5/8/2B5/8/PPP1NnPP/RNBQK2R w KQ - 1 8";
static const char* position_6 = "r4rk1/1pp1qppp/p1np1n2/2b1p1B1/2B1P1b1/P1NP1N2/1PP1QPPP/R4RK1 w - - 0 10";

// A game from its moves, as `1.e4 e5 2.Nf3`.
static Game game_of(const std::string& text) {
    const GameTextReader reader = parse_game_text(";" + text);
    check(reader.ok() && reader.token.empty(), "%s: %s %s", text.c_str(), reader.error.c_str(),
          reader.token.c_str());
    Game game;
    for (Move m : reader.moves) game.play(m);
    return game;
}

static Move move_of(const Position& p, const std::string& san) { return parse_san(p, san).move; }

static void test_perft() {
    struct {
        const char* fen;
        int depth;
        uint64_t nodes;
    } cases[] = {{start_fen, 5, 4865609},   {kiwipete, 4, 4085603},   {position_3, 6, 11030083},
                 {position_4, 5, 15833292}, {position_5, 4, 2103487}, {position_6, 4, 3894594}};
    for (const auto& c : cases) {
        Position p = parse_fen(c.fen);
        const Position before = p;
        const uint64_t nodes = perft(p, c.depth);
        check(nodes == c.nodes, "%s depth %d: %llu, expected %llu", c.fen, c.depth, (unsigned long long)nodes,
              (unsigned long long)c.nodes);
        check(to_fen(p) == to_fen(before) && p.key == before.key, "%s: unmake left another position", c.fen);
    }
}

// Every legal move of every position within `depth` plies: the key and the bitboards kept up to date are
// those computed afresh, unmake restores everything, FEN and SAN come back as they went, and legal moves are
// exactly the pseudo-legal ones that do not leave the king in check.
struct Walk {
    size_t positions = 0, moves = 0;
    std::string first_fault;
    void fault(const Position& p, const std::string& what) {
        if (first_fault.empty()) first_fault = to_fen(p) + ": " + what;
    }
    static bool same(const Position& a, const Position& b) {
        return memcmp(a.types, b.types, sizeof a.types) == 0 &&
               memcmp(a.colors, b.colors, sizeof a.colors) == 0 &&
               memcmp(a.board, b.board, sizeof a.board) == 0 && a.key == b.key && a.turn == b.turn &&
               a.castling == b.castling && a.en_passant_legal == b.en_passant_legal &&
               (!a.en_passant_legal || a.en_passant == b.en_passant) && a.halfmove == b.halfmove &&
               a.fullmove == b.fullmove;
    }
    void visit(Position& p, int depth) {
        positions++;
        if (p.key != compute_key(p)) fault(p, "key");
        if (!same(parse_fen(to_fen(p)), p)) fault(p, "FEN");
        const MoveList legal = legal_moves(p), pseudo = pseudo_legal_moves(p);
        size_t safe = 0;
        for (Move m : pseudo) {
            Position next = p;
            make(next, m);
            const bool exposed = attackers(next, next.king(p.turn), !p.turn) != 0;
            safe += !exposed;
            if (legal.contains(m) == exposed) fault(p, "legality of " + to_uci(m));
        }
        if (safe != legal.size) fault(p, "number of legal moves");
        MoveList forcing;
        generate(p, forcing, FORCING);
        size_t expected = 0;
        for (Move m : legal) expected += is_capture(p, m) || m.promotion;
        if (forcing.size != expected) fault(p, "captures");
        for (Move m : forcing)
            if (!legal.contains(m)) fault(p, "capture " + to_uci(m));
        for (Move m : legal) {
            moves++;
            const std::string san = to_san(p, m, legal);
            const ParsedSan back = parse_san(p, san, legal);
            if (back.error || back.move != m) fault(p, "SAN " + san + " for " + to_uci(m));
            if (const ParsedSan uci = parse_san(p, to_uci(m), legal); uci.error || uci.move != m)
                fault(p, "coordinates " + to_uci(m));
            for (Move other : legal)
                if (other != m && to_san(p, other, legal) == san) fault(p, "SAN " + san + " twice");
            const Position before = p;
            const Undo undo = make(p, m);
            if (depth > 1) visit(p, depth - 1);
            unmake(p, m, undo);
            if (!same(p, before) || p.en_passant != before.en_passant) fault(p, "unmake of " + to_uci(m));
        }
    }
};

static void test_walk() {
    const char* fens[] = {
        start_fen,
        kiwipete,
        position_3,
        position_4,
        position_5,
        position_6,
        "7k/8/8/1N3N2/8/1N3N2/8/K7 w - - 0 1",        // four knights at d4, d6 ..: file, rank, both
        "k7/8/8/1Q3Q2/8/8/1Q3Q2/4K3 w - - 0 1",       // queens that need file and rank
        "1n6/P1P4k/8/8/8/8/p1p4K/1N6 w - - 0 1",      // promotions with and without capture
        "8/8/8/K2pP2r/8/8/8/7k w - d6 0 2",           // en passant would open the rank
        "r3k2r/8/8/8/3pPp2/8/8/R3K2R b KQkq e3 0 1"}; // en passant from two sides, castling
    for (const char* fen : fens) {
        Walk walk;
        Position p = parse_fen(fen);
        walk.visit(p, 2);
        check(walk.first_fault.empty(), "%s", walk.first_fault.c_str());
        check(walk.moves >= 10);
    }
}

static void test_fen() {
    for (const char* fen : {start_fen, kiwipete, position_3, position_4, position_5, position_6,
                            "rnbqkbnr/ppp1p1pp/8/3pPp2/8/8/PPPP1PPP/RNBQKBNR w KQkq f6 0 3",
                            "8/8/8/8/8/4k3/8/4K2R w K - 99 120"})
        check(to_fen(parse_fen(fen)) == fen, "%s", fen);
    check(to_fen(parse_fen("8/8/8/8/8/4k3/8/4K2R w K -")) == "8/8/8/8/8/4k3/8/4K2R w K - 0 1"); // four fields
    check(to_fen(start_position()) == start_fen);
    // No pawn attacks e3, or the one that does is pinned: the square says nothing, so it is not kept.
    check(to_fen(parse_fen("rnbqkbnr/pppppppp/8/8/4P3/8/PPPP1PPP/RNBQKBNR b KQkq e3 0 1")) ==
          "rnbqkbnr/pppppppp/8/8/4P3/8/PPPP1PPP/RNBQKBNR b KQkq - 0 1");
    check(to_fen(parse_fen("8/8/8/K2pP2r/8/8/8/7k w - d6 0 2")) == "8/8/8/K2pP2r/8/8/8/7k w - - 0 2");

    struct {
        const char *fen, *part;
    } bad[] = {
        {"", "6 fields"},
        {"8/8", "6 fields"},
        {"rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1 x", "more"},
        {"rnbqkbnr/pppppppp/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1", "8 ranks"},
        {"rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR/8 w KQkq - 0 1", "8 ranks"},
        {"rnbqkbnr/ppppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1", "8 ranks"},
        {"rnbqkbnr/pppppppp/9/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1", "'9' is not a piece"},
        {"rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBN w KQkq - 0 1", "8 ranks"},
        {"rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQQBNR w - - 0 1", "White has 0 kings"},
        {"rnbqkknr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w - - 0 1", "Black has 2 kings"},
        {"Pnbqkbnr/pppppppp/8/8/8/8/1PPPPPPP/RNBQKBNR w KQk - 0 1", "first or last rank"},
        {"rnbqkbnr/pppppppp/8/8/8/Q7/PPPPPPPP/RNBQKBNR w KQkq - 0 1", "more pieces"},
        {"QQQQQQQQ/QQQQQQQQ/QQQQQQQQ/QQQQQQQQ/QQQQQQQQ/QQQQQQQQ/8/K6k w - - 0 1", "more pieces"},
        {"4k3/8/8/8/8/8/4R3/4K3 w - - 0 1", "can take the king"},
        {"rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR x KQkq - 0 1", "w or b"},
        {"rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQxq - 0 1", "castling rights"},
        {"rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KK - 0 1", "castling rights"},
        {"1nbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1", "castling right q without"},
        {"rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq e3 0 1", "just passed 'e3'"},
        {"rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR b KQkq e3 0 1", "just passed 'e3'"},
        {"rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq i9 0 1", "just passed 'i9'"},
        {"rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - -1 1", "move count"},
        {"rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 99999", "move count"},
    };
    for (const auto& b : bad) check_error(parse_fen(b.fen), "FEN", b.part);
    check_error(parse_fen(std::string("8/8\n\0/8", 7)), "FEN '8/8", "/8': expected 6 fields");
}

static void test_san() {
    struct {
        const char *fen, *uci, *san;
    } exact[] = {
        {start_fen, "g1f3", "Nf3"},
        {kiwipete, "e1g1", "O-O"},
        {kiwipete, "e1c1", "O-O-O"},
        {kiwipete, "e5f7", "Nxf7"},
        {kiwipete, "d5e6", "dxe6"},
        {"7k/8/8/8/8/1N3N2/8/K7 w - - 0 1", "b3d4", "Nbd4"},      // by file
        {"7k/8/8/5N2/8/5N2/8/K7 w - - 0 1", "f3d4", "N3d4"},      // by rank
        {"7k/8/8/1N3N2/8/1N3N2/8/K7 w - - 0 1", "f3d4", "Nf3d4"}, // by both
        {"7k/8/8/5N2/8/1N3N2/8/K7 w - - 0 1", "f5d4", "N5d4"},    // by rank, though three can go
        {"7k/8/8/5N2/8/1N3N2/8/K7 w - - 0 1", "b3d4", "Nbd4"},    //
        {"4k3/4r3/8/1N6/8/8/4N3/4K3 w - - 0 1", "b5d4", "Nd4"},   // the other knight is pinned
        {"3k4/P7/8/8/8/8/8/K7 w - - 0 1", "a7a8q", "a8=Q+"},      //
        {"1r1k4/P7/8/8/8/8/8/K7 w - - 0 1", "a7b8n", "axb8=N"},   //
        {"rnbqkbnr/ppp1p1pp/8/3pPp2/8/8/PPPP1PPP/RNBQKBNR w KQkq f6 0 3", "e5f6", "exf6"}, // en passant
        {"r1bqkb1r/pppp1ppp/2n2n2/4p2Q/2B1P3/8/PPPP1PPP/RNB1K1NR w KQkq - 4 4", "h5f7", "Qxf7#"},
        {"5k2/8/8/8/8/8/8/R3K2R w KQ - 0 1", "e1g1", "O-O+"},
    };
    for (const auto& e : exact) {
        const Position p = parse_fen(e.fen);
        const Move m = parse_san(p, e.uci).move;
        check(m != no_move && to_uci(m) == e.uci && to_san(p, m) == e.san, "%s: %s, expected %s", e.uci,
              m == no_move ? "illegal" : to_san(p, m).c_str(), e.san);
    }

    struct {
        const char *fen, *text, *uci;
    } tolerant[] = {
        {kiwipete, "0-0", "e1g1"},
        {kiwipete, "0-0-0", "e1c1"},
        {kiwipete, "o-o", "e1g1"},
        {kiwipete, "O-O+", "e1g1"},
        {kiwipete, "Nxf7+", "e5f7"},
        {kiwipete, "Nf7!?", "e5f7"},
        {kiwipete, "Ne5xf7", "e5f7"},
        {kiwipete, "Nexf7#", "e5f7"},
        {kiwipete, "N5xf7", "e5f7"},
        {kiwipete, "Ne5-f7", "e5f7"},
        {kiwipete, "d5xe6", "d5e6"},
        {kiwipete, "d5:e6", "d5e6"},
        {kiwipete, "dxe6!!", "d5e6"},
        {kiwipete, "de6", "d5e6"},
        {kiwipete, "Pd6", "d5d6"},
        {kiwipete, "e5f7", "e5f7"},
        {start_fen, "e2-e4", "e2e4"},
        {start_fen, "Ng1-f3", "g1f3"},
        {position_5, "dxc8=Q", "d7c8q"},
        {position_5, "dxc8Q", "d7c8q"},
        {position_5, "dxc8(Q)", "d7c8q"},
        {position_5, "dxc8/Q", "d7c8q"},
        {position_5, "dxc8=q", "d7c8q"},
        {position_5, "dxc8b", "d7c8b"},
        {position_5, "dxc8=N+", "d7c8n"},
        {"rnbqkbnr/ppp1p1pp/8/3pPp2/8/8/PPPP1PPP/RNBQKBNR w KQkq f6 0 3", "exf6e.p.", "e5f6"},
    };
    for (const auto& t : tolerant) {
        const ParsedSan parsed = parse_san(parse_fen(t.fen), t.text);
        check(!parsed.error && to_uci(parsed.move) == t.uci, "%s: %s", t.text, parsed.error);
    }

    struct {
        const char *fen, *text, *error;
    } wrong[] = {
        {start_fen, "e5", "illegal move"},
        {start_fen, "Nd2", "illegal move"},
        {start_fen, "O-O", "illegal move"},
        {start_fen, "", "not a move"},
        {start_fen, "+", "not a move"},
        {start_fen, "N", "not a move"},
        {start_fen, "e", "not a move"},
        {start_fen, "e9", "not a move"},
        {start_fen, "i4", "not a move"},
        {start_fen, "O-O-O-O", "not a move"},
        {start_fen, "OxO", "not a move"},
        {start_fen, "Nf3x", "not a move"},
        {start_fen, "Nxxf3", "not a move"},
        {start_fen, "--", "not a move"},
        {start_fen, "Z0", "not a move"},
        {start_fen, "e4e4e4e4e4e4", "not a move"},
        {start_fen, "=Q", "not a move"},
        {start_fen, "e4=Q", "illegal move"},
        {kiwipete, "Kg1", "illegal move"},    // castling is written O-O
        {kiwipete, "e6", "illegal move"},     // a pawn's capture needs its file
        {position_5, "dxc8", "illegal move"}, // a promotion needs its piece
        {position_5, "dxc8=K", "not a move"},
        {"7k/8/8/8/8/1N3N2/8/K7 w - - 0 1", "Nd4", "ambiguous move"},
        {"7k/8/8/5N2/8/5N2/8/K7 w - - 0 1", "Nfd4", "ambiguous move"},
    };
    for (const auto& w : wrong) {
        const ParsedSan parsed = parse_san(parse_fen(w.fen), w.text);
        check(parsed.error && std::string(parsed.error) == w.error && parsed.move == no_move,
              "%s: %s, expected %s", w.text, parsed.error ? parsed.error : "accepted", w.error);
    }
    check(parse_san(start_position(), std::string_view("e4\0", 3)).error);
    check(parse_san(start_position(), std::string_view("\0\0", 2)).error);
}

static void test_draws() {
    check(game_of("1.Nf3 Nc6 2.Ng1 Nb8 3.Nf3 Nc6 4.Ng1").outcome() == UNFINISHED);
    check(game_of("1.Nf3 Nc6 2.Ng1 Nb8 3.Nf3 Nc6 4.Ng1").can_claim_draw()); // 4...Nb8 makes it three
    check(!game_of("1.Nf3 Nc6 2.Ng1 Nb8 3.Nf3 Nc6").can_claim_draw());
    const Game repeated = game_of("1.Nf3 Nc6 2.Ng1 Nb8 3.Nf3 Nc6 4.Ng1 Nb8");
    check(repeated.repetitions() == 3 && repeated.outcome() == THREEFOLD && repeated.can_claim_draw());
    // The same pieces after the king has moved are another position: the rights are gone.
    check(game_of("1.e4 e5 2.Ke2 Ke7 3.Ke1 Ke8 4.Ke2 Ke7 5.Ke1 Ke8").repetitions() == 2);
    // With en passant possible it is another position; with a capture that no pawn could make it is the same.
    check(game_of("1.e4 a6 2.e5 d5 3.Nf3 Nf6 4.Ng1 Ng8 5.Nf3 Nf6 6.Ng1 Ng8").repetitions() == 2);
    check(game_of("1.a4 Nf6 2.Nf3 Ng8 3.Ng1 Nf6 4.Nf3 Ng8 5.Ng1").repetitions() == 3);

    Game clock(parse_fen("8/8/8/4k3/8/8/4P3/R3K3 w - - 98 80"));
    check(clock.outcome() == UNFINISHED && !clock.can_claim_draw());
    clock.play(move_of(clock.position, "Ra2"));
    check(clock.position.halfmove == 99 && clock.outcome() == UNFINISHED && clock.can_claim_draw());
    clock.play(move_of(clock.position, "Kd5"));
    check(clock.outcome() == FIFTY_MOVES && clock.can_claim_draw());
    clock.play(move_of(clock.position, "e4+"));
    check(clock.position.halfmove == 0 && clock.outcome() == UNFINISHED && !clock.can_claim_draw());
    // Mate on the hundredth ply is mate.
    Game mate(parse_fen("7k/8/6K1/8/8/8/8/R7 w - - 99 80"));
    mate.play(move_of(mate.position, "Ra8"));
    check(mate.outcome() == CHECKMATE && !mate.can_claim_draw());

    const auto drawn = [](const char* fen) { return is_insufficient_material(parse_fen(fen)); };
    check(drawn("4k3/8/8/8/8/8/8/4K3 w - - 0 1") && drawn("4k3/8/8/8/8/8/8/4KN2 w - - 0 1"));
    check(drawn("4k3/8/8/8/8/8/8/4KB2 w - - 0 1") && drawn("2b1k3/8/8/8/8/8/8/4KB2 w - - 0 1"));
    check(!drawn("4kb2/8/8/8/8/8/8/4KB2 w - - 0 1") && !drawn("4k3/8/8/8/8/8/8/4KNN1 w - - 0 1"));
    check(!drawn("4kn2/8/8/8/8/8/8/4KN2 w - - 0 1") && !drawn("4k3/8/8/8/8/8/8/3BKN2 w - - 0 1"));
    check(!drawn("4k3/8/8/8/8/8/4P3/4K3 w - - 0 1") && !drawn("4k3/8/8/8/8/8/8/4K2R w K - 0 1"));
    check(Game(parse_fen("4k3/8/8/8/8/8/8/4KN2 w - - 0 1")).outcome() == INSUFFICIENT_MATERIAL);
    check(game_of("1.f3 e5 2.g4 Qh4#").outcome() == CHECKMATE);
}

// The questions that the board functions of the interpretability tools ask, on positions with known answers.
static void test_board_facts() {
    // Piece codes: pawn 1, knight 2, bishop 3, rook 4, queen 5, king 6, Black's negative, a1 first.
    const int8_t after_nf3[64] = {4,  2,  3,  5,  6,  3,  0,  4,  1,  1,  1,  1,  0,  1,  1,  1,
                                  0,  0,  0,  0,  0,  2,  0,  0,  0,  0,  0,  0,  1,  0,  0,  0,
                                  0,  0,  0,  0,  -1, 0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,
                                  -1, -1, -1, -1, 0,  -1, -1, -1, -4, -2, -3, -5, -6, -3, -2, -4};
    check(memcmp(game_of("1.e4 e5 2.Nf3").position.board, after_nf3, 64) == 0);

    const Game start;
    const Position& s = start.position;
    check(!pinned(s, WHITE) && !pinned(s, BLACK) && s.castling == 15 && !s.en_passant_legal);
    check(!start.can_claim_draw() && !is_stalemate(s) && count(s.colors[WHITE]) == 16);
    check(legal_moves(s).size == 20 && pseudo_legal_moves(s).size == 20);
    for (Move m : legal_moves(s)) check(!gives_check(s, m));
    check(attacked_squares(s, BLACK) == (rank_bits(5) | rank_bits(6) | (rank_bits(7) & ~bit(A8) & ~bit(H8))));
    check(attackers(s, 21, WHITE) == (bit(6) | bit(12) | bit(14))); // f3: g1, e2, g2

    check(pinned(game_of("1.e4 e5 2.d3 f6 3.Nd2 Bb4").position, WHITE) == bit(11));
    check(!pinned(game_of("1.e4 e5 2.d3 f6 3.Nd2").position, WHITE));
    const Position both =
        parse_fen("4k3/8/4r3/8/4N3/8/4Q3/4K3 w - - 0 1"); // the knight stands for both sides
    check(pinned(both, WHITE) == 0 && pinned(both, BLACK) == 0);
    check(pinned(parse_fen("4k3/4r3/8/8/4N3/8/8/4K3 b - - 0 1"), WHITE) == bit(28));

    const Game castled = game_of("1.e4 d5 2.Nc3 dxe4 3.Nxe4 Nf6 4.d3 e6 5.Be3 h6 6.Qf3 Be7 7.O-O-O");
    check((castled.position.castling & kingside(BLACK)) && (castled.position.castling & queenside(BLACK)));
    check(!(castled.position.castling & (WHITE_KINGSIDE | WHITE_QUEENSIDE)));
    check(game_of("1.h4 a5 2.Rh3 Ra6").position.castling == (WHITE_QUEENSIDE | BLACK_KINGSIDE));
    check(game_of("1.g3 b6 2.Bg2 Bb7 3.Bxb7 Nf6 4.Bxa8").position.castling ==
          (WHITE_KINGSIDE | WHITE_QUEENSIDE | BLACK_KINGSIDE)); // a rook taken at home takes its right along

    check(game_of("1.e4 Nc6 2.e5 f5").position.en_passant_legal);
    check(!game_of("1.e4 Nc6 2.e5 f6").position.en_passant_legal);
    const Position pinned_taker = parse_fen("8/8/8/K2pP2r/8/8/8/7k w - d6 0 2");
    const Move taker = {36, 43, NONE};
    check(!pinned_taker.en_passant_legal && !is_legal(pinned_taker, taker) &&
          pseudo_legal_moves(pinned_taker).contains(taker));

    check(game_of("1.Nf3 Nc6 2.Ng1 Nb8 3.Nf3 Nc6 4.Ng1 Nb8 5.Nf3 Nc6 6.Ng1 Nb8").can_claim_draw());
    const Position f5 = game_of("1.e4 f5").position;
    check(gives_check(f5, move_of(f5, "Qh5")) && !gives_check(f5, move_of(f5, "Qf3")));
    const Position queen = game_of("1.e4 g6 2.Qh5").position;
    check(is_capture(queen, move_of(queen, "gxh5")));
    const Position mate = game_of("1.e4 f6 2.Nc3 g5").position;
    check(is_checkmate(after(mate, move_of(mate, "Qh5"))));
    const Game stale =
        game_of("1.e3 a5 2.Qh5 Ra6 3.Qxa5 h5 4.h4 Rah6 5.Qxc7 f6 6.Qxd7+ Kf7 7.Qxb7 Qd3 8.Qxb8 Qh7 "
                "9.Qxc8 Kg6 10.Qe6");
    check(is_stalemate(stale.position) && stale.outcome() == STALEMATE);
    check(count(game_of("1.e4 d5 2.Bc4 dxc4").position.pieces(WHITE, BISHOP)) == 1);
    check(game_of("1.e4 g6 2.Qh5 gxh5").position.pieces(WHITE, QUEEN) == 0);
    check(count(game_of("1.e4 d5 2.exd5").position.colors[BLACK]) - 1 == 14);
    check(attackers(game_of("1.a4 d6 2.Ra3 e6 3.h4 f6 4.Rhh3 c6").position, 20, WHITE) ==
          (bit(11) | bit(13) | bit(16) | bit(23))); // e3: d2, f2, Ra3, Rh3
}

static void test_game_text() {
    const std::string line = ";1.e4 c5 2.Nf3 d6 3.Bb5+ Bd7 4.O-O";
    const GameTextReader whole = parse_game_text(line);
    check(whole.ok() && whole.moves.size() == 7 && whole.games == 1 && whole.token.empty());
    check(to_game_text(whole.moves) == line);

    const GameTextReader begun = parse_game_text(";1.e4 c5 2.N"); // the beginning of a move is no error
    check(begun.ok() && begun.moves.size() == 2 && begun.token == "2.N");
    check(parse_game_text(";1.e4 c5 2").ok() && parse_game_text(";1.e4 c5 ").ok() &&
          parse_game_text(";").ok());
    check(parse_game_text(";1.e4 c5 2.Nf3 d6 3.Bb5").moves.size() == 4); // it lacks its +
    check(parse_game_text(";1.e4 c5 2.Nf3 d6 3.Bb5").ok());

    const GameTextReader two = parse_game_text(";1.f3 e5 2.g4 Qh4#;1.d4 d");
    check(two.ok() && two.games == 2 && two.moves.size() == 1 && two.token == "d");

    struct {
        const char* text;
        size_t ply;
        const char *token, *error;
    } bad[] = {
        {"1.e4", 0, "1", "expected ';'"},
        {";e4 e5", 0, "e4", "expected '1.'"},
        {";1.e4 e5 3.Nf3 ", 2, "3.Nf3", "expected '2.'"},
        {";1.e4 e5 2.Nd4 Nc6", 2, "2.Nd4", "illegal move"},
        {";1.e4 e5  2.Nf3", 2, "", "expected '2.'"},
        {";1.e4  e5", 1, "", "not a move"},
        {";1.e4 e5 2.Nf9", 2, "2.Nf9", "not a move"},
        {";1.e4 e5 2.Ke3", 2, "2.Ke3", "illegal move"},
        {";1.e4 2.d4 ", 1, "2.d4", "not a move"},
        {";1.e4 eeeeeeeeeeeeeeeeeeeeeee", 1, "eeeeeeeeeeeeeeeee", "not a move"},
        {";1.f3 e5 2.g4 Qh4# 3.e4 ", 4, "3.e4", "illegal move"},
        {";1.e4 x;1.e4 e5", 1, "x", "not a move"},
    };
    for (const auto& b : bad) {
        const GameTextReader r = parse_game_text(b.text);
        check(!r.ok() && r.moves.size() == b.ply && r.token == b.token && r.error.find(b.error) == 0,
              "%s: ply %zu, '%s', %s", b.text, r.moves.size(), r.token.c_str(), r.error.c_str());
    }
    // Every prefix of a good text is good.
    const std::string good = to_game_text(play_game({}, 3).moves);
    for (size_t n = 0; n <= good.size(); n++) check(parse_game_text(good.substr(0, n)).ok(), "%zu", n);

    const Game e4 = game_of("1.e4");
    check(draw_board(e4.position, Move{12, 28, NONE}, false) == " 8  r  n  b  q  k  b  n  r \n"
                                                                " 7  p  p  p  p  p  p  p  p \n"
                                                                " 6  .  .  .  .  .  .  .  . \n"
                                                                " 5  .  .  .  .  .  .  .  . \n"
                                                                " 4  .  .  .  . [P] .  .  . \n"
                                                                " 3  .  .  .  .  .  .  .  . \n"
                                                                " 2  P  P  P  P [.] P  P  P \n"
                                                                " 1  R  N  B  Q  K  B  N  R \n"
                                                                "    a  b  c  d  e  f  g  h\n");
    check(draw_board(e4.position, no_move, true).find("♚") != std::string::npos);
}

// ---------------------------------------------------------------------------------------------------------
// PGN

// What a word of movetext is taken for.
static void test_movetext() {
    const auto shown = [](const std::string& word) {
        const MoveWord w = read_move_word(plain_movetext(word));
        static const char* kinds[] = {"note", "result ", "null ", "promotion ", "move "};
        return (w.number >= 0 ? strf("%d", w.number) : "") + std::string(w.dots, '.') +
               (w.number >= 0 || w.dots ? " " : "") + kinds[w.kind] +
               (w.kind == MoveWord::NULL_MOVE ? "" : w.text);
    };
    struct {
        const char *word, *expected;
    } cases[] = {
        {"e4", "move e4"},
        {"12.Nf3", "12. move Nf3"},
        {"12...Nf6", "12... move Nf6"},
        {"3…Nf6", "3... move Nf6"},
        {"12", "12 note"},
        {"12e4", "12 move e4"},
        {"99999999999.", "999999. note"},
        {"...", "... note"},
        // Results
        {"1-0", "result 1-0"},
        {"0–1", "result 0-1"},
        {"1—0", "result 1-0"},
        {"1−0", "result 1-0"},
        {"1:0", "result 1-0"},
        {"O-1", "result 0-1"},
        {"½-½", "result 1/2-1/2"},
        {"½–½", "result 1/2-1/2"},
        {"½:½", "result 1/2-1/2"},
        {"½", "result 1/2-1/2"},
        {"\xBD-\xBD", "result 1/2-1/2"}, // Latin-1
        {"1\x96"
         "0",
         "result 1-0"}, // Windows-1252
        {"0.5-0.5", "result 1/2-1/2"},
        {"1-0.", "result 1-0"},
        {"*", "result *"},
        {"1-1", "move 1-1"},
        // Castling
        {"0-0", "move O-O"},
        {"0–0–0+", "move O-O-O"},
        {"o-o!", "move O-O"},
        {"OO", "move O-O"},
        {"O-O-O-O", "move O-O-O-O"},
        {"12.0-0", "12. move O-O"},
        // Signs and words behind a move
        {"Nf3!?", "move Nf3"},
        {"Nf3+-", "move Nf3"},
        {"Nf3-+", "move Nf3"},
        {"Nf3+/-", "move Nf3"},
        {"Nf3±", "move Nf3"},
        {"Nf3⩲", "move Nf3"},
        {"Nf3∞", "move Nf3"},
        {"Qh5++", "move Qh5"},
        {"Qh5ch", "move Qh5"},
        {"Qh5dblch", "move Qh5"},
        {"Qh5mate", "move Qh5"},
        {"Qh5‡", "move Qh5"},
        {"exd6ep", "move exd6"},
        {"exd6e.p.+", "move exd6"},
        {"Nf3N", "move Nf3"},
        {"e4D", "move e4"},
        {"e4=", "move e4"},
        {"Nf3--", "move Nf3--"},
        {"Nf3Nc6", "move Nf3Nc6"},
        {"hello", "move hello"},
        // .. and alone
        {"±", "note"},
        {"+--", "note"},
        {"ch", "note"},
        {"dbl", "note"},
        {"e.p.", "note"},
        {"□", "note"},
        {"D", "note"},
        {"TN", "note"},
        {"-", "note"},
        // Promotions
        {"e8Q", "move e8=Q"},
        {"e8(Q)+", "move e8=Q"},
        {"e8=(q)", "move e8=Q"},
        {"bxa8/N", "move bxa8=N"},
        {"e7e8r", "move e7e8=R"},
        {"e8", "move e8"},
        {"e8=", "move e8"},
        {"Nf8N", "move Nf8"},
        {"e7N", "move e7"},
        {"=Q", "promotion Q"},
        {"(Q)", "promotion Q"},
        {"Q", "promotion Q"},
        {"N", "promotion N"},
        {"=Q+", "promotion Q"},
        // How pieces and squares are written
        {"♘f3", "move Nf3"},
        {"♟e5", "move e5"},
        {"N×e5", "move Nxe5"},
        {"nf3", "move Nf3"},
        {"bxc3", "move bxc3"},
        {"Ｎｆ３", "move Nf3"},
        {"N\xE2\x80\x8B"
         "f3",
         "move Nf3"},        // a blank without width
        {"xd4", "move xd4"}, // of a piece that is missing, not a pawn's
        // Null moves
        {"--", "null "},
        {"<>", "null "},
        {"0000", "null "},
        {"Z0", "null "},
        {"3.--", "3. null "},
        {"––", "null "},
    };
    for (const auto& c : cases)
        check(shown(c.word) == c.expected, "%s -> %s, expected %s", c.word, shown(c.word).c_str(),
              c.expected);
    check(plain_movetext("a\xC2\xA0"
                         "b\xE2\x80\xAF"
                         "c\xEF\xBB\xBF"
                         "d\xA0"
                         "e\tf") == "a b cd e f");
    // Any bytes are taken apart without end or fault.
    for (uint64_t i = 0; i < 20000; i++) {
        std::string word;
        for (uint64_t n = 0; n <= random_u64(1, i, 0) % 6; n++) {
            static constexpr char letters[] = "NQa1h8O0-+=x.()/:e\xE2\x88\xBD*";
            word += letters[random_u64(2, i, n) % (sizeof letters - 1)];
        }
        const MoveWord w = read_move_word(plain_movetext(word).substr(0, 20) + "e");
        check(w.kind != MoveWord::MOVE || !w.text.empty());
    }
}

struct ReadPgn {
    std::string games; // the texts of the good games, one per line
    std::string results;
    GameCounts counts;
    uint64_t bytes;
    std::string error; // of fail_if_none()
};

static ReadPgn read_pgn(const std::string& pgn, size_t chunk = 1 << 16) {
    PgnReader reader(ByteReader(source_of(pgn), chunk), "test.pgn");
    ReadPgn out;
    for (GameRecord game; reader.next(game);) {
        check(to_game_text(game.moves) == game.text, "%s", game.text.c_str());
        out.games += game.text + "\n";
        out.results += (out.results.empty() ? "" : " ") + game.result;
    }
    out.counts = reader.counts;
    out.bytes = reader.bytes_read();
    try {
        reader.fail_if_none();
    } catch (const Error& e) {
        out.error = e.what();
    }
    return out;
}

static const char* tags = "[Event \"Club \\\"A\\\" [1]\"]\n[Site \"?\"]\n[Result \"1-0\"]\n\n";
static const char* open_game = ";1.e4 e5 2.Nf3 Nc6\n";

static void test_pgn() {
    // One game, written in every way; all must give the same text.
    const std::string same[] = {
        "1. e4 e5 2. Nf3 Nc6 1-0",
        "1.e4 e5 2.Nf3 Nc6 1-0\n",
        "1. e4 e5 2. Nf3 Nc6\n", // no result, no tags
        "\xEF\xBB\xBF"
        "1. e4 e5 2. Nf3 Nc6 1-0", // byte order mark
        std::string("\xEF\xBB\xBF") + tags + "1. e4 e5 2. Nf3 Nc6 1-0\n",
        std::string(tags) + "1. e4 e5 2. Nf3 Nc6 1-0\n",
        std::string(tags) + "1. e4 e5 2. Nf3 Nc6\n", // result missing
        std::string(tags) + "e4 e5 Nf3 Nc6 *",       // no numbers
        std::string(tags) + "1 e4 e5 2 Nf3 Nc6 *",   // no dots
        std::string(tags) + "1. e4 ...e5 2. Nf3 .. Nc6 *",
        std::string(tags) + "1) e4, e5 2) Nf3, Nc6 1 - 0\n",
        std::string(tags) + "1e4 e5 2Nf3 Nc6 0 – 1\n",
        "[ Event \"x\" ]\n[\tWhite \"y\"]\n1. e4 e5 2. Nf3 Nc6 *\n",
        std::string(tags) + "\n\n1.\te4\n\n\ne5\n2.\nNf3\nNc6\n1-0\n",
        "[Event \"x\"]\n\n[Site \"y\"]\n\n1. e4 e5 2. Nf3 Nc6 *\n", // empty line among the tags
        "[Event \"x\"] [Site \"y\"]\n1. e4 e5 2. Nf3 Nc6 *\n",
        "[Event \"no end\n[Site \"y]\n[White Bob]\n[]\n1. e4 e5 2. Nf3 Nc6 *\n",
        "[Variant \"Standard\"]\n[SetUp \"0\"]\n\n1. e4 e5 2. Nf3 Nc6 *\n",
        "1. e4 { [%eval 0.17] [%clk 0:00:30] } 1... e5 { [%clk 0:00:30] } 2. Nf3 { (Nf9 is illegal) } Nc6 { "
        "; } 1-0",
        "1. e4 {\n% no escape here\n[Site \"x\"] 1-0 } 1... e5 2. Nf3 Nc6 *",
        "1. e4{a}e5{b}2.{c}Nf3{d}Nc6{e}*",
        "1. e4 $1 e5 $2$3 2. Nf3!? $146 Nc6?? 1-0",
        "1. e4! e5? 2. Nf3 !? Nc6 ?! +- 1-0",
        "1. e4 e5 ; to the end of the line { 3. Qh9\n2. Nf3 Nc6 *",
        "% escaped line 1. d4\n1. e4 e5\n% 1. d4 d5 1-0\n2. Nf3 Nc6 *\n",
        "1. e4 (1. d4 d5 2. c4 (2. Nf3 Nf6 (2... Bf5) ) 2... e6 1-0) e5 (1... c5) 2. Nf3 (2. Nf9) Nc6 1-0",
        "1. e4 (1. d4 { ) } ; )\n d5) 1... e5 2. Nf3 Nc6 *",
        "1. e4 1. ... e5 2. Nf3 Nc6 *",
        "1. e2e4 e7-e5 2. Ng1f3+ Nb8-c6# *",
        "1. e4 e5 2. Nf3 Nc6*",
        "1. e4 e5 2. Nf3 Nc6 } ) ] > * ",
        // Where a game starts, said as usual or in other words
        "[FEN \"rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1\"]\n[SetUp \"1\"]\n1. e4 e5 2. Nf3 "
        "Nc6 *\n",
        "[SetUp \"1\"]\n[FEN \"rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w HAha -\"]\n[Variant "
        "\"Chess960\"]\n1. e4 e5 2. "
        "Nf3 Nc6 *\n",
        "[Variant \"From Position\"]\n[FEN \"rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1\"]\n1. "
        "e4 e5 2. Nf3 Nc6 "
        "*\n",
        "[FEN \"?\"]\n[Variant \"STANDARD\"]\n1. e4 e5 2. Nf3 Nc6 *\n",
        // Blanks, dashes, signs, words beyond the standard
        "1.\xC2\xA0"
        "e4 e5 2.\xE2\x80\xAF"
        "Nf3\xA0Nc6 1-0",
        "\xC2\xA0[Event \"x\"]\n\xC2\xA0[Site \"y\"]\n1. e4 \xE2\x80\x8B"
        "e5 2. Nf3 Nc6\xE2\x80\x8E ½–½\n",
        "1. e4 ± e5 ⩲ 2. Nf3 N Nc6 D (N) unclear 1:0",
        "1. e4 e5 2. Nf3 [2. d4 exd4 [2... d6]] Nc6 *",
        "1. e4 [%clk 0:10] e5 2. Nf3 Nc6 *",
        "1. e4 e5\n[1... c5 2. Nf3\n[Nc3 Nc6] d6]\n2. Nf3 Nc6 *",
        "1. e4 e5; 2. Nf3 Nc6 *",
        // Braces in comments: closed by their own, or not closed at all
        "1. e4 { a { b } c } e5 2. Nf3 Nc6 *",
        "1. e4 {see {note} d5 2. exd5 } e5 2. Nf3 Nc6 1-0",
        "1. e4 { a { b { c } d5 } 2. exd5 1-0 } e5 2. Nf3 Nc6 1-0",
        "1. e4 { a { b } e5 2. Nf3 Nc6 *",
        "1. e4 { :{ } e5 { :{ } 2. Nf3 Nc6 1-0\n",
    };
    for (const std::string& pgn : same) {
        const ReadPgn r = read_pgn(pgn);
        check(r.games == open_game && r.counts.games() == 1 && r.error.empty(), "%s -> %s", pgn.c_str(),
              r.games.c_str());
        // CRLF and old Mac line ends change nothing, nor does the size of the chunks the bytes come in.
        for (const char* line_end : {"\r\n", "\r"}) {
            std::string other;
            for (char c : pgn) other += c == '\n' ? line_end : std::string(1, c);
            check(read_pgn(other).games == open_game, "%s", other.c_str());
        }
        for (size_t chunk : {1, 2, 3, 7})
            check(read_pgn(pgn, chunk).games == open_game, "chunk %zu: %s", chunk, pgn.c_str());
    }

    // Several games; what is wrong with one must not touch the next.
    const std::string good = std::string(tags) + "1. e4 e5 2. Nf3 Nc6 1-0\n\n";
    struct {
        const char* what;
        std::string pgn;
        size_t good, empty, variant, illegal, cut, other = 0;
        Fault other_fault = NUMBERS;
    } cases[] = {
        {"results", good + "[Event \"b\"]\n1. d4 0-1\n\n[Event \"c\"]\n1. c4 1/2-1/2\n1. b4 *", 4, 0, 0, 0,
         0},
        {"no results between", std::string(tags) + "1. e4\n\n" + tags + "1. d4 d5\n\n" + good, 3, 0, 0, 0, 0},
        {"no tags, no results", "1. e4 e5 2. Nf3\n\n1. d4 d5\n1. c4 c5\n", 3, 0, 0, 0, 0},
        {"tags only", std::string(tags) + tags + "*\n" + good, 1, 2, 0, 0, 0},
        {"variants",
         "[Event \"x\"]\n[FEN \"8/8/8/8/8/8/8/8 w - - 0 1\"]\n[SetUp \"1\"]\n\n1. Kd9 1-0\n\n[Event "
         "\"y\"]\n[Variant "
         "\"Crazyhouse\"]\n\n1. e4 N@f3 1-0\n\n[Event \"z\"]\n[SetUp \"1\"]\n1. e4 *\n" +
             good,
         1, 0, 3, 0, 0},
        {"illegal", std::string(tags) + "1. e4 e5 2. Ke3 Nc6 1-0\n" + good + "1. e4 e4 *\n" + good, 2, 0, 0,
         2, 0},
        {"moves after mate", std::string(tags) + "1. f3 e5 2. g4 Qh4# 3. e4 1-0\n" + good, 1, 0, 0, 1, 0},
        {"null moves", std::string(tags) + "1. e4 -- 2. d4 *\n" + tags + "1. e4 Z0 *\n" + good, 1, 0, 0, 0, 0,
         2, NULL_MOVE},
        {"null moves that leave a legal game",
         std::string(tags) + "1. d4 d5 2. Qd3 Qd6 3. <> Qa6 4. Qxa6 1-0\n" + tags + "1. e4 e5 0000 Nc6 *\n" +
             good,
         1, 0, 0, 0, 0, 2, NULL_MOVE},
        {"moves missing",
         std::string(tags) + "1. e4 e5 3. Nf3 Nc6 *\n" + tags + "1. e4 e5 2... Nf6 *\n" + good, 1, 0, 0, 0, 0,
         2},
        {"a move missing, with dots alone", std::string(tags) + "1. e4 e5 ... Nf6 *\n" + good, 1, 0, 0, 0, 0,
         1},
        {"half a game", std::string(tags) + "12. e4 e5 13. Nf3 Nc6 *\n" + good, 1, 0, 0, 0, 0, 1},
        {"a knight's move in two words", std::string(tags) + "1. e4 e5 2. N f3 Nc6 *\n" + good, 1, 0, 0, 1,
         0},
        {"a queen's move in two words", std::string(tags) + "1. d4 e5 2. d3 Q g5 *\n" + good, 1, 0, 0, 1, 0},
        {"a pawn that becomes nothing",
         std::string(tags) + "1. e4 d5 2. exd5 c6 3. dxc6 a6 4. cxb7 a5 5. bxa8 e6 *\n" + good, 1, 0, 0, 1,
         0},
        {"a comment that may go on", std::string(tags) + "1. e4 { what } d5 } e5 2. Nf3 *\n" + good, 1, 0, 0,
         0, 0, 1, COMMENT},
        {"a comment half closed", std::string(tags) + "1. e4 { a { b { c } d5 } e5 2. Nf3 *\n" + good, 1, 0,
         0, 0, 0, 1, COMMENT},
        {"tags that are not quite tags",
         "[ FEN \"rnbqkb1r/pppp1ppp/5n2/4p3/4P3/5N2/PPPP1PPP/RNBQKB1R w KQkq - 2 3\" ]\n1. d4 d5 *\n"
         "[Fen \"rnbqkb1r/pppp1ppp/5n2/4p3/4P3/5N2/PPPP1PPP/RNBQKB1R w KQkq - 2 3\"]\n1. d4 d5 *\n"
         "[FEN rnbqkb1r/pppp1ppp/5n2/4p3/4P3/5N2/PPPP1PPP/RNBQKB1R w KQkq - 2 3]\n1. d4 d5 *\n"
         "[setup \"1\"]\n1. d4 d5 *\n[Variant \"Three-check\"]\n1. d4 d5 *\n[Variant \"Chess960\"]\n1. d4 d5 "
         "*\n" +
             good,
         1, 0, 6, 0, 0},
        {"ambiguous", std::string(tags) + "1. Nf3 a6 2. d3 a5 3. Nd2 *\n" + good, 1, 0, 0, 1, 0},
        {"a word too long", std::string(tags) + "1. e4 " + std::string(100000, 'e') + " *\n" + good, 1, 0, 0,
         1, 0},
        {"a tag too long",
         "[" + std::string(100000, 'E') + " \"" + std::string(100000, 'x') + "\"]\n1. e4 *\n" + good, 2, 0, 0,
         0, 0},
        {"a comment too long", "1. e4 {" + std::string(200000, '{') + "} *\n" + good, 2, 0, 0, 0, 0},
        {"a number too long", "1. e4 " + std::string(30, '9') + "... e5 *\n" + good, 1, 0, 0, 0, 0, 1},
        {"deep variations", "1. e4 " + std::string(100000, '(') + std::string(100000, ')') + " e5 *\n" + good,
         2, 0, 0, 0, 0},
        {"cut in a move", good + "1. e4 e5 2. N", 1, 0, 0, 0, 1},
        {"cut behind a move", good + "1. e4 e5 2. Nf3", 1, 0, 0, 0, 1},
        {"cut in a comment", good + "1. e4 e5 { [%clk 0:0", 1, 0, 0, 0, 1},
        {"cut in a comment, at a line end", good + "1. e4 e5 { [%clk\n", 1, 0, 0, 0, 1},
        {"cut in a variation", good + "1. e4 e5 (1... c5\n", 1, 0, 0, 0, 1},
        {"cut in a tag", good + "[Event \"x\"]\n[Sit", 1, 0, 0, 0, 1},
        {"cut behind the tags", good + tags, 1, 0, 0, 0, 1},
        {"illegal, then cut", good + "1. e4 e4 2. Nf3 N", 1, 0, 0, 1, 0},
        {"cut in a comment, more follows", std::string(tags) + "1. e4 { what\n" + good + good, 2, 0, 0, 0, 1},
        {"cut in a variation, more follows", std::string(tags) + "1. e4 (1. d4\n" + good + good, 2, 0, 0, 0,
         1},
        {"cut in a tag, more follows", "[Event \"x\"]\n[White \"Some\n" + good, 1, 1, 0, 0, 0},
        {"text between", "Games of the club:\n" + good + "and one more, 1-0\n\n" + good + "the end", 2, 0, 0,
         0, 0},
        {"binary between", good + std::string("\x00\x01\xff\xfe[\x80(]\x7f{}\n", 12) + good, 2, 0, 0, 0, 0},
        {"byte order mark between",
         good + "\xEF\xBB\xBF" + good +
             "\xEF\xBB\xBF"
             "1. e4 *",
         3, 0, 0, 0, 0},
    };
    for (const auto& c : cases)
        for (size_t chunk : {1 << 16, 1, 5}) {
            const ReadPgn r = read_pgn(c.pgn, chunk);
            const GameCounts& n = r.counts;
            check(n.good() == c.good && n.of[NO_MOVES] == c.empty && n.of[OTHER_START] == c.variant &&
                      n.of[ILLEGAL] == c.illegal && n.of[CUT] == c.cut && n.of[c.other_fault] == c.other &&
                      n.games() == c.good + c.empty + c.variant + c.illegal + c.cut + c.other,
                  "%s: good %d empty %d variant %d illegal %d cut %d of %d", c.what, int(n.good()),
                  int(n.of[NO_MOVES]), int(n.of[OTHER_START]), int(n.of[ILLEGAL]), int(n.of[CUT]),
                  int(n.games()));
            check(r.bytes == c.pgn.size());
        }
    check(read_pgn(cases[0].pgn).results == "1-0 0-1 1/2-1/2 *");
    check(read_pgn(std::string(tags) + "1. e4 e5 2. N9 *").games.empty());

    // A legal game without end: dropped at the longest length the rules know, in constant memory.
    std::string endless = "1. Nf3 Nf6 ";
    for (int i = 0; i < 5000; i++) endless += "Ng1 Ng8 Nf3 Nf6 ";
    const ReadPgn overlong = read_pgn(endless + "*\n" + good);
    check(overlong.counts.of[OVERLONG] == 1 && overlong.counts.good() == 1);

    check(read_pgn("").error == "test.pgn: empty, expected games in PGN");
    check(read_pgn("To be, or not to be, that is the question:\n")
              .error.find("test.pgn: not PGN: no game found") == 0);
    check(read_pgn(std::string(5000, '\0')).error.find("test.pgn: not PGN") == 0);
    check(read_pgn(std::string(tags) + "1. e5 *").error ==
          "test.pgn: no usable game: 1 with an illegal move (line 5, 1. 'e5')");
    // An example for every reason says where to look.
    const GameCounts found =
        read_pgn("[Event \"a\"]\r\n\r\n1. e4\r\ne5 2. Ke3 *\r\n\r\n[Event \"b\"]\r\n1. e4 e5 3. d4 *\r\n"
                 "[FEN \"8/8/8/8/8/8/8/8 w - - 0 1\"]\r\n*\r\n[Event \"c\"]\r\n1. e4 e5 2. ...\r\nNf6 -- *")
            .counts;
    check(found.example[ILLEGAL] == "line 4, 2. 'Ke3'", "%s", found.example[ILLEGAL].c_str());
    check(found.example[NUMBERS] == "line 7, '3.' where 2. comes next", "%s", found.example[NUMBERS].c_str());
    check(found.example[OTHER_START] == "line 8, fen '8/8/8/8/8/8/8/8 w - - 0 1'", "%s",
          found.example[OTHER_START].c_str());
    check(found.of[NUMBERS] == 2 && found.games() == 4 && found.reasons().size() == 3);

    // Round trip: games played here, written as PGN with lines folded at 80 columns, come back as they were.
    std::string pgn, texts;
    for (uint64_t i = 0; i < 20; i++) {
        const std::string text = to_game_text(play_game({}, i).moves);
        texts += text + "\n";
        std::string folded = text.substr(1);
        for (size_t at = 70; at < folded.size(); at += 70)
            if (const size_t space = folded.find(' ', at); space != std::string::npos) folded[space] = '\n';
        pgn += tags + folded + " *\n\n";
    }
    check(read_pgn(pgn).games == texts);
}

// ---------------------------------------------------------------------------------------------------------
// The players

static void test_selfplay() {
    SelfplayOptions options;
    size_t mates = 0, castled = 0, plies = 0;
    std::vector<std::string> texts;
    for (uint64_t i = 0; i < 200; i++) {
        const PlayedGame game = play_game(options, i);
        Game replay;
        for (size_t ply = 0; ply < game.moves.size(); ply++) {
            // No move follows the end of a game, and every move is legal.
            if (replay.outcome() != UNFINISHED || !is_legal(replay.position, game.moves[ply]))
                return void(check(false, "game %d ply %zu", int(i), ply));
            replay.play(game.moves[ply]);
        }
        check(replay.outcome() == game.outcome);
        check(game.outcome != UNFINISHED || game.moves.size() == size_t(options.max_plies));
        texts.push_back(to_game_text(game.moves));
        mates += game.outcome == CHECKMATE;
        castled += texts.back().find("O-O") != std::string::npos;
        plies += game.moves.size();
    }
    check(mates > 150, "%zu of 200 end in mate", mates);
    check(castled > 140, "%zu of 200 with castling", castled);
    check(plies > 200 * 60 && plies < 200 * 160, "%zu plies", plies);
    check(to_game_text(play_game(options, 7).moves) == texts[7]); // the same whatever was played before it
    std::sort(texts.begin(), texts.end());
    check(std::unique(texts.begin(), texts.end()) == texts.end(), "a game was played twice");

    options.seed = 2;
    check(to_game_text(play_game(options, 7).moves) != to_game_text(play_game({}, 7).moves));
    options.max_plies = 3;
    for (uint64_t i = 0; i < 20; i++) check(play_game(options, i).moves.size() == 3);
    for (const char* line : openings) {
        Game game;
        for (size_t at = 0; at < strlen(line);) {
            const size_t end = std::min(std::string(line).find(' ', at), strlen(line));
            const std::string san = std::string(line).substr(at, end - at);
            const Move m = parse_san(game.position, san).move;
            if (!check(m != no_move && to_san(game.position, m) == san, "opening %s: %s", line, san.c_str()))
                break;
            game.play(m);
            at = end + 1;
        }
    }
    // The logarithm, against the real one.
    for (uint64_t x = 1; x < uint64_t(1) << 62; x = x * 3 + 1)
        check_near(fixed_log2(x) / 65536.0, std::log2(double(x)), 4e-5);
    // The noise is Gumbel's: its mean is 0.5772 / ln 2 + log2(ln 2) temperatures, its deviation 1.8503.
    Random random{1};
    double sum = 0, squares = 0;
    for (int i = 0; i < 100000; i++) {
        const double x = score_noise(1000, random) / 1000.0;
        sum += x, squares += x * x;
    }
    check_near(sum / 1e5, 0.5772157 / std::log(2) + std::log2(std::log(2)), 0.03);
    check_near(std::sqrt(squares / 1e5 - sum * sum / 1e10), 1.8503, 0.03);
}

int main() {
    test_perft();
    test_walk();
    test_fen();
    test_san();
    test_draws();
    test_board_facts();
    test_game_text();
    test_movetext();
    test_pgn();
    test_selfplay();
    return finish();
}
