// A model on disk: model_<step>.safetensors with the weights and the config, and beside it
// state_<step>.safetensors with the optimizer's moments and the strings an exact resume needs. Both are
// written whole or not at all. A step can be resumed when both files are whole; newest_checkpoint() finds the
// last such step.
#pragma once
#include "../lib/safetensors.h"
#include "parameters.h"
#include <algorithm>
#include <type_traits>

using Strings = std::map<std::string, std::string>;

std::string model_path(const std::string& dir, int64_t step);
std::string state_path(const std::string& dir, int64_t step);

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

const std::string& metadata_entry(const SafeTensorsFile& file, const std::string& name);

// Refuses a file whose tensors are not exactly those of the table. prefixes: as in NamedBlock, {""} for a
// model.
void check_tensors(const SafeTensorsFile& file, const std::vector<Tensor>& table,
                   const std::vector<std::string>& prefixes);

// The config of a checkpoint, after checking that its tensors are exactly those of the config's table.
Config read_config(const SafeTensorsFile& file);

template <class T> void read_block(const SafeTensorsFile& file, const std::vector<Tensor>& table,
                                   const std::string& prefix, T* block) {
    for (const Tensor& t : table) read_floats(*file.find(prefix + t.name), block + t.offset);
}

// ---------------------------------------------------------------------------------------------------------
// A run's folder

// Steps that have a file model_<step>.safetensors in the folder, newest first.
std::vector<int64_t> checkpoint_steps(const std::string& dir);

// The newest step whose model and state are both whole, or -1. *passed_over names the files that were not.
int64_t newest_checkpoint(const std::string& dir, std::string* passed_over = nullptr);

// Removes what a killed run may leave of a file it was writing, under a temporary name. For the run that holds
// the folder.
void remove_unfinished(const std::string& dir);

// The checkpoint a path means: a file, or the newest whole one in the folder of a run.
std::string find_checkpoint(const std::string& path);
