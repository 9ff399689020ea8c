// Kinds of text, tongues, scripts, and English by lists of words: see language.h.
#include "language.h"
#include "marked_text.h"
#include <iterator>
#include <unordered_map>

static_assert(std::size(kind_names) == size_t(TextKind::count) &&
              std::size(code_names) == size_t(Code::count) &&
              std::size(markup_names) == size_t(Markup::count) &&
              std::size(speech_names) == size_t(Speech::count) &&
              std::size(script_names) == size_t(Script::count));

namespace {
size_t times(const std::string& text, std::string_view mark) {
    size_t n = 0;
    for (size_t at = 0; (at = text.find(mark, at)) != std::string::npos; at += mark.size()) n++;
    return n;
}

// Lower-case words of letters and the bytes of other scripts.
template <class F> void each_word(const std::string& text, F f) {
    const auto in_word = [](char c) { return is_letter(c) || (unsigned char)c >= 128; };
    for (size_t i = 0, end; i < text.size(); i = end) {
        end = i + 1;
        if (!in_word(text[i])) continue;
        while (end < text.size() && in_word(text[end])) end++;
        f(i, end);
    }
}
} // namespace

// A mark counts once for each time that it stands there.
TextKind kind_of_text(const std::string& document) {
    static const std::vector<std::string_view> marks[] = {
        {},
        {";\n", ") {", "#include", "#define ", "#ifdef", "#endif", "/*", "->", "::", " int ", "\nint ",
         "\nstatic "},
        {"\ndef ", "    def ", "\nimport ", "\nfrom ", "self.", "):\n", "\nclass ", "return ", "elif ",
         "    if "},
        {"#!/bin/", "\nfi\n", "; then\n", "\ndone", "esac", "$(", "${", "echo ", "\"$", "then\n"},
        {"\\begin{", "\\end{", "\\section", "\\item", "\\textbf", "\\emph{", "\\def\\", "\\cite", "\\ref{",
         "\\usepackage"},
        {"</", "<p>", "<a href", "<div", "<br", "&nbsp;", "<!DOCTYPE", "<html", "<span"},
        {"\n# ", "\n## ", "\n### ", "](http", "```", "\n- ", "\n* ", "**"}};
    size_t best = 0, most = 0;
    for (size_t k = 1; k < std::size(marks); k++) {
        size_t n = 0;
        for (const std::string_view mark : marks[k]) n += times(document, mark);
        if (n > most) most = n, best = k;
    }
    return TextKind(most >= std::max<size_t>(2, document.size() / 500) ? best : 0);
}

int tongue_of_text(const std::string& document) {
    static const std::vector<std::string_view> frequent[] = {
        {"the", "and", "of", "to", "is", "that", "with", "for", "this", "which", "are", "be"},
        {"der", "die", "und", "das", "nicht", "ist", "mit", "ein", "eine", "den", "auf", "zu"},
        {"le", "les", "et", "des", "une", "est", "dans", "pour", "que", "qui", "du", "pas"},
        {"el", "los", "las", "y", "que", "una", "por", "con", "para", "del", "es", "se"},
        {"il", "che", "di", "e", "gli", "della", "non", "una", "per", "con", "sono", "del"},
        {"o", "os", "que", "uma", "do", "da", "para", "com", "não", "em", "dos", "as"},
        {"het", "een", "van", "en", "niet", "dat", "de", "op", "zijn", "voor", "met", "is"},
        {"nie", "się", "jest", "na", "że", "do", "w", "z", "jak", "to", "przez", "dla"}};
    static_assert(std::size(frequent) == std::size(tongue_names));
    size_t count[std::size(frequent)] = {}, words = 0;
    each_word(document, [&](size_t begin, size_t end) {
        const std::string word = lower_word(document, begin, end);
        words++;
        for (size_t t = 0; t < std::size(frequent); t++)
            count[t] += std::find(frequent[t].begin(), frequent[t].end(), word) != frequent[t].end();
    });
    const size_t best = size_t(std::max_element(count, std::end(count)) - count), most = count[best];
    count[best] = 0;
    const size_t second = *std::max_element(count, std::end(count));
    return most >= 5 && 10 * most >= words && 2 * most >= 3 * second ? int(best) : -1;
}

std::vector<uint32_t> speech_bits(const std::string& document) {
    static const auto* classes = [] {
        auto* t = new std::unordered_map<std::string_view, Speech>;
        const auto add = [&](Speech what, std::initializer_list<std::string_view> words) {
            for (const std::string_view w : words) t->insert({w, what});
        };
        add(Speech::DETERMINER, {"the", "a", "an", "every"});
        add(Speech::PRONOUN,
            {"i",   "you",  "he",        "she",     "it",         "we",      "they",     "me",
             "him", "us",   "them",      "myself",  "himself",    "herself", "itself",   "themselves",
             "who", "whom", "something", "nothing", "everything", "anyone",  "everyone", "nobody"});
        add(Speech::PREPOSITION,
            {"of", "from", "with", "at", "into", "onto", "upon", "during", "among", "between", "without",
             "within", "against", "toward", "towards", "beneath", "despite"});
        add(Speech::CONJUNCTION, {"and", "or", "nor", "although", "because", "unless", "whereas", "if"});
        add(Speech::AUXILIARY, {"is", "am", "are", "was", "were", "be", "been", "could", "would", "should",
                                "must", "might", "shall", "cannot"});
        add(Speech::NUMERAL, {"two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
                              "eleven", "twelve", "twenty", "hundred", "thousand", "million"});
        return t;
    }();
    Marked<Speech> m(document);
    each_word(document, [&](size_t begin, size_t end) {
        const std::string word = lower_word(document, begin, end);
        if (const auto found = classes->find(word); found != classes->end())
            m.mark(begin, end, found->second);
        if (word == "not") m.mark(begin, end, Speech::NEGATION);
        if (end - begin >= 2 && m.holds(end - 1, "n't")) m.mark(end - 1, end + 2, Speech::NEGATION);
    });
    for (size_t i = 0; i < document.size(); i++) {
        const char c = document[i];
        if (is_digit(c)) m.mark(i, i + 1, Speech::NUMERAL);
        if (c && std::string_view(".,;:?!()\"").find(c) != std::string_view::npos)
            m.mark(i, i + 1, Speech::MARK);
    }
    return m.bits;
}

std::vector<uint32_t> script_bits(const std::string& document) {
    static constexpr struct {
        uint32_t first, last;
        Script script;
    } blocks[] = {{0xC0, 0x24F, Script::LATIN},     {0x370, 0x3FF, Script::GREEK},
                  {0x400, 0x52F, Script::CYRILLIC}, {0x590, 0x5FF, Script::HEBREW},
                  {0x600, 0x6FF, Script::ARABIC},   {0x900, 0xDFF, Script::INDIC},
                  {0x1E00, 0x1EFF, Script::LATIN},  {0x3040, 0x30FF, Script::KANA},
                  {0x3400, 0x9FFF, Script::HAN},    {0xAC00, 0xD7A3, Script::HANGUL}};
    Marked<Script> m(document);
    for (size_t i = 0, length; i < document.size(); i += length) {
        const unsigned lead = (unsigned char)document[i];
        length = lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
        uint32_t code = length == 1 ? lead : lead & (0x7Fu >> length);
        for (size_t k = 1; k < length; k++) code = code << 6 | ((unsigned char)m.at(i + k) & 0x3F);
        if (length == 1) continue;
        for (const auto& b : blocks)
            if (code >= b.first && code <= b.last && code != 0xD7 && code != 0xF7)
                m.mark(i, i + length, b.script);
    }
    return m.bits;
}
