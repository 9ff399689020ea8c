// What a tool leaves: one JSON document beside the checkpoint, which says what was measured and on what; the
// report reads it again.
#pragma once
#include "../run/checkpoint.h"
#include "../lib/json.h"

// The seed of the run that a checkpoint is from, as its state file beside it says; 1 when there is none.
inline uint64_t seed_of_run(const std::string& checkpoint, int64_t step) {
    try {
        const SafeTensorsFile state(state_path(parent_directory(checkpoint), step));
        return std::stoull(metadata_entry(state, "flag.seed"));
    } catch (const std::exception&) {
        return 1;
    }
}

inline int64_t checkpoint_step(const SafeTensorsFile& file) {
    const std::string& text = metadata_entry(file, "step");
    if (text.empty() || text.size() > 15 || text.find_first_not_of("0123456789") != std::string::npos)
        fail("%s: metadata: step is %s, expected a whole number", file.path.c_str(), quoted(text).c_str());
    return std::stoll(text);
}

// The beginning of every tool's document; it stays open.
inline JsonWriter begin_json(const char* tool, const std::string& checkpoint, int64_t step,
                             const Config& config, double seconds) {
    JsonWriter out;
    out.open('{').member("tool", tool).member("checkpoint", checkpoint).member("step", step);
    out.key("config").open('{');
    for (const auto& [name, value] : config_to_strings(config)) out.member(name, value);
    out.close().key("seconds").value(seconds, 3);
    return out;
}

// Where a tool leaves its JSON: `given`, or interp/<tool>.json beside the checkpoint.
inline std::string json_path(const std::string& given, const std::string& checkpoint, const char* tool) {
    return given.empty() ? parent_directory(checkpoint) + "/interp/" + tool + ".json" : given;
}
inline void write_json(const std::string& path, const std::string& text) {
    make_directories(parent_directory(path));
    AtomicFile file(path);
    file.write(text.data(), text.size());
    file.write("\n", 1);
    file.commit();
    printf("JSON in %s\n", path.c_str());
}
