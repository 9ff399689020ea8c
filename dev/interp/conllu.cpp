// Reads CoNLL-U: see conllu.h.
#include "conllu.h"
#include "../lib/file.h"
#include "../lib/options.h"
#include <iterator>

namespace {
// Columns of a word's line.
enum { ID, FORM, UPOS = 3, MISC = 9, n_columns };

struct ConlluReader {
    const std::string& path;
    std::vector<TaggedDocument> documents;
    size_t line = 0;
    int token_end = 0;        // words up to this one are parts of the token before
    size_t token_begin = 0;   // its bytes
    bool space_after = false; // behind the word before

    explicit ConlluReader(const std::string& path) : path(path) {}
    [[noreturn]] void refuse(const std::string& what) const {
        fail("%s: line %zu: %s, expected CoNLL-U: ten columns with tabs between them", path.c_str(), line,
             what.c_str());
    }
    TaggedDocument& here() {
        if (documents.empty()) documents.emplace_back();
        return documents.back();
    }
    void add(const std::string& text, uint32_t tags) {
        here().text += text;
        here().tags.resize(here().text.size(), tags);
    }
    void comment(const std::string& text) {
        const auto is = [&](const char* name) { return text.rfind(name, 0) == 0; };
        if (is("# newdoc")) {
            if (documents.empty() || !documents.back().text.empty()) documents.emplace_back();
            space_after = false;
        } else if (is("# newpar") && !here().text.empty()) {
            add("\n", 0);
            space_after = false;
        }
    }
    // "7", "7-8" a token of several words, "7.1" a word that is not written.
    int number(const std::string& text, size_t from, size_t to) const {
        const std::string digits = text.substr(from, to - from);
        if (digits.empty() || digits.size() > 6 ||
            digits.find_first_not_of("0123456789") != std::string::npos)
            refuse("the number " + quoted(text));
        return std::stoi(digits);
    }
    void word(const std::vector<std::string>& column) {
        const std::string& id = column[ID];
        if (id.find('.') != std::string::npos) return;
        uint32_t tag = 0;
        const size_t dash = id.find('-');
        const int first = number(id, 0, std::min(dash, id.size()));
        if (dash == std::string::npos) {
            for (size_t t = 0; t < std::size(upos_names); t++)
                tag |= uint32_t(column[UPOS] == upos_names[t]) << t;
            if (!tag && column[UPOS] != "_") refuse("the part of speech " + quoted(column[UPOS]));
            if (first <= token_end) { // its token is written already
                for (size_t i = token_begin; i < here().tags.size(); i++) here().tags[i] |= tag;
                return;
            }
        }
        if (column[FORM].empty()) refuse("a word of nothing");
        if (space_after) add(" ", 0);
        token_begin = here().text.size();
        token_end = dash == std::string::npos ? first : number(id, dash + 1, id.size());
        add(column[FORM], tag);
        space_after = column[MISC].find("SpaceAfter=No") == std::string::npos;
    }
};
} // namespace

std::vector<TaggedDocument> read_conllu(const std::string& path) {
    const MappedFile file(path);
    ConlluReader reader(path);
    const std::string text((const char*)file.data, file.size);
    for (size_t at = 0, end; at < text.size(); at = end + 1) {
        end = std::min(text.find('\n', at), text.size());
        std::string line = text.substr(at, end - at);
        if (!line.empty() && line.back() == '\r') line.pop_back();
        reader.line++;
        if (line.empty()) {
            reader.token_end = 0;
            continue;
        }
        if (line[0] == '#') {
            reader.comment(line);
            continue;
        }
        const std::vector<std::string> columns = split(line, '\t');
        if (columns.size() != n_columns) reader.refuse(strf("%zu columns", columns.size()));
        reader.word(columns);
    }
    if (reader.documents.empty() || reader.documents.front().text.empty())
        fail("%s: no word, expected CoNLL-U", path.c_str());
    return reader.documents;
}
