// The programs of dev/interp as a user meets them: bsp, sparsity, router, features and report on runs of tiny
// models, and what they say when a model, a file of games or a flag does not fit. argv[1] is the folder of
// the programs; argv[2], if given, the name of a bsp that runs the CUDA program, which must find what bsp
// finds. Everything is made in a temporary folder that is removed at the end.
#include "../dev/lib/json.h"
#include "../dev/run/checkpoint.h"
#include "process.h"

namespace fs = std::filesystem;
using std::string, std::vector;

static string bin;
static string program(const string& name) { return bin + "/" + name; }

static Json json_file(const string& path) { return parse_json(read_file(path), path); }
static double number(const Json& from, const string& name) {
    const Json* found = from.find(name);
    return found && found->is_number() ? found->number : NAN;
}

// Games to measure on, and runs: a mixture of experts, a dense gelu model, a topk router, and one of text.
static void make_inputs() {
    works(program("make_chess") +
          " --games 400 --row 257 --val-fraction 0.4 --threads 1 --out data --val-text games.txt");
    const string train = program("train_moex_cpu") +
                         " --layers 2 --heads 2 --embd 16 --batch 4 --steps 20 "
                         "--val-every 10 --val-batches 2 --checkpoint-every 10 --sample-every 0 ";
    const string chess = "--seq 256 --train 'data/train*.bin' --val 'data/val*.bin' ";
    works(train + chess + "--experts 4 --d-expert 16 --out moe");
    works(train + chess + "--experts 4 --d-expert 16 --act gelu --router topk --out topk");
    works(train + chess + "--ffn dense --act gelu --d-expert 16 --out dense");
    string text;
    for (int i = 0; i < 3000; i++)
        text += (i % 3 ? "The cat saw " : "Nobody found ") + std::to_string(i * 7919 % 997) +
                (i % 5 ? " dogs.\n" : " birds!\n");
    write_file("text.txt", text);
    works(program("make_text") + " --out text text.txt");
    works(train +
          "--seq 64 --train 'text/train*.bin' --val 'text/val*.bin' --experts 4 --d-expert 16 --out words");
}

static void test_help() {
    for (const char* name : {"bsp", "sparsity", "router", "features", "probe", "experts"}) {
        const string help = works(program(name) + " --help").out;
        for (const char* flag : {"usage: ", "--ckpt", "--json", "-h, --help"})
            check(help.find(flag) != string::npos, "%s --help names %s", name, flag);
        refuses(program(name), 2, "see --help");
        refuses(program(name) + " --nonsense", 2, "nonsense");
        const bool games = help.find("--games") != string::npos;
        refuses(program(name) + " --ckpt absent" + (games ? " --games" : " --data") + " games.txt", 1,
                "absent");
    }
    check(works(program("report") + " --help").out.find("--run") != string::npos);
}

// The three kinds of models, and the files that come out.
static void test_measures() {
    for (const string run : {"moe", "topk", "dense"}) {
        const string games = " --ckpt " + run + " --games games.txt --count 12";
        const Result bsp = works(program("bsp") + games); // a part of what it measures: not bsp.json
        check(fs::exists(run + "/interp/bsp_count_12.json") && !fs::exists(run + "/interp/bsp.json"));
        works(program("bsp") + games + " --json " + run + "/interp/bsp.json");
        for (const char* part : {"coverage", "beyond", "always on", "untrained", "permuted", "same move",
                                 "text", "matched", "check_state"})
            check(bsp.out.find(part) != string::npos, "%s", part);
        const Json measured = json_file(run + "/interp/bsp.json");
        check(measured.find("tool")->text == "bsp" && number(measured, "step") == 20);
        check(measured.find("layers")->items.size() == 2 && measured.find("functions")->items.size() == 23);
        works(program("sparsity") + " --ckpt " + run + " --data games.txt --rows 20");
        check(json_file(run + "/interp/sparsity.json").find("layers")->items.size() == 2);
        if (run == "dense") {
            refuses(program("router") + " --ckpt dense --data games.txt --rows 20", 1, "dense");
        } else {
            works(program("router") + " --ckpt " + run + " --data games.txt --rows 20");
            check(json_file(run + "/interp/router.json").find("layers")->items.size() == 2);
        }
        const Result features = works(program("features") + games + " --best 2 --per-expert 2 --json " + run +
                                      "/interp/features.json");
        check(features.out.find("layer ") != string::npos);
        check(json_file(run + "/interp/features.json").find("units")->items.size() > 0);
        works(program("report") + " --run " + run + " --games games.txt"); // all is measured that can be
        const string page = read_file(run + "/report.html");
        check(strncasecmp(page.c_str(), "<!doctype html>", 15) == 0 && page.find("</html>") != string::npos &&
              page.size() < 5u << 20);
    }
    works(program("sparsity") + " --ckpt words --data 'text/val*.bin' --rows 20");
    works(program("router") + " --ckpt words --data 'text/val*.bin' --rows 20");
    works(program("features") + " --ckpt words --data 'text/val*.bin' --best 2 --per-expert 2");
    works(program("report") + " --run words");
    check(read_file("words/report.html").find("</html>") != string::npos);
    // All that is missing; of text enough for concepts to be asked.
    const Result all = works(program("report") + " --run words --data 'text/train*.bin' --all");
    check(all.out.find(" experts take what is more than their tokens") != string::npos);
    for (const char* tool : {"experts", "probe"}) {
        check(json_file(string("words/interp/") + tool + ".json").find("tool")->text == tool);
        check(read_file("words/report.html").find(string("id=\"data-") + tool + "\"") != string::npos);
    }
}

// Same seed and input, same numbers, with one thread or more.
static void test_repeatable() {
    const auto without_times = [](string text) {
        const size_t at = text.find("\"seconds\":"), end = text.find(',', at);
        return at == string::npos ? text : text.erase(at, end - at);
    };
    const vector<std::pair<string, string>> programs = {{"bsp", "--games games.txt --count 12"},
                                                        {"features", "--games games.txt --count 12"},
                                                        {"sparsity", "--data games.txt --rows 20"},
                                                        {"router", "--data games.txt --rows 20"}};
    for (const auto& [name, inputs] : programs) {
        const string command = program(name) + " --ckpt moe --json ";
        works(command + "one.json " + inputs);
        works("env OMP_NUM_THREADS=3 " + command + "three.json " + inputs);
        const string one = without_times(read_file("one.json")),
                     three = without_times(read_file("three.json"));
        check(!one.empty() && one == three, "%s: one thread and three", name.c_str());
    }
}

static void test_refusals() {
    const string games = " --games games.txt";
    for (const char* name : {"bsp", "features"})
        refuses(program(name) + " --ckpt words" + games, 1, "words", "chess-32");
    write_file("short.txt", ";1.e4 e5 2.Nf3\n");
    refuses(program("bsp") + " --ckpt moe --games short.txt", 1, "short.txt", "none of its 1 games");
    refuses(program("bsp") + " --ckpt moe --games absent.pgn", 1, "absent.pgn");
    refuses(program("bsp") + " --ckpt moe" + games + " --layer 2", 2, "--layer");
    refuses(program("bsp") + games, 2, "--ckpt");
    refuses(program("bsp") + " --activations games.txt --test-activations games.txt" + games, 1, "games.txt");
    refuses(program("sparsity") + " --ckpt moe --data 'text/val*.bin'", 1, "text/val");
    refuses(program("features") + " --ckpt moe" + games + " --unit 7/0/0", 1, "--unit");
    refuses(program("report") + " --run absent", 1, "absent");
    write_file("moe_cut.safetensors", read_file(model_path("moe", 20)).substr(0, 5000));
    for (const char* name : {"bsp", "features"})
        refuses(program(name) + " --ckpt moe_cut.safetensors" + games, 1, "moe_cut.safetensors");
}

static void test_labels() {
    const string csv = works(program("bsp") + " --labels - --games games.txt").out;
    check(csv.find("game,ply,fen,piece64") == 0, "%s", csv.substr(0, 80).c_str());
    write_file("one.fen", "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1\n");
    check(works(program("bsp") + " --labels - --games one.fen").out.find("RNBQKBNRPPPPPPPP") != string::npos);
    works(program("bsp") + " --labels all.csv --games games.txt");
    check(read_file("all.csv") == csv);
    write_file("bad.txt", ";1.e4 e5\n;1.e4 e4\n");
    refuses(program("bsp") + " --labels bad.csv --games bad.txt", 1, "bad.txt", "line 2", "e4");
    for (const auto& entry : fs::directory_iterator("."))
        check(entry.path().string().find("bad.csv") == string::npos, "%s is left behind",
              entry.path().c_str());
}

// Every number of two JSONs but the time.
static void compare(const Json& a, const Json& b, const string& at, size_t& compared) {
    if (a.is_number() && at.find("seconds") == string::npos) {
        compared++;
        check(b.is_number() && std::fabs(a.number - b.number) <= 2e-3 * (1 + std::fabs(a.number)),
              "%s: %g, %g", at.c_str(), a.number, b.number);
    }
    if (!check(a.items.size() == b.items.size(), "%s", at.c_str())) return;
    for (size_t i = 0; i < a.items.size(); i++)
        compare(a.items[i], b.items[i], at + "/" + (i < a.keys.size() ? a.keys[i] : std::to_string(i)),
                compared);
}
static void test_gpu(const string& name) {
    for (const char* run : {"moe", "dense"}) {
        const string flags = string(" --ckpt ") + run + " --games games.txt --count 3 --json ";
        works(program("bsp") + flags + "cpu.json");
        works(program(name) + flags + "gpu.json");
        size_t compared = 0;
        compare(json_file("cpu.json"), json_file("gpu.json"), run, compared);
        check(compared > 1000, "%zu", compared);
    }
}

int main(int argc, char** argv) {
    return run_main([&] {
        if (argc < 2) fail_usage("usage: test_interp FOLDER [BSP_OF_THE_GPU]");
        bin = fs::absolute(argv[1]);
        setenv("OMP_NUM_THREADS", "1", 1);
        string folder = string(getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp") + "/moex_interp.XXXXXX";
        if (!mkdtemp(folder.data()) || chdir(folder.c_str()) != 0) fail("%s: cannot be made", folder.c_str());
        make_inputs();
        if (argc > 2) {
            test_gpu(argv[2]);
        } else {
            test_help();
            test_measures();
            test_repeatable();
            test_refusals();
            test_labels();
        }
        if (chdir("/") != 0) fail("/: cannot be entered");
        if (!getenv("KEEP")) fs::remove_all(folder);
        return finish();
    });
}
