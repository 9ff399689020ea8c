// Chromium without a window, for tests of pages.
#pragma once
#include "../dev/lib/file.h"
#include "check.h"
#include <filesystem>
#include <fstream>
#include <sys/wait.h>
#include <unistd.h>

// "" if there is none.
inline std::string chromium() {
    for (const char* path : {"/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"})
        if (access(path, X_OK) == 0) return path;
    return "";
}

inline std::string read_text(const std::string& path) {
    const MappedFile file(path);
    return {(const char*)file.data, file.size};
}
inline void write_file(const std::string& path, const std::string& text) {
    AtomicFile file(path);
    file.write(text.data(), text.size());
    file.commit();
}

// A folder for a test's pages, gone with it.
struct PageFolder {
    char path[32] = "/tmp/test_page_XXXXXX";
    PageFolder() {
        if (!mkdtemp(path)) fail("%s: cannot be created: %s", path, strerror(errno));
    }
    PageFolder(const PageFolder&) = delete;
    ~PageFolder() {
        std::error_code ignored;
        std::filesystem::remove_all(path, ignored);
    }
};

// test(folder) where there is a browser, one line where there is none.
inline void in_browser(void (*test)(const std::string& folder), const PageFolder& folder) {
    if (chromium().empty())
        puts("skipped: no chromium, the pages were not opened");
    else
        test(folder.path);
}

// Runs it on a page; returns what it printed. What pages said on the console goes to *console. virtual_time:
// timers and frames go by at once, and the clock with them, which then measures nothing.
inline std::string browse(const std::string& folder, const std::string& flags, const std::string& page,
                          std::string* console = nullptr, bool virtual_time = true) {
    const std::string out = folder + "/browser.out", err = folder + "/browser.err";
    const int status = system(
        strf("timeout 600 %s --headless --no-sandbox --disable-gpu --hide-scrollbars --enable-logging=stderr "
             "--user-data-dir=%s/profile --allow-file-access-from-files %s %s 'file://%s' > %s 2> %s",
             chromium().c_str(), folder.c_str(), virtual_time ? "--virtual-time-budget=12000" : "",
             flags.c_str(), page.c_str(), out.c_str(), err.c_str())
            .c_str());
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "chromium ended with status %d", status);
    std::ifstream lines(err);
    for (std::string line; console && std::getline(lines, line);)
        if (line.find("CONSOLE") != std::string::npos) *console += line + "\n";
    return read_text(out);
}

// The findings among the lines of a document, `ok ...` or `no ...`: how many.
inline size_t check_findings(const std::string& dom) {
    size_t found = 0;
    for (size_t from = dom.find('\n') + 1, to; (to = dom.find('\n', from)) != std::string::npos;
         from = to + 1) {
        const std::string line = dom.substr(from, to - from);
        if (!line.starts_with("ok ") && !line.starts_with("no ")) continue;
        check(line[0] == 'o', "%s", line.c_str());
        found++;
    }
    return found;
}
