// A model on disk: model_<step>.safetensors with the weights and the config, and beside it
// state_<step>.safetensors with the optimizer's moments and the strings an exact resume needs. Both are
// written whole or not at all. A step can be resumed when both files are whole; newest_checkpoint() finds the
// last such step.
#pragma once
#include "../lib/safetensors.h"
#include "parameters.h"
#include <algorithm>
#include <dirent.h>
#include <type_traits>

using Strings = std::map<std::string, std::string>;

inline std::string model_path(const std::string& dir, int64_t step) {
    return strf("%s/model_%08lld.safetensors", dir.c_str(), (long long)step);
}
inline std::string state_path(const std::string& dir, int64_t step) {
    return strf("%s/state_%08lld.safetensors", dir.c_str(), (long long)step);
}

template <class T> constexpr Dtype dtype_of() {
    if constexpr (std::is_same_v<T, double>)
        return F64;
    else if constexpr (std::is_same_v<T, float>)
        return F32;
    else
        return BF16; // two bytes of a bfloat16
}

// ---------------------------------------------------------------------------------------------------------
// Writing

// A block of parameters under its table's names, each after a prefix ("" for weights, "m." and "v." for
// moments).
template <class T> struct NamedBlock {
    const char* prefix;
    const T* data;
};

template <class T> void write_blocks(const std::string& path, const Strings& metadata,
                                     const std::vector<Tensor>& table,
                                     const std::vector<NamedBlock<T>>& blocks) {
    SafeTensorsWriter out(path, metadata);
    for (const NamedBlock<T>& block : blocks)
        for (const Tensor& t : table) out.declare(block.prefix + t.name, dtype_of<T>(), t.shape);
    for (const NamedBlock<T>& block : blocks)
        for (const Tensor& t : table) out.write(block.data + t.offset, t.count * sizeof(T));
    out.commit();
}

template <class T> void save_model(const std::string& path, const Config& config,
                                   const std::vector<Tensor>& table, const T* weights, int64_t step) {
    Strings metadata = config_to_strings(config);
    metadata["format"] = "pt";
    metadata["model"] = "moex";
    metadata["step"] = std::to_string(step);
    write_blocks<T>(path, metadata, table, {{"", weights}});
}

// ---------------------------------------------------------------------------------------------------------
// Reading

inline const std::string& metadata_entry(const SafeTensorsFile& file, const std::string& name) {
    const auto found = file.metadata.find(name);
    if (found == file.metadata.end())
        fail("%s: the metadata lacks %s", file.path.c_str(), quoted(name).c_str());
    return found->second;
}

// The config of a checkpoint, after checking that its tensors are exactly those of the config's table.
// prefixes: as in NamedBlock, {""} for a model.
inline void check_tensors(const SafeTensorsFile& file, const std::vector<Tensor>& table,
                          const std::vector<std::string>& prefixes) {
    for (const std::string& prefix : prefixes)
        for (const Tensor& t : table) {
            const std::string name = prefix + t.name;
            const SafeTensor* tensor = file.find(name);
            if (!tensor) fail("%s: tensor %s is missing", file.path.c_str(), name.c_str());
            if (tensor->shape != t.shape)
                fail("%s: tensor %s has shape %s, expected %s", file.path.c_str(), name.c_str(),
                     shape_text(tensor->shape).c_str(), shape_text(t.shape).c_str());
            if (tensor->dtype != F64 && tensor->dtype != F32 && tensor->dtype != BF16 && tensor->dtype != F16)
                fail("%s: tensor %s has dtype %s, expected F32, BF16, F16 or F64", file.path.c_str(),
                     name.c_str(), dtype_name(tensor->dtype));
        }
    if (file.tensors.size() != table.size() * prefixes.size())
        for (const SafeTensor& tensor : file.tensors) {
            bool known = false;
            for (const std::string& prefix : prefixes)
                for (const Tensor& t : table) known |= tensor.name == prefix + t.name;
            if (!known)
                fail("%s: tensor %s does not belong to this model", file.path.c_str(),
                     quoted(tensor.name).c_str());
        }
}

inline Config read_config(const SafeTensorsFile& file) {
    if (metadata_entry(file, "model") != "moex")
        fail("%s: a checkpoint of %s, expected model moex", file.path.c_str(),
             quoted(metadata_entry(file, "model")).c_str());
    const Config config = config_from_strings(file.metadata, file.path);
    // Every layer has tensors: refuse before the table of a config with too many is built.
    if (config.n_layer > file.tensors.size())
        fail("%s: n_layer is %zu, but there are only %zu tensors", file.path.c_str(), config.n_layer,
             file.tensors.size());
    check_tensors(file, tensor_table(config), {""});
    return config;
}

template <class T> void read_block(const SafeTensorsFile& file, const std::vector<Tensor>& table,
                                   const std::string& prefix, T* block) {
    for (const Tensor& t : table) read_floats(*file.find(prefix + t.name), block + t.offset);
}

// ---------------------------------------------------------------------------------------------------------
// A run's folder

// Steps that have a file model_<step>.safetensors in the folder, newest first.
inline std::vector<int64_t> checkpoint_steps(const std::string& dir) {
    std::vector<int64_t> steps;
    DIR* folder = opendir(dir.c_str());
    if (!folder) return steps;
    while (const dirent* entry = readdir(folder)) {
        long long step = -1;
        if (sscanf(entry->d_name, "model_%lld", &step) == 1 && step >= 0 &&
            model_path(dir, step) == dir + "/" + entry->d_name)
            steps.push_back(step);
    }
    closedir(folder);
    std::sort(steps.rbegin(), steps.rend());
    return steps;
}

// The newest step whose model and state are both whole, or -1. *passed_over names the files that were not.
inline int64_t newest_checkpoint(const std::string& dir, std::string* passed_over = nullptr) {
    for (const int64_t step : checkpoint_steps(dir)) {
        try {
            const SafeTensorsFile model(model_path(dir, step)), state(state_path(dir, step));
            check_tensors(state, tensor_table(read_config(model)), {"m.", "v."});
            return step;
        } catch (const Error& e) {
            if (passed_over) *passed_over += std::string(passed_over->empty() ? "" : "; ") + e.what();
        }
    }
    return -1;
}

// The checkpoint a path means: a file, or the newest whole one in the folder of a run.
inline std::string find_checkpoint(const std::string& path) {
    if (path.empty()) fail_usage("--ckpt is missing: a checkpoint or the folder of a run");
    struct stat st;
    if (stat(path.c_str(), &st) != 0 || !S_ISDIR(st.st_mode)) return path;
    std::string broken;
    for (const int64_t step : checkpoint_steps(path)) {
        try {
            read_config(SafeTensorsFile(model_path(path, step)));
            return model_path(path, step);
        } catch (const Error& e) {
            broken += std::string(broken.empty() ? "" : "; ") + e.what();
        }
    }
    if (broken.empty()) fail("%s: the folder holds no model_*.safetensors", path.c_str());
    fail("%s: the folder holds no whole model: %s", path.c_str(), broken.c_str());
}
