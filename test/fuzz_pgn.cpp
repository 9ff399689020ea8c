// libFuzzer target for everything in the chess part that reads what others wrote: files of games (PGN, game
// text, tables), SAN, FEN, game text. The first byte of the input chooses the size of the chunks that the
// readers get; the rest is read as each of them. Beside the sanitizers it checks what must hold for any
// input: good games are legal and exact, the size of the chunks changes nothing, a FEN that is accepted comes
// back as it was written.
#include "../data/game_file.h"

using namespace chess;

static void require(bool ok, const char* what) {
    if (ok) return;
    fprintf(stderr, "fuzz_pgn: %s\n", what);
    abort();
}

// The games that a reader gives, and what it has counted.
template <class Reader> static std::string read_all(Reader& reader) {
    std::string all;
    for (GameRecord game; reader.next(game);) {
        require(!game.moves.empty() && to_game_text(game.moves) == game.text,
                "a good game is not what its text says");
        const GameTextReader back = parse_game_text(game.text);
        require(back.ok() && back.token.empty() && back.moves == game.moves,
                "the text of a good game does not come back");
        all += game.text + game.result;
    }
    try {
        reader.fail_if_none();
    } catch (const Error&) {
        require(reader.counts.good() == 0, "good games, but an error");
    }
    const GameCounts& c = reader.counts;
    for (uint64_t n : c.of) all += strf(" %llu", (unsigned long long)n);
    for (const std::string& reason : c.reasons()) all += reason;
    return all + strf(" %llu %llu", (unsigned long long)c.tags, (unsigned long long)c.stray);
}

static std::string read_as_pgn_and_table(const std::string& text, size_t chunk) {
    PgnReader pgn(ByteReader(source_of(text), chunk), "fuzz");
    std::string all = read_all(pgn);
    require(pgn.bytes_read() == text.size(), "the reader has not read everything");
    TableLayout layout;
    if (!find_layout(text, layout)) layout.separator = ',';
    TextGameReader table(ByteReader(source_of(text), chunk), "fuzz", layout);
    return all + read_all(table);
}

// Whatever a file is, it is read or refused by name.
static void read_any(const std::string& text) {
    try {
        GameFile file(source_of(text), "fuzz", "", {}, true);
        for (GameRecord game; file.next(game);) require(!game.text.empty(), "a game without text");
        file.fail_if_none();
    } catch (const Error& e) {
        require(std::string(e.what()).find('\n') == std::string::npos, "an error of several lines");
    }
}

static void try_moves(const Position& p, const std::string& text) {
    const MoveList legal = legal_moves(p);
    require(legal.size <= std::size(legal.moves), "more moves than a list holds");
    for (size_t begin = 0, words = 0; begin < text.size() && words < 20; words++) {
        const size_t end = std::min(text.find(' ', begin), text.size());
        const ParsedSan san = parse_san(p, std::string_view(text).substr(begin, end - begin), legal);
        require((san.error == nullptr) == (san.move != no_move), "neither a move nor an error");
        require(san.error || legal.contains(san.move), "a move that is not legal");
        begin = end + 1;
    }
    for (Move m : legal) {
        const std::string san = to_san(p, m, legal);
        require(parse_san(p, san, legal).move == m, "SAN does not come back");
        Position next = p;
        const Undo undo = make(next, m);
        require(next.key == compute_key(next), "the key after a move");
        require(!attackers(next, next.king(p.turn), !p.turn), "a legal move leaves the king in check");
        unmake(next, m, undo);
        require(to_fen(next) == to_fen(p) && next.key == p.key, "unmake");
    }
    require(pseudo_legal_moves(p).size >= legal.size, "fewer pseudo-legal moves than legal ones");
    Game(p).can_claim_draw();
    draw_board(p, legal.size ? legal.moves[0] : no_move, false);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    const std::string text((const char*)data + 1, size - 1);
    require(read_as_pgn_and_table(text, 1 + data[0]) == read_as_pgn_and_table(text, 1 << 16),
            "the size of the chunks changes what is read");
    read_any(text);

    const GameTextReader reader = parse_game_text(text);
    require(reader.ok() || reader.error.find('\n') == std::string::npos, "an error of several lines");
    try_moves(reader.position, text);

    const size_t line = std::min(text.find('\n'), text.size());
    try {
        const Position p = parse_fen(text.substr(0, line));
        require(to_fen(parse_fen(to_fen(p))) == to_fen(p) && p.key == compute_key(p),
                "FEN does not come back");
        try_moves(p, text.substr(std::min(line + 1, text.size())));
    } catch (const Error& e) {
        require(std::string(e.what()).find('\n') == std::string::npos, "an error of several lines");
    }
    return 0;
}
