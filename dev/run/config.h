// What a model is: its sizes and variants, the presets, and what cannot be. The fields stand in one list,
// config_fields, from which checkpoints and their checks follow.
#pragma once
#include "../../data/shard.h"
#include "../../data/tokenizer.h"
#include "../lib/error.h"
#include <cstddef>
#include <map>
#include <string>
#include <vector>

struct Config {
    size_t n_layer = 4, n_head = 4, n_embd = 128; // L, NH, C
    size_t block_size = 256;                      // the most positions it can read (rows of wpe)
    size_t vocab_size = 0;                        // V
    std::string ffn = "moe";                  // moe | dense (one MLP of K*D units) | what is compared with
    size_t n_expert = 8, n_expert_active = 2; // E, K
    size_t d_expert = 256;                    // D, hidden units of one expert
    std::string act = "relu";        // relu | gelu (tanh form); dense only: geglu | solu; Monet's: relu2
    std::string router = "sparsity"; // sparsity (MoE-X) | topk (learned linear router)
    std::string tokenizer = "";      // bytes | chess-32 | gpt2, "" when unstated

    // Not in files of the first release; moe only
    std::string gate = "chosen";        // weights: softmax over the chosen scores | all scores
    std::string balance = "loss";       // loads are evened by a loss | a bias of each expert on the choice
    std::string router_sd = "diagonal"; // sparsity router: diagonal | scaled | full (dev/cpu/router_sd.h)
    size_t unit_top = 0;                // relu: of an expert's units the largest so many stay; 0: all

    // Nor these; Monet and PEER only, else 0 (E and K are 1 there, D Monet's hidden units, PEER's 1)
    size_t n_key = 0;      // Q, sub-keys a side: Q*Q experts
    size_t n_retrieve = 0; // H, heads that retrieve
    size_t n_top = 0;      // k, sub-keys that a head keeps of a side
    size_t d_key = 0;      // PEER: numbers of a query, both sides together
    size_t n_share = 0;    // Monet: layers that share a router

    bool moe() const { return ffn == "moe"; }
    bool dense() const { return ffn == "dense"; }
    bool monet() const { return ffn == "monet-hd" || ffn == "monet-vd"; }
    bool peer() const { return ffn == "peer"; }
    bool relu() const { return act == "relu"; }
    bool geglu() const { return act == "geglu"; }
    bool solu() const { return act == "solu"; }
    bool topk() const { return moe() && router == "topk"; }
    bool gate_all() const { return gate == "all"; }
    bool biased() const { return balance == "bias"; }
    bool scaled() const { return router_sd == "scaled"; }
    bool full() const { return router_sd == "full"; }
    size_t dense_width() const { return n_expert_active * d_expert; }
    // The most units a token can use: hidden units, Monet's experts, PEER's units.
    size_t most_active() const {
        return monet() ? n_retrieve * n_top * n_top : peer() ? n_retrieve * n_top : dense_width();
    }
    bool routes(size_t l) const { return !monet() || l % n_share == 0; } // has layer l a router of its own?
    size_t routers() const { return moe() ? n_layer : monet() ? (n_layer + n_share - 1) / n_share : 0; }
};

// Ids a tokenizer gives out; a model's vocabulary may be larger, not smaller.
size_t tokenizer_vocab(Tokenizer t);

inline const std::vector<std::string> ffn_words = {"moe", "dense", "monet-hd", "monet-vd", "peer"},
                                      act_words = {"relu", "gelu", "geglu", "solu", "relu2"},
                                      router_words = {"sparsity", "topk"}, gate_words = {"chosen", "all"},
                                      balance_words = {"loss", "bias"},
                                      router_sd_words = {"diagonal", "scaled", "full"};

// One field of Config: a size or a word, and the words it may be (none: any). A field that came after the
// first release is optional: it is written to a checkpoint only where it differs from its default, and read
// as the default where it is absent. So older files stay readable, and files that use nothing new stay as
// they were, byte for byte.
// (Types with names: nvcc would put the members in parentheses, and the compiler behind it warn of them.)
using SizeField = size_t Config::*;
using WordField = std::string Config::*;
struct ConfigField {
    const char* name;
    SizeField size; // null: a word
    WordField word;
    std::vector<std::string> words;
    bool optional;

    std::string text(const Config& c) const { return size ? std::to_string(c.*size) : c.*word; }
};

inline const std::vector<ConfigField> config_fields = [] {
    const bool required = false, later = true; // required: of the first release
    auto size = [](const char* name, size_t Config::*field, bool optional) {
        return ConfigField{name, field, nullptr, {}, optional};
    };
    auto word = [](const char* name, std::string Config::*field, const std::vector<std::string>& words,
                   bool optional) {
        return ConfigField{name, nullptr, field, words, optional};
    };
    return std::vector<ConfigField>{
        size("n_layer", &Config::n_layer, required),
        size("n_head", &Config::n_head, required),
        size("n_embd", &Config::n_embd, required),
        size("block_size", &Config::block_size, required),
        size("vocab_size", &Config::vocab_size, required),
        word("ffn", &Config::ffn, ffn_words, required),
        size("n_expert", &Config::n_expert, required),
        size("n_expert_active", &Config::n_expert_active, required),
        size("d_expert", &Config::d_expert, required),
        word("act", &Config::act, act_words, required),
        word("router", &Config::router, router_words, required),
        word("tokenizer", &Config::tokenizer, {}, required),
        word("gate", &Config::gate, gate_words, later),
        word("balance", &Config::balance, balance_words, later),
        word("router_sd", &Config::router_sd, router_sd_words, later),
        size("unit_top", &Config::unit_top, later),
        size("n_key", &Config::n_key, later),
        size("n_retrieve", &Config::n_retrieve, later),
        size("n_top", &Config::n_top, later),
        size("d_key", &Config::d_key, later),
        size("n_share", &Config::n_share, later),
    };
}();

// fields: another list in tests only.
std::map<std::string, std::string> config_to_strings(const Config& config,
                                                     const std::vector<ConfigField>& fields = config_fields);

// Refuses what cannot be, naming `where` (a file or the command line).
void check_config(const Config& c, const std::string& where);

// The field and value of a config that only the reference (dev/cpu) knows, "" if there is none: the GPU
// program refuses such a model by that name.
std::string reference_only(const Config& c);

// where: the file, for messages.
Config config_from_strings(const std::map<std::string, std::string>& strings, const std::string& where,
                           const std::vector<ConfigField>& fields = config_fields);

// E, K and D say how large a mixture of experts is; a model of another kind gets from them the sizes that
// make its active parameters the same, where they are not said (0). So a baseline is compared at equal size
// when only its kind is said.
//   geglu   three matrices instead of two: 2/3 of the units, rounded to a multiple of 8
//   monet   2QmC for the experts, QC for their biases, 2HQC/share for the router: with H 6 and share 4 this
//   is
//           2WC, W = K*D, where Q (m + 2) = W. Q is the largest power of two up to W/8.
//   peer    as many units as the experts have, a square; half of the work in them, half in the queries:
//           H k = W/2, d_key = 2k. (Of the paper itself are H 8, k 16, d_key C/2.)
void take_equal_size(Config& c);

// A preset is a model and the training it was meant for.
struct Preset {
    const char* name;
    Config config;
    size_t batch, rows, steps, warmup; // rows per micro-batch and per step
    double lr;
};

const std::vector<Preset>& presets();
const Preset* find_preset(const std::string& name);
