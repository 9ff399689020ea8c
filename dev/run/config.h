// What a model is: its sizes and variants, the presets, and what cannot be. The fields stand in one list,
// config_fields(), from which checkpoints, printing and comparison follow.
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
    std::string ffn = "moe";                      // moe | dense (one MLP of K*D units)
    size_t n_expert = 8, n_expert_active = 2;     // E, K
    size_t d_expert = 256;                        // D, hidden units of one expert
    std::string act = "relu";                     // relu | gelu (tanh form)
    std::string router = "sparsity";              // sparsity (MoE-X) | topk (learned linear router)
    std::string tokenizer = "";                   // bytes | chess-32 | gpt2, "" when unstated

    bool moe() const { return ffn == "moe"; }
    bool relu() const { return act == "relu"; }
    bool topk() const { return moe() && router == "topk"; }
    size_t dense_width() const { return n_expert_active * d_expert; }
};

// Ids a tokenizer gives out; a model's vocabulary may be larger, not smaller.
inline size_t tokenizer_vocab(Tokenizer t) {
    return t == TOKENIZER_GPT2 ? 50257 : t == TOKENIZER_BYTES ? 257 : 32;
}

inline const std::vector<std::string> ffn_words = {"moe", "dense"}, act_words = {"relu", "gelu"},
                                      router_words = {"sparsity", "topk"};

// Visits every field: size(name, size_t&) or word(name, std::string&, allowed words; none: any).
template <class ConfigType, class Size, class Word> void config_fields(ConfigType& c, Size size, Word word) {
    size("n_layer", c.n_layer);
    size("n_head", c.n_head);
    size("n_embd", c.n_embd);
    size("block_size", c.block_size);
    size("vocab_size", c.vocab_size);
    word("ffn", c.ffn, ffn_words);
    size("n_expert", c.n_expert);
    size("n_expert_active", c.n_expert_active);
    size("d_expert", c.d_expert);
    word("act", c.act, act_words);
    word("router", c.router, router_words);
    word("tokenizer", c.tokenizer, {});
}

inline std::map<std::string, std::string> config_to_strings(const Config& config) {
    std::map<std::string, std::string> strings;
    config_fields(
        config, [&](const char* name, size_t value) { strings[name] = std::to_string(value); },
        [&](const char* name, const std::string& value, const std::vector<std::string>&) {
            strings[name] = value;
        });
    return strings;
}

// Refuses what cannot be, naming `where` (a file or the command line).
inline void check_config(const Config& c, const std::string& where) {
    auto within = [&](const char* name, size_t value, size_t most) {
        if (value < 1 || value > most)
            fail("%s: %s is %zu, expected 1 to %zu", where.c_str(), name, value, most);
    };
    within("n_layer", c.n_layer, 1024);
    within("n_head", c.n_head, 1024);
    within("n_embd", c.n_embd, 1 << 16);
    within("block_size", c.block_size, 1 << 24);
    within("vocab_size", c.vocab_size, 1 << 16); // shards hold 16-bit tokens
    within("n_expert", c.n_expert, 4096);
    within("n_expert_active", c.n_expert_active, 4096);
    within("d_expert", c.d_expert, 1 << 20);
    auto one_of = [&](const char* name, const std::string& value, const std::vector<std::string>& words) {
        std::string list;
        for (const std::string& w : words) {
            if (w == value) return;
            list += (list.empty() ? "" : " or ") + w;
        }
        if (!words.empty())
            fail("%s: %s is %s, expected %s", where.c_str(), name, quoted(value).c_str(), list.c_str());
    };
    config_fields(
        c, [](const char*, size_t) {}, one_of);
    if (c.n_embd % c.n_head)
        fail("%s: n_embd %zu is not divisible by n_head %zu", where.c_str(), c.n_embd, c.n_head);
    if (c.moe() && c.n_expert_active > c.n_expert)
        fail("%s: n_expert_active %zu is more than n_expert %zu", where.c_str(), c.n_expert_active,
             c.n_expert);
    if (!c.tokenizer.empty()) {
        one_of("tokenizer", c.tokenizer,
               {tokenizer_name(TOKENIZER_GPT2), tokenizer_name(TOKENIZER_BYTES),
                tokenizer_name(TOKENIZER_CHESS)});
        const size_t words = tokenizer_vocab(tokenizer_from_name(c.tokenizer));
        if (c.vocab_size < words)
            fail("%s: vocab_size is %zu, expected at least the %zu tokens of tokenizer %s", where.c_str(),
                 c.vocab_size, words, c.tokenizer.c_str());
    }
}

inline Config config_from_strings(const std::map<std::string, std::string>& strings,
                                  const std::string& where) {
    Config config;
    auto find = [&](const char* name) -> const std::string& {
        auto it = strings.find(name);
        if (it == strings.end())
            fail("%s: the metadata lacks %s: not a moex checkpoint", where.c_str(), name);
        return it->second;
    };
    auto size = [&](const char* name, size_t& value) {
        const std::string& text = find(name);
        if (text.empty() || text.size() > 9 || text.find_first_not_of("0123456789") != std::string::npos)
            fail("%s: %s is %s, expected a whole number", where.c_str(), name, quoted(text).c_str());
        value = std::stoul(text);
    };
    config_fields(config, size, [&](const char* name, std::string& value, const std::vector<std::string>&) {
        value = find(name);
    });
    check_config(config, where);
    return config;
}

// A preset is a model and the training it was meant for.
struct Preset {
    const char* name;
    Config config;
    size_t batch, rows, steps, warmup; // rows per micro-batch and per step
    double lr;
};

inline const std::vector<Preset>& presets() {
    auto sized = [](size_t L, size_t NH, size_t C, size_t D, size_t T, size_t V, const char* tokenizer) {
        Config c;
        c.n_layer = L, c.n_head = NH, c.n_embd = C, c.d_expert = D;
        c.block_size = T, c.vocab_size = V, c.tokenizer = tokenizer;
        return c;
    };
    static const std::vector<Preset> list = {
        // Minutes on two cores. So short a run learns most from many small steps: on 9.2M tokens of chess,
        // steps of 4
        // rows came to a validation loss of 0.746, steps of 8 rows to 0.757.
        {"demo", sized(4, 4, 128, 256, 256, 32, "chess-32"), 4, 4, 9500, 200, 1.5e-3},
        // The paper's chess models: 8 layers, experts of 2048, dense twin 4096.
        {"chess", sized(8, 8, 512, 2048, 1023, 32, "chess-32"), 10, 100, 60000, 2000, 3e-4},
        // The paper's language models: GPT-2 small and medium, experts of 4 C.
        {"small", sized(12, 12, 768, 3072, 1024, 50257, "gpt2"), 8, 320, 100000, 5000, 3e-4},
        {"medium", sized(24, 16, 1024, 4096, 1024, 50257, "gpt2"), 4, 320, 100000, 5000, 3e-4},
    };
    return list;
}
inline const Preset* find_preset(const std::string& name) {
    for (const Preset& p : presets())
        if (name == p.name) return &p;
    return nullptr;
}
