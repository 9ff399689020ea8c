// The test harness: every check counts as passed or failed, every comparison is written so that NaN fails,
// and finish() prints `N passed, N failed` and gives the exit status. One program per subject includes it.
#pragma once
#include "../dev/lib/error.h"
#include <cmath>
#include <cstring>
#include <string>

inline int checks_passed = 0, checks_failed = 0;

inline bool check_at(bool ok, const char* file, int line, const std::string& what) {
    if (ok) return checks_passed++, true;
    checks_failed++;
    printf("FAILED %s:%d: %s\n", file, line, what.c_str());
    return false;
}

// check(condition) or check(condition, "format", ...) with what to print when it is false.
inline std::string check_text(const char* expression) { return expression; }
inline std::string check_text(const char* expression, const char* text) {
    return strf("%s: %s", expression, text);
}
template <class... Args> std::string check_text(const char* expression, const char* format, Args... args) {
    char text[1024];
    snprintf(text, sizeof text, format, args...);
    return std::string(expression) + ": " + text;
}
#define check(condition, ...)                                                                                \
    check_at(bool(condition), __FILE__, __LINE__, check_text(#condition __VA_OPT__(, ) __VA_ARGS__))

// |a - b| <= tolerance; false when either is NaN.
#define check_near(a, b, tolerance)                                                                          \
    check_at(std::fabs(double(a) - double(b)) <= double(tolerance), __FILE__, __LINE__,                      \
             strf("%s = %.9g, expected %.9g within %g", #a, double(a), double(b), double(tolerance)))

// The statement throws Error, and the message contains every one of the given parts and is one line.
template <class F, class... Parts> bool check_error_at(const char* file, int line, F f, Parts... parts) {
    std::string message;
    try {
        f();
    } catch (const Error& e) {
        message = e.what();
        bool all = message.find('\n') == std::string::npos;
        for (const std::string& part : {std::string(parts)...})
            all = all && message.find(part) != std::string::npos;
        std::string wanted;
        for (const std::string& part : {std::string(parts)...}) wanted += " \"" + part + "\"";
        return check_at(all, file, line, "error message: " + message + " -- expected it to name" + wanted);
    }
    return check_at(false, file, line, "expected an error, none was raised");
}
#define check_error(statement, ...)                                                                          \
    check_error_at(                                                                                          \
        __FILE__, __LINE__, [&] { statement; }, __VA_ARGS__)

inline int finish() {
    printf("%d passed, %d failed\n", checks_passed, checks_failed);
    return checks_failed || !checks_passed ? 1 : 0;
}
