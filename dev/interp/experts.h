// experts: what decides which expert of a mixture a token goes to. R is the first expert of a token in a
// layer, and then each other in falling order of score; each answer is a share of its entropy H(R),
// I(R; X | token) / H(R), with a 95% interval:
//   the token, and its position in the row (16 bins) beyond it
//   beyond the token: the token before it, the R of the layer below, its group (phase of the game, class of
//   bytes), and for the first expert every concept (concepts.h)
// Beside each concept stands the same with its labels moved within the document (probe.h), n_moved times on
// average: what a label with such a base rate and such runs tells by chance. And how local routing is, beside
// the same with the tokens of each row shuffled (locality.h); how far experts' tokens are from their layer's
// by clusters (specialization.h); what an expert takes, in words (expert_labels.h), and what removing it does
// (expert_effects.h).
#pragma once
#include "expert_effects.h"
#include "expert_windows.h"
#include "information.h"
#include "locality.h"
#include "specialization.h"

constexpr size_t n_moved = 4, position_bins = 16;
inline constexpr size_t window_lengths[] = {4, 16, 64, 256};
constexpr size_t cache_size(size_t E) { return E < 2 ? 1 : E / 2; }

struct ExpertsOptions {
    std::string ckpt, data, tokenizer, sources, conllu, labels, windows, answers, json;
    int64_t rows = 400, seq = 0, least = 200, least_documents = 25, seed = 1, top = 5, length = 32,
            examples = 100, effects = 40;

    void declare(Options& o) {
        o.add(0, "ckpt", "FILE|DIR", &ckpt, "a checkpoint, or the folder of a run for its newest one");
        o.add(0, "data", "GLOB|FILE", &data, "token shards; for chess also games as PGN or game text");
        o.add(0, "rows", "ROWS", &rows, 4, 1 << 24, "documents (games, or rows of a text), at most");
        o.add('t', "seq", "TOKENS", &seq, 0, 1 << 24,
              "tokens of a document (0: as many as model and data have, of a game 256)");
        o.add(0, "least", "N", &least, 1, 1 << 20,
              "a concept needs so many tokens of either answer in train, validation and test");
        o.add(0, "least-documents", "N", &least_documents, 1, 1 << 20, "from so many documents of each");
        o.add(0, "top", "N", &top, 0, 1 << 20, "concepts of a layer to print");
        o.add(0, "window", "TOKENS", &length, 1, 1 << 16, "of a window that labels are scored on");
        o.add(0, "examples", "N", &examples, int64_t(n_quarters), 1 << 16,
              "windows of an expert, and as many of others, to score its label on, at most");
        o.add(0, "effects", "ROWS", &effects, 0, 1 << 24,
              "test documents to switch every expert off on (0: do not)");
        o.add(0, "windows", "FILE", &windows, "writes windows for a language model (dev/interp/ask.py)");
        o.add(0, "answers", "FILE", &answers, "reads and scores its answers to the same windows");
        o.add(0, "sources", "FILE", &sources, "a line for each document of a text: where it comes from");
        o.add(0, "conllu", "FILE", &conllu,
              "a treebank in the place of --data: its text, and the parts of speech it gives");
        o.add(0, "labels", "FILE", &labels, "concepts of your own: .npy (tokens, concepts) of 0 and 1");
        o.add(0, "tokenizer", "FILE", &tokenizer, "GPT-2 only: the file written by data/fineweb.py");
        o.add(0, "seed", "N", &seed, 0, INT64_MAX, "of what is moved and shuffled, and of intervals");
        o.add(0, "json", "FILE", &json,
              "where the numbers go (none: interp/experts.json beside the checkpoint)");
    }
};

struct LayerRouting {
    struct Slot {                   // of the first expert, the second, ..
        double entropy = undefined; // of R, in bits
        Estimate token, position, before, below, group;
    };
    std::vector<Slot> slots; // (K)
    struct ByConcept {
        Estimate alone, beyond; // I(R; concept), I(R; concept | token)
        double moved = undefined;
    };
    std::vector<ByConcept> concepts;
    struct Window {
        size_t m = 0;
        Locality own, shuffled;
        double hits = undefined, hits_shuffled = undefined; // of a cache of half of the experts
        double recent = undefined, frequent = undefined;    // LRU, LFU
    };
    std::vector<Window> windows;
    struct Clustered { // tokens in so many clusters
        size_t clusters = 0;
        Estimate divergence; // over JSD_max, mean over experts
    };
    std::vector<Clustered> clustered;
};

struct ExpertsReport {
    std::string checkpoint, source;
    int64_t step = 0;
    Config config;
    size_t rows = 0, T = 0, cache = 0;
    uint64_t seed = 1;
    size_t top = 0;
    std::vector<Concept> concepts;
    std::vector<LayerRouting> layers;
    LabelOptions label_options;
    std::vector<std::vector<ExpertLabel>> labels;     // (layers, E)
    std::vector<std::vector<LanguageScore>> language; // (layers, E), or none
    std::vector<LayerEffects> effects;                // (layers), or none
    double seconds = 0;
};

struct TokenClusters {
    size_t clusters = 0;
    std::vector<uint32_t> of_token; // (V)
};

// deals: of every layer. moved: of every concept n_moved rows of labels.
LayerRouting layer_routing(const std::vector<Deal>& deals, size_t layer, const Concepts& concepts,
                           const std::vector<Labels>& moved, uint64_t seed,
                           const std::vector<TokenClusters>& clusterings = {});

// Who goes where in every layer on these rows.
std::vector<RoutedLayer> read_routing(Reader& reader, const TokenRows& rows);

ExpertsReport measure_experts(const ExpertsOptions& options, const MakeReader& make_reader);
void print_experts(const ExpertsReport& r);
std::string experts_json(const ExpertsReport& r);
int experts_program(int argc, char** argv, const MakeReader& make_reader);
