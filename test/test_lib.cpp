// What the programs share apart from the arithmetic: config, table of tensors, checkpoints, upcycling,
// command line, random numbers, schedule, numbers for people. Every refusal is provoked and its message read.
#include "../dev/cpu/model.h"
#include "../dev/lib/options.h"
#include "../dev/lib/terminal.h"
#include "../dev/run/checkpoint.h"
#include "../dev/run/print.h"
#include "../dev/run/schedule.h"
#include "../dev/run/upcycle.h"
#include "check.h"
#include "variants.h"
#include <filesystem>
#include <functional>
#include <iomanip>
#include <sys/wait.h>
#if __has_include(<sys/sysmacros.h>)
#include <sys/sysmacros.h> // makedev, which others have in sys/types.h
#endif

static std::string folder; // a temporary folder for the files of this test

static std::string read_all(const std::string& path) {
    const MappedFile file(path);
    return std::string((const char*)file.data, file.size);
}
static void write_all(const std::string& path, const std::string& text) {
    AtomicFile file(path);
    file.write(text.data(), text.size());
    file.commit();
}
static std::string replaced(std::string text, const std::string& from, const std::string& to) {
    const size_t at = text.find(from);
    if (at == std::string::npos) fail("%s does not occur", quoted(from).c_str());
    return text.replace(at, from.size(), to);
}

// What is written to a file descriptor (1 or 2) while body runs.
static std::string captured(int fd, const std::function<void()>& body) {
    const std::string path = folder + "/captured";
    fflush(nullptr);
    const int saved = dup(fd), file = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
    dup2(file, fd);
    body();
    fflush(nullptr);
    dup2(saved, fd);
    close(saved), close(file);
    return read_all(path);
}

struct Variant {
    const char *name, *ffn, *act, *router;
    Later later = {};
};
static const Variant variants[] = {{"moe sparsity", "moe", "relu", "sparsity"},
                                   {"moe topk", "moe", "gelu", "topk"},
                                   {"dense", "dense", "gelu", "sparsity"},
                                   {"geglu", "dense", "geglu", "sparsity"},
                                   {"solu", "dense", "solu", "sparsity"},
                                   {"hd", "monet-hd", "relu2", "sparsity", {5, 3, 2, 0, 2}},
                                   {"vd", "monet-vd", "relu2", "sparsity", {5, 3, 2, 0, 1}},
                                   {"peer", "peer", "gelu", "sparsity", {5, 3, 2, 8, 0}}};

// L 2, NH 2, C 16, T 10, V 13, E 4, K 2, D 12
static Config config_of(const Variant& v) {
    Config c;
    c.n_layer = 2, c.n_head = 2, c.n_embd = 16, c.block_size = 10, c.vocab_size = 13, c.d_expert = 12,
    c.n_expert = 4;
    c.ffn = v.ffn, c.act = v.act, c.router = v.router;
    set_later(c, v.later);
    return c;
}

// ---------------------------------------------------------------------------------------------------------
// Config

static void test_config() {
    struct Refusal {
        std::function<void(Config&)> spoil;
        std::vector<std::string> message;
    };
    const std::vector<Refusal> refusals = {
        {[](Config& c) { c.n_layer = 0; }, {"n_layer is 0, expected 1 to 1024"}},
        {[](Config& c) { c.n_layer = 1025; }, {"n_layer is 1025"}},
        {[](Config& c) { c.n_head = 0; }, {"n_head is 0, expected 1 to 1024"}},
        {[](Config& c) { c.n_head = 1025; }, {"n_head is 1025"}},
        {[](Config& c) { c.n_embd = 0; }, {"n_embd is 0, expected 1 to 65536"}},
        {[](Config& c) { c.n_embd = 65537; }, {"n_embd is 65537"}},
        {[](Config& c) { c.block_size = 0; }, {"block_size is 0, expected 1 to 16777216"}},
        {[](Config& c) { c.block_size = SIZE_MAX; }, {"block_size is 18446744073709551615"}},
        {[](Config& c) { c.vocab_size = 0; }, {"vocab_size is 0, expected 1 to 65536"}},
        {[](Config& c) { c.vocab_size = 65537; }, {"vocab_size is 65537"}},
        {[](Config& c) { c.n_expert = 0; }, {"n_expert is 0, expected 1 to 4096"}},
        {[](Config& c) { c.n_expert = 4097; }, {"n_expert is 4097"}},
        {[](Config& c) { c.n_expert_active = 0; }, {"n_expert_active is 0, expected 1 to 4096"}},
        {[](Config& c) { c.ffn = "dense", c.n_expert_active = 5000; }, {"n_expert_active is 5000"}},
        {[](Config& c) { c.n_expert_active = 5; }, {"n_expert_active 5 is more than n_expert 4"}},
        {[](Config& c) { c.d_expert = 0; }, {"d_expert is 0, expected 1 to 1048576"}},
        {[](Config& c) { c.d_expert = (1 << 20) + 1; }, {"d_expert is 1048577"}},
        {[](Config& c) { c.n_head = 3; }, {"n_embd 16 is not divisible by n_head 3"}},
        {[](Config& c) { c.ffn = "mlp"; }, {"ffn is 'mlp', expected moe or dense"}},
        {[](Config& c) { c.act = ""; }, {"act is '', expected relu or gelu"}},
        {[](Config& c) { c.act = "geglu"; }, {"act geglu goes with ffn dense, this is ffn moe"}},
        {[](Config& c) { c.act = "solu"; }, {"act solu goes with ffn dense, this is ffn moe"}},
        {[](Config& c) { c.router = "hash\n"; }, {"router is 'hash?', expected sparsity or topk"}},
        {[](Config& c) { c.tokenizer = "words"; }, {"'words'", "gpt2 or bytes or chess-32"}},
        {[](Config& c) { c.tokenizer = "chess-32"; },
         {"vocab_size is 13, expected at least the 32 tokens of tokenizer chess-32"}},
        {[](Config& c) { c.tokenizer = "bytes", c.vocab_size = 256; },
         {"at least the 257 tokens of tokenizer bytes"}},
        {[](Config& c) { c.tokenizer = "gpt2", c.vocab_size = 50256; },
         {"at least the 50257 tokens of tokenizer gpt2"}},
    };
    for (const Refusal& r : refusals) {
        Config c = config_of(variants[0]);
        check_config(c, "here");
        r.spoil(c);
        check_error(check_config(c, "here.file"), r.message[0], r.message.back());
        check_error(check_config(c, "here.file"), "here.file: ");
        // A file with that config says the same.
        Config unchecked;
        std::map<std::string, std::string> strings = config_to_strings(c);
        if (strings["block_size"].size() < 10)
            check_error(config_from_strings(strings, "some.file"), r.message[0]);
    }
    const std::vector<Refusal> of_monet = {
        {[](Config& c) { c.act = "relu"; }, {"act relu2 and ffn monet-hd or monet-vd go together"}},
        {[](Config& c) { c.n_key = 0; }, {"n_key is 0, expected 1 to 4096"}},
        {[](Config& c) { c.n_retrieve = 0; }, {"n_retrieve is 0, expected 1 to 4096"}},
        {[](Config& c) { c.n_top = 6; }, {"n_top is 6, expected 1 to 5"}},
        {[](Config& c) { c.n_share = 0; }, {"n_share is 0, expected 1 to 2"}},
        {[](Config& c) { c.n_share = 3; }, {"n_share is 3, expected 1 to 2"}},
        {[](Config& c) { c.d_key = 2; }, {"d_key is 2, expected 0 for ffn monet-vd"}},
        {[](Config& c) { c.n_expert = 2; },
         {"n_expert is 2 and n_expert_active 1, expected 1 and 1 for ffn monet-vd"}},
        {[](Config& c) { c.d_expert = 11; }, {"d_expert is 11, expected an even number for ffn monet-vd"}},
        {[](Config& c) { c.n_embd = 15, c.n_head = 3; }, {"n_embd is 15, expected an even number"}},
    };
    const std::vector<Refusal> of_peer = {
        {[](Config& c) { c.act = "relu2"; }, {"act relu2 and ffn monet-hd or monet-vd go together"}},
        {[](Config& c) { c.act = "geglu"; }, {"act geglu goes with ffn dense"}},
        {[](Config& c) { c.n_top = 0; }, {"n_top is 0, expected 1 to 5"}},
        {[](Config& c) { c.gate = "all"; }, {"gate all goes with ffn moe, this is ffn peer"}},
        {[](Config& c) { c.balance = "bias"; }, {"balance bias goes with ffn moe, this is ffn peer"}},
        {[](Config& c) { c.router_sd = "scaled"; }, {"router_sd scaled goes with ffn moe, this is ffn peer"}},
        {[](Config& c) { c.unit_top = 1; }, {"unit_top goes with ffn moe"}},
        {[](Config& c) { c.d_key = 0; }, {"d_key is 0, expected 1 to 65536"}},
        {[](Config& c) { c.d_key = 7; }, {"d_key is 7, expected an even number for ffn peer"}},
        {[](Config& c) { c.n_share = 1; }, {"n_share is 1, expected 0 for ffn peer"}},
        {[](Config& c) { c.d_expert = 2; }, {"d_expert is 2, expected 1 for ffn peer"}},
    };
    const std::vector<Refusal> of_moe = {
        {[](Config& c) { c.gate = "some"; }, {"gate is 'some', expected chosen or all"}},
        {[](Config& c) { c.balance = "none"; }, {"balance is 'none', expected loss or bias"}},
        {[](Config& c) { c.router_sd = "rows"; },
         {"router_sd is 'rows', expected diagonal or scaled or full"}},
        {[](Config& c) { c.router_sd = "full", c.router = "topk"; },
         {"router_sd full goes with router sparsity"}},
        {[](Config& c) { c.unit_top = 13; }, {"unit_top is 13, expected 1 to 12"}},
        {[](Config& c) { c.unit_top = 2, c.act = "gelu"; }, {"unit_top goes with ffn moe and act relu"}},
        {[](Config& c) { c.n_key = 5; }, {"n_key is 5, expected 0 for ffn moe"}},
        {[](Config& c) { c.n_top = 5; }, {"n_top is 5, expected 0 for ffn moe"}},
        {[](Config& c) { c.act = "relu2"; }, {"act relu2 and ffn monet-hd or monet-vd go together"}},
    };
    for (const auto& [variant, list] :
         {std::pair{&variants[6], &of_monet}, {&variants[7], &of_peer}, {&variants[0], &of_moe}})
        for (const Refusal& r : *list) {
            Config c = config_of(*variant);
            check_config(c, "here");
            check(reference_only(c) == (c.moe() ? "" : "ffn " + c.ffn));
            r.spoil(c);
            check_error(check_config(c, "here"), r.message[0]);
            check_error(config_from_strings(config_to_strings(c), "some.file"), r.message[0]);
        }
    const std::pair<std::function<void(Config&)>, const char*> names[] = {
        {[](Config& c) { c.gate = "all"; }, "gate all"},
        {[](Config& c) { c.balance = "bias"; }, "balance bias"},
        {[](Config& c) { c.router_sd = "full"; }, "router_sd full"},
        {[](Config& c) { c.router_sd = "scaled"; }, ""}, // the GPU knows it, too
        {[](Config& c) { c.unit_top = 2; }, "unit_top"}};
    for (const auto& [set, name] : names) {
        Config c = config_of(variants[0]);
        check(config_to_strings(c).size() == 12);
        set(c);
        check_config(c, "here");
        check(reference_only(c) == name && config_to_strings(c).size() == 13, "%s", name);
        check(config_to_strings(config_from_strings(config_to_strings(c), "x")) == config_to_strings(c));
    }
    Config dense = config_of(variants[2]);
    dense.n_expert = 1; // unused: K may exceed it
    check_config(dense, "dense");

    // To strings and back; every field matters.
    Config c = config_of(variants[1]);
    c.tokenizer = "chess-32", c.vocab_size = 40;
    const std::map<std::string, std::string> strings = config_to_strings(c);
    check(strings.size() == 12);
    check(strings.at("n_embd") == "16" && strings.at("router") == "topk" && strings.at("vocab_size") == "40");
    check(config_to_strings(config_from_strings(strings, "x")) == strings);
    for (const auto& [name, value] : strings) {
        std::map<std::string, std::string> fewer = strings;
        fewer.erase(name);
        check_error(config_from_strings(fewer, "x.safetensors"), "x.safetensors: the metadata lacks " + name);
        if (value.find_first_not_of("0123456789") != std::string::npos) continue;
        for (const char* bad :
             {"", "-1", "1e3", " 5", "5 ", "0x10", "1.0", "1234567890", "18446744073709551617", "five"}) {
            fewer[name] = bad;
            check_error(config_from_strings(fewer, "x.safetensors"),
                        "x.safetensors: " + name + " is " + quoted(bad) + ", expected a whole number");
        }
    }

    // A field that came later: written where it differs from its default, the default where it is absent.
    std::vector<ConfigField> fields = config_fields;
    for (ConfigField& f : fields)
        f.optional |= std::string(f.name) == "router" || std::string(f.name) == "n_head";
    Config later = config_of(variants[0]);
    later.n_head = Config().n_head;
    std::map<std::string, std::string> less = config_to_strings(later, fields);
    check(less.size() == 10 && !less.count("router") && !less.count("n_head"));
    check(config_from_strings(less, "x", fields).router == "sparsity" &&
          config_from_strings(less, "x", fields).n_head == Config().n_head);
    later.router = "topk", later.n_head = 2;
    less = config_to_strings(later, fields);
    check(less.size() == 12 && less.at("router") == "topk");
    check(config_from_strings(less, "x", fields).router == "topk" &&
          config_from_strings(less, "x", fields).n_head == 2);
    less["n_head"] = "x";
    check_error(config_from_strings(less, "x", fields), "n_head is 'x'");

    // Models of another kind at the same active size.
    const struct {
        const char *preset, *act;
        size_t width;
    } sizes[] = {{"demo", "geglu", 344},    {"chess", "geglu", 2728}, {"small", "geglu", 4096},
                 {"medium", "geglu", 5464}, {"demo", "solu", 512},    {"chess", "gelu", 4096}};
    for (const auto& s : sizes) {
        Config twin = find_preset(s.preset)->config;
        twin.ffn = "dense", twin.act = s.act;
        take_equal_size(twin);
        check(twin.dense_width() == s.width, "%s %s: %zu units", s.preset, s.act, twin.dense_width());
        check(reference_only(twin).empty());
    }

    const struct {
        const char *preset, *ffn;
        size_t Q, m, H, share, k, d_key;
        double active; // matrix parameters of a layer's share in a group, beside the dense layer's 2 C W
    } of_keys[] = {
        {"demo", "monet-hd", 64, 6, 6, 4, 4, 0, 1},    {"chess", "monet-vd", 512, 6, 6, 4, 8, 0, 1},
        {"small", "monet-hd", 512, 10, 6, 4, 8, 0, 1}, {"demo", "peer", 45, 1, 16, 0, 16, 32, 1.01},
        {"chess", "peer", 128, 1, 128, 0, 16, 32, 1},  {"small", "peer", 157, 1, 192, 0, 16, 32, 1}};
    for (const auto& s : of_keys) {
        Config twin = find_preset(s.preset)->config, like = twin;
        twin.ffn = s.ffn, twin.act = twin.peer() ? "gelu" : "relu2";
        take_equal_size(twin);
        check_config(twin, s.preset);
        check(twin.n_key == s.Q && twin.d_expert == s.m && twin.n_retrieve == s.H &&
                  twin.n_share == s.share && twin.n_top == s.k && twin.d_key == s.d_key,
              "%s %s: Q %zu, m %zu, H %zu, share %zu, k %zu, d_key %zu", s.preset, s.ffn, twin.n_key,
              twin.d_expert, twin.n_retrieve, twin.n_share, twin.n_top, twin.d_key);
        size_t used = 0; // by the feed-forward layers
        for (const Tensor& t : tensor_table(twin))
            if (t.name.find(".monet.") != std::string::npos || t.name.find(".peer.") != std::string::npos)
                used += t.name.find(".b_u") != std::string::npos ? 0
                        : t.experts                              ? twin.most_active() * twin.n_embd
                                                                 : t.count;
        const double ratio = double(used) / double(twin.n_layer * 2 * twin.n_embd * like.dense_width());
        check_near(ratio, s.active, 0.006);
    }
    Config set = find_preset("demo")->config; // what is said stays
    set.ffn = "peer", set.act = "gelu", set.n_retrieve = 8, set.n_top = 4, set.d_key = 64, set.n_key = 40;
    take_equal_size(set);
    check(set.n_retrieve == 8 && set.n_top == 4 && set.d_key == 64 && set.n_key == 40 && set.n_expert == 1);
    ParameterCount of_set = count_parameters(set, tensor_table(set));
    check(of_set.total - of_set.active == 4 * 2 * (40 * 40 - 8 * 4) * 128, "%zu",
          of_set.total - of_set.active);
    check_near(flops_per_token(set, 256),
               6.0 * (4 * (4 * 128 * 128 + 128 * 257 + 8 * (64 * 128 + 40 * 64 + 2 * 4 * 128)) + 128 * 32),
               0);
    set = find_preset("demo")->config;
    set.ffn = "monet-vd", set.act = "relu2";
    take_equal_size(set);
    check_near(flops_per_token(set, 256),
               6.0 * (4 * (4 * 128 * 128 + 128 * 257 + 2 * 128 * 64 * 6 + 2 * 6 * 64 * 128 / 4) + 128 * 32),
               0);

    check(find_preset("medium") && !find_preset("large") && !find_preset("") && presets().size() == 5);
    for (const Preset& p : presets()) check_config(p.config, p.name);
    const Preset& chess = *find_preset("chess");
    check(chess.rows == 100 && chess.steps == 60000 && chess.warmup == 2000 && chess.lr == 3e-4 &&
          chess.config.block_size == 1023);
    check(find_preset("demo")->config.block_size == 256);
}

// ---------------------------------------------------------------------------------------------------------
// The table of tensors

// Name, shape and d for what decays, of the layers' tensors in order: {l} stands for the layer.
static std::vector<std::string> expected_table(const Config& c) {
    std::vector<std::string> layer = {"ln_1.weight [16]",
                                      "ln_1.bias [16]",
                                      "attn.c_attn.weight [48,16] d",
                                      "attn.c_attn.bias [48]",
                                      "attn.c_proj.weight [16,16] d",
                                      "attn.c_proj.bias [16]",
                                      "ln_2.weight [16]",
                                      "ln_2.bias [16]"};
    const std::vector<std::string> moe = {"moe.w_enc [4,12,16] d", "moe.b_enc [4,12]",
                                          "moe.w_dec [4,12,16] d", "moe.b_dec [4,16]"};
    const std::vector<std::string> dense = {"mlp.c_fc.weight [24,16] d", "mlp.c_fc.bias [24]",
                                            "mlp.c_proj.weight [16,24] d", "mlp.c_proj.bias [16]"};
    const std::vector<std::string> geglu = {
        "mlp.c_gate.weight [24,16] d", "mlp.c_gate.bias [24]", dense[0], dense[1], dense[2], dense[3]};
    const std::vector<std::string> solu = {
        dense[0], dense[1], "mlp.ln_mid.weight [24]", "mlp.ln_mid.bias [24]", dense[2], dense[3]};
    const std::vector<std::string> hd = {"monet.router [2,3,5,16] d", "monet.u [5,12,16] d",
                                         "monet.b_u [5,12]", "monet.v [5,12,16] d", "monet.b_v [5,16]"};
    const std::vector<std::string> vd = {
        "monet.router [2,3,5,16] d", "monet.u1 [5,6,16] d", "monet.b_u1 [5,6]",    "monet.u2 [5,6,16] d",
        "monet.b_u2 [5,6]",          "monet.v11 [5,6,8] d", "monet.v12 [5,6,8] d", "monet.b_v1 [5,8]",
        "monet.v21 [5,6,8] d",       "monet.v22 [5,6,8] d", "monet.b_v2 [5,8]"};
    const std::vector<std::string> peer = {"peer.query [3,8,16] d", "peer.keys [2,5,4] d",
                                           "peer.w_enc [25,16] d", "peer.w_dec [25,16] d"};
    const std::vector<std::string>& ffn = c.ffn == "moe"        ? moe
                                          : c.ffn == "monet-hd" ? hd
                                          : c.ffn == "monet-vd" ? vd
                                          : c.ffn == "peer"     ? peer
                                          : c.act == "geglu"    ? geglu
                                          : c.act == "solu"     ? solu
                                                                : dense;
    layer.insert(layer.end(), ffn.begin(), ffn.end());
    if (c.ffn == "moe" && c.router == "topk") layer.push_back("moe.router [4,16] d");
    std::vector<std::string> all = {"wte.weight [13,16] d", "wpe.weight [10,16] d"};
    for (const char* l : {"h.0.", "h.1."})
        for (const std::string& line : layer) // hd: the second layer has the first one's router
            if (!(c.n_share == 2 && l[2] == '1' && line.find("router") != std::string::npos))
                all.push_back(l + line);
    all.push_back("ln_f.weight [16]"), all.push_back("ln_f.bias [16]");
    return all;
}

static void test_parameters() {
    for (const Variant& v : variants) {
        const Config c = config_of(v);
        const std::vector<Tensor> table = tensor_table(c);
        const std::vector<std::string> expected = expected_table(c);
        check(table.size() == expected.size(), "%s: %zu tensors, expected %zu", v.name, table.size(),
              expected.size());
        size_t end = 0;
        for (size_t i = 0; i < table.size() && i < expected.size(); i++) {
            const Tensor& t = table[i];
            const std::string line = t.name + " " + shape_text(t.shape) + (t.decay ? " d" : "");
            check(line == expected[i], "%s: %s, expected %s", v.name, line.c_str(), expected[i].c_str());
            size_t count = 1;
            for (const size_t n : t.shape) count *= n;
            check(t.count == count && t.offset >= end && t.offset % 32 == 0, "%s: %s lies at %zu", v.name,
                  t.name.c_str(), t.offset);
            check(t.experts == ((t.name.find(".moe.") != std::string::npos &&
                                 t.name.find("router") == std::string::npos) ||
                                t.name.find(".peer.w_") != std::string::npos));
            end = t.offset + t.count;
        }
        check(block_elements(table) >= end && block_elements(table) % 32 == 0);
        // The pointers are those of the table.
        std::vector<float> block(block_elements(table));
        const Parameters<float> p = carve_parameters(c, table, block.data());
        auto at = [&](const std::string& name) -> const float* {
            for (const Tensor& t : table)
                if (t.name == name) return &block[t.offset];
            return nullptr;
        };
        check(p.h.size() == 2 && p.wte == at("wte.weight") && p.wpe == at("wpe.weight") &&
              p.ln_f_bias == at("ln_f.bias"));
        const LayerParameters<float>& h = p.h[1];
        check(h.ln_1_weight == at("h.1.ln_1.weight") && h.ln_1_bias == at("h.1.ln_1.bias") &&
              h.ln_2_weight == at("h.1.ln_2.weight") && h.ln_2_bias == at("h.1.ln_2.bias") &&
              h.c_attn_weight == at("h.1.attn.c_attn.weight") &&
              h.c_attn_bias == at("h.1.attn.c_attn.bias") &&
              h.c_proj_weight == at("h.1.attn.c_proj.weight") && h.c_proj_bias == at("h.1.attn.c_proj.bias"));
        check(h.w_enc == at("h.1.moe.w_enc") && h.b_enc == at("h.1.moe.b_enc") &&
              h.w_dec == at("h.1.moe.w_dec") && h.b_dec == at("h.1.moe.b_dec") &&
              h.router == at("h.1.moe.router"));
        check(h.monet.u[0] == at(c.ffn == "monet-vd" ? "h.1.monet.u1" : "h.1.monet.u") &&
              h.monet.v[1][0] == at("h.1.monet.v21") && h.monet.b_v[1] == at("h.1.monet.b_v2") &&
              h.monet.router == at("h.1.monet.router") && h.peer.keys == at("h.1.peer.keys") &&
              h.peer.w_dec == at("h.1.peer.w_dec"));
        check(h.gate_weight == at("h.1.mlp.c_gate.weight") && h.gate_bias == at("h.1.mlp.c_gate.bias") &&
              h.ln_mid_weight == at("h.1.mlp.ln_mid.weight") && h.ln_mid_bias == at("h.1.mlp.ln_mid.bias"));
        check(h.fc_weight == at("h.1.mlp.c_fc.weight") && h.fc_bias == at("h.1.mlp.c_fc.bias") &&
              h.fc_proj_weight == at("h.1.mlp.c_proj.weight") && h.fc_proj_bias == at("h.1.mlp.c_proj.bias"));
    }

    // Sizes whose products overflow, or that no machine holds, before and after check_config would have seen
    // them.
    Config huge = config_of(variants[0]);
    huge.n_expert = 4096, huge.d_expert = 1 << 20, huge.n_embd = 1 << 16, huge.n_head = 1;
    check_config(huge, "allowed one by one");
    check_error(tensor_table(huge), "a model of these sizes has too many parameters");
    huge.d_expert = size_t(1) << 21;
    check_error(tensor_table(huge), "h.0.moe.w_enc: too large: the sizes of its shape overflow");
    huge.d_expert = size_t(1) << 60;
    check_error(tensor_table(huge), "h.0.moe.w_enc: too large");
    huge.n_embd = SIZE_MAX / 2;
    check_error(tensor_table(huge), "wte.weight: too large");

    // By hand: chess has 32 C + 1023 C + 2 C shared by all layers, and per layer 4 C + 4 C^2 + 4 C, in each
    // of 8 experts 2 C D + D + C. A token uses 2 of the 8; its dense twin has one bias of C where the two
    // experts have 2.
    const struct {
        const char* preset;
        size_t total, active, dense;
    } counts[] = {{"demo", 2412800, 830720, 830208},
                  {"mid", 19014144, 6394368, 6392320},
                  {"chess", 143344128, 42557952, 42553856},
                  {"small", 521124096, 181108992, 181099776},
                  {"medium", 1764969472, 556272640, 556248064}};
    for (const auto& expected : counts) {
        Config c = find_preset(expected.preset)->config;
        ParameterCount n = count_parameters(c, tensor_table(c));
        check(n.total == expected.total && n.active == expected.active, "%s: %zu parameters, %zu active",
              expected.preset, n.total, n.active);
        c.router = "topk";
        n = count_parameters(c, tensor_table(c));
        const size_t router = c.n_layer * c.n_expert * c.n_embd;
        check(n.total == expected.total + router && n.active == expected.active + router, "%s with topk: %zu",
              expected.preset, n.total);
        c.ffn = "dense";
        n = count_parameters(c, tensor_table(c));
        check(n.total == expected.dense && n.active == expected.dense, "%s, dense: %zu", expected.preset,
              n.total);
    }

    // The dense model of 4 layers, C 128, width 512 at T 256: 4 C^2 + 2 C W = 196,608 multiplications per
    // layer, attention C (T + 1) = 32,896, the head C V; six operations each to train. A batch of 4 rows
    // is 5.741 GFLOP with the vocabulary of 96 padded to 128; not padded it is 6 * 1024 * 128 * 32 = 0.025
    // less.
    Config c;
    c.ffn = "dense", c.vocab_size = 128;
    check_near(flops_per_token(c, 256), 6.0 * (4 * (196608 + 32896) + 128 * 128), 0);
    check_near(flops_per_token(c, 256) * 1024, 5.741e9, 5e5);
    c.act = "geglu"; // three matrices
    check_near(flops_per_token(c, 256), 6.0 * (4 * (196608 + 65536 + 32896) + 128 * 128), 0);
    c.act = "relu";
    c.vocab_size = 96;
    check_near(flops_per_token(c, 256) * 1024, 5.741e9 - 0.0252e9, 5e5);
    check(count_parameters(c, tensor_table(c)).total == 842496 - 32 * 128); // 842,496 with the padding
    // chess: 8 (4 C^2 + 2 C 4096 + 2 * 8 C + 1024 C) + 32 C = 46,219,264; the topk router is one matrix, not
    // two.
    c = find_preset("chess")->config;
    check_near(flops_per_token(c, 1023), 6.0 * 46219264, 0);
    c.router = "topk";
    check_near(flops_per_token(c, 1023), 6.0 * (46219264 - 8 * 8 * 512), 0);
}

// ---------------------------------------------------------------------------------------------------------
// Checkpoints

template <class T> std::vector<T> random_block(const Config& c, uint64_t seed) {
    const std::vector<Tensor> table = tensor_table(c);
    std::vector<T> block(block_elements(table));
    init_parameters(c, table, block.data(), seed);
    for (const Tensor& t : table) // so that biases are told apart too
        for (size_t i = 0; i < t.count; i++) block[t.offset + i] += T(random_normal(seed, 99, t.offset + i));
    return block;
}

template <class T> void test_round_trip(const Variant& v, const char* dtype) {
    const Config c = config_of(v);
    const std::vector<Tensor> table = tensor_table(c);
    const std::vector<T> block = random_block<T>(c, 1);
    const std::string first = folder + "/first.safetensors", second = folder + "/second.safetensors";
    save_model(first, c, table, block.data(), 1234);
    std::vector<T> loaded(block.size());
    {
        const SafeTensorsFile file(first);
        const Config read = read_config(file);
        check(config_to_strings(read) == config_to_strings(c), "%s: the config came back", v.name);
        check(metadata_entry(file, "format") == "pt" && metadata_entry(file, "model") == "moex" &&
              metadata_entry(file, "step") == "1234");
        check(file.metadata.size() == 15 + size_t(c.n_key ? 4 : 0), "%zu strings of metadata",
              file.metadata.size());
        check(file.tensors[0].dtype == (sizeof(T) == 8 ? F64 : F32), "%s", dtype);
        for (const Tensor& t : table)
            check(file.find(t.name) && file.find(t.name)->shape == t.shape, "%s: %s", v.name, t.name.c_str());
        read_block(file, tensor_table(read), "", loaded.data());
    }
    for (const Tensor& t : table)
        check(memcmp(&block[t.offset], &loaded[t.offset], t.count * sizeof(T)) == 0, "%s: %s came back",
              v.name, t.name.c_str());
    save_model(second, c, table, loaded.data(), 1234);
    check(read_all(first) == read_all(second), "%s: save, load, save gives the same bytes", v.name);
    save_model(first, c, table, loaded.data(), 1234); // over a file that is there
    check(read_all(first) == read_all(second), "%s: and again", v.name);
}

static void test_checkpoint_dtypes() {
    // Tensors of other types than the reader's, also mixed, load with their rounded values.
    const Config c = config_of(variants[0]);
    const std::vector<Tensor> table = tensor_table(c);
    const std::vector<float> block = random_block<float>(c, 1);
    const std::string path = folder + "/mixed.safetensors";
    Strings metadata = config_to_strings(c);
    metadata["model"] = "moex";
    for (const bool mixed : {false, true}) {
        auto type_of = [&](size_t i) { return mixed && i % 2 ? F64 : BF16; };
        SafeTensorsWriter out(path, metadata);
        for (size_t i = 0; i < table.size(); i++) out.declare(table[i].name, type_of(i), table[i].shape);
        for (size_t i = 0; i < table.size(); i++)
            for (size_t e = 0; e < table[i].count; e++) {
                const float value = block[table[i].offset + e];
                const uint16_t half = float_to_bf16(value);
                const double wide = value;
                if (type_of(i) == BF16)
                    out.write(&half, sizeof half);
                else
                    out.write(&wide, sizeof wide);
            }
        out.commit();
        const SafeTensorsFile file(path);
        std::vector<float> loaded(block.size());
        read_block(file, tensor_table(read_config(file)), "", loaded.data());
        for (size_t i = 0; i < table.size(); i++) {
            bool right = true;
            for (size_t e = 0; e < table[i].count; e++) {
                const float value = block[table[i].offset + e], got = loaded[table[i].offset + e];
                right = right && (type_of(i) == BF16 ? got == bf16_to_float(float_to_bf16(value)) &&
                                                           std::fabs(got - value) <= std::fabs(value) / 256
                                                     : got == value);
            }
            check(right, "%s as %s", table[i].name.c_str(), dtype_name(type_of(i)));
        }
    }
    // A block of 16-bit numbers is written as bf16.
    std::vector<uint16_t> halves(block.size());
    for (size_t i = 0; i < block.size(); i++) halves[i] = float_to_bf16(block[i]);
    save_model(path, c, table, halves.data(), 0);
    check(SafeTensorsFile(path).tensors[0].dtype == BF16);
    check(read_config(SafeTensorsFile(path)).n_embd == 16);
}

static void test_bad_checkpoints() {
    const Config c = config_of(variants[0]);
    const std::vector<Tensor> table = tensor_table(c);
    const std::vector<float> block = random_block<float>(c, 1);
    const std::string path = folder + "/bad.safetensors";
    Strings metadata = config_to_strings(c);
    metadata["model"] = "moex";
    auto refused = [&](const Strings& strings, const std::vector<Tensor>& tensors, const std::string& message,
                       const std::string& more = "") {
        write_blocks<float>(path, strings, tensors, {{"", block.data()}});
        check_error(read_config(SafeTensorsFile(path)), "bad.safetensors: ", message, more);
    };
    std::vector<Tensor> other = table;
    std::swap(other[0].shape[0], other[0].shape[1]);
    refused(metadata, other, "tensor wte.weight has shape [16,13], expected [13,16]");
    other = table;
    other[10].shape = {48, 16};
    refused(metadata, other, "tensor h.0.moe.w_enc has shape [48,16], expected [4,12,16]");
    for (const size_t missing : {size_t(0), size_t(5), table.size() - 1}) {
        other = table;
        other.erase(other.begin() + missing);
        refused(metadata, other, "tensor " + table[missing].name + " is missing");
    }
    other = table;
    other.push_back(table[2]);
    other.back().name = "h.9.ln_1.weight\n";
    refused(metadata, other, "tensor 'h.9.ln_1.weight?' does not belong to this model");
    Strings strings = metadata;
    strings["model"] = "llama";
    refused(strings, table, "a checkpoint of 'llama', expected model moex");
    strings.erase("model");
    refused(strings, table, "not a moex checkpoint: the metadata lacks 'model'");
    refused({}, table, "not a moex checkpoint: the metadata lacks 'model'");
    strings = metadata, strings.erase("n_head");
    refused(strings, table, "the metadata lacks n_head");
    strings = metadata, strings["n_layer"] = "1000";
    refused(strings, table, "n_layer is 1000, but there are only 28 tensors");
    strings = metadata, strings["n_layer"] = "3";
    refused(strings, table, "tensor h.2.ln_1.weight is missing");
    strings = metadata, strings["n_layer"] = "1";
    refused(strings, table, "does not belong to this model");
    strings = metadata, strings["ffn"] = "dense";
    refused(strings, table, "tensor h.0.mlp.c_fc.weight is missing");
    strings = metadata, strings["router"] = "topk";
    refused(strings, table, "tensor h.0.moe.router is missing");
    strings = metadata, strings["d_expert"] = "999999999";
    refused(strings, table, "d_expert is 999999999, expected 1 to 1048576");

    save_model(path, c, table, block.data(), 0);
    const std::string good = read_all(path);
    auto patched = [&](const char* from, const char* to, const std::string& message) {
        write_all(path, replaced(good, from, to));
        check_error(read_config(SafeTensorsFile(path)), "bad.safetensors: ", message);
    };
    patched("\"dtype\":\"F32\"", "\"dtype\":\"Q32\"", "unknown dtype 'Q32'");
    patched("\"dtype\":\"F32\"", "\"dtype\":\"I32\"",
            "tensor wte.weight has dtype I32, expected F32, BF16, F16 or F64");
    patched("\"shape\":[13,16]", "\"shape\":[16,13]", "tensor wte.weight has shape [16,13]");
    patched("\"wte.weight\"", "\"wpe.weight\"", "");
    patched("\"n_embd\":\"16\"", "\"n_embd\":\"17\"", "n_embd 17 is not divisible by n_head 2");
    patched("\"n_embd\":\"16\"", "\"n_embd\":\"32\"",
            "tensor wte.weight has shape [13,16], expected [13,32]");
    write_all(path, good + "x");
    check_error(read_config(SafeTensorsFile(path)), "bad.safetensors: ");
    check_error(SafeTensorsFile(folder + "/none.safetensors"), "none.safetensors: cannot be opened");
}

static void save_step(const Config& c, int64_t step, bool with_state = true) {
    const std::vector<Tensor> table = tensor_table(c);
    const std::vector<float> block = random_block<float>(c, uint64_t(step));
    if (with_state)
        write_blocks<float>(state_path(folder, step), {{"model", "moex-state"}}, table,
                            {{"m.", block.data()}, {"v.", block.data()}});
    save_model(model_path(folder, step), c, table, block.data(), step);
}

static void test_newest() {
    const Config c = config_of(variants[0]);
    check(model_path("d", 12) == "d/model_00000012.safetensors" &&
          state_path("d", 12) == "d/state_00000012.safetensors");
    check(newest_checkpoint(folder) == -1 && newest_checkpoint(folder + "/none") == -1);
    for (const int64_t step : {0, 7, 20, 100}) save_step(c, step);
    std::string passed_over;
    check(newest_checkpoint(folder, &passed_over) == 100 && passed_over.empty(), "%s", passed_over.c_str());
    for (const char* name :
         {"model_00000200.safetensors.tmp.77", "model_x.safetensors", "model_00000300",
          "old_model_00000400.safetensors", "model_-0000500.safetensors", "model_00000600.safetensors~"})
        write_all(folder + "/" + name, "not a checkpoint");
    check(newest_checkpoint(folder, &passed_over) == 100 && passed_over.empty(), "other files: %s",
          passed_over.c_str());

    for (const std::string& path : {model_path(folder, 100), state_path(folder, 100)}) {
        const std::string good = read_all(path);
        uint64_t header;
        memcpy(&header, good.data(), 8);
        for (const size_t length :
             {size_t(0), size_t(4), size_t(8), size_t(9), size_t(header / 2), size_t(header + 7),
              size_t(header + 8), size_t(header + 9), good.size() / 2, good.size() - 1}) {
            write_all(path, good.substr(0, length));
            passed_over.clear();
            check(newest_checkpoint(folder, &passed_over) == 20, "%s cut to %zu of %zu bytes", path.c_str(),
                  length, good.size());
            check(passed_over.find(path) != std::string::npos && passed_over.find('\n') == std::string::npos,
                  "names what it passed over: %s", passed_over.c_str());
        }
        write_all(path, replaced(good, "\"dtype\":\"F32\"", "\"dtype\":\"X32\""));
        check(newest_checkpoint(folder) == 20);
        std::filesystem::remove(path);
        check(newest_checkpoint(folder) == 20, "without %s", path.c_str());
        write_all(path, good);
        check(newest_checkpoint(folder) == 100);
    }
    save_step(c, 200, false);
    passed_over.clear();
    check(newest_checkpoint(folder, &passed_over) == 100 &&
              passed_over.find("state_00000200") != std::string::npos,
          "%s", passed_over.c_str());
    // The state of another model does not go with this one.
    std::filesystem::copy_file(state_path(folder, 100), state_path(folder, 200));
    check(newest_checkpoint(folder) == 200);
    Config larger = c;
    larger.d_expert = 13;
    save_step(larger, 300);
    std::filesystem::copy_file(state_path(folder, 100), state_path(folder, 300),
                               std::filesystem::copy_options::overwrite_existing);
    passed_over.clear();
    check(newest_checkpoint(folder, &passed_over) == 200 &&
              passed_over.find("m.h.0.moe.w_enc has shape") != std::string::npos,
          "%s", passed_over.c_str());
    // Two broken ones: both are named.
    write_all(model_path(folder, 200), "");
    passed_over.clear();
    check(newest_checkpoint(folder, &passed_over) == 100);
    check(passed_over.find("state_00000300") < passed_over.find("; ") &&
              passed_over.find("model_00000200") > passed_over.find("; "),
          "%s", passed_over.c_str());
    check(find_checkpoint("any/file") == "any/file");
    check_error(find_checkpoint(""), "--ckpt is missing");
}

// ---------------------------------------------------------------------------------------------------------
// Upcycling

// A dense model in a file: V 13, C 16, width 24, 2 layers.
static std::string dense_file(const std::vector<float>& block) {
    const std::string path = folder + "/dense.safetensors";
    const Config c = config_of(variants[2]);
    save_model(path, c, tensor_table(c), block.data(), 0);
    return path;
}

struct Upcycled {
    Config config;
    std::vector<Tensor> table;
    std::vector<real> weights;
    Parameters<real> p;
    Upcycled(const SafeTensorsFile& file, size_t D, uint64_t seed, const char* router = "sparsity")
        : config(read_config(file)) {
        const Config dense = config;
        config.ffn = "moe", config.d_expert = D, config.router = router;
        check_upcycle(dense, config, "dense.safetensors");
        table = tensor_table(config);
        weights.assign(block_elements(table), real(NAN));
        p = carve_parameters(config, table, weights.data());
        upcycle(file, dense, config, table, weights.data(), seed);
    }
};

static void test_upcycle() {
    const Config dense = config_of(variants[2]);
    const std::vector<float> block = random_block<float>(dense, 5);
    const std::vector<Tensor> dense_table = tensor_table(dense);
    const Parameters<float> d = carve_parameters(dense, dense_table, (float*)block.data());
    const SafeTensorsFile file(dense_file(block));
    const size_t C = 16, W = 24, E = 4;
    for (const size_t D : {size_t(24), size_t(12), size_t(10), size_t(1)}) {
        const Upcycled u(file, D, 1), same(file, D, 1), other(file, D, 2);
        bool copied = true, finite = true;
        for (const Tensor& t : u.table) {
            for (size_t i = 0; i < t.count; i++) finite = finite && std::isfinite(u.weights[t.offset + i]);
            check(memcmp(&u.weights[t.offset], &same.weights[t.offset], t.count * sizeof(real)) == 0,
                  "same seed, same %s", t.name.c_str());
            if (const SafeTensor* source = file.find(t.name)) {
                std::vector<real> values(source->elements());
                read_floats(*source, values.data());
                copied = copied && std::equal(values.begin(), values.end(), &u.weights[t.offset]);
            }
        }
        check(copied && finite, "D %zu: all but the feed-forward layer is copied", D);
        check(!std::equal(u.p.h[0].w_enc, u.p.h[0].w_enc + E * D * C, other.p.h[0].w_enc),
              "D %zu: another seed, other experts", D);
        for (size_t l = 0; l < 2; l++)
            for (size_t j = 0; j < E; j++) {
                const LayerParameters<real>& h = u.p.h[l];
                const LayerParameters<float>& from = d.h[l];
                check(std::equal(from.fc_proj_bias, from.fc_proj_bias + C, h.b_dec + j * C),
                      "b_dec is the dense output bias");
                std::vector<size_t> units; // which dense unit each row is: the biases are all different
                for (size_t i = 0; i < D; i++)
                    units.push_back(size_t(
                        std::find(from.fc_bias, from.fc_bias + W, float(h.b_enc[j * D + i])) - from.fc_bias));
                bool distinct = true, exact = true;
                double moved_enc = 0, moved_dec = 0, rms_enc = 0, rms_dec = 0;
                for (size_t i = 0; i < D; i++)
                    distinct = distinct && units[i] < W && (i == 0 || units[i] > units[i - 1]);
                check(distinct, "D %zu layer %zu expert %zu: different units of the dense layer", D, l, j);
                if (!distinct) continue;
                for (size_t i = 0; i < D; i++)
                    for (size_t c = 0; c < C; c++) {
                        const float enc = from.fc_weight[units[i] * C + c],
                                    dec = from.fc_proj_weight[c * W + units[i]];
                        const real got_enc = h.w_enc[(j * D + i) * C + c],
                                   got_dec = h.w_dec[(j * D + i) * C + c];
                        exact = exact && got_enc == enc && got_dec == real(double(W) / D * dec);
                        moved_enc += (got_enc - enc) * (got_enc - enc), rms_enc += enc * enc;
                        moved_dec += (got_dec - dec) * (got_dec - dec), rms_dec += dec * dec;
                    }
                if (D < W)
                    check(exact, "D %zu layer %zu expert %zu: exact copies, rows of W_dec times W/D", D, l,
                          j);
                else {
                    check_near(std::sqrt(moved_enc / rms_enc), 0.01, 0.002); // 384 numbers: 3.6% of deviation
                    check_near(std::sqrt(moved_dec / rms_dec), 0.01, 0.002);
                }
                if (j > 0 && D > 1)
                    check(!std::equal(h.w_enc + j * D * C, h.w_enc + (j + 1) * D * C, h.w_enc),
                          "D %zu: expert %zu is expert 0", D, j);
            }
    }
    // The topk router has no source: it starts as in a new model.
    const Upcycled u(file, 12, 3, "topk");
    std::vector<real> fresh(u.weights.size());
    init_parameters(u.config, u.table, fresh.data(), 3);
    const size_t router = size_t(u.p.h[1].router - u.weights.data());
    check(std::equal(&fresh[router], &fresh[router] + E * C, u.p.h[1].router) && fresh[router] != 0);

    const Config moe = config_of(variants[0]);
    auto refused = [&](std::function<void(Config&)> spoil, const char* message) {
        Config wanted = moe;
        spoil(wanted);
        check_error(check_upcycle(dense, wanted, "dense.safetensors"), message);
    };
    check_upcycle(dense, moe, "dense.safetensors");
    check_error(check_upcycle(moe, moe, "some.safetensors"),
                "some.safetensors: --upcycle starts from a dense model");
    refused([](Config& c) { c.ffn = "dense"; }, "--ffn dense does not go with it");
    refused([](Config& c) { c.d_expert = 25; }, "--d-expert 25: an upcycled expert has at most the 24 units");
    refused([](Config& c) { c.n_layer = 3; }, "--upcycle keeps layers, heads, channels");
    refused([](Config& c) { c.n_head = 4; }, "--upcycle keeps layers, heads, channels");
    refused([](Config& c) { c.n_embd = 32; }, "--upcycle keeps layers, heads, channels");
}

// A dense model that has learned something, and the mixture made from it: with all units in every expert the
// difference is that of the noise.
static void test_upcycled_loss() {
    const size_t B = 4, T = 10, V = 13;
    std::vector<int32_t> x(B * T), y(B * T);
    for (size_t i = 0; i < x.size(); i++)
        x[i] = int32_t(random_u64(3, 1, i) % V), y[i] = int32_t(random_u64(3, 2, i) % V);
    Model dense(config_of(variants[2]), B, T);
    init_parameters(dense.config, dense.table, dense.weights.data, 1);
    AdamW adam;
    adam.lr = 1e-2;
    for (uint64_t t = 1; t <= 60; t++) {
        zero_gradients(dense);
        forward(dense, x.data(), y.data(), B, T, 1);
        backward(dense, 0);
        update(dense, adam, t, 1);
    }
    const double trained = forward(dense, x.data(), y.data(), B, T).loss;
    check(trained < 1, "the dense model has learned: %g", trained);
    forward_logits(dense, x.data(), B, T);
    const std::string path = folder + "/trained.safetensors";
    save_model(path, dense.config, dense.table, dense.weights.data, 60);
    const SafeTensorsFile file(path);
    const Upcycled u(file, dense.config.dense_width(), 1);
    Model moe(u.config, B, T);
    std::copy(u.weights.begin(), u.weights.end(), moe.weights.data);
    forward_logits(moe, x.data(), B, T);
    double difference = 0, size = 0;
    for (size_t i = 0; i < B * T * V; i++) {
        difference += (moe.a.logits[i] - dense.a.logits[i]) * (moe.a.logits[i] - dense.a.logits[i]);
        size += dense.a.logits[i] * dense.a.logits[i];
    }
    check(std::sqrt(difference / size) < 0.02 && difference > 0, "logits differ by %g",
          std::sqrt(difference / size));
    const double upcycled = forward(moe, x.data(), y.data(), B, T).loss;
    check_near(upcycled, trained, 0.02);
    if (getenv("MOEX_TEST_VERBOSE"))
        printf("dense %.4f, upcycled %.4f, logits differ by %.2g\n", trained, upcycled,
               std::sqrt(difference / size));
}

// ---------------------------------------------------------------------------------------------------------
// The command line

struct Settings {
    int64_t count = 5, cold = 2;
    double rate = 0.25;
    std::string name = "x", kind = "relu", files;
    bool quick = false;
    Options options;
    explicit Settings(const char* positional = "") : options("prog", "Does things.", positional) {
        options.section("Numbers");
        options.add('c', "count", "N", &count, -3, 10, "how many");
        options.add(0, "cold", "N", &cold, 0, INT64_MAX, "how cold");
        options.add('r', "rate", "RATE", &rate, 0, 1.5, "how fast");
        options.section("Words");
        options.add('n', "name", "TEXT", &name, "what it is called");
        options.add(0, "kind", &kind, {"relu", "gelu"}, "which kind");
        options.add(0, "files", "GLOB", &files, "which files", Stored::Free);
        options.add('q', "quick", &quick, "hurry");
    }
    bool parse(std::vector<std::string> words) {
        words.insert(words.begin(), "prog");
        std::vector<char*> argv;
        for (std::string& w : words) argv.push_back(w.data());
        argv.push_back(nullptr);
        return options.parse(int(words.size()), argv.data());
    }
};

// A wrong command line: a UsageError (status 2) of one line that names every part.
static void check_usage(const std::vector<std::string>& words, const std::string& message) {
    Settings s;
    bool usage = false;
    check_error(
        try { s.parse(words); } catch (const UsageError&) {
            usage = true;
            throw;
        },
        message);
    check(usage, "%s: a usage error", message.c_str());
}

static void test_options() {
    Settings s;
    check(s.parse({}) && s.count == 5 && s.rate == 0.25 && s.name == "x" && s.kind == "relu" && !s.quick &&
          !s.options.given("count"));
    check(s.parse({"--count", "7", "--rate=1.5", "-n", "a b", "--kind", "gelu", "-q"}));
    check(s.count == 7 && s.rate == 1.5 && s.name == "a b" && s.kind == "gelu" && s.quick);
    check(s.options.given("count") && s.options.given("quick") && !s.options.given("cold"));
    check(s.parse({"-c-3", "-qr", "1e-3", "--cold", "9223372036854775807"}) && s.count == -3 &&
          s.rate == 1e-3 && s.cold == INT64_MAX);
    check(s.parse({"--cou", "10", "--q", "--na="}) && s.count == 10 && s.name.empty()); // abbreviations
    check(s.parse({"--count", "1", "--count", "2"}) && s.count == 2);                   // the last one counts

    check_usage({"--count", "abc"}, "--count: 'abc' is not a whole number");
    check_usage({"--count", ""}, "--count: '' is not a whole number");
    check_usage({"--count", "1.5"}, "--count: '1.5' is not a whole number");
    check_usage({"--count", "5x"}, "--count: '5x' is not a whole number");
    check_usage({"--count", "1e1"}, "--count: '1e1' is not a whole number");
    check_usage({"--count", "99999999999999999999"}, "--count: '99999999999999999999' is not a whole number");
    check_usage({"-c", "a\nb"}, "--count: 'a?b' is not a whole number");
    check_usage({"--count", "11"}, "--count: 11 is out of range, expected -3 to 10");
    check_usage({"--count=-4"}, "--count: -4 is out of range, expected -3 to 10");
    check_usage({"--cold", "-1"}, "--cold: -1 is out of range, expected 0 to 9223372036854775807");
    check_usage({"--rate", "fast"}, "--rate: 'fast' is not a number");
    check_usage({"--rate", "nan"}, "--rate: 'nan' is not a number");
    check_usage({"--rate", "inf"}, "--rate: 'inf' is not a number");
    check_usage({"--rate", "1e999"}, "--rate: '1e999' is not a number");
    check_usage({"--rate", "0.5 "}, "--rate: '0.5 ' is not a number");
    check_usage({"--rate", ""}, "--rate: '' is not a number");
    check_usage({"--rate", "1.6"}, "--rate: 1.6 is out of range, expected 0 to 1.5");
    check_usage({"--rate", "-0.1"}, "--rate: -0.1 is out of range");
    check_usage({"--kind", "swish"}, "--kind: 'swish' is unknown, expected relu|gelu");
    check_usage({"--kind", "RELU"}, "--kind: 'RELU' is unknown");
    check_usage({"--nonsense"}, "'--nonsense': unknown option");
    check_usage({"--nonsense=3"}, "'--nonsense=3': unknown option");
    check_usage({"-z"}, "-z: unknown option");
    check_usage({"-qz"}, "-z: unknown option");
    check_usage({"--co", "1"}, "'--co': "); // count or cold?
    check_usage({"--quick=yes"}, "--quick");
    check_usage({"--count"}, "--count: a value is missing");
    check_usage({"-q", "-c"}, "-c: a value is missing");
    check_usage({"stray"}, "'stray': unexpected argument");
    check_usage({"--count", "5", "--", "--rate"}, "'--rate': unexpected argument");

    // What was probably meant is said.
    check_usage({"--nmae", "x"}, "'--nmae': unknown option, or an ambiguous short form, or one that takes no "
                                 "value: did you mean --name?");
    check_usage({"--kind", "rleu"}, "--kind: 'rleu' is unknown, expected relu|gelu: did you mean relu?");
    check_usage({"-q", "1"}, "'1': unexpected argument: -q takes no value here, leave 1 out");
    check_usage({"--quick", "yes", "-c", "1"}, "'yes': unexpected argument: --quick takes no value here");
    write_all(folder + "/train_000007.bin", "x"), write_all(folder + "/train_000010.bin", "x");
    const std::string a = folder + "/train_000007.bin", b = folder + "/train_000010.bin",
                      quote =
                          ": unexpected argument: if the shell made several names of a pattern, quote it: "
                          "--files '" +
                          folder + "/train_*.bin'";
    check_usage({"--files", a, b, "-c", "1"}, quote);
    check_usage({"--files=" + a, b}, quote);
    check_usage({"--files", a, folder + "/absent"}, "absent': unexpected argument");
    check(nearest_word("smal", {"demo", "chess", "small", "medium"}) == "small" &&
          nearest_word("chses", {"demo", "chess"}) == "chess" &&
          nearest_word("runs/x.bin", {"demo"}).empty() && nearest_word("", {"demo"}).empty());
    check(edit_distance("", "abc") == 3 && edit_distance("abc", "acb") == 1 &&
          edit_distance("ab", "ab") == 0);
    check(s.options.stored("files") == Stored::Free && s.options.stored("count") == Stored::Fixed &&
          s.options.stored("threads") == Stored::No);

    Settings with_files("FILE...");
    check(with_files.parse({"a", "--count", "1", "b", "--", "-c"}) && with_files.count == 1);
    check((with_files.options.arguments == std::vector<std::string>{"a", "b", "-c"}));

    // Help prints every option once, with its default, and ends the program without an error.
    for (const char* flag : {"--help", "-h"}) {
        Settings asked;
        asked.count = 3;
        bool went_on = true;
        const std::string help = captured(1, [&] { went_on = asked.parse({flag, "--count", "junk"}); });
        check(!went_on);
        for (const char* part :
             {"usage: prog [options]\n", "Does things.", "\nNumbers\n", "-c, --count N", "how many [5]",
              "    --cold N", "how cold [2]", "-r, --rate RATE", "how fast [0.25]", "-n, --name TEXT",
              "what it is called [x]", "--kind relu|gelu", "which kind [relu]", "-q, --quick", "hurry\n",
              "    --threads N", "-h, --help"})
            check(help.find(part) != std::string::npos, "--help lacks %s", part);
        check(asked.count == 3);
    }

    // Values as text and back, exactly: what a checkpoint stores of a run.
    Settings from, to;
    from.parse({"--count", "-2", "--cold", "9223372036854775807", "--rate", "0.30000000000000004", "--name",
                "a=b c\"", "--kind", "gelu", "--quick"});
    check((from.options.names() ==
           std::vector<std::string>{"count", "cold", "rate", "name", "kind", "files", "quick", "threads"}));
    for (const std::string& name : from.options.names())
        if (from.options.stored(name) != Stored::No) to.options.restore(name, from.options.text(name));
    check(to.count == -2 && to.cold == INT64_MAX && to.rate == 0.1 + 0.2 && to.name == "a=b c\"" &&
          to.kind == "gelu" && to.quick);
    check(to.options.text("quick") == "1" && !to.options.given("quick"), "restored is not given");
    to.options.restore("quick", "0");
    check(!to.quick && to.options.text("quick") == "0");
    check_error(to.options.restore("count", "junk"), "--count: 'junk' is not a whole number");
    check_error(to.options.text("none"), "--none: there is no such option");
    check_error(to.options.restore("none", ""), "--none: there is no such option");
}

static void test_run_main() {
    auto ends = [](std::function<int()> body, int status, const std::string& text) {
        int got = -1;
        const std::string said = captured(2, [&] { got = run_main(body); });
        check(got == status && said == text, "status %d, said %s", got, said.c_str());
    };
    ends([] { return 0; }, 0, "");
    ends([] { return 7; }, 7, "");
    ends([]() -> int { fail("%s: line %d: wrong", "file", 3); }, 1, "moex: file: line 3: wrong\n");
    ends([]() -> int { fail_usage("--x: wrong"); }, 2, "moex: --x: wrong (see --help)\n");
    ends([]() -> int { throw std::bad_alloc(); }, 1, "moex: out of memory\n");
    ends([]() -> int { throw std::runtime_error("no more threads"); }, 1, "moex: no more threads\n");
    // Streams that are closed or full; each in a process of its own.
    auto in_child = [](std::function<int()> body) {
        fflush(nullptr);
        const pid_t child = fork();
        if (child == 0) _exit(body());
        int status = -1;
        waitpid(child, &status, 0);
        return status;
    };
    const std::string victim = folder + "/victim";
    for (const int closed : {0, 1, 2}) {
        int status = -1;
        captured(2, [&] {
            status = in_child([&] {
                close(closed);
                return run_main([&] {
                    const int fd = open(victim.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
                    if (closed == 1) printf("printed");
                    if (closed == 2) fprintf(stderr, "printed");
                    fflush(stdout);
                    return fd > 2 ? 7 : 1;
                });
            });
        });
        check(WIFEXITED(status) && WEXITSTATUS(status) == 7 && read_all(victim).empty(),
              "descriptor %d closed: %d", closed, status);
    }
    const std::string said = captured(2, [&] {
        const int status = in_child([] {
            dup2(open("/dev/full", O_WRONLY), 1);
            return run_main([] { return printf("results\n"), 0; });
        });
        check(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    });
    check(said == strf("moex: standard output: cannot be written: %s\n", strerror(ENOSPC)) ||
              access("/dev/full", F_OK) != 0,
          "%s", said.c_str());
    const std::string quiet = captured(2, [&] {
        const int status = in_child([] { // a reader that has gone
            int ends[2];
            if (pipe(ends) != 0) return 1;
            close(ends[0]);
            dup2(ends[1], 1);
            signal(SIGPIPE, SIG_IGN);
            return run_main([] { return printf("results\n"), 0; });
        });
        check(WIFSIGNALED(status) && WTERMSIG(status) == SIGPIPE);
    });
    check(quiet.empty());
    check(quoted("ab\n\x01\x7F") == "'ab??"
                                    "?'" &&
          quoted(std::string(100, 'a')) == "'" + std::string(80, 'a') + "...'");
    std::string not_const = "ab"; // with <iomanip>, std::quoted is there, too
    check(quoted(not_const) == "'ab'");
    check(strf("%d %s", 5, std::string(5000, 'x').c_str()).size() == 5002 && strf("%s", "").empty());
}

// ---------------------------------------------------------------------------------------------------------
// Files

static void test_files() {
    auto path = [](const char* name) { return folder + "/" + name; };
    // What stands under the name decides how it is written.
    struct stat st;
    write_all(path("target"), "old");
    check(chmod(path("target").c_str(), 0640) == 0 && symlink("target", path("link").c_str()) == 0 &&
          symlink("link", path("far").c_str()) == 0 && symlink("absent", path("dangling").c_str()) == 0 &&
          symlink("loop", path("loop").c_str()) == 0 && mkfifo(path("pipe").c_str(), 0600) == 0);
    write_all(path("far"), "new");
    check(read_all(path("target")) == "new" && lstat(path("far").c_str(), &st) == 0 && S_ISLNK(st.st_mode));
    check(lstat(path("target").c_str(), &st) == 0 && S_ISREG(st.st_mode) && (st.st_mode & 0777) == 0640);
    write_all(path("dangling"), "x");
    check(read_all(path("absent")) == "x" && lstat(path("dangling").c_str(), &st) == 0 &&
          S_ISLNK(st.st_mode));
    { AtomicFile(path("link")).write("z", 1); }
    check(read_all(path("target")) == "new", "without commit() the old file stays");
    check_error(AtomicFile(path("loop")), path("loop"));
    check_error(AtomicFile{folder}, folder, "a folder");
    const int reader = open(path("pipe").c_str(), O_RDONLY | O_NONBLOCK);
    write_all(path("pipe"), "through");
    char bytes[16] = {};
    check(read(reader, bytes, sizeof bytes) == 7 && std::string(bytes) == "through");
    check(lstat(path("pipe").c_str(), &st) == 0 && S_ISFIFO(st.st_mode));
    {
        AtomicFile pipe(path("pipe"));
        pipe.write("abc", 3);
        check_error(pipe.write_at(0, "x", 1), path("pipe"), "cannot be written");
    }
    close(reader);
    // A device like /dev/null, of our own where we may make one (who may not cannot replace the real one).
    const bool own = mknod(path("null").c_str(), S_IFCHR | 0666, makedev(1, 3)) == 0;
    const std::string null = own ? path("null") : "/dev/null";
    if (int fd = open(null.c_str(), O_WRONLY); fd >= 0) { // a mount may forbid devices
        close(fd);
        write_all(null, "into the void");
        check(lstat(null.c_str(), &st) == 0 && S_ISCHR(st.st_mode));
    }
    check(captured(1, [] { write_all("/dev/stdout", "said"); }) == "said");
    for (const std::string& name : file_names(folder))
        check(name.find(".tmp.") == std::string::npos, "%s is left", name.c_str());
    check(file_names(path("none")).empty());
    check_error(MappedFile(path("pipe")), path("pipe"), "not a regular file"); // and it does not wait
    check_error(MappedFile{folder}, folder, "a folder, not a regular file");
}

// A file that is cut short while it is mapped.
static void test_cut_while_mapped() {
    const std::string name = folder + "/mapped", other = folder + "/other";
    int status = -1;
    const auto in_child = [&](std::function<void()> body) {
        return captured(2, [&] {
            const pid_t child = fork();
            if (child == 0) {
                body();
                _exit(0);
            }
            waitpid(child, &status, 0);
        });
    };
    write_all(name, std::string(100000, 'x'));
    write_all(other, std::string(100000, 'y'));
    const std::string said = in_child([&] {
        MappedFile gone(other), first(name);
        { const MappedFile unmapped(std::move(gone)); }
        const MappedFile file(std::move(first)), second(other);
        if (truncate(name.c_str(), 10) != 0) _exit(3);
        unsigned sum = 0;
        for (size_t i = 0; i < file.size; i++) sum += file.data[i];
        _exit(sum == 1 ? 4 : 5); // not reached
    });
    check(WIFEXITED(status) && WEXITSTATUS(status) == 1, "status %d", status);
    check(said == "moex: " + name + ": cut short by another program while it was read, or its disk failed\n",
          "%s", said.c_str());
    const std::string nothing = in_child([&] { // of another cause: as always
        const MappedFile file(other);
        raise(SIGBUS);
    });
    check(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS && nothing.empty());
    check(read_all(other) == std::string(100000, 'y'), "this process reads on");
}

// ---------------------------------------------------------------------------------------------------------
// Threads

// Trees that look like /proc and /sys of containers.
static void test_threads() {
    auto file = [](const std::string& path, const std::string& text) {
        make_directories(parent_directory(folder + "/" + path));
        write_all(folder + "/" + path, text);
    };
    check(cpu_quota(folder) == INFINITY, "no control groups");
    // Version 2: the group's own quota, or a smaller one above it.
    file("v2/proc/self/cgroup", "0::/user/job\n");
    file("v2/sys/fs/cgroup/user/job/cpu.max", "max 100000\n");
    check(cpu_quota(folder + "/v2") == INFINITY);
    file("v2/sys/fs/cgroup/user/job/cpu.max", "150000 100000\n");
    check(cpu_quota(folder + "/v2") == 1.5);
    file("v2/sys/fs/cgroup/user/cpu.max", "50000 100000\n");
    check(cpu_quota(folder + "/v2") == 0.5);
    file("v2/sys/fs/cgroup/cpu.max", "20000 100000\n");
    check(cpu_quota(folder + "/v2") == 0.2);
    // Version 1, with the files at the top only, as in a container.
    file("v1/proc/self/cgroup", "12:memory:/docker/a\n4:cpu,cpuacct:/docker/a\n1:name=systemd:/docker/a\n");
    file("v1/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
    file("v1/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
    check(cpu_quota(folder + "/v1") == INFINITY);
    file("v1/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "250000\n");
    check(cpu_quota(folder + "/v1") == 2.5);
    file("broken/proc/self/cgroup", "0::\nrubbish\n4:cpu:\n0:");
    file("broken/sys/fs/cgroup/cpu.max", "nonsense");
    check(cpu_quota(folder + "/broken") == INFINITY);

    const struct {
        int asked, environment, cores;
        double quota;
        int count;
        const char* text;
    } cases[] = {{0, 0, 2, INFINITY, 2, "2 threads of 2 cores"},
                 {0, 0, 1, INFINITY, 1, "1 thread of 1 core"},
                 {0, 0, 8, 0.5, 1, "1 thread: a quota of 0.5 cores"},
                 {0, 0, 8, 2.6, 3, "3 threads: a quota of 2.6 cores"},
                 {0, 0, 2, 8, 2, "2 threads of 2 cores"},
                 {0, 4, 2, 0.5, 4, "4 threads, as OMP_NUM_THREADS says"},
                 {1, 4, 2, INFINITY, 1, "1 thread, as --threads says"}};
    for (const auto& c : cases) {
        const ThreadChoice choice = choose_threads(c.asked, c.environment, c.cores, c.quota);
        check(choice.count == c.count && choice.text == c.text, "%d: %s, expected %s", choice.count,
              choice.text.c_str(), c.text);
    }
#ifdef _OPENMP
    Settings s;
    check(s.parse({"--threads", "3"}) && thread_count() == 3 && threads_text().find("3 threads") == 0);
    set_thread_count(1);
#endif
    check_usage({"--threads", "-1"}, "--threads: -1 is out of range");
}

// ---------------------------------------------------------------------------------------------------------
// Numbers for people

static void test_terminal() {
    const std::pair<double, const char*> counts[] = {
        {0, "0"},         {7, "7"},           {812, "812"},      {999, "999"},     {3.25, "3.2"},
        {1000, "1.00K"},  {999.6, "1.00K"},   {1234, "1.23K"},   {9994, "9.99K"},  {9996, "10.0K"},
        {12600, "12.6K"}, {99940, "99.9K"},   {99960, "100K"},   {999400, "999K"}, {999600, "1.00M"},
        {3.4e9, "3.40G"}, {5.741e9, "5.74G"}, {1.5e12, "1.50T"}, {2e15, "2.00P"},  {2e18, "2000P"}};
    for (const auto& [x, text] : counts)
        check(human_count(x) == text, "%g: %s, expected %s", x, human_count(x).c_str(), text);
    const std::pair<double, const char*> bytes[] = {{0, "0 B"},           {812, "812 B"},
                                                    {1023, "1023 B"},     {1024, "1.0 KiB"},
                                                    {1536, "1.5 KiB"},    {12.6 * 1048576, "12.6 MiB"},
                                                    {1048575, "1.0 MiB"}, {2.5 * (1 << 30), "2.5 GiB"},
                                                    {1e15, "909.5 TiB"}};
    for (const auto& [x, text] : bytes)
        check(human_bytes(x) == text, "%g: %s, expected %s", x, human_bytes(x).c_str(), text);
    const std::pair<double, const char*> durations[] = {
        {0, "0s"},         {0.4, "0s"},      {4.2, "4s"},       {59.4, "59s"},
        {59.6, "1m00s"},   {83, "1m23s"},    {3599.6, "1h00m"}, {7500, "2h05m"},
        {86399, "23h59m"}, {86400, "1d00h"}, {200000, "2d07h"}, {1e9, "11574d01h"},
        {4e9, "?"},        {-1, "?"},        {NAN, "?"},        {INFINITY, "?"}};
    for (const auto& [x, text] : durations)
        check(human_duration(x) == text, "%g: %s, expected %s", x, human_duration(x).c_str(), text);

    check(printable("a\x1B[2J\tb\n\x7F\xC3\xA9") == "a.[2J\tb\n.\xC3\xA9",
          "what a terminal would obey becomes a dot");

    // A line that is too long loses what is missed least.
    const std::vector<LinePart> parts = {{3, "step 1"}, {1, "norm 2"}, {2, "lr 3"}};
    check(fitted_line(parts, " | ", 0) == "step 1 | norm 2 | lr 3");
    check(fitted_line(parts, " | ", 22) == "step 1 | norm 2 | lr 3");
    check(fitted_line(parts, " | ", 21) == "step 1 | lr 3" && fitted_line(parts, " | ", 12) == "step 1");
    check(fitted_line(parts, " | ", 3) == "ste");
    check(cut_to("\xC3\xA9\xC3\xA9x", 2) == "\xC3\xA9\xC3\xA9" && text_columns("\xC3\xA9x") == 2);
    Progress bar("validation of a model", "rows", 100);
    for (size_t width = 20; width < 120; width++) {
        const std::string line = bar.line(25, 5, width);
        check(line.size() <= width && line.find("25%") != std::string::npos, "%zu: %s", width, line.c_str());
    }
    const StepRecord record = {999999, 3.1234, 1.002, 0.812, 3e-4, 81.25, 12600, 812};
    check(step_line(record, 1000000, 83, 0) ==
          "step  999999/1000000 | loss 3.1234 | aux 1.002 | norm 0.812 | lr 3.00e-04 | l0 812 | 81.2 ms | "
          "12.6K tok/s | eta 1m23s");
    check(step_line(record, 1000000, 83, 90) ==
          "step  999999/1000000 | loss 3.1234 | l0 812 | 81.2 ms | 12.6K tok/s | eta 1m23s");
    for (size_t width = 39; width < 130; width++)
        check(step_line(record, 1000000, 83, width).size() <= width &&
              step_line(record, 1000000, 83, width).find("loss 3.1234") != std::string::npos);
    for (const size_t window : {40, 60, 80, 93, 200}) {
        const SettingsTable table(window);
        const std::string said = captured(1, [&] {
            table.rule();
            table.row("training data", "%s",
                      "a value as long as it takes, and a/path/that/is/longer/than/it");
            table.row("", "%s", "d\xC3\xA9j\xC3\xA0 vu");
        });
        size_t begin = 0;
        for (size_t end; (end = said.find('\n', begin)) != std::string::npos; begin = end + 1)
            check(text_columns(said.substr(begin, end - begin)) == std::min<size_t>(window, 93), "%zu: %s",
                  window, said.c_str());
    }

    Progress quiet("work", "things", 100); // says nothing when the work is over before anyone wonders
    check(captured(2, [&] { quiet.update(50), quiet.finish(100); }).empty());
    Progress loud("work", "things", 100);
    loud.terminal = false;
    check(captured(2, [&] { loud.draw(25, loud.begin + 5); }) ==
          "work  [######..................]   25%  5 things/s  eta 15s\n");
    check(captured(2, [&] { loud.draw(100, loud.begin + 5); }) ==
          "work  [########################]  100%  20 things/s  5s\n");
    loud.total = 0; // the end is not known
    check(captured(2, [&] { loud.draw(1500, loud.begin + 2); }) == "work  1.50K things  750 things/s  2s\n");
}

// ---------------------------------------------------------------------------------------------------------
// Random numbers

static void test_random() {
    // Written down once: data order, initial weights and samples of every run depend on these.
    check(mix64(1234567) == 6457827717110365317ull, "splitmix64's first number for seed 1234567");
    check(random_u64(0, 0, 0) == 0x238275bc38fcbe91ull && random_u64(1, 2, 3) == 0xd0734750fde362b3ull);
    check(random_u64(42, 7, uint64_t(1) << 40) == 0x69f4d75b626716f5ull &&
          random_u64(~0ull, ~0ull, ~0ull) == 0x595b17f487c0e71bull);
    check(random_uniform(0, 0, 0) == 0.13870941014555427 && random_uniform(1, 2, 3) == 0.814259011529328);
    check_near(random_normal(0, 0, 0), 0.21902971165136337, 1e-15);
    check_near(random_normal(1, 2, 3), 1.1931383653235457, 1e-15);
    check_near(random_normal(~0ull, ~0ull, ~0ull), -1.2431509133161598, 1e-15);
    check(random_stream("") == 0xcbf29ce484222325ull &&
          random_stream("a") == 0xaf63dc4c8601ec8cull && // FNV-1a's published values
          random_stream("foobar") == 0x85944171f73967e8ull &&
          random_stream("wte.weight") == 0x61d3a46d83bc4189ull);
    Random r{5, 6};
    for (const uint64_t expected : {75, 76, 85, 83, 33, 70}) check(r.below(100) == expected);
    check(r.index == 6 && r.u64() == random_u64(5, 6, 6) && r.uniform() == random_uniform(5, 6, 7) &&
          r.index == 8);
    for (int i = 0; i < 100; i++) check(r.below(1) == 0 && r.below(3) < 3);

    // Uniform over 256 bins, by chi-square (255 degrees of freedom, deviation 22.6), along every coordinate.
    const size_t n = 1 << 17;
    for (int along = 0; along < 3; along++) {
        std::vector<double> bins(256), low_bits(256);
        double pairs = 0;
        for (uint64_t i = 0; i < n; i++) {
            auto at = [&](uint64_t k) {
                return along == 0   ? random_u64(k, 1, 2)
                       : along == 1 ? random_u64(1, k, 2)
                                    : random_u64(1, 2, k);
            };
            const uint64_t x = at(i);
            bins[x >> 56]++, low_bits[x & 255]++;
            pairs += (double(x >> 11) * 0x1p-53 - 0.5) * (double(at(i + 1) >> 11) * 0x1p-53 - 0.5);
        }
        for (const std::vector<double>* b : {&bins, &low_bits}) {
            double chi = 0;
            for (const double count : *b) chi += (count - n / 256.0) * (count - n / 256.0) / (n / 256.0);
            check(chi > 255 - 90 && chi < 255 + 90, "chi-square %.1f along %d", chi, along);
        }
        check(std::fabs(pairs * 12 / n) < 4 / std::sqrt(double(n)), "neighbours correlate: %g along %d",
              pairs * 12 / n, along);
    }
    double sum = 0, square = 0, fourth = 0, low = 1, high = 0, beyond = 0;
    for (size_t i = 0; i < n; i++) {
        const double u = random_uniform(7, 8, i), x = random_normal(7, 9, i);
        low = std::fmin(low, u), high = std::fmax(high, u);
        sum += x, square += x * x, fourth += x * x * x * x, beyond += std::fabs(x) > 3;
    }
    check(low >= 0 && low < 1e-4 && high < 1 && high > 1 - 1e-4);
    const double root = std::sqrt(double(n)); // of the moments: deviations 1, sqrt 2, sqrt 96 over the root
    check_near(sum / n, 0, 4.5 / root);
    check_near(square / n, 1, 4.5 * 1.4143 / root);
    check_near(fourth / n, 3, 4.5 * 9.798 / root);
    check_near(beyond / n, 0.0027, 4.5 * std::sqrt(0.0027) / root);
}

// ---------------------------------------------------------------------------------------------------------
// Schedule

static void test_schedule() {
    // --l0-target: none in the warm-up of 10 steps, 1e-3 after it, and moved every 100 steps.
    check(next_l0_weight(0, 50, 10, 9, 10) == 0 && next_l0_weight(0, 50, 10, 10, 10) == 1e-3);
    check(next_l0_weight(0.5, 50, 10, 150, 10) == 0.5);
    check_near(next_l0_weight(0.5, 12, 10, 200, 10), 0.5 * std::exp(0.04), 1e-15);
    check_near(next_l0_weight(0.5, 50, 10, 200, 10), 0.5 * std::exp(0.2), 1e-15);
    check_near(next_l0_weight(0.5, 5, 10, 200, 10), 0.5 * std::exp(-0.1), 1e-15);
    check(next_l0_weight(0.9, 50, 10, 200, 10) == 1 && next_l0_weight(1e-6, 0, 10, 200, 10) == 1e-6);
    const Schedule s = {0.1, 0.1, 10, 110};
    const std::pair<int64_t, double> values[] = {{0, 0.01},
                                                 {4, 0.05},
                                                 {9, 0.1},
                                                 {10, 0.1}, // step warmup - 1 is the first at the peak
                                                 {35, 0.1 * (0.1 + 0.9 * (1 + std::sqrt(0.5)) / 2)},
                                                 {60, 0.055},
                                                 {85, 0.1 * (0.1 + 0.9 * (1 - std::sqrt(0.5)) / 2)},
                                                 {110, 0.01},
                                                 {1000, 0.01}};
    for (const auto& [step, lr] : values) check_near(s.at(step), lr, 1e-16);
    for (int64_t step = 10; step < 110; step++)
        check(s.at(step + 1) < s.at(step) && s.at(step) >= 0.01, "falls after step %lld", (long long)step);
    const Schedule no_warmup = {0.1, 0, 0, 100};
    check_near(no_warmup.at(0), 0.1, 1e-17);
    check_near(no_warmup.at(50), 0.05, 1e-17);
    check_near(no_warmup.at(100), 0, 1e-17);
    const Schedule only_warmup = {0.1, 0.1, 20, 20};
    check_near(only_warmup.at(0), 0.005, 1e-17);
    check_near(only_warmup.at(19), 0.1, 1e-17);
    check(std::isfinite(only_warmup.at(20)));
    const Schedule constant = {0.1, 1, 0, 10};
    for (int64_t step = 0; step <= 10; step++) check_near(constant.at(step), 0.1, 1e-16);
    check(Schedule().at(0) == 3e-4);

    // Made longer: in the warm-up as if so planned; later without a jump, from where it is to the same end.
    const Schedule early = lengthened(s, 10, 210), planned = {0.1, 0.1, 10, 210};
    for (int64_t step = 0; step <= 210; step++) check(early.at(step) == planned.at(step));
    const Schedule late = lengthened(s, 60, 160);
    check(late.lengthened_at == 60 && late.steps == 160);
    check_near(late.at(60), 0.055, 1e-16);
    check_near(late.at(110), (0.055 + 0.01) / 2, 1e-16);
    check_near(late.at(160), 0.01, 1e-16);
    for (int64_t step = 60; step < 160; step++) check(late.at(step + 1) < late.at(step));
    const Schedule finished = lengthened(s, 110, 150), again = lengthened(late, 110, 300);
    for (int64_t step = 110; step <= 150; step++) check_near(finished.at(step), 0.01, 1e-16);
    check(again.lengthened_at == 110);
    check_near(again.at(110), late.at(110), 1e-16);
    check_near(again.at(300), 0.01, 1e-16);
}

int main() {
    set_thread_count(1); // the models here are too small for more
    return run_main([] {
        std::string name = std::filesystem::temp_directory_path() / "moex_test_lib.XXXXXX";
        if (!mkdtemp(name.data())) fail("%s: cannot be created: %s", name.c_str(), strerror(errno));
        auto in_folder = [&](auto test) { // each test has an empty folder
            folder = name + "/files";
            make_directories(folder);
            test();
            std::filesystem::remove_all(folder);
        };
        try {
            for (auto test :
                 {test_config, test_parameters, test_checkpoint_dtypes, test_bad_checkpoints, test_newest,
                  test_upcycle, test_upcycled_loss, test_options, test_files, test_cut_while_mapped,
                  test_threads, test_run_main, test_terminal, test_random, test_schedule})
                in_folder(test);
            for (const Variant& v : variants)
                in_folder([&] { test_round_trip<float>(v, "F32"), test_round_trip<double>(v, "F64"); });
        } catch (const std::exception& e) {
            check(false, "a test ended with: %s", e.what());
        }
        std::filesystem::remove_all(name);
        return finish();
    });
}
