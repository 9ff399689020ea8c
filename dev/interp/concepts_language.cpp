// The concepts of whole documents of a text, in the language that each is written in: see concepts.h,
// language.h.
#include "concepts.h"
#include "conllu.h"
#include "language.h"

std::vector<size_t> documents_of(const TokenRows& rows, int32_t start, bool goes_on) {
    std::vector<size_t> document(rows.size());
    size_t begun = 0;
    for (size_t n = 0; n < rows.size(); n++) {
        begun += n == 0 || rows.tokens[n] == start || (!goes_on && n % rows.T == 0);
        document[n] = begun - 1;
    }
    return document;
}

namespace {
// One family of concepts: bits of the bytes of a document.
struct Family {
    const char* group;
    const char* const* names;
    size_t count;
    std::vector<uint32_t> (*bits)(const std::string& text, TextKind kind);
};
const Family families[] = {{"code", code_names, std::size(code_names), code_bits},
                           {"markup", markup_names, std::size(markup_names), markup_bits},
                           {"part of speech", speech_names, std::size(speech_names),
                            [](const std::string& text, TextKind kind) {
                                const bool english = kind == TextKind::PROSE && tongue_of_text(text) == 0;
                                return english ? speech_bits(text) : std::vector<uint32_t>(text.size());
                            }},
                           {"script", script_names, std::size(script_names),
                            [](const std::string& text, TextKind) { return script_bits(text); }}};
} // namespace

void label_language_concepts(Concepts& out, const std::vector<std::string>& vocabulary,
                             const std::vector<size_t>& document, const std::vector<std::string>& sources,
                             bool as_documents) {
    std::vector<size_t> first;
    for (const Family& f : families) {
        first.push_back(out.list.size());
        for (size_t i = 0; i < f.count; i++) new_concept(out, {f.group, f.names[i]});
    }
    const size_t kinds = out.list.size();
    if (as_documents) {
        for (const std::string_view name : kind_names)
            new_concept(out, {"kind of text, by rule", std::string(name), false, true});
        for (const char* name : tongue_names) new_concept(out, {"tongue, by rule", name, false, true});
        for (size_t d = 0; d < out.documents(); d++) out.block[d] = uint32_t(document[d * out.rows.T]);
    }
    for (size_t begin = 0, over; begin < out.rows.size(); begin = over) {
        std::string text;
        std::vector<size_t> end;
        for (over = begin; over < out.rows.size() && document[over] == document[begin]; over++) {
            text += vocabulary[size_t(out.rows.tokens[over])];
            end.push_back(text.size());
        }
        TextKind kind = kind_of_text(text);
        if (!sources.empty()) // what a document is said to be goes before what it looks like
            for (size_t k = 0; k < std::size(kind_names); k++)
                if (sources[document[begin]] == kind_names[k]) kind = TextKind(k);
        for (size_t f = 0; f < std::size(families); f++)
            carry_bits(out, first[f], families[f].bits(text, kind), end, begin);
        if (!as_documents) continue;
        const int tongue = kind == TextKind::PROSE ? tongue_of_text(text) : -1;
        for (size_t n = begin; n < over; n++) {
            out.labels.set(kinds + size_t(kind), n);
            if (tongue >= 0) out.labels.set(kinds + std::size(kind_names) + size_t(tongue), n);
        }
    }
}

TokenRows conllu_rows(const std::vector<TaggedDocument>& documents, const TextTokenizer& tokenizer, size_t T,
                      size_t most, std::vector<uint32_t>& tags) {
    TokenRows rows;
    rows.T = T;
    tags.clear();
    for (const TaggedDocument& d : documents) {
        rows.tokens.push_back(tokenizer.start());
        tags.push_back(0);
        size_t byte = 0;
        for (const int32_t token : tokenizer.encode(d.text)) {
            uint32_t any = 0;
            for (const size_t end = byte + tokenizer.decode(token).size(); byte < end; byte++)
                any |= d.tags[byte];
            rows.tokens.push_back(token);
            tags.push_back(any);
        }
    }
    rows.rows = std::min(most, rows.tokens.size() / T);
    rows.tokens.resize(rows.size());
    tags.resize(rows.size());
    return rows;
}

void label_speech(Concepts& out, const std::vector<uint32_t>& tags) {
    const size_t first = out.list.size();
    for (const char* name : upos_names) new_concept(out, {"part of speech, as tagged", name});
    for (size_t n = 0; n < tags.size(); n++)
        for (uint32_t left = tags[n]; left; left &= left - 1)
            out.labels.set(first + size_t(__builtin_ctz(left)), n);
}
