// translate [--library] IN.cu OUT.cpp: the source step of dev/emu. Rewrites what is not C++ in a CUDA source
// and leaves everything else as it stands, line for line (#line names the .cu):
//   kernel<<<grid, block, shared, stream>>>(args)   a call of emu::launch
//   __shared__ T name[n]; extern __shared__ T s[];  a reference into, a pointer to the block's shared memory
//   asm volatile("..." : outputs : inputs);         a call of the emulator's PTX, same text and operands
//   #pragma unroll, __noinline__                    nothing, and the attribute
//   #include "other.cuh"                            that file, translated (of other files the full path)
//   #include "other.cu"                             its declarations: "A program as a library" below
// It works on tokens: comments, strings and macros are not looked into (a launch inside a macro is refused).
// OUT.cpp.d tells make which sources were read.
#include "../lib/file.h"
#include <algorithm>
#include <filesystem>
#include <set>
#include <vector>

namespace fs = std::filesystem;

enum class Kind { word, number, text, sign, directive }; // text: a string or character literal

struct Token {
    Kind kind;
    size_t begin, end; // in the source
    int line;
};

struct Source {
    std::string path, code;
    std::vector<Token> tokens;

    std::string text(size_t i) const { return code.substr(tokens[i].begin, tokens[i].end - tokens[i].begin); }
    bool is(size_t i, const char* s) const { return i < tokens.size() && text(i) == s; }
    [[noreturn]] void refuse(size_t i, const char* what) const {
        fail("%s:%d: %s", path.c_str(), tokens[std::min(i, tokens.size() - 1)].line, what);
    }
};

// ---- tokens ---------------------------------------------------------------------------------------------

static std::string read_text(const std::string& path) {
    const MappedFile file(path);
    return std::string(reinterpret_cast<const char*>(file.data), file.size);
}

// The end of the literal that begins with the quote at `at`; a raw string's begins with its R".
static size_t literal_end(const Source& s, size_t at, bool raw, int line) {
    const std::string& code = s.code;
    if (raw) {
        const size_t open = code.find('(', at);
        if (open != std::string::npos) {
            const std::string close = strf(")%s\"", code.substr(at + 1, open - at - 1).c_str());
            const size_t end = code.find(close, open);
            if (end != std::string::npos) return end + close.size();
        }
    } else {
        for (size_t i = at + 1; i < code.size() && code[i] != '\n'; i++) {
            if (code[i] == '\\')
                i++;
            else if (code[i] == code[at])
                return i + 1;
        }
    }
    fail("%s:%d: a string or character that does not end", s.path.c_str(), line);
}

static void tokenize(Source& s) {
    const std::string& code = s.code;
    const auto word = [](char c) { return isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$'; };
    int line = 1;
    bool line_start = true; // only blanks since the last newline
    for (size_t at = 0; at < code.size();) {
        const size_t begin = at;
        const char c = code[at];
        if (c == '\n' || isspace(static_cast<unsigned char>(c))) {
            if (c == '\n') line_start = true;
            line += c == '\n';
            at++;
            continue;
        }
        if (code.compare(at, 2, "//") == 0) {
            while (at < code.size() && code[at] != '\n')
                at += code[at] == '\\' && at + 1 < code.size() ? 2 : 1;
        } else if (code.compare(at, 2, "/*") == 0) {
            const size_t end = code.find("*/", at + 2);
            if (end == std::string::npos) fail("%s:%d: a comment that does not end", s.path.c_str(), line);
            at = end + 2;
        } else if (c == '#' && line_start) {
            while (at < code.size() && code[at] != '\n') {
                if (code.compare(at, 2, "//") == 0 || code.compare(at, 2, "/*") == 0) break;
                at += code[at] == '\\' && at + 1 < code.size() ? 2 : 1;
            }
            s.tokens.push_back({Kind::directive, begin, at, line});
        } else if (c == '"' || c == '\'') {
            const bool raw = c == '"' && at > 0 && code[at - 1] == 'R';
            at = literal_end(s, at, raw, line);
            const bool prefixed = !s.tokens.empty() && s.tokens.back().end == begin &&
                                  s.tokens.back().kind == Kind::word && begin - s.tokens.back().begin <= 3;
            if (prefixed) // u8"..", R"..": one token
                s.tokens.back().kind = Kind::text, s.tokens.back().end = at;
            else
                s.tokens.push_back({Kind::text, begin, at, line});
        } else if (isdigit(static_cast<unsigned char>(c))) {
            while (at < code.size() && (word(code[at]) || code[at] == '.' || code[at] == '\'')) at++;
            s.tokens.push_back({Kind::number, begin, at, line});
        } else if (word(c)) {
            while (at < code.size() && word(code[at])) at++;
            s.tokens.push_back({Kind::word, begin, at, line});
        } else {
            at++;
            s.tokens.push_back({Kind::sign, begin, at, line});
        }
        line_start = false;
        line += int(std::count(code.begin() + long(begin), code.begin() + long(at), '\n'));
    }
}

// Tokens [from, to) as text: line breaks kept, comments left out.
static std::string join(const Source& s, size_t from, size_t to) {
    std::string out;
    for (size_t i = from; i < to; i++) {
        if (i > from) {
            const size_t begin = s.tokens[i - 1].end, end = s.tokens[i].begin;
            const auto newlines = std::count(s.code.begin() + long(begin), s.code.begin() + long(end), '\n');
            out += newlines ? std::string(size_t(newlines), '\n') : begin < end ? " " : "";
        }
        out += s.text(i);
    }
    return out;
}

// The index of the bracket that closes the one at `open`.
static size_t closing(const Source& s, size_t open) {
    int depth = 0;
    for (size_t i = open; i < s.tokens.size(); i++) {
        if (s.is(i, "(") || s.is(i, "[") || s.is(i, "{")) depth++;
        if ((s.is(i, ")") || s.is(i, "]") || s.is(i, "}")) && --depth == 0) return i;
    }
    s.refuse(open, "a bracket that is not closed");
}

// The index of the bracket, angle brackets included, that opens the one at `close`.
static size_t opening(const Source& s, size_t close) {
    const bool angle = s.is(close, ">");
    int depth = 0, angles = 0;
    for (size_t i = close + 1; i-- > 0;) {
        if (s.is(i, ")") || s.is(i, "]") || s.is(i, "}")) depth++;
        if (s.is(i, "(") || s.is(i, "[") || s.is(i, "{")) depth--;
        if (depth == 0 && s.is(i, ">")) angles++;
        if (depth == 0 && s.is(i, "<")) angles--;
        if (depth == 0 && (!angle || angles == 0)) return i;
        if (depth < 0) break;
    }
    s.refuse(close, "a bracket that is not opened");
}

// The index of the angle bracket that closes the one at `open`: template arguments.
static size_t closing_angle(const Source& s, size_t open) {
    int depth = 0;
    for (size_t i = open; i < s.tokens.size() && !s.is(i, ";") && !s.is(i, "{"); i++) {
        if (s.is(i, "(") || s.is(i, "[")) i = closing(s, i);
        if (s.is(i, "<")) depth++;
        if (s.is(i, ">") && --depth == 0) return i;
    }
    s.refuse(open, "template arguments that do not end");
}

// Three angle brackets in a row.
static bool triple(const Source& s, size_t i, const char* bracket) {
    return s.is(i, bracket) && s.is(i + 1, bracket) && s.is(i + 2, bracket) &&
           s.tokens[i].end == s.tokens[i + 1].begin && s.tokens[i + 1].end == s.tokens[i + 2].begin;
}

static std::string as_literal(const std::string& text) {
    std::string out = "\"";
    for (char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        out += c == '\n' ? ' ' : c;
    }
    return out + "\"";
}

// ---- what is rewritten ----------------------------------------------------------------------------------

struct Edit { // the source between two offsets becomes `text`
    size_t begin, end;
    std::string text;
};

// What is known of the sources read so far.
struct Sources {
    std::set<std::string> all, once; // paths; those that say `#pragma once`
    std::set<std::string> templates; // kernels declared as templates
};

struct Translation {
    Source s;
    Sources& sources;
    std::vector<Edit> edits;
    std::vector<bool> left_out; // tokens that are not written

    void insert(size_t before, const std::string& text) {
        edits.push_back({s.tokens[before].begin, s.tokens[before].begin, text});
    }
    void leave_out(size_t first, size_t last, const std::string& instead) {
        replace(first, last, instead);
        std::fill(left_out.begin() + long(first), left_out.begin() + long(last) + 1, true);
    }

    void replace(size_t first, size_t last, const std::string& text) { // tokens first..last
        edits.push_back({s.tokens[first].begin, s.tokens[last].end, text});
    }
};

// `template <...> __global__ void name(`: remembers the name.
static void note_template(Translation& t, size_t i) {
    const Source& s = t.s;
    if (!s.is(i + 1, "<")) return;
    bool kernel = false;
    std::string name;
    for (size_t k = i + 2; k < s.tokens.size() && !s.is(k, ";") && !s.is(k, "{"); k++) {
        if (s.is(k, "__launch_bounds__") && s.is(k + 1, "(")) {
            k = closing(s, k + 1);
            continue;
        }
        kernel = kernel || s.is(k, "__global__");
        if (kernel && s.is(k, "(")) {
            t.sources.templates.insert(name);
            return;
        }
        if (s.tokens[k].kind == Kind::word) name = s.text(k);
    }
}

// kernel<<<config>>>(args) -> emu::launch("kernel", emu::Config(config), kernel, args)
static void rewrite_launch(Translation& t, size_t i) {
    const Source& s = t.s;
    if (i == 0) s.refuse(i, "a launch without a kernel");
    size_t first = i - 1;
    const bool explicit_arguments = s.is(first, ">");
    if (explicit_arguments) first = opening(s, first) - 1;
    if (first < i && s.is(first, ")")) {
        first = opening(s, first);
    } else {
        if (first >= i || s.tokens[first].kind != Kind::word) s.refuse(i, "a launch without a kernel");
        while (first >= 2 && s.is(first - 1, ":") && s.is(first - 2, ":"))
            first -= first >= 3 && s.tokens[first - 3].kind == Kind::word ? 3 : 2;
    }
    size_t end = i + 3;
    while (end < s.tokens.size() && !(triple(s, end, ">") && s.is(end + 3, "("))) {
        if (s.is(end, ";") || s.tokens[end].kind == Kind::directive)
            end = s.tokens.size();
        else
            end = s.is(end, "(") || s.is(end, "[") || s.is(end, "{") ? closing(s, end) + 1 : end + 1;
    }
    if (end >= s.tokens.size()) s.refuse(i, "a launch without >>>(");
    const std::string kernel = join(s, first, i);
    std::string name = kernel;
    std::replace(name.begin(), name.end(), '\n', ' ');
    const bool deduced = !explicit_arguments && t.sources.templates.count(s.text(i - 1)) > 0;
    const bool no_arguments = closing(s, end + 3) == end + 4;
    const std::string callee =
        deduced ? "[](const auto&... emu_arguments) { " + kernel + "(emu_arguments...); }" : kernel;
    t.replace(first, i + 2,
              std::string(deduced ? "emu::launch_deduced(" : "emu::launch(") + as_literal(name) +
                  ", emu::Config(");
    t.replace(end, end + 3, "), " + callee + (no_arguments ? "" : ", "));
}

// [extern] __shared__ [alignas(n)] T name[n][m], other;
static void rewrite_shared(Translation& t, size_t i) {
    const Source& s = t.s;
    size_t first = i, last = i;
    while (last < s.tokens.size() && !s.is(last, ";")) {
        if (s.is(last, "{") || s.is(last, "=")) s.refuse(i, "shared memory cannot be initialised");
        last++;
    }
    for (; first > 0; first--) { // the specifiers before it
        if (s.is(first - 1, ")")) {
            const size_t open = opening(s, first - 1);
            if (open == 0 || !(s.is(open - 1, "alignas") || s.is(open - 1, "__align__"))) break;
            first = open;
        } else if (!s.is(first - 1, "extern") && !s.is(first - 1, "static") && !s.is(first - 1, "volatile")) {
            break;
        }
    }
    bool dynamic = false;
    std::string align, type;
    size_t at = first;
    for (; at < last; at++) { // specifiers and type, up to the first name
        if (s.is(at, "alignas") || s.is(at, "__align__")) {
            const size_t close = closing(s, at + 1);
            align = join(s, at + 2, close);
            at = close;
        } else if (s.is(at, "extern")) {
            dynamic = true;
        } else if (s.is(at, "<")) { // the arguments of a template
            const size_t close = closing_angle(s, at);
            type += join(s, at, close + 1);
            at = close;
        } else if (s.is(at + 1, "[") || s.is(at + 1, ",") || at + 1 == last) {
            break;
        } else if (!s.is(at, "__shared__") && !s.is(at, "static")) {
            type += (type.empty() ? "" : " ") + s.text(at);
        }
    }
    if (at >= last || s.tokens[at].kind != Kind::word || type.empty())
        s.refuse(i, "expected a declaration after __shared__");
    std::string out;
    while (at < last) {
        const std::string name = s.text(at++);
        std::string extents;
        while (s.is(at, "[")) {
            const size_t close = closing(s, at);
            extents += close == at + 1 ? "[]" : strf("[(%s)]", join(s, at + 1, close).c_str());
            at = close + 1;
        }
        if (dynamic != (extents == "[]")) s.refuse(i, "only extern __shared__ T name[] has no size");
        if (dynamic)
            out += type + "* const " + name + " = emu::dynamic_shared<" + type + ">();";
        else
            out += "[[maybe_unused]] auto& " + name + " = emu::shared<" + type + extents + ">([] {}" +
                   (align.empty() ? "" : ", " + align) + "); ";
        if (at < last && !s.is(at, ",")) s.refuse(at, "expected , or ; in a __shared__ declaration");
        at++;
    }
    t.replace(first, last, out);
}

// asm volatile("text" : "=f"(x) : "r"(y) : "memory")
// -> do { static constexpr emu::Assembly ...("text", "fr", line); ...(emu::output<'f'>(x),
// emu::input<'r'>(y)); } while (0)
static void rewrite_asm(Translation& t, size_t i) {
    const Source& s = t.s;
    size_t open = i + 1;
    while (s.is(open, "volatile") || s.is(open, "__volatile__")) open++;
    if (!s.is(open, "(")) s.refuse(i, "expected ( after asm");
    const size_t close = closing(s, open);
    size_t at = open + 1;
    while (at < close && !s.is(at, ":")) at++;
    const std::string text = join(s, open + 1, at);
    std::string constraints, operands;
    for (int section = 0; at < close && section < 2;
         section++) { // outputs, inputs; what is clobbered is no matter
        for (at++; at < close && !s.is(at, ":");) {
            if (s.is(at, "[")) s.refuse(at, "named asm operands are not supported: number them");
            const std::string constraint = s.text(at); // with its quotes
            const size_t letter = section == 0 ? 2 : 1;
            if (s.tokens[at].kind != Kind::text || constraint.size() != letter + 2 ||
                (section == 0 && constraint[1] != '=' && constraint[1] != '+') || !s.is(at + 1, "("))
                s.refuse(at, "expected an asm operand such as \"=f\"(x) or \"r\"(x)");
            const size_t end = closing(s, at + 1);
            constraints += constraint[letter];
            operands += std::string(operands.empty() ? "" : ", ") +
                        (section == 0 ? "emu::output<'" : "emu::input<'") + constraint[letter] + "'>(" +
                        join(s, at + 2, end) + ")";
            at = end + 1;
            if (s.is(at, ",")) at++;
        }
    }
    t.replace(i, close,
              "do { static constexpr emu::Assembly emu_assembly(" + text + ", \"" + constraints + "\", " +
                  std::to_string(s.tokens[i].line) + "); emu_assembly(" + operands + "); } while (0)");
}

// ---- a program as a library -----------------------------------------------------------------------------
//
// To nvcc a .cu that includes another (the tests include train_moex.cu) is one program. Here the other is
// compiled once, with --library, and linked; where it is included its declarations remain. In both, functions
// of the namespace scope are neither inline nor static, so that one can call the other's; and
//   - where it is included, the bodies of kernels and host functions go. What the compiler must see stays:
//     templates, structs, constants, and device functions, which are small and belong inside the kernels that
//     call them: those become inline;
//   - in the library main is weak: it gives way to the one of the program that it is linked into.

enum class Part { program, library, declarations };

// The token after a declaration of the namespace scope that begins at `first`, which is edited for its part.
static size_t link_declaration(Translation& t, size_t first, Part part) {
    static const std::set<std::string> stays = {"template", "struct", "class",   "enum",         "union",
                                                "using",    "extern", "typedef", "static_assert"};
    static const std::set<std::string> has_arguments = {"__launch_bounds__", "__align__", "alignas",
                                                        "__attribute__", "decltype"};
    const Source& s = t.s;
    std::set<std::string> specifiers;
    std::vector<size_t> linkage; // the tokens inline, static
    size_t i = first;
    while (i < s.tokens.size() && !s.is(i, "(") && !s.is(i, "=") && !s.is(i, "{") && !s.is(i, ";")) {
        const std::string word = s.text(i);
        specifiers.insert(word);
        if (word == "inline" || word == "static" || word == "__forceinline__") linkage.push_back(i);
        if (word == "[" || (has_arguments.count(word) && s.is(i + 1, "(")))
            i = closing(s, word == "[" ? i : i + 1);
        else if (word == "<")
            i = closing_angle(s, i);
        i++;
    }
    const bool function = s.is(i, "(");
    const size_t name = i - 1;
    bool value = s.is(i, "="); // then braces are part of it, and it ends with a semicolon
    for (; i < s.tokens.size() && !s.is(i, ";") && (value || !s.is(i, "{")); i++) {
        if (s.is(i, "=")) value = true;
        if (s.is(i, "(") || s.is(i, "[") || s.is(i, "{")) i = closing(s, i);
        if (s.is(i, ")") && s.is(i + 1, ":")) // what a constructor sets may stand in braces, too
            do {
                for (i += 2; !s.is(i, "(") && !s.is(i, "{"); i++)
                    if (i >= s.tokens.size()) s.refuse(first, "a constructor without a body");
                i = closing(s, i);
            } while (s.is(i + 1, ","));
    }
    const bool has_body = s.is(i, "{");
    const size_t last = has_body ? closing(s, i) : std::min(i, s.tokens.size() - 1);
    if (part == Part::program || stays.count(s.text(first)) || specifiers.count("constexpr")) return last + 1;
    if (!function) {
        if (part == Part::declarations && name > first && !specifiers.count("const") && linkage.empty())
            s.refuse(first, "a variable of a program that others include: make it constexpr, or inline");
        return last + 1;
    }
    if (specifiers.count("__device__")) {
        if (linkage.empty()) t.insert(first, "inline ");
        return last + 1;
    }
    if (part == Part::declarations && has_body && s.is(name - 1, ":")) { // a member: its class declares it
        t.leave_out(first, last, "");
        return last + 1;
    }
    for (size_t k : linkage) t.leave_out(k, k, "");
    if (part == Part::declarations && has_body) t.leave_out(i, last, ";");
    if (part == Part::library && s.is(name, "main")) t.insert(first, "__attribute__((weak)) ");
    return last + 1;
}

static void link_declarations(Translation& t, Part part) {
    const Source& s = t.s;
    for (size_t i = 0; i < s.tokens.size();) {
        size_t open = i + 1;
        while (s.is(i, "namespace") && open < s.tokens.size() && !s.is(open, "{") && !s.is(open, ";")) open++;
        const bool block = s.is(i, "namespace") || (s.is(i, "extern") && s.tokens[open].kind == Kind::text);
        if (s.is(i, "extern") && block && s.is(open + 1, "{")) open++;
        if (s.tokens[i].kind == Kind::directive || s.is(i, ";") || s.is(i, "}"))
            i++;
        else if (block && s.is(open, "{"))
            i = open + 1; // its declarations are of the namespace scope, too
        else
            i = link_declaration(t, i, part);
    }
}

static std::string translate_file(const std::string& path, Sources& sources, Part part, int depth);

static void rewrite_directive(Translation& t, size_t i, Part part, int depth) {
    const Source& s = t.s;
    Source inside{s.path, s.text(i), {}};
    inside.code[0] = ' ';
    for (size_t k = 0; (k = inside.code.find("\\\n", k)) != std::string::npos;)
        inside.code.replace(k, 2, "  ");
    if (const size_t k = inside.code.find_first_not_of(" \t"); k != std::string::npos)
        inside.code.erase(0, k);
    const bool is_error = inside.code.rfind("error", 0) == 0 || inside.code.rfind("warning", 0) == 0;
    if (is_error) return; // prose
    tokenize(inside);
    for (size_t k = 0; k < inside.tokens.size(); k++)
        if (triple(inside, k, "<") || inside.is(k, "__shared__") || inside.is(k, "asm"))
            s.refuse(i, "launches, __shared__ and asm inside a macro are not translated: write a function");
    if (inside.is(0, "pragma") &&
        (inside.is(1, "unroll") || inside.is(1, "nounroll") || inside.is(1, "once") ||
         inside.is(1, "nv_diag_suppress") || inside.is(1, "nv_diag_default"))) {
        if (inside.is(1, "once")) t.sources.once.insert(fs::weakly_canonical(s.path));
        t.replace(i, i, "");
    }
    if (!inside.is(0, "include") || inside.tokens.size() < 2 || inside.tokens[1].kind != Kind::text) return;
    const std::string quoted_name = inside.text(1), name = quoted_name.substr(1, quoted_name.size() - 2);
    const fs::path file = fs::path(s.path).parent_path() / name;
    if (!fs::exists(file)) return; // the compiler's -I may know it
    const auto lines =
        std::count(s.code.begin() + long(s.tokens[i].begin), s.code.begin() + long(s.tokens[i].end), '\n');
    if (file.extension() == ".cu" || file.extension() == ".cuh") // then goes on with the line after this one
        t.replace(i, i,
                  translate_file(file.lexically_normal(), t.sources,
                                 file.extension() == ".cu" ? Part::declarations : part, depth + 1) +
                      "\n#line " + std::to_string(s.tokens[i].line + 1 + int(lines)) + " " +
                      as_literal(s.path));
    else
        t.replace(i, i, "#include " + as_literal(fs::absolute(file).lexically_normal()));
}

static std::string translate_file(const std::string& path, Sources& sources, Part part, int depth) {
    if (depth > 50) fail("%s: includes itself", path.c_str());
    if (sources.once.count(fs::weakly_canonical(path))) return "";
    sources.all.insert(path);
    Translation t{{}, sources, {}, {}};
    t.s.path = path;
    t.s.code = read_text(path);
    tokenize(t.s);
    t.left_out.resize(t.s.tokens.size());
    const Source& s = t.s;
    link_declarations(t, part);
    for (size_t i = 0; i < s.tokens.size(); i++) {
        if (t.left_out[i]) continue;
        if (s.tokens[i].kind == Kind::directive) rewrite_directive(t, i, part, depth);
        if (s.is(i, "template")) note_template(t, i);
        if (triple(s, i, "<") && !(i > 0 && triple(s, i - 1, "<"))) rewrite_launch(t, i);
        if (s.is(i, "__shared__")) rewrite_shared(t, i);
        if (s.is(i, "asm") || s.is(i, "__asm__")) rewrite_asm(t, i);
        if (s.is(i, "__noinline__") && !(i > 0 && s.is(i - 1, "(")))
            t.replace(i, i, "__attribute__((noinline))");
    }
    std::string out = "#line 1 " + as_literal(path) + "\n";
    std::stable_sort(t.edits.begin(), t.edits.end(),
                     [](const Edit& a, const Edit& b) { return a.begin < b.begin; });
    size_t at = 0;
    for (const Edit& e : t.edits) {
        if (e.begin < at) fail("%s: constructs inside one another near '%s'", path.c_str(), e.text.c_str());
        out += s.code.substr(at, e.begin - at) + e.text;
        at = e.end;
        // As many lines as before, except after an included file, which is followed by #line.
        const auto before = std::count(s.code.begin() + long(e.begin), s.code.begin() + long(e.end), '\n');
        const auto now = std::count(e.text.begin(), e.text.end(), '\n');
        if (now < before) out += std::string(size_t(before - now), '\n');
    }
    return out + s.code.substr(at);
}

int main(int argc, char** argv) {
    return run_main([&] {
        const std::vector<std::string> words(argv + 1, argv + argc);
        if (words == std::vector<std::string>{"--help"}) {
            puts(
                "usage: translate [--library] IN.cu OUT.cpp   (CUDA source in, C++ for dev/emu/include out)");
            return 0;
        }
        const bool library = !words.empty() && words[0] == "--library";
        if (words.size() != (library ? 3 : 2)) fail_usage("translate wants two files, IN.cu and OUT.cpp");
        const std::string in = words[words.size() - 2];
        Sources sources;
        const std::string code = "// Made from " + in +
                                 " by dev/emu/translate.\n"
                                 "#ifndef MOEX_EMU\n#define MOEX_EMU 1\n#endif\n#include <cuda_runtime.h>\n" +
                                 translate_file(in, sources, library ? Part::library : Part::program, 0);
        AtomicFile out(words.back());
        out.write(code.data(), code.size());
        out.commit();
        std::string rule = words.back() + ":"; // for make: what OUT.cpp is made from
        for (const std::string& path : sources.all) rule += " " + path;
        for (const std::string& path : sources.all) rule += "\n" + path + ":";
        AtomicFile dependencies(words.back() + ".d");
        dependencies.write((rule + "\n").data(), rule.size() + 1);
        dependencies.commit();
        return 0;
    });
}
