// Does the router know? Its score g rises as mu/sd falls, that is, as the share of an expert's units falls
// that would fire if the rows of its encoder were Gaussian. Here all experts are run on a sample of tokens
// and counted. Per layer:
//   correlation   of g with the true l0 of the experts, within tokens and over all (the paper, arXiv
//                 2503.07639, says below -0.95)
//   choice        how many of the chosen K are among the K truly sparsest; how many units that costs
//   calibration   the predicted count D Phi(mu/sd) against the true one
//   Gaussian?     skew, kurtosis and Kolmogorov-Smirnov distance of W_enc x + b_enc over the units of an
//                 expert at inputs x that tokens really have, for every checkpoint of a run
//   encoder rows  in two dimensions (principal components), for the eye
// A topk router has its logits in the place of g; what sparsity routing would have done stands beside it.
#pragma once
#include "../cpu/moe.h"
#include "principal_components.h"
#include "sparsity.h"

struct RouterOptions {
    std::string ckpt, data, json;
    int64_t rows = 256, seq = 0, tokens = 16384, history = 20;
    static constexpr uint64_t bootstrap_seed = 1, gaussian_seed = 1;

    void declare(Options& o) {
        o.add(0, "ckpt", "FILE|DIR", &ckpt,
              "a checkpoint; or the folder of a run for its newest one, and its history");
        o.add(0, "data", "GLOB|FILE", &data, "token shards; for chess also games as PGN or game text");
        o.add(0, "rows", "ROWS", &rows, 1, 1 << 30, "rows or games to read, at most");
        o.add('t', "seq", "TOKENS", &seq, 0, 1 << 24,
              "tokens of a row (0: as many as model and data have, of a game 256)");
        o.add(0, "tokens", "TOKENS", &tokens, 1, 1 << 24, "tokens among them to run all experts on, about");
        o.add(0, "history", "N", &history, 0, 1 << 20,
              "checkpoints of the folder to check for Gaussian rows, at most");
        o.add(0, "json", "FILE", &json,
              "where the numbers go (none: interp/router.json beside the checkpoint)");
    }
};

// ---------------------------------------------------------------------------------------------------------
// The sample: what the router said of every expert, and what is true

struct ExpertSample { // of one layer, S tokens
    size_t S = 0, E = 0, K = 0, D = 0;
    std::vector<uint32_t> row;     // (S) which row of the data the token is from
    std::vector<float> g;          // (S,E) the score that chose
    std::vector<float> sparsity_g; // (S,E) -erf(mu / (sqrt(2) sd)); the same as g unless topk
    std::vector<float> predicted;  // (S,E) D Phi(mu/sd)
    std::vector<float> actual;     // (S,E) units with W_enc x + b_enc > 0
    // Shape of W_enc x + b_enc over an expert's D units, for some of the tokens: sums over them.
    struct Shape {
        size_t n = 0;
        double skew = 0, skew_squared = 0, kurtosis = 0;
        double ks = 0;        // distance from N(mu, sd), as the router assumes
        double ks_fitted = 0; // from N with the mean and the sd that the values have
        double sd_ratio = 0;  // the sd they have, in units of the router's
        void add(const Shape& s) {
            n += s.n;
            skew += s.skew;
            skew_squared += s.skew_squared;
            kurtosis += s.kurtosis;
            ks += s.ks;
            ks_fitted += s.ks_fitted;
            sd_ratio += s.sd_ratio;
        }
    };
    std::vector<Shape> shape; // (E)
};

// The values h (D) of one expert at one token; h is sorted.
ExpertSample::Shape shape_of(float* h, size_t D, double mu, double sd);

// What shape_of gives when the D values are drawn from N(0,1), mu being their mean, as the router's is: the
// mean of 1000 seeded draws.
ExpertSample::Shape gaussian_shape(size_t D);

// The router's statistics of a layer's encoder (dev/cpu/moe.h).
struct EncoderStatistics {
    std::vector<float> m, v, mb, vb; // (E,C) (E,C) (E) (E)

    EncoderStatistics(const float* w_enc, const float* b_enc, size_t E, size_t D, size_t C)
        : m(E * C), v(E * C), mb(E), vb(E) {
        expert_statistics_forward(m.data(), v.data(), mb.data(), vb.data(), w_enc, b_enc, E, D, C);
    }
};

struct SampledTokens {           // of a batch
    std::vector<int32_t> number; // in the batch
    std::vector<uint32_t> row;   // of the data
    std::vector<uint8_t> shape;  // 1: the shape, too
};

// Adds tokens of a batch.  w_enc (E,D,C), b_enc (E,D)
void add_to_sample(ExpertSample& sample, const LayerUnits& units, const SampledTokens& tokens,
                   const float* w_enc, const float* b_enc, const EncoderStatistics& statistics, size_t C);

// About `tokens` tokens of the rows, evenly spread, run through the reader's model and then through all
// experts of every layer; the shape for about `shapes` of them.
std::vector<ExpertSample> sample_experts(Reader& reader, const TokenRows& rows, size_t tokens, size_t shapes,
                                         const char* label);

// ---------------------------------------------------------------------------------------------------------
// What follows from it

struct Correlation {
    Estimate within;  // mean over tokens of the correlation over a token's experts
    Estimate overall; // over all pairs of token and expert
};

struct RouterTruth {
    Correlation pearson, spearman; // of the score with the true count
    Estimate agreement;            // share of the chosen that are among the K sparsest (ties are)
    double chance = undefined;     // that share for K experts chosen at random
    Estimate regret;               // units firing in the chosen K beyond those in the K sparsest, per token
    double random_regret = undefined; // the same for K experts chosen at random
};

// How a router of these scores (S,E) does on the sample. The K of highest score are chosen, as the model
// does.
RouterTruth router_truth(const ExpertSample& s, const std::vector<float>& score);

// The predicted count beside the true one, over all pairs of token and expert: in bins of equally many pairs
// by the prediction, and the error predicted - actual.
struct Calibration {
    std::vector<double> predicted, actual; // (bins) means
    std::vector<size_t> count;             // (bins) pairs
    double rmse = undefined, bias = undefined;
    double chosen_bias = undefined; // mean error over the pairs the router chose
};
Calibration calibrate(const ExpertSample& s, size_t bins = 20);

// ---------------------------------------------------------------------------------------------------------
// The whole of it

struct LayerRouter {
    RouterTruth truth;    // of the router the model has
    RouterTruth sparsity; // topk: of the scores that sparsity routing would have given
    Calibration calibration;
    std::vector<ExpertSample::Shape> shape; // (E)
    struct Point {
        float g, l0;
        size_t expert;
    };
    std::vector<Point> scatter;
    double explained[2];
    struct Row {
        int x, y; // thousandths of the largest coordinate of the layer
        size_t expert;
    };
    std::vector<Row> encoder_rows;
};

struct CheckpointShape { // of one checkpoint
    int64_t step = 0;
    bool untrained = false;
    std::vector<ExpertSample::Shape> layers; // (L) over experts and tokens
    std::vector<double> pearson_within;      // (L) of the score with the true count
    // (L) the experts' own sd ratios lie between; the order of the scores stands only where they are alike
    std::vector<Interval> sd_ratios;
};

struct RouterReport {
    std::string checkpoint, source;
    int64_t step = 0;
    Config config;
    uint64_t untrained_seed = 1;
    size_t rows = 0, tokens = 0, shape_tokens = 0;
    ExpertSample::Shape gaussian; // what Gaussian rows would give
    std::vector<LayerRouter> layers;
    std::vector<CheckpointShape> history; // untrained first, then by step
    std::vector<std::string> passed_over; // checkpoints that the history lacks, and why
    double seconds = 0;
};

constexpr size_t scatter_points = 1500, encoder_points = 2048, shape_tokens = 512, history_rows = 64;

LayerRouter layer_router(const ExpertSample& s, bool topk, const float* w_enc, size_t C);

CheckpointShape checkpoint_shape(const std::vector<ExpertSample>& samples, int64_t step, bool untrained);

// The steps to show of those there are: all, or `most` of them evenly spaced with the last among them.
std::vector<int64_t> history_steps(std::vector<int64_t> steps, size_t most);

RouterReport measure_router(const RouterOptions& options, const MakeReader& make_reader);

// ---------------------------------------------------------------------------------------------------------
// As a table, as JSON

void print_truth(const char* name, const RouterTruth& t);

void print_router(const RouterReport& r);

void truth_json(JsonWriter& out, const RouterTruth& t);
void shape_json(JsonWriter& out, const ExpertSample::Shape& s);

std::string router_json(const RouterReport& r);

int router_program(int argc, char** argv, const MakeReader& make_reader);
