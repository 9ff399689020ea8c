// evaluate --text: perplexity as the field counts it, on documents that data/text_eval.py wrote. LL is the
// sum of log p of a document's target tokens, in double; sums over documents before anything is divided:
//   token perplexity   exp(-LL / tokens)        byte perplexity   exp(-LL / bytes)
//   word perplexity    exp(-LL / words)         bits per byte     -LL / (bytes ln 2)
// words and bytes are those of the original text: for one model and text a token's, a word's and a byte's
// perplexity are different numbers, and each is printed by its name.
//
// What a token is predicted from. A document without a context is read in windows of T tokens: the first
// begins with end-of-text and scores all of them, each later one ends `stride` tokens further on and scores
// only those, with as many tokens before them as fit (stride 0: T, windows that score what they hold; the
// last is filled up with what came before). A document with a context (LAMBADA) is the last T tokens before
// its end in one window, and end-of-text does not stand before it:
//   accuracy            share of documents of which every target token is the most probable
//   target perplexity   exp(-mean over documents of LL)
// Intervals are over documents.
#pragma once
#include "../run/checkpoint.h"
#include "../run/routing.h"
#include "statistics.h"
#include <string>
#include <vector>

struct TextDocument {
    size_t begin = 0; // of the shard: where end-of-text stands; context and target follow
    size_t context = 0, target = 0;
    double words = 0, bytes = 0;
};

// What a model reads at once: `length` tokens of the shard from `first` on, of which the last `scored` are
// predicted from, each its successor.
struct TextWindow {
    size_t first, length, scored;
};
// Refuses a target that does not fit behind a context. stride: 1 to T, 0 for T.
std::vector<TextWindow> text_windows(const TextDocument& d, size_t T, size_t stride,
                                     const std::string& where);

struct DocumentScore {
    double log_p = 0;  // LL
    bool exact = true; // every token was the most probable
};

struct TextScores {
    bool with_context = false; // of all documents, or of none
    size_t documents = 0, tokens = 0, T = 0, stride = 0;
    double words = 0, bytes = 0;
    Estimate token_perplexity, word_perplexity, byte_perplexity, bits_per_byte; // without context
    Estimate accuracy, target_perplexity;                                       // with one
};
TextScores text_scores(const std::vector<TextDocument>& documents, const std::vector<DocumentScore>& scores,
                       uint64_t seed);

// The documents of NAME.spans.jsonl, of a shard of so many tokens.
std::vector<TextDocument> read_text_documents(const std::string& path, size_t tokens);

struct TextOptions {
    std::string spans;        // NAME.spans.jsonl; NAME.bin lies beside it
    size_t T = 0, stride = 0; // 0: as many as the model has; as many as T
    Intervention changes = {};
};
TextScores evaluate_text(const SafeTensorsFile& file, const Config& config, const TextOptions& options);
void print_text_scores(const TextScores& s, const std::string& checkpoint, const std::string& spans);
std::string text_scores_json(const TextScores& s, const SafeTensorsFile& file, const Config& config,
                             const std::string& spans, double seconds);
