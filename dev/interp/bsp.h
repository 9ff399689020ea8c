// bsp: what the units of a model know about the board. For every layer coverage and reconstruction of the
// board functions (boards.h, score.h), on the games that units were chosen on, as the field reports them, and
// on held-out games; and beyond the text: what units have more than rules that read the text and know no
// chess (rules.h, score.h). Each stands beside what costs nothing: a unit that is always on, the untrained
// weights, labels permuted over all positions, labels of another game at the same move, the matched null
// (controls.h). Features made elsewhere (an SAE's, say) are measured by the same ruler when they come as .npy
// files.
//
//   1 options                          4 the model, the program (bsp_tool.cpp)
//   2 the ruler (bsp_ruler.cpp)        5 tables, JSON (bsp_output.cpp)
//   3 a layer (bsp_layer.cpp)
#pragma once
#include "../lib/options.h"
#include "labels_csv.h"
#include "npy.h"
#include "results.h"
#include "rules.h"
#include "score.h"
#include <optional>

// ---------------------------------------------------------------------------------------------------------
// 1 Options

struct BspOptions {
    std::string ckpt, games, test_games, layer = "all", functions = "default";
    std::string sae, features, activations, test_activations, labels, write_games, json;
    int64_t count = 1000, untrained_seed = -1, seed = 1, subset = 0, draws = 20;
    bool ungated = false, split = false;
    size_t characters = 256, dots = 20; // of each game

    void declare(Options& o) {
        o.add(0, "ckpt", "FILE|DIR", &ckpt, "a checkpoint, or the folder of a run for its newest one");
        o.add(0, "games", "FILE", &games,
              "games of 256 characters or more: PGN, game text, or chess-32 shards");
        o.add(0, "test-games", "FILE", &test_games, "held-out games (none: --games are dealt out in turn)");
        o.add(0, "count", "GAMES", &count, 2, 1 << 20, "games of each of the two sets, at most");
        o.add(0, "layer", "N|all", &layer, "the layer to measure");
        o.add(0, "sae", "FILE|DIR", &sae,
              "the latents of sparse autoencoders of train_sae, instead of units");
        o.add(0, "features", "NAME", &features,
              "what is taken for a unit, where a layer has several kinds (none: its first; another one says "
              "which)");
        o.add(0, "split-signs", &split, "every unit as two: its positive and its negative values");
        o.add(0, "subset", "F", &subset, 0, 1 << 24,
              "also the scores of F units, drawn among the alive ones: to compare layers of unequal size");
        o.add(0, "draws", "N", &draws, 1, 1000, "of --subset");
        o.add(0, "ungated", &ungated, "units without the gate weight of their expert");
        o.add(0, "functions", &functions, {"default", "all"}, "board functions: the field's 23, or ours too");
        o.add(0, "untrained-seed", "SEED", &untrained_seed, -1, INT64_MAX,
              "of the untrained weights (-1: the run's own, else 1)");
        o.add(0, "seed", "SEED", &seed, 0, INT64_MAX, "of permutations and resamples");
        o.add(0, "json", "FILE", &json, "where the numbers go (none: interp/bsp.json beside the checkpoint)");
        o.section("Features made elsewhere, instead of --ckpt:");
        o.add(0, "activations", "FILE.npy", &activations,
              "float32 (games, characters, features) of the train games");
        o.add(0, "test-activations", "FILE.npy", &test_activations, "the same of the held-out games");
        o.add(0, "write-games", "DIR", &write_games,
              "write the fit games, in order, to train.txt and test.txt there, and end");
        o.section("Labels alone:");
        o.add(0, "labels", "FILE|-", &labels,
              "write the board functions of every position of --games as CSV, and end");
    }
};

// ---------------------------------------------------------------------------------------------------------
// 2 The ruler: games, labels, and what the text says

// What the same search comes to where there is nothing to find, or for the text's rules.
struct BspControl {
    double coverage = undefined, held_out = undefined, rec_published = undefined;
    double beyond = undefined, rec_beyond = undefined; // beyond the text (score.h)
};

// The text's rules, measured as a layer whose units they are.
struct TextRival {
    std::vector<Property> questions; // of the units; behind them the pairs
    std::vector<Rule> rules;         // (units)
    Selection chosen;                // of the train games: the best rule of every column, at threshold 0
    std::vector<HeldOut> held_out;   // by function
    std::vector<BspControl> scores;  // by function

    std::string words(size_t column) const { // of a column's best rule
        return chosen.f1[column] > 0 ? rule_text(rules[chosen.unit[column]], questions) : "nothing";
    }
};

struct Ruler {
    GameSplit games;
    std::vector<FunctionColumns> functions;
    LabelRows columns; // of the train games
    TruthRows train, test;
    std::vector<uint32_t> open[2];   // (functions,games) true cells that the text leaves open: train, test
    Order permuted[2], same_move[2]; // of the train and the test games
    Strata strata;                   // of the test games
    std::vector<uint8_t> seen;       // (test dots) the whole text so far stands in a train game
    std::vector<uint8_t> common;     // (columns) 20 dots or more from 10 games or more, in both sets
    std::vector<uint8_t> in_test;    // (columns) holds somewhere in the test games
    TextRival text;
    size_t board = 0;             // place of the headline function in functions
    std::vector<size_t> strategy; // places of the 14
};

// True cells by function and game, less those that the text says.
std::vector<uint32_t> open_positives(const TruthRows& truth, const std::vector<FunctionColumns>& functions);

// Chooses the text's rules on the train games: for every column the best question or pair of them, by F1.
void add_text_rival(Ruler& ruler, const Labels& train_labels);

Ruler make_ruler(GameSplit games, bool all_functions, uint64_t seed);

// ---------------------------------------------------------------------------------------------------------
// 3 A layer

// Of a function, or the mean over a group's.
struct BspScore {
    double coverage = undefined, per_cell = undefined, of_704 = undefined;
    double rec_published = undefined, rec_max_mask = undefined;
    int threshold = -1, rec_threshold = -1;       // indices; a group has none
    double held_out = undefined, rec = undefined; // all choices made on the train games
    double unseen = undefined; // held out, without dots whose whole text stands in a train game
    double common = undefined, text_common = undefined; // held out, over cells that are not rare; the text's
    double matched = undefined; // held out: expected of clock and last move (controls.h)
    double gain = undefined;    // over the text, on the train games: by it a layer is chosen
    double beyond = undefined, rec_beyond = undefined; // beyond the text (score.h), held out
    Interval held_out_interval, rec_interval, beyond_interval, rec_beyond_interval;
    std::vector<size_t> above, above_threshold; // (11) as in Coverage; a group has none
    BspControl untrained, permuted, same_move, text;
};
// The scores of some units, drawn several times.
struct SubsetScores {
    size_t units = 0;                        // of a draw: as many as asked for, or all that are alive
    std::vector<BspControl> board, strategy; // by draw
};
struct LayerBsp {
    size_t layer = 0, units = 0, alive = 0;
    double active[n_thresholds] = {}; // units on per dot
    BspScore board, strategy;
    std::vector<BspScore> functions;
    SubsetScores subset; // --subset; else empty
};

// The numbers of every function, for other weights or, with orders (train, test), for other labels. The
// reconstruction beyond the text is that of the threshold best for it on the test games: more than is fair.
std::vector<BspControl> control_scores(const LayerFires& fires, const Ruler& ruler,
                                       const Order* orders = nullptr);

// The mean of a number over the strategy functions.
template <class Value> double strategy_mean(const Ruler& ruler, Value value) {
    double sum = 0;
    for (const size_t f : ruler.strategy) sum += value(f);
    return sum / double(ruler.strategy.size());
}

BspControl strategy_control(const Ruler& ruler, const std::vector<BspControl>& of);

// The mean over the columns that are not rare, undefined if all are.
double common_mean(const std::vector<double>& f1, const Ruler& ruler, const FunctionColumns& columns);

LayerBsp measure_layer(const LayerFires& fires, const Ruler& ruler, uint64_t seed);

// Units drawn without replacement among those that are alive in the train games, in rising order; all of them
// if there are not so many.
std::vector<uint32_t> drawn_units(const LayerFires& fires, size_t units, uint64_t seed, size_t draw);

// Coverage takes the best of all units, so it grows with their number even where there is nothing to know:
// the scores of a part of them.
SubsetScores measure_subset(const LayerFires& fires, const Ruler& ruler, size_t units, size_t draws,
                            uint64_t seed);

// The untrained weights' numbers, beside a layer's.
void add_untrained(LayerBsp& layer, const std::vector<BspControl>& of, const Ruler& ruler);

// ---------------------------------------------------------------------------------------------------------
// 4 The model

struct BspFunction {
    size_t function, positives[2];      // true cells at the dots of the train and the test games
    double floor, floor_test;           // the coverage of a unit that is always on, on either set
    double attainable, attainable_test; // the most that coverage can be: the share of cells that hold in the
                                        // train games; held out: and in the test games, too
    size_t common;                      // cells that are not rare
    std::string text_rule;              // of a function of one cell: the best that the text says
};
struct Bsp {
    std::string checkpoint, activations; // one of them
    std::string sae;                     // of the checkpoint, or none
    std::string features;                // the kind of units
    bool split = false;
    int64_t step = -1;
    Config config;
    double seconds = 0, board_floor = undefined, strategy_floor = undefined;
    double board_floor_test = undefined, strategy_floor_test = undefined;
    double seen = 0;        // share of the test dots whose whole text stands in a train game
    bool own_games = false; // the games are those that the run was trained on
    std::string json_name;  // of the file beside the checkpoint
    GameSplit games;
    bool gated = true;
    uint64_t untrained_seed = 0, seed = 0;
    std::vector<BspFunction> functions;
    std::vector<LayerBsp> layers;

    // The layer that gains most over the text on the train games; by it all is reported.
    const LayerBsp& best_layer() const {
        return *std::max_element(layers.begin(), layers.end(), [](const LayerBsp& a, const LayerBsp& b) {
            return std::pair(a.board.gain, a.board.coverage) < std::pair(b.board.gain, b.board.coverage);
        });
    }
};

GameSplit bsp_games(const BspOptions& options);

// A model that reads games: chess-32 tokens, and enough of them.
void check_chess_model(const Config& c, const std::string& path, size_t characters);

// (games, characters, features) of a set of games.
NpyArray read_activations(const std::string& path, const GameSet& games);

// bsp, and what is other than in a whole measurement: a part has a file of its own.
std::string bsp_json_name(const BspOptions& options);

// Sparse autoencoders of a checkpoint, for a program that can run them (sae/sae_file.h): latents in the place
// of units.
struct SaeViews {
    std::vector<size_t> layers;  // that have one, in rising order
    int64_t untrained_seed = -1; // of the weights they were trained on; -1: the checkpoint's
    // A reader whose layers show latents; untrained: as many of random directions.
    std::function<Reader(const Reader& reader, bool untrained, uint64_t seed)> reader;
};
using OpenSaes =
    std::function<SaeViews(const std::string& path, const std::string& checkpoint, const Config& config)>;

Bsp measure_bsp(const BspOptions& options, const MakeReader& make_reader,
                const OpenSaes& open_saes = nullptr);

// ---------------------------------------------------------------------------------------------------------
// 5 Table, JSON, program

struct ScoreRow {
    std::string name;
    const BspScore* score;
    double floor_test; // held-out coverage of a unit that is always on
};

// A number of three digits, or "-" where there is none.
inline std::string digits(double x) { return std::isnan(x) ? "-" : strf("%.3f", x); }
inline std::string interval_text(const Interval& i) {
    return std::isnan(i.low) ? "-" : strf("%.3f-%.3f", i.low, i.high);
}
inline std::string threshold_text(int t) { return t < 0 ? "" : strf("%.1f", double(threshold(size_t(t)))); }

// A column of a table: its heads (two lines) and what it says of a row.
struct BspColumn {
    const char *group, *head;
    std::function<std::string(const ScoreRow&)> text;
};
void print_scores(const char* title, const std::vector<ScoreRow>& rows,
                  const std::vector<BspColumn>& columns);
void print_coverage(const char* title, const std::vector<ScoreRow>& rows);
void print_reconstruction(const char* title, const std::vector<ScoreRow>& rows);

// Board coverage counted in other ways.
void print_other_coverages(const Bsp& bsp, const BspFunction& board, double all);

void print_subsets(const Bsp& bsp);

void print_bsp(const Bsp& bsp);

void score_json(JsonWriter& out, const BspScore& s);

std::string bsp_json(const Bsp& bsp);

// The games of a set, one per line: game text that --games reads.
void write_games(const std::string& path, const GameSet& games);

// The CSV of --labels to a file, which is there whole or not at all, or to stdout.
void labels_to(const std::string& path, const std::string& games);

// The program; make_reader runs the model, on the CPU or the GPU.
int bsp_program(int argc, char** argv, const MakeReader& make_reader, const OpenSaes& open_saes = nullptr);
