// libFuzzer target: hostile files for the shard reader with the loader behind it, and for the reader of GPT-2
// tokenizer files with encoding and decoding behind it. Whatever the bytes, the outcome is a result or an
// Error. The first byte of an input chooses the reader and how much of the file is put right beforehand:
// nothing, or as much as lets the fuzzer reach what lies behind the header without seeds.
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all
#include "../data/loader.h"
#include "../data/tokenizer.h"

static void read_shard(const std::string& path, size_t T, size_t V) {
    Loader loader(path, T, V, true, 1);
    std::vector<int32_t> inputs(3 * T), targets(3 * T);
    for (int step = 0; step < 3; step++) {
        loader.next(3, inputs.data(), targets.data());
        for (size_t b = 0; b < 3; b++)
            for (size_t t = 0; t + 1 < T; t++)
                if (inputs[b * T + t + 1] != targets[b * T + t]) abort();
    }
}

static void read_tokenizer(const std::string& path, const std::string& text) {
    const TextTokenizer tokenizer = TextTokenizer::load(TOKENIZER_GPT2, path);
    std::string back;
    for (int32_t id : tokenizer.encode(text)) back += tokenizer.decode(id);
    if (back != text) abort(); // any bytes come back as they were
}

// The next n bytes of the input, fewer at its end.
struct Input {
    const uint8_t *data, *end;
    std::string take(size_t n) {
        n = std::min(n, size_t(end - data));
        data += n;
        return std::string((const char*)data - n, n);
    }
    int byte() { return data < end ? *data++ : 0; }
};

static std::string with_header(std::vector<int32_t> words, const std::string& rest) {
    words.resize(256);
    return std::string((const char*)words.data(), 1024) + rest;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Input input = {data, data + size};
    const int mode = input.byte();
    const bool tokenizer = mode & 1, put_right = mode & 2;
    const size_t T = input.byte() + 1, V = input.byte() * 256;
    const std::string text = tokenizer ? input.take(input.byte()) : "";
    std::string file;
    if (!put_right) {
        file = input.take(size);
    } else if (!tokenizer) { // a header that fits the tokens
        const int kind = input.byte() % 4, row = input.byte();
        const std::string tokens = input.take(size);
        file = with_header({20240520, 1, int32_t(tokens.size() / 2), kind, row}, tokens);
    } else { // a token for every byte, ranges of small code points, merges of the input
        const int more = input.byte() % 32,
                  ranges[3] = {input.byte() % 8, input.byte() % 8, input.byte() % 8};
        std::string rest;
        for (int i = 0; i < ranges[0] + ranges[1] + ranges[2]; i++) {
            const int32_t first = input.byte() * 4, last = first + input.byte();
            rest.append((const char*)&first, 4).append((const char*)&last, 4);
        }
        for (int b = 0; b < 256; b++) rest += {1, 0, char(b)};
        for (int i = 0; i < more; i++) {
            const uint16_t length = input.byte() % 8;
            rest.append((const char*)&length, 2) += input.take(length);
        }
        rest += {0, 0};
        file = with_header({20250307, 1, 257 + more, 256 + more, ranges[0], ranges[1], ranges[2]}, rest);
    }

    static const int fd = memfd_create("fuzz", MFD_CLOEXEC); // the readers take file names
    static const std::string path = strf("/proc/self/fd/%d", fd);
    if (ftruncate(fd, 0) != 0 || pwrite(fd, file.data(), file.size(), 0) != ssize_t(file.size())) abort();
    try {
        if (tokenizer)
            read_tokenizer(path, text);
        else
            read_shard(path, T, V);
    } catch (const Error&) {
    }
    return 0;
}
