// The best that the text says about a property: of all questions about the text (chess_text.h, text_labels.h)
// the one, or the two put together by and / or, whose answer goes best with it. Rules are chosen on the train
// games, as units are, from thousands of questions, and measured on the test games like them. So a unit that
// tells what a piece of text tells has a rival that says so.
//
// Two questions a and b divide the places into four cells. A rule says yes in one of them (a and b, each as
// it is or negated) or in three (a or b). Of each target's best single questions every partner is tried.
//
// Of thousands of rules some fit the few places of a rare property by chance, and tell nothing of it
// elsewhere. So a rule is charged for the number of those it was picked from, log(number) / (3 places), as if
// every place put right were worth three nats: least where the question is a natural one (what was written
// about this piece and this square; of those by its place in their list, the plainest first), more for any
// question, most for a pair.
#pragma once
#include "controls.h"

struct Rule {
    uint32_t a = UINT32_MAX, b = UINT32_MAX; // questions; a single one has b = a
    uint8_t yes = 0; // bit 2 A + B: the rule says yes where a answers A and b answers B
    double score = 0;

    bool any() const { return a != UINT32_MAX; }
    bool single() const { return a == b; }
    bool says(const Labels& questions, size_t n) const {
        return any() && (yes >> (2 * questions.at(a, n) + questions.at(b, n)) & 1);
    }
    std::vector<uint8_t> answers(const Labels& questions) const; // (places) 0 or 1
};

// "White's last move gave check", "it is move 5 or later or White has castled".
std::string rule_text(const Rule& r, const std::vector<Property>& questions);

// The answers of a rule at every place of the questions.
void add_rule(const Rule& r, const Labels& questions, Labels& out, size_t row);
Labels rule_labels(const std::vector<Rule>& rules, const Labels& questions);

// What a rule is charged that was picked from so many, for a target of `positives` of n places.
inline double rule_charge(size_t picked_from, double n, double positives) {
    return std::log(double(picked_from)) / (3 * std::max(1.0, std::min(positives, n - positives)));
}

// The best rule for every target, a list of places in rising order (where a property holds, where a unit is
// on). score: of a rule's counts, higher is better, 0 says nothing (mcc_of, f1_of). natural: by target its
// natural questions, the plainest first; may be empty. Of equal scores the earlier questions, and the single
// one.
std::vector<Rule> best_rules(const Labels& questions, const std::vector<std::vector<uint32_t>>& targets,
                             double (*score)(const Counts&),
                             const std::vector<std::vector<uint32_t>>& natural = {});

// Where a cell of labels holds, as a target.
std::vector<uint32_t> places_where(const Labels& labels, size_t cell);
