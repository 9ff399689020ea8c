// libFuzzer target: hostile files for what dev/interp reads: .npy features, games in any form, positions to
// label. Whatever the bytes, the outcome is a result or an Error. The first byte of an input chooses the
// reader, and how much of the file is put right beforehand.
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all
#include "../dev/interp/labels_csv.h"
#include "../dev/interp/npy.h"

static void read_array(const std::string& path) {
    const NpyArray array = read_npy(path);
    size_t count = 1;
    for (const size_t n : array.shape) count *= n;
    volatile float sum = 0;
    for (size_t i = 0; i < count; i++) sum = sum + array.data[i];
}

// Games that are read are fit: what comes after them may count on it.
static void read_and_label(const std::string& path) {
    const GameSplit split = split_games(path, "", 8, 1, 20);
    for (const GameSet* set : {&split.train, &split.test}) {
        for (const std::string& text : set->texts)
            if (text.size() != 8 || dots_of(text, 1).size() != 1 || !legal_up_to_dots(text, 1)) abort();
        const Labels labels = label_games(*set, 1);
        if (labels.tokens != set->size()) abort();
    }
}

static void write_csv(const std::string& path) {
    static FILE* const nowhere = fopen("/dev/null", "w");
    write_labels(path, nowhere);
}

static std::string put_right(int reader, int how, const std::string& bytes) {
    if (reader == 0) { // an .npy header that fits the data
        const std::string shape =
            strf("(%d, %d, %zu)", how % 3 + 1, how % 5 + 1, bytes.size() / 4 / (how % 3 + 1) / (how % 5 + 1));
        std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + ", }";
        header.resize(118, ' ');
        return "\x93NUMPY\x01" + std::string("\0\x76\0", 3) + header + bytes;
    }
    if (reader == 2) return "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1\n" + bytes;
    return how % 2 ? ";1.e4 e5 2." + bytes : "[Event \"x\"]\n\n1.e4 e5 2." + bytes;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size < 2) return 0;
    const int reader = data[0] % 3, how = data[1];
    std::string bytes((const char*)data + 2, size - 2);
    if (data[0] >= 128) bytes = put_right(reader, how, bytes);
    static const int fd = memfd_create("fuzz", MFD_CLOEXEC); // the readers take file names
    static const std::string path = strf("/proc/self/fd/%d", fd);
    if (ftruncate(fd, 0) != 0 || pwrite(fd, bytes.data(), bytes.size(), 0) != ssize_t(bytes.size())) abort();
    try {
        if (reader == 0) read_array(path);
        if (reader == 1) read_and_label(path);
        if (reader == 2) write_csv(path);
    } catch (const Error&) {
    }
    return 0;
}
