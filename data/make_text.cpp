// make_text: text files, or stdin, to byte shards (id = byte, 256 = end of text, vocabulary 257).
// Gives train_000000.bin .. and val_000000.bin .. in the folder --out; takes any bytes at all, in constant
// memory. As in llm.c's data the end-of-text token stands before each document: what follows it is how a text
// begins, and a sampler without a prompt starts from it.
#include "../dev/lib/options.h"
#include "../dev/lib/stop.h"
#include "../dev/lib/terminal.h"
#include "byte_reader.h"
#include "shard_series.h"
#include "tokenizer.h"
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

// ----------------------------------------------------------------------------------------------------------
// Input. The held-out part is the last part of all the text, so the length of the text has to be known before
// the first byte is written. What does not tell its length (a pipe) is copied into one nameless temporary
// file; of all other files one is open at a time.

struct Source {
    std::string path, name; // name: for messages
    enum Kind { FILE, STREAM, COPY } kind;
    size_t bytes;      // of a file or a copy; 0: not known
    size_t offset = 0; // of a copy: where in the temporary file it begins
};

// A descriptor that is closed when it goes out of scope; standard input is left open.
struct Descriptor {
    int fd;
    explicit Descriptor(int fd) : fd(fd) {}
    Descriptor(const Descriptor&) = delete;
    ~Descriptor() {
        if (fd > STDIN_FILENO) close(fd);
    }
};

int open_text(const Source& source) {
    const int fd = source.path == "-" ? STDIN_FILENO : open(source.path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) fail("%s: cannot be opened: %s", source.name.c_str(), strerror(errno));
    return fd;
}

// Up to n bytes; 0 at the end.
size_t read_some(int fd, const std::string& name, char* out, size_t n) {
    for (;;) {
        if (stop_signal) fail("interrupted; nothing was written");
        const ssize_t got = read(fd, out, n);
        if (got >= 0) return size_t(got);
        if (errno != EINTR) fail("%s: cannot be read: %s", name.c_str(), strerror(errno));
    }
}

// What stands under the name. It is opened once to see that it can be, and so that what is no text is told
// apart: a file that says it is empty and is not (as in /proc) is read like a pipe.
Source find_source(const std::string& path) {
    Source source = {path, path == "-" ? "stdin" : path, Source::STREAM, 0};
    struct stat st;
    if (path != "-" && stat(path.c_str(), &st) == 0 && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))
        return source;
    const Descriptor file(open_text(source));
    if (fstat(file.fd, &st) != 0) fail("%s: cannot be opened: %s", source.name.c_str(), strerror(errno));
    if (S_ISDIR(st.st_mode)) fail("%s: a folder, expected a text file", source.name.c_str());
    if (!S_ISREG(st.st_mode)) return source;
    char first[512];
    const off_t begin = path == "-" ? lseek(file.fd, 0, SEEK_CUR) : 0; // a shell may have read from it
    const size_t n = size_t(std::max<ssize_t>(0, pread(file.fd, first, sizeof first, begin)));
    if (const ForeignFile kind = foreign_file({first, n}); kind.what)
        fprintf(stderr, "moex: note: %s is %s; its bytes are taken as they are%s\n", path.c_str(), kind.what,
                kind.unpack
                    ? strf(" (%s %s | make_text .. - would unpack it)", kind.unpack, path.c_str()).c_str()
                    : "");
    if (st.st_size == 0 && n > 0) return source;
    source.kind = Source::FILE;
    source.bytes = size_t(std::max<off_t>(0, st.st_size - begin));
    return source;
}

// The temporary file for copies of pipes, and how far it is filled.
struct Copies {
    int fd = -1;
    size_t bytes = 0;

    Copies() = default;
    Copies(const Copies&) = delete;
    ~Copies() {
        if (fd >= 0) close(fd);
    }
    void add(Source& source, const std::string& folder) {
        if (fd < 0) {
            std::string path = folder + "/.make_text.XXXXXX";
            fd = mkstemp(path.data());
            if (fd < 0) fail("%s: cannot be created: %s", path.c_str(), strerror(errno));
            unlink(path.c_str()); // its space is free again as soon as this program ends, however it ends
        }
        Progress progress("copying " + source.name, "bytes", 0);
        std::vector<char> buffer(1 << 20);
        const Descriptor from(open_text(source));
        source.kind = Source::COPY;
        source.offset = bytes;
        while (const size_t n = read_some(from.fd, source.name, buffer.data(), buffer.size())) {
            for (size_t i = 0; i < n;) {
                const ssize_t put = pwrite(fd, buffer.data() + i, n - i, off_t(bytes));
                if (put < 0 && errno == EINTR) continue;
                if (put <= 0)
                    fail("%s: cannot hold a copy of %s: %s", folder.c_str(), source.name.c_str(),
                         strerror(errno));
                i += size_t(put);
                bytes += size_t(put);
            }
            progress.update(double(bytes - source.offset));
        }
        source.bytes = bytes - source.offset;
        progress.finish(double(source.bytes));
    }
};

// ----------------------------------------------------------------------------------------------------------
// Output.

// All the text: bytes before offset `cut` go to train, those from there on to val.
struct Corpus {
    ShardSeries &train, &val;
    size_t cut;
    size_t offset = 0, documents = 0;
    bool in_document = false, held_out = false;
    std::vector<uint16_t> ids = {}; // room for what is being written

    // Bytes of the current document. One that goes over the cut begins anew in val: a held-out text too
    // starts with end of text. The cut waits for the end of a UTF-8 character (continuation bytes: 10xxxxxx).
    void put(const char* text, size_t n) {
        while (n > 0) {
            if (!held_out && offset >= cut && (*text & 0xC0) != 0x80) {
                held_out = true;
                documents -= in_document; // it is counted again below
                in_document = false;
            }
            const size_t k = held_out ? n : offset < cut ? std::min(n, cut - offset) : 1;
            ids.clear();
            if (!in_document) {
                ids.push_back(bytes_end_of_text);
                in_document = true;
                documents++;
            }
            ids.insert(ids.end(), (const unsigned char*)text, (const unsigned char*)text + k);
            (held_out ? val : train).write(ids.data(), ids.size());
            text += k;
            n -= k;
            offset += k;
        }
    }
    // The next byte begins a document; bytes skipped (a separator) count towards the cut. A document without
    // a byte leaves no trace.
    void end_document(size_t skipped) {
        in_document = false;
        offset += skipped;
    }
};

// Whether a line, with or without its line end, is the separator.
bool is_separator(std::string_view line, const std::string& separator) {
    if (!line.empty() && line.back() == '\n') line.remove_suffix(1);
    if (line.size() > separator.size() && line.back() == '\r') line.remove_suffix(1);
    return line == separator;
}

// A source is one document, or, with a separator, as many as the separator lines make of it. A line is looked
// at only as far as the separator is long, so that lines of any length pass through a buffer of fixed size.
// fd: where the source is read from; no more than `limit` bytes of it.
void read_documents(int fd, const Source& source, size_t limit, const std::string* separator, Corpus& corpus,
                    Progress& progress) {
    std::vector<char> buffer(1 << 20);
    size_t held = 0; // bytes at the front of the buffer that may be the beginning of a separator
    bool line_start = true;
    for (bool end = false; !end;) {
        const size_t n =
            read_some(fd, source.name, buffer.data() + held, std::min(limit, buffer.size() - held));
        limit -= n;
        const size_t have = held + n;
        end = n == 0;
        size_t done = 0, i = separator ? 0 : have; // [done, i) is text not yet handed on
        while (i < have) {
            const char* newline = (const char*)memchr(&buffer[i], '\n', have - i);
            const size_t stop = newline ? newline + 1 - buffer.data() : have;
            if (line_start && !newline && !end && stop - i <= separator->size() + 1) break;
            if (line_start && is_separator({&buffer[i], stop - i}, *separator)) {
                corpus.put(buffer.data() + done, i - done);
                corpus.end_document(stop - i);
                done = stop;
            }
            line_start = newline;
            i = stop;
        }
        corpus.put(buffer.data() + done, i - done);
        held = have - i;
        memmove(buffer.data(), buffer.data() + i, held);
        progress.update(corpus.offset);
    }
    corpus.end_document(0);
}

// ----------------------------------------------------------------------------------------------------------

int make_text(int argc, char** argv) {
    std::string out, separator;
    double val_fraction = 0.1;
    int64_t shard_tokens = 100'000'000;
    bool overwrite = false;
    Options options(
        "make_text",
        "Converts text to shards of byte tokens: a byte's id is its value, 256 is end of text and\n"
        "stands before each document (vocabulary 257). Each FILE is a document; - is stdin.\n"
        "Writes train_000000.bin .. and val_000000.bin .. into the folder --out, all at once at the end.",
        "FILE|- ...");
    options.add('o', "out", "DIR", &out, "folder for the shards, made if it is not there (required)");
    options.add(0, "val-fraction", "F", &val_fraction, 0, 1,
                "held out: this last part of all the text, in the order given; 0 for none");
    options.add(0, "separator", "LINE", &separator,
                "a line that reads just so ends a document ('' for a blank line)");
    options.add(0, "shard-tokens", "N", &shard_tokens, 2, UINT32_MAX, "tokens per shard");
    options.add(0, "overwrite", &overwrite, "replace the shards that are in the folder already");
    if (!options.parse(argc, argv)) return 0;
    if (out.empty()) fail_usage("--out: the folder for the shards is missing");
    if (options.arguments.empty()) fail_usage("no text given, expected file names, or - for stdin");
    if (separator.size() > 4096 || separator.find('\n') != std::string::npos)
        fail_usage("--separator: expected a single line of at most 4096 bytes");

    stop_on_signals(Reads::end);
    const double begin = now_seconds();
    std::vector<Source> sources;
    for (const std::string& path : options.arguments) sources.push_back(find_source(path));
    ShardFolder shards(out, TOKENIZER_BYTES, 0, size_t(shard_tokens), overwrite);

    const bool length_matters = val_fraction > 0 && val_fraction < 1;
    size_t total = 0;
    bool all_known = true;
    Copies copies;
    for (Source& source : sources) {
        if (length_matters && source.kind == Source::STREAM) copies.add(source, out);
        total += source.bytes;
        all_known = all_known && source.kind != Source::STREAM;
    }
    Corpus corpus = {shards.train, shards.val,
                     val_fraction == 0 ? SIZE_MAX : size_t((1 - val_fraction) * double(total))};
    Progress progress("make_text", "bytes", all_known ? double(total) : 0);
    for (const Source& source : sources) {
        const bool copy = source.kind == Source::COPY;
        const Descriptor file(copy ? dup(copies.fd) : open_text(source));
        if (copy && lseek(file.fd, off_t(source.offset), SEEK_SET) < 0)
            fail("%s: its copy cannot be read: %s", source.name.c_str(), strerror(errno));
        read_documents(file.fd, source, copy ? source.bytes : SIZE_MAX,
                       options.given("separator") ? &separator : nullptr, corpus, progress);
    }
    progress.finish(double(corpus.offset));
    if (corpus.documents == 0) fail("there is no text in the input, expected at least one byte");
    shards.publish();

    const double seconds = now_seconds() - begin;
    printf("%zu documents, %s, in %s (%s/s)\n", corpus.documents, human_bytes(corpus.offset).c_str(),
           human_duration(seconds).c_str(), human_bytes(corpus.offset / seconds).c_str());
    for (const ShardSeries* s : {&corpus.train, &corpus.val})
        if (s->shards)
            printf("%12zu tokens in %zu shard%s  %s_*.bin\n", s->tokens, s->shards, s->shards > 1 ? "s" : "",
                   s->prefix.c_str());
    return 0;
}

int main(int argc, char** argv) {
    return run_main([&] { return make_text(argc, argv); });
}
