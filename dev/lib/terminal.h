// What a person at the terminal sees: numbers in human units, and a progress line with rate and time left.
#pragma once
#include "error.h"
#include <chrono>
#include <cmath>
#include <cstdint>
#include <unistd.h>

inline double now_seconds() {
    using namespace std::chrono;
    return duration<double>(steady_clock::now().time_since_epoch()).count();
}

// 812 -> "812", 12600 -> "12.6K", 3.4e9 -> "3.40G": three digits and a unit of 1000.
inline std::string human_count(double x) {
    const char* units[] = {"", "K", "M", "G", "T", "P"};
    int u = 0;
    while (std::fabs(x) >= 999.5 && u < 5) x /= 1000, u++;
    if (u == 0) return x == std::floor(x) ? strf("%.0f", x) : strf("%.1f", x);
    return strf(x < 9.995 ? "%.2f%s" : x < 99.95 ? "%.1f%s" : "%.0f%s", x, units[u]);
}

// Bytes in units of 1024: "812 B", "12.6 MiB".
inline std::string human_bytes(double x) {
    const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    int u = 0;
    while (x >= 1023.5 && u < 5) x /= 1024, u++;
    return strf(u == 0 ? "%.0f %s" : "%.1f %s", x, units[u]);
}

// 4.2 -> "4s", 83 -> "1m23s", 7500 -> "2h05m", 200000 -> "2d07h".
inline std::string human_duration(double seconds) {
    if (!(seconds >= 0) || seconds > 3e9) return "?";
    uint64_t s = uint64_t(seconds + 0.5);
    if (s < 60) return strf("%us", unsigned(s));
    if (s < 3600) return strf("%um%02us", unsigned(s / 60), unsigned(s % 60));
    if (s < 86400) return strf("%uh%02um", unsigned(s / 3600), unsigned(s / 60 % 60));
    return strf("%ud%02uh", unsigned(s / 86400), unsigned(s / 3600 % 24));
}

// What clears a line that is being drawn over, before something that stays is printed on stdout.
inline const char* line_start() { return isatty(1) ? "\r\033[K" : ""; }

// Text from a model, safe to show: control characters other than tab and newline become dots.
inline std::string printable(std::string text) {
    for (char& c : text)
        if (((unsigned char)c < 32 && c != '\n' && c != '\t') || c == 127) c = '.';
    return text;
}

// A line on stderr, `label  [####....]  42%  1.26K games/s  eta 12s`, redrawn in place on a terminal (and
// written every ten seconds elsewhere). total 0 means the end is not known: no bar, the count instead.
struct Progress {
    std::string label, unit;
    double total, begin = now_seconds(), last = begin;
    bool terminal = isatty(2), drawn = false;

    Progress(std::string label, std::string unit, double total)
        : label(std::move(label)), unit(std::move(unit)), total(total) {}

    void update(double done) {
        double t = now_seconds();
        if (t - last < (terminal ? 0.1 : 10.0)) return;
        last = t;
        draw(done, t);
    }
    // Ends the line; says nothing when the work took under two seconds and nothing was drawn.
    void finish(double done) {
        if (drawn || now_seconds() - begin > 2) draw(done, now_seconds());
        if (drawn && terminal) fputc('\n', stderr);
        drawn = false;
    }
    void draw(double done, double t) {
        double seconds = t - begin, rate = seconds > 0 ? done / seconds : 0;
        std::string line = label + "  ";
        if (total > 0) {
            int filled = int(24 * std::fmin(1.0, done / total));
            line += "[" + std::string(filled, '#') + std::string(24 - filled, '.') + "]";
            line += strf(" %3.0f%%  ", 100 * std::fmin(1.0, done / total));
        } else {
            line += human_count(done) + " " + unit + "  ";
        }
        line += human_count(rate) + " " + unit + "/s";
        if (total > 0 && rate > 0 && done < total)
            line += "  eta " + human_duration((total - done) / rate);
        else
            line += "  " + human_duration(seconds);
        fprintf(stderr, terminal ? "\r%s\033[K" : "%s\n", line.c_str());
        fflush(stderr);
        drawn = true;
    }
};
