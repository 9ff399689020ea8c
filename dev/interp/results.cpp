// What a tool leaves: see results.h.
#include "results.h"

uint64_t seed_of_run(const std::string& checkpoint, int64_t step) {
    try {
        const SafeTensorsFile state(state_path(parent_directory(checkpoint), step));
        return std::stoull(metadata_entry(state, "flag.seed"));
    } catch (const std::exception&) {
        return 1;
    }
}

int64_t checkpoint_step(const SafeTensorsFile& file) {
    const std::string& text = metadata_entry(file, "step");
    if (text.empty() || text.size() > 15 || text.find_first_not_of("0123456789") != std::string::npos)
        fail("%s: metadata: step is %s, expected a whole number", file.path.c_str(), quoted(text).c_str());
    return std::stoll(text);
}

bool trained_on(const std::string& checkpoint, int64_t step, const std::string& data) {
    const auto files_of = [](const std::string& path) { // device and number of each
        std::set<std::pair<dev_t, ino_t>> files;
        struct stat st;
        if (stat(path.c_str(), &st) == 0)
            files.insert({st.st_dev, st.st_ino});
        else
            for (const Shard& shard : open_shards(path))
                if (stat(shard.file.path.c_str(), &st) == 0) files.insert({st.st_dev, st.st_ino});
        return files;
    };
    try {
        const SafeTensorsFile state(state_path(parent_directory(checkpoint), step));
        const auto trained = files_of(metadata_entry(state, "flag.train"));
        for (const auto& file : files_of(data))
            if (trained.count(file)) return true;
    } catch (const Error&) { // a model that came alone, or whose data are gone
    }
    return false;
}

std::string weights_hash(const std::string& path) {
    const MappedFile file(path);
    uint64_t hash = file.size;
    size_t at = 0;
    for (; at + 8 <= file.size; at += 8) {
        uint64_t word;
        memcpy(&word, (const char*)file.data + at, 8);
        hash = (hash ^ word) * 0x9E3779B97F4A7C15;
        hash ^= hash >> 29;
    }
    for (; at < file.size; at++) hash = (hash ^ ((const unsigned char*)file.data)[at]) * 0x9E3779B97F4A7C15;
    return strf("%016llx", (unsigned long long)mix64(hash));
}

JsonWriter begin_json(const char* tool, const std::string& checkpoint, int64_t step, const Config& config,
                      double seconds) {
    JsonWriter out;
    out.open('{').member("tool", tool).member("checkpoint", as_utf8(checkpoint)).member("step", step);
    out.member("weights", weights_hash(checkpoint));
    out.key("config").open('{');
    for (const auto& [name, value] : config_to_strings(config)) out.member(name, value);
    out.close().key("seconds").value(seconds, 3);
    return out;
}

void write_json(const std::string& path, const std::string& text) {
    make_directories(parent_directory(path));
    AtomicFile file(path);
    file.write(text.data(), text.size());
    file.write("\n", 1);
    file.commit();
    printf("JSON in %s\n", path.c_str());
}

std::string as_utf8(const std::string& text) {
    std::string out;
    for (size_t i = 0; i < text.size();) {
        const size_t length = utf8_length(text.data() + i, text.size() - i);
        out += length ? text.substr(i, length) : "?";
        i += std::max<size_t>(length, 1);
    }
    return out;
}
