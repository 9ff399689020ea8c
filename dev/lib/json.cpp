// The reader and the writer of json.h.
#include "json.h"

const Json* Json::find(const std::string& key) const {
    for (size_t i = 0; i < keys.size(); i++)
        if (keys[i] == key) return &items[i];
    return nullptr;
}

size_t utf8_length(const char* p, size_t bytes) {
    auto byte = [&](size_t i) { return i < bytes ? (unsigned char)p[i] : 0u; };
    auto continues = [&](size_t i) { return byte(i) >> 6 == 2; };
    const unsigned first = byte(0), second = byte(1);
    if (first < 0x80) return bytes > 0 ? 1 : 0;
    if (first >= 0xC2 && first <= 0xDF) return continues(1) ? 2 : 0;
    if (first >= 0xE0 && first <= 0xEF) {
        if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F)) return 0;
        return continues(1) && continues(2) ? 3 : 0;
    }
    if (first >= 0xF0 && first <= 0xF4) {
        if ((first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F)) return 0;
        return continues(1) && continues(2) && continues(3) ? 4 : 0;
    }
    return 0;
}

bool is_utf8(const std::string& text) {
    for (size_t i = 0, length; i < text.size(); i += length)
        if ((length = utf8_length(text.data() + i, text.size() - i)) == 0) return false;
    return true;
}

std::string shown_as_utf8(const std::string& text) {
    std::string out;
    for (size_t i = 0; i < text.size();) {
        const size_t length = utf8_length(text.data() + i, text.size() - i);
        if (length > 0)
            out.append(text, i, length);
        else
            out += "\xEF\xBF\xBD";
        i += std::max<size_t>(1, length);
    }
    return out;
}

std::string percent_encoded(const std::string& bytes) {
    std::string out;
    for (size_t i = 0; i < bytes.size();) {
        const size_t length = bytes[i] == '%' ? 0 : utf8_length(bytes.data() + i, bytes.size() - i);
        if (length > 0)
            out.append(bytes, i, length);
        else
            out += strf("%%%02X", (unsigned char)bytes[i]);
        i += std::max<size_t>(1, length);
    }
    return out;
}

std::string percent_decoded(const std::string& text, const std::string& where) {
    std::string out;
    for (size_t i = 0; i < text.size(); i++) {
        unsigned value = 0;
        const char* digits = text.c_str() + i + 1;
        if (text[i] != '%') {
            out += text[i];
            continue;
        }
        if (i + 2 >= text.size() || std::from_chars(digits, digits + 2, value, 16).ptr != digits + 2)
            fail("%s: %s, expected two hexadecimal digits after every %%", where.c_str(),
                 quoted(text).c_str());
        out += char(value);
        i += 2;
    }
    return out;
}

struct JsonReader {
    const char* text;
    size_t size;
    std::string where; // begins every message: the file, and the line or part of it
    size_t at = 0, depth = 0, values = 0;

    [[noreturn]] void broken(const char* expected) const;
    int peek() const { return at < size ? (unsigned char)text[at] : -1; }
    bool digit() const { return peek() >= '0' && peek() <= '9'; }
    bool take(char c) {
        if (peek() != (unsigned char)c) return false;
        at++;
        return true;
    }
    void skip_space() {
        while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') at++;
    }
    bool take_word(const char* word);

    Json value();

    void object(Json& v);

    void array(Json& v);

    // -? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)?
    void number(Json& v);
    void skip_digits() {
        if (!digit()) broken("a digit");
        while (digit()) at++;
    }

    std::string string();
    void append_escaped(std::string& out);
    uint32_t hex4();
};

void JsonReader::broken(const char* expected) const {
    if (at >= size) fail("%s: broken JSON: ends at byte %zu, expected %s", where.c_str(), at, expected);
    fail("%s: broken JSON at byte %zu: %s, expected %s", where.c_str(), at,
         quoted(std::string(text + at, std::min<size_t>(size - at, 12))).c_str(), expected);
}

bool JsonReader::take_word(const char* word) {
    const size_t length = strlen(word);
    if (size - at < length || memcmp(text + at, word, length) != 0) return false;
    return at += length, true;
}

Json JsonReader::value() {
    skip_space();
    if (++values > json_max_values)
        fail("%s: JSON of more than %zu values, at byte %zu", where.c_str(), json_max_values, at);
    Json v;
    if (peek() == '{' || peek() == '[') {
        if (depth == json_max_depth)
            fail("%s: JSON nested deeper than %zu at byte %zu", where.c_str(), json_max_depth, at);
        depth++;
        if (peek() == '{')
            object(v);
        else
            array(v);
        depth--;
    } else if (peek() == '"') {
        v.type = Json::String;
        v.text = string();
    } else if (peek() == '-' || digit()) {
        number(v);
    } else if (take_word("true") || take_word("false")) {
        v.type = Json::Boolean;
        v.boolean = text[at - 2] == 'u';
    } else if (!take_word("null")) {
        broken("a JSON value");
    }
    return v;
}

void JsonReader::object(Json& v) {
    v.type = Json::Object;
    at++;
    skip_space();
    if (take('}')) return;
    std::set<std::string> seen;
    do {
        skip_space();
        if (peek() != '"') broken("a name in double quotes");
        v.keys.push_back(string());
        if (!seen.insert(v.keys.back()).second)
            fail("%s: the name %s stands twice in one JSON object, at byte %zu", where.c_str(),
                 quoted(v.keys.back()).c_str(), at);
        skip_space();
        if (!take(':')) broken("':'");
        v.items.push_back(value());
        skip_space();
    } while (take(','));
    if (!take('}')) broken("',' or '}'");
}

void JsonReader::array(Json& v) {
    v.type = Json::Array;
    at++;
    skip_space();
    if (take(']')) return;
    do {
        v.items.push_back(value());
        skip_space();
    } while (take(','));
    if (!take(']')) broken("',' or ']'");
}

void JsonReader::number(Json& v) {
    const size_t begin = at;
    v.negative = take('-');
    const size_t digits = at;
    bool whole = true;
    if (!take('0')) skip_digits();
    const size_t digits_end = at;
    if (take('.')) {
        whole = false;
        skip_digits();
    }
    if (take('e') || take('E')) {
        whole = false;
        if (!take('+')) take('-');
        skip_digits();
    }
    v.number = strtod(std::string(text + begin, at - begin).c_str(), nullptr);
    if (!std::isfinite(v.number))
        fail("%s: the number at byte %zu of the JSON is too large", where.c_str(), begin);
    const char* last = text + digits_end;
    const bool fits = whole && std::from_chars(text + digits, last, v.magnitude).ec == std::errc();
    const bool minus_zero = v.negative && v.magnitude == 0; // is a floating-point number only
    const bool integer = fits && !minus_zero && (!v.negative || v.magnitude <= uint64_t(1) << 63);
    v.type = integer ? Json::Integer : Json::Number;
}

std::string JsonReader::string() {
    std::string out;
    at++;
    while (!take('"')) {
        if (peek() < 0x20) broken("a character of a string or its closing quote");
        if (take('\\')) {
            append_escaped(out);
            continue;
        }
        const size_t length = utf8_length(text + at, size - at);
        if (length == 0) broken("UTF-8");
        out.append(text + at, length);
        at += length;
    }
    return out;
}

void JsonReader::append_escaped(std::string& out) {
    const char* names = "\"\\/bfnrt";
    const char* meanings = "\"\\/\b\f\n\r\t";
    if (peek() > 0)
        if (const char* found = strchr(names, peek())) {
            at++;
            out += meanings[found - names];
            return;
        }
    if (!take('u')) broken("an escape: one of \"\\/bfnrtu");
    uint32_t code = hex4();
    if (code >= 0xD800 && code <= 0xDBFF) { // a surrogate pair: two escapes, 10 bits each, one character
        const uint32_t low = take_word("\\u") ? hex4() : 0;
        if (low < 0xDC00 || low > 0xDFFF) broken("the low half of a surrogate pair before here");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    } else if (code >= 0xDC00 && code <= 0xDFFF) {
        broken("the high half of a surrogate pair before here");
    }
    if (code < 0x80) {
        out += char(code);
    } else if (code < 0x800) {
        out += {char(0xC0 | code >> 6), char(0x80 | (code & 63))};
    } else if (code < 0x10000) {
        out += {char(0xE0 | code >> 12), char(0x80 | (code >> 6 & 63)), char(0x80 | (code & 63))};
    } else {
        out += {char(0xF0 | code >> 18), char(0x80 | (code >> 12 & 63)), char(0x80 | (code >> 6 & 63)),
                char(0x80 | (code & 63))};
    }
}

uint32_t JsonReader::hex4() {
    uint32_t code = 0;
    for (int i = 0; i < 4; i++, at++) {
        const int c = peek();
        if (c >= '0' && c <= '9')
            code = code * 16 + uint32_t(c - '0');
        else if (c >= 'a' && c <= 'f')
            code = code * 16 + uint32_t(c - 'a' + 10);
        else if (c >= 'A' && c <= 'F')
            code = code * 16 + uint32_t(c - 'A' + 10);
        else
            broken("four hexadecimal digits");
    }
    return code;
}

Json parse_json(const char* text, size_t size, const std::string& where) {
    JsonReader reader{text, size, where};
    Json v = reader.value();
    reader.skip_space();
    if (reader.at != size) reader.broken("nothing more");
    return v;
}

Json parse_json(const std::string& text, const std::string& where) {
    return parse_json(text.data(), text.size(), where);
}

std::string json_quote(const std::string& text) {
    std::string out = "\"";
    for (size_t i = 0, length; i < text.size(); i += length) {
        length = utf8_length(text.data() + i, text.size() - i);
        if (length == 0)
            fail("%s: not UTF-8 (at its byte %zu), cannot be written as JSON", quoted(text).c_str(), i);
        const unsigned char c = text[i];
        if (c == '"' || c == '\\')
            out += {'\\', char(c)};
        else if (c < 0x20 || c == 0x7F)
            out += strf("\\u%04x", c);
        else
            out.append(text, i, length);
    }
    return out + "\"";
}

std::string json_number(double x) {
    if (!std::isfinite(x)) return "null";
    char text[32];
    return std::string(text, std::to_chars(text, text + sizeof text, x).ptr);
}

JsonWriter& JsonWriter::close() {
    text += ends.back();
    ends.pop_back();
    return *this;
}

JsonWriter& JsonWriter::key(const std::string& name) {
    begin();
    text += json_quote(shown_as_utf8(name)) + ":";
    return *this;
}

JsonWriter& JsonWriter::put(const std::string& piece) {
    begin();
    text += piece;
    return *this;
}
