// probe: how well a few units of an expert tell a concept, after "The Expert Strikes Back" (arXiv
// 2604.02178), which finds experts less polysemantic than dense layers by the best of many probes. Its number
// is reported beside what explains it away. Documents are split 50/25/25 into train, validation and test. Per
// concept, layer and expert: the units are standardised on the expert's train tokens, ranked by the
// difference of their class means there, and the first k go into a logistic regression (logistic.h). Then,
// for every k:
//
//   A  the best F1 of all layers and experts, as published: picked on the test tokens themselves
//   B  the F1 on test of the one that is best on validation
//   C  of that one the F1 at equal classes, 2 r / (1 + r + fpr), and the area under the ROC curve
//   D  all experts together: every (token, expert) pair by its own expert's probe, at equal classes, the
//   layer
//      picked on validation; and which share of the positive tokens B's expert gets to see
//   E  A of a dense twin whose units are probed on each expert's tokens: as many cells, the same tokens
//   F  A of the twin on its tokens dealt out at random: as many cells, the same sizes
//   G  A and D at k = 1 with labels shifted within the document (at the dots: those of another game's same
//      dot), n_shifts times: mean and maximum
//   H  F1 of always yes, on B's tokens, and the best of all cells
//   I  what the token alone tells, and token and position; and the best rule about the text where there is
//   one J  A of the twin's random subsets of D units, as many as there are experts, on all tokens
//
// All of it for negatives of the same document (as published), of any documents, and of the same token; E, F
// and J for the first alone. A probe says yes where p >= 1/2, and a table where it has seen as many of both.
// An expert with too few tokens has no probe: in D it answers as most of its train tokens do.
//
//   1 units of a layer    2 samples    3 cells    4 figures    5 the program
#pragma once
#include "concepts.h"
#include "results.h"
#include <array>
#include <optional>

constexpr size_t n_shifts = 20;
enum Negatives { SAME_DOCUMENT, OTHER_DOCUMENTS, SAME_TOKEN, n_negatives };
inline constexpr const char* negatives_names[] = {"same document", "other documents", "same token"};

struct ProbeOptions {
    std::string ckpt, data, twin, tokenizer, sources, conllu, labels, k = "1,2,4,8,16,32,64", layer = "all",
                                                                      json;
    int64_t rows = 800, seq = 0, most = 1000, least = 200, least_documents = 50, seed = 1;
    bool gated = false, raw = false;

    void declare(Options& o) {
        o.add(0, "ckpt", "FILE|DIR", &ckpt, "a checkpoint, or the folder of a run for its newest one");
        o.add(0, "data", "GLOB|FILE", &data, "token shards; for chess also games as PGN or game text");
        o.add(0, "twin", "FILE|DIR", &twin, "a dense model with as many layers, of the same tokenizer");
        o.add(0, "rows", "ROWS", &rows, 4, 1 << 24, "documents (games, or rows of a text), at most");
        o.add('t', "seq", "TOKENS", &seq, 0, 1 << 24,
              "tokens of a document (0: as many as model and data have, of a game 256)");
        o.add(0, "k", "LIST", &k, "units of a probe");
        o.add(0, "layer", "L", &layer, "layer to look at, or all");
        o.add(0, "most", "N", &most, 1, 1 << 20,
              "positive train tokens of a concept, at most; of the others half");
        o.add(0, "least", "N", &least, 1, 1 << 20,
              "a concept needs so many tokens of either answer in train, validation and test");
        o.add(0, "least-documents", "N", &least_documents, 1, 1 << 20, "from so many documents of each");
        o.add(0, "gated", &gated, "units times their expert's gate weight");
        o.add(0, "raw", &raw, "units as they are, not standardised: as published");
        o.add(0, "sources", "FILE", &sources, "a line for each document of a text: where it comes from");
        o.add(0, "conllu", "FILE", &conllu,
              "a treebank in the place of --data: its text, and the parts of speech it gives");
        o.add(0, "labels", "FILE", &labels, "concepts of your own: .npy (tokens, concepts) of 0 and 1");
        o.add(0, "tokenizer", "FILE", &tokenizer, "GPT-2 only: the file written by data/fineweb.py");
        o.add(0, "seed", "N", &seed, 0, INT64_MAX, "of samples, deals and intervals");
        o.add(0, "json", "FILE", &json,
              "where the numbers go (none: interp/probe.json beside the checkpoint)");
    }
};

// ---------------------------------------------------------------------------------------------------------
// 1 Units of a layer

// Which experts a token goes to.
struct Deal {
    size_t E = 1, K = 1;
    std::vector<uint16_t> expert; // (tokens,K)

    bool has(size_t token, size_t e) const {
        const uint16_t* at = expert.data() + token * K;
        return std::find(at, at + K, uint16_t(e)) != at + K;
    }
};

// The units of every token that are not zero.
struct TokenUnits {
    size_t units = 0; // E*D
    std::vector<size_t> begin = {0};
    std::vector<uint32_t> unit;
    std::vector<float> value;
    Deal deal;

    size_t tokens() const { return begin.size() - 1; }
    // Adds the N tokens of a batch.
    void add(const LayerUnits& layer, size_t N, bool gated);
};

// Tokens dealt out anew, as often to each expert as before.
Deal shuffled_deal(const Deal& deal, uint64_t seed);

// ---------------------------------------------------------------------------------------------------------
// 2 Samples

// Tokens of each part and their labels, as many positive as negative, in rising order.
struct ProbeSample {
    std::vector<uint32_t> token[n_parts];
    std::vector<uint8_t> yes[n_parts];
};

// labels: row c of them, which need not be the concepts' own (G).
ProbeSample draw_sample(const Concepts& concepts, size_t c, const Labels& labels, size_t row,
                        Negatives negatives, size_t most, uint64_t seed);

// The labels of a concept, moved (G).
Labels shifted_labels(const Concepts& concepts, size_t c, uint64_t seed);

// ---------------------------------------------------------------------------------------------------------
// 3 Cells: a probe of some units on some tokens

struct Tally {
    double tp = 0, fp = 0, fn = 0, tn = 0;

    void add(bool said, bool is) { (said ? is ? tp : fp : is ? fn : tn)++; }
    void add(const Tally& t, double times = 1) {
        tp += times * t.tp;
        fp += times * t.fp;
        fn += times * t.fn;
        tn += times * t.tn;
    }
    double positives() const { return tp + fn; }
    double n() const { return tp + fp + fn + tn; }
    double f1() const { return positives() + fp > 0 ? 2 * tp / (2 * tp + fp + fn) : 0; }
    double always() const { return n() > 0 ? 2 * positives() / (n() + positives()) : undefined; } // H
    // F1 at equal classes: r the true positive rate, fpr the false one.
    double balanced() const {
        const double r = tp / (tp + fn), fpr = fp / (fp + tn);
        return 2 * r / (1 + r + fpr);
    }
};

// What is probed: cells of a layer, cell e on the tokens that the deal gives to e (all if there is none),
// with the units from e * own on, or those of its subset, or all.
struct CellPlan {
    const TokenUnits* units = nullptr;
    const Deal* deal = nullptr;
    size_t cells = 1, own = 0;                                 // own: units of each cell, 0 for all
    const std::vector<std::vector<uint8_t>>* subset = nullptr; // (cells, units)
};

struct CellResult {
    bool probed = false; // false: too few tokens
    struct AtK {
        Tally validation, test;
        double auroc = undefined;
        double gradient = 0; // where the fit ended
    };
    std::vector<AtK> at;         // (ks)
    std::vector<Tally> by_block; // at the first k, of the test tokens; none if not asked for
};

constexpr size_t least_train = 50, least_other = 20; // tokens of either class that a cell needs

// block (documents): the witness that a test document belongs to, or null.
CellResult probe_cell(const CellPlan& plan, size_t cell, const ProbeSample& sample,
                      const std::vector<size_t>& ks, bool raw, const std::vector<uint32_t>* block = nullptr,
                      size_t T = 1);

// ---------------------------------------------------------------------------------------------------------
// 4 Figures

using ConceptCells = std::vector<std::vector<CellResult>>; // (layers, cells)

struct Figures { // of one model, concept and k
    double A = undefined, B = undefined, C = undefined, auroc = undefined, D = undefined,
           D_validation = undefined;
    double coverage = undefined, always = undefined, always_most = undefined; // of B; H
    size_t layer = 0, cell = 0, pooled_layer = 0;                             // of B; of D
};
// k: its place in the list.  positives: of the sample's test part
Figures figures_of(const ConceptCells& cells, size_t k, double positives);

// I: F1 at equal classes on validation and test of tables learned on train.
struct Rival {
    double token[2] = {undefined, undefined}, position[2] = {undefined, undefined},
           rule[2] = {undefined, undefined};
    double best() const; // on validation
};
Rival rival_of(const Concepts& concepts, size_t c, const ProbeSample& sample);

struct ConceptProbe {
    Concept about;
    std::string rule;
    size_t positives[n_parts] = {};
    struct Variant {        // of negatives
        bool asked = false; // there are enough of them
        Rival rival;
        std::vector<Figures> model, dense; // (ks)
        std::vector<double> E, F, J;       // (ks)
    } variant[n_negatives];
    double shifted_A[2] = {undefined, undefined}, shifted_D[2] = {undefined, undefined}; // mean, maximum
    bool counts = false; // it is told better than by I
};

struct ProbeReport {
    std::string checkpoint, twin, source;
    int64_t step = 0;
    Config config;
    size_t rows = 0, T = 0, documents[n_parts] = {};
    std::vector<size_t> ks, layers;
    uint64_t seed = 1;
    bool gated = false, raw = false;
    std::vector<ConceptProbe> concepts;
    std::vector<std::string> left_out;
    size_t counted = 0;          // concepts told better than by I
    Estimate beyond_E, beyond_D; // at the first k: mean of A_model - E and D_model - D_dense over them
    double seconds = 0;

    std::string sentence() const;
};

// ---------------------------------------------------------------------------------------------------------
// 5 The program

ProbeReport measure_probe(const ProbeOptions& options, const MakeReader& make_reader);
void print_probe(const ProbeReport& r);
std::string probe_json(const ProbeReport& r);
// Several checkpoints, as seeds of one model: their figures, means, and half of the 95% t interval; over the
// concepts that all of them were asked. "" where there is no such concept.
std::string probes_side_by_side(const std::vector<ProbeReport>& reports);
int probe_program(int argc, char** argv, const MakeReader& make_reader);
