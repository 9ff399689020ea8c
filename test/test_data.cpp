// Tests of the token data: shards, loader, tokenizers, make_text. Takes the path of make_text as its argument
// (without it the program itself is not tested). Makes its inputs in a temporary folder and removes it.
#include "../data/loader.h"
#include "../data/tokenizer.h"
#include "check.h"
#include <csignal>
#include <filesystem>
#include <map>
#include <set>
#include <sys/resource.h>

static std::string folder; // of this run's files

static std::string path_of(const std::string& name) { return folder + "/" + name; }

static void write_bytes(const std::string& path, const std::string& bytes) {
    FILE* file = fopen(path.c_str(), "wb");
    if (!file || fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size() || fclose(file) != 0)
        fail("%s: cannot be written", path.c_str());
}

static std::string read_bytes(const std::string& path) {
    const MappedFile file(path);
    return std::string((const char*)file.data, file.size);
}

static void write_shard(const std::string& path, const std::vector<uint16_t>& tokens, Tokenizer tokenizer,
                        size_t row) {
    ShardWriter writer(path, tokenizer, row);
    writer.write(tokens.data(), tokens.size());
    writer.commit();
}

// n tokens first, first+1, ..: every token tells where it stands.
static std::vector<uint16_t> counting(size_t first, size_t n) {
    std::vector<uint16_t> tokens(n);
    for (size_t i = 0; i < n; i++) tokens[i] = uint16_t(first + i);
    return tokens;
}

// ----------------------------------------------------------------------------------------------------------
// Shards.

// A shard put together by hand from the format, as llm.c's writers make it, is read; ours is the same bytes.
static void test_shard_bytes() {
    std::string bytes("\x88\xd8\x34\x01\x01\x00\x00\x00\x04\x00\x00\x00", 12);
    bytes.resize(1024, '\0');
    bytes += std::string("\x50\xc4\x00\x00\xff\xff\x01\x01", 8); // 50256, 0, 65535, 257
    write_bytes(path_of("llmc.bin"), bytes);
    const Shard shard(path_of("llmc.bin"));
    check(shard.header.tokens == 4 && shard.header.tokenizer == TOKENIZER_GPT2 && shard.header.row == 0);
    const uint16_t expected[] = {50256, 0, 65535, 257};
    check(memcmp(shard.tokens, expected, sizeof expected) == 0);
    write_shard(path_of("ours.bin"), {50256, 0, 65535, 257}, TOKENIZER_GPT2, 0);
    check(read_bytes(path_of("ours.bin")) == bytes);

    write_shard(path_of("rows.bin"), counting(0, 12), TOKENIZER_CHESS, 4);
    const Shard rows(path_of("rows.bin"));
    check(rows.header.tokens == 12 && rows.header.tokenizer == TOKENIZER_CHESS && rows.header.row == 4);
}

static void test_shard_writer() {
    const std::string path = path_of("written.bin");
    {
        ShardWriter writer(path, TOKENIZER_BYTES, 0);
        writer.write(counting(0, 100).data(), 100);
    }
    check(std::filesystem::is_empty(folder), "a shard without commit() leaves nothing");
    check_error(write_shard(path, {}, TOKENIZER_BYTES, 0), "written.bin", "no tokens");
    check_error(write_shard(path, counting(0, 7), TOKENIZER_CHESS, 4), "written.bin", "7 tokens",
                "rows of 4");
    check_error(ShardWriter(path_of("none/x.bin"), TOKENIZER_BYTES, 0), "none/x.bin", "No such file");
    check_error(ShardWriter(path, TOKENIZER_BYTES, size_t(1) << 31), "row length 2147483648");
    check(std::filesystem::is_empty(folder), "a refused shard leaves nothing");

    // A full disk, as a limit on the size of files: the old shard stays as it was.
    write_shard(path, counting(0, 5), TOKENIZER_BYTES, 0);
    signal(SIGXFSZ, SIG_IGN);
    rlimit usual;
    getrlimit(RLIMIT_FSIZE, &usual);
    const rlimit small = {1500, usual.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    check_error(write_shard(path, counting(0, 5000), TOKENIZER_BYTES, 0), "written.bin", "cannot be written");
    setrlimit(RLIMIT_FSIZE, &usual);
    check(Shard(path).header.tokens == 5);
    unlink(path.c_str());
    check(std::filesystem::is_empty(folder));
}

static void test_bad_shards() {
    const std::string path = path_of("bad.bin");
    write_shard(path_of("good.bin"), counting(0, 12), TOKENIZER_CHESS, 4);
    const std::string good = read_bytes(path_of("good.bin"));
    // The good shard with one header word changed.
    const auto with = [&](size_t word, int32_t value) {
        std::string bytes = good;
        memcpy(&bytes[4 * word], &value, 4);
        return write_bytes(path, bytes), path;
    };
    check_error(Shard(path_of("missing.bin")), "missing.bin", "No such file");
    check_error(Shard{folder}, folder, "not a regular file");
    for (size_t bytes : {0, 1, 1023}) {
        write_bytes(path, good.substr(0, bytes));
        check_error(Shard{path}, "bad.bin", bytes ? "cut short" : "empty", "expected", "1024");
    }
    for (size_t bytes : {1024, 1025, 1046, 1047}) {
        write_bytes(path, good.substr(0, bytes));
        check_error(Shard{path}, "bad.bin", "cut short", std::to_string(bytes), "expected 1048", "12 tokens");
    }
    write_bytes(path, good + "x");
    check_error(Shard{path}, "bad.bin", "too long: 1049 bytes, expected 1048");
    check_error(Shard(with(0, 20240521)), "bad.bin", "not a token shard", "20240521", "expected 20240520");
    check_error(Shard(with(1, 2)), "bad.bin", "version 2, expected 1");
    check_error(Shard(with(2, 13)), "bad.bin", "cut short", "expected 1050", "13 tokens");
    check_error(Shard(with(2, 11)), "bad.bin", "too long", "expected 1046", "11 tokens");
    check_error(Shard(with(2, -1)), "bad.bin", "cut short", "4294967295 tokens");
    check_error(Shard(with(3, 3)), "bad.bin", "unknown tokenizer 3");
    check_error(Shard(with(3, -1)), "bad.bin", "unknown tokenizer -1");
    check_error(Shard(with(4, -4)), "bad.bin", "row length -4");
    check_error(Shard(with(4, 5)), "bad.bin", "12 tokens", "rows of 5");
    check_error(Shard(with(4, INT32_MAX)), "bad.bin", "rows of 2147483647");
    write_bytes(path, good.substr(0, 8) + std::string(1016, '\0'));
    check_error(Shard{path}, "bad.bin", "no tokens");

    // Globs, and the shards of one glob against each other.
    unlink(path.c_str());
    check_error(open_shards(path_of("nothing_*.bin")), "nothing_*.bin", "matches no file", "there are",
                "/*.bin'");
    check_error(open_shards(folder), "a folder", "there are", "/*.bin'");
    check_error(open_shards(folder + "/absent/train_*.bin"), "matches no file", "there is no folder",
                "/absent");
    check_error(open_shards(""), "matches no file");
    write_shard(path_of("good2.bin"), counting(0, 12), TOKENIZER_CHESS, 6);
    check_error(open_shards(path_of("good*.bin")), "good2.bin", "row length 6", "expected chess-32 and 4",
                "good.bin");
    write_shard(path_of("good2.bin"), counting(0, 12), TOKENIZER_BYTES, 4);
    check_error(open_shards(path_of("good*.bin")), "good2.bin", "bytes", "expected chess-32");
    write_bytes(path_of("good2.bin"), "");
    check_error(open_shards(path_of("good*.bin")), "good2.bin", "empty");
    for (const char* name : {"s_10.bin", "s_02.bin", "s_01.bin"})
        write_shard(path_of(name), counting(0, 12), TOKENIZER_CHESS, 4);
    const std::vector<Shard> shards = open_shards(path_of("s_*.bin"));
    check(shards.size() == 3 && shards[0].file.path == path_of("s_01.bin") &&
          shards[2].file.path == path_of("s_10.bin"));
    check(open_shards(path_of("{s_0[12],s_10,s_0*}.bin")).size() == 3, "braces, each file once");
    check(expand_braces("a{b,c{d,e}}f{,g}") ==
          std::vector<std::string>({"abf", "abfg", "acdf", "acdfg", "acef", "acefg"}));
    for (const char* plain : {"", "{x}", "{a", "a}", "\\{a,b\\}"})
        check(expand_braces(plain) == std::vector<std::string>{plain});

    // A name that exists is meant as it stands, and so is a folder in front of a pattern.
    for (const char* name : {"d [v2]", "d{1,2}", "d*"}) {
        make_directories(path_of(name));
        for (const char* file : {"/t [a].bin", "/t_1.bin"})
            write_shard(path_of(name) + file, counting(0, 12), TOKENIZER_CHESS, 4);
        check(open_shards(path_of(name) + "/t [a].bin").size() == 1, "%s", name);
        check(open_shards(path_of(name) + "/t_?.bin").size() == 1, "%s", name);
        check(open_shards(path_of(name) + "/t*.bin").size() == 2, "%s", name);
        check_error(open_shards(path_of(name)), name, "a folder");
        std::filesystem::remove_all(path_of(name));
    }
}

// ----------------------------------------------------------------------------------------------------------
// Loader.

static void test_permutation() {
    for (uint64_t n :
         {1,  2,  3,   4,   5,   7,   8,   9,   13,   15,   16,   17,   31,   32,    33,    63,    64,
          65, 97, 127, 128, 129, 255, 256, 257, 1000, 1009, 4095, 4096, 4097, 65535, 65536, 65537, 99991})
        for (uint64_t key : {0, 1}) {
            std::vector<bool> seen(n);
            bool once = true;
            for (uint64_t i = 0; i < n; i++) {
                const uint64_t j = permuted(i, n, key);
                once = once && j < n && !seen[j];
                if (once) seen[j] = true;
            }
            check(once, "permutation of %zu with key %zu", size_t(n), size_t(key));
        }
    for (uint64_t n : {uint64_t(1) << 32, (uint64_t(1) << 40) + 1, uint64_t(1) << 62, UINT64_MAX}) {
        std::set<uint64_t> seen;
        for (uint64_t i = 0; i < 1000; i++) seen.insert(permuted(i, n, 5));
        check(seen.size() == 1000 && *seen.rbegin() < n);
    }
    // Over many keys every i goes to every place equally often: 5% is 7 standard deviations here.
    for (uint64_t n : {2, 5, 6}) {
        const uint64_t keys = 20000 * n;
        std::vector<int> count(n * n);
        for (uint64_t key = 0; key < keys; key++)
            for (uint64_t i = 0; i < n; i++) count[i * n + permuted(i, n, key)]++;
        for (uint64_t i = 0; i < n * n; i++) check_near(count[i], 20000, 1000);
    }
    // The order belongs to the runs that are to be resumed: it must stay what it is.
    const uint64_t expected[] = {2, 4, 1, 7, 6, 5, 8, 3, 0, 9};
    for (uint64_t i = 0; i < 10; i++) check(permuted(i, 10, 2024) == expected[i]);
}

struct Batch {
    std::vector<int32_t> inputs, targets;
    bool operator==(const Batch&) const = default;
};

static Batch take(Loader& loader, size_t B) {
    Batch batch = {std::vector<int32_t>(B * loader.T, -1), std::vector<int32_t>(B * loader.T, -1)};
    loader.next(B, batch.inputs.data(), batch.targets.data());
    return batch;
}

static void append(Batch& all, const Batch& more) {
    all.inputs.insert(all.inputs.end(), more.inputs.begin(), more.inputs.end());
    all.targets.insert(all.targets.end(), more.targets.begin(), more.targets.end());
}

// The loader of `pattern` against a list of all samples (of T+1 tokens each) in the order of the files.
static void check_loader(const std::string& pattern, size_t T,
                         const std::vector<std::vector<uint16_t>>& list) {
    const size_t n = list.size();
    const auto expect = [&](Batch& all, size_t sample) {
        append(all, {{list[sample].begin(), list[sample].end() - 1},
                     {list[sample].begin() + 1, list[sample].end()}});
    };
    Loader plain(pattern, T, 0, false, 7);
    check(plain.samples == n && plain.tokens_per_epoch == n * T, "%zu samples, expected %zu", plain.samples,
          n);
    Batch expected;
    for (size_t i = 0; i < 2 * n; i++) expect(expected, i % n);
    check(take(plain, 2 * n) == expected, "order of the files, two epochs");

    // Three epochs, shuffled, one sample at a time: each epoch has each sample once, in an order of its own.
    Loader single(pattern, T, 0, true, 7);
    Batch epochs[3], whole;
    for (Batch& epoch : epochs) {
        std::vector<size_t> count(n);
        for (size_t i = 0; i < n; i++) {
            const Batch one = take(single, 1);
            append(epoch, one);
            for (size_t sample = 0; sample < n; sample++) {
                Batch candidate;
                expect(candidate, sample);
                count[sample] += candidate == one;
            }
        }
        check(count == std::vector<size_t>(n, 1), "every sample once in an epoch");
        append(whole, epoch);
    }
    check(single.position == 3 * n);
    if (n > 8) check(!(epochs[0] == epochs[1]) && !(epochs[1] == epochs[2]) && !(epochs[0] == epochs[2]));
    Loader other(pattern, T, 0, true, 8);
    if (n > 8) check(!(take(other, n) == epochs[0]), "another seed, another order");

    // The same sequence whatever the batch size (batches that straddle epochs among them), ranks, or stops.
    for (size_t B : {2, 3, 5, 7}) {
        Loader loader(pattern, T, 0, true, 7);
        Batch all;
        while (loader.position + B <= 3 * n) append(all, take(loader, B));
        append(all, take(loader, 3 * n - loader.position));
        check(all == whole, "batches of %zu", B);
    }
    for (size_t world : {2, 3, 4}) {
        const size_t B = 2;
        const Loader rank(pattern, T, 0, true, 7);
        Loader alone(pattern, T, 0, true, 7);
        for (size_t step = 0; step * world * B < 2 * n; step++) {
            Batch together;
            for (size_t r = 0; r < world; r++) {
                Batch part{std::vector<int32_t>(B * T), std::vector<int32_t>(B * T)};
                rank.read(step * world * B + r * B, B, part.inputs.data(), part.targets.data());
                rank.will_need(step * world * B + r * B, B);
                append(together, part);
            }
            check(together == take(alone, B * world), "step %zu of %zu ranks", step, world);
        }
    }
    for (size_t stop : {size_t(1), n - 1, n, n + 1, 2 * n}) {
        Loader resumed(pattern, T, 0, true, 7);
        resumed.position = stop;
        const Batch rest = take(resumed, 3 * n - stop);
        check(std::equal(rest.inputs.begin(), rest.inputs.end(), whole.inputs.begin() + stop * T) &&
                  std::equal(rest.targets.begin(), rest.targets.end(), whole.targets.begin() + stop * T),
              "resumed at %zu", stop);
        std::vector<int32_t> inputs(2 * T), targets(2 * T); // anywhere, without moving
        resumed.read(stop, 2, inputs.data(), targets.data());
        check(resumed.position == 3 * n && std::equal(inputs.begin(), inputs.end(), rest.inputs.begin()) &&
                  std::equal(targets.begin(), targets.end(), rest.targets.begin()),
              "read at %zu", stop);
    }
}

static void test_loader_streams() {
    // Shards of uneven length, one of them too short for any window.
    const size_t lengths[] = {41, 8, 8 + 1, 3, 100, 16};
    for (size_t T : {8, 1, 40}) {
        std::vector<std::vector<uint16_t>> list;
        size_t first = 0;
        for (size_t s = 0; s < 6; s++) {
            const std::vector<uint16_t> tokens = counting(first, lengths[s]);
            write_shard(path_of(strf("stream_%zu.bin", s)), tokens, TOKENIZER_GPT2, 0);
            for (size_t w = 0; w + T < lengths[s]; w += T)
                list.emplace_back(tokens.begin() + w, tokens.begin() + w + T + 1);
            first += lengths[s];
        }
        check_loader(path_of("stream_*.bin"), T, list);
    }
    Loader loader(path_of("stream_*.bin"), 8, 0, true, 1);
    check(loader.n_shards == 6 && loader.row == 0 && loader.tokenizer == TOKENIZER_GPT2);
    check(loader.samples == 5 + 0 + 1 + 0 + 12 + 1);
}

static void test_loader_rows() {
    const size_t R = 9, rows[] = {3, 1, 7};
    for (size_t T : {8, 5, 1}) {
        std::vector<std::vector<uint16_t>> list;
        size_t first = 0;
        for (size_t s = 0; s < 3; s++) {
            const std::vector<uint16_t> tokens = counting(first, rows[s] * R);
            write_shard(path_of(strf("row_%zu.bin", s)), tokens, TOKENIZER_CHESS, R);
            for (size_t r = 0; r < rows[s]; r++)
                list.emplace_back(tokens.begin() + r * R, tokens.begin() + r * R + T + 1);
            first += rows[s] * R;
        }
        check_loader(path_of("row_*.bin"), T, list);
    }
    Loader loader(path_of("row_*.bin"), 8, 0, true, 1);
    check(loader.row == R && loader.tokenizer == TOKENIZER_CHESS && loader.samples == 11);
    // One sample only: every epoch is that sample.
    write_shard(path_of("one.bin"), counting(0, R), TOKENIZER_CHESS, R);
    Loader one(path_of("one.bin"), 8, 0, true, 1);
    check(take(one, 3).inputs ==
          std::vector<int32_t>({0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7}));
}

static void test_loader_refusals() {
    const std::string rows = path_of("r.bin"), stream = path_of("s.bin");
    write_shard(rows, counting(0, 18), TOKENIZER_CHESS, 9);
    write_shard(stream, counting(0, 18), TOKENIZER_BYTES, 0);
    check_error(Loader(rows, 9, 0, true, 1), "r.bin", "T = 9", "at most 8", "9 tokens");
    check_error(Loader(rows, 0, 0, true, 1), "r.bin", "T = 0");
    check_error(Loader(stream, 18, 0, true, 1), "s.bin", "T = 18", "expected 19 tokens", "longest has 18");
    check_error(Loader(stream, SIZE_MAX, 0, true, 1), "s.bin");
    check_error(Loader(path_of("no*.bin"), 4, 0, true, 1), "no*.bin", "matches no file");

    // A token outside the vocabulary, as input and as the very last target; the position stays.
    Loader in_vocabulary(stream, 17, 18, true, 1);
    check(take(in_vocabulary, 1).targets[16] == 17);
    for (size_t at : {3, 17}) {
        std::vector<uint16_t> tokens = counting(0, 18);
        tokens[at] = 300;
        write_shard(stream, tokens, TOKENIZER_BYTES, 0);
        Loader loader(stream, 17, 257, false, 1);
        check_error(take(loader, 1), "s.bin", "token " + std::to_string(at) + " is 300", "less than 257");
        check(loader.position == 0);
    }
    Loader unchecked(stream, 17, 0, false, 1);
    check(take(unchecked, 1).targets[16] == 300);
}

// A count beyond 2^31 in a file beyond 4 GiB, which is nearly all hole and takes no room on the disk.
static void test_huge_shard() {
    const std::string path = path_of("huge.bin");
    const size_t count = (size_t(1) << 31) + 5001, T = 100;
    write_shard(path, {0}, TOKENIZER_BYTES, 0);
    const int fd = open(path.c_str(), O_RDWR);
    const uint32_t word = uint32_t(count);
    const std::vector<uint16_t> last = counting(1, T + 1);
    const size_t samples = (count - 1) / T, begin = (samples - 1) * T;
    const bool made = ftruncate(fd, off_t(1024 + 2 * count)) == 0 && pwrite(fd, &word, 4, 8) == 4 &&
                      pwrite(fd, last.data(), 2 * (T + 1), off_t(1024 + 2 * begin)) == ssize_t(2 * (T + 1));
    close(fd);
    if (made) {
        Loader loader(path, T, 257, false, 1);
        check(loader.samples == samples);
        loader.position = samples - 1;
        const Batch batch = take(loader, 1);
        check(batch.inputs[0] == 1 && batch.inputs[T - 1] == int(T) && batch.targets[T - 1] == int(T) + 1);
        Loader shuffled(path, T, 257, true, 1);
        for (int i = 0; i < 100; i++) take(shuffled, 2);
    } else {
        printf("skipped: no sparse file of %zu bytes in the temporary folder\n", 1024 + 2 * count);
    }
    unlink(path.c_str());
}

// ----------------------------------------------------------------------------------------------------------
// Tokenizers.

static void test_simple_tokenizers() {
    for (Tokenizer kind : {TOKENIZER_GPT2, TOKENIZER_BYTES, TOKENIZER_CHESS})
        check(tokenizer_from_name(tokenizer_name(kind)) == kind);
    check_error(tokenizer_from_name("chess"), "'chess'", "expected gpt2, bytes or chess-32");

    int in_alphabet = 0;
    for (int c = 0; c < 256; c++)
        if (const int id = chess_id(char(c)); id >= 0)
            check(chess_char(id) == char(c) && id == in_alphabet++);
    check(in_alphabet == 32 && chess_id(' ') == 0 && chess_id(';') == 15 && chess_id('x') == 31);

    const TextTokenizer chess = TextTokenizer::load(TOKENIZER_CHESS);
    const std::string game = ";1.e4 e5 2.Nf3 Nc6 3.O-O-O+ bxa8=Q#";
    std::string back;
    for (int32_t id : chess.encode(game)) back += chess.decode(id);
    check(back == game && chess.vocab_size() == 32 && chess.start() == 15);
    check_error(chess.encode("1.e4 z"), "'z'", "offset 5");
    check_error(chess.encode("\n"), "0x0A", "offset 0");
    check_error(chess.encode("1.\xC3\xA9"), "0xC3", "offset 2");
    check_error(chess.decode(32), "token 32", "chess-32", "0 to 31");

    const TextTokenizer bytes = TextTokenizer::load(TOKENIZER_BYTES);
    std::string all;
    for (int c = 0; c < 256; c++) all += char(c);
    const std::vector<int32_t> ids = bytes.encode(all);
    check(ids.size() == 256 && ids[0] == 0 && ids[255] == 255 && bytes.vocab_size() == 257);
    for (int c = 0; c < 256; c++) check(bytes.decode(c) == std::string(1, char(c)));
    check(bytes.decode(256) == "" && bytes.start() == 256);
    check_error(bytes.decode(257), "token 257", "0 to 256");
    check_error(bytes.decode(-1), "token -1");
}

// A GPT-2 tokenizer file with a vocabulary small enough to merge by hand.
struct Gpt2File {
    std::vector<int32_t> header = {20250307, 1, 0, 0, 0, 0, 0};
    std::vector<int32_t> ranges[3] = {{'A', 'Z', 'a', 'z', 0xE9, 0xE9}, {'0', '9'}, {9, 13, ' ', ' '}};
    std::vector<std::string> tokens;

    explicit Gpt2File(const std::vector<std::string>& merges) {
        for (int c = 0; c < 256; c++) tokens.push_back(std::string(1, char(c)));
        tokens.insert(tokens.end(), merges.begin(), merges.end());
        tokens.push_back("");
        header[2] = int32_t(tokens.size());
        header[3] = header[2] - 1;
        for (int c = 0; c < 3; c++) header[4 + c] = int32_t(ranges[c].size() / 2);
    }
    std::string bytes() const {
        std::string out((const char*)header.data(), 4 * header.size());
        out.resize(1024, '\0');
        for (const auto& r : ranges) out.append((const char*)r.data(), 4 * r.size());
        for (const std::string& token : tokens) {
            const uint16_t length = uint16_t(token.size());
            out.append((const char*)&length, 2) += token;
        }
        return out;
    }
};

static void test_gpt2() {
    const std::string path = path_of("gpt2.tokenizer");
    const Gpt2File file({"he", "ll", "hell", " w", "or", " wor", "hello", "aa", "bc", "ab", "t'", "'s", "  ",
                         " x", "a1", "\xC3\xA9", "\xC3\xA9!", "x\xC3\xA9", "\n\n"});
    std::map<std::string, int32_t> id;
    for (size_t i = 0; i < file.tokens.size(); i++) id[file.tokens[i]] = int32_t(i);
    write_bytes(path, file.bytes());
    const TextTokenizer gpt2 = TextTokenizer::load(TOKENIZER_GPT2, path);
    check(gpt2.vocab_size() == 276 && gpt2.start() == 275 && gpt2.decode(275) == "" &&
          gpt2.decode(258) == "hell");
    check_error(gpt2.decode(276), "token 276", "gpt2", "0 to 275");

    // text -> the texts of its tokens, by hand
    const std::vector<std::pair<std::string, std::vector<std::string>>> cases = {
        {"", {}},
        {"hello", {"hello"}},
        {"hellhe", {"hell", "he"}},                   // he, he, ll, then he+ll
        {" world", {" wor", "l", "d"}},               // " w", "or", then both
        {"hello world", {"hello", " wor", "l", "d"}}, // the blank belongs to the word
        {"aaa", {"aa", "a"}},                         // leftmost first
        {"aaaaa", {"aa", "aa", "a"}},
        {"abc", {"a", "bc"}},       // "bc" was merged before "ab" in training
        {"it's", {"i", "t", "'s"}}, // a contraction is a piece: no "t'"
        {"t'x", {"t", "'", "x"}},   // no contraction, and "'" ends the letters
        {" 's", {" ", "'", "s"}},   // after a blank it is punctuation
        {"  x", {" ", " x"}},       // all blanks but the last, then blank and word
        {"x  ", {"x", "  "}},       // at the end all of them
        {"x   x", {"x", "  ", " x"}},
        {"\n\nx", {"\n", "\n", "x"}}, // a newline belongs to no word
        {"\n\n", {"\n\n"}},
        {"a1", {"a", "1"}},                   // letters and numbers are apart
        {"x\xC3\xA9!", {"x\xC3\xA9", "!"}},   // a letter beyond ASCII, and what ends it
        {"\xC3", {"\xC3"}},                   // cut UTF-8
        {"\xE9x\xFF", {"\xE9", "x", "\xFF"}}, // no UTF-8 at all
        {std::string("a\0b", 3), {"a", std::string("\0", 1), "b"}},
    };
    for (const auto& [text, texts] : cases) {
        std::vector<int32_t> expected;
        for (const std::string& t : texts) expected.push_back(id.at(t));
        check(gpt2.encode(text) == expected, "%s", quoted(text).c_str());
    }
    const std::vector<int32_t> many = gpt2.encode(std::string(1 << 20, 'a')); // one piece: not quadratic
    check(many == std::vector<int32_t>(1 << 19, id["aa"]));
    const TextTokenizer copy = gpt2;
    check(copy.encode("hellhe") == gpt2.encode("hellhe"));
}

static void test_bad_gpt2_files() {
    const std::string path = path_of("bad.tokenizer");
    const Gpt2File good({"he", "ll"});
    const auto refuses = [&](const std::string& bytes, const char* what) {
        write_bytes(path, bytes);
        check_error(TextTokenizer::load(TOKENIZER_GPT2, path), "bad.tokenizer", what);
    };
    check_error(TextTokenizer::load(TOKENIZER_GPT2), "data/fineweb.py --tokenizer-file");
    check_error(TextTokenizer::load(TOKENIZER_GPT2, path_of("none")), "none", "No such file");
    const std::string bytes = good.bytes();
    for (size_t n = 0; n < bytes.size(); n++) refuses(bytes.substr(0, n), "cut short");
    refuses(bytes + "x", "expected");
    const auto changed = [&](size_t word, int32_t value) {
        Gpt2File file = good;
        file.header[word] = value;
        return file.bytes();
    };
    refuses(changed(0, 20240520), "20240520");
    refuses(changed(1, 2), "20250307, 2");
    refuses(changed(2, 256), "256 tokens");
    refuses(changed(2, 65537), "65537 tokens");
    refuses(changed(2, -1), "-1 tokens");
    refuses(changed(3, 259), "end of text is token 259");
    refuses(changed(3, 3), "token 3 has 1 bytes");
    refuses(changed(4, -1), "-1 ranges");
    refuses(changed(4, INT32_MAX), "");
    Gpt2File file = good;
    file.ranges[0] = {'a', 'z', 'b', 'c', 0xE9, 0xE9};
    refuses(file.bytes(), "98 to 99");
    file.ranges[0] = {'z', 'a', 0x100, 0x100, 0x200, 0x200};
    refuses(file.bytes(), "122 to 97");
    file.ranges[0] = {'a', 'z', 0x100, 0x100, 0x200, 0x110000};
    refuses(file.bytes(), "1114112");
    file = good;
    file.tokens[256] = "b";
    refuses(file.bytes(), "token 256 has the same text as token 98");
    file = good;
    file.tokens['x'] = "xx";
    refuses(file.bytes(), "byte 120");
}

// ----------------------------------------------------------------------------------------------------------
// make_text, run as a program.

// What the program prints, on both streams, and its exit status.
static std::pair<std::string, int> run(const std::string& command) {
    FILE* pipe = popen(("(" + command + ") 2>&1").c_str(), "r");
    std::string output;
    char buffer[4096];
    for (size_t n; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) output.append(buffer, n);
    const int status = pclose(pipe);
    return {output, WIFEXITED(status) ? WEXITSTATUS(status) : -1};
}

// All tokens of the shards of a glob, and the number of shards.
static std::vector<uint16_t> tokens_of(const std::string& pattern, size_t* n_shards = nullptr) {
    std::vector<uint16_t> tokens;
    const std::vector<Shard> shards = open_shards(pattern);
    for (const Shard& s : shards) {
        check(s.header.tokenizer == TOKENIZER_BYTES && s.header.row == 0);
        tokens.insert(tokens.end(), s.tokens, s.tokens + s.header.tokens);
    }
    if (n_shards) *n_shards = shards.size();
    return tokens;
}

// Documents as they ought to stand in the shards.
static std::vector<uint16_t> documents(const std::vector<std::string>& list) {
    std::vector<uint16_t> tokens;
    for (const std::string& text : list) {
        tokens.push_back(256);
        for (unsigned char c : text) tokens.push_back(c);
    }
    return tokens;
}

static void test_make_text(const std::string& program) {
    const std::string out = path_of("text");
    const auto make = [&](const std::string& arguments) {
        std::filesystem::remove_all(out);
        const auto [output, status] = run(program + " --out " + out + " " + arguments);
        check(status == 0, "%s: %s", arguments.c_str(), output.c_str());
        return output;
    };
    const auto refuses = [&](const std::string& arguments, int expected, const std::string& what) {
        const auto [output, status] = run(program + " " + arguments);
        check(status == expected && output.starts_with("moex: ") && output.find(what) != std::string::npos &&
                  output.find('\n') == output.size() - 1,
              "%s: status %d, %s", arguments.c_str(), status, output.c_str());
    };
    const std::string a = path_of("a.txt"), b = path_of("b.txt"), empty = path_of("empty.txt");
    write_bytes(a, "0123456789");
    write_bytes(b, "abcde\xC3\xA9xyz");
    write_bytes(empty, "");

    make(a);
    check(tokens_of(out + "/train_*.bin") == documents({"012345678"}));
    check(tokens_of(out + "/val_*.bin") == documents({"9"}));
    make("--val-fraction 0.5 " + a + " " + empty + " " + b); // the cut is at offset 10: between the files
    check(tokens_of(out + "/train_*.bin") == documents({"0123456789"}));
    check(tokens_of(out + "/val_*.bin") == documents({"abcde\xC3\xA9xyz"}));
    make("--val-fraction 0.2 " + a + " " + b); // offset 16 is inside the e-acute: the cut is after it
    check(tokens_of(out + "/train_*.bin") == documents({"0123456789", "abcde\xC3\xA9"}));
    check(tokens_of(out + "/val_*.bin") == documents({"xyz"}));
    make("--val-fraction 0 - < " + a);
    check(tokens_of(out + "/train_*.bin") == documents({"0123456789"}) &&
          !std::filesystem::exists(out + "/val_000000.bin"));
    make("--val-fraction 1 " + a);
    check(tokens_of(out + "/val_*.bin") == documents({"0123456789"}) &&
          !std::filesystem::exists(out + "/train_000000.bin"));
    std::filesystem::remove_all(out);
    check(run("cat " + a + " | " + program + " --out " + out + " -").second == 0);
    check(tokens_of(out + "/train_*.bin") == documents({"012345678"}), "a pipe is split as a file is");
    check(tokens_of(out + "/val_*.bin") == documents({"9"}));
    check(std::distance(std::filesystem::directory_iterator(out), {}) == 2, "only the shards are left");

    size_t n_shards;
    make("--val-fraction 0 --shard-tokens 4 " + a);
    check(tokens_of(out + "/train_*.bin", &n_shards) == documents({"0123456789"}) && n_shards == 3);

    // Separators: at the very start and end, doubled, with CRLF, as part of a longer line; the last line
    // without its newline; and in a text of several buffers whose separators fall anywhere.
    write_bytes(a, "<|e|>\none\ntwo\n<|e|>\r\n<|e|>\nx<|e|>\n<|e|>y\n<|e|>");
    const std::string output = make("--val-fraction 0 --separator '<|e|>' " + a);
    check(tokens_of(out + "/train_*.bin") == documents({"one\ntwo\n", "x<|e|>\n<|e|>y\n"}));
    check(output.starts_with("2 documents"), "%s", output.c_str());
    write_bytes(a, "one\n\n\ntwo\n\nthree");
    make("--val-fraction 0 --separator '' " + a);
    check(tokens_of(out + "/train_*.bin") == documents({"one\n", "two\n", "three"}));
    std::vector<std::string> list;
    std::string text;
    Random random = {3};
    while (text.size() < 3'300'000) {
        std::string document;
        for (uint64_t lines = random.below(300); lines-- > 0;)
            document += std::string(random.below(100) + 1, char('a' + random.below(26))) + "\n";
        text += document + "<|endoftext|>\n";
        if (!document.empty()) list.push_back(document);
    }
    write_bytes(a, text);
    make("--val-fraction 0 --separator '<|endoftext|>' " + a);
    check(tokens_of(out + "/train_*.bin") == documents(list));
    check(run("cat " + a + " | " + program + " --overwrite --val-fraction 0 --separator '<|endoftext|>' -o " +
              out + " -")
              .second == 0);
    check(tokens_of(out + "/train_*.bin") == documents(list), "the same through a pipe");

    // Refusals. What is there stays.
    const std::string before = read_bytes(out + "/train_000000.bin");
    refuses("-o " + out + " " + b, 1, "train_000000.bin: there already");
    refuses("-o " + out + " --overwrite " + path_of("none.txt"), 1,
            "none.txt: cannot be opened: No such file");
    refuses("-o " + out + " --overwrite " + folder, 1, "a folder, expected a text file");
    refuses("-o " + out + " --overwrite " + empty, 1, "there is no text");
    check(read_bytes(out + "/train_000000.bin") == before);
    write_bytes(out + "/train_mine.bin", "x"); // not a maker's
    check(run(program + " --overwrite -o " + out + " " + b).second == 0);
    check(read_bytes(out + "/train_mine.bin") == "x" && tokens_of(out + "/train_0*.bin").size() < 20);

    // Any number of files, pipes among them; few descriptors are needed.
    std::string many = " " + b;
    for (int i = 0; i < 1100; i++) {
        write_bytes(path_of(strf("empty_%d", i)), "");
        many += " " + path_of(strf("empty_%d", i));
    }
    std::filesystem::remove_all(out);
    const auto [several, several_status] = run("cat " + b + " | (ulimit -n 20; exec " + program +
                                               " --val-fraction 0.5 -o " + out + many + " - " + b + ")");
    check(several_status == 0 && several.find("3 documents, ") != std::string::npos, "%s", several.c_str());
    // (on a busy machine its progress stands before that)
    check(tokens_of(out + "/{train,val}_*.bin").size() == 3 * 10 + 4); // the one over the cut begins twice
    const auto [packed, packed_status] =
        run("printf '\\037\\213\\010' > " + path_of("x.gz") + "; " + program +
            " --overwrite --val-fraction 0 -o " + out + " " + path_of("x.gz"));
    check(packed_status == 0 && packed.find("note: ") != std::string::npos &&
              packed.find("zcat ") != std::string::npos,
          "%s", packed.c_str());
    std::filesystem::remove_all(out);
    refuses("-o " + out + " " + empty, 1, "there is no text");
    check(std::filesystem::is_empty(out));
    refuses("-o " + a + "/x " + b, 1, "cannot create the folder");
    refuses(b, 2, "--out");
    refuses("-o " + out, 2, "no text given");
    refuses("-o " + out + " --val-fraction 1.5 " + b, 2, "out of range");
    refuses("-o " + out + " --shard-tokens 0 " + b, 2, "out of range");
    refuses("-o " + out + " --nonsense " + b, 2, "unknown option");
    // A full disk in the middle: nothing half-written stays.
    const auto [message, status] = run("trap '' XFSZ; ulimit -f 100; " + program + " -o " + out + " " + a);
    check(status == 1 && message.find("train_000000.bin.part: cannot be written") != std::string::npos, "%s",
          message.c_str());
    check(std::filesystem::is_empty(out));
    check(run(program + " --help").second == 0);
}

int main(int argc, char** argv) {
    return run_main([&] {
        std::string name = std::filesystem::temp_directory_path() / "moex_test_data.XXXXXX";
        if (!mkdtemp(name.data())) fail("%s: cannot be created: %s", name.c_str(), strerror(errno));
        // Each test has an empty folder.
        const auto in_folder = [&](auto test) {
            folder = name + "/files";
            make_directories(folder);
            test();
            std::filesystem::remove_all(folder);
        };
        try {
            for (auto test : {test_shard_bytes, test_shard_writer, test_bad_shards, test_permutation,
                              test_loader_streams, test_loader_rows, test_loader_refusals, test_huge_shard,
                              test_simple_tokenizers, test_gpt2, test_bad_gpt2_files})
                in_folder(test);
            if (argc > 1) in_folder([&] { test_make_text(std::filesystem::absolute(argv[1])); });
        } catch (const std::exception& e) {
            check(false, "a test ended with: %s", e.what());
        }
        std::filesystem::remove_all(name);
        return finish();
    });
}
