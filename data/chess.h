// The rules of chess on bitboards: positions, attacks, legal moves, make and unmake, draws, FEN, SAN, and the
// game text that the language models are trained on. Squares run a1 = 0, b1 = 1, .. h8 = 63, bit s of a
// bitboard is square s. Everything is a small value type; nothing here allocates but what returns text.
//
//   1 squares, pieces, moves      4 FEN                       7 SAN
//   2 attacks                     5 move generation           8 game text (`;1.e4 e5 2.Nf3`)
//   3 positions, make, unmake     6 perft, draws, games       9 a board to look at
#pragma once
#include "../dev/lib/error.h"
#include "../dev/lib/random.h"
#include <algorithm>
#include <bit>
#include <string_view>
#include <unistd.h>
#include <vector>

namespace chess {

// ---------------------------------------------------------------------------------------------------------
// 1 Squares, pieces, moves

using Bitboard = uint64_t;
using Square = int;
constexpr Square A1 = 0, E1 = 4, H1 = 7, A8 = 56, E8 = 60, H8 = 63, NO_SQUARE = -1;

enum Color : uint8_t { WHITE, BLACK };
constexpr Color operator!(Color c) { return c == WHITE ? BLACK : WHITE; }

enum PieceType : uint8_t { NONE, PAWN, KNIGHT, BISHOP, ROOK, QUEEN, KING };
constexpr char piece_letters[] = " PNBRQK";

constexpr int file_of(Square s) { return s & 7; }
constexpr int rank_of(Square s) { return s >> 3; }
constexpr Square square_at(int file, int rank) { return rank * 8 + file; }
constexpr Bitboard bit(Square s) { return Bitboard(1) << s; }
constexpr Bitboard rank_bits(int rank) { return Bitboard(0xFF) << (8 * rank); }
constexpr Bitboard dark_squares = 0xAA55AA55AA55AA55; // a1 is dark
inline std::string square_name(Square s) { return {char('a' + file_of(s)), char('1' + rank_of(s))}; }

inline int count(Bitboard b) { return std::popcount(b); }
inline Square first(Bitboard b) { return std::countr_zero(b); }
inline Square take_first(Bitboard& b) {
    const Square s = first(b);
    b &= b - 1;
    return s;
}

// Castling is the king's move of two squares, en passant a pawn's capture of an empty square.
struct Move {
    uint8_t from, to, promotion; // promotion: KNIGHT..QUEEN, or NONE
    bool operator==(const Move&) const = default;
};
constexpr Move no_move = {0, 0, NONE};

// No position that parse_fen accepts has more moves: nine queens with at most 27 each, two rooks with 14, two
// bishops with 13, two knights and the king with 8, castling 2: 325. (Pawns have fewer than queens.)
struct MoveList {
    Move moves[336];
    size_t size = 0;
    void add(Square from, Square to, PieceType promotion = NONE) {
        moves[size++] = {uint8_t(from), uint8_t(to), uint8_t(promotion)};
    }
    const Move* begin() const { return moves; }
    const Move* end() const { return moves + size; }
    bool contains(Move m) const { return std::find(begin(), end(), m) != end(); }
};

// ---------------------------------------------------------------------------------------------------------
// 2 Attacks

struct Tables {
    Bitboard pawn[2][64], knight[64], king[64]; // pawn: squares attacked by a pawn of that colour
    struct Lines {
        Bitboard file, diagonal, antidiagonal; // through the square, without it
    } lines[64];
    uint8_t rank[8][64];                    // [file][the six inner squares' occupancy]: attacks on its rank
    Bitboard rook[64], bishop[64];          // attacks on an empty board
    Bitboard between[64][64], line[64][64]; // strictly between; the whole line through both (0 if none)
};

inline Tables make_tables() {
    Tables t = {};
    const auto step = [](Square s, int df, int dr) -> Bitboard {
        const int f = file_of(s) + df, r = rank_of(s) + dr;
        return f < 0 || f > 7 || r < 0 || r > 7 ? 0 : bit(square_at(f, r));
    };
    const auto ray = [&](Square s, int df, int dr, Bitboard occupied) {
        Bitboard all = 0;
        for (Bitboard b = step(s, df, dr); b; b = b & occupied ? 0 : step(first(b), df, dr)) all |= b;
        return all;
    };
    for (Square s = 0; s < 64; s++) {
        for (int side : {-1, 1}) {
            t.pawn[WHITE][s] |= step(s, side, 1);
            t.pawn[BLACK][s] |= step(s, side, -1);
            for (int df : {-2, -1, 1, 2}) t.knight[s] |= step(s, df, side * (3 - std::abs(df)));
        }
        for (int df : {-1, 0, 1})
            for (int dr : {-1, 0, 1})
                if (df || dr) {
                    t.king[s] |= step(s, df, dr);
                    const Bitboard forth = ray(s, df, dr, 0);
                    (df && dr ? t.bishop : t.rook)[s] |= forth;
                    for (Bitboard b = forth; b;) {
                        const Square to = take_first(b);
                        t.line[s][to] = forth | ray(s, -df, -dr, 0) | bit(s);
                        t.between[s][to] = ray(s, df, dr, bit(to)) & ~bit(to);
                    }
                }
        t.lines[s] = {ray(s, 0, 1, 0) | ray(s, 0, -1, 0), ray(s, 1, 1, 0) | ray(s, -1, -1, 0),
                      ray(s, 1, -1, 0) | ray(s, -1, 1, 0)};
    }
    for (int file = 0; file < 8; file++)
        for (Bitboard inner = 0; inner < 64; inner++)
            t.rank[file][inner] = uint8_t(ray(file, 1, 0, inner << 1) | ray(file, -1, 0, inner << 1));
    return t;
}
inline const Tables tables = make_tables();

// Along a file or diagonal, o - s borrows through the empty squares above s up to and including the first
// blocker, so o ^ (o - s) is what s attacks upward. __builtin_bswap64 turns the board upside down, which
// gives the downward half by the same subtraction. (Ranks lie inside a byte; they have a table.)
inline Bitboard line_attacks(Square s, Bitboard occupied, Bitboard line) {
    const Bitboard up = occupied & line, down = __builtin_bswap64(up);
    return ((up - bit(s)) ^ __builtin_bswap64(down - bit(s ^ 56))) & line;
}
inline Bitboard bishop_attacks(Square s, Bitboard occupied) {
    return line_attacks(s, occupied, tables.lines[s].diagonal) |
           line_attacks(s, occupied, tables.lines[s].antidiagonal);
}
inline Bitboard rook_attacks(Square s, Bitboard occupied) {
    const int shift = s & 56;
    return line_attacks(s, occupied, tables.lines[s].file) |
           Bitboard(tables.rank[file_of(s)][occupied >> (shift + 1) & 63]) << shift;
}
inline Bitboard queen_attacks(Square s, Bitboard occupied) {
    return bishop_attacks(s, occupied) | rook_attacks(s, occupied);
}

// The squares a piece attacks (for a pawn: captures only), whatever stands there.
inline Bitboard piece_attacks(PieceType type, Color color, Square s, Bitboard occupied) {
    switch (type) {
    case PAWN:
        return tables.pawn[color][s];
    case KNIGHT:
        return tables.knight[s];
    case BISHOP:
        return bishop_attacks(s, occupied);
    case ROOK:
        return rook_attacks(s, occupied);
    case QUEEN:
        return queen_attacks(s, occupied);
    case KING:
        return tables.king[s];
    default:
        return 0;
    }
}

// ---------------------------------------------------------------------------------------------------------
// 3 Positions, make, unmake

enum Castling : uint8_t { WHITE_KINGSIDE = 1, WHITE_QUEENSIDE = 2, BLACK_KINGSIDE = 4, BLACK_QUEENSIDE = 8 };
constexpr uint8_t kingside(Color c) { return c == WHITE ? WHITE_KINGSIDE : BLACK_KINGSIDE; }
constexpr uint8_t queenside(Color c) { return c == WHITE ? WHITE_QUEENSIDE : BLACK_QUEENSIDE; }

struct Position {
    Bitboard types[7] = {};  // types[KNIGHT]: the knights of both colours
    Bitboard colors[2] = {}; // the pieces of one colour
    int8_t board[64] = {};   // +PAWN..+KING for White's pieces, negative for Black's, 0 for an empty square
    uint64_t key = 0; // Zobrist: equal for positions equal in pieces, turn, rights and legal en passant
    Color turn = WHITE;
    uint8_t castling = 0;           // rights, a set of Castling; king and rook are in place while it holds
    int8_t en_passant = NO_SQUARE;  // the square passed over, if an enemy pawn attacks it
    bool en_passant_legal = false;  // .. and may capture there without exposing its king
    int halfmove = 0, fullmove = 1; // plies since the last capture or pawn move; the number of the move

    Bitboard occupied() const { return colors[WHITE] | colors[BLACK]; }
    Bitboard pieces(Color c, PieceType t) const { return colors[c] & types[t]; }
    Bitboard pieces(Color c, PieceType t, PieceType u) const { return colors[c] & (types[t] | types[u]); }
    Square king(Color c) const { return first(pieces(c, KING)); }
    PieceType type_at(Square s) const { return PieceType(std::abs(board[s])); }

    void put(Square s, Color c, PieceType t) {
        types[t] |= bit(s);
        colors[c] |= bit(s);
        board[s] = int8_t(c == WHITE ? t : -t);
    }
    void remove(Square s, Color c, PieceType t) {
        types[t] ^= bit(s);
        colors[c] ^= bit(s);
        board[s] = 0;
    }
};

struct Zobrist {
    uint64_t piece[2][7][64], castling[16], en_passant[8], black;
};
inline Zobrist make_zobrist() {
    Zobrist z;
    uint64_t n = 0;
    for (auto& color : z.piece)
        for (auto& type : color)
            for (uint64_t& key : type) key = mix64(n++);
    for (uint64_t& key : z.castling) key = mix64(n++);
    for (uint64_t& key : z.en_passant) key = mix64(n++);
    z.black = mix64(n);
    return z;
}
inline const Zobrist zobrist = make_zobrist();

inline uint64_t compute_key(const Position& p) {
    uint64_t key = zobrist.castling[p.castling] ^ (p.turn == BLACK ? zobrist.black : 0);
    for (Square s = 0; s < 64; s++)
        if (p.board[s]) key ^= zobrist.piece[p.board[s] < 0][p.type_at(s)][s];
    return p.en_passant_legal ? key ^ zobrist.en_passant[file_of(p.en_passant)] : key;
}

// The pieces of one colour that attack a square, pinned ones too, with the board occupied as stated.
inline Bitboard attackers(const Position& p, Square s, Color by, Bitboard occupied) {
    return p.colors[by] & ((tables.pawn[!by][s] & p.types[PAWN]) | (tables.knight[s] & p.types[KNIGHT]) |
                           (tables.king[s] & p.types[KING]) |
                           (bishop_attacks(s, occupied) & (p.types[BISHOP] | p.types[QUEEN])) |
                           (rook_attacks(s, occupied) & (p.types[ROOK] | p.types[QUEEN])));
}
inline Bitboard attackers(const Position& p, Square s, Color by) { return attackers(p, s, by, p.occupied()); }

// Every square that a colour attacks, occupied or not.
inline Bitboard attacked_squares(const Position& p, Color by) {
    Bitboard all = 0;
    for (Bitboard b = p.colors[by]; b;) {
        const Square s = take_first(b);
        all |= piece_attacks(p.type_at(s), by, s, p.occupied());
    }
    return all;
}

inline Bitboard checkers(const Position& p) { return attackers(p, p.king(p.turn), !p.turn); }
inline bool in_check(const Position& p) { return checkers(p) != 0; }

// Absolute pins: the pieces of a colour that stand alone between their king and an enemy slider.
inline Bitboard pinned(const Position& p, Color color) {
    const Square king = p.king(color);
    Bitboard pins = 0, snipers = (tables.rook[king] & p.pieces(!color, ROOK, QUEEN)) |
                                 (tables.bishop[king] & p.pieces(!color, BISHOP, QUEEN));
    while (snipers) {
        const Bitboard blockers = tables.between[king][take_first(snipers)] & p.occupied();
        if (blockers && !(blockers & (blockers - 1))) pins |= blockers & p.colors[color];
    }
    return pins;
}

// En passant takes two pawns off one rank at once, so no pin tells whether it is legal: look at the board
// afterwards.
inline bool en_passant_is_safe(const Position& p, Square from, Square to) {
    const Square victim = to ^ 8;
    const Bitboard after = (p.occupied() ^ bit(from) ^ bit(victim)) | bit(to);
    return !(attackers(p, p.king(p.turn), !p.turn, after) & ~bit(victim));
}

// Called after a pawn of !p.turn has gone two squares, over `passed`.
inline void set_en_passant(Position& p, Square passed) {
    Bitboard takers = tables.pawn[!p.turn][passed] & p.pieces(p.turn, PAWN);
    if (!takers) return;
    p.en_passant = int8_t(passed);
    while (takers) p.en_passant_legal |= en_passant_is_safe(p, take_first(takers), passed);
}

// What make() cannot compute back.
struct Undo {
    uint64_t key;
    int halfmove;
    PieceType captured;
    uint8_t castling;
    int8_t en_passant;
    bool en_passant_legal;
};

struct RookHop {
    Square from, to;
};
// Where the rook goes when the king castles to `king_to`.
inline RookHop castling_rook(Square king_to) {
    return file_of(king_to) == 6 ? RookHop{king_to + 1, king_to - 1} : RookHop{king_to - 2, king_to + 1};
}
inline bool is_castling(const Position& p, Move m) {
    return p.type_at(m.from) == KING && std::abs(m.to - m.from) == 2;
}
inline bool is_en_passant(const Position& p, Move m) {
    return p.type_at(m.from) == PAWN && m.to == p.en_passant;
}
inline bool is_capture(const Position& p, Move m) { return p.board[m.to] || is_en_passant(p, m); }
// Captures and pawn moves set the clock of the 50-move rule to zero.
inline bool is_zeroing(const Position& p, Move m) { return p.board[m.to] || p.type_at(m.from) == PAWN; }

// A right is lost when its king or rook moves or the rook is taken: when a move touches their squares.
constexpr uint8_t rights_lost(Square s) {
    switch (s) {
    case A1:
        return WHITE_QUEENSIDE;
    case E1:
        return WHITE_QUEENSIDE | WHITE_KINGSIDE;
    case H1:
        return WHITE_KINGSIDE;
    case A8:
        return BLACK_QUEENSIDE;
    case E8:
        return BLACK_QUEENSIDE | BLACK_KINGSIDE;
    case H8:
        return BLACK_KINGSIDE;
    default:
        return 0;
    }
}

// Plays a legal (or pseudo-legal) move.
inline Undo make(Position& p, Move m) {
    const Color us = p.turn, them = !us;
    const PieceType type = p.type_at(m.from);
    const Square victim = is_en_passant(p, m) ? m.to ^ 8 : m.to;
    const Undo undo = {p.key, p.halfmove, p.type_at(victim), p.castling, p.en_passant, p.en_passant_legal};

    uint64_t key = p.key ^ zobrist.black;
    if (p.en_passant_legal) key ^= zobrist.en_passant[file_of(p.en_passant)];
    if (undo.captured) {
        p.remove(victim, them, undo.captured);
        key ^= zobrist.piece[them][undo.captured][victim];
    }
    if (is_castling(p, m)) {
        const RookHop rook = castling_rook(m.to);
        p.remove(rook.from, us, ROOK);
        p.put(rook.to, us, ROOK);
        key ^= zobrist.piece[us][ROOK][rook.from] ^ zobrist.piece[us][ROOK][rook.to];
    }
    const PieceType becomes = m.promotion ? PieceType(m.promotion) : type;
    p.remove(m.from, us, type);
    p.put(m.to, us, becomes);
    key ^= zobrist.piece[us][type][m.from] ^ zobrist.piece[us][becomes][m.to];

    p.castling &= uint8_t(~(rights_lost(m.from) | rights_lost(m.to)));
    key ^= zobrist.castling[undo.castling] ^ zobrist.castling[p.castling];
    p.halfmove = type == PAWN || undo.captured ? 0 : p.halfmove + 1;
    p.fullmove += us == BLACK;
    p.turn = them;
    p.en_passant = NO_SQUARE;
    p.en_passant_legal = false;
    if (type == PAWN && std::abs(m.to - m.from) == 16) set_en_passant(p, (m.from + m.to) / 2);
    if (p.en_passant_legal) key ^= zobrist.en_passant[file_of(p.en_passant)];
    p.key = key;
    return undo;
}

inline void unmake(Position& p, Move m, const Undo& undo) {
    const Color us = !p.turn;
    p.turn = us;
    p.fullmove -= us == BLACK;
    p.key = undo.key;
    p.halfmove = undo.halfmove;
    p.castling = undo.castling;
    p.en_passant = undo.en_passant;
    p.en_passant_legal = undo.en_passant_legal;

    const PieceType became = p.type_at(m.to);
    p.remove(m.to, us, became);
    p.put(m.from, us, m.promotion ? PAWN : became);
    if (is_castling(p, m)) {
        const RookHop rook = castling_rook(m.to);
        p.remove(rook.to, us, ROOK);
        p.put(rook.from, us, ROOK);
    }
    if (undo.captured) p.put(is_en_passant(p, m) ? m.to ^ 8 : m.to, !us, undo.captured);
}

// ---------------------------------------------------------------------------------------------------------
// 4 FEN

inline constexpr char start_fen[] = "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1";

// Reads a FEN of six fields, or of four (then the clocks are 0 and 1). Refuses whatever cannot be a position
// of standard chess: wrong syntax, kings other than one each, pawns on the first or last rank, more pieces
// than promotion allows, the side to move able to take the king, castling rights without king and rook at
// home, an en passant square that no pawn just passed. An en passant square that no pawn attacks is dropped.
inline Position parse_fen(const std::string& text) {
    const std::string name = "FEN " + quoted(text);
    std::vector<std::string> fields;
    for (size_t i = 0; i < text.size();) {
        const size_t end = std::min(text.find(' ', i), text.size());
        if (end > i) fields.push_back(text.substr(i, end - i));
        i = end + 1;
        if (fields.size() > 6) break;
    }
    if (fields.size() != 6 && fields.size() != 4)
        fail("%s: expected 6 fields (or the first 4), found %s", name.c_str(),
             fields.size() > 6 ? "more" : strf("%zu", fields.size()).c_str());

    Position p;
    int rank = 7, file = 0;
    for (char c : fields[0]) {
        if (c == '/') {
            if (file != 8 || rank == 0) fail("%s: expected 8 ranks of 8 squares", name.c_str());
            rank--, file = 0;
        } else if (c >= '1' && c <= '8') {
            file += c - '0';
        } else {
            const Color color = c >= 'a' ? BLACK : WHITE;
            const size_t type = std::string_view(piece_letters).find(color == BLACK ? char(c - 32) : c);
            if (type == std::string_view::npos || type == NONE)
                fail("%s: %s is not a piece, expected PNBRQK or pnbrqk", name.c_str(),
                     quoted(std::string(1, c)).c_str());
            if (file < 8) p.put(square_at(file, rank), color, PieceType(type));
            file++;
        }
        if (file > 8) fail("%s: expected 8 ranks of 8 squares", name.c_str());
    }
    if (rank != 0 || file != 8) fail("%s: expected 8 ranks of 8 squares", name.c_str());

    for (Color c : {WHITE, BLACK}) {
        const char* who = c == WHITE ? "White" : "Black";
        if (count(p.pieces(c, KING)) != 1)
            fail("%s: %s has %d kings, expected 1", name.c_str(), who, count(p.pieces(c, KING)));
        int promoted = 0;
        for (PieceType t : {KNIGHT, BISHOP, ROOK, QUEEN})
            promoted += std::max(0, count(p.pieces(c, t)) - (t == QUEEN ? 1 : 2));
        if (count(p.pieces(c, PAWN)) + promoted > 8)
            fail("%s: %s has more pieces than 8 pawns can become", name.c_str(), who);
    }
    if (p.types[PAWN] & (rank_bits(0) | rank_bits(7)))
        fail("%s: a pawn stands on the first or last rank", name.c_str());

    if (fields[1] != "w" && fields[1] != "b") fail("%s: expected w or b to move", name.c_str());
    p.turn = fields[1] == "w" ? WHITE : BLACK;
    if (attackers(p, p.king(!p.turn), p.turn)) fail("%s: the side to move can take the king", name.c_str());

    if (fields[2] != "-")
        for (char c : fields[2]) {
            const size_t right = std::string_view("KQkq").find(c);
            if (right == std::string_view::npos || p.castling & (1 << right))
                fail("%s: castling rights %s, expected some of KQkq, or -", name.c_str(),
                     quoted(fields[2]).c_str());
            const Square king = right < 2 ? E1 : E8, rook = right & 1 ? king - 4 : king + 3;
            const int sign = right < 2 ? 1 : -1;
            if (p.board[king] != sign * KING || p.board[rook] != sign * ROOK)
                fail("%s: castling right %c without king and rook at home", name.c_str(), c);
            p.castling |= uint8_t(1 << right);
        }

    if (const std::string& s = fields[3]; s != "-") {
        const int passed_rank = p.turn == WHITE ? 5 : 2, ahead = p.turn == WHITE ? -8 : 8;
        const Square passed =
            s.size() == 2 && s[0] >= 'a' && s[0] <= 'h' ? square_at(s[0] - 'a', s[1] - '1') : NO_SQUARE;
        if (passed < 0 || rank_of(passed) != passed_rank || p.board[passed] || p.board[passed - ahead] ||
            p.board[passed + ahead] != (p.turn == WHITE ? -PAWN : PAWN))
            fail("%s: no pawn has just passed %s", name.c_str(), quoted(s).c_str());
        set_en_passant(p, passed);
    }

    if (fields.size() == 6) {
        const auto number = [&](const std::string& field) {
            if (field.size() > 4 || field.find_first_not_of("0123456789") != std::string::npos)
                fail("%s: %s is not a move count, expected 0 to 9999", name.c_str(), quoted(field).c_str());
            return atoi(field.c_str());
        };
        p.halfmove = number(fields[4]);
        p.fullmove = std::max(1, number(fields[5])); // some programs count from 0
    }
    p.key = compute_key(p);
    return p;
}

inline Position start_position() {
    static const Position start = parse_fen(start_fen);
    return start;
}

// Six fields; the en passant square only if a capture there is legal.
inline std::string to_fen(const Position& p) {
    std::string out;
    for (int rank = 7; rank >= 0; rank--) {
        for (int file = 0, empty = 0; file < 8; file++) {
            const int piece = p.board[square_at(file, rank)];
            if (piece == 0) empty++;
            if (empty && (piece || file == 7)) out += char('0' + empty), empty = 0;
            if (piece) out += char(piece_letters[std::abs(piece)] + (piece < 0 ? 32 : 0));
        }
        if (rank) out += '/';
    }
    out += p.turn == WHITE ? " w " : " b ";
    for (int right = 0; right < 4; right++)
        if (p.castling & (1 << right)) out += "KQkq"[right];
    if (!p.castling) out += '-';
    out += ' ';
    out += p.en_passant_legal ? square_name(p.en_passant) : "-";
    return out + strf(" %d %d", p.halfmove, p.fullmove);
}

// ---------------------------------------------------------------------------------------------------------
// 5 Move generation

enum Kind {
    LEGAL,        // all legal moves
    FORCING,      // the legal captures and promotions
    PSEUDO_LEGAL, // also moves that leave the king in check; castling still over unattacked squares only
};

inline void add_pawn_move(MoveList& list, Square from, Square to) {
    if (rank_of(to) != 0 && rank_of(to) != 7) return list.add(from, to);
    for (PieceType t : {QUEEN, KNIGHT, ROOK, BISHOP}) list.add(from, to, t);
}

// Moves of the side to move. Legal ones are found without trying them: the king goes to unattacked squares;
// in check every other piece captures the checker or steps between; a pinned piece stays on its pin's line.
inline void generate(const Position& p, MoveList& list, Kind kind = LEGAL) {
    const Color us = p.turn, them = !us;
    const Bitboard own = p.colors[us], enemy = p.colors[them], occupied = own | enemy;
    const Bitboard wanted = kind == FORCING ? enemy : ~own;
    const Square king = p.king(us);
    const bool safe = kind != PSEUDO_LEGAL;
    const Bitboard checks = attackers(p, king, them), pins = safe ? pinned(p, us) : 0;
    list.size = 0;

    for (Bitboard b = tables.king[king] & wanted; b;) {
        const Square to = take_first(b);
        if (!safe || !attackers(p, to, them, occupied ^ bit(king))) list.add(king, to);
    }
    if (safe && checks & (checks - 1)) return; // two checkers: only the king can move
    const Bitboard answers = safe && checks ? checks | tables.between[king][first(checks)] : ~Bitboard(0);

    if (kind != FORCING && !checks)
        for (const bool king_side : {true, false}) {
            const Square to = king_side ? king + 2 : king - 2, over = (king + to) / 2;
            if (!(p.castling & (king_side ? kingside(us) : queenside(us)))) continue;
            if (tables.between[king][castling_rook(to).from] & occupied) continue;
            if (!attackers(p, over, them) && !attackers(p, to, them)) list.add(king, to);
        }

    for (const PieceType type : {KNIGHT, BISHOP, ROOK, QUEEN})
        for (Bitboard b = p.pieces(us, type); b;) {
            const Square from = take_first(b);
            Bitboard to = piece_attacks(type, us, from, occupied) & wanted & answers;
            if (pins & bit(from)) to &= tables.line[king][from];
            while (to) list.add(from, take_first(to));
        }

    const int ahead = us == WHITE ? 8 : -8;
    const Bitboard empty = ~occupied, last_rank = rank_bits(us == WHITE ? 7 : 0);
    const Bitboard pushes = (kind == FORCING ? empty & last_rank : empty) & answers;
    const int start_rank = us == WHITE ? 1 : 6;
    for (Bitboard b = p.pieces(us, PAWN); b;) {
        const Square from = take_first(b);
        Bitboard to = tables.pawn[us][from] & enemy & answers;
        if (empty & bit(from + ahead)) {
            to |= bit(from + ahead) & pushes;
            if (rank_of(from) == start_rank) to |= bit(from + 2 * ahead) & pushes;
        }
        if (pins & bit(from)) to &= tables.line[king][from];
        while (to) add_pawn_move(list, from, take_first(to));
    }
    if (p.en_passant != NO_SQUARE)
        for (Bitboard b = tables.pawn[them][p.en_passant] & p.pieces(us, PAWN); b;) {
            const Square from = take_first(b);
            if (!safe || en_passant_is_safe(p, from, p.en_passant)) list.add(from, p.en_passant);
        }
}

inline MoveList legal_moves(const Position& p) {
    MoveList list;
    generate(p, list, LEGAL);
    return list;
}
inline MoveList pseudo_legal_moves(const Position& p) {
    MoveList list;
    generate(p, list, PSEUDO_LEGAL);
    return list;
}
inline bool is_legal(const Position& p, Move m) { return legal_moves(p).contains(m); }
inline bool has_legal_move(const Position& p) { return legal_moves(p).size > 0; }
inline bool is_checkmate(const Position& p) { return in_check(p) && !has_legal_move(p); }
inline bool is_stalemate(const Position& p) { return !in_check(p) && !has_legal_move(p); }
inline Position after(Position p, Move m) {
    make(p, m);
    return p;
}
inline bool gives_check(const Position& p, Move m) { return in_check(after(p, m)); }

// ---------------------------------------------------------------------------------------------------------
// 6 Perft, draws, games

// The number of move sequences of a length: the proof of a move generator. The last ply is counted, not
// played.
inline uint64_t perft(Position& p, int depth) {
    if (depth == 0) return 1;
    MoveList list;
    generate(p, list);
    if (depth == 1) return list.size;
    uint64_t nodes = 0;
    for (Move m : list) {
        const Undo undo = make(p, m);
        nodes += perft(p, depth - 1);
        unmake(p, m, undo);
    }
    return nodes;
}

// No sequence of legal moves can mate: bare kings, one knight, or bishops that all stand on one shade.
inline bool is_insufficient_material(const Position& p) {
    if (p.types[PAWN] | p.types[ROOK] | p.types[QUEEN]) return false;
    if (p.types[KNIGHT]) return count(p.occupied()) == 3;
    return !(p.types[BISHOP] & dark_squares) || !(p.types[BISHOP] & ~dark_squares);
}

enum Outcome { UNFINISHED, CHECKMATE, STALEMATE, INSUFFICIENT_MATERIAL, FIFTY_MOVES, THREEFOLD };

// A position with the history that repetition needs. Draws by 50 moves and by threefold repetition end a game
// here as soon as the rules allow to claim them.
struct Game {
    Position position = start_position();
    std::vector<uint64_t> keys = {position.key}; // of every position so far, this one last

    Game() = default;
    explicit Game(const Position& p) : position(p), keys{p.key} {}

    void play(Move m) {
        make(position, m);
        keys.push_back(position.key);
    }
    // How often a key occurred among the positions up to now, no further back than the last irreversible
    // move.
    int occurrences(uint64_t key) const {
        const size_t window = std::min(keys.size(), size_t(position.halfmove) + 1);
        return int(std::count(keys.end() - std::ptrdiff_t(window), keys.end(), key));
    }
    int repetitions() const { return occurrences(position.key); }

    Outcome outcome() const {
        if (!has_legal_move(position)) return in_check(position) ? CHECKMATE : STALEMATE;
        if (is_insufficient_material(position)) return INSUFFICIENT_MATERIAL;
        if (position.halfmove >= 100) return FIFTY_MOVES;
        return repetitions() >= 3 ? THREEFOLD : UNFINISHED;
    }

    // The player to move may claim: 100 plies without capture or pawn move, or a move that makes them 100;
    // the position for the third time, or a move that makes it so. (Where no legal move is left there is no
    // claim by the 50-move rule.)
    bool can_claim_draw() const {
        const MoveList moves = legal_moves(position);
        if (position.halfmove >= 100 && moves.size) return true;
        if (repetitions() >= 3) return true;
        for (Move m : moves) {
            const Position next = after(position, m);
            if (next.halfmove >= 100 && has_legal_move(next)) return true;
            if (!is_zeroing(position, m) && occurrences(next.key) >= 2) return true;
        }
        return false;
    }
};

// ---------------------------------------------------------------------------------------------------------
// 7 SAN

// `legal` are the legal moves of p, m among them.
inline std::string to_san(const Position& p, Move m, const MoveList& legal) {
    const PieceType type = p.type_at(m.from);
    std::string out;
    if (is_castling(p, m)) {
        out = file_of(m.to) == 6 ? "O-O" : "O-O-O";
    } else {
        const bool capture = is_capture(p, m);
        if (type == PAWN) {
            if (capture) out += char('a' + file_of(m.from));
        } else {
            // The file tells two such pieces apart; if it does not, the rank; if neither does alone, both.
            out += piece_letters[type];
            bool rival = false, same_file = false, same_rank = false;
            for (Move other : legal)
                if (other.to == m.to && other.from != m.from && p.type_at(other.from) == type) {
                    rival = true;
                    same_file |= file_of(other.from) == file_of(m.from);
                    same_rank |= rank_of(other.from) == rank_of(m.from);
                }
            if (rival && (!same_file || same_rank)) out += char('a' + file_of(m.from));
            if (rival && same_file) out += char('1' + rank_of(m.from));
        }
        if (capture) out += 'x';
        out += char('a' + file_of(m.to));
        out += char('1' + rank_of(m.to));
        if (m.promotion) out += '=', out += piece_letters[m.promotion];
    }
    const Position next = after(p, m);
    if (in_check(next)) out += has_legal_move(next) ? '+' : '#';
    return out;
}
inline std::string to_san(const Position& p, Move m) { return to_san(p, m, legal_moves(p)); }

struct ParsedSan {
    Move move;         // no_move unless exactly one legal move is meant
    const char* error; // what is wrong: nullptr, "not a move", "illegal move" or "ambiguous move"
};

// Reads a move as people and programs write it: beside exact SAN also castling with zeros, checks and mates
// unmarked or marked wrongly, `!?` behind, promotions as e8Q, e8(Q), e8/Q or e8=q, more origin than needed
// (Ngf3, Ng1f3, e2e4, g1f3), Ng1-f3, e4:d5, exd6e.p.
inline ParsedSan parse_san(const Position& p, std::string_view text, const MoveList& legal) {
    const auto one_of = [](std::string_view set, char c) { return set.find(c) != std::string_view::npos; };
    while (!text.empty() && one_of("+#!?", text.back())) text.remove_suffix(1);
    if (text.size() > 4 && text.substr(text.size() - 4) == "e.p.") text.remove_suffix(4);
    if (text.empty() || text.size() > 12) return {no_move, "not a move"};

    if (one_of("O0o", text[0])) {
        if (text.size() != 3 && text.size() != 5) return {no_move, "not a move"};
        for (size_t i = 0; i < text.size(); i++)
            if (i % 2 ? text[i] != '-' : !one_of("O0o", text[i])) return {no_move, "not a move"};
        const Square king = p.king(p.turn), to = text.size() == 3 ? king + 2 : king - 2;
        for (Move m : legal)
            if (m.from == king && m.to == to && is_castling(p, m)) return {m, nullptr};
        return {no_move, "illegal move"};
    }

    PieceType type = PAWN;
    const size_t letter = std::string_view(piece_letters).find(text[0], 1);
    if (letter != std::string_view::npos) {
        type = PieceType(letter);
        text.remove_prefix(1);
    }

    PieceType promotion = NONE;
    if (!text.empty() && text.back() == ')') text.remove_suffix(1);
    if (text.size() > 2 && one_of("NBRQnbrq", text.back())) {
        const char upper = char(text.back() & ~32);
        promotion = PieceType(std::string_view(piece_letters).find(upper));
        text.remove_suffix(1);
        if (one_of("=/(", text.back())) text.remove_suffix(1);
    }

    const auto is_file = [](char c) { return c >= 'a' && c <= 'h'; };
    const auto is_rank = [](char c) { return c >= '1' && c <= '8'; };
    const size_t n = text.size();
    if (n < 2 || !is_file(text[n - 2]) || !is_rank(text[n - 1])) return {no_move, "not a move"};
    const Square to = square_at(text[n - 2] - 'a', text[n - 1] - '1');
    text.remove_suffix(2);
    if (!text.empty() && one_of("x-:", text.back())) text.remove_suffix(1);
    int file = -1, rank = -1;
    if (!text.empty() && is_file(text[0])) {
        file = text[0] - 'a';
        text.remove_prefix(1);
    }
    if (!text.empty() && is_rank(text[0])) {
        rank = text[0] - '1';
        text.remove_prefix(1);
    }
    if (!text.empty()) return {no_move, "not a move"};
    const bool coordinates = letter == std::string_view::npos && file >= 0 && rank >= 0; // e2e4, g1f3, e1g1
    if (type == PAWN && file < 0) file = file_of(to); // a pawn's capture names its file

    Move found = no_move;
    for (Move m : legal) {
        if (m.to != to || m.promotion != promotion) continue;
        if (file >= 0 && file_of(m.from) != file) continue;
        if (rank >= 0 && rank_of(m.from) != rank) continue;
        if (!coordinates && (p.type_at(m.from) != type || is_castling(p, m))) continue;
        if (found != no_move) return {no_move, "ambiguous move"};
        found = m;
    }
    return {found, found == no_move ? "illegal move" : nullptr};
}
inline ParsedSan parse_san(const Position& p, std::string_view text) {
    return parse_san(p, text, legal_moves(p));
}

// Long algebraic notation as engines use it: e2e4, e1g1, e7e8q.
inline std::string to_uci(Move m) {
    std::string out = square_name(m.from) + square_name(m.to);
    if (m.promotion) out += char(piece_letters[m.promotion] + 32);
    return out;
}

// ---------------------------------------------------------------------------------------------------------
// 8 Game text: `;1.e4 e5 2.Nf3 Nc6`, no result, one space between plies; games follow each other without a
// separator but the next `;`

inline std::string to_game_text(const std::vector<Move>& moves) {
    std::string out = ";";
    Position p = start_position();
    for (size_t ply = 0; ply < moves.size(); ply++) {
        if (ply) out += ' ';
        if (ply % 2 == 0) out += strf("%zu.", ply / 2 + 1);
        out += to_san(p, moves[ply]);
        make(p, moves[ply]);
    }
    return out;
}

// Reads game text one character at a time, as a model writes it, and stops at the first move that is wrong.
// A move counts once the space or `;` behind it has come; finish() takes in a last one that needs neither.
struct GameTextReader {
    Position position = start_position(); // after `moves`
    std::vector<Move> moves;              // of the current game
    size_t games = 0;                     // begun so far
    std::string token;                    // the move being read, number included: `2.N`
    std::string error; // empty, or what is wrong with ply moves.size() of this game: `token`

    bool ok() const { return error.empty(); }

    void push(char c) {
        if (!ok()) return;
        if (c == ';') {
            if (!token.empty()) complete();
            if (!ok()) return;
            position = start_position();
            moves.clear();
            games++;
        } else if (games == 0) {
            token = std::string(1, c);
            error = "expected ';' before the first move";
        } else if (c == ' ') {
            complete();
        } else {
            token += c;
            if (token.size() > 16) error = "not a move";
        }
    }

    // The text ends here: a last move that is legal as it stands is played, the beginning of a legal move
    // stays in `token`, anything else is an error.
    void finish() {
        if (!ok() || token.empty()) return;
        const MoveList legal = legal_moves(position);
        for (Move m : legal) {
            const std::string whole = number() + to_san(position, m, legal);
            if (whole == token) return complete();
            if (whole.compare(0, token.size(), token) == 0) return;
        }
        complete();
    }

  private:
    std::string number() const { return position.turn == WHITE ? strf("%d.", position.fullmove) : ""; }

    void complete() {
        const std::string expected = number();
        if (token.compare(0, expected.size(), expected) != 0) {
            error = "expected '" + expected + "' before White's move";
            return;
        }
        const ParsedSan san = parse_san(position, std::string_view(token).substr(expected.size()));
        if (san.error) {
            error = san.error;
            return;
        }
        make(position, san.move);
        moves.push_back(san.move);
        token.clear();
    }
};

// The whole of a text at once. Of several games the last one is what `position` and `moves` show.
inline GameTextReader parse_game_text(std::string_view text) {
    GameTextReader reader;
    for (char c : text) reader.push(c);
    reader.finish();
    return reader;
}

// ---------------------------------------------------------------------------------------------------------
// 9 A board to look at

// White at the bottom, the last move's two squares marked (no_move: none). On a terminal with colours and
// chess symbols, elsewhere in plain ASCII: letters as in FEN, a dot for an empty square, brackets for the
// mark.
inline std::string draw_board(const Position& p, Move last = no_move, bool color = isatty(STDOUT_FILENO)) {
    static const char* symbols[] = {" ", "♟", "♞", "♝", "♜", "♛", "♚"};
    std::string out;
    for (int rank = 7; rank >= 0; rank--) {
        out += strf(" %d ", rank + 1);
        for (int file = 0; file < 8; file++) {
            const Square s = square_at(file, rank);
            const int piece = p.board[s];
            const bool marked = last != no_move && (s == last.from || s == last.to),
                       dark = dark_squares & bit(s);
            if (color) {
                const int background = marked ? (dark ? 143 : 186) : dark ? 101 : 180; // of the 256 colours
                out += strf("\033[48;5;%d;38;5;%dm %s ", background, piece > 0 ? 231 : 16,
                            symbols[std::abs(piece)]);
            } else {
                const char letter = piece ? char(piece_letters[std::abs(piece)] + (piece < 0 ? 32 : 0)) : '.';
                out += strf(marked ? "[%c]" : " %c ", letter);
            }
        }
        out += color ? "\033[0m\n" : "\n";
    }
    return out + "    a  b  c  d  e  f  g  h\n";
}

} // namespace chess
