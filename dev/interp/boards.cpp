// The board functions: see boards.h.
#include "boards.h"

int material_of(const chess::Position& p) {
    using namespace chess;
    int sum = 0;
    for (const auto& [type, worth] : {std::pair{PAWN, 1}, {KNIGHT, 3}, {BISHOP, 3}, {ROOK, 5}, {QUEEN, 9}})
        sum += worth * count(p.pieces(p.turn, type));
    return sum;
}

Forks find_forks(const chess::Position& p) {
    using namespace chess;
    constexpr int worth[] = {0, 1, 3, 3, 5, 9, 0};
    const Color us = p.turn;
    const Bitboard unpinned = p.colors[us] & ~pinned(p, us);
    Forks forks;
    int knight_pairs = 0;
    for (const PieceType type : {PAWN, KNIGHT, BISHOP, ROOK}) {
        int pairs[KING] = {};
        for (Bitboard b = unpinned & p.types[type]; b;) {
            const Bitboard hit = piece_attacks(type, us, take_first(b), p.occupied()) & p.colors[!us];
            int targets = 0;
            for (const PieceType target : {KNIGHT, BISHOP, ROOK, QUEEN})
                if (worth[target] > worth[type]) {
                    const int n = count(hit & p.types[target]);
                    pairs[target] += n;
                    targets += n;
                }
            forks.one |= targets >= 2;
            if (type == KNIGHT) knight_pairs += targets;
        }
        for (const int n : pairs) forks.any |= n >= 2;
    }
    forks.specific = knight_pairs >= 2;
    return forks;
}

bool opponent_mates_next(chess::Position p) {
    using namespace chess;
    if (in_check(p)) return false;
    p.turn = !p.turn;
    p.en_passant = NO_SQUARE;
    p.en_passant_legal = false;
    for (Move m : legal_moves(p)) {
        const Undo undo = make(p, m);
        const bool mate = is_checkmate(p);
        unmake(p, m, undo);
        if (mate) return true;
    }
    return false;
}

MoveFacts find_move_facts(chess::Position p) {
    using namespace chess;
    MoveFacts facts;
    const Bitboard queens = p.pieces(!p.turn, QUEEN);
    const Square queen = queens ? 63 - std::countl_zero(queens) : NO_SQUARE; // of several the highest square
    Bitboard seen[7] = {};
    uint8_t origin[7][64]; // of the first move of such a piece to that square
    for (Move m : legal_moves(p)) {
        const PieceType type = p.type_at(m.from);
        if (!(seen[type] & bit(m.to))) origin[type][m.to] = m.from;
        facts.ambiguous |= origin[type][m.to] != m.from; // not so for the promotions of one pawn
        seen[type] |= bit(m.to);
        facts.targets |= bit(m.to);
        facts.captures_queen |= m.to == queen;
        if (facts.mate) continue;
        const Undo undo = make(p, m);
        if (in_check(p)) {
            facts.check = true;
            facts.mate = !has_legal_move(p);
        }
        unmake(p, m, undo);
    }
    return facts;
}

bool has_connected_rooks(const chess::Position& p) {
    using namespace chess;
    const Bitboard rooks = p.pieces(p.turn, ROOK);
    for (Bitboard b = rooks; b;)
        if (rook_attacks(take_first(b), p.occupied()) & rooks) return true;
    return false;
}

void label_position(const BoardHistory& history, std::vector<uint8_t>& cells) {
    using namespace chess;
    const Position& p = history.position();
    static const Position start = start_position();
    cells.assign(total_cells(), 0);

    // prev_state: an empty board in the first 25 plies, as in the published code.
    constexpr size_t back = 25;
    const size_t n = history.boards.size();
    const int8_t* before = n > back ? history.boards[n - 1 - back].data() : nullptr;
    for (size_t s = 0; s < 64; s++) {
        const int piece = p.board[s];
        cells[cell_of("piece_state") + s * 13 + size_t(piece + 6)] = 1;
        if (piece) cells[cell_of("piece_masked_blank_state") + s * 13 + size_t(piece + 6)] = 1;
        if (piece && piece != start.board[s])
            cells[cell_of("piece_masked_blank_and_initial_state") + s * 13 + size_t(piece + 6)] = 1;
        cells[cell_of("piece_color_state") + s * 3 + size_t(piece < 0 ? 0 : piece ? 2 : 1)] = 1;
        cells[cell_of("prev_state") + s * 13 + size_t((before ? before[s] : 0) + 6)] = 1;
    }

    const MoveFacts moves = find_move_facts(p);
    const auto set_squares = [&](size_t first, Bitboard b) {
        while (b) cells[first + size_t(take_first(b))] = 1;
    };
    set_squares(cell_of("threat_state"), attacked_squares(p, BLACK));
    if (p.turn == WHITE) set_squares(cell_of("legal_moves_state"), moves.targets);
    for (Move m : pseudo_legal_moves(p)) cells[cell_of("pseudo_legal_moves_state") + m.to] = 1;

    const bool check = in_check(p), can_move = moves.targets != 0;
    const Forks forks = find_forks(p);
    cells[cell_of("check_state")] = check;
    cells[cell_of("pin_state")] = (pinned(p, WHITE) | pinned(p, BLACK)) != 0;
    cells[cell_of("specific_fork")] = forks.specific;
    cells[cell_of("any_fork")] = forks.any;
    cells[cell_of("has_castling_rights")] = (p.castling & (kingside(p.turn) | queenside(p.turn))) != 0;
    cells[cell_of("has_kingside_castling_rights")] = (p.castling & kingside(p.turn)) != 0;
    cells[cell_of("has_queenside_castling_rights")] = (p.castling & queenside(p.turn)) != 0;
    cells[cell_of("has_legal_en_passant")] = p.en_passant_legal;
    // No claim before the seventh ply that can be taken back: a position comes for the third time after
    // eight.
    cells[cell_of("can_claim_draw")] = p.halfmove >= 7 && history.game.can_claim_draw();
    cells[cell_of("can_check_next")] = moves.check;
    cells[cell_of("has_bishop_pair")] = count(p.pieces(p.turn, BISHOP)) >= 2;
    cells[cell_of("has_mate_threat")] = moves.mate;
    cells[cell_of("can_capture_queen")] = moves.captures_queen;
    cells[cell_of("has_queen")] = p.pieces(p.turn, QUEEN) != 0;
    cells[cell_of("has_connected_rooks")] = has_connected_rooks(p);
    cells[cell_of("ambiguous_moves")] = moves.ambiguous;
    cells[cell_of("is_stalemate")] = !check && !can_move;
    cells[cell_of("fork")] = forks.one;
    cells[cell_of("opponent_mate_threat")] = opponent_mates_next(p);
}

Labels label_games(const GameSet& games, size_t dots) {
    Labels labels = empty_labels(total_cells(), games.size() * dots);
    if (labels.tokens == 0) return labels;
    each_labelled_game("board functions", games.size(), dots, [&](size_t g) {
        chess::GameTextReader reader;
        for (const char c : games.texts[g]) {
            if (!reader.ok() || reader.moves.size() >= 2 * (dots - 1)) break;
            reader.push(c);
        }
        if (reader.moves.size() < 2 * (dots - 1))
            fail("%s: fit game %zu has %zu legal plies, expected %zu or more", games.source.c_str(), g + 1,
                 reader.moves.size(), 2 * (dots - 1));
        BoardHistory history;
        std::vector<uint8_t> cells;
        for (size_t d = 0; d < dots; d++) {
            for (size_t ply = d ? 2 * d - 2 : 0; ply < 2 * d; ply++) history.play(reader.moves[ply]);
            label_position(history, cells);
            for (size_t c = 0; c < cells.size(); c++)
                if (cells[c]) labels.set(c, g * dots + d);
        }
    });
    return labels;
}

std::string cell_text(size_t function, size_t row, size_t column, size_t cls, bool negated) {
    static constexpr const char* kinds[] = {"", "pawn", "knight", "bishop", "rook", "queen", "king"};
    const BoardFunction& f = board_functions[function];
    if (cells_of(f) <= 1) return negated && f.negation ? f.negation : f.meaning;
    const std::string square = chess::square_name(int(row * 8 + column)), name = f.name;
    if (name == "threat_state") return (negated ? "Black does not attack " : "Black attacks ") + square;
    if (name == "legal_moves_state")
        return (negated ? "White cannot move to " : "White can move to ") + square;
    if (name == "pseudo_legal_moves_state")
        return (negated ? "White could not move to " : "White could move to ") + square +
               (negated ? " even if its king might be left in check" : " if its king might be left in check");

    const bool past = name == "prev_state";
    const std::string ago = past ? " 25 plies ago" : "", is = past ? " was" : " is",
                      stands = past ? " stood on " : " stands on ";
    const int piece = f.classes == 3 ? 0 : int(cls) - 6, color = f.classes == 3 ? int(cls) - 1 : piece;
    if (color == 0) return square + is + (negated ? " occupied" : " empty") + ago;
    const std::string side = color > 0 ? "White" : "Black", white = color > 0 ? "white" : "black";
    if (f.classes == 3) return (negated ? "no " : "a ") + white + " piece" + stands + square + ago;
    const std::string kind = kinds[std::abs(piece)];
    static const chess::Position start = chess::start_position();
    if (negated && piece == start.board[row * 8 + column])
        return side + "'s " + kind + is + " off " + square + ago;
    if (std::abs(piece) == chess::KING)
        return side + "'s king" + (negated ? is + " not on " : stands) + square + ago;
    return (negated ? "no " : "a ") + white + " " + kind + stands + square + ago;
}
