// The readers of LaTeX, HTML and Markdown: see language.h.
#include "language.h"
#include "marked_text.h"

namespace {
struct LatexScanner : Marked<Markup> {
    using Marked::Marked;

    void read() { scan(0, text.size(), false); }

    bool begins(size_t i, std::string_view command) const {
        return holds(i, command) && !is_letter(at(i + command.size()));
    }
    void scan(size_t i, size_t end, bool math) {
        while (i < end) {
            const char c = text[i];
            if (c == '%') {
                const size_t stop = line_end(i);
                mark(i, stop, Markup::COMMENT);
                i = stop;
            } else if (c == '$' && !math) {
                i = dollars(i, end);
            } else if (c == '\\') {
                i = command(i, end, math);
            } else if (math && (c == '_' || c == '^')) {
                const size_t from = skip_blanks(i + 1), stop = behind_part(from);
                mark(from, stop, c == '_' ? Markup::SUBSCRIPT : Markup::SUPERSCRIPT);
                i++; // what stands in it is read, too
            } else {
                i++;
            }
        }
    }
    // One group, command or character.
    size_t behind_part(size_t i) const {
        if (at(i) == '{') return behind_group(i, '{', '}');
        if (at(i) != '\\') return std::min(i + 1, text.size());
        size_t end = i + 1;
        while (is_letter(at(end))) end++;
        return std::min(std::max(end, i + 2), text.size());
    }
    void formula(size_t begin, size_t inside, size_t inside_end, size_t end, Markup kind) {
        mark(begin, end, kind);
        scan(inside, inside_end, true);
    }
    size_t dollars(size_t i, size_t end) {
        const bool display = at(i + 1) == '$';
        const std::string_view close = display ? "$$" : "$";
        for (size_t j = i + close.size(); j < end; j++) {
            if (text[j] == '\\')
                j++;
            else if (holds(j, close)) {
                formula(i, i + close.size(), j, j + close.size(),
                        display ? Markup::DISPLAY_MATH : Markup::INLINE_MATH);
                return j + close.size();
            } else if (!display && holds(j, "\n\n")) {
                break; // no formula goes over an empty line: it was a price
            }
        }
        return i + close.size();
    }
    size_t command(size_t i, size_t end, bool math) {
        if (!math && (holds(i, "\\[") || holds(i, "\\("))) {
            const bool display = text[i + 1] == '[';
            const size_t close = text.find(display ? "\\]" : "\\)", i);
            if (close == std::string::npos || close >= end) return i + 2;
            formula(i, i + 2, close, close + 2, display ? Markup::DISPLAY_MATH : Markup::INLINE_MATH);
            return close + 2;
        }
        const size_t stop = behind_part(i), group = skip_blanks(stop);
        mark(i, stop, begins(i, "\\item") ? Markup::LIST : Markup::COMMAND);
        if (at(group) != '{') return stop;
        const size_t close = behind_group(group, '{', '}');
        if (begins(i, "\\begin")) return environment(i, group, close, end, math);
        if (begins(i, "\\end")) {
            mark(group + 1, close - 1, Markup::ENVIRONMENT);
            return close;
        }
        for (const char* heading :
             {"\\chapter", "\\section", "\\subsection", "\\subsubsection", "\\paragraph", "\\title"})
            if (begins(i, heading)) mark(group, close, Markup::HEADING);
        if (begins(i, "\\url") || begins(i, "\\href")) mark(i, close, Markup::LINK);
        if (math)
            for (const char* fraction : {"\\frac", "\\dfrac", "\\tfrac"})
                if (begins(i, fraction)) {
                    const size_t below = skip_blanks(close), stop_below = behind_part(below);
                    mark(group, close, Markup::NUMERATOR);
                    mark(below, stop_below, Markup::DENOMINATOR);
                }
        return stop; // what stands in the group is read, too
    }
    size_t environment(size_t i, size_t group, size_t close, size_t end, bool math) {
        mark(group + 1, close - 1, Markup::ENVIRONMENT);
        std::string name = text.substr(group + 1, close - group - 2);
        const std::string over = "\\end{" + name + "}";
        const size_t found = text.find(over, close);
        if (found == std::string::npos || found >= end) return close;
        if (!name.empty() && name.back() == '*') name.pop_back();
        for (const char* verbatim : {"verbatim", "lstlisting", "Verbatim"})
            if (name == verbatim) {
                mark(close, found, Markup::VERBATIM);
                return found;
            }
        for (const char* formulas :
             {"equation", "align", "displaymath", "eqnarray", "gather", "multline", "math"})
            if (!math && name == formulas) {
                formula(i, close, found, found + over.size(), Markup::DISPLAY_MATH);
                return found;
            }
        return close;
    }
};

struct HtmlScanner : Marked<Markup> {
    using Marked::Marked;

    void read() {
        for (size_t i = 0; i < text.size();) {
            if (holds(i, "<!--")) {
                const size_t end = behind("-->", i);
                mark(i, end, Markup::COMMENT);
                i = end;
            } else if (text[i] == '<' && (is_letter(at(i + 1)) || at(i + 1) == '/' || at(i + 1) == '!')) {
                i = tag(i);
            } else if (text[i] == '&') {
                size_t end = i + 1;
                while (is_name(at(end)) || at(end) == '#') end++;
                if (at(end) == ';' && end > i + 1) mark(i, end + 1, Markup::ENTITY);
                i = end;
            } else {
                i++;
            }
        }
    }
    size_t tag(size_t i) {
        size_t end = i + 1;
        for (char quote = 0; end < text.size() && (quote || text[end] != '>'); end++) {
            const char c = text[end];
            if (quote && c != quote) {
                mark(end, end + 1, Markup::ATTRIBUTE);
                continue;
            }
            quote = quote ? 0 : (c == '"' || c == '\'') && text[end - 1] == '=' ? c : 0;
        }
        if (end < text.size()) end++;
        mark(i, end, Markup::COMMAND);
        size_t stop = i + 1;
        while (is_name(at(stop))) stop++;
        const std::string name = lower_word(text, i + 1, stop);
        const auto inside = [&](Markup bit) { mark(end, std::min(text.find("</", end), text.size()), bit); };
        if (name == "a") inside(Markup::LINK);
        if (name.size() == 2 && name[0] == 'h' && name[1] >= '1' && name[1] <= '6') inside(Markup::HEADING);
        if (name == "li") mark(i, end, Markup::LIST);
        if (name == "code" || name == "tt") inside(Markup::VERBATIM);
        if (name == "pre" || name == "script" ||
            name == "style") { // nothing in it is markup, but tags of <pre>
            const std::string over = "</" + name;
            const size_t found = std::min(text.find(over, end), text.size());
            mark(end, found, Markup::VERBATIM);
            if (name != "pre") return found;
        }
        return end;
    }
};

struct MarkdownScanner : Marked<Markup> {
    using Marked::Marked;

    void read() {
        for (size_t i = 0; i < text.size();) {
            const size_t end = line_end(i);
            const size_t first = skip_blanks(i);
            if (holds(first, "```")) {
                const size_t close = text.find("\n```", end);
                const size_t stop = close == std::string::npos ? text.size() : line_end(close + 1);
                mark(i, stop, Markup::VERBATIM);
                i = stop + 1;
                continue;
            }
            size_t hashes = i;
            while (at(hashes) == '#' && hashes < i + 6) hashes++;
            if (hashes > i && is_blank(at(hashes))) mark(i, end, Markup::HEADING);
            size_t digits = first;
            while (is_digit(at(digits))) digits++;
            if ((at(first) == '-' || at(first) == '*' || at(first) == '+') && at(first + 1) == ' ')
                mark(first, first + 1, Markup::LIST);
            else if (digits > first && at(digits) == '.' && at(digits + 1) == ' ')
                mark(first, digits + 1, Markup::LIST);
            for (size_t j = i; j < end; j++) {
                if (text[j] == '`') {
                    const size_t close = text.find('`', j + 1);
                    if (close < end) mark(j, close + 1, Markup::VERBATIM), j = close;
                } else if (text[j] == '[') {
                    const size_t middle = text.find("](", j), close = text.find(')', std::min(middle, end));
                    if (middle < end && close < end) mark(j, close + 1, Markup::LINK), j = close;
                }
            }
            i = end + 1;
        }
    }
};
} // namespace

std::vector<uint32_t> markup_bits(const std::string& document, TextKind kind) {
    const auto scanned = [](auto scanner) {
        scanner.read();
        return scanner.bits;
    };
    if (kind == TextKind::LATEX) return scanned(LatexScanner(document));
    if (kind == TextKind::HTML) return scanned(HtmlScanner(document));
    if (kind == TextKind::MARKDOWN) return scanned(MarkdownScanner(document));
    return std::vector<uint32_t>(document.size());
}
