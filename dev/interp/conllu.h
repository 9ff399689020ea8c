// A treebank in CoNLL-U as a text: its documents (`# newdoc`; without any all is one) with a tag of universal
// part of speech for every byte of a word. Sentences are put together of their forms, a blank between two
// words unless SpaceAfter=No, a line end behind a paragraph (`# newpar`), else a blank behind a sentence. The
// bytes of a token of several words, as French `du`, have the tags of all of them.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

inline constexpr const char* upos_names[] = {"ADJ",   "ADP",   "ADV", "AUX",  "CCONJ", "DET",
                                             "INTJ",  "NOUN",  "NUM", "PART", "PRON",  "PROPN",
                                             "PUNCT", "SCONJ", "SYM", "VERB", "X"};

struct TaggedDocument {
    std::string text;
    std::vector<uint32_t> tags; // (bytes) bits, in the order of the names
};
// A file that is none is refused, with its line.
std::vector<TaggedDocument> read_conllu(const std::string& path);
