// The lexer of source code: see language.h.
#include "language.h"
#include "marked_text.h"
#include <unordered_map>

namespace {
enum : unsigned { IN_C = 1, IN_PYTHON = 2, IN_SHELL = 4, EVERYWHERE = 7 };
struct Keyword {
    Code what;
    unsigned where;
};
const std::unordered_map<std::string_view, Keyword>& keywords() {
    static const auto* table = [] {
        auto* t = new std::unordered_map<std::string_view, Keyword>;
        const auto add = [&](Code what, unsigned where, std::initializer_list<std::string_view> words) {
            for (const std::string_view w : words) t->insert({w, {what, where}});
        };
        add(Code::BRANCH, EVERYWHERE, {"if", "else"});
        add(Code::BRANCH, IN_PYTHON | IN_SHELL, {"elif"});
        add(Code::BRANCH, IN_C | IN_SHELL, {"case"});
        add(Code::BRANCH, IN_C, {"switch", "default"});
        add(Code::BRANCH, IN_SHELL, {"then", "fi", "esac"});
        add(Code::LOOP, EVERYWHERE, {"for", "while"});
        add(Code::LOOP, IN_C | IN_SHELL, {"do"});
        add(Code::LOOP, IN_SHELL, {"done", "until"});
        add(Code::LEAVE, EVERYWHERE, {"break", "continue", "return"});
        add(Code::LEAVE, IN_C, {"goto"});
        add(Code::LEAVE, IN_PYTHON, {"pass", "yield"});
        add(Code::LEAVE, IN_SHELL, {"exit"});
        add(Code::EXCEPTION, IN_C | IN_PYTHON, {"try"});
        add(Code::EXCEPTION, IN_PYTHON, {"except", "finally", "raise", "assert", "with"});
        add(Code::EXCEPTION, IN_C, {"catch", "throw"});
        add(Code::DEFINE, IN_C | IN_PYTHON, {"class"});
        add(Code::DEFINE, IN_PYTHON, {"def", "lambda"});
        add(Code::DEFINE, IN_C, {"struct", "enum", "union", "typedef", "namespace", "template", "using"});
        add(Code::DEFINE, IN_SHELL, {"function"});
        add(Code::TYPE, IN_C,
            {"int", "char", "void", "float", "double", "long", "short", "unsigned", "signed", "bool", "const",
             "static", "extern", "auto", "size_t", "inline", "constexpr", "volatile", "register"});
        add(Code::TYPE, IN_SHELL, {"local", "export", "declare", "readonly"});
        add(Code::LITERAL, IN_C | IN_SHELL, {"true", "false"});
        add(Code::LITERAL, IN_C, {"NULL", "nullptr"});
        add(Code::LITERAL, IN_PYTHON, {"True", "False", "None"});
        add(Code::LOGIC, IN_PYTHON, {"and", "or", "not", "in", "is"});
        add(Code::LOGIC, IN_SHELL, {"in"});
        return t;
    }();
    return *table;
}

struct CodeLexer : Marked<Code> {
    unsigned where;
    // Of the last two parts that are neither blank nor comment: '?' for a keyword that says nothing of what
    // follows, 'd' one that defines, 't' a type, 'n' a name, or the byte itself.
    char before = 0, before_that = 0;

    CodeLexer(const std::string& text, unsigned where) : Marked(text), where(where) {}
    void saw(char what) {
        before_that = before;
        before = what;
    }

    void read() {
        for (size_t i = 0; i < text.size();) {
            const char c = text[i];
            if (is_blank(c) || c == '\n' || c == '\r') {
                if (c == '\n' && where != IN_C) saw(0);
                i++;
                continue;
            }
            if (first_on_line(i)) imports(i);
            if (const size_t end = comment(i); end > i) {
                mark(i, end, Code::COMMENT);
                i = end;
            } else if (const size_t end = string(i); end > i) {
                mark(i, end, Code::STRING);
                saw('"');
                i = end;
            } else if (is_digit(c) || (c == '.' && is_digit(at(i + 1)))) {
                i = number(i);
            } else if (is_letter(c) || c == '_') {
                i = name(i);
            } else {
                i = sign(i);
            }
        }
    }

    void imports(size_t i) {
        const size_t word = where == IN_C ? skip_blanks(i + 1) : i;
        const bool is = where == IN_C ? text[i] == '#' && (holds(word, "include") || holds(word, "import"))
                        : where == IN_PYTHON
                            ? holds(i, "import ") ||
                                  (holds(i, "from ") &&
                                   text.substr(i, line_end(i) - i).find(" import ") != std::string::npos)
                            : holds(i, "source ") || holds(i, ". ");
        if (is) mark(i, line_end(i), Code::IMPORT);
    }

    // The end of what begins at i, or i where nothing of the sort begins.
    size_t comment(size_t i) const {
        if (where == IN_C && holds(i, "/*")) return behind("*/", i + 2);
        if (where == IN_C && holds(i, "//")) return line_end(i);
        const bool begins_word = i == 0 || is_blank(text[i - 1]) || text[i - 1] == '\n' || text[i - 1] == ';';
        if (text[i] == '#' && (where == IN_PYTHON || (where == IN_SHELL && begins_word))) return line_end(i);
        return i;
    }
    size_t string(size_t i) const {
        if (where == IN_C && holds(i, "R\"")) {
            const size_t open = text.find('(', i);
            if (open == std::string::npos || open > i + 18) return i + 2;
            std::string close(1, ')');
            close.append(text, i + 2, open - i - 2).append(1, '"');
            return behind(close, open);
        }
        if (where == IN_SHELL && holds(i, "<<") && !holds(i, "<<<")) return here_document(i);
        const char quote = text[i];
        if (quote != '"' && quote != '\'') return i;
        if (where == IN_PYTHON && at(i + 1) == quote && at(i + 2) == quote) {
            for (size_t end = i + 3; end < text.size(); end++) {
                if (text[end] == '\\')
                    end++;
                else if (holds(end, std::string(3, quote)))
                    return end + 3;
            }
            return text.size();
        }
        const bool escapes = where != IN_SHELL || quote == '"', lines = where == IN_SHELL;
        for (size_t end = i + 1; end < text.size(); end++) {
            if (text[end] == '\\' && escapes)
                end++;
            else if (text[end] == quote)
                return end + 1;
            else if (text[end] == '\n' && !lines)
                return end; // not closed
        }
        return text.size();
    }
    // From the line after it to the line that is the word.
    size_t here_document(size_t i) const {
        size_t from = i + 2;
        if (at(from) == '-') from++;
        from = skip_blanks(from);
        const char quote = at(from) == '\'' || at(from) == '"' ? at(from++) : 0;
        size_t end = from;
        while (is_name(at(end))) end++;
        if (end == from || is_digit(text[from])) return i; // a shift of bits
        const std::string word = text.substr(from, end - from);
        for (size_t line = line_end(end + (quote != 0)); line < text.size();) {
            const size_t begin = line + 1, next = line_end(begin);
            size_t first = begin;
            while (at(first) == '\t') first++;
            if (text.compare(first, next - first, word) == 0) return next;
            line = next;
        }
        return text.size();
    }

    size_t number(size_t i) {
        size_t end = i + 1;
        for (; end < text.size(); end++) {
            const char c = text[end], last = text[end - 1];
            const bool sign = (c == '+' || c == '-') && (last == 'e' || last == 'E') && !holds(i, "0x");
            const bool mark_of_thousands = c == '\'' && where == IN_C && is_name(at(end + 1));
            if (!is_name(c) && c != '.' && !sign && !mark_of_thousands) break;
        }
        mark(i, end, Code::NUMBER);
        saw('n');
        return end;
    }

    size_t name(size_t i) {
        size_t end = i + 1;
        while (is_name(at(end))) end++;
        const std::string_view word = std::string_view(text).substr(i, end - i);
        if (end == i + 1 || end == i + 2) // a prefix of a string: f"..", rb'..', u8".."
            if ((at(end) == '"' || at(end) == '\'') && where != IN_SHELL &&
                word.find_first_not_of("rRbBfFuUL") == std::string_view::npos) {
                const size_t close = string(word == "R" && where == IN_C ? i : end);
                mark(i, close, Code::STRING);
                saw('"');
                return close;
            }
        const auto found = keywords().find(word);
        if (found != keywords().end() && found->second.where & where) {
            const Code what = found->second.what;
            mark(i, end, what);
            saw(what == Code::DEFINE && word != "lambda" && word != "typedef" && word != "template" ? 'd'
                : what == Code::TYPE                                                                ? 't'
                                                                                                    : '?');
            return end;
        }
        const size_t next = skip_blanks(end);
        const bool called = at(next) == '(' && !(where == IN_SHELL && at(next + 1) != ')');
        const bool directive = where == IN_C && before == '#';
        // int f(, struct point *f(, f() {: what stands before a name of C says whether it is declared here
        const bool declared =
            before == 'd' ||
            (where == IN_C && called &&
             (before == 't' || before == 'n' ||
              (before == '*' && before_that != 0 && (before_that == 't' || before_that == '*')))) ||
            (where == IN_SHELL && called);
        if (directive) {
            saw(word == "define" ? 'd' : '?');
            return end;
        }
        if (declared)
            mark(i, end, Code::DEFINED);
        else if (called)
            mark(i, end, Code::CALLED);
        const auto capitals = std::count_if(word.begin(), word.end(), is_upper);
        const bool small = std::any_of(word.begin(), word.end(), [](char c) { return c >= 'a' && c <= 'z'; });
        if (capitals >= 2 && !small) mark(i, end, Code::CONSTANT);
        saw('n');
        return end;
    }

    size_t sign(size_t i) {
        const char c = text[i];
        const auto is_operator = [](char x) {
            return x && std::string_view("+-*/%&|^!~<>=?").find(x) != std::string_view::npos;
        };
        if (where == IN_PYTHON && c == '@' && first_on_line(i)) {
            size_t end = i + 1;
            while (is_name(at(end)) || at(end) == '.') end++;
            mark(i, end, Code::DECORATOR);
            saw('n');
            return end;
        }
        if (!is_operator(c)) {
            saw(c);
            return i + 1;
        }
        size_t end = i;
        while (is_operator(at(end)) && !holds(end, "//") && !holds(end, "/*")) end++;
        if (end == i) end = i + 1; // Python's //
        const std::string_view run = std::string_view(text).substr(i, end - i);
        mark(i, end, Code::OPERATOR);
        // =, and += and its like; a pointer's or a sign's own operators may follow: x = *p, x = -1
        const size_t equals = run.find('=');
        const bool compares = equals != std::string_view::npos &&
                              ((equals + 1 < run.size() && run[equals + 1] == '=') || // ==
                               (equals == 1 && (run[0] == '!' || run[0] == '<' || run[0] == '>')));
        if (equals != std::string_view::npos && !compares) mark(i, i + equals + 1, Code::ASSIGN);
        saw(c);
        return end;
    }
};
} // namespace

std::vector<uint32_t> code_bits(const std::string& document, TextKind kind) {
    const unsigned where = kind == TextKind::C        ? unsigned(IN_C)
                           : kind == TextKind::PYTHON ? unsigned(IN_PYTHON)
                           : kind == TextKind::SHELL  ? unsigned(IN_SHELL)
                                                      : 0;
    CodeLexer lexer(document, where);
    if (where) lexer.read();
    return lexer.bits;
}
