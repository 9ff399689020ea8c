// Tests of language.h and conllu.h: which stretches of small documents are comments, strings, formulas,
// headings, prepositions, .., worked out by hand; which kind and tongue a document is; treebanks and what is
// refused.
#include "../dev/interp/concepts.h"
#include "../dev/interp/language.h"
#include "check.h"
#include <filesystem>

using std::string, std::vector;

// The stretches of a text that have a bit, with `|` between them.
template <class Bit> static string pieces(const string& text, const vector<uint32_t>& bits, Bit bit) {
    string out;
    for (size_t i = 0; i < text.size(); i++) {
        if (!(bits[i] >> int(bit) & 1)) continue;
        if (!out.empty() && !(i > 0 && bits[i - 1] >> int(bit) & 1)) out += '|';
        out += text[i];
    }
    return out;
}
template <class Bit> struct Expected {
    Bit bit;
    const char* pieces;
};
template <class Bit> static void check_pieces(const string& text, const vector<uint32_t>& bits,
                                              const char* const* names,
                                              const vector<Expected<Bit>>& expected) {
    for (const auto& e : expected)
        check(pieces(text, bits, e.bit) == e.pieces, "%s, %s: '%s'", text.c_str(), names[int(e.bit)],
              pieces(text, bits, e.bit).c_str());
}
static void check_code(TextKind kind, const string& text, const vector<Expected<Code>>& expected) {
    check_pieces(text, code_bits(text, kind), code_names, expected);
}
static void check_markup(TextKind kind, const string& text, const vector<Expected<Markup>>& expected) {
    check_pieces(text, markup_bits(text, kind), markup_names, expected);
}

static void test_code() {
    check_code(TextKind::C,
               "#include <a.h> // why\n"
               "#define MAX_SIZE 1'000\n"
               "static int *find(const char *s) { /* \"no\" */\n"
               "    if (s[0] == 'a' || len(s) >= 0x1e) x += 1.5e-3; else y = *p;\n"
               "    return \"a\\\"//b\" ? NULL : R\"x(\")x\";\n"
               "}\n",
               {{Code::COMMENT, "// why|/* \"no\" */"},
                {Code::IMPORT, "#include <a.h> // why"},
                {Code::STRING, "'a'|\"a\\\"//b\"|R\"x(\")x\""},
                {Code::NUMBER, "1'000|0|0x1e|1.5e-3"},
                {Code::BRANCH, "if|else"},
                {Code::LEAVE, "return"},
                {Code::TYPE, "static|int|const|char"},
                {Code::DEFINED, "MAX_SIZE|find"},
                {Code::CALLED, "len"},
                {Code::CONSTANT, "MAX_SIZE"},
                {Code::LITERAL, "NULL"},
                {Code::ASSIGN, "+=|="},
                {Code::DECORATOR, ""}});
    check_code(TextKind::C, "struct point { double x; };\nfor (;;) f(g(2));\n\"not closed\nint i;",
               {{Code::DEFINE, "struct"},
                {Code::DEFINED, "point"},
                {Code::LOOP, "for"},
                {Code::CALLED, "f|g"},
                {Code::STRING, "\"not closed"},
                {Code::TYPE, "double|int"}});
    check_code(TextKind::PYTHON,
               "from a import b  # it's\n"
               "@app.route\n"
               "def f(x):\n"
               "    '''all\n    of \"it\" '''\n"
               "    if x is not None and y == f\"{z}\": z = rb'q' + str(x) // 2\n"
               "    for i in range(3): raise KeyError\n",
               {{Code::COMMENT, "# it's"},
                {Code::IMPORT, "from a import b  # it's"},
                {Code::DECORATOR, "@app.route"},
                {Code::DEFINE, "def"},
                {Code::DEFINED, "f"},
                {Code::STRING, "'''all\n    of \"it\" '''|f\"{z}\"|rb'q'"},
                {Code::LOGIC, "is|not|and|in"},
                {Code::LITERAL, "None"},
                {Code::ASSIGN, "="},
                {Code::CALLED, "str|range"},
                {Code::OPERATOR, "==|=|+|//"},
                {Code::EXCEPTION, "raise"},
                {Code::NUMBER, "2|3"}});
    check_code(TextKind::SHELL,
               "#!/bin/sh\n"
               "run() { echo \"$#\n two\" '\\'; } # end\n"
               "cat <<-'EOF' > f\n\tif # in it\n\tEOF\n"
               "if [ $((1 << 2)) = 4 ]; then x=${y#a}; fi\n",
               {{Code::COMMENT, "#!/bin/sh|# end"},
                {Code::DEFINED, "run"},
                {Code::STRING, "\"$#\n two\"|'\\'|<<-'EOF' > f\n\tif # in it\n\tEOF"},
                {Code::BRANCH, "if|then|fi"}});
    for (const TextKind kind : {TextKind::PROSE, TextKind::LATEX})
        check_code(kind, "if (x) // y", {{Code::BRANCH, ""}, {Code::COMMENT, ""}});
}

static void test_markup() {
    check_markup(TextKind::LATEX,
                 "\\section{On \\emph{$x_i$}} % $no$\n"
                 "It cost \\$5, or 5$ a day.\n\nBut $a^{b_2} = \\frac{1+c}{d}$ and\n"
                 "\\begin{align*} e^\\pi \\end{align*} \\[f_{g}\\]\n"
                 "\\begin{verbatim} $h$ % \\end{verbatim} \\item \\url{http://i}",
                 {{Markup::HEADING, "{On \\emph{$x_i$}}"},
                  {Markup::COMMENT, "% $no$"},
                  {Markup::INLINE_MATH, "$x_i$|$a^{b_2} = \\frac{1+c}{d}$"},
                  {Markup::DISPLAY_MATH, "\\begin{align*} e^\\pi \\end{align*}|\\[f_{g}\\]"},
                  {Markup::SUBSCRIPT, "i|2|{g}"},
                  {Markup::SUPERSCRIPT, "{b_2}|\\pi"},
                  {Markup::NUMERATOR, "{1+c}"},
                  {Markup::DENOMINATOR, "{d}"},
                  {Markup::ENVIRONMENT, "align*|align*|verbatim|verbatim"},
                  {Markup::VERBATIM, " $h$ % "},
                  {Markup::LIST, "\\item"},
                  {Markup::LINK, "\\url{http://i}"}});
    check_markup(TextKind::HTML,
                 "<!-- <b> --><h2 id=\"a\">One &amp; all</h2><li>x <a href='u>v'>go</a> a & b"
                 "<script>if (a<b) c</script><pre>d <i>e</i></pre>",
                 {{Markup::COMMENT, "<!-- <b> -->"},
                  {Markup::COMMAND,
                   "<h2 id=\"a\">|</h2><li>|<a href='u>v'>|</a>|<script>|</script><pre>|<i>|</i></pre>"},
                  {Markup::ATTRIBUTE, "a|u>v"},
                  {Markup::HEADING, "One &amp; all"},
                  {Markup::ENTITY, "&amp;"},
                  {Markup::LIST, "<li>"},
                  {Markup::LINK, "go"},
                  {Markup::VERBATIM, "if (a<b) c|d <i>e</i>"}});
    check_markup(
        TextKind::MARKDOWN,
        "# Top\ntext `code [x](y)` and [name](http://z) [no]\n- one\n  12. two\n```\n# not\n```\n#tag\n",
        {{Markup::HEADING, "# Top"},
         {Markup::VERBATIM, "`code [x](y)`|```\n# not\n```"},
         {Markup::LINK, "[name](http://z)"},
         {Markup::LIST, "-|12."}});
    // What is not closed ends with the text, and soon.
    for (const TextKind kind : {TextKind::LATEX, TextKind::HTML, TextKind::MARKDOWN})
        for (const char* piece :
             {"\\a{", "$", "<a ", "<!--", "[", "`", "\\begin{math}", "\\frac{", "_", "\\", "&"}) {
            string text;
            for (int i = 0; i < 3000; i++) text += piece;
            check(markup_bits(text, kind).size() == text.size());
        }
    for (const TextKind kind : {TextKind::C, TextKind::PYTHON, TextKind::SHELL})
        for (const char* piece : {"\"", "'", "/*", "R\"", "<<a\n", "#", "'''", "@", "=", "\\", "(", "1e"}) {
            string text;
            for (int i = 0; i < 3000; i++) text += piece;
            check(code_bits(text, kind).size() == text.size());
        }
}

static void test_words() {
    const string text =
        "The cat wasn't with 12 of us; if not, two are \xC3\xA9t\xC3\xA9, \xCE\xB1\xD0\xB1\xE4\xB8\xAD.";
    const vector<uint32_t> bits = speech_bits(text), scripts = script_bits(text);
    check(pieces(text, bits, Speech::DETERMINER) == "The");
    check(pieces(text, bits, Speech::PRONOUN) == "us");
    check(pieces(text, bits, Speech::PREPOSITION) == "with|of");
    check(pieces(text, bits, Speech::CONJUNCTION) == "if");
    check(pieces(text, bits, Speech::AUXILIARY) == "are");
    check(pieces(text, bits, Speech::NUMERAL) == "12|two");
    check(pieces(text, bits, Speech::NEGATION) == "n't|not", "%s",
          pieces(text, bits, Speech::NEGATION).c_str());
    check(pieces(text, bits, Speech::MARK) == ";|,|,|.");
    check(pieces(text, scripts, Script::LATIN) == "\xC3\xA9|\xC3\xA9");
    check(pieces(text, scripts, Script::GREEK) == "\xCE\xB1");
    check(pieces(text, scripts, Script::CYRILLIC) == "\xD0\xB1");
    check(pieces(text, scripts, Script::HAN) == "\xE4\xB8\xAD");
    check(script_bits("\xC3\x97").front() == 0); // a sign between the letters
    check(script_bits("\xE4").size() == 1);      // cut short
}

static void test_kinds() {
    const vector<std::pair<TextKind, const char*>> examples = {
        {TextKind::C, "#include <stdio.h>\nint main(void) {\n    return 0;\n}\n"},
        {TextKind::PYTHON, "import os\n\ndef f(self):\n    return self.x\n"},
        {TextKind::SHELL, "#!/bin/sh\nif test -n \"$x\"; then\n  echo ${x}\nfi\n"},
        {TextKind::LATEX, "\\begin{itemize}\n\\item \\emph{a}\n\\end{itemize}\n"},
        {TextKind::HTML, "<html><p>A</p><br><p>B</p></html>\n"},
        {TextKind::MARKDOWN, "\n# A\n\n- **b**\n- [c](http://d)\n"},
        {TextKind::PROSE, "It was the best of times; it was the worst of times.\n"},
        {TextKind::PROSE, ""}};
    for (const auto& [kind, text] : examples)
        check(kind_of_text(text) == kind, "%s: %s", text, kind_names[size_t(kind_of_text(text))].data());
    const vector<const char*> tongues = {
        "The one is that of the two which are to be with the other, and it is for this.",
        "Der eine ist nicht der andere, und die Frau ist mit den Kindern auf das Feld gegangen.",
        "Le chien est dans la maison et les enfants qui sont avec le chat ne sont pas du tout l\xC3\xA0 pour "
        "une fois.",
        "El perro y los gatos que viven en la casa con una familia por las tardes, para comer.",
        "Il cane che non mangia e gli uomini della casa sono con una donna per il pane.",
        "O homem que n\xC3\xA3o v\xC3\xAA os filhos e as filhas da casa em uma rua, com os amigos do pai.",
        "Het huis van een man en de vrouw is niet op het dak, dat is voor een kind met het haar.",
        "To nie jest dom, w kt\xC3\xB3rym si\xC4\x99 jest jak na wsi, \xC5\xBC"
        "e do lasu przez pole, z psem dla dzieci."};
    for (size_t t = 0; t < tongues.size(); t++)
        check(tongue_of_text(tongues[t]) == int(t), "%s: %d", tongue_names[t], tongue_of_text(tongues[t]));
    check(tongue_of_text("1.e4 e5 2.Nf3 Nc6") == -1 && tongue_of_text("") == -1);
}

// ---------------------------------------------------------------------------------------------------------
// As concepts of documents

static string marks_of(const Concepts& c, const string& name) {
    size_t found = c.list.size();
    for (size_t i = 0; i < c.list.size(); i++)
        if (c.list[i].name == name) found = i;
    if (found == c.list.size()) fail("no concept %s", name.c_str());
    string out;
    for (size_t n = 0; n < c.rows.size(); n++) out += c.labels.at(found, n) ? '1' : '.';
    return out;
}

static void test_concepts() {
    const string first = "/* over two rows */ int i;", second = "x '/*' y";
    Concepts c;
    c.rows.tokens.push_back(256);
    for (const char x : first) c.rows.tokens.push_back((unsigned char)x);
    c.rows.tokens.push_back(256);
    for (const char x : second) c.rows.tokens.push_back((unsigned char)x);
    c.rows.T = 9;
    c.rows.rows = c.rows.tokens.size() / 9;
    check(c.rows.rows == 4);
    c.block = {0, 1, 2, 3};
    vector<string> vocabulary;
    for (size_t i = 0; i < 256; i++) vocabulary.push_back(string(1, char(i)));
    vocabulary.push_back("");
    const vector<size_t> document = documents_of(c.rows, 256, true);
    check(document.front() == 0 && document[26] == 0 && document[27] == 1 && document.back() == 1);
    check(documents_of(c.rows, 256, false)[9] == 1);
    label_language_concepts(c, vocabulary, document, {"c", "prose"}, true);
    check(marks_of(c, "in a comment") == "." + string(19, '1') + string(16, '.'));
    check(marks_of(c, "a type or its qualifier") == string(21, '.') + "111" + string(12, '.'));
    check(marks_of(c, "c") == string(27, '1') + string(9, '.'));
    check(marks_of(c, "prose") == string(27, '.') + string(9, '1'));
    check((c.block == vector<uint32_t>{0, 0, 0, 1}));
    Concepts two = c; // tokens of two bytes are what either of them is
    two.list.clear(), two.labels = {};
    two.rows.tokens = {0, 1, 2};
    two.rows.T = 3, two.rows.rows = 1, two.block = {0};
    label_language_concepts(two, {"a /", "/ b", "\nc"}, {0, 0, 0}, {"c"}, false);
    check(marks_of(two, "in a comment") == "11." && two.block[0] == 0);
}

static void test_conllu(const string& folder) {
    const auto write = [&](const string& text) {
        AtomicFile file(folder + "/a.conllu");
        file.write(text.data(), text.size());
        file.commit();
        return folder + "/a.conllu";
    };
    const auto word = [](const char* id, const char* form, const char* tag, const char* misc = "_") {
        return strf("%s\t%s\t_\t%s\t_\t_\t0\t_\t_\t%s\n", id, form, tag, misc);
    };
    const string good = "# newdoc id = a\n# text = Vu du toit.\n" + word("1", "Vu", "VERB") +
                        word("2-3", "du", "_") + word("2", "de", "ADP") + word("3", "le", "DET") +
                        word("3.1", "x", "NOUN") + word("4", "toit", "NOUN", "SpaceAfter=No") +
                        word("5", ".", "PUNCT") + "\n" + "# newpar\n" + word("1", "Oui", "INTJ") + "\n" +
                        "# newdoc\n" + word("1", "\xC3\xA0", "ADP");
    const vector<TaggedDocument> d = read_conllu(write(good));
    if (check(d.size() == 2)) {
        check(d[0].text == "Vu du toit.\nOui", "'%s'", d[0].text.c_str());
        check(d[1].text == "\xC3\xA0");
        const auto tagged = [&](const char* name) {
            for (size_t t = 0; t < std::size(upos_names); t++)
                if (name == string(upos_names[t])) return pieces(d[0].text, d[0].tags, t);
            return string("none");
        };
        check(tagged("ADP") == "du" && tagged("DET") == "du" && tagged("VERB") == "Vu" &&
              tagged("NOUN") == "toit" && tagged("PUNCT") == "." && tagged("INTJ") == "Oui" &&
              tagged("X").empty());
    }
    check_error(read_conllu(write("")), "a.conllu", "no word");
    check_error(read_conllu(write("# text\n\n")), "no word");
    check_error(read_conllu(write("1\ta\n")), "a.conllu: line 1", "2 columns", "CoNLL-U");
    check_error(read_conllu(write(good + "\n" + word("1", "a", "noun"))), "line 17", "'noun'");
    check_error(read_conllu(write(word("x", "a", "NOUN"))), "number 'x'");
    check_error(read_conllu(write(word("1-", "a", "NOUN"))), "number '1-'");
    check_error(read_conllu(write(word("1", "", "NOUN"))), "a word of nothing");

    vector<uint32_t> tags;
    Concepts c;
    c.rows = conllu_rows(d, TextTokenizer::load(TOKENIZER_BYTES), 6, 100, tags);
    check(c.rows.rows == 3 && c.rows.tokens[0] == 256 && c.rows.tokens[16] == 256 &&
          c.rows.tokens[17] == 0xC3);
    label_speech(c, tags);
    check(marks_of(c, "ADP") == "....11..........."
                                "1",
          "%s", marks_of(c, "ADP").c_str());
    check(marks_of(c, "NOUN") == ".......1111.......");
    check(conllu_rows(d, TextTokenizer::load(TOKENIZER_BYTES), 6, 2, tags).rows == 2 && tags.size() == 12);
}

int main() {
    return run_main([] {
        string folder = (std::filesystem::temp_directory_path() / "test_language_XXXXXX").string();
        if (!mkdtemp(folder.data())) fail("%s: cannot be made", folder.c_str());
        test_code();
        test_markup();
        test_words();
        test_kinds();
        test_concepts();
        test_conllu(folder);
        std::filesystem::remove_all(folder);
        return finish();
    });
}
