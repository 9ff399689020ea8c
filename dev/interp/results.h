// What a tool leaves: one JSON document beside the checkpoint, which says what was measured and on what; the
// report reads it again.
#pragma once
#include "../../data/loader.h"
#include "../lib/json.h"
#include "../lib/options.h"
#include "../lib/random.h"
#include "../run/checkpoint.h"
#include <set>

// The seed of the run that a checkpoint is from, as its state file beside it says; 1 when there is none.
uint64_t seed_of_run(const std::string& checkpoint, int64_t step);

int64_t checkpoint_step(const SafeTensorsFile& file);

// Is one of these files among those that the run of a checkpoint was trained on, as its state file says?
bool trained_on(const std::string& checkpoint, int64_t step, const std::string& data);

// A checkpoint's contents in 16 digits: what was measured on other weights is told by it, whatever the file's
// name.
std::string weights_hash(const std::string& path);

// Text that may not be UTF-8 (a path), so that JSON can hold it: other bytes become '?'.
std::string as_utf8(const std::string& text);

// The beginning of every tool's document; it stays open.
JsonWriter begin_json(const char* tool, const std::string& checkpoint, int64_t step, const Config& config,
                      double seconds);

// Where a tool leaves its JSON: `given`, or interp/<tool>.json beside the checkpoint.
inline std::string json_path(const std::string& given, const std::string& checkpoint, const char* tool) {
    return given.empty() ? parent_directory(checkpoint) + "/interp/" + tool + ".json" : given;
}
void write_json(const std::string& path, const std::string& text);

// The program of a tool: its options, what it measures, printed and as JSON. Flags has declare(), ckpt and
// json. A tool with side_by_side(results) takes more checkpoints as arguments, and prints that at the end.
template <class Flags, class Measure, class Print, class ToJson, class SideBySide = std::nullptr_t>
int tool_program(int argc, char** argv, const char* name, const char* purpose, Measure measure, Print print,
                 ToJson to_json, SideBySide side_by_side = nullptr) {
    constexpr bool one = std::is_same_v<SideBySide, std::nullptr_t>;
    Flags flags;
    Options options(name, purpose, one ? "" : "[checkpoint..]");
    flags.declare(options);
    if (!options.parse(argc, argv)) return 0;
    if (!options.arguments.empty() && !flags.json.empty())
        fail_usage("--json names one file, expected one checkpoint, not %zu", options.arguments.size() + 1);
    options.arguments.insert(options.arguments.begin(), flags.ckpt);
    std::vector<decltype(measure(flags))> results;
    for (const std::string& checkpoint : options.arguments) {
        flags.ckpt = checkpoint;
        if (!results.empty()) printf("\n");
        results.push_back(measure(flags));
        print(results.back());
        write_json(json_path(flags.json, results.back().checkpoint, name), to_json(results.back()));
    }
    if constexpr (!one)
        if (results.size() > 1) side_by_side(results);
    return 0;
}
