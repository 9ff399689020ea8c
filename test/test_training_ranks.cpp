// The trainer on several GPUs, as a user runs it: the same checkpoints byte for byte on any number of GPUs
// and machines, stopped, killed and resumed with another number; and one line where something is wrong.
//   test_training_ranks FOLDER [PROGRAM [SECTION..]]
//       PROGRAM: train_moex_emu, whose fp32 build and the one without NCCL are beside it, or train_moex on a
//       machine with GPUs; SECTION: "same bits" (R1), "kills" (R8) .. as they are listed at the end; all
#include "../data/shard.h"
#include "../dev/lib/json.h"
#include "../dev/run/checkpoint.h"
#include "rank_process.h"
#include <csignal>
#include <map>
#include <regex>

namespace fs = std::filesystem;
using std::string, std::vector;

static string folder, program; // of the programs; the name of the trainer
static bool emulated;
static int most_gpus = 8;

static string train(const string& name = program) { return folder + "/" + name; }
static string fp32() { return emulated ? "train_moex_fp32_emu" : "train_moex_fp32"; }

// ---------------------------------------------------------------------------------------------------------
// Data and runs

static void write_rows(const string& path, size_t rows, uint64_t seed) {
    ShardWriter shard(path, TOKENIZER_CHESS, 17);
    Random random{seed};
    for (size_t r = 0; r < rows; r++) {
        vector<uint16_t> row(17, uint16_t(random.below(32)));
        for (size_t i = 1; i < row.size(); i++) // something to learn: mostly the next number
            row[i] = uint16_t(random.below(4) ? (row[i - 1] + 3) % 32 : random.below(32));
        shard.write(row.data(), row.size());
    }
    shard.commit();
}

// Layers of three segments (4096 numbers each are owned together).
static const string model = " --layers 2 --heads 2 --embd 16 --experts 4 --d-expert 64 --seq 16 --batch 1 ";
static const string data = " --train data/train.bin --val data/val.bin ";
static string flags_of(const string& out, int steps, const string& more) {
    return data + model + " --total-tokens 64 --lanes 4 --sample-every 0 --val-batches 5 --lr 3e-3 --out " +
           out + " --steps " + std::to_string(steps) + " " + more;
}
static string fresh_dir() {
    static int count = 0;
    return strf("run%d.%d", count++, int(getpid()));
}

// How a run is started: one process, --gpus N, or two machines.
static string alone(const string& flags, const string& name = program) { return train(name) + flags; }
static string on_gpus(int n, const string& flags, const string& name = program) {
    return strf("%s --gpus %d %s", train(name).c_str(), n, flags.c_str());
}
static string on_two_machines(int gpus, const string& flags, const string& name = program) {
    const int port = free_port();
    vector<string> nodes;
    for (int node = 0; node < 2; node++)
        nodes.push_back(strf("MOEX_HOST=node%d %s --gpus %d --node %d/2 --master 127.0.0.1:%d %s", node,
                             train(name).c_str(), gpus, node, port, flags.c_str()));
    return side_by_side(nodes);
}
static Result shell(const string& command) { return Process(command).finish(); }

static bool good(const Result& r) {
    const bool ok = r.status == 0 && r.err.empty() && r.out.find("statuses 1") == string::npos;
    if (!ok)
        printf("status %d, signal %d: %s\n%s\n", r.status, r.signal, r.err.c_str(), tail_of(r.out).c_str());
    return ok;
}

// The log without what the clock decides.
static string log_of(const string& dir) {
    return std::regex_replace(read_file(dir + "/log.jsonl"), std::regex("\"ms\":[^,]*,\"tok_s\":[^,]*,"), "");
}
static string tensors_of(const string& path) { // without the header, which has the flags
    const string bytes = read_file(path);
    uint64_t header = 0;
    if (bytes.size() < sizeof header) return "";
    memcpy(&header, bytes.data(), sizeof header);
    return bytes.substr(sizeof header + header);
}
static bool same(const string& a, const string& b, int step, bool flags_too = true) {
    bool equal = log_of(a) == log_of(b) && !log_of(a).empty();
    if (!equal)
        printf("the logs of %s and %s differ:\n%s\n%s\n", a.c_str(), b.c_str(), log_of(a).c_str(),
               log_of(b).c_str());
    for (const string& name : {model_path("", step), state_path("", step)}) {
        const auto bytes = [&](const string& dir) {
            return flags_too ? read_file(dir + name) : tensors_of(dir + name);
        };
        if (!bytes(a).empty() && bytes(a) == bytes(b)) continue;
        printf("%s%s and %s%s differ\n", a.c_str(), name.c_str(), b.c_str(), name.c_str());
        equal = false;
    }
    return equal;
}
// The losses of a log, by step.
static std::map<int, double> losses_of(const string& dir) {
    std::map<int, double> losses;
    std::istringstream lines(read_file(dir + "/log.jsonl"));
    for (string line; std::getline(lines, line);) {
        const Json json = parse_json(line, dir);
        if (const Json* loss = json.find("loss")) losses[int(json.find("step")->number)] = loss->number;
    }
    return losses;
}

// The process of a rank, once it runs.
static pid_t pid_of_rank(const string& dir, int rank) {
    const string wanted = string(1, '\0') + "RANK=" + std::to_string(rank) + string(1, '\0');
    for (const double end = seconds() + 20; seconds() < end; usleep(2000))
        for (const pid_t pid : processes_of(dir)) {
            const string environment = string(1, '\0') + read_file(strf("/proc/%d/environ", int(pid)));
            if (environment.find(wanted) != string::npos) return pid;
        }
    return 0;
}

// ---------------------------------------------------------------------------------------------------------
// R1, R6: the same bits

static void test_same_bits() {
    const auto run = [](const string& command) { check(good(shell(command)), "%s", command.c_str()); };
    const string every = "--checkpoint-every 2 --val-every 2 ";
    const string one = fresh_dir();
    run(alone(flags_of(one, 4, every)));
    for (const int n : {2, 4}) {
        if (n > most_gpus) continue;
        const string dir = fresh_dir();
        const Result r = shell(on_gpus(n, flags_of(dir, 4, every)));
        check(good(r) && same(one, dir, 4) && same(one, dir, 2), "%d GPUs", n);
        check(r.out.find(strf("%d (--gpus %d): 1 machine x %d GPUs, 4 lanes, %d micro-batch", n, n, n,
                              4 / n)) != string::npos &&
              r.out.find("on each GPU") != string::npos && r.out.find("NCCL") != string::npos);
        // Rank 0 of four owns nothing of so small a model; what is shown is what the fullest has.
        check(std::regex_search(r.out, std::regex("optimizer moments *\\| [1-9]")), "%s", r.out.c_str());
        const string whole = fresh_dir(); // the optimizer's state whole on each: another flag in the file
        run(on_gpus(n, flags_of(whole, 4, every + "-z 0")));
        check(same(one, whole, 4, false), "-z 0 on %d GPUs", n);
    }
    struct Variant {
        string flags, name;
    };
    for (const Variant& v : vector<Variant>{{"--router topk --recompute 2", program},
                                            {"--ffn dense --act gelu", program},
                                            {"--router-sd scaled --l0-target 9 --warmup 1", program},
                                            {"--act gelu", fp32()}}) {
        const string a = fresh_dir(), b = fresh_dir();
        run(alone(flags_of(a, 3, v.flags), v.name));
        if (emulated)
            run(on_two_machines(2, flags_of(b, 3, v.flags), v.name));
        else
            run(on_gpus(2, flags_of(b, 3, v.flags), v.name));
        check(same(a, b, 3), "%s of %s", v.flags.c_str(), v.name.c_str());
    }
}

// R2: micro-batches that do not go round, three GPUs, other lanes.
static void test_other_numbers() {
    if (most_gpus < 4) return;
    const string ten = "--total-tokens 160 ", a = fresh_dir(), b = fresh_dir();
    check(good(shell(alone(flags_of(a, 3, ten)))));
    const Result r = shell(on_gpus(4, flags_of(b, 3, ten)));
    check(good(r) && same(a, b, 3) && r.out.find("83% busy") != string::npos, "%s", r.out.c_str());
    string three[2];
    for (string& dir : three) {
        dir = fresh_dir();
        check(good(shell(on_gpus(3, flags_of(dir, 3, "--lanes 3")))));
    }
    check(same(three[0], three[1], 3));
    for (const bool exact : {true, false}) { // fp32, then bf16
        const string name = exact ? fp32() : program, one = fresh_dir(), four = fresh_dir();
        check(good(shell(alone(flags_of(one, 12, "--lanes 1"), name))));
        check(good(shell(alone(flags_of(four, 12, ""), name))));
        const std::map<int, double> x = losses_of(one), y = losses_of(four);
        check(x.size() == 12 && y.size() == 12 &&
              read_file(model_path(one, 12)) != read_file(model_path(four, 12)));
        for (const auto& [step, loss] : x) check_near(y.at(step), loss, exact ? 1e-6 * loss : 1e-2);
    }
}

// R3: streams that run late and threads in any order, beside the other rank's.
static void test_orders() {
    if (!emulated) return;
    const string one = fresh_dir();
    check(good(shell(alone(flags_of(one, 2, "")))));
    for (int seed = 1; seed <= 5; seed++) {
        const string dir = fresh_dir();
        check(good(shell(strf("EMU_STREAMS=random:%d %s", seed, on_gpus(2, flags_of(dir, 2, "")).c_str()))));
        check(same(one, dir, 2), "EMU_STREAMS=random:%d", seed);
    }
    const string dir = fresh_dir();
    check(good(shell("EMU_ORDER=random " + on_gpus(2, flags_of(dir, 2, "")))) && same(one, dir, 2));
}

// ---------------------------------------------------------------------------------------------------------
// R4: stopped, and resumed with another number of GPUs

static string command_in(const string& out) { // that it prints to go on
    const size_t at = out.rfind("to go on: ");
    return at == string::npos ? "" : out.substr(at + 10, out.find('\n', at) - at - 10);
}

static void test_resume() {
    const int steps = 24, two = std::min(most_gpus, 2), four = std::min(most_gpus, 4);
    const string every = "--checkpoint-every 0 --val-every 0 ", whole = fresh_dir(), dir = fresh_dir();
    check(good(shell(alone(flags_of(whole, steps, every)))));
    Process first("exec " + on_gpus(four, flags_of(dir, steps, every)));
    check(first.wait_for("step  2/24"));
    kill(pid_of_rank(dir, 1), SIGTERM);
    const Result r = first.finish();
    check(r.status == 128 + SIGTERM && nothing_said(dir, r), "status %d", r.status);
    check(command_in(r.out).find(strf("--gpus %d --resume --out %s", four, dir.c_str())) != string::npos,
          "%s", command_in(r.out).c_str());
    check(checkpoint_steps(dir).size() == 1);
    Process second("exec " + on_gpus(two, " --resume --out " + dir));
    check(second.wait_for(strf("step %2d/24", int(checkpoint_steps(dir)[0]) + 2)));
    kill(second.pid, SIGINT); // the launcher
    const Result s = second.finish();
    check(s.status == 128 + SIGINT && nothing_said(dir, s) && checkpoint_steps(dir).size() == 2, "status %d",
          s.status);
    Process third("exec " + alone(" --resume --out " + dir));
    check(third.wait_for(strf("step %2d/24", int(checkpoint_steps(dir)[0]) + 2)));
    kill(third.pid, SIGTERM);
    check(third.finish().status == 128 + SIGTERM && checkpoint_steps(dir).size() == 3);
    check(good(shell(command_in(r.out))), "%s", command_in(r.out).c_str()); // as it was printed
    check(same(whole, dir, steps));

    // Other numbers of GPUs, and of lanes.
    if (emulated)
        refuses(on_gpus(3, " --resume --out " + dir), 1,
                "this run sums in 4 lanes, which 3 GPUs cannot share", "1, 2 or 4 GPUs", "--lanes 3");
    const string more = strf(" --resume --out %s --steps %d --lanes %d", dir.c_str(), steps + 2, 2 * two);
    const Result longer = shell(on_gpus(two, more));
    check(good(longer) && (2 * two == 4 || longer.out.find("lanes from here on") != string::npos));
}

// R7: the reference goes on with what several GPUs began, and they with its runs.
static void test_with_cpu() {
    if (most_gpus < 4) return;
    const string cpu = "train_moex_cpu", every = "--checkpoint-every 5 ", whole = fresh_dir(),
                 a = fresh_dir(), b = fresh_dir();
    check(good(shell(alone(flags_of(whole, 10, every), cpu))));
    check(good(shell(on_gpus(4, flags_of(a, 10, every), fp32()))));
    check(good(shell(alone(flags_of(b, 10, every), cpu))));
    for (const string& dir : {a, b})
        for (const string& path : {model_path(dir, 10), state_path(dir, 10)}) fs::remove(path);
    const Result by_cpu = shell(alone(" --resume --out " + a, cpu));
    const Result by_four = shell(on_gpus(4, " --resume --out " + b, fp32()));
    check(good(by_cpu) && good(by_four) && by_cpu.out.find("from step 5") != string::npos);
    const double expected = losses_of(whole)[10];
    check_near(losses_of(a)[10], expected, 1e-5 * expected);
    check_near(losses_of(b)[10], expected, 1e-5 * expected);
}

// ---------------------------------------------------------------------------------------------------------
// R8: killed at any moment

static void test_kills() {
    if (most_gpus < 2) return;
    const int ranks = std::min(most_gpus, 4), steps = 30;
    const string every = "--checkpoint-every 2 --val-every 3 --timeout 60 ", whole = fresh_dir();
    check(good(shell(alone(flags_of(whole, steps, every)))));
    srand(1);
    const string setting = emulated ? "EMU_NCCL=hang " : ""; // those that are left wait for ever
    string dir = fresh_dir();
    double longest = 0;
    for (int kills = 0, ends = 0; kills < 10;) {
        const int victim = ranks < 4 ? rand() % ranks : vector<int>{0, 1, 3}[size_t(rand() % 3)];
        Process p(setting + "exec " + on_gpus(ranks, flags_of(dir, steps, every + "--resume")));
        const pid_t pid = pid_of_rank(dir, victim);
        usleep(useconds_t(rand() % (kills < 2 ? 300000 : emulated ? 3000000 : 10000000)));
        const double killed = seconds();
        const bool sent = pid > 0 && kill(pid, SIGKILL) == 0;
        const Result r = p.finish();
        if (r.status == 0) { // its last step came first: the next ones go into another folder
            check(same(whole, dir, steps));
            dir = fresh_dir();
            check(++ends < 20);
            if (ends == 20) break;
            continue;
        }
        kills++;
        longest = std::max(longest, seconds() - killed);
        check(sent && r.status == 1 && one_line(dir, r, {strf("rank %d", victim), "killed by signal 9"}),
              "status %d", r.status);
        const vector<int64_t> there = checkpoint_steps(dir);
        string broken;
        check(there.empty() || newest_checkpoint(dir, &broken) == there[0], "%s", broken.c_str());
        if (!there.empty() && r.err.find("there is no checkpoint") == string::npos)
            check(r.err.find("--resume --out " + dir) != string::npos, "%s", r.err.c_str());
    }
    check(longest < (emulated ? 5 : 15), "%.1f s", longest);
    check(good(shell(on_gpus(ranks, flags_of(dir, steps, every + "--resume")))));
    check(same(whole, dir, steps));
}

// ---------------------------------------------------------------------------------------------------------
// R11, R17, R19 and the flags: one line

static void test_errors() {
    if (!emulated) return;
    string dir = fresh_dir();
    const auto two = [&](const string& first, const string& second) { // as torchrun starts them
        const int port = free_port();
        return shell(
            side_by_side({torch_variables(0, 2, port) + first, torch_variables(1, 2, port) + second}));
    };
    const auto refused = [&](const Result& r, const vector<string>& parts) {
        check(one_line(dir, r, parts) && r.out.find("statuses 1 1") != string::npos, "%s", r.out.c_str());
    };
    // Out of memory in one of them: before anything is allocated, and where it was not foreseen.
    string flags = flags_of(dir, 2, "");
    Result r = two(alone(flags), "EMU_MEMORY=100000000 " + alone(flags));
    refused(r, {"rank 1 (", "GPU memory", "would help"});
    check(r.err.find("rank 0") == string::npos);
    // The same for all is said once, without a rank.
    dir = fresh_dir();
    r = shell(on_gpus(2, flags_of(dir, 2, "--train data/none.bin")));
    check(r.status == 1 && one_line(dir, r, {"moex: ", "none.bin"}) && r.err.find("rank") == string::npos);
    dir = fresh_dir();
    const string same_flags = flags_of(dir, 20, "--lr 1e30 --checkpoint-every 0");
    r = shell(on_gpus(2, same_flags));
    check(r.status == 1 && one_line(dir, r, {"moex: step ", "not finite", "nothing was overwritten"}) &&
              r.err.find("rank") == string::npos,
          "%s", r.err.c_str());
    const string by_two = r.err;
    fs::remove_all(dir);
    check(shell(alone(same_flags)).err == by_two, "%s", by_two.c_str());

    // What differs is named with both values.
    dir = fresh_dir();
    flags = flags_of(dir, 2, "");
    refused(two(alone(flags), alone(flags_of(dir, 2, "--lr 1e-3"))), {"--lr of rank 1 (", "0.001", "0.003"});
    refused(two(alone(flags), alone(flags + " --train data/other.bin")), {"the training data of rank 1 ("});
    refused(two(alone(flags), alone(flags, fp32())), {"the program of rank 1 (", "fp32", "bf16"});
    check(!fs::exists(dir + "/log.jsonl"));
    const string a = fresh_dir(), b = fresh_dir();
    check(good(shell(alone(flags_of(a, 4, "--checkpoint-every 2")))));
    fs::create_directory(b);
    for (const string& path : {model_path("", 2), state_path("", 2)}) fs::copy_file(a + path, b + path);
    dir = b;
    refused(two(alone(" --resume --out " + a), alone(" --resume --out " + b)),
            {"the step of the checkpoint of rank 1 (", "is 2, of rank 0", "4"});
    // Another checkpoint of the same step: the weights differ.
    fs::copy_file(a + model_path("", 2), b + model_path("", 4));
    fs::copy_file(a + state_path("", 4), b + state_path("", 4));
    refused(two(alone(" --resume --out " + a + " --steps 6"), alone(" --resume --out " + b + " --steps 6")),
            {"the weights of rank 1 (", "differ from those of rank 0"});

    dir = fresh_dir();
    refuses(on_gpus(8, flags_of(dir, 2, "--lanes 8")), 2, "4 micro-batches of 1 rows", "8 GPUs",
            "--total-tokens 128");
    refuses(on_gpus(3, flags_of(dir, 2, "")), 2, "--lanes 4 cannot be shared by 3 GPUs");
    refuses(on_gpus(9, flags_of(dir, 2, "--lanes 9")), 1, "9 GPUs were asked for", "8 are visible");
    // R19
    refuses(on_gpus(2, flags_of(dir, 2, ""), "train_moex_without_nccl_emu"), 1, "built without NCCL",
            "libnccl");
    check(good(shell(alone(flags_of(dir, 1, ""), "train_moex_without_nccl_emu"))));
}

static int visible_gpus() {
    return atoi(run("sh -c 'nvidia-smi --query-gpu=index --format=csv,noheader | wc -l'").out.c_str());
}

int main(int argc, char** argv) {
    return run_main([&] {
        if (argc < 2) fail_usage("expected the folder of the programs, and perhaps the trainer's name");
        folder = fs::absolute(argv[1]);
        program = argc > 2 ? argv[2] : "train_moex_emu";
        emulated = program.find("emu") != string::npos;
        if (!emulated) most_gpus = visible_gpus();
        if (most_gpus < 2) printf("one GPU: ranks are not tested here\n");
        setenv("EMU_THREADS", "1", 1);
        const auto place = fs::temp_directory_path() / strf("test_training_ranks.%d", int(getpid()));
        const fs::path home = fs::current_path();
        fs::create_directories(place / "data");
        fs::current_path(place);
        write_rows("data/train.bin", 300, 1);
        write_rows("data/val.bin", 5, 2);
        write_rows("data/other.bin", 300, 3);
        const auto timed = [&](const char* name, void (*test)()) {
            if (argc > 3 &&
                std::none_of(argv + 3, argv + argc, [&](const char* s) { return s == string(name); }))
                return;
            const double begin = seconds();
            test();
            printf("%-14s %.1f s\n", name, seconds() - begin);
            fflush(stdout);
        };
        timed("same bits", test_same_bits);
        timed("other numbers", test_other_numbers);
        timed("orders", test_orders);
        timed("resume", test_resume);
        timed("with the CPU", test_with_cpu);
        timed("kills", test_kills);
        timed("errors", test_errors);
        fs::current_path(home);
        fs::remove_all(place);
        return finish();
    });
}
