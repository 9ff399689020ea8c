// The command line of every program: a list of options, each bound to the variable it sets. The variable's
// value when it is added is the default that --help prints. Parsing is getopt_long's; on top of it every
// number must be a whole, finite number in its range, or the program ends with one line and status 2, which
// says what to type instead where that can be known. Every program has --help and --threads (threads.h).
#pragma once
#include "error.h"
#include "threads.h"
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
#include <unistd.h>
#include <vector>

// The parts between separators, empty ones, too: "" has one, "1,2," three.
std::vector<std::string> split(const std::string& list, char separator);

// How far apart two words are: letters to insert, remove, replace, or swap with their neighbour.
size_t edit_distance(const std::string& a, const std::string& b);

// The word that was probably meant, "" when none is near.
std::string nearest_word(const std::string& typed, const std::vector<std::string>& words);

// What becomes of an option when a run that stored it is resumed.
enum class Stored {
    Fixed,      // it stays as it was; another value is refused
    FromPreset, // the same, and its default (0 or -1) is no value of its own: it means what was stored
    Free,       // a value given now takes the place of the stored one
    No,         // it is not stored
};

struct Options {
    std::string program, purpose; // purpose: shown by --help under the usage line; may have several lines
    std::string positional;       // what follows the options, for the usage line ("" for nothing)
    std::vector<std::string> arguments; // what followed the options

    Options(std::string program, std::string purpose, std::string positional = "")
        : program(std::move(program)), purpose(std::move(purpose)), positional(std::move(positional)) {}

    // short_name 0: long form only. Ranges are inclusive.
    void add(char short_name, const char* name, const char* arg, int64_t* target, int64_t low, int64_t high,
             const char* help, Stored stored = Stored::Fixed);
    void add(char short_name, const char* name, const char* arg, double* target, double low, double high,
             const char* help, Stored stored = Stored::Fixed);
    void add(char short_name, const char* name, const char* arg, std::string* target, const char* help,
             Stored stored = Stored::Fixed);
    // One of a fixed set of words.
    void add(char short_name, const char* name, std::string* target, std::vector<std::string> words,
             const char* help, Stored stored = Stored::Fixed);
    void add(char short_name, const char* name, bool* target, const char* help,
             Stored stored = Stored::Fixed);
    // --threads; where a program does not say where it stands in --help, parse() adds it at the end.
    void add_threads() {
        add(0, "threads", "N", &threads, 0, 1024,
            "threads (0: OMP_NUM_THREADS, or as many as cores and quota allow)", Stored::No);
    }
    // A heading between groups of options in --help.
    void section(const char* title) { list.push_back({0, "", "", title, "", Stored::No, nullptr, nullptr}); }

    // Was it on the command line?  Its value as text, its default; and the way back from such text.
    bool given(const std::string& name) const { return seen.count(name) > 0; }
    std::string text(const std::string& name) const { return find(name).get(); }
    std::string initial(const std::string& name) const { return find(name).initial; }
    Stored stored(const std::string& name) const { return find(name).stored; }
    void restore(const std::string& name, const std::string& text) const { find(name).set(text.c_str()); }
    std::vector<std::string> names() const;

    // Returns false when --help was asked for and printed: the program then ends with status 0.
    bool parse(int argc, char** argv);

    void print_help() const;

  private:
    // The shortest decimal that is read back as the same number.
    static std::string shortest(double x) {
        char text[32];
        return {text, std::to_chars(text, text + sizeof text, x).ptr};
    }
    struct Entry {
        char short_name;
        std::string name, arg, help, initial;
        Stored stored;
        std::function<std::string()> get;
        std::function<void(const char*)> set;
    };
    std::vector<Entry> list;
    std::set<std::string> seen;
    int64_t threads = 0;

    bool declares(const std::string& name) const {
        return std::any_of(list.begin(), list.end(), [&](const Entry& e) { return e.set && e.name == name; });
    }

    void push(char short_name, const char* name, const char* arg, const char* help, Stored stored,
              std::string initial, std::function<std::string()> get, std::function<void(const char*)> set);
    const Entry& find(const std::string& name) const;
    // word: what getopt did not know; letter: the short option in it, or 0.
    [[noreturn]] void fail_unknown(const std::string& word, int letter) const;
    // An argument that no option takes: a value behind an option that has none (llm.c's -y 1), or what the
    // shell has made of a pattern without quotes. What stood before it in the command line tells which.
    [[noreturn]] void fail_unexpected(const std::vector<char*>& typed, const char* argument) const;
    // A pattern that matches both names: what they begin with, but for digits, and what they end with.
    static std::string pattern_of(const std::string& a, const std::string& b);
    static std::string left_side(const Entry& e) {
        std::string left = e.short_name ? strf("-%c, --", e.short_name) : "    --";
        return left + e.name + (e.arg.empty() ? "" : " " + e.arg);
    }
};
