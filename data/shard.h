// Token shards: the .bin files that training reads, byte-compatible with llm.c's.
//   header  256 little-endian int32: [0] magic 20240520, [1] version 1, [2] count of tokens,
//           [3] tokenizer (0 GPT-2 or unstated, 1 bytes, 2 chess-32), [4] row length R; the rest 0
//   tokens  count uint16
// R = 0: one stream of tokens. R > 0: rows of exactly R tokens, each a sample of its own.
// llm.c writes 0 into [3] and [4], so its shards are GPT-2 streams here. It stores the count as int32; we
// read the same bits as uint32, so that a shard may hold up to 2^32-1 tokens (8 GiB).
// Shard reads one file, open_shards all files of a glob, ShardWriter writes one.
#pragma once
#include "../dev/lib/file.h"
#include <algorithm>
#include <bit>
#include <cstring>
#include <glob.h>
#include <sys/stat.h>

static_assert(std::endian::native == std::endian::little, "shards are mapped as they are: little-endian");

enum Tokenizer : int32_t { TOKENIZER_GPT2 = 0, TOKENIZER_BYTES = 1, TOKENIZER_CHESS = 2 };

inline const char* tokenizer_name(Tokenizer tokenizer) {
    return tokenizer == TOKENIZER_BYTES ? "bytes" : tokenizer == TOKENIZER_CHESS ? "chess-32" : "gpt2";
}

inline Tokenizer tokenizer_from_name(const std::string& name) {
    for (Tokenizer t : {TOKENIZER_GPT2, TOKENIZER_BYTES, TOKENIZER_CHESS})
        if (name == tokenizer_name(t)) return t;
    fail("%s: unknown tokenizer, expected gpt2, bytes or chess-32", quoted(name).c_str());
}

struct ShardHeader {
    size_t tokens;
    Tokenizer tokenizer;
    size_t row;
};

inline constexpr int32_t shard_magic = 20240520, shard_version = 1;
inline constexpr size_t shard_header_words = 256, shard_header_bytes = 4 * shard_header_words;

// One shard, mapped into memory. The constructor checks everything that can be checked without reading the
// tokens; whether each token is inside the model's vocabulary is the loader's to check, as it hands them out.
struct Shard {
    MappedFile file;
    ShardHeader header;
    const uint16_t* tokens; // (header.tokens)

    explicit Shard(const std::string& path) : file(path) {
        const char* name = path.c_str();
        if (file.size < shard_header_bytes)
            fail("%s: %s: %zu bytes, expected a token shard, whose header alone has %zu", name,
                 file.size ? "cut short" : "empty", file.size, shard_header_bytes);
        const int32_t* word = (const int32_t*)file.data;
        if (word[0] != shard_magic)
            fail("%s: not a token shard: its first word is %d, expected %d", name, word[0], shard_magic);
        if (word[1] != shard_version)
            fail("%s: token shard of version %d, expected %d", name, word[1], shard_version);
        if (word[3] < TOKENIZER_GPT2 || word[3] > TOKENIZER_CHESS)
            fail("%s: unknown tokenizer %d, expected 0 (gpt2), 1 (bytes) or 2 (chess-32)", name, word[3]);
        if (word[4] < 0)
            fail("%s: row length %d, expected 0 (a stream) or the tokens of a row", name, word[4]);
        header = {uint32_t(word[2]), Tokenizer(word[3]), size_t(word[4])};
        const size_t expected = shard_header_bytes + header.tokens * sizeof(uint16_t);
        if (file.size != expected)
            fail("%s: %s: %zu bytes, expected %zu for the %zu tokens its header counts", name,
                 file.size < expected ? "cut short" : "too long", file.size, expected, header.tokens);
        if (header.tokens == 0) fail("%s: holds no tokens", name);
        if (header.row && header.tokens % header.row)
            fail("%s: %zu tokens are not whole rows of %zu", name, header.tokens, header.row);
        tokens = (const uint16_t*)(file.data + shard_header_bytes);
    }

    // tokens[begin] .. tokens[begin + n - 1]; DataError where the file has been cut short since it was opened.
    void read(size_t begin, size_t n, uint16_t* to) const {
        file.copy(to, shard_header_bytes + begin * sizeof(uint16_t), n * sizeof(uint16_t));
    }
};

// ---------------------------------------------------------------------------------------------------------
// Files by name or pattern

// `a{b,c}d` -> abd, acd, also one in the other, as the shell has them (glob() of some C libraries does not).
inline std::vector<std::string> expand_braces(const std::string& pattern) {
    size_t depth = 0, open = 0;
    std::vector<size_t> ends; // of the outermost alternatives: their commas, then the brace
    for (size_t i = 0; i < pattern.size(); i++) {
        if (pattern[i] == '\\') {
            i++;
        } else if (pattern[i] == '{') {
            if (depth++ == 0) open = i;
        } else if (depth == 1 && pattern[i] == ',') {
            ends.push_back(i);
        } else if (depth > 0 && pattern[i] == '}' && --depth == 0) {
            if (ends.empty()) continue; // {x} and {} stand for themselves
            ends.push_back(i);
            std::vector<std::string> all;
            for (size_t k = 0, begin = open + 1; k < ends.size(); begin = ends[k++] + 1)
                for (const std::string& one :
                     expand_braces(pattern.substr(0, open) + pattern.substr(begin, ends[k] - begin) +
                                   pattern.substr(i + 1)))
                    all.push_back(one);
            return all;
        }
    }
    return {pattern};
}

// The files that a name or pattern means, sorted. What exists under the name as it stands is meant, whatever
// characters it has; so is a folder in front of a pattern.
inline std::vector<std::string> matching_files(const std::string& pattern) {
    struct stat st;
    if (stat(pattern.c_str(), &st) == 0 && !S_ISDIR(st.st_mode)) return {pattern};
    const size_t slash = pattern.rfind('/');
    std::string folder = slash == std::string::npos ? "" : pattern.substr(0, slash + 1),
                name = pattern.substr(folder.size());
    if (!folder.empty() && stat(folder.c_str(), &st) == 0) {
        std::string literal;
        for (char c : folder) literal += strchr("*?[\\{", c) ? std::string("\\") + c : std::string(1, c);
        folder = literal;
    }
#ifdef GLOB_TILDE
    const int flags = GLOB_TILDE;
#else
    const int flags = 0;
#endif
    std::vector<std::string> paths;
    for (const std::string& one : expand_braces(folder + name)) {
        glob_t found = {};
        const int status = glob(one.c_str(), flags, nullptr, &found);
        if (status == 0) paths.insert(paths.end(), found.gl_pathv, found.gl_pathv + found.gl_pathc);
        globfree(&found);
        if (status == GLOB_NOSPACE) throw std::bad_alloc();
    }
    std::sort(paths.begin(), paths.end());
    paths.erase(std::unique(paths.begin(), paths.end()), paths.end());
    return paths;
}

// For a pattern that matches nothing, or a folder: what to type instead, "" if nothing comes to mind.
inline std::string shards_hint(const std::string& pattern) {
    struct stat st;
    if (pattern.empty()) return "";
    const bool is_folder = stat(pattern.c_str(), &st) == 0 && S_ISDIR(st.st_mode);
    const std::string folder = is_folder ? pattern : parent_directory(pattern);
    if (stat(folder.c_str(), &st) != 0 || !S_ISDIR(st.st_mode))
        return folder.find_first_of("*?[{") == std::string::npos
                   ? strf("; there is no folder %s", folder.c_str())
                   : "";
    const std::string prefix = !is_folder && pattern.find('/') == std::string::npos
                                   ? ""
                                   : folder + (folder.back() == '/' ? "" : "/");
    for (const char* shards : {"train_*.bin", "val_*.bin", "*_train_*.bin", "*_val_*.bin", "*.bin"})
        if (!matching_files(prefix + shards).empty())
            return strf("; there are '%s%s'", prefix.c_str(), shards);
    return "";
}

// Every shard that the glob matches, sorted by name. They must be of one kind: same tokenizer, same row.
inline std::vector<Shard> open_shards(const std::string& pattern) {
    struct stat st;
    const bool is_folder = stat(pattern.c_str(), &st) == 0 && S_ISDIR(st.st_mode);
    const std::vector<std::string> paths = is_folder ? std::vector<std::string>{} : matching_files(pattern);
    if (paths.empty())
        fail("%s: %s, expected the name or glob of token shards%s", pattern.c_str(),
             is_folder ? "a folder" : "matches no file", shards_hint(pattern).c_str());
    std::vector<Shard> shards;
    for (const std::string& path : paths) {
        shards.emplace_back(path);
        const ShardHeader &h = shards.back().header, &first = shards[0].header;
        if (h.tokenizer != first.tokenizer || h.row != first.row)
            fail("%s: tokenizer %s and row length %zu, expected %s and %zu as in %s", path.c_str(),
                 tokenizer_name(h.tokenizer), h.row, tokenizer_name(first.tokenizer), first.row,
                 paths[0].c_str());
    }
    return shards;
}

// ---------------------------------------------------------------------------------------------------------

// Writes one shard: write() as often as needed, then commit(). Without commit() nothing stays behind. The
// count is known only at the end, so it is put into the header there.
struct ShardWriter {
    AtomicFile file;
    size_t tokens = 0;

    ShardWriter(const std::string& path, Tokenizer tokenizer, size_t row) : file(path), row(row) {
        if (row > INT32_MAX) fail("%s: row length %zu, expected at most %d", path.c_str(), row, INT32_MAX);
        const int32_t header[shard_header_words] = {shard_magic, shard_version, 0, tokenizer, int32_t(row)};
        file.write(header, sizeof header);
    }
    void write(const uint16_t* ids, size_t n) {
        if (n > UINT32_MAX - tokens) fail("%s: a shard holds at most 2^32-1 tokens", file.path.c_str());
        file.write(ids, n * sizeof *ids);
        tokens += n;
    }
    // Refuses what Shard would refuse: no tokens at all, or a part of a row at the end.
    void commit() {
        if (tokens == 0) fail("%s: no tokens were written to it", file.path.c_str());
        if (row && tokens % row)
            fail("%s: %zu tokens are not whole rows of %zu", file.path.c_str(), tokens, row);
        const uint32_t count = uint32_t(tokens);
        file.write_at(2 * sizeof(int32_t), &count, sizeof count);
        file.commit();
    }

  private:
    size_t row;
};
