// make_text: text files, or stdin, to byte shards (id = byte, 256 = end of text, vocabulary 257).
// Gives train_000000.bin .. and val_000000.bin .. in the folder --out; takes any bytes at all, in constant
// memory. As in llm.c's data the end-of-text token stands before each document: what follows it is how a text
// begins, and a sampler without a prompt starts from it.
#include "../dev/lib/options.h"
#include "../dev/lib/terminal.h"
#include "tokenizer.h"
#include <filesystem>
#include <optional>

// ----------------------------------------------------------------------------------------------------------
// Input. The held-out part is the last part of all the text, so the length of the text has to be known before
// the first byte is written. What does not tell its length (a pipe) is copied to a nameless temporary file.

struct Source {
    std::string name;
    int fd;       // open on stdin or on a temporary copy; -1: a file, to be opened by its name
    size_t bytes; // 0: not known
};

size_t read_some(const Source& source, char* out, size_t n) {
    ssize_t got;
    while ((got = read(source.fd, out, n)) < 0 && errno == EINTR) {
    }
    if (got < 0) fail("%s: cannot be read: %s", source.name.c_str(), strerror(errno));
    return got;
}

Source open_source(const std::string& path) {
    Source source = {path == "-" ? "stdin" : path, STDIN_FILENO, 0};
    if (path != "-") source.fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (source.fd < 0 || fstat(source.fd, &st) != 0)
        fail("%s: cannot be opened: %s", source.name.c_str(), strerror(errno));
    if (S_ISDIR(st.st_mode)) fail("%s: a folder, expected a text file", source.name.c_str());
    if (S_ISREG(st.st_mode)) source.bytes = st.st_size;
    return source;
}

void copy_to_temporary(Source& source, const std::string& folder) {
    std::string path = folder + "/.make_text.XXXXXX";
    const int copy = mkstemp(path.data());
    if (copy < 0) fail("%s: cannot be created: %s", path.c_str(), strerror(errno));
    unlink(path.c_str()); // its space is free again as soon as this program ends, however it ends
    Progress progress("copying " + source.name, "bytes", 0);
    std::vector<char> buffer(1 << 20);
    while (const size_t n = read_some(source, buffer.data(), buffer.size())) {
        for (size_t i = 0; i < n;) {
            const ssize_t put = write(copy, buffer.data() + i, n - i);
            if (put < 0 && errno == EINTR) continue;
            if (put <= 0)
                fail("%s: cannot hold a copy of %s: %s", folder.c_str(), source.name.c_str(),
                     strerror(errno));
            i += put;
        }
        progress.update(source.bytes += n);
    }
    progress.finish(source.bytes);
    close(source.fd);
    lseek(copy, 0, SEEK_SET);
    source.fd = copy;
}

// ----------------------------------------------------------------------------------------------------------
// Output.

// A numbered series of shards, <folder>/<name>_000000.bin and on, each full but for the last.
struct ShardSeries {
    std::string prefix;
    size_t shard_tokens;
    size_t shards = 0, tokens = 0;
    std::optional<ShardWriter> writer = {};

    void write(const uint16_t* ids, size_t n) {
        while (n > 0) {
            if (!writer) writer.emplace(strf("%s_%06zu.bin", prefix.c_str(), shards++), TOKENIZER_BYTES, 0);
            const size_t k = std::min(n, shard_tokens - writer->tokens);
            writer->write(ids, k);
            ids += k, n -= k, tokens += k;
            if (writer->tokens == shard_tokens) close();
        }
    }
    void close() {
        if (writer) writer->commit();
        writer.reset();
    }
};

// All the text: bytes before offset `cut` go to train, those from there on to val.
struct Corpus {
    ShardSeries train, val;
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
            if (!in_document) ids.push_back(bytes_end_of_text), in_document = true, documents++;
            ids.insert(ids.end(), (const unsigned char*)text, (const unsigned char*)text + k);
            (held_out ? val : train).write(ids.data(), ids.size());
            text += k, n -= k, offset += k;
        }
    }
    // The next byte begins a document; bytes skipped (a separator) count towards the cut. A document without
    // a byte leaves no trace.
    void end_document(size_t skipped) { in_document = false, offset += skipped; }
};

// Whether a line, with or without its line end, is the separator.
bool is_separator(std::string_view line, const std::string& separator) {
    if (!line.empty() && line.back() == '\n') line.remove_suffix(1);
    if (line.size() > separator.size() && line.back() == '\r') line.remove_suffix(1);
    return line == separator;
}

// A source is one document, or, with a separator, as many as the separator lines make of it. A line is looked
// at only as far as the separator is long, so that lines of any length pass through a buffer of fixed size.
void read_documents(const Source& source, const std::string* separator, Corpus& corpus, Progress& progress) {
    std::vector<char> buffer(1 << 20);
    size_t held = 0; // bytes at the front of the buffer that may be the beginning of a separator
    bool line_start = true;
    for (bool end = false; !end;) {
        const size_t n = read_some(source, buffer.data() + held, buffer.size() - held);
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

// The shards of an earlier run in the folder: a longer series of old ones would be read with the new ones.
std::vector<std::string> shards_in(const std::string& folder) {
    std::vector<std::string> found;
    std::error_code problem;
    for (const auto& entry : std::filesystem::directory_iterator(folder, problem)) {
        const std::string name = entry.path().filename();
        for (const char* series : {"train_", "val_"})
            if (name.starts_with(series) && name.ends_with(".bin")) found.push_back(entry.path());
    }
    std::sort(found.begin(), found.end());
    return found;
}

int make_text(int argc, char** argv) {
    std::string out, separator;
    double val_fraction = 0.1;
    int64_t shard_tokens = 100'000'000;
    bool overwrite = false;
    Options options(
        "make_text",
        "Converts text to shards of byte tokens: a byte's id is its value, 256 is end of text and\n"
        "stands before each document (vocabulary 257). Each FILE is a document; - is stdin.\n"
        "Writes train_000000.bin .. and val_000000.bin .. into the folder --out.",
        "FILE|- ...");
    options.add('o', "out", "DIR", &out, "folder for the shards, made if it is not there (required)");
    options.add(0, "val-fraction", "F", &val_fraction, 0, 1,
                "held out: this last part of all the text, in the order given; 0 for none");
    options.add(0, "separator", "LINE", &separator,
                "a line that reads just so ends a document ('' for a blank line)");
    options.add(0, "shard-tokens", "N", &shard_tokens, 2, UINT32_MAX, "tokens per shard");
    options.add(0, "overwrite", &overwrite, "remove the shards that are in the folder already");
    if (!options.parse(argc, argv)) return 0;
    if (out.empty()) fail_usage("--out: the folder for the shards is missing");
    if (options.arguments.empty()) fail_usage("no text given, expected file names, or - for stdin");
    if (separator.size() > 4096 || separator.find('\n') != std::string::npos)
        fail_usage("--separator: expected a single line of at most 4096 bytes");

    // Nothing is removed or written before every input is known to be there.
    const double begin = now_seconds();
    std::vector<Source> sources;
    for (const std::string& path : options.arguments) {
        sources.push_back(open_source(path));
        if (sources.back().bytes && path != "-") close(std::exchange(sources.back().fd, -1));
    }
    make_directories(out);
    const std::vector<std::string> old = shards_in(out);
    if (!old.empty() && !overwrite)
        fail("%s: there are shards in this folder already, expected none (or --overwrite, to remove them)",
             old[0].c_str());

    const bool known_length = val_fraction > 0 && val_fraction < 1;
    size_t total = 0;
    for (Source& source : sources) {
        if (known_length && source.bytes == 0) copy_to_temporary(source, out);
        total += source.bytes;
    }
    for (const std::string& path : old)
        if (unlink(path.c_str()) != 0) fail("%s: cannot be removed: %s", path.c_str(), strerror(errno));

    Corpus corpus = {{out + "/train", size_t(shard_tokens)},
                     {out + "/val", size_t(shard_tokens)},
                     val_fraction == 0 ? SIZE_MAX : size_t((1 - val_fraction) * total)};
    const bool all_known =
        std::all_of(sources.begin(), sources.end(), [](const Source& s) { return s.bytes; });
    Progress progress("make_text", "bytes", all_known ? total : 0);
    for (Source& source : sources) {
        if (source.fd < 0) source.fd = open(source.name.c_str(), O_RDONLY | O_CLOEXEC);
        if (source.fd < 0) fail("%s: cannot be opened: %s", source.name.c_str(), strerror(errno));
        read_documents(source, options.given("separator") ? &separator : nullptr, corpus, progress);
        close(source.fd);
    }
    progress.finish(corpus.offset);
    if (corpus.documents == 0) fail("there is no text in the input, expected at least one byte");
    corpus.train.close();
    corpus.val.close();

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
