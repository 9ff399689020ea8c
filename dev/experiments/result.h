// The result of one run: where it comes from, and its numbers, taken from what the tools wrote. One small
// JSON file, from which alone the tables are made.
//
//   method, size, seed     what was run
//   reason                 "", or why there are no numbers: the trainer's own line
//   provenance             commit, flags, machine, date, seconds, tokens_per_second; as train.sh wrote them
//   numbers                val_loss, legal, l0, participation, parameters, active_parameters, units_found, ..
//   layers                 view of the units ("": the first; split, gate, ..) -> by layer its numbers: alive,
//                          units, board.coverage, board.held_out, board.untrained.coverage, ..
#pragma once
#include "../lib/file.h"
#include "../lib/json.h"
#include <map>

using Numbers = std::map<std::string, double>;

struct RunResult {
    std::string method, size, reason;
    int64_t seed = 0;
    std::map<std::string, std::string> provenance;
    Numbers numbers;
    std::map<std::string, std::vector<Numbers>> layers;

    double number(const std::string& name) const {
        const auto found = numbers.find(name);
        return found == numbers.end() ? NAN : found->second;
    }
};

// From the folder of a run: run.json or refused.txt, evaluate.json, interp/*.json; what is not there has no
// numbers. Views are the files interp/bsp_VIEW.json.
RunResult collect_result(const std::string& folder, const std::string& method, const std::string& size,
                         int64_t seed);

std::string result_json(const RunResult& r);
RunResult read_result(const std::string& path);
