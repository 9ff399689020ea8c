// Parsing, help and what is said about a wrong command line.
#include "options.h"

std::vector<std::string> split(const std::string& list, char separator) {
    std::vector<std::string> parts(1);
    for (const char c : list)
        if (c == separator)
            parts.emplace_back();
        else
            parts.back() += c;
    return parts;
}

size_t edit_distance(const std::string& a, const std::string& b) {
    std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
    for (size_t i = 0; i <= a.size(); i++)
        for (size_t j = 0; j <= b.size(); j++) {
            d[i][j] = i == 0 ? j : j == 0 ? i : d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            if (i == 0 || j == 0) continue;
            d[i][j] = std::min({d[i][j], d[i - 1][j] + 1, d[i][j - 1] + 1});
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
        }
    return d[a.size()][b.size()];
}

std::string nearest_word(const std::string& typed, const std::vector<std::string>& words) {
    std::string best;
    size_t least = std::min<size_t>(3, (typed.size() + 2) / 3 + 1);
    for (const std::string& w : words)
        if (const size_t d = edit_distance(typed.substr(0, 64), w); d < least) {
            least = d;
            best = w;
        }
    return best;
}

void Options::add(char short_name, const char* name, const char* arg, int64_t* target, int64_t low,
                  int64_t high, const char* help, Stored stored) {
    auto get = [=] { return strf("%lld", (long long)*target); };
    const std::string initial = get();
    push(short_name, name, arg, help, stored, initial, get, [=](const char* text) {
        char* end;
        errno = 0;
        if (stored == Stored::FromPreset && !strcmp(text, "auto")) text = initial.c_str(); // as if not given
        long long value = strtoll(text, &end, 10);
        if (end == text || *end || errno)
            fail_usage("--%s: %s is not a whole number", name, quoted(text).c_str());
        if (value < low || value > high)
            fail_usage("--%s: %s is out of range, expected %lld to %lld", name, text, (long long)low,
                       (long long)high);
        *target = value;
    });
}

void Options::add(char short_name, const char* name, const char* arg, double* target, double low, double high,
                  const char* help, Stored stored) {
    push(
        short_name, name, arg, help, stored, shortest(*target), [=] { return shortest(*target); },
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

void Options::add(char short_name, const char* name, const char* arg, std::string* target, const char* help,
                  Stored stored) {
    push(
        short_name, name, arg, help, stored, *target, [=] { return *target; },
        [=](const char* text) { *target = text; });
}

void Options::add(char short_name, const char* name, std::string* target, std::vector<std::string> words,
                  const char* help, Stored stored) {
    std::string list;
    for (const std::string& w : words) list += (list.empty() ? "" : "|") + w;
    push(
        short_name, name, list.c_str(), help, stored, *target, [=] { return *target; },
        [=](const char* text) {
            for (const std::string& w : words)
                if (w == text) return void(*target = w);
            const std::string meant = nearest_word(text, words);
            fail_usage("--%s: %s is unknown, expected %s%s", name, quoted(text).c_str(), list.c_str(),
                       meant.empty() ? "" : (": did you mean " + meant + "?").c_str());
        });
}

void Options::add(char short_name, const char* name, bool* target, const char* help, Stored stored) {
    push(
        short_name, name, "", help, stored, "", [=] { return *target ? "1" : "0"; },
        [=](const char* text) { *target = !text || *text == '1'; });
}

std::vector<std::string> Options::names() const {
    std::vector<std::string> out;
    for (const Entry& e : list)
        if (e.set) out.push_back(e.name);
    return out;
}

bool Options::parse(int argc, char** argv) {
    if (!declares("threads")) add_threads();
    const std::vector<char*> typed(argv, argv + argc); // getopt moves arguments behind the options
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
        if (c == '?') fail_unknown(argv[optind - 1], optopt);
        for (size_t i = 0; i < list.size(); i++)
            if (list[i].set && (c == int(256 + i) || (c < 256 && c == list[i].short_name))) {
                list[i].set(optarg);
                seen.insert(list[i].name);
            }
    }
    arguments.assign(argv + optind, argv + argc);
    if (positional.empty() && !arguments.empty()) fail_unexpected(typed, argv[optind]);
    use_threads(int(threads));
    return true;
}

void Options::print_help() const {
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

void Options::push(char short_name, const char* name, const char* arg, const char* help, Stored stored,
                   std::string initial, std::function<std::string()> get,
                   std::function<void(const char*)> set) {
    list.push_back({short_name, name, arg, help, std::move(initial), stored, std::move(get), std::move(set)});
}

const Options::Entry& Options::find(const std::string& name) const {
    for (const Entry& e : list)
        if (e.set && e.name == name) return e;
    fail("--%s: there is no such option", name.c_str());
}

void Options::fail_unknown(const std::string& word, int letter) const {
    const bool is_long = word.rfind("--", 0) == 0;
    std::string meant;
    if (is_long) {
        std::vector<std::string> all = names();
        all.push_back("help");
        const std::string name = word.substr(2, word.find('=') - 2);
        if (!std::any_of(all.begin(), all.end(), [&](const std::string& n) { return n.rfind(name, 0) == 0; }))
            meant = nearest_word(name, all);
    }
    fail_usage("%s: unknown option, or an ambiguous short form, or one that takes no value%s",
               !is_long && letter > 0 && letter < 256 ? strf("-%c", letter).c_str() : quoted(word).c_str(),
               meant.empty() ? "" : (": did you mean --" + meant + "?").c_str());
}

void Options::fail_unexpected(const std::vector<char*>& typed, const char* argument) const {
    const size_t at = std::find(typed.begin(), typed.end(), argument) - typed.begin();
    const std::string before = at > 1 && at < typed.size() ? typed[at - 1] : "",
                      option = at > 2 && at < typed.size() ? typed[at - 2] : "";
    const std::string what = quoted(argument) + ": unexpected argument";
    for (const Entry& e : list) {
        if (!e.set) continue;
        auto names_it = [&](const std::string& word) {
            return word == "--" + e.name || (e.short_name && word == strf("-%c", e.short_name));
        };
        if (e.arg.empty() && names_it(before))
            fail_usage("%s: %s takes no value here, leave %s out", what.c_str(), before.c_str(), argument);
        if (e.arg.find("GLOB") == std::string::npos) continue;
        const bool joined = before.rfind("--" + e.name + "=", 0) == 0;
        const std::string first = joined ? before.substr(e.name.size() + 3) : before;
        if ((joined || names_it(option)) && access(argument, F_OK) == 0)
            fail_usage("%s: if the shell made several names of a pattern, quote it: --%s '%s'", what.c_str(),
                       e.name.c_str(), pattern_of(first, argument).c_str());
    }
    fail_usage("%s", what.c_str());
}

std::string Options::pattern_of(const std::string& a, const std::string& b) {
    const size_t shorter = std::min(a.size(), b.size());
    size_t head = 0, tail = 0;
    while (head < shorter && a[head] == b[head]) head++;
    while (head > 0 && isdigit((unsigned char)a[head - 1])) head--;
    while (tail < shorter - head && a[a.size() - 1 - tail] == b[b.size() - 1 - tail]) tail++;
    while (tail > 0 && isdigit((unsigned char)a[a.size() - tail])) tail--;
    return a.substr(0, head) + "*" + a.substr(a.size() - tail);
}
