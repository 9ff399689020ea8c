// What a person at the terminal sees: numbers in human units, lines cut to the width of the window, and a
// progress line with rate and time left. Lines are drawn over and colours shown only on a terminal that wants
// them (not with NO_COLOR or TERM=dumb); else no escape sequence is ever sent.
#pragma once
#include "error.h"
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <sys/ioctl.h>
#include <utility>
#include <vector>

double now_seconds();

// 812 -> "812", 12600 -> "12.6K", 3.4e9 -> "3.40G": three digits and a unit of 1000.
std::string human_count(double x);

// Bytes in units of 1024: "812 B", "12.6 MiB".
std::string human_bytes(double x);

// 4.2 -> "4s", 83 -> "1m23s", 7500 -> "2h05m", 200000 -> "2d07h".
std::string human_duration(double seconds);

// Whether escape sequences may be sent to a descriptor (no-color.org: NO_COLOR counts when not empty).
bool escapes_wanted(int fd);

// Columns of the window: as COLUMNS says, or the terminal; 0 where there is no terminal, and no limit.
size_t window_width(int fd);

// Columns a text takes: its UTF-8 characters, each counted as one.
size_t text_columns(const std::string& text);

// The first `columns` characters.
std::string cut_to(const std::string& text, size_t columns);

// A part of a line, and how much one would miss it: where the line is too long for the window the parts with
// the least weight go first, at last all but the heaviest, which is cut.
struct LinePart {
    int weight;
    std::string text;
};

// The parts with `between` them, in at most `width` columns (0: no limit).
std::string fitted_line(std::vector<LinePart> parts, const std::string& between, size_t width);

// What clears a line that is being drawn over, before something that stays is printed on stdout.
inline const char* line_start() { return escapes_wanted(1) ? "\r\033[K" : ""; }

// Text from a model, safe to show: control characters other than tab and newline become dots.
std::string printable(std::string text);

// A line on stderr, `label  [####....]  42%  1.26K games/s  eta 12s`, redrawn in place on a terminal (and
// written every ten seconds elsewhere). total 0 means the end is not known: no bar, the count instead.
struct Progress {
    std::string label, unit;
    double total, begin = now_seconds(), last = begin;
    bool terminal = escapes_wanted(2), drawn = false;

    Progress(std::string label, std::string unit, double total)
        : label(std::move(label)), unit(std::move(unit)), total(total) {}

    void update(double done);
    // Ends the line; says nothing when the work took under two seconds and nothing was drawn.
    void finish(double done);
    // The line after `seconds` of work, in at most `width` columns (0: no limit).
    std::string line(double done, double seconds, size_t width) const;
    void draw(double done, double t);
};
