// What an expert takes, in words, without a language model (after "The Expert Strikes Back", arXiv
// 2604.02178, whose labels come from one). A label is a conjunction of up to three literals, each a concept,
// the token here, before or next, or the two tokens that end here, or the negation of one. It is chosen for
// "the token goes to this expert" by balanced accuracy, (true positive rate + true negative rate) / 2: the
// best of each length on train documents by a beam, of these a longer one only if on validation documents it
// is better by `least_gain`.
//
// It is scored by detection, on test documents. A window is `length` tokens of a row with those marked that
// went to some expert. Positives for expert e: its windows, as many from each quarter of them by importance,
// the largest w |y| of its tokens; negatives: as many windows of other experts, with theirs marked. A label
// says yes to a window if it holds at half of the marked tokens or more, weighted by importance. Beside its
// balanced accuracy:
//   token    the rule that knows no more than a table of tokens: those that go to e more often than to others
//   other    the labels of the layer's other experts, on average
//   random   the label found in the same way where tokens of each row go to experts at random
// An expert is named where its label beats all three by `sure` standard errors, over documents.
#pragma once
#include "locality.h"

constexpr size_t most_literals = 3, beam_width = 50, most_train = 1 << 15;
constexpr double least_gain = 0.005, sure = 4;
constexpr size_t n_quarters = 4;

struct LabelOptions {
    size_t length = 32, examples = 100; // of a window; positives, and negatives, of an expert
    uint64_t seed = 1;
};

// Who goes where, and how much of it comes out.
struct RoutedLayer {
    Deal deal;
    std::vector<float> importance; // (tokens,K) w |y|
};

// ---------------------------------------------------------------------------------------------------------
// Labels

struct Literal {
    std::string words, negated;
};
struct Literals {
    std::vector<Literal> list;
    Labels holds; // (literals, tokens)
};
// Of tokens here, before and next, and of endings, the most frequent of the train documents: `most` of each.
Literals expert_literals(const Concepts& concepts, size_t most = 128);

struct Formula {
    std::vector<uint32_t> literals; // 2 i: literal i holds; 2 i + 1: it does not. All of them.
    double train = undefined, validation = undefined; // balanced accuracy

    bool says(const Literals& l, size_t n) const {
        for (const uint32_t i : literals)
            if (l.holds.at(i / 2, n) == bool(i % 2)) return false;
        return true;
    }
    std::string words(const Literals& l) const;
};

// The label of every expert; without literals where it has no tokens in train or validation documents, or
// all.
std::vector<Formula> best_formulas(const Literals& literals, const Concepts& concepts, const Deal& deal,
                                   const LabelOptions& options);

// ---------------------------------------------------------------------------------------------------------
// Windows

struct ExpertWindow {
    size_t first;    // token
    uint16_t marked; // the expert whose tokens are marked
    bool yes;        // it is the one that is asked about
    uint8_t quarter; // of a positive, by rising importance
    uint32_t document;
};

// The windows that expert e is scored on, in a random order; none if there are less than n_quarters
// positives.
std::vector<ExpertWindow> score_windows(const RoutedLayer& layer, const Concepts& concepts, size_t e,
                                        const LabelOptions& options);
// Windows of the expert in train documents, to make a label from: the `count` / 2 of largest importance, and
// as many others.
std::vector<ExpertWindow> explain_windows(const RoutedLayer& layer, const Concepts& concepts, size_t e,
                                          size_t count, const LabelOptions& options);

// What a rule that says yes or no to a token says to a window.
bool window_answer(const RoutedLayer& layer, const ExpertWindow& w, size_t length,
                   const std::function<bool(size_t token)>& rule);

// ---------------------------------------------------------------------------------------------------------
// Scores

// From whether the answer to each window was right.
struct Detection {
    double balanced = undefined, sensitivity = undefined, specificity = undefined, f1 = undefined;
    double error = undefined; // standard error of `balanced`, over documents
    double by_quarter[n_quarters] = {undefined, undefined, undefined, undefined}; // share of positives found
};
// right (windows): from 0 to 1
Detection detection_of(const std::vector<ExpertWindow>& windows, const std::vector<double>& right);

struct ExpertLabel {
    double load = 0; // share of the slots
    Formula formula;
    std::string words; // of it
    Detection own, token, other, random;
    double gain[3] = {undefined, undefined, undefined},
           error[3] = {undefined, undefined, undefined}; // over each
    bool named = false;

    std::string sentence(size_t layer, size_t expert) const;
};
std::vector<ExpertLabel> label_experts(const RoutedLayer& layer, const Literals& literals,
                                       const Concepts& concepts, const LabelOptions& options);

// Which tokens go to expert e more often than to others, as shares of train tokens. (V)
std::vector<uint8_t> token_table(const Deal& deal, const Concepts& concepts, size_t e);
