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

// The program of a tool: its options, what it measures, printed and as JSON. Flags has declare() and json.
template <class Flags, class Measure, class Print, class ToJson>
int tool_program(int argc, char** argv, const char* name, const char* purpose, Measure measure, Print print,
                 ToJson to_json) {
    Flags flags;
    Options options(name, purpose);
    flags.declare(options);
    if (!options.parse(argc, argv)) return 0;
    const auto result = measure(flags);
    print(result);
    write_json(json_path(flags.json, result.checkpoint, name), to_json(result));
    return 0;
}
