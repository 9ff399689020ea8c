// paper_tables: the results of `make paper` as tables. Without a network and without Python; called by
// paper.mk.
#include "../lib/fill.h"
#include "../lib/options.h"
#include "../lib/terminal.h"
#include "tables.h"

extern const char compare_html[], compare_script[], page_style[];

static void write_text(const std::string& path, const std::string& text) {
    make_directories(parent_directory(path));
    AtomicFile out(path);
    out.write(text.data(), text.size());
    out.commit();
}

// Every result that a run of the manifest has left in the folder.
static std::vector<RunResult> results_in(const std::string& folder, const Manifest& manifest) {
    std::vector<RunResult> results;
    for (const auto& [method, seed] : manifest.runs) {
        const std::string path =
            strf("%s/%s/s%lld/result.json", folder.c_str(), method.c_str(), (long long)seed);
        if (access(path.c_str(), F_OK) != 0) continue;
        RunResult r = read_result(path);
        if (r.method != method || r.seed != seed)
            fail("%s: the result of %s, seed %lld", path.c_str(), r.method.c_str(), (long long)r.seed);
        results.push_back(std::move(r));
    }
    return results;
}

static std::string page_of(const std::string& json) {
    std::string data;
    for (const char c : json) data += c == '<' ? "\\u003c" : std::string(1, c);
    return filled(compare_html, {{"style", page_style}, {"data", data}, {"script", compare_script}});
}

static int run(int argc, char** argv) {
    std::string manifest_path, folder, collect, method, size, out;
    int64_t seed = 0;
    double rate = 50000;
    bool plan = false;
    Options options("paper_tables", "Makes tables of the results of `make paper`.");
    options.add(0, "manifest", "FILE", &manifest_path, "what is run, and which table it stands in");
    options.add(0, "results", "DIR", &folder, "where METHOD/sSEED/result.json are");
    options.add('o', "out", "DIR", &out, "where the tables go (none: --results)");
    options.add(0, "plan", &plan, "say what there is to run, and how long it takes, instead");
    options.add(0, "rate", "TOKENS", &rate, 1, 1e12,
                "tokens per second of a dense model, where none was measured");
    options.section("One run: its result from what the tools left");
    options.add(0, "collect", "DIR", &collect, "the folder of the run; writes result.json there");
    options.add(0, "method", "NAME", &method, "its method");
    options.add(0, "size", "NAME", &size, "its size");
    options.add(0, "seed", "N", &seed, 0, INT64_MAX, "its seed");
    if (!options.parse(argc, argv)) return 0;
    if (!collect.empty()) {
        write_text(collect + "/result.json", result_json(collect_result(collect, method, size, seed)));
        return 0;
    }
    if (manifest_path.empty() || folder.empty())
        fail_usage("--manifest and --results are needed, or --collect");
    const Manifest manifest = read_manifest(manifest_path);
    const std::vector<RunResult> results = results_in(folder, manifest);
    if (plan) {
        printf("%s", plan_text(manifest, results, rate).c_str());
        return 0;
    }
    if (out.empty()) out = folder;
    const std::vector<Table> tables = make_tables(manifest, results);
    const std::string json = tables_json(manifest, tables);
    write_text(out + "/tables.md", tables_markdown(manifest, tables, results));
    write_text(out + "/tables.csv", tables_csv(tables));
    write_text(out + "/runs.csv", runs_csv(results));
    write_text(out + "/tables.json", json);
    write_text(out + "/compare.html", page_of(json));
    size_t refused = 0;
    for (const RunResult& r : results) refused += !r.reason.empty();
    if (refused) printf("%zu runs are refused by the trainer\n", refused);
    printf("%zu of %zu runs: tables.md, tables.csv, runs.csv, tables.json and compare.html in %s\n",
           results.size(), manifest.runs.size(), out.c_str());
    return 0;
}

int main(int argc, char** argv) {
    return run_main([&] { return run(argc, argv); });
}
