// Games of chess from any file that people keep them in: PGN, game text or a table with a column of games,
// told apart by how the file begins. The one reader of all programs. What is none of these is refused by
// what it is (compressed, UTF-16, a web page ..) with the command that helps.
#pragma once
#include "../dev/lib/file.h"
#include "game_text.h"
#include "pgn.h"
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <optional>
#include <sys/stat.h>
#include <unistd.h>

namespace chess {

// A file or, as `-`, standard input, as a source of bytes.
struct InputFile {
    std::string name; // for messages
    int fd = 0;

    explicit InputFile(const std::string& path) : name(path == "-" ? "standard input" : path) {
        if (path != "-") fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
        if (fd < 0) fail("%s: cannot be opened: %s", path.c_str(), strerror(errno));
    }
    InputFile(const InputFile&) = delete;
    ~InputFile() {
        if (fd > 0) close(fd);
    }
    double size() const { // 0 if it has none, being a pipe
        struct stat st;
        return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? double(st.st_size) : 0;
    }
    // stop: a signal that has come ends the file here; nullptr for none. The source must not outlive the
    // file.
    ByteSource source(const volatile std::sig_atomic_t* stop = nullptr) const {
        return [this, stop](char* to, size_t n) -> size_t {
            for (;;) {
                if (stop && *stop) return 0;
                const ssize_t got = read(fd, to, n);
                if (got >= 0) return size_t(got);
                if (errno != EINTR) fail("%s: cannot be read: %s", name.c_str(), strerror(errno));
            }
        };
    }
};

struct GameFile {
    const char* format; // for people: PGN, game text, table

    // pipe_into: the end of the command line that a compressed file would be read by, "" if there is none.
    // wanted, beginnings: see GameBuilder and TextGameReader.
    GameFile(ByteSource source, const std::string& name, const char* pipe_into,
             std::function<bool(const Tags&)> wanted = {}, bool beginnings = false) {
        ByteReader bytes(std::move(source));
        // Two lines tell what it is. (A pipe may give them long before it gives more.)
        const auto lines = [&] {
            const std::string_view text = bytes.waiting();
            size_t n = 0;
            for (size_t i = 1; i < text.size(); i++) n += is_line_end(text[i]) && !is_line_end(text[i - 1]);
            return n;
        };
        while (bytes.waiting().size() < 8 ||
               (bytes.waiting()[0] != '[' && lines() < 2 && bytes.waiting().size() < 1 << 16))
            if (!bytes.more()) break;
        refuse_foreign_file(name, bytes.waiting(), "games in PGN, game text or CSV", pipe_into);
        TableLayout layout;
        if (find_layout(bytes.waiting(), layout)) {
            format = layout.separator ? "table" : "game text";
            text.emplace(std::move(bytes), name, std::move(layout), std::move(wanted), beginnings);
        } else {
            format = "PGN";
            pgn.emplace(std::move(bytes), name, std::move(wanted));
        }
    }

    // The next good game, or false at the end.
    bool next(GameRecord& game) { return pgn ? pgn->next(game) : text->next(game); }
    const GameCounts& counts() const { return pgn ? pgn->counts : text->counts; }
    uint64_t bytes_read() const { return pgn ? pgn->bytes_read() : text->bytes_read(); }
    // For the end of a file without a good game: throws what it was instead.
    void fail_if_none() const { pgn ? pgn->fail_if_none() : text->fail_if_none(); }

  private:
    static bool is_line_end(char c) { return c == '\n' || c == '\r'; }
    std::optional<PgnReader> pgn;
    std::optional<TextGameReader> text;
};

} // namespace chess
