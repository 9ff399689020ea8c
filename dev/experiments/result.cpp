// Results from what the tools wrote, to a file and back: see result.h.
#include "result.h"

static bool there(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

static std::string text_of(const std::string& path) {
    const MappedFile file(path);
    return std::string((const char*)file.data, file.size);
}

static Json json_of(const std::string& path) { return parse_json(text_of(path), path); }

// The number at a path of keys, NaN if there is none.
static double number_at(const Json* from, std::initializer_list<const char*> path) {
    for (const char* name : path)
        if (from) from = from->find(name);
    return from && from->is_number() ? from->number : NAN;
}

static double mean_of_layers(const Json& json, std::initializer_list<const char*> path) {
    const Json* layers = json.find("layers");
    double sum = 0;
    size_t n = 0;
    for (size_t i = 0; layers && i < layers->items.size(); i++) {
        const double x = number_at(&layers->items[i], path);
        if (std::isnan(x)) continue;
        sum += x;
        n++;
    }
    return n ? sum / double(n) : NAN;
}

static void put(Numbers& numbers, const std::string& name, double x) {
    if (!std::isnan(x)) numbers[name] = x;
}

// Of bsp's JSON, every number of a layer that a table may ask for.
static std::vector<Numbers> bsp_layers(const Json& json) {
    std::vector<Numbers> out;
    const Json* layers = json.find("layers");
    if (!layers) return out;
    for (const Json& layer : layers->items) {
        Numbers n;
        for (const char* name : {"layer", "units", "alive"}) put(n, name, number_at(&layer, {name}));
        for (const std::string group : {"board", "strategy"}) {
            for (const char* name :
                 {"coverage", "held_out", "held_out_low", "held_out_high", "beyond", "rec_published", "rec",
                  "rec_low", "rec_high", "rec_beyond", "per_cell", "matched"})
                put(n, group + "." + name, number_at(&layer, {group.c_str(), name}));
            for (const char* control : {"untrained", "permuted", "same_move", "text"})
                for (const char* name : {"coverage", "held_out", "rec_published", "beyond"})
                    put(n, group + "." + control + "." + name,
                        number_at(&layer, {group.c_str(), control, name}));
            if (const Json* subset = layer.find("subset"))
                for (const char* name : {"coverage", "held_out", "rec_published"})
                    if (const Json* range = subset->find(group) ? subset->find(group)->find(name) : nullptr;
                        range && range->items.size() == 3) {
                        put(n, group + ".subset." + name, range->items[0].number);
                        put(n, group + ".subset." + name + ".low", range->items[1].number);
                        put(n, group + ".subset." + name + ".high", range->items[2].number);
                    }
        }
        put(n, "subset.units", number_at(layer.find("subset"), {"units"}));
        out.push_back(n);
    }
    return out;
}

RunResult collect_result(const std::string& folder, const std::string& method, const std::string& size,
                         int64_t seed) {
    RunResult r;
    r.method = method;
    r.size = size;
    r.seed = seed;
    if (there(folder + "/refused.txt")) {
        r.reason = text_of(folder + "/refused.txt");
        r.reason.erase(std::min(r.reason.find('\n'), r.reason.size()));
        return r;
    }
    if (!there(folder + "/run.json")) fail("%s: no run.json: the run is not done", folder.c_str());
    const Json run = json_of(folder + "/run.json");
    for (size_t i = 0; i < run.items.size(); i++) {
        const Json& x = run.items[i];
        r.provenance[run.keys[i]] = x.type == Json::String ? x.text
                                    : x.is_number()        ? json_number(x.number)
                                                           : "";
    }
    if (const std::string path = folder + "/evaluate.json"; there(path)) {
        const Json json = json_of(path);
        put(r.numbers, "val_loss", number_at(&json, {"loss"}));
        put(r.numbers, "legal", number_at(&json, {"legal"}));
        put(r.numbers, "parameters", number_at(&json, {"parameters"}));
        put(r.numbers, "active_parameters", number_at(&json, {"active_parameters"}));
        double l0 = 0;
        const Json* of_layers = json.find("l0");
        for (size_t i = 0; of_layers && i < of_layers->items.size(); i++)
            l0 += of_layers->items[i].number / double(of_layers->items.size());
        if (of_layers) put(r.numbers, "l0", l0);
        if (const Json* saes = json.find("saes"); saes && !saes->items.empty()) { // then of the latents
            double latents = 0, fvu = 0, recovered = 0;
            for (const Json& s : saes->items) {
                latents += number_at(&s, {"l0"}) / double(saes->items.size());
                fvu += number_at(&s, {"fvu"}) / double(saes->items.size());
                recovered += number_at(&s, {"recovered"}) / double(saes->items.size());
            }
            r.numbers["l0"] = latents;
            r.numbers["fvu"] = fvu;
            r.numbers["recovered"] = recovered;
        }
    }
    if (const std::string path = folder + "/interp/sparsity.json"; there(path))
        put(r.numbers, "participation", mean_of_layers(json_of(path), {"participation"}));
    if (const std::string path = folder + "/interp/router.json"; there(path))
        put(r.numbers, "router_correlation", mean_of_layers(json_of(path), {"pearson", "within"}));
    if (const std::string path = folder + "/interp/features.json"; there(path)) {
        const Json json = json_of(path);
        put(r.numbers, "units_found", number_at(&json, {"summary", "knows"}));
        put(r.numbers, "units_tested", number_at(&json, {"summary", "tested"}));
    }
    for (const std::string& name : file_names(folder + "/interp")) {
        if (!name.starts_with("bsp") || !name.ends_with(".json")) continue;
        const std::string view = name == "bsp.json" ? "" : name.substr(4, name.size() - 9);
        const Json json = json_of(folder + "/interp/" + name);
        r.layers[view] = bsp_layers(json);
        if (!view.empty()) continue;
        for (const char* floor : {"board_floor", "board_floor_test", "strategy_floor", "strategy_floor_test"})
            put(r.numbers, floor, number_at(&json, {floor}));
    }
    return r;
}

std::string result_json(const RunResult& r) {
    JsonWriter out;
    out.open('{').member("method", r.method).member("size", r.size).member("seed", r.seed);
    out.member("reason", r.reason).key("provenance").open('{');
    for (const auto& [name, value] : r.provenance) out.member(name, value);
    const auto numbers = [&](const Numbers& list) {
        out.open('{');
        for (const auto& [name, x] : list) out.key(name).value(x, 17);
        out.close();
    };
    out.close().key("numbers");
    numbers(r.numbers);
    out.key("layers").open('{');
    for (const auto& [view, layers] : r.layers) {
        out.key(view).open('[');
        for (const Numbers& layer : layers) numbers(layer);
        out.close();
    }
    out.close().close();
    return out.text + "\n";
}

RunResult read_result(const std::string& path) {
    const Json json = json_of(path);
    const auto part = [&](const char* name, Json::Type type) -> const Json& {
        const Json* found = json.find(name);
        if (!found || found->type != type) fail("%s: expected a result with %s", path.c_str(), name);
        return *found;
    };
    const auto numbers = [](const Json& from) {
        Numbers list;
        for (size_t i = 0; i < from.items.size(); i++)
            if (from.items[i].is_number()) list[from.keys[i]] = from.items[i].number;
        return list;
    };
    RunResult r;
    r.method = part("method", Json::String).text;
    r.size = part("size", Json::String).text;
    r.reason = part("reason", Json::String).text;
    r.seed = part("seed", Json::Integer).int64();
    const Json& provenance = part("provenance", Json::Object);
    for (size_t i = 0; i < provenance.items.size(); i++)
        r.provenance[provenance.keys[i]] = provenance.items[i].text;
    r.numbers = numbers(part("numbers", Json::Object));
    const Json& layers = part("layers", Json::Object);
    for (size_t i = 0; i < layers.items.size(); i++)
        for (const Json& layer : layers.items[i].items) r.layers[layers.keys[i]].push_back(numbers(layer));
    return r;
}
