// The command line of every program: a list of options, each bound to the variable it sets. The variable's
// value when it is added is the default that --help prints. Parsing is getopt_long's; on top of it every
// number must be a whole, finite number in its range, or the program ends with one line and status 2.
#pragma once
#include "error.h"
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <getopt.h>
#include <set>
#include <string>
#include <vector>

struct Options {
    std::string program, purpose; // purpose: shown by --help under the usage line; may have several lines
    std::string positional;       // what follows the options, for the usage line ("" for nothing)
    std::vector<std::string> arguments; // what followed the options

    Options(std::string program, std::string purpose, std::string positional = "")
        : program(std::move(program)), purpose(std::move(purpose)), positional(std::move(positional)) {}

    // short_name 0: long form only. Ranges are inclusive.
    void add(char short_name, const char* name, const char* arg, int64_t* target, int64_t low, int64_t high,
             const char* help) {
        auto get = [=] { return strf("%lld", (long long)*target); };
        push(short_name, name, arg, help, get(), get, [=](const char* text) {
            char* end;
            errno = 0;
            long long value = strtoll(text, &end, 10);
            if (end == text || *end || errno)
                fail_usage("--%s: %s is not a whole number", name, quoted(text).c_str());
            if (value < low || value > high)
                fail_usage("--%s: %s is out of range, expected %lld to %lld", name, text, (long long)low,
                           (long long)high);
            *target = value;
        });
    }
    void add(char short_name, const char* name, const char* arg, double* target, double low, double high,
             const char* help) {
        push(
            short_name, name, arg, help, shortest(*target), [=] { return shortest(*target); },
            [=](const char* text) {
                char* end;
                double value = strtod(text, &end);
                if (end == text || *end || !std::isfinite(value))
                    fail_usage("--%s: %s is not a number", name, quoted(text).c_str());
                if (!(value >= low && value <= high))
                    fail_usage("--%s: %s is out of range, expected %g to %g", name, text, low, high);
                *target = value;
            });
    }
    void add(char short_name, const char* name, const char* arg, std::string* target, const char* help) {
        push(
            short_name, name, arg, help, *target, [=] { return *target; },
            [=](const char* text) { *target = text; });
    }
    // One of a fixed set of words.
    void add(char short_name, const char* name, std::string* target, std::vector<std::string> words,
             const char* help) {
        std::string list;
        for (const std::string& w : words) list += (list.empty() ? "" : "|") + w;
        push(
            short_name, name, list.c_str(), help, *target, [=] { return *target; },
            [=](const char* text) {
                for (const std::string& w : words)
                    if (w == text) return void(*target = w);
                fail_usage("--%s: %s is unknown, expected %s", name, quoted(text).c_str(), list.c_str());
            });
    }
    void add(char short_name, const char* name, bool* target, const char* help) {
        push(
            short_name, name, "", help, "", [=] { return *target ? "1" : "0"; },
            [=](const char* text) { *target = !text || *text == '1'; });
    }
    // A heading between groups of options in --help.
    void section(const char* title) { list.push_back({0, "", "", title, "", nullptr, nullptr}); }

    // Was it on the command line?  Its value as text, its default; and the way back from such text.
    bool given(const std::string& name) const { return seen.count(name) > 0; }
    std::string text(const std::string& name) const { return find(name).get(); }
    std::string initial(const std::string& name) const { return find(name).initial; }
    void restore(const std::string& name, const std::string& text) const { find(name).set(text.c_str()); }
    std::vector<std::string> names() const {
        std::vector<std::string> out;
        for (const Entry& e : list)
            if (e.set) out.push_back(e.name);
        return out;
    }

    // Returns false when --help was asked for and printed: the program then ends with status 0.
    bool parse(int argc, char** argv) {
        std::string shorts = ":";
        std::vector<option> longs;
        for (size_t i = 0; i < list.size(); i++) {
            if (!list[i].set) continue;
            int takes = list[i].arg.empty() ? no_argument : required_argument;
            longs.push_back({list[i].name.c_str(), takes, nullptr, int(256 + i)});
            if (list[i].short_name) shorts += std::string(1, list[i].short_name) + (takes ? ":" : "");
        }
        longs.push_back({"help", no_argument, nullptr, 'h'});
        longs.push_back({nullptr, 0, nullptr, 0});
        shorts += "h";
        optind = 0, opterr = 0; // 0: GNU getopt starts afresh, so that one process may parse twice
        for (int c; (c = getopt_long(argc, argv, shorts.c_str(), longs.data(), nullptr)) != -1;) {
            if (c == 'h') return print_help(), false;
            if (c == ':') fail_usage("%s: a value is missing", argv[optind - 1]);
            if (c == '?')
                fail_usage("%s: unknown option, or an ambiguous short form, or one that takes no value",
                           optopt > 0 && optopt < 256 && strncmp(argv[optind - 1], "--", 2) != 0
                               ? strf("-%c", optopt).c_str()
                               : quoted(argv[optind - 1]).c_str());
            for (size_t i = 0; i < list.size(); i++)
                if (list[i].set && (c == int(256 + i) || (c < 256 && c == list[i].short_name))) {
                    list[i].set(optarg);
                    seen.insert(list[i].name);
                }
        }
        arguments.assign(argv + optind, argv + argc);
        if (positional.empty() && !arguments.empty())
            fail_usage("%s: unexpected argument", quoted(arguments[0]).c_str());
        return true;
    }

    void print_help() const {
        printf("usage: %s [options]%s%s\n\n%s\n\n", program.c_str(), positional.empty() ? "" : " ",
               positional.c_str(), purpose.c_str());
        size_t width = 8;
        for (const Entry& e : list)
            if (e.set) width = std::max(width, left_side(e).size());
        for (const Entry& e : list) {
            if (!e.set) {
                printf("\n%s\n", e.help.c_str());
                continue;
            }
            std::string value = e.initial.empty() ? "" : " [" + e.initial + "]";
            printf("  %-*s  %s%s\n", int(width), left_side(e).c_str(), e.help.c_str(), value.c_str());
        }
        printf("  %-*s  %s\n", int(width), "-h, --help", "print this and exit");
    }

  private:
    // The shortest decimal that is read back as the same number.
    static std::string shortest(double x) {
        char text[32];
        return {text, std::to_chars(text, text + sizeof text, x).ptr};
    }
    struct Entry {
        char short_name;
        std::string name, arg, help, initial;
        std::function<std::string()> get;
        std::function<void(const char*)> set;
    };
    std::vector<Entry> list;
    std::set<std::string> seen;

    void push(char short_name, const char* name, const char* arg, const char* help, std::string initial,
              std::function<std::string()> get, std::function<void(const char*)> set) {
        list.push_back({short_name, name, arg, help, std::move(initial), std::move(get), std::move(set)});
    }
    const Entry& find(const std::string& name) const {
        for (const Entry& e : list)
            if (e.set && e.name == name) return e;
        fail("--%s: there is no such option", name.c_str());
    }
    static std::string left_side(const Entry& e) {
        std::string left = e.short_name ? strf("-%c, --", e.short_name) : "    --";
        return left + e.name + (e.arg.empty() ? "" : " " + e.arg);
    }
};
