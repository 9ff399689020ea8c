// report: what a run has become, on one page. Takes the folder of a run (its log.jsonl, a checkpoint and what
// bsp, sparsity, router and features have written to <run>/interp) and gives one HTML file that needs nothing
// else: no network, no framework; the charts are drawn by the page's own script (page/) from the numbers
// embedded in it. A measurement that is missing, or was made on another step or model, is made now when the
// caller can and its inputs are given; else its section names the command that makes it.
#pragma once
#include "../lib/options.h"
#include "../lib/terminal.h"
#include "../run/log.h"
#include "page.h"
#include "results.h"
#include <functional>
#include <map>

struct ReportOptions {
    std::string run, ckpt, out, games, data;

    void declare(Options& o) {
        o.add(0, "run", "DIR", &run, "the folder of a run");
        o.add(0, "ckpt", "FILE", &ckpt, "the checkpoint to report on (default: the newest of the run)");
        o.add('o', "out", "FILE", &out, "the page (default: DIR/report.html)");
        o.add(0, "games", "FILE", &games,
              "games, for measurements that are missing: PGN, text or chess-32 shards");
        o.add(0, "data", "GLOB", &data, "held-out token shards, for measurements that are missing");
    }
};

// What makes the results that the page shows, each a function that writes the JSON file, or nothing. `ckpt`
// is the checkpoint; `run` the folder when it is its newest, so that the router's check can go through the
// others. Games are for chess models only.
struct MeasureInputs {
    std::string ckpt, run, games, data, json;
};
struct Measurements {
    std::function<void(const MeasureInputs&)> bsp, sparsity, router, features;
};

// ---------------------------------------------------------------------------------------------------------
// The log

// One number per step, thinned to `most` bins of equal width in steps: in each the mean, the smallest and the
// largest value, at the bin's mean step.
struct Curve {
    std::vector<double> step, value;

    void add(double s, const Json* x) {
        if (x && x->is_number()) step.push_back(s), value.push_back(x->number);
    }
    void write(JsonWriter& out, const char* name, size_t most) const {
        out.key(name).open('[');
        const double width = step.empty() ? 1 : std::max(1.0, (step.back() - step[0] + 1) / double(most));
        for (size_t i = 0; i < step.size();) {
            const double end = step[0] + width * (std::floor((step[i] - step[0]) / width) + 1);
            double n = 0, at = 0, mean = 0, low = value[i], high = value[i];
            for (; i < step.size() && step[i] < end; i++) {
                n++, at += step[i], mean += value[i];
                low = std::min(low, value[i]), high = std::max(high, value[i]);
            }
            out.open('[').value(at / n, 7).value(mean / n, 5).value(low, 5).value(high, 5).close();
        }
        out.close();
    }
};

// Adds to an open object: loss, l0 (thinned), val_loss ([step, value] of every evaluation), load
// ([step, (L,E)]), the training time in seconds and tokens per second over all steps.
inline void write_curves(JsonWriter& out, const std::string& path, uint64_t last_step) {
    Curve loss, l0;
    JsonWriter val_loss, load;
    val_loss.open('['), load.open('[');
    double ms = 0, tokens = 0;
    scan_log(path, last_step, [&](const Json& line) {
        const double step = line.find("step")->number;
        const auto number = [&](const char* name) {
            const Json* x = line.find(name);
            return x && x->is_number() ? x->number : 0;
        };
        loss.add(step, line.find("loss")), l0.add(step, line.find("l0"));
        ms += number("ms"), tokens += number("ms") / 1000 * number("tok_s");
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
    val_loss.close(), load.close();
    loss.write(out, "loss", 500), l0.write(out, "l0", 250);
    out.key("val_loss").text += val_loss.text;
    out.key("load").text += load.text;
    out.member("train_seconds", ms / 1000).member("tokens_per_second", ms > 0 ? tokens / (ms / 1000) : 0.0);
}

// ---------------------------------------------------------------------------------------------------------
// The measurements

struct ReportedTool {
    const char *name, *shows; // shows: in words, for the page
    bool games;               // measures on games and so for chess models only
    std::function<void(const MeasureInputs&)> measure;
    std::string text, note; // the JSON, or why there is none
};

// The text of a tool's JSON file if it is there and was made on this checkpoint, else "" and the reason.
inline std::string read_measurement(const std::string& path, const std::string& tool, const Config& config,
                                    int64_t step, std::string& note) {
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
        return text;
    } catch (const Error& e) {
        return note = e.what(), "";
    }
}

// A word of a command line as a shell reads it back.
inline std::string shell_word(const std::string& text) {
    if (!text.empty() &&
        text.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+-./=") ==
            std::string::npos)
        return text;
    std::string quotes = "'";
    for (const char c : text) quotes += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return quotes + "'";
}

// ---------------------------------------------------------------------------------------------------------
// The page

// JSON as the content of a <script> element: '<' can stand in strings only, where \u003c means the same, and
// without it nothing in the data can end the element or open a comment.
inline std::string script_data(const std::string& id, const std::string& json) {
    std::string out = "<script type=\"application/json\" id=\"data-" + id + "\">";
    for (const char c : json)
        if (c == '<')
            out += "\\u003c";
        else
            out += c;
    return out + "</script>\n";
}

inline std::string html_text(const std::string& text) {
    std::string out;
    for (const char c : text)
        out += c == '<'   ? "&lt;"
               : c == '>' ? "&gt;"
               : c == '&' ? "&amp;"
               : c == '"' ? "&quot;"
                          : std::string(1, c);
    return out;
}

// Text that may not be UTF-8 (a path), so that JSON can hold it: other bytes become '?'.
inline std::string as_utf8(const std::string& text) {
    std::string out;
    for (size_t i = 0; i < text.size();) {
        const size_t length = utf8_length(text.data() + i, text.size() - i);
        out += length ? text.substr(i, length) : "?";
        i += std::max<size_t>(length, 1);
    }
    return out;
}

// The frame with every {{name}} replaced; what is put in is not looked at again.
inline std::string fill_page(const std::map<std::string, std::string>& parts) {
    std::string page;
    const char* from = page_html;
    while (const char* begin = strstr(from, "{{")) {
        const char* end = strstr(begin, "}}");
        page.append(from, begin);
        page += parts.at(std::string(begin + 2, end));
        from = end + 2;
    }
    return page + from;
}

// What the page says of the run itself: where, model, flags, curves, tools.
inline std::string run_json(const ReportOptions& options, const SafeTensorsFile& file, const Config& config,
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

struct Report {
    std::string path;
    size_t bytes = 0;
    std::vector<ReportedTool> tools;
};

// Makes the page of a run and writes it. Refuses a folder without a checkpoint, and one without a step.
inline Report write_report(ReportOptions options, const Measurements& measurements) {
    if (options.run.empty()) fail_usage("--run is missing: the folder of a run");
    while (options.run.size() > 1 && options.run.back() == '/') options.run.pop_back();
    if (options.out.empty()) options.out = options.run + "/report.html";
    const SafeTensorsFile file(find_checkpoint(options.ckpt.empty() ? options.run : options.ckpt));
    const Config config = read_config(file);
    const int64_t step = checkpoint_step(file);
    const bool chess = config.tokenizer == tokenizer_name(TOKENIZER_CHESS);
    if (!chess && !options.games.empty())
        fail("%s: its tokens are %s, but --games are for chess-32 models", file.path.c_str(),
             config.tokenizer.empty() ? "unstated" : config.tokenizer.c_str());

    std::vector<ReportedTool> tools = {
        {"bsp", "how well its units tell the board", true, measurements.bsp, "", ""},
        {"sparsity", "how many units work, and which experts", false, measurements.sparsity, "", ""},
        {"router", "whether the router tells the truth", false, measurements.router, "", ""},
        {"features", "what single units detect", chess, measurements.features, "", ""}};
    for (ReportedTool& tool : tools) {
        if (tool.games && !chess) {
            tool.note = "for chess models only";
            continue;
        }
        const std::string json = options.run + "/interp/" + tool.name + ".json";
        tool.text = read_measurement(json, tool.name, config, step, tool.note);
        const bool inputs =
            tool.games ? !options.games.empty() : !options.data.empty() || (chess && !options.games.empty());
        if (!tool.text.empty() || !tool.measure || !inputs) continue;
        make_directories(options.run + "/interp");
        tool.measure(
            {file.path, options.ckpt.empty() ? options.run : file.path, options.games, options.data, json});
        tool.text = read_measurement(json, tool.name, config, step, tool.note);
    }

    std::string data = script_data("run", run_json(options, file, config, step, tools));
    for (const ReportedTool& tool : tools)
        if (!tool.text.empty()) data += script_data(tool.name, tool.text);
    const std::string page =
        fill_page({{"title", html_text(as_utf8(options.run)) + strf(", step %lld", (long long)step)},
                   {"style", page_style},
                   {"data", data},
                   {"script", page_script}});
    AtomicFile out(options.out);
    out.write(page.data(), page.size());
    out.commit();
    return {options.out, page.size(), tools};
}

// What a tool says in a line: the best layer's board scores, the router's correlations, one unit in words.
inline std::string headline(const std::string& tool, const std::string& text) {
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
            if (!best || number(&layer, {"board", "held_out"}) > number(best, {"board", "held_out"}))
                best = &layer;
        if (!best) return "";
        const auto board = [&](const char* name) { return number(best, {"board", name}); };
        return strf("board coverage %.3f, held out %.3f (%.3f to %.3f; untrained %.3f), reconstruction %.3f, "
                    "by layer %.0f",
                    board("coverage"), board("held_out"), board("held_out_low"), board("held_out_high"),
                    number(best, {"board", "untrained", "held_out"}), board("rec_held_out"),
                    number(best, {"layer"}));
    }
    if (tool == "router" && layers) {
        std::string out = "correlation of an expert's score with its units that fire, by layer:";
        for (const Json& layer : layers->items) out += strf(" %.2f", number(&layer, {"pearson", "within"}));
        return out;
    }
    const Json *summary = json.find("summary"), *best = json.find("best");
    if (tool != "features" || !summary) return "";
    const Json* sentence = best ? best->find("sentence") : nullptr;
    return strf("%.0f of %.0f units detect something; ", number(summary, {"found"}),
                number(summary, {"tested"})) +
           (sentence ? sentence->text : "none is named");
}

inline void print_report(const Report& report) {
    for (const ReportedTool& tool : report.tools)
        if (tool.text.empty())
            printf("%-9s left out: %s\n", tool.name, tool.note.c_str());
        else if (const std::string line = headline(tool.name, tool.text); !line.empty())
            printf("%-9s %s\n", tool.name, line.c_str());
    printf("%-9s %s, %s\n", "report", report.path.c_str(), human_bytes(double(report.bytes)).c_str());
}

inline int report_program(int argc, char** argv, const Measurements& measurements) {
    ReportOptions report;
    Options options("report",
                    "Writes one HTML page on a run: curves, board-state metrics, sparsity, router, units.");
    report.declare(options);
    if (!options.parse(argc, argv)) return 0;
    print_report(write_report(report, measurements));
    return 0;
}
