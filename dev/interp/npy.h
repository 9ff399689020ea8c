// NumPy's array files (.npy, NEP 1), read strictly and mapped into memory: float32, little-endian, C order,
// what numpy.save() writes of such an array. Anything else is refused with the file's name and what was
// expected.
#pragma once
#include "../lib/file.h"
#include <cstdlib>

struct NpyArray {
    MappedFile file;
    std::vector<size_t> shape;
    const float* data;
};

// "(2, 256, 512)", in the words of Python.
std::string npy_shape_text(const std::vector<size_t>& shape);

// The header is a Python dictionary of three entries:
//   {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }
struct NpyHeaderReader {
    const std::string& text;
    const std::string& path;
    size_t at = 0;

    [[noreturn]] void broken(const char* expected) const {
        fail("%s: npy header %s at byte %zu, expected %s", path.c_str(), quoted(text.substr(at, 24)).c_str(),
             at, expected);
    }
    void skip_space() {
        while (at < text.size() && (text[at] == ' ' || text[at] == '\n')) at++;
    }
    bool take(char c) {
        skip_space();
        if (at >= text.size() || text[at] != c) return false;
        return at++, true;
    }
    std::string string() {
        skip_space();
        const char quote = take('"') ? '"' : take('\'') ? '\'' : 0;
        const size_t end = quote ? text.find(quote, at) : std::string::npos;
        if (end == std::string::npos) broken("a string in quotes");
        const std::string out = text.substr(at, end - at);
        at = end + 1;
        return out;
    }
    bool boolean() {
        skip_space();
        for (const char* word : {"False", "True"})
            if (text.compare(at, strlen(word), word) == 0) return at += strlen(word), *word == 'T';
        broken("True or False");
    }
    std::vector<size_t> tuple() {
        std::vector<size_t> out;
        if (!take('(')) broken("a tuple");
        while (!take(')')) {
            const size_t begin = at;
            while (at < text.size() && text[at] >= '0' && text[at] <= '9') at++;
            if (at == begin || at - begin > 15) broken("a size");
            out.push_back(std::stoull(text.substr(begin, at - begin)));
            if (!take(',') && (at >= text.size() || text[at] != ')')) broken("',' or ')'");
        }
        return out;
    }
};

NpyArray read_npy(const std::string& path);
