// The bytes of a file or pipe one by one, in constant memory, with as much looking ahead as a reader wants
// and the number of the line for its messages. And what a file is whose first bytes say that it is no text.
#pragma once
#include "../dev/lib/error.h"
#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

// Fills up to n bytes and returns how many; 0 at the end. What goes wrong is thrown.
using ByteSource = std::function<size_t(char* to, size_t n)>;

// The bytes of a text that is in memory already, and stays there.
inline ByteSource source_of(std::string_view text) {
    return [text](char* to, size_t n) mutable {
        n = text.copy(to, n);
        text.remove_prefix(n);
        return n;
    };
}

struct ByteReader {
    uint64_t bytes = 0; // got from the source so far
    size_t line = 1;    // of the next byte

    // chunk: bytes asked for at a time; it changes nothing but the speed.
    explicit ByteReader(ByteSource source, size_t chunk = 1 << 16)
        : source(std::move(source)), chunk(chunk) {}

    // The next byte, or -1 at the end.
    int peek() {
        if (at == buffer.size() && !more()) return -1;
        return (unsigned char)buffer[at];
    }
    int take() {
        const int c = peek();
        if (c < 0) return c;
        at++;
        if (c == '\n' || (c == '\r' && peek() != '\n')) line++;
        return c;
    }
    // The next n bytes, fewer at the end only.
    std::string_view ahead(size_t n) {
        while (buffer.size() - at < n && more()) {
        }
        return waiting().substr(0, n);
    }
    // Passes over n bytes of what lies ahead; no line ends among them.
    void skip(size_t n) { at += n; }

    // What has come already, and one chunk more of it; false at the end.
    std::string_view waiting() const { return {buffer.data() + at, buffer.size() - at}; }
    bool more() {
        buffer.erase(buffer.begin(), buffer.begin() + std::ptrdiff_t(at));
        at = 0;
        const size_t before = buffer.size();
        buffer.resize(before + chunk);
        const size_t got = source(buffer.data() + before, chunk);
        buffer.resize(before + got);
        bytes += got;
        return got > 0;
    }

  private:
    ByteSource source;
    size_t chunk, at = 0;
    std::vector<char> buffer;
};

// ---------------------------------------------------------------------------------------------------------

struct ForeignFile {
    const char* what; // nullptr: nothing known
    const char*
        unpack; // the command that turns it into text on stdout, the file's name behind it; or nullptr
};

// What kind of file begins like this, if it is one of those that people take for text.
inline ForeignFile foreign_file(std::string_view first) {
    using namespace std::string_view_literals;
    const auto begins = [&](std::string_view magic) { return first.substr(0, magic.size()) == magic; };
    if (begins("\x28\xB5\x2F\xFD"sv) ||
        (first.size() > 3 && (first[0] & 0xF0) == 0x50 && first.substr(1, 3) == "\x2A\x4D\x18"sv))
        return {"compressed with zstd", "zstdcat"};
    if (begins("\x1F\x8B"sv)) return {"compressed with gzip", "zcat"};
    if (begins("BZh"sv) && first.size() > 3 && first[3] >= '1' && first[3] <= '9')
        return {"compressed with bzip2", "bzcat"};
    if (begins("\xFD"
               "7zXZ\0"sv) ||
        begins("\x5D\0\0"sv))
        return {"compressed with xz", "xzcat"};
    if (begins("\x04\x22\x4D\x18"sv)) return {"compressed with lz4", "lz4cat"};
    if (begins("PK\x03\x04"sv) || begins("PK\x05\x06"sv)) return {"a zip archive", "unzip -p"};
    if (begins("7z\xBC\xAF\x27\x1C"sv)) return {"a 7z archive", "7z x -so"};
    if (begins("Rar!\x1A"sv)) return {"a rar archive", "unrar p -inul"};
    if (first.substr(std::min<size_t>(257, first.size()), 5) == "ustar"sv)
        return {"a tar archive", "tar -xOf"};
    if (begins("\xFF\xFE\0\0"sv) || begins("\0\0\xFE\xFF"sv))
        return {"text in UTF-32", "iconv -f UTF-32 -t UTF-8"};
    const bool zeros_between = first.size() > 3 && (first[0] == 0) != (first[1] == 0) &&
                               (first[0] == 0) == (first[2] == 0) && (first[1] == 0) == (first[3] == 0);
    if (begins("\xFF\xFE"sv) || begins("\xFE\xFF"sv)) return {"text in UTF-16", "iconv -f UTF-16 -t UTF-8"};
    if (zeros_between)
        return {"text in UTF-16", first[0] ? "iconv -f UTF-16LE -t UTF-8" : "iconv -f UTF-16BE -t UTF-8"};
    if (begins("PAR1"sv)) return {"a Parquet table", nullptr};
    if (begins("SQLite format 3"sv)) return {"an SQLite database", nullptr};
    if (begins("%PDF-"sv)) return {"a PDF document", nullptr};
    if (begins("<!DOCTYPE"sv) || begins("<!doctype"sv) || begins("<html"sv)) return {"a web page", nullptr};
    if (begins("version https://git-lfs"sv))
        return {"a Git LFS pointer, not the file itself (git lfs pull)", nullptr};
    if (begins("\x88\xD8\x34\x01"sv)) return {"a token shard already", nullptr};
    return {nullptr, nullptr};
}

// For a reader of text that has got such a file: throws what it is and what to do. program: what the command
// at the end of the pipe is called, "" for none.
inline void refuse_foreign_file(const std::string& name, std::string_view first, const char* expected,
                                const char* pipe_into) {
    const ForeignFile kind = foreign_file(first);
    if (!kind.what) return;
    if (!kind.unpack) fail("%s: %s, expected %s", name.c_str(), kind.what, expected);
    const std::string command = std::string(kind.unpack) + (name == "standard input" ? " FILE" : " " + name);
    if (!*pipe_into)
        fail("%s: %s, expected %s: unpack it first, %s > games.txt", name.c_str(), kind.what, expected,
             command.c_str());
    fail("%s: %s, expected %s: %s | %s", name.c_str(), kind.what, expected, command.c_str(), pipe_into);
}
