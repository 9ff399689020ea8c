// Concepts for probes and experts: yes-or-no questions about the tokens of documents, whose answers are known
// exactly. A document is a game, or a row of a text; documents are dealt out to three parts, so that what is
// chosen on one and picked on the second is measured on the third.
//
//   chess   the board at the dots before White's moves (boards.h; of questions about squares those answered
//           yes most nearly half of the time), which has the rules of what the text says aloud as rivals
//           (rules.h); and of every character what it is and of what move
//   text    words, numbers, quotes, line starts; the ten text concepts of arXiv 2604.02178; classes of bytes;
//           brackets: how deep, of which kind, which one is closed. Made on bytes and carried to tokens: a
//           token is positive if any of its bytes is. Source code, markup, parts of speech, scripts: by the
//           lexers and lists of language.h, which read whole documents; the kind of a document and its tongue
//           by the rules there, where no sources are given
//   given   where each document of a text comes from; the parts of speech of a treebank; anything else, by
//           token (ConceptInput)
#pragma once
#include "conllu.h"
#include "rows.h"
#include "rules.h"
#include "text_labels.h"

enum Part { TRAIN, VALIDATION, TEST, n_parts };
inline constexpr const char* part_names[] = {"train", "validation", "test"};

struct Concept {
    std::string group, name;
    bool at_dots = false;     // asked at the dots alone
    bool of_document = false; // of whole documents of a text
};

struct Concepts {
    TokenRows rows;                      // a document each
    std::vector<uint8_t> part;           // (documents)
    std::vector<uint32_t> block;         // (documents) what counts as one witness, in rising order
    std::vector<uint8_t> dot;            // (tokens) 1: one of the dots that board concepts are asked at
    std::vector<Concept> list;           // (concepts)
    Labels labels;                       // (concepts, tokens)
    std::vector<std::string> rule;       // (concepts) the rival from the text in words, "" for none
    Labels rule_says;                    // (concepts, tokens) its answers
    std::vector<std::string> left_out;   // asked too seldom, in words
    std::vector<std::string> vocabulary; // (V) the bytes of every token

    size_t documents() const { return rows.rows; }
    size_t document_of(size_t token) const { return token / rows.T; }
    bool asked(size_t c, size_t token) const { return !list[c].at_dots || dot[token]; }
};

// What is asked only if it is answered yes, and no, at so many tokens of every part, in so many documents.
struct EnoughWitnesses {
    size_t tokens = 200, documents = 50;
};

// Half of the blocks train, a quarter each validates and tests.  block (documents) in rising order
std::vector<uint8_t> deal_blocks(const std::vector<uint32_t>& block);
// A text goes on from row to row: the parts are three stretches with a gap of rows between, which are in no
// part (n_parts).
std::vector<uint8_t> deal_stretches(size_t rows);

struct ConceptInput {
    std::string data;      // games, or token shards
    std::string tokenizer; // for GPT-2's tokens
    std::string
        sources;        // a line for each document of one shard, what it is: a document begins at end-of-text
    std::string conllu; // a treebank, in the place of data
    std::string labels; // .npy (tokens or rows x tokens, concepts), 0 or 1
    size_t T = 0, most = 0; // tokens of a row, 0: as long as model and data have them; rows at most
    EnoughWitnesses enough;

    void check() const; // that what is read is given, once
};
// For the model of config c. With sources they are the groups of tokens, too.
Concepts read_concepts(const ConceptInput& in, const Config& c, const std::string& model);

// A new concept, asked of every token, the answers all no. Returns its place.
size_t new_concept(Concepts& out, Concept about);
// Tokens from `first` on have the answers of all their bytes: bit i of a byte is concept `of_bit_0` + i.
// end: of every token, in bytes.
void carry_bits(Concepts& out, size_t of_bit_0, const std::vector<uint32_t>& bits,
                const std::vector<size_t>& end, size_t first);

// Which document each token is of, from 0: one begins at every start token, and where rows do not go on from
// one to the next at every row.
std::vector<size_t> documents_of(const TokenRows& rows, int32_t start, bool goes_on);

// Concepts from the two files. Returns the lines of the first: what each document is.
std::vector<std::string> label_sources(Concepts& out, const std::string& path,
                                       const std::vector<size_t>& document);
void label_given(Concepts& out, const std::string& path);

// The concepts of games, and of a text with a vocabulary of bytes by token, all that there are.
void label_chess_concepts(Concepts& out, const GameSet& games);
void label_text_concepts(Concepts& out, const std::vector<std::string>& vocabulary);
// document: of every token. sources: what each document is, or empty. as_documents: ask also what whole
// documents are; the rows of one are one witness then.
void label_language_concepts(Concepts& out, const std::vector<std::string>& vocabulary,
                             const std::vector<size_t>& document, const std::vector<std::string>& sources,
                             bool as_documents);

// A treebank's documents as rows of T tokens, `most` at most, a start token before each; tags: bits of every
// token, of all its bytes.
TokenRows conllu_rows(const std::vector<TaggedDocument>& documents, const TextTokenizer& tokenizer, size_t T,
                      size_t most, std::vector<uint32_t>& tags);
void label_speech(Concepts& out, const std::vector<uint32_t>& tags);

// Leaves out what is answered too seldom, and what equals a concept before it.
void keep_answerable(Concepts& concepts, const EnoughWitnesses& enough);
