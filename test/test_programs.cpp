// The programs as a user meets them: run as processes with flags, files and signals. argv[1] is the folder
// that holds train_moex_cpu, sample_cpu, evaluate, make_text and make_chess. Everything is made in a
// temporary folder that is removed at the end: chess games, text, tiny models, and every kind of broken file.
#include "../data/chess.h"
#include "../data/loader.h"
#include "../dev/cpu/model.h"
#include "../dev/lib/terminal.h"
#include "../dev/run/checkpoint.h"
#include "process.h"
#include <csignal>
#include <regex>

namespace fs = std::filesystem;
using std::string, std::vector;

static string train, sampler, evaluator, make_text, make_chess; // the programs, quoted for the shell
static string cpu_train;                                        // the reference, which may be `train` itself
static string files; // the folder of the inputs that the project keeps: test/files

// ---------------------------------------------------------------------------------------------------------
// Files

static string replaced(string text, const string& from, const string& to) {
    const size_t at = text.find(from);
    if (!check(at != string::npos, "\"%s\" to be replaced", from.c_str())) return text;
    return text.replace(at, from.size(), to);
}
static vector<string> names_in(const string& folder) {
    vector<string> names;
    for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
}
static vector<string> lines_of(const string& text) {
    vector<string> lines;
    std::istringstream in(text);
    for (string line; std::getline(in, line);) lines.push_back(line);
    return lines;
}

// chess-32 rows, each a text of exactly R characters.
static void write_rows(const string& path, const vector<string>& rows) {
    ShardWriter shard(path, TOKENIZER_CHESS, rows[0].size());
    for (const string& row : rows) {
        vector<uint16_t> ids;
        for (const char c : row) ids.push_back(uint16_t(chess_id(c)));
        shard.write(ids.data(), ids.size());
    }
    shard.commit();
}

static string model_file(const string& dir, int step) { return model_path(dir, step); }
static string state_file(const string& dir, int step) { return state_path(dir, step); }

// The log without what the clock decides.
static string log_without_times(const string& dir) {
    return std::regex_replace(read_file(dir + "/log.jsonl"), std::regex("\"ms\":[^,]*,\"tok_s\":[^,]*,"), "");
}

// The value of `field` in the last line of a log that has it; NaN if none has.
static double last_in_log(const string& dir, const string& field, double step = NAN) {
    double value = NAN;
    for (const string& text : lines_of(read_file(dir + "/log.jsonl"))) {
        const Json line = parse_json(text, dir);
        const Json* found = line.find(field);
        if (found && (std::isnan(step) || line.find("step")->number == step)) value = found->number;
    }
    return value;
}

// The last checkpoint and the log of two runs are the same, byte for byte.
static void same_run_at(int line, const string& a, const string& b, int step) {
    for (const string& name : {model_path("", step), state_path("", step)}) {
        const string left = read_file(a + name), right = read_file(b + name);
        check_at(!left.empty() && left == right, __FILE__, line, a + name + " and " + b + name + " differ");
    }
    const string left = log_without_times(a), right = log_without_times(b);
    check_at(!left.empty() && left == right, __FILE__, line, "the logs of " + a + " and " + b + " differ");
}
#define same_run(a, b, step) same_run_at(__LINE__, a, b, step)

// Whether the trainer keeps bf16 weights beside the fp32 ones of its checkpoints.
static bool in_bf16() { return train != cpu_train && train.find("fp32") == string::npos; }

// A small run on the chess rows: 4 x 32 tokens a step.
static const string tiny = " --layers 2 --heads 2 --embd 16 --experts 4 --d-expert 16 --seq 32 --batch 4 ";
static const string chess_data = " --train 'chess/train*.bin' --val 'chess/val*.bin' ";
static string tiny_run(const string& out, int steps, const string& more = "") {
    return train + chess_data + tiny + " --sample-every 0 --lr 3e-3 --out '" + out + "' --steps " +
           std::to_string(steps) + " " + more;
}

// ---------------------------------------------------------------------------------------------------------
// Inputs that all tests share

static void make_inputs() {
    const Result games =
        works(make_chess + " --games 260 --row 65 --val-fraction 0.1 --threads 1 --out long");
    check(games.out.find("260 in") != string::npos);
    works(make_chess + " --games 260 --row 33 --val-fraction 0.1 --threads 1 --out chess");
    // 18 rows: batches of 4 or 8 run over the end of an epoch.
    vector<string> rows(18);
    const Shard shard("chess/train_000000.bin");
    for (size_t i = 0; i < 18 * 33; i++) rows[i / 33] += chess_char(shard.tokens[i]);
    write_rows("few.bin", rows);

    string text;
    Random random{7};
    for (int i = 0; i < 1500; i++) {
        const char* nouns[] = {"the cat", "a dog", "one bird", "the old man"};
        const char* verbs[] = {" sees ", " likes ", " follows "};
        text += nouns[random.below(4)] + string(verbs[random.below(3)]) + nouns[random.below(4)] + ".\n";
    }
    write_file("grammar.txt", text);
    works("sh -c \"cat grammar.txt | " + make_text + " --out text -\"");
    works(tiny_run("base", 20, "--checkpoint-every 10 --val-every 10"));
}

// ---------------------------------------------------------------------------------------------------------
// Command lines

static void check_names(const string& help, const string& flags) {
    std::istringstream list(flags);
    for (string flag; std::getline(list, flag, ';');)
        check(help.find(flag) != string::npos, "--help names %s", flag.c_str());
}

static void test_help() {
    check_names(
        works(train + " --help").out,
        "-i, --train;-j, --val;-o, --out;-e, --init;-b, --batch;-t, --seq;-d, --total-tokens;-x, --steps;"
        "-l, --lr;-u, --warmup;-q, --final-lr-frac;-c, --weight-decay;    --clip;    --aux-weight;"
        "    --upcycle;-v, --val-every;-m, --val-batches;-s, --sample-every;-n, --checkpoint-every;"
        "-y, --resume;    --seed;-z, --zero-stage;-r, --recompute;    --layers;    --heads;    --embd;"
        "    --experts;    --active;    --d-expert;    --ffn moe|dense;    --act relu|gelu;"
        "    --router sparsity|topk;    --print-every;-h, --help;[runs/train];[0.1];TOKENS;STEPS");
    check_names(works(sampler + " --help").out,
                "--ckpt FILE;--prompt TEXT;-n, --tokens TOKENS;--temperature;--top-k;"
                "--top-p;--seed;--board;--trace;--tokenizer");
    check_names(works(evaluator + " --help").out, "--ckpt;-j, --val;--rows;--games;-t, --seq");
    check_names(works(make_text + " -h").out,
                "-o, --out;--val-fraction;--separator;--shard-tokens;--overwrite");
    check_names(works(make_chess + " -h").out,
                "--games;--pgn;--uci;-o, --out;--row;--val-fraction;--seed;--threads");
}

static void test_usage() {
    for (const string& program : {train, sampler, evaluator, make_text, make_chess}) {
        refuses(program + " --nonsense 3", 2, "--nonsense", "unknown option");
        refuses(program + " -Q", 2, "-Q", "unknown option");
    }
    for (const char* program : {"train", "evaluate", "sample", "make_chess"}) {
        const string p = program == string("train")      ? train
                         : program == string("evaluate") ? evaluator
                         : program == string("sample")   ? sampler
                                                         : make_chess;
        refuses(p + " stray", 2, "'stray'", "unexpected argument");
    }
    const struct {
        const string& program;
        const char *arguments, *flag, *what;
    } cases[] = {
        {train, "--batch x", "--batch", "not a whole number"},
        {train, "--batch 4.5", "--batch", "not a whole number"},
        {train, "--batch ''", "--batch", "not a whole number"},
        {train, "-b -1", "--batch", "out of range"},
        {train, "--steps 99999999999999999999", "--steps", "not a whole number"},
        {train, "-x 99999999999999", "--steps", "out of range"},
        {train, "--lr nan", "--lr", "not a number"},
        {train, "--lr inf", "--lr", "not a number"},
        {train, "-l 1e-3x", "--lr", "not a number"},
        {train, "--lr -1", "--lr", "out of range"},
        {train, "--clip -1", "--clip", "out of range"},
        {train, "--aux-weight x", "--aux-weight", "not a number"},
        {train, "-q 1.5", "--final-lr-frac", "out of range"},
        {train, "-c -0.1", "--weight-decay", "out of range"},
        {train, "-u -2", "--warmup", "out of range"},
        {train, "-t x", "--seq", "not a whole number"},
        {train, "-d x", "--total-tokens", "not a whole number"},
        {train, "-v -1", "--val-every", "out of range"},
        {train, "-m -1", "--val-batches", "out of range"},
        {train, "-s -1", "--sample-every", "out of range"},
        {train, "-n -1", "--checkpoint-every", "out of range"},
        {train, "--print-every 0", "--print-every", "out of range"},
        {train, "--seed -1", "--seed", "out of range"},
        {train, "-z 2", "--zero-stage", "out of range"},
        {train, "-r 3", "--recompute", "out of range"},
        {train, "--layers 1025", "--layers", "out of range"},
        {train, "--heads x", "--heads", "not a whole number"},
        {train, "--embd 70000", "--embd", "out of range"},
        {train, "--experts -1", "--experts", "out of range"},
        {train, "--active 5000", "--active", "out of range"},
        {train, "--d-expert 2000000", "--d-expert", "out of range"},
        {train, "--ffn both", "--ffn", "unknown"},
        {train, "--act tanh", "--act", "unknown"},
        {train, "--router hash", "--router", "unknown"},
        {train, "--resume=maybe", "--resume", "option"},
        {train, "--lr", "--lr", "missing"},
        {train, "-i", "-i", "missing"},
        {train, "", "--train", "missing"},
        {sampler, "", "--ckpt", "missing"},
        {sampler, "--ckpt", "--ckpt", "missing"},
        {sampler, "--temperature -1", "--temperature", "out of range"},
        {sampler, "--temperature hot", "--temperature", "not a number"},
        {sampler, "--top-p 1.1", "--top-p", "out of range"},
        {sampler, "--top-k -1", "--top-k", "out of range"},
        {sampler, "-n -1", "--tokens", "out of range"},
        {sampler, "--seed x", "--seed", "not a whole number"},
        {evaluator, "", "--val", "missing"},
        {evaluator, "--val x", "--ckpt", "missing"},
        {evaluator, "--rows -1", "--rows", "out of range"},
        {evaluator, "--games x", "--games", "not a whole number"},
        {evaluator, "-t -1", "--seq", "out of range"},
        {make_text, "x", "--out", "missing"},
        {make_text, "--out x", "no text", "expected"},
        {make_text, "--val-fraction 2", "--val-fraction", "out of range"},
        {make_text, "--shard-tokens 1", "--shard-tokens", "out of range"},
        {make_chess, "--out x", "--games", "no games"},
        {make_chess, "--games 5", "--out", "missing"},
        {make_chess, "--games 0", "--games", "out of range"},
        {make_chess, "--row 7", "--row", "out of range"},
        {make_chess, "--uci x --out x", "--games", "needs"},
        {make_chess, "--games 5 --pgn x --uci y --out x", "--pgn", "--uci"},
    };
    for (const auto& c : cases) refuses(c.program + " " + c.arguments, 2, c.flag, c.what);
    // Values that fit each other badly.
    refuses(tiny_run("usage", 5, "--total-tokens 200"), 2, "--total-tokens", "200", "128");
    refuses(tiny_run("usage", 5, "--warmup 6"), 2, "--warmup 6", "--steps 5");
    refuses(tiny_run("usage", 5, "--upcycle"), 2, "--upcycle", "--init");
    refuses(tiny_run("", 5), 2, "--out");
    check(!fs::exists("usage"), "a refused run leaves no folder");
}

// ---------------------------------------------------------------------------------------------------------
// A run: what it prints, logs and writes

static void test_what_is_printed() {
    const Result r = works(tiny_run("printed", 12, "--val-every 5 --checkpoint-every 6 --print-every 5"));
    const vector<string> lines = lines_of(r.out);
    const std::regex step_line(
        "step ( {0,1}[0-9]{1,2})/12 \\| loss [0-9]+\\.[0-9]{4} \\| aux [0-9]+\\.[0-9]{3} "
        "\\| norm [0-9]+\\.[0-9]{3} \\| lr [0-9]\\.[0-9]{2}e[-+][0-9]{2} \\| l0 [0-9]+ "
        "\\| [0-9]+\\.[0-9] ms \\| [0-9.]+[KMG]? tok/s \\| eta [0-9dhms]+");
    string steps, validations, checkpoints;
    for (const string& line : lines) {
        std::smatch match;
        if (line.find("| loss ") != string::npos) {
            check(std::regex_match(line, match, step_line), "step line: %s", line.c_str());
            if (!match.empty()) steps += match[1].str() + ",";
        } else if (std::regex_match(line, match,
                                    std::regex("step ([0-9]+)/12 \\| val loss [0-9]\\.[0-9]{4}"))) {
            validations += match[1].str() + ",";
        } else if (line.rfind("checkpoint ", 0) == 0) {
            checkpoints += line.substr(11) + ",";
        }
    }
    check(works(train + tiny + " --train 'long/train*.bin' --steps 1 --out first_part")
              .out.find("the first 33 of the 65 tokens of each row, --seq 64 would take all") !=
          string::npos);
    check(steps == " 1, 5,10,12,", "--print-every 5 printed steps %s", steps.c_str());
    check(validations == "0,5,10,12,", "validations at %s", validations.c_str());
    check(checkpoints == model_file("printed", 6) + "," + model_file("printed", 12) + ",", "%s",
          checkpoints.c_str());
    for (const char* part :
         {"2 layers, 2 heads, 16 channels, 32 positions", "2 of 4 experts of 16 relu units", "parameters",
          "of which a token uses", "tokens per epoch", "FLOP per token", "memory in all",
          "accumulation x rows x positions", "seed 1"})
        check(r.out.find(part) != string::npos, "the settings say: %s", part);
    check(lines.back() == "done: " + model_file("printed", 12), "%s", lines.back().c_str());
    check(r.err.empty());

    const string all = works(tiny_run("printed_all", 3)).out;
    for (const char* step : {"step 1/3 | loss", "step 2/3 | loss", "step 3/3 | loss"})
        check(all.find(step) != string::npos, "%s", step);
    const string sampled =
        works(train + chess_data + tiny + "--out printed_samples --steps 4 -s 2 -j ''").out;
    for (const char* part :
         {"--- sample at step 2\n;", "--- sample at step 4\n;", "validation data      | none"})
        check(sampled.find(part) != string::npos, "%s", part);
}

static void test_log() {
    size_t steps = 0, evaluations = 0, loads = 0;
    for (const string& text : lines_of(read_file("printed/log.jsonl"))) {
        const Json line = parse_json(text, "log.jsonl");
        string keys;
        for (const string& key : line.keys) keys += key + ",";
        bool finite = true;
        for (const Json& item : line.items) finite &= item.type != Json::Null;
        check(finite, "%s", text.c_str());
        const string always = "step,loss,aux,norm,lr,ms,tok_s,";
        if (keys == always + "l0," || keys == always) {
            check(line.find("step")->number == double(++steps));
            check(line.find("loss")->number > 0 && line.find("norm")->number > 0 &&
                  line.find("ms")->number > 0);
            const Json* l0 = line.find("l0"); // counted at least where the step's line is shown
            check(l0 ? l0->number >= 0 && l0->number <= 32 : steps % 5 != 0 && steps != 1 && steps != 12,
                  "%s", text.c_str());
            check(line.find("aux")->number >= 0.5 && line.find("aux")->number <= 4, "%s", text.c_str());
            if (steps == 1) check_near(line.find("lr")->number, 3e-3, 1e-9); // warm-up of one step
            if (steps == 12) check(line.find("lr")->number < 4.5e-4, "the cosine ends near a tenth");
        } else if (keys == "step,val_loss,") {
            evaluations++;
        } else if (check(keys == "step,load,", "a line of the log: %s", text.c_str())) {
            loads++;
            for (const Json& layer : line.find("load")->items) {
                double sum = 0;
                for (const Json& share : layer.items) sum += share.number;
                check(layer.items.size() == 4);
                check_near(sum, 1, 1e-5);
            }
            check(line.find("load")->items.size() == 2);
        }
    }
    check(steps == 12 && evaluations == 4 && loads == 4, "%zu %zu %zu", steps, evaluations, loads);
}

static void test_checkpoint_files() {
    check(names_in("printed") ==
          (vector<string>{"log.jsonl", "model_00000006.safetensors", "model_00000012.safetensors",
                          "state_00000006.safetensors", "state_00000012.safetensors"}));
    const SafeTensorsFile model(model_file("printed", 12)), state(state_file("printed", 12));
    const Strings expected = {{"format", "pt"},     {"model", "moex"},        {"step", "12"},
                              {"n_layer", "2"},     {"n_head", "2"},          {"n_embd", "16"},
                              {"block_size", "32"}, {"vocab_size", "32"},     {"ffn", "moe"},
                              {"n_expert", "4"},    {"n_expert_active", "2"}, {"d_expert", "16"},
                              {"act", "relu"},      {"router", "sparsity"},   {"tokenizer", "chess-32"}};
    check(model.metadata == expected);
    const vector<Tensor> table = tensor_table(read_config(model));
    check_tensors(state, table, {"m.", "v."});
    check(metadata_entry(state, "step") == "12" && metadata_entry(state, "position") == "48");
    for (const SafeTensorsFile* file : {&model, &state})
        for (const SafeTensor& t : file->tensors) check(t.dtype == F32, "%s is fp32", t.name.c_str());
    // Same seed and flags: the same bits. Another seed: others.
    works(tiny_run("printed_again", 12, "--val-every 5 --checkpoint-every 6 --print-every 1"));
    check(read_file(model_file("printed", 12)) == read_file(model_file("printed_again", 12)));
    works(tiny_run("printed_seed", 12, "--seed 2 --checkpoint-every 0 -v 0"));
    check(read_file(model_file("printed", 12)) != read_file(model_file("printed_seed", 12)));
    check(names_in("printed_seed").size() == 3, "--checkpoint-every 0: one at the end");
    // The short forms say the same as the long ones.
    const string sizes = " --layers 2 --heads 2 --embd 16 --experts 4 --d-expert 16 ";
    works(
        train + sizes +
        "-i few.bin -j few.bin -o shorts -e demo -b 2 -t 32 -d 128 -x 6 -l 2e-3 -u 2 -q 0.2 -c 0.3 -v 4 -m 1 "
        "-s 0 -n 3 -z 1 -r 2");
    works(train + sizes +
          "--train few.bin --val few.bin --out longs --init demo --batch 2 --seq 32 --total-tokens 128 "
          "--steps 6 "
          "--lr 2e-3 --warmup 2 --final-lr-frac 0.2 --weight-decay 0.3 --val-every 4 --val-batches 1 "
          "--sample-every 0 --checkpoint-every 3 --zero-stage 1 --recompute 2");
    same_run("shorts", "longs", 6);
    check(names_in("shorts").size() == 5 &&
          works(train + " -y -o shorts").out.find("resumed from") != string::npos);
}

// ---------------------------------------------------------------------------------------------------------
// Every variant trains, stops, resumes, samples

// What a stopped run says: status 128 + signal, and the command to go on with, which is returned.
static string resume_command(const Result& r, int number) {
    check(r.status == 128 + number, "status %d, signal %d after signal %d: %s", r.status, r.signal, number,
          r.err.c_str());
    const size_t at = r.out.rfind("to go on: ");
    if (!check(at != string::npos, "how to resume: %s", tail_of(r.out).c_str())) return "false";
    return r.out.substr(at + 10, r.out.find('\n', at) - at - 10);
}

// Stops a run that prints every step with the signal, once the text was printed. A step takes a millisecond,
// so the run may have come to its end before: tried again, until it was stopped in the middle.
static Result stopped(const string& command, const string& dir, const string& when, int number) {
    for (int attempt = 0;; attempt++) {
        fs::remove_all(dir);
        Process process("exec " + command);
        process.wait_for(when);
        kill(process.pid, number);
        const Result r = process.finish();
        if (r.status != 0 || attempt == 20) return r;
    }
}

static void test_variants() {
    const struct {
        const char *name, *flags, *data;
        int micro_batches; // of a step
        const char* when;  // what is printed before the first stop
        bool reference_only = false;
    } variants[] = {
        {"moex", "", "--train few.bin", 2, "step 0/60"}, // accumulation; 8 or 4 of 18 rows a step
        {"switch", "--act gelu --router topk", "--train few.bin", 3, "step  1/60"},
        {"gelu", "--act gelu", "--train few.bin", 1, "step 24/60"},
        {"relu_topk", "--router topk", "--train 'text/train*.bin'", 1, "checkpoint"}, // a stream
        {"gpt2", "--ffn dense --act gelu", "--train few.bin", 2, "step 30/60"},
        {"dense_relu", "--ffn dense", "--train 'text/train*.bin'", 2, "--- sample"},
        {"geglu", "--ffn dense --act geglu", "--train few.bin", 1, "step 24/60"},
        {"solu", "--ffn dense --act solu", "--train few.bin", 2, "step 30/60"},
        {"all", "--router topk --active 1 --gate all", "--train few.bin", 1, "step 24/60", true},
        {"bias", "--balance bias --balance-rate 0.01 --l1-weight 1e-3", "--train few.bin", 2, "step 24/60",
         true},
        {"scaled", "--router-sd scaled --l0-target 8", "--train few.bin", 2, "step 24/60"},
        {"hd", "--ffn monet-hd", "--train few.bin", 2, "step 30/60", true},
        {"vd", "--ffn monet-vd --keys 6 --share 1", "--train few.bin", 1, "step 24/60", true},
        {"peer", "--ffn peer --top 4", "--train few.bin", 1, "step 24/60", true},
    };
    const int steps = 60;
    const size_t B = train == cpu_train ? 4 : 2; // under dev/emu every row takes its time
    for (const auto& v : variants) {
        if (v.reference_only && train != cpu_train) {
            refuses(tiny_run("refused", 3, v.flags), 1, "is known to train_moex_cpu and sample_cpu, not to");
            continue;
        }
        const string name = v.name, whole = name + "/whole", parts = name + "/it's in parts";
        const bool text = strstr(v.data, "text/");
        const string data = string(v.data) + " --val " + (text ? "'text/val*.bin'" : "'chess/val*.bin'") +
                            " -m 2 " + strf("--batch %zu ", B);
        const string command = train + tiny + v.flags + " " + data +
                               strf("--total-tokens %zu ", B * 32 * v.micro_batches) +
                               "--val-every 10 --lr 3e-3 --sample-every 25 --steps " + std::to_string(steps) +
                               " --checkpoint-every 25 ";
        works(command + "--out '" + whole + "'");
        check(last_in_log(whole, "loss") < last_in_log(whole, "loss", 1) - 0.3, "%s learns", v.name);

        // Stopped in the middle twice, by the two signals, and continued with the very command that it
        // prints.
        const string to_parts = "--out \"" + parts + "\"";
        string next = resume_command(stopped(command + to_parts, parts, v.when, SIGTERM), SIGTERM);
        const int64_t first = newest_checkpoint(parts);
        check(first >= 0 && first < steps, "%s stopped at step %d", v.name, int(first));
        Process process("exec " + next);
        process.wait_for(strf("step %2d/", int(first) + 2));
        kill(process.pid, SIGINT);
        const Result second = process.finish();
        check(second.out.find("resumed from " + model_file(parts, int(first))) != string::npos);
        if (second.status != 0) works(resume_command(second, SIGINT));
        same_run(whole, parts, steps);

        // A finished run that is resumed has nothing to do, and does nothing.
        const string before = read_file(parts + "/log.jsonl");
        const Result again = works(train + " --resume --out \"" + parts + "\"");
        check(again.out.find("done: ") != string::npos && read_file(parts + "/log.jsonl") == before);

        // The model samples, and is where another run may start from.
        const string sampled = works(sampler + " --ckpt '" + whole + "' -n 20 --seed 3").out;
        check(sampled.size() > 1, "%s samples", v.name);
        works(train + " --seq 32 " + data + "--out " + name + "/on --init " + model_file(whole, steps) +
              " --steps 1 --sample-every 0");
        check_near(last_in_log(name + "/on", "val_loss", 0), last_in_log(whole, "val_loss"),
                   in_bf16() ? 5e-3 : 1e-6); // weights rounded at random, then to the nearest
    }
}

static void test_threads() {
    vector<string> kinds = {"", "--act gelu --router topk", "--ffn dense"};
    if (train == cpu_train)
        for (const char* kind : {"--ffn dense --act geglu", "--ffn dense --act solu", "--ffn monet-hd",
                                 "--ffn monet-vd", "--ffn peer"})
            kinds.push_back(kind);
    for (const string& program : {train, sampler, evaluator, make_text, make_chess})
        check_names(works(program + " --help").out, "--threads N");
    check(works(tiny_run("threads_said", 1, "--threads 2")).out.find("2 threads, as --threads says") !=
              string::npos ||
          train != cpu_train);
    check(works(tiny_run("threads_env", 1)).out.find("1 thread, as OMP_NUM_THREADS says") != string::npos ||
          train != cpu_train);
    for (const string& flags : kinds) {
        for (const char* threads : {"1", "2"})
            works(string("env OMP_WAIT_POLICY=passive OMP_NUM_THREADS=") + threads + " " +
                  tiny_run(string("threads_") + threads, 8, "--embd 48 --d-expert 64 --batch 5 " + flags));
        same_run("threads_1", "threads_2", 8);
        fs::remove_all("threads_1"), fs::remove_all("threads_2");
    }
}

// A signal before the first step is done: a checkpoint of step 0. A second one ends the run at once.
static void test_early_signals() {
    const Shard few("few.bin");
    string row;
    for (size_t i = 0; i < 33; i++) row += chess_char(few.tokens[i]);
    write_rows("slow.bin", vector<string>(2500, row)); // so that the validation takes a while
    const auto command = [](const string& out) {
        return train + tiny + "--train few.bin --val slow.bin -v 0 -m 0 --sample-every 0 --steps 2 --out " +
               out;
    };
    works(command("early_whole"));
    const auto in_validation = [&](const string& out) {
        fs::remove_all(out);
        Process process("exec " + command(out));
        process.wait_for("output");
        for (int i = 0; i < 10000 && !fs::exists(out + "/log.jsonl"); i++) usleep(1000);
        usleep(20000);
        kill(process.pid, SIGINT);
        return process.finish();
    };
    Result r;
    for (int attempt = 0; attempt < 20 && newest_checkpoint("early") != 0; attempt++)
        r = in_validation("early");
    check(newest_checkpoint("early") == 0, "stopped before the first step");
    check(r.out.find("val loss") == string::npos && read_file("early/log.jsonl").empty(),
          "the validation was left at once");
    works(train + " --resume --out early");
    same_run("early_whole", "early", 2);

    // At the end of a run, too: that validation is done by the run that goes on.
    const string at_end = train + tiny + "--train few.bin --val slow.bin -v 3 -m 0 --sample-every 0 --out ";
    works(at_end + "end_whole --steps 3");
    for (int attempt = 0; attempt < 20 && r.out.find("stopped at step 3 of 3") == string::npos; attempt++) {
        fs::remove_all("end");
        Process process("exec " + at_end + "end --steps 3");
        process.wait_for("step 3/3 | loss");
        usleep(20000);
        kill(process.pid, SIGINT);
        r = process.finish();
    }
    works(resume_command(r, SIGINT));
    same_run("end_whole", "end", 3);
}

// The ways to be asked to stop, in the middle of a step that takes a while.
static void test_signals() {
    const auto sent = [](const string& out, const vector<int>& signals, const string& before = "exec ") {
        fs::remove_all(out);
        Process process(before + train + tiny + "--train few.bin --total-tokens 96000 --sample-every 0 " +
                        "--steps 1000 --out " + out);
        process.wait_for("step    1/");
        usleep(30000);
        for (const int number : signals) {
            kill(process.pid, number);
            usleep(30000);
        }
        return process.finish();
    };
    for (const int number : {SIGHUP, SIGTERM, SIGINT}) {
        const Result r = sent("asked", {number});
        check(r.status == 128 + number && newest_checkpoint("asked") >= 1 &&
                  r.out.find("to go on: ") != string::npos,
              "signal %d: status %d", number, r.status);
    }
    // A second one ends it at once; but the terminal that goes away may say so twice.
    for (const auto& [first, second] :
         {std::pair{SIGINT, SIGINT}, std::pair{SIGTERM, SIGINT}, std::pair{SIGHUP, SIGTERM}}) {
        const Result r = sent("twice", {first, second});
        check(r.signal == second && checkpoint_steps("twice").empty(), "%d %d: status %d, signal %d", first,
              second, r.status, r.signal);
    }
    for (const int first : {SIGHUP, SIGTERM})
        check(sent("gone", {first, SIGHUP}).status == 128 + first && newest_checkpoint("gone") >= 1);
    // Under nohup it is deaf to SIGHUP.
    check(sent("deaf", {SIGHUP, SIGTERM}, "trap '' HUP; exec ").status == 128 + SIGTERM);

    // Nobody reads what it prints: saved, and a quiet end.
    const Result r = Process(tiny_run("unread", 100000000, "--checkpoint-every 0") + " | head -30").finish();
    check(r.err.empty() && r.out.find("step         1/") != string::npos, "%s", r.err.c_str());
    for (int i = 0; i < 5000 && newest_checkpoint("unread") < 0; i++) usleep(1000);
    check(newest_checkpoint("unread") > 0);
}

// ---------------------------------------------------------------------------------------------------------
// The world around it

static void test_streams() {
    const string closed = tiny_run("closed", 20, "--checkpoint-every 10");
    for (const string how : {"<&-", ">&-", "2>&-", "<&- >&- 2>&-"}) {
        fs::remove_all("closed");
        const Result r = Process(closed + " " + how).finish();
        check(r.status == 0, "%s: status %d: %s", how.c_str(), r.status, r.err.c_str());
        for (const string& line : lines_of(read_file("closed/log.jsonl"))) parse_json(line, how);
        works(train + " --resume --out closed");
        check(read_file(model_file("closed", 20)) == read_file(model_file("base", 20)), "%s", how.c_str());
    }
    if (access("/dev/full", W_OK) == 0)
        for (const string& program :
             {evaluator + " --ckpt base --val 'chess/val*.bin' --games 0", sampler + " --ckpt base",
              train + " --help", tiny_run("full_stdout", 2), make_text + " --out full_text grammar.txt"})
            refuses(program + " > /dev/full", 1, "standard output: cannot be written");
    check(newest_checkpoint("full_stdout") == 2, "what is saved is saved");
    const Result r = Process(evaluator + " --ckpt base --val 'chess/val*.bin' | head -c 1").finish();
    check(r.err.empty() && r.out.size() == 1, "%s", r.err.c_str());
}

// Names of files are bytes.
static void test_paths() {
    for (const string name : {"d\xE9 'x' %41", "[v2]"}) {
        fs::copy("chess", name, fs::copy_options::recursive);
        const string quoted_name = std::regex_replace(name, std::regex("'"), "'\\''");
        const string literal = std::regex_replace(quoted_name, std::regex("\\["), "\\["), // for the glob
            flags = tiny + " --sample-every 0 --lr 3e-3 --train '" + literal + "/train_*.bin' --val '" +
                    literal + "/val_*.bin' --val-every 10 --checkpoint-every 10 --steps 20 ";
        works(train + flags + "--out '" + quoted_name + "/run'");
        check(read_file(model_file(name + "/run", 20)) == read_file(model_file("base", 20)));
        fs::remove(state_file(name + "/run", 20)), fs::remove(model_file(name + "/run", 20));
        works(train + " --resume --out '" + quoted_name + "/run'"); // and finds its data
        check(read_file(model_file(name + "/run", 20)) == read_file(model_file("base", 20)));
        check(log_without_times(name + "/run") == log_without_times("base"));
        works(evaluator + " --ckpt '" + quoted_name + "/run' --val '" + literal + "/val_*.bin'");
    }
    // A folder that takes no files is found out before the first step. (root may write anywhere)
    fs::create_directory("sealed");
    write_file("sealed/log.jsonl", "");
    fs::permissions("sealed", fs::perms::owner_read | fs::perms::owner_exec);
    if (access("sealed", W_OK) != 0) {
        const Result r = run(tiny_run("sealed", 3, "--resume"));
        check(r.status == 1 && r.out.find("step 1/3") == string::npos);
    }
    fs::permissions("sealed", fs::perms::owner_all);
}

static void test_terminal() {
    // Without escape sequences and returns: what is left is what one sees.
    const auto lines_on = [](unsigned short columns, const string& more, const string& before = "") {
        fs::remove_all("on_terminal");
        const string out =
            in_terminal("env TERM=xterm " + before + tiny_run("on_terminal", 40, more), columns);
        check(out.find("step 40/40") != string::npos && out.find("done: ") != string::npos, "%s",
              tail_of(out).c_str());
        return out;
    };
    for (const unsigned short columns : {40, 60, 80, 120}) {
        const string out = std::regex_replace(lines_on(columns, "--print-every 20 -n 0 -v 0"),
                                              std::regex("\x1b\\[[0-9;]*[a-zA-Z]"), "");
        size_t drawn = 0;
        std::istringstream in(out);
        for (string line; std::getline(in, line, '\r');) {
            if (line[0] == '\n') line.erase(0, 1);
            drawn += line.rfind("step ", 0) == 0;
            if (line.rfind("checkpoint ", 0) == 0 || line.rfind("done: ", 0) == 0) continue;
            check(line.size() <= columns, "%d columns: '%s'", columns, line.c_str());
        }
        check(drawn >= 40, "%zu lines were drawn", drawn);
    }
    for (const string plain : {"NO_COLOR=1 ", "TERM=dumb "}) {
        const string out = lines_on(80, "--print-every 20 -v 0 --sample-every 20", plain);
        check(out.find('\x1b') == string::npos && out.find("step 19/40") == string::npos &&
                  out.find("step 20/40 | loss") != string::npos,
              "%s", tail_of(out).c_str());
    }
    check(lines_on(80, "--print-every 20", "NO_COLOR= ").find('\x1b') != string::npos, "empty: not set");
    check(lines_on(200, "--print-every 20", "COLUMNS=50 ").find("| norm") == string::npos);
    const string board = sampler + " --ckpt base --board -n 0 --prompt '1.e4'";
    check(in_terminal("env TERM=xterm " + board, 80).find("\x1b[48;5") != string::npos);
    check(in_terminal("env TERM=xterm NO_COLOR=1 " + board, 80).find('\x1b') == string::npos);
}

// A shard that another program cuts short while it is read.
static void test_shrinking() {
    string row;
    const Shard few("few.bin");
    for (size_t i = 0; i < 33; i++) row += chess_char(few.tokens[i]);
    write_rows("shrinking.bin", vector<string>(20000, row));
    Process process("exec " + train + tiny +
                    "--train shrinking.bin --steps 1000000 --sample-every 0 -n 5 --keep 2 --out shrinking");
    process.wait_for("checkpoint ");
    fs::resize_file("shrinking.bin", 2000);
    const Result r = process.finish();
    const int64_t last = newest_checkpoint("shrinking");
    check(r.status == 1 &&
              r.err == strf("moex: shrinking.bin: cut short by another program while it was read, or "
                            "its disk failed; all is saved up to step %lld\n",
                            (long long)last),
          "status %d, signal %d: %s", r.status, r.signal, r.err.c_str());
    check(last > 0 && double(last) == last_in_log("shrinking", "step"), "step %lld", (long long)last);
    // With the data whole again it goes on.
    write_rows("shrinking.bin", vector<string>(20000, row));
    Process again("exec " + train + " --resume --out shrinking");
    check(again.wait_for(strf("step %7lld/", (long long)last + 1)), "%s", again.out.c_str());
    kill(again.pid, SIGTERM);
    check(again.finish().status == 128 + SIGTERM);
}

// ---------------------------------------------------------------------------------------------------------
// Longer, and with fewer checkpoints

static void test_longer() {
    const string flags = "--checkpoint-every 5 --val-every 10 ";
    works(tiny_run("longer", 20, flags));
    fs::copy("longer", "longer_parts");
    // Killed before its first new checkpoint a run is as long as it was made.
    {
        fs::copy("longer", "longer_killed");
        Process process("exec " + train + " --resume --out longer_killed --steps 1000000 --val-every 0");
        process.wait_for("checkpoint ");
        kill(process.pid, SIGKILL);
        process.finish();
        Process again("exec " + train + " --resume --out longer_killed");
        check(again.wait_for("step      21/1000000"), "%s", again.out.c_str());
        kill(again.pid, SIGTERM);
        const Result r = again.finish();
        check(r.status == 128 + SIGTERM && r.out.find("of 1000000") != string::npos, "%d %s", r.status,
              tail_of(r.out).c_str());
    }
    // A finished run: the rate stays where it has ended.
    const Result r = works(train + " --resume --out longer --steps 40");
    check(r.out.find("made longer, 20 -> 40 steps: the learning rate goes on from 0.0003\n") !=
                  string::npos &&
              r.out.find("made longer at step 20: from there on a cosine from 0.0003") != string::npos,
          "%s", r.out.c_str());
    check_near(last_in_log("longer", "lr", 21), 3e-4, 1e-10);
    check_near(last_in_log("longer", "lr", 40), 3e-4, 1e-10);
    check(last_in_log("longer", "step") == 40 && !std::isnan(last_in_log("longer", "val_loss", 40)));
    // Stopped on the way and continued: the same. (The command line as the shell's history has it.)
    works(tiny_run("longer_parts", 40, flags + "--resume"));
    for (const int step : {30, 35, 40})
        fs::remove(model_file("longer_parts", step)), fs::remove(state_file("longer_parts", step));
    check(works(train + " --resume --out longer_parts").out.find("from step 25") != string::npos);
    same_run("longer", "longer_parts", 40);
    // From the middle of a run: from where the rate is down to the same end.
    for (const int step : {25, 30, 35, 40})
        fs::remove(model_file("longer", step)), fs::remove(state_file("longer", step));
    fs::remove(model_file("longer", 20)), fs::remove(state_file("longer", 20));
    const double rate = last_in_log("longer", "lr", 16); // of the step that comes next
    works(train + " --resume --out longer --steps 60");
    check_near(last_in_log("longer", "lr", 16), rate, 1e-9);
    check(last_in_log("longer", "lr", 30) < rate &&
          last_in_log("longer", "lr", 30) > last_in_log("longer", "lr", 50));
    check_near(last_in_log("longer", "lr", 60), 3e-4, 5e-6);
    works(train + " --resume --out longer --steps 70"); // and again
    check(last_in_log("longer", "step") == 70);
    refuses(train + " --resume --out longer --steps 69", 1,
            "--steps 69 (was 70: a run can only be made longer)");
    const string state = read_file(state_file("longer", 70));
    write_file(state_file("longer", 70), replaced(state, "\"lengthened\":\"60 ", "\"lengthened\":\"6o "));
    refuses(train + " --resume --out longer", 1, "state_00000070", "lengthened");
}

static void test_keep() {
    works(tiny_run("keep", 20, "--checkpoint-every 2 --keep 2 --keep-every 6"));
    check(checkpoint_steps("keep") == (vector<int64_t>{20, 18, 12, 6}));
    check(names_in("keep").size() == 9, "states go with their models");
    check(read_file(model_file("keep", 20)) == read_file(model_file("base", 20)));
    // The checkpoint that a run was resumed from stays as long as it runs; --keep is remembered.
    fs::remove(model_file("keep", 20)), fs::remove(state_file("keep", 20));
    works(train + " --resume --out keep --steps 30 --keep-every 0");
    check(checkpoint_steps("keep") == (vector<int64_t>{30, 28, 18}));
    works(train + " --resume --out keep --steps 32 --keep 1");
    check(checkpoint_steps("keep") == (vector<int64_t>{32, 30}));
    works(train + " --resume --out keep --steps 40 --keep 0");
    check(checkpoint_steps("keep") == (vector<int64_t>{40, 38, 36, 34, 32, 30}));
    refuses(tiny_run("usage", 2, "--keep-every 5"), 2, "--keep-every", "--keep N");
    refuses(tiny_run("usage", 2, "--keep -1"), 2, "--keep", "out of range");
}

// A run of the first release, as it left it after 4 of its 8 steps: read, continued, to the losses it had.
static void test_first_release() {
    fs::copy(files + "/first_release", "first_release");
    const string log = read_file("first_release/log.jsonl");
    check(lines_of(log).size() == 8);
    works(evaluator + " --ckpt first_release --val first_release/train.bin");
    if (train.find("moex_cpu") == string::npos) return; // the GPU program has sizes of its own
    const string folder = fs::current_path();
    fs::current_path("first_release");
    const Result r = works(train + " --resume --out .");
    fs::current_path(folder);
    check(r.out.find("resumed from ./model_00000004.safetensors") != string::npos);
    for (const string& text : lines_of(log)) {
        const Json line = parse_json(text, "log");
        const double step = line.find("step")->number, loss = line.find("loss")->number;
        check_near(last_in_log("first_release", "loss", step), loss, 1e-5);
    }
    const SafeTensorsFile before(files + "/first_release/model_00000004.safetensors"),
        after(model_file("first_release", 8));
    Strings metadata = before.metadata;
    metadata["step"] = "8";
    check(after.metadata == metadata, "a model that uses nothing new says what it said then");
}

// ---------------------------------------------------------------------------------------------------------
// Killed

static void test_kill() {
    const int steps = 40;
    const string flags = "--checkpoint-every 1 --val-every 7 -m 2 ";
    works(tiny_run("kill_whole", steps, flags));
    Random random{uint64_t(now_seconds() * 1e6)};
    int kills = 0, on_the_way = 0, unfinished = 0;
    bool done = false;
    for (int round = 0; round < 300 && !done; round++) {
        Process process("exec " + tiny_run("kill_parts", steps, flags + (round ? "--resume" : "")));
        // Some right after the start; most a moment after a step or a checkpoint was begun.
        if (random.below(6)) process.wait_for(random.below(2) ? " | loss " : "checkpoint ");
        usleep(useconds_t(random.below(8000)));
        kill(process.pid, SIGKILL);
        const Result r = process.finish();
        done = r.status == 0;
        kills += r.signal == SIGKILL;
        check(done || r.signal == SIGKILL, "status %d: %s", r.status, r.err.c_str());
        if (!fs::exists("kill_parts")) continue;
        string broken;
        const int64_t newest = newest_checkpoint("kill_parts", &broken);
        on_the_way += newest > 0 && newest < steps;
        check(broken.empty(), "a checkpoint is half written: %s", broken.c_str());
        for (const string& name : names_in("kill_parts"))
            if (name.ends_with(".safetensors"))
                SafeTensorsFile("kill_parts/" + name); // throws if not whole
            else
                unfinished += name.find(".tmp.") != string::npos;
    }
    const Result last = works(tiny_run("kill_parts", steps, flags + "--resume"));
    check(kills >= 5 && on_the_way >= 3 && unfinished >= 1, "%d kills, %d on the way, %d while writing",
          kills, on_the_way, unfinished);
    same_run("kill_whole", "kill_parts", steps);
    vector<string> names = names_in("kill_parts"); // killed between step 1 and its checkpoint: an old log
    std::erase_if(names, [](const string& name) { return name.rfind("log.jsonl.old", 0) == 0; });
    check(names == names_in("kill_whole"), "killed runs leave nothing behind");
    // Every checkpoint on the way is that of the unbroken run, too.
    for (int step = 1; step <= steps; step++)
        check(read_file(model_file("kill_whole", step)) == read_file(model_file("kill_parts", step)));

    // Killed before its first checkpoint: the log alone is there. Without --resume this is a run, too.
    {
        Process process("exec " + tiny_run("kill_early", 100000, "--checkpoint-every 0"));
        process.wait_for("step      5/");
        kill(process.pid, SIGKILL);
        process.finish();
    }
    const string old_log = read_file("kill_early/log.jsonl");
    refuses(tiny_run("kill_early", steps, flags), 1, "kill_early already holds a run", "first checkpoint",
            "--resume", "--out");
    refuses(train + " --resume --out kill_early", 2, "kill_early holds no checkpoint", "whole command line");
    check(read_file("kill_early/log.jsonl") == old_log);
    const Result fresh = works(tiny_run("kill_early", steps, flags + "--resume"));
    check(fresh.out.find("nothing to resume in kill_early: a new run") != string::npos &&
          fresh.out.find("kept as kill_early/log.jsonl.old\n") != string::npos);
    check(read_file("kill_early/log.jsonl.old") == old_log, "a log that holds steps is never erased");
    same_run("kill_whole", "kill_early", steps);
}

// Two runs in one folder.
static void test_lock() {
    Process first("exec " + tiny_run("lock", 1000000, "--checkpoint-every 0 --print-every 1000000"));
    first.wait_for("step       1/");
    refuses(tiny_run("lock", 1000000, "--checkpoint-every 0 --resume"), 1, "lock/log.jsonl", "another run");
    kill(first.pid, SIGTERM);
    resume_command(first.finish(), SIGTERM);
}

// ---------------------------------------------------------------------------------------------------------
// The disk is full

static void test_disk_full() {
    const string flags = "--checkpoint-every 5 --val-every 0 ";
    works(tiny_run("full_whole", 20, flags));
    const size_t model_bytes = fs::file_size(model_file("full_whole", 20));
    const size_t log_bytes = fs::file_size("full_whole/log.jsonl");
    check(log_bytes < model_bytes, "the limits below hit what they should");

    const auto prepare = [&](const string& dir) { // a whole checkpoint at step 5
        fs::create_directory(dir);
        for (const string& name : {model_path("", 5), state_path("", 5)})
            fs::copy("full_whole" + name, dir + name);
        string log;
        for (const string& line : lines_of(read_file("full_whole/log.jsonl")))
            if (parse_json(line, "").find("step")->number <= 5) log += line + "\n";
        write_file(dir + "/log.jsonl", log);
    };
    const auto recovers = [&](const string& dir, const Result& r, const string& file) {
        check(r.status == 1 && r.err.find('\n') == r.err.size() - 1 && r.err.find("moex: " + file) == 0 &&
                  r.err.find("cannot be written") != string::npos,
              "status %d, signal %d: %s", r.status, r.signal, r.err.c_str());
        for (const string& name : {model_path("", 5), state_path("", 5)})
            check(read_file("full_whole" + name) == read_file(dir + name), "the old checkpoint stays: %s",
                  name.c_str());
        for (const string& name : names_in(dir)) check(name.find("tmp") == string::npos, "%s", name.c_str());
        works(tiny_run(dir, 20, flags + "--resume"));
        same_run("full_whole", dir, 20);
    };
    // A limit on the size of a file fails at any place we choose: in the state file, in the model, in the
    // log.
    const struct {
        const char *dir, *file;
        size_t bytes;
        const char* more;
    } limits[] = {{"full_end", "full_end/state_00000010.safetensors", 2 * model_bytes - 2048, ""},
                  {"full_start", "full_start/state_00000010.safetensors", model_bytes, ""},
                  {"full_log", "full_log/log.jsonl", log_bytes - 700, "--checkpoint-every 0"}};
    for (const auto& limit : limits) {
        prepare(limit.dir);
        const size_t blocks = limit.bytes / 512; // what a POSIX shell counts in
        Process limited(strf("ulimit -f %zu; exec ", blocks) +
                        tiny_run(limit.dir, 20, flags + "--resume " + limit.more));
        recovers(limit.dir, limited.finish(), limit.file);
    }
    // A file system that is really full, where we may mount one.
    if (run("unshare -m sh -c 'mkdir -p small && mount -t tmpfs -o size=1m none small' 2>/dev/null").status !=
        0)
        return;
    prepare("full_disk");
    const size_t room =
        (model_bytes * 7 / 2 + log_bytes) / 1024 + 12; // step 5 (3 models), and no second state
    const Result r =
        run("unshare -m sh -c 'mkdir -p small && mount -t tmpfs -o size=" + std::to_string(room) +
            "k none small && cp full_disk/* small && " +
            std::regex_replace(tiny_run("small", 20, flags + "--resume"), std::regex("'"), "\"") +
            "; status=$?; rm full_disk/*; cp small/* full_disk; exit $status'");
    recovers("full_disk", r, "small/state_00000010.safetensors");
}

static void test_unwritable() {
    write_file("a_file", "x");
    refuses(tiny_run("a_file/run", 2), 1, "a_file", "folder");
    refuses(tiny_run("a_file", 2), 1, "a_file", "folder");
    refuses(tiny_run("/proc/x", 2), 1, "/proc/x", "folder");
    refuses(make_text + " --out a_file/x grammar.txt", 1, "a_file");
    refuses(make_chess + " --games 9 --out /proc/x", 1, "/proc/x");
    check(read_file("a_file") == "x");
}

// ---------------------------------------------------------------------------------------------------------
// Numbers that run away

static bool all_finite(const string& path) {
    const SafeTensorsFile file(path);
    for (const SafeTensor& t : file.tensors) {
        vector<float> values(t.elements());
        read_floats(t, values.data());
        for (const float x : values)
            if (!std::isfinite(x)) return false;
    }
    return true;
}

// The bytes of a checkpoint in which the first numbers of a tensor have another value.
static string with_value(const string& path, const string& tensor, size_t count, float value) {
    string bytes = read_file(path);
    const SafeTensorsFile file(path);
    uint64_t at;
    memcpy(&at, bytes.data(), 8);
    at += 8;
    for (const SafeTensor& before : file.tensors)
        at += before.data < file.find(tensor)->data ? before.bytes : 0;
    for (size_t i = 0; i < count; i++) memcpy(&bytes[at + 4 * i], &value, 4);
    return bytes;
}

static void test_not_finite() {
    for (const char* lr : {"1e25", "1e12", "100", "50", "30"}) {
        const string dir = string("nan_") + lr;
        const Result r =
            run(tiny_run(dir, 30, string("--warmup 0 --clip 0 --checkpoint-every 1 -v 0 --lr ") + lr));
        const int64_t good = newest_checkpoint(dir);
        check(r.signal == 0 && good >= 1, "signal %d, last checkpoint %d", r.signal, int(good));
        for (const string& name : names_in(dir))
            if (name.ends_with(".safetensors"))
                check(all_finite(dir + "/" + name), "%s/%s holds numbers that are not finite", dir.c_str(),
                      name.c_str());
        if (r.status == 0 && strlen(lr) < 4) continue; // it may survive the smaller ones
        check(std::regex_match(
                  r.err, std::regex("moex: step [0-9]+: .* (weights|gradient) of [a-z0-9_.]+ (are|is) not "
                                    "finite.*last good checkpoint is .*\n")) ||
                  r.err.find("every gradient is finite") != string::npos,
              "%s", r.err.c_str());
        check(r.status == 1 && r.err.find("step " + std::to_string(good + 1)) != string::npos &&
                  r.err.find(model_file(dir, int(good))) != string::npos,
              "%s", r.err.c_str());
    }
    // A NaN that comes with the weights is named as such, and no checkpoint is written.
    write_file("nan.safetensors", with_value(model_file("base", 20), "h.1.moe.b_dec", 1, NAN));
    refuses(tiny_run("nan_init", 3, "--init nan.safetensors --checkpoint-every 1"), 1, "step 1",
            "h.1.moe.b_dec", "no checkpoint yet");
    check(names_in("nan_init") == vector<string>{"log.jsonl"});
    // Nor where the loss and every gradient are finite, but their squares, the second moments, are not.
    write_file("large.safetensors", with_value(model_file("base", 20), "ln_f.weight", 16, 1e20f));
    refuses(tiny_run("nan_moments", 3, "--init large.safetensors --checkpoint-every 1 --clip 0"), 1, "step 1",
            "no checkpoint yet");
    check(names_in("nan_moments") == vector<string>{"log.jsonl"});
    refuses(sampler + " --ckpt nan.safetensors", 1, "nan.safetensors", "not finite");
    refuses(evaluator + " --ckpt nan.safetensors --val 'chess/val*.bin'", 1, "nan.safetensors", "not finite");
}

// ---------------------------------------------------------------------------------------------------------
// Resuming otherwise than the run began

static void test_resume_flags() {
    const string flags = "--checkpoint-every 10 --val-every 0 ";
    works(tiny_run("flags_whole", 20, flags));
    const auto prepare = [&](const string& dir) { // the run, killed after step 10
        fs::remove_all(dir);
        fs::create_directory(dir);
        for (const string& name : {model_path("", 10), state_path("", 10)})
            fs::copy("flags_whole" + name, dir + name);
        fs::copy("flags_whole/log.jsonl", dir + "/log.jsonl");
    };
    prepare("flags");
    const string resume = train + " --resume --out flags ";
    refuses(resume + "--lr 0.25 --batch 8", 1, "--lr 0.25 (was 0.003", "--batch 8 (was 4)", "flags");
    refuses(resume + "--seed 2", 1, "--seed 2 (was 1)");
    refuses(resume + "--steps 19", 1, "--steps 19 (was 20: a run can only be made longer)");
    refuses(resume + "--d-expert 32", 1, "--d-expert 32 (was 16)");
    refuses(resume + "--act gelu", 1, "--act gelu (was relu)");
    refuses(resume + "--init small", 1, "--init small (was demo)");
    refuses(resume + "--init " + model_file("base", 20), 1, "--init base", "(was demo)");
    refuses(resume + "--upcycle", 1, "--upcycle");
    refuses(resume + "--final-lr-frac 0", 1, "--final-lr-frac 0 (was 0.1)");
    refuses(resume + "--train few.bin", 1, "other data", "tokens in 1 shards", "was");
    string other = read_file("chess/train_000000.bin"); // as large, but one token is another
    other[1024 + 2 * 5] ^= 1;
    write_file("other.bin", other);
    refuses(resume + "--train other.bin", 1, "other data", "was");
    refuses(resume + "--train 'text/train*.bin'", 1, "text/train_000000.bin", "bytes", "chess-32");
    refuses(resume + "--train 'none*.bin'", 1, "none*.bin", "no file");
    check(names_in("flags").size() == 3, "refused, and nothing changed");
    // What may change: what is shown and kept. The result is the same.
    works(resume + "--val-every 3 --print-every 4 --checkpoint-every 2 --sample-every 7 --val "
                   "chess/val_000000.bin -m 1");
    check(read_file(model_file("flags", 20)) == read_file(model_file("flags_whole", 20)));
    works(resume + "--batch 0 --lr 0 --warmup -1"); // no values of their own: as it was
    check(fs::exists(model_file("flags", 12)) && !std::isnan(last_in_log("flags", "val_loss", 15)));
    // A free flag is taken as given, also where that is its default: what is stored of it says so.
    prepare("flags");
    works(resume + "--recompute 2 --zero-stage 1 --checkpoint-every 15");
    works("rm flags/*20.safetensors");
    works(resume + "--recompute 0 --zero-stage 0");
    check(metadata_entry(SafeTensorsFile(state_file("flags", 20)), "flag.recompute") == "0" &&
          metadata_entry(SafeTensorsFile(state_file("flags", 20)), "flag.zero-stage") == "0" &&
          metadata_entry(SafeTensorsFile(state_file("flags", 20)), "flag.checkpoint-every") == "15");
    // The whole command line again, as the user has it in the shell's history, is fine.
    prepare("flags");
    works(tiny_run("flags", 20, flags + "--resume"));
    same_run("flags_whole", "flags", 20);
    // The training files may have moved.
    prepare("flags");
    fs::create_directory_symlink("chess", "moved");
    works(resume + "--train 'moved/train*.bin'");
    check(read_file(model_file("flags", 20)) == read_file(model_file("flags_whole", 20)));

    const Result fresh = works(tiny_run("flags_new", 20, flags + "--resume"));
    check(fresh.out.find("nothing to resume in flags_new: a new run") != string::npos);
    same_run("flags_whole", "flags_new", 20);
    refuses(tiny_run("flags_new", 20, flags), 1, "flags_new already holds a run", "--resume");

    // The newest checkpoint is broken: the one before it is taken, and it is said. None is whole: refused.
    const string model = read_file(model_file("flags_new", 20));
    for (const size_t bytes : {size_t(0), size_t(5), size_t(200), model.size() / 2, model.size() - 1}) {
        write_file(model_file("flags_new", 20), model.substr(0, bytes));
        const Result r = works(tiny_run("flags_new", 20, flags + "--resume"));
        check(r.out.find("resumed from " + model_file("flags_new", 10) +
                         " (passed over: " + model_file("flags_new", 20)) != string::npos);
        same_run("flags_whole", "flags_new", 20);
    }
    fs::remove(state_file("flags_new", 20));
    check(works(tiny_run("flags_new", 20, flags + "--resume"))
              .out.find("model_00000010.safetensors (passed over") != string::npos);
    same_run("flags_whole", "flags_new", 20);
    prepare("flags");
    const string state = read_file(state_file("flags", 10));
    write_file(state_file("flags", 10), state.substr(0, state.size() / 3));
    refuses(resume, 1, "no whole checkpoint", "state_00000010.safetensors");
    // A state whose strings are not what this program writes.
    for (const auto& [from, to] : {std::pair{"\"position\":\"40\"", "\"position\":\"xx\""},
                                   std::pair{"\"position\":\"40\"", "\"position\":\"-6\""},
                                   std::pair{"\"flag.batch\":\"4\"", "\"flag.batch\":\"x\""},
                                   std::pair{"\"flag.act\":\"relu\"", "\"flag.act\":\"tanh\""}}) {
        write_file(state_file("flags", 10), replaced(state, from, to));
        refuses(resume, 1, "state_00000010.safetensors",
                to[1] == 'p'   ? "position"
                : to[6] == 'b' ? "--batch"
                               : "--act");
    }
}

// ---------------------------------------------------------------------------------------------------------
// Bad input

static string header_word(string shard, size_t word, int32_t value) {
    memcpy(&shard[4 * word], &value, 4);
    return shard;
}

static void test_bad_shards() {
    const string good = read_file("few.bin");
    write_file("empty.bin", "");
    write_file("header.bin", good.substr(0, 500));
    write_file("short.bin", good.substr(0, good.size() - 2));
    write_file("long.bin", good + "xx");
    write_file("magic.bin", header_word(good, 0, 20240801));
    write_file("version.bin", header_word(good, 1, 2));
    write_file("tokenizer.bin", header_word(good, 3, 9));
    write_file("row.bin", header_word(good, 4, 32));
    write_file("none.bin", header_word(good.substr(0, 1024), 2, 0));
    string beyond = good;
    beyond[1024 + 2 * 40] = 77;
    write_file("beyond.bin", beyond);
    fs::create_directory("folder.bin");
    const struct {
        const char *path, *what;
    } cases[] = {{"missing.bin", "matches no file"},
                 {"no/such/*.bin", "matches no file"},
                 {"empty.bin", "empty"},
                 {"header.bin", "cut short"},
                 {"short.bin", "cut short"},
                 {"long.bin", "too long"},
                 {"magic.bin", "20240520"},
                 {"version.bin", "expected 1"},
                 {"tokenizer.bin", "unknown tokenizer 9"},
                 {"row.bin", "whole rows of 32"},
                 {"none.bin", "no tokens"},
                 {"folder.bin", "a folder"}};
    for (const auto& c : cases) {
        refuses(train + tiny + " --steps 3 --out bad --train '" + c.path + "'", 1, c.path, c.what);
        refuses(train + tiny + " --steps 3 --out bad --train few.bin --val '" + c.path + "'", 1, c.path,
                c.what);
        refuses(evaluator + " --ckpt base --val '" + c.path + "'", 1, c.path, c.what);
    }
    check(!fs::exists("bad"), "a refused run leaves no folder");
    refuses(train + tiny + " --steps 30 --sample-every 0 --out beyond --train beyond.bin", 1, "beyond.bin",
            "token 40 is 77", "32");
    refuses(evaluator + " --ckpt base --val beyond.bin", 1, "beyond.bin", "token 40 is 77", "32");
    // T against rows of 33, against the model's positions, and a stream that is too short.
    refuses(train + tiny + "--seq 33 --steps 3 --out bad --train few.bin", 1, "few.bin", "33", "at most 32");
    refuses(train + " --init " + model_file("base", 20) +
                " --seq 40 --steps 3 --out bad --train 'long/train*.bin'",
            1, "--seq 40", "32 positions");
    refuses(evaluator + " --ckpt base --val 'long/val*.bin' --seq 40", 1, "40", "32");
    refuses(evaluator + " --ckpt base --val few.bin --seq 33", 1, "few.bin", "at most 32");
    refuses(train + tiny + "--seq 1000000 --steps 3 --out bad --train 'text/train*.bin'", 1, "text/train",
            "1000000");
    // Tokens of another kind.
    refuses(tiny_run("bad", 3, "--val 'text/val*.bin'"), 1, "text/val", "bytes", "chess-32");
    refuses(train + " --train 'text/train*.bin' --steps 3 --out bad --init " + model_file("base", 20), 1,
            "text/train", "bytes", "chess-32", "base/");
    refuses(evaluator + " --ckpt base --val 'text/val*.bin'", 1, "text/val", "bytes", "chess-32");
    refuses(evaluator + " --ckpt moex/whole --val 'text/val*.bin'", 1, "text/val", "bytes", "chess-32");
    refuses(evaluator + " --ckpt relu_topk/whole --val 'chess/val*.bin'", 1, "chess/val", "bytes",
            "chess-32");
    refuses(train + tiny + " --steps 3 --out bad --train '{few.bin,text/train_000000.bin}'", 1,
            "text/train_000000.bin", "few.bin");
    refuses(train + tiny + " --steps 3 --out bad --train '{few.bin,long/train_000000.bin}'", 1,
            "row length 65", "33");
    check(!fs::exists("bad"), "a refused run leaves no folder");
}

static void test_bad_models() {
    const struct {
        const char *flags, *what;
    } cases[] = {
        {"--active 5", "n_expert_active 5 is more than n_expert 4"},
        {"--heads 3", "n_embd 16 is not divisible by n_head 3"},
        {"--act geglu", "act geglu goes with ffn dense"},
        {"--act solu", "act solu goes with ffn dense"},
        {"--ffn dense --gate all", "gate all goes with ffn moe, this is ffn dense"},
        {"--ffn peer --balance bias", "balance bias goes with ffn moe, this is ffn peer"},
        {"--act relu2", "act relu2 and ffn monet-hd or monet-vd go together"},
        {"--ffn monet-hd --act gelu", "act relu2 and ffn monet-hd or monet-vd go together"},
        {"--ffn monet-hd --share 3", "n_share is 3, expected 1 to 2"},
        {"--ffn monet-hd --top 5", "n_top is 5, expected 1 to 4"},
        {"--ffn peer --d-key 5", "d_key is 5, expected an even number"},
        {"--keys 5", "n_key is 5, expected 0 for ffn moe"},
        {"--router-sd full --router topk", "router_sd full goes with router sparsity"},
        {"--router-sd full --ffn dense", "router_sd full goes with ffn moe"},
        {"--unit-top 17", "unit_top is 17, expected 1 to 16"},
        {"--unit-top 2 --act gelu", "unit_top goes with ffn moe and act relu"},
        {"--l0-weight 1 --router topk", "--l0-weight and --l0-target go with ffn moe and router sparsity"},
        {"--l0-target 9 --ffn dense", "--l0-weight and --l0-target go with ffn moe and router sparsity"},
        {"--l0-target 9 --l0-weight 1", "--l0-target sets the weight itself"},
        {"--l1-weight 1 --act gelu", "--l1-weight goes with relu units"},
        {"--bias-init 1 --ffn peer", "--bias-init goes with relu and gelu units of ffn moe or dense"},
        {"--bias-init 1 --init base/model_00000020.safetensors", "--bias-init is for a new model"},
        {"--layers 0", "n_layer"},
        {"--embd 0", "n_embd"},
        {"--experts 0", "n_expert"},
        {"--d-expert 0", "d_expert"},
        {"--embd 65536 --experts 4096 --d-expert 1048576", train == cpu_train ? "too" : "at most 6144"},
        {"--embd 4096 --heads 32 --d-expert 1048576", "memory"}};
    for (const auto& c : cases) refuses(tiny_run("bad", 3, c.flags), 1, c.what);
    refuses(tiny_run("bad", 3, "--init no_such_preset"), 1, "'no_such_preset'", "no such file",
            "the presets are demo, mid, chess, small, medium");
    refuses(tiny_run("bad", 3, "--init smal"), 1, "--init 'smal'", "did you mean small?");
    refuses(train + " --train chess/train_000000.bin few.bin --out bad", 2, "'few.bin'",
            "quote it: --train '");
    refuses(train + chess_data + "-y 1 --out bad", 2, "'1'", "-y takes no value here");
    // Checkpoints of other programs, and what else people have under such names.
    const struct {
        const char *bytes, *what;
        size_t size;
    } foreign[] = {{"PK\3\4\0\0\b\b", "a PyTorch file", 100},
                   {"PK\3\4 - - - - - - - - - - - - - x.npy", "a NumPy archive", 100},
                   {"\x80\2\x8a\nl", "a PyTorch file", 100},
                   {"GGUF\3", "a GGUF file", 100},
                   {"\xC6\xD7\x34\x01\3", "a checkpoint of llm.c", 2000}, // 20240326
                   {"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer", 130},
                   {"{\"weight_map\": {", "JSON text", 100},
                   {"<!DOCTYPE html>", "a web page", 100},
                   {"\x1F\x8B\b", "compressed (gzip)", 100}};
    for (const auto& f : foreign) {
        string bytes(f.size, '\0');
        memcpy(bytes.data(), f.bytes, strlen(f.bytes));
        write_file("foreign", bytes);
        refuses(tiny_run("bad", 3, "--init foreign"), 1, "foreign: ", f.what, "not a safetensors file");
        refuses(sampler + " --ckpt foreign", 1, "foreign: ", f.what);
    }
    refuses(tiny_run("bad", 3, "--init few.bin"), 1, "few.bin: a token shard");
    for (const string prefix : {"", "transformer."}) {
        const vector<float> weights(3 * 4 * 4);
        SafeTensorsWriter hub("hub.safetensors", {{"format", "pt"}});
        hub.declare(prefix + "h.0.attn.c_attn.weight", F32, {4, 12});
        hub.write(weights.data(), 4 * weights.size());
        hub.commit();
        refuses(tiny_run("bad", 3, "--upcycle --init hub.safetensors"), 1,
                "hub.safetensors: a GPT-2 checkpoint", "cannot be converted yet");
    }
    refuses(tiny_run("bad", 3, "--init chess/"), 1, "chess/", "not a regular file");
    refuses(tiny_run("bad", 3, "--init grammar.txt"), 1, "grammar.txt", "not a safetensors file");
    refuses(tiny_run("bad", 3, "--init " + state_file("base", 20)), 1, "state_00000020", "moex-state",
            "moex");
    refuses(tiny_run("bad", 3, "--embd 32 --init " + model_file("base", 20)), 1, "--embd",
            model_file("base", 20));
    refuses(tiny_run("bad", 3, "--ffn dense --init " + model_file("base", 20)), 1, "--ffn",
            model_file("base", 20));

    const string good = read_file(model_file("base", 20));
    const auto tried = [&](const string& path, const string& bytes, const char* what) {
        write_file(path, bytes);
        refuses(tiny_run("bad", 3, "--init " + path), 1, path, what);
        refuses(sampler + " --ckpt " + path, 1, path, what);
        refuses(evaluator + " --val few.bin --ckpt " + path, 1, path, what);
    };
    for (const size_t bytes :
         {size_t(0), size_t(7), size_t(8), size_t(9), size_t(1000), good.size() / 2, good.size() - 1})
        tried("cut.safetensors", good.substr(0, bytes), "");
    tried("longer.safetensors", good + "x", "bytes of data");
    tried("huge.safetensors", string(8, '\xff') + good.substr(8), "header");
    tried("dtype.safetensors", replaced(good, "\"dtype\":\"F32\"", "\"dtype\":\"X32\""),
          "unknown dtype 'X32'");
    tried("ints.safetensors", replaced(good, "\"dtype\":\"F32\"", "\"dtype\":\"I32\""), "I32");
    tried("shape.safetensors", replaced(good, "\"shape\":[32,16]", "\"shape\":[16,32]"), "expected [32,16]");
    tried("json.safetensors", replaced(good, "\"dtype\":", "\"dtype\";"), "broken JSON");
    tried("offsets.safetensors", replaced(good, "\"data_offsets\":[0,2048]", "\"data_offsets\":[8,2056]"),
          "byte 8");
    tried("heads.safetensors", replaced(good, "\"n_head\":\"2\"", "\"n_head\":\"3\""), "not divisible");
    tried("active.safetensors", replaced(good, "\"n_expert_active\":\"2\"", "\"n_expert_active\":\"9\""),
          "n_expert_active 9");
    tried("field.safetensors", replaced(good, "\"n_layer\":\"2\"", "\"n_liver\":\"2\""), "n_layer");
    tried("layers.safetensors", replaced(good, "\"n_layer\":\"2\"", "\"n_layer\":\"3\""), "h.2.");
    tried("word.safetensors", replaced(good, "\"act\":\"relu\"", "\"act\":\"rele\""), "act is 'rele'");
    tried("kind.safetensors", replaced(good, "\"model\":\"moex\"", "\"model\":\"mole\""), "'mole'");
    refuses(sampler + " --ckpt no_such_file", 1, "no_such_file", "cannot be opened");
    refuses(sampler + " --ckpt chess", 1, "chess", "holds no model_*.safetensors");
    refuses(evaluator + " --ckpt chess --val few.bin", 1, "chess", "holds no model_*.safetensors");
    check(!fs::exists("bad"), "a refused run leaves no folder");
}

// ---------------------------------------------------------------------------------------------------------
// Sparsity

static void test_sparsity_flags() {
    works(tiny_run("bias_init", 1, "--bias-init 0.5 --lr 1e-20 --weight-decay 0"));
    works(tiny_run("bias_dense", 1, "--bias-init -2 --lr 1e-20 --weight-decay 0 --ffn dense"));
    for (const auto& [dir, name, bias] : {std::tuple{"bias_init", "h.1.moe.b_enc", -0.04},
                                          std::tuple{"bias_dense", "h.0.mlp.c_fc.bias", 0.16}}) {
        const SafeTensorsFile file(model_file(dir, 1));
        vector<float> b(file.find(name)->elements());
        read_floats(*file.find(name), b.data());
        for (const float x : b) check_near(x, bias, 1e-7);
    }
    if (train != cpu_train) return;
    // The weight that --l0-target steers, across a stop and a resumption.
    const string flags = "--l0-target 4 --warmup 10 --checkpoint-every 150 --val-every 0";
    works(tiny_run("target", 230, flags));
    works(tiny_run("target_parts", 230, flags));
    fs::remove(model_file("target_parts", 230)), fs::remove(state_file("target_parts", 230));
    works(train + " --resume --out target_parts");
    same_run("target", "target_parts", 230);
    double expected = 1e-3;
    for (const double step : {100, 200})
        expected *= std::exp(0.2 * std::clamp((last_in_log("target", "l0", step) - 4) / 4, -1.0, 1.0));
    const double weight = std::stod(metadata_entry(SafeTensorsFile(state_file("target", 230)), "l0_weight"));
    check_near(weight, expected, 1e-5 * expected);
    string state = read_file(state_file("target_parts", 150));
    fs::remove(model_file("target_parts", 230)), fs::remove(state_file("target_parts", 230));
    const size_t at = state.find("\"l0_weight\":\"") + 13;
    state[at] = 'x';
    write_file(state_file("target_parts", 150), state);
    refuses(train + " --resume --out target_parts", 1, "l0_weight is 'x", "expected a number");
    // A penalty brings the number of active units down.
    works(tiny_run("penalty_none", 200, "--val-every 0"));
    works(tiny_run("penalty_l0", 200, "--val-every 0 --l0-weight 1"));
    works(tiny_run("penalty_l1", 200, "--val-every 0 --l1-weight 0.3"));
    works(tiny_run("penalty_top", 20, "--val-every 0 --unit-top 3"));
    const double none = last_in_log("penalty_none", "l0");
    check(last_in_log("penalty_l0", "l0") < 0.8 * none, "%g of %g", last_in_log("penalty_l0", "l0"), none);
    check(last_in_log("penalty_l1", "l0") < 0.8 * none, "%g of %g", last_in_log("penalty_l1", "l0"), none);
    check(last_in_log("penalty_top", "l0") <= 6 && last_in_log("penalty_top", "l0") > 3);
}

// ---------------------------------------------------------------------------------------------------------
// Upcycling

static void test_upcycle() {
    const string data = " --train 'long/train*.bin' --val 'long/val*.bin' --val-batches 0 --batch 8 --seq 64 "
                        "--sample-every 0 ";
    const string rates = "--lr 5e-3 --checkpoint-every 0 ";
    works(train + data + rates +
          "--layers 2 --heads 2 --embd 32 --d-expert 64 --ffn dense --out dense --steps 300 --val-every 0");
    const double dense = last_in_log("dense", "val_loss"), untrained = last_in_log("dense", "val_loss", 0);
    const string from = " --upcycle --init " + model_file("dense", 300) + " ";
    const string floors = works(evaluator + " --games 0 --rows 100 --val 'long/val*.bin' --ckpt dense").out;
    std::smatch match;
    check(std::regex_search(floors, match, std::regex("token frequencies ([0-9.]+)")));
    const double unigram = std::stod(match[1]);
    check(dense < unigram - 0.3, "the dense model has learned: %.3f, unigram %.3f", dense, unigram);

    // D equal to the dense width: the same function but for 1% of noise in the weights.
    const string same =
        works(train + data + rates + from + "--experts 4 --active 2 --d-expert 128 --out same --steps 1").out;
    check_near(last_in_log("same", "val_loss", 0), dense, 0.003);
    check(same.find("2 of 4 experts of 128 relu units, sparsity router") != string::npos);
    check_near(last_in_log("same", "step", 1), 1, 0); // its own count of steps

    // Half the width: experts of half the units each.
    works(train + data + rates + from +
          "--experts 4 --active 2 --d-expert 64 --out half --steps 200 --val-every 25");
    const double half = last_in_log("half", "val_loss", 0);
    check(half < untrained - 1.5, "half the width: %.3f at once, %.3f untrained", half, untrained);
    check(last_in_log("half", "val_loss", 200) < dense, "back under %.3f: %.3f", dense,
          last_in_log("half", "val_loss", 200));
    // It resumes and upcycles no second time.
    works(train + data + rates + from +
          "--experts 4 --active 2 --d-expert 64 --out half_b --steps 200 --val-every 25 --checkpoint-every "
          "190");
    fs::remove(model_file("half_b", 200));
    fs::rename("dense", "elsewhere"); // the resumed run needs nothing of the dense one
    works(train + " --resume --out half_b");
    fs::rename("elsewhere", "dense");
    check(read_file(model_file("half_b", 200)) == read_file(model_file("half", 200)));

    refuses(train + data + "--upcycle --out bad --steps 2 --init " + model_file("half", 200), 1,
            model_file("half", 200), "dense");
    refuses(train + data + "--upcycle --out bad --steps 2", 2, "--upcycle", "--init");
    refuses(train + data + from + "--d-expert 129 --out bad --steps 2", 1, "--d-expert 129", "128");
    refuses(train + data + from + "--ffn dense --out bad --steps 2", 1, "--ffn dense");
    refuses(train + data + from + "--embd 64 --out bad --steps 2", 1, "--embd");
    refuses(train + data + from + "--active 9 --experts 8 --out bad --steps 2", 1, "n_expert_active 9");
    refuses(train + " --train few.bin --upcycle --act relu --out bad --steps 2 --init " +
                model_file("geglu/whole", 60),
            1, "geglu/whole", "act relu or gelu", "act geglu");
    // What is not said comes from the dense model, and the sparsity router.
    const string plain = works(train + data + from + "--out plain --steps 1").out;
    check(plain.find("2 of 8 experts of 64 relu units, sparsity router") != string::npos);
    const string gelu = train + " --train few.bin --upcycle --sample-every 0 --steps 1 --init " +
                        model_file("gpt2/whole", 60);
    check(works(gelu + " --out gelu_up").out.find("2 of 4 experts of 16 gelu units, sparsity router") !=
          string::npos);
    // The paper's way: relu units from gelu ones; and with a gate and a balance of its own.
    check(works(gelu + " --act relu --out relu_up").out.find("2 of 4 experts of 16 relu units, sparsity") !=
          string::npos);
    if (train == cpu_train) {
        works(gelu + " --act relu --balance bias --gate all --out bias_up");
        const Config up = read_config(SafeTensorsFile(model_file("bias_up", 1)));
        check(up.act == "relu" && up.balance == "bias" && up.gate == "all");
    }
    check(works(gelu + " --out topk_up --router topk --act relu").out.find("16 relu units, topk router") !=
          string::npos);
}

// ---------------------------------------------------------------------------------------------------------
// Sampling

static Model load_model(const string& path, size_t B, size_t T) {
    const SafeTensorsFile file(path);
    Model model(read_config(file), B, T, false);
    read_block(file, model.table, "", model.weights.data);
    return model;
}

static void test_sampling() {
    const string sample = sampler + " --ckpt base ";
    const string one = works(sample + "-n 25 --seed 5").out, two = works(sample + "-n 25 --seed 5").out;
    check(one == two && one != works(sample + "-n 25 --seed 6").out, "the seed decides");
    check(one[0] == ';' && one.back() == '\n');
    const Result greedy = works(sample + "-n 20 --temperature 0 --prompt ';1.e4 e5'");
    check(greedy.out == works(sample + "-n 20 --temperature 0 --seed 9 --prompt '1.e4 e5'").out);
    check(greedy.out == works(sample + "-n 20 --top-k 1 --temperature 2 --seed 3 --prompt ';1.e4 e5'").out);
    check(greedy.out == works(sample + "-n 20 --top-p 0 --seed 3 --prompt ';1.e4 e5'").out);
    check(greedy.out.rfind(";1.e4 e5", 0) == 0, "the prompt is echoed: %s", greedy.out.c_str());
    check(std::regex_match(
              greedy.err,
              std::regex("[0-9]+ tokens in [0-9.]+ s, [0-9.]+[KMG]? tokens/s"
                         "(, [0-9.]+ .?i?B moved at [0-9.]+ GB/s)? \\(prompt: 8 tokens in [0-9.]+ s\\)\n")),
          "%s", greedy.err.c_str());
    // The most probable token each time, by the model that has no cache.
    for (const string& path :
         {model_file("base", 20), model_file("switch/whole", 60), model_file("gpt2/whole", 60)}) {
        const string text =
            works(sampler + " --ckpt " + path + " -n 20 --temperature 0 --prompt '1.e4 e5'").out;
        vector<int32_t> tokens;
        for (const char c : text.substr(0, text.size() - 1)) tokens.push_back(chess_id(c));
        check(tokens.size() >= 8 && tokens.size() <= 28, "%s", text.c_str());
        Model model = load_model(path, 1, 32);
        forward_logits(model, tokens.data(), 1, tokens.size());
        for (size_t t = 7; t + 1 < tokens.size(); t++) {
            const real* logits = model.a.logits + t * 32;
            check(logits[tokens[t + 1]] >= *std::max_element(logits, logits + 32) - 1e-4, "token %zu", t + 1);
        }
    }
    check(works(sample + "-n 0 --prompt ';1.d4'").out == ";1.d4\n");
    check(works(sample + "-n 0").out == ";\n");
    // Far beyond the context of 32. Only the five most probable, of which end of text is none.
    const Result far = works(sampler + " --ckpt relu_topk/whole -n 150 --top-k 5 --prompt 'the cat'");
    check(far.out.size() == 7 + 150 + 1 && far.out.rfind("the cat", 0) == 0, "%zu", far.out.size());
    check(far.err.rfind("150 tokens in", 0) == 0 && far.err.find("prompt: 7 tokens") != string::npos, "%s",
          far.err.c_str());
    const string long_prompt(100, '1');
    check(works(sample + "-n 3 --top-k 1 --prompt " + long_prompt).out.rfind(";" + long_prompt, 0) == 0);

    // GPT-2 tokens train without a tokenizer file, and are printed with one only.
    ShardWriter gpt2("gpt2.bin", TOKENIZER_GPT2, 0);
    for (uint16_t id = 50000; id < 50200; id++) gpt2.write(&id, 1);
    gpt2.commit();
    works(train + tiny + "--total-tokens 128 --train gpt2.bin --steps 2 --sample-every 1 --out gpt2_tokens");
    refuses(sampler + " --ckpt gpt2_tokens", 1, "data/fineweb.py", "tokenizer");
    refuses(sampler + " --ckpt gpt2_tokens --tokenizer grammar.txt", 1, "grammar.txt",
            "not a GPT-2 tokenizer file");

    refuses(sample + "--prompt ';1.e4 z'", 1, "'z'", "offset 6", "chess-32");
    refuses(sample + "--prompt '\n'", 1, "0x0A");
    refuses(sampler + " --ckpt relu_topk/whole --board", 1, "--board", "bytes", "chess-32");
}

static void test_board() {
    const string sample = sampler + " --ckpt base --board ";
    for (const string game :
         {"", "1.e4 e5 2.Nf3 Nc6 3.Bb5", "1.e4 e5 2.Nf3 Nc6 3.Bc4 Bc5 4.O-O", "1.f3 e5 2.g4 Qh4#"}) {
        const chess::GameTextReader played = chess::parse_game_text(";" + game);
        const string board = chess::draw_board(
            played.position, played.moves.empty() ? chess::no_move : played.moves.back(), false);
        const string expected =
            ";" + game + "\n" + board + strf("all %zu moves are legal\n", played.moves.size());
        const string out = works(sample + "-n 0 --prompt '" + game + "'").out;
        check(played.ok() && out == expected, "%s", out.c_str());
    }
    const string bishop = works(sample + "-n 0 --prompt '1.e4 e5 2.Nf3 Nc6 3.Bb5'").out;
    check(bishop.find(" 5  . [B] .  .  p  .  .  . \n") != string::npos &&
              bishop.find(" 6  .  .  n ") != string::npos &&
              bishop.find(" 1  R  N  B  Q  K [.] .  R \n") != string::npos,
          "%s", bishop.c_str());
    const struct {
        const char *game, *what;
    } cases[] = {
        {"1.e4 e5 2.Ke3", "the first 2 moves are legal; then move 2 of White, '2.Ke3': illegal move\n"},
        {"1.e4 Ke7 2.d4", "the first 1 moves are legal; then move 1 of Black, 'Ke7': illegal move\n"},
        {"1.e4 e5 3.d4", "the first 2 moves are legal; then move 2 of White, '3.d4': expected '2.'"},
        {"1.e4 QQ 2.d4", "then move 1 of Black, 'QQ': not a move\n"}};
    for (const auto& c : cases) {
        const string out = works(sample + "-n 0 --prompt '" + c.game + "'").out;
        check(out.find(c.what) != string::npos, "%s", out.c_str());
    }
    // The board of what was sampled, which nearly always is no chess yet.
    const string out = works(sample + "-n 12 --prompt '1.d4 '").out;
    const chess::GameTextReader played = chess::parse_game_text(out.substr(0, out.find('\n')));
    check(out.find(played.ok() ? "moves are legal" : "legal; then move ") != string::npos &&
          out.find("[P]") != string::npos);
}

static void test_trace() {
    const string out = works(sampler + " --ckpt base --trace -n 4 --seed 2 --prompt ';1.e4'").out;
    size_t tokens = 0, layers = 0;
    for (const string& line : lines_of(out)) {
        tokens += std::regex_match(line, std::regex(" *[0-9]+ '.'"));
        if (line.rfind("     layer ", 0) != 0) continue;
        layers++;
        double sum = 0;
        std::set<string> experts;
        const std::regex expert("expert ([0-3]) ([01]\\.[0-9]{2})");
        for (std::sregex_iterator i(line.begin(), line.end(), expert), end; i != end; ++i) {
            experts.insert((*i)[1]);
            sum += std::stod((*i)[2]);
        }
        check(experts.size() == 2, "two experts: %s", line.c_str());
        check_near(sum, 1, 0.0101);
        check(std::regex_search(line, std::regex("\\| +[0-9]+ units fire:(  [0-3]/[0-9]+ [0-9.]+)*$")), "%s",
              line.c_str());
    }
    check(tokens == 8 && layers == 16, "5 of the prompt and 3 sampled ones are read: %zu, %zu", tokens,
          layers);
    check(out.find("\n;1.e4") != string::npos, "the text comes last");
    for (const char* other : {"hd", "vd", "peer"}) {
        if (train != cpu_train) break;
        const string traced = works(sampler + " --ckpt " + other + "/whole --trace -n 2").out;
        check(std::regex_search(traced, std::regex(" [1-9][0-9]* units fire:  [0-9]+ [0-9.]+  ")), "%s",
              traced.c_str());
    }
    const string dense = works(sampler + " --ckpt dense_relu/whole --trace -n 2").out;
    check(dense.find("units fire:") != string::npos && dense.find("expert") == string::npos);
}

// ---------------------------------------------------------------------------------------------------------
// Evaluation

// A vocabulary that is padded beyond the tokenizer's words: no word of the padding is ever drawn.
static void test_padded_vocabulary() {
    const SafeTensorsFile file(model_file("base", 20));
    Config c = read_config(file), padded = c;
    padded.vocab_size = 40;
    const vector<Tensor> table = tensor_table(padded);
    vector<float> weights(block_elements(table));
    for (const Tensor& t : table) {
        if (const SafeTensor* source = file.find(t.name)) read_floats(*source, &weights[t.offset]);
        if (t.name == "wte.weight") // a random walk through the words, and padding that draws every logit
            for (size_t i = 32 * c.n_embd; i < t.count; i++) weights[t.offset + i] = i % 2 ? 9 : -9;
        if (t.name == "ln_f.bias")
            for (size_t i = 0; i < t.count; i++) weights[t.offset + i] = i % 2 ? 9 : -9;
    }
    save_model<float>("padded.safetensors", padded, table, weights.data(), 20);
    for (const char* how : {"--temperature 0", "--top-k 3", ""})
        check(works(sampler + " --ckpt padded.safetensors -n 20 " + how).out.size() > 5);
    works(train + chess_data + "--init padded.safetensors --batch 4 --steps 2 -s 1 -n 1 --out padded");
    check(fs::exists(model_file("padded", 1)));
}

static void test_evaluate() {
    const string out = works(evaluator + " --ckpt base --val 'chess/val*.bin' --rows 1000").out;
    works(train + chess_data + " --init " + model_file("base", 20) +
          " --batch 7 --steps 1 -m 0 --sample-every 0 --out rows"); // the last batch is not a whole one
    const string whole = works(evaluator + " --ckpt rows --val 'chess/val*.bin' --rows 0").out;
    check(whole.find(strf("loss      %.4f ", last_in_log("rows", "val_loss", 1))) != string::npos,
          "the trainer says %.6f, %s", last_in_log("rows", "val_loss", 1), whole.c_str());
    check(works(evaluator + " --ckpt base --val 'long/val*.bin' --rows 5")
              .out.find("(the first 33 of the 65 tokens of each row)") != string::npos);
    std::smatch match;
    check(std::regex_search(
        out, match,
        std::regex(
            "loss +([0-9.]+) +\\(uniform guess ([0-9.]+), token frequencies ([0-9.]+)\\) +([0-9.]+) bits")));
    if (match.size() < 5) return;
    check_near(std::stod(match[1]), last_in_log("rows", "val_loss", 0), 1e-4);
    check_near(std::stod(match[2]), std::log(32.0), 1e-4);
    check_near(std::stod(match[4]), std::stod(match[1]) / std::log(2.0), 2e-3);
    size_t layers = 0;
    for (const string& line : lines_of(out)) {
        if (!std::regex_match(line, match,
                              std::regex("layer ([0-9]+) +([0-9.]+) of 32 units fire +expert load % +(.*)")))
            continue;
        double sum = 0, share;
        size_t experts = 0;
        for (std::istringstream shares(match[3]); shares >> share; experts++) sum += share;
        check(experts == 4 && std::stod(match[2]) >= 0 && std::stod(match[2]) <= 32 &&
              std::stoul(match[1]) == layers++);
        check_near(sum, 100, 0.21);
    }
    check(layers == 2);

    // As JSON, loss by ply: every character of a row of one game or more belongs to one ply.
    works(evaluator + " --ckpt base --val 'long/val*.bin' --rows 5 --games 4 --json of.json");
    const Json json = parse_json(read_file("of.json"), "of.json");
    double by_ply = 0, characters = 0, legal = 0, asked = 0;
    const Json &losses = *json.find("loss_by_ply"), &counts = *json.find("tokens_by_ply");
    check(losses.items.size() == counts.items.size() && losses.items.size() > 3);
    for (size_t p = 0; p < losses.items.size(); p++) {
        check(losses.items[p].number > 0 && counts.items[p].number > 0);
        by_ply += losses.items[p].number * counts.items[p].number;
        characters += counts.items[p].number;
    }
    check_near(characters, json.find("tokens")->number, 0);
    check_near(by_ply / characters, json.find("loss")->number, 1e-5);
    for (const Json& band : json.find("legal_by_band")->items) {
        asked += band.find("positions")->number;
        if (band.find("positions")->number > 0)
            legal += band.find("legal")->number * band.find("positions")->number;
    }
    check(json.find("legal_by_band")->items.size() == 4 && asked > 0);
    check_near(asked, json.find("positions")->number, 0);
    check_near(legal / asked, json.find("legal")->number, 1e-5);
    // By hand: `;1.e4 e5 2.` has `1.e4 ` (5 characters) of ply 1, `e5 ` of ply 2, `2.` of ply 3.
    write_rows("plies.bin", {";1.e4 e5 2."});
    works(evaluator + " --ckpt base --val plies.bin --json of.json");
    const Json plies = parse_json(read_file("of.json"), "of.json");
    vector<int64_t> found;
    for (const Json& n : plies.find("tokens_by_ply")->items) found.push_back(n.int64());
    check(found == (vector<int64_t>{5, 3, 2}));

    // Token frequencies by hand: of 24 targets 12, 6 and 6 are alike, so the entropy is 1.5 bits.
    write_rows("tiny.bin", {"1aaaabbcc", "2aaaabbcc", "3aaaabbcc"});
    const string tiny_out = works(evaluator + " --ckpt base --val tiny.bin").out;
    check(tiny_out.find("on 24 tokens of tiny.bin") != string::npos);
    check(tiny_out.find(strf("token frequencies %.4f)", 1.5 * std::log(2.0))) != string::npos, "%s",
          tiny_out.c_str());
    check(works(evaluator + " --ckpt base --val tiny.bin --rows 2 --seq 4").out.find("on 8 tokens") !=
          string::npos);
}

// A model that knows one opening by heart finds a legal move everywhere in it, and none where its moves do
// not fit.
static void test_legal_moves() {
    const string opening = ";1.e4 e5 2.Nf3 Nc6 3.Bb5 a6 4.Ba4 Nf6 5.O-O Be7 6.Re1 b5 7.Bb3 d6 8.c3 O-O",
                 row = opening.substr(0, 65);
    write_rows("opening.bin", vector<string>(16, row));
    works(train + " --train opening.bin --layers 1 --heads 2 --embd 32 --experts 4 --d-expert 32 --batch 4 "
                  "--lr 1e-2 --steps 150 "
                  "--sample-every 0 --out opening");
    size_t positions =
        0; // a move begins after a dot, or after a blank that no number follows; 8 characters must fit
    for (size_t i = 0; i + 8 < 64; i++) positions += row[i] == '.' || (row[i] == ' ' && !isdigit(row[i + 1]));
    const string out = works(evaluator + " --ckpt opening --val opening.bin --games 3").out;
    check(out.find(strf("legal     100.0%% of %zu positions", 3 * positions)) != string::npos, "%s",
          out.c_str());
    check(out.find("plies 1-10 100.0%") != string::npos && out.find("plies 11-20 100.0%") != string::npos,
          "%s", out.c_str());
    check(works(evaluator + " --ckpt opening --val opening.bin --games 0").out.find("legal") == string::npos);
    const string other = works(evaluator + " --ckpt opening --val 'long/val*.bin' --games 20").out;
    std::smatch match;
    check(std::regex_search(other, match, std::regex("legal +([0-9.]+)% of ([0-9]+) positions")) &&
              std::stod(match[1]) >= 0 && std::stod(match[1]) < 100 && std::stoul(match[2]) > 50,
          "%s", other.c_str());
}

// ---------------------------------------------------------------------------------------------------------
// Interventions, as a user gives them: what they do to the model test_model.cpp says

static void test_intervene() {
    const string sample = sampler + " --ckpt base -n 12 --seed 3 --prompt '1.e4 e5' ",
                 plain = works(sample).out,
                 judge = evaluator + " --ckpt base --val 'chess/val*.bin' --rows 6 --games 4 ",
                 judged = works(judge).out;
    check(works(sample + "--ranks 0,1").out == plain && works(judge + "--experts-on 0/0").out != judged);
    check(works(judge + "--active 2").out == "with      --active 2\n" + judged);
    for (const string changed : {"--experts-off 0/1", "--units-off 0/1/3", "--active 1"}) {
        const string out = works(judge + changed + " --json changed.json").out;
        check(out.find("with      " + changed + "\n") == 0, "%s", out.c_str());
        check(parse_json(read_file("changed.json"), "changed").find("changed")->text == changed);
    }
    const auto trace = [&](const string& how) {
        return works(sampler + " --ckpt base --trace -n 3 --prompt ';1.e4 e5 2.' " + how).out;
    };
    check(trace("").find("expert 1 ") != string::npos &&
          trace("--experts-off 0/1,1/1").find("expert 1 ") == string::npos);
    // A unit that fires and is switched off is not among those that put something into the output.
    const string traced = trace("--temperature 0");
    std::smatch unit;
    check(std::regex_search(traced, unit, std::regex("layer 0 .*units fire:  ([0-9]+/[0-9]+) ")));
    const string off = trace("--temperature 0 --units-off 0/" + string(unit[1]));
    check(std::regex_search(off, std::regex("layer 0 ")) &&
          !std::regex_search(off, std::regex("layer 0 .* " + string(unit[1]) + " ")));

    check(works(sample + "--temperature 0 --contrast 1 --contrast-beta 0").out ==
          works(sample + "--temperature 0").out);
    check(works(sample + "--contrast 2 --contrast-beta 0 --contrast-alpha 0").out == plain);
    check(works(sample + "--contrast 2 --contrast-beta 4 --contrast-alpha 0").out != plain);
    // The same routing on both sides: the most probable token stays that.
    check(works(sample + "--temperature 0 --contrast 0,1 --contrast-beta 3").out ==
          works(sample + "--temperature 0").out);
    check(works(judge + "--contrast 0,1").out ==
          "with      --contrast 0,1 --contrast-beta 0.5 --contrast-alpha 0.1\n" + judged);
    refuses(judge + "--contrast 1 --games 0", 2, "--contrast", "legal moves", "--games 0");
    refuses(sample + "--experts-off 2/0", 2, "--experts-off", "layer '2'", "0 to 1");
    refuses(judge + "--units-off 0/0/99", 2, "--units-off", "unit '99'", "0 to 15");
    refuses(sample + "--contrast 9", 2, "--contrast", "rank '9'", "0 to 3");
    refuses(sampler + " --ckpt dense_relu/whole --active 1", 2, "--active", "no experts", "dense");
    works(sampler + " --ckpt dense_relu/whole -n 3 --units-off 0/0/3");
}

// ---------------------------------------------------------------------------------------------------------
// The CUDA trainer

// A run that one program began the other goes on with, both ways; what comes out is close, in fp32 very.
static void test_exchange() {
    const double tolerance = in_bf16() ? 1e-2 : 2e-5;
    for (const bool from_cpu : {true, false}) {
        const string dir = from_cpu ? "from_cpu" : "from_gpu", program = train;
        const string more = " --total-tokens 256 --checkpoint-every 6 --val-every 6 ";
        if (from_cpu) train = cpu_train;
        works(tiny_run(dir, 12, more));
        train = program;
        const double whole = last_in_log(dir, "val_loss", 12);
        fs::remove(model_file(dir, 12)), fs::remove(state_file(dir, 12));
        const Result r = works((from_cpu ? train : cpu_train) + " --resume --out " + dir);
        check(r.out.find("from step 6") != string::npos, "%s", tail_of(r.out).c_str());
        check(fs::exists(model_file(dir, 12)) && fs::exists(state_file(dir, 12)));
        check_near(last_in_log(dir, "val_loss", 12), whole, tolerance * whole);
    }
}

static void test_gpu_refusals() {
    setenv("EMU_MEMORY", "300000", 1); // bytes; a GPU has more, and there this is not tested
    if (train.find("_emu") != string::npos) {
        refuses(tiny_run("no_memory", 3), 1, "GPU memory", "activations", "--batch", "--recompute");
        check(!fs::exists("no_memory"), "a refused run leaves no folder");
    }
    unsetenv("EMU_MEMORY");
    refuses(tiny_run("odd", 3, "--l1-weight 0.1"), 1, "--l1-weight", "known to train_moex_cpu");
    refuses(tiny_run("odd", 3, "--ffn dense --act solu --d-expert 4616"), 1, "solu layer of 9232 units",
            "at most 9216");
    refuses(tiny_run("odd", 3, "--embd 20"), 1, "n_embd is 20", "multiple of 8");
    refuses(tiny_run("odd", 3, "--d-expert 12"), 1, "d_expert is 12", "multiple of 8");
    refuses(tiny_run("odd", 3, "--embd 640 --heads 2"), 1, "heads of 320", "256");
    refuses(tiny_run("odd", 3, "--embd 8192 --heads 64"), 1, "n_embd is 8192", "at most 6144");
    check(!fs::exists("odd"));

    // A run whose library's epilogues another card does not have: what it is told is what it may do.
    works(tiny_run("library", 2, "--epilogues library"));
    const string on = train + " --resume --out library --steps 3";
    setenv("EMU_CUBLASLT_EPILOGUES", "bias", 1);
    if (train.find("_emu") != string::npos)
        refuses(on, 1, "--epilogues library", "goes on keeps its choice", "--init");
    refuses(on + " --epilogues own", 1, "ran with other flags", "--epilogues own (was library)", "--init");
    works(tiny_run("own", 2, "--epilogues own --init library/model_00000002.safetensors"));
    unsetenv("EMU_CUBLASLT_EPILOGUES");
}

int main(int argc, char** argv) {
    return run_main([&] {
        if (argc < 2) fail_usage("usage: test_programs FOLDER [TRAINER SAMPLER [SECTION...]]");
        const string bin = fs::absolute(argv[1]);
        for (auto [name, variable] : {std::pair{argc > 3 ? argv[2] : "train_moex_cpu", &train},
                                      {argc > 3 ? argv[3] : "sample_cpu", &sampler},
                                      {"evaluate", &evaluator},
                                      {"make_text", &make_text},
                                      {"make_chess", &make_chess}}) {
            *variable = bin + "/" + name;
            if (access(variable->c_str(), X_OK) != 0)
                fail("%s: not there; build it first", variable->c_str());
        }
        cpu_train = bin + "/train_moex_cpu";
        files = fs::absolute(fs::path(__FILE__).parent_path() / "files");
        setenv("OMP_NUM_THREADS", "1", 1);
        string folder = string(getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp") + "/moex_test.XXXXXX";
        if (!mkdtemp(folder.data()) || chdir(folder.c_str()) != 0) fail("%s: cannot be made", folder.c_str());
        // Without a list of sections: all of them, but for those of the CUDA programs.
        const auto section = [&](const char* name, void (*test)(), bool cuda = false) {
            const double begin = now_seconds();
            bool wanted = argc <= 4 && !cuda;
            for (int i = 4; i < argc; i++) wanted |= string(name) == argv[i];
            if (!wanted) return;
            try {
                test();
            } catch (const std::exception& e) {
                check_at(false, name, 0, e.what());
            }
            if (getenv("VERBOSE")) printf("%-20s %.1f s\n", name, now_seconds() - begin);
        };
        section("inputs", make_inputs);
        section("help", test_help);
        section("usage", test_usage);
        section("printed", test_what_is_printed);
        section("log", test_log);
        section("checkpoints", test_checkpoint_files);
        section("variants", test_variants);
        section("threads", test_threads);
        section("early signals", test_early_signals);
        section("signals", test_signals);
        section("streams", test_streams);
        section("paths", test_paths);
        section("terminal", test_terminal);
        section("shrinking", test_shrinking);
        section("longer", test_longer);
        section("keep", test_keep);
        section("first release", test_first_release);
        section("padded", test_padded_vocabulary);
        section("kill", test_kill);
        section("lock", test_lock);
        section("disk full", test_disk_full);
        section("unwritable", test_unwritable);
        section("not_finite", test_not_finite);
        section("resume flags", test_resume_flags);
        section("bad shards", test_bad_shards);
        section("bad_models", test_bad_models);
        section("sparsity", test_sparsity_flags);
        section("upcycle", test_upcycle);
        section("sampling", test_sampling);
        section("board", test_board);
        section("trace", test_trace);
        section("intervene", test_intervene);
        section("evaluate", test_evaluate);
        section("legal moves", test_legal_moves);
        section("exchange", test_exchange, true);
        section("gpu", test_gpu_refusals, true);
        if (chdir("/") != 0) fail("/: cannot be entered");
        if (!getenv("KEEP")) fs::remove_all(folder);
        return finish();
    });
}
