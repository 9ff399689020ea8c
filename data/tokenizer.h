// Tokenizers: text to token ids and back, for the three kinds a shard can state.
//   bytes     id = byte, 256 = end of text
//   chess-32  the 32 characters of a game's text, in ASCII order
//   gpt2      byte-level BPE; vocabulary and Unicode classes come from the file that
//             `data/fineweb.py --tokenizer-file` writes (layout: read_gpt2 below)
// chess_id and chess_char are all that the chess programs need; TextTokenizer serves the samplers.
#pragma once
#include "shard.h"
#include <array>
#include <queue>
#include <unordered_map>

inline constexpr char chess_alphabet[] = " #+-.0123456789;=BKNOQRabcdefghx"; // ASCII order, 32 characters
inline constexpr int32_t chess_vocab = 32, bytes_vocab = 257, bytes_end_of_text = 256;
static_assert(sizeof chess_alphabet == chess_vocab + 1);

// The id of a character, or -1 for a character outside the alphabet.
inline int chess_id(char c) {
    static const std::array<int8_t, 256> table = [] {
        std::array<int8_t, 256> t;
        t.fill(-1);
        for (int i = 0; i < chess_vocab; i++) t[(unsigned char)chess_alphabet[i]] = int8_t(i);
        return t;
    }();
    return table[(unsigned char)c];
}

// id in 0..31.
inline char chess_char(int id) { return chess_alphabet[id]; }

// Text to ids and ids to text, for the tokenizer a checkpoint names.
struct TextTokenizer {
    Tokenizer kind;

    // gpt2_file: the file made by data/fineweb.py, needed by and only by TOKENIZER_GPT2.
    static TextTokenizer load(Tokenizer kind, const std::string& gpt2_file = "") {
        TextTokenizer t;
        t.kind = kind;
        if (kind == TOKENIZER_GPT2) t.read_gpt2(gpt2_file);
        return t;
    }

    size_t vocab_size() const {
        if (kind == TOKENIZER_GPT2) return vocabulary.size();
        return kind == TOKENIZER_CHESS ? chess_vocab : bytes_vocab;
    }
    // The token a sample starts from when there is no prompt: what stands before every text in training.
    int32_t start() const {
        if (kind == TOKENIZER_GPT2) return end_of_text;
        return kind == TOKENIZER_CHESS ? chess_id(';') : bytes_end_of_text;
    }

    // Any text for bytes and gpt2 (an end-of-text written out in it is text like any other); chess-32 refuses
    // a character outside its alphabet.
    std::vector<int32_t> encode(const std::string& text) const {
        std::vector<int32_t> out;
        if (kind == TOKENIZER_GPT2)
            for (size_t i = 0, end; i < text.size(); i = end) {
                end = piece_end(text, i);
                encode_piece(text.substr(i, end - i), out);
            }
        else
            for (size_t i = 0; i < text.size(); i++) {
                const int id = kind == TOKENIZER_CHESS ? chess_id(text[i]) : (unsigned char)text[i];
                if (id < 0)
                    fail("character %s at offset %zu is not in the chess-32 alphabet, expected only '%s'",
                         text[i] > 32 && text[i] < 127 ? quoted(text.substr(i, 1)).c_str()
                                                       : strf("0x%02X", (unsigned char)text[i]).c_str(),
                         i, chess_alphabet);
                out.push_back(id);
            }
        return out;
    }

    // The bytes of one token, which need not be whole UTF-8 characters; nothing for end of text.
    std::string decode(int32_t id) const {
        if (id < 0 || size_t(id) >= vocab_size())
            fail("token %d is outside the %s vocabulary, expected 0 to %zu", id, tokenizer_name(kind),
                 vocab_size() - 1);
        if (kind == TOKENIZER_GPT2) return vocabulary[id];
        if (kind == TOKENIZER_CHESS) return std::string(1, chess_char(id));
        return id == bytes_end_of_text ? "" : std::string(1, char(id));
    }

  private:
    // GPT-2's byte-level BPE. A text is cut into pieces: words with the blank before them, numbers,
    // punctuation, whitespace. Each piece starts as single bytes and is joined pair by pair, always the two
    // neighbours whose joint text has the lowest id (ids are in the order in which training found them).
    enum Class { LETTER, NUMBER, SPACE, OTHER };
    struct Range {
        int32_t first, last; // code points, both included
    };
    std::vector<Range> ranges[3];        // of LETTER, NUMBER and SPACE, ascending
    std::vector<std::string> vocabulary; // (V) the bytes of each token
    std::unordered_map<std::string, int32_t> ids;
    int32_t end_of_text = 0;

    // The file: 256 int32 header ([0] magic 20250307, [1] version 1, [2] V, [3] id of end of text, [4] [5]
    // [6] number of ranges of letters, numbers and whitespace), the ranges as pairs of int32 in that order,
    // then for each token a uint16 length and its bytes (length 0 for end of text, and for no other).
    void read_gpt2(const std::string& path) {
        if (path.empty())
            fail("GPT-2 tokens need the tokenizer file that data/fineweb.py --tokenizer-file writes");
        const MappedFile file(path);
        const char* name = path.c_str();
        size_t at = 0;
        const auto take = [&](void* out, size_t n) {
            if (n > file.size - at) fail("%s: cut short at offset %zu, expected %zu more bytes", name, at, n);
            memcpy(out, file.data + at, n);
            at += n;
        };
        int32_t word[256];
        take(word, sizeof word);
        if (word[0] != 20250307 || word[1] != 1)
            fail("%s: not a GPT-2 tokenizer file: it starts with %d, %d, expected 20250307, 1", name, word[0],
                 word[1]);
        if (word[2] < 257 || word[2] > 65536) fail("%s: %d tokens, expected 257 to 65536", name, word[2]);
        end_of_text = word[3];
        if (end_of_text < 0 || end_of_text >= word[2])
            fail("%s: end of text is token %d, expected 0 to %d", name, end_of_text, word[2] - 1);
        for (int c : {LETTER, NUMBER, SPACE}) {
            int32_t before = -1;
            if (word[4 + c] < 0) fail("%s: %d ranges of characters, expected at least 0", name, word[4 + c]);
            for (int32_t i = 0; i < word[4 + c]; i++) {
                Range r;
                take(&r, sizeof r);
                if (r.first <= before || r.last < r.first || r.last > 0x10FFFF)
                    fail("%s: characters %d to %d at offset %zu, expected ascending ranges of code points",
                         name, r.first, r.last, at - sizeof r);
                before = r.last;
                ranges[c].push_back(r);
            }
        }
        for (int32_t id = 0; id < word[2]; id++) {
            uint16_t length;
            take(&length, sizeof length);
            std::string text(length, '\0');
            take(text.data(), length);
            if ((length == 0) != (id == end_of_text))
                fail("%s: token %d has %d bytes, expected none for end of text (%d) alone", name, id, length,
                     end_of_text);
            if (length && !ids.emplace(text, id).second)
                fail("%s: token %d has the same text as token %d", name, id, ids[text]);
            vocabulary.push_back(std::move(text));
        }
        if (at != file.size) fail("%s: %zu bytes, expected %zu", name, file.size, at);
        for (int b = 0; b < 256; b++)
            if (!ids.count(std::string(1, char(b)))) fail("%s: byte %d has no token of its own", name, b);
    }

    // The class of the character at text[i], and its length in bytes. A byte that starts no valid UTF-8
    // character counts as a character of its own.
    Class class_at(const std::string& text, size_t i, size_t& length) const {
        const auto byte = [&](size_t k) -> uint32_t { return k < text.size() ? (unsigned char)text[k] : 0; };
        static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000}; // of a character of so many bytes
        const uint32_t lead = byte(i);
        length = lead < 0x80 ? 1 : lead < 0xC0 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF8 ? 4 : 0;
        uint32_t code = length < 2 ? lead : lead & (0x7F >> length);
        bool valid = length > 0;
        for (size_t k = 1; k < length; k++) {
            valid = valid && (byte(i + k) & 0xC0) == 0x80;
            code = code << 6 | (byte(i + k) & 0x3F);
        }
        if (!valid || code < least[length] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
            return length = 1, OTHER;
        for (Class c : {LETTER, NUMBER, SPACE}) {
            const auto r = std::upper_bound(ranges[c].begin(), ranges[c].end(), int32_t(code),
                                            [](int32_t x, const Range& range) { return x < range.first; });
            if (r != ranges[c].begin() && int32_t(code) <= (r - 1)->last) return c;
        }
        return OTHER;
    }

    // Where the piece that starts at text[i] ends. In the order in which they are tried:
    //   a contraction ('s 't 're 've 'm 'll 'd);
    //   letters, numbers, or neither (and no whitespace), with at most one blank before them;
    //   whitespace, but for its last character when a word follows, since a blank belongs to the word.
    size_t piece_end(const std::string& text, size_t i) const {
        if (text[i] == '\'')
            for (const char* suffix : {"s", "t", "re", "ve", "m", "ll", "d"})
                if (text.compare(i + 1, strlen(suffix), suffix) == 0) return i + 1 + strlen(suffix);
        size_t length, j = i;
        if (text[i] == ' ' && i + 1 < text.size() && class_at(text, i + 1, length) != SPACE) j = i + 1;
        const Class run = class_at(text, j, length);
        size_t last = j; // the run's last character
        while (j < text.size() && class_at(text, j, length) == run) last = j, j += length;
        return run == SPACE && j < text.size() && last > i ? last : j;
    }

    // Appends the ids of one piece. The candidates wait in a heap, so that n bytes take O(n log n) steps: a
    // prompt may be one long piece.
    void encode_piece(const std::string& piece, std::vector<int32_t>& out) const {
        if (const auto whole = ids.find(piece); whole != ids.end()) return out.push_back(whole->second);
        struct Pair { // two neighbouring parts, piece[begin, end), that together are token `id`
            int32_t id;
            size_t begin, end;
            bool operator<(const Pair& p) const { return id != p.id ? id > p.id : begin > p.begin; }
        };
        const size_t n = piece.size();
        std::vector<size_t> end(n), before(n); // of the part that starts here: its end (0: no part starts
                                               // here), and where the part before it starts
        for (size_t i = 0; i < n; i++) end[i] = i + 1, before[i] = i - 1;
        std::priority_queue<Pair> candidates; // lowest id first, then leftmost
        const auto consider = [&](size_t i) {
            if (end[i] == n) return;
            const auto found = ids.find(piece.substr(i, end[end[i]] - i));
            if (found != ids.end()) candidates.push({found->second, i, end[end[i]]});
        };
        for (size_t i = 0; i < n; i++) consider(i);
        while (!candidates.empty()) {
            const Pair p = candidates.top();
            candidates.pop();
            const size_t middle = end[p.begin];
            if (middle == 0 || middle == n || end[middle] != p.end) continue; // joined otherwise since
            end[p.begin] = p.end;
            end[middle] = 0;
            if (p.end < n) before[p.end] = p.begin;
            if (p.begin > 0) consider(before[p.begin]);
            consider(p.begin);
        }
        for (size_t i = 0; i < n; i = end[i]) out.push_back(ids.at(piece.substr(i, end[i] - i)));
    }
};
