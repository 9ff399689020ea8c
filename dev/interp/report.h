// report: what a run has become, on one page. Takes the folder of a run (its log.jsonl, a checkpoint and what
// bsp, sparsity, router, features, experts and probe have written to <run>/interp) and gives one HTML file
// that needs nothing else: no network, no framework; the charts are drawn by the page's own script (page/)
// from the numbers embedded in it, and a model that is small enough is in the page, too, and runs there
// (embed.h). A measurement that is missing, or was made on another step or other weights, is made now when
// the caller can and its inputs are given (experts and probe, which take longer, only if asked for); else its
// section names the command that makes it.
#pragma once
#include "../lib/options.h"
#include "../lib/terminal.h"
#include "../run/log.h"
#include "embed.h"
#include "page.h"
#include "results.h"
#include <functional>
#include <map>

struct ReportOptions {
    std::string run, ckpt, out, games, data, tokenizer, rounded;
    int64_t embed = 4000000;
    bool all = false;

    void declare(Options& o) {
        o.add(0, "run", "DIR", &run, "the folder of a run");
        o.add(0, "ckpt", "FILE", &ckpt, "the checkpoint to report on (default: the newest of the run)");
        o.add('o', "out", "FILE", &out, "the page (default: DIR/report.html)");
        o.add(0, "games", "FILE", &games,
              "games, for measurements that are missing: PGN, text or chess-32 shards");
        o.add(0, "data", "GLOB", &data, "held-out token shards, for measurements that are missing");
        o.add(0, "tokenizer", "FILE", &tokenizer,
              "GPT-2 tokens: the file that data/fineweb.py writes, to show them");
        o.add(0, "all", &all, "also measure experts and probe, which take nearly as long as all the rest");
        o.add(0, "embed", "N", &embed, 0, int64_t(1) << 30,
              "put a model of up to so many parameters into the page, a byte for each, and run it there");
        o.add(0, "rounded", "FILE", &rounded, "also write the model as the page has it, as a checkpoint");
    }
};

// What makes the results that the page shows, each a function that writes the JSON file, or nothing. `ckpt`
// is the checkpoint; `run` the folder when it is its newest, so that the router's check can go through the
// others. Games are for chess models only.
struct MeasureInputs {
    std::string ckpt, run, games, data, tokenizer, json;
};
struct Measurements {
    std::function<void(const MeasureInputs&)> bsp, sparsity, router, features, experts, probe;
    std::function<void(const MeasureInputs&)> rounding; // what the page's copy of the model costs in loss
};

// ---------------------------------------------------------------------------------------------------------
// The log

// One number per step, thinned to `most` bins of equal width in steps: in each the mean, the smallest and the
// largest value, at the bin's mean step.
struct Curve {
    std::vector<double> step, value;

    void add(double s, const Json* x) {
        if (x && x->is_number()) {
            step.push_back(s);
            value.push_back(x->number);
        }
    }
    void write(JsonWriter& out, const char* name, size_t most) const {
        out.key(name).open('[');
        const double width = step.empty() ? 1 : std::max(1.0, (step.back() - step[0] + 1) / double(most));
        for (size_t i = 0; i < step.size();) {
            const double end = step[0] + width * (std::floor((step[i] - step[0]) / width) + 1);
            double n = 0, at = 0, mean = 0, low = value[i], high = value[i];
            for (; i < step.size() && step[i] < end; i++) {
                n++;
                at += step[i];
                mean += value[i];
                low = std::min(low, value[i]);
                high = std::max(high, value[i]);
            }
            out.open('[').value(at / n, 7).value(mean / n, 5).value(low, 5).value(high, 5).close();
        }
        out.close();
    }
};

// Adds to an open object: loss, l0 (thinned), val_loss ([step, value] of every evaluation), load
// ([step, (L,E)]), the training time in seconds and tokens per second over all steps.
void write_curves(JsonWriter& out, const std::string& path, uint64_t last_step);

// ---------------------------------------------------------------------------------------------------------
// The measurements

struct ReportedTool {
    const char *name, *shows; // shows: in words, for the page
    bool games;               // measures on games
    const char* only;         // why it is not for this model, or ""
    std::function<void(const MeasureInputs&)> measure;
    std::string text, note; // the JSON, or why there is none
};

// The text of a tool's JSON file if it is there and was made on this checkpoint (its step, config and
// weights), else "" and the reason.
std::string read_measurement(const std::string& path, const std::string& tool, const Config& config,
                             int64_t step, const std::string& weights, std::string& note);

// A word of a command line as a shell reads it back.
std::string shell_word(const std::string& text);

// ---------------------------------------------------------------------------------------------------------
// The page

// JSON as the content of a <script> element: '<' can stand in strings only, where \u003c means the same, and
// without it nothing in the data can end the element or open a comment.
std::string script_data(const std::string& id, const std::string& json);

std::string html_text(const std::string& text);

// What the page says of the run itself: where, model, flags, curves, tools.
std::string run_json(const ReportOptions& options, const SafeTensorsFile& file, const Config& config,
                     int64_t step, const std::vector<ReportedTool>& tools);

struct Report {
    std::string path;
    size_t bytes = 0;
    std::vector<ReportedTool> tools;
    std::string model; // in a line, what the page has of it
};

// Makes the page of a run and writes it. Refuses a folder without a checkpoint, and one without a step.
Report write_report(ReportOptions options, const Measurements& measurements);

// What a tool says in a line: what the layer that gains most over the text (on the train games) has beyond
// it, held out; the router's correlations; one unit in words.
std::string headline(const std::string& tool, const std::string& text);

void print_report(const Report& report);

int report_program(int argc, char** argv, const Measurements& measurements);
