// features: what single units of a checkpoint detect, measured on games it was not chosen on, and whether
// that is more than rules about the text tell (detect.h); and what else tells about them: the squares that go
// with them, where they fire most strongly, which output tokens they promote, which experts fire with them.
// Of every expert the units that say most go to the JSON, for the report; a page of each of the best is
// printed, and at the end the best of all in a sentence.
//
//   1 one unit: squares, output tokens, contexts, experts (features_unit.cpp)
//   2 what is read (features_material.cpp)
//   3 measuring a checkpoint, the program (features_tool.cpp)
//   4 pages, JSON (features_output.cpp)
#pragma once
#include "../lib/options.h"
#include "board_labels.h"
#include "detect.h"
#include "results.h"
#include "text_labels.h"
#include "unit_effects.h"
#include "unit_pairs.h"

// ---------------------------------------------------------------------------------------------------------
// 1 One unit: squares, output tokens, contexts, experts

constexpr size_t n_contexts = 4, n_output_tokens = 5;

struct FeatureContext {
    std::string text;            // one line; line ends and the like are spelt out
    size_t mark = 0, length = 0; // the characters (code points) that stand for the marked token
    float value = 0;             // the unit there: w_j z_j
    std::string fen, move, last; // chess: the board there, the move that led to it: 4.Qh5, d1h5
};

struct OutputToken {
    std::string text;
    double logit = 0;
};

struct Feature {
    size_t layer = 0, expert = 0, unit = 0;
    float max = 0;   // over all characters of the train games
    double rate = 0; // share of those characters where it fires
    float cut = 0;   // it is on above this value
    Property property;
    Finding finding;
    std::string heat_words;
    std::vector<double> heat; // (64) lift, 1: as often as at the same moves of other games; none for text
    double on_anywhere = 0;   // places of the test games where it is on, per game; not only those tested
    std::vector<FeatureContext> contexts;
    std::vector<OutputToken> promotes, suppresses;
    struct Companion {
        size_t expert;
        double share, base; // of the tokens where the unit is on; of all where its expert works
    };
    std::vector<Companion> with; // other experts
    size_t control = SIZE_MAX;   // the unit of the layer that fires nearest as often at the places
    double control_rate = 0;     // .. the share of them
    UnitEffect effect;           // of the few best units: when it is off

    const std::string& words() const { return property.words[finding.choice.negated]; }
};

// Which squares go with a unit: where a class of a family of squares holds more often, when the unit is on,
// than it does at the same moves of all games,
//   lift(square) = (TP + 1) / (E[TP] + 1)      E[TP] = sum over moves of on * positives / games
// on the test games. The ones keep squares where the class is rare near 1.
std::vector<double> square_lifts(const UnitFires& fires, size_t unit, size_t threshold, size_t first,
                                 size_t stride, const Labels& labels, size_t per_game);

// The direct effect of a unit on the output, per unit of its value. Its decoder row d joins the residual
// stream, which the head reads through ln_f: with the row centred as ln_f does,
//   logit(token) = wte[token] . (ln_f.weight * (d - mean(d))),   less its mean over the vocabulary.
// An approximation: later layers read the row, too; ln_f divides by the spread of the whole stream, a common
// factor that is left out; and the row's own share in that spread is ignored.
std::vector<double> direct_logits(const Config& c, const Parameters<float>& w, size_t layer, size_t unit);

// The tokens with the largest and the smallest logits; of equal ones the lower id.
void add_output_tokens(Feature& f, const std::vector<double>& logits, const std::vector<std::string>& names);

// The strongest places of a unit, one of each game, in falling order; of equal values the earlier game and
// the earlier place.
struct Peak {
    float value;
    size_t game, place;
};
struct Peaks {
    std::vector<Peak> best;
    void add(const Peak& peak) {
        const auto at =
            std::find_if(best.begin(), best.end(), [&](const Peak& p) { return peak.value > p.value; });
        if (at == best.end() && best.size() >= n_contexts) return;
        best.insert(at, peak);
        if (best.size() > n_contexts) best.pop_back();
    }
};

// Looks at the units of a list over a set of games, batch by batch: their peaks, and the experts at work
// where they are on.
struct UnitWatch {
    UnitWatch(const std::vector<Feature>& list, const Reader& reader, bool gated);
    // The batch that the reader holds: B games of T tokens, the first of them number `first`.
    void add(const Reader& reader, size_t first, size_t B, size_t T);
    // What was seen of unit i of the list but its contexts.
    void fill(Feature& f, size_t i) const;
    const std::vector<Peak>& peaks(size_t i) const { return units[i].peaks.best; }

  private:
    struct Watched {
        float cut = 0; // it is on above
        Peaks peaks;
        size_t on = 0;
        std::vector<size_t> experts; // (E) places where it is on and that expert is chosen, too
    };
    void add_layer(const LayerUnits& layer, size_t l, size_t first, size_t B, size_t T);

    bool gated;
    size_t games = 0;
    std::vector<Watched> units;                // as in the list
    std::vector<std::vector<size_t>> of_layer; // (L,units of the layer) place in the list, or SIZE_MAX
    std::vector<std::vector<size_t>> together; // (L,E*E) tokens that go to both experts
};

// A place of a game: some 60 characters before it and 20 behind it, from move to move.
FeatureContext game_context(const std::string& text, size_t place, float value);

inline size_t code_points(const std::string& utf8) {
    return size_t(std::count_if(utf8.begin(), utf8.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

// A place of a row of text: some 60 bytes before it and 20 behind it.
FeatureContext text_context(const int32_t* row, size_t T, size_t place,
                            const std::vector<std::string>& vocabulary, float value);

// ---------------------------------------------------------------------------------------------------------
// 2 What is read

struct UnitName {
    size_t layer, expert, unit;
    auto operator<=>(const UnitName&) const = default;
};

struct FeatureOptions {
    std::string ckpt, games, test_games, data, tokenizer, json, unit;
    int64_t count = 1000, best = 3, per_expert = 12, effects = 5, pairs = 5, seed = 1;
    bool ungated = false;
    std::vector<std::string> units; // more of --unit

    void declare(Options& o) {
        o.add(0, "ckpt", "FILE|DIR", &ckpt, "a checkpoint, or the folder of a run for its newest one");
        o.add(0, "games", "FILE", &games, "chess: games to choose on: PGN, game text, or chess-32 shards");
        o.add(0, "test-games", "FILE", &test_games,
              "games to measure on (none: those of --games, dealt out)");
        o.add(0, "data", "GLOB", &data,
              "text: token shards; the first half to choose on, the last to measure");
        o.add(0, "tokenizer", "FILE", &tokenizer, "GPT-2 only: the file written by data/fineweb.py");
        o.add(0, "count", "GAMES", &count, 2, 1 << 24, "games of each at most; text: rows, up to 64K tokens");
        o.add(0, "unit", "L/E/I,..", &unit, "only these units: layer/expert/unit (dense: layer/unit)");
        o.add(0, "ungated", &ungated, "units without the gate weight of their expert");
        o.add(0, "best", "UNITS", &best, 0, 1 << 20, "units to print, the best of all");
        o.add(0, "per-expert", "UNITS", &per_expert, 1, 1 << 20, "units of every expert in the JSON");
        o.add(0, "effects", "UNITS", &effects, 0, 1 << 20,
              "of so many of the best: what the model loses when the unit is off");
        o.add(0, "pairs", "PAIRS", &pairs, 0, 1000,
              "of so many pairs of units of each layer: what they tell beyond the two apart");
        o.add(0, "seed", "SEED", &seed, 0, INT64_MAX, "of the permutations and the resampling");
        o.add(0, "json", "FILE", &json,
              "where the numbers go (none: interp/features.json beside the checkpoint)");
    }
};

// "2/5/113", of a dense model also "2/113".
UnitName parse_unit(const std::string& text, const Config& c);

// --unit and what follows the options.
std::set<UnitName> parse_units(const FeatureOptions& o, const Config& c);

// Two halves that touch nowhere, for what stands in neighbouring rows is of one scene: the first rows, a gap
// of a twentieth, the last rows. As many rows as needed to a block that counts as one witness.
constexpr size_t least_blocks = 30, most_blocks = 64;
size_t split_rows(const TokenRows& all, TokenRows& train, TokenRows& test);

// What a checkpoint is measured on: games, or rows of text.
struct Material {
    bool chess = false;
    std::string train_name, test_name;
    PlacedRows train, test; // the places of the evidence
    Evidence evidence;
    double seen = 0;                      // share of the test places whose whole text stands in a train game
    std::vector<std::string> token_names; // (V), as they are shown
    // chess:
    std::vector<std::string> test_texts;
    Labels test_boards; // every cell, at the boundaries of the test games
    // text:
    std::vector<std::string> vocabulary; // (V) the bytes of every token

    size_t T() const { return train.rows.T; } // characters of a game, tokens of a row
};

Material read_material(const FeatureOptions& o, const Config& c, const std::string& model);

// ---------------------------------------------------------------------------------------------------------
// 3 Measuring a checkpoint

// How many units of all layers there are of each kind; and since units differ in how often they fire, and
// many tell the same, what part of all firing is theirs and how many properties they know.
struct Census {
    size_t units = 0, tested = 0, knows = 0, outright = 0, reads = 0;
    size_t firing = 0, knows_firing = 0, reads_firing = 0; // test places where units are above zero
    std::set<std::string> known;                           // the properties that any of them knows

    void add(const std::vector<Finding>& findings, const std::vector<size_t>& which, const UnitFires& test,
             const std::vector<Property>& properties);
    double share(size_t of_firing) const { return firing ? double(of_firing) / double(firing) : 0; }
};

struct Features {
    std::string checkpoint, train, test; // files
    int64_t step = 0;
    Config config;
    bool gated = true;
    bool chess = false, own_data = false; // own_data: the model was trained on them
    size_t train_games = 0, test_games = 0, characters = 0, per_game = 0, properties = 0, questions = 0;
    double seen = 0; // share of the test places whose whole text stands in a train game
    uint64_t seed = 0, untrained_seed = 0;
    std::vector<Feature> units; // by layer and expert; what knows most first
    std::vector<size_t>
        ranking; // of units: what knows most first, one of every property before a second of any
    Census trained, untrained, other_labels;     // untrained weights; labels of another game at the same move
    bool all = true;                             // every unit was tested, and the controls were made
    std::vector<std::string> text_words;         // by listed unit: its rule about the text
    std::vector<std::string> rule_words;         // .. and the best one for its property
    std::vector<Property> asked;                 // the properties, in the order of Choice::property
    std::vector<std::vector<PairFinding>> pairs; // (L) those that fire together most often
    double seconds = 0;

    bool any_found() const { return !ranking.empty() && units[ranking[0]].finding.found(); }
    const std::string& words(const Choice& c) const { return asked[c.property].words[c.negated]; }
};

// What knows first, and of those what tells most beyond the text; then what reads, by how well.
bool goes_before(const Finding& a, const Finding& b);

// The best of the list, one of every property (of what reads: rule) before a second of any.
std::vector<size_t> rank_units(const std::vector<Feature>& units);

// All units of a layer, or those wanted.
std::vector<size_t> units_of_layer(const Config& c, size_t layer, const std::set<UnitName>& wanted);

Features measure_features(const FeatureOptions& o, const MakeReader& make_reader);

// ---------------------------------------------------------------------------------------------------------
// 4 Pages, JSON

inline std::string unit_text(const Feature& f, const Config& c) {
    return strf("layer %zu, ", f.layer) + (c.moe() ? strf("expert %zu, ", f.expert) : "") +
           strf("unit %zu", f.unit);
}
// Two digits; three where two would say 1.00 of what is less than 1, and one where they would say 0.00 of
// what is more than 0.
inline std::string share_text(double x) {
    if (x > 0 && x < 0.005) return strf("%.1g", x);
    return x >= 0.995 && x < 1 ? strf("%.3f", std::min(x, 0.999)) : strf("%.2f", x);
}

// The best unit of the run in words, or that there is none.
std::string best_sentence(const Features& features);

// The boards of a page, side by side: where it fires most strongly, and the lift of every square in percent.
std::string boards_text(const Feature& f);

inline std::string change_text(const Estimate& e, int digits) {
    return strf("%+.*f (%+.*f to %+.*f)", digits, e.value, digits, e.interval.low, digits, e.interval.high);
}
inline std::string range_text(Interval i) { return share_text(i.low) + " to " + share_text(i.high); }

// What the model loses without it.
void print_effect(const Feature& f, const Features& features);

void print_finding(const Feature& f, const Features& features, size_t i);

void print_feature(const Features& features, size_t i);

// "12 of 4,000 know, 900 read the text".
std::string census_text(const Census& c);

void census_json(JsonWriter& out, const Census& c);

void print_features(const Features& features, size_t best);

void unit_json(JsonWriter& out, const Features& features, size_t i);

std::string features_json(const Features& features);

int features_program(int argc, char** argv, const MakeReader& make_reader);
