// Reading the files of a run and finding them in its folder.
#include "checkpoint.h"

std::string model_path(const std::string& dir, int64_t step) {
    return strf("%s/model_%08lld.safetensors", dir.c_str(), (long long)step);
}

std::string state_path(const std::string& dir, int64_t step) {
    return strf("%s/state_%08lld.safetensors", dir.c_str(), (long long)step);
}

const std::string& metadata_entry(const SafeTensorsFile& file, const std::string& name) {
    const auto found = file.metadata.find(name);
    if (found == file.metadata.end())
        fail("%s: the metadata lacks %s", file.path.c_str(), quoted(name).c_str());
    return found->second;
}

void check_tensors(const SafeTensorsFile& file, const std::vector<Tensor>& table,
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

// A file whose metadata names no model was written by another program: says by which, where its tensors tell.
[[noreturn]] static void fail_foreign(const SafeTensorsFile& file) {
    for (const char* name : {"h.0.attn.c_attn.weight", "transformer.h.0.attn.c_attn.weight"})
        if (const SafeTensor* t = file.find(name); // (C,3C) there, (3C,C) here
            t && t->shape.size() == 2 && t->shape[1] == 3 * t->shape[0])
            fail("%s: a GPT-2 checkpoint as on the Hugging Face hub, not a moex one; it cannot be converted "
                 "yet: train a new model with --init small",
                 file.path.c_str());
    for (const SafeTensor& t : file.tensors)
        if (t.name.find("layers.0.") != std::string::npos)
            fail("%s: a checkpoint of another program and architecture (it has a tensor %s), not a moex one",
                 file.path.c_str(), quoted(t.name).c_str());
    fail("%s: not a moex checkpoint: the metadata lacks 'model'", file.path.c_str());
}

Config read_config(const SafeTensorsFile& file) {
    if (!file.metadata.count("model")) fail_foreign(file);
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

std::vector<int64_t> checkpoint_steps(const std::string& dir) {
    std::vector<int64_t> steps;
    for (const std::string& name : file_names(dir)) {
        long long step = -1;
        if (sscanf(name.c_str(), "model_%lld", &step) == 1 && step >= 0 &&
            model_path(dir, step) == dir + "/" + name)
            steps.push_back(step);
    }
    std::sort(steps.rbegin(), steps.rend());
    return steps;
}

int64_t newest_checkpoint(const std::string& dir, std::string* passed_over) {
    for (const int64_t step : checkpoint_steps(dir)) {
        try {
            const SafeTensorsFile model(model_path(dir, step)), state(state_path(dir, step));
            check_tensors(state, trained_tensors(tensor_table(read_config(model))), {"m.", "v."});
            return step;
        } catch (const Error& e) {
            if (passed_over) *passed_over += std::string(passed_over->empty() ? "" : "; ") + e.what();
        }
    }
    return -1;
}

void remove_unfinished(const std::string& dir) {
    for (const std::string& name : file_names(dir))
        if (name.find(".safetensors.tmp.") != std::string::npos) unlink((dir + "/" + name).c_str());
}

std::string find_checkpoint(const std::string& path) {
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
