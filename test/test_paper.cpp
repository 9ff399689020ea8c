// Tests of `make paper` (dev/experiments): Student's t and Holm's correction against published values, tables
// from results made by hand, whose means and intervals are known, and the whole of it at a tiny size: killed
// and gone on with, a method that the trainer refuses, the plan, the same tables for the same seeds. argv[1]
// is the folder of the programs; the current one is the top of the house.
#include "../dev/experiments/tables.h"
#include "process.h"

namespace fs = std::filesystem;
using std::string, std::vector;

// ---------------------------------------------------------------------------------------------------------
// Statistics

static void test_student() {
    // Two-sided 95% points as in any table of the t distribution.
    for (const auto& [freedom, t] : {std::pair{1.0, 12.7062},
                                     {2.0, 4.30265},
                                     {3.0, 3.18245},
                                     {4.0, 2.77645},
                                     {10.0, 2.22814},
                                     {30.0, 2.04227},
                                     {1000.0, 1.96234}})
        check_near(t_quantile(0.95, freedom), t, 1e-4);
    check_near(t_quantile(0.99, 4), 4.60409, 1e-4);
    check_near(t_two_sided(1, 1), 0.5, 1e-12); // Cauchy
    check_near(t_two_sided(0, 5), 1, 1e-12);
    for (const double t : {0.3, 1.0, 2.5, 8.0}) // two degrees of freedom: closed form
        check_near(t_two_sided(t, 2), 1 - t / std::sqrt(2 + t * t), 1e-12);
    check(std::isnan(t_quantile(0.95, 0)) && std::isnan(t_two_sided(NAN, 3)));

    const MeanInterval m = mean_interval({1, 2, 3}); // mean 2, s 1, half width 4.303/sqrt 3
    check_near(m.mean, 2, 1e-12);
    check_near(m.high - m.mean, 2.48414, 1e-4); // the 2.48 s of three seeds
    check_near(m.mean - m.low, 2.48414, 1e-4);
    check_near(m.p, t_two_sided(2 * std::sqrt(3.0), 2), 1e-12);
    const MeanInterval five = mean_interval({0, 0, 1, 2, 2});
    check_near((five.high - five.low) / 2, 1.24166, 1e-4); // 1.24 s of five, s = 1
    const MeanInterval one = mean_interval({7}), none = mean_interval({});
    check(one.n == 1 && one.mean == 7 && std::isnan(one.low) && std::isnan(one.p));
    check(none.n == 0 && std::isnan(none.mean));
    check(mean_interval({3, 3}).p == 0 && mean_interval({0, 0}).p == 1);

    const vector<double> p = holm({0.01, NAN, 0.04, 0.03, 0.005}); // 4 comparisons
    check_near(p[4], 0.02, 1e-12);
    check_near(p[0], 0.03, 1e-12);
    check_near(p[3], 0.06, 1e-12);
    check_near(p[2], 0.06, 1e-12); // not below the one before it
    check(std::isnan(p[1]));
    check(holm({0.9, 0.8})[0] == 1);
}

// ---------------------------------------------------------------------------------------------------------
// Tables by hand

static RunResult hand_result(const string& method, int64_t seed, double loss, double coverage,
                             double strategy = 0.5) {
    RunResult r;
    r.method = method, r.size = "hand", r.seed = seed;
    r.provenance = {{"machine", "a machine"}, {"commit", "c0ffee"}, {"date", "2026-01-02T03:04:05Z"}};
    r.numbers["val_loss"] = loss;
    // Layer 1 has the highest coverage of the board, layer 0 of strategy.
    r.layers[""] = {{{"layer", 0},
                     {"board.coverage", coverage / 2},
                     {"board.held_out", 9},
                     {"strategy.coverage", strategy},
                     {"strategy.held_out", strategy - 0.1},
                     {"units", 8}},
                    {{"layer", 1},
                     {"board.coverage", coverage},
                     {"board.held_out", coverage - 0.1},
                     {"strategy.coverage", strategy / 2},
                     {"strategy.held_out", 7},
                     {"units", 8}}};
    return r;
}

static Manifest hand_manifest() {
    write_file("manifest.txt", "size\thand\ntokens\t1000000\nparameters\t1000\n"
                               "method\tmoex\tMoE-X\t1.5\t1\t\n"
                               "method\tgelu\tGPT-2, dense\t1\t1\t--ffn dense\n"
                               "method\tabsent\tAbsent\t2\t2\t--x\n"
                               "method\tbad\tRefused\t1\t1\t--y\n"
                               "table\tt\tmoex\tA table\tmoex gelu absent bad\n"
                               "run\tmoex\t1\nrun\tmoex\t2\nrun\tmoex\t3\n"
                               "run\tgelu\t1\nrun\tgelu\t2\nrun\tgelu\t3\n"
                               "run\tabsent\t1\nrun\tbad\t1\n");
    return read_manifest("manifest.txt");
}

static void test_tables() {
    const Manifest manifest = hand_manifest();
    check(manifest.methods.size() == 4 && manifest.runs.size() == 8 &&
          manifest.tables[0].methods.size() == 4);
    RunResult refused;
    refused.method = "bad", refused.size = "hand", refused.seed = 1, refused.reason = "moex: no such thing";
    vector<RunResult> results = {hand_result("moex", 1, 1.0, 0.40),
                                 hand_result("moex", 2, 1.2, 0.41),
                                 hand_result("moex", 3, 1.4, 0.42),
                                 hand_result("gelu", 1, 1.1, 0.30),
                                 hand_result("gelu", 2, 1.3, 0.31),
                                 hand_result("gelu", 3, 1.5, 0.32),
                                 refused};
    results[3].layers["split"] = results[3].layers[""];
    for (const RunResult& r : results) { // through the file, as they come
        write_file("result.json", result_json(r));
        const RunResult back = read_result("result.json");
        check(result_json(back) == result_json(r) && back.seed == r.seed && back.layers == r.layers);
    }
    const vector<Table> tables = make_tables(manifest, results);
    check(tables.size() == 1 && tables[0].rows.size() == 5); // one more for the view
    const auto row = [&](const string& label) -> const Row& {
        for (const Row& r : tables[0].rows)
            if (r.label == label) return r;
        fail("no row %s", label.c_str());
    };
    const Row &moex = row("MoE-X"), &gelu = row("GPT-2, dense"), &absent = row("Absent"),
              &split = row("GPT-2, dense, split");
    check_near(moex.cells.at("val_loss").mean.mean, 1.2, 1e-12);
    check_near(moex.cells.at("val_loss").mean.high, 1.2 + 2.48414 * 0.2, 1e-5);
    check_near(moex.cells.at("board.held_out").mean.mean, 0.31, 1e-12);   // of layer 1
    check_near(moex.cells.at("strategy.held_out").mean.mean, 0.4, 1e-12); // of layer 0
    check(moex.runs == 3 && moex.expected == 3 && moex.differences.empty());
    // Seeds vary by 0.2, the paired difference not at all.
    check_near(gelu.differences.at("val_loss").mean.mean, 0.1, 1e-12);
    check(gelu.differences.at("val_loss").mean.high - gelu.differences.at("val_loss").mean.low < 1e-6);
    check(gelu.differences.at("board.coverage").marked());
    check(!gelu.differences.at("strategy.coverage").marked()); // the same
    check(split.runs == 1 && split.cells.at("board.coverage").mean.mean == 0.30 &&
          !split.cells.count("val_loss"));
    check(absent.cells.empty() && absent.runs == 0 && row("Refused").reason == "moex: no such thing");

    const string text = tables_markdown(manifest, tables, results);
    for (const char* part : {"| MoE-X | 8 | 1.2000 ± 0.4968 |", "| Absent | - | - |", "| Refused | - |",
                             "- Refused: not run: moex: no such thing", "6 of 8 runs", "a machine", "c0ffee",
                             "**-0.100 ± 0.000**", "| GPT-2, dense, split (1 of 3 runs) | 8 | - |"})
        check(text.find(part) != string::npos, "%s\n%s", part, text.c_str());
    check(text.find("nan") == string::npos && tables_csv(tables).find("nan") == string::npos);
    check(tables_csv(tables).find("t,gelu,\"GPT-2, dense\",,val_loss,3,1.3,") != string::npos);
    check(runs_csv(results).find("moex,hand,2,,1,board.coverage,0.41\n") != string::npos);
    const Json json = parse_json(tables_json(manifest, tables), "tables");
    const Json& cells = *json.find("tables")->items[0].find("rows")->items[0].find("cells");
    check(cells.find("val_loss")->find("values")->find("2")->number == 1.2);

    // Differences that chance explains are not marked; and of many, Holm asks for more.
    vector<RunResult> noisy = {hand_result("moex", 1, 1.0, 0.40), hand_result("moex", 2, 1.2, 0.41),
                               hand_result("moex", 3, 1.4, 0.39), hand_result("gelu", 1, 1.3, 0.30),
                               hand_result("gelu", 2, 1.3, 0.42), hand_result("gelu", 3, 1.3, 0.41)};
    const vector<Table> chance = make_tables(manifest, noisy);
    for (const Row& r : chance[0].rows)
        for (const auto& [name, d] : r.differences) check(!d.marked(), "%s: p %g", name.c_str(), d.mean.p);
    check(make_tables(manifest, {})[0].rows[0].cells.empty());
    check(tables_markdown(manifest, make_tables(manifest, {}), {}).find("0 of 8 runs") != string::npos);

    // The plan: guessed rates, then measured ones.
    const string plan = plan_text(manifest, {}, 1000);
    for (const char* part :
         {"8 runs, 0 done", "666.7 (?)", "16m40s", "1h06m"}) // absent: half the rate, twice as long
        check(plan.find(part) != string::npos, "%s\n%s", part, plan.c_str());
    results[0].provenance["tokens_per_second"] = "500";
    const string measured = plan_text(manifest, results, 1000);
    for (const char* part : {"8 runs, 6 done", "500    ", "33m20s", "refused: moex: no such thing"})
        check(measured.find(part) != string::npos, "%s\n%s", part, measured.c_str());
}

static void test_effects() {
    write_file("manifest3.txt", "size\thand\nmethod\tswitch\tS\t1\t1\t\nmethod\trelu-topk\tR\t1\t1\t\n"
                                "method\tgelu-sparsity\tG\t1\t1\t\nmethod\tmoex\tM\t1\t1\t\n"
                                "table\ttable3\tmoex\tTable 3\tswitch relu-topk gelu-sparsity moex\n");
    const Manifest manifest = read_manifest("manifest3.txt");
    vector<RunResult> results;
    for (const int64_t seed : {1, 2}) // ReLU +0.10, router +0.02, together 0.04 more
        for (const auto& [method, x] : {std::pair{"switch", 0.30},
                                        {"relu-topk", 0.40 - 0.02},
                                        {"gelu-sparsity", 0.32 - 0.02},
                                        {"moex", 0.30 + 0.10 + 0.02 - 0.02 + 0.02}})
            results.push_back(hand_result(method, seed, 1, x + 0.001 * double(seed)));
    const vector<Table> tables = make_tables(manifest, results);
    const auto effect = [&](const string& name) {
        for (const Effect& e : tables[0].effects)
            if (e.name == name && e.metric == "board.coverage") return e.mean.mean;
        return double(NAN);
    };
    check_near(effect("ReLU experts"), (0.08 + 0.12) / 2, 1e-9);
    check_near(effect("sparsity router"), (0.0 + 0.04) / 2, 1e-9);
    check_near(effect("interaction"), 0.04, 1e-9);
    check(tables_markdown(manifest, tables, results).find("| ReLU experts | coverage, published | 0.100") !=
          string::npos);
}

static void test_bad_files() {
    for (const auto& [text, part] : {std::pair{"size\thand\nrun\tmoex\t1\n", "moex"},
                                     {"size\n", "line 1"},
                                     {"size\thand\ntokens\tmany\n", "'many'"},
                                     {"speed\t1\n", "'speed'"}}) {
        write_file("bad.txt", text);
        check_error(read_manifest("bad.txt"), part);
    }
    for (const char* text : {"{}", "{\"method\":\"a\"}", "[1]", "{\"method\":1,\"size\":\"x\"}"}) {
        write_file("bad.json", text);
        check_error(read_result("bad.json"), "bad.json");
    }
    fs::create_directories("empty");
    check_error(collect_result("empty", "a", "b", 1), "empty", "run.json");
}

// ---------------------------------------------------------------------------------------------------------
// The whole of it

static string house, bin, folder;

static string make_paper(const string& target, const string& more) {
    return "make -C '" + house + "' --no-print-directory -f dev/experiments/paper.mk B='" + bin +
           "' PAPER='" + folder + "' SIZE=tiny " + more + " " + target;
}

static string result_without_provenance(const string& path) {
    RunResult r = read_result(path);
    r.provenance.clear();
    return result_json(r);
}

static void test_make() {
    const string some = "SEEDS=1 ONLY='router balance'"; // moex, and methods that a trainer may refuse
    const string plan = works(make_paper("plan", some)).out;
    check(plan.find("4 runs, 0 done") != string::npos, "%s", plan.c_str());
    check(!fs::exists("tiny/moex"));
    // An interrupted run and one that is killed go on.
    Process first("exec setsid " + make_paper("paper", some));
    check(first.wait_for("tiny/moex/s1"));
    usleep(300000);
    kill(-first.pid, SIGKILL);
    first.finish();
    works(make_paper("tables", some)); // at any time, with what is there
    check(read_file("tiny/tables.md").find(" of 4 runs") != string::npos);
    const Result r = works(make_paper("paper", some));
    check(r.out.find("4 of 4 runs") != string::npos, "%s", tail_of(r.out).c_str());
    const string moex = result_without_provenance("tiny/moex/s1/result.json");
    const Json from = parse_json(read_file("tiny/moex/s1/run.json"), "run.json");
    for (const char* name : {"commit", "flags", "machine", "date"})
        check(from.find(name) && from.find(name)->type == Json::String && !from.find(name)->text.empty(),
              "%s", name);
    check(from.find("steps")->magnitude == 24 && from.find("seconds")->number > 0);
    check(from.find("flags")->text.find("--seed 1") != string::npos);
    const string tables = read_file("tiny/tables.md");
    check(tables.find("| MoE-X |") != string::npos && tables.find("nan") == string::npos);
    for (const char* name : {"tables.csv", "runs.csv", "tables.json", "compare.html"})
        check(fs::file_size(string("tiny/") + name) > 500, "%s", name);
    const string page = read_file("tiny/compare.html");
    check(page.find("{{") == string::npos && page.find("Load balance") != string::npos);
    // Nothing is left to do; what is lost is made again, the same.
    const Result again = works(make_paper("paper", some));
    check(again.out.find("tiny/moex/s1") == string::npos, "%s", again.out.c_str());
    fs::remove_all("tiny/moex");
    works(make_paper("paper", some));
    check(result_without_provenance("tiny/moex/s1/result.json") == moex);
    check(read_file("tiny/tables.md") == tables || read_file("tiny/tables.md").size() == tables.size());

    // A method the trainer refuses is a dash with its reason, and no failure.
    write_file(
        "trainer.sh",
        "#!/bin/sh\ncase \"$*\" in *balance*) echo 'moex: unknown option --balance' >&2; exit 2;; esac\n"
        "exec '" +
            bin + "/train_moex_cpu' \"$@\"\n");
    fs::permissions("trainer.sh", fs::perms::owner_all);
    fs::remove_all("tiny/balance-bias");
    works(make_paper("paper", "SEEDS=1 ONLY=balance TRAINER='" + folder + "/trainer.sh'"));
    check(read_file("tiny/tables.md").find("not run: moex: unknown option --balance") != string::npos);
    check(read_file("tiny/balance-bias/s1/result.json").find("unknown option") != string::npos);
    // So it is with a tool; what it said before is said no more when it works.
    const string measure = "'" + house + "/dev/experiments/measure.sh' interp/x.json sh -c ";
    fs::create_directories("interp");
    works(measure + "'echo reading >&2; echo \"moex: no such units\" >&2; exit 1'");
    check(read_file("interp/x.json.refused") == "moex: no such units\n" && !fs::exists("interp/x.json"));
    works(measure + "'echo 1 > interp/x.json'");
    check(!fs::exists("interp/x.json.refused") && !fs::exists("interp/x.json.stderr"));
    works(measure + "'exit 1'"); // it is there: nothing is run
    fs::remove("interp/x.json");
    for (const char* end : {"'kill -9 $$'", "'exit 1'", "'echo moex: x: cannot be written >&2; exit 1'"}) {
        check(run(measure + end).status != 0, "%s", end);
        check(!fs::exists("interp/x.json.refused"), "%s", end);
    }
    // One that dies otherwise ends the whole.
    write_file("trainer.sh", "#!/bin/sh\nkill -9 $$\n");
    fs::remove_all("tiny/moex");
    check(run(make_paper("paper", "SEEDS=1 ONLY=balance TRAINER='" + folder + "/trainer.sh'")).status != 0);
    check(run(make_paper("paper", "ONLY=nothing")).status != 0 &&
          run(make_paper("paper", "SIZE=huge")).status != 0);
}

// An SAE, views, upcycling: one table that has them all.
static void test_kinds() {
    const string some = "SEEDS=1 ONLY=table1";
    works(make_paper("paper", some));
    const RunResult sae = read_result("tiny/sae-64/s1/result.json"),
                    gelu = read_result("tiny/gelu/s1/result.json"),
                    up = read_result("tiny/up-moex/s1/result.json");
    check(sae.number("fvu") > 0 && sae.number("recovered") < 1.5 && sae.layers.at("")[0].at("units") == 64);
    check(gelu.layers.count("split") &&
          gelu.layers.at("split")[0].at("units") == 2 * gelu.layers.at("")[0].at("units"));
    check(gelu.layers.at("")[1].count("board.subset.held_out") && gelu.number("l0") > 0);
    check(gelu.number("participation") > 1 && up.number("participation") > 1 &&
          std::isfinite(gelu.number("units_tested")) && std::isfinite(up.number("router_correlation")) &&
          std::isnan(gelu.number("router_correlation")));
    check(up.provenance.at("flags").find("--upcycle") != string::npos && up.number("val_loss") > 0);
    const string tables = read_file("tiny/tables.md");
    for (const char* part :
         {"The paper's own numbers", "GPT-2 + SAE of 64", "MoE-X (upcycled)", "Floors, held out"})
        check(tables.find(part) != string::npos, "%s", part);
}

int main(int argc, char** argv) {
    return run_main([&] {
        if (argc < 2) fail_usage("usage: test_paper FOLDER, at the top of the house");
        house = fs::current_path();
        bin = fs::absolute(argv[1]);
        setenv("OMP_NUM_THREADS", "1", 1);
        for (const char* name : {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}) unsetenv(name);
        folder = string(getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp") + "/moex_paper.XXXXXX";
        if (!mkdtemp(folder.data()) || chdir(folder.c_str()) != 0) fail("%s: cannot be made", folder.c_str());
        test_student();
        test_tables();
        test_effects();
        test_bad_files();
        test_make();
        test_kinds();
        if (chdir("/") != 0) fail("/: cannot be entered");
        if (!getenv("KEEP")) fs::remove_all(folder);
        return finish();
    });
}
