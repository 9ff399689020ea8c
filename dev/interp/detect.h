// What a unit detects, and whether it is more than the text says. For a unit the property (of the board:
// board_labels.h; of a text: what comes next, text_labels.h) and the threshold (a share of its firings,
// fires.h) that go best with its firing are chosen on one set of games; all numbers are from another. A unit
// is said to
//   read the text   if a rule about the text (rules.h) goes with its firing as well as any property does
//                   (within one standard error, on the train games), and goes with it on the test games, too;
//   know            if a property goes better, and its firing tells of that property beyond the text: among
//                   places that agree in the strata (controls.h), in the answer of the best text rule for the
//                   property and in that of the text rule that fits the unit best, it is on more often where
//                   the property holds, by four standard errors over the witnesses of the test games.
// The comparison is made among such places, and not of a unit's score with the rule's, because a unit of one
// expert fires in a part of the cases: one that is always right and seldom on knows something, and has a low
// score. How many units tell a property better than its best rule does by itself is counted, too (outright).
//
//   1 evidence    2 choosing a unit's property    3 measuring it    4 all units of a layer
#pragma once
#include "fires.h"
#include "rules.h"

// ---------------------------------------------------------------------------------------------------------
// 1 Evidence

// The places of a set of games (blocks of text) at which units and properties are compared: as many of every
// game, one game after the other.
struct Places {
    size_t games = 0, per_game = 0;
    Witnesses witnesses = 0;             // the games, or blocks of them
    Labels properties, questions, rules; // rules: of every property the answers of its best one
    Strata strata;
    std::vector<uint8_t> seen; // the whole text so far stands in a train game; none: not known

    size_t size() const { return games * per_game; }
};
struct Evidence {
    std::vector<Property> properties, questions; // (P), (Q)
    std::vector<Rule> rules;                     // (P) the best rule about the text
    LabelRows rows;                              // the properties of the train games, by place
    Places train, test;
};

// What is given of a set: answers to all properties and questions; what cannot be told from others, or holds
// too seldom in the train games, is left out.
struct Answers {
    Labels properties, questions;
    Strata strata;
    size_t games = 0;
    std::vector<uint8_t> seen = {};
    std::vector<uint32_t> block = {}; // (games) as in controls.h
};
// natural: by property its natural questions (rules.h); or empty.
Evidence make_evidence(const std::vector<Property>& properties, const std::vector<Property>& questions,
                       Answers train, Answers test, const std::vector<std::vector<uint32_t>>& natural = {});

// ---------------------------------------------------------------------------------------------------------
// 2 Choosing a unit's property

struct Choice {
    size_t property = SIZE_MAX, threshold = 0; // SIZE_MAX: none, the unit is on too seldom
    bool negated = false;
    double score = 0,
           error = 0; // the Matthews correlation on the train games and its standard error over witnesses

    bool any() const { return property != SIZE_MAX; }
};

// The properties on the places of a set, with the labels as they are or in another order (controls.h).
struct Truth {
    const Places& places;
    const Order* order;
    std::vector<uint32_t> positives; // (P)
    std::vector<uint16_t> in_game;   // (P,games) places of each where it holds

    Truth(const Places& places, const Order* order);
    bool holds(const Choice& c, size_t n) const {
        return places.properties.at(c.property, order ? (*order)[n] : n) != c.negated;
    }
    std::vector<uint8_t> holds(const Choice& c) const; // (places)
};

// Where a unit is on: (places) 0 or 1, and the list.
struct Firing {
    std::vector<uint8_t> on;
    std::vector<uint32_t> list; // in rising order
    size_t witnesses = 0;       // in which it is on
};
Firing firing_of(const UnitFires& fires, size_t unit, size_t threshold, const Places& places);

Counts count(const Firing& firing, const Choice& c, const Truth& truth);

// The standard error over witnesses of the unit's Matthews correlation with the property.
double mcc_error(const Firing& firing, const Choice& c, const Truth& truth, const Counts& unit);

// Properties that may be a unit's, at the threshold where one of them goes best with it; in falling order of
// the correlation less two standard errors (as if places were independent: that of rare properties is mostly
// chance).
constexpr size_t n_candidates = 4, n_rivals = 4;
struct Candidates {
    std::vector<Choice> best;
    Choice square; // the best of those that ask about a square
};
Candidates choose(const UnitFires& fires, size_t unit, const Evidence& e, const Order* order);

// ---------------------------------------------------------------------------------------------------------
// 3 Measuring it

enum Verdict { NOTHING, READS, KNOWS };
inline constexpr const char* verdict_names[] = {"nothing", "reads", "knows"};

// Chance alone exceeds four standard errors for one unit in 30,000.
constexpr double least_clearance = 4;

struct Finding {
    Choice choice, square;
    std::vector<Choice> rivals; // other properties that go as well with it, within one standard error
    Rule text;                  // the rule about the text that fits its firing best
    Verdict verdict = NOTHING;
    bool outright = false; // tells the property better than its best rule does
    Counts counts;         // on the test games
    Counts fresh;          // .. at places whose text is in no train game; of listed units
    Counts rule;           // the property's best rule in the unit's place
    Counts text_counts;    // how the unit goes with its own rule
    size_t witnesses = 0;  // among the test games, in which it is on
    Excess beyond;         // within the strata and both rules
    Excess reads;          // of the unit's own rule
    // Of listed units:
    Excess matched;              // within the strata alone
    Interval precision, f1, mcc; // 95%, over witnesses

    bool found() const { return verdict == KNOWS; }
    // What is told beyond the text, as the part of the Matthews correlation that it makes up.
    double beyond_mcc() const { return of_mcc(beyond.value); }
    double beyond_error() const { return of_mcc(beyond.error); }
    // F1 expected of the strata alone.
    double matched_f1() const { return Counts{counts.n, counts.on, counts.positives, matched.expected}.f1(); }

  private:
    double of_mcc(double tp) const { return tp * mcc_slopes(counts).tp; }
};

// The unit's firing, the property, and the answers of both rules as strata within the strata.
Excess excess_beyond(const Firing& firing, const Choice& c, const Truth& truth, const Rule& text, bool rules);

// Chooses among the candidates on the train games: of those that tell something beyond the text the one that
// tells most, less two standard errors; if there is none, the one that goes best with the unit.
void settle(Finding& f, const Candidates& candidates, const Firing& firing, const Truth& train);

// On the test games.
void measure(Finding& f, const UnitFires& fires, size_t unit, const Truth& test);

// What a page shows beside: intervals over witnesses, what the strata alone give, what is beyond the text
// where a unit reads it.
void describe(Finding& f, const UnitFires& fires, size_t unit, const Truth& test, uint64_t seed);

// ---------------------------------------------------------------------------------------------------------
// 4 All units of a layer

// units: those wanted. order: null, or whose labels the properties get, on the train and the test games, as a
// control of the whole procedure: how many units know what is another game's?
std::vector<Finding> find(const LayerFires& fires, const std::vector<size_t>& units, const Evidence& e,
                          const Order* orders = nullptr);
