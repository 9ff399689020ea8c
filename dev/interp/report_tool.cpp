// The tool report: see report.h.
#include "../lib/fill.h"
#include "report.h"

void write_curves(JsonWriter& out, const std::string& path, uint64_t last_step) {
    Curve loss, l0;
    JsonWriter val_loss, load;
    val_loss.open('[');
    load.open('[');
    double ms = 0, tokens = 0;
    scan_log(path, last_step, [&](const Json& line) {
        const double step = line.find("step")->number;
        const auto number = [&](const char* name) {
            const Json* x = line.find(name);
            return x && x->is_number() ? x->number : 0;
        };
        loss.add(step, line.find("loss"));
        l0.add(step, line.find("l0"));
        ms += number("ms");
        tokens += number("ms") / 1000 * number("tok_s");
        if (const Json* x = line.find("val_loss"); x && x->is_number())
            val_loss.open('[').value(step, 9).value(x->number).close();
        if (const Json* layers = line.find("load"); layers && layers->type == Json::Array) {
            load.open('[').value(step, 9).open('[');
            for (const Json& layer : layers->items) {
                load.open('[');
                for (const Json& share : layer.items) load.value(share.number, 4);
                load.close();
            }
            load.close().close();
        }
    });
    val_loss.close();
    load.close();
    loss.write(out, "loss", 500);
    l0.write(out, "l0", 250);
    out.key("val_loss").text += val_loss.text;
    out.key("load").text += load.text;
    out.member("train_seconds", ms / 1000).member("tokens_per_second", ms > 0 ? tokens / (ms / 1000) : 0.0);
}

std::string read_measurement(const std::string& path, const std::string& tool, const Config& config,
                             int64_t step, const std::string& weights, std::string& note) {
    struct stat st;
    if (stat(path.c_str(), &st) != 0) return note = "not measured yet", "";
    try {
        const MappedFile file(path);
        std::string text((const char*)file.data, file.size);
        const Json json = parse_json(text, path);
        const Json *name = json.find("tool"), *at = json.find("step"), *model = json.find("config");
        if (!name || name->text != tool || !at || !at->is_int64() || !model)
            fail("%s: expected the results of %s", path.c_str(), tool.c_str());
        if (at->int64() != step)
            return note = strf("measured at step %lld, this page is about step %lld", (long long)at->int64(),
                               (long long)step),
                   "";
        for (const auto& [field, value] : config_to_strings(config))
            if (const Json* x = model->find(field);
                !x || (x->type == Json::String ? x->text != value : std::to_string(x->magnitude) != value))
                return note = "measured on another model: its " + field + " differs", "";
        if (const Json* hash = json.find("weights"); !hash || hash->text != weights)
            return note = "measured on other weights of this step", "";
        return text;
    } catch (const Error& e) {
        return note = e.what(), "";
    }
}

std::string shell_word(const std::string& text) {
    if (!text.empty() &&
        text.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+-./=") ==
            std::string::npos)
        return text;
    std::string quotes = "'";
    for (const char c : text) quotes += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return quotes + "'";
}

std::string script_data(const std::string& id, const std::string& json) {
    std::string out = "<script type=\"application/json\" id=\"data-" + id + "\">";
    for (const char c : json)
        if (c == '<')
            out += "\\u003c";
        else
            out += c;
    return out + "</script>\n";
}

std::string html_text(const std::string& text) {
    std::string out;
    for (const char c : text)
        out += c == '<'   ? "&lt;"
               : c == '>' ? "&gt;"
               : c == '&' ? "&amp;"
               : c == '"' ? "&quot;"
                          : std::string(1, c);
    return out;
}

std::string run_json(const ReportOptions& options, const SafeTensorsFile& file, const Config& config,
                     int64_t step, const std::vector<ReportedTool>& tools) {
    const ParameterCount n = count_parameters(config, tensor_table(config));
    JsonWriter out;
    out.open('{')
        .member("run", as_utf8(options.run))
        .member("checkpoint", as_utf8(file.path))
        .member("step", step);
    out.member("parameters", n.total).member("active_parameters", n.active);
    out.key("config").open('{');
    for (const auto& [name, value] : config_to_strings(config)) out.member(name, value);
    out.close().key("flags").open('{');
    const std::string state = state_path(parent_directory(file.path), step);
    struct stat st;
    if (stat(state.c_str(), &st) == 0) // absent for a model that came alone
        for (const auto& [name, value] : SafeTensorsFile(state).metadata)
            if (name.starts_with("flag.")) out.member(name.substr(5), as_utf8(value));
    out.close();
    const std::string log = options.run + "/log.jsonl";
    if (stat(log.c_str(), &st) == 0) write_curves(out, log, uint64_t(step));
    out.key("tools").open('{');
    for (const ReportedTool& tool : tools) {
        const char* input = tool.games ? "--games GAMES" : "--data 'SHARDS'";
        out.key(tool.name).open('{').member("shows", tool.shows).member("measured", !tool.text.empty());
        out.member("note", as_utf8(tool.note));
        out.member("command",
                   as_utf8(strf("%s --ckpt %s %s", tool.name, shell_word(file.path).c_str(), input)));
        out.close();
    }
    out.close().close();
    return out.text;
}

// The model itself, with what rounding it costs: measured before, or now if there is text to measure it on.
static std::string model_for_page(const ReportOptions& options,
                                  const std::function<void(const MeasureInputs&)>& measure,
                                  const SafeTensorsFile& file, const Config& config, int64_t step,
                                  const std::string& weights) {
    const std::string json = options.run + "/interp/rounding.json";
    const auto read = [&] {
        std::string note;
        return read_measurement(json, "rounding", config, step, weights, note);
    };
    std::string cost = read();
    const std::string model = embedded_model(file, config, size_t(options.embed), cost);
    if (!cost.empty() || !measure || (options.games.empty() && options.data.empty()) ||
        parse_json(model, "model").find("none"))
        return model;
    make_directories(options.run + "/interp");
    measure({file.path, file.path, options.games, options.data, options.tokenizer, json});
    return embedded_model(file, config, size_t(options.embed), read());
}
static std::string model_line(const std::string& model) {
    const Json json = parse_json(model, "model");
    if (const Json* none = json.find("none")) return none->text;
    const Json* cost = json.find("cost");
    if (!cost) return "runs in the page, in 8 bits";
    return strf("runs in the page, in 8 bits: loss %.4f, as trained %.4f (+-%.4f)",
                cost->find("rounded")->number, cost->find("loss")->number,
                cost->find("error") ? cost->find("error")->number : NAN);
}

Report write_report(ReportOptions options, const Measurements& measurements) {
    if (options.run.empty()) fail_usage("--run is missing: the folder of a run");
    while (options.run.size() > 1 && options.run.back() == '/') options.run.pop_back();
    if (options.out.empty()) options.out = options.run + "/report.html";
    const SafeTensorsFile file(find_checkpoint(options.ckpt.empty() ? options.run : options.ckpt));
    const Config config = read_config(file);
    const int64_t step = checkpoint_step(file);
    const std::string weights = weights_hash(file.path);
    const bool chess = config.tokenizer == tokenizer_name(TOKENIZER_CHESS);
    if (!chess && !options.games.empty())
        fail("%s: its tokens are %s, but --games are for chess-32 models", file.path.c_str(),
             config.tokenizer.empty() ? "unstated" : config.tokenizer.c_str());

    const char* const only_chess = chess ? "" : "for chess models only";
    const char* const only_moe = config.moe() ? "" : "for mixtures of experts only";
    const char* const only_probed = config.moe() || config.dense() ? "" : "for MoE and dense layers only";
    const auto if_asked = [&](const auto& measure) { return options.all ? measure : nullptr; };
    std::vector<ReportedTool> tools = {
        {"bsp", "what its units tell of the board", true, only_chess, measurements.bsp, "", ""},
        {"sparsity", "how many units work, and which experts", false, "", measurements.sparsity, "", ""},
        {"router", "the router's scores beside what all experts would do", false, only_moe,
         measurements.router, "", ""},
        {"experts", "what decides a token's expert, what an expert takes, and what is lost without it", false,
         only_moe, if_asked(measurements.experts), "", ""},
        {"probe", "what a few units tell", false, only_probed, if_asked(measurements.probe), "", ""},
        {"features", "what single units tell", chess, "", measurements.features, "", ""}};
    for (ReportedTool& tool : tools) {
        if (*tool.only) {
            tool.note = tool.only;
            continue;
        }
        const std::string json = options.run + "/interp/" + tool.name + ".json";
        tool.text = read_measurement(json, tool.name, config, step, weights, tool.note);
        const bool inputs =
            tool.games ? !options.games.empty() : !options.data.empty() || (chess && !options.games.empty());
        if (!tool.text.empty() || !tool.measure || !inputs) continue;
        make_directories(options.run + "/interp");
        tool.measure({file.path, options.ckpt.empty() ? options.run : file.path, options.games, options.data,
                      options.tokenizer, json});
        tool.text = read_measurement(json, tool.name, config, step, weights, tool.note);
    }

    const std::string model = model_for_page(options, measurements.rounding, file, config, step, weights);
    if (!options.rounded.empty()) write_rounded(options.rounded, file, config, step);

    std::string data = script_data("run", run_json(options, file, config, step, tools));
    for (const ReportedTool& tool : tools)
        if (!tool.text.empty()) data += script_data(tool.name, tool.text);
    data += script_data("model", model);
    const std::string page =
        filled(page_html, {{"title", html_text(as_utf8(options.run)) + strf(", step %lld", (long long)step)},
                           {"style", page_style},
                           {"data", data},
                           {"script", page_script}});
    AtomicFile out(options.out);
    out.write(page.data(), page.size());
    out.commit();
    return {options.out, page.size(), tools, model_line(model)};
}

std::string headline(const std::string& tool, const std::string& text) {
    const Json json = parse_json(text, tool);
    const auto number = [](const Json* from, std::initializer_list<const char*> path) {
        for (const char* name : path)
            if (from) from = from->find(name);
        return from && from->is_number() ? from->number : NAN;
    };
    const Json* layers = json.find("layers");
    if (tool == "bsp" && layers) {
        const Json* best = nullptr;
        for (const Json& layer : layers->items)
            if (number(&layer, {"layer"}) == number(&json, {"best_layer"})) best = &layer;
        if (!best) return "";
        const auto board = [&](const char* name) { return number(best, {"board", name}); };
        return strf(
            "layer %.0f, held out, board coverage beyond the text %.3f (%.3f to %.3f; untrained %.3f), "
            "reconstruction beyond it %.3f;\n          in all coverage %.3f, where rules about the text have "
            "%.3f and untrained weights %.3f",
            number(best, {"layer"}), board("beyond"), board("beyond_low"), board("beyond_high"),
            number(best, {"board", "untrained", "beyond"}), board("rec_beyond"), board("held_out"),
            number(best, {"board", "text", "held_out"}), number(best, {"board", "untrained", "held_out"}));
    }
    if (tool == "router" && layers) {
        std::string out = "correlation of an expert's score with its units that fire, by layer:";
        for (const Json& layer : layers->items) out += strf(" %.2f", number(&layer, {"pearson", "within"}));
        return out;
    }
    if (tool == "experts" && layers) {
        size_t experts = 0, named = 0;
        for (const Json& layer : layers->items)
            if (const Json* list = layer.find("experts"))
                for (const Json& expert : list->items) {
                    const Json* is = expert.find("named");
                    experts++;
                    named += is && is->boolean;
                }
        return strf("%zu of %zu experts take what is more than their tokens", named, experts);
    }
    const Json *summary = json.find("summary"), *sentence = json.find("sentence");
    if (tool == "probe" && sentence) return sentence->text;
    if (tool != "features" || !summary || !sentence) return "";
    return strf("%.0f of %.0f units tested tell more than the text says (untrained weights: %.0f), %.0f read "
                "the text;\n"
                "          ",
                number(summary, {"knows"}), number(summary, {"tested"}),
                number(summary, {"untrained", "knows"}), number(summary, {"reads"})) +
           sentence->text;
}

void print_report(const Report& report) {
    for (const ReportedTool& tool : report.tools)
        if (tool.text.empty())
            printf("%-9s left out: %s\n", tool.name, tool.note.c_str());
        else if (const std::string line = headline(tool.name, tool.text); !line.empty())
            printf("%-9s %s\n", tool.name, line.c_str());
    printf("%-9s %s\n", "model", report.model.c_str());
    printf("%-9s %s, %s\n", "report", report.path.c_str(), human_bytes(double(report.bytes)).c_str());
}

int report_program(int argc, char** argv, const Measurements& measurements) {
    ReportOptions report;
    Options options(
        "report",
        "Writes one HTML page on a run: curves, board-state metrics, sparsity, router, experts, units.");
    report.declare(options);
    if (!options.parse(argc, argv)) return 0;
    print_report(write_report(report, measurements));
    return 0;
}
