// The windows of experts for a language model, and what it answers (experts --windows, --answers). No program
// here knows a network: dev/interp/ask.py sends the one file and writes the other.
//
//   --windows, a line an expert   {"name": "2/5", "windows": "9f..", "control": "2/6",
//      "explain": [{"text": "a << marked>> text", "strongest": [[" marked", 10], ..]}, ..], "score": ["..",
//      ..]}
//   --answers, a line an expert   {"name": "2/5", "windows": "9f..", "hypothesis": "..", "answers": [1, 0,
//   null, ..],
//      "control_answers": [..]}
//
// Tokens that went to an expert are marked. "explain" are windows of train documents, "score" those of test
// documents that labels are scored on (expert_labels.h), which of them are the expert's own is not in the
// file. "control" is an expert of the same layer whose hypothesis is tried on these windows, too. An answer
// is null where it could not be read: it counts as wrong, and how many there were is said. "windows" is a
// hash of the line, by which answers to other windows are refused.
#pragma once
#include "expert_labels.h"

constexpr size_t n_explain = 20, n_strongest = 5;

std::string expert_name(size_t layer, size_t expert); // "2/5"

struct ExpertWindows {
    std::string name, control, hash;
    std::vector<ExpertWindow> score;
    std::string line; // of the file
};
// Of every expert of a layer that is scored.
std::vector<ExpertWindows> expert_windows(const RoutedLayer& routed, const Concepts& concepts, size_t layer,
                                          const LabelOptions& options);

struct LanguageScore {
    bool answered = false;
    std::string hypothesis;
    Detection own, control;
    double unread = 0; // share of the answers
    double gain[2] = {undefined, undefined},
           error[2] = {undefined, undefined}; // over the token table, control
    bool named = false;
};
// By layer and expert. windows, routed, token rules: of every layer; refuses answers to anything else.
std::vector<std::vector<LanguageScore>> read_answers(const std::string& path,
                                                     const std::vector<std::vector<ExpertWindows>>& windows,
                                                     const std::vector<RoutedLayer>& routed,
                                                     const Concepts& concepts, const LabelOptions& options);
