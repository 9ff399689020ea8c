// How the lines of terminal.h are made and cut.
#include "terminal.h"

double now_seconds() {
    using namespace std::chrono;
    return duration<double>(steady_clock::now().time_since_epoch()).count();
}

std::string human_count(double x) {
    const char* units[] = {"", "K", "M", "G", "T", "P"};
    int u = 0;
    for (; std::fabs(x) >= 999.5 && u < 5; u++) x /= 1000;
    if (u == 0) return x == std::floor(x) ? strf("%.0f", x) : strf("%.1f", x);
    return strf(x < 9.995 ? "%.2f%s" : x < 99.95 ? "%.1f%s" : "%.0f%s", x, units[u]);
}

std::string human_bytes(double x) {
    const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    int u = 0;
    for (; x >= 1023.5 && u < 5; u++) x /= 1024;
    return strf(u == 0 ? "%.0f %s" : "%.1f %s", x, units[u]);
}

std::string human_duration(double seconds) {
    if (!(seconds >= 0) || seconds > 3e9) return "?";
    uint64_t s = uint64_t(seconds + 0.5);
    if (s < 60) return strf("%us", unsigned(s));
    if (s < 3600) return strf("%um%02us", unsigned(s / 60), unsigned(s % 60));
    if (s < 86400) return strf("%uh%02um", unsigned(s / 3600), unsigned(s / 60 % 60));
    return strf("%ud%02uh", unsigned(s / 86400), unsigned(s / 3600 % 24));
}

bool escapes_wanted(int fd) {
    const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");
    return isatty(fd) && !(no_color && *no_color) && !(term && strcmp(term, "dumb") == 0);
}

size_t window_width(int fd) {
    if (!isatty(fd)) return 0;
    const char* columns = getenv("COLUMNS");
    if (const long n = columns ? strtol(columns, nullptr, 10) : 0; n > 0 && n < 10000) return size_t(n);
    winsize size = {};
    return ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

size_t text_columns(const std::string& text) {
    size_t n = 0;
    for (const char c : text) n += (c & 0xC0) != 0x80;
    return n;
}

std::string cut_to(const std::string& text, size_t columns) {
    size_t i = 0;
    for (size_t n = 0; i < text.size(); i++)
        if ((text[i] & 0xC0) != 0x80 && ++n > columns) break;
    return text.substr(0, i);
}

std::string fitted_line(std::vector<LinePart> parts, const std::string& between, size_t width) {
    for (;;) {
        std::string line;
        size_t least = 0;
        for (size_t i = 0; i < parts.size(); i++) {
            line += (i == 0 ? "" : between) + parts[i].text;
            if (parts[i].weight < parts[least].weight) least = i;
        }
        if (width == 0 || text_columns(line) <= width) return line;
        if (parts.size() == 1) return cut_to(line, width);
        parts.erase(parts.begin() + std::ptrdiff_t(least));
    }
}

std::string printable(std::string text) {
    for (char& c : text)
        if (((unsigned char)c < 32 && c != '\n' && c != '\t') || c == 127) c = '.';
    return text;
}

void Progress::update(double done) {
    double t = now_seconds();
    if (t - last < (terminal ? 0.1 : 10.0)) return;
    last = t;
    draw(done, t);
}

void Progress::finish(double done) {
    if (drawn || now_seconds() - begin > 2) draw(done, now_seconds());
    if (drawn && terminal) fputc('\n', stderr);
    drawn = false;
}

std::string Progress::line(double done, double seconds, size_t width) const {
    const double rate = seconds > 0 ? done / seconds : 0;
    const bool to_come = total > 0 && rate > 0 && done < total;
    const std::string time =
        strf(to_come ? "eta %s" : "%s", human_duration(to_come ? (total - done) / rate : seconds).c_str());
    std::vector<LinePart> parts = {{4, label}};
    if (total > 0) {
        const double share = std::fmin(1.0, done / total);
        const size_t filled = size_t(24 * share);
        parts.push_back(
            {1, strf("[%s%s]", std::string(filled, '#').c_str(), std::string(24 - filled, '.').c_str())});
        parts.push_back({5, strf("%3.0f%%", 100 * share)});
    } else {
        parts.push_back({5, human_count(done) + " " + unit});
    }
    parts.push_back({2, human_count(rate) + " " + unit + "/s"});
    parts.push_back({3, time});
    return fitted_line(parts, "  ", width);
}

void Progress::draw(double done, double t) {
    const size_t width = window_width(2);
    const std::string text = line(done, t - begin, width > 0 ? width - 1 : 0); // the last column wraps
    fprintf(stderr, terminal ? "\r%s\033[K" : "%s\n", text.c_str());
    fflush(stderr);
    drawn = true;
}
