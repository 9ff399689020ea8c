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

LabelCounts write_labels(const std::string& path, FILE* out) {
    const MappedFile file(path);
    const std::string_view text((const char*)file.data, file.size);
    Progress progress("labels", "bytes", double(file.size));
    LabelCounts counts;
    std::vector<uint8_t> cells;
    const auto write = [&](const std::string& line) {
        if (fwrite(line.data(), 1, line.size(), out) != line.size())
            fail("%s: its labels cannot be written: %s", path.c_str(), strerror(errno));
    };
    const auto write_row = [&](size_t game, size_t ply, const BoardHistory& history) {
        if (counts.positions == 0) write(labels_header());
        write(labels_row(game, ply, history, cells));
        counts.positions++;
    };
    const auto write_game = [&](size_t game, const std::vector<chess::Move>& moves) {
        BoardHistory history;
        write_row(game, 0, history);
        for (size_t ply = 1; ply <= moves.size(); ply++) {
            history.play(moves[ply - 1]);
            write_row(game, ply, history);
        }
        counts.games++;
    };
    // f(line, its number from 1, where it ends) for every line that is not empty, without blanks around it.
    const size_t start = text.substr(0, 3) == "\xEF\xBB\xBF" ? 3 : 0; // behind a byte order mark
    const auto each_line = [&](auto f) {
        for (size_t at = start, number = 1; at < text.size(); number++) {
            const size_t end = std::min(text.find('\n', at), text.size());
            std::string line(text.substr(at, end - at));
            line.erase(line.find_last_not_of(" \t\r") + 1);
            line.erase(0, line.find_first_not_of(" \t\r"));
            if (!line.empty()) f(line, number, end);
            at = end + 1;
        }
    };

    // What kind of file it is shows at its beginning: game text begins with a semicolon, and only a FEN's
    // first word has many slashes.
    const size_t begin = std::min(text.find_first_not_of(" \t\r\n", start), text.size());
    const std::string_view first_word =
        text.substr(begin, text.find_first_of(" \t\r\n", begin) - begin); // to the end if nothing follows
    if (std::count(first_word.begin(), first_word.end(), '/') >= 3) {
        each_line([&](const std::string& line, size_t number, size_t end) {
            chess::Position p;
            try {
                p = chess::parse_fen(line);
            } catch (const Error& e) {
                fail("%s: line %zu: %s", path.c_str(), number, e.what());
            }
            write_row(number, size_t(p.fullmove - 1) * 2 + (p.turn == chess::BLACK), BoardHistory(p));
            progress.update(double(end));
        });
    } else if (first_word.substr(0, 1) == ";") {
        each_line([&](const std::string& line, size_t number, size_t end) {
            for (size_t at = 0; at < line.size();) {
                const size_t next = std::min(line.find(';', at + 1), line.size());
                const chess::GameTextReader game = chess::parse_game_text(line.substr(at, next - at));
                if (!game.ok())
                    fail("%s: line %zu: game %zu, ply %zu %s: %s", path.c_str(), number, counts.games + 1,
                         game.moves.size() + 1, quoted(game.token).c_str(), game.error.c_str());
                write_game(counts.games + 1, game.moves);
                at = next;
            }
            progress.update(double(end));
        });
    } else {
        size_t done = 0;
        const ByteSource source = [&](char* to, size_t n) {
            n = std::min(n, file.size - done);
            std::copy_n(text.data() + done, n, to);
            return done += n, n;
        };
        chess::PgnReader reader(ByteReader(source), path);
        const uint64_t& illegal = reader.counts.of[chess::ILLEGAL];
        for (chess::GameRecord game; reader.next(game);) {
            if (illegal) break;
            write_game(reader.counts.games(), game.moves);
            progress.update(double(done));
        }
        if (illegal)
            fail("%s: %s: not a legal move", path.c_str(), reader.counts.example[chess::ILLEGAL].c_str());
        reader.fail_if_none();
        counts.left_out = reader.counts.dropped();
    }
    progress.finish(double(file.size));
    if (fflush(out) != 0) fail("%s: its labels cannot be written: %s", path.c_str(), strerror(errno));
    return counts;
}
