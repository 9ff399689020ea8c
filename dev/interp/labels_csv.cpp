// The board functions as a table: see labels_csv.h.
#include "labels_csv.h"

std::string labels_header() {
    std::string line = "game,ply,fen";
    for (const BoardFunction& f : board_functions)
        line += std::string(",") + (std::string_view(f.name) == "piece_state" ? "piece64" : f.name);
    return line + "\n";
}

std::string labels_row(size_t game, size_t ply, const BoardHistory& history, std::vector<uint8_t>& cells) {
    const chess::Position& p = history.position();
    label_position(history, cells);
    std::string line = strf("%zu,%zu,", game, ply) + chess::to_fen(p);
    const uint8_t* cell = cells.data(); // of function f
    for (const BoardFunction& f : board_functions) {
        line += ',';
        const size_t squares = f.rows * f.columns;
        if (f.classes == 0) {
            line +=
                std::to_string(std::string_view(f.name) == "material" ? material_of(p) : number_of_pieces(p));
        } else if (squares == 1) {
            line += cell[0] ? '1' : '0';
        } else if (f.classes == 1) {
            uint64_t bits = 0;
            for (size_t s = 0; s < squares; s++) bits |= uint64_t(cell[s]) << s;
            line += strf("%016llx", (unsigned long long)bits);
        } else {
            const char* letters = f.classes == 3 ? color_class_letters : piece_class_letters;
            for (size_t s = 0; s < squares; s++) {
                const uint8_t *begin = cell + s * f.classes, *end = begin + f.classes,
                              *one = std::find(begin, end, 1);
                line += one == end ? '.' : letters[one - begin];
            }
        }
        cell += cells_of(f);
    }
    return line + "\n";
}

// Rows to a file, each a position.
struct LabelWriter {
    const std::string& path; // that the positions are from, for messages
    FILE* out;
    LabelCounts counts;
    std::vector<uint8_t> cells;

    void write(const std::string& line) {
        if (fwrite(line.data(), 1, line.size(), out) != line.size())
            fail("%s: its labels cannot be written: %s", path.c_str(), strerror(errno));
    }
    void position(size_t game, size_t ply, const BoardHistory& history) {
        if (counts.positions++ == 0) write(labels_header());
        write(labels_row(game, ply, history, cells));
    }
    void game(size_t number, const std::vector<chess::Move>& moves) {
        BoardHistory history;
        position(number, 0, history);
        for (size_t ply = 1; ply <= moves.size(); ply++) {
            history.play(moves[ply - 1]);
            position(number, ply, history);
        }
        counts.games++;
    }
};

// A FEN in every line that is not blank.
static void write_positions(LabelWriter& to, std::string_view text, Progress& progress) {
    for (size_t at = 0, number = 1; at < text.size(); number++) {
        const size_t end = std::min(text.find('\n', at), text.size());
        std::string line(text.substr(at, end - at));
        line.erase(line.find_last_not_of(" \t\r") + 1);
        line.erase(0, line.find_first_not_of(" \t\r"));
        at = end + 1;
        if (line.empty()) continue;
        chess::Position p;
        try {
            p = chess::parse_fen(line);
        } catch (const Error& e) {
            fail("%s: line %zu: %s", to.path.c_str(), number, e.what());
        }
        to.position(number, size_t(p.fullmove - 1) * 2 + (p.turn == chess::BLACK), BoardHistory(p));
        progress.update(double(end));
    }
}

static void write_games_labels(LabelWriter& to, Progress& progress) {
    const chess::InputFile input(to.path);
    chess::GameFile games(input.source(), to.path, "", {}, true);
    const auto& counts = games.counts();
    for (chess::GameRecord game; games.next(game) && !counts.of[chess::ILLEGAL];) {
        const size_t number = size_t(counts.games());
        if (game.moves.empty()) { // of game text the reader gives the text: a cut last move does not matter
            const chess::GameTextReader moves = chess::parse_game_text(game.text);
            if (!moves.ok())
                fail("%s: line %zu: game %zu, ply %zu %s: %s", to.path.c_str(), game.line, number,
                     moves.moves.size() + 1, quoted(moves.token).c_str(), moves.error.c_str());
            game.moves = moves.moves;
        }
        to.game(number, game.moves);
        progress.update(double(games.bytes_read()));
    }
    if (counts.of[chess::ILLEGAL])
        fail("%s: %s: not a legal move", to.path.c_str(), counts.example[chess::ILLEGAL].c_str());
    games.fail_if_none();
    to.counts.left_out = counts.dropped();
}

LabelCounts write_labels(const std::string& path, FILE* out) {
    const MappedFile file(path);
    std::string_view text((const char*)file.data, file.size);
    if (text.substr(0, 3) == "\xEF\xBB\xBF") text.remove_prefix(3); // a byte order mark
    // Only a FEN's first word has many slashes.
    const size_t begin = std::min(text.find_first_not_of(" \t\r\n"), text.size());
    const std::string_view first_word = text.substr(begin, text.find_first_of(" \t\r\n", begin) - begin);
    Progress progress("labels", "bytes", double(file.size));
    LabelWriter to{path, out, {}, {}};
    if (std::count(first_word.begin(), first_word.end(), '/') >= 3)
        write_positions(to, text, progress);
    else
        write_games_labels(to, progress);
    progress.finish(double(file.size));
    if (fflush(out) != 0) fail("%s: its labels cannot be written: %s", path.c_str(), strerror(errno));
    return to.counts;
}
