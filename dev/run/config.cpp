// The fields of a config, what is refused, and the presets.
#include "config.h"
#include <algorithm>
#include <cmath>

size_t tokenizer_vocab(Tokenizer t) { return t == TOKENIZER_GPT2 ? 50257 : t == TOKENIZER_BYTES ? 257 : 32; }

std::map<std::string, std::string> config_to_strings(const Config& config,
                                                     const std::vector<ConfigField>& fields) {
    const Config defaults;
    std::map<std::string, std::string> strings;
    for (const ConfigField& f : fields)
        if (!f.optional || f.text(config) != f.text(defaults)) strings[f.name] = f.text(config);
    return strings;
}

void check_config(const Config& c, const std::string& where) {
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
    for (const ConfigField& f : config_fields)
        if (f.word) one_of(f.name, c.*f.word, f.words);
    if (c.n_embd % c.n_head)
        fail("%s: n_embd %zu is not divisible by n_head %zu", where.c_str(), c.n_embd, c.n_head);
    if (c.moe() && c.n_expert_active > c.n_expert)
        fail("%s: n_expert_active %zu is more than n_expert %zu", where.c_str(), c.n_expert_active,
             c.n_expert);
    if ((c.geglu() || c.solu()) && !c.dense())
        fail("%s: act %s goes with ffn dense, this is ffn %s", where.c_str(), c.act.c_str(), c.ffn.c_str());
    if ((c.act == "relu2") != c.monet())
        fail("%s: act relu2 and ffn monet-hd or monet-vd go together, this is act %s, ffn %s", where.c_str(),
             c.act.c_str(), c.ffn.c_str());
    auto of_moe = [&](const char* name, const std::string& value, const char* otherwise) {
        if (!c.moe() && value != otherwise)
            fail("%s: %s %s goes with ffn moe, this is ffn %s", where.c_str(), name, value.c_str(),
                 c.ffn.c_str());
    };
    of_moe("gate", c.gate, "chosen");
    of_moe("balance", c.balance, "loss");
    of_moe("router_sd", c.router_sd, "diagonal");
    if (c.topk() && c.router_sd != "diagonal")
        fail("%s: router_sd %s goes with router sparsity, this is router topk", where.c_str(),
             c.router_sd.c_str());
    if (c.unit_top) {
        within("unit_top", c.unit_top, c.d_expert);
        if (!c.moe() || !c.relu())
            fail("%s: unit_top goes with ffn moe and act relu, this is ffn %s, act %s", where.c_str(),
                 c.ffn.c_str(), c.act.c_str());
    }
    if (c.monet() || c.peer()) {
        within("n_key", c.n_key, 4096);
        within("n_retrieve", c.n_retrieve, 4096);
        within("n_top", c.n_top, c.n_key);
        if (c.n_expert != 1 || c.n_expert_active != 1)
            fail("%s: n_expert is %zu and n_expert_active %zu, expected 1 and 1 for ffn %s", where.c_str(),
                 c.n_expert, c.n_expert_active, c.ffn.c_str());
    }
    auto unused = [&](const char* name, size_t value, bool used) {
        if (!used && value)
            fail("%s: %s is %zu, expected 0 for ffn %s", where.c_str(), name, value, c.ffn.c_str());
    };
    unused("n_key", c.n_key, c.monet() || c.peer());
    unused("n_retrieve", c.n_retrieve, c.monet() || c.peer());
    unused("n_top", c.n_top, c.monet() || c.peer());
    unused("d_key", c.d_key, c.peer());
    unused("n_share", c.n_share, c.monet());
    auto even = [&](const char* name, size_t value) {
        if (value % 2)
            fail("%s: %s is %zu, expected an even number for ffn %s", where.c_str(), name, value,
                 c.ffn.c_str());
    };
    if (c.monet()) within("n_share", c.n_share, c.n_layer);
    if (c.ffn == "monet-vd") {
        even("n_embd", c.n_embd);
        even("d_expert", c.d_expert);
    }
    if (c.peer()) {
        within("d_key", c.d_key, 1 << 16);
        even("d_key", c.d_key);
        if (c.d_expert != 1) fail("%s: d_expert is %zu, expected 1 for ffn peer", where.c_str(), c.d_expert);
    }
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

std::string reference_only(const Config& c) {
    if (c.monet() || c.peer()) return "ffn " + c.ffn;
    if (c.gate_all()) return "gate all";
    if (c.biased()) return "balance bias";
    if (c.full()) return "router_sd full";
    if (c.unit_top) return "unit_top";
    return "";
}

Config config_from_strings(const std::map<std::string, std::string>& strings, const std::string& where,
                           const std::vector<ConfigField>& fields) {
    Config config;
    for (const ConfigField& f : fields) {
        const auto found = strings.find(f.name);
        if (found == strings.end() && f.optional) continue;
        if (found == strings.end())
            fail("%s: the metadata lacks %s: not a moex checkpoint", where.c_str(), f.name);
        const std::string& text = found->second;
        if (f.word) {
            config.*f.word = text;
            continue;
        }
        if (text.empty() || text.size() > 9 || text.find_first_not_of("0123456789") != std::string::npos)
            fail("%s: %s is %s, expected a whole number", where.c_str(), f.name, quoted(text).c_str());
        config.*f.size = std::stoul(text);
    }
    check_config(config, where);
    return config;
}

void take_equal_size(Config& c) {
    const size_t W = c.dense_width();
    if (c.geglu()) c.d_expert = std::max<size_t>(1, (2 * W + 12) / 24 * 8 / c.n_expert_active);
    auto fill = [](size_t& field, size_t value) {
        if (field == 0) field = std::max<size_t>(1, value);
    };
    if (c.monet()) {
        size_t Q = 1;
        while (16 * Q <= W) Q *= 2;
        fill(c.n_key, Q);
        fill(c.n_top, std::min<size_t>(c.n_key, c.n_key < 512 ? 4 : 8));
        fill(c.n_retrieve, 6);
        fill(c.n_share, std::min<size_t>(4, c.n_layer));
        c.d_expert = W / c.n_key > 4 ? (W / c.n_key - 2) / 2 * 2 : 2; // even, so that it can be cut along
    }
    if (c.peer()) {
        fill(c.n_key, size_t(std::lround(std::sqrt(double(c.n_expert * c.d_expert)))));
        fill(c.n_top, std::min<size_t>(c.n_key, 16));
        fill(c.d_key, 2 * c.n_top);
        fill(c.n_retrieve, W / (2 * c.n_top));
        c.d_expert = 1;
    }
    if (c.monet() || c.peer()) c.n_expert = c.n_expert_active = 1;
}

const std::vector<Preset>& presets() {
    auto sized = [](size_t L, size_t NH, size_t C, size_t D, size_t T, size_t V, const char* tokenizer) {
        Config c;
        c.n_layer = L;
        c.n_head = NH;
        c.n_embd = C;
        c.d_expert = D;
        c.block_size = T;
        c.vocab_size = V;
        c.tokenizer = tokenizer;
        return c;
    };
    static const std::vector<Preset> list = {
        // Minutes on two cores. So short a run learns most from many small steps: on 9.2M tokens of chess,
        // steps of 4 rows came to a validation loss of 0.746, steps of 8 rows to 0.757.
        {"demo", sized(4, 4, 128, 256, 256, 32, "chess-32"), 4, 4, 9500, 200, 1.5e-3},
        // A GPU for some minutes: large enough to learn something of the board.
        {"mid", sized(8, 8, 256, 512, 256, 32, "chess-32"), 16, 64, 20000, 1000, 6e-4},
        // The paper's chess models: 8 layers, experts of 2048, dense twin 4096.
        {"chess", sized(8, 8, 512, 2048, 1023, 32, "chess-32"), 10, 100, 60000, 2000, 3e-4},
        // The paper's language models: GPT-2 small and medium, experts of 4 C.
        {"small", sized(12, 12, 768, 3072, 1024, 50257, "gpt2"), 8, 320, 100000, 5000, 3e-4},
        {"medium", sized(24, 16, 1024, 4096, 1024, 50257, "gpt2"), 4, 320, 100000, 5000, 3e-4},
    };
    return list;
}

const Preset* find_preset(const std::string& name) {
    for (const Preset& p : presets())
        if (name == p.name) return &p;
    return nullptr;
}
