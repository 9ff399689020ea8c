// How sparse a model is, and how it shares out its work. Per layer: how many units fire per token (l0), which
// never do, how often each does; per expert its load, which experts are chosen together, how even the choice
// is; and the same apart for the phases of a game or the classes of bytes. A unit fires when its value
// is above zero; a unit of a gelu model that does not fire is seldom zero.
#pragma once
#include "../lib/options.h"
#include "results.h"
#include "rows.h"
#include "statistics.h"

struct SparsityOptions {
    std::string ckpt, data, tokenizer, json;
    int64_t rows = 512, seq = 0;
    static constexpr uint64_t bootstrap_seed = 1;

    void declare(Options& o) {
        o.add(0, "ckpt", "FILE|DIR", &ckpt, "a checkpoint, or the folder of a run for its newest one");
        o.add(0, "data", "GLOB|FILE", &data, "token shards; for chess also games as PGN or game text");
        o.add(0, "rows", "ROWS", &rows, 1, 1 << 30, "rows or games to read, at most");
        o.add('t', "seq", "TOKENS", &seq, 0, 1 << 24,
              "tokens of a row (0: as many as model and data have, of a game 256)");
        o.add(0, "tokenizer", "FILE", &tokenizer,
              "GPT-2 only: the file written by data/fineweb.py, for the classes of bytes");
        o.add(0, "json", "FILE", &json,
              "where the numbers go (none: interp/sparsity.json beside the checkpoint)");
    }
};

// Of one layer: over all tokens, or over those of a group.
struct LayerSparsity {
    size_t tokens = 0;                      // where there are none, the numbers below are undefined
    size_t units = 0;                       // of all experts; dense: of the layer
    size_t work = 0;                        // units computed per token: K*D
    Estimate l0;                            // units firing per token, mean; the interval over rows
    double sd = undefined;                  // of it over tokens
    Histogram histogram{{}};                // of l0 per token
    size_t dead = 0;                        // units that never fire here
    Histogram rates{{}};                    // of the others, by the share of tokens they fire for
    std::vector<double> load, expert_units; // (E) share of the assignments; units firing when chosen
    std::vector<double> together;           // (E,E) share of tokens that chose both; i,i: that chose i
    double entropy = undefined;             // of the load, in bits; log2 E when all experts work alike
    double weight_entropy = undefined;      // of a token's gate weights, in bits, mean; at most log2 K
    std::vector<LayerSparsity> groups;      // the same of every group of tokens, as in Sparsity

    // Of how many units of equal size a token's would be: (sum |v|)^2 / sum v^2, mean over tokens. v is what
    // a unit gives its decoder, w z with the gate weight, whatever its sign. 0 where all are zero.
    double participation = undefined;
    double zero_work = undefined; // share of the units computed that come out zero: of gelu hardly any does
    double largest() const { return load.empty() ? undefined : *std::max_element(load.begin(), load.end()); }
    double smallest() const { return load.empty() ? undefined : *std::min_element(load.begin(), load.end()); }
};

struct Sparsity {
    std::string checkpoint, source;
    int64_t step = 0;
    Config config;
    size_t rows = 0, tokens = 0;
    std::vector<std::string> groups; // their names
    std::vector<LayerSparsity> layers;
    double seconds = 0;
};

// - sum p log2 p, of shares that sum to 1.
template <class T> double entropy_bits(const T* p, size_t n) {
    double bits = 0;
    for (size_t i = 0; i < n; i++)
        if (p[i] > 0) bits -= p[i] * std::log2(double(p[i]));
    return bits;
}

// What is counted on the way, of one layer over the tokens of a group. Whole numbers but for two sums.
struct SparsityCounts {
    std::vector<uint32_t> l0, row; // (tokens) units that fire; which row of the data the token is from
    std::vector<size_t> fired;     // (units) tokens
    std::vector<size_t> chosen;    // (E) tokens
    std::vector<size_t> expert_l0; // (E) units that fired, summed over the tokens that chose it
    std::vector<size_t> together;  // (E,E) tokens
    double weight_entropy = 0;     // summed over tokens
    double participation = 0;      // summed over tokens
    size_t zeros = 0;              // units computed that came out zero

    SparsityCounts(size_t units, size_t E) : fired(units), chosen(E), expert_l0(E), together(E * E) {}
};

// Adds a batch of n tokens, which begins with token `first`. counts: one for each group, the last for the
// tokens of none.
void count_layer(std::vector<SparsityCounts>& counts, const LayerUnits& units, const TokenRows& rows,
                 size_t first, size_t n);

// All groups taken together; the tokens keep the order of their rows.
SparsityCounts sum_of_groups(const std::vector<SparsityCounts>& groups);

// counts of a layer with E experts (dense: 0), K chosen and `work` units computed per token -> its numbers
LayerSparsity layer_sparsity(const SparsityCounts& counts, size_t E, size_t K, size_t work);

// Runs the model of the reader, whose weights are there, over the rows.
std::vector<LayerSparsity> measure_layers_sparsity(Reader& reader, const TokenRows& rows);

Sparsity measure_sparsity(const SparsityOptions& options, const MakeReader& make_reader);

// ---------------------------------------------------------------------------------------------------------
// As a table, as JSON

// A row for every layer: of(layer) is the layer, or one of its groups.
template <class Of> void print_layers(const Sparsity& s, Of of) {
    const Config& c = s.config;
    printf("layer   units    dead     l0 per token, 95%% of the mean       sd  participation   zero work%s\n",
           c.moe() ? "   largest  smallest share   entropy bits" : "");
    for (size_t l = 0; l < s.layers.size(); l++) {
        const LayerSparsity& layer = of(s.layers[l]);
        printf("%-5zu %7zu %7zu   %12.2f  (%.2f to %.2f) %8.2f %14.1f %9.1f%%", l, layer.units, layer.dead,
               layer.l0.value, layer.l0.interval.low, layer.l0.interval.high, layer.sd, layer.participation,
               100 * layer.zero_work);
        if (c.moe())
            printf("   %6.1f%%   %6.1f%%          %.3f of %.3f", 100 * layer.largest(),
                   100 * layer.smallest(), layer.entropy, std::log2(double(c.n_expert)));
        printf("\n");
    }
    if (!c.moe()) return;
    printf("load of the experts, %% of the assignments, and the units that fire when chosen\n");
    for (size_t l = 0; l < s.layers.size(); l++) {
        const LayerSparsity& layer = of(s.layers[l]);
        printf("%-5zu", l);
        for (const double load : layer.load) printf(" %7.1f", 100 * load);
        printf("\n     ");
        for (const double units : layer.expert_units)
            printf(" %7s", std::isnan(units) ? "-" : strf("%.1f", units).c_str());
        printf("\n");
    }
}

void print_sparsity(const Sparsity& s);

JsonWriter& histogram_json(JsonWriter& out, const char* name, const Histogram& histogram);

// The members of an object that is open.
void layer_json(JsonWriter& out, const LayerSparsity& layer, const Config& c);

std::string sparsity_json(const Sparsity& s);

int sparsity_program(int argc, char** argv, const MakeReader& make_reader);
