// What a trainer prints of its run: the table of settings at the start and the line of a step. Both keep to
// the width of the window where there is one.
#pragma once
#include "../lib/terminal.h"
#include "log.h"
#include "run.h"
#include <cstdarg>

struct SettingsTable {
    size_t left = 20, right = 66; // columns of the names and of the values

    explicit SettingsTable(size_t window) { // 0: as wide as it likes
        const size_t frame = 7;
        if (window > 0 && window < left + right + frame)
            right = std::max<size_t>(13, window - std::min(window, left + frame));
    }
    void rule() const {
        printf("+%s+%s+\n", std::string(left + 2, '-').c_str(), std::string(right + 2, '-').c_str());
    }
    // A value too long for its column goes on in the next line, where it can at a blank.
    __attribute__((format(printf, 3, 4))) void row(const char* name, const char* format, ...) const;
};

void print_settings(const Run& run, const std::vector<Tensor>& table, const std::string& machine,
                    const std::vector<std::pair<const char*, double>>& memory);

// The line of a step, in at most `width` columns (0: no limit).
std::string step_line(const StepRecord& r, int64_t steps, double eta_seconds, size_t width);

// Prints what line(columns) makes of the window's columns (0: no limit). A line that does not stay is drawn
// over by the next on a terminal, and not printed elsewhere.
void show_line(const std::function<std::string(size_t columns)>& line, bool stays);

// Every line stays that --print-every asks for; on a terminal the others are drawn over.
bool step_line_stays(const Run& run, int64_t step);
void print_step(const StepRecord& r, const Run& run, double eta_seconds);
