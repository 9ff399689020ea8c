// JSON (RFC 8259), read strictly: one value and nothing after it but white space. What the grammar does not
// allow is refused, and so is what makes a document ambiguous or costly: a name twice in one object, text
// that is not UTF-8, a number beyond the range of double, nesting deeper than json_max_depth, more values
// than json_max_values. Used for the header of a checkpoint and for the lines of log.jsonl. Writing needs no
// tree: json_quote() and json_number() give the pieces, JsonWriter the commas and brackets between them.
#pragma once
#include "error.h"
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

constexpr size_t json_max_depth = 64;       // the reader calls itself once per level
constexpr size_t json_max_values = 1 << 20; // about 100 bytes of memory each, whatever the text claims

struct Json {
    enum Type { Null, Boolean, Integer, Number, String, Array, Object };
    Type type = Null;
    bool boolean = false;
    bool negative = false;         // Integer: a whole number from -2^63 to 2^64 - 1, kept exactly
    uint64_t magnitude = 0;        // Integer: its absolute value
    double number = 0;             // Integer and Number; always finite
    std::string text;              // String, as UTF-8; may hold zero bytes
    std::vector<Json> items;       // Array: its elements. Object: its values, in the order of the text
    std::vector<std::string> keys; // Object: the names of items

    // The value under a name, or nullptr.
    const Json* find(const std::string& key) const;
    bool is_number() const { return type == Integer || type == Number; }
    bool is_unsigned() const { return type == Integer && !negative; }
    bool is_int64() const { return type == Integer && (negative || magnitude <= uint64_t(INT64_MAX)); }
    int64_t int64() const { return int64_t(negative ? 0 - magnitude : magnitude); }
};

// Length in bytes of the UTF-8 character that p begins with, 0 if it is none (Unicode standard, table 3-7:
// no overlong forms, no surrogates, nothing above U+10FFFF).
size_t utf8_length(const char* p, size_t bytes);

bool is_utf8(const std::string& text);

// Text to be shown, such as the name of a file: every byte that is not UTF-8 becomes the character U+FFFD.
std::string shown_as_utf8(const std::string& text);

// Any bytes as UTF-8 text, and back: what is not UTF-8, and %, as %XX. For what must be had back exactly.
std::string percent_encoded(const std::string& bytes);
std::string percent_decoded(const std::string& text, const std::string& where);

// ---------------------------------------------------------------------------------------------------------
// Reading

// One JSON document. `where` begins every error message.
Json parse_json(const char* text, size_t size, const std::string& where);
Json parse_json(const std::string& text, const std::string& where);

// ---------------------------------------------------------------------------------------------------------
// Writing

// A string with its quotes. Refuses text that is not UTF-8, which JSON cannot hold.
std::string json_quote(const std::string& text);

// The shortest decimal that reads back as the same double; JSON has no NaN and no infinity: null.
std::string json_number(double x);

// A document written from front to back:
//   JsonWriter out;   out.open('{').key("loss").value(0.7).key("load").values(load).close();   out.text
// Numbers are rounded to `digits` significant ones where the reader will not look further; a text that is not
// UTF-8 (the name of a file may be anything) is written as it would be shown.
struct JsonWriter {
    std::string text;

    JsonWriter& open(char bracket) { // '{' or '['
        begin();
        text += bracket;
        ends += bracket == '{' ? '}' : ']';
        return *this;
    }
    JsonWriter& close();
    JsonWriter& key(const std::string& name);
    JsonWriter& value(const std::string& x) { return put(json_quote(shown_as_utf8(x))); }
    JsonWriter& value(const char* x) { return value(std::string(x)); }
    JsonWriter& value(bool x) { return put(x ? "true" : "false"); }
    JsonWriter& value(double x, int digits = 6) { return put(json_number(rounded(x, digits))); }
    template <class Int>
    requires std::is_integral_v<Int> JsonWriter& value(Int x) { return put(std::to_string(x)); }
    template <class List> JsonWriter& values(const List& list) { // an array of anything above
        open('[');
        for (const auto& x : list) value(x);
        return close();
    }
    template <class T> JsonWriter& member(const std::string& name, const T& x) { return key(name).value(x); }

  private:
    std::string ends; // the brackets that are still open, as they will be closed

    void begin() { // a comma, unless something opens or a name stands before
        if (!text.empty() && !strchr("{[:", text.back())) text += ',';
    }
    JsonWriter& put(const std::string& piece);
    static double rounded(double x, int digits) {
        return std::isfinite(x) ? strtod(strf("%.*g", digits, x).c_str(), nullptr) : x;
    }
};
